//! The state of each source.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use dezky_ingest::PumpHandle;
use serde_json::{Value, json};

use crate::app::AppState;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/ingest", get(list))
}

/// `GET /ingest`: the status of each source since the start of this process.
async fn list(State(state): State<AppState>) -> Json<Value> {
    let mut sources: Vec<Value> = state.pumps().iter().map(pump).collect();
    for (name, webhook) in &state.webhooks {
        let status = webhook.status();
        sources.push(entry(name, "webhook", json!(status)));
    }
    let mut answer = json!({ "workersEnabled": state.config.ingest_enabled, "sources": sources });
    if let Some(spool) = state.platform.log.spool_status() {
        answer["spool"] = json!({
            "pending": spool.pending,
            "damagedBytes": spool.damaged_bytes,
            "unresolved": state.platform.log.counts().unresolved,
        });
    }
    Json(answer)
}

fn pump(handle: &PumpHandle) -> Value {
    let kind = if handle.source().split(':').next() == Some("authentik") { "poll" } else { "file" };
    entry(handle.source(), kind, json!(handle.status()))
}

fn entry(name: &str, kind: &str, mut status: Value) -> Value {
    status["name"] = name.into();
    status["kind"] = kind.into();
    status
}
