//! Flags as users experience them: stores against the conformance suite, the editor, decisions, and
//! the persisted forms.

mod allocation;
mod compile;
mod copy;
#[path = "../../../dezky-core/tests/it/database.rs"]
mod database;
#[path = "../../../dezky-core/tests/it/databases.rs"]
mod databases;
mod edit;
mod evaluate;
mod import;
mod invalid;
mod live;
mod live_file;
mod live_outage;
mod live_processes;
mod memory;
mod model;
mod mongodb;
mod openfeature;
mod postgres;
mod preview;
#[path = "../../../dezky-core/tests/it/servers.rs"]
#[expect(dead_code, reason = "the tests of the log need more of it")]
mod servers;
mod sqlite;
