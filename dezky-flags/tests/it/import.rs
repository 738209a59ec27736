//! Imports of definitions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dezky_core::store::Capabilities;
use dezky_core::testkit::{ManualRuntime, Reopen};
use dezky_core::{Actor, AuditLog, ErrorKind, Result, Runtime, SealedEvent};
use dezky_flags::store::{FlagChange, FlagStore, FlagTable, MAX_FLAGS, Snapshot};
use dezky_flags::testkit::{FlagGenerator, FlagStoreHarness, Opened};
use dezky_flags::{
    Edit, FlagFile, FlagOptions, FlagPatch, FlagState, Flags, ImportMode, NewFlag, Scope,
};
use futures_util::future::join;
use tokio::sync::Semaphore;

use crate::memory::Memory;
use crate::sqlite::{Sqlite, tokio};

const ADD: ImportMode = ImportMode { overwrite: false, dry_run: false };
const OVERWRITE: ImportMode = ImportMode { overwrite: true, dry_run: false };

async fn desk(harness: &dyn FlagStoreHarness) -> (Flags, Opened) {
    let opened = harness.open(Reopen::No).await;
    let runtime: Arc<dyn Runtime> = Arc::new(ManualRuntime::new(5));
    let log = Arc::new(AuditLog::new(opened.log.clone(), runtime.clone()));
    (Flags::new(opened.store.clone(), log, runtime), opened)
}

fn edit() -> Edit {
    Edit { note: Some("moved".into()), ..Edit::by(Actor::user("u-7")) }
}

async fn actions(opened: &Opened) -> Vec<String> {
    let query = dezky_core::store::ListQuery { limit: 500, ..Default::default() };
    let mut events = opened.log.list(&query).await.unwrap().events;
    events.sort_unstable_by_key(|event| event.seq);
    events.into_iter().map(|stored| stored.event.action).collect()
}

fn rollout(key: &str, pct: u8) -> NewFlag {
    NewFlag { state: FlagState::Rollout, pct, ..NewFlag::new(key) }
}

/// Flags that are created, unchanged, refused and overwritten, each with its version, history and
/// event.
fn scenario(harness: &dyn FlagStoreHarness) {
    tokio().block_on(async {
        let (flags, opened) = desk(harness).await;
        flags.create(rollout("here", 5), &edit()).await.unwrap();
        flags.create(rollout("gone", 5), &edit()).await.unwrap();
        flags.remove("gone", &edit()).await.unwrap();
        let options = FlagOptions { pct_hundredths: 50, ..FlagOptions::default() };
        let new = [
            rollout("here", 25),
            rollout("gone", 25),
            NewFlag { options, ..rollout("new", 25) },
        ];
        let before = opened.store.snapshot().await.unwrap();
        let dry = ImportMode { dry_run: true, ..ADD };
        let planned = flags.import(&new, dry, &edit()).await.unwrap();
        assert_eq!(opened.store.snapshot().await.unwrap(), before);
        assert_eq!(actions(&opened).await.len(), 3);

        let added = flags.import(&new, ADD, &edit()).await.unwrap();
        assert_eq!(added, planned);
        assert_eq!(
            serde_json::to_value(&added).unwrap(),
            serde_json::json!({
                "gone": {"outcome": "created"},
                "here": {
                    "outcome": "refused",
                    "problem": "it exists with a different definition: import with overwrite to replace it",
                },
                "new": {"outcome": "created"},
            })
        );
        assert_eq!(flags.get("here").await.unwrap().unwrap().pct, 5);
        assert_eq!(flags.get("gone").await.unwrap().unwrap().version, 3, "versions continue");
        let new_one = flags.get("new").await.unwrap().unwrap();
        assert_eq!((new_one.threshold(), new_one.history.len()), (2_550, 1));

        let over = flags.import(&new, OVERWRITE, &edit()).await.unwrap();
        assert_eq!((over.count("updated"), over.count("unchanged")), (1, 2));
        let here = flags.get("here").await.unwrap().unwrap();
        assert_eq!((here.pct, here.version, here.history.len()), (25, 2, 2));
        assert_eq!(here.history[0].note.as_deref(), Some("moved"));
        assert_eq!(here.history[0].changes[0].field, "pct");

        let revision = opened.store.revision().await.unwrap();
        let again = flags.import(&new, OVERWRITE, &edit()).await.unwrap();
        assert_eq!(again.count("unchanged"), 3);
        assert_eq!(opened.store.revision().await.unwrap(), revision);
        assert_eq!(
            actions(&opened).await,
            [
                "flag.created",
                "flag.created",
                "flag.removed",
                "flag.created",
                "flag.created",
                "flag.updated"
            ]
        );
    });
}

#[test]
fn flags_are_imported_in_memory() {
    scenario(&Memory);
}

#[test]
fn flags_are_imported_in_sqlite() {
    scenario(&Sqlite::new());
}

#[test]
fn an_export_is_imported_elsewhere_unchanged() {
    tokio().block_on(async {
        let harness = Sqlite::new();
        let (from, there) = desk(&harness).await;
        let runtime = ManualRuntime::new(11);
        let mut generator = FlagGenerator::new(&runtime);
        let made: Vec<_> = generator
            .flags(1_200)
            .into_iter()
            .map(|flag| NewFlag {
                key: flag.key,
                description: flag.description,
                state: flag.state,
                pct: flag.pct,
                scope: flag.scope,
                options: flag.options,
            })
            .collect();
        // More than fit into one commit.
        assert_eq!(from.import(&made, ADD, &edit()).await.unwrap().count("created"), 1_200);
        let text = there.store.snapshot().await.unwrap().to_json();
        let (to, here) = desk(&Memory).await;
        let read = FlagFile::from_json(&text).unwrap().all().unwrap();
        assert_eq!(to.import(&read, ADD, &edit()).await.unwrap().count("created"), 1_200);
        let again = to.import(&read, OVERWRITE, &edit()).await.unwrap();
        assert_eq!(again.count("unchanged"), 1_200);
        let definitions = |snapshot: Snapshot| -> Vec<_> {
            let definition = |flag: dezky_flags::Flag| {
                (flag.key, flag.description, flag.state, flag.pct, flag.scope, flag.options)
            };
            snapshot.flags.into_iter().map(definition).collect()
        };
        assert_eq!(
            definitions(here.store.snapshot().await.unwrap()),
            definitions(there.store.snapshot().await.unwrap())
        );
    });
}

#[test]
fn one_flag_out_of_bounds_refuses_the_import_and_is_named() {
    tokio().block_on(async {
        let (flags, opened) = desk(&Memory).await;
        for (bad, words) in [
            (rollout("bad", 101), "flag bad: pct must be a whole number"),
            (rollout("No Key", 1), "flag (invalid key): key must be"),
            (rollout("good", 2), "flag good: its key is given twice"),
            (rollout("evaluate", 2), "flag evaluate: key must be other"),
        ] {
            let new = [rollout("good", 1), bad];
            let refused = flags.import(&new, ADD, &edit()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::FieldInvalid);
            assert!(refused.to_string().starts_with(words), "{refused}");
        }
        let long = Edit { note: Some("n".repeat(1_001)), ..edit() };
        let refused = flags.import(&[rollout("good", 1)], ADD, &long).await.unwrap_err();
        assert!(refused.to_string().starts_with("note must be"), "{refused}");
        let many: Vec<_> = (0..=MAX_FLAGS).map(|n| NewFlag::new(format!("k{n}"))).collect();
        let refused = flags.import(&many, ADD, &edit()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StateConflict);
        assert!(refused.to_string().contains("10001 flags"), "{refused}");
        assert_eq!(opened.store.revision().await.unwrap(), 0);
        assert!(actions(&opened).await.is_empty());
    });
}

/// 40 large flags do not fit into one commit.
#[test]
fn a_large_import_comes_in_several_commits() {
    tokio().block_on(async {
        let harness = Sqlite::new();
        let (flags, opened) = desk(&harness).await;
        let slugs: Vec<_> = (0..1_000).map(|n| format!("{n:0128}")).collect();
        let scope = Scope { tenant_slugs: slugs, ..Scope::default() };
        let new: Vec<_> = (0..40)
            .map(|n| NewFlag { scope: scope.clone(), ..NewFlag::new(format!("k{n:02}")) })
            .collect();
        assert_eq!(flags.import(&new, ADD, &edit()).await.unwrap().count("created"), 40);
        assert_eq!(actions(&opened).await.len(), 40);
        assert_eq!(flags.import(&new, ADD, &edit()).await.unwrap().count("unchanged"), 40);
    });
}

/// Concurrent imports of the same flags and a concurrent editor do not make each other fail.
#[test]
fn concurrent_changes_do_not_fail_an_import() {
    tokio().block_on(async {
        let harness = Sqlite::new();
        let opened = harness.open(Reopen::No).await;
        let editor = || {
            let runtime: Arc<dyn Runtime> = Arc::new(dezky_core::rt::TokioRuntime);
            let log = Arc::new(AuditLog::new(opened.log.clone(), runtime.clone()));
            Flags::new(opened.store.clone(), log, runtime)
        };
        let (one, other, third) = (editor(), editor(), editor());
        one.create(rollout("k0", 99), &edit()).await.unwrap();
        let new: Vec<_> = (0..50).map(|n| rollout(&format!("k{n}"), 25)).collect();
        let by = edit();
        let edits = async {
            for n in 0..20 {
                let patch = FlagPatch { description: Some(format!("{n}")), ..FlagPatch::default() };
                third.update("k0", &patch, &by).await.unwrap();
            }
        };
        let (a, b, ()) = futures_util::future::join3(
            one.import(&new, OVERWRITE, &by),
            other.import(&new, OVERWRITE, &by),
            edits,
        )
        .await;
        let (a, b) = (a.unwrap(), b.unwrap());
        let created = a.count("created") + b.count("created");
        assert_eq!(created, 49, "each is made once: {a:?} {b:?}");
        let events = actions(&opened).await;
        assert_eq!(events.iter().filter(|action| *action == "flag.created").count(), 50);
        assert_eq!(events.len() as u64, opened.store.revision().await.unwrap());
    });
}

/// A store that answers `last_version` only when permitted, and in which another editor changes two
/// flags right before the second commit.
struct Meddled {
    store: Arc<dyn FlagStore>,
    editor: Flags,
    commits: AtomicUsize,
    answers: Semaphore,
}

#[async_trait::async_trait]
impl FlagStore for Meddled {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn table(&self) -> Result<FlagTable> {
        self.store.table().await
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        self.answers.acquire().await.unwrap().forget();
        self.store.last_version(key).await
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        if self.commits.fetch_add(1, Ordering::Relaxed) == 1 {
            let patch = FlagPatch { pct: Some(77), ..FlagPatch::default() };
            for key in ["k0000", "k1004"] {
                self.editor.update(key, &patch, &edit()).await?;
            }
        }
        self.store.commit(changes, events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        self.store.restore(table).await
    }
}

/// Flags that an import has committed belong to editors again while the import continues, and a
/// kill in the same process waits for one commit at most.
#[test]
fn an_import_continues_alongside_editors() {
    tokio().block_on(async {
        let opened = Memory.open(Reopen::No).await;
        let runtime: Arc<dyn Runtime> = Arc::new(dezky_core::rt::TokioRuntime);
        let log = Arc::new(AuditLog::new(opened.log.clone(), runtime.clone()));
        let editor = || Flags::new(opened.store.clone(), log.clone(), runtime.clone());
        editor().create(rollout("k1004", 1), &edit()).await.unwrap();
        editor().create(rollout("kill", 1), &edit()).await.unwrap();
        let store = Arc::new(Meddled {
            store: opened.store.clone(),
            editor: editor(),
            commits: AtomicUsize::new(0),
            answers: Semaphore::new(0),
        });
        let flags = Flags::new(store.clone(), log.clone(), runtime.clone());
        // Two commits.
        let new: Vec<_> = (0..1_005).map(|n| rollout(&format!("k{n:04}"), 25)).collect();
        let by = edit();
        let kill = async {
            let killed = flags.kill("kill", &by).await;
            // The first commit is done.
            store.commits.store(0, Ordering::Relaxed);
            store.answers.add_permits(10_000);
            killed
        };
        let both = join(flags.import(&new, OVERWRITE, &by), kill);
        let both = tokio::time::timeout(Duration::from_mins(1), both).await;
        let (imported, killed) = both.expect("neither waits for the other");
        assert_eq!(killed.unwrap().state, FlagState::Off);
        let imported = imported.unwrap();
        assert_eq!((imported.count("created"), imported.count("updated")), (1_004, 1));
        let pct = async |key| editor().get(key).await.unwrap().unwrap().pct;
        assert_eq!(pct("k0000").await, 77, "edited after it was imported");
        assert_eq!(pct("k1004").await, 25, "edited before it was imported");
    });
}
