//! Several pumps on one source: leases, pausing, poking and backoff.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::source::{IngestSource, Pull, PullLimits};
use dezky_core::store::MemoryAuditStore;
use dezky_core::testkit::{ManualRuntime, named_event};
use dezky_core::{AuditStore, Error, ErrorKind, NewEvent, NewMetadata, Result, Runtime, Timestamp};
use dezky_ingest::{Intake, Pump, PumpConfig, PumpHandle, PumpState};
use futures_util::future::{join, pending};
use futures_util::poll;

use crate::moody::{Asked, Mood, Moody};
use crate::{Place, run};

const TTL: Duration = Duration::from_secs(15);
const SECOND: Duration = Duration::from_secs(1);

/// The replica that pulled, and the time.
type Pulls = Arc<Mutex<Vec<(&'static str, Timestamp)>>>;

/// Returns one more event at each pull, and takes a while each time.
struct Slow {
    replica: &'static str,
    runtime: Arc<dyn Runtime>,
    takes: Duration,
    pulls: Pulls,
    more: bool,
}

#[async_trait]
impl IngestSource for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    async fn pull(&mut self, cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        if !self.takes.is_zero() {
            self.runtime.sleep(self.takes).await;
        }
        self.pulls.lock().unwrap().push((self.replica, self.runtime.now()));
        let n: usize = cursor.map_or(0, |c| c.parse().unwrap());
        let event = NewEvent {
            source: "slow".into(),
            external_id: Some(n.to_string()),
            at: Some(self.runtime.now()),
            ..named_event("x")
        };
        let cursor = Some((n + 1).to_string());
        Ok(Pull { events: vec![event.into()], cursor, more: self.more, ..Pull::default() })
    }
}

/// Replicas on a manual clock.
struct World {
    runtime: ManualRuntime,
    store: Arc<dyn AuditStore>,
    pulls: Pulls,
}

impl World {
    fn new() -> Self {
        let runtime = ManualRuntime::new(4);
        let store = Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
        Self { runtime, store, pulls: Pulls::default() }
    }

    fn pump(&self, replica: &'static str, takes: Duration, more: bool) -> Pump {
        let runtime: Arc<dyn Runtime> = Arc::new(self.runtime.clone());
        let pulls = Arc::clone(&self.pulls);
        let source = Slow { replica, runtime: Arc::clone(&runtime), takes, pulls, more };
        let mut config = PumpConfig::default();
        config.interval = Duration::from_mins(1);
        config.lease_ttl = TTL;
        config.holder = Some(replica.into());
        Pump::new(Box::new(source), Intake::new(Arc::clone(&self.store), runtime), config)
    }

    fn pulls_of(&self, replica: &str) -> usize {
        self.pulls.lock().unwrap().iter().filter(|(who, _)| *who == replica).count()
    }
}

#[test]
fn the_lease_outlives_every_wait_and_lapses_with_its_holder() {
    // Waits between ticks, in a long pull, and in a long backlog of short pulls.
    for (takes, more) in [(0, false), (100, false), (1, true)] {
        run(async {
            let world = World::new();
            let mut first = world.pump("first", Duration::from_secs(takes), more);
            let mut second = world.pump("second", Duration::ZERO, false);
            let mut second = pin!(second.run(pending()));
            {
                let mut first = Box::pin(first.run(pending()));
                assert!(poll!(&mut first).is_pending());
                for _ in 0..600 {
                    world.runtime.advance(SECOND);
                    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
                }
                assert!(world.pulls_of("first") > 3);
                assert_eq!(world.pulls_of("second"), 0, "pulls of {takes} s, more: {more}");
            }
            // Killed: the lease is not released.
            let killed = world.runtime.now();
            while world.pulls_of("second") == 0 {
                world.runtime.advance(SECOND);
                assert!(poll!(&mut second).is_pending());
                assert!(world.runtime.now().saturating_since(killed) <= TTL * 2);
            }
            let events = world.store.state().await.unwrap().head.next_seq;
            assert_eq!(
                events,
                world.pulls.lock().unwrap().len() as u64,
                "no event is stored twice or lost"
            );
        });
    }
}

#[test]
fn a_renewal_that_a_pull_overtakes_is_made_up_for() {
    run(async {
        let mut world = World::new();
        let moody = Moody::new(Arc::clone(&world.store));
        world.store = moody.clone();
        // Each pull ends while the renewal that became due during it is in progress.
        let mut first = world.pump("first", Duration::from_millis(5_500), true);
        let mut first = pin!(first.run(pending()));
        assert!(poll!(&mut first).is_pending());
        moody.delay_leases(Arc::new(world.runtime.clone()), SECOND * 2);
        for second in 0..600 {
            world.runtime.advance(SECOND / 2);
            assert!(poll!(&mut first).is_pending());
            let rival = moody.inner.acquire_lease("ingest:slow", "second", TTL).await.unwrap();
            assert!(rival.is_none(), "the lease lapsed after {second} half seconds");
        }
        assert!(world.pulls_of("first") > 30);
    });
}

#[test]
fn who_finds_the_lease_lost_stops() {
    run(async {
        let world = World::new();
        let mut first = world.pump("first", Duration::from_mins(2), true);
        let handle = first.handle();
        let mut second = world.pump("second", Duration::ZERO, false);
        let (mut first, mut second) = (pin!(first.run(pending())), pin!(second.run(pending())));
        assert!(poll!(&mut first).is_pending());
        assert_eq!(handle.status().state, PumpState::Running);
        // The first process is frozen, as in a stopped container.
        assert!(poll!(&mut second).is_pending());
        for _ in 0..TTL.as_secs() * 2 {
            world.runtime.advance(SECOND);
            assert!(poll!(&mut second).is_pending());
        }
        assert_eq!(world.pulls_of("second"), 1);
        assert!(poll!(&mut first).is_pending());
        assert_eq!(handle.status().state, PumpState::Standby);
        for _ in 0..300 {
            world.runtime.advance(SECOND);
            assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        }
        assert_eq!((world.pulls_of("first"), handle.status().failures), (0, 0));
        assert_eq!(world.pulls_of("second"), 6);
    });
}

#[test]
fn a_standby_tries_every_half_of_the_leases_time() {
    run(async {
        let world = World::new();
        let holder = world.store.acquire_lease("ingest:slow", "x", TTL * 20).await.unwrap();
        let mut pump = world.pump("first", Duration::ZERO, false);
        let handle = pump.handle();
        let mut pump = pin!(pump.run(pending()));
        assert!(poll!(&mut pump).is_pending());
        assert_eq!(handle.status().state, PumpState::Standby);
        world.store.release_lease(&holder.unwrap()).await.unwrap();
        let free = world.runtime.now();
        while world.pulls_of("first") == 0 {
            world.runtime.advance(SECOND / 2);
            assert!(poll!(&mut pump).is_pending());
            assert!(world.runtime.now().saturating_since(free) <= TTL / 2 + SECOND / 2);
        }
    });
}

#[test]
fn a_pause_keeps_the_lease_and_pulls_nothing() {
    run(async {
        let world = World::new();
        let (mut first, mut second) = (
            world.pump("first", Duration::ZERO, false),
            world.pump("second", Duration::ZERO, false),
        );
        let (handle, other) = (first.handle(), second.handle());
        let mut first = Box::pin(first.run(pending()));
        let mut second = pin!(second.run(pending()));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        handle.pause();
        assert!(handle.is_paused() && !other.is_paused());
        for _ in 0..300 {
            assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
            world.runtime.advance(SECOND);
        }
        assert_eq!((world.pulls_of("first"), world.pulls_of("second")), (1, 0));
        let states = (handle.status().state, other.status().state);
        assert_eq!(states, (PumpState::Paused, PumpState::Standby));
        // A poke does not end the pause; `resume` ticks at once.
        handle.poke();
        assert!(poll!(&mut first).is_pending());
        assert_eq!(world.pulls_of("first"), 1);
        handle.resume();
        assert!(poll!(&mut first).is_pending());
        assert_eq!((world.pulls_of("first"), handle.status().state), (2, PumpState::Running));
        handle.poke();
        assert!(poll!(&mut first).is_pending());
        assert_eq!(world.pulls_of("first"), 3, "a poke ends the wait");
        // A paused pump does not acquire the free lease.
        other.pause();
        drop(first);
        for _ in 0..300 {
            assert!(poll!(&mut second).is_pending());
            world.runtime.advance(SECOND);
        }
        assert_eq!(world.pulls_of("second"), 0);
        other.resume();
        assert!(poll!(&mut second).is_pending());
        assert_eq!(world.pulls_of("second"), 1);
    });
}

/// Pauses its pump during a pull.
struct Pausing {
    handle: Arc<Mutex<Option<PumpHandle>>>,
    pulls: Arc<Mutex<usize>>,
}

#[async_trait]
impl IngestSource for Pausing {
    fn name(&self) -> &'static str {
        "pausing"
    }

    async fn pull(&mut self, _cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        *self.pulls.lock().unwrap() += 1;
        self.handle.lock().unwrap().as_ref().unwrap().pause();
        let events = vec![named_event("x").into()];
        Ok(Pull { events, cursor: Some("1".into()), more: true, ..Pull::default() })
    }
}

#[test]
fn a_pause_finishes_the_batch_in_hand() {
    run(async {
        let world = World::new();
        let (handle, pulls) = (Arc::<Mutex<_>>::default(), Arc::<Mutex<_>>::default());
        let source = Pausing { handle: Arc::clone(&handle), pulls: Arc::clone(&pulls) };
        let intake = Intake::new(Arc::clone(&world.store), Arc::new(world.runtime.clone()));
        let mut pump = Pump::new(Box::new(source), intake, PumpConfig::default());
        *handle.lock().unwrap() = Some(pump.handle());
        let mut pump = pin!(pump.run(pending()));
        assert!(poll!(&mut pump).is_pending());
        let status = handle.lock().unwrap().as_ref().unwrap().status();
        assert_eq!((*pulls.lock().unwrap(), status.counts.stored), (1, 1));
        assert_eq!((status.state, status.more_waiting), (PumpState::Paused, true));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["state"], &json["counts"]["stored"]), (&"paused".into(), &1.into()));
        assert_eq!((&json["lastError"], &json["cursorBytes"]), (&().into(), &1.into()));
        assert_eq!(world.store.cursor("pausing").await.unwrap().as_deref(), Some("1"));
    });
}

/// Always fails.
struct Broken(Pulls, ManualRuntime);

#[async_trait]
impl IngestSource for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn pull(&mut self, _cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        self.0.lock().unwrap().push(("", self.1.now()));
        Err(Error::new(ErrorKind::SourceUnavailable, "é".repeat(600)))
    }
}

/// The waits between ten failures, in milliseconds.
async fn waits(seed: u64) -> Vec<u128> {
    let runtime = ManualRuntime::new(seed).with_sleep_advancing();
    let store = Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
    let pulls = Pulls::default();
    let source = Broken(Arc::clone(&pulls), runtime.clone());
    let mut config = PumpConfig::default();
    config.holder = Some("x".into());
    let mut pump = Pump::new(Box::new(source), Intake::new(store, Arc::new(runtime)), config);
    let handle = pump.handle();
    let ten = std::future::poll_fn(|_| match pulls.lock().unwrap().len() {
        0..10 => std::task::Poll::Pending,
        _ => std::task::Poll::Ready(()),
    });
    pump.run(ten).await;
    let status = handle.status();
    assert_eq!((status.failures, status.counts.ticks), (10, 10));
    assert_eq!(status.last_error.unwrap().text.len(), 512);
    let times = pulls.lock().unwrap();
    times.windows(2).map(|w| w[1].1.saturating_since(w[0].1).as_millis()).collect()
}

#[test]
fn waits_after_failures_grow_with_jitter_that_a_seed_repeats() {
    run(async {
        let first = waits(1).await;
        let longest = [5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000, 60_000, 60_000];
        assert_eq!(first.len(), longest.len());
        for (wait, longest) in first.iter().zip(longest) {
            assert!((longest / 2..=longest).contains(wait), "{first:?}");
        }
        assert_eq!(waits(1).await, first);
        assert_ne!(waits(2).await, first);
    });
}

/// Returns more than requested.
struct Overshoot {
    events: usize,
    metadata_bytes: usize,
}

#[async_trait]
impl IngestSource for Overshoot {
    fn name(&self) -> &'static str {
        "overshoot"
    }

    async fn pull(&mut self, cursor: Option<&str>, _limits: PullLimits) -> Result<Pull> {
        if cursor.is_some() {
            return Ok(Pull::default());
        }
        let metadata = format!("{{\"a\":\"{}\"}}", "x".repeat(self.metadata_bytes));
        let event = |n: usize| NewEvent {
            source: "overshoot".into(),
            external_id: Some(n.to_string()),
            metadata: NewMetadata::from_source(metadata.clone()),
            ..named_event("x")
        };
        let events = (0..self.events).map(|n| event(n).into()).collect();
        Ok(Pull { events, cursor: Some("end".into()), ..Pull::default() })
    }
}

#[test]
fn what_a_source_brings_too_much_comes_in_parts_and_the_cursor_with_the_last() {
    run(async {
        for (metadata_bytes, parts) in [(1, [10, 10, 5]), (900, [10, 10, 5]), (9_000, [11; 3])] {
            let place = Place::new().await;
            let store = Moody::new(Arc::clone(&place.store));
            let runtime = Arc::clone(place.intake().runtime());
            let mut config = PumpConfig::default();
            config.limits = PullLimits { max_events: 10, max_bytes: 100_000 };
            let source = Overshoot { events: 25, metadata_bytes };
            let intake = Intake::new(store.clone(), runtime);
            let mut pump = Pump::new(Box::new(source), intake, config);
            store.set(Mood::UpFor(1));
            pump.tick().await.unwrap_err();
            assert_eq!(place.store.cursor("overshoot").await.unwrap(), None);
            assert_eq!(pump.status().counts.stored, 10, "what was committed counts");
            store.set(Mood::Up);
            store.asked();
            let tick = pump.tick().await.unwrap();
            assert_eq!((tick.taken.stored, tick.taken.duplicates), (15, 10));
            let asked = store.asked();
            assert!(asked.iter().rev().skip(1).all(|asked| !asked.cursor));
            assert!(asked.last().unwrap().cursor);
            if metadata_bytes < 9_000 {
                let part = |(i, events)| Asked { events, items: 0, cursor: i == 2 };
                assert_eq!(asked, parts.into_iter().enumerate().map(part).collect::<Vec<_>>());
            }
            assert_eq!(place.store.cursor("overshoot").await.unwrap().as_deref(), Some("end"));
            assert_eq!(pump.status().counts.batches, 1);
            place.assert_whole().await;
        }
    });
}

#[test]
fn a_killed_replica_on_sqlite_is_replaced() {
    run(async {
        let place = Place::new().await;
        let runtime = Arc::clone(place.intake().runtime());
        let ttl = Duration::from_secs(2);
        let pulls = Pulls::default();
        let pump = |replica: &'static str, takes| {
            let source = Slow {
                replica,
                runtime: Arc::clone(&runtime),
                takes,
                pulls: Arc::clone(&pulls),
                more: false,
            };
            let mut config = PumpConfig::default();
            config.interval = Duration::from_mins(1);
            config.lease_ttl = ttl;
            Pump::new(Box::new(source), place.intake(), config)
        };
        let mut second = pump("second", Duration::ZERO);
        let took_over = place.store.changed(1);
        let until_taken = second.run(took_over);
        let first = async {
            let mut first = pump("first", Duration::ZERO);
            let second_waits = async {
                place.store.changed(0).await;
                // Longer than a lease lasts without renewal.
                runtime.sleep(ttl * 2).await;
            };
            {
                let mut run = pin!(first.run(pending()));
                futures_util::future::select(&mut run, pin!(second_waits)).await;
                // Killed: dropped without a release.
            }
            std::mem::forget(first);
            assert_eq!(pulls.lock().unwrap().len(), 1, "only the first replica has pulled");
            runtime.now()
        };
        let ((), killed) = join(
            Box::pin(async {
                // The second replica starts after the first.
                place.store.changed(0).await;
                until_taken.await;
            }),
            Box::pin(first),
        )
        .await;
        let by = pulls.lock().unwrap().clone();
        let names: Vec<_> = by.iter().map(|(who, _)| *who).collect();
        assert_eq!(names, ["first", "second"]);
        let took = by[1].1.saturating_since(killed);
        assert!(took <= ttl * 2, "took over after {took:?}");
        place.assert_whole().await;
    });
}
