//! What waits in a spool, and its text on the disk.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::source::QuarantineItem;
use crate::{Result, SealedEvent, Timestamp};

/// What waits in a [`Spool`](crate::Spool).
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are events")]
pub enum SpoolRecord {
    /// An event for the log.
    Event(SealedEvent),
    /// An item for the quarantine.
    Quarantine(QuarantineItem),
}

impl From<SealedEvent> for SpoolRecord {
    fn from(event: SealedEvent) -> Self {
        Self::Event(event)
    }
}

impl From<QuarantineItem> for SpoolRecord {
    fn from(item: QuarantineItem) -> Self {
        Self::Quarantine(item)
    }
}

/// The persisted shape of an item.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Persisted {
    v: u8,
    quarantine: PersistedItem,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PersistedItem {
    source: String,
    key: String,
    reason: String,
    detail: String,
    /// In base64, as it may be no text.
    raw: String,
    at: Timestamp,
}

pub(super) fn item_to_json(item: &QuarantineItem) -> String {
    let QuarantineItem { source, key, reason, detail, raw, at } = item.clone();
    let quarantine = PersistedItem { source, key, reason, detail, raw: STANDARD.encode(raw), at };
    serde_json::to_string(&Persisted { v: 1, quarantine }).expect("an item serialises")
}

/// Reads a record back.
pub(super) fn from_json(text: &str) -> Result<SpoolRecord> {
    match SealedEvent::from_json(text) {
        Ok(event) => Ok(SpoolRecord::Event(event)),
        Err(error) => item_from_json(text).map(SpoolRecord::Quarantine).ok_or(error),
    }
}

fn item_from_json(text: &str) -> Option<QuarantineItem> {
    let Persisted { v: 1, quarantine } = serde_json::from_str(text).ok()? else { return None };
    let PersistedItem { source, key, reason, detail, raw, at } = quarantine;
    let raw = STANDARD.decode(raw).ok()?;
    Some(QuarantineItem { source, key, reason, detail, raw, at })
}
