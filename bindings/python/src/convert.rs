//! Values that all parts exchange with Python: texts, times, JSON.
//!
//! Each function that reads an argument takes the argument's name, for errors.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use dezky::Timestamp;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// The maximum depth of lists and dictionaries, as for metadata.
const MAX_DEPTH: usize = 64;

/// A `TypeError` that names the argument and what it must be.
pub(crate) fn type_error(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let found = value.get_type();
    let found = found.name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("{name} must be {expected}, not {found}"))
}

/// A `ValueError` that begins with the argument's name.
pub(crate) fn value_error(name: &str, problem: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("{name} {problem}"))
}

/// A `bool`.
pub(crate) fn flag(value: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    let value = value.cast::<PyBool>().map_err(|_| type_error(name, "a bool", value))?;
    Ok(value.is_true())
}

/// A `str`.
pub(crate) fn text(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    text_of(value, name).map(str::to_owned)
}

/// A `str`, borrowed.
pub(crate) fn text_of<'a>(value: &'a Bound<'_, PyAny>, name: &str) -> PyResult<&'a str> {
    let text = value.cast::<PyString>().map_err(|_| type_error(name, "a str", value))?;
    text.to_str().map_err(|_| lone_surrogate(name))
}

/// The URL of a store or a server.
pub(crate) fn url(value: &Bound<'_, PyAny>) -> PyResult<String> {
    if !value.is_instance_of::<PyString>() {
        return Err(type_error("url", "a str such as \"sqlite:///path/audit.db\"", value));
    }
    text(value, "url")
}

/// A path as text, or from `pathlib`.
pub(crate) fn path(value: &Bound<'_, PyAny>, name: &str) -> PyResult<PathBuf> {
    value.extract().map_err(|_| type_error(name, "a str or a path", value))
}

/// A duration: seconds as an `int` or `float`, or a `timedelta`.
pub(crate) fn seconds(value: &Bound<'_, PyAny>, name: &str) -> PyResult<f64> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    if value.is_instance_of::<PyBool>() {
        return Err(type_error(name, "a number of seconds or a timedelta", value));
    }
    if value.is_instance(CLASS.import(py, "datetime", "timedelta")?)? {
        return value.call_method0("total_seconds")?.extract();
    }
    if value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>() {
        return value.extract::<f64>().map_err(|error| {
            if error.is_instance_of::<PyOverflowError>(py) {
                return value_error(name, "is too large");
            }
            error
        });
    }
    Err(type_error(name, "a number of seconds or a timedelta", value))
}

/// A duration within bounds, in seconds.
pub(crate) fn seconds_between(
    value: &Bound<'_, PyAny>,
    name: &str,
    min: impl Into<f64>,
    max: impl Into<f64>,
) -> PyResult<Duration> {
    let (given, min, max) = (seconds(value, name)?, min.into(), max.into());
    if !(min..=max).contains(&given) {
        return Err(value_error(name, format_args!("must be {min} to {max} seconds")));
    }
    Duration::try_from_secs_f64(given).map_err(|error| value_error(name, error))
}

fn unicode(text: &Bound<'_, PyString>, name: &str) -> PyResult<String> {
    text.to_str().map(str::to_owned).map_err(|_| lone_surrogate(name))
}

fn lone_surrogate(name: &str) -> PyErr {
    value_error(name, "contains a lone surrogate, which is not text: remove it")
}

/// An aware `datetime`, cut to milliseconds.
pub(crate) fn timestamp(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Timestamp> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    if !value.is_instance(CLASS.import(py, "datetime", "datetime")?)? {
        return Err(type_error(name, "a datetime with a time zone", value));
    }
    if value.call_method0("utcoffset")?.is_none() {
        return Err(value_error(
            name,
            "has no time zone: use an aware datetime, such as datetime.now(timezone.utc)",
        ));
    }
    let since = value.sub(epoch(py)?)?.floor_div(millisecond(py)?)?;
    Timestamp::from_millis(since.extract()?)
        .ok_or_else(|| value_error(name, "must be a time of the years 1 to 9999 in UTC"))
}

/// A `datetime` in UTC.
pub(crate) fn datetime(py: Python<'_>, time: Timestamp) -> PyResult<Bound<'_, PyAny>> {
    epoch(py)?.add(millisecond(py)?.mul(time.as_millis())?)
}

fn epoch(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static EPOCH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let made = EPOCH.get_or_try_init(py, || {
        let module = py.import("datetime")?;
        let utc = module.getattr("timezone")?.getattr("utc")?;
        let class = module.getattr("datetime")?;
        PyResult::Ok(class.call_method1("fromtimestamp", (0, utc))?.unbind())
    })?;
    Ok(made.bind(py))
}

fn millisecond(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static MILLISECOND: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let made = MILLISECOND.get_or_try_init(py, || {
        let named = PyDict::new(py);
        named.set_item("milliseconds", 1)?;
        let class = py.import("datetime")?.getattr("timedelta")?;
        PyResult::Ok(class.call((), Some(&named))?.unbind())
    })?;
    Ok(made.bind(py))
}

/// The Python value of JSON text.
pub(crate) fn loads<'py>(py: Python<'py>, json: &str) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOADS.import(py, "json", "loads")?.call1((json,))
}

/// The JSON text of a dictionary with text as keys: `None`, `bool`, `int`, `float`, `str`, and
/// lists, tuples and dictionaries of them.
pub(crate) fn json_object(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    if !value.is_instance_of::<PyDict>() {
        return Err(type_error(name, "a dict", value));
    }
    json(value, name)
}

/// The JSON text of a value, as [`json_object`].
pub(crate) fn json(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    let mut text = String::new();
    write_json(value, name, 0, &mut text)?;
    Ok(text)
}

fn write_json(
    value: &Bound<'_, PyAny>,
    name: &str,
    depth: usize,
    out: &mut String,
) -> PyResult<()> {
    if depth > MAX_DEPTH {
        return Err(value_error(name, format_args!("is nested more than {MAX_DEPTH} deep")));
    }
    if value.is_none() {
        out.push_str("null");
    } else if let Ok(value) = value.cast::<PyBool>() {
        out.push_str(if value.is_true() { "true" } else { "false" });
    } else if let Ok(value) = value.cast::<PyString>() {
        write_string(&unicode(value, name)?, out);
    } else if value.is_instance_of::<PyInt>() {
        write_int(value, name, out)?;
    } else if let Ok(value) = value.cast::<PyFloat>() {
        let number = value.value();
        if !number.is_finite() {
            return Err(value_error(
                name,
                format_args!("contains {number}, which JSON can't express"),
            ));
        }
        // `{:?}` is the shortest form that reads back as the same number.
        let _ = write!(out, "{number:?}");
    } else if let Ok(items) = value.cast::<PyDict>() {
        out.push('{');
        for (position, (key, item)) in items.iter().enumerate() {
            if position > 0 {
                out.push(',');
            }
            let key = key
                .cast::<PyString>()
                .map_err(|_| type_error(&format!("each key in {name}"), "a str", &key))?;
            write_string(&unicode(key, name)?, out);
            out.push(':');
            write_json(&item, name, depth + 1, out)?;
        }
        out.push('}');
    } else if let Ok(items) = value.cast::<PyList>() {
        write_array(items.iter(), name, depth, out)?;
    } else if let Ok(items) = value.cast::<PyTuple>() {
        write_array(items.iter(), name, depth, out)?;
    } else {
        return Err(type_error(
            &format!("each value in {name}"),
            "None, bool, int, float, str, list, tuple or dict",
            value,
        ));
    }
    Ok(())
}

/// The items are those of the list itself: an `__iter__` of a subclass could change dictionaries
/// around it while they are read.
fn write_array<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    name: &str,
    depth: usize,
    out: &mut String,
) -> PyResult<()> {
    out.push('[');
    for (position, item) in items.enumerate() {
        if position > 0 {
            out.push(',');
        }
        write_json(&item, name, depth + 1, out)?;
    }
    out.push(']');
    Ok(())
}

/// Integers beyond 64 bits are refused: readers of JSON would round them.
fn write_int(value: &Bound<'_, PyAny>, name: &str, out: &mut String) -> PyResult<()> {
    if let Ok(number) = value.extract::<i64>() {
        let _ = write!(out, "{number}");
    } else if let Ok(number) = value.extract::<u64>() {
        let _ = write!(out, "{number}");
    } else {
        return Err(value_error(
            name,
            "contains an integer of more than 64 bits: write it as a str",
        ));
    }
    Ok(())
}

fn write_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
