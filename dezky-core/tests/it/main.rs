//! The stores against the conformance suite and against real files.

mod memory;
mod own_store;
mod sqlite;
mod tamper;
mod walk;
