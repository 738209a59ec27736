//! Users: reading and deactivating them.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use dezky_core::directory::{User, UserCursor, UserKey, UserQuery};
use serde_json::Value;

use crate::app::AppState;
use crate::auth::Caller;
use crate::http::parameters::{Name, Parameters, page};
use crate::http::problem::Problem;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/users", get(list)).route("/users/{id}/deactivate", post(deactivate))
}

/// `GET /users`: a page, newest login first.
async fn list(
    State(state): State<AppState>,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    page_of(&state, &parameters, None).await
}

/// `POST /users/{id}/deactivate`.
async fn deactivate(
    State(state): State<AppState>,
    Name(id): Name,
    caller: Caller,
) -> Result<Json<User>, Problem> {
    Ok(Json(state.platform.directory.deactivate_user(UserKey::Id(&id), &caller.into()).await?))
}

/// A page of users, of one tenant or of all.
pub(super) async fn page_of(
    state: &AppState,
    parameters: &Parameters,
    tenant_id: Option<String>,
) -> Result<Json<Value>, Problem> {
    parameters.only(&["limit", "cursor"])?;
    let limit = parameters.page_limit()?;
    let after = parameters.get("cursor").map(str::parse).transpose()?;
    let users =
        state.platform.directory.store().users(&UserQuery { tenant_id, after, limit }).await?;
    Ok(page("users", &users, limit, |user| UserCursor::of(user).to_string()))
}
