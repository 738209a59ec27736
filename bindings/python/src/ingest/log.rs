//! The logs that events are brought into.

use std::sync::Arc;

use dezky::Platform;
use dezky::core::source::{PulledEvent, QuarantineItem};
use dezky::ingest::{IngestSummary, Intake};
use pyo3::prelude::*;

use super::decode::Decoded;
use super::pump::Summary;
use crate::audit::log::{AsyncAuditLog, AuditLog};
use crate::convert::type_error;
use crate::error::exception;
use crate::runtime::{future, wait_for};

/// The bounds of one append: within the time that one may take, on a slow store too, and with room for
/// the quarantine's notices.
const MAX_EVENTS: usize = 500;
const MAX_ITEMS: usize = 1_000;
const MAX_BYTES: usize = 8 << 20;

/// The log of a pump.
pub(super) enum PumpLog {
    Blocking(Py<AuditLog>),
    Async(Py<AsyncAuditLog>),
}

impl PumpLog {
    pub(super) fn new(log: &Bound<'_, PyAny>, is_async: bool) -> PyResult<Self> {
        match (log.cast::<AuditLog>(), log.cast::<AsyncAuditLog>()) {
            (Ok(log), _) if !is_async => Ok(Self::Blocking(log.clone().unbind())),
            (_, Ok(log)) if is_async => Ok(Self::Async(log.clone().unbind())),
            _ if is_async => Err(type_error("log", "an AsyncAuditLog", log)),
            _ => Err(type_error("log", "an AuditLog", log)),
        }
    }

    fn platform(&self) -> PyResult<Arc<Platform>> {
        match self {
            Self::Blocking(log) => log.get().platform(),
            Self::Async(log) => log.get().platform(),
        }
    }

    /// # Errors
    /// `ValueError` if the log is closed.
    pub(super) fn check_open(&self) -> PyResult<()> {
        self.platform().map(drop)
    }

    /// The way into the log: without its spool, because what is not committed is pulled again.
    pub(super) fn intake(&self) -> PyResult<Intake> {
        let platform = self.platform()?;
        let intake = Intake::new(Arc::clone(&platform.store), Arc::clone(platform.runtime()));
        Ok(intake.with_directory(platform.tenants.clone()))
    }

    pub(super) fn object(&self) -> &Py<PyAny> {
        match self {
            Self::Blocking(log) => log.as_any(),
            Self::Async(log) => log.as_any(),
        }
    }
}

/// Brings decoded events into a log, and their quarantined items into its quarantine.
///
/// For receivers of webhooks: acknowledge the request only after it returned. The same body again
/// adds nothing and gives the same `received`. The tenant of an event is looked up in the
/// directory of the log's database. If the log has a spool, it takes what the store does not.
///
/// Args:
///     log: The log: with an `AsyncAuditLog`, the result must be awaited.
///     decoded: The result of `decode_stalwart`, `decode_authentik` or `decode_ocis`.
///
/// Returns:
///     What is new, and what was there already.
///
/// Raises:
///     dezky.Error: The store failed, and there is no spool. The sender should send it again.
///
/// Examples:
///     >>> import dezky
///     >>> from dezky.ingest import append, decode_stalwart
///     >>> body = b'{"events": [{"id": "7", "createdAt": "2026-08-17T10:00:00Z", "type": "x.y"}]}'
///     >>> with dezky.AuditLog.open("memory:") as log:
///     ...     first, again = append(log, decode_stalwart(body)), append(log, decode_stalwart(body))
///     >>> first.stored, again.stored, again.received
///     (1, 0, 1)
#[pyfunction]
pub(super) fn append<'py>(
    py: Python<'py>,
    log: &Bound<'py, PyAny>,
    decoded: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let given =
        decoded.cast::<Decoded>().map_err(|_| type_error("decoded", "a Decoded", decoded))?;
    let Decoded { events, quarantined, .. } = given.get();
    let (events, items) = (events.clone(), quarantined.clone());
    if let Ok(log) = log.cast::<AsyncAuditLog>() {
        let platform = log.get().platform()?;
        return future(py, async move {
            ingest(platform, events, items).await.map(Summary).map_err(exception)
        });
    }
    let log = log
        .cast::<AuditLog>()
        .map_err(|_| type_error("log", "an AuditLog or AsyncAuditLog", log))?;
    let summary = wait_for(py, ingest(log.get().platform()?, events, items))?;
    Ok(Bound::new(py, Summary(summary))?.into_any())
}

/// Stores a body, in parts if it is large: each event has an external id, so a retry adds nothing.
async fn ingest(
    platform: Arc<Platform>,
    events: Vec<PulledEvent>,
    items: Vec<QuarantineItem>,
) -> dezky::Result<IngestSummary> {
    let mut summary = IngestSummary::default();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for event in events {
        let size = event.event.metadata.source().map_or(0, str::len);
        if part.len() == MAX_EVENTS || (bytes + size > MAX_BYTES && !part.is_empty()) {
            let part = std::mem::take(&mut part);
            summary += platform.intake.ingest_or_spool(part, Vec::new()).await?;
            bytes = 0;
        }
        bytes += size;
        part.push(event);
    }
    let mut items = items.into_iter();
    let first = items.by_ref().take(MAX_ITEMS).collect();
    summary += platform.intake.ingest_or_spool(part, first).await?;
    loop {
        let rest: Vec<_> = items.by_ref().take(MAX_ITEMS).collect();
        if rest.is_empty() {
            return Ok(summary);
        }
        summary += platform.intake.ingest_or_spool(Vec::new(), rest).await?;
    }
}
