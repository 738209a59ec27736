//! Paths in the configuration and in options: whatever they point to, nothing is lost and nothing
//! hangs.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Process, program, refusal, run, spawn_serve, stdout};

/// Runs the program in `folder`; a command that hangs fails the test.
fn ended(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut child = program(arguments)
        .current_dir(folder)
        .env("DEZKY_LISTEN", "127.0.0.1:0")
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
            panic!("{arguments:?} {environment:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Creates a log with one event in `folder`, with a server that has ended.
async fn log_with_an_event(folder: &Path) {
    let server = Process::start(folder, &[]);
    let flag = json!({ "key": "a", "state": "on" });
    server.client.post("/flags", flag).await.with_status(201);
    server.stop().await;
}

/// The names and contents of the files in `folder`, except those that the harness writes.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file() && entry.file_name() != "stderr")
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_written_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    log_with_an_event(folder).await;
    fs::write(folder.join("secret"), "0123456789abcdef0123456789abcdef").unwrap();
    fs::write(folder.join("followed.log"), "{}\n").unwrap();
    fs::hard_link(folder.join("dezky.db"), folder.join("linked")).unwrap();
    std::os::unix::fs::symlink("secret", folder.join("soft")).unwrap();
    fs::write(
        folder.join("dezky.toml"),
        "[flags]\nfile = \"dezky.toml\"\n[sources.shop]\npath = \"shop.log\"\nmap = { action = \"/a\" }\n",
    )
    .unwrap();
    let before = content(folder);
    let (flags, spool, head) = ("DEZKY_FLAGS_FILE", "DEZKY_SPOOL_PATH", "DEZKY_HEAD_PATH");
    let token = ("DEZKY_OPERATOR_TOKEN_FILE", "secret");
    for (environment, keys) in [
        (&[(flags, "dezky.db")][..], ["flags.file", "store.url"]),
        (&[(flags, "./dezky.db")], ["flags.file", "store.url"]),
        (&[(flags, "linked")], ["flags.file", "store.url"]),
        (&[(flags, "dezky.db-wal")], ["flags.file", "store.url"]),
        (&[(spool, "dezky.db-journal")], ["spool.path", "store.url"]),
        (&[(flags, "dezky.db.head")], ["flags.file", "head.path"]),
        (&[(head, "dezky.db")], ["head.path", "store.url"]),
        (&[(spool, "dezky.db")], ["spool.path", "store.url"]),
        (&[(flags, "a2"), (spool, "a2")], ["flags.file", "spool.path"]),
        (&[(flags, "a2"), (spool, "a2.new")], ["flags.file", "spool.path"]),
        (&[(flags, "a2"), (head, "a2")], ["flags.file", "head.path"]),
        (&[(spool, "a2"), (head, "a2")], ["spool.path", "head.path"]),
        (&[(flags, "secret"), token], ["flags.file", "operator_token_file"]),
        (&[(flags, "soft"), token], ["flags.file", "operator_token_file"]),
        (
            &[(spool, "secret"), ("DEZKY_STALWART_SECRET_FILES", "secret")],
            ["spool.path", "stalwart.secret_files"],
        ),
        (
            &[(flags, "followed.log"), ("OCIS_AUDIT_LOG_PATH", "followed.log")],
            ["flags.file", "ocis.log_path"],
        ),
        (&[("DEZKY_CONFIG", "dezky.toml")], ["flags.file", "--config"]),
        (
            &[("DEZKY_CONFIG", "dezky.toml"), (flags, "shop.log")],
            ["flags.file", "sources.shop.path"],
        ),
    ] {
        for command in [&["config", "check"][..], &["serve"]] {
            let said = refusal(&ended(folder, command, environment), 2);
            assert!(keys.iter().all(|key| said.contains(key)), "{environment:?}: {said}");
        }
    }
    assert_eq!(content(folder), before);
    // A file that is only read may be used twice.
    let twice = [token, ("STALWART_WEBHOOK_SECRET", ""), ("DEZKY_STALWART_SECRET_FILES", "secret")];
    let checked = ended(folder, &["config", "check"], &[twice[0], twice[2]]);
    assert!(checked.status.success(), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_something_else_are_refused_and_stay() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    log_with_an_event(folder).await;
    let exported = ended(folder, &["flags", "export"], &[]);
    fs::write(folder.join("export.json"), stdout(&exported)).unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    fs::write(folder.join("by-hand.json"), r#"{"flags":[{"key":"a"}]}"#).unwrap();
    fs::copy(folder.join("dezky.db"), folder.join("other.db")).unwrap();
    let before = content(folder);
    for (variable, key) in [
        ("DEZKY_FLAGS_FILE", "flags.file"),
        ("DEZKY_SPOOL_PATH", "spool.path"),
        ("DEZKY_HEAD_PATH", "head.path"),
    ] {
        for name in ["notes.txt", "export.json", "by-hand.json", "other.db"] {
            for command in [&["config", "check"][..], &["serve"]] {
                let said = refusal(&ended(folder, command, &[(variable, name)]), 2);
                assert!(said.contains(key) && said.contains(name), "{said}");
            }
        }
    }
    for command in [&["config", "check"][..], &["serve"]] {
        refusal(&ended(folder, command, &[("DEZKY_STORE", "sqlite://notes.txt")]), 2);
    }
    assert_eq!(content(folder), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_replaces_an_export_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    log_with_an_event(folder).await;
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    fs::write(folder.join("notes.json"), r#"{"mine":true}"#).unwrap();
    fs::copy(folder.join("dezky.db"), folder.join("aside.new")).unwrap();
    fs::write(folder.join("secret"), "0123456789abcdef0123456789abcdef").unwrap();
    std::os::unix::fs::symlink("dezky.db", folder.join("soft")).unwrap();
    let export = |out: &str, environment: &[(&str, &str)]| {
        ended(folder, &["flags", "export", "--out", out], environment)
    };
    let before = content(folder);
    let aside = [("DEZKY_STORE", "sqlite://aside.new")];
    let token = [("DEZKY_OPERATOR_TOKEN_FILE", "secret")];
    for (out, environment) in [
        ("dezky.db", &[][..]),
        ("soft", &[]),
        ("dezky.db-wal", &[]),
        ("dezky.db.head", &[]),
        ("aside", &aside),
        ("secret", &token),
        ("notes.txt", &[]),
        ("notes.json", &[]),
        (".", &[]),
        ("/dev/null", &[]),
    ] {
        let said = refusal(&export(out, environment), 2);
        assert!(said.contains(&format!("--out {out}: ")), "{said}");
    }
    assert_eq!(content(folder), before);
    for _ in 0..2 {
        let exported = export("flags.json", &[]);
        assert!(exported.status.success(), "{exported:?}");
    }
    fs::write(folder.join("empty"), "").unwrap();
    assert!(export("empty", &[]).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_copy_is_made_at_a_path_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    log_with_an_event(folder).await;
    let before = content(folder);
    for (variable, to) in [
        ("DEZKY_SPOOL_PATH", "to.db"),
        ("DEZKY_FLAGS_FILE", "to.db"),
        ("DEZKY_FLAGS_FILE", "to.db-wal"),
        ("DEZKY_HEAD_PATH", "to.db"),
    ] {
        let copied = ended(
            folder,
            &["copy", "--from", "sqlite://dezky.db", "--to", "sqlite://to.db"],
            &[(variable, to)],
        );
        assert!(refusal(&copied, 2).contains("--to to.db: "));
    }
    assert_eq!(content(folder), before);
}

#[test]
fn a_pipe_is_refused_before_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pipe(&folder.join("pipe"));
    let store = [("DEZKY_STORE", "sqlite://pipe")];
    for command in [
        &["serve"][..],
        &["config", "check"],
        &["verify"],
        &["migrate"],
        &["flags", "list"],
        &["users", "list"],
        &["quarantine", "list"],
        &["copy", "--from", "sqlite://pipe", "--to", "sqlite://new.db"],
    ] {
        let environment = if command[0] == "copy" { &[][..] } else { &store[..] };
        let said = refusal(&ended(folder, command, environment), 2);
        assert!(said.contains("not a regular file"), "{command:?}: {said}");
    }
    let examined = ended(folder, &["doctor"], &store);
    assert_eq!(examined.status.code(), Some(1));
    assert!(stdout(&examined).contains("not a regular file"), "{examined:?}");
    for variable in [
        "DEZKY_CONFIG",
        "DEZKY_SPOOL_PATH",
        "DEZKY_FLAGS_FILE",
        "DEZKY_HEAD_PATH",
        "DEZKY_OPERATOR_TOKEN_FILE",
        "DEZKY_STORE_PASSWORD_FILE",
        "DEZKY_STALWART_SECRET_FILES",
        "OCIS_AUDIT_LOG_PATH",
    ] {
        for command in [&["config", "check"][..], &["serve"]] {
            let said = refusal(&ended(folder, command, &[(variable, "pipe")]), 2);
            assert!(said.contains("file"), "{variable}: {said}");
        }
    }
    // Only this command may create a store, for the following commands.
    assert!(ended(folder, &["migrate"], &[]).status.success());
    for command in [
        &["flags", "import", "pipe"][..],
        &["flags", "eval", "--tenant", "acme", "--file", "pipe"],
        &["flags", "preview", "--file", "pipe"],
        &["flags", "export", "--out", "pipe"],
    ] {
        let said = refusal(&ended(folder, command, &[]), 2);
        assert!(said.contains("pipe: ") && said.contains("regular file"), "{command:?}: {said}");
    }
    fs::create_dir(folder.join("demo")).unwrap();
    pipe(&folder.join("demo/.lock"));
    let demo = ended(folder, &["demo", "--once", "--data", "demo"], &[]);
    refusal(&demo, 2);
    // The files that SQLite opens next to a database.
    for ending in ["-wal", "-shm", "-journal"] {
        let sibling = folder.join(format!("dezky.db{ending}"));
        pipe(&sibling);
        let said = refusal(&ended(folder, &["verify"], &[]), 2);
        assert!(said.contains(&format!("dezky.db{ending} is not a regular file")), "{said}");
        fs::remove_file(&sibling).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_server_whose_store_is_not_open_yet() {
    let folder = tempfile::tempdir().unwrap();
    // Accepts connections, but sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u@{}/db?sslmode=disable", silent.local_addr().unwrap());
    let more = [("DEZKY_STORE", url.as_str()), ("DEZKY_STORE_ACQUIRE_TIMEOUT_SECONDS", "300")];
    let (mut child, stderr) = spawn_serve(folder.path(), &more);
    let (_connection, _) = silent.accept().unwrap();
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("SIGTERM does not end it");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = fs::read_to_string(stderr).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_removed_is_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    log_with_an_event(folder).await;
    fs::remove_file(folder.join("dezky.db")).unwrap();
    let before = content(folder);
    for command in [&["serve"][..], &["migrate"], &["migrate", "--check"], &["config", "check"]] {
        let said = refusal(&ended(folder, command, &[]), 2);
        assert!(said.contains("dezky.db.head") && said.contains("restore it"), "{said}");
    }
    let examined = ended(folder, &["doctor"], &[]);
    assert_eq!(examined.status.code(), Some(1));
    let said = stdout(&examined);
    assert!(said.contains("the log is gone") && said.contains("dezky.db.head"), "{said}");
    assert!(!said.contains("migrate"), "{said}");
    assert_eq!(content(folder), before);
    fs::remove_file(folder.join("dezky.db.head")).unwrap();
    assert!(ended(folder, &["migrate"], &[]).status.success());
}

/// In another program's folder, the demo would rotate a log that is not its own.
#[test]
fn the_demo_takes_an_empty_folder_or_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let ocis = folder.path().join("ocis");
    fs::create_dir(&ocis).unwrap();
    fs::write(ocis.join("audit.log"), "mine\n").unwrap();
    let demo = run(&["demo", "--once", "--data", folder.path().to_str().unwrap()], &[]);
    assert!(refusal(&demo, 2).contains("is not empty"));
    assert_eq!(fs::read_dir(&ocis).unwrap().count(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
