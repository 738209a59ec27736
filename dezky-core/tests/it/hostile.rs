//! Hostile texts in every field and every filter, on every engine: each is taken literally, or
//! refused with an error that states the problem.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, CursorAdvance, ListQuery, MAX_CURSOR_BYTES, ReceiptStatus};
use dezky_core::testkit::named_event;
use dezky_core::{
    AuditEvent, AuditStore, Error, ErrorKind, NewEvent, NewMetadata, QuarantineItem, SealedEvent,
    Timestamp,
};

use crate::engines::{assert_whole, everything, on_every_engine};
use crate::servers::{Engine, TestLog};

on_every_engine! {
    events_are_literal_or_refused
    filters_are_literal_or_refused
    metadata_is_kept_as_it_is_canonical
    names_and_cursors_are_literal_or_refused
}

/// Patterns, operators, quotes, and characters with a special meaning in some engine.
const TEXTS: [&str; 40] = [
    "%",
    "_",
    "\\",
    ".*",
    "^",
    "$",
    "a%",
    "a_b",
    "\\%",
    "[a-z]",
    "(?i)a",
    "(",
    "*",
    "$where",
    "$gt",
    "{\"$gt\":\"\"}",
    "{\"$where\":\"sleep(9999)\"}",
    "$$ROOT",
    "a.b",
    "a.$.b",
    "__proto__",
    "'",
    "\"",
    "`",
    "'; DROP TABLE dezky_audit_events; --",
    "' OR '1'='1",
    "$1",
    "?1",
    ":name",
    "{1,2}",
    "NULL",
    "\\N",
    "\t",
    "\r\n",
    "a\0b",
    "\0",
    "\u{1f}",
    "\u{fffd}",
    "\u{10ffff}",
    " ",
];

fn texts() -> Vec<String> {
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).to_vec();
    texts.push("x".repeat(1 << 20));
    texts.push("\\".repeat(1_000));
    texts.push("%".repeat(1_000));
    texts.push("(".repeat(500));
    texts
}

type SetField = fn(&mut NewEvent, String);

const FIELDS: [(&str, SetField); 12] = [
    ("action", |e, t| e.action = t),
    ("source", |e, t| e.source = t),
    ("externalId", |e, t| e.external_id = Some(t)),
    ("actorId", |e, t| e.actor.id = Some(t)),
    ("actorEmail", |e, t| e.actor.email = Some(t)),
    ("actorIp", |e, t| e.actor.ip = Some(t)),
    ("resourceType", |e, t| e.resource_type = Some(t)),
    ("resourceId", |e, t| e.resource_id = Some(t)),
    ("resourceName", |e, t| e.resource_name = Some(t)),
    ("tenantSlug", |e, t| e.tenant_slug = Some(t)),
    ("partnerSlug", |e, t| e.partner_slug = Some(t)),
    ("metadata", |e, t| {
        e.metadata = NewMetadata::from_source(t.clone()).with_annotation(&t, t.clone());
    }),
];

type SetFilter = fn(&mut ListQuery, String);

/// The expected result of a filter, written independently of the store's own definition.
type Finds = fn(&AuditEvent, &str) -> bool;

const FILTERS: [(SetFilter, Finds); 9] = [
    (|q, t| q.action = Some(t), |e, t| e.action.starts_with(t)),
    (|q, t| q.tenant_slug = Some(t), |e, t| e.tenant_slug.as_deref() == Some(t)),
    (|q, t| q.partner_slug = Some(t), |e, t| e.partner_slug.as_deref() == Some(t)),
    (|q, t| q.actor_id = Some(t), |e, t| e.actor_id.as_deref() == Some(t)),
    (|q, t| q.actor_email = Some(t), |e, t| e.actor_email.as_ref().is_some_and(|v| fold(v) == t)),
    (|q, t| q.resource_type = Some(t), |e, t| e.resource_type.as_deref() == Some(t)),
    (|q, t| q.resource_id = Some(t), |e, t| e.resource_id.as_deref() == Some(t)),
    (|q, t| q.source = Some(t), |e, t| e.source == t || e.source.starts_with(&format!("{t}:"))),
    (
        |q, t| q.q = Some(t),
        |e, t| {
            let searched = [&e.resource_name, &e.actor_email, &e.tenant_slug];
            fold(&e.action).contains(t)
                || searched.into_iter().flatten().any(|v| fold(v).contains(t))
        },
    ),
];

/// The texts here are already in lower case except for these characters.
fn fold(text: &str) -> String {
    text.to_lowercase().replace('\u{1f}', "\u{fffd}")
}

fn event(set: SetField, text: &str) -> SealedEvent {
    let mut event = named_event("hostile");
    set(&mut event, text.to_owned());
    event.seal(&TokioRuntime)
}

/// A refusal states a reason that a caller can act on.
fn assert_clear(error: &Error, allowed: &[ErrorKind], what: &str) {
    assert!(allowed.contains(&error.kind()), "{what}: {error:?}");
    let said = error.to_string();
    assert!(!said.is_empty() && said.len() < 500, "{what}: {} bytes", said.len());
}

async fn events_are_literal_or_refused(engine: Engine) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    let mut kept = Vec::new();
    // U+0000 becomes U+FFFD, which is among the texts itself.
    let mut external_ids = HashSet::new();
    for (name, set) in FIELDS {
        let mut valid: Vec<SealedEvent> = Vec::new();
        for text in texts() {
            let event = event(set, &text);
            match event.validate() {
                Ok(()) => valid.push(event),
                Err(invalid) => {
                    let refused = store.append(vec![event], AppendOptions::default()).await;
                    let error = refused.unwrap_err();
                    assert_clear(&error, &[ErrorKind::EventInvalid], name);
                    assert!(error.to_string().contains(invalid.field), "{error}");
                }
            }
        }
        let appended = store.append(valid.clone(), AppendOptions::default()).await.unwrap();
        for (event, receipt) in valid.into_iter().zip(appended.receipts) {
            let id = event.event().external_id.clone();
            let known = id.is_some_and(|id| !external_ids.insert(id));
            assert_eq!(receipt.status == ReceiptStatus::Duplicate, known, "{name} {receipt:?}");
            if !known {
                kept.push(event);
            }
        }
    }
    let stored = everything(&*store).await;
    assert!(stored.len() > 250, "only {} are kept", stored.len());
    assert_eq!(stored.len(), kept.len());
    for (stored, kept) in stored.iter().zip(&kept) {
        assert_eq!(stored.event, *kept.event(), "events are stored as sent");
    }
    // By their ids and, if they have one, by their external ids.
    let again = store.append(kept.clone(), AppendOptions::default()).await.unwrap();
    assert!(again.receipts.iter().all(|r| r.status == ReceiptStatus::Duplicate));
    assert_whole(&*store).await;
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(40)]
}

/// Puts every hostile text into every field that accepts it; each filter must find exactly the
/// expected events.
async fn filters_are_literal_or_refused(engine: Engine) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    let mut events: Vec<_> = FIELDS
        .iter()
        .flat_map(|(_, set)| texts().into_iter().map(|text| event(*set, &text)))
        .filter(|event| event.validate().is_ok())
        .collect();
    events.push(named_event("plain").seal(&TokioRuntime));
    store.append(events, AppendOptions::default()).await.unwrap();
    let all = everything(&*store).await;
    let few = engine.is_slow().await;
    for (place, (set, finds)) in FILTERS.into_iter().enumerate() {
        for (text, _) in texts().into_iter().zip(place..).filter(|(_, n)| !few || n % 3 == 0) {
            let mut query = ListQuery { limit: 500, ..ListQuery::default() };
            set(&mut query, text.clone());
            if text.len() > ListQuery::MAX_FILTER_BYTES {
                let refused = store.list(&query).await.unwrap_err();
                assert_clear(&refused, &[ErrorKind::QueryInvalid], "a filter");
                assert!(refused.to_string().contains("1024"), "the bound is named: {refused}");
                continue;
            }
            let mut normal = text.replace('\0', "\u{fffd}");
            if query.q.is_some() || query.actor_email.is_some() {
                normal = fold(&normal);
            }
            let mut expected: Vec<_> = all
                .iter()
                .filter(|e| finds(&e.event, &normal))
                .map(|e| (e.event.at, e.seq))
                .collect();
            expected.sort_by(|a, b| b.cmp(a));
            let page = store.list(&query).await.unwrap();
            let found: Vec<_> = page.events.iter().map(|e| (e.event.at, e.seq)).collect();
            assert_eq!(found, expected, "{:?}", head(&text));
        }
    }
    for text in texts() {
        let query = ListQuery { cursor: Some(text), ..ListQuery::default() };
        let refused = store.list(&query).await.unwrap_err();
        assert_clear(&refused, &[ErrorKind::CursorInvalid], "a cursor");
    }
}

/// Lone surrogates, keys that are operators, numbers beyond any type, deep nesting.
async fn metadata_is_kept_as_it_is_canonical(engine: Engine) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    let deep = format!("{}1{}", "{\"a\":".repeat(5_000), "}".repeat(5_000));
    let long = format!("{{\"a\":\"{}\"}}", "y".repeat(1 << 20));
    let events: Vec<_> = [
        r#"{"lone":"\ud800","end":"\udc00x","turned":"\udc00\ud800","pair":"\ud83d\ude00"}"#,
        r#"{"\ud800":1,"\udfff":2}"#,
        r#"{"$where":"1","$gt":"","a.b":1,"":2,"_id":3,"__proto__":{}}"#,
        r#"{"zero":"\u0000","\u0000":0}"#,
        r#"{"a":1,"a":2,"A":3}"#,
        r#"{"big":123456789012345678901234567890,"small":1e-400,"minus":-0,"e":1E5}"#,
        r#"{"$date":"2026-01-01","$oid":"000000000000000000000000","$numberLong":"1"}"#,
        "{",
        "null",
        "[]",
        "\u{feff}{}",
        &deep,
        &long,
    ]
    .into_iter()
    .map(|raw| {
        let metadata = NewMetadata::from_source(raw);
        NewEvent { metadata, ..named_event("metadata") }.seal(&TokioRuntime)
    })
    .collect();
    store.append(events.clone(), AppendOptions::default()).await.unwrap();
    let stored = everything(&*store).await;
    assert_eq!(stored.len(), events.len());
    for (stored, sent) in stored.iter().zip(&events) {
        assert_eq!(stored.event.metadata.as_str(), sent.event().metadata.as_str());
    }
    assert_whole(&*store).await;
}

/// Names of leases and sources, ingest cursors, and quarantined items.
async fn names_and_cursors_are_literal_or_refused(engine: Engine) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    let refusals = [
        ErrorKind::ConfigInvalid,
        ErrorKind::TooLarge,
        ErrorKind::EventInvalid,
        ErrorKind::QueryInvalid,
    ];
    let mut kept = 0;
    for text in texts() {
        match store.acquire_lease(&text, &text, Duration::from_mins(1)).await {
            Ok(lease) => {
                let lease = lease.expect("nobody holds it");
                assert_eq!((&lease.name, &lease.holder), (&text, &text));
                store.release_lease(&lease).await.unwrap();
            }
            Err(error) => assert_clear(&error, &refusals, "a lease"),
        }
        let advance =
            CursorAdvance { source: text.clone(), from: None, to: format!("at {}", head(&text)) };
        let options = AppendOptions { cursor: Some(advance.clone()), ..Default::default() };
        match store.append(Vec::new(), options).await {
            Ok(_) => assert_eq!(store.cursor(&text).await.unwrap(), Some(advance.to)),
            Err(error) => assert_clear(&error, &refusals, "a cursor"),
        }
        kept += quarantine(&store, &text).await;
    }
    let long = "c".repeat(MAX_CURSOR_BYTES + 1);
    let advance = CursorAdvance { source: "ocis".into(), from: None, to: long };
    let options = AppendOptions { cursor: Some(advance), ..Default::default() };
    let refused = store.append(Vec::new(), options).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    let items = store.quarantined(0, 1_000).await.unwrap();
    assert_eq!(items.len(), kept);
    let cursors = store.cursors().await.unwrap();
    assert!(cursors.len() > 30, "{} sources have a cursor", cursors.len());
    assert!(cursors.iter().all(|(source, cursor)| *cursor == format!("at {}", head(source))));
}

async fn quarantine(store: &Arc<dyn AuditStore>, text: &str) -> usize {
    let item = QuarantineItem {
        source: text.to_owned(),
        key: text.to_owned(),
        reason: text.to_owned(),
        detail: text.to_owned(),
        raw: [b"\xff\0", text.as_bytes()].concat(),
        at: Timestamp::MIN,
    };
    let options = AppendOptions { quarantine: vec![item.clone()], ..Default::default() };
    match store.append(Vec::new(), options).await {
        Ok(appended) => {
            assert_eq!(appended.new_quarantine, 1);
            let items = store.quarantined(0, 1_000).await.unwrap();
            assert_eq!(items.last().unwrap().item, item);
            1
        }
        Err(error) => {
            assert_clear(&error, &[ErrorKind::TooLarge], "an item");
            0
        }
    }
}
