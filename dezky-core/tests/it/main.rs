//! The stores against the conformance suite and against real files.

mod copy;
mod directory;
mod directory_mongodb;
mod directory_postgres;
mod memory;
mod mongodb;
mod own_store;
mod postgres;
mod sqlite;
mod tamper;
mod walk;
