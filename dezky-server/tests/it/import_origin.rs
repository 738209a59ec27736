//! `import-origin` as a process, on a database like that of the previous platform.

use std::path::Path;
use std::process::Output;

use dezky::{Access, Stores};
use dezky_core::AuditEvent;
use dezky_core::directory::{TenantKey, TenantStatus, UserKey};
use dezky_core::store::{LogState, StoredRow};
use dezky_core::verify::verify;
use dezky_flags::bucket;
use dezky_ingest::testkit::AuthentikDouble;
use dezky_server::Settings;
use mongodb::bson::doc;
use serde_json::{Value, json};

use crate::origin::{self, EVENTS, authentik_events, old_stalwart_event, stalwart_event};
use crate::servers::{Database, Engine};
use crate::support::{Server, WEBHOOK, refusal, run, stdout, until};

/// A database of the previous platform.
async fn before() -> (Database, mongodb::Database) {
    let database = Database::new(Engine::Mongodb).await.unwrap();
    let client = mongodb::Client::with_uri_str(&database.url).await.unwrap();
    let there = client.default_database().unwrap();
    origin::fill(&there).await;
    (database, there)
}

fn import(from: &str, to: &str, more: &[&str]) -> Output {
    run(&[&["import-origin", "--from", from, "--to", to], more].concat(), &[])
}

fn imported(from: &str, to: &str, more: &[&str]) -> Value {
    let output = import(from, to, &[&["--json"], more].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A count for each kind: partners, tenants, users, flags, events, cursors.
fn counts(report: &Value, name: &str) -> Vec<u64> {
    let collections = report["collections"].as_array().unwrap();
    collections.iter().map(|collection| collection[name].as_u64().unwrap()).collect()
}

fn url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("audit.db").display())
}

async fn open(url: &str) -> Stores {
    let settings = Settings::load(None, [], Some(url)).unwrap();
    Stores::open(&settings.store().unwrap(), Access::Write).await.unwrap()
}

async fn rows(stores: &Stores) -> Vec<StoredRow> {
    let rows = stores.log.scan(0, 1_000).await.unwrap();
    rows.into_iter().map(Result::unwrap).collect()
}

async fn state(url: &str) -> LogState {
    let stores = open(url).await;
    let state = stores.log.state().await.unwrap();
    stores.close().await;
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_import_and_the_sources_themselves_add_nothing() {
    let (there, _) = before().await;
    let folder = tempfile::tempdir().unwrap();
    let to = url(folder.path());

    let dry = imported(&there.url, &to, &["--dry-run"]);
    assert!(!folder.path().join("audit.db").exists(), "nothing was written");
    let first = imported(&there.url, &to, &[]);
    assert_eq!(counts(&first, "imported"), [1, 3, 1, 2, EVENTS - 1, 2], "{first}");
    assert_eq!(counts(&first, "quarantined"), [0, 0, 0, 0, 1, 0]);
    for name in ["read", "imported", "refused", "quarantined", "existing"] {
        assert_eq!(counts(&dry, name), counts(&first, name), "{name}");
    }
    assert_eq!(dry["externalIds"], first["externalIds"]);
    let head = state(&to).await.head;
    assert_eq!(head.next_seq, EVENTS, "includes the event about the quarantine");

    let second = imported(&there.url, &to, &[]);
    assert_eq!(counts(&second, "imported"), [0, 0, 0, 0, 0, 0], "{second}");
    assert_eq!(counts(&second, "existing"), [1, 3, 1, 2, EVENTS - 1, 2]);
    assert_eq!(counts(&second, "conflicts"), [0, 0, 0, 0, 0, 0]);
    assert_eq!(state(&to).await.head, head);

    // From here on, the sources deliver their own events.
    let double = AuthentikDouble::builder().events(authentik_events()).start().await.unwrap();
    let (authentik, token) = (double.url().to_owned(), double.token());
    let imported_cursor = {
        let stores = open(&to).await;
        let cursor = stores.log.cursor("authentik").await.unwrap();
        stores.close().await;
        cursor
    };
    let server = Server::start_in(
        folder,
        &[
            ("DEZKY_AUTHENTIK_URL", &authentik),
            ("DEZKY_AUTHENTIK_TOKEN", &token),
            ("DEZKY_POLL_SECONDS", "1"),
        ],
    )
    .await;
    let store = &server.running.platform().store;
    until("a poll", async || store.cursor("authentik").await.unwrap() != imported_cursor).await;
    let body = json!({"events": [
        stalwart_event("alice@acme.example"), stalwart_event("carol@acme.example"),
        old_stalwart_event(),
    ]});
    let answer = server.client.post_signed(WEBHOOK, &body.to_string()).await;
    assert_eq!(answer.json, json!({"received": 3}), "{answer:?}");
    let after = store.state().await.unwrap().head;
    assert_eq!(after, head, "nothing is new");
    double.stop().await;
    server.stop().await;
}

/// `head.path` belongs to the configured store's log and does not apply to another store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_file_is_that_of_the_configured_store() {
    let (there, _) = before().await;
    let folder = tempfile::tempdir().unwrap();
    let (to, head) = (url(folder.path()), folder.path().join("noted.head"));
    let note = json!({
        "version": 1, "logId": "0193b3c0-7d3a-7000-8000-00000000002a", "nextSeq": 7,
        "headHash": "11".repeat(32),
    });
    std::fs::write(&head, note.to_string()).unwrap();
    let head = head.display().to_string();
    let import =
        |set: &[(&str, &str)]| run(&["import-origin", "--from", &there.url, "--to", &to], set);
    let set = [("DEZKY_HEAD_PATH", head.as_str()), ("DEZKY_STORE", &to)];
    let said = refusal(&import(&set), 2);
    assert!(said.contains("found no log") && said.contains("noted.head"), "{said}");
    assert!(!folder.path().join("audit.db").exists());
    let output = import(&set[..1]);
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_where_it_belongs() {
    let (there, database) = before().await;
    let folder = tempfile::tempdir().unwrap();
    let to = url(folder.path());
    let report = imported(&there.url, &to, &[]);
    let stores = open(&to).await;
    let verdict = verify(&*stores.log, None, |_| ()).await.unwrap();
    assert_eq!((verdict.finding, verdict.verified), (None, EVENTS));

    let rows = rows(&stores).await;
    // The event about the quarantine has today's time.
    let events = rows.iter().map(|row| &row.stored.event);
    let own: Vec<_> = events.filter(|event| event.action != "ingest.quarantined").collect();
    // The event without a time comes first.
    assert!(own[1..].is_sorted_by_key(|event| event.at));
    assert!(rows.iter().all(|row| !format!("{:?}", row.stored).contains("S3CRET")), "{rows:?}");
    let find = |raw_id: u32| {
        let id = origin::id(5, raw_id).to_hex();
        let is_its = |e: &&&AuditEvent| e.metadata.to_value()["_dezky"]["rawId"] == id.as_str();
        *own.iter().find(is_its).unwrap_or_else(|| panic!("{id}"))
    };
    let platform = find(3);
    assert_eq!(
        (platform.action.as_str(), platform.tenant_slug.as_deref()),
        ("tenant.created", Some("acme"))
    );
    assert_eq!(platform.actor_ip.as_deref(), Some("203.0.113.9"));
    assert_eq!(platform.resource_id, Some(origin::id(2, 1).to_hex()));
    assert_eq!(platform.received_at.as_millis() - platform.at.as_millis(), 1_000);
    assert_eq!(platform.metadata.to_value()["apiKey"], "[redacted]");
    let external = |n| find(n).external_id.clone().unwrap();
    assert!(external(200).starts_with("sw1:") && external(200) != external(201));
    assert_eq!(external(210), "184467440737095516");
    assert_eq!(external(211), "178696080212035", "the stored payload does not allow a better id");
    assert_eq!((external(300), external(301)), ("10469822:0".into(), "line-1".into()));
    assert_eq!(find(400).action, "tenant_deleted_");
    assert_eq!(find(403).at.to_string(), "2026-08-17T08:00:00.000Z");
    let counted = json!({"kept": 6, "computed": 3, "notComputed": 2, "absent": 37});
    assert_eq!(report["externalIds"], counted);
    let kept = stores.log.quarantined(0, 10).await.unwrap();
    assert_eq!((kept.len(), kept[0].item.reason.as_str()), (1, "no_action"));
    assert!(!String::from_utf8_lossy(&kept[0].item.raw).contains("S3CRET"));

    let collection = |kind: &str| {
        let collections = report["collections"].as_array().unwrap();
        collections.iter().find(|c| c["kind"] == kind).unwrap().clone()
    };
    assert_eq!(collection("tenants")["unknown"], json!({"seats": 1}));
    assert_eq!(collection("events")["unknown"], json!({"geo": 1}));
    assert_eq!(collection("events")["changed"], json!({"actorType": 1, "event": 2}));

    let directory = &stores.directory;
    let acme = directory.tenant(TenantKey::Domain("acme.example")).await.unwrap().unwrap();
    assert_eq!((acme.id.clone(), acme.slug.as_str()), (origin::id(2, 1).to_hex(), "acme"));
    assert_eq!(acme.partner_id, Some(origin::id(1, 1).to_hex()));
    let old = directory.tenant(TenantKey::Slug("old")).await.unwrap().unwrap();
    assert_eq!(old.status, TenantStatus::Deleted);
    let user = UserKey::Identity { system: "ocis", id: "4c510ada" };
    let user = directory.user(user).await.unwrap().unwrap();
    assert_eq!((user.tenant_ids.len(), user.platform_admin), (2, true));
    let flag = stores.flags.flag("chat_v2").await.unwrap().unwrap();
    assert_eq!((flag.pct, flag.version, flag.history.len()), (25, 1, 2));
    assert_eq!(flag.history[0].note.as_deref(), Some("more"));
    assert_eq!(bucket(&acme.id, "chat_v2"), bucket(&origin::id(2, 1).to_hex(), "chat_v2"));
    let cursor = stores.log.cursor("ocis").await.unwrap();
    assert_eq!(cursor.as_deref(), Some("10469822:400"));
    stores.close().await;
    assert_eq!(
        database.list_collection_names().await.unwrap().len(),
        7,
        "nothing was written there"
    );

    let text = stdout(&import(&there.url, &to, &[]));
    assert!(
        text.contains("external ids: 6 kept, 3 computed anew, 2 of Stalwart and oCIS"),
        "{text}"
    );
    assert!(text.contains("cursor of authentik: the one that is here stays"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_is_told_and_the_rest_is_imported() {
    let (there, database) = before().await;
    let folder = tempfile::tempdir().unwrap();
    let to = url(folder.path());
    let tenants = database.collection("tenants");
    tenants
        .insert_one(doc! {"_id": origin::id(2, 7), "slug": "No Slug", "name": "x"})
        .await
        .unwrap();
    tenants
        .insert_one(doc! {"_id": origin::id(2, 8), "slug": "twin", "name": "x", "plan": "pro",
        "status": "active", "domains": ["acme.example"]})
        .await
        .unwrap();
    let output = import(&there.url, &to, &["--json", "--collection", "cursors=none"]);
    assert!(refusal(&output, 1).contains("2 documents were refused"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(counts(&report, "refused"), [0, 2, 0, 0, 0, 0]);
    assert_eq!(counts(&report, "imported"), [1, 3, 1, 2, EVENTS - 1, 0]);
    let problems = report["collections"][1]["problems"].to_string();
    assert!(
        problems.contains("slug must be") && problems.contains("acme.example already"),
        "{problems}"
    );
    let cursors = &report["collections"][5];
    assert_eq!((&cursors["found"], &cursors["name"]), (&false.into(), &"none".into()));

    let other = Database::new(Engine::Mongodb).await.unwrap();
    let nothing = url(&folder.path().join("none"));
    let none = refusal(&import(&other.url, &nothing, &["--dry-run"]), 2);
    assert!(none.contains("the database has none of the collections"), "{none}");
    for (from, says) in [
        ("sqlite:///x.db", "--from: must be the URL of a database of MongoDB"),
        ("mongodb://127.0.0.1:1", "--from: must be the URL of a database of MongoDB"),
        (
            "mongodb://u:S3CRET@127.0.0.1:1/x?serverSelectionTimeoutMS=100&connectTimeoutMS=100",
            "--from: the server can't be reached: check the URL and that it is up",
        ),
    ] {
        let refused = import(from, &to, &[]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains(says) && !said.contains("S3CRET"),
            "{said}"
        );
    }
    let wrong = import(&there.url, &to, &["--collection", "logs=x"]);
    assert!(refusal(&wrong, 2).contains("the kind one of partners, tenants, users"));
}
