//! The server as others meet it: over HTTP and on the command line.

#![expect(clippy::disallowed_methods, reason = "tests spawn clients and wait for conditions")]

mod api;
mod cli;
mod config;
mod kill;
mod seeds;
mod support;
