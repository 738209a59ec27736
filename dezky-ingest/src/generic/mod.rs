//! Any other system, by configuration alone: a declared [mapping](MappingConfig) makes
//! events of the JSON objects that it posts or writes into a file.
//!
//! [`decode`] reads a body, [`GenericReceiver`] takes signed ones into the log;
//! [`MappedLines`] follows a file. The
//! mapping is pure and total: every object gives an event, is passed over on purpose, or
//! goes to the quarantine, and leaves those beside it as they are.

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
use dezky_core::{Error, ErrorKind, PulledEvent, QuarantineItem, Result, Timestamp};
use sha2::{Digest as _, Sha256};

pub use dezky_core::TimeFormat;

pub use self::config::{ActorMapping, MappingConfig, MappingProblem, ResourceMapping};
pub use self::file::MappedLines;
use self::mapping::Mapped;
pub use self::mapping::Mapping;
pub use self::receiver::GenericReceiver;
use crate::json::{Doc, Value};
use crate::keys::ContentKeys;
use crate::webhook::{OddItems, kept_list};

/// The most events of one body.
pub const MAX_BODY_EVENTS: usize = 10_000;

/// Nothing is where the events of a body should be.
const NO_EVENTS: &str = "no_events";

/// The most bytes kept of something in quarantine.
const QUARANTINE_RAW_MAX: usize = 64 << 10;

/// What the key of a line's item begins with.
const LINE_KEY_PREFIX: &str = "line:";

/// What a body holds.
#[derive(Debug, Clone, Default)]
pub struct Decoded {
    /// The events, in the order of the body, each with an external id.
    pub events: Vec<PulledEvent>,
    /// What is no event, without its secrets.
    pub quarantine: Vec<QuarantineItem>,
    /// How many were passed over on purpose.
    pub skipped: u64,
}

/// Decodes the body of a request whose signature was verified.
///
/// - A body that is not JSON is one item in quarantine (`not_json`), one without events
///   at the declared place another (`no_events`); an element that is no object
///   (`not_an_object`) or has no action (`no_action`) is one and leaves the others as they
///   are. Of more than a hundred of these the others are one item together
///   (`too_many_odd`). An empty list holds nothing, which is fine.
/// - Secrets are hidden first: they are in no event, key or quarantined text. Of what is
///   not JSON nothing but the length is kept.
/// - `external_id` is the declared id. Where there is none, or it has over 512 bytes, it
///   is the content key `body1:…`, over the source's name, the canonical object without
///   its secrets and how many equal ones stand before it in the body; so it is the same
///   at every retry of the same body.
/// - `at` is the declared time; without one that can be believed it is `received_at`, noted
///   as `_dezky.timeSource` and `timeProblem`.
/// - The metadata is the object; `_dezky` says `rawAction`, `redacted`, and what could
///   not be used: `rawAt`, `rawId`, `rawOutcome`, `rawActorType`.
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
/// `too_large` if the body has more than [`MAX_BODY_EVENTS`] events.
pub fn decode(mapping: &Mapping, body: &[u8], received_at: Timestamp) -> Result<Decoded> {
    let refused = |reason: &str, key: String, detail: String, raw: &str| Decoded {
        quarantine: vec![item(mapping, reason, key, detail, raw, received_at)],
        ..Decoded::default()
    };
    let text = String::from_utf8_lossy(body);
    let doc = match Doc::parse(without_mark(&text)) {
        Ok(doc) => doc,
        Err(error) => {
            // What can't be parsed can't be redacted, so only its length is kept: a
            // hash, too, would let a secret be guessed.
            let (key, detail) = (format!("not_json:{}", body.len()), not_json(body.len(), &error));
            return Ok(refused("not_json", key, detail, ""));
        }
    };
    let Some(objects) = objects(mapping, doc.root())? else {
        let raw = mapping.clean(doc.root());
        let detail = format!("{} bytes of JSON have no events where map.events says", body.len());
        let key = sha256(&mapping.for_key(doc.root()));
        return Ok(refused(NO_EVENTS, key, detail, &raw));
    };
    let mut keys = ContentKeys::new("body1", mapping.source());
    Ok(map_all(mapping, objects, received_at, |clean| {
        // It is a part of a document, so it is JSON.
        keys.key(&[&canonicalize(clean).unwrap_or_default()])
    }))
}

/// Reads what was kept of a line, an element, several or a whole body again: all are
/// events today, or passed over by the mapping, or none is taken.
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
        None if decoded.events.is_empty() => Err("the mapping passes over all of it".into()),
        None => Ok(decoded.events),
    }
}

fn map_list(
    mapping: &Mapping,
    item: &QuarantineItem,
    key: impl FnMut(&str) -> String,
) -> std::result::Result<Decoded, String> {
    let list = kept_list(item)?;
    let doc = Doc::parse(&list).map_err(|_| "still no JSON")?;
    Ok(map_all(mapping, doc.root().elements().collect(), item.at, key))
}

/// What the mapping makes of objects; `key` is the identity of one that has no id, of its
/// [text for keys](Mapping::for_key).
fn map_all(
    mapping: &Mapping,
    objects: Vec<Value<'_>>,
    received_at: Timestamp,
    mut key: impl FnMut(&str) -> String,
) -> Decoded {
    let mut decoded = Decoded::default();
    let mut odd_items = OddItems::default();
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
                let key = sha256(&mapping.for_key(object));
                odd_items.push(item(mapping, reason, key, detail, &clean, received_at));
            }
        }
    }
    decoded.quarantine = odd_items.into_items(count);
    decoded
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
        raw: raw[..raw.floor_char_boundary(QUARANTINE_RAW_MAX)].into(),
        at,
    }
}

/// The events of a body; `None` if there are none at the declared place.
fn objects<'d>(mapping: &Mapping, root: Value<'d>) -> Result<Option<Vec<Value<'d>>>> {
    let mut objects = Vec::new();
    let mut lists = match &mapping.events {
        Some(place) => match place.get(root) {
            Some(list) if list.is_list() => vec![list],
            Some(object) if object.is_object() => return Ok(Some(vec![object])),
            _ => return Ok(None),
        },
        None if root.is_list() => vec![root],
        // A body that names them more than once gives all: to choose would be to lose some.
        None => {
            let named = root.members().filter(|member| member.name() == "events");
            named.map(|member| member.value).filter(|value| value.is_list()).collect()
        }
    };
    if lists.is_empty() {
        return Ok(Some(vec![root]));
    }
    for list in lists.drain(..) {
        // One more than there may be, whatever there is.
        objects.extend(list.elements().take(MAX_BODY_EVENTS + 1 - objects.len()));
    }
    if objects.len() > MAX_BODY_EVENTS {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("the body has more than {MAX_BODY_EVENTS} events: send them in several"),
        ));
    }
    Ok(Some(objects))
}

/// The text without a byte order mark.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn not_json(bytes: usize, error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    format!(
        "{bytes} bytes are not JSON at line {line} column {column}; not kept, as there may be \
         secrets in them"
    )
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
