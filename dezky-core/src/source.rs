//! Where events come from: sources, what they pull, and whose they are.

use async_trait::async_trait;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Actor, NewEvent, NewMetadata, Outcome, PLATFORM_SOURCE, Result, Runtime, SealedEvent, Timestamp,
};

/// The most bytes kept of a quarantined item.
pub const MAX_QUARANTINE_RAW_BYTES: usize = 64 << 10;
/// The longest key of a quarantine item, in bytes.
const KEY_MAX: usize = 512;

/// A system that can be asked for its events, batch by batch.
///
/// A pump moves batches from here into a store and commits each together with
/// the cursor advance, so `pull` may be asked again for the same cursor: after a
/// failed append, a restart, or by another replica. It must then give the same
/// events with the same external ids; what it keeps in memory is only a cache.
#[async_trait]
pub trait IngestSource: Send {
    /// The source's name as it stands in the events: `ocis`, `authentik:eu2`.
    fn name(&self) -> &str;

    /// One batch after `cursor` (`None`: from the beginning).
    ///
    /// Errors are retried by the pump with back-off; a single bad event is no
    /// error but an item in [`Pull::quarantine`]. Cancel-safe.
    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull>;

    /// Input that the last pull found and could not take yet.
    fn waiting(&self) -> Option<Waiting> {
        None
    }
}

/// How much one pull may bring.
#[derive(Debug, Clone, Copy)]
pub struct PullLimits {
    /// The most events.
    pub max_events: usize,
    /// The most bytes read from the system.
    pub max_bytes: usize,
}

impl Default for PullLimits {
    /// 1,000 events, 8 MiB.
    fn default() -> Self {
        Self { max_events: 1_000, max_bytes: 8 << 20 }
    }
}

/// What one pull brought.
#[derive(Debug, Clone, Default)]
pub struct Pull {
    /// The events, in the order in which they are to stand in the log.
    pub events: Vec<PulledEvent>,
    /// What could not be mapped, kept with the raw bytes.
    pub quarantine: Vec<QuarantineItem>,
    /// How many items were passed over on purpose (known reads, duplicates of the walk).
    pub skipped: u64,
    /// Where to go on; `None` if nothing was consumed.
    pub cursor: Option<String>,
    /// Whether more is waiting right now.
    pub more: bool,
}

/// Input that a source has found and can't take yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// A short stable code: `no_newline`, `incomplete_compression`, `no_file`.
    pub reason: &'static str,
    /// How many bytes of it there are.
    pub bytes: u64,
}

/// An event and the ways to find out whose it is, best first.
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

/// A way to find out an event's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantHint {
    /// A name that is the tenant's slug if such a tenant exists; `via` says where
    /// it was found (`group`, `space_name`).
    Slug {
        /// The name.
        slug: String,
        /// Where it was found.
        via: &'static str,
    },
    /// A domain that a tenant may own.
    Domain(String),
    /// A user of a system, who may belong to one tenant.
    User {
        /// The system: `ocis`, `stalwart`, `authentik`.
        system: &'static str,
        /// The user's id there.
        id: String,
    },
}

/// Looks up tenants for inference. A user of several tenants gives none.
#[async_trait]
pub trait TenantDirectory: Send + Sync {
    /// The slug, if there is such a tenant.
    async fn by_slug(&self, slug: &str) -> Result<Option<String>>;
    /// The slug of the tenant that owns `domain`, compared in its
    /// [normal form](crate::domain::normal_form).
    async fn by_domain(&self, domain: &str) -> Result<Option<String>>;
    /// The slug of the only tenant of the user `id` of `system`.
    async fn by_user(&self, system: &str, id: &str) -> Result<Option<String>>;
    /// A number that is another one after every change of a tenant, so that who keeps
    /// answers knows when they are old; `None` if there is none, and answers may be kept
    /// for a while. Cheap: sources ask with every batch.
    async fn revision(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// Something a source sent that could not become an event, kept until somebody
/// decides about it. Identified by `(source, key)`: the same item again changes
/// nothing but its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineItem {
    /// The source.
    pub source: String,
    /// What makes the item the same when it comes again, at most 512 bytes.
    pub key: String,
    /// A short stable code: `not_json`, `unknown_type`, `line_too_long`.
    pub reason: String,
    /// One line for a person. No secrets, no personal data.
    pub detail: String,
    /// The bytes, redacted as events of the source are and bounded by the source.
    #[serde(serialize_with = "lossy_text")]
    pub raw: Vec<u8>,
    /// When it was received.
    pub at: Timestamp,
}

impl QuarantineItem {
    /// Brings the item within the bounds of the store, which would refuse the whole
    /// batch else: a key over 512 bytes becomes its digest, the other texts (source
    /// and reason 64 bytes, detail 1,024) and `raw` (64 KiB) are cut, U+0000 in texts
    /// becomes U+FFFD.
    pub fn cut_to_bounds(&mut self) {
        // A key can't be cut: two items would be one.
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

    /// What the timeline knows the item by: 40 hex digits of its source and key.
    pub fn digest(&self) -> String {
        let digest = Sha256::new()
            .chain_update(self.source.as_bytes())
            .chain_update([0])
            .chain_update(self.key.as_bytes())
            .finalize();
        hex::encode(&digest[..20])
    }

    /// The timeline's record of the item, `ingest.quarantined`, to be appended with
    /// it: the same item gives the same record, so that a repeated batch adds none.
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
