use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::{BoxFuture, Reopen};
use dezky_core::{ErrorKind, Runtime};
use dezky_flags::store::{DocumentFlagStore, FlagStore};
use dezky_flags::testkit::{FlagStoreHarness, Opened};
use proptest::prelude::*;
use sqlx::Row;
use tempfile::TempDir;

use crate::memory::{agrees_with_memory, any_commits};

pub(crate) fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) struct Sqlite {
    folder: TempDir,
    opened: AtomicUsize,
}

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), opened: AtomicUsize::new(0) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.db", self.opened.load(Ordering::SeqCst)))
    }
}

#[async_trait::async_trait]
impl FlagStoreHarness for Sqlite {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> Opened {
        if which == Reopen::No {
            self.opened.fetch_add(1, Ordering::SeqCst);
        }
        let config = SqliteConfig::new(self.path());
        let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        Opened { store: Arc::new(store), log: Arc::new(log) }
    }
}

dezky_flags::flag_store_conformance!(Sqlite::new());

async fn log_at(path: PathBuf) -> SqliteAuditStore {
    SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await.unwrap()
}

async fn run_sql(log: &SqliteAuditStore, sql: &'static str, text: &str) {
    let mut tx = log.database().begin().await.unwrap();
    sqlx::query(sql).bind(text).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[test]
fn a_flag_as_version_1_wrote_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    tokio().block_on(async {
        let log = log_at(folder.path().join("flags.db")).await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        let sql = "INSERT INTO dezky_flags (key, version, flag) VALUES ('chat.threads', 3, ?)";
        run_sql(&log, sql, crate::model::VERSION_1).await;
        let flag = store.flag("chat.threads").await.unwrap().unwrap();
        assert_eq!(flag, crate::model::version_1());
        assert_eq!(store.snapshot().await.unwrap().flags, [flag]);
    });
}

#[test]
fn a_manually_changed_row_is_reported_as_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    tokio().block_on(async {
        let log = log_at(folder.path().join("flags.db")).await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        let sql = "INSERT INTO dezky_flags (key, version, flag) VALUES ('other', 3, ?)";
        run_sql(&log, sql, crate::model::VERSION_1).await;
        assert_eq!(store.flag("other").await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        run_sql(&log, "UPDATE dezky_flags SET flag = ?", "{").await;
        assert_eq!(store.table().await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        assert_eq!(store.snapshot().await.unwrap().invalid[0].key, "other");
    });
}

#[test]
fn tables_of_a_newer_program_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    tokio().block_on(async {
        let log = log_at(folder.path().join("flags.db")).await;
        DocumentFlagStore::open(&log.database()).await.unwrap();
        let sql = "UPDATE dezky_schema SET version = 99 WHERE component = ?";
        run_sql(&log, sql, "flags").await;
        let refused = DocumentFlagStore::open(&log.database()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::SchemaNewer);
    });
}

#[test]
fn flags_are_read_through_a_read_only_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.db");
    tokio().block_on(async {
        let log = log_at(path.clone()).await;
        log.close().await;
        let config = || SqliteConfig::read_only(&path);
        let reader = SqliteAuditStore::open(config(), &TokioRuntime).await.unwrap();
        let missing = DocumentFlagStore::open(&reader.database()).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::StoreForeign);
        reader.close().await;
        let log = log_at(path.clone()).await;
        DocumentFlagStore::open(&log.database()).await.unwrap();
        log.close().await;
        let reader = SqliteAuditStore::open(config(), &TokioRuntime).await.unwrap();
        let store = DocumentFlagStore::open(&reader.database()).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// For any commits, SQLite answers like the memory store and ends up with the same content.
    #[test]
    fn sqlite_agrees_with_memory(commits in any_commits()) {
        tokio().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let log = log_at(folder.path().join("flags.db")).await;
            let sqlite = DocumentFlagStore::open(&log.database()).await.unwrap();
            agrees_with_memory(&sqlite, commits).await;
            // The counts that bound the store match the rows.
            let mut reader = log.database().read().await.unwrap();
            let sql = "SELECT flags, keys, (SELECT count(flag) FROM dezky_flags), \
                (SELECT count(*) FROM dezky_flags) FROM dezky_flags_state";
            let row = sqlx::query(sql).fetch_one(&mut *reader).await.unwrap();
            let count = |column: usize| row.get::<i64, _>(column);
            assert_eq!((count(0), count(1)), (count(2), count(3)));
        });
    }
}
