use dezky_core::{ActorType, ErrorKind, Timestamp};
use dezky_flags::{
    Change, ChangeActor, FieldChange, Flag, FlagOptions, FlagPatch, FlagState, NewFlag, Scope,
    ScopePatch,
};
use serde_json::{Value, json};

/// A flag as stored by version 1. Never change this text: it must stay readable forever.
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
fn an_unknown_axis_does_not_widen_a_flag() {
    let text = VERSION_1.replace(r#""tenantSlugs":[]"#, r#""regions":["eu"]"#);
    assert!(serde_json::from_str::<Flag>(&text).is_err());
}

#[test]
fn errors_name_the_field_and_its_bound() {
    let long = |n| "x".repeat(n);
    let values = |n: usize| (0..n).map(|i| format!("v{i}")).collect::<Vec<_>>();
    let pct = "pct must be a whole number from 0 to 100 (hundredths go into options.pctHundredths)";
    let key = "key must be 1 to 64 lower-case letters, digits, _, . or -, starting with a letter or a digit";
    let value = "must be a string of 1 to 128 bytes without control characters";
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
        (json!({"key": 7}), "key must be a string, or absent".into()),
        (
            json!({"key": "a", "description": long(1_001)}),
            "description must be at most 1000 bytes without control characters other than line feeds and tabs".into(),
        ),
        (
            json!({"key": "a", "description": "a\0"}),
            "description must be at most 1000 bytes without control characters other than line feeds and tabs".into(),
        ),
        (json!({"key": "a", "description": null}), "description must be a string, or absent".into()),
        (json!({"key": "a", "scope": []}), "scope must be a JSON object".into()),
        (
            json!({"key": "a", "scope": {"plans": "pro"}}),
            "scope.plans must be a list of strings, or absent".into(),
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
            "version is not a field: use key, description, state, pct, scope, options".into(),
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
        assert!(said.starts_with("note must be at most 1000 bytes without control"), "{said}");
    }
    assert!(patch(json!({"key": "b"})).starts_with("key is not a field: use description"));
    let read = serde_json::from_str::<NewFlag>(r#"{"key":"a","pct":12.5}"#).unwrap_err();
    assert!(read.to_string().starts_with(pct), "serde says it too: {read}");
}

#[test]
fn values_at_the_bounds_are_accepted() {
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
    assert_eq!(flag.patched(&patch).unwrap(), flag, "another order is not a change");
}

#[test]
fn a_patch_keeps_fields_that_it_does_not_name() {
    let flag = version_1();
    assert_eq!(flag.patched(&FlagPatch::default()).unwrap(), flag);
    let scope = ScopePatch { plans: Some(vec![]), ..ScopePatch::default() };
    let patched = flag.patched(&FlagPatch { scope, ..FlagPatch::default() }).unwrap();
    assert!(patched.scope.plans.is_empty());
    assert_eq!(Flag { scope: flag.scope.clone(), ..patched }, flag);
}

fn option_patch(body: &Value) -> FlagPatch {
    FlagPatch::from_json(&json!({ "options": body })).unwrap()
}

#[test]
fn options_out_of_bounds_are_named_with_their_bound() {
    let seed = "options.seed must be a string of 1 to 64 bytes without control characters";
    let hundredths =
        "options.pctHundredths must be a whole number from 0 to 99, and 0 if pct is 100";
    let time = "options.expiresAt must be a time such as 2027-01-31T00:00:00Z, or null";
    let active = "options.requireActiveTenant must be true or false";
    for (options, message) in [
        (json!({"seed": ""}), seed),
        (json!({"seed": "s".repeat(65)}), seed),
        (json!({"seed": "a\n"}), seed),
        (json!({"seed": 7}), seed),
        (json!({"pctHundredths": 100}), hundredths),
        (json!({"pctHundredths": -1}), hundredths),
        (json!({"pctHundredths": 0.5}), hundredths),
        (json!({"pctHundredths": "5"}), hundredths),
        (json!({"pctHundredths": null}), hundredths),
        (json!({"requireActiveTenant": "yes"}), active),
        (json!({"requireActiveTenant": null}), active),
        (json!({"expiresAt": "tomorrow"}), time),
        (json!({"expiresAt": 1}), time),
        (json!([]), "options must be a JSON object"),
        (json!(null), "options must be a JSON object"),
        (
            json!({"colour": 1}),
            "options.colour is not a field: use seed, pctHundredths, requireActiveTenant, expiresAt",
        ),
    ] {
        let patch = FlagPatch::from_json(&json!({ "options": options })).unwrap_err();
        assert_eq!((patch.kind(), patch.to_string().as_str()), (ErrorKind::FieldInvalid, message));
        let new = NewFlag::from_json(&json!({"key": "a", "options": options})).unwrap_err();
        assert_eq!(new.to_string(), message);
    }
    let whole = json!({"key": "a", "pct": 100, "options": {"pctHundredths": 1}});
    assert_eq!(NewFlag::from_json(&whole).unwrap_err().to_string(), hundredths);
    let full = Flag { pct: 100, ..version_1() };
    let refused = full.patched(&option_patch(&json!({"pctHundredths": 1}))).unwrap_err();
    assert_eq!(refused.to_string(), hundredths);
    for options in [
        json!({"seed": "s".repeat(64), "pctHundredths": 99}),
        json!({"seed": "ü", "requireActiveTenant": true, "expiresAt": "2027-01-31T00:00:00Z"}),
    ] {
        let new = NewFlag::from_json(&json!({"key": "a", "pct": 99, "options": options})).unwrap();
        Flag::new(new, Timestamp::MIN).unwrap();
    }
}

#[test]
fn options_change_one_by_one_and_null_removes() {
    let all = json!({
        "seed": "s", "pctHundredths": 50, "requireActiveTenant": true,
        "expiresAt": "2027-01-31T00:00:00.000Z",
    });
    let flag = version_1().patched(&option_patch(&all)).unwrap();
    assert_eq!(serde_json::to_value(&flag).unwrap()["options"], all);
    let less = flag.patched(&option_patch(&json!({"seed": null}))).unwrap();
    assert_eq!(FlagOptions { seed: None, ..flag.options.clone() }, less.options);
    assert_eq!(less.bucket_key(), "chat.threads");
    let never = flag.patched(&option_patch(&json!({"expiresAt": null}))).unwrap();
    assert_eq!(FlagOptions { expires_at: None, ..flag.options.clone() }, never.options);
    assert_eq!(flag.patched(&option_patch(&json!({}))).unwrap(), flag);
    let none = json!({
        "seed": null, "pctHundredths": 0, "requireActiveTenant": false, "expiresAt": null,
    });
    let none = flag.patched(&option_patch(&none)).unwrap();
    assert_eq!(serde_json::to_string(&none).unwrap(), VERSION_1, "as if it never had any");
}

#[test]
fn a_percentage_without_hundredths_has_none() {
    let flag = version_1().patched(&option_patch(&json!({"pctHundredths": 50}))).unwrap();
    assert_eq!(flag.threshold(), 2_550);
    let of = |body: Value| flag.patched(&FlagPatch::from_json(&body).unwrap()).unwrap();
    assert_eq!(of(json!({"description": "other"})).threshold(), 2_550);
    assert_eq!(of(json!({"pct": 25})).threshold(), 2_500);
    assert_eq!(of(json!({"pct": 100})).threshold(), 10_000);
    assert_eq!(of(json!({"pct": 0, "options": {"pctHundredths": 5}})).threshold(), 5);
    let killed = of(json!({"state": "off", "note": "kill-switch"}));
    assert_eq!((killed.state, killed.threshold()), (FlagState::Off, 0));
}
