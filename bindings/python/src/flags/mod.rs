//! Feature flags.

mod column;
mod context;
mod decision;
mod live;
mod preview;
mod remote;
mod resolve;
mod set;

use dezky::flags;
use pyo3::prelude::*;

use crate::convert::text_of;

/// Adds the classes and functions of this part.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<column::BooleanColumn>()?;
    module.add_class::<context::Context>()?;
    module.add_class::<decision::Decision>()?;
    module.add_class::<decision::Explanation>()?;
    module.add_class::<live::AsyncLiveFlags>()?;
    module.add_class::<live::FlagEvent>()?;
    module.add_class::<live::LiveFlags>()?;
    module.add_class::<live::LiveStatus>()?;
    module.add_class::<live::Subscription>()?;
    module.add_class::<preview::Preview>()?;
    module.add_class::<set::FlagSet>()?;
    module.add_function(wrap_pyfunction!(bucket, module)?)?;
    module.add_function(wrap_pyfunction!(fine_bucket, module)?)?;
    module.add_function(wrap_pyfunction!(preview::preview, module)?)
}

/// Returns a tenant's bucket for a flag, 0 to 99.
///
/// The bucket is the SHA-256 of the UTF-8 bytes of the tenant's id, `:` and the key, read as
/// one big-endian integer, modulo 100. It depends on nothing else, so raising a percentage only
/// adds tenants.
///
/// Args:
///     tenant_id: The tenant's id; any text.
///     key: The flag's key, or its seed if it has one; any text.
///
/// Returns:
///     The bucket. The tenant is inside a rollout of `pct` percent if it is below `pct`.
///
/// Examples:
///     >>> import dezky
///     >>> dezky.bucket("1d0e6fde-e431-7835-82c1-a48a8b044551", "partner_portal")
///     21
#[pyfunction]
fn bucket(tenant_id: &Bound<'_, PyAny>, key: &Bound<'_, PyAny>) -> PyResult<u8> {
    let (tenant_id, key) = (text_of(tenant_id, "tenant_id")?, text_of(key, "key")?);
    Ok(flags::bucket(tenant_id, key))
}

/// Returns a tenant's bucket in hundredths of a percentage point, 0 to 9,999.
///
/// For rollouts finer than a percent. Its hundreds equal `bucket()`, so whole percentages
/// include the same tenants either way.
///
/// Args:
///     tenant_id: The tenant's id; any text.
///     key: The flag's key, or its seed if it has one; any text.
///
/// Examples:
///     >>> import dezky
///     >>> dezky.fine_bucket("1d0e6fde-e431-7835-82c1-a48a8b044551", "partner_portal") // 100
///     21
#[pyfunction]
fn fine_bucket(tenant_id: &Bound<'_, PyAny>, key: &Bound<'_, PyAny>) -> PyResult<u16> {
    let (tenant_id, key) = (text_of(tenant_id, "tenant_id")?, text_of(key, "key")?);
    Ok(flags::fine_bucket(tenant_id, key))
}
