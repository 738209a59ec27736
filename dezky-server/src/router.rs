//! The router: every route of the server, and what all of them share.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use crate::api::{audit, flags, health, ingest, openapi, partners, record, tenants, users};
use crate::app::AppState;
use crate::http::problem::{OfStore, Problem};
use crate::webhooks::{declared, stalwart};
use crate::{auth, ofrep};

/// The server's router.
pub(crate) fn router(state: AppState) -> Router {
    let for_operators = Router::new()
        .route("/audit", get(audit::list).post(record::record))
        .route("/ingest", get(ingest::list))
        .route("/flags", get(flags::list).post(flags::create))
        .route("/flags/evaluate", post(flags::evaluate))
        .route("/flags/{key}", get(flags::get).patch(flags::update).delete(flags::remove))
        .route("/flags/{key}/kill", post(flags::kill))
        .route("/flags/{key}/preview", post(flags::preview))
        .route("/tenants", get(tenants::list).post(tenants::create))
        .route("/tenants/{slug}", get(tenants::get).patch(tenants::update).delete(tenants::delete))
        .route("/tenants/{slug}/users", get(tenants::users))
        .route("/tenants/{slug}/suspend", post(tenants::suspend))
        .route("/tenants/{slug}/resume", post(tenants::resume))
        .route("/partners", get(partners::list).post(partners::create))
        .route(
            "/partners/{slug}",
            get(partners::get).patch(partners::update).delete(partners::terminate),
        )
        .route("/partners/{slug}/tenants", get(partners::tenants))
        .route("/users", get(users::list))
        .route("/users/{id}/deactivate", post(users::deactivate))
        .route_layer(middleware::from_fn_with_state(
            AppState::clone(&state),
            auth::require_operator,
        ));
    let for_ofrep = Router::new()
        .route("/ofrep/v1/evaluate/flags", post(ofrep::evaluate_all))
        .route("/ofrep/v1/evaluate/flags/{key}", post(ofrep::evaluate))
        .route("/ofrep/v1/events", get(ofrep::events))
        .route_layer(middleware::from_fn_with_state(AppState::clone(&state), auth::require_ofrep));
    Router::new()
        .route("/health", get(health::health))
        .route("/openapi.json", get(openapi::openapi))
        .route("/ingest/stalwart/webhook", post(stalwart::receive))
        .route("/ingest/stalwart/{instance}/webhook", post(stalwart::receive_instance))
        .route("/ingest/{name}/webhook", post(declared::receive))
        .merge(for_operators)
        .merge(for_ofrep)
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .fallback(async || Problem::not_found("there is nothing at this path"))
        .layer(middleware::from_fn_with_state(AppState::clone(&state), log_request))
        .with_state(state)
}

/// One line a request. The path is that of the route: what was asked may hold
/// what does not belong into a log.
async fn log_request(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let began = Instant::now();
    let response = next.run(request).await;
    // Not for every failure: short memory can be had without a token.
    if response.extensions().get::<OfStore>().is_some() {
        state.store_watch.suspect();
    }
    tracing::info!(
        %method,
        route = route.as_ref().map_or("-", MatchedPath::as_str),
        status = response.status().as_u16(),
        ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "request"
    );
    response
}
