//! `POST /audit`: events of services that are not written in Rust.

use reqwest::Method;
use serde_json::{Value, json};

use crate::servers::{OwnServer, cluster, free_port};
use crate::support::{Engine, Process, Server, in_order, until};

const TOKEN: &str = "operator-token-0123456789";

fn statuses(answer: &Value) -> Vec<&str> {
    let receipts = answer["receipts"].as_array().expect("receipts");
    receipts.iter().map(|receipt| receipt["status"].as_str().unwrap()).collect()
}

/// If a source's times are whole seconds, the last event of a list is always the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_one_second_are_listed_as_they_came() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let client = server.client.with_token(TOKEN);
    let event = |n: u64| json!({"action": "job.ended", "at": "2026-11-21T20:12:21Z", "resourceId": n.to_string()});
    let list: Vec<_> = (0..9).map(event).collect();
    client.post("/audit", list.into()).await.with_status(201);
    client.post("/audit", event(9)).await.with_status(201);
    let expected: Vec<_> = (0..10).rev().map(|n: u64| n.to_string()).collect();
    for query in ["", "&limit=3", "&action=job.ended&limit=1"] {
        let mut listed = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = client.get(&format!("/audit?source=platform-api{query}{cursor}")).await;
            let ids = page.events().iter().map(|e| e["resourceId"].as_str().unwrap().to_owned());
            listed.extend(ids);
            let Some(next) = page.json["nextCursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(listed, expected, "{query}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_or_a_list() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let client = server.client.with_token(TOKEN);
    let full = json!({
        "id": "0199b1f0-0000-7000-8000-000000000001", "at": "2026-11-21T20:12:21.123Z",
        "actorType": "user", "actorId": "u-7", "actorEmail": "alice@acme.example",
        "actorIp": "::ffff:203.0.113.7", "action": "invoice.sent", "outcome": "denied",
        "resourceType": "invoice", "resourceId": "i-1", "resourceName": "Invoice 1",
        "tenantSlug": "acme", "partnerSlug": "north", "source": "billing", "externalId": "b-1",
        "metadata": {
            "total": 9_007_199_254_740_993_i64, "rate": 1.5,
            "_dezky": {"requestId": "r-1", "userAgent": "curl", "before": {"a": 1}, "after": {"a": 2}},
        },
    });
    let answer = client.post("/audit", full.clone()).await.with_status(201);
    assert_eq!(statuses(&answer), ["appended"]);
    assert_eq!(answer["receipts"][0]["id"], full["id"]);
    assert_eq!(answer["receipts"][0]["seq"], 0);

    let list = json!([{"action": "job.ended"}, {"action": "job.ended"}]);
    let answer = client.post("/audit", list).await.with_status(201);
    assert_eq!(statuses(&answer), ["appended", "appended"]);

    let events = in_order(client.all("").await);
    for (field, value) in full.as_object().unwrap() {
        let expected = if field == "actorIp" { &json!("203.0.113.7") } else { value };
        assert_eq!(&events[0][field], expected, "{field}");
    }
    assert_eq!(
        (&events[1]["actorType"], &events[1]["source"]),
        (&json!("service"), &json!("platform-api"))
    );
    assert_eq!(
        (&events[1]["outcome"], &events[1]["at"]),
        (&json!("success"), &events[1]["receivedAt"])
    );
    assert_eq!(events[1].get("actorId"), None);
    assert_eq!(events[1]["metadata"], json!({}));
    server.stop().await;
}

/// Lone surrogates become U+FFFD in every field, as in the log's normal form; the other events of
/// the body are stored as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_surrogate_becomes_the_replacement_character() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let body = r#"[{"action":"a.b"},{"action":"a.c","resourceName":"x\ud83d","actorId":"\u0000",
        "metadata":{"\udc00":"\ud83d","whole":"\ud83d\ude00"}}]"#;
    let answer = client.send(client.document(Method::POST, "/audit", body)).await;
    assert_eq!(statuses(&answer.with_status(201)), ["appended", "appended"]);
    let events = in_order(client.all("").await);
    assert_eq!(events[1]["resourceName"], "x\u{fffd}");
    assert_eq!(events[1]["actorId"], "\u{fffd}");
    assert_eq!(events[1]["metadata"], json!({"\u{fffd}": "\u{fffd}", "whole": "\u{1f600}"}));

    // If a field can't contain U+FFFD, the error names field and event, and nothing is stored.
    let body = r#"[{"action":"a.b"},{"action":"a.c","id":"\ud83d"}]"#;
    let answer = client.send(client.document(Method::POST, "/audit", body)).await;
    let detail = answer.problem(400, "field_invalid");
    assert!(detail.starts_with("event 1: id: "), "{detail}");
    assert_eq!(client.all("").await.len(), 2);
    // In documents nothing is replaced: the error names the field.
    let body = r#"{"slug":"acme","name":"\ud83d"}"#;
    let answer = client.send(client.document(Method::POST, "/tenants", body)).await;
    assert_eq!(
        answer.problem(400, "field_invalid"),
        "name: must be Unicode text: it has a lone surrogate"
    );
    server.stop().await;
}

pub(crate) async fn what_comes_again_is_a_duplicate(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let by_id = json!({"id": "0199b1f0-0000-7000-8000-000000000001", "action": "a.b"});
    let by_name = json!({"externalId": "x-1", "action": "a.c", "actorId": "u-1"});
    let both = json!([by_id, by_name]);
    client.post("/audit", both.clone()).await.with_status(201);
    let again = client.post("/audit", both).await.with_status(200);
    assert_eq!(statuses(&again), ["duplicate", "duplicate"]);
    assert_eq!(again["receipts"][1]["seq"], 1);

    let other =
        json!([{"externalId": "x-1", "action": "a.d", "actorId": "u-2"}, {"action": "a.e"}]);
    let mixed = client.post("/audit", other).await.with_status(201);
    assert_eq!(statuses(&mixed), ["conflict", "appended"]);
    assert_eq!(mixed["receipts"][0]["differs"], json!(["actorId", "action"]));
    let events = in_order(client.all("").await);
    assert_eq!((events.len(), &events[1]["action"]), (3, &json!("a.c")), "the first one stays");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_named_and_nothing_is_stored() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let with = |field: &str, value: Value| json!({"action": "a.b", field: value});
    let own = |own: Value| with("metadata", json!({"_dezky": own}));
    for (event, code, words) in [
        (json!({}), "field_invalid", &["action", "missing"][..]),
        (json!(7), "field_invalid", &["object"]),
        (json!({"action": "a", "actoin": "b"}), "field_invalid", &["actoin", "unknown"]),
        (with("action", json!(7)), "field_invalid", &["action"]),
        (with("actor_type", json!("user")), "field_invalid", &["actor_type", "actorType"]),
        (with("seq", json!(1)), "field_invalid", &["seq", "set by the log: leave it out"]),
        (with("hash", json!("x")), "field_invalid", &["hash", "leave it out"]),
        (with("prevHash", json!(null)), "field_invalid", &["prevHash", "leave it out"]),
        (
            with("receivedAt", json!("2026-01-01T00:00:00Z")),
            "field_invalid",
            &["receivedAt", "leave it out"],
        ),
        (with("erased", json!([])), "field_invalid", &["erased", "leave it out"]),
        (with("at", json!("yesterday")), "field_invalid", &["at", "RFC 3339"]),
        (with("id", json!("7")), "field_invalid", &["id", "UUID"]),
        (with("actorType", json!("robot")), "field_invalid", &["actorType", "anonymous"]),
        (with("outcome", json!("maybe")), "field_invalid", &["outcome", "denied"]),
        (with("metadata", json!([])), "field_invalid", &["metadata", "object"]),
        (
            with("metadata", json!({"x": "y".repeat(70_000)})),
            "field_invalid",
            &["metadata", "64 KiB"],
        ),
        (
            with("action", json!("Not A Verb")),
            "event_invalid",
            &["action", "128", "joined by dots"],
        ),
        (with("action", json!("dezky.erased")), "event_invalid", &["action", "dezky."]),
        (
            with("action", json!("log.head_acknowledged")),
            "event_invalid",
            &["action", "log.", "only the log records"],
        ),
        (with("action", json!("ingest.gap")), "event_invalid", &["action", "ingest."]),
        (
            json!({"action": "log.opened", "source": "Platform-API"}),
            "event_invalid",
            &["action", "log."],
        ),
        (with("actorIp", json!("nowhere")), "event_invalid", &["actorIp", "IP address"]),
        (with("actorEmail", json!("x".repeat(321))), "event_invalid", &["actorEmail", "320"]),
        (with("tenantSlug", json!("Acme")), "event_invalid", &["tenantSlug", "a–z, 0–9 and -"]),
        (with("partnerSlug", json!("no_rth")), "event_invalid", &["partnerSlug", "a–z"]),
        (
            with("resourceName", json!("x".repeat(1_025))),
            "event_invalid",
            &["resourceName", "1024"],
        ),
        (with("tenantSlug", json!("")), "event_invalid", &["tenantSlug", "1 to 63"]),
        (with("externalId", json!("x".repeat(513))), "event_invalid", &["externalId", "512"]),
        (with("source", json!("a b")), "event_invalid", &["source", "64"]),
        (with("source", json!("ocis")), "event_invalid", &["source", "ocis", "platform-api"]),
        (with("source", json!("Authentik")), "event_invalid", &["source", "Authentik"]),
        (with("source", json!("stalwart:eu2")), "event_invalid", &["source", "stalwart:eu2"]),
        (with("source", json!("authentik")), "event_invalid", &["source", "authentik"]),
        (
            own(json!({"tenantBy": "group"})),
            "event_invalid",
            &["metadata._dezky.tenantBy", "requestId"],
        ),
        (own(json!({"requestId": 7})), "event_invalid", &["metadata._dezky.requestId", "512"]),
        (own(json!("x")), "event_invalid", &["metadata._dezky", "requestId"]),
    ] {
        let answer = client.post("/audit", event.clone()).await;
        let alone = answer.problem(400, code).to_owned();
        let answer = client.post("/audit", json!([{"action": "good"}, event])).await;
        let listed = answer.problem(400, code);
        assert!(listed.starts_with("event 1: "), "{listed}");
        for word in words {
            assert!(alone.contains(word) && listed.contains(word), "{word}: {alone} / {listed}");
        }
    }
    assert!(client.all("").await.is_empty());
    server.stop().await;
}

/// PostgreSQL stops, the server is killed between its response and the drain, and both restart:
/// every acknowledged event is in the log exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_down_events_wait_in_the_spool() {
    let (folder, cluster, port) = (tempfile::tempdir().unwrap(), cluster(), free_port());
    let database = OwnServer::postgres_at(cluster.path(), port).await;
    let url = database.url.clone();
    let set = [
        ("DEZKY_STORE", url.as_str()),
        ("DEZKY_HEAD_PATH", "dezky.head"),
        ("DEZKY_SPOOL_PATH", "dezky.spool"),
    ];
    let apart = tempfile::tempdir().unwrap();
    let mut server = Process::start(folder.path(), &set);
    let bare = Process::start(apart.path(), &set[..2]);
    let event = |id: &str| json!({"action": "job.ended", "externalId": id, "actorId": "u-1"});
    let first = server.client.post("/audit", event("a-0")).await.with_status(201);
    database.stop().await;

    let list = json!([event("a-0"), event("a-1"), {"action": "job.ended", "resourceId": "bare"}]);
    let answer = server.client.post("/audit", list).await;
    crate::openapi::check("post", "/audit", &answer);
    let answer = answer.with_status(202);
    assert_eq!(statuses(&answer), ["spooled"; 3]);
    assert!(answer["receipts"].as_array().unwrap().iter().all(|receipt| receipt["id"].is_string()));
    // A retry, and requests that fail whatever the store's state.
    server.client.post("/audit", event("a-1")).await.with_status(202);
    server.client.post("/audit", json!({"action": "No"})).await.problem(400, "event_invalid");
    bare.client.post("/audit", event("b-1")).await.problem(503, "store_unavailable");
    server.kill();

    let database = OwnServer::postgres_at(cluster.path(), port).await;
    let server = Process::start(folder.path(), &set);
    until("the spool is drained", async || server.client.all("").await.len() == 3).await;
    // Again, without killing the server.
    database.stop().await;
    let ids: Vec<_> = (2..40).map(|n| format!("a-{n}")).collect();
    for id in &ids {
        server.client.post("/audit", event(id)).await.with_status(202);
    }
    let database = OwnServer::postgres_at(cluster.path(), port).await;
    until("the spool is drained", async || {
        let spool = std::fs::read(folder.path().join("dezky.spool")).unwrap();
        spool == b"dezky.spool v1\n"
    })
    .await;
    // Retries without the spool find every event in the log.
    let again = server.client.post("/audit", event("a-0")).await.with_status(200);
    assert_eq!(
        (&again["receipts"][0]["status"], &again["receipts"][0]["id"]),
        (&json!("duplicate"), &first["receipts"][0]["id"])
    );
    let mut found: Vec<_> = in_order(server.client.all("").await)
        .iter()
        .map(|event| event["externalId"].as_str().unwrap_or("bare").to_owned())
        .collect();
    assert_eq!(found.remove(2), "bare");
    let expected: Vec<_> = (0..40).map(|n| format!("a-{n}")).collect();
    assert_eq!(found, expected, "no event is lost, repeated or out of order");
    bare.stop().await;
    server.stop().await;
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_have_bounds_and_need_the_token() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let client = server.client.with_token(TOKEN);
    server.client.post("/audit", json!({"action": "a"})).await.problem(401, "unauthorized");
    let many = |count: usize| json!(vec![json!({"action": "a.b"}); count]);
    let answer = client.post("/audit", many(1_001)).await;
    let detail = answer.problem(413, "too_large");
    assert!(detail.contains("1 to 1000") && detail.contains("1001"), "{detail}");
    let none = client.post("/audit", many(0)).await;
    assert!(none.problem(400, "field_invalid").contains("no events: send 1 to 1000"));
    let text = client.post("/audit", json!("a")).await;
    assert!(text.problem(400, "field_invalid").starts_with("the body must be a JSON object"));
    for broken in ["", "{", "[{\"action\":\"a\"},", "{\"action\":\"a\"} x"] {
        let request = client.document(Method::POST, "/audit", broken);
        client.send(request).await.problem(400, "json_invalid");
    }
    let unknown = client.post("/audit?dryRun=true", json!({"action": "a.b"})).await;
    assert_eq!(
        unknown.problem(400, "query_invalid"),
        "dryRun is not a parameter: this route has none"
    );
    let form = client.request(Method::POST, "/audit").body("{\"action\":\"a\"}");
    client.send(form).await.problem(415, "media_type");
    let large = format!("{{\"action\":\"{}\"}}", "a".repeat(8 << 20));
    let request = client.document(Method::POST, "/audit", large);
    client.send(request).await.problem(413, "body_too_large");
    assert!(client.all("").await.is_empty());
    // With another source, the action can't be confused with the log's own events.
    let own = json!({"action": "log.opened", "source": "billing"});
    client.post("/audit", own).await.with_status(201);
    assert_eq!(statuses(&client.post("/audit", many(1_000)).await.with_status(201)).len(), 1_000);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_that_is_years_off_stands_neither_above_nor_below_all_others() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let event = |action: &str, at: &str| json!({"action": action, "at": at});
    let given = json!([
        event("far.ahead", "9999-12-31T23:59:59.999Z"),
        event("far.behind", "0001-01-01T00:00:00Z"),
        event("as.said", "2026-01-01 02:00:00,5 +0200"),
        {"action": "right.now"},
    ]);
    client.post("/audit", given).await.with_status(201);
    let listed = client.all("").await;
    for (action, problem) in [("far.ahead", "ahead"), ("far.behind", "too_old")] {
        let event = listed.iter().find(|event| event["action"] == action).unwrap();
        assert_eq!(event["at"], event["receivedAt"], "{action}");
        assert_eq!(event["metadata"]["_dezky"]["timeProblem"], problem);
    }
    assert_eq!(listed.last().unwrap()["at"], "2026-01-01T00:00:00.500Z");
    server.stop().await;
}
