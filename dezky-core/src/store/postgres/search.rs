//! Free text by a trigram index, where somebody made one.

use std::borrow::Cow;

use sqlx::error::DatabaseError;
use sqlx::{Executor, QueryBuilder};

use super::codec::{COLUMNS, listed_row};
use super::list_scan::POSITION;
use super::transaction::PostgresTransaction;
use super::{PostgresAuditStore, get, limit, postgres_error};
use crate::store::list_scan::{ScanPlan, columns_of};
use crate::store::sql::push_conditions;
use crate::store::{ListPlace, ListScan, ScanEnd, ScanIndex, ScanPage};
use crate::{Error, ErrorKind, Result};

/// How many rows are looked at before the index is asked: a common word is among
/// them, and reading all its places in the index would take long.
const FIRST_LOOK_ROWS: usize = 10_000;

/// How long the index may take; the walk goes on where it takes longer.
const INDEX_TIMEOUT: &str = "SET LOCAL statement_timeout = 2000";

/// Those of the role are for other work. Behind a pooler they must stay, as what is
/// set would be somebody else's.
const NO_BOUNDS: &str =
    "SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_read_only = off";

/// The shortest run of letters and digits by which the index narrows anything.
const SHORTEST_RUN: usize = 3;

impl PostgresAuditStore {
    /// Makes an index for `q` by `pg_trgm`, for large logs that are searched for
    /// rare words. Appends go on meanwhile, and cost about 3.5 times as much from
    /// then on. Without it such searches answer with partial pages.
    ///
    /// It is there when this returns; on a large log that takes minutes. Idempotent;
    /// what an attempt that was broken off has left is made anew.
    ///
    /// # Errors
    /// `config_invalid` if `pg_trgm` can't be had on this server or by this role.
    pub async fn create_search_index(&self) -> Result<()> {
        let database = self.database();
        let mut tx = database.read().await?;
        let state = index_state(&mut tx).await?;
        tx.commit().await?;
        // Not lent again, for its settings.
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
        // Each alone, as it can't be in a transaction.
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
            "the role may not make the extension pg_trgm or the index: let the database's owner run CREATE EXTENSION pg_trgm",
        ),
        Some("0A000" | "58P01" | "42704") => Error::new(
            ErrorKind::ConfigInvalid,
            "the server does not have the extension pg_trgm in the search_path: install PostgreSQL's contrib modules",
        ),
        _ => postgres_error(error),
    }
}

/// Whether the index can be used; `None` if there is none.
async fn index_state(tx: &mut PostgresTransaction) -> Result<Option<bool>> {
    let query = sqlx::query(
        "SELECT indisvalid AND indisready AS usable FROM pg_index WHERE indexrelid = to_regclass('dezky_audit_events_search')",
    );
    let row = tx.fetch_optional(query).await?;
    row.map(|row| get(&row, "usable")).transpose()
}

/// Walks; a rare word is looked up in the index instead, if there is one.
pub(super) async fn list(tx: &mut PostgresTransaction, scan: &ListScan<'_>) -> Result<ScanPage> {
    let first_look = FIRST_LOOK_ROWS.min(scan.max_examined);
    let Some(text) = scan.filter.search.as_deref().filter(|text| is_narrow(text)) else {
        return crate::store::list_scan::run(tx, scan).await;
    };
    let first = ListScan { max_examined: first_look, ..*scan };
    let mut page = crate::store::list_scan::run(tx, &first).await?;
    let ScanEnd::Budget(place) = page.end else { return Ok(page) };
    if first_look == scan.max_examined {
        return Ok(page);
    }
    let rest = ListScan {
        filter: scan.filter,
        before: Some(place),
        max_rows: scan.max_rows - page.events.len(),
        max_examined: scan.max_examined - first_look,
    };
    let more = match by_index(tx, &rest, text, place).await? {
        Some(found) => found,
        None => crate::store::list_scan::run(tx, &rest).await?,
    };
    page.events.extend(more.events);
    Ok(ScanPage { events: page.events, end: more.end })
}

fn is_narrow(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|run| run.chars().count() >= SHORTEST_RUN)
}

/// The rows before a place that match, by the index; `None` if there is none, or
/// if it takes too long.
async fn by_index(
    tx: &mut PostgresTransaction,
    scan: &ListScan<'_>,
    text: &str,
    before: ListPlace,
) -> Result<Option<ScanPage>> {
    if index_state(tx).await? != Some(true) {
        return Ok(None);
    }
    tx.run("SAVEPOINT dezky_search").await?;
    tx.run(INDEX_TIMEOUT).await?;
    tx.run("SET LOCAL enable_bitmapscan = on; SET LOCAL enable_sort = on").await?;
    // First all that the index finds and nothing else, so that no other index is
    // thought better; whole rows are read of those alone that are shown.
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

/// A text as a pattern that finds it anywhere, every character literal.
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
    fn a_text_without_three_letters_in_a_row_is_no_work_for_the_index() {
        for (text, narrow) in [("ab", false), ("a.b-c%%%", false), ("abc", true), ("ß1é", true)] {
            assert_eq!(is_narrow(text), narrow, "{text}");
        }
    }
}
