//! `[http]`: the bounds of connections and request bodies.

use std::time::Duration;

use super::keys::{Key, Kind, SECONDS, key};
use super::settings::Settings;
use crate::failure::Failure;
use crate::http::limits::HttpLimits;

/// The longest that bodies may go on arriving when the server ends.
const MAX_ENDING: Duration = Duration::from_secs(2);

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("http.max_connections", "DEZKY_HTTP_MAX_CONNECTIONS", Kind::Number(1, 100_000), "1024", "",
        "The most connections at a time, {min} to {max}. When all places are taken, one that\nhas kept the server waiting for a second or longer makes way for the next: of those from\nthe address (in IPv6 the /64) with the most, the one that has done so for longest."),
    key("http.idle_seconds", "DEZKY_HTTP_IDLE_SECONDS", SECONDS, "100", "",
        "How long a connection may be without a request, from its beginning or its last\nanswer to the end of the next request's head, {min} to {max}. Longer than clients keep\ntheirs, so that none sends into one that just ended."),
    key("http.write_seconds", "DEZKY_HTTP_WRITE_SECONDS", SECONDS, "30", "",
        "How long a client may take nothing of an answer, {min} to {max}."),
    key("http.body_seconds", "DEZKY_HTTP_BODY_SECONDS", SECONDS, "30", "",
        "How long a request's body may take, {min} to {max}. Stalwart waits 30 s for the answer."),
    key("http.body_stall_seconds", "DEZKY_HTTP_BODY_STALL_SECONDS", SECONDS, "5", "",
        "Of a body 1024 bytes a second must come, looked at in steps of so many seconds, {min} to\n{max}."),
    key("http.body_memory_bytes", "DEZKY_HTTP_BODY_MEMORY_BYTES", Kind::Number(1 << 20, 1 << 40), "268435456", "",
        "The memory of bodies of webhooks and of POST /audit, {min} to {max}: one half for the\nfirst 64 KiB of each, the other for what large ones have beyond. One address gets\nhalf of either at most."),
];

impl Settings {
    pub(super) fn http(&self) -> Result<HttpLimits, Failure> {
        Ok(HttpLimits {
            max_connections: self.size("http.max_connections")?,
            idle: self.seconds("http.idle_seconds")?,
            write: self.seconds("http.write_seconds")?,
            body: self.seconds("http.body_seconds")?,
            body_stall: self.seconds("http.body_stall_seconds")?,
            body_memory: self.size("http.body_memory_bytes")?,
            ending: MAX_ENDING.min(self.seconds("shutdown_timeout_seconds")? / 2),
        })
    }
}
