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
/// events are durable.
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
    let signature = webhook::signature_of(&headers);
    let work = async move { receiver.receive(signature.as_deref(), &body).await };
    webhook::answer(&state, &name, room, work).await
}
