//! Users: reading and deactivating them.

use axum::Json;
use axum::extract::State;
use dezky_core::directory::{User, UserKey};
use serde_json::Value;

use super::tenants::users_page;
use crate::app::AppState;
use crate::auth::Caller;
use crate::http::parameters::{Name, Parameters};
use crate::http::problem::Problem;

/// `GET /users`: a page, newest login first.
pub(crate) async fn list(
    State(state): State<AppState>,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    users_page(&state, &parameters, None).await
}

/// `POST /users/{id}/deactivate`.
pub(crate) async fn deactivate(
    State(state): State<AppState>,
    Name(id): Name,
    caller: Caller,
) -> Result<Json<User>, Problem> {
    Ok(Json(state.directory.deactivate_user(UserKey::Id(&id), &caller.into()).await?))
}
