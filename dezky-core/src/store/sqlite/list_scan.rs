//! The index reads of a list scan, in SQL.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::codec::{COLUMNS, listed_row};
use super::store_error;
use crate::store::list_scan::{IndexScan, ScanPlan, columns_of};
use crate::store::sql::push_conditions;
use crate::store::{ListPlace, ScanIndex, TenantMatch};
use crate::{Result, StoredEvent, Timestamp};

/// Finds a text in a text.
const POSITION: &str = "instr";

#[async_trait]
impl IndexScan for SqliteConnection {
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>> {
        // No character is greater, so no action with the prefix is.
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
        before: Option<ListPlace>,
        size: usize,
    ) -> Result<Option<ListPlace>> {
        let mut query = QueryBuilder::new("SELECT at, seq");
        push_range(&mut query, plan, before, None);
        query.push(" ORDER BY at DESC, seq DESC LIMIT 1 OFFSET ");
        query.push_bind(super::limit(size - 1));
        let row = query.build().fetch_optional(self).await.map_err(store_error)?;
        row.map(|row| {
            let at: i64 = row.try_get(0).map_err(store_error)?;
            let seq: i64 = row.try_get(1).map_err(store_error)?;
            Ok((Timestamp::from_millis_clamped(at), super::unsigned(seq)?))
        })
        .transpose()
    }

    async fn select(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPlace>,
        last: Option<ListPlace>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(COLUMNS);
        push_range(&mut query, plan, before, last);
        push_conditions(&mut query, plan, POSITION);
        query.push(" ORDER BY at DESC, seq DESC LIMIT ").push_bind(super::limit(max_rows));
        let rows = query.build().fetch_all(self).await.map_err(store_error)?;
        rows.iter().map(listed_row).collect()
    }
}

/// `FROM` and the conditions that the driver's index answers. Places are row
/// values: the form with OR does not use the index.
///
/// `seq` is the table's rowid, which every index ends with, so the indexes stop at
/// `at`. SQLite compares a rowid within a row value by the index only where the other
/// side names its collation, although none applies to numbers: without it a page in
/// the middle of many events of one time would read all of them.
fn push_range(
    query: &mut QueryBuilder<Sqlite>,
    plan: &ScanPlan<'_>,
    before: Option<ListPlace>,
    last: Option<ListPlace>,
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
    // A place lies within the range, so it implies the bound on its side; with
    // both the plain bound would take the place's part in the index.
    if let (Some(since), None) = (filter.since, last) {
        query.push(" AND at >= ").push_bind(since.as_millis());
    }
    if let (Some(until), None) = (filter.until, before) {
        query.push(" AND at < ").push_bind(until.as_millis());
    }
    for (place, comparison) in [(before, " < ("), (last, " >= (")] {
        if let Some((at, seq)) = place.map(columns_of) {
            query.push(" AND (at, seq)").push(comparison).push_bind(at);
            query.push(", ").push_bind(seq).push(" COLLATE BINARY)");
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection};

    use super::*;
    use crate::store::{ListQuery, ListScan};

    /// The place, not a plain bound on the time, ends the stretch of the index:
    /// else every page would begin again at `until`, every window reach to `since`.
    #[tokio::test]
    async fn places_lead_into_the_index_and_nothing_is_sorted() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        super::super::schema::migrate(&mut connection, &[0; 16], &[0; 32]).await.unwrap();
        let place = Some((Timestamp::MIN, 7));
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
            for (before, last) in [(None, None), (place, None), (None, place), (place, place)] {
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
