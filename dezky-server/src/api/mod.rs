//! The API, one file a resource.

pub(crate) mod audit;
pub(crate) mod flags;
pub(crate) mod health;
pub(crate) mod ingest;
pub(crate) mod openapi;
pub(crate) mod partners;
pub(crate) mod record;
pub(crate) mod tenants;
pub(crate) mod users;
