//! The connections to the file, for everything that commits together with its log.

use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool};

use super::files::Files;
use super::open::is_without_room;
use super::{SqliteTransaction, schema, store_error, structure};
use crate::store::Anomaly;
use crate::store::schema::check_version;
use crate::{Error, ErrorKind, Result, SealedEvent};

/// The connections of an [`SqliteAuditStore`](super::SqliteAuditStore), for stores
/// of other things in the same file: what they write commits together with its
/// events, and their writers queue with the log's.
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
    /// Readers for as long as the disk has no room for what the others share.
    pub(super) frozen: SqlitePool,
    pub(super) files: Arc<Files>,
    pub(super) writable: bool,
}

impl SqliteDatabase {
    /// A connection that can only read.
    ///
    /// # Errors
    /// `store_busy` if none becomes free in time, `store_unavailable`, and
    /// `store_replaced` if the files were removed or replaced since they were opened.
    pub async fn read(&self) -> Result<PoolConnection<Sqlite>> {
        self.files.check()?;
        match self.readers.acquire().await {
            // A full disk does not keep anybody from reading what is there.
            Err(error) if is_without_room(&error) && self.files.has_no_wal() => {
                self.frozen.acquire().await
            }
            acquired => acquired,
        }
        .map_err(store_error)
    }

    /// A transaction that may write (`BEGIN IMMEDIATE`). Dropped before
    /// [`commit`](Self::commit) it changes nothing. Hold it briefly: all writers of
    /// this process wait for it, and those of others up to their `busy_timeout`.
    ///
    /// # Errors
    /// `store_busy` if other writers hold it beyond the bound, `store_unavailable`, and
    /// `store_replaced` if the files were removed or replaced since they were opened.
    pub async fn begin(&self) -> Result<SqliteTransaction> {
        self.files.check_database()?;
        let tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(store_error)?;
        self.files.check()?;
        Ok(SqliteTransaction { tx, files: Arc::clone(&self.files) })
    }

    /// Stages `events` in the transaction and commits it: the mutation and its
    /// events, or neither.
    pub async fn commit(&self, mut tx: SqliteTransaction, events: &[SealedEvent]) -> Result<()> {
        super::SqliteAuditStore::stage_in(&mut tx, events).await?;
        tx.commit().await
    }

    /// Brings the tables of `component` up to date: `steps[n]` takes version n to
    /// n + 1, all of them in one transaction. Safe when several processes start
    /// together. On a database opened for reading alone only looks.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if steps are missing and can't be taken.
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

    /// Ends the connections, after those who use them.
    pub(super) async fn close(&self) {
        // SQLite removes these with the last connection; their absence then means nothing.
        self.files.forget_beside();
        for pool in [&self.writer, &self.readers, &self.frozen] {
            pool.close().await;
        }
    }

    /// Compares the tables and indexes of a component with those that its `steps` create.
    /// Empty if they match; additional indexes are allowed.
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

/// An error of sqlx as this crate says it: its kind tells whether a retry may
/// help, and no value of the statement gets in.
pub fn sqlite_error(error: sqlx::Error) -> Error {
    store_error(error)
}
