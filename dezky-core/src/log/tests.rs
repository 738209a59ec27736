use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use async_trait::async_trait;
use futures_util::future::{join, pending};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::absence::MAX_UNANSWERED;
use super::repair::{INVALID, digest, repaired_action, repaired_source};
use super::*;
use crate::rt::TokioRuntime;
use crate::store::{
    Capabilities, EventKey, Lease, ListPage, ListQuery, LogPart, LogState, MemoryAuditStore,
    QuarantinedItem, Relayed, ScannedRow, StoredRow, Tally, TallyQuery,
};
use crate::testkit::{ManualRuntime, named_event};
use crate::{Actor, AuditEvent, NewMetadata, SpoolConfig, StoredEvent};

/// The way in which a [`Moody`] store answers appends.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Up,
    /// Fails at once.
    Down,
    /// Never answers, and appends nothing.
    Hanging,
    /// Appends, but never answers.
    Mute,
    /// Fails to append, and can be read.
    ReadOnly,
    /// Never answers appends of more events than this, and answers smaller ones at once.
    Slow(usize),
}

/// A store in memory that fails on request. It refuses events whose resource is `poison`.
struct Moody {
    inner: MemoryAuditStore,
    mood: Mutex<Mood>,
    /// The number of events of each append.
    sizes: Mutex<Vec<usize>>,
}

impl Moody {
    fn new(runtime: Arc<dyn Runtime>) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryAuditStore::open(runtime),
            mood: Mutex::new(Mood::Up),
            sizes: Mutex::default(),
        })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn appends(&self) -> usize {
        self.sizes.lock().unwrap().len()
    }

    /// The events of the log, in order.
    async fn events(&self) -> Vec<AuditEvent> {
        let rows = self.inner.scan(0, 10_000).await.unwrap();
        let event = |row: ScannedRow| row.map(|StoredRow { stored, .. }| stored.event).unwrap();
        rows.into_iter().map(event).collect()
    }

    async fn names(&self) -> Vec<String> {
        let events = self.events().await.into_iter();
        let events = events.filter(|event| event.action != "ingest.quarantined");
        events.map(|event| event.resource_id.unwrap()).collect()
    }
}

#[async_trait]
impl AuditStore for Moody {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended> {
        self.sizes.lock().unwrap().push(events.len());
        let mood = *self.mood.lock().unwrap();
        let poison = |e: &SealedEvent| e.event().resource_id.as_deref() == Some("poison");
        match mood {
            Mood::Down | Mood::ReadOnly => Err(Error::new(ErrorKind::StoreUnavailable, "down")),
            Mood::Hanging => pending().await,
            Mood::Slow(most) if events.len() > most => pending().await,
            Mood::Mute => {
                self.inner.append(events, options).await?;
                pending().await
            }
            Mood::Up | Mood::Slow(_) if events.iter().any(poison) => {
                Err(Error::new(ErrorKind::EventInvalid, "event 0: resourceId must be mild"))
            }
            Mood::Up | Mood::Slow(_) => self.inner.append(events, options).await,
        }
    }
    async fn list(&self, query: &ListQuery) -> Result<ListPage> {
        self.inner.list(query).await
    }
    async fn get(&self, key: EventKey) -> Result<Option<StoredEvent>> {
        self.inner.get(key).await
    }
    async fn tally(&self, query: &TallyQuery) -> Result<Tally> {
        self.inner.tally(query).await
    }
    async fn state(&self) -> Result<LogState> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Up | Mood::Slow(_) | Mood::ReadOnly => self.inner.state().await,
            Mood::Down => Err(Error::new(ErrorKind::StoreUnavailable, "down")),
            Mood::Hanging | Mood::Mute => pending().await,
        }
    }
    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        self.inner.scan(from_seq, max_rows).await
    }
    async fn changed(&self, next_seq: u64) {
        self.inner.changed(next_seq).await;
    }
    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        self.inner.cursor(source).await
    }
    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        self.inner.cursors().await
    }
    async fn restore(&self, part: LogPart) -> Result<()> {
        self.inner.restore(part).await
    }
    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>> {
        self.inner.acquire_lease(name, holder, ttl).await
    }
    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.inner.release_lease(lease).await
    }
    async fn quarantined(&self, after: i64, max: usize) -> Result<Vec<QuarantinedItem>> {
        self.inner.quarantined(after, max).await
    }
    async fn stage(&self, events: Vec<SealedEvent>) -> Result<()> {
        self.inner.stage(events).await
    }
    async fn relay(&self, max_events: usize) -> Result<Relayed> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Up | Mood::Slow(_) => self.inner.relay(max_events).await,
            Mood::Down | Mood::ReadOnly => Err(Error::new(ErrorKind::StoreUnavailable, "down")),
            Mood::Hanging | Mood::Mute => pending().await,
        }
    }
}

struct World {
    folder: TempDir,
    runtime: Arc<ManualRuntime>,
    store: Arc<Moody>,
}

impl World {
    fn new() -> Self {
        let runtime = Arc::new(ManualRuntime::new(3));
        let store = Moody::new(runtime.clone());
        Self { folder: TempDir::new().unwrap(), runtime, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.spool")
    }

    fn log_without_spool(&self) -> AuditLog {
        AuditLog::new(self.store.clone(), self.runtime.clone())
    }

    async fn log_with(&self, config: SpoolConfig) -> AuditLog {
        let spool = Spool::open(config, self.runtime.clone()).await.unwrap();
        self.log_without_spool().with_spool(spool)
    }

    async fn log(&self) -> AuditLog {
        self.log_with(SpoolConfig::new(self.path())).await
    }

    /// Advances the time beyond any back-off.
    fn later(&self) {
        self.runtime.advance(MAX_BACKOFF);
    }

    /// Waits for this many pending sleeps, then advances the time.
    async fn advance_when_sleeping(&self, sleepers: usize, by: Duration) {
        while self.runtime.sleeping() < sleepers {
            tokio::task::yield_now().await;
        }
        self.runtime.advance(by);
    }
}

fn named(name: impl std::fmt::Display) -> NewEvent {
    named_event(&name.to_string())
}

fn outcomes(recorded: &[Recorded]) -> Vec<RecordOutcome> {
    recorded.iter().map(|r| r.outcome).collect()
}

use RecordOutcome::{Appended as In, Duplicate as Again, Lost, Spooled};

#[tokio::test]
async fn into_the_log() {
    let world = World::new();
    let log = world.log().await;
    let event = NewEvent { id: Some(Uuid::from_u128(7)), ..named("a") };
    let first = log.record(event.clone()).await;
    assert_eq!(first, Recorded { id: Uuid::from_u128(7), outcome: In { seq: 0 } });
    let conflict = NewEvent { action: "tenant.deleted".into(), ..event.clone() };
    assert_eq!(log.record(event).await, Recorded { outcome: Again { seq: 0 }, ..first });
    assert_eq!(log.record(conflict).await.outcome, Again { seq: 0 });
    let outside = |name| NewEvent { external_id: Some("x".into()), ..named(name) };
    let recorded = log.record_all(vec![outside("b"), named("c"), outside("b")]).await;
    assert_eq!(outcomes(&recorded), [In { seq: 1 }, In { seq: 2 }, Again { seq: 1 }]);
    // The id of the event in the log.
    assert_eq!(recorded[2].id, recorded[0].id);
    let counts = RecordCounts { appended: 3, duplicates: 3, conflicts: 1, ..log.counts() };
    assert_eq!(log.counts(), counts);
    assert_eq!((counts.spooled, counts.lost, counts.repaired), (0, 0, 0));
    assert_eq!(world.runtime.sleeping(), 0);
    assert_eq!(log.record_all(Vec::new()).await, []);
}

#[tokio::test]
async fn behind_those_that_wait() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    assert_eq!(log.record(named(0)).await.outcome, Spooled);
    let entry = world.runtime.now();
    // The store is not used again during the back-off.
    world.store.set(Mood::Up);
    assert_eq!(log.record(named(1)).await.outcome, Spooled);
    assert_eq!(world.store.appends(), 1);
    assert_eq!(world.store.names().await, [] as [&str; 0]);
    world.later();
    // Then waiting events come first, and the next one is appended directly.
    assert_eq!(log.record(named(2)).await.outcome, Spooled);
    assert_eq!(world.store.names().await, ["0", "1", "2"]);
    assert_eq!(log.record(named(3)).await.outcome, In { seq: 3 });
    let received: Vec<_> = world.store.events().await.iter().map(|e| e.received_at).collect();
    assert_eq!(received[..2], [entry, entry]);
    assert_eq!(log.counts(), RecordCounts { appended: 4, spooled: 3, ..RecordCounts::default() });
    assert_eq!(log.spool_status().unwrap().pending, 0);
}

#[tokio::test]
async fn little_by_little() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    let count = INLINE_EVENTS * 2;
    let recorded = log.record_all((0..count).map(named).collect()).await;
    assert!(recorded.iter().all(|r| r.outcome == Spooled));
    world.later();
    world.store.set(Mood::Up);
    // One `record` moves a limited number of events and queues behind the rest.
    assert_eq!(log.record(named(count)).await.outcome, Spooled);
    let left = count + 1 - INLINE_EVENTS;
    assert_eq!(log.spool_status().unwrap().pending, left);
    let drained = log.drain_spool(10).await.unwrap();
    assert_eq!((drained.appended, drained.left), (10, left - 10));
    let drained = log.drain_spool(usize::MAX).await.unwrap();
    assert_eq!((drained.duplicates, drained.left), (0, 0));
    let expected: Vec<_> = (0..=count).map(|n| n.to_string()).collect();
    assert_eq!(world.store.names().await, expected);
    assert_eq!(log.drain_spool(10).await.unwrap(), Drained::default());
}

#[tokio::test]
async fn a_failing_drain_waits_and_keeps() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    log.record(named(0)).await;
    let error = log.drain_spool(10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert_eq!(log.spool_status().unwrap().pending, 1);
    // The back-off grows up to its maximum.
    let mut backoff = Backoff::default();
    let now = world.runtime.now();
    let waits: Vec<_> = (0..20).map(|_| backoff.fail(now, u32::MAX).as_millis()).collect();
    assert_eq!(waits[..7], [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
    assert_eq!(waits[19], 30_000);
    assert_eq!(backoff.fail(now, 0).as_millis(), 15_000);
    assert_eq!(backoff.left(now), Duration::from_secs(15));
    let set_back = Timestamp::from_millis(now.as_millis() - 3_600_000).unwrap();
    assert_eq!(backoff.left(set_back), Duration::ZERO);
}

#[tokio::test]
async fn a_store_too_slow_for_many_gets_fewer() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    log.record_all((0..100).map(named).collect()).await;
    world.store.set(Mood::Slow(20));
    world.store.sizes.lock().unwrap().clear();
    for left in [100, 100, 100, 88] {
        let timeouts = world.advance_when_sleeping(1, log.store_timeout);
        let (drained, ()) = join(log.drain_spool(usize::MAX), timeouts).await;
        assert_eq!(drained.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        assert_eq!(log.spool_status().unwrap().pending, left);
    }
    // Full batches again once the store is fast.
    world.store.set(Mood::Up);
    assert_eq!(log.drain_spool(usize::MAX).await.unwrap().appended, 88);
    let sizes = std::mem::take(&mut *world.store.sizes.lock().unwrap());
    assert_eq!(sizes, [100, 50, 25, 12, 24, 12, 24, 48, 4]);
    let names: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(world.store.names().await, names);
}

/// A directory that assigns `acme.example` to a tenant while it is available.
#[derive(Default)]
struct Forgetful {
    is_away: std::sync::atomic::AtomicBool,
    hangs: std::sync::atomic::AtomicBool,
    /// The number of lookups answered before the next one takes too long; 0 if all are quick.
    slow_after: std::sync::atomic::AtomicUsize,
    questions: std::sync::atomic::AtomicUsize,
}

impl Forgetful {
    async fn answer(&self, slug: Option<&str>) -> Result<Option<String>> {
        let slow_after = self.slow_after.load(Ordering::Relaxed);
        let question = self.questions.fetch_add(1, Ordering::Relaxed);
        let is_slow = slow_after > 0 && question % (slow_after + 1) == slow_after;
        if is_slow || self.hangs.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        if self.is_away.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::StoreUnavailable, "away"));
        }
        Ok(slug.map(str::to_owned))
    }
}

#[async_trait]
impl TenantDirectory for Forgetful {
    async fn by_slug(&self, _: &str) -> Result<Option<String>> {
        self.answer(None).await
    }
    async fn by_domain(&self, domain: &str) -> Result<Option<String>> {
        self.answer((domain == "acme.example").then_some("acme")).await
    }
    async fn by_user(&self, _: &str, _: &str) -> Result<Option<String>> {
        self.answer(None).await
    }
}

fn unresolved(world: &World, name: &str, domain: &str) -> SpoolRecord {
    let mut event = NewEvent { tenant_slug: None, ..named(name) };
    event.metadata.annotate(crate::TENANT_BY, crate::UNRESOLVED);
    let event = event.seal(&*world.runtime);
    crate::UnresolvedEvent { event, tenant: vec![TenantHint::Domain(domain.into())] }.into()
}

/// The name and tenant of each event in the log, and how the tenant was found.
async fn tenants(world: &World) -> Vec<(String, Option<String>, String)> {
    let events = world.store.events().await.into_iter();
    let of = |event: AuditEvent| {
        let by = event.metadata.to_value()["_dezky"]["tenantBy"].as_str().unwrap_or("").to_owned();
        (event.resource_id.unwrap(), event.tenant_slug, by)
    };
    events.map(of).collect()
}

#[tokio::test]
async fn the_directory_is_asked_again_when_the_spool_drains() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let log = world.log().await.with_directory(directory.clone());
    world.store.set(Mood::Down);
    let records = ["acme.example", "nobody.example"].map(|d| unresolved(&world, d, d));
    let SpoolRecord::Unresolved(first) = records[0].clone() else { unreachable!() };
    assert_eq!(
        log.append_or_spool_records(records.to_vec()).await.unwrap(),
        AppendOutcome::Spooled
    );
    assert_eq!(log.counts().spooled, 2);
    // The store is back before the directory: the events continue to wait.
    world.later();
    world.store.set(Mood::Up);
    directory.is_away.store(true, Ordering::Relaxed);
    let error = log.drain_spool(10).await.unwrap_err();
    assert!(error.to_string().contains("directory"), "{error}");
    assert_eq!(world.store.events().await.len(), 0);
    assert_eq!(log.spool_status().unwrap().pending, 2);
    directory.is_away.store(false, Ordering::Relaxed);
    world.later();
    assert_eq!(log.drain_spool(10).await.unwrap().appended, 2);
    let acme = |slug: &str, tenant: Option<&str>, by: &str| {
        (slug.to_owned(), tenant.map(str::to_owned), by.to_owned())
    };
    assert_eq!(
        tenants(&world).await,
        [acme("acme.example", Some("acme"), "domain"), acme("nobody.example", None, "none")]
    );
    let stored = &world.store.events().await[0];
    let sealed = first.event.event();
    assert_eq!((stored.id, stored.received_at), (sealed.id, sealed.received_at));
    assert_eq!(log.counts().unresolved, 0);
}

#[tokio::test]
async fn a_batch_without_a_tenant_waits_in_the_spool_although_the_store_works() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let log = world.log().await.with_directory(directory.clone());
    directory.is_away.store(true, Ordering::Relaxed);
    let kept = log.append_or_spool_records(vec![unresolved(&world, "a", "acme.example")]).await;
    assert_eq!(kept.unwrap(), AppendOutcome::Spooled);
    assert_eq!(world.store.events().await.len(), 0);
    directory.is_away.store(false, Ordering::Relaxed);
    world.later();
    log.drain_spool(10).await.unwrap();
    assert_eq!(tenants(&world).await, [("a".into(), Some("acme".into()), "domain".into())]);
}

#[tokio::test]
async fn a_directory_that_stays_down_blocks_the_spool_only_for_a_while() {
    for hangs in [false, true] {
        let world = World::new();
        let directory = Arc::new(Forgetful::default());
        let log = world.log().await.with_directory(directory.clone());
        directory.is_away.store(true, Ordering::Relaxed);
        directory.hangs.store(hangs, Ordering::Relaxed);
        let _ = ManualRuntime::clone(&world.runtime).with_sleep_advancing();
        log.append_or_spool_records(vec![unresolved(&world, "a", "acme.example")]).await.unwrap();
        let mut failures = 0;
        while log.drain_spool(10).await.is_err() {
            failures += 1;
            world.later();
        }
        // The first failure was at the push.
        assert_eq!(failures, MAX_UNANSWERED - 1, "hangs: {hangs}");
        assert_eq!(tenants(&world).await, [("a".into(), None, "unresolved".into())]);
        assert_eq!((log.counts().unresolved, log.spool_status().unwrap().pending), (1, 0));
    }
}

#[tokio::test]
async fn an_outage_of_store_and_directory_costs_no_tenant() {
    for mood in [Mood::Down, Mood::Hanging, Mood::Mute] {
        for back_after in 1..=20 {
            let world = World::new();
            let directory = Arc::new(Forgetful::default());
            let log = world.log().await.with_directory(directory.clone());
            let _ = ManualRuntime::clone(&world.runtime).with_sleep_advancing();
            directory.is_away.store(true, Ordering::Relaxed);
            world.store.set(mood);
            log.append_or_spool_records(vec![unresolved(&world, "a", "acme.example")])
                .await
                .unwrap();
            for _ in 0..back_after {
                log.drain_spool(10).await.unwrap_err();
                world.later();
            }
            // The store comes back between the question and the append.
            world.store.set(Mood::Up);
            log.drain_spool(10).await.unwrap_err();
            assert_eq!(world.store.events().await.len(), 0, "back after {back_after}");
            directory.is_away.store(false, Ordering::Relaxed);
            world.later();
            log.drain_spool(10).await.unwrap();
            assert_eq!(tenants(&world).await, [("a".into(), Some("acme".into()), "domain".into())]);
            assert_eq!(log.counts().unresolved, 0);
        }
    }
}

/// Reads are answered, appends are not: a full disk.
#[tokio::test]
async fn failing_appends_restart_the_wait_for_the_directory() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let log = world.log().await.with_directory(directory.clone());
    directory.is_away.store(true, Ordering::Relaxed);
    log.append_or_spool_records(vec![unresolved(&world, "a", "acme.example")]).await.unwrap();
    world.store.set(Mood::ReadOnly);
    for _ in 0..20 {
        world.later();
        log.drain_spool(10).await.unwrap_err();
    }
    let appends = world.store.appends();
    assert_eq!(appends, 2, "one in {} attempts", MAX_UNANSWERED + 1);
    world.store.set(Mood::Up);
    world.later();
    log.drain_spool(10).await.unwrap_err();
    directory.is_away.store(false, Ordering::Relaxed);
    world.later();
    log.drain_spool(10).await.unwrap();
    assert_eq!(tenants(&world).await, [("a".into(), Some("acme".into()), "domain".into())]);
}

#[tokio::test]
async fn no_event_is_lost_while_the_directory_is_down_and_the_spool_full() {
    for hangs in [false, true] {
        let world = World::new();
        let directory = Arc::new(Forgetful::default());
        let config = SpoolConfig { max_events: 3, ..SpoolConfig::new(world.path()) };
        let log = world.log_with(config).await.with_directory(directory.clone());
        let _ = ManualRuntime::clone(&world.runtime).with_sleep_advancing();
        directory.is_away.store(true, Ordering::Relaxed);
        directory.hangs.store(hangs, Ordering::Relaxed);
        let records = ["a", "b", "c"].map(|name| unresolved(&world, name, "acme.example"));
        log.append_or_spool_records(records.to_vec()).await.unwrap();
        for n in 0..5 {
            let outcome = log.record(named(n)).await.outcome;
            assert_ne!(outcome, Lost, "{n}, hangs: {hangs}");
        }
        assert_eq!(world.store.names().await[..4], ["a", "b", "c", "0"]);
        assert_eq!((log.counts().lost, log.counts().unresolved), (0, 3));
        // While the store is down too, the spool is not drained, and nothing waits for that.
        world.store.set(Mood::Down);
        world.later();
        let more = ["d", "e", "f"].map(|name| unresolved(&world, name, "acme.example"));
        log.append_or_spool_records(more.to_vec()).await.unwrap();
        assert_eq!(log.record(named(6)).await.outcome, Lost);
        let before = world.runtime.now();
        assert_eq!(log.record(named(7)).await.outcome, Lost);
        assert_eq!(world.runtime.now(), before);
    }
}

/// Makes the log give up on an unavailable directory, with one event.
async fn give_up(world: &World, log: &AuditLog) {
    log.append_or_spool_records(vec![unresolved(world, "first", "acme.example")]).await.unwrap();
    while log.drain_spool(10).await.is_err() {
        world.later();
    }
    assert_eq!(log.counts().unresolved, 1);
}

#[tokio::test]
async fn a_past_outage_of_the_directory_shortens_no_later_wait() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let log = world.log().await.with_directory(directory.clone());
    directory.is_away.store(true, Ordering::Relaxed);
    give_up(&world, &log).await;
    // While it answers, events arrive with their tenants, and the log does not ask.
    for _ in 0..3 {
        world.later();
    }
    log.append_or_spool_records(vec![unresolved(&world, "a", "acme.example")]).await.unwrap();
    assert_eq!(log.spool_status().unwrap().pending, 1);
    for _ in 1..MAX_UNANSWERED {
        world.later();
        log.drain_spool(10).await.unwrap_err();
    }
    directory.is_away.store(false, Ordering::Relaxed);
    world.later();
    log.drain_spool(10).await.unwrap();
    let found = tenants(&world).await.pop();
    assert_eq!(found, Some(("a".into(), Some("acme".into()), "domain".into())));
}

#[tokio::test]
async fn a_directory_that_was_given_up_on_is_asked_again_at_intervals() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let log = world.log().await.with_directory(directory.clone());
    directory.is_away.store(true, Ordering::Relaxed);
    give_up(&world, &log).await;
    let keep = async |name: &str| {
        log.append_or_spool_records(vec![unresolved(&world, name, "acme.example")]).await.unwrap();
        assert_eq!(log.spool_status().unwrap().pending, 0, "{name}");
        tenants(&world).await.pop().unwrap().2
    };
    assert_eq!(keep("a").await, "unresolved");
    world.later();
    assert_eq!(keep("b").await, "unresolved");
    world.later();
    directory.is_away.store(false, Ordering::Relaxed);
    assert_eq!(keep("c").await, "domain");
    // From then on, events wait for it as at first.
    directory.is_away.store(true, Ordering::Relaxed);
    log.append_or_spool_records(vec![unresolved(&world, "d", "acme.example")]).await.unwrap();
    assert_eq!(log.spool_status().unwrap().pending, 1);
}

#[tokio::test]
async fn a_slow_directory_is_not_given_up_on() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let config = SpoolConfig { max_events: 8, ..SpoolConfig::new(world.path()) };
    let log = world.log_with(config).await.with_directory(directory.clone());
    directory.slow_after.store(3, Ordering::Relaxed);
    let records = (0..8).map(|n| unresolved(&world, &n.to_string(), &format!("{n}.example")));
    // Two sleeps are pending, for the question and the batch. That of the batch ends first.
    let push = log.append_or_spool_records(records.collect());
    let (kept, ()) = join(push, world.advance_when_sleeping(2, INLINE_TIMEOUT)).await;
    assert_eq!(kept.unwrap(), AppendOutcome::Spooled);
    assert_eq!(world.store.names().await, ["0", "1", "2"]);
    directory.slow_after.store(0, Ordering::Relaxed);
    assert_ne!(log.record(named("new")).await.outcome, Lost);
    log.drain_spool(10).await.unwrap();
    assert_eq!(world.store.names().await, ["0", "1", "2", "3", "4", "5", "6", "7", "new"]);
    assert!(tenants(&world).await[..8].iter().all(|(_, _, by)| by == "none"));
    assert_eq!((log.counts().lost, log.counts().unresolved), (0, 0));
}

#[tokio::test]
async fn a_directory_that_hangs_does_not_slow_the_spool_down() {
    for is_full in [false, true] {
        let world = World::new();
        let records: Vec<_> =
            (10..60).map(|n| unresolved(&world, &n.to_string(), "acme.example")).collect();
        let other = world.folder.path().join("other.spool");
        let spool = Spool::open(SpoolConfig::new(&other), world.runtime.clone()).await.unwrap();
        spool.push_records(&records).await.unwrap();
        let max_bytes = std::fs::metadata(&other).unwrap().len();
        let config = SpoolConfig { max_bytes, ..SpoolConfig::new(world.path()) };
        let directory = Arc::new(Forgetful::default());
        let log = world.log_with(config).await.with_directory(directory.clone());
        let _ = ManualRuntime::clone(&world.runtime).with_sleep_advancing();
        directory.hangs.store(true, Ordering::Relaxed);
        log.append_or_spool_records(records).await.unwrap();
        for _ in 1..MAX_UNANSWERED {
            world.later();
            log.drain_spool(usize::MAX).await.unwrap_err();
        }
        world.later();
        let before = world.runtime.now();
        if is_full {
            assert_eq!(log.record(named("new")).await.outcome, In { seq: 50 });
        } else {
            assert_eq!(log.drain_spool(usize::MAX).await.unwrap().appended, 50);
        }
        let took = world.runtime.now().saturating_since(before);
        assert!(took < log.store_timeout, "{took:?}, is full: {is_full}");
    }
}

#[tokio::test]
async fn a_store_too_slow_for_a_nudge_does_not_count_as_down() {
    let world = World::new();
    let directory = Arc::new(Forgetful::default());
    let log = world.log().await.with_directory(directory.clone());
    let _ = ManualRuntime::clone(&world.runtime).with_sleep_advancing();
    directory.is_away.store(true, Ordering::Relaxed);
    log.append_or_spool_records(vec![unresolved(&world, "a", "acme.example")]).await.unwrap();
    let nudge = async |record| {
        world.later();
        world.store.set(Mood::Hanging);
        log.append_or_spool_records(vec![record]).await.unwrap();
        world.store.set(Mood::Up);
        world.later();
    };
    for n in 1..MAX_UNANSWERED {
        nudge(named(n).seal(&*world.runtime).into()).await;
        log.drain_spool(10).await.unwrap_err();
    }
    nudge(named("b").seal(&*world.runtime).into()).await;
    log.drain_spool(100).await.expect("the store was always available");
    assert_eq!(tenants(&world).await[0], ("a".into(), None, "unresolved".into()));
    // An append with too little time does not restart the wait either.
    nudge(unresolved(&world, "c", "acme.example")).await;
    log.drain_spool(100).await.unwrap();
    assert_eq!(log.counts().unresolved, 2);
}

#[tokio::test]
async fn no_batch_is_refused_while_the_directory_is_down_and_the_spool_full() {
    for hangs in [false, true] {
        let world = World::new();
        let directory = Arc::new(Forgetful::default());
        let config = SpoolConfig { max_events: 3, ..SpoolConfig::new(world.path()) };
        let log = world.log_with(config).await.with_directory(directory.clone());
        let _ = ManualRuntime::clone(&world.runtime).with_sleep_advancing();
        directory.is_away.store(true, Ordering::Relaxed);
        directory.hangs.store(hangs, Ordering::Relaxed);
        let fill = async || {
            let records = ["a", "b", "c"].map(|name| unresolved(&world, name, "acme.example"));
            log.append_or_spool_records(records.to_vec()).await.unwrap();
        };
        fill().await;
        for n in 0..6 {
            let known = named(n).seal(&*world.runtime).into();
            let asked = unresolved(&world, &n.to_string(), "acme.example");
            let batch = vec![if n % 2 == 0 { known } else { asked }];
            log.append_or_spool_records(batch).await.expect("the store is available");
        }
        assert_eq!(world.store.names().await[..4], ["a", "b", "c", "0"]);
        // While the store is down too, the spool is not drained, and nothing waits for that.
        world.store.set(Mood::Down);
        world.later();
        let left = log.spool_status().unwrap().pending;
        assert_eq!(left, 0);
        fill().await;
        let before = world.runtime.now();
        let refused = log.append_or_spool(vec![named("d").seal(&*world.runtime)], Vec::new()).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        assert_eq!(world.runtime.now(), before);
    }
}

#[tokio::test]
async fn after_a_restart() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    let before = log.record_all(vec![named(0), named(1)]).await;
    // As after a kill: another process finds the file on disk.
    let other = world.folder.path().join("other.spool");
    std::fs::copy(world.path(), &other).unwrap();
    let log = world.log_with(SpoolConfig::new(&other)).await;
    world.store.set(Mood::Up);
    assert_eq!(log.record(named(2)).await.outcome, Spooled);
    assert_eq!(world.store.names().await, ["0", "1", "2"]);
    let ids: Vec<_> = world.store.events().await.iter().map(|e| e.id).collect();
    assert_eq!(ids[..2], [before[0].id, before[1].id]);
}

#[tokio::test]
async fn killed_between_append_and_discard() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    log.record_all((0..5).map(named).collect()).await;
    let before = std::fs::read(world.path()).unwrap();
    world.store.set(Mood::Up);
    log.drain_spool(3).await.unwrap();
    drop(log);
    // The file as it is if the process was killed right after appending the first three.
    std::fs::write(world.path(), &before).unwrap();
    let log = world.log().await;
    let drained = log.drain_spool(100).await.unwrap();
    assert_eq!((drained.appended, drained.duplicates), (2, 3));
    assert_eq!(world.store.names().await, ["0", "1", "2", "3", "4"]);
    assert_eq!(log.counts().conflicts, 0);
}

#[tokio::test]
async fn dropped_between_append_and_discard() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    log.record_all((0..3).map(named).collect()).await;
    world.store.set(Mood::Mute);
    let mut drain = Box::pin(log.drain_spool(100));
    assert!(futures_util::poll!(&mut drain).is_pending());
    drop(drain);
    assert_eq!(log.spool_status().unwrap().pending, 3);
    assert_eq!(world.store.names().await, ["0", "1", "2"]);
    world.store.set(Mood::Up);
    let drained = log.drain_spool(100).await.unwrap();
    assert_eq!((drained.appended, drained.duplicates, drained.left), (0, 3, 0));
    assert_eq!(world.store.names().await, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_store_that_hangs() {
    for (mood, late) in [(Mood::Hanging, 0), (Mood::Mute, 1)] {
        let world = World::new();
        let log = world.log().await.with_store_timeout(Duration::from_secs(2));
        world.store.set(mood);
        let before = world.runtime.now();
        let (recorded, ()) =
            join(log.record(named(0)), world.advance_when_sleeping(1, Duration::from_secs(2)))
                .await;
        assert_eq!(recorded.outcome, Spooled);
        assert_eq!(log.record(named(1)).await.outcome, Spooled);
        assert_eq!(world.runtime.now().saturating_since(before), Duration::from_secs(2));
        assert_eq!(world.store.names().await.len(), late);
        world.store.set(Mood::Up);
        let drained = log.drain_spool(10).await.unwrap();
        assert_eq!((drained.appended, drained.duplicates), (2 - late, late));
        assert_eq!(world.store.names().await, ["0", "1"]);
        assert_eq!(log.counts().conflicts, 0);
    }
}

#[tokio::test]
async fn lost_and_said_so() {
    let world = World::new();
    let log = world.log_without_spool();
    world.store.set(Mood::Down);
    assert_eq!(log.record(named(0)).await.outcome, Lost);
    assert_eq!(outcomes(&log.record_all(vec![named(1), named(2)]).await), [Lost, Lost]);
    assert_eq!(log.counts(), RecordCounts { lost: 3, ..RecordCounts::default() });
    // Without a queue there is no order to keep: the next event is tried.
    world.store.set(Mood::Up);
    assert_eq!(log.record(named(3)).await.outcome, In { seq: 0 });
    assert_eq!(log.drain_spool(10).await.unwrap(), Drained::default());
}

#[tokio::test]
async fn a_full_spool() {
    let world = World::new();
    let config = SpoolConfig { max_events: 3, ..SpoolConfig::new(world.path()) };
    let log = world.log_with(config).await;
    world.store.set(Mood::Down);
    let recorded = log.record_all((0..5).map(named).collect()).await;
    assert_eq!(outcomes(&recorded), [Spooled, Spooled, Spooled, Lost, Lost]);
    assert_eq!(log.counts().lost, 2);
    assert_eq!(log.record(named(5)).await.outcome, Lost);
    // While the store works, the spool is drained to make room.
    world.later();
    world.store.set(Mood::Up);
    assert_eq!(log.record(named(6)).await.outcome, In { seq: 3 });
    assert_eq!(world.store.names().await, ["0", "1", "2", "6"]);
    assert_eq!(log.counts().lost, 3);
    // While it fails, the spool is not drained, and the call waits for the store once.
    world.store.set(Mood::Down);
    log.record_all((7..10).map(named).collect()).await;
    world.later();
    world.store.set(Mood::Hanging);
    let (recorded, ()) =
        join(log.record(named(10)), world.advance_when_sleeping(1, log.store_timeout)).await;
    assert_eq!(recorded.outcome, Lost);
    assert_eq!(log.spool_status().unwrap().pending, 3);
}

#[tokio::test]
async fn a_poisoned_event_does_not_block() {
    let world = World::new();
    let log = world.log().await;
    world.store.set(Mood::Down);
    let names = ["0", "poison", "1", "poison", "2"];
    let recorded = log.record_all(names.map(named).into()).await;
    world.store.set(Mood::Up);
    let drained = log.drain_spool(100).await.unwrap();
    let expected = Drained { appended: 3, quarantined: 2, ..Drained::default() };
    assert_eq!(drained, expected);
    assert_eq!(world.store.names().await, ["0", "1", "2"]);
    let items = world.store.quarantined(0, 10).await.unwrap();
    assert_eq!(items.len(), 2);
    let item = &items[0].item;
    assert_eq!(item.key, format!("spool:{}", recorded[1].id));
    assert_eq!((item.source.as_str(), item.reason.as_str()), ("platform-api", "event_invalid"));
    assert!(item.detail.contains("resourceId must be mild"));
    let raw = String::from_utf8(item.raw.clone()).unwrap();
    assert!(raw.contains("poison") && !raw.contains("salt"), "{raw}");
    // The same while the store works, without affecting the others.
    let recorded = log.record_all(["3", "poison", "4"].map(named).into()).await;
    assert_eq!(outcomes(&recorded), [In { seq: 5 }, Spooled, In { seq: 7 }]);
    assert_eq!(log.counts().quarantined, 3);
    assert_eq!(log.counts().lost, 0);
    // Without a spool, only the poisoned event is lost.
    let log = world.log_without_spool();
    let recorded = log.record_all(["5", "poison", "6"].map(named).into()).await;
    assert_eq!(outcomes(&recorded), [In { seq: 8 }, Lost, In { seq: 9 }]);
    // The timeline shows each of them.
    let events = world.store.events().await;
    assert_eq!(events.iter().filter(|e| e.action == "ingest.quarantined").count(), 3);
}

#[tokio::test]
async fn the_worker() {
    let world = World::new();
    let log = world.log().await;
    let (stop, stopped) = futures_util::future::abortable(pending::<()>());
    let worker = log.run_spool(async {
        let _ = stop.await;
    });
    let work = async {
        // While idle, it waits only for events.
        tokio::task::yield_now().await;
        assert_eq!(world.runtime.sleeping(), 0);
        world.store.set(Mood::Down);
        log.record(named(0)).await;
        world.advance_when_sleeping(1, MAX_BACKOFF).await;
        while world.store.appends() < 2 {
            tokio::task::yield_now().await;
        }
        log.record(named(1)).await;
        world.store.set(Mood::Up);
        world.advance_when_sleeping(1, MAX_BACKOFF).await;
        while log.spool_status().unwrap().pending > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(log.record(named(2)).await.outcome, In { seq: 2 });
        // A successful `record` ends the worker's wait.
        world.store.set(Mood::Down);
        log.record_all((3..200).map(named).collect()).await;
        while world.runtime.sleeping() < 1 {
            tokio::task::yield_now().await;
        }
        world.store.set(Mood::Up);
        log.drain_spool(1).await.unwrap();
        while log.spool_status().unwrap().pending > 0 {
            tokio::task::yield_now().await;
        }
        stopped.abort();
    };
    join(worker, work).await;
    let expected: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(world.store.names().await, expected);
    world.log_without_spool().run_spool(async {}).await;
}

#[tokio::test]
async fn relaying() {
    let world = World::new();
    let log = world.log_without_spool();
    assert!(log.relay(AuditLog::RELAY_WAIT).await);
    let sealed = (0..=(BATCH_EVENTS * 2)).map(|n| log.seal(named(n))).collect();
    world.store.stage(sealed).await.unwrap();
    world.store.set(Mood::Down);
    assert!(!log.relay(AuditLog::RELAY_WAIT).await);
    world.store.set(Mood::Hanging);
    let (current, ()) =
        join(log.relay(AuditLog::RELAY_WAIT), world.advance_when_sleeping(1, AuditLog::RELAY_WAIT))
            .await;
    assert!(!current);
    world.store.set(Mood::Up);
    assert!(log.relay(AuditLog::RELAY_WAIT).await);
    assert_eq!(world.store.names().await.len(), BATCH_EVENTS * 2 + 1);
}

/// Many callers, one of which drops its futures, and a store with outages: the events of each are in
/// the log once and in order.
#[test]
fn order_across_outages() {
    const RECORDERS: usize = 6;
    const EVENTS: usize = 60;
    const MOODS: [Mood; 5] = [Mood::Up, Mood::Down, Mood::Mute, Mood::Up, Mood::Hanging];
    let folder = TempDir::new().unwrap();
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    let executor =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let executor = executor.unwrap();
    let store = Moody::new(runtime.clone());
    let config = SpoolConfig::new(folder.path().join("audit.spool"));
    let spool = executor.block_on(Spool::open(config, runtime.clone())).unwrap();
    let log = AuditLog::new(store.clone(), runtime)
        .with_spool(spool)
        .with_store_timeout(Duration::from_millis(10));
    let done = AtomicUsize::new(0);
    let record = async |recorder: usize| {
        for n in 0..EVENTS {
            let recorded = log.record(named(format_args!("{recorder}:{n}"))).await;
            assert_ne!(recorded.outcome, Lost);
        }
        done.fetch_add(1, Ordering::SeqCst);
    };
    let change_moods = async {
        let mut n = 0;
        while done.load(Ordering::SeqCst) < RECORDERS {
            n += 1;
            store.set(MOODS[n % MOODS.len()]);
            // Without back-off, which would make this test slow.
            *log.backoff() = Backoff::default();
            let mut hasty = Box::pin(log.record(named(format_args!("hasty:{n}"))));
            for _ in 0..n % 7 {
                if futures_util::poll!(&mut hasty).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(hasty);
            // Alternates with the `record` calls that drain.
            let _ = log.drain_spool(5).await;
        }
    };
    std::thread::scope(|scope| {
        for recorder in 0..RECORDERS {
            let (executor, record) = (&executor, &record);
            scope.spawn(move || executor.block_on(record(recorder)));
        }
        executor.block_on(change_moods);
    });
    store.set(Mood::Up);
    executor.block_on(async {
        while log.spool_status().unwrap().pending > 0 {
            let _ = log.drain_spool(usize::MAX).await;
        }
    });
    let (mut next, mut hasty) = (HashMap::new(), HashSet::new());
    let names = executor.block_on(store.names());
    for name in &names {
        let (recorder, n) = name.split_once(':').unwrap();
        if recorder == "hasty" {
            // The dropped calls were not awaited, so their order is undefined.
            assert!(hasty.insert(n), "{name} is there twice");
            continue;
        }
        let next: &mut usize = next.entry(recorder).or_default();
        assert_eq!(n, next.to_string(), "of recorder {recorder}");
        *next += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [EVENTS; RECORDERS]);
    let counts = log.counts();
    assert_eq!((counts.lost, counts.conflicts, counts.quarantined), (0, 0, 0));
    assert!(counts.spooled > 0);
}

#[test]
fn repaired_values() {
    let noted = |text: &str, head: &str| json!({ "bytes": text.len(), "sha256": digest(text), "head": head });
    let long = "é".repeat(300);
    let mut event = NewEvent {
        tenant_slug: Some(String::new()),
        partner_slug: Some("p".repeat(64)),
        resource_type: Some("\0".repeat(22)),
        external_id: Some(long.clone()),
        source: "authentik:eu 2".into(),
        metadata: NewMetadata::default().with_annotation(INVALID, json!({ "x": 1 })),
        ..NewEvent::new("Tenant Suspended!", Actor::system())
    };
    assert!(repair(&mut event));
    assert_eq!(event.action, "tenant_suspended_");
    let digest16 = &digest("authentik:eu 2")[..16];
    assert_eq!(event.source, format!("authentik:eu_2-{digest16}"));
    assert_eq!(event.external_id, Some(format!("sha256:{}", digest(&long))));
    assert_eq!(
        (&event.tenant_slug, &event.partner_slug, &event.resource_type),
        (&None, &None, &None)
    );
    assert_eq!(
        event.metadata.annotation(INVALID),
        Some(&json!({
            "action": noted("Tenant Suspended!", "Tenant Suspended!"),
            "source": noted("authentik:eu 2", "authentik:eu 2"),
            "externalId": noted(&long, &"é".repeat(64)),
            "tenantSlug": noted("", ""),
            "partnerSlug": noted(&"p".repeat(64), &"p".repeat(64)),
            "resourceType": noted(&"\0".repeat(22), &"\0".repeat(22)),
            "x": 1,
        }))
    );
    // Repairing again changes nothing.
    let again = event.clone();
    assert!(!repair(&mut event));
    assert_eq!(event, again);
    // An empty type is a value, and values within bounds stay.
    let mut fine = NewEvent {
        resource_type: Some(String::new()),
        external_id: Some("x".repeat(512)),
        tenant_slug: Some("t".repeat(63)),
        ..NewEvent::new("_.-", Actor::user("u").with_ip("::1"))
    };
    let before = fine.clone();
    assert!(!repair(&mut fine));
    assert_eq!(fine, before);
    // Truncated values and unreadable addresses count as repaired too.
    for actor in [Actor::user("u".repeat(513)), Actor::system().with_ip("localhost")] {
        assert!(repair(&mut NewEvent::new("a.b", actor)));
    }
}

#[test]
fn repaired_names() {
    for (action, repaired) in [
        ("", "invalid.action"),
        ("...", "invalid.action"),
        ("é", "invalid.action"),
        (" - ", "invalid.action"),
        ("a..b.", "a.b"),
        (".User Löschen", "user_l_schen"),
        // Reserved for operations of the log itself.
        ("dezky.erased", "invalid.dezky.erased"),
        ("Dezky..Erased", "invalid.dezky.erased"),
    ] {
        assert_eq!(repaired_action(action).as_deref(), Some(repaired), "{action}");
    }
    let long = format!("{}.b", "a".repeat(127));
    assert_eq!(repaired_action(&long), Some("a".repeat(127)));
    for (source, repaired) in [
        ("", "invalid-"),
        (":", "_-"),
        (":x", "_x-"),
        ("ocis:", "ocis:-"),
        ("a:b:c", "a:b_c-"),
        ("ö", "_-"),
    ] {
        let expected = format!("{repaired}{}", &digest(source)[..16]);
        assert_eq!(repaired_source(source), Some(expected), "{source}");
    }
    // Long sources with the same beginning stay distinct.
    let (a, b) = (format!("{}a", "s".repeat(64)), format!("{}b", "s".repeat(64)));
    assert_ne!(repaired_source(&a), repaired_source(&b));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z.:]{0,8}",
        "[ -~]{0,80}",
        (prop_oneof![Just("x"), Just("é"), Just("\0"), Just("a.")], 0..700usize)
            .prop_map(|(unit, count)| unit.repeat(count)),
    ]
}

fn any_event() -> impl Strategy<Value = NewEvent> {
    let maybe = || prop::option::of(text());
    (
        (text(), text(), maybe(), maybe(), maybe()),
        (maybe(), maybe(), maybe(), maybe(), maybe(), maybe()),
        (maybe(), any::<i64>()),
    )
        .prop_map(|((action, source, id, email, ip), texts, (metadata, at))| {
            let (resource_type, resource_id, resource_name, tenant, partner, external) = texts;
            NewEvent {
                at: Some(Timestamp::from_millis_clamped(at)),
                resource_type,
                resource_id,
                resource_name,
                tenant_slug: tenant,
                partner_slug: partner,
                source,
                external_id: external,
                metadata: metadata.map(NewMetadata::from_source).unwrap_or_default(),
                ..NewEvent::new(action, Actor { id, email, ip, ..Actor::system() })
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any event is recorded, and read back from a spool unchanged.
    #[test]
    fn anything_is_recorded(events in prop::collection::vec(any_event(), 1..4)) {
        let world = World::new();
        let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        executor.block_on(async {
            let log = world.log_without_spool();
            for event in events {
                let sealed = log.seal(event.clone());
                prop_assert_eq!(sealed.validate(), Ok(()));
                let read = SealedEvent::from_json(&sealed.to_json()).unwrap();
                prop_assert_eq!(&read, &sealed);
                let outcome = log.record(event).await.outcome;
                prop_assert!(matches!(outcome, In { .. } | Again { .. }), "{outcome:?}");
            }
            Ok(())
        })?;
    }

    /// Well-formed names stay unchanged, others become well-formed.
    #[test]
    fn names(action in text(), source in text()) {
        let mut event = NewEvent { source: source.clone(), ..NewEvent::new(&*action, Actor::system()) };
        let valid = event.clone().seal(&ManualRuntime::new(1)).validate().is_ok();
        prop_assert_eq!(!repair(&mut event), valid);
        prop_assert_eq!(event.action == action && event.source == source, valid);
        prop_assert!(event.clone().seal(&ManualRuntime::new(1)).validate().is_ok());
        prop_assert!(!repair(&mut event));
    }
}
