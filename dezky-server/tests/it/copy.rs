//! `copy` as a process: a whole store from engine to engine.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use dezky::{Access, Stores};
use dezky_core::copy::{compare_directories, compare_logs};
use dezky_core::directory::{Edit, NewTenant, TenantKey};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore as _, SqliteAuditStore, SqliteConfig};
use dezky_core::{Actor, AuditLog, NewEvent, QuarantineItem, SealedEvent, Timestamp};
use dezky_flags::{Flags, NewFlag};
use dezky_server::Settings;
use serde_json::Value;

use crate::servers::{Database, Engine};
use crate::support::{program, refusal, run, stdout, until};

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

fn copy(from: &str, to: &str, more: &[&str]) -> Output {
    run(&[&["copy", "--from", from, "--to", to], more].concat(), &[])
}

fn events(count: usize) -> Vec<SealedEvent> {
    let event = || NewEvent::new("tenant.updated", Actor::user("u-1")).seal(&TokioRuntime);
    std::iter::repeat_with(event).take(count).collect()
}

/// Everybody on the machine could read a password in the arguments.
#[test]
fn the_ends_may_stand_in_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["a.db", "b.db"].map(|name| url(&folder.path().join(name)));
    assert!(run(&["migrate", "--store", &from], &[]).status.success());
    let ends = [("DEZKY_FROM", from.as_str()), ("DEZKY_TO", to.as_str())];
    let output = run(&["copy"], &ends);
    assert!(output.status.success(), "{output:?}");
    let secret = [("DEZKY_FROM", "postgres://u:p4ssw0rd@h/x"), ("DEZKY_TO", "postgres://u@h/x")];
    let help = run(&["copy", "--help"], &secret);
    assert!(stdout(&help).contains("DEZKY_FROM") && !stdout(&help).contains("p4ssw0rd"));
}

async fn open(url: &str) -> Stores {
    let settings = Settings::load(None, [], Some(url)).unwrap();
    Stores::open(&settings.store().unwrap(), Access::Write).await.unwrap()
}

async fn differences(left: &str, right: &str) -> Vec<String> {
    let (left, right) = (open(left).await, open(right).await);
    let mut found = Vec::new();
    found.extend(compare_logs(&*left.log, &*right.log).await.unwrap());
    found.extend(compare_directories(&*left.directory, &*right.directory).await.unwrap());
    if left.flags.table().await.unwrap() != right.flags.table().await.unwrap() {
        found.push("flags".into());
    }
    left.close().await;
    right.close().await;
    found
}

/// The demo's store, with a deleted tenant, a removed flag, an item in quarantine
/// and events that still wait in the outbox.
async fn lived_in(folder: &Path) -> String {
    let demo = run(&["demo", "--once", "--data", folder.to_str().unwrap()], &[]);
    assert!(demo.status.success(), "{demo:?}");
    let url = url(&folder.join("dezky.db"));
    let stores = open(&url).await;
    let runtime = std::sync::Arc::new(TokioRuntime);
    let log = std::sync::Arc::new(AuditLog::new(stores.log.clone(), runtime.clone()));
    let by = Edit::by(Actor::system());
    let directory = dezky_core::directory::Directory::new(
        stores.directory.clone(),
        log.clone(),
        runtime.clone(),
    );
    directory.create_tenant(NewTenant::new("gone", "Gone", "basic"), &by).await.unwrap();
    directory.delete_tenant(TenantKey::Slug("gone"), &by).await.unwrap();
    let flags = Flags::new(stores.flags.clone(), log, runtime);
    let by = dezky_flags::Edit::by(Actor::system());
    flags.create(NewFlag::new("gone"), &by).await.unwrap();
    flags.remove("gone", &by).await.unwrap();
    let item = QuarantineItem {
        source: "ocis".into(),
        key: "line:1".into(),
        reason: "not_json".into(),
        detail: "a line".into(),
        raw: b"{".to_vec(),
        at: Timestamp::MIN,
    };
    let options = AppendOptions { quarantine: vec![item], ..AppendOptions::default() };
    stores.log.append(Vec::new(), options).await.unwrap();
    stores.log.stage(events(5)).await.unwrap();
    stores.close().await;
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_goes_around_the_engines_and_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let first = lived_in(&folder.path().join("demo")).await;
    let postgres = Database::new(Engine::Postgres).await.unwrap();
    let mongodb = Database::new(Engine::Mongodb).await.unwrap();
    let last = url(&folder.path().join("last.db"));
    let way = [&first, &postgres.url, &mongodb.url, &last];
    let mut said = String::new();
    for ends in way.windows(2) {
        let copied = copy(ends[0], ends[1], &[]);
        assert!(copied.status.success(), "{copied:?}");
        let equal = stdout(&copied).split_once('\n').unwrap().1.to_owned();
        assert!(equal.starts_with("ok: both ends verified and equal: "), "{equal}");
        assert!(said.is_empty() || said == equal, "{said}{equal}");
        said = equal;
    }
    assert_eq!(differences(&first, &last).await, [""; 0]);
    // Once more, with nothing to do, for a program.
    let again = copy(&first, &last, &["--json"]);
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&report["ok"], &report["copied"]), (&true.into(), &0.into()), "{report}");
    assert!(said.contains(report["head"]["hash"].as_str().unwrap()), "{said} {report}");
    assert_eq!((&report["tenants"], &report["flags"]), (&4.into(), &10.into()), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_on_at_the_source_is_brought_over_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) =
        (lived_in(&folder.path().join("demo")).await, url(&folder.path().join("to.db")));
    assert!(copy(&from, &to, &[]).status.success());
    let run_on = run(&["flags", "kill", "jmap_native_v2", "--store", &from], &[]);
    assert!(run_on.status.success(), "{run_on:?}");
    assert!(!differences(&from, &to).await.is_empty());
    let copied = copy(&from, &to, &[]);
    assert!(stdout(&copied).starts_with("copied: 1 rows\n"), "{copied:?}");
    assert_eq!(differences(&from, &to).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_beginning_of_the_source_is_refused_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let from = lived_in(&folder.path().join("from")).await;
    let other = lived_in(&folder.path().join("other")).await;
    let before = std::fs::read(folder.path().join("other/dezky.db")).unwrap();
    let refused = refusal(&copy(&from, &other, &[]), 1);
    assert!(refused.contains("holds another log") && refused.contains("nothing was changed"));
    assert_eq!(std::fs::read(folder.path().join("other/dezky.db")).unwrap(), before);
    let same = refusal(&copy(&from, &from, &[]), 2);
    assert!(same.contains("--to: is the same store as --from"), "{same}");
    let dotted = from.replace("/from/", "/from/./");
    assert!(refusal(&copy(&from, &dotted, &[]), 2).contains("is the same store as --from"));
    let missing = url(&folder.path().join("missing.db"));
    let none = url(&folder.path().join("none.db"));
    assert!(refusal(&copy(&missing, &none, &[]), 2).starts_with("dezky-server: --from: "));
    assert!(!folder.path().join("missing.db").exists() && !folder.path().join("none.db").exists());
    let secret = copy(&from, "postgres://u:S3CRET@127.0.0.1:1/x", &[]);
    assert!(!refusal(&secret, 1).contains("S3CRET"));
}

/// Both ends of a copy that takes a while.
async fn large(folder: &Path) -> (String, String) {
    let path = folder.join("from.db");
    let store = SqliteAuditStore::open(SqliteConfig::new(&path), &TokioRuntime).await.unwrap();
    for _ in 0..4 {
        store.append(events(5_000), AppendOptions::default()).await.unwrap();
    }
    store.close().await;
    let from = url(&path);
    // So that all components exist.
    open_for_the_first_time(&from).await;
    (from, url(&folder.join("to.db")))
}

async fn open_for_the_first_time(url: &str) {
    let settings = Settings::load(None, [], Some(url)).unwrap();
    let stores = Stores::open(&settings.store().unwrap(), Access::Migrate).await.unwrap();
    stores.close().await;
}

async fn rows_at(path: &Path) -> u64 {
    if !path.exists() {
        return 0;
    }
    match SqliteAuditStore::open(SqliteConfig::read_only(path), &TokioRuntime).await {
        Ok(store) => {
            let rows = store.state().await.map_or(0, |state| state.head.next_seq);
            store.close().await;
            rows
        }
        // The file does not exist yet.
        Err(_) => 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_interrupted_or_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = large(folder.path()).await;
    let path = folder.path().join("to.db");
    let begin = |command: &mut Command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let arguments = ["copy", "--from", &from, "--to", &to];
    let child = begin(&mut program(&arguments));
    until("the first rows", async || rows_at(&path).await > 0).await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let stopped = refusal(&child.wait_with_output().unwrap(), 1);
    assert!(stopped.contains("the same command resumes it"), "{stopped}");

    let before = rows_at(&path).await;
    assert!((1..20_000).contains(&before), "{before}");
    let mut child = begin(&mut program(&arguments));
    until("more rows", async || rows_at(&path).await > before).await;
    child.kill().unwrap();
    child.wait().unwrap();

    let killed_at = rows_at(&path).await;
    assert!((before + 1..20_000).contains(&killed_at), "{killed_at}");
    let copied = copy(&from, &to, &["--json"]);
    let report: Value = serde_json::from_slice(&copied.stdout).unwrap();
    assert_eq!(report["copied"], 20_000 - killed_at, "{report}");
    assert_eq!(differences(&from, &to).await, [""; 0]);
}
