//! `[spool]`: the file that keeps webhooks while the store is away.

use dezky_core::SpoolConfig;

use super::keys::{Key, Kind, key};
use super::settings::Settings;
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("spool.path", "DEZKY_SPOOL_PATH", Kind::Text, "", "\"/var/lib/dezky/webhooks.spool\"",
        "A file in which webhooks are kept while the store is away, on a disk of this\nmachine; its folder must exist. Without one they are answered with 503 then, and\nlost where the sender gives up before the store is back. One process, one file."),
    key("spool.max_bytes", "DEZKY_SPOOL_MAX_BYTES", Kind::Number(1 << 20, 1 << 40), "67108864", "",
        "The largest size of that file, {min} to {max}. A full one asks senders\nto come again."),
    key("spool.max_events", "DEZKY_SPOOL_MAX_EVENTS", Kind::Number(1, 100_000_000), "100000", "",
        "The most events in it, {min} to {max}."),
];

impl Settings {
    pub(super) fn spool(&self) -> Result<Option<SpoolConfig>, Failure> {
        let max_bytes = self.number("spool.max_bytes")?;
        let max_events = self.size("spool.max_events")?;
        Ok(self.path("spool.path")?.map(|path| {
            let mut spool = SpoolConfig::new(path);
            (spool.max_bytes, spool.max_events) = (max_bytes, max_events);
            spool
        }))
    }
}
