//! Items that could not become events.

use dezky::core::Timestamp;
use dezky::core::source::{MAX_QUARANTINE_RAW_BYTES, QuarantineItem};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arguments::{bytes, source_name};
use super::digest::Digest;
use crate::convert::{datetime, text, timestamp, value_error};

/// An item of a source that could not become an event.
///
/// The pump stores it, with its bytes, until an operator decides about it, and reports it on the
/// timeline (`ingest.quarantined`). An item with the same source and key is stored only once.
///
/// Args:
///     reason: A short stable code, such as `"not_json"`.
///     raw: The bytes as received, at most 64 KiB; longer ones are cut. Remove secrets first.
///     detail: One line for a person, without secrets and personal data.
///     key: The item's identity, the same whenever it is received again; by default a digest of
///         `reason` and `raw`.
///     source: The name of the source; by default the one that returns it.
///     at: The time of receipt; by default the current time.
///
/// Examples:
///     >>> from dezky.ingest import Quarantined
///     >>> item = Quarantined("not_json", raw=b"{oops", detail="line 7 is not JSON", key="line:7")
///     >>> item.reason, item.raw
///     ('not_json', b'{oops')
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct Quarantined {
    item: QuarantineItem,
}

impl From<QuarantineItem> for Quarantined {
    fn from(item: QuarantineItem) -> Self {
        Self { item }
    }
}

impl Quarantined {
    /// The item for the store: of `source` and received `now`, unless it says otherwise.
    pub(super) fn item(&self, source: &str, now: Timestamp) -> QuarantineItem {
        let mut item = self.item.clone();
        if item.source.is_empty() {
            source.clone_into(&mut item.source);
        }
        if item.at == Timestamp::MIN {
            item.at = now;
        }
        item
    }
}

#[pymethods]
impl Quarantined {
    #[new]
    #[pyo3(signature = (reason, *, raw = None, detail = None, key = None, source = None, at = None))]
    fn new(
        reason: &Bound<'_, PyAny>,
        raw: Option<&Bound<'_, PyAny>>,
        detail: Option<&Bound<'_, PyAny>>,
        key: Option<&Bound<'_, PyAny>>,
        source: Option<&Bound<'_, PyAny>>,
        at: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let reason = text(reason, "reason")?;
        if !(1..=64).contains(&reason.len()) {
            return Err(value_error("reason", "must be a code of 1 to 64 bytes"));
        }
        let raw = match raw {
            Some(raw) => bytes(raw, "raw", "bytes")?.into_owned(),
            None => Vec::new(),
        };
        let key = match key {
            Some(key) => text(key, "key")?,
            None => format!("item:{}", Digest::new().part(&reason).part(&raw).hex()),
        };
        if key.is_empty() {
            return Err(value_error("key", "must not be empty: leave it out for a digest"));
        }
        let mut item = QuarantineItem {
            source: source.map_or_else(|| Ok(String::new()), |s| source_name(s, "source"))?,
            key,
            reason,
            detail: detail.map_or_else(|| Ok(String::new()), |d| text(d, "detail"))?,
            raw,
            at: at.map_or(Ok(Timestamp::MIN), |at| timestamp(at, "at"))?,
        };
        item.raw.truncate(MAX_QUARANTINE_RAW_BYTES);
        Ok(Self { item })
    }

    /// The name of the source; empty for the source that returns the item.
    #[getter]
    fn source(&self) -> &str {
        &self.item.source
    }

    /// The item's identity across repeated deliveries.
    #[getter]
    fn key(&self) -> &str {
        &self.item.key
    }

    /// A short stable code.
    #[getter]
    fn reason(&self) -> &str {
        &self.item.reason
    }

    /// One line for a person.
    #[getter]
    fn detail(&self) -> &str {
        &self.item.detail
    }

    /// The bytes, without secrets.
    #[getter]
    fn raw<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.item.raw)
    }

    /// The time of receipt; `None` until the pump takes the item.
    #[getter]
    fn at<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let at = Some(self.item.at).filter(|at| *at != Timestamp::MIN);
        at.map(|at| datetime(py, at)).transpose()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().item == self.item)
    }

    fn __hash__(&self) -> u64 {
        Digest::new().part(&self.item.source).part(&self.item.key).number()
    }

    /// Shows no content, which may be personal.
    fn __repr__(&self) -> String {
        let QuarantineItem { source, reason, raw, .. } = &self.item;
        format!("<Quarantined {reason:?} of {source:?}, {} bytes>", raw.len())
    }
}
