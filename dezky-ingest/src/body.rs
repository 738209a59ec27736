//! The decoded body of a webhook: its events, and its malformed elements as quarantine items.

use dezky_core::json::NotJson;
use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{PulledEvent, QuarantineItem};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// The number of malformed elements of a body that get an item each.
pub(crate) const MAX_MALFORMED: usize = 100;
/// The reason of the items for the elements beyond those.
pub(crate) const TOO_MANY: &str = "too_many_odd";
/// The maximum size in bytes of an item with several elements. An item that an earlier version
/// truncated is longer.
pub(crate) const REST_MAX_BYTES: usize = MAX_QUARANTINE_RAW_BYTES - 8;
/// The size from which an item of an earlier version may have been truncated.
const TRUNCATED_MIN_BYTES: usize = MAX_QUARANTINE_RAW_BYTES - 3;

/// The decoded content of a body.
#[derive(Debug, Clone, Default)]
pub struct DecodedBody {
    /// The events in the order of the body, each with an external id. Two with the same id are the
    /// same event.
    pub events: Vec<PulledEvent>,
    /// Quarantine items, without secrets.
    pub quarantine: Vec<QuarantineItem>,
    /// The number of objects that the mapping skips on purpose; Stalwart's decoder skips none.
    pub skipped: u64,
}

/// The detail of text that is not JSON. It can't be redacted, so nothing of it is kept.
pub(crate) fn not_json(bytes: usize, error: &NotJson) -> String {
    let (line, column) = (error.line(), error.column());
    format!(
        "{bytes} bytes are not JSON at line {line} column {column}; not kept, as there may be \
         secrets in them"
    )
}

/// The kept text of one malformed element, or of several concatenated ones, as a list.
pub(crate) fn kept_list(item: &QuarantineItem) -> std::result::Result<String, String> {
    if item.reason == TOO_MANY && item.raw.len() >= TRUNCATED_MIN_BYTES {
        // The text may have been truncated between two elements.
        return Err("not all of its elements were kept".into());
    }
    let text = String::from_utf8_lossy(&item.raw);
    let elements = serde_json::Deserializer::from_str(&text).into_iter::<&RawValue>();
    let elements: std::result::Result<Vec<_>, _> =
        elements.map(|raw| raw.map(RawValue::get)).collect();
    Ok(format!("[{}]", elements.map_err(|_| "still not JSON".to_owned())?.join(",")))
}

/// The malformed elements of a body. Those beyond the first hundred are packed into as few
/// items as possible, so that such a body neither floods the log nor loses anything.
#[derive(Default)]
pub(crate) struct MalformedItems {
    items: Vec<QuarantineItem>,
    more: Vec<Pack>,
}

/// Several malformed elements in one item.
#[derive(Default)]
struct Pack {
    count: usize,
    /// Hash of their keys, which are stable across retries.
    keys: Sha256,
    /// One line per element.
    raw: Vec<u8>,
}

impl MalformedItems {
    pub(crate) fn push(&mut self, item: QuarantineItem) {
        if self.items.len() < MAX_MALFORMED {
            self.items.push(item);
            return;
        }
        let is_full = |last: &Pack| last.raw.len() + item.raw.len() >= REST_MAX_BYTES;
        if self.more.last().is_none_or(is_full) {
            self.more.push(Pack::default());
        }
        let Some(pack) = self.more.last_mut() else { return };
        pack.count += 1;
        pack.keys.update(&item.key);
        if !pack.raw.is_empty() {
            pack.raw.push(b'\n');
        }
        pack.raw.extend(item.raw);
    }

    /// Returns the items; `events` is the number of events in the body.
    pub(crate) fn into_items(mut self, events: usize) -> Vec<QuarantineItem> {
        let Some(first) = self.items.first() else { return self.items };
        let (source, at) = (first.source.clone(), first.at);
        self.items.extend(self.more.into_iter().map(|pack| QuarantineItem {
            source: source.clone(),
            key: format!("more:{}", hex::encode(pack.keys.finalize())),
            reason: TOO_MANY.into(),
            detail: format!("{} more of {events} events can't be read", pack.count),
            raw: pack.raw,
            at,
        }));
        self.items
    }
}
