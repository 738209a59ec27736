//! The directory on PostgreSQL.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dezky_core::directory::{
    DirectoryStore, DocumentDirectory, Tenant, TenantKey, TenantQuery, UserKey,
};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{PostgresAuditStore, PostgresConfig};
use dezky_core::testkit::{BoxFuture, DirectoryHarness, OpenDirectory, Reopen, named_event};
use dezky_core::{AuditStore, ErrorKind, Runtime};
use proptest::prelude::*;
use sqlx::{Connection, PgConnection, Row};

use crate::databases::Databases;
use crate::directory::{agrees_with_memory, any_commits, refused, tenant};
use crate::sqlite::tokio;

struct Postgres(Databases);

impl Postgres {
    fn new() -> Self {
        Self(Databases::default())
    }

    /// The database created last.
    async fn log(&self) -> PostgresAuditStore {
        let config = PostgresConfig::new(self.0.url());
        PostgresAuditStore::open(config, &TokioRuntime).await.unwrap()
    }

    /// Creates a database with a directory.
    async fn directory(&self) -> (PostgresAuditStore, DocumentDirectory) {
        self.0.make().await;
        let log = self.log().await;
        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        (log, store)
    }
}

#[async_trait::async_trait]
impl DirectoryHarness for Postgres {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> OpenDirectory {
        if which == Reopen::No {
            self.0.make().await;
        }
        let log = self.log().await;
        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        OpenDirectory { store: Arc::new(store), log: Arc::new(log) }
    }
}

dezky_core::directory_store_conformance!(Postgres::new());

const ACME: TenantKey<'_> = TenantKey::Slug("acme");

#[test]
fn directories_that_open_at_once_are_created_once() {
    let postgres = Postgres::new();
    tokio().block_on(async {
        postgres.0.make().await;
        let opened = (0..8).map(|_| async {
            let log = postgres.log().await;
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
    let postgres = Postgres::new();
    tokio().block_on(async {
        postgres.0.make().await;
        let log = postgres.log().await;
        let mut looking = PostgresConfig::new(postgres.0.url());
        looking.migrate = false;
        let looking = PostgresAuditStore::open(looking, &TokioRuntime).await.unwrap();
        let answer = DocumentDirectory::open(&looking.database()).await;
        refused(answer, ErrorKind::StoreForeign, "the database holds no directory");
        DocumentDirectory::open(&log.database()).await.unwrap();
        let reader = DocumentDirectory::open(&looking.database()).await.unwrap();
        assert_eq!(reader.tenant(ACME).await.unwrap(), None);

        let mut tx = log.database().begin().await.unwrap();
        tx.run("UPDATE dezky_schema SET version = 9 WHERE component = 'directory'").await.unwrap();
        tx.commit().await.unwrap();
        let answer = DocumentDirectory::open(&log.database()).await;
        refused(answer, ErrorKind::SchemaNewer, "the database has schema version 9");
    });
}

#[test]
fn a_broken_document_is_named_and_not_quoted() {
    let postgres = Postgres::new();
    tokio().block_on(async {
        let (log, store) = postgres.directory().await;
        store.commit(vec![tenant("acme").into()], Vec::new()).await.unwrap();
        let mut tx = log.database().begin().await.unwrap();
        tx.run(r#"UPDATE dezky_tenants SET document = '{"slug":"secret"'"#).await.unwrap();
        tx.commit().await.unwrap();
        let error = store.tenant(ACME).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    });
}

/// Rows as written by version 1. They must stay readable forever: never change one.
const V1: &str = r#"
INSERT INTO dezky_tenants VALUES ('t-acme', 'acme', 'active', 'p-1', 3, '{"id":"t-acme","slug":"acme","name":"ACME Ö","status":"active","plan":"basic","domains":["acme.example"],"partnerId":"p-1","billing":{},"provisioningStatus":{},"provisioningErrors":{},"version":3,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-02T00:00:00.000Z"}');
INSERT INTO dezky_tenant_domains VALUES ('acme.example', 't-acme');
INSERT INTO dezky_users VALUES ('u-1', 'https://id.example/', 's', -9223372036854775808, 1, '{"id":"u-1","issuer":"https://id.example/","subject":"s","identities":[{"system":"ocis","id":"4c"}],"tenantIds":["t-acme"],"platformAdmin":false,"status":"active","version":1,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z"}');
INSERT INTO dezky_user_identities VALUES ('ocis', '4c', 'u-1');
INSERT INTO dezky_user_tenants VALUES ('t-acme', -9223372036854775808, 'u-1');
"#;

#[test]
fn a_directory_of_version_1_is_read_and_goes_on() {
    let postgres = Postgres::new();
    tokio().block_on(async {
        postgres.0.make().await;
        let log = postgres.log().await;
        let tables = include_str!("../../src/directory/postgres/v1.sql");
        log.database().migrate("directory", &[tables]).await.unwrap();
        let mut tx = log.database().begin().await.unwrap();
        tx.run(V1).await.unwrap();
        tx.commit().await.unwrap();

        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        let acme = store.tenant(TenantKey::Domain("acme.example")).await.unwrap().unwrap();
        assert_eq!((acme.name.as_str(), acme.version), ("ACME Ö", 3));
        let user = UserKey::Identity { system: "ocis", id: "4c" };
        assert_eq!(store.user(user).await.unwrap().unwrap().tenant_ids, ["t-acme"]);
        let next = Tenant { version: 4, domains: Vec::new(), ..acme };
        store.commit(vec![next.into()], Vec::new()).await.unwrap();
        assert_eq!(store.tenant(TenantKey::Domain("acme.example")).await.unwrap(), None);
    });
}

/// A connection cut at any point leaves both the change and its event, or neither, and the same
/// store remains usable.
#[test]
fn a_cut_connection_separates_no_change_from_its_event() {
    let postgres = Postgres::new();
    tokio().block_on(async {
        let (log, store) = postgres.directory().await;
        let is_over = AtomicBool::new(false);
        let cut = async {
            let mut admin = PgConnection::connect(&postgres.0.url()).await.unwrap();
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND state <> 'idle' \
                AND pid <> pg_backend_pid()";
            let mut cut = 0;
            while cut < 20 {
                let row = sqlx::query(sql).fetch_one(&mut admin).await.unwrap();
                cut += row.get::<i64, _>(0);
            }
            is_over.store(true, Ordering::SeqCst);
        };
        let write = async {
            let mut acknowledged = BTreeSet::new();
            for n in 0_u32.. {
                let slug = format!("n{n}");
                let event = named_event(&slug).seal(&TokioRuntime);
                match store.commit(vec![tenant(&slug).into()], vec![event]).await {
                    Ok(()) => drop(acknowledged.insert(slug)),
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                }
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
            }
            acknowledged
        };
        let ((), mut acknowledged) = tokio::join!(cut, write);
        store.commit(vec![tenant("last").into()], Vec::new()).await.unwrap();

        let mut query = TenantQuery { limit: 500, ..TenantQuery::default() };
        let mut made = BTreeSet::new();
        loop {
            let page = store.tenants(&query).await.unwrap();
            query.after = page.last().map(|tenant| tenant.slug.clone());
            made.extend(page.into_iter().map(|tenant| tenant.slug));
            if query.after.is_none() {
                break;
            }
        }
        assert!(made.remove("last"));
        while log.relay(1_000).await.unwrap().more {}
        let rows = log.scan(0, 10_000).await.unwrap();
        let told: BTreeSet<_> =
            rows.into_iter().map(|row| row.unwrap().stored.event.resource_id.unwrap()).collect();
        assert_eq!(told, made);
        acknowledged.retain(|slug| !made.contains(slug));
        assert!(acknowledged.is_empty(), "acknowledged and not there: {acknowledged:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// For any commits, PostgreSQL answers like the memory store and ends up with the same content.
    #[test]
    fn postgres_agrees_with_memory(commits in any_commits()) {
        let postgres = Postgres::new();
        tokio().block_on(async {
            let store = postgres.open(Reopen::No).await.store;
            agrees_with_memory(&*store, commits).await;
        });
    }
}
