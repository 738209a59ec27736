//! What the dialects of SQL have alike.

use sqlx::{Database, Encode, QueryBuilder, Type};

use super::list_scan::ScanPlan;
use super::{ScanIndex, TenantMatch};

/// The conditions of a filter that the plan's index does not answer. `position` is
/// the dialect's function that finds a text in a text.
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

/// No pattern, so that no character of the prefix means anything.
fn push_prefix<DB: Database>(query: &mut QueryBuilder<DB>, column: &'static str, prefix: &str)
where
    for<'q> String: Encode<'q, DB> + Type<DB>,
{
    query.push("substr(").push(column).push(", 1, length(").push_bind(prefix.to_owned());
    query.push(")) = ").push_bind(prefix.to_owned());
}
