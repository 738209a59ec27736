//! Unreadable stored flags: isolated, reported, killed and removed.

use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::ListQuery;
use dezky_core::{Actor, AuditLog, ErrorKind, Runtime};
use dezky_flags::live::LiveConfig;
use dezky_flags::{
    Edit, FlagContext, FlagEvaluator, FlagPatch, FlagState, Flags, LiveFlags, NewFlag, Reason,
};
use mongodb::bson::{Document, doc};
use serde_json::json;

use crate::live_processes::{Opened, open};
use crate::servers::{Engine, TestLog, tokio};

#[test]
fn invalid_flags_are_isolated_in_sqlite() {
    tokio().block_on(isolates(Engine::Sqlite));
}

#[test]
fn invalid_flags_are_isolated_in_postgres() {
    tokio().block_on(isolates(Engine::Postgres));
}

#[test]
fn invalid_flags_are_isolated_in_mongodb() {
    tokio().block_on(isolates(Engine::Mongodb));
}

/// Documents as left by a manual edit or another version.
fn broken(good: &str) -> Vec<(&'static str, String)> {
    vec![
        ("b.field", good.replace("good", "b.field").replace("\"pct\"", "\"percent\":1,\"pct\"")),
        ("b.json", "{\"key\": \"b.json\"".to_owned()),
        ("b.key", good.to_owned()),
        ("b.pct", good.replace("good", "b.pct").replace("\"pct\":0", "\"pct\":200")),
        ("b.state", good.replace("good", "b.state").replace("\"on\"", "\"sometimes\"")),
    ]
}

async fn isolates(engine: Engine) {
    let place = TestLog::new(engine).await;
    let Opened { log, store, write } = open(&place.url()).await;
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    let audit = Arc::new(AuditLog::new(Arc::clone(&log), Arc::clone(&runtime)));
    let flags = Flags::new(Arc::clone(&store), audit, Arc::clone(&runtime));
    let live = LiveFlags::open(Arc::clone(&store), runtime, LiveConfig::default()).await.unwrap();
    let flags = flags.with_live(live.clone());
    let edit = Edit::by(Actor::user("u-7"));
    let keys = ["b.field", "b.json", "b.key", "b.pct", "b.state"];
    for key in keys {
        flags.create(NewFlag::new(key), &edit).await.unwrap();
    }
    let on = |key: &str| NewFlag { state: FlagState::On, ..NewFlag::new(key) };
    let good = flags.create(on("good"), &edit).await.unwrap();
    let good = serde_json::to_string(&good).unwrap();
    for (key, text) in broken(&good) {
        write.flag(key, &text).await;
    }
    // A manual edit does not raise the revision; the next change does.
    flags.create(on("other"), &edit).await.unwrap();

    let snapshot = store.snapshot().await.unwrap();
    let invalid: Vec<_> = snapshot.invalid.iter().map(|flag| flag.key.as_str()).collect();
    assert_eq!(invalid, keys);
    let whole: Vec<_> = snapshot.flags.iter().map(|flag| flag.key.as_str()).collect();
    assert_eq!(whole, ["good", "other"]);
    for flag in &snapshot.invalid {
        assert!(!flag.problem.contains("sometimes") && !flag.problem.contains("percent"));
    }
    assert!(snapshot.invalid[3].problem.contains("pct must be"), "{:?}", snapshot.invalid[3]);
    let context = FlagContext::default();
    for key in keys {
        let decision = live.evaluate(key, &context);
        assert_eq!((decision.value, decision.reason), (false, Reason::InvalidFlag), "{key}");
    }
    assert!(live.evaluate("good", &context).value && live.evaluate("other", &context).value);

    let patch = FlagPatch { state: Some(FlagState::On), ..FlagPatch::default() };
    for key in keys {
        let refusals = [
            flags.get(key).await.unwrap_err(),
            flags.update(key, &patch, &edit).await.unwrap_err(),
        ];
        for refused in refusals {
            assert_eq!(refused.kind(), ErrorKind::StateConflict);
            let said = refused.to_string();
            assert!(said.contains(key) && said.contains("kill or remove it"), "{said}");
        }
    }
    let taken = flags.create(on("b.json"), &edit).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);

    // After a kill the flag is valid and can be changed; after a removal it is gone.
    let killed = flags.kill("b.pct", &edit).await.unwrap();
    assert_eq!((killed.state, killed.version, killed.history.len()), (FlagState::Off, 2, 1));
    assert_eq!(flags.get("b.pct").await.unwrap(), Some(killed));
    assert_eq!(live.evaluate("b.pct", &context).reason, Reason::Off);
    flags.update("b.pct", &patch, &edit.of_version(2)).await.unwrap();
    assert!(live.evaluate("b.pct", &context).value);
    let stale = flags.remove("b.json", &edit.of_version(7)).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::VersionMismatch);
    for key in ["b.json", "b.field", "b.key", "b.state"] {
        flags.remove(key, &edit.of_version(1)).await.unwrap();
        assert_eq!(live.evaluate(key, &context).reason, Reason::UnknownFlag, "{key}");
    }
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!((snapshot.flags.len(), snapshot.invalid.len()), (3, 0));
    let again = flags.create(on("b.json"), &edit).await.unwrap();
    assert_eq!(again.version, 3, "no version is given twice");

    let about = ListQuery { limit: 50, ..ListQuery::default() };
    let events = log.list(&about).await.unwrap().events;
    let actions = |key: &str| -> Vec<_> {
        let of = |event: &&dezky_core::StoredEvent| event.event.resource_id.as_deref() == Some(key);
        events.iter().filter(of).map(|event| event.event.action.as_str()).collect()
    };
    assert_eq!(actions("b.pct"), ["flag.updated", "flag.killed", "flag.created"]);
    assert_eq!(actions("b.json"), ["flag.created", "flag.removed", "flag.created"]);
    let killed = events.iter().find(|event| event.event.action == "flag.killed").unwrap();
    let ours = &killed.event.metadata.to_value()["_dezky"];
    assert_eq!((&ours["before"]["state"], &ours["after"]["state"]), (&json!(null), &json!("off")));

    // A row that is wrong outside the flag's text affects no other flag either.
    for key in ["c.text", "c.version"] {
        flags.create(on(key), &edit).await.unwrap();
    }
    write.no_text("c.text").await;
    write.no_version("c.version").await;
    flags.create(on("another"), &edit).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    let invalid: Vec<_> = snapshot.invalid.iter().map(|flag| flag.key.as_str()).collect();
    assert_eq!(invalid, ["c.text", "c.version"]);
    for key in invalid {
        assert_eq!(live.evaluate(key, &context).reason, Reason::InvalidFlag, "{key}");
    }
    assert!(live.evaluate("good", &context).value && live.evaluate("another", &context).value);
    let killed = flags.kill("c.text", &edit).await.unwrap();
    assert_eq!((killed.state, killed.version), (FlagState::Off, 2));
    // A flag that can't be compared can't be changed either.
    let refused = flags.kill("c.version", &edit).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreCorrupt);
}

/// Writes that no editor would make.
pub(crate) enum Write {
    Sqlite(dezky_core::store::SqliteDatabase),
    Postgres(dezky_core::store::PostgresDatabase),
    Mongodb(dezky_core::store::MongoDatabase),
}

impl Write {
    /// Replaces a stored flag with `text`.
    async fn flag(&self, key: &str, text: &str) {
        match self {
            Self::Sqlite(database) => {
                let mut tx = database.begin().await.unwrap();
                let update = sqlx::query("UPDATE dezky_flags SET flag = ? WHERE key = ?");
                let done = update.bind(text).bind(key).execute(&mut *tx).await.unwrap();
                assert_eq!(done.rows_affected(), 1);
                tx.commit().await.unwrap();
            }
            Self::Postgres(database) => {
                let mut tx = database.begin().await.unwrap();
                let update = sqlx::query("UPDATE dezky_flags SET flag = $1 WHERE key = $2");
                let done = tx.execute(update.bind(text.to_owned()).bind(key.to_owned())).await;
                assert_eq!(done.unwrap(), 1);
                tx.commit().await.unwrap();
            }
            Self::Mongodb(_) => self.document(key, doc! { "flag": text }).await,
        }
    }

    /// Replaces a stored flag with a value that is not text, if the engine can store one there.
    async fn no_text(&self, key: &str) {
        match self {
            Self::Sqlite(database) => {
                let sql = "UPDATE dezky_flags SET flag = CAST(x'ff' AS TEXT) WHERE key = ?";
                let mut tx = database.begin().await.unwrap();
                sqlx::query(sql).bind(key).execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
            Self::Postgres(_) => self.flag(key, "").await,
            Self::Mongodb(_) => self.document(key, doc! { "flag": 7 }).await,
        }
    }

    async fn no_version(&self, key: &str) {
        match self {
            Self::Sqlite(database) => {
                let sql = "UPDATE dezky_flags SET version = -1 WHERE key = ?";
                let mut tx = database.begin().await.unwrap();
                sqlx::query(sql).bind(key).execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
            Self::Postgres(database) => {
                let sql = "UPDATE dezky_flags SET version = -1 WHERE key = $1";
                let mut tx = database.begin().await.unwrap();
                tx.execute(sqlx::query(sql).bind(key.to_owned())).await.unwrap();
                tx.commit().await.unwrap();
            }
            Self::Mongodb(_) => self.document(key, doc! { "version": "one" }).await,
        }
    }

    async fn document(&self, key: &str, set: Document) {
        let Self::Mongodb(database) = self else { unreachable!("documents are MongoDB's") };
        let flags = database.collection::<Document>("dezky_flags");
        let done = flags.update_one(doc! { "_id": key }, doc! { "$set": set }).await.unwrap();
        assert_eq!(done.matched_count, 1);
    }
}
