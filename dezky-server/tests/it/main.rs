//! The server as its users see it: over HTTP and on the command line.

#![recursion_limit = "256"]
#![expect(clippy::disallowed_methods, reason = "tests spawn clients and wait for conditions")]
// As in the library.

mod access;
mod api;
mod audit_cli;
mod audit_reads;
mod audit_scopes;
mod authentik;
mod bodies;
mod cli;
mod config;
mod connection_slots;
mod connections;
mod copy;
mod crash;
#[path = "../../../dezky-core/tests/it/database.rs"]
mod database;
mod directory;
mod doctor;
mod engines;
mod failover;
mod flags;
mod flags_live;
mod full_disk;
mod head_file;
mod http2;
#[cfg(feature = "legacy-import")]
mod import_origin;
mod kill;
mod kill_mutations;
mod leases;
mod load;
mod logging;
mod migrate;
mod ofrep;
mod oidc;
mod openapi;
#[cfg(feature = "legacy-import")]
mod origin;
mod paths;
mod previews;
mod quarantine;
mod record;
mod rights;
mod seeds;
mod servers;
mod sign_in;
mod sources;
mod spool;
mod sse;
mod stored;
mod support;
mod taken_files;
