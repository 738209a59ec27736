//! Tampering that no hash covers: forged erasures, and structures that hide rows from lists. All
//! changes are made to real databases.

use std::sync::Arc;

use dezky_core::integrity::erase;
use dezky_core::store::engine::SearchColumns;
use dezky_core::store::{
    AppendOptions, AuditStore, Extent, ListQuery, PostgresAuditStore, PostgresConfig, StoredRow,
};
use dezky_core::testkit::{EventGenerator, ManualRuntime};
use dezky_core::verify::{Difference, ExpectedHead, Verdict, verify};
use dezky_core::{Field, SealedEvent, rt::TokioRuntime};
use mongodb::bson::{Bson, Document, doc};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use crate::servers::{Engine, TestLog, tokio};

/// The number of events in a log here.
const EVENTS: i64 = 20;

/// Events of one tenant by one actor.
fn events() -> Vec<SealedEvent> {
    let runtime = ManualRuntime::new(21);
    let mut generator = EventGenerator::new(&runtime);
    (0..EVENTS)
        .map(|n| {
            let mut event = generator.next_event();
            event.actor.id = Some("u-1".into());
            event.actor.email = Some("ana@acme.test".into());
            event.tenant_slug = Some("acme".into());
            event.external_id = Some(format!("x-{n}"));
            event.seal(&runtime)
        })
        .collect()
}

async fn filled(engine: Engine) -> (TestLog, Arc<dyn AuditStore>) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    store.append(events(), AppendOptions::default()).await.unwrap();
    (log, store)
}

async fn verdict(store: &dyn AuditStore) -> Verdict {
    verify(store, None, |_| ()).await.unwrap()
}

/// Asserts that verification reports an anomaly that contains all the words.
async fn named(store: &dyn AuditStore, words: &[&str], change: &str) {
    let said: Vec<_> = verdict(store).await.anomalies.iter().map(ToString::to_string).collect();
    let has_all = |line: &String| words.iter().all(|word| line.contains(word));
    assert!(said.iter().any(has_all), "{change}: {said:?}");
}

async fn nothing(store: &dyn AuditStore, change: &str) {
    let verdict = verdict(store).await;
    assert_eq!(verdict.problem(), None, "after {change} was undone");
}

async fn sqlite(log: &TestLog) -> SqliteConnection {
    let path = log.url();
    SqliteConnection::connect(&path.replace("sqlite:", "sqlite://")).await.unwrap()
}

async fn run_sqlite(connection: &mut SqliteConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn run_postgres(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn mongodb(log: &TestLog) -> mongodb::Database {
    let client = mongodb::Client::with_uri_str(log.url()).await.unwrap();
    client.default_database().unwrap()
}

/// The columns that a forger with access to the database computes from a row's salt.
fn forged(row: &StoredRow) -> (String, Vec<u8>, SearchColumns) {
    let fields = [Field::ActorEmail, Field::Metadata];
    let (event, evidence) = erase(&row.stored.event, &row.evidence, &fields);
    let dezky_core::integrity::Evidence::Erased(erasure) = evidence else { panic!("erased") };
    (event.metadata.as_str().to_owned(), erasure.to_bytes(), SearchColumns::of(&event))
}

async fn forge_erasure(engine: Engine, log: &TestLog, row: &StoredRow) {
    let (metadata, erasure, search_columns) = forged(row);
    let (erasure, search) = (hex::encode(erasure), search_columns.search.replace('\'', "''"));
    let sql = |bytes: String| {
        format!(
            "UPDATE dezky_audit_events SET actor_email = NULL, actor_email_fold = NULL, metadata = '{metadata}', search = '{search}', salt = NULL, erasure = {bytes} WHERE seq = 7"
        )
    };
    match engine {
        Engine::Memory => panic!("nobody else can write it"),
        Engine::Sqlite => {
            run_sqlite(&mut sqlite(log).await, &sql(format!("x'{erasure}'"))).await;
        }
        Engine::Postgres => {
            let mut own = PgConnection::connect(&log.url()).await.unwrap();
            run_postgres(&mut own, &sql(format!("decode('{erasure}', 'hex')"))).await;
        }
        Engine::Mongodb => {
            let bytes = Bson::Binary(mongodb::bson::Binary {
                subtype: mongodb::bson::spec::BinarySubtype::Generic,
                bytes: hex::decode(erasure).unwrap(),
            });
            let events = mongodb(log).await.collection::<Document>("dezky_audit_events");
            let change = doc! {
                "$set": { "metadata": metadata, "search": search_columns.search, "erasure": bytes },
                "$unset": { "actor_email": "", "actor_email_fold": "", "salt": "" },
            };
            let done = events.update_one(doc! { "_id": 7_i64 }, change).await.unwrap();
            assert_eq!(done.modified_count, 1);
        }
    }
}

#[test]
fn a_forged_erasure_is_an_altered_row() {
    tokio().block_on(async {
        for engine in [Engine::Sqlite, Engine::Postgres, Engine::Mongodb] {
            let (log, store) = filled(engine).await;
            let head = verdict(&*store).await.head;
            let row = store.scan(7, 1).await.unwrap().pop().unwrap().unwrap();
            forge_erasure(engine, &log, &row).await;
            let row = store.scan(7, 1).await.unwrap().pop().unwrap().unwrap();
            assert_eq!(row.stored.erased, [Field::ActorEmail, Field::Metadata], "as it reads");
            // The chain is intact: neither an expected head nor an event that claims the erasure
            // helps.
            let expected = ExpectedHead { seq: head.next_seq - 1, hash: head.hash };
            for expected in [None, Some(expected)] {
                let finding = verify(&*store, expected, |_| ()).await.unwrap().finding.unwrap();
                assert_eq!((finding.seq, finding.kind), (7, Difference::Altered), "{engine:?}");
                assert!(
                    finding.detail.contains("actorEmail, metadata was erased"),
                    "{}",
                    finding.detail
                );
            }
        }
    });
}

/// The statement that created an index.
async fn made_by(connection: &mut SqliteConnection, index: &str) -> String {
    sqlx::query_scalar("SELECT sql FROM sqlite_master WHERE name = ?")
        .bind(index)
        .fetch_one(connection)
        .await
        .unwrap()
}

#[test]
fn an_index_that_hides_events_is_named_on_sqlite() {
    tokio().block_on(async {
        let (log, store) = filled(Engine::Sqlite).await;
        let mut own = sqlite(&log).await;
        for index in ["id", "at", "tenant", "actor", "action"] {
            let index = format!("dezky_audit_events_{index}");
            let made = made_by(&mut own, &index).await;
            // Unmodified: lists fail loudly.
            let partial = format!("DROP INDEX {index}; {made} WHERE seq <> 7;");
            run_sqlite(&mut own, &partial).await;
            named(&*store, &[&index, "WHERE seq <> 7"], &partial).await;
            // Concealed: the definition is that of the schema again.
            let disguise = format!(
                "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = '{made}' WHERE name = '{index}'; PRAGMA writable_schema = RESET;"
            );
            run_sqlite(&mut own, &disguise).await;
            let fresh = log.open().await;
            if index.ends_with("_tenant") {
                let query =
                    ListQuery { tenant_slug: Some("acme".into()), limit: 50, ..ListQuery::default() };
                let shown = fresh.list(&query).await.unwrap().events.len();
                assert_eq!(shown, 19, "the list does not show it");
                assert_eq!(verdict(&*fresh).await.finding, None, "the rows are all there");
            }
            named(&*fresh, &[&index, "leads to 19 of 20 rows"], &disguise).await;
            named(&*fresh, &["the database file", "missing from index", &index], &disguise).await;
            let quick = fresh.examine(Extent::Definitions).await.unwrap();
            assert_eq!(quick, [], "a look at the definitions does not see it");
            run_sqlite(&mut own, &format!("DROP INDEX {index}; {made};")).await;
            nothing(&*log.open().await, &disguise).await;
        }
    });
}

#[test]
fn tampering_with_the_file_is_named() {
    tokio().block_on(async {
        let (log, store) = filled(Engine::Sqlite).await;
        let mut own = sqlite(&log).await;
        let at = made_by(&mut own, "dezky_audit_events_at").await;
        let nocase = made_by(&mut own, "dezky_audit_events_tenant").await;
        let collated = nocase.replace("(tenant_slug", "(tenant_slug COLLATE NOCASE");
        assert_ne!(collated, nocase);
        for (change, words, undo) in [
            (
                "CREATE TRIGGER quiet AFTER INSERT ON dezky_outbox BEGIN DELETE FROM dezky_outbox; END",
                &["trigger quiet on dezky_outbox", "DELETE FROM dezky_outbox"][..],
                "DROP TRIGGER quiet",
            ),
            (
                "CREATE TABLE own (x); CREATE TRIGGER far AFTER INSERT ON own BEGIN DELETE FROM DEZKY_OUTBOX; END",
                &["trigger far on own"],
                "DROP TABLE own",
            ),
            (
                "DROP INDEX dezky_audit_events_at",
                &["dezky_audit_events_at", "missing"],
                &at,
            ),
            (
                &format!("DROP INDEX dezky_audit_events_tenant; {collated}"),
                &["dezky_audit_events_tenant", "NOCASE"],
                &format!("DROP INDEX dezky_audit_events_tenant; {nocase}"),
            ),
            (
                "ALTER TABLE dezky_audit_events ADD COLUMN shout TEXT AS (upper(action))",
                &["dezky_audit_events", "differs from the schema"],
                "ALTER TABLE dezky_audit_events DROP COLUMN shout",
            ),
            (
                "ALTER TABLE dezky_cursors RENAME TO hidden; CREATE VIEW dezky_cursors AS SELECT * FROM hidden",
                &["dezky_cursors", "CREATE VIEW"],
                "DROP VIEW dezky_cursors; ALTER TABLE hidden RENAME TO dezky_cursors",
            ),
        ] {
            run_sqlite(&mut own, change).await;
            named(&*store, words, change).await;
            run_sqlite(&mut own, undo).await;
        }
        let verdict = verdict(&*store).await;
        assert_eq!(verdict.finding, None);
        // An index added by the operator changes no answer.
        run_sqlite(&mut own, "CREATE INDEX own ON dezky_audit_events (outcome)").await;
        let said = store.examine(Extent::Rows).await.unwrap();
        let of_index = said.iter().filter(|anomaly| anomaly.object.contains("own")).count();
        assert_eq!(of_index, 0, "{said:?}");
    });
}

/// Changes of the schema, the words that report them, and how to undo them.
const IN_POSTGRESQL: &[(&str, &[&str], &str)] = &[
    (
        "CREATE RULE quiet AS ON INSERT TO dezky_outbox DO INSTEAD NOTHING",
        &["rule quiet on dezky_outbox"],
        "DROP RULE quiet ON dezky_outbox",
    ),
    (
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER quiet BEFORE INSERT ON dezky_outbox FOR EACH ROW EXECUTE FUNCTION nothing()",
        &["trigger quiet on dezky_outbox", "calls nothing"],
        "DROP FUNCTION nothing CASCADE",
    ),
    (
        "CREATE POLICY most ON dezky_audit_events USING (seq <> 7); ALTER TABLE dezky_audit_events ENABLE ROW LEVEL SECURITY",
        &["policy most on dezky_audit_events"],
        "DROP POLICY most ON dezky_audit_events",
    ),
    (
        "SELECT 1",
        &["row security dezky_audit_events"],
        "ALTER TABLE dezky_audit_events DISABLE ROW LEVEL SECURITY",
    ),
    (
        "ALTER TABLE dezky_audit_events RENAME TO hidden; CREATE VIEW dezky_audit_events AS SELECT * FROM hidden",
        &["dezky_audit_events", "a view"],
        "DROP VIEW dezky_audit_events; ALTER TABLE hidden RENAME TO dezky_audit_events",
    ),
    (
        "CREATE TABLE more () INHERITS (dezky_audit_events)",
        &["inheritance more on dezky_audit_events"],
        "DROP TABLE more",
    ),
    (
        "ALTER TABLE dezky_audit_events ALTER actor_id TYPE text COLLATE \"POSIX\"",
        &["dezky_audit_events.actor_id", "POSIX"],
        "ALTER TABLE dezky_audit_events ALTER actor_id TYPE text COLLATE \"C\"",
    ),
    (
        "ALTER TABLE dezky_audit_events ADD shout text GENERATED ALWAYS AS (upper(action)) STORED",
        &["dezky_audit_events.shout", "GENERATED"],
        "ALTER TABLE dezky_audit_events DROP shout",
    ),
    (
        "ALTER TABLE dezky_outbox SET UNLOGGED",
        &["dezky_outbox", "an unlogged table"],
        "ALTER TABLE dezky_outbox SET LOGGED",
    ),
];

#[test]
fn tampering_with_postgresql_is_named() {
    tokio().block_on(async {
        let (log, _) = filled(Engine::Postgres).await;
        let mut own = PgConnection::connect(&log.url()).await.unwrap();
        let made: String = sqlx::query_scalar("SELECT pg_get_indexdef('dezky_audit_events_tenant'::regclass)")
            .fetch_one(&mut own)
            .await
            .unwrap();
        let partial = format!("DROP INDEX dezky_audit_events_tenant; {made} WHERE seq <> 7");
        let again = format!("DROP INDEX dezky_audit_events_tenant; {made}");
        let of_index = "indexrelid = 'dezky_audit_events_tenant'::regclass";
        for (change, words, undo) in [
            (&*partial, &["dezky_audit_events_tenant", "WHERE seq <> 7"][..], &*again),
            // Disguised by a user who may write to the catalogue.
            (
                &format!("{partial}; UPDATE pg_index SET indpred = NULL WHERE {of_index}"),
                &["dezky_audit_events_tenant", "leads to 19 of 20 rows"],
                &again,
            ),
            // An additional index that the planner would prefer.
            (
                "CREATE INDEX far ON dezky_audit_events (action) WHERE seq <> 7; UPDATE pg_index SET indpred = NULL WHERE indexrelid = 'far'::regclass",
                &["far", "leads to 19 of 20 rows"],
                "DROP INDEX far; CREATE INDEX near ON dezky_audit_events (lower(action)); CREATE INDEX own ON dezky_audit_events (outcome)",
            ),
            (
                &format!("UPDATE pg_index SET indisvalid = false WHERE {of_index}"),
                &["dezky_audit_events_tenant", "(not valid)"],
                &format!("UPDATE pg_index SET indisvalid = true WHERE {of_index}"),
            ),
        ]
        .into_iter()
        .chain(IN_POSTGRESQL.iter().copied())
        {
            run_postgres(&mut own, change).await;
            // Open connections may have cached plans for the old tables.
            named(&*log.open().await, words, change).await;
            run_postgres(&mut own, undo).await;
        }
        nothing(&*log.open().await, "all of it").await;
    });
}

#[test]
fn names_that_lead_elsewhere_are_named() {
    tokio().block_on(async {
        let (log, _) = filled(Engine::Postgres).await;
        let mut own = PgConnection::connect(&log.url()).await.unwrap();
        let name: String =
            sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut own).await.unwrap();
        for (change, path, words) in [
            (
                "CREATE SCHEMA front; CREATE VIEW front.dezky_audit_events AS SELECT * FROM public.dezky_audit_events WHERE seq <> 7",
                "front, public",
                &["dezky_audit_events", "a view"],
            ),
            (
                "CREATE FUNCTION public.strpos(text, text) RETURNS integer LANGUAGE sql AS 'SELECT 0'",
                "public, pg_catalog",
                &["search_path public", "comes before pg_catalog"],
            ),
        ] {
            let lead = format!("{change}; ALTER DATABASE {name} SET search_path = {path}");
            run_postgres(&mut own, &lead).await;
            named(&*log.open().await, words, &lead).await;
        }
    });
}

/// The optional index is included.
#[test]
fn the_catalogue_of_postgresql_is_that_of_its_schema() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Postgres).await;
        let config = PostgresConfig::new(log.url());
        let store = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        let said = store.examine(Extent::Rows).await.unwrap();
        assert_eq!(said, [], "bring dezky-core/src/store/postgres/catalogue.tsv in line");
        store.create_search_index().await.unwrap();
        assert_eq!(store.examine(Extent::Rows).await.unwrap(), []);
        let mut own = PgConnection::connect(&log.url()).await.unwrap();
        run_postgres(&mut own, "DROP INDEX dezky_audit_events_search; CREATE INDEX dezky_audit_events_search ON dezky_audit_events USING gin (search gin_trgm_ops) WHERE seq <> 7").await;
        named(&store, &["dezky_audit_events_search", "WHERE seq <> 7"], "a partial one").await;
    });
}

#[test]
fn tampering_with_mongodb_is_named() {
    tokio().block_on(async {
        let (log, store) = filled(Engine::Mongodb).await;
        let database = mongodb(&log).await;
        let run = async |command: Document| {
            let said = command.to_string();
            database.run_command(command).await.unwrap_or_else(|error| panic!("{said}: {error}"));
        };
        let indexes =
            |index: Document| doc! { "createIndexes": "dezky_audit_events", "indexes": [index] };
        let listed = database.collection::<Document>("dezky_audit_events").list_indexes().await;
        let keys = {
            use futures_util::TryStreamExt;
            let all: Vec<mongodb::IndexModel> = listed.unwrap().try_collect().await.unwrap();
            let named = |index: &&mongodb::IndexModel| {
                index
                    .options
                    .as_ref()
                    .is_some_and(|o| o.name.as_deref() == Some("by_tenant_at_seq"))
            };
            all.iter().find(named).unwrap().keys.clone()
        };
        let drop = doc! { "dropIndexes": "dezky_audit_events", "index": "by_tenant_at_seq" };
        run(drop.clone()).await;
        named(&*store, &["dezky_audit_events.by_tenant_at_seq", "missing"], "dropped").await;
        for (option, value, word) in [
            ("partialFilterExpression", Bson::from(doc! { "at": { "$gt": 5_i64 } }), "where"),
            ("sparse", true.into(), "sparse"),
            ("hidden", true.into(), "hidden"),
            ("collation", doc! { "locale": "en", "strength": 1 }.into(), "with a collation"),
        ] {
            run(indexes(doc! { "name": "by_tenant_at_seq", "key": keys.clone(), option: value }))
                .await;
            named(&*store, &["dezky_audit_events.by_tenant_at_seq", word], option).await;
            run(drop.clone()).await;
        }
        run(indexes(doc! { "name": "by_tenant_at_seq", "key": keys })).await;
        nothing(&*store, "the index").await;
        let expires = doc! { "name": "gone", "key": { "at": 1 }, "expireAfterSeconds": 60 };
        run(indexes(expires)).await;
        named(&*store, &["TTL index dezky_audit_events.gone", "deletes documents"], "TTL").await;
        run(doc! { "dropIndexes": "dezky_audit_events", "index": "gone" }).await;

        let validator = doc! { "source": { "$ne": "ocis" } };
        run(doc! { "collMod": "dezky_outbox", "validator": validator }).await;
        named(&*store, &["dezky_outbox", "validator"], "a validator").await;
        run(doc! { "collMod": "dezky_outbox", "validator": {} }).await;
        run(doc! { "drop": "dezky_cursors" }).await;
        let pipeline = vec![doc! { "$match": { "_id": { "$ne": "ocis" } } }];
        run(doc! { "create": "dezky_cursors", "viewOn": "hidden", "pipeline": pipeline }).await;
        named(&*store, &["dezky_cursors", "a view"], "a view").await;
    });
}

/// The same bytes with another subtype sort elsewhere, so pages would skip the event.
#[test]
fn an_id_of_another_type_is_an_altered_row() {
    tokio().block_on(async {
        let (log, store) = filled(Engine::Mongodb).await;
        let events = mongodb(&log).await.collection::<Document>("dezky_audit_events");
        let row = events.find_one(doc! { "_id": 7_i64 }).await.unwrap().unwrap();
        let Some(Bson::Binary(id)) = row.get("id") else { panic!("{row:?}") };
        let generic = mongodb::bson::spec::BinarySubtype::Generic;
        let id = Bson::Binary(mongodb::bson::Binary { subtype: generic, bytes: id.bytes.clone() });
        events.update_one(doc! { "_id": 7_i64 }, doc! { "$set": { "id": id } }).await.unwrap();
        let finding = verdict(&*store).await.finding.unwrap();
        assert_eq!((finding.seq, finding.kind), (7, Difference::Altered), "{}", finding.detail);
    });
}
