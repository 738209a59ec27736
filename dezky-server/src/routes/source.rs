use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::Value;

use super::parameters::Name;
use super::webhook;
use crate::error::Problem;
use crate::state::AppState;

/// `POST /ingest/{name}/webhook`: a signed post of a declared source. Answers after the
/// events are durable. A body that is unpacked takes room for what comes out of it as
/// well.
pub(super) async fn receive(
    State(state): State<AppState>,
    Name(name): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let receiver = state
        .sources
        .get(&name)
        .ok_or_else(|| Problem::not_found("no such webhook is configured"))?;
    let receiver = Arc::clone(receiver);
    let max_bytes = state.config.max_body_bytes;
    let (room, body) = webhook::read(&state.webhooks, &headers, body, max_bytes).await?;
    let headers = webhook::texts(&headers);
    let shared = AppState::clone(&state);
    let work = async move {
        let mut unpacked = None;
        let grow = |bytes| {
            unpacked = unpacked.take().or_else(|| shared.webhooks.begin());
            unpacked.as_mut().is_some_and(|room| room.grow(bytes))
        };
        receiver.receive_request(&headers, &body, grow).await
    };
    webhook::answer(&state, &name, room, work).await
}
