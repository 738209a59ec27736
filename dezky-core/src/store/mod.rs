//! The store contract: an append-only, chained log with the cursors, leases, quarantine and outbox
//! that must commit together with it.
//!
//! Everything else uses an [`AuditStore`]. The stores of this crate are a [`ChainedStore`], which
//! does deduplication, the chain and group commit once for all engines, on top of an engine's
//! rows. The types for writing another engine are in [`engine`].

mod chained;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
mod codec;
pub mod engine;
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
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
mod schema;
mod sealed;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod structure;
mod tail;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

pub use self::chained::ChainedStore;
use self::engine::{CursorKey, SearchColumns};
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
pub use self::query::{ListPage, ListQuery};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{
    SqliteAuditStore, SqliteConfig, SqliteDatabase, SqliteRows, SqliteTransaction, sqlite_error,
    sqlite_reader,
};
pub use self::structure::{Anomaly, Extent};
pub use self::tail::Tail;
pub use self::tally::{Dimension, Tally, TallyCount, TallyInterval, TallyQuery};
use crate::integrity::{Evidence, GENESIS};
pub use crate::source::MAX_QUARANTINE_RAW_BYTES;
use crate::source::QuarantineItem;
use crate::{Field, Result, Runtime, SealedEvent, StoredEvent, Timestamp};

/// Maximum number of events per append.
pub const MAX_BATCH_EVENTS: usize = 10_000;
/// Maximum length of an ingest cursor in bytes.
pub const MAX_CURSOR_BYTES: usize = 64 << 10;
/// Maximum length of the name of a cursor's source in bytes.
pub const MAX_CURSOR_SOURCE_BYTES: usize = 128;
/// Maximum number of quarantine items per append.
pub const MAX_BATCH_QUARANTINE: usize = 10_000;
/// Maximum number of items that one append releases from the quarantine.
pub const MAX_BATCH_RELEASE: usize = 1_000;
/// Maximum number of rows per [`AuditStore::scan`].
pub const MAX_SCAN_ROWS: usize = 10_000;

/// An append-only audit log.
///
/// There is no update and no delete. Every method may be called from many tasks at once. Poll
/// futures to completion or drop them: appends commit in groups, and a future that is kept without
/// being polled can block the others of its group.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// The store's capabilities beyond the contract's core.
    fn capabilities(&self) -> Capabilities;

    /// Appends events atomically and durably, in their order.
    ///
    /// An event whose `id` or `(source, externalId)` is in the log already, or earlier in the
    /// batch, is a duplicate: its receipt says so, nothing is stored and no `seq` is used. The
    /// cursor advance and the quarantine items of `options` commit together with the events.
    /// Idempotent: repeating the call gives duplicates and leaves the cursor unchanged.
    ///
    /// If the future is dropped, either all events are in the log or none; repeat the call to
    /// find out.
    ///
    /// # Errors
    /// `event_invalid` names index, field and bound, and nothing of the batch is stored;
    /// `too_large`; `cursor_moved` if the cursor is neither at `from` nor at `to`; `fenced` if the
    /// lease has another holder; `store_unavailable` and `store_busy`, after which the outcome is
    /// unknown and a retry is safe.
    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended>;

    /// The events of the log that share their id, or their `(source, externalId)`, with one of
    /// `events` (at most [`MAX_BATCH_EVENTS`]), in no particular order. For writers whose batch
    /// depends on what is in the log. Unreadable rows are left out.
    ///
    /// The default finds none, and callers learn of duplicates from their receipts. A store that
    /// forwards its calls to another store should forward this one too.
    async fn find_same(&self, events: &[&SealedEvent]) -> Result<Vec<StoredEvent>> {
        let _ = events;
        Ok(Vec::new())
    }

    /// One page of the events that match, newest first by `(at, seq)`: events with equal times are
    /// in the order in which they were appended.
    ///
    /// # Errors
    /// `query_invalid` names the parameter and its bound; `cursor_invalid`.
    async fn list(&self, query: &ListQuery) -> Result<ListPage>;

    /// The event with this id or at this position; `None` if the log has none.
    ///
    /// # Errors
    /// `pruned` if the position was archived; `store_corrupt` if its row can't be read.
    async fn get(&self, key: EventKey) -> Result<Option<StoredEvent>>;

    /// Counts the events that match, by hour or day. Examines a bounded number of rows, newest
    /// first: [`Tally::counted_from`] says how far it came.
    ///
    /// # Errors
    /// `query_invalid` names the parameter and its bound.
    async fn tally(&self, query: &TallyQuery) -> Result<Tally>;

    /// The log's identity, beginning and head.
    async fn state(&self) -> Result<LogState>;

    /// At most `max_rows` (bounded by [`MAX_SCAN_ROWS`]) rows from `from_seq` on, in order of
    /// `seq`, unchecked: for verification, copying and tailing.
    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>>;

    /// Compares the database's structure with the schema, and with [`Extent::Rows`] also the
    /// entries of each index with the rows. Finds anything that hides or changes rows between the
    /// table and a list. Read-only; events may be appended meanwhile.
    ///
    /// Empty if nothing differs, and for stores without such a structure, such as the one in
    /// memory.
    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        let _ = extent;
        Ok(Vec::new())
    }

    /// Resolves when an append of this process has taken the log beyond `next_seq` events.
    /// Appends of other processes may go unnoticed: combine it with a timeout, as [`Tail`] does.
    /// Cancel-safe.
    async fn changed(&self, next_seq: u64);

    /// The ingest cursor of `source`.
    async fn cursor(&self, source: &str) -> Result<Option<String>>;

    /// All ingest cursors, by source.
    async fn cursors(&self) -> Result<Vec<(String, String)>>;

    /// Stores a part of another log, unchanged: for copies and backups.
    ///
    /// The rows must continue this log's head. Their positions, hashes and evidence are checked as
    /// `verify` does, and the part commits as a whole or not at all. Cursors replace existing
    /// ones; quarantined items get new numbers. Rows that the log already has are skipped, so
    /// repeating a part changes nothing.
    ///
    /// # Errors
    /// `state_conflict` if the log has another identity and is not empty, or has other events at
    /// these positions; `store_corrupt` if a row does not match its hash; `too_large` beyond
    /// [`MAX_BATCH_EVENTS`] rows or [`MAX_BATCH_QUARANTINE`] items; `store_unavailable` and
    /// `store_busy`, after which a retry is safe.
    async fn restore(&self, part: LogPart) -> Result<()>;

    /// Checks that the store accepts writes: writes something, undoes it and commits. The log
    /// stays unchanged. The default only reads.
    ///
    /// # Errors
    /// Those of an append, mainly `store_unavailable`.
    async fn check_writable(&self) -> Result<()> {
        self.state().await.map(drop)
    }

    /// Acquires or renews the lease `name` for `holder`, by the database's clock.
    ///
    /// Returns `None` if another holder has it. A lease that ends later than its length from now
    /// was written while the clock was ahead, and is ignored. A renewal keeps the token, even after
    /// the lease lapsed, as long as nobody else has had it: a slow database must not fence its only
    /// writer off. Another holder gets a higher token, as everybody does after a release, and every
    /// append with an old one is [fenced](AppendOptions::fence) off. `holder` must be unique to the
    /// running instance,
    /// because two instances with one name would share the lease.
    async fn acquire_lease(&self, name: &str, holder: &str, ttl: Duration)
    -> Result<Option<Lease>>;

    /// Releases the lease early. Does nothing if it has another holder by now.
    async fn release_lease(&self, lease: &Lease) -> Result<()>;

    /// Quarantined items with a number above `after`, oldest first.
    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>>;

    /// Writes events into the outbox in its own transaction. Platform code writes them in the
    /// transaction of its mutation instead, with the engine's `stage_in`.
    async fn stage(&self, events: Vec<SealedEvent>) -> Result<()>;

    /// Moves at most `max_events` events from the outbox into the log, oldest first, in one
    /// transaction. An event that the log already has is only removed; an event that is unreadable
    /// or out of bounds goes to the quarantine, so that it does not block the others.
    async fn relay(&self, max_events: usize) -> Result<Relayed>;
}

/// The identity of one event, for [`AuditStore::get`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKey {
    /// The event's id.
    Id(Uuid),
    /// The event's position in the log.
    Seq(u64),
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The next event's `seq`, which is the number of events that the log has had.
    pub next_seq: u64,
    /// The hash of the last event; 32 zero bytes if there is none.
    pub hash: [u8; 32],
}

impl Head {
    /// The head of an empty log.
    pub const EMPTY: Self = Self { next_seq: 0, hash: GENESIS };
}

/// A log's identity, beginning and head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// The log's id, generated when it was created.
    pub log_id: Uuid,
    /// The key of the page cursors, generated when the log was created.
    pub cursor_key: CursorKey,
    /// The first `seq` stored here, and the hash before it; not 0 if the beginning was archived.
    pub base: Head,
    /// The end of the log.
    pub head: Head,
}

/// A store's capabilities beyond the contract's core. The conformance suite skips the cases of
/// capabilities that a store lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Acknowledged data survives a killed process.
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

/// Changes that commit together with the events of an append, and its conditions.
#[derive(Debug, Clone, Default)]
pub struct AppendOptions {
    /// Advances an ingest cursor.
    pub cursor: Option<CursorAdvance>,
    /// Refuses the append unless the writer still holds this lease.
    pub fence: Option<Fence>,
    /// Items for the quarantine.
    pub quarantine: Vec<QuarantineItem>,
    /// Numbers of items to remove from the quarantine, because these events were made from them.
    /// Numbers that don't exist are ignored.
    pub release: Vec<i64>,
}

/// An advance of an ingest cursor by compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorAdvance {
    /// The cursor's source.
    pub source: String,
    /// The expected cursor; `None` if there must not be one yet.
    pub from: Option<String>,
    /// The new cursor.
    pub to: String,
}

/// A lease's name and token, as a condition of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The lease's name.
    pub lease: String,
    /// The holder's token.
    pub token: u64,
}

/// An acquired lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The lease's name.
    pub name: String,
    /// The holder.
    pub holder: String,
    /// Grows with every change of holder.
    pub token: u64,
    /// The time at which it expires unless renewed, by the database's clock.
    pub expires_at: Timestamp,
}

impl Lease {
    /// The condition for an append.
    pub fn fence(&self) -> Fence {
        Fence { lease: self.name.clone(), token: self.token }
    }
}

/// The result of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// One receipt per event, in the order of the batch.
    pub receipts: Vec<Receipt>,
    /// The number of new quarantine items.
    pub new_quarantine: usize,
    /// The number of items released from the quarantine.
    pub released: usize,
}

impl Appended {
    /// The number of events stored.
    pub fn appended(&self) -> usize {
        self.receipts.iter().filter(|r| r.status == ReceiptStatus::Appended).count()
    }

    /// The number of events that the log already had, including conflicts.
    pub fn duplicates(&self) -> usize {
        self.receipts.len() - self.appended()
    }

    /// The number of events that the log already had with other content.
    pub fn conflicts(&self) -> usize {
        self.receipts.iter().filter(|r| r.status == ReceiptStatus::Conflict).count()
    }
}

/// The result of appending one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Whether the event was stored.
    pub status: ReceiptStatus,
    /// The event's position in the log; for a duplicate, that of the event already there.
    pub seq: u64,
    /// The id of the event at that position.
    pub id: Uuid,
    /// For a conflict, the fields that differ.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "field_names")]
    pub differs: Vec<Field>,
}

fn field_names<S: serde::Serializer>(fields: &[Field], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(fields.iter().map(|f| f.name()))
}

/// The status of a [`Receipt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiptStatus {
    /// The event is new.
    Appended,
    /// The log already had the event.
    Duplicate,
    /// The log already had an event with the same identity and other content, which stays.
    Conflict,
}

/// The result of a relay from the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relayed {
    /// The number of events appended to the log.
    pub appended: usize,
    /// The number of events that the log already had, including conflicts.
    pub duplicates: usize,
    /// The number of duplicates whose content differs from the event in the log.
    pub conflicts: usize,
    /// The number of events moved to the quarantine, as unreadable or out of bounds.
    pub quarantined: usize,
    /// Whether the outbox may have more events.
    pub more: bool,
}

/// A part of another log, for [`AuditStore::restore`].
#[derive(Debug, Clone)]
pub struct LogPart {
    /// The other log's id.
    pub log_id: Uuid,
    /// The key of its page cursors, so that they remain valid.
    pub cursor_key: CursorKey,
    /// Rows, in order of `seq`.
    pub rows: Vec<StoredRow>,
    /// Ingest cursors, by source.
    pub cursors: Vec<(String, String)>,
    /// Quarantined items, in the order of their numbers.
    pub quarantine: Vec<QuarantinedItem>,
}

/// An item in the quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedItem {
    /// The item's number, growing.
    pub number: i64,
    /// How often it was received.
    pub seen: u64,
    /// The item.
    #[serde(flatten)]
    pub item: QuarantineItem,
}

/// A stored row, with its evidence.
#[derive(Debug, Clone)]
pub struct StoredRow {
    /// The event.
    pub stored: StoredEvent,
    /// The event's salt, or the evidence left by an erasure.
    pub evidence: Evidence,
    /// The derived columns.
    pub search_columns: SearchColumns,
}

/// A row of a scan, or its position and the reason why it can't be read.
pub type ScannedRow = Result<StoredRow, UnreadableRow>;

/// A row whose columns can't have been written by this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    /// The row's position.
    pub seq: i64,
    /// The column and the problem, without values.
    pub problem: String,
}

/// Extension methods for every [`AuditStore`].
pub trait AuditStoreExt {
    /// Follows the log in order of `seq` from `from_seq` on, waiting for more at the end.
    fn tail(&self, runtime: Arc<dyn Runtime>, from_seq: u64) -> Tail;
}

impl AuditStoreExt for Arc<dyn AuditStore> {
    fn tail(&self, runtime: Arc<dyn Runtime>, from_seq: u64) -> Tail {
        Tail::new(Arc::clone(self), runtime, from_seq)
    }
}
