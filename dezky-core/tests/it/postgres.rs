//! The log in PostgreSQL, each test in a database of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{PostgresAuditStore, PostgresConfig};
use dezky_core::testkit::{BoxFuture, Reopen, StoreHarness};
use dezky_core::{AuditStore, Runtime};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::sqlite::tokio;

/// Databases that are dropped at the end of a test.
pub(crate) struct Databases {
    server: String,
    prefix: String,
    made: AtomicUsize,
}

impl Databases {
    pub(crate) fn new() -> Self {
        let server = std::env::var("DEZKY_TEST_POSTGRES")
            .expect("DEZKY_TEST_POSTGRES is not set: run this by .ci/with-servers");
        let mut random = [0; 16];
        TokioRuntime.fill_random(&mut random);
        let prefix = format!("dezky_test_{}", Uuid::from_bytes(random).simple());
        Self { server, prefix, made: AtomicUsize::new(0) }
    }

    /// The last one that was made.
    pub(crate) fn url(&self) -> String {
        self.url_of(self.made.load(Ordering::SeqCst))
    }

    fn url_of(&self, number: usize) -> String {
        let (server, _) = self.server.rsplit_once('/').unwrap();
        format!("{server}/{}_{number}", self.prefix)
    }

    /// A new, empty one.
    pub(crate) async fn make(&self) -> String {
        let number = self.made.fetch_add(1, Ordering::SeqCst) + 1;
        self.admin(format!("CREATE DATABASE {}_{number}", self.prefix)).await;
        self.url()
    }

    async fn admin(&self, sql: String) {
        let mut connection = PgConnection::connect(&self.server).await.unwrap();
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        let drop = async {
            for number in 1..=self.made.load(Ordering::SeqCst) {
                let name = format!("{}_{number}", self.prefix);
                self.admin(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            }
        };
        // The test's own runtime may be what drops this.
        std::thread::scope(|scope| {
            let dropped = scope.spawn(|| tokio().block_on(drop)).join();
            if !std::thread::panicking() {
                dropped.expect("the databases are dropped");
            }
        });
    }
}

struct Postgres {
    databases: Databases,
}

impl Postgres {
    fn new() -> Self {
        Self { databases: Databases::new() }
    }
}

#[async_trait::async_trait]
impl StoreHarness for Postgres {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> Arc<dyn AuditStore> {
        let url = match which {
            Reopen::No => self.databases.make().await,
            Reopen::Yes => self.databases.url(),
        };
        let store = PostgresAuditStore::open(PostgresConfig::new(url), &TokioRuntime).await;
        Arc::new(store.unwrap())
    }
}

dezky_core::audit_store_conformance!(Postgres::new());
