//! Text search by an optional trigram index.

use std::borrow::Cow;

use sqlx::error::DatabaseError;
use sqlx::{Executor, QueryBuilder};

use super::list_scan::POSITION;
use super::transaction::PostgresTransaction;
use super::{PostgresAuditStore, get, postgres_error};
use crate::store::codec::{limit, listed_row};
use crate::store::engine::{ListPosition, ListScan, ScanEnd, ScanIndex, ScanPage};
use crate::store::list_scan::{ScanPlan, columns_of};
use crate::store::sql::{COLUMNS, push_conditions};
use crate::{Error, ErrorKind, Result};

/// The number of rows to scan before using the trigram index. Common words are found among them;
/// reading all their entries in the index would take long.
const FIRST_SCAN_ROWS: usize = 10_000;

/// Time limit for the search by index; beyond it, the scan continues instead.
const INDEX_TIMEOUT: &str = "SET LOCAL statement_timeout = 2000";

/// Lifts the role's limits, which are meant for other work. Not for use behind a pooler, where the
/// settings would affect other sessions.
const NO_BOUNDS: &str =
    "SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_read_only = off";

/// The shortest run of letters and digits for which the index is selective.
const SHORTEST_RUN: usize = 3;

impl PostgresAuditStore {
    /// Creates an index for `q` with `pg_trgm`, for large logs that are searched for rare words.
    /// Without it, such searches return partial pages. Appends continue meanwhile, and cost about
    /// 3.5 times as much afterwards.
    ///
    /// Returns when the index is complete, on a large log after minutes. Idempotent; replaces the
    /// remains of an interrupted attempt.
    ///
    /// # Errors
    /// `config_invalid` if this server or role can't use `pg_trgm`.
    pub async fn create_search_index(&self) -> Result<()> {
        let database = self.database();
        let mut tx = database.read().await?;
        let state = index_state(&mut tx).await?;
        tx.commit().await?;
        // Closed instead of reused, because of its settings.
        let mut connection = database.pool().acquire().await.map_err(postgres_error)?;
        connection.close_on_drop();
        if database.keeps_settings() {
            connection.execute(NO_BOUNDS).await.map_err(postgres_error)?;
        }
        let extension = "CREATE EXTENSION IF NOT EXISTS pg_trgm";
        connection.execute(extension).await.map_err(no_extension)?;
        if state == Some(false) {
            let drop = "DROP INDEX CONCURRENTLY IF EXISTS dezky_audit_events_search";
            connection.execute(drop).await.map_err(postgres_error)?;
        }
        // CONCURRENTLY can't run in a transaction, so each statement is sent alone.
        let create = "CREATE INDEX CONCURRENTLY IF NOT EXISTS dezky_audit_events_search ON dezky_audit_events USING gin (search gin_trgm_ops)";
        connection.execute(create).await.map_err(no_extension)?;
        Ok(())
    }
}

fn no_extension(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(DatabaseError::code).map(Cow::into_owned);
    match code.as_deref() {
        Some("42501") => Error::new(
            ErrorKind::ConfigInvalid,
            "the role may not create the extension pg_trgm or the index: let the database's owner run CREATE EXTENSION pg_trgm",
        ),
        Some("0A000" | "58P01" | "42704") => Error::new(
            ErrorKind::ConfigInvalid,
            "the server does not have the extension pg_trgm in the search_path: install PostgreSQL's contrib modules",
        ),
        _ => postgres_error(error),
    }
}

/// Whether the index is usable; `None` if it does not exist.
async fn index_state(tx: &mut PostgresTransaction) -> Result<Option<bool>> {
    let query = sqlx::query(
        "SELECT indisvalid AND indisready AS usable FROM pg_index WHERE indexrelid = to_regclass('dezky_audit_events_search')",
    );
    let row = tx.fetch_optional(query).await?;
    row.map(|row| get(&row, "usable")).transpose()
}

/// Runs the scan; a rare word is searched for by the trigram index, if it exists.
pub(super) async fn list(tx: &mut PostgresTransaction, scan: &ListScan<'_>) -> Result<ScanPage> {
    let first_rows = FIRST_SCAN_ROWS.min(scan.max_examined);
    let Some(text) = scan.filter.search.as_deref().filter(|text| is_narrow(text)) else {
        return crate::store::list_scan::run(tx, scan).await;
    };
    let first = ListScan { max_examined: first_rows, ..*scan };
    let mut page = crate::store::list_scan::run(tx, &first).await?;
    let ScanEnd::Budget(position) = page.end else { return Ok(page) };
    if first_rows == scan.max_examined {
        return Ok(page);
    }
    let rest = ListScan {
        filter: scan.filter,
        before: Some(position),
        max_rows: scan.max_rows - page.events.len(),
        max_examined: scan.max_examined - first_rows,
    };
    let more = match by_index(tx, &rest, text, position).await? {
        Some(found) => found,
        None => crate::store::list_scan::run(tx, &rest).await?,
    };
    page.events.extend(more.events);
    Ok(ScanPage { events: page.events, end: more.end })
}

fn is_narrow(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|run| run.chars().count() >= SHORTEST_RUN)
}

/// Finds the matching rows before a position by the trigram index; `None` if the index does not
/// exist or the search takes too long.
async fn by_index(
    tx: &mut PostgresTransaction,
    scan: &ListScan<'_>,
    text: &str,
    before: ListPosition,
) -> Result<Option<ScanPage>> {
    if index_state(tx).await? != Some(true) {
        return Ok(None);
    }
    tx.run("SAVEPOINT dezky_search").await?;
    tx.run(INDEX_TIMEOUT).await?;
    tx.run("SET LOCAL enable_bitmapscan = on; SET LOCAL enable_sort = on").await?;
    // The first step has no other condition, so that the planner can't prefer another index.
    // Complete rows are read only for the page.
    let mut query = QueryBuilder::new(
        "WITH found AS MATERIALIZED (SELECT seq, at, action, outcome, resource_type, resource_id, tenant_slug, partner_slug, actor_id, source, actor_email_fold, search FROM dezky_audit_events WHERE search LIKE ",
    );
    query.push_bind(pattern(text)).push("), page AS (SELECT seq FROM found WHERE true");
    let plan = ScanPlan { filter: scan.filter, index: ScanIndex::Time, action: None };
    push_conditions(&mut query, &plan, POSITION);
    if let Some(actor) = &scan.filter.actor_id {
        query.push(" AND actor_id = ").push_bind(actor.clone());
    }
    if let Some(since) = scan.filter.since {
        query.push(" AND at >= ").push_bind(since.as_millis());
    }
    let (at, seq) = columns_of(before);
    query.push(" AND (at, seq) < (").push_bind(at).push(", ").push_bind(seq).push(")");
    query.push(" ORDER BY at DESC, seq DESC LIMIT ").push_bind(limit(scan.max_rows));
    query.push(format!(
        ") SELECT {COLUMNS} FROM page JOIN dezky_audit_events USING (seq) ORDER BY at DESC, seq DESC"
    ));
    match tx.fetch_all(query.build()).await {
        Ok(rows) => {
            let events = rows.iter().map(listed_row).collect::<Result<Vec<_>>>()?;
            let full = events.len() == scan.max_rows;
            let end = if full { ScanEnd::Full } else { ScanEnd::Exhausted };
            Ok(Some(ScanPage { events, end }))
        }
        Err(error) if error.kind() == ErrorKind::StoreBusy => {
            tx.run("ROLLBACK TO SAVEPOINT dezky_search").await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The pattern that finds `text` anywhere, with every character taken literally.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for c in text.chars() {
        if matches!(c, '\\' | '%' | '_') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_a_pattern_is_literal() {
        assert_eq!(pattern(r"50%_\é"), r"%50\%\_\\é%");
    }

    #[test]
    fn a_text_without_three_letters_in_a_row_does_not_use_the_index() {
        for (text, narrow) in [("ab", false), ("a.b-c%%%", false), ("abc", true), ("ß1é", true)] {
            assert_eq!(is_narrow(text), narrow, "{text}");
        }
    }
}
