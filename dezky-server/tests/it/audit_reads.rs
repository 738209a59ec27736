//! Streams, exports, counts and single events of the timeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::AppendOptions;
use dezky_core::testkit::named_event;
use dezky_core::{NewEvent, NewMetadata};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::openapi::check;
use crate::sse::Messages;
use crate::support::{Client, Server, until, verbs};

/// Appends events with metadata of about `bytes` bytes each.
async fn append(server: &Server, count: usize, bytes: usize) {
    let text = "x".repeat(bytes);
    for start in (0..count).step_by(1_000) {
        let events = (start..count.min(start + 1_000)).map(|n| {
            let metadata = NewMetadata::from_value(json!({ "text": text }));
            NewEvent { metadata, ..named_event(&n.to_string()) }.seal(&TokioRuntime)
        });
        let store = server.running.store();
        store.append(events.collect(), AppendOptions::default()).await.unwrap();
    }
}

async fn open(client: &Client, query: &str) -> Messages {
    let request = client.request(Method::GET, &format!("/audit/stream?{query}"));
    Messages::of(request.send().await.unwrap())
}

const READERS: usize = 100;
const EVENTS: u64 = 300;

/// The events that a reader saw, over as many connections as it took.
async fn follow(mut base: watch::Receiver<String>, is_slow: bool, done: Arc<AtomicUsize>) {
    let (mut seqs, mut last): (Vec<u64>, Option<String>) = (Vec::new(), None);
    let mut connections = 0;
    while seqs.len() < usize::try_from(EVENTS).unwrap() {
        let address = base.borrow_and_update().clone();
        let client = Client::new(address);
        let mut request = client.request(Method::GET, "/audit/stream?from=start&action=tenant.");
        if let Some(last) = &last {
            request = request.header("Last-Event-ID", last);
        }
        let Ok(response) = request.send().await else {
            // The next server has another address.
            base.changed().await.unwrap();
            continue;
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            tokio::task::yield_now().await;
            continue;
        }
        connections += 1;
        let mut stream = Messages::of(response);
        while let Some(message) = stream.next().await {
            if message.event.is_some() {
                continue;
            }
            if !message.data.is_empty() {
                let event: Value = serde_json::from_str(&message.data).unwrap();
                seqs.push(event["seq"].as_u64().unwrap());
                assert_eq!(message.id, Some(event["seq"].to_string()));
                if is_slow {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            last = message.id.or(last);
            if seqs.len() == usize::try_from(EVENTS).unwrap() {
                break;
            }
        }
    }
    assert_eq!(seqs, (0..EVENTS).collect::<Vec<_>>(), "over {connections} connections");
    assert!(connections > 1, "the restart broke the connection");
    done.fetch_add(1, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_readers_see_every_event_once_over_a_restart() {
    let mut server = Server::start(&[]).await;
    let (address, base) = watch::channel(format!("http://{}", server.running.address()));
    append(&server, 100, 10).await;
    let done = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..READERS)
        .map(|n| tokio::spawn(follow(base.clone(), n == 0, Arc::clone(&done))))
        .collect();
    append(&server, 100, 10).await;
    // Some have read everything, others little.
    until("readers", async || server.running.audit_streams() >= READERS / 2).await;
    let folder = server.stop().await;
    server = Server::start_in(folder, &[]).await;
    append(&server, 100, 10).await;
    address.send_replace(format!("http://{}", server.running.address()));
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(done.load(Ordering::SeqCst), READERS);
    until("the end of the streams", async || server.running.audit_streams() == 0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_begins_where_its_client_asks_and_says_its_position() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let first = open(client, "").await.next().await.unwrap();
    assert_eq!((first.id, first.data.as_str()), (None, ""), "the log is empty");
    append(&server, 5, 10).await;
    let mut new = open(client, "").await;
    assert_eq!(new.next().await.unwrap().id.as_deref(), Some("4"), "only later events");
    let mut resumed = open(client, "lastEventId=2").await;
    assert_eq!(resumed.next().await.unwrap().id.as_deref(), Some("2"));
    let mut denied = open(client, "from=start&outcome=denied").await;
    assert_eq!(denied.next().await.unwrap().id, None);
    append(&server, 1, 10).await;
    assert_eq!(new.next_data().await.unwrap().id.as_deref(), Some("5"));
    for id in ["3", "4", "5"] {
        assert_eq!(resumed.next_data().await.unwrap().id.as_deref(), Some(id));
    }
    // The heartbeat tells a reader whose filter matches nothing how far it has come.
    let beat = tokio::time::timeout(Duration::from_secs(25), denied.next()).await.unwrap();
    assert_eq!(beat.unwrap().id.as_deref(), Some("5"));
    for (query, code, words) in [
        ("lastEventId=x", "cursor_invalid", "must be the seq of an event"),
        ("lastEventId=6", "cursor_invalid", "below 6"),
        ("lastEventId=18446744073709551615", "cursor_invalid", "below 6"),
        ("from=7", "query_invalid", "from must be start"),
        ("limit=7", "query_invalid", "limit is not a parameter"),
        ("since=today", "query_invalid", "since must be an RFC 3339 time"),
        ("outcome=maybe", "query_invalid", "success, failure or denied"),
    ] {
        let answer = client.get(&format!("/audit/stream?{query}")).await;
        assert!(answer.problem(400, code).contains(words), "{query}: {answer:?}");
        check("get", "/audit/stream", &answer);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_bounded_and_clients_that_leave_make_room() {
    let server = Server::start(&[]).await;
    let mut streams = Vec::new();
    for _ in 0..256 {
        streams.push(open(&server.client, "").await);
    }
    let refused = server.client.get("/audit/stream").await;
    refused.problem(503, "too_many_streams");
    assert_eq!(refused.header("retry-after"), "5");
    check("get", "/audit/stream", &refused);
    drop(streams);
    until("room", async || server.running.audit_streams() == 0).await;
    open(&server.client, "").await.next().await.unwrap();
    server.stop().await;
}

/// The parts of an export, as far as they arrive.
async fn export(client: &Client, path: &str) -> (String, bool) {
    let mut response = client.request(Method::GET, path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend(chunk),
            Ok(None) => return (String::from_utf8(bytes).unwrap(), true),
            Err(_) => return (String::from_utf8(bytes).unwrap(), false),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_whole_and_on_the_timeline() {
    let server = Server::start(&[]).await;
    append(&server, 2_500, 300).await;
    let (text, ended) = export(&server.client, "/audit/export?tenantSlug=acme").await;
    assert!(ended);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2_501);
    let mut seqs: Vec<_> =
        lines[..2_500].iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (0..2_500).collect::<Vec<_>>());
    let trailer = &lines[2_500]["export"];
    assert_eq!((&trailer["events"], &trailer["whole"]), (&json!(2_500), &json!(true)));
    let recorded = async || server.client.all("&action=audit.export").await;
    until("the end", async || recorded().await.len() == 2).await;
    let events = recorded().await;
    let begun = events.iter().find(|event| event["action"] == "audit.exported").unwrap();
    assert_eq!(begun["id"], trailer["id"]);
    assert_eq!(begun["metadata"]["filters"], json!({ "tenantSlug": "acme" }));
    assert_eq!(begun["metadata"]["format"], "ndjson");
    assert_eq!((&begun["tenantSlug"], &begun["actorType"]), (&json!("acme"), &json!("anonymous")));
    assert!(begun["actorIp"].is_string(), "{begun}");
    let end = events.iter().find(|event| event["action"] == "audit.export_ended").unwrap();
    assert_eq!((&end["resourceId"], &end["outcome"]), (&begun["id"], &json!("success")));
    assert_eq!(end["metadata"]["events"], 2_500);
    assert_eq!(end["metadata"]["whole"], true);
    // Nobody else may record such events.
    let forged = server.client.post("/audit", json!({ "action": "audit.exported" })).await;
    forged.problem(400, "event_invalid");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_is_cut_off_shows_it() {
    let server = Server::start(&[]).await;
    // More than the buffers between the ends hold.
    append(&server, 6_000, 6_000).await;
    let path = "/audit/export?format=csv";
    let mut left = server.client.request(Method::GET, path).send().await.unwrap();
    left.chunk().await.unwrap().unwrap();
    drop(left);
    let ended = async || server.client.all("&action=audit.export_ended").await;
    until("the end", async || !ended().await.is_empty()).await;
    let end = ended().await.remove(0);
    assert_eq!((&end["outcome"], &end["metadata"]["whole"]), (&json!("failure"), &json!(false)));
    assert_eq!(end["metadata"]["reason"], "client_gone");
    assert!(end["metadata"]["events"].as_u64().unwrap() < 6_000, "{end}");

    // The server stops in mid-export.
    let mut response = server.client.request(Method::GET, path).send().await.unwrap();
    let mut text = response.chunk().await.unwrap().unwrap().to_vec();
    let stopping = tokio::spawn(server.stop());
    let broke = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => text.extend(chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broke, "HTTP shows it");
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("#whole"), "and so does the last line");
    let server = Server::start_in(stopping.await.unwrap(), &[]).await;
    let ends = server.client.all("&action=audit.export_ended").await;
    assert_eq!(ends.len(), 2);
    assert_eq!(ends[0]["metadata"]["reason"], "ending", "{ends:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_are_bounded_and_their_parameters_checked() {
    let server = Server::start(&[]).await;
    append(&server, 6_000, 6_000).await;
    let mut running = Vec::new();
    for _ in 0..4 {
        let request = server.client.request(Method::GET, "/audit/export");
        running.push(request.send().await.unwrap());
    }
    let refused = server.client.get("/audit/export").await;
    refused.problem(503, "too_many_exports");
    check("get", "/audit/export", &refused);
    drop(running);
    until("room", async || {
        let request = server.client.request(Method::GET, "/audit/export?q=nowhere");
        request.send().await.unwrap().status() == 200
    })
    .await;
    let unacceptable = server.client.request(Method::GET, "/audit/export");
    let answer = server.client.send(unacceptable.header("Accept", "application/pdf")).await;
    assert!(answer.problem(406, "not_acceptable").contains("format="));
    check("get", "/audit/export", &answer);
    for (query, words) in [
        ("format=xlsx", "format must be ndjson or csv"),
        ("limit=5", "limit is not a parameter"),
        ("until=never", "until must be an RFC 3339 time"),
    ] {
        let answer = server.client.get(&format!("/audit/export?{query}")).await;
        assert!(answer.problem(400, "query_invalid").contains(words), "{answer:?}");
    }
    let head = server.client.request(Method::HEAD, "/audit/export").send().await.unwrap();
    assert_eq!(head.status(), StatusCode::METHOD_NOT_ALLOWED, "it would record an access");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spreadsheets_take_no_cell_for_a_formula() {
    let server = Server::start(&[]).await;
    let event = json!({ "action": "thing.done", "resourceName": "=HYPERLINK(\"http://x\",\"y\")",
                        "actorId": "@cmd", "resourceId": "a,\"b\"" });
    server.client.post("/audit", event).await.with_status(201);
    let request = server.client.request(Method::GET, "/audit/export?action=thing.");
    let response = request.header("Accept", "text/csv").send().await.unwrap();
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/csv; charset=utf-8; header=present");
    assert_eq!(headers["content-disposition"], "attachment; filename=\"audit.csv\"");
    let text = response.text().await.unwrap();
    assert!(text.contains(",\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\","), "{text}");
    assert!(text.contains(",'@cmd,") && text.contains(",\"a,\"\"b\"\"\","), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_counts_and_single_events_are_as_documented() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let empty = client.get("/audit/head").await;
    check("get", "/audit/head", &empty);
    assert_eq!(empty.json["nextSeq"], 0);
    append(&server, 3, 10).await;
    let head = client.get("/audit/head").await;
    check("get", "/audit/head", &head);
    let last = client.get("/audit/2").await;
    check("get", "/audit/{id}", &last);
    assert_eq!(head.json["hash"], last.json["hash"]);
    assert_eq!((&head.json["nextSeq"], &head.json["logId"]), (&json!(3), &empty.json["logId"]));
    let id = last.json["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("/audit/{id}")).await.json, last.json);
    for (path, status, code, words) in [
        ("/audit/3", 404, "not_found", "no such event"),
        ("/audit/00000000-0000-0000-0000-000000000000", 404, "not_found", "no such event"),
        ("/audit/-1", 400, "field_invalid", "or its seq"),
        ("/audit/1?x=1", 400, "query_invalid", "x is not a parameter"),
        ("/audit/head?x=1", 400, "query_invalid", "x is not a parameter"),
        ("/audit/stats?interval=week", 400, "query_invalid", "hour or day"),
        ("/audit/stats?by=tenant", 400, "query_invalid", "tenantSlug"),
        ("/audit/stats?cursor=x", 400, "query_invalid", "cursor is not a parameter"),
        ("/audit/stats?since=2020-01-01T00:00:00Z", 400, "query_invalid", "at most 1000"),
        (
            "/audit/stats?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
            400,
            "query_invalid",
            "since",
        ),
    ] {
        let answer = client.get(path).await;
        assert!(answer.problem(status, code).contains(words), "{path}: {answer:?}");
    }
    for (query, expected) in [
        ("by=outcome", json!({ "outcome": "success", "count": 3 })),
        ("by=", json!({ "count": 3 })),
        ("interval=day&by=tenantSlug", json!({ "tenantSlug": "acme", "count": 3 })),
    ] {
        let answer = client.get(&format!("/audit/stats?{query}")).await;
        check("get", "/audit/stats", &answer);
        let mut total = 0;
        for counted in answer.json["counts"].as_array().unwrap() {
            total += counted["count"].as_u64().unwrap();
            for (name, value) in expected.as_object().unwrap().iter().filter(|(n, _)| *n != "count")
            {
                assert_eq!(&counted[name], value);
            }
        }
        // An hour may end in the middle of the test.
        assert_eq!(Value::from(total), expected["count"], "{answer:?}");
    }
    assert_eq!(verbs(client.all("").await), ["tenant.updated"; 3], "reading records nothing");
    server.stop().await;
}
