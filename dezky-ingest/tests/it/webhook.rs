//! Signed bodies through the receiver into a real store.

use std::time::Duration;

use dezky_core::store::ListQuery;
use dezky_core::{Actor, ErrorKind, NewEvent, PulledEvent};
use dezky_ingest::signature::Secrets;
use dezky_ingest::stalwart::StalwartReceiver;

use crate::{Place, data, run};

const KEY: &str = "test-shared-secret-0123456789abcdef";

fn secrets() -> Secrets {
    Secrets::from_texts([KEY]).unwrap()
}

fn receiver(place: &Place) -> StalwartReceiver {
    StalwartReceiver::new("stalwart", secrets(), place.intake()).unwrap()
}

async fn post(place: &Place, body: &[u8]) -> dezky_ingest::IngestSummary {
    let signature = secrets().sign_base64(body);
    receiver(place).receive(Some(&signature), body, None).await.unwrap()
}

#[test]
fn colliding_ids_are_two_and_a_retry_adds_none() {
    run(async {
        let place = Place::new().await;
        let taken = post(&place, &data("stalwart/04-v0.16.9-colliding-ids.json")).await;
        assert_eq!((taken.stored, taken.received()), (2, 2));
        let first = post(&place, &data("stalwart/05a-v0.16.18-first-delivery.json")).await;
        assert_eq!((first.stored, first.received()), (2, 2));
        let retry =
            post(&place, &data("stalwart/05b-v0.16.18-retry-same-events-new-ids.json")).await;
        assert_eq!((retry.stored, retry.duplicates, retry.conflicts), (0, 2, 0));
        assert_eq!(retry.received(), 2, "a retry gets the same response");
        assert_eq!(place.of_source("stalwart").await.len(), 4);
        place.assert_whole().await;
    });
}

#[test]
fn every_fixture_is_stored_whole() {
    run(async {
        let place = Place::new().await;
        for (name, events) in [
            ("01-v0.8.4-auth-failure.json", 1),
            ("02-v0.9.4-auth-failed.json", 1),
            ("03-v0.15.5-mixed-batch.json", 4),
            ("06-v0.16.18-mail-flow.json", 4),
        ] {
            let taken = post(&place, &data(&format!("stalwart/{name}"))).await;
            assert_eq!((taken.stored, taken.quarantined), (events, 0), "{name}");
        }
        place.assert_whole().await;
    });
}

#[test]
fn odd_events_are_quarantined_and_the_rest_goes_on() {
    run(async {
        let place = Place::new().await;
        let long = "x".repeat(600);
        let body = format!(
            r#"{{"events":[{{"id":"1","createdAt":"2026-08-17T10:00:00Z","type":"auth.success","data":{{}}}},
                7, {{"id":"2"}}, {{"id":"{long}","type":"auth.success","data":{{}}}}]}}"#
        );
        for round in 0..2 {
            let taken = post(&place, body.as_bytes()).await;
            assert_eq!(taken.received(), 4, "every item is accepted, also the second time");
            assert_eq!(taken.quarantined, 2);
            assert_eq!(taken.new_quarantined, if round == 0 { 2 } else { 0 });
        }
        assert_eq!(
            place.of_source("stalwart").await.len(),
            2,
            "including the one with the long id"
        );
        let notices = ListQuery { action: Some("ingest.quarantined".into()), ..Default::default() };
        assert_eq!(place.list(notices).await.len(), 2);
        let taken = post(&place, b"no JSON at all").await;
        assert_eq!((taken.quarantined, taken.received()), (1, 1));
    });
}

#[test]
fn more_events_than_one_append_takes() {
    run(async {
        let place = Place::new().await;
        let events: Vec<_> = (0..12_345)
            .map(|n| format!(r#"{{"id":"e-{n}","type":"auth.success","data":{{}}}}"#))
            .collect();
        let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
        assert_eq!(post(&place, body.as_bytes()).await.stored, 12_345);
        assert_eq!(post(&place, body.as_bytes()).await.duplicates, 12_345);
    });
}

#[test]
fn a_wrong_signature_writes_nothing() {
    run(async {
        let place = Place::new().await;
        let body = data("stalwart/02-v0.9.4-auth-failed.json");
        for signature in [None, Some("deadbeef"), Some("")] {
            let error = receiver(&place).receive(signature, &body, None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SignatureInvalid);
        }
        assert_eq!(place.count().await, 0);
        assert!(place.store.quarantined(0, 1).await.unwrap().is_empty());
    });
}

#[test]
fn secrets_in_a_body_reach_no_file() {
    run(async {
        let place = Place::new().await;
        let secret = "hunter2-in-the-clear";
        let body = format!(
            r#"{{"events":[
                {{"id":"1","type":"imap.raw-input","data":{{"contents":"A1 LOGIN bob {secret}"}}}},
                {{"id":"2","type":"auth.error","data":{{"id":"{secret}","details":"Bearer {secret}"}}}},
                {{"id":"3","data":{{"contents":"{secret}"}}}}]}}"#
        );
        assert_eq!(post(&place, body.as_bytes()).await.received(), 3);
        post(&place, format!("contents: {secret}").as_bytes()).await;
        // The database is still open, so its set of files does not change during the check.
        for entry in std::fs::read_dir(place.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{} holds the secret", path.display());
        }
    });
}

#[test]
fn an_instance_is_a_source_of_its_own() {
    run(async {
        let place = Place::new().await;
        let eu2 = StalwartReceiver::new("stalwart:eu2", secrets(), place.intake()).unwrap();
        let body = data("stalwart/04-v0.16.9-colliding-ids.json");
        let signature = secrets().sign_hex(&body);
        assert_eq!(eu2.receive(Some(&signature), &body, None).await.unwrap().stored, 2);
        assert_eq!(post(&place, &body).await.stored, 2, "the scope is part of the identity");
        assert_eq!(place.of_source("stalwart").await.len(), 4);
        assert_eq!(place.of_source("stalwart:eu2").await.len(), 2);
        for bad in ["stalwart:", "stalwart:a b", "other", "stalwartx"] {
            assert!(StalwartReceiver::new(bad, secrets(), place.intake()).is_err(), "{bad}");
        }
    });
}

/// Checks a receiver of events whose ids don't identify them, and returns the violated
/// requirements. `take` returns the number of rows that a body added.
async fn faults(mut take: impl AsyncFnMut(&[u8]) -> usize) -> Vec<&'static str> {
    let mut faults = Vec::new();
    if take(&data("stalwart/04-v0.16.9-colliding-ids.json")).await != 2 {
        faults.push("different failures in one second count as one: a password spray is missed");
    }
    if take(&data("stalwart/05a-v0.16.18-first-delivery.json")).await != 2 {
        faults.push("a first delivery is not stored");
    }
    if take(&data("stalwart/05b-v0.16.18-retry-same-events-new-ids.json")).await != 0 {
        faults.push("a retry is stored again");
    }
    faults
}

#[test]
fn deduplicating_by_id_loses_some_and_doubles_others() {
    run(async {
        let place = Place::new().await;
        assert_eq!(faults(async |body| post(&place, body).await.stored).await, [""; 0]);

        // A naive receiver: the sender's id identifies an event.
        let place = Place::new().await;
        let naive = async |body: &[u8]| {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            let event = |event: &serde_json::Value| NewEvent {
                source: "stalwart".into(),
                external_id: Some(event["id"].as_str().unwrap().into()),
                ..NewEvent::new("stalwart.event", Actor::system())
            };
            let events = body["events"].as_array().unwrap().iter();
            let events = events.map(|e| PulledEvent::from(event(e))).collect();
            place.intake().ingest_or_spool(events, vec![]).await.unwrap().stored
        };
        assert_eq!(
            faults(naive).await,
            [
                "different failures in one second count as one: a password spray is missed",
                "a retry is stored again",
            ]
        );
    });
}

#[test]
fn what_lies_outside_the_window_is_kept_aside() {
    run(async {
        let place = Place::new().await;
        let now = place.intake().runtime().now();
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let event = |n: u8, at: String| {
            format!(
                r#"{{"createdAt":"{at}","type":"auth.failed","data":{{"accountName":"u{n}@acme.example"}}}}"#
            )
        };
        let before = |by| {
            let millis = i64::try_from(by).unwrap();
            dezky_core::Timestamp::from_millis_clamped(now.as_millis() - millis).to_string()
        };
        let events = [
            event(1, before(hours(25).as_millis())),
            event(2, before(hours(23).as_millis())),
            event(3, now.saturating_add(hours(1)).to_string()),
            event(4, now.saturating_add(Duration::from_mins(2)).to_string()),
            event(5, "yesterday".into()),
        ];
        let body = format!("[{}]", events.join(","));
        let signature = secrets().sign_base64(body.as_bytes());
        let windowed = receiver(&place).with_max_age(hours(24));
        for round in 0..2 {
            let taken = windowed.receive(Some(&signature), body.as_bytes(), None).await.unwrap();
            assert_eq!((taken.received(), taken.quarantined), (5, 2));
            assert_eq!(taken.new_quarantined, if round == 0 { 2 } else { 0 });
        }
        let kept = place.store.quarantined(0, 10).await.unwrap();
        assert!(kept.iter().all(|kept| kept.item.reason == "too_old"), "{kept:?}");
        assert!(kept[0].item.detail.contains("86400 s ago"), "{}", kept[0].item.detail);
        assert!(kept[1].item.detail.contains("ahead"), "{}", kept[1].item.detail);
        let raw = String::from_utf8(kept[0].item.raw.clone()).unwrap();
        assert!(raw.contains("u1@acme.example"), "{raw}");
        // Without a maximum age all events are accepted, and three exist already.
        let taken = post(&place, body.as_bytes()).await;
        assert_eq!((taken.stored, taken.duplicates, taken.quarantined), (2, 3, 0));
    });
}

#[test]
fn two_unreadable_bodies_of_one_length_are_two_and_a_repeat_is_none() {
    run(async {
        let place = Place::new().await;
        let receiver = receiver(&place);
        let bodies = [&b"not JSON, pin=1234"[..], b"not JSON, pin=1235"];
        for (body, new) in [(bodies[0], 1), (bodies[1], 1), (bodies[0], 0)] {
            let signature = secrets().sign_base64(body);
            let taken = receiver.receive(Some(&signature), body, None).await.unwrap();
            assert_eq!((taken.received(), taken.new_quarantined), (1, new));
        }
        let items = place.store.quarantined(0, 10).await.unwrap();
        assert_eq!(items.len(), 2);
        for (item, body) in items.iter().zip(bodies) {
            // The digest is keyed, so nobody can find the PIN by trying them all.
            let plain = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(body));
            assert!(!item.item.key.contains(&plain), "{}", item.item.key);
            assert!(!item.item.key.contains(&secrets().sign_hex(body)), "{}", item.item.key);
        }
    });
}
