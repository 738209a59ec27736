//! Decides how long the log waits for a tenant directory that does not answer.

use super::MAX_BACKOFF;
use crate::Timestamp;

/// The number of consecutive failures of the tenant directory, while the store works, after which
/// events are appended without their tenants: about a minute of back-off.
pub(super) const MAX_UNANSWERED: u32 = 8;

/// An outage of the tenant directory, as seen by the log.
#[derive(Default)]
pub(super) struct Absence {
    /// The number of consecutive failures to answer while the store worked.
    failures: u32,
    /// The time of the next question after giving up on the directory.
    ask_at: Option<Timestamp>,
}

/// The time allowed for a question to the directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The full time for a batch.
    Full,
    /// A part of it, to check whether a directory that was given up on is back.
    Brief,
    /// None, because the directory was given up on and asked recently.
    Zero,
}

impl Absence {
    /// The time allowed for the next question. If a directory that was given up on has not been
    /// asked for long, the log waits for it again, because it may have been back meanwhile.
    pub(super) fn patience(&mut self, now: Timestamp) -> Patience {
        let Some(ask_at) = self.ask_at else { return Patience::Full };
        let (early, late) = (ask_at.saturating_since(now), now.saturating_since(ask_at));
        // `early` is only that large if the clock was set back.
        if late >= MAX_BACKOFF || early > MAX_BACKOFF {
            *self = Self::default();
            return Patience::Full;
        }
        if early.is_zero() { Patience::Brief } else { Patience::Zero }
    }

    /// Counts a failure to answer while the store works; returns whether the log gives up on the
    /// directory.
    pub(super) fn failed(&mut self, now: Timestamp) -> bool {
        self.failures = self.failures.saturating_add(1);
        let is_given_up = self.failures > MAX_UNANSWERED;
        if is_given_up {
            self.ask_at = Some(now.saturating_add(MAX_BACKOFF));
        }
        is_given_up
    }

    /// Gives up on a directory that failed to answer; returns whether that is new.
    pub(super) fn give_up(&mut self, now: Timestamp) -> bool {
        let is_new = self.failures > 0 && self.ask_at.is_none();
        if is_new {
            self.failures = MAX_UNANSWERED;
            self.ask_at = Some(now.saturating_add(MAX_BACKOFF));
        }
        is_new
    }

    /// Forgets the outage, because the directory answers or the store does not.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}
