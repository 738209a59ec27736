//! The stores against the conformance suite and against real files.

mod memory;
mod sqlite;
mod tamper;
mod walk;
