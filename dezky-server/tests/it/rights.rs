//! A store that a server may read, but not write.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::json;

use crate::servers::{postgres_user, sql};
use crate::support::{Database, Engine, Process, WEBHOOK, program, refusal, run, stdout, until};

/// A role, dropped at the end, and a database that it may read.
struct Role {
    name: String,
    url: String,
    owner: String,
    _database: Database,
}

impl Role {
    async fn reading() -> Self {
        let database = Database::new(Engine::Postgres).await.unwrap();
        let owner = database.url.clone();
        assert!(run(&["migrate", "--store", &owner], &[]).status.success());
        let (_, place) = owner.split_once('@').unwrap();
        let name = place.rsplit('/').next().unwrap().replace("dezky_test", "dezky_reader");
        let url = format!("postgres://{name}@{place}");
        let role = Self { name, url, owner, _database: database };
        role.run("CREATE ROLE {} LOGIN; GRANT USAGE ON SCHEMA public TO {}").await;
        role.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").await;
        role
    }

    /// Runs statements as the owner; `{}` is the role.
    async fn run(&self, statements: &str) {
        sql(&self.owner, &statements.replace("{}", &self.name)).await;
    }

    async fn drop(self) {
        self.run("DROP OWNED BY {}; DROP ROLE {}").await;
    }
}

fn serve(url: &str, more: &[(&str, &str)]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program(&["serve"]);
    command.current_dir(folder.path()).env("DEZKY_LISTEN", "127.0.0.1:0");
    command.env("DEZKY_STORE", url).envs(more.iter().copied()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_select_alone_is_refused_at_the_start_and_may_verify() {
    let role = Role::reading().await;
    for more in [&[][..], &[("DEZKY_STORE_MIGRATE", "false")]] {
        let said = refusal(&serve(&role.url, more), 2);
        for word in [
            "INSERT on dezky_audit_events",
            "UPDATE on dezky_audit_log",
            "DELETE on dezky_outbox",
            ": GRANT UPDATE ON dezky_audit_log TO dezky_reader_",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        // Nothing else: the message does not suggest rights that were revoked to protect the log.
        assert!(
            !said.contains("ALL TABLES") && !said.contains("UPDATE on dezky_audit_events"),
            "{said}"
        );
    }
    // Read-only commands need no more.
    let verified = run(&["verify", "--store", &role.url], &[]);
    assert!(verified.status.success(), "{verified:?}");
    let listed = run(&["flags", "list", "--store", &role.url], &[]);
    assert!(listed.status.success(), "{listed:?}");
    let doctor = run(&["doctor", "--store", &role.url], &[]);
    assert!(
        !doctor.status.success() && stdout(&doctor).contains("bad   permissions"),
        "{doctor:?}"
    );

    // One right on one table.
    role.run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}").await;
    role.run("REVOKE UPDATE ON dezky_flags_state FROM {}").await;
    let said = refusal(&serve(&role.url, &[]), 2);
    assert!(said.contains("lacks rights: UPDATE on dezky_flags_state: GRANT UPDATE ON dezky_flags_state TO dezky_reader_"), "{said}");
    // A log whose events can't be updated or deleted is accepted.
    role.run("GRANT UPDATE ON dezky_flags_state TO {}").await;
    role.run("REVOKE UPDATE, DELETE ON dezky_audit_events FROM {}").await;
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), &[("DEZKY_STORE", &role.url)]);
    server.client.post("/audit", json!({ "action": "a.b" })).await.with_status(201);
    server.stop().await;
    role.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_taken_under_a_server_make_the_store_unavailable() {
    let role = Role::reading().await;
    role.run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}").await;
    let folder = tempfile::tempdir().unwrap();
    let set = [("DEZKY_STORE", role.url.as_str()), ("DEZKY_SPOOL_PATH", "audit.spool")];
    let server = Process::start(folder.path(), &set);
    let client = &server.client;
    client.post("/flags", json!({ "key": "k", "state": "on" })).await.with_status(201);
    let event = json!({ "action": "tenant.created" });

    role.run("REVOKE INSERT, UPDATE ON ALL TABLES IN SCHEMA public FROM {}").await;
    client.post("/audit", event.clone()).await.with_status(202);
    client.act("/flags/k/kill").await.problem(503, "store_unavailable");
    let body = r#"{"events":[{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{}}]}"#;
    assert_eq!(client.post_signed(WEBHOOK, body).await.with_status(200)["received"], 1);
    assert!(client.all("&source=stalwart").await.is_empty(), "it is in the spool");
    let health = async || client.get("/health").await.with_status(200);
    until("health reports it", async || health().await["status"] == "degraded").await;

    role.run("GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {}").await;
    for query in ["&source=stalwart", "&action=tenant.created"] {
        until("the spool is moved", async || client.all(query).await.len() == 1).await;
    }
    client.post("/audit", event).await.with_status(201);
    client.act("/flags/k/kill").await.with_status(200);
    until("health reports it", async || health().await["status"] == "ok").await;
    server.stop().await;
    role.drop().await;
}

#[test]
fn a_file_that_may_not_be_written_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.db");
    let url = format!("sqlite://{}", path.display());
    assert!(run(&["migrate", "--store", &url], &[]).status.success());
    let set_mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let apart = tempfile::tempdir().unwrap();
    set_mode(apart.path(), 0o777);
    let as_somebody = |arguments: &[&str]| {
        let mut command: Command = program(arguments);
        // Root may read every file.
        if let Some((uid, gid)) = postgres_user() {
            command.uid(uid).gid(gid);
        }
        let head = apart.path().join("audit.head");
        command.env("DEZKY_LISTEN", "127.0.0.1:0").env("DEZKY_STORE", &url);
        command.env("DEZKY_HEAD_PATH", head).current_dir(apart.path()).output().unwrap()
    };
    for (folder_mode, file_mode) in [(0o555, 0o444), (0o777, 0o444), (0o555, 0o666)] {
        set_mode(&path, file_mode);
        set_mode(folder.path(), folder_mode);
        let said = refusal(&as_somebody(&["serve"]), 2);
        assert!(said.contains("audit.db") && said.contains("can't write"), "{said}");
        let verified = as_somebody(&["verify"]);
        assert!(verified.status.success(), "{verified:?}");
    }
    set_mode(folder.path(), 0o777);
}
