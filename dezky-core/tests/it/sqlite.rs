use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::{BoxFuture, Reopen, StoreHarness};
use dezky_core::{AuditStore, Runtime};
use tempfile::TempDir;

pub(crate) fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Sqlite {
    folder: TempDir,
    opened: AtomicUsize,
}

impl Sqlite {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), opened: AtomicUsize::new(0) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.db", self.opened.load(Ordering::SeqCst)))
    }
}

#[async_trait::async_trait]
impl StoreHarness for Sqlite {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> Arc<dyn AuditStore> {
        if which == Reopen::No {
            self.opened.fetch_add(1, Ordering::SeqCst);
        }
        let config = SqliteConfig::new(self.path());
        Arc::new(SqliteAuditStore::open(config, &TokioRuntime).await.unwrap())
    }
}

dezky_core::audit_store_conformance!(Sqlite::new());
