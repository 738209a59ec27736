//! The stores against the conformance suite and against real files.

mod copy;
mod database;
mod databases;
mod directory;
mod directory_mongodb;
mod directory_postgres;
mod documents;
mod engines;
mod hostile;
mod list_scan;
mod memory;
mod mongodb;
mod new_kind;
mod order;
mod outage;
mod own_store;
mod postgres;
mod proxy;
mod queries;
mod servers;
mod sqlite;
mod structure;
mod tamper;
mod trouble;
mod writers;
