//! Flags that follow their store: in one process, by a clock that the test moves.

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

/// Flags in memory behind a line that the test breaks.
pub(crate) struct Line {
    inner: Box<dyn FlagStore>,
    state: AtomicUsize,
    /// It tells of changes up to this revision.
    told: AtomicU64,
    /// It tells once that there may be something.
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

    /// Makes a flag, or a next version of it, that is on or off.
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

/// What is done at once, on a clock that stands.
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

/// Lets `work` go on for so long.
pub(crate) fn go_on(
    manual: &ManualRuntime,
    mut work: std::pin::Pin<&mut impl Future<Output = ()>>,
    span: Duration,
) {
    let end = manual.now().saturating_add(span);
    loop {
        assert!(work.as_mut().now_or_never().is_none(), "it goes on");
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
    // Who subscribes now has seen it; who has not asked for long is told the last one.
    assert_eq!(told(&mut live.subscribe()), None);
    for n in 0..5 {
        now(line.put("a", n % 2 == 0));
        go_on(&manual, run.as_mut(), POLL);
    }
    assert_eq!((told(&mut changes), told(&mut changes)), (Some(7), None));
    // One that is dropped in the middle of its wait has lost nothing.
    assert!(changes.next().now_or_never().is_none());
    now(line.put("a", false));
    now(live.refresh()).unwrap();
    assert_eq!(told(&mut changes), Some(8));
}

#[test]
fn an_engine_that_tells_is_believed_at_once() {
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

/// A connection that was made anew tells so once; the store may not answer yet.
#[test]
fn what_was_told_while_the_store_did_not_answer_is_looked_at_again() {
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
        // And no more often than before, from then on.
        line.asked.store(0, Ordering::SeqCst);
        go_on(&manual, run.as_mut(), Duration::from_mins(10));
        assert_eq!(line.asked.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn one_that_tells_for_ever_is_asked_twice_as_often_as_another() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    let mut run = pin!(live.run(std::future::pending()));
    line.told.store(u64::MAX, Ordering::SeqCst);
    line.asked.store(0, Ordering::SeqCst);
    go_on(&manual, run.as_mut(), Duration::from_mins(1));
    let asked = line.asked.load(Ordering::SeqCst);
    assert!(asked <= 260, "asked {asked} times in a minute");
    // A change is seen in time all the same.
    now(line.put("a", true));
    go_on(&manual, run.as_mut(), POLL);
    assert!(is_on(&live, "a"));
}

#[test]
fn a_store_that_fails_is_told_and_the_last_flags_go_on() {
    for state in [DOWN, SILENT] {
        let (manual, runtime) = manual();
        let line = Line::new(&runtime);
        now(line.put("a", true));
        let live = open(&line, &runtime, LiveConfig::default());
        let mut run = pin!(live.run(std::future::pending()));
        go_on(&manual, run.as_mut(), POLL);
        assert!(live.status().age <= POLL && live.status().failure.is_none());
        line.set(state);
        // Whoever tells at once that it knows nothing is not asked the more.
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
fn who_asks_for_a_refresh_is_told_of_a_failure_and_waits_no_longer_than_the_timeout() {
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
    // One that is dropped holds up nobody.
    assert!(live.refresh().now_or_never().is_none());
    line.set(UP);
    assert_eq!(now(live.refresh()).unwrap(), 0);
}

/// As after fifty edits at once, of which each wants to be seen.
#[test]
fn those_who_ask_for_a_refresh_meanwhile_share_one() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let live = open(&line, &runtime, LiveConfig::default());
    line.set(SILENT);
    line.asked.store(0, Ordering::SeqCst);
    let mut all = pin!(join_all((0..50).map(|_| live.refresh())));
    assert!(all.as_mut().now_or_never().is_none());
    manual.advance(TIMEOUT);
    // The first look may have been before what the others did.
    assert!(all.as_mut().now_or_never().is_none());
    manual.advance(TIMEOUT);
    assert!(now(all).iter().all(Result::is_err));
    assert_eq!(line.asked.load(Ordering::SeqCst), 2);

    // Whom a look has answered waits for none of those who came later, whoever's turn it is.
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

    // One that was given up counts for nobody.
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
fn a_clock_that_is_set_back_makes_no_flags_younger() {
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
    // Its own timers wait for the clock of before; those of others don't.
    let mut again = pin!(live.run(std::future::pending()));
    go_on(&manual, again.as_mut(), Duration::from_secs(10));
    assert!(live.status().age >= before + Duration::from_secs(10));
    line.set(UP);
    now(live.refresh()).unwrap();
    assert_eq!(live.status().age, Duration::ZERO);
}

#[test]
fn a_store_that_was_restored_is_followed_back() {
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    for n in 0..3 {
        now(line.put("a", n % 2 == 0));
    }
    // The same revision, by another way: what a backup and new edits leave.
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
    assert_eq!(told(&mut changes), None, "the same flags are no change");
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

/// One store in the place of another.
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

/// Wherever it stood when it was dropped, whoever runs it next goes on.
#[test]
fn a_run_that_is_dropped_is_as_good_as_one_that_ends() {
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

    // Dropped when it was told of a change and had not yet seen it.
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
                        assert!(live.revision() >= revision, "what is told decides already");
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
        // What a thread's first look takes.
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
fn evaluations_are_counted_where_that_is_asked_for() {
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
    // Seen at the next poll, whose time it has from then on.
    go_on(&manual, run.as_mut(), POLL);
    go_on(&manual, run.as_mut(), Duration::from_mins(1));
    assert_eq!(counts(), [counted("a", 1, 0, Some(60)), counted("b", 0, 1, Some(60))]);

    // A flag that is changed keeps its counts, one that is made counts from 0, and a set
    // of before counts on.
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
