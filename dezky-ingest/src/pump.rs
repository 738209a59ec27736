//! Moves a source's events into the log, batch by batch, each together with the
//! cursor advance.

use std::error::Error as _;
use std::future::Future;
use std::iter::successors;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dezky_core::source::{IngestSource, PullLimits};
use dezky_core::store::{AppendOptions, CursorAdvance, Lease};
use dezky_core::{Error, ErrorKind, Result, Timestamp};
use futures_util::FutureExt;
use futures_util::future::{Either, FusedFuture, pending, select};

use crate::intake::{Intake, Taken};

/// The most events of a batch: with as many items for the quarantine, and the
/// record of each, they are within what a store takes at once.
const MAX_EVENTS: usize = 4_000;

/// How a pump works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PumpConfig {
    /// The wait between ticks, 5 s unless set.
    pub interval: Duration,
    /// The size of a batch; at most 4,000 events, more are asked for as 4,000.
    pub limits: PullLimits,
    /// The most batches of one tick, 100 unless set. The tick ends there, never
    /// skipping ahead; [`Pump::run`] begins the next one at once while more is
    /// waiting, unless it [rests](Self::rests).
    pub max_batches: usize,
    /// Whether [`Pump::run`] waits for the interval also when more is waiting, so
    /// that a long backlog does not press on the system that it comes from; no
    /// unless set.
    pub rests: bool,
    /// How long the lease holds without renewal, 15 s unless set. Of several
    /// replicas one pumps; another takes over when the lease has lapsed.
    pub lease_ttl: Duration,
    /// Who this replica is; drawn at random unless set.
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

/// What one tick did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tick {
    /// What became of the events.
    pub taken: Taken,
    /// Items passed over on purpose.
    pub skipped: u64,
    /// Whether more was waiting when the tick ended.
    pub more: bool,
    /// Whether another replica holds the lease, so that nothing was done.
    pub standby: bool,
}

/// How a pump is doing.
#[derive(Debug, Clone, Default)]
pub struct PumpStatus {
    /// The last tick that came to its end.
    pub last_success: Option<Timestamp>,
    /// The last error since then: its code.
    pub last_error: Option<&'static str>,
    /// Failures in a row.
    pub failures: u32,
    /// Whether another replica holds the lease.
    pub standby: bool,
    /// What became of the events since the start.
    pub taken: Taken,
    /// Items passed over on purpose since the start.
    pub skipped: u64,
}

/// A worker that pulls from one source. It is a value: call [`tick`](Self::tick)
/// yourself, or let [`run`](Self::run) do so.
pub struct Pump {
    source: Box<dyn IngestSource>,
    intake: Intake,
    config: PumpConfig,
    holder: String,
    lease: Option<Lease>,
    status: Arc<Mutex<PumpStatus>>,
}

impl Pump {
    /// A pump from `source` into `intake`.
    pub fn new(source: Box<dyn IngestSource>, intake: Intake, mut config: PumpConfig) -> Self {
        config.limits.max_events = config.limits.max_events.min(MAX_EVENTS);
        let holder = config.holder.clone().unwrap_or_else(|| {
            let mut random = [0; 8];
            intake.runtime().fill_random(&mut random);
            format!("pump-{}", hex::encode(random))
        });
        Self { source, intake, config, holder, lease: None, status: Arc::default() }
    }

    /// How the pump is doing, to be asked while it runs.
    pub fn status(&self) -> Arc<Mutex<PumpStatus>> {
        Arc::clone(&self.status)
    }

    /// Moves what is waiting, at most [`PumpConfig::max_batches`] batches.
    ///
    /// # Errors
    /// Those of the source and of the store; `internal` if the source brings
    /// something without saying where to go on. What was committed before stays,
    /// the cursor with it, and the next tick goes on there. The lease is given
    /// back, so that another replica may try meanwhile.
    pub async fn tick(&mut self) -> Result<Tick> {
        self.tick_until(pin!(pending().fuse())).await
    }

    /// A tick that ends when `stop` resolves: a pull that waits is dropped, a batch
    /// that was pulled is committed.
    async fn tick_until(&mut self, stop: Stop<'_>) -> Result<Tick> {
        let mut tick = Tick::default();
        let result = self.tick_inner(&mut tick, stop).await;
        self.report(&tick, result.as_ref().err());
        if result.is_err() {
            self.release().await;
        }
        result.map(|()| tick)
    }

    async fn tick_inner(&mut self, tick: &mut Tick, mut stop: Stop<'_>) -> Result<()> {
        if !self.hold_lease().await? {
            tick.standby = true;
            return Ok(());
        }
        let name = self.source.name().to_owned();
        let mut cursor = self.intake.store().cursor(&name).await?;
        for _ in 0..self.config.max_batches {
            let pull = self.source.pull(cursor.as_deref(), self.config.limits);
            let pull = match select(stop.as_mut(), pull).await {
                Either::Left(_) => break,
                Either::Right((pull, _)) => pull?,
            };
            let Some(to) = pull.cursor.filter(|to| Some(to) != cursor.as_ref()) else {
                // There is nowhere to go on, so asking again at once would go round
                // in a circle.
                tick.more = false;
                if pull.events.is_empty() && pull.quarantine.is_empty() {
                    break;
                }
                let what = format!("the source {name} brought events without a new cursor");
                return Err(Error::new(ErrorKind::Internal, what));
            };
            let advance = CursorAdvance { source: name.clone(), from: cursor, to: to.clone() };
            let options = AppendOptions {
                cursor: Some(advance),
                fence: self.lease.as_ref().map(Lease::fence),
                ..AppendOptions::default()
            };
            let taken = self.intake.take(pull.events, pull.quarantine, options).await?;
            self.committed(tick, taken, pull.skipped);
            tick.more = pull.more;
            cursor = Some(to);
            if !tick.more || is_over(stop.as_mut()) {
                break;
            }
            if self.lease_is_half_gone() && !self.hold_lease().await? {
                break;
            }
        }
        Ok(())
    }

    /// Counts a batch as soon as it is committed: what fails later does not undo
    /// it.
    fn committed(&self, tick: &mut Tick, taken: Taken, skipped: u64) {
        tick.taken += taken;
        tick.skipped += skipped;
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.taken += taken;
        status.skipped += skipped;
    }

    /// Takes or renews the lease; says whether it is ours.
    async fn hold_lease(&mut self) -> Result<bool> {
        let name = format!("ingest:{}", self.source.name());
        self.lease =
            self.intake.store().acquire_lease(&name, &self.holder, self.config.lease_ttl).await?;
        Ok(self.lease.is_some())
    }

    /// By our clock, which may be off: the fence is what protects the log.
    fn lease_is_half_gone(&self) -> bool {
        let now = self.intake.runtime().now();
        self.lease
            .as_ref()
            .is_none_or(|l| l.expires_at.saturating_since(now) < self.config.lease_ttl / 2)
    }

    fn report(&self, tick: &Tick, error: Option<&Error>) {
        let source = self.source.name();
        if tick.taken != Taken::default() || tick.skipped > 0 {
            tracing::info!(
                source,
                stored = tick.taken.stored,
                duplicates = tick.taken.duplicates,
                conflicts = tick.taken.conflicts,
                quarantined = tick.taken.quarantined,
                skipped = tick.skipped,
                late = tick.taken.late,
                "ingested"
            );
        }
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = error else {
            status.last_success = Some(self.intake.runtime().now());
            status.last_error = None;
            status.failures = 0;
            status.standby = tick.standby;
            return;
        };
        status.last_error = Some(error.code());
        status.failures = status.failures.saturating_add(1);
        tracing::warn!(
            source,
            code = error.code(),
            %error,
            cause = cause(error),
            failures = status.failures,
            "ingest failed, will be tried again"
        );
    }

    /// Ticks until `shutdown` resolves: at once while more is waiting (unless it
    /// [rests](PumpConfig::rests)), else after the interval, after failures with
    /// growing waits. At the end a source that has not answered yet is not waited
    /// for, while a batch that it gave is committed; then the lease is given back.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()> + Send) {
        let runtime = Arc::clone(self.intake.runtime());
        let mut shutdown = pin!(shutdown.fuse());
        while !is_over(shutdown.as_mut()) {
            let tick = self.tick_until(shutdown.as_mut()).await;
            if is_over(shutdown.as_mut()) {
                break;
            }
            let wait = match &tick {
                Ok(tick) if tick.more && !self.config.rests => Duration::ZERO,
                Ok(_) => self.config.interval,
                Err(_) => self.backoff(),
            };
            match select(shutdown.as_mut(), runtime.sleep(wait)).await {
                Either::Left(_) => break,
                Either::Right(_) => {}
            }
        }
        self.release().await;
    }

    /// Gives the lease back, so that another pump need not wait for it to lapse.
    pub async fn release(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Err(error) = self.intake.store().release_lease(&lease).await
        {
            tracing::debug!(code = error.code(), "the lease was not given back and will lapse");
        }
    }

    /// Doubles with every failure in a row, with jitter over the upper half so
    /// that replicas don't come together.
    fn backoff(&self) -> Duration {
        let failures = self.status.lock().unwrap_or_else(PoisonError::into_inner).failures;
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

/// What lies below an error, which its text does not say: that a connection was
/// refused, that a certificate is not trusted.
fn cause(error: &Error) -> Option<String> {
    let causes = successors(error.source(), |cause| (*cause).source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(": "))
}

/// What a tick ends for.
type Stop<'a> = Pin<&'a mut (dyn FusedFuture<Output = ()> + Send + 'a)>;

/// Whether the future has resolved, without waiting for it.
fn is_over(mut future: Stop<'_>) -> bool {
    future.is_terminated() || future.as_mut().now_or_never().is_some()
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.quarantined += other.quarantined;
        self.new_quarantined += other.new_quarantined;
        self.late += other.late;
    }
}
