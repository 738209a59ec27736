//! The audit log.

mod arrow;
pub(crate) mod event;
mod filters;
pub(crate) mod log;
mod pages;
mod pickle;
mod verify;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Adds the classes and functions of this part.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<event::Actor>()?;
    module.add_class::<event::Event>()?;
    module.add_class::<event::NewEvent>()?;
    module.add_class::<log::AsyncAuditLog>()?;
    module.add_class::<log::AuditLog>()?;
    module.add_class::<log::Receipt>()?;
    module.add_class::<log::Recorded>()?;
    module.add_class::<pages::EventIterator>()?;
    module.add_class::<pages::EventSource>()?;
    module.add_class::<arrow::ArrowEvents>()?;
    module.add_class::<verify::Anomaly>()?;
    module.add_class::<verify::Finding>()?;
    module.add_class::<verify::Head>()?;
    module.add_class::<verify::Verification>()?;
    module.add_class::<verify::VerificationRun>()?;
    module.add_function(wrap_pyfunction!(pickle::_restore, module)?)?;
    let columns = arrow::schema();
    let names = columns.fields().iter().map(|column| column.name());
    module.add("EVENT_COLUMNS", PyTuple::new(module.py(), names)?)
}
