//! A platform in memory, lost when the process ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::Result;
use dezky_core::documents::{self, MemoryDatabase};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AuditStore, MemoryAuditStore};

use super::{Access, Backend, Opened, Report};

pub(super) struct Memory;

#[async_trait]
impl Backend for Memory {
    fn known_versions(&self) -> [usize; 3] {
        [0; 3]
    }

    async fn versions(&self) -> Result<BTreeMap<String, usize>> {
        Ok(BTreeMap::new())
    }

    async fn examine(&self, report: &mut Report) -> Option<BTreeMap<String, usize>> {
        report.bad("durability", "in memory: lost when the process ends", "name a database");
        None
    }

    /// Opens a new, empty database each time.
    async fn open(&self, _access: Access) -> Result<Arc<dyn Opened>> {
        Ok(Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime))))
    }
}

#[async_trait]
impl Opened for MemoryAuditStore {
    fn log(self: Arc<Self>) -> Arc<dyn AuditStore> {
        self
    }

    fn documents(self: Arc<Self>) -> documents::Database {
        (&MemoryDatabase::new(self)).into()
    }

    async fn close(&self) {}
}
