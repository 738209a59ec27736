//! The stores against the conformance suite and against real files.

mod directory;
mod engines;
mod hostile;
mod memory;
mod own_store;
mod proxy;
mod queries;
mod servers;
mod sqlite;
mod tamper;
mod walk;
