//! Flag files, for export, import and evaluation without a store.

use std::collections::BTreeSet;

use dezky_core::{Error, ErrorKind, Result, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use crate::model::is_key;
use crate::store::{InvalidFlag, MAX_FLAGS, Snapshot};
use crate::{Flag, NewFlag};

/// Fields of a stored flag that are not part of its definition.
const STORED_FIELDS: [&str; 4] = ["history", "version", "createdAt", "updatedAt"];

/// The definitions of a flag file: the output of [`Snapshot::to_json`], or a hand-written file in
/// which each flag has the form that [`NewFlag::from_json`] reads.
///
/// Histories, versions and times are ignored: they belong to the store from which the flags were
/// exported.
///
/// ```
/// use dezky_flags::{FlagContext, FlagFile, FlagSet};
/// let text = r#"{"flags": [{"key": "chat", "state": "on"}, {"key": "polls", "pct": 101}]}"#;
/// let file = FlagFile::from_json(text).unwrap();
/// assert!(file.invalid[0].problem.starts_with("pct must be a whole number from 0 to 100"));
/// let set = FlagSet::of(&file.snapshot());
/// assert!(set.values(&FlagContext::default())["chat"]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlagFile {
    /// The store's revision, 0 if the file has none.
    pub revision: u64,
    /// The valid flags, by key.
    pub flags: Vec<NewFlag>,
    /// The invalid flags, by key.
    pub invalid: Vec<InvalidFlag>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    revision: u64,
    flags: Vec<Value>,
    #[serde(default)]
    invalid: Vec<InvalidFlag>,
}

impl FlagFile {
    /// Parses the text of a file. The caller bounds the size of the text, for example by
    /// [`MAX_FILE_BYTES`](crate::live::MAX_FILE_BYTES).
    ///
    /// # Errors
    /// `field_invalid` if the text is not a flag file, has more than 10,000 flags or a duplicate
    /// key, or if a flag has no valid key.
    pub fn from_json(text: &str) -> Result<Self> {
        let refused = |problem: String| Error::new(ErrorKind::FieldInvalid, problem);
        if !text.trim_start().starts_with('{') {
            let form = "expected a JSON object, {\"flags\": [{\"key\": …}, …]}";
            return Err(refused(format!("not a flag file: {form}")));
        }
        let read: FileText = serde_json::from_str(text)
            .map_err(|error| refused(format!("not a flag file: {error}")))?;
        let count = read.flags.len() + read.invalid.len();
        if count > MAX_FLAGS {
            return Err(refused(format!("{count} flags are too many: the maximum is {MAX_FLAGS}")));
        }
        let mut file = Self { revision: read.revision, ..Self::default() };
        let mut keys = BTreeSet::new();
        let mut once = |at: String, key: &str| {
            if !is_key(key) {
                return Err(refused(format!("{at}.key must be a valid flag key")));
            }
            if !keys.insert(key.to_owned()) {
                return Err(refused(format!("{at}.key: {key} is given twice, leave one out")));
            }
            Ok(())
        };
        for (at, mut flag) in read.flags.into_iter().enumerate() {
            let key = flag.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(members) = flag.as_object()
                && !members.contains_key("key")
            {
                let named = members.keys().take(5).map(|name| name.chars().take(40).collect());
                let named = named.collect::<Vec<String>>().join(", ");
                return Err(refused(format!(
                    "flags[{at}].key is missing, and there is {}: name the flag",
                    if named.is_empty() { "nothing else" } else { &named }
                )));
            }
            once(format!("flags[{at}]"), &key)?;
            if let Some(members) = flag.as_object_mut() {
                for name in STORED_FIELDS {
                    members.remove(name);
                }
            }
            match NewFlag::from_json(&flag) {
                Ok(new) => file.flags.push(new),
                Err(error) => file.invalid.push(InvalidFlag { key, problem: error.to_string() }),
            }
        }
        for (at, flag) in read.invalid.into_iter().enumerate() {
            once(format!("invalid[{at}]"), &flag.key)?;
            file.invalid.push(flag);
        }
        file.flags.sort_by(|a, b| a.key.cmp(&b.key));
        file.invalid.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(file)
    }

    /// Returns all flags, provided that none is invalid.
    ///
    /// # Errors
    /// `field_invalid` names the first invalid flag and the bound.
    pub fn all(self) -> Result<Vec<NewFlag>> {
        match self.invalid.first() {
            None => Ok(self.flags),
            Some(InvalidFlag { key, problem }) => {
                Err(Error::new(ErrorKind::FieldInvalid, format!("flag {key}: {problem}")))
            }
        }
    }

    /// Returns the flags as a snapshot, with version 1 and without history. Invalid flags are
    /// [marked as such](crate::Reason::InvalidFlag).
    pub fn snapshot(&self) -> Snapshot {
        let made = self.flags.iter().map(|new| Flag::new(new.clone(), Timestamp::MIN));
        Snapshot {
            revision: self.revision,
            flags: made.filter_map(Result::ok).collect(),
            invalid: self.invalid.clone(),
        }
    }
}
