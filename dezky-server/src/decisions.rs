//! What the flags say for a tenant, in the form of the HTTP API and as a table.

use dezky_flags::{Decision, Reason};
use serde_json::{Map, Value, json};

use crate::table::{printable, table};

/// One JSON object: by flag the value, the reason, and what the reason is about.
pub(crate) fn explained<K: AsRef<str>>(
    decisions: impl IntoIterator<Item = (K, Decision)>,
) -> Value {
    let explained = |(key, decision): (K, Decision)| (key.as_ref().to_owned(), explain(decision));
    decisions.into_iter().map(explained).collect::<Map<_, _>>().into()
}

fn explain(decision: Decision) -> Value {
    let mut answer = json!({ "value": decision.value, "reason": decision.reason.to_string() });
    match decision.reason {
        Reason::InRollout(bucket) | Reason::OutOfRollout(bucket) => {
            answer["bucket"] = bucket.into();
        }
        Reason::ScopeMismatch(axis) => answer["axis"] = axis.to_string().into(),
        _ => {}
    }
    answer
}

/// A table for a person.
pub(crate) fn tabulated<K: AsRef<str>>(
    decisions: impl IntoIterator<Item = (K, Decision)>,
) -> String {
    let rows = decisions.into_iter().map(|(key, decision)| {
        let value = if decision.value { "on" } else { "off" };
        [printable(key.as_ref()), value.to_owned(), decision.reason.to_string()]
    });
    table(&["flag", "value", "reason"], rows)
}
