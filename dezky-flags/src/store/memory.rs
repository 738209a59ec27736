use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dezky_core::store::Capabilities;
use dezky_core::{AuditStore, Result, SealedEvent};
use futures_util::lock::Mutex as AsyncMutex;

use super::{FlagChange, FlagStore, FlagTable, Snapshot};
use crate::Flag;

/// Flags in memory, gone with the process; their events go to any audit log.
///
/// A change is made when its events are staged. If a commit is dropped while a log
/// that is not in memory stages, they may be there without it.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::{rt::TokioRuntime, store::MemoryAuditStore};
/// use dezky_flags::store::{FlagStore, MemoryFlagStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let log = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
/// let store = MemoryFlagStore::new(log);
/// assert_eq!(store.revision().await?, 0);
/// # Ok(())
/// # }
/// ```
pub struct MemoryFlagStore {
    log: Arc<dyn AuditStore>,
    table: Mutex<Arc<FlagTable>>,
    /// Held from the checks to the end of the staging.
    writer: AsyncMutex<()>,
}

impl MemoryFlagStore {
    /// An empty store whose events are staged in `log`.
    pub fn new(log: Arc<dyn AuditStore>) -> Self {
        Self { log, table: Mutex::default(), writer: AsyncMutex::new(()) }
    }

    fn locked(&self) -> MutexGuard<'_, Arc<FlagTable>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Arc<FlagTable> {
        Arc::clone(&self.locked())
    }
}

#[async_trait]
impl FlagStore for MemoryFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        Ok(self.current().flag(key).cloned())
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        Ok(self.current().last_version(key))
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.current().snapshot())
    }

    async fn revision(&self) -> Result<u64> {
        Ok(self.current().revision())
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        let _turn = self.writer.lock().await;
        let mut table = FlagTable::clone(&self.current());
        table.apply(changes)?;
        self.log.stage(events).await?;
        *self.locked() = Arc::new(table);
        Ok(())
    }

    async fn table(&self) -> Result<FlagTable> {
        Ok(FlagTable::clone(&self.current()))
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        let _turn = self.writer.lock().await;
        let mut next = FlagTable::clone(&self.current());
        next.restore(table)?;
        *self.locked() = Arc::new(next);
        Ok(())
    }
}
