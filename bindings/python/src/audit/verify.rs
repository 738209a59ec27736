//! Verification, step by step, so that Python can follow it.

use std::fmt::Write as _;
use std::sync::Arc;

use dezky::AuditStore;
use dezky::core::store::{Anomaly as CoreAnomaly, Head as CoreHead};
use dezky::core::verify::{ExpectedHead, Finding as CoreFinding, Verdict, verify};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::log::Shared;
use super::pickle::{Reduced, reduced};
use crate::convert::{text, type_error, value_error};
use crate::error::exception;
use crate::runtime;

/// The text of the head of an empty log, which any log continues.
const NO_EVENTS: &str = "no events";

/// The end of a log: the number of its events and the hash of the last one.
///
/// Kept outside the database, it reveals a log that was cut or rewritten since: pass it to
/// `verify`, as the object or as the text `SEQ:HASH` that `str` makes of it.
#[pyclass(frozen, eq, hash, module = "dezky", name = "Head")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Head {
    next_seq: u64,
    hash: [u8; 32],
}

impl From<CoreHead> for Head {
    fn from(head: CoreHead) -> Self {
        Self { next_seq: head.next_seq, hash: head.hash }
    }
}

impl Head {
    fn hex(&self) -> String {
        self.hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

#[pymethods]
impl Head {
    /// The next event's `seq`, which is the number of events that the log has had.
    #[getter]
    fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The last event's `seq`; `None` if there is no event.
    #[getter]
    fn seq(&self) -> Option<u64> {
        self.next_seq.checked_sub(1)
    }

    /// The hash of the last event; 32 zero bytes if there is none.
    #[getter]
    fn hash(&self) -> &[u8] {
        &self.hash
    }

    fn __str__(&self) -> String {
        self.seq().map_or_else(|| NO_EVENTS.to_owned(), |seq| format!("{seq}:{}", self.hex()))
    }

    fn __repr__(&self) -> String {
        format!("Head(next_seq={}, hash='{}')", self.next_seq, self.hex())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        reduced(py, "Head", (self.next_seq, self.hash()))
    }
}

/// Reads the argument `head`.
pub(super) fn expected(head: Option<&Bound<'_, PyAny>>) -> PyResult<Option<ExpectedHead>> {
    let Some(head) = head else { return Ok(None) };
    if let Ok(head) = head.cast::<Head>() {
        let head = head.get();
        return Ok(head.seq().map(|seq| ExpectedHead { seq, hash: head.hash }));
    }
    if !head.is_instance_of::<PyString>() {
        return Err(type_error("head", "a Head or a str", head));
    }
    let head = text(head, "head")?;
    if head == NO_EVENTS {
        return Ok(None);
    }
    head.parse().map(Some).map_err(|_| {
        value_error(
            "head",
            "must be SEQ:HASH, a number and 64 hexadecimal digits, as str(log.head())",
        )
    })
}

/// The first difference between a log and what was recorded.
#[pyclass(frozen, eq, module = "dezky", name = "Finding")]
#[derive(PartialEq)]
pub(crate) struct Finding(CoreFinding);

#[pymethods]
impl Finding {
    /// The position at which it was found.
    #[getter]
    fn seq(&self) -> i64 {
        self.0.seq
    }

    /// `"altered"`, `"missing"`, `"reordered"`, `"inserted"` or `"cut"`.
    #[getter]
    fn kind(&self) -> String {
        self.0.kind.to_string()
    }

    /// One line for a person.
    #[getter]
    fn detail(&self) -> &str {
        &self.0.detail
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<dezky.Finding {}>", self.0)
    }
}

/// A difference between the database's structure and its schema, because of which lists may not
/// show what is stored.
#[pyclass(frozen, eq, module = "dezky", name = "Anomaly")]
#[derive(PartialEq)]
pub(crate) struct Anomaly(CoreAnomaly);

#[pymethods]
impl Anomaly {
    /// The table, column, index, trigger or other object.
    #[getter]
    fn object(&self) -> &str {
        &self.0.object
    }

    /// The difference, in one line.
    #[getter]
    fn detail(&self) -> &str {
        &self.0.detail
    }

    /// How to mend it.
    #[getter]
    fn fix(&self) -> &str {
        &self.0.fix
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<dezky.Anomaly {}>", self.0)
    }
}

/// The result of verifying a log. It is true if the log is intact and lists show all of it.
#[pyclass(frozen, eq, module = "dezky", name = "Verification")]
#[derive(PartialEq)]
pub(crate) struct Verification(Verdict);

#[pymethods]
impl Verification {
    /// Whether the log is intact and lists show all of it.
    #[getter]
    fn ok(&self) -> bool {
        self.0.problem().is_none()
    }

    /// The number of verified events.
    #[getter]
    fn verified(&self) -> u64 {
        self.0.verified
    }

    /// The head of the verified part.
    #[getter]
    fn head(&self) -> Head {
        self.0.head.into()
    }

    /// The first difference in the log, if any.
    #[getter]
    fn finding(&self) -> Option<Finding> {
        self.0.finding.clone().map(Finding)
    }

    /// The differences between the database's structure and its schema.
    #[getter]
    fn anomalies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.anomalies.iter().cloned().map(Anomaly))
    }

    /// The first problem as one line, if any.
    #[getter]
    fn problem(&self) -> Option<String> {
        self.0.problem()
    }

    fn __bool__(&self) -> bool {
        self.ok()
    }

    fn __repr__(&self) -> String {
        let verified = self.0.verified;
        match self.0.problem() {
            None => format!(
                "<dezky.Verification ok: {verified} events, head {}>",
                self.head().__str__()
            ),
            Some(problem) => format!("<dezky.Verification {problem}>"),
        }
    }
}

/// A verification under way.
pub(super) struct Run {
    shared: Arc<Shared>,
    counts: watch::Receiver<u64>,
    task: JoinHandle<dezky::Result<Verdict>>,
}

/// A step of a verification.
#[derive(IntoPyObject)]
pub(super) enum Step {
    /// The number of events verified so far.
    Verified(u64),
    Done(Verification),
}

impl Run {
    pub(super) fn start(shared: Arc<Shared>, expected: Option<ExpectedHead>) -> PyResult<Self> {
        let store: Arc<dyn AuditStore> = shared.store()?;
        let (sender, counts) = watch::channel(0);
        let task = runtime::runtime()?.spawn(async move {
            verify(&*store, expected, |verified| {
                sender.send_replace(verified);
            })
            .await
        });
        Ok(Self { shared, counts, task })
    }

    /// Waits for the next step. The result comes after the last number.
    pub(super) async fn next(&mut self) -> PyResult<Step> {
        if self.shared.while_open(self.counts.changed()).await?.is_ok() {
            return Ok(Step::Verified(*self.counts.borrow_and_update()));
        }
        let ended = self.shared.while_open(&mut self.task).await?;
        let verdict = ended.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(Step::Done(Verification(verdict.map_err(exception)?)))
    }

    /// Waits for the result, and calls `progress` in this thread.
    pub(super) fn finish(
        mut self,
        py: Python<'_>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Verification> {
        loop {
            match (runtime::block(py, self.next())??, progress) {
                (Step::Verified(verified), Some(progress)) => drop(progress.call1((verified,))?),
                (Step::Verified(_), None) => {}
                (Step::Done(verification), _) => return Ok(verification),
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // In a forked process, the task is the parent's.
        if runtime::existing().is_some() {
            self.task.abort();
        }
    }
}

/// Reads the argument `progress`.
pub(super) fn callback<'a, 'py>(
    progress: Option<&'a Bound<'py, PyAny>>,
) -> PyResult<Option<&'a Bound<'py, PyAny>>> {
    match progress {
        Some(progress) if !progress.is_callable() => {
            Err(type_error("progress", "a function", progress))
        }
        progress => Ok(progress),
    }
}

/// The native part of an asynchronous verification.
#[pyclass(frozen, module = "dezky._dezky", name = "VerificationRun")]
pub(crate) struct VerificationRun(Arc<tokio::sync::Mutex<Run>>);

#[pymethods]
impl VerificationRun {
    /// Waits for the number of events verified so far, or for the result.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let run = self.0.clone();
        runtime::future(py, async move { run.lock().await.next().await })
    }
}

/// An awaitable of the result, which calls `progress` in the event loop's thread.
pub(super) fn verification<'py>(
    py: Python<'py>,
    run: Run,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    static VERIFY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let run = VerificationRun(Arc::new(tokio::sync::Mutex::new(run)));
    VERIFY.import(py, "dezky._aio", "verify")?.call1((run, progress))
}
