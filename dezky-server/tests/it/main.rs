//! The server as others meet it: over HTTP and on the command line.

mod api;
mod cli;
mod config;
mod kill;
mod seeds;
mod support;
