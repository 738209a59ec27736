//! Databases as a whole: access, schema versions, examination, transactions, copies.

use dezky::copy::CopyStep::{Documents, Rows, VerifySource, VerifyTarget};
use std::sync::Arc;

use dezky::core::store::{MemoryAuditStore, PostgresAuditStore, SqliteAuditStore};
use dezky::directory::DocumentDirectory;
use dezky::engine::{Check, Engine, Level, Report};
use dezky::flags::store::DocumentFlagStore;
use dezky::{
    Access, Actor, Edit, ErrorKind, FlagState, NewEvent, NewFlag, NewTenant, Platform, StoreConfig,
    Stores, TokioRuntime, copy,
};

use crate::Place;

fn config(place: &Place) -> StoreConfig {
    StoreConfig::parse(&place.url).unwrap()
}

fn engine(place: &Place) -> Engine {
    Engine::new(&config(place)).unwrap()
}

async fn migrate(place: &Place) {
    Stores::open(&config(place), Access::Migrate).await.unwrap().close().await;
}

fn bad(report: &Report) -> Vec<&Check> {
    report.checks.iter().filter(|check| check.level == Level::Bad).collect()
}

/// Only a migration creates anything; afterwards every schema is current.
async fn only_migrating_creates(place: &Place) {
    let before = engine(place).schema().await.unwrap();
    assert!(before.found.is_empty() && before.is_behind(), "{before:?}");
    let (report, database) = engine(place).examine().await;
    assert!(database.is_none());
    assert!(bad(&report).iter().any(|c| c.finding.contains("there is none yet")), "{report:?}");
    for access in [Access::Write, Access::Use, Access::Read] {
        let error = Stores::open(&config(place), access).await.err().unwrap();
        let is_refused = matches!(error.kind(), ErrorKind::StoreForeign | ErrorKind::ConfigInvalid);
        assert!(is_refused, "{access:?}: {error:?}");
        assert!(error.to_string().contains("dezky"), "it names the database: {error}");
    }
    assert_eq!(engine(place).schema().await.unwrap(), before);

    migrate(place).await;
    let after = engine(place).schema().await.unwrap();
    assert!(after.is_current() && !after.is_behind() && after.newer().is_none(), "{after:?}");
    for access in [Access::Write, Access::Use, Access::Read] {
        Stores::open(&config(place), access).await.unwrap().close().await;
    }
    let (report, database) = engine(place).examine().await;
    // The tests' server runs without fsync, because its data need not be durable.
    let found: Vec<_> = bad(&report).into_iter().filter(|c| c.what != "durability").collect();
    assert!(found.is_empty(), "{report:?}");
    assert!(report.count(Level::Ok) > 5, "{report:?}");
    let database = database.expect("is open for reading");
    assert_eq!(database.log().state().await.unwrap().head.next_seq, 0);
    database.close().await;
}

#[tokio::test]
async fn an_sqlite_file_is_created_by_migrating_alone() {
    only_migrating_creates(&Place::sqlite()).await;
}

#[tokio::test]
async fn a_postgres_schema_is_created_by_migrating_alone() {
    only_migrating_creates(&Place::postgres().await).await;
}

#[tokio::test]
async fn mongodb_collections_are_created_by_migrating_alone() {
    only_migrating_creates(&Place::mongodb()).await;
}

/// A platform can be built from any log, directory and flags.
#[tokio::test]
async fn stores_of_ones_own() {
    let log = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
    let directory = Arc::new(DocumentDirectory::in_memory(log.clone()));
    let flags = Arc::new(DocumentFlagStore::in_memory(log.clone()));
    let stores = Stores::new(log, directory, flags);
    assert!(stores.database().is_none());
    let platform = Platform::builder(stores).build().await.unwrap();
    furnish(&platform).await;
    assert_eq!(platform.store.state().await.unwrap().head.next_seq, 3);
    platform.close().await;
}

#[tokio::test]
async fn memory_needs_no_schema_and_keeps_nothing() {
    let engine = Engine::new(&StoreConfig::parse("memory://").unwrap()).unwrap();
    assert!(engine.schema().await.unwrap().is_current());
    let (report, database) = engine.examine().await;
    assert!(database.is_none());
    assert_eq!(bad(&report).len(), 1);
}

/// The log's concrete type offers transactions that include the embedder's own tables.
#[tokio::test]
async fn an_event_commits_with_a_row_of_ones_own() {
    let place = Place::sqlite();
    let mut shared = config(&place);
    shared.set("shared", "true").unwrap();
    let stores = Stores::open(&shared, Access::Migrate).await.unwrap();
    let platform = Platform::builder(stores).build().await.unwrap();
    let database = platform.stores().database().unwrap();
    assert!(database.log_as::<PostgresAuditStore>().is_none());
    let own = database.log_as::<SqliteAuditStore>().unwrap().database();

    own.migrate("notes", &["CREATE TABLE notes (text TEXT) STRICT"]).await.unwrap();
    let mut tx = own.begin().await.unwrap();
    sqlx::query("INSERT INTO notes VALUES ('milk')").execute(&mut *tx).await.unwrap();
    let event = platform.log.seal(NewEvent::new("note.created", Actor::user("u-1")));
    own.commit(tx, &[event]).await.unwrap();
    assert_eq!(platform.store.relay(10).await.unwrap().appended, 1);
    platform.close().await;
}

async fn furnish(platform: &Platform) {
    let by = Edit::by(Actor::user("u-7"));
    platform.directory.create_tenant(NewTenant::new("acme", "Acme", "pro"), &by).await.unwrap();
    let flag = NewFlag { state: FlagState::On, ..NewFlag::new("new_editor") };
    platform.flags.create(flag, &by).await.unwrap();
    platform.log.record(NewEvent::new("tenant.suspended", Actor::user("u-7"))).await;
}

#[tokio::test]
async fn a_copy_on_mongodb_by_way_of_postgres_is_the_same_store() {
    let places = [Place::sqlite(), Place::postgres().await, Place::mongodb()];
    let platform = Platform::open(&places[0].url).await.unwrap();
    furnish(&platform).await;
    platform.close().await;
    let mut heads = Vec::new();
    for ends in places.windows(2) {
        let from = Stores::open(&config(&ends[0]), Access::Use).await.unwrap();
        let to = Stores::open(&config(&ends[1]), Access::Migrate).await.unwrap();
        let mut steps = Vec::new();
        let copied = copy::copy(&from, &to, |progress| {
            if steps.last() != Some(&progress.step) {
                steps.push(progress.step);
            }
        });
        let copied = copied.await.unwrap();
        assert_eq!((copied.rows, copied.documents.tenants), (3, 1));
        assert_eq!(copied.flags.snapshot().flags.len(), 1);
        assert_eq!(steps, [Documents, Rows, VerifySource, VerifyTarget]);
        let again = copy::copy(&from, &to, |_| ()).await.unwrap();
        assert_eq!((again.rows, again.head.hash), (0, copied.head.hash));
        heads.push(copied.head);
        from.close().await;
        to.close().await;
    }
    assert_eq!(heads[0], heads[1]);
}

#[tokio::test]
async fn a_target_with_other_content_is_refused_unchanged() {
    let from = Platform::open("memory://").await.unwrap();
    let to = Platform::open("memory://").await.unwrap();
    furnish(&from).await;
    to.log.record(NewEvent::new("tenant.created", Actor::system())).await;
    let error = copy::copy(from.stores(), to.stores(), |_| ()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StateConflict);
    assert!(error.to_string().ends_with("(nothing was changed)"), "{error}");
    assert_eq!(to.store.state().await.unwrap().head.next_seq, 1);
}
