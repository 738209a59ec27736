//! The timeline: list and record events.

mod record;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use dezky_core::Timestamp;
use dezky_core::store::{ListPage, ListQuery};

use crate::app::AppState;
use crate::http::parameters::{Parameters, unknown};
use crate::http::problem::Problem;

const PARAMETERS: &str = "since, until, before, action, tenantSlug, partnerSlug, actorId, actorEmail, resourceType, resourceId, outcome, source, q, limit and cursor";

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/audit", get(list).post(record::record))
}

/// `GET /audit`: one page of the timeline, newest first.
async fn list(
    State(state): State<AppState>,
    parameters: Parameters,
) -> Result<Json<ListPage>, Problem> {
    let query = parse(&parameters)?;
    Ok(Json(state.platform.store.list(&query).await?))
}

/// Parses the parameters; unknown or invalid ones are problems.
fn parse(parameters: &Parameters) -> Result<ListQuery, Problem> {
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
            "limit" => {
                query.limit = value
                    .parse()
                    .map_err(|_| Problem::query_invalid("limit must be a number, 1 to 500"))?;
            }
            "cursor" => query.cursor = text(),
            _ => return Err(unknown(name, PARAMETERS)),
        }
    }
    Ok(query)
}

fn time(name: &str, value: &str) -> Result<Timestamp, Problem> {
    Timestamp::parse(value).ok_or_else(|| {
        Problem::query_invalid(format!(
            "{name} must be an RFC 3339 time of the years 0001 to 9999, such as 2026-11-21T20:12:21.123Z, with a + written as %2B"
        ))
    })
}
