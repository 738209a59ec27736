//! The router: who may use which routes, and what all of them share.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;

use crate::app::AppState;
use crate::http::problem::{OfStore, Problem};
use crate::{api, auth, ofrep, webhooks};

/// The server's router.
pub(crate) fn router(state: AppState) -> Router {
    let operator = middleware::from_fn_with_state(state.guard.clone(), auth::require_operator);
    let user = middleware::from_fn_with_state(state.guard.clone(), auth::require_user);
    let ofrep_client = middleware::from_fn_with_state(state.guard.clone(), auth::require_ofrep);
    Router::new()
        .merge(api::public_routes())
        .merge(webhooks::routes())
        .merge(api::user_routes().route_layer(user))
        .merge(api::routes().route_layer(operator))
        .merge(ofrep::routes().route_layer(ofrep_client))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .fallback(async || Problem::not_found("there is nothing at this path"))
        .layer(middleware::from_fn_with_state(AppState::clone(&state), log_request))
        .with_state(state)
}

/// Logs one line for each request. The path is that of the route: the path of a request may
/// hold what does not belong into a log.
async fn log_request(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let began = Instant::now();
    let response = next.run(request).await;
    // Only failures of the store count: a client without a token can exhaust the memory.
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
