//! The wire format: an envelope, read strictly, around events, read leniently.
//!
//! Stalwart has sent `{"events":[{"id","createdAt","type","data"}]}` since 0.8.2; a bare list and
//! `{"event":{…}}` come from other senders.

use std::borrow::Cow;

use dezky_core::Timestamp;
use dezky_core::json::{self, Doc, Value};

use super::verbs;

/// The events of a body's [checked](json::check) text, in order. Empty if it is not an envelope, or
/// an empty one. An error holds their number, if there are more than `max`.
///
/// A repeated `events` or `event` counts as a whole: choosing one would lose the others.
pub(super) fn events(text: &str, max: usize) -> Result<Vec<&str>, usize> {
    let lists = if text.trim_start().starts_with('[') {
        vec![text]
    } else {
        let mut lists = Vec::new();
        let mut members = json::children(text);
        while let (Some(key), Some(value)) = (members.next(), members.next()) {
            let key = Doc::of_checked(key);
            if key.root().string().is_some_and(|name| matches!(&*name, "events" | "event")) {
                lists.push(value);
            }
        }
        lists
    };
    let is_event = |list: &str| list.starts_with('{');
    let count = |list: &&str| if is_event(list) { 1 } else { elements(list).count() };
    let all = lists.iter().map(count).sum();
    if all > max {
        return Err(all);
    }
    let mut events = Vec::with_capacity(all);
    for list in lists {
        if is_event(list) {
            events.push(list);
        } else {
            events.extend(elements(list));
        }
    }
    Ok(events)
}

/// The elements of a list; nothing for any other value.
fn elements(list: &str) -> impl Iterator<Item = &str> {
    // Trimmed once, because there may be megabytes of blanks.
    let list = if list.trim_start().starts_with('[') { list } else { "" };
    json::children(list)
}

/// An event as received.
pub(super) struct WireEvent<'d> {
    pub(super) object: Value<'d>,
    /// As received: a string, or a number as spelled.
    pub(super) id: Option<Cow<'d, str>>,
    /// As received.
    pub(super) kind: Cow<'d, str>,
    /// [`verbs::normalise`]d; not empty.
    pub(super) normalised: String,
    /// As received; empty if there is none.
    pub(super) created_at: Cow<'d, str>,
    /// `created_at`, if it is RFC 3339, with or without a fraction. Only for the identity, which
    /// must not change when more spellings are accepted.
    pub(super) at: Option<Timestamp>,
    pub(super) data: Option<Value<'d>>,
}

/// Why something is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    NotAnObject,
    /// The type is missing, is not text, or has no letter or digit in it.
    NoType,
}

impl<'d> WireEvent<'d> {
    pub(super) fn read(object: Value<'d>) -> Result<Self, Odd> {
        if !object.is_object() {
            return Err(Odd::NotAnObject);
        }
        let kind = object.get("type").and_then(Value::string).ok_or(Odd::NoType)?;
        let normalised = verbs::normalise(&kind);
        if normalised.is_empty() {
            return Err(Odd::NoType);
        }
        let (created_at, at) = created_at(object);
        let (id, data) = (id(object), object.get("data"));
        Ok(Self { object, id, kind, normalised, created_at, at, data })
    }

    /// The fields other than Stalwart's four, as an object; other senders have them. `None` if
    /// there are none.
    pub(super) fn other_fields(&self) -> Option<String> {
        members_but(self.object, &["id", "createdAt", "type", "data"])
    }

    /// The fields except time and type, as an object.
    pub(super) fn all_but_kind(&self) -> Option<String> {
        members_but(self.object, &["createdAt", "type"])
    }

    /// The fields except id, time and type, as an object.
    pub(super) fn body(&self) -> Option<String> {
        members_but(self.object, &["id", "createdAt", "type"])
    }
}

/// The `id` of an object: non-empty text, or a number.
pub(super) fn id(object: Value<'_>) -> Option<Cow<'_, str>> {
    object.get("id").and_then(Value::text)
}

/// `createdAt` as received, and parsed.
pub(super) fn created_at(object: Value<'_>) -> (Cow<'_, str>, Option<Timestamp>) {
    let text = match object.get("createdAt") {
        None => return (Cow::Borrowed(""), None),
        Some(value) => value.string().unwrap_or(Cow::Borrowed(value.raw())),
    };
    let at = Timestamp::parse(&text);
    (text, at)
}

/// An object of the members except those named, as spelled; `None` if there are none.
pub(super) fn members_but(object: Value<'_>, names: &[&str]) -> Option<String> {
    let mut out = String::new();
    for member in object.members().filter(|m| !names.contains(&&*m.name())) {
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(member.key().raw());
        out.push(':');
        out.push_str(member.value().raw());
    }
    (!out.is_empty()).then(|| out + "}")
}

#[cfg(test)]
mod tests {
    use dezky_core::Runtime as _;
    use dezky_core::rt::TokioRuntime;

    use super::*;

    #[test]
    fn envelopes() {
        for (body, expected) in [
            (r#"{"events":[{"a":1},2]}"#, &[r#"{"a":1}"#, "2"][..]),
            (r#"[{"a":1}]"#, &[r#"{"a":1}"#]),
            (r#"{"event":{"a":1}}"#, &[r#"{"a":1}"#]),
            (r#"{"event":[1],"x":[2],"events":{"b":2}}"#, &["1", r#"{"b":2}"#]),
            (r#"{"events":[1],"events":[2]}"#, &["1", "2"]),
            (r#"{"events":[]}"#, &[]),
            (r#"{"event":"account.created","data":{}}"#, &[]),
            (r#"{"type":"auth.failed"}"#, &[]),
            (" \n[ 1, 2]", &["1", "2"]),
            ("[]", &[]),
            ("null", &[]),
        ] {
            assert_eq!(events(body, 2).unwrap(), expected, "{body}");
        }
        assert_eq!(events(r#"{"events":[1,2],"event":{}}"#, 2), Err(3));
    }

    #[test]
    fn blanks_before_many_events_take_no_time() {
        let blanks = " ".repeat(1 << 20);
        let body = format!("{blanks}[{}1]", "1,".repeat(100_000));
        let started = TokioRuntime.now();
        assert_eq!(events(&body, 1 << 20).map(|events| events.len()), Ok(100_001));
        let took = TokioRuntime.now().saturating_since(started);
        // Scanning them again per event would take minutes.
        assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn events_are_read_loosely() {
        let text = r#"{"id":1,"id":18446744073709551615,"type":"x","type":"Auth.Failed",
            "createdAt":"2026-08-17T12:00:00.5+02:00","data":7,"a\u0062":1}"#;
        let doc = Doc::parse(text).unwrap();
        let event = WireEvent::read(doc.root()).unwrap();
        assert_eq!(event.id.as_deref(), Some("18446744073709551615"));
        assert_eq!(event.kind, "Auth.Failed");
        assert_eq!(event.at, Timestamp::parse("2026-08-17T10:00:00.500Z"));
        assert_eq!(event.data.unwrap().raw(), "7");
        assert_eq!(event.other_fields().unwrap(), r#"{"a\u0062":1}"#);
        assert_eq!(event.body().unwrap(), r#"{"data":7,"a\u0062":1}"#);

        let doc = Doc::parse(r#"{"id":{},"type":"x","createdAt":17}"#).unwrap();
        let event = WireEvent::read(doc.root()).unwrap();
        assert_eq!((event.id, event.at, &*event.created_at), (None, None, "17"));

        for (text, odd) in [
            ("1", Odd::NotAnObject),
            ("[]", Odd::NotAnObject),
            ("{}", Odd::NoType),
            (r#"{"type":35}"#, Odd::NoType),
            (r#"{"type":" . "}"#, Odd::NoType),
        ] {
            assert_eq!(WireEvent::read(Doc::parse(text).unwrap().root()).err(), Some(odd));
        }
    }
}
