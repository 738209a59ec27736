//! Webhooks: signed posts of Stalwart and of declared sources.

mod declared;
mod stalwart;

use std::net::IpAddr;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use dezky_ingest::IngestSummary;
use dezky_ingest::signature::Headers;
use serde_json::{Value, json};

use crate::app::{App, AppState};
use crate::http::body;
use crate::http::body_budget::BodyPermit;
use crate::http::problem::Problem;

/// The routes, which need no token: the bodies are signed.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/ingest/stalwart/webhook", post(stalwart::receive))
        .route("/ingest/stalwart/{instance}/webhook", post(stalwart::receive_instance))
        .route("/ingest/{name}/webhook", post(declared::receive))
}

/// Reads a body within the budget of its client. The memory is released when the permit is
/// dropped.
async fn read(
    state: &App,
    client: IpAddr,
    headers: &HeaderMap,
    body: Body,
) -> Result<(BodyPermit, Bytes), Problem> {
    let max_bytes = state.config.max_body_bytes;
    body::read_within_budget(&state.bodies, client, headers, body, max_bytes).await
}

/// The headers of a request; a line that is not text is left out.
fn texts(headers: &HeaderMap) -> Headers {
    let lines =
        headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    Headers::new(lines)
}

/// Counts the result of a request, and answers it.
fn answer(
    state: &App,
    source: &str,
    taken: dezky_core::Result<IngestSummary>,
) -> Result<Json<Value>, Problem> {
    state.record_webhook(source, &taken);
    Ok(Json(json!({ "received": taken?.received() })))
}
