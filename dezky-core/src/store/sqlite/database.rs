//! The connections to the file, for data that commits together with the log.

use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool};

use super::files::Files;
use super::open::is_without_room;
use super::{SqliteTransaction, schema, store_error, structure};
use crate::store::Anomaly;
use crate::store::schema::check_version;
use crate::{Error, ErrorKind, Result, SealedEvent};

/// The connections of an [`SqliteAuditStore`](super::SqliteAuditStore), for other data in the same
/// file: it commits together with the log's events, and its writers queue with the log's.
///
/// Clones share the connections.
///
/// ```
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{AuditStore, SqliteAuditStore, SqliteConfig};
/// use dezky_core::{Actor, NewEvent};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let log = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await?;
/// let database = log.database();
/// database.migrate("notes", &["CREATE TABLE notes (text TEXT NOT NULL) STRICT"]).await?;
///
/// let event = NewEvent::new("note.created", Actor::user("u-1")).seal(&TokioRuntime);
/// let mut tx = database.begin().await?;
/// sqlx::query("INSERT INTO notes VALUES ('milk')").execute(&mut *tx).await?;
/// SqliteAuditStore::stage_in(&mut tx, &[event]).await?;
/// tx.commit().await?;
/// assert_eq!(log.relay(100).await?.appended, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteDatabase {
    /// One connection: writers queue here rather than in SQLite's busy loop.
    pub(super) writer: SqlitePool,
    pub(super) readers: SqlitePool,
    /// Readers to use while the disk has no room for the shared-memory file of the others.
    pub(super) frozen: SqlitePool,
    pub(super) files: Arc<Files>,
    pub(super) writable: bool,
}

impl SqliteDatabase {
    /// Returns a read-only connection.
    ///
    /// # Errors
    /// `store_busy` if none becomes free in time, `store_unavailable`, and `store_replaced` if the
    /// files were removed or replaced since they were opened.
    pub async fn read(&self) -> Result<PoolConnection<Sqlite>> {
        self.files.check()?;
        match self.readers.acquire().await {
            // Serves reads on a full disk.
            Err(error) if is_without_room(&error) && self.files.has_no_wal() => {
                self.frozen.acquire().await
            }
            acquired => acquired,
        }
        .map_err(store_error)
    }

    /// Begins a write transaction (`BEGIN IMMEDIATE`). If dropped before
    /// [`commit`](Self::commit), it changes nothing. Hold it briefly: all writers of this process
    /// wait for it, and those of other processes up to their `busy_timeout`.
    ///
    /// # Errors
    /// `store_busy` if other writers hold the database for longer than the bound,
    /// `store_unavailable`, and `store_replaced` if the files were removed or replaced since they
    /// were opened.
    pub async fn begin(&self) -> Result<SqliteTransaction> {
        self.files.check_database()?;
        let tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(store_error)?;
        self.files.check()?;
        Ok(SqliteTransaction { tx, files: Arc::clone(&self.files) })
    }

    /// Stages `events` in the transaction and commits it, so that the mutation and its events are
    /// stored together.
    pub async fn commit(&self, mut tx: SqliteTransaction, events: &[SealedEvent]) -> Result<()> {
        super::SqliteAuditStore::stage_in(&mut tx, events).await?;
        tx.commit().await
    }

    /// Migrates the tables of `component`: `steps[n]` takes version n to n + 1, all missing steps
    /// in one transaction. Safe if several processes start together. Only checks the version of a
    /// database that was opened without `create`.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if steps are missing and `create` is not set.
    pub async fn migrate<S>(&self, component: &str, steps: &[S]) -> Result<()>
    where
        S: AsRef<str> + Sync,
    {
        let mut reader = self.read().await?;
        let version = schema::version_of(&mut reader, component).await?;
        drop(reader);
        check_version(version, steps.len())?;
        if version == steps.len() {
            return Ok(());
        }
        if !self.writable {
            return Err(Error::new(
                ErrorKind::StoreForeign,
                format!("the database holds no {component} of this version: migrate it"),
            ));
        }
        let mut tx = self.begin().await?;
        schema::take_steps(&mut tx, component, steps).await?;
        tx.commit().await
    }

    /// Closes the connections, after waiting for those in use.
    pub(super) async fn close(&self) {
        // SQLite removes the sidecar files with the last connection, so their absence then means
        // nothing.
        self.files.forget_sidecars();
        for pool in [&self.writer, &self.readers, &self.frozen] {
            pool.close().await;
        }
    }

    /// Compares the tables and indexes of a component with those that its `steps` create. Returns
    /// the differences; additional indexes are allowed.
    ///
    /// # Errors
    /// Those of reading the database.
    pub async fn examine<S>(&self, steps: &[S]) -> Result<Vec<Anomaly>>
    where
        S: AsRef<str> + Sync,
    {
        structure::definitions(&mut *self.read().await?, steps).await
    }
}

/// Converts an error of sqlx. The kind tells whether a retry may help; values of statements are
/// never included.
pub fn sqlite_error(error: sqlx::Error) -> Error {
    store_error(error)
}
