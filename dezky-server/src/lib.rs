#![doc = include_str!("../README.md")]
#![expect(
    clippy::disallowed_methods,
    reason = "the server is where tasks are spawned and the clock and the environment are read"
)]

pub mod auth;
pub mod cli;
mod commands;
pub mod config;
mod decisions;
mod demo;
pub mod error;
mod http;
pub mod lifecycle;
mod origin;
pub mod platform;
mod routes;
pub mod state;
mod table;
mod webhooks;

pub use config::{Config, Settings};
pub use error::{Failure, Problem};
pub use lifecycle::Running;
