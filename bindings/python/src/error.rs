//! Errors of the crates as exceptions.

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::runtime::attached;

/// The exception for an error: the class with its code, from `dezky.errors`.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(crate) fn exception(error: dezky::Error) -> PyErr {
    coded(error.code(), &error.to_string())
}

/// The exception of a constructor of which `open` takes the place.
pub(crate) fn opened_by(call: &str) -> PyErr {
    PyTypeError::new_err(format!("use {call}: opening may wait, as a constructor should not"))
}

/// The exception of a URL that is refused, which names the argument.
pub(crate) fn of_url(error: dezky::Error) -> PyErr {
    let text = error.to_string();
    let refused = ["base_url ", "the store's URL: "].iter().find_map(|own| text.strip_prefix(own));
    match refused {
        Some(problem) => coded(error.code(), &format!("url {problem}")),
        None => exception(error),
    }
}

/// An exception with a code and a message.
pub(crate) fn coded(code: &str, message: &str) -> PyErr {
    let raised = attached(|py| match class(py, code) {
        Ok(class) => class.call1((message,)).map_or_else(|error| error, PyErr::from_value),
        Err(error) => error,
    });
    // No exception can be raised any more: the interpreter ends.
    raised.unwrap_or_else(|| PyRuntimeError::new_err("the interpreter ends"))
}

fn class<'py>(py: Python<'py>, code: &str) -> PyResult<Bound<'py, PyAny>> {
    static BY_CODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    BY_CODE.import(py, "dezky.errors", "by_code")?.call1((code,))
}
