//! Quarantined items that are decoded again give the same events as from their sources.

use dezky_core::store::{AppendOptions, QuarantinedItem};
use dezky_core::{Actor, ErrorKind, NewEvent, PulledEvent, QuarantineItem, Timestamp};
use dezky_ingest::authentik::protocol::{Item, MalformedItem};
use dezky_ingest::authentik::{malformed_item, map};
use dezky_ingest::generic::{self, Mapping, MappingConfig};
use dezky_ingest::ocis::{LineContext, OcisOptions, decode_line, line_key};
use dezky_ingest::quarantine::{ReprocessResult, RetryOutcome, drop_item, redecode, retry};
use dezky_ingest::stalwart::decode;
use dezky_ingest::tail::{DecodedLine, Digest};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::{Place, data, run};

fn now() -> Timestamp {
    Timestamp::parse("2026-12-01T00:00:00Z").unwrap()
}

fn item(source: &str, key: &str, reason: &str, raw: impl Into<Vec<u8>>) -> QuarantineItem {
    QuarantineItem {
        source: source.into(),
        key: key.into(),
        reason: reason.into(),
        detail: "a line for a person".into(),
        raw: raw.into(),
        at: now(),
    }
}

fn events(item: &QuarantineItem) -> Vec<PulledEvent> {
    match redecode(item, &[]) {
        ReprocessResult::Events(events) => events,
        other => panic!("{other:?}"),
    }
}

fn refusal(item: &QuarantineItem) -> String {
    match redecode(item, &[]) {
        ReprocessResult::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

/// A reprocessed item gives the event that the tail would have produced from its line.
#[test]
fn a_line_is_the_event_that_the_tail_would_have_made_of_it() {
    let mut compared = 0;
    for name in ["first-generation.log", "event-shape.log"] {
        let file = data(&format!("ocis/{name}"));
        let generation: Digest = Sha256::digest(file.split(|b| *b == b'\n').next().unwrap()).into();
        let context = LineContext {
            source: "ocis:eu2",
            options: OcisOptions::default(),
            generation: &generation,
            now: now(),
        };
        let (mut offset, mut last_time) = (0, None);
        for line in file.split(|b| *b == b'\n') {
            let mut decoded = Vec::new();
            decode_line(context, offset, line, &mut last_time, |d| decoded.push(d));
            let key = line_key("ocis:eu2", &generation, offset, &Sha256::digest(line).into());
            offset += line.len() as u64 + 1;
            let [DecodedLine::Event(expected)] = &*decoded else { continue };
            // The quarantine keeps the redacted line.
            let raw = expected.event.metadata.source().unwrap();
            let kept = item("ocis:eu2", &format!("line:{key}"), "unknown_type", raw);
            let mut again = events(&kept);
            assert_eq!(again.len(), 1);
            let mut again = again.remove(0);
            assert_eq!(again.tenant, expected.tenant);
            let mut expected = expected.event.clone();
            if expected.metadata.annotation("timeSource").unwrap() == "previous_line" {
                // The previous line, which has the time, is no longer known.
                assert_eq!(again.event.at, Some(now()));
                let problem = again
                    .event
                    .time_problem()
                    .expect("the event has the time of reading, and says so");
                let said = again.event.metadata.annotation("rawAt").and_then(Value::as_str);
                expected.note_time_problem(problem, said);
                again.event.at = expected.at;
                again.event.metadata.annotate("timeSource", "previous_line");
            }
            assert_eq!(again.event, expected, "{raw}");
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn an_item_of_authentik_is_the_event_that_the_poller_would_have_made_of_it() {
    let listed = data("authentik/events.json");
    let listed: Vec<&RawValue> = serde_json::from_slice(&listed).unwrap();
    for raw in listed {
        let expected = map("authentik", Item::read(raw).event.unwrap());
        let value: Value = serde_json::from_str(raw.get()).unwrap();
        let odd = MalformedItem { reason: "no_action", value: Some(value) };
        let mut again =
            events(&malformed_item("authentik", odd, raw.get().len(), now())).remove(0).event;
        assert_eq!(again.external_id, expected.external_id);
        // Its tenant is unknown, and its text is redacted.
        again.metadata = expected.metadata.clone();
        assert_eq!(again, expected);
    }
}

#[test]
fn elements_of_stalwart_have_the_ids_that_their_body_would_have_given() {
    for name in ["03-v0.15.5-mixed-batch", "04-v0.16.9-colliding-ids", "06-v0.16.18-mail-flow"] {
        let body = data(&format!("stalwart/{name}.json"));
        let expected = decode("stalwart:eu2", &body, None, now());
        let ids = |events: &[PulledEvent]| -> Vec<_> {
            events.iter().map(|pulled| pulled.event.external_id.clone().unwrap()).collect()
        };
        assert!(!expected.events.is_empty() && expected.quarantine.is_empty());
        let whole = events(&item("stalwart:eu2", "k", "no_events", body.clone()));
        assert_eq!(ids(&whole), ids(&expected.events));

        let envelope: Value = serde_json::from_slice(&body).unwrap();
        let elements: Vec<_> =
            envelope["events"].as_array().unwrap().iter().map(Value::to_string).collect();
        let mut lines = elements.join("\n");
        let several = item("stalwart:eu2", "k", "too_many_odd", lines.clone());
        assert_eq!(ids(&events(&several)), ids(&expected.events));
        // If one of them is still malformed, all of them stay.
        lines.push_str("{}\n");
        let why = refusal(&item("stalwart:eu2", "k", "too_many_odd", lines));
        assert!(why.starts_with("still no_type"), "{why}");
    }
}

#[test]
fn what_cannot_be_read_again_says_why() {
    let long = |start: &str| format!("{start}{}", "x".repeat((64 << 10) - start.len()));
    for (item, why) in [
        (item("ocis", "line:a", "nul_bytes", ""), "nothing of it was kept"),
        (item("ocis", "line:a", "not_json", "what is this"), "still not a JSON object"),
        (
            item("ocis", "line:a", "unknown_type", r#"{"Action":"file_read"}"#),
            "known by now, and skipped on purpose",
        ),
        (item("ocis", "line:a", "line_too_long", long("{\"Action\":\"")), "only its first 64 KiB"),
        (item("authentik", "item:a", "no_pk", long("{\"pk\":\"")), "only its first 64 KiB"),
        (item("stalwart", "a", "no_type", long("{\"type\":\"")), "only its first 64 KiB"),
        (item("numbers", "event:a", "event_invalid", long("{\"id\":\"")), "only its first 64 KiB"),
        // Cut between two elements, the text parses but is incomplete.
        (
            item("stalwart", "a", "too_many_odd", r#"{"type":"a.b"}"#.repeat(4_681)),
            "only its first 64 KiB",
        ),
        (item("numbers", "event:a", "event_invalid", "{}"), "no event at column"),
        (item("numbers", "n-7", "odd", "7"), "no source numbers is declared"),
    ] {
        let said = refusal(&item);
        assert!(said.starts_with(why), "{said} for {why}");
    }
}

/// Items of a declared source are decoded by its current mapping.
#[test]
fn a_declared_source_is_read_by_its_mapping_of_today() {
    let mapping = |action: &str, skip: &[&str]| {
        let config = MappingConfig {
            action: Some(action.into()),
            skip: skip.iter().map(|action| (*action).into()).collect(),
            ..MappingConfig::default()
        };
        Mapping::compile("shop", &config).unwrap()
    };
    let (old, new) = (mapping("/event", &[]), [mapping("/verb", &[])]);
    let body = r#"[{"verb":"paid","token":"S3CRET"},{"verb":"sent","n":1e999}]"#;
    let kept = generic::decode(&old, body.as_bytes(), now()).unwrap().quarantine;
    let expected = generic::decode(&new[0], body.as_bytes(), now()).unwrap().events;
    assert_eq!((kept.len(), expected.len()), (2, 2));
    for (item, expected) in kept.iter().zip(expected) {
        assert!(refusal(item).starts_with("no source shop is declared"));
        let ReprocessResult::Refused(why) = redecode(item, std::slice::from_ref(&old)) else {
            panic!()
        };
        assert!(why.starts_with("still no_action"), "{why}");
        let ReprocessResult::Events(mut again) = redecode(item, &new) else { panic!() };
        let again = again.remove(0);
        assert_eq!(again.event.external_id, expected.event.external_id);
        assert_eq!(again.event.action, expected.event.action);
        assert_eq!(again.event.metadata.source(), expected.event.metadata.source());
    }
    // A line's event keeps the position's id; events of a body without events get content ids.
    let line = item("shop", "line:line1:abc", "no_action", r#"{"verb":"paid"}"#);
    let ReprocessResult::Events(events) = redecode(&line, &new) else { panic!() };
    assert_eq!(events[0].event.external_id.as_deref(), Some("line1:abc"));
    let body = item("shop", "x", "no_events", r#"{"events":[{"verb":"a"},{"verb":"b"}]}"#);
    let ReprocessResult::Events(events) = redecode(&body, &new) else { panic!() };
    assert_eq!(events.len(), 2);
    // An item that yields no events stays in the quarantine.
    let ReprocessResult::Refused(why) = redecode(&line, &[mapping("/verb", &["paid"])]) else {
        panic!()
    };
    assert_eq!(why, "the mapping skips all of it");
}

#[test]
fn a_retry_changes_nothing_or_all_of_it() {
    run(async {
        let place = Place::new().await;
        let intake = place.intake();
        let mut refused = NewEvent::new("Bad Verb", Actor::system());
        refused.external_id = Some("n-1".into());
        intake.ingest(vec![refused.into()], Vec::new(), AppendOptions::default()).await.unwrap();
        let quarantined = async || place.store.quarantined(0, 10).await.unwrap();
        let kept = quarantined().await.remove(0);
        let before = place.count().await;
        let RetryOutcome::Stays(why) = retry(&intake, &kept, &[]).await.unwrap() else { panic!() };
        assert!(why.starts_with("action"), "{why}");
        assert_eq!((quarantined().await.len(), place.count().await), (1, before));

        // As if this version accepted the item.
        let raw =
            String::from_utf8(kept.item.raw.clone()).unwrap().replace("Bad Verb", "good.verb");
        let mut mended = QuarantinedItem { item: kept.item.clone(), ..kept.clone() };
        mended.item.raw = raw.into();
        let released = RetryOutcome::Released { stored: 1, duplicates: 0 };
        assert_eq!(retry(&intake, &mended, &[]).await.unwrap(), released);
        assert_eq!((quarantined().await.len(), place.count().await), (0, before + 1));
        // Again, as if the response had been lost.
        let released = RetryOutcome::Released { stored: 0, duplicates: 1 };
        assert_eq!(retry(&intake, &mended, &[]).await.unwrap(), released);
        assert_eq!(place.count().await, before + 1);
        place.assert_whole().await;
    });
}

#[test]
fn a_retry_says_that_the_item_was_dropped_meanwhile() {
    run(async {
        let place = Place::new().await;
        let intake = place.intake();
        let config = serde_json::from_str(r#"{"action":"/verb","id":"/id"}"#).unwrap();
        let mapping = [Mapping::compile("shop", &config).unwrap()];
        let odd = item("shop", "x", "no_action", r#"{"verb":"paid","id":"1"}"#);
        intake.ingest(Vec::new(), vec![odd], AppendOptions::default()).await.unwrap();
        let kept = place.store.quarantined(0, 10).await.unwrap().remove(0);
        assert!(drop_item(&intake, &kept, Actor::system(), "seen").await.unwrap());
        let retried = retry(&intake, &kept, &mapping).await.unwrap();
        let RetryOutcome::Stays(why) = retried else { panic!("{retried:?}") };
        assert!(why.contains("dropped"), "{why}");
    });
}

#[test]
fn a_drop_says_so_once() {
    run(async {
        let place = Place::new().await;
        let intake = place.intake();
        let odd = item("numbers", "n-7", "odd", "7");
        intake.ingest(Vec::new(), vec![odd], AppendOptions::default()).await.unwrap();
        let kept = place.store.quarantined(0, 10).await.unwrap().remove(0);
        for note in ["", " ", "a\nb", &"x".repeat(1_001)] {
            let error = drop_item(&intake, &kept, Actor::system(), note).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FieldInvalid);
        }
        let before = place.count().await;
        assert!(drop_item(&intake, &kept, Actor::system(), "seen").await.unwrap());
        assert!(!drop_item(&intake, &kept, Actor::system(), "seen").await.unwrap());
        assert_eq!(place.count().await, before + 1);
        assert!(place.store.quarantined(0, 10).await.unwrap().is_empty());
    });
}
