//! Flags that follow their store, in one process and with a clock that the test controls.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{Capabilities, MemoryAuditStore};
use dezky_core::testkit::ManualRuntime;
use dezky_core::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};
use dezky_flags::live::{LiveConfig, Subscription};
use dezky_flags::store::{DocumentFlagStore, FlagChange, FlagStore, FlagTable};
use dezky_flags::{Flag, FlagContext, FlagEvaluator, FlagState, LiveFlags, NewFlag, Reason};
use futures_util::FutureExt;
use futures_util::future::join_all;

use crate::allocation::allocations;
use crate::servers::{spawn, tokio};

pub(crate) const POLL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Flags in memory behind a connection that the test can break.
pub(crate) struct Line {
    inner: Box<dyn FlagStore>,
    state: AtomicUsize,
    /// Notifies of changes up to this revision.
    told: AtomicU64,
    /// Sends one notification, whether or not there is a change.
    tells_once: AtomicBool,
    pub(crate) asked: AtomicUsize,
}

pub(crate) const UP: usize = 0;
pub(crate) const DOWN: usize = 1;
const SILENT: usize = 2;

impl Line {
    pub(crate) fn new(runtime: &Arc<dyn Runtime>) -> Arc<Self> {
        let log = Arc::new(MemoryAuditStore::open(Arc::clone(runtime)));
        Arc::new(Self {
            inner: Box::new(DocumentFlagStore::in_memory(log)),
            state: AtomicUsize::new(UP),
            told: AtomicU64::new(0),
            tells_once: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        })
    }

    pub(crate) fn set(&self, state: usize) {
        self.state.store(state, Ordering::SeqCst);
    }

    async fn pass(&self) -> Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.state.load(Ordering::SeqCst) {
            UP => Ok(()),
            DOWN => Err(Error::new(ErrorKind::StoreUnavailable, "the line is down")),
            _ => std::future::pending().await,
        }
    }

    /// Creates a flag, or its next version, that is on or off.
    pub(crate) async fn put(&self, key: &str, is_on: bool) {
        let before = self.inner.flag(key).await.unwrap();
        let state = if is_on { FlagState::On } else { FlagState::Off };
        let change = match before {
            None => {
                let new = NewFlag { state, ..NewFlag::new(key) };
                FlagChange::Create(Box::new(Flag::new(new, Timestamp::MIN).unwrap()))
            }
            Some(flag) => {
                let version = flag.version + 1;
                FlagChange::Replace(Box::new(Flag { state, version, ..flag }))
            }
        };
        self.inner.commit(vec![change], Vec::new()).await.unwrap();
    }
}

#[async_trait::async_trait]
impl FlagStore for Line {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn table(&self) -> Result<FlagTable> {
        self.pass().await?;
        self.inner.table().await
    }

    async fn revision(&self) -> Result<u64> {
        self.pass().await?;
        self.inner.revision().await
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        self.pass().await?;
        self.inner.commit(changes, events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        self.inner.restore(table).await
    }

    async fn changed(&self, revision: u64) {
        if self.tells_once.swap(false, Ordering::SeqCst) {
            return;
        }
        if self.told.load(Ordering::SeqCst) <= revision {
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) fn manual() -> (ManualRuntime, Arc<dyn Runtime>) {
    let manual = ManualRuntime::new(3);
    (manual.clone(), Arc::new(manual))
}

/// Runs everything that is ready without advancing the clock.
pub(crate) fn now<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("is done at once")
}

pub(crate) fn open(line: &Arc<Line>, runtime: &Arc<dyn Runtime>, config: LiveConfig) -> LiveFlags {
    now(LiveFlags::open(line.clone(), runtime.clone(), config)).unwrap()
}

pub(crate) fn config(change: impl FnOnce(&mut LiveConfig)) -> LiveConfig {
    let mut config = LiveConfig::default();
    change(&mut config);
    config
}

pub(crate) fn is_on(flags: &dyn FlagEvaluator, key: &str) -> bool {
    flags.evaluate(key, &FlagContext::default()).value
}

/// Runs `work` for the given time.
pub(crate) fn go_on(
    manual: &ManualRuntime,
    mut work: std::pin::Pin<&mut impl Future<Output = ()>>,
    span: Duration,
) {
    let end = manual.now().saturating_add(span);
    loop {
        assert!(work.as_mut().now_or_never().is_none(), "it keeps running");
        let wake = manual.next_wake().filter(|at| *at <= end).unwrap_or(end);
        if wake == manual.now() && wake == end {
            return;
        }
        manual.advance(wake.saturating_since(manual.now()));
    }
}

fn told(changes: &mut Subscription) -> Option<u64> {
    changes.next().now_or_never()
}

#[test]
fn a_change_is_seen_within_the_poll_interval_and_told_once() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    let (mut changes, mut run) = (live.subscribe(), pin!(live.run(std::future::pending())));
    go_on(&manual, run.as_mut(), POLL * 3);
    assert_eq!((told(&mut changes), live.revision()), (None, 0));
    assert_eq!(live.evaluate("a", &FlagContext::default()).reason, Reason::UnknownFlag);
    now(line.put("a", true));
    now(line.put("b", true));
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!((live.revision(), is_on(&live, "a")), (2, true));
    assert_eq!((told(&mut changes), told(&mut changes)), (Some(2), None));
    // A new subscriber has seen the change; one that has not asked for long gets only the last one.
    assert_eq!(told(&mut live.subscribe()), None);
    for n in 0..5 {
        now(line.put("a", n % 2 == 0));
        go_on(&manual, run.as_mut(), POLL);
    }
    assert_eq!((told(&mut changes), told(&mut changes)), (Some(7), None));
    // Dropping a wait midway loses nothing.
    assert!(changes.next().now_or_never().is_none());
    now(line.put("a", false));
    now(live.refresh()).unwrap();
    assert_eq!(told(&mut changes), Some(8));
}

#[test]
fn a_notification_is_acted_on_at_once() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let config = config(|config| config.poll_interval = Duration::from_hours(1));
    let live = open(&line, &runtime, config);
    let mut run = pin!(live.run(std::future::pending()));
    line.told.store(1, Ordering::SeqCst);
    now(line.put("a", true));
    go_on(&manual, run.as_mut(), Duration::ZERO);
    assert!(is_on(&live, "a"));
}

/// A re-established connection notifies once, possibly before the store answers again.
#[test]
fn a_notification_during_an_outage_is_retried() {
    for state in [DOWN, SILENT] {
        let (manual, runtime) = manual();
        let line = Line::new(&runtime);
        let config = config(|config| config.poll_interval = Duration::from_hours(1));
        let live = open(&line, &runtime, config);
        now(line.put("a", true));
        line.set(state);
        line.tells_once.store(true, Ordering::SeqCst);
        let mut run = pin!(live.run(std::future::pending()));
        go_on(&manual, run.as_mut(), Duration::from_mins(1));
        assert!(live.status().failure.is_some() && !is_on(&live, "a"));
        line.set(UP);
        go_on(&manual, run.as_mut(), Duration::from_secs(15));
        assert!(live.status().failure.is_none() && is_on(&live, "a"));
        // From then on, no more often than before.
        line.asked.store(0, Ordering::SeqCst);
        go_on(&manual, run.as_mut(), Duration::from_mins(10));
        assert_eq!(line.asked.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn endless_notifications_at_most_double_the_reads() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    let mut run = pin!(live.run(std::future::pending()));
    line.told.store(u64::MAX, Ordering::SeqCst);
    line.asked.store(0, Ordering::SeqCst);
    go_on(&manual, run.as_mut(), Duration::from_mins(1));
    let asked = line.asked.load(Ordering::SeqCst);
    assert!(asked <= 260, "asked {asked} times in a minute");
    // Changes are still seen in time.
    now(line.put("a", true));
    go_on(&manual, run.as_mut(), POLL);
    assert!(is_on(&live, "a"));
}

#[test]
fn a_failing_store_is_reported_and_the_last_flags_stay_in_use() {
    for state in [DOWN, SILENT] {
        let (manual, runtime) = manual();
        let line = Line::new(&runtime);
        now(line.put("a", true));
        let live = open(&line, &runtime, LiveConfig::default());
        let mut run = pin!(live.run(std::future::pending()));
        go_on(&manual, run.as_mut(), POLL);
        assert!(live.status().age <= POLL && live.status().failure.is_none());
        line.set(state);
        // A store whose notifications fail at once is not read more often for it.
        line.told.store(u64::MAX, Ordering::SeqCst);
        line.asked.store(0, Ordering::SeqCst);
        let away = Duration::from_mins(1);
        go_on(&manual, run.as_mut(), away);
        let status = live.status();
        assert_eq!(status.failure.unwrap().kind(), ErrorKind::StoreUnavailable);
        assert!(status.age >= away && status.age <= away + POLL + TIMEOUT, "{:?}", status.age);
        let asked = line.asked.load(Ordering::SeqCst);
        assert!(asked <= 260, "asked {asked} times in a minute");
        assert!(is_on(&live, "a"));

        line.set(UP);
        now(line.put("a", false));
        go_on(&manual, run.as_mut(), TIMEOUT + POLL * 2);
        let status = live.status();
        assert!(status.failure.is_none() && status.age <= POLL, "{status:?}");
        assert!(!is_on(&live, "a"), "it was changed while the store was away");
    }
}

#[test]
fn a_refresh_reports_failures_and_takes_no_longer_than_the_timeout() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    line.set(SILENT);
    let mut refresh = pin!(live.refresh());
    assert!(refresh.as_mut().now_or_never().is_none());
    manual.advance(TIMEOUT);
    let refused = now(refresh).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
    assert!(refused.to_string().contains("5000 ms"), "{refused}");
    // A dropped refresh blocks nobody.
    assert!(live.refresh().now_or_never().is_none());
    line.set(UP);
    assert_eq!(now(live.refresh()).unwrap(), 0);
}

/// As after fifty concurrent edits, each of which must be seen.
#[test]
fn concurrent_refreshes_share_one_read() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    line.set(SILENT);
    line.asked.store(0, Ordering::SeqCst);
    let mut all = pin!(join_all((0..50).map(|_| live.refresh())));
    assert!(all.as_mut().now_or_never().is_none());
    manual.advance(TIMEOUT);
    // The first read may have started before the others' edits.
    assert!(all.as_mut().now_or_never().is_none());
    manual.advance(TIMEOUT);
    assert!(now(all).iter().all(Result::is_err));
    assert_eq!(line.asked.load(Ordering::SeqCst), 2);

    // A caller whose answer has arrived does not wait for later callers, whoever holds the lock.
    let refresh = || Box::pin(live.refresh());
    let [mut first, mut second, mut third] = [refresh(), refresh(), refresh()];
    for one in [&mut first, &mut second, &mut third] {
        assert!(one.now_or_never().is_none());
    }
    manual.advance(TIMEOUT);
    assert!(first.now_or_never().is_some());
    assert!(second.as_mut().now_or_never().is_none());
    let mut late = refresh();
    assert!(late.as_mut().now_or_never().is_none());
    manual.advance(TIMEOUT);
    assert!(second.now_or_never().is_some());
    assert!(late.as_mut().now_or_never().is_none());
    assert!(third.now_or_never().is_some());
    drop(late);

    // An abandoned read answers nobody.
    let mut given_up = Box::pin(live.refresh());
    assert!(given_up.as_mut().now_or_never().is_none());
    let mut other = pin!(live.refresh());
    assert!(other.as_mut().now_or_never().is_none());
    now(line.put("a", true));
    line.set(UP);
    drop(given_up);
    assert_eq!(now(other).unwrap(), 1);
    assert!(is_on(&live, "a"));
}

#[test]
fn setting_the_clock_back_makes_no_flags_younger() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    let mut run = pin!(live.run(std::future::pending()));
    line.set(DOWN);
    go_on(&manual, run.as_mut(), Duration::from_secs(10));
    let before = live.status().age;
    assert!(before >= Duration::from_secs(10));
    let an_hour_ago = Timestamp::from_millis_clamped(manual.now().as_millis() - 3_600_000);
    manual.set_now(an_hour_ago);
    let after = live.status().age;
    assert!(after >= before && after <= before + POLL, "{before:?}, then {after:?}");
    // The flags' own timers wait for the earlier clock; timers of others don't.
    let mut again = pin!(live.run(std::future::pending()));
    go_on(&manual, again.as_mut(), Duration::from_secs(10));
    assert!(live.status().age >= before + Duration::from_secs(10));
    line.set(UP);
    now(live.refresh()).unwrap();
    assert_eq!(live.status().age, Duration::ZERO);
}

#[test]
fn a_restored_store_is_followed_to_its_older_revision() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    for n in 0..3 {
        now(line.put("a", n % 2 == 0));
    }
    // The same revision with different flags, as after restoring a backup and editing again.
    let restored = Line::new(&runtime);
    for key in ["b", "c", "d"] {
        now(restored.put(key, true));
    }
    let both = Arc::new(Either { first: line.clone(), second: restored, is_second: false.into() });
    let live = now(LiveFlags::open(both.clone(), runtime, LiveConfig::default())).unwrap();
    let (mut changes, mut run) = (live.subscribe(), pin!(live.run(std::future::pending())));
    line.set(DOWN);
    go_on(&manual, run.as_mut(), POLL);
    assert!(live.status().failure.is_some());
    line.set(UP);
    go_on(&manual, run.as_mut(), POLL);
    assert!(live.status().failure.is_none());
    assert_eq!(told(&mut changes), None, "equal flags are not a change");
    line.set(DOWN);
    go_on(&manual, run.as_mut(), POLL);
    both.is_second.store(true, Ordering::SeqCst);
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!((told(&mut changes), is_on(&live, "b"), is_on(&live, "a")), (Some(3), true, false));
    // Backwards, without an outage in between.
    line.set(UP);
    now(line.put("a", false));
    now(line.put("a", false));
    both.is_second.store(false, Ordering::SeqCst);
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!(told(&mut changes), Some(5));
    both.is_second.store(true, Ordering::SeqCst);
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!((told(&mut changes), is_on(&live, "b")), (Some(3), true));
}

/// A store that can be replaced by another.
struct Either {
    first: Arc<Line>,
    second: Arc<Line>,
    is_second: AtomicBool,
}

#[async_trait::async_trait]
impl FlagStore for Either {
    fn capabilities(&self) -> Capabilities {
        self.first.capabilities()
    }

    async fn table(&self) -> Result<FlagTable> {
        let is_second = self.is_second.load(Ordering::SeqCst);
        if is_second { self.second.table().await } else { self.first.table().await }
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        self.first.commit(changes, events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        self.first.restore(table).await
    }
}

/// A run dropped at any point can be continued by another run.
#[test]
fn dropping_a_run_is_equivalent_to_ending_it() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    for n in 0..20_u32 {
        line.set([UP, SILENT, DOWN][n as usize % 3]);
        let mut run = pin!(live.run(std::future::pending()));
        go_on(&manual, run.as_mut(), POLL * (n % 4));
    }
    line.set(UP);
    now(line.put("a", true));
    let mut run = pin!(live.run(std::future::pending()));
    go_on(&manual, run.as_mut(), POLL);
    assert!(is_on(&live, "a") && live.status().failure.is_none());
    now(live.run(std::future::ready(())));

    // Dropped after the notification and before the read.
    let config = config(|config| config.poll_interval = Duration::from_hours(1));
    let live = open(&line, &runtime, config);
    {
        let mut run = pin!(live.run(std::future::pending()));
        go_on(&manual, run.as_mut(), POLL);
        line.set(SILENT);
        now(line.put("a", false));
        line.tells_once.store(true, Ordering::SeqCst);
        go_on(&manual, run.as_mut(), TIMEOUT);
        assert!(is_on(&live, "a"));
    }
    line.set(UP);
    let mut run = pin!(live.run(std::future::pending()));
    go_on(&manual, run.as_mut(), POLL);
    assert!(!is_on(&live, "a"));
}

#[test]
fn subscribers_miss_nothing_of_many_changes_at_once() {
    const CHANGES: u64 = 400;
    tokio().block_on(async {
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
        let line = Line::new(&runtime);
        let live = LiveFlags::open(line.clone(), runtime, LiveConfig::default()).await.unwrap();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (mut changes, live) = (live.subscribe(), live.clone());
                spawn(async move {
                    let mut last = 0;
                    while last < CHANGES {
                        let revision = changes.next().await;
                        assert!(revision > last, "{revision} after {last}");
                        assert!(
                            live.revision() >= revision,
                            "a reported revision is in use already"
                        );
                        last = revision;
                    }
                })
            })
            .collect();
        for n in 0..CHANGES {
            line.put("a", n % 2 == 0).await;
            assert!(live.refresh().await.unwrap() > n);
        }
        for reader in readers {
            reader.await.unwrap();
        }
    });
}

#[test]
fn deciding_by_live_flags_allocates_nothing() {
    for count_usage in [false, true] {
        let (_, runtime) = manual();
        let line = Line::new(&runtime);
        for key in ["a", "b", "c"] {
            now(line.put(key, true));
        }
        let live = open(&line, &runtime, config(|config| config.count_usage = count_usage));
        let context = FlagContext::default();
        // Allocations of a thread's first access.
        assert!(is_on(&live, "a"));
        let counted = allocations(|| {
            for key in ["a", "b", "c", "unknown"] {
                std::hint::black_box(live.evaluate(key, &context));
            }
            std::hint::black_box(live.revision());
        });
        assert_eq!(counted, 0, "counting: {count_usage}");
    }
}

#[test]
fn evaluations_are_counted_if_configured() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    now(line.put("a", true));
    now(line.put("b", false));
    let plain = open(&line, &runtime, LiveConfig::default());
    is_on(&plain, "a");
    assert_eq!(plain.usage(), None);

    let live = open(&line, &runtime, config(|config| config.count_usage = true));
    let since = manual.now();
    let mut run = pin!(live.run(std::future::pending()));
    let counts = || {
        let usage = live.usage().unwrap();
        assert_eq!(usage.since, since);
        let count = |flag: dezky_flags::FlagUsage| {
            let ago = flag.last_evaluated.map(|at| manual.now().saturating_since(at));
            (flag.key, flag.on, flag.off, ago)
        };
        usage.flags.into_iter().map(count).collect::<Vec<_>>()
    };
    let counted = |key: &str, on, off, ago: Option<u64>| {
        (key.to_owned(), on, off, ago.map(Duration::from_secs))
    };
    assert_eq!(counts(), [counted("a", 0, 0, None), counted("b", 0, 0, None)]);
    go_on(&manual, run.as_mut(), Duration::ZERO);
    is_on(&live, "a");
    is_on(&live, "unknown");
    live.current().evaluate("b", &FlagContext::default());
    live.current().set().evaluate("b", &FlagContext::default());
    // Recorded at the next poll, with the time of that poll.
    go_on(&manual, run.as_mut(), POLL);
    go_on(&manual, run.as_mut(), Duration::from_mins(1));
    assert_eq!(counts(), [counted("a", 1, 0, Some(60)), counted("b", 0, 1, Some(60))]);

    // A changed flag keeps its counts, a new one starts at 0, and evaluations through an older set
    // still count.
    let before = live.current();
    now(line.put("a", false));
    now(line.put("c", true));
    now(live.refresh()).unwrap();
    assert_eq!(before.evaluate_all(&FlagContext::default()).count(), 2);
    assert_eq!(live.current().evaluate_all(&FlagContext::default()).count(), 3);
    let now_counted =
        [counted("a", 2, 1, Some(0)), counted("b", 0, 3, Some(0)), counted("c", 1, 0, Some(0))];
    assert_eq!(counts(), now_counted);
    let removal = FlagChange::Remove { key: "b".into(), version: 1 };
    now(line.commit(vec![removal], Vec::new())).unwrap();
    now(live.refresh()).unwrap();
    assert_eq!(counts().len(), 2);
    assert_eq!(serde_json::to_value(live.usage()).unwrap()["flags"][0]["off"], 1);
}

#[test]
fn a_configuration_out_of_bounds_is_refused() {
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    for (config, field) in [
        (config(|config| config.poll_interval = Duration::ZERO), "poll_interval"),
        (config(|config| config.store_timeout = Duration::from_hours(1)), "store_timeout"),
    ] {
        let refused = now(LiveFlags::open(line.clone(), runtime.clone(), config)).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
        assert!(refused.to_string().contains(field) && refused.to_string().contains("10 ms"));
    }
}
