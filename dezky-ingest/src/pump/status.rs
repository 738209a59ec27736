//! The status of a pump, and the handle that queries and controls it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dezky_core::{Error, Runtime, Timestamp, Waiting};
use event_listener::{Event, EventListener};
use serde::Serialize;

use super::Tick;
use crate::intake::IngestSummary;

/// The maximum length of an error's text, in bytes.
const ERROR_BYTES: usize = 512;

/// State of a pump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PumpState {
    /// Not started, or ended.
    #[default]
    Stopped,
    /// It holds the lease and pulls, or waits for its next tick.
    Running,
    /// Another replica holds the lease.
    Standby,
    /// It was [paused](PumpHandle::pause).
    Paused,
    /// Its last tick failed; it waits before the next one.
    BackingOff,
}

/// The status of a pump. In JSON, names are in camelCase, times are RFC 3339 in UTC, and absent
/// values are `null`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct PumpStatus {
    /// The current state.
    pub state: PumpState,
    /// The start of the last tick, including ticks as a standby.
    pub last_attempt: Option<Timestamp>,
    /// The end of the last tick without an error, including ticks as a standby.
    pub last_success: Option<Timestamp>,
    /// The last error. It stays after a success; [`failures`](Self::failures) says whether it is
    /// over.
    pub last_error: Option<PumpError>,
    /// The number of failed ticks since the last success.
    pub failures: u32,
    /// Totals since the start.
    pub counts: PumpCounts,
    /// The latest `at` of the events taken since the start.
    pub newest_event_at: Option<Timestamp>,
    /// Milliseconds from that time to now. It grows while the source has no events, so it is a
    /// delay only if [`more_waiting`](Self::more_waiting).
    pub lag_ms: Option<u64>,
    /// Whether the source had more at the last pull.
    pub more_waiting: bool,
    /// Data that the source could not take yet at the last pull: a last line without a newline, a
    /// file that is still being compressed.
    pub waiting: Option<Waiting>,
    /// The length of the cursor, in bytes.
    pub cursor_bytes: usize,
}

/// An error of a pump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct PumpError {
    /// Its stable code; see [`ErrorKind::code`](dezky_core::ErrorKind::code).
    pub code: &'static str,
    /// A line for people, at most 512 bytes, without secrets.
    pub text: String,
    /// The time of the error.
    pub at: Timestamp,
}

/// Totals of a pump since it was created: events, items, batches and ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct PumpCounts {
    /// Events that are new in the log.
    pub stored: u64,
    /// Events that were already in the log.
    pub duplicates: u64,
    /// Of these, those whose content differs from the stored event.
    pub conflicts: u64,
    /// Items that are new in the quarantine.
    pub quarantined: u64,
    /// Stored events that the source found late.
    pub late: u64,
    /// Stored events whose time is not the source's, because that is missing, unreadable or
    /// implausible.
    pub undated: u64,
    /// Stored events whose outcome the source's map does not know.
    pub unknown_outcomes: u64,
    /// Stored events without a tenant because none could be determined.
    pub unresolved: u64,
    /// Items skipped on purpose.
    pub skipped: u64,
    /// Batches that were committed with their cursor.
    pub batches: u64,
    /// Ticks that began, including ticks as a standby.
    pub ticks: u64,
}

impl PumpCounts {
    pub(super) fn add(&mut self, taken: IngestSummary) {
        self.stored += taken.stored as u64;
        self.duplicates += taken.duplicates as u64;
        self.conflicts += taken.conflicts as u64;
        self.quarantined += taken.new_quarantined as u64;
        self.late += taken.late as u64;
        self.undated += taken.undated as u64;
        self.unknown_outcomes += taken.unknown_outcomes as u64;
        self.unresolved += taken.unresolved as u64;
    }
}

/// Queries and controls a pump while it runs. Clones are handles of the same pump.
///
/// ```
/// # use std::sync::Arc;
/// # use dezky_core::source::{IngestSource, Pull, PullLimits};
/// # use dezky_core::{rt::TokioRuntime, store::MemoryAuditStore};
/// use dezky_ingest::{Intake, Pump, PumpConfig, PumpState};
/// # struct Quiet;
/// # #[async_trait::async_trait]
/// # impl IngestSource for Quiet {
/// #     fn name(&self) -> &str { "quiet" }
/// #     async fn pull(&mut self, _: Option<&str>, _: PullLimits) -> dezky_core::Result<Pull> {
/// #         Ok(Pull::default())
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let runtime = Arc::new(TokioRuntime);
/// # let store = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// # let (source, intake) = (Quiet, Intake::new(store, runtime));
/// let mut pump = Pump::new(Box::new(source), intake, PumpConfig::default());
/// let handle = pump.handle();
/// handle.pause();
/// pump.run(std::future::ready(())).await;
/// assert!(handle.is_paused());
/// assert_eq!(handle.status().state, PumpState::Stopped);
/// assert_eq!(handle.status().counts.ticks, 0);
/// # }
/// ```
#[derive(Clone)]
pub struct PumpHandle(Arc<Shared>);

struct Shared {
    source: String,
    runtime: Arc<dyn Runtime>,
    status: Mutex<PumpStatus>,
    is_paused: AtomicBool,
    /// Set by a call on a handle, taken by the waiting pump.
    is_called: AtomicBool,
    called: Event,
}

impl PumpHandle {
    pub(super) fn new(source: &str, runtime: Arc<dyn Runtime>) -> Self {
        Self(Arc::new(Shared {
            source: source.to_owned(),
            runtime,
            status: Mutex::default(),
            is_paused: AtomicBool::new(false),
            is_called: AtomicBool::new(false),
            called: Event::new(),
        }))
    }

    /// The name of the pump's source.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The pump's status.
    pub fn status(&self) -> PumpStatus {
        let mut status = self.lock().clone();
        let now = self.0.runtime.now();
        status.lag_ms = status.newest_event_at.map(|newest| {
            u64::try_from(now.saturating_since(newest).as_millis()).unwrap_or(u64::MAX)
        });
        status
    }

    /// Stops [`Pump::run`](super::Pump::run) after the current batch, until
    /// [`resume`](Self::resume).
    ///
    /// A pump that holds the lease keeps it, so that no other replica takes over. A standby's pause
    /// does not affect the others: pause the replica that is running, or all of them. A pause ends
    /// with the process.
    pub fn pause(&self) {
        self.0.is_paused.store(true, Ordering::SeqCst);
        self.poke();
    }

    /// Ends a pause: the pump ticks at once.
    pub fn resume(&self) {
        self.0.is_paused.store(false, Ordering::SeqCst);
        self.poke();
    }

    /// Whether the pump is paused.
    pub fn is_paused(&self) -> bool {
        self.0.is_paused.load(Ordering::SeqCst)
    }

    /// Ends the wait between two ticks, including one after failures; during a tick, skips the next
    /// wait. A paused pump stays paused.
    pub fn poke(&self) {
        self.0.is_called.store(true, Ordering::SeqCst);
        self.0.called.notify(usize::MAX);
    }

    /// A future that resolves at the next call; `None` if there was one since the last time.
    pub(super) fn listen(&self) -> Option<EventListener> {
        // Listens before checking, so that no call is missed in between.
        let called = self.0.called.listen();
        (!self.heard()).then_some(called)
    }

    /// Whether there was a call since the last time.
    pub(super) fn heard(&self) -> bool {
        self.0.is_called.swap(false, Ordering::SeqCst)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PumpStatus> {
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_state(&self, state: PumpState) {
        self.lock().state = state;
    }

    pub(super) fn attempted(&self) {
        let now = self.0.runtime.now();
        let mut status = self.lock();
        status.last_attempt = Some(now);
        status.counts.ticks += 1;
    }

    pub(super) fn succeeded(&self, tick: &Tick) {
        let now = self.0.runtime.now();
        let mut status = self.lock();
        status.last_success = Some(now);
        status.failures = 0;
        status.more_waiting = tick.more;
        status.state = if tick.standby { PumpState::Standby } else { PumpState::Running };
    }

    /// Records a failure. Returns the number of consecutive ones.
    pub(super) fn failed(&self, error: &Error) -> u32 {
        let (at, mut text) = (self.0.runtime.now(), error.to_string());
        text.truncate(text.floor_char_boundary(ERROR_BYTES));
        let mut status = self.lock();
        status.last_error = Some(PumpError { code: error.code(), text, at });
        status.failures = status.failures.saturating_add(1);
        status.state = PumpState::BackingOff;
        status.failures
    }
}
