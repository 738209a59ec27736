use std::any::Any;
use std::time::Duration;

use dezky_core::rt::BlockingWork;
use dezky_core::{Actor, ActorType, NewEvent, Outcome, Runtime, SealedEvent, TenantHint};
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::body::{MAX_MALFORMED, kept_list};

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/data/stalwart/", $name))
    };
}

const V08: &[u8] = fixture!("01-v0.8.4-auth-failure.json");
const V09: &[u8] = fixture!("02-v0.9.4-auth-failed.json");
const V15: &[u8] = fixture!("03-v0.15.5-mixed-batch.json");
const COLLIDING: &[u8] = fixture!("04-v0.16.9-colliding-ids.json");
const FIRST: &[u8] = fixture!("05a-v0.16.18-first-delivery.json");
const RETRY: &[u8] = fixture!("05b-v0.16.18-retry-same-events-new-ids.json");
const MAIL: &[u8] = fixture!("06-v0.16.18-mail-flow.json");
const ALL: [&[u8]; 7] = [V08, V09, V15, COLLIDING, FIRST, RETRY, MAIL];

fn now() -> Timestamp {
    Timestamp::parse("2026-11-22T00:00:00.123Z").unwrap()
}

fn decoded(body: impl AsRef<[u8]>) -> DecodedBody {
    decode(SOURCE, body.as_ref(), Some([192, 0, 2, 1].into()), now())
}

/// The events of a body; checks that it contains nothing else.
fn events(body: impl AsRef<[u8]>) -> Vec<PulledEvent> {
    let decoded = decoded(body);
    assert_eq!(decoded.quarantine, []);
    decoded.events
}

/// The event of type `kind` with `data`.
fn one(kind: &str, data: &serde_json::Value) -> PulledEvent {
    let body = json!({"events": [{
        "id": "178696080012035", "createdAt": "2026-08-17T10:00:00Z", "type": kind, "data": data,
    }]});
    events(body.to_string()).remove(0)
}

fn keys(body: impl AsRef<[u8]>) -> Vec<String> {
    events(body).into_iter().map(|e| e.event.external_id.unwrap()).collect()
}

fn actions(events: &[PulledEvent]) -> Vec<&str> {
    events.iter().map(|e| e.event.action.strip_prefix("stalwart.").unwrap()).collect()
}

fn note<'e>(event: &'e NewEvent, key: &str) -> Option<&'e str> {
    event.metadata.annotation(key)?.as_str()
}

fn domains(names: &[&str]) -> Vec<TenantHint> {
    names.iter().map(|name| TenantHint::Domain((*name).into())).collect()
}

fn user(id: &str) -> TenantHint {
    TenantHint::User { system: "stalwart", id: id.into() }
}

/// A runtime with a fixed time and constant randomness.
struct Still;

impl Runtime for Still {
    fn now(&self) -> Timestamp {
        now()
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>> {
        Box::pin(async { work() })
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

fn sealed(event: &NewEvent) -> SealedEvent {
    event.clone().seal(&Still)
}

#[test]
fn v0_8_auth_failure() {
    let all = events(V08);
    let [PulledEvent { event, tenant }] = &all[..] else { panic!() };
    assert_eq!(event.external_id.as_deref(), Some("184467440737095516"));
    assert_eq!(event.action, "stalwart.auth_failed");
    assert_eq!(event.outcome, Outcome::Failure);
    assert_eq!(event.source, "stalwart");
    assert_eq!(event.actor, Actor::user("alice").with_ip("203.0.113.7"));
    assert_eq!(event.at.unwrap().to_string(), "2024-07-05T09:14:22.483Z");
    assert_eq!(
        (&event.resource_type, &event.resource_id, &event.resource_name),
        (&Some("account".into()), &Some("alice".into()), &Some("alice".into()))
    );
    assert_eq!(*tenant, []);
    assert_eq!(
        sealed(event).event().metadata.as_str(),
        r#"{"_dezky":{"rawAction":"auth.failure","rawId":"184467440737095516"},"login":"alice","protocol":"Imap","remoteIp":"203.0.113.7"}"#
    );
}

#[test]
fn v0_9_auth_failed() {
    let all = events(V09);
    assert_eq!(actions(&all), ["auth_failed"]);
    assert_eq!(
        all[0].event.external_id.as_deref(),
        Some("sw1:1e82762c8a2a3a725ee5f1615ab3cf4a4e64a765c8b3b0480a890b60bb2eb9ca")
    );
    assert_eq!(note(&all[0].event, "rawId"), Some("1726041600543"));
    assert_eq!(all[0].event.actor, Actor::user("alice").with_ip("203.0.113.7"));
}

#[test]
fn v0_15_mixed_batch() {
    let all = events(V15);
    assert_eq!(actions(&all), ["auth_failed", "auth_banned", "auth_success", "mail_submitted"]);
    let [failed, ban, success, submitted] = &all[..] else { panic!() };

    let alice = || Actor::user("alice@example.com").with_email("alice@example.com");
    assert_eq!(failed.event.actor, alice().with_ip("203.0.113.7"));
    assert_eq!(failed.tenant, domains(&["example.com"]));

    assert_eq!(ban.event.actor, alice().with_ip("203.0.113.7"));
    assert_eq!(ban.event.outcome, Outcome::Denied);
    assert_eq!(note(&ban.event, "cause"), Some("authentication"));

    let bob = Actor::user("17").with_email("bob@example.com").with_ip("198.51.100.20");
    assert_eq!(success.event.actor, bob);
    assert_eq!(success.event.outcome, Outcome::Success);
    assert_eq!(success.event.resource_id.as_deref(), Some("17"));
    assert_eq!(success.event.resource_name.as_deref(), Some("bob@example.com"));
    assert_eq!(success.tenant, [domains(&["example.com"]), vec![user("17")]].concat());

    assert_eq!(submitted.event.actor, Actor::system().with_ip("198.51.100.20"));
    assert_eq!(submitted.event.resource_type.as_deref(), Some("message"));
    assert_eq!(submitted.event.resource_id.as_deref(), Some("232233641033142272"));
    assert_eq!(
        submitted.event.resource_name.as_deref(),
        Some("carol@example.net, dave@example.org")
    );
    // The recipients' domains are not hints.
    assert_eq!(submitted.tenant, domains(&["example.com"]));
    assert!(sealed(&submitted.event).event().metadata.as_str().contains("232233640961839104"));
}

#[test]
fn colliding_ids_are_two_events() {
    assert_eq!(
        keys(COLLIDING),
        [
            "sw1:36bfff30ca8cbf2ad12b3200e0ce57a52f374b299b0c514387d1ebd0ceaf9984",
            "sw1:0a5ac2be441fb317e1a906bde8b1db4b74d115b52a4a602369e91873b83ce386"
        ]
    );
}

#[test]
fn retries_with_new_ids_are_the_same_events() {
    assert_eq!(
        keys(FIRST),
        [
            "sw1:8a080dbda1341d3075e6721e84afbd4fd76bb11af8524c8e88a737868750d6c2",
            "sw1:04d6e18dcf040066e1921e00c02cab5eac8d99eed8121ebdb64eb94cf3f4ad2c"
        ]
    );
    assert_eq!(keys(FIRST), keys(RETRY));
    let all = events(RETRY);
    assert_eq!(actions(&all), ["auth_failed", "auth_failed"]);
    assert_eq!(note(&all[1].event, "rawId"), Some("178696080012338"));
    for PulledEvent { event, tenant } in &all {
        // The second event names its actor only in its cause.
        let alice = Actor::user("3").with_email("alice@example.com").with_ip("203.0.113.7");
        assert_eq!(event.actor, alice);
        assert_eq!(event.resource_name.as_deref(), Some("alice@example.com"));
        assert_eq!(*tenant, [domains(&["example.com"]), vec![user("3")]].concat());
    }
}

#[test]
fn mail_flow() {
    let all = events(MAIL);
    assert_eq!(
        actions(&all),
        ["dmarc_failure", "mail_received", "spam_detected", "mail_delivered"]
    );
    let [dmarc, received, spam, delivered] = &all[..] else { panic!() };
    assert_eq!(dmarc.event.outcome, Outcome::Failure);
    assert_eq!(dmarc.event.actor, Actor::system().with_ip("2001:db8::25"));
    assert_eq!(dmarc.event.resource_type.as_deref(), Some("domain"));
    assert_eq!(dmarc.event.resource_id.as_deref(), Some("example.net"));
    assert_eq!(dmarc.tenant, [], "the alleged sender's domain says nothing");

    assert_eq!(received.event.outcome, Outcome::Success);
    assert_eq!(received.event.resource_id.as_deref(), Some("324281410203140096"));
    assert_eq!(received.event.resource_name.as_deref(), Some("alice@example.com"));
    assert_eq!(received.tenant, domains(&["example.com"]));

    assert_eq!(spam.event.outcome, Outcome::Denied);
    assert_eq!(spam.event.resource_id.as_deref(), Some("<m1@example.net>"));
    assert_eq!(spam.event.actor.id.as_deref(), Some("3"));
    // A delivery has no address, so it gets the request's, with a note.
    assert_eq!(spam.event.actor.ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(note(&spam.event, "ipFrom"), Some("request"));
    assert_eq!(spam.tenant, [domains(&["example.com"]), vec![user("3")]].concat());

    assert_eq!(delivered.event.resource_name.as_deref(), Some("dave@example.org"));
    assert_eq!(delivered.tenant, domains(&["example.com"]));
}

const MINIMAL: &str = r#"{"id":"178696080012035","createdAt":"2026-08-17T10:00:00Z","type":"auth.failed","data":{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}}"#;

#[test]
fn minimal_vector_and_every_envelope() {
    let key = "sw1:b6a9ee95a05e72a607d065f1be2b2a61fcfbfd8bc0d032acc7721f6d5724b839";
    let second = "sw1:f73ec7f2d68b1b17031f58d07744a7ecc423567baab5bb410775d04ae9a2ad8d";
    for body in [
        format!(r#"{{"events":[{MINIMAL}]}}"#),
        format!("[{MINIMAL}]"),
        format!(r#"{{"event":{MINIMAL}}}"#),
        format!("\u{feff} [ {MINIMAL} ]\n"),
        format!("[{}]", MINIMAL.replace(r#""178696080012035""#, "178696080012035")),
        format!("[{}]", MINIMAL.replace(r#""id":"178696080012035","#, "")),
    ] {
        assert_eq!(keys(body), [key]);
    }
    assert_eq!(keys(format!("[{MINIMAL},{MINIMAL}]")), [key, second]);
    let elsewhere = decode("stalwart:eu2", format!("[{MINIMAL}]").as_bytes(), None, now());
    assert_eq!(elsewhere.events[0].event.source, "stalwart:eu2");
    assert_ne!(elsewhere.events[0].event.external_id.as_deref(), Some(key));
}

#[test]
fn retry_among_new_events_adds_only_the_new() {
    let body: serde_json::Value = serde_json::from_slice(RETRY).unwrap();
    let mut list = body["events"].as_array().unwrap().clone();
    list.insert(0, serde_json::from_str(&MINIMAL.replace("alice", "carol")).unwrap());
    list.reverse();
    let merged = keys(json!({"events": list}).to_string());
    let first = keys(FIRST);
    assert_eq!(merged.iter().filter(|key| first.contains(key)).count(), 2);
    assert_eq!(merged.len(), 3);
}

#[test]
fn ids_of_other_senders() {
    let id_of = |id: &str| {
        let body = MINIMAL.replace(r#""178696080012035""#, id);
        keys(format!("[{body}]")).remove(0)
    };
    for (id, expected) in [
        (r#""evt-1""#, "evt-1"),
        ("7", "7"),
        ("18446744073709551615", "18446744073709551615"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1.50", "1.50"),
        (r#""178696080112035""#, "178696080112035"),
        (r#""1786960800-12""#, "1786960800-12"),
    ] {
        assert_eq!(id_of(id), expected);
    }
    for id in ["null", "\"\"", "{}", "[1]", "true", "1786960800"] {
        assert!(id_of(id).starts_with("sw1:b6a9ee95"), "{id}");
    }
}

#[test]
fn fields_alongside_the_data_are_content() {
    let flat = |name: &str| {
        format!(
            r#"[{{"createdAt":"2026-08-17T10:00:00Z","type":"account.created","account":"{name}","by":"x"}}]"#
        )
    };
    assert_ne!(keys(flat("a@acme.example")), keys(flat("b@acme.example")));
    let all = events(flat("a@acme.example"));
    assert_eq!(actions(&all), ["account_created"]);
    assert_eq!(all[0].tenant, domains(&["acme.example"]));
    assert_eq!(all[0].event.metadata.source(), Some(r#"{"account":"a@acme.example","by":"x"}"#));

    let beside = r#"[{"type":"account.created","data":{"email":"a@acme.example"},"ip":"203.0.113.9","big":18446744073709551615}]"#;
    let all = events(beside);
    assert_eq!(all[0].event.actor.ip.as_deref(), Some("203.0.113.9"));
    assert_eq!(
        all[0].event.metadata.annotation("envelope"),
        Some(&json!({"big": "18446744073709551615", "ip": "203.0.113.9"}))
    );
    assert_eq!(all[0].event.metadata.source(), Some(r#"{"email":"a@acme.example"}"#));
}

#[test]
fn account_verbs_tell_the_actor_from_the_account() {
    let PulledEvent { event, tenant } = one(
        "AccountCreated",
        &json!({"email": "root@platform.example", "account": "new@Acme.example", "accountId": 9}),
    );
    assert_eq!(event.action, "stalwart.account_created");
    assert_eq!(event.actor.id.as_deref(), Some("root@platform.example"));
    assert_eq!(event.actor.email.as_deref(), Some("root@platform.example"));
    assert_eq!(event.resource_type.as_deref(), Some("account"));
    assert_eq!(event.resource_id.as_deref(), Some("9"));
    assert_eq!(event.resource_name.as_deref(), Some("new@Acme.example"));
    assert_eq!(tenant[..2], domains(&["acme.example", "platform.example"]));
}

#[test]
fn who_it_was() {
    let kind_of = |kind: &str, data: serde_json::Value| {
        let actor = one(kind, &data).event.actor;
        (actor.kind, actor.id)
    };
    assert_eq!(kind_of("auth.failed", json!({})), (ActorType::Anonymous, None));
    assert_eq!(kind_of("security.scan-ban", json!({"path": "/"})), (ActorType::System, None));
    assert_eq!(
        kind_of("security.unauthorized", json!({"accountId": 4, "details": "x"})),
        (ActorType::User, Some("4".into()))
    );
    assert_eq!(
        kind_of("auth.success", json!({"name": "old", "accountName": ""})),
        (ActorType::User, Some("old".into()))
    );
    assert_eq!(
        kind_of("auth.failed", json!({"accountName": "b", "username": "a"})),
        (ActorType::User, Some("a".into()))
    );
    assert_eq!(kind_of("auth.failed", json!({"causedBy": "x.rs:1"})).0, ActorType::Anonymous);
    assert_eq!(kind_of("auth.failed", json!(["accountName"])).0, ActorType::Anonymous);
}

#[test]
fn where_from() {
    let ip_of = |data: serde_json::Value| one("auth.failed", &data).event;
    assert_eq!(
        ip_of(json!({"remoteIp": "10.0.0.1", "ip": "203.0.113.9"})).actor.ip.unwrap(),
        "203.0.113.9"
    );
    let readable = ip_of(json!({"ip": "unknown", "remoteIp": "10.0.0.1"}));
    assert_eq!(readable.actor.ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(note(&readable, "ipFrom"), None);
    // The event has an address, so the request's is not used instead.
    let odd = ip_of(json!({"ip": "fe80::1%eth0"}));
    let sealed = sealed(&odd);
    assert_eq!(sealed.event().actor_ip, None);
    assert!(sealed.event().metadata.as_str().contains(r#""rawIp":"fe80::1%eth0""#));
    let none = decode(SOURCE, br#"[{"type":"auth.failed"}]"#, None, now());
    assert_eq!(none.events[0].event.actor.ip, None);
    assert_eq!(note(&none.events[0].event, "ipFrom"), None);
}

#[test]
fn whose_it_is() {
    let hints = |kind: &str, data: serde_json::Value| one(kind, &data).tenant;
    for (kind, data, expected) in [
        // Recipients of several domains may be of several tenants.
        (
            "queue.message-queued",
            json!({"from": "x@a.example", "to": ["l@b.example", "m@c.example"]}),
            &[][..],
        ),
        ("queue.message-queued", json!({"to": ["l@B.example.", "<m@b.example>"]}), &["b.example"]),
        ("queue.authenticated-message-queued", json!({"from": "<>", "to": "l@b.example"}), &[]),
        ("delivery.delivered", json!({"from": "<>", "to": "l@b.example"}), &["b.example"]),
        ("delivery.failed", json!({"from": "x@a.example", "to": "l@b.example"}), &["a.example"]),
        (
            "message.accepted",
            json!({"authenticatedAs": "x", "returnPath": "x@a.example", "recipients": ["l@b.example"]}),
            &["a.example"],
        ),
        (
            "message.accepted",
            json!({"returnPath": "x@a.example", "recipients": ["l@b.example"]}),
            &["b.example"],
        ),
        (
            "smtp.dkim-fail",
            json!({"result": [{"type": "dkim.fail", "data": {"domain": "D.example"}}]}),
            &[],
        ),
        ("security.abuse-ban", json!({"to": "l@b.example"}), &["b.example"]),
        ("auth.failed", json!({"accountName": "alice"}), &[]),
        ("auth.failed", json!({"accountName": "a@b@C.example"}), &["c.example"]),
        ("auth.failed", json!({"accountName": "a@not a domain"}), &[]),
    ] {
        assert_eq!(hints(kind, data.clone()), domains(expected), "{kind} {data}");
    }
    let body = r#"[{"type":"auth.success","data":{"accountId":3}}]"#;
    assert_eq!(events(body)[0].tenant, [user("3")]);
    let elsewhere = decode("stalwart:eu2", body.as_bytes(), None, now());
    assert_eq!(elsewhere.events[0].tenant, []);
}

#[test]
fn outcomes() {
    for (kind, expected) in [
        ("auth.failed", Outcome::Failure),
        ("auth.too-many-attempts", Outcome::Failure),
        ("delivery.failed", Outcome::Failure),
        ("smtp.dkim-fail", Outcome::Failure),
        ("dmarc-failure", Outcome::Failure),
        ("auth.error", Outcome::Failure),
        ("acme.auth-error", Outcome::Failure),
        ("StoreSqlError", Outcome::Failure),
        ("security.scan-ban", Outcome::Denied),
        ("smtp.relay-not-allowed", Outcome::Denied),
        ("milter.action-reject", Outcome::Denied),
        ("message-ingest.spam", Outcome::Denied),
        ("auth.success", Outcome::Success),
        ("auth.mfa-required", Outcome::Success),
        ("jmap.method-call", Outcome::Success),
        ("account.deleted", Outcome::Success),
    ] {
        assert_eq!(one(kind, &json!({})).event.outcome, expected, "{kind}");
    }
}

#[test]
fn annotations() {
    let probe = one(
        "auth.failed",
        &json!({"details": "Missing Authorization header.", "causedBy": "http.rs:1"}),
    );
    assert_eq!(note(&probe.event, "kind"), Some("no_credentials"));
    assert_eq!(note(&probe.event, "severity"), Some("low"));
    assert_eq!(probe.event.action, "stalwart.auth_failed");
    let login = one("auth.failed", &json!({"details": "example.org"}));
    assert_eq!(note(&login.event, "kind"), None);

    for (kind, cause) in [
        ("security.abuse-ban", "abuse"),
        ("security.scan-ban", "scan"),
        ("security.loiter-ban", "loiter"),
        ("security.authentication-ban", "authentication"),
        ("security.brute-force-ban", "authentication"),
        ("auth.banned", "authentication"),
    ] {
        assert_eq!(note(&one(kind, &json!({})).event, "cause"), Some(cause), "{kind}");
    }
    let spam = one("spam.classify", &json!({"result": "reject"}));
    assert_eq!(note(&spam.event, "result"), Some("reject"));
    let scores = one("spam.classify", &json!({"result": ["1.0"]}));
    assert_eq!(scores.event.action, "stalwart.spam_classify");
    assert_eq!(note(&scores.event, "result"), None);
    let unsigned = one("smtp.dkim-fail", &json!({"strict": false, "result": []}));
    assert_eq!(note(&unsigned.event, "kind"), Some("unsigned"));
    let method = one("jmap.method-call", &json!({}));
    assert_eq!(method.event.action, "stalwart.jmap_method_call");
    assert_eq!(note(&method.event, "rawAction"), Some("jmap.method-call"));
}

#[test]
fn times() {
    for (created_at, raw, problem) in [
        ("", None, "absent"),
        (r#""createdAt":"soon","#, Some("soon"), "unreadable"),
        (r#""createdAt":17,"#, Some("17"), "unreadable"),
        (r#""createdAt":"9999-12-31T23:59:59Z","#, Some("9999-12-31T23:59:59Z"), "ahead"),
        (r#""createdAt":"0001-01-01T00:00:00Z","#, Some("0001-01-01T00:00:00Z"), "too_old"),
    ] {
        let body = format!(r#"[{{{created_at}"id":"evt-1","type":"auth.failed"}}]"#);
        let event = &events(body)[0].event;
        assert_eq!(event.at, Some(now()));
        assert_eq!(note(event, "timeSource"), Some("received"));
        assert_eq!(note(event, "rawAt"), raw);
        assert_eq!(note(event, "timeProblem"), Some(problem));
        assert_eq!(event.external_id.as_deref(), Some("evt-1"));
    }
    // A time format that is accepted now and was not before does not change an identity.
    let body = r#"[{"id":"178696080012035","type":"x","createdAt":"2026-08-17T12:00:00+0200"}]"#;
    let event = &events(body)[0].event;
    assert_eq!(event.at, Timestamp::parse("2026-08-17T10:00:00Z"));
    assert_eq!(event.external_id.as_deref(), Some("178696080012035"));
    // The key does not depend on when it was received.
    let body = br#"[{"type":"auth.failed","data":{"accountName":"a"}}]"#;
    let later = decode(SOURCE, body, None, Timestamp::MAX);
    assert_eq!(later.events[0].event.external_id, Some(keys(body).remove(0)));
}

#[test]
fn odd_things_leave_the_others_alone() {
    let odd_values = r#"{"type":"auth.failed","id":1,"data":{"a":"\ud800","\udc00":1e999,"a":-0,"n":123456789012345678901}}"#;
    let deep = format!(
        r#"{{"type":"x","id":2,"data":{{"a":{}{}}}}}"#,
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    let body = format!(r#"{{"events":[7,{odd_values},{{}},null,{deep},{{"type":5}},{MINIMAL}]}}"#);
    let mut bytes = body.into_bytes();
    let decoded = super::decode(SOURCE, &bytes, None, now());
    assert_eq!(actions(&decoded.events), ["auth_failed", "x", "auth_failed"]);
    let reasons: Vec<_> = decoded.quarantine.iter().map(|item| &*item.reason).collect();
    assert_eq!(reasons, ["not_an_object", "no_type", "not_an_object", "no_type"]);
    assert_eq!(decoded.quarantine[0].detail, "event 1 of 7 is not an object");
    assert_eq!(decoded.quarantine[3].raw, br#"{"type":5}"#);
    for event in &decoded.events {
        sealed(&event.event).validate().unwrap();
    }
    let metadata = sealed(&decoded.events[0].event).event().metadata.to_value();
    assert_eq!(metadata["n"], "123456789012345678901");
    assert_eq!(metadata["a"], 0);
    assert_eq!(metadata["\u{fffd}"], "1e999");

    // A byte that is not UTF-8.
    let at = bytes.windows(5).position(|w| w == b"alice").unwrap();
    bytes[at] = 0xff;
    assert_eq!(super::decode(SOURCE, &bytes, None, now()).events.len(), 3);
}

#[test]
fn bodies_without_events() {
    for body in [r#"{"events":[]}"#, "[]", "7", "null", r#"{"x":1}"#, r#"{"events":3}"#] {
        let decoded = decoded(body);
        assert!(decoded.events.is_empty());
        let [item] = &decoded.quarantine[..] else { panic!("{body}") };
        assert_eq!(item.reason, "no_events");
        assert_eq!(item.key, sha256(body));
        assert_eq!(item.raw, body.as_bytes());
        assert_eq!((&*item.source, item.at), (SOURCE, now()));
    }
    for body in ["", "{", "events=1", "{} {}"] {
        let decoded = decoded(body);
        let [item] = &decoded.quarantine[..] else { panic!("{body}") };
        assert_eq!(item.reason, "not_json");
        assert_eq!(item.key, format!("not_json:{}", body.len()));
        assert_eq!(item.raw, b"");
    }
    let long = decoded(format!(r#"{{"xy":"{}"}}"#, "é".repeat(100_000)));
    assert_eq!(long.quarantine[0].raw.len(), MAX_QUARANTINE_RAW_BYTES - 1);
}

#[test]
fn a_flood_of_odd_elements_is_folded() {
    let list = |range: std::ops::Range<usize>| -> String {
        let list: Vec<_> = range.map(|n| n.to_string()).collect();
        format!(r#"[{},{{"contents":"S","data":{{"id":"S"}}}},{MINIMAL}]"#, list.join(","))
    };
    let decoded_once = decoded(list(0..50_000));
    assert_eq!(decoded_once.events.len(), 1);
    let items = &decoded_once.quarantine;
    let rest = &items[MAX_MALFORMED];
    assert!(rest.raw.starts_with(b"100\n101\n"));
    let mut lines = 0;
    for more in &items[MAX_MALFORMED..] {
        assert_eq!(more.reason, "too_many_odd");
        assert!(more.raw.len() <= MAX_QUARANTINE_RAW_BYTES && kept_list(more).is_ok());
        let count = more.raw.split(|byte| *byte == b'\n').count();
        assert_eq!(more.detail, format!("{count} more of 50002 events can't be read"));
        lines += count;
    }
    assert_eq!((lines, items.len()), (49_901, MAX_MALFORMED + 5), "all of them are kept");
    assert_eq!(decoded(list(0..50_000)).quarantine, *items, "a retry is the same");
    let last = |items: &[QuarantineItem]| items.last().unwrap().key.clone();
    assert_ne!(last(&decoded(list(0..50_001)).quarantine), last(items));
    let few = decoded(list(0..MAX_MALFORMED - 1));
    assert_eq!(few.quarantine.len(), MAX_MALFORMED);
    assert!(few.quarantine.iter().all(|item| item.reason != "too_many_odd"));
}

#[test]
fn odd_events_of_a_retry_are_the_same_item() {
    let item = |id: &str| {
        let body = format!(r#"[{{"id":{id},"createdAt":"2026-08-17T10:00:00Z","data":{{}}}}]"#);
        decoded(body).quarantine.remove(0).key
    };
    assert_eq!(item(r#""178696080012035""#), item("178696080012138"));
    assert_ne!(item(r#""evt-1""#), item(r#""evt-2""#));
}

const PASSWORD: &str = "hunter2-correct-horse";

/// The complete output of `decode`, as text.
fn everything(body: &str) -> String {
    let decoded = decoded(body);
    let mut all = format!("{decoded:?}");
    for item in decoded.quarantine {
        all += &String::from_utf8_lossy(&item.raw);
        all += &item.key;
    }
    for event in decoded.events {
        all += sealed(&event.event).event().metadata.as_str();
        all += &event.event.external_id.unwrap_or_default();
    }
    all
}

/// Checks that the output does not depend on the secret, so that it does not even contain a hash of
/// it.
#[track_caller]
fn holds_nothing_of(body: &str) {
    assert!(body.contains(PASSWORD));
    let all = everything(body);
    assert!(!all.contains(PASSWORD), "{all}");
    assert_eq!(all, everything(&body.replace(PASSWORD, "another-of-same-sz-ok")));
}

#[test]
fn secrets_go_nowhere() {
    assert_eq!(PASSWORD.len(), "another-of-same-sz-ok".len());
    let at = r#""createdAt":"2026-08-17T10:00:00Z""#;
    let id = r#""id":"178696080012035""#;
    let events = [
        format!(
            r#"{{{id},{at},"type":"imap.raw-input","data":{{"contents":"A1 LOGIN a {PASSWORD}","size":9}}}}"#
        ),
        format!(r#"{{{id},{at},"type":"imap.raw-input","contents":["{PASSWORD}"],"data":{{}}}}"#),
        format!(
            r#"{{{id},{at},"type":"x","data":{{"causedBy":{{"type":"y","data":{{"a":[{{"con\u0074ents":"{PASSWORD}"}}]}}}}}}}}"#
        ),
        format!(r#"{{{id},{at},"type":"auth.error","data":{{"id":"{PASSWORD}","reason":"r"}}}}"#),
        format!(r#"{{{id},{at},"data":{{"details":"{PASSWORD}"}},"type":"auth.error"}}"#),
        format!(
            r#"{{{id},{at},"type":"auth.failed","data":{{"causedBy":{{"type":"auth.error","data":{{"details":"{PASSWORD}","id":"{PASSWORD}"}}}}}}}}"#
        ),
        // Without a type, or with an unusable one.
        format!(r#"{{{id},{at},"data":{{"contents":"{PASSWORD}","details":"{PASSWORD}"}}}}"#),
        format!(r#"{{{id},{at},"type":["auth.error"],"data":{{"id":"{PASSWORD}"}}}}"#),
        format!(r#"[{{"contents":"{PASSWORD}"}}]"#),
        format!(r#"{{"data":{{"data":{{"details":"{PASSWORD}"}}}}}}"#),
        format!(r#"{{"data":[{{"x":[{{"id":"{PASSWORD}"}}]}}]}}"#),
        format!(r#"[{{"data":{{"details":"{PASSWORD}"}}}}]"#),
        format!(r#"{{"id":"1","data":{{"id":"{PASSWORD}","details":"{PASSWORD}"}}}}"#),
    ];
    for event in &events {
        holds_nothing_of(&format!(r#"{{"events":[{event}]}}"#));
        holds_nothing_of(&format!("[{MINIMAL},{event}]"));
    }
    for event in &events {
        // In an unknown envelope.
        holds_nothing_of(&format!(r#"{{"list":[{event}]}}"#));
        holds_nothing_of(event);
    }
    for event in &events {
        // Truncated, so not JSON.
        holds_nothing_of(&format!("[{}", &event[..event.len() - 1]));
    }
    // Without any hint that there is a secret.
    holds_nothing_of(&format!("{{'user':'a','p':'{PASSWORD}'"));
    let kept = everything(&format!("[{}]", events[0]));
    assert!(kept.contains(r#"\"size\":9"#), "text that is not a secret stays: {kept}");
}

#[test]
fn long_fields() {
    let long = "x".repeat(2_000);
    let event = one(&long, &json!({"accountName": format!("{long}@a.example"), "to": [long]}));
    let sealed_event = sealed(&event.event);
    sealed_event.validate().unwrap();
    assert_eq!(sealed_event.event().action.len(), 128);
    assert_eq!(note(&event.event, "rawAction").unwrap().len(), 512);
    // An id can't be truncated, so a long one is part of the content key.
    let keyed = |id: &str| {
        let event = events(format!(r#"[{{"type":"x","id":"{id}","data":{{}}}}]"#)).remove(0).event;
        sealed(&event).validate().unwrap();
        (event.external_id.clone().unwrap(), note(&event, "rawId").unwrap().to_owned())
    };
    let (key, raw) = keyed(&long);
    assert!(key.starts_with("sw1:") && raw == long[..512]);
    assert_eq!(keyed(&long).0, key);
    assert_ne!(keyed(&long[1..]).0, key);
    assert_eq!(keyed(&long[..512]).0, long[..512]);
}

/// Checks that the decoded output can be appended.
fn check(body: &[u8]) {
    let decoded = decode(SOURCE, body, None, now());
    assert!(!decoded.events.is_empty() || !decoded.quarantine.is_empty());
    for PulledEvent { event, .. } in &decoded.events {
        assert_eq!(sealed(event).validate(), Ok(()), "{event:?}");
    }
    for item in &decoded.quarantine {
        assert!(item.key.len() <= 512 && item.raw.len() <= MAX_QUARANTINE_RAW_BYTES);
    }
}

fn any_json() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "type",
        "id",
        "createdAt",
        "data",
        "contents",
        "details",
        "causedBy",
        "accountName",
        "to",
        "accountId",
        "remoteIp",
        "result",
        "status",
        "strict",
        "auth.error",
        "auth.failed",
        "2026-08-17T10:00:00Z",
        "178696080012035",
        "a@b.example",
        "\\ud800",
        "\\u0000",
        "",
    ]);
    let string = word.prop_map(|word| format!("\"{word}\""));
    let leaf = prop_oneof![
        string.clone(),
        prop::sample::select(vec!["0", "-1", "1e999", "18446744073709551616", "null", "true"])
            .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5)
                .prop_map(|list| format!("[{}]", list.join(","))),
            prop::collection::vec((string.clone(), inner), 0..8).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                format!("{{{}}}", members.join(", "))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&body);
    }

    #[test]
    fn mutated_fixtures(
        which in 0..ALL.len(),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..3, prop::sample::select(b"\"\\{}[]:,0e-u \xff".to_vec())),
            1..6,
        ),
    ) {
        let mut body = ALL[which].to_vec();
        for (at, edit, byte) in edits {
            let at = at.index(body.len());
            match edit {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => { body.remove(at); }
            }
        }
        check(&body);
    }

    #[test]
    fn any_values(values in prop::collection::vec(any_json(), 0..4), wrapped: bool) {
        let list = format!("[{}]", values.join(","));
        let body = if wrapped { format!(r#"{{"events":{list}}}"#) } else { list };
        // The result is JSON before and after redaction.
        let doc = Doc::parse(&body).unwrap();
        let clean = redact::redact(&doc);
        let clean = Doc::parse(&clean).unwrap();
        let has_contents = clean.values().any(|v| v.members().any(|m| m.name() == "contents"));
        prop_assert!(!has_contents);
        check(body.as_bytes());
    }

    /// Redacting the canonical form of redacted JSON changes nothing.
    #[test]
    fn redaction_is_complete(value in any_json()) {
        let redacted = |text: &str| redact::redact(&Doc::parse(text).unwrap()).into_owned();
        let first = canonicalize(&redacted(&value)).unwrap();
        let again = redacted(&first);
        prop_assert_eq!(&again, &first);
    }
}

#[test]
fn secrets_in_addresses_and_by_name_go_and_content_keys_stay() {
    let data = json!({
        "url": "/auth/callback?code=S3&state=a", "headers": {"authorization": "Bearer S3S3S3S3"},
        "accountName": "a@acme.example",
    });
    let secret = one("http.request-url", &data);
    let kept = secret.event.metadata.source().unwrap();
    assert!(!kept.contains("S3"), "{kept}");
    assert!(kept.contains("/auth/callback?code=[redacted]&state=a"), "{kept}");
    // The key is computed from the data before redaction.
    let canonical = dezky_core::canonical::canonicalize(&data.to_string()).unwrap();
    let parts = ["2026-08-17T10:00:00Z", "http.request-url", &canonical];
    assert_eq!(secret.event.external_id, Some(ContentKeys::new("sw1", SOURCE).key(&parts)));
    let flat = events(
        r#"[{"id":"e","type":"x","createdAt":"2026-08-17T10:00:00Z","url":"/?token=S3","data":{}}]"#,
    );
    assert_eq!(
        flat[0].event.metadata.annotation("envelope"),
        Some(&json!({"url": "/?token=[redacted]"}))
    );
    let odd = decoded(r#"[{"url":"/?token=S3","x":1}]"#).quarantine.remove(0);
    assert!(!String::from_utf8_lossy(&odd.raw).contains("S3"));
}

#[test]
fn an_account_is_of_its_domain_however_that_is_spelled() {
    for name in ["x@bücher.example", "X@BÜCHER.Example.", "x@xn--bcher-kva.example"] {
        let login = one("auth.success", &json!({"accountName": name}));
        assert_eq!(login.tenant, domains(&["xn--bcher-kva.example"]), "{name}");
    }
}
