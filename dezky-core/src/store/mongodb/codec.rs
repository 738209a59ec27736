//! Documents of rows, and access to their fields.

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, RawBsonRef, RawDocumentBuf, doc};
use uuid::Uuid;

use crate::Result;
use crate::source::QuarantineItem;
use crate::store::Head;
use crate::store::codec::{Columns, Problem, signed};
use crate::store::engine::{CursorKey, LeaseRow, NewRow};

/// The document of a row. Times are integers and not dates, because some programs change dates
/// before 1970.
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
        // As canonical JSON text, which is the evidence.
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

/// The fields that deduplication compares.
pub(super) fn compared_fields() -> Document {
    doc! {
        "id": 1, "source": 1, "external_id": 1, "actor_type": 1, "actor_id": 1, "actor_email": 1,
        "action": 1, "outcome": 1, "resource_type": 1, "resource_id": 1, "erasure": 1,
    }
}

/// The document of a new, empty log, without its key.
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

/// The field with the next `seq`.
pub(super) const NEXT_SEQ: &str = "next_seq";

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

pub(super) fn lease_fields(row: &LeaseRow) -> Result<Document> {
    Ok(doc! {
        "holder": row.holder.as_str(),
        "token": signed(row.token)?,
        "expires_at": row.expires_at.as_millis(),
        "length_ms": row.length_ms(),
    })
}

/// Always of one subtype, because bytes of different subtypes never compare as equal.
pub(super) fn bytes(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

pub(super) fn uuid(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

impl Columns for RawDocumentBuf {
    const SEQ: &'static str = "_id";
    const NUMBER: &'static str = "_id";

    fn int(&self, field: &str) -> Result<i64, Problem> {
        self.get_i64(field).map_err(|_| unexpected(field))
    }

    /// Accepts only the subtype for UUIDs: with another one, the same bytes sort elsewhere, where
    /// neither a list nor deduplication would find them.
    fn uuid(&self, field: &str) -> Result<Uuid, Problem> {
        match self.get(field) {
            Ok(Some(RawBsonRef::Binary(id))) if id.subtype == BinarySubtype::Uuid => {
                Uuid::from_slice(id.bytes).map_err(|_| format!("{field} is not a UUID"))
            }
            _ => Err(unexpected(field)),
        }
    }

    fn optional_text(&self, field: &str) -> Result<Option<&str>, Problem> {
        match self.get(field).map_err(|_| unexpected(field))? {
            None => Ok(None),
            Some(RawBsonRef::String(text)) => Ok(Some(text)),
            Some(_) => Err(unexpected(field)),
        }
    }

    fn optional_bytes(&self, field: &str) -> Result<Option<&[u8]>, Problem> {
        match self.get(field).map_err(|_| unexpected(field))? {
            None => Ok(None),
            Some(RawBsonRef::Binary(binary)) => Ok(Some(binary.bytes)),
            Some(_) => Err(unexpected(field)),
        }
    }
}

fn unexpected(field: &str) -> Problem {
    format!("{field} is missing or has an unexpected type")
}
