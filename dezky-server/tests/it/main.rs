//! The server as others meet it: over HTTP and on the command line.

#![expect(clippy::disallowed_methods, reason = "tests spawn clients and wait for conditions")]

mod access;
mod api;
mod authentik;
mod cli;
mod config;
mod crash;
mod directory;
mod failover;
mod flags;
mod kill;
mod kill_mutations;
mod load;
mod quarantine;
mod seeds;
mod spool;
mod support;
