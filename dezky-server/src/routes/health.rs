use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::state::AppState;

/// `GET /health`: the process answers, and how old the flags are that it decides by. Does
/// not look at the store: a restart would not bring that back.
pub(super) async fn health(State(state): State<AppState>) -> Json<Value> {
    let live = state.live.status();
    let mut flags = json!({
        "revision": live.revision,
        "ageMs": u64::try_from(live.age.as_millis()).unwrap_or(u64::MAX),
        "fromFile": live.from_file,
    });
    if let Some(failure) = &live.failure {
        flags["failure"] = failure.code().into();
    }
    Json(json!({
        "status": "ok",
        "service": "dezky-platform-api",
        "version": env!("CARGO_PKG_VERSION"),
        "flags": flags,
    }))
}
