//! Measures the time that a webhook's body takes; checks no limit. Run it with
//! `cargo nextest run -p dezky-ingest --run-ignored only speed --no-capture`.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::source::TenantDirectory;
use dezky_core::{Result, Timestamp};
use dezky_ingest::signature::Secrets;
use dezky_ingest::stalwart::{StalwartReceiver, decode};

use crate::{Place, run};

/// A body of realistic events, as Stalwart 0.16 sends them.
pub(crate) fn body(events: usize) -> Vec<u8> {
    let mut body = String::from(r#"{"events":["#);
    for n in 0..events {
        let (second, user) = (n % 60, n % 500);
        let comma = if n == 0 { "" } else { "," };
        let _ = match n % 3 {
            0 => write!(
                body,
                r#"{comma}{{"id":"17869608{second:02}{n}35","createdAt":"2026-08-17T10:00:{second:02}Z","type":"auth.failed","data":{{"accountName":"user{user}@tenant{}.example","remoteIp":"203.0.113.{}","reason":"Incorrect password","listenerId":"imaptls","localPort":993,"remotePort":{},"spanId":{}}}}}"#,
                user % 20,
                n % 250,
                10_000 + n % 50_000,
                9_007_199_254_740_993_u64 + n as u64
            ),
            1 => write!(
                body,
                r#"{comma}{{"id":"17869608{second:02}{n}37","createdAt":"2026-08-17T10:00:{second:02}Z","type":"auth.success","data":{{"accountName":"user{user}@tenant{}.example","accountId":{user},"listenerId":"https","localPort":443,"remoteIp":"198.51.100.{}","remotePort":{},"spanId":{}}}}}"#,
                user % 20,
                n % 250,
                10_000 + n % 50_000,
                9_007_199_254_740_993_u64 + n as u64
            ),
            _ => write!(
                body,
                r#"{comma}{{"id":"17869608{second:02}{n}51","createdAt":"2026-08-17T10:00:{second:02}Z","type":"queue.authenticated-message-queued","data":{{"accountName":"user{user}@tenant{}.example","from":"user{user}@tenant{}.example","to":["a{n}@example.org","b{n}@example.net"],"size":{},"queueId":{},"messageId":"<{n}.abc@tenant.example>","total":2}}}}"#,
                user % 20,
                user % 20,
                1_000 + n,
                9_107_199_254_740_993_u64 + n as u64
            ),
        };
    }
    body.push_str("]}");
    body.into_bytes()
}

struct Directory;

#[async_trait]
impl TenantDirectory for Directory {
    async fn by_slug(&self, _: &str) -> Result<Option<String>> {
        Ok(None)
    }
    async fn by_domain(&self, domain: &str) -> Result<Option<String>> {
        Ok(domain.split('.').next().map(str::to_owned))
    }
    async fn by_user(&self, _: &str, _: &str) -> Result<Option<String>> {
        Ok(None)
    }
}

#[test]
#[ignore = "measures"]
fn speed() {
    run(async {
        for events in [500, 2_000, 10_000, 50_000] {
            let place = Place::new().await;
            let intake = place.intake().with_directory(Arc::new(Directory));
            let runtime = Arc::clone(intake.runtime());
            let now = || runtime.now().as_millis();
            let secrets = Secrets::from_texts(["x"]).unwrap();
            let receiver = StalwartReceiver::new("stalwart", secrets.clone(), intake).unwrap();
            let body = body(events);
            let signature = secrets.sign_base64(&body);
            let begin = now();
            secrets.verify(Some(&signature), &body).unwrap();
            let verified = now();
            let decoded = decode("stalwart", &body, None, Timestamp::MIN);
            let read = now();
            let sealed: Vec<_> =
                decoded.events.into_iter().map(|pulled| pulled.event.seal(&*runtime)).collect();
            let sealed_at = now();
            assert_eq!(sealed.len(), events);
            receiver.receive(Some(&signature), &body, None).await.unwrap();
            let stored = now();
            let again = receiver.receive(Some(&signature), &body, None).await.unwrap();
            assert_eq!(again.received(), events);
            println!(
                "{events} events, {} bytes: verify {} ms, decode {} ms, seal {} ms; whole {} ms, again {} ms",
                body.len(),
                verified - begin,
                read - verified,
                sealed_at - read,
                stored - sealed_at,
                now() - stored
            );
        }
    });
}
