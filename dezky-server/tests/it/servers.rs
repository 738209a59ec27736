//! Databases for single tests on the shared servers, and servers for single tests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mongodb::bson::Document;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::database::variable;
use crate::support::until;

/// The engines of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
    Mongodb,
}

/// A database of one test on a shared server, dropped at the end.
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

/// A file next to the programs of the servers, with links resolved: their user may not see those.
fn path_of_server(name: &str) -> PathBuf {
    let path = PathBuf::from(variable("DEZKY_TEST_SERVERS")).join(name);
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program of the servers. If this process is root's, it runs as PostgreSQL's own user, because
/// PostgreSQL refuses to run as root.
pub(crate) fn program_of_server(name: &str) -> Command {
    let mut command = Command::new(path_of_server(name));
    command.stdin(Stdio::null()).current_dir("/");
    if let Some((uid, gid)) = postgres_user() {
        use std::os::unix::process::CommandExt as _;
        command.uid(uid).gid(gid);
    }
    command
}

/// The user and group to switch to, if this process is root's.
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

/// A folder with a new PostgreSQL cluster.
pub(crate) fn cluster() -> TempDir {
    let folder = folder_of_server();
    let mut command = program_of_server("initdb");
    command.args(["-U", "dezky", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8"]);
    let made = command.args(["--no-sync", "-D"]).arg(folder.path().join("data")).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    folder
}

/// Starts a PostgreSQL, and returns its URL as well.
async fn start_postgres(
    folder: &Path,
    settings: &[&str],
    environment: &[(&str, String)],
    port: u16,
) -> (Child, String) {
    let mut command = program_of_server("postgres");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.arg("-D").arg(folder.join("data")).arg("-p").arg(port.to_string());
    command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let url = format!("postgres://dezky@127.0.0.1:{port}/postgres");
    until("PostgreSQL", async || PgConnection::connect(&url).await.is_ok()).await;
    (child, url)
}

/// The environment of a process whose clock is an hour ahead.
pub(crate) fn clock_ahead() -> [(&'static str, String); 3] {
    let library = path_of_server("libfaketimeMT.so.1").display().to_string();
    [
        ("LD_PRELOAD", library),
        ("FAKETIME", "+1h".to_owned()),
        // The kernel's waits end by the true one.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server of one test, killed at the end.
pub(crate) struct OwnServer {
    child: Child,
    pub(crate) url: String,
    _folder: Option<TempDir>,
}

impl OwnServer {
    /// A PostgreSQL with a new cluster that syncs its writes, and with more `settings`.
    pub(crate) async fn postgres(settings: &[&str]) -> Self {
        let folder = cluster();
        let (child, url) = start_postgres(folder.path(), settings, &[], free_port()).await;
        Self { child, url, _folder: Some(folder) }
    }

    /// A PostgreSQL with the [`cluster`] in `folder`, started with this environment.
    pub(crate) async fn postgres_in(folder: &Path, environment: &[(&str, String)]) -> Self {
        let (child, url) = start_postgres(folder, &[], environment, free_port()).await;
        Self { child, url, _folder: None }
    }

    /// A PostgreSQL with the [`cluster`] in `folder` on this port, so that a test can restart it
    /// under the same URL.
    pub(crate) async fn postgres_at(folder: &Path, port: u16) -> Self {
        let (child, url) = start_postgres(folder, &[], &[], port).await;
        Self { child, url, _folder: None }
    }

    /// Shuts a PostgreSQL down cleanly.
    pub(crate) async fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        until("PostgreSQL's end", async || self.child.try_wait().unwrap().is_some()).await;
    }

    /// A `PgBouncer` in transaction mode in front of a database.
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
        Self { child, url, _folder: Some(folder) }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
