//! The receiving end of the webhook: verify, decode, append, and only then say so.

use std::net::IpAddr;

use dezky_core::{Error, ErrorKind, Result};

use super::decode;
use crate::intake::{Intake, Taken};
use crate::signature::Secrets;
use crate::webhook::take_in_parts;

/// Takes signed webhooks of one Stalwart instance into the log.
pub struct StalwartReceiver {
    source: String,
    secrets: Secrets,
    intake: Intake,
}

impl StalwartReceiver {
    /// A receiver for `source`: `stalwart`, or `stalwart:eu2` for an instance.
    ///
    /// # Errors
    /// `config_invalid` if the instance's name has other characters than letters,
    /// digits, `.`, `_` and `-`, or more than 48 of them.
    pub fn new(source: &str, secrets: Secrets, intake: Intake) -> Result<Self> {
        let instance = source.strip_prefix("stalwart").unwrap_or("!");
        let valid = instance.is_empty()
            || instance.strip_prefix(':').is_some_and(|name| {
                (1..=48).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            });
        if !valid {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                format!("{source}: a Stalwart instance has 1 to 48 letters, digits, . _ and -"),
            ));
        }
        Ok(Self { source: source.to_owned(), secrets, intake })
    }

    /// The name under which the events are stored.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Verifies `signature` (the `X-Signature` header) over the raw `body` and
    /// appends what is in it. `client_ip` stands in for events that carry no
    /// address. When this returns, everything is durably in the log or in the
    /// quarantine; the same body again changes nothing and answers the same
    /// [`Taken::received`].
    ///
    /// # Errors
    /// `signature_invalid`: nothing was read or written. Those of
    /// [`AuditStore::append`](dezky_core::AuditStore::append): let the sender come
    /// again. A large body is appended in parts; those before the error are stored
    /// and will be duplicates then.
    pub async fn receive(
        &self,
        signature: Option<&str>,
        body: &[u8],
        client_ip: Option<IpAddr>,
    ) -> Result<Taken> {
        self.secrets.verify(signature, body)?;
        let now = self.intake.runtime().now();
        let decoded = decode(&self.source, body, client_ip, now);
        take_in_parts(&self.intake, &self.source, decoded.events, decoded.quarantine, 0).await
    }
}
