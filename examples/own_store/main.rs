//! Your own store: flags in a JSON file, which could be kept in git.
//!
//! `FlagTable` implements the rules; a store adds where the table is kept. `conformance.rs` runs
//! the suite that every store passes, including ours: `cargo test`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{Capabilities, MemoryAuditStore};
use dezky_core::{Actor, AuditLog, AuditStore, Result, SealedEvent};
use dezky_flags::store::{FlagChange, FlagStore, FlagTable};
use dezky_flags::{Edit, Flags, seeded_flags};
use futures_util::lock::Mutex as AsyncMutex;

struct FileFlagStore {
    path: PathBuf,
    table: Mutex<FlagTable>,
    writer: AsyncMutex<()>,
    log: Arc<dyn AuditStore>,
}

#[async_trait]
impl FlagStore for FileFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE // neither shared by processes nor durable
    }
    async fn table(&self) -> Result<FlagTable> {
        Ok(self.table.lock().unwrap().clone())
    }

    /// A file and a log share no transaction: a crash before the rename leaves an event without its
    /// change. `DocumentFlagStore` has no such gap.
    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        self.write(|table| table.apply(changes), events).await
    }

    async fn restore(&self, copied: FlagTable) -> Result<()> {
        self.write(|table| table.restore(copied), Vec::new()).await
    }
}

impl FileFlagStore {
    async fn write<F>(&self, change: F, events: Vec<SealedEvent>) -> Result<()>
    where
        F: FnOnce(&mut FlagTable) -> Result<()>,
    {
        let _turn = self.writer.lock().await;
        let mut table = self.table.lock().unwrap().clone();
        change(&mut table)?;
        let new = self.path.with_extension("new");
        std::fs::write(&new, table.to_json())?;
        self.log.stage(events).await?;
        std::fs::rename(&new, &self.path)?;
        *self.table.lock().unwrap() = table;
        Ok(())
    }
}

fn open(path: PathBuf) -> Result<(Arc<dyn FlagStore>, Arc<dyn AuditStore>)> {
    // An unreadable file must not count as empty: it would be overwritten.
    let text = path.exists().then(|| std::fs::read_to_string(&path)).transpose()?;
    let table = text.as_deref().map(FlagTable::from_json).transpose()?.unwrap_or_default();
    let log: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
    let (table, writer) = (Mutex::new(table), AsyncMutex::new(()));
    Ok((Arc::new(FileFlagStore { path, table, writer, log: log.clone() }), log))
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (store, log) = open(folder.path().join("flags.json"))?;
    let log = AuditLog::new(log, Arc::new(TokioRuntime));
    let flags = Flags::new(store, log.into(), Arc::new(TokioRuntime));
    flags.seed(&seeded_flags(), &Edit::by(Actor::system())).await?;
    let again = open(folder.path().join("flags.json"))?.0.snapshot().await?;
    println!("{} flags read back from the file", again.flags.len());
    Ok(())
}

#[cfg(test)]
mod conformance;
