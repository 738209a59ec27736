//! The embedded store: one SQLite file in WAL mode, durable at every commit.
//!
//! Tokio-only, because sqlx is built for tokio here.

mod codec;
mod database;
mod files;
mod list_scan;
mod open;
mod schema;
mod structure;
mod transaction;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use uuid::Uuid;

pub use self::database::{SqliteDatabase, sqlite_error};
pub use self::open::sqlite_reader;
pub use self::transaction::SqliteTransaction;
use super::codec::{
    Columns, corrupt, existing_row, lease_row, limit, missing_log, quarantined_item, scanned_row,
    signed, staged_event,
};
use super::engine::{
    CursorKey, ExistingRow, LeaseRow, ListScan, NewRow, RowStore, RowTx, ScanEnd, ScanPage,
    StagedEvent, TallyScan,
};
use super::schema::Found;
use super::sql::{COLUMN_COUNT, COLUMNS, COMPARED_COLUMNS};
use super::{
    Anomaly, Capabilities, ChainedStore, Extent, Head, LogState, QuarantinedItem, ScannedRow,
    TallyCount,
};
use crate::event::uuid_v7;
use crate::rt::{TokioRuntime, unblock};
use crate::source::QuarantineItem;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// The configuration of an SQLite log.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// The database file.
    pub path: PathBuf,
    /// Create the file if it is missing (mode 0600), and migrate its schema. Without it, opening
    /// writes nothing.
    pub create: bool,
    /// Refuse to open a file or folder that this user can't write. Without it, reads are served
    /// and writes fail with `store_unavailable`.
    pub must_write: bool,
    /// Allow other tables in the same database, so that your mutation and its event commit
    /// together. Without it, a database that has tables but none of ours is refused.
    pub shared: bool,
    /// How long a writer waits for another one; 5 s by default.
    pub busy_timeout: Duration,
    /// The number of connections for reading; 4 by default.
    pub max_readers: u32,
    /// The length of the write-ahead log, in pages, at which it is written back; 20,000 by
    /// default. A smaller number slows small batches to half the speed, a larger one makes the
    /// file larger.
    pub wal_autocheckpoint_pages: u32,
}

impl SqliteConfig {
    /// The defaults for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: true,
            must_write: true,
            shared: false,
            busy_timeout: Duration::from_secs(5),
            max_readers: 4,
            wal_autocheckpoint_pages: 20_000,
        }
    }

    /// Opens an existing log without creating or migrating it.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self { create: false, ..Self::new(path) }
    }
}

/// An [`AuditStore`](super::AuditStore) in one SQLite file.
///
/// WAL with `synchronous = FULL`: acknowledged data survives a power failure. Several processes on
/// one machine may use the same file.
///
/// ```
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{AuditStore, SqliteAuditStore, SqliteConfig};
/// use dezky_core::{Actor, NewEvent};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let store = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await?;
/// let event = NewEvent::new("tenant.created", Actor::user("u-1")).seal(&TokioRuntime);
/// store.append(vec![event], Default::default()).await?;
/// assert_eq!(store.state().await?.head.next_seq, 1);
/// # Ok(())
/// # }
/// ```
pub type SqliteAuditStore = ChainedStore<SqliteRows>;

impl SqliteAuditStore {
    /// Opens the log in a file, and creates or migrates it if configured.
    ///
    /// # Errors
    /// `config_invalid` if the file or folder does not exist or is not writable; `store_foreign`,
    /// `store_corrupt`, `schema_newer`. Nothing was changed then. A full disk is an error only if
    /// the schema must be migrated.
    pub async fn open(config: SqliteConfig, runtime: &dyn Runtime) -> Result<Self> {
        let rows = SqliteRows::open(&config, runtime)
            .await
            .map_err(|error| error.context(config.path.display()))?;
        Ok(Self::new(rows))
    }

    /// Writes events into the outbox within your own transaction (`&mut tx` derefs to the
    /// connection), so that they commit with your mutation or not at all. Assigns no `seq` and
    /// does not lock the head. Call [`relay`](super::AuditStore::relay) after your commit.
    pub async fn stage_in(connection: &mut SqliteConnection, events: &[SealedEvent]) -> Result<()> {
        super::chained::check_events(events)?;
        stage(connection, events).await
    }

    /// The log's connections, for other data in the same file.
    pub fn database(&self) -> SqliteDatabase {
        self.rows().database.clone()
    }

    /// The schema version of the log in this build.
    pub fn schema_version() -> usize {
        schema::known_version()
    }

    /// Closes the connections, after waiting for those in use.
    pub async fn close(&self) {
        self.rows().database.close().await;
    }
}

/// The rows of an [`SqliteAuditStore`].
pub struct SqliteRows {
    database: SqliteDatabase,
}

impl SqliteRows {
    async fn open(config: &SqliteConfig, runtime: &dyn Runtime) -> Result<Self> {
        open::check_file(config)?;
        let base = SqliteConnectOptions::new()
            .filename(&config.path)
            .busy_timeout(config.busy_timeout)
            .disable_statement_logging();
        let found =
            if config.path.exists() { open::look(&config.path).await? } else { Found::Empty };
        let behind = found.is_behind(schema::known_version(), config.shared, config.create)?;
        if behind {
            open::make_private(&config.path)?;
        }
        let database = open::database(config, &base);
        if behind {
            let mut connection = database.writer.acquire().await.map_err(store_error)?;
            let log_id = uuid_v7(runtime.now(), runtime);
            let mut cursor_key = [0; 32];
            runtime.fill_random(&mut cursor_key);
            schema::migrate(&mut connection, log_id.as_bytes(), &cursor_key).await?;
        } else if config.create && config.must_write {
            open::check_permissions(config, &database).await?;
        }
        log_state(&mut *database.read().await?).await?;
        Ok(Self { database })
    }
}

/// Converts an error of sqlx: SQLite's result codes to kinds. Values of statements are never
/// included.
pub(super) fn store_error(error: sqlx::Error) -> Error {
    let (kind, message) = match &error {
        sqlx::Error::PoolTimedOut => {
            (ErrorKind::StoreBusy, "no connection became free in time: try again".to_owned())
        }
        sqlx::Error::Database(database) => {
            let code = open::code(&error).unwrap_or(1);
            // The low byte of an extended code is its family.
            match code & 0xff {
                // READONLY_DBMOVED.
                _ if code == 1032 => (
                    ErrorKind::StoreReplaced,
                    "the database file was moved while it was open: put it back, and restart"
                        .to_owned(),
                ),
                // IOERR_SHMSIZE: the shared-memory file can't grow.
                _ if code == 4874 => {
                    (ErrorKind::StoreUnavailable, "the disk is full: make room".to_owned())
                }
                // BUSY and LOCKED; PROTOCOL: a writer stopped while it changed the shared memory.
                5 | 6 | 15 => (
                    ErrorKind::StoreBusy,
                    "another writer holds the database: try again".to_owned(),
                ),
                11 => (
                    ErrorKind::StoreCorrupt,
                    "the database file is damaged: restore a backup".to_owned(),
                ),
                26 => (
                    ErrorKind::StoreCorrupt,
                    "the file is not an SQLite database: name another file".to_owned(),
                ),
                19 => (
                    ErrorKind::StoreCorrupt,
                    format!(
                        "a constraint of the log was violated ({}): restore a backup",
                        database.message()
                    ),
                ),
                1 => (
                    ErrorKind::StoreCorrupt,
                    format!(
                        "the database lacks a part of the log ({}): restore a backup",
                        database.message()
                    ),
                ),
                14 => (
                    ErrorKind::StoreUnavailable,
                    "the database file can't be opened: check its folder and permissions"
                        .to_owned(),
                ),
                8 => (
                    ErrorKind::StoreUnavailable,
                    "the database is read-only: check its permissions".to_owned(),
                ),
                13 => (ErrorKind::StoreUnavailable, "the disk is full: make room".to_owned()),
                _ => (
                    ErrorKind::StoreUnavailable,
                    format!("SQLite reports {}: check the disk and the file", database.message()),
                ),
            }
        }
        sqlx::Error::ColumnDecode { index, .. } => {
            (ErrorKind::StoreCorrupt, format!("column {index} can't be read: restore a backup"))
        }
        _ => (
            ErrorKind::StoreUnavailable,
            "the database does not answer: try again, or restart".to_owned(),
        ),
    };
    Error::new(kind, message).with_source(error)
}

#[async_trait]
impl RowStore for SqliteRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        let tx = self.database.begin().await?;
        Ok(Box::new(SqliteTx { tx }))
    }

    async fn state(&self) -> Result<LogState> {
        let mut connection = self.database.read().await?;
        log_state(&mut connection).await
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        let mut query = sqlx::QueryBuilder::new("SELECT ");
        query.push(COLUMNS).push(" FROM dezky_audit_events WHERE seq >= ");
        query.push_bind(from_seq);
        query.push(" ORDER BY seq LIMIT ").push_bind(limit(max_rows));
        let mut connection = self.database.read().await?;
        let rows = query.build().fetch_all(&mut *connection).await.map_err(store_error)?;
        Ok(rows.iter().map(scanned_row).collect())
    }

    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>> {
        let mut connection = self.database.read().await?;
        let query = sqlx::query_scalar("SELECT seq FROM dezky_audit_events WHERE id = ?");
        let bytes = id.as_bytes().to_vec();
        query.bind(bytes).fetch_optional(&mut *connection).await.map_err(store_error)
    }

    async fn tally(&self, scan: &TallyScan<'_>) -> Result<(Vec<TallyCount>, ScanEnd)> {
        // One snapshot for all windows of the scan.
        let mut connection = self.database.read().await?;
        let mut tx = connection.begin().await.map_err(store_error)?;
        super::list_scan::tally(&mut *tx, scan).await
    }

    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage> {
        // One snapshot for all windows of the scan.
        let mut connection = self.database.read().await?;
        let mut tx = connection.begin().await.map_err(store_error)?;
        super::list_scan::run(&mut *tx, scan).await
    }

    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        // One snapshot for all comparisons.
        let mut connection = self.database.read().await?;
        let mut tx = connection.begin().await.map_err(store_error)?;
        structure::examine(&mut tx, extent).await
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        let mut connection = self.database.read().await?;
        cursor(&mut connection, source).await
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        let mut connection = self.database.read().await?;
        let rows = sqlx::query(
            "SELECT number, source, key, reason, detail, raw, at, seen FROM dezky_quarantine WHERE number > ? ORDER BY number LIMIT ?",
        )
        .bind(after)
        .bind(limit(max_items))
        .fetch_all(&mut *connection)
        .await
        .map_err(store_error)?;
        rows.iter().map(quarantined_item).collect()
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        let mut connection = self.database.read().await?;
        sqlx::query_as("SELECT source, cursor FROM dezky_cursors ORDER BY source")
            .fetch_all(&mut *connection)
            .await
            .map_err(store_error)
    }

    async fn has_staged(&self) -> Result<bool> {
        let mut connection = self.database.read().await?;
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM dezky_outbox)")
            .fetch_one(&mut *connection)
            .await
            .map_err(store_error)
    }
}

struct SqliteTx {
    tx: SqliteTransaction,
}

#[async_trait]
impl RowTx for SqliteTx {
    async fn head(&mut self) -> Result<Head> {
        Ok(log_state(&mut self.tx).await?.head)
    }

    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        let mut found = self.existing_ids(events).await?;
        let mut by_source: Vec<(&str, Vec<&str>)> = Vec::new();
        for event in events.iter().map(|sealed| sealed.event()) {
            let Some(external_id) = event.external_id.as_deref() else { continue };
            match by_source.iter_mut().find(|(source, _)| *source == event.source) {
                Some((_, ids)) => ids.push(external_id),
                None => by_source.push((&event.source, vec![external_id])),
            }
        }
        for (source, external_ids) in by_source {
            found.extend(self.existing_external(source, &external_ids).await?);
        }
        Ok(found)
    }

    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        // Few distinct sizes, so that prepared statements are reused.
        let mut rest = rows;
        for size in [64, 8, 1] {
            let whole = rest.len() / size * size;
            for chunk in rest[..whole].chunks(size) {
                self.insert_chunk(chunk).await?;
            }
            rest = &rest[whole..];
        }
        Ok(())
    }

    async fn set_head(&mut self, head: Head) -> Result<()> {
        sqlx::query("UPDATE dezky_audit_log SET next_seq = ?, head_hash = ?")
            .bind(signed(head.next_seq)?)
            .bind(head.hash.to_vec())
            .execute(&mut *self.tx)
            .await
            .map_err(store_error)?;
        Ok(())
    }

    async fn cursor(&mut self, source: &str) -> Result<Option<String>> {
        cursor(&mut self.tx, source).await
    }

    async fn set_identity(&mut self, log_id: Uuid, cursor_key: &CursorKey) -> Result<()> {
        sqlx::query("UPDATE dezky_audit_log SET log_id = ?, cursor_key = ?")
            .bind(log_id.as_bytes().to_vec())
            .bind(cursor_key.0.to_vec())
            .execute(&mut *self.tx)
            .await
            .map_err(store_error)?;
        Ok(())
    }

    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()> {
        sqlx::query("INSERT INTO dezky_cursors (source, cursor) VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET cursor = excluded.cursor")
            .bind(source)
            .bind(cursor)
            .execute(&mut *self.tx)
            .await
            .map_err(store_error)?;
        Ok(())
    }

    async fn now(&mut self) -> Result<Timestamp> {
        let ms: i64 =
            sqlx::query_scalar("SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER)")
                .fetch_one(&mut *self.tx)
                .await
                .map_err(store_error)?;
        Ok(Timestamp::from_millis_clamped(ms))
    }

    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>> {
        let row = sqlx::query(
            "SELECT holder, token, expires_at, length_ms FROM dezky_leases WHERE name = ?",
        )
        .bind(name)
        .fetch_optional(&mut *self.tx)
        .await
        .map_err(store_error)?;
        row.as_ref().map(lease_row).transpose()
    }

    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()> {
        sqlx::query("INSERT INTO dezky_leases (name, holder, token, expires_at, length_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at, length_ms = excluded.length_ms")
            .bind(name)
            .bind(&row.holder)
            .bind(signed(row.token)?)
            .bind(row.expires_at.as_millis())
            .bind(row.length_ms())
            .execute(&mut *self.tx)
            .await
            .map_err(store_error)?;
        Ok(())
    }

    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize> {
        let mut new = 0;
        for item in items {
            let seen: i64 = sqlx::query_scalar("INSERT INTO dezky_quarantine (source, key, reason, detail, raw, at, seen) VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT (source, key) DO UPDATE SET seen = seen + 1 RETURNING seen")
                .bind(&item.source)
                .bind(&item.key)
                .bind(&item.reason)
                .bind(&item.detail)
                .bind(&item.raw)
                .bind(item.at.as_millis())
                .fetch_one(&mut *self.tx)
                .await
                .map_err(store_error)?;
            new += usize::from(seen == 1);
        }
        Ok(new)
    }

    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()> {
        for QuarantinedItem { seen, item, .. } in items {
            sqlx::query("INSERT INTO dezky_quarantine (source, key, reason, detail, raw, at, seen) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, key) DO UPDATE SET seen = max(seen, excluded.seen)")
                .bind(&item.source)
                .bind(&item.key)
                .bind(&item.reason)
                .bind(&item.detail)
                .bind(&item.raw)
                .bind(item.at.as_millis())
                .bind(signed(*seen)?)
                .execute(&mut *self.tx)
                .await
                .map_err(store_error)?;
        }
        Ok(())
    }

    async fn release(&mut self, numbers: &[i64]) -> Result<usize> {
        let mut released = 0;
        for number in numbers {
            let deleted = sqlx::query("DELETE FROM dezky_quarantine WHERE number = ?")
                .bind(number)
                .execute(&mut *self.tx)
                .await
                .map_err(store_error)?;
            released += usize::from(deleted.rows_affected() > 0);
        }
        Ok(released)
    }

    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()> {
        stage(&mut self.tx, events).await
    }

    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>> {
        let rows = sqlx::query("SELECT number, event FROM dezky_outbox ORDER BY number LIMIT ?")
            .bind(limit(max_events))
            .fetch_all(&mut *self.tx)
            .await
            .map_err(store_error)?;
        rows.iter()
            .map(|row| {
                let number = row.int("number").map_err(corrupt)?;
                Ok(staged_event(number, row.text("event").map_err(corrupt)?))
            })
            .collect()
    }

    async fn unstage(&mut self, numbers: &[i64]) -> Result<()> {
        let list = serde_json::to_string(numbers).unwrap_or_default();
        sqlx::query("DELETE FROM dezky_outbox WHERE number IN (SELECT value FROM json_each(?))")
            .bind(list)
            .execute(&mut *self.tx)
            .await
            .map_err(store_error)?;
        Ok(())
    }

    async fn touch(&mut self) -> Result<()> {
        let files = Arc::clone(&self.tx.files);
        unblock(&TokioRuntime, move || files.check_room()).await?;
        let number: i64 =
            sqlx::query_scalar("INSERT INTO dezky_outbox (event) VALUES ('') RETURNING number")
                .fetch_one(&mut *self.tx)
                .await
                .map_err(store_error)?;
        self.unstage(&[number]).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.tx.commit().await
    }
}

impl SqliteTx {
    async fn existing_ids(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        let ids: Vec<String> =
            events.iter().map(|sealed| sealed.event().id.simple().to_string()).collect();
        let mut query = sqlx::QueryBuilder::new("SELECT ");
        query.push(COMPARED_COLUMNS).push(" FROM json_each(");
        query.push_bind(serde_json::to_string(&ids).unwrap_or_default());
        // CROSS JOIN makes the few keys the outer loop.
        query.push(") AS k CROSS JOIN dezky_audit_events AS e ON e.id = unhex(k.value)");
        let rows = query.build().fetch_all(&mut *self.tx).await.map_err(store_error)?;
        Ok(rows.iter().map(existing_row).collect())
    }

    async fn existing_external(
        &mut self,
        source: &str,
        external_ids: &[&str],
    ) -> Result<Vec<ExistingRow>> {
        let mut query = sqlx::QueryBuilder::new("SELECT ");
        query.push(COMPARED_COLUMNS).push(" FROM json_each(");
        query.push_bind(serde_json::to_string(external_ids).unwrap_or_default());
        query.push(
            ") AS k CROSS JOIN dezky_audit_events AS e ON e.external_id = k.value AND e.source = ",
        );
        query.push_bind(source.to_owned());
        let rows = query.build().fetch_all(&mut *self.tx).await.map_err(store_error)?;
        Ok(rows.iter().map(existing_row).collect())
    }

    async fn insert_chunk(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        let mut sql = String::with_capacity(64 + COLUMNS.len() + rows.len() * COLUMN_COUNT * 2);
        sql.push_str("INSERT INTO dezky_audit_events (");
        sql.push_str(COLUMNS);
        sql.push_str(") VALUES ");
        let tuple = format!("({})", vec!["?"; COLUMN_COUNT].join(","));
        sql.push_str(&vec![tuple; rows.len()].join(","));
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for row in rows {
            let event = row.event;
            let search_columns = row.search_columns();
            query = query
                .bind(signed(row.seq)?)
                .bind(event.id.as_bytes().to_vec())
                .bind(event.at.as_millis())
                .bind(event.received_at.as_millis())
                .bind(event.actor_type.as_str())
                .bind(event.actor_id.clone())
                .bind(event.actor_email.clone())
                .bind(event.actor_ip.clone())
                .bind(event.action.clone())
                .bind(event.outcome.as_str())
                .bind(event.resource_type.clone())
                .bind(event.resource_id.clone())
                .bind(event.resource_name.clone())
                .bind(event.tenant_slug.clone())
                .bind(event.partner_slug.clone())
                .bind(event.source.clone())
                .bind(event.external_id.clone())
                .bind(event.metadata.as_str().to_owned())
                .bind(row.salt().map(|salt| salt.to_vec()))
                .bind(row.erasure())
                .bind(row.prev_hash.to_vec())
                .bind(row.hash.to_vec())
                .bind(search_columns.actor_email)
                .bind(search_columns.search);
        }
        query.execute(&mut *self.tx).await.map_err(store_error)?;
        Ok(())
    }
}

async fn log_state(connection: &mut SqliteConnection) -> Result<LogState> {
    let row = sqlx::query(
        "SELECT log_id, cursor_key, base_seq, base_hash, next_seq, head_hash FROM dezky_audit_log",
    )
    .fetch_optional(connection)
    .await
    .map_err(store_error)?
    .ok_or_else(missing_log)?;
    super::codec::log_state(&row)
}

async fn cursor(connection: &mut SqliteConnection, source: &str) -> Result<Option<String>> {
    sqlx::query_scalar("SELECT cursor FROM dezky_cursors WHERE source = ?")
        .bind(source)
        .fetch_optional(connection)
        .await
        .map_err(store_error)
}

async fn stage(connection: &mut SqliteConnection, events: &[SealedEvent]) -> Result<()> {
    for event in events {
        sqlx::query("INSERT INTO dezky_outbox (event) VALUES (?)")
            .bind(event.to_json())
            .execute(&mut *connection)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}
