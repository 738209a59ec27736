//! Decisions on flags and previews of changes, as JSON for the API and as tables.

use std::fmt::Write as _;

use dezky_flags::{Explanation, FlippedTenant, Preview};
use serde_json::{Map, Value, json};

use crate::render::table::{printable, table};

/// The maximum number of tenants that a preview's table names in each direction.
const SHOWN_TENANTS: usize = 20;

/// A JSON object: by flag the value, the reason and its details.
pub(crate) fn explained(decisions: &[(&str, Explanation<'_>)]) -> Value {
    let explained = |(key, why): &(&str, Explanation<'_>)| ((*key).to_owned(), json!(why));
    decisions.iter().map(explained).collect::<Map<_, _>>().into()
}

/// The decisions as a table.
pub(crate) fn tabulated(decisions: &[(&str, Explanation<'_>)]) -> String {
    let rows = decisions.iter().map(|(key, why)| {
        let value = if why.decision.value { "on" } else { "off" };
        let figures = why.rollout.map(|rollout| [rollout.bucket, rollout.threshold]);
        let [bucket, threshold] =
            figures.map_or_else(Default::default, |figures| figures.map(percentage));
        [printable(key), value.to_owned(), why.decision.reason.to_string(), bucket, threshold]
    });
    table(&["flag", "value", "reason", "bucket", "threshold"], rows)
}

/// Formats hundredths of a percentage point.
fn percentage(hundredths: u16) -> String {
    (f64::from(hundredths) / 100.0).to_string()
}

/// A preview as the API sends it: its environment, a summary and numbers.
pub(crate) fn previewed(preview: &Preview, environment: Option<&str>) -> Value {
    let mut answer = json!(preview);
    answer["environment"] = json!(environment);
    answer["summary"] = preview.to_string().into();
    answer
}

/// A preview as a table.
pub(crate) fn previewed_table(key: &str, preview: &Preview) -> String {
    let mut text = format!("{key}: {preview}\n");
    let plans = preview.by_plan.iter().map(|(plan, seen)| (plan.as_str(), seen));
    let rows = plans.chain(preview.other_plans.iter().map(|seen| ("(others)", seen)));
    let rows = rows.map(|(plan, seen)| {
        let numbers = [seen.total, seen.before_on, seen.after_on, seen.gains, seen.loses];
        let [total, before, after, gains, loses] = numbers.map(|number| number.to_string());
        [printable(plan), total, before, after, gains, loses]
    });
    text.push_str(&table(&["plan", "of", "before", "after", "gain", "lose"], rows));
    for (verb, flipped) in [("gain", &preview.gains), ("lose", &preview.loses)] {
        if flipped.count == 0 {
            continue;
        }
        let name = |tenant: &FlippedTenant| printable(tenant.slug.as_ref().unwrap_or(&tenant.id));
        let shown: Vec<_> = flipped.tenants.iter().take(SHOWN_TENANTS).map(name).collect();
        let _ = write!(text, "  {verb}: {}", shown.join(", "));
        let more = flipped.count.saturating_sub(shown.len() as u64);
        let _ = if more > 0 { writeln!(text, " and {more} more") } else { writeln!(text) };
    }
    text
}
