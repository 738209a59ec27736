//! Databases of the tests' own on the servers beside them, and servers of their own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use mongodb::bson::Document;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::until;

/// What a store can be kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
    Mongodb,
}

/// A database of its own on a server beside the tests, dropped at the end.
pub(crate) struct Database {
    pub(crate) url: String,
    engine: Engine,
    name: String,
}

/// The value of a variable that says where the servers are.
pub(crate) fn beside(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run .ci/with-servers"))
}

/// A URL with another database in it.
pub(crate) fn with_database(url: &str, name: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
    let host = place.split('/').next().unwrap();
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{scheme}://{host}/{name}{mark}{options}")
}

impl Database {
    /// `None` for the engine that needs no server.
    pub(crate) async fn new(engine: Engine) -> Option<Self> {
        let url = match engine {
            Engine::Sqlite => return None,
            Engine::Postgres => beside("DEZKY_TEST_POSTGRES"),
            Engine::Mongodb => beside("DEZKY_TEST_MONGODB"),
        };
        let mut random = [0; 16];
        dezky_core::Runtime::fill_random(&dezky_core::rt::TokioRuntime, &mut random);
        let name = format!("dezky_it_{}", Uuid::from_bytes(random).simple());
        if engine == Engine::Postgres {
            let mut server = PgConnection::connect(&url).await.unwrap();
            let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
            server.execute(sqlx::raw_sql(create)).await.unwrap();
        }
        Some(Self { url: with_database(&url, &name), engine, name })
    }

    async fn drop_it(engine: Engine, name: String) {
        match engine {
            Engine::Sqlite => {}
            Engine::Postgres => {
                let url = beside("DEZKY_TEST_POSTGRES");
                let mut server = PgConnection::connect(&url).await.unwrap();
                let drop = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                server.execute(sqlx::raw_sql(drop)).await.unwrap();
            }
            Engine::Mongodb if std::env::var_os("DEZKY_TEST_THROWAWAY").is_some() => {}
            Engine::Mongodb => {
                let url = beside("DEZKY_TEST_MONGODB");
                let client = mongodb::Client::with_uri_str(url).await.unwrap();
                client.database(&name).drop().await.unwrap();
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (engine, name) = (self.engine, std::mem::take(&mut self.name));
        // Not on this thread, whose runtime may be the one that ends.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(Self::drop_it(engine, name));
        });
        let _ = dropped.join();
    }
}

/// Runs statements in a PostgreSQL database.
pub(crate) async fn sql(url: &str, statements: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let statements = AssertSqlSafe(statements.to_owned());
    connection.execute(sqlx::raw_sql(statements)).await.unwrap();
    connection.close().await.unwrap();
}

/// A collection of a MongoDB database.
pub(crate) async fn collection(url: &str, name: &str) -> mongodb::Collection<Document> {
    let client = mongodb::Client::with_uri_str(url).await.unwrap();
    client.default_database().unwrap().collection(name)
}

/// A program of the servers, run as PostgreSQL's own user where this is root's process,
/// which it refuses.
pub(crate) fn program_of_server(name: &str) -> Command {
    let path = PathBuf::from(beside("DEZKY_TEST_SERVERS")).join(name).canonicalize().unwrap();
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).current_dir("/");
    if let Some((uid, gid)) = postgres_user() {
        use std::os::unix::process::CommandExt as _;
        command.uid(uid).gid(gid);
    }
    command
}

/// The user and group to become, if this is root.
pub(crate) fn postgres_user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??))
}

/// A folder that the servers' user owns.
pub(crate) fn folder_of_server() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if let Some((uid, gid)) = postgres_user() {
        std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).unwrap();
    }
    folder
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server of a test's own, killed at the end.
pub(crate) struct OwnServer {
    child: Child,
    pub(crate) url: String,
    _folder: TempDir,
}

impl OwnServer {
    /// A PostgreSQL that keeps what it promises, with settings beside.
    pub(crate) async fn postgres(settings: &[&str]) -> Self {
        let (folder, port) = (folder_of_server(), free_port());
        let data = folder.path().join("data");
        let made = program_of_server("initdb")
            .args([
                "-U",
                "dezky",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale",
                "C.UTF-8",
                "--no-sync",
                "-D",
            ])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let mut command = program_of_server("postgres");
        command.arg("-D").arg(&data).arg("-p").arg(port.to_string());
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let url = format!("postgres://dezky@127.0.0.1:{port}/postgres");
        until("PostgreSQL", async || PgConnection::connect(&url).await.is_ok()).await;
        Self { child, url, _folder: folder }
    }

    /// A `PgBouncer` in transaction mode before a database.
    pub(crate) async fn pgbouncer(url: &str) -> Self {
        let (folder, port) = (folder_of_server(), free_port());
        let place = url.split_once('@').unwrap().1;
        let (host, name) = place.split_once('/').unwrap();
        let (host, server_port) = host.split_once(':').unwrap();
        let config = folder.path().join("pgbouncer.ini");
        std::fs::write(
            &config,
            format!(
                "[databases]\n{name} = host={host} port={server_port} user=dezky\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\ndefault_pool_size = 2\nlogfile =\n"
            ),
        )
        .unwrap();
        let child = program_of_server("pgbouncer")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ready = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        until("PgBouncer", ready).await;
        let url = format!("postgres://dezky@127.0.0.1:{port}/{name}");
        Self { child, url, _folder: folder }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
