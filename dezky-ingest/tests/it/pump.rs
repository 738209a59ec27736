//! The pump against a scripted source: its guarantees in spite of failures.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::source::{IngestSource, Pull, PullLimits, QuarantineItem};
use dezky_core::store::MemoryAuditStore;
use dezky_core::testkit::{ManualRuntime, named_event};
use dezky_core::{
    AuditStore, Error, ErrorKind, NewEvent, PLATFORM_SOURCE, Result, Runtime, StoredEvent,
    Timestamp,
};
use dezky_ingest::{IngestSummary, Intake, Pump, PumpConfig, PumpState};

use crate::{Place, run};

/// Returns `total` numbered events in batches of ten; fails where the script says so.
struct Numbers {
    total: usize,
    failures: Arc<Mutex<Vec<usize>>>,
    pulls: Arc<Mutex<usize>>,
}

impl Numbers {
    fn new(total: usize) -> Self {
        Self { total, failures: Arc::default(), pulls: Arc::default() }
    }
}

fn numbered(n: usize) -> NewEvent {
    NewEvent {
        source: "numbers".into(),
        external_id: Some(format!("n-{n}")),
        ..named_event(&n.to_string())
    }
}

#[async_trait]
impl IngestSource for Numbers {
    fn name(&self) -> &'static str {
        "numbers"
    }

    async fn pull(&mut self, cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        *self.pulls.lock().unwrap() += 1;
        let from: usize = cursor.map_or(0, |c| c.parse().unwrap());
        let mut failures = self.failures.lock().unwrap();
        if let Some(at) = failures.iter().position(|f| *f == from) {
            failures.remove(at);
            return Err(Error::new(ErrorKind::SourceUnavailable, "scripted"));
        }
        let to = (from + 10).min(self.total);
        let mut pull = Pull {
            events: (from..to).map(|n| numbered(n).into()).collect(),
            more: to < self.total,
            cursor: (to > from).then(|| to.to_string()),
            ..Pull::default()
        };
        // An event of the source exceeds a bound, and an item is not an event.
        if from == 20 {
            pull.events[3].event.external_id = Some("x".repeat(600));
            pull.quarantine.push(QuarantineItem {
                source: "numbers".into(),
                key: "odd".into(),
                reason: "not_json".into(),
                detail: "the item is not JSON".into(),
                raw: b"{".to_vec(),
                at: Timestamp::MIN,
            });
            pull.skipped = 2;
        }
        Ok(pull)
    }
}

fn config() -> PumpConfig {
    let mut config = PumpConfig::default();
    config.interval = Duration::from_secs(5);
    config
}

async fn all(store: &dyn AuditStore, source: &str) -> Vec<StoredEvent> {
    let rows = store.scan(0, 10_000).await.unwrap();
    rows.into_iter().map(|r| r.unwrap().stored).filter(|e| e.event.source == source).collect()
}

#[test]
fn drains_in_order_and_quarantines_what_is_odd() {
    run(async {
        let place = Place::new().await;
        let mut pump = Pump::new(Box::new(Numbers::new(95)), place.intake(), config());
        let tick = pump.tick().await.unwrap();
        assert_eq!((tick.taken.stored, tick.taken.quarantined, tick.skipped), (94, 2, 2));
        assert!(!tick.more);
        let names: Vec<usize> = all(&*place.store, "numbers")
            .await
            .iter()
            .map(|e| e.event.resource_id.as_deref().unwrap().parse().unwrap())
            .collect();
        assert_eq!(names, (0..95).filter(|n| *n != 23).collect::<Vec<_>>());
        let kept = place.store.quarantined(0, 10).await.unwrap();
        let reasons: Vec<_> = kept.iter().map(|k| k.item.reason.as_str()).collect();
        assert_eq!(reasons, ["not_json", "event_invalid"]);
        assert!(kept[1].item.detail.contains("externalId"), "the detail names the exceeded limit");
        let notices = all(&*place.store, PLATFORM_SOURCE).await;
        assert_eq!(notices.len(), 2, "each item is on the timeline");
        assert!(notices.iter().all(|e| e.event.action == "ingest.quarantined"));
        let again = pump.tick().await.unwrap();
        assert_eq!(again.taken, IngestSummary::default());
        place.assert_whole().await;
    });
}

#[test]
fn a_tick_has_a_budget_and_goes_on_at_the_next() {
    run(async {
        let place = Place::new().await;
        let mut config = config();
        config.max_batches = 4;
        let mut pump = Pump::new(Box::new(Numbers::new(95)), place.intake(), config);
        let mut ticks = 0;
        while pump.tick().await.unwrap().more {
            ticks += 1;
        }
        assert_eq!(ticks, 2);
        assert_eq!(all(&*place.store, "numbers").await.len(), 94);
    });
}

#[test]
fn goes_on_where_it_failed() {
    run(async {
        let place = Place::new().await;
        let source = Numbers::new(95);
        let failures = Arc::clone(&source.failures);
        *failures.lock().unwrap() = vec![0, 40, 40, 90];
        let mut pump = Pump::new(Box::new(source), place.intake(), config());
        let handle = pump.handle();
        let mut failed = 0;
        while pump.tick().await.is_err() {
            failed += 1;
            let status = handle.status();
            assert_eq!(status.last_error.unwrap().code, "source_unavailable");
            assert_eq!((status.state, status.failures > 0), (PumpState::BackingOff, true));
        }
        assert_eq!(failed, 4);
        assert_eq!(handle.status().counts.stored, 94, "includes events stored before an error");
        assert_eq!(handle.status().counts.skipped, 2);
        assert_eq!(handle.status().failures, 0);
        assert!(handle.status().last_error.is_some(), "the last error is kept, with its time");
        let ids: BTreeSet<_> =
            all(&*place.store, "numbers").await.into_iter().map(|e| e.event.external_id).collect();
        assert_eq!(ids.len(), 94);
        place.assert_whole().await;
    });
}

#[test]
fn of_two_replicas_one_pumps_and_the_other_takes_over() {
    run(async {
        let runtime = ManualRuntime::new(4);
        let store: Arc<dyn AuditStore> =
            Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
        let pump = |name: &str, total| {
            let intake = Intake::new(Arc::clone(&store), Arc::new(runtime.clone()));
            let mut config = config();
            config.holder = Some(name.into());
            Pump::new(Box::new(Numbers::new(total)), intake, config)
        };
        let mut first = pump("first", 20);
        let mut second = pump("second", 60);
        assert_eq!(first.tick().await.unwrap().taken.stored, 20);
        assert!(second.tick().await.unwrap().standby);
        assert_eq!(second.status().state, PumpState::Standby);
        // The first one is gone; its lease lapses.
        runtime.advance(Duration::from_secs(31));
        assert_eq!(second.tick().await.unwrap().taken.stored, 39, "no event twice, none lost");
        assert!(first.tick().await.unwrap().standby);
    });
}

#[test]
fn runs_until_told_and_gives_the_lease_back() {
    run(async {
        let runtime = ManualRuntime::new(4).with_sleep_advancing();
        let store: Arc<dyn AuditStore> =
            Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
        let source = Numbers::new(2_000);
        *source.failures.lock().unwrap() = vec![500, 500, 500];
        let pulls = Arc::clone(&source.pulls);
        let intake = Intake::new(Arc::clone(&store), Arc::new(runtime.clone()));
        let mut pump = Pump::new(Box::new(source), intake, config());
        let before = runtime.now();
        let done = {
            let store = Arc::clone(&store);
            async move {
                store.changed(1_999).await;
            }
        };
        pump.run(done).await;
        assert_eq!(*pulls.lock().unwrap(), 203, "no more pulls than necessary");
        let waited = runtime.now().saturating_since(before);
        assert!(waited >= Duration::from_secs(8), "it backs off after failures: {waited:?}");
        let lease = store.acquire_lease("ingest:numbers", "x", Duration::from_secs(1)).await;
        assert!(lease.unwrap().is_some(), "the lease is free");
    });
}

/// Reports that more is waiting, but returns no cursor to continue from.
struct Circle {
    events: usize,
    items: usize,
    pulls: Arc<Mutex<usize>>,
}

#[async_trait]
impl IngestSource for Circle {
    fn name(&self) -> &'static str {
        "circle"
    }

    async fn pull(&mut self, cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        *self.pulls.lock().unwrap() += 1;
        let item = QuarantineItem {
            source: "circle".into(),
            key: "odd".into(),
            reason: "not_json".into(),
            detail: "the item is not JSON".into(),
            raw: b"{".to_vec(),
            at: Timestamp::MIN,
        };
        Ok(Pull {
            events: (0..self.events).map(|n| numbered(n).into()).collect(),
            quarantine: vec![item; self.items],
            cursor: cursor.map(str::to_owned),
            skipped: 1,
            more: true,
        })
    }
}

#[test]
fn a_source_that_does_not_move_on_is_not_asked_in_a_circle() {
    run(async {
        for (events, items) in [(0, 0), (1, 0), (0, 1)] {
            let place = Place::new().await;
            let pulls: Arc<Mutex<usize>> = Arc::default();
            let source = Circle { events, items, pulls: Arc::clone(&pulls) };
            let mut pump = Pump::new(Box::new(source), place.intake(), config());
            let tick = pump.tick().await;
            if (events, items) == (0, 0) {
                let tick = tick.unwrap();
                assert!(!tick.more && tick.skipped == 0);
            } else {
                let error = tick.unwrap_err();
                assert_eq!(error.code(), "internal");
                assert!(error.to_string().contains("circle"), "{error}");
            }
            assert_eq!(*pulls.lock().unwrap(), 1);
        }
    });
}

#[test]
fn after_a_failure_another_replica_may_try_at_once() {
    run(async {
        let place = Place::new().await;
        let source = Numbers::new(20);
        *source.failures.lock().unwrap() = vec![10];
        let mut pump = Pump::new(Box::new(source), place.intake(), config());
        pump.tick().await.unwrap_err();
        let mut other = Pump::new(Box::new(Numbers::new(20)), place.intake(), config());
        let tick = other.tick().await.unwrap();
        assert_eq!((tick.standby, tick.taken.stored), (false, 10));
    });
}

#[test]
fn a_shutdown_does_not_wait_for_the_backlog() {
    run(async {
        let place = Place::new().await;
        let source = Numbers::new(900);
        let pulls = Arc::clone(&source.pulls);
        let mut pump = Pump::new(Box::new(source), place.intake(), config());
        pump.run(async {}).await;
        assert_eq!(*pulls.lock().unwrap(), 0, "shutdown was requested before the first pull");
        let after_three = {
            let pulls = Arc::clone(&pulls);
            std::future::poll_fn(move |_| match *pulls.lock().unwrap() {
                0..3 => std::task::Poll::Pending,
                _ => std::task::Poll::Ready(()),
            })
        };
        pump.run(after_three).await;
        assert_eq!(*pulls.lock().unwrap(), 3);
        assert_eq!(place.store.cursor("numbers").await.unwrap().as_deref(), Some("30"));
        assert_eq!(pump.status().counts.stored, 29);
    });
}

/// Never returns from a pull; notifies when one begins.
struct Silent(Arc<tokio::sync::Notify>);

#[async_trait]
impl IngestSource for Silent {
    fn name(&self) -> &'static str {
        "numbers"
    }

    async fn pull(&mut self, _cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[test]
fn a_shutdown_does_not_wait_for_a_silent_source() {
    run(async {
        let place = Place::new().await;
        let asked = Arc::new(tokio::sync::Notify::new());
        let mut pump = Pump::new(Box::new(Silent(Arc::clone(&asked))), place.intake(), config());
        let ended = tokio::time::timeout(
            Duration::from_mins(1),
            pump.run(async move { asked.notified().await }),
        );
        ended.await.expect("it ends during a pull");
        let lease = place.store.acquire_lease("ingest:numbers", "x", Duration::from_secs(1)).await;
        assert!(lease.unwrap().is_some(), "the lease is free");
    });
}

/// Records the requested number of events.
struct Asked(Arc<Mutex<usize>>);

#[async_trait]
impl IngestSource for Asked {
    fn name(&self) -> &'static str {
        "asked"
    }

    async fn pull(&mut self, _cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        *self.0.lock().unwrap() = limits.max_events;
        Ok(Pull::default())
    }
}

#[test]
fn a_batch_fits_the_store() {
    run(async {
        let place = Place::new().await;
        let asked: Arc<Mutex<usize>> = Arc::default();
        for (set, expected) in [(1, 1), (4_000, 4_000), (4_001, 4_000), (usize::MAX, 4_000)] {
            let mut config = config();
            config.limits.max_events = set;
            let source = Asked(Arc::clone(&asked));
            let mut pump = Pump::new(Box::new(source), place.intake(), config);
            pump.tick().await.unwrap();
            pump.release().await;
            assert_eq!(*asked.lock().unwrap(), expected);
        }
    });
}

/// During its pull, the lease lapses and another pump takes over.
struct Overtaken {
    numbers: Numbers,
    runtime: ManualRuntime,
    other: Option<Pump>,
    stored_by_other: Arc<Mutex<usize>>,
}

#[async_trait]
impl IngestSource for Overtaken {
    fn name(&self) -> &str {
        self.numbers.name()
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        let pull = self.numbers.pull(cursor, limits).await;
        if let Some(mut other) = self.other.take() {
            self.runtime.advance(Duration::from_secs(31));
            let tick = other.tick().await?;
            *self.stored_by_other.lock().unwrap() = tick.taken.stored;
        }
        pull
    }
}

#[test]
fn who_lost_the_lease_half_way_is_fenced_off() {
    run(async {
        let runtime = ManualRuntime::new(4);
        let store: Arc<dyn AuditStore> =
            Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
        let intake = Intake::new(Arc::clone(&store), Arc::new(runtime.clone()));
        let pump = |name: &str, source: Box<dyn IngestSource>| {
            let mut config = config();
            config.holder = Some(name.into());
            Pump::new(source, intake.clone(), config)
        };
        let stored_by_other: Arc<Mutex<usize>> = Arc::default();
        let source = Overtaken {
            numbers: Numbers::new(10),
            runtime: runtime.clone(),
            other: Some(pump("second", Box::new(Numbers::new(10)))),
            stored_by_other: Arc::clone(&stored_by_other),
        };
        let mut first = pump("first", Box::new(source));
        let error = first.tick().await.unwrap_err();
        assert_eq!(error.code(), "fenced");
        assert_eq!(*stored_by_other.lock().unwrap(), 10);
        assert_eq!(first.status().counts.stored, 0);
        assert_eq!(all(&*store, "numbers").await.len(), 10, "one copy of each");
        // The first pump's release did not take the lease from the second.
        assert!(first.tick().await.unwrap().standby);
    });
}
