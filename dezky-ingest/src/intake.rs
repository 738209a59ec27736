//! The last step of every way in: find the tenant, seal, append.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use dezky_core::source::{PulledEvent, QuarantineItem, TenantDirectory, TenantHint};
use dezky_core::store::{AppendOptions, Appended, AuditStore, Fence, ReceiptStatus};
use dezky_core::{
    AppendOutcome, AuditLog, ErrorKind, FoundTenant, NewEvent, Result, Runtime, SealedEvent,
    SpoolRecord, TenantFinder, UNRESOLVED, UnresolvedEvent,
};
use sha2::{Digest as _, Sha256};

use crate::annotations::{LATE_BY, RAW_OUTCOME, TENANT_BY};
use crate::cut;
use crate::distinct::{self, DistinctStore};
use crate::notices::{Notices, Stored};

/// Brings mapped events into the log, for pumps and webhooks alike.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    directory: Option<Arc<dyn TenantDirectory>>,
    log: Option<Arc<AuditLog>>,
    notices: Arc<Notices>,
}

/// Counts of a batch's events and items by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IngestSummary {
    /// Events that are new in the log, without our own records about the batch.
    pub stored: usize,
    /// Events that were already in the log.
    pub duplicates: usize,
    /// Duplicates whose content differs from the stored event.
    pub conflicts: usize,
    /// Items that are now in the quarantine, new or not.
    pub quarantined: usize,
    /// Items that are new in the quarantine.
    pub new_quarantined: usize,
    /// Stored events that their source found only after the window in which it expects
    /// late events (`_dezky.lateBySeconds`).
    pub late: usize,
    /// Stored and spooled events whose time is not the source's, because that is missing,
    /// unreadable or implausible; mostly it is the time of receipt (`_dezky.timeProblem`).
    pub undated: usize,
    /// Stored and spooled events whose outcome the source's map does not know
    /// (`_dezky.rawOutcome`).
    pub unknown_outcomes: usize,
    /// Stored events without a tenant because none could be determined (`_dezky.tenantBy` is
    /// `unresolved`).
    pub unresolved: usize,
    /// Events and items that are durable in the spool. They move to the log and the
    /// quarantine later and are counted in no other field.
    pub spooled: usize,
}

impl IngestSummary {
    /// The number of events and items that are now durable: in the log, the quarantine or
    /// the spool.
    pub fn received(&self) -> usize {
        self.stored + self.duplicates + self.quarantined + self.spooled
    }
}

impl std::ops::AddAssign for IngestSummary {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.quarantined += other.quarantined;
        self.new_quarantined += other.new_quarantined;
        self.late += other.late;
        self.undated += other.undated;
        self.unknown_outcomes += other.unknown_outcomes;
        self.unresolved += other.unresolved;
        self.spooled += other.spooled;
    }
}

/// Upper bounds of one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartBounds {
    pub(crate) events: usize,
    pub(crate) items: usize,
    /// Bytes of metadata and raw items together.
    pub(crate) bytes: usize,
}

/// A part of a batch.
#[derive(Default)]
pub(crate) struct Part {
    pub(crate) events: Vec<PulledEvent>,
    pub(crate) items: Vec<QuarantineItem>,
}

/// A batch, divided into parts within the bounds, each with at least one event or item.
/// The parts may commit one by one if a retry of the batch adds nothing.
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
    /// Creates an intake that appends to `store` and, without a directory, infers no tenants.
    ///
    /// Two events of a declared source that share an id but differ in content are both
    /// stored: the second as `<id>~<digest of the content>`, with the id in
    /// `_dezky.sharedId`.
    pub fn new(store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        let store = Arc::new(DistinctStore::new(store, Arc::clone(&runtime)));
        let notices = Arc::new(Notices::new(&*runtime));
        Self { store, runtime, directory: None, log: None, notices }
    }

    /// Routes [pushed](Self::ingest_or_spool) batches through `log`, with its timeout and its
    /// spool, if it has one. `log` must record into [`store`](Self::store), so that spooled
    /// events with a shared id are also told apart.
    #[must_use]
    pub fn with_spool(mut self, log: Arc<AuditLog>) -> Self {
        self.log = Some(log);
        self
    }

    /// Infers tenants from `directory`.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<dyn TenantDirectory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// The store of the intake, wrapped so that events of declared sources that share an id
    /// are told apart on append.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.store
    }

    /// The runtime.
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// Appends a batch, together with whatever `options` must commit with it.
    ///
    /// An event that exceeds a bound of the contract is quarantined; the others are appended.
    /// Quarantine items are truncated to their bounds. The directory is asked once per hint,
    /// and no longer once it has failed, taken over 2 s for an answer or over 10 s for the
    /// batch; it is not asked about an event whose source has set `_dezky.tenantBy`. The first
    /// hundred items of a source in an hour get an `ingest.quarantined` event each, the others
    /// are counted in a few such events; those of them of which nothing is kept share one item
    /// per reason and hour. Idempotent: the same batch again gives duplicates.
    ///
    /// # Errors
    /// Those of [`AuditStore::append`]; nothing of the batch is stored then.
    pub async fn ingest(
        &self,
        events: Vec<PulledEvent>,
        quarantine: Vec<QuarantineItem>,
        mut options: AppendOptions,
    ) -> Result<IngestSummary> {
        options.quarantine.extend(quarantine);
        let items = std::mem::take(&mut options.quarantine);
        let batch = self.prepare(events, items).await;
        self.append(batch, options).await
    }

    /// Appends a [prepared](Self::prepare) batch.
    pub(crate) async fn append(
        &self,
        batch: Batch,
        mut options: AppendOptions,
    ) -> Result<IngestSummary> {
        let Batch { events, notices, items, counts, stored } = batch;
        options.quarantine.clone_from(&items);
        let sealed = events.into_iter().map(|ready| ready.event).chain(notices).collect();
        let appended = self.store.append(sealed, options).await?;
        self.notices.stored(&stored, appended.new_quarantine > 0);
        Ok(counts.taken(&items, &appended))
    }

    /// Appends the count of quarantined items of `source` that no event has told yet. Called
    /// when a pull or post brings no further item.
    pub(crate) async fn tell_rest(&self, source: &str, fence: Option<Fence>) -> Result<()> {
        let Some(rest) = self.notices.rest(source, &*self.runtime) else { return Ok(()) };
        let options = AppendOptions { fence, ..AppendOptions::default() };
        self.store.append(vec![rest.summary], options).await?;
        self.notices.told(source, &rest.told);
        Ok(())
    }

    /// Like [`tell_rest`](Self::tell_rest), through the log and its spool.
    pub(crate) async fn tell_rest_pushed(&self, source: &str) -> Result<()> {
        let Some(log) = &self.log else { return self.tell_rest(source, None).await };
        let Some(rest) = self.notices.rest(source, &*self.runtime) else { return Ok(()) };
        log.append_or_spool_records(vec![SpoolRecord::Event(rest.summary)]).await?;
        self.notices.told(source, &rest.told);
        Ok(())
    }

    /// Appends a batch whose sender waits for the answer, as [`ingest`](Self::ingest) does. If
    /// the store is unavailable or too slow and the intake has a [spool](Self::with_spool), the
    /// batch, quarantine items included, is written there instead and is durable when this
    /// returns. While the spool is not empty, further batches queue behind it.
    ///
    /// A batch with an event for which the directory gave no answer is spooled too, and the
    /// log [asks again](AuditLog::with_directory) when it drains the spool.
    ///
    /// A retry of the batch, during the outage or after it, returns the same
    /// [`IngestSummary::received`] and adds nothing to the log, provided that its events have
    /// external ids.
    ///
    /// # Errors
    /// Those of [`AuditLog::append_or_spool`]: nothing of the batch is durable, and the sender should
    /// retry.
    pub async fn ingest_or_spool(
        &self,
        events: Vec<PulledEvent>,
        quarantine: Vec<QuarantineItem>,
    ) -> Result<IngestSummary> {
        let Some(log) = &self.log else {
            return self.ingest(events, quarantine, AppendOptions::default()).await;
        };
        let Batch { events, notices, items, counts, stored } =
            self.prepare(events, quarantine).await;
        let records = items.iter().cloned().map(SpoolRecord::Quarantine);
        let records = records.chain(events.into_iter().map(SpoolRecord::from));
        let records = records.chain(notices.into_iter().map(SpoolRecord::Event)).collect();
        match log.append_or_spool_records(records).await? {
            AppendOutcome::Appended(appended) => {
                self.notices.stored(&stored, appended.new_quarantine > 0);
                Ok(counts.taken(&items, &appended))
            }
            AppendOutcome::Spooled => {
                self.notices.stored(&stored, true);
                Ok(counts.spooled())
            }
        }
    }

    /// Finds an event's tenant and seals it; `None` if the directory does not answer.
    pub(crate) async fn seal(&self, mut pulled: PulledEvent) -> Option<SealedEvent> {
        if let Some(directory) = self.directory.as_deref() {
            let mut finder = TenantFinder::new(directory, &*self.runtime);
            if !find_missing(&mut finder, &mut pulled).await {
                return None;
            }
        }
        cut::fit(&mut pulled.event.metadata);
        Some(pulled.event.seal(&*self.runtime))
    }

    /// Finds the tenants, seals the events, and turns those that exceed a bound into items.
    pub(crate) async fn prepare(
        &self,
        pulled: Vec<PulledEvent>,
        mut items: Vec<QuarantineItem>,
    ) -> Batch {
        let mut events = Vec::with_capacity(pulled.len());
        let mut marks = Vec::with_capacity(pulled.len());
        let directory = self.directory.as_deref();
        let mut finder = directory.map(|directory| TenantFinder::new(directory, &*self.runtime));
        for mut pulled in pulled {
            let is_answered = match &mut finder {
                Some(finder) => find_missing(finder, &mut pulled).await,
                None => true,
            };
            cut::fit(&mut pulled.event.metadata);
            pulled.event.settle_time(self.runtime.now());
            let mark = Marks::of(&pulled.event);
            let event = pulled.event.seal(&*self.runtime);
            match event.validate() {
                Ok(()) => {
                    let asks_again = (!is_answered).then_some(pulled.tenant);
                    events.push(Ready { event, asks_again });
                    marks.push(mark);
                }
                Err(invalid) => {
                    let reason = ErrorKind::EventInvalid.code();
                    items.push(refused(&event, reason, invalid.to_string()));
                }
            }
        }
        items.iter_mut().for_each(QuarantineItem::cut_to_bounds);
        let count = items.len();
        let mut plan = self.notices.plan(items, &*self.runtime);
        let counts = Counts { marks, items: count, folded: plan.folded };
        let stored = plan.take_after();
        Batch { events, notices: plan.notices, items: plan.items, counts, stored }
    }
}

/// Finds the tenant of an event that has none, and notes how. Returns false if the directory
/// does not answer; the event is then unresolved, and nothing waits.
async fn find_missing(finder: &mut TenantFinder<'_>, pulled: &mut PulledEvent) -> bool {
    let PulledEvent { event, tenant } = pulled;
    // The source has tried itself and noted the result.
    if event.tenant_slug.is_some() || event.metadata.annotation(TENANT_BY).is_some() {
        return true;
    }
    let found = finder.find(tenant).await;
    let by = match &found {
        FoundTenant::Tenant { slug, via } => {
            event.tenant_slug = Some(slug.clone());
            via
        }
        FoundTenant::Nobody => "none",
        FoundTenant::NoAnswer => UNRESOLVED,
    };
    event.metadata.annotate(TENANT_BY, by);
    found != FoundTenant::NoAnswer
}

/// A sealed event.
pub(crate) struct Ready {
    event: SealedEvent,
    /// The hints for another attempt once the directory answers.
    asks_again: Option<Vec<TenantHint>>,
}

impl From<Ready> for SpoolRecord {
    fn from(Ready { event, asks_again }: Ready) -> Self {
        match asks_again {
            Some(tenant) => UnresolvedEvent { event, tenant }.into(),
            None => event.into(),
        }
    }
}

/// A batch ready to append: events, followed by the notices of its items.
pub(crate) struct Batch {
    events: Vec<Ready>,
    notices: Vec<SealedEvent>,
    items: Vec<QuarantineItem>,
    counts: Counts,
    /// Counts of notices to apply once the batch is stored.
    stored: Stored,
}

impl Batch {
    /// Whether the directory did not answer about one of the events.
    pub(crate) fn asks_again(&self) -> bool {
        self.events.iter().any(|ready| ready.asks_again.is_some())
    }
}

/// Properties of an event that the summary counts.
struct Counts {
    marks: Vec<Marks>,
    /// The number of items before those without bytes were folded into few.
    items: usize,
    /// The number of items that the store does not count as new, because they were folded.
    folded: usize,
}

#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a separate counter")]
struct Marks {
    late: bool,
    undated: bool,
    unknown_outcome: bool,
    unresolved: bool,
}

impl Marks {
    fn of(event: &NewEvent) -> Self {
        let has = |name| event.metadata.annotation(name).is_some();
        Self {
            late: has(LATE_BY),
            undated: event.time_problem().is_some(),
            unknown_outcome: has(RAW_OUTCOME),
            unresolved: event.metadata.annotation(TENANT_BY).is_some_and(|by| by == UNRESOLVED),
        }
    }
}

impl Counts {
    fn taken(&self, items: &[QuarantineItem], appended: &Appended) -> IngestSummary {
        let new = appended.new_quarantine;
        if new > 0 {
            let mut reasons = BTreeMap::new();
            for item in items {
                *reasons.entry((&item.source, &item.reason)).or_insert(0_usize) += 1;
            }
            // Only the store knows which of the items are new.
            for ((source, reason), items) in reasons {
                tracing::warn!(source, reason, items, new, "items were quarantined");
            }
        }
        let of_source = self.marks.len();
        let receipts = &appended.receipts[..of_source];
        let is_new = |status| status == ReceiptStatus::Appended;
        let conflicts = receipts.iter().filter(|r| r.status == ReceiptStatus::Conflict).count();
        let stored: Vec<Marks> = receipts
            .iter()
            .zip(&self.marks)
            .filter_map(|(receipt, marks)| is_new(receipt.status).then_some(*marks))
            .collect();
        let count = |is: fn(&Marks) -> bool| stored.iter().filter(|marks| is(marks)).count();
        IngestSummary {
            stored: stored.len(),
            duplicates: of_source - stored.len(),
            conflicts,
            quarantined: self.items,
            new_quarantined: new + self.folded,
            late: count(|marks| marks.late),
            undated: count(|marks| marks.undated),
            unknown_outcomes: count(|marks| marks.unknown_outcome),
            unresolved: count(|marks| marks.unresolved),
            spooled: 0,
        }
    }

    /// The summary of a spooled batch; its tenants are determined when the spool drains.
    fn spooled(&self) -> IngestSummary {
        let count = |is: fn(&Marks) -> bool| self.marks.iter().filter(|marks| is(marks)).count();
        IngestSummary {
            spooled: self.marks.len() + self.items,
            undated: count(|marks| marks.undated),
            unknown_outcomes: count(|marks| marks.unknown_outcome),
            ..IngestSummary::default()
        }
    }
}

/// The quarantine item of a mapped event that cannot be stored. Maps redact first, so it
/// holds no secret.
pub(crate) fn refused(sealed: &SealedEvent, reason: &str, detail: String) -> QuarantineItem {
    let event = sealed.event();
    // The event's own content, without members that sealing sets. An event with an external id may
    // be repeated with other annotations and, if it has no time, at another time.
    let mut said = serde_json::to_value(event).unwrap_or_default();
    let made: &[&str] = match event.external_id {
        Some(_) => &["id", "receivedAt", "at", "metadata", "tenantSlug"],
        None => &["id", "receivedAt"],
    };
    if let Some(fields) = said.as_object_mut() {
        fields.retain(|name, _| !made.contains(&name.as_str()));
    }
    let mut identity = said.to_string();
    if event.external_id.is_some()
        && let Some((content, _)) = distinct::content(&event.metadata)
    {
        identity.push_str(&hex::encode(content));
    }
    QuarantineItem {
        source: event.source.clone(),
        key: format!("event:{}", hex::encode(Sha256::digest(identity.as_bytes()))),
        reason: reason.into(),
        detail,
        raw: serde_json::to_vec(event).unwrap_or_default(),
        at: event.at,
    }
}
