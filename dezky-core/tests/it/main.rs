//! The stores against the conformance suite and against real files.

mod directory;
mod memory;
mod own_store;
mod postgres;
mod sqlite;
mod tamper;
mod walk;
