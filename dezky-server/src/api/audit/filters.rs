//! The parameters that all readers of the timeline take.

use dezky_core::Timestamp;
use dezky_core::store::ListQuery;

use super::scope::Scope;
use crate::http::parameters::{Parameters, unknown};
use crate::http::problem::Problem;

/// The filters.
const FILTERS: [&str; 13] = [
    "since",
    "until",
    "before",
    "action",
    "tenantSlug",
    "partnerSlug",
    "actorId",
    "actorEmail",
    "resourceType",
    "resourceId",
    "outcome",
    "source",
    "q",
];

/// Parses the filters, restricted to `scope`. Parameters other than these and `others`, which the
/// route reads itself, are problems.
pub(super) fn parse(
    parameters: &Parameters,
    scope: &Scope,
    others: &[&str],
) -> Result<ListQuery, Problem> {
    let mut query = ListQuery::default();
    for (name, value) in parameters.iter() {
        let text = || Some(value.to_owned());
        match name {
            "since" => query.since = Some(time(name, value)?),
            "until" => query.until = Some(time(name, value)?),
            "before" => query.before = Some(time(name, value)?),
            "action" => query.action = text(),
            "tenantSlug" => query.tenant_slug = text(),
            "partnerSlug" => query.partner_slug = text(),
            "actorId" => query.actor_id = text(),
            "actorEmail" => query.actor_email = text(),
            "resourceType" => query.resource_type = text(),
            "resourceId" => query.resource_id = text(),
            "outcome" => {
                query.outcome = Some(value.parse().map_err(|_| {
                    Problem::query_invalid("outcome must be success, failure or denied")
                })?);
            }
            "source" => query.source = text(),
            "q" => query.q = text(),
            other if others.contains(&other) => {}
            _ => return Err(unknown(name, &[&FILTERS, others].concat().join(", "))),
        }
    }
    scope.restrict(&mut query)?;
    Ok(query)
}

fn time(name: &str, value: &str) -> Result<Timestamp, Problem> {
    Timestamp::parse(value).ok_or_else(|| {
        Problem::query_invalid(format!(
            "{name} must be an RFC 3339 time of the years 0001 to 9999, such as 2026-11-21T20:12:21.123Z, with a + written as %2B"
        ))
    })
}
