use std::collections::BTreeMap;

use dezky_core::documents::{self, Known, Put, State};
use dezky_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::documents::{FLAG, refuse};
use super::{FlagChange, Snapshot, check_flag, check_room, check_size, not_empty};
use crate::Flag;

/// Flags as plain data, with the rules of their changes: the core of a store that holds everything
/// at once, such as one in memory or in a single file.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::store::{FlagChange, FlagTable};
/// use dezky_flags::{Flag, NewFlag};
/// let mut table = FlagTable::default();
/// let flag = Flag::new(NewFlag::new("chat"), Timestamp::MIN).unwrap();
/// table.apply(vec![FlagChange::Create(flag.clone().into())]).unwrap();
/// let again = table.apply(vec![FlagChange::Create(flag.into())]).unwrap_err();
/// assert_eq!(again.code(), "already_exists");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagTable {
    revision: u64,
    flags: BTreeMap<String, Flag>,
    /// The last version of keys whose flags were removed.
    removed: BTreeMap<String, u64>,
}

impl FlagTable {
    /// Reads the format of [`to_json`](Self::to_json), of this version or an older one.
    ///
    /// # Errors
    /// `store_corrupt` if the text has another format, or a flag exceeds a bound.
    ///
    /// ```
    /// use dezky_flags::store::FlagTable;
    /// let table = FlagTable::from_json(r#"{"revision":0,"flags":{},"removed":{}}"#).unwrap();
    /// assert_eq!(table, FlagTable::default());
    /// assert_eq!(FlagTable::from_json("{}").unwrap_err().code(), "store_corrupt");
    /// ```
    pub fn from_json(text: &str) -> Result<Self> {
        let table: Self = serde_json::from_str(text).map_err(|error| corrupt(&error))?;
        table.checked()
    }

    fn checked(self) -> Result<Self> {
        for (key, flag) in &self.flags {
            flag.validate().map_err(|error| corrupt(&error))?;
            if flag.key != *key || self.removed.contains_key(key) {
                return Err(corrupt(&"a flag has the key of another one or of a removed one"));
            }
        }
        Ok(self)
    }

    /// The table as JSON, one line per field.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Assembles a table from its parts: flags, the versions of removed keys, and the revision.
    ///
    /// # Errors
    /// Those of [`from_json`](Self::from_json).
    pub fn from_parts(
        revision: u64,
        flags: Vec<Flag>,
        removed: impl IntoIterator<Item = (String, u64)>,
    ) -> Result<Self> {
        let flags = flags.into_iter().map(|flag| (flag.key.clone(), flag)).collect();
        Self { revision, flags, removed: removed.into_iter().collect() }.checked()
    }

    /// The flags, by key.
    pub fn flags(&self) -> impl Iterator<Item = &Flag> {
        self.flags.values()
    }

    /// The keys of removed flags, each with its last version.
    pub fn removed(&self) -> impl Iterator<Item = (&str, u64)> {
        self.removed.iter().map(|(key, version)| (key.as_str(), *version))
    }

    /// See [`FlagStore::flag`](super::FlagStore::flag).
    pub fn flag(&self, key: &str) -> Option<&Flag> {
        self.flags.get(key)
    }

    /// See [`FlagStore::last_version`](super::FlagStore::last_version).
    pub fn last_version(&self, key: &str) -> u64 {
        self.known(key).version()
    }

    /// See [`FlagStore::revision`](super::FlagStore::revision).
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// See [`FlagStore::snapshot`](super::FlagStore::snapshot).
    pub fn snapshot(&self) -> Snapshot {
        let flags = self.flags.values().cloned().collect();
        Snapshot { revision: self.revision, flags, invalid: Vec::new() }
    }

    /// Makes all changes, in order, or none.
    ///
    /// # Errors
    /// Those of [`FlagStore::commit`](super::FlagStore::commit) about the changes.
    pub fn apply(&mut self, changes: Vec<FlagChange>) -> Result<()> {
        check_size(&changes)?;
        let mut after = self.clone();
        changes.into_iter().try_for_each(|change| after.make(change))?;
        *self = after;
        Ok(())
    }

    /// Becomes `table`; see [`FlagStore::restore`](super::FlagStore::restore).
    ///
    /// # Errors
    /// `state_conflict` if this table is neither empty nor the same.
    pub fn restore(&mut self, table: Self) -> Result<()> {
        if *self != Self::default() && *self != table {
            return Err(not_empty());
        }
        *self = table;
        Ok(())
    }

    fn make(&mut self, change: FlagChange) -> Result<()> {
        check_flag(&change)?;
        let known = self.known(change.key());
        match &change {
            FlagChange::Create(flag) => documents::check(known, Put::New, flag.version),
            FlagChange::Replace(flag) => documents::check(known, Put::Next, flag.version),
            FlagChange::Remove { version, .. } => documents::check_removal(known, *version),
        }
        .map_err(|refusal| refuse(&FLAG, change.key(), &refusal))?;
        self.revision += 1;
        match change {
            FlagChange::Create(flag) => {
                self.removed.remove(&flag.key);
                self.flags.insert(flag.key.clone(), *flag);
                check_room(self.state())?;
            }
            FlagChange::Replace(flag) => {
                self.flags.insert(flag.key.clone(), *flag);
            }
            FlagChange::Remove { key, version } => {
                self.flags.remove(&key);
                self.removed.insert(key, version + 1);
            }
        }
        Ok(())
    }

    fn state(&self) -> State {
        let present = self.flags.len() as u64;
        State { revision: self.revision, present, known: present + self.removed.len() as u64 }
    }

    pub(super) fn known(&self, key: &str) -> Known {
        match (self.flags.get(key), self.removed.get(key)) {
            (Some(flag), _) => Known::Present(flag.version),
            (None, Some(version)) => Known::Removed(*version),
            (None, None) => Known::Never,
        }
    }
}

fn corrupt(problem: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("not a table of flags: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format of version 1, which must stay readable: never change it.
    const V1: &str = r#"{"revision":3,"flags":{"chat":{"key":"chat","description":"","state":"rollout","pct":25,"scope":{"plans":["pro"],"tenantSlugs":[],"partnerSlugs":[],"environments":[]},"history":[{"at":"2026-09-01T08:00:00.000Z","actor":{"type":"operator","id":"op-1"},"changes":[{"field":"pct","from":0,"to":25}],"note":"why"}],"version":1,"createdAt":"2026-09-01T08:00:00.000Z","updatedAt":"2026-09-01T08:00:00.000Z"}},"removed":{"old":2}}"#;

    #[test]
    fn the_persisted_format_stays_readable() {
        let table = FlagTable::from_json(V1).unwrap();
        assert_eq!((table.revision(), table.last_version("old")), (3, 2));
        assert_eq!(table.flag("chat").unwrap().pct, 25);
        assert_eq!(serde_json::to_string(&table).unwrap(), V1);
        assert_eq!(FlagTable::from_json(&table.to_json()).unwrap(), table);
    }

    #[test]
    fn another_format_is_refused() {
        for broken in [
            "",
            "[]",
            "null",
            &V1[..V1.len() - 1],
            &V1.replace("\"pct\":25,", "\"pct\":101,"),
            &V1.replace("{\"chat\":", "{\"other\":"),
            &V1.replace("{\"old\":2}", "{\"chat\":2}"),
        ] {
            let error = FlagTable::from_json(broken).unwrap_err();
            assert_eq!(error.code(), "store_corrupt", "{broken}");
        }
    }
}
