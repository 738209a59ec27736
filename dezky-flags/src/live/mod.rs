//! Flags that follow their store, always at hand in the asking process.
//!
//! [`LiveFlags`] answers from a compiled set in memory. Beside it
//! [`run`](LiveFlags::run) follows the store: it hears of changes where the engine
//! tells them, and looks by itself at every poll interval. When the store is down the last
//! set goes on to decide, and [`status`](LiveFlags::status) says how old it is.

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

/// How long one listening lasts: what broke meanwhile is made again by the next.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Half of the first pause after the store told of a change in vain.
const VAIN_PAUSE: Duration = Duration::from_millis(5);
/// How long after a failure the file is written again.
const FILE_RETRY: Duration = Duration::from_mins(1);

/// How flags follow their store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LiveConfig {
    /// How often the store is asked whether something changed, 500 ms; 10 ms to an hour.
    /// Where the engine tells of changes they are seen at once all the same.
    pub poll_interval: Duration,
    /// How long the store may take for an answer, 5 s; 10 ms to 10 minutes.
    pub store_timeout: Duration,
    /// Where the flags are kept for a start without the store. The file is this
    /// process' own, readable by its user alone, replaced at every change while
    /// [`run`](LiveFlags::run) follows. It holds what decides of the flags, without their
    /// histories, at most [`MAX_FILE_BYTES`].
    pub file: Option<PathBuf>,
    /// Whether evaluations are counted by flag, see [`usage`](LiveFlags::usage); not unless
    /// asked for. Counted are those that go through [`LiveFlags`] and [`LiveSet`].
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
/// Clones share the flags. Deciding takes no lock and allocates nothing.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::{Actor, AuditLog, rt::TokioRuntime, store::MemoryAuditStore};
/// use dezky_flags::live::LiveConfig;
/// use dezky_flags::store::MemoryFlagStore;
/// use dezky_flags::{Edit, FlagContext, FlagEvaluator, FlagState, Flags, LiveFlags, NewFlag};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let runtime = Arc::new(TokioRuntime);
/// # let log = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// let store = Arc::new(MemoryFlagStore::new(log.clone()));
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
    /// Notified when `current` was swapped.
    swapped: Event,
    health: Mutex<Health>,
    counters: Option<Counters>,
    /// How many looks at the store have begun.
    looks: AtomicU64,
    /// The last look that has ended.
    last: Mutex<Look>,
    /// Notified when a look has ended.
    looked: Event,
    /// Held by the one who asks the store. It is handed on in no order, so those whom a look
    /// has answered must not wait for it.
    looking: AsyncMutex<()>,
    /// The generation that is in the file; held by the one who writes it.
    kept: Mutex<u64>,
}

/// A look at the store.
struct Look {
    number: u64,
    outcome: Result<()>,
}

/// How the store is doing.
struct Health {
    /// When it was asked for what it then said to be current.
    confirmed: Timestamp,
    /// The time at the last look.
    seen: Timestamp,
    /// Why it was not reached the last time, if it was not.
    failure: Option<Error>,
}

impl Health {
    /// What happened before a clock was set back is as long ago as it was.
    fn look(&mut self, now: Timestamp) {
        let back = self.seen.saturating_since(now);
        let back = i64::try_from(back.as_millis()).unwrap_or(i64::MAX);
        let confirmed = self.confirmed.as_millis().saturating_sub(back);
        self.confirmed = Timestamp::from_millis_clamped(confirmed);
        self.seen = now;
    }
}

/// How live the flags are.
#[derive(Debug, Clone)]
pub struct LiveStatus {
    /// The revision of the flags that decide.
    pub revision: u64,
    /// How long ago the store was asked for the last time that it said that they are
    /// current. Of flags from a file the time since the file was written.
    pub age: Duration,
    /// Whether they come from the file, as the store was not reached since the start.
    pub from_file: bool,
    /// Why the store was not reached the last time, if it was not.
    pub failure: Option<Error>,
}

impl LiveFlags {
    /// Reads the flags from the store or, where that can't be reached, from the file.
    /// Follow the store by [`run`](Self::run).
    ///
    /// For a start while the store can't even be opened give it a
    /// [`LazyFlagStore`](crate::store::LazyFlagStore).
    ///
    /// # Errors
    /// `config_invalid`, also if the file holds anything but flags that were kept: it would
    /// be replaced. The store's, `store_unavailable` after the store timeout, if
    /// there is no file either or it can't be read.
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
                        "the flags' store is not reached: they are those of the file"
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
        tell_invalid(&snapshot);
        let set = LiveSet::new(set, snapshot, 1, from_file, counters.as_ref());
        let shared = Shared {
            store,
            runtime,
            config,
            current: ArcSwap::from_pointee(set),
            swapped: Event::new(),
            // A file may be from the future.
            health: Mutex::new(Health { confirmed: confirmed.min(now), seen: now, failure }),
            counters,
            looks: AtomicU64::new(0),
            last: Mutex::new(Look { number: 0, outcome: Ok(()) }),
            looked: Event::new(),
            looking: AsyncMutex::new(()),
            kept: Mutex::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Follows the store until `shutdown` resolves, and keeps the file. A store that
    /// fails doesn't end it; dropping the future is as good as `shutdown`. One caller is
    /// enough, several do no harm.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let work = join3(self.poll(), self.listen(), self.keep());
        select(pin!(shutdown), pin!(work)).await;
    }

    /// Looks at every poll interval, and at the beginning: what was told before may have
    /// been lost with another run.
    async fn poll(&self) {
        let shared = &self.shared;
        loop {
            // A failure is logged, and tried again after the next wait.
            let _ = self.refresh().await;
            shared.runtime.sleep(shared.config.poll_interval).await;
        }
    }

    /// Looks when the engine tells of a change.
    ///
    /// Beside the polls rather than between them: a connection that is half made, and
    /// that nobody drives, can hold up a server that wants to stop.
    async fn listen(&self) {
        let shared = &self.shared;
        let mut in_vain = 0;
        loop {
            let swapped = shared.swapped.listen();
            let revision = self.revision();
            let told = shared.store.changed(revision);
            // What was told once is told no more: a look that failed is still owed.
            let is_owed = shared.is_failing();
            let wait = if is_owed { shared.pause(in_vain) } else { LISTEN_AGAIN };
            let again = select(swapped, shared.runtime.sleep(wait));
            if let Either::Right(_) = select(told, again).await
                && !is_owed
            {
                continue;
            }
            let _ = self.refresh().await;
            if self.revision() != revision {
                in_vain = 0;
                continue;
            }
            // One that tells for ever must not be asked without a pause.
            in_vain = (in_vain + 1).min(12);
            shared.runtime.sleep(shared.pause(in_vain)).await;
        }
    }

    /// Keeps the flags in the file, whenever they are others.
    async fn keep(&self) {
        let shared = &self.shared;
        loop {
            // Before the look, so that nothing happens unheard in between.
            let swapped = shared.swapped.listen();
            let current = self.current();
            if shared.config.file.is_none() || current.from_file {
                swapped.await;
            } else if let Err(error) = shared.write_file(current).await {
                tracing::warn!(%error, "the flags can't be kept in their file");
                select(swapped, shared.runtime.sleep(FILE_RETRY)).await;
            } else {
                // Now and then, as somebody may remove the file.
                select(swapped, shared.runtime.sleep(FILE_RETRY)).await;
            }
        }
    }

    /// Asks the store now, and returns the revision of the flags that decide from here
    /// on: after an edit of this process' own its next decision sees it. Those who ask
    /// meanwhile share one look.
    ///
    /// # Errors
    /// The store's; `store_unavailable` after the store timeout, or twice of it where
    /// somebody was asking already. The flags stay what they were.
    pub async fn refresh(&self) -> Result<u64> {
        let shared = &self.shared;
        let before = shared.looks.load(Ordering::SeqCst);
        loop {
            // Before the question, so that no look ends unheard in between.
            let looked = shared.looked.listen();
            // One that began since is as good as one of its own.
            if let Some(outcome) = shared.outcome_since(before) {
                return outcome.map(|()| self.revision());
            }
            let Either::Left((_turn, _)) = select(shared.looking.lock(), looked).await else {
                continue;
            };
            // Another one may have ended while the turn was handed on.
            if shared.outcome_since(before).is_none() {
                let number = shared.looks.fetch_add(1, Ordering::SeqCst) + 1;
                let outcome = self.look().await;
                *shared.last() = Look { number, outcome };
                shared.looked.notify(usize::MAX);
            }
        }
    }

    /// Called by the one whose turn it is.
    async fn look(&self) -> Result<()> {
        let shared = &self.shared;
        let began = shared.runtime.now();
        shared.look(began);
        let current = self.current();
        // What came back may have been restored from a backup, and changed since.
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

    /// The flags that decide now. Hold it for several decisions by the same flags, and
    /// not for long.
    pub fn current(&self) -> Arc<LiveSet> {
        self.shared.current.load_full()
    }

    /// The revision of the flags that decide now.
    pub fn revision(&self) -> u64 {
        self.load().revision()
    }

    /// How live the flags are.
    pub fn status(&self) -> LiveStatus {
        let (revision, from_file) = {
            let current = self.load();
            (current.revision(), current.from_file)
        };
        let now = self.shared.runtime.now();
        let mut health = self.shared.health();
        health.look(now);
        let age = now.saturating_since(health.confirmed);
        LiveStatus { revision, age, from_file, failure: health.failure.clone() }
    }

    /// How often each flag was evaluated in this process, where that is
    /// [counted](LiveConfig::count_usage). A flag's counts go on when it is changed.
    pub fn usage(&self) -> Option<Usage> {
        let counters = self.shared.counters.as_ref()?;
        Some(counters.usage(self.shared.runtime.now()))
    }

    /// Tells of changes from here on.
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

/// Tells of changes of [`LiveFlags`].
pub struct Subscription {
    live: LiveFlags,
    seen: u64,
}

impl Subscription {
    /// Waits until the flags that decide are others than those last seen here, and
    /// returns their revision. Changes in quick succession are told once; the last one
    /// always is. Cancel-safe.
    pub async fn next(&mut self) -> u64 {
        loop {
            // Before the look, so that nothing happens unheard in between.
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
    /// How long after so many looks in vain the store is asked again.
    fn pause(&self, in_vain: u32) -> Duration {
        (VAIN_PAUSE * (1 << in_vain)).min(self.config.poll_interval).min(LISTEN_AGAIN)
    }

    /// Called by the one who asks the store alone.
    async fn swap(&self, before: &LiveSet, snapshot: Snapshot) {
        let (set, snapshot) = compile(&*self.runtime, snapshot).await;
        if snapshot.invalid != before.snapshot().invalid {
            tell_invalid(&snapshot);
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
            // One that was given up may still be at it, with older flags.
            let mut kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if *kept < set.generation || !path.exists() {
                file::write(path, set.snapshot())?;
                *kept = set.generation;
            }
            Ok(())
        };
        rt::unblock(&*self.runtime, write).await
    }

    /// At the beginning of each look: notes what is noted by the clock.
    fn look(&self, now: Timestamp) {
        self.health().look(now);
        if let Some(counters) = &self.counters {
            counters.look(now);
        }
    }

    /// The store said what is current when it was asked at `began`.
    fn succeeded(&self, began: Timestamp) {
        let now = self.runtime.now();
        let failure = {
            let mut health = self.health();
            health.look(now);
            health.confirmed = began.min(now);
            health.failure.take()
        };
        if failure.is_some() {
            tracing::info!("the flags' store is reached again");
        }
    }

    fn failed(&self, error: Error) -> Error {
        let told = error.clone();
        let before = self.health().failure.replace(error);
        if before.is_none() {
            tracing::warn!(
                code = told.code(),
                error = %told,
                "the flags' store is not reached: the last ones go on"
            );
        }
        told
    }

    fn is_failing(&self) -> bool {
        self.health().failure.is_some()
    }

    /// How the last look ended, if it began after so many had.
    fn outcome_since(&self, before: u64) -> Option<Result<()>> {
        let last = self.last();
        (last.number > before).then(|| last.outcome.clone())
    }

    fn last(&self) -> MutexGuard<'_, Look> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Off the executor's threads: ten thousand flags take a while.
async fn compile(runtime: &dyn Runtime, snapshot: Snapshot) -> (FlagSet, Snapshot) {
    rt::unblock(runtime, move || (FlagSet::of(&snapshot), snapshot)).await
}

fn tell_invalid(snapshot: &Snapshot) {
    for flag in &snapshot.invalid {
        tracing::error!(flag = flag.key, problem = flag.problem, "a flag is invalid, and off");
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
            format!("the flags' store did not answer within {} ms", timeout.as_millis()),
        )),
    }
}

/// The flags of the file and when they were written.
async fn read_file(runtime: &dyn Runtime, config: &LiveConfig) -> Option<(Snapshot, Timestamp)> {
    let path = config.file.clone()?;
    match rt::unblock(runtime, move || file::read(&path)).await {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!(error, "the flags' file can't be read");
            None
        }
    }
}
