//! Lists are in the order (at, seq), also in a log whose schema had a different one.

use std::sync::Arc;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AppendOptions, ListQuery, PostgresAuditStore, PostgresConfig, SqliteAuditStore, SqliteConfig,
};
use dezky_core::testkit::named_event;
use dezky_core::verify::verify;
use dezky_core::{AuditStore, ErrorKind, NewEvent, Timestamp};
use futures_util::future::join_all;
use mongodb::Client;
use mongodb::bson::{Document, doc};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};

use crate::engines::everything;
use crate::mongodb::write_version_1;
use crate::servers::{Engine, Patience, TestLog, open, spawn, tokio};

const SQLITE: &str = include_str!("../fixtures/sqlite-v1.sql");
const POSTGRES: &str = include_str!("../fixtures/postgres-v1.sql");
/// The time given to all rows of a fixture.
const ONE_TIME: i64 = 1_767_225_600_000;

/// A log as written by version 1, unchanged or with all rows at the same time.
async fn version_1(engine: Engine, at_one_time: bool) -> TestLog {
    let log = TestLog::new(engine).await;
    let set_time = format!("UPDATE dezky_audit_events SET at = {ONE_TIME}");
    match engine {
        Engine::Memory => unreachable!("has no schema"),
        Engine::Sqlite => {
            let mut file = sqlite(&log).await;
            file.execute("PRAGMA journal_mode = wal").await.unwrap();
            sqlx::raw_sql(SQLITE).execute(&mut file).await.unwrap();
            if at_one_time {
                file.execute(AssertSqlSafe(set_time)).await.unwrap();
            }
            file.close().await.unwrap();
        }
        Engine::Postgres => {
            let mut server = PgConnection::connect(&log.url()).await.unwrap();
            server.execute(sqlx::raw_sql(POSTGRES)).await.unwrap();
            if at_one_time {
                server.execute(AssertSqlSafe(set_time)).await.unwrap();
            }
        }
        // All its rows have that time.
        Engine::Mongodb => write_version_1(&mongodb(&log).await).await,
    }
    log
}

async fn sqlite(log: &TestLog) -> SqliteConnection {
    let url = log.url().replace("sqlite:", "sqlite://") + "?mode=rwc";
    SqliteConnection::connect(&url).await.unwrap()
}

async fn mongodb(log: &TestLog) -> mongodb::Database {
    Client::with_uri_str(&log.url()).await.unwrap().default_database().unwrap()
}

/// The schema's version and the events' indexes, as reported by the engine.
async fn schema(engine: Engine, log: &TestLog) -> (i64, Vec<String>) {
    let version = "SELECT version FROM dezky_schema WHERE component = 'audit'";
    match engine {
        Engine::Memory => unreachable!("has no schema"),
        Engine::Sqlite => {
            let mut file = sqlite(log).await;
            let version = sqlx::query_scalar(version).fetch_one(&mut file).await.unwrap();
            let indexes = "SELECT sql FROM sqlite_master WHERE tbl_name = 'dezky_audit_events' AND type = 'index' ORDER BY name";
            (version, sqlx::query_scalar(indexes).fetch_all(&mut file).await.unwrap())
        }
        Engine::Postgres => {
            let mut server = PgConnection::connect(&log.url()).await.unwrap();
            let version = sqlx::query_scalar(version).fetch_one(&mut server).await.unwrap();
            let indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'dezky_audit_events' ORDER BY indexname";
            (version, sqlx::query_scalar(indexes).fetch_all(&mut server).await.unwrap())
        }
        Engine::Mongodb => {
            let database = mongodb(log).await;
            let schema = database.collection::<Document>("dezky_schema");
            let schema = schema.find_one(doc! { "_id": "audit" }).await.unwrap().unwrap();
            let events = database.collection::<Document>("dezky_audit_events");
            let mut indexes = events.list_index_names().await.unwrap();
            indexes.sort();
            (schema.get_i64("version").unwrap(), indexes)
        }
    }
}

/// Checks the order `(at, seq)`, newest first, in pages of every size.
async fn assert_in_order(store: &dyn AuditStore) {
    let mut expected = everything(store).await;
    assert!(expected.len() >= 3);
    expected.sort_by_key(|e| std::cmp::Reverse((e.event.at, e.seq)));
    for limit in 1..=expected.len() {
        let mut query = ListQuery { limit, ..ListQuery::default() };
        let mut found = Vec::new();
        loop {
            let page = store.list(&query).await.unwrap();
            found.extend(page.events);
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => break,
            }
        }
        assert_eq!(found, expected, "limit {limit}");
    }
}

async fn a_log_of_version_1_becomes_one_of_this_order(engine: Engine) {
    let fresh = TestLog::new(engine).await;
    fresh.open().await;
    let expected = schema(engine, &fresh).await;
    assert!(expected.0 >= 2);

    let log = version_1(engine, false).await;
    let opened = join_all((0..3).map(|_| open_log(&log))).await;
    assert_eq!(schema(engine, &log).await, expected, "as if it was made by this version");
    let store = &opened[0];
    let finding = verify(&**store, None, |_| ()).await.unwrap().finding;
    // The MongoDB fixture has a row whose address was removed by hand.
    let claim = (engine == Engine::Mongodb).then_some((1, true));
    let found =
        finding.map(|finding| (finding.seq, finding.detail.contains("actorEmail was erased")));
    assert_eq!(found, claim);
    assert_in_order(&**store).await;
    // It accepts writes as before.
    let event = NewEvent { at: Timestamp::from_millis(ONE_TIME), ..named_event("new") };
    let event = event.seal(&TokioRuntime);
    let appended = opened[2].append(vec![event], AppendOptions::default()).await.unwrap();
    assert_eq!(appended.appended(), 1);
    assert_eq!(opened[1].relay(10).await.unwrap().appended, 1);
    assert_in_order(&**store).await;

    let log = version_1(engine, true).await;
    let store = open_log(&log).await;
    let page = store.list(&ListQuery::default()).await.unwrap();
    let places: Vec<_> = page.events.iter().map(|e| e.seq).collect();
    assert!(places.len() >= 3 && places.is_sorted_by(|a, b| a > b), "{places:?}");
    assert!(page.events.iter().all(|e| e.event.at.as_millis() == ONE_TIME));
    assert_in_order(&*store).await;
}

async fn open_log(log: &TestLog) -> Arc<dyn AuditStore> {
    open(&log.url(), Patience::Usual).await.unwrap()
}

#[test]
fn sqlite_of_version_1_becomes_one_of_this_order() {
    tokio().block_on(a_log_of_version_1_becomes_one_of_this_order(Engine::Sqlite));
}

#[test]
fn postgres_of_version_1_becomes_one_of_this_order() {
    tokio().block_on(a_log_of_version_1_becomes_one_of_this_order(Engine::Postgres));
}

#[test]
fn mongodb_of_version_1_becomes_one_of_this_order() {
    tokio().block_on(a_log_of_version_1_becomes_one_of_this_order(Engine::Mongodb));
}

/// As docs/postgresql.md describes for very large logs.
#[test]
fn postgres_takes_over_indexes_that_were_made_beforehand() {
    tokio().block_on(async {
        let fresh = TestLog::new(Engine::Postgres).await;
        fresh.open().await;
        let log = version_1(Engine::Postgres, false).await;
        let mut server = PgConnection::connect(&log.url()).await.unwrap();
        let guide = include_str!("../../../docs/postgresql.md");
        let made = guide.lines().filter(|line| line.starts_with("CREATE INDEX CONCURRENTLY"));
        for statement in made.clone() {
            server.execute(statement).await.unwrap();
        }
        assert_eq!(made.count(), 4);
        let numbers = "SELECT pg_relation_filenode(indexrelid) FROM pg_index WHERE indrelid = 'dezky_audit_events'::regclass";
        let there: Vec<i64> = oids(&mut server, numbers).await;
        open_log(&log).await;
        let kept = oids(&mut server, numbers).await;
        assert!(kept.iter().all(|number| there.contains(number)), "none was built");
        let expected = schema(Engine::Postgres, &fresh).await;
        assert_eq!(schema(Engine::Postgres, &log).await, expected);
    });
}

/// The name alone proves nothing: an interrupted index exists but serves no list.
#[test]
fn postgres_refuses_an_index_that_was_not_finished() {
    tokio().block_on(async {
        let log = version_1(Engine::Postgres, false).await;
        let mut server = PgConnection::connect(&log.url()).await.unwrap();
        let made = "CREATE INDEX dezky_audit_events_actor_seq ON dezky_audit_events (actor_id, at, seq)";
        server.execute(made).await.unwrap();
        let broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'dezky_audit_events_actor_seq'::regclass";
        server.execute(broken).await.unwrap();
        let refused = open(&log.url(), Patience::Usual).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConfigInvalid, "{refused}");
        let fix = "DROP INDEX dezky_audit_events_actor_seq";
        assert!(refused.to_string().contains(fix), "{refused}");
        server.execute(fix).await.unwrap();
        open_log(&log).await;
    });
}

async fn oids(server: &mut PgConnection, query: &str) -> Vec<i64> {
    let query = format!("SELECT o::bigint FROM ({query}) AS q (o) ORDER BY o");
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(server).await.unwrap()
}

/// A process that may not migrate is told so, and nothing is changed.
#[test]
fn an_older_schema_is_refused_without_permission_to_migrate() {
    tokio().block_on(async {
        let log = version_1(Engine::Sqlite, false).await;
        let before = schema(Engine::Sqlite, &log).await;
        let path = log.url().replace("sqlite:", "");
        let refused = SqliteAuditStore::open(SqliteConfig::read_only(path), &TokioRuntime).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::StoreForeign, "{refused}");
        assert!(refused.to_string().contains("migrate it"), "{refused}");
        assert_eq!(schema(Engine::Sqlite, &log).await, before);
        assert_eq!(before.0, 1);
    });
}

/// A replica that has not been restarted queries like version 1: it gets its old order, without
/// reading the whole log.
#[test]
fn a_program_of_version_1_goes_on_listing_in_a_migrated_log() {
    tokio().block_on(async {
        let log = version_1(Engine::Sqlite, true).await;
        open_log(&log).await;
        let mut file = sqlite(&log).await;
        let query = "SELECT seq FROM dezky_audit_events INDEXED BY dezky_audit_events_at WHERE 1 AND (at, id) < (1767225600000, X'ff') ORDER BY at DESC, id DESC LIMIT 10";
        let seqs: Vec<i64> = sqlx::query_scalar(query).fetch_all(&mut file).await.unwrap();
        assert_eq!(seqs, [1, 3, 4, 0, 2], "by id");
        let rows = file.fetch_all(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}")));
        let plan: Vec<String> = rows.await.unwrap().iter().map(|row| row.get("detail")).collect();
        assert!(plan[0].contains("dezky_audit_events_at (at<?)"), "{plan:?}");
    });
}

/// A transaction under way finishes, and so does the migration after it: they don't deadlock.
#[test]
fn a_writer_under_way_does_not_end_the_migration_of_postgres() {
    tokio().block_on(async {
        let log = version_1(Engine::Postgres, false).await;
        let mut observer = PgConnection::connect(&log.url()).await.unwrap();
        let mut writer = PgConnection::connect(&log.url()).await.unwrap();
        writer.execute("BEGIN; SELECT 1 FROM dezky_audit_log FOR UPDATE").await.unwrap();
        writer.execute("SELECT count(*) FROM dezky_audit_events").await.unwrap();
        let mut config = PostgresConfig::new(log.url());
        // On a busy machine, it may take the test long to see that the migration waits.
        for timeout in [
            &mut config.acquire_timeout,
            &mut config.lock_timeout,
            &mut config.statement_timeout,
        ] {
            *timeout = Duration::from_mins(2);
        }
        let opening = async move { PostgresAuditStore::open(config, &TokioRuntime).await.map(drop) };
        let migration = spawn(opening);
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let mut waits = 0_i64;
        while waits == 0 {
            waits = sqlx::query_scalar(waiting).fetch_one(&mut observer).await.unwrap();
            assert!(!migration.is_finished(), "{:?}", migration.await);
        }
        // With the lock that a statement on a row would take.
        let insert = "INSERT INTO dezky_audit_events SELECT * FROM dezky_audit_events WHERE false";
        writer.execute(insert).await.unwrap();
        writer.execute("COMMIT").await.unwrap();
        migration.await.unwrap().unwrap();
        assert!(schema(Engine::Postgres, &log).await.0 >= 2);
    });
}
