use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use dezky_ingest::{Taken, signature};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::body;
use super::parameters::Name;
use crate::auth::client_address;
use crate::error::Problem;
use crate::state::AppState;

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
    Name(instance): Name,
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
    let (place, body) = read(&state, headers, body).await?;
    let signature = signature_of(headers);
    let client = client_address(peer, headers, &state.config.trusted_proxies);
    let receiver = Arc::clone(receiver);
    answer(&state, source, place, async move {
        receiver.receive(signature.as_deref(), &body, Some(client)).await
    })
    .await
}

/// Reads a body where there is room for it; the place is held until the answer.
pub(super) async fn read(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<(OwnedSemaphorePermit, Bytes), Problem> {
    let max_bytes = state.config.max_body_bytes;
    let bytes = body::announced(headers).map_or(max_bytes, |bytes| bytes.min(max_bytes));
    let place = state.webhooks.begin(bytes).ok_or_else(Problem::too_many_webhooks)?;
    Ok((place, body::read(body, headers, max_bytes).await?))
}

/// What the sender says that it signed the body with.
pub(super) fn signature_of(headers: &HeaderMap) -> Option<String> {
    headers.get(signature::HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Does the work of a request in a task of its own, so that a sender that hangs up does
/// not stop what it has begun, and answers when it is done.
pub(super) async fn answer(
    state: &AppState,
    source: &str,
    place: OwnedSemaphorePermit,
    work: impl Future<Output = dezky_core::Result<Taken>> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let (noted, source) = (AppState::clone(state), source.to_owned());
    let work = tokio::spawn(async move {
        let taken = work.await;
        noted.note(&source, &taken);
        drop(place);
        taken
    });
    let taken = work.await.map_err(|_| Problem::broken_down())??;
    Ok(Json(json!({ "received": taken.received() })))
}
