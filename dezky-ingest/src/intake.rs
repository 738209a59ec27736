//! The last step of every way in: find the tenant, seal, append.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use dezky_core::source::{PulledEvent, QuarantineItem, TenantDirectory, TenantHint};
use dezky_core::store::{AppendOptions, AuditStore, ReceiptStatus};
use dezky_core::{
    Actor, ErrorKind, Invalid, NewEvent, NewMetadata, Outcome, PLATFORM_SOURCE, Result, Runtime,
    SealedEvent,
};

/// The longest key of a quarantine item, in bytes.
const KEY_MAX: usize = 512;

/// The annotation that says how the tenant was found.
pub(crate) const TENANT_BY: &str = "tenantBy";

/// The annotation of an event that its source found late.
pub(crate) const LATE_BY: &str = "lateBySeconds";

/// The most bytes that are kept of what was refused.
const RAW_MAX: usize = 64 << 10;

/// Takes mapped events into the log: pumps and webhooks share it.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    directory: Option<Arc<dyn TenantDirectory>>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Events that are new in the log, without our own records about the batch.
    pub stored: usize,
    /// Events that were there already.
    pub duplicates: usize,
    /// Of these, those that say something else than the one that is there.
    pub conflicts: usize,
    /// Items that went to the quarantine, or were there already.
    pub quarantined: usize,
    /// Of these, the new ones.
    pub new_quarantined: usize,
    /// Of the stored ones, those that their source found later than it looks for
    /// what is late (`_dezky.lateBySeconds`).
    pub late: usize,
}

impl Taken {
    /// Everything of the batch that is now kept: in the log or in the quarantine.
    pub fn received(&self) -> usize {
        self.stored + self.duplicates + self.quarantined
    }
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.quarantined += other.quarantined;
        self.new_quarantined += other.new_quarantined;
        self.late += other.late;
    }
}

/// What one transaction takes at most of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartBounds {
    pub(crate) events: usize,
    pub(crate) items: usize,
    /// Of metadata and of raw bytes together.
    pub(crate) bytes: usize,
}

/// A part of what came at once.
#[derive(Default)]
pub(crate) struct Part {
    pub(crate) events: Vec<PulledEvent>,
    pub(crate) items: Vec<QuarantineItem>,
}

/// What came at once, in parts within the bounds, each of one thing at least.
/// Parts may be committed one by one where what comes again adds nothing.
pub(crate) struct Parts {
    events: Peekable<IntoIter<PulledEvent>>,
    items: Peekable<IntoIter<QuarantineItem>>,
    bounds: PartBounds,
}

impl Parts {
    pub(crate) fn new(
        events: Vec<PulledEvent>,
        items: Vec<QuarantineItem>,
        bounds: PartBounds,
    ) -> Self {
        Self { events: events.into_iter().peekable(), items: items.into_iter().peekable(), bounds }
    }

    pub(crate) fn is_empty(&mut self) -> bool {
        self.events.peek().is_none() && self.items.peek().is_none()
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let (mut part, mut bytes) = (Part::default(), 0);
        let PartBounds { events: max_events, items: max_items, bytes: max_bytes } = self.bounds;
        let mut fits = |more: usize| {
            let is_first = bytes == 0;
            bytes += more.max(1);
            is_first || bytes <= max_bytes
        };
        let of_event = |e: &PulledEvent| e.event.metadata.source().map_or(0, str::len);
        while part.events.len() < max_events.max(1)
            && let Some(event) = self.events.next_if(|event| fits(of_event(event)))
        {
            part.events.push(event);
        }
        while part.items.len() < max_items.max(1)
            && let Some(item) = self.items.next_if(|item| fits(item.raw.len()))
        {
            part.items.push(item);
        }
        (!part.events.is_empty() || !part.items.is_empty()).then_some(part)
    }
}

impl Intake {
    /// Appends to `store`; tenants are not inferred until there is a directory.
    pub fn new(store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        Self { store, runtime, directory: None }
    }

    /// Infers tenants by `directory`.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<dyn TenantDirectory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Where events go.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.store
    }

    /// The runtime.
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// Appends a batch with what must commit with it.
    ///
    /// An event that breaks a bound of the contract goes to the quarantine, the
    /// rest goes on. What an item of the quarantine has over its bounds is cut.
    /// The directory is asked once for each hint, and not at all after it failed;
    /// nor about an event whose source has set `_dezky.tenantBy` itself. Every item
    /// of the quarantine gets an `ingest.quarantined` event of its own on the
    /// timeline. Idempotent: the same batch again gives duplicates.
    ///
    /// # Errors
    /// Those of [`AuditStore::append`]; then nothing of the batch is kept.
    pub async fn take(
        &self,
        events: Vec<PulledEvent>,
        quarantine: Vec<QuarantineItem>,
        mut options: AppendOptions,
    ) -> Result<Taken> {
        let mut sealed = Vec::with_capacity(events.len());
        options.quarantine.extend(quarantine);
        let mut is_late = Vec::with_capacity(events.len());
        let mut tenants = self.directory.as_deref().map(Tenants::new);
        for mut pulled in events {
            if let Some(tenants) = &mut tenants {
                tenants.find_missing(&mut pulled).await;
            }
            let late = pulled.event.metadata.annotation(LATE_BY).is_some();
            let event = pulled.event.seal(&*self.runtime);
            match event.validate() {
                Ok(()) => {
                    sealed.push(event);
                    is_late.push(late);
                }
                Err(invalid) => options.quarantine.push(refused(&event, &invalid)),
            }
        }
        options.quarantine.iter_mut().for_each(fit);
        let of_source = sealed.len();
        let quarantined = options.quarantine.len();
        sealed.extend(options.quarantine.iter().map(|item| self.notice(item)));
        let mut reasons = BTreeMap::new();
        for item in &options.quarantine {
            *reasons.entry((item.source.clone(), item.reason.clone())).or_insert(0_usize) += 1;
        }
        let appended = self.store.append(sealed, options).await?;
        if appended.new_quarantine > 0 {
            // Of which reason the new ones are only the store knows.
            let new = appended.new_quarantine;
            for ((source, reason), items) in reasons {
                tracing::warn!(source, reason, items, new, "items were quarantined");
            }
        }
        let receipts = &appended.receipts[..of_source];
        let count = |status| receipts.iter().filter(|r| r.status == status).count();
        let conflicts = count(ReceiptStatus::Conflict);
        let stored = count(ReceiptStatus::Appended);
        let late = receipts.iter().zip(is_late);
        let late = late.filter(|(r, late)| *late && r.status == ReceiptStatus::Appended).count();
        Ok(Taken {
            stored,
            duplicates: of_source - stored,
            conflicts,
            quarantined,
            new_quarantined: appended.new_quarantine,
            late,
        })
    }

    /// Finds an event's tenant and seals it.
    pub(crate) async fn seal(&self, mut pulled: PulledEvent) -> SealedEvent {
        if let Some(directory) = self.directory.as_deref() {
            Tenants::new(directory).find_missing(&mut pulled).await;
        }
        pulled.event.seal(&*self.runtime)
    }

    /// The timeline's record of a quarantined item: the same item gives the same
    /// record, so a repeated batch adds none.
    fn notice(&self, item: &QuarantineItem) -> SealedEvent {
        let mut metadata = NewMetadata::default();
        metadata.annotate("reason", item.reason.clone());
        metadata.annotate("detail", item.detail.clone());
        metadata.annotate("key", item.key.clone());
        let mut event = NewEvent {
            at: Some(item.at),
            outcome: Outcome::Failure,
            resource_type: Some("source".into()),
            resource_id: Some(item.source.clone()),
            source: PLATFORM_SOURCE.into(),
            external_id: Some(notice_id(item)),
            metadata,
            ..NewEvent::new("ingest.quarantined", Actor::system())
        };
        event.cut_to_bounds();
        event.seal(&*self.runtime)
    }
}

/// Finds the tenants of one batch, each question asked once.
struct Tenants<'d> {
    directory: &'d dyn TenantDirectory,
    /// By kind or system, and by what was asked.
    answers: HashMap<(&'static str, String), Option<String>>,
    /// After an error no more is asked: a directory that is down would be waited
    /// for once for every event.
    failed: bool,
}

impl<'d> Tenants<'d> {
    fn new(directory: &'d dyn TenantDirectory) -> Self {
        Self { directory, answers: HashMap::new(), failed: false }
    }

    /// Finds the tenant of an event that has none.
    async fn find_missing(&mut self, pulled: &mut PulledEvent) {
        let NewEvent { tenant_slug, metadata, .. } = &pulled.event;
        // A source that could not find out has said so.
        if tenant_slug.is_none() && metadata.annotation(TENANT_BY).is_none() {
            self.find(pulled).await;
        }
    }

    /// Asks hint by hint; the event says how its tenant was found. A directory
    /// that can't answer delays nothing: the event lands unresolved.
    async fn find(&mut self, pulled: &mut PulledEvent) {
        let PulledEvent { event, tenant } = pulled;
        for hint in &*tenant {
            let via = match hint {
                TenantHint::Slug { via, .. } => *via,
                TenantHint::Domain(_) => "domain",
                TenantHint::User { .. } => "user",
            };
            match self.ask(hint).await {
                Some(Some(slug)) => {
                    event.tenant_slug = Some(slug);
                    event.metadata.annotate(TENANT_BY, via);
                    return;
                }
                Some(None) => {}
                None => {
                    event.metadata.annotate(TENANT_BY, "unresolved");
                    return;
                }
            }
        }
        event.metadata.annotate(TENANT_BY, "none");
    }

    /// The answer to a hint; `None` if there is none to be had.
    async fn ask(&mut self, hint: &TenantHint) -> Option<Option<String>> {
        let question = match hint {
            TenantHint::Slug { slug, .. } => ("slug", slug.clone()),
            TenantHint::Domain(domain) => ("domain", domain.clone()),
            TenantHint::User { system, id } => (*system, format!("user {id}")),
        };
        if let Some(answer) = self.answers.get(&question) {
            return Some(answer.clone());
        }
        if self.failed {
            return None;
        }
        let answer = match hint {
            TenantHint::Slug { slug, .. } => self.directory.by_slug(slug).await,
            TenantHint::Domain(domain) => self.directory.by_domain(domain).await,
            TenantHint::User { system, id } => self.directory.by_user(system, id).await,
        };
        match answer {
            Ok(answer) => {
                // What can't be a slug would be refused, and the event with it.
                let answer = answer.filter(|slug| (1..=63).contains(&slug.len()));
                self.answers.insert(question, answer.clone());
                Some(answer)
            }
            Err(error) => {
                tracing::warn!(code = error.code(), "the tenant directory does not answer");
                self.failed = true;
                None
            }
        }
    }
}

/// Brings an item within the bounds of the store, which would refuse the whole
/// batch else.
fn fit(item: &mut QuarantineItem) {
    use sha2::{Digest, Sha256};
    // A key can't be cut: two items would be one.
    if item.key.len() > KEY_MAX || item.key.contains('\0') {
        item.key = format!("key:{}", hex::encode(Sha256::digest(&item.key)));
    }
    for (text, max) in [(&mut item.source, 64), (&mut item.reason, 64), (&mut item.detail, 1024)] {
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
        text.truncate(text.floor_char_boundary(max));
    }
    if item.raw.len() > RAW_MAX {
        let is_inside = |at: usize| item.raw[at] & 0xc0 == 0x80;
        let end = (RAW_MAX - 3..=RAW_MAX).rev().find(|at| !is_inside(*at)).unwrap_or(RAW_MAX);
        item.raw.truncate(end);
    }
}

fn notice_id(item: &QuarantineItem) -> String {
    format!("quarantine:{}", identity(item))
}

/// What the timeline knows an item by: of its source and its key.
pub(crate) fn identity(item: &QuarantineItem) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new()
        .chain_update(item.source.as_bytes())
        .chain_update([0])
        .chain_update(item.key.as_bytes())
        .finalize();
    hex::encode(&digest[..20])
}

/// An event that the contract refuses, kept as it was mapped. Maps redact before
/// they map, so what is kept holds no secret.
fn refused(sealed: &SealedEvent, invalid: &Invalid) -> QuarantineItem {
    use sha2::{Digest, Sha256};
    let event = sealed.event();
    let identity = event.external_id.clone().unwrap_or_else(|| {
        // All that it says, without what sealing made.
        let mut said = serde_json::to_value(event).unwrap_or_default();
        if let Some(fields) = said.as_object_mut() {
            fields.retain(|name, _| name != "id" && name != "receivedAt");
        }
        said.to_string()
    });
    QuarantineItem {
        source: event.source.clone(),
        key: format!("event:{}", hex::encode(Sha256::digest(identity.as_bytes()))),
        reason: ErrorKind::EventInvalid.code().into(),
        detail: invalid.to_string(),
        raw: serde_json::to_vec(event).unwrap_or_default(),
        at: event.at,
    }
}
