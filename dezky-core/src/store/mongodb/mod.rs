//! The store on MongoDB: transactions of a replica set, durable on its majority.
//!
//! Tokio-only, as its driver is.

mod codec;
mod counter;
mod database;
mod list_scan;
mod outbox;
mod schema;
mod structure;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{Either, select};
use futures_util::lock::{Mutex as AsyncMutex, OwnedMutexGuard};
use mongodb::bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use mongodb::options::{ClientOptions, FindOptions, ReturnDocument};
use mongodb::{Client, ClientSession};
use uuid::Uuid;

use self::codec::{
    compared_fields, corrupt, event_document, existing_row, head_fields, lease_fields, lease_row,
    log_state, quarantine_document, quarantined_item, scanned_row, signed,
};
pub use self::counter::MongoCounter;
use self::database::{Bounds, STANDALONE};
pub use self::database::{MongoDatabase, mongo_error};
use self::list_scan::MongoScan;
use self::outbox::Staged;
pub use self::schema::MongoCollection;
use self::schema::{CURSORS, EVENTS, LEASES, LOG, OUTBOX, QUARANTINE};
use super::operator::at_start;
use super::rows::{
    CursorKey, ExistingRow, Head, LeaseRow, ListScan, LogState, NewRow, RowStore, RowTx, ScanPage,
    StagedEvent,
};
use super::{Anomaly, Capabilities, ChainedStore, Extent, QuarantinedItem, ScannedRow};
use crate::event::uuid_v7;
use crate::source::QuarantineItem;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// The first protocol version that will do, of MongoDB 4.4: the first on which a
/// text of any length can stand in an index, and the first that the driver speaks.
const MIN_WIRE_VERSION: i32 = 9;

/// The fewest connections that will do: the change streams of log and flags each
/// keep one that has been asked for more, also while nobody listens.
const MIN_POOL_SIZE: u32 = 3;

/// The most keys of one probe; with the largest of them it stays under 16 MiB.
const PROBE_KEYS: usize = 1_000;

/// The most quarantined items of one insert: 64 KiB each, they stay under 16 MiB.
const INSERT_ITEMS: usize = 200;

/// How a log on MongoDB is opened. `Debug` does not show the URI, which may hold
/// a password.
#[derive(Clone)]
#[non_exhaustive]
pub struct MongoConfig {
    /// `mongodb://user:password@host1,host2/database?replicaSet=rs0`, or
    /// `mongodb+srv://…`. Without a database it is `dezky`. What it says of read and
    /// write concern and of read preference does not hold for the log.
    pub uri: String,
    /// Make the collections if they are missing, and bring them up to date. Without
    /// it nothing is written by opening.
    pub migrate: bool,
    /// Refuse a user who may not write when it is opened. Without it reads are
    /// served, and what can't be written fails as `store_unavailable`.
    pub must_write: bool,
    /// Let the log's collections stand beside collections of your own. Without it a
    /// database that has collections, but none of ours, is refused.
    pub shared: bool,
    /// Connections at most, 20 unless set, where the URI has no `maxPoolSize`; never
    /// fewer than 3.
    pub max_pool_size: u32,
    /// For a connection to be made, 5 s unless set, where the URI has no
    /// `connectTimeoutMS`.
    pub connect_timeout: Duration,
    /// For a primary to be found, 5 s unless set, where the URI has no
    /// `serverSelectionTimeoutMS`.
    pub server_selection_timeout: Duration,
    /// How long a writer waits for others, 5 s unless set.
    pub busy_timeout: Duration,
    /// How long one statement may take, 30 s unless set.
    pub operation_timeout: Duration,
}

impl MongoConfig {
    /// The defaults for the database at `uri`.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            migrate: true,
            must_write: true,
            shared: false,
            max_pool_size: 20,
            connect_timeout: Duration::from_secs(5),
            server_selection_timeout: Duration::from_secs(5),
            busy_timeout: Duration::from_secs(5),
            operation_timeout: Duration::from_secs(30),
        }
    }

    /// The driver's options for it, and the name of the database.
    async fn client_options(&self) -> Result<(ClientOptions, String)> {
        let mut options = ClientOptions::parse(&self.uri).await.map_err(|error| {
            match *error.kind {
                // What the parser says may quote a part of the password.
                mongodb::error::ErrorKind::InvalidArgument { .. } => Error::new(
                    ErrorKind::ConfigInvalid,
                    "the URI can't be read: write mongodb://user:password@host/database, with special characters of user and password percent-encoded",
                ),
                _ => mongo_error(&error),
            }
        })?;
        options.app_name.get_or_insert_with(|| "dezky".into());
        let pool_size = options.max_pool_size.unwrap_or(self.max_pool_size);
        options.max_pool_size = Some(pool_size.max(MIN_POOL_SIZE));
        options.connect_timeout.get_or_insert(self.connect_timeout);
        options.server_selection_timeout.get_or_insert(self.server_selection_timeout);
        let database = options.default_database.clone().unwrap_or_else(|| "dezky".into());
        Ok((options, database))
    }

    fn bounds(&self) -> Bounds {
        Bounds { operation: self.operation_timeout, busy: self.busy_timeout }
    }
}

impl fmt::Debug for MongoConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoConfig")
            .field("uri", &"..")
            .field("migrate", &self.migrate)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// An [`AuditStore`](super::AuditStore) in a MongoDB database.
///
/// Needs a replica set (one member is enough) or a sharded cluster, of MongoDB 4.4
/// or newer. What is acknowledged is in the journals of the majority. Several
/// processes may use one database; a writer holds the log's own document for the
/// time of its transaction. One that died or stalls in the middle of it holds up
/// the others until the server ends it, after its `transactionLifetimeLimitSeconds`
/// (60 unless set): set it to 10.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{AuditStore, MongoAuditStore, MongoConfig};
/// use dezky_core::{Actor, NewEvent};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let config = MongoConfig::new("mongodb://127.0.0.1/dezky?replicaSet=rs0");
/// let store = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await?;
/// let event = NewEvent::new("tenant.created", Actor::user("u-1")).seal(&TokioRuntime);
/// store.append(vec![event], Default::default()).await?;
/// assert_eq!(store.state().await?.head.next_seq, 1);
/// # Ok(())
/// # }
/// ```
pub type MongoAuditStore = ChainedStore<MongoRows>;

impl MongoAuditStore {
    /// Connects, and if asked makes the log's collections.
    ///
    /// # Errors
    /// `config_invalid` for a URI that can't be read and a server that won't do (a
    /// standalone, one older than 4.4), `auth_failed`, `store_unavailable`,
    /// `store_foreign`, `store_corrupt`, `schema_newer`; then nothing was changed.
    pub async fn open(config: MongoConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        let (options, name) = config.client_options().await?;
        let client = Client::with_options(options).map_err(|error| mongo_error(&error))?;
        Self::with_client(client, &name, config, runtime).await
    }

    /// The same with a client of your own; of `config` neither the URI nor what is
    /// about connections is used.
    pub async fn with_client(
        client: Client,
        database: &str,
        config: MongoConfig,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self> {
        let rows = MongoRows::open(client, database, &config, runtime).await.map_err(|error| {
            at_start(error).context(format_args!("the MongoDB database {database}"))
        })?;
        Ok(Self::new(rows))
    }

    /// Writes events into the outbox within a transaction of your own: they commit
    /// with your mutation or not at all. Takes neither a `seq` nor the head's lock.
    /// Call [`relay`](super::AuditStore::relay) after your commit.
    ///
    /// The session must be of this store's client and in a transaction, whose write
    /// concern is yours: [`MongoDatabase::begin`] makes one that is durable.
    pub async fn stage_in(
        &self,
        session: &mut ClientSession,
        events: &[SealedEvent],
    ) -> Result<()> {
        super::chained::check_events(events)?;
        outbox::stage(&self.rows().database, session, events).await
    }

    /// The log's database, for stores of other things in the same one.
    pub fn database(&self) -> MongoDatabase {
        self.rows().database.clone()
    }

    /// The version that the log's collections have with this program.
    pub fn schema_version() -> usize {
        schema::known_version()
    }

    /// Ends the connections, after those who use them. The client is shut down, also
    /// one of your own.
    pub async fn close(&self) {
        self.rows().database.close().await;
    }
}

/// The rows of a [`MongoAuditStore`].
pub struct MongoRows {
    database: MongoDatabase,
    /// Writers of this process queue here rather than in conflicts.
    writer: Arc<AsyncMutex<()>>,
    head: MongoCounter,
}

impl MongoRows {
    async fn open(
        client: Client,
        name: &str,
        config: &MongoConfig,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self> {
        check_server(&client, config, &*runtime).await?;
        let bounds = config.bounds();
        let (migrates, writes) = (config.migrate, config.must_write);
        let database = MongoDatabase::new(client, name, runtime, bounds, migrates, writes).await?;
        let found = schema::inspect(&database).await?;
        if found.is_behind(schema::known_version(), config.shared, migrates)? {
            let log_id = uuid_v7(database.runtime().now(), database.runtime());
            let mut cursor_key = [0; 32];
            database.runtime().fill_random(&mut cursor_key);
            schema::migrate(&database, codec::fresh_log(log_id, &CursorKey(cursor_key))).await?;
        }
        database.check_rights(&schema::steps()).await?;
        let head = database.counter(LOG, "log", codec::NEXT_SEQ);
        let rows = Self { database, writer: Arc::default(), head };
        rows.state().await?;
        Ok(rows)
    }

    /// Documents in the order of their keys, all of them without a limit.
    async fn page(
        &self,
        collection: &str,
        filter: Document,
        max_rows: Option<usize>,
    ) -> Result<Vec<RawDocumentBuf>> {
        // To the server that would be no limit.
        if max_rows == Some(0) {
            return Ok(Vec::new());
        }
        let sorted = FindOptions::builder().sort(doc! { "_id": 1 }).limit(max_rows.map(limit));
        self.database.find(collection, filter, sorted.build(), None).await
    }

    /// A transaction that holds the log's document, so that it sees what every
    /// writer before it has committed and none comes between.
    async fn take_turn(&self) -> Result<MongoTx> {
        let mut session = self.database.begin().await?;
        let log = self.database.collection::<RawDocumentBuf>(LOG);
        // An update that changes nothing would hold nothing.
        let turn = log
            .find_one_and_update(doc! { "_id": "log" }, doc! { "$inc": { "turn": 1_i64 } })
            .return_document(ReturnDocument::After)
            .session(&mut session);
        let document = self.database.run(turn).await?.ok_or_else(missing_log)?;
        let state = log_state(&document)?;
        let next_number = codec::int(&document, "next_number").map_err(corrupt)?;
        Ok(MongoTx {
            database: self.database.clone(),
            session,
            head: state.head,
            next_number,
            staged: Staged::default(),
            writer: None,
        })
    }
}

/// Refuses a server that can't keep the contract's promises.
async fn check_server(client: &Client, config: &MongoConfig, runtime: &dyn Runtime) -> Result<()> {
    let admin = client.database("admin");
    let hello = async { admin.run_command(doc! { "hello": 1 }).await };
    let bound = runtime.sleep(config.operation_timeout);
    let hello = match select(pin!(hello), bound).await {
        Either::Left((hello, _)) => hello.map_err(|error| mongo_error(&error))?,
        Either::Right(_) => return Err(database::no_answer()),
    };
    check_hello(&hello)
}

fn check_hello(hello: &Document) -> Result<()> {
    let refused = |why: &'static str| Err(Error::new(ErrorKind::ConfigInvalid, why));
    if hello.get_i32("maxWireVersion").unwrap_or(0) < MIN_WIRE_VERSION {
        return refused("the server is too old: MongoDB 4.4 is the first that will do");
    }
    let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    if !is_router && hello.get_str("setName").is_err() {
        return refused(STANDALONE);
    }
    if !hello.contains_key("logicalSessionTimeoutMinutes") {
        return refused("the server has no sessions, so no transactions: use MongoDB 4.4 or newer");
    }
    Ok(())
}

fn missing_log() -> Error {
    corrupt("the log's own document is missing")
}

fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

#[async_trait]
impl RowStore for MongoRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        // The bound is for other writers; a slow server has its own.
        let (waits, expired) = (AtomicBool::new(true), AtomicBool::new(false));
        let busy = || {
            Error::new(
                ErrorKind::StoreBusy,
                "another writer holds the log beyond the bound: try again; one that died holds it up to the server's transactionLifetimeLimitSeconds",
            )
        };
        let turn = async {
            let writer = Arc::clone(&self.writer).lock_owned().await;
            let mut conflicts = 0;
            loop {
                waits.store(false, Ordering::Relaxed);
                match self.take_turn().await {
                    Ok(tx) => return Ok(MongoTx { writer: Some(writer), ..tx }),
                    Err(error) if error.kind() != ErrorKind::StoreBusy => return Err(error),
                    Err(_) if expired.load(Ordering::Relaxed) => return Err(busy()),
                    Err(_) => {}
                }
                waits.store(true, Ordering::Relaxed);
                conflicts += 1;
                self.database.pause(conflicts).await;
            }
        };
        let bound = self.database.runtime().sleep(self.database.bounds().busy);
        let turn = match select(pin!(turn), bound).await {
            Either::Left((turn, _)) => turn?,
            Either::Right(_) if waits.load(Ordering::Relaxed) => return Err(busy()),
            Either::Right(((), turn)) => {
                expired.store(true, Ordering::Relaxed);
                turn.await?
            }
        };
        Ok(Box::new(turn))
    }

    async fn state(&self) -> Result<LogState> {
        let log = self.database.collection::<RawDocumentBuf>(LOG);
        let found = self.database.run(log.find_one(doc! { "_id": "log" })).await?;
        log_state(&found.ok_or_else(missing_log)?)
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        let rows = self.page(EVENTS, doc! { "_id": { "$gte": from_seq } }, Some(max_rows)).await?;
        Ok(rows.iter().map(|row| scanned_row(row)).collect())
    }

    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage> {
        let snapshot = self.database.snapshot().await?;
        let mut index = MongoScan { database: &self.database, snapshot };
        super::list_scan::run(&mut index, scan).await
    }

    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        structure::examine(&self.database, extent, self.state().await?.head).await
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        let cursors = self.database.collection::<RawDocumentBuf>(CURSORS);
        let found = self.database.run(cursors.find_one(doc! { "_id": { "$eq": source } })).await?;
        found.map(|row| cursor_text(&row)).transpose()
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        let rows = self.page(CURSORS, doc! {}, None).await?;
        rows.iter()
            .map(|row| {
                let source = codec::text(row, "_id").map_err(corrupt)?;
                Ok((source.to_owned(), cursor_text(row)?))
            })
            .collect()
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        let rows = self.page(QUARANTINE, doc! { "_id": { "$gt": after } }, Some(max_items)).await?;
        rows.iter().map(|row| quarantined_item(row)).collect()
    }

    async fn has_staged(&self) -> Result<bool> {
        let outbox = self.database.collection::<RawDocumentBuf>(OUTBOX);
        let first = outbox.find_one(doc! {}).projection(doc! { "_id": 1 });
        Ok(self.database.run(first).await?.is_some())
    }

    async fn changed(&self, next_seq: u64) {
        self.head.changed(next_seq).await;
    }
}

fn cursor_text(row: &RawDocument) -> Result<String> {
    Ok(codec::text(row, "cursor").map_err(corrupt)?.to_owned())
}

struct MongoTx {
    database: MongoDatabase,
    session: ClientSession,
    head: Head,
    /// The number of the next item of the quarantine.
    next_number: i64,
    staged: Staged,
    /// Held for the time of the transaction.
    writer: Option<OwnedMutexGuard<()>>,
}

#[async_trait]
impl RowTx for MongoTx {
    async fn head(&mut self) -> Result<Head> {
        Ok(self.head)
    }

    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        let ids: Vec<Bson> = events.iter().map(|sealed| codec::uuid(sealed.event().id)).collect();
        let mut external: BTreeMap<&str, Vec<Bson>> = BTreeMap::new();
        for event in events.iter().map(|sealed| sealed.event()) {
            if let Some(external_id) = event.external_id.as_deref() {
                external.entry(&event.source).or_default().push(external_id.into());
            }
        }
        let mut found = Vec::new();
        for ids in ids.chunks(PROBE_KEYS) {
            found.extend(self.probe(doc! { "id": { "$in": ids } }).await?);
        }
        for (source, external_ids) in external {
            for external_ids in external_ids.chunks(PROBE_KEYS) {
                let keys =
                    doc! { "external_id": { "$in": external_ids }, "source": { "$eq": source } };
                found.extend(self.probe(keys).await?);
            }
        }
        Ok(found)
    }

    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        for rows in rows.chunks(PROBE_KEYS) {
            let documents = rows.iter().map(event_document).collect::<Result<Vec<_>>>()?;
            self.insert_documents(EVENTS, documents).await?;
        }
        Ok(())
    }

    async fn set_head(&mut self, head: Head) -> Result<()> {
        self.set_in_log(head_fields("head", head)?).await?;
        self.head = head;
        Ok(())
    }

    async fn cursor(&mut self, source: &str) -> Result<Option<String>> {
        let found = self.one(CURSORS, source).await?;
        found.map(|row| cursor_text(&row)).transpose()
    }

    async fn set_identity(&mut self, log_id: Uuid, cursor_key: &CursorKey) -> Result<()> {
        self.set_in_log(codec::identity_fields(log_id, cursor_key)).await
    }

    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()> {
        self.set(CURSORS, source, doc! { "cursor": cursor }).await
    }

    async fn now(&mut self) -> Result<Timestamp> {
        self.database.now().await
    }

    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>> {
        let found = self.one(LEASES, name).await?;
        found.map(|row| lease_row(&row)).transpose()
    }

    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()> {
        self.set(LEASES, name, lease_fields(row)?).await
    }

    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize> {
        self.keep(items.iter().map(|item| (item, 1)), u64::saturating_add).await
    }

    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()> {
        self.keep(items.iter().map(|kept| (&kept.item, kept.seen)), u64::max).await.map(drop)
    }

    async fn release(&mut self, numbers: &[i64]) -> Result<usize> {
        self.delete(QUARANTINE, numbers.iter().map(|number| Bson::from(*number)).collect()).await
    }

    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()> {
        outbox::stage(&self.database, &mut self.session, events).await
    }

    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>> {
        self.staged.read(&self.database, &mut self.session, max_events).await
    }

    async fn unstage(&mut self, numbers: &[i64]) -> Result<()> {
        self.delete(OUTBOX, self.staged.keys(numbers)).await.map(drop)
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        self.database.commit_session(&mut self.session).await?;
        drop(self.writer.take());
        Ok(())
    }
}

impl MongoTx {
    async fn probe(&mut self, keys: Document) -> Result<Vec<ExistingRow>> {
        let options = FindOptions::builder().projection(compared_fields()).build();
        let rows = self.database.find(EVENTS, keys, options, Some(&mut self.session)).await?;
        Ok(rows.iter().map(|row| existing_row(row)).collect())
    }

    async fn one(&mut self, collection: &str, id: &str) -> Result<Option<RawDocumentBuf>> {
        let collection = self.database.collection::<RawDocumentBuf>(collection);
        let found = collection.find_one(doc! { "_id": { "$eq": id } }).session(&mut self.session);
        self.database.run(found).await
    }

    /// Sets fields of a document, which is made if it is not there.
    async fn set(&mut self, collection: &str, id: &str, fields: Document) -> Result<()> {
        let collection = self.database.collection::<Document>(collection);
        let update = collection
            .update_one(doc! { "_id": { "$eq": id } }, doc! { "$set": fields })
            .upsert(true)
            .session(&mut self.session);
        self.database.run(update).await.map(drop)
    }

    async fn set_in_log(&mut self, fields: Document) -> Result<()> {
        self.set(LOG, "log", fields).await
    }

    async fn delete(&mut self, collection: &str, ids: Vec<Bson>) -> Result<usize> {
        let collection = self.database.collection::<Document>(collection);
        let mut deleted = 0;
        for ids in ids.chunks(PROBE_KEYS) {
            let delete = collection.delete_many(doc! { "_id": { "$in": ids } });
            deleted += self.database.run(delete.session(&mut self.session)).await?.deleted_count;
        }
        Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
    }

    async fn insert_documents(&mut self, collection: &str, documents: Vec<Document>) -> Result<()> {
        let collection = self.database.collection::<Document>(collection);
        let insert = collection.insert_many(documents).session(&mut self.session);
        match self.database.run(insert).await {
            Ok(_) => Ok(()),
            // The transaction has looked, and keeps other writers out.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(corrupt(format_args!("{error}, though the log has not")))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps items as often seen as said; of one that is there already, or comes
    /// twice, the counts are combined. Returns how many are new.
    async fn keep<'i>(
        &mut self,
        items: impl Iterator<Item = (&'i QuarantineItem, u64)>,
        combine: fn(u64, u64) -> u64,
    ) -> Result<usize> {
        let mut counts: HashMap<(&str, &str), u64> = HashMap::new();
        let mut distinct = Vec::new();
        for (item, seen) in items {
            match counts.entry((&item.source, &item.key)) {
                Entry::Occupied(mut count) => *count.get_mut() = combine(*count.get(), seen),
                Entry::Vacant(first) => {
                    first.insert(seen);
                    distinct.push(item);
                }
            }
        }
        let known = self.kept(&distinct).await?;
        let mut raised: BTreeMap<u64, Vec<Bson>> = BTreeMap::new();
        let mut new = Vec::new();
        for item in distinct {
            let seen = counts[&(item.source.as_str(), item.key.as_str())];
            if let Some((number, before)) = known.get(&(item.source.clone(), item.key.clone())) {
                let by = combine(*before, seen).saturating_sub(*before);
                raised.entry(by).or_default().push((*number).into());
            } else {
                new.push(quarantine_document(self.next_number, seen, item)?);
                self.next_number += 1;
            }
        }
        for (by, numbers) in raised.into_iter().filter(|(by, _)| *by > 0) {
            let by = doc! { "$inc": { "seen": signed(by)? } };
            let quarantine = self.database.collection::<Document>(QUARANTINE);
            for numbers in numbers.chunks(PROBE_KEYS) {
                let raise = quarantine.update_many(doc! { "_id": { "$in": numbers } }, by.clone());
                self.database.run(raise.session(&mut self.session)).await?;
            }
        }
        let count = new.len();
        if count > 0 {
            self.set_in_log(doc! { "next_number": self.next_number }).await?;
        }
        // Items are up to 64 KiB: not all of them in one message.
        while !new.is_empty() {
            let rest = new.split_off(new.len().min(INSERT_ITEMS));
            self.insert_documents(QUARANTINE, std::mem::replace(&mut new, rest)).await?;
        }
        Ok(count)
    }

    /// Number and count of those that are in the quarantine, by source and key.
    async fn kept(
        &mut self,
        items: &[&QuarantineItem],
    ) -> Result<HashMap<(String, String), (i64, u64)>> {
        let mut by_source: BTreeMap<&str, Vec<Bson>> = BTreeMap::new();
        for item in items {
            by_source.entry(&item.source).or_default().push(item.key.as_str().into());
        }
        let mut kept = HashMap::new();
        for (source, keys) in by_source {
            for keys in keys.chunks(PROBE_KEYS) {
                let filter = doc! { "source": { "$eq": source }, "key": { "$in": keys } };
                let options =
                    FindOptions::builder().projection(doc! { "key": 1, "seen": 1 }).build();
                let session = Some(&mut self.session);
                for row in self.database.find(QUARANTINE, filter, options, session).await? {
                    let (number, seen) = codec::number_and_count(&row)?;
                    let key = codec::text(&row, "key").map_err(corrupt)?.to_owned();
                    kept.insert((source.to_owned(), key), (number, seen));
                }
            }
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_will_not_do_are_refused_with_the_fix() {
        let good = doc! {
            "maxWireVersion": 9, "setName": "rs0", "logicalSessionTimeoutMinutes": 30,
        };
        check_hello(&good).unwrap();
        let mut router = good.clone();
        router.remove("setName");
        let refused = check_hello(&router).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
        assert!(refused.to_string().contains("--replSet rs0 and run rs.initiate()"), "{refused}");
        router.insert("msg", "isdbgrid");
        check_hello(&router).unwrap();
        let mut old = good.clone();
        old.insert("maxWireVersion", 8);
        assert!(check_hello(&old).unwrap_err().to_string().contains("4.4"));
        let mut sessionless = good;
        sessionless.remove("logicalSessionTimeoutMinutes");
        assert!(check_hello(&sessionless).unwrap_err().to_string().contains("no sessions"));
    }

    #[tokio::test]
    async fn what_the_uri_says_of_limits_holds_and_no_password_is_shown() {
        let uri = "mongodb://u:geheim@127.0.0.1/audit?maxPoolSize=3";
        let config = MongoConfig::new(uri);
        let (options, database) = config.client_options().await.unwrap();
        assert_eq!((options.max_pool_size, database.as_str()), (Some(3), "audit"));
        assert_eq!(options.server_selection_timeout, Some(Duration::from_secs(5)));
        let (options, _) =
            MongoConfig::new("mongodb://h/x?maxPoolSize=1").client_options().await.unwrap();
        assert_eq!(options.max_pool_size, Some(MIN_POOL_SIZE));
        assert!(!format!("{config:?}").contains("geheim"));
        let (_, database) = MongoConfig::new("mongodb://h").client_options().await.unwrap();
        assert_eq!(database, "dezky");
        for uri in ["mongodb://u:ge@heim@h/x", "postgres://h", "mongodb://u:geheim@", ""] {
            let refused = MongoConfig::new(uri).client_options().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConfigInvalid, "{uri}");
            assert!(!format!("{refused:?}").contains("heim"), "{refused:?}");
        }
    }
}
