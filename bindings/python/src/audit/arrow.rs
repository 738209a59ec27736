//! Events as Arrow: record batches of bounded size, through the PyCapsule interface.

use std::sync::{Arc, OnceLock};

use arrow_array::builder::{
    FixedSizeBinaryBuilder, Int64Builder, ListBuilder, StringBuilder, StringDictionaryBuilder,
    TimestampMillisecondBuilder,
};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch, RecordBatchReader};
use arrow_schema::ffi::FFI_ArrowSchema;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use dezky::core::StoredEvent;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCapsule;
use tokio::sync::mpsc;

use super::event::attribute;
use super::filters::Filters;
use super::log::Shared;
use super::pages::ListPages;
use crate::error::coded;
use crate::runtime;

/// A batch ends when it has this many events, or this many bytes of metadata.
const BATCH_EVENTS: usize = 16_000;
const BATCH_METADATA_BYTES: usize = 16 << 20;
/// The number of pages that are read ahead of the consumer: at 64 KiB of metadata for each event,
/// one takes 32 MiB.
const PAGES_AHEAD: usize = 3;
const HASH_BYTES: i32 = 32;

/// The schema of all streams, with the columns in the order of `Event.to_dict` and of tables.
pub(super) fn schema() -> SchemaRef {
    static SCHEMA: OnceLock<SchemaRef> = OnceLock::new();
    let made = SCHEMA.get_or_init(|| {
        let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let word = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let hash = DataType::FixedSizeBinary(HASH_BYTES);
        let names = DataType::new_list(DataType::Utf8, true);
        let always = |name: &str, kind: &DataType| Field::new(name, kind.clone(), false);
        let maybe = |name: &str, kind: &DataType| Field::new(name, kind.clone(), true);
        Arc::new(Schema::new(vec![
            always("seq", &DataType::Int64),
            always("id", &DataType::Utf8),
            always("at", &time),
            always("received_at", &time),
            always("action", &word),
            always("outcome", &word),
            always("actor_type", &word),
            maybe("actor_id", &word),
            maybe("actor_email", &word),
            maybe("actor_ip", &word),
            maybe("resource_type", &word),
            maybe("resource_id", &DataType::Utf8),
            maybe("resource_name", &DataType::Utf8),
            maybe("tenant_slug", &word),
            maybe("partner_slug", &word),
            always("source", &word),
            maybe("external_id", &DataType::Utf8),
            always("metadata", &DataType::Utf8),
            always("erased", &names),
            always("prev_hash", &hash),
            always("hash", &hash),
        ]))
    });
    Arc::clone(made)
}

type Words = StringDictionaryBuilder<Int32Type>;

/// The columns of a batch, in the order of the schema.
struct Columns {
    events: usize,
    metadata_bytes: usize,
    seq: Int64Builder,
    id: StringBuilder,
    at: TimestampMillisecondBuilder,
    received_at: TimestampMillisecondBuilder,
    action: Words,
    outcome: Words,
    actor_type: Words,
    actor_id: Words,
    actor_email: Words,
    actor_ip: Words,
    resource_type: Words,
    resource_id: StringBuilder,
    resource_name: StringBuilder,
    tenant_slug: Words,
    partner_slug: Words,
    source: Words,
    external_id: StringBuilder,
    metadata: StringBuilder,
    erased: ListBuilder<StringBuilder>,
    prev_hash: FixedSizeBinaryBuilder,
    hash: FixedSizeBinaryBuilder,
}

impl Columns {
    fn new() -> Self {
        let time = || TimestampMillisecondBuilder::new().with_timezone("UTC");
        Self {
            events: 0,
            metadata_bytes: 0,
            seq: Int64Builder::new(),
            id: StringBuilder::new(),
            at: time(),
            received_at: time(),
            action: Words::new(),
            outcome: Words::new(),
            actor_type: Words::new(),
            actor_id: Words::new(),
            actor_email: Words::new(),
            actor_ip: Words::new(),
            resource_type: Words::new(),
            resource_id: StringBuilder::new(),
            resource_name: StringBuilder::new(),
            tenant_slug: Words::new(),
            partner_slug: Words::new(),
            source: Words::new(),
            external_id: StringBuilder::new(),
            metadata: StringBuilder::new(),
            erased: ListBuilder::new(StringBuilder::new()),
            prev_hash: FixedSizeBinaryBuilder::new(HASH_BYTES),
            hash: FixedSizeBinaryBuilder::new(HASH_BYTES),
        }
    }

    fn is_full(&self) -> bool {
        self.events >= BATCH_EVENTS || self.metadata_bytes >= BATCH_METADATA_BYTES
    }

    fn append(&mut self, stored: &StoredEvent) -> Result<(), ArrowError> {
        let event = &stored.event;
        self.events += 1;
        self.metadata_bytes += event.metadata.as_str().len();
        self.seq.append_value(i64::try_from(stored.seq).unwrap_or(i64::MAX));
        self.id.append_value(event.id.hyphenated().encode_lower(&mut [0; 36]));
        self.at.append_value(event.at.as_millis());
        self.received_at.append_value(event.received_at.as_millis());
        self.action.append(&event.action)?;
        self.outcome.append(event.outcome.as_str())?;
        self.actor_type.append(event.actor_type.as_str())?;
        self.actor_id.append_option(event.actor_id.as_deref());
        self.actor_email.append_option(event.actor_email.as_deref());
        self.actor_ip.append_option(event.actor_ip.as_deref());
        self.resource_type.append_option(event.resource_type.as_deref());
        self.resource_id.append_option(event.resource_id.as_deref());
        self.resource_name.append_option(event.resource_name.as_deref());
        self.tenant_slug.append_option(event.tenant_slug.as_deref());
        self.partner_slug.append_option(event.partner_slug.as_deref());
        self.source.append(&event.source)?;
        self.external_id.append_option(event.external_id.as_deref());
        self.metadata.append_value(event.metadata.as_str());
        self.erased.append_value(stored.erased.iter().map(|field| Some(attribute(*field))));
        self.prev_hash.append_value(stored.prev_hash)?;
        self.hash.append_value(stored.hash)
    }

    fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.seq.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.at.finish()),
            Arc::new(self.received_at.finish()),
            Arc::new(self.action.finish()),
            Arc::new(self.outcome.finish()),
            Arc::new(self.actor_type.finish()),
            Arc::new(self.actor_id.finish()),
            Arc::new(self.actor_email.finish()),
            Arc::new(self.actor_ip.finish()),
            Arc::new(self.resource_type.finish()),
            Arc::new(self.resource_id.finish()),
            Arc::new(self.resource_name.finish()),
            Arc::new(self.tenant_slug.finish()),
            Arc::new(self.partner_slug.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.external_id.finish()),
            Arc::new(self.metadata.finish()),
            Arc::new(self.erased.finish()),
            Arc::new(self.prev_hash.finish()),
            Arc::new(self.hash.finish()),
        ];
        RecordBatch::try_new(schema(), columns)
    }
}

/// A stream of record batches. A task reads pages ahead; the consumer's thread builds the arrays.
struct Batches {
    shared: Arc<Shared>,
    pages: mpsc::Receiver<dezky::Result<Vec<StoredEvent>>>,
    at_end: bool,
}

impl Batches {
    fn start(shared: Arc<Shared>, mut source: ListPages) -> PyResult<Self> {
        let (sender, pages) = mpsc::channel(PAGES_AHEAD);
        runtime::runtime()?.spawn(async move {
            loop {
                let (page, is_last) = match source.next().await {
                    Ok(None) => return,
                    Ok(Some(page)) => (Ok(page), false),
                    Err(error) => (Err(error), true),
                };
                // Without a receiver, nobody reads the stream any more.
                if sender.send(page).await.is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Self { shared, pages, at_end: false })
    }

    /// The next batch; `None` at the end.
    async fn gather(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let mut columns = Columns::new();
        while !columns.is_full() {
            let page = self.shared.while_open(self.pages.recv()).await;
            match page.map_err(|error| failure(&error.to_string()))? {
                None => break,
                Some(Ok(page)) => {
                    for event in &page {
                        columns.append(event)?;
                    }
                }
                Some(Err(error)) => return Err(failure(&error.to_string())),
            }
        }
        if columns.events == 0 { Ok(None) } else { columns.finish().map(Some) }
    }

    /// [`gather`](Self::gather), from a thread of the consumer, with or without the interpreter's
    /// lock.
    fn wait(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let waited = Python::try_attach(|py| {
            runtime::check_fork().map_err(|error| failure(&error.to_string()))?;
            runtime::block(py, self.gather()).map_err(|error| {
                let message = error.to_string();
                // A signal handler raised it, such as the one of Ctrl-C. The consumer raises a
                // different error, so the handler's is raised again later.
                raise_again(py, error);
                failure(&message)
            })
        });
        waited.unwrap_or_else(|| Err(failure("the interpreter ends")))?
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at_end {
            return None;
        }
        let batch = self.wait().transpose();
        self.at_end = !matches!(batch, Some(Ok(_)));
        batch
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        schema()
    }
}

/// Has the main thread raise an exception once the foreign code has returned to Python.
fn raise_again(py: Python<'_>, error: PyErr) {
    static LEND: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let lent = LEND
        .import(py, "dezky._signals", "lend_handler")
        .and_then(|lend| lend.call1((error.into_value(py),)))
        // Called from Python, it would be heard at once, in the helper.
        .and_then(|_| py.import("_thread")?.call_method0("interrupt_main"));
    if let Err(error) = lent {
        error.write_unraisable(py, None);
    }
}

/// An error of a stream, which becomes text without zero bytes.
fn failure(message: &str) -> ArrowError {
    let message = message.replace('\0', "");
    ArrowError::IoError(message.clone(), std::io::Error::other(message))
}

/// Events for libraries that read Arrow: polars, pandas, pyarrow, DuckDB and others take it as it
/// is, because it has the methods of the Arrow PyCapsule interface.
///
/// Each reader gets a separate stream, which reads the log from its beginning, newest events
/// first, in batches of bounded size. Columns are named as the attributes of `Event`; `metadata`
/// is JSON text, `erased` a list, and columns with few different values are dictionaries.
///
/// Examples:
///     >>> import dezky, pyarrow
///     >>> with dezky.AuditLog.open("memory:") as log:
///     ...     _ = log.record("tenant.created", actor=dezky.Actor.system())
///     ...     table = pyarrow.table(log.to_arrow(action="tenant."))
///     >>> table.num_rows
///     1
#[pyclass(frozen, module = "dezky", name = "ArrowEvents")]
pub(crate) struct ArrowEvents {
    shared: Arc<Shared>,
    filters: Filters,
}

impl ArrowEvents {
    pub(crate) fn new(shared: Arc<Shared>, filters: Filters) -> Self {
        Self { shared, filters }
    }
}

#[pymethods]
impl ArrowEvents {
    /// Returns a stream of record batches, as the Arrow PyCapsule interface defines it.
    ///
    /// Args:
    ///     requested_schema: Not supported; the reader casts.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        let pages = self.filters.pages(self.shared.store()?);
        let batches = Batches::start(self.shared.clone(), pages)?;
        let stream = FFI_ArrowArrayStream::new(Box::new(batches));
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }

    /// Returns the schema of the stream.
    #[expect(clippy::unused_self, reason = "the interface asks the object")]
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(&*schema())
            .map_err(|error| coded("internal", &error.to_string()))?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    fn __repr__(&self) -> String {
        format!("<dezky.ArrowEvents of {:?}>", self.shared)
    }
}
