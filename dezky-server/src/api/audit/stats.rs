//! `GET /audit/stats`: counts for charts.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use dezky_core::store::{Dimension, ListQuery, Tally, TallyInterval, TallyQuery};
use dezky_core::{Outcome, Timestamp};
use serde_json::{Map, Value, json};

use super::filters;
use super::scope::Scope;
use crate::app::AppState;
use crate::http::parameters::Parameters;
use crate::http::problem::Problem;

/// The maximum number of buckets.
const MAX_BUCKETS: u64 = 1_000;
const DAY: Duration = Duration::from_hours(24);

/// `GET /audit/stats`: the number of events by hour or day and by the fields in `by`.
pub(super) async fn stats(
    State(state): State<AppState>,
    scope: Scope,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    let mut filters = filters::parse(&parameters, &scope, &["interval", "by"])?;
    let interval = interval(parameters.get("interval").unwrap_or("hour"))
        .ok_or_else(|| Problem::query_invalid("interval must be hour or day"))?;
    let by = dimensions(parameters.get("by")).ok_or_else(|| {
        Problem::query_invalid(
            "by must be a list of source, action, outcome and tenantSlug, each at most once, with commas in between",
        )
    })?;
    settle_range(&mut filters, interval, state.platform.runtime().now());
    let query = TallyQuery { filters, interval, by };
    let checked = query.filter()?;
    check_range(checked.since, checked.until, interval).map_err(Problem::query_invalid)?;
    let Some(_permit) = state.audit.admit_tally() else {
        return Err(Problem::too_many("too_many_stats", "too many counts are in progress: retry"));
    };
    Ok(Json(report(&state.platform.store.tally(&query).await?, &query)))
}

/// The interval with this name.
pub(crate) fn interval(name: &str) -> Option<TallyInterval> {
    [TallyInterval::Hour, TallyInterval::Day].into_iter().find(|known| known.as_str() == name)
}

/// The fields in a list of names; all of them without a list, and none in an empty one.
pub(crate) fn dimensions(list: Option<&str>) -> Option<Vec<Dimension>> {
    let Some(list) = list else { return Some(Dimension::ALL.to_vec()) };
    let mut by = Vec::new();
    for name in list.split(',').filter(|_| !list.is_empty()) {
        let known = Dimension::ALL.into_iter().find(|known| known.name() == name)?;
        if by.contains(&known) {
            return None;
        }
        by.push(known);
    }
    Some(by)
}

/// Sets the ends of the range that are not given: the last day by hour, the last 30 days by day.
pub(crate) fn settle_range(filters: &mut ListQuery, interval: TallyInterval, now: Timestamp) {
    let length = match interval {
        TallyInterval::Hour => DAY,
        TallyInterval::Day => 30 * DAY,
    };
    let until = filters.until.or(filters.before).unwrap_or(now);
    let end = filters.before.map_or(until, |before| before.min(until));
    filters.until = Some(end);
    let ms = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
    filters.since.get_or_insert(Timestamp::from_millis_clamped(end.as_millis().saturating_sub(ms)));
}

/// Refuses a range of too many buckets.
pub(crate) fn check_range(
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    interval: TallyInterval,
) -> Result<(), String> {
    let (Some(since), Some(until)) = (since, until) else { return Ok(()) };
    let range = until.saturating_since(since).as_millis();
    let buckets = range / interval.length().as_millis();
    if buckets <= MAX_BUCKETS.into() {
        return Ok(());
    }
    let name = interval.as_str();
    Err(format!(
        "since and until are {buckets} times interval={name} apart, at most {MAX_BUCKETS} are allowed: choose a shorter range or a longer interval"
    ))
}

/// The counts as JSON.
pub(crate) fn report(tally: &Tally, query: &TallyQuery) -> Value {
    let mut total = 0;
    let mut counts = Vec::with_capacity(tally.counts.len());
    for counted in &tally.counts {
        total += counted.count;
        let mut members = Map::new();
        members.insert("at".into(), json!(counted.at));
        for dimension in &query.by {
            let value = match dimension {
                Dimension::Source => json!(counted.source),
                Dimension::Action => json!(counted.action),
                Dimension::Outcome => json!(counted.outcome.map(Outcome::as_str)),
                Dimension::TenantSlug => json!(counted.tenant_slug),
            };
            members.insert(dimension.name().into(), value);
        }
        members.insert("count".into(), counted.count.into());
        counts.push(Value::Object(members));
    }
    let by: Vec<_> = query.by.iter().map(|dimension| dimension.name()).collect();
    let mut report = json!({
        "interval": query.interval.as_str(),
        "by": by,
        "since": tally.since,
        "until": tally.until,
        "total": total,
        "counts": counts,
    });
    if let Some(counted_from) = tally.counted_from {
        report["partial"] = true.into();
        report["countedFrom"] = json!(counted_from);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_fields_are_strict() {
        assert_eq!(dimensions(None).unwrap(), Dimension::ALL);
        assert_eq!(dimensions(Some("")).unwrap(), []);
        let by = dimensions(Some("outcome,source")).unwrap();
        assert_eq!(by, [Dimension::Outcome, Dimension::Source]);
        for wrong in ["tenant", "source,", ",", "source,source", "source action"] {
            assert_eq!(dimensions(Some(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn a_range_has_a_bound_with_a_fix() {
        let time = |text| Timestamp::parse(text);
        let (since, until) = (time("2026-01-01T00:00:00Z"), time("2026-03-01T00:00:00Z"));
        let refused = check_range(since, until, TallyInterval::Hour).unwrap_err();
        assert!(refused.contains("1416") && refused.contains("1000"), "{refused}");
        assert_eq!(check_range(since, until, TallyInterval::Day), Ok(()));
    }

    #[test]
    fn a_range_ends_at_the_earlier_of_until_and_before() {
        let time = |day: u8| Timestamp::parse(&format!("2026-01-{day:02}T00:00:00Z"));
        for (until, before, since, end) in [
            (None, None, 27, 28),
            (None, Some(10), 9, 10),
            (Some(12), Some(10), 9, 10),
            (Some(8), Some(10), 7, 8),
        ] {
            let mut filters = ListQuery {
                until: until.and_then(time),
                before: before.and_then(time),
                ..ListQuery::default()
            };
            settle_range(&mut filters, TallyInterval::Hour, time(28).unwrap());
            assert_eq!((filters.since, filters.until), (time(since), time(end)));
        }
    }
}
