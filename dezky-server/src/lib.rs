#![doc = include_str!("../README.md")]
#![expect(
    clippy::disallowed_methods,
    reason = "the server is where tasks are spawned and the clock and the environment are read"
)]
// What the drivers of three engines are made of nests deeper than usual.
#![recursion_limit = "256"]

pub mod auth;
pub mod bodies;
pub mod cli;
mod commands;
pub mod config;
mod decisions;
mod demo;
pub mod error;
mod http;
pub mod lifecycle;
mod logging;
mod origin;
mod routes;
pub mod state;
pub mod store;
pub mod store_watch;
mod table;
mod webhooks;
mod witness;

pub use config::{Config, Settings};
pub use error::{Failure, Problem};
pub use lifecycle::Running;
