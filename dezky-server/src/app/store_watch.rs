//! Whether the store takes writes, for `/health`.
//!
//! The store is probed at the start and whenever there is reason to suspect it; while a probe
//! fails, more follow until one succeeds. A healthy store is not probed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dezky_core::store::AuditStore;
use dezky_core::{Error, ErrorKind};
use tokio::time::Instant;

/// The bound of a probe: longer than a writer waits for others.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of the last probe.
pub struct StoreWatch {
    failing: Mutex<Option<(&'static str, Instant)>>,
    suspected: AtomicBool,
}

impl Default for StoreWatch {
    fn default() -> Self {
        // The first probe comes at the start.
        Self { failing: Mutex::default(), suspected: AtomicBool::new(true) }
    }
}

impl StoreWatch {
    /// Requests a probe, because the store may be the reason of a failure.
    pub fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// The error's code and its age, if the store can't be written.
    pub fn failure(&self) -> Option<(&'static str, Duration)> {
        self.failing().map(|(code, since)| (code, since.elapsed()))
    }

    /// Probes the store if `is_suspect`, if a probe was requested, or if the last one failed.
    pub(crate) async fn probe_if_needed(&self, store: &dyn AuditStore, is_suspect: bool) {
        let was_requested = self.suspected.swap(false, Ordering::Relaxed);
        if is_suspect || was_requested || self.failing().is_some() {
            self.probe(store).await;
        }
    }

    async fn probe(&self, store: &dyn AuditStore) {
        let probed = tokio::time::timeout(PROBE_TIMEOUT, store.check_writable()).await;
        let probed = probed.unwrap_or_else(|_| {
            let what = format!("it did not answer within {} s", PROBE_TIMEOUT.as_secs());
            Err(Error::new(ErrorKind::StoreUnavailable, what))
        });
        let mut failing = self.failing();
        match (probed, *failing) {
            (Ok(()), Some(_)) => {
                *failing = None;
                tracing::info!("the store accepts writes again");
            }
            (Err(error), None) => {
                *failing = Some((error.code(), Instant::now()));
                tracing::error!(
                    code = error.code(),
                    %error,
                    "the store accepts no writes: reads continue"
                );
            }
            (Err(error), Some((_, since))) => *failing = Some((error.code(), since)),
            (Ok(()), None) => {}
        }
    }

    fn failing(&self) -> MutexGuard<'_, Option<(&'static str, Instant)>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
