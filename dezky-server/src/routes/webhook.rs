use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use dezky_ingest::signature;
use serde_json::{Value, json};

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
    let place = state.webhooks.begin().ok_or_else(Problem::too_many_webhooks)?;
    let body = body::read(body, headers, state.config.max_body_bytes).await?;
    let signature = headers.get(signature::HEADER).and_then(|value| value.to_str().ok());
    let signature = signature.map(str::to_owned);
    let client = client_address(peer, headers, &state.config.trusted_proxies);
    let receiver = Arc::clone(receiver);
    // A task of its own: a sender that hangs up does not stop what it has begun.
    let work = tokio::spawn(async move {
        let taken = receiver.receive(signature.as_deref(), &body, Some(client)).await;
        drop(place);
        taken
    });
    let taken = work.await.map_err(|_| Problem::broken_down())??;
    Ok(Json(json!({ "received": taken.received() })))
}
