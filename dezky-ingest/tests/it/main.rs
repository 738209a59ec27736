//! Sources, pump and receiver against real stores and real files.

mod authentik;
mod authentik_double;
mod authentik_http;
mod authentik_naive;
mod authentik_tenants;
mod authentik_tls;
mod files;
mod fuzz;
mod generic;
mod intake;
mod moody;
mod outage;
mod pump;
mod quarantine;
mod replicas;
mod simulation;
mod speed;
mod tail_model;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{ListQuery, SqliteAuditStore, SqliteConfig};
use dezky_core::verify::verify;
use dezky_core::{AuditStore, StoredEvent};
use dezky_ingest::Intake;
use tempfile::TempDir;

/// A folder with an SQLite log in it.
struct Place {
    folder: TempDir,
    store: Arc<dyn AuditStore>,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        Self { folder, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn intake(&self) -> Intake {
        Intake::new(Arc::clone(&self.store), Arc::new(TokioRuntime))
    }

    async fn list(&self, query: ListQuery) -> Vec<StoredEvent> {
        self.store.list(&query).await.unwrap().events
    }

    async fn of_source(&self, source: &str) -> Vec<StoredEvent> {
        let source = Some(source.to_owned());
        self.list(ListQuery { source, limit: 500, ..ListQuery::default() }).await
    }

    async fn count(&self) -> u64 {
        self.store.state().await.unwrap().head.next_seq
    }

    async fn assert_whole(&self) {
        assert_eq!(verify(&*self.store, None, |_| ()).await.unwrap().finding, None);
    }
}

async fn open(folder: &Path) -> Arc<dyn AuditStore> {
    let config = SqliteConfig::new(folder.join("audit.db"));
    Arc::new(SqliteAuditStore::open(config, &TokioRuntime).await.unwrap())
}

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}
