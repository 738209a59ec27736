//! Storage of flags in the database of the audit log, so that a change and its event commit
//! together.

mod copy;
mod documents;
mod lazy;
mod table;

use async_trait::async_trait;
use dezky_core::documents::State;
use dezky_core::store::{Anomaly, Capabilities};
use dezky_core::{Error, ErrorKind, Result, SealedEvent};

pub use self::copy::{check_flags, copy_flags};
pub use self::documents::{DocumentFlagStore, FLAGS};
pub use self::lazy::LazyFlagStore;
pub use self::table::FlagTable;
use crate::Flag;

/// The maximum number of flags in a store.
pub const MAX_FLAGS: usize = 10_000;
/// The maximum number of keys in a store: of its flags and of removed ones.
pub const MAX_KEYS: usize = 100_000;
/// The maximum number of changes per commit.
pub const MAX_COMMIT_CHANGES: usize = 1_000;

/// Stores flags, and stages the events of their changes in the audit log.
///
/// Every method may be called from many tasks at once. Object-safe.
#[async_trait]
pub trait FlagStore: Send + Sync {
    /// The store's abilities beyond the contract's core.
    fn capabilities(&self) -> Capabilities;

    /// Compares the structure of the store's tables with their schema. Empty if they match,
    /// and for stores without such a structure. Read-only.
    async fn examine(&self) -> Result<Vec<Anomaly>> {
        Ok(Vec::new())
    }

    /// The whole content of the store, in one consistent view. The defaults of the next four
    /// methods use it; override them if there is a cheaper way.
    async fn table(&self) -> Result<FlagTable>;

    /// The flag with this key, which may be any text.
    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        Ok(self.table().await?.flag(key).cloned())
    }

    /// The last version of the key: of the flag, or of its removal; 0 if there never was one.
    async fn last_version(&self, key: &str) -> Result<u64> {
        Ok(self.table().await?.last_version(key))
    }

    /// All flags and their revision, in one consistent view.
    async fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.table().await?.snapshot())
    }

    /// The revision, which grows with every change of any flag, from 0. Cheap: shows whether a
    /// [`snapshot`](Self::snapshot) is still current.
    async fn revision(&self) -> Result<u64> {
        Ok(self.table().await?.revision())
    }

    /// Makes all changes, in their order, and stages the events in the audit log's
    /// outbox, in one transaction: everything or nothing.
    ///
    /// Call [`AuditLog::relay`](dezky_core::AuditLog::relay) after it. Not idempotent: repeating
    /// the changes is a `version_mismatch` or `already_exists`.
    ///
    /// # Errors
    /// `already_exists`, `version_mismatch` and `not_found` as [`FlagChange`] says;
    /// `field_invalid` if a flag breaks a bound; `event_invalid`; `state_conflict`
    /// beyond [`MAX_FLAGS`] or [`MAX_KEYS`]; `too_large` beyond
    /// [`MAX_COMMIT_CHANGES`]: nothing was changed. `store_unavailable` and
    /// `store_busy`: the outcome is unknown.
    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()>;

    /// Takes over the table of another store into an empty one, without events: the write side of a
    /// copy. The same table again changes nothing.
    ///
    /// # Errors
    /// `state_conflict` if the store has anything else.
    async fn restore(&self, table: FlagTable) -> Result<()>;

    /// Resolves when the revision may be beyond `revision`, whichever process raised it. Stores
    /// without notifications never resolve this; callers must also poll
    /// [`revision`](Self::revision). Cancel-safe.
    async fn changed(&self, revision: u64) {
        let _ = revision;
        std::future::pending::<()>().await;
    }
}

/// All flags at a point in time.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// The [revision](FlagStore::revision) of this view.
    pub revision: u64,
    /// The flags, by key.
    pub flags: Vec<Flag>,
    /// Flags that can't be read, by key. A decision on one is off, with the reason
    /// [`InvalidFlag`](crate::Reason::InvalidFlag).
    pub invalid: Vec<InvalidFlag>,
}

impl Snapshot {
    /// The snapshot as JSON: the format of exports and of the file for a start without the store.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Reads the format of [`to_json`](Self::to_json). A flag that exceeds a bound is
    /// [invalid](Self::invalid), and the others are read.
    ///
    /// # Errors
    /// `field_invalid` if the text has another format, a flag lacks its key, or two share one.
    ///
    /// ```
    /// use dezky_flags::store::Snapshot;
    /// let text = r#"{"revision": 7, "flags": [{"key": "chat", "pct": 200}]}"#;
    /// let snapshot = Snapshot::from_json(text).unwrap();
    /// assert_eq!((snapshot.flags.len(), snapshot.invalid[0].key.as_str()), (0, "chat"));
    /// ```
    pub fn from_json(text: &str) -> Result<Self> {
        let refused = |problem: String| Error::new(ErrorKind::FieldInvalid, problem);
        let read: SnapshotText = serde_json::from_str(text)
            .map_err(|error| refused(format!("not a flag file: {error}")))?;
        let mut snapshot = Self { revision: read.revision, ..Self::default() };
        let mut keys = std::collections::BTreeSet::new();
        for (at, flag) in read.flags.into_iter().enumerate() {
            let key = flag.get("key").and_then(serde_json::Value::as_str).unwrap_or_default();
            if !crate::model::is_key(key) {
                return Err(refused(format!("flags[{at}].key must be a valid flag key")));
            }
            let key = key.to_owned();
            match serde_json::from_value::<Flag>(flag) {
                Ok(flag) if let Err(error) = flag.validate() => {
                    let problem = error.to_string();
                    snapshot.invalid.push(InvalidFlag { key: key.clone(), problem });
                }
                Ok(flag) => snapshot.flags.push(flag),
                // The error may quote the flag.
                Err(_) => snapshot.invalid.push(InvalidFlag {
                    key: key.clone(),
                    problem: "it does not have the form of a flag".to_owned(),
                }),
            }
            if !keys.insert(key.clone()) {
                return Err(refused(format!("flags[{at}].key: {key} is given twice")));
            }
        }
        for flag in read.invalid {
            if keys.insert(flag.key.clone()) {
                snapshot.invalid.push(flag);
            }
        }
        snapshot.flags.sort_by(|a, b| a.key.cmp(&b.key));
        snapshot.invalid.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(snapshot)
    }
}

/// A [`Snapshot`] whose flags are not parsed yet.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotText {
    revision: u64,
    flags: Vec<serde_json::Value>,
    #[serde(default)]
    invalid: Vec<InvalidFlag>,
}

/// A stored flag that this program can't read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InvalidFlag {
    /// Its key.
    pub key: String,
    /// The problem, without quoting the flag.
    pub problem: String,
}

/// A change of one flag, compared and set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagChange {
    /// A new flag. `already_exists` if a flag has its key; `version_mismatch` unless its version
    /// follows the key's [last](FlagStore::last_version).
    Create(Box<Flag>),
    /// The next version of a flag. `not_found`; `version_mismatch` unless the stored flag has the
    /// version before.
    Replace(Box<Flag>),
    /// Removes a flag; its key's last version becomes the one after `version`. `not_found`;
    /// `version_mismatch` unless the stored flag has `version`.
    Remove {
        /// The flag's key.
        key: String,
        /// The flag's version.
        version: u64,
    },
}

impl FlagChange {
    /// The key of the flag.
    pub fn key(&self) -> &str {
        match self {
            Self::Create(flag) | Self::Replace(flag) => &flag.key,
            Self::Remove { key, .. } => key,
        }
    }
}

/// Checks the bounds of the flag of a change.
fn check_flag(change: &FlagChange) -> Result<()> {
    match change {
        FlagChange::Create(flag) | FlagChange::Replace(flag) => flag.validate(),
        FlagChange::Remove { .. } => Ok(()),
    }
}

/// Refuses a new flag that would exceed the bounds of a store.
fn check_room(after: State) -> Result<()> {
    let full = if after.present > MAX_FLAGS as u64 {
        "the store has 10000 flags, the maximum: remove some first"
    } else if after.known > MAX_KEYS as u64 {
        "the store has had 100000 keys, the maximum: reuse the key of a removed flag"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::StateConflict, full))
}

fn check_size(changes: &[FlagChange]) -> Result<()> {
    if changes.len() > MAX_COMMIT_CHANGES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{} changes exceed the 1000 of one commit: commit fewer", changes.len()),
        ));
    }
    Ok(())
}

/// The error of restoring into a store that is not empty.
fn not_empty() -> Error {
    Error::new(
        ErrorKind::StateConflict,
        "the store is not empty: name one that never had flags as the target",
    )
}

/// The error for a flag with another version.
pub(crate) fn mismatch(key: &str) -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        format!("the flag {key} was changed since it was read: read it again"),
    )
}

/// The error for a missing flag; the key may be any text.
pub(crate) fn not_found(key: &str) -> Error {
    let named = if crate::model::is_key(key) { format!(" {key}") } else { String::new() };
    Error::new(ErrorKind::NotFound, format!("there is no flag{named}: see the list of flags"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The suite does not create that many.
    #[test]
    fn keys_are_bounded() {
        let most = State { revision: 0, present: 1, known: MAX_KEYS as u64 };
        check_room(most).unwrap();
        let refused = check_room(State { known: most.known + 1, ..most }).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StateConflict);
        assert!(refused.to_string().contains("100000 keys"), "{refused}");
    }
}
