//! Counts of events by hour or day, within a bounded cost.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ListQuery;
use super::engine::{Filter, ListScan, RowStore, ScanEnd, TallyScan};
use crate::{AuditEvent, Error, ErrorKind, Outcome, Result, Timestamp};

/// The length of a bucket. Buckets begin at whole hours or days of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TallyInterval {
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl TallyInterval {
    /// The length in milliseconds.
    pub const fn as_millis(self) -> i64 {
        match self {
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }

    /// The length.
    pub const fn length(self) -> Duration {
        Duration::from_millis(self.as_millis().unsigned_abs())
    }

    /// The beginning of the bucket that `at` is in.
    pub const fn floor(self, at: Timestamp) -> Timestamp {
        let ms = at.as_millis();
        Timestamp::from_millis_clamped(ms - ms.rem_euclid(self.as_millis()))
    }

    /// The first beginning of a bucket at `at` or later.
    pub const fn ceil(self, at: Timestamp) -> Timestamp {
        let length = self.as_millis();
        let past = at.as_millis().rem_euclid(length);
        let missing = if past == 0 { 0 } else { length - past };
        Timestamp::from_millis_clamped(at.as_millis() + missing)
    }

    /// The name in parameters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// A field by which events are counted separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// `source`.
    Source,
    /// `action`.
    Action,
    /// `outcome`.
    Outcome,
    /// `tenantSlug`.
    TenantSlug,
}

impl Dimension {
    /// Every dimension.
    pub const ALL: [Self; 4] = [Self::Source, Self::Action, Self::Outcome, Self::TenantSlug];

    /// The field's JSON name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Action => "action",
            Self::Outcome => "outcome",
            Self::TenantSlug => "tenantSlug",
        }
    }
}

/// The parameters of [`tally`](super::AuditStore::tally).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TallyQuery {
    /// The filters. `since` is rounded down and `until` up to the beginning of a bucket, so that no
    /// bucket is cut. `limit` and `cursor` are not used.
    pub filters: ListQuery,
    /// The length of a bucket.
    pub interval: TallyInterval,
    /// The fields by which events are counted separately.
    pub by: Vec<Dimension>,
}

impl TallyQuery {
    /// Checks the bounds; the times of the filter are those of whole buckets.
    ///
    /// # Errors
    /// `query_invalid` names the parameter and its bound.
    pub fn filter(&self) -> Result<Filter> {
        let filters = ListQuery { limit: 1, cursor: None, ..self.filters.clone() };
        let mut filter = filters.filter()?;
        filter.since = filter.since.map(|since| self.interval.floor(since));
        filter.until = filter.until.map(|until| self.interval.ceil(until));
        if let (Some(since), Some(until)) = (filter.since, filter.until)
            && until < since
        {
            return Err(Error::new(
                ErrorKind::QueryInvalid,
                "since must not be after until: exchange them",
            ));
        }
        Ok(filter)
    }
}

/// The counted events. Buckets without events are absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The counts: newest bucket first, then by the other fields.
    pub counts: Vec<TallyCount>,
    /// The beginning of the range, as counted.
    pub since: Option<Timestamp>,
    /// The end of the range, as counted.
    pub until: Option<Timestamp>,
    /// Only if the bound was reached: the time of the oldest event that was examined. Events
    /// before it, and others of the same time, may be missing.
    pub counted_from: Option<Timestamp>,
}

/// The number of events of one bucket that agree in the fields of [`TallyQuery::by`]; the other
/// fields are `None`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TallyCount {
    /// The beginning of the bucket.
    pub at: Timestamp,
    /// The source.
    pub source: Option<String>,
    /// The action.
    pub action: Option<String>,
    /// The outcome.
    pub outcome: Option<Outcome>,
    /// The tenant; also `None` for events without one.
    pub tenant_slug: Option<String>,
    /// The number of events.
    pub count: u64,
}

impl TallyCount {
    /// One event.
    pub fn of(event: &AuditEvent, interval: TallyInterval, by: &[Dimension]) -> Self {
        let has = |dimension| by.contains(&dimension);
        Self {
            at: interval.floor(event.at),
            source: has(Dimension::Source).then(|| event.source.clone()),
            action: has(Dimension::Action).then(|| event.action.clone()),
            outcome: has(Dimension::Outcome).then_some(event.outcome),
            tenant_slug: event.tenant_slug.clone().filter(|_| has(Dimension::TenantSlug)),
            count: 1,
        }
    }
}

/// Counts that grow window by window.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<TallyCount, u64>);

impl Counts {
    pub(super) fn add(&mut self, count: TallyCount) {
        let (key, more) = (TallyCount { count: 0, ..count }, count.count);
        *self.0.entry(key).or_default() += more;
    }

    /// The number of separate counts.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn into_counts(self) -> Vec<TallyCount> {
        let mut counts: Vec<_> =
            self.0.into_iter().map(|(key, count)| TallyCount { count, ..key }).collect();
        // Stable: within a bucket the order of the map stays.
        counts.sort_by_key(|count| std::cmp::Reverse(count.at));
        counts
    }
}

/// Counts by the engine's list, for engines that do not count themselves.
pub(super) async fn by_list<R: RowStore + ?Sized>(
    rows: &R,
    scan: &TallyScan<'_>,
) -> Result<(Vec<TallyCount>, ScanEnd)> {
    const PAGE_ROWS: usize = 2_000;
    let mut counts = Counts::default();
    let (mut before, mut matched) = (None, 0);
    loop {
        let list = ListScan {
            filter: scan.filter,
            before,
            max_rows: PAGE_ROWS,
            max_examined: scan.max_examined.saturating_sub(matched).max(1),
        };
        let page = rows.list(&list).await?;
        matched += page.events.len();
        for stored in &page.events {
            counts.add(TallyCount::of(&stored.event, scan.interval, scan.by));
        }
        let last = page.events.last().map(|stored| (stored.event.at, stored.seq));
        let end = match (page.end, last) {
            (ScanEnd::Full, Some(last)) => {
                before = Some(last);
                let is_spent = matched >= scan.max_examined || counts.len() >= scan.max_counts;
                is_spent.then_some(ScanEnd::Budget(last))
            }
            (end, _) => Some(end),
        };
        if let Some(end) = end {
            return Ok((counts.into_counts(), end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_at_whole_hours_and_days_of_utc_also_before_1970() {
        let time = |text| Timestamp::parse(text).unwrap();
        for (at, hour, day, next) in [
            (
                "2026-11-21T20:12:21.123Z",
                "2026-11-21T20:00:00Z",
                "2026-11-21T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            (
                "1969-12-31T23:59:59.999Z",
                "1969-12-31T23:00:00Z",
                "1969-12-31T00:00:00Z",
                "1970-01-01T00:00:00Z",
            ),
            (
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00Z",
            ),
        ] {
            assert_eq!(TallyInterval::Hour.floor(time(at)), time(hour));
            assert_eq!(TallyInterval::Day.floor(time(at)), time(day));
            assert_eq!(TallyInterval::Day.ceil(time(at)), time(next));
        }
        assert_eq!(TallyInterval::Day.floor(Timestamp::MIN), Timestamp::MIN);
        assert_eq!(TallyInterval::Day.ceil(Timestamp::MAX), Timestamp::MAX);
    }
}
