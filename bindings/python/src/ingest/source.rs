//! Sources written in Python, under the pump.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dezky::core::source::{
    IngestSource, MAX_QUARANTINE_RAW_BYTES, Pull, PullLimits, PulledEvent, QuarantineItem,
};
use dezky::core::store::MAX_CURSOR_BYTES;
use dezky::core::{Error, ErrorKind, PLATFORM_SOURCE, Timestamp};
use dezky::{Runtime as _, TokioRuntime};
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCFunction;
use tokio::sync::{Mutex as TurnMutex, OwnedMutexGuard, oneshot, watch};

use super::arguments::{flag, whole};
use super::decode::Decoded;
use super::digest::Digest;
use super::lenient;
use super::quarantine::Quarantined;
use crate::audit::event::new_event;
use crate::convert::{text, type_error, value_error};
use crate::runtime::{attached, existing, in_python};

/// The maximum number of events and of items in a batch of Python's: all of them are in memory.
const MAX_BATCH: usize = 100_000;
/// The longest text about an item for people, in bytes.
const DETAIL_BYTES: usize = 512;

/// A turn of calling the source: held while Python's code runs, even if nobody waits for it any
/// more, so that calls never overlap.
type Turn = OwnedMutexGuard<()>;

/// What a pump and its source share.
pub(super) struct Shared {
    name: String,
    source: Py<PyAny>,
    /// Whether `pull` may be async.
    is_async: bool,
    /// The event loop that runs it.
    event_loop: Mutex<Option<Py<PyAny>>>,
    turn: Arc<TurnMutex<()>>,
    /// The exception of the last pull. Never locked while Python's code may run: its lock is taken
    /// with the interpreter's lock held.
    raised: Mutex<Option<Raised>>,
    /// Whether that exception is not one to go on after, such as `SystemExit`. Then it stays.
    ended: AtomicBool,
    /// Whether a run is under way: nobody sees exceptions, so they are logged.
    runs: AtomicBool,
    /// Whether the run is to end.
    stop: watch::Sender<bool>,
}

/// An exception, and the text of the error that it became.
struct Raised {
    exception: PyErr,
    text: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(name: String, source: &Bound<'_, PyAny>, is_async: bool) -> Self {
        Self {
            name,
            source: source.clone().unbind(),
            is_async,
            event_loop: Mutex::default(),
            turn: Arc::default(),
            raised: Mutex::default(),
            ended: AtomicBool::new(false),
            runs: AtomicBool::new(false),
            stop: watch::Sender::new(false),
        }
    }

    pub(super) fn source(&self) -> &Py<PyAny> {
        &self.source
    }

    /// Whether a run is to end.
    pub(super) fn stop(&self) -> &watch::Sender<bool> {
        &self.stop
    }

    /// Sets the loop that runs an async `pull`: the one of the call.
    pub(super) fn set_loop(&self, event_loop: Bound<'_, PyAny>) {
        let before = lock(&self.event_loop).replace(event_loop.unbind());
        // Its `__del__` may run anything, so the lock is free by now.
        drop(before);
    }

    /// Begins a tick or a run: what was raised before concerns another one.
    pub(super) fn begin(&self, runs: bool) {
        self.ended.store(false, Ordering::SeqCst);
        self.runs.store(runs, Ordering::SeqCst);
        drop(self.take_exception());
    }

    pub(super) fn end_run(&self) {
        self.runs.store(false, Ordering::SeqCst);
    }

    /// The exception behind the last error of a pull.
    pub(super) fn take_exception(&self) -> Option<PyErr> {
        let raised = lock(&self.raised).take();
        raised.map(|raised| raised.exception)
    }

    /// Whether that exception is not one to go on after, such as `SystemExit`.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// A number that no other source has while this one is there.
    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether the caller is within `pull`, which must not wait for its own end.
    pub(super) fn is_inside(&self, py: Python<'_>) -> bool {
        static IS_INSIDE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let is_inside = || {
            let is_inside = IS_INSIDE.import(py, "dezky._pump", "is_inside")?;
            is_inside.call1((self.key(),))?.is_truthy()
        };
        INSIDE.get() == self.key() || is_inside().unwrap_or(false)
    }

    /// Whether `text` is that of the last exception, which was logged.
    pub(super) fn has_logged(&self, text: &str) -> bool {
        lock(&self.raised).as_ref().is_some_and(|raised| raised.text == text)
    }

    /// Waits until no call of the source runs.
    pub(super) async fn is_idle(&self) {
        drop(self.turn.lock().await);
    }

    /// Remembers an exception, and logs it if nobody sees it.
    fn failed(&self, py: Python<'_>, exception: PyErr) -> Error {
        let kind =
            exception.get_type(py).name().map_or_else(|_| "an error".into(), |n| n.to_string());
        // The message may hold anything; the traceback goes to those who read the log.
        let text = format!("the source {} raised {kind}", self.name);
        let error = Error::new(ErrorKind::SourceUnavailable, text.clone());
        let is_cancelled = is_cancelled(py, &exception);
        let ends = !is_cancelled && !exception.is_instance_of::<PyException>(py);
        let runs = self.runs.load(Ordering::SeqCst);
        // A call that is cancelled because the pump or the loop ends has not failed.
        let is_expected = is_cancelled && (*self.stop.borrow() || self.is_loop_closed(py));
        if runs && !ends && !is_expected {
            warn(py, &format!("{text}, and will be tried again"), Some(&exception));
        }
        if self.ended.load(Ordering::SeqCst) {
            return error;
        }
        let raised = Raised { exception, text };
        let before = lock(&self.raised).replace(raised);
        // It may have a `__del__`, which may run anything, so the lock is free by now.
        drop(before);
        if ends {
            self.ended.store(true, Ordering::SeqCst);
            if runs {
                self.stop.send_replace(true);
            }
        }
        error
    }

    fn is_loop_closed(&self, py: Python<'_>) -> bool {
        let event_loop = lock(&self.event_loop).as_ref().map(|event_loop| event_loop.clone_ref(py));
        event_loop.is_some_and(|event_loop| {
            let is_closed = event_loop.bind(py).call_method0("is_closed");
            is_closed.is_ok_and(|is_closed| is_closed.is_truthy().unwrap_or(false))
        })
    }

    /// Calls `pull`: the batch, or what to wait for.
    fn call(
        self: &Arc<Self>,
        py: Python<'_>,
        cursor: Option<String>,
        turn: &mut Option<Turn>,
    ) -> PyResult<Called> {
        static START: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let given = {
            let _inside = Inside::enter(self.key());
            let given = self.source.bind(py).call_method1("pull", (cursor.as_deref(),))?;
            if !given.hasattr("__await__")? {
                return self
                    .pull_of(&given, cursor.as_deref())
                    .map(|pull| Called::Pull(Box::new(pull)));
            }
            given
        };
        if !self.is_async {
            if given.hasattr("close")? {
                // Otherwise the interpreter warns that it was never awaited.
                given.call_method0("close")?;
            }
            return Err(PyTypeError::new_err(
                "source.pull is async: use AsyncPump, or make it a def",
            ));
        }
        let event_loop = lock(&self.event_loop).as_ref().map(|event_loop| event_loop.clone_ref(py));
        let (sender, given_later) = oneshot::channel();
        let sender = Mutex::new(Some((sender, turn.take())));
        let done = PyCFunction::new_closure(py, None, None, move |arguments, _| {
            let (value, error) = arguments.extract::<(Py<PyAny>, Option<Py<PyAny>>)>()?;
            let py = arguments.py();
            let done = match error {
                None => Ok(value),
                Some(error) => Err(PyErr::from_value(error.into_bound(py))),
            };
            let waiting = lock(&sender).take();
            if let Some((sender, turn)) = waiting {
                drop(turn);
                drop(sender.send(done));
            }
            PyResult::Ok(())
        })?;
        let start = START.import(py, "dezky._pump", "start")?;
        let call = start.call1((event_loop, given, done, self.key()))?.unbind();
        Ok(Called::Later { cursor, given_later, call: Cancel(Some(call)) })
    }

    fn pull_of(&self, batch: &Bound<'_, PyAny>, from: Option<&str>) -> PyResult<Pull> {
        static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = batch.py();
        if !batch.is_instance(CLASS.import(py, "dezky.ingest", "Batch")?)? {
            return Err(type_error("the result of pull", "a Batch", batch));
        }
        let now = TokioRuntime.now();
        let cursor = batch.getattr("cursor")?;
        let cursor = if cursor.is_none() { None } else { Some(text(&cursor, "cursor")?) };
        if cursor.as_ref().is_some_and(|c| c.len() > MAX_CURSOR_BYTES || c.contains('\0')) {
            return Err(value_error(
                "cursor",
                format_args!("must be at most {MAX_CURSOR_BYTES} bytes long, without U+0000"),
            ));
        }
        let mut reader =
            Reader { name: &self.name, from, now, seen: HashMap::new(), pull: Pull::default() };
        reader.read(&batch.getattr("events")?, &batch.getattr("quarantine")?)?;
        let mut pull = reader.pull;
        pull.skipped += whole(&batch.getattr("skipped")?, "skipped", 0, u64::from(u32::MAX))?;
        pull.more = flag(&batch.getattr("more")?, "more")?;
        let is_empty = pull.events.is_empty() && pull.quarantine.is_empty();
        if !is_empty && (cursor.is_none() || cursor.as_deref() == from) {
            return Err(PyValueError::new_err(
                "cursor must be another one than before when there are events, or the next pull \
                 would return them again",
            ));
        }
        pull.cursor = cursor;
        Ok(pull)
    }
}

/// Whether an exception is asyncio's `CancelledError`, which is no `Exception`, but not meant for
/// the pump either.
fn is_cancelled(py: Python<'_>, exception: &PyErr) -> bool {
    static CANCELLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CANCELLED
        .import(py, "asyncio", "CancelledError")
        .is_ok_and(|cancelled| exception.matches(py, cancelled).unwrap_or(false))
}

/// Writes a warning to Python's `logging`. A handler that fails does not change what happens here.
pub(super) fn warn(py: Python<'_>, message: &str, exception: Option<&PyErr>) {
    static WARN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let written = || -> PyResult<()> {
        let exception = exception.map(|e| (e.get_type(py), e.value(py), e.traceback(py)));
        WARN.import(py, "dezky._pump", "warn")?.call1((message, exception))?;
        Ok(())
    };
    if let Err(error) = written() {
        error.write_unraisable(py, None);
    }
}

/// The result of calling `pull`.
enum Called {
    Pull(Box<Pull>),
    Later {
        cursor: Option<String>,
        given_later: oneshot::Receiver<PyResult<Py<PyAny>>>,
        call: Cancel,
    },
}

/// Cancels an async call unless it has ended. It keeps its turn until it has.
struct Cancel(Option<Py<PyAny>>);

impl Drop for Cancel {
    fn drop(&mut self) {
        let Some(call) = self.0.take() else { return };
        // Not here: this may be a thread of the runtime, and the interpreter may be busy.
        if let Some(runtime) = existing() {
            runtime.spawn_blocking(move || {
                attached(|py| drop(call.bind(py).call0()));
            });
        }
    }
}

/// Reads the events and items of a batch.
struct Reader<'a> {
    name: &'a str,
    from: Option<&'a str>,
    now: Timestamp,
    /// How often the same content came before.
    seen: HashMap<String, u32>,
    pull: Pull,
}

impl Reader<'_> {
    fn read(&mut self, events: &Bound<'_, PyAny>, quarantine: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(decoded) = events.cast::<Decoded>() {
            let decoded = decoded.get();
            self.pull.events.clone_from(&decoded.events);
            self.pull.quarantine.clone_from(&decoded.quarantined);
            self.pull.skipped = decoded.skipped;
        } else {
            for (number, event) in events.try_iter()?.enumerate() {
                too_many(number, "events")?;
                self.event(number, &event?)?;
            }
        }
        for (number, item) in quarantine.try_iter()?.enumerate() {
            too_many(number, "quarantine")?;
            let item = item?;
            let read = item
                .cast::<Quarantined>()
                .map_err(|_| type_error("each of quarantine", "a Quarantined", &item))?;
            self.pull.quarantine.push(read.get().item(self.name, self.now));
        }
        Ok(())
    }

    /// An event, or an item for one that can't be.
    fn event(&mut self, number: usize, given: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = given.py();
        let mut event = match new_event(given, "event") {
            Ok(event) => event,
            Err(error) if error.is_instance_of::<PyException>(py) => {
                let item = self.refused(number, given, &error);
                self.pull.quarantine.push(item);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if event.source == PLATFORM_SOURCE {
            self.name.clone_into(&mut event.source);
        }
        if event.external_id.is_none() {
            event.external_id = Some(self.key(&event));
        }
        self.pull.events.push(PulledEvent::from(event));
        Ok(())
    }

    /// The identity of an event without an id: the cursor of its batch, and its content. So a pull
    /// that is repeated after a crash adds nothing.
    fn key(&mut self, event: &dezky::NewEvent) -> String {
        let dezky::Actor { kind, id, email, ip } = &event.actor;
        let at = event.at.map(|at| at.as_millis().to_string());
        let digest = Digest::new()
            .part("dezky-pull/1")
            .part(&event.source)
            .optional(self.from)
            .part(&event.action)
            .part(event.outcome.as_str())
            .part(kind.as_str())
            .optional(id.as_deref())
            .optional(email.as_deref())
            .optional(ip.as_deref())
            .optional(at.as_deref())
            .optional(event.resource_type.as_deref())
            .optional(event.resource_id.as_deref())
            .optional(event.resource_name.as_deref())
            .optional(event.tenant_slug.as_deref())
            .optional(event.partner_slug.as_deref())
            .optional(event.metadata.source());
        let before = self.seen.entry(digest.clone().hex()).or_default();
        let key = digest.part(before.to_string()).hex();
        *before += 1;
        format!("pull1:{key}")
    }

    /// The quarantine item of something that can't become an event, without the values of members
    /// that are named like secrets.
    fn refused(&self, number: usize, given: &Bound<'_, PyAny>, error: &PyErr) -> QuarantineItem {
        let mut raw = lenient::without_secrets(given, self.now);
        raw.truncate(raw.floor_char_boundary(MAX_QUARANTINE_RAW_BYTES));
        // Other exceptions are the event's own, and may say anything.
        let is_ours = error.get_type(given.py()).is(given.py().get_type::<PyTypeError>())
            || error.get_type(given.py()).is(given.py().get_type::<PyValueError>());
        let mut detail = match error.value(given.py()).str() {
            Ok(text) if is_ours => text.to_string_lossy().into_owned(),
            _ => "the event can't be read".to_owned(),
        };
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES));
        let key = Digest::new().part(&raw).optional(self.from).part(number.to_string()).hex();
        QuarantineItem {
            source: self.name.to_owned(),
            key: format!("event:{key}"),
            reason: ErrorKind::EventInvalid.code().to_owned(),
            detail,
            raw: raw.into_bytes(),
            at: self.now,
        }
    }
}

fn too_many(number: usize, name: &str) -> PyResult<()> {
    if number < MAX_BATCH {
        return Ok(());
    }
    Err(value_error(
        name,
        format_args!("has more than {MAX_BATCH}: return fewer, with more=True and their cursor"),
    ))
}

/// The source of a pump.
pub(super) struct PythonSource(pub(super) Arc<Shared>);

#[async_trait]
impl IngestSource for PythonSource {
    fn name(&self) -> &str {
        &self.0.name
    }

    /// Python's code runs in a thread of its own, so that it may block; dropping this does not end
    /// it, but the next call waits for it.
    async fn pull(&mut self, cursor: Option<&str>, _limits: PullLimits) -> dezky::Result<Pull> {
        let turn = Arc::clone(&self.0.turn).lock_owned().await;
        let cursor = cursor.map(str::to_owned);
        let shared = Arc::clone(&self.0);
        let called = in_python(move |py| {
            let mut turn = Some(turn);
            // The turn ends after the exception is known, for those who wait for both.
            shared.call(py, cursor, &mut turn).map_err(|error| shared.failed(py, error))
        });
        let (cursor, given_later, mut call) = match called.await.ok_or_else(at_the_end)?? {
            Called::Pull(pull) => return Ok(*pull),
            Called::Later { cursor, given_later, call } => (cursor, given_later, call),
        };
        let given = given_later.await;
        call.0 = None;
        let shared = Arc::clone(&self.0);
        let read = in_python(move |py| {
            let pull = match given {
                Ok(given) => {
                    given.and_then(|batch| shared.pull_of(batch.bind(py), cursor.as_deref()))
                }
                Err(_) => Err(PyValueError::new_err("the event loop dropped the call of pull")),
            };
            pull.map_err(|error| shared.failed(py, error))
        });
        read.await.ok_or_else(at_the_end)?
    }
}

/// The error of a call that the end of the interpreter prevents.
fn at_the_end() -> Error {
    Error::new(ErrorKind::Internal, "the interpreter ends")
}

thread_local! {
    /// The key of the source whose `pull` this thread runs; 0 for none.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Marks the current thread as running `pull`.
struct Inside(usize);

impl Inside {
    fn enter(key: usize) -> Self {
        Self(INSIDE.replace(key))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}
