//! How webhooks are doing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dezky_core::{Result, Timestamp};
use dezky_ingest::IngestSummary;
use serde::Serialize;

/// How one webhook is doing, since the start of the process.
#[derive(Debug, Default)]
pub struct Webhook(Mutex<WebhookStatus>);

/// See [`Webhook`]. Times are RFC 3339 in UTC; what is not there is `null`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// When a request was last answered with success.
    pub last_success: Option<Timestamp>,
    /// The last error that was answered, wrong signatures included; it stays after a
    /// success.
    pub last_error: Option<WebhookError>,
    /// What was done.
    pub counts: WebhookCounts,
}

/// An error that was answered.
#[derive(Debug, Clone, Serialize)]
pub struct WebhookError {
    /// Its stable code.
    pub code: &'static str,
    /// When it was.
    pub at: Timestamp,
}

/// What a webhook did: numbers of requests, events and items.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookCounts {
    /// Requests answered with success.
    pub accepted: u64,
    /// Requests answered with an error.
    pub refused: u64,
    /// Events that are new in the log.
    pub stored: u64,
    /// Events that were there already.
    pub duplicates: u64,
    /// Of these, those that say something else than the one that is there.
    pub conflicts: u64,
    /// Items that are new in the quarantine.
    pub quarantined: u64,
    /// Of the stored and the spooled ones, those that bear another time than their
    /// source said because that is missing, unreadable or not believed.
    pub undated: u64,
    /// Of the stored and the spooled ones, those whose outcome the source's map does not
    /// know.
    pub unknown_outcomes: u64,
    /// Of the stored ones, those without a tenant because nobody could say.
    pub unresolved: u64,
    /// Events and items that wait in the spool, or did.
    pub spooled: u64,
}

impl Webhook {
    /// How it is doing.
    pub fn status(&self) -> WebhookStatus {
        self.lock().clone()
    }

    /// Counts what became of a request.
    pub fn note(&self, result: &Result<IngestSummary>, now: Timestamp) {
        let mut status = self.lock();
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => {
                status.counts.refused += 1;
                status.last_error = Some(WebhookError { code: error.code(), at: now });
                return;
            }
        };
        status.last_success = Some(now);
        let counts = &mut status.counts;
        counts.accepted += 1;
        counts.stored += taken.stored as u64;
        counts.duplicates += taken.duplicates as u64;
        counts.conflicts += taken.conflicts as u64;
        counts.quarantined += taken.new_quarantined as u64;
        counts.undated += taken.undated as u64;
        counts.unknown_outcomes += taken.unknown_outcomes as u64;
        counts.unresolved += taken.unresolved as u64;
        counts.spooled += taken.spooled as u64;
    }

    fn lock(&self) -> MutexGuard<'_, WebhookStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
