//! The bounded walk of `list`, once for all engines with indexes.

use async_trait::async_trait;

use super::{Driver, Filter, ListPlace, Walk, WalkEnd, Walked};
use crate::{Result, StoredEvent};

/// The first stretch of an index that a filtered walk looks at; each next one
/// is four times as long, so that a common word is found at once and a rare one
/// costs few statements.
const FIRST_WINDOW_ROWS: usize = 2_000;

/// The index that leads a walk, and the stretch of it.
pub(super) struct Lead<'a> {
    pub(super) filter: &'a Filter,
    pub(super) driver: Driver,
    /// The only action that the filter's prefix matches, if it is one alone and
    /// nothing narrower leads: then its own index does.
    pub(super) action: Option<String>,
}

/// A place as engines store it, where numbers are signed.
pub(super) fn columns_of((at, seq): ListPlace) -> (i64, i64) {
    // No `seq` is greater.
    (at.as_millis(), i64::try_from(seq).unwrap_or(i64::MAX))
}

/// What an engine does for a walk; all of it in one snapshot, where the engine has them.
#[async_trait]
pub(super) trait Stretches: Send {
    /// The first actions that begin with `prefix`, at most two: two look-ups in
    /// the index, however large the log.
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>>;

    /// The place of the last of `size` rows of the lead's index before `before`;
    /// `None` if there are fewer. Looks at no other condition than the lead's.
    async fn window_end(
        &mut self,
        lead: &Lead<'_>,
        before: Option<ListPlace>,
        size: usize,
    ) -> Result<Option<ListPlace>>;

    /// At most `max_rows` matching rows from before `before` to `last`, which
    /// belongs to them, newest first.
    async fn select(
        &mut self,
        lead: &Lead<'_>,
        before: Option<ListPlace>,
        last: Option<ListPlace>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>>;
}

/// Walks the lead's index, newest first. Where the lead takes in the whole filter
/// the index gives just the rows wanted; else the walk goes window by window, so
/// that no statement looks at more rows than the budget allows.
pub(super) async fn walk(stretches: &mut dyn Stretches, walk: &Walk<'_>) -> Result<Walked> {
    let mut lead = Lead { filter: walk.filter, driver: walk.driver(), action: None };
    if let (Driver::Time, Some(prefix)) = (&lead.driver, &walk.filter.action_prefix) {
        match stretches.actions(prefix).await?.as_slice() {
            [] => return Ok(Walked { events: Vec::new(), end: WalkEnd::Exhausted }),
            [only] => lead.action = Some(only.clone()),
            _ => {}
        }
    }
    if lead.is_whole_filter() {
        let events = stretches.select(&lead, walk.before, None, walk.max_rows).await?;
        let end = if events.len() == walk.max_rows { WalkEnd::Full } else { WalkEnd::Exhausted };
        return Ok(Walked { events, end });
    }
    let mut events = Vec::new();
    let mut before = walk.before;
    let mut examined = 0;
    let mut window = FIRST_WINDOW_ROWS;
    loop {
        let size = window.min(walk.max_examined - examined);
        let last = stretches.window_end(&lead, before, size).await?;
        let missing = walk.max_rows - events.len();
        events.extend(stretches.select(&lead, before, last, missing).await?);
        if events.len() == walk.max_rows {
            return Ok(Walked { events, end: WalkEnd::Full });
        }
        let Some(last) = last else {
            return Ok(Walked { events, end: WalkEnd::Exhausted });
        };
        examined += size;
        if examined >= walk.max_examined {
            return Ok(Walked { events, end: WalkEnd::Budget(last) });
        }
        before = Some(last);
        window *= 4;
    }
}

impl Lead<'_> {
    /// Whether every row of the stretch matches.
    fn is_whole_filter(&self) -> bool {
        if self.action.is_none() {
            return self.filter.is_driver_only(&self.driver);
        }
        let rest = Filter { action_prefix: None, ..self.filter.clone() };
        rest.is_driver_only(&self.driver)
    }
}
