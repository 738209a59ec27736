//! Flags that follow their store, always at hand in the asking process.
//!
//! [`LiveFlags`] answers from a compiled set in memory. Beside it
//! [`run`](LiveFlags::run) follows the store: it hears of changes where the engine
//! tells them, and looks by itself at every poll interval. When the store is down the last
//! set goes on to decide, and [`status`](LiveFlags::status) says how old it is.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use dezky_core::{Error, ErrorKind, Result, Runtime, Timestamp, rt};
use event_listener::Event;
use futures_util::future::{Either, select};
use futures_util::lock::Mutex as AsyncMutex;

use crate::store::{FlagStore, Snapshot};
use crate::{Decision, FlagContext, FlagEvaluator, FlagSet};

/// The most bytes of a snapshot file.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// How flags follow their store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LiveConfig {
    /// How often the store is asked whether something changed, 500 ms. Where the
    /// engine tells of changes they are seen at once all the same.
    pub poll_interval: Duration,
    /// How long the store may take for an answer, 5 s.
    pub store_timeout: Duration,
    /// Where the flags are kept for a start without the store. The file is this
    /// process' own, readable by its user alone, replaced at every change.
    pub file: Option<PathBuf>,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(500),
            store_timeout: Duration::from_secs(5),
            file: None,
        }
    }
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
    /// When the store last said what is current, in milliseconds.
    confirmed: AtomicI64,
    from_file: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Held by the one who asks the store.
    refreshing: AsyncMutex<()>,
}

/// Compiled flags and what they were compiled from.
#[derive(Debug)]
pub struct LiveSet {
    set: FlagSet,
    snapshot: Snapshot,
}

impl LiveSet {
    fn of(snapshot: Snapshot) -> Self {
        Self { set: FlagSet::of(&snapshot), snapshot }
    }

    /// The compiled flags.
    pub fn set(&self) -> &FlagSet {
        &self.set
    }

    /// The flags as they were read.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The store's revision that they are of.
    pub fn revision(&self) -> u64 {
        self.snapshot.revision
    }
}

/// How live the flags are.
#[derive(Debug, Clone)]
pub struct LiveStatus {
    /// The revision of the flags that decide.
    pub revision: u64,
    /// How long ago the store last said that they are current. Of flags from a file
    /// the time since the file was written.
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
    /// # Errors
    /// The store's, `store_unavailable` after the store timeout, if there is no file
    /// either or it can't be read.
    pub async fn open(
        store: Arc<dyn FlagStore>,
        runtime: Arc<dyn Runtime>,
        config: LiveConfig,
    ) -> Result<Self> {
        let read = within(&*runtime, config.store_timeout, store.snapshot()).await;
        let (snapshot, confirmed, failure) = match read {
            Ok(snapshot) => (snapshot, runtime.now(), None),
            Err(error) => match read_file(&*runtime, config.file.as_deref()).await {
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
        let from_file = failure.is_some();
        let shared = Shared {
            store,
            runtime,
            config,
            current: ArcSwap::from_pointee(LiveSet::of(snapshot)),
            swapped: Event::new(),
            confirmed: AtomicI64::new(confirmed.as_millis()),
            from_file: AtomicBool::new(from_file),
            failure: Mutex::new(failure),
            refreshing: AsyncMutex::new(()),
        };
        let live = Self { shared: Arc::new(shared) };
        if !from_file {
            live.shared.keep().await;
        }
        Ok(live)
    }

    /// Follows the store until `shutdown` resolves. A store that fails doesn't end it;
    /// dropping the future is as good as `shutdown`. One caller is enough, several do
    /// no harm.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let shared = &self.shared;
        let mut shutdown = pin!(shutdown);
        loop {
            let step = pin!(async {
                let told = pin!(shared.store.changed(self.revision()));
                let poll = shared.runtime.sleep(shared.config.poll_interval);
                let failed = shared.last_failure().is_some();
                // A store that is down may say at once that it knows nothing.
                if failed {
                    poll.await;
                } else {
                    select(told, poll).await;
                }
                // A failure is logged, and tried again after the next wait.
                let _ = self.refresh().await;
            });
            if let Either::Left(_) = select(shutdown.as_mut(), step).await {
                return;
            }
        }
    }

    /// Asks the store now, and returns the revision of the flags that decide from here
    /// on: after an edit of this process' own its next decision sees it.
    ///
    /// # Errors
    /// The store's; `store_unavailable` after the store timeout. The flags stay what
    /// they were.
    pub async fn refresh(&self) -> Result<u64> {
        let shared = &self.shared;
        let _turn = shared.refreshing.lock().await;
        let read = async {
            let revision = shared.store.revision().await?;
            // A store that was restored from a backup goes backwards.
            let is_current = revision == self.revision() && !shared.is_from_file();
            if is_current { Ok(None) } else { shared.store.snapshot().await.map(Some) }
        };
        let read = within(&*shared.runtime, shared.config.store_timeout, read).await;
        match read {
            Ok(snapshot) => {
                shared.succeeded();
                if let Some(snapshot) = snapshot {
                    shared.swap(snapshot).await;
                }
                Ok(self.revision())
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
        let shared = &self.shared;
        let confirmed = Timestamp::from_millis_clamped(shared.confirmed.load(Ordering::Relaxed));
        LiveStatus {
            revision: self.revision(),
            age: shared.runtime.now().saturating_since(confirmed),
            from_file: shared.is_from_file(),
            failure: shared.last_failure(),
        }
    }

    /// Tells of changes from here on.
    pub fn subscribe(&self) -> Subscription {
        Subscription { seen: self.current(), live: self.clone() }
    }

    fn load(&self) -> Guard<Arc<LiveSet>> {
        self.shared.current.load()
    }
}

impl FlagEvaluator for LiveFlags {
    fn evaluate(&self, flag: &str, context: &FlagContext<'_>) -> Decision {
        self.load().set.evaluate(flag, context)
    }
}

/// Tells of changes of [`LiveFlags`].
pub struct Subscription {
    live: LiveFlags,
    seen: Arc<LiveSet>,
}

impl Subscription {
    /// Waits until the flags that decide are others than those last seen here, and
    /// returns their revision. Changes in quick succession are told once. Cancel-safe.
    pub async fn next(&mut self) -> u64 {
        loop {
            // Before the look, so that nothing happens unheard in between.
            let swapped = self.live.shared.swapped.listen();
            let current = self.live.current();
            if !Arc::ptr_eq(&current, &self.seen) {
                let revision = current.revision();
                self.seen = current;
                return revision;
            }
            swapped.await;
        }
    }
}

impl Shared {
    async fn swap(&self, snapshot: Snapshot) {
        let swapped = LiveSet::of(snapshot);
        for flag in &swapped.snapshot.invalid {
            tracing::error!(flag = flag.key, problem = flag.problem, "a flag is invalid, and off");
        }
        self.current.store(Arc::new(swapped));
        self.from_file.store(false, Ordering::Relaxed);
        self.swapped.notify(usize::MAX);
        self.keep().await;
    }

    /// Keeps the current flags in the file.
    async fn keep(&self) {
        let Some(path) = self.config.file.clone() else { return };
        let current = self.current.load_full();
        let written = rt::unblock(&*self.runtime, move || write_file(&path, &current.snapshot));
        if let Err(error) = written.await {
            tracing::warn!(%error, "the flags can't be kept in their file");
        }
    }

    fn succeeded(&self) {
        self.confirmed.store(self.runtime.now().as_millis(), Ordering::Relaxed);
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if failure.is_some() {
            tracing::info!("the flags' store is reached again");
        }
    }

    fn failed(&self, error: Error) -> Error {
        let told = error.clone();
        let before = self.failure.lock().unwrap_or_else(PoisonError::into_inner).replace(error);
        if before.is_none() {
            tracing::warn!(
                code = told.code(),
                error = %told,
                "the flags' store is not reached: the last ones go on"
            );
        }
        told
    }

    fn last_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_from_file(&self) -> bool {
        self.from_file.load(Ordering::Relaxed)
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
async fn read_file(runtime: &dyn Runtime, path: Option<&Path>) -> Option<(Snapshot, Timestamp)> {
    let path = path?.to_owned();
    let read = rt::unblock(runtime, move || -> std::result::Result<_, String> {
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let written = file.metadata().and_then(|data| data.modified());
        let written = written.map_err(|error| error.to_string())?;
        let mut text = String::new();
        let read = file.take(MAX_FILE_BYTES).read_to_string(&mut text);
        read.map_err(|error| error.to_string())?;
        let snapshot = Snapshot::from_json(&text).map_err(|error| error.to_string())?;
        let since_1970 = written.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let millis = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        Ok((snapshot, Timestamp::from_millis_clamped(millis)))
    });
    match read.await {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!(error, "the flags' file can't be read");
            None
        }
    }
}

/// Replaces the file as a whole: whoever reads it finds the old flags or the new ones.
fn write_file(path: &Path, snapshot: &Snapshot) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(snapshot.to_json().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
