//! PostgreSQL runs out of connections, and has free ones again later.

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::servers::{OwnServer, sql};
use crate::support::{Client, Process, WEBHOOK, run, until};

/// A PostgreSQL server with few connections, and other clients that can use them all.
struct Crowded {
    server: OwnServer,
    /// The URL of a role that can't use the connections reserved for superusers.
    url: String,
    others: Vec<PgConnection>,
}

impl Crowded {
    async fn new() -> Self {
        let server = OwnServer::postgres(&["max_connections=16"]).await;
        assert!(run(&["migrate", "--store", &server.url], &[]).status.success());
        sql(
            &server.url,
            "CREATE ROLE app LOGIN; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app",
        )
        .await;
        let url = server.url.replace("dezky@", "app@");
        Self { server, url, others: Vec::new() }
    }

    /// Takes every connection, including those of the server under test.
    async fn fill(&mut self) {
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE usename = 'app' AND application_name = 'dezky'";
        let mut full = 0;
        // Meanwhile the server tries to reconnect.
        while full < 10 {
            sql(&self.server.url, ended).await;
            match PgConnection::connect(&self.url).await {
                Ok(other) => {
                    full = 0;
                    self.others.push(other);
                }
                Err(error) => {
                    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                    assert_eq!(code.as_deref(), Some("53300"), "{error}");
                    full += 1;
                }
            }
        }
        assert!(self.others.len() > 10, "{}", self.others.len());
    }

    /// Closes all of them.
    fn empty(&mut self) {
        self.others.clear();
    }
}

async fn record(client: &Client) -> crate::support::Answer {
    client.post("/audit", json!({ "action": "tenant.created" })).await
}

fn login(id: &str) -> String {
    format!(
        r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_connection_to_its_store_goes_on_when_there_are_some_again() {
    let mut crowded = Crowded::new().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ocis.log"), "").unwrap();
    let server = Process::start(
        folder.path(),
        &[
            ("DEZKY_STORE", crowded.url.as_str()),
            ("DEZKY_STORE_ACQUIRE_TIMEOUT_SECONDS", "1"),
            ("DEZKY_SPOOL_PATH", "audit.spool"),
            ("OCIS_AUDIT_LOG_PATH", "ocis.log"),
            ("DEZKY_OCIS_POLL_SECONDS", "1"),
        ],
    );
    let client = &server.client;
    client.post("/flags", json!({ "key": "k", "state": "on" })).await.with_status(201);
    record(client).await.with_status(201);
    let health = async || -> Value { client.get("/health").await.with_status(200) };
    until("health reports it", async || health().await["status"] == "ok").await;

    crowded.fill().await;
    let logins = ["a-1", "a-2"].map(login);
    let (recorded, killed, listed, one, other) = tokio::join!(
        record(client),
        client.act("/flags/k/kill"),
        client.get("/audit"),
        client.post_signed(WEBHOOK, &logins[0]),
        client.post_signed(WEBHOOK, &logins[1]),
    );
    for answer in [killed, listed] {
        answer.problem(503, "store_unavailable");
    }
    assert_eq!(recorded.with_status(202)["receipts"][0]["status"], "spooled");
    for answer in [one, other] {
        assert_eq!(answer.with_status(200)["received"], 1, "the spool has it");
    }
    until("health reports it", async || health().await["status"] == "degraded").await;
    assert_eq!(health().await["store"]["writable"], false);

    crowded.empty();
    for (query, events) in [("source=stalwart", 2), ("action=tenant.created", 2)] {
        until("the spool is moved", async || {
            let answer = client.get(&format!("/audit?{query}")).await;
            answer.status == 200 && answer.events().len() == events
        })
        .await;
    }
    record(client).await.with_status(201);
    assert_eq!(client.act("/flags/k/kill").await.with_status(200)["state"], "off");
    let line = r#"{"RemoteAddr":"","User":"u-1","URL":"","Method":"","UserAgent":"","Time":"2026-11-21T20:00:00Z","App":"admin-audit","Message":"m","Action":"file_delete","Success":true,"Path":"/a","Owner":"u-1","FileID":"f-1"}"#;
    std::fs::write(folder.path().join("ocis.log"), format!("{line}\n")).unwrap();
    until("the tail continues", async || !client.all("&source=ocis").await.is_empty()).await;
    until("health reports it", async || health().await["status"] == "ok").await;
    server.stop().await;
}
