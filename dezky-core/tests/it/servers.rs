//! The tests' stores: separate databases on the servers that `.ci/with-servers` starts, and
//! separate servers that can be stopped and killed.

use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    MemoryAuditStore, MongoAuditStore, MongoConfig, PostgresAuditStore, PostgresConfig,
    SqliteAuditStore, SqliteConfig,
};
use dezky_core::{AuditStore, Runtime};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::database::Database;
pub(crate) use crate::database::variable;

/// Generous, because starts on a loaded machine have taken two minutes.
const START: Duration = Duration::from_mins(4);
/// The time without a statement after which the tests' MongoDB server aborts a transaction; on a
/// real one, operators set `transactionLifetimeLimitSeconds`.
pub(crate) const TRANSACTION_LIFETIME: Duration = Duration::from_secs(5);

#[expect(clippy::disallowed_methods, reason = "tests measure how long things take")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) async fn pause(milliseconds: u64) {
    TokioRuntime.sleep(Duration::from_millis(milliseconds)).await;
}

#[expect(clippy::disallowed_methods, reason = "a test may spawn tasks")]
pub(crate) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}

/// Waits for a condition; `what` names it in the panic if it is not met in time.
pub(crate) async fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let started = now();
    while !holds() {
        assert!(started.elapsed() < within, "{what}: not within {within:?}");
        pause(5).await;
    }
}

/// The engines that every test covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Memory,
    Sqlite,
    Postgres,
    Mongodb,
}

impl Engine {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Sqlite, Self::Postgres, Self::Mongodb];

    /// Whether every read scans all rows, as the double of a MongoDB server does. Tests with many
    /// reads then use few rows.
    pub(crate) async fn is_slow(self) -> bool {
        self == Self::Mongodb && crate::mongodb::is_double().await
    }
}

/// A log for one test, removed with it.
pub(crate) struct TestLog {
    place: Place,
}

enum Place {
    Memory(Arc<MemoryAuditStore>),
    Sqlite(TempDir),
    Server(Database),
}

impl TestLog {
    pub(crate) async fn new(engine: Engine) -> Self {
        match engine {
            Engine::Memory => {
                let store = MemoryAuditStore::open(Arc::new(TokioRuntime));
                Self { place: Place::Memory(Arc::new(store)) }
            }
            Engine::Sqlite => Self { place: Place::Sqlite(tempfile::tempdir().unwrap()) },
            Engine::Postgres => Self { place: Place::Server(Database::postgres().await) },
            Engine::Mongodb => Self { place: Place::Server(Database::mongodb()) },
        }
    }

    /// The URL for [`open`], also in another process. Memory has none.
    pub(crate) fn url(&self) -> String {
        match &self.place {
            Place::Memory(_) => panic!("a log in memory is in one process"),
            Place::Sqlite(folder) => format!("sqlite:{}", folder.path().join("log.db").display()),
            Place::Server(database) => database.url(),
        }
    }

    /// Opens another handle on the log.
    pub(crate) async fn open(&self) -> Arc<dyn AuditStore> {
        match &self.place {
            Place::Memory(store) => Arc::clone(store) as Arc<dyn AuditStore>,
            _ => open(&self.url(), Patience::Usual).await.unwrap(),
        }
    }
}

/// How long a store waits for a server that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The default; 4 minutes for the test server of MongoDB's protocol, which is slow alongside
    /// other tests.
    Usual,
    /// 2 s for everything.
    Short,
}

/// Opens the log at a URL.
pub(crate) async fn open(url: &str, patience: Patience) -> dezky_core::Result<Arc<dyn AuditStore>> {
    let short = Duration::from_secs(2);
    if let Some(path) = url.strip_prefix("sqlite:") {
        let mut config = SqliteConfig::new(path);
        if patience == Patience::Short {
            config.busy_timeout = short;
        }
        return Ok(Arc::new(SqliteAuditStore::open(config, &TokioRuntime).await?));
    }
    if url.starts_with("postgres") {
        let mut config = PostgresConfig::new(url);
        if patience == Patience::Short {
            config.acquire_timeout = short;
            config.lock_timeout = short;
            config.statement_timeout = short;
            config.idle_in_transaction_timeout = short;
        }
        return Ok(Arc::new(PostgresAuditStore::open(config, &TokioRuntime).await?));
    }
    if url.starts_with("mongodb") {
        let mut config = MongoConfig::new(url);
        config.busy_timeout = Duration::from_mins(4);
        config.operation_timeout = Duration::from_mins(4);
        if patience == Patience::Short {
            config.connect_timeout = short;
            config.server_selection_timeout = short;
            config.busy_timeout = short;
            config.operation_timeout = short;
        }
        return Ok(Arc::new(MongoAuditStore::open(config, Arc::new(TokioRuntime)).await?));
    }
    panic!("what store is {url}?")
}

/// A server for one test, with its default durability.
pub(crate) struct Server {
    kind: Kind,
    folder: TempDir,
    pub(crate) port: u16,
    process: Option<Child>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Postgres,
    Mongodb,
}

impl Server {
    pub(crate) async fn postgres() -> Self {
        let mut server = Self::new(Kind::Postgres);
        let made = server
            .command("initdb")
            .args(["-U", "dezky", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"])
            .arg("-D")
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.start().await;
        server
    }

    pub(crate) async fn mongodb() -> Self {
        let mut server = Self::new(Kind::Mongodb);
        fs::create_dir(server.data()).unwrap();
        server.start().await;
        server
    }

    fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let (Kind::Postgres, Some((user, group))) = (kind, postgres_user()) {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { kind, folder, port, process: None }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts a program of a server, in its own process group, which can be killed.
    fn command(&self, program: &str) -> Command {
        let link = Path::new(&variable("DEZKY_TEST_SERVERS")).join(program);
        // PostgreSQL's user may not be able to see the links.
        let mut command = Command::new(fs::canonicalize(link).unwrap());
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        if let (Kind::Postgres, Some((user, group))) = (self.kind, postgres_user()) {
            command.uid(user).gid(group);
        }
        command
    }

    /// The URL of its first database, through `port`.
    pub(crate) fn url_by(&self, port: u16) -> String {
        match self.kind {
            Kind::Postgres => format!("postgres://dezky@127.0.0.1:{port}/postgres"),
            Kind::Mongodb => format!("mongodb://127.0.0.1:{port}/?directConnection=true"),
        }
    }

    /// Starts or restarts it on the same port and folder, and waits until it answers.
    pub(crate) async fn start(&mut self) {
        let started = now();
        while !self.try_start(started).await {
            assert!(started.elapsed() < START, "the server does not start: {}", self.said());
            pause(50).await;
        }
    }

    /// Whether it runs and answers rather than exits: after a kill, its former processes may hold
    /// the port and the folder for a moment.
    async fn try_start(&mut self, started: Instant) -> bool {
        let said = fs::File::create(self.folder.path().join("said")).unwrap();
        let mut command = match self.kind {
            Kind::Postgres => self.command("postgres"),
            Kind::Mongodb => self.secantusdb(),
        };
        command.stderr(said);
        match self.kind {
            Kind::Postgres => command.arg("-D").arg(self.data()).args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
                "-c",
                "shared_buffers=32MB",
                "-p",
                &self.port.to_string(),
            ]),
            Kind::Mongodb => command
                .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
                .args(["--sync-on-commit", "--storage-path"])
                .arg(self.data()),
        };
        let mut process = command.spawn().unwrap();
        while !self.answers().await {
            assert!(started.elapsed() < START, "the server does not start: {}", self.said());
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            pause(20).await;
        }
        self.process = Some(process);
        true
    }

    /// The test server for MongoDB's protocol has no setting for the time after which it aborts a
    /// transaction, unlike a real one.
    fn secantusdb(&self) -> Command {
        let program = self.command("secantusd-py");
        let python = Path::new(program.get_program()).with_file_name("python3");
        let seconds = TRANSACTION_LIFETIME.as_secs();
        let mut command = Command::new(python);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command.arg("-c").arg(format!(
            "import secantus.transactions as t\n\
             made = t.TransactionRegistry.__init__\n\
             def make(self, *args, **named):\n\
             \x20   made(self, *args, **dict(named, lifetime_seconds={seconds}.0))\n\
             t.TransactionRegistry.__init__ = make\n\
             from secantus.cli import main\n\
             main()"
        ));
        command
    }

    async fn answers(&self) -> bool {
        let url = self.url_by(self.port);
        match self.kind {
            Kind::Postgres => PgConnection::connect(&url).await.is_ok(),
            Kind::Mongodb => {
                let url = format!("{url}&serverSelectionTimeoutMS=1000");
                let Ok(client) = mongodb::Client::with_uri_str(&url).await else { return false };
                client
                    .database("admin")
                    .run_command(mongodb::bson::doc! { "ping": 1 })
                    .await
                    .is_ok()
            }
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    /// Stops it like an operator does.
    pub(crate) async fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        signal("INT", &[process.id().to_string()]);
        eventually("the server ends", START, || process.try_wait().unwrap().is_some()).await;
    }

    /// Kills all its processes at once, like a power failure.
    pub(crate) async fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        kill(&mut process);
        eventually("the server is gone", START, || process.try_wait().unwrap().is_some()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            kill(&mut process);
            let _ = process.wait();
        }
    }
}

/// Kills its children too: PostgreSQL's have their own groups.
fn kill(process: &mut Child) {
    let id = process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let mut ids = vec![id.to_string()];
    ids.extend(children.split_whitespace().map(str::to_owned));
    signal("KILL", &ids);
}

/// Sends a signal; ignores processes that have exited.
pub(crate) fn signal(name: &str, processes: &[String]) {
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .args(processes)
        .stderr(Stdio::null())
        .status()
        .expect("there is a kill");
}

/// The user and group for PostgreSQL, which refuses to run as root.
fn postgres_user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = user.expect("there is a user postgres").split(':').skip(2);
    let mut id = || fields.next().unwrap().parse().unwrap();
    Some((id(), id()))
}
