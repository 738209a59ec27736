#![doc = include_str!("../README.md")]

pub mod auth;
pub mod cli;
mod commands;
pub mod config;
mod demo;
pub mod error;
pub mod lifecycle;
mod routes;
pub mod state;

pub use config::{Config, Settings};
pub use error::{Failure, Problem};
pub use lifecycle::Running;
