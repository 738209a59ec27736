//! Documents in memory: for tests and examples, and as the reference for the other engines.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use futures_util::lock::{Mutex as AsyncMutex, MutexGuard};

use super::{
    Document, Filter, Held, Key, Kind, Order, Page, Rows, RowsTx, Set, State, Stored, Text, Unique,
    Value, Which, Write,
};
use crate::store::{Anomaly, Capabilities};
use crate::{AuditStore, Result, SealedEvent};

/// Documents in memory, lost when the process ends; their events go to any audit log.
///
/// A change is made once its events are staged. If a commit is dropped while a log that is not in
/// memory stages them, they may persist without the change. Clones share the documents.
#[derive(Clone)]
pub struct MemoryDatabase(Arc<Inner>);

struct Inner {
    log: Arc<dyn AuditStore>,
    tables: RwLock<Tables>,
    writer: AsyncMutex<()>,
}

#[derive(Clone, Default)]
struct Tables {
    /// By table and id.
    rows: BTreeMap<&'static str, BTreeMap<String, Arc<Document>>>,
    /// By the set's table of its state.
    states: BTreeMap<&'static str, State>,
}

impl MemoryDatabase {
    /// An empty database whose events are staged into `log`.
    pub fn new(log: Arc<dyn AuditStore>) -> Self {
        let (tables, writer) = (RwLock::default(), AsyncMutex::new(()));
        Self(Arc::new(Inner { log, tables, writer }))
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.0.tables.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for MemoryDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDatabase").finish_non_exhaustive()
    }
}

impl Tables {
    fn of(&self, kind: &Kind) -> impl Iterator<Item = &Arc<Document>> + Clone {
        self.rows.get(kind.table).into_iter().flat_map(BTreeMap::values)
    }

    fn present(&self, kind: &Kind) -> impl Iterator<Item = &Arc<Document>> + Clone {
        self.of(kind).filter(|document| document.text.is_some())
    }

    fn state(&self, set: &Set) -> State {
        self.states.get(set.state).copied().unwrap_or_default()
    }
}

/// A set of documents in memory.
pub(super) struct MemoryRows {
    set: &'static Set,
    database: MemoryDatabase,
}

impl MemoryRows {
    pub(super) fn new(set: &'static Set, database: MemoryDatabase) -> Self {
        Self { set, database }
    }
}

#[async_trait]
impl Rows for MemoryRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        Ok(Vec::new())
    }

    async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>> {
        Ok(self.database.read(|tables| {
            let mut all = tables.of(kind);
            let found = match key {
                Key::Id(id) => tables.rows.get(kind.table).and_then(|rows| rows.get(id)),
                Key::Name(name) => all.find(|document| document.name.as_deref() == Some(name)),
                Key::Owned(value) => all.find(|document| document.owned.iter().any(|o| o == value)),
            };
            found.map(stored)
        }))
    }

    async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>> {
        Ok(self.database.read(|tables| {
            let found = tables.present(kind).filter(|document| {
                page.filters.iter().all(|filter| applies(kind, filter, document))
            });
            match page.order {
                Order::Key { after } => {
                    let by_id = kind.side_of(&page.filters).is_some();
                    let key = |document: &Document| match &document.name {
                        Some(name) if !by_id => name.clone(),
                        _ => document.id.clone(),
                    };
                    let found = found.map(|document| (key(document), document));
                    sorted(found.filter(|(key, _)| after.is_none_or(|after| **key > *after)))
                }
                Order::Latest { field, after } => {
                    let after = after.map(|(number, id)| Reverse((number, id.to_owned())));
                    let place = kind.place(field);
                    let found = found.map(|document| {
                        let number = match document.fields.get(place) {
                            Some(Value::Number(number)) => *number,
                            _ => i64::MIN,
                        };
                        (Reverse((number, document.id.clone())), document)
                    });
                    sorted(found.filter(|(key, _)| after.as_ref().is_none_or(|after| key > after)))
                }
            }
            .take(page.limit)
            .collect()
        }))
    }

    async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)> {
        Ok(self.database.read(|tables| {
            let rows = tables.of(kind);
            let rows = rows.filter(|row| which == Which::Known || row.text.is_some());
            (tables.state(self.set), rows.map(stored).collect())
        }))
    }

    async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64> {
        let all = |document: &&Arc<Document>| {
            filters.iter().all(|filter| applies(kind, filter, document))
        };
        Ok(self.database.read(|tables| tables.present(kind).filter(all).count() as u64))
    }

    async fn sum_versions(&self, kind: &'static Kind) -> Result<u64> {
        Ok(self.database.read(|tables| tables.of(kind).map(|document| document.version).sum()))
    }

    async fn state(&self) -> Result<State> {
        Ok(self.database.read(|tables| tables.state(self.set)))
    }

    async fn changed(&self, _revision: u64) {
        std::future::pending::<()>().await;
    }

    async fn begin(&self) -> Result<(State, Box<dyn RowsTx + '_>)> {
        let _turn = self.database.0.writer.lock().await;
        let next = self.database.read(Tables::clone);
        let state = next.state(self.set);
        Ok((state, Box::new(MemoryTx { rows: self, next, _turn })))
    }
}

/// Changes a copy, which replaces the tables at the commit.
struct MemoryTx<'a> {
    rows: &'a MemoryRows,
    next: Tables,
    _turn: MutexGuard<'a, ()>,
}

#[async_trait]
impl RowsTx for MemoryTx<'_> {
    async fn held(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<Vec<Held>> {
        let Some(rows) = self.next.rows.get(kind.table) else { return Ok(Vec::new()) };
        let found = ids.iter().filter_map(|id| rows.get(*id));
        Ok(found.map(|document| held(document)).collect())
    }

    async fn holders(
        &mut self,
        kind: &'static Kind,
        unique: Unique,
        values: &[&str],
    ) -> Result<Vec<(String, String)>> {
        let wanted: BTreeSet<&str> = values.iter().copied().collect();
        let holders = self.next.of(kind).flat_map(|document| {
            let values: &mut dyn Iterator<Item = &String> = match unique {
                Unique::Name => &mut document.name.iter(),
                Unique::Owned => &mut document.owned.iter(),
            };
            let held = values.filter(|value| wanted.contains(value.as_str()));
            held.map(|value| (value.clone(), document.id.clone())).collect::<Vec<_>>()
        });
        Ok(holders.collect())
    }

    async fn erase(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<()> {
        let rows = self.next.rows.entry(kind.table).or_default();
        for id in ids {
            rows.remove(*id);
        }
        Ok(())
    }

    async fn put(&mut self, kind: &'static Kind, writes: &[Write<'_>]) -> Result<()> {
        let rows = self.next.rows.entry(kind.table).or_default();
        rows.extend(writes.iter().map(|w| (w.document.id.clone(), Arc::new(w.document.clone()))));
        Ok(())
    }

    async fn set_state(&mut self, state: State) -> Result<()> {
        self.next.states.insert(self.rows.set.state, state);
        Ok(())
    }

    async fn commit(self: Box<Self>, events: &[SealedEvent]) -> Result<()> {
        let database = &self.rows.database.0;
        if !events.is_empty() {
            database.log.stage(events.to_vec()).await?;
        }
        *database.tables.write().unwrap_or_else(PoisonError::into_inner) = self.next;
        Ok(())
    }
}

fn sorted<'a, K: Ord + 'a>(
    found: impl Iterator<Item = (K, &'a Arc<Document>)>,
) -> Box<dyn Iterator<Item = Stored> + 'a> {
    let mut found: Vec<_> = found.collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Box::new(found.into_iter().map(|(_, document)| stored(document)))
}

fn applies(kind: &Kind, filter: &Filter<'_>, document: &Document) -> bool {
    let is = |value: &str| match document.fields.get(kind.place(filter.field())) {
        Some(Value::Text(text)) => text.as_deref().map(|text| text == value),
        Some(Value::Texts(texts)) => Some(texts.iter().any(|text| text == value)),
        Some(Value::Number(_)) | None => None,
    };
    match filter {
        Filter::Is(_, value) => is(value) == Some(true),
        Filter::IsNot(_, value) => is(value) == Some(false),
    }
}

fn held(document: &Document) -> Held {
    Held {
        id: document.id.clone(),
        version: document.version,
        name: document.name.clone(),
        owned: document.owned.clone(),
        is_present: document.text.is_some(),
    }
}

fn stored(document: &Arc<Document>) -> Stored {
    Stored {
        id: document.id.clone(),
        version: Some(document.version),
        text: document.text.clone().map_or(Text::Removed, Text::Json),
    }
}
