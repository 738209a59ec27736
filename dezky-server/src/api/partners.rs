//! Partners: reading and changing them.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use dezky_core::directory::{
    NewPartner, Partner, PartnerKey, PartnerPatch, PartnerQuery, TenantQuery,
};
use serde_json::{Value, json};

use super::tenants;
use crate::app::AppState;
use crate::auth::Caller;
use crate::http::body::{Document, created};
use crate::http::parameters::{Name, Parameters, page};
use crate::http::problem::Problem;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/partners", get(list).post(create))
        .route("/partners/{slug}", get(read).patch(update).delete(terminate))
        .route("/partners/{slug}/tenants", get(tenants))
}

/// `GET /partners`: a page, by slug, each with its number of customers.
async fn list(
    State(state): State<AppState>,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    parameters.only(&["limit", "cursor"])?;
    let limit = parameters.page_limit()?;
    let directory = state.platform.directory.store();
    let is_there =
        async |slug: &str| Ok(directory.partner(PartnerKey::Slug(slug)).await?.is_some());
    let after = parameters.slug_cursor(is_there).await?;
    let query = PartnerQuery { after, limit, ..PartnerQuery::default() };
    let mut partners = Vec::new();
    for partner in state.platform.directory.store().partners(&query).await? {
        partners.push(with_customers(&state, &partner).await?);
    }
    Ok(page("partners", &partners, limit, |partner| {
        partner["slug"].as_str().unwrap_or_default().to_owned()
    }))
}

/// `POST /partners`.
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Document(new): Document<NewPartner>,
) -> Result<Response, Problem> {
    let partner = state.platform.directory.create_partner(new, &caller.into()).await?;
    let response = Json(&partner).into_response();
    Ok(created(&format!("/partners/{}", partner.slug), response))
}

/// `GET /partners/{slug}`.
async fn read(State(state): State<AppState>, Name(slug): Name) -> Result<Json<Value>, Problem> {
    let partner = find(&state, &slug).await?;
    Ok(Json(with_customers(&state, &partner).await?))
}

/// `PATCH /partners/{slug}`.
async fn update(
    State(state): State<AppState>,
    Name(slug): Name,
    caller: Caller,
    Document(patch): Document<PartnerPatch>,
) -> Result<Json<Partner>, Problem> {
    let (key, by) = (PartnerKey::Slug(&slug), caller.into());
    Ok(Json(state.platform.directory.update_partner(key, patch, &by).await?))
}

/// `DELETE /partners/{slug}`: the document stays, its status is `terminated`.
async fn terminate(
    State(state): State<AppState>,
    Name(slug): Name,
    caller: Caller,
) -> Result<Json<Partner>, Problem> {
    Ok(Json(
        state.platform.directory.terminate_partner(PartnerKey::Slug(&slug), &caller.into()).await?,
    ))
}

/// `GET /partners/{slug}/tenants`: a page, by slug.
async fn tenants(
    State(state): State<AppState>,
    Name(slug): Name,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    parameters.only(&["limit", "cursor"])?;
    let limit = parameters.page_limit()?;
    let query = TenantQuery {
        partner_id: Some(find(&state, &slug).await?.id),
        after: tenants::cursor(&state, &parameters).await?,
        limit,
        ..TenantQuery::default()
    };
    let tenants = state.platform.directory.store().tenants(&query).await?;
    Ok(page("tenants", &tenants, limit, |tenant| tenant.slug.clone()))
}

async fn with_customers(state: &AppState, partner: &Partner) -> Result<Value, Problem> {
    let customers = state.platform.directory.store().count_tenants_of_partner(&partner.id).await?;
    let mut value = json!(partner);
    value["customers"] = customers.into();
    Ok(value)
}

async fn find(state: &AppState, slug: &str) -> Result<Partner, Problem> {
    let partner = state.platform.directory.store().partner(PartnerKey::Slug(slug)).await?;
    partner.ok_or_else(|| {
        Problem::not_found("there is no such partner: GET /partners lists the partners")
    })
}
