//! What can be kept of a value that can't become an event.

use dezky::core::Timestamp;
use dezky::core::source::MAX_QUARANTINE_RAW_BYTES;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple,
};
use serde_json::{Map, Value};

use crate::audit::event::{Actor, FIELDS, NewEvent};

/// The depth beyond which only the type is kept.
const MAX_DEPTH: usize = 32;
/// The maximum number of values, so that lists that hold themselves end.
const MAX_VALUES: usize = 20_000;

/// The attributes of actors.
const ACTOR: [&str; 4] = ["type", "id", "email", "ip"];

/// The JSON text of any value, or its own text if it is one, redacted by the names of members.
/// What JSON can't express becomes the name of its type.
pub(super) fn without_secrets(given: &Bound<'_, PyAny>, now: Timestamp) -> String {
    let mut reader = Reader { values: MAX_VALUES, bytes: 2 * MAX_QUARANTINE_RAW_BYTES };
    let value = match reader.read(given, 0) {
        // A line of JSON that was not parsed has members too.
        Value::String(text) => serde_json::from_str::<Value>(&text)
            .ok()
            .filter(|parsed| parsed.is_object() || parsed.is_array())
            .unwrap_or(Value::String(text)),
        value => value,
    };
    let wrapped = Map::from_iter([("item".to_owned(), value)]);
    let mut clean = dezky::ingest::legacy::read("", wrapped, now).said;
    match clean.remove("item") {
        Some(Value::String(text)) => text,
        Some(value) => value.to_string(),
        None => type_name(given),
    }
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}

/// Reads values within bounds.
struct Reader {
    values: usize,
    bytes: usize,
}

impl Reader {
    fn read(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> Value {
        self.values = self.values.saturating_sub(1);
        if value.is_none() {
            return Value::Null;
        }
        if let Ok(value) = value.cast::<PyBool>() {
            return Value::Bool(value.is_true());
        }
        if let Ok(text) = value.cast::<PyString>() {
            return self.text(&text.to_string_lossy());
        }
        if let Ok(bytes) = value.cast::<PyBytes>() {
            return self.text(&String::from_utf8_lossy(bytes.as_bytes()));
        }
        if let Ok(bytes) = value.cast::<PyByteArray>() {
            return self.text(&String::from_utf8_lossy(&bytes.to_vec()));
        }
        let number = if value.is_instance_of::<PyInt>() {
            value.extract::<i64>().ok().map(Value::from)
        } else {
            let float = value.cast::<PyFloat>().ok();
            float.and_then(|float| serde_json::Number::from_f64(float.value())).map(Value::Number)
        };
        if let Some(number) = number {
            return number;
        }
        if depth < MAX_DEPTH && self.values > 0 && self.bytes > 0 {
            if let Some(container) = self.container(value, depth) {
                return container;
            }
            if let Some(time) = isoformat(value) {
                return self.text(&time);
            }
        }
        Value::String(type_name(value))
    }

    /// Dictionaries, lists, and objects of ours; `None` for anything else.
    fn container(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> Option<Value> {
        // Collected first: reading an item may run code that changes what holds it.
        if let Ok(items) = value.cast::<PyDict>() {
            let items: Vec<_> = items.iter().take(self.values).collect();
            return Some(self.members(items, depth));
        }
        if let Ok(items) = value.cast::<PyList>() {
            let items: Vec<_> = items.iter().take(self.values).collect();
            return Some(self.items(items, depth));
        }
        if let Ok(items) = value.cast::<PyTuple>() {
            let items: Vec<_> = items.iter().take(self.values).collect();
            return Some(self.items(items, depth));
        }
        let names: &[&str] = if value.is_instance_of::<Actor>() {
            &ACTOR
        } else if value.is_instance_of::<NewEvent>() {
            &FIELDS
        } else {
            let items = value.cast::<PyMapping>().ok()?.items().ok()?;
            let pairs = items.iter().take(self.values).map(|item| item.extract());
            return Some(self.members(pairs.collect::<PyResult<_>>().ok()?, depth));
        };
        let mut members = Map::new();
        for name in names {
            if let Ok(member) = value.getattr(*name)
                && !member.is_none()
            {
                members.insert((*name).to_owned(), self.read(&member, depth + 1));
            }
        }
        Some(Value::Object(members))
    }

    fn members(&mut self, items: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>, depth: usize) -> Value {
        let mut members = Map::new();
        for (key, item) in items {
            if self.values == 0 || self.bytes == 0 {
                break;
            }
            let key = match self.read(&key, MAX_DEPTH) {
                Value::String(key) => key,
                other => other.to_string(),
            };
            let item = self.read(&item, depth + 1);
            members.insert(key, item);
        }
        Value::Object(members)
    }

    fn items(&mut self, items: Vec<Bound<'_, PyAny>>, depth: usize) -> Value {
        let mut read = Vec::new();
        for item in items {
            if self.values == 0 || self.bytes == 0 {
                break;
            }
            read.push(self.read(&item, depth + 1));
        }
        Value::Array(read)
    }

    fn text(&mut self, text: &str) -> Value {
        let text = &text[..text.floor_char_boundary(self.bytes)];
        self.bytes -= text.len();
        Value::from(text)
    }
}

/// The text of a date or time.
fn isoformat(value: &Bound<'_, PyAny>) -> Option<String> {
    static DATE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let date = DATE.import(value.py(), "datetime", "date").ok()?;
    if !value.is_instance(date).ok()? {
        return None;
    }
    let text = value.call_method0("isoformat").ok()?;
    Some(text.cast::<PyString>().ok()?.to_string_lossy().into_owned())
}
