//! Flags in the PostgreSQL database of an audit log.

use std::collections::HashMap;

use async_trait::async_trait;
use dezky_core::store::{
    Anomaly, Capabilities, PostgresDatabase, PostgresTransaction, postgres_error,
};
use dezky_core::{Result, SealedEvent};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::settle::{Row, Settled, State, corrupt, from_text, settle, unfold, unsigned, view};
use super::{Counts, FlagChange, FlagStore, FlagTable, Known, Snapshot, check_size};
use crate::Flag;

/// One SQL script a version; a script that was released never changes.
const STEPS: &[&str] = &[include_str!("v1.sql")];
/// The database's objects after the steps, for [`PostgresDatabase::examine`].
const CATALOGUE: &str = include_str!("catalogue.tsv");
/// The name under which the flags' version is kept.
const COMPONENT: &str = "flags";
/// Where a commit tells the revision that it made.
const CHANNEL: &str = "flags";
/// The rights that flags need.
const RIGHTS: &[(&str, &[&str])] = &[
    ("dezky_flags", &["SELECT", "INSERT", "UPDATE"]),
    ("dezky_flags_state", &["SELECT", "UPDATE"]),
];
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
    /// The version that the flags' tables have with this program.
    pub fn schema_version() -> usize {
        STEPS.len()
    }

    /// Opens the flags of a log's database, and makes their tables if they are missing.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the tables are missing and the database was
    /// opened without migrating it; `config_invalid` if the role lacks rights.
    pub async fn open(database: &PostgresDatabase) -> Result<Self> {
        database.migrate(COMPONENT, STEPS).await?;
        database.check_rights(RIGHTS).await?;
        Ok(Self { database: database.clone() })
    }
}

#[async_trait]
impl FlagStore for PostgresFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(CATALOGUE).await
    }

    async fn table(&self) -> Result<FlagTable> {
        // One snapshot for both reads.
        let mut tx = self.database.read().await?;
        let State { revision, .. } = state(&mut tx, READ_STATE).await?;
        let rows = tx.fetch_all(sqlx::query("SELECT key, version, flag FROM dezky_flags")).await?;
        tx.commit().await?;
        let (mut flags, mut removed) = (Vec::new(), Vec::new());
        for row in &rows {
            match read(row)? {
                (_, _, Some(flag)) => flags.push(flag),
                (key, version, None) => removed.push((key.to_owned(), version)),
            }
        }
        FlagTable::from_parts(revision, flags, removed)
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        let sql = "SELECT key, version, flag FROM dezky_flags WHERE key = $1";
        let mut tx = self.database.read().await?;
        let row = tx.fetch_optional(sqlx::query(sql).bind(storable(key))).await?;
        tx.commit().await?;
        row.map_or(Ok(None), |row| Ok(read(&row)?.2))
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        let mut tx = self.database.read().await?;
        let known = known(&mut tx, vec![storable(key)]).await?;
        tx.commit().await?;
        Ok(known.into_values().next().map_or(0, Known::last_version))
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let sql = "SELECT key, version, flag FROM dezky_flags WHERE flag IS NOT NULL ORDER BY key";
        // One snapshot for both reads.
        let mut tx = self.database.read().await?;
        let State { revision, .. } = state(&mut tx, READ_STATE).await?;
        let rows = tx.fetch_all(sqlx::query(sql)).await?;
        tx.commit().await?;
        // What is not of the type that it should be can't be read either: no flag has
        // the version 0, or is the empty text.
        let stored = rows.iter().map(|row| {
            let version = number(row, "version").unwrap_or(0);
            (row.try_get("key").unwrap_or(""), version, row.try_get("flag").unwrap_or(""))
        });
        Ok(view(revision, stored))
    }

    async fn revision(&self) -> Result<u64> {
        let mut tx = self.database.read().await?;
        let state = state(&mut tx, READ_STATE).await?;
        tx.commit().await?;
        Ok(state.revision)
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        let mut tx = self.database.begin().await?;
        if !changes.is_empty() {
            let state = state(&mut tx, LOCK_STATE).await?;
            let keys = changes.iter().map(|change| storable(change.key())).collect();
            let known = known(&mut tx, keys).await?;
            self.write(&mut tx, settle(&changes, known, state)?).await?;
        }
        self.database.commit(tx, &events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        let mut tx = self.database.begin().await?;
        if state(&mut tx, LOCK_STATE).await?.revision != 0 {
            drop(tx);
            // Empty or the same: the table has the rule.
            return self.table().await?.restore(table);
        }
        self.write(&mut tx, unfold(&table)).await?;
        self.database.commit(tx, &[]).await
    }

    async fn changed(&self, revision: u64) {
        self.database.changed(CHANNEL, revision).await;
    }
}

impl PostgresFlagStore {
    async fn write(&self, tx: &mut PostgresTransaction, settled: Settled<'_>) -> Result<()> {
        for rows in settled.rows.chunks(ROWS_A_STATEMENT) {
            let keys: Vec<&str> = rows.iter().map(|row| row.key).collect();
            let versions: Vec<i64> = rows.iter().map(|row| row.version.cast_signed()).collect();
            let flags: Vec<Option<String>> = rows.iter().map(Row::text).collect::<Result<_>>()?;
            let write = sqlx::query(
                "INSERT INTO dezky_flags (key, version, flag) \
                 SELECT * FROM unnest($1, $2, $3) \
                 ON CONFLICT (key) DO UPDATE SET version = excluded.version, flag = excluded.flag",
            );
            tx.execute(write.bind(keys).bind(versions).bind(flags)).await?;
        }
        let State { revision, counts } = settled.state;
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let write =
            sqlx::query("UPDATE dezky_flags_state SET revision = $1, flags = $2, keys = $3")
                .bind(revision.cast_signed())
                .bind(count(counts.flags))
                .bind(count(counts.keys));
        tx.execute(write).await?;
        self.database.notify(tx, CHANNEL, revision).await
    }
}

const READ_STATE: &str = "SELECT revision, flags, keys FROM dezky_flags_state";
/// Excludes other writers until the transaction ends. What they committed before is
/// seen by every statement after it, as none of ours began earlier.
const LOCK_STATE: &str = "SELECT revision, flags, keys FROM dezky_flags_state FOR UPDATE";

/// A key in a form that PostgreSQL takes, which has no NUL in texts. No key that is
/// stored has a control character, so one with another in its place finds nothing as
/// well.
fn storable(key: &str) -> String {
    key.replace('\0', "\u{1}")
}

async fn state(tx: &mut PostgresTransaction, sql: &'static str) -> Result<State> {
    let row = tx
        .fetch_optional(sqlx::query(sql))
        .await?
        .ok_or_else(|| corrupt("the row of dezky_flags_state is missing"))?;
    let count = |column| number(&row, column).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(State {
        revision: number(&row, "revision")?,
        counts: Counts { flags: count("flags")?, keys: count("keys")? },
    })
}

/// What is known of those of `keys` of which anything is.
async fn known(tx: &mut PostgresTransaction, keys: Vec<String>) -> Result<HashMap<String, Known>> {
    let sql = "SELECT key, version, flag IS NOT NULL AS live FROM dezky_flags WHERE key = ANY($1)";
    let rows = tx.fetch_all(sqlx::query(sql).bind(keys)).await?;
    rows.iter()
        .map(|row| {
            let version = number(row, "version")?;
            let live = row.try_get("live").map_err(postgres_error)?;
            let known = if live { Known::Live(version) } else { Known::Removed(version) };
            Ok((row.try_get("key").map_err(postgres_error)?, known))
        })
        .collect()
}

/// A key, its version, and its flag unless that was removed.
fn read(row: &PgRow) -> Result<(&str, u64, Option<Flag>)> {
    let key = row.try_get("key").map_err(postgres_error)?;
    let version = number(row, "version")?;
    let text: Option<&str> = row.try_get("flag").map_err(postgres_error)?;
    Ok((key, version, text.map(|text| from_text(key, version, text)).transpose()?))
}

fn number(row: &PgRow, column: &'static str) -> Result<u64> {
    unsigned(row.try_get(column).map_err(postgres_error)?)
}
