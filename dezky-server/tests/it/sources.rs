//! Declared sources: configuration, signed posts and files, over HTTP.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use dezky_ingest::signature::Secret;
use dezky_server::Settings;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Answer, SECRET, Server, WEBHOOK, program, refusal, stdout, until};

const SHOP: &str = r#"
[sources.shop]
path = "@/shop.ndjson"
poll_seconds = 1

[sources.shop.map]
id = "/uuid"
at = "/time"
action = "/event"
actions = { "LOGIN" = "user.signed_in" }
outcome = "/ok"
outcomes = { "false" = "denied" }
actor = { id = "/user/id", email = "/user/email", ip = "/user/ip" }
resource = { type = "order", id = "/order" }
tenant = "/shop"
tenant_domain = "/user/email"
skip = ["ping"]
redact = ["/user/phone"]

[sources."acme.billing"]
secret_file = "@/billing-secret"
map = { action = "/type", action_prefix = "billing" }
"#;

/// Starts a server with the sources in `toml`, in which `@` stands for its folder.
async fn start_in(folder: TempDir, toml: &str, more: &[(&str, &str)]) -> Server {
    let at = folder.path().display().to_string();
    std::fs::write(folder.path().join("billing-secret"), "billing-secret-1\n").unwrap();
    let path = folder.path().join("dezky.toml");
    std::fs::write(&path, toml.replace('@', &at)).unwrap();
    let store = format!("sqlite://{at}/audit.db");
    let set = [
        ("DEZKY_LISTEN", "127.0.0.1:0"),
        ("DEZKY_STORE", &store),
        ("STALWART_WEBHOOK_SECRET", SECRET),
        ("DEZKY_SOURCE_SHOP_SECRET", SECRET),
    ];
    let set = set.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into()));
    let config = Settings::load(Some(&path), set, None).unwrap().config().unwrap();
    Server::with(config, folder).await
}

async fn start() -> Server {
    start_in(tempfile::tempdir().unwrap(), SHOP, &[]).await
}

fn order(uuid: &str) -> Value {
    json!({
        "uuid": uuid, "time": "2026-11-21T20:12:21.123Z", "event": "OrderPaid",
        "user": {"id": 7, "email": "alice@acme.example", "ip": "203.0.113.7:4711", "phone": "S3CRET"},
        "order": "o-1", "shop": "acme", "apiKey": "S3CRET",
    })
}

async fn of_source(server: &Server, source: &str) -> Vec<Value> {
    server.client.all(&format!("&source={source}")).await
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_post_becomes_events() {
    let server = start().await;
    let tenant = json!({"slug": "acme", "name": "Acme", "plan": "pro"});
    server.client.post("/tenants", tenant).await.with_status(201);
    let body = json!([order("e-1"), {"event": "ping"}, {"no": "event"}]).to_string();
    let path = "/ingest/shop/webhook";
    for _ in 0..2 {
        let answer = server.client.post_signed(path, &body).await;
        assert_eq!(answer.with_status(200), json!({"received": 2}), "also the second time");
    }
    let events = of_source(&server, "shop").await;
    assert_eq!(events.len(), 1);
    let event = &events[0];
    for (field, value) in [
        ("action", "shop.order_paid"),
        ("externalId", "e-1"),
        ("at", "2026-11-21T20:12:21.123Z"),
        ("actorType", "user"),
        ("actorId", "7"),
        ("actorEmail", "alice@acme.example"),
        ("actorIp", "203.0.113.7"),
        ("resourceType", "order"),
        ("resourceId", "o-1"),
        ("tenantSlug", "acme"),
        ("outcome", "success"),
    ] {
        assert_eq!(event[field], value, "{field}: {event}");
    }
    assert_eq!(event["metadata"]["_dezky"]["tenantBy"], "mapping");
    assert_eq!(event["metadata"]["user"]["phone"], "[redacted]");
    let all = server.client.all("").await;
    assert!(!json!(all).to_string().contains("S3CRET"));
    assert_eq!(server.client.all("&action=ingest.quarantined").await.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mended_map_reads_leaves_the_quarantine() {
    let server = start().await;
    let body = json!([{"uuid": "e-1", "verb": "OrderPaid"}]).to_string();
    let answer = server.client.post_signed("/ingest/shop/webhook", &body).await;
    assert_eq!(answer.with_status(200), json!({"received": 1}));
    assert!(of_source(&server, "shop").await.is_empty());
    let folder = server.stop().await;

    let config = folder.path().join("dezky.toml");
    let store = format!("sqlite://{}/audit.db", folder.path().display());
    let retry = || {
        let at = ["quarantine", "--config", config.to_str().unwrap(), "--store", &store];
        program(&[&at[..], &["retry", "--all"]].concat()).output().unwrap()
    };
    let stays = retry();
    assert!(stdout(&stays).contains("stays: still no_action"), "{stays:?}");
    let mended = SHOP.replace(r#"action = "/event""#, r#"action = "/verb""#);
    let server = start_in(folder, &mended, &[]).await;
    let released = retry();
    assert_eq!(released.status.code(), Some(0), "{released:?}");
    let events = of_source(&server, "shop").await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["action"], "shop.order_paid");
    // Sent again, it counts as the same event.
    let answer = server.client.post_signed("/ingest/shop/webhook", &body).await;
    assert_eq!(answer.with_status(200), json!({"received": 1}));
    assert_eq!(of_source(&server, "shop").await.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_source_has_its_own_secret_and_path() {
    let server = start().await;
    let client = &server.client;
    let body = r#"{"type":"InvoiceSent"}"#;
    let signed = async |path: &str, secret: &str| -> Answer {
        let signature = Secret::new(secret).unwrap().sign_hex(body.as_bytes());
        let request = client.request(Method::POST, path).header("X-Signature", signature);
        client.send(request.body(body)).await
    };
    let billing = "/ingest/acme.billing/webhook";
    for secret in [SECRET, "billing-secret-1\n"] {
        signed(billing, secret).await.problem(401, "signature_invalid");
    }
    let unsigned = client.send(client.request(Method::POST, billing).body(body)).await;
    unsigned.problem(401, "signature_invalid");
    assert!(client.all("").await.is_empty(), "nothing was written");
    let answer = signed(billing, "billing-secret-1").await;
    assert_eq!(answer.with_status(200), json!({"received": 1}));
    assert_eq!(of_source(&server, "acme.billing").await[0]["action"], "billing.invoice_sent");

    for unknown in ["/ingest/other/webhook", "/ingest/ocis/webhook", "/ingest/authentik/webhook"] {
        client.post_signed(unknown, body).await.problem(404, "not_found");
    }
    client.get(billing).await.problem(405, "method_not_allowed");
    // Stalwart's paths still work.
    let mail = r#"{"events":[{"id":"1","type":"auth.success","data":{}}]}"#;
    client.post_signed("/ingest/stalwart/webhook", mail).await.with_status(200);
    assert_eq!(of_source(&server, "stalwart").await.len(), 1);
    client.post_signed("/ingest/stalwart/shop/webhook", mail).await.problem(404, "not_found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_have_bounds() {
    let server =
        start_in(tempfile::tempdir().unwrap(), SHOP, &[("DEZKY_MAX_BODY_BYTES", "50000")]).await;
    let path = "/ingest/shop/webhook";
    let many = format!("[{}]", vec!["{}"; 10_001].join(","));
    let answer = server.client.post_signed(path, &many).await;
    assert!(answer.problem(413, "too_large").contains("10000"));
    let large = format!("[\"{}\"]", "x".repeat(50_000));
    server.client.post_signed(path, &large).await.problem(413, "body_too_large");
    assert!(server.client.all("").await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_followed_over_rotation_and_restarts() {
    let server = start().await;
    let file = server.folder.path().join("shop.ndjson");
    let wait = async |server: &Server, count: usize| {
        let there = async || of_source(server, "shop").await.len() == count;
        until("the events of the file", there).await;
    };
    append(&file, &format!("{}\n{}\n{{\"event\":\"LOGIN\"", order("e-1"), r#"{"event":"ping"}"#));
    wait(&server, 1).await;
    append(&file, ",\"ok\":false}\nnot JSON, password=S3CRET\n");
    wait(&server, 2).await;
    std::fs::rename(&file, server.folder.path().join("shop.ndjson.1")).unwrap();
    append(&file, &format!("{}\n", order("e-2")));
    wait(&server, 3).await;
    let folder = server.stop().await;

    append(&file, &format!("{}\n{}\n", order("e-3"), order("e-1")));
    let server = start_in(folder, SHOP, &[]).await;
    wait(&server, 4).await;
    let login = server.client.all("&action=shop.user.signed_in").await;
    assert_eq!((login.len(), &login[0]["outcome"]), (1, &json!("denied")));
    assert!(login[0]["externalId"].as_str().unwrap().starts_with("line1:"));
    assert_eq!(server.client.all("&action=ingest.quarantined").await.len(), 1);
    assert!(!json!(server.client.all("").await).to_string().contains("S3CRET"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_in_says_how_it_is_doing() {
    let token = "operator-token-0123456789";
    let folder = tempfile::tempdir().unwrap();
    let server = start_in(folder, SHOP, &[("DEZKY_OPERATOR_TOKEN", token)]).await;
    server.client.get("/ingest").await.problem(401, "unauthorized");
    let client = server.client.with_token(token);
    let find = async |name: &str, kind: &str| -> Value {
        let listed = client.get("/ingest").await.with_status(200);
        assert_eq!(listed["workersEnabled"], true);
        let sources = listed["sources"].as_array().unwrap();
        assert_eq!(sources.len(), 4, "{sources:?}");
        let is_it = |source: &&Value| source["name"] == name && source["kind"] == kind;
        sources.iter().find(is_it).unwrap_or_else(|| panic!("{name} {kind}")).clone()
    };
    let quiet = find("stalwart", "webhook").await;
    assert_eq!((&quiet["lastSuccess"], &quiet["lastError"]), (&Value::Null, &Value::Null));

    let body = json!([order("e-1"), {"no": "event"}]).to_string();
    for _ in 0..2 {
        server.client.post_signed("/ingest/shop/webhook", &body).await.with_status(200);
    }
    let unsigned = server.client.request(Method::POST, "/ingest/shop/webhook").body("{}");
    server.client.send(unsigned).await.problem(401, "signature_invalid");
    let posts = find("shop", "webhook").await;
    assert_eq!(
        posts["counts"],
        json!({
            "accepted": 2, "refused": 1, "stored": 1, "duplicates": 1, "conflicts": 0,
            "quarantined": 1, "undated": 0, "unknownOutcomes": 0, "unresolved": 0, "spooled": 0,
        })
    );
    assert_eq!(posts["lastError"]["code"], "signature_invalid");
    assert!(posts["lastSuccess"].is_string());

    append(&server.folder.path().join("shop.ndjson"), &format!("{}\n", order("e-2")));
    let taken = async || find("shop", "file").await["counts"]["stored"] == 1;
    until("the count of the file", taken).await;
    let file = find("shop", "file").await;
    assert_eq!((&file["state"], &file["lastError"]), (&json!("running"), &Value::Null));
    server.stop().await;
}

/// The refusal of `config check` for a file and an environment.
fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dezky.toml");
    std::fs::write(&path, text).unwrap();
    let output = program(&["config", "check", "--config", path.to_str().unwrap()])
        .current_dir(folder.path())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    refusal(&output, 2)
}

#[test]
fn mistakes_are_named_with_key_line_and_fix() {
    let shop = |rest: &str| format!("[sources.shop]\npath = \"x\"\n{rest}");
    for (text, line, words) in [
        ("sources = 1".to_owned(), 1, &["sources", "[sources.shop]"][..]),
        ("[sources]\nshop = 1".into(), 2, &["sources.shop", "must be a table"]),
        (
            "[sources.shop]\n[sources.shop.map]\naction=\"/a\"".into(),
            1,
            &[
                "sources.shop",
                "neither a secret nor a path",
                "DEZKY_SOURCE_SHOP_SECRET",
                "secret_file",
            ],
        ),
        (shop(""), 1, &["sources.shop.map.action", "is not set", "action = \"/event\""]),
        (shop("pth = 1"), 3, &["sources.shop.pth", "did you mean path"]),
        (shop("map = 1"), 3, &["sources.shop.map", "a table"]),
        (
            shop("secret = \"p4ss\""),
            3,
            &["sources.shop.secret", "DEZKY_SOURCE_SHOP_SECRET", "secret_file"],
        ),
        (
            shop("poll_seconds = 0\nmap.action = \"/a\""),
            3,
            &["sources.shop.poll_seconds", "1 to 3600"],
        ),
        (
            shop("max_line_bytes = 1\nmap.action = \"/a\""),
            3,
            &["sources.shop.max_line_bytes", "1024"],
        ),
        (
            shop("secret_file = \"/nowhere/p\"\nmap.action = \"/a\""),
            3,
            &["sources.shop.secret_file", "/nowhere/p"],
        ),
        (
            shop("[sources.shop.map]\nacton = \"/a\""),
            4,
            &["sources.shop.map", "unknown field", "action"],
        ),
        (
            shop("[sources.shop.map]\naction = \"/a\"\nid = 7"),
            5,
            &["sources.shop.map.id", "expected a string"],
        ),
        (
            shop("[sources.shop.map]\naction = \"/a\"\n\nat = \"time\""),
            6,
            &["sources.shop.map.at", "JSON pointer"],
        ),
        (
            shop(
                "[sources.shop.map]\naction = \"/a\"\n[sources.shop.map.actor]\nid = \"$.user.id\"",
            ),
            6,
            &["sources.shop.map.actor.id", "write /user/id"],
        ),
        (
            shop("[sources.shop.map]\naction = \"/a\"\n[sources.shop.map.actor]\ntype = \"robot\""),
            6,
            &["sources.shop.map.actor.type", "anonymous"],
        ),
        (
            shop(
                "[sources.shop.map]\naction = \"/a\"\noutcome = \"/o\"\noutcomes = { \"1\" = \"bad\" }",
            ),
            6,
            &["sources.shop.map.outcomes.1", "success"],
        ),
        (
            shop("[sources.shop.map]\naction = \"/a\"\nredact = [\"/x\", \"y\"]"),
            5,
            &["map.redact[1]", "JSON pointer"],
        ),
        (shop("[sources.shop.map]\naction = 1.5"), 4, &["sources.shop.map.action", "a text"]),
        (
            "[sources.shop]\nsecret_files = []\npoll_seconds = 5\nmap.action = \"/a\"".into(),
            3,
            &["sources.shop.poll_seconds", "set path"],
        ),
        (
            shop("map.action = \"/a\"\n[sources.shop.signature]\nscheme = \"hub\""),
            5,
            &["sources.shop.signature.scheme", "github", "standard-webhooks"],
        ),
        (
            shop("map.action = \"/a\"\n[sources.shop.signature]\nheadr = \"X\""),
            5,
            &["sources.shop.signature", "unknown field", "header"],
        ),
        (
            shop("map.action = \"/a\"\n[sources.shop.signature]\nsigned = \"{time}\""),
            5,
            &["sources.shop.signature.signed", "{timestamp}"],
        ),
        (
            shop("[sources.shop.map]\naction = \"/a\"\nskip = [\"x\", { at = \"/s\" }]"),
            5,
            &["sources.shop.map.skip[1]", "in or not_in"],
        ),
        (
            "[sources.ocis]\npath = \"x\"\nmap.action = \"/a\"".into(),
            1,
            &["sources.ocis", "choose another"],
        ),
        (
            "[sources.\"stalwart:eu\"]\npath = \"x\"\nmap.action = \"/a\"".into(),
            1,
            &["stalwart:eu", "choose"],
        ),
        (
            "[sources.Shop]\npath = \"x\"\nmap.action = \"/a\"".into(),
            1,
            &["sources.Shop", "lower-case"],
        ),
    ] {
        let said = refused(&text, &[]);
        assert!(said.contains(&format!("dezky.toml line {line})")), "{line}: {said}");
        assert!(!said.contains("p4ss"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    let two = "[sources.a-b]\nmap.action = \"/a\"\n[sources.a_b]\nmap.action = \"/a\"";
    for (text, variable, value, words) in [
        ("", "DEZKY_SOURCE_SHOP_SECRET", "x", &["[sources.shop]"][..]),
        (two, "DEZKY_SOURCE_A_B_SECRET", "x", &["a-b", "a_b", "secret_file"]),
        (
            "[sources.shop]\nmap.action = \"/a\"",
            "DEZKY_SOURCE_SHOP_SECRET",
            "",
            &["DEZKY_SOURCE_SHOP_SECRET", "empty"],
        ),
        ("", "DEZKY_SOURCE_SHOP", "x", &["DEZKY_SOURCE_SHOP", "is not a variable"]),
        (
            "[sources.shop]\npath = \"/\"\nmap.action = \"/a\"",
            "DEZKY_LOG",
            "info",
            &["sources.shop.path", "folder"],
        ),
    ] {
        let said = refused(text, &[(variable, value)]);
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn what_is_declared_is_shown_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dezky.toml");
    std::fs::write(folder.path().join("billing-secret"), "billing-secret-1").unwrap();
    std::fs::write(&path, SHOP.replace('@', &folder.path().display().to_string())).unwrap();
    let output = program(&["config", "check", "--json", "--config", path.to_str().unwrap()])
        .current_dir(folder.path())
        .env("DEZKY_SOURCE_SHOP_SECRET", "p4ss")
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    assert!(!text.contains("p4ss") && !text.contains("billing-secret-1"), "{text}");
    assert!(text.contains("sources.shop.map") && text.contains("user.signed_in"), "{text}");
    assert!(text.contains("sources.acme.billing.secret_file"), "{text}");

    // The example names every key, and is valid as it is.
    let example = stdout(&program(&["config", "example"]).output().unwrap());
    let start = example.find("# [sources.shop]").expect("an example");
    let uncommented: String = example[start..]
        .lines()
        .map(|line| line.trim_start_matches("# ").to_owned() + "\n")
        .collect();
    let secret = folder.path().join("billing-secret").display().to_string();
    let text =
        uncommented.replace("/run/secrets/shop-old", &secret).replace("/run/secrets/shop", &secret);
    std::fs::write(&path, text).unwrap();
    let output = program(&["config", "check", "--config", path.to_str().unwrap()])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_the_tenants_however_its_domain_is_spelled() {
    let server = start().await;
    let new =
        json!({"slug": "buch", "name": "Bücher", "plan": "pro", "domains": ["Bücher.Example."]});
    let tenant = server.client.post("/tenants", new).await.with_status(201);
    assert_eq!(tenant["domains"], json!(["xn--bcher-kva.example"]));
    let again =
        json!({"slug": "b2", "name": "B", "plan": "pro", "domains": ["xn--bcher-kva.example"]});
    server.client.post("/tenants", again).await.problem(409, "already_exists");
    let names =
        ["x@bücher.example", "X@BÜCHER.example.", "x@xn--bcher-kva.example", "x@bücher。example"];
    for (n, name) in names.into_iter().enumerate() {
        let mut event = order(&format!("e-{n}"));
        event["user"]["email"] = json!(name);
        event["shop"] = Value::Null;
        let body = json!([event]).to_string();
        server.client.post_signed("/ingest/shop/webhook", &body).await.with_status(200);
        let body = json!([{
            "type": "auth.success", "createdAt": format!("2026-11-21T20:12:2{n}Z"),
            "data": {"accountName": name},
        }]);
        let path = "/ingest/stalwart/webhook";
        server.client.post_signed(path, &body.to_string()).await.with_status(200);
    }
    for source in ["shop", "stalwart"] {
        let events = of_source(&server, source).await;
        assert_eq!(events.len(), names.len());
        assert!(events.iter().all(|event| event["tenantSlug"] == "buch"), "{events:?}");
    }
    server.stop().await;
}

const SENDERS: &str = r#"
[sources.git]
secret_file = "@/git-secret"
signature = { scheme = "github" }
map = { action = "/action" }

[sources.pay]
secret_file = "@/pay-secret"
signature = { scheme = "stripe", tolerance_seconds = 600 }
map = { action = "/type", id = "/id" }

[sources.standard]
secret_file = "@/standard-secret"
signature = { scheme = "standard-webhooks" }
map = { action = "/type" }

[sources.kube]
secret_file = "@/git-secret"

[sources.kube.map]
action = "/verb"
id = ["/auditID", "/stage"]
events = "/items"
skip = [{ at = "/stage", in = ["RequestReceived"] }]
"#;

async fn senders() -> Server {
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [
        ("git-secret", "git-secret-0123456789"),
        ("pay-secret", "whsec_taken_as_it_is"),
        ("standard-secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ] {
        std::fs::write(folder.path().join(name), secret).unwrap();
    }
    let mut all = SENDERS.to_owned();
    all.push_str(SHOP);
    start_in(folder, &all, &[]).await
}

fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_sign_as_they_do() {
    let server = senders().await;
    let client = &server.client;
    let post = async |name: &str, lines: &[(&str, String)], body: &str| -> Answer {
        let mut request = client.request(Method::POST, &format!("/ingest/{name}/webhook"));
        for (name, value) in lines {
            request = request.header(*name, value);
        }
        client.send(request.body(body.to_owned())).await
    };
    let body = r#"{"action":"opened","type":"charge.failed","id":"evt_1"}"#;
    let git = Secret::new("git-secret-0123456789").unwrap();
    let github = format!("sha256={}", git.sign_hex(body.as_bytes()));
    let header = "X-Hub-Signature-256";
    post("git", &[(header, github.clone())], body).await.with_status(200);
    post("git", &[("X-Signature", github.clone())], body).await.problem(401, "signature_invalid");
    post("git", &[(header, github.clone())], "{}").await.problem(401, "signature_invalid");
    let bytes = HeaderValue::from_bytes(b"sha256=\xff").unwrap();
    let request = client.request(Method::POST, "/ingest/git/webhook").header(header, bytes);
    client.send(request.body(body)).await.problem(401, "signature_invalid");

    let (now, pay) = (seconds(), Secret::new("whsec_taken_as_it_is").unwrap());
    let stripe = |at: u64| {
        let v1 = pay.sign_hex(format!("{at}.{body}").as_bytes());
        [("Stripe-Signature", format!("t={at},v1={v1},v0={}", "0".repeat(64)))]
    };
    post("pay", &stripe(now - 500), body).await.with_status(200);
    let late = post("pay", &stripe(now - 700), body).await;
    let late = late.problem(401, "signature_invalid");
    assert!(late.contains("600 s"), "{late}");

    let standard = Secret::standard("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let signature = standard.sign_base64(format!("msg_1.{now}.{body}").as_bytes());
    let lines = [
        ("webhook-id", "msg_1".to_owned()),
        ("webhook-timestamp", now.to_string()),
        ("webhook-signature", format!("v1,bm9uZQ== v1,{signature}")),
    ];
    post("standard", &lines, body).await.with_status(200);
    post("standard", &lines[1..], body).await.problem(401, "signature_invalid");

    // Two header lines, of which the second matches; also for Stalwart.
    let other = Secret::new("the old one").unwrap();
    let signed = |secret: &Secret, body: &str| ("X-Signature", secret.sign_base64(body.as_bytes()));
    let (shop, order) = (Secret::new(SECRET).unwrap(), r#"{"event":"OrderPaid"}"#);
    let lines = [signed(&other, order), signed(&shop, order)];
    post("shop", &lines, order).await.with_status(200);
    let mail = r#"{"events":[{"id":"1","type":"auth.success","data":{}}]}"#;
    post("stalwart", &[signed(&other, mail), signed(&shop, mail)], mail).await.with_status(200);
    post("stalwart", &[signed(&other, mail)], mail).await.problem(401, "signature_invalid");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_in_every_form_are_events_or_are_refused() {
    let server = start().await;
    let client = &server.client;
    let post = async |lines: &[(&str, &str)], body: Vec<u8>| -> Answer {
        let signature = Secret::new(SECRET).unwrap().sign_base64(&body);
        let mut request = client.request(Method::POST, "/ingest/shop/webhook");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        client.send(request.header("X-Signature", signature).body(body)).await
    };
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let lines = format!("{}\n{}\n", order("e-1"), order("e-2"));
    let packed = gzip(lines.as_bytes());
    let encoded = [("Content-Encoding", "gzip")];
    for _ in 0..2 {
        let answer = post(&encoded, packed.clone()).await;
        assert_eq!(answer.with_status(200), json!({"received": 2}));
    }
    let glued = format!("{}{}", order("e-2"), order("e-3")).into_bytes();
    assert_eq!(post(&[], glued).await.with_status(200), json!({"received": 2}));
    let events = of_source(&server, "shop").await;
    assert_eq!(events.len(), 3);
    // Invalid UTF-8 is handled as in a line of a file.
    let line = br#"{"event":"x\xff7"}"#.to_vec();
    let bytes = [&line[..11], b"\xff", &line[15..]].concat();
    assert_eq!(post(&[], bytes).await.with_status(200), json!({"received": 1}));
    let events = of_source(&server, "shop").await;
    assert_eq!(events.iter().filter(|e| e.to_string().contains("x\u{fffd}7")).count(), 1);

    post(&encoded, packed[..packed.len() - 4].to_vec()).await.problem(400, "body_invalid");
    let hint = post(&[], packed.clone()).await;
    let hint = hint.problem(400, "body_invalid");
    assert!(hint.contains("Content-Encoding: gzip"), "{hint}");
    post(&[("Content-Encoding", "br")], packed.clone()).await.problem(415, "media_type");
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    post(&form, b"event=OrderPaid".to_vec()).await.problem(415, "media_type");
    post(&[], b"a line of text".to_vec()).await.problem(400, "body_invalid");
    post(&[], Vec::new()).await.problem(400, "body_invalid");
    // The content type that curl sends by default.
    post(&form, b" \n".to_vec()).await.problem(400, "body_invalid");
    let whole = post(&encoded, packed[..packed.len() - 4].to_vec()).await;
    assert!(!whole.problem(400, "body_invalid").contains("again"), "{whole:?}");
    let odd = json!({"none": "x".repeat(70_000)}).to_string();
    let large = post(&[], odd.into_bytes()).await;
    let said = large.problem(413, "too_large");
    assert!(said.contains("should be: it has 70011 bytes"), "{said}");
    let bomb = gzip(&vec![b' '; 15 << 20]);
    post(&encoded, bomb).await.problem(413, "too_large");
    assert_eq!(client.all("").await.len(), 4, "nothing else was stored");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packed_body_for_which_memory_is_short_says_so() {
    let set = [
        ("DEZKY_HTTP_BODY_MEMORY_BYTES", "4194304"),
        ("DEZKY_HTTP_BODY_SECONDS", "600"),
        ("DEZKY_HTTP_BODY_STALL_SECONDS", "600"),
    ];
    let server = start_in(tempfile::tempdir().unwrap(), SHOP, &set).await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(order("e-1").to_string().as_bytes()).unwrap();
    encoder.write_all(&vec![b' '; 900 << 10]).unwrap();
    let body = encoder.finish().unwrap();
    let post = async || {
        let signature = Secret::new(SECRET).unwrap().sign_base64(&body);
        let request = server.client.request(Method::POST, "/ingest/shop/webhook");
        let request = request.header("X-Signature", signature).header("Content-Encoding", "gzip");
        server.client.send(request.body(body.clone())).await
    };
    // Another body takes all but 512 KiB of its address's 16 MiB.
    let hold = async || {
        let mut other = TcpStream::connect(server.running.address()).await.unwrap();
        let length = (16 << 20) - (512 << 10);
        let head = format!(
            "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        );
        other.write_all(head.as_bytes()).await.unwrap();
        other.write_all(&vec![b' '; length - 1]).await.unwrap();
        other
    };
    let mut other = hold().await;
    let mut refused = None;
    until("the memory is short", async || {
        refused = Some(post().await).filter(|answer| answer.status == 503);
        // The other body may have been the one that was refused.
        if refused.is_none() && other.try_read(&mut [0; 12]).is_ok() {
            other = hold().await;
        }
        refused.is_some()
    })
    .await;
    let answer = refused.unwrap();
    answer.problem(503, "too_many_webhooks");
    assert_eq!(answer.header("retry-after"), "1");
    drop(other);
    until("memory is free again", async || post().await.status == 200).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_small_packed_body_does_not_wait_for_large_ones() {
    let server = start().await;
    let send = |body: Vec<u8>, encoding: &'static str| {
        let signature = Secret::new(SECRET).unwrap().sign_base64(&body);
        let request = server.client.request(Method::POST, "/ingest/shop/webhook");
        let request = request.header("X-Signature", signature);
        let request = request.header("Content-Encoding", encoding).body(body);
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    // Three times as many as are processed at a time, without any event to store.
    let ping = json!({ "event": "ping", "uuid": "p", "of": "x".repeat(300) }).to_string() + "\n";
    let large = ping.repeat(9_000).into_bytes();
    let packed = gzip(&large);
    let large: Vec<_> = (0..6)
        .flat_map(|_| [send(packed.clone(), "gzip"), send(large.clone(), "identity")])
        .collect();
    let done = || large.iter().filter(|sender| sender.is_finished()).count();
    until("one of them is done", async || done() > 0).await;
    let small = order("small").to_string().into_bytes();
    let small = [send(gzip(&small), "gzip"), send(small, "identity")];
    for sender in small {
        assert_eq!(sender.await.unwrap(), 200);
    }
    assert!(done() < 8, "{} of the large bodies finished first", done());
    for sender in large {
        assert_eq!(sender.await.unwrap(), 200, "a compressed body is processed as well");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_under_the_id_of_a_success_is_on_the_timeline() {
    let server = senders().await;
    let client = &server.client;
    let stage = |stage: &str, code: u64| json!({"verb": "delete", "auditID": "u-1", "stage": stage, "code": code});
    let post = async |path: &str, secret: &str, body: String| -> Value {
        let signature = Secret::new(secret).unwrap().sign_base64(body.as_bytes());
        let request = client.request(Method::POST, path).header("X-Signature", signature);
        client.send(request.body(body)).await.with_status(200)
    };
    let list = json!({"items": [stage("RequestReceived", 0), stage("ResponseComplete", 403)]});
    let kube =
        async || post("/ingest/kube/webhook", "git-secret-0123456789", list.to_string()).await;
    assert_eq!((kube().await, kube().await), (json!({"received": 1}), json!({"received": 1})));
    let events = of_source(&server, "kube").await;
    assert_eq!((events.len(), &events[0]["externalId"]), (1, &json!("u-1/ResponseComplete")));

    // Only the id is declared, which is the same for a success and a refusal.
    let shop = async |ok: bool| {
        let body = json!({"uuid": "u-1", "event": "Delete", "ok": ok}).to_string();
        post("/ingest/shop/webhook", SECRET, body).await
    };
    for ok in [true, false, true, false] {
        assert_eq!(shop(ok).await, json!({"received": 1}));
    }
    let events = of_source(&server, "shop").await;
    assert_eq!(events.len(), 2);
    assert_eq!(
        (&events[0]["outcome"], &events[1]["outcome"]),
        (&json!("denied"), &json!("success"))
    );
    assert_eq!(events[0]["metadata"]["_dezky"]["sharedId"], "u-1");
    server.stop().await;
}
