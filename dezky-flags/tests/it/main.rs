//! Flags as their users meet them: stores against the conformance suite, the editor,
//! decisions, and the shapes that are kept.

mod allocation;
mod copy;
#[path = "../../../dezky-core/tests/it/database.rs"]
mod database;
#[path = "../../../dezky-core/tests/it/databases.rs"]
mod databases;
mod edit;
mod evaluate;
mod memory;
mod model;
mod mongodb;
mod openfeature;
mod postgres;
mod sqlite;
