//! Webhooks during and after an outage of the store.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::rt::{BlockingWork, TokioRuntime};
use dezky_core::source::TenantDirectory;
use dezky_core::store::ListQuery;
use dezky_core::{
    AuditLog, Error, ErrorKind, NewEvent, Result, Runtime, Spool, SpoolConfig, Timestamp,
};
use dezky_ingest::IngestSummary;
use dezky_ingest::generic::{GenericReceiver, Mapping, MappingConfig};
use dezky_ingest::signature::Secrets;
use dezky_ingest::stalwart::StalwartReceiver;
use futures_util::future::BoxFuture;

use crate::moody::{Mood, Moody};
use crate::{Place, run};

/// Two events and a malformed element, with a name that identifies the body.
fn body(name: &str) -> String {
    let event = |n| {
        format!(
            r#"{{"createdAt":"2026-08-17T10:00:0{n}Z","type":"auth.failed","data":{{"accountName":"{name}@acme.example"}}}}"#
        )
    };
    format!(r#"{{"events":[{},{{"odd":"{name}"}},{}]}}"#, event(1), event(2))
}

/// A runtime whose store timeout passes only if the store hangs, so that a slow machine can't
/// change the result.
struct Patience(Arc<Moody>);

impl Runtime for Patience {
    fn now(&self) -> Timestamp {
        TokioRuntime.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let answers = !matches!(self.0.current(), Mood::Hanging | Mood::Mute);
        TokioRuntime.sleep(if answers { duration * 200 } else { duration })
    }

    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>> {
        TokioRuntime.unblock(work)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        TokioRuntime.fill_random(bytes);
    }
}

/// A receiver with its own spool over a store that can fail.
struct World {
    place: Place,
    store: Arc<Moody>,
    log: Arc<AuditLog>,
    receiver: StalwartReceiver,
}

impl World {
    async fn new() -> Self {
        let place = Place::new().await;
        let config = SpoolConfig::new(place.path("audit.spool"));
        Self::with(place, Some(config), None).await
    }

    async fn with(
        place: Place,
        spool: Option<SpoolConfig>,
        directory: Option<Arc<dyn TenantDirectory>>,
    ) -> Self {
        let store = Moody::new(Arc::clone(&place.store));
        let runtime = Arc::clone(place.intake().runtime());
        let patience = Arc::new(Patience(Arc::clone(&store)));
        let mut log =
            AuditLog::new(store.clone(), patience).with_store_timeout(Duration::from_millis(200));
        if let Some(config) = spool {
            log = log.with_spool(Spool::open(config, Arc::clone(&runtime)).await.unwrap());
        }
        if let Some(directory) = &directory {
            log = log.with_directory(Arc::clone(directory));
        }
        let log = Arc::new(log);
        let mut intake =
            dezky_ingest::Intake::new(store.clone(), runtime).with_spool(Arc::clone(&log));
        if let Some(directory) = directory {
            intake = intake.with_directory(directory);
        }
        let secrets = Secrets::from_texts(["x"]).unwrap();
        let receiver = StalwartReceiver::new("stalwart", secrets, intake).unwrap();
        Self { place, store, log, receiver }
    }

    async fn post(&self, body: &str) -> Result<IngestSummary> {
        let signature = Secrets::from_texts(["x"]).unwrap().sign_base64(body.as_bytes());
        self.receiver.receive(Some(&signature), body.as_bytes(), None).await
    }

    fn pending(&self) -> usize {
        self.log.spool_status().unwrap().pending
    }

    async fn drain(&self) -> dezky_core::Drained {
        self.log.drain_spool(usize::MAX).await.unwrap()
    }

    /// The tenants of the events, in the order of the log.
    async fn names(&self) -> Vec<String> {
        let mut events = self.place.of_source("stalwart").await;
        events.sort_by_key(|event| event.seq);
        let name = |email: String| email.split('@').next().unwrap().to_owned();
        events.into_iter().map(|e| name(e.event.actor_email.unwrap())).collect()
    }

    async fn notices(&self) -> usize {
        let action = Some("ingest.quarantined".into());
        self.place.list(ListQuery { action, ..ListQuery::default() }).await.len()
    }

    fn spool(&self) -> PathBuf {
        self.place.path("audit.spool")
    }
}

/// A body with this many of the smallest events, and an element that is not an event.
fn large(events: usize) -> String {
    let event = |n| {
        let (hour, minute, second) = (n / 3_600, n / 60 % 60, n % 60);
        let at = format!("2026-11-21T{hour:02}:{minute:02}:{second:02}Z");
        format!(r#"{{"id":"{n}","type":"a","createdAt":"{at}"}}"#)
    };
    let events: Vec<_> = (0..events).map(event).collect();
    format!(r#"{{"events":[{},7]}}"#, events.join(","))
}

#[test]
fn a_large_body_is_taken_in_parts_and_in_its_order() {
    run(async {
        let world = World::new().await;
        let body = large(4_100);
        for stored in [4_100, 0] {
            let taken = world.post(&body).await.unwrap();
            assert_eq!((taken.received(), taken.stored), (4_101, stored));
        }
        let mut events = world.place.of_source("stalwart").await;
        events.sort_by_key(|event| event.seq);
        let ids = events.iter().filter_map(|e| e.event.external_id.as_ref()?.parse::<usize>().ok());
        let ids: Vec<_> = ids.collect();
        // A page of the newest events, which may include the notice.
        assert!(ids.len() >= 499 && ids.iter().copied().eq(4_100 - ids.len()..4_100), "{ids:?}");
        assert_eq!((world.place.count().await, world.notices().await), (4_101, 1));
    });
}

#[test]
fn a_body_with_too_many_events_is_refused_before_one_is_read() {
    run(async {
        let world = World::new().await;
        // About 1.3 million elements in 4 MiB.
        let error = world.post(&format!("[{}{{}}]", "{},".repeat(1_300_000))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let said = error.to_string();
        assert!(said.contains("1300001 events") && said.contains("send at most 131072"), "{said}");
        assert!(world.place.of_source("stalwart").await.is_empty());
        assert_eq!(world.notices().await, 0);
    });
}

#[test]
fn an_outage_costs_neither_events_nor_their_order() {
    for mood in [
        Mood::Failing(ErrorKind::StoreUnavailable),
        Mood::Failing(ErrorKind::StoreBusy),
        Mood::Failing(ErrorKind::StoreCorrupt),
        Mood::Hanging,
        Mood::Mute,
    ] {
        run(async {
            let world = World::new().await;
            assert_eq!(world.post(&body("before")).await.unwrap().received(), 3);
            world.store.set(mood);
            // Also a retry of the first body, and an event of platform code.
            for name in ["first", "second", "first"] {
                let taken = world.post(&body(name)).await.unwrap();
                assert_eq!((taken.spooled, taken.received()), (3, 3), "{mood:?}");
            }
            let event = NewEvent {
                source: "stalwart".into(),
                ..dezky_core::testkit::named_event("platform")
            };
            world.log.record(event).await;
            world.store.set(Mood::Up);
            // Later requests queue behind the spooled ones.
            assert_eq!(world.post(&body("third")).await.unwrap().spooled, 3);
            world.drain().await;
            assert_eq!(world.pending(), 0);
            let senders = [["before"; 2], ["first"; 2], ["second"; 2]].concat();
            let expected = [&senders[..], &["ana", "third", "third"]].concat();
            assert_eq!(world.names().await, expected, "{mood:?}");
            assert_eq!(world.place.store.quarantined(0, 10).await.unwrap().len(), 4);
            assert_eq!(world.notices().await, 4, "each item is on the timeline");
            // A retry after the outage gets the same response.
            let again = world.post(&body("first")).await.unwrap();
            assert_eq!((again.received(), again.stored, again.duplicates), (3, 0, 2));
            assert_eq!((again.quarantined, again.new_quarantined), (1, 0));
            assert_eq!(world.log.counts().lost, 0);
            world.place.assert_whole().await;
        });
    }
}

#[test]
fn killed_between_append_and_discard() {
    run(async {
        let world = World::new().await;
        world.store.set(Mood::Failing(ErrorKind::StoreUnavailable));
        world.post(&body("a")).await.unwrap();
        world.post(&body("b")).await.unwrap();
        let killed = std::fs::read(world.spool()).unwrap();
        world.store.set(Mood::Up);
        let drained = world.drain().await;
        assert_eq!((drained.appended, drained.quarantined), (6, 2), "events and notices");
        let World { place, log, receiver, .. } = world;
        drop((log, receiver));
        std::fs::write(place.path("audit.spool"), killed).unwrap();
        let config = SpoolConfig::new(place.path("audit.spool"));
        let world = World::with(place, Some(config), None).await;
        assert_eq!(world.pending(), 8);
        let drained = world.drain().await;
        assert_eq!((drained.appended, drained.duplicates), (0, 6));
        assert_eq!(world.names().await, ["a", "a", "b", "b"]);
        assert_eq!(world.place.store.quarantined(0, 10).await.unwrap().len(), 2);
        world.place.assert_whole().await;
    });
}

#[test]
fn a_torn_tail_is_mended_by_the_sender() {
    run(async {
        let world = World::new().await;
        world.store.set(Mood::Failing(ErrorKind::StoreUnavailable));
        world.post(&body("a")).await.unwrap();
        let whole = std::fs::read(world.spool()).unwrap().len();
        world.post(&body("b")).await.unwrap();
        // As if the power had failed while the second body was written, before its response.
        let bytes = std::fs::read(world.spool()).unwrap();
        let World { place, log, receiver, .. } = world;
        drop((log, receiver));
        for end in [whole + 5, usize::midpoint(whole, bytes.len()), bytes.len() - 1] {
            std::fs::write(place.path("audit.spool"), &bytes[..end]).unwrap();
            let config = SpoolConfig::new(place.path("audit.spool"));
            let runtime = Arc::clone(place.intake().runtime());
            let spool = Spool::open(config, runtime).await.unwrap();
            assert!((4..8).contains(&spool.pending()), "acknowledged events are in the spool");
        }
        let config = SpoolConfig::new(place.path("audit.spool"));
        let world = World::with(place, Some(config), None).await;
        // The second body is retried.
        assert_eq!(world.post(&body("b")).await.unwrap().spooled, 3);
        world.drain().await;
        assert_eq!(world.names().await, ["a", "a", "b", "b"]);
        assert_eq!(world.place.store.quarantined(0, 10).await.unwrap().len(), 2);
    });
}

#[test]
fn a_full_spool_and_none_ask_the_sender_to_come_again() {
    run(async {
        let place = Place::new().await;
        let mut config = SpoolConfig::new(place.path("audit.spool"));
        config.max_events = 7;
        let world = World::with(place, Some(config), None).await;
        world.store.set(Mood::Failing(ErrorKind::StoreBusy));
        assert_eq!(world.post(&body("a")).await.unwrap().spooled, 3);
        let before = std::fs::read(world.spool()).unwrap();
        let error = world.post(&body("b")).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::StoreUnavailable, true));
        assert_eq!(std::fs::read(world.spool()).unwrap(), before, "no part of it is kept");
        world.store.set(Mood::Up);
        world.drain().await;
        assert_eq!(world.post(&body("b")).await.unwrap().stored, 2);
        assert_eq!(world.names().await, ["a", "a", "b", "b"]);

        let world = World::with(Place::new().await, None, None).await;
        for (mood, kind) in [
            (Mood::Failing(ErrorKind::StoreBusy), ErrorKind::StoreBusy),
            (Mood::Hanging, ErrorKind::StoreUnavailable),
        ] {
            world.store.set(mood);
            let error = world.post(&body("a")).await.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), (kind, true));
        }
        world.store.set(Mood::Up);
        assert_eq!(world.post(&body("a")).await.unwrap().stored, 2);
    });
}

#[test]
fn a_large_body_may_be_in_log_and_spool() {
    run(async {
        let world = World::new().await;
        let event = |n| format!(r#"{{"id":"e-{n}","type":"auth.success","data":{{}}}}"#);
        let body = format!("[{}]", (0..4_500).map(event).collect::<Vec<_>>().join(","));
        let log = Arc::clone(&world.log);
        world.store.set(Mood::UpFor(1));
        let taken = world.post(&body).await;
        // The first part may take longer than this test's store timeout; then it is
        // spooled too.
        let taken = taken.unwrap();
        assert_eq!(taken.received(), 4_500);
        assert!(taken.spooled >= 500);
        world.store.set(Mood::Up);
        while log.spool_status().unwrap().pending > 0 {
            // A drain may time out as well.
            let _ = log.drain_spool(usize::MAX).await;
        }
        assert_eq!(world.place.count().await, 4_500);
    });
}

/// A directory that knows one tenant while it is available.
struct Directory(AtomicBool);

#[async_trait]
impl TenantDirectory for Directory {
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

/// The tenants of the events in the log, with how they were found.
async fn tenants(world: &World) -> Vec<(Option<String>, String)> {
    let events = world.place.of_source("stalwart").await.into_iter();
    let of = |stored: dezky_core::StoredEvent| {
        let by =
            stored.event.metadata.to_value()["_dezky"]["tenantBy"].as_str().unwrap().to_owned();
        (stored.event.tenant_slug, by)
    };
    events.map(of).collect()
}

#[test]
fn events_taken_while_store_or_directory_was_away_get_their_tenant() {
    let acme = (Some("acme".to_owned()), "domain".to_owned());
    for (mood, answers) in [
        (Mood::Failing(ErrorKind::StoreUnavailable), true),
        (Mood::Failing(ErrorKind::StoreUnavailable), false),
        (Mood::Up, false),
    ] {
        run(async {
            let place = Place::new().await;
            let config = SpoolConfig::new(place.path("audit.spool"));
            let directory = Arc::new(Directory(AtomicBool::new(answers)));
            let world = World::with(place, Some(config), Some(directory.clone())).await;
            world.store.set(mood);
            let taken = world.post(&body("a")).await.unwrap();
            assert_eq!((taken.spooled, taken.received()), (3, 3), "{mood:?}");
            world.store.set(Mood::Up);
            directory.0.store(true, Ordering::Relaxed);
            world.drain().await;
            assert_eq!(tenants(&world).await, vec![acme.clone(); 2], "{mood:?}");
            // A retry of the body has the same events, although their tenant would differ by now.
            let again = world.post(&body("a")).await.unwrap();
            assert_eq!((again.duplicates, again.conflicts, again.received()), (2, 0, 3));
            world.place.assert_whole().await;
        });
    }
}

#[test]
fn without_a_spool_whose_it_is_stays_open_and_is_counted() {
    run(async {
        let directory = Arc::new(Directory(AtomicBool::new(false)));
        let world = World::with(Place::new().await, None, Some(directory)).await;
        let taken = world.post(&body("a")).await.unwrap();
        assert_eq!((taken.stored, taken.unresolved), (2, 2));
        assert_eq!(tenants(&world).await, vec![(None, "unresolved".to_owned()); 2]);
    });
}

#[test]
fn what_was_spooled_is_told_apart_when_it_goes_to_the_log() {
    run(async {
        let place = Place::new().await;
        let store = Moody::new(Arc::clone(&place.store));
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
        let intake = dezky_ingest::Intake::new(store.clone(), Arc::clone(&runtime));
        let patience = Arc::new(Patience(Arc::clone(&store)));
        let spool = Spool::open(SpoolConfig::new(place.path("audit.spool")), runtime).await;
        let log = AuditLog::new(Arc::clone(intake.store()), patience)
            .with_store_timeout(Duration::from_millis(200))
            .with_spool(spool.unwrap());
        let log = Arc::new(log);
        let config = MappingConfig {
            action: Some("/event".into()),
            id: vec!["/id".into()],
            ..MappingConfig::default()
        };
        let shop = GenericReceiver::new(
            Mapping::compile("shop", &config).unwrap(),
            Secrets::from_texts(["x"]).unwrap(),
            intake.with_spool(Arc::clone(&log)),
        );
        let post = async |code: u64| {
            let body = format!(r#"{{"event":"delete","id":"u-1","code":{code}}}"#);
            let signature = Secrets::from_texts(["x"]).unwrap().sign_base64(body.as_bytes());
            shop.receive(Some(&signature), body.as_bytes()).await.unwrap()
        };
        assert_eq!(post(200).await.stored, 1);
        store.set(Mood::Failing(ErrorKind::StoreUnavailable));
        // A retry, two other events, and a retry of one of those.
        for code in [200, 403, 500, 403] {
            assert_eq!(post(code).await.spooled, 1);
        }
        store.set(Mood::Up);
        let drained = log.drain_spool(usize::MAX).await.unwrap();
        assert_eq!((drained.appended, drained.duplicates), (2, 2));
        for code in [500, 200, 403] {
            assert_eq!((post(code).await.stored, log.counts().conflicts), (0, 0));
        }
        let mut codes: Vec<_> = place.of_source("shop").await;
        codes.sort_by_key(|event| event.seq);
        let codes: Vec<_> =
            codes.iter().map(|event| event.event.metadata.to_value()["code"].clone()).collect();
        assert_eq!(codes, [200, 403, 500]);
        place.assert_whole().await;
    });
}
