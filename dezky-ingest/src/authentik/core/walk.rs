//! A walk over the list in a total order.
//!
//! Each page is chosen to hold the anchor, the last row that was read. Where no
//! page within the bounds has room for it (pages of one always, of two or three
//! often, of a hundred never), the page behind it is read, and then the anchor's
//! own row once more: if it is where it was, nothing has slipped between the two.

use dezky_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{Answer, MAX_PAGE_SIZE, MAX_ROWS, MIN_PAGE_SIZE, Order, Place, Request};

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
    /// The largest page that has few enough bytes, while that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) narrow: Option<u32>,
    /// How many rows the list had.
    pub(super) count: u64,
    /// How many answers in a row did not follow on what was read.
    #[serde(default, skip_serializing_if = "is_zero")]
    misses: u32,
    /// How many rows behind the anchor were passed over, as they are too large.
    #[serde(default, skip_serializing_if = "is_zero")]
    passed: u32,
    /// Where it is if the anchor is still in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Next {
    offset: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    anchor: Option<Place>,
    is_end: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a page did to a walk.
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
            next: None,
        }
    }

    /// Whether its numbers are such as can be counted with.
    pub(super) fn is_possible(&self) -> bool {
        (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&self.size)
            && self.narrow.is_none_or(|narrow| (1..=MAX_PAGE_SIZE).contains(&narrow))
            && self.offset <= MAX_ROWS
            && self.count <= MAX_ROWS
            && u64::from(self.passed) <= self.offset
            && self
                .next
                .as_ref()
                .is_none_or(|next| next.offset <= MAX_ROWS && u64::from(self.passed) < self.offset)
    }

    /// The largest page to ask for.
    pub(super) fn page_size(&self) -> u32 {
        self.narrow.map_or(self.size, |narrow| narrow.min(self.size))
    }

    /// Begins anew at an offset, which an anchor may stand before.
    pub(super) fn begin(&mut self, offset: u64, anchor: Option<Place>) {
        (self.offset, self.anchor, self.passed, self.next) = (offset, anchor, 0, None);
    }

    /// The page that has the anchor on it and reaches farthest.
    pub(super) fn request(&self, order: Order) -> Request {
        if self.next.is_some() {
            return Request { order, page: self.anchors_number(), page_size: 1 };
        }
        let largest = self.page_size();
        let Some(at) = self.offset.checked_sub(1) else {
            return Request { order, page: 1, page_size: largest };
        };
        let page = |size: u32| at / u64::from(size) + 1;
        let reach = |size: u32| page(size) * u64::from(size);
        let smallest = (largest / 2).max(1);
        let size = (smallest..=largest).max_by_key(|size| reach(*size)).unwrap_or(largest);
        if reach(size) > self.offset && self.passed == 0 {
            return Request { order, page: page(size), page_size: size };
        }
        // None has room for the anchor and more, or what is too large is between.
        let fits = |size: &u32| self.offset.is_multiple_of(u64::from(*size));
        let page_size = (1..=largest).rev().find(fits).unwrap_or(1);
        Request { order, page: self.offset / u64::from(page_size) + 1, page_size }
    }

    /// The anchor's place in the list, from 1.
    fn anchors_number(&self) -> u64 {
        self.offset.saturating_sub(self.passed.into()).max(1)
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
        self.size = rows;
        Ok(true)
    }

    pub(super) fn read(&mut self, request: Request, answer: Answer<'_>) -> Result<Read> {
        if self.next.is_some() {
            return Ok(self.prove(request, answer));
        }
        let Answer::Page { count, has_next, before, places } = answer else {
            // Behind what was passed over there may be nothing.
            let is_end = matches!(answer, Answer::NoSuchPage) && self.passed > 0;
            return Ok(if is_end { self.hold(self.offset, None, true) } else { self.step_back(0) });
        };
        self.learn(request, has_next, places.len())?;
        let shrunk = std::mem::replace(&mut self.count, count).saturating_sub(count);
        let size = u64::from(request.page_size);
        let before = before.filter(|_| !places.is_empty()).unwrap_or((request.page - 1) * size);
        let is_behind = before == self.offset && (request.page - 1) * size == before;
        let first = places.iter().flatten().next();
        let (follows, is_proven) = match (&self.anchor, first) {
            // The page begins where the list does, or one could not ask for better.
            _ if before == 0 => (!places.is_empty() || self.offset == 0, true),
            (Some(anchor), Some(first)) if !request.order.is_after(first, anchor) => (true, true),
            (Some(_), _) if is_behind => (shrunk == 0, false),
            (Some(_), Some(_)) => (false, false),
            _ => (!places.is_empty() && (shrunk == 0 || self.passed == 0), true),
        };
        if !follows {
            return Ok(self.step_back(shrunk));
        }
        let end = before + places.len() as u64;
        let (mut offset, mut anchor) = (self.offset, self.anchor.clone());
        if let Some(last) = places.iter().rposition(Option::is_some) {
            anchor.clone_from(&places[last]);
            offset = before + last as u64 + 1;
        }
        if offset <= self.offset && end > self.offset {
            // Nothing new on it says where it stands.
            (offset, anchor) = (end, None);
        }
        if !is_proven {
            return Ok(self.hold(offset, anchor, !has_next));
        }
        Ok(self.advance(Next { offset, anchor, is_end: !has_next }))
    }

    /// The page has more bytes than are read: smaller ones from now on, or past the
    /// row if it is alone. Whether a row was passed over.
    pub(super) fn too_large(&mut self, request: Request) -> bool {
        if self.next.is_some() {
            // Another row is where the anchor was.
            self.step_back(0);
            return false;
        }
        let size = self.page_size().min(request.page_size);
        if size > 1 {
            self.narrow = Some((size / 4).max(1));
            return false;
        }
        // A page of one stands where the walk does.
        self.offset += 1;
        self.passed = self.passed.saturating_add(1);
        true
    }

    /// Waits for the proof that the anchor is where it was. Without an anchor, or
    /// where all rows before were passed over, there is none to be had.
    fn hold(&mut self, offset: u64, anchor: Option<Place>, is_end: bool) -> Read {
        let next = Next { offset, anchor, is_end };
        if self.anchor.is_none() || self.offset <= self.passed.into() {
            return self.advance(next);
        }
        self.next = Some(next);
        Read::Held
    }

    /// Is the anchor where it was? If it is farther on, rows came before it, and
    /// nothing has slipped either.
    fn prove(&mut self, request: Request, answer: Answer<'_>) -> Read {
        let Some(next) = self.next.take() else { return Read::Back };
        let there = match answer {
            Answer::Page { places: [there, ..], .. } => there.as_ref(),
            _ => None,
        };
        match (&self.anchor, there) {
            (Some(anchor), Some(there)) if !request.order.is_after(there, anchor) => {
                self.advance(next)
            }
            _ => self.step_back(0),
        }
    }

    fn advance(&mut self, Next { offset, anchor, is_end }: Next) -> Read {
        (self.offset, self.anchor, self.passed, self.misses) = (offset, anchor, 0, 0);
        // What was too large may be behind.
        self.narrow = self.narrow.map(|narrow| narrow * 2).filter(|narrow| *narrow < self.size);
        Read::Forward { is_end }
    }

    /// Farther with every miss, as nobody may know by how much the list shrank.
    fn step_back(&mut self, shrunk: u64) -> Read {
        let by = u64::from(self.page_size()) << self.misses.min(40);
        self.misses = self.misses.saturating_add(1);
        (self.passed, self.next) = (0, None);
        self.offset = self.offset.saturating_sub(shrunk.saturating_add(by));
        Read::Back
    }
}
