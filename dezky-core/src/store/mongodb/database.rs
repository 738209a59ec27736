//! The client and its database, for data that commits together with the log.

use std::fmt;
use std::future::IntoFuture;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::{Either, select, try_join_all};
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::error::{
    ErrorKind as DriverError, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
};
use mongodb::options::{
    Acknowledgment, DatabaseOptions, FindOptions, ReadConcern, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, ClientSession, Collection, Database};

use super::counter::{MongoCounter, WeakCounter};
use super::outbox::{self, Order};
use super::schema::{self, MongoCollection};
use super::structure;
use crate::store::Anomaly;
use crate::store::operator::{at_start, needs_operator, while_running};
use crate::store::schema::check_version;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// How often a commit with an unknown outcome is retried, in addition to the driver's own retry.
const COMMIT_RETRIES: u32 = 3;

/// The server's time limit for a commit; beyond it, the outcome is unknown.
const MAX_COMMIT_TIME: Duration = Duration::from_secs(10);

/// The longest pause between two attempts.
const MAX_PAUSE_MS: u64 = 24;

/// The database of a [`MongoAuditStore`](super::MongoAuditStore), for other data in it, which
/// commits together with the log's events.
///
/// Whatever the URI says, reads go to the primary with read concern majority, and writes are
/// journaled by the majority. Clones share the connections.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{AuditStore, MongoAuditStore, MongoCollection, MongoConfig};
/// use dezky_core::{Actor, NewEvent};
/// use mongodb::bson::{Document, doc};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = MongoConfig::new("mongodb://127.0.0.1/platform");
/// let log = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await?;
/// let database = log.database();
/// let notes = MongoCollection::new("notes").unique("by_text", doc! { "text": 1 });
/// database.migrate("notes", &[vec![notes]]).await?;
///
/// let event = NewEvent::new("note.created", Actor::user("u-1")).seal(&TokioRuntime);
/// let mut session = database.begin().await?;
/// let notes = database.collection::<Document>("notes");
/// database.run(notes.insert_one(doc! { "text": "milk" }).session(&mut session)).await?;
/// database.commit(session, &[event]).await?;
/// assert_eq!(log.relay(100).await?.appended, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MongoDatabase(Arc<Inner>);

struct Inner {
    client: Client,
    database: Database,
    runtime: Arc<dyn Runtime>,
    bounds: Bounds,
    order: Order,
    /// Whether schemas may be migrated.
    migrate: bool,
    /// Whether the user must be able to write.
    writes: bool,
    /// Whether the server supports snapshots outside of transactions.
    snapshots: bool,
    /// The counters whose streams must end before the client shuts down, which waits for them.
    counters: Mutex<Vec<WeakCounter>>,
}

/// Time limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// For one statement and its answer.
    pub(super) operation: Duration,
    /// For waiting for other writers.
    pub(super) busy: Duration,
}

impl MongoDatabase {
    /// Wraps the database of a client whose server has been checked.
    pub(super) async fn new(
        client: Client,
        name: &str,
        runtime: Arc<dyn Runtime>,
        bounds: Bounds,
        migrate: bool,
        writes: bool,
    ) -> Result<Self> {
        let options = DatabaseOptions::builder()
            .read_concern(ReadConcern::majority())
            .write_concern(durable())
            .selection_criteria(primary())
            .build();
        let database = client.database_with_options(name, options);
        let order = Order::new(&*runtime);
        let mut inner = Inner {
            client,
            database,
            runtime,
            bounds,
            order,
            migrate,
            writes,
            snapshots: false,
            counters: Mutex::default(),
        };
        inner.snapshots = inner.has_snapshots().await?;
        Ok(Self(Arc::new(inner)))
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        self.0.database.name()
    }

    /// A collection, with majority and journal for writes and majority for reads.
    pub fn collection<T: Send + Sync>(&self, name: &str) -> Collection<T> {
        self.0.database.collection(name)
    }

    /// Runs an operation of the driver with the time limit for statements, and converts its error.
    ///
    /// # Errors
    /// Those of [`mongo_error`], and `store_unavailable` beyond the time limit.
    pub async fn run<T, O>(&self, operation: O) -> Result<T>
    where
        O: IntoFuture<Output = mongodb::error::Result<T>>,
    {
        self.0.run(operation).await
    }

    /// Begins a transaction in a new session: one snapshot, and a durable commit. If dropped
    /// before [`commit`](Self::commit), even in the middle of an operation, it changes nothing:
    /// the driver aborts it in the background. Hold it briefly: other writes to the documents that
    /// it has written fail with `store_busy`. The server ends it after its
    /// `transactionLifetimeLimitSeconds`.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn begin(&self) -> Result<ClientSession> {
        self.run(async {
            let mut session = self.0.client.start_session().await?;
            session
                .start_transaction()
                .read_concern(ReadConcern::snapshot())
                .write_concern(durable())
                .selection_criteria(primary())
                .max_commit_time(MAX_COMMIT_TIME)
                .await?;
            // For the driver, the transaction begins when its first operation completes, so it
            // does not abort one that is dropped during that operation. This read locks nothing.
            let schema = self.collection::<RawDocumentBuf>(schema::SCHEMA);
            schema.find_one(doc! {}).session(&mut session).await?;
            Ok(session)
        })
        .await
    }

    /// Stages `events` in the transaction and commits it, so that the mutation and its events are
    /// stored together.
    ///
    /// # Errors
    /// `store_busy` if another transaction wrote the same documents: nothing was changed, and the
    /// whole transaction can be retried. `store_unavailable` if the commit's outcome is unknown.
    pub async fn commit(&self, mut session: ClientSession, events: &[SealedEvent]) -> Result<()> {
        let staged = match crate::store::chained::check_events(events) {
            Ok(()) => outbox::stage(self, &mut session, events).await,
            refused => refused,
        };
        if let Err(error) = staged {
            self.abort(session).await;
            return Err(error);
        }
        self.commit_session(&mut session).await
    }

    /// Aborts a transaction now; a dropped one may block others for a moment. If this does not
    /// reach the server, the server ends the transaction later.
    pub async fn abort(&self, mut session: ClientSession) {
        let _ = self.run(session.abort_transaction()).await;
    }

    /// Commits, and retries while the outcome is unknown, which is idempotent.
    pub(super) async fn commit_session(&self, session: &mut ClientSession) -> Result<()> {
        let mut retries = 0;
        loop {
            let Some(answer) = self.0.bounded(session.commit_transaction()).await else {
                return Err(unknown_outcome());
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) => {
                    retries += 1;
                    if retries > COMMIT_RETRIES {
                        return Err(unknown_outcome());
                    }
                    self.pause(retries).await;
                }
                Err(error) => return Err(while_running(mongo_error(&error))),
            }
        }
    }

    /// Repeats `attempt`, with random pauses, until it does not fail with `store_busy`, for at most
    /// `busy_timeout`: a transaction that conflicts with another must be repeated from its
    /// beginning. An attempt in progress is never interrupted, so that a commit gets its answer;
    /// each of its operations has its own time limit.
    ///
    /// # Errors
    /// Those of `attempt`; `store_busy` beyond the time limit.
    pub async fn retry_busy<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let expired = AtomicBool::new(false);
        let tries = async {
            let mut conflicts = 0;
            loop {
                match attempt().await {
                    Err(error) if error.kind() == ErrorKind::StoreBusy => {
                        if expired.load(Ordering::Relaxed) {
                            return Err(Error::new(
                                ErrorKind::StoreBusy,
                                "other writers held the documents for longer than busy_timeout: try again",
                            ));
                        }
                        conflicts += 1;
                        self.pause(conflicts).await;
                    }
                    answer => return answer,
                }
            }
        };
        let bound = self.0.runtime.sleep(self.0.bounds.busy);
        match select(pin!(tries), bound).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((), tries)) => {
                expired.store(true, Ordering::Relaxed);
                tries.await
            }
        }
    }

    /// Waits a random time from 1 ms to a maximum that grows with `count`, so that writers get out
    /// of step.
    pub(super) async fn pause(&self, count: u32) {
        let most = (1_u64 << count.min(6)).min(MAX_PAUSE_MS);
        let mut drawn = [0; 8];
        self.0.runtime.fill_random(&mut drawn);
        let ms = 1 + u64::from_le_bytes(drawn) % most;
        self.0.runtime.sleep(Duration::from_millis(ms)).await;
    }

    /// Migrates the collections of `component`: `steps[n]` takes version n to n + 1. Steps run one
    /// by one, each is idempotent, and the version is written last, so this is safe if several
    /// processes start together or one dies. Only checks the version if the store was opened
    /// without [`migrate`](super::MongoConfig::migrate).
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if steps are missing and `migrate` is not set;
    /// `auth_failed` if the user can't write, naming the collections.
    pub async fn migrate(&self, component: &str, steps: &[Vec<MongoCollection>]) -> Result<()> {
        self.take_missing_steps(component, steps).await.map_err(at_start)?;
        self.check_rights(steps).await
    }

    /// Refuses a user who can't write the collections of these steps, naming all of them. Does
    /// nothing if the store was opened without `must_write`.
    pub(super) async fn check_rights(&self, steps: &[Vec<MongoCollection>]) -> Result<()> {
        if !self.0.writes {
            return Ok(());
        }
        // Updates no document; the server checks the privilege anyway.
        let tries = steps.iter().flatten().map(MongoCollection::name).map(async |name| {
            let nothing = doc! { "_id": { "$in": [] } };
            let change = doc! { "$set": { "probe": 1 } };
            let collection = self.collection::<Document>(name);
            let tried = self.run(collection.update_one(nothing, change)).await;
            match tried.map_err(at_start) {
                Err(error) if error.kind() == ErrorKind::AuthFailed => Ok(Some(name)),
                tried => tried.map(|_| None),
            }
        });
        let lacking: Vec<&str> = try_join_all(tries).await?.into_iter().flatten().collect();
        if lacking.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::AuthFailed,
            format!(
                "the user can't write {}: grant the user readWrite on the database {}",
                lacking.join(", "),
                self.name()
            ),
        ))
    }

    async fn take_missing_steps(
        &self,
        component: &str,
        steps: &[Vec<MongoCollection>],
    ) -> Result<()> {
        let version = schema::version_of(self, component).await?.unwrap_or(0);
        check_version(version, steps.len())?;
        if version == steps.len() {
            return Ok(());
        }
        if !self.0.migrate {
            return Err(Error::new(
                ErrorKind::StoreForeign,
                format!("the database holds no {component} of this version: migrate it"),
            ));
        }
        schema::take_steps(self, component, version, steps).await
    }

    /// Compares the collections and indexes of a component with those that its `steps` create.
    /// Returns the differences; additional indexes are allowed.
    ///
    /// # Errors
    /// Those of reading the database.
    pub async fn examine(&self, steps: &[Vec<MongoCollection>]) -> Result<Vec<Anomaly>> {
        structure::definitions(self, steps).await
    }

    /// The server's clock.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn now(&self) -> Result<Timestamp> {
        let hello = self.run(self.0.database.run_command(doc! { "hello": 1 })).await?;
        let now = hello.get_datetime("localTime").map_err(|_| {
            Error::new(ErrorKind::StoreUnavailable, "the server returned no time: try again")
        })?;
        Ok(Timestamp::from_millis_clamped(now.timestamp_millis()))
    }

    /// Runs `operation` with the time limit for statements; `None` beyond it.
    pub(super) async fn bounded<O: IntoFuture>(&self, operation: O) -> Option<O::Output> {
        self.0.bounded(operation).await
    }

    /// Watches a growing number, in the field `field` (an Int64) of the document `id` of a
    /// collection.
    pub fn counter(
        &self,
        collection: &'static str,
        id: &'static str,
        field: &'static str,
    ) -> MongoCounter {
        let counter = MongoCounter::new(self.clone(), collection, id, field);
        let mut counters = self.counters();
        counters.retain(WeakCounter::is_there);
        counters.push(counter.downgrade());
        counter
    }

    /// Ends the change streams, then shuts the client down after operations in progress.
    pub(super) async fn close(&self) {
        for counter in self.counters().drain(..) {
            counter.end();
        }
        self.0.client.clone().shutdown().await;
    }

    fn counters(&self) -> MutexGuard<'_, Vec<WeakCounter>> {
        self.0.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn runtime(&self) -> &dyn Runtime {
        &*self.0.runtime
    }

    pub(super) fn order(&self) -> &Order {
        &self.0.order
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.0.bounds
    }

    pub(super) fn database(&self) -> &Database {
        &self.0.database
    }

    /// A session whose reads see one snapshot; `None` if the server does not support that.
    pub(super) async fn snapshot(&self) -> Result<Option<ClientSession>> {
        if !self.0.snapshots {
            return Ok(None);
        }
        self.run(async { self.0.client.start_session().snapshot(true).await }).await.map(Some)
    }

    /// Finds the documents that match, in the session if there is one.
    pub(super) async fn find(
        &self,
        collection: &str,
        filter: mongodb::bson::Document,
        options: FindOptions,
        session: Option<&mut ClientSession>,
    ) -> Result<Vec<RawDocumentBuf>> {
        let collection = self.collection::<RawDocumentBuf>(collection);
        let find = collection.find(filter).with_options(options);
        match session {
            Some(session) => {
                self.run(async {
                    let mut cursor = find.session(&mut *session).await?;
                    cursor.stream(session).try_collect().await
                })
                .await
            }
            None => self.run(async { find.await?.try_collect().await }).await,
        }
    }
}

impl Inner {
    async fn bounded<O: IntoFuture>(&self, operation: O) -> Option<O::Output> {
        let bound = self.runtime.sleep(self.bounds.operation);
        match select(pin!(operation.into_future()), bound).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    }

    async fn run<T, O>(&self, operation: O) -> Result<T>
    where
        O: IntoFuture<Output = mongodb::error::Result<T>>,
    {
        match self.bounded(operation).await {
            Some(answer) => answer.map_err(|error| while_running(mongo_error(&error))),
            None => Err(no_answer()),
        }
    }

    /// Tries a snapshot read, because a server's version does not prove that it supports it.
    async fn has_snapshots(&self) -> Result<bool> {
        let asked = self.bounded(async {
            let mut session = self.client.start_session().snapshot(true).await?;
            let schema = self.database.collection::<RawDocumentBuf>(schema::SCHEMA);
            schema.find_one(doc! {}).session(&mut session).await
        });
        match asked.await {
            Some(Ok(_)) => Ok(true),
            // For a server of version 4.4, the driver itself returns this error.
            Some(Err(error))
                if matches!(
                    &*error.kind,
                    DriverError::Command(_) | DriverError::IncompatibleServer { .. }
                ) =>
            {
                Ok(false)
            }
            Some(Err(error)) => Err(mongo_error(&error)),
            None => Err(no_answer()),
        }
    }
}

impl fmt::Debug for MongoDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoDatabase").field("name", &self.name()).finish_non_exhaustive()
    }
}

pub(super) fn durable() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build()
}

fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary)
}

pub(super) fn no_answer() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "MongoDB does not answer in time: try again")
}

fn unknown_outcome() -> Error {
    Error::new(
        ErrorKind::StoreUnavailable,
        "the outcome of the commit is unknown: repeat the call to find out",
    )
}

/// Converts an error of the driver. The kind tells whether a retry may help; values of documents
/// and of the URI are never included.
pub fn mongo_error(error: &mongodb::error::Error) -> Error {
    let text = match &*error.kind {
        DriverError::Command(command) => {
            return server_error(error, command.code, &command.message);
        }
        DriverError::Write(mongodb::error::WriteFailure::WriteError(write)) => {
            return server_error(error, write.code, &write.message);
        }
        DriverError::Write(mongodb::error::WriteFailure::WriteConcernError(concern)) => {
            return server_error(error, concern.code, &concern.message);
        }
        DriverError::InsertMany(insert) => {
            let write = insert.write_errors.as_deref().unwrap_or_default().first();
            let write = write.map(|write| (write.code, &write.message));
            let concern = insert.write_concern_error.as_ref();
            let (code, message) = write
                .or_else(|| concern.map(|concern| (concern.code, &concern.message)))
                .map_or((0, ""), |(code, message)| (code, message));
            return server_error(error, code, message);
        }
        DriverError::Authentication { .. } => {
            return needs_operator(ErrorKind::AuthFailed, AUTHENTICATION);
        }
        DriverError::SessionsNotSupported => {
            return Error::new(ErrorKind::ConfigInvalid, STANDALONE);
        }
        DriverError::IncompatibleServer { .. } => {
            return Error::new(ErrorKind::ConfigInvalid, TOO_OLD);
        }
        DriverError::InvalidTlsConfig { .. } => {
            return Error::new(
                ErrorKind::ConfigInvalid,
                "TLS can't be set up: check the URI's tlsCAFile and tlsCertificateKeyFile",
            );
        }
        DriverError::InvalidArgument { .. } => {
            return Error::new(
                ErrorKind::ConfigInvalid,
                "the driver refuses the operation: check the URI's options",
            );
        }
        DriverError::Bson(_) | DriverError::InvalidResponse { .. } => {
            return Error::new(
                ErrorKind::StoreCorrupt,
                "the server's answer can't be read: check which server listens at this address",
            );
        }
        DriverError::Io(_) => "the connection broke: try again",
        DriverError::ServerSelection { .. } | DriverError::DnsResolve { .. } => {
            "no primary of the replica set can be reached: check the server and the URI"
        }
        _ => "the server does not answer: try again",
    };
    // The sources of these are about servers and sockets and have no values of documents.
    Error::new(ErrorKind::StoreUnavailable, text).with_source(error.clone())
}

pub(super) const STANDALONE: &str = "the server is a standalone, which has no transactions: start mongod with --replSet rs0 and run rs.initiate() once";
pub(super) const TOO_OLD: &str = "the server is too old: use MongoDB 4.4 or newer";
const AUTHENTICATION: &str =
    "the server refuses the credentials: check user, password and authSource of the URI";

/// Converts an error of the server. Its text is left out, because it may quote documents.
fn server_error(error: &mongodb::error::Error, code: i32, message: &str) -> Error {
    let (kind, text) = match code {
        // Conflicts, and transactions ended by the server.
        24 | 46 | 50 | 112 | 225 | 239 | 244 | 246 | 251 | 267 | 290 => (
            ErrorKind::StoreBusy,
            "another transaction was faster, or this one took too long: try again".into(),
        ),
        // Elections, shutdowns, lost connections between the members.
        6 | 7 | 89 | 91 | 133 | 134 | 189 | 202 | 262 | 9001 | 10107 | 11600 | 11602 | 13435
        | 13436 => (
            ErrorKind::StoreUnavailable,
            "the replica set currently has no primary: try again".into(),
        ),
        64 | 100 => (
            ErrorKind::StoreUnavailable,
            "the majority of the replica set does not acknowledge: check its members".into(),
        ),
        14031 => (ErrorKind::StoreUnavailable, "the server's disk is full: make room".into()),
        13 => {
            let what = "the user lacks a permission: grant the user readWrite on the database";
            return needs_operator(ErrorKind::AuthFailed, what);
        }
        18 | 8000 => return needs_operator(ErrorKind::AuthFailed, AUTHENTICATION),
        20 => (ErrorKind::ConfigInvalid, STANDALONE.into()),
        11000 | 11001 | 12582 => (
            ErrorKind::AlreadyExists,
            match index_of(message) {
                Some(index) => format!("the unique index {index} already has the key"),
                None => "a unique index already has the key".into(),
            },
        ),
        10334 | 17419 | 17420 | 17280 => {
            (ErrorKind::TooLarge, "a document exceeds the server's 16 MiB: send less".into())
        }
        // There is no fixed bound; it depends on the server's memory.
        257 | 388 => (
            ErrorKind::TooLarge,
            "the transaction is too large for the server's cache: send less at a time".into(),
        ),
        2 | 26 | 27 | 85 | 86 => (
            ErrorKind::StoreCorrupt,
            format!(
                "a collection or an index is missing or differs from the schema (error {code}): migrate the database, or restore a backup"
            ),
        ),
        _ if error.contains_label(TRANSIENT_TRANSACTION_ERROR) => {
            (ErrorKind::StoreBusy, format!("the transaction failed (error {code}): try again"))
        }
        _ => (ErrorKind::StoreUnavailable, format!("MongoDB returned error {code}: try again")),
    };
    Error::new(kind, text)
}

/// The index named in a duplicate key error, if it looks like a name and not like a value.
fn index_of(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("index: ")?;
    let name = rest.split([' ', '$']).next()?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.len() <= 64 && name.chars().all(is_name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_named_and_no_value() {
        let text = "E11000 duplicate key error collection: dezky.dezky_tenants index: by_slug dup key: { slug: \"acme\" }";
        assert_eq!(index_of(text), Some("by_slug"));
        assert_eq!(index_of("index: {\"a@b.test\"} dup key"), None);
        assert_eq!(index_of("something else"), None);
    }

    #[test]
    fn only_errors_that_may_pass_are_retryable() {
        let any = mongodb::error::Error::custom("any");
        for (code, kind) in [
            (112, ErrorKind::StoreBusy),
            (251, ErrorKind::StoreBusy),
            (10_107, ErrorKind::StoreUnavailable),
            (64, ErrorKind::StoreUnavailable),
            (303, ErrorKind::StoreUnavailable),
            (13, ErrorKind::AuthFailed),
            (20, ErrorKind::ConfigInvalid),
            (257, ErrorKind::TooLarge),
            (388, ErrorKind::TooLarge),
            (85, ErrorKind::StoreCorrupt),
        ] {
            let error = server_error(&any, code, "dup key: { slug: \"geheim\" }");
            assert_eq!(error.kind(), kind, "{code}");
            assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
        }
    }
}
