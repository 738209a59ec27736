//! Flags in the PostgreSQL database of an audit log.

use std::collections::HashMap;

use async_trait::async_trait;
use dezky_core::store::{Capabilities, PostgresDatabase, postgres_error};
use dezky_core::{Result, SealedEvent};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::settle::{State, corrupt, from_text, settle, to_text, unsigned};
use super::{Counts, FlagChange, FlagStore, Known, Snapshot, check_size};
use crate::Flag;

/// One SQL script a version; a script that was released never changes.
const STEPS: &[&str] = &[include_str!("v1.sql")];
/// The name under which the flags' version is kept.
const COMPONENT: &str = "flags";
/// Where a commit tells the revision that it made.
const CHANNEL: &str = "dezky_flags";
/// Rows of one statement, which takes less than 1 GB whatever the flags are.
const ROWS_A_STATEMENT: usize = 100;

/// Flags in the PostgreSQL database of an audit log: a change and its event are one
/// commit.
///
/// Clones share the connections. Any number of processes may use one database: those
/// that change flags take turns, those that read wait for nobody.
///
/// ```no_run
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{PostgresAuditStore, PostgresConfig};
/// use dezky_flags::store::{FlagStore, PostgresFlagStore};
/// # async fn example() -> dezky_core::Result<()> {
/// let config = PostgresConfig::new("postgres://dezky@db.internal/platform");
/// let log = PostgresAuditStore::open(config, &TokioRuntime).await?;
/// let store = PostgresFlagStore::open(&log.database()).await?;
/// assert!(store.snapshot().await?.flags.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PostgresFlagStore {
    database: PostgresDatabase,
}

impl PostgresFlagStore {
    /// Opens the flags of a log's database, and makes their tables if they are missing.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the tables are missing and the database was
    /// opened without migrating it.
    pub async fn open(database: &PostgresDatabase) -> Result<Self> {
        database.migrate(COMPONENT, STEPS).await?;
        Ok(Self { database: database.clone() })
    }

    async fn known(&self, key: &str) -> Result<Known> {
        let mut tx = self.database.read().await?;
        let known = known(&mut tx, vec![storable(key)]).await?;
        tx.commit().await.map_err(postgres_error)?;
        Ok(known.into_values().next().unwrap_or(Known::Never))
    }
}

#[async_trait]
impl FlagStore for PostgresFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        let sql =
            "SELECT key, version, flag FROM dezky_flags WHERE key = $1 AND flag IS NOT NULL";
        let mut tx = self.database.read().await?;
        let row = sqlx::query(sql)
            .bind(storable(key))
            .fetch_optional(&mut *tx)
            .await
            .map_err(postgres_error)?;
        tx.commit().await.map_err(postgres_error)?;
        row.map(|row| read_flag(&row)).transpose()
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        Ok(self.known(key).await?.last_version())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        // One snapshot for both reads.
        let mut tx = self.database.read().await?;
        let State { revision, .. } = state(&mut tx, READ_STATE).await?;
        let rows = sqlx::query(
            "SELECT key, version, flag FROM dezky_flags WHERE flag IS NOT NULL ORDER BY key",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(postgres_error)?;
        tx.commit().await.map_err(postgres_error)?;
        Ok(Snapshot { revision, flags: rows.iter().map(read_flag).collect::<Result<_>>()? })
    }

    async fn revision(&self) -> Result<u64> {
        let mut tx = self.database.read().await?;
        let state = state(&mut tx, READ_STATE).await?;
        tx.commit().await.map_err(postgres_error)?;
        Ok(state.revision)
    }

    async fn changed(&self, revision: u64) {
        self.database.changed(CHANNEL, revision).await;
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        let mut tx = self.database.begin().await?;
        if !changes.is_empty() {
            let state = state(&mut tx, LOCK_STATE).await?;
            let keys = changes.iter().map(|change| storable(change.key())).collect();
            let known = known(&mut tx, keys).await?;
            let settled = settle(&changes, known, state)?;
            let rows: Vec<_> = settled.rows.into_iter().collect();
            for rows in rows.chunks(ROWS_A_STATEMENT) {
                write(&mut tx, rows).await?;
            }
            write_state(&mut tx, settled.state).await?;
            self.database.notify(&mut tx, CHANNEL, settled.state.revision).await?;
        }
        self.database.commit(tx, &events).await
    }
}

const READ_STATE: &str = "SELECT revision, flags, keys FROM dezky_flags_state";
/// Excludes other writers until the transaction ends.
const LOCK_STATE: &str = "SELECT revision, flags, keys FROM dezky_flags_state FOR UPDATE";

/// A key in a form that PostgreSQL takes, which has no NUL in texts. No key that is
/// stored has a control character, so one with another in its place finds nothing as
/// well.
fn storable(key: &str) -> String {
    key.replace('\0', "\u{1}")
}

async fn state(connection: &mut PgConnection, sql: &'static str) -> Result<State> {
    let row = sqlx::query(sql)
        .fetch_optional(connection)
        .await
        .map_err(postgres_error)?
        .ok_or_else(|| corrupt("the row of dezky_flags_state is missing"))?;
    let count = |column| number(&row, column).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(State {
        revision: number(&row, "revision")?,
        counts: Counts { flags: count("flags")?, keys: count("keys")? },
    })
}

async fn write_state(connection: &mut PgConnection, state: State) -> Result<()> {
    sqlx::query("UPDATE dezky_flags_state SET revision = $1, flags = $2, keys = $3")
        .bind(state.revision.cast_signed())
        .bind(i64::try_from(state.counts.flags).unwrap_or(i64::MAX))
        .bind(i64::try_from(state.counts.keys).unwrap_or(i64::MAX))
        .execute(connection)
        .await
        .map_err(postgres_error)?;
    Ok(())
}

/// What is known of those of `keys` of which anything is.
async fn known(
    connection: &mut PgConnection,
    keys: Vec<String>,
) -> Result<HashMap<String, Known>> {
    let rows = sqlx::query(
        "SELECT key, version, flag IS NOT NULL AS live FROM dezky_flags WHERE key = ANY($1)",
    )
    .bind(keys)
    .fetch_all(connection)
    .await
    .map_err(postgres_error)?;
    rows.iter()
        .map(|row| {
            let version = number(row, "version")?;
            let live = row.try_get("live").map_err(postgres_error)?;
            let known = if live { Known::Live(version) } else { Known::Removed(version) };
            Ok((row.try_get("key").map_err(postgres_error)?, known))
        })
        .collect()
}

async fn write(
    connection: &mut PgConnection,
    rows: &[(&str, (u64, Option<&Flag>))],
) -> Result<()> {
    let keys: Vec<&str> = rows.iter().map(|(key, _)| *key).collect();
    let versions: Vec<i64> = rows.iter().map(|(_, (version, _))| version.cast_signed()).collect();
    let flags: Vec<Option<String>> =
        rows.iter().map(|(_, (_, flag))| flag.map(to_text).transpose()).collect::<Result<_>>()?;
    sqlx::query(
        "INSERT INTO dezky_flags (key, version, flag) SELECT * FROM unnest($1, $2, $3) \
         ON CONFLICT (key) DO UPDATE SET version = excluded.version, flag = excluded.flag",
    )
    .bind(keys)
    .bind(versions)
    .bind(flags)
    .execute(connection)
    .await
    .map_err(postgres_error)?;
    Ok(())
}

fn read_flag(row: &PgRow) -> Result<Flag> {
    let key = row.try_get("key").map_err(postgres_error)?;
    let text = row.try_get("flag").map_err(postgres_error)?;
    from_text(key, number(row, "version")?, text)
}

fn number(row: &PgRow, column: &'static str) -> Result<u64> {
    unsigned(row.try_get(column).map_err(postgres_error)?)
}
