//! How soon a change by another process takes effect here.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    Capabilities, MongoAuditStore, MongoConfig, PostgresAuditStore, PostgresConfig,
    SqliteAuditStore, SqliteConfig,
};
use dezky_core::{AuditStore, Result, Runtime, SealedEvent, Timestamp};
use dezky_flags::store::{DocumentFlagStore, FlagChange, FlagStore, FlagTable, Snapshot};
use dezky_flags::{Flag, FlagState, LiveFlags, NewFlag};

use crate::invalid::Write;
use crate::live::{config, is_on};
use crate::servers::{Engine, TestLog, spawn, tokio};

const URL: &str = "DEZKY_TEST_EDITOR_URL";
const KEY: &str = "chat";
/// The documented bound: from the commit where the engine sends notifications, and in addition to
/// the poll interval where it does not.
const PROMISED: Duration = Duration::from_secs(1);
const CHANGES: u64 = 100;
/// For waits without a documented bound.
const PATIENCE: Duration = Duration::from_mins(4);

/// Flags in a database, with the means that the tests need.
pub(crate) struct Opened {
    pub(crate) log: Arc<dyn AuditStore>,
    pub(crate) store: Arc<dyn FlagStore>,
    pub(crate) write: Write,
}

/// Opens the flags at a URL.
pub(crate) async fn open(url: &str) -> Opened {
    open_as(url, Hears::Notifications).await
}

/// How a process learns of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hears {
    /// With the engine's notifications, if it has any.
    Notifications,
    /// By polling alone.
    Polls,
}

async fn open_as(url: &str, hears: Hears) -> Opened {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let log = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await.unwrap();
        let store = Arc::new(DocumentFlagStore::open(&log.database()).await.unwrap());
        let write = Write::Sqlite(log.database());
        return Opened { log: Arc::new(log), store, write };
    }
    if url.starts_with("postgres") {
        let mut config = PostgresConfig::new(url);
        config.transaction_pooler = hears == Hears::Polls;
        let log = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        let store = Arc::new(DocumentFlagStore::open(&log.database()).await.unwrap());
        let write = Write::Postgres(log.database());
        return Opened { log: Arc::new(log), store, write };
    }
    let mut config = MongoConfig::new(url);
    // A slow machine must not count as an outage.
    config.operation_timeout = PATIENCE;
    config.busy_timeout = PATIENCE;
    let log = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await.unwrap();
    let store: Arc<dyn FlagStore> =
        Arc::new(DocumentFlagStore::open(&log.database()).await.unwrap());
    let store = if hears == Hears::Polls { Arc::new(Deaf(store)) } else { store };
    let write = Write::Mongodb(log.database());
    Opened { log: Arc::new(log), store, write }
}

/// A store without notifications, such as a server without change streams.
struct Deaf(Arc<dyn FlagStore>);

#[async_trait::async_trait]
impl FlagStore for Deaf {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn table(&self) -> Result<FlagTable> {
        self.0.table().await
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.0.snapshot().await
    }

    async fn revision(&self) -> Result<u64> {
        self.0.revision().await
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        self.0.commit(changes, events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        self.0.restore(table).await
    }
}

#[test]
fn a_change_reaches_another_process_by_postgres_notifications() {
    reaches(Engine::Postgres, Hears::Notifications, Duration::from_hours(1));
}

#[test]
fn a_change_reaches_another_process_by_mongodb_change_streams() {
    reaches(Engine::Mongodb, Hears::Notifications, Duration::from_hours(1));
}

#[test]
fn a_change_reaches_another_process_by_polls_of_sqlite() {
    reaches(Engine::Sqlite, Hears::Polls, Duration::from_millis(100));
}

#[test]
fn a_change_reaches_another_process_by_polls_of_postgres() {
    reaches(Engine::Postgres, Hears::Polls, Duration::from_millis(100));
}

#[test]
fn a_change_reaches_another_process_by_polls_of_mongodb() {
    reaches(Engine::Mongodb, Hears::Polls, Duration::from_millis(100));
}

fn reaches(engine: Engine, hears: Hears, poll: Duration) {
    tokio().block_on(async {
        let place = TestLog::new(engine).await;
        let opened = open_as(&place.url(), hears).await;
        let live = config(|config| {
            config.poll_interval = poll;
            config.store_timeout = Duration::from_mins(1);
        });
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
        let live = LiveFlags::open(opened.store, runtime, live).await.unwrap();
        let follows = live.clone();
        let follows = spawn(async move { follows.run(std::future::pending()).await });
        let mut editor = Editor::start(&place.url());
        assert_eq!(editor.hear().await, "ready");
        // The first changes establish connections.
        for n in 0..3 {
            change(&mut editor, &live, n).await;
        }
        let mut took = Vec::new();
        for n in 0..CHANGES {
            took.push(change(&mut editor, &live, 3 + n).await);
        }
        follows.abort();
        took.sort_unstable();
        let p99 = took[(took.len() * 99).div_ceil(100) - 1];
        println!(
            "{engine:?}, {hears:?}, {CHANGES} changes: half within {:?}, 99 of 100 within {p99:?}, all within {:?}",
            took[took.len() / 2],
            took[took.len() - 1],
        );
        let bound = if hears == Hears::Polls { poll + PROMISED } else { PROMISED };
        assert!(p99 < bound, "p99 {p99:?}, and {bound:?} is promised");
    });
}

/// Has the other process make a change, and returns the time from its commit until it took effect
/// here.
async fn change(editor: &mut Editor, live: &LiveFlags, n: u64) -> Duration {
    let mut changes = live.subscribe();
    let waits = async {
        // Subscribe before requesting the change, so that it is not missed.
        while live.revision() <= n {
            changes.next().await;
        }
        TokioRuntime.now()
    };
    editor.tell("go");
    let both = async { tokio::join!(waits, editor.hear()) };
    let (seen, committed) = tokio::time::timeout(PATIENCE, both).await.expect("is seen");
    assert_eq!(is_on(live, KEY), n.is_multiple_of(2));
    let committed = Timestamp::parse(&committed).unwrap();
    seen.saturating_since(committed)
}

/// An editor of flags in a separate process: makes a change for each `go` and reports the time of
/// its commit.
struct Editor {
    process: Child,
    stdin: ChildStdin,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Editor {
    #[expect(clippy::disallowed_methods, reason = "a thread for the child's lines")]
    fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "live_processes::editor", "--ignored", "--nocapture"])
            .env(URL, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(std::result::Result::ok) {
                if let Some(said) = line.strip_prefix("editor: ") {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        let stdin = process.stdin.take().unwrap();
        Self { process, stdin, lines }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").unwrap();
    }

    async fn hear(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
        line.expect("says something").expect("runs")
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the first process sets these variables")]
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[test]
#[ignore = "run by the tests above, in a separate process"]
fn editor() {
    let Some(url) = told(URL) else { return };
    tokio().block_on(async {
        let Opened { store, log: _log, .. } = open(&url).await;
        say("ready");
        let new = NewFlag { state: FlagState::On, ..NewFlag::new(KEY) };
        let mut flag = Flag::new(new, TokioRuntime.now()).unwrap();
        for line in std::io::stdin().lines() {
            assert_eq!(line.unwrap(), "go");
            let change = if flag.version == 1 { FlagChange::Create } else { FlagChange::Replace };
            store.commit(vec![change(Box::new(flag.clone()))], Vec::new()).await.unwrap();
            say(&TokioRuntime.now().to_string());
            flag.version += 1;
            flag.state = if flag.state == FlagState::On { FlagState::Off } else { FlagState::On };
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // On its own line, after anything that the harness has printed.
    writeln!(out, "\neditor: {line}").unwrap();
    out.flush().unwrap();
}
