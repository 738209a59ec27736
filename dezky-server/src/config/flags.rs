//! `[flags]`: how live flags follow the store.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Key, Kind, key};
use super::settings::Settings;
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("flags.poll_ms", "DEZKY_FLAGS_POLL_MS", Kind::Number(10, 3_600_000), "500", "",
        "How often the flags that decide are compared with the store, in milliseconds, {min}\nto {max}. PostgreSQL and MongoDB tell of changes at once all the same."),
    key("flags.file", "DEZKY_FLAGS_FILE", Kind::Text, "", "\"/var/lib/dezky/flags.json\"",
        "A file in which the server keeps what decides of the flags, for its user alone. It\ndecides by them if the flags can't be read at the start; while the database can't be\nopened at all it does not start. One process, one file; its folder must exist."),
];

/// How live flags follow the store.
#[derive(Debug, Clone)]
pub struct FlagsConfig {
    /// How often they are compared with the store.
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
