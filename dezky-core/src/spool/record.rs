//! The records of a spool, and their persisted form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::source::{QuarantineItem, TenantHint};
use crate::{Result, SealedEvent, Timestamp, UnresolvedEvent};

/// A record of a [`Spool`](crate::Spool).
#[derive(Debug, Clone, PartialEq)]
pub enum SpoolRecord {
    /// An event for the log.
    Event(SealedEvent),
    /// An event for the log whose tenant is looked up when it leaves the spool.
    Unresolved(UnresolvedEvent),
    /// An item for the quarantine.
    Quarantine(QuarantineItem),
}

impl From<SealedEvent> for SpoolRecord {
    fn from(event: SealedEvent) -> Self {
        Self::Event(event)
    }
}

impl From<UnresolvedEvent> for SpoolRecord {
    fn from(event: UnresolvedEvent) -> Self {
        Self::Unresolved(event)
    }
}

impl From<QuarantineItem> for SpoolRecord {
    fn from(item: QuarantineItem) -> Self {
        Self::Quarantine(item)
    }
}

/// The persisted form of an event with its tenant hints.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PersistedEvent {
    v: u8,
    /// The output of [`SealedEvent::to_json`].
    unresolved: Box<RawValue>,
    tenant: Vec<PersistedHint>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum PersistedHint {
    Slug { slug: String, via: String },
    Domain(String),
    User { system: String, id: String },
}

/// The known places where hints are found.
const VIAS: [&str; 4] = ["group", "mapping", "space_map", "space_name"];
/// The known systems of users in hints.
const SYSTEMS: [&str; 3] = ["authentik", "ocis", "stalwart"];

impl From<&TenantHint> for PersistedHint {
    fn from(hint: &TenantHint) -> Self {
        match hint.clone() {
            TenantHint::Slug { slug, via } => Self::Slug { slug, via: via.into() },
            TenantHint::Domain(domain) => Self::Domain(domain),
            TenantHint::User { system, id } => Self::User { system: system.into(), id },
        }
    }
}

impl PersistedHint {
    /// The hint; `None` for a user of an unknown system, for whom the directory has no answer.
    fn into_hint(self) -> Option<TenantHint> {
        let known =
            |names: &[&'static str], name: &str| names.iter().copied().find(|known| *known == name);
        Some(match self {
            Self::Slug { slug, via } => {
                TenantHint::Slug { slug, via: known(&VIAS, &via).unwrap_or("spool") }
            }
            Self::Domain(domain) => TenantHint::Domain(domain),
            Self::User { system, id } => TenantHint::User { system: known(&SYSTEMS, &system)?, id },
        })
    }
}

pub(super) fn unresolved_to_json(event: &UnresolvedEvent) -> String {
    let persisted = PersistedEvent {
        v: 1,
        unresolved: RawValue::from_string(event.event.to_json()).expect("it is JSON"),
        tenant: event.tenant.iter().map(PersistedHint::from).collect(),
    };
    serde_json::to_string(&persisted).expect("an event serialises")
}

fn unresolved_from_json(text: &str) -> Option<UnresolvedEvent> {
    let PersistedEvent { v: 1, unresolved, tenant } = serde_json::from_str(text).ok()? else {
        return None;
    };
    let event = SealedEvent::from_json(unresolved.get()).ok()?;
    let tenant = tenant.into_iter().filter_map(PersistedHint::into_hint).collect();
    Some(UnresolvedEvent { event, tenant })
}

/// The persisted form of an item.
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
    /// In base64, because it may not be text.
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
        Err(error) => unresolved_from_json(text)
            .map(SpoolRecord::Unresolved)
            .or_else(|| item_from_json(text).map(SpoolRecord::Quarantine))
            .ok_or(error),
    }
}

fn item_from_json(text: &str) -> Option<QuarantineItem> {
    let Persisted { v: 1, quarantine } = serde_json::from_str(text).ok()? else { return None };
    let PersistedItem { source, key, reason, detail, raw, at } = quarantine;
    let raw = STANDARD.decode(raw).ok()?;
    Some(QuarantineItem { source, key, reason, detail, raw, at })
}
