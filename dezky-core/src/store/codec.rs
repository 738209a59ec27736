//! Reading stored rows, once for all engines.

use std::fmt::Display;
use std::str::FromStr;

use uuid::Uuid;

use super::engine::{
    CursorKey, ExistingRow, LeaseRow, ListPosition, SearchColumns, StagedEvent, TallyScan,
    UnreadableStaged,
};
use super::tally::{Dimension, TallyCount};
use super::{Head, LogState, QuarantinedItem, ScannedRow, StoredRow, UnreadableRow};
use crate::integrity::{Erasure, Evidence};
use crate::source::QuarantineItem;
use crate::{AuditEvent, Error, ErrorKind, Metadata, Result, SealedEvent, StoredEvent, Timestamp};

/// A column and the problem with it, without its value.
pub(super) type Problem = String;

/// Typed access by name to the columns of a row, or to the fields of a document.
pub(super) trait Columns {
    /// The column of an event's `seq`.
    const SEQ: &'static str;
    /// The column of a quarantined item's number.
    const NUMBER: &'static str;

    fn int(&self, column: &str) -> Result<i64, Problem>;

    fn uuid(&self, column: &str) -> Result<Uuid, Problem>;

    /// `None` if the column is empty.
    fn optional_text(&self, column: &str) -> Result<Option<&str>, Problem>;

    /// `None` if the column is empty.
    fn optional_bytes(&self, column: &str) -> Result<Option<&[u8]>, Problem>;

    fn text(&self, column: &str) -> Result<&str, Problem> {
        self.optional_text(column)?.ok_or_else(|| format!("{column} is missing"))
    }

    fn bytes(&self, column: &str) -> Result<&[u8], Problem> {
        self.optional_bytes(column)?.ok_or_else(|| format!("{column} is missing"))
    }

    fn owned_text(&self, column: &str) -> Result<Option<String>, Problem> {
        Ok(self.optional_text(column)?.map(str::to_owned))
    }

    fn digest(&self, column: &str) -> Result<[u8; 32], Problem> {
        self.bytes(column)?.try_into().map_err(|_| format!("{column} is not 32 bytes"))
    }

    fn count(&self, column: &str) -> Result<u64, Problem> {
        u64::try_from(self.int(column)?).map_err(|_| format!("{column} is negative"))
    }

    fn parsed<T: FromStr>(&self, column: &str) -> Result<T, Problem> {
        self.text(column)?.parse().map_err(|_| format!("{column} has an unknown value"))
    }

    fn timestamp(&self, column: &str) -> Result<Timestamp, Problem> {
        Timestamp::from_millis(self.int(column)?).ok_or_else(|| format!("{column} is out of range"))
    }

    /// For times that are not evidence.
    fn nearest_timestamp(&self, column: &str) -> Result<Timestamp, Problem> {
        self.int(column).map(Timestamp::from_millis_clamped)
    }
}

/// Reads a row of a scan.
pub(super) fn scanned_row<C: Columns>(row: &C) -> ScannedRow {
    let seq = row.int(C::SEQ).unwrap_or(-1);
    stored_row(row).map_err(|problem| UnreadableRow { seq, problem })
}

/// Reads a row of a list, which must be readable.
pub(super) fn listed_row<C: Columns>(row: &C) -> Result<StoredEvent> {
    stored_row(row).map(|row| row.stored).map_err(|problem| {
        Error::new(
            ErrorKind::StoreCorrupt,
            format!("a row of the audit log can't be read ({problem}): run verify"),
        )
    })
}

fn stored_row<C: Columns>(row: &C) -> Result<StoredRow, Problem> {
    let evidence = evidence(row)?;
    let event = AuditEvent {
        id: row.uuid("id")?,
        at: row.timestamp("at")?,
        received_at: row.timestamp("received_at")?,
        actor_type: row.parsed("actor_type")?,
        actor_id: row.owned_text("actor_id")?,
        actor_email: row.owned_text("actor_email")?,
        actor_ip: row.owned_text("actor_ip")?,
        action: row.text("action")?.to_owned(),
        outcome: row.parsed("outcome")?,
        resource_type: row.owned_text("resource_type")?,
        resource_id: row.owned_text("resource_id")?,
        resource_name: row.owned_text("resource_name")?,
        tenant_slug: row.owned_text("tenant_slug")?,
        partner_slug: row.owned_text("partner_slug")?,
        source: row.text("source")?.to_owned(),
        external_id: row.owned_text("external_id")?,
        metadata: Metadata::from_stored(row.text("metadata")?),
    };
    Ok(StoredRow {
        stored: StoredEvent {
            seq: row.count(C::SEQ)?,
            event,
            erased: evidence.erased_fields(),
            prev_hash: row.digest("prev_hash")?,
            hash: row.digest("hash")?,
        },
        evidence,
        search_columns: SearchColumns {
            actor_email: row.owned_text("actor_email_fold")?,
            search: row.text("search")?.to_owned(),
        },
    })
}

fn evidence<C: Columns>(row: &C) -> Result<Evidence, Problem> {
    match (row.optional_bytes("salt")?, row.optional_bytes("erasure")?) {
        (Some(salt), None) => {
            Ok(Evidence::Salt(salt.try_into().map_err(|_| "salt is not 32 bytes")?))
        }
        (None, Some(erasure)) => Erasure::from_bytes(erasure)
            .map(|erasure| Evidence::Erased(Box::new(erasure)))
            .map_err(|_| "erasure can't be read".into()),
        _ => Err("there must be either salt or erasure".into()),
    }
}

/// Reads the part of a row that deduplication compares. A row that was altered so that it can't be
/// read still has its identity: it counts as existing, and as different.
pub(super) fn existing_row<C: Columns>(row: &C) -> ExistingRow {
    let text = |column| row.owned_text(column).ok().flatten();
    // In the order of `ExistingRow::COMPARED`.
    let compared = [
        "actor_type",
        "actor_id",
        "actor_email",
        "action",
        "outcome",
        "resource_type",
        "resource_id",
    ];
    let erasure = row.optional_bytes("erasure").ok().flatten();
    let erasure = erasure.and_then(|bytes| Erasure::from_bytes(bytes).ok());
    ExistingRow {
        seq: row.count(C::SEQ).unwrap_or(0),
        id: row.uuid("id").unwrap_or_default(),
        source: text("source").unwrap_or_default(),
        external_id: text("external_id"),
        compared: compared.map(text),
        erased: erasure.map(|e| e.commitments.into_keys().collect()).unwrap_or_default(),
    }
}

/// Reads an event's position in the order of lists.
pub(super) fn position<C: Columns>(row: &C) -> Result<ListPosition> {
    let position = row.nearest_timestamp("at").and_then(|at| Ok((at, row.count(C::SEQ)?)));
    position.map_err(corrupt)
}

/// Reads a count. `bucket` is the column with the beginning of the bucket, or with any time in it;
/// `None` counts one event.
pub(super) fn tally_count<C: Columns>(
    row: &C,
    scan: &TallyScan<'_>,
    bucket: &str,
    events: Option<&str>,
) -> Result<TallyCount> {
    let has = |dimension| scan.by.contains(&dimension);
    let text = |dimension, column| {
        if has(dimension) { row.owned_text(column) } else { Ok(None) }
    };
    let read = || -> Result<TallyCount, Problem> {
        Ok(TallyCount {
            at: scan.interval.floor(row.nearest_timestamp(bucket)?),
            source: text(Dimension::Source, "source")?,
            action: text(Dimension::Action, "action")?,
            outcome: has(Dimension::Outcome).then(|| row.parsed("outcome")).transpose()?,
            tenant_slug: text(Dimension::TenantSlug, "tenant_slug")?,
            count: events.map_or(Ok(1), |events| row.count(events))?,
        })
    };
    read().map_err(corrupt)
}

/// Reads the row of the log itself.
pub(super) fn log_state<C: Columns>(row: &C) -> Result<LogState> {
    let read = || -> Result<LogState, Problem> {
        Ok(LogState {
            log_id: row.uuid("log_id")?,
            cursor_key: CursorKey(row.digest("cursor_key")?),
            base: Head { next_seq: row.count("base_seq")?, hash: row.digest("base_hash")? },
            head: Head { next_seq: row.count("next_seq")?, hash: row.digest("head_hash")? },
        })
    };
    read().map_err(corrupt)
}

/// The error of a database without the row of the log itself.
pub(super) fn missing_log() -> Error {
    corrupt("the log's identity and head are missing")
}

pub(super) fn lease_row<C: Columns>(row: &C) -> Result<LeaseRow> {
    let read = || -> Result<LeaseRow, Problem> {
        Ok(LeaseRow {
            holder: row.text("holder")?.to_owned(),
            token: row.count("token")?,
            expires_at: row.nearest_timestamp("expires_at")?,
            // MongoDB's documents from earlier versions don't have it.
            length: row.int("length_ms").ok().and_then(LeaseRow::length_of),
        })
    };
    read().map_err(corrupt)
}

pub(super) fn quarantined_item<C: Columns>(row: &C) -> Result<QuarantinedItem> {
    let read = || -> Result<QuarantinedItem, Problem> {
        Ok(QuarantinedItem {
            number: row.int(C::NUMBER)?,
            seen: row.count("seen")?,
            item: QuarantineItem {
                source: row.text("source")?.to_owned(),
                key: row.text("key")?.to_owned(),
                reason: row.text("reason")?.to_owned(),
                detail: row.text("detail")?.to_owned(),
                raw: row.bytes("raw")?.to_vec(),
                at: row.nearest_timestamp("at")?,
            },
        })
    };
    read().map_err(corrupt)
}

/// An event of the outbox from its text.
pub(super) fn staged_event(number: i64, text: &str) -> StagedEvent {
    let event = SealedEvent::from_json(text).map_err(|error| UnreadableStaged {
        raw: text.as_bytes().to_vec(),
        problem: error.to_string(),
    });
    StagedEvent { number, event }
}

pub(super) fn corrupt(problem: impl Display) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("{problem}: restore the database from a backup"))
}

/// A limit on rows as engines take it.
pub(super) fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// A counter as engines store it.
pub(super) fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| corrupt("a counter exceeds 2^63"))
}
