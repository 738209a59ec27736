//! The checks of `doctor`.

use std::time::{Duration, SystemTime};

use super::Issuer;

/// The difference of clocks from which `doctor` warns.
pub const MAX_SKEW: Duration = Duration::from_secs(10);

/// The findings about an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Examined {
    /// The address of the key set, or the problem of the discovery.
    pub discovery: Result<String, String>,
    /// The number of keys that verify tokens by the profile's algorithms, or the problem; `None`
    /// without an address.
    pub keys: Option<Result<usize, String>>,
    /// The lead of the issuer's clock, in seconds; `None` if it doesn't say.
    pub ahead_seconds: Option<i64>,
}

impl Issuer {
    /// Fetches discovery document and keys once, without using them.
    pub async fn examine(&self) -> Examined {
        let discovered = self.source.discover(&*self.runtime).await;
        let ahead_seconds = discovered.as_ref().ok().and_then(|(_, date)| {
            let at = httpdate::parse_http_date(date.as_deref()?).ok()?;
            let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            let seconds = i64::try_from(since.as_secs()).ok()?;
            Some(seconds - self.runtime.now().as_millis().div_euclid(1_000))
        });
        let discovery = discovered.map(|(uri, _)| uri);
        // A configured address makes the discovery optional; its problem is told still.
        let uri = match self.source.jwks_uri() {
            Some(uri) => Some(uri.to_owned()),
            None => discovery.as_ref().ok().cloned(),
        };
        let keys = match uri {
            Some(uri) => {
                let fetched = self.source.key_set(&uri, &*self.runtime).await;
                Some(fetched.map(|fetched| fetched.keys.usable_by(&self.profile.algorithms)))
            }
            None => None,
        };
        Examined { discovery, keys, ahead_seconds }
    }

    /// The configured address of its key set.
    pub fn jwks_uri(&self) -> Option<&str> {
        self.source.jwks_uri()
    }

    /// The address of its discovery document.
    pub fn discovery_url(&self) -> &str {
        self.source.discovery_url()
    }
}
