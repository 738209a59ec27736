//! The store contract: an append-only, chained log with the cursors, leases,
//! quarantine and outbox that must commit together with it.
//!
//! [`AuditStore`] is what everything else uses. A back end implements the
//! smaller [`RowStore`] (rows in, rows out, one transaction) and is wrapped in
//! [`ChainedStore`], which has the deduplication, the chain and the group commit
//! once for all engines.

mod chained;
mod group;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
mod list_scan;
mod memory;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(any(feature = "postgres", feature = "mongodb"))]
mod operator;
#[cfg(feature = "postgres")]
mod postgres;
mod query;
mod rows;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
mod schema;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod structure;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

pub use self::chained::ChainedStore;
pub use self::memory::{MemoryAuditStore, MemoryRows};
#[cfg(feature = "mongodb")]
pub use self::mongodb::{
    MongoAuditStore, MongoCollection, MongoConfig, MongoCounter, MongoDatabase, MongoRows,
    mongo_error,
};
#[cfg(feature = "postgres")]
pub use self::postgres::{
    PostgresAuditStore, PostgresConfig, PostgresDatabase, PostgresRows, PostgresTransaction,
    postgres_error, postgres_options,
};
pub use self::query::{Filter, ListPage, ListQuery, SourceMatch, TenantMatch};
pub use self::rows::{
    CursorKey, EvidenceRef, ExistingRow, Head, LeaseRow, ListPlace, ListScan, LogState, NewRow,
    RowStore, RowTx, ScanEnd, ScanIndex, ScanPage, SearchColumns, StagedEvent, UnreadableStaged,
};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{
    SqliteAuditStore, SqliteConfig, SqliteDatabase, SqliteRows, SqliteTransaction, sqlite_error,
    sqlite_reader,
};
pub use self::structure::{Anomaly, Extent};
pub use self::tail::Tail;
use crate::integrity::Evidence;
pub use crate::source::MAX_QUARANTINE_RAW_BYTES;
use crate::source::QuarantineItem;
use crate::{Field, Result, Runtime, SealedEvent, StoredEvent, Timestamp};

/// The most events of one append.
pub const MAX_BATCH_EVENTS: usize = 10_000;
/// The most bytes of an ingest cursor.
pub const MAX_CURSOR_BYTES: usize = 64 << 10;
/// The most bytes of the name of a cursor's source.
pub const MAX_CURSOR_SOURCE_BYTES: usize = 128;
/// The most quarantine items of one append.
pub const MAX_BATCH_QUARANTINE: usize = 10_000;
/// The most items that leave the quarantine with one append.
pub const MAX_BATCH_RELEASE: usize = 1_000;
/// The most rows of one [`AuditStore::scan`].
pub const MAX_SCAN_ROWS: usize = 10_000;

/// An append-only audit log.
///
/// There is no update and no delete: retention and erasure are operations of
/// their own. Every method may be called from many tasks at once. Futures must
/// be polled until they are done, or dropped: callers commit in groups, and a
/// future that is kept but not polled can hold up the others of its group.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// What this store can do beyond the contract's core.
    fn capabilities(&self) -> Capabilities;

    /// Appends events, atomically and durably, in their order.
    ///
    /// An event whose `id` or `(source, externalId)` is in the log already, or
    /// earlier in the batch, is a duplicate: its receipt says so, nothing is
    /// stored and no `seq` is used. The cursor advance and the quarantine items
    /// of `options` commit with the events or nothing does. Idempotent: the same
    /// call again gives duplicates and leaves the cursor where it is.
    ///
    /// Not cancel-safe in its answer: if the future is dropped the events are
    /// either all in the log or none is; call again to find out.
    ///
    /// # Errors
    /// `event_invalid` names index, field and bound, and nothing of the batch is
    /// stored; `too_large`; `cursor_moved` if the cursor is neither at `from`
    /// nor at `to`; `fenced` if the lease has another holder; `store_unavailable`
    /// and `store_busy`, after which the outcome is unknown and a retry is safe.
    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended>;

    /// The events of the log that share their id, or their `(source, externalId)`, with
    /// one of `events` (at most [`MAX_BATCH_EVENTS`]), in no particular order: for
    /// writers that decide by what is there what they append. A row that can't be read
    /// is left out.
    ///
    /// Unless overridden it finds none, and callers learn from their receipts: a store
    /// that forwards its calls to another one should forward this one too.
    async fn find_same(&self, events: &[&SealedEvent]) -> Result<Vec<StoredEvent>> {
        let _ = events;
        Ok(Vec::new())
    }

    /// One page of the events that match, newest first by `(at, seq)`:
    /// events of one time stand in the order in which they came.
    ///
    /// # Errors
    /// `query_invalid` names the parameter and its bound; `cursor_invalid`.
    async fn list(&self, query: &ListQuery) -> Result<ListPage>;

    /// The log's identity, beginning and head.
    async fn state(&self) -> Result<LogState>;

    /// At most `max_rows` (bounded by [`MAX_SCAN_ROWS`]) rows from `from_seq` on,
    /// by `seq`, as they stand: for verification, copying and tailing.
    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>>;

    /// Compares the database's structure with the schema, and with [`Extent::Rows`] also
    /// the entries of each index with the rows. Finds whatever hides or changes rows
    /// between the table and a list. Read-only; events may be appended meanwhile.
    ///
    /// Empty if nothing differs, and for stores without such a structure, such as one in
    /// memory.
    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        let _ = extent;
        Ok(Vec::new())
    }

    /// Resolves when an append of this process has taken the log beyond
    /// `next_seq` events. Other processes' appends may not be noticed: combine it
    /// with a timeout, as [`Tail`] does. Cancel-safe.
    async fn changed(&self, next_seq: u64);

    /// Where the ingest of `source` stands.
    async fn cursor(&self, source: &str) -> Result<Option<String>>;

    /// Where all ingests stand, by source.
    async fn cursors(&self) -> Result<Vec<(String, String)>>;

    /// Takes over a part of another log: how copies and backups come in.
    ///
    /// The rows must continue this log's head: their places, hashes and evidence
    /// are checked as `verify` does, and all of the part commits or nothing does.
    /// Cursors replace those that are here; quarantined items get numbers of this
    /// log. Rows that are here already are passed over, so that the same part
    /// again changes nothing.
    ///
    /// # Errors
    /// `state_conflict` if the log has another identity and is not empty, or holds
    /// something else at these places; `store_corrupt` if a row is not what its hash
    /// says; `too_large` beyond [`MAX_BATCH_EVENTS`] rows or [`MAX_BATCH_QUARANTINE`]
    /// items; `store_unavailable` and `store_busy`, after which a retry is safe.
    async fn restore(&self, part: LogPart) -> Result<()>;

    /// Whether the store takes writes now: writes something, takes it back and commits.
    /// The log is what it was. A store that has no such way only looks.
    ///
    /// # Errors
    /// Those that an append would meet, `store_unavailable` above all.
    async fn check_writable(&self) -> Result<()> {
        self.state().await.map(drop)
    }

    /// Takes or renews the lease `name` for `holder`, by the database's clock.
    ///
    /// `None` if somebody else holds it. One that ends later than its length from now was
    /// written by a clock that was ahead, and holds nothing. A renewal in time keeps the token; after
    /// it lapsed or was given back the token is higher, and every append with an
    /// old one is [fenced](AppendOptions::fence) off. `holder` must be unique to
    /// the running instance: two that share a name would share the lease.
    async fn acquire_lease(&self, name: &str, holder: &str, ttl: Duration)
    -> Result<Option<Lease>>;

    /// Gives the lease back early. Nothing happens if it is somebody else's by now.
    async fn release_lease(&self, lease: &Lease) -> Result<()>;

    /// Quarantined items, oldest first, after the item numbered `after`.
    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>>;

    /// Puts events into the outbox in a transaction of its own. Platform code
    /// stages them in the transaction of its mutation instead, by the engine's
    /// `stage_in`.
    async fn stage(&self, events: Vec<SealedEvent>) -> Result<()>;

    /// Moves at most `max_events` from the outbox into the log, oldest first,
    /// in one transaction. An event that is in the log already is only removed;
    /// one that can't be read or breaks a bound goes to the quarantine, so that it
    /// holds nothing up.
    async fn relay(&self, max_events: usize) -> Result<Relayed>;
}

/// What a store can do beyond the contract's core. The conformance suite runs
/// the cases that a bit gates only where it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What is acknowledged is there after the process was killed.
    pub durable: bool,
    /// Several processes may write to one log.
    pub shared: bool,
}

impl Capabilities {
    /// Neither durable nor shared.
    pub const NONE: Self = Self { durable: false, shared: false };

    /// Durable and shared.
    pub const DATABASE: Self = Self { durable: true, shared: true };
}

/// What commits together with the events of an append.
#[derive(Debug, Clone, Default)]
pub struct AppendOptions {
    /// Moves an ingest cursor.
    pub cursor: Option<CursorAdvance>,
    /// Refuses the append unless this lease is still the writer's.
    pub fence: Option<Fence>,
    /// Items for the quarantine.
    pub quarantine: Vec<QuarantineItem>,
    /// Numbers of items that leave the quarantine, because these events are what
    /// became of them. One that is not there any more is passed over.
    pub release: Vec<i64>,
}

/// A move of an ingest cursor, compared and set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorAdvance {
    /// Whose cursor.
    pub source: String,
    /// Where it must be; `None`: nowhere yet.
    pub from: Option<String>,
    /// Where it goes.
    pub to: String,
}

/// A lease's name and token, as a condition of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The lease.
    pub lease: String,
    /// The holder's token.
    pub token: u64,
}

/// A lease that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub name: String,
    /// Who holds it.
    pub holder: String,
    /// Grows with every change of holder.
    pub token: u64,
    /// When it lapses unless renewed, by the database's clock.
    pub expires_at: Timestamp,
}

impl Lease {
    /// The condition for an append.
    pub fn fence(&self) -> Fence {
        Fence { lease: self.name.clone(), token: self.token }
    }
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// One receipt an event, in the order of the batch.
    pub receipts: Vec<Receipt>,
    /// How many quarantine items were new.
    pub new_quarantine: usize,
    /// How many items left the quarantine.
    pub released: usize,
}

impl Appended {
    /// How many events were stored.
    pub fn appended(&self) -> usize {
        self.receipts.iter().filter(|r| r.status == ReceiptStatus::Appended).count()
    }

    /// How many were there already, conflicts included.
    pub fn duplicates(&self) -> usize {
        self.receipts.len() - self.appended()
    }

    /// How many were there already with another content.
    pub fn conflicts(&self) -> usize {
        self.receipts.iter().filter(|r| r.status == ReceiptStatus::Conflict).count()
    }
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// What became of it.
    pub status: ReceiptStatus,
    /// Its place in the log; of a duplicate the place of the one that is there.
    pub seq: u64,
    /// The id of the event at that place.
    pub id: Uuid,
    /// For a conflict the fields that differ.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "field_names")]
    pub differs: Vec<Field>,
}

fn field_names<S: serde::Serializer>(fields: &[Field], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(fields.iter().map(|f| f.name()))
}

/// See [`Receipt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiptStatus {
    /// It is new.
    Appended,
    /// It was there already.
    Duplicate,
    /// One with its identity was there already and says something else; the
    /// first one stays.
    Conflict,
}

/// What became of a relay from the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relayed {
    /// How many went into the log.
    pub appended: usize,
    /// How many were there already, conflicts included.
    pub duplicates: usize,
    /// Of these, those that say something else than the one that is there.
    pub conflicts: usize,
    /// How many could not be read or break a bound, and went to the quarantine.
    pub quarantined: usize,
    /// Whether more is waiting.
    pub more: bool,
}

/// A part of another log, for [`AuditStore::restore`].
#[derive(Debug, Clone)]
pub struct LogPart {
    /// The other log's id.
    pub log_id: Uuid,
    /// Its key, so that its page cursors go on.
    pub cursor_key: CursorKey,
    /// Rows, by `seq`.
    pub rows: Vec<StoredRow>,
    /// Ingest cursors, by source.
    pub cursors: Vec<(String, String)>,
    /// Quarantined items, in the order of their numbers.
    pub quarantine: Vec<QuarantinedItem>,
}

/// A quarantined item as kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedItem {
    /// Its number, growing.
    pub number: i64,
    /// How often it came.
    pub seen: u64,
    /// The item.
    #[serde(flatten)]
    pub item: QuarantineItem,
}

/// A row as it stands, with what verifies it.
#[derive(Debug, Clone)]
pub struct StoredRow {
    /// The event.
    pub stored: StoredEvent,
    /// Its salt, or what is left of it after an erasure.
    pub evidence: Evidence,
    /// The derived columns.
    pub search_columns: SearchColumns,
}

/// A row of a scan, or where it is and why it can't be read.
pub type ScannedRow = Result<StoredRow, UnreadableRow>;

/// A row whose columns can't be what this crate wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    /// Its place.
    pub seq: i64,
    /// The column and what is wrong with it; no values.
    pub problem: String,
}

/// Conveniences on every [`AuditStore`].
pub trait AuditStoreExt {
    /// Follows the log in `seq` order from `from_seq`, waiting for more at the end.
    fn tail(&self, runtime: Arc<dyn Runtime>, from_seq: u64) -> Tail;
}

impl AuditStoreExt for Arc<dyn AuditStore> {
    fn tail(&self, runtime: Arc<dyn Runtime>, from_seq: u64) -> Tail {
        Tail::new(Arc::clone(self), runtime, from_seq)
    }
}
