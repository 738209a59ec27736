//! A store that is opened on first use.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use dezky_core::store::{Anomaly, Capabilities};
use dezky_core::{Result, SealedEvent};
use event_listener::Event;
use futures_util::future::BoxFuture;
use futures_util::lock::Mutex as AsyncMutex;

use super::{FlagChange, FlagStore, FlagTable, Snapshot};
use crate::Flag;

type Opening = BoxFuture<'static, Result<Arc<dyn FlagStore>>>;
type Open = dyn Fn() -> Opening + Send + Sync;

/// A store that is opened on first use, and again on each use until that succeeds: for a process
/// that starts while its database is down, and decides by the [file](crate::live::LiveConfig::file)
/// until then.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{SqliteAuditStore, SqliteConfig};
/// use dezky_flags::store::{FlagStore, LazyFlagStore, DocumentFlagStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let store = LazyFlagStore::new(move || {
///     let config = SqliteConfig::new(&path);
///     Box::pin(async move {
///         let log = SqliteAuditStore::open(config, &TokioRuntime).await?;
///         let store = DocumentFlagStore::open(&log.database()).await?;
///         Ok(Arc::new(store) as Arc<dyn FlagStore>)
///     })
/// });
/// assert_eq!(store.revision().await?, 0);
/// # Ok(())
/// # }
/// ```
pub struct LazyFlagStore {
    open: Box<Open>,
    /// Held while opening. An attempt outlives the caller that started it, so that it makes
    /// progress even if each caller gives up early.
    opening: AsyncMutex<Option<Opening>>,
    store: OnceLock<Arc<dyn FlagStore>>,
    /// Notified when the store is open.
    opened: Event,
}

impl LazyFlagStore {
    /// A store that `open` opens: called until it succeeds, once at a time. The callers of the
    /// store drive its future; if one gives up, the next one continues.
    pub fn new(
        open: impl Fn() -> BoxFuture<'static, Result<Arc<dyn FlagStore>>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            open: Box::new(open),
            opening: AsyncMutex::new(None),
            store: OnceLock::new(),
            opened: Event::new(),
        }
    }

    async fn store(&self) -> Result<&Arc<dyn FlagStore>> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let mut opening = self.opening.lock().await;
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let opened = opening.get_or_insert_with(|| (self.open)()).await;
        *opening = None;
        let opened = opened?;
        let store = self.store.get_or_init(|| opened);
        self.opened.notify(usize::MAX);
        Ok(store)
    }
}

#[async_trait]
impl FlagStore for LazyFlagStore {
    /// The store's abilities; none before it is open.
    fn capabilities(&self) -> Capabilities {
        self.store.get().map_or(Capabilities::NONE, |store| store.capabilities())
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.store().await?.examine().await
    }

    async fn table(&self) -> Result<FlagTable> {
        self.store().await?.table().await
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        self.store().await?.flag(key).await
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        self.store().await?.last_version(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.store().await?.snapshot().await
    }

    async fn revision(&self) -> Result<u64> {
        self.store().await?.revision().await
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        self.store().await?.commit(changes, events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        self.store().await?.restore(table).await
    }

    async fn changed(&self, revision: u64) {
        // Does not open the store: callers also poll.
        let opened = self.opened.listen();
        if self.store.get().is_none() {
            opened.await;
        }
        match self.store.get() {
            Some(store) => store.changed(revision).await,
            None => std::future::pending().await,
        }
    }
}
