use std::sync::Arc;

use dezky_core::Runtime;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::MemoryAuditStore;
use dezky_core::testkit::{BoxFuture, Reopen};
use dezky_flags::store::MemoryFlagStore;
use dezky_flags::testkit::{FlagStoreHarness, Opened};

pub(crate) struct Memory;

#[async_trait::async_trait]
impl FlagStoreHarness for Memory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, _which: Reopen) -> Opened {
        let log = Arc::new(MemoryAuditStore::open(self.runtime()));
        Opened { store: Arc::new(MemoryFlagStore::new(log.clone())), log }
    }
}

dezky_flags::flag_store_conformance!(Memory);
