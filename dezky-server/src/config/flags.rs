//! `[flags]`: how live flags follow the store.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Key, Kind, key};
use super::settings::Settings;
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("flags.poll_ms", "DEZKY_FLAGS_POLL_MS", Kind::Number(10, 3_600_000), "500", "",
        "The interval at which live flags are compared with the store, in milliseconds, {min}\nto {max}. PostgreSQL and MongoDB also notify of changes at once."),
    key("flags.file", "DEZKY_FLAGS_FILE", Kind::Text, "", "\"/var/lib/dezky/flags.json\"",
        "A file in which the server keeps the flags, readable only by its user, for a start at\nwhich they can't be read; while the database can't be opened at all the server does not\nstart. Each process needs its own file; the folder must exist."),
];

/// How live flags follow the store.
#[derive(Debug, Clone)]
pub struct FlagsConfig {
    /// The interval at which they are compared with the store.
    pub poll: Duration,
    /// The file that keeps them for a start without the store.
    pub file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn flags(&self) -> Result<FlagsConfig, Failure> {
        let poll = Duration::from_millis(self.number("flags.poll_ms")?);
        Ok(FlagsConfig { poll, file: self.path("flags.file")? })
    }
}
