//! The configuration of the poller.

use std::fmt;
use std::time::Duration;

use dezky_core::{Error, ErrorKind, Result};

use super::map::SOURCE;
use crate::PumpConfig;

/// A token of Authentik's API. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct ApiToken(String);

impl ApiToken {
    /// A token of intent `api`, without the spaces around it.
    ///
    /// # Errors
    /// `config_invalid` if it is empty or can't be sent in a header.
    pub fn new(token: &str) -> Result<Self> {
        let token = token.trim();
        let is_text = token.bytes().all(|b| b.is_ascii_graphic());
        if token.is_empty() || token.len() > 8 << 10 || !is_text {
            let what = "the token of Authentik must be 1 to 8192 printable ASCII characters \
                        without spaces; make one of intent API";
            return Err(Error::new(ErrorKind::ConfigInvalid, what));
        }
        Ok(Self(token.to_owned()))
    }

    /// The token itself.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken")
    }
}

/// Address, token and bounds of an [`AuthentikSource`](super::AuthentikSource).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuthentikConfig {
    /// Authentik's address, without `/api/v3`: `https://id.example.com`.
    pub base_url: String,
    /// A token of intent API whose user may view events.
    pub token: ApiToken,
    /// The source's name: `authentik`, or `authentik:<instance>` for further instances.
    pub source: String,
    /// Events per page, 2 to 100; 100 unless set.
    pub page_size: u32,
    /// How far polls go back beyond the events they have seen, to find events that become visible
    /// late; 10 min unless set. At least twice the pump's interval.
    pub overlap: Duration,
    /// The interval of polls, whatever other scans are running; 60 s unless set. Should equal the
    /// pump's interval.
    pub poll_interval: Duration,
    /// The timeout of a request; 60 s unless set.
    pub request_timeout: Duration,
    /// The maximum size of a page in bytes, 1 MiB to 1 GiB; 64 MiB unless set. Larger pages are
    /// requested again as smaller ones; a single event that is larger goes to the quarantine
    /// without its text.
    pub max_page_bytes: usize,
    /// Groups that are never a tenant; `dezky-platform-admins` unless set. Groups of superusers
    /// never are either.
    pub admin_groups: Vec<String>,
    /// How long a listing of groups, and the groups of a user requested alone, stay valid; 10 min
    /// unless set.
    pub group_refresh: Duration,
}

impl AuthentikConfig {
    /// Polls `base_url` as the source `authentik`, with the default bounds.
    pub fn new(base_url: impl Into<String>, token: ApiToken) -> Self {
        Self {
            base_url: base_url.into(),
            token,
            source: SOURCE.to_owned(),
            page_size: 100,
            overlap: Duration::from_mins(10),
            poll_interval: Duration::from_mins(1),
            request_timeout: Duration::from_mins(1),
            max_page_bytes: 64 << 20,
            admin_groups: vec!["dezky-platform-admins".to_owned()],
            group_refresh: Duration::from_mins(10),
        }
    }

    /// Returns the same configuration for the source `authentik:<instance>`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// The pump's configuration for this source: every 60 s, at most 10 pages per tick, resting in
    /// between.
    pub fn pump_config() -> PumpConfig {
        PumpConfig {
            interval: Duration::from_mins(1),
            max_batches: 10,
            rests: true,
            // A page may take a minute, its commit more.
            lease_ttl: Duration::from_mins(3),
            max_backoff: Duration::from_mins(10),
            ..PumpConfig::default()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |what| Err(Error::new(ErrorKind::ConfigInvalid, what));
        let instance = match self.source.split_once(':') {
            None if self.source == SOURCE => None,
            Some((SOURCE, instance)) => Some(instance),
            _ => {
                return invalid(
                    "the source of the Authentik poller must be authentik or authentik:<instance>",
                );
            }
        };
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if instance.is_some_and(|i| i.is_empty() || !i.bytes().all(word)) || self.source.len() > 64
        {
            return invalid(
                "the instance of the Authentik poller must be letters, digits, . _ and -, with \
                 authentik: at most 64 bytes",
            );
        }
        let is_address = reqwest::Url::parse(&self.base_url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !is_address {
            return invalid(
                "the base URL of Authentik must be an http or https address without user, query and \
                 fragment, such as https://id.example.com",
            );
        }
        if !(2..=100).contains(&self.page_size) {
            return invalid("page_size of Authentik must be 2 to 100");
        }
        if !(1 << 20..=1 << 30).contains(&self.max_page_bytes) {
            return invalid("max_page_bytes of Authentik must be 1048576 to 1073741824");
        }
        let day = Duration::from_hours(24);
        if !(Duration::from_secs(1)..=day).contains(&self.overlap) {
            return invalid("overlap of Authentik must be 1 s to 24 h");
        }
        if !(Duration::from_secs(1)..=day).contains(&self.poll_interval) {
            return invalid("poll_interval of Authentik must be 1 s to 24 h");
        }
        if !(Duration::from_secs(1)..=Duration::from_mins(10)).contains(&self.request_timeout) {
            return invalid("request_timeout of Authentik must be 1 s to 10 min");
        }
        if !(Duration::from_secs(1)..=day).contains(&self.group_refresh) {
            return invalid("group_refresh of Authentik must be 1 s to 24 h");
        }
        Ok(())
    }
}
