//! The log in PostgreSQL, with a separate database for each test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AppendOptions, AuditStoreExt, ListQuery, LogPart, MemoryAuditStore, PostgresAuditStore,
    PostgresConfig, ReceiptStatus,
};
use dezky_core::testkit::{
    BoxFuture, EventGenerator, ManualRuntime, Reopen, StoreHarness, named_event,
};
use dezky_core::verify::verify;
use dezky_core::{AuditStore, ErrorKind, Runtime, SealedEvent};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::database::variable;
use crate::databases::Databases;
use crate::sqlite::tokio;

/// A connection to the database created last, in addition to the store's.
async fn connect(databases: &Databases) -> PgConnection {
    PgConnection::connect(&databases.url()).await.unwrap()
}

async fn open(url: &str) -> PostgresAuditStore {
    PostgresAuditStore::open(PostgresConfig::new(url), &TokioRuntime).await.unwrap()
}

fn named(names: &[&str]) -> Vec<SealedEvent> {
    names.iter().map(|name| named_event(name).seal(&TokioRuntime)).collect()
}

async fn append(store: &dyn AuditStore, events: Vec<SealedEvent>) -> Vec<ReceiptStatus> {
    let appended = store.append(events, AppendOptions::default()).await.unwrap();
    appended.receipts.iter().map(|receipt| receipt.status).collect()
}

struct Postgres {
    databases: Databases,
}

#[async_trait::async_trait]
impl StoreHarness for Postgres {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> Arc<dyn AuditStore> {
        let url = match which {
            Reopen::No => self.databases.make().await,
            Reopen::Yes => self.databases.url(),
        };
        Arc::new(open(&url).await)
    }
}

dezky_core::audit_store_conformance!(Postgres { databases: Databases::default() });

/// A server program for one test, stopped with it.
struct Server {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Server {
    /// Starts the program that `command` returns for a folder and a port.
    async fn start(command: impl FnOnce(&Path, u16) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = {
            let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            probe.local_addr().unwrap().port()
        };
        give_away(folder.path());
        let mut command = command(folder.path(), port);
        command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let server = Self { child: command.spawn().unwrap(), port, folder };
        server.ready().await;
        server
    }

    async fn ready(&self) {
        // On a loaded machine, starts have taken minutes.
        for _ in 0..2_400 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            TokioRuntime.sleep(Duration::from_millis(50)).await;
        }
        panic!("the server in {} did not start", self.folder.path().display());
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://dezky@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of PostgreSQL, run as a user that it accepts.
fn program(name: &str) -> Command {
    let path = Path::new(&variable("DEZKY_TEST_SERVERS")).join(name).canonicalize().unwrap();
    let mut command = Command::new(path);
    if let Some((user, group)) = unprivileged() {
        use std::os::unix::process::CommandExt as _;
        command.uid(user).gid(group);
    }
    command
}

/// The user `postgres`, if the test runs as root.
fn unprivileged() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let fields = users.lines().find_map(|line| line.strip_prefix("postgres:")).unwrap();
    let mut numbers = fields.split(':').skip(1).map(|field| field.parse().unwrap());
    Some((numbers.next().unwrap(), numbers.next().unwrap()))
}

fn give_away(path: &Path) {
    if let Some((user, group)) = unprivileged() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

/// `PgBouncer` in transaction mode with two connections to the server, so that consecutive
/// transactions rarely get the same one.
async fn pooler() -> Server {
    let server = variable("DEZKY_TEST_POSTGRES");
    let server = server.strip_prefix("postgres://").unwrap();
    let (user, address) = server.split_once('@').unwrap();
    let (host, port) = address.split_once('/').unwrap().0.rsplit_once(':').unwrap();
    let server = Server::start(|folder, own| {
        let settings = format!(
            "[databases]\n* = host={host} port={port} user={user}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 200\n"
        );
        let file = folder.join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        give_away(&file);
        let mut command = program("pgbouncer");
        command.arg(file);
        command
    });
    server.await
}

/// The whole suite through a pooler that gives each transaction a different connection.
mod pooled {
    use super::*;

    struct Pooled {
        databases: Databases,
        pooler: tokio::sync::OnceCell<Server>,
    }

    #[async_trait::async_trait]
    impl StoreHarness for Pooled {
        fn runtime(&self) -> Arc<dyn Runtime> {
            Arc::new(TokioRuntime)
        }

        fn block_on(&self, case: BoxFuture<'_, ()>) {
            tokio().block_on(case);
        }

        async fn open(&self, which: Reopen) -> Arc<dyn AuditStore> {
            if which == Reopen::No {
                self.databases.make().await;
            }
            let pooler = self.pooler.get_or_init(pooler).await;
            let url = self.databases.url();
            let mut config = PostgresConfig::new(pooler.url(url.rsplit_once('/').unwrap().1));
            config.transaction_pooler = true;
            Arc::new(PostgresAuditStore::open(config, &TokioRuntime).await.unwrap())
        }
    }

    dezky_core::audit_store_conformance!(Pooled {
        databases: Databases::default(),
        pooler: tokio::sync::OnceCell::new(),
    });
}

#[test]
fn an_append_by_one_store_reaches_another_at_once() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let (writer, reader) = (open(&url).await, open(&url).await);
        let reader: Arc<dyn AuditStore> = Arc::new(reader);
        let mut tail =
            reader.tail(Arc::new(TokioRuntime), 0).poll_interval(Duration::from_hours(1));
        append(&writer, named(&["first"])).await;
        assert_eq!(tail.next().await.unwrap().seq, 0);
        for seq in 1..6 {
            // The tail waits before the event exists.
            let (next, _) = tokio::join!(tail.next(), append(&writer, named(&["next"])));
            assert_eq!(next.unwrap().seq, seq);
        }
    });
}

#[test]
fn another_store_takes_over_listening() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let (writer, reader) = (open(&url).await, open(&url).await);
        append(&writer, named(&["first"])).await;
        // The first notification is the connection itself.
        reader.changed(1).await;
        let mut leader = Box::pin(reader.changed(1));
        assert!(futures_util::poll!(&mut leader).is_pending());
        let mut follower = Box::pin(reader.changed(1));
        assert!(futures_util::poll!(&mut follower).is_pending());
        drop(leader);
        tokio::join!(follower, append(&writer, named(&["second"])));
    });
}

#[test]
fn openers_that_race_make_one_log() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let opened = (0..8).map(|_| open(&url));
        let stores = futures_util::future::join_all(opened).await;
        let first = stores[0].state().await.unwrap();
        for store in &stores {
            assert_eq!(store.state().await.unwrap(), first);
        }
    });
}

#[test]
fn a_log_of_version_1_still_opens() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let fixture = include_str!("../fixtures/postgres-v1.sql");
        connect(&databases).await.execute(sqlx::raw_sql(fixture)).await.unwrap();
        let store = open(&url).await;
        let state = store.state().await.unwrap();
        assert_eq!(state.log_id.to_string(), "019b76da-a800-715c-8289-ec2d0a9167ec");
        assert_eq!(state.head.next_seq, 5);
        assert_eq!(verify(&store, None, |_| ()).await.unwrap().finding, None);
        assert_eq!(store.cursor("ocis").await.unwrap().as_deref(), Some("7:1024"));
        assert_eq!(store.quarantined(0, 10).await.unwrap()[0].seen, 3);
        assert_eq!(store.relay(10).await.unwrap().appended, 1);
        assert_eq!(append(&store, named(&["new"])).await, [ReceiptStatus::Appended]);
    });
}

#[test]
fn a_foreign_schema_is_left_alone() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let mut own = connect(&databases).await;
        own.execute("CREATE TABLE invoices (total bigint)").await.unwrap();
        let refused = PostgresAuditStore::open(PostgresConfig::new(&url), &TokioRuntime).await;
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::StoreForeign);
        let count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        let tables: i64 = sqlx::query_scalar(count).fetch_one(&mut own).await.unwrap();
        assert_eq!(tables, 1, "nothing was created");

        let mut config = PostgresConfig::new(&url);
        config.shared = true;
        PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        own.execute("UPDATE dezky_schema SET version = 99").await.unwrap();
        let refused = PostgresAuditStore::open(PostgresConfig::new(&url), &TokioRuntime).await;
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::SchemaNewer);
    });
}

#[test]
fn opening_without_migrate_writes_nothing() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let mut config = PostgresConfig::new(&url);
        config.migrate = false;
        let refused = PostgresAuditStore::open(config.clone(), &TokioRuntime).await;
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::StoreForeign);
        open(&url).await;
        let store = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        assert_eq!(append(&store, named(&["a"])).await, [ReceiptStatus::Appended]);
    });
}

#[test]
fn a_standby_is_refused() {
    tokio().block_on(async {
        let standby = Server::start(|folder, port| {
            let data = folder.join("data");
            let mut initdb = program("initdb");
            initdb.args(["-U", "dezky", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8"]);
            initdb.args(["--no-sync", "-D"]).arg(&data).stdout(Stdio::null()).current_dir("/");
            assert!(initdb.status().unwrap().success());
            std::fs::write(data.join("standby.signal"), "").unwrap();
            let mut server = program("postgres");
            server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1"]);
            server.args(["-c", "unix_socket_directories="]);
            server
        });
        let standby = standby.await;
        let mut config = PostgresConfig::new(standby.url("postgres"));
        config.acquire_timeout = Duration::from_mins(1);
        let refused = PostgresAuditStore::open(config, &TokioRuntime).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConfigInvalid, "{refused}");
        assert!(refused.to_string().contains("name the primary"), "{refused}");
    });
}

#[test]
fn staged_events_commit_with_the_callers_table() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        connect(&databases).await.execute("CREATE TABLE notes (text text)").await.unwrap();
        let pool = PgPool::connect(&url).await.unwrap();
        let config = PostgresConfig::for_pool();
        let store = PostgresAuditStore::with_pool(pool.clone(), config, &TokioRuntime);
        let store = store.await.unwrap();
        for (text, commits) in [("kept", true), ("dropped", false)] {
            let mut tx = pool.begin().await.unwrap();
            sqlx::query("INSERT INTO notes VALUES ($1)")
                .bind(text)
                .execute(&mut *tx)
                .await
                .unwrap();
            PostgresAuditStore::stage_in(&mut tx, &named(&[text])).await.unwrap();
            let staged = store.relay(10).await.unwrap().appended;
            assert_eq!(staged, 0, "nothing before the commit");
            if commits {
                tx.commit().await.unwrap();
            } else {
                tx.rollback().await.unwrap();
            }
            assert_eq!(store.relay(10).await.unwrap().appended, usize::from(commits));
        }
        let rows = store.list(&ListQuery::default()).await.unwrap().events;
        assert_eq!(rows[0].event.resource_id.as_deref(), Some("kept"));
        let notes: i64 =
            sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&pool).await.unwrap();
        assert_eq!(notes, 1);
    });
}

#[test]
fn a_transaction_after_an_error_commits_nothing() {
    let databases = Databases::default();
    tokio().block_on(async {
        let database = open(&databases.make().await).await.database();
        let mut tx = database.begin().await.unwrap();
        tx.run("CREATE TABLE notes (text text)").await.unwrap();
        let refused = tx.execute(sqlx::query("INSERT INTO nowhere VALUES (1)")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreCorrupt, "{refused}");
        let refused = database.commit(tx, &[]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Internal, "{refused}");

        let mut tx = database.begin().await.unwrap();
        sqlx::query("INSERT INTO nowhere VALUES (1)").execute(&mut *tx).await.unwrap_err();
        let refused = tx.commit().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Internal, "{refused}");

        let mut tx = database.begin().await.unwrap();
        tx.run("CREATE TABLE notes (text text); SAVEPOINT one").await.unwrap();
        tx.run("SET LOCAL statement_timeout = 10").await.unwrap();
        let slow = tx.run("SELECT pg_sleep(600)").await.unwrap_err();
        assert_eq!(slow.kind(), ErrorKind::StoreBusy, "{slow}");
        tx.run("ROLLBACK TO SAVEPOINT one").await.unwrap();
        database.commit(tx, &named(&["a"])).await.unwrap();
        let mut tx = database.read().await.unwrap();
        assert_eq!(tx.fetch_all(sqlx::query("SELECT * FROM notes")).await.unwrap().len(), 0);
        let refused = tx.execute(sqlx::query("INSERT INTO notes VALUES ('x')")).await.unwrap_err();
        assert!(refused.to_string().contains("read-only"), "{refused}");
    });
}

/// Opens another connection to the store's database and locks the head's row.
async fn stall(databases: &Databases) -> PgConnection {
    let mut writer = connect(databases).await;
    writer.execute("BEGIN; SELECT * FROM dezky_audit_log FOR UPDATE").await.unwrap();
    writer
}

#[test]
fn a_writer_waits_a_bounded_time_for_another() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let mut config = PostgresConfig::new(&url);
        config.lock_timeout = Duration::from_millis(50);
        let store = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        let mut stalled = stall(&databases).await;
        let events = named(&["a"]);
        let busy = store.append(events.clone(), AppendOptions::default()).await.unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::StoreBusy, "{busy}");
        assert!(busy.to_string().contains("lock_timeout"), "{busy}");
        stalled.execute("ROLLBACK").await.unwrap();
        assert_eq!(append(&store, events).await, [ReceiptStatus::Appended]);
    });
}

#[test]
fn a_writer_of_ours_that_stalls_is_ended_by_the_server() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let mut config = PostgresConfig::new(&url);
        config.idle_in_transaction_timeout = Duration::from_millis(100);
        let stalling = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        let mut tx = stalling.database().begin().await.unwrap();
        tx.run("SELECT * FROM dezky_audit_log FOR UPDATE").await.unwrap();
        let other = open(&url).await;
        assert_eq!(append(&other, named(&["a"])).await, [ReceiptStatus::Appended]);
        assert!(tx.commit().await.unwrap_err().is_retryable());
        assert_eq!(append(&stalling, named(&["b"])).await, [ReceiptStatus::Appended]);
    });
}

#[test]
fn a_writer_that_bypasses_the_lock_causes_no_duplicates() {
    let databases = Databases::default();
    tokio().block_on(async {
        let store = open(&databases.make().await).await;
        let mut event = named_event("a");
        (event.source, event.external_id) = ("ocis".into(), Some("e-1".into()));
        let events = vec![event.seal(&TokioRuntime)];
        let mut intruder = connect(&databases).await;
        intruder.execute("BEGIN; INSERT INTO dezky_audit_events SELECT 77, gen_random_uuid(), 0, 0, 'user', NULL, NULL, NULL, 'a.b', 'success', NULL, NULL, NULL, NULL, NULL, 'ocis', 'e-1', '{}', hash, NULL, hash, hash, NULL, '' FROM decode(repeat('00', 32), 'hex') AS hash").await.unwrap();
        let (refused, ()) =
            tokio::join!(store.append(events.clone(), AppendOptions::default()), async {
                let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
                let mut beside = connect(&databases).await;
                while beside.fetch_all(waiting).await.unwrap().is_empty() {}
                intruder.execute("COMMIT").await.unwrap();
            });
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreBusy, "{refused}");
        assert!(refused.to_string().contains("dezky_audit_events_external"), "{refused}");
        assert_eq!(append(&store, events).await, [ReceiptStatus::Conflict]);
        assert_eq!(store.state().await.unwrap().head.next_seq, 0);
    });
}

#[test]
fn connections_that_were_killed_are_replaced() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let store = open(&url).await;
        append(&store, named(&["a"])).await;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";

        // Idle connections.
        connect(&databases).await.execute(kill).await.unwrap();
        assert_eq!(append(&store, named(&["b"])).await, [ReceiptStatus::Appended]);

        // A connection in the middle of an append, which waits for the head.
        let mut stalled = stall(&databases).await;
        let events = named(&["c"]);
        let (killed, ()) = tokio::join!(store.append(events.clone(), AppendOptions::default()), async {
            let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            // Within a transaction the answer would never change.
            let mut beside = connect(&databases).await;
            while beside.fetch_all(waiting).await.unwrap().is_empty() {}
            stalled.execute("ROLLBACK").await.unwrap();
        });
        let killed = killed.unwrap_err();
        assert!(killed.is_retryable(), "{killed}");
        assert_eq!(append(&store, events).await, [ReceiptStatus::Appended]);
        assert_eq!(verify(&store, None, |_| ()).await.unwrap().finding, None);

        // The listening connection.
        let reader: Arc<dyn AuditStore> = Arc::new(open(&url).await);
        let mut tail =
            reader.tail(Arc::new(TokioRuntime), 3).poll_interval(Duration::from_millis(50));
        let (next, _) = tokio::join!(tail.next(), append(&store, named(&["d"])));
        assert_eq!(next.unwrap().seq, 3);
        connect(&databases).await.execute(kill).await.unwrap();
        let (next, _) = tokio::join!(tail.next(), append(&store, named(&["e"])));
        assert_eq!(next.unwrap().seq, 4);
    });
}

/// A proxy between store and server, on which connections can fall silent without being closed.
struct Proxy {
    port: u16,
    /// Connections made before the last change are silent.
    silenced: tokio::sync::watch::Sender<u32>,
    /// The number of open connections.
    silent: tokio::sync::watch::Sender<u32>,
}

impl Proxy {
    async fn start(to: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silenced, silence) = tokio::sync::watch::channel(0);
        let silent = tokio::sync::watch::Sender::new(0);
        let silent_now = silent.clone();
        spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (to, mut silence) = (to.clone(), silence.clone());
                silence.mark_unchanged();
                let silent = silent_now.clone();
                spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = silence.changed() => {
                            silent.send_modify(|n| *n += 1);
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { port, silenced, silent }
    }

    /// Silences the open connections, of which there must be one.
    async fn silence(&self) {
        self.silenced.send_modify(|n| *n += 1);
        self.silent.subscribe().wait_for(|n| *n > 0).await.unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "a proxy running alongside the test")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let (address, database) = url.split_once('@').unwrap().1.split_once('/').unwrap();
        let proxy = Proxy::start(address.to_owned()).await;
        let through = format!("postgres://dezky@127.0.0.1:{}/{database}", proxy.port);
        let mut config = PostgresConfig::new(through);
        // With a single connection, nothing works while the silent one occupies the pool.
        config.max_connections = 1;
        config.statement_timeout = Duration::from_millis(100);
        config.acquire_timeout = Duration::from_secs(20);
        let store = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        append(&store, named(&["a"])).await;
        let mut tx = store.database().begin().await.unwrap();
        proxy.silence().await;
        let silent = tx.run("SELECT 1").await.unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::StoreUnavailable, "{silent}");
        assert!(silent.to_string().contains("silent for 5.1s"), "{silent}");
        drop(tx);
        assert_eq!(append(&store, named(&["b"])).await, [ReceiptStatus::Appended]);
    });
}

/// A store with one connection, so that leftovers on it affect every later user.
async fn open_narrow(url: &str) -> PostgresAuditStore {
    let mut config = PostgresConfig::new(url);
    config.max_connections = 1;
    PostgresAuditStore::open(config, &TokioRuntime).await.unwrap()
}

/// Polls a future at most `times` times, then drops it; returns whether it finished.
async fn polled<T>(future: impl Future<Output = T>, times: usize) -> bool {
    let mut future = Box::pin(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[test]
fn a_transaction_that_is_dropped_while_it_begins_leaves_nothing_behind() {
    let databases = Databases::default();
    tokio().block_on(async {
        let database = open_narrow(&databases.make().await).await.database();
        for times in 1.. {
            let begun = Box::pin(polled(database.begin(), times)).await;
            // A different kind of transaction, which could not follow within the same one.
            let mut tx = database.read().await.unwrap();
            tx.fetch_all(sqlx::query("SELECT 1")).await.unwrap();
            tx.commit().await.unwrap();
            if begun {
                break;
            }
        }
    });
}

#[test]
fn an_append_that_is_dropped_half_way_leaves_nothing_behind() {
    let databases = Databases::default();
    tokio().block_on(async {
        let store = open_narrow(&databases.make().await).await;
        let runtime = ManualRuntime::new(4);
        let events = EventGenerator::new(&runtime).sealed(2_000);
        for times in 1.. {
            let append = store.append(events.clone(), AppendOptions::default());
            let done = polled(append, times).await;
            let head = store.state().await.unwrap().head.next_seq;
            assert!(head == 0 || head == 2_000, "{head} after {times}");
            assert_eq!(store.scan(0, 1).await.unwrap().len() as u64, head.min(1));
            if done {
                break;
            }
        }
        assert_eq!(verify(&store, None, |_| ()).await.unwrap().finding, None);
    });
}

/// The connection that writes also compares the last event and reads the head.
#[test]
fn a_copy_uses_one_connection() {
    let databases = Databases::default();
    tokio().block_on(async {
        let source = MemoryAuditStore::open(Arc::new(TokioRuntime));
        append(&source, named(&["a", "b"])).await;
        let state = source.state().await.unwrap();
        let part = LogPart {
            log_id: state.log_id,
            cursor_key: state.cursor_key,
            rows: source.scan(0, 10).await.unwrap().into_iter().map(Result::unwrap).collect(),
            cursors: Vec::new(),
            quarantine: Vec::new(),
        };
        let copy = open_narrow(&databases.make().await).await;
        for _ in 0..2 {
            copy.restore(part.clone()).await.unwrap();
            assert_eq!(copy.state().await.unwrap(), state);
        }
    });
}

/// A pool of another application, with unusual settings.
#[test]
fn settings_of_the_role_change_nothing() {
    let databases = Databases::default();
    tokio().block_on(async {
        let url = databases.make().await;
        let mut own = connect(&databases).await;
        own.execute("CREATE SCHEMA odd").await.unwrap();
        let name = url.rsplit_once('/').unwrap().1;
        for setting in [
            "search_path = 'odd', 'public'",
            "default_transaction_isolation = 'serializable'",
            "default_transaction_read_only = on",
            "synchronous_commit = off",
            "plan_cache_mode = force_generic_plan",
            "standard_conforming_strings = off",
            "bytea_output = 'escape'",
            "DateStyle = 'German'",
            "IntervalStyle = 'sql_standard'",
            // The statement that begins a transaction is still subject to it, so it must be long
            // enough for a busy machine.
            "statement_timeout = 500",
            "lock_timeout = 1",
        ] {
            let sql = format!("ALTER DATABASE {name} SET {setting}");
            own.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        let pool = PgPool::connect(&url).await.unwrap();
        let config = PostgresConfig::for_pool();
        let store = PostgresAuditStore::with_pool(pool, config, &TokioRuntime).await.unwrap();
        let runtime = ManualRuntime::new(5);
        append(&store, EventGenerator::new(&runtime).sealed(2_100)).await;
        store.create_search_index().await.unwrap();
        store.stage(named(&["staged"])).await.unwrap();
        assert_eq!(store.relay(10).await.unwrap().appended, 1);
        assert_eq!(verify(&store, None, |_| ()).await.unwrap().finding, None);
        let query = ListQuery { action: Some("a".into()), ..ListQuery::default() };
        store.list(&query).await.unwrap();
        let mut tx = store.database().begin().await.unwrap();
        let row = tx.fetch_all(sqlx::query("SHOW synchronous_commit")).await.unwrap();
        assert_eq!(sqlx::Row::get::<String, _>(&row[0], 0), "on");
        tx.fetch_all(sqlx::query("SELECT pg_sleep(0.6)")).await.unwrap();
        tx.commit().await.unwrap();
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'odd'";
        let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut own).await.unwrap();
        assert_eq!(tables, 7);
    });
}

#[test]
fn an_error_that_would_recur_is_not_retryable() {
    let databases = Databases::default();
    tokio().block_on(async {
        let database = open(&databases.make().await).await.database();
        for (sql, kind) in [
            ("SELECT 1 / 0", ErrorKind::Internal),
            ("SELEKT 1", ErrorKind::Internal),
            (
                "CREATE TEMPORARY TABLE t (t text); CREATE INDEX ON t (t); INSERT INTO t SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) AS n",
                ErrorKind::TooLarge,
            ),
        ] {
            let mut tx = database.begin().await.unwrap();
            let refused = tx.run(sql).await.unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(!refused.is_retryable(), "{refused}");
        }
    });
}

/// Any role that may connect may notify.
#[test]
fn a_false_notification_causes_no_endless_work() {
    let databases = Databases::default();
    tokio().block_on(async {
        let reader: Arc<dyn AuditStore> = Arc::new(open(&databases.make().await).await);
        reader.changed(0).await;
        let mut other = connect(&databases).await;
        other.execute("SELECT pg_notify('dezky', 'dezky_schema'::regclass::oid || ':18446744073709551615:audit')").await.unwrap();
        reader.changed(7).await;
        let mut tail =
            reader.tail(Arc::new(TokioRuntime), 0).poll_interval(Duration::from_hours(1));
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        spawn(async move {
            let mut next = Box::pin(tail.next());
            let counted = std::future::poll_fn(move |context| {
                count.fetch_add(1, Ordering::SeqCst);
                next.as_mut().poll(context).map(drop)
            });
            counted.await;
        });
        // Time for as many reads, if each caused the next.
        for _ in 0..2_000 {
            other.execute("SELECT 1").await.unwrap();
        }
        let woken = woken.load(Ordering::SeqCst);
        assert!((1..300).contains(&woken), "{woken}");
    });
}

#[test]
fn names_that_postgres_cannot_store_are_refused() {
    let databases = Databases::default();
    tokio().block_on(async {
        let store = open(&databases.make().await).await;
        let refused = [
            store.cursor("a\0b").await.err(),
            store.acquire_lease("a\0b", "me", Duration::from_secs(1)).await.err(),
            store.acquire_lease("a", "m\0e", Duration::from_secs(1)).await.err(),
        ];
        for error in refused {
            let error = error.unwrap();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
            assert!(error.to_string().contains("U+0000"), "{error}");
        }
        let quote = "'; DROP TABLE dezky_leases; --";
        let lease = store.acquire_lease(quote, quote, Duration::from_secs(9)).await.unwrap();
        assert_eq!(lease.unwrap().holder, quote);
        assert_eq!(store.cursor(quote).await.unwrap(), None);
    });
}

#[test]
fn no_error_reveals_the_password() {
    tokio().block_on(async {
        let mut config =
            PostgresConfig::new("postgres://ana:hunter2@127.0.0.1:1/x?password=hunter2");
        config.acquire_timeout = Duration::from_millis(50);
        let debug = format!("{config:?}");
        let error = PostgresAuditStore::open(config, &TokioRuntime).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
        let bad = PostgresConfig::new("postgres://ana:hunter2@[::/x");
        let bad = PostgresAuditStore::open(bad, &TokioRuntime).await.err().unwrap();
        assert_eq!(bad.kind(), ErrorKind::ConfigInvalid, "{bad}");
        for text in [debug, format!("{error:?}"), format!("{bad:?}"), bad.to_string()] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        for (url, named) in [
            ("postgres://127.0.0.1/x?sslMode=verify-full", " sslMode:"),
            ("postgres://127.0.0.1/x?user=ana&sslpassword=hunter2", " sslpassword:"),
            ("postgres://ana:a?hunter2=b@127.0.0.1/x", "option:"),
        ] {
            let unknown = PostgresConfig::new(url);
            let unknown = PostgresAuditStore::open(unknown, &TokioRuntime).await.err().unwrap();
            assert_eq!(unknown.kind(), ErrorKind::ConfigInvalid, "{unknown}");
            assert!(unknown.to_string().contains(named), "{unknown}");
            assert!(!unknown.to_string().contains("hunter2"), "{unknown}");
        }
        let mut config = PostgresConfig::new("postgres://127.0.0.1/x");
        config.lock_timeout = Duration::ZERO;
        let error = PostgresAuditStore::open(config, &TokioRuntime).await.err().unwrap();
        assert!(error.to_string().contains("lock_timeout"), "{error}");
    });
}

#[test]
fn many_and_few_rows_are_stored_alike() {
    let databases = Databases::default();
    tokio().block_on(async {
        let store = open(&databases.make().await).await;
        let runtime = ManualRuntime::new(4);
        let events = EventGenerator::new(&runtime).sealed(4_000);
        // With COPY, and with arrays.
        for batch in [&events[..3_000], &events[3_000..]] {
            append(&store, batch.to_vec()).await;
        }
        assert_eq!(verify(&store, None, |_| ()).await.unwrap().finding, None);
        let rows = store.scan(0, 10_000).await.unwrap();
        let rows: Vec<_> = rows.into_iter().map(Result::unwrap).collect();
        assert_eq!(rows.len(), events.len());
        for (row, event) in rows.iter().zip(&events) {
            assert_eq!(row.stored.event, *event.event());
        }
    });
}

#[test]
fn a_rare_word_is_found_by_the_search_index() {
    let databases = Databases::default();
    tokio().block_on(async {
        let store = open(&databases.make().await).await.max_examined_rows(12_000);
        let mut own = connect(&databases).await;
        own.execute("INSERT INTO dezky_audit_events SELECT n, gen_random_uuid(), n, 0, 'user', 'u-' || n % 2, NULL, NULL, 'a.b', 'success', NULL, NULL, NULL, 'acme', NULL, 'ocis', NULL, '{}', hash, NULL, hash, hash, NULL, CASE WHEN n IN (7, 9, 11) THEN '100%_rare\\' ELSE 'common' END || n FROM generate_series(0, 29999) AS n, decode(repeat('00', 32), 'hex') AS hash").await.unwrap();
        own.execute("ANALYZE dezky_audit_events").await.unwrap();
        let search = async |q: &str| {
            let mut query = ListQuery { q: Some(q.into()), limit: 2, ..ListQuery::default() };
            query.actor_id = Some("u-1".into());
            let page = store.list(&query).await.unwrap();
            let next = page.next_cursor.is_some();
            let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
            (seqs, page.partial, next)
        };
        let none = Vec::<u64>::new();
        assert_eq!(search("rare").await, (none.clone(), true, true), "15,000 are the actor's");
        store.create_search_index().await.unwrap();
        store.create_search_index().await.unwrap();
        for q in ["rare", "RARE", "%_rare\\"] {
            assert_eq!(search(q).await, (vec![11, 9], false, true), "{q}");
        }
        assert_eq!(search("nowhere").await, (none.clone(), false, false));
        assert_eq!(search("common").await, (vec![29_999, 29_997], false, true));
        assert_eq!(search("%%%").await, (none, true, true), "nothing for the index");
    });
}
