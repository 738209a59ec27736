//! Moves a source's events into the log, batch by batch, each together with the
//! cursor advance.

mod lease;
mod status;

use std::error::Error as _;
use std::future::Future;
use std::iter::successors;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use dezky_core::source::{IngestSource, Pull, PullLimits};
use dezky_core::store::{AppendOptions, CursorAdvance};
use dezky_core::{Error, ErrorKind, Result};
use futures_util::FutureExt;
use futures_util::future::{Either, FusedFuture, pending, select};

use self::lease::LeaseKeeper;
pub use self::status::{PumpCounts, PumpError, PumpHandle, PumpState, PumpStatus};
use crate::intake::{IngestSummary, Intake, PartBounds, Parts};

/// The maximum number of events in a batch: with as many quarantine items and a notice for each,
/// they fit into one append.
const MAX_EVENTS: usize = 4_000;
/// The number of consecutive batches that may fail because the tenant directory does not answer;
/// after that, events are stored without their tenants.
const MAX_UNANSWERED: u32 = 5;

/// Configuration of a pump.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PumpConfig {
    /// The wait between ticks, 5 s unless set.
    pub interval: Duration,
    /// The limits of a batch; at most 4,000 events. A pull that exceeds them is appended in parts
    /// of that size, counting the bytes of the metadata; the cursor commits with the last.
    pub limits: PullLimits,
    /// The maximum number of batches per tick, 100 unless set. The tick ends there and skips
    /// nothing; [`Pump::run`] starts the next one at once while more is waiting, unless it
    /// [rests](Self::rests).
    pub max_batches: usize,
    /// Whether [`Pump::run`] waits for the interval even while more is waiting, so that a long
    /// backlog does not overload the source's system; false unless set.
    pub rests: bool,
    /// The lease's time to live, 15 s unless set. One of several replicas pumps and renews the
    /// lease every third of that time, whatever it waits for; another takes over at most half of
    /// that time after the lease has lapsed.
    pub lease_ttl: Duration,
    /// The identity of this replica; random unless set.
    pub holder: Option<String>,
    /// The longest wait after failures, 60 s unless set.
    pub max_backoff: Duration,
}

impl Default for PumpConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            limits: PullLimits::default(),
            max_batches: 100,
            rests: false,
            lease_ttl: Duration::from_secs(15),
            holder: None,
            max_backoff: Duration::from_mins(1),
        }
    }
}

/// Result of a tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tick {
    /// Counts of the events by their outcome.
    pub taken: IngestSummary,
    /// Items skipped on purpose.
    pub skipped: u64,
    /// Whether more was waiting when the tick ended.
    pub more: bool,
    /// Whether another replica holds the lease, so this tick did nothing.
    pub standby: bool,
}

/// A worker that pulls from one source. It spawns nothing: call [`tick`](Self::tick) yourself, or
/// let [`run`](Self::run) do so.
pub struct Pump {
    source: Box<dyn IngestSource>,
    intake: Intake,
    config: PumpConfig,
    lease: LeaseKeeper,
    handle: PumpHandle,
    /// Batches in a row that failed because the tenant directory did not answer.
    unanswered: u32,
}

impl Pump {
    /// Creates a pump from `source` into `intake`.
    pub fn new(source: Box<dyn IngestSource>, intake: Intake, mut config: PumpConfig) -> Self {
        config.limits.max_events = config.limits.max_events.min(MAX_EVENTS);
        let runtime = intake.runtime();
        let holder = config.holder.clone().unwrap_or_else(|| {
            let mut random = [0; 8];
            runtime.fill_random(&mut random);
            format!("pump-{}", hex::encode(random))
        });
        let lease = LeaseKeeper::new(
            Arc::clone(intake.store()),
            Arc::clone(runtime),
            format!("ingest:{}", source.name()),
            holder,
            config.lease_ttl,
        );
        let handle = PumpHandle::new(source.name(), Arc::clone(runtime));
        Self { source, intake, config, lease, handle, unanswered: 0 }
    }

    /// Returns a handle that queries and controls the pump while it runs.
    pub fn handle(&self) -> PumpHandle {
        self.handle.clone()
    }

    /// The pump's status.
    pub fn status(&self) -> PumpStatus {
        self.handle.status()
    }

    /// Moves waiting events, at most [`PumpConfig::max_batches`] batches; if
    /// [paused](PumpHandle::pause), at most one.
    ///
    /// The lease is renewed during the tick and held after it, but not renewed between two ticks.
    /// If it is lost, a waiting pull is dropped and the tick ends like that of a standby.
    ///
    /// # Errors
    /// Those of the source and of the store; `fenced` if another replica took the lease during an
    /// append; `internal` if the source returns events without a new cursor. Batches committed
    /// before stay, with their cursor, and the next tick continues there. The lease is released, so
    /// that another replica can try meanwhile.
    pub async fn tick(&mut self) -> Result<Tick> {
        let tick = self.tick_until(pin!(pending().fuse())).await;
        if tick.is_err() {
            self.release().await;
        }
        tick
    }

    /// Like [`tick`](Self::tick), but ends when `stop` resolves: a waiting pull is dropped, a
    /// pulled batch is committed.
    async fn tick_until(&mut self, stop: Stop<'_>) -> Result<Tick> {
        self.handle.attempted();
        let mut tick = Tick::default();
        let result = self.tick_inner(&mut tick, stop).await;
        self.report(&tick, result.as_ref().err());
        result.map(|()| tick)
    }

    async fn tick_inner(&mut self, tick: &mut Tick, mut stop: Stop<'_>) -> Result<()> {
        if !self.lease.hold().await? {
            tick.standby = true;
            return Ok(());
        }
        self.handle.set_state(PumpState::Running);
        let name = self.source.name().to_owned();
        let mut cursor = self.lease.keep_during(self.intake.store().cursor(&name)).await?;
        if !self.lease.is_held() {
            tick.standby = true;
            return Ok(());
        }
        for _ in 0..self.config.max_batches {
            let pull = self.source.pull(cursor.as_deref(), self.config.limits);
            let pull = match select(stop.as_mut(), pin!(self.lease.unless_lost(pull))).await {
                Either::Left(_) => break,
                Either::Right((pull, _)) => pull,
            };
            let Some(pull) = pull else {
                // Another replica may have moved the cursor.
                tick.standby = !self.lease.is_held();
                tick.more = true;
                break;
            };
            let pull = pull?;
            tick.more = pull.more;
            self.handle.lock().waiting = self.source.waiting();
            let Some(to) = pull.cursor.clone().filter(|to| Some(to) != cursor.as_ref()) else {
                // Without a new cursor, the next pull would return the same events.
                tick.more = false;
                if pull.events.is_empty() && pull.quarantine.is_empty() {
                    break;
                }
                let what = format!("the source {name} returned events without a new cursor");
                return Err(Error::new(ErrorKind::Internal, what));
            };
            let advance = CursorAdvance { source: name.clone(), from: cursor, to: to.clone() };
            self.commit(tick, pull, advance).await?;
            cursor = Some(to);
            if !tick.more || is_over(stop.as_mut()) || self.handle.is_paused() {
                break;
            }
            if !self.lease.hold().await? {
                tick.standby = true;
                break;
            }
        }
        if tick.taken.quarantined == 0 && self.lease.is_held() {
            let told = self.intake.tell_rest(&name, self.lease.fence());
            self.lease.keep_during(told).await?;
        }
        Ok(())
    }

    /// Appends a pull, in parts if it exceeds the limits. The cursor moves with the last: until
    /// then the source returns all of it again, and earlier parts become duplicates.
    async fn commit(&mut self, tick: &mut Tick, pull: Pull, advance: CursorAdvance) -> Result<()> {
        let now = self.intake.runtime().now();
        let times = pull.events.iter().filter_map(|pulled| pulled.event.at);
        let newest = times.filter(|at| at.problem(now).is_none()).max();
        let cursor_bytes = advance.to.len();
        let PullLimits { max_events, max_bytes } = self.config.limits;
        let bounds = PartBounds { events: max_events, items: max_events, bytes: max_bytes };
        let mut parts = Parts::new(pull.events, pull.quarantine, bounds);
        let mut advance = Some(advance);
        while advance.is_some() {
            let part = parts.next().unwrap_or_default();
            // A renewal that found another holder leaves no lease, and nothing is written without
            // one.
            let Some(fence) = self.lease.fence() else {
                let what = format!("the lease of {} was lost", self.source.name());
                return Err(Error::new(ErrorKind::Fenced, what));
            };
            let options = AppendOptions {
                cursor: if parts.is_empty() { advance.take() } else { None },
                fence: Some(fence),
                ..AppendOptions::default()
            };
            let prepare = self.intake.prepare(part.events, part.items);
            let batch = self.lease.keep_during(prepare).await;
            self.wait_for_directory(batch.asks_again())?;
            let append = self.intake.append(batch, options);
            let taken = self.lease.keep_during(append).await?;
            // Counted as soon as it is committed, because a later failure does not undo it.
            tick.taken += taken;
            self.handle.lock().counts.add(taken);
        }
        tick.skipped += pull.skipped;
        let mut status = self.handle.lock();
        status.counts.skipped += pull.skipped;
        status.counts.batches += 1;
        status.newest_event_at = status.newest_event_at.max(newest);
        status.cursor_bytes = cursor_bytes;
        Ok(())
    }

    /// Fails while the tenant directory does not answer, so that the source returns the events
    /// again and they keep their tenants. Gives up after a few batches, because sources do not keep
    /// events forever.
    fn wait_for_directory(&mut self, is_unanswered: bool) -> Result<()> {
        if !is_unanswered {
            self.unanswered = 0;
            return Ok(());
        }
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered > MAX_UNANSWERED {
            return Ok(());
        }
        let name = self.source.name();
        let what = format!(
            "the tenant directory does not answer, so the events of {name} wait: they will be pulled again"
        );
        Err(Error::new(ErrorKind::SourceUnavailable, what))
    }

    fn report(&self, tick: &Tick, error: Option<&Error>) {
        let source = self.source.name();
        if tick.taken != IngestSummary::default() || tick.skipped > 0 {
            tracing::info!(
                source,
                stored = tick.taken.stored,
                duplicates = tick.taken.duplicates,
                conflicts = tick.taken.conflicts,
                quarantined = tick.taken.quarantined,
                skipped = tick.skipped,
                late = tick.taken.late,
                undated = tick.taken.undated,
                unknown_outcomes = tick.taken.unknown_outcomes,
                unresolved = tick.taken.unresolved,
                "ingested"
            );
        }
        match error {
            None => self.handle.succeeded(tick),
            Some(error) => {
                let failures = self.handle.failed(error);
                tracing::warn!(
                    source,
                    code = error.code(),
                    %error,
                    cause = cause(error),
                    failures,
                    "ingest failed, will be tried again"
                );
            }
        }
    }

    /// Ticks until `shutdown` resolves: at once while more is waiting (unless it
    /// [rests](PumpConfig::rests)), otherwise after the interval; after failures with growing
    /// waits; as a standby at least every half of the lease's time to live. At the end, an
    /// unfinished pull is dropped, a pulled batch is committed, and the lease is released.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown.fuse());
        while !is_over(shutdown.as_mut()) {
            let wait = if self.handle.is_paused() {
                self.handle.set_state(PumpState::Paused);
                None
            } else {
                let tick = self.tick_until(shutdown.as_mut()).await;
                let was_held = self.lease.is_held();
                if tick.is_err() {
                    self.release().await;
                }
                Some(self.wait_after(&tick, was_held))
            };
            if is_over(shutdown.as_mut()) {
                break;
            }
            self.rest(wait, shutdown.as_mut()).await;
        }
        self.release().await;
        self.handle.set_state(PumpState::Stopped);
    }

    /// Releases the lease, so that another pump need not wait for it to lapse.
    pub async fn release(&mut self) {
        self.lease.release().await;
    }

    fn wait_after(&self, tick: &Result<Tick>, was_held: bool) -> Duration {
        let standby = self.config.lease_ttl / 2;
        match tick {
            Ok(tick) if tick.standby => self.config.interval.min(standby),
            Ok(tick) if tick.more && !self.config.rests => Duration::ZERO,
            Ok(_) => self.config.interval,
            Err(_) if was_held => self.backoff(),
            // Another replica's lease may lapse meanwhile.
            Err(_) => self.backoff().min(standby),
        }
    }

    /// Waits, without limit if `wait` is `None`, and renews the lease meanwhile. Returns early if
    /// the handle was used, the lease was lost or `stop` resolves.
    async fn rest(&mut self, wait: Option<Duration>, stop: Stop<'_>) {
        let Some(called) = self.handle.listen() else { return };
        let timer = match wait {
            Some(wait) => self.intake.runtime().sleep(wait),
            None => pending().boxed(),
        };
        select(select(stop, timer), select(called, pin!(self.lease.keep()))).await;
        // The next step sees all requests made until now.
        self.handle.heard();
    }

    /// Doubles with every consecutive failure, with jitter over the upper half so that replicas
    /// don't retry at the same time.
    fn backoff(&self) -> Duration {
        let failures = self.handle.lock().failures;
        let base = self.config.interval.max(Duration::from_millis(100));
        let full = base
            .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)))
            .min(self.config.max_backoff.max(base));
        let mut random = [0; 4];
        self.intake.runtime().fill_random(&mut random);
        let jitter = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
        full.mul_f64(0.5 + jitter / 2.0)
    }
}

/// The causes of an error, which its own text leaves out: a refused connection, an untrusted
/// certificate.
fn cause(error: &Error) -> Option<String> {
    let causes = successors(error.source(), |cause| (*cause).source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(": "))
}

/// Reason for which a tick ended.
type Stop<'a> = Pin<&'a mut (dyn FusedFuture<Output = ()> + Send + 'a)>;

/// Whether the future has resolved, without waiting for it.
fn is_over(mut future: Stop<'_>) -> bool {
    future.is_terminated() || future.as_mut().now_or_never().is_some()
}
