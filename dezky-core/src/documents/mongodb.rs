//! Documents in the MongoDB database of an audit log.
//!
//! A document is JSON text in one field, next to the fields that lists use. A key of several
//! columns is [joined](super::joined) in one field, so that its unique index works on every server.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use futures_util::lock::{Mutex as AsyncMutex, MutexGuard};
use mongodb::action::Find;
use mongodb::bson::{Bson, Document as Bsons, doc};
use mongodb::options::ReturnDocument;
use mongodb::{ClientSession, Collection};

use super::{
    Document, Filter, Held, Holds, Index, Key, Kind, Order, Page, Removal, Rows, RowsTx, Schema,
    Set, State, Stored, Text, Unique, Value, Which, Write, corrupt, limit, signed, unsigned,
};
use crate::store::{Anomaly, Capabilities, MongoCollection, MongoCounter, MongoDatabase};
use crate::{Error, Result, SealedEvent};

/// The maximum number of keys per `$in`: a server may compare each document that it finds with all
/// of them.
const KEYS_A_READ: usize = 100;

pub(super) struct MongoRows {
    set: &'static Set,
    database: MongoDatabase,
    /// Queues writers of this process, so that they don't conflict on the server.
    writer: Arc<AsyncMutex<()>>,
    revision: MongoCounter,
}

impl MongoRows {
    pub(super) async fn open(set: &'static Set, database: MongoDatabase) -> Result<Self> {
        database.migrate(set.component, &steps(set)).await?;
        let revision = database.counter(set.state, set.component, "revision");
        Ok(Self { set, database, writer: Arc::default(), revision })
    }

    fn collection(&self, kind: &Kind) -> Collection<Bsons> {
        self.database.collection(kind.table)
    }

    fn states(&self) -> Collection<Bsons> {
        self.database.collection(self.set.state)
    }

    async fn found(
        &self,
        session: &mut ClientSession,
        find: Find<'_, Bsons>,
    ) -> Result<Vec<Bsons>> {
        let found = async {
            let mut cursor = find.session(&mut *session).await?;
            cursor.stream(session).try_collect().await
        };
        self.database.run(found).await
    }

    /// The documents that have one of `keys` in `field`.
    async fn with_keys(
        &self,
        session: &mut ClientSession,
        kind: &Kind,
        field: &str,
        keys: &[&str],
        projection: &Bsons,
    ) -> Result<Vec<Bsons>> {
        let collection = self.collection(kind);
        let mut all = Vec::new();
        for keys in keys.chunks(KEYS_A_READ) {
            let find = collection.find(doc! { field: { "$in": keys } });
            let find = find.projection(projection.clone());
            all.extend(self.found(session, find).await?);
        }
        Ok(all)
    }

    async fn delete(&self, session: &mut ClientSession, kind: &Kind, ids: &[&str]) -> Result<()> {
        let collection = self.collection(kind);
        for ids in ids.chunks(KEYS_A_READ) {
            let delete = collection.delete_many(doc! { "_id": { "$in": ids } });
            self.database.run(delete.session(&mut *session)).await?;
        }
        Ok(())
    }

    /// The state of a set; all zeros before its first change, when no document holds it yet.
    fn state_of(&self, found: Option<&Bsons>) -> Result<State> {
        let (Some(counts), Some(found)) = (self.set.counts, found) else {
            return Ok(State::default());
        };
        let number = |field| number(found, field);
        Ok(State {
            revision: number("revision")?,
            present: number(counts.present)?,
            known: number(counts.known)?,
        })
    }
}

#[async_trait]
impl Rows for MongoRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(&steps(self.set)).await
    }

    async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>> {
        let (field, key) = match (key, kind.owned) {
            (Key::Id(id), _) => ("_id", id),
            (Key::Name(name), _) => (kind.label(), name),
            (Key::Owned(value), Some(owned)) => (owned.field, value),
            (Key::Owned(_), None) => return Ok(None),
        };
        let collection = self.collection(kind);
        let find = collection.find_one(equals(field, key)).projection(content(kind));
        Ok(self.database.run(find).await?.map(|found| stored(kind, &found)))
    }

    async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>> {
        let mut filter = filter_of(kind, &page.filters);
        let sort = match page.order {
            Order::Key { after } => {
                let by_id = kind.name.is_empty() || kind.side_of(&page.filters).is_some();
                let key = if by_id { "_id" } else { kind.label() };
                if let Some(after) = after {
                    filter.insert(key, doc! { "$gt": after });
                }
                doc! { key: 1 }
            }
            Order::Latest { field, after } => {
                if let Some((number, id)) = after {
                    let less = doc! { field: { "$lt": number } };
                    let same = doc! { field: number, "_id": { "$lt": id } };
                    filter.insert("$or", [less, same].to_vec());
                }
                doc! { field: -1, "_id": -1 }
            }
        };
        let collection = self.collection(kind);
        let find = collection.find(filter).sort(sort).limit(limit(page.limit));
        let find = find.projection(content(kind));
        let found = self.database.run(async { find.await?.try_collect::<Vec<_>>().await }).await?;
        Ok(found.iter().map(|found| stored(kind, found)).collect())
    }

    async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)> {
        let mut session = self.database.begin().await?;
        let states = self.states();
        let state = self.database.run(states.find_one(doc! {}).session(&mut session)).await?;
        let state = self.state_of(state.as_ref())?;
        let filter = match which {
            Which::Present => doc! { kind.document: { "$exists": true } },
            Which::Known => doc! {},
        };
        let collection = self.collection(kind);
        let find = collection.find(filter).sort(doc! { "_id": 1 }).projection(content(kind));
        let found = self.found(&mut session, find).await?;
        // Once the commit is acknowledged, a majority has what was read.
        self.database.commit(session, &[]).await?;
        Ok((state, found.iter().map(|found| stored(kind, found)).collect()))
    }

    async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64> {
        let count = self.collection(kind);
        self.database.run(count.count_documents(filter_of(kind, filters))).await
    }

    async fn sum_versions(&self, kind: &'static Kind) -> Result<u64> {
        let sum = doc! { "$group": { "_id": Bson::Null, "sum": { "$sum": "$version" } } };
        let collection = self.collection(kind);
        let sums = async { collection.aggregate([sum]).await?.try_collect::<Vec<_>>().await };
        match self.database.run(sums).await?.first().map(|found| found.get("sum")) {
            None => Ok(0),
            Some(Some(Bson::Int32(sum))) => unsigned(i64::from(*sum)),
            Some(Some(Bson::Int64(sum))) => unsigned(*sum),
            Some(_) => Err(corrupt("a sum of versions is not an integer")),
        }
    }

    async fn state(&self) -> Result<State> {
        let found = self.database.run(self.states().find_one(doc! {})).await?;
        self.state_of(found.as_ref())
    }

    async fn changed(&self, revision: u64) {
        self.revision.changed(revision).await;
    }

    async fn begin(&self) -> Result<(State, Box<dyn RowsTx + '_>)> {
        let take = async || {
            let turn = self.writer.lock().await;
            let mut session = self.database.begin().await?;
            let mut count = doc! { "$inc": { "turns": 1_i64 } };
            if let Some(counts) = self.set.counts {
                let zero = doc! { "revision": 0_i64, counts.present: 0_i64, counts.known: 0_i64 };
                count.insert("$setOnInsert", zero);
            }
            let states = self.states();
            let update = states
                .find_one_and_update(doc! { "_id": self.set.component }, count)
                .upsert(true)
                .return_document(ReturnDocument::After);
            let found = self.database.run(update.session(&mut session)).await?;
            let state = self.state_of(found.as_ref())?;
            Ok((state, MongoTx { rows: self, session, _turn: turn }))
        };
        let (state, tx) = self.database.retry_busy(take).await?;
        Ok((state, Box::new(tx)))
    }
}

struct MongoTx<'a> {
    rows: &'a MongoRows,
    session: ClientSession,
    _turn: MutexGuard<'a, ()>,
}

#[async_trait]
impl RowsTx for MongoTx<'_> {
    async fn held(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<Vec<Held>> {
        let mut projection = doc! { "version": 1 };
        if !kind.name.is_empty() {
            projection.insert(kind.label(), 1);
        }
        if let Some(owned) = kind.owned {
            projection.insert(owned.field, 1);
        }
        // All stored documents of other kinds are present.
        if kind.removal == Removal::Kept {
            projection.insert(kind.document, 1);
        }
        let session = &mut self.session;
        let found = self.rows.with_keys(session, kind, "_id", ids, &projection).await?;
        let held = found.iter().map(|found| {
            let name = (!kind.name.is_empty()).then(|| text(kind, found, kind.label()));
            Ok(Held {
                id: text(kind, found, "_id")?,
                version: number(found, "version")?,
                name: name.transpose()?,
                owned: kind.owned.map_or(Ok(Vec::new()), |o| texts(kind, found, o.field))?,
                is_present: kind.removal != Removal::Kept || found.contains_key(kind.document),
            })
        });
        held.collect()
    }

    async fn holders(
        &mut self,
        kind: &'static Kind,
        unique: Unique,
        values: &[&str],
    ) -> Result<Vec<(String, String)>> {
        let field = match (unique, kind.owned) {
            (Unique::Owned, Some(owned)) => owned.field,
            _ => kind.label(),
        };
        let session = &mut self.session;
        let found = self.rows.with_keys(session, kind, field, values, &doc! { field: 1 }).await?;
        let mut holders = Vec::new();
        for found in &found {
            let id = text(kind, found, "_id")?;
            let values = texts(kind, found, field)?.into_iter();
            holders.extend(values.map(|value| (value, id.clone())));
        }
        Ok(holders)
    }

    async fn erase(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<()> {
        self.rows.delete(&mut self.session, kind, ids).await
    }

    async fn put(&mut self, kind: &'static Kind, writes: &[Write<'_>]) -> Result<()> {
        let there = writes.iter().filter_map(|write| Some(write.held?.id.as_str()));
        let there: Vec<&str> = there.collect();
        self.rows.delete(&mut self.session, kind, &there).await?;
        let collection = self.rows.collection(kind);
        let insert = collection.insert_many(writes.iter().map(|w| to_bson(kind, w.document)));
        self.rows.database.run(insert.session(&mut self.session)).await.map(drop)
    }

    async fn set_state(&mut self, state: State) -> Result<()> {
        let Some(counts) = self.rows.set.counts else { return Ok(()) };
        let set = doc! {
            "revision": signed(state.revision),
            counts.present: signed(state.present),
            counts.known: signed(state.known),
        };
        let states = self.rows.states();
        let id = doc! { "_id": self.rows.set.component };
        let update = states.update_one(id, doc! { "$set": set });
        self.rows.database.run(update.session(&mut self.session)).await.map(drop)
    }

    async fn commit(self: Box<Self>, events: &[SealedEvent]) -> Result<()> {
        let Self { rows, session, _turn } = *self;
        rows.database.commit(session, events).await
    }

    async fn abort(self: Box<Self>) {
        let Self { rows, session, _turn } = *self;
        rows.database.abort(session).await;
    }
}

/// Collections and indexes, one list per version.
fn steps(set: &Set) -> Vec<Vec<MongoCollection>> {
    let steps = match set.schema {
        Schema::OfKinds => return vec![of_kinds(set)],
        Schema::Steps { mongodb, .. } => mongodb,
    };
    let collection = |declared: &super::Collection| {
        declared.indexes.iter().fold(
            MongoCollection::new(declared.name),
            |made, index| match *index {
                Index::Plain(name, fields) => made.index(name, ascending(fields)),
                Index::Unique(name, field) => made.unique(name, ascending(&[field])),
                Index::UniqueIfThere(name, field) => unique_if_there(made, name, field),
            },
        )
    };
    steps.iter().map(|step| step.iter().map(collection).collect()).collect()
}

fn of_kinds(set: &Set) -> Vec<MongoCollection> {
    let kinds = set.kinds.iter().map(|kind| {
        let mut made = MongoCollection::new(kind.table);
        if !kind.name.is_empty() {
            made = made.unique("by_name", ascending(&[kind.label()]));
        }
        if let Some(owned) = kind.owned {
            made = unique_if_there(made, "by_owned", owned.field);
        }
        for field in kind.fields {
            let fields: &[&str] = match &field.holds {
                Holds::Text if !kind.name.is_empty() => &[field.name, kind.label()],
                Holds::Text | Holds::Number => &[field.name, "_id"],
                Holds::Texts(side) => match side.order {
                    Some(order) => &[field.name, order, "_id"],
                    None => &[field.name, "_id"],
                },
            };
            made = made.index(&format!("by_{}", field.name), ascending(fields));
        }
        made
    });
    kinds.chain([MongoCollection::new(set.state)]).collect()
}

fn ascending(fields: &[&str]) -> Bsons {
    fields.iter().map(|&field| (field.to_owned(), Bson::Int32(1))).collect()
}

/// A document that owns nothing lacks the field. Servers use an index with this filter to look up
/// equal texts.
fn unique_if_there(collection: MongoCollection, name: &str, field: &str) -> MongoCollection {
    collection.unique_where(name, ascending(&[field]), doc! { field: { "$gte": "" } })
}

/// A condition that takes its value as a text, whatever it contains.
fn equals(field: &str, text: &str) -> Bsons {
    doc! { field: { "$eq": text } }
}

fn filter_of(kind: &Kind, filters: &[Filter<'_>]) -> Bsons {
    let mut all = Bsons::new();
    if kind.removal == Removal::Kept {
        all.insert(kind.document, doc! { "$exists": true });
    }
    for filter in filters {
        match filter {
            Filter::Is(field, value) => all.extend(equals(field, value)),
            Filter::IsNot(field, value) => {
                all.insert(*field, doc! { "$ne": value, "$exists": true });
            }
        }
    }
    all
}

/// The fields that [`stored`] reads.
fn content(kind: &Kind) -> Bsons {
    doc! { "version": 1, kind.document: 1 }
}

/// Reports unreadable fields as such, so that one bad document does not hide the others.
fn stored(kind: &Kind, found: &Bsons) -> Stored {
    Stored {
        id: found.get_str("_id").unwrap_or_default().to_owned(),
        version: number(found, "version").ok(),
        text: match found.get(kind.document) {
            None => Text::Removed,
            Some(Bson::String(text)) => Text::Json(text.clone()),
            Some(_) => Text::Unreadable,
        },
    }
}

fn to_bson(kind: &Kind, document: &Document) -> Bsons {
    let mut bson = doc! { "_id": &document.id, "version": signed(document.version) };
    if let Some(name) = &document.name {
        bson.insert(kind.label(), name);
    }
    // Absent rather than empty: in a unique index empty lists are equal.
    if let (Some(owned), false) = (kind.owned, document.owned.is_empty()) {
        bson.insert(owned.field, &document.owned);
    }
    for (field, value) in kind.fields.iter().zip(&document.fields) {
        match value {
            Value::Text(None) => continue,
            Value::Text(Some(text)) => bson.insert(field.name, text),
            Value::Number(number) => bson.insert(field.name, *number),
            Value::Texts(texts) => bson.insert(field.name, texts),
        };
    }
    if let Some(text) = &document.text {
        bson.insert(kind.document, text);
    }
    bson
}

fn number(found: &Bsons, field: &str) -> Result<u64> {
    unsigned(found.get_i64(field).map_err(|_| corrupt("a count is missing"))?)
}

fn text(kind: &Kind, found: &Bsons, field: &str) -> Result<String> {
    found.get_str(field).map(str::to_owned).map_err(|_| broken(kind, field))
}

/// The texts of a field; none if a document lacks it.
fn texts(kind: &Kind, found: &Bsons, field: &str) -> Result<Vec<String>> {
    match found.get(field) {
        None => Ok(Vec::new()),
        Some(Bson::String(value)) => Ok(vec![value.clone()]),
        Some(Bson::Array(values)) => {
            Ok(values.iter().filter_map(Bson::as_str).map(str::to_owned).collect())
        }
        Some(_) => Err(broken(kind, field)),
    }
}

fn broken(kind: &Kind, field: &str) -> Error {
    corrupt(format_args!("a document of {} lacks its {field}", kind.table))
}
