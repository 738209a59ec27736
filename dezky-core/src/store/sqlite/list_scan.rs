//! The index reads of a list scan, in SQL.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::store_error;
use crate::store::TallyCount;
use crate::store::codec::{limit, listed_row, position, tally_count};
use crate::store::engine::{ListPosition, ScanIndex, TallyScan, TenantMatch};
use crate::store::list_scan::{IndexScan, ScanPlan, columns_of};
use crate::store::sql::{BUCKET, COLUMNS, EVENTS, push_conditions, push_groups, push_tally};
use crate::{Result, StoredEvent};

/// The function that finds a substring.
const POSITION: &str = "instr";

#[async_trait]
impl IndexScan for SqliteConnection {
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>> {
        // U+10FFFF sorts last, so this is an upper bound for the prefix.
        let end = format!("{prefix}\u{10ffff}");
        let mut found = Vec::new();
        let mut query = "SELECT action FROM dezky_audit_events WHERE action >= ? AND action < ? ORDER BY action LIMIT 1";
        let mut from = prefix.to_owned();
        while found.len() < 2 {
            let next: Option<String> = sqlx::query_scalar(query)
                .bind(from)
                .bind(end.clone())
                .fetch_optional(&mut *self)
                .await
                .map_err(store_error)?;
            let Some(action) = next else { break };
            found.push(action.clone());
            from = action;
            query = "SELECT action FROM dezky_audit_events WHERE action > ? AND action < ? ORDER BY action LIMIT 1";
        }
        Ok(found)
    }

    async fn window_end(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        size: usize,
    ) -> Result<Option<ListPosition>> {
        let mut query = QueryBuilder::new("SELECT at, seq");
        push_range(&mut query, plan, before, None);
        query.push(" ORDER BY at DESC, seq DESC LIMIT 1 OFFSET ");
        query.push_bind(limit(size - 1));
        let row = query.build().fetch_optional(self).await.map_err(store_error)?;
        row.as_ref().map(position).transpose()
    }

    async fn select(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(COLUMNS);
        push_range(&mut query, plan, before, last);
        push_conditions(&mut query, plan, POSITION);
        query.push(" ORDER BY at DESC, seq DESC LIMIT ").push_bind(limit(max_rows));
        let rows = query.build().fetch_all(self).await.map_err(store_error)?;
        rows.iter().map(listed_row).collect()
    }

    async fn tally(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        scan: &TallyScan<'_>,
    ) -> Result<Vec<TallyCount>> {
        let mut query = QueryBuilder::new("");
        push_tally(&mut query, scan);
        push_range(&mut query, plan, before, last);
        push_conditions(&mut query, plan, POSITION);
        push_groups(&mut query, scan);
        let rows = query.build().fetch_all(self).await.map_err(store_error)?;
        rows.iter().map(|row| tally_count(row, scan, BUCKET, Some(EVENTS))).collect()
    }
}

/// Adds `FROM` and the conditions that the plan's index answers. Positions are compared as row
/// values, because the equivalent with `OR` does not use the index.
///
/// `seq` is the table's rowid, which implicitly ends every index, so the declared indexes end with
/// `at`. SQLite uses a rowid in a row value for the index only if the other side names a
/// collation, although none applies to numbers. Without it, a page within many events of one time
/// would read all of them.
fn push_range(
    query: &mut QueryBuilder<Sqlite>,
    plan: &ScanPlan<'_>,
    before: Option<ListPosition>,
    last: Option<ListPosition>,
) {
    let filter = plan.filter;
    query.push(" FROM dezky_audit_events INDEXED BY ");
    match (&plan.index, &filter.tenant, &filter.actor_id) {
        _ if let Some(action) = &plan.action => {
            query.push("dezky_audit_events_action WHERE action = ").push_bind(action.clone());
        }
        (ScanIndex::Actor, _, Some(actor)) => {
            query.push("dezky_audit_events_actor WHERE actor_id = ").push_bind(actor.clone());
        }
        (ScanIndex::Tenant, Some(TenantMatch::Slug(slug)), _) => {
            query.push("dezky_audit_events_tenant WHERE tenant_slug = ").push_bind(slug.clone());
        }
        (ScanIndex::Tenant, Some(TenantMatch::None), _) => {
            query.push("dezky_audit_events_tenant WHERE tenant_slug IS NULL");
        }
        _ => {
            query.push("dezky_audit_events_at WHERE 1");
        }
    }
    // A position is within the time range, so it implies the bound on its side. With both
    // conditions, SQLite would use the index for the plain bound instead of the position.
    if let (Some(since), None) = (filter.since, last) {
        query.push(" AND at >= ").push_bind(since.as_millis());
    }
    if let (Some(until), None) = (filter.until, before) {
        query.push(" AND at < ").push_bind(until.as_millis());
    }
    for (position, comparison) in [(before, " < ("), (last, " >= (")] {
        if let Some((at, seq)) = position.map(columns_of) {
            query.push(" AND (at, seq)").push(comparison).push_bind(at);
            query.push(", ").push_bind(seq).push(" COLLATE BINARY)");
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection, Row};

    use super::*;
    use crate::Timestamp;
    use crate::store::ListQuery;
    use crate::store::engine::ListScan;

    /// The index range ends at the position and not at a plain bound on the time. Otherwise every
    /// page would start at `until`, and every window would reach to `since`.
    #[tokio::test]
    async fn positions_bound_the_index_range_and_nothing_is_sorted() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        super::super::schema::migrate(&mut connection, &[0; 16], &[0; 32]).await.unwrap();
        let position = Some((Timestamp::MIN, 7));
        let text = |text: &str| Some(text.to_owned());
        for (tenant, actor, action) in [
            (None, None, None),
            (text("acme"), None, None),
            (text(""), None, None),
            (None, text("u-1"), None),
            (None, None, text("tenant.created")),
        ] {
            let query = ListQuery {
                since: Some(Timestamp::MIN),
                until: Some(Timestamp::MAX),
                tenant_slug: tenant,
                actor_id: actor,
                q: text("x"),
                ..ListQuery::default()
            };
            let filter = query.filter().unwrap();
            let scan = ListScan { filter: &filter, before: None, max_rows: 10, max_examined: 10 };
            let plan = ScanPlan { filter: &filter, index: scan.index(), action };
            for (before, last) in
                [(None, None), (position, None), (None, position), (position, position)]
            {
                let mut query = QueryBuilder::new("EXPLAIN QUERY PLAN SELECT *");
                push_range(&mut query, &plan, before, last);
                push_conditions(&mut query, &plan, POSITION);
                query.push(" ORDER BY at DESC, seq DESC LIMIT 10");
                let sql = query.sql().as_str().to_owned();
                let rows =
                    sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
                let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
                assert_eq!(plan.len(), 1, "nothing is sorted: {plan:?}");
                assert_eq!(plan[0].contains("(at,rowid)<(?,?)"), before.is_some(), "{plan:?}");
                assert_eq!(plan[0].contains("(at,rowid)>(?,?)"), last.is_some(), "{plan:?}");
            }
        }
    }
}
