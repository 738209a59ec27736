//! Which page to ask for next, and what an answer means: no clock, no I/O.
//!
//! The server gives numbered pages of a list that changes under the walk. So a
//! page number says nothing about where one is. Two things do:
//!
//! - Pages are asked for in a total order (`created, pk`), and each is chosen to
//!   contain the last row of the one before, the **anchor**. If the page begins
//!   at the anchor or before it, nothing was missed, whatever was inserted or
//!   deleted; else the walk steps back. For that the size of a page varies a
//!   little from page to page.
//! - Rows show late. So a walk over what is recent goes back behind the
//!   **watermark** by the overlap, and the watermark is the newest `created` of
//!   the *first* page of a walk that is complete.
//!
//! Four walks: *recent*, newest first, is every poll. It reaches what the one before has
//! seen; reading the overlap *again*, for what shows late, then goes on by itself, so that
//! what is new never waits for it. If it does not reach so far within a few pages, the
//! rest becomes the *backlog*, which is read oldest first, page by page over as many pulls
//! as it takes. The *reconcile* walk reads the last day again, newest first, and back
//! behind the beginning of the one before. A poll comes before all of them, once per
//! interval.
//!
//! A row that the server can't give is a **hole**: it is passed over, and remembered, so
//! that later walks keep it off their pages.

use std::time::Duration;

use dezky_core::{Actor, Error, ErrorKind, NewEvent, NewMetadata, Outcome, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use self::walk::{Hole, News, Read, Walk};
use super::proto::Place;

mod walk;

/// The version of the cursor's text.
const VERSION: u8 = 2;
/// After how many pages of a poll the rest becomes the backlog.
const RECENT_PAGES: u32 = 5;
/// A `created` further ahead of our clock than this does not become the watermark.
const SKEW: Duration = Duration::from_mins(5);
/// How far back the reconcile walk goes at least, and how often it comes.
const DAY: Duration = Duration::from_hours(24);
/// How far it goes back behind the beginning of the one before, so that what showed
/// late around that is in one of the two; the overlap if that is more.
const SEAM: Duration = Duration::from_hours(1);
/// It goes back no farther, however long ago the one before was.
const WEEK: Duration = Duration::from_hours(7 * 24);
/// Rows older by this than what a poll has seen, and unknown, showed late.
const SLACK: Duration = Duration::from_secs(2);
/// How many holes are remembered; of more the newest.
const MAX_HOLES: usize = 16;
/// A failure that says nothing about the page is looked into when it comes so often in
/// a row.
const PATIENCE: u32 = 3;
/// So many polls begin with a smaller page after a larger one could not be given.
const CAREFUL_POLLS: u32 = 10;
/// After so long without a complete poll the beginning of the list is looked at
/// again, as events may have expired meanwhile.
const OUTAGE: Duration = Duration::from_hours(2);
/// The server's pages must have room for that many.
const MIN_PAGE_SIZE: u32 = 2;
/// No page is larger.
const MAX_PAGE_SIZE: u32 = 100;
/// No list is longer, as far as a cursor says.
const MAX_ROWS: u64 = 1 << 53;

/// How far and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many events a page has, 2 to 100.
    pub page_size: u32,
    /// How far polls go back behind the watermark.
    pub overlap: Duration,
    /// How often there is a poll, whatever other walks have to do.
    pub interval: Duration,
}

/// A page to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// In which order.
    pub order: Order,
    /// Its number, from 1.
    pub page: u64,
    /// Its size.
    pub page_size: u32,
}

impl Request {
    /// The query of its address.
    ///
    /// ```
    /// use dezky_ingest::authentik::protocol::{Order, Request};
    /// let request = Request { order: Order::NewestFirst, page: 1, page_size: 100 };
    /// assert_eq!(request.query(), "ordering=-created,-pk&page=1&page_size=100");
    /// ```
    pub fn query(&self) -> String {
        let ordering = match self.order {
            Order::NewestFirst => "-created,-pk",
            Order::OldestFirst => "created,pk",
        };
        format!("ordering={ordering}&page={}&page_size={}", self.page, self.page_size)
    }
}

/// A total order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `-created,-pk`
    NewestFirst,
    /// `created,pk`
    OldestFirst,
}

impl Order {
    fn is_after(self, place: &Place, anchor: &Place) -> bool {
        match self {
            Self::NewestFirst => place < anchor,
            Self::OldestFirst => place > anchor,
        }
    }
}

/// The server's answer.
#[derive(Debug, Clone, Copy)]
pub enum Answer<'a> {
    /// A page.
    Page {
        /// How many rows the list has.
        count: u64,
        /// Whether there is a page after this one.
        has_next: bool,
        /// How many rows stand before this page, if it is said.
        before: Option<u64>,
        /// Where its rows stand, as far as that can be read.
        places: &'a [Option<Place>],
    },
    /// 404: the list is not that long.
    NoSuchPage,
    /// The page has more bytes than are read.
    TooLarge,
    /// The server can't give the page, and has just given another one.
    Failed {
        /// How many rows the list has.
        count: u64,
    },
}

/// Possible causes of a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspect {
    /// A row of the page: the server broke over it.
    Page,
    /// The page or everything: a proxy's answer, a timeout, an answer that can't be read.
    Anything,
    /// No page: requests are refused for a while.
    Nothing,
}

/// Rows in a row that the server can't give, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// How many.
    pub rows: u32,
    /// The next newer row; `None` if there is none.
    pub newer: Option<Place>,
    /// The next older row; `None` if there is none.
    pub older: Option<Place>,
}

/// Consequences of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Whether the rows of the page are to be taken; those of a probe are not.
    pub take: bool,
    /// Of these, rows older than this were found late.
    pub late_before: Option<Timestamp>,
    /// Events may be lost: the watermark, and the oldest that is left.
    pub gap: Option<(Timestamp, Timestamp)>,
    /// A single event has too many bytes and is passed over; where the one that was
    /// read before it stands, if there is one.
    pub passed: Option<Option<Place>>,
    /// Rows that the server can't give were passed over.
    pub unreadable: Option<Unreadable>,
}

/// State outside the cursor, which may be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// When the last poll was complete.
    polled: Option<Timestamp>,
    /// Whether the beginning of the list was looked at since the start.
    looked_for_gap: bool,
    /// Whether the last day was read since the start.
    reconciled: bool,
    /// Whether the walk that reads it was begun since the start.
    began_reconcile: bool,
    /// How many requests have failed in a row, of each walk.
    failures: [u32; 5],
    /// The size of the first page that a poll has got after a larger one could not be
    /// given, and for how many polls more it is asked for.
    first_size: Option<(u32, u32)>,
}

impl Memory {
    /// Remembers how many requests have failed, of a pull that brought nothing.
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
    asked: Option<(Walking, Request)>,
    /// Whether a poll was begun since [`Poll::resume`].
    polls: bool,
    /// Whether a gap was found since, which is committed before the poll.
    found_gap: bool,
    /// Whether the list was found empty since, so that nothing more is asked.
    found_empty: bool,
    /// Findings of the last page about holes.
    news: Option<News>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walking {
    Gap,
    Recent,
    Again,
    Backlog,
    Reconcile,
}

impl Walking {
    fn order(self) -> Order {
        match self {
            Self::Gap | Self::Backlog => Order::OldestFirst,
            Self::Recent | Self::Again | Self::Reconcile => Order::NewestFirst,
        }
    }
}

/// Content of the cursor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    v: u8,
    /// Counts cursors, so that each differs from the one before.
    n: u64,
    /// All that happened until then is taken, but for what shows late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    watermark: Option<Timestamp>,
    /// While there is a backlog: what the watermark will be when it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<Timestamp>,
    /// When the last walk began that has read the last day again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reconciled: Option<Timestamp>,
    /// The newest that a poll has seen. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recent: Option<Recent>,
    /// The rest of a poll, behind what the one before had seen. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    again: Option<Recent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backlog: Option<Backlog>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reconcile: Option<Reconcile>,
    /// Rows that were passed over, the newest last. From version 2 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    holes: Vec<Hole>,
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

/// The cursor of somebody who has read all that happened until `watermark` by other
/// means: polls go back behind it by the overlap, and duplicates add nothing.
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
    fn parse(text: &str) -> Result<Self> {
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
            Err(invalid("the cursor of Authentik's events says what can't be".into()))
        }
    }

    /// Whether its numbers are such as can be counted with.
    fn is_possible(&self) -> bool {
        let walks = [
            self.recent.as_ref().map(|recent| &recent.walk),
            self.again.as_ref().map(|again| &again.walk),
            self.backlog.as_ref().map(|backlog| &backlog.walk),
            self.reconcile.as_ref().map(|reconcile| &reconcile.walk),
        ];
        let search = self.backlog.as_ref().and_then(|backlog| backlog.search.as_ref());
        walks.into_iter().flatten().all(Walk::is_possible)
            && search.is_none_or(|Search { lo, hi }| 1 <= *lo && lo <= hi && *hi <= MAX_ROWS)
            && self.n < u64::MAX
            && self.holes.len() <= MAX_HOLES
            && self.holes.iter().all(Hole::is_possible)
    }

    fn walk(&mut self, walking: Walking) -> Option<&mut Walk> {
        match walking {
            Walking::Gap => None,
            Walking::Recent => self.recent.as_mut().map(|recent| &mut recent.walk),
            Walking::Again => self.again.as_mut().map(|again| &mut again.walk),
            Walking::Backlog => self.backlog.as_mut().map(|backlog| &mut backlog.walk),
            Walking::Reconcile => self.reconcile.as_mut().map(|reconcile| &mut reconcile.walk),
        }
    }

    /// Rows that nobody knows and that are older than this showed late: they are behind
    /// what polls have seen, and behind what the backlog has read.
    fn late_before(&self, now: Timestamp) -> Option<Timestamp> {
        let seen = self.seen.as_ref().map(|seen| seen.created().min(now))?;
        let read = match &self.backlog {
            None => seen,
            Some(Backlog { search: Some(_), floor, .. }) => (*floor)?,
            Some(Backlog { walk, floor, .. }) => {
                walk.anchor.as_ref().map(Place::created).or(*floor)?
            }
        };
        Some(before(seen.min(read), SLACK))
    }

    /// Remembers what a walk has said about holes. Gives what nobody knew.
    fn heed(&mut self, news: Option<News>) -> Option<Unreadable> {
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

/// A walk over what is recent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Recent {
    walk: Walk,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<Timestamp>,
    pages: u32,
    /// The newest that is not in the future, as a watermark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    top: Option<Timestamp>,
    /// The newest that is not in the future. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest: Option<Place>,
}

/// The gap between the known events and those that a poll has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Backlog {
    /// Where it begins; `None`: with the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    floor: Option<Timestamp>,
    /// Where it ends: from there on a poll has read it.
    until: Place,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    search: Option<Search>,
    walk: Walk,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<Timestamp>,
}

/// A binary search for the first page that reaches the floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Search {
    lo: u64,
    hi: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reconcile {
    walk: Walk,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<Timestamp>,
    /// Where it ends: seen from the newest of the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    floor: Option<Timestamp>,
}

impl Poll {
    /// Goes on at a cursor, or begins.
    ///
    /// # Errors
    /// `cursor_invalid` if the cursor is not what this or an older version wrote.
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

    /// The cursor to commit with what the answers since [`Poll::resume`] brought;
    /// `None` if nothing has changed.
    pub fn cursor(&self, before: Option<&str>, brings: bool) -> Option<String> {
        let text = |state: &State| serde_json::to_string(state).unwrap_or_default();
        let is_same = match before {
            None => self.state == State::default(),
            Some(before) => before == text(&self.state),
        };
        (brings || !is_same).then(|| text(&State { n: self.state.n + 1, ..self.state.clone() }))
    }

    /// State that may be lost.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// All that happened until then is taken, but for what shows late.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.state.watermark
    }

    /// Whether a walk is not at its end, or has yet to begin.
    pub fn more(&self) -> bool {
        let State { recent, again, backlog, reconcile, .. } = &self.state;
        let walks = recent.is_some() || again.is_some() || backlog.is_some() || reconcile.is_some();
        self.found_gap || walks
    }

    /// The page to ask for; `None` if there is nothing more to do for now.
    pub fn request(&mut self, now: Timestamp) -> Option<Request> {
        let walking = self.walking(now)?;
        let full = self.settings.page_size;
        let holes = std::mem::take(&mut self.state.holes);
        let backlog = self.state.backlog.as_ref().filter(|_| walking == Walking::Backlog);
        let request = if walking == Walking::Gap {
            Some(Request { order: Order::OldestFirst, page: 1, page_size: 1 })
        } else if let Some(probe) = backlog.and_then(Backlog::search_request) {
            Some(probe)
        } else {
            let retries = walking == Walking::Reconcile;
            let walk = self.state.walk(walking);
            walk.map(|walk| walk.ask(walking.order(), &holes, full, retries, now))
        };
        self.state.holes = holes;
        self.asked = request.map(|request| (walking, request));
        request
    }

    /// Whether a failed request is to be looked into now: then, after another request has
    /// brought a page, the answer is [`Answer::Failed`]. Else it is tried again later.
    pub fn looks_into(&mut self, suspect: Suspect) -> bool {
        let Some((walking, _)) = self.asked else { return false };
        let failures = &mut self.memory.failures[walking as usize];
        *failures = failures.saturating_add(1);
        match suspect {
            Suspect::Page => true,
            Suspect::Anything => failures.is_multiple_of(PATIENCE),
            Suspect::Nothing => false,
        }
    }

    fn walking(&mut self, now: Timestamp) -> Option<Walking> {
        if self.found_empty {
            return None;
        }
        if self.memory.polled.is_some_and(|at| now.saturating_since(at) > OUTAGE) {
            (self.memory.polled, self.memory.looked_for_gap) = (None, false);
        }
        if !self.memory.looked_for_gap {
            if self.state.watermark.is_some() {
                return Some(Walking::Gap);
            }
            self.memory.looked_for_gap = true;
        }
        if self.state.recent.is_some() {
            return Some(Walking::Recent);
        }
        let interval = self.settings.interval;
        let polled = self.memory.polled;
        let is_fresh =
            polled.is_some_and(|at| at.saturating_add(interval).is_ahead_of(now, interval));
        let rest = match &self.state {
            State { backlog: Some(_), .. } => Some(Walking::Backlog),
            State { reconcile: Some(_), .. } => Some(Walking::Reconcile),
            _ => None,
        };
        // By turns, so that neither waits for the other.
        let again = self.state.again.as_ref().map(|_| Walking::Again);
        let is_agains = rest.is_none() || self.state.n.is_multiple_of(2);
        let background = again.filter(|_| is_agains).or(rest).or(again);
        if is_fresh && background.is_some() {
            return background;
        }
        if self.polls {
            return None;
        }
        self.polls = true;
        let mut walk = Walk::new(self.settings.page_size);
        let careful = self.memory.first_size.filter(|(_, polls)| *polls > 0);
        walk.narrow = careful.map(|(size, _)| size);
        self.memory.first_size = careful.map(|(size, polls)| (size, polls - 1));
        let recent = Recent { walk, began: Some(now), pages: 0, top: None, newest: None };
        self.state.recent = Some(recent);
        Some(Walking::Recent)
    }

    /// Takes the answer to the last request.
    ///
    /// # Errors
    /// `source_unavailable` if the server gives pages of one event.
    pub fn answer(&mut self, now: Timestamp, answer: Answer<'_>) -> Result<Step> {
        let Some((walking, request)) = self.asked.take() else { return Ok(Step::default()) };
        self.memory.failures[walking as usize] = 0;
        if matches!(answer, Answer::TooLarge | Answer::Failed { .. }) {
            return self.not_given(walking, request, answer);
        }
        if let Answer::Page { has_next: false, places: [], .. } = answer
            && request.page == 1
        {
            // To an account that may not view them any more all events are gone, so
            // this is the end of no walk: what was not read may come back.
            self.found_empty = true;
            self.state.recent = None;
            return Ok(Step::default());
        }
        let mut step = match walking {
            Walking::Gap => self.look_for_gap(answer),
            Walking::Recent => self.recent(now, request, answer)?,
            Walking::Again => self.again(now, request, answer)?,
            Walking::Backlog => self.backlog(now, request, answer)?,
            Walking::Reconcile => self.reconcile(now, request, answer)?,
        };
        if let (true, Answer::Page { places, .. }) = (step.take, answer) {
            // A row that can be read is in no hole.
            let is_read = |hole: &Hole| places.iter().flatten().any(|place| hole.holds(place));
            self.state.holes.retain(|hole| !is_read(hole));
        }
        step.unreadable = self.state.heed(self.news.take());
        if step.unreadable.is_some() {
            self.memory.first_size = None;
        }
        Ok(step)
    }

    /// The page has too many bytes, or the server can't give it.
    fn not_given(
        &mut self,
        walking: Walking,
        request: Request,
        answer: Answer<'_>,
    ) -> Result<Step> {
        if walking == Walking::Gap {
            // Of a single row it is no matter: it will be met again.
            self.memory.looked_for_gap = true;
            return Ok(Step::default());
        }
        if let (Walking::Backlog, Some(backlog)) = (walking, &mut self.state.backlog)
            && backlog.search.is_some()
        {
            return match answer {
                Answer::TooLarge => backlog.narrow_search(request),
                _ => backlog.probe(request, answer),
            }
            .map(|()| Step::default());
        }
        let Some(walk) = self.state.walk(walking) else { return Ok(Step::default()) };
        let mut step = Step::default();
        if let Answer::Failed { count } = answer {
            walk.failed(walking.order(), request, count);
        } else if walk.too_large(walking.order(), request) {
            step.passed = Some(walk.anchor.clone());
        }
        let news = walk.news.take();
        step.unreadable = self.state.heed(news);
        Ok(step)
    }

    fn look_for_gap(&mut self, answer: Answer<'_>) -> Step {
        self.memory.looked_for_gap = true;
        let oldest = match answer {
            Answer::Page { places: [Some(oldest), ..], .. } => oldest.created(),
            _ => return Step::default(),
        };
        let gap = self.state.watermark.filter(|watermark| oldest > *watermark);
        self.found_gap = gap.is_some();
        Step { gap: gap.map(|watermark| (watermark, oldest)), ..Step::default() }
    }

    fn recent(&mut self, now: Timestamp, request: Request, answer: Answer<'_>) -> Result<Step> {
        let late_before = self.state.late_before(now);
        let Some(recent) = &mut self.state.recent else { return Ok(Step::default()) };
        let read = recent.walk.read(Order::NewestFirst, request, answer)?;
        self.news = recent.walk.news.take();
        if read != Read::Back {
            recent.see(answer, now);
        }
        // A clock that was ahead has seen nothing of what is new.
        let seen = self.state.seen.as_ref().filter(|seen| seen.created() <= now);
        let step = Step { take: read != Read::Back, late_before, ..Step::default() };
        let Read::Forward { is_end } = read else { return Ok(step) };
        if request.page == 1 && self.memory.first_size.is_none() && recent.walk.narrow.is_some() {
            self.memory.first_size = Some((request.page_size, CAREFUL_POLLS));
        }
        // Pages that are narrow for the sake of one row are not many rows.
        recent.pages += u32::from(recent.walk.narrow.is_none());
        // Were it in the future, all that is new would be older than it.
        let known = self.state.head.or(self.state.watermark).map(|known| known.min(now));
        let anchor = recent.walk.anchor.clone();
        let oldest = anchor.as_ref().map(Place::created);
        let floor = known.map(|known| before(known, self.settings.overlap));
        let has_seen = match (&anchor, seen) {
            (Some(anchor), Some(seen)) => anchor <= seen,
            // Of an older version's cursor.
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
            // The next poll must not wait for it. What it has not read is not late.
            self.state.again = self.end_poll(now).map(|recent| Recent { newest: None, ..recent });
        } else if let Some(until) = anchor
            && (recent.pages >= max_pages || is_slow)
            && let Some(recent) = self.end_poll(now)
        {
            let top = recent.top.unwrap_or(until.created().min(now));
            self.fall_behind(now, top, until, &recent.walk);
        }
        Ok(step)
    }

    /// A poll has reached what the one before had seen, or as far as polls go.
    fn end_poll(&mut self, now: Timestamp) -> Option<Recent> {
        let recent = self.state.recent.take()?;
        self.memory.polled = Some(now);
        let seen = self.state.seen.take().filter(|seen| seen.created() <= now);
        self.state.seen = seen.max(recent.newest.clone());
        Some(recent)
    }

    /// The overlap is read again, behind what polls had seen.
    fn again(&mut self, now: Timestamp, request: Request, answer: Answer<'_>) -> Result<Step> {
        let late_before = self.state.late_before(now);
        let Some(again) = &mut self.state.again else { return Ok(Step::default()) };
        let late_before = late_before.filter(|_| again.newest.is_some());
        let read = again.walk.read(Order::NewestFirst, request, answer)?;
        self.news = again.walk.news.take();
        let step = Step { take: read != Read::Back, late_before, ..Step::default() };
        let Read::Forward { is_end } = read else { return Ok(step) };
        let again = self.state.again.as_ref();
        let oldest = again.and_then(|again| again.walk.anchor.as_ref()).map(Place::created);
        let known = self.state.head.or(self.state.watermark).map(|known| known.min(now));
        let floor = known.map(|known| before(known, self.settings.overlap));
        if (is_end || matches!((oldest, floor), (Some(oldest), Some(floor)) if oldest < floor))
            && let Some(again) = self.state.again.take()
        {
            self.polled(now, &again, oldest.filter(|_| !is_end));
        }
        Ok(step)
    }

    /// A poll is complete: it went back to `from`, or to the oldest event.
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

    /// A poll that did not reach what is known: from `until` on it has read all.
    fn fall_behind(&mut self, now: Timestamp, top: Timestamp, until: Place, walk: &Walk) {
        let overlap = self.settings.overlap;
        let State { watermark, head, again, backlog, .. } = &mut self.state;
        // The backlog goes back as far.
        *again = None;
        match backlog {
            None => {
                let floor = watermark.map(|watermark| before(watermark.min(now), overlap));
                let mut anew = Walk::new(walk.size);
                anew.count = walk.count;
                let new = Backlog { floor, until, search: None, walk: anew, began: Some(now) };
                backlog.insert(new).search();
            }
            Some(backlog) => {
                backlog.until = until.max(backlog.until.clone());
                // What shows late in the region that it has passed would be nobody's.
                let redo = head.map(|head| before(head.min(now), overlap));
                let at = backlog.walk.anchor.as_ref().map(Place::created);
                if backlog.search.is_none() && at > redo && redo.is_some() {
                    backlog.floor = redo;
                    backlog.walk.count = walk.count;
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
        let read = backlog.walk.read(Order::OldestFirst, request, answer)?;
        self.news = backlog.walk.news.take();
        let step = Step { take: read != Read::Back, ..Step::default() };
        let Read::Forward { is_end } = read else { return Ok(step) };
        let at = backlog.walk.anchor.as_ref();
        *watermark = (*watermark).max(at.map(Place::created).min(*head));
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
        let read = reconcile.walk.read(Order::NewestFirst, request, answer)?;
        self.news = reconcile.walk.news.take();
        if read == Read::Back {
            return Ok(Step::default());
        }
        let step = Step { take: true, late_before, ..Step::default() };
        reconcile.floor = reconcile.floor.or(floor);
        let Read::Forward { is_end } = read else { return Ok(step) };
        let at = reconcile.walk.anchor.as_ref().map(Place::created);
        if is_end || at.zip(reconcile.floor).is_some_and(|(at, floor)| at < floor) {
            let began = reconcile.began.unwrap_or(now);
            self.reconciled(began);
            // One that an earlier process began has passed over what showed since: then
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
            let walk = Walk::new(self.settings.page_size);
            self.state.reconcile = Some(Reconcile { walk, began: Some(now), floor: None });
            self.memory.began_reconcile = true;
        }
    }

    /// How far back a reconcile walk goes whose newest event is of `top`. What it must
    /// find was not there yet when the one before began.
    fn reconcile_floor(&self, top: Timestamp, now: Timestamp) -> Timestamp {
        let (day, week) = (before(top, DAY), before(top, WEEK));
        let seam = SEAM.max(self.settings.overlap);
        match self.state.reconciled {
            None => day,
            // By a clock that was ahead, so nobody knows when.
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

impl Backlog {
    /// Begins where the floor is, to be found first.
    fn search(&mut self) {
        let pages = self.walk.count.div_ceil(self.walk.page_size().into()).max(1);
        self.walk.begin(0, None);
        self.search = self.floor.is_some().then_some(Search { lo: 1, hi: pages });
    }

    fn search_request(&self) -> Option<Request> {
        let Search { lo, hi } = self.search.as_ref()?;
        let page_size = self.walk.page_size();
        Some(Request { order: Order::OldestFirst, page: lo.midpoint(*hi), page_size })
    }

    /// A page of the search: is it before the floor? What changes meanwhile does no
    /// harm, as the walk itself steps back if it begins too late.
    fn probe(&mut self, request: Request, answer: Answer<'_>) -> Result<()> {
        let (Some(search), Some(floor)) = (&mut self.search, self.floor) else { return Ok(()) };
        let Search { lo, hi } = search;
        match answer {
            Answer::Page { count, has_next, places, .. } => {
                self.walk.count = count;
                if self.walk.learn(request, has_next, places.len())? {
                    self.search();
                    return Ok(());
                }
                let last = places.iter().rev().flatten().next();
                if has_next && last.is_some_and(|last| last.created() < floor) {
                    *lo = request.page + 1;
                } else {
                    *hi = request.page;
                }
            }
            Answer::NoSuchPage => *hi = (request.page - 1).max(1),
            // Of a row that nobody can read: too early is never wrong.
            Answer::TooLarge | Answer::Failed { .. } => *hi = request.page,
        }
        if *lo >= *hi {
            let offset = (*hi - 1) * u64::from(self.walk.page_size());
            let created_us = floor.as_millis().saturating_mul(1000);
            self.walk.begin(offset, Some(Place { created_us, pk: String::new() }));
            self.search = None;
        }
        Ok(())
    }

    /// A page of the search has too many bytes: begins again with smaller ones.
    fn narrow_search(&mut self, request: Request) -> Result<()> {
        if self.walk.page_size() == 1 {
            return self.probe(request, Answer::TooLarge);
        }
        self.walk.too_large(Order::OldestFirst, request);
        self.search();
        Ok(())
    }
}

impl Recent {
    /// Notes the newest of the first page that has one.
    fn see(&mut self, answer: Answer<'_>, now: Timestamp) {
        self.top = self.top.or_else(|| newest(answer, now));
        if let (None, Answer::Page { places, .. }) = (&self.newest, answer) {
            let places = places.iter().flatten();
            self.newest = places.filter(|place| place.created() <= now).max().cloned();
        }
    }
}

/// The newest time of a page, without what is far in the future; what is a little
/// ahead of our clock counts as now, as the overlap is counted from it.
fn newest(answer: Answer<'_>, now: Timestamp) -> Option<Timestamp> {
    let Answer::Page { places, .. } = answer else { return None };
    let latest = now.saturating_add(SKEW);
    let newest = places.iter().flatten().map(Place::created).filter(|at| *at <= latest).max();
    newest.map(|at| at.min(now))
}

fn before(at: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis_clamped(at.as_millis().saturating_sub(by))
}

/// The event that says that events between the watermark and the oldest that is
/// left may be lost. The same watermark gives the same event.
pub fn gap_event(
    source: &str,
    watermark: Timestamp,
    oldest: Timestamp,
    now: Timestamp,
) -> NewEvent {
    let said = json!({"reason": "expired", "from": watermark, "to": oldest, "noticed": now});
    gap(source, &watermark.to_string(), said, now)
}

/// The event that says that rows which the server can't give were passed over, and where
/// they are. The same place gives the same event.
pub fn unreadable_event(source: &str, hole: &Unreadable, now: Timestamp) -> NewEvent {
    let place = |place: &Option<Place>| {
        place.as_ref().map(|place| json!({"created": place.created(), "pk": place.pk}))
    };
    let (newer, older) = (place(&hole.newer), place(&hole.older));
    // New rows come on the other side.
    let beside = older.as_ref().or(newer.as_ref()).map(ToString::to_string);
    let said = json!({
        "reason": "unreadable",
        "rows": hole.rows,
        "newer": newer,
        "older": older,
        "noticed": now,
    });
    gap(source, &format!("unreadable:{}", beside.unwrap_or_default()), said, now)
}

fn gap(source: &str, identity: &str, said: Value, now: Timestamp) -> NewEvent {
    let mut digest = hex::encode(Sha256::digest(identity));
    digest.truncate(40);
    NewEvent {
        at: Some(now),
        outcome: Outcome::Failure,
        resource_type: Some("source".into()),
        resource_id: Some(source.to_owned()),
        external_id: Some(format!("gap:{source}:{digest}")),
        metadata: NewMetadata::from_value(said),
        ..NewEvent::new("ingest.gap", Actor::system())
    }
}

#[cfg(test)]
mod tests;
