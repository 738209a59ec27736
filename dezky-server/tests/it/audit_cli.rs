//! `audit` on the command line.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::Stdio;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore as _, SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::named_event;
use dezky_core::{NewEvent, Outcome};
use serde_json::Value;

use crate::support::{program, refusal, run, stdout};

async fn record(path: &Path, names: &[&str], outcome: Outcome) {
    let store = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await.unwrap();
    let event = |name: &&str| NewEvent { outcome, ..named_event(name) }.seal(&TokioRuntime);
    store.append(names.iter().map(event).collect(), AppendOptions::default()).await.unwrap();
    store.close().await;
}

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// A platform's store with four events, of which the last one is denied.
async fn store(folder: &Path) -> String {
    let path = folder.join("audit.db");
    record(&path, &["a", "b", "c"], Outcome::Success).await;
    record(&path, &["d\u{1b}[2J"], Outcome::Denied).await;
    assert!(run(&["migrate", "--store", &url(&path)], &[]).status.success());
    url(&path)
}

fn audit(store: &str, arguments: &[&str]) -> std::process::Output {
    run(&[&["audit", "--store", store], arguments].concat(), &[("USER", "ana")])
}

fn jsons(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_listed_shown_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let text = stdout(&audit(&store, &["list", "--limit", "3"]));
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.contains("denied") && text.contains("--cursor"), "{text}");
    assert!(!text.contains('\u{1b}'), "neither colours nor what events hold: {text}");
    let cursor = text.split_whitespace().last().unwrap();
    let rest = stdout(&audit(&store, &["list", "--json", "--cursor", cursor]));
    let page: Value = serde_json::from_str(&rest).unwrap();
    assert_eq!(page["events"].as_array().unwrap().len(), 1);
    assert_eq!(page["events"][0]["resourceId"], "a");
    let none = stdout(&audit(&store, &["list", "--tenant", "nobody"]));
    assert_eq!(none, "no events match\n");

    let shown = stdout(&audit(&store, &["show", "1"]));
    assert!(shown.contains("resourceId    b\n"), "{shown}");
    let json: Value =
        serde_json::from_str(&stdout(&audit(&store, &["show", "1", "--json"]))).unwrap();
    let by_id = stdout(&audit(&store, &["show", json["id"].as_str().unwrap(), "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&by_id).unwrap(), json);
    refusal(&audit(&store, &["show", "4"]), 1);

    let stats = stdout(&audit(&store, &["stats", "--by", "outcome", "--interval", "day"]));
    assert!(stats.contains("denied") && stats.contains("success"), "{stats}");
    let stats =
        stdout(&audit(&store, &["stats", "--since", "2h", "--json", "--outcome", "denied"]));
    assert_eq!(serde_json::from_str::<Value>(&stats).unwrap()["total"], 1);
    assert!(refusal(&audit(&store, &["stats", "--by", "tenant"]), 2).contains("--by"));
    assert!(refusal(&audit(&store, &["stats", "--since", "90d"]), 2).contains("1000"));
    for wrong in [&["list", "--since", "soon"][..], &["show", "x"], &["list", "--limit", "501"]] {
        assert_eq!(audit(&store, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_recorded_and_says_that_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let output = audit(&store, &["export", "--tenant", "acme"]);
    let lines = jsons(&stdout(&output));
    assert_eq!(lines.len(), 5, "{output:?}");
    assert_eq!(lines[4]["export"]["events"], 4);
    let events = stdout(&audit(&store, &["list", "--json", "--action", "audit.export"]));
    let events = serde_json::from_str::<Value>(&events).unwrap()["events"].clone();
    assert_eq!(events[0]["action"], "audit.export_ended");
    assert_eq!(events[0]["metadata"]["whole"], true);
    assert_eq!(events[1]["id"], lines[4]["export"]["id"]);
    assert_eq!(events[1]["actorId"], "cli:ana");

    let file = folder.path().join("audit.csv");
    let name = file.to_str().unwrap();
    let output = audit(&store, &["export", "--format", "csv", "--output", name]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.split_terminator("\r\n").count(), 8);
    assert!(text.lines().last().unwrap().starts_with("#whole,6,"), "{text}");
    let again = audit(&store, &["export", "--format", "csv", "--output", name]);
    assert!(refusal(&again, 2).contains("name a new file"));

    // Nobody reads the output.
    let mut child = program(&["audit", "--store", &store, "export"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_prints_events_as_they_arrive_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let mut child = program(&["audit", "--store", &store, "tail", "--from", "2", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["resourceId"], "c");
    assert_eq!(next()["seq"], 3);
    record(&folder.path().join("audit.db"), &["e"], Outcome::Failure).await;
    assert_eq!(next()["resourceId"], "e");
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}
