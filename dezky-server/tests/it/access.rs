//! Which callers are admitted, and how the timeline identifies the caller of a change.

use dezky_core::Actor;
use dezky_core::directory::{Edit, NewUser};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Client, Embedder, Server, in_order};

const TOKEN: &str = "operator-token-0123456789";

/// Every route that needs the token, with a body that it accepts.
pub(crate) fn routes() -> Vec<(Method, &'static str, Option<&'static str>)> {
    let tenant = r#"{"slug":"new","name":"New","plan":"pro"}"#;
    vec![
        (Method::GET, "/audit", None),
        (Method::GET, "/me", None),
        (Method::GET, "/flags", None),
        (Method::POST, "/flags", Some(r#"{"key":"new"}"#)),
        (Method::POST, "/flags/evaluate", Some(r#"{"tenantSlug":"acme"}"#)),
        (Method::GET, "/flags/k", None),
        (Method::PATCH, "/flags/k", Some(r#"{"pct":9}"#)),
        (Method::DELETE, "/flags/k", None),
        (Method::POST, "/flags/k/kill", None),
        (Method::GET, "/tenants", None),
        (Method::POST, "/tenants", Some(tenant)),
        (Method::GET, "/tenants/acme", None),
        (Method::PATCH, "/tenants/acme", Some(r#"{"plan":"basic"}"#)),
        (Method::DELETE, "/tenants/acme", None),
        (Method::GET, "/tenants/acme/users", None),
        (Method::POST, "/tenants/acme/suspend", None),
        (Method::POST, "/tenants/acme/resume", None),
        (Method::GET, "/partners", None),
        (Method::POST, "/partners", Some(r#"{"slug":"new","name":"New"}"#)),
        (Method::GET, "/partners/reseller", None),
        (Method::PATCH, "/partners/reseller", Some(r#"{"name":"R"}"#)),
        (Method::DELETE, "/partners/reseller", None),
        (Method::GET, "/partners/reseller/tenants", None),
        (Method::GET, "/users", None),
        (Method::POST, "/users/u-1/deactivate", None),
    ]
}

pub(crate) fn request(
    client: &Client,
    (method, path, body): &(Method, &'static str, Option<&'static str>),
) -> reqwest::RequestBuilder {
    match body {
        Some(body) => client.document(method.clone(), path, *body),
        None => client.request(method.clone(), path),
    }
}

async fn fill(client: &Client) {
    client.post("/flags", json!({ "key": "k", "state": "on" })).await.with_status(201);
    let partner = json!({ "slug": "reseller", "name": "Reseller" });
    client.post("/partners", partner).await.with_status(201);
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro", "status": "active" });
    client.post("/tenants", tenant).await.with_status(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_needs_the_token_where_there_is_one() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", TOKEN)]).await;
    let operator = server.client.with_token(TOKEN);
    fill(&operator).await;
    let before = operator.all("").await;
    for route in routes() {
        for client in [
            server.client.clone(),
            server.client.with_token("operator-token-012345678"),
            server.client.with_token(&format!("{TOKEN}9")),
        ] {
            let answer = client.send(request(&client, &route)).await;
            answer.problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{route:?}");
        }
    }
    assert_eq!(operator.all("").await, before);
    // The same requests with the token: none is refused because of its caller.
    for route in routes() {
        let answer = operator.send(request(&operator, &route)).await;
        assert!(!matches!(answer.status.as_u16(), 401 | 403 | 405), "{route:?}: {answer:?}");
    }
    server.stop().await;
}

/// A foreign web page must not read or change anything through the user's browser.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_server_answers_no_route_to_a_foreign_page() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    fill(client).await;
    let before = client.all("").await;
    for route in routes() {
        for (name, value) in [
            ("Host", "evil.example"),
            ("Host", "localhost.evil.example"),
            ("Host", "x.localhost"),
            ("Host", "user@localhost"),
            ("Origin", "https://evil.example"),
            ("Origin", "http://localhost.evil.example:3000"),
            ("Origin", "http://x.localhost"),
            ("Origin", "http://user@localhost:3000"),
            ("Origin", "chrome-extension://localhost"),
            ("Origin", "moz-extension://127.0.0.1"),
            ("Origin", "null"),
            ("Origin", ""),
        ] {
            let answer = client.send(request(client, &route).header(name, value)).await;
            answer.problem(403, "foreign_host");
        }
        let two = request(client, &route).header("Origin", "http://localhost:3000");
        let answer = client.send(two.header("Origin", "https://evil.example")).await;
        answer.problem(403, "foreign_host");
    }
    assert_eq!(client.all("").await, before);
    for origin in
        ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443", "HTTP://LOCALHOST:3000"]
    {
        let route = (Method::PATCH, "/flags/k", Some(r#"{"pct":9}"#));
        let answer = client.send(request(client, &route).header("Origin", origin)).await;
        assert_eq!(answer.with_status(200)["pct"], 9, "{origin}");
    }
    server.stop().await;
}

/// Sends one change, and returns the only event that it added, which is on the timeline as soon as
/// the response has arrived.
async fn event_of(
    client: &Client,
    route: &(Method, &'static str, Option<&'static str>),
    headers: &[(&'static str, &'static str)],
) -> Value {
    let before = client.all("").await.len();
    let with = |request: reqwest::RequestBuilder, (name, value): &(&'static str, &'static str)| {
        request.header(*name, *value)
    };
    let answer = client.send(headers.iter().fold(request(client, route), with)).await;
    assert!(answer.status.is_success(), "{route:?}: {answer:?}");
    let events = in_order(client.all("").await);
    assert_eq!(events.len(), before + 1, "{route:?}");
    events.into_iter().next_back().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_on_the_timeline_when_its_answer_returns() {
    let proxies =
        [("DEZKY_OPERATOR_TOKEN", TOKEN), ("DEZKY_TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")];
    let server = Server::start(&proxies).await;
    let client = server.client.with_token(TOKEN);
    let embedder = Embedder::open(&server).await;
    let user = NewUser { name: Some("Olga".into()), ..NewUser::new("https://id.example", "s") };
    let user = embedder.directory.create_user(user, &Edit::by(Actor::system())).await.unwrap();
    let deactivate: &'static str = format!("/users/{}/deactivate", user.id).leak();
    embedder.close().await;

    let headers = [
        ("X-Request-Id", "req-7f3a"),
        ("User-Agent", "console/3.1"),
        // The client controls the left part.
        ("X-Forwarded-For", "1.2.3.4, 203.0.113.7, 10.1.2.3"),
    ];
    let partner = r#"{"slug":"reseller","name":"Reseller","domain":"reseller.example"}"#;
    let tenant = r#"{"slug":"acme","name":"Acme","plan":"pro","status":"active"}"#;
    let (acme, ours) = (Some("acme"), Some("reseller"));
    let changes = [
        ("partner.created", Method::POST, "/partners", Some(partner), None, ours),
        (
            "partner.updated",
            Method::PATCH,
            "/partners/reseller",
            Some(r#"{"marginPct":10}"#),
            None,
            ours,
        ),
        ("tenant.created", Method::POST, "/tenants", Some(tenant), acme, None),
        (
            "tenant.updated",
            Method::PATCH,
            "/tenants/acme",
            Some(r#"{"partnerId":"reseller"}"#),
            acme,
            ours,
        ),
        ("tenant.suspended", Method::POST, "/tenants/acme/suspend", None, acme, ours),
        ("tenant.resumed", Method::POST, "/tenants/acme/resume", None, acme, ours),
        ("flag.created", Method::POST, "/flags", Some(r#"{"key":"k","pct":5}"#), None, None),
        ("flag.updated", Method::PATCH, "/flags/k", Some(r#"{"state":"on"}"#), None, None),
        ("flag.killed", Method::POST, "/flags/k/kill", None, None, None),
        ("flag.removed", Method::DELETE, "/flags/k", None, None, None),
        ("user.deactivated", Method::POST, deactivate, None, None, None),
        (
            "tenant.updated",
            Method::PATCH,
            "/tenants/acme",
            Some(r#"{"partnerId":null}"#),
            acme,
            ours,
        ),
        ("tenant.deleted", Method::DELETE, "/tenants/acme", None, acme, None),
        ("partner.terminated", Method::DELETE, "/partners/reseller", None, None, ours),
    ];
    for (verb, method, path, body, tenant_slug, partner_slug) in changes {
        let event = event_of(&client, &(method, path, body), &headers).await;
        assert_eq!(event["action"], verb);
        assert_eq!(event["actorType"], "service", "{verb}");
        assert_eq!(event["actorId"], "operator-token", "{verb}");
        assert_eq!(event["actorIp"], "203.0.113.7", "{verb}");
        assert_eq!(event["outcome"], "success", "{verb}");
        assert_eq!(event["source"], "platform-api", "{verb}");
        assert_eq!(event["tenantSlug"].as_str(), tenant_slug, "{verb}");
        assert_eq!(event["partnerSlug"].as_str(), partner_slug, "{verb}");
        let kind = verb.split('.').next().unwrap();
        assert_eq!(event["resourceType"], kind, "{verb}");
        assert!(event["resourceId"].is_string() && event["resourceName"].is_string(), "{event}");
        let evidence = &event["metadata"]["_dezky"];
        assert_eq!(evidence["requestId"], "req-7f3a", "{verb}");
        assert_eq!(evidence["userAgent"], "console/3.1", "{verb}");
        assert!(evidence["after"].is_object(), "{event}");
        assert_eq!(
            evidence["before"].is_object(),
            !matches!(verb, "partner.created" | "tenant.created"),
            "{event}"
        );
        match verb {
            "tenant.suspended" => {
                assert_eq!(evidence["before"], json!({ "status": "active" }));
                assert_eq!(evidence["after"], json!({ "status": "suspended" }));
            }
            "flag.updated" => {
                assert_eq!(evidence["before"], json!({ "state": "off" }));
                assert_eq!(evidence["after"], json!({ "state": "on" }));
            }
            _ => {}
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_server_says_that_anybody_could_have_been_it() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let route = (Method::POST, "/flags", Some(r#"{"key":"k"}"#));
    // No proxy is trusted, so the header is ignored.
    let event = event_of(client, &route, &[("X-Forwarded-For", "203.0.113.7")]).await;
    assert_eq!(
        (&event["actorType"], &event["actorIp"]),
        (&json!("anonymous"), &json!("127.0.0.1"))
    );
    assert_eq!(event.get("actorId"), None);
    assert_eq!(event["metadata"]["_dezky"].get("requestId"), None);
    // A long id is truncated, so that its beginning still identifies the request.
    let long: &'static str = "r".repeat(129).leak();
    let route = (Method::POST, "/flags/k/kill", Some("{}"));
    client.patch("/flags/k", json!({ "state": "on" })).await.with_status(200);
    let event = event_of(client, &route, &[("X-Request-Id", long)]).await;
    assert_eq!(event["metadata"]["_dezky"]["requestId"], json!("r".repeat(128)));
    server.stop().await;
}
