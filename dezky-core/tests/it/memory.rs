use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::MemoryAuditStore;
use dezky_core::testkit::{BoxFuture, Reopen, StoreHarness};
use dezky_core::{AuditStore, Runtime};

struct Memory;

#[async_trait::async_trait]
impl StoreHarness for Memory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, _which: Reopen) -> Arc<dyn AuditStore> {
        Arc::new(MemoryAuditStore::open(self.runtime()))
    }
}

dezky_core::audit_store_conformance!(Memory);
