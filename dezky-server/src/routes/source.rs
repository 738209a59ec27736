use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use dezky_ingest::signature;
use serde_json::{Value, json};

use super::body;
use super::parameters::Name;
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
    let body = body::read(body, &headers, state.config.max_body_bytes).await?;
    let signature = headers.get(signature::HEADER).and_then(|value| value.to_str().ok());
    let taken = receiver.receive(signature, &body).await;
    state.note(&name, &taken);
    Ok(Json(json!({ "received": taken?.received() })))
}
