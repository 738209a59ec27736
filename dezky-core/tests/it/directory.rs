//! The directory's stores against the conformance suite, and the editor on both.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dezky_core::directory::{MemoryDirectory, SqliteDirectory};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{MemoryAuditStore, SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::{BoxFuture, DirectoryHarness, OpenDirectory, Reopen};
use dezky_core::{AuditStore, Runtime};
use tempfile::TempDir;

struct Memory;

#[async_trait::async_trait]
impl DirectoryHarness for Memory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, _which: Reopen) -> OpenDirectory {
        let log: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(self.runtime()));
        OpenDirectory { store: Arc::new(MemoryDirectory::new(Arc::clone(&log))), log }
    }
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
impl DirectoryHarness for Sqlite {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> OpenDirectory {
        if which == Reopen::No {
            self.opened.fetch_add(1, Ordering::SeqCst);
        }
        let config = SqliteConfig::new(self.path());
        let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        let store = SqliteDirectory::open(&log.database()).await.unwrap();
        OpenDirectory { store: Arc::new(store), log: Arc::new(log) }
    }
}

mod memory {
    dezky_core::directory_store_conformance!(super::Memory);
}

mod sqlite {
    dezky_core::directory_store_conformance!(super::Sqlite::new());
}
