//! The native part of the Python package `dezky`.
//!
//! Each class has a blocking form and, where it waits, an `Async` form with the same names: both
//! call the same futures, through `runtime::wait` and `runtime::future`.

// The futures of three drivers nest deeper than the default allows.
#![recursion_limit = "256"]
#![expect(
    clippy::doc_markdown,
    clippy::doc_link_with_quotes,
    reason = "the documentation of classes is Python's, not Markdown"
)]

mod audit;
mod convert;
mod error;
mod flags;
mod ingest;
mod runtime;

use pyo3::prelude::*;

// Its reference counts and caches rely on the interpreter's lock: a free-threaded interpreter
// turns the lock on when it imports this.
#[pymodule(gil_used = true)]
fn _dezky(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    runtime::register(module)?;
    audit::register(module)?;
    flags::register(module)?;
    ingest::register(module)?;
    // The module is private: the package says what is public.
    module.delattr("__all__")
}
