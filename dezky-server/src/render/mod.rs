//! Output for people: tables, decisions on flags, and exports.

pub(crate) mod decisions;
pub(crate) mod export;
pub(crate) mod table;
