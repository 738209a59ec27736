//! The live flags of a running server: how they follow the store, invalid and stale flags.

use std::os::unix::fs::PermissionsExt as _;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{SqliteAuditStore, SqliteConfig};
use serde_json::{Value, json};

use crate::support::{Client, Embedder, Engine, Server, program, refusal, run, stdout, until};

async fn tenant(client: &Client) {
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro" });
    client.post("/tenants", tenant).await.with_status(201);
}

async fn evaluated(client: &Client) -> Value {
    client.post("/flags/evaluate", json!({ "tenantSlug": "acme" })).await.with_status(200)
}

/// Edits by any process take effect in a running server, on every engine.
async fn follows(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    tenant(&server.client).await;
    assert_eq!(evaluated(&server.client).await, json!({}));
    // Its own edits take effect at once.
    server.client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    assert_eq!(evaluated(&server.client).await, json!({ "k": false }));
    let url = server.url();
    let set = run(&["flags", "set", "k", "--state", "on", "--store", &url], &[]);
    assert!(set.status.success(), "{set:?}");
    until("a command's edit takes effect", async || {
        evaluated(&server.client).await == json!({ "k": true })
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reaches_a_server_on_sqlite() {
    follows(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reaches_a_server_on_postgres() {
    follows(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reaches_a_server_on_mongodb() {
    follows(Engine::Mongodb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_flags_are_listed_and_can_be_killed_and_removed() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    tenant(client).await;
    for key in ["a", "b", "good"] {
        client.post("/flags", json!({ "key": key, "state": "on" })).await.with_status(201);
    }
    let whole = client.get("/flags").await.with_status(200);
    assert!(whole.get("invalid").is_none(), "{whole}");
    let path = server.folder.path().join("audit.db");
    let log = SqliteAuditStore::open(SqliteConfig::new(&path), &TokioRuntime).await.unwrap();
    let mut tx = log.database().begin().await.unwrap();
    let broken =
        "UPDATE dezky_flags SET flag = replace(flag, '\"on\"', '\"perhaps\"') WHERE key <> 'good'";
    sqlx::query(broken).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    log.close().await;

    let embedder = Embedder::open(&server).await;
    let listed = client.get("/flags").await.with_status(200);
    assert_eq!(listed["flags"].as_array().unwrap().len(), 1);
    let invalid: Vec<_> = listed["invalid"].as_array().unwrap().iter().collect();
    assert_eq!(
        (invalid.len(), &invalid[0]["key"], &invalid[1]["key"]),
        (2, &json!("a"), &json!("b"))
    );
    assert!(!listed.to_string().contains("perhaps"));
    let detail = client.get("/flags/a").await;
    let detail = detail.problem(409, "state_conflict");
    assert!(detail.contains("flag a") && detail.contains("kill or remove"), "{detail}");
    client.patch("/flags/a", json!({ "pct": 1 })).await.problem(409, "state_conflict");

    let url = server.url();
    let said = run(&["flags", "list", "--store", &url], &[]);
    assert!(stdout(&said).contains("a: invalid, and off: "), "{said:?}");
    let said = run(&["flags", "list", "--json", "--store", &url], &[]);
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["invalid"], listed["invalid"]);

    let killed = client.act("/flags/a/kill").await.with_status(200);
    assert_eq!((&killed["state"], &killed["version"]), (&json!("off"), &json!(2)));
    assert_eq!(evaluated(client).await, json!({ "a": false, "b": false, "good": true }));
    let removed = run(&["flags", "remove", "b", "--store", &url], &[]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(client.get("/flags").await.with_status(200).get("invalid").is_none());
    embedder.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_counts_and_reports() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    tenant(client).await;
    let expired = json!({ "expiresAt": "2020-01-01T00:00:00Z" });
    client.post("/flags", json!({ "key": "a", "state": "on" })).await.with_status(201);
    client.post("/flags", json!({ "key": "b", "options": expired })).await.with_status(201);
    for _ in 0..3 {
        evaluated(client).await;
    }
    client.post("/flags/evaluate?explain=true", json!({ "tenantSlug": "acme" })).await;
    let plain = client.get("/flags").await.with_status(200);
    assert!(plain.get("usage").is_none() && plain.get("stale").is_none());
    let report = client.get("/flags?report=true").await.with_status(200);
    let counts = |at: usize| {
        let flag = &report["usage"]["flags"][at];
        assert!(flag["lastEvaluated"].is_string(), "{flag}");
        (flag["key"].clone(), flag["on"].clone(), flag["off"].clone())
    };
    assert_eq!(counts(0), (json!("a"), json!(4), json!(0)));
    assert_eq!(counts(1), (json!("b"), json!(0), json!(4)));
    let why = json!([{ "reason": "expired", "since": "2020-01-01T00:00:00.000Z" }]);
    assert_eq!(report["stale"], json!([{ "key": "b", "reasons": why }]));
    client.get("/flags?report=perhaps").await.problem(400, "query_invalid");

    let url = server.url();
    let stale = run(&["flags", "stale", "--store", &url], &[]);
    assert!(stdout(&stale).contains("expired 2020-01-01T00:00:00.000Z"), "{stale:?}");
    assert!(refusal(&stale, 1).contains("1 of 2 flags are stale"));
    let stale = run(&["flags", "stale", "--json", "--days", "1", "--store", &url], &[]);
    let said: Value = serde_json::from_slice(&stale.stdout).unwrap();
    assert_eq!((&said["of"], &said["stale"]), (&json!(2), &report["stale"]));
    assert_eq!(stale.status.code(), Some(1));
    let wrong = run(&["flags", "stale", "--days", "0", "--store", &url], &[]);
    assert_eq!(wrong.status.code(), Some(2));
    client.delete("/flags/b").await;
    let fresh = run(&["flags", "stale", "--store", &url], &[]);
    assert_eq!(
        (fresh.status.code(), stdout(&fresh).as_str()),
        (Some(0), "none of 1 flags is stale\n")
    );
    server.stop().await;
}

/// Breaks only the flags' tables, so that the rest of the store keeps working.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_how_old_its_flags_are() {
    let server = Server::start(&[("DEZKY_FLAGS_POLL_MS", "20")]).await;
    let client = &server.client;
    tenant(client).await;
    client.post("/flags", json!({ "key": "k", "state": "on" })).await.with_status(201);
    let live = async || client.get("/health").await.with_status(200)["flags"].clone();
    let told = live().await;
    assert_eq!((&told["revision"], &told["fromFile"]), (&json!(1), &json!(false)));
    assert!(told.get("failure").is_none() && told["ageMs"].as_u64().unwrap() < 5_000, "{told}");

    let path = server.folder.path().join("audit.db");
    let log = SqliteAuditStore::open(SqliteConfig::new(&path), &TokioRuntime).await.unwrap();
    let alter = async |sql: &'static str| {
        let mut tx = log.database().begin().await.unwrap();
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    alter("ALTER TABLE dezky_flags_state RENAME TO away").await;
    until("the failure is reported, and the age grows", async || {
        let told = live().await;
        told["failure"].is_string() && told["ageMs"].as_u64().unwrap() >= 1_000
    })
    .await;
    let told = client.get("/health").await.with_status(200);
    assert_eq!((&told["status"], &told["flags"]["revision"]), (&json!("ok"), &json!(1)));
    assert_eq!(evaluated(client).await, json!({ "k": true }));
    alter("ALTER TABLE away RENAME TO dezky_flags_state").await;
    until("it is reached again", async || {
        let told = live().await;
        told.get("failure").is_none() && told["ageMs"].as_u64().unwrap() < 1_000
    })
    .await;
    log.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_keeps_its_flags_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    let named = file.display().to_string();
    let more = [("DEZKY_FLAGS_FILE", named.as_str()), ("DEZKY_FLAGS_POLL_MS", "20")];
    let server = Server::start_in(folder, &more).await;
    server.client.post("/flags", json!({ "key": "a", "state": "on" })).await.with_status(201);
    until("the flag is in the file", async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"key\":\"a\""))
    })
    .await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    server.stop().await;
}

#[test]
fn how_flags_follow_is_checked_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display().to_string();
    for (variable, value, words) in [
        ("DEZKY_FLAGS_POLL_MS", "9", ["flags.poll_ms", "10 to 3600000"]),
        ("DEZKY_FLAGS_POLL_MS", "soon", ["DEZKY_FLAGS_POLL_MS", "number"]),
        ("DEZKY_FLAGS_FILE", "/nowhere/at/all/flags.json", ["flags.file", "folder"]),
        ("DEZKY_FLAGS_FILE", &here, ["flags.file", "not a regular file"]),
    ] {
        let checked = program(&["config", "check"])
            .current_dir(folder.path())
            .env(variable, value)
            .output()
            .unwrap();
        let said = refusal(&checked, 2);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}
