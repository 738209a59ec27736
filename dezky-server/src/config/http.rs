//! `[http]`: the bounds of connections and request bodies.

use std::time::Duration;

use super::keys::{Key, Kind, SECONDS, key};
use super::settings::Settings;
use crate::failure::Failure;
use crate::http::limits::HttpLimits;

/// The maximum time for which bodies may continue to arrive when the server stops.
const MAX_ENDING: Duration = Duration::from_secs(2);

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("http.max_connections", "DEZKY_HTTP_MAX_CONNECTIONS", Kind::Number(1, 100_000), "1024", "",
        "The maximum number of connections, {min} to {max}. When the limit is reached, a connection\nthat has kept the server waiting for at least a second is closed for the next one: of the\nclient (in IPv6 the /64) with the most connections, the one that has waited longest."),
    key("http.idle_seconds", "DEZKY_HTTP_IDLE_SECONDS", SECONDS, "100", "",
        "How long a connection may be idle, from its beginning or its last response to the end\nof the next request's head, {min} to {max}. Use more than clients keep idle connections,\nso that none sends a request into one that is being closed."),
    key("http.write_seconds", "DEZKY_HTTP_WRITE_SECONDS", SECONDS, "30", "",
        "How long a client may accept no bytes of a response, {min} to {max}."),
    key("http.body_seconds", "DEZKY_HTTP_BODY_SECONDS", SECONDS, "30", "",
        "How long a request's body may take, {min} to {max}. Stalwart waits 30 s for the response."),
    key("http.body_stall_seconds", "DEZKY_HTTP_BODY_STALL_SECONDS", SECONDS, "5", "",
        "The interval over which a body must average 1024 bytes a second, {min} to\n{max}."),
    key("http.body_memory_bytes", "DEZKY_HTTP_BODY_MEMORY_BYTES", Kind::Number(1 << 20, 1 << 40), "268435456", "",
        "The memory for bodies of webhooks and of POST /audit, {min} to {max}: one half for the\nfirst 64 KiB of each body, the other for the rest of larger ones. One address gets\nat most half of either."),
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
