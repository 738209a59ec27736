//! Quarantined items: retried with the current decoders, or dropped by an operator.
//!
//! Both leave events on the timeline; no item leaves the quarantine silently.

use dezky_core::store::{
    AppendOptions, Appended, MAX_QUARANTINE_RAW_BYTES, QuarantinedItem, ReceiptStatus,
};
use dezky_core::{
    Actor, AuditEvent, Error, ErrorKind, NewEvent, NewMetadata, PulledEvent, QuarantineItem,
    Result, Runtime, SealedEvent,
};

use crate::annotations::FROM_QUARANTINE;
use crate::distinct::with_new_salt;
use crate::generic::{self, Mapping};
use crate::intake::Intake;
use crate::{authentik, ocis, stalwart};

/// The longest note of a drop, in bytes.
pub const MAX_NOTE_BYTES: usize = 1_000;

/// The result of reading an item with the current decoders.
#[derive(Debug, Clone)]
pub enum ReprocessResult {
    /// Events as the source's decoder makes them, with the external ids that it would have
    /// given.
    Events(Vec<PulledEvent>),
    /// An event that was already mapped; it keeps its id and times.
    Mapped(Box<AuditEvent>),
    /// Not an event; one line for a person says why.
    Refused(String),
}

/// The outcome of a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryOutcome {
    /// The item has left the quarantine and is stored as events.
    Released {
        /// Events that are new in the log.
        stored: usize,
        /// Events that were already in the log, because the source had sent them again.
        duplicates: usize,
    },
    /// The item stays, or somebody else took it meanwhile; one line for a person says why.
    Stays(String),
}

/// Reads an item again; `mappings` are those of the declared sources. Pure.
///
/// The prefix of its key says whether it is a mapped event (`event:` from the intake, `spool:`
/// and `outbox:` from the platform) or the source's own text, redacted and truncated to
/// 64 KiB. Truncated text is not valid JSON any more and is refused.
///
/// Context that was not kept with the bytes is not invented: an oCIS line without a time gets
/// the time at which it was quarantined, and a Stalwart event that names no address has none.
pub fn redecode(item: &QuarantineItem, mappings: &[Mapping]) -> ReprocessResult {
    let QuarantineItem { source, key, raw, .. } = item;
    if raw.is_empty() {
        return ReprocessResult::Refused("nothing of it was kept".into());
    }
    let system = source.split(':').next().unwrap_or_default();
    let decoded = match (key.split(':').next().unwrap_or_default(), system) {
        ("event" | "spool" | "outbox", _) => mapped(raw),
        (_, ocis::SYSTEM) => events(ocis::redecode(item)),
        (_, stalwart::SOURCE) => events(stalwart::redecode(item)),
        (_, authentik::SOURCE) => events(authentik::redecode(item)),
        _ => match mappings.iter().find(|mapping| mapping.source() == source) {
            Some(mapping) => events(generic::redecode(mapping, item)),
            None => ReprocessResult::Refused(format!(
                "no source {source} is declared: give the configuration that declares it"
            )),
        },
    };
    match decoded {
        // Truncation may have removed a whole character.
        ReprocessResult::Refused(_) if raw.len() + 3 >= MAX_QUARANTINE_RAW_BYTES => {
            ReprocessResult::Refused("only its first 64 KiB were kept".into())
        }
        decoded => decoded,
    }
}

fn events(decoded: std::result::Result<Vec<PulledEvent>, String>) -> ReprocessResult {
    decoded.map_or_else(ReprocessResult::Refused, ReprocessResult::Events)
}

/// Reads an event as JSON, with or without the rest of a sealed one.
fn mapped(raw: &[u8]) -> ReprocessResult {
    let text = String::from_utf8_lossy(raw);
    let event = serde_json::from_str(&text).or_else(|error| {
        // A new salt, because our annotation makes it another event.
        SealedEvent::from_json(&text).map(|sealed| sealed.event().clone()).map_err(|_| error)
    });
    match event {
        Ok(event) => ReprocessResult::Mapped(Box::new(event)),
        Err(error) => ReprocessResult::Refused(format!("no event at column {}", error.column())),
    }
}

/// Reads an item again and, where it is an event today, appends that and takes the
/// item out of the quarantine: in one transaction or, where an event has a declared id that
/// is new, right after the events are stored. `mappings` are those of the declared
/// sources, whose items stay without them.
///
/// The events are annotated with `_dezky.fromQuarantine`. Tenants are inferred anew, except
/// for events that were already mapped. Either all events of an item are stored or the item
/// stays. Idempotent: an event that is already in the log is not stored again but still
/// releases the item. If the directory does not answer, the item stays.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::MemoryAuditStore;
/// use dezky_ingest::Intake;
/// use dezky_ingest::quarantine::{RetryOutcome, retry};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let runtime = Arc::new(TokioRuntime);
/// let store = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// let intake = Intake::new(store, runtime);
/// for item in intake.store().quarantined(0, 100).await? {
///     if let RetryOutcome::Stays(why) = retry(&intake, &item, &[]).await? {
///         println!("{}: {why}", item.number);
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`AuditStore::append`](dezky_core::AuditStore::append).
pub async fn retry(
    intake: &Intake,
    item: &QuarantinedItem,
    mappings: &[Mapping],
) -> Result<RetryOutcome> {
    let mut sealed = Vec::new();
    match redecode(&item.item, mappings) {
        ReprocessResult::Refused(why) => return Ok(RetryOutcome::Stays(why)),
        ReprocessResult::Mapped(event) => sealed.push(resealed(*event, &**intake.runtime())),
        ReprocessResult::Events(events) => {
            for mut pulled in events {
                pulled.event.metadata.annotate(FROM_QUARANTINE, true);
                let Some(event) = intake.seal(pulled).await else {
                    let why = "the tenant directory does not answer: retry later";
                    return Ok(RetryOutcome::Stays(why.into()));
                };
                sealed.push(event);
            }
        }
    }
    for event in &sealed {
        if let Err(invalid) = event.validate() {
            return Ok(RetryOutcome::Stays(invalid.to_string()));
        }
    }
    let options = AppendOptions { release: vec![item.number], ..AppendOptions::default() };
    let Appended { receipts, released, .. } = intake.store().append(sealed, options).await?;
    let is_new = |status| status == ReceiptStatus::Appended;
    let stored = receipts.iter().filter(|receipt| is_new(receipt.status)).count();
    if stored > 0 && released == 0 {
        let why = "its events are stored now, but somebody else had dropped or retried it";
        return Ok(RetryOutcome::Stays(why.into()));
    }
    Ok(RetryOutcome::Released { stored, duplicates: receipts.len() - stored })
}

/// Removes an item from the quarantine for good and appends an `ingest.quarantine_dropped`
/// event by `actor` with `note`, in one transaction. Returns false if the item was already
/// gone.
///
/// # Errors
/// `field_invalid` for a note that is empty or has over [`MAX_NOTE_BYTES`] bytes;
/// those of [`AuditStore::append`](dezky_core::AuditStore::append).
pub async fn drop_item(
    intake: &Intake,
    item: &QuarantinedItem,
    actor: Actor,
    note: &str,
) -> Result<bool> {
    check_note(note)?;
    let QuarantinedItem { number, seen, item } = item;
    let digest = item.digest();
    let mut metadata = NewMetadata::default();
    metadata.annotate("number", *number);
    metadata.annotate("key", digest.clone());
    metadata.annotate("reason", item.reason.clone());
    metadata.annotate("seen", *seen);
    metadata.annotate("note", note);
    let event = NewEvent {
        resource_type: Some("source".into()),
        resource_id: Some(item.source.clone()),
        // Concurrent drops of one item are one event.
        external_id: Some(format!("dropped:{number}:{digest}")),
        metadata,
        ..NewEvent::new("ingest.quarantine_dropped", actor)
    };
    let options = AppendOptions { release: vec![*number], ..AppendOptions::default() };
    let event = event.seal(&**intake.runtime());
    Ok(intake.store().append(vec![event], options).await?.released > 0)
}

/// Validates the note of a drop.
///
/// # Errors
/// `field_invalid` names the bound.
pub fn check_note(note: &str) -> Result<()> {
    let is_blank = note.trim().is_empty();
    if is_blank || note.len() > MAX_NOTE_BYTES || note.contains(char::is_control) {
        let what = format!(
            "note: must have 1 to {MAX_NOTE_BYTES} bytes without control characters: say why"
        );
        return Err(Error::new(ErrorKind::FieldInvalid, what));
    }
    Ok(())
}

/// The event with our annotation, under a new salt.
fn resealed(mut event: AuditEvent, runtime: &dyn Runtime) -> SealedEvent {
    // Stays without the annotation if it does not fit.
    if let Some(metadata) = event.metadata.annotated(FROM_QUARANTINE, &true.into()) {
        event.metadata = metadata;
    }
    with_new_salt(event, runtime)
}
