//! Columns of Arrow, through its capsules.

#![expect(unsafe_code, reason = "takes over the structs that Arrow's capsules point to")]

use std::ffi::CStr;
use std::ops::Range;

use arrow_array::cast::AsArray as _;
use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use arrow_array::ffi_stream::{ArrayStreamReader, FFI_ArrowArrayStream};
use arrow_array::{Array, ArrayRef, BinaryViewArray, BooleanArray, make_array};
use arrow_schema::{ArrowError, DataType};
use dezky::flags::{Bits, Offsets};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use super::parallel::{STEP, in_steps};
use super::{Decider, Part, joined};
use crate::convert::value_error;

/// The number of values that are decided between two looks for signals; takes a tenth of a second.
const SLICE: usize = 64 * STEP;

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

/// The chunks of a column that supports Arrow's protocol; `None` if the object does not.
pub(super) fn import(column: &Bound<'_, PyAny>) -> PyResult<Option<Vec<ArrayRef>>> {
    let chunks = if let Some(export) = column.getattr_opt("__arrow_c_array__")? {
        vec![array(&export)?]
    } else if let Some(export) = column.getattr_opt("__arrow_c_stream__")? {
        stream(&export)?
    } else {
        return Ok(None);
    };
    for chunk in &chunks {
        check(chunk.data_type())?;
        // An imported column is trusted to be valid, but this costs little.
        chunk.to_data().validate().map_err(invalid)?;
    }
    Ok(Some(chunks))
}

fn check(kind: &DataType) -> PyResult<()> {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => Ok(()),
        DataType::Dictionary(_, values) => check(values),
        DataType::Struct(_) => Err(PyTypeError::new_err(
            "tenant_ids must be one column of text, not a table: choose the column",
        )),
        other => Err(PyTypeError::new_err(format!(
            "tenant_ids must be a column of text, not of {other}: convert it first"
        ))),
    }
}

fn array(export: &Bound<'_, PyAny>) -> PyResult<ArrayRef> {
    let pair = export.call0()?;
    let pair = pair.cast::<PyTuple>()?;
    let (schema, array) = (pair.get_item(0)?, pair.get_item(1)?);
    let schema = schema.cast::<PyCapsule>()?.pointer_checked(Some(SCHEMA))?;
    let array = array.cast::<PyCapsule>()?.pointer_checked(Some(ARRAY))?;
    // SAFETY: by the protocol, capsules of these names point to these structs, and the consumer
    // takes them over; the capsules then find them released.
    let data = unsafe {
        let schema = FFI_ArrowSchema::from_raw(schema.cast().as_ptr());
        from_ffi(FFI_ArrowArray::from_raw(array.cast().as_ptr()), &schema)
    };
    Ok(make_array(data.map_err(invalid)?))
}

fn stream(export: &Bound<'_, PyAny>) -> PyResult<Vec<ArrayRef>> {
    let capsule = export.call0()?;
    let stream = capsule.cast::<PyCapsule>()?.pointer_checked(Some(STREAM))?;
    // SAFETY: as above.
    let stream = unsafe { FFI_ArrowArrayStream::from_raw(stream.cast().as_ptr()) };
    let reader = ArrayStreamReader::try_new(stream).map_err(invalid)?;
    check(arrow_array::ArrayReader::field(&reader).data_type())?;
    let mut chunks = Vec::new();
    for chunk in reader {
        // A stream may compute its chunks only now.
        export.py().check_signals()?;
        chunks.push(chunk.map_err(invalid)?);
    }
    Ok(chunks)
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn invalid(error: ArrowError) -> PyErr {
    value_error("tenant_ids", format_args!("can't be read as an Arrow column: {error}"))
}

/// Decides all chunks, and hears Ctrl-C between slices of them.
pub(super) fn evaluate(
    py: Python<'_>,
    decider: Decider<'_>,
    chunks: &[ArrayRef],
) -> PyResult<BooleanArray> {
    let mut parts = Vec::new();
    for chunk in chunks {
        // Each slice would decide the whole dictionary.
        let is_dictionary = matches!(chunk.data_type(), DataType::Dictionary(..));
        let step = if is_dictionary { chunk.len().max(1) } else { SLICE };
        for start in (0..chunk.len()).step_by(step) {
            py.check_signals()?;
            let slice = chunk.slice(start, step.min(chunk.len() - start));
            parts.push(py.detach(|| part(decider, &slice)));
        }
    }
    Ok(py.detach(|| joined(parts)))
}

fn part(decider: Decider<'_>, chunk: &ArrayRef) -> Part {
    let words = match chunk.data_type() {
        DataType::Utf8 => {
            let ids = chunk.as_string::<i32>();
            let (offsets, bytes) = (ids.value_offsets(), ids.value_data());
            in_steps(ids.len(), |range, values| {
                let offsets = Offsets::Narrow(&offsets[range.start..=range.end]);
                decider.decide_texts(bytes, offsets, values);
            })
        }
        DataType::LargeUtf8 => {
            let ids = chunk.as_string::<i64>();
            let (offsets, bytes) = (ids.value_offsets(), ids.value_data());
            in_steps(ids.len(), |range, values| {
                let offsets = Offsets::Wide(&offsets[range.start..=range.end]);
                decider.decide_texts(bytes, offsets, values);
            })
        }
        DataType::Utf8View => {
            let ids = chunk.as_string_view().clone().to_binary_view();
            in_steps(ids.len(), |range, values| by_views(decider, &ids, range, values))
        }
        DataType::Dictionary(..) => by_dictionary(decider, chunk),
        // Every value is missing.
        _ => vec![0; chunk.len().div_ceil(64)],
    };
    let nulls = chunk.logical_nulls().filter(|nulls| nulls.null_count() > 0);
    Part { words, len: chunk.len(), nulls }
}

fn by_views(decider: Decider<'_>, ids: &BinaryViewArray, range: Range<usize>, values: &mut Bits) {
    // The view of a missing value may point anywhere.
    let id = |place| if ids.is_valid(place) { ids.value(place) } else { &[] };
    decider.decide(range.map(id), values);
}

/// Decides each value of the dictionary once.
fn by_dictionary(decider: Decider<'_>, chunk: &ArrayRef) -> Vec<u64> {
    let column = chunk.as_any_dictionary();
    if column.values().is_empty() {
        return vec![0; chunk.len().div_ceil(64)];
    }
    let decided = part(decider, column.values()).words;
    let keys = column.normalized_keys();
    let mut words = vec![0; keys.len().div_ceil(64)];
    for (word, keys) in words.iter_mut().zip(keys.chunks(64)) {
        for (place, key) in keys.iter().enumerate() {
            *word |= (decided[key / 64] >> (key % 64) & 1) << place;
        }
    }
    words
}

/// The capsule of the type of a boolean column.
pub(super) fn schema(py: Python<'_>) -> PyResult<Bound<'_, PyCapsule>> {
    let schema = FFI_ArrowSchema::try_from(&DataType::Boolean).map_err(failed)?;
    PyCapsule::new_with_value(py, schema, SCHEMA)
}

/// The capsules of type and values.
pub(super) fn export<'py>(
    py: Python<'py>,
    values: &BooleanArray,
) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
    let (array, schema) = to_ffi(&values.to_data()).map_err(failed)?;
    let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
    Ok((schema, PyCapsule::new_with_value(py, array, ARRAY)?))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}
