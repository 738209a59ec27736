//! How long the log waits for a tenant directory that does not answer.

use super::MAX_BACKOFF;
use crate::Timestamp;

/// How often in a row the tenant directory may fail to answer while the store works before
/// events go into the log without their tenants: about a minute of back-off.
pub(super) const MAX_UNANSWERED: u32 = 8;

/// The absence of the tenant directory, as far as the log has met it.
#[derive(Default)]
pub(super) struct Absence {
    /// How often in a row the directory did not answer while the store worked.
    failures: u32,
    /// The time of the next question, once the directory is given up on.
    ask_at: Option<Timestamp>,
}

/// The time that a question to the directory may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// All the time that there is for a batch.
    Full,
    /// A part of it: the directory is given up on, and may be back.
    Brief,
    /// None: the directory is given up on and was asked a short time ago.
    Zero,
}

impl Absence {
    /// The patience with the next question. A directory that was given up on and not asked
    /// for long is waited for anew: it may have been back meanwhile.
    pub(super) fn patience(&mut self, now: Timestamp) -> Patience {
        let Some(ask_at) = self.ask_at else { return Patience::Full };
        let (early, late) = (ask_at.saturating_since(now), now.saturating_since(ask_at));
        // The latter if the clock was set back.
        if late >= MAX_BACKOFF || early > MAX_BACKOFF {
            *self = Self::default();
            return Patience::Full;
        }
        if early.is_zero() { Patience::Brief } else { Patience::Zero }
    }

    /// Counts a failure to answer while the store works; says whether the directory is
    /// given up on.
    pub(super) fn failed(&mut self, now: Timestamp) -> bool {
        self.failures = self.failures.saturating_add(1);
        let is_given_up = self.failures > MAX_UNANSWERED;
        if is_given_up {
            self.ask_at = Some(now.saturating_add(MAX_BACKOFF));
        }
        is_given_up
    }

    /// Gives up on a directory that failed to answer; says whether that is new.
    pub(super) fn give_up(&mut self, now: Timestamp) -> bool {
        let is_new = self.failures > 0 && self.ask_at.is_none();
        if is_new {
            self.failures = MAX_UNANSWERED;
            self.ask_at = Some(now.saturating_add(MAX_BACKOFF));
        }
        is_new
    }

    /// Forgets all of it: the directory answers, or the store does not.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}
