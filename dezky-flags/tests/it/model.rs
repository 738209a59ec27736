use dezky_core::{ActorType, ErrorKind, Timestamp};
use dezky_flags::{
    Change, ChangeActor, FieldChange, Flag, FlagOptions, FlagPatch, FlagState, NewFlag, Scope,
    ScopePatch,
};
use serde_json::{Value, json};

/// A flag as version 1 keeps it. Never change this text: it must be read for ever.
pub(crate) const VERSION_1: &str = r#"{"key":"chat.threads","description":"Threads in chat.","state":"rollout","pct":25,"scope":{"plans":["enterprise","pro"],"tenantSlugs":[],"partnerSlugs":["süd"],"environments":["production"]},"history":[{"at":"2026-01-02T00:00:00.000Z","actor":{"type":"operator","id":"u-7","email":"ana@dezky.test"},"changes":[{"field":"pct","from":0,"to":25},{"field":"scope.plans","from":[],"to":["enterprise","pro"]}],"note":"first quarter"},{"at":"2026-01-01T00:00:00.000Z","actor":{"type":"system"},"changes":[{"field":"state","from":null,"to":"off"}]}],"version":3,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-02T00:00:00.000Z"}"#;

fn time(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn field(field: &str, from: Value, to: Value) -> FieldChange {
    FieldChange { field: field.into(), from, to }
}

pub(crate) fn version_1() -> Flag {
    let operator = ChangeActor {
        kind: ActorType::Operator,
        id: Some("u-7".into()),
        email: Some("ana@dezky.test".into()),
    };
    let newest = Change {
        at: time("2026-01-02T00:00:00Z"),
        actor: operator,
        changes: vec![
            field("pct", json!(0), json!(25)),
            field("scope.plans", json!([]), json!(["enterprise", "pro"])),
        ],
        note: Some("first quarter".into()),
    };
    let oldest = Change {
        at: time("2026-01-01T00:00:00Z"),
        actor: ChangeActor { kind: ActorType::System, id: None, email: None },
        changes: vec![field("state", Value::Null, json!("off"))],
        note: None,
    };
    Flag {
        key: "chat.threads".into(),
        description: "Threads in chat.".into(),
        state: FlagState::Rollout,
        pct: 25,
        scope: Scope {
            plans: vec!["enterprise".into(), "pro".into()],
            tenant_slugs: vec![],
            partner_slugs: vec!["süd".into()],
            environments: vec!["production".into()],
        },
        options: FlagOptions::default(),
        history: vec![newest, oldest],
        version: 3,
        created_at: time("2026-01-01T00:00:00Z"),
        updated_at: time("2026-01-02T00:00:00Z"),
    }
}

#[test]
fn the_json_form_is_that_of_version_1() {
    assert_eq!(serde_json::from_str::<Flag>(VERSION_1).unwrap(), version_1());
    assert_eq!(serde_json::to_string(&version_1()).unwrap(), VERSION_1);
}

#[test]
fn an_axis_that_is_not_known_is_no_wider_flag() {
    let text = VERSION_1.replace(r#""tenantSlugs":[]"#, r#""regions":["eu"]"#);
    assert!(serde_json::from_str::<Flag>(&text).is_err());
}

#[test]
fn what_is_out_of_bounds_is_named_with_its_bound() {
    let long = |n| "x".repeat(n);
    let values = |n: usize| (0..n).map(|i| format!("v{i}")).collect::<Vec<_>>();
    let pct = "pct must be a whole number from 0 to 100";
    let key = "key must be 1 to 64 lower-case letters, digits, _ . and -, the first one a letter or digit";
    let value = "must be text of 1 to 128 bytes without control characters";
    for (body, message) in [
        (json!({"key": "a", "pct": -1}), pct.to_owned()),
        (json!({"key": "a", "pct": 101}), pct.to_owned()),
        (json!({"key": "a", "pct": 256}), pct.to_owned()),
        (json!({"key": "a", "pct": 12.5}), pct.to_owned()),
        (json!({"key": "a", "pct": 25.0}), pct.to_owned()),
        (json!({"key": "a", "pct": "25"}), pct.to_owned()),
        (json!({"key": "a", "pct": null}), pct.to_owned()),
        (json!({"key": "a", "state": "ON"}), "state must be one of off on targeted rollout".into()),
        (json!({"key": "a", "state": 1}), "state must be one of off on targeted rollout".into()),
        (json!({}), key.to_owned()),
        (json!({"key": ""}), key.to_owned()),
        (json!({"key": "A"}), key.to_owned()),
        (json!({"key": ".a"}), key.to_owned()),
        (json!({"key": "a b"}), key.to_owned()),
        (json!({"key": "ä"}), key.to_owned()),
        (json!({"key": long(65)}), key.to_owned()),
        (json!({"key": 7}), "key must be text, or absent".into()),
        (
            json!({"key": "a", "description": long(1_001)}),
            "description must be at most 1000 bytes, without control characters but line feeds and tabs".into(),
        ),
        (
            json!({"key": "a", "description": "a\0"}),
            "description must be at most 1000 bytes, without control characters but line feeds and tabs".into(),
        ),
        (json!({"key": "a", "description": null}), "description must be text, or absent".into()),
        (json!({"key": "a", "scope": []}), "scope must be a JSON object".into()),
        (
            json!({"key": "a", "scope": {"plans": "pro"}}),
            "scope.plans must be a list of texts, or absent".into(),
        ),
        (json!({"key": "a", "scope": {"plans": ["pro", ""]}}), format!("scope.plans[1] {value}")),
        (
            json!({"key": "a", "scope": {"tenantSlugs": [7]}}),
            format!("scope.tenantSlugs[0] {value}"),
        ),
        (
            json!({"key": "a", "scope": {"partnerSlugs": ["a\nb"]}}),
            format!("scope.partnerSlugs[0] {value}"),
        ),
        (
            json!({"key": "a", "scope": {"environments": [long(129)]}}),
            format!("scope.environments[0] {value}"),
        ),
        (
            json!({"key": "a", "scope": {"plans": values(1_001)}}),
            "scope.plans must be at most 1000 values".into(),
        ),
        (
            json!({"key": "a", "scope": {"regions": []}}),
            "scope.regions is not a field: use plans, tenantSlugs, partnerSlugs, environments"
                .into(),
        ),
        (
            json!({"key": "a", "version": 1}),
            "version is not a field: use key, description, state, pct, scope".into(),
        ),
        (json!([]), "the body must be a JSON object".into()),
    ] {
        let error = NewFlag::from_json(&body).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::FieldInvalid, message));
    }
    let patch = |body: Value| FlagPatch::from_json(&body).unwrap_err().to_string();
    assert_eq!(patch(json!({"pct": 101})), pct);
    for note in [long(1_001), "a\0".into(), "\u{1b}[2J".into(), "a\r".into()] {
        let said = patch(json!({"note": note}));
        assert!(said.starts_with("note must be at most 1000 bytes, without control"), "{said}");
    }
    assert!(patch(json!({"key": "b"})).starts_with("key is not a field: use description"));
    let read = serde_json::from_str::<NewFlag>(r#"{"key":"a","pct":12.5}"#).unwrap_err();
    assert!(read.to_string().starts_with(pct), "serde says it too: {read}");
}

#[test]
fn the_largest_and_smallest_are_taken() {
    for body in [
        json!({"key": "0"}),
        json!({"key": format!("a{}", "_.-".repeat(21)), "pct": 100, "description": "x".repeat(1_000)}),
        json!({"key": "a", "pct": 0, "scope": {"plans": (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>()}}),
        json!({"key": "a", "scope": {"tenantSlugs": ["x".repeat(128)]}}),
        json!({"key": "a", "description": "two\nlines,\ta tab, ü"}),
    ] {
        let new = NewFlag::from_json(&body).unwrap();
        Flag::new(new, Timestamp::MIN).unwrap();
    }
}

#[test]
fn a_scope_is_a_set() {
    let new = NewFlag::from_json(&json!({"key": "a", "scope": {"plans": ["pro", "free", "pro"]}}));
    let flag = Flag::new(new.unwrap(), Timestamp::MIN).unwrap();
    assert_eq!(flag.scope.plans, ["free", "pro"]);
    let patch = FlagPatch::from_json(&json!({"scope": {"plans": ["pro", "free"]}})).unwrap();
    assert_eq!(flag.patched(&patch).unwrap(), flag, "another order is no change");
}

#[test]
fn a_patch_leaves_what_it_does_not_name() {
    let flag = version_1();
    assert_eq!(flag.patched(&FlagPatch::default()).unwrap(), flag);
    let scope = ScopePatch { plans: Some(vec![]), ..ScopePatch::default() };
    let patched = flag.patched(&FlagPatch { scope, ..FlagPatch::default() }).unwrap();
    assert!(patched.scope.plans.is_empty());
    assert_eq!(Flag { scope: flag.scope.clone(), ..patched }, flag);
}
