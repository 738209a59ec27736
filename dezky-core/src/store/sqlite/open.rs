//! Opening the file: checks, connection options, and reads on a full disk or without permissions.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};

use super::files::{Files, PROBE, has_no_wal, sidecar};
use super::{SqliteConfig, SqliteDatabase, schema, store_error};
use crate::store::schema::Found;
use crate::{Error, ErrorKind, Result};

/// A pragma that reads the database, so that connecting opens all files, and fails if they can't
/// be opened.
const OPEN_ALL: (&str, &str) = ("table_info", "dezky_schema");

/// Families of result codes.
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

/// Reports a missing file or folder by name; SQLite would only say "unable to open database file".
pub(super) fn check_file(config: &SqliteConfig) -> Result<()> {
    check_regular(&config.path)?;
    let missing = if !folder(&config.path).is_dir() {
        "its folder does not exist: create it"
    } else if !config.create && !config.path.exists() {
        "there is no such file: name an existing database"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::ConfigInvalid, missing))
}

/// Refuses anything other than a regular file, for the database and its sidecar files: opening a
/// pipe would block until there is a writer, without a timeout.
fn check_regular(path: &Path) -> Result<()> {
    for ending in ["", "-wal", "-shm", "-journal"] {
        let path = sidecar(path, ending);
        let problem = match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => "it is a folder: name a file",
            Ok(found) if !found.is_file() => "it is not a regular file: name a file",
            _ => continue,
        };
        let problem = match ending {
            "" => problem.to_owned(),
            _ => format!("{} is not a regular file: remove it", path.display()),
        };
        return Err(Error::new(ErrorKind::ConfigInvalid, problem));
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Opens a read-only connection to the file at `path`, which a server may have open. It leaves no
/// sidecar files. On a full disk without room for the shared-memory file it still reads, as long as
/// there are no writers.
///
/// # Errors
/// `config_invalid` if it is not a regular file, `store_unavailable` if it can't be opened,
/// `store_corrupt` if it is not a database.
pub async fn sqlite_reader(path: &Path) -> Result<SqliteConnection> {
    check_regular(path)?;
    let base = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    match reading(path, &base).connect().await {
        Err(error) if is_without_room(&error) && has_no_wal(path) => frozen(&base).connect().await,
        connected => connected,
    }
    .map_err(store_error)
}

/// Options for reading that leave no sidecar files: without a write-ahead log, no process has the
/// database open, so it can be opened as immutable.
fn reading(path: &Path, base: &SqliteConnectOptions) -> SqliteConnectOptions {
    let is_closed = !sidecar(path, "-wal").exists();
    base.clone().read_only(true).immutable(is_closed).pragma(OPEN_ALL.0, OPEN_ALL.1)
}

/// Options for reading only the database file itself.
fn frozen(base: &SqliteConnectOptions) -> SqliteConnectOptions {
    base.clone().read_only(true).immutable(true).pragma("query_only", "1")
}

/// Whether the shared-memory file can't be created or can't grow: the disk is full, or the folder
/// is read-only.
pub(super) fn is_without_room(error: &sqlx::Error) -> bool {
    matches!(family(error), Some(READONLY | IOERR | FULL | CANTOPEN))
}

/// Examines an existing file through a read-only connection.
pub(super) async fn look(path: &Path) -> Result<Found> {
    let mut connection = sqlite_reader(path).await?;
    let found = schema::inspect(&mut connection).await;
    connection.close().await.map_err(store_error)?;
    found
}

/// Creates the file if it is missing, readable only by its owner, because it will hold personal
/// data.
pub(super) fn make_private(path: &Path) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!("the file can't be created ({error}): check the folder's permissions"),
        )),
        _ => Ok(()),
    }
}

/// The connection pools, without opening a connection.
pub(super) fn database(config: &SqliteConfig, base: &SqliteConnectOptions) -> SqliteDatabase {
    let files = Arc::new(Files::of(&config.path));
    let pool = |connections: u32| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(config.busy_timeout + Duration::from_secs(1))
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
    };
    // Whether the writer's connection could only be opened read-only. It stays read-only after the
    // cause is gone, and so does the shared-memory file, so the pools then replace all
    // connections.
    let only_reads = Arc::new(AtomicBool::new(false));
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
    let (opened, closed, writable) = (Arc::clone(&files), Arc::clone(&files), config.create);
    let (found, known, busy_timeout) =
        (Arc::clone(&only_reads), Arc::clone(&only_reads), config.busy_timeout);
    let writers = pool(1)
        .after_connect(move |connection, _| {
            let (found, opened) = (Arc::clone(&found), Arc::clone(&opened));
            Box::pin(async move {
                let only_reads = writable && can_only_read(connection, busy_timeout).await?;
                found.store(only_reads, Ordering::Relaxed);
                if writable {
                    // Must be last: a connection dropped before this is closed without
                    // `after_release`.
                    opened.note_sidecars();
                }
                Ok(())
            })
        })
        .after_release(move |connection, _| {
            let (known, closed) = (Arc::clone(&known), Arc::clone(&closed));
            Box::pin(async move {
                let again = if known.load(Ordering::Relaxed) {
                    Ok(false)
                } else {
                    is_at_rest(connection).await
                };
                if !matches!(again, Ok(true)) {
                    // SQLite removes the sidecar files with the last connection.
                    closed.forget_sidecars();
                }
                again
            })
        });
    let max_readers = config.max_readers.max(1);
    SqliteDatabase {
        writer: writers.connect_lazy_with(writer),
        readers: pool(max_readers)
            .after_release(move |connection, _| {
                let only_reads = Arc::clone(&only_reads);
                Box::pin(async move {
                    Ok(!only_reads.load(Ordering::Relaxed) && is_at_rest(connection).await?)
                })
            })
            .connect_lazy_with(readers),
        // An immutable connection never sees later changes, so each one is used once.
        frozen: pool(max_readers)
            .after_release(|_, _| Box::pin(std::future::ready(Ok(false))))
            .connect_lazy_with(frozen(base)),
        files,
        writable,
    }
}

/// Whether SQLite had to open the file, or a sidecar file, read-only. It then begins write
/// transactions, but refuses each write in them.
async fn can_only_read(
    connection: &mut SqliteConnection,
    busy_timeout: Duration,
) -> sqlx::Result<bool> {
    // The refusal comes before any wait for a lock.
    connection.execute(wait(Duration::ZERO)).await?;
    let written = connection.execute("DELETE FROM dezky_outbox WHERE 0").await;
    connection.execute(wait(busy_timeout)).await?;
    Ok(written.is_err_and(|error| family(&error) == Some(READONLY)))
}

/// Sets how long a connection waits for other writers.
fn wait(bound: Duration) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("PRAGMA busy_timeout = {}", bound.as_millis()))
}

/// Whether a connection can be reused. If SQLite rolled a transaction back on its own (full disk,
/// I/O error, out of memory), sqlx still counts it as open and never begins another one on this
/// connection, which must therefore be replaced.
async fn is_at_rest(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    if connection.is_in_transaction() {
        // The rollback of a dropped transaction may be in progress: wait for it.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

/// Refuses a file or folder that this user can't write. A full disk is not refused: reads are
/// served, and writes too once there is room.
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
        "this user can't write the file, or create files in its folder, which SQLite needs: change the permissions, or mount it writable",
    ))
}

/// Writes a row without waiting for other writers, and rolls back.
async fn try_to_write(config: &SqliteConfig, database: &SqliteDatabase) -> sqlx::Result<()> {
    let mut connection = database.writer.acquire().await?;
    connection.execute(wait(Duration::ZERO)).await?;
    let written = async {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        // On a read-only file, beginning a write transaction succeeds.
        let write = sqlx::query("INSERT INTO dezky_outbox (event) VALUES ('')");
        write.execute(&mut *tx).await?;
        tx.rollback().await
    };
    let written = written.await;
    connection.execute(wait(config.busy_timeout)).await?;
    written
}

/// Whether permissions prevent new files in the folder.
fn may_not_make_files(path: &Path) -> bool {
    let probe = sidecar(path, PROBE);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime as _;
    use crate::rt::TokioRuntime;
    use crate::store::{AuditStore as _, SqliteAuditStore};

    /// A new log, closed, and options to open connections to it.
    async fn log(folder: &Path) -> (SqliteConfig, SqliteConnectOptions) {
        let config = SqliteConfig::new(folder.join("audit.db"));
        let log = SqliteAuditStore::open(config.clone(), &TokioRuntime).await.unwrap();
        assert_eq!(log.state().await.unwrap().head.next_seq, 0);
        log.close().await;
        let base = SqliteConnectOptions::new().filename(&config.path);
        (config, base)
    }

    async fn until_closed(pool: &sqlx::SqlitePool) {
        while pool.size() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_writer_that_could_only_be_opened_read_only_is_not_reused() {
        let folder = tempfile::tempdir().unwrap();
        let (config, base) = log(folder.path()).await;
        let database = database(&config, &base.read_only(true));
        let reader = database.read().await.unwrap();
        let mut tx = database.begin().await.unwrap();
        let write = "INSERT INTO dezky_outbox (event) VALUES ('')";
        let refused = tx.execute(write).await.unwrap_err();
        assert_eq!(family(&refused), Some(READONLY), "{refused}");
        tx.rollback().await.unwrap();
        until_closed(&database.writer).await;
        // The readers share a file with it.
        drop(reader);
        until_closed(&database.readers).await;
    }

    #[tokio::test]
    async fn a_writer_is_reused_while_another_one_writes() {
        let folder = tempfile::tempdir().unwrap();
        let (config, base) = log(folder.path()).await;
        let mut other = base.clone().connect().await.unwrap();
        let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let database = database(&config, &base);
        let connection = database.writer.acquire().await.unwrap();
        held.rollback().await.unwrap();
        drop(connection);
        database.begin().await.unwrap().commit().await.unwrap();
        assert_eq!(database.writer.size(), 1);
        let mut writer = database.writer.acquire().await.unwrap();
        let wait: i64 =
            sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(&mut *writer).await.unwrap();
        assert_eq!(u128::try_from(wait), Ok(config.busy_timeout.as_millis()));
    }

    #[tokio::test]
    async fn closing_the_last_connection_does_not_count_as_replacing_files() {
        let folder = tempfile::tempdir().unwrap();
        let (config, base) = log(folder.path()).await;
        let database = database(&config, &base);
        let mut tx = database.begin().await.unwrap();
        // As SQLite does on a full disk.
        tx.execute("ROLLBACK").await.unwrap();
        drop(tx);
        until_closed(&database.writer).await;
        assert!(!sidecar(&config.path, "-wal").exists());
        database.read().await.unwrap();
        database.begin().await.unwrap().commit().await.unwrap();
        // Removing an open file is still detected.
        std::fs::remove_file(sidecar(&config.path, "-wal")).unwrap();
        assert_eq!(database.read().await.unwrap_err().kind(), ErrorKind::StoreReplaced);
    }

    #[tokio::test]
    async fn dropping_a_connection_while_it_opens_does_not_count_as_replacing_files() {
        let folder = tempfile::tempdir().unwrap();
        let (config, base) = log(folder.path()).await;
        let wal = sidecar(&config.path, "-wal");
        for polls in 1..200 {
            let database = database(&config, &base);
            let mut acquire = Box::pin(database.writer.acquire());
            let mut is_open = false;
            for _ in 0..polls {
                is_open = futures_util::poll!(&mut acquire).is_ready();
                if is_open {
                    break;
                }
                TokioRuntime.sleep(Duration::from_millis(2)).await;
            }
            drop(acquire);
            if is_open {
                assert!(polls > 1, "nothing was dropped");
                return;
            }
            while wal.exists() {
                TokioRuntime.sleep(Duration::from_millis(2)).await;
            }
            database.files.check().unwrap();
        }
        panic!("it was never opened");
    }
}
