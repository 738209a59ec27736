use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, header};
use dezky_ingest::signature;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::config::client_ip;
use crate::error::Problem;
use crate::state::AppState;

/// How long a body may take: as long as Stalwart waits for the answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read and thrown away, so that the
/// sender is still there to hear why.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// `POST /ingest/stalwart/webhook`.
pub(super) async fn stalwart(
    state: State<AppState>,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    receive(state, "stalwart", peer, &headers, body).await
}

/// `POST /ingest/stalwart/{instance}/webhook`.
pub(super) async fn stalwart_instance(
    state: State<AppState>,
    Path(instance): Path<String>,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    receive(state, &format!("stalwart:{instance}"), peer, &headers, body).await
}

/// Answers after the events are durable, and neither looks at the content type
/// nor redirects: Stalwart would lose the batch.
async fn receive(
    State(state): State<AppState>,
    source: &str,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let receiver = state
        .stalwart
        .get(source)
        .ok_or_else(|| Problem::not_found("no such webhook is configured"))?;
    let body = read_body(body, headers, state.config.max_body_bytes).await?;
    let signature = headers.get(signature::HEADER).and_then(|value| value.to_str().ok());
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
    let client = client_ip(peer.ip(), forwarded, &state.config.trusted_proxies);
    let taken = receiver.receive(signature, &body, Some(client)).await?;
    Ok(Json(json!({ "received": taken.received() })))
}

/// The whole body, within the bounds of size and time.
async fn read_body(body: Body, headers: &HeaderMap, max_bytes: usize) -> Result<Bytes, Problem> {
    let announced: Option<usize> =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let is_over = announced.is_some_and(|bytes| bytes > max_bytes);
    // A client that asks first has not sent anything yet.
    if is_over && headers.contains_key(header::EXPECT) {
        return Err(Problem::body_too_large(max_bytes));
    }
    let reading = async {
        let mut kept = Vec::with_capacity(announced.unwrap_or(0).min(64 << 10));
        let mut read = 0_usize;
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| Problem::body_broken())?;
            read = read.saturating_add(chunk.len());
            if read > max_bytes || is_over {
                kept = Vec::new();
                if read > max_bytes.saturating_add(MAX_DISCARDED_BYTES) {
                    break;
                }
            } else {
                kept.extend_from_slice(&chunk);
            }
        }
        if read > max_bytes { Err(Problem::body_too_large(max_bytes)) } else { Ok(kept.into()) }
    };
    tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| Err(Problem::body_timeout()))
}
