use std::sync::atomic::{AtomicUsize, Ordering};

use dezky_core::Runtime;
use dezky_core::testkit::{BoxFuture, Reopen};
use dezky_flags::testkit::{FlagStoreHarness, Opened};

use super::*;

/// A folder, and how many stores it has had.
struct Files(tempfile::TempDir, AtomicUsize);

#[async_trait]
impl FlagStoreHarness for Files {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio::runtime::Runtime::new().expect("starts").block_on(case);
    }

    async fn open(&self, _which: Reopen) -> Opened {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        let (store, log) = open(self.0.path().join(format!("{number}.json")));
        Opened { store, log }
    }
}

dezky_flags::flag_store_conformance!(Files(
    tempfile::tempdir().expect("a folder"),
    AtomicUsize::new(0)
));
