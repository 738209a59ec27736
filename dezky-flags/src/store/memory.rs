use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dezky_core::store::Capabilities;
use dezky_core::{AuditStore, Result, SealedEvent};
use futures_util::lock::Mutex as AsyncMutex;

use super::{Counts, FlagChange, FlagStore, Known, Snapshot, check, check_size};
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
    table: Mutex<Arc<Table>>,
    /// Held from the checks to the end of the staging.
    writer: AsyncMutex<()>,
}

#[derive(Clone, Default)]
struct Table {
    revision: u64,
    keys: BTreeMap<String, Entry>,
    counts: Counts,
}

#[derive(Clone)]
enum Entry {
    Live(Arc<Flag>),
    Removed(u64),
}

impl MemoryFlagStore {
    /// An empty store whose events are staged in `log`.
    pub fn new(log: Arc<dyn AuditStore>) -> Self {
        Self { log, table: Mutex::default(), writer: AsyncMutex::new(()) }
    }

    fn table(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Arc<Table> {
        Arc::clone(&self.table())
    }
}

impl Table {
    fn known(&self, key: &str) -> Known {
        match self.keys.get(key) {
            None => Known::Never,
            Some(Entry::Live(flag)) => Known::Live(flag.version),
            Some(Entry::Removed(version)) => Known::Removed(*version),
        }
    }

    fn apply(&mut self, change: FlagChange) -> Result<()> {
        let known = self.known(change.key());
        check(&change, known, self.counts)?;
        self.revision += 1;
        self.counts = self.counts.after(&change, known);
        let (key, entry) = match change {
            FlagChange::Create(flag) | FlagChange::Replace(flag) => {
                (flag.key.clone(), Entry::Live(Arc::new(*flag)))
            }
            FlagChange::Remove { key, version } => (key, Entry::Removed(version + 1)),
        };
        self.keys.insert(key, entry);
        Ok(())
    }
}

#[async_trait]
impl FlagStore for MemoryFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        Ok(match self.current().keys.get(key) {
            Some(Entry::Live(flag)) => Some(Flag::clone(flag)),
            _ => None,
        })
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        Ok(self.current().known(key).last_version())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let table = self.current();
        let flags = table.keys.values().filter_map(|entry| match entry {
            Entry::Live(flag) => Some(Flag::clone(flag)),
            Entry::Removed(_) => None,
        });
        Ok(Snapshot { revision: table.revision, flags: flags.collect() })
    }

    async fn revision(&self) -> Result<u64> {
        Ok(self.current().revision)
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        let _turn = self.writer.lock().await;
        let mut table = Table::clone(&self.current());
        for change in changes {
            table.apply(change)?;
        }
        self.log.stage(events).await?;
        *self.table() = Arc::new(table);
        Ok(())
    }
}
