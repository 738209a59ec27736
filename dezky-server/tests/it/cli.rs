//! The commands as processes.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore as _, SqliteAuditStore, SqliteConfig};
use dezky_core::{Actor, NewEvent};
use dezky_ingest::signature::Secret;
use sqlx::{Connection as _, SqliteConnection};

use crate::support::{Process, SECRET, WEBHOOK, program, refusal, run, stdout, until};

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// Records `count` events into the log at `path`, and returns its head.
async fn record(path: &Path, count: usize) -> String {
    let store = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await.unwrap();
    let event = || NewEvent::new("tenant.created", Actor::system()).seal(&TokioRuntime);
    let events = (0..count).map(|_| event()).collect();
    store.append(events, AppendOptions::default()).await.unwrap();
    let head = store.state().await.unwrap().head;
    store.close().await;
    format!("{}:{}", head.next_seq - 1, hex::encode(head.hash))
}

/// Changes a database behind the log's back.
async fn tamper(path: &Path, statement: &'static str) {
    let mut database = SqliteConnection::connect(&format!("{}?mode=rwc", url(path))).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

fn verify(path: &Path, more: &[&str]) -> std::process::Output {
    let store = url(path);
    run(&[&["verify", "--store", &store], more].concat(), &[])
}

#[test]
fn the_help_teaches() {
    for (arguments, words) in [
        (&["--help"][..], &["demo", "serve", "verify", "config", "Examples:", "Exit status"][..]),
        (&["serve", "--help"], &["--config", "--store", "SIGTERM"]),
        (&["demo", "--help"], &["--once", "--port", "--data", "dezky-demo"]),
        (&["verify", "--help"], &["--expect-head", "SEQ:HASH", "--json"]),
        (&["config", "--help"], &["example", "check"]),
    ] {
        let output = run(arguments, &[]);
        assert!(output.status.success());
        for word in words {
            assert!(stdout(&output).contains(word), "{arguments:?} {word}");
        }
    }
    for wrong in [&["nonsense"][..], &["verify", "--expect-head", "12"], &["demo", "--json"]] {
        assert_eq!(run(wrong, &[]).status.code(), Some(2), "{wrong:?}");
    }
    let output = run(&["demo", "--store", "sqlite://x.db"], &[]);
    assert!(refusal(&output, 2).contains("--data"));
}

#[test]
fn the_second_demo_adds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let demo = || {
        let output = program(&["demo", "--once"]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        stdout(&output)
    };
    let log = folder.path().join("dezky-demo/ocis/audit.log");
    let (first, written) = (demo(), std::fs::metadata(&log).unwrap().modified().unwrap());
    assert!(first.contains("timeline: 129 events, 129 new"), "{first}");
    assert!(first.contains("verified: head 128:"), "{first}");
    for source in ["authentik", "ocis", "platform-api", "stalwart"] {
        let is_its = |line: &&str| line.starts_with("  2026-") && line.contains(source);
        assert!(first.lines().any(|line| is_its(&line)), "{source}: {first}");
    }
    for tenant in ["acme", "globex", "initech"] {
        assert!(first.contains(&format!(" {tenant} ")), "{tenant}: {first}");
    }
    let second = demo();
    assert!(second.contains("timeline: 129 events, 0 new"), "{second}");
    assert_eq!(std::fs::metadata(&log).unwrap().modified().unwrap(), written);
    let verified = verify(&folder.path().join("dezky-demo/dezky.db"), &[]);
    assert!(stdout(&verified).starts_with("ok: 129 events, head 128:"), "{verified:?}");
    let report = demo_json(&folder.path().join("dezky-demo"));
    assert_eq!((&report["events"], &report["new"]), (&129.into(), &0.into()));
}

fn demo_json(folder: &Path) -> serde_json::Value {
    let json = run(&["demo", "--once", "--json", "--data", folder.to_str().unwrap()], &[]);
    serde_json::from_slice(&json.stdout).unwrap()
}

/// The values depend only on the tenant's id and the flag, so the test can list them.
#[test]
fn the_demos_flags_are_the_same_in_every_run_and_on_every_machine() {
    let expected = serde_json::json!({
        "calendar_room_booking": {"value": false, "reason": "off"},
        "chat_guest_access": {"value": false, "reason": "scope_mismatch(tenantSlug)", "axis": "tenantSlug", "given": "acme"},
        "files_office_coediting": {"value": true, "reason": "in_rollout(22)", "bucket": 22, "threshold": 75},
        "gdpr_export_v2": {"value": true, "reason": "targeted"},
        "jmap_native_v2": {"value": true, "reason": "on"},
        "mail_undo_send": {"value": false, "reason": "off"},
        "meetings_recording": {"value": false, "reason": "off"},
        "new_billing_engine": {"value": false, "reason": "out_of_rollout(40)", "bucket": 40, "threshold": 25},
        "oci_versioning": {"value": false, "reason": "off"},
        "partner_portal": {"value": false, "reason": "off"},
    });
    let folder = tempfile::tempdir().unwrap();
    for run in ["a", "a", "b"] {
        let report = demo_json(&folder.path().join(run));
        assert_eq!(report["flags"]["tenant"], "acme");
        assert_eq!(report["flags"]["decisions"], expected, "{run}");
    }
}

#[test]
fn flags_and_users_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("demo");
    demo_json(&data);
    let store = url(&data.join("dezky.db"));
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = run(&[arguments, &["--json", "--store", &store]].concat(), &[]);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let no = |arguments: &[&str], status: i32, word: &str| {
        let said = refusal(&run(&[arguments, &["--store", &store]].concat(), &[]), status);
        assert!(said.contains(word), "{arguments:?}: {said}");
    };

    let set = ["flags", "set", "chat_v2", "--create", "--state", "rollout", "--pct", "25"];
    let made = json(&[&set[..], &["--plan", "pro", "--tenant", "acme", "--note", "why"]].concat());
    assert_eq!(made["scope"]["plans"], serde_json::json!(["pro"]));
    assert_eq!((&made["version"], &made["pct"]), (&1.into(), &25.into()));
    no(&set, 1, "already exists");
    let raised = json(&["flags", "set", "chat_v2", "--pct", "100", "--if-version", "1"]);
    assert_eq!(
        (&raised["version"], &raised["scope"]["tenantSlugs"][0]),
        (&2.into(), &"acme".into())
    );
    no(&["flags", "set", "chat_v2", "--pct", "1", "--if-version", "1"], 1, "version 2, not 1");
    no(&["flags", "remove", "chat_v2", "--if-version", "9"], 1, "version 2, not 9");
    no(&["flags", "set", "nosuch", "--pct", "5"], 1, "create it with --create");
    assert!(run(&["flags", "set", "chat_v2", "--pct", "101"], &[]).status.code() == Some(2));
    no(&["flags", "set", "No Key", "--create"], 2, "key must be");

    let acme = ["flags", "eval", "--tenant", "acme"];
    assert_eq!(json(&acme)["chat_v2"]["value"], true);
    assert_eq!(json(&["flags", "eval", "chat_v2", "--tenant", "acme"])["chat_v2"]["value"], true);
    no(&["flags", "eval", "chat_v2", "--tenant", "globex"], 1, "scope_mismatch");
    no(&["flags", "eval", "--tenant", "nobody"], 1, "no such tenant");
    let killed = json(&["flags", "kill", "chat_v2", "--note", "errors"]);
    assert_eq!((&killed["state"], &killed["pct"]), (&"off".into(), &0.into()));
    let history = json(&["flags", "history", "chat_v2"]);
    assert_eq!(history["history"].as_array().unwrap().len(), 3);
    assert_eq!(history["history"][0]["note"], "errors");
    json(&["flags", "remove", "chat_v2"]);
    no(&["flags", "get", "chat_v2"], 1, "no such flag");
    assert_eq!(json(&["flags", "seed"])["new"], 0);
    assert_eq!(json(&["flags", "list"])["flags"].as_array().unwrap().len(), 10);

    let add = ["users", "add", "--issuer", "https://id.example/", "--subject", "s-1"];
    let user = json(&[&add[..], &["--tenant", "acme", "--identity", "ocis:o-1"]].concat());
    assert_eq!(user["identities"][0]["system"], "ocis");
    no(&add, 1, "already exists");
    no(
        &["users", "add", "--issuer", "i", "--subject", "s", "--tenant", "nobody"],
        1,
        "no such tenant",
    );
    let id = user["id"].as_str().unwrap();
    assert_eq!(json(&["users", "grant-admin", id])["platformAdmin"], true);
    let by_subject =
        ["users", "revoke-admin", "--issuer", "https://id.example/", "--subject", "s-1"];
    assert_eq!(json(&by_subject)["platformAdmin"], false);
    no(&["users", "grant-admin", "nobody"], 1, "no such user");
    assert_eq!(json(&["users", "list"])["users"].as_array().unwrap().len(), 3);

    // The changes are on the timeline, and a mistyped path creates no database.
    assert!(verify(&data.join("dezky.db"), &[]).status.success());
    let missing = url(&folder.path().join("missing.db"));
    let said = refusal(&run(&["flags", "list", "--store", &missing], &[]), 2);
    assert!(said.contains("no such file"), "{said}");
    assert!(!folder.path().join("missing.db").exists());
}

#[tokio::test]
async fn verify_says_what_hides_events_from_lists() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.db");
    record(&path, 10).await;
    let hide =
        "CREATE TABLE made AS SELECT sql FROM sqlite_master WHERE name = 'dezky_audit_events_at';
        DROP INDEX dezky_audit_events_at;
        CREATE INDEX dezky_audit_events_at ON dezky_audit_events (at, id) WHERE seq <> 3;
        PRAGMA writable_schema = ON;
        UPDATE sqlite_master SET sql = (SELECT sql FROM made) WHERE name = 'dezky_audit_events_at';
        PRAGMA writable_schema = RESET";
    tamper(&path, hide).await;
    let hidden = verify(&path, &[]);
    assert!(stdout(&hidden).contains("dezky_audit_events_at: leads to 9 of 10 rows"), "{hidden:?}");
    assert!(refusal(&hidden, 1).contains("lists may not show all of them"), "{hidden:?}");
    let json = verify(&path, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["ok"], &report["finding"]), (&false.into(), &serde_json::Value::Null));
    let objects = report["anomalies"].as_array().unwrap();
    assert!(objects.iter().any(|a| a["object"] == "dezky_audit_events_at"), "{report}");
}

#[tokio::test]
async fn verify_says_whether_the_log_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.db");
    let head = record(&path, 10).await;
    let whole = verify(&path, &[]);
    assert_eq!(stdout(&whole), format!("ok: 10 events, head {head}\n"), "{whole:?}");
    assert!(whole.status.success());
    assert!(verify(&path, &["--expect-head", &head]).status.success());

    let old = folder.path().join("old.db");
    std::fs::copy(&path, &old).unwrap();
    let later = record(&path, 5).await;
    assert!(verify(&path, &["--expect-head", &head]).status.success());
    let cut = verify(&old, &["--expect-head", &later]);
    assert!(stdout(&cut).starts_with("seq 10: cut: "), "{cut:?}");
    refusal(&cut, 1);

    tamper(&path, "UPDATE dezky_audit_events SET action = 'tenant.deleted' WHERE seq = 3").await;
    let altered = verify(&path, &[]);
    assert!(stdout(&altered).starts_with("seq 3: altered: "), "{altered:?}");
    refusal(&altered, 1);
    let json = verify(&path, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["verified"], 3);
    assert_eq!(report["head"]["seq"], 2);
    assert_eq!(report["finding"]["seq"], 3);
    assert_eq!(report["finding"]["kind"], "altered");
    assert_eq!(report["anomalies"], serde_json::json!([]));
    let json = verify(&old, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(
        format!("{}:{}", report["head"]["seq"], report["head"]["hash"].as_str().unwrap()),
        head
    );
    assert!(report["finding"].is_null());
}

/// Exit status 1 is reserved for a log that fails verification.
#[test]
fn a_log_that_can_not_be_read_is_not_one_that_differs() {
    for store in ["postgres://u@127.0.0.1:1/db", "mongodb://127.0.0.1:1/db", "sqlite://nodir/x.db"]
    {
        let environment = [("DEZKY_STORE_ACQUIRE_TIMEOUT_SECONDS", "1")];
        refusal(&run(&["verify", "--store", store], &environment), 2);
    }
}

#[test]
fn an_address_that_can_not_be_listened_to_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["serve"])
        .current_dir(folder.path())
        .env("DEZKY_LISTEN", "192.0.2.1:8000")
        .env("DEZKY_OPERATOR_TOKEN", "0123456789abcdef0123456789abcdef")
        .env("DEZKY_LOG", "error")
        .output()
        .unwrap();
    let said = refusal(&output, 2);
    assert!(said.contains("does not have this address: name one that it has"), "{said}");
    assert!(!said.contains("end the program"), "{said}");
}

#[tokio::test]
async fn databases_that_are_no_log_of_ours_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    let foreign = in_folder("foreign.db");
    tamper(&foreign, "CREATE TABLE invoices (number INTEGER)").await;
    let newer = in_folder("newer.db");
    record(&newer, 1).await;
    tamper(&newer, "UPDATE dezky_schema SET version = 99").await;
    let garbage = in_folder("garbage.db");
    std::fs::write(&garbage, (0..20_000_u32).map(|n| (n * 7 % 251) as u8).collect::<Vec<_>>())
        .unwrap();
    let empty = in_folder("empty.db");
    std::fs::write(&empty, "").unwrap();

    for (path, word) in [
        (&foreign, "no audit log"),
        (&newer, "newer"),
        (&garbage, "not an SQLite database"),
        (&empty, "no audit log"),
        (&in_folder("missing.db"), "no such file"),
        (&in_folder("missing/audit.db"), "folder"),
        (&folder.path().to_owned(), "folder"),
    ] {
        let before = std::fs::read(path).ok();
        let said = refusal(&verify(path, &[]), 2);
        assert!(said.contains(word), "{said}");
        let is_wrong_for_serve = before.as_ref().is_some_and(|bytes| !bytes.is_empty());
        if is_wrong_for_serve {
            let output = run(
                &["serve", "--store", &url(path)],
                &[("DEZKY_LISTEN", "127.0.0.1:0"), ("DEZKY_LOG", "error")],
            );
            assert!(refusal(&output, 2).contains(word));
        }
        assert_eq!(std::fs::read(path).ok(), before, "{} was changed", path.display());
    }
}

#[test]
fn a_port_in_use_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = program(&["serve"])
        .current_dir(folder.path())
        .env("DEZKY_LISTEN", address.to_string())
        .env("DEZKY_LOG", "error")
        .output()
        .unwrap();
    let said = refusal(&output, 2);
    assert!(said.contains(&address.to_string()) && said.contains("DEZKY_LISTEN"), "{said}");
    let port = address.port().to_string();
    let output = program(&["demo", "--port", &port]).current_dir(folder.path()).output().unwrap();
    assert!(refusal(&output, 2).contains("--port 0"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was created");
}

#[test]
fn two_demos_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(folder.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let output = run(&["demo", "--once", "--data", folder.path().to_str().unwrap()], &[]);
    assert!(refusal(&output, 2).contains("another demo"));
}

#[test]
fn a_demo_folder_that_no_url_can_name_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["demo", "--once", "--data", "what?"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(refusal(&output, 2).contains("--data what?"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn without_a_token_only_this_machine_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["serve"])
        .current_dir(folder.path())
        .env("DEZKY_LISTEN", "0.0.0.0:0")
        .output()
        .unwrap();
    assert!(refusal(&output, 2).contains("DEZKY_OPERATOR_TOKEN"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was created");
}

#[test]
fn an_empty_secret_stops_the_start() {
    for variable in ["STALWART_WEBHOOK_SECRET", "DEZKY_OPERATOR_TOKEN"] {
        let output = run(&["serve"], &[(variable, "")]);
        assert!(refusal(&output, 2).contains(variable));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_requests_finish() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &[]);
    let body = r#"{"events":[{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{}}]}"#;
    let (first, second) = body.split_at(20);
    let mut stream = TcpStream::connect(&process.address).unwrap();
    write!(
        stream,
        "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nX-Signature: {}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        Secret::new(SECRET).unwrap().sign_base64(body.as_bytes()),
        body.len()
    )
    .unwrap();
    // The server asks for the body, so the request has begun.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100"));
    stream.write_all(first.as_bytes()).unwrap();

    process.terminate();
    // At once: the server gives up on a body that is still incomplete 2 s later.
    stream.write_all(second.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"received\":1"), "{answer}");
    let address = process.address.clone();
    until("no new connections", async || TcpStream::connect(&address).is_err()).await;
    until("the end", async || process.ended().is_some()).await;
    assert!(process.ended().unwrap().success(), "{}", process.stderr());
    assert!(stdout(&verify(&folder.path().join("dezky.db"), &[])).starts_with("ok: 1 events"));
}

/// A shutdown timeout long enough to tell a shutdown that waits from one that does not.
const PATIENT: (&str, &str) = ("DEZKY_SHUTDOWN_TIMEOUT_SECONDS", "300");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_comes_does_not_hold_the_end_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &[PATIENT]);
    let mut stream = TcpStream::connect(&process.address).unwrap();
    write!(stream, "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 25]).unwrap();
    let began = Instant::now();
    process.terminate();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after"), "{answer}");
    until("the end", async || process.ended().is_some()).await;
    assert!(process.ended().unwrap().success(), "{}", process.stderr());
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
}

/// Covers a connection that has sent nothing and one that has sent half a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_never_began_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &[PATIENT]);
    let silent = TcpStream::connect(&process.address).unwrap();
    let mut half = TcpStream::connect(&process.address).unwrap();
    write!(half, "GET /health HTTP/1.1\r\nHost: local").unwrap();
    assert_eq!(process.client.get("/health").await.status, 200);
    let began = Instant::now();
    process.terminate();
    until("the end", async || process.ended().is_some()).await;
    assert!(process.ended().unwrap().success(), "{}", process.stderr());
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    drop((silent, half));
}

/// Shutdown does not wait for a hanging Authentik: the next server would have to wait for the lease
/// as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authentik_that_never_answers_does_not_hold_the_end_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let set = [
        ("DEZKY_AUTHENTIK_URL", url.as_str()),
        ("DEZKY_AUTHENTIK_TOKEN", "t0ken"),
        // As long as a request may take, and longer than this test.
        ("DEZKY_SHUTDOWN_TIMEOUT_SECONDS", "60"),
    ];
    for _ in 0..2 {
        let process = Process::start(folder.path(), &set);
        let (mut asked, _) = silent.accept().unwrap();
        asked.read_exact(&mut [0; 4]).unwrap();
        let began = Instant::now();
        process.stop().await;
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

/// The remedy differs for a refused connection, an unresolved name and an untrusted certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_why_authentik_can_not_be_reached() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    let folder = tempfile::tempdir().unwrap();
    let set = [("DEZKY_AUTHENTIK_URL", url.as_str()), ("DEZKY_AUTHENTIK_TOKEN", "t0ken")];
    let process = Process::start(folder.path(), &set);
    until("a failed poll", async || process.stderr().contains("ingest failed")).await;
    let said = process.stderr();
    assert!(said.contains("Connection refused") && !said.contains("t0ken"), "{said}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_hold_neither_addresses_nor_queries() {
    let folder = tempfile::tempdir().unwrap();
    let token = "operator-token-0123456789";
    let process = Process::start(folder.path(), &[("DEZKY_OPERATOR_TOKEN", token)]);
    let body = r#"{"events":[{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.failed","data":{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}}]}"#;
    process.client.post_signed(WEBHOOK, body).await;
    let request =
        process.client.request(reqwest::Method::GET, "/audit?q=needle").bearer_auth(token);
    assert_eq!(process.client.send(request).await.events().len(), 0);
    process.client.get("/some/needle").await;
    until("the last line", async || process.stderr().contains("status=404")).await;
    let said = process.stderr();
    assert!(said.contains("/audit") && said.contains("status=200"), "{said}");
    for word in ["alice", "203.0.113.7", "needle", token, SECRET] {
        assert!(!said.contains(word), "{word}: {said}");
    }
    process.stop().await;
}
