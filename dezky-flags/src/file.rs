//! Flags in a file: what is exported, imported, and decided without a store.

use std::collections::BTreeSet;

use dezky_core::{Error, ErrorKind, Result, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use crate::model::is_key;
use crate::store::{InvalidFlag, MAX_FLAGS, Snapshot};
use crate::{Flag, NewFlag};

/// What a stored flag has beyond what a flag is made from.
const KEPT_FIELDS: [&str; 4] = ["history", "version", "createdAt", "updatedAt"];

/// The flags of a file as definitions: what [`Snapshot::to_json`] writes, or the same by
/// hand, where each flag has what [`NewFlag::from_json`] takes.
///
/// Histories, versions and times are not read: they belong to the store that the flags
/// come from.
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
    /// The store's revision, if the file says so; 0 otherwise.
    pub revision: u64,
    /// The flags that are within their bounds, by key.
    pub flags: Vec<NewFlag>,
    /// The others, by key.
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
    /// Reads the text of a file. Whoever reads the file itself bounds its size, by
    /// [`MAX_FILE_BYTES`](crate::live::MAX_FILE_BYTES).
    ///
    /// # Errors
    /// `field_invalid` if it is no such text, has more than 10,000 flags, a flag's key is
    /// none, or two flags have one.
    pub fn from_json(text: &str) -> Result<Self> {
        let refused = |problem: String| Error::new(ErrorKind::FieldInvalid, problem);
        if !text.trim_start().starts_with('{') {
            let form = "it must be a JSON object, {\"flags\": [{\"key\": …}, …]}";
            return Err(refused(format!("no snapshot of flags: {form}")));
        }
        let read: FileText = serde_json::from_str(text)
            .map_err(|error| refused(format!("no snapshot of flags: {error}")))?;
        let count = read.flags.len() + read.invalid.len();
        if count > MAX_FLAGS {
            return Err(refused(format!("flags must be at most {MAX_FLAGS}: there are {count}")));
        }
        let mut file = Self { revision: read.revision, ..Self::default() };
        let mut keys = BTreeSet::new();
        let mut once = |at: String, key: &str| {
            if !is_key(key) {
                return Err(refused(format!("{at}.key must be a flag's key")));
            }
            if !keys.insert(key.to_owned()) {
                return Err(refused(format!("{at}.key: {key} is there twice, leave one out")));
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
                for name in KEPT_FIELDS {
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

    /// The flags, if all of them are within their bounds.
    ///
    /// # Errors
    /// `field_invalid` names the first that is not, and its bound.
    pub fn all(self) -> Result<Vec<NewFlag>> {
        match self.invalid.first() {
            None => Ok(self.flags),
            Some(InvalidFlag { key, problem }) => {
                Err(Error::new(ErrorKind::FieldInvalid, format!("the flag {key}: {problem}")))
            }
        }
    }

    /// The flags to be decided, those out of bounds [as such](crate::Reason::InvalidFlag).
    /// They are of version 1, without history.
    pub fn snapshot(&self) -> Snapshot {
        let made = self.flags.iter().map(|new| Flag::new(new.clone(), Timestamp::MIN));
        Snapshot {
            revision: self.revision,
            flags: made.filter_map(Result::ok).collect(),
            invalid: self.invalid.clone(),
        }
    }
}
