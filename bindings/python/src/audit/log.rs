//! Audit logs: opening, writing and reading, blocking and for asyncio.

use std::fmt;
use std::future::pending;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dezky::core::SealedEvent;
use dezky::core::store::{AppendOptions, MAX_BATCH_EVENTS, Receipt as CoreReceipt, ReceiptStatus};
use dezky::{
    Access, AuditStore, ErrorKind, Platform, RecordOutcome, Recorded as CoreRecorded, Spool,
    SpoolConfig, StoreConfig, Stores, TokioRuntime,
};
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::arrow::ArrowEvents;
use super::event::{Fields, attribute, new_event};
use super::filters::Filters;
use super::pages::{EventIterator, EventPages, TailPages, event_stream};
use super::pickle::{Reduced, reduced};
use super::verify::{Head, Run, Verification, callback, expected, verification};
use crate::convert::{self, flag, path, type_error, value_error};
use crate::error::{coded, exception, of_url, opened_by};
use crate::runtime::{self, Ended, Ending, Owned};

/// An open log, shared by the objects that work on it.
pub(crate) struct Shared {
    open: Mutex<Option<Open>>,
    /// Whether it was closed, for those who wait for events.
    closed: watch::Sender<bool>,
    ending: Ending,
    /// The iterators, which may wait for events when the log is closed.
    iterators: Mutex<Vec<Weak<EventPages>>>,
    url: String,
    read_only: bool,
}

/// A platform and its background work.
struct Open {
    platform: Owned<Arc<Platform>>,
    work: Vec<JoinHandle<()>>,
}

impl Shared {
    /// The platform.
    ///
    /// # Errors
    /// `ValueError` if the log is closed, `ForkedError`.
    pub(crate) fn platform(&self) -> PyResult<Arc<Platform>> {
        runtime::check_fork()?;
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|open| Arc::clone(&open.platform)).ok_or_else(closed)
    }

    /// The platform of a log that may be written.
    pub(crate) fn writable(&self) -> PyResult<Arc<Platform>> {
        if self.read_only {
            return Err(PyValueError::new_err(
                "the log is read-only: open it without read_only=True to write",
            ));
        }
        self.platform()
    }

    pub(crate) fn store(&self) -> PyResult<Arc<dyn AuditStore>> {
        Ok(self.platform()?.store.clone())
    }

    /// Waits for `work`, or for the log to be closed.
    pub(crate) async fn while_open<T>(&self, work: impl Future<Output = T>) -> PyResult<T> {
        let mut closed_now = self.closed.subscribe();
        let closing = std::pin::pin!(closed_now.wait_for(|is_closed| *is_closed));
        match select(closing, std::pin::pin!(work)).await {
            Either::Left(_) => Err(closed()),
            Either::Right((done, _)) => Ok(done),
        }
    }

    /// Has an iterator ended when the log is closed.
    pub(super) fn watch(&self, pages: &Arc<EventPages>) {
        let mut iterators = self.iterators.lock().unwrap_or_else(PoisonError::into_inner);
        iterators.retain(|pages| pages.strong_count() > 0);
        iterators.push(Arc::downgrade(pages));
    }

    /// Ends the background work and closes the connections.
    fn close(&self) -> PyResult<Ended> {
        self.ending.begin(|| {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.closed.send_replace(true);
            let iterators =
                std::mem::take(&mut *self.iterators.lock().unwrap_or_else(PoisonError::into_inner));
            async move {
                for pages in iterators.iter().filter_map(Weak::upgrade) {
                    pages.end().await;
                }
                let Some(mut open) = open else { return };
                open.work.iter().for_each(JoinHandle::abort);
                for work in std::mem::take(&mut open.work) {
                    // An abort is not a failure.
                    let _ = work.await;
                }
                open.platform.close().await;
            }
        })
    }
}

impl Drop for Open {
    /// An object that was not closed is closed in the background.
    fn drop(&mut self) {
        // In a forked process, the tasks and connections are the parent's.
        let Some(runtime) = runtime::existing() else { return };
        for work in &self.work {
            work.abort();
        }
        if !self.work.is_empty() {
            let platform = Arc::clone(&self.platform);
            runtime.spawn(async move { platform.close().await });
        }
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("the log is closed")
}

/// The arguments of `open`.
struct Opening {
    config: StoreConfig,
    spool: Option<PathBuf>,
    read_only: bool,
}

impl Opening {
    fn read(
        url: &Bound<'_, PyAny>,
        spool: Option<&Bound<'_, PyAny>>,
        read_only: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let config = StoreConfig::parse(&convert::url(url)?).map_err(of_url)?;
        let read_only = read_only.map_or(Ok(false), |given| flag(given, "read_only"))?;
        let spool = spool.map(|spool| path(spool, "spool")).transpose()?;
        if read_only && spool.is_some() {
            return Err(value_error("spool", "has no effect on a read-only log: leave it out"));
        }
        Ok(Self { config, spool, read_only })
    }

    async fn open(self) -> PyResult<Shared> {
        let runtime = runtime::runtime()?;
        let platform = Arc::new(self.platform().await.map_err(exception)?);
        let mut work = Vec::new();
        if !self.read_only {
            let (relayed, spooled) = (Arc::clone(&platform), Arc::clone(&platform));
            // It ends only if the database's files are gone, which every call then reports.
            work.push(runtime.spawn(async move { drop(relayed.run_relay(pending()).await) }));
            work.push(runtime.spawn(async move { spooled.log.run_spool(pending()).await }));
        }
        Ok(Shared {
            open: Mutex::new(Some(Open { platform: Owned::new(platform), work })),
            closed: watch::Sender::new(false),
            ending: Ending::default(),
            iterators: Mutex::default(),
            url: self.config.url.to_string(),
            read_only: self.read_only,
        })
    }

    async fn platform(&self) -> dezky::Result<Platform> {
        let stores = self.stores().await?;
        let Some(path) = &self.spool else { return Platform::builder(stores).build().await };
        match Spool::open(SpoolConfig::new(path), Arc::new(TokioRuntime)).await {
            Ok(spool) => Platform::builder(stores).spool(spool).build().await,
            Err(error) => {
                stores.close().await;
                Err(error.context(format_args!("spool: {}", path.display())))
            }
        }
    }

    async fn stores(&self) -> dezky::Result<Stores> {
        let access = if self.read_only { Access::Use } else { Access::Migrate };
        match Stores::open(&self.config, access).await {
            // A file on read-only media, say. Opened so, it must not change.
            Err(error)
                if self.read_only
                    && self.config.url.file().is_some()
                    && matches!(error.kind(), ErrorKind::StoreUnavailable | ErrorKind::Io) =>
            {
                Stores::open(&self.config, Access::Read).await.map_err(|_| error)
            }
            opened => opened,
        }
    }
}

/// The result of recording an event.
#[pyclass(frozen, eq, module = "dezky", name = "Recorded")]
#[derive(PartialEq)]
pub(crate) struct Recorded(pub(super) CoreRecorded);

#[pymethods]
impl Recorded {
    /// Where the event is: `"appended"` to the log; `"duplicate"`, already in the log;
    /// `"spooled"`, on disk until the store accepts it; `"lost"`.
    #[getter]
    fn status(&self) -> &'static str {
        match self.0.outcome {
            RecordOutcome::Appended { .. } => "appended",
            RecordOutcome::Duplicate { .. } => "duplicate",
            RecordOutcome::Spooled => "spooled",
            RecordOutcome::Lost => "lost",
        }
    }

    /// The event's id; for a duplicate, that of the event in the log.
    #[getter]
    fn id(&self) -> String {
        self.0.id.to_string()
    }

    /// The position in the log, if the event is there.
    #[getter]
    fn seq(&self) -> Option<u64> {
        match self.0.outcome {
            RecordOutcome::Appended { seq } | RecordOutcome::Duplicate { seq } => Some(seq),
            RecordOutcome::Spooled | RecordOutcome::Lost => None,
        }
    }

    fn __repr__(&self) -> String {
        let seq = self.seq().map_or_else(|| "None".to_owned(), |seq| seq.to_string());
        format!("Recorded(status='{}', seq={seq}, id='{}')", self.status(), self.id())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        reduced(py, "Recorded", (self.status(), self.seq(), self.id()))
    }
}

/// The result of appending one event.
#[pyclass(frozen, eq, module = "dezky", name = "Receipt")]
#[derive(PartialEq)]
pub(crate) struct Receipt(pub(super) CoreReceipt);

#[pymethods]
impl Receipt {
    /// `"appended"`; `"duplicate"`, already in the log; `"conflict"`, in the log with other
    /// content, which stays.
    #[getter]
    fn status(&self) -> &'static str {
        match self.0.status {
            ReceiptStatus::Appended => "appended",
            ReceiptStatus::Duplicate => "duplicate",
            ReceiptStatus::Conflict => "conflict",
        }
    }

    /// The event's position; for a duplicate, that of the event in the log.
    #[getter]
    fn seq(&self) -> u64 {
        self.0.seq
    }

    /// The id of the event at that position.
    #[getter]
    fn id(&self) -> String {
        self.0.id.to_string()
    }

    /// For a conflict, the names of the fields that differ.
    #[getter]
    fn differs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.differs.iter().map(|field| attribute(*field)))
    }

    fn __repr__(&self) -> String {
        format!("Receipt(status='{}', seq={}, id='{}')", self.status(), self.0.seq, self.0.id)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        reduced(py, "Receipt", (self.status(), self.0.seq, self.id(), self.differs(py)?))
    }
}

/// The number of events after which reading or sealing a batch lets others work.
const EVENTS_AT_ONCE: usize = 200;

/// Events for `append`, taken from an iterable up to the bound of one call.
fn batch(events: &Bound<'_, PyAny>) -> PyResult<Vec<dezky::NewEvent>> {
    let refused = || type_error("events", "an iterable of NewEvent or mappings", events);
    // Refuses a single event, which is easily passed in place of a list.
    if events.is_instance_of::<PyDict>() || events.is_instance_of::<PyString>() {
        return Err(refused());
    }
    let items = events.try_iter().map_err(|_| refused())?;
    let mut batch = Vec::new();
    for (index, item) in items.enumerate() {
        if index == MAX_BATCH_EVENTS {
            return Err(coded(
                "too_large",
                &format!(
                    "events has more than {MAX_BATCH_EVENTS} items, the bound of one append: \
                     append them in parts"
                ),
            ));
        }
        if index % EVENTS_AT_ONCE == 0 {
            events.py().check_signals()?;
        }
        batch.push(new_event(&item?, &format!("events[{index}]"))?);
    }
    Ok(batch)
}

async fn append(platform: Arc<Platform>, batch: Vec<dezky::NewEvent>) -> PyResult<Vec<Receipt>> {
    let mut events: Vec<SealedEvent> = Vec::with_capacity(batch.len());
    for (index, event) in batch.into_iter().enumerate() {
        if index % EVENTS_AT_ONCE == 0 {
            // An append that is cancelled ends here.
            tokio::task::yield_now().await;
        }
        let event = event.seal(&**platform.runtime());
        if let Err(invalid) = event.validate() {
            let field = dezky::core::Field::ALL.into_iter().find(|f| f.name() == invalid.field);
            let field = field.map_or_else(|| invalid.field.to_owned(), attribute);
            let problem = format!("events[{index}].{field} must be {}", invalid.bound);
            return Err(coded("event_invalid", &problem));
        }
        events.push(event);
    }
    let appended = platform.store.append(events, AppendOptions::default()).await;
    Ok(appended.map_err(exception)?.receipts.into_iter().map(Receipt).collect())
}

async fn read_head(store: Arc<dyn AuditStore>) -> PyResult<Head> {
    Ok(store.state().await.map_err(exception)?.head.into())
}

/// The pages of `list`.
fn listed(shared: &Arc<Shared>, filters: Option<&Bound<'_, PyDict>>) -> PyResult<Arc<EventPages>> {
    let store = shared.store()?;
    Ok(EventPages::new(Arc::clone(shared), Filters::read(filters)?.pages(store)))
}

/// The pages of `tail`.
fn tailed(
    shared: &Arc<Shared>,
    from_seq: Option<&Bound<'_, PyAny>>,
    follow: Option<&Bound<'_, PyAny>>,
) -> PyResult<Arc<EventPages>> {
    let store = shared.store()?;
    let follow = follow.map_or(Ok(true), |given| flag(given, "follow"))?;
    let pages = TailPages::new(store, position(from_seq)?, follow);
    Ok(EventPages::new(Arc::clone(shared), pages))
}

/// The object of `to_arrow`.
fn in_arrow(shared: &Arc<Shared>, filters: Option<&Bound<'_, PyDict>>) -> PyResult<ArrowEvents> {
    shared.store()?;
    Ok(ArrowEvents::new(Arc::clone(shared), Filters::read(filters)?))
}

/// The position of an event.
fn position(value: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
    let Some(value) = value else { return Ok(0) };
    if !value.is_instance_of::<PyInt>() {
        return Err(type_error("from_seq", "an int", value));
    }
    // Beyond the largest position there is never an event either.
    let position = value.extract::<u64>().ok().filter(|seq| i64::try_from(*seq).is_ok());
    position.ok_or_else(|| value_error("from_seq", "must be 0 to 9223372036854775807"))
}

/// An audit log, for programs with threads. `AsyncAuditLog` is the same for asyncio.
///
/// A log is opened with `AuditLog.open` and used as a context manager. All threads may use it at
/// once. While it is open for writing, it moves events from its spool, and those that Rust
/// programs have staged, into the log.
///
/// Warning:
///     Don't open the log's SQLite file with Python's `sqlite3` in a process that has the log
///     open. SQLite's locks belong to the process and not to the library: when the other library
///     closes the file, this one's locks are gone, and both may write at once. The file may be
///     damaged, or the process killed by SIGBUS. Use another process, or `to_arrow`.
///
/// Examples:
///     >>> import dezky
///     >>> with dezky.AuditLog.open("memory:") as log:
///     ...     recorded = log.record("tenant.created", actor=dezky.Actor.user("u-7"))
///     ...     [event.action for event in log.list()]
///     ['tenant.created']
///     >>> recorded.status
///     'appended'
#[pyclass(frozen, module = "dezky", name = "AuditLog")]
pub(crate) struct AuditLog {
    shared: Arc<Shared>,
}

impl AuditLog {
    /// The platform. The spool's file stays locked as long as it is held.
    pub(crate) fn platform(&self) -> PyResult<Arc<Platform>> {
        self.shared.writable()
    }
}

#[pymethods]
impl AuditLog {
    #[new]
    #[pyo3(signature = (*_arguments, **_named), text_signature = "()")]
    fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Err(opened_by("AuditLog.open(url)"))
    }

    /// Opens the log at a URL, and creates or migrates its schema.
    ///
    /// Args:
    ///     url: `sqlite:///path/audit.db`, `postgres://user@host/database`,
    ///         `mongodb://user@host/database`, or `memory:` for a log that ends with the object.
    ///         Options such as `?lock_timeout_seconds=20` go into the URL.
    ///     spool: The path of a file to which `record` writes events while the store does not
    ///         accept them. One process at a time can use it.
    ///     read_only: Opens the log for reading alone. Then it must exist, with a current schema.
    ///
    /// Raises:
    ///     ConfigInvalidError: The URL can't be read, or names nothing that exists.
    ///     StoreUnavailableError: The database does not answer.
    ///     StoreForeignError: The database belongs to another program.
    ///     SchemaNewerError: A newer version of dezky wrote it.
    #[staticmethod]
    #[pyo3(
        signature = (url, *, spool=None, read_only=None),
        text_signature = "(url, *, spool=None, read_only=False)"
    )]
    fn open(
        py: Python<'_>,
        url: &Bound<'_, PyAny>,
        spool: Option<&Bound<'_, PyAny>>,
        read_only: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let opening = Opening::read(url, spool, read_only)?;
        let shared = runtime::wait(py, opening.open())??;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Records an event: in the log if the store accepts it, otherwise in the spool.
    ///
    /// Never fails because of the store or of a text's length: texts out of bounds are brought
    /// within them, and the originals' digests noted in the metadata.
    ///
    /// Args:
    ///     action: The verb, such as `tenant.suspended`.
    ///     actor: Who acted.
    ///     **fields: The other fields of `NewEvent`.
    ///
    /// Returns:
    ///     Where the event is. `"lost"` means that neither store nor spool accepted it.
    ///
    /// Raises:
    ///     TypeError: A value has the wrong type.
    ///     ValueError: A value of the right type is none that an event can have, such as a
    ///         `datetime` without a time zone.
    #[pyo3(
        signature = (action, *, actor, **fields),
        text_signature = "($self, action, *, actor, at=None, outcome='success', \
            resource_type=None, resource_id=None, resource_name=None, tenant_slug=None, \
            partner_slug=None, source='platform-api', external_id=None, metadata=None)"
    )]
    fn record<'py>(
        &self,
        py: Python<'py>,
        action: Bound<'py, PyAny>,
        actor: Bound<'py, PyAny>,
        fields: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Recorded> {
        let platform = self.shared.writable()?;
        let event = Fields::of_arguments(action, actor, fields)?.event("")?;
        runtime::wait(py, async move { Recorded(platform.log.record(event).await) })
    }

    /// Appends events atomically and durably, in their order.
    ///
    /// An event whose `(source, external_id)` the log has already is a duplicate: its receipt
    /// says so, and nothing is stored.
    ///
    /// Args:
    ///     events: At most 10,000 `NewEvent`, or mappings with the keyword names of `NewEvent`.
    ///
    /// Returns:
    ///     A receipt for each event, in their order.
    ///
    /// Raises:
    ///     EventInvalidError: An event is out of bounds. The message names its index and the field,
    ///         and nothing was stored.
    ///     TooLargeError: There are more events than one call takes.
    ///     StoreUnavailableError, StoreBusyError: The outcome is unknown. Events with an
    ///         `external_id` may be appended again.
    fn append(&self, py: Python<'_>, events: &Bound<'_, PyAny>) -> PyResult<Vec<Receipt>> {
        let platform = self.shared.writable()?;
        let batch = batch(events)?;
        runtime::wait(py, append(platform, batch))?
    }

    /// Iterates over the events that match all filters, newest first.
    ///
    /// Reads page after page while you iterate. Events that are appended meanwhile neither repeat
    /// nor hide others.
    ///
    /// Args:
    ///     since: The earliest time of an event.
    ///     until: The time before which events must be.
    ///     before: Like `until`; the earlier of the two applies.
    ///     action: The beginning of the action, such as `tenant.`, or all of it.
    ///     tenant_slug: The tenant; `""` for events without one.
    ///     partner_slug: The partner.
    ///     actor_id: The actor's id.
    ///     actor_email: The actor's e-mail address, in upper or lower case.
    ///     resource_type: The resource's type.
    ///     resource_id: The resource's id.
    ///     outcome: `"success"`, `"failure"` or `"denied"`.
    ///     source: The source; `"authentik"` includes its instances, such as `authentik:eu2`.
    ///     q: A part of the action, the resource's name, the e-mail address or the tenant.
    ///     limit: The maximum number of events in total; all if absent.
    ///
    /// Raises:
    ///     QueryInvalidError: A filter is out of its bounds.
    #[pyo3(
        signature = (**filters),
        text_signature = "($self, *, since=None, until=None, before=None, action=None, \
            tenant_slug=None, partner_slug=None, actor_id=None, actor_email=None, \
            resource_type=None, resource_id=None, outcome=None, source=None, q=None, limit=None)"
    )]
    fn list(&self, filters: Option<&Bound<'_, PyDict>>) -> PyResult<EventIterator> {
        Ok(EventIterator::new(listed(&self.shared, filters)?))
    }

    /// Iterates over the events from a position on, in the order of `seq`, and waits for more.
    ///
    /// After an error, iterating again goes on at the same event.
    ///
    /// Args:
    ///     from_seq: The position of the first event.
    ///     follow: Whether to wait for more at the end. Otherwise the iterator ends with the last
    ///         event that the log has when you begin.
    ///
    /// Raises:
    ///     PrunedError: On iterating: the event was archived.
    #[pyo3(
        signature = (from_seq=None, *, follow=None),
        text_signature = "($self, from_seq=0, *, follow=True)"
    )]
    fn tail(
        &self,
        from_seq: Option<&Bound<'_, PyAny>>,
        follow: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<EventIterator> {
        Ok(EventIterator::new(tailed(&self.shared, from_seq, follow)?))
    }

    /// Recomputes the whole log and names the first difference from what was recorded. Then
    /// compares the database's structure and indexes with what lists need.
    ///
    /// Args:
    ///     progress: Called in this thread with the number of verified events, now and then. An
    ///         exception in it ends the verification.
    ///     head: A head of this log that was kept elsewhere, as `head()` returned it or as text.
    ///         Only it reveals that the newest events were cut off.
    ///
    /// Returns:
    ///     The result. A difference is a finding in it and not an exception.
    ///
    /// Examples:
    ///     >>> import dezky
    ///     >>> with dezky.AuditLog.open("memory:") as log:
    ///     ...     _ = log.record("tenant.created", actor=dezky.Actor.system())
    ///     ...     result = log.verify(head=log.head())
    ///     >>> result.ok, result.verified
    ///     (True, 1)
    #[pyo3(signature = (*, progress=None, head=None))]
    fn verify(
        &self,
        py: Python<'_>,
        progress: Option<&Bound<'_, PyAny>>,
        head: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Verification> {
        let progress = callback(progress)?;
        Run::start(self.shared.clone(), expected(head)?)?.finish(py, progress)
    }

    /// Returns the end of the log.
    fn head(&self, py: Python<'_>) -> PyResult<Head> {
        runtime::wait(py, read_head(self.shared.store()?))?
    }

    /// Returns the events that match as an object that Arrow libraries read, in batches.
    ///
    /// Takes the filters of `list`, and yields the same events in the same order. Nothing is read
    /// before the object is, and each reader reads the log anew.
    ///
    /// Returns:
    ///     An object for `polars.DataFrame(…)`, `pyarrow.table(…)`, DuckDB's queries and others.
    ///
    /// Raises:
    ///     QueryInvalidError: A filter is out of its bounds.
    #[pyo3(
        signature = (**filters),
        text_signature = "($self, *, since=None, until=None, before=None, action=None, \
            tenant_slug=None, partner_slug=None, actor_id=None, actor_email=None, \
            resource_type=None, resource_id=None, outcome=None, source=None, q=None, limit=None)"
    )]
    fn to_arrow(&self, filters: Option<&Bound<'_, PyDict>>) -> PyResult<ArrowEvents> {
        in_arrow(&self.shared, filters)
    }

    /// Ends the background work and closes the connections. Iterators of the log end with an
    /// error. Closing again waits for the same end.
    ///
    /// Events in the spool stay there until a log is opened with it.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        runtime::block(py, self.shared.close()?)
    }

    /// Whether the log is closed.
    #[getter]
    fn closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        self.shared.repr("AuditLog")
    }
}

impl Shared {
    fn repr(&self, class: &str) -> String {
        let state = if *self.closed.borrow() { " closed" } else { "" };
        let mode = if self.read_only { " read-only" } else { "" };
        format!("<dezky.{class} {}{mode}{state}>", self.url)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repr("AuditLog"))
    }
}

/// An audit log, for asyncio. `AuditLog` is the same for programs with threads.
///
/// Every method that waits returns an awaitable; `list` and `tail` return asynchronous iterators.
/// Cancelling leaves the log whole: an append that was cancelled has stored all of its events or
/// none.
///
/// Examples:
///     >>> import asyncio, dezky
///     >>> async def main():
///     ...     async with await dezky.AsyncAuditLog.open("memory:") as log:
///     ...         await log.record("tenant.created", actor=dezky.Actor.user("u-7"))
///     ...         return [event.action async for event in log.list()]
///     >>> asyncio.run(main())
///     ['tenant.created']
#[pyclass(frozen, module = "dezky", name = "AsyncAuditLog")]
pub(crate) struct AsyncAuditLog {
    shared: Arc<Shared>,
}

impl AsyncAuditLog {
    /// The platform, as `AuditLog::platform` returns it.
    pub(crate) fn platform(&self) -> PyResult<Arc<Platform>> {
        self.shared.writable()
    }
}

#[pymethods]
impl AsyncAuditLog {
    #[new]
    #[pyo3(signature = (*_arguments, **_named), text_signature = "()")]
    fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Err(opened_by("await AsyncAuditLog.open(url)"))
    }

    /// Opens the log at a URL, as `AuditLog.open` does.
    #[staticmethod]
    #[pyo3(
        signature = (url, *, spool=None, read_only=None),
        text_signature = "(url, *, spool=None, read_only=False)"
    )]
    fn open<'py>(
        py: Python<'py>,
        url: &Bound<'py, PyAny>,
        spool: Option<&Bound<'py, PyAny>>,
        read_only: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let opening = Opening::read(url, spool, read_only)?;
        runtime::future(py, async move { Ok(Self { shared: Arc::new(opening.open().await?) }) })
    }

    /// Records an event, as `AuditLog.record` does.
    #[pyo3(
        signature = (action, *, actor, **fields),
        text_signature = "($self, action, *, actor, at=None, outcome='success', \
            resource_type=None, resource_id=None, resource_name=None, tenant_slug=None, \
            partner_slug=None, source='platform-api', external_id=None, metadata=None)"
    )]
    fn record<'py>(
        &self,
        py: Python<'py>,
        action: Bound<'py, PyAny>,
        actor: Bound<'py, PyAny>,
        fields: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let platform = self.shared.writable()?;
        let event = Fields::of_arguments(action, actor, fields)?.event("")?;
        runtime::future(py, async move { Ok(Recorded(platform.log.record(event).await)) })
    }

    /// Appends events atomically and durably, as `AuditLog.append` does.
    fn append<'py>(
        &self,
        py: Python<'py>,
        events: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let platform = self.shared.writable()?;
        runtime::future(py, append(platform, batch(events)?))
    }

    /// Iterates over the events that match, as `AuditLog.list` does.
    #[pyo3(
        signature = (**filters),
        text_signature = "($self, *, since=None, until=None, before=None, action=None, \
            tenant_slug=None, partner_slug=None, actor_id=None, actor_email=None, \
            resource_type=None, resource_id=None, outcome=None, source=None, q=None, limit=None)"
    )]
    fn list<'py>(
        &self,
        py: Python<'py>,
        filters: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_stream(py, listed(&self.shared, filters)?)
    }

    /// Iterates over the events from a position on, as `AuditLog.tail` does.
    #[pyo3(
        signature = (from_seq=None, *, follow=None),
        text_signature = "($self, from_seq=0, *, follow=True)"
    )]
    fn tail<'py>(
        &self,
        py: Python<'py>,
        from_seq: Option<&Bound<'py, PyAny>>,
        follow: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_stream(py, tailed(&self.shared, from_seq, follow)?)
    }

    /// Recomputes the whole log, as `AuditLog.verify` does. `progress` is called in the event
    /// loop's thread.
    #[pyo3(signature = (*, progress=None, head=None))]
    fn verify<'py>(
        &self,
        py: Python<'py>,
        progress: Option<&Bound<'py, PyAny>>,
        head: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let progress = callback(progress)?;
        verification(py, Run::start(self.shared.clone(), expected(head)?)?, progress)
    }

    /// Returns the end of the log.
    fn head<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        runtime::future(py, read_head(self.shared.store()?))
    }

    /// Returns the events that match for Arrow libraries, as `AuditLog.to_arrow` does. They read
    /// it in their own thread: in a coroutine, use `asyncio.to_thread`.
    #[pyo3(
        signature = (**filters),
        text_signature = "($self, *, since=None, until=None, before=None, action=None, \
            tenant_slug=None, partner_slug=None, actor_id=None, actor_email=None, \
            resource_type=None, resource_id=None, outcome=None, source=None, q=None, limit=None)"
    )]
    fn to_arrow(&self, filters: Option<&Bound<'_, PyDict>>) -> PyResult<ArrowEvents> {
        in_arrow(&self.shared, filters)
    }

    /// Closes the log, as `AuditLog.close` does.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        runtime::future(py, self.shared.close()?.map(Ok))
    }

    /// Whether the log is closed.
    #[getter]
    fn closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        runtime::done(slf.py(), slf)
    }

    #[pyo3(signature = (*_args))]
    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _args: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        self.shared.repr("AsyncAuditLog")
    }
}
