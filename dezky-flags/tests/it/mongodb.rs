use std::sync::{Arc, Mutex};
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{MongoAuditStore, MongoCollection, MongoConfig};
use dezky_core::testkit::{BoxFuture, Reopen};
use dezky_core::{ErrorKind, Runtime};
use dezky_flags::store::{DocumentFlagStore, FlagStore};
use dezky_flags::testkit::{FlagStoreHarness, Opened};
use futures_util::FutureExt;
use futures_util::future::{join, try_join_all};
use mongodb::bson::{Document, doc};
use proptest::test_runner::{Config as ProptestConfig, TestRunner};

use crate::database::Database;
use crate::memory::{agrees_with_memory, any_commits};
use crate::postgres::{create, in_time};
use crate::sqlite::tokio;

/// Databases on the test server, dropped at the end.
#[derive(Default)]
struct Mongo(Mutex<Vec<Database>>);

impl Mongo {
    fn make(&self) {
        self.0.lock().unwrap().push(Database::mongodb());
    }

    /// Opens the database that was created last.
    async fn log_as(&self, migrate: bool) -> MongoAuditStore {
        let url = self.0.lock().unwrap().last().expect("was made").url();
        let mut config = MongoConfig::new(url);
        config.migrate = migrate;
        // A slow machine must not count as an outage.
        config.operation_timeout = Duration::from_mins(4);
        config.busy_timeout = Duration::from_mins(1);
        MongoAuditStore::open(config, Arc::new(TokioRuntime)).await.unwrap()
    }

    async fn log(&self) -> MongoAuditStore {
        self.log_as(true).await
    }

    /// Creates a database with flags.
    async fn flags(&self) -> (MongoAuditStore, DocumentFlagStore) {
        self.make();
        let log = self.log().await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        (log, store)
    }
}

/// Whether the server is the double, which scans every row for every read.
pub(crate) async fn is_double() -> bool {
    let url = crate::database::variable("DEZKY_TEST_MONGODB");
    let client = mongodb::Client::with_uri_str(url).await.unwrap();
    let build = client.database("admin").run_command(doc! { "buildInfo": 1 }).await.unwrap();
    build.contains_key("secantusVersion")
}

#[async_trait::async_trait]
impl FlagStoreHarness for Mongo {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> Opened {
        if which == Reopen::No {
            self.make();
        }
        let log = self.log().await;
        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        Opened { store: Arc::new(store), log: Arc::new(log) }
    }
}

dezky_flags::flag_store_conformance!(Mongo::default());

#[test]
fn a_flag_as_version_1_wrote_it_is_read() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        mongo.make();
        let log = mongo.log().await;
        let collections = ["dezky_flags", "dezky_flags_state"].map(MongoCollection::new);
        log.database().migrate("flags", &[collections.to_vec()]).await.unwrap();
        let flags = log.database().collection::<Document>("dezky_flags");
        let flag =
            doc! { "_id": "chat.threads", "version": 3_i64, "flag": crate::model::VERSION_1 };
        flags.insert_many([flag, doc! { "_id": "old", "version": 2_i64 }]).await.unwrap();
        let state = doc! { "_id": "flags", "revision": 5_i64, "flags": 1_i64, "keys": 2_i64 };
        let states = log.database().collection::<Document>("dezky_flags_state");
        states.insert_one(state).await.unwrap();

        let store = DocumentFlagStore::open(&log.database()).await.unwrap();
        let flag = store.flag("chat.threads").await.unwrap().unwrap();
        assert_eq!(flag, crate::model::version_1());
        assert_eq!(store.snapshot().await.unwrap().flags, [flag]);
        assert_eq!(store.last_version("old").await.unwrap(), 2);
        store.commit(vec![create("new")], Vec::new()).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), 6);
    });
}

#[test]
fn manual_changes_are_reported_as_corrupt() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        let (log, store) = mongo.flags().await;
        let flags = log.database().collection::<Document>("dezky_flags");
        let flag = doc! { "_id": "other", "version": 3_i64, "flag": crate::model::VERSION_1 };
        flags.insert_one(flag).await.unwrap();
        assert_eq!(store.flag("other").await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        for broken in [doc! { "flag": "{" }, doc! { "flag": 1 }, doc! { "version": "3" }] {
            flags.update_one(doc! {}, doc! { "$set": broken }).await.unwrap();
            assert_eq!(store.flag("other").await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
            assert_eq!(store.table().await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
            assert_eq!(store.snapshot().await.unwrap().invalid[0].key, "other");
        }
        let states = log.database().collection::<Document>("dezky_flags_state");
        states.insert_one(doc! { "_id": "flags", "revision": -1_i64 }).await.unwrap();
        let refused = store.commit(vec![create("a")], Vec::new()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreCorrupt);
    });
}

#[test]
fn a_database_is_checked_before_it_is_written_to() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        mongo.make();
        let log = mongo.log().await;
        let looking = mongo.log_as(false).await;
        let missing = DocumentFlagStore::open(&looking.database()).await.err().unwrap();
        assert_eq!(missing.kind(), ErrorKind::StoreForeign);
        DocumentFlagStore::open(&log.database()).await.unwrap();
        let reader = DocumentFlagStore::open(&looking.database()).await.unwrap();
        assert_eq!(reader.revision().await.unwrap(), 0);
        let schema = log.database().collection::<Document>("dezky_schema");
        let newer = doc! { "$set": { "version": 99_i64 } };
        schema.update_one(doc! { "_id": "flags" }, newer).await.unwrap();
        let refused = DocumentFlagStore::open(&log.database()).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::SchemaNewer);
    });
}

#[test]
fn stores_that_open_at_once_share_one_state() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        mongo.make();
        let opened = (0..8).map(|_| async {
            let log = mongo.log().await;
            DocumentFlagStore::open(&log.database()).await.map(|store| (log, store))
        });
        let opened = try_join_all(opened).await.unwrap();
        let keys: Vec<_> = (0..8).map(|n| format!("k{n}")).collect();
        // The first change writes the state as well: only one of them does.
        let commits = opened
            .iter()
            .zip(&keys)
            .map(|((_, store), key)| store.commit(vec![create(key)], Vec::new()));
        try_join_all(commits).await.unwrap();
        for (_, store) in &opened {
            assert_eq!(store.revision().await.unwrap(), 8);
        }
    });
}

#[test]
fn other_stores_are_notified_of_a_change() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        let (_log, store) = mongo.flags().await;
        let Opened { store: other, log: _log } = mongo.open(Reopen::Yes).await;
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

/// For any commits, MongoDB answers like the memory store and ends up with the same content.
#[test]
fn mongodb_agrees_with_memory() {
    let mongo = Mongo::default();
    let runtime = tokio();
    let (log, store) = runtime.block_on(mongo.flags());
    let config = ProptestConfig { cases: 6, failure_persistence: None, ..Default::default() };
    let agrees = |commits| {
        runtime.block_on(async {
            // Emptied rather than recreated, which takes long.
            for kind in ["dezky_flags", "dezky_flags_state"] {
                let collection = log.database().collection::<Document>(kind);
                collection.delete_many(doc! {}).await.unwrap();
            }
            agrees_with_memory(&store, commits).await;
        });
        Ok(())
    };
    TestRunner::new(config).run(&any_commits(), agrees).unwrap();
}
