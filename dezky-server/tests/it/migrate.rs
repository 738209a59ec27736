//! `migrate` on every engine.

use std::process::Stdio;

use dezky_core::store::{MongoAuditStore, PostgresAuditStore, SqliteAuditStore};
use sqlx::{Connection as _, SqliteConnection};

use crate::database::at_database;
use crate::servers::{free_port, sql};
use crate::support::{Database, Engine, program, refusal, run, stdout};

/// An empty database or folder for a store.
async fn empty(engine: Engine) -> (tempfile::TempDir, Option<Database>, String) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::new(engine).await;
    let url = database.as_ref().map_or_else(
        || format!("sqlite://{}", folder.path().join("audit.db").display()),
        |database| database.url.clone(),
    );
    (folder, database, url)
}

async fn it_says_from_where_to_where(engine: Engine) {
    let (folder, _database, url) = empty(engine).await;
    let audit = match engine {
        Engine::Sqlite => SqliteAuditStore::schema_version(),
        Engine::Postgres => PostgresAuditStore::schema_version(),
        Engine::Mongodb => MongoAuditStore::schema_version(),
    };
    let migrate = |more: &[&str]| run(&[&["migrate", "--store", &url], more].concat(), &[]);
    for check in ["--check", "--dry-run"] {
        let output = migrate(&[check]);
        assert!(refusal(&output, 1).contains("run dezky-server migrate"));
        let to_become = format!("audit: version 0, to become {audit}");
        assert!(stdout(&output).contains(&to_become), "{output:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was created");
    // A server that may not migrate says what to do, and creates nothing.
    let unmigrated = [("DEZKY_STORE_MIGRATE", "false"), ("DEZKY_LISTEN", "127.0.0.1:0")];
    let head = folder.path().join("x.head").display().to_string();
    let unmigrated = [&unmigrated[..], &[("DEZKY_HEAD_PATH", head.as_str())]].concat();
    let said = refusal(&run(&["serve", "--store", &url], &unmigrated), 2);
    assert!(said.contains("dezky-server migrate") || said.contains("no such file"), "{said}");
    assert_eq!(migrate(&["--check"]).status.code(), Some(1));

    let output = migrate(&[]);
    assert!(output.status.success(), "{output:?}");
    for (component, version) in [("audit", audit), ("directory", 1), ("flags", 1)] {
        assert!(
            stdout(&output).contains(&format!("{component}: from version 0 to {version}")),
            "{output:?}"
        );
    }
    assert!(output.stderr.is_empty(), "creating a store logs no progress: {output:?}");
    let again = migrate(&["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(
        (&report["changed"], &report["components"]["flags"]["from"]),
        (&false.into(), &1.into())
    );
    // After the migration, the store is up to date.
    assert!(migrate(&["--check"]).status.success());
    assert!(run(&["verify", "--store", &url], &[]).status.success());
    assert!(run(&["flags", "list", "--store", &url], &[]).status.success());
}

/// A file with an older schema.
async fn version_1() -> (tempfile::TempDir, String) {
    let (folder, _, url) = empty(Engine::Sqlite).await;
    let mut file = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
    let fixture = include_str!("../../../dezky-core/tests/fixtures/sqlite-v1.sql");
    sqlx::raw_sql(fixture).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
    (folder, url)
}

#[tokio::test]
async fn a_log_of_an_older_schema_is_migrated_and_says_how_far_it_is() {
    let (folder, url) = version_1().await;
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        run(&[arguments, &["--store", &url]].concat(), environment)
    };
    let output = run(&["migrate", "--check"], &[]);
    assert!(stdout(&output).contains("audit: version 1, to become 3"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
    let output = run(&["doctor"], &[]);
    assert!(stdout(&output).contains("audit is at version 1, this program knows 3"), "{output:?}");
    // Neither a read-only command nor a server that may not migrate changes it.
    let head = folder.path().join("x.head").display().to_string();
    let unmigrated = [
        ("DEZKY_STORE_MIGRATE", "false"),
        ("DEZKY_LISTEN", "127.0.0.1:0"),
        ("DEZKY_HEAD_PATH", head.as_str()),
    ];
    for arguments in [&["serve"][..], &["verify"]] {
        let said = refusal(&run(arguments, &unmigrated), 2);
        assert!(said.contains("dezky-server migrate"), "{said}");
    }

    let output = run(&["migrate"], &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).contains("audit: from version 1 to 3"), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = told.lines().filter(|line| line.contains("brought up to date")).collect();
    assert_eq!(lines.len(), 5, "{told}");
    assert!(lines[4].contains("part=5 of=5"), "{told}");
    assert!(run(&["migrate", "--check"], &[]).status.success());
    assert!(run(&["verify"], &[]).status.success());
}

async fn several_at_once_agree(engine: Engine) {
    let (_folder, _database, url) = empty(engine).await;
    let begin = || {
        let mut command = program(&["migrate", "--store", &url]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let racing: Vec<_> = (0..4).map(|_| begin()).collect();
    for child in racing {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(run(&["migrate", "--check", "--store", &url], &[]).status.success());
}

#[tokio::test]
async fn sqlite_says_from_where_to_where() {
    it_says_from_where_to_where(Engine::Sqlite).await;
}

#[tokio::test]
async fn postgres_says_from_where_to_where() {
    it_says_from_where_to_where(Engine::Postgres).await;
}

#[tokio::test]
async fn mongodb_says_from_where_to_where() {
    it_says_from_where_to_where(Engine::Mongodb).await;
}

#[tokio::test]
async fn several_at_once_agree_on_sqlite() {
    several_at_once_agree(Engine::Sqlite).await;
}

#[tokio::test]
async fn several_at_once_agree_on_postgres() {
    several_at_once_agree(Engine::Postgres).await;
}

#[tokio::test]
async fn several_at_once_agree_on_mongodb() {
    several_at_once_agree(Engine::Mongodb).await;
}

#[tokio::test]
async fn the_search_index_is_made_where_it_can_be() {
    let (_folder, _database, url) = empty(Engine::Postgres).await;
    for _ in 0..2 {
        let output = run(&["migrate", "--search-index", "--store", &url], &[]);
        assert!(stdout(&output).contains("search index: there"), "{output:?}");
    }
    sql(&url, "DO $$ BEGIN ASSERT to_regclass('dezky_audit_events_search') IS NOT NULL; END $$")
        .await;
    let (_folder, _, url) = empty(Engine::Sqlite).await;
    let said = refusal(&run(&["migrate", "--search-index", "--store", &url], &[]), 2);
    assert!(said.contains("PostgreSQL only"), "{said}");
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let (_folder, _database, url) = empty(Engine::Postgres).await;
    assert!(run(&["migrate", "--store", &url], &[]).status.success());
    sql(&url, "UPDATE dezky_schema SET version = 99 WHERE component = 'flags'").await;
    for arguments in [&["migrate"][..], &["migrate", "--check"], &["flags", "list"]] {
        let said = refusal(&run(&[arguments, &["--store", &url]].concat(), &[]), 2);
        assert!(said.contains("99") && said.contains("upgrade dezky"), "{said}");
    }
}

#[tokio::test]
async fn what_is_refused_shows_no_password() {
    let (_folder, _database, url) = empty(Engine::Postgres).await;
    let url = at_database(&url, "nowhere").replace("dezky@", "dezky:p4ssw0rd@");
    for arguments in [&["migrate"][..], &["verify"], &["doctor"], &["config", "check"]] {
        let output = run(&[arguments, &["--store", &url]].concat(), &[]);
        let said = format!("{output:?}");
        assert!(!said.contains("p4ssw0rd"), "{said}");
        assert!(said.contains("postgres://dezky@127.0.0.1:"), "{said}");
    }
}

/// A URL that can't lead to a store is a usage error; an unreachable server is not.
#[tokio::test]
async fn what_does_not_lead_to_a_store_is_told_from_what_does_not_answer() {
    let database = Database::new(Engine::Postgres).await.unwrap();
    let url = at_database(&database.url, "dezky_it_not_there");
    for command in ["migrate", "serve"] {
        let folder = tempfile::tempdir().unwrap();
        let head = folder.path().join("x.head").display().to_string();
        let environment = [("DEZKY_LISTEN", "127.0.0.1:0"), ("DEZKY_HEAD_PATH", head.as_str())];
        let said = refusal(&run(&[command, "--store", &url], &environment), 2);
        assert!(said.contains("no such database"), "{said}");
        // If it were ignored, it would be logged with its value.
        let mistyped = format!("{url}?pasword=p4ssw0rd");
        let said = refusal(&run(&[command, "--store", &mistyped], &environment), 2);
        assert!(said.contains("unknown option pasword") && !said.contains("p4ss"), "{said}");
    }
    let gone = format!("postgres://dezky@127.0.0.1:{}/x", free_port());
    refusal(&run(&["migrate", "--store", &gone], &[]), 1);
}
