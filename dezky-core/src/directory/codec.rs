//! Documents as databases keep them: JSON text, and what is asked for beside it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, ErrorKind, Result, Timestamp};

/// Reads a document as it was stored.
pub(super) fn from_text<T: DeserializeOwned>(text: &str) -> Result<T> {
    // The cause is left out: it may quote what is in the document.
    serde_json::from_str(text).map_err(|error| {
        corrupt(format_args!("a document can't be read (column {})", error.column()))
    })
}

/// A document as it is stored.
pub(super) fn to_text(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|error| {
        Error::new(ErrorKind::Internal, "a document can't be written as JSON").with_source(error)
    })
}

/// A database that does not hold what this crate wrote.
pub(super) fn corrupt(problem: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("{problem}: restore the database from a backup"))
}

/// A login as it is stored: who never logged in comes last.
pub(super) fn login(at: Option<Timestamp>) -> i64 {
    at.map_or(i64::MIN, Timestamp::as_millis)
}

/// A version as it is stored; it is bounded by the documents' checks.
pub(super) fn signed(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

/// A version as it was stored.
pub(super) fn unsigned(version: i64) -> u64 {
    u64::try_from(version).unwrap_or(0)
}

/// The limit of a page, which is bounded.
pub(super) fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
