//! The scenarios that the platform was verified by.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::AppendOptions;
use dezky_core::{Actor, NewEvent, Timestamp};
use reqwest::Method;
use sqlx::{Connection as _, SqliteConnection};

use crate::support::{Process, Server, WEBHOOK, until};

const TWO_EVENTS: &str = r#"{"events":[
  {"id":"evt-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.failed","data":{"email":"alice@example.com","ip":"203.0.113.7"}},
  {"id":"evt-2","createdAt":"2026-11-21T20:00:05Z","type":"account.created","data":{"username":"admin@example.com","account":"bob@example.com","ip":"203.0.113.8"}}
]}"#;

/// Lines of other writers than oCIS, which it would write the same way.
fn ocis_lines() -> Vec<&'static str> {
    include_str!("../../src/demo/data/event-shape.log").lines().collect()
}

fn append(path: &Path, lines: &[&str]) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    for line in lines {
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_signed_webhook_of_two_events() {
    let server = Server::start(&[]).await;
    let answer = server.client.post_signed(WEBHOOK, TWO_EVENTS).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json, serde_json::json!({ "received": 2 }));
    let events = server.client.all("").await;
    let [created, failed] = &events[..] else { panic!("{events:?}") };
    assert_eq!(failed["action"], "stalwart.auth_failed");
    assert_eq!(failed["outcome"], "failure");
    assert_eq!(failed["actorEmail"], "alice@example.com");
    assert_eq!(failed["actorIp"], "203.0.113.7");
    assert_eq!(failed["externalId"], "evt-1");
    assert_eq!(created["action"], "stalwart.account_created");
    assert_eq!(created["outcome"], "success");
    assert!(created["actorEmail"].is_string() && created["resourceId"].is_string(), "{created}");
    assert_eq!(created["actorIp"], "203.0.113.8");
    assert_eq!(created["externalId"], "evt-2");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_same_payload_again_adds_nothing() {
    let server = Server::start(&[]).await;
    for _ in 0..3 {
        let answer = server.client.post_signed(WEBHOOK, TWO_EVENTS).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json["received"], 2);
        assert_eq!(server.client.all("").await.len(), 2);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_wrong_signature_writes_nothing() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let unsigned = || client.request(Method::POST, WEBHOOK).body(TWO_EVENTS);
    let deadbeef = unsigned().header("X-Signature", "deadbeef");
    client.send(deadbeef).await.problem(401, "signature_invalid");
    client.send(unsigned()).await.problem(401, "signature_invalid");
    assert!(client.all("").await.is_empty());
    assert!(server.running.store().quarantined(0, 10).await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_five_ocis_lines_then_one_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let environment = [
        ("OCIS_AUDIT_LOG_PATH", path.to_str().unwrap().to_owned()),
        ("DEZKY_OCIS_POLL_SECONDS", "1".to_owned()),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let lines = ocis_lines();
    append(&path, &[lines[0], lines[1], lines[2], lines[3], lines[5]]);

    let server = Server::start_in(folder, &environment).await;
    let client = server.client.clone();
    until("four of five", async || client.all("&source=ocis").await.len() == 4).await;
    let actions: Vec<_> =
        client.all("").await.iter().map(|e| e["action"].as_str().unwrap().to_owned()).collect();
    assert!(!actions.iter().any(|action| action.contains("download")), "{actions:?}");
    let metadata = std::fs::metadata(&path).unwrap();
    let cursor = server.running.store().cursor("ocis").await.unwrap().unwrap();
    assert!(cursor.starts_with(&format!("{}:{}", metadata.ino(), metadata.len())), "{cursor}");

    // The next server goes on where this one ended.
    let folder = server.stop().await;
    let server = Server::start_in(folder, &environment).await;
    append(&path, &[lines[6]]);
    let client = server.client.clone();
    until("one more", async || client.all("&source=ocis").await.len() == 5).await;
    assert_eq!(client.all("&action=ocis.group_member_added").await.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_all_sources_in_one_list_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    append(&path, &ocis_lines());
    let path = path.to_str().unwrap().to_owned();
    let server = Server::start_in(folder, &[("OCIS_AUDIT_LOG_PATH", &path)]).await;
    server.client.post_signed(WEBHOOK, TWO_EVENTS).await;
    let event = NewEvent {
        at: Timestamp::parse("2026-11-21T23:59:50Z"),
        ..NewEvent::new("tenant.suspended", Actor::user("u-7"))
    };
    let event = event.seal(&TokioRuntime);
    server.running.store().append(vec![event], AppendOptions::default()).await.unwrap();
    let client = &server.client;
    until("all of them", async || client.all("").await.len() == 9).await;
    let events = client.all("").await;
    let times: Vec<_> = events.iter().map(|e| e["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    for (source, count) in [("ocis", 6), ("stalwart", 2), ("platform-api", 1)] {
        assert_eq!(events.iter().filter(|e| e["source"] == source).count(), count, "{source}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_pulled_again_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    append(&path, &ocis_lines());
    let environment = [
        ("OCIS_AUDIT_LOG_PATH", path.to_str().unwrap()),
        // Without one there is a warning, which is not what is looked for.
        ("DEZKY_OPERATOR_TOKEN", "token"),
    ];
    let first = Process::start(folder.path(), &environment);
    until("the first pull", async || first.stderr().contains("stored=6")).await;
    first.stop().await;

    // The overlap at its largest: the whole file is read again.
    let url = format!("sqlite://{}", folder.path().join("dezky.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let gone = sqlx::query("DELETE FROM dezky_cursors").execute(&mut database).await.unwrap();
    assert_eq!(gone.rows_affected(), 1);
    database.close().await.unwrap();

    let second = Process::start(folder.path(), &environment);
    until("the second pull", async || second.stderr().contains("duplicates=6")).await;
    let said = second.stderr();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    assert!(said.contains("stored=0"), "{said}");
    let client = &second.client;
    let request = client.request(Method::GET, "/audit").bearer_auth("token");
    assert_eq!(client.send(request).await.events().len(), 6);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_ingest_disabled_webhook_still_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    append(&path, &ocis_lines());
    let path = path.to_str().unwrap().to_owned();
    let environment = [("OCIS_AUDIT_LOG_PATH", path.as_str()), ("AUDIT_INGEST_ENABLED", "false")];
    let server = Server::start_in(folder, &environment).await;
    let answer = server.client.post_signed(WEBHOOK, TWO_EVENTS).await;
    assert_eq!(answer.json["received"], 2);
    // A worker finishes at least one tick before the server ends.
    let folder = server.stop().await;
    let server = Server::start_in(folder, &[]).await;
    assert_eq!(server.client.all("").await.len(), 2);
    assert_eq!(server.running.store().cursor("ocis").await.unwrap(), None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_action_prefix_and_q_narrow() {
    let server = Server::start(&[]).await;
    let event = |action: &str, name: &str| {
        let actor = Actor::user("op-1").with_email("Olga@Example.com").with_ip("203.0.113.9");
        NewEvent {
            tenant_slug: Some("acme".into()),
            resource_name: Some(name.into()),
            ..NewEvent::new(action, actor)
        }
        .seal(&TokioRuntime)
    };
    let events = vec![
        event("tenant.suspended", "Acme GmbH"),
        event("tenant.resumed", "Acme GmbH"),
        event("flag.updated", "new_editor"),
        event("flag.killed", "new_editor"),
        event("tenants.listed", "100% of_them"),
    ];
    server.running.store().append(events, AppendOptions::default()).await.unwrap();
    for (query, expected) in [
        ("&action=tenant", 3),
        ("&action=tenant.", 2),
        ("&action=tenant.suspended", 1),
        ("&action=flag.", 2),
        ("&action=%25", 0),
        ("&action=tenant_", 0),
        ("&action=.*", 0),
        ("&q=gmbh", 2),
        ("&q=OLGA%40", 5),
        ("&q=EDITOR&action=flag.k", 1),
        ("&q=100%25%20of_", 1),
        ("&q=killed", 1),
    ] {
        assert_eq!(server.client.all(query).await.len(), expected, "{query}");
    }
    server.stop().await;
}
