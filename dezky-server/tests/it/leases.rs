//! Leases that a clock wrote which was ahead.

use sqlx::{Connection as _, SqliteConnection};

use crate::support::{Process, run, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_a_clock_that_was_an_hour_ahead_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("dezky.db").display());
    assert!(run(&["migrate", "--store", &url], &[]).status.success());
    // As a server left it that was killed, its clock an hour ahead.
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(
        "INSERT INTO dezky_leases (name, holder, token, expires_at, length_ms) VALUES ('ingest:ocis', 'pump-gone', 7, unixepoch() * 1000 + 3600000 + 10000, 10000)",
    )
    .execute(&mut database)
    .await
    .unwrap();
    std::fs::write(folder.path().join("ocis.log"), "").unwrap();
    let server = Process::start(folder.path(), &[("OCIS_AUDIT_LOG_PATH", "ocis.log")]);
    let lease = async |database: &mut SqliteConnection| -> (String, i64) {
        let query = "SELECT holder, token FROM dezky_leases WHERE name = 'ingest:ocis'";
        sqlx::query_as(query).fetch_one(database).await.unwrap()
    };
    until("the server takes over", async || lease(&mut database).await.0 != "pump-gone").await;
    assert_eq!(lease(&mut database).await.1, 8, "what the other one writes is fenced off");
    until("it is told", async || server.stderr().contains("a clock that was ahead")).await;
    server.stop().await;
}
