use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::MemoryAuditStore;
use dezky_core::testkit::{BoxFuture, Reopen};
use dezky_core::{Runtime, Timestamp};
use dezky_flags::store::{DocumentFlagStore, FlagChange, FlagStore};
use dezky_flags::testkit::{FlagStoreHarness, Opened};
use dezky_flags::{Flag, NewFlag};
use proptest::prelude::*;

pub(crate) struct Memory;

#[async_trait::async_trait]
impl FlagStoreHarness for Memory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, _which: Reopen) -> Opened {
        let log = Arc::new(MemoryAuditStore::open(self.runtime()));
        Opened { store: Arc::new(DocumentFlagStore::in_memory(log.clone())), log }
    }
}

dezky_flags::flag_store_conformance!(Memory);

/// A generated change: the key, the kind, the distance from the matching version, and a percentage.
type Drawn = (u8, u8, i64, u8);

/// Commits with changes of one of three keys, mostly with the matching version.
pub(crate) fn any_commits() -> impl Strategy<Value = Vec<Vec<Drawn>>> {
    let off_by = prop_oneof![8 => Just(0_i64), 1 => Just(1), 1 => Just(-1)];
    // A percentage beyond 100 is out of bounds.
    let change = (0..3_u8, 0..4_u8, off_by, 0..104_u8);
    prop::collection::vec(prop::collection::vec(change, 1..3), 1..30)
}

/// Checks that for any commits to an empty store, the store answers like the memory store and ends
/// up with the same content.
pub(crate) async fn agrees_with_memory(store: &dyn FlagStore, commits: Vec<Vec<Drawn>>) {
    let memory = Memory.open(Reopen::No).await.store;
    for commit in commits {
        let mut changes = Vec::new();
        for (key, what, off_by, pct) in commit {
            let key = format!("k{key}");
            let last = memory.last_version(&key).await.unwrap();
            let near = |version: u64| version.saturating_add_signed(off_by);
            let flag = Flag::new(NewFlag::new(key.clone()), Timestamp::MIN).unwrap();
            let flag = Box::new(Flag { version: near(last + 1), pct, ..flag });
            changes.push(match what {
                0 => FlagChange::Create(flag),
                1 => FlagChange::Remove { key, version: near(last) },
                _ => FlagChange::Replace(flag),
            });
        }
        let by_memory = memory.commit(changes.clone(), Vec::new()).await;
        let by_store = store.commit(changes.clone(), Vec::new()).await;
        let said = |answer: dezky_core::Result<()>| {
            answer.map_err(|error| (error.kind(), error.to_string()))
        };
        assert_eq!(said(by_store), said(by_memory), "{changes:?}");
        assert_eq!(store.table().await.unwrap(), memory.table().await.unwrap());
        assert_eq!(store.snapshot().await.unwrap(), memory.snapshot().await.unwrap());
        for key in ["k0", "k1", "k2"] {
            let last = memory.last_version(key).await.unwrap();
            assert_eq!(store.last_version(key).await.unwrap(), last);
        }
    }
}
