//! The receiver of the webhook: verify, decode, append, and only then acknowledge.

use std::net::IpAddr;
use std::time::Duration;

use dezky_core::{Error, ErrorKind, PulledEvent, QuarantineItem, Result, TimeProblem, Timestamp};

use super::{Body, MAX_BODY_EVENTS, NOT_JSON, Reader, text_of};
use crate::intake::{IngestSummary, Intake, refused};
use crate::signature::Secrets;
use crate::webhook::Taking;

/// The tolerated time of an event in the future, if old ones are refused, because clocks differ.
const MAX_AHEAD: Duration = Duration::from_mins(10);

/// Takes signed webhooks of one Stalwart instance into the log.
pub struct StalwartReceiver {
    source: String,
    secrets: Secrets,
    intake: Intake,
    max_age: Option<Duration>,
    max_events: usize,
}

impl StalwartReceiver {
    /// Creates a receiver for `source`: `stalwart`, or `stalwart:eu2` for an instance.
    ///
    /// # Errors
    /// `config_invalid` if the instance's name has characters other than letters, digits, `.`, `_`
    /// and `-`, or more than 48 of them.
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
        let (source, max_events) = (source.to_owned(), MAX_BODY_EVENTS);
        Ok(Self { source, secrets, intake, max_age: None, max_events })
    }

    /// Sends events whose `createdAt` is further back than `max_age`, or more than ten minutes
    /// ahead, to the quarantine as `too_old`; they are acknowledged. Unless set, events of any age
    /// are accepted.
    ///
    /// A signature includes no time, so anyone with a copy of a body can replay it; that adds
    /// nothing as long as its events are in the log. The window is for logs whose old events were
    /// removed. It must be longer than Stalwart's `discardAfter`, the time for which it retries.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Sets the maximum number of events in a body; [`MAX_BODY_EVENTS`](super::MAX_BODY_EVENTS)
    /// unless set.
    #[must_use]
    pub fn with_max_events(mut self, max_events: usize) -> Self {
        self.max_events = max_events;
        self
    }

    /// The name under which the events are stored.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Verifies `signature` (the `X-Signature` header) over the raw `body` and ingests its events;
    /// `client_ip` is the address of events without one. When this returns, everything is durable
    /// in the log, in the quarantine or, if the [intake](Intake::with_spool) has one, in the spool.
    /// The same body again changes nothing and returns the same [`IngestSummary::received`].
    ///
    /// # Errors
    /// `signature_invalid`: nothing was read or written. `too_large`: the body has more events than
    /// [allowed](Self::with_max_events), and nothing was written. Those of
    /// [`Intake::ingest_or_spool`]: the sender should retry. A large body is stored in parts; those
    /// before the error stay and become duplicates.
    pub async fn receive(
        &self,
        signature: Option<&str>,
        body: &[u8],
        client_ip: Option<IpAddr>,
    ) -> Result<IngestSummary> {
        self.secrets.verify(signature, body)?;
        let now = self.intake.runtime().now();
        let text = text_of(body);
        let reader = Reader { source: &self.source, client_ip, received_at: now };
        let read = reader.read(&text, body.len(), self.max_events).map_err(|events| {
            let max = self.max_events;
            let what = format!("the body has {events} events: send at most {max} at a time");
            Error::new(ErrorKind::TooLarge, what)
        })?;
        let mut taking = Taking::new(&self.intake, &self.source);
        match read {
            Body::Odd(mut item) => {
                if item.reason == NOT_JSON {
                    // Tells different bodies of the same length apart.
                    item.key = format!("{NOT_JSON}:{}", self.secrets.identity(body));
                }
                taking.item(item).await?;
            }
            Body::Events(mut events) => {
                for event in events.by_ref() {
                    match self.refusal(&event, now) {
                        Some(item) => taking.item(item).await?,
                        None => taking.event(event).await?,
                    }
                }
                for item in events.into_items() {
                    taking.item(item).await?;
                }
            }
        }
        taking.finish(0).await
    }

    /// The quarantine item of an event that is too old or in the future.
    fn refusal(&self, pulled: &PulledEvent, now: Timestamp) -> Option<QuarantineItem> {
        let max_age = self.max_age?;
        let problem = pulled.event.time_problem();
        // Without its own time, it has the request's.
        let (ahead, age) = pulled.event.at.map_or_else(Default::default, |at| {
            (at.saturating_since(now), now.saturating_since(at))
        });
        let detail = if problem == Some(TimeProblem::Ahead) || ahead > MAX_AHEAD {
            format!("created more than {} s ahead of our clock", MAX_AHEAD.as_secs())
        } else if problem == Some(TimeProblem::TooOld) || age > max_age {
            format!("created more than {} s ago", max_age.as_secs())
        } else {
            return None;
        };
        let sealed = pulled.event.clone().seal(&**self.intake.runtime());
        Some(refused(&sealed, "too_old", detail))
    }
}
