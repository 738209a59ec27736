//! The bounded scan behind `list`, once for all engines with indexes.

use async_trait::async_trait;

use super::{Filter, ListPlace, ListScan, ScanEnd, ScanIndex, ScanPage};
use crate::{Result, StoredEvent};

/// The first stretch of an index that a filtered walk looks at; each next one
/// is four times as long, so that a common word is found at once and a rare one
/// costs few statements.
const FIRST_WINDOW_ROWS: usize = 2_000;

/// The index that leads a walk, and the stretch of it.
pub(super) struct ScanPlan<'a> {
    pub(super) filter: &'a Filter,
    pub(super) index: ScanIndex,
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
pub(super) trait IndexScan: Send {
    /// The first actions that begin with `prefix`, at most two: two look-ups in
    /// the index, however large the log.
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>>;

    /// The place of the last of `size` rows of the plan's index before `before`;
    /// `None` if there are fewer. Looks at no other condition than the plan's.
    async fn window_end(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPlace>,
        size: usize,
    ) -> Result<Option<ListPlace>>;

    /// At most `max_rows` matching rows from before `before` to `last`, which
    /// belongs to them, newest first.
    async fn select(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPlace>,
        last: Option<ListPlace>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>>;
}

/// Scans the plan's index, newest first. Where the plan takes in the whole filter
/// the index gives just the rows wanted; else the walk goes window by window, so
/// that no statement looks at more rows than the budget allows.
pub(super) async fn run(index: &mut dyn IndexScan, scan: &ListScan<'_>) -> Result<ScanPage> {
    let mut plan = ScanPlan { filter: scan.filter, index: scan.index(), action: None };
    if let (ScanIndex::Time, Some(prefix)) = (&plan.index, &scan.filter.action_prefix) {
        match index.actions(prefix).await?.as_slice() {
            [] => return Ok(ScanPage { events: Vec::new(), end: ScanEnd::Exhausted }),
            [only] => plan.action = Some(only.clone()),
            _ => {}
        }
    }
    if plan.is_whole_filter() {
        let events = index.select(&plan, scan.before, None, scan.max_rows).await?;
        let end = if events.len() == scan.max_rows { ScanEnd::Full } else { ScanEnd::Exhausted };
        return Ok(ScanPage { events, end });
    }
    let mut events = Vec::new();
    let mut before = scan.before;
    let mut examined = 0;
    let mut window = FIRST_WINDOW_ROWS;
    loop {
        let size = window.min(scan.max_examined - examined);
        let last = index.window_end(&plan, before, size).await?;
        let missing = scan.max_rows - events.len();
        events.extend(index.select(&plan, before, last, missing).await?);
        if events.len() == scan.max_rows {
            return Ok(ScanPage { events, end: ScanEnd::Full });
        }
        let Some(last) = last else {
            return Ok(ScanPage { events, end: ScanEnd::Exhausted });
        };
        examined += size;
        if examined >= scan.max_examined {
            return Ok(ScanPage { events, end: ScanEnd::Budget(last) });
        }
        before = Some(last);
        window *= 4;
    }
}

impl ScanPlan<'_> {
    /// Whether every row of the stretch matches.
    fn is_whole_filter(&self) -> bool {
        if self.action.is_none() {
            return self.filter.is_index_only(&self.index);
        }
        let rest = Filter { action_prefix: None, ..self.filter.clone() };
        rest.is_index_only(&self.index)
    }
}
