//! A wrapper around a real store that can be told to fail or hang.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::store::{
    AppendOptions, Appended, Capabilities, EventKey, Lease, ListPage, ListQuery, LogPart, LogState,
    QuarantinedItem, Relayed, ScannedRow, Tally, TallyQuery,
};
use dezky_core::{AuditStore, Error, ErrorKind, Result, Runtime, SealedEvent, StoredEvent};

/// How a [`Moody`] store handles appends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Up,
    /// Fails at once with this kind of error.
    Failing(ErrorKind),
    /// Never answers, and appends nothing.
    Hanging,
    /// Appends, but never answers.
    Mute,
    /// Accepts this many appends, then fails as unavailable.
    UpFor(usize),
}

/// A requested append.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) events: usize,
    pub(crate) items: usize,
    pub(crate) cursor: bool,
}

pub(crate) struct Moody {
    pub(crate) inner: Arc<dyn AuditStore>,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<Asked>>,
    lease_delay: Mutex<Option<(Arc<dyn Runtime>, Duration)>>,
}

impl Moody {
    pub(crate) fn new(inner: Arc<dyn AuditStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            mood: Mutex::new(Mood::Up),
            asked: Mutex::default(),
            lease_delay: Mutex::default(),
        })
    }

    /// Delays each acquisition of a lease by `by` from now on.
    pub(crate) fn delay_leases(&self, runtime: Arc<dyn Runtime>, by: Duration) {
        *self.lease_delay.lock().unwrap() = Some((runtime, by));
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Its current mood.
    pub(crate) fn current(&self) -> Mood {
        *self.mood.lock().unwrap()
    }

    /// The requested appends since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn mood(&self) -> Mood {
        let mut mood = self.mood.lock().unwrap();
        match *mood {
            Mood::UpFor(0) => *mood = Mood::Failing(ErrorKind::StoreUnavailable),
            Mood::UpFor(left) => {
                *mood = Mood::UpFor(left - 1);
                return Mood::Up;
            }
            _ => {}
        }
        *mood
    }
}

#[async_trait]
impl AuditStore for Moody {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended> {
        self.asked.lock().unwrap().push(Asked {
            events: events.len(),
            items: options.quarantine.len(),
            cursor: options.cursor.is_some(),
        });
        match self.mood() {
            Mood::Failing(kind) => Err(Error::new(kind, "scripted")),
            Mood::Hanging => pending().await,
            Mood::Mute => {
                self.inner.append(events, options).await?;
                pending().await
            }
            Mood::Up | Mood::UpFor(_) => self.inner.append(events, options).await,
        }
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
        let delay = self.lease_delay.lock().unwrap().clone();
        if let Some((runtime, by)) = delay {
            runtime.sleep(by).await;
        }
        self.inner.acquire_lease(name, holder, ttl).await
    }
    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.inner.release_lease(lease).await
    }
    async fn quarantined(&self, after: i64, max: usize) -> Result<Vec<QuarantinedItem>> {
        self.inner.quarantined(after, max).await
    }
    async fn stage(&self, events: Vec<SealedEvent>) -> Result<()> {
        self.inner.stage(events).await
    }
    async fn relay(&self, max_events: usize) -> Result<Relayed> {
        self.inner.relay(max_events).await
    }
}
