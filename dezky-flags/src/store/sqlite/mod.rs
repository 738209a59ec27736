//! Flags in the SQLite file of an audit log.

use std::collections::HashMap;

use async_trait::async_trait;
use dezky_core::store::{Anomaly, Capabilities, SqliteDatabase, sqlite_error};
use dezky_core::{Result, SealedEvent};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};

use super::settle::{
    NO_TEXT, Row as Stored, Settled, State, corrupt, from_text, settle, unfold, unreadable,
    unsigned, view,
};
use super::{Counts, FlagChange, FlagStore, FlagTable, Known, Snapshot, check_size};
use crate::Flag;

/// One SQL script a version; a script that was released never changes.
const STEPS: &[&str] = &[include_str!("v1.sql")];

/// Flags in the SQLite file of an audit log: a change and its event are one commit.
///
/// ```
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{SqliteAuditStore, SqliteConfig};
/// use dezky_flags::store::{FlagStore, SqliteFlagStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let log = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await?;
/// let store = SqliteFlagStore::open(&log.database()).await?;
/// assert!(store.snapshot().await?.flags.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteFlagStore {
    database: SqliteDatabase,
}

impl SqliteFlagStore {
    /// The version that the flags' tables have with this program.
    pub fn schema_version() -> usize {
        STEPS.len()
    }

    /// Opens the flags of a log's file, and makes their tables if they are missing.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the tables are missing and the file was
    /// opened for reading alone.
    pub async fn open(database: &SqliteDatabase) -> Result<Self> {
        database.migrate("flags", STEPS).await?;
        Ok(Self { database: database.clone() })
    }
}

#[async_trait]
impl FlagStore for SqliteFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(STEPS).await
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        let mut connection = self.database.read().await?;
        sqlx::query("SELECT key, version, flag FROM dezky_flags WHERE key = ? AND flag IS NOT NULL")
            .bind(key)
            .fetch_optional(&mut *connection)
            .await
            .map_err(sqlite_error)?
            .map_or(Ok(None), |row| Ok(read(&row)?.2))
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        let mut connection = self.database.read().await?;
        Ok(known(&mut connection, key).await?.last_version())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let mut connection = self.database.read().await?;
        // One snapshot for both reads.
        let mut tx = connection.begin().await.map_err(sqlite_error)?;
        let State { revision, .. } = state(&mut tx).await?;
        let rows = sqlx::query(
            "SELECT key, version, flag FROM dezky_flags WHERE flag IS NOT NULL ORDER BY key",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(sqlite_error)?;
        tx.commit().await.map_err(sqlite_error)?;
        // What is not of the type that it should be can't be read either: no flag has
        // the version 0, or is the empty text.
        let stored = rows.iter().map(|row| {
            let version = number(row, "version").unwrap_or(0);
            (row.try_get("key").unwrap_or(""), version, row.try_get("flag").unwrap_or(""))
        });
        Ok(view(revision, stored))
    }

    async fn revision(&self) -> Result<u64> {
        let mut connection = self.database.read().await?;
        Ok(state(&mut connection).await?.revision)
    }

    async fn table(&self) -> Result<FlagTable> {
        let mut connection = self.database.read().await?;
        // One snapshot for all reads.
        let mut tx = connection.begin().await.map_err(sqlite_error)?;
        let State { revision, .. } = state(&mut tx).await?;
        let rows = sqlx::query("SELECT key, version, flag FROM dezky_flags")
            .fetch_all(&mut *tx)
            .await
            .map_err(sqlite_error)?;
        tx.commit().await.map_err(sqlite_error)?;
        let (mut flags, mut removed) = (Vec::new(), Vec::new());
        for row in &rows {
            match read(row)? {
                (_, _, Some(flag)) => flags.push(flag),
                (key, version, None) => removed.push((key.to_owned(), version)),
            }
        }
        FlagTable::from_parts(revision, flags, removed)
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        let mut tx = self.database.begin().await?;
        if state(&mut tx).await?.revision != 0 {
            drop(tx);
            // Empty or the same: the table has the rule.
            return self.table().await?.restore(table);
        }
        write(&mut tx, unfold(&table)).await?;
        self.database.commit(tx, &[]).await
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        let mut tx = self.database.begin().await?;
        if !changes.is_empty() {
            let state = state(&mut tx).await?;
            let mut known = HashMap::new();
            for key in changes.iter().map(FlagChange::key) {
                known.insert(key.to_owned(), self::known(&mut tx, key).await?);
            }
            write(&mut tx, settle(&changes, known, state)?).await?;
        }
        self.database.commit(tx, &events).await
    }
}

async fn state(connection: &mut SqliteConnection) -> Result<State> {
    let row = sqlx::query("SELECT revision, flags, keys FROM dezky_flags_state")
        .fetch_optional(connection)
        .await
        .map_err(sqlite_error)?
        .ok_or_else(|| corrupt("the row of dezky_flags_state is missing"))?;
    let count = |column| number(&row, column).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(State {
        revision: number(&row, "revision")?,
        counts: Counts { flags: count("flags")?, keys: count("keys")? },
    })
}

async fn known(connection: &mut SqliteConnection, key: &str) -> Result<Known> {
    let row =
        sqlx::query("SELECT version, flag IS NOT NULL AS live FROM dezky_flags WHERE key = ?")
            .bind(key)
            .fetch_optional(connection)
            .await
            .map_err(sqlite_error)?;
    let Some(row) = row else { return Ok(Known::Never) };
    let version = number(&row, "version")?;
    let live = row.try_get("live").map_err(sqlite_error)?;
    Ok(if live { Known::Live(version) } else { Known::Removed(version) })
}

async fn write(connection: &mut SqliteConnection, settled: Settled<'_>) -> Result<()> {
    for row in &settled.rows {
        write_row(connection, row).await?;
    }
    let State { revision, counts } = settled.state;
    sqlx::query("UPDATE dezky_flags_state SET revision = ?, flags = ?, keys = ?")
        .bind(revision.cast_signed())
        .bind(i64::try_from(counts.flags).unwrap_or(i64::MAX))
        .bind(i64::try_from(counts.keys).unwrap_or(i64::MAX))
        .execute(connection)
        .await
        .map_err(sqlite_error)?;
    Ok(())
}

async fn write_row(connection: &mut SqliteConnection, row: &Stored<'_>) -> Result<()> {
    sqlx::query("INSERT INTO dezky_flags (key, version, flag) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET version = excluded.version, flag = excluded.flag")
        .bind(row.key)
        .bind(row.version.cast_signed())
        .bind(row.text()?)
        .execute(connection)
        .await
        .map_err(sqlite_error)?;
    Ok(())
}

/// A key, its version, and its flag unless that was removed.
fn read(row: &SqliteRow) -> Result<(&str, u64, Option<Flag>)> {
    let key = row.try_get("key").map_err(sqlite_error)?;
    let version = number(row, "version")?;
    let text: Option<&str> = row.try_get("flag").map_err(|_| unreadable(key, NO_TEXT))?;
    Ok((key, version, text.map(|text| from_text(key, version, text)).transpose()?))
}

fn number(row: &SqliteRow, column: &'static str) -> Result<u64> {
    unsigned(row.try_get(column).map_err(sqlite_error)?)
}
