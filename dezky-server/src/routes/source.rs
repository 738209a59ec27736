use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use serde_json::Value;

use super::parameters::Name;
use super::webhook;
use crate::auth::client_address;
use crate::error::Problem;
use crate::state::AppState;

/// `POST /ingest/{name}/webhook`: a signed post of a declared source. Answers after the
/// events are durable.
pub(super) async fn receive(
    State(state): State<AppState>,
    Name(name): Name,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let receiver = state
        .sources
        .get(&name)
        .ok_or_else(|| Problem::not_found("no such webhook is configured"))?;
    let client = client_address(peer, &headers, &state.config.trusted_proxies);
    let (_room, body) = webhook::read(&state, client, &headers, body).await?;
    let signature = webhook::signature_of(&headers);
    let work = receiver.receive(signature.as_deref(), &body);
    webhook::answer(&state, &name, body.len(), work).await
}
