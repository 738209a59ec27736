//! Sources of events, and the pump that moves them into a log.

mod arguments;
mod decode;
mod digest;
mod lenient;
mod log;
mod pump;
mod quarantine;
mod signature;
mod source;

use pyo3::prelude::*;

/// Adds the classes and functions of this part.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<decode::Decoded>()?;
    module.add_class::<pump::AsyncPump>()?;
    module.add_class::<pump::Pump>()?;
    module.add_class::<pump::PumpStatus>()?;
    module.add_class::<pump::Summary>()?;
    module.add_class::<pump::Tick>()?;
    module.add_class::<quarantine::Quarantined>()?;
    module.add_function(wrap_pyfunction!(decode::authentik_action, module)?)?;
    module.add_function(wrap_pyfunction!(decode::decode_authentik, module)?)?;
    module.add_function(wrap_pyfunction!(decode::decode_ocis, module)?)?;
    module.add_function(wrap_pyfunction!(decode::decode_stalwart, module)?)?;
    module.add_function(wrap_pyfunction!(decode::ocis_action, module)?)?;
    module.add_function(wrap_pyfunction!(decode::ocis_class, module)?)?;
    module.add_function(wrap_pyfunction!(decode::stalwart_action, module)?)?;
    module.add_function(wrap_pyfunction!(log::append, module)?)?;
    module.add_function(wrap_pyfunction!(signature::verify_signature, module)?)?;
    Ok(())
}
