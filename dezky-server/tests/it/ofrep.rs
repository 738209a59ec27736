//! Flags over OFREP, as clients see them.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dezky_core::ErrorKind;
use dezky_core::rt::TokioRuntime;
use dezky_flags::bucket;
use dezky_flags::openfeature::{OfrepToken, RemoteConfig, RemoteFlagProvider};
use open_feature::provider::{FeatureProvider as _, ProviderStatus};
use open_feature::{EvaluationContext, EvaluationErrorCode, EvaluationReason};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::openapi::check;
use crate::servers::sql;
use crate::support::{Answer, Client, Engine, Process, Server, until};

const TOKEN: &str = "operator-token-0123456789";
const ALL: &str = "/ofrep/v1/evaluate/flags";
const ONE: &str = "/ofrep/v1/evaluate/flags/{key}";
const EVENTS: &str = "/ofrep/v1/events";

async fn one(client: &Client, key: &str, context: Value) -> Answer {
    let answer = client.post(&format!("{ALL}/{key}"), json!({ "context": context })).await;
    check("post", ONE, &answer);
    answer
}

async fn all(client: &Client, context: Value) -> Answer {
    all_unless(client, context, &[]).await
}

async fn all_unless(client: &Client, context: Value, known: &[&str]) -> Answer {
    let body = json!({ "context": context }).to_string();
    let mut request = client.document(Method::POST, ALL, body);
    for known in known {
        request = request.header("If-None-Match", *known);
    }
    let answer = client.send(request).await;
    check("post", ALL, &answer);
    answer
}

/// One flag of every kind, and two tenants.
async fn fill(client: &Client) {
    for flag in [
        json!({ "key": "always", "state": "on" }),
        json!({ "key": "never" }),
        json!({ "key": "pro-only", "state": "targeted", "scope": { "plans": ["pro"] } }),
        json!({ "key": "nobody", "state": "targeted" }),
        json!({ "key": "some", "state": "rollout", "pct": 50, "options": { "pctHundredths": 25 } }),
        json!({ "key": "staging", "state": "rollout", "pct": 100,
                "scope": { "environments": ["staging"] } }),
        json!({ "key": "nordic", "state": "targeted", "scope": { "partnerSlugs": ["nordic"] } }),
        json!({ "key": "live", "state": "on", "options": { "requireActiveTenant": true } }),
    ] {
        client.post("/flags", flag).await.with_status(201);
    }
    client.post("/partners", json!({ "slug": "nordic", "name": "N" })).await.with_status(201);
    let acme = json!({ "id": "t-acme", "slug": "acme", "name": "Acme", "plan": "pro",
                       "status": "active", "partnerId": "nordic" });
    client.post("/tenants", acme).await.with_status(201);
    let basic = json!({ "id": "t-basic", "slug": "basic", "name": "B", "plan": "basic" });
    client.post("/tenants", basic).await.with_status(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_flag_is_answered() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    fill(client).await;
    let revision =
        all(client, json!({ "targetingKey": "t-acme" })).await.json["metadata"]["revision"].clone();
    let context = json!({ "targetingKey": "t-acme", "environment": "production", "more": [1] });
    let some = bucket("t-acme", "some");
    for (key, value, reason, ours) in [
        ("always", true, "STATIC", "on".to_owned()),
        ("never", false, "DISABLED", "off".to_owned()),
        ("pro-only", true, "TARGETING_MATCH", "targeted".to_owned()),
        ("nobody", false, "DEFAULT", "empty_scope".to_owned()),
        ("staging", false, "DEFAULT", "scope_mismatch(environment)".to_owned()),
        ("nordic", true, "TARGETING_MATCH", "targeted".to_owned()),
        ("live", true, "STATIC", "on".to_owned()),
    ] {
        let answer = one(client, key, context.clone()).await.with_status(200);
        let mut metadata = json!({ "reason": ours, "revision": revision });
        if key == "staging" {
            metadata["pct"] = json!(100.0);
        }
        let variant = if value { "on" } else { "off" };
        let expected = json!({ "key": key, "value": value, "reason": reason,
                               "variant": variant, "metadata": metadata });
        assert_eq!(answer, expected);
    }
    let answer = one(client, "some", context.clone()).await.with_status(200);
    assert_eq!((&answer["reason"], &answer["value"]), (&json!("SPLIT"), &json!(some <= 50)));
    assert_eq!(
        (&answer["metadata"]["bucket"], &answer["metadata"]["pct"]),
        (&json!(some), &json!(50.25))
    );
    // A tenant that is not active, and one that the directory does not know.
    for id in ["t-basic", "t-elsewhere"] {
        let answer = one(client, "live", json!({ "targetingKey": id })).await.with_status(200);
        assert_eq!(
            (&answer["value"], &answer["reason"], &answer["metadata"]["reason"]),
            (&json!(false), &json!("DEFAULT"), &json!("inactive_tenant"))
        );
    }
    // Single and bulk evaluation give the same results.
    let bulk = all(client, context.clone()).await.with_status(200);
    let flags = bulk["flags"].as_array().unwrap();
    assert_eq!(flags.len(), client.get("/flags").await.json["flags"].as_array().unwrap().len());
    for flag in flags {
        let single = one(client, flag["key"].as_str().unwrap(), context.clone()).await;
        assert_eq!(single.with_status(200), *flag);
    }
    assert_eq!(bulk["eventStreams"][0]["endpoint"]["requestUri"], EVENTS);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_context_wins_over_the_directory() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    fill(client).await;
    let value = async |key: &str, context: Value| {
        one(client, key, context).await.with_status(200)["value"].clone()
    };
    assert_eq!(value("pro-only", json!({ "targetingKey": "t-acme" })).await, true);
    let said = json!({ "targetingKey": "t-acme", "plan": "basic", "partnerSlug": null });
    assert_eq!(value("pro-only", said.clone()).await, false);
    assert_eq!(value("nordic", said).await, false);
    let unknown = json!({ "targetingKey": "nowhere", "plan": "pro" });
    assert_eq!(value("pro-only", unknown).await, true);
    assert_eq!(value("pro-only", json!({ "targetingKey": "nowhere" })).await, false);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_in_ofreps_words() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let large = format!("{{\"context\":{{\"targetingKey\":\"{}\"}}}}", "x".repeat(64 << 10));
    fill(client).await;
    for (body, status, code, part) in [
        ("{", 400, "PARSE_ERROR", "not a JSON object"),
        (r#"{"context":7}"#, 400, "INVALID_CONTEXT", "context"),
        (&large, 413, "GENERAL", "65536 bytes"),
    ] {
        for (path, documented) in [(ALL.to_owned(), ALL), (format!("{ALL}/some"), ONE)] {
            let answer = client.send(client.document(Method::POST, &path, body.to_owned())).await;
            check("post", documented, &answer);
            assert_eq!((answer.status.as_u16(), &answer.json["errorCode"]), (status, &json!(code)));
            assert!(answer.json["errorDetails"].as_str().unwrap().contains(part), "{answer:?}");
        }
    }
    for (body, code, part) in [
        ("{}", "TARGETING_KEY_MISSING", "targetingKey"),
        (r#"{"context":{"plan":"pro"}}"#, "TARGETING_KEY_MISSING", "targetingKey"),
        (r#"{"context":{"targetingKey":7}}"#, "INVALID_CONTEXT", "context.targetingKey"),
    ] {
        let path = format!("{ALL}/some");
        let answer = client.send(client.document(Method::POST, &path, body.to_owned())).await;
        check("post", ONE, &answer);
        assert_eq!((answer.status.as_u16(), &answer.json["errorCode"]), (400, &json!(code)));
        assert!(answer.json["errorDetails"].as_str().unwrap().contains(part), "{answer:?}");
    }
    // An unknown parameter is refused; those of the protocol are accepted.
    let body = || json!({ "context": { "targetingKey": "t" } });
    for (path, documented) in [(ALL.to_owned(), ALL), (format!("{ALL}/some"), ONE)] {
        let answer = client.post(&format!("{path}?plan=pro"), body()).await;
        check("post", documented, &answer);
        assert_eq!((answer.status.as_u16(), &answer.json["errorCode"]), (400, &json!("GENERAL")));
        let details = answer.json["errorDetails"].as_str().unwrap();
        assert!(details.starts_with("plan is not a parameter"), "{details}");
    }
    let metadata = "?flagConfigEtag=x&flagConfigLastModified=1771622898";
    client.post(&format!("{ALL}{metadata}"), body()).await.with_status(200);
    let answer = client.get(&format!("{EVENTS}?plan=pro")).await;
    check("get", EVENTS, &answer);
    let details = answer.with_status(400)["errorDetails"].to_string();
    assert!(details.contains("plan is not a parameter: there are lastEventId"), "{details}");
    let unknown = one(client, "no.such-flag", json!({ "targetingKey": "t" })).await;
    assert_eq!(
        (unknown.status.as_u16(), &unknown.json["errorCode"], &unknown.json["key"]),
        (404, &json!("FLAG_NOT_FOUND"), &json!("no.such-flag"))
    );
    server.stop().await;
}

/// On an error, a client uses the default in its code, which may undo a kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_without_the_tenant_is_answered() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    fill(client).await;
    for (key, pct) in [("full", 100), ("empty", 0), ("half", 50)] {
        let flag = json!({ "key": key, "state": "rollout", "pct": pct });
        client.post("/flags", flag).await.with_status(201);
    }
    let post = async |path: &str, documented: &'static str, body: &str| {
        let answer = client.send(client.document(Method::POST, path, body.to_owned())).await;
        check("post", documented, &answer);
        answer
    };
    let told = |item: &Value| match item.get("errorCode") {
        Some(code) => code.as_str().unwrap().to_owned(),
        None => format!("{} {}", item["value"], item["metadata"]["reason"].as_str().unwrap()),
    };
    let missing = "TARGETING_KEY_MISSING";
    for (body, expected) in [
        (
            "{}",
            [
                ("always", "true on"),
                ("never", "false off"),
                ("full", "true full_rollout"),
                ("empty", "false empty_rollout"),
                ("nobody", "false empty_scope"),
                ("half", missing),
                ("pro-only", missing),
                ("live", missing),
            ],
        ),
        (
            r#"{"context":{"plan":"pro"}}"#,
            [
                ("always", "true on"),
                ("never", "false off"),
                ("full", "true full_rollout"),
                ("empty", "false empty_rollout"),
                ("nobody", "false empty_scope"),
                ("half", missing),
                ("pro-only", "true targeted"),
                ("live", missing),
            ],
        ),
        (
            r#"{"context":{"targetingKey":"t-acme","plan":7,"x":"\ud83d","y":1e400}}"#,
            [
                ("always", "true on"),
                ("never", "false off"),
                ("full", "true in_rollout"),
                ("empty", "false out_of_rollout"),
                ("nobody", "false empty_scope"),
                ("half", ""),
                ("pro-only", "INVALID_CONTEXT"),
                ("live", "true on"),
            ],
        ),
    ] {
        let bulk = post(ALL, ALL, body).await;
        assert_eq!(bulk.status, StatusCode::OK, "{bulk:?}");
        let flags = bulk.json["flags"].as_array().unwrap();
        let count = client.get("/flags").await.json["flags"].as_array().unwrap().len();
        assert_eq!(flags.len(), count, "{body}");
        for (key, expected) in expected {
            let single = post(&format!("{ALL}/{key}"), ONE, body).await;
            let listed = flags.iter().find(|flag| flag["key"] == key).unwrap();
            assert_eq!(single.json, *listed, "{body}");
            assert!(told(listed).starts_with(expected), "{key} {body}: {listed}");
            let status = if listed.get("errorCode").is_some() { 400 } else { 200 };
            assert_eq!(single.status.as_u16(), status, "{key} {body}");
        }
    }
    client.post("/flags/always/kill", json!({})).await.with_status(200);
    let killed = post(&format!("{ALL}/always"), ONE, "{}").await.with_status(200);
    assert_eq!(killed["value"], false);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_wanted_and_a_refusal_has_no_body() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let body = r#"{"context":{"targetingKey":"t"}}"#;
    for path in [ALL.to_owned(), format!("{ALL}/k"), EVENTS.to_owned()] {
        let method = if path == EVENTS { Method::GET } else { Method::POST };
        let request = || server.client.document(method.clone(), &path, body);
        for wrong in [
            request(),
            request().bearer_auth("wrong"),
            request().header("X-API-Key", "wrong"),
            server.client.document(method.clone(), &format!("{path}?token={TOKEN}"), body),
        ] {
            let response = wrong.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert!(response.bytes().await.unwrap().is_empty());
        }
        for right in [request().bearer_auth(TOKEN), request().header("X-API-Key", TOKEN)] {
            let status = right.send().await.unwrap().status();
            assert!([200, 404].contains(&status.as_u16()), "{path}: {status}");
        }
    }
    // Other routes don't accept the API key.
    let flags = server.client.request(Method::GET, "/flags").header("X-API-Key", TOKEN);
    server.client.send(flags).await.problem(401, "unauthorized");
    server.stop().await;

    let open = Server::start(&[]).await;
    let foreign = open.client.document(Method::POST, ALL, body).header("Host", "evil.example");
    let answer = open.client.send(foreign).await;
    assert_eq!((answer.status.as_u16(), answer.json), (403, Value::Null));
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_changes_with_the_flags_and_with_the_context() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    fill(client).await;
    let acme = json!({ "targetingKey": "t-acme" });
    let first = all(client, acme.clone()).await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with("\"1-"), "{tag}");
    // Responses with 304 do not count as evaluations.
    let usage = async || client.get("/flags?report=true").await.json["usage"]["flags"].clone();
    let before = usage().await;
    assert_eq!(before[0]["on"], 1, "{before}");
    for known in [&[&*tag][..], &["\"other\"", &format!("W/{tag}")], &["*"]] {
        let answer = all_unless(client, acme.clone(), known).await;
        assert_eq!((answer.status.as_u16(), answer.header("etag")), (304, &*tag), "{known:?}");
    }
    assert_eq!(usage().await, before);
    // Members without effect don't change the tag, nor do members equal to the directory's values.
    let same = json!({ "targetingKey": "t-acme", "tenantSlug": "acme", "more": 1 });
    assert_eq!(all_unless(client, same, &[&tag]).await.status, 304);
    let context = json!({ "targetingKey": "t-acme", "plan": "basic" });
    let other = all_unless(client, context, &[&tag]).await;
    assert_eq!(other.status, 200);
    assert_ne!(other.header("etag"), tag);

    // The tag depends on the directory.
    client.patch("/tenants/acme", json!({ "plan": "basic" })).await.with_status(200);
    let moved = all_unless(client, acme.clone(), &[&tag]).await;
    let tag = moved.header("etag").to_owned();
    assert_eq!(moved.status, 200);
    client.patch("/flags/never", json!({ "state": "on" })).await.with_status(200);
    let changed = all_unless(client, acme.clone(), &[&tag]).await;
    assert_eq!(changed.status, 200);
    let tag = changed.header("etag").to_owned();

    // A restart does not change the tag; another store with other flags does.
    let folder = server.stop().await;
    let server = Server::start_in(folder, &[]).await;
    assert_eq!(all_unless(&server.client, acme.clone(), &[&tag]).await.status, 304);
    let elsewhere = Server::start(&[]).await;
    fill(&elsewhere.client).await;
    elsewhere.client.patch("/tenants/acme", json!({ "plan": "basic" })).await.with_status(200);
    let changed_otherwise = json!({ "state": "targeted" });
    elsewhere.client.patch("/flags/never", changed_otherwise).await.with_status(200);
    let answer = all_unless(&elsewhere.client, acme, &[&tag]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json["metadata"], changed.json["metadata"], "the revision is the same");
    server.stop().await;
    elsewhere.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_directory_is_away_who_says_everything_is_answered() {
    let server = Server::on(Engine::Postgres, &[]).await;
    let client = &server.client;
    fill(client).await;
    client.delete("/flags/live").await.with_status(204);
    let url = server.url();
    let (place, name) = url.rsplit_once('/').unwrap();
    let lets_in = async |lets_in: bool| {
        let statements = format!(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS {lets_in};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        );
        sql(&format!("{place}/postgres"), &statements).await;
    };
    let partly = json!({ "targetingKey": "t-acme" });
    let whole = json!({ "targetingKey": "t-acme", "tenantSlug": "acme", "plan": "pro",
                        "partnerSlug": null });
    let before = all(client, whole.clone()).await;
    lets_in(false).await;
    for answer in [all(client, partly.clone()).await, one(client, "pro-only", partly.clone()).await]
    {
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "5"));
        assert!(answer.json["errorDetails"].is_string());
    }
    let known = one(client, "never", partly.clone()).await.with_status(200);
    assert_eq!(known["value"], false);
    let answer = all(client, whole.clone()).await;
    assert_eq!(answer.json, before.json);
    let known = all_unless(client, whole.clone(), &[before.header("etag")]).await;
    assert_eq!(known.status, 304);
    let one = one(client, "pro-only", whole).await.with_status(200);
    assert_eq!(one["value"], true);
    lets_in(true).await;
    until("the directory is back", async || all(client, partly.clone()).await.status == 200).await;
    server.stop().await;
}

/// Reads a stream up to an event; `None` at its end. Comments are skipped.
async fn next_event(stream: &mut reqwest::Response, rest: &mut String) -> Option<String> {
    loop {
        if let Some((event, after)) = rest.split_once("\n\n") {
            let (event, after) = (event.to_owned(), after.to_owned());
            *rest = after;
            if !event.starts_with(':') {
                return Some(event);
            }
            continue;
        }
        let chunk = stream.chunk().await.ok()??;
        rest.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_stream_tells_of_changes_and_ends_with_the_server() {
    let server = Server::start(&[("DEZKY_SHUTDOWN_TIMEOUT_SECONDS", "300")]).await;
    let client = server.client.clone();
    // The tag consists of its format's version, the flags and the context.
    let flags = async || {
        let answer = all(&client, json!({ "targetingKey": "t" })).await;
        let tag = answer.header("etag").trim_matches('"');
        tag.split_once('-').unwrap().1.rsplit_once('-').unwrap().0.to_owned()
    };
    let open = async |last: Option<&str>| {
        let mut request = client.request(Method::GET, EVENTS);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        response
    };
    let notice = |id: &str| format!("id: {id}\ndata: {{\"type\":\"refetchEvaluation\"}}");
    client.post("/flags", json!({ "key": "first" })).await.with_status(201);
    let now = flags().await;
    let (mut anew, mut anew_rest) = (open(None).await, String::new());
    assert_eq!(next_event(&mut anew, &mut anew_rest).await, Some(notice(&now)));
    let (mut again, mut again_rest) = (open(Some(&now)).await, String::new());
    let by_parameter = client.request(Method::GET, &format!("{EVENTS}?lastEventId={now}"));
    let (mut named, mut named_rest) = (by_parameter.send().await.unwrap(), String::new());
    // Another store's flags with the same revision are different flags.
    let (revision, _) = now.split_once('-').unwrap();
    let other = format!("{revision}-0123456789abcdef");
    let (mut behind, mut behind_rest) = (open(Some(&other)).await, String::new());
    assert_eq!(next_event(&mut behind, &mut behind_rest).await, Some(notice(&now)));

    client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    let then = flags().await;
    assert_ne!(then, now);
    for (stream, rest) in [
        (&mut anew, &mut anew_rest),
        // A client that has seen the flags is notified only of the next change.
        (&mut again, &mut again_rest),
        (&mut named, &mut named_rest),
        (&mut behind, &mut behind_rest),
    ] {
        assert_eq!(next_event(stream, rest).await, Some(notice(&then)));
    }
    let began = Instant::now();
    server.stop().await;
    assert_eq!(next_event(&mut anew, &mut anew_rest).await, None);
    assert!(began.elapsed() < Duration::from_mins(1), "streams delay the shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_have_a_bound() {
    let server = Server::start(&[]).await;
    let mut streams = Vec::new();
    for _ in 0..256 {
        let request = server.client.request(Method::GET, EVENTS);
        let stream = request.send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        streams.push(stream);
    }
    let one_more = server.client.request(Method::GET, EVENTS).send().await.unwrap();
    assert_eq!(one_more.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(one_more.headers()["retry-after"], "5");
    drop(streams);
    until("a slot is free", async || {
        let request = server.client.request(Method::GET, EVENTS);
        request.send().await.unwrap().status() == StatusCode::OK
    })
    .await;
    server.stop().await;
}

fn tenant(id: &str) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_remote_provider_reads_the_server_and_goes_on_without_it() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let client = server.client.with_token(TOKEN);
    fill(&client).await;
    let mut config = RemoteConfig::new(format!("http://{}/", server.running.address()));
    config.poll_interval = Duration::from_millis(100);
    let without = RemoteFlagProvider::new(config.clone(), Arc::new(TokioRuntime)).unwrap();
    let refused = without.resolve_bool_value("always", &tenant("t-acme")).await.unwrap_err();
    assert!(matches!(refused.code, EvaluationErrorCode::General(_)));
    assert_eq!(without.status(), ProviderStatus::STALE);
    assert_eq!(without.failure().unwrap().kind(), ErrorKind::AuthFailed);
    assert!(without.resolve_all(&tenant("t-acme")).await.is_err());

    config.token = Some(OfrepToken::new(TOKEN).unwrap());
    let provider = RemoteFlagProvider::new(config, Arc::new(TokioRuntime)).unwrap();
    let acme = tenant("t-acme");
    let of = async |key: &str, context: &EvaluationContext| {
        provider.resolve_bool_value(key, context).await
    };
    for (key, value, reason) in [
        ("always", true, EvaluationReason::Static),
        ("never", false, EvaluationReason::Disabled),
        ("pro-only", true, EvaluationReason::TargetingMatch),
        ("nobody", false, EvaluationReason::Default),
        ("some", bucket("t-acme", "some") <= 50, EvaluationReason::Split),
    ] {
        let details = of(key, &acme).await.unwrap();
        assert_eq!((details.value, details.reason), (value, Some(reason)), "{key}");
        assert_eq!(details.variant.as_deref(), Some(if value { "on" } else { "off" }));
        assert!(details.flag_metadata.unwrap().values.contains_key("revision"));
    }
    let all = provider.resolve_all(&acme).await.unwrap();
    let mut keys: Vec<_> = all.keys().collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        ["always", "live", "never", "nobody", "nordic", "pro-only", "some", "staging"]
    );
    for key in keys {
        assert_eq!(all.get(key).unwrap().value, of(key, &acme).await.unwrap().value, "{key}");
    }
    assert_eq!(all.get("no-such-flag").unwrap_err().code, EvaluationErrorCode::FlagNotFound);
    assert!(all.revision().is_some() && !all.is_stale() && provider.failure().is_none());
    let unknown = of("no-such-flag", &acme).await.unwrap_err();
    assert_eq!(unknown.code, EvaluationErrorCode::FlagNotFound);
    let keyless = of("some", &EvaluationContext::default()).await.unwrap_err();
    assert_eq!(keyless.code, EvaluationErrorCode::TargetingKeyMissing);
    let long = of("some", &tenant(&"x".repeat(257))).await.unwrap_err();
    assert_eq!(long.code, EvaluationErrorCode::InvalidContext);
    let number = acme.clone().with_custom_field("plan", 7);
    let number = of("pro-only", &number).await.unwrap_err();
    assert_eq!(number.code, EvaluationErrorCode::InvalidContext);
    for context in [EvaluationContext::default(), tenant(&"x".repeat(1 << 20))] {
        assert!(of("always", &context).await.unwrap().value);
        assert!(!of("never", &context).await.unwrap().value);
    }
    let text = provider.resolve_string_value("always", &acme).await.unwrap_err();
    assert_eq!(text.code, EvaluationErrorCode::TypeMismatch);
    let basic = acme.clone().with_custom_field("plan", "basic");
    assert!(!of("pro-only", &basic).await.unwrap().value);

    // The provider follows changes.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let follows = provider.clone();
    let following = tokio::spawn(async move {
        follows
            .run(async {
                let _ = stopped.await;
            })
            .await;
    });
    client.patch("/flags/never", json!({ "state": "on" })).await.with_status(200);
    until("the change", async || of("never", &acme).await.unwrap().value).await;

    // The provider continues without the server.
    server.stop().await;
    until("stale answers", async || {
        let details = of("never", &acme).await.unwrap();
        assert!(details.value);
        details.reason == Some(EvaluationReason::Other("STALE".into()))
    })
    .await;
    assert_eq!(provider.status(), ProviderStatus::STALE);
    let cold = of("never", &tenant("t-basic")).await.unwrap_err();
    assert!(matches!(cold.code, EvaluationErrorCode::General(_)));
    stop.send(()).unwrap();
    following.await.unwrap();
}

/// The folder with the clients installed from the package registries.
fn clients() -> PathBuf {
    let folder = std::env::var_os("DEZKY_TEST_OFREP_CLIENTS").unwrap_or_else(|| {
        panic!("DEZKY_TEST_OFREP_CLIENTS is not set: run the tests by .ci/with-ofrep-clients")
    });
    PathBuf::from(folder)
}

/// Runs a client process against a server until the client exits.
async fn reads_the_server(mut command: tokio::process::Command) {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), &[("DEZKY_OPERATOR_TOKEN", TOKEN)]);
    let client = server.client.with_token(TOKEN);
    fill(&client).await;
    let split = bucket("t-acme", "some") <= 50;
    let output = command
        .env("OFREP_URL", format!("http://{}", server.address))
        .env("OFREP_TOKEN", TOKEN)
        .env("OFREP_SPLIT", split.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_mins(2), output);
    let output = output.await.expect("the client ends").expect("the client starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success() && text(&output.stdout).trim_end().ends_with("all is well"),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    server.stop().await;
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/ofrep").join(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_python_reads_the_server() {
    let mut command = tokio::process::Command::new(clients().join("python/bin/python"));
    command.arg(script("client.py"));
    reads_the_server(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_javascript_read_the_server() {
    let mut command = tokio::process::Command::new("node");
    // Modules are resolved next to the script, or in this folder.
    command.arg(script("client.cjs")).env("NODE_PATH", clients().join("javascript/node_modules"));
    reads_the_server(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_rust_reads_the_server() {
    reads_the_server(tokio::process::Command::new(clients().join("rust-client"))).await;
}
