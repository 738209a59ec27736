//! Authentik as it is configured: polled by a running server.

use dezky_core::Runtime as _;
use dezky_core::directory::{NewTenant, TenantStatus};
use dezky_core::rt::TokioRuntime;
use dezky_ingest::testkit::{AuthentikDouble, authentik_event};

use crate::support::{Server, WEBHOOK, until};

async fn double() -> AuthentikDouble {
    let events = (1..=3).map(|n| authentik_event(n, &format!("2026-09-01T08:00:0{n}Z")));
    let double = AuthentikDouble::builder().events(events).start().await.unwrap();
    for (group, is_superuser) in [("acme", false), ("dezky-platform-admins", false)] {
        double.add_group(group, is_superuser);
    }
    double.set_user(42, &["acme", "dezky-platform-admins"]);
    double
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_authentik_is_polled_and_its_events_find_their_tenant() {
    let double = double().await;
    let (url, token) = (double.url().to_owned(), double.token());
    let environment = [
        ("DEZKY_AUTHENTIK_URL", &*url),
        ("DEZKY_AUTHENTIK_TOKEN", &*token),
        ("DEZKY_POLL_SECONDS", "1"),
    ];
    let server = Server::start(&[]).await;
    let mut acme = NewTenant::new("acme", "Acme", "pro");
    acme.status = Some(TenantStatus::Active);
    let by = dezky_core::directory::Edit::by(dezky_core::Actor::system());
    server.running.platform().directory.create_tenant(acme, &by).await.unwrap();
    let server = Server::start_in(server.stop().await, &environment).await;
    let client = server.client.clone();
    until("what was there", async || client.all("&source=authentik").await.len() == 3).await;

    double.insert(authentik_event(4, &TokioRuntime.now().to_string()));
    until("one more login", async || client.all("&source=authentik").await.len() == 4).await;
    for event in client.all("&source=authentik").await {
        assert_eq!(event["action"], "authentik.login");
        assert_eq!(event["actorEmail"], "ana@acme.test");
        assert_eq!(event["actorIp"], "203.0.113.10");
        assert_eq!(event["tenantSlug"], "acme");
        assert_eq!(event["metadata"]["_dezky"]["tenantBy"], "group");
    }
    server.stop().await;
    double.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_ingest_asks_authentik_nothing() {
    let double = double().await;
    let (url, token) = (double.url().to_owned(), double.token());
    let server = Server::start(&[
        ("DEZKY_AUTHENTIK_URL", &url),
        ("DEZKY_AUTHENTIK_TOKEN", &token),
        ("DEZKY_POLL_SECONDS", "1"),
        ("AUDIT_INGEST_ENABLED", "false"),
    ])
    .await;
    let body = r#"{"events":[{"id":"e-1","createdAt":"2026-09-01T08:00:00Z","type":"auth.failed","data":{}}]}"#;
    assert_eq!(server.client.post_signed(WEBHOOK, body).await.json["received"], 1);
    // Stopping ends the existing workers, after their current tick.
    server.stop().await;
    assert!(double.requests().is_empty());
    double.stop().await;
}
