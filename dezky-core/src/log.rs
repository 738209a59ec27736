//! What platform code calls: recording that never fails.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{Either, select};
use futures_util::lock::Mutex as AsyncMutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::canonical_ip;
use crate::source::QuarantineItem;
use crate::spool::{Peeked, Pushed};
use crate::store::{AppendOptions, Appended, Receipt, ReceiptStatus};
use crate::{
    AuditStore, Error, ErrorKind, Field, NewEvent, Result, Runtime, SealedEvent, Spool, Timestamp,
};

/// The most events of one append of a batch, a drain or a relay.
const BATCH_EVENTS: usize = 500;
/// What `record` itself may move out of the spool, and how long it may take.
const INLINE_EVENTS: usize = 64;
const INLINE_TIMEOUT: Duration = Duration::from_millis(250);
/// The wait after the first failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

const ACTION_BYTES: usize = 128;
const SOURCE_BYTES: usize = 64;
/// What remains of a source's parts in a repaired one, beside 16 digits of its digest.
const SYSTEM_BYTES: usize = 30;
const INSTANCE_BYTES: usize = 16;
/// How much of a value that was replaced is kept.
const HEAD_BYTES: usize = 128;
const INVALID: &str = "invalid";

/// How a log's spool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Events that wait for the store.
    pub pending: usize,
    /// Bytes that were found damaged and set aside since it was opened.
    pub damaged_bytes: u64,
}

/// The audit log as platform code uses it: [`record`](Self::record) takes an event
/// and never fails.
///
/// Share it by `Arc`. With a [`Spool`] an event that the store can't take now is
/// kept on the local disk, and later events queue behind it until
/// [`run_spool`](Self::run_spool), [`drain_spool`](Self::drain_spool) or a later
/// `record` has moved them into the log. So the events of one caller, each recorded
/// after the answer for the one before, stand in the log in that order, whatever the
/// store did meanwhile, and each of them once.
///
/// Values that break a bound of the contract don't cost the event. `record`
/// replaces them:
///
/// | field | what becomes of it |
/// |---|---|
/// | actorEmail, actorId, resourceId, resourceName | [cut to their bounds](NewEvent::cut_to_bounds) |
/// | action | ASCII letters in lower case, any other character that is not allowed becomes `_`, empty words go, the rest is cut to 128 bytes; `invalid.action` if no letter or digit remains |
/// | source | what is not allowed becomes `_`, the rest is shortened and gets the digest of the original behind it, so that it is nobody else's name; `invalid-…` if it is empty |
/// | externalId | too long: `sha256:` and the digest of the original, which still tells duplicates; empty: absent |
/// | tenantSlug, partnerSlug, resourceType | absent |
///
/// Except for the cuts, which are noted as always, the metadata keeps
/// `_dezky.invalid.<field> = {bytes, sha256, head}` of the original, `head` being
/// its first 128 bytes.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// use dezky_core::store::MemoryAuditStore;
/// use dezky_core::{Actor, AuditLog, NewEvent, RecordOutcome, Spool, SpoolConfig, rt::TokioRuntime};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.spool");
/// let runtime = Arc::new(TokioRuntime);
/// let store = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// let spool = Spool::open(SpoolConfig::new(path), runtime.clone()).await?;
/// let log = AuditLog::new(store, runtime).with_spool(spool);
///
/// let event = NewEvent {
///     tenant_slug: Some("acme".into()),
///     ..NewEvent::new("tenant.suspended", Actor::user("u-7"))
/// };
/// let recorded = log.record(event).await;
/// assert_eq!(recorded.outcome, RecordOutcome::Appended { seq: 0 });
/// assert_eq!(log.counts().appended, 1);
///
/// // Beside it, for as long as the process lives:
/// let shutdown = std::future::ready(());
/// log.run_spool(shutdown).await;
/// # Ok(())
/// # }
/// ```
pub struct AuditLog {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    spool: Option<Spool>,
    store_timeout: Duration,
    /// Held by the one who moves events out of the spool.
    draining: AsyncMutex<()>,
    backoff: Mutex<Backoff>,
    recovered: Event,
    counters: Counters,
}

/// How long the store is left alone after failures.
#[derive(Default)]
struct Backoff {
    failures: u32,
    until: Option<Timestamp>,
}

#[derive(Default)]
struct Counters {
    appended: AtomicU64,
    duplicates: AtomicU64,
    conflicts: AtomicU64,
    spooled: AtomicU64,
    lost: AtomicU64,
    repaired: AtomicU64,
    quarantined: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// What became of a recorded event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// The event's id. Of a [duplicate](RecordOutcome::Duplicate) the id of the
    /// one that is in the log.
    pub id: Uuid,
    /// What became of it.
    pub outcome: RecordOutcome,
}

/// See [`Recorded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It is in the log.
    Appended {
        /// Its place.
        seq: u64,
    },
    /// It was in the log already. One that says something else there is a
    /// duplicate too, and counted among the conflicts; the first one stays.
    Duplicate {
        /// The place of the one that is there.
        seq: u64,
    },
    /// It is in the spool, on the disk, and goes to the log from there.
    Spooled,
    /// It is nowhere: neither the store nor a spool took it. An error was logged.
    Lost,
}

/// What became of the events recorded since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// New in the log, out of the spool too.
    pub appended: u64,
    /// In the log already, out of the spool too.
    pub duplicates: u64,
    /// Of these, those that say something else than the one that is there.
    pub conflicts: u64,
    /// Put into the spool. They are counted as appended or duplicate as well when
    /// they leave it.
    pub spooled: u64,
    /// Lost: taken by neither the store nor a spool, or damaged in the spool.
    pub lost: u64,
    /// Brought to normal form because a value broke a bound.
    pub repaired: u64,
    /// Refused by the store when they left the spool, and put into the quarantine.
    pub quarantined: u64,
}

/// What a drain moved out of the spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Events that are new in the log.
    pub appended: usize,
    /// Events that were there already.
    pub duplicates: usize,
    /// Events that the store refuses; they are in the quarantine.
    pub quarantined: usize,
    /// Records that could not be read back; see [`Spool`].
    pub damaged: usize,
    /// How many events still wait.
    pub left: usize,
}

impl Drained {
    fn records(&self) -> usize {
        self.appended + self.duplicates + self.quarantined + self.damaged
    }

    fn take_in(&mut self, other: Self) {
        self.appended += other.appended;
        self.duplicates += other.duplicates;
        self.quarantined += other.quarantined;
        self.damaged += other.damaged;
    }
}

impl AuditLog {
    /// How long a handler waits in [`relay`](Self::relay) unless it knows better: 1 s.
    pub const RELAY_WAIT: Duration = Duration::from_secs(1);

    /// Records into `store`. Without a [spool](Self::with_spool) an event is lost
    /// when the store doesn't take it.
    pub fn new(store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        Self {
            store,
            runtime,
            spool: None,
            store_timeout: Duration::from_secs(5),
            draining: AsyncMutex::new(()),
            backoff: Mutex::default(),
            recovered: Event::new(),
            counters: Counters::default(),
        }
    }

    /// Keeps events in `spool` while the store doesn't take them. What is in it
    /// already comes first.
    #[must_use]
    pub fn with_spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// How long the store may take for an append, 5 s unless set. Then the event
    /// goes to the spool; if the append comes to its end after all, the one out of
    /// the spool is a duplicate.
    #[must_use]
    pub fn with_store_timeout(mut self, timeout: Duration) -> Self {
        self.store_timeout = timeout;
        self
    }

    /// Where events go.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.store
    }

    /// How the spool stands; `None` without one. The spool itself stays the
    /// log's own: whoever discards from it would lose events.
    pub fn spool_status(&self) -> Option<SpoolStatus> {
        let spool = self.spool.as_ref()?;
        Some(SpoolStatus { pending: spool.pending(), damaged_bytes: spool.damaged_bytes() })
    }

    /// What became of the events recorded since the start.
    pub fn counts(&self) -> RecordCounts {
        let c = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RecordCounts {
            appended: get(&c.appended),
            duplicates: get(&c.duplicates),
            conflicts: get(&c.conflicts),
            spooled: get(&c.spooled),
            lost: get(&c.lost),
            repaired: get(&c.repaired),
            quarantined: get(&c.quarantined),
        }
    }

    /// Records an event: in the log if the store takes it now, else in the spool.
    ///
    /// The id, receivedAt and the salt are fixed when the future is first polled,
    /// `seq` when the event goes into the log. Never an error: values that break a
    /// bound are replaced as the type describes, and [`RecordOutcome::Lost`] is
    /// logged as an error and counted.
    ///
    /// While the spool is not empty the event queues in it, and the call may move a
    /// few events on into the log, for a quarter of a second at most. Else it waits
    /// for the store for the store timeout, and twice as long if the spool is full
    /// but the store works. With a spool it does not wait for a store that has just
    /// failed.
    ///
    /// Cancel-safe: if the future is dropped the event is in the log or the spool, or
    /// it is nowhere; it is never there twice. Recording it again under the same `id`,
    /// or the same `externalId`, is idempotent.
    pub async fn record(&self, event: NewEvent) -> Recorded {
        let event = self.seal(event);
        self.place(std::slice::from_ref(&event)).await[0]
    }

    /// Records events in their order, each as [`record`](Self::record) does, in
    /// batches: much cheaper than one by one. The answers are in the same order.
    ///
    /// The batch is not atomic: if the store fails on the way, the first ones are in
    /// the log and the others in the spool.
    pub async fn record_all(&self, events: Vec<NewEvent>) -> Vec<Recorded> {
        self.record_sealed(events.into_iter().map(|event| self.seal(event)).collect()).await
    }

    /// Records events that are sealed already, as [`record_all`](Self::record_all)
    /// does. One that breaks a bound, which [`seal`](Self::seal) excludes, ends in
    /// the quarantine by way of the spool; without a spool it is lost.
    pub async fn record_sealed(&self, events: Vec<SealedEvent>) -> Vec<Recorded> {
        let mut recorded = Vec::with_capacity(events.len());
        for batch in events.chunks(BATCH_EVENTS) {
            recorded.extend(self.place(batch).await);
        }
        recorded
    }

    /// Replaces values that break a bound, as the type describes, and seals: the
    /// result is always valid. For events that are staged in a transaction of the
    /// caller's; [`record`](Self::record) seals by itself.
    pub fn seal(&self, mut event: NewEvent) -> SealedEvent {
        if repair(&mut event) {
            add(&self.counters.repaired, 1);
        }
        event.seal(&*self.runtime)
    }

    /// Moves what was staged in the outbox into the log and waits for that, at most
    /// `max_wait`, so that a mutation that has committed is on the timeline.
    ///
    /// Says whether the outbox was emptied. If not, nothing is lost: a later relay
    /// moves the rest. Idempotent and cancel-safe.
    pub async fn relay(&self, max_wait: Duration) -> bool {
        let work = async {
            loop {
                match self.store.relay(BATCH_EVENTS).await {
                    Ok(relayed) if relayed.more => {}
                    Ok(_) => return true,
                    Err(error) => {
                        tracing::warn!(code = error.code(), "the outbox could not be relayed");
                        return false;
                    }
                }
            }
        };
        self.within(max_wait, work).await.unwrap_or(false)
    }

    /// Moves at most `max_events` out of the spool into the log, oldest first.
    ///
    /// Idempotent: an event that is in the log already is only removed from the
    /// spool. An event that the store refuses as invalid goes to its quarantine, so
    /// that it does not hold up the others. Cancel-safe: what was not moved stays.
    ///
    /// # Errors
    /// Those of [`AuditStore::append`], `store_unavailable` after the store timeout,
    /// `io` from the spool. What was moved before it remains so.
    pub async fn drain_spool(&self, max_events: usize) -> Result<Drained> {
        let mut drained = Drained::default();
        let Some(spool) = &self.spool else { return Ok(drained) };
        let _turn = self.draining.lock().await;
        while spool.pending() > 0 && drained.records() < max_events {
            let most = BATCH_EVENTS.min(max_events - drained.records());
            let batch = self.drain_batch(spool, most, self.store_timeout).await?;
            drained.take_in(batch);
            if batch.records() == 0 {
                break;
            }
        }
        drained.left = spool.pending();
        Ok(drained)
    }

    /// Keeps the spool empty until `shutdown` resolves: waits for events in it and
    /// moves them into the log; after a failure it tries again after 0.5 s, then ever
    /// later, up to 30 s. Without a spool it only waits.
    ///
    /// A store that fails and records that go to the spool don't end it. Dropping
    /// the future is as good as `shutdown`: what was not moved stays in the spool.
    pub async fn run_spool(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        let Some(spool) = &self.spool else { return shutdown.await };
        loop {
            let step = pin!(self.spool_step(spool));
            if let Either::Left(_) = select(shutdown.as_mut(), step).await {
                return;
            }
        }
    }

    /// Waits for something to do, for the end of a wait, or moves a batch.
    async fn spool_step(&self, spool: &Spool) {
        // Before the looks, so that nothing happens unheard in between.
        let (pushed, recovered) = (spool.pushed(), self.recovered.listen());
        if spool.pending() == 0 {
            return pushed.await;
        }
        let wait = self.backoff_left();
        if !wait.is_zero() {
            select(self.runtime.sleep(wait), recovered).await;
            return;
        }
        let _turn = self.draining.lock().await;
        // A failure is logged, and makes the next step wait.
        let _ = self.drain_batch(spool, BATCH_EVENTS, self.store_timeout).await;
    }

    /// Puts a batch where it can be put.
    async fn place(&self, events: &[SealedEvent]) -> Vec<Recorded> {
        let mut failure = None;
        if self.spool.as_ref().is_none_or(|spool| spool.pending() == 0) {
            match self.append_new(events).await {
                Ok(recorded) => return recorded,
                // One of them is invalid: it must not decide about the others.
                Err(error) if error.kind() == ErrorKind::EventInvalid && events.len() > 1 => {
                    let mut recorded = Vec::with_capacity(events.len());
                    for event in events {
                        recorded.extend(Box::pin(self.place(std::slice::from_ref(event))).await);
                    }
                    return recorded;
                }
                Err(error) => failure = Some(error),
            }
        }
        let Some(spool) = &self.spool else {
            return self.lose(events, failure.as_ref());
        };
        let Pushed { kept, refused } = spool.push_some(events).await;
        let (kept, rest) = events.split_at(kept);
        let mut recorded = self.spooled(kept);
        if rest.is_empty() {
            self.nudge(spool).await;
        } else {
            recorded.extend(self.insist(spool, rest, refused.as_ref()).await);
        }
        recorded
    }

    /// What the spool did not take, for which it must be emptied first: a store that
    /// works loses no event because of a full or broken spool.
    async fn insist(
        &self,
        spool: &Spool,
        events: &[SealedEvent],
        failure: Option<&Error>,
    ) -> Vec<Recorded> {
        if !self.backoff_left().is_zero() {
            return self.lose(events, failure);
        }
        let empty = async {
            let _turn = self.draining.lock().await;
            while spool.pending() > 0 && self.backoff_left().is_zero() {
                let batch = self.drain_batch(spool, BATCH_EVENTS, self.store_timeout).await;
                if batch.is_ok_and(|batch| batch.records() == 0) {
                    break;
                }
            }
        };
        // Whether it came to its end or not, there may be room.
        let _ = self.within(self.store_timeout, empty).await;
        if spool.pending() == 0
            && self.backoff_left().is_zero()
            && let Ok(recorded) = self.append_new(events).await
        {
            return recorded;
        }
        let Pushed { kept, refused } = spool.push_some(events).await;
        let (kept, rest) = events.split_at(kept);
        let mut recorded = self.spooled(kept);
        recorded.extend(self.lose(rest, refused.as_ref()));
        recorded
    }

    /// Moves a few events on if nobody does and the store is not known to be down.
    async fn nudge(&self, spool: &Spool) {
        if self.backoff_left().is_zero()
            && let Some(_turn) = self.draining.try_lock()
        {
            let timeout = INLINE_TIMEOUT.min(self.store_timeout);
            // A failure is logged, and the events are where they are.
            let _ = self.drain_batch(spool, INLINE_EVENTS, timeout).await;
        }
    }

    fn spooled(&self, events: &[SealedEvent]) -> Vec<Recorded> {
        add(&self.counters.spooled, events.len());
        answers(events, RecordOutcome::Spooled)
    }

    fn lose(&self, events: &[SealedEvent], failure: Option<&Error>) -> Vec<Recorded> {
        add(&self.counters.lost, events.len());
        for event in events.iter().map(SealedEvent::event) {
            tracing::error!(
                id = %event.id,
                action = event.action,
                source = event.source,
                code = failure.map(Error::code),
                "an audit event is lost"
            );
        }
        answers(events, RecordOutcome::Lost)
    }

    /// Appends events that are not in the spool.
    async fn append_new(&self, events: &[SealedEvent]) -> Result<Vec<Recorded>> {
        let options = AppendOptions::default();
        match self.append(events.to_vec(), options, self.store_timeout).await {
            Ok(appended) => {
                self.succeeded();
                self.count(&appended);
                Ok(appended.receipts.iter().map(recorded).collect())
            }
            Err(error) => {
                if error.kind() != ErrorKind::EventInvalid {
                    self.failed(&error);
                }
                Err(error)
            }
        }
    }

    /// Moves a batch out of the spool, for the one whose turn it is.
    async fn drain_batch(
        &self,
        spool: &Spool,
        max_events: usize,
        timeout: Duration,
    ) -> Result<Drained> {
        let moved = self.move_batch(spool, max_events, timeout).await;
        match &moved {
            Ok(_) => self.succeeded(),
            Err(error) => self.failed(error),
        }
        moved
    }

    async fn move_batch(
        &self,
        spool: &Spool,
        max_events: usize,
        timeout: Duration,
    ) -> Result<Drained> {
        let Peeked { events, damaged } = spool.look(max_events).await?;
        add(&self.counters.lost, damaged);
        let mut drained = Drained { damaged, ..Drained::default() };
        let count = events.len();
        if count == 0 {
            return Ok(drained);
        }
        match self.append(events, AppendOptions::default(), timeout).await {
            Ok(appended) => {
                drained.take_in(self.count(&appended));
                self.discard(spool, count).await;
            }
            Err(error) if error.kind() == ErrorKind::EventInvalid => {
                for _ in 0..count {
                    drained.take_in(self.move_one(spool, timeout).await?);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(drained)
    }

    /// Moves the oldest event into the log or, if the store refuses it, into the
    /// quarantine.
    async fn move_one(&self, spool: &Spool, timeout: Duration) -> Result<Drained> {
        let Peeked { mut events, damaged } = spool.look(1).await?;
        add(&self.counters.lost, damaged);
        let mut drained = Drained { damaged, ..Drained::default() };
        let Some(event) = events.pop() else { return Ok(drained) };
        match self.append(vec![event.clone()], AppendOptions::default(), timeout).await {
            Ok(appended) => drained.take_in(self.count(&appended)),
            Err(error) if error.kind() == ErrorKind::EventInvalid => {
                let options = AppendOptions {
                    quarantine: vec![refused(&event, &error)],
                    ..AppendOptions::default()
                };
                self.append(Vec::new(), options, timeout).await?;
                tracing::error!(
                    id = %event.event().id,
                    action = event.event().action,
                    source = event.event().source,
                    code = error.code(),
                    "the store refuses an event of the spool: it is in the quarantine"
                );
                add(&self.counters.quarantined, 1);
                drained.quarantined += 1;
            }
            Err(error) => return Err(error),
        }
        self.discard(spool, 1).await;
        Ok(drained)
    }

    /// Takes events that are in the log out of the spool.
    async fn discard(&self, spool: &Spool, count: usize) {
        if let Err(error) = spool.discard(count).await {
            // They are in the log; at worst they come again, as duplicates.
            tracing::warn!(code = error.code(), %error, "the drained spool could not be cut");
        }
    }

    async fn append(
        &self,
        events: Vec<SealedEvent>,
        options: AppendOptions,
        timeout: Duration,
    ) -> Result<Appended> {
        let count = events.len();
        match self.within(timeout, self.store.append(events, options)).await {
            Some(Ok(appended)) if appended.receipts.len() != count => Err(Error::new(
                ErrorKind::Internal,
                "the store gave another number of receipts than there were events",
            )),
            Some(answer) => answer,
            None => Err(Error::new(
                ErrorKind::StoreUnavailable,
                format!("the store did not answer within {} ms", timeout.as_millis()),
            )),
        }
    }

    /// The outcome of `work`, unless it takes longer than `timeout`.
    async fn within<T>(&self, timeout: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        // Most work is done before a timer is worth its while.
        if let Poll::Ready(done) = futures_util::poll!(work.as_mut()) {
            return Some(done);
        }
        match select(work, self.runtime.sleep(timeout)).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    fn count(&self, appended: &Appended) -> Drained {
        let new = appended.appended();
        let duplicates = appended.duplicates();
        add(&self.counters.appended, new);
        add(&self.counters.duplicates, duplicates);
        add(&self.counters.conflicts, appended.conflicts());
        Drained { appended: new, duplicates, ..Drained::default() }
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the store is still left alone.
    fn backoff_left(&self) -> Duration {
        self.backoff().left(self.runtime.now())
    }

    fn succeeded(&self) {
        let before = std::mem::take(&mut *self.backoff());
        if before.failures > 0 {
            tracing::info!("the audit store takes events again");
            self.recovered.notify(usize::MAX);
        }
    }

    fn failed(&self, error: &Error) {
        let mut random = [0; 4];
        self.runtime.fill_random(&mut random);
        let now = self.runtime.now();
        let mut backoff = self.backoff();
        // Of many that fail together one counts.
        if backoff.left(now).is_zero() {
            let wait = backoff.fail(now, u32::from_le_bytes(random));
            drop(backoff);
            tracing::warn!(
                code = error.code(),
                %error,
                pending = self.spool.as_ref().map(Spool::pending),
                retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "audit events could not be moved into the store"
            );
        }
    }
}

impl Backoff {
    fn left(&self, now: Timestamp) -> Duration {
        let left = self.until.map_or(Duration::ZERO, |until| until.saturating_since(now));
        // Unless the clock was set back.
        if left > MAX_BACKOFF { Duration::ZERO } else { left }
    }

    /// Waits twice as long as before; of that, half is left to chance, so that
    /// several processes don't come back together.
    fn fail(&mut self, now: Timestamp, random: u32) -> Duration {
        let longest = MIN_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(MAX_BACKOFF);
        let wait = longest.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now.saturating_add(wait));
        wait
    }
}

fn answers(events: &[SealedEvent], outcome: RecordOutcome) -> Vec<Recorded> {
    events.iter().map(|event| Recorded { id: event.event().id, outcome }).collect()
}

fn recorded(receipt: &Receipt) -> Recorded {
    let seq = receipt.seq;
    let outcome = match receipt.status {
        ReceiptStatus::Appended => RecordOutcome::Appended { seq },
        ReceiptStatus::Duplicate | ReceiptStatus::Conflict => RecordOutcome::Duplicate { seq },
    };
    Recorded { id: receipt.id, outcome }
}

/// A spooled event that the store refuses, without its salt.
fn refused(sealed: &SealedEvent, error: &Error) -> QuarantineItem {
    let event = sealed.event();
    let mut source = event.source.clone();
    source.truncate(source.floor_char_boundary(SOURCE_BYTES));
    QuarantineItem {
        source,
        key: format!("spool:{}", event.id),
        reason: error.code().to_owned(),
        detail: error.to_string(),
        raw: serde_json::to_vec(event).unwrap_or_default(),
        at: event.received_at,
    }
}

/// Brings values that break a bound to normal form, as [`AuditLog`] describes. Says
/// whether there were any.
fn repair(event: &mut NewEvent) -> bool {
    let cut = event.metadata.annotation("cut").cloned();
    event.cut_to_bounds();
    let cut = cut.as_ref() != event.metadata.annotation("cut");
    let odd_ip = event.actor.ip.as_deref().is_some_and(|ip| canonical_ip(ip).is_none());
    let mut notes = Map::new();
    if let Some(action) = repaired_action(&event.action) {
        note(&mut notes, Field::Action, &event.action);
        event.action = action;
    }
    if let Some(source) = repaired_source(&event.source) {
        note(&mut notes, Field::Source, &event.source);
        event.source = source;
    }
    for (field, value) in [
        (Field::ExternalId, &mut event.external_id),
        (Field::TenantSlug, &mut event.tenant_slug),
        (Field::PartnerSlug, &mut event.partner_slug),
        (Field::ResourceType, &mut event.resource_type),
    ] {
        let Some(text) = value.as_deref() else { continue };
        // The bound is of the normal form, in which U+0000 takes three bytes.
        let bytes = text.len() + 2 * text.matches('\0').count();
        let max = field.max_bytes().unwrap_or(usize::MAX);
        if bytes > max || (text.is_empty() && field != Field::ResourceType) {
            note(&mut notes, field, text);
            *value = (field == Field::ExternalId && !text.is_empty())
                .then(|| format!("sha256:{}", digest(text)));
        }
    }
    if notes.is_empty() {
        return cut || odd_ip;
    }
    // Those of the caller, of an event that was repaired before, stay.
    if let Some(Value::Object(before)) = event.metadata.annotation(INVALID) {
        for (field, value) in before {
            notes.entry(field.clone()).or_insert_with(|| value.clone());
        }
    }
    event.metadata.annotate(INVALID, notes);
    true
}

fn note(notes: &mut Map<String, Value>, field: Field, original: &str) {
    let head = &original[..original.floor_char_boundary(HEAD_BYTES)];
    let value = json!({ "bytes": original.len(), "sha256": digest(original), "head": head });
    notes.insert(field.name().to_owned(), value);
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// What an ill-formed action becomes; `None` for one that is well-formed.
fn repaired_action(action: &str) -> Option<String> {
    let cleaned: String = action
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_' | '-' | '.') => c,
            _ => '_',
        })
        .collect();
    let mut words = cleaned.split('.').filter(|word| !word.is_empty()).fold(
        String::with_capacity(cleaned.len()),
        |mut words, word| {
            if !words.is_empty() {
                words.push('.');
            }
            words.push_str(word);
            words
        },
    );
    words.truncate(ACTION_BYTES);
    words.truncate(words.trim_end_matches('.').len());
    if words == action && !words.is_empty() {
        return None;
    }
    if !words.bytes().any(|b| b.is_ascii_alphanumeric()) {
        "invalid.action".clone_into(&mut words);
    }
    Some(words)
}

/// What an ill-formed source becomes; `None` for one that is well-formed.
fn repaired_source(source: &str) -> Option<String> {
    fn word(text: &str) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        text.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
    }
    fn start(text: &str, max: usize) -> &str {
        &text[..text.len().min(max)]
    }

    let (system, instance) = match source.split_once(':') {
        Some((system, instance)) if !system.is_empty() => (word(system), Some(word(instance))),
        _ => (word(source), None),
    };
    let words = [Some(&system), instance.as_ref()];
    let cleaned: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
    if source.len() <= SOURCE_BYTES
        && cleaned.iter().all(|word| !word.is_empty())
        && cleaned.join(":") == source
    {
        return None;
    }
    let system = if system.is_empty() { INVALID } else { start(&system, SYSTEM_BYTES) };
    let digest = &digest(source)[..16];
    Some(match instance {
        Some(instance) => format!("{system}:{}-{digest}", start(&instance, INSTANCE_BYTES)),
        None => format!("{system}-{digest}"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::path::PathBuf;
    use std::sync::atomic::AtomicUsize;

    use async_trait::async_trait;
    use futures_util::future::{join, pending};
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::rt::TokioRuntime;
    use crate::store::{
        Capabilities, Lease, ListPage, ListQuery, LogState, MemoryAuditStore, QuarantinedItem,
        Relayed, ScannedRow, StoredRow,
    };
    use crate::testkit::{ManualRuntime, named_event};
    use crate::{Actor, AuditEvent, NewMetadata, SpoolConfig};

    /// How a [`Moody`] store takes appends.
    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Up,
        /// Fails at once.
        Down,
        /// Never answers, and appends nothing.
        Hanging,
        /// Appends, but never answers.
        Mute,
    }

    /// A store in memory with moods. It refuses events whose resource is `poison`.
    struct Moody {
        inner: MemoryAuditStore,
        mood: Mutex<Mood>,
        appends: AtomicUsize,
    }

    impl Moody {
        fn new(runtime: Arc<dyn Runtime>) -> Arc<Self> {
            Arc::new(Self {
                inner: MemoryAuditStore::open(runtime),
                mood: Mutex::new(Mood::Up),
                appends: AtomicUsize::new(0),
            })
        }

        fn set(&self, mood: Mood) {
            *self.mood.lock().unwrap() = mood;
        }

        fn appends(&self) -> usize {
            self.appends.load(Ordering::SeqCst)
        }

        /// What is in the log, in its order.
        async fn events(&self) -> Vec<AuditEvent> {
            let rows = self.inner.scan(0, 10_000).await.unwrap();
            let event = |row: ScannedRow| row.map(|StoredRow { stored, .. }| stored.event).unwrap();
            rows.into_iter().map(event).collect()
        }

        async fn names(&self) -> Vec<String> {
            self.events().await.into_iter().map(|event| event.resource_id.unwrap()).collect()
        }
    }

    #[async_trait]
    impl AuditStore for Moody {
        fn capabilities(&self) -> Capabilities {
            self.inner.capabilities()
        }
        async fn append(
            &self,
            events: Vec<SealedEvent>,
            options: AppendOptions,
        ) -> Result<Appended> {
            self.appends.fetch_add(1, Ordering::SeqCst);
            let mood = *self.mood.lock().unwrap();
            let poison = |e: &SealedEvent| e.event().resource_id.as_deref() == Some("poison");
            match mood {
                Mood::Down => Err(Error::new(ErrorKind::StoreUnavailable, "down")),
                Mood::Hanging => pending().await,
                Mood::Mute => {
                    self.inner.append(events, options).await?;
                    pending().await
                }
                Mood::Up if events.iter().any(poison) => {
                    Err(Error::new(ErrorKind::EventInvalid, "event 0: resourceId must be mild"))
                }
                Mood::Up => self.inner.append(events, options).await,
            }
        }
        async fn list(&self, query: &ListQuery) -> Result<ListPage> {
            self.inner.list(query).await
        }
        async fn state(&self) -> Result<LogState> {
            self.inner.state().await
        }
        async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
            self.inner.scan(from_seq, max_rows).await
        }
        async fn changed(&self, next_seq: u64) {
            self.inner.changed(next_seq).await;
        }
        async fn cursor(&self, source: &str) -> Result<Option<String>> {
            self.inner.cursor(source).await
        }
        async fn acquire_lease(
            &self,
            name: &str,
            holder: &str,
            ttl: Duration,
        ) -> Result<Option<Lease>> {
            self.inner.acquire_lease(name, holder, ttl).await
        }
        async fn release_lease(&self, lease: &Lease) -> Result<()> {
            self.inner.release_lease(lease).await
        }
        async fn quarantined(&self, after: i64, max: usize) -> Result<Vec<QuarantinedItem>> {
            self.inner.quarantined(after, max).await
        }
        async fn stage(&self, events: Vec<SealedEvent>) -> Result<()> {
            self.inner.stage(events).await
        }
        async fn relay(&self, max_events: usize) -> Result<Relayed> {
            let mood = *self.mood.lock().unwrap();
            match mood {
                Mood::Up => self.inner.relay(max_events).await,
                Mood::Down => Err(Error::new(ErrorKind::StoreUnavailable, "down")),
                Mood::Hanging | Mood::Mute => pending().await,
            }
        }
    }

    struct World {
        folder: TempDir,
        runtime: Arc<ManualRuntime>,
        store: Arc<Moody>,
    }

    impl World {
        fn new() -> Self {
            let runtime = Arc::new(ManualRuntime::new(3));
            let store = Moody::new(runtime.clone());
            Self { folder: TempDir::new().unwrap(), runtime, store }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("audit.spool")
        }

        fn log_without_spool(&self) -> AuditLog {
            AuditLog::new(self.store.clone(), self.runtime.clone())
        }

        async fn log_with(&self, config: SpoolConfig) -> AuditLog {
            let spool = Spool::open(config, self.runtime.clone()).await.unwrap();
            self.log_without_spool().with_spool(spool)
        }

        async fn log(&self) -> AuditLog {
            self.log_with(SpoolConfig::new(self.path())).await
        }

        /// Beyond any back-off.
        fn later(&self) {
            self.runtime.advance(MAX_BACKOFF);
        }

        /// Waits until so many sleep, then moves the time.
        async fn advance_when_sleeping(&self, sleepers: usize, by: Duration) {
            while self.runtime.sleeping() < sleepers {
                tokio::task::yield_now().await;
            }
            self.runtime.advance(by);
        }
    }

    fn named(name: impl std::fmt::Display) -> NewEvent {
        named_event(&name.to_string())
    }

    fn outcomes(recorded: &[Recorded]) -> Vec<RecordOutcome> {
        recorded.iter().map(|r| r.outcome).collect()
    }

    use RecordOutcome::{Appended as In, Duplicate as Again, Lost, Spooled};

    #[tokio::test]
    async fn into_the_log() {
        let world = World::new();
        let log = world.log().await;
        let event = NewEvent { id: Some(Uuid::from_u128(7)), ..named("a") };
        let first = log.record(event.clone()).await;
        assert_eq!(first, Recorded { id: Uuid::from_u128(7), outcome: In { seq: 0 } });
        let conflict = NewEvent { action: "tenant.deleted".into(), ..event.clone() };
        assert_eq!(log.record(event).await, Recorded { outcome: Again { seq: 0 }, ..first });
        assert_eq!(log.record(conflict).await.outcome, Again { seq: 0 });
        let outside = |name| NewEvent { external_id: Some("x".into()), ..named(name) };
        let recorded = log.record_all(vec![outside("b"), named("c"), outside("b")]).await;
        assert_eq!(outcomes(&recorded), [In { seq: 1 }, In { seq: 2 }, Again { seq: 1 }]);
        // The id of the one that is there.
        assert_eq!(recorded[2].id, recorded[0].id);
        let counts = RecordCounts { appended: 3, duplicates: 3, conflicts: 1, ..log.counts() };
        assert_eq!(log.counts(), counts);
        assert_eq!((counts.spooled, counts.lost, counts.repaired), (0, 0, 0));
        assert_eq!(world.runtime.sleeping(), 0);
        assert_eq!(log.record_all(Vec::new()).await, []);
    }

    #[tokio::test]
    async fn behind_those_that_wait() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        assert_eq!(log.record(named(0)).await.outcome, Spooled);
        let entry = world.runtime.now();
        // The store is not asked again before its time.
        world.store.set(Mood::Up);
        assert_eq!(log.record(named(1)).await.outcome, Spooled);
        assert_eq!(world.store.appends(), 1);
        assert_eq!(world.store.names().await, [] as [&str; 0]);
        world.later();
        // Then what waits comes first, and the next goes straight in.
        assert_eq!(log.record(named(2)).await.outcome, Spooled);
        assert_eq!(world.store.names().await, ["0", "1", "2"]);
        assert_eq!(log.record(named(3)).await.outcome, In { seq: 3 });
        let received: Vec<_> = world.store.events().await.iter().map(|e| e.received_at).collect();
        assert_eq!(received[..2], [entry, entry]);
        assert_eq!(
            log.counts(),
            RecordCounts { appended: 4, spooled: 3, ..RecordCounts::default() }
        );
        assert_eq!(log.spool_status().unwrap().pending, 0);
    }

    #[tokio::test]
    async fn little_by_little() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        let count = INLINE_EVENTS * 2;
        let recorded = log.record_all((0..count).map(named).collect()).await;
        assert!(recorded.iter().all(|r| r.outcome == Spooled));
        world.later();
        world.store.set(Mood::Up);
        // One record moves a bounded part, and queues behind the rest.
        assert_eq!(log.record(named(count)).await.outcome, Spooled);
        assert_eq!(log.spool_status().unwrap().pending, count + 1 - INLINE_EVENTS);
        let drained = log.drain_spool(10).await.unwrap();
        assert_eq!((drained.appended, drained.left), (10, count + 1 - INLINE_EVENTS - 10));
        let drained = log.drain_spool(usize::MAX).await.unwrap();
        assert_eq!((drained.duplicates, drained.left), (0, 0));
        let expected: Vec<_> = (0..=count).map(|n| n.to_string()).collect();
        assert_eq!(world.store.names().await, expected);
        assert_eq!(log.drain_spool(10).await.unwrap(), Drained::default());
    }

    #[tokio::test]
    async fn a_failing_drain_waits_and_keeps() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        log.record(named(0)).await;
        let error = log.drain_spool(10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
        assert_eq!(log.spool_status().unwrap().pending, 1);
        // Ever longer, and never longer than the longest wait.
        let mut backoff = Backoff::default();
        let now = world.runtime.now();
        let waits: Vec<_> = (0..20).map(|_| backoff.fail(now, u32::MAX).as_millis()).collect();
        assert_eq!(waits[..7], [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
        assert_eq!(waits[19], 30_000);
        assert_eq!(backoff.fail(now, 0).as_millis(), 15_000);
        assert_eq!(backoff.left(now), Duration::from_secs(15));
        let set_back = Timestamp::from_millis(now.as_millis() - 3_600_000).unwrap();
        assert_eq!(backoff.left(set_back), Duration::ZERO);
    }

    #[tokio::test]
    async fn after_a_restart() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        let before = log.record_all(vec![named(0), named(1)]).await;
        // Killed: another process finds what lies on the disk.
        let other = world.folder.path().join("other.spool");
        std::fs::copy(world.path(), &other).unwrap();
        let log = world.log_with(SpoolConfig::new(&other)).await;
        world.store.set(Mood::Up);
        assert_eq!(log.record(named(2)).await.outcome, Spooled);
        assert_eq!(world.store.names().await, ["0", "1", "2"]);
        let ids: Vec<_> = world.store.events().await.iter().map(|e| e.id).collect();
        assert_eq!(ids[..2], [before[0].id, before[1].id]);
    }

    #[tokio::test]
    async fn killed_between_append_and_discard() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        log.record_all((0..5).map(named).collect()).await;
        let before = std::fs::read(world.path()).unwrap();
        world.store.set(Mood::Up);
        log.drain_spool(3).await.unwrap();
        drop(log);
        // What the disk holds if nothing came after the append of the first three.
        std::fs::write(world.path(), &before).unwrap();
        let log = world.log().await;
        let drained = log.drain_spool(100).await.unwrap();
        assert_eq!((drained.appended, drained.duplicates), (2, 3));
        assert_eq!(world.store.names().await, ["0", "1", "2", "3", "4"]);
        assert_eq!(log.counts().conflicts, 0);
    }

    #[tokio::test]
    async fn dropped_between_append_and_discard() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        log.record_all((0..3).map(named).collect()).await;
        world.store.set(Mood::Mute);
        let mut drain = Box::pin(log.drain_spool(100));
        assert!(futures_util::poll!(&mut drain).is_pending());
        drop(drain);
        assert_eq!(log.spool_status().unwrap().pending, 3);
        assert_eq!(world.store.names().await, ["0", "1", "2"]);
        world.store.set(Mood::Up);
        let drained = log.drain_spool(100).await.unwrap();
        assert_eq!((drained.appended, drained.duplicates, drained.left), (0, 3, 0));
        assert_eq!(world.store.names().await, ["0", "1", "2"]);
    }

    #[tokio::test]
    async fn a_store_that_hangs() {
        for (mood, late) in [(Mood::Hanging, 0), (Mood::Mute, 1)] {
            let world = World::new();
            let log = world.log().await.with_store_timeout(Duration::from_secs(2));
            world.store.set(mood);
            let before = world.runtime.now();
            let (recorded, ()) =
                join(log.record(named(0)), world.advance_when_sleeping(1, Duration::from_secs(2)))
                    .await;
            assert_eq!(recorded.outcome, Spooled);
            assert_eq!(log.record(named(1)).await.outcome, Spooled);
            assert_eq!(world.runtime.now().saturating_since(before), Duration::from_secs(2));
            assert_eq!(world.store.names().await.len(), late);
            world.store.set(Mood::Up);
            let drained = log.drain_spool(10).await.unwrap();
            assert_eq!((drained.appended, drained.duplicates), (2 - late, late));
            assert_eq!(world.store.names().await, ["0", "1"]);
            assert_eq!(log.counts().conflicts, 0);
        }
    }

    #[tokio::test]
    async fn lost_and_said_so() {
        let world = World::new();
        let log = world.log_without_spool();
        world.store.set(Mood::Down);
        assert_eq!(log.record(named(0)).await.outcome, Lost);
        assert_eq!(outcomes(&log.record_all(vec![named(1), named(2)]).await), [Lost, Lost]);
        assert_eq!(log.counts(), RecordCounts { lost: 3, ..RecordCounts::default() });
        // No queue, no order to keep: the next one is tried.
        world.store.set(Mood::Up);
        assert_eq!(log.record(named(3)).await.outcome, In { seq: 0 });
        assert_eq!(log.drain_spool(10).await.unwrap(), Drained::default());
    }

    #[tokio::test]
    async fn a_full_spool() {
        let world = World::new();
        let config = SpoolConfig { max_events: 3, ..SpoolConfig::new(world.path()) };
        let log = world.log_with(config).await;
        world.store.set(Mood::Down);
        let recorded = log.record_all((0..5).map(named).collect()).await;
        assert_eq!(outcomes(&recorded), [Spooled, Spooled, Spooled, Lost, Lost]);
        assert_eq!(log.counts().lost, 2);
        assert_eq!(log.record(named(5)).await.outcome, Lost);
        // A store that works makes room.
        world.later();
        world.store.set(Mood::Up);
        assert_eq!(log.record(named(6)).await.outcome, In { seq: 3 });
        assert_eq!(world.store.names().await, ["0", "1", "2", "6"]);
        assert_eq!(log.counts().lost, 3);
        // One that fails again does not, and is waited for once.
        world.store.set(Mood::Down);
        log.record_all((7..10).map(named).collect()).await;
        world.later();
        world.store.set(Mood::Hanging);
        let (recorded, ()) =
            join(log.record(named(10)), world.advance_when_sleeping(1, log.store_timeout)).await;
        assert_eq!(recorded.outcome, Lost);
        assert_eq!(log.spool_status().unwrap().pending, 3);
    }

    #[tokio::test]
    async fn a_poisoned_event_does_not_block() {
        let world = World::new();
        let log = world.log().await;
        world.store.set(Mood::Down);
        let names = ["0", "poison", "1", "poison", "2"];
        let recorded = log.record_all(names.map(named).into()).await;
        world.store.set(Mood::Up);
        let drained = log.drain_spool(100).await.unwrap();
        let expected = Drained { appended: 3, quarantined: 2, ..Drained::default() };
        assert_eq!(drained, expected);
        assert_eq!(world.store.names().await, ["0", "1", "2"]);
        let items = world.store.quarantined(0, 10).await.unwrap();
        assert_eq!(items.len(), 2);
        let item = &items[0].item;
        assert_eq!(item.key, format!("spool:{}", recorded[1].id));
        assert_eq!((item.source.as_str(), item.reason.as_str()), ("platform-api", "event_invalid"));
        assert!(item.detail.contains("resourceId must be mild"));
        let raw = String::from_utf8(item.raw.clone()).unwrap();
        assert!(raw.contains("poison") && !raw.contains("salt"), "{raw}");
        // Recorded while the store works, it takes the same way and takes none along.
        let recorded = log.record_all(["3", "poison", "4"].map(named).into()).await;
        assert_eq!(outcomes(&recorded), [In { seq: 3 }, Spooled, In { seq: 4 }]);
        assert_eq!(log.counts().quarantined, 3);
        assert_eq!(log.counts().lost, 0);
        // With nowhere to go it is lost, alone.
        let log = world.log_without_spool();
        let recorded = log.record_all(["5", "poison", "6"].map(named).into()).await;
        assert_eq!(outcomes(&recorded), [In { seq: 5 }, Lost, In { seq: 6 }]);
    }

    #[tokio::test]
    async fn the_worker() {
        let world = World::new();
        let log = world.log().await;
        let (stop, stopped) = futures_util::future::abortable(pending::<()>());
        let worker = log.run_spool(async {
            let _ = stop.await;
        });
        let work = async {
            // Idle, it waits for events alone.
            tokio::task::yield_now().await;
            assert_eq!(world.runtime.sleeping(), 0);
            world.store.set(Mood::Down);
            log.record(named(0)).await;
            world.advance_when_sleeping(1, MAX_BACKOFF).await;
            while world.store.appends() < 2 {
                tokio::task::yield_now().await;
            }
            log.record(named(1)).await;
            world.store.set(Mood::Up);
            world.advance_when_sleeping(1, MAX_BACKOFF).await;
            while log.spool_status().unwrap().pending > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(log.record(named(2)).await.outcome, In { seq: 2 });
            // A record that finds the store well ends the worker's wait.
            world.store.set(Mood::Down);
            log.record_all((3..200).map(named).collect()).await;
            while world.runtime.sleeping() < 1 {
                tokio::task::yield_now().await;
            }
            world.store.set(Mood::Up);
            log.drain_spool(1).await.unwrap();
            while log.spool_status().unwrap().pending > 0 {
                tokio::task::yield_now().await;
            }
            stopped.abort();
        };
        join(worker, work).await;
        let expected: Vec<_> = (0..200).map(|n| n.to_string()).collect();
        assert_eq!(world.store.names().await, expected);
        world.log_without_spool().run_spool(async {}).await;
    }

    #[tokio::test]
    async fn relaying() {
        let world = World::new();
        let log = world.log_without_spool();
        assert!(log.relay(AuditLog::RELAY_WAIT).await);
        let sealed = (0..=(BATCH_EVENTS * 2)).map(|n| log.seal(named(n))).collect();
        world.store.stage(sealed).await.unwrap();
        world.store.set(Mood::Down);
        assert!(!log.relay(AuditLog::RELAY_WAIT).await);
        world.store.set(Mood::Hanging);
        let (current, ()) = join(
            log.relay(AuditLog::RELAY_WAIT),
            world.advance_when_sleeping(1, AuditLog::RELAY_WAIT),
        )
        .await;
        assert!(!current);
        world.store.set(Mood::Up);
        assert!(log.relay(AuditLog::RELAY_WAIT).await);
        assert_eq!(world.store.names().await.len(), BATCH_EVENTS * 2 + 1);
    }

    /// Many recorders, one of them hasty, and a store that comes and goes: each
    /// one's events are in the log once and in their order.
    #[test]
    fn order_across_outages() {
        const RECORDERS: usize = 6;
        const EVENTS: usize = 60;
        const MOODS: [Mood; 5] = [Mood::Up, Mood::Down, Mood::Mute, Mood::Up, Mood::Hanging];
        let folder = TempDir::new().unwrap();
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
        let executor =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
        let executor = executor.unwrap();
        let store = Moody::new(runtime.clone());
        let config = SpoolConfig::new(folder.path().join("audit.spool"));
        let spool = executor.block_on(Spool::open(config, runtime.clone())).unwrap();
        let log = AuditLog::new(store.clone(), runtime)
            .with_spool(spool)
            .with_store_timeout(Duration::from_millis(10));
        let done = AtomicUsize::new(0);
        let record = async |recorder: usize| {
            for n in 0..EVENTS {
                let recorded = log.record(named(format_args!("{recorder}:{n}"))).await;
                assert_ne!(recorded.outcome, Lost);
            }
            done.fetch_add(1, Ordering::SeqCst);
        };
        let change_moods = async {
            let mut n = 0;
            while done.load(Ordering::SeqCst) < RECORDERS {
                n += 1;
                store.set(MOODS[n % MOODS.len()]);
                // Else the waits would make this test a long one.
                *log.backoff() = Backoff::default();
                let mut hasty = Box::pin(log.record(named(format_args!("hasty:{n}"))));
                for _ in 0..n % 7 {
                    if futures_util::poll!(&mut hasty).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(hasty);
                // In turn with the records that drain.
                let _ = log.drain_spool(5).await;
            }
        };
        std::thread::scope(|scope| {
            for recorder in 0..RECORDERS {
                let (executor, record) = (&executor, &record);
                scope.spawn(move || executor.block_on(record(recorder)));
            }
            executor.block_on(change_moods);
        });
        store.set(Mood::Up);
        executor.block_on(async {
            while log.spool_status().unwrap().pending > 0 {
                let _ = log.drain_spool(usize::MAX).await;
            }
        });
        let (mut next, mut hasty) = (HashMap::new(), HashSet::new());
        let names = executor.block_on(store.names());
        for name in &names {
            let (recorder, n) = name.split_once(':').unwrap();
            if recorder == "hasty" {
                // It got no answers, so it has no order either.
                assert!(hasty.insert(n), "{name} is there twice");
                continue;
            }
            let next: &mut usize = next.entry(recorder).or_default();
            assert_eq!(n, next.to_string(), "of recorder {recorder}");
            *next += 1;
        }
        assert_eq!(next.into_values().collect::<Vec<_>>(), [EVENTS; RECORDERS]);
        let counts = log.counts();
        assert_eq!((counts.lost, counts.conflicts, counts.quarantined), (0, 0, 0));
        assert!(counts.spooled > 0);
    }

    #[test]
    fn repaired_values() {
        let noted = |text: &str, head: &str| json!({ "bytes": text.len(), "sha256": digest(text), "head": head });
        let long = "é".repeat(300);
        let mut event = NewEvent {
            tenant_slug: Some(String::new()),
            partner_slug: Some("p".repeat(64)),
            resource_type: Some("\0".repeat(22)),
            external_id: Some(long.clone()),
            source: "authentik:eu 2".into(),
            metadata: NewMetadata::default().with_annotation(INVALID, json!({ "x": 1 })),
            ..NewEvent::new("Tenant Suspended!", Actor::system())
        };
        assert!(repair(&mut event));
        assert_eq!(event.action, "tenant_suspended_");
        let digest16 = &digest("authentik:eu 2")[..16];
        assert_eq!(event.source, format!("authentik:eu_2-{digest16}"));
        assert_eq!(event.external_id, Some(format!("sha256:{}", digest(&long))));
        assert_eq!(
            (&event.tenant_slug, &event.partner_slug, &event.resource_type),
            (&None, &None, &None)
        );
        assert_eq!(
            event.metadata.annotation(INVALID),
            Some(&json!({
                "action": noted("Tenant Suspended!", "Tenant Suspended!"),
                "source": noted("authentik:eu 2", "authentik:eu 2"),
                "externalId": noted(&long, &"é".repeat(64)),
                "tenantSlug": noted("", ""),
                "partnerSlug": noted(&"p".repeat(64), &"p".repeat(64)),
                "resourceType": noted(&"\0".repeat(22), &"\0".repeat(22)),
                "x": 1,
            }))
        );
        // What is in normal form by now stays.
        let again = event.clone();
        assert!(!repair(&mut event));
        assert_eq!(event, again);
        // An empty type is a value, and what fits is left alone.
        let mut fine = NewEvent {
            resource_type: Some(String::new()),
            external_id: Some("x".repeat(512)),
            tenant_slug: Some("t".repeat(63)),
            ..NewEvent::new("_.-", Actor::user("u").with_ip("::1"))
        };
        let before = fine.clone();
        assert!(!repair(&mut fine));
        assert_eq!(fine, before);
        // A cut and an address that can't be read count as well.
        for actor in [Actor::user("u".repeat(513)), Actor::system().with_ip("localhost")] {
            assert!(repair(&mut NewEvent::new("a.b", actor)));
        }
    }

    #[test]
    fn repaired_names() {
        for (action, repaired) in [
            ("", "invalid.action"),
            ("...", "invalid.action"),
            ("é", "invalid.action"),
            (" - ", "invalid.action"),
            ("a..b.", "a.b"),
            (".User Löschen", "user_l_schen"),
        ] {
            assert_eq!(repaired_action(action).as_deref(), Some(repaired), "{action}");
        }
        let long = format!("{}.b", "a".repeat(127));
        assert_eq!(repaired_action(&long), Some("a".repeat(127)));
        for (source, repaired) in [
            ("", "invalid-"),
            (":", "_-"),
            (":x", "_x-"),
            ("ocis:", "ocis:-"),
            ("a:b:c", "a:b_c-"),
            ("ö", "_-"),
        ] {
            let expected = format!("{repaired}{}", &digest(source)[..16]);
            assert_eq!(repaired_source(source), Some(expected), "{source}");
        }
        // Long ones that begin alike stay apart.
        let (a, b) = (format!("{}a", "s".repeat(64)), format!("{}b", "s".repeat(64)));
        assert_ne!(repaired_source(&a), repaired_source(&b));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[a-z.:]{0,8}",
            "[ -~]{0,80}",
            (prop_oneof![Just("x"), Just("é"), Just("\0"), Just("a.")], 0..700usize)
                .prop_map(|(unit, count)| unit.repeat(count)),
        ]
    }

    fn any_event() -> impl Strategy<Value = NewEvent> {
        let maybe = || prop::option::of(text());
        (
            (text(), text(), maybe(), maybe(), maybe()),
            (maybe(), maybe(), maybe(), maybe(), maybe(), maybe()),
            (maybe(), any::<i64>()),
        )
            .prop_map(|((action, source, id, email, ip), texts, (metadata, at))| {
                let (resource_type, resource_id, resource_name, tenant, partner, external) = texts;
                NewEvent {
                    at: Some(Timestamp::from_millis_clamped(at)),
                    resource_type,
                    resource_id,
                    resource_name,
                    tenant_slug: tenant,
                    partner_slug: partner,
                    source,
                    external_id: external,
                    metadata: metadata.map(NewMetadata::from_source).unwrap_or_default(),
                    ..NewEvent::new(action, Actor { id, email, ip, ..Actor::system() })
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes is recorded, and comes back from a spool as it was.
        #[test]
        fn anything_is_recorded(events in prop::collection::vec(any_event(), 1..4)) {
            let world = World::new();
            let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
            executor.block_on(async {
                let log = world.log_without_spool();
                for event in events {
                    let sealed = log.seal(event.clone());
                    prop_assert_eq!(sealed.validate(), Ok(()));
                    let read = SealedEvent::from_json(&sealed.to_json()).unwrap();
                    prop_assert_eq!(&read, &sealed);
                    let outcome = log.record(event).await.outcome;
                    prop_assert!(matches!(outcome, In { .. } | Again { .. }), "{outcome:?}");
                }
                Ok(())
            })?;
        }

        /// Well-formed names are left alone, others become well-formed ones.
        #[test]
        fn names(action in text(), source in text()) {
            let mut event = NewEvent { source: source.clone(), ..NewEvent::new(&*action, Actor::system()) };
            let valid = event.clone().seal(&ManualRuntime::new(1)).validate().is_ok();
            prop_assert_eq!(!repair(&mut event), valid);
            prop_assert_eq!(event.action == action && event.source == source, valid);
            prop_assert!(event.clone().seal(&ManualRuntime::new(1)).validate().is_ok());
            prop_assert!(!repair(&mut event));
        }
    }
}
