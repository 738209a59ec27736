//! `[spool]`: the file that keeps pushed events while the store is unavailable.

use dezky_core::SpoolConfig;

use super::keys::{Key, Kind, key};
use super::settings::Settings;
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("spool.path", "DEZKY_SPOOL_PATH", Kind::Text, "", "\"/var/lib/dezky/webhooks.spool\"",
        "A file that keeps webhooks and POST /audit while the store is unavailable, on a disk of\nthis machine; its folder must exist. Without it they get 503, and are lost if the\nsender gives up before the store is back. Each process needs its own file."),
    key("spool.max_bytes", "DEZKY_SPOOL_MAX_BYTES", Kind::Number(1 << 20, 1 << 40), "67108864", "",
        "The maximum size of that file, {min} to {max}. If it is full, senders\nget 503."),
    key("spool.max_events", "DEZKY_SPOOL_MAX_EVENTS", Kind::Number(1, 100_000_000), "100000", "",
        "The maximum number of events in that file, {min} to {max}."),
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
