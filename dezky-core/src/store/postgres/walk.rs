//! The stretches of a walk, in SQL.

use async_trait::async_trait;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::codec::{COLUMNS, listed_row};
use super::transaction::PostgresTransaction;
use super::{get, limit};
use crate::store::walk::{self, Lead, Place, Stretches};
use crate::store::{Driver, TenantMatch, Walk, Walked};
use crate::{Result, StoredEvent, Timestamp};

/// Walks in a transaction of [`PostgresDatabase::read_walk`](super::PostgresDatabase).
pub(super) async fn walk(tx: &mut PostgresTransaction, walk: &Walk<'_>) -> Result<Walked> {
    walk::walk(tx, walk).await
}

#[async_trait]
impl Stretches for PostgresTransaction {
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>> {
        // No character is greater, so no action with the prefix is.
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
        lead: &Lead<'_>,
        before: Option<Place>,
        size: usize,
    ) -> Result<Option<Place>> {
        let mut query = QueryBuilder::new("SELECT at, id");
        let order = push_range(&mut query, lead, before, None);
        query.push(order).push(" LIMIT 1 OFFSET ").push_bind(limit(size - 1));
        let row = self.fetch_optional(query.build()).await?;
        row.map(|row| Ok((Timestamp::from_millis_clamped(get(&row, "at")?), get(&row, "id")?)))
            .transpose()
    }

    async fn select(
        &mut self,
        lead: &Lead<'_>,
        before: Option<Place>,
        last: Option<Place>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(COLUMNS);
        let order = push_range(&mut query, lead, before, last);
        push_conditions(&mut query, lead);
        query.push(order).push(" LIMIT ").push_bind(limit(max_rows));
        self.fetch_all(query.build()).await?.iter().map(listed_row).collect()
    }
}

/// `FROM`, the conditions that the lead's index answers, and the order that none
/// but that index has.
///
/// The lead's column is a part of the places and of the order, so that it is no
/// constant to the planner: else the index by time would have the order too, and
/// may be thought cheaper. Places are row values: the form with OR does not use an index.
fn push_range(
    query: &mut QueryBuilder<Postgres>,
    lead: &Lead<'_>,
    before: Option<Place>,
    last: Option<Place>,
) -> &'static str {
    let filter = lead.filter;
    query.push(" FROM dezky_audit_events WHERE ");
    let (columns, value, order) = match (&lead.driver, &filter.tenant, &filter.actor_id) {
        _ if let Some(action) = &lead.action => {
            ("(action, at, id)", Some(action), " ORDER BY action DESC, at DESC, id DESC")
        }
        (Driver::Actor, _, Some(actor)) => {
            ("(actor_id, at, id)", Some(actor), " ORDER BY actor_id DESC, at DESC, id DESC")
        }
        (Driver::Tenant, Some(TenantMatch::Slug(slug)), _) => {
            ("(tenant_slug, at, id)", Some(slug), " ORDER BY tenant_slug DESC, at DESC, id DESC")
        }
        (Driver::Tenant, Some(TenantMatch::None), _) => {
            query.push("tenant_slug IS NULL AND ");
            ("(at, id)", None, " ORDER BY tenant_slug DESC, at DESC, id DESC")
        }
        _ => ("(at, id)", None, " ORDER BY at DESC, id DESC"),
    };
    let mut bound = |comparison: &'static str, (at, id): (i64, Uuid)| {
        query.push(columns).push(comparison);
        if let Some(value) = value {
            query.push_bind(value.clone()).push(", ");
        }
        query.push_bind(at).push(", ").push_bind(id).push(")");
    };
    // A place lies within the range, so it implies the bound on its side.
    match (before, filter.until) {
        (Some((at, id)), _) => bound(" < (", (at.as_millis(), id)),
        (None, Some(until)) => bound(" < (", (until.as_millis(), Uuid::nil())),
        (None, None) => bound(" <= (", (i64::MAX, Uuid::max())),
    }
    query.push(" AND ");
    let mut bound = |comparison: &'static str, (at, id): (i64, Uuid)| {
        query.push(columns).push(comparison);
        if let Some(value) = value {
            query.push_bind(value.clone()).push(", ");
        }
        query.push_bind(at).push(", ").push_bind(id).push(")");
    };
    match (last, filter.since) {
        (Some((at, id)), _) => bound(" >= (", (at.as_millis(), id)),
        (None, Some(since)) => bound(" >= (", (since.as_millis(), Uuid::nil())),
        (None, None) => bound(" >= (", (i64::MIN, Uuid::nil())),
    }
    order
}

/// The rest of the filter.
fn push_conditions(query: &mut QueryBuilder<Postgres>, lead: &Lead<'_>) {
    let filter = lead.filter;
    if let (Some(prefix), None) = (&filter.action_prefix, &lead.action) {
        query.push(" AND starts_with(action, ").push_bind(prefix.clone()).push(")");
    }
    if lead.driver != Driver::Tenant {
        match &filter.tenant {
            Some(TenantMatch::Slug(slug)) => {
                query.push(" AND tenant_slug = ").push_bind(slug.clone());
            }
            Some(TenantMatch::None) => {
                query.push(" AND tenant_slug IS NULL");
            }
            None => {}
        }
    }
    for (column, value) in [
        ("partner_slug", &filter.partner_slug),
        ("actor_email_fold", &filter.actor_email_fold),
        ("resource_type", &filter.resource_type),
        ("resource_id", &filter.resource_id),
    ] {
        if let Some(value) = value {
            query.push(" AND ").push(column).push(" = ").push_bind(value.clone());
        }
    }
    if let Some(outcome) = filter.outcome {
        query.push(" AND outcome = ").push_bind(outcome.as_str());
    }
    if let Some(source) = &filter.source {
        query.push(" AND (source = ").push_bind(source.exact.clone());
        if let Some(instances) = &source.instances {
            query.push(" OR starts_with(source, ").push_bind(instances.clone()).push(")");
        }
        query.push(")");
    }
    if let Some(text) = &filter.search {
        query.push(" AND strpos(search, ").push_bind(text.clone()).push(") > 0");
    }
}
