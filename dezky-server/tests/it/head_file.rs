//! Detection of a store that was rolled back to a backup, by its head file.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::servers::{program_of_server, sql};
use crate::support::{Database, Engine, Process, program, refusal, stdout, until, verbs};

async fn record(process: &Process, count: usize) {
    for _ in 0..count {
        process.client.post("/audit", json!({ "action": "tenant.created" })).await.with_status(201);
    }
}

/// The number of events in the head file.
fn noted(head: &Path) -> u64 {
    let text = std::fs::read_to_string(head).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["nextSeq"].as_u64().unwrap()
}

fn command(folder: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = program(arguments);
    command.current_dir(folder).env("DEZKY_LISTEN", "127.0.0.1:0");
    command.envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn a_pipe_in_place_of_the_note_stops_what_would_wait_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head").display().to_string();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    let set = [("DEZKY_STORE", url.as_str()), ("DEZKY_HEAD_PATH", &head)];
    assert!(command(folder.path(), &set, &["migrate"]).status.success());
    assert!(std::process::Command::new("mkfifo").arg(&head).status().unwrap().success());
    for arguments in [&["serve"][..], &["config", "check"]] {
        let said = refusal(&command(folder.path(), &set, arguments), 2);
        assert!(said.contains("head.path") && said.contains("not a regular file"), "{said}");
    }
    let output = command(folder.path(), &set, &["doctor"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("not a regular file"), "{output:?}");
}

/// Checks that `serve` and `doctor` fail until the head is acknowledged, and that the
/// acknowledgement is on the timeline.
async fn refused_until_acknowledged(folder: &Path, environment: &[(&str, &str)], events: usize) {
    for _ in 0..2 {
        let said = refusal(&command(folder, environment, &["serve"]), 2);
        for word in ["expected head ", ", found head ", "doctor --acknowledge-head"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    let output = command(folder, environment, &["doctor"]);
    assert!(stdout(&output).contains("bad   head"), "{output:?}");
    // Read-only commands still work, and don't write the head file.
    assert!(command(folder, environment, &["verify"]).status.success());
    refusal(&command(folder, environment, &["serve"]), 2);

    let output = command(folder, environment, &["doctor", "--acknowledge-head"]);
    assert!(stdout(&output).starts_with("acknowledged: expected head "), "{output:?}");
    let output = command(folder, environment, &["doctor", "--acknowledge-head"]);
    assert!(stdout(&output).starts_with("nothing to acknowledge"), "{output:?}");
    let process = Process::start(folder, environment);
    let all = process.client.all("").await;
    assert_eq!(all.len(), events + 1);
    let told = process.client.all("&action=log.head_acknowledged").await;
    let metadata = &told[0]["metadata"];
    assert_eq!(metadata["found"]["nextSeq"], events);
    assert!(metadata["expected"]["nextSeq"].as_u64().unwrap() > events as u64);
    assert_eq!(told[0]["actorType"], "operator");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_went_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (file, head) = (folder.join("dezky.db"), folder.join("dezky.db.head"));
    let process = Process::start(folder, &[]);
    record(&process, 3).await;
    until("the head", async || noted(&head) == 3).await;
    process.stop().await;
    std::fs::copy(&file, folder.join("backup")).unwrap();

    let process = Process::start(folder, &[]);
    record(&process, 2).await;
    process.stop().await;
    assert_eq!(noted(&head), 5, "written at shutdown too");
    std::fs::copy(folder.join("backup"), &file).unwrap();
    refused_until_acknowledged(folder, &[], 3).await;

    // If the database is gone, no new one is created in its place.
    std::fs::remove_file(&file).unwrap();
    let said = refusal(&command(folder, &[], &["serve"]), 2);
    assert!(said.contains("found no log") && said.contains("dezky.db.head"), "{said}");
    assert!(!file.exists());
    // An unreadable head file does not count as a first start.
    std::fs::write(&head, "{}").unwrap();
    std::fs::copy(folder.join("backup"), &file).unwrap();
    let said = refusal(&command(folder, &[], &["serve"]), 2);
    assert!(said.contains("dezky.db.head") && said.contains("is not a head file"), "{said}");
    std::fs::remove_file(&head).unwrap();
    let process = Process::start(folder, &[]);
    assert_eq!(verbs(process.client.all("").await), ["tenant.created"; 3]);
    process.stop().await;
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["backup", "dezky.db", "dezky.db.head", "stderr"], "nothing else is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_database_that_went_back_under_a_server_and_before_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let database = Database::new(Engine::Postgres).await.unwrap();
    let environment = [("DEZKY_STORE", database.url.as_str())];
    let process = Process::start(folder, &environment);
    record(&process, 2).await;
    process.stop().await;
    let dump = program_of_server("pg_dump").args(["-Fc", "-d", &database.url]).output().unwrap();
    assert!(dump.status.success(), "{dump:?}");

    let mut process = Process::start(folder, &environment);
    record(&process, 3).await;
    until("the head", async || noted(&folder.join("dezky.head")) == 5).await;
    sql(&database.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    let mut restore = program_of_server("pg_restore")
        .args(["-d", &database.url])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    restore.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
    let restored = restore.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&restored.stderr);
    // A schema of this name exists already.
    assert!(
        restored.status.success() || said.contains("schema \"public\" already exists"),
        "{said}"
    );

    // Further appends would hide the loss.
    until("the end of the server", async || process.ended().is_some()).await;
    assert!(!process.ended().unwrap().success());
    assert!(process.stderr().contains("the log went back from"), "{}", process.stderr());
    refused_until_acknowledged(folder, &environment, 2).await;

    // An empty database stays empty, so that a backup can be restored into it.
    sql(&database.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    let said = refusal(&command(folder, &environment, &["serve"]), 2);
    assert!(said.contains("found no log") && said.contains("dezky.head"), "{said}");
    sql(&database.url, "DROP SCHEMA public RESTRICT").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_log_in_the_place_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let [first, other] = [
        Database::new(Engine::Mongodb).await.unwrap(),
        Database::new(Engine::Mongodb).await.unwrap(),
    ];
    let process = Process::start(folder.path(), &[("DEZKY_STORE", &first.url)]);
    record(&process, 2).await;
    process.stop().await;
    let environment = [("DEZKY_STORE", other.url.as_str())];
    // The other store has no log yet; creating one would hide that the first log is missing.
    let said = refusal(&command(folder.path(), &environment, &["migrate"]), 2);
    assert!(said.contains("expected head 1:") && said.contains("found no log"), "{said}");
    let unnoted = [&environment[..], &[("DEZKY_HEAD_PATH", "unnoted.head")]].concat();
    assert!(command(folder.path(), &unnoted, &["migrate"]).status.success());
    let said = refusal(&command(folder.path(), &environment, &["serve"]), 2);
    assert!(said.contains("expected head 1:") && said.contains("found the empty log"), "{said}");
    // With another head file, this is a first start.
    let apart = [&environment[..], &[("DEZKY_HEAD_PATH", "other.head")]].concat();
    Process::start(folder.path(), &apart).stop().await;
    let said = refusal(
        &command(
            folder.path(),
            &[("DEZKY_STORE", &first.url), ("DEZKY_HEAD_PATH", "nowhere/x.head")],
            &["serve"],
        ),
        2,
    );
    assert!(said.contains("head.path nowhere/x.head"), "{said}");
}
