//! The effect of a change on known tenants.

use dezky::flags::store::Snapshot;
use dezky::flags::{Flag, FlagFile, NewFlag, Preview as CorePreview, Previewer, SnapshotPreviewer};
use dezky::{FlagContext, Timestamp};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use super::context::{Asked, Values};
use super::set::FlagSet;
use crate::convert::{json_object, loads, text, type_error};
use crate::error::exception;

/// The number of tenants that are decided at a time.
const BLOCK: usize = 1_024;

/// The effect of a flag's change on the known tenants.
///
/// `str()` summarises it: `~14 of 40 tenants: 4 gain it, 0 lose it`.
#[pyclass(frozen, eq, module = "dezky")]
#[derive(PartialEq)]
pub(crate) struct Preview(CorePreview);

#[pymethods]
impl Preview {
    /// The number of tenants.
    #[getter]
    fn total(&self) -> u64 {
        self.0.total
    }

    /// The number of tenants for which the flag was on.
    #[getter]
    fn before_on(&self) -> u64 {
        self.0.before_on
    }

    /// The number of tenants for which the flag will be on.
    #[getter]
    fn after_on(&self) -> u64 {
        self.0.after_on
    }

    /// The number of tenants for which the flag is switched on.
    #[getter]
    fn gains(&self) -> u64 {
        self.0.gains.count
    }

    /// The number of tenants for which the flag is switched off.
    #[getter]
    fn loses(&self) -> u64 {
        self.0.loses.count
    }

    /// The ids of the tenants that gain the flag, at most 1,000.
    #[getter]
    fn gaining<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.gains.tenants.iter().map(|tenant| &tenant.id))
    }

    /// The ids of the tenants that lose the flag, at most 1,000.
    #[getter]
    fn losing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.loses.tenants.iter().map(|tenant| &tenant.id))
    }

    /// Returns the preview as the HTTP API sends it, with the numbers by plan.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let json = serde_json::to_string(&self.0).unwrap_or_default();
        Ok(loads(py, &json)?.cast_into()?)
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        let CorePreview { total, before_on, after_on, gains, loses, .. } = &self.0;
        let (gains, loses) = (gains.count, loses.count);
        format!(
            "Preview(total={total}, before_on={before_on}, after_on={after_on}, gains={gains}, \
             loses={loses})"
        )
    }
}

/// Compares a flag before and after a change for each of the tenants.
///
/// Args:
///     old: The flag's definition before the change as a dictionary or its JSON; `None` stands for
///         a flag that does not exist. Or a `FlagSet`, to compare all flags.
///     new: The same after the change.
///     tenants: The tenants: each a `Context`, a mapping with its members, or the tenant's id.
///
/// Returns:
///     The preview; of two sets those of all flags that decide differently, by key.
///
/// Raises:
///     FieldInvalidError: A definition violates a bound.
///     TypeError: An argument has another type, or only one of the two is a `FlagSet`.
///
/// Examples:
///     >>> import dezky
///     >>> old = {"key": "chat", "state": "rollout", "pct": 25}
///     >>> print(dezky.preview(old, {**old, "pct": 75}, [f"t-{n}" for n in range(400)]))
///     ~317 of 400 tenants: 204 gain it, 0 lose it
#[pyfunction]
pub(crate) fn preview<'py>(
    old: &Bound<'py, PyAny>,
    new: &Bound<'py, PyAny>,
    tenants: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = old.py();
    if tenants.is_instance_of::<PyString>() || tenants.is_instance_of::<PyDict>() {
        return Err(not_tenants(tenants));
    }
    if let (Ok(old), Ok(new)) = (old.cast::<FlagSet>(), new.cast::<FlagSet>()) {
        let (old, new): (&Snapshot, &Snapshot) = (old.get().0.snapshot(), new.get().0.snapshot());
        let mut previewer = SnapshotPreviewer::new(old, new);
        each(tenants, |tenant| previewer.see(tenant))?;
        let previews = PyDict::new(py);
        for (key, preview) in previewer.finish() {
            previews.set_item(key, Preview(preview))?;
        }
        return Ok(previews.into_any());
    }
    if old.is_instance_of::<FlagSet>() || new.is_instance_of::<FlagSet>() {
        return Err(PyTypeError::new_err("old and new must both be FlagSets, or both definitions"));
    }
    let (before, after) = (definition(old, "old")?, definition(new, "new")?);
    let mut previewer = Previewer::new(before.as_ref(), after.as_ref());
    each(tenants, |tenant| previewer.see(tenant))?;
    Ok(Preview(previewer.finish()).into_pyobject(py)?.into_any())
}

fn not_tenants(given: &Bound<'_, PyAny>) -> PyErr {
    type_error("tenants", "an iterable of contexts or ids", given)
}

/// Shows all tenants. Other threads run while they are decided.
fn each(tenants: &Bound<'_, PyAny>, mut see: impl FnMut(&FlagContext<'_>) + Send) -> PyResult<()> {
    let py = tenants.py();
    let mut block: Vec<Values> = Vec::new();
    let mut decide = |block: &mut Vec<Values>| {
        py.check_signals()?;
        py.detach(|| block.drain(..).for_each(|tenant| see(&tenant.borrowed())));
        PyResult::Ok(())
    };
    for (place, tenant) in tenants.try_iter().map_err(|_| not_tenants(tenants))?.enumerate() {
        block.push(Asked::tenant(&tenant?, &format!("tenants[{place}]"))?.into_values());
        if block.len() == BLOCK {
            decide(&mut block)?;
        }
    }
    decide(&mut block)
}

/// A flag as its definition, or as a store exports it.
fn definition(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Option<Flag>> {
    if value.is_none() {
        return Ok(None);
    }
    let json = if value.is_instance_of::<PyString>() {
        text(value, name)?
    } else if value.is_instance_of::<PyDict>() {
        json_object(value, name)?
    } else {
        return Err(type_error(name, "a dict, JSON, a FlagSet or None", value));
    };
    let read = || -> dezky::Result<Option<Flag>> {
        let mut flags: Vec<NewFlag> =
            FlagFile::from_json(&format!("{{\"flags\":[{json}]}}"))?.all()?;
        flags.pop().map(|new| Flag::new(new, Timestamp::MIN)).transpose()
    };
    read().map_err(|error| exception(error.context(name)))
}
