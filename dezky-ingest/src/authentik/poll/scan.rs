//! A scan of the list in a total order.
//!
//! Each page is chosen to contain the anchor, the last row that was read. Where no page within the
//! bounds contains it and more (always for pages of one row, often for two or three, never for a
//! hundred), the page after it is read, and then the anchor's row once more: if it is unmoved, no
//! row was missed between the two.
//!
//! A row that the server fails to return, or that has too many bytes, is isolated by smaller pages
//! and skipped. Next to it, rows are requested one by one, counted from the oldest: each failed
//! request may add an event at the newest end, which would move any position counted from there.

use dezky_core::{Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::request::{Answer, MAX_PAGE_SIZE, MAX_ROWS, MIN_PAGE_SIZE, Order, Request};
use crate::authentik::proto::Position;

/// How often a row must fail alone before it is skipped; the server must answer another request in
/// between.
const STRIKES: u32 = 2;
/// The number of pages of a size that the server imposed after which a larger one is tried again.
const STEADY_PAGES: u32 = 50;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Scan {
    /// The number of rows before its position.
    pub(super) offset: u64,
    /// The last row that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) anchor: Option<Position>,
    /// The largest page that the server returns.
    pub(super) size: u32,
    /// The largest page that succeeds here, if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) narrow: Option<u32>,
    /// The number of rows in the list when `offset` was counted; 0 if unknown.
    pub(super) count: u64,
    /// The number of consecutive answers that did not continue the scan.
    #[serde(default, skip_serializing_if = "is_zero")]
    misses: u32,
    /// The number of rows after the anchor that were skipped.
    #[serde(default, skip_serializing_if = "is_zero")]
    passed: u32,
    /// How many of these the server failed to return. From version 2 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    failed: u32,
    /// How often the next row has failed alone. From version 2 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    strikes: u32,
    /// The number of pages since the server imposed `size`. From version 2 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    steady: u32,
    /// The next position, provided that the anchor has not moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
    /// The known hole that is being skipped unread.
    #[serde(skip)]
    trusted: Option<Hole>,
    /// Whether the anchor is in the future, so that new rows appear on its older side.
    #[serde(skip)]
    is_future: bool,
    /// Findings of the last answer about holes.
    #[serde(skip)]
    pub(super) news: Option<News>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Next {
    offset: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    anchor: Option<Position>,
    is_end: bool,
}

/// Consecutive rows that were skipped, and their position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hole {
    /// The next newer row; `None`: they are the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) newer: Option<Position>,
    /// The next older row; `None`: they are the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) older: Option<Position>,
    /// The number of rows.
    pub(super) rows: u32,
    /// The number of newer rows when it was last seen. Grows with new events.
    above: u64,
    /// The number of older rows when it was last seen. Shrinks as events expire.
    below: u64,
}

impl Hole {
    /// Whether a row is inside it.
    pub(super) fn holds(&self, position: &Position) -> bool {
        self.newer.as_ref().is_none_or(|newer| position < newer)
            && self.older.as_ref().is_none_or(|older| position > older)
    }

    /// Whether both cover the same part of the list.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let is_before = |older: &Option<Position>, newer: &Option<Position>| {
            older.as_ref().zip(newer.as_ref()).is_none_or(|(older, newer)| older < newer)
        };
        is_before(&self.older, &other.newer) && is_before(&other.older, &self.newer)
    }

    pub(super) fn is_possible(&self) -> bool {
        self.above <= MAX_ROWS && self.below <= MAX_ROWS && self.rows > 0
    }

    /// The rows at its ends, in the given order.
    fn ends(&self, order: Order) -> (Option<&Position>, Option<&Position>) {
        match order {
            Order::NewestFirst => (self.newer.as_ref(), self.older.as_ref()),
            Order::OldestFirst => (self.older.as_ref(), self.newer.as_ref()),
        }
    }

    /// The number of rows before it in that order, in a list of `count`.
    fn offset(&self, order: Order, count: u64) -> u64 {
        match order {
            Order::OldestFirst => self.below,
            Order::NewestFirst if count == 0 => self.above,
            Order::NewestFirst => count.saturating_sub(self.below + u64::from(self.rows)),
        }
    }
}

/// Findings of an answer about holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// A hole was skipped; the flag says whether the server failed to return rows in it.
    Crossed(Hole, bool),
    /// A hole has changed.
    Gone(Hole),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Effect of a page on a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// It continues the scan.
    Forward {
        /// Whether there are no rows after it.
        is_end: bool,
    },
    /// Its rows are taken, but whether it continues the scan must still be proven.
    Held,
    /// It does not continue the scan, which has stepped back.
    Back,
}

impl Scan {
    pub(super) fn new(size: u32) -> Self {
        Self {
            offset: 0,
            anchor: None,
            size,
            narrow: None,
            count: 0,
            misses: 0,
            passed: 0,
            failed: 0,
            strikes: 0,
            steady: 0,
            next: None,
            trusted: None,
            is_future: false,
            news: None,
        }
    }

    /// Whether its numbers are in range, so that arithmetic can't overflow.
    pub(super) fn is_possible(&self) -> bool {
        (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&self.size)
            && self.narrow.is_none_or(|narrow| (1..=MAX_PAGE_SIZE).contains(&narrow))
            && self.offset <= MAX_ROWS
            && self.count <= MAX_ROWS
            && u64::from(self.passed) <= self.offset
            && self.failed <= self.passed
            && self.next.as_ref().is_none_or(|next| next.offset <= MAX_ROWS && self.offset > 0)
    }

    /// The largest page to request.
    pub(super) fn page_size(&self) -> u32 {
        self.narrow.map_or(self.size, |narrow| narrow.min(self.size))
    }

    /// Restarts at an offset, optionally with an anchor before it.
    pub(super) fn begin(&mut self, offset: u64, anchor: Option<Position>) {
        (self.offset, self.anchor, self.next) = (offset, anchor, None);
        (self.passed, self.failed, self.strikes) = (0, 0, 0);
    }

    /// Returns the next request. The page avoids known holes; one that is next is skipped unread,
    /// or requested once if it `retries`. After a while, pages of `full` size are tried again.
    pub(super) fn ask(
        &mut self,
        order: Order,
        holes: &[Hole],
        full: u32,
        retries: bool,
        now: Timestamp,
    ) -> Request {
        self.is_future = self.anchor.as_ref().is_some_and(|anchor| anchor.created() > now);
        if self.steady >= STEADY_PAGES {
            (self.size, self.steady) = (self.size.max(full), 0);
        }
        if self.passed > 0 || self.next.is_some() || self.strikes > 0 {
            return self.request(order, None);
        }
        let ahead = holes.iter().filter(|hole| self.is_ahead(order, hole));
        let Some(hole) = ahead.min_by_key(|hole| hole.offset(order, self.count)) else {
            return self.request(order, None);
        };
        let is_next = match (&self.anchor, hole.ends(order).0) {
            (Some(anchor), Some(near)) => !order.is_after(near, anchor),
            (None, Some(_)) => false,
            (anchor, None) => anchor.is_some(),
        };
        if !is_next {
            let end = hole.offset(order, self.count).max(self.offset + 1);
            return self.request(order, Some(end));
        }
        self.narrow = Some(1);
        if retries || self.count == 0 {
            self.strikes = STRIKES - 1;
        } else {
            self.offset += u64::from(hole.rows);
            self.passed = hole.rows;
            self.trusted = Some(hole.clone());
        }
        self.request(order, None)
    }

    fn is_ahead(&self, order: Order, hole: &Hole) -> bool {
        let far = hole.ends(order).1;
        far.zip(self.anchor.as_ref()).is_none_or(|(far, anchor)| order.is_after(far, anchor))
    }

    /// The page that contains the anchor and reaches farthest, but not beyond `end`.
    fn request(&self, order: Order, end: Option<u64>) -> Request {
        if self.next.is_some() {
            // The anchor, or the last skipped row.
            let passed = if self.has_proof() { self.passed.into() } else { 0 };
            return self.single(order, self.offset.saturating_sub(passed).max(1) - 1);
        }
        if self.is_single() {
            return self.single(order, self.offset);
        }
        let largest = self.page_size();
        let end = end.unwrap_or(u64::MAX);
        let Some(at) = self.offset.checked_sub(1) else {
            let page_size = u32::try_from(end).unwrap_or(u32::MAX).clamp(1, largest);
            return Request { order, page: 1, page_size };
        };
        let reach = |size: u32| (at / u64::from(size) + 1) * u64::from(size);
        let fits = |size: &u32| reach(*size) > self.offset && reach(*size) <= end;
        if let Some(page_size) = (2..=largest).filter(fits).max_by_key(|size| reach(*size)) {
            return Request { order, page: at / u64::from(page_size) + 1, page_size };
        }
        // No page contains the anchor and more.
        let fits = |size: &u32| {
            self.offset.is_multiple_of(u64::from(*size)) && self.offset + u64::from(*size) <= end
        };
        let page_size = (1..=largest).rev().find(fits).unwrap_or(1);
        Request { order, page: self.offset / u64::from(page_size) + 1, page_size }
    }

    /// Whether rows are requested one by one, counted from the oldest.
    fn is_single(&self) -> bool {
        let is_stable = self.count > 0 && !self.is_future;
        is_stable && (self.passed > 0 || self.anchor.is_some() && self.page_size() == 1)
    }

    /// A request for the row at an index alone.
    fn single(&self, order: Order, index: u64) -> Request {
        let from_oldest = match order {
            _ if !self.is_single() => None,
            Order::OldestFirst => Some(index + 1),
            Order::NewestFirst => self.count.checked_sub(index).filter(|page| *page > 0),
        };
        match from_oldest {
            Some(page) => Request { order: Order::OldestFirst, page, page_size: 1 },
            None => Request { order, page: index + 1, page_size: 1 },
        }
    }

    /// Notes that the server returns smaller pages than requested.
    pub(super) fn learn(&mut self, request: Request, has_next: bool, rows: usize) -> Result<bool> {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        if !has_next || rows >= request.page_size {
            return Ok(false);
        }
        if rows < MIN_PAGE_SIZE {
            let what = "Authentik limits pages to one event: raise pagination_max_page_size there";
            return Err(Error::new(ErrorKind::SourceUnavailable, what));
        }
        (self.size, self.steady) = (rows, 0);
        Ok(true)
    }

    pub(super) fn read(
        &mut self,
        order: Order,
        request: Request,
        answer: Answer<'_>,
    ) -> Result<Read> {
        if matches!(answer, Answer::NoSuchPage) && request.order != order {
            // Rows have gone since they were counted. That does not mean that the scan is at its
            // end, and with the old count its position would never be found.
            self.offset = self.offset.saturating_sub(self.passed.into());
            self.count = 0;
            return Ok(self.step_back(0));
        }
        if self.next.is_some() {
            return Ok(self.prove(order, request, answer));
        }
        if self.is_single() {
            return Ok(self.read_single(order, request, answer));
        }
        let Answer::Page { count, has_next, before, positions } = answer else {
            // The skipped rows may be the last ones.
            let is_end = matches!(answer, Answer::NoSuchPage) && self.passed > 0;
            return Ok(if is_end { self.hold(order, self.end()) } else { self.step_back(0) });
        };
        let is_clamped = self.learn(request, has_next, positions.len())?;
        let size = u64::from(request.page_size);
        let before = before.filter(|_| !positions.is_empty()).unwrap_or((request.page - 1) * size);
        let end = before + positions.len() as u64;
        if is_clamped && end <= self.offset {
            // With the server's page size, that number means another page.
            return Ok(Read::Back);
        }
        let shrunk = std::mem::replace(&mut self.count, count).saturating_sub(count);
        let is_behind = before == self.offset && (request.page - 1) * size == before;
        let first = positions.iter().flatten().next();
        let (follows, is_proven) = match (&self.anchor, first) {
            // The page begins at the start of the list, so nothing is before it.
            _ if before == 0 => (!positions.is_empty() || self.offset == 0, true),
            (Some(anchor), Some(first)) if !order.is_after(first, anchor) => (true, true),
            (Some(_), _) if is_behind => (shrunk == 0, false),
            (Some(_), Some(_)) => (false, false),
            _ => (!positions.is_empty() && (shrunk == 0 || self.passed == 0), true),
        };
        if !follows {
            return Ok(self.step_back(shrunk));
        }
        let (mut offset, mut anchor) = (self.offset, self.anchor.clone());
        if let Some(last) = positions.iter().rposition(Option::is_some) {
            anchor.clone_from(&positions[last]);
            offset = before + last as u64 + 1;
        }
        if offset <= self.offset && end > self.offset {
            // None of its new rows has a readable position.
            (offset, anchor) = (end, None);
        }
        let next = Next { offset, anchor, is_end: !has_next };
        Ok(if is_proven { self.advance(order, next) } else { self.hold(order, next) })
    }

    /// Takes the answer for a single row after the anchor and the skipped rows.
    fn read_single(&mut self, order: Order, request: Request, answer: Answer<'_>) -> Read {
        let (count, has_next, position) = match answer {
            Answer::Page { count, has_next, positions: [position, ..], .. } => {
                (count, has_next, position)
            }
            // The skipped rows may be the last ones.
            Answer::NoSuchPage if self.passed > 0 && self.expects(order, None) => {
                return self.hold(order, self.end());
            }
            _ => {
                self.distrust();
                return self.step_back(0);
            }
        };
        let is_behind = match (&self.anchor, position) {
            (Some(anchor), Some(position)) => order.is_after(position, anchor),
            _ => true,
        };
        if !is_behind {
            // Rows were added or removed: this is the scan's position now.
            self.distrust();
            let offset = match request.order {
                Order::OldestFirst if order == Order::NewestFirst => {
                    (count + 1).saturating_sub(request.page)
                }
                _ => request.page,
            };
            (self.passed, self.failed, self.count) = (0, 0, count);
            return self.advance(order, Next { offset, anchor: position.clone(), is_end: false });
        }
        if !self.expects(order, position.as_ref()) {
            self.distrust();
            return Read::Back;
        }
        let is_end = if request.order == order { !has_next } else { request.page == 1 };
        let mut next = Next { offset: self.offset + 1, anchor: position.clone(), is_end };
        if !self.has_proof() {
            self.rebase(order, request, &mut next, count);
        }
        self.hold(order, next)
    }

    fn end(&self) -> Next {
        Next { offset: self.offset, anchor: None, is_end: true }
    }

    /// Whether the row after the hole that is being skipped is the known one; otherwise there are
    /// rows inside it.
    fn expects(&self, order: Order, position: Option<&Position>) -> bool {
        self.trusted.as_ref().is_none_or(|hole| hole.ends(order).1 == position)
    }

    /// Goes back before the hole that was skipped unread. Returns whether there is one.
    fn distrust(&mut self) -> bool {
        let Some(hole) = self.trusted.take() else { return false };
        self.offset = self.offset.saturating_sub(self.passed.into());
        (self.passed, self.failed) = (0, 0);
        self.news = Some(News::Gone(hole));
        true
    }

    /// Reduces the page size because the page has too many bytes, or skips the row if it is alone.
    /// Returns whether a row was skipped.
    pub(super) fn too_large(&mut self, order: Order, request: Request) -> bool {
        if self.narrowed(order, request) {
            return false;
        }
        self.pass();
        true
    }

    /// Reduces the page size because the server fails to return the page, though it returns others,
    /// or skips the row if it fails again alone. The list has `count` rows now.
    pub(super) fn failed(&mut self, order: Order, request: Request, count: u64) {
        // The events that failed requests added to the list may be before the anchor.
        let comes_before = (order == Order::NewestFirst) != self.is_future;
        if self.count > 0 && comes_before && self.offset > 0 {
            let more = count.saturating_sub(self.count);
            self.offset += more;
            if let Some(next) = &mut self.next {
                next.offset += more;
            }
        }
        self.count = count;
        if self.narrowed(order, request) {
            return;
        }
        self.strikes += 1;
        if self.strikes >= STRIKES {
            self.strikes = 0;
            self.failed += 1;
            self.pass();
        }
    }

    /// Tries everything short of skipping a row. Returns false if nothing is left to try.
    fn narrowed(&mut self, order: Order, request: Request) -> bool {
        if let Some(next) = self.next.take() {
            if self.has_proof() {
                // Another row has taken the anchor's index.
                self.step_back(0);
            } else {
                // The skipped rows have not moved.
                self.advance(order, next);
            }
            return true;
        }
        if self.distrust() {
            return true;
        }
        let size = self.page_size().min(request.page_size);
        if size > 1 {
            self.narrow = Some((size / 4).max(1));
        }
        size > 1
    }

    /// Skips the row at the scan's position.
    fn pass(&mut self) {
        self.offset += 1;
        self.passed = self.passed.saturating_add(1);
    }

    /// Waits for the proof that the anchor has not moved, if there can be one. If all rows from the
    /// oldest on were skipped, these must not have moved, because they expire first.
    fn hold(&mut self, order: Order, next: Next) -> Read {
        let is_oldest = order == Order::OldestFirst && self.passed > 0;
        let refails = is_oldest && self.trusted.is_none() && !next.is_end;
        if !self.has_proof() && !refails {
            return self.advance(order, next);
        }
        self.next = Some(next);
        Read::Held
    }

    /// Whether the anchor can prove anything: not if all rows before it were skipped.
    fn has_proof(&self) -> bool {
        self.anchor.is_some() && self.offset > self.passed.into()
    }

    /// Adjusts the offset to the current list. Added rows are before the scan's position, because
    /// its row was requested by its index from the oldest.
    fn rebase(&mut self, order: Order, request: Request, next: &mut Next, count: u64) {
        if order == Order::NewestFirst && request.order != order {
            next.offset = (next.offset + count).saturating_sub(self.count);
            self.offset = (self.offset + count).saturating_sub(self.count);
            self.count = count;
        }
    }

    /// Checks that the anchor has not moved. If it is farther on, rows were added before it, and
    /// nothing was missed either.
    fn prove(&mut self, order: Order, request: Request, answer: Answer<'_>) -> Read {
        let Some(mut next) = self.next.take() else { return Read::Back };
        let (count, there) = match answer {
            Answer::Page { count, positions: [there, ..], .. } => (count, there.as_ref()),
            _ => (self.count, None),
        };
        match (&self.anchor, there) {
            (Some(anchor), Some(there)) if self.has_proof() && !order.is_after(there, anchor) => {
                self.rebase(order, request, &mut next, count);
                self.advance(order, next)
            }
            _ => self.step_back(0),
        }
    }

    fn advance(&mut self, order: Order, next: Next) -> Read {
        let rows = next.offset.saturating_sub(self.offset);
        let is_new = next.anchor != self.anchor;
        if self.passed > 0 {
            self.cross(order, next.anchor.clone());
            // A larger page would contain the skipped rows.
            self.narrow = Some(2);
        } else if let Some(narrow) = self.narrow {
            let narrow = narrow.saturating_add(u32::try_from(rows).unwrap_or(u32::MAX)).max(narrow);
            self.narrow = Some(narrow).filter(|narrow| *narrow < self.size);
        }
        (self.offset, self.anchor) = (next.offset, next.anchor);
        (self.passed, self.failed, self.misses, self.trusted) = (0, 0, 0, None);
        if is_new {
            self.strikes = 0;
        }
        self.steady = self.steady.saturating_add(1).min(STEADY_PAGES);
        Read::Forward { is_end: next.is_end }
    }

    /// Records the skipped rows as a hole, now that both its ends are known.
    fn cross(&mut self, order: Order, behind: Option<Position>) {
        let rows = u64::from(self.passed);
        let first = self.offset.saturating_sub(rows);
        let last = self.count.saturating_sub(self.offset);
        let (before, behind) = (self.anchor.clone(), behind);
        let (newer, older, above, below) = match order {
            Order::NewestFirst => (before, behind, first, last),
            Order::OldestFirst => (behind, before, last, first),
        };
        let hole = Hole { newer, older, rows: self.passed, above, below };
        self.news = Some(News::Crossed(hole, self.failed > 0));
    }

    /// Doubles with every miss, because it is unknown by how much the list shrank.
    fn step_back(&mut self, shrunk: u64) -> Read {
        let by = u64::from(self.page_size()) << self.misses.min(40);
        self.misses = self.misses.saturating_add(1);
        (self.passed, self.failed, self.next, self.trusted) = (0, 0, None, None);
        self.offset = self.offset.saturating_sub(shrunk.saturating_add(by));
        Read::Back
    }
}
