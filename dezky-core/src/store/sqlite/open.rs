//! How the file is opened: by whom, for what, and where that is not possible.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};

use super::files::{Files, PROBE, beside, has_no_wal};
use super::{SqliteConfig, SqliteDatabase, schema, store_error};
use crate::store::schema::Found;
use crate::{Error, ErrorKind, Result};

/// A pragma that reads the database: with it a connection opens all files at once, and is
/// not made where they can't be opened.
const OPEN_ALL: (&str, &str) = ("table_info", "dezky_schema");

/// The result codes' families.
const PERM: i32 = 3;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;

/// The low byte of SQLite's result code.
pub(super) fn family(error: &sqlx::Error) -> Option<i32> {
    code(error).map(|code| code & 0xff)
}

/// SQLite's extended result code.
pub(super) fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Names what is missing before SQLite says "unable to open database file".
pub(super) fn check_file(config: &SqliteConfig) -> Result<()> {
    let missing = if !folder(&config.path).is_dir() {
        "its folder does not exist: make it"
    } else if config.path.is_dir() {
        "it is a folder: name a file"
    } else if !config.create && !config.path.exists() {
        "there is no such file: name an existing database"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::ConfigInvalid, missing))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A connection to the file at `path` that can only read, and leaves no files beside the
/// database. For looks at a file that a server may have open. It also reads where the
/// disk has no room for the file that readers share, as long as nobody writes.
///
/// # Errors
/// `store_unavailable` if it can't be opened, `store_corrupt` if it is not a database.
pub async fn sqlite_reader(path: &Path) -> Result<SqliteConnection> {
    let base = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    match reading(path, &base).connect().await {
        Err(error) if is_without_room(&error) && has_no_wal(path) => frozen(&base).connect().await,
        connected => connected,
    }
    .map_err(store_error)
}

/// Options that neither write nor leave files beside the database: where no
/// write-ahead log is there nobody has it open, and it can be read as it is.
fn reading(path: &Path, base: &SqliteConnectOptions) -> SqliteConnectOptions {
    let is_closed = !beside(path, "-wal").exists();
    base.clone().read_only(true).immutable(is_closed).pragma(OPEN_ALL.0, OPEN_ALL.1)
}

/// Options that read the database's own file alone.
fn frozen(base: &SqliteConnectOptions) -> SqliteConnectOptions {
    base.clone().read_only(true).immutable(true).pragma("query_only", "1")
}

/// Whether the files that readers share can't be made or grown: the disk is full, or the
/// folder is read-only.
pub(super) fn is_without_room(error: &sqlx::Error) -> bool {
    matches!(family(error), Some(READONLY | IOERR | FULL | CANTOPEN))
}

/// Looks at an existing file through a connection that can't write.
pub(super) async fn look(path: &Path) -> Result<Found> {
    let mut connection = sqlite_reader(path).await?;
    let found = schema::inspect(&mut connection).await;
    connection.close().await.map_err(store_error)?;
    found
}

/// Makes a missing file readable by its owner alone: it holds personal data.
pub(super) fn make_private(path: &Path) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!("the file can't be made ({error}): check the folder's permissions"),
        )),
        _ => Ok(()),
    }
}

/// The connections, none of which is made yet.
pub(super) fn database(config: &SqliteConfig, base: &SqliteConnectOptions) -> SqliteDatabase {
    let files = Arc::new(Files::of(&config.path));
    let pool = |connections: u32| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(config.busy_timeout + Duration::from_secs(1))
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(is_at_rest(connection)))
    };
    let readers = if config.create { base.clone() } else { reading(&config.path, base) };
    let readers = readers.pragma("query_only", "1").pragma(OPEN_ALL.0, OPEN_ALL.1);
    let writer = if config.create {
        base.clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", config.wal_autocheckpoint_pages.to_string())
            .pragma(OPEN_ALL.0, OPEN_ALL.1)
    } else {
        readers.clone()
    };
    let (opened, writable) = (Arc::clone(&files), config.create);
    let writers = pool(1).after_connect(move |_, _| {
        if writable {
            opened.note_beside();
        }
        Box::pin(std::future::ready(Ok(())))
    });
    let max_readers = config.max_readers.max(1);
    SqliteDatabase {
        writer: writers.connect_lazy_with(writer),
        readers: pool(max_readers).connect_lazy_with(readers),
        // What it reads is fixed when it is opened, so each is used once.
        frozen: pool(max_readers)
            .after_release(|_, _| Box::pin(std::future::ready(Ok(false))))
            .connect_lazy_with(frozen(base)),
        files,
        writable,
    }
}

/// Whether a connection may be lent again. A transaction that SQLite ended by itself
/// (the disk is full, an input or output error, no memory) is still open to sqlx, which
/// then refuses to begin another one on this connection for good: it must be replaced.
async fn is_at_rest(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    if connection.is_in_transaction() {
        // The rollback of a transaction that was dropped may be under way: wait for it.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

/// Refuses a file or folder that this user may not write. A full disk is no reason to
/// refuse: reads are served, and writes once there is room.
pub(super) async fn check_permissions(
    config: &SqliteConfig,
    database: &SqliteDatabase,
) -> Result<()> {
    let Err(error) = try_to_write(config, database).await else { return Ok(()) };
    let refused = match family(&error) {
        Some(PERM | READONLY) => true,
        Some(CANTOPEN) => may_not_make_files(&config.path),
        _ => false,
    };
    if !refused {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ConfigInvalid,
        "this user can't write the file, or make files in its folder, which SQLite needs: change the permissions, or mount it writable",
    ))
}

/// Writes a row without waiting for other writers, and takes it back.
async fn try_to_write(config: &SqliteConfig, database: &SqliteDatabase) -> sqlx::Result<()> {
    let mut connection = database.writer.acquire().await?;
    let wait =
        |bound: Duration| AssertSqlSafe(format!("PRAGMA busy_timeout = {}", bound.as_millis()));
    connection.execute(wait(Duration::ZERO)).await?;
    let written = async {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        // On a file that is open for reading alone the transaction begins all the same.
        let write = sqlx::query("INSERT INTO dezky_outbox (event) VALUES ('')");
        write.execute(&mut *tx).await?;
        tx.rollback().await
    };
    let written = written.await;
    connection.execute(wait(config.busy_timeout)).await?;
    written
}

/// Whether it is permissions that stand in the way of new files.
fn may_not_make_files(path: &Path) -> bool {
    let probe = beside(path, PROBE);
    match std::fs::File::create_new(&probe) {
        Ok(_) => {
            let _ = std::fs::remove_file(&probe);
            false
        }
        Err(error) => matches!(
            error.kind(),
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
        ),
    }
}
