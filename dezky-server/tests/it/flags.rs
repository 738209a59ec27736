//! Feature flags over HTTP.

use dezky_core::Actor;
use dezky_flags::{Edit, NewFlag, bucket};
use reqwest::Method;
use reqwest::header::IF_MATCH;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Embedder, Engine, Process, Server, in_order, until, verbs};

/// Changes a flag if it has the version that `if_match` names.
async fn patch_if(client: &Client, key: &str, if_match: &str, body: Value) -> Answer {
    let request = client.document(Method::PATCH, &format!("/flags/{key}"), body.to_string());
    client.send(request.header(IF_MATCH, if_match)).await
}

async fn evaluate(client: &Client, query: &str, tenant: &str, environment: Option<&str>) -> Value {
    let body = json!({ "tenantSlug": tenant, "environment": environment });
    client.post(&format!("/flags/evaluate{query}"), body).await.with_status(200)
}

/// All flags and events, which a refused request must not change.
async fn everything(client: &Client) -> (Value, Vec<Value>) {
    (client.get("/flags").await.with_status(200), client.all("").await)
}

pub(crate) async fn a_flag_is_made_changed_killed_removed_and_made_again(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let before = client.get("/flags").await.json["flags"].as_array().unwrap().len();
    let made = client.post("/flags", json!({ "key": "a.b_c-1", "description": "Threads" })).await;
    assert_eq!(made.status, 201);
    assert_eq!((made.header("etag"), made.header("location")), ("\"1\"", "/flags/a.b_c-1"));
    assert_eq!(made.json["state"], "off");
    assert_eq!(made.json["history"][0]["actor"], json!({ "type": "anonymous" }));
    let read = client.get("/flags/a.b_c-1").await;
    assert_eq!((read.header("etag"), &read.json), ("\"1\"", &made.json));
    let listed = client.get("/flags").await.with_status(200);
    assert_eq!(listed["flags"].as_array().unwrap().len(), before + 1);
    assert!(listed["flags"].as_array().unwrap().contains(&made.json));

    let patch = json!({
        "state": "rollout", "pct": 25, "scope": { "plans": ["pro", "basic", "pro"] },
        "note": "first customers",
    });
    let changed = client.patch("/flags/a.b_c-1", patch).await;
    assert_eq!((changed.status.as_u16(), changed.header("etag")), (200, "\"2\""));
    let change = &changed.json["history"][0];
    assert_eq!(change["note"], "first customers");
    assert_eq!(
        change["changes"],
        json!([
            { "field": "state", "from": "off", "to": "rollout" },
            { "field": "pct", "from": 0, "to": 25 },
            { "field": "scope.plans", "from": [], "to": ["basic", "pro"] },
        ])
    );
    let patch = json!({ "scope": { "environments": ["staging"] } });
    let scoped = client.patch("/flags/a.b_c-1", patch).await.with_status(200);
    assert_eq!(scoped["scope"]["plans"], json!(["basic", "pro"]), "axes change one by one");
    assert_eq!((&scoped["version"], &scoped["pct"]), (&json!(3), &json!(25)));

    let killed = client.act("/flags/a.b_c-1/kill").await;
    assert_eq!(killed.header("etag"), "\"4\"");
    assert_eq!((&killed.json["state"], &killed.json["pct"]), (&json!("off"), &json!(0)));
    assert_eq!(killed.json["scope"], scoped["scope"]);
    let again = client.post("/flags/a.b_c-1/kill", json!({ "note": "to be sure" })).await;
    assert_eq!(again.with_status(200), killed.json);

    let removed = client.delete("/flags/a.b_c-1").await;
    assert_eq!((removed.status.as_u16(), &removed.json), (204, &Value::Null));
    client.get("/flags/a.b_c-1").await.problem(404, "not_found");
    client.patch("/flags/a.b_c-1", json!({ "pct": 1 })).await.problem(404, "not_found");
    client.act("/flags/a.b_c-1/kill").await.problem(404, "not_found");
    client.delete("/flags/a.b_c-1").await.problem(404, "not_found");
    assert_eq!(client.get("/flags").await.json["flags"].as_array().unwrap().len(), before);
    // An `If-Match` from before the removal can't match the new flag.
    let anew = client.post("/flags", json!({ "key": "a.b_c-1" })).await.with_status(201);
    assert_eq!((&anew["version"], anew["history"].as_array().unwrap().len()), (&json!(6), 1));

    assert_eq!(
        verbs(client.all("&resourceId=a.b_c-1").await),
        [
            "flag.created",
            "flag.updated",
            "flag.updated",
            "flag.killed",
            "flag.removed",
            "flag.created"
        ]
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_keeps_the_newest_twenty() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    for pct in 1..=21 {
        client.patch("/flags/k", json!({ "pct": pct })).await.with_status(200);
    }
    let flag = client.get("/flags/k").await.with_status(200);
    let history = flag["history"].as_array().unwrap();
    assert_eq!((history.len(), &flag["version"]), (20, &json!(22)));
    assert_eq!(history[0]["changes"][0], json!({ "field": "pct", "from": 20, "to": 21 }));
    assert_eq!(history[19]["changes"][0], json!({ "field": "pct", "from": 1, "to": 2 }));
    assert_eq!(client.all("&resourceId=k").await.len(), 22);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_made_only_on_the_version_that_if_match_names() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    for (version, if_match) in ["1", "\"2\"", " \"3\" ", "*", "5"].into_iter().enumerate() {
        let answer = patch_if(client, "k", if_match, json!({ "pct": version + 1 })).await;
        assert_eq!(answer.with_status(200)["version"], version + 2, "{if_match}");
    }
    let before = everything(client).await;
    for garbage in ["", "W/\"6\"", "\"6", "6\"", "+6", "-6", "6.0", "six", "6, 7", "\"*\"", "0x6"] {
        let answer = patch_if(client, "k", garbage, json!({ "pct": 99 })).await;
        let detail = answer.problem(400, "header_invalid");
        assert!(detail.contains("If-Match") && detail.contains("\"3\""), "{garbage}: {detail}");
        let request = client.request(Method::DELETE, "/flags/k").header(IF_MATCH, garbage);
        client.send(request).await.problem(400, "header_invalid");
    }
    for two in [["6", "6"], ["*", "6"]] {
        let request = client.document(Method::PATCH, "/flags/k", r#"{"pct":99}"#);
        let request = request.header(IF_MATCH, two[0]).header(IF_MATCH, two[1]);
        client.send(request).await.problem(400, "header_invalid");
    }
    let now = client.get("/flags/k").await.with_status(200);
    let huge = u64::MAX.to_string();
    for stale in ["5", "\"7\"", "0", &huge] {
        let answer = patch_if(client, "k", stale, json!({ "pct": 99 })).await;
        answer.problem(412, "version_mismatch");
        assert_eq!(answer.json["current"], now, "{stale}");
        let request = client.request(Method::DELETE, "/flags/k").header(IF_MATCH, stale);
        let answer = client.send(request).await;
        answer.problem(412, "version_mismatch");
        assert_eq!(answer.json["current"]["version"], 6);
    }
    assert_eq!(everything(client).await, before);
    let answer = patch_if(client, "other", "1", json!({ "pct": 1 })).await;
    answer.problem(404, "not_found");
    let request = client.request(Method::DELETE, "/flags/k").header(IF_MATCH, "\"6\"");
    assert_eq!(client.send(request).await.status, 204);
    server.stop().await;
}

pub(crate) async fn of_several_who_read_the_same_version_one_wins(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    server.client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    let editors: Vec<_> = (1..=8)
        .map(|pct| {
            let client = server.client.clone();
            tokio::spawn(async move { patch_if(&client, "k", "1", json!({ "pct": pct })).await })
        })
        .collect();
    let mut won = 0;
    for editor in editors {
        let answer = editor.await.unwrap();
        if answer.status == 200 {
            won += 1;
        } else {
            answer.problem(412, "version_mismatch");
        }
    }
    assert_eq!(won, 1);
    // Without `If-Match`, no change is lost either.
    let editors: Vec<_> = ["plans", "tenantSlugs", "partnerSlugs", "environments"]
        .map(|axis| {
            let client = server.client.clone();
            let body = json!({ "scope": { axis: [axis] } });
            tokio::spawn(async move { client.patch("/flags/k", body).await.with_status(200) })
        })
        .into();
    for editor in editors {
        editor.await.unwrap();
    }
    let flag = server.client.get("/flags/k").await.with_status(200);
    assert_eq!(flag["version"], 6);
    for axis in ["plans", "tenantSlugs", "partnerSlugs", "environments"] {
        assert_eq!(flag["scope"][axis], json!([axis]));
    }
    assert_eq!(server.client.all("&resourceId=k").await.len(), 6);
    server.stop().await;
}

pub(crate) async fn a_key_is_given_once_and_a_patch_without_effect_leaves_no_trace(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    client.post("/flags", json!({ "key": "k", "pct": 5 })).await.with_status(201);
    let before = everything(client).await;
    let answer = client.post("/flags", json!({ "key": "k", "state": "on" })).await;
    assert!(answer.problem(409, "already_exists").contains("k already exists"));
    for nothing in [
        json!({}),
        json!({ "note": "looked at it" }),
        json!({ "pct": 5, "state": "off", "description": "", "scope": { "plans": [] } }),
    ] {
        let answer = client.patch("/flags/k", nothing).await;
        assert_eq!((answer.status.as_u16(), answer.header("etag")), (200, "\"1\""));
    }
    assert_eq!(everything(client).await, before);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_switch_asks_for_no_version() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let new = json!({ "key": "k", "state": "rollout", "pct": 40 });
    client.post("/flags", new).await.with_status(201);
    for (version, if_match) in [(2, "999"), (4, "nonsense")] {
        let body = json!({ "note": "it burns" }).to_string();
        let request = client.document(Method::POST, "/flags/k/kill", body);
        let killed = client.send(request.header(IF_MATCH, if_match)).await.with_status(200);
        assert_eq!((&killed["version"], &killed["pct"]), (&json!(version), &json!(0)));
        assert_eq!(
            (&killed["state"], &killed["history"][0]["note"]),
            (&json!("off"), &json!("it burns"))
        );
        client.patch("/flags/k", json!({ "state": "on", "pct": 40 })).await.with_status(200);
    }
    let kill = json!({ "state": "off", "note": "kill-switch" });
    let killed = patch_if(client, "k", "1", kill).await.with_status(200);
    assert_eq!(
        (&killed["state"], &killed["pct"], &killed["version"]),
        (&json!("off"), &json!(0), &json!(6))
    );
    client.patch("/flags/k", json!({ "state": "on", "pct": 40 })).await.with_status(200);
    // A different note or state is a change as usual.
    client.patch("/flags/k", json!({ "state": "off", "note": "killed" })).await.with_status(200);
    let on = json!({ "state": "on", "note": "kill-switch" });
    assert_eq!(client.patch("/flags/k", on).await.with_status(200)["pct"], 40);

    let events = in_order(client.all("&action=flag.killed").await);
    let notes: Vec<_> = events.iter().map(|e| e["metadata"]["_dezky"]["note"].clone()).collect();
    assert_eq!(notes, ["it burns", "it burns", "kill-switch"]);
    let evidence = &events[2]["metadata"]["_dezky"];
    assert_eq!(evidence["before"], json!({ "state": "on", "pct": 40 }));
    assert_eq!(evidence["after"], json!({ "state": "off", "pct": 0 }));
    server.stop().await;
}

/// Two tenants, one of them a partner's; returns their ids.
async fn tenants(client: &Client) -> [String; 2] {
    let partner = json!({ "slug": "reseller", "name": "Reseller" });
    client.post("/partners", partner).await.with_status(201);
    let acme = json!({ "slug": "acme", "name": "Acme", "plan": "pro", "partnerId": "reseller" });
    let beta = json!({ "slug": "beta", "name": "Beta", "plan": "basic" });
    let mut ids = Vec::new();
    for tenant in [acme, beta] {
        let made = client.post("/tenants", tenant).await.with_status(201);
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    ids.try_into().unwrap()
}

pub(crate) async fn decisions_follow_plan_partner_and_environment_and_say_why(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let [acme, beta] = tenants(client).await;
    for (key, rest) in [
        ("on", json!({ "state": "on" })),
        ("off", json!({ "state": "off", "pct": 100, "scope": { "plans": ["pro"] } })),
        ("nobody", json!({ "state": "targeted" })),
        ("pro", json!({ "state": "targeted", "scope": { "plans": ["pro"] } })),
        ("resold", json!({ "state": "targeted", "scope": { "partnerSlugs": ["reseller"] } })),
        ("beta", json!({ "state": "targeted", "scope": { "tenantSlugs": ["beta"] } })),
        (
            "staging",
            json!({ "state": "rollout", "pct": 100, "scope": { "environments": ["staging"] } }),
        ),
        (
            "both",
            json!({ "state": "targeted", "scope": { "plans": ["pro"], "environments": ["staging"] } }),
        ),
        ("half", json!({ "state": "rollout", "pct": 50 })),
    ] {
        let mut flag = rest;
        flag["key"] = key.into();
        client.post("/flags", flag).await.with_status(201);
    }
    let half = |id: &str| {
        let bucket = bucket(id, "half");
        let way = if bucket < 50 { "in" } else { "out_of" };
        json!({ "value": bucket < 50, "reason": format!("{way}_rollout({bucket})"), "bucket": bucket, "threshold": 50 })
    };
    let plain = |value: bool, reason: &str| json!({ "value": value, "reason": reason });
    let mismatch = |axis: &str, given: Option<&str>| json!({ "value": false, "reason": format!("scope_mismatch({axis})"), "axis": axis, "given": given });
    let staging = |id: &str| {
        let bucket = bucket(id, "staging");
        json!({ "value": true, "reason": format!("in_rollout({bucket})"), "bucket": bucket, "threshold": 100 })
    };
    for (tenant, environment, expected) in [
        (
            "acme",
            Some("staging"),
            json!({
                "on": plain(true, "on"), "off": plain(false, "off"),
                "nobody": plain(false, "empty_scope"), "pro": plain(true, "targeted"),
                "resold": plain(true, "targeted"), "beta": mismatch("tenantSlug", Some("acme")),
                "staging": staging(&acme), "both": plain(true, "targeted"), "half": half(&acme),
            }),
        ),
        (
            "beta",
            None,
            json!({
                "on": plain(true, "on"), "off": plain(false, "off"),
                "nobody": plain(false, "empty_scope"), "pro": mismatch("plan", Some("basic")),
                "resold": mismatch("partnerSlug", None), "beta": plain(true, "targeted"),
                "staging": mismatch("environment", None), "both": mismatch("plan", Some("basic")), "half": half(&beta),
            }),
        ),
    ] {
        let explained = evaluate(client, "?explain=true", tenant, environment).await;
        let values = evaluate(client, "", tenant, environment).await;
        for (key, why) in expected.as_object().unwrap() {
            assert_eq!(&explained[key], why, "{tenant}: {key}");
            assert_eq!(values[key], why["value"], "{tenant}: {key}");
        }
        let all = client.get("/flags").await.json["flags"].as_array().unwrap().len();
        assert_eq!(values.as_object().unwrap().len(), all);
        assert_eq!(evaluate(client, "?explain=false", tenant, environment).await, values);
        assert_eq!(evaluate(client, "?explain=true", tenant, environment).await, explained);
    }
    // The tenant's current state counts, not its former one.
    let detach = json!({ "partnerId": null, "plan": "basic" });
    client.patch("/tenants/acme", detach).await.with_status(200);
    let explained = evaluate(client, "?explain=true", "acme", None).await;
    assert_eq!(explained["resold"], mismatch("partnerSlug", None));
    assert_eq!(explained["pro"], mismatch("plan", Some("basic")));

    let answer = client.post("/flags/evaluate", json!({ "tenantSlug": "nowhere" })).await;
    assert!(answer.problem(404, "not_found").contains("tenantSlug"));
    for (body, word) in [
        (json!({}), "tenantSlug"),
        (json!({ "tenantSlug": 7 }), "tenantSlug"),
        (json!({ "tenantSlug": "acme", "plan": "pro" }), "plan"),
        (json!({ "tenantSlug": "acme", "environment": ["staging"] }), "environment"),
        (json!(["acme", "staging"]), "JSON object"),
    ] {
        let answer = client.post("/flags/evaluate", body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(detail.contains(word), "{body}: {detail}");
    }
    for query in [
        "explain=maybe",
        "explain=1",
        "explain=",
        "explain=True",
        "explain=true&explain=true",
        "why=true",
        "explain=%ff",
    ] {
        let path = format!("/flags/evaluate?{query}");
        let answer = client.post(&path, json!({ "tenantSlug": "acme" })).await;
        answer.problem(400, "query_invalid");
    }
    server.stop().await;
}

pub(crate) async fn a_second_process_decides_alike_and_soon_sees_changes(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    tenants(&server.client).await;
    for n in 0..20 {
        let flag = json!({ "key": format!("f{n}"), "state": "rollout", "pct": 5 * n });
        server.client.post("/flags", flag).await.with_status(201);
    }
    let process = Process::start(folder.path(), &[("DEZKY_STORE", &server.url())]);
    let (here, there) = (&server.client, &process.client);
    for tenant in ["acme", "beta"] {
        let answer = evaluate(here, "?explain=true", tenant, None).await;
        assert_eq!(evaluate(there, "?explain=true", tenant, None).await, answer);
    }
    for (writer, reader) in [(there, here), (here, there), (there, here)] {
        for state in ["on", "off"] {
            writer.patch("/flags/f0", json!({ "state": state })).await.with_status(200);
            until("the other process sees it", async || {
                evaluate(reader, "", "acme", None).await["f0"] == (state == "on")
            })
            .await;
            assert_eq!(reader.get("/flags/f0").await.json["state"], state);
        }
        let new = json!({ "key": "new", "state": "on" });
        writer.post("/flags", new).await.with_status(201);
        let has_new = async |value: Option<bool>| {
            until("the other process sees it", async || {
                let all = evaluate(reader, "", "beta", None).await;
                all.get("new").and_then(Value::as_bool) == value
            })
            .await;
        };
        has_new(Some(true)).await;
        assert_eq!(writer.delete("/flags/new").await.status, 204);
        has_new(None).await;
    }
    // Concurrent edits in both processes lose no change.
    let first = here.get("/flags/f1").await.json["version"].as_u64().unwrap();
    let editors: Vec<_> = [here, there, here, there]
        .into_iter()
        .cloned()
        .enumerate()
        .map(|(n, client)| {
            tokio::spawn(async move {
                for pct in 0..5 {
                    let body = json!({ "description": format!("{n}-{pct}") });
                    client.patch("/flags/f1", body).await.with_status(200);
                }
            })
        })
        .collect();
    for editor in editors {
        editor.await.unwrap();
    }
    assert_eq!(there.get("/flags/f1").await.json["version"], first + 20);
    assert_eq!(here.all("&resourceId=f1").await.len() as u64, first + 20);
    process.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flag_out_of_bounds_is_refused_by_field_and_bound() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client.post("/flags", json!({ "key": "k", "pct": 5 })).await.with_status(201);
    let before = everything(client).await;
    let long = "k".repeat(65);
    for key in ["", "K", "_a", ".a", "-a", "a b", "a/b", "å", "a\n", &long] {
        let answer = client.post("/flags", json!({ "key": key })).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(detail.starts_with("key must be 1 to 64 lower-case"), "{key:?}: {detail}");
    }
    for (body, words) in [
        (json!({ "pct": 1 }), &["key", "1 to 64"][..]),
        (json!({ "key": 7 }), &["key", "string"]),
        (json!({ "key": null }), &["key", "string"]),
        (json!({ "key": "evaluate" }), &["key", "evaluate"]),
        (json!({ "key": "n", "note": "x" }), &["note", "key, description"]),
        (json!({ "key": "n", "version": 3 }), &["version", "key, description"]),
        (json!(["k"]), &["body", "object"]),
        (json!("k"), &["body", "object"]),
        (Value::Null, &["body", "object"]),
    ] {
        let answer = client.post("/flags", body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(words.iter().all(|word| detail.contains(word)), "{body}: {detail}");
    }
    let many: Vec<_> = (0..=1_000).map(|n| format!("t{n}")).collect();
    let values = |value: &str| json!({ "scope": { "plans": ["pro", value] } });
    for (body, words) in [
        (json!({ "pct": -1 }), &["pct", "0 to 100"][..]),
        (json!({ "pct": 101 }), &["pct", "0 to 100"]),
        (json!({ "pct": 256 }), &["pct", "0 to 100"]),
        (json!({ "pct": 12.5 }), &["pct", "whole number"]),
        (json!({ "pct": "25" }), &["pct", "whole number"]),
        (json!({ "pct": null }), &["pct", "whole number"]),
        (json!({ "state": "enabled" }), &["state", "off on targeted rollout"]),
        (json!({ "state": "ON" }), &["state", "off on targeted rollout"]),
        (json!({ "state": true }), &["state", "off on targeted rollout"]),
        (json!({ "description": "d".repeat(1_001) }), &["description", "1000 bytes"]),
        (json!({ "scope": null }), &["scope", "object"]),
        (json!({ "scope": [] }), &["scope", "object"]),
        (json!({ "scope": { "regions": ["eu"] } }), &["scope.regions", "environments"]),
        (json!({ "scope": { "plans": "pro" } }), &["scope.plans", "list"]),
        (json!({ "scope": { "plans": null } }), &["scope.plans", "list"]),
        (json!({ "scope": { "plans": [7] } }), &["scope.plans[0]", "128 bytes"]),
        (values(""), &["scope.plans[1]", "128 bytes"]),
        (values("a\u{0}"), &["scope.plans[1]", "control"]),
        (values(&"p".repeat(129)), &["scope.plans[1]", "128 bytes"]),
        (json!({ "scope": { "tenantSlugs": many } }), &["scope.tenantSlugs", "1000 values"]),
        (json!({ "pct": 6, "colour": "red" }), &["colour", "description"]),
    ] {
        let answer = client.patch("/flags/k", body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(words.iter().all(|word| detail.contains(word)), "{body}: {detail}");
        let mut new = body;
        new["key"] = "new".into();
        let answer = client.post("/flags", new).await;
        assert!(answer.problem(400, "field_invalid").contains(words[0]), "{answer:?}");
    }
    for body in [json!({ "key": "other" }), json!({ "note": "n".repeat(1_001) })] {
        client.patch("/flags/k", body).await.problem(400, "field_invalid");
    }
    for body in
        [json!({ "note": "n".repeat(1_001) }), json!({ "note": 7 }), json!({ "pct": 0 }), json!([])]
    {
        client.post("/flags/k/kill", body).await.problem(400, "field_invalid");
    }
    assert_eq!(everything(client).await, before);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_no_document_is_a_problem() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    let before = everything(client).await;
    let deep = "[".repeat(10_000);
    for (method, path) in [
        (Method::POST, "/flags"),
        (Method::PATCH, "/flags/k"),
        (Method::POST, "/flags/k/kill"),
        (Method::POST, "/flags/k/preview"),
        (Method::POST, "/flags/evaluate"),
        (Method::POST, "/tenants"),
        (Method::PATCH, "/tenants/acme"),
        (Method::POST, "/partners"),
        (Method::PATCH, "/partners/reseller"),
    ] {
        let send =
            async |body: Vec<u8>| client.send(client.document(method.clone(), path, body)).await;
        for body in [&b"{"[..], b"{'key':1}", b"{\"\xff\":1}", b"nothing", deep.as_bytes()] {
            send(body.to_vec()).await.problem(400, "json_invalid");
        }
        if method == Method::PATCH {
            send(b"{} {}".to_vec()).await.problem(400, "json_invalid");
        }
        if path != "/flags/k/kill" {
            send(Vec::new()).await.problem(400, "json_invalid");
        }
        let answer = send(vec![b' '; (1 << 20) + 1]).await;
        let detail = answer.problem(413, "body_too_large");
        assert!(detail.contains("1048576") && !detail.contains("max_body_bytes"), "{detail}");
        for media_type in ["text/plain", "application/x-www-form-urlencoded", "json", "text/json"] {
            let request = client.request(method.clone(), path).header("Content-Type", media_type);
            let answer = client.send(request.body("{}")).await;
            assert!(answer.problem(415, "media_type").contains("application/json"), "{path}");
        }
        let bare = client.request(method.clone(), path).body("{}");
        client.send(bare).await.problem(415, "media_type");
    }
    assert_eq!(everything(client).await, before);
    // Just within the bounds.
    let mut body = br#"{"pct":7}"#.to_vec();
    body.resize(1 << 20, b' ');
    let request = client.request(Method::PATCH, "/flags/k").body(body);
    let request = request.header("Content-Type", "Application/Merge-Patch+JSON; charset=utf-8");
    assert_eq!(client.send(request).await.with_status(200)["pct"], 7);
    server.stop().await;
}

/// A flag with this key could not be reached by any route.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_the_evaluation_is_reserved() {
    let server = Server::start(&[]).await;
    let embedder = Embedder::open(&server).await;
    let by = Edit::by(Actor::user("u-1"));
    for key in ["evaluate", "evaluate.x"] {
        let made = embedder.flags.create(NewFlag::new(key), &by).await;
        let seeded = embedder.flags.seed(&[NewFlag::new(key)], &by).await;
        if key == "evaluate" {
            assert_eq!(made.unwrap_err().code(), "field_invalid");
            assert_eq!(seeded.unwrap_err().code(), "field_invalid");
        } else {
            assert_eq!((made.unwrap().key.as_str(), seeded.unwrap()), (key, 0));
        }
    }
    assert_eq!(server.client.get("/flags").await.json["flags"].as_array().unwrap().len(), 1);
    embedder.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_or_query_that_is_no_text_names_nothing() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    for path in [
        "/flags/%ff",
        "/tenants/%ff",
        "/tenants/%c3/users",
        "/partners/%ff",
        "/partners/%ff/tenants",
    ] {
        client.get(path).await.problem(404, "not_found");
    }
    for path in
        ["/flags/%ff/kill", "/tenants/%ff/suspend", "/tenants/%ff/resume", "/users/%ff/deactivate"]
    {
        client.act(path).await.problem(404, "not_found");
    }
    let webhook = "/ingest/stalwart/%ff/webhook";
    client.post_signed(webhook, "{}").await.problem(404, "not_found");
    for path in ["/flags/%ff", "/tenants/%ff", "/partners/%ff"] {
        client.patch(path, json!({})).await.problem(404, "not_found");
        client.delete(path).await.problem(404, "not_found");
    }
    for path in ["/tenants/a%00", "/flags/a%2Fb", "/flags/%27%20OR%201=1", "/partners/%25"] {
        client.get(path).await.problem(404, "not_found");
    }
    for path in [
        "/audit?q=%ff",
        "/audit?%ff=1",
        "/tenants?cursor=%ff",
        "/partners?cursor=%zz",
        "/users?cursor=%c3",
    ] {
        let detail = client.get(path).await.problem(400, "query_invalid").to_owned();
        assert!(detail.contains("URL-encoded UTF-8"), "{path}: {detail}");
    }
    for path in ["/tenants", "/partners", "/users"] {
        for (query, words) in [
            ("limit=1&limit=1", &["limit", "more than once"][..]),
            ("limit=0", &["limit", "1 to 500"]),
            ("limit=501", &["limit", "1 to 500"]),
            ("limit=1e2", &["limit", "1 to 500"]),
            ("page=2", &["page", "limit", "cursor"]),
        ] {
            let answer = client.get(&format!("{path}?{query}")).await;
            let detail = answer.problem(400, "query_invalid");
            assert!(words.iter().all(|word| detail.contains(word)), "{query}: {detail}");
        }
    }
    client.get("/tenants?status=gone").await.problem(400, "query_invalid");
    client.post("/partners", json!({ "slug": "p", "name": "P" })).await.with_status(201);
    for path in ["/users", "/tenants", "/partners", "/partners/p/tenants", "/audit"] {
        for cursor in ["", "%21", "A", "7.", "a%2Fb"] {
            let answer = client.get(&format!("{path}?cursor={cursor}")).await;
            answer.problem(400, "cursor_invalid");
        }
    }
    client.get("/users?cursor=7").await.problem(400, "cursor_invalid");
    server.stop().await;
}
