//! Operations that fail midway, files that are removed, and the recovery from both.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ::mongodb::bson::{Document, doc};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AppendOptions, Lease, ListQuery, MemoryAuditStore, SqliteAuditStore, SqliteConfig,
};
use dezky_core::testkit::{ManualRuntime, named_event};
use dezky_core::{AuditStore, ErrorKind, NewMetadata, Runtime, SealedEvent};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};

use crate::engines::on_every_engine;
use crate::servers::{Engine, TestLog, tokio};

const LENGTH: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_hours(1);

on_every_engine! {
    a_lease_that_ends_later_than_it_may_is_taken_over
    a_write_check_leaves_nothing_behind
}

/// Takes the lease `l` as a holder whose clock was an hour ahead.
async fn lease_from_the_future(log: &TestLog, engine: Engine) -> Lease {
    let store = log.open().await;
    let lease = store.acquire_lease("l", "ahead", LENGTH).await.unwrap().unwrap();
    let ms = HOUR.as_millis();
    match engine {
        Engine::Memory => {}
        Engine::Sqlite => {
            let mut file = SqliteConnection::connect(&log.url()).await.unwrap();
            let sql = format!("UPDATE dezky_leases SET expires_at = expires_at + {ms}");
            file.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        }
        Engine::Postgres => {
            let mut server = PgConnection::connect(&log.url()).await.unwrap();
            let sql = format!("UPDATE dezky_leases SET expires_at = expires_at + {ms}");
            server.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        }
        Engine::Mongodb => {
            let client = ::mongodb::Client::with_uri_str(log.url()).await.unwrap();
            let leases = client.default_database().unwrap().collection::<Document>("dezky_leases");
            let ms = i64::try_from(ms).unwrap();
            let later = doc! { "$inc": { "expires_at": ms } };
            let updated = leases.update_one(doc! { "_id": "l" }, later).await.unwrap();
            assert_eq!(updated.modified_count, 1);
        }
    }
    lease
}

async fn a_lease_that_ends_later_than_it_may_is_taken_over(engine: Engine) {
    if engine == Engine::Memory {
        return in_memory().await;
    }
    let log = TestLog::new(engine).await;
    let lost = lease_from_the_future(&log, engine).await;
    let store = log.open().await;
    let mine = store.acquire_lease("l", "right", LENGTH).await.unwrap();
    let mine = mine.expect("nobody holds it for an hour");
    assert_eq!(mine.token, lost.token + 1);
    // The other holder is fenced off, and the new lease is an ordinary one.
    let fenced = AppendOptions { fence: Some(lost.fence()), ..AppendOptions::default() };
    let refused = store.append(vec![event()], fenced).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(store.acquire_lease("l", "third", LENGTH).await.unwrap(), None);
    // A lease taken for a long time holds that long, whoever asks.
    store.acquire_lease("long", "right", HOUR).await.unwrap().unwrap();
    assert_eq!(store.acquire_lease("long", "third", LENGTH).await.unwrap(), None);
}

/// The memory store takes lease times from the process's clock.
async fn in_memory() {
    let runtime = Arc::new(ManualRuntime::new(1));
    let store = MemoryAuditStore::open(runtime.clone());
    let right = runtime.now();
    runtime.advance(HOUR);
    let lost = store.acquire_lease("l", "ahead", LENGTH).await.unwrap().unwrap();
    // A small step of a time server ends nothing.
    runtime.set_now(lost.expires_at);
    runtime.set_now(right.saturating_add(HOUR.saturating_sub(Duration::from_millis(500))));
    assert_eq!(store.acquire_lease("l", "right", LENGTH).await.unwrap(), None);
    runtime.set_now(right);
    let mine = store.acquire_lease("l", "right", LENGTH).await.unwrap().unwrap();
    assert_eq!(mine.token, lost.token + 1);
    assert_eq!(store.acquire_lease("l", "third", LENGTH).await.unwrap(), None);
}

async fn a_write_check_leaves_nothing_behind(engine: Engine) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    store.append(vec![event()], AppendOptions::default()).await.unwrap();
    let before = store.state().await.unwrap();
    for _ in 0..3 {
        store.check_writable().await.unwrap();
    }
    assert_eq!(store.state().await.unwrap(), before);
    assert_eq!(store.relay(100).await.unwrap().quarantined, 0);
    assert!(store.quarantined(0, 10).await.unwrap().is_empty());
    store.append(vec![event()], AppendOptions::default()).await.unwrap();
    assert_eq!(store.state().await.unwrap().head.next_seq, 2);
}

fn event() -> SealedEvent {
    named_event("a").seal(&TokioRuntime)
}

/// A single row: in a statement with several, SQLite may undo the statement alone.
fn large_event() -> Vec<SealedEvent> {
    let mut event = named_event("a");
    event.metadata = NewMetadata::from_value(serde_json::json!({ "text": "x".repeat(60_000) }));
    vec![event.seal(&TokioRuntime)]
}

/// On a full disk (here: the maximum number of pages, which SQLite treats alike), SQLite rolls back
/// the transaction on its own.
#[test]
fn the_next_write_after_sqlite_ended_a_transaction_by_itself_is_taken() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig::new(folder.path().join("audit.db"));
        let store = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        let options = AppendOptions::default;
        store.append(vec![event()], options()).await.unwrap();
        for _ in 0..3 {
            // On this connection, which all writers share.
            let mut tx = store.database().begin().await.unwrap();
            tx.execute("PRAGMA max_page_count = 1").await.unwrap();
            drop(tx);
            let full = store.append(large_event(), options()).await.unwrap_err();
            assert_eq!(full.kind(), ErrorKind::StoreUnavailable, "{full}");
            assert!(full.to_string().contains("full"), "{full}");
            store.append(large_event(), options()).await.unwrap();
            // Also within a caller's own transaction.
            let mut tx = store.database().begin().await.unwrap();
            tx.execute("PRAGMA max_page_count = 1").await.unwrap();
            let full = SqliteAuditStore::stage_in(&mut tx, &large_event()).await.unwrap_err();
            assert_eq!(full.kind(), ErrorKind::StoreUnavailable, "{full}");
            tx.commit().await.unwrap_err();
            store.stage(large_event()).await.unwrap();
            assert_eq!(store.relay(100).await.unwrap().appended, 1);
        }
        assert_eq!(store.state().await.unwrap().head.next_seq, 7);
        store.close().await;
    });
}

#[test]
fn a_file_that_is_taken_away_is_a_permanent_error_and_nothing_is_acknowledged() {
    for (how, whole) in [("removed", false), ("replaced", true), ("-wal", true), ("-shm", true)] {
        tokio().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("audit.db");
            let file = |suffix: &str| folder.path().join(format!("audit.db{suffix}"));
            let config = SqliteConfig::new(&path);
            let store = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
            let options = AppendOptions::default;
            store.append(vec![event()], options()).await.unwrap();
            let begun = store.database().begin().await.unwrap();
            match how {
                "removed" => std::fs::remove_file(&path).unwrap(),
                "replaced" => {
                    std::fs::copy(&path, file(".copy")).unwrap();
                    std::fs::rename(file(".copy"), &path).unwrap();
                }
                suffix => std::fs::remove_file(file(suffix)).unwrap(),
            }
            // Operations under way are not acknowledged either.
            let committed = begun.commit().await.unwrap_err();
            assert_eq!(committed.kind(), ErrorKind::StoreReplaced, "{how}: {committed}");
            let refused = store.append(vec![event()], options()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::StoreReplaced, "{how}: {refused}");
            assert!(!refused.is_retryable());
            assert!(refused.to_string().contains("audit.db"), "{refused}");
            let read = store.list(&ListQuery::default()).await.unwrap_err();
            assert_eq!(read.kind(), ErrorKind::StoreReplaced, "{how}");
            store.close().await;
            if whole && how != "replaced" {
                // Acknowledged events were written to the database in the end.
                let config = SqliteConfig::new(&path);
                let store = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
                assert_eq!(store.state().await.unwrap().head.next_seq, 1, "{how}");
                store.close().await;
            }
        });
    }
}

/// SQLite gives up after 10 s with `SQLITE_PROTOCOL` instead of `SQLITE_BUSY` if the two copies of
/// the header in the shared memory differ for that long.
#[test]
fn a_writer_that_stopped_between_two_writes_to_the_shared_memory_keeps_sqlite_busy() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Sqlite).await;
        let (store, other) = (log.open().await, log.open().await);
        store.append(vec![event()], AppendOptions::default()).await.unwrap();
        let mut stopped = SqliteConnection::connect(&log.url()).await.unwrap();
        stopped.execute("BEGIN IMMEDIATE").await.unwrap();
        // The second copy, from another process: closing the file in this one would drop the locks
        // that SQLite holds on it.
        let shm = format!("{}-shm", log.url().trim_start_matches("sqlite:"));
        let script = r#"printf '\377' | dd of="$0" bs=1 seek=56 conv=notrunc status=none"#;
        let written = Command::new("sh").args(["-c", script, &shm]).status().unwrap();
        assert!(written.success());
        let busy = other.append(vec![event()], AppendOptions::default()).await.unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::StoreBusy, "{busy:?}");
        assert!(format!("{busy:?}").contains("locking protocol"), "{busy:?}");
        stopped.execute("ROLLBACK").await.unwrap();
        other.append(vec![event()], AppendOptions::default()).await.unwrap();
        assert_eq!(store.state().await.unwrap().head.next_seq, 2);
    });
}

/// As left by version 1 of the schema: leases have no duration.
#[test]
fn a_database_of_the_first_schema_is_brought_up_to_date() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let mut file = SqliteConnection::connect(&url).await.unwrap();
        file.execute(include_str!("../../src/store/sqlite/v1.sql")).await.unwrap();
        file.execute(
            "INSERT INTO dezky_schema VALUES ('audit', 1); \
             INSERT INTO dezky_audit_log VALUES (1, zeroblob(16), zeroblob(32), 0, zeroblob(32), 0, zeroblob(32)); \
             INSERT INTO dezky_leases VALUES \
             ('held', 'old', 3, unixepoch() * 1000 + 9000), \
             ('ahead', 'old', 3, unixepoch() * 1000 + 3600000)",
        )
        .await
        .unwrap();
        file.close().await.unwrap();
        let looked = SqliteAuditStore::open(SqliteConfig::read_only(&path), &TokioRuntime).await;
        assert_eq!(looked.err().unwrap().kind(), ErrorKind::StoreForeign, "migrate it");

        let store = SqliteAuditStore::open(SqliteConfig::new(&path), &TokioRuntime).await.unwrap();
        store.append(vec![event()], AppendOptions::default()).await.unwrap();
        assert_eq!(store.acquire_lease("held", "new", LENGTH).await.unwrap(), None);
        let taken = store.acquire_lease("ahead", "new", LENGTH).await.unwrap().unwrap();
        assert_eq!(taken.token, 4);
        store.close().await;
    });
}
