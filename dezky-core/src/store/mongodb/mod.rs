//! The log in MongoDB: transactions of a replica set, durable on its majority.
//!
//! Tokio-only, like its driver.

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
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::options::{ClientOptions, FindOptions, ReturnDocument};
use mongodb::{Client, ClientSession};
use uuid::Uuid;

use self::codec::{
    compared_fields, event_document, head_fields, lease_fields, quarantine_document,
};
pub use self::counter::MongoCounter;
use self::database::{Bounds, STANDALONE, TOO_OLD};
pub use self::database::{MongoDatabase, mongo_error};
use self::list_scan::MongoScan;
use self::outbox::Staged;
pub use self::schema::MongoCollection;
use self::schema::{CURSORS, EVENTS, LEASES, LOG, OUTBOX, QUARANTINE};
use super::codec::{
    Columns, corrupt, existing_row, lease_row, limit, log_state, missing_log, quarantined_item,
    scanned_row, signed,
};
use super::engine::{
    CursorKey, ExistingRow, LeaseRow, ListScan, NewRow, RowStore, RowTx, ScanEnd, ScanPage,
    StagedEvent, TallyScan,
};
use super::operator::at_start;
use super::{
    Anomaly, Capabilities, ChainedStore, Extent, Head, LogState, QuarantinedItem, ScannedRow,
    TallyCount,
};
use crate::event::uuid_v7;
use crate::source::QuarantineItem;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// The lowest supported wire version, that of MongoDB 4.4: the first whose indexes hold texts of
/// any length, and the first that the driver supports.
const MIN_WIRE_VERSION: i32 = 9;

/// The minimum number of connections: the change streams of log and flags each keep one that waits
/// for the next change, even while no caller listens.
const MIN_POOL_SIZE: u32 = 3;

/// Maximum number of keys per look-up; even with the longest keys, it stays under 16 MiB.
const PROBE_KEYS: usize = 1_000;

/// Maximum number of quarantined items per insert; with 64 KiB each, it stays under 16 MiB.
const INSERT_ITEMS: usize = 200;

/// The configuration of a log in MongoDB. `Debug` does not show the URI, which may hold a
/// password.
#[derive(Clone)]
#[non_exhaustive]
pub struct MongoConfig {
    /// `mongodb://user:password@host1,host2/database?replicaSet=rs0`, or `mongodb+srv://…`. The
    /// default database is `dezky`. Read and write concern and read preference of the URI are
    /// ignored for the log.
    pub uri: String,
    /// Create the collections if they are missing, and migrate them. Without it, opening writes
    /// nothing.
    pub migrate: bool,
    /// Refuse to open as a user who can't write. Without it, reads are served and writes fail with
    /// `store_unavailable`.
    pub must_write: bool,
    /// Allow other collections in the same database. Without it, a database that has collections
    /// but none of ours is refused.
    pub shared: bool,
    /// Maximum number of connections if the URI has no `maxPoolSize`; 20 by default, at least 3.
    pub max_pool_size: u32,
    /// Time limit for making a connection if the URI has no `connectTimeoutMS`; 5 s by default.
    pub connect_timeout: Duration,
    /// Time limit for finding a primary if the URI has no `serverSelectionTimeoutMS`; 5 s by
    /// default.
    pub server_selection_timeout: Duration,
    /// How long a writer waits for others; 5 s by default.
    pub busy_timeout: Duration,
    /// Time limit for a statement; 30 s by default.
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

    /// The driver's options, and the name of the database.
    async fn client_options(&self) -> Result<(ClientOptions, String)> {
        let mut options = ClientOptions::parse(&self.uri).await.map_err(|error| {
            match *error.kind {
                // The parser's message may quote part of the password.
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
/// Needs a replica set (one member is enough) or a sharded cluster, of MongoDB 4.4 or newer.
/// Acknowledged data is in the journals of the majority. Several processes may use one database; a
/// writer locks the log's own document during its transaction. If a writer dies or stalls in a
/// transaction, it blocks the others until the server ends it after
/// `transactionLifetimeLimitSeconds` (60 by default): set it to 10.
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
    /// Connects, and creates or migrates the log's collections if configured.
    ///
    /// # Errors
    /// `config_invalid` for a URI that can't be read and an unsupported server (a standalone, or
    /// older than 4.4), `auth_failed`, `store_unavailable`, `store_foreign`, `store_corrupt`,
    /// `schema_newer`. Nothing was changed then.
    pub async fn open(config: MongoConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        let (options, name) = config.client_options().await?;
        let client = Client::with_options(options).map_err(|error| mongo_error(&error))?;
        Self::with_client(client, &name, config, runtime).await
    }

    /// Like [`open`](Self::open), with your own client. The URI and the connection settings of
    /// `config` are ignored.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
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

    /// Writes events into the outbox within your own transaction, so that they commit with your
    /// mutation or not at all. Assigns no `seq` and does not lock the head. Call
    /// [`relay`](super::AuditStore::relay) after your commit.
    ///
    /// The session must belong to this store's client and be in a transaction. The transaction's
    /// write concern is up to you: [`MongoDatabase::begin`] begins one that is durable.
    pub async fn stage_in(
        &self,
        session: &mut ClientSession,
        events: &[SealedEvent],
    ) -> Result<()> {
        super::chained::check_events(events)?;
        outbox::stage(&self.rows().database, session, events).await
    }

    /// The log's database, for other data in it.
    pub fn database(&self) -> MongoDatabase {
        self.rows().database.clone()
    }

    /// The schema version of the log in this build.
    pub fn schema_version() -> usize {
        schema::known_version()
    }

    /// Shuts the client down, even if it is your own, after waiting for operations in progress.
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

    /// Documents in the order of their keys; all of them if `max_rows` is `None`.
    async fn page(
        &self,
        collection: &str,
        filter: Document,
        max_rows: Option<usize>,
    ) -> Result<Vec<RawDocumentBuf>> {
        // For the server, 0 means no limit.
        if max_rows == Some(0) {
            return Ok(Vec::new());
        }
        let sorted = FindOptions::builder().sort(doc! { "_id": 1 }).limit(max_rows.map(limit));
        self.database.find(collection, filter, sorted.build(), None).await
    }

    /// Begins a transaction that locks the log's document, so that it sees the commits of all
    /// earlier writers and excludes others.
    async fn take_turn(&self) -> Result<MongoTx> {
        let mut session = self.database.begin().await?;
        let log = self.database.collection::<RawDocumentBuf>(LOG);
        // An update without a change would lock nothing.
        let turn = log
            .find_one_and_update(doc! { "_id": "log" }, doc! { "$inc": { "turn": 1_i64 } })
            .return_document(ReturnDocument::After)
            .session(&mut session);
        let document = self.database.run(turn).await?.ok_or_else(missing_log)?;
        let state = log_state(&document)?;
        let next_number = document.int("next_number").map_err(corrupt)?;
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

/// Refuses a server that can't fulfil the contract.
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
        return refused(TOO_OLD);
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

#[async_trait]
impl RowStore for MongoRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        // `busy_timeout` is for other writers; a slow server has its own time limit.
        let (waits, expired) = (AtomicBool::new(true), AtomicBool::new(false));
        let busy = || {
            Error::new(
                ErrorKind::StoreBusy,
                "another writer held the log for longer than busy_timeout: try again; a dead writer blocks it for up to the server's transactionLifetimeLimitSeconds",
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
        Ok(rows.iter().map(scanned_row).collect())
    }

    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>> {
        let options = FindOptions::builder().projection(doc! { "_id": 1 }).limit(1).build();
        let filter = doc! { "id": { "$eq": codec::uuid(id) } };
        let rows = self.database.find(EVENTS, filter, options, None).await?;
        rows.first().map(|row| row.int("_id").map_err(corrupt)).transpose()
    }

    async fn tally(&self, scan: &TallyScan<'_>) -> Result<(Vec<TallyCount>, ScanEnd)> {
        let snapshot = self.database.snapshot().await?;
        let mut index = MongoScan { database: &self.database, snapshot };
        super::list_scan::tally(&mut index, scan).await
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
        found.as_ref().map(cursor_text).transpose()
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        let rows = self.page(CURSORS, doc! {}, None).await?;
        rows.iter()
            .map(|row| {
                let source = row.text("_id").map_err(corrupt)?;
                Ok((source.to_owned(), cursor_text(row)?))
            })
            .collect()
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        let rows = self.page(QUARANTINE, doc! { "_id": { "$gt": after } }, Some(max_items)).await?;
        rows.iter().map(quarantined_item).collect()
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

fn cursor_text(row: &RawDocumentBuf) -> Result<String> {
    Ok(row.text("cursor").map_err(corrupt)?.to_owned())
}

struct MongoTx {
    database: MongoDatabase,
    session: ClientSession,
    head: Head,
    /// The number of the next quarantined item.
    next_number: i64,
    staged: Staged,
    /// Held during the transaction.
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
        found.as_ref().map(cursor_text).transpose()
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
        found.as_ref().map(lease_row).transpose()
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
        Ok(rows.iter().map(existing_row).collect())
    }

    async fn one(&mut self, collection: &str, id: &str) -> Result<Option<RawDocumentBuf>> {
        let collection = self.database.collection::<RawDocumentBuf>(collection);
        let found = collection.find_one(doc! { "_id": { "$eq": id } }).session(&mut self.session);
        self.database.run(found).await
    }

    /// Sets fields of a document, which is created if missing.
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
            // The transaction has looked for the key and excludes other writers.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(corrupt(format_args!("{error}, although no row was found by it")))
            }
            Err(error) => Err(error),
        }
    }

    /// Stores items with their counts, combined with the counts of repeated or existing ones.
    /// Returns how many are new.
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
        // In several messages, because items have up to 64 KiB.
        while !new.is_empty() {
            let rest = new.split_off(new.len().min(INSERT_ITEMS));
            self.insert_documents(QUARANTINE, std::mem::replace(&mut new, rest)).await?;
        }
        Ok(count)
    }

    /// Number and count of the items that are already in the quarantine, by source and key.
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
                    let number = row.int("_id").map_err(corrupt)?;
                    let seen = row.count("seen").map_err(corrupt)?;
                    let key = row.text("key").map_err(corrupt)?.to_owned();
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
    fn unsupported_servers_are_refused_with_the_fix() {
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
    async fn limits_in_the_uri_take_precedence_and_no_password_is_shown() {
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
