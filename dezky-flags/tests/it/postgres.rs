use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{PostgresAuditStore, PostgresConfig};
use dezky_core::testkit::{BoxFuture, Reopen, named_event};
use dezky_core::{AuditStore, ErrorKind, Runtime, Timestamp};
use dezky_flags::store::{DocumentFlagStore, FlagChange, FlagStore};
use dezky_flags::testkit::{FlagStoreHarness, Opened};
use dezky_flags::{Flag, NewFlag};
use futures_util::FutureExt;
use futures_util::future::{join, try_join_all};
use proptest::prelude::*;
use sqlx::{Connection, PgConnection, Row};

use crate::databases::Databases;
use crate::memory::{agrees_with_memory, any_commits};
use crate::sqlite::tokio;

#[derive(Default)]
struct Postgres(Databases);

impl Postgres {
    async fn log(&self) -> PostgresAuditStore {
        PostgresAuditStore::open(PostgresConfig::new(self.0.url()), &TokioRuntime).await.unwrap()
    }

    /// Creates a database with flags.
    async fn flags(&self) -> (PostgresAuditStore, DocumentFlagStore) {
        self.0.make().await;
        let log = self.log().await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        (log, store)
    }
}

#[async_trait::async_trait]
impl FlagStoreHarness for Postgres {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> Opened {
        if which == Reopen::No {
            self.0.make().await;
        }
        let log = self.log().await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        Opened { store: Arc::new(store), log: Arc::new(log) }
    }
}

dezky_flags::flag_store_conformance!(Postgres::default());

async fn run_sql(log: &PostgresAuditStore, sql: &'static str, text: &str) {
    let mut tx = log.database().begin().await.unwrap();
    tx.execute(sqlx::query(sql).bind(text)).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) fn create(key: &str) -> FlagChange {
    FlagChange::Create(Box::new(Flag::new(NewFlag::new(key), Timestamp::MIN).unwrap()))
}

#[test]
fn a_flag_as_version_1_wrote_it_is_read() {
    let postgres = Postgres::default();
    tokio().block_on(async {
        postgres.0.make().await;
        let log = postgres.log().await;
        let tables = include_str!("../../src/store/postgres/v1.sql");
        log.database().migrate("flags", &[tables]).await.unwrap();
        let sql = "INSERT INTO dezky_flags (key, version, flag) VALUES ('chat.threads', 3, $1)";
        run_sql(&log, sql, crate::model::VERSION_1).await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        let flag = store.flag("chat.threads").await.unwrap().unwrap();
        assert_eq!(flag, crate::model::version_1());
        assert_eq!(store.snapshot().await.unwrap().flags, [flag]);
    });
}

#[test]
fn a_manually_changed_row_is_reported_as_corrupt() {
    let postgres = Postgres::default();
    tokio().block_on(async {
        let (log, store) = postgres.flags().await;
        let sql = "INSERT INTO dezky_flags (key, version, flag) VALUES ('other', 3, $1)";
        run_sql(&log, sql, crate::model::VERSION_1).await;
        assert_eq!(store.flag("other").await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        run_sql(&log, "UPDATE dezky_flags SET flag = $1", "{").await;
        assert_eq!(store.table().await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        assert_eq!(store.snapshot().await.unwrap().invalid[0].key, "other");
        run_sql(&log, "DELETE FROM dezky_flags_state WHERE $1 = ''", "").await;
        assert_eq!(store.revision().await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        let refused = store.commit(vec![create("a")], Vec::new()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreCorrupt);
    });
}

#[test]
fn a_database_is_checked_before_it_is_written_to() {
    let postgres = Postgres::default();
    tokio().block_on(async {
        postgres.0.make().await;
        let log = postgres.log().await;
        let mut looking = PostgresConfig::new(postgres.0.url());
        looking.migrate = false;
        let looking = PostgresAuditStore::open(looking, &TokioRuntime).await.unwrap();
        let missing = DocumentFlagStore::open(&looking.database()).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::StoreForeign);
        DocumentFlagStore::open(&log.database()).await.unwrap();
        let reader = DocumentFlagStore::open(&looking.database()).await.unwrap();
        assert_eq!(reader.revision().await.unwrap(), 0);
        run_sql(&log, "UPDATE dezky_schema SET version = 99 WHERE component = $1", "flags").await;
        let refused = DocumentFlagStore::open(&log.database()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::SchemaNewer);
    });
}

#[test]
fn stores_that_open_at_once_create_the_tables_once() {
    let postgres = Postgres::default();
    tokio().block_on(async {
        postgres.0.make().await;
        let opened = (0..8).map(|_| async {
            let log = postgres.log().await;
            DocumentFlagStore::open(&log.database()).await.map(|store| (log, store))
        });
        let opened = try_join_all(opened).await.unwrap();
        opened[0].1.commit(vec![create("a")], Vec::new()).await.unwrap();
        for (_, store) in &opened {
            assert_eq!(store.revision().await.unwrap(), 1);
        }
    });
}

#[test]
fn other_stores_are_notified_of_a_change() {
    let postgres = Postgres::default();
    tokio().block_on(async {
        let (_log, store) = postgres.flags().await;
        let Opened { store: other, log: _log } = postgres.open(Reopen::Yes).await;
        // The listening connection is established, so changes from here on are notified.
        in_time(other.changed(0)).await;
        for revision in 0..3 {
            let key = format!("k{revision}");
            let commit = store.commit(vec![create(&key)], Vec::new());
            let ((), done) = join(in_time(other.changed(revision)), commit).await;
            done.unwrap();
            assert_eq!(other.revision().await.unwrap(), revision + 1);
            assert!(other.changed(revision + 1).now_or_never().is_none(), "is told no more");
        }
    });
}

/// Long enough for any machine; without a notification the wait never ends.
pub(crate) async fn in_time(told: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_mins(1), told).await.expect("is told");
}

/// A connection cut at any point leaves both the change and its event, or neither, and the same
/// store remains usable.
#[test]
fn a_cut_connection_separates_no_change_from_its_event() {
    let postgres = Postgres::default();
    tokio().block_on(async {
        let (log, store) = postgres.flags().await;
        let is_over = AtomicBool::new(false);
        let cut = async {
            let mut admin = PgConnection::connect(&postgres.0.url()).await.unwrap();
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND state <> 'idle' \
                AND pid <> pg_backend_pid()";
            let mut cut = 0;
            while cut < 20 {
                cut += sqlx::query(sql).fetch_one(&mut admin).await.unwrap().get::<i64, _>(0);
            }
            is_over.store(true, Ordering::SeqCst);
        };
        let write = async {
            let mut acknowledged = BTreeSet::new();
            for n in 0_u32.. {
                let key = format!("k{n}");
                let event = named_event(&key).seal(&TokioRuntime);
                match store.commit(vec![create(&key)], vec![event]).await {
                    Ok(()) => drop(acknowledged.insert(key)),
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                }
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
            }
            acknowledged
        };
        let ((), acknowledged) = tokio::join!(cut, write);
        store.commit(vec![create("last")], Vec::new()).await.unwrap();

        let snapshot = store.snapshot().await.unwrap();
        assert_eq!(snapshot.revision, snapshot.flags.len() as u64);
        let mut made: BTreeSet<_> = snapshot.flags.into_iter().map(|flag| flag.key).collect();
        assert!(made.remove("last"));
        while log.relay(1_000).await.unwrap().more {}
        let rows = log.scan(0, 10_000).await.unwrap();
        let told: BTreeSet<_> =
            rows.into_iter().map(|row| row.unwrap().stored.event.resource_id.unwrap()).collect();
        assert_eq!(told, made);
        assert!(acknowledged.is_subset(&made));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// For any commits, PostgreSQL answers like the memory store and ends up with the same content.
    #[test]
    fn postgres_agrees_with_memory(commits in any_commits()) {
        let postgres = Postgres::default();
        tokio().block_on(async {
            let (log, store) = postgres.flags().await;
            agrees_with_memory(&store, commits).await;
            // The counts that bound the store match the rows.
            let sql = "SELECT flags, keys, (SELECT count(flag) FROM dezky_flags), \
                (SELECT count(*) FROM dezky_flags) FROM dezky_flags_state";
            let mut tx = log.database().read().await.unwrap();
            let row = tx.fetch_optional(sqlx::query(sql)).await.unwrap().unwrap();
            let count = |column: usize| row.get::<i64, _>(column);
            assert_eq!((count(0), count(1)), (count(2), count(3)));
        });
    }
}
