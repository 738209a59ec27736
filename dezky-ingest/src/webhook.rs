//! Shared parts of the webhook receivers: bodies of any size into the log.

use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{PulledEvent, QuarantineItem, Result};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::intake::{IngestSummary, Intake, Part, PartBounds};

/// Bounds of one append, which leave room for the quarantine's notices.
const PART: PartBounds = PartBounds { events: 4_000, items: 1_000, bytes: 8 << 20 };
/// The number of malformed elements of a body that become items of their own.
pub(crate) const MAX_ODD: usize = 100;
/// The reason of the items for the elements beyond those.
pub(crate) const TOO_MANY_ODD: &str = "too_many_odd";
/// The most bytes of several of them in one item. What earlier versions cut is
/// longer.
pub(crate) const REST_RAW_MAX: usize = MAX_QUARANTINE_RAW_BYTES - 8;
/// The size from which an item of an earlier version may have been truncated.
const CUT_RAW_MIN: usize = MAX_QUARANTINE_RAW_BYTES - 3;

/// Stores the content of a body of `source`, if necessary in several appends: each event has
/// an external id, so a retry of the body adds nothing.
pub(crate) async fn take_in_parts(
    intake: &Intake,
    source: &str,
    events: Vec<PulledEvent>,
    quarantine: Vec<QuarantineItem>,
    skipped: u64,
) -> Result<IngestSummary> {
    let mut taking = Taking::new(intake, source);
    for event in events {
        taking.event(event).await?;
    }
    for item in quarantine {
        taking.item(item).await?;
    }
    taking.finish(skipped).await
}

/// A body that is stored in parts while it is read, so that its events are never all in
/// memory.
pub(crate) struct Taking<'i> {
    intake: &'i Intake,
    source: &'i str,
    part: Part,
    bytes: usize,
    taken: IngestSummary,
}

impl<'i> Taking<'i> {
    pub(crate) fn new(intake: &'i Intake, source: &'i str) -> Self {
        Self { intake, source, part: Part::default(), bytes: 0, taken: IngestSummary::default() }
    }

    pub(crate) async fn event(&mut self, event: PulledEvent) -> Result<()> {
        let bytes = event.event.metadata.source().map_or(0, str::len);
        self.make_room(self.part.events.len() == PART.events, bytes).await?;
        self.part.events.push(event);
        Ok(())
    }

    pub(crate) async fn item(&mut self, item: QuarantineItem) -> Result<()> {
        self.make_room(self.part.items.len() == PART.items, item.raw.len()).await?;
        self.part.items.push(item);
        Ok(())
    }

    async fn make_room(&mut self, is_full: bool, bytes: usize) -> Result<()> {
        if is_full || self.bytes + bytes > PART.bytes {
            self.store().await?;
        }
        self.bytes += bytes;
        Ok(())
    }

    async fn store(&mut self) -> Result<()> {
        self.bytes = 0;
        let Part { events, items } = std::mem::take(&mut self.part);
        if !events.is_empty() || !items.is_empty() {
            self.taken += self.intake.ingest_or_spool(events, items).await?;
        }
        Ok(())
    }

    pub(crate) async fn finish(mut self, skipped: u64) -> Result<IngestSummary> {
        self.store().await?;
        let (source, taken) = (self.source, self.taken);
        // The rest of earlier bodies. Unknown for items that went to the spool.
        if taken.quarantined == 0
            && taken.spooled == 0
            && let Err(error) = self.intake.tell_rest_pushed(source).await
        {
            tracing::warn!(
                source,
                code = error.code(),
                "how many items were quarantined is told later"
            );
        }
        tracing::info!(
            source,
            stored = taken.stored,
            duplicates = taken.duplicates,
            quarantined = taken.quarantined,
            spooled = taken.spooled,
            undated = taken.undated,
            unknown_outcomes = taken.unknown_outcomes,
            unresolved = taken.unresolved,
            skipped,
            "webhook received"
        );
        Ok(taken)
    }
}

/// The kept text of one malformed element, or of several concatenated ones, as a list.
pub(crate) fn kept_list(item: &QuarantineItem) -> std::result::Result<String, String> {
    if item.reason == TOO_MANY_ODD && item.raw.len() >= CUT_RAW_MIN {
        // The text may have been truncated between two elements.
        return Err("not all are kept".into());
    }
    let text = String::from_utf8_lossy(&item.raw);
    let elements = serde_json::Deserializer::from_str(&text).into_iter::<&RawValue>();
    let elements: std::result::Result<Vec<_>, _> =
        elements.map(|raw| raw.map(RawValue::get)).collect();
    Ok(format!("[{}]", elements.map_err(|_| "still no JSON".to_owned())?.join(",")))
}

/// The malformed elements of a body. Those beyond the first hundred are packed into as few
/// items as possible, so that such a body neither floods the log nor loses anything.
#[derive(Default)]
pub(crate) struct OddItems {
    items: Vec<QuarantineItem>,
    more: Vec<Together>,
}

/// Several malformed elements in one item.
#[derive(Default)]
struct Together {
    count: usize,
    /// Hash of their keys, which are stable across retries.
    keys: Sha256,
    /// One line per element.
    raw: Vec<u8>,
}

impl OddItems {
    pub(crate) fn push(&mut self, item: QuarantineItem) {
        if self.items.len() < MAX_ODD {
            self.items.push(item);
            return;
        }
        let is_full = |last: &Together| last.raw.len() + item.raw.len() >= REST_RAW_MAX;
        if self.more.last().is_none_or(is_full) {
            self.more.push(Together::default());
        }
        let Some(together) = self.more.last_mut() else { return };
        together.count += 1;
        together.keys.update(&item.key);
        if !together.raw.is_empty() {
            together.raw.push(b'\n');
        }
        together.raw.extend(item.raw);
    }

    /// Returns the items; `events` is the number of events in the body.
    pub(crate) fn into_items(mut self, events: usize) -> Vec<QuarantineItem> {
        let Some(first) = self.items.first() else { return self.items };
        let (source, at) = (first.source.clone(), first.at);
        self.items.extend(self.more.into_iter().map(|together| QuarantineItem {
            source: source.clone(),
            key: format!("more:{}", hex::encode(together.keys.finalize())),
            reason: TOO_MANY_ODD.into(),
            detail: format!("{} more of {events} events can't be read", together.count),
            raw: together.raw,
            at,
        }));
        self.items
    }
}
