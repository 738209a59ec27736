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
/// events are durable. A body that is unpacked takes room for what comes out of it as
/// well.
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
    let headers = webhook::texts(&headers);
    let mut unpacked = None;
    let grow = |bytes| {
        unpacked = unpacked.take().or_else(|| state.bodies.begin(client));
        unpacked.as_mut().is_some_and(|room| room.grow(bytes))
    };
    let work = receiver.receive_request(&headers, &body, grow);
    webhook::answer(&state, &name, body.len(), work).await
}
