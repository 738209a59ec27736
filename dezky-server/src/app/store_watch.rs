//! Whether the store takes writes, for those who ask how the server is.
//!
//! Nothing is written while all is well: a look is taken at the start, and whenever there
//! is reason to suspect something. While it fails, looks go on until one succeeds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dezky_core::{Error, ErrorKind};
use tokio::time::Instant;

use crate::app::App;

/// How often it is asked whether there is reason for a look.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// How long a look may take: longer than a writer waits for others.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How the store was at the last look.
pub struct StoreWatch {
    failing: Mutex<Option<(&'static str, Instant)>>,
    suspected: AtomicBool,
}

impl Default for StoreWatch {
    fn default() -> Self {
        // The first look is at the start.
        Self { failing: Mutex::default(), suspected: AtomicBool::new(true) }
    }
}

impl StoreWatch {
    /// Asks for a look: something went wrong that may be the store.
    pub fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// The error's code and for how long, if the store takes no writes.
    pub fn failure(&self) -> Option<(&'static str, Duration)> {
        self.failing().map(|(code, since)| (code, since.elapsed()))
    }

    /// Looks if there is reason to.
    pub(crate) async fn look_if_suspected(&self, state: &App) {
        let is_due = self.suspected.swap(false, Ordering::Relaxed)
            || self.failing().is_some()
            || state.log.spool_status().is_some_and(|spool| spool.pending > 0)
            || pumps_meet_the_store_failing(state);
        if is_due {
            self.look(state).await;
        }
    }

    async fn look(&self, state: &App) {
        let looked = tokio::time::timeout(LOOK_TIMEOUT, state.store.check_writable()).await;
        let looked = looked.unwrap_or_else(|_| {
            let what = format!("it did not answer within {} s", LOOK_TIMEOUT.as_secs());
            Err(Error::new(ErrorKind::StoreUnavailable, what))
        });
        let mut failing = self.failing();
        match (looked, *failing) {
            (Ok(()), Some(_)) => {
                *failing = None;
                tracing::info!("the store takes writes again");
            }
            (Err(error), None) => {
                *failing = Some((error.code(), Instant::now()));
                tracing::error!(
                    code = error.code(),
                    %error,
                    "the store takes no writes: reads are served, and writes once it does"
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

fn pumps_meet_the_store_failing(state: &App) -> bool {
    let pumps = state.pumps.lock().unwrap_or_else(PoisonError::into_inner);
    pumps.iter().map(dezky_ingest::PumpHandle::status).any(|pump| {
        pump.failures > 0 && pump.last_error.is_some_and(|error| error.code.starts_with("store_"))
    })
}
