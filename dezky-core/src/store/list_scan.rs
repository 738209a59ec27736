//! The bounded scan behind `list`, once for all engines with indexes.

use async_trait::async_trait;

use super::engine::{Filter, ListPosition, ListScan, ScanEnd, ScanIndex, ScanPage, TallyScan};
use super::tally::{Counts, TallyCount};
use crate::{Result, StoredEvent};

/// The number of index entries in the first window of a filtered scan. Each further window is four
/// times as long, so that a common word is found at once and a rare one takes few statements.
const FIRST_WINDOW_ROWS: usize = 2_000;
/// The maximum number of index entries in a window of a tally: as many counts one statement may
/// return.
const TALLY_WINDOW_ROWS: usize = 50_000;

/// The index that drives a scan, and the conditions that it answers.
pub(super) struct ScanPlan<'a> {
    pub(super) filter: &'a Filter,
    pub(super) index: ScanIndex,
    /// The only action that begins with the filter's prefix, if there is exactly one and
    /// `index` is by time: the index by action then drives the scan.
    pub(super) action: Option<String>,
}

/// A position as engines store it, with signed numbers.
pub(super) fn columns_of((at, seq): ListPosition) -> (i64, i64) {
    // No stored `seq` exceeds `i64::MAX`.
    (at.as_millis(), i64::try_from(seq).unwrap_or(i64::MAX))
}

/// The index reads of a scan, all in one snapshot if the engine has snapshots.
#[async_trait]
pub(super) trait IndexScan: Send {
    /// The first two actions that begin with `prefix`. Takes two look-ups in the index,
    /// independent of the log's size.
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>>;

    /// The position of the last of the `size` entries of the plan's index before `before`; `None`
    /// if there are fewer. Ignores conditions that the index does not answer.
    async fn window_end(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        size: usize,
    ) -> Result<Option<ListPosition>>;

    /// At most `max_rows` matching rows before `before` and down to `last` inclusive, newest
    /// first.
    async fn select(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>>;

    /// Counts the matching rows before `before` and down to `last` inclusive.
    async fn tally(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        scan: &TallyScan<'_>,
    ) -> Result<Vec<TallyCount>>;
}

/// The plan for a filter; `None` if no action begins with its prefix.
async fn plan<'a>(index: &mut dyn IndexScan, filter: &'a Filter) -> Result<Option<ScanPlan<'a>>> {
    let mut plan = ScanPlan { filter, index: filter.index(), action: None };
    if let (ScanIndex::Time, Some(prefix)) = (&plan.index, &filter.action_prefix) {
        match index.actions(prefix).await?.as_slice() {
            [] => return Ok(None),
            [only] => plan.action = Some(only.clone()),
            _ => {}
        }
    }
    Ok(Some(plan))
}

/// Counts window by window, newest first, so that no statement examines more rows than a window
/// has.
pub(super) async fn tally(
    index: &mut dyn IndexScan,
    scan: &TallyScan<'_>,
) -> Result<(Vec<TallyCount>, ScanEnd)> {
    let mut counts = Counts::default();
    let Some(plan) = plan(index, scan.filter).await? else {
        return Ok((counts.into_counts(), ScanEnd::Exhausted));
    };
    let (mut before, mut examined) = (None, 0);
    loop {
        let size = TALLY_WINDOW_ROWS.min(scan.max_examined - examined);
        let last = index.window_end(&plan, before, size).await?;
        for count in index.tally(&plan, before, last, scan).await? {
            counts.add(count);
        }
        let Some(last) = last else {
            return Ok((counts.into_counts(), ScanEnd::Exhausted));
        };
        examined += size;
        if examined >= scan.max_examined || counts.len() >= scan.max_counts {
            return Ok((counts.into_counts(), ScanEnd::Budget(last)));
        }
        before = Some(last);
    }
}

/// Scans the plan's index, newest first. If the index answers the whole filter, one statement
/// reads the page. Otherwise the scan proceeds window by window, so that no statement examines more
/// rows than the budget allows.
pub(super) async fn run(index: &mut dyn IndexScan, scan: &ListScan<'_>) -> Result<ScanPage> {
    let Some(plan) = plan(index, scan.filter).await? else {
        return Ok(ScanPage { events: Vec::new(), end: ScanEnd::Exhausted });
    };
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
    /// Whether every row in the index's range matches the filter.
    fn is_whole_filter(&self) -> bool {
        if self.action.is_none() {
            return self.filter.is_index_only(&self.index);
        }
        let rest = Filter { action_prefix: None, ..self.filter.clone() };
        rest.is_index_only(&self.index)
    }
}
