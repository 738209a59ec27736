//! SQL shared by the dialects.

use sqlx::{ColumnIndex, Database, Decode, Encode, QueryBuilder, Row, Type};

use super::codec::Problem;
use super::engine::{ScanIndex, TallyScan, TenantMatch};
use super::list_scan::ScanPlan;
use super::tally::Dimension;
use crate::Result;

/// The columns of an event, in the order in which they are inserted.
pub(super) const COLUMNS: &str = "seq, id, at, received_at, actor_type, actor_id, actor_email, \
    actor_ip, action, outcome, resource_type, resource_id, resource_name, tenant_slug, \
    partner_slug, source, external_id, metadata, salt, erasure, prev_hash, hash, actor_email_fold, search";

/// The number of [`COLUMNS`].
#[cfg(feature = "sqlite")]
pub(super) const COLUMN_COUNT: usize = 24;

/// The columns that deduplication compares, of the events as `e`.
pub(super) const COMPARED_COLUMNS: &str = "e.seq, e.id, e.source, e.external_id, e.actor_type, \
    e.actor_id, e.actor_email, e.action, e.outcome, e.resource_type, e.resource_id, e.erasure";

/// Reads a column.
pub(super) fn get<'r, R, T>(row: &'r R, column: &str) -> Result<T, Problem>
where
    R: Row,
    T: Decode<'r, R::Database> + Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    row.try_get(column).map_err(|_| format!("{column} has an unexpected type"))
}

/// The columns of a tally: the beginning of the bucket and the number of events.
pub(super) const BUCKET: &str = "bucket";
pub(super) const EVENTS: &str = "events";

/// Begins a tally. Both dialects round a quotient towards zero, so the remainder of a time before
/// 1970 is negative.
pub(super) fn push_tally<DB: Database>(query: &mut QueryBuilder<DB>, scan: &TallyScan<'_>) {
    let length = scan.interval.as_millis();
    query.push(format_args!(
        "SELECT at - (at % {length} + {length}) % {length} AS {BUCKET}, COUNT(*) AS {EVENTS}"
    ));
    push_dimensions(query, scan);
}

/// Ends a tally.
pub(super) fn push_groups<DB: Database>(query: &mut QueryBuilder<DB>, scan: &TallyScan<'_>) {
    query.push(" GROUP BY ").push(BUCKET);
    push_dimensions(query, scan);
}

fn push_dimensions<DB: Database>(query: &mut QueryBuilder<DB>, scan: &TallyScan<'_>) {
    for dimension in scan.by {
        query.push(match dimension {
            Dimension::Source => ", source",
            Dimension::Action => ", action",
            Dimension::Outcome => ", outcome",
            Dimension::TenantSlug => ", tenant_slug",
        });
    }
}

/// Adds the conditions of a filter that the plan's index does not answer. `position` is the
/// dialect's function that finds a substring.
pub(super) fn push_conditions<DB: Database>(
    query: &mut QueryBuilder<DB>,
    plan: &ScanPlan<'_>,
    position: &'static str,
) where
    for<'q> String: Encode<'q, DB> + Type<DB>,
{
    let filter = plan.filter;
    if let (Some(prefix), None) = (&filter.action_prefix, &plan.action) {
        push_prefix(query.push(" AND "), "action", prefix);
    }
    if plan.index != ScanIndex::Tenant {
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
        query.push(" AND outcome = ").push_bind(outcome.as_str().to_owned());
    }
    if let Some(source) = &filter.source {
        query.push(" AND (source = ").push_bind(source.exact.clone());
        if let Some(instances) = &source.instances {
            push_prefix(query.push(" OR "), "source", instances);
        }
        query.push(")");
    }
    if let Some(text) = &filter.search {
        query.push(" AND ").push(position).push("(search, ").push_bind(text.clone()).push(") > 0");
    }
}

/// Compares a prefix without a pattern, so that no character of it has a special meaning.
fn push_prefix<DB: Database>(query: &mut QueryBuilder<DB>, column: &'static str, prefix: &str)
where
    for<'q> String: Encode<'q, DB> + Type<DB>,
{
    query.push("substr(").push(column).push(", 1, length(").push_bind(prefix.to_owned());
    query.push(")) = ").push_bind(prefix.to_owned());
}
