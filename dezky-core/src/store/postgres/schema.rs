//! The schema, as numbered steps.

use sqlx::Row;

use super::postgres_error;
use super::transaction::PostgresTransaction;
use crate::store::codec::corrupt;
use crate::store::schema::{COMPONENT, Found, check_version, parts};
use crate::{Error, ErrorKind, Result};

/// One SQL script per version. A released script never changes.
const STEPS: &[&str] = &[include_str!("v1.sql"), include_str!("v2.sql"), include_str!("v3.sql")];

/// The oldest supported server version.
const OLDEST_SERVER: i32 = 130_000;

/// Refuses a server that can't hold a log; `writes` states whether it must accept writes.
pub(super) async fn check_server(tx: &mut PostgresTransaction, writes: bool) -> Result<()> {
    let row = tx
        .fetch_all(sqlx::query(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding'), pg_is_in_recovery(), current_schema()::text",
        ))
        .await?
        .pop()
        .ok_or_else(|| corrupt("the server does not tell its version"))?;
    let version: i32 = row.try_get(0).map_err(postgres_error)?;
    let said: String = row.try_get(1).map_err(postgres_error)?;
    let encoding: String = row.try_get(2).map_err(postgres_error)?;
    let standby: bool = row.try_get(3).map_err(postgres_error)?;
    let schema: Option<String> = row.try_get(4).map_err(postgres_error)?;
    let problem = if version < OLDEST_SERVER {
        format!("the server is PostgreSQL {said}: it must be 13 or newer")
    } else if encoding != "UTF8" {
        format!("the database is encoded in {encoding}: create it with ENCODING 'UTF8'")
    } else if standby && writes {
        "the server is a read-only standby: name the primary".to_owned()
    } else if schema.is_none() {
        "no schema of the search_path exists: create one, or set search_path".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::ConfigInvalid, problem))
}

/// Examines the current schema without changing it.
pub(super) async fn inspect(tx: &mut PostgresTransaction) -> Result<Found> {
    let row = tx
        .fetch_all(sqlx::query(
            "SELECT to_regclass('dezky_schema') IS NOT NULL, EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_depend d ON d.objid = c.oid AND d.deptype = 'e' WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND d.objid IS NULL)",
        ))
        .await?
        .pop()
        .ok_or_else(|| corrupt("the server does not tell its tables"))?;
    let ours: bool = row.try_get(0).map_err(postgres_error)?;
    let tables: bool = row.try_get(1).map_err(postgres_error)?;
    match (ours, tables) {
        (true, _) => Ok(Found::Version(version_of(tx, COMPONENT).await?)),
        (false, true) => Ok(Found::Foreign),
        (false, false) => Ok(Found::Empty),
    }
}

/// The schema version of a component; 0 if it was never set up.
pub(super) async fn version_of(tx: &mut PostgresTransaction, component: &str) -> Result<usize> {
    let query = sqlx::query("SELECT version FROM dezky_schema WHERE component = $1");
    let version: i64 = match tx.fetch_optional(query.bind(component)).await? {
        Some(row) => row.try_get(0).map_err(postgres_error)?,
        None => 0,
    };
    Ok(usize::try_from(version).unwrap_or(0))
}

/// The newest version of the log's schema.
pub(super) fn known_version() -> usize {
    STEPS.len()
}

/// Runs the missing steps of `component`.
pub(super) async fn take_steps(
    tx: &mut PostgresTransaction,
    component: &str,
    steps: &[impl AsRef<str> + Sync],
) -> Result<()> {
    let version = version_of(tx, component).await?;
    check_version(version, steps.len())?;
    run_steps(tx, component, steps[version..].iter().map(AsRef::as_ref), steps.len()).await
}

async fn run_steps<'s>(
    tx: &mut PostgresTransaction,
    component: &str,
    missing: impl Iterator<Item = &'s str>,
    version: usize,
) -> Result<()> {
    for step in missing {
        tx.run_step(step).await?;
    }
    let query = sqlx::query(
        "INSERT INTO dezky_schema (component, version) VALUES ($1, $2) ON CONFLICT (component) DO UPDATE SET version = excluded.version",
    );
    let version = i64::try_from(version).unwrap_or(i64::MAX);
    tx.execute(query.bind(component).bind(version)).await.map(drop)
}

/// Migrates the log's schema to the newest version, in a transaction that excludes other
/// migrations: the second one finds nothing to do.
pub(super) async fn migrate(
    tx: &mut PostgresTransaction,
    log_id: uuid::Uuid,
    cursor_key: &[u8],
) -> Result<()> {
    let version = match inspect(tx).await? {
        Found::Version(version) => version,
        Found::Empty | Found::Foreign => 0,
    };
    check_version(version, known_version())?;
    if version == known_version() {
        return Ok(());
    }
    run_steps(tx, COMPONENT, parts(STEPS, version), STEPS.len()).await?;
    let query = sqlx::query(
        "INSERT INTO dezky_audit_log (one, log_id, cursor_key, base_seq, base_hash, next_seq, head_hash) VALUES (1, $1, $2, 0, $3, 0, $3) ON CONFLICT (one) DO NOTHING",
    );
    let genesis = crate::integrity::GENESIS;
    tx.execute(query.bind(log_id).bind(cursor_key).bind(&genesis[..])).await.map(drop)
}
