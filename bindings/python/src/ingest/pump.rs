//! The pump: moves the events of a source into a log.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky::ingest::{
    IngestSummary, Pump as RustPump, PumpConfig, PumpHandle, PumpState, PumpStatus as RustStatus,
    Tick as RustTick,
};
use dezky::{Runtime as _, TokioRuntime};
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCFunction;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::arguments::{flag, seconds_between, source_name, whole};
use super::log::PumpLog;
use super::source::{PythonSource, Shared, warn};
use crate::convert::{datetime, text, type_error, value_error};
use crate::error::{coded, exception};
use crate::runtime::{
    Ended, Ending, block, check_fork, existing, future, in_python, runtime, wait,
};

/// The interval at which failures of a running pump are looked for.
const WATCH: Duration = Duration::from_millis(200);

/// The pump and its controls, for both of its forms.
struct Inner {
    source: String,
    /// Kept open as long as the pump.
    log: PumpLog,
    /// Locked while it works; `None` once it is closed.
    pump: Arc<AsyncMutex<Option<RustPump>>>,
    handle: PumpHandle,
    shared: Arc<Shared>,
    ending: Ending,
}

/// The arguments of both forms of a pump.
struct Options<'a, 'py> {
    interval: Option<&'a Bound<'py, PyAny>>,
    holder: Option<&'a Bound<'py, PyAny>>,
    lease: Option<&'a Bound<'py, PyAny>>,
    max_batches: Option<&'a Bound<'py, PyAny>>,
    max_backoff: Option<&'a Bound<'py, PyAny>>,
    rest: Option<&'a Bound<'py, PyAny>>,
}

impl Options<'_, '_> {
    fn config(&self) -> PyResult<PumpConfig> {
        let mut config = PumpConfig::default();
        if let Some(interval) = self.interval {
            config.interval = seconds_between(interval, "interval", 0, 86_400)?;
        }
        if let Some(lease) = self.lease {
            config.lease_ttl = seconds_between(lease, "lease", 1, 3_600)?;
        }
        if let Some(longest) = self.max_backoff {
            config.max_backoff = seconds_between(longest, "max_backoff", 0, 86_400)?;
        }
        if let Some(batches) = self.max_batches {
            config.max_batches =
                usize::try_from(whole(batches, "max_batches", 1, 1_000_000)?).unwrap_or(usize::MAX);
        }
        if let Some(rest) = self.rest {
            config.rests = flag(rest, "rest")?;
        }
        if let Some(holder) = self.holder {
            let holder = text(holder, "holder")?;
            if !(1..=128).contains(&holder.len()) || holder.contains('\0') {
                return Err(value_error("holder", "must be 1 to 128 bytes, without U+0000"));
            }
            config.holder = Some(holder);
        }
        Ok(config)
    }
}

impl Inner {
    fn new(
        log: &Bound<'_, PyAny>,
        source: &Bound<'_, PyAny>,
        is_async: bool,
        options: &Options<'_, '_>,
    ) -> PyResult<Arc<Self>> {
        static IS_ASYNC: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        check_fork()?;
        let log = PumpLog::new(log, is_async)?;
        let intake = log.intake()?;
        let py = source.py();
        let pull = source.getattr_opt("pull")?.filter(Bound::is_callable);
        let (Some(pull), Some(name)) = (pull, source.getattr_opt("name")?) else {
            return Err(type_error("source", "a Source, with a name and a method pull", source));
        };
        let name = source_name(&name, "source.name")?;
        let is_coroutine = IS_ASYNC.import(py, "inspect", "iscoroutinefunction")?.call1((pull,))?;
        if !is_async && is_coroutine.is_truthy()? {
            return Err(PyTypeError::new_err(
                "source.pull is async: use AsyncPump, or make it a def",
            ));
        }
        let config = options.config()?;
        let shared = Arc::new(Shared::new(name.clone(), source, is_async));
        let pump = RustPump::new(Box::new(PythonSource(Arc::clone(&shared))), intake, config);
        let handle = pump.handle();
        let pump = Arc::new(AsyncMutex::new(Some(pump)));
        let ending = Ending::default();
        Ok(Arc::new(Self { source: name, log, pump, handle, shared, ending }))
    }

    /// Takes the pump for work of its own.
    fn take(&self) -> PyResult<Held> {
        check_fork()?;
        let Ok(guard) = Arc::clone(&self.pump).try_lock_owned() else {
            return Err(coded(
                "state_conflict",
                "the pump is working: a tick or a run is under way, and they never overlap",
            ));
        };
        if guard.is_none() {
            return Err(PyValueError::new_err("the pump is closed"));
        }
        self.log.check_open()?;
        Ok(Held(Some(guard)))
    }

    async fn tick(self: Arc<Self>, mut held: Held) -> PyResult<Tick> {
        self.shared.begin(false);
        let done = match held.pump() {
            Some(pump) => pump.tick().await,
            None => Ok(RustTick::default()),
        };
        held.finished();
        done.map(Tick).map_err(|error| {
            let raised = self.shared.take_exception();
            raised.or_else(|| self.log.check_open().err()).unwrap_or_else(|| exception(error))
        })
    }

    async fn run(self: Arc<Self>, mut held: Held) -> PyResult<()> {
        self.shared.begin(true);
        let mut stop = self.shared.stop().subscribe();
        let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
        let mut is_closed = None;
        if let Some(pump) = held.pump() {
            let work = pin!(pump.run(stopped));
            let watch = pin!(self.watch());
            if let Either::Right((closed, work)) = select(work, watch).await {
                is_closed = Some(closed);
                self.ask_to_stop();
                work.await;
            }
        }
        held.finished();
        // What it raises counts, although its batch does not any more.
        self.shared.is_idle().await;
        self.shared.end_run();
        self.shared.stop().send_replace(false);
        if self.shared.has_ended() {
            return self.shared.take_exception().map_or(Ok(()), Err);
        }
        is_closed.map_or(Ok(()), Err)
    }

    /// Logs failures of the store, which nobody else sees, until the log is closed.
    async fn watch(&self) -> PyErr {
        let mut seen = None;
        loop {
            TokioRuntime.sleep(WATCH).await;
            if let Err(closed) = self.log.check_open() {
                return closed;
            }
            let status = self.handle.status();
            let Some(error) = status.last_error.filter(|_| status.failures > 0) else { continue };
            let now = (error.at, status.failures);
            if seen == Some(now) {
                continue;
            }
            seen = Some(now);
            if !self.shared.has_logged(&error.text) {
                let message = format!(
                    "the pump of {} failed, and will try again: {} ({})",
                    self.source, error.text, error.code
                );
                // At the end of the interpreter, nobody reads it any more.
                let _ = in_python(move |py| warn(py, &message, None)).await;
            }
        }
    }

    fn ask_to_stop(&self) {
        self.shared.stop().send_replace(true);
    }

    /// Waits until nothing works any more, the source included.
    fn settled(&self) -> impl Future<Output = ()> + Send + use<> {
        let (pump, shared) = (Arc::clone(&self.pump), Arc::clone(&self.shared));
        async move {
            drop(pump.lock().await);
            shared.is_idle().await;
        }
    }

    /// Ends everything, and gives the lease back.
    ///
    /// # Errors
    /// `StateConflictError` within `pull`: it would wait for itself.
    fn close(&self, py: Python<'_>) -> PyResult<Ended> {
        if self.shared.is_inside(py) {
            return Err(coded("state_conflict", "pull can't close its pump: call stop() instead"));
        }
        self.ending.begin(|| {
            self.ask_to_stop();
            let (pump, shared) = (Arc::clone(&self.pump), Arc::clone(&self.shared));
            async move {
                if let Some(mut pump) = pump.lock().await.take() {
                    pump.release().await;
                }
                shared.is_idle().await;
                shared.stop().send_replace(false);
            }
        })
    }

    fn status(&self) -> PumpStatus {
        PumpStatus(self.handle.status())
    }

    /// Visits what it holds for the garbage collector, unless work under way holds it too: the
    /// collector does not see that, and would take the source for garbage.
    fn traverse(self: &Arc<Self>, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        // At rest, the pump's own reference to the source is the only other one.
        if Arc::strong_count(self) > 1 || Arc::strong_count(&self.shared) > 2 {
            return Ok(());
        }
        visit.call(self.log.object())?;
        visit.call(self.shared.source())
    }

    fn shown(&self, name: &str) -> String {
        format!("<{name} of {:?}, {}>", self.source, state_name(self.handle.status().state))
    }
}

impl Drop for Inner {
    /// Gives the lease back, so that another pump need not wait for it to lapse. The pump is dropped
    /// within the runtime, because it holds connections; in a forked process it is leaked, because
    /// they are the parent's.
    fn drop(&mut self) {
        let Ok(mut guard) = Arc::clone(&self.pump).try_lock_owned() else { return };
        let Some(mut pump) = guard.take() else { return };
        match existing() {
            Some(runtime) => drop(runtime.spawn(async move { pump.release().await })),
            None => std::mem::forget(pump),
        }
    }
}

/// A pump at work. If the work is dropped, the lease is given back.
struct Held(Option<OwnedMutexGuard<Option<RustPump>>>);

impl Held {
    fn pump(&mut self) -> Option<&mut RustPump> {
        self.0.as_mut()?.as_mut()
    }

    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut guard) = self.0.take() else { return };
        if let Some(runtime) = existing() {
            runtime.spawn(async move {
                if let Some(pump) = guard.as_mut() {
                    pump.release().await;
                }
            });
        }
    }
}

/// Moves the events of a source into a log, each batch together with the source's cursor: however
/// the process ends, no event is lost or stored twice.
///
/// Of several pumps with the same source name on one store, one works at a time: it holds a lease
/// in the store, and the others stand by until it is given back or lapses.
///
/// Args:
///     log: The log, an open `AuditLog`.
///     source: The source, usually a `Source`: an object with a `name` and a method
///         `pull(cursor)`.
///     interval: The wait between two ticks of `run`, in seconds or as a `timedelta`.
///     holder: The name of this pump in the lease; random by default.
///     lease: The lease's time to live, 1 to 3,600 seconds. Another pump takes over at most one and
///         a half times that long after this process died.
///     max_batches: The most batches per tick.
///     max_backoff: The longest wait after failures.
///     rest: Whether `run` waits for the interval even while more is waiting.
///
/// Raises:
///     TypeError: The source's `pull` is async; `AsyncPump` can run it.
///     ValueError: The source's name is not 1 to 64 letters, digits, `.`, `_` and `-`, with at most
///         one `:`; or another argument is out of bounds.
///
/// Examples:
///     >>> import dezky
///     >>> from dezky.ingest import Batch, Pump, Source
///     >>> class Door(Source):
///     ...     name = "door"
///     ...     def pull(self, cursor):
///     ...         if cursor == "2":
///     ...             return Batch([], cursor)
///     ...         ada = {"action": "door.opened", "actor": dezky.Actor.user("ada")}
///     ...         return Batch([ada, "smudged"], "2")
///     >>> with dezky.AuditLog.open("memory:") as log, Pump(log, Door()) as pump:
///     ...     tick = pump.tick()
///     >>> tick.stored, tick.quarantined
///     (1, 1)
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct Pump(Arc<Inner>);

#[pymethods]
impl Pump {
    #[new]
    #[pyo3(signature = (
        log, source, *, interval = None, holder = None, lease = None, max_batches = None,
        max_backoff = None, rest = None,
    ), text_signature = "(log, source, *, interval=5.0, holder=None, lease=15.0, max_batches=100, max_backoff=60.0, rest=False)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        log: &Bound<'_, PyAny>,
        source: &Bound<'_, PyAny>,
        interval: Option<&Bound<'_, PyAny>>,
        holder: Option<&Bound<'_, PyAny>>,
        lease: Option<&Bound<'_, PyAny>>,
        max_batches: Option<&Bound<'_, PyAny>>,
        max_backoff: Option<&Bound<'_, PyAny>>,
        rest: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let options = Options { interval, holder, lease, max_batches, max_backoff, rest };
        Inner::new(log, source, false, &options).map(Self)
    }

    /// The source's name.
    #[getter]
    fn source(&self) -> &str {
        &self.0.source
    }

    /// Moves what is waiting, at most `max_batches` batches.
    ///
    /// The lease is kept after it, so that the next tick need not wait, and given back by `close()`
    /// or when an exception ends the tick.
    ///
    /// Returns:
    ///     What was moved.
    ///
    /// Raises:
    ///     Exception: Whatever `pull` raises. Batches that were committed before stay.
    ///     ValueError: The log or the pump is closed.
    ///     StateConflictError: Another thread works with this pump.
    ///     dezky.Error: The store failed.
    fn tick(&self, py: Python<'_>) -> PyResult<Tick> {
        let inner = &self.0;
        let work = Arc::clone(inner).tick(inner.take()?);
        match wait(py, work) {
            Ok(done) => done,
            Err(interrupt) => {
                // The work was dropped, so nothing of it is half done. A second Ctrl-C does not wait.
                drop(block(py, inner.settled()));
                Err(interrupt)
            }
        }
    }

    /// Ticks until `stop()` is called or Ctrl-C is pressed: at once while more is waiting,
    /// otherwise after the interval, and after failures with growing waits.
    ///
    /// It ends in order: a batch that was pulled is committed, an unfinished pull is pulled again
    /// next time, the lease is given back, and `pull` has returned. A second Ctrl-C does not wait.
    ///
    /// A failure does not end it: an exception in `pull` is logged with its traceback, a failure of
    /// the store with its code, both to the logger `dezky`.
    ///
    /// Raises:
    ///     KeyboardInterrupt: Ctrl-C, after the orderly end.
    ///     SystemExit: `pull` raised it; likewise any other exception that does not derive from
    ///         `Exception`.
    ///     ValueError: The log was closed.
    ///     StateConflictError: Another thread works with this pump.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let inner = &self.0;
        let mut task = runtime()?.spawn(Arc::clone(inner).run(inner.take()?));
        match block(py, &mut task) {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(coded("internal", "the pump's thread panicked")),
            Err(interrupt) => {
                inner.ask_to_stop();
                let ended = block(py, &mut task).and_then(|_| block(py, inner.settled()));
                if ended.is_err() {
                    task.abort();
                }
                Err(interrupt)
            }
        }
    }

    /// Ends `run()`, from another thread or from a signal handler. If none is under way, the next
    /// one ends at once.
    fn stop(&self) {
        self.0.ask_to_stop();
    }

    /// How the pump is doing.
    fn status(&self) -> PumpStatus {
        self.0.status()
    }

    /// Ends what is under way in order, and gives the lease back. Idempotent.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        block(py, self.0.close(py)?)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        self.0.shown("Pump")
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.0.traverse(&visit)
    }
}

/// A `Pump` for asyncio: `pull` may be `async def`, and then runs on the event loop that awaits the
/// tick. A `def` runs in a thread.
///
/// Args:
///     log: The log, an open `AsyncAuditLog`.
///     source: The source, usually a `Source`.
///     interval: As for `Pump`, like the other arguments.
///     holder: As for `Pump`.
///     lease: As for `Pump`.
///     max_batches: As for `Pump`.
///     max_backoff: As for `Pump`.
///     rest: As for `Pump`.
///
/// Examples:
///     >>> import asyncio, dezky
///     >>> from dezky.ingest import AsyncPump, Batch, Source
///     >>> class Door(Source):
///     ...     name = "door"
///     ...     async def pull(self, cursor):
///     ...         await asyncio.sleep(0)
///     ...         ada = {"action": "door.opened", "actor": dezky.Actor.user("ada")}
///     ...         return Batch([ada] if cursor is None else [], "1")
///     >>> async def main():
///     ...     async with await dezky.AsyncAuditLog.open("memory:") as log:
///     ...         async with AsyncPump(log, Door()) as pump:
///     ...             return await pump.tick()
///     >>> asyncio.run(main()).stored
///     1
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct AsyncPump(Arc<Inner>);

#[pymethods]
impl AsyncPump {
    #[new]
    #[pyo3(signature = (
        log, source, *, interval = None, holder = None, lease = None, max_batches = None,
        max_backoff = None, rest = None,
    ), text_signature = "(log, source, *, interval=5.0, holder=None, lease=15.0, max_batches=100, max_backoff=60.0, rest=False)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        log: &Bound<'_, PyAny>,
        source: &Bound<'_, PyAny>,
        interval: Option<&Bound<'_, PyAny>>,
        holder: Option<&Bound<'_, PyAny>>,
        lease: Option<&Bound<'_, PyAny>>,
        max_batches: Option<&Bound<'_, PyAny>>,
        max_backoff: Option<&Bound<'_, PyAny>>,
        rest: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let options = Options { interval, holder, lease, max_batches, max_backoff, rest };
        Inner::new(log, source, true, &options).map(Self)
    }

    /// The source's name.
    #[getter]
    fn source(&self) -> &str {
        &self.0.source
    }

    /// Moves what is waiting, as `Pump.tick()`. Cancelling it rolls back what was not committed,
    /// cancels `pull`, and gives the lease back.
    fn tick<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        orderly(py, &self.0, false, |py, inner, held| future(py, inner.tick(held)))
    }

    /// Ticks until `stop()` is called or it is cancelled, as `Pump.run()`; both end it in order.
    fn run<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        orderly(py, &self.0, true, |py, inner, held| future(py, inner.run(held)))
    }

    /// Ends `run()`. If none is under way, the next one ends at once.
    fn stop(&self) {
        self.0.ask_to_stop();
    }

    /// How the pump is doing.
    fn status(&self) -> PumpStatus {
        self.0.status()
    }

    /// Ends what is under way in order, and gives the lease back. Idempotent.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        future(py, self.0.close(py)?.map(Ok))
    }

    fn __aenter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        future(py, async move { Ok(slf) })
    }

    #[pyo3(signature = (*_error))]
    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _error: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        self.0.shown("AsyncPump")
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.0.traverse(&visit)
    }
}

/// A coroutine whose cancellation ends the work in order.
fn orderly<'py>(
    py: Python<'py>,
    inner: &Arc<Inner>,
    stops: bool,
    start: fn(Python<'_>, Arc<Inner>, Held) -> PyResult<Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    static RUN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let started = Arc::clone(inner);
    let start = PyCFunction::new_closure(py, None, None, move |arguments, _| {
        let py = arguments.py();
        let event_loop = py.import("asyncio")?.call_method0("get_running_loop")?;
        let held = started.take()?;
        // Now nothing else uses the loop of a call before.
        started.shared.set_loop(event_loop);
        PyResult::Ok(start(py, Arc::clone(&started), held)?.unbind())
    })?;
    let asked = Arc::clone(inner);
    let stop = PyCFunction::new_closure(py, None, None, move |_, _| {
        if stops {
            asked.ask_to_stop();
        }
        PyResult::Ok(stops)
    })?;
    let waited = Arc::clone(inner);
    let settle = PyCFunction::new_closure(py, None, None, move |arguments, _| {
        Ok::<_, PyErr>(future(arguments.py(), waited.settled().map(Ok))?.unbind())
    })?;
    RUN.import(py, "dezky._pump", "orderly")?.call1((start, stop, settle))
}

/// Counts of what a tick or an append brought.
macro_rules! counts {
    ($class:ident { $($more:tt)* }) => {
        #[pymethods]
        impl $class {
            /// Events that are new in the log.
            #[getter]
            fn stored(&self) -> usize {
                self.summary().stored
            }

            /// Events that were in the log already.
            #[getter]
            fn duplicates(&self) -> usize {
                self.summary().duplicates
            }

            /// Duplicates whose content differs from the stored event, which stays.
            #[getter]
            fn conflicts(&self) -> usize {
                self.summary().conflicts
            }

            /// Items that are in the quarantine now, new or not.
            #[getter]
            fn quarantined(&self) -> usize {
                self.summary().quarantined
            }

            /// Events whose time is not the source's, because that is missing or implausible.
            #[getter]
            fn undated(&self) -> usize {
                self.summary().undated
            }

            /// Stored events whose tenant could not be determined now.
            #[getter]
            fn unresolved(&self) -> usize {
                self.summary().unresolved
            }

            $($more)*
        }
    };
}

/// What a tick of a pump did.
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct Tick(RustTick);

impl Tick {
    fn summary(&self) -> &IngestSummary {
        &self.0.taken
    }
}

counts!(Tick {
    /// Items that the source skipped on purpose.
    #[getter]
    fn skipped(&self) -> u64 {
        self.0.skipped
    }

    /// Whether more was waiting when the tick ended.
    #[getter]
    fn more(&self) -> bool {
        self.0.more
    }

    /// Whether another pump holds the lease, so that this tick did nothing.
    #[getter]
    fn standby(&self) -> bool {
        self.0.standby
    }

    fn __repr__(&self) -> String {
        let RustTick { taken, skipped, more, standby } = &self.0;
        let IngestSummary { stored, duplicates, quarantined, .. } = taken;
        let state = match (standby, more) {
            (true, _) => ", standby",
            (false, true) => ", more waiting",
            (false, false) => "",
        };
        format!(
            "<Tick: {stored} stored, {duplicates} duplicates, {quarantined} quarantined, {skipped} skipped{state}>"
        )
    }
});

/// What `append` brought into a log.
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct Summary(pub(super) IngestSummary);

impl Summary {
    fn summary(&self) -> &IngestSummary {
        &self.0
    }
}

counts!(Summary {
    /// Events and items that are durable in the spool, and move to the log later.
    #[getter]
    fn spooled(&self) -> usize {
        self.0.spooled
    }

    /// Events and items that are durable now: in the log, the quarantine or the spool.
    #[getter]
    fn received(&self) -> usize {
        self.0.received()
    }

    fn __repr__(&self) -> String {
        let IngestSummary { stored, duplicates, quarantined, spooled, .. } = &self.0;
        format!(
            "<Summary: {stored} stored, {duplicates} duplicates, {quarantined} quarantined, {spooled} spooled>"
        )
    }
});

/// How a pump is doing: its state, and totals since it was made.
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct PumpStatus(RustStatus);

#[pymethods]
impl PumpStatus {
    /// `"stopped"`, `"running"`, `"standby"`, `"backing_off"` or `"paused"`.
    #[getter]
    fn state(&self) -> &'static str {
        state_name(self.0.state)
    }

    /// Failed ticks since the last success.
    #[getter]
    fn failures(&self) -> u32 {
        self.0.failures
    }

    /// The last failure as `(code, text)`; `failures` says whether it is over.
    #[getter]
    fn last_error(&self) -> Option<(&'static str, &str)> {
        self.0.last_error.as_ref().map(|error| (error.code, &*error.text))
    }

    /// The start of the last tick.
    #[getter]
    fn last_attempt<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.last_attempt.map(|at| datetime(py, at)).transpose()
    }

    /// The end of the last tick without a failure.
    #[getter]
    fn last_success<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.last_success.map(|at| datetime(py, at)).transpose()
    }

    /// The latest time of the events that were taken.
    #[getter]
    fn newest_event_at<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.newest_event_at.map(|at| datetime(py, at)).transpose()
    }

    /// Whether the source had more at the last pull.
    #[getter]
    fn more(&self) -> bool {
        self.0.more_waiting
    }

    /// Events that are new in the log.
    #[getter]
    fn stored(&self) -> u64 {
        self.0.counts.stored
    }

    /// Events that were in the log already.
    #[getter]
    fn duplicates(&self) -> u64 {
        self.0.counts.duplicates
    }

    /// Duplicates whose content differs from the stored event.
    #[getter]
    fn conflicts(&self) -> u64 {
        self.0.counts.conflicts
    }

    /// Items that are new in the quarantine.
    #[getter]
    fn quarantined(&self) -> u64 {
        self.0.counts.quarantined
    }

    /// Items that the source skipped on purpose.
    #[getter]
    fn skipped(&self) -> u64 {
        self.0.counts.skipped
    }

    /// Batches that were committed with their cursor.
    #[getter]
    fn batches(&self) -> u64 {
        self.0.counts.batches
    }

    /// Ticks that began.
    #[getter]
    fn ticks(&self) -> u64 {
        self.0.counts.ticks
    }

    fn __repr__(&self) -> String {
        let (counts, failures) = (&self.0.counts, self.0.failures);
        format!(
            "<PumpStatus: {}, {} stored, {} quarantined, {failures} failures>",
            state_name(self.0.state),
            counts.stored,
            counts.quarantined
        )
    }
}

fn state_name(state: PumpState) -> &'static str {
    match state {
        PumpState::Stopped => "stopped",
        PumpState::Standby => "standby",
        PumpState::Paused => "paused",
        PumpState::BackingOff => "backing_off",
        _ => "running",
    }
}
