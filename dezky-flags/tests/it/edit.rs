//! The editor: every change with its event.

use std::sync::Arc;

use dezky_core::ErrorKind::{AlreadyExists, FieldInvalid, NotFound, VersionMismatch};
use dezky_core::store::ListQuery;
use dezky_core::testkit::{ManualRuntime, Reopen};
use dezky_core::{Actor, ActorType, AuditLog, Runtime, StoredEvent};
use dezky_flags::testkit::{FlagStoreHarness, Opened};
use dezky_flags::{
    Edit, FlagContext, FlagEvaluator, FlagPatch, FlagSet, FlagState, Flags, ImportMode, NewFlag,
    Reason, Scope, ScopePatch, bucket, seeded_flags,
};
use serde_json::{Value, json};

use crate::memory::Memory;
use crate::sqlite::{Sqlite, tokio};

struct Desk {
    flags: Flags,
    opened: Opened,
}

impl Desk {
    async fn open(harness: &dyn FlagStoreHarness) -> Self {
        let opened = harness.open(Reopen::No).await;
        // Sleeps never end, so an edit waits for the timeline as long as it takes.
        let runtime: Arc<dyn Runtime> = Arc::new(ManualRuntime::new(5));
        let log = Arc::new(AuditLog::new(opened.log.clone(), runtime.clone()));
        Self { flags: Flags::new(opened.store.clone(), log, runtime), opened }
    }

    /// The timeline, oldest event first; nothing is relayed here.
    async fn events(&self) -> Vec<StoredEvent> {
        let mut events = self.opened.log.list(&ListQuery::default()).await.unwrap().events;
        events.sort_unstable_by_key(|event| event.seq);
        events
    }

    async fn actions(&self) -> Vec<String> {
        self.events().await.into_iter().map(|stored| stored.event.action).collect()
    }
}

fn ours(stored: &StoredEvent) -> Value {
    stored.event.metadata.to_value()["_dezky"].clone()
}

fn operator() -> Edit {
    let actor = Actor {
        kind: ActorType::Operator,
        ..Actor::user("u-7").with_email("ana@dezky.test").with_ip("203.0.113.7")
    };
    Edit {
        note: Some("as asked".into()),
        request_id: Some("r-1".into()),
        user_agent: Some("curl/8".into()),
        ..Edit::by(actor)
    }
}

fn patch(body: &Value) -> FlagPatch {
    FlagPatch::from_json(body).unwrap()
}

/// Seeds ten flags, rolls one out to 25 %, kills it in one call, evaluates twice, creates and
/// removes.
fn scenario(harness: &dyn FlagStoreHarness) {
    tokio().block_on(async {
        let desk = Desk::open(harness).await;
        let (flags, edit) = (&desk.flags, operator());
        assert_eq!(flags.seed(&seeded_flags(), &Edit::by(Actor::system())).await.unwrap(), 10);
        assert!(flags.list().await.unwrap().iter().all(|f| f.state == FlagState::Off));

        let rollout = patch(&json!({"state": "rollout", "pct": 25}));
        let saved = flags.update("jmap_native_v2", &rollout, &edit.of_version(1)).await.unwrap();
        assert_eq!((saved.version, saved.pct), (2, 25));
        let set = FlagSet::compile(&flags.list().await.unwrap());
        for n in 0..100 {
            let tenant_id = &format!("t-{n}");
            let context = FlagContext { tenant_id, ..FlagContext::default() };
            let first = set.values(&context);
            assert_eq!(first["jmap_native_v2"], bucket(tenant_id, "jmap_native_v2") < 25);
            assert_eq!(
                first.values().filter(|on| **on).count(),
                usize::from(first["jmap_native_v2"])
            );
            assert_eq!(set.values(&context), first, "the same answer twice");
        }

        let killed = flags.kill("jmap_native_v2", &edit).await.unwrap();
        assert_eq!((killed.state, killed.pct, killed.version), (FlagState::Off, 0, 3));
        let on = patch(&json!({"state": "on"}));
        flags.update("jmap_native_v2", &on, &edit).await.unwrap();
        let stored = flags.get("jmap_native_v2").await.unwrap().unwrap();
        let states: Vec<_> =
            stored.history.iter().map(|change| change.changes[0].to.clone()).collect();
        assert_eq!(states, ["on", "off", "rollout", stored.description.as_str()]);
        let set = FlagSet::compile([&stored]);
        assert_eq!(set.evaluate("jmap_native_v2", &FlagContext::default()).reason, Reason::On);

        flags.create(NewFlag::new("mine"), &edit).await.unwrap();
        flags.remove("mine", &edit.of_version(1)).await.unwrap();
        assert_eq!(flags.get("mine").await.unwrap(), None);

        let actions = desk.actions().await;
        assert!(actions[..10].iter().all(|action| action == "flag.created"));
        let after_seeding =
            ["flag.updated", "flag.killed", "flag.updated", "flag.created", "flag.removed"];
        assert_eq!(actions[10..], after_seeding);
        let event = &desk.events().await[10].event;
        assert_eq!(event.actor_type, ActorType::Operator);
        assert_eq!(event.actor_ip.as_deref(), Some("203.0.113.7"));
    });
}

#[test]
fn seed_flag_rollout_kill_evaluate_in_memory() {
    scenario(&Memory);
}

#[test]
fn seed_flag_rollout_kill_evaluate_in_sqlite() {
    scenario(&Sqlite::new());
}

#[test]
fn an_event_says_who_what_and_why() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = operator();
        desk.flags.create(NewFlag::new("a"), &Edit::by(Actor::system())).await.unwrap();
        let body = json!({"pct": 5, "scope": {"plans": ["pro"]}, "description": "x"});
        let flag = desk.flags.update("a", &patch(&body), &edit).await.unwrap();
        desk.flags.remove("a", &edit).await.unwrap();
        let events = desk.events().await;

        let updated = &events[1].event;
        assert_eq!(updated.action, "flag.updated");
        assert_eq!(updated.resource_type.as_deref(), Some("flag"));
        assert_eq!(updated.resource_id.as_deref(), Some("a"));
        assert_eq!(updated.resource_name.as_deref(), Some("a"));
        assert_eq!(updated.actor_email.as_deref(), Some("ana@dezky.test"));
        assert_eq!(
            ours(&events[1]),
            json!({
                "before": {"description": "", "pct": 0, "scope.plans": []},
                "after": {"description": "x", "pct": 5, "scope.plans": ["pro"]},
                "note": "as asked", "requestId": "r-1", "userAgent": "curl/8",
            })
        );
        let newest = &flag.history[0];
        assert_eq!((newest.at, flag.updated_at), (updated.at, updated.at));
        assert_eq!(newest.actor.id.as_deref(), Some("u-7"));
        assert_eq!(newest.note.as_deref(), Some("as asked"));
        assert_eq!(flag.created_at, events[0].event.at);
        let fields: Vec<_> = newest.changes.iter().map(|change| &*change.field).collect();
        assert_eq!(fields, ["description", "pct", "scope.plans"]);

        assert_eq!(ours(&events[0])["before"]["state"], Value::Null);
        assert_eq!(ours(&events[0])["after"], json!({"description": "", "state": "off", "pct": 0}));
        assert_eq!(ours(&events[2])["before"]["scope.plans"], json!(["pro"]));
        assert_eq!(ours(&events[2])["after"]["state"], Value::Null);
    });
}

#[test]
fn a_patch_off_with_the_kill_switch_note_is_a_kill() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = Edit::by(Actor::system());
        let new = NewFlag { state: FlagState::Rollout, pct: 40, ..NewFlag::new("a") };
        desk.flags.create(new, &edit).await.unwrap();
        let off = patch(&json!({"state": "off"}));
        let flag = desk.flags.update("a", &off, &edit).await.unwrap();
        assert_eq!(flag.pct, 40, "off alone keeps the percentage");
        let kill = patch(&json!({"state": "off", "note": "kill-switch"}));
        let stale = desk.flags.update("a", &kill, &edit.of_version(1)).await.unwrap_err();
        assert_eq!(stale.kind(), VersionMismatch);
        let flag = desk.flags.update("a", &kill, &edit.of_version(2)).await.unwrap();
        assert_eq!((flag.state, flag.pct), (FlagState::Off, 0));
        assert_eq!(flag.history[0].note.as_deref(), Some("kill-switch"));
        assert_eq!(desk.actions().await, ["flag.created", "flag.updated", "flag.killed"]);
    });
}

#[test]
fn an_edit_that_changes_nothing_leaves_no_trace() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = operator();
        let flag = desk.flags.create(NewFlag::new("a"), &edit).await.unwrap();
        let same = patch(&json!({"state": "off", "pct": 0, "note": "again"}));
        assert_eq!(desk.flags.update("a", &same, &edit.of_version(1)).await.unwrap(), flag);
        assert_eq!(desk.flags.kill("a", &edit).await.unwrap(), flag);
        assert_eq!(desk.flags.get("a").await.unwrap(), Some(flag));
        assert_eq!(desk.actions().await, ["flag.created"]);
    });
}

#[test]
fn a_refused_edit_changes_nothing() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let (flags, edit) = (&desk.flags, operator());
        let flag = flags.create(NewFlag::new("a"), &edit).await.unwrap();
        let chatty = Edit { note: Some("x".repeat(1_001)), ..operator() };
        let wide = FlagPatch { pct: Some(101), ..FlagPatch::default() };
        let on = patch(&json!({"state": "on"}));
        let bad = NewFlag { pct: 101, ..NewFlag::new("b") };
        let kinds = [
            flags.create(NewFlag::new("a"), &edit).await,
            flags.create(NewFlag::new("A"), &edit).await,
            flags.create(NewFlag::new("b"), &chatty).await,
            flags.update("a", &wide, &edit).await,
            flags.update("a", &on, &edit.of_version(2)).await,
            flags.update("a", &on, &chatty).await,
            flags.update("b", &on, &edit).await,
            flags.kill("a", &chatty).await,
            flags.kill("no such key\0", &edit).await,
            flags.remove("a", &edit.of_version(7)).await,
            flags.remove("b", &edit).await,
            flags.seed(&[NewFlag::new("c"), bad], &edit).await.map(|_| flag.clone()),
        ]
        .map(|result| result.unwrap_err().kind());
        assert_eq!(
            kinds,
            [
                AlreadyExists,
                FieldInvalid,
                FieldInvalid,
                FieldInvalid,
                VersionMismatch,
                FieldInvalid,
                NotFound,
                FieldInvalid,
                NotFound,
                VersionMismatch,
                NotFound,
                FieldInvalid,
            ]
        );
        assert_eq!(flags.list().await.unwrap(), [flag]);
        assert_eq!(desk.actions().await, ["flag.created"]);
    });
}

#[test]
fn a_kill_ignores_the_expected_version() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = operator();
        let new = NewFlag { state: FlagState::On, pct: 40, ..NewFlag::new("a") };
        desk.flags.create(new, &edit).await.unwrap();
        desk.flags.update("a", &patch(&json!({"pct": 50})), &edit).await.unwrap();
        let killed = desk.flags.kill("a", &edit.of_version(1)).await.unwrap();
        assert_eq!((killed.state, killed.pct, killed.version), (FlagState::Off, 0, 3));
    });
}

#[test]
fn a_version_is_refused_for_several_flags() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let (flags, edit) = (&desk.flags, operator());
        let flag = flags.create(NewFlag::new("a"), &edit).await.unwrap();
        let new = [NewFlag { pct: 5, ..NewFlag::new("a") }, NewFlag::new("b")];
        let mode = ImportMode { overwrite: true, ..ImportMode::default() };
        for refused in [
            flags.seed(&new, &edit.of_version(1)).await.map(drop),
            flags.import(&new, mode, &edit.of_version(1)).await.map(drop),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), FieldInvalid);
            assert!(error.to_string().starts_with("if_version can't be given"), "{error}");
        }
        assert_eq!(flags.list().await.unwrap(), [flag]);
    });
}

#[test]
fn the_history_keeps_the_newest_twenty() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = Edit::by(Actor::system());
        desk.flags.create(NewFlag::new("a"), &edit).await.unwrap();
        for pct in 1..=30 {
            desk.flags.update("a", &patch(&json!({"pct": pct})), &edit).await.unwrap();
        }
        let history = desk.flags.get("a").await.unwrap().unwrap().history;
        let to: Vec<_> = history.iter().map(|change| change.changes[0].to.clone()).collect();
        assert_eq!(to, (11..=30).rev().map(Value::from).collect::<Vec<_>>());
    });
}

/// Long axes stay complete in the flag; its history and the event show the difference.
#[test]
fn a_long_axis_is_shown_by_its_difference() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = operator();
        let slugs: Vec<_> = (0..1_000).map(|n| format!("{}-{n:03}", "t".repeat(120))).collect();
        let scope = Scope { tenant_slugs: slugs[..999].to_vec(), ..Scope::default() };
        desk.flags.create(NewFlag { scope, ..NewFlag::new("a") }, &edit).await.unwrap();
        let other: Vec<_> = slugs[1..].to_vec();
        let scope = ScopePatch { tenant_slugs: Some(other.clone()), ..ScopePatch::default() };
        let patch = FlagPatch { scope, ..FlagPatch::default() };
        let flag = desk.flags.update("a", &patch, &edit).await.unwrap();
        assert_eq!(flag.scope.tenant_slugs, other);
        let change = &flag.history[0].changes[0];
        assert_eq!(change.from, json!({"count": 999, "only": [slugs[0]]}));
        assert_eq!(change.to, json!({"count": 999, "only": [slugs[999]]}));
        let created = &flag.history[1].changes.last().unwrap().to;
        assert_eq!(created["count"], 999);
        assert!(created.to_string().len() < 1_200, "bounded");
        assert_eq!(ours(&desk.events().await[1])["after"]["scope.tenantSlugs"], change.to);
    });
}

#[test]
fn an_actor_of_any_size_fits() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = Edit {
            user_agent: Some("ü".repeat(100_000)),
            request_id: Some("r".repeat(100_000)),
            ..Edit::by(Actor::user("i".repeat(100_000)).with_email("e".repeat(100_000)))
        };
        let flag = desk.flags.create(NewFlag::new("a"), &edit).await.unwrap();
        assert_eq!(flag.history[0].actor.id.as_ref().unwrap().len(), 512);
        let own = ours(&desk.events().await[0]);
        assert_eq!(own["after"]["state"], "off");
        assert_eq!(own["userAgent"].as_str().unwrap().len(), 512);
        assert_eq!(own["requestId"].as_str().unwrap().len(), 128);
    });
}

#[test]
fn a_key_that_is_seeded_twice_is_named() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let seeds = ["a", "b", "b"].map(NewFlag::new);
        let error = desk.flags.seed(&seeds, &Edit::by(Actor::system())).await.unwrap_err();
        assert_eq!(error.kind(), FieldInvalid);
        assert!(error.to_string().starts_with("key: b is given twice"), "{error}");
        assert!(desk.flags.list().await.unwrap().is_empty());
    });
}

#[test]
fn seeds_are_ten_described_flags_that_are_off() {
    let seeds = seeded_flags();
    assert_eq!(seeds.len(), 10);
    for key in ["jmap_native_v2", "gdpr_export_v2", "new_billing_engine", "oci_versioning"] {
        assert!(seeds.iter().any(|flag| flag.key == key), "{key}");
    }
    assert!(seeds.iter().all(|f| f.state == FlagState::Off && f.description.ends_with('.')));
}

#[test]
fn options_have_their_history_and_a_kill_clears_the_hundredths() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = operator();
        let new =
            json!({"key": "a", "state": "rollout", "pct": 12, "options": {"pctHundredths": 50}});
        desk.flags.create(NewFlag::from_json(&new).unwrap(), &edit).await.unwrap();
        let options = json!({"options": {
            "seed": "s", "requireActiveTenant": true, "expiresAt": "2027-01-31T00:00:00Z",
        }});
        let flag = desk.flags.update("a", &patch(&options), &edit).await.unwrap();
        let told = |flag: &dezky_flags::Flag| -> Vec<Value> {
            let change = |c: &dezky_flags::FieldChange| json!([c.field, c.from, c.to]);
            flag.history[0].changes.iter().map(change).collect()
        };
        assert_eq!(
            told(&flag),
            [
                json!(["options.seed", null, "s"]),
                json!(["options.requireActiveTenant", false, true]),
                json!(["options.expiresAt", null, "2027-01-31T00:00:00.000Z"]),
            ]
        );
        let whole = desk.flags.update("a", &patch(&json!({"pct": 12})), &edit).await.unwrap();
        assert_eq!((whole.version, whole.threshold()), (3, 1_200));
        assert_eq!(told(&whole), [json!(["options.pctHundredths", 50, 0])]);
        let taken = patch(&json!({"options": {"seed": null, "expiresAt": null}}));
        let taken = desk.flags.update("a", &taken, &edit).await.unwrap();
        assert_eq!((&taken.options.seed, taken.options.expires_at), (&None, None));
        assert!(taken.options.require_active_tenant, "unnamed options stay");

        let half = patch(&json!({"options": {"pctHundredths": 50}}));
        desk.flags.update("a", &half, &edit).await.unwrap();
        let killed = desk.flags.kill("a", &edit).await.unwrap();
        assert_eq!((killed.state, killed.threshold()), (FlagState::Off, 0));
        let again = desk.flags.kill("a", &edit).await.unwrap();
        assert_eq!(again, killed);
        let events = desk.events().await;
        assert_eq!(
            ours(events.last().unwrap())["before"],
            json!({"state": "rollout", "pct": 12, "options.pctHundredths": 50})
        );
    });
}

/// The returned state before the change is exact, even with concurrent editors.
#[test]
fn an_update_returns_the_versions_that_it_lies_between() {
    tokio().block_on(async {
        let desk = Desk::open(&Memory).await;
        let edit = operator();
        desk.flags.create(NewFlag::new("a"), &edit).await.unwrap();
        let patches: Vec<_> = (1..=20).map(|pct| patch(&json!({"pct": pct}))).collect();
        let updates = patches.iter().map(|patch| desk.flags.update_and_compare("a", patch, &edit));
        for updated in futures_util::future::try_join_all(updates).await.unwrap() {
            let change = &updated.after.history[0].changes[0];
            assert_eq!(updated.after.version, updated.before.version + 1);
            assert_eq!(
                (&change.from, &change.to),
                (&json!(updated.before.pct), &json!(updated.after.pct))
            );
        }
        let same = patch(&json!({"pct": desk.flags.get("a").await.unwrap().unwrap().pct}));
        let same = desk.flags.update_and_compare("a", &same, &edit).await.unwrap();
        assert_eq!(same.before, same.after);
    });
}
