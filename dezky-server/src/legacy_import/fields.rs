//! A document of the earlier platform, field by field.

use std::collections::BTreeMap;

use dezky_core::Timestamp;
use mongodb::bson::{Bson, Document};
use serde_json::{Map, Number, Value};
use sha2::{Digest as _, Sha256};

/// The fields of a document. The mapping takes the ones that it knows; the rest is reported as
/// unknown.
pub(super) struct Fields {
    document: Document,
    /// The `_id` as text; an `ObjectId` as its 24 hex digits.
    pub(super) id: String,
    /// The time of creation: `createdAt`, or the time in the `ObjectId`.
    pub(super) made: Option<Timestamp>,
}

impl Fields {
    pub(super) fn new(mut document: Document) -> Self {
        let id = document.remove("_id").unwrap_or(Bson::Null);
        // Mongoose's own field.
        document.remove("__v");
        let made = match document.get("createdAt").and_then(time) {
            Some(at) => Some(at),
            None => match &id {
                Bson::ObjectId(id) => Timestamp::from_millis(id.timestamp().timestamp_millis()),
                _ => None,
            },
        };
        let id = match &id {
            Bson::ObjectId(id) => id.to_hex(),
            Bson::String(id) => id.clone(),
            other => {
                let digest = Sha256::digest(json(other).to_string());
                hex::encode(&digest[..12])
            }
        };
        Self { document, id, made }
    }

    /// The fields of a part, without its `_id`.
    pub(super) fn of_part(mut document: Document) -> Self {
        document.remove("_id");
        Self { document, id: String::new(), made: None }
    }

    /// Takes the value of a field; null counts as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Bson> {
        self.document.remove(name).filter(|value| !matches!(value, Bson::Null | Bson::Undefined))
    }

    /// Takes a field as text: references as hex digits, numbers as written.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.take(name).as_ref().and_then(text).filter(|text| !text.is_empty())
    }

    pub(super) fn time(&mut self, name: &str) -> Option<Timestamp> {
        self.take(name).as_ref().and_then(time)
    }

    pub(super) fn number(&mut self, name: &str) -> Option<f64> {
        match self.take(name)? {
            Bson::Double(number) => Some(number),
            Bson::Int32(number) => Some(number.into()),
            #[expect(clippy::cast_precision_loss, reason = "percentages and versions are small")]
            Bson::Int64(number) => Some(number as f64),
            other => text(&other)?.parse().ok(),
        }
    }

    pub(super) fn is_set(&mut self, name: &str) -> bool {
        matches!(self.take(name), Some(Bson::Boolean(true)))
    }

    /// The texts of a list.
    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        match self.take(name) {
            Some(Bson::Array(values)) => values.iter().filter_map(text).collect(),
            Some(one) => text(&one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Whether [`texts`](Self::texts) would leave something of the field out.
    pub(super) fn has_other_than_texts(&self, name: &str) -> bool {
        match self.document.get(name) {
            None | Some(Bson::Null | Bson::Undefined) => false,
            Some(Bson::Array(values)) => values.iter().any(|value| text(value).is_none()),
            Some(one) => text(one).is_none(),
        }
    }

    /// Whether [`part`](Self::part) would leave the field out.
    pub(super) fn has_other_than_part(&self, name: &str) -> bool {
        let value = self.document.get(name);
        value.is_some_and(|v| !matches!(v, Bson::Null | Bson::Undefined | Bson::Document(_)))
    }

    /// The objects of a list.
    pub(super) fn parts(&mut self, name: &str) -> Vec<Self> {
        let Some(Bson::Array(values)) = self.take(name) else { return Vec::new() };
        let part = |value| match value {
            Bson::Document(document) => Some(Self::of_part(document)),
            _ => None,
        };
        values.into_iter().filter_map(part).collect()
    }

    /// An object; an empty one if there is none.
    pub(super) fn part(&mut self, name: &str) -> Self {
        match self.take(name) {
            Some(Bson::Document(document)) => Self::of_part(document),
            _ => Self::of_part(Document::new()),
        }
    }

    /// A text, or the texts of an object's members as lines in their order.
    pub(super) fn lines(&mut self, name: &str) -> Option<String> {
        let lines = match self.take(name)? {
            Bson::Document(members) => {
                let lines: Vec<_> = members.iter().filter_map(|(_, line)| text(line)).collect();
                lines.join("\n")
            }
            other => text(&other)?,
        };
        (!lines.is_empty()).then_some(lines)
    }

    /// The texts of an object's members.
    pub(super) fn text_members(&mut self, name: &str) -> BTreeMap<String, String> {
        let members = self.part(name).document.into_iter();
        members.filter_map(|(name, value)| Some((name, text(&value)?))).collect()
    }

    /// The fields that were not taken, without empty ones.
    pub(super) fn rest(self) -> Map<String, Value> {
        let says = |value: &Bson| match value {
            Bson::Null | Bson::Undefined => false,
            Bson::Array(values) => !values.is_empty(),
            Bson::Document(members) => !members.is_empty(),
            _ => true,
        };
        let rest = self.document.into_iter().filter(|(_, value)| says(value));
        rest.map(|(name, value)| (name, json(&value))).collect()
    }
}

fn text(value: &Bson) -> Option<String> {
    match value {
        Bson::String(text) | Bson::Symbol(text) => Some(text.clone()),
        Bson::ObjectId(id) => Some(id.to_hex()),
        Bson::Int32(number) => Some(number.to_string()),
        Bson::Int64(number) => Some(number.to_string()),
        Bson::Double(number) => Some(number.to_string()),
        Bson::Decimal128(number) => Some(number.to_string()),
        Bson::DateTime(_) => time(value).map(|at| at.to_string()),
        _ => None,
    }
}

/// A time from a date, a text or milliseconds.
fn time(value: &Bson) -> Option<Timestamp> {
    match value {
        Bson::DateTime(at) => Timestamp::from_millis(at.timestamp_millis()),
        Bson::String(text) => Timestamp::read(text),
        Bson::Int64(ms) => Timestamp::from_millis(*ms),
        #[expect(clippy::cast_possible_truncation, reason = "checked: whole and in range")]
        Bson::Double(ms) if ms.fract() == 0.0 && ms.abs() < 9e15 => {
            Timestamp::from_millis(*ms as i64)
        }
        _ => None,
    }
}

/// Converts to JSON: references as hex digits, dates as text, bytes as hex.
pub(super) fn json(value: &Bson) -> Value {
    match value {
        Bson::Document(members) => {
            members.iter().map(|(name, value)| (name.clone(), json(value))).collect()
        }
        Bson::Array(values) => values.iter().map(json).collect(),
        Bson::Boolean(value) => (*value).into(),
        Bson::Int32(number) => (*number).into(),
        Bson::Int64(number) => (*number).into(),
        Bson::Double(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
        Bson::Binary(binary) => hex::encode(&binary.bytes).into(),
        Bson::RegularExpression(regex) => regex.pattern.as_str().into(),
        other => text(other).map_or(Value::Null, Value::String),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::oid::ObjectId;
    use mongodb::bson::{DateTime, doc};
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_read_loosely_and_the_rest_is_known() {
        let id = ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap();
        let mut fields = Fields::new(doc! {
            "_id": id, "__v": 3, "a": id, "n": 12.5, "none": null, "empty": {}, "x": {"y": [id]},
            "at": DateTime::from_millis(1_767_225_600_123), "list": ["a", 1, {}], "on": true,
        });
        assert_eq!(fields.id, "507f1f77bcf86cd799439011");
        assert_eq!(fields.made.unwrap().to_string(), "2012-10-17T21:13:27.000Z");
        assert_eq!(fields.text("a").unwrap(), "507f1f77bcf86cd799439011");
        assert_eq!(fields.number("n"), Some(12.5));
        assert_eq!(fields.time("at").unwrap().to_string(), "2026-01-01T00:00:00.123Z");
        assert_eq!(fields.texts("list"), ["a", "1"]);
        assert!(fields.is_set("on") && fields.text("none").is_none());
        let rest = Value::from(fields.rest());
        assert_eq!(rest, json!({"x": {"y": ["507f1f77bcf86cd799439011"]}}));
    }
}
