//! Mappings and bodies.

use dezky_core::testkit::ManualRuntime;
use dezky_core::{Actor, ActorType, ErrorKind, Outcome, PulledEvent, TenantHint, Timestamp};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn config(declared: Json) -> MappingConfig {
    serde_json::from_value(declared).unwrap()
}

fn mapping(declared: Json) -> Mapping {
    Mapping::compile("shop", &config(declared)).unwrap()
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn now() -> Timestamp {
    at("2026-11-21T20:12:21.123Z")
}

fn decoded(declared: Json, body: &str) -> DecodedBody {
    decode(&mapping(declared), body.as_bytes(), now()).unwrap()
}

/// The event of a body that is a single object.
#[expect(clippy::needless_pass_by_value, reason = "objects are written where they are used")]
fn event(declared: Json, object: Json) -> PulledEvent {
    let mut decoded = decoded(declared, &object.to_string());
    assert!(decoded.quarantine.is_empty(), "{decoded:?}");
    assert_eq!(decoded.events.len(), 1);
    decoded.events.remove(0)
}

fn annotation(pulled: &PulledEvent, name: &str) -> Json {
    pulled.event.metadata.annotation(name).cloned().unwrap_or_default()
}

fn reasons(decoded: &DecodedBody) -> Vec<&str> {
    decoded.quarantine.iter().map(|item| &*item.reason).collect()
}

#[test]
fn every_field() {
    let pulled = event(
        json!({
            "id": "/uuid", "at": "/time", "action": "/kind", "outcome": "/status",
            "outcomes": {"200": "success", "403": "denied"},
            "actor": {"type": "operator", "id": "/who/id", "email": "/who/mail", "ip": "/peer"},
            "resource": {"type": "order", "id": "/order/no", "name": "/order/title"},
            "tenant": "/shop", "tenant_domain": "/who/mail", "partner": "/reseller",
        }),
        json!({
            "uuid": "e-1", "time": "2026-08-17T12:00:00.5+02:00", "kind": "OrderRefunded",
            "status": 403, "who": {"id": 7, "mail": "Alice@Example.com"},
            "peer": "[2001:db8::7]:443", "order": {"no": 18_446_744_073_709_551_615_u64, "title": "x"},
            "shop": "acme", "reseller": "north", "_dezky": {"tenantBy": "forged"},
        }),
    );
    let event = &pulled.event;
    assert_eq!(event.external_id.as_deref(), Some("e-1"));
    assert_eq!(event.at, Some(at("2026-08-17T10:00:00.500Z")));
    assert_eq!((&*event.action, event.outcome), ("shop.order_refunded", Outcome::Denied));
    let actor = Actor::user("7").with_email("Alice@Example.com").with_ip("2001:db8::7");
    assert_eq!(event.actor, Actor { kind: ActorType::Operator, ..actor });
    assert_eq!(event.resource_type.as_deref(), Some("order"));
    assert_eq!(event.resource_id.as_deref(), Some("18446744073709551615"));
    assert_eq!(event.resource_name.as_deref(), Some("x"));
    assert_eq!(event.partner_slug.as_deref(), Some("north"));
    assert_eq!((&*event.source, &event.tenant_slug), ("shop", &None));
    assert_eq!(
        pulled.tenant,
        [
            TenantHint::Slug { slug: "acme".into(), via: "mapping" },
            TenantHint::Domain("example.com".into()),
        ]
    );
    assert_eq!(annotation(&pulled, "rawAction"), "OrderRefunded");
    let metadata = pulled.event.metadata.into_metadata().to_value();
    assert_eq!(metadata["order"]["no"], "18446744073709551615");
    assert_eq!(
        metadata["_dezky"],
        json!({"rawAction": "OrderRefunded", "source": {"tenantBy": "forged"}})
    );
}

#[test]
fn what_is_missing() {
    let declared = json!({
        "id": "/id", "at": "/at", "action": "/a", "outcome": "/o",
        "actor": {"type": "/t", "id": "/u", "ip": "/ip"}, "tenant": "/x", "tenant_domain": "/d",
    });
    let bare = event(declared.clone(), json!({"a": "x"}));
    assert_eq!(bare.event.at, Some(now()));
    assert_eq!(annotation(&bare, "timeSource"), "received");
    assert_eq!(annotation(&bare, "timeProblem"), "absent");
    assert_eq!(annotation(&bare, "rawAt"), Json::Null);
    assert_eq!((bare.event.outcome, bare.event.actor.kind), (Outcome::Success, ActorType::System));
    assert!(bare.event.external_id.unwrap().starts_with("body1:"));
    assert!(bare.tenant.is_empty());

    let odd = event(
        declared,
        json!({
            "id": "i".repeat(513), "at": "yesterday", "a": "x", "o": "so-so", "t": "robot", "u": "u-1",
            "ip": "nowhere", "x": "s".repeat(64), "d": "not a domain",
        }),
    );
    assert!(odd.event.external_id.as_ref().unwrap().starts_with("body1:"));
    assert_eq!(annotation(&odd, "rawId"), "i".repeat(512));
    assert_eq!(annotation(&odd, "rawAt"), "yesterday");
    assert_eq!(annotation(&odd, "timeProblem"), "unreadable");
    assert_eq!(annotation(&odd, "rawOutcome"), "so-so");
    assert_eq!(annotation(&odd, "rawActorType"), "robot");
    assert_eq!((odd.event.outcome, odd.event.actor.kind), (Outcome::Failure, ActorType::User));
    assert!(odd.tenant.is_empty());
}

#[test]
fn a_kind_needs_a_thing_where_one_is_declared() {
    let kind = |declared: Json, object: Json| event(declared, object).event.resource_type;
    let order = || json!({"action": "x", "resource": {"type": "order", "name": "/title"}});
    assert_eq!(kind(order(), json!({"title": "t"})).as_deref(), Some("order"));
    assert_eq!(kind(order(), json!({})), None);
    let alone = json!({"action": "x", "resource": {"type": "order"}});
    assert_eq!(kind(alone, json!({})).as_deref(), Some("order"));
}

#[test]
fn times() {
    for (format, spelled, expected) in [
        ("seconds", json!(1_786_960_800), Some("2026-08-17T10:00:00Z")),
        ("seconds", json!("1786960800.123"), Some("2026-08-17T10:00:00.123Z")),
        ("seconds", json!(1_786_960_800.999_9), Some("2026-08-17T10:00:00.999Z")),
        ("seconds", json!(-1), None),
        ("unix_s", json!(1_786_960_800), Some("2026-08-17T10:00:00Z")),
        ("microseconds", json!(1_786_960_800_500_000_i64), Some("2026-08-17T10:00:00.500Z")),
        ("unix_ns", json!("1786960800500000000"), Some("2026-08-17T10:00:00.500Z")),
        ("utc", json!("2026-08-17 10:00:00"), Some("2026-08-17T10:00:00Z")),
        ("auto", json!("2026-08-17 10:00:00"), None),
        ("auto", json!("2026-08-17T12:00:00,500+0200"), Some("2026-08-17T10:00:00.500Z")),
        ("auto", json!("2026-08-17T03:00:00-0700"), Some("2026-08-17T10:00:00Z")),
        ("auto", json!(1_786_960_800), Some("2026-08-17T10:00:00Z")),
        ("auto", json!("1786960800500"), Some("2026-08-17T10:00:00.500Z")),
        ("milliseconds", json!(1_786_960_800_500_i64), Some("2026-08-17T10:00:00.500Z")),
        ("milliseconds", json!(1.786_960_800_5e12), Some("2026-08-17T10:00:00.500Z")),
        ("rfc3339", json!("2026-08-17T10:00:00Z"), Some("2026-08-17T10:00:00Z")),
        ("rfc3339", json!(1_786_960_800), None),
        ("seconds", json!(i64::MAX), None),
        ("seconds", json!("inf"), None),
        ("seconds", json!("NaN"), None),
        ("seconds", json!(1e300), None),
        ("milliseconds", json!(null), None),
    ] {
        let declared = json!({"action": "x", "at": "/t", "at_format": format});
        let pulled = event(declared, json!({"t": spelled}));
        let expected = expected.map_or_else(now, at);
        assert_eq!(pulled.event.at, Some(expected), "{format} {spelled}");
        assert_eq!(pulled.event.time_problem().is_some(), expected == now(), "{spelled}");
    }
}

#[test]
fn a_time_that_is_years_off_is_not_believed() {
    for (format, spelled, problem) in [
        ("auto", json!("9999-12-31T23:59:59Z"), "ahead"),
        ("auto", json!("0001-01-01T00:00:00Z"), "too_old"),
        ("seconds", json!("-62135596800"), "too_old"),
        // Seconds read as milliseconds, and vice versa.
        ("milliseconds", json!("1786960800"), "too_old"),
        ("seconds", json!("1786960800500"), "unreadable"),
        ("seconds", json!("178696080050"), "ahead"),
    ] {
        let declared = json!({"action": "x", "at": "/t", "at_format": format});
        let pulled = event(declared, json!({"t": spelled}));
        assert_eq!(pulled.event.at, Some(now()), "{spelled}");
        assert_eq!(annotation(&pulled, "timeProblem"), problem, "{spelled}");
        assert_eq!(annotation(&pulled, "rawAt"), spelled);
    }
}

#[test]
fn what_is_not_known_to_have_succeeded_is_not_a_success() {
    let declared = || json!({"action": "x", "outcome": "/o", "outcomes": {"5xx": "denied", "Teapot": "success", "404": "success"}});
    let outcome = |declared: Json, raw: Json| {
        let pulled = event(declared, json!({"o": raw}));
        let noted = annotation(&pulled, "rawOutcome");
        (pulled.event.outcome, noted)
    };
    for (raw, expected) in [
        (json!(404), Outcome::Success),
        (json!(410), Outcome::Failure),
        (json!("403"), Outcome::Denied),
        (json!(503), Outcome::Denied),
        (json!("SKIPPED"), Outcome::Failure),
        (json!("TEAPOT"), Outcome::Success),
        (json!(true), Outcome::Success),
        (json!(false), Outcome::Failure),
        (json!("Succeeded"), Outcome::Success),
    ] {
        assert_eq!(outcome(declared(), raw.clone()), (expected, Json::Null), "{raw}");
    }
    assert_eq!(outcome(declared(), json!("so-so")), (Outcome::Failure, json!("so-so")));
    let mut lenient = declared();
    lenient["outcome_default"] = json!("success");
    assert_eq!(outcome(lenient, json!("so-so")), (Outcome::Success, json!("so-so")));
    // An absent outcome counts as success.
    assert_eq!(outcome(declared(), json!(null)), (Outcome::Success, Json::Null));
}

#[test]
fn identifiers_are_kept_and_content_keys_stay_what_they_were() {
    let object = json!({
        "a": "x", "hashed_token": "h", "ctx": {"externalSessionId": "e", "token": "id-7"},
        "url": "https://u:S3@x/?page_token=2", "jwt": "S3",
    });
    let said = |declared: Json| {
        let pulled = event(declared, object.clone());
        let said: Json = serde_json::from_str(pulled.event.metadata.source().unwrap()).unwrap();
        (said, pulled.event.external_id.unwrap())
    };
    let (plain, key) = said(json!({"action": "/a"}));
    assert_eq!(
        plain,
        json!({
            "a": "x", "hashed_token": "h",
            "ctx": {"externalSessionId": "e", "token": "[redacted]"},
            "url": "https://u:[redacted]@x/?page_token=[redacted]", "jwt": "[redacted]",
        })
    );
    let kept =
        json!({"action": "/a", "keep": ["/ctx/token", "/url"], "actor": {"id": "/ctx/token"}});
    let (kept, again) = said(kept);
    assert_eq!((&kept["ctx"]["token"], &kept["url"]), (&json!("id-7"), &object["url"]));
    // The first version computed the key from the redacted text.
    let first = r#"{"a":"x","ctx":{"externalSessionId":"[redacted]","token":"[redacted]"},"hashed_token":"[redacted]","jwt":"S3","url":"https://u:S3@x/?page_token=[redacted]"}"#;
    let expected = ContentKeys::new("body1", "shop").key(&[first]);
    assert_eq!((key, again), (expected.clone(), expected));
}

#[test]
fn actions() {
    let renamed = json!({"action": "/a", "actions": {"LOGIN OK": "user.login"}, "skip": ["ping"]});
    let action =
        |declared: &Json, raw: &str| event(declared.clone(), json!({"a": raw})).event.action;
    assert_eq!(action(&renamed, "LOGIN OK"), "shop.user.login");
    assert_eq!(action(&renamed, "login ok"), "shop.login_ok");
    let none = json!({"action": "/a", "action_prefix": ""});
    assert_eq!(action(&none, "tenant.suspended"), "tenant.suspended");
    let other = json!({"action": "/a", "action_prefix": "my-shop.v2"});
    assert_eq!(action(&other, "Paid"), "my-shop.v2.paid");
    let fixed = json!({"action": "request"});
    assert_eq!(action(&fixed, "whatever"), "shop.request");

    let some = decoded(renamed, r#"[{"a":"ping"},{"a":"pong"},{"a":"ping"}]"#);
    assert_eq!((some.skipped, some.events.len()), (2, 1));
}

#[test]
fn bodies() {
    let declared = || json!({"action": "/a"});
    for (body, events, odd) in [
        (r#"{"a":"x"}"#, 1, &[][..]),
        (r#"[{"a":"x"},{"a":"y"}]"#, 2, &[]),
        (r#"{"events":[{"a":"x"}],"a":"z"}"#, 1, &[]),
        (r#"{"events":[{"a":"x"}],"events":[{"a":"y"}]}"#, 2, &[]),
        (r#"{"events":7,"a":"z"}"#, 1, &[]),
        ("\u{feff}[]", 0, &[]),
        (r#"{"events":[]}"#, 0, &[]),
        (
            "[7,{},{\"a\":{}},{\"a\":\"\"},{\"a\":\"-\"},[{\"a\":\"x\"}],{\"a\":\"x\"}]",
            1,
            &["not_an_object", "no_action", "no_action", "no_action", "no_action", "not_an_object"],
        ),
        // Several values, separated by newlines or adjacent.
        ("{\"a\":\"x\"}\n{\"a\":\"y\"}\r\n\n", 2, &[]),
        (r#"{"a":"x"}{"a":"y"}"#, 2, &[]),
        (r#"[{"a":"x"},7] {"events":[{"a":"y"}]}"#, 2, &["not_an_object"]),
    ] {
        let decoded = decoded(declared(), body);
        assert_eq!((decoded.events.len(), &*reasons(&decoded)), (events, odd), "{body}");
    }
    let inside = || json!({"action": "/a", "events": "/data/0/list"});
    for (body, events, odd) in [
        (r#"{"data":[{"list":[{"a":"x"}]}]}"#, 1, &[][..]),
        (r#"{"data":[{"list":{"a":"x"}}]}"#, 1, &[]),
        (r#"{"data":[{"list":[]}]}"#, 0, &[]),
        (r#"{"events":[{"a":"x"}]}"#, 0, &["no_events"]),
        (r#"{"data":[{"list":7}]}"#, 0, &["no_events"]),
        (r#"{"data":[{"list":{"a":"x"}}]}{"no":1}"#, 1, &["no_events"]),
    ] {
        let decoded = decoded(inside(), body);
        assert_eq!((decoded.events.len(), &*reasons(&decoded)), (events, odd), "{body}");
    }
}

#[test]
fn what_could_not_be_kept_is_refused() {
    let declared = || json!({"action": "/a", "events": "/events"});
    let refused = |body: &[u8]| decode(&mapping(declared()), body, now()).unwrap_err();
    for (body, words) in [
        (&b""[..], "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON at line 1 column 1"),
        (b"event=paid&token=S3", "not JSON"),
        (b"{\"a\":\"x\"}\nplain text\n", "line 2"),
        (b"{\"a\":\"x\"},{\"a\":\"y\"}", "not JSON"),
        (b"null", "objects"),
        (b"1 2 3", "objects"),
        (b"{\"a\":\"x\"} 7", "objects"),
        (b"\x1f\x8b\x08\0", "Content-Encoding: gzip"),
        (b"\xff\xfe{\0}\0", "not JSON"),
    ] {
        let error = refused(body);
        assert_eq!(error.kind(), ErrorKind::BodyInvalid, "{body:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("S3"), "{error}");
    }
    // The quarantine would truncate it, so it could never be decoded again.
    let large = "x".repeat(70_000);
    for body in [
        format!(r#"{{"other":"{large}"}}"#),
        format!(r#"{{"events":[{{"a":"x"}},{{"no":"{large}"}}]}}"#),
    ] {
        assert_eq!(refused(body.as_bytes()).kind(), ErrorKind::TooLarge);
    }
    let fits = format!(r#"{{"other":"{}"}}"#, "x".repeat(65_000));
    let kept = decode(&mapping(declared()), fits.as_bytes(), now()).unwrap().quarantine.remove(0);
    assert_eq!(kept.raw, fits.as_bytes());
}

#[test]
fn all_of_many_odd_elements_are_kept() {
    let odd = |n: usize| json!({"no": n, "text": "x".repeat(n % 3_000)});
    let list: Vec<_> = (0..1_000).map(odd).collect();
    let items = decoded(json!({"action": "/a"}), &json!(list).to_string()).quarantine;
    let mended = mapping(json!({"action": "/no", "id": "/no"}));
    let again: Vec<_> = items.iter().flat_map(|item| redecode(&mended, item).unwrap()).collect();
    assert_eq!(again.len(), 1_000);
    assert!(items.len() < 140, "{}", items.len());
}

#[test]
fn several_places_identify_an_event_together() {
    let id = |object: Json| {
        let declared = json!({"action": "/a", "id": ["/auditID", "/stage"]});
        event(declared, object).event.external_id.unwrap()
    };
    assert_eq!(id(json!({"a": "x", "auditID": "u-1", "stage": "Panic"})), "u-1/Panic");
    assert_eq!(id(json!({"a": "x", "auditID": "a/b", "stage": "~"})), "a~1b/~0");
    assert_ne!(
        id(json!({"a": "x", "auditID": "a/b", "stage": "c"})),
        id(json!({"a": "x", "auditID": "a", "stage": "b/c"}))
    );
    assert!(id(json!({"a": "x", "auditID": "u-1"})).starts_with("body1:"), "one is not there");
    let single = event(json!({"action": "/a", "id": ["/i"]}), json!({"a": "x", "i": "a/b~"}));
    assert_eq!(single.event.external_id.as_deref(), Some("a/b~"), "as it is");
    // A sender can't claim an id in the form of dezky's own keys.
    let claimed = event(json!({"action": "/a", "id": "/i"}), json!({"a": "x", "i": "line2:0"}));
    assert!(claimed.event.external_id.as_deref().unwrap().starts_with("body1:"));
    let claimed = event(json!({"action": "/a", "id": "/i"}), json!({"a": "x", "i": "line1:0"}));
    assert!(claimed.event.external_id.as_ref().unwrap().starts_with("body1:"));
    assert_eq!(annotation(&claimed, "rawId"), "line1:0");
}

#[test]
fn objects_are_passed_over_by_any_field() {
    let some = decoded(
        json!({
            "action": "/verb",
            "skip": ["watch", {"at": "/stage", "in": ["RequestReceived"]},
                     {"at": "/level", "not_in": ["Request", "RequestResponse"]}, {"at": "/ok", "in": ["true"]}],
        }),
        r#"[{"verb":"get","stage":"RequestReceived"},{"verb":"get","stage":"ResponseComplete"},
            {"verb":"watch"},{"verb":"get","level":"Metadata"},{"verb":"get","level":"Request"},
            {"verb":"get"},{"stage":"RequestReceived"},{"verb":"get","ok":true}]"#,
    );
    assert_eq!((some.events.len(), some.skipped, some.quarantine.len()), (3, 5, 0));
}

#[test]
fn a_bad_element_leaves_the_others_as_they_are() {
    let body = b"[{\"a\":\"x\",\"n\":1e999,\"s\":\"\\ud83d\"},{\"a\":\"y\",\"s\":\"\xff\"}]";
    let decoded = decode(&mapping(json!({"action": "/a"})), body, now()).unwrap();
    assert_eq!((decoded.events.len(), decoded.quarantine.len()), (2, 0));
    let deep = format!(r#"[{{"a":"x","d":{}{}}}]"#, "[".repeat(100_000), "]".repeat(100_000));
    let decoded = decode(&mapping(json!({"action": "/a"})), deep.as_bytes(), now()).unwrap();
    let metadata = decoded.events[0].event.clone().metadata.into_metadata().to_value();
    assert_eq!(metadata["_dezky"]["truncated"]["bytes"], deep.len() - 2);
}

#[test]
fn too_many() {
    let body = |count: usize, element: &str| format!("[{}]", vec![element; count].join(","));
    let mapping = mapping(json!({"action": "x"}));
    let decode = |body: String| decode(&mapping, body.as_bytes(), now());
    assert_eq!(decode(body(MAX_BODY_EVENTS, "{}")).unwrap().events.len(), MAX_BODY_EVENTS);
    let error = decode(body(MAX_BODY_EVENTS + 1, "{}")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("10000"), "{error}");
    let twice = format!(r#"{{"events":{0},"events":{0}}}"#, body(MAX_BODY_EVENTS, "1"));
    assert_eq!(decode(twice).unwrap_err().kind(), ErrorKind::TooLarge);
    let odd = decode(body(1_000, "1")).unwrap().quarantine;
    assert_eq!((odd.len(), &*odd[100].reason), (101, "too_many_odd"));
    let lines = decode("[]\n".repeat(MAX_BODY_EVENTS + 1)).unwrap_err();
    assert_eq!(lines.kind(), ErrorKind::TooLarge);
    // Events are counted while parsing: anything after the limit is not read.
    for one in ["{}", "[{}]", r#"{"events":[{}]}"#] {
        let unread = one.repeat(MAX_BODY_EVENTS + 1) + "}";
        assert_eq!(decode(unread).unwrap_err().kind(), ErrorKind::TooLarge, "{one}");
    }
    for many in [
        body(5_000_000, "{}"),
        format!(r#"{{"a":1,"\u0065vents":{}}}"#, body(5_000_000, "{}")),
        format!("{0}{0}", body(MAX_BODY_EVENTS / 2 + 1, "{}")),
    ] {
        assert_eq!(decode(many).unwrap_err().kind(), ErrorKind::TooLarge);
    }
    let lines = decode("{}\n".repeat(MAX_BODY_EVENTS)).unwrap();
    assert_eq!(lines.events.len(), MAX_BODY_EVENTS);
}

#[test]
fn content_keys_repeat_at_a_retry() {
    let keys = |source: &str, body: &str| -> Vec<String> {
        let config = config(json!({"action": "/a", "redact": ["/phone"]}));
        let mapping = Mapping::compile(source, &config).unwrap();
        let events = decode(&mapping, body.as_bytes(), now()).unwrap().events;
        events.into_iter().map(|pulled| pulled.event.external_id.unwrap()).collect()
    };
    let first = keys("shop", r#"[{"a":"x","n":1},{"a":"x","n":2},{"a":"x","n":1}]"#);
    assert_eq!(
        first.iter().collect::<std::collections::HashSet<_>>().len(),
        3,
        "equal ones are two"
    );
    // With another spelling, and among other events.
    let again = keys("shop", r#"{"events":[{"n":1.0,"\u0061":"x"},{"a":"y"},{"n":1,"a":"x"}]}"#);
    assert_eq!((&again[0], &again[2]), (&first[0], &first[2]));
    assert_ne!(keys("shop2", r#"[{"a":"x","n":1}]"#)[0], first[0], "the source is its scope");
    // Hidden values are not part of the keys: a hash would allow guessing them.
    assert_eq!(
        keys("shop", r#"{"a":"x","phone":"1","password":"p"}"#),
        keys("shop", r#"{"a":"x","phone":"2","password":"q"}"#)
    );
    // The frozen form.
    assert_eq!(keys("shop", r#"{"a":"x"}"#), [VECTOR]);
}

/// `body1:` and the SHA-256 of `shop`, 00, `{"a":"x"}`, 00, `0`.
const VECTOR: &str = "body1:3bde5276c3484ce98d0eaf0053679a675ce9fd6687624e2be976aec3906b9217";

#[test]
fn secrets_are_nowhere() {
    let declared = json!({"action": "/a", "redact": ["/note/pin"], "events": "/list"});
    let body = r#"{"list":[
        {"a":"x","password":"S3","note":{"pin":"S3","pin":5},"url":"/?token=S3"},
        {"no":"action","note":{"pin":"S3"},"apiKey":"S3"}, ["S", {"secret":"S3"}]]}"#;
    let decoded = decoded(declared.clone(), body);
    assert_eq!(reasons(&decoded), ["no_action", "not_an_object"]);
    assert_eq!(annotation(&decoded.events[0], "redacted"), true);
    let nowhere = decode(&mapping(declared), br#"{"other":{"token":"S3"}}"#, now()).unwrap();
    assert_eq!(reasons(&nowhere), ["no_events"]);
    let raw = |decoded: &DecodedBody| -> String {
        decoded
            .quarantine
            .iter()
            .map(|item| String::from_utf8_lossy(&item.raw).into_owned())
            .collect()
    };
    let all = format!("{decoded:?}{}{}", raw(&decoded), raw(&nowhere));
    assert!(!all.contains("S3"), "{all}");
    assert!(raw(&decoded).contains(r#"{"pin":"[redacted]"}"#), "{all}");
}

#[test]
fn problems_name_field_and_fix() {
    let many: serde_json::Map<_, _> = (0..1_001).map(|n| (n.to_string(), json!("x"))).collect();
    for (declared, field, words) in [
        (json!({}), "action", "is not set"),
        (json!({"action": ""}), "action", "is empty"),
        (json!({"action": "Not A Verb"}), "action", "lower-case"),
        (json!({"action": "/a~2"}), "action", "~0"),
        (json!({"action": "x".repeat(513)}), "action", "512"),
        (json!({"action": "x".repeat(124)}), "action", "begins with /"),
        (json!({"action": "/a", "id": "uuid"}), "id", "begins with /"),
        (json!({"action": "/a", "id": ["/a", "uuid"]}), "id[1]", "begins with /"),
        (json!({"action": "/a", "id": vec!["/a"; 9]}), "id", "at most 8"),
        (json!({"action": "/a", "id": ["/a", "/token"]}), "id[1]", "never kept"),
        (json!({"action": "/a", "skip": [{"at": "/a"}]}), "skip[0]", "in or not_in"),
        (
            json!({"action": "/a", "skip": ["x", {"at": "/a", "in": ["x"], "not_in": ["y"]}]}),
            "skip[1]",
            "one of them",
        ),
        (json!({"action": "/a", "skip": [{"at": "stage", "in": ["x"]}]}), "skip[0].at", "begins"),
        (json!({"action": "/a", "skip": [{"in": ["x"]}]}), "skip[0].at", "is empty"),
        (json!({"action": "/a", "at": "time"}), "at", "begins with /"),
        (json!({"action": "/a", "events": "events"}), "events", "such as /events"),
        (json!({"action": "/a", "action_prefix": "dezky"}), "action_prefix", "reserved"),
        (json!({"action": "/a", "action_prefix": "dezky.own"}), "action_prefix", "reserved"),
        (json!({"action": "/a", "action_prefix": "My Shop"}), "action_prefix", "be empty for none"),
        (
            json!({"action": "/a", "actions": {"L": "User Login"}}),
            "actions.L",
            "words joined by dots",
        ),
        (json!({"action": "/a", "actions": {"L": "x".repeat(124)}}), "actions.L", "at most 123"),
        (json!({"action": "/a", "actions": many}), "actions", "at most 1000"),
        (json!({"action": "/a", "outcome": "ok"}), "outcome", "success, failure or denied"),
        (json!({"action": "/a", "outcomes": {"1": "failure"}}), "outcomes", "set outcome"),
        (json!({"action": "/a", "at_format": "seconds"}), "at_format", "set at"),
        (json!({"action": "/a", "actor": {"type": "robot"}}), "actor.type", "anonymous"),
        (json!({"action": "/a", "actor": {"ip": "here"}}), "actor.ip", "an IP address"),
        (json!({"action": "/a", "actor": {"id": "/token/id"}}), "actor.id", "never kept"),
        (json!({"action": "/a", "resource": {"type": "x".repeat(64)}}), "resource.type", "63"),
        (json!({"action": "/a", "tenant": "x".repeat(64)}), "tenant", "63"),
        (json!({"action": "/a", "tenant_domain": "a b"}), "tenant_domain", "a domain"),
        (json!({"action": "/a", "partner": ""}), "partner", "leave it out"),
        (json!({"action": "/a", "redact": ["/x", "y"]}), "redact[1]", "JSON pointer"),
        (json!({"action": "/a/b", "redact": ["/a"]}), "action", "redact hides"),
        (json!({"action": "/a", "keep": ["x"]}), "keep[0]", "such as /x"),
        (json!({"action": "/a", "keep": ["/x/y"], "redact": ["/x"]}), "keep[0]", "redact hides"),
        (json!({"action": "/a", "outcome_default": "failure"}), "outcome_default", "set outcome"),
        (json!({"action": "$.event"}), "action", "write /event"),
        (json!({"action": "/a", "id": "$.user.id"}), "id", "such as /user/id"),
        (json!({"action": "/a", "at": "user.time"}), "at", "such as /user/time"),
        (json!({"action": "/a", "actor": {"id": "$.user.id"}}), "actor.id", "write /user/id"),
        (json!({"action": "/a", "actor": {"id": "user.id"}}), "actor.id", "write /user/id"),
        (
            json!({"action": "/a", "actor": {"email": "user.mail"}}),
            "actor.email",
            "write /user/mail",
        ),
        (json!({"action": "/a", "actor": {"type": "user.kind"}}), "actor.type", "write /user/kind"),
        (json!({"action": "/a", "actor": {"ip": "client.ip"}}), "actor.ip", "write /client/ip"),
        (
            json!({"action": "/a", "outcome": "response.status"}),
            "outcome",
            "write /response/status",
        ),
        (json!({"action": "/a", "resource": {"type": "o.kind"}}), "resource.type", "write /o/kind"),
        (
            json!({"action": "/a", "resource": {"id": "items[0].id"}}),
            "resource.id",
            "write /items/0/id",
        ),
        (json!({"action": "/a", "resource": {"name": "o.name"}}), "resource.name", "write /o/name"),
        (json!({"action": "/a", "tenant": "org.slug"}), "tenant", "write /org/slug"),
        (json!({"action": "/a", "tenant_domain": "$.org"}), "tenant_domain", "write /org"),
        (json!({"action": "/a", "partner": "org.partner"}), "partner", "write /org/partner"),
    ] {
        let problem = Mapping::compile("shop", &config(declared.clone())).unwrap_err();
        assert_eq!(problem.field, field, "{declared}: {problem}");
        assert!(problem.problem.contains(words), "{declared}: {problem}");
    }
    for unknown in [
        json!({"acton": "/a"}),
        json!({"actor": {"name": "/n"}}),
        json!({"at_format": "unix"}),
        json!({"id": 7}),
        json!({"skip": [{"at": "/a", "is": ["x"]}]}),
        json!({"skip": [7]}),
    ] {
        assert!(serde_json::from_value::<MappingConfig>(unknown).is_err());
    }
}

#[test]
fn names() {
    let config = config(json!({"action": "/a"}));
    let long = "x".repeat(49);
    for bad in [
        "",
        "Shop",
        "a b",
        "a:b",
        "é",
        ".",
        "..",
        "a..b",
        ".a",
        "a.",
        &long,
        "stalwart",
        "authentik",
        "ocis",
        "platform-api",
        "ocis:eu",
        "stalwart:eu2",
    ] {
        let problem = Mapping::compile(bad, &config).unwrap_err();
        assert!(
            problem.field.is_empty() && problem.to_string().ends_with("choose another"),
            "{bad}: {problem}"
        );
    }
    for good in ["shop", "a", "acme.billing-v2", "stalwart-proxy", "_x", &long[1..]] {
        assert_eq!(Mapping::compile(good, &config).unwrap().source(), good);
    }
}

#[test]
fn declarations_survive_json() {
    let declared = json!({
        "id": "/id", "at": "/t", "at_format": "seconds", "action": "/a", "actions": {"A": "b"},
        "outcome": "/o", "outcomes": {"bad": "failure"}, "actor": {"type": "user", "id": "/u"},
        "resource": {"type": "order"}, "redact": ["/x"],
        "skip": ["ping", {"at": "/s", "in": ["a"]}, {"at": "/s", "not_in": ["b"]}],
    });
    let back = |declared: &Json| serde_json::to_value(config(declared.clone())).unwrap();
    assert_eq!(back(&declared), declared);
    let several = json!({"id": ["/a", "/b"], "at_format": "rfc3339", "actor": {}, "resource": {}});
    assert_eq!(back(&several), several);
}

/// Any JSON, with the mapping's member names among its keys.
fn any_json() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        "[ -~é\u{1f600}\u{0}]{0,12}",
        Just("x".repeat(700)),
        Just("alice@example.com".to_owned()),
        Just("https://x/?token=a&b=c".to_owned()),
    ];
    let leaf = prop_oneof![
        text.prop_map(|text| json!(text).to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| json!(n).to_string()),
        prop::sample::select(vec!["null", "true", "1e999", "-0", "\"\\ud800\"", "\"\\u0000\""])
            .prop_map(str::to_owned),
    ];
    let key = prop::sample::select(vec![
        "id", "at", "a", "o", "actor", "type", "email", "ip", "res", "t", "d", "p", "events",
        "password", "_dezky", "hidden", "0", "",
    ]);
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6)
                .prop_map(|values| format!("[{}]", values.join(","))),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
                format!("{{{}}}", members.join(" , "))
            }),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => any_json().prop_map(String::into_bytes),
        2 => (any_json(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(json, at, byte)| {
            let mut bytes = json.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

fn declarations() -> [Json; 4] {
    [
        json!({"action": "/a"}),
        json!({"action": "fixed", "id": "/id"}),
        json!({
            "action": "/a", "id": "/id", "at": "/at", "outcome": "/o", "partner": "/p",
            "actor": {"type": "/actor/type", "id": "/actor/id", "email": "/actor/email", "ip": "/actor/ip"},
            "resource": {"type": "/res", "id": "/res/0", "name": "/res/a"}, "tenant": "/t",
            "tenant_domain": "/d", "skip": ["x"], "redact": ["/hidden", "/actor/hidden", "/res/1"],
        }),
        json!({"action": "/0", "events": "/events/a", "at": "/at", "at_format": "seconds"}),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any body yields events within the log's limits, or is accounted for otherwise.
    #[test]
    fn the_mapping_is_total(body in any_body(), which in 0..4_usize) {
        let mapping = mapping(declarations()[which].clone());
        let runtime = ManualRuntime::new(1);
        let decoded = match decode(&mapping, &body, now()) {
            Ok(decoded) => decoded,
            // The whole body is refused, with an error for the sender.
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::BodyInvalid);
                return Ok(());
            }
        };
        for pulled in &decoded.events {
            prop_assert!(pulled.event.external_id.is_some());
            prop_assert!(pulled.tenant.len() <= 2);
            let sealed = pulled.event.clone().seal(&runtime);
            prop_assert_eq!(sealed.validate(), Ok(()));
        }
        for item in &decoded.quarantine {
            prop_assert!(item.raw.len() <= 64 << 10 && item.key.len() <= 80 && item.detail.len() <= 200);
        }
        let again = decode(&mapping, &body, now()).unwrap();
        let identities = |decoded: &DecodedBody| -> Vec<_> {
            let ids = decoded.events.iter().map(|pulled| pulled.event.external_id.clone());
            ids.chain(decoded.quarantine.iter().map(|item| Some(item.key.clone()))).collect()
        };
        prop_assert_eq!(identities(&again), identities(&decoded));
    }
}
