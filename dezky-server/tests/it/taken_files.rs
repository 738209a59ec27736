//! Files that are removed or replaced under a running server.

use std::path::Path;
use std::time::Duration;

use dezky_server::lifecycle::Running;
use serde_json::json;

use crate::support::{Process, run, until};

/// Removes or replaces the server's files, as `how` says.
fn take(folder: &Path, how: &str) {
    let file = |name: &str| folder.join(name);
    match how {
        "removed" => std::fs::remove_file(file("audit.db")).unwrap(),
        "replaced" => {
            std::fs::copy(file("audit.db"), file("copy")).unwrap();
            std::fs::rename(file("copy"), file("audit.db")).unwrap();
        }
        name => std::fs::remove_file(file(name)).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_database_is_taken_away_acknowledges_nothing_and_ends() {
    for how in ["removed", "replaced", "audit.db-wal", "audit.db-shm"] {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("audit.db").display());
        let mut server = Process::start(folder.path(), &[("DEZKY_STORE", &url)]);
        let event = json!({ "action": "tenant.created" });
        server.client.post("/audit", event.clone()).await.with_status(201);

        take(folder.path(), how);
        let request = || {
            let method = reqwest::Method::POST;
            server.client.document(method, "/audit", event.to_string())
        };
        while let Some(status) = server.client.try_status(request()).await {
            assert_eq!(status, 503, "{how}: an event that would be lost");
        }
        until("the end of the server", async || server.ended().is_some()).await;
        assert_eq!(server.ended().unwrap().code(), Some(1), "{how}");
        until("the last line", async || server.stderr().contains("dezky-server: store: ")).await;
        let said = server.stderr();
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("dezky-server: store: ")
                && last.contains("audit.db")
                && last.contains("was removed or replaced"),
            "{how}: {said}"
        );
        // Acknowledged events are in the moved file.
        if how != "removed" {
            let verified = run(&["verify", "--store", &url], &[]);
            assert!(verified.status.success(), "{how}: {verified:?}");
        }
    }
}

/// Even without requests: the server would read a different database than everybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_nobody_asks_notices_it_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let config = crate::support::config(folder.path(), &[]);
    let listener = dezky_server::lifecycle::bind(config.listen, "").await.unwrap();
    let mut running = Running::start(config, listener).await.unwrap();
    take(folder.path(), "removed");
    let failure = tokio::time::timeout(Duration::from_secs(30), running.failed()).await.unwrap();
    assert_eq!(failure.status(), 1);
    assert!(failure.to_string().contains("was removed or replaced"), "{failure}");
    running.stop().await.unwrap();
}
