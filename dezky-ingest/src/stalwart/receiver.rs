//! The receiving end of the webhook: verify, decode, append, and only then say so.

use std::net::IpAddr;
use std::time::Duration;

use dezky_core::{Error, ErrorKind, NewEvent, PulledEvent, Result, TimeProblem, Timestamp};

use super::{Decoded, NOT_JSON, decode};
use crate::intake::{Intake, Taken, refused};
use crate::signature::Secrets;
use crate::webhook::take_in_parts;

/// How far in the future an event may lie where old ones are refused: clocks differ.
const MAX_AHEAD: Duration = Duration::from_mins(10);

/// Takes signed webhooks of one Stalwart instance into the log.
pub struct StalwartReceiver {
    source: String,
    secrets: Secrets,
    intake: Intake,
    max_age: Option<Duration>,
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
        Ok(Self { source: source.to_owned(), secrets, intake, max_age: None })
    }

    /// Events whose `createdAt` is further back than `max_age`, or more than ten
    /// minutes ahead, go to the quarantine as `too_old`, and are answered as received.
    /// Without it none does.
    ///
    /// A signature has no time in it, so whoever got hold of a body can send it again,
    /// which adds nothing as long as its events are in the log. The window is for logs
    /// whose old events were taken out. It must be longer than Stalwart's
    /// `discardAfter`, for which it keeps what it could not send.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// The name under which the events are stored.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Verifies `signature` (the `X-Signature` header) over the raw `body` and takes
    /// in what is in it. `client_ip` stands in for events that carry no address.
    /// When this returns, everything is durably in the log, in the quarantine or, if
    /// the [intake](Intake::with_spool) has one, in the spool; the same body again
    /// changes nothing and answers the same [`Taken::received`].
    ///
    /// # Errors
    /// `signature_invalid`: nothing was read or written. Those of
    /// [`Intake::take_pushed`]: let the sender come again. A large body is taken in
    /// parts; those before the error are kept and will be duplicates then.
    pub async fn receive(
        &self,
        signature: Option<&str>,
        body: &[u8],
        client_ip: Option<IpAddr>,
    ) -> Result<Taken> {
        self.secrets.verify(signature, body)?;
        let now = self.intake.runtime().now();
        let mut decoded = decode(&self.source, body, client_ip, now);
        for unreadable in decoded.quarantine.iter_mut().filter(|item| item.reason == NOT_JSON) {
            // Two bodies of one length are two.
            unreadable.key = format!("{NOT_JSON}:{}", self.secrets.identity(body));
        }
        if let Some(max_age) = self.max_age {
            self.refuse_old(&mut decoded, max_age, now);
        }
        take_in_parts(&self.intake, &self.source, decoded.events, decoded.quarantine, 0).await
    }

    fn refuse_old(&self, decoded: &mut Decoded, max_age: Duration, now: Timestamp) {
        let is_ahead = |event: &NewEvent| {
            event.time_problem() == Some(TimeProblem::Ahead)
                || event.at.is_some_and(|at| at.saturating_since(now) > MAX_AHEAD)
        };
        let outside = |pulled: &mut PulledEvent| {
            // Without a time of its own it has that of the request.
            is_ahead(&pulled.event)
                || pulled.event.time_problem() == Some(TimeProblem::TooOld)
                || pulled.event.at.is_some_and(|at| now.saturating_since(at) > max_age)
        };
        for old in decoded.events.extract_if(.., outside) {
            let is_ahead = is_ahead(&old.event);
            let sealed = old.event.seal(&**self.intake.runtime());
            let detail = if is_ahead {
                format!("created more than {} s ahead of our clock", MAX_AHEAD.as_secs())
            } else {
                format!("created more than {} s ago", max_age.as_secs())
            };
            decoded.quarantine.push(refused(&sealed, "too_old", detail));
        }
    }
}
