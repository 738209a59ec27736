//! One flag for a column of tenants.

mod arrow;
mod parallel;
mod python;

use arrow_array::{Array as _, BooleanArray};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, Buffer, NullBuffer};
use dezky::FlagContext;
use dezky::flags::{Bits, FlagHandle, Offsets};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyCapsule, PyInt, PyIterator, PyList, PySlice, PyTuple};

use crate::convert::type_error;

/// What decides a column: the flag, or off for everybody if there is none.
#[derive(Clone, Copy)]
struct Decider<'a> {
    flag: Option<FlagHandle<'a>>,
    context: &'a FlagContext<'a>,
}

impl Decider<'_> {
    fn decide<T: AsRef<[u8]>>(
        &self,
        tenant_ids: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        values: &mut Bits,
    ) {
        match self.flag {
            Some(flag) => flag.values_into(tenant_ids, self.context, values),
            // All are off.
            None => *values = Bits::new(),
        }
    }

    /// [`decide`](Self::decide), for texts in one buffer.
    fn decide_texts(&self, bytes: &[u8], offsets: Offsets<'_>, values: &mut Bits) {
        match self.flag {
            Some(flag) => flag.values_of(bytes, offsets, self.context, values),
            None => *values = Bits::new(),
        }
    }
}

/// Decides a flag for a column of tenants.
pub(crate) fn evaluate(
    py: Python<'_>,
    flag: Option<FlagHandle<'_>>,
    context: &FlagContext<'_>,
    tenant_ids: &Bound<'_, PyAny>,
) -> PyResult<BooleanColumn> {
    let decider = Decider { flag, context };
    let values = match arrow::import(tenant_ids)? {
        Some(chunks) => arrow::evaluate(py, decider, &chunks)?,
        None => python::evaluate(py, decider, tenant_ids)?,
    };
    Ok(BooleanColumn { values })
}

/// Values by words of 64, and which of them are missing.
struct Part {
    words: Vec<u64>,
    len: usize,
    nulls: Option<NullBuffer>,
}

impl Part {
    fn into_array(self) -> BooleanArray {
        let Self { words, len, nulls } = self;
        // The words of a little-endian machine are the bits in order, as Arrow has them.
        let bits = if cfg!(target_endian = "little") {
            Buffer::from_vec(words)
        } else {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        BooleanArray::new(BooleanBuffer::new(bits, 0, len), nulls)
    }
}

/// Joins the parts of a column.
fn joined(mut parts: Vec<Part>) -> BooleanArray {
    if parts.len() == 1
        && let Some(part) = parts.pop()
    {
        return part.into_array();
    }
    let len = parts.iter().map(|part| part.len).sum();
    let (mut values, mut present) =
        (BooleanBufferBuilder::new(len), BooleanBufferBuilder::new(len));
    for part in parts {
        let part = part.into_array();
        values.append_buffer(part.values());
        match part.nulls() {
            Some(nulls) => present.append_buffer(nulls.inner()),
            None => present.append_n(part.len(), true),
        }
    }
    let nulls = Some(NullBuffer::new(present.finish())).filter(|nulls| nulls.null_count() > 0);
    BooleanArray::new(values.finish(), nulls)
}

/// A column of `True`, `False` and missing values, as `evaluate_many()` returns it.
///
/// A sequence: `len()`, indexing, slices and iteration yield `bool` or `None`. It is also an Arrow
/// array, which pyarrow, polars, pandas and duckdb take without a copy (`pyarrow.array(column)`,
/// `polars.Series(column)`), and an array for NumPy (`numpy.asarray(column)`).
///
/// Examples:
///     >>> import dezky
///     >>> flags = dezky.FlagSet.from_json([{"key": "chat", "state": "on"}])
///     >>> column = flags.evaluate_many("chat", ["t-1", None])
///     >>> column[0], column[-1], len(column), column.true_count
///     (True, None, 2, 1)
#[pyclass(frozen, sequence, module = "dezky")]
pub(crate) struct BooleanColumn {
    values: BooleanArray,
}

impl BooleanColumn {
    fn at(&self, place: usize) -> Option<bool> {
        self.values.is_valid(place).then(|| self.values.value(place))
    }

    fn all(&self) -> impl ExactSizeIterator<Item = Option<bool>> {
        self.values.iter()
    }

    /// One byte per value.
    fn bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        PyByteArray::new_with(py, self.values.len(), |bytes| {
            for (byte, value) in bytes.iter_mut().zip(self.values.values()) {
                *byte = u8::from(value);
            }
            Ok(())
        })
    }
}

#[pymethods]
impl BooleanColumn {
    /// The number of values that are true.
    #[getter]
    fn true_count(&self) -> usize {
        self.values.true_count()
    }

    /// The number of values that are missing.
    #[getter]
    fn null_count(&self) -> usize {
        self.values.null_count()
    }

    /// Returns the values as a list of `bool` and `None`.
    fn to_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.all())
    }

    /// Returns the values as a NumPy array: of `bool`, or of objects if values are missing.
    ///
    /// Raises:
    ///     ModuleNotFoundError: NumPy is not installed.
    fn to_numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let numpy = py.import("numpy")?;
        if self.values.null_count() == 0 {
            return numpy.call_method1("frombuffer", (self.bytes(py)?, "bool"));
        }
        numpy.call_method1("array", (self.to_list(py)?, "object"))
    }

    /// The array for NumPy, as `to_numpy()`.
    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if copy == Some(false) {
            return Err(PyValueError::new_err(
                "copy=False is impossible: the column holds bits, and NumPy bytes",
            ));
        }
        let array = self.to_numpy(py)?;
        match dtype {
            Some(dtype) => array.call_method1("astype", (dtype,)),
            None => Ok(array),
        }
    }

    /// The column's type for Arrow.
    #[expect(clippy::unused_self, reason = "a method of Arrow's protocol")]
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        arrow::schema(py)
    }

    /// The column for Arrow, without a copy. `requested_schema` is ignored, as Arrow's protocol
    /// allows.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let _ = requested_schema;
        let (schema, array) = arrow::export(py, &self.values)?;
        PyTuple::new(py, [schema, array])
    }

    fn __len__(&self) -> usize {
        self.values.len()
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, len) = (index.py(), self.values.len());
        if let Ok(slice) = index.cast::<PySlice>() {
            let range = slice.indices(len.cast_signed())?;
            let place = |n: usize| range.start + range.step * n.cast_signed();
            let values = (0..range.slicelength).map(|n| self.at(place(n).cast_unsigned()));
            return Ok(Self { values: values.collect() }.into_pyobject(py)?.into_any());
        }
        if !index.is_instance_of::<PyInt>() {
            return Err(type_error("index", "an int or a slice", index));
        }
        // No column is as long as what does not fit.
        let index = index.extract().unwrap_or(isize::MAX);
        let place = if index < 0 { index + len.cast_signed() } else { index };
        match usize::try_from(place) {
            Ok(place) if place < len => Ok(self.at(place).into_pyobject(py)?),
            _ => Err(PyIndexError::new_err(format!("index {index} is out of range: {len} values"))),
        }
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.to_list(py)?.try_iter()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().values == self.values)
    }

    fn __repr__(&self) -> String {
        let (len, on) = (self.values.len(), self.values.true_count());
        let missing = self.values.null_count();
        format!("BooleanColumn({len} values: {on} true, {missing} missing)")
    }
}
