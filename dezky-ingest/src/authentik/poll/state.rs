//! The cursor: the watermark, and how far each scan has come.

use std::time::Duration;

use dezky_core::{Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::backlog::{Backlog, Search};
use super::request::{Answer, MAX_ROWS, Order, Unreadable};
use super::scan::{Hole, News, Scan};
use crate::authentik::proto::Position;

/// A `created` further ahead of our clock than this does not become the watermark.
const SKEW: Duration = Duration::from_mins(5);
/// An unknown row that is older by this than the rows that a poll has seen became visible late.
const SLACK: Duration = Duration::from_secs(2);
/// The version of the cursor's text.
const VERSION: u8 = 2;
/// The number of holes that are remembered, the newest ones.
const MAX_HOLES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanKind {
    Gap,
    Recent,
    Again,
    Backlog,
    Reconcile,
}

impl ScanKind {
    pub(super) fn order(self) -> Order {
        match self {
            Self::Gap | Self::Backlog => Order::OldestFirst,
            Self::Recent | Self::Again | Self::Reconcile => Order::NewestFirst,
        }
    }
}

/// Content of the cursor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct State {
    pub(super) v: u8,
    /// Counts cursors, so that each differs from the previous one.
    pub(super) n: u64,
    /// All events up to then were taken, except rows that become visible late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) watermark: Option<Timestamp>,
    /// While there is a backlog: the watermark after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) head: Option<Timestamp>,
    /// The start of the last complete reconcile scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reconciled: Option<Timestamp>,
    /// The newest row that a poll has seen. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<Position>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recent: Option<Recent>,
    /// The rest of a poll, beyond the rows that the previous one had seen. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) again: Option<Recent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) backlog: Option<Backlog>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reconcile: Option<Reconcile>,
    /// Rows that were skipped, the newest last. From version 2 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) holes: Vec<Hole>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            v: VERSION,
            n: 0,
            watermark: None,
            head: None,
            reconciled: None,
            seen: None,
            recent: None,
            again: None,
            backlog: None,
            reconcile: None,
            holes: Vec::new(),
        }
    }
}

/// The cursor of a reader that took all events up to `watermark` by other means. Polls go back
/// beyond it by the overlap; duplicates add nothing.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_ingest::authentik::cursor_from;
/// let at = Timestamp::parse("2026-11-21T20:12:21.123Z").unwrap();
/// assert_eq!(cursor_from(at), r#"{"v":2,"n":0,"watermark":"2026-11-21T20:12:21.123Z"}"#);
/// ```
pub fn cursor_from(watermark: Timestamp) -> String {
    let state = State { watermark: Some(watermark), ..State::default() };
    serde_json::to_string(&state).unwrap_or_default()
}

impl State {
    pub(super) fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            v: u8,
        }
        let invalid = |what: String| Error::new(ErrorKind::CursorInvalid, what);
        let unreadable = |error| {
            invalid("the cursor of Authentik's events can't be read".into()).with_source(error)
        };
        // A newer version may have other members, so the version is read first.
        let Version { v } = serde_json::from_str(text).map_err(unreadable)?;
        if !(1..=VERSION).contains(&v) {
            return Err(invalid(format!(
                "the cursor of Authentik's events has version {v}; this program reads versions 1 \
                 to {VERSION}"
            )));
        }
        let mut state: Self = serde_json::from_str(text).map_err(unreadable)?;
        state.v = VERSION;
        if state.is_possible() {
            Ok(state)
        } else {
            Err(invalid("the cursor of Authentik's events contradicts itself".into()))
        }
    }

    /// Whether its numbers are in range, so that arithmetic can't overflow.
    fn is_possible(&self) -> bool {
        let scans = [
            self.recent.as_ref().map(|recent| &recent.scan),
            self.again.as_ref().map(|again| &again.scan),
            self.backlog.as_ref().map(|backlog| &backlog.scan),
            self.reconcile.as_ref().map(|reconcile| &reconcile.scan),
        ];
        let search = self.backlog.as_ref().and_then(|backlog| backlog.search.as_ref());
        scans.into_iter().flatten().all(Scan::is_possible)
            && search.is_none_or(|Search { lo, hi }| 1 <= *lo && lo <= hi && *hi <= MAX_ROWS)
            && self.n < u64::MAX
            && self.holes.len() <= MAX_HOLES
            && self.holes.iter().all(Hole::is_possible)
    }

    pub(super) fn scan(&mut self, kind: ScanKind) -> Option<&mut Scan> {
        match kind {
            ScanKind::Gap => None,
            ScanKind::Recent => self.recent.as_mut().map(|recent| &mut recent.scan),
            ScanKind::Again => self.again.as_mut().map(|again| &mut again.scan),
            ScanKind::Backlog => self.backlog.as_mut().map(|backlog| &mut backlog.scan),
            ScanKind::Reconcile => self.reconcile.as_mut().map(|reconcile| &mut reconcile.scan),
        }
    }

    /// Unknown rows older than this became visible late: both polls and the backlog had passed
    /// them.
    pub(super) fn late_before(&self, now: Timestamp) -> Option<Timestamp> {
        let seen = self.seen.as_ref().map(|seen| seen.created().min(now))?;
        let read = match &self.backlog {
            None => seen,
            Some(Backlog { search: Some(_), floor, .. }) => (*floor)?,
            Some(Backlog { scan, floor, .. }) => {
                scan.anchor.as_ref().map(Position::created).or(*floor)?
            }
        };
        Some(before(seen.min(read), SLACK))
    }

    /// Remembers a scan's findings about holes. Returns one that is new.
    pub(super) fn heed(&mut self, news: Option<News>) -> Option<Unreadable> {
        match news? {
            News::Gone(hole) => {
                self.holes.retain(|known| *known != hole);
                None
            }
            News::Crossed(hole, has_failed) => {
                let is_known = self.holes.iter().any(|known| known.meets(&hole));
                self.holes.retain(|known| !known.meets(&hole));
                let Hole { rows, newer, older, .. } = hole.clone();
                self.holes.push(hole);
                self.holes.sort_by(|a, b| a.older.cmp(&b.older));
                let many = self.holes.len().saturating_sub(MAX_HOLES);
                self.holes.drain(..many);
                (has_failed && !is_known).then_some(Unreadable { rows, newer, older })
            }
        }
    }
}

/// A scan of recent rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Recent {
    #[serde(rename = "walk")]
    pub(super) scan: Scan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) began: Option<Timestamp>,
    pub(super) pages: u32,
    /// The newest time that is not in the future, as a watermark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) top: Option<Timestamp>,
    /// The newest row that is not in the future. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) newest: Option<Position>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Reconcile {
    #[serde(rename = "walk")]
    pub(super) scan: Scan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) began: Option<Timestamp>,
    /// Where it ends, counted from the newest row of the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) floor: Option<Timestamp>,
}

impl Recent {
    /// Notes the newest row of the first page that has one.
    pub(super) fn see(&mut self, answer: Answer<'_>, now: Timestamp) {
        self.top = self.top.or_else(|| newest(answer, now));
        if let (None, Answer::Page { positions, .. }) = (&self.newest, answer) {
            let positions = positions.iter().flatten();
            self.newest = positions.filter(|position| position.created() <= now).max().cloned();
        }
    }
}

/// The newest time of a page, ignoring rows far in the future. A row slightly ahead of our clock
/// counts as now, because the overlap is counted from it.
pub(super) fn newest(answer: Answer<'_>, now: Timestamp) -> Option<Timestamp> {
    let Answer::Page { positions, .. } = answer else { return None };
    let latest = now.saturating_add(SKEW);
    let newest = positions.iter().flatten().map(Position::created).filter(|at| *at <= latest).max();
    newest.map(|at| at.min(now))
}

pub(super) fn before(at: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis_clamped(at.as_millis().saturating_sub(by))
}
