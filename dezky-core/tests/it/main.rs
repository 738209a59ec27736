//! The stores against the conformance suite and against real files.

mod directory;
mod memory;
mod mongodb;
mod own_store;
mod sqlite;
mod tamper;
mod walk;
