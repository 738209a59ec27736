//! The process's tokio runtime, and the two ways to wait for work on it.
//!
//! [`wait`] blocks the calling thread, without the interpreter's lock; [`future`] returns a future
//! of the running asyncio loop.

use std::cell::Cell;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use dezky::TokioRuntime;
use dezky::core::rt::unblock;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use pyo3::BoundObject as _;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCFunction;
use tokio::runtime::Runtime;

use crate::error::{coded, exception};

/// The interval at which a blocked call looks for signals such as Ctrl-C.
const SIGNALS: Duration = Duration::from_millis(50);

/// The maximum time that an interrupted call waits for its work to end.
const ENDING: Duration = Duration::from_millis(20);

/// The process's runtime, made at first use and never dropped: at exit, its threads end with the
/// process.
static RUNTIME: OnceLock<(Runtime, u32)> = OnceLock::new();

/// The runtime.
///
/// # Errors
/// `ForkedError` in a process that was forked after the runtime was made: its threads exist in the
/// parent alone.
pub(crate) fn runtime() -> PyResult<&'static Runtime> {
    check_fork()?;
    if let Some((runtime, _)) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("dezky")
        .on_thread_start(|| OUTSIDE.set(true))
        .enable_all()
        .build()?;
    Ok(&RUNTIME.get_or_init(|| (made, std::process::id())).0)
}

/// Refuses the use of an object in a process that was forked after dezky was used.
pub(crate) fn check_fork() -> PyResult<()> {
    match RUNTIME.get() {
        Some((_, process)) if *process != std::process::id() => Err(coded(
            "forked",
            "this process was forked after it used dezky, whose threads do not survive a fork: \
             fork first, or start processes with multiprocessing's \"spawn\" or \"forkserver\"",
        )),
        _ => Ok(()),
    }
}

/// The runtime, if there is one in this process.
pub(crate) fn existing() -> Option<&'static Runtime> {
    let (runtime, process) = RUNTIME.get()?;
    (*process == std::process::id()).then_some(runtime)
}

/// A value that is dropped within the runtime, because it may hold connections, which go back to
/// their pool in a task of their own. In a forked process it is leaked: dropping it would write
/// to the parent's connections.
pub(crate) struct Owned<T>(Option<T>);

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only `drop` takes it")
    }
}

impl<T> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only `drop` takes it")
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        match existing() {
            Some(runtime) => {
                let _entered = runtime.enter();
                drop(self.0.take());
            }
            None => std::mem::forget(self.0.take()),
        }
    }
}

/// Blocks until `work` ends. Other threads run meanwhile; a signal handler that raises, such as
/// the one of Ctrl-C, ends the call and drops `work`.
///
/// The work is a task, so that it goes on while a signal handler runs: the handler may itself
/// wait for a lock or a connection that the work holds.
pub(crate) fn wait<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let runtime = runtime()?;
    let mut task = runtime.spawn(work);
    match block(py, &mut task) {
        Ok(done) => done.map_err(|_| ended_by_a_bug()),
        Err(interrupted) => {
            task.abort();
            // Usually at once; then a call after this one finds nothing in its way.
            py.detach(|| poll_for(runtime, pin!(task), ENDING));
            Err(interrupted)
        }
    }
}

/// [`wait`], for work that holds neither locks nor connections while it waits.
#[expect(clippy::redundant_closure_for_method_calls, reason = "the lifetime must be general")]
pub(crate) fn block<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send,
    F: Future<Output = T> + Send,
{
    let runtime = runtime()?;
    // Between short waits in a row, no code of Python may run.
    py.check_signals()?;
    py.detach(|| {
        let mut work = pin!(work);
        loop {
            if let Some(done) = poll_for(runtime, work.as_mut(), SIGNALS) {
                return Ok(done);
            }
            match Python::try_attach(|py| py.check_signals()) {
                Some(checked) => checked?,
                // The interpreter has ended, and a daemon thread can't return into it.
                None => loop {
                    thread::park();
                },
            }
        }
    })
}

/// Waits for `work` in this thread; `None` after `limit`.
///
/// The limit is no timer of the runtime, which needs one of its threads: all may be busy.
#[expect(clippy::disallowed_methods, reason = "a wait of this thread, outside of the stores")]
fn poll_for<F: Future>(
    runtime: &Runtime,
    mut work: Pin<&mut F>,
    limit: Duration,
) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let end = Instant::now() + limit;
    loop {
        let entered = runtime.enter();
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return Some(done);
        }
        drop(entered);
        let left = end.checked_duration_since(Instant::now())?;
        thread::park_timeout(left);
    }
}

/// Wakes a thread that waits for work.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `work` with the interpreter's lock; `None` if the interpreter ends. Every thread of the
/// runtime comes into Python this way alone.
///
/// The thread's other tasks move to another one: waiting for the lock must not delay them, and
/// Python may run anything meanwhile, such as a `__del__` that waits for a task.
pub(crate) fn attached<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let _call = Call::begin()?;
    tokio::task::block_in_place(|| Python::try_attach(work))
}

/// [`attached`], in a thread that may block.
pub(crate) async fn in_python<T: Send + 'static>(
    work: impl FnOnce(Python<'_>) -> T + Send + 'static,
) -> Option<T> {
    unblock(&TokioRuntime, move || attached(work)).await
}

thread_local! {
    /// Whether this is a thread of the runtime that is outside of Python.
    static OUTSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The number of running calls, and whether the interpreter ends.
static CALLS: (Mutex<(usize, bool)>, Condvar) = (Mutex::new((0, false)), Condvar::new());

fn calls() -> MutexGuard<'static, (usize, bool)> {
    CALLS.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call of Python from a thread of the runtime; other threads, and calls within a call, do not
/// count.
struct Call {
    counts: bool,
}

impl Call {
    /// `None` if the interpreter is about to end: it kills the threads that wait for its lock.
    fn begin() -> Option<Self> {
        let counts = OUTSIDE.get();
        if counts {
            let mut calls = calls();
            if calls.1 {
                return None;
            }
            calls.0 += 1;
            OUTSIDE.set(false);
        }
        Some(Self { counts })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.counts {
            OUTSIDE.set(true);
            calls().0 -= 1;
            CALLS.1.notify_all();
        }
    }
}

/// Waits for running calls at the end of the interpreter, like its own thread pools: a thread that
/// runs Python's code then would end the process with an error.
#[pyfunction]
fn _finish_calls(py: Python<'_>) -> PyResult<()> {
    // The threads are the parent's.
    if check_fork().is_err() {
        return Ok(());
    }
    loop {
        let left = py.detach(|| {
            let mut calls = calls();
            calls.1 = true;
            if calls.0 > 0 {
                let waited = CALLS.1.wait_timeout(calls, SIGNALS);
                calls = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            calls.0
        });
        if left == 0 {
            return Ok(());
        }
        py.check_signals()?;
    }
}

/// Has the interpreter wait at its end for calls from the runtime's threads.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let finish = wrap_pyfunction!(_finish_calls, module)?;
    module.py().import("atexit")?.call_method1("register", (finish,))?;
    Ok(())
}

/// The end of an object's work, which begins once and goes on if nobody waits for it any more.
#[derive(Default)]
pub(crate) struct Ending(OnceLock<Ended>);

impl Ending {
    /// Begins the work unless it has begun, and returns the wait for its end.
    pub(crate) fn begin<F>(&self, work: impl FnOnce() -> F) -> PyResult<Ended>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime()?;
        // It has no result.
        let begin = || runtime.spawn(work()).map(drop).boxed().shared();
        Ok(self.0.get_or_init(begin).clone())
    }
}

/// The wait for the end of an object's work.
pub(crate) type Ended = Shared<BoxFuture<'static, ()>>;

fn ended_by_a_bug() -> PyErr {
    coded("internal", "the work ended by a bug of dezky: please report it")
}

/// [`wait`], for work that fails with an error of the crates.
pub(crate) fn wait_for<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send + 'static,
    F: Future<Output = dezky::Result<T>> + Send + 'static,
{
    wait(py, work)?.map_err(exception)
}

/// An `asyncio.Future` that is done already.
pub(crate) fn done<'py>(
    py: Python<'py>,
    value: impl IntoPyObject<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    check_fork()?;
    let promise = running_loop(py)?.call_method0("create_future")?;
    promise.call_method1("set_result", (value,))?;
    Ok(promise)
}

fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOOP.import(py, "asyncio", "get_running_loop")?.call0().map_err(|_| {
        PyRuntimeError::new_err(
            "no running event loop: call it within a coroutine, or use the class without Async",
        )
    })
}

/// Starts `work` and returns the `asyncio.Future` of its result. Cancelling the future drops
/// `work`.
///
/// # Errors
/// `RuntimeError` without a running event loop.
pub(crate) fn future<'py, T, F>(py: Python<'py>, work: F) -> PyResult<Bound<'py, PyAny>>
where
    T: for<'a> IntoPyObject<'a> + Send + 'static,
    F: Future<Output = PyResult<T>> + Send + 'static,
{
    let runtime = runtime()?;
    let event_loop = running_loop(py)?;
    let promise = event_loop.call_method0("create_future")?;
    let (event_loop, result) = (event_loop.unbind(), promise.clone().unbind());
    let task = runtime.spawn(async move {
        let done = AssertUnwindSafe(work).catch_unwind().await;
        let done = done.unwrap_or_else(|_| Err(ended_by_a_bug()));
        // Without an interpreter, nobody waits any more.
        attached(|py| settle(py, &event_loop, &result, done));
    });
    let task = task.abort_handle();
    let abort = PyCFunction::new_closure(py, None, None, move |arguments, _| {
        let future = arguments.get_item(0)?;
        if future.call_method0("cancelled")?.is_truthy()? {
            task.abort();
        }
        PyResult::Ok(())
    })?;
    promise.call_method1("add_done_callback", (abort,))?;
    Ok(promise)
}

/// Hands a result to the loop that waits for it.
fn settle<T>(py: Python<'_>, event_loop: &Py<PyAny>, promise: &Py<PyAny>, done: PyResult<T>)
where
    T: for<'a> IntoPyObject<'a>,
{
    static SETTLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let done = done.and_then(|value| {
        value.into_pyobject(py).map(|value| value.into_any().into_bound()).map_err(Into::into)
    });
    let (value, error) = match done {
        Ok(value) => (value, py.None().into_bound(py)),
        Err(error) => (py.None().into_bound(py), error.into_value(py).into_bound(py).into_any()),
    };
    let handed = SETTLE.import(py, "dezky._aio", "settle").and_then(|settle| {
        event_loop.bind(py).call_method1("call_soon_threadsafe", (settle, promise, value, error))
    });
    // A closed loop: nobody waits any more.
    drop(handed);
}
