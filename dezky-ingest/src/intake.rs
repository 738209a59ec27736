//! The last step of every way in: find the tenant, seal, append.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::vec::IntoIter;

use dezky_core::source::{PulledEvent, QuarantineItem, TenantDirectory, TenantHint};
use dezky_core::store::{AppendOptions, Appended, AuditStore, ReceiptStatus};
use dezky_core::{AuditLog, Error, ErrorKind, Kept, Result, Runtime, SealedEvent, Timestamp};
use futures_util::future::{Either, select};

use crate::cut;

/// The annotation that says how the tenant was found.
pub(crate) const TENANT_BY: &str = "tenantBy";

/// The annotation of an event that its source found late.
pub(crate) const LATE_BY: &str = "lateBySeconds";

/// How long the directory may take for an answer.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long for all of a batch.
const DIRECTORY_BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes mapped events into the log: pumps and webhooks share it.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    directory: Option<Arc<dyn TenantDirectory>>,
    log: Option<Arc<AuditLog>>,
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
    /// Events and items that are in the spool, on the disk. They go to the log and
    /// the quarantine from there, and are counted in none of the other fields.
    pub spooled: usize,
}

impl Taken {
    /// Everything of the batch that is now kept: in the log, the quarantine or the
    /// spool.
    pub fn received(&self) -> usize {
        self.stored + self.duplicates + self.quarantined + self.spooled
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
        self.spooled += other.spooled;
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
        Self { store, runtime, directory: None, log: None }
    }

    /// What is [pushed](Self::take_pushed) goes by way of `log`, with its timeout and
    /// its spool, if it has one. It must record into the same store.
    #[must_use]
    pub fn with_spool(mut self, log: Arc<AuditLog>) -> Self {
        self.log = Some(log);
        self
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
    /// The directory is asked once for each hint, and not at all after it failed, took
    /// over 2 s for an answer or over 10 s for those of the batch;
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
        options.quarantine.extend(quarantine);
        let items = std::mem::take(&mut options.quarantine);
        let batch = self.prepare(events, items).await;
        options.quarantine.clone_from(&batch.items);
        let appended = self.store.append(batch.sealed, options).await?;
        Ok(batch.counts.taken(&batch.items, &appended))
    }

    /// Takes what a sender pushed and waits for, as [`take`](Self::take) does, but
    /// where the store is away, or does not answer in time, and the intake has a
    /// [spool](Self::with_spool), it is on the disk there when this returns, and goes
    /// to the log from there. While something is in the spool the next one queues
    /// behind it. Items of the quarantine go the same way.
    ///
    /// The same batch again, during the outage and after it, answers the same
    /// [`Taken::received`] and adds nothing to the log, if its events have external
    /// ids.
    ///
    /// # Errors
    /// Those of [`AuditLog::keep`]: nothing of the batch could be kept, and the sender
    /// should come again.
    pub async fn take_pushed(
        &self,
        events: Vec<PulledEvent>,
        quarantine: Vec<QuarantineItem>,
    ) -> Result<Taken> {
        let Some(log) = &self.log else {
            return self.take(events, quarantine, AppendOptions::default()).await;
        };
        let Batch { sealed, items, counts } = self.prepare(events, quarantine).await;
        match log.keep(sealed, items.clone()).await? {
            Kept::Appended(appended) => Ok(counts.taken(&items, &appended)),
            Kept::Spooled => {
                Ok(Taken { spooled: counts.is_late.len() + items.len(), ..Taken::default() })
            }
        }
    }

    /// Finds an event's tenant and seals it.
    pub(crate) async fn seal(&self, mut pulled: PulledEvent) -> SealedEvent {
        if let Some(directory) = self.directory.as_deref() {
            Tenants::new(directory, &*self.runtime).find_missing(&mut pulled).await;
        }
        cut::fit(&mut pulled.event.metadata);
        pulled.event.seal(&*self.runtime)
    }

    /// Finds the tenants, seals, and parts what breaks a bound.
    async fn prepare(&self, events: Vec<PulledEvent>, mut items: Vec<QuarantineItem>) -> Batch {
        let mut sealed = Vec::with_capacity(events.len());
        let mut is_late = Vec::with_capacity(events.len());
        let mut tenants =
            self.directory.as_deref().map(|directory| Tenants::new(directory, &*self.runtime));
        for mut pulled in events {
            if let Some(tenants) = &mut tenants {
                tenants.find_missing(&mut pulled).await;
            }
            cut::fit(&mut pulled.event.metadata);
            let late = pulled.event.metadata.annotation(LATE_BY).is_some();
            let event = pulled.event.seal(&*self.runtime);
            match event.validate() {
                Ok(()) => {
                    sealed.push(event);
                    is_late.push(late);
                }
                Err(invalid) => {
                    let reason = ErrorKind::EventInvalid.code();
                    items.push(refused(&event, reason, invalid.to_string()));
                }
            }
        }
        items.iter_mut().for_each(QuarantineItem::cut_to_bounds);
        sealed.extend(items.iter().map(|item| item.notice(&*self.runtime)));
        Batch { sealed, items, counts: Counts { is_late } }
    }
}

/// What is appended at once: the events, then the notices of the items.
struct Batch {
    sealed: Vec<SealedEvent>,
    items: Vec<QuarantineItem>,
    counts: Counts,
}

struct Counts {
    /// Of each of the source's events, which come first.
    is_late: Vec<bool>,
}

impl Counts {
    fn taken(&self, items: &[QuarantineItem], appended: &Appended) -> Taken {
        let new = appended.new_quarantine;
        if new > 0 {
            let mut reasons = BTreeMap::new();
            for item in items {
                *reasons.entry((&item.source, &item.reason)).or_insert(0_usize) += 1;
            }
            // Of which reason the new ones are only the store knows.
            for ((source, reason), items) in reasons {
                tracing::warn!(source, reason, items, new, "items were quarantined");
            }
        }
        let of_source = self.is_late.len();
        let receipts = &appended.receipts[..of_source];
        let count = |status| receipts.iter().filter(|r| r.status == status).count();
        let conflicts = count(ReceiptStatus::Conflict);
        let stored = count(ReceiptStatus::Appended);
        let late = receipts.iter().zip(&self.is_late);
        let late = late.filter(|(r, late)| **late && r.status == ReceiptStatus::Appended).count();
        Taken {
            stored,
            duplicates: of_source - stored,
            conflicts,
            quarantined: items.len(),
            new_quarantined: new,
            late,
            spooled: 0,
        }
    }
}

/// Finds the tenants of one batch, each question asked once.
struct Tenants<'d> {
    directory: &'d dyn TenantDirectory,
    runtime: &'d dyn Runtime,
    /// By kind or system, and by what was asked.
    answers: HashMap<(&'static str, String), Option<String>>,
    /// After an error no more is asked: a directory that is down would be waited
    /// for once for every event.
    failed: bool,
    /// When there must be no more to wait for.
    until: Timestamp,
}

impl<'d> Tenants<'d> {
    fn new(directory: &'d dyn TenantDirectory, runtime: &'d dyn Runtime) -> Self {
        let until = runtime.now().saturating_add(DIRECTORY_BATCH_TIMEOUT);
        Self { directory, runtime, answers: HashMap::new(), failed: false, until }
    }

    /// Finds the tenant of an event that has none.
    async fn find_missing(&mut self, pulled: &mut PulledEvent) {
        let event = &pulled.event;
        // A source that could not find out has said so.
        if event.tenant_slug.is_none() && event.metadata.annotation(TENANT_BY).is_none() {
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
            TenantHint::Slug { slug, .. } => self.directory.by_slug(slug),
            TenantHint::Domain(domain) => self.directory.by_domain(domain),
            TenantHint::User { system, id } => self.directory.by_user(system, id),
        };
        // Made when it is polled: most answers are there before a timer is.
        let timeout = pin!(async {
            let left = self.until.saturating_since(self.runtime.now());
            self.runtime.sleep(left.min(DIRECTORY_TIMEOUT)).await;
        });
        let answer = match select(answer, timeout).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(Error::new(ErrorKind::StoreUnavailable, "no answer in time")),
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

/// A mapped event that is not stored, kept as it was mapped. Maps redact before they
/// map, so what is kept holds no secret.
pub(crate) fn refused(sealed: &SealedEvent, reason: &str, detail: String) -> QuarantineItem {
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
        reason: reason.into(),
        detail,
        raw: serde_json::to_vec(event).unwrap_or_default(),
        at: event.at,
    }
}
