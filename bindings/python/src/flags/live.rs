//! Flags that follow a store or a server, blocking and for asyncio.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use dezky::flags::live::LiveConfig;
use dezky::flags::openfeature::{OfrepToken, RemoteConfig};
use dezky::flags::store::{LazyFlagStore, Snapshot};
use dezky::{
    Access, Error, LiveFlags as CoreLive, Runtime as _, StoreConfig, Stores, TokioRuntime,
};
use futures_util::FutureExt as _;
use futures_util::future::{pending, select};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use super::column::BooleanColumn;
use super::context::Asked;
use super::decision::{Decision, Explanation};
use super::remote::Remote;
use super::resolve::{self, Given};
use super::set::{Compiled, FlagSet};
use crate::convert::{self, path, seconds_between, text, text_of, type_error, value_error};
use crate::error::{exception, of_url, opened_by};
use crate::runtime::{self, Ended, Ending, Owned};

/// The number of events that a subscriber may be behind; older ones are dropped.
const EVENTS: usize = 256;

/// Where flags come from.
enum Followed {
    Store {
        live: CoreLive,
        stores: Arc<Mutex<Option<Stores>>>,
        /// The flags last decided with.
        compiled: Mutex<Arc<Compiled>>,
    },
    Server(Remote),
}

impl Followed {
    /// The flags in use.
    ///
    /// # Errors
    /// `ValueError` for a server, which sends no definitions.
    fn compiled(&self, function: &str) -> PyResult<Arc<Compiled>> {
        match self {
            Self::Store { live, compiled, .. } => {
                let current = live.current();
                let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
                if !compiled.is_of(&current) {
                    *compiled = Arc::new(Compiled::live(current));
                }
                Ok(Arc::clone(&compiled))
            }
            Self::Server(_) => Err(PyValueError::new_err(format!(
                "{function} needs the flags' definitions, which a server does not send: open the \
                 store's URL, or compile an export with FlagSet.from_json"
            ))),
        }
    }

    fn revision(&self) -> Option<u64> {
        match self {
            Self::Store { live, .. } => Some(live.revision()),
            Self::Server(remote) => remote.revision(),
        }
    }

    /// The error of the last read, if it failed.
    fn failure(&self) -> Option<Error> {
        match self {
            Self::Store { live, .. } => live.status().failure,
            Self::Server(remote) => remote.failure(),
        }
    }

    /// Events that tell the current state.
    fn state(&self) -> [Event; 2] {
        let health = self.failure().map_or(Event::Recovered, Event::Failed);
        [Event::Changed { revision: self.revision(), keys: None }, health]
    }

    async fn close(&self) {
        if let Self::Store { stores, .. } = self {
            let stores = stores.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(stores) = stores {
                stores.close().await;
            }
        }
    }
}

/// Followed flags, and the work that follows them.
struct Open {
    followed: Owned<Arc<Followed>>,
    events: Owned<broadcast::Sender<Event>>,
    work: Mutex<Vec<JoinHandle<()>>>,
}

impl Open {
    /// The work, aborted.
    fn aborted(&self) -> Vec<JoinHandle<()>> {
        let work = std::mem::take(&mut *self.work.lock().unwrap_or_else(PoisonError::into_inner));
        work.iter().for_each(JoinHandle::abort);
        work
    }
}

impl Drop for Open {
    /// Ends the work, and closes connections in the background if that was not done.
    fn drop(&mut self) {
        let Some(runtime) = runtime::existing() else {
            // In a forked process, the tasks are the parent's: their handles are leaked.
            let work = self.work.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::take(work));
            return;
        };
        let work = self.aborted();
        if !work.is_empty() {
            runtime.spawn(ended(work, Arc::clone(&self.followed)));
        }
    }
}

/// Closes connections after the work that uses them: a client of MongoDB that is closed while it
/// listens for changes would wait forever.
async fn ended(work: Vec<JoinHandle<()>>, followed: Arc<Followed>) {
    for work in work {
        // An abort is not a failure.
        let _ = work.await;
    }
    followed.close().await;
}

struct Shared {
    open: Mutex<Option<Arc<Open>>>,
    ending: Ending,
    url: String,
}

impl Shared {
    fn open(&self) -> PyResult<Arc<Open>> {
        runtime::check_fork()?;
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| PyValueError::new_err("the flags are closed"))
    }

    fn followed(&self) -> PyResult<Arc<Followed>> {
        Ok(Arc::clone(&self.open()?.followed))
    }

    fn close(&self) -> PyResult<Ended> {
        self.ending.begin(|| {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move {
                if let Some(open) = open {
                    ended(open.aborted(), Arc::clone(&open.followed)).await;
                }
            }
        })
    }

    fn subscribe(&self, handler: &Bound<'_, PyAny>) -> PyResult<Subscription> {
        if !handler.is_callable() {
            return Err(type_error("handler", "callable", handler));
        }
        let open = self.open()?;
        let (events, followed) = (open.events.subscribe(), Arc::downgrade(&open.followed));
        let handler = Arc::new(handler.clone().unbind());
        let task = runtime::runtime()?.spawn(deliver(events, followed, handler));
        Ok(Subscription { task: Owned::new(task) })
    }

    fn resolve<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let given = Given::read(targeting_key, attributes)?;
        let (key, followed) = (text_of(key, "key")?, self.followed()?);
        match &*followed {
            Followed::Store { .. } => {
                let compiled = followed.compiled("_resolve()")?;
                resolve::local(&compiled, key, &given)
            }
            Followed::Server(remote) => runtime::block(py, remote.resolve(key, &given))?,
        }
        .into_pyobject(py)
    }

    fn resolve_async<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let given = Given::read(targeting_key, attributes)?;
        let (key, followed) = (text(key, "key")?, self.followed()?);
        match &*followed {
            Followed::Store { .. } => {
                let compiled = followed.compiled("_resolve_async()")?;
                runtime::done(py, resolve::local(&compiled, &key, &given))
            }
            Followed::Server(remote) => {
                let remote = remote.clone();
                runtime::future(py, async move { Ok(remote.resolve(&key, &given).await) })
            }
        }
    }

    fn status(&self, py: Python<'_>) -> PyResult<LiveStatus> {
        let followed = self.followed()?;
        let (age, from_file) = match &*followed {
            Followed::Store { live, .. } => {
                let status = live.status();
                (Some(status.age), status.from_file)
            }
            Followed::Server(_) => (None, false),
        };
        let error = followed.failure().map(|error| exception(error).into_value(py).into_any());
        Ok(LiveStatus { revision: followed.revision(), age, from_file, error })
    }
}

/// The arguments of `open`.
enum Opening {
    Store { config: Box<StoreConfig>, live: LiveConfig },
    Server(RemoteConfig),
}

impl Opening {
    fn read(
        url: &Bound<'_, PyAny>,
        token: Option<&Bound<'_, PyAny>>,
        poll_interval: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        file: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let url = convert::url(url)?;
        let scheme = url.split("://").next().unwrap_or_default().to_ascii_lowercase();
        let is_server = matches!(&*scheme, "http" | "https");
        let least = if is_server { 0.1 } else { 0.01 };
        let between = |value, name, least, most: f64| seconds_between(value, name, least, most);
        let poll_interval =
            poll_interval.map(|s| between(s, "poll_interval", least, 3600.0)).transpose()?;
        let timeout = timeout.map(|s| between(s, "timeout", 0.01, 600.0)).transpose()?;
        if is_server {
            if file.is_some() {
                return Err(value_error("file", "has no effect on a server's URL: leave it out"));
            }
            let mut config = RemoteConfig::new(url);
            let token = token.map(|token| text(token, "token")).transpose()?;
            config.token = token.as_deref().map(OfrepToken::new).transpose().map_err(exception)?;
            config.poll_interval = poll_interval.unwrap_or(config.poll_interval);
            config.request_timeout = timeout.unwrap_or(config.request_timeout);
            return Ok(Self::Server(config));
        }
        if token.is_some() {
            return Err(value_error("token", "has no effect on a store's URL: leave it out"));
        }
        let config = StoreConfig::parse(&url).map_err(of_url)?;
        let mut live = LiveConfig::default();
        live.poll_interval = poll_interval.unwrap_or(live.poll_interval);
        live.store_timeout = timeout.unwrap_or(live.store_timeout);
        live.file = file.map(|file| path(file, "file")).transpose()?;
        Ok(Self::Store { config: Box::new(config), live })
    }

    async fn open(self) -> PyResult<Shared> {
        let (events, _) = broadcast::channel(EVENTS);
        let (url, followed, work) = match self {
            Self::Server(config) => {
                let (url, interval) = (config.base_url.clone(), config.poll_interval);
                let remote = Remote::open(config).await.map_err(of_url)?;
                let work = vec![spawn(watch_server(remote.clone(), interval, events.clone()))?];
                (url, Followed::Server(remote), work)
            }
            Self::Store { config, live: settings } => {
                let (url, interval) = (config.url.to_string(), settings.poll_interval);
                let stores = Arc::new(Mutex::new(None));
                let store = Arc::new(opened_later(*config, Arc::clone(&stores)));
                let opened = CoreLive::open(store, Arc::new(TokioRuntime), settings).await;
                let live = match opened {
                    Ok(live) => live,
                    Err(error) => {
                        let stores = stores.lock().unwrap_or_else(PoisonError::into_inner).take();
                        if let Some(stores) = stores {
                            stores.close().await;
                        }
                        return Err(exception(error));
                    }
                };
                let (follows, watched) = (live.clone(), live.clone());
                let work = vec![
                    spawn(async move { follows.run(pending()).await })?,
                    spawn(watch_store(watched, interval, events.clone()))?,
                ];
                let compiled = Mutex::new(Arc::new(Compiled::live(live.current())));
                (url, Followed::Store { live, stores, compiled }, work)
            }
        };
        let work = Mutex::new(work);
        let (followed, events) = (Owned::new(Arc::new(followed)), Owned::new(events));
        let open = Open { followed, events, work };
        Ok(Shared { open: Mutex::new(Some(Arc::new(open))), ending: Ending::default(), url })
    }
}

fn spawn(work: impl Future<Output = ()> + Send + 'static) -> PyResult<JoinHandle<()>> {
    Ok(runtime::runtime()?.spawn(work))
}

/// A store that is opened at its first use, for the sake of a start from the file. `stores`
/// receives what has to be closed.
fn opened_later(config: StoreConfig, stores: Arc<Mutex<Option<Stores>>>) -> LazyFlagStore {
    LazyFlagStore::new(move || {
        let (config, stores) = (config.clone(), Arc::clone(&stores));
        Box::pin(async move {
            // `Read` would take a SQLite file for unchanging.
            let opened = Stores::open(&config, Access::Use).await?;
            let flags = opened.flags.clone();
            *stores.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            Ok(flags)
        })
    })
}

/// What happened to followed flags.
#[derive(Clone)]
enum Event {
    Changed { revision: Option<u64>, keys: Option<Vec<String>> },
    Failed(Error),
    Recovered,
}

/// Reports each failure once, and its end.
#[derive(Default)]
struct Health {
    /// The code of the failure that was reported.
    failing: Option<&'static str>,
}

impl Health {
    fn report(&mut self, failure: Option<Error>, events: &broadcast::Sender<Event>) {
        let code = failure.as_ref().map(Error::code);
        if code == self.failing {
            return;
        }
        self.failing = code;
        // Without a subscriber, nobody is told.
        let _ = events.send(failure.map_or(Event::Recovered, Event::Failed));
    }
}

/// Tells subscribers of changes and of the store's health, which has no notification.
async fn watch_store(live: CoreLive, interval: Duration, events: broadcast::Sender<Event>) {
    let pause = (interval / 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
    let (mut changes, mut before) = (live.subscribe(), live.current());
    let mut health = Health::default();
    loop {
        select(pin!(changes.next()), TokioRuntime.sleep(pause)).await;
        let now = live.current();
        if !Arc::ptr_eq(&now, &before) {
            let keys = Some(changed_keys(before.snapshot(), now.snapshot()));
            let _ = events.send(Event::Changed { revision: Some(now.revision()), keys });
            before = now;
        }
        health.report(live.status().failure, &events);
    }
}

/// The flags that differ.
fn changed_keys(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let of = |snapshot: &Snapshot| -> BTreeMap<String, (u64, bool)> {
        let read = snapshot.flags.iter().map(|flag| (flag.key.clone(), (flag.version, true)));
        let invalid = snapshot.invalid.iter().map(|flag| (flag.key.clone(), (0, false)));
        read.chain(invalid).collect()
    };
    let (before, after) = (of(before), of(after));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |key: &&&String| before.get(**key) != after.get(**key);
    keys.iter().filter(differs).map(|key| (*key).clone()).collect()
}

/// Keeps the server's answers current, and tells subscribers.
async fn watch_server(remote: Remote, interval: Duration, events: broadcast::Sender<Event>) {
    let mut health = Health::default();
    loop {
        let before = remote.revision();
        TokioRuntime.sleep(interval).await;
        remote.refresh().await;
        let revision = remote.revision();
        if revision != before {
            let _ = events.send(Event::Changed { revision, keys: None });
        }
        health.report(remote.failure(), &events);
    }
}

/// Calls the handler for each event, one at a time. If it is too slow, the current state stands for
/// the events that it missed.
async fn deliver(
    mut events: broadcast::Receiver<Event>,
    followed: Weak<Followed>,
    handler: Arc<Py<PyAny>>,
) {
    loop {
        match events.recv().await {
            Ok(event) => call(&handler, event).await,
            Err(RecvError::Lagged(_)) => {
                // From here on: the state that is read next contains what came before.
                events = events.resubscribe();
                let Some(state) = followed.upgrade().map(|followed| followed.state()) else {
                    return;
                };
                for event in state {
                    call(&handler, event).await;
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

async fn call(handler: &Arc<Py<PyAny>>, event: Event) {
    let handler = Arc::clone(handler);
    // At the end of the interpreter, nobody is called any more.
    runtime::in_python(move |py| {
        if let Err(error) = handler.call1(py, (FlagEvent::from(event),)) {
            error.write_unraisable(py, Some(handler.bind(py)));
        }
    })
    .await;
}

/// A change of followed flags, or of their source's health.
#[pyclass(frozen, module = "dezky")]
pub(crate) struct FlagEvent {
    kind: &'static str,
    revision: Option<u64>,
    keys: Option<Vec<String>>,
    message: Option<String>,
}

impl From<Event> for FlagEvent {
    fn from(event: Event) -> Self {
        let (kind, revision, keys, message) = match event {
            Event::Changed { revision, keys } => ("changed", revision, keys, None),
            Event::Failed(error) => {
                let kind = if error.is_retryable() { "stale" } else { "error" };
                (kind, None, None, Some(error.to_string()))
            }
            Event::Recovered => ("ready", None, None, None),
        };
        Self { kind, revision, keys, message }
    }
}

#[pymethods]
impl FlagEvent {
    /// `changed`: other flags are in use now. `stale`: the source can't be read, and the last
    /// flags stay in use. `error`: the same, and it will not pass by itself, such as a rejected
    /// token. `ready`: the source is readable again.
    #[getter]
    fn kind(&self) -> &'static str {
        self.kind
    }

    /// The revision of the changed flags.
    #[getter]
    fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The keys of the changed flags; `None` from a server, which does not state them, and after
    /// the handler was so slow that events were dropped.
    #[getter]
    fn keys(&self) -> Option<Vec<String>> {
        self.keys.clone()
    }

    /// The problem, for `stale` and `error`.
    #[getter]
    fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    fn __repr__(&self) -> String {
        let mut text = format!("FlagEvent(kind='{}'", self.kind);
        if let Some(revision) = self.revision {
            let _ = write!(text, ", revision={revision}");
        }
        if let Some(keys) = &self.keys {
            let _ = write!(text, ", keys={keys:?}");
        }
        if let Some(message) = &self.message {
            let _ = write!(text, ", message={message:?}");
        }
        text.push(')');
        text
    }
}

/// How current followed flags are.
#[pyclass(frozen, module = "dezky")]
pub(crate) struct LiveStatus {
    revision: Option<u64>,
    age: Option<Duration>,
    from_file: bool,
    error: Option<Py<PyAny>>,
}

#[pymethods]
impl LiveStatus {
    /// The revision of the flags in use; `None` if a server does not state it.
    #[getter]
    fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The time since the last read that confirmed the flags; `None` for a server.
    #[getter]
    fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Whether the flags come from the file, because the store was not reached since the start.
    #[expect(clippy::wrong_self_convention, reason = "a property in Python")]
    #[getter]
    fn from_file(&self) -> bool {
        self.from_file
    }

    /// Whether the last read failed. The last flags stay in use.
    #[getter]
    fn stale(&self) -> bool {
        self.error.is_some()
    }

    /// The exception of the last read, if it failed.
    #[getter]
    fn error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.error.as_ref().map(|error| error.clone_ref(py))
    }

    fn __repr__(&self) -> String {
        let revision = self.revision.map_or_else(|| "None".to_owned(), |n| n.to_string());
        let age =
            self.age.map(|age| format!(", age={:.3}s", age.as_secs_f64())).unwrap_or_default();
        let stale = if self.stale() { "True" } else { "False" };
        format!("LiveStatus(revision={revision}{age}, stale={stale})")
    }
}

/// A subscription to events of followed flags. Ends with `cancel()` or as a context manager, and
/// when the flags are closed.
#[pyclass(frozen, module = "dezky")]
pub(crate) struct Subscription {
    task: Owned<JoinHandle<()>>,
}

#[pymethods]
impl Subscription {
    /// Ends the subscription. A call under way ends by itself; no other begins. Idempotent.
    ///
    /// Raises:
    ///     ForkedError: The process was forked after dezky was used.
    fn cancel(&self) -> PyResult<()> {
        runtime::check_fork()?;
        self.task.abort();
        Ok(())
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.cancel()
    }
}

/// Flags that follow a store or a server. `AsyncLiveFlags` is the same for asyncio.
///
/// From a store, flags are decided in this process, without I/O: changes arrive by notification,
/// or with the next poll. A server (`http://` or `https://`) decides by itself, over OpenFeature's
/// protocol OFREP: the first evaluation for a context asks it for all flags, later ones are
/// answered from memory and kept current. While store or server can't be reached, the last flags
/// stay in use.
///
/// All threads may use it at once. Use it as a context manager, or `close()` it.
///
/// Examples:
///     >>> import dezky
///     >>> with dezky.LiveFlags.open("memory:") as flags:
///     ...     flags.evaluate("chat", tenant_id="t-1").reason
///     'unknown_flag'
#[pyclass(frozen, module = "dezky")]
pub(crate) struct LiveFlags {
    shared: Arc<Shared>,
}

#[pymethods]
impl LiveFlags {
    #[new]
    #[pyo3(signature = (*_arguments, **_named), text_signature = "()")]
    fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Err(opened_by("LiveFlags.open(url)"))
    }

    /// Opens the flags at a URL.
    ///
    /// Args:
    ///     url: A store (`sqlite:///path`, `postgres://…`, `mongodb://…`), whose schema must exist,
    ///         or the address of a `dezky-server`.
    ///     token: The token for a server.
    ///     poll_interval: The time between two reads, in seconds or as a `timedelta`: 0.01 (for a
    ///         server 0.1) to 3600 seconds. 0.5 for a store, 5 for a server by default.
    ///     timeout: The time for one read: 0.01 to 600 seconds. 5 for a store, 2 for a server by
    ///         default.
    ///     file: A file of this process alone in which the flags of a store are kept, so that the
    ///         next start succeeds while the store is down.
    ///
    /// Raises:
    ///     ConfigInvalidError: The URL or the token is malformed.
    ///     StoreUnavailableError: Neither source nor file can be read.
    ///     AuthFailedError: The token or the password is rejected.
    ///     ValueError: An option is out of its bounds, or does not fit the URL.
    #[staticmethod]
    #[pyo3(signature = (url, *, token = None, poll_interval = None, timeout = None, file = None))]
    fn open(
        py: Python<'_>,
        url: &Bound<'_, PyAny>,
        token: Option<&Bound<'_, PyAny>>,
        poll_interval: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        file: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let opening = Opening::read(url, token, poll_interval, timeout, file)?;
        let shared = runtime::wait(py, opening.open())??;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Decides a flag. From a store this never waits; a server is asked if it has not answered for
    /// the context yet.
    ///
    /// Args:
    ///     key: The flag's key. An unknown key is a decision too.
    ///     context: The subject: a `Context` or a mapping with its members. Keyword arguments
    ///         override it or stand alone; the tenant's id must be in either.
    ///
    /// Raises:
    ///     TypeError: The tenant's id is missing, or an argument has another type.
    ///     ValueError: The context is invalid, or the flags are closed.
    ///     StoreUnavailableError: The server is unreachable and has no answer for the context yet.
    #[pyo3(
        signature = (key, context = None, **axes),
        text_signature = "($self, key, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Decision> {
        let asked = Asked::read("evaluate", context, axes)?;
        let followed = self.shared.followed()?;
        match &*followed {
            Followed::Store { .. } => followed.compiled("evaluate()")?.evaluate(key, &asked),
            Followed::Server(remote) => {
                let (key, values) = (text(key, "key")?, asked.into_values());
                runtime::block(py, remote.evaluate(&key, &values))?
            }
        }
    }

    /// Decides all flags at once.
    ///
    /// Args:
    ///     context: As for `evaluate()`.
    ///
    /// Returns:
    ///     Whether each flag is on, by key, in the order of the keys. A flag that a server can't
    ///     decide for the context is left out.
    ///
    /// Raises:
    ///     TypeError: The tenant's id is missing, or an argument has another type.
    ///     ValueError: The context is invalid, or the flags are closed.
    ///     StoreUnavailableError: The server is unreachable and has no answer for the context yet.
    #[pyo3(
        signature = (context = None, **axes),
        text_signature = "($self, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate_all<'py>(
        &self,
        py: Python<'py>,
        context: Option<&Bound<'py, PyAny>>,
        axes: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let asked = Asked::read("evaluate_all", context, axes)?;
        let followed = self.shared.followed()?;
        match &*followed {
            Followed::Store { .. } => followed.compiled("evaluate_all()")?.evaluate_all(py, &asked),
            Followed::Server(remote) => {
                let values = asked.into_values();
                dict(py, runtime::block(py, remote.evaluate_all(&values))??)
            }
        }
    }

    /// Decides one flag of a store for a column of tenants; see `FlagSet.evaluate_many()`.
    ///
    /// Args:
    ///     key: The flag's key.
    ///     tenant_ids: The tenants' ids.
    ///
    /// Raises:
    ///     TypeError: The column is of another type, or holds something else than text.
    ///     ValueError: The column is invalid, the flags are closed, or a server decides them.
    #[pyo3(
        signature = (key, tenant_ids, **axes),
        text_signature = "($self, key, tenant_ids, *, tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate_many(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        tenant_ids: &Bound<'_, PyAny>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<BooleanColumn> {
        let compiled = self.shared.followed()?.compiled("evaluate_many()")?;
        compiled.evaluate_many(py, key, tenant_ids, axes)
    }

    /// Explains the decision on a flag of a store.
    ///
    /// Args:
    ///     key: The flag's key.
    ///     context: As for `evaluate()`.
    ///
    /// Raises:
    ///     TypeError: The tenant's id is missing, or an argument has another type.
    ///     ValueError: The context is invalid, the flags are closed, or a server decides them.
    #[pyo3(
        signature = (key, context = None, **axes),
        text_signature = "($self, key, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn explain(
        &self,
        key: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Explanation> {
        let asked = Asked::read("explain", context, axes)?;
        self.shared.followed()?.compiled("explain()")?.explain(key, &asked)
    }

    /// Returns the flags of a store that are in use now, for several decisions by the same flags.
    ///
    /// Raises:
    ///     ValueError: The flags are closed, or a server decides them.
    fn current(&self) -> PyResult<FlagSet> {
        Ok(FlagSet(self.shared.followed()?.compiled("current()")?))
    }

    /// Reads the source now.
    ///
    /// Returns:
    ///     The revision of the flags in use afterwards; `None` if a server does not state it.
    ///
    /// Raises:
    ///     StoreUnavailableError: The source can't be reached. The last flags stay in use.
    ///     AuthFailedError: The token or the password is rejected.
    ///     ValueError: The flags are closed.
    fn refresh(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let followed = self.shared.followed()?;
        runtime::wait(py, refresh(followed))?
    }

    /// Returns how current the flags are. Does not wait.
    ///
    /// Raises:
    ///     ValueError: The flags are closed.
    fn status(&self, py: Python<'_>) -> PyResult<LiveStatus> {
        self.shared.status(py)
    }

    /// The revision of the flags in use; `None` if a server does not state it.
    #[getter]
    fn revision(&self) -> PyResult<Option<u64>> {
        Ok(self.shared.followed()?.revision())
    }

    /// Subscribes to changes of the flags and of their source's health.
    ///
    /// Args:
    ///     handler: Called with each `FlagEvent`, in order, on a thread of dezky's. An exception
    ///         goes to `sys.unraisablehook`. It may use these flags, but should not wait for long:
    ///         once 256 events wait, one of the kind `changed` without keys and one of the current
    ///         health stand for all of them. The interpreter ends after a call under way.
    ///
    /// Returns:
    ///     The subscription, which also ends when the flags are closed.
    ///
    /// Raises:
    ///     TypeError: The handler is not callable.
    ///     ValueError: The flags are closed.
    fn subscribe(&self, handler: &Bound<'_, PyAny>) -> PyResult<Subscription> {
        self.shared.subscribe(handler)
    }

    /// Stops following the source and closes its connections. Idempotent.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        runtime::block(py, self.shared.close()?)
    }

    /// Resolves a flag in OpenFeature's terms; for `dezky.openfeature`.
    fn _resolve<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        self.shared.resolve(py, key, targeting_key, attributes)
    }

    /// Like `_resolve`, for asyncio.
    fn _resolve_async<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.shared.resolve_async(py, key, targeting_key, attributes)
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        described("LiveFlags", &self.shared)
    }
}

async fn refresh(followed: Arc<Followed>) -> PyResult<Option<u64>> {
    match &*followed {
        Followed::Store { live, .. } => live.refresh().await.map(Some).map_err(exception),
        Followed::Server(remote) => {
            remote.refresh().await;
            match remote.failure() {
                Some(error) => Err(exception(error)),
                None => Ok(remote.revision()),
            }
        }
    }
}

fn dict(py: Python<'_>, values: Vec<(String, bool)>) -> PyResult<Bound<'_, PyDict>> {
    let all = PyDict::new(py);
    for (key, value) in values {
        all.set_item(key, value)?;
    }
    Ok(all)
}

fn described(class: &str, shared: &Shared) -> String {
    let is_open = shared.open.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    let state = if is_open { "" } else { ", closed" };
    format!("{class}('{}'{state})", shared.url)
}

/// Values by key, as a dictionary.
struct Values(Vec<(String, bool)>);

impl<'py> IntoPyObject<'py> for Values {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, self.0)
    }
}

/// `LiveFlags` for asyncio: what may wait is awaitable.
///
/// Examples:
///     >>> import asyncio, dezky
///     >>> async def main():
///     ...     async with await dezky.AsyncLiveFlags.open("memory:") as flags:
///     ...         return (await flags.evaluate("chat", tenant_id="t-1")).reason
///     >>> asyncio.run(main())
///     'unknown_flag'
#[pyclass(frozen, module = "dezky")]
pub(crate) struct AsyncLiveFlags {
    shared: Arc<Shared>,
}

#[pymethods]
impl AsyncLiveFlags {
    #[new]
    #[pyo3(signature = (*_arguments, **_named), text_signature = "()")]
    fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Err(opened_by("await AsyncLiveFlags.open(url)"))
    }

    /// Opens the flags at a URL; see `LiveFlags.open()`.
    #[staticmethod]
    #[pyo3(signature = (url, *, token = None, poll_interval = None, timeout = None, file = None))]
    fn open<'py>(
        py: Python<'py>,
        url: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
        poll_interval: Option<&Bound<'py, PyAny>>,
        timeout: Option<&Bound<'py, PyAny>>,
        file: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let opening = Opening::read(url, token, poll_interval, timeout, file)?;
        runtime::future(py, async move {
            Ok(AsyncLiveFlags { shared: Arc::new(opening.open().await?) })
        })
    }

    /// Decides a flag; see `LiveFlags.evaluate()`.
    #[pyo3(
        signature = (key, context = None, **axes),
        text_signature = "($self, key, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        context: Option<&Bound<'py, PyAny>>,
        axes: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let asked = Asked::read("evaluate", context, axes)?;
        let followed = self.shared.followed()?;
        match &*followed {
            Followed::Store { .. } => {
                runtime::done(py, followed.compiled("evaluate()")?.evaluate(key, &asked)?)
            }
            Followed::Server(remote) => {
                let (remote, key, values) =
                    (remote.clone(), text(key, "key")?, asked.into_values());
                runtime::future(py, async move { remote.evaluate(&key, &values).await })
            }
        }
    }

    /// Decides all flags at once; see `LiveFlags.evaluate_all()`.
    #[pyo3(
        signature = (context = None, **axes),
        text_signature = "($self, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate_all<'py>(
        &self,
        py: Python<'py>,
        context: Option<&Bound<'py, PyAny>>,
        axes: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let asked = Asked::read("evaluate_all", context, axes)?;
        let followed = self.shared.followed()?;
        match &*followed {
            Followed::Store { .. } => {
                runtime::done(py, followed.compiled("evaluate_all()")?.evaluate_all(py, &asked)?)
            }
            Followed::Server(remote) => {
                let (remote, values) = (remote.clone(), asked.into_values());
                runtime::future(py, async move { remote.evaluate_all(&values).await.map(Values) })
            }
        }
    }

    /// Decides one flag of a store for a column of tenants, on another thread; see
    /// `FlagSet.evaluate_many()`. The flags are those in use now.
    #[pyo3(
        signature = (key, tenant_ids, **axes),
        text_signature = "($self, key, tenant_ids, *, tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate_many<'py>(
        &self,
        py: Python<'py>,
        key: Bound<'py, PyAny>,
        tenant_ids: Bound<'py, PyAny>,
        axes: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let compiled = self.shared.followed()?.compiled("evaluate_many()")?;
        let (key, tenant_ids) = (key.unbind(), tenant_ids.unbind());
        let axes = axes.map(Bound::unbind);
        let decided = runtime::in_python(move |py| {
            let axes = axes.as_ref().map(|axes| axes.bind(py));
            compiled.evaluate_many(py, key.bind(py), tenant_ids.bind(py), axes)
        });
        runtime::future(py, async move {
            let ends = || Err(PyValueError::new_err("the interpreter ends"));
            decided.await.unwrap_or_else(ends)
        })
    }

    /// Explains the decision on a flag of a store; see `LiveFlags.explain()`.
    #[pyo3(
        signature = (key, context = None, **axes),
        text_signature = "($self, key, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        context: Option<&Bound<'py, PyAny>>,
        axes: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let asked = Asked::read("explain", context, axes)?;
        let compiled = self.shared.followed()?.compiled("explain()")?;
        runtime::done(py, compiled.explain(key, &asked)?)
    }

    /// Returns the flags of a store that are in use now. Does not wait.
    ///
    /// Raises:
    ///     ValueError: The flags are closed, or a server decides them.
    fn current(&self) -> PyResult<FlagSet> {
        Ok(FlagSet(self.shared.followed()?.compiled("current()")?))
    }

    /// Reads the source now; see `LiveFlags.refresh()`.
    fn refresh<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        runtime::future(py, refresh(self.shared.followed()?))
    }

    /// Returns how current the flags are. Does not wait.
    ///
    /// Raises:
    ///     ValueError: The flags are closed.
    fn status(&self, py: Python<'_>) -> PyResult<LiveStatus> {
        self.shared.status(py)
    }

    /// The revision of the flags in use; `None` if a server does not state it.
    #[getter]
    fn revision(&self) -> PyResult<Option<u64>> {
        Ok(self.shared.followed()?.revision())
    }

    /// Subscribes to changes; see `LiveFlags.subscribe()`. The handler is called on a thread of
    /// dezky's, not in the event loop: hand events over with `loop.call_soon_threadsafe()`.
    fn subscribe(&self, handler: &Bound<'_, PyAny>) -> PyResult<Subscription> {
        self.shared.subscribe(handler)
    }

    /// Stops following the source and closes its connections. Idempotent.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        runtime::future(py, self.shared.close()?.map(Ok))
    }

    /// Resolves a flag in OpenFeature's terms; for `dezky.openfeature`.
    fn _resolve<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        self.shared.resolve(py, key, targeting_key, attributes)
    }

    /// Like `_resolve`, for asyncio.
    fn _resolve_async<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.shared.resolve_async(py, key, targeting_key, attributes)
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        runtime::done(slf.py(), slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _exception: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        described("AsyncLiveFlags", &self.shared)
    }
}
