//! What is done about quarantined items: they are read again by the code of
//! today, or somebody drops them. Either way it commits with an event on the
//! timeline; nothing leaves the quarantine in silence.

use dezky_core::store::{
    AppendOptions, Appended, MAX_QUARANTINE_RAW_BYTES, QuarantinedItem, ReceiptStatus,
};
use dezky_core::{
    Actor, AuditEvent, Error, ErrorKind, NewEvent, NewMetadata, PulledEvent, QuarantineItem,
    Result, Runtime, SealedEvent,
};

use crate::generic::{self, Mapping};
use crate::intake::Intake;
use crate::{authentik, ocis, stalwart};

/// The annotation of an event that came out of the quarantine.
const FROM_QUARANTINE: &str = "fromQuarantine";
/// The most bytes of the note to a drop.
pub const MAX_NOTE_BYTES: usize = 1_000;

/// What an item is today.
#[derive(Debug, Clone)]
pub enum ReprocessResult {
    /// Events, as the source's own decoder makes them: with the external ids that
    /// it would have given.
    Events(Vec<PulledEvent>),
    /// An event that had been mapped before: its id and times stay.
    Mapped(Box<AuditEvent>),
    /// Still nothing that can be stored, and why: one line for a person.
    Refused(String),
}

/// What became of a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryOutcome {
    /// The item has left the quarantine, as events of the log.
    Released {
        /// How many of its events are new in the log.
        stored: usize,
        /// How many were there already: the source had sent them again meanwhile.
        duplicates: usize,
    },
    /// The item stays, or somebody else took it meanwhile, and why: one line for a person.
    Stays(String),
}

/// Reads an item again; `mappings` are those of the declared sources. Pure.
///
/// By the form of its key it is an event that was mapped before (`event:` from the
/// intake, `spool:` and `outbox:` from the platform itself), else what its source
/// sent, as kept: redacted, and cut at 64 KiB. Cut text is no JSON any more and
/// stays what it is.
///
/// What a source knew beside the bytes and did not keep is not made up: a line of
/// oCIS without a time of its own gets the time of its quarantining, and an event of
/// Stalwart that names no address has none.
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
        // A character may have been cut off whole.
        ReprocessResult::Refused(_) if raw.len() + 3 >= MAX_QUARANTINE_RAW_BYTES => {
            ReprocessResult::Refused("only its first 64 KiB were kept".into())
        }
        decoded => decoded,
    }
}

fn events(decoded: std::result::Result<Vec<PulledEvent>, String>) -> ReprocessResult {
    decoded.map_or_else(ReprocessResult::Refused, ReprocessResult::Events)
}

/// An event as JSON, or all of a sealed one.
fn mapped(raw: &[u8]) -> ReprocessResult {
    let text = String::from_utf8_lossy(raw);
    let event = serde_json::from_str(&text).or_else(|error| {
        // The salt is made anew, as the event is not the same with our annotation.
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
/// The events bear `_dezky.fromQuarantine`; tenants are inferred as of now, except
/// for events that had been mapped before. Of several events either all are stored
/// or the item stays. Idempotent: an event that is in the log already is not stored
/// again, and releases the item all the same. While the directory does not answer the
/// item stays.
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

/// Takes an item out of the quarantine for good, and says so on the timeline: an
/// `ingest.quarantine_dropped` event by `actor` with `note`, in one transaction.
/// False if it was not there any more.
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
        // Two who drop it at once say so once.
        external_id: Some(format!("dropped:{number}:{digest}")),
        metadata,
        ..NewEvent::new("ingest.quarantine_dropped", actor)
    };
    let options = AppendOptions { release: vec![*number], ..AppendOptions::default() };
    let event = event.seal(&**intake.runtime());
    Ok(intake.store().append(vec![event], options).await?.released > 0)
}

/// Checks a note before anything is dropped.
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
    // What has no room for it goes without.
    if let Some(metadata) = event.metadata.annotated(FROM_QUARANTINE, &true.into()) {
        event.metadata = metadata;
    }
    with_new_salt(event, runtime)
}

/// Seals an event that was put together already.
pub(crate) fn with_new_salt(event: AuditEvent, runtime: &dyn Runtime) -> SealedEvent {
    let mut salt = [0; 32];
    runtime.fill_random(&mut salt);
    SealedEvent::new(event, salt)
}
