//! Databases of the tests' own on the servers beside them, and servers of their own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use mongodb::bson::Document;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::database::variable;
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
    _database: crate::database::Database,
}

impl Database {
    /// `None` for the engine that needs no server.
    pub(crate) async fn new(engine: Engine) -> Option<Self> {
        let database = match engine {
            Engine::Sqlite => return None,
            Engine::Postgres => crate::database::Database::postgres().await,
            Engine::Mongodb => crate::database::Database::mongodb(),
        };
        Some(Self { url: database.url(), _database: database })
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
    let path = PathBuf::from(variable("DEZKY_TEST_SERVERS")).join(name).canonicalize().unwrap();
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
