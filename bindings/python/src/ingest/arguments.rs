//! Arguments that the functions of this part share.

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyInt, PyMemoryView};

pub(super) use crate::convert::{flag, seconds_between};
use crate::convert::{text, type_error, value_error};

/// Bytes: `bytes`, `bytearray` or `memoryview`.
pub(super) fn bytes<'v>(
    value: &'v Bound<'_, PyAny>,
    name: &str,
    expected: &str,
) -> PyResult<Cow<'v, [u8]>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(Cow::Borrowed(bytes.as_bytes()));
    }
    if let Ok(bytes) = value.cast::<PyByteArray>() {
        return Ok(Cow::Owned(bytes.to_vec()));
    }
    if value.is_instance_of::<PyMemoryView>() {
        let copied = value.call_method0("tobytes")?;
        return Ok(Cow::Owned(copied.cast::<PyBytes>()?.as_bytes().to_vec()));
    }
    Err(type_error(name, expected, value))
}

/// An `int` within bounds.
pub(super) fn whole(value: &Bound<'_, PyAny>, name: &str, min: u64, max: u64) -> PyResult<u64> {
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        return Err(type_error(name, "an int", value));
    }
    let number = value.extract::<u64>().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| value_error(name, format_args!("must be {min} to {max}")))
}

/// The name of a source.
pub(super) fn source_name(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    let given = text(value, name)?;
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let mut words = given.splitn(2, ':');
    if given.len() > 64 || !words.all(is_word) {
        return Err(value_error(
            name,
            "must be 1 to 64 letters, digits, ., _ and -, with at most one : before an instance",
        ));
    }
    if given.split(':').next() == Some(dezky::core::PLATFORM_SOURCE) {
        return Err(value_error(
            name,
            "is the platform's own, which records through AuditLog: choose another",
        ));
    }
    Ok(given)
}
