//! A simulated Stalwart: signed requests over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use dezky_core::Timestamp;
use dezky_ingest::signature::{self, Secret};

use super::log_file::whole_seconds;
use crate::failure::Failure;

/// Bodies as Stalwart sent them, in the order of the requests: from several releases, with two
/// events under one id and a retry under new ids.
const BODIES: [&[u8]; 9] = [
    include_bytes!("data/01-v0.8.4-auth-failure.json"),
    include_bytes!("data/02-v0.9.4-auth-failed.json"),
    include_bytes!("data/03-v0.15.5-mixed-batch.json"),
    include_bytes!("data/04-v0.16.9-colliding-ids.json"),
    include_bytes!("data/05a-v0.16.18-first-delivery.json"),
    include_bytes!("data/05b-v0.16.18-retry-same-events-new-ids.json"),
    include_bytes!("data/06-v0.16.18-mail-flow.json"),
    // Newer events, so that the top of the timeline shows both systems.
    br#"{"events":[{"id":"1795305627735","createdAt":"2026-11-22T00:00:27Z","type":"auth.failed","data":{"accountName":"bob@example.com","accountId":9,"spanId":324281410157936900,"reason":"Authentication failed","remoteIp":"198.51.100.23","id":"A7","listenerId":"imaps","localPort":993,"remotePort":50712}},{"id":"1795305634837","createdAt":"2026-11-22T00:00:34Z","type":"auth.success","data":{"accountName":"alice@example.com","accountId":7,"spanId":324281410157936901,"listenerId":"submissions","localPort":465,"remoteIp":"203.0.113.7","remotePort":40112}}]}"#,
    // An item that is not an event never holds up its neighbours.
    br#"{"events":["no event at all",{"id":"178696440012036","createdAt":"2026-08-17T11:00:00Z","type":"auth.success","data":{"accountName":"alice@example.com","accountId":7,"remoteIp":"203.0.113.7"}}]}"#,
];

/// The recurring events: type and data.
const FRESH: [(&str, &str); 4] = [
    (
        "auth.success",
        r#"{"accountName":"alice@example.com","accountId":7,"remoteIp":"203.0.113.7"}"#,
    ),
    (
        "auth.failed",
        r#"{"accountName":"bob@example.com","remoteIp":"198.51.100.23","reason":"Invalid password"}"#,
    ),
    (
        "queue.authenticated-message-queued",
        r#"{"accountName":"alice@example.com","from":"alice@example.com","to":["bob@example.org"],"size":2048,"remoteIp":"203.0.113.7"}"#,
    ),
    (
        "security.authentication-ban",
        r#"{"accountName":"admin@example.com","remoteIp":"192.0.2.66"}"#,
    ),
];

/// Sends to the server's own address.
pub(super) struct Sender {
    client: reqwest::Client,
    url: String,
    secret: Secret,
}

impl Sender {
    pub(super) fn new(address: SocketAddr, secret: &str) -> Result<Self, Failure> {
        let client = dezky_ingest::http::client_builder("http:")
            .map_err(|error| Failure::failed(format!("webhook: {error}")))?
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| Failure::failed(format!("webhook: {error}")))?;
        let secret = Secret::new(secret).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self { client, url: format!("http://{address}/ingest/stalwart/webhook"), secret })
    }

    /// Sends the bundled bodies; returns the number of items that the server accepted.
    pub(super) async fn send_bundled(&self) -> Result<usize, Failure> {
        let mut received = 0;
        for body in BODIES {
            received += self.send(body.to_vec()).await?;
        }
        Ok(received)
    }

    /// Sends one event with the current time.
    pub(super) async fn send_fresh(&self, number: u64, now: Timestamp) -> Result<(), Failure> {
        let (kind, data) = FRESH[usize::try_from(number).unwrap_or(0) % FRESH.len()];
        let at = whole_seconds(now);
        let body =
            format!(r#"{{"events":[{{"createdAt":"{at}","type":"{kind}","data":{data}}}]}}"#);
        self.send(body.into_bytes()).await.map(|_| ())
    }

    async fn send(&self, body: Vec<u8>) -> Result<usize, Failure> {
        let failed = |error: reqwest::Error| Failure::failed(format!("webhook: {error}"));
        let signature = self.secret.sign_base64(&body);
        let request = self.client.post(&self.url).header(signature::HEADER, signature).body(body);
        let response = request.send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(Failure::failed(format!(
                "webhook: the server responded with {}",
                response.status()
            )));
        }
        let answer: serde_json::Value = response.json().await.map_err(failed)?;
        let received = answer.get("received").and_then(serde_json::Value::as_u64);
        Ok(received.and_then(|n| usize::try_from(n).ok()).unwrap_or(0))
    }
}
