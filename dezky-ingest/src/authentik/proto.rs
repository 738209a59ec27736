//! The wire format: a page and its events, read leniently.
//!
//! The page is split into the texts of its items first, so that a malformed item does not affect
//! the others and its text is kept.

use dezky_core::canonical::canonicalize;
use dezky_core::{TimeFormat, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A page of a list with unparsed items.
#[derive(Debug)]
pub struct Page<'a> {
    /// The number of items in the list.
    pub count: u64,
    /// Whether there is a page after this one.
    pub has_next: bool,
    /// The number of items before this page; `None` if the server does not say.
    pub before: Option<u64>,
    /// The items' own texts.
    pub items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct WirePage<'a> {
    pagination: Pagination,
    #[serde(borrow)]
    results: Vec<&'a RawValue>,
}

/// Numbers, as `2` or `2.0`; other members are ignored.
#[derive(Deserialize)]
struct Pagination {
    #[serde(default)]
    next: Option<f64>,
    #[serde(default)]
    count: Option<f64>,
    #[serde(default)]
    start_index: Option<f64>,
}

impl<'a> Page<'a> {
    /// Reads a response's text; `None` if it is not a page.
    pub fn parse(text: &'a str) -> Option<Self> {
        let WirePage { pagination, results } = serde_json::from_str(text).ok()?;
        Some(Self {
            count: pagination.count.map_or(results.len() as u64, whole),
            has_next: pagination.next.is_some_and(|next| next >= 1.0),
            // Starts at 1; 0 for an empty list.
            before: pagination.start_index.map(|at| whole(at).saturating_sub(1)),
            items: results,
        })
    }
}

/// A count.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn whole(number: f64) -> u64 {
    number.clamp(0.0, 9e15) as u64
}

/// The longest key of a position, in bytes.
const MAX_POSITION_PK: usize = 64;

/// The position of an item in the total order `created, pk`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, Deserialize)]
pub struct Position {
    /// Microseconds since the epoch.
    #[serde(rename = "t")]
    pub created_us: i64,
    /// The key in normal form, which sorts as in the server's order.
    pub pk: String,
}

impl Position {
    /// The time in milliseconds, rounded down.
    pub fn created(&self) -> Timestamp {
        millis(self.created_us)
    }
}

fn millis(created_us: i64) -> Timestamp {
    Timestamp::from_millis_clamped(created_us.div_euclid(1000))
}

/// An item of a page.
#[derive(Debug)]
pub struct Item {
    /// Its position, if readable.
    pub position: Option<Position>,
    /// The event, or why it is not one.
    pub event: Result<Event, MalformedItem>,
}

/// An item of a page that is not an event.
#[derive(Debug)]
pub struct MalformedItem {
    /// A stable code: `not_an_object`, `no_pk`, `no_created`, `no_action`, `too_deep`.
    pub reason: &'static str,
    /// The item; `None` if it is nested too deeply to be parsed.
    pub value: Option<Value>,
}

/// An event as received.
#[derive(Debug)]
pub struct Event {
    /// In normal form: a UUID in lower case with dashes; anything else as it is.
    pub pk: String,
    /// The time of the event.
    pub created: Timestamp,
    /// The raw action.
    pub action: String,
    /// Every member of the object.
    pub members: Map<String, Value>,
}

impl Event {
    /// A member that is an object; `None` for an empty one.
    pub fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        self.members.get(name)?.as_object().filter(|object| !object.is_empty())
    }
}

impl Item {
    /// Reads an item of the list of events.
    pub fn read(raw: &RawValue) -> Self {
        let odd = |position, reason, value| Self {
            position,
            event: Err(MalformedItem { reason, value }),
        };
        let members = match value(raw.get()) {
            Some(Value::Object(members)) => members,
            Some(other) => return odd(None, "not_an_object", Some(other)),
            None => return odd(None, "too_deep", None),
        };
        let pk = members.get("pk").and_then(pk);
        let created = members.get("created").and_then(Value::as_str).and_then(micros);
        let position = match (&pk, created) {
            // The cursor holds positions, and Authentik's own keys are shorter.
            (Some(pk), Some(created_us)) if pk.len() <= MAX_POSITION_PK => {
                Some(Position { created_us, pk: pk.clone() })
            }
            _ => None,
        };
        let action = members.get("action").and_then(Value::as_str).map(str::to_owned);
        let (pk, created, action) = match (pk, created, action) {
            (Some(pk), Some(created), Some(action)) => (pk, millis(created), action),
            (pk, _, action) => {
                let reason = match (pk, created, action) {
                    (None, ..) => "no_pk",
                    (_, None, _) => "no_created",
                    _ => "no_action",
                };
                return odd(position, reason, Some(members.into()));
            }
        };
        Self { position, event: Ok(Event { pk, created, action, members }) }
    }
}

/// Decodes text that is JSON by its grammar; `None` if it is nested too deeply.
fn value(raw: &str) -> Option<Value> {
    // Lone surrogates and numbers beyond the doubles are brought to the log's normal form.
    serde_json::from_str(raw)
        .or_else(|_| serde_json::from_str(&canonicalize(raw).unwrap_or_default()))
        .ok()
}

/// A primary key as text: a number, a UUID of any spelling as the one with dashes, or other text as
/// it is. `None` if it is empty or neither text nor a number.
pub fn pk(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) if !text.is_empty() => Some(uuid_text(text)),
        _ => None,
    }
}

fn uuid_text(text: &str) -> String {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return text.to_owned();
    }
    let hex = hex.to_ascii_lowercase();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A time in microseconds, the fraction optional.
fn micros(text: &str) -> Option<i64> {
    let ms = TimeFormat::Rfc3339.read(text)?.as_millis();
    let fraction = text.split_once(['.', ',']).map_or("", |(_, rest)| rest);
    let below_ms = fraction.bytes().take_while(u8::is_ascii_digit).chain(std::iter::repeat(b'0'));
    let us = below_ms.skip(3).take(3).fold(0, |us, digit| us * 10 + i64::from(digit - b'0'));
    Some(ms * 1000 + us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../tests/data/authentik/page.json");
    const EVENTS: &str = include_str!("../../tests/data/authentik/events.json");

    fn item(text: &str) -> Item {
        Item::read(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_page_is_read_whatever_its_numbers_look_like() {
        let page = Page::parse(PAGE).unwrap();
        assert_eq!((page.count, page.has_next, page.before), (6, true, Some(0)));
        assert_eq!(page.items.len(), 2);
        for (text, expected) in [
            (
                r#"{"results":[],"pagination":{"next":0,"count":0,"start_index":0},"x":1}"#,
                (0, false),
            ),
            (r#"{"results":[1],"pagination":{"next":2.0,"count":7.0}}"#, (7, true)),
            (r#"{"results":[1],"pagination":{"next":null}}"#, (1, false)),
        ] {
            let page = Page::parse(text).unwrap();
            assert_eq!((page.count, page.has_next), expected, "{text}");
        }
        for text in ["", "{}", "<html>", r#"{"results":[]}"#, r#"{"pagination":{},"results":{}}"#] {
            assert!(Page::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn the_fixture_is_read() {
        let events: Vec<&RawValue> = serde_json::from_str(EVENTS).unwrap();
        let positions: Vec<_> =
            events.iter().map(|raw| Item::read(raw).position.unwrap()).collect();
        assert!(positions.is_sorted(), "also the two of the same instant");
        assert_eq!(positions[1].created().to_string(), "2026-09-01T08:00:01.000Z");
        assert_eq!(positions[0].created_us % 1_000_000, 123_456);
        assert!(events.iter().all(|raw| Item::read(raw).event.is_ok()));
    }

    #[test]
    fn keys_in_one_spelling() {
        let dashed = "5b0c2f0e-6f0a-4c55-9a57-0d3f8f1b2a01";
        for text in [dashed, "5B0C2F0E6F0A4C559A570D3F8F1B2A01", &dashed.to_uppercase()] {
            assert_eq!(pk(&text.into()).unwrap(), dashed);
        }
        assert_eq!(pk(&42.into()).unwrap(), "42");
        assert_eq!(pk(&"other".into()).unwrap(), "other");
        assert!(pk(&Value::Null).is_none() && pk(&"".into()).is_none());
    }

    #[test]
    fn what_is_no_event_says_why() {
        let time = r#""created":"2026-01-01T00:00:00Z""#;
        for (text, reason, has_position) in [
            ("7".to_owned(), "not_an_object", false),
            (format!(r#"{{{time},"action":"login"}}"#), "no_pk", false),
            (r#"{"pk":"a","action":"login","created":"soon"}"#.to_owned(), "no_created", false),
            (format!(r#"{{"pk":"a",{time},"action":null}}"#), "no_action", true),
            (
                format!(r#"{{"pk":"a",{time},"x":{}1{}}}"#, "[".repeat(200), "]".repeat(200)),
                "too_deep",
                false,
            ),
        ] {
            let item = item(&text);
            assert_eq!(item.position.is_some(), has_position, "{reason}");
            assert_eq!(item.event.unwrap_err().reason, reason);
        }
    }

    #[test]
    fn a_key_that_no_cursor_could_hold_is_an_event_without_a_place() {
        let pk = "k".repeat(65);
        let text = format!(r#"{{"pk":"{pk}","created":"2026-01-01T00:00:00Z","action":"x"}}"#);
        let item = item(&text);
        assert!(item.position.is_none());
        assert_eq!(item.event.unwrap().pk, pk);
    }

    #[test]
    fn odd_text_is_still_an_event() {
        let event = item(
            r#"{"pk":"a","created":"2026-01-01T00:00:00.1Z","action":"x","n":1e999,"s":"\ud83d"}"#,
        );
        assert_eq!(event.position.unwrap().created_us % 1_000_000, 100_000);
        assert_eq!(event.event.unwrap().action, "x");
    }
}
