//! The timeline: list, follow, export, count and record events.

mod export;
mod filters;
mod record;
mod scope;
pub(crate) mod stats;
mod stream;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use dezky_core::store::EventKey;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::scope::Scope;
use self::scope::Shown;
use crate::app::AppState;
use crate::http::parameters::{Name, Parameters};
use crate::http::problem::Problem;

pub(crate) fn routes() -> Router<AppState> {
    // All callers that are admitted here are operators.
    readers().layer(Extension(Scope::Everything)).route("/audit", post(record::record))
}

/// The routes that read the timeline, in the [`Scope`] of the request's extensions.
pub(crate) fn readers() -> Router<AppState> {
    Router::new()
        .route("/audit", get(list))
        .route("/audit/head", get(head))
        .route("/audit/stream", get(stream::stream))
        .route("/audit/export", get(export::export))
        .route("/audit/stats", get(stats::stats))
        .route("/audit/{id}", get(one))
}

/// A page, as a caller sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    events: Vec<Shown<'a>>,
    next_cursor: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// `GET /audit`: one page of the timeline, newest first.
async fn list(
    State(state): State<AppState>,
    scope: Scope,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let mut query = filters::parse(&parameters, &scope, &["limit", "cursor"])?;
    if let Some(limit) = parameters.get("limit") {
        query.limit = limit
            .parse()
            .map_err(|_| Problem::query_invalid("limit must be a number, 1 to 500"))?;
    }
    query.cursor = parameters.get("cursor").map(str::to_owned);
    let page = state.platform.store.list(&query).await?;
    Ok(json_of(&Page {
        events: page.events.iter().map(|stored| Shown(stored, &scope)).collect(),
        next_cursor: page.next_cursor,
        partial: page.partial,
    }))
}

/// The answer with this body. Metadata stays as it is spelled, which a JSON value would not keep.
fn json_of(body: &impl Serialize) -> Response {
    Json(body).into_response()
}

/// `GET /audit/{id}`: one event, by its id or, for operators, its position.
async fn one(
    State(state): State<AppState>,
    scope: Scope,
    Name(id): Name,
    parameters: Parameters,
) -> Result<Response, Problem> {
    parameters.only(&[])?;
    let key = match (id.parse(), Uuid::parse_str(&id)) {
        (Ok(seq), _) if scope.sees_positions() => EventKey::Seq(seq),
        (_, Ok(id)) => EventKey::Id(id),
        _ => {
            let fix = if scope.sees_positions() {
                "id must be an event's id, such as 019aa5c2-6a5b-7c3e-9d2f-1b2c3d4e5f60, or its seq, such as 41"
            } else {
                "id must be an event's id, such as 019aa5c2-6a5b-7c3e-9d2f-1b2c3d4e5f60"
            };
            return Err(Problem::field_invalid(fix));
        }
    };
    match state.platform.store.get(key).await? {
        Some(stored) if scope.contains(&stored) => Ok(json_of(&Shown(&stored, &scope))),
        _ => Err(Problem::not_found("the log has no such event")),
    }
}

/// `GET /audit/head`: the log's identity and its head.
async fn head(
    State(state): State<AppState>,
    scope: Scope,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    scope.require_everything()?;
    parameters.only(&[])?;
    let log = state.platform.store.state().await?;
    Ok(Json(json!({
        "logId": log.log_id,
        "firstSeq": log.base.next_seq,
        "nextSeq": log.head.next_seq,
        "hash": hex::encode(log.head.hash),
        "at": state.platform.runtime().now(),
    })))
}
