//! Flags that follow their store, evaluated in the calling process.
//!
//! [`LiveFlags`] answers from a compiled set in memory, while [`run`](LiveFlags::run) follows the
//! store: it reacts to notifications where the engine sends them, and polls at every interval. If
//! the store is down, the last set stays in use, and [`status`](LiveFlags::status) reports its age.

mod file;
mod set;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use dezky_core::{Error, ErrorKind, Result, Runtime, Timestamp, rt};
use event_listener::Event;
use futures_util::future::{Either, join3, select};
use futures_util::lock::Mutex as AsyncMutex;

pub use self::file::MAX_FILE_BYTES;
pub use self::set::LiveSet;
use crate::store::{FlagStore, Snapshot};
use crate::usage::{Counters, Usage};
use crate::{Decision, FlagContext, FlagEvaluator, FlagSet};

/// Maximum duration of one listening attempt; the next attempt re-establishes a broken connection.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Half of the first pause after a notification that led to no change.
const VAIN_PAUSE: Duration = Duration::from_millis(5);
/// The interval at which the file is checked, and rewritten after a failure.
const FILE_RETRY: Duration = Duration::from_mins(1);

/// Settings for following a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LiveConfig {
    /// The interval at which the store is polled for changes, 500 ms; 10 ms to an hour. Where the
    /// engine sends notifications, changes are seen at once regardless of the interval.
    pub poll_interval: Duration,
    /// Time limit for one read of the store, 5 s; 10 ms to 10 minutes.
    pub store_timeout: Duration,
    /// The file that allows starting without the store. It must belong to this process alone; it is
    /// readable only by the process's user and replaced at every change while
    /// [`run`](LiveFlags::run) follows the store. It holds the flags' definitions without their
    /// histories, at most [`MAX_FILE_BYTES`].
    pub file: Option<PathBuf>,
    /// Whether evaluations are counted by flag, off by default; see [`usage`](LiveFlags::usage).
    /// Only evaluations through [`LiveFlags`] and [`LiveSet`] are counted.
    pub count_usage: bool,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(500),
            store_timeout: Duration::from_secs(5),
            file: None,
            count_usage: false,
        }
    }
}

impl LiveConfig {
    fn validate(&self) -> Result<()> {
        let refused = |problem| Err(Error::new(ErrorKind::ConfigInvalid, problem));
        let least = Duration::from_millis(10);
        if !(least..=Duration::from_hours(1)).contains(&self.poll_interval) {
            return refused("poll_interval must be 10 ms to 1 h");
        }
        if !(least..=Duration::from_mins(10)).contains(&self.store_timeout) {
            return refused("store_timeout must be 10 ms to 10 min");
        }
        Ok(())
    }
}

/// Checks that flags can be kept at `path`: nothing is there, or flags that were kept.
/// Blocks.
///
/// # Errors
/// `config_invalid` if the file there holds anything else.
pub fn check_file(path: &Path) -> Result<()> {
    file::check(path).map_err(|problem| {
        Error::new(ErrorKind::ConfigInvalid, format!("{}: {problem}", path.display()))
    })
}

/// Flags that follow their store.
///
/// Clones share the flags. Evaluating takes no lock and allocates nothing.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::{Actor, AuditLog, rt::TokioRuntime, store::MemoryAuditStore};
/// use dezky_flags::live::LiveConfig;
/// use dezky_flags::store::DocumentFlagStore;
/// use dezky_flags::{Edit, FlagContext, FlagEvaluator, FlagState, Flags, LiveFlags, NewFlag};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let runtime = Arc::new(TokioRuntime);
/// # let log = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// let store = Arc::new(DocumentFlagStore::in_memory(log.clone()));
/// let live = LiveFlags::open(store.clone(), runtime.clone(), LiveConfig::default()).await?;
/// let follows = live.clone();
/// tokio::spawn(async move { follows.run(std::future::pending()).await });
///
/// let mut changes = live.subscribe();
/// let editor = Flags::new(store, Arc::new(AuditLog::new(log, runtime.clone())), runtime);
/// let new = NewFlag { state: FlagState::On, ..NewFlag::new("chat") };
/// editor.create(new, &Edit::by(Actor::system())).await?;
/// assert_eq!(changes.next().await, 1);
/// assert!(live.evaluate("chat", &FlagContext::default()).value);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LiveFlags {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn FlagStore>,
    runtime: Arc<dyn Runtime>,
    config: LiveConfig,
    current: ArcSwap<LiveSet>,
    /// Notified after `current` is swapped.
    swapped: Event,
    health: Mutex<Health>,
    counters: Option<Counters>,
    /// The number of store reads that have started.
    reads_started: AtomicU64,
    /// The last finished store read.
    last_read: Mutex<FinishedRead>,
    /// Notified when a store read finishes.
    read_finished: Event,
    /// Held while reading the store. The lock is not fair, so callers whose answer has arrived must
    /// not wait for it.
    reading: AsyncMutex<()>,
    /// The generation in the file; held while writing the file.
    saved: Mutex<u64>,
}

/// A finished read of the store.
struct FinishedRead {
    number: u64,
    outcome: Result<()>,
}

/// The health of the store.
struct Health {
    /// Start time of the last read that confirmed the current revision.
    confirmed: Timestamp,
    /// The time of the last look at the clock.
    seen: Timestamp,
    /// The error of the last read, if it failed.
    failure: Option<Error>,
}

impl Health {
    /// Shifts times back when the clock is set back, so that ages stay the same.
    fn observe(&mut self, now: Timestamp) {
        let back = self.seen.saturating_since(now);
        let back = i64::try_from(back.as_millis()).unwrap_or(i64::MAX);
        let confirmed = self.confirmed.as_millis().saturating_sub(back);
        self.confirmed = Timestamp::from_millis_clamped(confirmed);
        self.seen = now;
    }
}

/// How current the flags are.
#[derive(Debug, Clone)]
pub struct LiveStatus {
    /// The revision of the flags in use.
    pub revision: u64,
    /// The time since the start of the last read that confirmed these flags. For flags from a file,
    /// the time since the file was written.
    pub age: Duration,
    /// Whether the flags come from the file, because the store has not been reached since the
    /// start.
    pub from_file: bool,
    /// The error of the last read, if it failed.
    pub failure: Option<Error>,
}

impl LiveFlags {
    /// Reads the flags from the store or, if it is unreachable, from the file. Call
    /// [`run`](Self::run) to follow the store.
    ///
    /// To start while the store can't even be opened, pass a
    /// [`LazyFlagStore`](crate::store::LazyFlagStore).
    ///
    /// # Errors
    /// `config_invalid`, also if the file is not one of kept flags, because it would be
    /// replaced. If neither the store nor the file can be read: the store's error, or
    /// `store_unavailable` after the store timeout.
    pub async fn open(
        store: Arc<dyn FlagStore>,
        runtime: Arc<dyn Runtime>,
        config: LiveConfig,
    ) -> Result<Self> {
        config.validate()?;
        if let Some(path) = config.file.clone() {
            rt::unblock(&*runtime, move || check_file(&path)).await?;
        }
        let began = runtime.now();
        let read = within(&*runtime, config.store_timeout, store.snapshot()).await;
        let (snapshot, confirmed, failure) = match read {
            Ok(snapshot) => (snapshot, began, None),
            Err(error) => match read_file(&*runtime, &config).await {
                Some((snapshot, written)) => {
                    tracing::warn!(
                        code = error.code(),
                        revision = snapshot.revision,
                        "the flag store is unreachable: using the flags from the file"
                    );
                    (snapshot, written, Some(error))
                }
                None => return Err(error),
            },
        };
        let now = runtime.now();
        let counters = config.count_usage.then(|| Counters::since(now));
        let from_file = failure.is_some();
        let (set, snapshot) = compile(&*runtime, snapshot).await;
        log_invalid(&snapshot);
        let set = LiveSet::new(set, snapshot, 1, from_file, counters.as_ref());
        let shared = Shared {
            store,
            runtime,
            config,
            current: ArcSwap::from_pointee(set),
            swapped: Event::new(),
            // The file's modification time may be in the future.
            health: Mutex::new(Health { confirmed: confirmed.min(now), seen: now, failure }),
            counters,
            reads_started: AtomicU64::new(0),
            last_read: Mutex::new(FinishedRead { number: 0, outcome: Ok(()) }),
            read_finished: Event::new(),
            reading: AsyncMutex::new(()),
            saved: Mutex::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Follows the store until `shutdown` resolves, and keeps the file current. Failures of the
    /// store don't end it; dropping the future is equivalent to `shutdown`. One call is enough;
    /// further concurrent calls do no harm.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let work = join3(self.poll(), self.listen(), self.save());
        select(pin!(shutdown), pin!(work)).await;
    }

    /// Reads at the start and at every poll interval; notifications from before the start may have
    /// gone to an earlier run.
    async fn poll(&self) {
        let shared = &self.shared;
        loop {
            // Failures are logged, and retried after the next interval.
            let _ = self.refresh().await;
            shared.runtime.sleep(shared.config.poll_interval).await;
        }
    }

    /// Reads when the engine notifies of a change.
    ///
    /// This runs alongside polling rather than in between: a connection that is half established
    /// while nothing polls its future can keep a database server from shutting down.
    async fn listen(&self) {
        let shared = &self.shared;
        let mut in_vain = 0;
        loop {
            let swapped = shared.swapped.listen();
            let revision = self.revision();
            let told = shared.store.changed(revision);
            // A notification is not repeated, so a failed read must be retried.
            let must_retry = shared.is_failing();
            let wait = if must_retry { shared.pause(in_vain) } else { LISTEN_AGAIN };
            let again = select(swapped, shared.runtime.sleep(wait));
            if let Either::Right(_) = select(told, again).await
                && !must_retry
            {
                continue;
            }
            let _ = self.refresh().await;
            if self.revision() != revision {
                in_vain = 0;
                continue;
            }
            // Pause, in case the engine keeps notifying without a change.
            in_vain = (in_vain + 1).min(12);
            shared.runtime.sleep(shared.pause(in_vain)).await;
        }
    }

    /// Writes the flags to the file whenever they change.
    async fn save(&self) {
        let shared = &self.shared;
        loop {
            // Listen before reading, so that no change is missed in between.
            let swapped = shared.swapped.listen();
            let current = self.current();
            if shared.config.file.is_none() || current.from_file {
                swapped.await;
            } else if let Err(error) = shared.write_file(current).await {
                tracing::warn!(%error, "can't save the flags to their file");
                select(swapped, shared.runtime.sleep(FILE_RETRY)).await;
            } else {
                // Check again after a while, in case the file was removed.
                select(swapped, shared.runtime.sleep(FILE_RETRY)).await;
            }
        }
    }

    /// Reads the store now and returns the revision of the flags in use afterwards: after an edit
    /// by this process, its next decision reflects the edit. Concurrent callers share one read.
    ///
    /// # Errors
    /// The store's error; `store_unavailable` after the store timeout, or twice that if another
    /// read was under way. The flags stay unchanged.
    pub async fn refresh(&self) -> Result<u64> {
        let shared = &self.shared;
        let before = shared.reads_started.load(Ordering::SeqCst);
        loop {
            // Listen before checking, so that no read finishes unnoticed in between.
            let read_finished = shared.read_finished.listen();
            // A read that started after this call is as good as a new one.
            if let Some(outcome) = shared.outcome_since(before) {
                return outcome.map(|()| self.revision());
            }
            let Either::Left((_turn, _)) = select(shared.reading.lock(), read_finished).await
            else {
                continue;
            };
            // Another read may have finished before this caller got the lock.
            if shared.outcome_since(before).is_none() {
                let number = shared.reads_started.fetch_add(1, Ordering::SeqCst) + 1;
                let outcome = self.read_store().await;
                *shared.last_read() = FinishedRead { number, outcome };
                shared.read_finished.notify(usize::MAX);
            }
        }
    }

    /// Reads the store. The caller holds `reading`.
    async fn read_store(&self) -> Result<()> {
        let shared = &self.shared;
        let began = shared.runtime.now();
        shared.observe(began);
        let current = self.current();
        // After a failure, or for flags from a file, the revision alone is not enough: the store
        // may have been restored from a backup and changed since.
        let is_sure = !current.from_file && !shared.is_failing();
        let read = async {
            let revision = shared.store.revision().await?;
            if is_sure && revision == current.revision() {
                return Ok(None);
            }
            shared.store.snapshot().await.map(Some)
        };
        match within(&*shared.runtime, shared.config.store_timeout, read).await {
            Ok(snapshot) => {
                if let Some(snapshot) = snapshot
                    && (current.from_file || snapshot != *current.snapshot())
                {
                    shared.swap(&current, snapshot).await;
                }
                shared.succeeded(began);
                Ok(())
            }
            Err(error) => Err(shared.failed(error)),
        }
    }

    /// Returns the flags in use. Hold the result to make several decisions by the same flags, but
    /// not for long.
    pub fn current(&self) -> Arc<LiveSet> {
        self.shared.current.load_full()
    }

    /// The revision of the flags in use.
    pub fn revision(&self) -> u64 {
        self.load().revision()
    }

    /// Returns how current the flags are.
    pub fn status(&self) -> LiveStatus {
        let (revision, from_file) = {
            let current = self.load();
            (current.revision(), current.from_file)
        };
        let now = self.shared.runtime.now();
        let mut health = self.shared.health();
        health.observe(now);
        let age = now.saturating_since(health.confirmed);
        LiveStatus { revision, age, from_file, failure: health.failure.clone() }
    }

    /// Returns how often each flag was evaluated in this process, if evaluations are
    /// [counted](LiveConfig::count_usage). A flag's counts continue when the flag changes.
    pub fn usage(&self) -> Option<Usage> {
        let counters = self.shared.counters.as_ref()?;
        Some(counters.usage(self.shared.runtime.now()))
    }

    /// Subscribes to changes from now on.
    pub fn subscribe(&self) -> Subscription {
        Subscription { seen: self.load().generation, live: self.clone() }
    }

    fn load(&self) -> Guard<Arc<LiveSet>> {
        self.shared.current.load()
    }
}

impl FlagEvaluator for LiveFlags {
    fn evaluate(&self, flag: &str, context: &FlagContext<'_>) -> Decision {
        self.load().evaluate(flag, context)
    }
}

/// A subscription to changes of [`LiveFlags`].
pub struct Subscription {
    live: LiveFlags,
    seen: u64,
}

impl Subscription {
    /// Waits until the flags in use differ from those last seen by this subscription, and returns
    /// their revision. Changes in quick succession may be reported as one; the last one is always
    /// reported. Cancel-safe.
    pub async fn next(&mut self) -> u64 {
        loop {
            // Listen before checking, so that no change is missed in between.
            let swapped = self.live.shared.swapped.listen();
            let (generation, revision) = {
                let current = self.live.load();
                (current.generation, current.revision())
            };
            if generation != self.seen {
                self.seen = generation;
                return revision;
            }
            swapped.await;
        }
    }
}

impl Shared {
    /// The pause after the given number of reads that found no change.
    fn pause(&self, in_vain: u32) -> Duration {
        (VAIN_PAUSE * (1 << in_vain)).min(self.config.poll_interval).min(LISTEN_AGAIN)
    }

    /// Replaces the current set. The caller holds `reading`.
    async fn swap(&self, before: &LiveSet, snapshot: Snapshot) {
        let (set, snapshot) = compile(&*self.runtime, snapshot).await;
        if snapshot.invalid != before.snapshot().invalid {
            log_invalid(&snapshot);
        }
        let generation = before.generation + 1;
        let set = LiveSet::new(set, snapshot, generation, false, self.counters.as_ref());
        self.current.store(Arc::new(set));
        self.swapped.notify(usize::MAX);
    }

    async fn write_file(self: &Arc<Self>, set: Arc<LiveSet>) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        let write = move || {
            let Some(path) = &shared.config.file else { return Ok(()) };
            // An abandoned write with older flags may still be running.
            let mut saved = shared.saved.lock().unwrap_or_else(PoisonError::into_inner);
            if *saved < set.generation || !path.exists() {
                file::write(path, set.snapshot())?;
                *saved = set.generation;
            }
            Ok(())
        };
        rt::unblock(&*self.runtime, write).await
    }

    /// Updates ages and usage at the start of each read.
    fn observe(&self, now: Timestamp) {
        self.health().observe(now);
        if let Some(counters) = &self.counters {
            counters.observe(now);
        }
    }

    /// Records that a read that started at `began` confirmed the current flags.
    fn succeeded(&self, began: Timestamp) {
        let now = self.runtime.now();
        let failure = {
            let mut health = self.health();
            health.observe(now);
            health.confirmed = began.min(now);
            health.failure.take()
        };
        if failure.is_some() {
            tracing::info!("the flag store is reachable again");
        }
    }

    fn failed(&self, error: Error) -> Error {
        let told = error.clone();
        let before = self.health().failure.replace(error);
        if before.is_none() {
            tracing::warn!(
                code = told.code(),
                error = %told,
                "the flag store is unreachable: the last flags stay in use"
            );
        }
        told
    }

    fn is_failing(&self) -> bool {
        self.health().failure.is_some()
    }

    /// The outcome of the last read, if it is one that started after the first `before` reads.
    fn outcome_since(&self, before: u64) -> Option<Result<()>> {
        let last = self.last_read();
        (last.number > before).then(|| last.outcome.clone())
    }

    fn last_read(&self) -> MutexGuard<'_, FinishedRead> {
        self.last_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compiles off the executor's threads, because ten thousand flags take a while.
async fn compile(runtime: &dyn Runtime, snapshot: Snapshot) -> (FlagSet, Snapshot) {
    rt::unblock(runtime, move || (FlagSet::of(&snapshot), snapshot)).await
}

fn log_invalid(snapshot: &Snapshot) {
    for flag in &snapshot.invalid {
        tracing::error!(
            flag = flag.key,
            problem = flag.problem,
            "a flag is invalid and counts as off"
        );
    }
}

async fn within<T>(
    runtime: &dyn Runtime,
    timeout: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match select(pin!(work), runtime.sleep(timeout)).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("the flag store did not answer within {} ms", timeout.as_millis()),
        )),
    }
}

/// Returns the flags of the file and the time at which they were written.
async fn read_file(runtime: &dyn Runtime, config: &LiveConfig) -> Option<(Snapshot, Timestamp)> {
    let path = config.file.clone()?;
    match rt::unblock(runtime, move || file::read(&path)).await {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!(error, "can't read the flags' file");
            None
        }
    }
}
