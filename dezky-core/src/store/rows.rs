//! What a back end implements: rows in, rows out, one transaction.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Anomaly, Capabilities, Extent, Filter, QuarantinedItem, ScannedRow, StoredRow};
use crate::integrity::{Erasure, Evidence, GENESIS};
use crate::source::QuarantineItem;
use crate::{AuditEvent, Field, Result, SealedEvent, StoredEvent, Timestamp};

/// The rows of a log, without deduplication or chain: what an engine provides.
/// Wrap it in [`ChainedStore`](super::ChainedStore).
///
/// Errors are `store_unavailable` or `store_busy` where a retry may help.
#[async_trait]
pub trait RowStore: Send + Sync + 'static {
    /// What the engine gives.
    fn capabilities(&self) -> Capabilities;

    /// Begins a write transaction that excludes every other writer of the log,
    /// in this process and in others. Waits a bounded time for its turn.
    async fn begin(&self) -> Result<Box<dyn RowTx>>;

    /// The log's identity, beginning and head.
    async fn state(&self) -> Result<LogState>;

    /// Rows from `from_seq` on by `seq`, at most `max_rows`.
    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>>;

    /// Rows that match, newest first; see [`ListScan`].
    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage>;

    /// Returns differences between the database's structure and the schema, and with
    /// [`Extent::Rows`] the indexes that do not cover all rows.
    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        let _ = extent;
        Ok(Vec::new())
    }

    /// The ingest cursor of `source`.
    async fn cursor(&self, source: &str) -> Result<Option<String>>;

    /// Quarantined items by number, above `after`.
    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>>;

    /// All ingest cursors, by source.
    async fn cursors(&self) -> Result<Vec<(String, String)>>;

    /// Whether the outbox has rows; cheap, asked often.
    async fn has_staged(&self) -> Result<bool>;

    /// Resolves when the engine was told, by whichever process, that the log may
    /// have more than `next_seq` events. Cancel-safe. One that is not told waits
    /// for ever: who asks looks again now and then by itself.
    async fn changed(&self, next_seq: u64) {
        let _ = next_seq;
        std::future::pending::<()>().await;
    }
}

/// A write transaction. Dropping it without [`commit`](RowTx::commit) rolls back.
#[async_trait]
pub trait RowTx: Send {
    /// The head, locked until the end of the transaction.
    async fn head(&mut self) -> Result<Head>;

    /// The rows that share an id or a `(source, externalId)` with `events`.
    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>>;

    /// Inserts rows; none of their keys is there.
    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()>;

    /// Sets the head.
    async fn set_head(&mut self, head: Head) -> Result<()>;

    /// The ingest cursor of `source`.
    async fn cursor(&mut self, source: &str) -> Result<Option<String>>;

    /// Gives the log, in which is nothing yet, the identity and key of another
    /// one, whose copy it becomes.
    async fn set_identity(&mut self, log_id: Uuid, cursor_key: &CursorKey) -> Result<()>;

    /// Sets the ingest cursor of `source`.
    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()>;

    /// The database's clock.
    async fn now(&mut self) -> Result<Timestamp>;

    /// The lease `name`, lapsed or not.
    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>>;

    /// Writes the lease `name`.
    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()>;

    /// Keeps items; one whose `(source, key)` is there has its count raised
    /// instead. Returns how many are new.
    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize>;

    /// Keeps items of another quarantine, in their order, under numbers of its own
    /// and as often seen as they were. One whose `(source, key)` is there only gets
    /// the greater count.
    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()>;

    /// Removes items from the quarantine by number. Returns how many were there.
    async fn release(&mut self, numbers: &[i64]) -> Result<usize>;

    /// Adds events to the outbox, in order.
    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()>;

    /// The oldest events of the outbox. One that can't be read is no error: it
    /// must not hold up the others.
    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>>;

    /// Removes events from the outbox by number.
    async fn unstage(&mut self, numbers: &[i64]) -> Result<()>;

    /// Writes something and takes it back, so that the commit shows whether the engine
    /// takes writes. An engine whose transactions always write need not do anything.
    async fn touch(&mut self) -> Result<()> {
        Ok(())
    }

    /// Commits, durably where the engine is durable.
    async fn commit(self: Box<Self>) -> Result<()>;
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// How many events the log has had: the next `seq`.
    pub next_seq: u64,
    /// The hash of the last event; of none: 32 zero bytes.
    pub hash: [u8; 32],
}

impl Head {
    /// The head of an empty log.
    pub const EMPTY: Self = Self { next_seq: 0, hash: GENESIS };
}

/// A log's identity, beginning and head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Made with the log.
    pub log_id: Uuid,
    /// The key of the page cursors, made with the log.
    pub cursor_key: CursorKey,
    /// The first `seq` that is here and the hash before it: of a log whose
    /// beginning was archived not 0.
    pub base: Head,
    /// The end.
    pub head: Head,
}

/// The key that authenticates a log's page cursors. Whoever has it can make
/// cursors; `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CursorKey(pub [u8; 32]);

impl std::fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CursorKey(..)")
    }
}

/// A lease as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Who holds or held it.
    pub holder: String,
    /// Grows with every change of holder.
    pub token: u64,
    /// When it lapses.
    pub expires_at: Timestamp,
    /// For how long it was taken; `None` if an older version wrote it.
    pub length: Option<Duration>,
}

impl LeaseRow {
    /// By how much a clock may be set back without ending a lease that was just taken.
    const MAX_STEP: Duration = Duration::from_secs(1);

    /// Whether it holds at `now`. One that ends later than a whole length from now was
    /// written by a clock that was ahead: its holder can't be expected to be there until
    /// then. `length` stands in for one that is not known.
    pub fn holds_at(&self, now: Timestamp, length: Duration) -> bool {
        let length = self.length.unwrap_or(length);
        let latest = now.saturating_add(length.saturating_add(Self::MAX_STEP));
        now < self.expires_at && self.expires_at <= latest
    }

    /// The length as engines store it, in milliseconds.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
    pub(super) fn length_ms(&self) -> i64 {
        let length = self.length.unwrap_or_default();
        i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
    }

    /// See [`length_ms`](Self::length_ms); 0 stands for one that is not known.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
    pub(super) fn length_of(ms: i64) -> Option<Duration> {
        u64::try_from(ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis)
    }
}

/// A row to insert.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// Its place.
    pub seq: u64,
    /// The event.
    pub event: &'a AuditEvent,
    /// What verifies it.
    pub evidence: EvidenceRef<'a>,
    /// The hash before.
    pub prev_hash: [u8; 32],
    /// Its hash.
    pub hash: [u8; 32],
}

/// An [`Evidence`] that belongs to somebody else. `Debug` shows no salt.
#[derive(Clone, Copy)]
pub enum EvidenceRef<'a> {
    /// The event's salt: nothing was erased.
    Salt(&'a [u8; 32]),
    /// What took the salt's place; only copies insert such rows.
    Erased(&'a Erasure),
}

impl<'a> NewRow<'a> {
    /// The row of another log, as it stands there.
    pub fn of_stored(row: &'a StoredRow) -> Self {
        Self {
            seq: row.stored.seq,
            event: &row.stored.event,
            evidence: match &row.evidence {
                Evidence::Salt(salt) => EvidenceRef::Salt(salt),
                Evidence::Erased(erasure) => EvidenceRef::Erased(erasure),
            },
            prev_hash: row.stored.prev_hash,
            hash: row.stored.hash,
        }
    }

    /// The salt, if nothing was erased.
    pub fn salt(&self) -> Option<&'a [u8; 32]> {
        match self.evidence {
            EvidenceRef::Salt(salt) => Some(salt),
            EvidenceRef::Erased(_) => None,
        }
    }

    /// The bytes of the erasure, if there was one.
    pub fn erasure(&self) -> Option<Vec<u8>> {
        match self.evidence {
            EvidenceRef::Salt(_) => None,
            EvidenceRef::Erased(erasure) => Some(erasure.to_bytes()),
        }
    }

    /// The columns derived from the event.
    pub fn search_columns(&self) -> SearchColumns {
        SearchColumns::of(self.event)
    }

    /// The row as it will be read.
    pub fn to_stored(&self) -> StoredRow {
        let evidence = self.evidence.to_owned();
        StoredRow {
            stored: StoredEvent {
                seq: self.seq,
                event: self.event.clone(),
                erased: evidence.erased_fields(),
                prev_hash: self.prev_hash,
                hash: self.hash,
            },
            evidence,
            search_columns: self.search_columns(),
        }
    }
}

impl EvidenceRef<'_> {
    /// The same as a value of its own.
    pub fn to_owned(self) -> Evidence {
        match self {
            Self::Salt(salt) => Evidence::Salt(*salt),
            Self::Erased(erasure) => Evidence::Erased(Box::new(erasure.clone())),
        }
    }
}

impl std::fmt::Debug for EvidenceRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Salt(_) => f.write_str("Salt(..)"),
            Self::Erased(erasure) => f.debug_tuple("Erased").field(erasure).finish(),
        }
    }
}

/// What deduplication compares.
#[derive(Debug, Clone)]
pub struct ExistingRow {
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub id: Uuid,
    /// Its source.
    pub source: String,
    /// Its identity there.
    pub external_id: Option<String>,
    /// The values of [`Self::COMPARED`].
    pub compared: [Option<String>; 7],
    /// Fields whose values were erased: they equal anything.
    pub erased: Vec<Field>,
}

impl ExistingRow {
    /// The fields in which a duplicate must agree.
    pub const COMPARED: [Field; 7] = [
        Field::ActorType,
        Field::ActorId,
        Field::ActorEmail,
        Field::Action,
        Field::Outcome,
        Field::ResourceType,
        Field::ResourceId,
    ];

    /// What is compared of an event at `seq`.
    pub fn of(seq: u64, event: &AuditEvent, erased: Vec<Field>) -> Self {
        Self {
            seq,
            id: event.id,
            source: event.source.clone(),
            external_id: event.external_id.clone(),
            compared: Self::COMPARED.map(|field| event.text(field).map(str::to_owned)),
            erased,
        }
    }

    /// What a row of an engine says, by column. One that was changed so that it can't be
    /// read still has its identity: it counts as there, and differs.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
    pub(super) fn of_columns(
        seq: Option<i64>,
        id: Option<Uuid>,
        text: impl Fn(&'static str) -> Option<String>,
        erasure: Option<&[u8]>,
    ) -> Self {
        // In the order of `COMPARED`.
        let columns = [
            "actor_type",
            "actor_id",
            "actor_email",
            "action",
            "outcome",
            "resource_type",
            "resource_id",
        ];
        let erasure = erasure.and_then(|bytes| Erasure::from_bytes(bytes).ok());
        Self {
            seq: seq.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0),
            id: id.unwrap_or_default(),
            source: text("source").unwrap_or_default(),
            external_id: text("external_id"),
            compared: columns.map(text),
            erased: erasure.map(|e| e.commitments.into_keys().collect()).unwrap_or_default(),
        }
    }

    /// The fields in which `event` says something else.
    pub fn differences(&self, event: &AuditEvent) -> Vec<Field> {
        let differs = |(field, value): &(Field, &Option<String>)| {
            !self.erased.contains(field) && value.as_deref() != event.text(*field)
        };
        Self::COMPARED.into_iter().zip(&self.compared).filter(differs).map(|(f, _)| f).collect()
    }
}

/// An event of the outbox.
#[derive(Debug, Clone)]
pub struct StagedEvent {
    /// Its number, growing.
    pub number: i64,
    /// The event, or what stands there instead of one.
    pub event: std::result::Result<SealedEvent, UnreadableStaged>,
}

/// A row of the outbox that is no sealed event of a version known here.
#[derive(Debug, Clone)]
pub struct UnreadableStaged {
    /// What stands there.
    pub raw: Vec<u8>,
    /// Why it can't be read.
    pub problem: String,
}

/// Columns derived from an event, so that engines only ever compare bytes: case
/// is folded here, by Unicode's lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchColumns {
    /// actorEmail.
    pub actor_email: Option<String>,
    /// action, resourceName, actorEmail and tenantSlug, separated by U+001F.
    pub search: String,
}

impl SearchColumns {
    /// Separates the parts of [`SearchColumns::search`]; within them it becomes U+FFFD.
    const SEPARATOR: char = '\u{1f}';

    /// The derived columns of `event`.
    pub fn of(event: &AuditEvent) -> Self {
        let mut search = Self::fold(&event.action);
        for part in [&event.resource_name, &event.actor_email, &event.tenant_slug] {
            search.push(Self::SEPARATOR);
            search.push_str(&part.as_deref().map(Self::fold).unwrap_or_default());
        }
        Self { actor_email: event.actor_email.as_deref().map(Self::fold), search }
    }

    /// `text` as it stands in the derived columns and is looked for there.
    ///
    /// Unicode's lower case character by character, so that the fold of a part is
    /// a part of the fold: hence a final sigma is folded like any other. U+001F
    /// and U+0000 become U+FFFD.
    pub fn fold(text: &str) -> String {
        text.chars()
            .flat_map(char::to_lowercase)
            .map(|c| match c {
                'ς' => 'σ',
                Self::SEPARATOR | '\0' => '\u{fffd}',
                c => c,
            })
            .collect()
    }
}

/// A place in the order of a list: the event's `at` and its `seq`.
pub type ListPlace = (Timestamp, u64);

/// A bounded walk over the log, newest first by `(at, seq)`: events of one time
/// stand in the order in which they came.
#[derive(Debug, Clone, Copy)]
pub struct ListScan<'a> {
    /// What must match.
    pub filter: &'a Filter,
    /// Where to go on: only rows before this place.
    pub before: Option<ListPlace>,
    /// The most rows to return.
    pub max_rows: usize,
    /// About how many rows may be looked at, matching or not.
    pub max_examined: usize,
}

/// The index that leads a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanIndex {
    /// All events by time.
    Time,
    /// One tenant's, or those of none.
    Tenant,
    /// One actor's.
    Actor,
}

impl ListScan<'_> {
    /// The index that narrows most among those that every engine has.
    pub fn index(&self) -> ScanIndex {
        if self.filter.actor_id.is_some() {
            ScanIndex::Actor
        } else if self.filter.tenant.is_some() {
            ScanIndex::Tenant
        } else {
            ScanIndex::Time
        }
    }
}

/// What a walk found.
#[derive(Debug, Clone)]
pub struct ScanPage {
    /// The rows, newest first.
    pub events: Vec<StoredEvent>,
    /// Why it ended.
    pub end: ScanEnd,
}

/// Why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanEnd {
    /// It came to the end of the log.
    Exhausted,
    /// It has `max_rows` rows.
    Full,
    /// It looked at `max_examined` rows; the last one is here.
    Budget(ListPlace),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{ManualRuntime, named_event};

    #[test]
    fn erased_equals_anything() {
        let runtime = ManualRuntime::new(1);
        let stored = named_event("a").seal(&runtime);
        let mut other = named_event("a");
        other.actor.email = Some("someone@else.test".into());
        let other = other.seal(&runtime);
        let mut row = ExistingRow::of(0, stored.event(), Vec::new());
        assert_eq!(row.differences(other.event()), [Field::ActorEmail]);
        row.compared[2] = None;
        row.erased = vec![Field::ActorEmail];
        assert_eq!(row.differences(other.event()), []);
    }

    #[test]
    fn the_fold_of_a_part_is_a_part_of_the_fold() {
        for (whole, part) in [("ΟΔΟΣΣΕΑΣ", "ΟΔΟΣ"), ("Straße", "stra"), ("İx", "İ")]
        {
            assert!(
                SearchColumns::fold(whole).contains(&SearchColumns::fold(part)),
                "{part} in {whole}"
            );
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", CursorKey([7; 32])), "CursorKey(..)");
    }
}
