//! The poller of Authentik against its double: real HTTP, a real pump, a real log.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::store::{ListQuery, MemoryAuditStore, SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::ManualRuntime;
use dezky_core::{
    AuditStore, IngestSource, Pull, PullLimits, Result, Runtime, StoredEvent, TenantDirectory,
    Timestamp,
};
use dezky_ingest::authentik::{ApiToken, AuthentikConfig, AuthentikSource};
use dezky_ingest::testkit::{AuthentikDouble, Fault, Profile, authentik_event};
use dezky_ingest::{Intake, Pump, Tick};
use serde_json::{Value, json};

use crate::run;

pub(crate) const MINUTE: Duration = Duration::from_mins(1);

/// A log, a clock and a double; sources come and go.
pub(crate) struct Setup {
    pub(crate) runtime: ManualRuntime,
    pub(crate) store: Arc<dyn AuditStore>,
    pub(crate) double: AuthentikDouble,
    pub(crate) directory: Option<Arc<dyn TenantDirectory>>,
    /// The sizes of pulls.
    pulls: Arc<Mutex<Vec<usize>>>,
}

impl Setup {
    pub(crate) async fn new() -> Self {
        Self::with(AuthentikDouble::builder().start().await.unwrap())
    }

    pub(crate) fn with(double: AuthentikDouble) -> Self {
        let runtime = ManualRuntime::new(9);
        let store = Arc::new(MemoryAuditStore::open(Arc::new(runtime.clone())));
        Self { runtime, store, double, directory: None, pulls: Arc::default() }
    }

    /// Creates `events` events at intervals of `apart`, the newest now.
    pub(crate) async fn with_events(events: u64, apart: Duration) -> Self {
        let setup = Self::new().await;
        setup.insert(0..events, apart);
        setup
    }

    /// Inserts events with these numbers, the last one now.
    pub(crate) fn insert(&self, numbers: std::ops::Range<u64>, apart: Duration) {
        let last = numbers.end - 1;
        self.double.insert_all(numbers.map(|n| {
            let age = apart * u32::try_from(last - n).unwrap();
            authentik_event(n, &self.ago(age))
        }));
    }

    pub(crate) fn ago(&self, age: Duration) -> String {
        let ms = self.runtime.now().as_millis() - i64::try_from(age.as_millis()).unwrap();
        Timestamp::from_millis(ms).unwrap().to_string()
    }

    pub(crate) fn config(&self) -> AuthentikConfig {
        let token = ApiToken::new("double-token").unwrap();
        AuthentikConfig::new(self.double.url(), token)
    }

    /// A new process: nothing is left but the log.
    pub(crate) fn pump(&self) -> Pump {
        let mut source =
            AuthentikSource::new(self.config(), Arc::new(self.runtime.clone())).unwrap();
        let mut intake = Intake::new(Arc::clone(&self.store), Arc::new(self.runtime.clone()));
        if let Some(directory) = &self.directory {
            source = source.with_directory(Arc::clone(directory));
            intake = intake.with_directory(Arc::clone(directory));
        }
        let watched = Watched { source, pulls: Arc::clone(&self.pulls) };
        let mut config = AuthentikConfig::pump_config();
        config.holder = Some("one".into());
        Pump::new(Box::new(watched), intake, config)
    }

    /// Ticks once a minute until nothing is left to read.
    pub(crate) async fn drain(&self, pump: &mut Pump) -> usize {
        let mut ticks = 1;
        while pump.tick().await.unwrap().more {
            self.runtime.advance(MINUTE);
            ticks += 1;
            assert!(ticks < 100, "draining ends");
        }
        ticks
    }

    pub(crate) async fn stored(&self) -> Vec<StoredEvent> {
        let mut stored = Vec::new();
        loop {
            let rows = self.store.scan(i64::try_from(stored.len()).unwrap(), 5_000).await.unwrap();
            if rows.is_empty() {
                return stored;
            }
            stored.extend(rows.into_iter().map(|row| row.unwrap().stored));
        }
    }

    pub(crate) async fn ids(&self) -> BTreeSet<String> {
        let events = self.stored().await.into_iter();
        events
            .filter(|e| e.event.source == "authentik")
            .map(|e| e.event.external_id.unwrap())
            .collect()
    }

    pub(crate) async fn assert_all(&self, numbers: std::ops::Range<u64>) {
        let ids = self.ids().await;
        let missing = numbers.map(|n| authentik_event(n, "")["pk"].as_str().unwrap().to_owned());
        let missing = missing.filter(|pk| !ids.contains(pk)).count();
        assert_eq!(missing, 0, "nothing is lost");
    }

    pub(crate) async fn watermark(&self) -> Option<Timestamp> {
        let cursor: Value =
            serde_json::from_str(&self.store.cursor("authentik").await.unwrap()?).unwrap();
        Timestamp::parse(cursor["watermark"].as_str()?)
    }

    pub(crate) async fn actions(&self) -> Vec<String> {
        self.stored().await.into_iter().map(|e| e.event.action).collect()
    }
}

struct Watched {
    source: AuthentikSource,
    pulls: Arc<Mutex<Vec<usize>>>,
}

#[async_trait]
impl IngestSource for Watched {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        let pull = self.source.pull(cursor, limits).await?;
        self.pulls.lock().unwrap().push(pull.events.len());
        Ok(pull)
    }
}

pub(crate) fn metadata(event: &StoredEvent) -> Value {
    event.event.metadata.to_value()
}

#[test]
fn three_new_events_on_five_thousand_arrive_in_the_first_tick() {
    run(async {
        let setup = Setup::with_events(5_000, Duration::from_mins(5)).await;
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        setup.runtime.advance(MINUTE);
        setup.insert(5_000..5_003, Duration::from_secs(1));
        let before = setup.double.polls();
        let tick = pump.tick().await.unwrap();
        assert_eq!((tick.taken.stored, tick.more), (3, false));
        assert_eq!(setup.double.polls() - before, 1);
    });
}

#[test]
fn a_first_run_on_five_thousand_drains_within_six_ticks() {
    run(async {
        let setup = Setup::with_events(5_000, Duration::from_mins(5)).await;
        let mut pump = setup.pump();
        let ticks = setup.drain(&mut pump).await;
        assert!(ticks <= 6, "{ticks} ticks, {} requests", setup.double.polls());
        setup.assert_all(0..5_000).await;
        let largest = *setup.pulls.lock().unwrap().iter().max().unwrap();
        assert!(largest <= 100, "a pull holds one page at most: {largest}");
    });
}

#[test]
fn an_outage_of_2500_events_is_made_up_for_across_restarts() {
    run(async {
        let setup = Setup::with_events(300, MINUTE).await;
        setup.drain(&mut setup.pump()).await;
        let before = setup.watermark().await.unwrap();
        setup.runtime.advance(MINUTE * 3_000);
        setup.insert(300..2_800, MINUTE);
        let mut ticks = 0;
        loop {
            // A new process for every tick.
            let more = setup.pump().tick().await.unwrap().more;
            ticks += 1;
            let watermark = setup.watermark().await.unwrap();
            assert!(watermark >= before);
            let ids = setup.ids().await;
            let newest = 2_799;
            let is_missing =
                |n: &u64| !ids.contains(authentik_event(*n, "")["pk"].as_str().unwrap());
            let passed = (300..2_800).filter(is_missing).any(|n| {
                let age = MINUTE * u32::try_from(newest - n).unwrap();
                let now = setup.runtime.now().saturating_since(Timestamp::MIN);
                let elapsed = MINUTE * (ticks - 1);
                let created = now.checked_sub(age + elapsed).unwrap();
                created <= watermark.saturating_since(Timestamp::MIN)
            });
            assert!(!passed, "the watermark has not passed a missing event");
            if !more {
                break;
            }
            setup.runtime.advance(MINUTE);
            assert!(ticks < 20);
        }
        assert!(ticks > 2, "it took several ticks");
        setup.assert_all(0..2_800).await;
        assert!(setup.watermark().await.unwrap() > before);
    });
}

#[test]
fn inserting_and_deleting_under_the_walk_loses_nothing() {
    run(async {
        let setup = Setup::with_events(1_500, MINUTE).await;
        let now = setup.ago(Duration::ZERO);
        for nth in 0..30_u64 {
            let now = now.clone();
            setup.double.before_request(usize::try_from(nth).unwrap(), move |events| {
                // Retention takes the oldest, traffic adds as many: the count stays.
                events.sort_by_key(|event| event["created"].as_str().unwrap().to_owned());
                events.drain(..20);
                events.extend((0..20).map(|n| authentik_event(10_000 + nth * 20 + n, &now)));
            });
        }
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        setup.runtime.advance(MINUTE * 3);
        setup.drain(&mut pump).await;
        let ids = setup.ids().await;
        let left = setup.double.delete(|event| !ids.contains(event["pk"].as_str().unwrap()));
        assert_eq!(left, 0, "all that is left on the server is in the log");
        assert!(setup.double.len() == 1_500);
    });
}

#[test]
fn the_events_of_a_deleted_user_take_nothing_along() {
    run(async {
        let setup = Setup::new().await;
        let of = |user: u64, n: u64| {
            let mut event = authentik_event(n, &setup.ago(Duration::from_secs(n)));
            event["user"]["pk"] = user.into();
            event
        };
        setup.double.insert_all((0..900).map(|n| of(1 + n % 3, n)));
        setup.double.before_request(3, |events| events.retain(|e| e["user"]["pk"] != 2));
        setup.drain(&mut setup.pump()).await;
        let ids = setup.ids().await;
        assert_eq!(setup.double.delete(|e| !ids.contains(e["pk"].as_str().unwrap())), 0);
    });
}

#[test]
fn equal_times_over_the_edge_of_a_page_come_once_each() {
    run(async {
        let setup = Setup::with_events(350, Duration::ZERO).await;
        setup.drain(&mut setup.pump()).await;
        setup.assert_all(0..350).await;
        assert_eq!(setup.stored().await.len(), 350);
    });
}

#[test]
fn smaller_pages_than_asked_for_are_followed() {
    run(async {
        let double = AuthentikDouble::builder().max_page_size(50);
        let setup = Setup::with(double.start().await.unwrap());
        setup.insert(0..1_000, MINUTE);
        setup.drain(&mut setup.pump()).await;
        setup.assert_all(0..1_000).await;
        setup.runtime.advance(MINUTE);
        setup.double.set_max_page_size(Some(30));
        setup.insert(1_000..1_400, Duration::ZERO);
        setup.drain(&mut setup.pump()).await;
        setup.assert_all(0..1_400).await;
    });
}

#[test]
fn pages_of_two_and_three_lose_nothing_as_old_events_expire() {
    run(async {
        for size in [2, 3] {
            let double = AuthentikDouble::builder().max_page_size(size);
            let setup = Setup::with(double.start().await.unwrap());
            setup.insert(0..60, MINUTE);
            let now = setup.ago(Duration::ZERO);
            for nth in 0..20_u64 {
                let now = now.clone();
                setup.double.before_request(usize::try_from(nth * 3).unwrap(), move |events| {
                    // One row disappears and another one appears: the count stays the same.
                    events.sort_by_key(|event| event["created"].as_str().unwrap().to_owned());
                    events.remove(0);
                    events.push(authentik_event(1_000 + nth, &now));
                });
            }
            setup.drain(&mut setup.pump()).await;
            setup.runtime.advance(MINUTE * 3);
            setup.drain(&mut setup.pump()).await;
            let ids = setup.ids().await;
            let is_missing = |event: &&Value| !ids.contains(event["pk"].as_str().unwrap());
            assert_eq!(setup.double.events().iter().filter(is_missing).count(), 0, "{size}");
        }
    });
}

#[test]
fn pages_of_one_are_refused_with_what_to_change() {
    run(async {
        let double = AuthentikDouble::builder().max_page_size(1);
        let setup = Setup::with(double.start().await.unwrap());
        setup.insert(0..3, MINUTE);
        let error = setup.pump().tick().await.unwrap_err();
        assert!(error.to_string().contains("pagination_max_page_size"), "{error}");
    });
}

#[test]
fn a_backlog_of_a_hundred_and_ten_pages_drains_ten_a_tick() {
    run(async {
        let double = AuthentikDouble::builder().max_page_size(20);
        let setup = Setup::with(double.start().await.unwrap());
        setup.insert(0..2_100, MINUTE);
        let mut pump = setup.pump();
        let mut ticks = 1;
        while pump.tick().await.unwrap().more {
            assert!(setup.double.polls() <= ticks * 11, "bounded, tick by tick");
            setup.runtime.advance(MINUTE);
            ticks += 1;
        }
        setup.assert_all(0..2_100).await;
        assert!((12..=15).contains(&ticks), "{ticks} ticks");
        let cursor = setup.store.cursor("authentik").await.unwrap().unwrap();
        assert!(cursor.len() < 400, "the cursor does not grow with it: {cursor}");
    });
}

#[test]
fn an_event_of_a_clock_that_is_ahead_hides_nothing() {
    run(async {
        let setup = Setup::with_events(5, MINUTE).await;
        let ahead = setup.runtime.now().saturating_add(Duration::from_hours(9_000));
        setup.double.insert(authentik_event(50, &ahead.to_string()));
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        assert!(setup.watermark().await.unwrap() <= setup.runtime.now());
        setup.runtime.advance(MINUTE);
        setup.double.insert(authentik_event(51, &setup.ago(Duration::ZERO)));
        assert_eq!(pump.tick().await.unwrap().taken.stored, 1);
        setup.assert_all(50..52).await;
    });
}

#[test]
fn every_version_is_read() {
    run(async {
        for profile in [Profile::Pre2025_8, Profile::V2025_8, Profile::V2025_12, Profile::V2026_5] {
            let double = AuthentikDouble::builder().profile(profile);
            let setup = Setup::with(double.start().await.unwrap());
            setup.insert(0..250, MINUTE);
            setup.drain(&mut setup.pump()).await;
            setup.assert_all(0..250).await;
        }
    });
}

#[test]
fn a_steady_poll_is_one_request_and_writes_nothing() {
    run(async {
        let setup = Setup::with_events(2_000, Duration::from_secs(50)).await;
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        let cursor = setup.store.cursor("authentik").await.unwrap();
        let before = setup.double.polls();
        for _ in 0..10 {
            setup.runtime.advance(MINUTE);
            assert_eq!(pump.tick().await.unwrap(), Tick::default());
        }
        assert_eq!(setup.double.polls() - before, 10);
        assert_eq!(setup.store.cursor("authentik").await.unwrap(), cursor);
    });
}

#[test]
fn unknown_actions_and_odd_items_hold_nothing_up() {
    run(async {
        let setup = Setup::with_events(3, MINUTE).await;
        let mut odd = Vec::new();
        for (n, action) in
            [(10, "custom_risk flagged"), (11, "quantum_login"), (12, "password_set")]
        {
            let mut event = authentik_event(n, &setup.ago(MINUTE));
            event["action"] = action.into();
            odd.push(event);
        }
        let mut old = authentik_event(13, &setup.ago(MINUTE));
        let brand = old["brand"].take();
        old.as_object_mut().unwrap().remove("brand");
        old["tenant"] = brand;
        old["user"] = json!({});
        odd.push(old);
        odd.push(json!({"pk": "x", "action": 7, "created": "yesterday", "token": "hunter2"}));
        setup.double.insert_all(odd);
        let mut pump = setup.pump();
        let tick = pump.tick().await.unwrap();
        assert_eq!((tick.taken.stored, tick.taken.quarantined), (7, 1));
        let actions = setup.actions().await;
        for expected in ["custom_risk_flagged", "quantum_login", "password_changed"] {
            assert!(actions.contains(&format!("authentik.{expected}")), "{actions:?}");
        }
        assert_eq!(actions.iter().filter(|action| *action == "ingest.quarantined").count(), 1);
        let kept = setup.store.quarantined(0, 10).await.unwrap();
        assert_eq!(kept[0].item.reason, "no_created");
        assert!(!String::from_utf8_lossy(&kept[0].item.raw).contains("hunter2"));
        setup.runtime.advance(MINUTE);
        assert_eq!(pump.tick().await.unwrap(), Tick::default(), "it is quarantined once");
    });
}

#[test]
fn a_commit_that_comes_five_minutes_late_is_picked_up() {
    run(async {
        let setup = Setup::with_events(500, Duration::from_secs(10)).await;
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        setup.runtime.advance(MINUTE);
        setup.double.insert(authentik_event(900, &setup.ago(MINUTE * 5)));
        let tick = pump.tick().await.unwrap();
        assert_eq!((tick.taken.stored, tick.taken.late), (1, 1));
    });
}

#[test]
fn a_commit_that_comes_hours_late_is_found_by_the_reconcile_walk_and_counted() {
    run(async {
        let setup = Setup::with_events(900, MINUTE * 3).await;
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        setup.runtime.advance(MINUTE);
        setup.double.insert(authentik_event(9_000, &setup.ago(MINUTE * 300)));
        setup.drain(&mut pump).await;
        assert_eq!(setup.stored().await.len(), 900, "a poll does not go back so far");
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        assert_eq!(pump.status().counts.late, 1);
        let stored = setup.stored().await;
        let late_by = metadata(&stored[900])["_dezky"]["lateBySeconds"].as_u64().unwrap();
        assert!((18_000..18_300).contains(&late_by), "{late_by}");
    });
}

#[test]
fn events_that_expired_unread_are_a_gap_on_the_timeline() {
    run(async {
        let setup = Setup::with_events(50, MINUTE).await;
        setup.drain(&mut setup.pump()).await;
        setup.runtime.advance(MINUTE * 600);
        setup.insert(50..250, MINUTE);
        setup.double.expire(150);
        for _ in 0..2 {
            setup.drain(&mut setup.pump()).await;
        }
        let stored = setup.stored().await;
        let gaps: Vec<_> = stored.iter().filter(|e| e.event.action == "ingest.gap").collect();
        assert_eq!(gaps.len(), 1, "once, whatever is restarted");
        assert_eq!(gaps[0].event.source, "platform-api");
        assert_eq!(metadata(gaps[0])["reason"], "expired");
        setup.assert_all(150..250).await;
    });
}

#[test]
fn a_page_past_the_end_is_one_in_every_language() {
    run(async {
        let setup = Setup::with_events(900, MINUTE).await;
        setup.double.set_no_such_page("Ungültige Seite.");
        setup.double.before_request(6, |events| {
            events.sort_by_key(|event| event["created"].as_str().unwrap().to_owned());
            events.drain(..800);
        });
        setup.drain(&mut setup.pump()).await;
        setup.assert_all(800..900).await;
        let misses = setup.double.requests();
        assert!(misses.iter().any(|request| request.status == 404));
    });
}

#[test]
fn a_permission_that_is_taken_and_given_back_loses_no_backlog() {
    run(async {
        let setup = Setup::with_events(3_000, MINUTE).await;
        let mut pump = setup.pump();
        assert!(pump.tick().await.unwrap().more);
        setup.double.hide_all();
        let before = setup.double.polls();
        for _ in 0..6 {
            setup.runtime.advance(MINUTE);
            assert_eq!(pump.tick().await.unwrap().taken.stored, 0);
        }
        assert!(
            setup.double.polls() - before <= 20,
            "one request per tick, once the missing permission is known"
        );
        setup.double.set_permission(true);
        setup.drain(&mut pump).await;
        setup.assert_all(0..3_000).await;
    });
}

#[test]
fn pages_of_many_megabytes_are_read_in_parts() {
    run(async {
        let setup = Setup::new().await;
        let large = |n: u64| {
            let mut event = authentik_event(n, &setup.ago(MINUTE * u32::try_from(n).unwrap()));
            event["context"]["request"] = "x".repeat(40_000).into();
            event
        };
        setup.double.insert_all((0..90).map(large));
        let mut config = setup.config();
        config.max_page_bytes = 1 << 20;
        let source = AuthentikSource::new(config, Arc::new(setup.runtime.clone())).unwrap();
        let intake = Intake::new(Arc::clone(&setup.store), Arc::new(setup.runtime.clone()));
        let mut pump = Pump::new(Box::new(source), intake, AuthentikConfig::pump_config());
        setup.drain(&mut pump).await;
        pump.release().await;
        setup.assert_all(0..90).await;

        let mut huge = authentik_event(90, &setup.ago(Duration::ZERO));
        huge["context"]["request"] = "x".repeat(5 << 20).into();
        let huge_pk = huge["pk"].as_str().unwrap().to_owned();
        setup.double.insert(huge);
        setup.runtime.advance(MINUTE);
        setup.drain(&mut setup.pump()).await;
        let stored = setup.stored().await;
        let pk = &huge_pk;
        let kept = stored.iter().find(|e| e.event.external_id.as_ref() == Some(pk)).unwrap();
        assert_eq!(metadata(kept)["_dezky"]["cut"]["context.request"]["bytes"], 5 << 20);
        assert_eq!(metadata(kept)["brand"]["name"], "acme");
    });
}

#[test]
fn an_event_beyond_the_bound_of_a_page_is_quarantined_and_holds_nothing_up() {
    run(async {
        let setup = Setup::with_events(60, MINUTE).await;
        let huge = |n: u64, age: u32| {
            let mut event = authentik_event(n, &setup.ago(MINUTE * age));
            event["context"]["request"] = "x".repeat(1 << 20).into();
            event
        };
        // Two adjacent events, and the newest one.
        setup.double.insert_all([huge(900, 5), huge(901, 5), huge(902, 0)]);
        let pump = || {
            let mut config = setup.config();
            config.max_page_bytes = 1 << 20;
            let source = AuthentikSource::new(config, Arc::new(setup.runtime.clone())).unwrap();
            let intake = Intake::new(Arc::clone(&setup.store), Arc::new(setup.runtime.clone()));
            let mut config = AuthentikConfig::pump_config();
            config.holder = Some("one".into());
            Pump::new(Box::new(source), intake, config)
        };
        setup.drain(&mut pump()).await;
        setup.assert_all(0..60).await;
        // They are read repeatedly and quarantined once.
        setup.runtime.advance(MINUTE);
        setup.double.insert(authentik_event(60, &setup.ago(Duration::ZERO)));
        setup.drain(&mut pump()).await;
        setup.assert_all(0..61).await;
        let kept = setup.store.quarantined(0, 10).await.unwrap();
        let mut keys: Vec<_> =
            kept.iter().map(|kept| String::from_utf8(kept.item.raw.clone()).unwrap()).collect();
        keys.sort();
        let pk = |n: u64| authentik_event(n, "")["pk"].as_str().unwrap().to_owned();
        let mut expected: Vec<_> = (900..903).map(pk).collect();
        expected.sort();
        assert_eq!(keys, expected, "each is quarantined with its key");
        assert!(kept.iter().all(|kept| kept.item.reason == "too_large"));
        let told = setup.actions().await;
        assert_eq!(told.iter().filter(|action| *action == "ingest.quarantined").count(), 3);
    });
}

/// Gives the double the clock of the test.
fn share_clock(setup: &Setup) {
    let runtime = setup.runtime.clone();
    setup.double.set_clock(move || {
        runtime.advance(Duration::from_millis(3));
        runtime.now().to_string()
    });
}

fn pk_of(n: u64) -> String {
    authentik_event(n, "")["pk"].as_str().unwrap().to_owned()
}

#[test]
fn an_event_that_authentik_can_not_give_is_passed_over_with_a_gap_that_names_its_place() {
    run(async {
        let setup = Setup::with_events(300, Duration::from_secs(1)).await;
        share_clock(&setup);
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        setup.runtime.advance(MINUTE);
        setup.insert(300..340, Duration::from_millis(100));
        setup.double.poison(pk_of(320));
        setup.runtime.advance(Duration::from_secs(1));
        for _ in 0..5 {
            pump.tick().await.unwrap();
            setup.runtime.advance(MINUTE);
        }
        let ids = setup.ids().await;
        let missing: Vec<u64> = (0..340).filter(|n| !ids.contains(&pk_of(*n))).collect();
        assert_eq!(missing, [320]);
        let stored = setup.stored().await;
        let gaps: Vec<_> = stored.iter().filter(|e| e.event.action == "ingest.gap").collect();
        assert_eq!(gaps.len(), 1, "{:?}", setup.store.cursor("authentik").await);
        let said = metadata(gaps[0]);
        assert_eq!((&said["reason"], &said["rows"]), (&json!("unreadable"), &json!(1)));
        assert_eq!(said["newer"]["pk"], pk_of(321));
        assert_eq!(said["older"]["pk"], pk_of(319));
        let exceptions = |setup: &Setup| setup.double.len() - 340;
        let before = exceptions(&setup);
        assert!(before <= 10, "{before} failed requests for one row");
        // The row stays within the range that polls read again, without causing more failures.
        for n in 400..406 {
            setup.double.insert(authentik_event(n, &setup.ago(Duration::ZERO)));
            setup.runtime.advance(MINUTE);
            pump.tick().await.unwrap();
        }
        setup.assert_all(400..406).await;
        assert_eq!(exceptions(&setup) - 6, before);
        // A new process still knows the gap; once Authentik can return the row, it is stored.
        setup.double.cure(&pk_of(320));
        let mut pump = setup.pump();
        pump.release().await;
        setup.drain(&mut pump).await;
        setup.assert_all(0..340).await;
    });
}

#[test]
fn while_nothing_can_be_given_nothing_is_passed_over() {
    run(async {
        let setup = Setup::with_events(150, MINUTE).await;
        setup.drain(&mut setup.pump()).await;
        setup.runtime.advance(MINUTE);
        setup.insert(150..160, Duration::from_millis(10));
        let cursor = setup.store.cursor("authentik").await.unwrap();
        let mut pump = setup.pump();
        for fault in [Fault::Html(500), Fault::Html(502), Fault::Text(404), Fault::Truncated] {
            let before = setup.double.polls();
            setup.double.fail_next_below("/api/v3/events/", 100, fault.clone());
            for _ in 0..7 {
                let error = pump.tick().await.unwrap_err();
                assert_eq!(error.code(), "source_unavailable", "{fault:?}");
                setup.runtime.advance(MINUTE);
            }
            assert!(setup.double.polls() - before <= 21, "{fault:?}");
            assert_eq!(setup.store.cursor("authentik").await.unwrap(), cursor, "{fault:?}");
            setup.double.clear_faults();
        }
        setup.drain(&mut pump).await;
        setup.assert_all(0..160).await;
        assert!(!setup.actions().await.contains(&"ingest.gap".to_owned()));
    });
}

#[test]
fn no_page_is_tried_for_ever_whatever_its_status() {
    run(async {
        for status in [400, 404, 403, 502, 504] {
            let setup = Setup::with_events(60, Duration::from_secs(1)).await;
            setup.double.break_over(pk_of(30), status);
            let mut pump = setup.pump();
            for _ in 0..40 {
                let _ = pump.tick().await;
                setup.runtime.advance(MINUTE * 5);
            }
            let ids = setup.ids().await;
            let missing: Vec<u64> = (0..60).filter(|n| !ids.contains(&pk_of(*n))).collect();
            assert_eq!(missing, [30], "{status}");
        }
    });
}

#[test]
fn new_events_do_not_wait_for_the_overlap_of_a_burst_to_be_read_again() {
    run(async {
        // Pages of 10, so that 500 events are as many pages as 5,000 are of 100.
        let double = AuthentikDouble::builder().max_page_size(10);
        let setup = Setup::with(double.start().await.unwrap());
        setup.insert(0..10, MINUTE);
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        // 500 in ten minutes.
        for part in 0..10 {
            setup.runtime.advance(MINUTE);
            let first = 10 + part * 50;
            setup.insert(first..first + 50, Duration::from_millis(1_100));
            pump.tick().await.unwrap();
        }
        for n in 0..5 {
            setup.runtime.advance(MINUTE);
            let first = 9_000 + n * 3;
            setup.insert(first..first + 3, Duration::from_millis(10));
            let before = setup.double.polls();
            pump.tick().await.unwrap();
            setup.assert_all(first..first + 3).await;
            assert!(setup.double.polls() - before <= 12, "within the budget of a tick");
        }
        // And rows that become visible late in the overlap are found meanwhile.
        while pump.tick().await.unwrap().more {
            setup.runtime.advance(MINUTE);
        }
        setup.insert(9_800..9_801, MINUTE);
        pump.tick().await.unwrap();
        let mut late = authentik_event(9_900, &setup.ago(MINUTE * 4));
        late["action"] = "logout".into();
        setup.double.insert(late);
        for _ in 0..12 {
            setup.runtime.advance(MINUTE);
            pump.tick().await.unwrap();
        }
        setup.assert_all(10..510).await;
        setup.assert_all(9_900..9_901).await;
        assert_eq!(pump.status().counts.late, 1);
    });
}

#[test]
fn a_password_set_by_an_administrator_is_theirs() {
    run(async {
        let setup = Setup::new().await;
        let request = |n: u64, user: Value, action: &str, model: Value| {
            let mut event = authentik_event(n, &setup.ago(Duration::from_millis(10 - n)));
            event["user"] = user;
            event["action"] = action.into();
            event["context"] = json!({"http_request": {
                "path": "/api/v3/core/users/42/set_password/", "request_id": "one",
            }});
            if !model.is_null() {
                event["context"]["model"] = model;
            }
            event
        };
        let (ana, admin) =
            (json!({"pk": 42, "username": "ana"}), json!({"pk": 3, "username": "root"}));
        let model = json!({"pk": 42, "model_name": "user", "name": "Ana"});
        setup.double.insert_all([
            request(1, ana, "password_set", Value::Null),
            request(2, admin, "model_updated", model),
        ]);
        setup.drain(&mut setup.pump()).await;
        let stored = setup.stored().await;
        let set = stored.iter().find(|e| e.event.action == "authentik.password_changed").unwrap();
        assert_eq!(set.event.actor_id.as_deref(), Some("3"));
        assert_eq!(set.event.resource_id.as_deref(), Some("42"));
        assert_eq!(metadata(set)["_dezky"]["actorBy"], "request");
    });
}

#[test]
fn the_name_that_was_tried_is_found_by_q() {
    run(async {
        let setup = Setup::new().await;
        let mut event = authentik_event(1, &setup.ago(MINUTE));
        event["action"] = "login_failed".into();
        event["user"] = json!({"pk": 1, "username": "AnonymousUser", "is_anonymous": true});
        event["context"]["username"] = "Mallory@evil.test".into();
        setup.double.insert(event);
        setup.drain(&mut setup.pump()).await;
        let query = ListQuery { q: Some("mallory@".into()), ..ListQuery::default() };
        let found = setup.store.list(&query).await.unwrap().events;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].event.actor_email, None);
        assert_eq!(found[0].event.actor_type, dezky_core::ActorType::Anonymous);
    });
}

#[test]
fn an_empty_list_is_no_end_and_no_error() {
    run(async {
        let setup = Setup::with_events(50, MINUTE).await;
        setup.double.hide_all();
        let mut pump = setup.pump();
        for _ in 0..3 {
            assert_eq!(pump.tick().await.unwrap().taken.stored, 0);
            setup.runtime.advance(MINUTE);
        }
        setup.double.set_permission(true);
        assert_eq!(pump.tick().await.unwrap().taken.stored, 50);
    });
}

/// A log in a file, which outlives a process.
async fn sqlite(folder: &std::path::Path) -> Arc<dyn AuditStore> {
    let config = SqliteConfig::new(folder.join("audit.db"));
    Arc::new(SqliteAuditStore::open(config, &dezky_core::rt::TokioRuntime).await.unwrap())
}

#[test]
fn seed_fresh_database_and_restart_78_authentik_events() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = Setup::with_events(78, MINUTE).await;
        setup.store = sqlite(folder.path()).await;
        let tick = setup.pump().tick().await.unwrap();
        assert_eq!((tick.taken.stored, tick.taken.duplicates, tick.more), (78, 0, false));

        setup.store = sqlite(folder.path()).await;
        setup.runtime.advance(MINUTE);
        let mut pump = setup.pump();
        let tick = pump.tick().await.unwrap();
        assert_eq!((tick.taken.stored, tick.taken.conflicts, tick.more), (0, 0, false));
        assert_eq!(setup.stored().await.len(), 78);

        setup.double.insert(authentik_event(78, &setup.ago(Duration::ZERO)));
        setup.runtime.advance(MINUTE);
        assert_eq!(pump.tick().await.unwrap().taken.stored, 1);
        let query = ListQuery { limit: 1, ..ListQuery::default() };
        let newest = setup.store.list(&query).await.unwrap().events.remove(0).event;
        assert_eq!(newest.action, "authentik.login");
        assert_eq!(newest.actor_email.as_deref(), Some("ana@acme.test"));
        assert_eq!(newest.actor_ip.as_deref(), Some("203.0.113.10"));
    });
}

#[test]
fn seed_re_pulled_cursor_overlap_is_silent() {
    let (lines, _guard) = logged();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let setup = Setup::with_events(300, Duration::from_secs(5)).await;
        setup.drain(&mut setup.pump()).await;
        for _ in 0..3 {
            setup.runtime.advance(MINUTE);
            // A new process does not remember which events are stored.
            let mut pump = setup.pump();
            setup.drain(&mut pump).await;
            assert!(pump.status().counts.duplicates >= 100);
        }
        assert_eq!(setup.stored().await.len(), 300);
        setup.double.fail_next(1, Fault::Html(502));
        setup.runtime.advance(MINUTE);
        setup.pump().tick().await.unwrap_err();
    });
    let written = lines.text();
    assert_eq!(written.lines().count(), 1, "only the failure at the end: {written}");
    assert!(written.contains("source_unavailable"));
}

/// Captures this thread's log output until the guard is dropped.
pub(crate) fn logged() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(lines.clone())
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

/// The logged text.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
