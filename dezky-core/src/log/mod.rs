//! The log for platform code: recording that never fails.

mod absence;
mod repair;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{Either, select};
use futures_util::lock::Mutex as AsyncMutex;
use uuid::Uuid;

use self::absence::{Absence, Patience};
use self::repair::repair;
use crate::source::{QuarantineItem, TenantHint};
use crate::spool::{Peeked, Pushed, SpoolRecord};
use crate::store::{AppendOptions, Appended, Receipt, ReceiptStatus};
use crate::{
    AuditStore, Error, ErrorKind, FoundTenant, NewEvent, Result, Runtime, SealedEvent, Spool,
    TenantDirectory, TenantFinder, Timestamp,
};

/// Maximum number of events per append when recording batches, draining or relaying.
const BATCH_EVENTS: usize = 500;
/// Maximum number of events that `record` itself moves out of the spool.
const INLINE_EVENTS: usize = 64;
/// Time limit for `record` to move events out of the spool.
const INLINE_TIMEOUT: Duration = Duration::from_millis(250);
/// The back-off after the first failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The status of a log's spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolStatus {
    /// The number of events and quarantine items that wait for the store.
    pub pending: usize,
    /// The number of damaged bytes set aside since the spool was opened.
    pub damaged_bytes: u64,
}

/// The audit log for platform code: [`record`](Self::record) accepts any event and never fails.
///
/// Share it in an `Arc`. With a [`Spool`], an event that the store can't accept is written to the
/// local disk, and later events queue behind it until [`run_spool`](Self::run_spool),
/// [`drain_spool`](Self::drain_spool) or a later `record` has moved them into the log. Hence, if a
/// caller awaits each `record` before the next, its events are in the log in that order and exactly
/// once, whatever happens to the store meanwhile.
///
/// An event with values out of bounds is not refused. `record` replaces the values:
///
/// | field | replacement |
/// |---|---|
/// | actorEmail, actorId, resourceId, resourceName | [truncated to their bounds](NewEvent::cut_to_bounds) |
/// | action | ASCII letters in lower case, other invalid characters become `_`, empty words are removed, the rest is truncated to 128 bytes; `invalid.action` if no letter or digit remains; `invalid.` is put before the reserved prefix `dezky.` |
/// | source | invalid characters become `_`, the rest is shortened and followed by a digest of the original, so that it differs from all other names; `invalid-…` if it is empty |
/// | externalId | if too long, `sha256:` and the digest of the original, which still identifies duplicates; if empty, absent |
/// | tenantSlug, partnerSlug, resourceType | absent |
/// | at | if more than [a day ahead](crate::MAX_AHEAD) or before 2000, the time of receipt, [noted](NewEvent::settle_time) in the metadata |
///
/// Truncated values are noted as usual. For the others, the metadata keeps
/// `_dezky.invalid.<field> = {bytes, sha256, head}` of the original, where `head` is its first 128
/// bytes.
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
/// // In its own task, until the process ends:
/// let shutdown = std::future::ready(());
/// log.run_spool(shutdown).await;
/// # Ok(())
/// # }
/// ```
pub struct AuditLog {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    directory: Option<Arc<dyn TenantDirectory>>,
    absence: Mutex<Absence>,
    spool: Option<Spool>,
    store_timeout: Duration,
    /// Held while moving events out of the spool.
    draining: AsyncMutex<()>,
    /// Maximum number of events in the next batch out of the spool.
    spool_batch: AtomicUsize,
    backoff: Mutex<Backoff>,
    recovered: Event,
    counters: Counters,
}

/// The time for which the store is not used after failures.
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
    unresolved: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// The result of recording an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// The event's id; for a [duplicate](RecordOutcome::Duplicate), that of the event in the log.
    pub id: Uuid,
    /// The outcome.
    pub outcome: RecordOutcome,
}

/// The outcome of recording an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The event is in the log.
    Appended {
        /// The event's position.
        seq: u64,
    },
    /// The log already had the event. If its content differs, the first one stays, and this one
    /// also counts as a conflict.
    Duplicate {
        /// The position of the event in the log.
        seq: u64,
    },
    /// The event is in the spool, on disk, from where it is moved into the log later.
    Spooled,
    /// The event is lost: neither the store nor a spool accepted it. An error was logged.
    Lost,
}

/// The outcome of [`AuditLog::append_or_spool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// The batch is in the log.
    Appended(Appended),
    /// The whole batch is in the spool, on disk, from where it is moved into the log later.
    Spooled,
}

/// Numbers of events since the log was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Events appended, directly or from the spool.
    pub appended: u64,
    /// Events that the log already had, whether they came directly or from the spool.
    pub duplicates: u64,
    /// Duplicates whose content differs from the event in the log.
    pub conflicts: u64,
    /// Events written to the spool. They also count as appended or duplicate when they leave it.
    pub spooled: u64,
    /// Events accepted by neither the store nor a spool, or damaged in the spool.
    pub lost: u64,
    /// Events brought to normal form because a value was out of bounds.
    pub repaired: u64,
    /// Spooled items moved into the quarantine, and spooled events that the store refused.
    pub quarantined: u64,
    /// Spooled events appended without a tenant, because the tenant directory did not answer then
    /// either: `_dezky.tenantBy` is `unresolved`.
    pub unresolved: u64,
}

/// The result of draining the spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// The number of events appended.
    pub appended: usize,
    /// The number of events that the log already had.
    pub duplicates: usize,
    /// The number of spooled items, and of events refused by the store, moved into the quarantine.
    pub quarantined: usize,
    /// The number of records that could not be read back; see [`Spool`].
    pub damaged: usize,
    /// The number of events and items that still wait.
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
    /// The default time for a handler to wait in [`relay`](Self::relay): 1 s.
    pub const RELAY_WAIT: Duration = Duration::from_secs(1);

    /// Records into `store`. Without a [spool](Self::with_spool), events that the store does not
    /// accept are lost.
    pub fn new(store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        Self {
            store,
            runtime,
            directory: None,
            absence: Mutex::default(),
            spool: None,
            store_timeout: Duration::from_secs(5),
            draining: AsyncMutex::new(()),
            spool_batch: AtomicUsize::new(BATCH_EVENTS),
            backoff: Mutex::default(),
            recovered: Event::new(),
            counters: Counters::default(),
        }
    }

    /// Writes events to `spool` while the store does not accept them. Records that are already in
    /// the spool come first.
    #[must_use]
    pub fn with_spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Asks `directory` for the tenants of [unresolved](SpoolRecord::Unresolved) events when they
    /// leave the spool.
    ///
    /// While the directory does not answer, these events and all records behind them wait. After 8
    /// consecutive failures (about a minute), or if the spool is full, they are appended without a
    /// tenant. So are later ones, while the directory is asked again every 30 s; after a minute
    /// without a question, events wait for it again. Failures while the store is unavailable too
    /// don't count.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<dyn TenantDirectory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Sets the time limit for an append, 5 s by default. After it, the event goes to the spool; if
    /// the append completes after all, the spooled event becomes a duplicate.
    #[must_use]
    pub fn with_store_timeout(mut self, timeout: Duration) -> Self {
        self.store_timeout = timeout;
        self
    }

    /// The store to which events are appended.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.store
    }

    /// The status of the spool; `None` without one. The spool itself is not accessible, because
    /// discarding records from it would lose events.
    pub fn spool_status(&self) -> Option<SpoolStatus> {
        let spool = self.spool.as_ref()?;
        Some(SpoolStatus { pending: spool.pending(), damaged_bytes: spool.damaged_bytes() })
    }

    /// The numbers of events since the log was opened.
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
            unresolved: get(&c.unresolved),
        }
    }

    /// Records an event: in the log if the store accepts it now, otherwise in the spool.
    ///
    /// The id, receivedAt and the salt are fixed when the future is first polled, `seq` when the
    /// event is appended. Never fails: values out of bounds are replaced as the type describes, and
    /// [`RecordOutcome::Lost`] is logged as an error and counted.
    ///
    /// While the spool is not empty, the event queues in it, and the call may move a few events on
    /// into the log, for at most a quarter of a second. Otherwise it waits for the store up to the
    /// store timeout, and up to twice as long if the spool is full but the store works. With a
    /// spool, it does not wait for a store that has just failed.
    ///
    /// Cancel-safe: if the future is dropped, the event is in the log, in the spool or not
    /// recorded, but never recorded twice. Recording it again with the same `id` or `externalId`
    /// is idempotent.
    pub async fn record(&self, event: NewEvent) -> Recorded {
        let event = self.seal(event);
        self.place(std::slice::from_ref(&event)).await[0]
    }

    /// Records events in their order, each as [`record`](Self::record) does, but in batches, which
    /// is much cheaper. The results are in the same order.
    ///
    /// Not atomic: if the store fails in between, the first events are in the log and the others in
    /// the spool.
    pub async fn record_all(&self, events: Vec<NewEvent>) -> Vec<Recorded> {
        self.record_sealed(events.into_iter().map(|event| self.seal(event)).collect()).await
    }

    /// Records sealed events as [`record_all`](Self::record_all) does. An event out of bounds,
    /// which [`seal`](Self::seal) never returns, ends up in the quarantine through the spool;
    /// without a spool it is lost.
    pub async fn record_sealed(&self, events: Vec<SealedEvent>) -> Vec<Recorded> {
        let mut recorded = Vec::with_capacity(events.len());
        for batch in events.chunks(BATCH_EVENTS) {
            recorded.extend(self.place(batch).await);
        }
        recorded
    }

    /// Stores a batch for a sender that waits for an answer: durably and as a whole, in the log if
    /// the store accepts it now, otherwise in the spool. Quarantine items out of bounds are
    /// [truncated](QuarantineItem::cut_to_bounds).
    ///
    /// As with [`record`](Self::record), earlier records of the spool come first, and a store that
    /// does not answer within the store timeout counts as unavailable. If that store has appended
    /// the batch after all, the spooled events become duplicates. Give events an external id, so
    /// that repeating a batch adds nothing, wherever the first one is by then.
    ///
    /// # Errors
    /// `event_invalid` and `too_large` if the batch is out of bounds; a retry does not help.
    /// `store_unavailable` if neither store nor spool accepts the batch, or the store's error if
    /// there is no spool: nothing was stored, or the outcome is unknown as with
    /// [`AuditStore::append`], and the sender should retry.
    pub async fn append_or_spool(
        &self,
        events: Vec<SealedEvent>,
        items: Vec<QuarantineItem>,
    ) -> Result<AppendOutcome> {
        let items = items.into_iter().map(SpoolRecord::Quarantine);
        self.append_or_spool_records(
            items.chain(events.into_iter().map(SpoolRecord::Event)).collect(),
        )
        .await
    }

    /// Like [`append_or_spool`](Self::append_or_spool), for records. With a spool and a
    /// [directory](Self::with_directory), a batch with an unresolved event always goes to the spool,
    /// so that the directory is asked again. The receipts are those of the events, in order.
    ///
    /// # Errors
    /// Those of [`append_or_spool`](Self::append_or_spool).
    pub async fn append_or_spool_records(
        &self,
        mut records: Vec<SpoolRecord>,
    ) -> Result<AppendOutcome> {
        for record in &mut records {
            if let SpoolRecord::Quarantine(item) = record {
                item.cut_to_bounds();
            }
        }
        let Some(spool) = &self.spool else {
            let appended = self.append_records(records).await?;
            self.count(&appended);
            return Ok(AppendOutcome::Appended(appended));
        };
        let asks_again = self.directory.is_some()
            && records.iter().any(|record| matches!(record, SpoolRecord::Unresolved(_)));
        if !asks_again && let Some(appended) = self.append_now(spool, &records).await? {
            return Ok(appended);
        }
        let mut pushed = spool.push_records(&records).await;
        let is_again = pushed.is_err() && self.make_room(spool).await;
        if is_again {
            pushed = spool.push_records(&records).await;
        }
        if let Err(error) = pushed {
            // Better without tenants than not at all.
            if (asks_again || is_again)
                && let Some(appended) = self.append_now(spool, &records).await?
            {
                return Ok(appended);
            }
            let what = "neither the store nor the spool accepts the batch: try again";
            tracing::error!(code = error.code(), %error, "{what}");
            return Err(Error::new(ErrorKind::StoreUnavailable, what).with_source(error));
        }
        self.nudge(spool).await;
        let is_item = |record: &&SpoolRecord| matches!(record, SpoolRecord::Quarantine(_));
        add(&self.counters.spooled, records.len() - records.iter().filter(is_item).count());
        Ok(AppendOutcome::Spooled)
    }

    /// Appends records if the spool is empty; `None` if it is not, or if the store is unavailable.
    async fn append_now(
        &self,
        spool: &Spool,
        records: &[SpoolRecord],
    ) -> Result<Option<AppendOutcome>> {
        if spool.pending() > 0 {
            return Ok(None);
        }
        match self.append_records(records.to_vec()).await {
            Ok(appended) => {
                self.succeeded();
                self.count(&appended);
                Ok(Some(AppendOutcome::Appended(appended)))
            }
            Err(error) if is_about_the_batch(&error) => Err(error),
            Err(error) => {
                self.failed(&error);
                Ok(None)
            }
        }
    }

    async fn append_records(&self, records: Vec<SpoolRecord>) -> Result<Appended> {
        let (mut events, mut quarantine) = (Vec::with_capacity(records.len()), Vec::new());
        for record in records {
            match record {
                SpoolRecord::Event(event) => events.push(event),
                SpoolRecord::Unresolved(unresolved) => events.push(unresolved.event),
                SpoolRecord::Quarantine(item) => quarantine.push(item),
            }
        }
        let options = AppendOptions { quarantine, ..AppendOptions::default() };
        self.append(events, options, self.store_timeout).await
    }

    /// Replaces values out of bounds, as the type describes, and seals: the result is always valid.
    /// For events that are staged in the caller's transaction; [`record`](Self::record) does this
    /// itself.
    pub fn seal(&self, mut event: NewEvent) -> SealedEvent {
        let is_repaired = repair(&mut event);
        if event.settle_time(self.runtime.now()) || is_repaired {
            add(&self.counters.repaired, 1);
        }
        event.seal(&*self.runtime)
    }

    /// Moves staged events from the outbox into the log, waiting at most `max_wait`, so that the
    /// timeline shows a committed mutation.
    ///
    /// Returns whether the outbox was emptied. If not, a later relay moves the rest. Idempotent and
    /// cancel-safe.
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

    /// Moves at most `max_events` records from the spool into the log, oldest first.
    ///
    /// Idempotent: an event that the log already has is only removed from the spool. An event that
    /// the store refuses as invalid goes to the quarantine, with an `ingest.quarantined` event, so
    /// that it does not block the others. Cancel-safe: records that were not moved stay.
    ///
    /// # Errors
    /// Those of [`AuditStore::append`], `store_unavailable` after the store timeout, `io` from the
    /// spool. Records moved before the error stay in the log.
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

    /// Keeps the spool empty until `shutdown` resolves: waits for records and moves them into the
    /// log. Retries after a failure with back-off, from 0.5 s up to 30 s. Without a spool it only
    /// waits.
    ///
    /// No failure of the store or the spool ends it. Dropping the future is equivalent to
    /// `shutdown`: records that were not moved stay in the spool.
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

    /// Waits for records or for the end of the back-off, or moves a batch.
    async fn spool_step(&self, spool: &Spool) {
        // Listens before checking, so that nothing is missed in between.
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

    /// Appends or spools a batch.
    async fn place(&self, events: &[SealedEvent]) -> Vec<Recorded> {
        let mut failure = None;
        if self.spool.as_ref().is_none_or(|spool| spool.pending() == 0) {
            match self.append_new(events).await {
                Ok(recorded) => return recorded,
                // Retry each event alone, so that an invalid one does not affect the others.
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
        let Pushed { pushed, refused } = spool.push_some(events).await;
        let (pushed, rest) = events.split_at(pushed);
        let mut recorded = self.spooled(pushed);
        if rest.is_empty() {
            self.nudge(spool).await;
        } else {
            recorded.extend(self.insist(spool, rest, refused.as_ref()).await);
        }
        recorded
    }

    /// Records events that the spool refused, by draining it first: while the store works, a full
    /// or broken spool loses no event.
    async fn insist(
        &self,
        spool: &Spool,
        events: &[SealedEvent],
        failure: Option<&Error>,
    ) -> Vec<Recorded> {
        if !self.make_room(spool).await {
            return self.lose(events, failure);
        }
        if spool.pending() == 0
            && self.backoff_left().is_zero()
            && let Ok(recorded) = self.append_new(events).await
        {
            return recorded;
        }
        let Pushed { pushed, refused } = spool.push_some(events).await;
        let (pushed, rest) = events.split_at(pushed);
        let mut recorded = self.spooled(pushed);
        recorded.extend(self.lose(rest, refused.as_ref()));
        recorded
    }

    /// Drains the spool for at most the store timeout. Returns `false` if the store is known to be
    /// down; otherwise there may be room, even if the spool was not emptied.
    async fn make_room(&self, spool: &Spool) -> bool {
        self.give_directory_up();
        if !self.backoff_left().is_zero() {
            return false;
        }
        let empty = async {
            let _turn = self.draining.lock().await;
            while spool.pending() > 0 && self.backoff_left().is_zero() {
                let batch = self.drain_batch(spool, BATCH_EVENTS, self.store_timeout).await;
                if batch.is_ok_and(|batch| batch.records() == 0) {
                    break;
                }
                self.give_directory_up();
            }
        };
        let _ = self.within(self.store_timeout, empty).await;
        true
    }

    /// Stops waiting for a directory that is unavailable while the store is not: room for new
    /// events is worth more than the tenants of old ones.
    fn give_directory_up(&self) {
        if self.absence().give_up(self.runtime.now()) {
            self.backoff().until = None;
        }
    }

    /// Moves a few events into the log, unless another call is doing so or the store is known to be
    /// down.
    async fn nudge(&self, spool: &Spool) {
        if self.backoff_left().is_zero()
            && let Some(_turn) = self.draining.try_lock()
        {
            let timeout = INLINE_TIMEOUT.min(self.store_timeout);
            // A failure is logged, and the events stay in the spool.
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

    /// Moves a batch out of the spool; the caller holds `draining`. The next batch is half as large
    /// after a failure and twice as large after a quick success, because a store too slow for many
    /// events within the timeout may be fast enough for a few.
    async fn drain_batch(
        &self,
        spool: &Spool,
        max_events: usize,
        timeout: Duration,
    ) -> Result<Drained> {
        let most = self.spool_batch.load(Ordering::Relaxed);
        let count = max_events.min(most);
        let started = self.runtime.now();
        let moved = self.move_batch(spool, count, timeout).await;
        let next = match &moved {
            Ok(_) => {
                self.succeeded();
                let took = self.runtime.now().saturating_since(started);
                if took * 4 < timeout { most * 2 } else { most }
            }
            Err(error) => {
                self.failed(error);
                count.min(spool.pending()) / 2
            }
        };
        self.spool_batch.store(next.clamp(1, BATCH_EVENTS), Ordering::Relaxed);
        moved
    }

    async fn move_batch(
        &self,
        spool: &Spool,
        max_events: usize,
        timeout: Duration,
    ) -> Result<Drained> {
        let Peeked { records, damaged } = spool.look(max_events).await?;
        add(&self.counters.lost, damaged);
        let mut drained = Drained { damaged, ..Drained::default() };
        if records.is_empty() {
            return Ok(drained);
        }
        let (events, quarantine, unresolved) = self.resolved(records, timeout).await?;
        let (items, count) = (quarantine.len(), quarantine.len() + events.len());
        let options = AppendOptions { quarantine, ..AppendOptions::default() };
        match self.append(events, options, timeout).await {
            Ok(appended) => {
                drained.take_in(self.count(&appended));
                drained.take_in(self.quarantined(items));
                add(&self.counters.unresolved, unresolved);
                self.discard(spool, count).await;
            }
            Err(error) if is_about_the_batch(&error) => {
                for _ in 0..count {
                    drained.take_in(self.move_one(spool, timeout).await?);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(drained)
    }

    /// Moves the oldest record into the log, or into the quarantine if the store refuses the event.
    async fn move_one(&self, spool: &Spool, timeout: Duration) -> Result<Drained> {
        let Peeked { mut records, damaged } = spool.look(1).await?;
        add(&self.counters.lost, damaged);
        let mut drained = Drained { damaged, ..Drained::default() };
        let Some(record) = records.pop() else { return Ok(drained) };
        let (mut events, mut items, unresolved) = self.resolved(vec![record], timeout).await?;
        if let Some(item) = items.pop() {
            drained.take_in(self.quarantine(item, Vec::new(), timeout).await?);
        }
        if let Some(event) = events.pop() {
            match self.append(vec![event.clone()], AppendOptions::default(), timeout).await {
                Ok(appended) => {
                    drained.take_in(self.count(&appended));
                    add(&self.counters.unresolved, unresolved);
                }
                Err(error) if is_about_the_batch(&error) => {
                    let item = refused(&event, &error);
                    let notice = item.notice(&*self.runtime);
                    drained.take_in(self.quarantine(item, vec![notice], timeout).await?);
                    tracing::error!(
                        id = %event.event().id,
                        action = event.event().action,
                        source = event.event().source,
                        code = error.code(),
                        "the store refused a spooled event: it was moved to the quarantine"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        self.discard(spool, 1).await;
        Ok(drained)
    }

    /// Splits records into events, with their tenants, and items. Also returns the number of
    /// tenants that stay unknown because the directory has not answered for too long. Includes at
    /// least the first record; if a slow directory leaves no time for more, the rest is left out.
    async fn resolved(
        &self,
        records: Vec<SpoolRecord>,
        timeout: Duration,
    ) -> Result<(Vec<SealedEvent>, Vec<QuarantineItem>, usize)> {
        let unresolved = |record: &SpoolRecord| match record {
            SpoolRecord::Unresolved(unresolved) => Some(unresolved.tenant.clone()),
            _ => None,
        };
        let hints: Vec<_> = records.iter().filter_map(unresolved).collect();
        let found = self.find_tenants(&hints, timeout).await?;
        let unanswered = found.iter().filter(|found| **found == FoundTenant::NoAnswer).count();
        let (mut events, mut items) = (Vec::with_capacity(records.len()), Vec::new());
        let mut found = found.iter();
        for record in records {
            match record {
                SpoolRecord::Event(event) => events.push(event),
                SpoolRecord::Quarantine(item) => items.push(item),
                SpoolRecord::Unresolved(unresolved) => match found.next() {
                    Some(found) => events.push(unresolved.resolve(found)),
                    None => break,
                },
            }
        }
        Ok((events, items, unanswered))
    }

    /// The directory's answers to the hints of each event, or to the first ones if it is too slow
    /// for all. Fails without an answer, so that the directory is asked again later, unless it has
    /// failed for too long while the store worked.
    async fn find_tenants(
        &self,
        hints: &[Vec<TenantHint>],
        timeout: Duration,
    ) -> Result<Vec<FoundTenant>> {
        let nothing = vec![FoundTenant::NoAnswer; hints.len()];
        let Some(directory) = self.directory.as_deref().filter(|_| !hints.is_empty()) else {
            return Ok(nothing);
        };
        let mut found = Vec::with_capacity(hints.len());
        let ask = async {
            let mut finder = TenantFinder::new(directory, &*self.runtime);
            for hints in hints {
                found.push(finder.find(hints).await);
            }
        };
        let patience = self.absence().patience(self.runtime.now());
        let bound = match patience {
            Patience::Full => timeout,
            Patience::Brief => timeout.min(self.store_timeout / 4),
            Patience::Zero => return Ok(nothing),
        };
        let is_in_time = self.within(bound, ask).await.is_some();
        // A directory that answered until the time was over is slow, not unavailable.
        let is_answering = is_in_time || !found.is_empty();
        if is_answering && !found.contains(&FoundTenant::NoAnswer) {
            self.absence().end();
            return Ok(found);
        }
        found.resize(hints.len(), FoundTenant::NoAnswer);
        let away = |what: &'static str| Err(Error::new(ErrorKind::StoreUnavailable, what));
        // After giving up on the directory, the append shows whether the store is available.
        if patience == Patience::Full {
            let state = self.within(timeout, self.store.state()).await;
            if !matches!(state, Some(Ok(_))) {
                if state.is_some() || self.is_patient(timeout) {
                    // Both are down: the directory may return together with the store.
                    self.absence().end();
                }
                return away("neither the tenant directory nor the store answers");
            }
        }
        if !self.absence().failed(self.runtime.now()) {
            return away("the tenant directory does not answer");
        }
        tracing::warn!("the tenant directory does not answer: events are appended without tenants");
        Ok(found)
    }

    /// Whether a store that does not answer within `timeout` counts as unavailable.
    fn is_patient(&self, timeout: Duration) -> bool {
        timeout >= self.store_timeout
    }

    async fn quarantine(
        &self,
        item: QuarantineItem,
        notice: Vec<SealedEvent>,
        timeout: Duration,
    ) -> Result<Drained> {
        let options = AppendOptions { quarantine: vec![item], ..AppendOptions::default() };
        self.append(notice, options, timeout).await?;
        Ok(self.quarantined(1))
    }

    /// Removes records that are in the log from the spool.
    async fn discard(&self, spool: &Spool, count: usize) {
        if let Err(error) = spool.discard(count).await {
            // They are in the log; at worst they are replayed as duplicates.
            tracing::warn!(code = error.code(), %error, "the drained spool could not be truncated");
        }
    }

    async fn append(
        &self,
        events: Vec<SealedEvent>,
        options: AppendOptions,
        timeout: Duration,
    ) -> Result<Appended> {
        let count = events.len();
        let answer = self.within(timeout, self.store.append(events, options)).await;
        let is_final = answer.is_some() || self.is_patient(timeout);
        let answer = match answer {
            Some(Ok(appended)) if appended.receipts.len() != count => Err(Error::new(
                ErrorKind::Internal,
                "the store returned a wrong number of receipts: report this bug of the store",
            )),
            Some(answer) => answer,
            None => Err(Error::new(
                ErrorKind::StoreUnavailable,
                format!("the store did not answer within {} ms: try again", timeout.as_millis()),
            )),
        };
        if is_final && answer.as_ref().is_err_and(|error| !is_about_the_batch(error)) {
            // The store is down too, so the directory's failures so far don't count.
            self.absence().end();
        }
        answer
    }

    /// The result of `work`; `None` if it takes longer than `timeout`.
    async fn within<T>(&self, timeout: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        // Work that is ready needs no timer.
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

    fn quarantined(&self, items: usize) -> Drained {
        add(&self.counters.quarantined, items);
        Drained { quarantined: items, ..Drained::default() }
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn absence(&self) -> MutexGuard<'_, Absence> {
        self.absence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rest of the back-off.
    fn backoff_left(&self) -> Duration {
        self.backoff().left(self.runtime.now())
    }

    fn succeeded(&self) {
        let before = std::mem::take(&mut *self.backoff());
        if before.failures > 0 {
            tracing::info!("the audit store accepts events again");
            self.recovered.notify(usize::MAX);
        }
    }

    fn failed(&self, error: &Error) {
        let mut random = [0; 4];
        self.runtime.fill_random(&mut random);
        let now = self.runtime.now();
        let mut backoff = self.backoff();
        // Simultaneous failures count once.
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
        // A longer rest means that the clock was set back.
        if left > MAX_BACKOFF { Duration::ZERO } else { left }
    }

    /// Doubles the wait. Half of it is random, so that processes don't all retry at once.
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

/// Whether the error is about the batch and not the store, so that a retry does not help.
fn is_about_the_batch(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::EventInvalid | ErrorKind::TooLarge)
}

/// The quarantine item for a spooled event that the store refuses, without the event's salt.
fn refused(sealed: &SealedEvent, error: &Error) -> QuarantineItem {
    let event = sealed.event();
    let mut item = QuarantineItem {
        source: event.source.clone(),
        key: format!("spool:{}", event.id),
        reason: error.code().to_owned(),
        detail: error.to_string(),
        raw: serde_json::to_vec(event).unwrap_or_default(),
        at: event.received_at,
    };
    item.cut_to_bounds();
    item
}

#[cfg(test)]
mod tests;
