//! Documents on every engine, against their conformance suite.

use std::sync::{Arc, Mutex};

use dezky_core::directory::DIRECTORY;
use dezky_core::documents::{
    Database, Document, Documents, MemoryDatabase, Put, Set, State, Value, Which,
};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    MemoryAuditStore, MongoAuditStore, PostgresAuditStore, PostgresConfig, SqliteAuditStore,
    SqliteConfig,
};
use dezky_core::testkit::{BoxFuture, DocumentsHarness, OpenDocuments, Reopen};
use dezky_core::{AuditStore, Runtime};
use tempfile::TempDir;

use crate::mongodb::Scratch;
use crate::servers::{Engine, tokio};

/// A test's own database.
pub(crate) enum Place {
    Memory(MemoryDatabase, Arc<dyn AuditStore>),
    Sqlite(TempDir),
    Postgres(crate::database::Database),
    Mongodb(Scratch),
}

impl Place {
    pub(crate) async fn new(engine: Engine) -> Self {
        match engine {
            Engine::Memory => {
                let log = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
                Self::Memory(MemoryDatabase::new(log.clone()), log)
            }
            Engine::Sqlite => Self::Sqlite(tempfile::tempdir().unwrap()),
            Engine::Postgres => Self::Postgres(crate::database::Database::postgres().await),
            Engine::Mongodb => Self::Mongodb(Scratch::new()),
        }
    }

    /// The database and its log, over separate connections.
    pub(crate) async fn open(&self) -> (Database, Arc<dyn AuditStore>) {
        match self {
            Self::Memory(database, log) => (database.into(), Arc::clone(log)),
            Self::Sqlite(folder) => {
                let config = SqliteConfig::new(folder.path().join("audit.db"));
                let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
                ((&log.database()).into(), Arc::new(log))
            }
            Self::Postgres(database) => {
                let config = PostgresConfig::new(database.url());
                let log = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
                ((&log.database()).into(), Arc::new(log))
            }
            Self::Mongodb(scratch) => {
                let log = MongoAuditStore::open(scratch.config(), Arc::new(TokioRuntime));
                let log = log.await.unwrap();
                ((&log.database()).into(), Arc::new(log))
            }
        }
    }
}

struct Harness(Engine, Mutex<Option<Arc<Place>>>);

impl Harness {
    fn new(engine: Engine) -> Self {
        Self(engine, Mutex::default())
    }
}

#[async_trait::async_trait]
impl DocumentsHarness for Harness {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen, set: &'static Set) -> OpenDocuments {
        if which == Reopen::No {
            let place = Arc::new(Place::new(self.0).await);
            *self.1.lock().unwrap() = Some(place);
        }
        let place = self.1.lock().unwrap().clone().expect("was made");
        let (database, log) = place.open().await;
        OpenDocuments { documents: Documents::open(set, database).await.unwrap(), log }
    }
}

/// In SQLite the directory has no table of a state.
#[test]
fn a_set_that_does_not_count_is_read_on_every_engine() {
    tokio().block_on(async {
        for engine in Engine::ALL {
            let place = Place::new(engine).await;
            let (database, _log) = place.open().await;
            let documents = Documents::open(&DIRECTORY, database).await.unwrap();
            let tenant = DIRECTORY.kinds[0];
            let nothing = documents.all(tenant, Which::Present).await.unwrap();
            assert_eq!(nothing, (State::default(), Vec::new()), "{engine:?}");
            let mut tx = documents.begin().await.unwrap();
            tx.lock(tenant, ["b", "a"]).await.unwrap();
            for id in ["b", "a"] {
                let fields = [Value::Text(Some("active".into())), Value::Text(None)];
                let document = Document::new(id, 1, &id).unwrap().named(id).with(fields);
                tx.put(tenant, Put::New, document).unwrap();
            }
            tx.commit().await.unwrap();
            for which in [Which::Present, Which::Known] {
                let (state, found) = documents.all(tenant, which).await.unwrap();
                let ids: Vec<_> = found.iter().map(|found| found.id.as_str()).collect();
                assert_eq!((state, ids), (State::default(), vec!["a", "b"]), "{engine:?}");
            }
            assert_eq!(documents.state().await.unwrap(), State::default(), "{engine:?}");
        }
    });
}

mod memory {
    dezky_core::documents_conformance!(super::Harness::new(super::Engine::Memory));
}

mod sqlite {
    dezky_core::documents_conformance!(super::Harness::new(super::Engine::Sqlite));
}

mod postgres {
    dezky_core::documents_conformance!(super::Harness::new(super::Engine::Postgres));
}

mod mongodb {
    dezky_core::documents_conformance!(super::Harness::new(super::Engine::Mongodb));
}
