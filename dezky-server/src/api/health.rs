//! The health of the process and its store.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::app::AppState;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/health", get(health))
}

/// `GET /health`: whether the store takes writes, and the age of the flags. Reports what is
/// known without querying anything. Always 200: a restart would repair neither.
async fn health(State(state): State<AppState>) -> Json<Value> {
    let live = state.platform.live.status();
    let mut flags = json!({
        "revision": live.revision,
        "ageMs": u64::try_from(live.age.as_millis()).unwrap_or(u64::MAX),
        "fromFile": live.from_file,
    });
    if let Some(failure) = &live.failure {
        flags["failure"] = failure.code().into();
    }
    let failure = state.store_watch.failure();
    let mut store = json!({ "writable": failure.is_none() });
    if let Some((code, since)) = failure {
        store["failure"] = code.into();
        store["failingForMs"] = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).into();
    }
    Json(json!({
        "status": if failure.is_none() { "ok" } else { "degraded" },
        "service": "dezky-platform-api",
        "version": env!("CARGO_PKG_VERSION"),
        "store": store,
        "flags": flags,
    }))
}
