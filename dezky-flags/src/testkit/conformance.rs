//! The conformance suite of [`FlagStore`]: one named test per case.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use dezky_core::store::ListQuery;
use dezky_core::testkit::{BoxFuture, ManualRuntime, Reopen, named_event};
use dezky_core::{
    Actor, AuditLog, AuditStore, ErrorKind, NewEvent, Result, Runtime, SealedEvent, Timestamp,
};
use futures_util::future::{join, join_all};

use super::FlagGenerator;
use crate::store::{FlagChange, FlagStore, FlagTable, MAX_COMMIT_CHANGES, MAX_FLAGS};
use crate::{
    Bits, Edit, Flag, FlagContext, FlagOptions, FlagPatch, FlagSet, FlagState, Flags, NewFlag,
    decide,
};

/// The suite's access to a store.
#[async_trait]
pub trait FlagStoreHarness: Send + Sync + 'static {
    /// The runtime that the store was created with.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Runs a case to completion on the executor that the store needs.
    fn block_on(&self, case: BoxFuture<'_, ()>);

    /// Opens a store: a new empty one, or the one opened before by this harness. The latter is
    /// requested only for stores that report being durable or shared.
    async fn open(&self, which: Reopen) -> Opened;
}

/// A store and the log that receives its events.
#[derive(Clone)]
pub struct Opened {
    /// The store.
    pub store: Arc<dyn FlagStore>,
    /// The log.
    pub log: Arc<dyn AuditStore>,
}

/// Expands to one `#[test]` per case of the suite, in the current module.
///
/// Takes an expression that creates a [`FlagStoreHarness`](crate::testkit::FlagStoreHarness); it is
/// evaluated for each case.
#[macro_export]
macro_rules! flag_store_conformance {
    ($harness:expr) => {
        $crate::flag_store_conformance!(@cases $harness;
            a_new_store_is_empty
            stored_flags_are_read_back
            a_key_is_made_once
            a_version_is_compared_and_set
            of_fifty_commits_at_once_one_wins
            of_fifty_editors_none_loses_a_change
            changes_and_events_are_one
            a_dropped_commit_is_made_with_its_event_or_not
            a_refused_change_undoes_those_before_it
            changes_of_a_commit_see_each_other
            a_flag_out_of_bounds_is_refused
            the_revision_grows_with_every_change
            a_snapshot_is_one_view
            hostile_keys_are_plain_texts
            versions_go_on_after_a_removal
            seeds_are_sown_once
            a_commit_has_a_bound
            a_store_has_a_bound
            a_copy_knows_every_key
            another_handle_sees_what_was_acknowledged
            decisions_are_the_same_everywhere
        );
    };
    (@cases $harness:expr; $($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                let harness = $harness;
                let run = $crate::testkit::conformance::$case(&harness);
                $crate::testkit::FlagStoreHarness::block_on(&harness, ::std::boxed::Box::pin(run));
            }
        )+
    };
}

type Harness<'a> = &'a dyn FlagStoreHarness;

fn flag(key: &str, version: u64, pct: u8) -> Flag {
    let new = NewFlag { pct, ..NewFlag::new(key) };
    Flag { version, ..Flag::new(new, Timestamp::MIN).expect("within the bounds") }
}

fn create(key: &str, version: u64) -> FlagChange {
    FlagChange::Create(Box::new(flag(key, version, 0)))
}

fn replace(key: &str, version: u64, pct: u8) -> FlagChange {
    FlagChange::Replace(Box::new(flag(key, version, pct)))
}

fn remove(key: &str, version: u64) -> FlagChange {
    FlagChange::Remove { key: key.to_owned(), version }
}

fn event(harness: Harness<'_>, name: &str) -> SealedEvent {
    named_event(name).seal(&*harness.runtime())
}

fn kind(result: Result<()>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// Two handles to one store, as two processes would have; the same handle twice if the store can't
/// be shared.
async fn pair(h: Harness<'_>) -> [Opened; 2] {
    let first = h.open(Reopen::No).await;
    let shared = first.store.capabilities().shared;
    let second = if shared { h.open(Reopen::Yes).await } else { first.clone() };
    [first, second]
}

/// The timeline after relaying everything, oldest event first.
async fn timeline(log: &Arc<dyn AuditStore>) -> Vec<(String, String)> {
    while log.relay(1_000).await.expect("relays").more {}
    let query = ListQuery { limit: 500, ..ListQuery::default() };
    let mut events: Vec<_> = log
        .list(&query)
        .await
        .expect("lists")
        .events
        .into_iter()
        .map(|stored| {
            (stored.seq, stored.event.action, stored.event.resource_id.unwrap_or_default())
        })
        .collect();
    events.sort_unstable_by_key(|event| event.0);
    events.into_iter().map(|(_, action, id)| (action, id)).collect()
}

fn editor(harness: Harness<'_>, opened: &Opened) -> Flags {
    let log = AuditLog::new(Arc::clone(&opened.log), harness.runtime());
    Flags::new(Arc::clone(&opened.store), Arc::new(log), harness.runtime())
}

/// See the name.
pub async fn a_new_store_is_empty(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    assert_eq!(store.revision().await.unwrap(), 0);
    assert!(store.snapshot().await.unwrap().flags.is_empty());
    assert_eq!(store.flag("a").await.unwrap(), None);
    assert_eq!(store.last_version("a").await.unwrap(), 0);
    assert!(timeline(&log).await.is_empty());
}

/// See the name.
pub async fn stored_flags_are_read_back(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    let manual = ManualRuntime::new(1);
    let mut flags = FlagGenerator::new(&manual).flags(200);
    let changes = flags.iter().map(|flag| FlagChange::Create(Box::new(flag.clone()))).collect();
    store.commit(changes, Vec::new()).await.unwrap();
    for flag in &flags {
        assert_eq!(store.flag(&flag.key).await.unwrap().as_ref(), Some(flag));
    }
    flags.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(store.snapshot().await.unwrap().flags, flags, "by key, as bytes");
}

/// See the name.
pub async fn a_key_is_made_once(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    store.commit(vec![create("a", 1)], vec![event(h, "first")]).await.unwrap();
    for version in [1, 2] {
        let again = store.commit(vec![create("a", version)], vec![event(h, "again")]).await;
        assert_eq!(kind(again), Some(ErrorKind::AlreadyExists));
    }
    assert_eq!(
        kind(store.commit(vec![create("b", 2)], vec![]).await),
        Some(ErrorKind::VersionMismatch)
    );
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(timeline(&log).await.len(), 1);
}

/// See the name.
pub async fn a_version_is_compared_and_set(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    store.commit(vec![create("a", 1)], Vec::new()).await.unwrap();
    store.commit(vec![replace("a", 2, 20)], Vec::new()).await.unwrap();
    for refused in
        [replace("a", 1, 9), replace("a", 2, 9), replace("a", 4, 9), remove("a", 1), remove("a", 3)]
    {
        let refused = store.commit(vec![refused], vec![event(h, "refused")]).await;
        assert_eq!(kind(refused), Some(ErrorKind::VersionMismatch));
    }
    for missing in [replace("b", 1, 9), remove("b", 0)] {
        let refused = store.commit(vec![missing], vec![event(h, "refused")]).await;
        assert_eq!(kind(refused), Some(ErrorKind::NotFound));
    }
    assert_eq!(store.flag("a").await.unwrap(), Some(flag("a", 2, 20)));
    store.commit(vec![remove("a", 2)], Vec::new()).await.unwrap();
    assert_eq!(store.flag("a").await.unwrap(), None);
    assert!(timeline(&log).await.is_empty());
}

/// See the name.
pub async fn of_fifty_commits_at_once_one_wins(h: Harness<'_>) {
    let handles = pair(h).await;
    let Opened { store, log } = &handles[0];
    store.commit(vec![create("a", 1)], Vec::new()).await.unwrap();
    let commits = (0..50).map(|n| {
        let store = &handles[usize::from(n % 2)].store;
        store.commit(vec![replace("a", 2, n)], vec![event(h, &n.to_string())])
    });
    let results = join_all(commits).await;
    let won: Vec<_> = (0_u8..).zip(&results).filter(|(_, result)| result.is_ok()).collect();
    assert_eq!(won.len(), 1);
    assert!(results.into_iter().filter_map(kind).all(|k| k == ErrorKind::VersionMismatch));
    let pct = store.flag("a").await.unwrap().unwrap().pct;
    assert_eq!(timeline(log).await, [("tenant.updated".to_owned(), pct.to_string())]);
}

/// The editors don't share a lock, as if each ran in its own process.
pub async fn of_fifty_editors_none_loses_a_change(h: Harness<'_>) {
    let handles = pair(h).await;
    let opened = &handles[0];
    let editors: Vec<_> = (0..50).map(|n| editor(h, &handles[n % 2])).collect();
    let edit = Edit::by(Actor::user("u-1"));
    editors[0].create(NewFlag::new("a"), &edit).await.unwrap();
    let edits = editors.iter().enumerate().map(|(n, flags)| {
        let edit = &edit;
        async move {
            let patch = FlagPatch { description: Some(format!("by {n}")), ..FlagPatch::default() };
            flags.update("a", &patch, edit).await.unwrap().version
        }
    });
    let mut versions = join_all(edits).await;
    versions.sort_unstable();
    assert_eq!(versions, (2..=51).collect::<Vec<_>>(), "gapless, each once");
    let flag = opened.store.flag("a").await.unwrap().unwrap();
    assert_eq!((flag.version, flag.history.len()), (51, 20));
    for pair in flag.history.windows(2) {
        assert_eq!(
            pair[0].changes[0].from, pair[1].changes[0].to,
            "each starts where the previous one ended"
        );
    }
    // Every change has its event, and each event starts where the previous one ended.
    let told = timeline(&opened.log).await;
    assert_eq!((told.len(), told[0].0.as_str()), (51, "flag.created"));
    assert!(told[1..].iter().all(|(verb, key)| (&**verb, &**key) == ("flag.updated", "a")));
    let mut steps = BTreeMap::new();
    let query = ListQuery { limit: 500, ..ListQuery::default() };
    for stored in opened.log.list(&query).await.unwrap().events {
        let ours = stored.event.metadata.to_value()["_dezky"].clone();
        let side = |side: &str| ours[side]["description"].as_str().map(str::to_owned);
        let twice = steps.insert(side("before"), side("after"));
        assert_eq!(twice, None, "no two edits start from the same state");
    }
    let (mut at, mut newest) = (None, Vec::new());
    while let Some(Some(next)) = steps.remove(&at) {
        newest.insert(0, next.clone());
        at = Some(next);
    }
    assert_eq!(newest.len(), 51, "all edits form one chain");
    assert_eq!(newest[0], flag.description);
    let kept = flag.history.iter().map(|change| change.changes[0].to.as_str().unwrap_or_default());
    assert!(kept.eq(newest[..20].iter().map(String::as_str)), "the newest of them");
}

/// See the name.
pub async fn changes_and_events_are_one(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    let invalid = NewEvent::new("No Verb", Actor::system()).seal(&*h.runtime());
    let refused = store.commit(vec![create("a", 1)], vec![event(h, "fine"), invalid]).await;
    assert_eq!(kind(refused), Some(ErrorKind::EventInvalid));
    assert_eq!(store.flag("a").await.unwrap(), None);
    assert_eq!(store.revision().await.unwrap(), 0);
    assert!(timeline(&log).await.is_empty());
    store.commit(vec![create("a", 1)], vec![event(h, "x"), event(h, "y")]).await.unwrap();
    let events = timeline(&log).await;
    assert_eq!(events.iter().map(|e| &*e.1).collect::<Vec<_>>(), ["x", "y"], "in their order");
}

/// Polls `work` at most `polls` times, each time after it is woken, and then drops it.
async fn dropped_after(polls: usize, work: impl Future<Output = Result<()>>) {
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        work.as_mut().poll(context).map(drop)
    })
    .await;
}

/// Drops a commit at each of its await points.
pub async fn a_dropped_commit_is_made_with_its_event_or_not(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    for polls in 0..24 {
        let key = format!("k{polls}");
        dropped_after(polls, store.commit(vec![create(&key, 1)], vec![event(h, &key)])).await;
    }
    // Commits under way have finished before this one.
    store.commit(vec![create("last", 1)], vec![event(h, "last")]).await.unwrap();
    let flags = store.snapshot().await.unwrap().flags;
    let made: BTreeSet<_> = flags.into_iter().map(|flag| flag.key).collect();
    let told: Vec<_> = timeline(&log).await.into_iter().map(|(_, name)| name).collect();
    assert_eq!(told.len(), made.len());
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), made);
}

/// See the name.
pub async fn a_refused_change_undoes_those_before_it(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    store.commit(vec![create("a", 1)], Vec::new()).await.unwrap();
    let before = store.snapshot().await.unwrap();
    let changes = vec![create("b", 1), replace("a", 2, 5), remove("c", 1)];
    let refused = store.commit(changes, vec![event(h, "refused")]).await;
    assert_eq!(kind(refused), Some(ErrorKind::NotFound));
    assert_eq!(store.snapshot().await.unwrap(), before);
    assert!(timeline(&log).await.is_empty());
}

/// See the name.
pub async fn changes_of_a_commit_see_each_other(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    let changes = vec![create("a", 1), replace("a", 2, 7), remove("a", 2), create("a", 4)];
    store.commit(changes, Vec::new()).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().flags, [flag("a", 4, 0)]);
    assert_eq!(store.revision().await.unwrap(), 4);
}

/// See the name.
pub async fn a_flag_out_of_bounds_is_refused(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    let breaks: [fn(&mut Flag); 4] = [
        |f| f.pct = 101,
        |f| f.key = "No Key".into(),
        |f| f.scope.plans = vec![String::new()],
        |f| f.version = 0,
    ];
    for break_bound in breaks {
        let mut flag = flag("a", 1, 0);
        break_bound(&mut flag);
        let change = FlagChange::Create(Box::new(flag));
        let refused = store.commit(vec![change], vec![event(h, "refused")]).await;
        assert_eq!(kind(refused), Some(ErrorKind::FieldInvalid));
    }
    assert_eq!(store.revision().await.unwrap(), 0);
    assert!(timeline(&log).await.is_empty());
}

/// See the name.
pub async fn the_revision_grows_with_every_change(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    let mut last = 0;
    for changes in [
        vec![create("a", 1), create("b", 1)],
        vec![replace("a", 2, 5)],
        vec![remove("b", 1)],
        vec![create("b", 3)],
    ] {
        store.commit(changes, Vec::new()).await.unwrap();
        let revision = store.revision().await.unwrap();
        assert!(revision > last);
        assert_eq!(store.snapshot().await.unwrap().revision, revision);
        last = revision;
    }
    store.commit(Vec::new(), vec![event(h, "alone")]).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), last, "no flag has changed");
}

/// Two flags that always change together are never seen in different states, nor with the revision
/// of another state.
pub async fn a_snapshot_is_one_view(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    store.commit(vec![create("a", 1), create("b", 1)], Vec::new()).await.unwrap();
    let write = async {
        for pct in 1..=30 {
            let version = u64::from(pct) + 1;
            let changes = vec![replace("a", version, pct), replace("b", version, pct)];
            store.commit(changes, Vec::new()).await.unwrap();
        }
    };
    let read = async {
        loop {
            let snapshot = store.snapshot().await.unwrap();
            let [a, b] = &snapshot.flags[..] else { panic!("two flags") };
            assert_eq!((a.pct, a.version), (b.pct, b.version));
            assert_eq!(snapshot.revision, 2 * a.version);
            if a.pct == 30 {
                return;
            }
            // Yields to the writer if nothing else does.
            h.runtime().sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    join(write, read).await;
}

/// See the name.
pub async fn hostile_keys_are_plain_texts(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    store.commit(vec![create("a", 1)], Vec::new()).await.unwrap();
    let long = "k".repeat(100_000);
    for key in [
        "",
        "%",
        "_",
        "A",
        "a ",
        " a",
        "a\0",
        "a'; DROP TABLE dezky_flags; --",
        "$ne",
        "../a",
        "ä",
        &long,
    ] {
        assert_eq!(store.flag(key).await.unwrap(), None, "{key:.20}");
        assert_eq!(store.last_version(key).await.unwrap(), 0);
        assert_eq!(
            kind(store.commit(vec![remove(key, 1)], vec![]).await),
            Some(ErrorKind::NotFound)
        );
        let named = Flag { key: key.to_owned(), ..flag("a", 1, 0) };
        let refused = store.commit(vec![FlagChange::Create(Box::new(named))], vec![]).await;
        assert_eq!(kind(refused), Some(ErrorKind::FieldInvalid));
    }
    assert_eq!(store.snapshot().await.unwrap().flags, [flag("a", 1, 0)]);
}

/// Versions from before a key's removal never match after its recreation.
pub async fn versions_go_on_after_a_removal(h: Harness<'_>) {
    let opened = h.open(Reopen::No).await;
    let flags = editor(h, &opened);
    let edit = Edit::by(Actor::user("u-1"));
    let first = flags.create(NewFlag::new("a"), &edit).await.unwrap();
    flags.remove("a", &edit.of_version(first.version)).await.unwrap();
    assert_eq!(opened.store.last_version("a").await.unwrap(), 2);
    let patch = FlagPatch { state: Some(FlagState::On), ..FlagPatch::default() };
    let gone = flags.update("a", &patch, &edit.of_version(first.version)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let stale = opened.store.commit(vec![create("a", 1)], Vec::new()).await;
    assert_eq!(kind(stale), Some(ErrorKind::VersionMismatch));
    let again = flags.create(NewFlag::new("a"), &edit).await.unwrap();
    assert_eq!((again.version, again.history.len()), (3, 1));
    let stale = flags.update("a", &patch, &edit.of_version(first.version)).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::VersionMismatch);
    assert_eq!(flags.get("a").await.unwrap(), Some(again));
}

/// Seeding again creates, changes and restores nothing; concurrent seeding creates each flag once.
pub async fn seeds_are_sown_once(h: Harness<'_>) {
    let handles = pair(h).await;
    let opened = &handles[0];
    let seeds = crate::seeded_flags();
    let edit = Edit::by(Actor::system());
    let editors = handles.each_ref().map(|opened| editor(h, opened));
    let [one, two] = &editors;
    let (first, second) = join(one.seed(&seeds, &edit), two.seed(&seeds, &edit)).await;
    assert_eq!(first.unwrap() + second.unwrap(), 10);
    let patch =
        FlagPatch { pct: Some(25), state: Some(FlagState::Rollout), ..FlagPatch::default() };
    one.update("jmap_native_v2", &patch, &edit).await.unwrap();
    one.remove("oci_versioning", &edit).await.unwrap();
    let before = opened.store.snapshot().await.unwrap();
    assert_eq!(one.seed(&seeds, &edit).await.unwrap(), 0);
    assert_eq!(opened.store.snapshot().await.unwrap(), before);
    assert_eq!(timeline(&opened.log).await.len(), 12);
}

/// See the name.
pub async fn a_commit_has_a_bound(h: Harness<'_>) {
    let Opened { store, log } = h.open(Reopen::No).await;
    let changes = (0..=MAX_COMMIT_CHANGES).map(|n| create(&format!("k{n}"), 1)).collect();
    let refused = store.commit(changes, vec![event(h, "refused")]).await;
    assert_eq!(kind(refused), Some(ErrorKind::TooLarge));
    assert_eq!(store.revision().await.unwrap(), 0);
    assert!(timeline(&log).await.is_empty());
}

/// See the name.
pub async fn a_store_has_a_bound(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    let keys: Vec<_> = (0..MAX_FLAGS).map(|n| format!("k{n}")).collect();
    for keys in keys.chunks(MAX_COMMIT_CHANGES) {
        store.commit(keys.iter().map(|key| create(key, 1)).collect(), Vec::new()).await.unwrap();
    }
    let refused = store.commit(vec![create("more", 1)], Vec::new()).await;
    assert_eq!(kind(refused), Some(ErrorKind::StateConflict));
    store.commit(vec![remove("k0", 1), create("more", 1)], Vec::new()).await.unwrap();
    let refused = store.commit(vec![create("k0", 3)], Vec::new()).await;
    assert_eq!(kind(refused), Some(ErrorKind::StateConflict));
    assert_eq!(store.snapshot().await.unwrap().flags.len(), MAX_FLAGS);
}

/// Copies flags, removed keys and the revision; only into an empty store.
pub async fn a_copy_knows_every_key(h: Harness<'_>) {
    let mut table = FlagTable::default();
    let changes = vec![create("a", 1), create("b", 1), remove("b", 1), replace("a", 2, 30)];
    table.apply(changes).unwrap();
    let Opened { store, .. } = h.open(Reopen::No).await;
    for _ in 0..2 {
        store.restore(table.clone()).await.unwrap();
    }
    assert_eq!(store.table().await.unwrap(), table);
    assert_eq!(store.snapshot().await.unwrap(), table.snapshot());
    assert_eq!(store.revision().await.unwrap(), 4);
    assert_eq!(store.last_version("b").await.unwrap(), 2);
    let early = store.commit(vec![create("b", 1)], vec![]).await;
    assert_eq!(kind(early), Some(ErrorKind::VersionMismatch));
    store.commit(vec![create("b", 3)], vec![]).await.unwrap();
    assert_eq!(kind(store.restore(table).await), Some(ErrorKind::StateConflict));
    assert_eq!(store.last_version("b").await.unwrap(), 3);
}

/// For durable or shared stores: a second handle reads the same flags and can continue to edit
/// them.
pub async fn another_handle_sees_what_was_acknowledged(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    store.commit(vec![create("a", 1), create("b", 1), remove("b", 1)], Vec::new()).await.unwrap();
    let able = store.capabilities();
    if !able.durable && !able.shared {
        return;
    }
    let Opened { store: again, log } = h.open(Reopen::Yes).await;
    assert_eq!(again.snapshot().await.unwrap(), store.snapshot().await.unwrap());
    assert_eq!(again.last_version("b").await.unwrap(), 2);
    again.commit(vec![replace("a", 2, 5)], vec![event(h, "again")]).await.unwrap();
    assert_eq!(
        kind(store.commit(vec![replace("a", 2, 9)], vec![]).await),
        Some(ErrorKind::VersionMismatch)
    );
    assert_eq!(store.flag("a").await.unwrap(), Some(flag("a", 2, 5)));
    assert_eq!(timeline(&log).await.len(), 1);
}

/// Compares the values of rollouts with those computed by another program, whatever the store and
/// the machine, also after reopening.
pub async fn decisions_are_the_same_everywhere(h: Harness<'_>) {
    let Opened { store, .. } = h.open(Reopen::No).await;
    let rollout = |n: u8| {
        let options = FlagOptions {
            seed: n.is_multiple_of(4).then(|| format!("seed-{}", n / 8)),
            pct_hundredths: if n.is_multiple_of(3) { 50 } else { 0 },
            ..FlagOptions::default()
        };
        let state = FlagState::Rollout;
        let new = NewFlag { state, pct: n + 18, options, ..NewFlag::new(format!("k{n:02}")) };
        FlagChange::Create(Box::new(Flag::new(new, Timestamp::MIN).expect("within the bounds")))
    };
    store.commit((0..64).map(rollout).collect(), Vec::new()).await.unwrap();
    let able = store.capabilities();
    let again = if able.durable || able.shared { h.open(Reopen::Yes).await.store } else { store };
    assert_eq!(again.examine().await.unwrap(), [], "the structure matches the schema");
    let snapshot = again.snapshot().await.unwrap();
    let set = FlagSet::of(&snapshot);
    for (tenant_id, expected) in [
        ("t-1", 0xf5f7_3dae_a480_1520),
        ("1d0e6fde-e431-7835-82c1-a48a8b044551", 0xf92c_1f33_d960_4031),
        (&"ü".repeat(50), 0x9bf7_7d4a_2a40_8842),
    ] {
        let context = FlagContext { tenant_id, ..FlagContext::default() };
        let mut values = Bits::new();
        set.values_into(&context, &mut values);
        assert_eq!(values.words(), [expected], "{tenant_id}");
        let value = |(n, flag): (usize, &Flag)| u64::from(decide(flag, &context).value) << n;
        let plain: u64 = snapshot.flags.iter().enumerate().map(value).sum();
        assert_eq!(plain, expected, "{tenant_id}");
    }
}
