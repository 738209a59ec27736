//! A change and its event are stored together or not at all, whenever the process is killed.
//!
//! Every change increments its document's version, so each document's version must equal the number
//! of its events. If a server stored the change first, a kill in between would leave a version
//! without an event; if it stored the event first, an event without a version.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dezky_core::Runtime as _;
use dezky_core::rt::TokioRuntime;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::support::{Client, Process, in_order, run, stdout, until};

const ROUNDS: usize = 16;
const EDITORS: usize = FLAGS.len() + TENANTS.len();
const FLAGS: [&str; 3] = ["common", "first", "second"];
const TENANTS: [&str; 2] = ["acme", "beta"];

/// A client that changes documents until the server is killed.
struct Editor {
    number: usize,
    /// The number of acknowledged changes. An unacknowledged change is retried, which has no effect
    /// if it was committed.
    step: usize,
    /// The acknowledged changes, by document.
    acknowledged: HashMap<String, u64>,
}

impl Editor {
    async fn edit(mut self, client: Client, acknowledged: Arc<AtomicUsize>) -> Self {
        loop {
            let (method, document, action, body) = self.change();
            let path = format!("{document}{action}");
            let request = client.document(method, &path, body.to_string());
            let Some(status) = client.try_status(request).await else { return self };
            assert_eq!(status, 200, "{path}");
            *self.acknowledged.entry(document).or_default() += 1;
            self.step += 1;
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The next change: method, document, action and body.
    fn change(&self) -> (Method, String, &'static str, Value) {
        let Self { number, step, .. } = self;
        match number {
            0 | 1 => {
                // The first and the second have one flag each.
                let key = if step % 2 == 0 { FLAGS[0] } else { FLAGS[1 + number] };
                let body = json!({ "description": format!("{number}-{step}"), "state": "on" });
                (Method::PATCH, format!("/flags/{key}"), "", body)
            }
            2 => {
                let document = format!("/flags/{}", FLAGS[0]);
                if step % 2 == 1 {
                    return (Method::POST, document, "/kill", json!({}));
                }
                let body = json!({ "state": "rollout", "pct": 1 + step % 99 });
                (Method::PATCH, document, "", body)
            }
            _ => {
                let action = if step % 2 == 0 { "/suspend" } else { "/resume" };
                (Method::POST, format!("/tenants/{}", TENANTS[number - 3]), action, json!({}))
            }
        }
    }
}

async fn make_documents(client: &Client) {
    for key in FLAGS {
        client.post("/flags", json!({ "key": key })).await.with_status(201);
    }
    for slug in TENANTS {
        let tenant = json!({ "slug": slug, "name": slug, "plan": "pro", "status": "active" });
        client.post("/tenants", tenant).await.with_status(201);
    }
}

/// Waits until the outbox is empty: events of changes committed before a kill may still be in it.
async fn relayed(folder: &Path) {
    let url = format!("sqlite://{}", folder.join("dezky.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    until("the relay", async || {
        let waiting = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM dezky_outbox");
        waiting.fetch_one(&mut database).await.unwrap() == 0
    })
    .await;
    database.close().await.unwrap();
}

/// Compares each document with its events and with the acknowledged changes; returns the number of
/// events.
async fn check(client: &Client, editors: &[Editor]) -> usize {
    let events = in_order(client.all("").await);
    let mut told: HashMap<String, Vec<&str>> = HashMap::new();
    for event in &events {
        let text = |field: &str| event[field].as_str().unwrap();
        // A tenant's name is its slug here.
        let document = format!("/{}s/{}", text("resourceType"), text("resourceName"));
        told.entry(document).or_default().push(text("action"));
    }
    let documents: Vec<_> = FLAGS
        .map(|key| format!("/flags/{key}"))
        .into_iter()
        .chain(TENANTS.map(|slug| format!("/tenants/{slug}")))
        .collect();
    for path in &documents {
        let document = client.get(path).await.with_status(200);
        let version = document["version"].as_u64().unwrap();
        let verbs = &told[path];
        assert_eq!(verbs.len() as u64, version, "{document}\n{verbs:?}");
        assert!(verbs[0].ends_with(".created") && !verbs[1..].contains(&verbs[0]), "{verbs:?}");
        if path.starts_with("/tenants") {
            // In the order of the changes.
            let expected = ["tenant.resumed", "tenant.suspended"];
            let in_turn = (1..verbs.len()).all(|at| verbs[at] == expected[at % 2]);
            assert!(in_turn, "{verbs:?}");
            let is_suspended = version % 2 == 0;
            assert_eq!(document["status"] == "suspended", is_suspended, "{document}");
        }
        // A document with one editor has a change for each acknowledgement, and one more if a kill
        // lost the response.
        if *path != documents[0] {
            let of = |editor: &Editor| editor.acknowledged.get(path).copied();
            let acknowledged: u64 = editors.iter().filter_map(of).sum();
            let changes = version - 1;
            assert!(
                (acknowledged..=acknowledged + 1).contains(&changes),
                "{acknowledged} acknowledged: {document}"
            );
        }
    }
    events.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_and_its_event_are_both_there_or_neither_is() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = [("DEZKY_LOG", "error")];
    let new = |number| Editor { number, step: 0, acknowledged: HashMap::new() };
    let mut editors: Vec<Editor> = (0..EDITORS).map(new).collect();
    for round in 0..ROUNDS {
        let mut process = Process::start(folder.path(), &quiet);
        if round == 0 {
            make_documents(&process.client).await;
        }
        relayed(folder.path()).await;
        check(&process.client, &editors).await;
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let edits: Vec<_> = editors
            .drain(..)
            .map(|editor| {
                // A separate connection for each.
                let client = Client::new(format!("http://{}", process.address));
                tokio::spawn(editor.edit(client, Arc::clone(&acknowledged)))
            })
            .collect();
        let enough = 1 + round * 7 % 30;
        until("acknowledgements", async || acknowledged.load(Ordering::SeqCst) >= enough).await;
        random_moment().await;
        process.kill();
        for edit in edits {
            editors.push(edit.await.unwrap());
        }
    }
    let process = Process::start(folder.path(), &quiet);
    relayed(folder.path()).await;
    let events = check(&process.client, &editors).await;
    process.stop().await;
    let acknowledged: u64 = editors.iter().flat_map(|editor| editor.acknowledged.values()).sum();
    assert!(
        acknowledged >= ROUNDS as u64 && events as u64 >= acknowledged,
        "{acknowledged} {events}"
    );

    let url = format!("sqlite://{}", folder.path().join("dezky.db").display());
    let verified = run(&["verify", "--store", &url], &[]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(stdout(&verified).starts_with(&format!("ok: {events} events, head ")));
}

/// Sleeps up to 8 ms, so that a kill hits any part of a request; not a wait for a condition.
async fn random_moment() {
    let mut drawn = [0; 2];
    TokioRuntime.fill_random(&mut drawn);
    tokio::time::sleep(Duration::from_micros(u64::from(u16::from_le_bytes(drawn)) / 8)).await;
}
