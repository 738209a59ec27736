//! A platform in one SQLite file.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::directory::{DIRECTORY, DocumentDirectory};
use dezky_core::documents;
use dezky_core::rt::{TokioRuntime, unblock};
use dezky_core::store::{AuditStore, SqliteAuditStore, SqliteConfig, sqlite_error, sqlite_reader};
use dezky_core::{Error, ErrorKind, Result};
use dezky_flags::store::{DocumentFlagStore, FLAGS};
use sqlx::{Connection as _, SqliteConnection};

use super::{Access, Backend, Opened, Report};
use crate::url::StoreConfig;

/// The free space that SQLite needs to continue. The probe occupies it for a moment, so it is no
/// more than a server on the same disk can spare.
const ROOM_BYTES: usize = 64 << 10;

pub(super) struct Sqlite {
    path: PathBuf,
    config: StoreConfig,
}

impl Sqlite {
    pub(super) fn new(path: &Path, config: &StoreConfig) -> Self {
        Self { path: path.to_owned(), config: config.clone() }
    }

    async fn open_log(&self, access: Access, create: bool) -> Result<Arc<SqliteAuditStore>> {
        let mut config = SqliteConfig::new(&self.path);
        config.create = create;
        config.must_write = access.must_write();
        config.shared = self.config.shared;
        config.busy_timeout = self.config.lock_timeout;
        SqliteAuditStore::open(config, &TokioRuntime).await.map(Arc::new)
    }

    /// Refuses a schema that is not current. Opening for writing would migrate it.
    async fn look(&self, access: Access) -> Result<()> {
        let reader = self.open_log(access, false).await?;
        let parts = async {
            DocumentDirectory::open(&reader.database()).await?;
            DocumentFlagStore::open(&reader.database()).await
        };
        let looked = parts.await.map(drop);
        reader.close().await;
        looked
    }
}

#[async_trait]
impl Backend for Sqlite {
    fn known_versions(&self) -> [usize; 3] {
        [SqliteAuditStore::schema_version(), DIRECTORY.versions().sqlite, FLAGS.versions().sqlite]
    }

    async fn versions(&self) -> Result<BTreeMap<String, usize>> {
        versions(&self.path).await
    }

    async fn examine(&self, report: &mut Report) -> Option<BTreeMap<String, usize>> {
        examine(&self.path, report).await
    }

    async fn open(&self, access: Access) -> Result<Arc<dyn Opened>> {
        // If the folder is missing too, opening says so.
        let path = &self.path;
        if access != Access::Migrate && !path.exists() && folder_of(path).is_dir() {
            let problem = format!(
                "{}: there is no such file: run a migration to create it, or name another",
                self.config.url
            );
            return Err(Error::new(ErrorKind::ConfigInvalid, problem));
        }
        if matches!(access, Access::Write | Access::Use) {
            self.look(access).await?;
        }
        Ok(self.open_log(access, access != Access::Read).await?)
    }
}

#[async_trait]
impl Opened for SqliteAuditStore {
    fn log(self: Arc<Self>) -> Arc<dyn AuditStore> {
        self
    }

    fn documents(self: Arc<Self>) -> documents::Database {
        (&self.database()).into()
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}

/// Returns the components' versions; empty without a file or a schema.
async fn versions(path: &Path) -> Result<BTreeMap<String, usize>> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let mut connection = sqlite_reader(path).await?;
    let versions = versions_of(&mut connection).await;
    connection.close().await.map_err(sqlite_error)?;
    versions
}

async fn versions_of(connection: &mut SqliteConnection) -> Result<BTreeMap<String, usize>> {
    let ours: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dezky_schema')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(sqlite_error)?;
    if !ours {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT component, version FROM dezky_schema")
        .fetch_all(connection)
        .await
        .map_err(sqlite_error)?;
    Ok(rows
        .into_iter()
        .map(|(name, version)| (name, usize::try_from(version).unwrap_or(0)))
        .collect())
}

/// Examines the file; returns the schema's versions if it can be read.
async fn examine(path: &Path, report: &mut Report) -> Option<BTreeMap<String, usize>> {
    examine_folder(path, report).await;
    if !path.exists() {
        report.missing("file", "dezky-server migrate, or start a server");
        return None;
    }
    examine_file(path, report);
    let read = async {
        let mut connection = sqlite_reader(path).await?;
        let version: String = sqlx::query_scalar("SELECT sqlite_version()")
            .fetch_one(&mut connection)
            .await
            .map_err(sqlite_error)?;
        let versions = versions_of(&mut connection).await?;
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
                .fetch_all(&mut connection)
                .await
                .map_err(sqlite_error)?;
        connection.close().await.map_err(sqlite_error)?;
        Ok::<_, Error>((version, versions, names))
    };
    let (version, versions, names) = match read.await {
        Ok(read) => read,
        Err(error) => {
            failed(report, "file", &error);
            return None;
        }
    };
    report.ok("version", format!("SQLite {version}, built in"));
    report.tables(&versions, &names);
    if versions.contains_key("audit") {
        // Opening an older one would migrate it.
        if versions["audit"] == SqliteAuditStore::schema_version() {
            probe(path, report).await;
        }
    }
    Some(versions)
}

/// SQLite creates further files next to the database while it is open.
async fn examine_folder(path: &Path, report: &mut Report) {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let folder = folder_of(path);
    let probe = folder.join(format!(".dezky-doctor-{}", std::process::id()));
    match unblock(&TokioRuntime, move || take_room(&probe)).await {
        Ok(()) => report.ok("folder", format!("{} can be written to", folder.display())),
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) => report
            .bad(
                "folder",
                format!(
                    "the disk of {} has no room for {ROOM_BYTES} bytes ({})",
                    folder.display(),
                    reason(&error)
                ),
                "make room: a server on it can only serve reads",
            ),
        Err(error) => report.bad(
            "folder",
            format!("{} can't be written to ({})", folder.display(), reason(&error)),
            "let this user write to it: SQLite creates files next to the database",
        ),
    }
}

/// Writes a file that takes the needed space, and removes it.
fn take_room(probe: &Path) -> io::Result<()> {
    std::fs::File::create_new(probe).and_then(|mut file| {
        let written = file.write_all(&vec![0; ROOM_BYTES]).and_then(|()| file.sync_all());
        std::fs::remove_file(probe).and(written)
    })
}

fn examine_file(path: &Path, report: &mut Report) {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => report.warn(
            "file",
            format!(
                "others may read or write it (mode {:o})",
                metadata.permissions().mode() & 0o777
            ),
            format!("chmod 600 {}", path.display()),
        ),
        Ok(metadata) => {
            report.ok("file", format!("{} bytes, accessible to this user only", metadata.len()));
        }
        Err(error) => {
            report.bad("file", reason(&error), "let this user read it");
        }
    }
}

/// Checks durability and writes a row, which is rolled back.
async fn probe(path: &Path, report: &mut Report) {
    let what = "writing";
    let log = match SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await {
        Ok(log) => log,
        // The lines about the schema say more.
        Err(error) => return report.bad(what, error.to_string(), "see the other lines"),
    };
    let probed = async {
        let mut tx = log.database().begin().await?;
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
            .fetch_one(&mut *tx)
            .await
            .map_err(sqlite_error)?;
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(&mut *tx)
            .await
            .map_err(sqlite_error)?;
        drop(tx);
        // This one syncs to the disk; a transaction that is rolled back does not.
        log.check_writable().await?;
        let waiting: i64 =
            sqlx::query_scalar("SELECT count(*) FROM (SELECT 1 FROM dezky_outbox LIMIT 100001)")
                .fetch_one(&mut *log.database().read().await?)
                .await
                .map_err(sqlite_error)?;
        Ok::<_, Error>((synchronous, journal, waiting))
    };
    let probed = probed.await;
    log.close().await;
    match probed {
        Ok((synchronous, journal, waiting)) => {
            report.ok(what, "a row was written and rolled back");
            // FULL or EXTRA.
            if synchronous >= 2 && journal == "wal" {
                report.ok("durability", "write-ahead log, synced at every commit");
            } else {
                report.bad(
                    "durability",
                    format!("journal_mode is {journal}, synchronous {synchronous}"),
                    "move the file to a local disk; they must be wal and 2 (FULL)",
                );
            }
            report.outbox(waiting.unsigned_abs());
        }
        Err(error) => failed(report, what, &error),
    }
}

/// Reports an error of the file. Its text ends with the fix, after a colon.
fn failed(report: &mut Report, what: &'static str, error: &Error) {
    let text = error.to_string();
    match text.rsplit_once(": ") {
        Some((finding, fix)) => report.bad(what, finding, fix),
        None => report.bad(what, text, "restore a backup"),
    }
}

/// The folder of a file.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An I/O error in words, without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}
