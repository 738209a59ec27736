use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use dezky_core::Error;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AuditStore as _, SqliteAuditStore, SqliteConfig, sqlite_error, sqlite_reader,
};
use sqlx::Connection as _;

use super::report::Report;
use crate::app::schema::sqlite::versions_of;
use crate::config::{folder_of, reason};

/// The room on the disk below which nothing goes on. It is taken for a moment, so no more than
/// a server beside it can spare.
const ROOM_BYTES: usize = 64 << 10;

/// Looks at the file; gives the schema's versions if it can be read.
pub(super) async fn examine(path: &Path, report: &mut Report) -> Option<BTreeMap<String, usize>> {
    examine_folder(path, report);
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
            report.error("file", &error);
            return None;
        }
    };
    report.ok("version", format!("SQLite {version}, built in"));
    report.tables(&versions, &names);
    if versions.contains_key("audit") {
        // To open an older one would bring it up to date.
        if versions["audit"] == SqliteAuditStore::schema_version() {
            probe(path, report).await;
        }
    }
    Some(versions)
}

/// Others' files stand beside the database while it is open.
fn examine_folder(path: &Path, report: &mut Report) {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let folder = folder_of(path);
    let probe = folder.join(format!(".dezky-doctor-{}", std::process::id()));
    let written = std::fs::File::create_new(&probe).and_then(|mut file| {
        let written = file.write_all(&vec![0; ROOM_BYTES]).and_then(|()| file.sync_all());
        std::fs::remove_file(&probe).and(written)
    });
    match written {
        Ok(()) => report.ok("folder", format!("{} can be written to", folder.display())),
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) => report
            .bad(
                "folder",
                format!(
                    "the disk of {} has no room for {ROOM_BYTES} bytes ({})",
                    folder.display(),
                    reason(&error)
                ),
                "make room: a server on it serves reads alone",
            ),
        Err(error) => report.bad(
            "folder",
            format!("{} can't be written to ({})", folder.display(), reason(&error)),
            "let this user write there: SQLite keeps files beside the database",
        ),
    }
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
        Ok(metadata) => report.ok("file", format!("{} bytes, of this user alone", metadata.len())),
        Err(error) => {
            report.bad("file", reason(&error), "let this user read it");
        }
    }
}

/// Writes as the log does, and takes it back.
async fn probe(path: &Path, report: &mut Report) {
    let what = "writing";
    let log = match SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await {
        Ok(log) => log,
        // The schema's lines say more.
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
        // To the disk and back: what is rolled back does not get there.
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
            report.ok(what, "a row was written and taken back");
            // FULL or EXTRA.
            if synchronous >= 2 && journal == "wal" {
                report.ok("durability", "write-ahead log, synced at every commit");
            } else {
                report.bad(
                    "durability",
                    format!("journal_mode is {journal}, synchronous {synchronous}"),
                    "move the file to a local disk: it is to be wal and 2 (FULL)",
                );
            }
            report.outbox(waiting.unsigned_abs());
        }
        Err(error) => report.error(what, &error),
    }
}
