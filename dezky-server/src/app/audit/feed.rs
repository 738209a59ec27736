//! The streams of the timeline: one tail of the log for all of them.
//!
//! The tail runs while anybody listens, and keeps the newest events in memory. A reader takes them
//! from there at its own pace; one that resumes further back reads the store until it has caught
//! up. So the store is polled once, whatever the number of readers, and a reader holds no more than
//! a batch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use dezky_core::store::engine::SearchColumns;
use dezky_core::store::{AuditStore, AuditStoreExt as _, Tail};
use dezky_core::{Error, Runtime, StoredEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::wait_for_stop;

/// The maximum number of concurrent streams: each occupies a connection.
pub(crate) const MAX_STREAMS: usize = 256;
/// The maximum number of readers that read the store at the same time, to catch up.
const MAX_CATCHING_UP: usize = 4;
/// The events kept for readers. One that is further behind, after it had caught up, is cut off.
const KEPT_EVENTS: usize = 10_000;
/// The same, in approximate bytes.
const KEPT_BYTES: usize = 16 << 20;
/// The maximum number of events that a reader takes at once.
const BATCH_EVENTS: usize = 100;
/// The maximum of bytes that a reader keeps of a page of the store, unless its first event has
/// more.
const BATCH_BYTES: usize = 1 << 20;
/// The pause after an error of the store.
const PAUSE: Duration = Duration::from_millis(500);

/// An event as streams send it.
pub(crate) struct Entry {
    pub(crate) stored: StoredEvent,
    pub(crate) columns: SearchColumns,
    whole: OnceLock<Bytes>,
    part: OnceLock<Bytes>,
}

impl Entry {
    fn new(stored: StoredEvent) -> Self {
        let columns = SearchColumns::of(&stored.event);
        Self { stored, columns, whole: OnceLock::new(), part: OnceLock::new() }
    }

    /// The event's JSON, serialised once for all readers.
    pub(crate) fn json(&self, with_position: bool) -> &[u8] {
        let cell = if with_position { &self.whole } else { &self.part };
        cell.get_or_init(|| {
            let json = if with_position {
                serde_json::to_vec(&self.stored)
            } else {
                serde_json::to_vec(&self.stored.without_position())
            };
            json.unwrap_or_default().into()
        })
    }

    fn weight(&self) -> usize {
        512 + self.stored.event.metadata.as_str().len()
    }
}

/// The reason why a stream ends.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// The reader fell too far behind.
    TooSlow,
    /// The server stops.
    Stopping,
    /// The store can't be read any further.
    Store(Error),
}

/// The tail's state.
enum Status {
    /// Nobody listens, or the tail has not begun yet.
    Idle,
    /// Follows the log. The number grows with every beginning.
    Live(u64),
    /// The log can't be followed.
    Broken(Error),
}

/// The newest events: gapless, from `first` on.
struct Kept {
    status: Status,
    beginnings: u64,
    first: u64,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl Kept {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// The streams that are open, and the tail that feeds them.
pub(crate) struct AuditFeed {
    permits: Arc<Semaphore>,
    catching_up: Semaphore,
    readers: watch::Sender<usize>,
    kept: Mutex<Kept>,
    /// Changes whenever `kept` does.
    moved: watch::Sender<()>,
    stopping: watch::Receiver<bool>,
}

impl AuditFeed {
    pub(super) fn new(stopping: watch::Receiver<bool>) -> Self {
        let kept = Kept {
            status: Status::Idle,
            beginnings: 0,
            first: 0,
            entries: VecDeque::new(),
            bytes: 0,
        };
        Self {
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            catching_up: Semaphore::new(MAX_CATCHING_UP),
            readers: watch::Sender::new(0),
            kept: Mutex::new(kept),
            moved: watch::Sender::new(()),
            stopping,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of open streams.
    pub(crate) fn readers(&self) -> usize {
        *self.readers.borrow()
    }

    /// Admits one more reader, which takes events from `from_seq` on, or those that arrive from
    /// now on; `None` if the maximum is open.
    pub(crate) fn admit(self: &Arc<Self>, from_seq: Option<u64>) -> Option<Reader> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        // Counted before the status is read, so that the tail does not end in between.
        self.readers.send_modify(|readers| *readers += 1);
        Some(Reader {
            feed: Arc::clone(self),
            next_seq: from_seq,
            caught_up: None,
            _permit: permit,
        })
    }

    /// Follows the log while anybody listens, until the server stops.
    pub(crate) async fn run(&self, store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) {
        let follow = async {
            let mut readers = self.readers.subscribe();
            loop {
                // The sender is part of this feed.
                let _ = readers.wait_for(|readers| *readers > 0).await;
                match store.state().await {
                    Ok(state) => {
                        let from = state.head.next_seq;
                        self.begin(from);
                        self.follow(store.tail(Arc::clone(&runtime), from)).await;
                    }
                    Err(error) => {
                        tracing::warn!(code = error.code(), %error, "streams wait for the store");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        };
        let mut stopping = self.stopping.clone();
        tokio::select! {
            () = wait_for_stop(&mut stopping) => {}
            () = follow => {}
        }
    }

    fn begin(&self, from: u64) {
        let mut kept = self.kept();
        kept.beginnings += 1;
        kept.status = Status::Live(kept.beginnings);
        kept.first = from;
        kept.entries.clear();
        kept.bytes = 0;
        drop(kept);
        self.moved.send_replace(());
    }

    /// Takes events from the tail until nobody listens or the log can't be followed.
    async fn follow(&self, mut tail: Tail) {
        let mut readers = self.readers.subscribe();
        let mut is_failing = false;
        loop {
            let event = tokio::select! {
                event = tail.next() => event,
                _ = readers.wait_for(|readers| *readers == 0) => {
                    if self.end_if_idle() {
                        return;
                    }
                    continue;
                }
            };
            match event {
                Ok(event) => {
                    is_failing = false;
                    let seq = event.seq;
                    self.push(event);
                    // A burst must not pass the window before its readers had a turn.
                    if seq.is_multiple_of(BATCH_EVENTS as u64) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.is_retryable() => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(code = error.code(), %error, "streams wait for the store");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(code = error.code(), %error, "streams end");
                    self.kept().status = Status::Broken(error);
                    self.moved.send_replace(());
                    let _ = readers.wait_for(|readers| *readers == 0).await;
                    self.end_if_idle();
                    return;
                }
            }
        }
    }

    fn end_if_idle(&self) -> bool {
        let mut kept = self.kept();
        // A reader that has arrived meanwhile finds the status as it was.
        if *self.readers.borrow() > 0 && !matches!(kept.status, Status::Broken(_)) {
            return false;
        }
        kept.status = Status::Idle;
        kept.entries.clear();
        kept.bytes = 0;
        true
    }

    fn push(&self, stored: StoredEvent) {
        let entry = Entry::new(stored);
        let mut kept = self.kept();
        kept.bytes += entry.weight();
        kept.entries.push_back(Arc::new(entry));
        while kept.entries.len() > KEPT_EVENTS || kept.bytes > KEPT_BYTES {
            let Some(old) = kept.entries.pop_front() else { break };
            kept.bytes -= old.weight();
            kept.first += 1;
        }
        drop(kept);
        self.moved.send_replace(());
    }
}

/// One stream's position.
pub(crate) struct Reader {
    feed: Arc<AuditFeed>,
    /// The next event; `None` before the tail has begun, for a reader of new events.
    next_seq: Option<u64>,
    /// The tail's beginning since which the reader had caught up.
    caught_up: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

/// The next step of a reader.
enum Step {
    Take(Vec<Arc<Entry>>),
    Wait,
    CatchUp(u64),
}

impl Reader {
    /// The position after the last event that was taken; `None` before the stream has begun.
    pub(crate) fn next_seq(&self) -> Option<u64> {
        self.next_seq
    }

    /// The next events, at least one; waits for them. Cancel-safe.
    pub(crate) async fn next(
        &mut self,
        store: &Arc<dyn AuditStore>,
    ) -> Result<Vec<Arc<Entry>>, End> {
        let feed = Arc::clone(&self.feed);
        let (mut moved, mut stopping) = (feed.moved.subscribe(), feed.stopping.clone());
        loop {
            moved.mark_unchanged();
            if *stopping.borrow() {
                return Err(End::Stopping);
            }
            let work = async {
                match self.step()? {
                    Step::Take(entries) => Ok(Some(entries)),
                    Step::Wait => {
                        // The sender is part of the feed.
                        let _ = moved.changed().await;
                        Ok(None)
                    }
                    Step::CatchUp(from) => self.catch_up(store, from).await.map(Some),
                }
            };
            let taken = tokio::select! {
                biased;
                () = wait_for_stop(&mut stopping) => Err(End::Stopping),
                taken = work => taken,
            };
            if let Some(entries) = taken?
                && let Some(last) = entries.last()
            {
                self.next_seq = Some(last.stored.seq + 1);
                return Ok(entries);
            }
        }
    }

    /// Waits until the stream's position is known.
    pub(crate) async fn begun(&mut self) -> Result<(), End> {
        let feed = Arc::clone(&self.feed);
        let (mut moved, mut stopping) = (feed.moved.subscribe(), feed.stopping.clone());
        while self.next_seq.is_none() {
            moved.mark_unchanged();
            self.step()?;
            if self.next_seq.is_none() {
                tokio::select! {
                    () = wait_for_stop(&mut stopping) => return Err(End::Stopping),
                    _ = moved.changed() => {}
                }
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Step, End> {
        let kept = self.feed.kept();
        let beginning = match &kept.status {
            Status::Idle => return Ok(Step::Wait),
            Status::Live(beginning) => *beginning,
            Status::Broken(error) => return Err(End::Store(error.clone())),
        };
        let next = *self.next_seq.get_or_insert(kept.end());
        if next < kept.first {
            let had_caught_up = self.caught_up == Some(beginning);
            return if had_caught_up { Err(End::TooSlow) } else { Ok(Step::CatchUp(next)) };
        }
        self.caught_up = Some(beginning);
        // A client of another replica may know events that this one has not seen yet.
        let skip = usize::try_from(next - kept.first).unwrap_or(usize::MAX);
        let entries: Vec<_> = kept.entries.iter().skip(skip).take(BATCH_EVENTS).cloned().collect();
        Ok(if entries.is_empty() { Step::Wait } else { Step::Take(entries) })
    }

    /// Reads a page of the store in a separate task. If the stream read it itself, a client that
    /// takes nothing would stop the read half-way and hold up the streams that wait for their turn.
    async fn catch_up(
        &self,
        store: &Arc<dyn AuditStore>,
        from: u64,
    ) -> Result<Vec<Arc<Entry>>, End> {
        let (feed, store) = (Arc::clone(&self.feed), Arc::clone(store));
        // Dropping the set ends the task.
        let mut task = JoinSet::new();
        task.spawn(async move {
            // The semaphore is never closed.
            let _turn = feed.catching_up.acquire().await;
            page(&*store, from).await
        });
        match task.join_next().await {
            Some(Ok(page)) => page,
            // The task panicked, or the runtime ends.
            _ => Err(End::Stopping),
        }
    }
}

/// The events from `from` on, at least one.
async fn page(store: &dyn AuditStore, from: u64) -> Result<Vec<Arc<Entry>>, End> {
    let corrupt = |what: String| {
        let kind = dezky_core::ErrorKind::StoreCorrupt;
        End::Store(Error::new(kind, format!("{what}: run verify")))
    };
    let rows = loop {
        let first = i64::try_from(from).unwrap_or(i64::MAX);
        match store.scan(first, BATCH_EVENTS).await {
            Ok(rows) => break rows,
            Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(End::Store(error)),
        }
    };
    let (mut entries, mut bytes) = (Vec::with_capacity(rows.len()), 0);
    for (row, seq) in rows.into_iter().zip(from..) {
        let problem = match row {
            Ok(row) if row.stored.seq == seq => {
                let entry = Entry::new(row.stored);
                bytes += entry.weight();
                if bytes > BATCH_BYTES && !entries.is_empty() {
                    break;
                }
                entries.push(Arc::new(entry));
                continue;
            }
            Ok(_) => "the log has a gap".to_owned(),
            Err(row) => row.problem,
        };
        if entries.is_empty() {
            return Err(corrupt(format!("seq {seq}: {problem}")));
        }
        break;
    }
    if entries.is_empty() {
        return Err(corrupt(format!("seq {from}: the row is missing")));
    }
    Ok(entries)
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.readers.send_modify(|readers| *readers -= 1);
    }
}

#[cfg(test)]
mod counted_store;

#[cfg(test)]
mod tests {
    use dezky_core::AuditLog;
    use dezky_core::rt::TokioRuntime;
    use dezky_core::store::MemoryAuditStore;
    use dezky_core::testkit::named_event;

    use super::counted_store::CountedStore;
    use super::*;

    struct World {
        feed: Arc<AuditFeed>,
        log: AuditLog,
        store: Arc<dyn AuditStore>,
        stop: watch::Sender<bool>,
    }

    fn world() -> World {
        let runtime = Arc::new(TokioRuntime);
        let store: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(runtime.clone()));
        let stop = watch::Sender::new(false);
        let feed = Arc::new(AuditFeed::new(stop.subscribe()));
        let (running, followed) = (Arc::clone(&feed), Arc::clone(&store));
        let ticking = runtime.clone();
        tokio::spawn(async move { running.run(followed, ticking).await });
        World { feed, log: AuditLog::new(store.clone(), runtime), store, stop }
    }

    async fn record(world: &World, count: usize) {
        let events = (0..count).map(|n| named_event(&n.to_string())).collect();
        world.log.record_all(events).await;
    }

    async fn take(reader: &mut Reader, store: &Arc<dyn AuditStore>, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let entries = reader.next(store).await.unwrap();
            seqs.extend(entries.iter().map(|entry| entry.stored.seq));
        }
        seqs
    }

    #[tokio::test]
    async fn a_reader_takes_new_events_and_one_that_resumes_also_the_older_ones() {
        let world = world();
        record(&world, 250).await;
        let mut new = world.feed.admit(None).unwrap();
        new.begun().await.unwrap();
        assert_eq!(new.next_seq(), Some(250));
        let mut resumed = world.feed.admit(Some(3)).unwrap();
        record(&world, 2).await;
        assert_eq!(take(&mut new, &world.store, 2).await, [250, 251]);
        let expected: Vec<u64> = (3..252).collect();
        assert_eq!(take(&mut resumed, &world.store, 249).await, expected);
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_cut_off_and_can_resume() {
        let world = world();
        let mut slow = world.feed.admit(None).unwrap();
        slow.begun().await.unwrap();
        record(&world, 1).await;
        assert_eq!(take(&mut slow, &world.store, 1).await, [0]);
        record(&world, KEPT_EVENTS + 1).await;
        while world.feed.kept().end() < KEPT_EVENTS as u64 + 2 {
            tokio::task::yield_now().await;
        }
        assert!(world.feed.kept().entries.len() <= KEPT_EVENTS);
        let ended = slow.next(&world.store).await;
        assert!(matches!(ended, Err(End::TooSlow)));
        let mut resumed = world.feed.admit(Some(1)).unwrap();
        let all: Vec<u64> = (1..=KEPT_EVENTS as u64 + 1).collect();
        assert_eq!(take(&mut resumed, &world.store, all.len()).await, all);
    }

    #[tokio::test]
    async fn the_tail_rests_while_nobody_listens_and_readers_are_bounded() {
        let world = world();
        let readers: Vec<_> = (0..MAX_STREAMS).map(|_| world.feed.admit(None).unwrap()).collect();
        assert!(world.feed.admit(None).is_none());
        drop(readers);
        let mut again = world.feed.admit(None).unwrap();
        again.begun().await.unwrap();
        drop(again);
        let rests = || matches!(world.feed.kept().status, Status::Idle);
        while !rests() {
            tokio::task::yield_now().await;
        }
        record(&world, 3).await;
        assert!(world.feed.kept().entries.is_empty(), "nobody listens");
        let mut late = world.feed.admit(Some(1)).unwrap();
        assert_eq!(take(&mut late, &world.store, 2).await, [1, 2]);
    }

    /// A hundred readers cost the store as much as one.
    #[tokio::test]
    async fn the_store_is_read_once_for_all_readers() {
        let mut reads = Vec::new();
        for count in [1, 100] {
            let runtime = Arc::new(TokioRuntime);
            let counted = Arc::new(CountedStore::new(MemoryAuditStore::open(runtime.clone())));
            let store: Arc<dyn AuditStore> = counted.clone();
            let stop = watch::Sender::new(false);
            let feed = Arc::new(AuditFeed::new(stop.subscribe()));
            let (running, followed) = (Arc::clone(&feed), Arc::clone(&store));
            let ticking = runtime.clone();
            let tail = tokio::spawn(async move { running.run(followed, ticking).await });
            let mut readers: Vec<_> = (0..count).map(|_| feed.admit(None).unwrap()).collect();
            for reader in &mut readers {
                reader.begun().await.unwrap();
            }
            let log = AuditLog::new(store.clone(), runtime);
            for n in 0..20_u64 {
                log.record(named_event(&n.to_string())).await;
                for reader in &mut readers {
                    assert_eq!(take(reader, &store, 1).await, [n]);
                }
            }
            stop.send_replace(true);
            tail.await.unwrap();
            reads.push(counted.reads());
        }
        // At most two reads per event: the first finds it, the second finds nothing after it.
        assert!(reads[0] <= 50, "{reads:?}");
        assert!(reads[1] <= 50, "{reads:?}");
    }

    #[tokio::test]
    async fn readers_end_with_the_server() {
        let world = world();
        let mut reader = world.feed.admit(None).unwrap();
        reader.begun().await.unwrap();
        world.stop.send_replace(true);
        assert!(matches!(reader.next(&world.store).await, Err(End::Stopping)));
    }
}
