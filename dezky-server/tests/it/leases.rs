//! Leases acquired while the clock was ahead.

use std::time::{Duration, Instant};

use dezky_core::Runtime as _;
use dezky_core::rt::TokioRuntime;
use dezky_ingest::testkit::{AuthentikDouble, authentik_event};
use tempfile::TempDir;

use crate::servers::{OwnServer, clock_ahead, cluster};
use crate::support::{Process, until};

/// A followed file and a polled Authentik, each with a worker that holds a lease.
struct Sources {
    folder: TempDir,
    authentik: AuthentikDouble,
    logins: u64,
}

impl Sources {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ocis.log"), "").unwrap();
        let authentik = AuthentikDouble::builder().start().await.unwrap();
        Self { folder, authentik, logins: 0 }
    }

    fn start(&self, store: &str, environment: &[(&str, String)]) -> Process {
        let token = self.authentik.token();
        let mut set = vec![
            ("DEZKY_STORE", store),
            ("OCIS_AUDIT_LOG_PATH", "ocis.log"),
            ("DEZKY_OCIS_POLL_SECONDS", "1"),
            ("DEZKY_AUTHENTIK_URL", self.authentik.url()),
            ("DEZKY_AUTHENTIK_TOKEN", &token),
            ("DEZKY_POLL_SECONDS", "1"),
        ];
        set.extend(environment.iter().map(|(name, value)| (*name, value.as_str())));
        Process::start(self.folder.path(), &set)
    }

    /// Creates an event in each source, and waits until the log has them.
    async fn go_on(&mut self, server: &Process, ip: &str) {
        use std::io::Write as _;
        self.logins += 1;
        let now = TokioRuntime.now().to_string();
        self.authentik.insert(authentik_event(self.logins, &now));
        let line = format!(
            r#"{{"RemoteAddr":"{ip}","User":"u-1","URL":"","Method":"","UserAgent":"","Time":"{now}","App":"admin-audit","Message":"m","Action":"file_delete","Success":true,"Path":"/a","Owner":"u-1","FileID":"f-1"}}"#
        );
        let mut file = std::fs::File::options();
        let mut file = file.append(true).open(self.folder.path().join("ocis.log")).unwrap();
        writeln!(file, "{line}").unwrap();
        let logins = usize::try_from(self.logins).unwrap();
        for source in ["ocis", "authentik"] {
            let query = format!("&source={source}");
            until(source, async || server.client.all(&query).await.len() == logins).await;
        }
    }
}

/// The state of each worker that has tried at least once.
async fn states(server: &Process) -> Vec<String> {
    let listed = server.client.get("/ingest").await.with_status(200);
    let sources = listed["sources"].as_array().unwrap().iter();
    let tried = sources.filter(|source| source["lastAttempt"].is_string());
    tried.filter_map(|source| source["state"].as_str().map(str::to_owned)).collect()
}

/// Kills a server that holds its leases, corrects the clock with `set_right`, and checks that the
/// next server's workers run at once.
async fn take_over(
    sources: &mut Sources,
    ahead: (&str, &[(&str, String)]),
    set_right: impl AsyncFnOnce() -> String,
) {
    let mut server = sources.start(ahead.0, ahead.1);
    sources.go_on(&server, "203.0.113.1").await;
    server.kill();
    let store = set_right().await;

    let began = Instant::now();
    let server = sources.start(&store, &[]);
    until("both workers are running", async || {
        let states = states(&server).await;
        assert!(!states.iter().any(|state| state == "standby"), "{states:?}");
        states == ["running", "running"]
    })
    .await;
    sources.go_on(&server, "203.0.113.2").await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    for name in ["ingest:ocis", "ingest:authentik"] {
        let said = format!(
            "a lease ends later than its length allows, because it was acquired while the clock was ahead: it is ignored lease={name:?}"
        );
        until("the log reports it", async || server.stderr().contains(&said)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_a_server_whose_clock_was_an_hour_ahead_holds_nobody_up() {
    let mut sources = Sources::new().await;
    let url = format!("sqlite://{}", sources.folder.path().join("dezky.db").display());
    take_over(&mut sources, (&url, &clock_ahead()), async || url.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_a_database_whose_clock_was_an_hour_ahead_holds_nobody_up() {
    let mut sources = Sources::new().await;
    let cluster = cluster();
    let ahead = OwnServer::postgres_in(cluster.path(), &clock_ahead()).await;
    let url = ahead.url.clone();
    let mut right = None;
    let set_right = async || {
        ahead.stop().await;
        let server = OwnServer::postgres_in(cluster.path(), &[]).await;
        right.insert(server).url.clone()
    };
    take_over(&mut sources, (&url, &[]), set_right).await;
}
