//! The last step: tenants, bounds, quarantine.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::source::{
    IngestSource, Pull, PullLimits, PulledEvent, QuarantineItem, TenantDirectory, TenantHint,
};
use dezky_core::store::{AppendOptions, MemoryAuditStore};
use dezky_core::testkit::{ManualRuntime, named_event};
use dezky_core::{
    AuditStore as _, Error, ErrorKind, NewEvent, Result, Runtime as _, StoredEvent, Timestamp,
};
use dezky_ingest::quarantine::{RetryOutcome, retry};
use dezky_ingest::{Intake, Pump, PumpConfig};
use futures_util::poll;

use crate::{Place, run};

/// Knows one tenant by every kind of hint, and records the lookups. Lookups of `down` fail; some
/// results are not slugs.
#[derive(Default)]
struct Directory {
    asked: Mutex<Vec<String>>,
}

impl Directory {
    fn answer(&self, kind: &str, what: &str) -> Result<Option<String>> {
        self.asked.lock().unwrap().push(format!("{kind} {what}"));
        match what {
            "down" => Err(Error::new(ErrorKind::SourceUnavailable, "scripted")),
            "empty" => Ok(Some(String::new())),
            "long" => Ok(Some("x".repeat(64))),
            "acme" => Ok(Some("acme".into())),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl TenantDirectory for Directory {
    async fn by_slug(&self, slug: &str) -> Result<Option<String>> {
        self.answer("slug", slug)
    }

    async fn by_domain(&self, domain: &str) -> Result<Option<String>> {
        self.answer("domain", domain)
    }

    async fn by_user(&self, system: &str, id: &str) -> Result<Option<String>> {
        self.answer(system, id)
    }
}

fn slug(slug: &str) -> TenantHint {
    TenantHint::Slug { slug: slug.into(), via: "group" }
}

fn domain(domain: &str) -> TenantHint {
    TenantHint::Domain(domain.into())
}

fn user(id: &str) -> TenantHint {
    TenantHint::User { system: "numbers", id: id.into() }
}

/// Ingests an event for each list of hints. Returns the tenants with how they were found, and the
/// lookups.
async fn tenants(hints: Vec<Vec<TenantHint>>) -> (Vec<(Option<String>, String)>, Vec<String>) {
    let place = Place::new().await;
    let directory = Arc::new(Directory::default());
    let intake = place.intake().with_directory(Arc::clone(&directory) as Arc<dyn TenantDirectory>);
    let events = hints
        .into_iter()
        .enumerate()
        .map(|(n, tenant)| PulledEvent { event: numbered(n), tenant })
        .collect();
    intake.ingest(events, vec![], AppendOptions::default()).await.unwrap();
    let mut stored = place.of_source("numbers").await;
    stored.sort_by_key(|e| e.seq);
    let found = stored.into_iter().map(|e: StoredEvent| {
        let by = e.event.metadata.to_value()["_dezky"]["tenantBy"].as_str().unwrap().to_owned();
        (e.event.tenant_slug, by)
    });
    let found = found.collect();
    let asked = directory.asked.lock().unwrap().clone();
    (found, asked)
}

fn numbered(n: usize) -> NewEvent {
    NewEvent {
        source: "numbers".into(),
        external_id: Some(format!("n-{n}")),
        tenant_slug: None,
        ..named_event(&n.to_string())
    }
}

fn acme(via: &str) -> (Option<String>, String) {
    (Some("acme".into()), via.into())
}

fn no(why: &str) -> (Option<String>, String) {
    (None, why.into())
}

#[test]
fn hints_are_asked_in_order_and_once() {
    run(async {
        let (found, asked) = tenants(vec![
            vec![slug("x"), domain("acme"), user("7")],
            vec![domain("acme")],
            vec![slug("x"), user("acme"), slug("acme")],
            vec![slug("acme")],
            vec![user("x"), slug("x")],
            vec![],
        ])
        .await;
        let expected =
            [acme("domain"), acme("domain"), acme("user"), acme("group"), no("none"), no("none")];
        assert_eq!(found, expected);
        let once = ["slug x", "domain acme", "numbers acme", "slug acme", "numbers x"];
        assert_eq!(asked, once);
    });
}

#[test]
fn a_directory_that_fails_is_left_alone_for_the_batch() {
    run(async {
        let (found, asked) = tenants(vec![
            vec![domain("acme")],
            vec![slug("x"), domain("down"), domain("acme")],
            vec![domain("other")],
            vec![domain("down")],
            vec![slug("x"), domain("acme")],
            vec![slug("x")],
        ])
        .await;
        let lost = || no("unresolved");
        let expected = [acme("domain"), lost(), lost(), lost(), acme("domain"), no("none")];
        assert_eq!(found, expected);
        assert_eq!(asked, ["domain acme", "slug x", "domain down"]);
    });
}

/// Answers after 1.5 s, like an overloaded directory.
struct Slow(ManualRuntime);

#[async_trait]
impl TenantDirectory for Slow {
    async fn by_slug(&self, _slug: &str) -> Result<Option<String>> {
        self.0.sleep(Duration::from_millis(1_500)).await;
        Ok(Some("acme".into()))
    }

    async fn by_domain(&self, domain: &str) -> Result<Option<String>> {
        self.by_slug(domain).await
    }

    async fn by_user(&self, _system: &str, id: &str) -> Result<Option<String>> {
        self.by_slug(id).await
    }
}

#[test]
fn a_slow_directory_does_not_hold_a_batch_up_for_long() {
    run(async {
        let runtime = ManualRuntime::new(1);
        let store = Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
        let intake = Intake::new(store.clone(), Arc::new(runtime.clone()))
            .with_directory(Arc::new(Slow(runtime.clone())));
        let event = |n| PulledEvent { event: numbered(n), tenant: vec![domain(&n.to_string())] };
        let events = (0..100).map(event).collect();
        let begin = runtime.now();
        let mut take = pin!(intake.ingest(events, vec![], AppendOptions::default()));
        let taken = loop {
            if let Poll::Ready(taken) = poll!(&mut take) {
                break taken.unwrap();
            }
            runtime.advance(Duration::from_millis(500));
        };
        assert_eq!(taken.stored, 100);
        assert!(runtime.now().saturating_since(begin) <= Duration::from_secs(10));
        let rows = store.scan(0, 100).await.unwrap().into_iter();
        let found = rows.filter(|row| row.as_ref().unwrap().stored.event.tenant_slug.is_some());
        assert_eq!(found.count(), 6, "as many as were resolved by then");
    });
}

#[test]
fn an_answer_that_is_no_slug_is_none() {
    run(async {
        let (found, _) =
            tenants(vec![vec![slug("empty"), domain("long")], vec![slug("long"), user("acme")]])
                .await;
        assert_eq!(found, [no("none"), acme("user")]);
    });
}

#[test]
fn what_is_refused_is_kept_within_bounds() {
    run(async {
        let place = Place::new().await;
        let long = NewEvent { external_id: Some("é".repeat(100_000)), ..numbered(1) };
        let item = |key: String| QuarantineItem {
            source: "numbers\0".repeat(30),
            key,
            reason: "r\0".repeat(90),
            detail: "é".repeat(600),
            raw: "é".repeat(40_000).into_bytes().split_off(1),
            at: Timestamp::MIN,
        };
        let items = vec![item("k".repeat(600)), item("k".repeat(601)), item("\0".into())];
        let take = |intake: Intake| {
            let (events, items) = (vec![long.clone().into(), numbered(2).into()], items.clone());
            async move { intake.ingest(events, items, AppendOptions::default()).await.unwrap() }
        };
        let first = take(place.intake()).await;
        assert_eq!((first.stored, first.quarantined, first.new_quarantined), (1, 4, 4));
        let again = take(place.intake()).await;
        assert_eq!((again.duplicates, again.quarantined, again.new_quarantined), (1, 4, 0));
        let kept = place.store.quarantined(0, 10).await.unwrap();
        for QuarantineItem { source, key, reason, detail, raw, .. } in kept.iter().map(|k| &k.item)
        {
            assert!(source.len() <= 64 && key.len() <= 512 && reason.len() <= 64);
            assert!(detail.len() <= 1024 && raw.len() <= 64 << 10);
            assert!(![source, key, reason, detail].iter().any(|text| text.contains('\0')));
        }
        let refused = kept.iter().find(|k| k.item.reason == "event_invalid").unwrap();
        let raw = std::str::from_utf8(&refused.item.raw).expect("cut between characters");
        assert!(raw.len() > (64 << 10) - 4, "no more is cut than necessary");
    });
}

/// Only the log itself may record erasures.
#[test]
fn an_event_with_a_reserved_action_is_quarantined() {
    run(async {
        let place = Place::new().await;
        let forged = NewEvent { action: "dezky.erased".into(), ..numbered(1) };
        let events = vec![forged.into(), numbered(2).into()];
        let taken =
            place.intake().ingest(events, Vec::new(), AppendOptions::default()).await.unwrap();
        assert_eq!((taken.stored, taken.quarantined), (1, 1));
        let kept = place.store.quarantined(0, 10).await.unwrap();
        assert!(
            kept[0].item.detail.contains("action must be without the prefix dezky."),
            "{kept:?}"
        );
    });
}

/// Returns an event of `acme.example` at each pull.
struct Mailbox;

#[async_trait]
impl IngestSource for Mailbox {
    fn name(&self) -> &'static str {
        "numbers"
    }

    async fn pull(&mut self, cursor: Option<&str>, _: PullLimits) -> Result<Pull> {
        let from: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
        let event = PulledEvent { event: numbered(from), tenant: vec![domain("acme.example")] };
        let cursor = Some((from + 1).to_string());
        Ok(Pull { events: vec![event], cursor, ..Pull::default() })
    }
}

/// A directory that assigns everything to one tenant while it is available.
#[derive(Default)]
struct Owner(AtomicBool);

#[async_trait]
impl TenantDirectory for Owner {
    async fn by_slug(&self, _: &str) -> Result<Option<String>> {
        Ok(None)
    }

    async fn by_domain(&self, _: &str) -> Result<Option<String>> {
        if self.0.load(Ordering::Relaxed) {
            return Ok(Some("acme".into()));
        }
        Err(Error::new(ErrorKind::StoreUnavailable, "scripted"))
    }

    async fn by_user(&self, _: &str, _: &str) -> Result<Option<String>> {
        Ok(None)
    }
}

#[test]
fn a_pump_waits_for_the_directory_but_not_for_ever() {
    run(async {
        let place = Place::new().await;
        let owner = Arc::new(Owner::default());
        let intake = place.intake().with_directory(Arc::clone(&owner) as Arc<dyn TenantDirectory>);
        let mut pump = Pump::new(Box::new(Mailbox), intake, PumpConfig::default());
        for _ in 0..3 {
            let error = pump.tick().await.unwrap_err();
            assert!(error.to_string().contains("pulled again"), "{error}");
            assert_eq!(error.kind(), ErrorKind::SourceUnavailable, "the store is fine");
        }
        assert_eq!(place.count().await, 0);
        owner.0.store(true, Ordering::Relaxed);
        assert_eq!(pump.tick().await.unwrap().taken.stored, 1);
        assert_eq!(place.of_source("numbers").await[0].event.tenant_slug.as_deref(), Some("acme"));
        owner.0.store(false, Ordering::Relaxed);
        for _ in 0..5 {
            pump.tick().await.unwrap_err();
        }
        let taken = pump.tick().await.unwrap().taken;
        assert_eq!((taken.stored, taken.unresolved), (1, 1));
        assert_eq!(pump.handle().status().counts.unresolved, 1);
    });
}

#[test]
fn what_is_read_again_waits_for_the_directory() {
    run(async {
        let place = Place::new().await;
        let owner = Arc::new(Owner::default());
        let intake = place.intake().with_directory(Arc::clone(&owner) as Arc<dyn TenantDirectory>);
        let raw = br#"{"type":"x","createdAt":"2026-08-17T10:00:00Z","data":{"accountName":"a@b.example"}}"#;
        let item = QuarantineItem {
            source: "stalwart".into(),
            key: "k".into(),
            reason: "not_an_object".into(),
            detail: "event 1 of 1 is not an object".into(),
            raw: raw.to_vec(),
            at: Timestamp::parse("2026-08-17T10:00:01Z").unwrap(),
        };
        intake.ingest(vec![], vec![item], AppendOptions::default()).await.unwrap();
        let kept = place.store.quarantined(0, 10).await.unwrap().remove(0);
        let RetryOutcome::Stays(why) = retry(&intake, &kept, &[]).await.unwrap() else { panic!() };
        assert!(why.contains("retry later"), "{why}");
        owner.0.store(true, Ordering::Relaxed);
        retry(&intake, &kept, &[]).await.unwrap();
        assert_eq!(place.of_source("stalwart").await[0].event.tenant_slug.as_deref(), Some("acme"));
    });
}

#[test]
fn what_bears_another_time_than_it_says_is_counted() {
    run(async {
        let place = Place::new().await;
        let event = |n: usize, at| PulledEvent::from(NewEvent { at: Some(at), ..numbered(n) });
        let year = |text: &str| Timestamp::parse(text).unwrap();
        let events = vec![
            event(0, Timestamp::MAX),
            event(1, Timestamp::MIN),
            event(2, year("2026-01-01T00:00:00Z")),
        ];
        let taken = place.intake().ingest(events, vec![], AppendOptions::default()).await.unwrap();
        assert_eq!((taken.stored, taken.undated), (3, 2));
        let stored = place.of_source("numbers").await;
        assert!(stored.iter().all(|e| e.event.at <= e.event.received_at));
    });
}
