//! The scenarios by which the original platform was verified.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use dezky_core::directory::{Edit, Identity, NewUser};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::AppendOptions;
use dezky_core::{Actor, NewEvent, Timestamp};
use dezky_flags::{bucket, seeded_flags};
use dezky_server::testkit::IdentityProvider;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::support::{Embedder, Process, Server, WEBHOOK, in_order, until, verbs};

const TWO_EVENTS: &str = r#"{"events":[
  {"id":"evt-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.failed","data":{"email":"alice@example.com","ip":"203.0.113.7"}},
  {"id":"evt-2","createdAt":"2026-11-21T20:00:05Z","type":"account.created","data":{"username":"admin@example.com","account":"bob@example.com","ip":"203.0.113.8"}}
]}"#;

/// Lines in oCIS's format, written by other programs.
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
    let bytes = HeaderValue::from_bytes(b"\xff\xfe").unwrap();
    client.send(unsigned().header("X-Signature", bytes)).await.problem(401, "signature_invalid");
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

    // The next server continues where this one stopped.
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
    let tenant = json!({ "slug": "beta", "name": "Beta", "plan": "pro" });
    server.client.post("/tenants", tenant).await.with_status(201);
    let client = &server.client;
    until("all of them", async || client.all("").await.len() == 10).await;
    let events = client.all("").await;
    let times: Vec<_> = events.iter().map(|e| e["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    for (source, count) in [("ocis", 6), ("stalwart", 2), ("platform-api", 2)] {
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
        // Without a token there is a warning, which this test does not expect.
        ("DEZKY_OPERATOR_TOKEN", "token-0123456789"),
    ];
    let first = Process::start(folder.path(), &environment);
    until("the first pull", async || first.stderr().contains("stored=6")).await;
    first.stop().await;

    // The largest possible overlap: the whole file is read again.
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
    let request = client.request(Method::GET, "/audit").bearer_auth("token-0123456789");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_suspend_and_resume_a_tenant_flag_rollout_kill_on() {
    let token = "operator-token-0123456789";
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", token)]).await;
    let client = server.client.with_token(token);
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro", "status": "active" });
    client.post("/tenants", tenant).await.with_status(201);
    client.post("/flags", json!({ "key": "new_editor" })).await.with_status(201);

    client.act("/tenants/acme/suspend").await.with_status(200);
    client.act("/tenants/acme/resume").await.with_status(200);
    let rollout = json!({ "state": "rollout", "pct": 25 });
    client.patch("/flags/new_editor", rollout).await.with_status(200);
    client.act("/flags/new_editor/kill").await.with_status(200);
    client.patch("/flags/new_editor", json!({ "state": "on" })).await.with_status(200);

    let events = client.all("&actorId=operator-token").await;
    for event in &events {
        assert_eq!(event["actorType"], "service");
        assert_eq!(event["actorIp"], "127.0.0.1");
    }
    assert_eq!(
        verbs(events)[2..],
        ["tenant.suspended", "tenant.resumed", "flag.updated", "flag.killed", "flag.updated"]
    );
    for (query, expected) in [
        ("&action=tenant.", &["tenant.created", "tenant.suspended", "tenant.resumed"][..]),
        ("&action=tenant.s", &["tenant.suspended"]),
        ("&action=flag.u", &["flag.updated", "flag.updated"]),
        ("&action=flag.killed", &["flag.killed"]),
        ("&q=RESUM", &["tenant.resumed"]),
        ("&q=new_ed&action=flag.k", &["flag.killed"]),
        ("&q=acme", &["tenant.created", "tenant.suspended", "tenant.resumed"]),
        ("&q=nobody", &[]),
    ] {
        assert_eq!(verbs(client.all(query).await), expected, "{query}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_ten_flags_rollout_kill_evaluate_twice_create_and_delete() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let embedder = Embedder::open(&server).await;
    // A server that seeds by itself has them already: seeding again adds nothing.
    for _ in 0..2 {
        let by = dezky_flags::Edit::by(Actor::system());
        embedder.flags.seed(&seeded_flags(), &by).await.unwrap();
        let listed = client.get("/flags").await.with_status(200);
        let flags = listed["flags"].as_array().unwrap();
        assert_eq!(flags.len(), 10);
        assert!(
            flags.iter().all(|flag| flag["state"] == "off" && flag["version"] == 1),
            "{listed}"
        );
    }
    embedder.close().await;
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro" });
    let tenant = client.post("/tenants", tenant).await.with_status(201);
    let id = tenant["id"].as_str().unwrap();
    let evaluate = async |client: &crate::support::Client| {
        client.post("/flags/evaluate", json!({ "tenantSlug": "acme" })).await.with_status(200)
    };

    let rollout = json!({ "state": "rollout", "pct": 25 });
    client.patch("/flags/mail_undo_send", rollout).await.with_status(200);
    client.patch("/flags/gdpr_export_v2", json!({ "state": "on" })).await.with_status(200);
    client
        .patch("/flags/partner_portal", json!({ "state": "on", "pct": 60 }))
        .await
        .with_status(200);
    let killed = client.act("/flags/partner_portal/kill").await.with_status(200);
    assert_eq!((&killed["state"], &killed["pct"]), (&json!("off"), &json!(0)));
    client.post("/flags", json!({ "key": "short_lived", "state": "on" })).await.with_status(201);
    assert_eq!(evaluate(client).await["short_lived"], true);
    assert_eq!(client.delete("/flags/short_lived").await.status, 204);

    let answer = evaluate(client).await;
    let values = answer.as_object().unwrap();
    assert_eq!(values.len(), 10);
    for (key, value) in values {
        let expected = match key.as_str() {
            "gdpr_export_v2" => true,
            "mail_undo_send" => bucket(id, "mail_undo_send") < 25,
            _ => false,
        };
        assert_eq!(*value, Value::Bool(expected), "{key}");
    }
    assert_eq!(evaluate(client).await, answer);

    // Everything is still stored after a restart.
    let server = Server::start_in(server.stop().await, &[]).await;
    let client = &server.client;
    assert_eq!(evaluate(client).await, answer);
    let flag = client.get("/flags/mail_undo_send").await.with_status(200);
    assert_eq!((&flag["state"], &flag["pct"]), (&json!("rollout"), &json!(25)));
    let history = flag["history"].as_array().unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(
        history[0]["changes"],
        json!([
            { "field": "state", "from": "off", "to": "rollout" },
            { "field": "pct", "from": 0, "to": 25 },
        ])
    );
    let flag = client.get("/flags/partner_portal").await.with_status(200);
    assert_eq!(flag["history"].as_array().unwrap().len(), 3);
    client.get("/flags/short_lived").await.problem(404, "not_found");
    assert_eq!(
        verbs(client.all("&resourceId=short_lived").await),
        ["flag.created", "flag.removed"]
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_partner_created_twice() {
    let server = Server::start(&[]).await;
    let partner = json!({ "slug": "reseller", "name": "Reseller", "domain": "reseller.example" });
    let made = server.client.post("/partners", partner.clone()).await.with_status(201);
    assert_eq!(made["slug"], "reseller");
    let answer = server.client.post("/partners", partner).await;
    assert!(answer.problem(409, "already_exists").contains("already exists"));
    assert_eq!(server.client.get("/partners").await.json["partners"].as_array().unwrap().len(), 1);
    assert_eq!(server.client.all("&partnerSlug=reseller").await.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_portal_token_on_a_partner_mutation() {
    let provider = IdentityProvider::start().await.unwrap();
    let issuer = provider.issuer();
    let server = Server::start(&[
        ("AUTHENTIK_ISSUER", &issuer),
        ("AUTHENTIK_AUDIENCE", "dezky-portal,dezky-operator"),
    ])
    .await;
    let directory = &server.running.platform().directory;
    let gus = NewUser { platform_admin: true, ..NewUser::new(&*issuer, "gus") };
    directory.create_user(gus, &Edit::by(Actor::system())).await.unwrap();
    let acme = dezky_core::directory::NewTenant::new("acme", "Acme", "pro");
    directory.create_tenant(acme, &Edit::by(Actor::system())).await.unwrap();
    let client = |audience: &str| {
        server.client.with_token(&provider.access_token("gus").claim("aud", audience).sign())
    };
    let portal = client("dezky-portal");
    let refused = portal.post("/partners", json!({ "slug": "reseller", "name": "Reseller" })).await;
    assert!(refused.problem(403, "operator_required").contains("operator-scoped token"));

    let operator = client("dezky-operator");
    operator.patch("/tenants/acme", json!({ "status": "active" })).await;
    operator.post("/flags", json!({ "key": "chat.threads" })).await.with_status(201);
    operator.act("/tenants/acme/suspend").await.with_status(200);
    operator.act("/tenants/acme/resume").await.with_status(200);
    let rollout = json!({ "state": "rollout", "pct": 25 });
    operator.patch("/flags/chat.threads", rollout).await.with_status(200);
    operator.act("/flags/chat.threads/kill").await.with_status(200);
    operator.patch("/flags/chat.threads", json!({ "state": "on" })).await.with_status(200);
    let events = in_order(operator.all("").await);
    let five = &events[events.len() - 5..];
    assert_eq!(
        verbs(five.to_vec()),
        ["tenant.suspended", "tenant.resumed", "flag.updated", "flag.killed", "flag.updated"]
    );
    for event in five {
        assert_eq!(event["actorEmail"], "gus@acme.example", "{event}");
        assert_eq!(
            (&event["actorType"], &event["actorIp"]),
            (&json!("operator"), &json!("127.0.0.1"))
        );
    }
    let has_partner =
        events.iter().any(|event| event["action"].as_str().unwrap().starts_with("partner."));
    assert!(!has_partner);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_detach_a_partner_field_is_gone() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let partner = json!({ "slug": "reseller", "name": "Reseller" });
    client.post("/partners", partner).await.with_status(201);
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro", "partnerId": "reseller" });
    let tenant = client.post("/tenants", tenant).await.with_status(201);
    assert!(tenant["partnerId"].is_string());
    let detached = client.patch("/tenants/acme", json!({ "partnerId": null })).await;
    let detached = detached.with_status(200);
    let read = client.get("/tenants/acme").await.with_status(200);
    let listed = client.get("/tenants").await.with_status(200);
    for document in [&detached, &read, &listed["tenants"][0]] {
        assert!(!document.as_object().unwrap().contains_key("partnerId"), "{document}");
    }
    let event = in_order(client.all("").await).pop().unwrap();
    let evidence = &event["metadata"]["_dezky"];
    assert_eq!(evidence["before"]["partnerId"], tenant["partnerId"]);
    assert_eq!(evidence["after"].get("partnerId"), None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_executing_user_to_tenant() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    std::fs::write(&path, "").unwrap();
    let environment = [
        ("OCIS_AUDIT_LOG_PATH", path.to_str().unwrap().to_owned()),
        ("DEZKY_OCIS_POLL_SECONDS", "1".to_owned()),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let server = Server::start_in(folder, &environment).await;
    let client = &server.client;
    let mut ids = Vec::new();
    for slug in ["acme", "beta"] {
        let tenant = json!({ "slug": slug, "name": slug, "plan": "pro" });
        let tenant = client.post("/tenants", tenant).await.with_status(201);
        ids.push(tenant["id"].as_str().unwrap().to_owned());
    }
    let embedder = Embedder::open(&server).await;
    for (subject, tenant_ids) in [("alice", &ids[..1]), ("both", &ids[..])] {
        let user = NewUser {
            identities: vec![Identity { system: "ocis".into(), id: format!("id-of-{subject}") }],
            tenant_ids: tenant_ids.to_vec(),
            ..NewUser::new("https://id.example", subject)
        };
        embedder.directory.create_user(user, &Edit::by(Actor::system())).await.unwrap();
    }
    embedder.close().await;

    let line = |subject: &str, space: &str| {
        format!(
            r#"{{"type":"FileUploaded","timestamp":"2026-11-21T23:59:56Z","executingUser":{{"id":"id-of-{subject}"}},"spaceName":"{space}","path":"/{subject}"}}"#
        )
    };
    let lines = [
        line("alice", "Alice"),
        line("both", "Both"),
        line("nobody", "Nobody"),
        line("both", "beta"),
    ];
    append(&path, &lines.each_ref().map(String::as_str));
    until("all of them", async || client.all("&source=ocis").await.len() == 4).await;
    let found: Vec<_> = in_order(client.all("&source=ocis").await)
        .iter()
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            assert!(event["actorId"].as_str().unwrap().starts_with("id-of-"), "{event}");
            (text(&event["tenantSlug"]), text(&event["metadata"]["_dezky"]["tenantBy"]))
        })
        .collect();
    let expected = [("acme", "user"), ("-", "none"), ("-", "none"), ("beta", "space_name")];
    assert_eq!(found, expected.map(|(slug, by)| (slug.to_owned(), by.to_owned())));
    assert_eq!(client.all("&source=ocis&tenantSlug=acme").await.len(), 1);
    server.stop().await;
}
