//! Rows to events and back.

use std::str::FromStr;

use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row, Type};

use crate::integrity::{Erasure, Evidence};
use crate::store::{ExistingRow, ScannedRow, SearchColumns, StoredRow, UnreadableRow};
use crate::{AuditEvent, Error, ErrorKind, Metadata, Result, StoredEvent, Timestamp};

/// The columns of an event, in the order in which they are inserted.
pub(super) const COLUMNS: &str = "seq, id, at, received_at, actor_type, actor_id, actor_email, \
    actor_ip, action, outcome, resource_type, resource_id, resource_name, tenant_slug, \
    partner_slug, source, external_id, metadata, salt, erasure, prev_hash, hash, actor_email_fold, search";

/// A column and what is wrong with it; never its value.
type Problem = String;

/// A row of a scan: readable, or where it is and why not.
pub(super) fn scanned_row(row: &PgRow) -> ScannedRow {
    let seq: i64 = get(row, "seq").unwrap_or(-1);
    stored_row(row).map_err(|problem| UnreadableRow { seq, problem })
}

/// A row of a list, which has to be readable.
pub(super) fn listed_row(row: &PgRow) -> Result<StoredEvent> {
    stored_row(row).map(|row| row.stored).map_err(|problem| corrupt(&problem))
}

/// What deduplication reads, from the events as `e`.
pub(super) const COMPARED_COLUMNS: &str = "e.seq, e.id, e.source, e.external_id, e.actor_type, \
    e.actor_id, e.actor_email, e.action, e.outcome, e.resource_type, e.resource_id, e.erasure";

pub(super) fn existing_row(row: &PgRow) -> ExistingRow {
    let text = |column| get::<Option<String>>(row, column).ok().flatten();
    let erasure = get::<Option<&[u8]>>(row, "erasure").ok().flatten();
    ExistingRow::of_columns(get(row, "seq").ok(), get(row, "id").ok(), text, erasure)
}

fn corrupt(problem: &Problem) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!("a row of the audit log can't be read ({problem}): run verify"),
    )
}

fn stored_row(row: &PgRow) -> Result<StoredRow, Problem> {
    let evidence = evidence(row)?;
    let event = AuditEvent {
        id: get(row, "id")?,
        at: timestamp(row, "at")?,
        received_at: timestamp(row, "received_at")?,
        actor_type: parsed(row, "actor_type")?,
        actor_id: get(row, "actor_id")?,
        actor_email: get(row, "actor_email")?,
        actor_ip: get(row, "actor_ip")?,
        action: get(row, "action")?,
        outcome: parsed(row, "outcome")?,
        resource_type: get(row, "resource_type")?,
        resource_id: get(row, "resource_id")?,
        resource_name: get(row, "resource_name")?,
        tenant_slug: get(row, "tenant_slug")?,
        partner_slug: get(row, "partner_slug")?,
        source: get(row, "source")?,
        external_id: get(row, "external_id")?,
        metadata: Metadata::from_stored(get::<String>(row, "metadata")?),
    };
    let seq = get::<i64>(row, "seq")?;
    Ok(StoredRow {
        stored: StoredEvent {
            seq: u64::try_from(seq).map_err(|_| "seq is negative")?,
            event,
            erased: evidence.erased_fields(),
            prev_hash: digest(row, "prev_hash")?,
            hash: digest(row, "hash")?,
        },
        evidence,
        search_columns: SearchColumns {
            actor_email: get(row, "actor_email_fold")?,
            search: get(row, "search")?,
        },
    })
}

fn evidence(row: &PgRow) -> Result<Evidence, Problem> {
    match (get::<Option<&[u8]>>(row, "salt")?, get::<Option<&[u8]>>(row, "erasure")?) {
        (Some(salt), None) => {
            Ok(Evidence::Salt(salt.try_into().map_err(|_| "salt is not 32 bytes")?))
        }
        (None, Some(erasure)) => Erasure::from_bytes(erasure)
            .map(|erasure| Evidence::Erased(Box::new(erasure)))
            .map_err(|_| "erasure can't be read".into()),
        _ => Err("there must be either salt or erasure".into()),
    }
}

pub(super) fn get<'r, T>(row: &'r PgRow, column: &'static str) -> Result<T, Problem>
where
    T: sqlx::Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(column).map_err(|_| format!("{column} has an unexpected type"))
}

fn parsed<T: FromStr>(row: &PgRow, column: &'static str) -> Result<T, Problem> {
    get::<&str>(row, column)?.parse().map_err(|_| format!("{column} has an unknown value"))
}

fn timestamp(row: &PgRow, column: &'static str) -> Result<Timestamp, Problem> {
    Timestamp::from_millis(get(row, column)?).ok_or_else(|| format!("{column} is out of range"))
}

fn digest(row: &PgRow, column: &'static str) -> Result<[u8; 32], Problem> {
    get::<&[u8]>(row, column)?.try_into().map_err(|_| format!("{column} is not 32 bytes"))
}
