//! Event sources: pulling events and finding their tenants.

use async_trait::async_trait;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Actor, NewEvent, NewMetadata, Outcome, PLATFORM_SOURCE, Result, Runtime, SealedEvent, Timestamp,
};

/// Maximum number of bytes kept of a quarantined item.
pub const MAX_QUARANTINE_RAW_BYTES: usize = 64 << 10;
/// Maximum length of a quarantine item's key in bytes.
const KEY_MAX: usize = 512;

/// A system whose events are pulled batch by batch.
///
/// A pump commits each batch to a store together with the cursor's advance, so `pull` may be called
/// again with the same cursor: after a failed append, after a restart, or by another replica. It
/// must then return the same events with the same external ids; any state in memory is only a
/// cache.
#[async_trait]
pub trait IngestSource: Send {
    /// The source's name as used in events: `ocis`, `authentik:eu2`.
    fn name(&self) -> &str;

    /// Pulls one batch after `cursor` (`None`: from the beginning).
    ///
    /// The pump retries errors with back-off. A single bad event is not an error but an item in
    /// [`Pull::quarantine`]. Cancel-safe.
    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull>;

    /// Input that the last pull found but could not process yet.
    fn waiting(&self) -> Option<Waiting> {
        None
    }
}

/// Limits for one pull.
#[derive(Debug, Clone, Copy)]
pub struct PullLimits {
    /// Maximum number of events.
    pub max_events: usize,
    /// Maximum number of bytes read from the system.
    pub max_bytes: usize,
}

impl Default for PullLimits {
    /// 1,000 events, 8 MiB.
    fn default() -> Self {
        Self { max_events: 1_000, max_bytes: 8 << 20 }
    }
}

/// The result of one pull.
#[derive(Debug, Clone, Default)]
pub struct Pull {
    /// The events, in the order in which they are to be appended.
    pub events: Vec<PulledEvent>,
    /// Items that could not be mapped, with their raw bytes.
    pub quarantine: Vec<QuarantineItem>,
    /// The number of items skipped on purpose (known reads, duplicates of the scan).
    pub skipped: u64,
    /// The cursor to continue from; `None` if nothing was consumed.
    pub cursor: Option<String>,
    /// Whether more events are available right now.
    pub more: bool,
}

/// Input that a source has found but can't process yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// A short stable code: `no_newline`, `incomplete_compression`, `no_file`.
    pub reason: &'static str,
    /// The number of bytes.
    pub bytes: u64,
}

/// An event with hints for finding its tenant, best first.
#[derive(Debug, Clone)]
pub struct PulledEvent {
    /// The mapped event.
    pub event: NewEvent,
    /// Candidates for its tenant.
    pub tenant: Vec<TenantHint>,
}

impl From<NewEvent> for PulledEvent {
    fn from(event: NewEvent) -> Self {
        Self { event, tenant: Vec::new() }
    }
}

/// A hint for finding an event's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantHint {
    /// A name that is the tenant's slug if such a tenant exists. `via` states where it was found
    /// (`group`, `space_name`).
    Slug {
        /// The name.
        slug: String,
        /// Where it was found.
        via: &'static str,
    },
    /// A domain that a tenant may own.
    Domain(String),
    /// A user of a system, who may belong to exactly one tenant.
    User {
        /// The system: `ocis`, `stalwart`, `authentik`.
        system: &'static str,
        /// The user's id there.
        id: String,
    },
}

/// Looks up tenants for events. A user of several tenants yields none.
#[async_trait]
pub trait TenantDirectory: Send + Sync {
    /// Returns the slug if such a tenant exists.
    async fn by_slug(&self, slug: &str) -> Result<Option<String>>;
    /// Returns the slug of the tenant that owns `domain`, compared in its [normal
    /// form](crate::domain::normal_form).
    async fn by_domain(&self, domain: &str) -> Result<Option<String>>;
    /// Returns the slug of the only tenant of the user `id` of `system`.
    async fn by_user(&self, system: &str, id: &str) -> Result<Option<String>>;
    /// A number that changes with every change of a tenant and so tells caches when to drop their
    /// answers; `None` if the directory has none, in which case answers may be cached for a while.
    /// Must be cheap: sources call it for every batch.
    async fn revision(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// An item from a source that could not become an event, stored until an operator decides about it.
/// Identified by `(source, key)`: receiving the same item again changes nothing but its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineItem {
    /// The source.
    pub source: String,
    /// The item's identity across repeated deliveries, at most 512 bytes.
    pub key: String,
    /// A short stable code: `not_json`, `unknown_type`, `line_too_long`.
    pub reason: String,
    /// One line for a person, without secrets and personal data.
    pub detail: String,
    /// The raw bytes, redacted like the source's events and bounded by the source.
    #[serde(serialize_with = "lossy_text")]
    pub raw: Vec<u8>,
    /// Time of receipt.
    pub at: Timestamp,
}

impl QuarantineItem {
    /// Brings the item within the store's bounds, which would otherwise reject the whole batch: a
    /// key over 512 bytes is replaced by its digest, the other texts (source and reason 64 bytes,
    /// detail 1,024) and `raw` (64 KiB) are truncated, and U+0000 in texts becomes U+FFFD.
    pub fn cut_to_bounds(&mut self) {
        // A key can't be truncated: two items could become one.
        if self.key.len() > KEY_MAX || self.key.contains('\0') {
            self.key = format!("key:{}", hex::encode(Sha256::digest(&self.key)));
        }
        let texts = [(&mut self.source, 64), (&mut self.reason, 64), (&mut self.detail, 1024)];
        for (text, max) in texts {
            if text.contains('\0') {
                *text = text.replace('\0', "\u{fffd}");
            }
            text.truncate(text.floor_char_boundary(max));
        }
        if self.raw.len() > MAX_QUARANTINE_RAW_BYTES {
            let is_inside = |at: usize| self.raw[at] & 0xc0 == 0x80;
            let end = (MAX_QUARANTINE_RAW_BYTES - 3..=MAX_QUARANTINE_RAW_BYTES)
                .rev()
                .find(|at| !is_inside(*at))
                .unwrap_or(MAX_QUARANTINE_RAW_BYTES);
            self.raw.truncate(end);
        }
    }

    /// The item's identifier on the timeline: 40 hex digits of the digest of source and key.
    pub fn digest(&self) -> String {
        let digest = Sha256::new()
            .chain_update(self.source.as_bytes())
            .chain_update([0])
            .chain_update(self.key.as_bytes())
            .finalize();
        hex::encode(&digest[..20])
    }

    /// The timeline's event for the item, `ingest.quarantined`, to be appended together with it.
    /// The same item gives the same external id, so a repeated batch adds no second event.
    pub fn notice(&self, runtime: &dyn Runtime) -> SealedEvent {
        let mut metadata = NewMetadata::default();
        metadata.annotate("reason", self.reason.clone());
        metadata.annotate("detail", self.detail.clone());
        metadata.annotate("key", self.key.clone());
        let mut event = NewEvent {
            at: Some(self.at),
            outcome: Outcome::Failure,
            resource_type: Some("source".into()),
            resource_id: Some(self.source.clone()),
            source: PLATFORM_SOURCE.into(),
            external_id: Some(format!("quarantine:{}", self.digest())),
            metadata,
            ..NewEvent::new("ingest.quarantined", Actor::system())
        };
        event.cut_to_bounds();
        event.seal(runtime)
    }
}

fn lossy_text<S: serde::Serializer>(raw: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(raw))
}
