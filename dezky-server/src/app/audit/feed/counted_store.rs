//! A store that counts how often it is read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::store::{
    AppendOptions, Appended, AuditStore, Capabilities, EventKey, Lease, ListPage, ListQuery,
    LogPart, LogState, MemoryAuditStore, QuarantinedItem, Relayed, ScannedRow, Tally, TallyQuery,
};
use dezky_core::{Result, SealedEvent, StoredEvent};

pub(super) struct CountedStore {
    inner: MemoryAuditStore,
    reads: AtomicUsize,
}

impl CountedStore {
    pub(super) fn new(inner: MemoryAuditStore) -> Self {
        Self { inner, reads: AtomicUsize::new(0) }
    }

    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl AuditStore for CountedStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended> {
        self.inner.append(events, options).await
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage> {
        self.reads.fetch_add(1, Ordering::Relaxed);
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
        self.reads.fetch_add(1, Ordering::Relaxed);
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
