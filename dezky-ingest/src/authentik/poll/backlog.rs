//! The backlog: the part of the list between the known events and the poll that did not reach them.

use dezky_core::{Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::request::{Answer, Order, Request};
use super::scan::Scan;
use crate::authentik::proto::Position;

/// The rows between the known events and those that a poll has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Backlog {
    /// Where it begins; `None`: at the oldest row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) floor: Option<Timestamp>,
    /// Where it ends: a poll has read everything from there on.
    pub(super) until: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) search: Option<Search>,
    #[serde(rename = "walk")]
    pub(super) scan: Scan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) began: Option<Timestamp>,
}

/// A binary search for the first page that reaches the floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Search {
    pub(super) lo: u64,
    pub(super) hi: u64,
}

impl Backlog {
    /// Starts at the floor, which a binary search finds first.
    pub(super) fn search(&mut self) {
        let pages = self.scan.count.div_ceil(self.scan.page_size().into()).max(1);
        self.scan.begin(0, None);
        self.search = self.floor.is_some().then_some(Search { lo: 1, hi: pages });
    }

    pub(super) fn search_request(&self) -> Option<Request> {
        let Search { lo, hi } = self.search.as_ref()?;
        let page_size = self.scan.page_size();
        Some(Request { order: Order::OldestFirst, page: lo.midpoint(*hi), page_size })
    }

    /// Takes a page of the search: is it before the floor? Changes of the list are harmless,
    /// because the scan steps back if it begins too late.
    pub(super) fn probe(&mut self, request: Request, answer: Answer<'_>) -> Result<()> {
        let (Some(search), Some(floor)) = (&mut self.search, self.floor) else { return Ok(()) };
        let Search { lo, hi } = search;
        match answer {
            Answer::Page { count, has_next, positions, .. } => {
                self.scan.count = count;
                if self.scan.learn(request, has_next, positions.len())? {
                    self.search();
                    return Ok(());
                }
                let last = positions.iter().rev().flatten().next();
                if has_next && last.is_some_and(|last| last.created() < floor) {
                    *lo = request.page + 1;
                } else {
                    *hi = request.page;
                }
            }
            Answer::NoSuchPage => *hi = (request.page - 1).max(1),
            // Starting too early because of an unreadable row is always safe.
            Answer::TooLarge | Answer::Failed { .. } => *hi = request.page,
        }
        if *lo >= *hi {
            let offset = (*hi - 1) * u64::from(self.scan.page_size());
            let created_us = floor.as_millis().saturating_mul(1000);
            self.scan.begin(offset, Some(Position { created_us, pk: String::new() }));
            self.search = None;
        }
        Ok(())
    }

    /// Restarts the search with smaller pages, because one has too many bytes.
    pub(super) fn narrow_search(&mut self, request: Request) -> Result<()> {
        if self.scan.page_size() == 1 {
            return self.probe(request, Answer::TooLarge);
        }
        self.scan.too_large(Order::OldestFirst, request);
        self.search();
        Ok(())
    }
}
