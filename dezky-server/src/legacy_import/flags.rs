//! Flags of the earlier platform.

use std::str::FromStr as _;

use dezky_core::{ActorType, Timestamp};
use dezky_flags::{Change, ChangeActor, FieldChange, Flag, FlagState, MAX_HISTORY, NewFlag, Scope};
use mongodb::bson::Bson;
use serde_json::Value;

use super::fields::{self, Fields};
use super::report::Collection;

/// Maps a flag, with its history.
pub(super) fn flag(fields: &mut Fields, report: &mut Collection) -> Result<Flag, String> {
    let key = fields.text("key").ok_or("it has no key: give it one there, then import again")?;
    let state = fields.text("state").unwrap_or_default();
    // Off is the safe state.
    let state = FlagState::from_str(&state.to_lowercase()).unwrap_or_else(|_| {
        report.change("state");
        FlagState::Off
    });
    let pct = fields.number("pct").unwrap_or(0.0);
    // Leaving out a part of the scope must not widen the flag.
    if fields.has_other_than_part("scope") {
        return Err("scope is not an object: fix it in the source, then import again".into());
    }
    let mut scope = fields.part("scope");
    for axis in ["plans", "tenantSlugs", "partnerSlugs", "environments"] {
        if scope.has_other_than_texts(axis) {
            return Err(format!(
                "scope.{axis} is not a list of texts: fix it in the source, then import again"
            ));
        }
    }
    let new = NewFlag {
        description: fields.text("description").unwrap_or_default(),
        state,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        pct: pct.round().clamp(0.0, 100.0) as u8,
        scope: Scope {
            plans: scope.texts("plans"),
            tenant_slugs: scope.texts("tenantSlugs"),
            partner_slugs: scope.texts("partnerSlugs"),
            environments: scope.texts("environments"),
        },
        ..NewFlag::new(key)
    };
    if pct.fract() != 0.0 || !(0.0..=100.0).contains(&pct) {
        report.change("pct");
    }
    let other_axes = scope.rest();
    if let Some(axis) = other_axes.keys().next() {
        return Err(format!(
            "scope.{axis} is not an axis of a scope here, and without it the flag would apply to more tenants: remove it in the source, or create the flag anew"
        ));
    }
    fields.take("createdAt");
    let created_at = fields.made.unwrap_or(Timestamp::MIN);
    let mut flag = Flag::new(new, created_at).map_err(|error| error.to_string())?;
    flag.updated_at = fields.time("updatedAt").unwrap_or(created_at);
    let mut history: Vec<_> =
        fields.parts("history").into_iter().map(|entry| change(entry, created_at)).collect();
    history.sort_by_key(|change| std::cmp::Reverse(change.at));
    if history.len() > MAX_HISTORY {
        report.change("history");
        history.truncate(MAX_HISTORY);
    }
    flag.history = history;
    flag.validate().map_err(|error| error.to_string())?;
    Ok(flag)
}

/// An entry of the history, in any of its forms.
fn change(mut entry: Fields, created_at: Timestamp) -> Change {
    let actor = match entry.take("actor") {
        Some(Bson::Document(actor)) => {
            let mut actor = Fields::of_part(actor);
            let kind = actor.text("type").and_then(|kind| kind.parse().ok());
            ChangeActor {
                kind: kind.unwrap_or(ActorType::Operator),
                id: actor.text("id"),
                email: actor.text("email"),
            }
        }
        Some(Bson::String(said)) if said.contains('@') => {
            ChangeActor { kind: ActorType::Operator, id: None, email: Some(said) }
        }
        said => {
            let id = said.and_then(|said| fields::json(&said).as_str().map(str::to_owned));
            ChangeActor { kind: ActorType::Operator, id, email: None }
        }
    };
    let mut changes: Vec<_> = entry
        .parts("changes")
        .into_iter()
        .filter_map(|mut change| {
            let field = change.text("field")?;
            Some(FieldChange {
                field,
                from: value(&mut change, "from"),
                to: value(&mut change, "to"),
            })
        })
        .collect();
    if changes.is_empty() {
        changes = differences(&mut entry);
    }
    Change {
        at: entry.time("at").unwrap_or(created_at),
        actor,
        changes,
        note: entry.text("note").map(|note| note[..note.floor_char_boundary(1_000)].to_owned()),
    }
}

/// The difference between the states before and after, or a separate field.
fn differences(entry: &mut Fields) -> Vec<FieldChange> {
    let field = entry.text("field");
    match (field, value(entry, "from"), value(entry, "to")) {
        (Some(field), from, to) => vec![FieldChange { field, from, to }],
        (None, Value::Object(mut from), Value::Object(to)) => {
            let changes = to.into_iter().filter_map(|(field, to)| {
                let from = from.remove(&field).unwrap_or(Value::Null);
                (from != to).then_some(FieldChange { field, from, to })
            });
            changes.collect()
        }
        (None, Value::Null, Value::Null) => Vec::new(),
        (None, from, to) => vec![FieldChange { field: "state".into(), from, to }],
    }
}

fn value(fields: &mut Fields, name: &str) -> Value {
    fields.take(name).map_or(Value::Null, |value| fields::json(&value))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, Document, doc};
    use serde_json::json;

    use super::*;

    fn mapped(document: Document) -> (Result<Flag, String>, Collection) {
        let mut report = Collection::default();
        (flag(&mut Fields::new(document), &mut report), report)
    }

    #[test]
    fn a_flag_with_its_history_newest_first() {
        let (flag, report) = mapped(doc! {
            "key": "chat_v2", "description": "Threads", "state": "rollout", "pct": 25,
            "scope": {"plans": ["pro", "basic"], "tenantSlugs": []},
            "history": [
                {"at": DateTime::from_millis(1), "actor": "ada@dezky.example", "field": "pct", "from": 0, "to": 10},
                {"at": DateTime::from_millis(3), "actor": {"type": "operator", "id": "op-1"},
                 "changes": [{"field": "pct", "from": 10, "to": 25}], "note": "more"},
                {"at": DateTime::from_millis(2), "from": {"state": "off", "pct": 10}, "to": {"state": "rollout", "pct": 10}},
            ],
            "createdAt": DateTime::from_millis(0), "updatedAt": DateTime::from_millis(3),
        });
        let flag = flag.unwrap();
        assert_eq!((flag.state, flag.pct, flag.version), (FlagState::Rollout, 25, 1));
        assert_eq!(flag.scope.plans, ["basic", "pro"]);
        assert_eq!(
            json!(flag.history),
            json!([
                {"at": "1970-01-01T00:00:00.003Z", "actor": {"type": "operator", "id": "op-1"},
                 "changes": [{"field": "pct", "from": 10, "to": 25}], "note": "more"},
                {"at": "1970-01-01T00:00:00.002Z", "actor": {"type": "operator"},
                 "changes": [{"field": "state", "from": "off", "to": "rollout"}]},
                {"at": "1970-01-01T00:00:00.001Z", "actor": {"type": "operator", "email": "ada@dezky.example"},
                 "changes": [{"field": "pct", "from": 0, "to": 10}]},
            ])
        );
        assert!(report.changed.is_empty());
    }

    #[test]
    fn what_would_widen_a_flag_is_refused() {
        let (flag, _) = mapped(doc! {"key": "a", "state": "rollout", "scope": {"regions": ["eu"]}});
        assert!(flag.unwrap_err().starts_with("scope.regions is not an axis"));
        for (scope, says) in [
            (Bson::from(doc! {"plans": [{"key": "pro"}]}), "scope.plans is not a list of texts"),
            (
                doc! {"tenantSlugs": {"acme": true}}.into(),
                "scope.tenantSlugs is not a list of texts",
            ),
            ("pro".into(), "scope is not an object"),
        ] {
            let (flag, _) = mapped(doc! {"key": "a", "state": "rollout", "pct": 9, "scope": scope});
            assert!(flag.unwrap_err().starts_with(says));
        }
        let (flag, _) = mapped(doc! {"key": "a", "scope": {"plans": null, "environments": "test"}});
        assert_eq!(flag.unwrap().scope.environments, ["test"]);
        let (flag, report) = mapped(doc! {"key": "a", "state": "beta", "pct": 12.4});
        let flag = flag.unwrap();
        assert_eq!((flag.state, flag.pct), (FlagState::Off, 12));
        assert_eq!(json!(report.changed), json!({"pct": 1, "state": 1}));
        assert!(mapped(doc! {"key": "Not A Key"}).0.unwrap_err().starts_with("key must be"));
    }
}
