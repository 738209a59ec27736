//! Pickling, for multiprocessing: objects become a kind and plain values, from which [`_restore`]
//! makes them again.

use dezky::core::store::{Head as CoreHead, Receipt as CoreReceipt, ReceiptStatus};
use dezky::core::{AuditEvent, Field, Metadata, NewMetadata, StoredEvent};
use dezky::{RecordOutcome, Recorded as CoreRecorded};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyMapping, PyTuple};
use serde_json::{Map, Value};

use super::event::{Event, Fields, NewEvent, attribute};
use super::log::{Receipt, Recorded};
use super::verify::Head;

/// What `__reduce__` returns.
pub(super) type Reduced<'py> = (Bound<'py, PyAny>, Bound<'py, PyTuple>);

/// The function that makes an object again, and its arguments.
pub(super) fn reduced<'py>(
    py: Python<'py>,
    kind: &str,
    values: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Reduced<'py>> {
    static RESTORE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let restore = RESTORE.import(py, "dezky._dezky", "_restore")?.clone();
    Ok((restore, (kind, values).into_pyobject(py)?))
}

/// Makes an object from its pickled values.
#[pyfunction]
#[pyo3(signature = (kind, values, /))]
pub(super) fn _restore<'py>(
    py: Python<'py>,
    kind: &str,
    values: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    Ok(match kind {
        "NewEvent" => new_event(values)?.into_pyobject(py)?.into_any(),
        "Event" => event(values)?.into_pyobject(py)?.into_any(),
        "Head" => head(values)?.into_pyobject(py)?.into_any(),
        "Receipt" => receipt(values)?.into_pyobject(py)?.into_any(),
        "Recorded" => recorded(values)?.into_pyobject(py)?.into_any(),
        _ => return Err(unreadable("kind")),
    })
}

fn unreadable(what: &str) -> PyErr {
    PyValueError::new_err(format!("{what} is not what this version of dezky pickles"))
}

fn hash(bytes: &[u8]) -> PyResult<[u8; 32]> {
    bytes.try_into().map_err(|_| unreadable("hash"))
}

fn fields(names: &[String]) -> PyResult<Vec<Field>> {
    let field = |name: &String| Field::ALL.into_iter().find(|field| attribute(*field) == *name);
    names.iter().map(field).collect::<Option<_>>().ok_or_else(|| unreadable("field"))
}

/// The annotations of a new event, which a source mapping has set, as JSON.
pub(super) fn annotations(metadata: &NewMetadata) -> PyResult<String> {
    // They can be read in the metadata that they are for, unless they exceed its bounds.
    let sealed = metadata.clone().into_metadata().to_value();
    let mut annotations = match sealed.get("_dezky") {
        Some(Value::Object(annotations)) => annotations.clone(),
        _ => Map::new(),
    };
    for by_sealing in ["source", "truncated", "dropped"] {
        annotations.remove(by_sealing);
    }
    if annotated(metadata.source(), &annotations) == *metadata {
        return Ok(Value::Object(annotations).to_string());
    }
    Err(PyTypeError::new_err(
        "this event has annotations beyond the bounds of metadata, and can't be pickled: append it \
         in this process",
    ))
}

fn annotated(source: Option<&str>, annotations: &Map<String, Value>) -> NewMetadata {
    let mut metadata = source.map_or_else(NewMetadata::default, NewMetadata::from_source);
    for (key, value) in annotations {
        metadata.annotate(key, value.clone());
    }
    metadata
}

fn new_event(values: &Bound<'_, PyTuple>) -> PyResult<NewEvent> {
    let (named, id, source, annotations): (
        Bound<'_, PyMapping>,
        Option<String>,
        Option<String>,
        String,
    ) = values.extract()?;
    let mut event = Fields::of_mapping(&named, "")?.event("")?;
    event.id = id.map(|id| id.parse().map_err(|_| unreadable("id"))).transpose()?;
    let annotations = serde_json::from_str(&annotations).map_err(|_| unreadable("metadata"))?;
    event.metadata = annotated(source.as_deref(), &annotations);
    Ok(NewEvent(event))
}

fn event(values: &Bound<'_, PyTuple>) -> PyResult<Event> {
    type Hashes = (Vec<u8>, Vec<u8>);
    let (seq, event, metadata, erased, hashes): (u64, String, String, Vec<String>, Hashes) =
        values.extract()?;
    let event: AuditEvent = serde_json::from_str(&event).map_err(|_| unreadable("event"))?;
    Ok(Event(StoredEvent {
        seq,
        event: AuditEvent { metadata: Metadata::from_stored(metadata), ..event },
        erased: fields(&erased)?,
        prev_hash: hash(&hashes.0)?,
        hash: hash(&hashes.1)?,
    }))
}

fn head(values: &Bound<'_, PyTuple>) -> PyResult<Head> {
    let (next_seq, bytes): (u64, Vec<u8>) = values.extract()?;
    Ok(CoreHead { next_seq, hash: hash(&bytes)? }.into())
}

fn receipt(values: &Bound<'_, PyTuple>) -> PyResult<Receipt> {
    let (status, seq, id, differs): (String, u64, String, Vec<String>) = values.extract()?;
    let status = match &*status {
        "appended" => ReceiptStatus::Appended,
        "duplicate" => ReceiptStatus::Duplicate,
        "conflict" => ReceiptStatus::Conflict,
        _ => return Err(unreadable("status")),
    };
    let id = id.parse().map_err(|_| unreadable("id"))?;
    Ok(Receipt(CoreReceipt { status, seq, id, differs: fields(&differs)? }))
}

fn recorded(values: &Bound<'_, PyTuple>) -> PyResult<Recorded> {
    let (status, seq, id): (String, Option<u64>, String) = values.extract()?;
    let outcome = match (&*status, seq) {
        ("appended", Some(seq)) => RecordOutcome::Appended { seq },
        ("duplicate", Some(seq)) => RecordOutcome::Duplicate { seq },
        ("spooled", None) => RecordOutcome::Spooled,
        ("lost", None) => RecordOutcome::Lost,
        _ => return Err(unreadable("status")),
    };
    let id = id.parse().map_err(|_| unreadable("id"))?;
    Ok(Recorded(CoreRecorded { id, outcome }))
}
