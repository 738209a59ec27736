//! The index reads of a list scan, in SQL.

use async_trait::async_trait;
use sqlx::{Postgres, QueryBuilder};

use super::get;
use super::transaction::PostgresTransaction;
use crate::store::TallyCount;
use crate::store::codec::{limit, listed_row, position, tally_count};
use crate::store::engine::{ListPosition, ScanIndex, TallyScan, TenantMatch};
use crate::store::list_scan::{IndexScan, ScanPlan, columns_of};
use crate::store::sql::{BUCKET, COLUMNS, EVENTS, push_conditions, push_groups, push_tally};
use crate::{Result, StoredEvent, Timestamp};

/// The function that finds a substring.
pub(super) const POSITION: &str = "strpos";

#[async_trait]
impl IndexScan for PostgresTransaction {
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>> {
        // U+10FFFF sorts last, so this is an upper bound for the prefix.
        let end = format!("{prefix}\u{10ffff}");
        let mut found = Vec::new();
        let mut sql = "SELECT action FROM dezky_audit_events WHERE action >= $1 AND action < $2 ORDER BY action LIMIT 1";
        let mut from = prefix.to_owned();
        while found.len() < 2 {
            let query = sqlx::query(sql).bind(from).bind(end.clone());
            let Some(row) = self.fetch_optional(query).await? else { break };
            let action: String = get(&row, "action")?;
            found.push(action.clone());
            from = action;
            sql = "SELECT action FROM dezky_audit_events WHERE action > $1 AND action < $2 ORDER BY action LIMIT 1";
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
        let order = push_range(&mut query, plan, before, None);
        query.push(order).push(" LIMIT 1 OFFSET ").push_bind(limit(size - 1));
        let row = self.fetch_optional(query.build()).await?;
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
        let order = push_range(&mut query, plan, before, last);
        push_conditions(&mut query, plan, POSITION);
        query.push(order).push(" LIMIT ").push_bind(limit(max_rows));
        self.fetch_all(query.build()).await?.iter().map(listed_row).collect()
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
        let rows = self.fetch_all(query.build()).await?;
        rows.iter().map(|row| tally_count(row, scan, BUCKET, Some(EVENTS))).collect()
    }
}

/// Adds `FROM` and the conditions that the plan's index answers, and returns an order that only
/// this index has.
///
/// The plan's column is part of the compared row values and of the order, so that it is not a
/// constant to the planner. Otherwise the index by time would have the order too, and the planner
/// might prefer it. Positions are compared as row values, because the equivalent with `OR` does not
/// use the index.
fn push_range(
    query: &mut QueryBuilder<Postgres>,
    plan: &ScanPlan<'_>,
    before: Option<ListPosition>,
    last: Option<ListPosition>,
) -> &'static str {
    let filter = plan.filter;
    query.push(" FROM dezky_audit_events WHERE ");
    let (columns, value, order) = match (&plan.index, &filter.tenant, &filter.actor_id) {
        _ if let Some(action) = &plan.action => {
            ("(action, at, seq)", Some(action), " ORDER BY action DESC, at DESC, seq DESC")
        }
        (ScanIndex::Actor, _, Some(actor)) => {
            ("(actor_id, at, seq)", Some(actor), " ORDER BY actor_id DESC, at DESC, seq DESC")
        }
        (ScanIndex::Tenant, Some(TenantMatch::Slug(slug)), _) => {
            ("(tenant_slug, at, seq)", Some(slug), " ORDER BY tenant_slug DESC, at DESC, seq DESC")
        }
        (ScanIndex::Tenant, Some(TenantMatch::None), _) => {
            query.push("tenant_slug IS NULL AND ");
            ("(at, seq)", None, " ORDER BY tenant_slug DESC, at DESC, seq DESC")
        }
        _ => ("(at, seq)", None, " ORDER BY at DESC, seq DESC"),
    };
    let (before, last) = (before.map(columns_of), last.map(columns_of));
    // A position is within the time range, so it implies the bound on its side.
    let since = filter.since.map_or(i64::MIN, Timestamp::as_millis);
    let begin = last.unwrap_or((since, i64::MIN));
    let (comparison, end) = match (before, filter.until) {
        (Some(before), _) => (" < (", before),
        (None, Some(until)) => (" < (", (until.as_millis(), i64::MIN)),
        (None, None) => (" <= (", (i64::MAX, i64::MAX)),
    };
    push_position(query, columns, " >= (", value, begin);
    query.push(" AND ");
    push_position(query, columns, comparison, value, end);
    order
}

fn push_position(
    query: &mut QueryBuilder<Postgres>,
    columns: &'static str,
    comparison: &'static str,
    value: Option<&String>,
    (at, seq): (i64, i64),
) {
    query.push(columns).push(comparison);
    if let Some(value) = value {
        query.push_bind(value.clone()).push(", ");
    }
    query.push_bind(at).push(", ").push_bind(seq).push(")");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

    use super::*;
    use crate::Runtime;
    use crate::rt::TokioRuntime;
    use crate::store::engine::ListScan;
    use crate::store::{ListQuery, PostgresAuditStore, PostgresConfig};

    /// A log of 50,000 events, nine of ten by one actor for one tenant, with statistics by ANALYZE.
    async fn skewed_log() -> (PostgresAuditStore, String, String) {
        let server = test_server();
        let mut random = [0; 8];
        TokioRuntime.fill_random(&mut random);
        let name = format!("dezky_test_plans_{:016x}", u64::from_be_bytes(random));
        let mut admin = PgConnection::connect(&server).await.unwrap();
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        let config = PostgresConfig::new(&url);
        let store = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        let mut own = PgConnection::connect(&url).await.unwrap();
        own.execute(
            "INSERT INTO dezky_audit_events SELECT n, gen_random_uuid(), n / 10, 0, 'user', CASE WHEN n % 10 > 0 THEN 'u-1' ELSE 'u-' || n END, NULL, NULL, CASE WHEN n % 2 = 0 THEN 'tenant.created' ELSE 'user.v' || n % 100 END, 'success', NULL, NULL, NULL, CASE WHEN n % 20 = 0 THEN NULL WHEN n % 10 > 0 THEN 'acme' ELSE 't-' || n % 70 END, 'partner', 'ocis', NULL, '{}', hash, NULL, hash, hash, NULL, 'word' || n FROM generate_series(0, 49999) AS n, decode(repeat('00', 32), 'hex') AS hash",
        )
        .await
        .unwrap();
        own.execute("ANALYZE").await.unwrap();
        (store, server, name)
    }

    #[expect(clippy::disallowed_methods, reason = "the environment names a test's server")]
    fn test_server() -> String {
        std::env::var("DEZKY_TEST_POSTGRES")
            .expect("DEZKY_TEST_POSTGRES is not set: run this under .ci/with-servers")
    }

    /// The number of entries read from each index, and of rows read without one, in this
    /// transaction.
    async fn reads(tx: &mut PostgresTransaction) -> BTreeMap<String, i64> {
        let query = sqlx::query(
            "SELECT indexrelid::regclass::text, pg_stat_get_xact_tuples_returned(indexrelid) FROM pg_index WHERE indrelid = 'dezky_audit_events'::regclass UNION ALL SELECT 'table', pg_stat_get_xact_tuples_returned('dezky_audit_events'::regclass)",
        );
        let rows = tx.fetch_all(query).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// PostgreSQL reads rows by the plan's index in the wanted order, for every range, and also on
    /// the tenth run.
    #[tokio::test]
    async fn the_plans_index_is_the_one_that_is_used() {
        let (store, server, name) = skewed_log().await;
        let text = |text: &str| Some(text.to_owned());
        let position = Some((Timestamp::from_millis(2_500).unwrap(), 25_003));
        let early = Some((Timestamp::from_millis(1_000).unwrap(), 10_003));
        for (tenant, actor, action, index) in [
            (None, None, None, "at"),
            (text("acme"), None, None, "tenant"),
            (text("t-30"), None, None, "tenant"),
            (text(""), None, None, "tenant"),
            (None, text("u-1"), None, "actor"),
            (text("acme"), text("u-10"), None, "actor"),
            (None, None, text("tenant.created"), "action"),
        ] {
            for (since, narrow) in [(None, false), (Some(500), false), (Some(500), true)] {
                let query = ListQuery {
                    since: since.map(|at| Timestamp::from_millis(at).unwrap()),
                    until: since.map(|at| Timestamp::from_millis(at + 4_000).unwrap()),
                    tenant_slug: tenant.clone(),
                    actor_id: actor.clone(),
                    action: narrow.then(|| "tenant".into()),
                    partner_slug: narrow.then(|| "partner".into()),
                    q: narrow.then(|| "word1".into()),
                    ..ListQuery::default()
                };
                let filter = query.filter().unwrap();
                let scan =
                    ListScan { filter: &filter, before: None, max_rows: 10, max_examined: 10 };
                let plan =
                    ScanPlan { filter: &filter, index: scan.index(), action: action.clone() };
                let index = format!("dezky_audit_events_{index}");
                for (before, last) in
                    [(None, None), (position, None), (None, early), (position, early)]
                {
                    let mut tx = store.database().read_scan().await.unwrap();
                    check_explained(&mut tx, &plan, before, last, &index).await;
                    let earlier = reads(&mut tx).await;
                    for _ in 0..10 {
                        tx.select(&plan, before, last, 10).await.unwrap();
                        tx.window_end(&plan, before, 100).await.unwrap();
                    }
                    for (name, reads) in reads(&mut tx).await {
                        let grown = reads - earlier[&name];
                        // The planner reads the ends of some indexes.
                        let right = if name == index { grown >= 20 } else { grown <= 100 };
                        assert!(right, "{grown} of {name} for {index} {filter:?}");
                    }
                }
            }
        }
        store.close().await;
        let mut admin = PgConnection::connect(&server).await.unwrap();
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        admin.execute(AssertSqlSafe(drop)).await.unwrap();
    }

    async fn check_explained(
        tx: &mut PostgresTransaction,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        index: &str,
    ) {
        let mut query = QueryBuilder::new("EXPLAIN SELECT *");
        let order = push_range(&mut query, plan, before, last);
        push_conditions(&mut query, plan, POSITION);
        query.push(order).push(" LIMIT 10");
        let rows = tx.fetch_all(query.build()).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains(&format!("Backward using {index} on")), "{index}: {plan}");
        assert!(!plan.contains("Sort"), "{plan}");
        assert!(plan.contains("Index Cond: "), "{plan}");
    }
}
