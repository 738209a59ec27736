use axum::Json;
use serde_json::{Value, json};

/// `GET /health`: the process answers.
pub(super) async fn health() -> Json<Value> {
    Json(json!({
        "status": "ok",
        "service": "dezky-platform-api",
        "version": env!("CARGO_PKG_VERSION"),
    }))
}
