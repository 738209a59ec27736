#![doc = include_str!("../README.md")]
#![expect(
    clippy::disallowed_methods,
    reason = "the server is where tasks are spawned and the clock and the environment are read"
)]
// The types of three database drivers nest deeply.
#![recursion_limit = "256"]

mod api;
pub mod app;
pub mod auth;
pub mod cli;
mod commands;
pub mod config;
mod demo;
pub mod failure;
pub mod http;
#[cfg(feature = "legacy-import")]
mod legacy_import;
pub mod lifecycle;
mod ofrep;
mod render;
mod router;
pub mod store;
mod telemetry;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
mod webhooks;

pub use api::audit::Scope;
pub use config::{Config, Settings};
pub use failure::Failure;
pub use lifecycle::Running;
