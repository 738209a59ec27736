//! Requests for pages of the list, the answers, and their consequences.

use dezky_core::Timestamp;

use crate::authentik::proto::Position;

/// The minimum page size that the server must support.
pub(super) const MIN_PAGE_SIZE: u32 = 2;
/// The maximum page size.
pub(super) const MAX_PAGE_SIZE: u32 = 100;
/// The maximum length of the list that a cursor may state.
pub(super) const MAX_ROWS: u64 = 1 << 53;

/// A request for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The order.
    pub order: Order,
    /// Its number, from 1.
    pub page: u64,
    /// Its size.
    pub page_size: u32,
}

impl Request {
    /// The query of its URL.
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
    pub(super) fn is_after(self, position: &Position, anchor: &Position) -> bool {
        match self {
            Self::NewestFirst => position < anchor,
            Self::OldestFirst => position > anchor,
        }
    }
}

/// The server's answer.
#[derive(Debug, Clone, Copy)]
pub enum Answer<'a> {
    /// A page.
    Page {
        /// The number of rows in the list.
        count: u64,
        /// Whether there is a page after this one.
        has_next: bool,
        /// The number of rows before this page, if the server says it.
        before: Option<u64>,
        /// The positions of its rows, where readable.
        positions: &'a [Option<Position>],
    },
    /// 404: the list is shorter.
    NoSuchPage,
    /// The page has more bytes than the reader accepts.
    TooLarge,
    /// The server fails to return the page, but has just returned another one.
    Failed {
        /// The number of rows in the list.
        count: u64,
    },
}

/// Possible causes of a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspect {
    /// A row of the page: the server fails because of it.
    Page,
    /// The page or anything else: a proxy's answer, a timeout, an unreadable answer.
    Anything,
    /// Not the page: all requests are refused for a while.
    Nothing,
}

/// Consecutive rows that the server fails to return, and their position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The number of rows.
    pub rows: u32,
    /// The next newer row; `None` if there is none.
    pub newer: Option<Position>,
    /// The next older row; `None` if there is none.
    pub older: Option<Position>,
}

/// Consequences of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Whether to take the rows of the page; those of a probe are not taken.
    pub take: bool,
    /// Taken rows older than this were found late.
    pub late_before: Option<Timestamp>,
    /// Events may be lost: the watermark, and the oldest row that is left.
    pub gap: Option<(Timestamp, Timestamp)>,
    /// A single event with too many bytes is skipped; the position of the row before it, if there
    /// is one.
    pub passed: Option<Option<Position>>,
    /// Rows that the server fails to return were skipped.
    pub unreadable: Option<Unreadable>,
}
