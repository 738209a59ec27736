//! Output for people: tables, and decisions on flags.

pub(crate) mod decisions;
pub(crate) mod table;
