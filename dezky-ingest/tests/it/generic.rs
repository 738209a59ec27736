//! Declared sources into a real store: signed posts, and files that rotate.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, ListQuery};
use dezky_core::{
    Actor, AuditStore, ErrorKind, IngestSource, NewEvent, NewMetadata, Outcome, PullLimits, Result,
};
use dezky_ingest::generic::{
    GenericReceiver, MAX_BODY_EVENTS, MappedLines, Mapping, MappingConfig,
};
use dezky_ingest::signature::{Headers, Scheme, Secrets};
use dezky_ingest::{IngestSummary, Intake, Pump, PumpConfig};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::moody::{Mood, Moody};
use crate::{Place, run};

const KEY: &str = "test-shared-secret-0123456789abcdef";

fn mapping(declared: Value) -> Mapping {
    let config: MappingConfig = serde_json::from_value(declared).unwrap();
    Mapping::compile("shop", &config).unwrap()
}

fn plain() -> Mapping {
    mapping(json!({"action": "/event", "at": "/at", "redact": ["/pin"]}))
}

fn receiver(place: &Place, keys: &[&str]) -> GenericReceiver {
    GenericReceiver::new(plain(), Secrets::from_texts(keys).unwrap(), place.intake())
}

async fn post(place: &Place, body: &str) -> IngestSummary {
    let signature = Secrets::from_texts([KEY]).unwrap().sign_hex(body.as_bytes());
    receiver(place, &[KEY]).receive(Some(&signature), body.as_bytes()).await.unwrap()
}

#[test]
fn a_retry_adds_none_and_equal_events_are_two() {
    run(async {
        let place = Place::new().await;
        let body = r#"[{"event":"paid","n":1},{"event":"paid","n":1},{"event":"sent"},{"x":1},7]"#;
        let taken = post(&place, body).await;
        assert_eq!((taken.stored, taken.quarantined, taken.received()), (3, 2, 5));
        let again = post(&place, body).await;
        assert_eq!((again.stored, again.new_quarantined, again.received()), (0, 0, 5));
        assert_eq!(place.of_source("shop").await.len(), 3);
        let notices = ListQuery { action: Some("ingest.quarantined".into()), ..Default::default() };
        assert_eq!(place.list(notices).await.len(), 2);
        place.assert_whole().await;
    });
}

#[test]
fn a_wrong_signature_or_too_many_events_write_nothing() {
    run(async {
        let place = Place::new().await;
        let body = r#"{"event":"paid"}"#;
        let other = Secrets::from_texts(["another secret"]).unwrap().sign_base64(body.as_bytes());
        for signature in [None, Some("deadbeef"), Some(""), Some(&*other)] {
            let receiver = receiver(&place, &[KEY]);
            let error = receiver.receive(signature, body.as_bytes()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SignatureInvalid);
        }
        // Of several secrets any may have signed.
        let both = receiver(&place, &[KEY, "another secret"]);
        assert_eq!(both.receive(Some(&other), body.as_bytes()).await.unwrap().stored, 1);

        let many = format!("[{}]", vec![body; MAX_BODY_EVENTS + 1].join(","));
        let signature = Secrets::from_texts([KEY]).unwrap().sign_base64(many.as_bytes());
        let error = both.receive(Some(&signature), many.as_bytes()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(place.count().await, 1);
        assert!(place.store.quarantined(0, 1).await.unwrap().is_empty());
    });
}

#[test]
fn more_events_than_one_append_takes() {
    run(async {
        let place = Place::new().await;
        let body = format!("[{}]", vec![r#"{"event":"paid"}"#; MAX_BODY_EVENTS].join(","));
        assert_eq!(post(&place, &body).await.stored, MAX_BODY_EVENTS);
        assert_eq!(post(&place, &body).await.duplicates, MAX_BODY_EVENTS);
    });
}

fn pump(place: &Place, file: &Path) -> Pump {
    let tail = MappedLines::follow(plain(), file, 4_096, Arc::new(TokioRuntime)).unwrap();
    Pump::new(Box::new(tail), place.intake(), PumpConfig::default())
}

/// Ticks until nothing is waiting.
async fn drain(pump: &mut Pump) -> (usize, usize) {
    let (mut stored, mut quarantined) = (0, 0);
    loop {
        let tick = pump.tick().await.unwrap();
        assert!(!tick.standby);
        stored += tick.taken.stored;
        quarantined += tick.taken.new_quarantined;
        if !tick.more {
            return (stored, quarantined);
        }
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn line(event: &str) -> String {
    format!("{{\"event\":\"{event}\",\"at\":\"2026-08-17T10:00:00Z\"}}\n")
}

async fn actions(place: &Place) -> Vec<String> {
    let mut events = place.of_source("shop").await;
    events.sort_by_key(|event| event.seq);
    events.into_iter().map(|event| event.event.action).collect()
}

#[test]
fn a_file_is_followed_over_rotation_and_restarts() {
    run(async {
        let place = Place::new().await;
        let (live, rotated) = (place.path("audit.ndjson"), place.path("audit.ndjson.1"));
        let mut first = pump(&place, &live);
        assert_eq!(drain(&mut first).await, (0, 0), "the file may come later");

        append(&live, &format!("{}{}\n \r\n{}{{\"ev", line("a"), line("a"), line("b")));
        assert_eq!(drain(&mut first).await, (3, 0), "equal lines are two, half a line waits");
        append(&live, "ent\":\"c\"}\n");
        std::fs::rename(&live, &rotated).unwrap();
        append(&rotated, &line("late"));
        append(&live, &line("d"));
        assert_eq!(drain(&mut first).await, (3, 0));

        // Another process continues where this one stopped.
        first.release().await;
        drop(first);
        append(&live, &line("e"));
        let mut second = pump(&place, &live);
        assert_eq!(drain(&mut second).await, (1, 0));
        std::fs::write(&live, "").unwrap();
        append(&live, &line("f"));
        assert_eq!(
            drain(&mut second).await,
            (2, 0),
            "the line, and an event about lines that may be lost"
        );
        let expected =
            ["a", "a", "b", "c", "late", "d", "e", "f"].map(|verb| format!("shop.{verb}"));
        let mut found = actions(&place).await;
        found.retain(|action| action != "ingest.gap");
        assert_eq!(found, expected);
        let gaps = ListQuery { action: Some("ingest.gap".into()), ..Default::default() };
        assert_eq!(place.list(gaps).await.len(), 1);
        place.assert_whole().await;
    });
}

#[test]
fn odd_lines_are_quarantined_and_the_rest_goes_on() {
    run(async {
        let place = Place::new().await;
        let live = place.path("audit.ndjson");
        let secret = "S3cret-in-the-clear";
        let lines = [
            line("a"),
            format!("password={secret}\n"),
            format!("{{\"pin\":\"{secret}\",\"token\":\"{secret}\"}}\n"),
            format!("[\"{}\"]\n", "x".repeat(10)),
            format!("long={}\n", secret.repeat(1_000)),
            "\0\0\0\0\0\0\n".to_owned(),
            line("b").replace('\n', "\r\n"),
            format!("\u{feff}{}", line("c")),
        ];
        append(&live, &lines.concat());
        let mut pump = pump(&place, &live);
        assert_eq!(drain(&mut pump).await, (3, 5));
        assert_eq!(actions(&place).await, ["shop.a", "shop.b", "shop.c"]);
        let items = place.store.quarantined(0, 10).await.unwrap();
        let reasons: Vec<_> = items.iter().map(|item| &*item.item.reason).collect();
        assert_eq!(
            reasons,
            ["not_json", "no_action", "not_an_object", "line_too_long", "not_json"]
        );
        for item in &items {
            let raw = String::from_utf8_lossy(&item.item.raw);
            assert!(!raw.contains(secret) && item.item.key.starts_with("line:line1:"), "{raw}");
        }
        // The database is still open, so its set of files does not change during the check.
        for entry in std::fs::read_dir(place.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found || path == live, "{} holds the secret", path.display());
        }
        assert_eq!(drain(&mut pump).await, (0, 0));
    });
}

#[test]
fn four_of_four_lines_of_generations_that_begin_alike_are_stored() {
    run(async {
        let place = Place::new().await;
        let (live, rotated) = (place.path("audit.ndjson"), place.path("audit.ndjson.1"));
        append(&live, &(line("opened") + &line("a")));
        let mut first = pump(&place, &live);
        assert_eq!(drain(&mut first).await, (2, 0));
        std::fs::rename(&live, &rotated).unwrap();
        append(&live, &(line("opened") + &line("b")));
        assert_eq!(drain(&mut first).await, (2, 0));
        let expected = ["opened", "a", "opened", "b"].map(|verb| format!("shop.{verb}"));
        assert_eq!(actions(&place).await, expected);
        let mut ids: Vec<_> = place.of_source("shop").await;
        ids.sort_by_key(|event| event.seq);
        let ids: Vec<_> = ids.into_iter().filter_map(|stored| stored.event.external_id).collect();
        let kinds: Vec<_> = ids.iter().map(|id| &id[..6]).collect();
        assert_eq!(kinds, ["line1:", "line1:", "line2:", "line1:"]);

        // Read again from the beginning by another process.
        let mut tail = MappedLines::follow(plain(), &live, 4_096, Arc::new(TokioRuntime)).unwrap();
        let pull = IngestSource::pull(&mut tail, None, PullLimits::default()).await.unwrap();
        let again = place.intake().ingest(pull.events, vec![], AppendOptions::default()).await;
        let again = again.unwrap();
        assert_eq!((again.stored, again.duplicates, again.conflicts), (0, 4, 0));
    });
}

#[test]
fn a_long_object_is_an_event_with_its_long_values_cut() {
    run(async {
        let place = Place::new().await;
        let live = place.path("audit.ndjson");
        let long = format!(
            "{{\"event\":\"long\",\"text\":\"{}\",\"token\":\"{}\",\"n\":1.50}}",
            "word ".repeat(400_000),
            "s3cret".repeat(2_000)
        );
        append(&live, &format!("{long}\n{}", line("b")));
        let mut pump = pump(&place, &live);
        assert_eq!(drain(&mut pump).await, (2, 0));
        let mut events = place.of_source("shop").await;
        events.sort_by_key(|event| event.seq);
        let event = &events[0].event;
        assert_eq!(event.action, "shop.long");
        let said = event.metadata.to_value();
        assert!(said["text"].as_str().unwrap().ends_with("word…"));
        assert_eq!((&said["token"], &said["n"]), (&json!("[redacted]"), &json!(1.50)));
        assert_eq!(said["_dezky"]["cut"]["line"]["bytes"], long.len());

        // Data waiting after the last newline is reported.
        append(&live, "{\"event\":\"half");
        assert_eq!(drain(&mut pump).await, (0, 0));
        let waiting = pump.status().waiting.unwrap();
        assert_eq!((waiting.reason, waiting.bytes), ("no_newline", 14));
        let shown = serde_json::to_value(pump.status()).unwrap();
        assert_eq!(shown["waiting"], json!({"reason": "no_newline", "bytes": 14}));
    });
}

#[test]
fn the_same_id_by_both_ways_is_one_event() {
    run(async {
        let place = Place::new().await;
        let declared = || mapping(json!({"action": "/event", "id": "/id"}));
        let live = place.path("audit.ndjson");
        let object = r#"{"event":"paid","id":"e-1"}"#;
        append(&live, &format!("{object}\n"));
        let tail = MappedLines::follow(declared(), &live, 4_096, Arc::new(TokioRuntime)).unwrap();
        let mut pump = Pump::new(Box::new(tail), place.intake(), PumpConfig::default());
        assert_eq!(drain(&mut pump).await, (1, 0));
        let secrets = Secrets::from_texts([KEY]).unwrap();
        let signature = secrets.sign_base64(object.as_bytes());
        let receiver = GenericReceiver::new(declared(), secrets, place.intake());
        let taken = receiver.receive(Some(&signature), object.as_bytes()).await.unwrap();
        assert_eq!((taken.stored, taken.duplicates, taken.conflicts), (0, 1, 0));
        let only = place.of_source("shop").await;
        assert_eq!(only[0].event.external_id.as_deref(), Some("e-1"));
    });
}

/// A log that the pumps and receivers of several processes share, as the server has it.
fn declared(place: &Place, declared: Value, scheme: Value) -> GenericReceiver {
    let scheme = Scheme::compile(&serde_json::from_value(scheme).unwrap()).unwrap();
    let secrets = Secrets::from_texts([KEY]).unwrap();
    GenericReceiver::new(mapping(declared), secrets, place.intake()).with_scheme(scheme)
}

/// A signed request with further headers.
async fn send(
    receiver: &GenericReceiver,
    more: &[(&str, &str)],
    body: &[u8],
) -> Result<IngestSummary> {
    let signature = Secrets::from_texts([KEY]).unwrap().sign_base64(body);
    let lines = more.iter().copied().chain([("x-signature", signature.as_str())]);
    receiver.receive_request(&Headers::new(lines), body, |_| true).await
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_answered_with_success_is_kept_and_all_else_is_refused() {
    run(async {
        let place = Place::new().await;
        let shop = receiver(&place, &[KEY]);
        let encoded = |encoding: &'static str| [("content-encoding", encoding)];
        let (one, two) = (&br#"{"event":"a"}"#[..], &b"{\"event\":\"b\"}\n{\"event\":\"c\"}"[..]);
        let whole = [gzip(one), gzip(two)].concat();
        for (headers, body, stored) in [
            (&encoded("gzip")[..], &whole[..], 3),
            (&encoded("GZIP, identity"), &gzip(b"{\"event\":\"d\"}"), 1),
            (&encoded("identity"), b"{\"event\":\"e\"}{\"event\":\"f\"}", 2),
            (&[("content-type", "application/x-www-form-urlencoded")], b"{\"event\":\"g\"}", 1),
        ] {
            let taken = send(&shop, headers, body).await.unwrap();
            assert_eq!((taken.stored, taken.received()), (stored, stored));
            assert_eq!(send(&shop, headers, body).await.unwrap().duplicates, stored);
        }
        let head = place.count().await;
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let cut = &whole[..whole.len() - 9];
        let trailing = [&whole[..], b"junk"].concat();
        for (headers, body, kind) in [
            (&encoded("gzip")[..], cut, ErrorKind::BodyInvalid),
            (&encoded("gzip"), &trailing, ErrorKind::BodyInvalid),
            (&encoded("gzip"), one, ErrorKind::BodyInvalid),
            (&encoded("gzip"), b"", ErrorKind::BodyInvalid),
            (&encoded("gzip, gzip"), &whole, ErrorKind::MediaUnsupported),
            (&encoded("br"), &whole, ErrorKind::MediaUnsupported),
            (&[], &whole, ErrorKind::BodyInvalid),
            (&form, b"event=a", ErrorKind::MediaUnsupported),
            (&[("content-type", "application/json")], b"event=a", ErrorKind::BodyInvalid),
            (&[], b"a line of text", ErrorKind::BodyInvalid),
        ] {
            let error = send(&shop, headers, body).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{headers:?} {body:?} {error}");
        }
        assert_eq!(place.count().await, head, "nothing of them was stored");
        assert!(place.store.quarantined(0, 1).await.unwrap().is_empty());
    });
}

#[test]
fn a_body_that_would_grow_without_measure_is_refused() {
    run(async {
        let place = Place::new().await;
        let shop = receiver(&place, &[KEY]).with_max_body_bytes(3 << 20);
        let headers = [("content-encoding", "gzip")];
        let spaces = |bytes: usize| {
            let mut body = vec![b' '; bytes];
            body.extend(br#"{"event":"a"}"#);
            gzip(&body)
        };
        assert_eq!(send(&shop, &headers, &spaces(900 << 10)).await.unwrap().stored, 1);
        for (bytes, words) in [(2 << 20, "200 times"), (4 << 20, "200 times")] {
            let error = send(&shop, &headers, &spaces(bytes)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            assert!(error.to_string().contains(words), "{error}");
        }
        // Digits that hardly compress, so that the limit on the unpacked size applies.
        let mut digits = Vec::new();
        for n in 0_u32..500_000 {
            digits.extend(n.wrapping_mul(2_654_435_761).to_string().bytes());
        }
        let error = send(&shop, &headers, &gzip(&digits)).await.unwrap_err();
        assert!(error.to_string().contains("3145728 bytes, unpacked"), "{error}");
        let body = gzip(br#"{"event":"b"}"#);
        let signature = Secrets::from_texts([KEY]).unwrap().sign_base64(&body);
        let lines = [("content-encoding", "gzip"), ("x-signature", signature.as_str())];
        let busy = shop.receive_request(&Headers::new(lines), &body, |_| false).await.unwrap_err();
        assert!(busy.is_retryable(), "{busy}");
    });
}

#[test]
fn a_signature_covers_the_body_as_it_was_sent() {
    run(async {
        let place = Place::new().await;
        let github = declared(&place, json!({"action": "/event"}), json!({"scheme": "github"}));
        let body = gzip(br#"{"event":"a"}"#);
        let secrets = Secrets::from_texts([KEY]).unwrap();
        let post = async |signed: &[u8]| {
            let signature = format!("sha256={}", secrets.sign_hex(signed));
            let lines = [("X-Hub-Signature-256", signature.as_str()), ("Content-Encoding", "gzip")];
            github.receive_request(&Headers::new(lines), &body, |_| true).await
        };
        assert_eq!(post(&body).await.unwrap().stored, 1);
        let error = post(br#"{"event":"a"}"#).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SignatureInvalid);
    });
}

const STAGES: [&str; 3] = [
    r#"{"event":"update","id":"u-1","stage":"RequestReceived"}"#,
    r#"{"event":"update","id":"u-1","stage":"ResponseComplete","code":"403"}"#,
    r#"{"event":"update","id":"u-1","stage":"Panic"}"#,
];

fn by_id() -> Value {
    json!({"action": "/event", "id": "/id", "outcome": "/code", "outcomes": {"403": "denied"}})
}

/// The external ids of the source, and the ids that they share.
async fn ids(place: &Place) -> Vec<(String, Value)> {
    let mut events = place.of_source("shop").await;
    events.sort_by_key(|event| event.seq);
    let id = |event: dezky_core::StoredEvent| {
        let shared = event.event.metadata.to_value()["_dezky"]["sharedId"].clone();
        (event.event.external_id.unwrap(), shared)
    };
    events.into_iter().map(id).collect()
}

#[test]
fn events_that_share_an_id_and_differ_are_all_kept_and_repeats_are_not() {
    run(async {
        let place = Place::new().await;
        let shop = || declared(&place, by_id(), json!({}));
        // In one body, then in others, through separate receivers.
        let body = format!("[{},{},{}]", STAGES[0], STAGES[1], STAGES[0]);
        let taken = send(&shop(), &[], body.as_bytes()).await.unwrap();
        assert_eq!((taken.stored, taken.duplicates, taken.conflicts), (2, 1, 0));
        let taken = send(&shop(), &[], STAGES[2].as_bytes()).await.unwrap();
        assert_eq!(
            (taken.stored, taken.conflicts),
            (1, 0),
            "a difference in metadata alone makes another event"
        );
        // Repeated with other formatting, in another order, and through the file.
        for body in [body, format!("[{}, {}]", STAGES[2], STAGES[1].replace(':', " : "))] {
            let taken = send(&shop(), &[], body.as_bytes()).await.unwrap();
            assert_eq!((taken.stored, taken.conflicts), (0, 0), "{body}");
        }
        let live = place.path("audit.ndjson");
        append(&live, &format!("{}\n{}\n{}\n", STAGES[2], STAGES[0], STAGES[1]));
        let tail = MappedLines::follow(mapping(by_id()), &live, 4_096, Arc::new(TokioRuntime));
        let mut pump = Pump::new(Box::new(tail.unwrap()), place.intake(), PumpConfig::default());
        assert_eq!(drain(&mut pump).await, (0, 0));

        let ids = ids(&place).await;
        assert_eq!((ids.len(), &ids[0]), (3, &("u-1".to_owned(), Value::Null)));
        for (id, shared) in &ids[1..] {
            assert!(id.starts_with("u-1~") && id.len() == 36, "{id}");
            assert_eq!(shared, "u-1");
        }
        let denied = place.of_source("shop").await;
        assert_eq!(denied.iter().filter(|e| e.event.outcome == Outcome::Denied).count(), 1);
        place.assert_whole().await;
    });
}

#[test]
fn events_with_one_id_that_differ_only_in_what_is_cut_are_all_kept() {
    run(async {
        let place = Place::new().await;
        let shop = declared(&place, by_id(), json!({}));
        let body = |end: &str| {
            format!(r#"{{"event":"a","id":"long","text":"{}{end}"}}"#, "x".repeat(60_000))
        };
        for (body, stored) in [(body("1"), 1), (body("2"), 1), (body("1"), 0), (body("2"), 0)] {
            assert_eq!(send(&shop, &[], body.as_bytes()).await.unwrap().stored, stored);
        }
        // The same for lines longer than the part that is kept in memory.
        let live = place.path("audit.ndjson");
        let line = |end| body(end).replace("long", "line") + "\n";
        append(&live, &[line("1"), line("2"), line("1")].concat());
        let tail = MappedLines::follow(mapping(by_id()), &live, 4_096, Arc::new(TokioRuntime));
        let mut pump = Pump::new(Box::new(tail.unwrap()), place.intake(), PumpConfig::default());
        assert_eq!(drain(&mut pump).await, (2, 0));
        assert_eq!(ids(&place).await.len(), 4);
    });
}

#[test]
fn events_with_one_id_that_differ_in_more_than_secrets_are_all_kept() {
    run(async {
        let place = Place::new().await;
        for (id, urls) in [
            ("1", ["/cb?code=S1", "/cb?code=S2&error=access_denied"]),
            ("2", ["/cb?token=S&result=ok&code=S", "/cb?token=S&result=denied&code=S"]),
        ] {
            let body = |url| json!({"event": "cb", "id": id, "url": url}).to_string();
            for (url, stored) in [(urls[0], 1), (urls[1], 1), (urls[0], 0), (urls[1], 0)] {
                let shop = declared(&place, by_id(), json!({}));
                let taken = send(&shop, &[], body(url).as_bytes()).await.unwrap();
                assert_eq!(taken.stored, stored, "{url}");
            }
        }
        assert_eq!(ids(&place).await.len(), 4);
    });
}

/// An event of the shop as an earlier version of the rules stored it.
fn stored_before(id: &str, said: &Value) -> dezky_core::SealedEvent {
    let mut metadata = NewMetadata::from_value(said).with_annotation("rawAction", "a");
    if said.to_string().contains("[redacted]") {
        metadata.annotate("redacted", true);
    }
    let event = NewEvent {
        source: "shop".into(),
        external_id: Some(id.into()),
        metadata,
        ..NewEvent::new("shop.a", Actor::system())
    };
    event.seal(&TokioRuntime)
}

#[test]
fn what_was_stored_under_earlier_rules_is_not_stored_again() {
    run(async {
        let place = Place::new().await;
        let said = |id: &str, field: &str, value: Value| json!({"event": "a", "id": id, "n": 1, field: value});
        let long = "x".repeat(70_000);
        for (id, field, before, now) in [
            ("learned", "jwt", json!("S3cret"), json!("S3cret")),
            ("forgotten", "hashed_token", json!("[redacted]"), json!("ab12")),
            ("in-address", "url", json!("/?code=S3&a=1"), json!("/?code=S3&a=1")),
            ("reduced", "text", json!(long), json!(long)),
        ] {
            let event = stored_before(id, &said(id, field, before));
            place.store.append(vec![event], AppendOptions::default()).await.unwrap();
            let shop = declared(&place, by_id(), json!({}));
            let body = said(id, field, now);
            let taken = send(&shop, &[], body.to_string().as_bytes()).await.unwrap();
            assert_eq!((taken.stored, taken.duplicates), (0, 1), "{id}");
            // An event with the same id and different content is stored as well.
            let mut other = body;
            other["n"] = 2.into();
            let taken = send(&shop, &[], other.to_string().as_bytes()).await.unwrap();
            assert_eq!(taken.stored, 1, "{id}");
        }
    });
}

#[test]
fn the_count_of_odd_posts_is_told_when_they_end() {
    run(async {
        let place = Place::new().await;
        let shop = receiver(&place, &[KEY]);
        let odd = |from: usize, count: usize| {
            let odd = (from..from + count).map(|n| format!(r#"{{"x":{n}}}"#));
            format!("[{}]", odd.collect::<Vec<_>>().join(","))
        };
        for (from, count) in [(0, 100), (100, 90), (190, 50)] {
            let taken = send(&shop, &[], odd(from, count).as_bytes()).await.unwrap();
            assert_eq!(taken.quarantined, count);
        }
        let counts = async || {
            let query = ListQuery {
                action: Some("ingest.quarantined".into()),
                limit: 500,
                ..ListQuery::default()
            };
            let told = place.list(query).await;
            let count = told
                .iter()
                .filter_map(|event| event.event.metadata.to_value()["_dezky"]["count"].as_u64());
            let mut counts: Vec<_> = count.collect();
            counts.sort_unstable();
            counts
        };
        assert_eq!(counts().await, [90], "fewer than twice as many");
        for event in ["a", "b"] {
            let body = format!(r#"{{"event":"{event}"}}"#);
            assert_eq!(send(&shop, &[], body.as_bytes()).await.unwrap().stored, 1);
            assert_eq!(counts().await, [90, 140]);
        }
        // At most one notice a minute, because thousands of posts may arrive.
        send(&shop, &[], odd(300, 3).as_bytes()).await.unwrap();
        send(&shop, &[], br#"{"event":"c"}"#).await.unwrap();
        assert_eq!(counts().await, [90, 140]);
    });
}

#[test]
fn of_writers_that_share_an_id_at_the_same_time_none_loses_its_event() {
    run(async {
        let place = Place::new().await;
        let bodies: Vec<String> =
            (0..24).map(|n| format!(r#"{{"event":"x","id":"one","n":{n}}}"#)).collect();
        let receivers: Vec<_> =
            bodies.iter().map(|_| declared(&place, by_id(), json!({}))).collect();
        let posts = bodies.iter().zip(&receivers);
        let posts = posts.map(|(body, receiver)| send(receiver, &[], body.as_bytes()));
        let stored = futures_util::future::join_all(posts).await;
        assert_eq!(stored.into_iter().map(|taken| taken.unwrap().stored).sum::<usize>(), 24);
        assert_eq!(ids(&place).await.len(), 24);
        for body in &bodies {
            let again = send(&receivers[0], &[], body.as_bytes()).await.unwrap();
            assert_eq!((again.stored, again.conflicts), (0, 0));
        }
    });
}

#[test]
fn a_cursor_waits_for_the_event_whose_id_another_writer_took() {
    run(async {
        let place = Place::new().await;
        let first = stored_before("one", &json!({"event": "a", "id": "one", "n": 1}));
        place.store.append(vec![first], AppendOptions::default()).await.unwrap();
        // The lookup finds nothing, as if the other event were appended between lookup and append.
        let moody = Moody::new(Arc::clone(&place.store));
        let live = place.path("audit.ndjson");
        append(&live, "{\"event\":\"a\",\"id\":\"one\",\"n\":2}\n");
        let tail = MappedLines::follow(mapping(by_id()), &live, 4_096, Arc::new(TokioRuntime));
        let intake = Intake::new(Arc::clone(&moody) as Arc<dyn AuditStore>, Arc::new(TokioRuntime));
        let mut pump = Pump::new(Box::new(tail.unwrap()), intake, PumpConfig::default());
        moody.set(Mood::UpFor(1));
        assert_eq!(pump.tick().await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        assert_eq!(place.store.cursor("shop").await.unwrap(), None);
        moody.set(Mood::Up);
        assert_eq!(drain(&mut pump).await, (1, 0));
        assert!(place.store.cursor("shop").await.unwrap().is_some());
        assert_eq!(ids(&place).await.len(), 2);
    });
}

#[test]
fn a_file_of_text_makes_few_events_and_says_how_many_lines_there_were() {
    run(async {
        let place = Place::new().await;
        let live = place.path("audit.ndjson");
        let text = "2026-11-30 12:00:00 INFO something else writes here\n".repeat(20_000);
        append(&live, &format!("{text}{}", line("a")));
        let mut pump = pump(&place, &live);
        let (stored, _) = drain(&mut pump).await;
        assert_eq!(stored, 1);
        assert_eq!(pump.status().counts.quarantined, 20_000);
        assert!(!pump.tick().await.unwrap().more);
        let told = place
            .list(ListQuery {
                action: Some("ingest.quarantined".into()),
                limit: 500,
                ..ListQuery::default()
            })
            .await;
        let count = |event: &dezky_core::StoredEvent| {
            event.event.metadata.to_value()["_dezky"]["count"].as_u64()
        };
        let most = told.iter().filter_map(count).max();
        assert_eq!(most, Some(19_900), "the last notice counts all of them");
        assert!(told.len() <= 110, "{}", told.len());
        assert!(place.store.quarantined(0, 200).await.unwrap().len() <= 102);
        let folder = std::fs::read_dir(place.folder.path()).unwrap();
        let database: u64 = folder
            .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
            .sum::<u64>()
            .saturating_sub(text.len() as u64);
        assert!(database < 6 << 20, "{database} bytes");
    });
}
