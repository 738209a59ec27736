//! Events that share an id but differ in content: both are stored.
//!
//! A declared id may be weaker than its sender's events: Kubernetes gives the stages of
//! a request one `auditID`, of which the second may be the refusal. The log's own rule
//! keeps the first of two events with one id and counts the second, so this module decides
//! before the append whether they are the same event.

mod alike;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::store::{
    AppendOptions, Appended, AuditStore, Capabilities, EventKey, Lease, ListPage, ListQuery,
    LogPart, LogState, QuarantinedItem, Receipt, ReceiptStatus, Relayed, ScannedRow, Tally,
    TallyQuery,
};
use dezky_core::{AuditEvent, Field, Metadata, Result, Runtime, SealedEvent, StoredEvent};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use self::alike::alike;
use crate::annotations::{ANNOTATIONS, CUT, RAW_ACTION, SHARED_ID, TRUNCATED};
use crate::keys::is_made_key;
use crate::source_name::is_declared;

/// Annotations that count as content of the source.
const OF_SOURCE: [&str; 3] = ["source", TRUNCATED, CUT];

/// The longest external id that the log accepts, in bytes.
const EXTERNAL_ID_MAX: usize = 512;
/// The number of hex digits of the content digest in a distinguished id.
const DIGEST_DIGITS: usize = 32;

/// Digest of an event's metadata without our annotations.
pub(crate) type Content = [u8; 32];

/// A store wrapper that distinguishes events of declared sources by id and content.
///
/// If a declared id is already taken, in the log or earlier in the batch, by an event with
/// different content, the event is appended as `<id>~<digest of the content>`, with the id
/// in `_dezky.sharedId`. The same content under the same id remains a duplicate regardless of
/// order, batch, process or source, even if an earlier version redacted more or less of the
/// stored event, or reduced metadata that is cut today. All other events pass through
/// unchanged.
///
/// If another writer appends the same id between lookup and append, the receipt reveals it, and the
/// event is appended under its own id in a second append. The cursor moves, and items leave the
/// quarantine, only with that second append, so that the source delivers the events again if it
/// fails.
pub(crate) struct DistinctStore {
    inner: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
}

impl DistinctStore {
    pub(crate) fn new(inner: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        Self { inner, runtime }
    }

    /// Gives each event whose id is taken by different content a separate id. Returns the events
    /// whose declared id is new, which must be compared again after the append.
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

    /// Whether the content of the event at `seq` differs from that of `sealed`.
    async fn differs(&self, seq: u64, sealed: &SealedEvent) -> Result<bool> {
        let rows = self.inner.scan(i64::try_from(seq).unwrap_or(i64::MAX), 1).await?;
        let there = rows.into_iter().flatten().find(|row| row.stored.seq == seq);
        let known = there.map(|row| Known::stored(&row.stored));
        let content = declared(sealed.event());
        let metadata = &sealed.event().metadata;
        Ok(known.zip(content).is_some_and(|(known, content)| !known.says(&content, metadata)))
    }

    /// The event with an id made of its id and its content.
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

/// Logs the events of a batch that share ids in one line, as a weak id makes many of them.
fn report<'e>(mut shared: impl Iterator<Item = &'e SealedEvent>) {
    if let Some(first) = shared.next() {
        tracing::warn!(
            source = first.event().source,
            count = 1 + shared.count(),
            "events share ids but differ in content: all are kept; declare an id that tells them apart"
        );
    }
}

/// The content of an event made by a declared map with the sender's own id; `None` for others.
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
    /// Erased, so it counts as equal to any event.
    Erased,
    /// Stored in the log.
    Stored(Content, Metadata),
    /// In the same batch, so made by the same rules.
    Beside(Content),
}

impl Known {
    fn stored(stored: &StoredEvent) -> Self {
        if stored.erased.contains(&Field::Metadata) {
            return Self::Erased;
        }
        let metadata = &stored.event.metadata;
        // Unreadable metadata differs from all readable metadata.
        let content = content(metadata).map_or([0; 32], |(content, _)| content);
        Self::Stored(content, metadata.clone())
    }

    /// Whether an event with the same id has the same content.
    fn says(&self, content: &Content, metadata: &Metadata) -> bool {
        match self {
            Self::Erased => true,
            Self::Stored(known, stored) => known == content || alike(stored, metadata),
            Self::Beside(known) => known == content,
        }
    }
}

/// The digest of the source's content, and whether a declared map made the event. Metadata is
/// canonical, so equal content has equal text.
pub(crate) fn content(metadata: &Metadata) -> Option<(Content, bool)> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_str(metadata.as_str()).ok()?;
    let annotations = members.get(ANNOTATIONS).map_or("{}", |raw| raw.get());
    let annotations: BTreeMap<String, &RawValue> = serde_json::from_str(annotations).ok()?;
    let of_source = OF_SOURCE.iter().filter_map(|name| Some((*name, *annotations.get(*name)?)));
    let said =
        members.iter().filter(|(name, _)| **name != ANNOTATIONS).map(|(name, raw)| (*name, *raw));
    let mut hash = Sha256::new();
    for (part, (name, raw)) in
        said.map(|member| (b'm', member)).chain(of_source.map(|annotation| (b'o', annotation)))
    {
        hash.update([part]);
        for text in [name, raw.get()] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    }
    Some((hash.finalize().into(), annotations.contains_key(RAW_ACTION)))
}

/// Seals a complete event under a new salt.
pub(crate) fn with_new_salt(event: AuditEvent, runtime: &dyn Runtime) -> SealedEvent {
    let mut salt = [0; 32];
    runtime.fill_random(&mut salt);
    SealedEvent::new(event, salt)
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
            // Another writer took the id.
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

    async fn get(&self, key: EventKey) -> Result<Option<StoredEvent>> {
        self.inner.get(key).await
    }

    async fn tally(&self, query: &TallyQuery) -> Result<Tally> {
        self.inner.tally(query).await
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
