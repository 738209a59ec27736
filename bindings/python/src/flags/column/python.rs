//! Columns of Python's own objects, and NumPy's arrays.
//!
//! The calling thread copies texts while it holds the interpreter's lock; other threads decide
//! them meanwhile.

use std::sync::mpsc::{TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};

use arrow_array::BooleanArray;
use arrow_buffer::NullBuffer;
use dezky::flags::{Bits, Offsets};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{
    PyByteArray, PyBytes, PyDict, PyFloat, PyIterator, PyList, PyMapping, PySlice, PyString,
    PyTuple,
};

use super::parallel::{STEP, copy, processors};
use super::{Decider, Part, joined};
use crate::convert::{text, type_error, value_error};

/// Up to [`STEP`] ids.
struct Ids {
    bytes: Vec<u8>,
    /// From 0: the start of each id and the end of the last one.
    offsets: Vec<i64>,
    /// Whether each id is there; empty while all are.
    present: Vec<bool>,
}

impl Ids {
    fn new() -> Self {
        let mut offsets = Vec::with_capacity(STEP + 1);
        offsets.push(0);
        Self { bytes: Vec::with_capacity(40 * STEP), offsets, present: Vec::new() }
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    #[inline]
    fn end(&mut self) {
        if !self.present.is_empty() {
            self.present.push(true);
        }
        self.offsets.push(self.bytes.len().cast_signed() as i64);
    }

    fn push_missing(&mut self) {
        if self.present.is_empty() {
            self.present.resize(self.len(), true);
        }
        self.present.push(false);
        self.offsets.push(self.bytes.len().cast_signed() as i64);
    }

    /// Adds an id, or a missing one for `None`.
    #[inline]
    fn push(&mut self, id: &Bound<'_, PyAny>, place: usize) -> PyResult<()> {
        if let Ok(id) = id.cast::<PyString>()
            && let Ok(id) = id.to_str()
        {
            self.bytes.extend_from_slice(id.as_bytes());
            self.end();
            return Ok(());
        }
        if is_missing(id)? {
            self.push_missing();
            return Ok(());
        }
        let name = format!("tenant_ids[{place}]");
        match id.cast::<PyString>() {
            // The error.
            Ok(_) => text(id, &name).map(drop),
            Err(_) => Err(type_error(&name, "a str or None", id)),
        }
    }

    fn decide(self, decider: Decider<'_>, values: &mut Bits) -> Part {
        decider.decide_texts(&self.bytes, Offsets::Wide(&self.offsets), values);
        let mut words = vec![0; self.len().div_ceil(64)];
        copy(values, &mut words);
        let nulls = (!self.present.is_empty()).then(|| NullBuffer::from(&*self.present));
        Part { words, len: self.len(), nulls }
    }
}

/// Whether a value stands for a missing one: `None`, or what pandas has in a column of objects.
fn is_missing(id: &Bound<'_, PyAny>) -> PyResult<bool> {
    if id.is_none() {
        return Ok(true);
    }
    if let Ok(number) = id.cast_exact::<PyFloat>() {
        return Ok(number.value().is_nan());
    }
    let kind = id.get_type();
    let is_pandas = || kind.module().is_ok_and(|module| module.to_string().starts_with("pandas."));
    Ok(kind.name()? == "NAType" && is_pandas())
}

/// Decides a flag for the ids of a NumPy array or an iterable.
pub(super) fn evaluate(
    py: Python<'_>,
    decider: Decider<'_>,
    column: &Bound<'_, PyAny>,
) -> PyResult<BooleanArray> {
    if let Ok(list) = column.cast_exact::<PyList>() {
        let mut items = list.iter().enumerate();
        return in_pieces(py, decider, || next_of(&mut items));
    }
    if let Ok(tuple) = column.cast_exact::<PyTuple>() {
        let mut items = tuple.iter().enumerate();
        return in_pieces(py, decider, || next_of(&mut items));
    }
    if column.hasattr("__array_interface__")? {
        return numpy(py, decider, column);
    }
    let is_one_value = column.is_instance_of::<PyString>()
        || column.is_instance_of::<PyBytes>()
        || column.is_instance_of::<PyByteArray>()
        || column.is_instance_of::<PyDict>()
        || column.cast::<PyMapping>().is_ok();
    let expected = "an Arrow column, a NumPy array or an iterable of str";
    if is_one_value {
        return Err(type_error("tenant_ids", expected, column));
    }
    let mut items = match column.try_iter() {
        Ok(items) => items,
        Err(error) if error.is_instance_of::<PyTypeError>(py) => {
            return Err(type_error("tenant_ids", expected, column));
        }
        Err(error) => return Err(error),
    };
    let mut place = 0;
    in_pieces(py, decider, || next_of_iterator(&mut items, &mut place))
}

fn next_of<'py>(
    items: &mut impl Iterator<Item = (usize, Bound<'py, PyAny>)>,
) -> PyResult<Option<Ids>> {
    let mut ids = Ids::new();
    for (place, id) in items.by_ref().take(STEP) {
        ids.push(&id, place)?;
    }
    Ok((ids.len() > 0).then_some(ids))
}

fn next_of_iterator(items: &mut Bound<'_, PyIterator>, place: &mut usize) -> PyResult<Option<Ids>> {
    let mut ids = Ids::new();
    for id in items.by_ref().take(STEP) {
        ids.push(&id?, *place)?;
        *place += 1;
    }
    Ok((ids.len() > 0).then_some(ids))
}

/// Decides the ids of `next` until it has no more, on all processors. Hears Ctrl-C between them.
fn in_pieces(
    py: Python<'_>,
    decider: Decider<'_>,
    mut next: impl FnMut() -> PyResult<Option<Ids>>,
) -> PyResult<BooleanArray> {
    let mut next = || {
        // A thread that waits for the interpreter gets it here.
        py.detach(|| ());
        py.check_signals()?;
        next()
    };
    let Some(first) = next()? else { return Ok(BooleanArray::from(Vec::<bool>::new())) };
    let Some(second) = next()? else {
        return Ok(py.detach(|| first.decide(decider, &mut Bits::new())).into_array());
    };
    let parts = Mutex::new(Vec::new());
    let decide = |at: usize, ids: Ids, values: &mut Bits| {
        let part = ids.decide(decider, values);
        parts.lock().unwrap_or_else(PoisonError::into_inner).push((at, part));
    };
    let others = processors().saturating_sub(1).max(1);
    let (sender, receiver) = sync_channel::<(usize, Ids)>(2 * others);
    let receiver = Mutex::new(receiver);
    let drain = || {
        let mut values = Bits::new();
        loop {
            let piece = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((at, ids)) = piece else { return };
            decide(at, ids, &mut values);
        }
    };
    thread::scope(|scope| {
        for _ in 0..others {
            if Builder::new().spawn_scoped(scope, drain).is_err() {
                break;
            }
        }
        let mut values = Bits::new();
        let pieces = [Ok(Some(first)), Ok(Some(second))].into_iter();
        let pieces = pieces.chain(std::iter::repeat_with(&mut next));
        let result = pieces
            .map(Result::transpose)
            .map_while(|piece| piece)
            .enumerate()
            .try_for_each(|(at, ids)| {
                // The others are busy: help.
                if let Err(TrySendError::Full((at, ids)) | TrySendError::Disconnected((at, ids))) =
                    sender.try_send((at, ids?))
                {
                    py.detach(|| decide(at, ids, &mut values));
                }
                PyResult::Ok(())
            });
        // Ends the threads.
        drop(sender);
        py.detach(drain);
        result
    })?;
    let mut parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
    parts.sort_unstable_by_key(|(at, _)| *at);
    Ok(joined(parts.into_iter().map(|(_, part)| part).collect()))
}

fn numpy<'py>(
    py: Python<'py>,
    decider: Decider<'_>,
    array: &Bound<'py, PyAny>,
) -> PyResult<BooleanArray> {
    let dimensions: usize = array.getattr("ndim")?.extract()?;
    if dimensions != 1 {
        let problem = format_args!("must have one dimension, not {dimensions}: flatten it");
        return Err(value_error("tenant_ids", problem));
    }
    let (dtype, len) = (array.getattr("dtype")?, array.len()?);
    let kind: String = dtype.getattr("kind")?.extract()?;
    let mut start = 0;
    let mut slice = |array: &Bound<'py, PyAny>| {
        let first = start;
        start = len.min(start + STEP);
        let slice = PySlice::new(py, first.cast_signed(), start.cast_signed(), 1);
        PyResult::Ok((first, (first < len).then_some(array.get_item(slice)?)))
    };
    // Only lists show what is masked.
    let is_masked = array.hasattr("mask")?;
    match &*kind {
        "U" if !is_masked => {
            let width: usize = dtype.getattr("itemsize")?.extract()?;
            let native = if dtype.getattr("isnative")?.is_truthy()? {
                array.clone()
            } else {
                array.call_method1("astype", (dtype.call_method1("newbyteorder", ("=",))?,))?
            };
            in_pieces(py, decider, || {
                let (first, Some(slice)) = slice(&native)? else { return Ok(None) };
                let bytes = slice.call_method0("tobytes")?;
                let (bytes, count) = (bytes.cast::<PyBytes>()?.as_bytes(), slice.len()?);
                py.detach(|| of_utf32(bytes, width, count, first)).map(Some)
            })
        }
        "U" | "O" | "T" => in_pieces(py, decider, || {
            let (first, Some(slice)) = slice(array)? else { return Ok(None) };
            let mut ids = Ids::new();
            for (place, id) in slice.call_method0("tolist")?.try_iter()?.enumerate() {
                ids.push(&id?, first + place)?;
            }
            Ok(Some(ids))
        }),
        _ => Err(PyTypeError::new_err(format!(
            "tenant_ids must be an array of text, not of {dtype}: convert it with astype(str)"
        ))),
    }
}

/// The texts of an array of UTF-32, each `width` bytes and padded with zeros.
fn of_utf32(bytes: &[u8], width: usize, count: usize, first: usize) -> PyResult<Ids> {
    let mut ids = Ids::new();
    if width == 0 {
        (0..count).for_each(|_| ids.end());
    }
    for (place, text) in bytes.chunks_exact(width.max(1)).enumerate() {
        let characters = text.as_chunks::<4>().0;
        let start = ids.bytes.len();
        let mut all = 0;
        #[expect(clippy::cast_possible_truncation, reason = "undone if it is not ASCII")]
        ids.bytes.extend(characters.iter().map(|character| {
            let character = u32::from_ne_bytes(*character);
            all |= character;
            character as u8
        }));
        if all < 0x80 {
            let used = ids.bytes[start..].iter().rposition(|byte| *byte != 0).map_or(0, |n| n + 1);
            ids.bytes.truncate(start + used);
        } else {
            ids.bytes.truncate(start);
            let used = characters.iter().rposition(|c| *c != [0; 4]).map_or(0, |n| n + 1);
            for character in &characters[..used] {
                let Some(character) = char::from_u32(u32::from_ne_bytes(*character)) else {
                    let name = format!("tenant_ids[{}]", first + place);
                    return Err(value_error(
                        &name,
                        "contains a lone surrogate, which is not text: remove it",
                    ));
                };
                ids.bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        ids.end();
    }
    Ok(ids)
}
