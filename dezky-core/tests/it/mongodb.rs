use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::engine::RowStore;
use dezky_core::store::{
    AppendOptions, ListQuery, MongoAuditStore, MongoCollection, MongoConfig, ReceiptStatus,
};
use dezky_core::testkit::{BoxFuture, Reopen, StoreHarness, named_event};
use dezky_core::verify::verify;
use dezky_core::{AuditStore, Error, ErrorKind, NewEvent, Runtime, SealedEvent};
use futures_util::future::{Either, join_all, select};
use mongodb::bson::{Binary, Bson, Document, doc};
use mongodb::options::{ClientOptions, IndexOptions, ServerAddress};
use mongodb::{Client, Database, IndexModel};

use crate::database::Database as TestDatabase;
use crate::proxy::Proxy;
use crate::servers::{eventually, variable};
use crate::sqlite::tokio;

/// Far longer than anything here takes, so that a hang is a failure.
const PATIENCE: Duration = Duration::from_mins(4);

/// The test server; required, because the tests can't run without it.
fn server() -> String {
    variable("DEZKY_TEST_MONGODB")
}

/// A separate database, and the means to open it.
pub(crate) struct Scratch {
    uri: String,
    _database: TestDatabase,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let database = TestDatabase::mongodb();
        Self { uri: database.url(), _database: database }
    }

    pub(crate) fn config(&self) -> MongoConfig {
        let mut config = MongoConfig::new(&self.uri);
        // A slow machine must not count as an outage.
        config.busy_timeout = PATIENCE;
        config.operation_timeout = PATIENCE;
        config
    }

    pub(crate) async fn open(&self) -> MongoAuditStore {
        open(self.config()).await.unwrap()
    }

    /// The database, without a store.
    async fn database(&self) -> Database {
        Client::with_uri_str(&self.uri).await.unwrap().default_database().unwrap()
    }
}

async fn open(config: MongoConfig) -> dezky_core::Result<MongoAuditStore> {
    MongoAuditStore::open(config, Arc::new(TokioRuntime)).await
}

/// Runs a test with its own database, which is dropped afterwards.
fn with_database<F: Future<Output = ()>>(test: impl FnOnce(Arc<Scratch>) -> F) {
    tokio().block_on(async {
        let scratch = Arc::new(Scratch::new());
        test(scratch).await;
    });
}

/// Whether the server is the double, which scans every row for every read.
pub(crate) async fn is_double() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return *known;
    }
    let client = Client::with_uri_str(server()).await.unwrap();
    let build = client.database("admin").run_command(doc! { "buildInfo": 1 }).await.unwrap();
    let double = build.get_str("secantusVersion");
    let version = build.get_str("version").unwrap();
    match double {
        Ok(double) => eprintln!("the server is SecantusDB {double} and says MongoDB {version}"),
        Err(_) => eprintln!("the server is MongoDB {version}"),
    }
    *KNOWN.get_or_init(|| double.is_ok())
}

#[derive(Default)]
struct Mongo {
    scratches: Mutex<Vec<Scratch>>,
    is_slow: AtomicBool,
}

#[async_trait::async_trait]
impl StoreHarness for Mongo {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(async {
            self.is_slow.store(is_double().await, Ordering::Relaxed);
            case.await;
        });
    }

    async fn open(&self, which: Reopen) -> Arc<dyn AuditStore> {
        let config = {
            let mut scratches = self.scratches.lock().unwrap();
            if which == Reopen::No {
                scratches.push(Scratch::new());
            }
            scratches.last().unwrap().config()
        };
        Arc::new(open(config).await.unwrap())
    }

    fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }
}

dezky_core::audit_store_conformance!(Mongo::default());

#[test]
fn partial_pages_lose_nothing() {
    with_database(|scratch| async move {
        let store = scratch.open().await;
        if is_double().await {
            crate::list_scan::check(store, 60, &[3, 25, 60]).await;
        } else {
            crate::list_scan::check(store, 300, &[1, 7, 50, 300]).await;
        }
    });
}

fn seal(event: NewEvent) -> SealedEvent {
    event.seal(&TokioRuntime)
}

fn named(names: &[&str]) -> Vec<SealedEvent> {
    names.iter().map(|name| seal(named_event(name))).collect()
}

async fn append(store: &MongoAuditStore, events: Vec<SealedEvent>) -> usize {
    store.append(events, AppendOptions::default()).await.unwrap().appended()
}

async fn log_is_sound(store: &MongoAuditStore) {
    let verdict = verify(store, None, |_| {}).await.unwrap();
    assert!(verdict.finding.is_none(), "{verdict:?}");
}

#[test]
fn stores_that_start_together_make_one_log() {
    with_database(|scratch| async move {
        let stores = join_all((0..6).map(|_| scratch.open())).await;
        let first = stores[0].state().await.unwrap();
        for store in &stores {
            assert_eq!(store.state().await.unwrap(), first, "one identity, one key");
        }
        for store in &stores {
            append(store, named(&["a"])).await;
        }
        assert_eq!(stores[0].state().await.unwrap().head.next_seq, 6);
        log_is_sound(&stores[0]).await;
    });
}

#[test]
fn a_half_created_log_is_completed() {
    with_database(|scratch| async move {
        let database = scratch.database().await;
        let schema = database.collection::<Document>("dezky_schema");
        schema.insert_one(doc! { "_id": "audit", "version": 0_i64 }).await.unwrap();
        database.create_collection("dezky_audit_events").await.unwrap();
        let store = scratch.open().await;
        assert_eq!(append(&store, named(&["a"])).await, 1);
    });
}

#[test]
fn a_database_of_others_is_refused_unless_shared() {
    with_database(|scratch| async move {
        let database = scratch.database().await;
        database.collection("notes").insert_one(doc! { "text": "milk" }).await.unwrap();
        let refused = open(scratch.config()).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::StoreForeign, "{refused}");
        assert_eq!(database.list_collection_names().await.unwrap(), ["notes"], "unchanged");

        let mut config = scratch.config();
        config.shared = true;
        append(&open(config).await.unwrap(), named(&["a"])).await;
        // It is ours by now.
        append(&scratch.open().await, named(&["b"])).await;
    });
}

#[test]
fn without_migrate_opening_writes_nothing() {
    with_database(|scratch| async move {
        let mut config = scratch.config();
        config.migrate = false;
        let refused = open(config.clone()).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::StoreForeign, "{refused}");
        let database = scratch.database().await;
        assert!(database.list_collection_names().await.unwrap().is_empty());
        scratch.open().await;
        let store = open(config).await.unwrap();
        append(&store, named(&["a"])).await;
        let notes = MongoCollection::new("notes");
        let refused = store.database().migrate("notes", &[vec![notes]]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreForeign, "{refused}");
    });
}

#[test]
fn a_newer_schema_is_refused() {
    with_database(|scratch| async move {
        scratch.open().await;
        let database = scratch.database().await;
        let schema = database.collection::<Document>("dezky_schema");
        let newer = doc! { "$set": { "version": 99_i64 } };
        schema.update_one(doc! { "_id": "audit" }, newer).await.unwrap();
        let refused = open(scratch.config()).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::SchemaNewer, "{refused}");
    });
}

#[test]
fn an_unreachable_server_is_unavailable_within_the_bound() {
    tokio().block_on(async {
        let uri = format!("mongodb://u:geheim@127.0.0.1:{}/x", free_port());
        let mut config = MongoConfig::new(uri);
        config.server_selection_timeout = Duration::from_millis(300);
        let refused = open(config).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::StoreUnavailable, "{refused}");
        assert!(!format!("{refused:?}").contains("geheim"), "{refused:?}");
    });
}

#[test]
fn a_mutation_and_its_event_commit_together() {
    with_database(|scratch| async move {
        let store = scratch.open().await;
        let database = store.database();
        let notes = MongoCollection::new("notes").unique("by_text", doc! { "text": 1 });
        database.migrate("notes", &[vec![notes]]).await.unwrap();
        let notes = database.collection::<Document>("notes");

        let event = seal(named_event("dropped"));
        let mut session = database.begin().await.unwrap();
        let insert = notes.insert_one(doc! { "text": "milk" }).session(&mut session);
        database.run(insert).await.unwrap();
        store.stage_in(&mut session, &[event]).await.unwrap();
        drop(session);
        // The driver aborts it in the background, and the key stays locked until then.
        let kept = seal(named_event("kept"));
        database
            .retry_busy(|| async {
                let mut session = database.begin().await?;
                let insert = notes.insert_one(doc! { "text": "milk" }).session(&mut session);
                database.run(insert).await?;
                // The same event twice: the relay reports it, and the mutation is not affected.
                store.stage_in(&mut session, std::slice::from_ref(&kept)).await?;
                database.commit(session, std::slice::from_ref(&kept)).await
            })
            .await
            .unwrap();
        let relayed = store.relay(100).await.unwrap();
        assert_eq!((relayed.appended, relayed.duplicates, relayed.more), (1, 1, false));
        assert_eq!(store.relay(100).await.unwrap().appended, 0, "the outbox is empty");
        let listed = store.list(&ListQuery::default()).await.unwrap().events;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].event, *kept.event());

        let mut session = database.begin().await.unwrap();
        let insert = notes.insert_one(doc! { "text": "milk" }).session(&mut session);
        let refused = database.run(insert).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{refused}");
        assert!(refused.to_string().contains("by_text"), "{refused}");
        assert!(!format!("{refused:?}").contains("milk"), "{refused:?}");
    });
}

#[test]
fn staging_needs_no_turn() {
    with_database(|scratch| async move {
        let store = scratch.open().await;
        let database = store.database();
        let holder = store.rows().begin().await.unwrap();
        let mut first = database.begin().await.unwrap();
        let mut second = database.begin().await.unwrap();
        store.stage_in(&mut first, &named(&["a"])).await.unwrap();
        store.stage_in(&mut second, &named(&["b"])).await.unwrap();
        database.commit(second, &[]).await.unwrap();
        database.commit(first, &[]).await.unwrap();
        drop(holder);
        assert_eq!(store.relay(100).await.unwrap().appended, 2);
        let names: Vec<_> = store.scan(0, 10).await.unwrap();
        let names: Vec<_> =
            names.into_iter().map(|row| row.unwrap().stored.event.resource_id.unwrap()).collect();
        assert_eq!(names, ["a", "b"], "in the order in which they were staged");
    });
}

#[test]
fn an_invalid_row_in_the_outbox_holds_nothing_up() {
    with_database(|scratch| async move {
        let store = scratch.open().await;
        let outbox = scratch.database().await.collection("dezky_outbox");
        let odd = [doc! { "_id": 7, "event": "no JSON" }, doc! { "_id": 8, "event": 1 }];
        outbox.insert_many(odd).await.unwrap();
        store.stage(named(&["a"])).await.unwrap();
        let relayed = store.relay(100).await.unwrap();
        assert_eq!((relayed.appended, relayed.quarantined), (1, 2));
        assert_eq!(store.quarantined(0, 10).await.unwrap().len(), 2);
        assert_eq!(outbox.count_documents(doc! {}).await.unwrap(), 0);
    });
}

#[test]
fn a_stalled_writer_holds_others_up_to_the_bound_and_a_dropped_one_not_at_all() {
    with_database(|scratch| async move {
        let stalled = scratch.open().await;
        let mut config = scratch.config();
        config.busy_timeout = Duration::from_millis(400);
        let hasty = open(config).await.unwrap();
        let holder = stalled.rows().begin().await.unwrap();
        let refused = hasty.append(named(&["a"]), AppendOptions::default()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreBusy, "{refused}");
        // Readers are not held up.
        assert!(hasty.list(&ListQuery::default()).await.unwrap().events.is_empty());
        drop(holder);
        assert_eq!(append(&scratch.open().await, named(&["a"])).await, 1);
    });
}

#[test]
fn a_turn_that_is_dropped_before_its_answer_holds_nobody_up() {
    with_database(|scratch| async move {
        // Shorter than the server's own limit for a stalled transaction.
        let mut config = scratch.config();
        config.busy_timeout = Duration::from_secs(20);
        let other = open(config.clone()).await.unwrap();
        let mut options = ClientOptions::parse(server()).await.unwrap();
        let proxy = Proxy::before(port_of(&options.hosts[0]), "findAndModify").await;
        options.hosts = vec![ServerAddress::parse(format!("127.0.0.1:{}", proxy.port)).unwrap()];
        options.direct_connection = Some(true);
        let client = Client::with_options(options).unwrap();
        let runtime = Arc::new(TokioRuntime);
        let store =
            MongoAuditStore::with_client(client, scratch.database().await.name(), config, runtime)
                .await
                .unwrap();
        proxy.keep_answer();
        let turn = store.rows().begin();
        let taken = Box::pin(eventually("the turn is taken", PATIENCE, || proxy.cuts() == 1));
        match select(turn, taken).await {
            Either::Left(_) => panic!("its answer does not come"),
            Either::Right(((), turn)) => drop(turn),
        }
        assert_eq!(append(&other, named(&["a"])).await, 1);
    });
}

fn port_of(address: &ServerAddress) -> u16 {
    match address {
        ServerAddress::Tcp { port, .. } => port.unwrap_or(27_017),
        _ => panic!("a server without a port"),
    }
}

#[test]
fn a_try_is_not_cut_off_by_the_bound_for_conflicts() {
    with_database(|scratch| async move {
        let mut config = scratch.config();
        config.busy_timeout = Duration::from_millis(20);
        let database = open(config).await.unwrap().database();
        let slow = database.retry_busy(|| async {
            crate::servers::pause(200).await;
            Ok(7)
        });
        assert_eq!(slow.await.unwrap(), 7);
        let tries = AtomicUsize::new(0);
        let refused = database
            .retry_busy(|| async {
                tries.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(Error::new(ErrorKind::StoreBusy, "as ever"))
            })
            .await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::StoreBusy);
        assert!(tries.load(Ordering::Relaxed) > 1, "it was tried again");
    });
}

#[test]
fn four_writers_on_one_log_all_make_progress() {
    with_database(|scratch| async move {
        let stores = join_all((0..4).map(|_| scratch.open())).await;
        let (done, least) = (AtomicBool::new(false), 5);
        let counts: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        join_all(stores.iter().zip(&counts).map(|(store, count)| {
            let (done, counts) = (&done, &counts);
            async move {
                // Each continues until the slowest has had its turns.
                while !done.load(Ordering::Relaxed) {
                    append(store, named(&["x"])).await;
                    count.fetch_add(1, Ordering::Relaxed);
                    if counts.iter().all(|count| count.load(Ordering::Relaxed) >= least) {
                        done.store(true, Ordering::Relaxed);
                    }
                }
            }
        }))
        .await;
        let all: usize = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        eprintln!("appends of each writer until the slowest had {least}: {counts:?}");
        assert_eq!(stores[0].state().await.unwrap().head.next_seq, all as u64);
        log_is_sound(&stores[1]).await;
    });
}

#[test]
fn others_appends_are_told_to_all_who_wait() {
    with_database(|scratch| async move {
        let (reader, writer) = (Arc::new(scratch.open().await), scratch.open().await);
        // The first waiter drives the stream and is then dropped.
        let gone = Box::pin(reader.changed(0));
        let other = Box::pin(reader.changed(0));
        let writing = Box::pin(async {
            append(&writer, named(&["a"])).await;
        });
        tokio::time::timeout(PATIENCE, async {
            writing.await;
            select(gone, other).await;
        })
        .await
        .expect("the first append is told");
        for n in 1..4 {
            let waiting = join_all((0..3).map(|_| reader.changed(n)));
            let began = TokioRuntime.now();
            let told = async {
                let waiting = Box::pin(waiting);
                let appending = Box::pin(append(&writer, named(&["b"])));
                futures_util::future::join(waiting, appending).await;
            };
            tokio::time::timeout(PATIENCE, told).await.expect("all are told");
            let took = TokioRuntime.now().saturating_since(began);
            eprintln!("append and news of it: {took:?}");
        }
        assert_eq!(reader.state().await.unwrap().head.next_seq, 4);
    });
}

#[test]
fn operators_in_texts_are_texts() {
    with_database(|scratch| async move {
        let store = scratch.open().await;
        let texts =
            ["$where", "{\"$gt\":\"\"}", "$ne", "^.*$", "a.b", "\\", "[$regex]", "%", "(?i)x"];
        let events = texts.iter().map(|text| {
            let mut event = NewEvent {
                resource_name: Some((*text).into()),
                tenant_slug: Some((*text).into()),
                external_id: Some((*text).into()),
                ..named_event(text)
            };
            event.actor.id = Some((*text).into());
            seal(event)
        });
        let events: Vec<_> = events.collect();
        assert_eq!(append(&store, events.clone()).await, texts.len());
        for (text, event) in texts.iter().zip(&events) {
            let text = || Some((*text).to_owned());
            for query in [
                ListQuery { tenant_slug: text(), ..ListQuery::default() },
                ListQuery { actor_id: text(), ..ListQuery::default() },
                ListQuery { resource_id: text(), ..ListQuery::default() },
                ListQuery { q: text(), resource_id: text(), ..ListQuery::default() },
            ] {
                let events = store.list(&query).await.unwrap().events;
                assert_eq!(events.len(), 1, "{query:?}");
                assert_eq!(events[0].event, *event.event());
            }
            for query in [
                ListQuery { action: text(), ..ListQuery::default() },
                ListQuery { source: text(), ..ListQuery::default() },
                ListQuery { partner_slug: text(), ..ListQuery::default() },
            ] {
                assert!(store.list(&query).await.unwrap().events.is_empty(), "{query:?}");
            }
            // They do no harm as keys either.
            let options = AppendOptions {
                cursor: Some(dezky_core::store::CursorAdvance {
                    source: text().unwrap(),
                    from: None,
                    to: text().unwrap(),
                }),
                ..AppendOptions::default()
            };
            store.append(Vec::new(), options).await.unwrap();
            assert_eq!(store.cursor(&text().unwrap()).await.unwrap(), text());
        }
        assert_eq!(store.cursors().await.unwrap().len(), texts.len());
    });
}

/// A database as written by version 1, collection by collection.
const VERSION_1: &str = include_str!("mongodb-v1.json");

/// Writes the collections, with the indexes of the events as created by version 1.
pub(crate) async fn write_version_1(database: &Database) {
    let fixture: BTreeMap<String, Vec<serde_json::Value>> =
        serde_json::from_str(VERSION_1).unwrap();
    for (name, documents) in fixture {
        let documents = documents.iter().map(|d| from_json(d).as_document().unwrap().clone());
        database.collection::<Document>(&name).insert_many(documents).await.unwrap();
    }
    let index = |name: &str, keys: Document| {
        let options = IndexOptions::builder().name(name.to_owned());
        IndexModel::builder().keys(keys).options(options.unique(name == "by_id").build()).build()
    };
    let unique = IndexOptions::builder()
        .name("by_external_id".to_owned())
        .unique(true)
        .partial_filter_expression(doc! { "external_id": { "$gte": "" } })
        .build();
    let external = IndexModel::builder().keys(doc! { "external_id": 1, "source": 1 });
    let indexes = [
        index("by_id", doc! { "id": 1 }),
        external.options(unique).build(),
        index("by_at", doc! { "at": 1, "id": 1 }),
        index("by_tenant", doc! { "tenant_slug": 1, "at": 1, "id": 1 }),
        index("by_actor", doc! { "actor_id": 1, "at": 1, "id": 1 }),
        index("by_action", doc! { "action": 1, "at": 1, "id": 1 }),
    ];
    let events = database.collection::<Document>("dezky_audit_events");
    events.create_indexes(indexes).await.unwrap();
}

#[test]
fn a_database_written_by_version_1_is_read() {
    with_database(|scratch| async move {
        write_version_1(&scratch.database().await).await;
        let mut config = scratch.config();
        config.migrate = false;
        let refused = open(config).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::StoreForeign, "{refused}");
        let store = scratch.open().await;
        let state = store.state().await.unwrap();
        assert_eq!(state.log_id.to_string(), "019b76da-a800-79b5-81d1-d854bb718002");
        assert_eq!(state.head.next_seq, 3);
        let finding = verify(&store, None, |_| {}).await.unwrap().finding.unwrap();
        assert_eq!(finding.seq, 1, "a forged erasure: {}", finding.detail);
        let rows = store.scan(0, 10).await.unwrap();
        let erased = rows[1].as_ref().unwrap();
        assert_eq!(erased.stored.erased, [dezky_core::Field::ActorEmail]);
        assert_eq!(store.cursor("ocis").await.unwrap().as_deref(), Some("7:100"));
        let kept = store.quarantined(0, 10).await.unwrap();
        assert_eq!((kept.len(), kept[0].number, kept[0].seen), (1, 1, 2));
        let lease = store.acquire_lease("ocis", "new", Duration::from_secs(9)).await.unwrap();
        assert_eq!(lease.unwrap().token, 2, "the old one has lapsed");
        assert_eq!(store.relay(10).await.unwrap().appended, 1);
        let again = rows[0].as_ref().unwrap();
        let external_id = again.stored.event.external_id.clone();
        let again = seal(NewEvent {
            source: again.stored.event.source.clone(),
            external_id,
            ..named_event("first")
        });
        let answer = store.append(vec![again], AppendOptions::default()).await.unwrap();
        assert_eq!(answer.receipts[0].seq, 0, "it is known");
    });
}

/// The two types of extended JSON that JSON lacks.
fn from_json(value: &serde_json::Value) -> Bson {
    use serde_json::Value;
    match value {
        Value::Object(object) => {
            if let Some(Value::String(number)) = object.get("$numberLong") {
                return Bson::Int64(number.parse().unwrap());
            }
            if let Some(binary) = object.get("$binary") {
                let base64 = binary["base64"].as_str().unwrap();
                let subtype = u8::from_str_radix(binary["subType"].as_str().unwrap(), 16).unwrap();
                return Bson::Binary(Binary::from_base64(base64, Some(subtype.into())).unwrap());
            }
            let fields = object.iter().map(|(name, value)| (name.clone(), from_json(value)));
            Bson::Document(fields.collect())
        }
        Value::String(text) => Bson::String(text.clone()),
        other => panic!("{other} is nothing that version 1 writes"),
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server for one test, stopped with it.
struct Server {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        Self { process: Self::spawn(port, folder.path()), port, folder }
    }

    fn spawn(port: u16, folder: &Path) -> Child {
        let program = Path::new(&variable("DEZKY_TEST_SERVERS")).join("secantusd-py");
        Command::new(std::fs::canonicalize(program).unwrap())
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--sync-on-commit"])
            .arg("--storage-path")
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Kills the server and restarts it on its stored data.
    fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::spawn(self.port, self.folder.path());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn acknowledged_events_survive_a_killed_server() {
    tokio().block_on(async {
        let server = Server::start();
        let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", server.port);
        let server = Mutex::new(server);
        let mut config = MongoConfig::new(uri);
        config.server_selection_timeout = PATIENCE;
        config.operation_timeout = PATIENCE;
        config.busy_timeout = PATIENCE;
        let store = open(config).await.unwrap();
        let acknowledged = Mutex::new(BTreeSet::new());
        let (kill_at, done_at) = (30, 80);
        let writers = (0..4).map(|writer| {
            let (store, acknowledged, server) = (&store, &acknowledged, &server);
            async move {
                let mut count = 0;
                while acknowledged.lock().unwrap().len() < done_at {
                    let event = seal(named_event(&format!("{writer}.{count}")));
                    count += 1;
                    // Like any caller, repeats the same append until it is answered.
                    let status = loop {
                        let events = vec![event.clone()];
                        match store.append(events, AppendOptions::default()).await {
                            Ok(appended) => break appended.receipts[0].status,
                            Err(error) => assert!(error.is_retryable(), "{error}"),
                        }
                    };
                    assert!(status != ReceiptStatus::Conflict);
                    let mut acknowledged = acknowledged.lock().unwrap();
                    acknowledged.insert(event.event().id);
                    if acknowledged.len() == kill_at {
                        server.lock().unwrap().kill_and_restart();
                    }
                }
            }
        });
        let all = join_all(writers);
        tokio::time::timeout(PATIENCE, all).await.expect("it continues without reopening");
        let stored = store.scan(0, 10_000).await.unwrap();
        let ids: Vec<_> = stored.into_iter().map(|row| row.unwrap().stored.event.id).collect();
        let distinct: BTreeSet<_> = ids.iter().copied().collect();
        assert_eq!(ids.len(), distinct.len(), "no event is stored twice");
        assert!(acknowledged.lock().unwrap().is_subset(&distinct), "none is missing");
        log_is_sound(&store).await;
    });
}
