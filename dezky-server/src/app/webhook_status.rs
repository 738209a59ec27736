//! Counts and last results of webhooks, for `GET /ingest`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dezky_core::{Result, Timestamp};
use dezky_ingest::IngestSummary;
use serde::Serialize;

/// The status of one webhook since the start of the process.
#[derive(Debug, Default)]
pub struct WebhookMonitor(Mutex<WebhookStatus>);

/// The status as the API sends it: times in RFC 3339 and UTC; `null` if nothing happened yet.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// The time of the last request that succeeded.
    pub last_success: Option<Timestamp>,
    /// The last error that was answered, wrong signatures included. A success does not
    /// clear it.
    pub last_error: Option<WebhookError>,
    /// Totals.
    pub counts: WebhookCounts,
}

/// An error of an answer.
#[derive(Debug, Clone, Serialize)]
pub struct WebhookError {
    /// Its stable code.
    pub code: &'static str,
    /// Its time.
    pub at: Timestamp,
}

/// Numbers of requests, events and items.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookCounts {
    /// Requests answered with success.
    pub accepted: u64,
    /// Requests answered with an error.
    pub refused: u64,
    /// New events in the log.
    pub stored: u64,
    /// Events that were in the log already.
    pub duplicates: u64,
    /// Duplicates whose content differs from the event in the log.
    pub conflicts: u64,
    /// New items in the quarantine.
    pub quarantined: u64,
    /// Stored and spooled events whose time is not the one of their source, because that is
    /// missing, unreadable or implausible.
    pub undated: u64,
    /// Stored and spooled events whose outcome the source's map does not know.
    pub unknown_outcomes: u64,
    /// Stored events without a tenant, because none could be determined.
    pub unresolved: u64,
    /// Events and items that went to the spool.
    pub spooled: u64,
}

impl WebhookMonitor {
    /// The current status.
    pub fn status(&self) -> WebhookStatus {
        self.lock().clone()
    }

    /// Counts the result of a request.
    pub fn record(&self, result: &Result<IngestSummary>, now: Timestamp) {
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
