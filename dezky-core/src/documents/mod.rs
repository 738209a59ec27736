//! Versioned JSON documents in the database of an audit log, so that a change and its
//! events are one commit.
//!
//! A [`Kind`] declares a type of document as data: its table, its unique name, the values
//! that only one document may own, the fields that lists filter by. [`Documents`] reads the
//! documents of a [`Set`] of kinds, and a [`Transaction`] changes them. The rules (versions,
//! names, ownership, counts) are in the transaction, once; the engines below it store rows.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dezky_core::documents::{Document, Documents, Key, Kind, MemoryDatabase, Put, Set};
//! use dezky_core::store::{AuditStore, MemoryAuditStore};
//! use dezky_core::{Actor, NewEvent, rt::TokioRuntime};
//! use serde_json::json;
//!
//! static NOTE: Kind = Kind { name: &["title"], ..Kind::new("note", "dezky_notes") };
//! static NOTES: Set = Set::new("notes", "dezky_notes_state", &[&NOTE]);
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dezky_core::Result<()> {
//! let log = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
//! // The database of a log in SQLite, PostgreSQL or MongoDB is `&log.database()`.
//! let notes = Documents::open(&NOTES, &MemoryDatabase::new(log.clone())).await?;
//!
//! let milk = Document::new("n-1", 1, &json!({"text": "buy some"}))?.named("milk");
//! let event = NewEvent::new("note.created", Actor::user("u-1")).seal(&TokioRuntime);
//! let mut tx = notes.begin().await?;
//! tx.lock(&NOTE, ["n-1"]).await?;
//! tx.put(&NOTE, Put::New, milk)?;
//! tx.stage([event]);
//! tx.commit().await?;
//!
//! let found = notes.get(&NOTE, Key::Name("milk")).await?.expect("is there");
//! assert_eq!(found.read::<serde_json::Value>()?, json!({"text": "buy some"}));
//! assert_eq!(log.relay(100).await?.appended, 1);
//! # Ok(())
//! # }
//! ```

mod kind;
mod memory;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod schema;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod transaction;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::kind::{
    Collection, Counts, Field, Holds, Index, Kind, Owned, Refusal, Removal, Schema, SchemaVersions,
    Set, Side, joined, refuse,
};
pub use self::memory::MemoryDatabase;
pub use self::transaction::{Known, Put, Transaction, check, check_removal};
#[cfg(feature = "mongodb")]
use crate::store::MongoDatabase;
#[cfg(feature = "postgres")]
use crate::store::PostgresDatabase;
#[cfg(feature = "sqlite")]
use crate::store::SqliteDatabase;
use crate::store::{Anomaly, Capabilities};
use crate::{Error, ErrorKind, Result, SealedEvent};

/// The documents of a [`Set`] in one database.
///
/// Clones share the connections. Reads never wait; transactions run one at a time, also across
/// processes. A commit is visible to every read that begins after it.
#[derive(Clone)]
pub struct Documents {
    set: &'static Set,
    rows: Arc<dyn Rows>,
}

impl Documents {
    /// Opens a set of documents; creates or migrates its tables.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if tables are missing and the database was opened
    /// without permission to create them; `config_invalid` or `auth_failed` if the role lacks
    /// rights.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres", feature = "mongodb")),
        expect(clippy::unused_async, reason = "databases other than memory are awaited")
    )]
    pub async fn open(set: &'static Set, database: impl Into<Database>) -> Result<Self> {
        let rows: Arc<dyn Rows> = match database.into() {
            Database::Memory(database) => Arc::new(memory::MemoryRows::new(set, database)),
            #[cfg(feature = "sqlite")]
            Database::Sqlite(database) => Arc::new(sqlite::open(set, database).await?),
            #[cfg(feature = "postgres")]
            Database::Postgres(database) => Arc::new(postgres::open(set, database).await?),
            #[cfg(feature = "mongodb")]
            Database::Mongodb(database) => Arc::new(mongodb::MongoRows::open(set, database).await?),
        };
        Ok(Self { set, rows })
    }

    /// A set of documents in memory.
    pub fn in_memory(set: &'static Set, database: MemoryDatabase) -> Self {
        Self { set, rows: Arc::new(memory::MemoryRows::new(set, database)) }
    }

    /// The engine's abilities.
    pub fn capabilities(&self) -> Capabilities {
        self.rows.capabilities()
    }

    /// Compares the structure of the set's tables with its schema. Empty if they match, and
    /// in memory. Read-only.
    ///
    /// # Errors
    /// The errors of reading the database.
    pub async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.rows.examine().await
    }

    /// One document, or the trace of a removed one if the kind [keeps traces](Removal::Kept).
    /// A key may be any text.
    ///
    /// # Errors
    /// The errors of reading the database.
    pub async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>> {
        self.rows.get(kind, key).await
    }

    /// A page of the documents of a kind, without removed ones.
    ///
    /// # Errors
    /// `query_invalid` if the limit is not 1 to [`MAX_PAGE`]; `internal` for a list that no index
    /// serves, see [`Page`], and for a field that the kind does not declare; the errors of reading the database.
    pub async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>> {
        page.check(kind)?;
        self.rows.page(kind, page).await
    }

    /// All documents of a kind by id, and the state of the set, in one consistent view.
    ///
    /// # Errors
    /// The errors of reading the database.
    pub async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)> {
        self.rows.all(kind, which).await
    }

    /// Counts the documents that match all `filters`.
    ///
    /// # Errors
    /// `internal` for filters that no [`Page`] can have; the errors of reading the database.
    pub async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64> {
        check_filters(kind, filters)?;
        self.rows.count(kind, filters).await
    }

    /// The sum of all versions of a kind: grows with every change as long as nothing is
    /// removed.
    ///
    /// # Errors
    /// The errors of reading the database.
    pub async fn sum_versions(&self, kind: &'static Kind) -> Result<u64> {
        self.rows.sum_versions(kind).await
    }

    /// The revision of the set and the number of its documents; zeros for a set without
    /// [counts](Set::counts). Cheap.
    ///
    /// # Errors
    /// The errors of reading the database.
    pub async fn state(&self) -> Result<State> {
        self.rows.state().await
    }

    /// Resolves when the set's revision may be beyond `revision`, whichever process raised it.
    /// Engines without notifications never resolve this: callers must also poll.
    /// Cancel-safe.
    pub async fn changed(&self, revision: u64) {
        self.rows.changed(revision).await;
    }

    /// Begins a transaction, which excludes all others until it ends.
    ///
    /// # Errors
    /// `store_busy` if others hold the database longer than the configured bound.
    pub async fn begin(&self) -> Result<Transaction<'_>> {
        let (state, tx) = self.rows.begin().await?;
        Ok(Transaction::new(self.set, state, tx))
    }
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Documents").field("set", &self.set.component).finish_non_exhaustive()
    }
}

/// A database that holds documents: that of an audit log.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Database {
    /// This process' memory.
    Memory(MemoryDatabase),
    /// An SQLite file.
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteDatabase),
    /// A PostgreSQL server.
    #[cfg(feature = "postgres")]
    Postgres(PostgresDatabase),
    /// A MongoDB server.
    #[cfg(feature = "mongodb")]
    Mongodb(MongoDatabase),
}

impl From<&MemoryDatabase> for Database {
    fn from(database: &MemoryDatabase) -> Self {
        Self::Memory(database.clone())
    }
}

#[cfg(feature = "sqlite")]
impl From<&SqliteDatabase> for Database {
    fn from(database: &SqliteDatabase) -> Self {
        Self::Sqlite(database.clone())
    }
}

#[cfg(feature = "postgres")]
impl From<&PostgresDatabase> for Database {
    fn from(database: &PostgresDatabase) -> Self {
        Self::Postgres(database.clone())
    }
}

#[cfg(feature = "mongodb")]
impl From<&MongoDatabase> for Database {
    fn from(database: &MongoDatabase) -> Self {
        Self::Mongodb(database.clone())
    }
}

/// A document to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    id: String,
    version: u64,
    name: Option<String>,
    owned: Vec<String>,
    /// In the order of the kind's fields.
    fields: Vec<Value>,
    /// `None` for the trace of a removed document.
    text: Option<String>,
}

impl Document {
    /// A document whose content is `content` as JSON.
    ///
    /// # Errors
    /// `internal` if the content can't be written as JSON.
    pub fn new(id: impl Into<String>, version: u64, content: &impl Serialize) -> Result<Self> {
        let text = serde_json::to_string(content).map_err(|error| {
            Error::new(ErrorKind::Internal, "a document can't be written as JSON")
                .with_source(error)
        })?;
        Ok(Self { text: Some(text), ..Self::removed(id.into(), version) })
    }

    /// The document's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn removed(id: String, version: u64) -> Self {
        Self { id, version, name: None, owned: Vec::new(), fields: Vec::new(), text: None }
    }

    /// Returns the document with its unique name, [`joined`] if it has several columns.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Returns the document with the values that it alone owns, [`joined`] if they have several
    /// columns.
    #[must_use]
    pub fn owning(self, owned: impl IntoIterator<Item = String>) -> Self {
        Self { owned: owned.into_iter().collect(), ..self }
    }

    /// Returns the document with the values of the kind's fields, in their order.
    #[must_use]
    pub fn with(self, fields: impl IntoIterator<Item = Value>) -> Self {
        Self { fields: fields.into_iter().collect(), ..self }
    }
}

/// The value of an indexed field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Holds::Text`]; `None` matches no filter.
    Text(Option<String>),
    /// Of [`Holds::Number`].
    Number(i64),
    /// Of [`Holds::Texts`].
    Texts(Vec<String>),
}

/// A document as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id; empty if that can't be read.
    pub id: String,
    /// Its version, or the version of its removal; `None` if that can't be read.
    pub version: Option<u64>,
    /// Its content.
    pub text: Text,
}

/// The content of a stored document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// JSON, unless somebody tampered with it.
    Json(String),
    /// The document was removed.
    Removed,
    /// The database holds something other than a text.
    Unreadable,
}

impl Stored {
    /// The content.
    ///
    /// # Errors
    /// `store_corrupt` if it can't be read; does not quote the content.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        let Text::Json(text) = &self.text else {
            return Err(corrupt("a document lacks its text"));
        };
        // The cause is left out: it may quote what is in the document.
        serde_json::from_str(text).map_err(|error| {
            corrupt(format_args!("a document can't be read (column {})", error.column()))
        })
    }

    /// The version.
    ///
    /// # Errors
    /// `store_corrupt` if it can't be read.
    pub fn version(&self) -> Result<u64> {
        self.version.ok_or_else(|| corrupt("the version of a document can't be read"))
    }
}

/// The key of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// Its id.
    Id(&'a str),
    /// Its unique name, [`joined`] if it has several columns.
    Name(&'a str),
    /// A value that it owns, [`joined`] if it has several columns.
    Owned(&'a str),
}

/// A condition on a field that the kind declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter<'a> {
    /// The field holds this text, also among others.
    Is(&'static str, &'a str),
    /// The field holds a text that is not this one.
    IsNot(&'static str, &'a str),
}

impl Filter<'_> {
    fn field(&self) -> &'static str {
        match self {
            Self::Is(field, _) | Self::IsNot(field, _) => field,
        }
    }
}

/// The maximum number of documents per page.
pub const MAX_PAGE: usize = 500;

/// A part of a list.
///
/// An index serves these lists; any other is refused:
///
/// - by [key](Order::Key), with any number of filters on a [text](Holds::Text);
/// - by [key](Order::Key), of the documents that hold one of [several texts](Holds::Texts) whose
///   [`Side`] has no order, also with filters on a text;
/// - by a [number](Order::Latest), without filters;
/// - by the number that is the order of a [`Side`], of the documents that hold one of its texts,
///   without other filters.
#[derive(Debug, Clone)]
pub struct Page<'a> {
    /// Conditions that every document of the page meets: at most one per field, none on a number,
    /// and at most one on [texts](Holds::Texts), with [`Filter::Is`].
    pub filters: Vec<Filter<'a>>,
    /// The order, and where the page starts.
    pub order: Order<'a>,
    /// The maximum number of documents, 1 to [`MAX_PAGE`].
    pub limit: usize,
}

impl Page<'_> {
    fn check(&self, kind: &'static Kind) -> Result<()> {
        if !(1..=MAX_PAGE).contains(&self.limit) {
            let problem = format!("limit must be 1 to {MAX_PAGE}");
            return Err(Error::new(ErrorKind::QueryInvalid, problem));
        }
        let side = check_filters(kind, &self.filters)?;
        let filters_text = self.filters.len() > usize::from(side.is_some());
        let is_served = match (self.order, side) {
            (Order::Key { .. }, None) => kind.name.len() <= 1,
            (Order::Key { .. }, Some(side)) => side.order.is_none(),
            (Order::Latest { field, .. }, side) => {
                let is_in_order = match side {
                    None => matches!(kind.field(field)?.holds, Holds::Number),
                    Some(side) => side.order == Some(field),
                };
                is_in_order && !filters_text
            }
        };
        if is_served { Ok(()) } else { Err(internal("no index has the order of this list")) }
    }
}

/// Returns the side table of the filters, if one of them is on texts.
fn check_filters(kind: &'static Kind, filters: &[Filter<'_>]) -> Result<Option<&'static Side>> {
    let (mut fields, mut side) = (Vec::new(), None);
    for filter in filters {
        let field = filter.field();
        let is_served = match (&kind.field(field)?.holds, filter) {
            (Holds::Text, _) => true,
            (Holds::Texts(texts), Filter::Is(..)) => side.replace(texts).is_none(),
            _ => false,
        };
        if !is_served || fields.contains(&field) {
            return Err(internal("no index serves the filters of this list"));
        }
        fields.push(field);
    }
    Ok(side)
}

/// The order of a list, and where a page of it starts. A list that filters by
/// [texts](Holds::Texts) has the order of their [`Side`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order<'a> {
    /// By name, which is one column, or by id if the kind has no names.
    Key {
        /// The key of the last document before the page.
        after: Option<&'a str>,
    },
    /// By a number, then by id, the greatest first.
    Latest {
        /// The number's field.
        field: &'static str,
        /// Number and id of the last document before the page.
        after: Option<(i64, &'a str)>,
    },
}

/// Which documents of a kind are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Documents.
    Present,
    /// Documents and the traces of removed ones.
    Known,
}

/// The state of a set of documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Grows with every change of any document, from 0.
    pub revision: u64,
    /// The number of documents.
    pub present: u64,
    /// The number of documents and of traces of removed ones.
    pub known: u64,
}

/// The row that a transaction finds under an id.
#[derive(Debug, Clone)]
struct Held {
    id: String,
    version: u64,
    /// The name, if the kind has names.
    name: Option<String>,
    /// The values that the document owns.
    owned: Vec<String>,
    is_present: bool,
}

/// A document to be written, and the row that it replaces.
struct Write<'a> {
    document: &'a Document,
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres", feature = "mongodb")),
        expect(dead_code, reason = "memory replaces rows without reading them")
    )]
    held: Option<&'a Held>,
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl Write<'_> {
    /// Whether the document owns the same values as before.
    fn keeps_owned(&self) -> bool {
        self.held.is_some_and(|held| {
            let owned = &self.document.owned;
            held.owned.len() == owned.len() && owned.iter().all(|value| held.owned.contains(value))
        })
    }
}

/// A property that no two documents of a kind share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unique {
    Name,
    Owned,
}

/// The rows of an engine, which checks no rules: the transaction above it does.
#[async_trait]
trait Rows: Send + Sync {
    fn capabilities(&self) -> Capabilities;
    async fn examine(&self) -> Result<Vec<Anomaly>>;
    async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>>;
    async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>>;
    async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)>;
    async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64>;
    async fn sum_versions(&self, kind: &'static Kind) -> Result<u64>;
    async fn state(&self) -> Result<State>;
    async fn changed(&self, revision: u64);

    /// Begins a transaction that excludes other writers until it ends; returns the state too.
    async fn begin(&self) -> Result<(State, Box<dyn RowsTx + '_>)>;
}

/// The transaction of an engine. Dropping it before its commit changes nothing.
#[async_trait]
trait RowsTx: Send {
    /// The rows with one of these ids.
    async fn held(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<Vec<Held>>;

    /// The members of `values` that are taken, each with the id of its document.
    async fn holders(
        &mut self,
        kind: &'static Kind,
        unique: Unique,
        values: &[&str],
    ) -> Result<Vec<(String, String)>>;

    /// Deletes rows.
    async fn erase(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<()>;

    /// Writes documents. Releases all values that the replaced rows own before it writes any, so
    /// that a value may move.
    async fn put(&mut self, kind: &'static Kind, writes: &[Write<'_>]) -> Result<()>;

    /// Writes the state and notifies others of the revision when this commits.
    async fn set_state(&mut self, state: State) -> Result<()>;

    /// Stages the events and commits: all of it or nothing.
    async fn commit(self: Box<Self>, events: &[SealedEvent]) -> Result<()>;

    /// Rolls back. By default this is a drop, after which the engine rolls back before it uses the
    /// connection again.
    async fn abort(self: Box<Self>) {}
}

/// A database that does not hold what this crate wrote.
fn corrupt(problem: impl fmt::Display) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("{problem}: restore the database from a backup"))
}

/// The error of a program that uses documents in a way that their kind does not allow.
fn internal(problem: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Internal, problem)
}

/// A number as databases store it; versions and counts are far below its maximum.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A count or a version as it was stored.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
fn unsigned(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| corrupt("a count is below 0"))
}

/// The limit of a page as a database takes it.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Statements for tests of their plans.
#[cfg(test)]
pub(crate) mod plans {
    use sqlx::QueryBuilder;

    use super::{Filter, Kind, Page, Unique, joined, sql};

    /// The look-ups of a transaction: documents, names and owned values.
    pub(crate) fn look_ups<D: sql::Dialect>(kind: &Kind) -> Vec<QueryBuilder<D>> {
        let key = |columns: &[&str]| joined(&vec!["a"; columns.len()]);
        let holders = |unique, key: String| sql::look_up_holders(kind, unique, &[&*key]);
        let owned = kind.owned.map(|owned| holders(Unique::Owned, key(owned.columns)));
        let name = holders(Unique::Name, key(kind.name));
        let held = sql::look_up_held(kind, &["a"]);
        [held, name].into_iter().chain(owned).flatten().collect()
    }

    pub(crate) fn page<D: sql::Dialect>(kind: &Kind, page: &Page<'_>) -> QueryBuilder<D> {
        sql::page(kind, page)
    }

    pub(crate) fn count<D: sql::Dialect>(kind: &Kind, filters: &[Filter<'_>]) -> QueryBuilder<D> {
        sql::count(kind, filters)
    }
}
