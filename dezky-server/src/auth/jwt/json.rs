//! JSON that borrows its text, with duplicate members refused at every depth.
//!
//! Readers disagree on which of two equal members counts; a token that has them could mean one
//! thing here and another at a proxy.

use std::borrow::Cow;
use std::fmt;

use dezky_core::Timestamp;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::Reason;

/// From this number of members on, duplicates are found by sorting.
const FEW: usize = 24;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    /// A number without a fraction.
    Integer(i64),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
    Object(Object<'a>),
}

/// The members of an object, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Object<'a> {
    /// Reads bytes that are one object.
    pub(super) fn read(bytes: &'a [u8], what: &'static str) -> Result<Self, Reason> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(object),
            // The reader itself raises no other error of this category.
            Err(error) if error.is_data() => Err(Reason::DuplicateMember),
            _ => Err(Reason::Malformed(what)),
        }
    }

    /// The member of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.0.iter().find(|(member, _)| member == name).map(|(_, value)| value)
    }

    /// A text, if the member is present.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, Reason> {
        self.get(name).map(|value| value.as_text().ok_or(Reason::ClaimInvalid(name))).transpose()
    }

    /// A time in seconds since 1970, if the member is present.
    pub(super) fn time(&self, name: &'static str) -> Result<Option<Timestamp>, Reason> {
        self.get(name).map(|value| value.as_time().ok_or(Reason::ClaimInvalid(name))).transpose()
    }

    fn has_duplicates(&self) -> bool {
        let members = &self.0;
        if members.len() < FEW {
            let mut rest = members.as_slice();
            while let [(name, _), others @ ..] = rest {
                if others.iter().any(|(other, _)| other == name) {
                    return true;
                }
                rest = others;
            }
            return false;
        }
        let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names.windows(2).any(|pair| pair[0] == pair[1])
    }
}

impl Value<'_> {
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// One text, or a list of texts.
    pub(super) fn as_texts(&self) -> Option<Vec<&str>> {
        match self {
            Self::Text(text) => Some(vec![text]),
            Self::List(items) => items.iter().map(Value::as_text).collect(),
            _ => None,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the conversion saturates, as intended")]
    fn as_time(&self) -> Option<Timestamp> {
        match self {
            Self::Integer(seconds) => {
                Some(Timestamp::from_millis_clamped(seconds.saturating_mul(1_000)))
            }
            Self::Float(seconds) => {
                Some(Timestamp::from_millis_clamped((seconds * 1_000.0) as i64))
            }
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, on: bool) -> Result<Self::Value, E> {
        Ok(Value::Bool(on))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object::default();
        while let Some(key) = map.next_key()? {
            // The keys of JSON are texts.
            if let Value::Text(name) = key {
                object.0.push((name, map.next_value()?));
            }
        }
        if object.has_duplicates() {
            return Err(A::Error::custom("duplicate member"));
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Object<'_>, Reason> {
        Object::read(text.as_bytes(), "payload")
    }

    #[test]
    fn duplicates_are_refused_at_every_depth() {
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"a":1,"b":2,"a":3}}"#,
            r#"{"x":[[{"a":1,"a":3}]]}"#,
        ] {
            assert_eq!(read(bad), Err(Reason::DuplicateMember), "{bad}");
        }
        let many = |last: &str| {
            let members: Vec<_> = (0..100).map(|n| format!("\"m{n}\":{n}")).collect();
            format!("{{{},\"{last}\":0}}", members.join(","))
        };
        assert!(read(&many("m100")).is_ok());
        assert_eq!(read(&many("m50")), Err(Reason::DuplicateMember));
        assert!(read(r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#).is_ok());
    }

    #[test]
    fn only_an_object_is_read() {
        for bad in ["", "[]", "1", "null", "{", "{}x", "{\"a\"}", "\u{feff}{}", "{\"a\":NaN}"] {
            assert_eq!(read(bad), Err(Reason::Malformed("payload")), "{bad}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(read(&deep), Err(Reason::Malformed("payload")));
        assert_eq!(Object::read(b"{\"a\":\"\xff\"}", "payload"), Err(Reason::Malformed("payload")));
    }

    #[test]
    fn times_may_have_a_fraction_and_saturate() {
        let object = read(
            r#"{"a":1.7e9,"b":1700000000,"c":1e300,"d":-1e300,"e":18446744073709551615,"f":"1"}"#,
        );
        let object = object.unwrap();
        let at = |name| object.time(name).map(|time| time.map(Timestamp::as_millis));
        assert_eq!(at("a"), Ok(Some(1_700_000_000_000)));
        assert_eq!(at("b"), at("a"));
        assert_eq!(at("c"), at("e"));
        assert!(at("d").unwrap() < at("a").unwrap());
        assert_eq!(at("f"), Err(Reason::ClaimInvalid("f")));
        assert_eq!(at("g"), Ok(None));
    }
}
