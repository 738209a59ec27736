//! Your own store: provide rows and a transaction; the chain, deduplication, group commit, leases
//! and page cursors come from `ChainedStore`.
//!
//! This one is a plain struct behind a lock. A transaction works on a copy and puts it back at
//! commit. Replace it with your engine; the tests below are the whole conformance suite.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use dezky_core::rt::TokioRuntime;
use dezky_core::source::QuarantineItem;
use dezky_core::store::engine::{
    CursorKey, ExistingRow, LeaseRow, ListScan, NewRow, RowStore, RowTx, ScanEnd, ScanPage,
    StagedEvent,
};
use dezky_core::store::{
    Capabilities, ChainedStore, Head, LogState, QuarantinedItem, ScannedRow, StoredRow,
};
use dezky_core::testkit::{BoxFuture, Reopen, StoreHarness};
use dezky_core::{AuditStore, Result, Runtime, SealedEvent, Timestamp};
use futures_util::lock::{Mutex as AsyncMutex, OwnedMutexGuard};
use uuid::Uuid;

/// The engine's complete data.
#[derive(Clone)]
struct Tables {
    state: LogState,
    rows: BTreeMap<u64, StoredRow>,
    cursors: BTreeMap<String, String>,
    leases: HashMap<String, LeaseRow>,
    quarantine: Vec<QuarantinedItem>,
    outbox: BTreeMap<i64, SealedEvent>,
    staged: i64,
    kept: i64,
}

/// Readers see the last committed tables; writers take turns.
struct OwnRows {
    committed: Arc<Mutex<Tables>>,
    writer: Arc<AsyncMutex<()>>,
}

struct OwnTx {
    tables: Tables,
    committed: Arc<Mutex<Tables>>,
    _writer: OwnedMutexGuard<()>,
}

fn open() -> ChainedStore<OwnRows> {
    let mut secret = [[0; 32]; 2];
    for bytes in &mut secret {
        TokioRuntime.fill_random(bytes);
    }
    let log_id = uuid::Uuid::from_slice(&secret[0][..16]).expect("16 bytes are a UUID");
    let state =
        LogState { log_id, cursor_key: CursorKey(secret[1]), base: Head::EMPTY, head: Head::EMPTY };
    let tables = Tables {
        state,
        rows: BTreeMap::new(),
        cursors: BTreeMap::new(),
        leases: HashMap::new(),
        quarantine: Vec::new(),
        outbox: BTreeMap::new(),
        staged: 0,
        kept: 0,
    };
    ChainedStore::new(OwnRows { committed: Arc::new(Mutex::new(tables)), writer: Arc::default() })
}

impl OwnRows {
    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.committed.lock().expect("no reader panics"))
    }
}

#[async_trait]
impl RowStore for OwnRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        let tables = self.read(Tables::clone);
        let committed = Arc::clone(&self.committed);
        Ok(Box::new(OwnTx { tables, committed, _writer: writer }))
    }

    async fn state(&self) -> Result<LogState> {
        Ok(self.read(|t| t.state.clone()))
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        let from = u64::try_from(from_seq).unwrap_or(0);
        Ok(self.read(|t| {
            t.rows.range(from..).take(max_rows).map(|(_, row)| Ok(row.clone())).collect()
        }))
    }

    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>> {
        Ok(self.read(|t| {
            t.rows
                .iter()
                .find(|(_, row)| row.stored.event.id == id)
                .map(|(seq, _)| i64::try_from(*seq).unwrap())
        }))
    }

    /// `Filter::matches` is the definition; engines with indexes are faster.
    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage> {
        let mut events = self.read(|t| {
            let matching =
                |row: &&StoredRow| scan.filter.matches(&row.stored.event, &row.search_columns);
            t.rows.values().filter(matching).map(|row| row.stored.clone()).collect::<Vec<_>>()
        });
        events.sort_by_key(|e| std::cmp::Reverse((e.event.at, e.seq)));
        events.retain(|e| scan.before.is_none_or(|position| (e.event.at, e.seq) < position));
        let end = if events.len() < scan.max_rows { ScanEnd::Exhausted } else { ScanEnd::Full };
        events.truncate(scan.max_rows);
        Ok(ScanPage { events, end })
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        Ok(self.read(|t| t.cursors.get(source).cloned()))
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        let later = |item: &&QuarantinedItem| item.number > after;
        Ok(self.read(|t| t.quarantine.iter().filter(later).take(max_items).cloned().collect()))
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        let pair = |(source, cursor): (&String, &String)| (source.clone(), cursor.clone());
        Ok(self.read(|t| t.cursors.iter().map(pair).collect()))
    }

    async fn has_staged(&self) -> Result<bool> {
        Ok(self.read(|t| !t.outbox.is_empty()))
    }
}

#[async_trait]
impl RowTx for OwnTx {
    async fn head(&mut self) -> Result<Head> {
        Ok(self.tables.state.head)
    }

    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        let same = |row: &&StoredRow| {
            let there = &row.stored.event;
            events.iter().map(|sealed| sealed.event()).any(|event| {
                let external = (&there.source, &there.external_id);
                there.id == event.id
                    || external.1.is_some() && external == (&event.source, &event.external_id)
            })
        };
        let existing = |row: &StoredRow| {
            ExistingRow::of(row.stored.seq, &row.stored.event, row.stored.erased.clone())
        };
        Ok(self.tables.rows.values().filter(same).map(existing).collect())
    }

    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        self.tables.rows.extend(rows.iter().map(|row| (row.seq, row.to_stored())));
        Ok(())
    }

    async fn set_head(&mut self, head: Head) -> Result<()> {
        self.tables.state.head = head;
        Ok(())
    }

    async fn cursor(&mut self, source: &str) -> Result<Option<String>> {
        Ok(self.tables.cursors.get(source).cloned())
    }

    async fn set_identity(&mut self, log_id: uuid::Uuid, cursor_key: &CursorKey) -> Result<()> {
        (self.tables.state.log_id, self.tables.state.cursor_key) = (log_id, *cursor_key);
        Ok(())
    }

    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()> {
        self.tables.cursors.insert(source.to_owned(), cursor.to_owned());
        Ok(())
    }

    async fn now(&mut self) -> Result<Timestamp> {
        Ok(TokioRuntime.now())
    }

    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>> {
        Ok(self.tables.leases.get(name).cloned())
    }

    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()> {
        self.tables.leases.insert(name.to_owned(), row.clone());
        Ok(())
    }

    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize> {
        let Tables { quarantine: kept, kept: last, .. } = &mut self.tables;
        let before = kept.len();
        for item in items {
            let same = |k: &&mut QuarantinedItem| {
                (&k.item.source, &k.item.key) == (&item.source, &item.key)
            };
            if let Some(known) = kept.iter_mut().find(same) {
                known.seen += 1;
            } else {
                *last += 1;
                kept.push(QuarantinedItem { number: *last, seen: 1, item: item.clone() });
            }
        }
        Ok(kept.len() - before)
    }

    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()> {
        let Tables { quarantine: kept, kept: last, .. } = &mut self.tables;
        for QuarantinedItem { seen, item, .. } in items {
            let same = |k: &&mut QuarantinedItem| {
                (&k.item.source, &k.item.key) == (&item.source, &item.key)
            };
            if let Some(known) = kept.iter_mut().find(same) {
                known.seen = known.seen.max(*seen);
            } else {
                *last += 1;
                kept.push(QuarantinedItem { number: *last, seen: *seen, item: item.clone() });
            }
        }
        Ok(())
    }

    async fn release(&mut self, numbers: &[i64]) -> Result<usize> {
        let kept = &mut self.tables.quarantine;
        let before = kept.len();
        kept.retain(|item| !numbers.contains(&item.number));
        Ok(before - kept.len())
    }

    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()> {
        for event in events {
            self.tables.staged += 1;
            self.tables.outbox.insert(self.tables.staged, event.clone());
        }
        Ok(())
    }

    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>> {
        let oldest = self.tables.outbox.iter().take(max_events);
        let staged = |(number, event): (&i64, &SealedEvent)| StagedEvent {
            number: *number,
            event: Ok(event.clone()),
        };
        Ok(oldest.map(staged).collect())
    }

    async fn unstage(&mut self, numbers: &[i64]) -> Result<()> {
        self.tables.outbox.retain(|number, _| !numbers.contains(number));
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        *self.committed.lock().expect("no reader panics") = self.tables;
        Ok(())
    }
}

struct Own;

#[async_trait]
impl StoreHarness for Own {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio::runtime::Runtime::new().expect("starts").block_on(case);
    }

    async fn open(&self, _which: Reopen) -> Arc<dyn AuditStore> {
        Arc::new(open())
    }
}

dezky_core::audit_store_conformance!(Own);
