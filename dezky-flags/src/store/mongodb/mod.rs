//! Flags in the MongoDB database of an audit log.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::store::{Anomaly, Capabilities, MongoCollection, MongoCounter, MongoDatabase};
use dezky_core::{Result, SealedEvent};
use futures_util::TryStreamExt;
use futures_util::lock::{Mutex as AsyncMutex, MutexGuard};
use mongodb::bson::{Document, doc};
use mongodb::options::ReturnDocument;
use mongodb::{ClientSession, Collection};

use super::settle::{
    NO_TEXT, Row, Settled, State, corrupt, from_text, settle, unfold, unreadable, unsigned, view,
};
use super::{Counts, FlagChange, FlagStore, FlagTable, Known, Snapshot, check_size};
use crate::Flag;

/// The name under which the flags' version is kept.
const COMPONENT: &str = "flags";
/// A document a key: the flag as JSON text, and the version that the key has come to.
/// Without a flag the key's one was removed.
const FLAGS: &str = "dezky_flags";
/// One document, which whoever changes flags changes first.
const STATE: &str = "dezky_flags_state";
/// Keys of one `$in`: a server may compare each document that it finds with all of them.
const KEYS_A_READ: usize = 100;

/// Collections and indexes, a list a version; one that was released never changes.
fn steps() -> Vec<Vec<MongoCollection>> {
    vec![vec![MongoCollection::new(FLAGS), MongoCollection::new(STATE)]]
}

/// Flags in the MongoDB database of an audit log: a change and its event are one
/// commit.
///
/// Clones share the connections. Any number of processes may use one database: those
/// that change flags take turns, those that read wait for nobody.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{MongoAuditStore, MongoConfig};
/// use dezky_flags::store::{FlagStore, MongoFlagStore};
/// # async fn example() -> dezky_core::Result<()> {
/// let config = MongoConfig::new("mongodb://db.internal/platform?replicaSet=rs0");
/// let log = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await?;
/// let store = MongoFlagStore::open(&log.database()).await?;
/// assert!(store.snapshot().await?.flags.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MongoFlagStore {
    database: MongoDatabase,
    /// Writers of this process queue here rather than in conflicts of the server.
    writer: Arc<AsyncMutex<()>>,
    revision: MongoCounter,
}

impl MongoFlagStore {
    /// The version that the flags' collections have with this program.
    pub fn schema_version() -> usize {
        steps().len()
    }

    /// Opens the flags of a log's database, and makes their collections if they are
    /// missing.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the collections are missing and the database
    /// was opened without migrating it.
    pub async fn open(database: &MongoDatabase) -> Result<Self> {
        database.migrate(COMPONENT, &steps()).await?;
        Ok(Self {
            database: database.clone(),
            writer: Arc::default(),
            revision: database.counter(STATE, COMPONENT, "revision"),
        })
    }
}

#[async_trait]
impl FlagStore for MongoFlagStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(&steps()).await
    }

    async fn table(&self) -> Result<FlagTable> {
        let (revision, found) = self.view(doc! {}).await?;
        let (mut flags, mut removed) = (Vec::new(), Vec::new());
        for found in &found {
            match read(found)? {
                (_, _, Some(flag)) => flags.push(flag),
                (key, version, None) => removed.push((key.to_owned(), version)),
            }
        }
        FlagTable::from_parts(revision, flags, removed)
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        let found = self.one(key).await?;
        found.map_or(Ok(None), |found| Ok(read(&found)?.2))
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        let found = self.one(key).await?;
        found.map_or(Ok(0), |found| Ok(known(&found)?.1.last_version()))
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let (revision, found) = self.view(doc! { "flag": { "$exists": true } }).await?;
        // What is not of the type that it should be can't be read either: no flag has
        // the version 0, or is the empty text.
        let stored = found.iter().map(|found| {
            let version = number(found, "version").unwrap_or(0);
            (found.get_str("_id").unwrap_or(""), version, found.get_str("flag").unwrap_or(""))
        });
        Ok(view(revision, stored))
    }

    async fn revision(&self) -> Result<u64> {
        let found = self.database.run(self.states().find_one(doc! {})).await?;
        Ok(state(found.as_ref())?.revision)
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        if changes.is_empty() {
            return self.database.commit(self.database.begin().await?, &events).await;
        }
        let (_turn, mut session, state) = self.take_turn().await?;
        let changed = async {
            let keys: Vec<&str> = changes.iter().map(FlagChange::key).collect();
            let known = self.known(&mut session, &keys).await?;
            let there: Vec<String> = known.keys().cloned().collect();
            self.write(&mut session, &there, settle(&changes, known, state)?).await
        };
        let changed = changed.await;
        self.end_turn(session, changed, &events).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        let (_turn, mut session, state) = self.take_turn().await?;
        if state.revision != 0 {
            self.database.abort(session).await;
            // Empty or the same: the table has the rule.
            return self.table().await?.restore(table);
        }
        let restored = self.write(&mut session, &[], unfold(&table)).await;
        self.end_turn(session, restored, &[]).await
    }

    async fn changed(&self, revision: u64) {
        self.revision.changed(revision).await;
    }
}

impl MongoFlagStore {
    fn flags(&self) -> Collection<Document> {
        self.database.collection(FLAGS)
    }

    fn states(&self) -> Collection<Document> {
        self.database.collection(STATE)
    }

    async fn one(&self, key: &str) -> Result<Option<Document>> {
        self.database.run(self.flags().find_one(doc! { "_id": { "$eq": key } })).await
    }

    /// The revision and the documents that match, by key, in one view.
    async fn view(&self, filter: Document) -> Result<(u64, Vec<Document>)> {
        let mut session = self.database.begin().await?;
        let states = self.states();
        let found = self.database.run(states.find_one(doc! {}).session(&mut session)).await?;
        let State { revision, .. } = state(found.as_ref())?;
        let flags = self.flags();
        let find = flags.find(filter).sort(doc! { "_id": 1 });
        let found = self.database.run(async {
            let mut cursor = find.session(&mut session).await?;
            cursor.stream(&mut session).try_collect().await
        });
        let flags = found.await?;
        // What was read is of the majority once this is acknowledged.
        self.database.commit(session, &[]).await?;
        Ok((revision, flags))
    }

    /// A transaction that excludes other writers until it ends.
    async fn take_turn(&self) -> Result<(MutexGuard<'_, ()>, ClientSession, State)> {
        let take = async || {
            let turn = self.writer.lock().await;
            let mut session = self.database.begin().await?;
            let zero = doc! { "revision": 0_i64, "flags": 0_i64, "keys": 0_i64 };
            let count = doc! { "$inc": { "turns": 1_i64 }, "$setOnInsert": zero };
            let states = self.states();
            let update = states
                .find_one_and_update(doc! { "_id": COMPONENT }, count)
                .upsert(true)
                .return_document(ReturnDocument::After);
            let found = self.database.run(update.session(&mut session)).await?;
            let state = state(found.as_ref())?;
            Ok((turn, session, state))
        };
        self.database.retry_busy(take).await
    }

    async fn end_turn(
        &self,
        session: ClientSession,
        done: Result<()>,
        events: &[SealedEvent],
    ) -> Result<()> {
        if let Err(error) = done {
            self.database.abort(session).await;
            return Err(error);
        }
        self.database.commit(session, events).await
    }

    /// What is known of those of `keys` of which anything is.
    async fn known(
        &self,
        session: &mut ClientSession,
        keys: &[&str],
    ) -> Result<HashMap<String, Known>> {
        let mut all = HashMap::new();
        for keys in keys.chunks(KEYS_A_READ) {
            let flags = self.flags();
            let find = flags.find(doc! { "_id": { "$in": keys } });
            let found: Vec<Document> = self
                .database
                .run(async {
                    let mut cursor = find.session(&mut *session).await?;
                    cursor.stream(&mut *session).try_collect().await
                })
                .await?;
            for found in &found {
                let (key, known) = known(found)?;
                all.insert(key.to_owned(), known);
            }
        }
        Ok(all)
    }

    /// Puts rows in the place of those that are `there`.
    async fn write(
        &self,
        session: &mut ClientSession,
        there: &[String],
        settled: Settled<'_>,
    ) -> Result<()> {
        let flags = self.flags();
        for keys in there.chunks(KEYS_A_READ) {
            let delete = flags.delete_many(doc! { "_id": { "$in": keys } });
            self.database.run(delete.session(&mut *session)).await?;
        }
        let rows: Vec<Document> = settled.rows.iter().map(stored).collect::<Result<_>>()?;
        if !rows.is_empty() {
            self.database.run(flags.insert_many(rows).session(&mut *session)).await?;
        }
        let State { revision, counts } = settled.state;
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let state = doc! {
            "revision": revision.cast_signed(),
            "flags": count(counts.flags),
            "keys": count(counts.keys),
        };
        let states = self.states();
        let update = states.update_one(doc! { "_id": COMPONENT }, doc! { "$set": state });
        self.database.run(update.session(session)).await.map(drop)
    }
}

fn stored(row: &Row<'_>) -> Result<Document> {
    let mut stored = doc! { "_id": row.key, "version": row.version.cast_signed() };
    if let Some(text) = row.text()? {
        stored.insert("flag", text);
    }
    Ok(stored)
}

/// The state of a store that was never changed is not written down.
fn state(found: Option<&Document>) -> Result<State> {
    let Some(found) = found else {
        return Ok(State { revision: 0, counts: Counts::default() });
    };
    let count = |field| number(found, field).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(State {
        revision: number(found, "revision")?,
        counts: Counts { flags: count("flags")?, keys: count("keys")? },
    })
}

/// A key, its version, and its flag unless that was removed.
fn read(found: &Document) -> Result<(&str, u64, Option<Flag>)> {
    let key = found.get_str("_id").map_err(|_| corrupt("a flag lacks its key"))?;
    let version = number(found, "version")?;
    let flag = match found.get("flag") {
        None => None,
        Some(text) => {
            let text = text.as_str().ok_or_else(|| unreadable(key, NO_TEXT))?;
            Some(from_text(key, version, text)?)
        }
    };
    Ok((key, version, flag))
}

fn known(found: &Document) -> Result<(&str, Known)> {
    let key = found.get_str("_id").map_err(|_| corrupt("a flag lacks its key"))?;
    let version = number(found, "version")?;
    let is_live = found.contains_key("flag");
    Ok((key, if is_live { Known::Live(version) } else { Known::Removed(version) }))
}

fn number(found: &Document, field: &'static str) -> Result<u64> {
    unsigned(found.get_i64(field).map_err(|_| corrupt("a count is missing"))?)
}
