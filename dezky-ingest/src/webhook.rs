//! Shared parts of the webhook receivers: bodies of any size into the log.

use dezky_core::{PulledEvent, QuarantineItem, Result};

use crate::body::DecodedBody;
use crate::intake::{IngestSummary, Intake, Part, PartBounds};

/// Bounds of one append, which leave room for the quarantine's notices.
const PART: PartBounds = PartBounds { events: 4_000, items: 1_000, bytes: 8 << 20 };
/// Stores the content of a body of `source`, if necessary in several appends: each event has
/// an external id, so a retry of the body adds nothing.
pub(crate) async fn take_in_parts(
    intake: &Intake,
    source: &str,
    body: DecodedBody,
) -> Result<IngestSummary> {
    let mut taking = Taking::new(intake, source);
    for event in body.events {
        taking.event(event).await?;
    }
    for item in body.quarantine {
        taking.item(item).await?;
    }
    taking.finish(body.skipped).await
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
