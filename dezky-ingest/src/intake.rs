//! The last step of every way in: find the tenant, seal, append.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

pub(crate) use dezky_core::TENANT_BY;
use dezky_core::source::{PulledEvent, QuarantineItem, TenantDirectory, TenantHint};
use dezky_core::store::{AppendOptions, Appended, AuditStore, Fence, ReceiptStatus};
use dezky_core::{
    AuditLog, ErrorKind, FoundTenant, Kept, NewEvent, Result, Runtime, SealedEvent, SpoolRecord,
    TenantFinder, UNRESOLVED, UnresolvedEvent,
};
use sha2::{Digest as _, Sha256};

use crate::cut;
use crate::distinct::{self, DistinctStore};
use crate::notices::{Notices, Stored};

/// The annotation of an event that its source found late.
pub(crate) const LATE_BY: &str = "lateBySeconds";
/// The annotation of an outcome that its map does not know.
pub(crate) const RAW_OUTCOME: &str = "rawOutcome";

/// Takes mapped events into the log: pumps and webhooks share it.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    directory: Option<Arc<dyn TenantDirectory>>,
    log: Option<Arc<AuditLog>>,
    notices: Arc<Notices>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IngestSummary {
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
    /// Of the stored and the spooled ones, those that bear another time than their source
    /// said, mostly that of receiving, because that is missing, unreadable or not believed
    /// (`_dezky.timeProblem`).
    pub undated: usize,
    /// Of the stored and the spooled ones, those whose outcome the source's map does not know (`_dezky.rawOutcome`).
    pub unknown_outcomes: usize,
    /// Of the stored ones, those without a tenant because nobody could say
    /// (`_dezky.tenantBy` is `unresolved`).
    pub unresolved: usize,
    /// Events and items that are in the spool, on the disk. They go to the log and
    /// the quarantine from there, and are counted in none of the other fields.
    pub spooled: usize,
}

impl IngestSummary {
    /// Everything of the batch that is now kept: in the log, the quarantine or the
    /// spool.
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
    ///
    /// Of the events of declared sources, two with one id and different content are both
    /// kept: the second as `<id>~<digest of the content>`, with the id in
    /// `_dezky.sharedId`.
    pub fn new(store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        let store = Arc::new(DistinctStore::new(store, Arc::clone(&runtime)));
        let notices = Arc::new(Notices::new(&*runtime));
        Self { store, runtime, directory: None, log: None, notices }
    }

    /// What is [pushed](Self::ingest_or_spool) goes by way of `log`, with its timeout and
    /// its spool, if it has one. It must record into [`store`](Self::store), so that
    /// what was spooled is told apart as well.
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

    /// Where events go: the store that the intake was made with, which tells the events
    /// of declared sources apart when it appends them.
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
    /// nor about an event whose source has set `_dezky.tenantBy` itself. The first
    /// hundred items of a source and an hour get an `ingest.quarantined` event each on
    /// the timeline, the others are counted in few of them; of those of which nothing
    /// is kept the quarantine then has one item for each reason and hour. Idempotent:
    /// the same batch again gives duplicates.
    ///
    /// # Errors
    /// Those of [`AuditStore::append`]; then nothing of the batch is kept.
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

    /// Appends a batch that was [prepared](Self::prepare).
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

    /// Tells the timeline how many items of `source` went to the quarantine, if it has
    /// not told the number yet: for when no more of them come.
    pub(crate) async fn tell_rest(&self, source: &str, fence: Option<Fence>) -> Result<()> {
        let Some(rest) = self.notices.rest(source, &*self.runtime) else { return Ok(()) };
        let options = AppendOptions { fence, ..AppendOptions::default() };
        self.store.append(vec![rest.summary], options).await?;
        self.notices.told(source, &rest.told);
        Ok(())
    }

    /// The same on the way of what is [pushed](Self::ingest_or_spool).
    pub(crate) async fn tell_rest_pushed(&self, source: &str) -> Result<()> {
        let Some(log) = &self.log else { return self.tell_rest(source, None).await };
        let Some(rest) = self.notices.rest(source, &*self.runtime) else { return Ok(()) };
        log.keep_records(vec![SpoolRecord::Event(rest.summary)]).await?;
        self.notices.told(source, &rest.told);
        Ok(())
    }

    /// Takes what a sender pushed and waits for, as [`ingest`](Self::ingest) does, but
    /// where the store is away, or does not answer in time, and the intake has a
    /// [spool](Self::with_spool), it is on the disk there when this returns, and goes
    /// to the log from there. While something is in the spool the next one queues
    /// behind it. Items of the quarantine go the same way.
    ///
    /// A batch with an event whose tenant the directory did not tell goes to the spool
    /// too, where the log [asks again](AuditLog::with_directory).
    ///
    /// The same batch again, during the outage and after it, answers the same
    /// [`IngestSummary::received`] and adds nothing to the log, if its events have external
    /// ids.
    ///
    /// # Errors
    /// Those of [`AuditLog::keep`]: nothing of the batch could be kept, and the sender
    /// should come again.
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
        match log.keep_records(records).await? {
            Kept::Appended(appended) => {
                self.notices.stored(&stored, appended.new_quarantine > 0);
                Ok(counts.taken(&items, &appended))
            }
            Kept::Spooled => {
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

    /// Finds the tenants, seals, and parts what breaks a bound.
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

/// Finds the tenant of an event that has none, and notes how. False if the directory does
/// not answer, which delays nothing: the event is unresolved.
async fn find_missing(finder: &mut TenantFinder<'_>, pulled: &mut PulledEvent) -> bool {
    let PulledEvent { event, tenant } = pulled;
    // A source that could not find out has said so.
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

/// An event that is sealed.
pub(crate) struct Ready {
    event: SealedEvent,
    /// The hints to ask with once the directory answers.
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

/// What is appended at once: the events, then the notices of the items.
pub(crate) struct Batch {
    events: Vec<Ready>,
    notices: Vec<SealedEvent>,
    items: Vec<QuarantineItem>,
    counts: Counts,
    /// What to count when it is stored.
    stored: Stored,
}

impl Batch {
    /// Whether the directory did not answer about one of the events.
    pub(crate) fn asks_again(&self) -> bool {
        self.events.iter().any(|ready| ready.asks_again.is_some())
    }
}

/// What is counted of each of the source's events.
struct Counts {
    marks: Vec<Marks>,
    /// How many items there were, before those of which nothing is kept became few.
    items: usize,
    /// How many of them the store does not count as new.
    folded: usize,
}

#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a counter of its own")]
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
            // Of which reason the new ones are only the store knows.
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

    /// Of a batch that is in the spool; whose it is, is asked again on the way out.
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

/// A mapped event that is not stored, kept as it was mapped. Maps redact before they
/// map, so what is kept holds no secret.
pub(crate) fn refused(sealed: &SealedEvent, reason: &str, detail: String) -> QuarantineItem {
    let event = sealed.event();
    // All that it says, without what sealing made. What has an identity of its own may
    // come again with other annotations and, where it has no time, at another one.
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
