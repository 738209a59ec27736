//! The types for writing a store: an engine provides rows and one transaction through [`RowStore`]
//! and [`RowTx`], and [`ChainedStore`](super::ChainedStore) makes an
//! [`AuditStore`](super::AuditStore) of it.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use super::tally::{self, Dimension, TallyCount, TallyInterval};
use super::{
    Anomaly, Capabilities, Extent, Head, LogState, QuarantinedItem, ScannedRow, StoredRow,
};
use crate::integrity::{Erasure, Evidence};
use crate::source::QuarantineItem;
use crate::{AuditEvent, Field, Outcome, Result, SealedEvent, StoredEvent, Timestamp};

/// The rows of a log, without deduplication or chain. Wrap it in
/// [`ChainedStore`](super::ChainedStore).
///
/// Errors are `store_unavailable` or `store_busy` where a retry may help.
#[async_trait]
pub trait RowStore: Send + Sync + 'static {
    /// The engine's capabilities.
    fn capabilities(&self) -> Capabilities;

    /// Begins a write transaction that excludes every other writer of the log,
    /// in this process and in others. Waits a bounded time for them.
    async fn begin(&self) -> Result<Box<dyn RowTx>>;

    /// The log's identity, beginning and head.
    async fn state(&self) -> Result<LogState>;

    /// At most `max_rows` rows from `from_seq` on, in order of `seq`.
    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>>;

    /// The rows that match, newest first; see [`ListScan`].
    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage>;

    /// The position of the event with this id. Reads only.
    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>>;

    /// Counts the rows that match, newest first, and says why it ended: never
    /// [`ScanEnd::Full`]. Engines that count in the database override this; the default reads
    /// pages of [`list`](Self::list).
    async fn tally(&self, scan: &TallyScan<'_>) -> Result<(Vec<TallyCount>, ScanEnd)> {
        tally::by_list(self, scan).await
    }

    /// Returns differences between the database's structure and the schema, and with
    /// [`Extent::Rows`] the indexes that do not cover all rows.
    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        let _ = extent;
        Ok(Vec::new())
    }

    /// The ingest cursor of `source`.
    async fn cursor(&self, source: &str) -> Result<Option<String>>;

    /// Quarantined items with a number above `after`, in order of their numbers.
    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>>;

    /// All ingest cursors, by source.
    async fn cursors(&self) -> Result<Vec<(String, String)>>;

    /// Whether the outbox has rows. Called often, so it must be cheap.
    async fn has_staged(&self) -> Result<bool>;

    /// Resolves when any process has notified the engine that the log may have more than
    /// `next_seq` events. Engines without notifications never resolve this; callers must also
    /// poll. Cancel-safe.
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

    /// The rows that share an id or a `(source, externalId)` with any of `events`.
    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>>;

    /// Inserts rows. The caller has checked that none of their keys exists.
    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()>;

    /// Sets the head.
    async fn set_head(&mut self, head: Head) -> Result<()>;

    /// The ingest cursor of `source`.
    async fn cursor(&mut self, source: &str) -> Result<Option<String>>;

    /// Gives an empty log the identity and key of another log, whose copy it becomes.
    async fn set_identity(&mut self, log_id: Uuid, cursor_key: &CursorKey) -> Result<()>;

    /// Sets the ingest cursor of `source`.
    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()>;

    /// The database's clock.
    async fn now(&mut self) -> Result<Timestamp>;

    /// The lease `name`, expired or not.
    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>>;

    /// Writes the lease `name`.
    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()>;

    /// Stores items; if the `(source, key)` of one exists, only its count is raised. Returns how
    /// many are new.
    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize>;

    /// Stores items of another log's quarantine, in their order, with new numbers and their
    /// counts. If the `(source, key)` of one exists, that item gets the greater of both counts.
    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()>;

    /// Removes items from the quarantine by number. Returns how many existed.
    async fn release(&mut self, numbers: &[i64]) -> Result<usize>;

    /// Adds events to the outbox, in order.
    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()>;

    /// The oldest events of the outbox. An unreadable event is not an error: it must not block
    /// the others.
    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>>;

    /// Removes events from the outbox by number.
    async fn unstage(&mut self, numbers: &[i64]) -> Result<()>;

    /// Writes something and undoes it, so that the commit shows whether the engine accepts
    /// writes. Engines whose transactions always write need not override this.
    async fn touch(&mut self) -> Result<()> {
        Ok(())
    }

    /// Commits, durably where the engine is durable.
    async fn commit(self: Box<Self>) -> Result<()>;
}

/// The key that authenticates a log's page cursors. Anyone who knows it can forge cursors;
/// `Debug` does not show it.
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
    /// The current or last holder.
    pub holder: String,
    /// Grows with every change of holder.
    pub token: u64,
    /// The time at which it expires.
    pub expires_at: Timestamp,
    /// The duration for which it was acquired; `None` if an older version wrote it.
    pub length: Option<Duration>,
}

impl LeaseRow {
    /// The largest step back of the clock that does not end a lease that was just acquired.
    const MAX_STEP: Duration = Duration::from_secs(1);

    /// Whether the lease is held at `now`. A lease that ends later than its whole length from now
    /// was written while the clock was ahead and is not held, because its holder may be long gone
    /// by then. `length` is used if the lease's own is not known.
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

    /// Reads what [`length_ms`](Self::length_ms) wrote; 0 means that it is not known.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
    pub(super) fn length_of(ms: i64) -> Option<Duration> {
        u64::try_from(ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis)
    }
}

/// A row to insert.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// The event's position in the log.
    pub seq: u64,
    /// The event.
    pub event: &'a AuditEvent,
    /// The evidence that verifies it.
    pub evidence: EvidenceRef<'a>,
    /// The hash of the previous event.
    pub prev_hash: [u8; 32],
    /// The event's hash.
    pub hash: [u8; 32],
}

/// A borrowed [`Evidence`]. `Debug` shows no salt.
#[derive(Clone, Copy)]
pub enum EvidenceRef<'a> {
    /// The event's salt: nothing was erased.
    Salt(&'a [u8; 32]),
    /// The evidence left by an erasure; only copies insert such rows.
    Erased(&'a Erasure),
}

impl<'a> NewRow<'a> {
    /// A row of another log, unchanged.
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
    /// The owned evidence.
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

/// The part of a stored row that deduplication compares.
#[derive(Debug, Clone)]
pub struct ExistingRow {
    /// The event's position in the log.
    pub seq: u64,
    /// The event's id.
    pub id: Uuid,
    /// The event's source.
    pub source: String,
    /// The event's id at its source.
    pub external_id: Option<String>,
    /// The values of [`Self::COMPARED`].
    pub compared: [Option<String>; 7],
    /// Fields whose values were erased; they match any value.
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

    /// The compared part of the event at `seq`.
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

    /// The fields in which `event` differs.
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
    /// The row's number, growing.
    pub number: i64,
    /// The event, or the unreadable content of its row.
    pub event: std::result::Result<SealedEvent, UnreadableStaged>,
}

/// A row of the outbox that is not a sealed event of a known version.
#[derive(Debug, Clone)]
pub struct UnreadableStaged {
    /// The row's content.
    pub raw: Vec<u8>,
    /// The reason why it can't be read.
    pub problem: String,
}

/// Columns derived from an event, so that engines only compare bytes: case is folded here, by
/// Unicode's lower case.
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

    /// Folds `text` for the derived columns, and for searching them.
    ///
    /// Applies Unicode's lower case character by character, so that the fold of a substring is a
    /// substring of the fold: a final sigma is folded like any other. U+001F and U+0000 become
    /// U+FFFD.
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

/// A checked [`ListQuery`](super::ListQuery) for engines, which compare only bytes. An event
/// matches if every condition that is set holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// `at` is this time or later.
    pub since: Option<Timestamp>,
    /// `at` is before this time.
    pub until: Option<Timestamp>,
    /// `action` begins with this text.
    pub action_prefix: Option<String>,
    /// `tenantSlug` matches.
    pub tenant: Option<TenantMatch>,
    /// `partnerSlug` equals this text.
    pub partner_slug: Option<String>,
    /// `actorId` equals this text.
    pub actor_id: Option<String>,
    /// The folded `actorEmail` equals this text.
    pub actor_email_fold: Option<String>,
    /// `resourceType` equals this text.
    pub resource_type: Option<String>,
    /// `resourceId` equals this text.
    pub resource_id: Option<String>,
    /// `outcome` equals this one.
    pub outcome: Option<Outcome>,
    /// `source` matches.
    pub source: Option<SourceMatch>,
    /// [`SearchColumns::search`] contains this text.
    pub search: Option<String>,
}

/// A condition on `tenantSlug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TenantMatch {
    /// The event has no tenant.
    None,
    /// The event has this tenant.
    Slug(String),
}

/// A condition on `source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceMatch {
    /// The source itself.
    pub exact: String,
    /// The prefix of its instances' names, such as `authentik:`; `None` if `exact` is an instance.
    pub instances: Option<String>,
}

impl SourceMatch {
    pub(super) fn new(exact: String) -> Self {
        let instances = (!exact.contains(':')).then(|| format!("{exact}:"));
        Self { exact, instances }
    }
}

impl Filter {
    /// Whether all conditions are on `at` or answered by `index`, so that every row in the
    /// index's range matches.
    pub fn is_index_only(&self, index: &ScanIndex) -> bool {
        let mut rest = self.clone();
        rest.since = None;
        rest.until = None;
        match index {
            ScanIndex::Time => {}
            ScanIndex::Tenant => rest.tenant = None,
            ScanIndex::Actor => rest.actor_id = None,
        }
        rest == Self::EVERYTHING
    }

    /// The most selective index for the filter among those that every engine has.
    pub fn index(&self) -> ScanIndex {
        if self.actor_id.is_some() {
            ScanIndex::Actor
        } else if self.tenant.is_some() {
            ScanIndex::Tenant
        } else {
            ScanIndex::Time
        }
    }

    /// The filter that matches every event.
    pub const EVERYTHING: Self = Self {
        since: None,
        until: None,
        action_prefix: None,
        tenant: None,
        partner_slug: None,
        actor_id: None,
        actor_email_fold: None,
        resource_type: None,
        resource_id: None,
        outcome: None,
        source: None,
        search: None,
    };

    /// Whether `event`, with its derived columns, matches. This is the definition that the
    /// queries of engines must agree with.
    pub fn matches(&self, event: &AuditEvent, search_columns: &SearchColumns) -> bool {
        fn equals(wanted: Option<&String>, value: Option<&String>) -> bool {
            wanted.is_none_or(|w| value == Some(w))
        }
        self.since.is_none_or(|t| event.at >= t)
            && self.until.is_none_or(|t| event.at < t)
            && self.action_prefix.as_ref().is_none_or(|p| event.action.starts_with(p.as_str()))
            && self.tenant.as_ref().is_none_or(|t| match t {
                TenantMatch::None => event.tenant_slug.is_none(),
                TenantMatch::Slug(slug) => event.tenant_slug.as_ref() == Some(slug),
            })
            && equals(self.partner_slug.as_ref(), event.partner_slug.as_ref())
            && equals(self.actor_id.as_ref(), event.actor_id.as_ref())
            && equals(self.actor_email_fold.as_ref(), search_columns.actor_email.as_ref())
            && equals(self.resource_type.as_ref(), event.resource_type.as_ref())
            && equals(self.resource_id.as_ref(), event.resource_id.as_ref())
            && self.outcome.is_none_or(|o| event.outcome == o)
            && self.source.as_ref().is_none_or(|s| {
                event.source == s.exact
                    || s.instances.as_ref().is_some_and(|i| event.source.starts_with(i.as_str()))
            })
            && self.search.as_ref().is_none_or(|q| search_columns.search.contains(q.as_str()))
    }
}

/// A position in the order of a list: the event's `at` and its `seq`.
pub type ListPosition = (Timestamp, u64);

/// A bounded scan of the log, newest first by `(at, seq)`: events with equal times are in the
/// order in which they were appended.
#[derive(Debug, Clone, Copy)]
pub struct ListScan<'a> {
    /// The filter that returned rows match.
    pub filter: &'a Filter,
    /// Return only rows before this position; `None` starts at the newest.
    pub before: Option<ListPosition>,
    /// Maximum number of rows to return.
    pub max_rows: usize,
    /// Approximate maximum number of rows to examine, matching or not.
    pub max_examined: usize,
}

/// A bounded count of the log's events.
#[derive(Debug, Clone, Copy)]
pub struct TallyScan<'a> {
    /// The filter that counted rows match.
    pub filter: &'a Filter,
    /// The length of a bucket.
    pub interval: TallyInterval,
    /// The fields by which rows are counted separately.
    pub by: &'a [Dimension],
    /// Approximate maximum number of rows to examine, matching or not.
    pub max_examined: usize,
    /// Approximate maximum number of counts to return.
    pub max_counts: usize,
}

/// The index that drives a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanIndex {
    /// All events by time.
    Time,
    /// The events of one tenant, or those without a tenant, by time.
    Tenant,
    /// The events of one actor by time.
    Actor,
}

impl ListScan<'_> {
    /// The most selective index for the filter among those that every engine has.
    pub fn index(&self) -> ScanIndex {
        self.filter.index()
    }
}

/// The result of a scan.
#[derive(Debug, Clone)]
pub struct ScanPage {
    /// The rows, newest first.
    pub events: Vec<StoredEvent>,
    /// The reason why the scan ended.
    pub end: ScanEnd,
}

/// The reason why a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanEnd {
    /// No further row matches.
    Exhausted,
    /// `max_rows` rows were found.
    Full,
    /// About `max_examined` rows were examined, the last one at this position.
    Budget(ListPosition),
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
    fn the_fold_of_a_substring_is_a_substring_of_the_fold() {
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
