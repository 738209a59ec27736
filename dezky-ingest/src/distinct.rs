//! Events that share an id and differ: both are kept.
//!
//! A declared id may be weaker than its sender's events: Kubernetes gives the stages of
//! a request one `auditID`, of which the second may be the refusal. The log's own rule
//! keeps the first of two events with one id and counts the second, so whether they are
//! one is decided here, before they are appended.

mod alike;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::store::{
    AppendOptions, Appended, AuditStore, Capabilities, Lease, ListPage, ListQuery, LogPart,
    LogState, QuarantinedItem, Receipt, ReceiptStatus, Relayed, ScannedRow,
};
use dezky_core::{AuditEvent, Field, Metadata, Result, Runtime, SealedEvent, StoredEvent};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use self::alike::alike;
use crate::generic::{is_declared, is_made_key};
use crate::quarantine::with_new_salt;

/// The annotation of an event whose declared id another event has: that id.
const SHARED_ID: &str = "sharedId";
/// The annotation that every declared map makes, and nobody else may.
const RAW_ACTION: &str = "rawAction";
/// The member of the metadata that holds our annotations.
const OWN: &str = "_dezky";
/// Our annotations that are the source's content all the same.
const OF_SOURCE: [&str; 3] = ["source", TRUNCATED, CUT];
/// The annotation of metadata that was reduced to its short scalars.
const TRUNCATED: &str = "truncated";
/// The annotation of what was cut, with the digest of what stood there.
const CUT: &str = "cut";
/// The longest identity that the log takes, in bytes.
const EXTERNAL_ID_MAX: usize = 512;
/// The hex digits of a content's digest that tell two events with one id apart.
const DIGEST_DIGITS: usize = 32;

/// What an event says: a digest of its metadata without our annotations.
pub(crate) type Content = [u8; 32];

/// A store whose events of declared sources are told apart by id and content.
///
/// An event with a declared id that is in the log with another content, or came earlier
/// in the batch so, is appended under `<id>~<digest of the content>` and notes the id as
/// `_dezky.sharedId`. The same content under the same id stays a duplicate, whatever the
/// order, the batch, the process or the way in, also where the stored one has secrets that
/// are hidden today, or hides what is none, or was reduced where its large parts are cut
/// today. Everything else goes through unchanged.
///
/// Where another writer appends the same id between the look and the append, the receipt
/// tells, and the event is appended under its own identity right after. Until then neither
/// the cursor moves nor an item leaves the quarantine, so that whoever gave the events
/// gives them again if that fails.
pub(crate) struct DistinctStore {
    inner: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
}

impl DistinctStore {
    pub(crate) fn new(inner: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        Self { inner, runtime }
    }

    /// Gives every event that shares an id and differs an identity of its own. Returns
    /// the events that have a declared id that is new, to be compared again.
    async fn tell_apart(&self, events: &mut [SealedEvent]) -> Result<Vec<(usize, SealedEvent)>> {
        let declared: Vec<(usize, Content)> = events
            .iter()
            .enumerate()
            .filter_map(|(n, e)| Some((n, declared(e.event())?)))
            .collect();
        if declared.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<&SealedEvent> = declared.iter().map(|(n, _)| &events[*n]).collect();
        let mut first = HashMap::new();
        for stored in self.inner.find_same(&asked).await? {
            let known = Known::stored(&stored);
            if let Some(id) = stored.event.external_id {
                first.insert((stored.event.source, id), known);
            }
        }
        let (mut new, mut shared) = (Vec::new(), Vec::new());
        for (n, content) in declared {
            let event = events[n].event();
            let id = event.external_id.clone().unwrap_or_default();
            match first.get(&(event.source.clone(), id.clone())) {
                Some(known) if known.says(&content, &event.metadata) => {}
                Some(_) => {
                    events[n] = self.renamed(event, &content);
                    shared.push(n);
                }
                None => {
                    first.insert((event.source.clone(), id), Known::Beside(content));
                    new.push((n, events[n].clone()));
                }
            }
        }
        report(shared.iter().map(|n| &events[*n]));
        Ok(new)
    }

    /// Whether the event at `seq` says something else than `sealed`.
    async fn differs(&self, seq: u64, sealed: &SealedEvent) -> Result<bool> {
        let rows = self.inner.scan(i64::try_from(seq).unwrap_or(i64::MAX), 1).await?;
        let there = rows.into_iter().flatten().find(|row| row.stored.seq == seq);
        let known = there.map(|row| Known::stored(&row.stored));
        let content = declared(sealed.event());
        let metadata = &sealed.event().metadata;
        Ok(known.zip(content).is_some_and(|(known, content)| !known.says(&content, metadata)))
    }

    /// The event under the identity of its id and its content.
    fn renamed(&self, event: &AuditEvent, content: &Content) -> SealedEvent {
        let mut event = event.clone();
        let id = event.external_id.take().unwrap_or_default();
        if let Some(metadata) = event.metadata.annotated(SHARED_ID, &id.as_str().into()) {
            event.metadata = metadata;
        }
        let digest = &hex::encode(content)[..DIGEST_DIGITS];
        let fits = id.len() + 1 + DIGEST_DIGITS <= EXTERNAL_ID_MAX;
        let id = if fits { id } else { format!("sha256:{}", hex::encode(Sha256::digest(&id))) };
        event.external_id = Some(format!("{id}~{digest}"));
        with_new_salt(event, &*self.runtime)
    }
}

/// One line for the events of a batch that share ids: a sender with a weak id has many.
fn report<'e>(mut shared: impl Iterator<Item = &'e SealedEvent>) {
    if let Some(first) = shared.next() {
        tracing::warn!(
            source = first.event().source,
            count = 1 + shared.count(),
            "events have ids of others and say something else: all are kept; declare an id that tells them apart"
        );
    }
}

/// The content of an event that a declared map made and whose id is the sender's.
fn declared(event: &AuditEvent) -> Option<Content> {
    let id = event.external_id.as_deref()?;
    if !is_declared(&event.source) || is_made_key(id) {
        return None;
    }
    let (content, is_mapped) = content(&event.metadata)?;
    is_mapped.then_some(content)
}

/// The first event with an id, as far as it is known.
enum Known {
    /// It was erased, and so equals anything.
    Erased,
    /// It is in the log.
    Stored(Content, Metadata),
    /// It is in the same batch, so the same rules made it.
    Beside(Content),
}

impl Known {
    fn stored(stored: &StoredEvent) -> Self {
        if stored.erased.contains(&Field::Metadata) {
            return Self::Erased;
        }
        let metadata = &stored.event.metadata;
        // Metadata that can't be read any more differs from all that can.
        let content = content(metadata).map_or([0; 32], |(content, _)| content);
        Self::Stored(content, metadata.clone())
    }

    /// Whether an event with the same id says the same.
    fn says(&self, content: &Content, metadata: &Metadata) -> bool {
        match self {
            Self::Erased => true,
            Self::Stored(known, stored) => known == content || alike(stored, metadata),
            Self::Beside(known) => known == content,
        }
    }
}

/// The digest of what the source said, and whether a declared map read it. Metadata is
/// canonical, so equal content has equal text.
pub(crate) fn content(metadata: &Metadata) -> Option<(Content, bool)> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_str(metadata.as_str()).ok()?;
    let own = members.get(OWN).map_or("{}", |own| own.get());
    let own: BTreeMap<String, &RawValue> = serde_json::from_str(own).ok()?;
    let of_source = OF_SOURCE.iter().filter_map(|name| Some((*name, *own.get(*name)?)));
    let said = members.iter().filter(|(name, _)| **name != OWN).map(|(name, raw)| (*name, *raw));
    let mut hash = Sha256::new();
    for (part, (name, raw)) in
        said.map(|member| (b'm', member)).chain(of_source.map(|own| (b'o', own)))
    {
        hash.update([part]);
        for text in [name, raw.get()] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    }
    Some((hash.finalize().into(), own.contains_key(RAW_ACTION)))
}

#[async_trait]
impl AuditStore for DistinctStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn append(
        &self,
        mut events: Vec<SealedEvent>,
        mut options: AppendOptions,
    ) -> Result<Appended> {
        let new = self.tell_apart(&mut events).await?;
        if new.is_empty() {
            return self.inner.append(events, options).await;
        }
        let last = AppendOptions {
            cursor: options.cursor.take(),
            fence: options.fence.clone(),
            release: std::mem::take(&mut options.release),
            ..AppendOptions::default()
        };
        let mut appended = self.inner.append(events, options).await?;
        let (mut places, mut again) = (Vec::new(), Vec::new());
        for (n, sealed) in new {
            let Some(Receipt { status, seq, .. }) = appended.receipts.get(n) else { continue };
            // Another writer was faster.
            if *status != ReceiptStatus::Appended
                && self.differs(*seq, &sealed).await?
                && let Some(content) = declared(sealed.event())
            {
                places.push(n);
                again.push(self.renamed(sealed.event(), &content));
            }
        }
        if !again.is_empty() || last.cursor.is_some() || !last.release.is_empty() {
            report(again.iter());
            let Appended { receipts, released, .. } = self.inner.append(again, last).await?;
            for (n, receipt) in places.into_iter().zip(receipts) {
                appended.receipts[n] = receipt;
            }
            appended.released += released;
        }
        Ok(appended)
    }

    async fn find_same(&self, events: &[&SealedEvent]) -> Result<Vec<StoredEvent>> {
        self.inner.find_same(events).await
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage> {
        self.inner.list(query).await
    }

    async fn state(&self) -> Result<LogState> {
        self.inner.state().await
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        self.inner.scan(from_seq, max_rows).await
    }

    async fn changed(&self, next_seq: u64) {
        self.inner.changed(next_seq).await;
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        self.inner.cursor(source).await
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        self.inner.cursors().await
    }

    async fn restore(&self, part: LogPart) -> Result<()> {
        self.inner.restore(part).await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>> {
        self.inner.acquire_lease(name, holder, ttl).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.inner.release_lease(lease).await
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        self.inner.quarantined(after, max_items).await
    }

    async fn stage(&self, events: Vec<SealedEvent>) -> Result<()> {
        self.inner.stage(events).await
    }

    async fn relay(&self, max_events: usize) -> Result<Relayed> {
        self.inner.relay(max_events).await
    }
}
