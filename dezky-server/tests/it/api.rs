//! The HTTP API.

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, ListQuery};
use dezky_core::{Actor, NewEvent, Outcome, Timestamp};
use reqwest::Method;
use reqwest::header::HeaderValue;
use sqlx::{Connection as _, SqliteConnection};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Engine, SECRET, Server, WEBHOOK, until};

const TOKEN: &str = "operator-token-0123456789";

/// Records `count` events, two for each second.
async fn record(server: &Server, count: i64) {
    let event = |n: i64| {
        NewEvent {
            at: Timestamp::from_millis(1_790_000_000_000 + n / 2 * 1_000),
            tenant_slug: (n % 3 != 0).then(|| format!("tenant-{}", n % 3)),
            partner_slug: (n % 5 == 0).then(|| "partner-a".into()),
            resource_type: Some("tenant".into()),
            resource_id: Some(format!("r-{n}")),
            resource_name: Some(format!("Resource {n}")),
            outcome: if n % 2 == 0 { Outcome::Success } else { Outcome::Denied },
            ..NewEvent::new(
                if n % 2 == 0 { "tenant.suspended" } else { "tenant.resumed" },
                Actor::user(format!("u-{}", n % 4)).with_email("Alice@Example.com"),
            )
        }
        .seal(&TokioRuntime)
    };
    let events = (0..count).map(event).collect();
    server.running.store().append(events, AppendOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_public_and_names_the_service() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let answer = server.client.get("/health").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json["status"], "ok");
    assert_eq!(answer.json["service"], "dezky-platform-api");
    server.stop().await;
}

/// A foreign web page that reaches the server by DNS rebinding sends its own host name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_server_answers_this_machine_alone() {
    let server = Server::start(&[]).await;
    for (host, allowed) in [
        ("localhost", true),
        ("LOCALHOST:8080", true),
        ("audit.localhost", false),
        ("user@localhost", false),
        ("127.0.0.1:1", true),
        ("[::1]:8080", true),
        ("evil.example", false),
        ("localhost.evil.example", false),
        ("127.0.0.1.evil.example", false),
        ("192.0.2.7", false),
        ("", false),
    ] {
        let request = server.client.request(Method::GET, "/audit").header("Host", host);
        let answer = server.client.send(request).await;
        if allowed {
            assert!(answer.events().is_empty(), "{host}");
        } else {
            answer.problem(403, "foreign_host");
        }
    }
    let health = server.client.request(Method::GET, "/health").header("Host", "evil.example");
    assert_eq!(server.client.send(health).await.status, 200);
    server.stop().await;
    let closed = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let request = closed.client.request(Method::GET, "/audit").header("Host", "audit.example");
    let answer =
        closed.client.send(request.header("Authorization", format!("Bearer {TOKEN}"))).await;
    assert!(answer.events().is_empty());
    closed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timeline_needs_the_token_where_there_is_one() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let client = &server.client;
    for value in ["", "Bearer", "Bearer ", "Bearer wrong", "Basic b3BlcmF0b3I=", TOKEN] {
        let answer =
            client.send(client.request(Method::GET, "/audit").header("Authorization", value)).await;
        answer.problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    client.get("/audit").await.problem(401, "unauthorized");
    for scheme in ["Bearer", "bearer"] {
        let request = client.request(Method::GET, "/audit");
        let answer =
            client.send(request.header("Authorization", format!("{scheme} {TOKEN}"))).await;
        assert!(answer.events().is_empty());
        assert!(answer.json["nextCursor"].is_null());
    }
    let open = Server::start(&[]).await;
    assert!(open.client.get("/audit").await.events().is_empty());
    open.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_are_problems() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    for path in ["/", "/nope", "/audit/", "/ingest/stalwart", "/ingest/stalwart/webhook/"] {
        client.get(path).await.problem(404, "not_found");
    }
    let answer = client.send(client.request(Method::DELETE, "/audit")).await;
    answer.problem(405, "method_not_allowed");
    assert!(answer.header("allow").contains("GET"));
    let answer = client.get(WEBHOOK).await;
    answer.problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_parameters_are_named_with_their_bounds() {
    let server = Server::start(&[]).await;
    for (query, words) in [
        ("limit=0", &["limit", "1 to 500"][..]),
        ("limit=501", &["limit", "1 to 500"]),
        ("limit=-1", &["limit", "1 to 500"]),
        ("limit=ten", &["limit", "1 to 500"]),
        ("since=yesterday", &["since", "RFC 3339"]),
        ("until=", &["until", "RFC 3339"]),
        ("before=2026-13-01T00:00:00Z", &["before", "RFC 3339"]),
        ("outcome=maybe", &["outcome", "success", "denied"]),
        ("tenant=acme", &["tenant", "tenantSlug"]),
        ("tenant_slug=acme", &["tenant_slug", "tenantSlug"]),
        ("q=a&q=b", &["q", "more than once"]),
    ] {
        let answer = server.client.get(&format!("/audit?{query}")).await;
        let detail = answer.problem(400, "query_invalid");
        for word in words {
            assert!(detail.contains(word), "{query}: {detail}");
        }
    }
    let long = "x".repeat(1_025);
    let answer = server.client.get(&format!("/audit?actorId={long}")).await;
    assert!(answer.problem(400, "query_invalid").contains("actorId"));
    server.client.get("/audit?cursor=AAAA").await.problem(400, "cursor_invalid");
    // A cursor issued by version 1.
    let old = "AQAAAZt22qgA_____________________wD-AhE1F-55lcBT4-Zmp1OUukWUW0LjRw1jJcH07Xw-";
    let answer = server.client.get(&format!("/audit?cursor={old}")).await;
    let detail = answer.problem(400, "cursor_invalid");
    assert!(detail.contains("older version") && detail.contains("first page"), "{detail}");
    server.stop().await;
}

pub(crate) async fn every_filter_narrows(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    record(&server, 30).await;
    let time = |n: i64| Timestamp::from_millis(1_790_000_000_000 + n * 1_000).unwrap();
    for (query, expected) in [
        (String::new(), 30),
        (format!("&since={}", time(10)), 10),
        (format!("&until={}", time(10)), 20),
        (format!("&before={}", time(5)), 10),
        (format!("&since={}&until={}", time(5), time(10)), 10),
        ("&action=tenant.".into(), 30),
        ("&action=tenant.sus".into(), 15),
        ("&action=enant".into(), 0),
        ("&tenantSlug=tenant-1".into(), 10),
        ("&tenantSlug=".into(), 10),
        ("&partnerSlug=partner-a".into(), 6),
        ("&actorId=u-1".into(), 8),
        ("&actorEmail=aLICE%40example.COM".into(), 30),
        ("&resourceType=tenant&resourceId=r-7".into(), 1),
        ("&outcome=denied".into(), 15),
        ("&source=platform-api".into(), 30),
        ("&source=platform".into(), 0),
        ("&q=rESOURCE%2029".into(), 1),
    ] {
        assert_eq!(server.client.all(&query).await.len(), expected, "{query}");
    }
    server.stop().await;
}

pub(crate) async fn pages_neither_skip_nor_repeat_while_events_arrive(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    record(&server, 25).await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = server.client.get(&format!("/audit?limit=7&action=tenant{cursor}")).await;
        assert!(answer.events().len() <= 7);
        seen.extend(answer.events().iter().map(|e| e["seq"].as_u64().unwrap()));
        let Some(next) = answer.json["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
        // Events appended between the pages do not appear in them.
        let newer = NewEvent::new("tenant.created", Actor::system()).seal(&TokioRuntime);
        server.running.store().append(vec![newer], AppendOptions::default()).await.unwrap();
        let other = server.client.get(&format!("/audit?limit=7{cursor}")).await;
        other.problem(400, "cursor_invalid");
    }
    let mut sorted = seen.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..25).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_need_no_token_and_no_content_type() {
    let server = Server::start(&[
        ("DEZKY_OPERATOR_TOKEN", TOKEN),
        ("DEZKY_STALWART_EU2_SECRET", SECRET),
        ("DEZKY_TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    let client = &server.client;
    let body = r#"{"events":[{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{"accountName":"alice@example.com"}}]}"#;
    let signed = dezky_ingest::signature::Secret::new(SECRET).unwrap().sign_hex(body.as_bytes());
    let request = client
        .request(Method::POST, "/ingest/stalwart/eu2/webhook")
        .header("X-Signature", signed)
        .header("Content-Type", "text/plain")
        .header("X-Forwarded-For", "6.6.6.6, 203.0.113.80")
        .body(body);
    let answer = client.send(request).await;
    assert_eq!((answer.status.as_u16(), &answer.json), (200, &serde_json::json!({"received": 1})));
    let page = server.running.store().list(&ListQuery::default()).await.unwrap();
    assert_eq!(page.events[0].event.source, "stalwart:eu2");
    assert_eq!(page.events[0].event.actor_ip.as_deref(), Some("203.0.113.80"));
    client.post_signed("/ingest/stalwart/eu3/webhook", body).await.problem(404, "not_found");
    server.stop().await;
}

/// A byte that is not text must not hide the address that the proxy added: everything left of that
/// was written by the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_is_no_text_neither_hides_nor_forges_the_client() {
    let server = Server::start(&[("DEZKY_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let client = &server.client;
    for (slug, last, ip) in [
        ("a", &b"\xff, 203.0.113.80"[..], "203.0.113.80"),
        ("b", b"\xff", "127.0.0.1"),
        ("c", b"203.0.113.80, \xc3\x28", "127.0.0.1"),
    ] {
        let body = format!(r#"{{"slug":"{slug}","name":"n","plan":"p"}}"#);
        let request = client
            .document(Method::POST, "/tenants", body)
            .header("X-Forwarded-For", "6.6.6.6")
            .header("X-Forwarded-For", HeaderValue::from_bytes(last).unwrap());
        client.send(request).await.with_status(201);
        let events = client.all(&format!("&tenantSlug={slug}")).await;
        assert_eq!(events[0]["actorIp"], ip, "{slug}");
    }
    let body =
        r#"{"events":[{"createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{}}]}"#;
    let signed = dezky_ingest::signature::Secret::new(SECRET).unwrap().sign_hex(body.as_bytes());
    let last = HeaderValue::from_bytes(b"\xff, 203.0.113.80").unwrap();
    let request = client
        .request(Method::POST, WEBHOOK)
        .header("X-Signature", signed)
        .header("X-Forwarded-For", "6.6.6.6")
        .header("X-Forwarded-For", last);
    client.send(request.body(body)).await.with_status(200);
    assert_eq!(client.all("&source=stalwart").await[0]["actorIp"], "203.0.113.80");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_without_a_secret_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite://{}", folder.path().join("audit.db").display());
    let set = [("DEZKY_LISTEN", "127.0.0.1:0"), ("DEZKY_STORE", &store)];
    let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = dezky_server::Settings::load(None, set, None).unwrap().config().unwrap();
    let listener = dezky_server::lifecycle::bind(config.listen, "").await.unwrap();
    let running = dezky_server::Running::start(config, listener).await.unwrap();
    let client = crate::support::Client::new(format!("http://{}", running.address()));
    client.post_signed(WEBHOOK, "{}").await.problem(404, "not_found");
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_bound_is_refused_and_one_at_the_bound_is_not() {
    let server = Server::start(&[("DEZKY_MAX_BODY_BYTES", "100000")]).await;
    let event = r#"{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{"accountName":"alice@example.com"}}"#;
    let fitting = format!(r#"{{"events":[{event}]}}"#);
    let fitting = format!("{fitting}{}", " ".repeat(100_000 - fitting.len()));
    for over in [format!("{fitting} "), " ".repeat(5_000_000)] {
        let answer = server.client.post_signed(WEBHOOK, &over).await;
        assert!(answer.problem(413, "body_too_large").contains("100000"));
    }
    assert!(server.client.all("").await.is_empty());
    let answer = server.client.post_signed(WEBHOOK, &fitting).await;
    assert_eq!(answer.json["received"], 1);
    server.stop().await;
}

pub(crate) async fn a_body_that_is_no_event_is_kept_aside_and_accepted(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    for _ in 0..2 {
        let answer = server.client.post_signed(WEBHOOK, "not json").await;
        assert_eq!((answer.status.as_u16(), &answer.json["received"]), (200, &1.into()));
    }
    let events = server.client.all("").await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["action"], "ingest.quarantined");
    server.stop().await;
}

pub(crate) async fn staged_events_reach_the_timeline(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let event = NewEvent::new("tenant.created", Actor::system()).seal(&TokioRuntime);
    server.running.store().stage(vec![event]).await.unwrap();
    until("the relay", async || !server.client.all("").await.is_empty()).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_that_hang_up_take_nothing_from_the_others() {
    let server = Server::start(&[]).await;
    let secret = dezky_ingest::signature::Secret::new(SECRET).unwrap();
    let body = |id: String| {
        format!(
            r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
        )
    };
    let mut staying = Vec::new();
    for n in 0..40 {
        let (client, stays) = (server.client.clone(), body(format!("stays-{n}")));
        staying.push(tokio::spawn(async move { client.post_signed(WEBHOOK, &stays).await }));
        let leaves = body(format!("leaves-{n}"));
        let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
        let head = format!(
            "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nX-Signature: {}\r\nContent-Length: {}\r\n\r\n",
            secret.sign_base64(leaves.as_bytes()),
            leaves.len()
        );
        let whole = n % 2 == 0;
        let leaves = if whole { &leaves[..] } else { &leaves[..30] };
        stream.write_all(format!("{head}{leaves}").as_bytes()).await.unwrap();
    }
    for answer in staying {
        assert_eq!(answer.await.unwrap().json["received"], 1);
    }
    let events = server.client.all("").await;
    let stays = |e: &&serde_json::Value| e["externalId"].as_str().unwrap().starts_with("stays");
    assert_eq!(events.iter().filter(stays).count(), 40);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_nothing_asks_the_sender_to_come_again() {
    let server = Server::start(&[]).await;
    let url = format!("sqlite://{}", server.folder.path().join("audit.db").display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let body = r#"{"events":[{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{}}]}"#;
    let answer = server.client.post_signed(WEBHOOK, body).await;
    answer.problem(503, "store_busy");
    assert_eq!(answer.header("retry-after"), "5");
    assert!(server.client.all("").await.is_empty());
    held.rollback().await.unwrap();
    assert_eq!(server.client.post_signed(WEBHOOK, body).await.json["received"], 1);
    assert_eq!(server.client.all("").await.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_before_sending_too_much_hears_it_at_once() {
    let server = Server::start(&[]).await;
    let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
    let head = format!(
        "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 413");
    drop(stream);
    server.stop().await;
}
