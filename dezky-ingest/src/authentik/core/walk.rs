//! A walk over the list in a total order.
//!
//! Each page is chosen to hold the anchor, the last row that was read. Where no
//! page within the bounds has room for it (pages of one always, of two or three
//! often, of a hundred never), the page behind it is read, and then the anchor's
//! own row once more: if it is where it was, nothing has slipped between the two.
//!
//! A row that the server can't give, or that has too many bytes, is closed in on by
//! smaller pages and passed over. Next to it rows are asked for one by one, by their
//! place counted from the oldest: each failed request may add an event to the newest
//! end of the list, which would move any place counted from there.

use dezky_core::{Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Answer, MAX_PAGE_SIZE, MAX_ROWS, MIN_PAGE_SIZE, Order, Place, Request};

/// How often a row must fail alone before it is passed over, the server having answered
/// another request in between.
const STRIKES: u32 = 2;
/// After so many pages of a size that the server has set, a larger one is tried again.
const STEADY_PAGES: u32 = 50;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Walk {
    /// How many rows stood before the place where it is.
    pub(super) offset: u64,
    /// The last row that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) anchor: Option<Place>,
    /// The largest page that the server gives.
    pub(super) size: u32,
    /// The largest page that the server can give here and that has few enough bytes,
    /// while that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) narrow: Option<u32>,
    /// How many rows the list had when `offset` was counted; 0 while that is not known.
    pub(super) count: u64,
    /// How many answers in a row did not follow on what was read.
    #[serde(default, skip_serializing_if = "is_zero")]
    misses: u32,
    /// How many rows behind the anchor were passed over.
    #[serde(default, skip_serializing_if = "is_zero")]
    passed: u32,
    /// How many of these the server could not give. From version 2 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    failed: u32,
    /// How often the next row has failed alone. From version 2 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    strikes: u32,
    /// How many pages were read since the server set `size`. From version 2 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    steady: u32,
    /// Where it is if the anchor is still in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
    /// The hole that is being passed over unread, because an earlier walk found it.
    #[serde(skip)]
    trusted: Option<Hole>,
    /// Whether the anchor is in the future, so that new rows come on its older side.
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
    anchor: Option<Place>,
    is_end: bool,
}

/// Rows in a row that were passed over, and where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hole {
    /// The row before them, towards the newest; `None`: they are the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) newer: Option<Place>,
    /// The row behind them; `None`: they are the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) older: Option<Place>,
    /// How many they are.
    pub(super) rows: u32,
    /// How many rows are newer, as of the last look. Grows with new events.
    above: u64,
    /// How many rows are older, as of the last look. Shrinks as events expire.
    below: u64,
}

impl Hole {
    /// Whether a row stands inside it.
    pub(super) fn holds(&self, place: &Place) -> bool {
        self.newer.as_ref().is_none_or(|newer| place < newer)
            && self.older.as_ref().is_none_or(|older| place > older)
    }

    /// Whether both are about the same part of the list.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let is_before = |older: &Option<Place>, newer: &Option<Place>| {
            older.as_ref().zip(newer.as_ref()).is_none_or(|(older, newer)| older < newer)
        };
        is_before(&self.older, &other.newer) && is_before(&other.older, &self.newer)
    }

    pub(super) fn is_possible(&self) -> bool {
        self.above <= MAX_ROWS && self.below <= MAX_ROWS && self.rows > 0
    }

    /// The rows at its ends, as a walk in that order meets them.
    fn ends(&self, order: Order) -> (Option<&Place>, Option<&Place>) {
        match order {
            Order::NewestFirst => (self.newer.as_ref(), self.older.as_ref()),
            Order::OldestFirst => (self.older.as_ref(), self.newer.as_ref()),
        }
    }

    /// How many rows stand before it in that order, of a list with `count`.
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
    /// One was passed over; whether there are rows in it that the server could not give.
    Crossed(Hole, bool),
    /// One is not as it was.
    Gone(Hole),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Effect of a page on a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// It follows on what was read.
    Forward {
        /// Whether there are no rows after it.
        is_end: bool,
    },
    /// Its rows are to be taken, but whether it follows is yet to be seen.
    Held,
    /// It does not follow; the walk has stepped back.
    Back,
}

impl Walk {
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

    /// Whether its numbers are such as can be counted with.
    pub(super) fn is_possible(&self) -> bool {
        (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&self.size)
            && self.narrow.is_none_or(|narrow| (1..=MAX_PAGE_SIZE).contains(&narrow))
            && self.offset <= MAX_ROWS
            && self.count <= MAX_ROWS
            && u64::from(self.passed) <= self.offset
            && self.failed <= self.passed
            && self.next.as_ref().is_none_or(|next| next.offset <= MAX_ROWS && self.offset > 0)
    }

    /// The largest page to ask for.
    pub(super) fn page_size(&self) -> u32 {
        self.narrow.map_or(self.size, |narrow| narrow.min(self.size))
    }

    /// Begins anew at an offset, which an anchor may stand before.
    pub(super) fn begin(&mut self, offset: u64, anchor: Option<Place>) {
        (self.offset, self.anchor, self.next) = (offset, anchor, None);
        (self.passed, self.failed, self.strikes) = (0, 0, 0);
    }

    /// Prepares the next request, and gives it. Known holes are kept off the page; one
    /// that is next is passed over unread, or asked for once if it `retries`. After a
    /// while pages of `full` size are tried again.
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

    /// The page that has the anchor on it and reaches farthest, but not behind `end`.
    fn request(&self, order: Order, end: Option<u64>) -> Request {
        if self.next.is_some() {
            // The anchor, or the last row that was passed over.
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
        // None has room for the anchor and more.
        let fits = |size: &u32| {
            self.offset.is_multiple_of(u64::from(*size)) && self.offset + u64::from(*size) <= end
        };
        let page_size = (1..=largest).rev().find(fits).unwrap_or(1);
        Request { order, page: self.offset / u64::from(page_size) + 1, page_size }
    }

    /// Whether rows are asked for one by one, counted from the oldest.
    fn is_single(&self) -> bool {
        let is_stable = self.count > 0 && !self.is_future;
        is_stable && (self.passed > 0 || self.anchor.is_some() && self.page_size() == 1)
    }

    /// The row that has so many before it, alone.
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

    /// Notes that the server gives smaller pages than it was asked for.
    pub(super) fn learn(&mut self, request: Request, has_next: bool, rows: usize) -> Result<bool> {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        if !has_next || rows >= request.page_size {
            return Ok(false);
        }
        if rows < MIN_PAGE_SIZE {
            let what = "Authentik gives pages of one event; raise pagination_max_page_size there";
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
            // Rows went since they were counted. That says nothing about the walk's end, and
            // counted from the oldest with the same number its place would never be found.
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
        let Answer::Page { count, has_next, before, places } = answer else {
            // Behind what was passed over there may be nothing.
            let is_end = matches!(answer, Answer::NoSuchPage) && self.passed > 0;
            return Ok(if is_end { self.hold(order, self.end()) } else { self.step_back(0) });
        };
        let is_clamped = self.learn(request, has_next, places.len())?;
        let size = u64::from(request.page_size);
        let before = before.filter(|_| !places.is_empty()).unwrap_or((request.page - 1) * size);
        let end = before + places.len() as u64;
        if is_clamped && end <= self.offset {
            // The page of that number is another one in the server's size.
            return Ok(Read::Back);
        }
        let shrunk = std::mem::replace(&mut self.count, count).saturating_sub(count);
        let is_behind = before == self.offset && (request.page - 1) * size == before;
        let first = places.iter().flatten().next();
        let (follows, is_proven) = match (&self.anchor, first) {
            // The page begins where the list does, or one could not ask for better.
            _ if before == 0 => (!places.is_empty() || self.offset == 0, true),
            (Some(anchor), Some(first)) if !order.is_after(first, anchor) => (true, true),
            (Some(_), _) if is_behind => (shrunk == 0, false),
            (Some(_), Some(_)) => (false, false),
            _ => (!places.is_empty() && (shrunk == 0 || self.passed == 0), true),
        };
        if !follows {
            return Ok(self.step_back(shrunk));
        }
        let (mut offset, mut anchor) = (self.offset, self.anchor.clone());
        if let Some(last) = places.iter().rposition(Option::is_some) {
            anchor.clone_from(&places[last]);
            offset = before + last as u64 + 1;
        }
        if offset <= self.offset && end > self.offset {
            // Nothing new on it says where it stands.
            (offset, anchor) = (end, None);
        }
        let next = Next { offset, anchor, is_end: !has_next };
        Ok(if is_proven { self.advance(order, next) } else { self.hold(order, next) })
    }

    /// The row behind the anchor and what was passed over, asked for alone.
    fn read_single(&mut self, order: Order, request: Request, answer: Answer<'_>) -> Read {
        let (count, has_next, place) = match answer {
            Answer::Page { count, has_next, places: [place, ..], .. } => (count, has_next, place),
            // Behind what was passed over there may be nothing.
            Answer::NoSuchPage if self.passed > 0 && self.expects(order, None) => {
                return self.hold(order, self.end());
            }
            _ => {
                self.distrust();
                return self.step_back(0);
            }
        };
        let is_behind = match (&self.anchor, place) {
            (Some(anchor), Some(place)) => order.is_after(place, anchor),
            _ => true,
        };
        if !is_behind {
            // Rows came or went: here is where the walk stands now.
            self.distrust();
            let offset = match request.order {
                Order::OldestFirst if order == Order::NewestFirst => {
                    (count + 1).saturating_sub(request.page)
                }
                _ => request.page,
            };
            (self.passed, self.failed, self.count) = (0, 0, count);
            return self.advance(order, Next { offset, anchor: place.clone(), is_end: false });
        }
        if !self.expects(order, place.as_ref()) {
            self.distrust();
            return Read::Back;
        }
        let is_end = if request.order == order { !has_next } else { request.page == 1 };
        let mut next = Next { offset: self.offset + 1, anchor: place.clone(), is_end };
        if !self.has_proof() {
            self.rebase(order, request, &mut next, count);
        }
        self.hold(order, next)
    }

    fn end(&self) -> Next {
        Next { offset: self.offset, anchor: None, is_end: true }
    }

    /// Whether the row behind the hole that is being passed over is the one that was
    /// there: else something is inside it.
    fn expects(&self, order: Order, place: Option<&Place>) -> bool {
        self.trusted.as_ref().is_none_or(|hole| hole.ends(order).1 == place)
    }

    /// Goes back before the hole that was passed over unread; whether there is one.
    fn distrust(&mut self) -> bool {
        let Some(hole) = self.trusted.take() else { return false };
        self.offset = self.offset.saturating_sub(self.passed.into());
        (self.passed, self.failed) = (0, 0);
        self.news = Some(News::Gone(hole));
        true
    }

    /// The page has more bytes than are read: smaller ones from now on, or past the
    /// row if it is alone. Whether a row was passed over.
    pub(super) fn too_large(&mut self, order: Order, request: Request) -> bool {
        if self.narrowed(order, request) {
            return false;
        }
        self.pass();
        true
    }

    /// The server can't give the page, though it gives others; the list has `count` rows
    /// now. Smaller pages from now on, or past the row if it fails again alone.
    pub(super) fn failed(&mut self, order: Order, request: Request, count: u64) {
        // What failing has added to the list may be before the anchor.
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

    /// Whether there was something else to do than to pass over a row.
    fn narrowed(&mut self, order: Order, request: Request) -> bool {
        if let Some(next) = self.next.take() {
            if self.has_proof() {
                // Another row is where the anchor was.
                self.step_back(0);
            } else {
                // What was passed over is where it was.
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

    /// A page of one stands where the walk does.
    fn pass(&mut self) {
        self.offset += 1;
        self.passed = self.passed.saturating_add(1);
    }

    /// Waits for the proof that the anchor is where it was, if there is one to be had. Where
    /// all rows from the oldest on were passed over, these must be where they were, as they
    /// expire first.
    fn hold(&mut self, order: Order, next: Next) -> Read {
        let is_oldest = order == Order::OldestFirst && self.passed > 0;
        let refails = is_oldest && self.trusted.is_none() && !next.is_end;
        if !self.has_proof() && !refails {
            return self.advance(order, next);
        }
        self.next = Some(next);
        Read::Held
    }

    /// Whether an anchor can prove anything: not where all rows before were passed over.
    fn has_proof(&self) -> bool {
        self.anchor.is_some() && self.offset > self.passed.into()
    }

    /// Counts from the list as it is now. Rows that came are before the walk's place, as
    /// its row was asked for by its place from the oldest.
    fn rebase(&mut self, order: Order, request: Request, next: &mut Next, count: u64) {
        if order == Order::NewestFirst && request.order != order {
            next.offset = (next.offset + count).saturating_sub(self.count);
            self.offset = (self.offset + count).saturating_sub(self.count);
            self.count = count;
        }
    }

    /// Is the anchor where it was? If it is farther on, rows came before it, and
    /// nothing has slipped either.
    fn prove(&mut self, order: Order, request: Request, answer: Answer<'_>) -> Read {
        let Some(mut next) = self.next.take() else { return Read::Back };
        let (count, there) = match answer {
            Answer::Page { count, places: [there, ..], .. } => (count, there.as_ref()),
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
            // A larger page would hold what was passed over.
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

    /// The walk is on both sides of what it has passed over.
    fn cross(&mut self, order: Order, behind: Option<Place>) {
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

    /// Farther with every miss, as nobody may know by how much the list shrank.
    fn step_back(&mut self, shrunk: u64) -> Read {
        let by = u64::from(self.page_size()) << self.misses.min(40);
        self.misses = self.misses.saturating_add(1);
        (self.passed, self.failed, self.next, self.trusted) = (0, 0, None, None);
        self.offset = self.offset.saturating_sub(shrunk.saturating_add(by));
        Read::Back
    }
}
