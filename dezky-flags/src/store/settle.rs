//! A commit's changes as rows to be written, and rows as flags again: once for all
//! stores that have rows.

use std::collections::{BTreeMap, HashMap};

use dezky_core::{Error, ErrorKind, Result};

use super::{Counts, FlagChange, FlagTable, InvalidFlag, Known, Snapshot, check};
use crate::Flag;

/// What a store holds beside its flags.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) revision: u64,
    pub(super) counts: Counts,
}

/// What a commit leaves behind.
pub(super) struct Settled<'a> {
    pub(super) state: State,
    pub(super) rows: Vec<Row<'a>>,
}

/// A key, the version that it has come to, and its flag unless that was removed.
pub(super) struct Row<'a> {
    pub(super) key: &'a str,
    pub(super) version: u64,
    pub(super) flag: Option<&'a Flag>,
}

impl Row<'_> {
    /// The flag as it is stored.
    pub(super) fn text(&self) -> Result<Option<String>> {
        let text = self.flag.map(serde_json::to_string).transpose();
        text.map_err(|error| {
            Error::new(ErrorKind::Internal, "a flag can't be written as JSON").with_source(error)
        })
    }
}

/// Makes the changes in their order, each on what those before it left, where `known`
/// is what the store knows of their keys.
pub(super) fn settle(
    changes: &[FlagChange],
    mut known: HashMap<String, Known>,
    mut state: State,
) -> Result<Settled<'_>> {
    let mut rows = BTreeMap::new();
    for change in changes {
        let key = change.key();
        let before = known.get(key).copied().unwrap_or(Known::Never);
        check(change, before, state.counts)?;
        let (after, flag) = match change {
            FlagChange::Create(flag) | FlagChange::Replace(flag) => {
                (Known::Live(flag.version), Some(&**flag))
            }
            FlagChange::Remove { version, .. } => (Known::Removed(version + 1), None),
        };
        rows.insert(key, Row { key, version: after.last_version(), flag });
        known.insert(key.to_owned(), after);
        state.counts = state.counts.after(change, before);
        state.revision += 1;
    }
    Ok(Settled { state, rows: rows.into_values().collect() })
}

/// A whole table as rows.
pub(super) fn unfold(table: &FlagTable) -> Settled<'_> {
    let flags =
        table.flags().map(|flag| Row { key: &flag.key, version: flag.version, flag: Some(flag) });
    let removed = table.removed().map(|(key, version)| Row { key, version, flag: None });
    let rows: Vec<_> = flags.chain(removed).collect();
    let flags = rows.iter().filter(|row| row.flag.is_some()).count();
    let counts = Counts { flags, keys: rows.len() };
    Settled { state: State { revision: table.revision(), counts }, rows }
}

/// Reads the flag that stands under `key` with `version`.
pub(super) fn from_text(key: &str, version: u64, text: &str) -> Result<Flag> {
    read(key, version, text).map_err(|problem| unreadable(key, &problem))
}

/// What is wrong with a flag is said without a word of it.
fn read(key: &str, version: u64, text: &str) -> std::result::Result<Flag, String> {
    let flag: Flag = serde_json::from_str(text).map_err(|error| {
        let problem = if error.is_data() {
            "it has a field or a value that this version does not know, or lacks one"
        } else {
            "it is no JSON"
        };
        problem.to_owned()
    })?;
    flag.validate().map_err(|error| error.to_string())?;
    if flag.key != key || flag.version != version {
        return Err("it has another key or version than its row".to_owned());
    }
    Ok(flag)
}

/// What stands in a flag's place is of another type.
#[cfg(any(feature = "sqlite", feature = "mongodb"))]
pub(super) const NO_TEXT: &str = "it is not a text";

/// A flag that is there and can't be read.
pub(super) fn unreadable(key: &str, problem: &str) -> Error {
    let named = if crate::model::is_key(key) { key } else { "with a key that is none" };
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "the flag {named} is invalid, and off: {problem}: kill or remove it, or restore the database from a backup"
        ),
    )
}

/// The view of stored flags, each with its key and version: one that can't be read
/// stops no other.
pub(super) fn view<'a>(
    revision: u64,
    stored: impl IntoIterator<Item = (&'a str, u64, &'a str)>,
) -> Snapshot {
    let mut view = Snapshot { revision, flags: Vec::new(), invalid: Vec::new() };
    for (key, version, text) in stored {
        match read(key, version, text) {
            Ok(flag) => view.flags.push(flag),
            Err(problem) => view.invalid.push(InvalidFlag { key: key.to_owned(), problem }),
        }
    }
    view
}

/// A count as it was stored.
pub(super) fn unsigned(count: i64) -> Result<u64> {
    u64::try_from(count).map_err(|_| corrupt("a count is below 0"))
}

/// A database that does not hold what this crate wrote.
pub(super) fn corrupt(problem: &'static str) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("{problem}: restore the database from a backup"))
}
