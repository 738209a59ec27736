//! Copies of flag stores.

use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{MemoryAuditStore, SqliteAuditStore, SqliteConfig};
use dezky_core::{ErrorKind, Timestamp};
use dezky_flags::store::{
    DocumentFlagStore, FlagChange, FlagStore, FlagTable, check_flags, copy_flags,
};
use dezky_flags::{Flag, FlagState, NewFlag};

fn memory() -> DocumentFlagStore {
    DocumentFlagStore::in_memory(Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime))))
}

fn flag(key: &str, version: u64) -> Box<Flag> {
    let state = if version.is_multiple_of(2) { FlagState::On } else { FlagState::Off };
    let flag = Flag::new(NewFlag { state, ..NewFlag::new(key) }, Timestamp::MIN).unwrap();
    Box::new(Flag { version, ..flag })
}

fn create(key: &str, version: u64) -> FlagChange {
    FlagChange::Create(flag(key, version))
}

fn replace(key: &str, version: u64) -> FlagChange {
    FlagChange::Replace(flag(key, version))
}

fn remove(key: &str, version: u64) -> FlagChange {
    FlagChange::Remove { key: key.into(), version }
}

async fn copied(from: &dyn FlagStore, to: &dyn FlagStore) -> FlagTable {
    let table = copy_flags(from, to).await.unwrap();
    assert_eq!(
        (from.table().await.unwrap(), to.table().await.unwrap()),
        (table.clone(), table.clone())
    );
    table
}

#[tokio::test]
async fn a_copy_continues_after_changes_of_the_flags() {
    let folder = tempfile::tempdir().unwrap();
    let config = SqliteConfig::new(folder.path().join("to.db"));
    let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
    let to = DocumentFlagStore::open(&log.database()).await.unwrap();
    let from = memory();
    copied(&from, &to).await;
    let all =
        vec![create("a", 1), create("b", 1), create("c", 1), create("gone", 1), remove("gone", 1)];
    from.commit(all, Vec::new()).await.unwrap();
    copied(&from, &to).await;
    copied(&from, &to).await;
    // A flag that is changed, one removed, one recreated, one created and removed in between, and a
    // new one.
    let changes = vec![
        replace("a", 2),
        replace("a", 3),
        replace("b", 2),
        remove("b", 2),
        remove("c", 1),
        create("c", 3),
        create("gone", 3),
        remove("gone", 3),
        create("passing", 1),
        replace("passing", 2),
        remove("passing", 2),
        create("new", 1),
    ];
    from.commit(changes, Vec::new()).await.unwrap();
    let table = copied(&from, &to).await;
    assert_eq!((table.revision(), table.last_version("passing")), (17, 3));
    assert_eq!(table.flag("a").unwrap().state, FlagState::Off);
    log.close().await;
}

/// More changes than fit into one commit.
#[tokio::test]
async fn a_copy_follows_a_long_way() {
    let (from, to) = (memory(), memory());
    from.commit(vec![create("a", 1)], Vec::new()).await.unwrap();
    copied(&from, &to).await;
    for version in 2..=2_500 {
        from.commit(vec![replace("a", version)], Vec::new()).await.unwrap();
    }
    assert_eq!(copied(&from, &to).await.revision(), 2_500);
}

#[tokio::test]
async fn flags_of_another_store_are_refused_and_stay() {
    let from = memory();
    from.commit(vec![create("a", 1), create("b", 1), remove("b", 1)], Vec::new()).await.unwrap();
    for own in [
        vec![create("own", 1)],
        vec![create("a", 1), create("own", 1), remove("own", 1)],
        vec![create("a", 1), replace("a", 2)],
        vec![create("a", 1), create("b", 1), remove("b", 1), create("b", 3)],
        vec![create("b", 1), remove("b", 1), create("b", 3), remove("b", 3)],
        vec![FlagChange::Create(Box::new(Flag { pct: 7, ..*flag("a", 1) }))],
    ] {
        let to = memory();
        to.commit(own.clone(), Vec::new()).await.unwrap();
        let before = to.table().await.unwrap();
        let error = check_flags(&from, &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StateConflict, "{own:?}: {error}");
        assert!(error.to_string().contains("name an empty store"), "{error}");
        assert_eq!(copy_flags(&from, &to).await.unwrap_err().to_string(), error.to_string());
        assert_eq!(to.table().await.unwrap(), before);
    }
}
