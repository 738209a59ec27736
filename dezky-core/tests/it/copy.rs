//! Copies of log and directory between engines.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use dezky_core::copy::{
    CopyOptions, DocumentCounts, check_directory, check_log, compare_directories, compare_logs,
    copy_directory, copy_log, relay_all,
};
use dezky_core::directory::{
    DirectoryStore, DocumentDirectory, Tenant, TenantKey, TenantStatus, User,
};
use dezky_core::integrity::erase;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::engine::SearchColumns;
use dezky_core::store::{
    AppendOptions, AuditStore, CursorAdvance, LogPart, MemoryAuditStore, MongoAuditStore,
    MongoConfig, PostgresAuditStore, PostgresConfig, SqliteAuditStore, SqliteConfig, StoredRow,
};
use dezky_core::testkit::{EventGenerator, ManualRuntime, named_event};
use dezky_core::verify::verify;
use dezky_core::{ErrorKind, Field, QuarantineItem, Timestamp};
use serde_json::json;

use crate::databases::Databases;
use crate::directory::tenant;
use crate::servers::{Engine, TestLog};
use crate::sqlite::tokio;

/// The log and the directory of one database.
struct Ends {
    log: Arc<dyn AuditStore>,
    directory: Arc<dyn DirectoryStore>,
}

fn memory() -> Ends {
    let log: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
    Ends { directory: Arc::new(DocumentDirectory::in_memory(log.clone())), log }
}

async fn sqlite(folder: &tempfile::TempDir, name: &str) -> Ends {
    let config = SqliteConfig::new(folder.path().join(name));
    let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
    let directory = Arc::new(DocumentDirectory::open(&log.database()).await.unwrap());
    Ends { directory, log: Arc::new(log) }
}

async fn postgres(databases: &Databases) -> Ends {
    let config = PostgresConfig::new(databases.make().await);
    let log = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
    let directory = Arc::new(DocumentDirectory::open(&log.database()).await.unwrap());
    Ends { directory, log: Arc::new(log) }
}

async fn mongodb(database: &TestLog) -> Ends {
    let config = MongoConfig::new(database.url());
    let log = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await.unwrap();
    let directory = Arc::new(DocumentDirectory::open(&log.database()).await.unwrap());
    Ends { directory, log: Arc::new(log) }
}

fn item(key: &str) -> QuarantineItem {
    QuarantineItem {
        source: "ocis".into(),
        key: key.into(),
        reason: "not_json".into(),
        detail: "a line".into(),
        raw: b"{\xff".to_vec(),
        at: Timestamp::MIN,
    }
}

async fn quarantine(log: &dyn AuditStore, keys: &[&str]) {
    let quarantine = keys.iter().map(|key| item(key)).collect();
    log.append(Vec::new(), AppendOptions { quarantine, ..AppendOptions::default() }).await.unwrap();
}

async fn append(log: &dyn AuditStore, names: &[&str]) {
    let events = names.iter().map(|name| named_event(name).seal(&TokioRuntime)).collect();
    log.append(events, AppendOptions::default()).await.unwrap();
}

async fn advance(log: &dyn AuditStore, from: Option<&str>, to: &str) {
    let cursor = CursorAdvance { source: "ocis".into(), from: from.map(Into::into), to: to.into() };
    let options = AppendOptions { cursor: Some(cursor), ..AppendOptions::default() };
    log.append(Vec::new(), options).await.unwrap();
}

/// A store with some of everything: erased rows, cursors, quarantined items of which one was
/// released, deleted tenants, and more documents than fit on a page.
async fn lived_in() -> Ends {
    let manual = Arc::new(ManualRuntime::new(7));
    let other = MemoryAuditStore::open(manual.clone());
    let events = EventGenerator::new(&*manual).sealed(700);
    other.append(events, AppendOptions::default()).await.unwrap();
    let state = other.state().await.unwrap();
    let mut rows: Vec<StoredRow> =
        other.scan(0, 1_000).await.unwrap().into_iter().map(Result::unwrap).collect();
    for row in [3, 17, 699] {
        let row = &mut rows[row];
        let fields = [Field::ActorEmail, Field::ActorId, Field::Metadata];
        (row.stored.event, row.evidence) = erase(&row.stored.event, &row.evidence, &fields);
        row.search_columns = SearchColumns::of(&row.stored.event);
        row.stored.erased = row.evidence.erased_fields();
    }
    let ends = memory();
    let part = LogPart {
        log_id: state.log_id,
        cursor_key: state.cursor_key,
        rows,
        cursors: Vec::new(),
        quarantine: Vec::new(),
    };
    ends.log.restore(part).await.unwrap();
    advance(&*ends.log, None, "1").await;
    quarantine(&*ends.log, &["a", "b", "c", "b"]).await;
    let first = ends.log.quarantined(0, 1).await.unwrap()[0].number;
    let options = AppendOptions { release: vec![first], ..AppendOptions::default() };
    ends.log.append(Vec::new(), options).await.unwrap();

    let mut documents = Vec::new();
    for number in 0..450 {
        let mut tenant = tenant(&format!("t{number}"));
        if number % 100 == 0 {
            tenant.status = TenantStatus::Deleted;
        }
        tenant.domains = vec![format!("d{}.example", number / 2 * 2)];
        if number % 2 == 1 {
            tenant.domains[0] = format!("d{number}.example");
        }
        tenant.version = 1 + number % 3;
        documents.push(tenant.into());
    }
    for number in 0..250 {
        let user: User = serde_json::from_value(json!({
            "id": format!("u-{number}"), "issuer": "i", "subject": format!("s{number}"),
            "identities": [{"system": "ocis", "id": format!("o{number}")}],
            "tenantIds": [format!("t-t{number}")], "status": "active", "version": 4,
            "lastLoginAt": (number % 3 > 0).then_some("2026-01-01T00:00:00Z"),
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        documents.push(user.into());
    }
    ends.directory.restore(documents).await.unwrap();
    ends
}

/// Copies everything and checks that both ends are the same and intact.
async fn copied(from: &Ends, to: &Ends) {
    let options = CopyOptions { max_rows: 200, ..CopyOptions::default() };
    let mut told = Vec::new();
    copy_directory(&*from.directory, &*to.directory, |_| ()).await.unwrap();
    copy_log(&*from.log, &*to.log, options, |progress| told.push(progress.done)).await.unwrap();
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(compare_logs(&*from.log, &*to.log).await.unwrap(), None);
    assert_eq!(compare_directories(&*from.directory, &*to.directory).await.unwrap(), None);
    // Claims of rows are the same at both ends, including erasures without an event.
    let (source, target) = (verify(&*from.log, None, |_| ()), verify(&*to.log, None, |_| ()));
    let (source, target) = (source.await.unwrap(), target.await.unwrap());
    assert_eq!((&target.finding, target.anomalies.len()), (&source.finding, 0));
    let claimed = source.finding.is_none_or(|f| f.seq == 3 && f.detail.contains("was erased"));
    assert!(claimed, "{:?}", target.finding);
}

async fn rows(log: &dyn AuditStore) -> Vec<String> {
    let rows = log.scan(0, 10_000).await.unwrap().into_iter().map(Result::unwrap);
    rows.map(|row| format!("{:?} {:?} {:?}", row.stored, row.evidence, row.search_columns))
        .collect()
}

#[test]
fn around_all_engines_and_back_everything_is_as_it_was() {
    tokio().block_on(async {
        let (folder, databases) = (tempfile::tempdir().unwrap(), Databases::default());
        let first = lived_in().await;
        let database = TestLog::new(Engine::Mongodb).await;
        let mut last = sqlite(&folder, "first.db").await;
        copied(&first, &last).await;
        let mongo = mongodb(&database).await;
        let way = [postgres(&databases).await, mongo, sqlite(&folder, "last.db").await, memory()];
        for next in way {
            copied(&last, &next).await;
            // Repeating the copy changes nothing.
            copied(&last, &next).await;
            last = next;
        }
        assert_eq!(rows(&*first.log).await, rows(&*last.log).await);
        assert_eq!(compare_logs(&*first.log, &*last.log).await.unwrap(), None);
        assert_eq!(compare_directories(&*first.directory, &*last.directory).await.unwrap(), None);
        let counts = copy_directory(&*first.directory, &*last.directory, |_| ()).await.unwrap();
        assert_eq!(counts, DocumentCounts { partners: 0, tenants: 450, users: 250 });
    });
}

#[test]
fn a_copy_continues_after_the_source_has_grown() {
    tokio().block_on(async {
        let (from, to) = (lived_in().await, memory());
        copied(&from, &to).await;
        append(&*from.log, &["x", "y"]).await;
        advance(&*from.log, Some("1"), "2").await;
        // One item was released, one was received again, one is new.
        let kept = from.log.quarantined(0, 10).await.unwrap();
        let options = AppendOptions { release: vec![kept[0].number], ..AppendOptions::default() };
        from.log.append(Vec::new(), options).await.unwrap();
        quarantine(&*from.log, &["c", "d"]).await;
        // A domain moved from one tenant to another that sorts before it.
        let read =
            async |slug| from.directory.tenant(TenantKey::Slug(slug)).await.unwrap().unwrap();
        let (gives, takes) = (read("t9").await, read("t11").await);
        let gives = Tenant { domains: Vec::new(), version: gives.version + 1, ..gives };
        let takes =
            Tenant { domains: vec!["d9.example".into()], version: takes.version + 1, ..takes };
        from.directory.commit(vec![gives.into(), takes.into()], Vec::new()).await.unwrap();
        assert_eq!(
            compare_logs(&*from.log, &*to.log).await.unwrap().unwrap(),
            "the source has 702 events and the target 700, or their heads differ"
        );
        assert_eq!(
            compare_directories(&*from.directory, &*to.directory).await.unwrap().unwrap(),
            "the directories differ, first at the tenant t-t11"
        );
        copied(&from, &to).await;
        assert_eq!(to.log.cursor("ocis").await.unwrap().as_deref(), Some("2"));
        // Two documents exchange domains without ever being read at the same time.
        let (first, last) = (read("t1").await, read("t99").await);
        let domains = (first.domains.clone(), last.domains.clone());
        let first = Tenant { domains: domains.1, version: first.version + 1, ..first };
        let last = Tenant { domains: domains.0, version: last.version + 1, ..last };
        from.directory.commit(vec![first.into(), last.into()], Vec::new()).await.unwrap();
        copied(&from, &to).await;
    });
}

/// Each further part is dropped midway, as with Ctrl-C.
#[test]
fn a_stopped_copy_continues_where_it_was() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (lived_in().await, sqlite(&folder, "to.db").await);
        let options = CopyOptions { max_rows: 100, ..CopyOptions::default() };
        let mut stops = 0;
        loop {
            let began = to.log.state().await.unwrap().head.next_seq;
            let stop = AtomicBool::new(false);
            let mut copy = pin!(copy_log(&*from.log, &*to.log, options, |progress| {
                stop.fetch_or(progress.done > began, Ordering::SeqCst);
            }));
            let done = poll_fn(|context| {
                if stop.load(Ordering::SeqCst) {
                    Poll::Ready(None)
                } else {
                    copy.as_mut().poll(context).map(Some)
                }
            });
            if let Some(done) = done.await {
                done.unwrap();
                break;
            }
            stops += 1;
        }
        assert!(stops > 3, "{stops}");
        copied(&from, &to).await;
    });
}

#[test]
fn a_target_with_its_own_contents_is_refused_unchanged() {
    tokio().block_on(async {
        let from = lived_in().await;
        let refused = async |to: &Ends, says: &str| {
            let before = rows(&*to.log).await;
            let error = check_log(&*from.log, &*to.log).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StateConflict);
            assert!(error.to_string().contains(says), "{error}");
            let again = copy_log(&*from.log, &*to.log, CopyOptions::default(), |_| ()).await;
            assert_eq!(again.unwrap_err().to_string(), error.to_string());
            assert_eq!(rows(&*to.log).await, before);
        };
        let other = memory();
        append(&*other.log, &["own"]).await;
        refused(&other, "holds another log").await;
        let cursor = memory();
        advance(&*cursor.log, None, "7").await;
        refused(&cursor, "holds another log").await;
        let item = memory();
        quarantine(&*item.log, &["own"]).await;
        refused(&item, "holds another log").await;

        // A copy with its own later writes: longer, or equally long with other events.
        let copy = memory();
        copied(&from, &copy).await;
        append(&*copy.log, &["own"]).await;
        refused(&copy, "interchanged").await;
        append(&*from.log, &["theirs", "more"]).await;
        refused(&copy, "different events at seq 700").await;

        let directory = memory();
        directory.directory.restore(vec![tenant("own").into()]).await.unwrap();
        let error = check_directory(&*from.directory, &*directory.directory).await.unwrap_err();
        assert!(error.to_string().contains("its own tenant t-own"), "{error}");
    });
}

#[test]
fn events_in_the_outbox_are_copied() {
    tokio().block_on(async {
        let from = memory();
        let events = (0..3).map(|_| named_event("staged").seal(&TokioRuntime)).collect();
        from.log.stage(events).await.unwrap();
        assert_eq!(relay_all(&*from.log).await.unwrap(), 3);
        assert_eq!(relay_all(&*from.log).await.unwrap(), 0);
        let to = memory();
        copied(&from, &to).await;
        // An empty log is copied too, and both are the same log from then on.
        let (from, to) = (memory(), memory());
        copied(&from, &to).await;
        append(&*from.log, &["a"]).await;
        copied(&from, &to).await;
    });
}
