//! What the receivers of webhooks share: bodies of any size into the log.

use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{PulledEvent, QuarantineItem, Result};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::intake::{IngestSummary, Intake, Part, PartBounds};

/// Of one append; with the quarantine's notices within the store's bound.
const PART: PartBounds = PartBounds { events: 4_000, items: 1_000, bytes: 8 << 20 };
/// How many odd elements of one body are quarantined each as an item of its own.
pub(crate) const MAX_ODD: usize = 100;
/// The reason of those behind them.
pub(crate) const TOO_MANY_ODD: &str = "too_many_odd";
/// The most bytes of several of them in one item. What earlier versions cut is
/// longer.
pub(crate) const REST_RAW_MAX: usize = MAX_QUARANTINE_RAW_BYTES - 8;
/// The size at which an item of an earlier version may have been cut.
const CUT_RAW_MIN: usize = MAX_QUARANTINE_RAW_BYTES - 3;

/// Takes what a body of `source` holds. Parts may be stored in several appends: each
/// event has an identity, so a repeated body adds none.
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

/// A body that is taken in while it is read, a part at a time, so that its events never
/// lie in memory all together.
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
        // Of items that came before; where they are in the spool it is not known.
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

/// What was kept of one odd element, or of several one behind the other, as a list.
pub(crate) fn kept_list(item: &QuarantineItem) -> std::result::Result<String, String> {
    if item.reason == TOO_MANY_ODD && item.raw.len() >= CUT_RAW_MIN {
        // The cut may have fallen between two.
        return Err("not all are kept".into());
    }
    let text = String::from_utf8_lossy(&item.raw);
    let elements = serde_json::Deserializer::from_str(&text).into_iter::<&RawValue>();
    let elements: std::result::Result<Vec<_>, _> =
        elements.map(|raw| raw.map(RawValue::get)).collect();
    Ok(format!("[{}]", elements.map_err(|_| "still no JSON".to_owned())?.join(",")))
}

/// What is no event in one body. What is behind the first hundred is kept together, as
/// many in one item as it has room for, so that a body of odd things does not flood the
/// log and nothing of it is lost.
#[derive(Default)]
pub(crate) struct OddItems {
    items: Vec<QuarantineItem>,
    more: Vec<Together>,
}

/// Several odd elements.
#[derive(Default)]
struct Together {
    count: usize,
    /// Over their keys, which are the same at a retry.
    keys: Sha256,
    /// A line each.
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

    /// The items; `events` is how many the body has.
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
