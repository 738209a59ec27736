//! The API: one file per resource, with its routes and their handlers.

pub(crate) mod audit;
mod flags;
mod health;
mod ingest;
mod me;
mod openapi;
mod partners;
mod tenants;
mod users;

use axum::Router;

use crate::app::AppState;

/// The routes of operators.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .merge(audit::routes())
        .merge(flags::routes())
        .merge(ingest::routes())
        .merge(partners::routes())
        .merge(tenants::routes())
        .merge(users::routes())
}

/// The routes of everybody with good credentials.
pub(crate) fn user_routes() -> Router<AppState> {
    me::routes()
}

/// The routes that need no token.
pub(crate) fn public_routes() -> Router<AppState> {
    Router::new().merge(health::routes()).merge(openapi::routes())
}
