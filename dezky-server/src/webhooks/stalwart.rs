//! Webhooks of Stalwart.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use dezky_ingest::signature;
use serde_json::Value;

use crate::app::AppState;
use crate::http::client_address::client_address;
use crate::http::parameters::Name;
use crate::http::problem::Problem;

/// `POST /ingest/stalwart/webhook`.
pub(super) async fn receive(
    state: State<AppState>,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    receive_of(state, "stalwart", peer, &headers, body).await
}

/// `POST /ingest/stalwart/{instance}/webhook`.
pub(super) async fn receive_instance(
    state: State<AppState>,
    Name(instance): Name,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    receive_of(state, &format!("stalwart:{instance}"), peer, &headers, body).await
}

/// Answers after the events are durable. Ignores the content type and never redirects, because
/// Stalwart would lose the batch.
async fn receive_of(
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
    let client = client_address(peer, headers, &state.config.trusted_proxies);
    let (_permit, body) = super::read(&state, client, headers, body).await?;
    let signature = signature_of(headers);
    let _processing = state.bodies.processing_permit(body.len()).await;
    let taken = receiver.receive(signature.as_deref(), &body, Some(client)).await;
    super::answer(&state, source, taken)
}

/// The signatures of the sender, from all lines of the header.
fn signature_of(headers: &HeaderMap) -> Option<String> {
    super::texts(headers).get(signature::HEADER).map(str::to_owned)
}
