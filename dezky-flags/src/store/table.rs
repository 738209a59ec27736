use std::collections::BTreeMap;

use dezky_core::Result;
use serde::{Deserialize, Serialize};

use super::{Counts, FlagChange, Known, Snapshot, check, check_size};
use crate::Flag;

/// Flags as plain data with the rules of their changes: the inside of a store that
/// has everything at hand at once, such as one in memory or in a single file.
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
    /// See [`FlagStore::flag`](super::FlagStore::flag).
    pub fn flag(&self, key: &str) -> Option<&Flag> {
        self.flags.get(key)
    }

    /// See [`FlagStore::last_version`](super::FlagStore::last_version).
    pub fn last_version(&self, key: &str) -> u64 {
        self.known(key).last_version()
    }

    /// See [`FlagStore::revision`](super::FlagStore::revision).
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// See [`FlagStore::snapshot`](super::FlagStore::snapshot).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { revision: self.revision, flags: self.flags.values().cloned().collect() }
    }

    /// Makes the changes in their order, or none of them.
    ///
    /// # Errors
    /// Those of [`FlagStore::commit`](super::FlagStore::commit) that are about the
    /// changes.
    pub fn apply(&mut self, changes: Vec<FlagChange>) -> Result<()> {
        check_size(&changes)?;
        let mut after = self.clone();
        changes.into_iter().try_for_each(|change| after.make(change))?;
        *self = after;
        Ok(())
    }

    fn make(&mut self, change: FlagChange) -> Result<()> {
        let known = self.known(change.key());
        let counts =
            Counts { flags: self.flags.len(), keys: self.flags.len() + self.removed.len() };
        check(&change, known, counts)?;
        self.revision += 1;
        match change {
            FlagChange::Create(flag) | FlagChange::Replace(flag) => {
                self.removed.remove(&flag.key);
                self.flags.insert(flag.key.clone(), *flag);
            }
            FlagChange::Remove { key, version } => {
                self.flags.remove(&key);
                self.removed.insert(key, version + 1);
            }
        }
        Ok(())
    }

    fn known(&self, key: &str) -> Known {
        match (self.flags.get(key), self.removed.get(key)) {
            (Some(flag), _) => Known::Live(flag.version),
            (None, Some(version)) => Known::Removed(*version),
            (None, None) => Known::Never,
        }
    }
}
