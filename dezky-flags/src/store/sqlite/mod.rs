//! Flags in the SQLite file of an audit log.

use async_trait::async_trait;
use dezky_core::store::{Capabilities, SqliteDatabase, sqlite_error};
use dezky_core::{Error, ErrorKind, Result, SealedEvent};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};

use super::{Counts, FlagChange, FlagStore, FlagTable, Known, Snapshot, check, check_size};
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

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        let mut connection = self.database.read().await?;
        sqlx::query("SELECT key, version, flag FROM dezky_flags WHERE key = ? AND flag IS NOT NULL")
            .bind(key)
            .fetch_optional(&mut *connection)
            .await
            .map_err(sqlite_error)?
            .map(|row| read_flag(&row))
            .transpose()
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        let mut connection = self.database.read().await?;
        Ok(known(&mut connection, key).await?.last_version())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let mut connection = self.database.read().await?;
        // One snapshot for both reads.
        let mut tx = connection.begin().await.map_err(sqlite_error)?;
        let (revision, _) = state(&mut tx).await?;
        let rows = sqlx::query(
            "SELECT key, version, flag FROM dezky_flags WHERE flag IS NOT NULL ORDER BY key",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(sqlite_error)?;
        tx.commit().await.map_err(sqlite_error)?;
        Ok(Snapshot { revision, flags: rows.iter().map(read_flag).collect::<Result<_>>()? })
    }

    async fn revision(&self) -> Result<u64> {
        let mut connection = self.database.read().await?;
        Ok(state(&mut connection).await?.0)
    }

    async fn table(&self) -> Result<FlagTable> {
        let mut connection = self.database.read().await?;
        // One snapshot for all reads.
        let mut tx = connection.begin().await.map_err(sqlite_error)?;
        let (revision, _) = state(&mut tx).await?;
        let rows = sqlx::query("SELECT key, version, flag FROM dezky_flags")
            .fetch_all(&mut *tx)
            .await
            .map_err(sqlite_error)?;
        tx.commit().await.map_err(sqlite_error)?;
        let (mut flags, mut removed) = (Vec::new(), Vec::new());
        for row in &rows {
            if row.try_get::<Option<&str>, _>("flag").map_err(sqlite_error)?.is_some() {
                flags.push(read_flag(row)?);
            } else {
                let key = row.try_get("key").map_err(sqlite_error)?;
                removed.push((key, number(row, "version")?));
            }
        }
        FlagTable::from_parts(revision, flags, removed)
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        let mut tx = self.database.begin().await?;
        let (revision, _) = state(&mut tx).await?;
        if revision != 0 {
            drop(tx);
            // Empty or the same: the table has the rule.
            return self.table().await?.restore(table);
        }
        let (flags, removed) = (table.snapshot().flags, table.removed());
        let mut counts = Counts { flags: flags.len(), keys: flags.len() };
        for flag in flags {
            let text = flag_text(&flag)?;
            write_row(&mut tx, &flag.key, flag.version, Some(text)).await?;
        }
        for (key, version) in removed {
            write_row(&mut tx, key, version, None).await?;
            counts.keys += 1;
        }
        write_state(&mut tx, table.revision(), counts).await?;
        self.database.commit(tx, &[]).await
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        let mut tx = self.database.begin().await?;
        let (mut revision, mut counts) = state(&mut tx).await?;
        for change in &changes {
            let known = known(&mut tx, change.key()).await?;
            check(change, known, counts)?;
            write(&mut tx, change).await?;
            revision += 1;
            counts = counts.after(change, known);
        }
        if !changes.is_empty() {
            write_state(&mut tx, revision, counts).await?;
        }
        self.database.commit(tx, &events).await
    }
}

async fn state(connection: &mut SqliteConnection) -> Result<(u64, Counts)> {
    let row = sqlx::query("SELECT revision, flags, keys FROM dezky_flags_state")
        .fetch_optional(connection)
        .await
        .map_err(sqlite_error)?
        .ok_or_else(|| corrupt("the row of dezky_flags_state is missing"))?;
    let revision = number(&row, "revision")?;
    let count = |column| number(&row, column).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok((revision, Counts { flags: count("flags")?, keys: count("keys")? }))
}

async fn write_state(
    connection: &mut SqliteConnection,
    revision: u64,
    counts: Counts,
) -> Result<()> {
    sqlx::query("UPDATE dezky_flags_state SET revision = ?, flags = ?, keys = ?")
        .bind(revision.cast_signed())
        .bind(i64::try_from(counts.flags).unwrap_or(i64::MAX))
        .bind(i64::try_from(counts.keys).unwrap_or(i64::MAX))
        .execute(connection)
        .await
        .map_err(sqlite_error)?;
    Ok(())
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

async fn write(connection: &mut SqliteConnection, change: &FlagChange) -> Result<()> {
    let (version, flag) = match change {
        FlagChange::Create(flag) | FlagChange::Replace(flag) => {
            (flag.version, Some(flag_text(flag)?))
        }
        FlagChange::Remove { version, .. } => (version + 1, None),
    };
    write_row(connection, change.key(), version, flag).await
}

async fn write_row(
    connection: &mut SqliteConnection,
    key: &str,
    version: u64,
    flag: Option<String>,
) -> Result<()> {
    sqlx::query("INSERT INTO dezky_flags (key, version, flag) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET version = excluded.version, flag = excluded.flag")
        .bind(key)
        .bind(version.cast_signed())
        .bind(flag)
        .execute(connection)
        .await
        .map_err(sqlite_error)?;
    Ok(())
}

fn flag_text(flag: &Flag) -> Result<String> {
    serde_json::to_string(flag).map_err(|error| {
        Error::new(ErrorKind::Internal, "a flag can't be written as JSON").with_source(error)
    })
}

fn read_flag(row: &SqliteRow) -> Result<Flag> {
    let text: &str = row.try_get("flag").map_err(sqlite_error)?;
    let flag: Flag = serde_json::from_str(text).map_err(|_| corrupt("a flag can't be read"))?;
    let key: &str = row.try_get("key").map_err(sqlite_error)?;
    if flag.key != key || flag.version != number(row, "version")? || flag.validate().is_err() {
        return Err(corrupt("a flag differs from its row or breaks a bound"));
    }
    Ok(flag)
}

fn number(row: &SqliteRow, column: &'static str) -> Result<u64> {
    let number: i64 = row.try_get(column).map_err(sqlite_error)?;
    u64::try_from(number).map_err(|_| corrupt("a count is below 0"))
}

fn corrupt(problem: &'static str) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("{problem}: restore the database from a backup"))
}
