//! Sources of events, and the pump that moves them into a log.

use pyo3::prelude::*;

/// Adds the classes and functions of this part.
pub(crate) fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
