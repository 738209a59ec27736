//! Tenants: reading and changing them.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use dezky_core::directory::{NewTenant, Tenant, TenantKey, TenantPatch, TenantQuery};
use serde_json::Value;

use super::users;
use crate::app::AppState;
use crate::auth::Caller;
use crate::http::body::{Document, created};
use crate::http::parameters::{Name, Parameters, page};
use crate::http::problem::Problem;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/tenants", get(list).post(create))
        .route("/tenants/{slug}", get(read).patch(update).delete(delete))
        .route("/tenants/{slug}/users", get(users))
        .route("/tenants/{slug}/suspend", post(suspend))
        .route("/tenants/{slug}/resume", post(resume))
}

/// `GET /tenants`: a page, by slug.
async fn list(
    State(state): State<AppState>,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    parameters.only(&["status", "limit", "cursor"])?;
    let status = parameters.get("status").map(|status| {
        status.parse().map_err(|_| {
            Problem::query_invalid("status must be pending, active, suspended or deleted")
        })
    });
    let limit = parameters.page_limit()?;
    let query = TenantQuery {
        after: cursor(&state, &parameters).await?,
        status: status.transpose()?,
        limit,
        ..TenantQuery::default()
    };
    let tenants = state.platform.directory.store().tenants(&query).await?;
    Ok(page("tenants", &tenants, limit, |tenant| tenant.slug.clone()))
}

/// `POST /tenants`.
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Document(new): Document<NewTenant>,
) -> Result<Response, Problem> {
    let tenant = state.platform.directory.create_tenant(new, &caller.into()).await?;
    let response = Json(&tenant).into_response();
    Ok(created(&format!("/tenants/{}", tenant.slug), response))
}

/// `GET /tenants/{slug}`.
async fn read(State(state): State<AppState>, Name(slug): Name) -> Result<Json<Tenant>, Problem> {
    find(&state, &slug).await.map(Json)
}

/// `PATCH /tenants/{slug}`: `partnerId` attaches a partner, `null` detaches it.
async fn update(
    State(state): State<AppState>,
    Name(slug): Name,
    caller: Caller,
    Document(patch): Document<TenantPatch>,
) -> Result<Json<Tenant>, Problem> {
    let (key, by) = (TenantKey::Slug(&slug), caller.into());
    Ok(Json(state.platform.directory.update_tenant(key, patch, &by).await?))
}

/// `DELETE /tenants/{slug}`: the document stays, its status is `deleted`.
async fn delete(
    State(state): State<AppState>,
    Name(slug): Name,
    caller: Caller,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(state.platform.directory.delete_tenant(TenantKey::Slug(&slug), &caller.into()).await?))
}

/// `POST /tenants/{slug}/suspend`.
async fn suspend(
    State(state): State<AppState>,
    Name(slug): Name,
    caller: Caller,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(state.platform.directory.suspend_tenant(TenantKey::Slug(&slug), &caller.into()).await?))
}

/// `POST /tenants/{slug}/resume`.
async fn resume(
    State(state): State<AppState>,
    Name(slug): Name,
    caller: Caller,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(state.platform.directory.resume_tenant(TenantKey::Slug(&slug), &caller.into()).await?))
}

/// `GET /tenants/{slug}/users`: a page, newest login first.
async fn users(
    State(state): State<AppState>,
    Name(slug): Name,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    let tenant = find(&state, &slug).await?;
    users::page_of(&state, &parameters, Some(tenant.id)).await
}

/// The slug of the last tenant of the page before.
pub(super) async fn cursor(
    state: &AppState,
    parameters: &Parameters,
) -> Result<Option<String>, Problem> {
    let directory = state.platform.directory.store();
    let is_there = async |slug: &str| Ok(directory.tenant(TenantKey::Slug(slug)).await?.is_some());
    parameters.slug_cursor(is_there).await
}

async fn find(state: &AppState, slug: &str) -> Result<Tenant, Problem> {
    let tenant = state.platform.directory.store().tenant(TenantKey::Slug(slug)).await?;
    tenant.ok_or_else(|| {
        Problem::not_found("there is no such tenant: GET /tenants lists the tenants")
    })
}
