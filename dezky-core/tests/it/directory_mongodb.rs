//! The directory on MongoDB.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use dezky_core::directory::{
    DirectoryStore, DocumentDirectory, Tenant, TenantKey, TenantQuery, UserKey,
};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{MongoAuditStore, MongoCollection, MongoConfig};
use dezky_core::testkit::{BoxFuture, DirectoryHarness, OpenDirectory, Reopen, named_event};
use dezky_core::{AuditStore, ErrorKind, Runtime};
use mongodb::bson::{Document, doc};
use proptest::test_runner::{Config as ProptestConfig, TestRunner};

use crate::directory::{agrees_with_memory, any_commits, refused, tenant};
use crate::mongodb::Scratch;
use crate::sqlite::tokio;

#[derive(Default)]
struct Mongo(Mutex<Vec<Scratch>>);

impl Mongo {
    /// The configuration of the database created last.
    fn config(&self) -> MongoConfig {
        self.0.lock().unwrap().last().expect("was made").config()
    }

    async fn log(&self) -> MongoAuditStore {
        MongoAuditStore::open(self.config(), Arc::new(TokioRuntime)).await.unwrap()
    }

    fn make(&self) {
        self.0.lock().unwrap().push(Scratch::new());
    }

    /// Creates a database with a directory.
    async fn directory(&self) -> (MongoAuditStore, DocumentDirectory) {
        self.make();
        let log = self.log().await;
        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        (log, store)
    }
}

#[async_trait::async_trait]
impl DirectoryHarness for Mongo {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> OpenDirectory {
        if which == Reopen::No {
            self.make();
        }
        let log = self.log().await;
        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        OpenDirectory { store: Arc::new(store), log: Arc::new(log) }
    }
}

dezky_core::directory_store_conformance!(Mongo::default());

const ACME: TenantKey<'_> = TenantKey::Slug("acme");

#[test]
fn directories_that_open_at_once_are_created_once() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        mongo.make();
        let opened = (0..8).map(|_| async {
            let log = mongo.log().await;
            DocumentDirectory::open(&log.database()).await.map(|store| (log, store))
        });
        let opened = futures_util::future::try_join_all(opened).await.unwrap();
        opened[0].1.commit(vec![tenant("acme").into()], Vec::new()).await.unwrap();
        for (_, store) in &opened {
            assert!(store.tenant(ACME).await.unwrap().is_some());
        }
    });
}

#[test]
fn a_database_is_checked_before_it_is_written_to() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        mongo.make();
        let log = mongo.log().await;
        let mut looking = mongo.config();
        looking.migrate = false;
        let looking = MongoAuditStore::open(looking, Arc::new(TokioRuntime)).await.unwrap();
        let answer = DocumentDirectory::open(&looking.database()).await;
        refused(answer, ErrorKind::StoreForeign, "the database holds no directory");
        DocumentDirectory::open(&log.database()).await.unwrap();
        let reader = DocumentDirectory::open(&looking.database()).await.unwrap();
        assert_eq!(reader.tenant(ACME).await.unwrap(), None);

        let schema = log.database().collection::<Document>("dezky_schema");
        let newer = doc! { "$set": { "version": 9_i64 } };
        schema.update_one(doc! { "_id": "directory" }, newer).await.unwrap();
        let answer = DocumentDirectory::open(&log.database()).await;
        refused(answer, ErrorKind::SchemaNewer, "the database has schema version 9");
    });
}

#[test]
fn a_broken_document_is_named_and_not_quoted() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        let (log, store) = mongo.directory().await;
        store.commit(vec![tenant("acme").into()], Vec::new()).await.unwrap();
        let tenants = log.database().collection::<Document>("dezky_tenants");
        for broken in [doc! { "document": "{\"slug\":\"secret\"" }, doc! { "document": 7 }] {
            tenants.update_one(doc! {}, doc! { "$set": broken }).await.unwrap();
            let error = store.tenant(ACME).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    });
}

/// The indexes enforce uniqueness, although the store checks before it writes: other programs
/// don't.
#[test]
fn unique_values_are_enforced_by_the_server() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        let (log, store) = mongo.directory().await;
        let owner = Tenant { domains: vec!["a.example".into()], ..tenant("acme") };
        store.commit(vec![owner.into(), tenant("none").into()], Vec::new()).await.unwrap();
        let tenants = log.database().collection::<Document>("dezky_tenants");
        for (fields, index) in [
            (doc! { "slug": "acme" }, "by_slug"),
            (doc! { "slug": "other", "domains": ["b.example", "a.example"] }, "by_domain"),
        ] {
            let refused = log.database().run(tenants.insert_one(fields)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
            assert!(refused.to_string().contains(index), "{refused}");
        }
        tenants.insert_one(doc! { "slug": "other" }).await.expect("owns nothing, as another");
    });
}

const ACME_V1: &str = r#"{"id":"t-acme","slug":"acme","name":"ACME Ö","status":"active","plan":"basic","domains":["acme.example"],"partnerId":"p-1","billing":{},"provisioningStatus":{},"provisioningErrors":{},"version":3,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-02T00:00:00.000Z"}"#;
const USER_V1: &str = r#"{"id":"u-1","issuer":"https://id.example/","subject":"s","identities":[{"system":"ocis","id":"4c"}],"tenantIds":["t-acme"],"platformAdmin":false,"status":"active","version":1,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z"}"#;

/// Documents as written by version 1. They must stay readable forever: never change one.
#[test]
fn a_directory_of_version_1_is_read_and_goes_on() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        mongo.make();
        let log = mongo.log().await;
        let collections =
            ["dezky_directory_state", "dezky_tenants", "dezky_partners", "dezky_users"];
        let step = collections.map(MongoCollection::new).to_vec();
        log.database().migrate("directory", &[step]).await.unwrap();
        let database = log.database();
        let tenants = database.collection::<Document>("dezky_tenants");
        let acme = doc! {
            "_id": "t-acme", "slug": "acme", "status": "active", "partner_id": "p-1",
            "domains": ["acme.example"], "version": 3_i64, "document": ACME_V1,
        };
        tenants.insert_one(acme).await.unwrap();
        let users = database.collection::<Document>("dezky_users");
        let user = doc! {
            "_id": "u-1", "subject": "https://id.example/\u{1f}s", "identities": ["ocis\u{1f}4c"],
            "tenant_ids": ["t-acme"], "last_login": i64::MIN, "version": 1_i64,
            "document": USER_V1,
        };
        users.insert_one(user).await.unwrap();

        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        let acme = store.tenant(TenantKey::Domain("acme.example")).await.unwrap().unwrap();
        assert_eq!((acme.name.as_str(), acme.version), ("ACME Ö", 3));
        for user in [
            UserKey::Identity { system: "ocis", id: "4c" },
            UserKey::Subject { issuer: "https://id.example/", subject: "s" },
        ] {
            assert_eq!(store.user(user).await.unwrap().unwrap().tenant_ids, ["t-acme"]);
        }
        let next = Tenant { version: 4, domains: Vec::new(), ..acme };
        store.commit(vec![next.into()], Vec::new()).await.unwrap();
        assert_eq!(store.tenant(TenantKey::Domain("acme.example")).await.unwrap(), None);
    });
}

/// Two processes that change different documents take turns, and two that change the same one lose
/// nothing.
#[test]
fn writers_of_two_processes_take_turns() {
    let mongo = Mongo::default();
    tokio().block_on(async {
        let (log, store) = mongo.directory().await;
        let other = mongo.open(Reopen::Yes).await.store;
        let stores: [&dyn DirectoryStore; 2] = [&store, &*other];
        let commits = (0..20).map(|n| {
            let slug = format!("n{n}");
            let event = named_event(&slug).seal(&TokioRuntime);
            stores[n % 2].commit(vec![tenant(&slug).into()], vec![event])
        });
        futures_util::future::try_join_all(commits).await.unwrap();
        let made = store.tenants(&TenantQuery::default()).await.unwrap();
        let made: BTreeSet<_> = made.into_iter().map(|tenant| tenant.slug).collect();
        while log.relay(1_000).await.unwrap().more {}
        let rows = log.scan(0, 100).await.unwrap();
        let told: BTreeSet<_> =
            rows.into_iter().map(|row| row.unwrap().stored.event.resource_id.unwrap()).collect();
        assert_eq!((made.len(), &told), (20, &made));
    });
}

/// For any commits, MongoDB answers like the memory store and ends up with the same content.
#[test]
fn mongodb_agrees_with_memory() {
    let mongo = Mongo::default();
    let runtime = tokio();
    let (log, store) = runtime.block_on(mongo.directory());
    let config = ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() };
    let agrees = |commits| {
        runtime.block_on(async {
            // Emptied rather than recreated, which takes long.
            for kind in ["dezky_tenants", "dezky_users"] {
                let collection = log.database().collection::<Document>(kind);
                collection.delete_many(doc! {}).await.unwrap();
            }
            agrees_with_memory(&store, commits).await;
        });
        Ok(())
    };
    TestRunner::new(config).run(&any_commits(), agrees).unwrap();
}
