//! Servers that stop, are killed, or are cut off in the middle of work.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, CursorAdvance};
use dezky_core::{
    Actor, AuditLog, AuditStore, NewEvent, RecordOutcome, SealedEvent, Spool, SpoolConfig,
};
use uuid::Uuid;

use crate::engines::{assert_whole, everything};
use crate::proxy::{Network, Proxy};
use crate::servers::{
    Engine, Patience, Server, TestLog, eventually, now, open, pause, spawn, tokio, variable,
};

/// The content of a message that commits.
const POSTGRES_COMMIT: &str = "COMMIT";
const MONGODB_COMMIT: &str = "commitTransaction";

/// Longer than any limit of [`Patience::Short`] along the way, and than a transaction that was cut
/// off can lock the head.
const RECOVERS_WITHIN: Duration = Duration::from_mins(1);

/// How long `record` waits for the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that `record` may take: the store's timeout, the spool's turn, and the delays of a
/// machine busy with other tests.
const RECORDS_WITHIN: Duration = Duration::from_secs(10);

fn event(name: String) -> NewEvent {
    NewEvent {
        source: "ocis".into(),
        external_id: Some(name),
        ..NewEvent::new("ocis.file_uploaded", Actor::system())
    }
}

fn batch(of: &str, round: usize, size: usize) -> Vec<SealedEvent> {
    (0..size).map(|n| event(format!("{of}-{round}-{n}")).seal(&TokioRuntime)).collect()
}

#[test]
fn a_postgres_commit_whose_answer_is_lost_is_one_row() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Postgres).await;
        let sizes = [1, 2, 7, 40, 300];
        lost_answers(&log, &variable("DEZKY_TEST_POSTGRES"), POSTGRES_COMMIT, sizes).await;
    });
}

#[test]
fn a_mongodb_commit_whose_answer_is_lost_is_one_row() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Mongodb).await;
        let sizes =
            if Engine::Mongodb.is_slow().await { [1, 2, 5, 9, 20] } else { [1, 2, 7, 40, 300] };
        lost_answers(&log, &variable("DEZKY_TEST_MONGODB"), MONGODB_COMMIT, sizes).await;
    });
}

/// Connections are cut after a commit was sent, once or repeatedly; the same append is repeated
/// until it is answered.
async fn lost_answers(log: &TestLog, server: &str, commit: &'static str, sizes: [usize; 5]) {
    let server_port = port_of(server);
    let proxy = Proxy::before(server_port, commit).await;
    let url = log.url().replace(&format!(":{server_port}"), &format!(":{}", proxy.port));
    let store = open(&url, Patience::Usual).await.unwrap();
    let (mut from, mut expected, mut unanswered) = (None, 0, 0);
    for round in 0..40 {
        let size = sizes[round % 5];
        let to = format!("after {round}");
        let cursor = CursorAdvance { source: "ocis".into(), from, to: to.clone() };
        let options = AppendOptions { cursor: Some(cursor), ..AppendOptions::default() };
        let events = batch("cut", round, size);
        proxy.cut_commits([1, 1, 2, 3, 12][round / 8]);
        loop {
            match store.append(events.clone(), options.clone()).await {
                Ok(appended) => {
                    assert_eq!(appended.receipts.len(), size);
                    assert_eq!(appended.conflicts(), 0);
                    break;
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    unanswered += 1;
                }
            }
        }
        proxy.cut_commits(0);
        expected += size as u64;
        assert_eq!(store.state().await.unwrap().head.next_seq, expected, "round {round}");
        assert_eq!(store.cursor("ocis").await.unwrap(), Some(to.clone()));
        from = Some(to);
    }
    assert!(proxy.cuts() >= 40, "only {} commits were cut", proxy.cuts());
    println!("{} commits were cut, {unanswered} appends not answered", proxy.cuts());
    let direct = log.open().await;
    assert_eq!(everything(&*direct).await.len() as u64, expected);
    assert_whole(&*direct).await;
}

fn port_of(url: &str) -> u16 {
    let digits = url.split_once("127.0.0.1:").expect("on this machine").1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap()
}

/// How a server fails and recovers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outage {
    Stopped,
    Killed,
    CutOff,
}

macro_rules! outages {
    ($($name:ident $server:ident $commit:ident $outage:ident)+) => {
        $(
            #[test]
            fn $name() {
                tokio().block_on(async {
                    survives(Server::$server().await, $commit, Outage::$outage).await;
                });
            }
        )+
    };
}

outages! {
    postgres_may_be_stopped postgres POSTGRES_COMMIT Stopped
    postgres_may_be_killed postgres POSTGRES_COMMIT Killed
    postgres_may_be_cut_off postgres POSTGRES_COMMIT CutOff
    mongodb_may_be_stopped mongodb MONGODB_COMMIT Stopped
    mongodb_may_be_killed mongodb MONGODB_COMMIT Killed
    mongodb_may_be_cut_off mongodb MONGODB_COMMIT CutOff
}

/// Writers that append and one that records through a spool, before, during and after an outage,
/// with the same store.
async fn survives(mut server: Server, commit: &'static str, outage: Outage) {
    let proxy = Proxy::before(server.port, commit).await;
    let store = open(&server.url_by(proxy.port), Patience::Short).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = SpoolConfig::new(folder.path().join("spool"));
    let spool = Spool::open(config, Arc::new(TokioRuntime)).await.unwrap();
    let log = AuditLog::new(Arc::clone(&store), Arc::new(TokioRuntime))
        .with_spool(spool)
        .with_store_timeout(STORE_TIMEOUT);
    let load = Arc::new(Load::new(store, log));
    let mut tasks: Vec<_> =
        (0..3).map(|writer| spawn(appends(Arc::clone(&load), writer))).collect();
    tasks.push(spawn(records(Arc::clone(&load))));
    let drains = spawn({
        let load = Arc::clone(&load);
        async move { load.log.run_spool(std::future::pending()).await }
    });

    load.wait_for("the load begins", |load| load.commits() >= 12).await;
    match outage {
        Outage::Stopped => server.stop().await,
        Outage::Killed => server.kill().await,
        Outage::CutOff => proxy.set(Network::Silent),
    }
    let (commits, spooled) = (load.commits(), load.spooled());
    load.wait_for("writers notice", |load| load.failures() > 0).await;
    load.wait_for("record spools", |load| load.spooled() >= spooled + 3).await;
    match outage {
        Outage::Stopped | Outage::Killed => server.start().await,
        Outage::CutOff => proxy.set(Network::Up),
    }
    let found = now();
    let during = load.commits();
    load.wait_for("writers continue", |load| load.commits() > during).await;
    let recovered = found.elapsed();
    load.wait_for("all writers continue", |load| load.commits() >= during + 9).await;
    load.done.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    load.wait_for("the spool is emptied", |load| load.log.spool_status().unwrap().pending == 0)
        .await;
    drains.abort();
    load.check().await;
    println!(
        "{commits} appends before, {} in all, {} spooled; the first after {recovered:?}; record() took at most {:?}",
        load.commits(),
        load.spooled(),
        load.slowest_record.lock().unwrap(),
    );
}

struct Load {
    store: Arc<dyn AuditStore>,
    log: AuditLog,
    /// The ids of acknowledged events.
    acknowledged: Mutex<Vec<Uuid>>,
    recorded: Mutex<Vec<Uuid>>,
    slowest_record: Mutex<Duration>,
    commits: AtomicU64,
    failures: AtomicU64,
    spooled: AtomicU64,
    done: AtomicBool,
}

impl Load {
    fn new(store: Arc<dyn AuditStore>, log: AuditLog) -> Self {
        Self {
            store,
            log,
            acknowledged: Mutex::default(),
            recorded: Mutex::default(),
            slowest_record: Mutex::default(),
            commits: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            spooled: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    fn spooled(&self) -> u64 {
        self.spooled.load(Ordering::SeqCst)
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    fn took(&self, time: Duration) {
        let mut slowest = self.slowest_record.lock().unwrap();
        *slowest = time.max(*slowest);
    }

    async fn wait_for(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        eventually(what, RECOVERS_WITHIN, || holds(self)).await;
    }

    /// All acknowledged and recorded events are stored exactly once, and the chain is intact.
    async fn check(&self) {
        let stored = everything(&*self.store).await;
        let mut times: HashMap<Uuid, usize> = HashMap::new();
        let mut names: HashMap<&str, usize> = HashMap::new();
        for stored in &stored {
            *times.entry(stored.event.id).or_default() += 1;
            *names.entry(stored.event.external_id.as_deref().unwrap()).or_default() += 1;
        }
        assert!(times.values().chain(names.values()).all(|times| *times == 1), "none is twice");
        for id in self.acknowledged.lock().unwrap().iter() {
            assert!(times.contains_key(id), "acknowledged events are stored");
        }
        for id in self.recorded.lock().unwrap().iter() {
            assert!(times.contains_key(id), "recorded events are stored");
        }
        assert_eq!(self.log.counts().lost, 0);
        assert_whole(&*self.store).await;
    }
}

/// Appends batches until told to stop. A failed one is repeated until it is answered; every third
/// is abandoned instead, and may or may not be stored.
async fn appends(load: Arc<Load>, writer: usize) {
    let mut round = 0;
    while !load.is_done() {
        let events = batch(&format!("w{writer}"), round, [1, 5, 20][round % 3]);
        loop {
            match load.store.append(events.clone(), AppendOptions::default()).await {
                Ok(appended) => {
                    let ids = appended.receipts.iter().map(|receipt| receipt.id);
                    load.acknowledged.lock().unwrap().extend(ids);
                    load.commits.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    load.failures.fetch_add(1, Ordering::SeqCst);
                    if round % 3 == 0 {
                        break;
                    }
                    pause(20).await;
                }
            }
        }
        round += 1;
    }
}

async fn records(load: Arc<Load>) {
    let mut n = 0;
    while !load.is_done() {
        let started = now();
        let recorded = load.log.record(event(format!("r-{n}"))).await;
        let took = started.elapsed();
        assert!(took < RECORDS_WITHIN, "record() took {took:?}");
        assert_ne!(recorded.outcome, RecordOutcome::Lost);
        if recorded.outcome == RecordOutcome::Spooled {
            load.spooled.fetch_add(1, Ordering::SeqCst);
        }
        load.took(took);
        load.recorded.lock().unwrap().push(recorded.id);
        n += 1;
        pause(10).await;
    }
}
