//! Documents to events and back.

use std::str::FromStr;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, RawBsonRef, RawDocument, doc};
use uuid::Uuid;

use crate::integrity::{Erasure, Evidence};
use crate::source::QuarantineItem;
use crate::store::{
    CursorKey, ExistingRow, Head, LeaseRow, ListPlace, LogState, NewRow, QuarantinedItem,
    ScannedRow, SearchColumns, StoredRow, UnreadableRow,
};
use crate::{AuditEvent, Error, ErrorKind, Metadata, Result, StoredEvent, Timestamp};

/// A field and what is wrong with it; never its value.
type Problem = String;

/// The document of a row. Times are whole milliseconds, as a date would be, but no
/// program on the way takes them for one and cuts what lies before 1970.
pub(super) fn event_document(row: &NewRow<'_>) -> Result<Document> {
    let event = row.event;
    let search_columns = row.search_columns();
    let mut document = doc! {
        "_id": signed(row.seq)?,
        "id": uuid(event.id),
        "at": event.at.as_millis(),
        "received_at": event.received_at.as_millis(),
        "actor_type": event.actor_type.as_str(),
        "action": event.action.as_str(),
        "outcome": event.outcome.as_str(),
        "source": event.source.as_str(),
        // Canonical JSON text: the evidence.
        "metadata": event.metadata.as_str(),
        "prev_hash": bytes(&row.prev_hash),
        "hash": bytes(&row.hash),
        "search": search_columns.search,
    };
    for (name, text) in [
        ("actor_id", &event.actor_id),
        ("actor_email", &event.actor_email),
        ("actor_ip", &event.actor_ip),
        ("resource_type", &event.resource_type),
        ("resource_id", &event.resource_id),
        ("resource_name", &event.resource_name),
        ("tenant_slug", &event.tenant_slug),
        ("partner_slug", &event.partner_slug),
        ("external_id", &event.external_id),
        ("actor_email_fold", &search_columns.actor_email),
    ] {
        if let Some(text) = text {
            document.insert(name, text.as_str());
        }
    }
    if let Some(salt) = row.salt() {
        document.insert("salt", bytes(salt));
    }
    if let Some(erasure) = row.erasure() {
        document.insert("erasure", bytes(&erasure));
    }
    Ok(document)
}

/// A row of a scan: readable, or where it is and why not.
pub(super) fn scanned_row(row: &RawDocument) -> ScannedRow {
    let seq = int(row, "_id").unwrap_or(-1);
    stored_row(row).map_err(|problem| UnreadableRow { seq, problem })
}

/// A row of a list, which has to be readable.
pub(super) fn listed_row(row: &RawDocument) -> Result<StoredEvent> {
    stored_row(row).map(|row| row.stored).map_err(|problem| {
        Error::new(
            ErrorKind::StoreCorrupt,
            format!("a row of the audit log can't be read ({problem}): run verify"),
        )
    })
}

/// What deduplication reads.
pub(super) fn compared_fields() -> Document {
    doc! {
        "id": 1, "source": 1, "external_id": 1, "actor_type": 1, "actor_id": 1, "actor_email": 1,
        "action": 1, "outcome": 1, "resource_type": 1, "resource_id": 1, "erasure": 1,
    }
}

pub(super) fn existing_row(row: &RawDocument) -> ExistingRow {
    let id = binary(row, "id").ok().and_then(|id| Uuid::from_slice(id).ok());
    let text = |name| optional_text(row, name).ok().flatten();
    let erasure = optional_binary(row, "erasure").ok().flatten();
    ExistingRow::of_columns(int(row, "_id").ok(), id, text, erasure)
}

fn stored_row(row: &RawDocument) -> Result<StoredRow, Problem> {
    let evidence = evidence(row)?;
    let event = AuditEvent {
        id: uuid_field(row)?,
        at: timestamp(row, "at")?,
        received_at: timestamp(row, "received_at")?,
        actor_type: parsed(row, "actor_type")?,
        actor_id: optional_text(row, "actor_id")?,
        actor_email: optional_text(row, "actor_email")?,
        actor_ip: optional_text(row, "actor_ip")?,
        action: text(row, "action")?.to_owned(),
        outcome: parsed(row, "outcome")?,
        resource_type: optional_text(row, "resource_type")?,
        resource_id: optional_text(row, "resource_id")?,
        resource_name: optional_text(row, "resource_name")?,
        tenant_slug: optional_text(row, "tenant_slug")?,
        partner_slug: optional_text(row, "partner_slug")?,
        source: text(row, "source")?.to_owned(),
        external_id: optional_text(row, "external_id")?,
        metadata: Metadata::from_stored(text(row, "metadata")?),
    };
    Ok(StoredRow {
        stored: StoredEvent {
            seq: count(row, "_id")?,
            event,
            erased: evidence.erased_fields(),
            prev_hash: digest(row, "prev_hash")?,
            hash: digest(row, "hash")?,
        },
        evidence,
        search_columns: SearchColumns {
            actor_email: optional_text(row, "actor_email_fold")?,
            search: text(row, "search")?.to_owned(),
        },
    })
}

fn evidence(row: &RawDocument) -> Result<Evidence, Problem> {
    match (optional_binary(row, "salt")?, optional_binary(row, "erasure")?) {
        (Some(salt), None) => {
            Ok(Evidence::Salt(salt.try_into().map_err(|_| "salt is not 32 bytes")?))
        }
        (None, Some(erasure)) => Erasure::from_bytes(erasure)
            .map(|erasure| Evidence::Erased(Box::new(erasure)))
            .map_err(|_| "erasure can't be read".into()),
        _ => Err("there must be either salt or erasure".into()),
    }
}

/// The document of a new, empty log, but for its key.
pub(super) fn fresh_log(log_id: Uuid, cursor_key: &CursorKey) -> Document {
    let mut log = head_fields("base", Head::EMPTY).unwrap_or_default();
    log.extend(head_fields("head", Head::EMPTY).unwrap_or_default());
    log.extend(identity_fields(log_id, cursor_key));
    log.extend(doc! { "turn": 0_i64, "next_number": 1_i64 });
    log
}

pub(super) fn identity_fields(log_id: Uuid, cursor_key: &CursorKey) -> Document {
    doc! { "log_id": uuid(log_id), "cursor_key": bytes(&cursor_key.0) }
}

pub(super) fn head_fields(name: &str, head: Head) -> Result<Document> {
    let seq = if name == "base" { "base_seq" } else { NEXT_SEQ };
    let mut fields = doc! { seq: signed(head.next_seq)? };
    fields.insert(format!("{name}_hash"), bytes(&head.hash));
    Ok(fields)
}

/// How many events the log has had.
pub(super) const NEXT_SEQ: &str = "next_seq";

/// The log's own document.
pub(super) fn log_state(log: &RawDocument) -> Result<LogState> {
    let read = || -> Result<LogState, Problem> {
        Ok(LogState {
            log_id: Uuid::from_slice(binary(log, "log_id")?).map_err(|_| "log_id is not a UUID")?,
            cursor_key: CursorKey(digest(log, "cursor_key")?),
            base: Head { next_seq: count(log, "base_seq")?, hash: digest(log, "base_hash")? },
            head: Head { next_seq: count(log, NEXT_SEQ)?, hash: digest(log, "head_hash")? },
        })
    };
    read().map_err(corrupt)
}

pub(super) fn quarantine_document(
    number: i64,
    seen: u64,
    item: &QuarantineItem,
) -> Result<Document> {
    Ok(doc! {
        "_id": number,
        "source": item.source.as_str(),
        "key": item.key.as_str(),
        "reason": item.reason.as_str(),
        "detail": item.detail.as_str(),
        "raw": bytes(&item.raw),
        "at": item.at.as_millis(),
        "seen": signed(seen)?,
    })
}

pub(super) fn quarantined_item(row: &RawDocument) -> Result<QuarantinedItem> {
    let read = || -> Result<QuarantinedItem, Problem> {
        Ok(QuarantinedItem {
            number: int(row, "_id")?,
            seen: count(row, "seen")?,
            item: QuarantineItem {
                source: text(row, "source")?.to_owned(),
                key: text(row, "key")?.to_owned(),
                reason: text(row, "reason")?.to_owned(),
                detail: text(row, "detail")?.to_owned(),
                raw: binary(row, "raw")?.to_vec(),
                at: timestamp(row, "at")?,
            },
        })
    };
    read().map_err(corrupt)
}

pub(super) fn number_and_count(row: &RawDocument) -> Result<(i64, u64)> {
    let read = || -> Result<_, Problem> { Ok((int(row, "_id")?, count(row, "seen")?)) };
    read().map_err(corrupt)
}

pub(super) fn lease_row(row: &RawDocument) -> Result<LeaseRow> {
    let read = || -> Result<LeaseRow, Problem> {
        Ok(LeaseRow {
            holder: text(row, "holder")?.to_owned(),
            token: count(row, "token")?,
            expires_at: timestamp(row, "expires_at")?,
            // Earlier versions did not say.
            length: row.get_i64("length_ms").ok().and_then(LeaseRow::length_of),
        })
    };
    read().map_err(corrupt)
}

pub(super) fn lease_fields(row: &LeaseRow) -> Result<Document> {
    Ok(doc! {
        "holder": row.holder.as_str(),
        "token": signed(row.token)?,
        "expires_at": row.expires_at.as_millis(),
        "length_ms": row.length_ms(),
    })
}

/// A place in the order of lists.
pub(super) fn place(row: &RawDocument) -> Result<ListPlace> {
    let read = || -> Result<ListPlace, Problem> { Ok((timestamp(row, "at")?, count(row, "_id")?)) };
    read().map_err(corrupt)
}

pub(super) fn corrupt(problem: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::StoreCorrupt, format!("{problem}: restore the database from a backup"))
}

/// Bytes of one length compare as such only within a subtype.
pub(super) fn bytes(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

pub(super) fn uuid(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

pub(super) fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| corrupt("a counter is beyond 2^63"))
}

pub(super) fn text<'d>(row: &'d RawDocument, name: &str) -> Result<&'d str, Problem> {
    row.get_str(name).map_err(|_| unexpected(name))
}

pub(super) fn int(row: &RawDocument, name: &str) -> Result<i64, Problem> {
    row.get_i64(name).map_err(|_| unexpected(name))
}

fn optional_text(row: &RawDocument, name: &str) -> Result<Option<String>, Problem> {
    match row.get(name).map_err(|_| unexpected(name))? {
        None => Ok(None),
        Some(RawBsonRef::String(text)) => Ok(Some(text.to_owned())),
        Some(_) => Err(unexpected(name)),
    }
}

fn optional_binary<'d>(row: &'d RawDocument, name: &str) -> Result<Option<&'d [u8]>, Problem> {
    match row.get(name).map_err(|_| unexpected(name))? {
        None => Ok(None),
        Some(RawBsonRef::Binary(binary)) => Ok(Some(binary.bytes)),
        Some(_) => Err(unexpected(name)),
    }
}

fn binary<'d>(row: &'d RawDocument, name: &str) -> Result<&'d [u8], Problem> {
    optional_binary(row, name)?.ok_or_else(|| unexpected(name))
}

/// The event's id. The same bytes of another subtype sort elsewhere, where neither a page
/// nor deduplication would find them.
fn uuid_field(row: &RawDocument) -> Result<Uuid, Problem> {
    match row.get("id") {
        Ok(Some(RawBsonRef::Binary(id))) if id.subtype == BinarySubtype::Uuid => {
            Uuid::from_slice(id.bytes).map_err(|_| "id is not a UUID".into())
        }
        _ => Err(unexpected("id")),
    }
}

fn count(row: &RawDocument, name: &str) -> Result<u64, Problem> {
    u64::try_from(int(row, name)?).map_err(|_| format!("{name} is negative"))
}

fn parsed<T: FromStr>(row: &RawDocument, name: &str) -> Result<T, Problem> {
    text(row, name)?.parse().map_err(|_| format!("{name} has an unknown value"))
}

fn timestamp(row: &RawDocument, name: &str) -> Result<Timestamp, Problem> {
    Timestamp::from_millis(int(row, name)?).ok_or_else(|| format!("{name} is out of range"))
}

fn digest(row: &RawDocument, name: &str) -> Result<[u8; 32], Problem> {
    binary(row, name)?.try_into().map_err(|_| format!("{name} is not 32 bytes"))
}

fn unexpected(name: &str) -> Problem {
    format!("{name} is missing or has an unexpected type")
}
