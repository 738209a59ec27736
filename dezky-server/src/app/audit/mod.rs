//! Readers of the timeline that take long, and their bounds.

pub(crate) mod export;
pub(crate) mod feed;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use self::feed::AuditFeed;

/// The maximum number of concurrent exports.
pub(crate) const MAX_EXPORTS: usize = 4;
/// The maximum number of concurrent tallies: each reads up to a million rows.
const MAX_TALLIES: usize = 2;

/// The streams, exports and tallies of the timeline that are open.
pub struct AuditReaders {
    /// The streams.
    pub(crate) feed: Arc<AuditFeed>,
    exports: Arc<Semaphore>,
    tallies: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// A permit for one export, until it is dropped.
pub(crate) struct ExportPermit {
    stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl AuditReaders {
    /// Readers that end when `stopping` becomes true.
    pub(crate) fn new(stopping: watch::Receiver<bool>) -> Self {
        Self {
            feed: Arc::new(AuditFeed::new(stopping.clone())),
            exports: Arc::new(Semaphore::new(MAX_EXPORTS)),
            tallies: Arc::new(Semaphore::new(MAX_TALLIES)),
            stopping,
        }
    }

    /// Admits one more export; `None` if the maximum is running.
    pub(crate) fn admit_export(&self) -> Option<ExportPermit> {
        let permit = Arc::clone(&self.exports).try_acquire_owned().ok()?;
        Some(ExportPermit { stopping: self.stopping.clone(), _permit: permit })
    }

    /// Admits one more tally; `None` if the maximum is running.
    pub(crate) fn admit_tally(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.tallies).try_acquire_owned().ok()
    }

    /// Resolves when the server stops and the last export has recorded its end. Later exports are
    /// not admitted.
    pub(crate) async fn exports_ended(&self) {
        wait_for_stop(&mut self.stopping.clone()).await;
        let all = u32::try_from(MAX_EXPORTS).unwrap_or(u32::MAX);
        // An error means that the semaphore is closed.
        let _ = self.exports.acquire_many(all).await;
        self.exports.close();
    }
}

impl ExportPermit {
    /// Resolves when the export has to end. Cancel-safe.
    pub(crate) async fn stopped(&mut self) {
        wait_for_stop(&mut self.stopping).await;
    }
}

async fn wait_for_stop(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, so readers end as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
