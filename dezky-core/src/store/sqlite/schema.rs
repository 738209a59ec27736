//! The schema, as numbered steps.

use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use super::store_error;
use crate::Result;
use crate::store::schema::{COMPONENT, Found, check_version, parts};

/// One SQL script per version. A released script never changes.
pub(super) const STEPS: &[&str] =
    &[include_str!("v1.sql"), include_str!("v2.sql"), include_str!("v3.sql")];

/// Examines a database without changing it.
pub(super) async fn inspect(connection: &mut SqliteConnection) -> Result<Found> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(store_error)?;
    if tables.is_empty() {
        return Ok(Found::Empty);
    }
    if !tables.iter().any(|name| name == "dezky_schema") {
        return Ok(Found::Foreign);
    }
    Ok(Found::Version(version_of(connection, COMPONENT).await?))
}

/// The schema version of a component; 0 if it was never set up.
pub(super) async fn version_of(
    connection: &mut SqliteConnection,
    component: &str,
) -> Result<usize> {
    let version: Option<i64> =
        sqlx::query_scalar("SELECT version FROM dezky_schema WHERE component = ?")
            .bind(component)
            .fetch_optional(connection)
            .await
            .map_err(store_error)?;
    Ok(usize::try_from(version.unwrap_or(0)).unwrap_or(0))
}

/// The newest version of the log's schema.
pub(super) fn known_version() -> usize {
    STEPS.len()
}

/// Runs the missing steps of `component`.
pub(super) async fn take_steps(
    connection: &mut SqliteConnection,
    component: &str,
    steps: &[impl AsRef<str> + Sync],
) -> Result<()> {
    let version = version_of(&mut *connection, component).await?;
    check_version(version, steps.len())?;
    run_steps(connection, component, steps[version..].iter().map(AsRef::as_ref), steps.len()).await
}

async fn run_steps<'s>(
    connection: &mut SqliteConnection,
    component: &str,
    missing: impl Iterator<Item = &'s str>,
    version: usize,
) -> Result<()> {
    for step in missing {
        sqlx::raw_sql(AssertSqlSafe(step.to_owned()))
            .execute(&mut *connection)
            .await
            .map_err(store_error)?;
    }
    sqlx::query("INSERT INTO dezky_schema (component, version) VALUES (?, ?) ON CONFLICT (component) DO UPDATE SET version = excluded.version")
        .bind(component)
        .bind(i64::try_from(version).unwrap_or(i64::MAX))
        .execute(&mut *connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Migrates the log's schema to the newest version in one transaction. Safe if several processes
/// start together: the second one finds nothing to do.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    log_id: &[u8],
    cursor_key: &[u8],
) -> Result<()> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.map_err(store_error)?;
    let version = match inspect(&mut tx).await? {
        Found::Version(version) => version,
        Found::Empty | Found::Foreign => 0,
    };
    check_version(version, known_version())?;
    if version == known_version() {
        return Ok(());
    }
    run_steps(&mut tx, COMPONENT, parts(STEPS, version), STEPS.len()).await?;
    let logs: i64 = sqlx::query("SELECT count(*) FROM dezky_audit_log")
        .fetch_one(&mut *tx)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(store_error)?;
    if logs == 0 {
        sqlx::query(
            "INSERT INTO dezky_audit_log (one, log_id, cursor_key, base_seq, base_hash, next_seq, head_hash) VALUES (1, ?, ?, 0, zeroblob(32), 0, zeroblob(32))",
        )
        .bind(log_id)
        .bind(cursor_key)
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    }
    tx.commit().await.map_err(store_error)
}
