//! Stalwart's webhooks: from a request's body to audit events.
//!
//! Covers every release from 0.8.2, the first that has webhooks, to 0.16.18 and the v1.0.0 branch,
//! and other senders that use the same envelope. Pure: the receiver [verifies](crate::signature)
//! the body before, and acknowledges it after the events are durable.

mod identity;
mod map;
mod proto;
mod receiver;
mod redact;
mod verbs;

use std::borrow::Cow;
use std::iter::Enumerate;
use std::net::IpAddr;
use std::vec::IntoIter;

use dezky_core::canonical::canonicalize;
use dezky_core::json::{self, Doc, Value};
use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{PulledEvent, QuarantineItem, Timestamp};
use sha2::{Digest as _, Sha256};

use self::proto::{Odd, WireEvent};
pub use self::receiver::StalwartReceiver;
pub use crate::body::DecodedBody;
use crate::body::{MalformedItems, kept_list, not_json};
use crate::keys::ContentKeys;
use crate::secrets::clean_text;

/// The source name of the first instance; a further one is `stalwart:{instance}`.
pub const SOURCE: &str = "stalwart";

/// The maximum number of events in a body, unless a receiver sets another: more than 16 MiB of the
/// smallest that Stalwart sends.
pub const MAX_BODY_EVENTS: usize = 131_072;

/// The longest external id that the log accepts, in bytes.
const EXTERNAL_ID_MAX: usize = 512;

/// The reason of a body that can't be parsed.
const NOT_JSON: &str = "not_json";

/// The reason of a body without events.
const NO_EVENTS: &str = "no_events";

/// Decodes the body of a request whose signature was verified.
///
/// Never fails, because a refused request would be retried as a whole, block all later ones and
/// finally be lost. A body that is not JSON, or has no events, is one quarantine item (`not_json`,
/// `no_events`). So is an element that is not an object, or has no type (`not_an_object`,
/// `no_type`), without affecting the others; those beyond the first hundred are packed into as few
/// items as possible (`too_many_odd`). Nothing else is refused.
///
/// - Secrets (`contents` at any depth; `id` and `details` of an `auth.error`) are removed first:
///   events, keys and quarantined text hold none. From an element without a type, more is removed;
///   of text that is not JSON, only the length is kept, and the receiver identifies it by a digest
///   that is keyed with its secret. Values under a secret's name, or in an address (`?token=…`),
///   are hidden in stored text, as for all sources; content keys are made before that, so that they
///   do not change with that rule.
/// - `external_id` is the event's `id` if that identifies it. If it is the seconds of `createdAt`
///   followed by digits (Stalwart from 0.9 on), missing, or over 512 bytes long, it is the content
///   key `sw1:…`, which is the same at every retry. `source` is its scope.
/// - `at` is `createdAt`. Without a plausible one it is `received_at`, noted as
///   `_dezky.timeSource`, `timeProblem` and `rawAt`.
/// - The metadata is the event's `data`; `_dezky` holds `rawAction`, `rawId`, `envelope` (fields
///   alongside the data), `ipFrom: "request"` (the event has no address, so it is `client_ip`),
///   `cause` (of a ban), `result` (the verdict of `spam.classify`), `kind` and `severity`
///   (`no_credentials`, `unsigned`: not hostile).
pub fn decode(
    source: &str,
    body: &[u8],
    client_ip: Option<IpAddr>,
    received_at: Timestamp,
) -> DecodedBody {
    let text = text_of(body);
    let reader = Reader { source, client_ip, received_at };
    match reader.read(&text, body.len(), usize::MAX) {
        Ok(Body::Events(mut events)) => DecodedBody {
            events: events.by_ref().collect(),
            quarantine: events.into_items(),
            ..DecodedBody::default()
        },
        Ok(Body::Odd(item)) => DecodedBody { quarantine: vec![item], ..DecodedBody::default() },
        // Can't fail: no body has more than `usize::MAX` events.
        Err(_) => DecodedBody::default(),
    }
}

/// The action of an event of this type, by its `data` (JSON text) if the type alone does not decide.
/// `None` if the type has no letter or digit; total otherwise. Spellings of a type don't matter.
///
/// ```
/// use dezky_ingest::stalwart::action;
/// assert_eq!(action("auth.failed", "{}").unwrap(), "stalwart.auth_failed");
/// assert_eq!(action("SecurityAuthenticationBan", "{}").unwrap(), "stalwart.auth_banned");
/// assert_eq!(action("spam.classify", r#"{"result":"reject"}"#).unwrap(), "stalwart.spam_detected");
/// assert_eq!(action("new.type", "{}").unwrap(), "stalwart.new_type");
/// assert_eq!(action("—", "{}"), None);
/// ```
pub fn action(kind: &str, data: &str) -> Option<String> {
    let normalised = verbs::normalise(kind);
    let data = Doc::parse(data).ok();
    let verb = verbs::verb(&normalised, data.as_ref().map(Doc::root));
    (!normalised.is_empty()).then(|| verbs::action(&verb))
}

/// The text of a body. Bytes that are not UTF-8 become U+FFFD, as in normal form, so that a bad
/// byte does not affect other events.
fn text_of(body: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(body)
}

/// The context of a request.
#[derive(Clone, Copy)]
struct Reader<'a> {
    source: &'a str,
    client_ip: Option<IpAddr>,
    received_at: Timestamp,
}

/// The result of reading a body.
enum Body<'a> {
    Events(Box<Events<'a>>),
    /// All of it goes to the quarantine.
    Odd(QuarantineItem),
}

impl<'a> Reader<'a> {
    /// Finds the events of a body of `size` bytes; decodes none of them yet. An error holds their
    /// number, if there are more than `max`.
    fn read(self, text: &'a str, size: usize, max: usize) -> Result<Body<'a>, usize> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if let Err(error) = json::check(text) {
            let detail = not_json(size, &error);
            // Text that can't be parsed can't be redacted, so only its length is kept: even a hash
            // would let a secret be guessed. The receiver adds a keyed one.
            return Ok(Body::Odd(self.item(NOT_JSON, format!("{NOT_JSON}:{size}"), detail, "")));
        }
        let elements = proto::events(text, max)?;
        if elements.is_empty() {
            let detail = format!("{size} bytes of JSON have no events");
            let clean = redact::redact(&Doc::of_checked(text)).into_owned();
            let raw = redact::redact_untyped(&Doc::of_checked(&clean)).into_owned();
            return Ok(Body::Odd(self.item(NO_EVENTS, sha256(&raw), detail, &clean_text(&raw))));
        }
        let count = elements.len();
        let (keys, odd) = (identity::content_keys(self.source), MalformedItems::default());
        let elements = elements.into_iter().enumerate();
        Ok(Body::Events(Box::new(Events { reader: self, elements, count, keys, odd })))
    }

    fn item(self, reason: &str, key: String, detail: String, raw: &str) -> QuarantineItem {
        QuarantineItem {
            source: self.source.to_owned(),
            key,
            reason: reason.to_owned(),
            detail,
            raw: raw[..raw.floor_char_boundary(MAX_QUARANTINE_RAW_BYTES)].into(),
            at: self.received_at,
        }
    }
}

/// The events of a body, decoded on demand; malformed elements are collected.
struct Events<'a> {
    reader: Reader<'a>,
    elements: Enumerate<IntoIter<&'a str>>,
    count: usize,
    keys: ContentKeys<'a>,
    odd: MalformedItems,
}

impl Iterator for Events<'_> {
    type Item = PulledEvent;

    fn next(&mut self) -> Option<PulledEvent> {
        loop {
            let (index, element) = self.elements.next()?;
            // From here on, the text has no secrets. Whether a member is one depends on its element
            // alone.
            let doc = Doc::of_checked(element);
            let clean = redact::redact(&doc);
            let again;
            // Most elements have no secrets and are not parsed again.
            let doc = match &clean {
                Cow::Borrowed(_) => &doc,
                Cow::Owned(text) => {
                    again = Doc::of_checked(text);
                    &again
                }
            };
            let (reason, what) = match WireEvent::read(doc.root()) {
                Ok(event) => {
                    let external_id = external_id(&event, &mut self.keys);
                    let Reader { source, client_ip, received_at } = self.reader;
                    return Some(map::map(source, &event, external_id, client_ip, received_at));
                }
                Err(Odd::NotAnObject) => ("not_an_object", "is not an object"),
                Err(Odd::NoType) => ("no_type", "has no usable type"),
            };
            let detail = format!("event {} of {} {what}", index + 1, self.count);
            let (key, raw) = odd_event(doc.root());
            self.odd.push(self.reader.item(reason, key, detail, &raw));
        }
    }
}

impl Events<'_> {
    /// The quarantine items, once all events are decoded.
    fn into_items(self) -> Vec<QuarantineItem> {
        self.odd.into_items(self.count)
    }
}

/// The text of an event of Stalwart's that another program stored, without its secrets; more is
/// removed if it has no type.
pub(crate) fn without_secrets(text: &str, is_typed: bool) -> String {
    let clean = Doc::parse(text).map(|doc| {
        let clean = if is_typed { redact::redact(&doc) } else { redact::redact_untyped(&doc) };
        clean.into_owned()
    });
    clean.map(|clean| clean_text(&clean).into_owned()).unwrap_or_default()
}

/// Decodes a quarantined element, several of them or a whole body again. Fails unless all are
/// events now.
pub(crate) fn redecode(item: &QuarantineItem) -> Result<Vec<PulledEvent>, String> {
    let body = if item.reason == NO_EVENTS {
        String::from_utf8_lossy(&item.raw).into_owned()
    } else {
        kept_list(item)?
    };
    let DecodedBody { events, quarantine, .. } =
        decode(&item.source, body.as_bytes(), None, item.at);
    match quarantine.first() {
        Some(odd) => Err(format!("still {}: {}", odd.reason, odd.detail)),
        None => Ok(events),
    }
}

fn external_id(event: &WireEvent<'_>, keys: &mut ContentKeys<'_>) -> String {
    let own = event.id.as_ref().filter(|id| identity::identifies(id, event.at));
    if let Some(id) = own.filter(|id| id.len() <= EXTERNAL_ID_MAX) {
        return id.clone().into_owned();
    }
    // Stalwart sends nothing alongside the data. If another sender does, it is content as well:
    // without it, different events would be one.
    let content = match (event.other_fields(), event.data) {
        // Too long to be the external id, but part of the identity.
        _ if own.is_some() => canonicalize(&event.all_but_kind().unwrap_or_default()),
        (None, Some(data)) => canonicalize(data.raw()),
        (None, None) => Ok("{}".into()),
        (Some(_), _) => canonicalize(&event.body().unwrap_or_default()),
    };
    // Part of a parsed document, so it is JSON.
    keys.key(&[&event.created_at, &event.kind, &content.unwrap_or_default()])
}

/// The key and text of the quarantine item for something that is not an event.
fn odd_event(value: Value<'_>) -> (String, String) {
    // Its type is unknown, so its data may have to be removed.
    let parsed = Doc::parse(value.raw());
    let raw = parsed.map(|doc| redact::redact_untyped(&doc).into_owned()).unwrap_or_default();
    let content = Doc::parse(&raw).ok().and_then(|doc| {
        // If the id does not identify the event, a retry has a new one.
        let id = proto::id(doc.root())?;
        let (_, at) = proto::created_at(doc.root());
        if identity::identifies(&id, at) {
            return None;
        }
        proto::members_but(doc.root(), &["id"])
    });
    let clean = clean_text(&raw).into_owned();
    (sha256(content.as_deref().unwrap_or(&raw)), clean)
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests;
