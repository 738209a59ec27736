//! `quarantine`: what sources sent that could not become events.

use std::fs;
use std::process::Output;
use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::source::PulledEvent;
use dezky_core::store::{AppendOptions, SqliteAuditStore, SqliteConfig};
use dezky_core::{Actor, AuditStore as _, NewEvent, Runtime as _};
use dezky_ingest::Intake;
use dezky_ingest::testkit::{AuthentikDouble, authentik_event};
use serde_json::{Value, json};
use sqlx::SqliteConnection;
use tempfile::TempDir;

use crate::load::{open, store};
use crate::support::{Process, WEBHOOK, refusal, run, stdout, until};

/// A line of an unknown type.
const LINE: &str = r#"{"RemoteAddr":"","User":"","URL":"","Method":"","UserAgent":"","Time":"2026-09-01T08:00:00Z","App":"admin_audit","Message":"user 'a4c517a3-d987-4563-a6dd-3776109686c8' created file 'x'","Action":"file_teleported","CLI":false,"Level":1,"Path":"./x.txt","Owner":"","FileID":"a$b!c/x.txt"}"#;

async fn count(database: &mut SqliteConnection) -> i64 {
    let query = sqlx::query_scalar("SELECT count(*) FROM dezky_quarantine");
    query.fetch_one(database).await.unwrap()
}

/// A folder with a log in whose quarantine every source has put an item, over the same path as its
/// events.
async fn folder_with_items() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    let too_large = LINE.replace("./x.txt", &format!("./{}", "x".repeat(70_000)));
    fs::write(&log, format!("{LINE}\n{too_large}\n")).unwrap();
    let mut odd = authentik_event(1, &TokioRuntime.now().to_string());
    odd["action"] = Value::Null;
    let authentik = AuthentikDouble::builder().events([odd]).start().await.unwrap();
    let (url, token) = (authentik.url().to_owned(), authentik.token());
    let process = Process::start(
        folder.path(),
        &[
            ("OCIS_AUDIT_LOG_PATH", log.to_str().unwrap()),
            ("DEZKY_AUTHENTIK_URL", &url),
            ("DEZKY_AUTHENTIK_TOKEN", &token),
            ("DEZKY_LOG", "error"),
        ],
    );
    let mut database = open(folder.path()).await;
    let body = json!({ "events": [{
        "id": "178696080012035", "createdAt": "2026-08-17T10:00:00Z", "kind": "auth.failed",
        "data": { "accountName": "alice@example.com", "remoteIp": "203.0.113.7" },
    }] });
    let answer = process.client.post_signed(WEBHOOK, &body.to_string()).await;
    assert_eq!(answer.json["received"], 1);
    until("the items of the sources", async || count(&mut database).await == 4).await;
    process.stop().await;
    authentik.stop().await;

    // An outbox row written by a newer version, and a mapped event that the log rejects.
    let config = SqliteConfig::new(folder.path().join("dezky.db"));
    let engine = Arc::new(SqliteAuditStore::open(config, &TokioRuntime).await.unwrap());
    let runtime = Arc::new(TokioRuntime);
    let mut refused = NewEvent::new("Import Finished", Actor::system());
    refused.external_id = Some("import-1".into());
    refused.metadata.set_source(r#"{"rows":9007199254740993,"rate":1.5}"#);
    let intake = Intake::new(engine.clone(), runtime.clone());
    intake
        .ingest(vec![PulledEvent::from(refused)], Vec::new(), AppendOptions::default())
        .await
        .unwrap();
    let staged = NewEvent::new("tenant.moved", Actor::system()).seal(&*runtime).to_json();
    sqlx::query("INSERT INTO dezky_outbox (event) VALUES (?)")
        .bind(staged.replacen("\"v\":1", "\"v\":2", 1))
        .execute(&mut database)
        .await
        .unwrap();
    assert_eq!(engine.relay(10).await.unwrap().quarantined, 1);
    engine.close().await;
    folder
}

/// Runs the command on the log in `folder`.
fn quarantine(folder: &TempDir, arguments: &[&str]) -> Output {
    let url = store(folder.path());
    let arguments = [&["quarantine", "--store", &url], arguments].concat();
    run(&arguments, &[("USER", "ops")])
}

/// The command's output with `--json`.
fn json(folder: &TempDir, arguments: &[&str]) -> Value {
    let output = quarantine(folder, &[arguments, &["--json"]].concat());
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{output:?}"))
}

/// The number of the first item with this reason.
fn numbered(folder: &TempDir, reason: &str) -> i64 {
    let items = json(folder, &["list", "--reason", reason]);
    items["items"][0]["number"].as_i64().unwrap_or_else(|| panic!("{reason}: {items}"))
}

/// The result for each item.
fn results(folder: &TempDir, arguments: &[&str]) -> Vec<(i64, String)> {
    let answer = json(folder, arguments);
    let results = answer["results"].as_array().unwrap();
    let text = |result: &Value| result["status"].as_str().unwrap().to_owned();
    results.iter().map(|result| (result["number"].as_i64().unwrap(), text(result))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_every_family_are_read_again_by_a_version_that_knows_them() {
    let folder = folder_with_items().await;
    let before = json(&folder, &["list"]);
    assert_eq!(before["total"], 6);
    let table = stdout(&quarantine(&folder, &["list"]));
    assert!(table.contains("unknown_type") && table.ends_with("6 in all\n"), "{table}");
    let some = stdout(&quarantine(&folder, &["list", "--source", "ocis", "--limit", "1"]));
    assert!(some.ends_with("2 in all, 1 more than shown: see --limit\n"), "{some}");

    // Nothing has changed: all items stay, each with the reason.
    let again = quarantine(&folder, &["retry", "--all"]);
    let said = stdout(&again);
    refusal(&again, 1);
    for why in [
        "stays: still unknown_type",
        "stays: only its first 64 KiB were kept",
        "stays: still no_type",
        "stays: still no_action",
        "stays: action",
        "stays: no event at column",
    ] {
        assert!(said.contains(why), "{why} in {said}");
    }
    assert_eq!(json(&folder, &["list"]), before);

    // Rewrites the items as if an older version had quarantined what this one understands.
    let mut database = open(folder.path()).await;
    for (from, to) in [
        ("file_teleported", "file_create"),
        ("\"kind\":", "\"type\":"),
        ("\"action\":null", "\"action\":\"login\""),
        ("Import Finished", "import.finished"),
        ("\"v\":2", "\"v\":1"),
    ] {
        let query =
            "UPDATE dezky_quarantine SET raw = CAST(replace(CAST(raw AS TEXT), ?, ?) AS BLOB)";
        sqlx::query(query).bind(from).bind(to).execute(&mut database).await.unwrap();
    }
    let cut = before["items"].as_array().unwrap().iter().find(|item| item["rawBytes"] == 65_536);
    let cut = cut.expect("one that was cut")["number"].as_i64().unwrap();
    let line = before["items"].as_array().unwrap().iter();
    let line = line.filter(|item| item["source"] == "ocis" && item["number"] != cut);
    let key = line.map(|item| item["key"].as_str().unwrap().to_owned()).next().unwrap();

    // Adds a tenant.
    let process = Process::start(folder.path(), &[("DEZKY_LOG", "error")]);
    let tenant = json!({
        "slug": "acme", "name": "Acme", "plan": "pro", "status": "active",
        "domains": ["example.com"],
    });
    process.client.post("/tenants", tenant).await.with_status(201);

    let mut expected: Vec<_> = before["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["number"].as_i64().unwrap())
        .map(|number| (number, if number == cut { "stays" } else { "stored" }.to_owned()))
        .collect();
    expected.sort_unstable();
    assert_eq!(results(&folder, &["retry", "--all"]), expected);
    assert_eq!(json(&folder, &["list"])["total"], 1);

    let released: Vec<_> = process.client.all("").await;
    let released = released.iter().filter(|e| e["metadata"]["_dezky"]["fromQuarantine"] == true);
    let of = |action: &str| {
        let mut found = released.clone().filter(|event| event["action"] == action);
        let event = found.next().unwrap_or_else(|| panic!("{action}")).clone();
        assert_eq!(found.next(), None);
        event
    };
    let uploaded = of("ocis.file_uploaded");
    assert_eq!(uploaded["externalId"], key.strip_prefix("line:").unwrap());
    assert_eq!(uploaded["at"], "2026-09-01T08:00:00.000Z");
    let failed = of("stalwart.auth_failed");
    assert!(failed["externalId"].as_str().unwrap().starts_with("sw1:"));
    assert_eq!(
        (&failed["tenantSlug"], &failed["actorIp"]),
        (&json!("acme"), &json!("203.0.113.7"))
    );
    let login = of("authentik.login");
    assert_eq!(login["externalId"], authentik_event(1, "")["pk"]);
    assert_eq!(login["metadata"]["_dezky"]["tenantBy"], "unresolved");
    let imported = of("import.finished");
    assert_eq!(imported["externalId"], "import-1");
    assert_eq!(imported["metadata"]["rows"], json!(9_007_199_254_740_993_u64));
    of("tenant.moved");
    process.stop().await;
    assert!(run(&["verify", "--store", &store(folder.path())], &[]).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_log_by_now_is_stored_once() {
    let folder = folder_with_items().await;
    let number = numbered(&folder, "no_action").to_string();
    let mut database = open(folder.path()).await;
    let copy = "INSERT INTO dezky_quarantine (source, key, reason, detail, raw, at, seen) SELECT source, key || ?, reason, detail, CAST(replace(CAST(raw AS TEXT), '\"action\":null', '\"action\":\"login\"') AS BLOB), at, seen FROM dezky_quarantine WHERE number = ?";
    for again in ["1", "2"] {
        let query = sqlx::query(copy).bind(again).bind(&number);
        query.execute(&mut database).await.unwrap();
    }
    let became = results(&folder, &["retry", "7", "8", "7"]);
    assert_eq!(became, [(7, "stored".into()), (8, "duplicate".into())]);
    let process = Process::start(folder.path(), &[("DEZKY_LOG", "error")]);
    assert_eq!(process.client.all("&source=authentik").await.len(), 1);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_wants_a_note_and_leaves_an_event() {
    let folder = folder_with_items().await;
    let (first, second) = (numbered(&folder, "no_type"), numbered(&folder, "no_action"));
    let (first, second) = (first.to_string(), second.to_string());
    assert_eq!(quarantine(&folder, &["drop", &first]).status.code(), Some(2));
    let why = refusal(&quarantine(&folder, &["drop", &first, "--note", " "]), 2);
    assert!(why.contains("note: must have 1 to 1000 bytes"), "{why}");
    // A mistyped number drops nothing.
    let why = refusal(&quarantine(&folder, &["drop", &first, "99", "--note", "seen"]), 1);
    assert!(why.contains("99: there is no such item"), "{why}");
    assert_eq!(json(&folder, &["list"])["total"], 6);

    let dropped = quarantine(&folder, &["drop", &first, &second, &first, "--note", "a test's"]);
    assert!(dropped.status.success(), "{dropped:?}");
    assert_eq!(stdout(&dropped).matches("dropped").count(), 2);
    assert_eq!(json(&folder, &["list"])["total"], 4);
    refusal(&quarantine(&folder, &["show", &first]), 1);
    refusal(&quarantine(&folder, &["drop", &first, "--note", "again"]), 1);

    let process = Process::start(folder.path(), &[("DEZKY_LOG", "error")]);
    let events = process.client.all("&action=ingest.quarantine_dropped").await;
    process.stop().await;
    assert_eq!(events.len(), 2);
    let event = events.iter().find(|event| event["resourceId"] == "stalwart").unwrap();
    assert_eq!((&event["actorType"], &event["actorId"]), (&json!("operator"), &json!("cli:ops")));
    let own = &event["metadata"]["_dezky"];
    assert_eq!((&own["note"], &own["reason"]), (&json!("a test's"), &json!("no_type")));
    assert_eq!(own["number"].to_string(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_shown_with_all_that_was_kept_but_salts() {
    let folder = folder_with_items().await;
    let line = numbered(&folder, "unknown_type").to_string();
    let raw = quarantine(&folder, &["show", &line, "--raw"]);
    assert_eq!(raw.stdout, LINE.as_bytes());
    let shown = stdout(&quarantine(&folder, &["show", &line]));
    assert!(shown.contains("reason  unknown_type") && shown.contains(LINE), "{shown}");
    assert_eq!(json(&folder, &["show", &line])["raw"], LINE);

    let staged = numbered(&folder, "unreadable").to_string();
    for arguments in [&["show", &staged][..], &["show", &staged, "--raw"]] {
        let shown = stdout(&quarantine(&folder, arguments));
        assert!(shown.contains(r#""salt":"…""#) && shown.contains("tenant.moved"), "{shown}");
    }
    let mut database = open(folder.path()).await;
    let query = sqlx::query("UPDATE dezky_quarantine SET raw = x'ff001b' WHERE number = ?");
    query.bind(&line).execute(&mut database).await.unwrap();
    let shown = stdout(&quarantine(&folder, &["show", &line]));
    assert!(shown.contains("3 bytes, in hex\n\nff001b\n"), "{shown}");
    assert_eq!(json(&folder, &["show", &line])["rawHex"], "ff001b");
}

#[test]
fn wrong_use_and_nothing_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let why = refusal(&quarantine(&folder, &["list"]), 2);
    assert!(why.contains("there is no such file"), "{why}");
    let process = Process::start(folder.path(), &[("DEZKY_LOG", "error")]);
    drop(process);
    for (arguments, status, said) in [
        (&["list"][..], 0, "nothing is in the quarantine\n"),
        (&["list", "--json"], 0, "{\"items\":[],\"total\":0}\n"),
        (&["retry", "--all"], 0, "nothing is in the quarantine\n"),
        (&["retry", "7"], 1, "7: there is no such item\n"),
        (&["show", "7"], 1, ""),
        (&["retry"], 2, ""),
        (&["retry", "7", "--all"], 2, ""),
        (&["retry", "7", "--source", "ocis"], 2, ""),
        (&["retry", "--source", "ocis"], 2, ""),
        (&["list", "--limit", "0"], 2, ""),
        (&["show", "0"], 2, ""),
        (&["drop", "--note", "x"], 2, ""),
    ] {
        let output = quarantine(&folder, arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?} {output:?}");
        assert_eq!(stdout(&output), said, "{arguments:?}");
    }
}
