//! HTTP below the routes: connections, bodies, parameters, problems, and the client's address.

pub(crate) mod body;
pub mod body_budget;
pub mod client_address;
mod connection;
pub(crate) mod connections;
pub(crate) mod incoming_body;
pub mod limits;
pub(crate) mod listener;
pub(crate) mod parameters;
pub mod problem;
