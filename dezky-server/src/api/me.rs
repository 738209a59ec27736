//! The caller themselves.

use axum::extract::State;
use axum::routing::get;
use axum::{Extension, Json, Router};
use dezky_core::directory::TenantKey;
use serde_json::{Value, json};

use crate::app::AppState;
use crate::auth::Principal;
use crate::http::parameters::Parameters;
use crate::http::problem::Problem;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/me", get(me))
}

/// `GET /me`: the user of the token with their tenants, and whether the caller is an operator.
/// The operator token belongs to no user.
async fn me(
    State(state): State<AppState>,
    Extension(principal): Extension<Principal>,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    parameters.only(&[])?;
    let mut tenants = Vec::new();
    for id in principal.user().iter().flat_map(|user| &user.tenant_ids) {
        let tenant = state.platform.directory.store().tenant(TenantKey::Id(id)).await?;
        if let Some(tenant) = tenant.filter(dezky_core::directory::Tenant::is_present) {
            tenants.push(json!({
                "id": tenant.id,
                "slug": tenant.slug,
                "name": tenant.name,
                "plan": tenant.plan,
                "status": tenant.status,
            }));
        }
    }
    Ok(Json(json!({
        "user": principal.user(),
        "operator": principal.check_operator().is_ok(),
        "tenants": tenants,
    })))
}
