//! Decides which page to request next, and what an answer means: no clock, no I/O.
//!
//! The server returns numbered pages of a list that changes during the scan, so a page number does
//! not identify a position. Two rules make the scan complete nevertheless:
//!
//! - Pages are requested in a total order (`created, pk`), and each is chosen to contain the last
//!   row of the previous one, the **anchor**. If the page begins at the anchor or before it,
//!   nothing was missed, whatever was inserted or deleted; otherwise the scan steps back. To
//!   contain the anchor, page sizes vary a little.
//! - Rows become visible late, in the order of their commits. So a scan of recent rows goes back
//!   beyond the **watermark** by the overlap, and the watermark is the newest `created` of the
//!   *first* page of a complete scan.
//!
//! There are four scans. Each poll runs *recent*, newest first, until it reaches the rows that the
//! previous poll has seen. Reading the overlap *again*, for late rows, then continues separately,
//! so that new rows never wait for it. If *recent* does not reach that far within a few pages, the
//! rest becomes the *backlog*, which is read oldest first, over as many pulls as it takes. The
//! *reconcile* scan reads the last day again, newest first, back beyond the start of the previous
//! one. Once per interval, a poll takes precedence over all of them.
//!
//! A row that the server fails to return is a **hole**: it is skipped and remembered, so that later
//! scans choose pages without it.

mod backlog;
mod gap;
mod request;
mod scan;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use dezky_core::{Result, Timestamp};

use self::backlog::Backlog;
pub use self::gap::{gap_event, unreadable_event};
pub use self::request::{Answer, Order, Request, Step, Suspect, Unreadable};
use self::scan::{Hole, News, Read, Scan};
pub use self::state::cursor_from;
use self::state::{Recent, Reconcile, ScanKind, State, before, newest};
use super::proto::Position;

/// The number of pages of a poll after which the rest becomes the backlog.
const RECENT_PAGES: u32 = 5;
/// The minimum range of the reconcile scan, and its interval.
const DAY: Duration = Duration::from_hours(24);
/// How far it goes back beyond the start of the previous one, so that a row that became visible
/// around that time is in one of the two; the overlap if that is more.
const SEAM: Duration = Duration::from_hours(1);
/// Its maximum range, however long ago the previous one was.
const WEEK: Duration = Duration::from_hours(7 * 24);
/// The number of consecutive failures after which one that need not be the page's fault is
/// investigated.
const PATIENCE: u32 = 3;
/// The number of polls that begin with a smaller page after a larger one failed.
const CAREFUL_POLLS: u32 = 10;
/// The time without a complete poll after which the oldest row is checked again, because events may
/// have expired.
const OUTAGE: Duration = Duration::from_hours(2);

/// Ranges and rates of the poller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Events per page, 2 to 100.
    pub page_size: u32,
    /// How far polls go back beyond the watermark.
    pub overlap: Duration,
    /// The interval of polls, whatever other scans are running.
    pub interval: Duration,
}

/// State outside the cursor; losing it costs only repeated work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The time of the last complete poll.
    polled: Option<Timestamp>,
    /// Whether the oldest row was checked since the start.
    looked_for_gap: bool,
    /// Whether the last day was read since the start.
    reconciled: bool,
    /// Whether that scan began since the start.
    began_reconcile: bool,
    /// The number of consecutive failures, per scan.
    failures: [u32; 5],
    /// The size of the first page that a poll received after a larger one failed, and the number of
    /// further polls that begin with it.
    first_size: Option<(u32, u32)>,
}

impl Memory {
    /// Copies the failure counts of a pull whose other results are discarded.
    #[cfg(feature = "authentik")]
    pub(super) fn note_failures(&mut self, of: &Self) {
        self.failures = of.failures;
    }
}

/// The state of the poller between two requests.
#[derive(Debug, Clone)]
pub struct Poll {
    settings: Settings,
    state: State,
    memory: Memory,
    /// Purpose of the last request.
    asked: Option<(ScanKind, Request)>,
    /// Whether a poll began since [`Poll::resume`].
    polls: bool,
    /// Whether a gap was found since then, which must be committed before the poll.
    found_gap: bool,
    /// Whether the list was found empty since then, so that no further request is made.
    found_empty: bool,
    /// Findings of the last page about holes.
    news: Option<News>,
}

impl Poll {
    /// Resumes from a cursor, or starts without one.
    ///
    /// # Errors
    /// `cursor_invalid` if neither this nor an older version wrote the cursor.
    pub fn resume(settings: Settings, cursor: Option<&str>, memory: Memory) -> Result<Self> {
        let state = cursor.map_or_else(|| Ok(State::default()), State::parse)?;
        Ok(Self {
            settings,
            state,
            memory,
            asked: None,
            polls: false,
            found_gap: false,
            found_empty: false,
            news: None,
        })
    }

    /// The cursor to commit with the events of the answers since [`Poll::resume`]; `None` if
    /// nothing has changed.
    pub fn cursor(&self, before: Option<&str>, brings: bool) -> Option<String> {
        let text = |state: &State| serde_json::to_string(state).unwrap_or_default();
        let is_same = match before {
            None => self.state == State::default(),
            Some(before) => before == text(&self.state),
        };
        (brings || !is_same).then(|| text(&State { n: self.state.n + 1, ..self.state.clone() }))
    }

    /// The state outside the cursor.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// All events up to then were taken, except rows that become visible late.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.state.watermark
    }

    /// Whether a scan is unfinished or has yet to start.
    pub fn more(&self) -> bool {
        let State { recent, again, backlog, reconcile, .. } = &self.state;
        let scans = recent.is_some() || again.is_some() || backlog.is_some() || reconcile.is_some();
        self.found_gap || scans
    }

    /// The page to request; `None` if there is nothing more to do for now.
    pub fn request(&mut self, now: Timestamp) -> Option<Request> {
        let kind = self.next_scan(now)?;
        let full = self.settings.page_size;
        let holes = std::mem::take(&mut self.state.holes);
        let backlog = self.state.backlog.as_ref().filter(|_| kind == ScanKind::Backlog);
        let request = if kind == ScanKind::Gap {
            Some(Request { order: Order::OldestFirst, page: 1, page_size: 1 })
        } else if let Some(probe) = backlog.and_then(Backlog::search_request) {
            Some(probe)
        } else {
            let retries = kind == ScanKind::Reconcile;
            let scan = self.state.scan(kind);
            scan.map(|scan| scan.ask(kind.order(), &holes, full, retries, now))
        };
        self.state.holes = holes;
        self.asked = request.map(|request| (kind, request));
        request
    }

    /// Whether to investigate a failed request now: if another request then succeeds, the answer is
    /// [`Answer::Failed`]. Otherwise it is retried later.
    pub fn looks_into(&mut self, suspect: Suspect) -> bool {
        let Some((kind, _)) = self.asked else { return false };
        let failures = &mut self.memory.failures[kind as usize];
        *failures = failures.saturating_add(1);
        match suspect {
            Suspect::Page => true,
            Suspect::Anything => failures.is_multiple_of(PATIENCE),
            Suspect::Nothing => false,
        }
    }

    fn next_scan(&mut self, now: Timestamp) -> Option<ScanKind> {
        if self.found_empty {
            return None;
        }
        if self.memory.polled.is_some_and(|at| now.saturating_since(at) > OUTAGE) {
            (self.memory.polled, self.memory.looked_for_gap) = (None, false);
        }
        if !self.memory.looked_for_gap {
            if self.state.watermark.is_some() {
                return Some(ScanKind::Gap);
            }
            self.memory.looked_for_gap = true;
        }
        if self.state.recent.is_some() {
            return Some(ScanKind::Recent);
        }
        let interval = self.settings.interval;
        let polled = self.memory.polled;
        let is_fresh =
            polled.is_some_and(|at| at.saturating_add(interval).is_ahead_of(now, interval));
        let rest = match &self.state {
            State { backlog: Some(_), .. } => Some(ScanKind::Backlog),
            State { reconcile: Some(_), .. } => Some(ScanKind::Reconcile),
            _ => None,
        };
        // Alternately, so that neither waits for the other.
        let again = self.state.again.as_ref().map(|_| ScanKind::Again);
        let is_agains = rest.is_none() || self.state.n.is_multiple_of(2);
        let background = again.filter(|_| is_agains).or(rest).or(again);
        if is_fresh && background.is_some() {
            return background;
        }
        if self.polls {
            return None;
        }
        self.polls = true;
        let mut scan = Scan::new(self.settings.page_size);
        let careful = self.memory.first_size.filter(|(_, polls)| *polls > 0);
        scan.narrow = careful.map(|(size, _)| size);
        self.memory.first_size = careful.map(|(size, polls)| (size, polls - 1));
        let recent = Recent { scan, began: Some(now), pages: 0, top: None, newest: None };
        self.state.recent = Some(recent);
        Some(ScanKind::Recent)
    }

    /// Takes the answer to the last request.
    ///
    /// # Errors
    /// `source_unavailable` if the server limits pages to one event.
    pub fn answer(&mut self, now: Timestamp, answer: Answer<'_>) -> Result<Step> {
        let Some((kind, request)) = self.asked.take() else { return Ok(Step::default()) };
        self.memory.failures[kind as usize] = 0;
        if matches!(answer, Answer::TooLarge | Answer::Failed { .. }) {
            return self.not_given(kind, request, answer);
        }
        if let Answer::Page { has_next: false, positions: [], .. } = answer
            && request.page == 1
        {
            // An account that may no longer view events sees an empty list, so this does not end a
            // scan: the unread rows may come back.
            self.found_empty = true;
            self.state.recent = None;
            return Ok(Step::default());
        }
        let mut step = match kind {
            ScanKind::Gap => self.look_for_gap(answer),
            ScanKind::Recent => self.recent(now, request, answer)?,
            ScanKind::Again => self.again(now, request, answer)?,
            ScanKind::Backlog => self.backlog(now, request, answer)?,
            ScanKind::Reconcile => self.reconcile(now, request, answer)?,
        };
        if let (true, Answer::Page { positions, .. }) = (step.take, answer) {
            // A readable row is not part of a hole.
            let is_read =
                |hole: &Hole| positions.iter().flatten().any(|position| hole.holds(position));
            self.state.holes.retain(|hole| !is_read(hole));
        }
        step.unreadable = self.state.heed(self.news.take());
        if step.unreadable.is_some() {
            self.memory.first_size = None;
        }
        Ok(step)
    }

    /// Takes an answer without a page: it has too many bytes, or the server fails to return it.
    fn not_given(&mut self, kind: ScanKind, request: Request, answer: Answer<'_>) -> Result<Step> {
        if kind == ScanKind::Gap {
            // Harmless for a single row, which later scans meet again.
            self.memory.looked_for_gap = true;
            return Ok(Step::default());
        }
        if let (ScanKind::Backlog, Some(backlog)) = (kind, &mut self.state.backlog)
            && backlog.search.is_some()
        {
            return match answer {
                Answer::TooLarge => backlog.narrow_search(request),
                _ => backlog.probe(request, answer),
            }
            .map(|()| Step::default());
        }
        let Some(scan) = self.state.scan(kind) else { return Ok(Step::default()) };
        let mut step = Step::default();
        if let Answer::Failed { count } = answer {
            scan.failed(kind.order(), request, count);
        } else if scan.too_large(kind.order(), request) {
            step.passed = Some(scan.anchor.clone());
        }
        let news = scan.news.take();
        step.unreadable = self.state.heed(news);
        Ok(step)
    }

    fn look_for_gap(&mut self, answer: Answer<'_>) -> Step {
        self.memory.looked_for_gap = true;
        let oldest = match answer {
            Answer::Page { positions: [Some(oldest), ..], .. } => oldest.created(),
            _ => return Step::default(),
        };
        let gap = self.state.watermark.filter(|watermark| oldest > *watermark);
        self.found_gap = gap.is_some();
        Step { gap: gap.map(|watermark| (watermark, oldest)), ..Step::default() }
    }

    fn recent(&mut self, now: Timestamp, request: Request, answer: Answer<'_>) -> Result<Step> {
        let late_before = self.state.late_before(now);
        let Some(recent) = &mut self.state.recent else { return Ok(Step::default()) };
        let read = recent.scan.read(Order::NewestFirst, request, answer)?;
        self.news = recent.scan.news.take();
        if read != Read::Back {
            recent.see(answer, now);
        }
        // A position from a clock that was ahead says nothing about new rows.
        let seen = self.state.seen.as_ref().filter(|seen| seen.created() <= now);
        let step = Step { take: read != Read::Back, late_before, ..Step::default() };
        let Read::Forward { is_end } = read else { return Ok(step) };
        if request.page == 1 && self.memory.first_size.is_none() && recent.scan.narrow.is_some() {
            self.memory.first_size = Some((request.page_size, CAREFUL_POLLS));
        }
        // Pages narrowed because of one row don't count: they hold few rows.
        recent.pages += u32::from(recent.scan.narrow.is_none());
        // Bounded by now, because every new row would be older than a time in the future.
        let known = self.state.head.or(self.state.watermark).map(|known| known.min(now));
        let anchor = recent.scan.anchor.clone();
        let oldest = anchor.as_ref().map(Position::created);
        let floor = known.map(|known| before(known, self.settings.overlap));
        let has_seen = match (&anchor, seen) {
            (Some(anchor), Some(seen)) => anchor <= seen,
            // For the cursor of an older version.
            (Some(anchor), None) => known.is_some_and(|known| anchor.created() < known),
            (None, _) => false,
        };
        let began = recent.began.unwrap_or(now);
        let is_slow = now.saturating_since(began) >= self.settings.interval;
        let max_pages = if known.is_some() { RECENT_PAGES } else { 1 };
        if is_end || matches!((oldest, floor), (Some(oldest), Some(floor)) if oldest < floor) {
            if let Some(recent) = self.end_poll(now) {
                self.polled(now, &recent, oldest.filter(|_| !is_end));
            }
        } else if has_seen {
            if let Some(recent) = self.end_poll(now)
                && self.state.again.is_none()
            {
                self.state.again = Some(recent);
            }
        } else if is_slow && anchor.is_some() && self.state.again.is_none() {
            // The next poll must not wait for it. Rows that it has not read yet are not late.
            self.state.again = self.end_poll(now).map(|recent| Recent { newest: None, ..recent });
        } else if let Some(until) = anchor
            && (recent.pages >= max_pages || is_slow)
            && let Some(recent) = self.end_poll(now)
        {
            let top = recent.top.unwrap_or(until.created().min(now));
            self.fall_behind(now, top, until, &recent.scan);
        }
        Ok(step)
    }

    /// Ends a poll that reached the rows of the previous one, or its range.
    fn end_poll(&mut self, now: Timestamp) -> Option<Recent> {
        let recent = self.state.recent.take()?;
        self.memory.polled = Some(now);
        let seen = self.state.seen.take().filter(|seen| seen.created() <= now);
        self.state.seen = seen.max(recent.newest.clone());
        Some(recent)
    }

    /// Reads the overlap again, beyond the rows that polls had seen.
    fn again(&mut self, now: Timestamp, request: Request, answer: Answer<'_>) -> Result<Step> {
        let late_before = self.state.late_before(now);
        let Some(again) = &mut self.state.again else { return Ok(Step::default()) };
        let late_before = late_before.filter(|_| again.newest.is_some());
        let read = again.scan.read(Order::NewestFirst, request, answer)?;
        self.news = again.scan.news.take();
        let step = Step { take: read != Read::Back, late_before, ..Step::default() };
        let Read::Forward { is_end } = read else { return Ok(step) };
        let again = self.state.again.as_ref();
        let oldest = again.and_then(|again| again.scan.anchor.as_ref()).map(Position::created);
        let known = self.state.head.or(self.state.watermark).map(|known| known.min(now));
        let floor = known.map(|known| before(known, self.settings.overlap));
        if (is_end || matches!((oldest, floor), (Some(oldest), Some(floor)) if oldest < floor))
            && let Some(again) = self.state.again.take()
        {
            self.polled(now, &again, oldest.filter(|_| !is_end));
        }
        Ok(step)
    }

    /// Completes a poll that went back to `from`, or to the oldest event.
    fn polled(&mut self, now: Timestamp, poll: &Recent, from: Option<Timestamp>) {
        let (top, began) = (poll.top, poll.began.unwrap_or(now));
        self.state.again = None;
        if self.state.backlog.is_some() {
            self.state.head = self.state.head.max(top);
            return;
        }
        self.state.watermark = self.state.watermark.max(top);
        if from.is_none_or(|from| top.is_some_and(|top| from < self.reconcile_floor(top, now))) {
            self.state.reconcile = None;
            if self.is_reconcile_due(now) {
                self.reconciled(began);
            }
        } else {
            self.reconcile_if_due(now);
        }
    }

    /// Starts or extends the backlog, because a poll did not reach the known rows; it has read
    /// everything from `until` on.
    fn fall_behind(&mut self, now: Timestamp, top: Timestamp, until: Position, scan: &Scan) {
        let overlap = self.settings.overlap;
        let State { watermark, head, again, backlog, .. } = &mut self.state;
        // The backlog goes back that far.
        *again = None;
        match backlog {
            None => {
                let floor = watermark.map(|watermark| before(watermark.min(now), overlap));
                let mut anew = Scan::new(scan.size);
                anew.count = scan.count;
                let new = Backlog { floor, until, search: None, scan: anew, began: Some(now) };
                backlog.insert(new).search();
            }
            Some(backlog) => {
                backlog.until = until.max(backlog.until.clone());
                // Otherwise nothing would find rows that become visible late in the region that it
                // has passed.
                let redo = head.map(|head| before(head.min(now), overlap));
                let at = backlog.scan.anchor.as_ref().map(Position::created);
                if backlog.search.is_none() && at > redo && redo.is_some() {
                    backlog.floor = redo;
                    backlog.scan.count = scan.count;
                    backlog.search();
                }
            }
        }
        *head = (*head).max(Some(top));
    }

    fn backlog(&mut self, now: Timestamp, request: Request, answer: Answer<'_>) -> Result<Step> {
        let State { watermark, head, backlog: Some(backlog), .. } = &mut self.state else {
            return Ok(Step::default());
        };
        if backlog.search.is_some() {
            backlog.probe(request, answer)?;
            return Ok(Step::default());
        }
        let read = backlog.scan.read(Order::OldestFirst, request, answer)?;
        self.news = backlog.scan.news.take();
        let step = Step { take: read != Read::Back, ..Step::default() };
        let Read::Forward { is_end } = read else { return Ok(step) };
        let at = backlog.scan.anchor.as_ref();
        *watermark = (*watermark).max(at.map(Position::created).min(*head));
        if is_end || at.is_some_and(|at| *at >= backlog.until) {
            let (is_whole, began) = (backlog.floor.is_none(), backlog.began.unwrap_or(now));
            *watermark = (*watermark).max(*head);
            (*head, self.state.backlog) = (None, None);
            if is_whole {
                self.reconciled(began);
            } else {
                self.reconcile_if_due(now);
            }
        }
        Ok(step)
    }

    fn reconcile(&mut self, now: Timestamp, request: Request, answer: Answer<'_>) -> Result<Step> {
        let floor = newest(answer, now).map(|top| self.reconcile_floor(top, now));
        let late_before = self.state.late_before(now);
        let Some(reconcile) = &mut self.state.reconcile else { return Ok(Step::default()) };
        let read = reconcile.scan.read(Order::NewestFirst, request, answer)?;
        self.news = reconcile.scan.news.take();
        if read == Read::Back {
            return Ok(Step::default());
        }
        let step = Step { take: true, late_before, ..Step::default() };
        reconcile.floor = reconcile.floor.or(floor);
        let Read::Forward { is_end } = read else { return Ok(step) };
        let at = reconcile.scan.anchor.as_ref().map(Position::created);
        if is_end || at.zip(reconcile.floor).is_some_and(|(at, floor)| at < floor) {
            let began = reconcile.began.unwrap_or(now);
            self.reconciled(began);
            // A scan that an earlier process began has passed rows that became visible since, so
            // one of our own follows.
            self.memory.reconciled = self.memory.began_reconcile;
        }
        Ok(step)
    }

    fn is_reconcile_due(&self, now: Timestamp) -> bool {
        let is_recent = |at: Timestamp| at.saturating_add(DAY).is_ahead_of(now, DAY);
        !self.memory.reconciled || !self.state.reconciled.is_some_and(is_recent)
    }

    fn reconcile_if_due(&mut self, now: Timestamp) {
        if self.is_reconcile_due(now) && self.state.reconcile.is_none() {
            let scan = Scan::new(self.settings.page_size);
            self.state.reconcile = Some(Reconcile { scan, began: Some(now), floor: None });
            self.memory.began_reconcile = true;
        }
    }

    /// How far back a reconcile scan goes whose newest event is at `top`. It must find the rows
    /// that were not visible yet when the previous one began.
    fn reconcile_floor(&self, top: Timestamp, now: Timestamp) -> Timestamp {
        let (day, week) = (before(top, DAY), before(top, WEEK));
        let seam = SEAM.max(self.settings.overlap);
        match self.state.reconciled {
            None => day,
            // The clock was ahead, so the real time is unknown.
            Some(began) if began > now => week,
            Some(began) => before(began, seam).clamp(week, day),
        }
    }

    fn reconciled(&mut self, began: Timestamp) {
        self.state.reconcile = None;
        self.state.reconciled = Some(began);
        self.memory.reconciled = true;
    }
}
