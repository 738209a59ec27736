//! The stores against the conformance suite and against real files.

mod directory;
mod engines;
mod hostile;
mod memory;
mod mongodb;
mod outage;
mod own_store;
mod postgres;
mod proxy;
mod queries;
mod servers;
mod sqlite;
mod tamper;
mod walk;
mod writers;
