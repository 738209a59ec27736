//! Any other system, by configuration alone: a declared [mapping](MappingConfig) maps the JSON
//! objects that the system posts or writes into a file to events.
//!
//! [`decode`] decodes a body, [`GenericReceiver`] takes signed bodies into the log, and
//! [`MappedLines`] follows a file. The mapping is pure and total: every object becomes an event, is
//! skipped on purpose, or goes to the quarantine, without affecting the others.

mod action;
mod config;
mod file;
mod mapping;
mod outcome;
mod pointer;
mod receiver;
mod redact;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use dezky_core::canonical::canonicalize;
use dezky_core::json::{self, Doc, Member, Value};
use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{Error, ErrorKind, PulledEvent, QuarantineItem, Result, Timestamp};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

pub use dezky_core::TimeFormat;

pub use self::config::{
    ActorMapping, MappingConfig, MappingProblem, ResourceMapping, SkipField, SkipRule,
};
pub use self::file::MappedLines;
use self::mapping::Mapped;
pub use self::mapping::Mapping;
pub use self::receiver::GenericReceiver;
pub use crate::body::DecodedBody;
use crate::body::{MalformedItems, REST_MAX_BYTES, kept_list};
use crate::keys::ContentKeys;

/// The maximum number of events in a body.
pub const MAX_BODY_EVENTS: usize = 10_000;

/// The reason of a body without events at the declared place.
const NO_EVENTS: &str = "no_events";

/// Prefix of the key of a line's item.
const LINE_KEY_PREFIX: &str = "line:";

/// The first bytes of every gzip member.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Decodes the body of a request whose signature was verified.
///
/// - A body is one JSON value or several in sequence, with or without white space between them
///   (JSON lines). Each is a list, an object with a list `events`, or one event. An empty list is
///   valid.
/// - Bytes that are not UTF-8 become U+FFFD, as in a line of a file, without affecting the other
///   events of the body.
/// - A value without events at the declared place is one quarantine item (`no_events`). So is an
///   element that is not an object (`not_an_object`) or has no action (`no_action`), without
///   affecting the others. Those beyond the first hundred are packed into as few items as possible
///   (`too_many_odd`).
/// - Secrets are hidden first: events and quarantined text hold none. Content keys are SHA-256 over
///   the text as the first version of the rule for secrets cleaned it, so that an event keeps its
///   key; that text includes values under names that the rule learned later. Put such places into
///   `redact`, which applies to keys too.
/// - `external_id` is the declared id. If there is none, or it has over 512 bytes, it is the
///   content key `body1:…` over the source's name, the canonical object without its secrets, and
///   the number of equal objects before it in the body. So it is the same at every retry of the
///   body.
/// - `at` is the declared time. Without a plausible one it is `received_at`, noted as
///   `_dezky.timeSource` and `timeProblem`.
/// - The metadata is the object; `_dezky` holds `rawAction`, `redacted`, and values that could not
///   be used: `rawAt`, `rawId`, `rawOutcome`, `rawActorType`.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_ingest::generic::{Mapping, MappingConfig, decode};
/// let config = MappingConfig { action: Some("/event".into()), ..MappingConfig::default() };
/// let mapping = Mapping::compile("shop", &config).unwrap();
/// let body = br#"[{"event": "OrderPaid", "order": 7}, "odd"]"#;
/// let decoded = decode(&mapping, body, Timestamp::MIN).unwrap();
/// assert_eq!(decoded.events[0].event.action, "shop.order_paid");
/// assert_eq!(decoded.quarantine[0].reason, "not_an_object");
/// ```
///
/// # Errors
/// Nothing of a refused body is stored:
/// - `body_invalid` if the body is not JSON, is empty, or has a value that is neither an object nor
///   a list. Text that can't be parsed can't be redacted, so it can't be quarantined.
/// - `too_large` if it has more than [`MAX_BODY_EVENTS`] events, or an element for the quarantine
///   that exceeds its 64 KiB.
pub fn decode(mapping: &Mapping, body: &[u8], received_at: Timestamp) -> Result<DecodedBody> {
    // As for lines of files: a bad byte must not affect other events.
    let text = String::from_utf8_lossy(body);
    let text = without_mark(&text);
    let list;
    let is_sequence = json::check(text).is_err();
    let text = if is_sequence {
        list = sequence(text, MAX_BODY_EVENTS)
            .map_err(|error| unreadable(body, error.line(), error.column()))?;
        let list = list.as_deref().ok_or_else(too_many_events)?;
        json::check(list).map_err(|error| unreadable(body, error.line(), error.column()))?;
        list
    } else {
        text
    };
    if mapping.events.is_none() {
        // Counted before they are collected, because there may be millions.
        let events: usize = if is_sequence {
            json::children(text).map(count_events).sum()
        } else {
            count_events(text)
        };
        if events > MAX_BODY_EVENTS {
            return Err(too_many_events());
        }
    }
    let doc = Doc::of_checked(text);
    let roots: Vec<_> =
        if is_sequence { doc.root().elements().collect() } else { vec![doc.root()] };
    if roots.is_empty() {
        return Err(Error::new(ErrorKind::BodyInvalid, "the body is empty: send JSON objects"));
    }
    if !roots.iter().all(|root| root.is_object() || root.is_list()) {
        let what = "the body must be JSON objects or lists of them, not single values";
        return Err(Error::new(ErrorKind::BodyInvalid, what));
    }
    if roots.len() > MAX_BODY_EVENTS {
        return Err(too_many_events());
    }
    let (mut events, mut without) = (Vec::new(), Vec::new());
    for root in roots {
        if !objects(mapping, root, &mut events)? {
            without.push(root);
        }
    }
    let mut keys = ContentKeys::new("body1", mapping.source());
    let mut decoded = map_all(mapping, events, received_at, |clean| {
        // Part of a parsed document, so it is JSON.
        keys.key(&[&canonicalize(clean).unwrap_or_default()])
    })?;
    for root in without {
        let raw = mapping.clean(root);
        check_keepable("a body without events where map.events says", &raw)?;
        let detail =
            format!("{} bytes of JSON have no events where map.events says", root.raw().len());
        decoded.quarantine.push(item(
            mapping,
            NO_EVENTS,
            sha256(&mapping.for_key(root)),
            detail,
            &raw,
            received_at,
        ));
    }
    Ok(decoded)
}

/// A text of several values in sequence, as a list; `None` if there are more than `max`, whatever
/// follows.
fn sequence(text: &str, max: usize) -> std::result::Result<Option<String>, serde_json::Error> {
    let mut list = String::with_capacity(text.len() + 2);
    list.push('[');
    for (n, value) in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>().enumerate()
    {
        let value = value?;
        if n == max {
            return Ok(None);
        }
        if n > 0 {
            list.push(',');
        }
        list.push_str(value.get());
    }
    list.push(']');
    Ok(Some(list))
}

/// The number of events of a checked value if no place is declared, counted up to one more than
/// allowed.
fn count_events(value: &str) -> usize {
    let elements = |list: &str| json::children(list).take(MAX_BODY_EVENTS + 1).count();
    let value = value.trim_start();
    if value.starts_with('[') {
        return elements(value);
    }
    let (mut events, mut is_named) = (0, false);
    let mut members = json::children(value);
    while let (Some(key), Some(member)) = (members.next(), members.next()) {
        let key = Doc::of_checked(key);
        if key.root().string().is_some_and(|key| key == "events") && member.starts_with('[') {
            is_named = true;
            events += elements(member);
        }
    }
    if is_named { events } else { 1 }
}

fn unreadable(body: &[u8], line: usize, column: usize) -> Error {
    let hint = if body.starts_with(&GZIP_MAGIC) {
        "it is gzip, so say Content-Encoding: gzip"
    } else {
        "send one object, a list of them, or JSON lines"
    };
    let what = format!("the body is not JSON at line {line} column {column}: {hint}");
    Error::new(ErrorKind::BodyInvalid, what)
}

fn too_many_events() -> Error {
    let what = format!("the body has more than {MAX_BODY_EVENTS} events: send them in several");
    Error::new(ErrorKind::TooLarge, what)
}

/// Refuses text that the quarantine would truncate, because it could not be decoded again.
fn check_keepable(what: &str, raw: &str) -> Result<()> {
    if raw.len() <= REST_MAX_BYTES {
        return Ok(());
    }
    let problem = format!(
        "{what} has {} bytes, and the quarantine keeps {REST_MAX_BYTES}: nothing of the body was stored",
        raw.len()
    );
    Err(Error::new(ErrorKind::TooLarge, problem))
}

/// Decodes a quarantined line, element, several elements or a whole body again. Fails unless each
/// is an event now or is skipped by the mapping.
pub(crate) fn redecode(
    mapping: &Mapping,
    item: &QuarantineItem,
) -> std::result::Result<Vec<PulledEvent>, String> {
    let decoded = match item.key.strip_prefix(LINE_KEY_PREFIX) {
        Some(key) => map_list(mapping, item, |_| key.to_owned())?,
        None if item.reason == NO_EVENTS => {
            decode(mapping, &item.raw, item.at).map_err(|error| error.to_string())?
        }
        None => {
            let mut keys = ContentKeys::new("body1", mapping.source());
            map_list(mapping, item, |clean| keys.key(&[&canonicalize(clean).unwrap_or_default()]))?
        }
    };
    match decoded.quarantine.first() {
        Some(odd) => Err(format!("still {}: {}", odd.reason, odd.detail)),
        None if decoded.events.is_empty() => Err("the mapping skips all of it".into()),
        None => Ok(decoded.events),
    }
}

fn map_list(
    mapping: &Mapping,
    item: &QuarantineItem,
    key: impl FnMut(&str) -> String,
) -> std::result::Result<DecodedBody, String> {
    let list = kept_list(item)?;
    let doc = Doc::parse(&list).map_err(|_| "still not JSON")?;
    map_all(mapping, doc.root().elements().collect(), item.at, key)
        .map_err(|error| error.to_string())
}

/// Maps objects; `key` makes the identity of an object without an id from its [text for
/// keys](Mapping::for_key).
fn map_all(
    mapping: &Mapping,
    objects: Vec<Value<'_>>,
    received_at: Timestamp,
    mut key: impl FnMut(&str) -> String,
) -> Result<DecodedBody> {
    let mut decoded = DecodedBody::default();
    let mut malformed = MalformedItems::default();
    let count = objects.len();
    for (index, object) in objects.into_iter().enumerate() {
        let clean = mapping.clean(object);
        let is_redacted = matches!(clean, Cow::Owned(_));
        match mapping.map(object, &clean, is_redacted, received_at) {
            Mapped::Event(mut pulled) => {
                pulled.event.external_id.get_or_insert_with(|| key(&mapping.for_key(object)));
                decoded.events.push(*pulled);
            }
            Mapped::Skipped => decoded.skipped += 1,
            Mapped::Odd(reason, what) => {
                let detail = format!("event {} of {count} {what}", index + 1);
                check_keepable(&format!("{detail}: it"), &clean)?;
                let key = sha256(&mapping.for_key(object));
                malformed.push(item(mapping, reason, key, detail, &clean, received_at));
            }
        }
    }
    decoded.quarantine = malformed.into_items(count);
    Ok(decoded)
}

fn item(
    mapping: &Mapping,
    reason: &str,
    key: String,
    detail: String,
    raw: &str,
    at: Timestamp,
) -> QuarantineItem {
    QuarantineItem {
        source: mapping.source().to_owned(),
        key,
        reason: reason.to_owned(),
        detail,
        raw: raw[..raw.floor_char_boundary(MAX_QUARANTINE_RAW_BYTES)].into(),
        at,
    }
}

/// Adds the events of a value of a body. Returns false if there are none at the declared place.
fn objects<'d>(mapping: &Mapping, root: Value<'d>, all: &mut Vec<Value<'d>>) -> Result<bool> {
    let lists = match &mapping.events {
        Some(place) => match place.get(root) {
            Some(list) if list.is_list() => vec![list],
            Some(object) if object.is_object() => {
                all.push(object);
                return Ok(true);
            }
            _ => return Ok(false),
        },
        None if root.is_list() => vec![root],
        // A repeated `events` counts as a whole: choosing one would lose the others.
        None => {
            let named = root.members().filter(|member| member.name() == "events");
            named.map(Member::value).filter(|value| value.is_list()).collect()
        }
    };
    if lists.is_empty() {
        all.push(root);
    }
    for list in lists {
        // At most one more than allowed.
        all.extend(list.elements().take((MAX_BODY_EVENTS + 1).saturating_sub(all.len())));
    }
    if all.len() > MAX_BODY_EVENTS { Err(too_many_events()) } else { Ok(true) }
}

/// The text without a byte order mark.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
