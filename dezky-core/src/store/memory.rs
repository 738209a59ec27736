//! A store in memory, for tests and examples, and as the oracle for the other stores.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use futures_util::lock::{Mutex as AsyncMutex, OwnedMutexGuard};
use uuid::Uuid;

use super::engine::{
    CursorKey, ExistingRow, LeaseRow, ListPosition, ListScan, NewRow, RowStore, RowTx, ScanEnd,
    ScanPage, StagedEvent,
};
use super::{Capabilities, ChainedStore, Head, LogState, QuarantinedItem, ScannedRow, StoredRow};
use crate::event::uuid_v7;
use crate::source::QuarantineItem;
use crate::{Result, Runtime, SealedEvent, Timestamp};

/// An [`AuditStore`](super::AuditStore) in memory, which is lost with the process.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::store::MemoryAuditStore;
/// use dezky_core::{Actor, NewEvent, rt::TokioRuntime, store::AuditStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let runtime = Arc::new(TokioRuntime);
/// let store = MemoryAuditStore::open(runtime.clone());
/// let event = NewEvent::new("tenant.created", Actor::user("u-1")).seal(&*runtime);
/// let receipt = &store.append(vec![event], Default::default()).await?.receipts[0];
/// assert_eq!(receipt.seq, 0);
/// # Ok(())
/// # }
/// ```
pub type MemoryAuditStore = ChainedStore<MemoryRows>;

impl MemoryAuditStore {
    /// Creates an empty log. Leases use the runtime's clock.
    pub fn open(runtime: Arc<dyn Runtime>) -> Self {
        Self::new(MemoryRows::new(runtime))
    }
}

/// The rows of a [`MemoryAuditStore`].
pub struct MemoryRows {
    tables: Arc<RwLock<Tables>>,
    writer: Arc<AsyncMutex<()>>,
    runtime: Arc<dyn Runtime>,
}

impl MemoryRows {
    fn new(runtime: Arc<dyn Runtime>) -> Self {
        let mut cursor_key = [0; 32];
        runtime.fill_random(&mut cursor_key);
        let state = LogState {
            log_id: uuid_v7(runtime.now(), &*runtime),
            cursor_key: CursorKey(cursor_key),
            base: Head::EMPTY,
            head: Head::EMPTY,
        };
        let tables = Tables {
            state,
            rows: BTreeMap::new(),
            by_id: HashMap::new(),
            by_external_id: HashMap::new(),
            by_time: BTreeSet::new(),
            cursors: HashMap::new(),
            leases: HashMap::new(),
            quarantine: Vec::new(),
            outbox: BTreeMap::new(),
            next_number: 1,
        };
        Self {
            tables: Arc::new(RwLock::new(tables)),
            writer: Arc::new(AsyncMutex::new(())),
            runtime,
        }
    }
}

struct Tables {
    state: LogState,
    rows: BTreeMap<u64, StoredRow>,
    by_id: HashMap<Uuid, u64>,
    by_external_id: HashMap<(String, String), u64>,
    by_time: BTreeSet<ListPosition>,
    cursors: HashMap<String, String>,
    leases: HashMap<String, LeaseRow>,
    quarantine: Vec<QuarantinedItem>,
    outbox: BTreeMap<i64, SealedEvent>,
    next_number: i64,
}

/// A change that is applied at commit.
type Change = Box<dyn FnOnce(&mut Tables) + Send>;

/// A transaction. Reads see the tables; changes are applied at commit.
struct MemoryTx {
    tables: Arc<RwLock<Tables>>,
    runtime: Arc<dyn Runtime>,
    changes: Vec<Change>,
    /// Source and key of the items that this transaction has quarantined.
    quarantined: BTreeSet<(String, String)>,
    /// The numbers of the items that it has released.
    released: BTreeSet<i64>,
    _writer: OwnedMutexGuard<()>,
}

fn read<T>(tables: &RwLock<Tables>, read: impl FnOnce(&Tables) -> T) -> T {
    read(&tables.read().unwrap_or_else(PoisonError::into_inner))
}

#[async_trait]
impl RowStore for MemoryRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        Ok(Box::new(MemoryTx {
            tables: Arc::clone(&self.tables),
            runtime: Arc::clone(&self.runtime),
            changes: Vec::new(),
            quarantined: BTreeSet::new(),
            released: BTreeSet::new(),
            _writer: writer,
        }))
    }

    async fn state(&self) -> Result<LogState> {
        Ok(read(&self.tables, |t| t.state.clone()))
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        let from = u64::try_from(from_seq).unwrap_or(0);
        Ok(read(&self.tables, |t| {
            t.rows.range(from..).take(max_rows).map(|(_, row)| Ok(row.clone())).collect()
        }))
    }

    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>> {
        let seq = read(&self.tables, |t| t.by_id.get(&id).copied());
        Ok(seq.and_then(|seq| i64::try_from(seq).ok()))
    }

    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage> {
        Ok(read(&self.tables, |t| t.list(scan)))
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        Ok(read(&self.tables, |t| t.cursors.get(source).cloned()))
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        Ok(read(&self.tables, |t| {
            t.quarantine.iter().filter(|i| i.number > after).take(max_items).cloned().collect()
        }))
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        let mut cursors: Vec<_> = read(&self.tables, |t| {
            t.cursors.iter().map(|(source, cursor)| (source.clone(), cursor.clone())).collect()
        });
        cursors.sort();
        Ok(cursors)
    }

    async fn has_staged(&self) -> Result<bool> {
        Ok(read(&self.tables, |t| !t.outbox.is_empty()))
    }
}

impl Tables {
    fn list(&self, scan: &ListScan<'_>) -> ScanPage {
        let newest_first: Box<dyn Iterator<Item = _>> = match scan.before {
            Some(position) => Box::new(self.by_time.range(..position).rev()),
            None => Box::new(self.by_time.iter().rev()),
        };
        let mut events = Vec::new();
        for (examined, position) in newest_first.enumerate() {
            let (at, seq) = position;
            if scan.filter.since.is_some_and(|since| *at < since) {
                break;
            }
            let row = &self.rows[seq];
            if scan.filter.matches(&row.stored.event, &row.search_columns) {
                events.push(row.stored.clone());
                if events.len() == scan.max_rows {
                    return ScanPage { events, end: ScanEnd::Full };
                }
            }
            if examined + 1 == scan.max_examined {
                return ScanPage { events, end: ScanEnd::Budget(*position) };
            }
        }
        ScanPage { events, end: ScanEnd::Exhausted }
    }

    fn insert(&mut self, row: StoredRow) {
        let event = &row.stored.event;
        let seq = row.stored.seq;
        self.by_id.insert(event.id, seq);
        if let Some(external_id) = &event.external_id {
            self.by_external_id.insert((event.source.clone(), external_id.clone()), seq);
        }
        self.by_time.insert((event.at, seq));
        self.rows.insert(seq, row);
    }

    fn number(&mut self) -> i64 {
        self.next_number += 1;
        self.next_number - 1
    }
}

impl MemoryTx {
    fn read<T>(&self, f: impl FnOnce(&Tables) -> T) -> T {
        read(&self.tables, f)
    }

    fn change(&mut self, change: impl FnOnce(&mut Tables) + Send + 'static) {
        self.changes.push(Box::new(change));
    }
}

#[async_trait]
impl RowTx for MemoryTx {
    async fn head(&mut self) -> Result<Head> {
        Ok(self.read(|t| t.state.head))
    }

    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        Ok(self.read(|t| {
            let mut seqs = BTreeSet::new();
            for event in events.iter().map(|sealed| sealed.event()) {
                seqs.extend(t.by_id.get(&event.id));
                if let Some(external_id) = &event.external_id {
                    let key = (event.source.clone(), external_id.clone());
                    seqs.extend(t.by_external_id.get(&key));
                }
            }
            seqs.into_iter()
                .map(|seq| {
                    let stored = &t.rows[&seq].stored;
                    ExistingRow::of(seq, &stored.event, stored.erased.clone())
                })
                .collect()
        }))
    }

    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        for row in rows {
            let row = row.to_stored();
            self.change(move |t| t.insert(row));
        }
        Ok(())
    }

    async fn set_head(&mut self, head: Head) -> Result<()> {
        self.change(move |t| t.state.head = head);
        Ok(())
    }

    async fn cursor(&mut self, source: &str) -> Result<Option<String>> {
        Ok(self.read(|t| t.cursors.get(source).cloned()))
    }

    async fn set_identity(&mut self, log_id: Uuid, cursor_key: &CursorKey) -> Result<()> {
        let cursor_key = *cursor_key;
        self.change(move |t| (t.state.log_id, t.state.cursor_key) = (log_id, cursor_key));
        Ok(())
    }

    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()> {
        let (source, cursor) = (source.to_owned(), cursor.to_owned());
        self.change(move |t| {
            t.cursors.insert(source, cursor);
        });
        Ok(())
    }

    async fn now(&mut self) -> Result<Timestamp> {
        Ok(self.runtime.now())
    }

    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>> {
        Ok(self.read(|t| t.leases.get(name).cloned()))
    }

    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()> {
        let (name, row) = (name.to_owned(), row.clone());
        self.change(move |t| {
            t.leases.insert(name, row);
        });
        Ok(())
    }

    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize> {
        let released = self.released.clone();
        let known = |t: &Tables, item: &QuarantineItem| {
            let same =
                |q: &&QuarantinedItem| q.item.source == item.source && q.item.key == item.key;
            t.quarantine.iter().find(same).is_some_and(|q| !released.contains(&q.number))
        };
        let before = self.quarantined.len();
        for item in items {
            if !self.read(|t| known(t, item)) {
                self.quarantined.insert((item.source.clone(), item.key.clone()));
            }
            let item = item.clone();
            self.change(move |t| {
                let same = |q: &&mut QuarantinedItem| {
                    q.item.source == item.source && q.item.key == item.key
                };
                if let Some(kept) = t.quarantine.iter_mut().find(same) {
                    kept.seen += 1;
                } else {
                    let number = t.number();
                    t.quarantine.push(QuarantinedItem { number, seen: 1, item });
                }
            });
        }
        Ok(self.quarantined.len() - before)
    }

    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()> {
        for QuarantinedItem { seen, item, .. } in items.iter().cloned() {
            self.change(move |t| {
                let same = |q: &&mut QuarantinedItem| {
                    q.item.source == item.source && q.item.key == item.key
                };
                if let Some(kept) = t.quarantine.iter_mut().find(same) {
                    kept.seen = kept.seen.max(seen);
                } else {
                    let number = t.number();
                    t.quarantine.push(QuarantinedItem { number, seen, item });
                }
            });
        }
        Ok(())
    }

    async fn release(&mut self, numbers: &[i64]) -> Result<usize> {
        let before = self.released.len();
        for &number in numbers {
            if self.read(|t| t.quarantine.iter().any(|q| q.number == number)) {
                self.released.insert(number);
            }
            self.change(move |t| t.quarantine.retain(|q| q.number != number));
        }
        Ok(self.released.len() - before)
    }

    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()> {
        for event in events.iter().cloned() {
            self.change(move |t| {
                let number = t.number();
                t.outbox.insert(number, event);
            });
        }
        Ok(())
    }

    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>> {
        let staged = |(number, event): (&i64, &SealedEvent)| StagedEvent {
            number: *number,
            event: Ok(event.clone()),
        };
        Ok(self.read(|t| t.outbox.iter().take(max_events).map(staged).collect()))
    }

    async fn unstage(&mut self, numbers: &[i64]) -> Result<()> {
        for &number in numbers {
            self.change(move |t| {
                t.outbox.remove(&number);
            });
        }
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for change in self.changes {
            change(&mut tables);
        }
        Ok(())
    }
}
