use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SETTINGS: Settings =
    Settings { page_size: 12, overlap: Duration::from_mins(1), interval: Duration::from_mins(1) };
const OVERLAP_MS: i64 = 60_000;

/// The server's list: rows become visible when they are committed, and may be deleted.
struct Server {
    now_ms: i64,
    rows: Vec<Row>,
    made: u64,
    max_page_size: u32,
    /// Whether the list appears empty, as to an account that may not view events.
    hides: bool,
    /// Whether all requests fail.
    is_down: bool,
    failures: usize,
    /// Whether a failed request adds a row, as in Authentik.
    adds_rows: bool,
}

#[derive(Clone)]
struct Row {
    position: Position,
    shows_ms: i64,
    /// Whether it has too many bytes, alone and on every page.
    is_huge: bool,
    /// Whether the server fails on every page with it.
    is_bad: bool,
}

impl Server {
    fn new() -> Self {
        Self {
            now_ms: 1_767_225_600_000,
            rows: Vec::new(),
            made: 0,
            max_page_size: 100,
            hides: false,
            is_down: false,
            failures: 0,
            adds_rows: true,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis_clamped(self.now_ms)
    }

    /// Inserts a row created `age_ms` ago, which becomes visible after `delay_ms`.
    fn insert(&mut self, age_ms: i64, delay_ms: i64) {
        self.made += 1;
        // Keys in random order, like those of UUID v4.
        let pk = format!("{:016x}", self.made.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let created_us = (self.now_ms - age_ms) * 1000;
        let shows_ms = self.now_ms + delay_ms;
        let position = Position { created_us, pk };
        let at = self.rows.partition_point(|row| row.position < position);
        self.rows.insert(at, Row { position, shows_ms, is_huge: false, is_bad: false });
    }

    /// Makes the nth row, counted from the oldest, too large.
    fn blow_up(&mut self, nth: usize) {
        if let Some(row) = self.rows.get_mut(nth) {
            row.is_huge = true;
        }
    }

    /// Makes the server fail on the nth row, counted from the oldest.
    fn poison(&mut self, nth: usize) {
        if let Some(row) = self.rows.get_mut(nth) {
            row.is_bad = true;
        }
    }

    fn is_future(&self, nth: usize) -> bool {
        self.rows.get(nth).is_some_and(|row| row.position.created() > self.now())
    }

    /// Fails a request, which may add a row.
    fn fail(&mut self) {
        self.failures += 1;
        // A request takes time.
        self.now_ms += 1;
        if self.adds_rows {
            self.insert(0, 0);
        }
    }

    fn shown(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.shows_ms <= self.now_ms)
    }

    fn delete(&mut self, first: usize, rows: usize) {
        let first = first.min(self.rows.len());
        let last = (first + rows).min(self.rows.len());
        self.rows.drain(first..last);
    }

    fn page(&self, request: Request) -> Reply {
        let mut rows: Vec<_> = self.shown().filter(|_| !self.hides).collect();
        if request.order == Order::NewestFirst {
            rows.reverse();
        }
        let size = request.page_size.min(self.max_page_size) as usize;
        let first = (usize::try_from(request.page).unwrap() - 1) * size;
        if first >= rows.len() && request.page > 1 {
            return Reply::NoSuchPage;
        }
        let last = (first + size).min(rows.len());
        let page = &rows[first.min(last)..last];
        if self.is_down || page.iter().any(|row| row.is_bad) {
            return Reply::Failed;
        }
        if page.iter().any(|row| row.is_huge) {
            return Reply::TooLarge;
        }
        Reply::Page {
            count: rows.len() as u64,
            has_next: last < rows.len(),
            before: first as u64,
            positions: page.iter().map(|row| Some(row.position.clone())).collect(),
        }
    }
}

/// A response that owns its positions.
enum Reply {
    Page { count: u64, has_next: bool, before: u64, positions: Vec<Option<Position>> },
    NoSuchPage,
    TooLarge,
    Failed,
}

impl Reply {
    fn answer(&self) -> Answer<'_> {
        match self {
            Self::NoSuchPage => Answer::NoSuchPage,
            Self::TooLarge => Answer::TooLarge,
            Self::Failed => unreachable!("looked into before"),
            Self::Page { count, has_next, before, positions } => Answer::Page {
                count: *count,
                has_next: *has_next,
                before: Some(*before),
                positions,
            },
        }
    }

    fn positions(self) -> Vec<Option<Position>> {
        if let Self::Page { positions, .. } = self { positions } else { Vec::new() }
    }
}

/// A poller whose commits can fail and which can be restarted.
struct Client {
    cursor: Option<String>,
    memory: Memory,
    taken: BTreeSet<Position>,
    late: usize,
    gaps: usize,
    /// The number of skipped rows.
    passed: usize,
    requests: usize,
    /// The records of rows that the server could not return.
    unreadable: Vec<Unreadable>,
}

impl Client {
    fn new() -> Self {
        Self {
            cursor: None,
            memory: Memory::default(),
            taken: BTreeSet::new(),
            late: 0,
            gaps: 0,
            passed: 0,
            requests: 0,
            unreadable: Vec::new(),
        }
    }

    /// Pulls once as the source does. Returns whether more is waiting.
    fn pull(&mut self, server: &mut Server, commits: bool) -> bool {
        let now = server.now();
        let mut poll = Poll::resume(SETTINGS, self.cursor.as_deref(), self.memory.clone()).unwrap();
        let before = self.requests;
        while let Some(request) = poll.request(now) {
            self.requests += 1;
            assert!(self.requests - before < 50, "a pull comes to an end: {:?}", self.cursor);
            let reply = server.page(request);
            let answer = match &reply {
                Reply::Failed => {
                    server.fail();
                    if !poll.looks_into(Suspect::Page) {
                        self.memory.note_failures(poll.memory());
                        return false;
                    }
                    let probes = [Order::OldestFirst, Order::NewestFirst];
                    let counts = probes.into_iter().find_map(|order| {
                        let probe = Request { order, page: 1, page_size: 1 };
                        self.requests += 1;
                        match server.page(probe) {
                            Reply::Page { count, .. } if count > 0 && probe != request => {
                                Some(count)
                            }
                            Reply::Failed => {
                                server.fail();
                                None
                            }
                            _ => None,
                        }
                    });
                    let Some(count) = counts else {
                        self.memory.note_failures(poll.memory());
                        return false;
                    };
                    Answer::Failed { count }
                }
                reply => reply.answer(),
            };
            let step = poll.answer(now, answer).unwrap();
            self.passed += usize::from(step.passed.is_some());
            let new: Vec<_> = reply
                .positions()
                .into_iter()
                .flatten()
                .filter(|position| step.take && !self.taken.contains(position))
                .collect();
            let brings = !new.is_empty() || step.gap.is_some() || step.unreadable.is_some();
            if let Some(cursor) = poll.cursor(self.cursor.as_deref(), brings) {
                assert!(cursor.len() < 5_000, "the cursor is small");
                if commits {
                    self.gaps += usize::from(step.gap.is_some());
                    let is_late =
                        |position: &&Position| step.late_before > Some(position.created());
                    self.late += new.iter().filter(is_late).count();
                    self.unreadable.extend(step.unreadable);
                    self.taken.extend(new);
                    self.cursor = Some(cursor);
                    self.memory = poll.memory().clone();
                }
                return poll.more();
            }
            assert!(!brings);
            self.memory = poll.memory().clone();
        }
        false
    }

    fn tick(&mut self, server: &mut Server, pages: usize) -> bool {
        (0..pages).all(|_| self.pull(server, true))
    }

    fn watermark(&self) -> Option<Timestamp> {
        Poll::resume(SETTINGS, self.cursor.as_deref(), Memory::default()).unwrap().watermark()
    }

    fn restart(&mut self) {
        self.memory = Memory::default();
    }

    /// Rows on the server that became visible in time but were not ingested.
    fn missing<'s>(&self, server: &'s Server) -> Vec<&'s Row> {
        let in_time = |row: &&Row| {
            !row.is_huge
                && !row.is_bad
                && row.shows_ms - row.position.created_us / 1000 <= OVERLAP_MS
        };
        server.shown().filter(in_time).filter(|row| !self.taken.contains(&row.position)).collect()
    }
}

#[test]
fn a_quiet_poll_is_one_request_and_no_new_cursor() {
    let mut server = Server::new();
    let mut client = Client::new();
    (0..8).for_each(|age| server.insert(age * 1000, 0));
    assert!(!client.tick(&mut server, 10));
    assert_eq!((client.taken.len(), client.requests), (8, 1));
    let cursor = client.cursor.clone();
    for _ in 0..5 {
        server.now_ms += 60_000;
        assert!(!client.tick(&mut server, 10));
    }
    assert_eq!((client.requests, &client.cursor), (6, &cursor));
    client.restart();
    assert!(!client.tick(&mut server, 10));
    assert_eq!((client.requests, client.gaps), (8, 0), "and a look at the oldest");
}

#[test]
fn the_cursor_is_read_for_ever() {
    let text = concat!(
        r#"{"v":1,"n":7,"watermark":"2026-01-01T00:00:00.000Z","head":"2026-01-02T00:00:00.000Z","#,
        r#""reconciled":"2026-01-01T00:00:00.000Z","#,
        r#""recent":{"walk":{"offset":0,"size":100,"count":0},"pages":0},"#,
        r#""backlog":{"floor":"2025-12-31T23:50:00.000Z","until":{"t":1767312000000000,"pk":"a"},"#,
        r#""search":{"lo":1,"hi":9},"walk":{"offset":5,"anchor":{"t":1,"pk":"b"},"size":50,"#,
        r#""count":812}},"reconcile":{"walk":{"offset":0,"size":100,"count":0},"#,
        r#""floor":"2025-12-31T00:00:00.000Z"}}"#,
    );
    let poll = Poll::resume(SETTINGS, Some(text), Memory::default()).unwrap();
    // It is written in the newest version, with the same content.
    assert_eq!(
        serde_json::to_string(&poll.state).unwrap(),
        text.replacen(r#""v":1"#, r#""v":2"#, 1)
    );
    let text = concat!(
        r#"{"v":2,"n":7,"watermark":"2026-01-01T00:00:00.000Z","seen":{"t":1767312000000000,"pk":"a"},"#,
        r#""recent":{"walk":{"offset":4,"anchor":{"t":1,"pk":"b"},"size":7,"narrow":1,"count":9,"#,
        r#""passed":1,"failed":1,"strikes":1,"steady":3,"next":{"offset":5,"isEnd":false}},"pages":0,"#,
        r#""newest":{"t":1767312000000000,"pk":"a"}},"#,
        r#""again":{"walk":{"offset":0,"size":100,"count":0},"began":"2026-01-01T00:00:00.000Z","pages":1},"#,
        r#""holes":[{"newer":{"t":2,"pk":"c"},"older":{"t":1,"pk":"b"},"rows":1,"above":3,"below":5}]}"#,
    );
    let poll = Poll::resume(SETTINGS, Some(text), Memory::default()).unwrap();
    assert_eq!(serde_json::to_string(&poll.state).unwrap(), text);
    for odd in ["", "{}", r#"{"v":3,"n":1}"#, "7:10"] {
        let error = Poll::resume(SETTINGS, Some(odd), Memory::default()).unwrap_err();
        assert!(error.to_string().contains("cursor"), "{error}");
        assert_eq!(error.code(), "cursor_invalid");
    }
    let newer = r#"{"v":3,"n":1,"watermarks":{"a":1}}"#;
    let error = Poll::resume(SETTINGS, Some(newer), Memory::default()).unwrap_err();
    assert!(error.to_string().contains("version 3"), "{error}");
    for (from, to) in [
        (r#""failed":1"#, r#""failed":2"#),
        (r#""rows":1"#, r#""rows":0"#),
        (r#""above":3"#, r#""above":18446744073709551615"#),
        (r#""size":7"#, r#""size":1"#),
    ] {
        let hostile = text.replacen(from, to, 1);
        assert_ne!(hostile, text);
        let error = Poll::resume(SETTINGS, Some(&hostile), Memory::default()).unwrap_err();
        assert_eq!(error.code(), "cursor_invalid", "{to}");
    }
    let text = concat!(
        r#"{"v":1,"n":7,"backlog":{"until":{"t":1767312000000000,"pk":"a"},"#,
        r#""search":{"lo":1,"hi":9},"walk":{"offset":5,"size":50,"count":812}}}"#,
    );
    for (from, to) in [
        (r#""size":50"#, r#""size":0"#),
        (r#""size":50"#, r#""size":4000000000"#),
        (r#""offset":5"#, r#""offset":18446744073709551615"#),
        (r#""count":812"#, r#""count":18446744073709551615"#),
        (r#""lo":1"#, r#""lo":0"#),
        (r#""lo":1"#, r#""lo":10"#),
        (r#""hi":9"#, r#""hi":18446744073709551615"#),
        (r#""n":7"#, r#""n":18446744073709551615"#),
    ] {
        let hostile = text.replacen(from, to, 1);
        assert_ne!(hostile, text);
        let error = Poll::resume(SETTINGS, Some(&hostile), Memory::default()).unwrap_err();
        assert_eq!(error.code(), "cursor_invalid", "{to}");
    }
}

#[test]
fn a_list_that_is_empty_for_a_while_ends_no_scan() {
    // During the backlog of a first run, and during a poll.
    for (known, pulls) in [(0, 5), (300, 3)] {
        let mut server = Server::new();
        (0..known).for_each(|age| server.insert(age * 1_000, 0));
        let mut client = Client::new();
        while client.tick(&mut server, 10) {}
        server.now_ms += 3_600_000;
        (0..500).for_each(|age| server.insert(age * 1_000, 0));
        client.tick(&mut server, pulls);
        assert!(!client.missing(&server).is_empty());
        let before = client.watermark();
        server.hides = true;
        for _ in 0..3 {
            client.tick(&mut server, 10);
            server.now_ms += 60_000;
        }
        assert_eq!(client.watermark(), before);
        server.hides = false;
        while client.tick(&mut server, 10) {}
        assert!(client.missing(&server).is_empty());
    }
}

#[test]
fn many_events_of_the_future_are_no_watermark_either() {
    for known in [0, 1] {
        let mut server = Server::new();
        (0..known).for_each(|_| server.insert(0, 0));
        let mut client = Client::new();
        client.tick(&mut server, 10);
        // For a while, a clock was wrong by a year.
        (0..200).for_each(|n| server.insert(-365 * 86_400_000 - n, 0));
        while client.tick(&mut server, 10) {}
        assert!(client.watermark() <= Some(server.now()));
        for _ in 0..5 {
            server.now_ms += 60_000;
            (0..40).for_each(|age| server.insert(age * 1_000, 0));
            while client.tick(&mut server, 10) {}
            assert!(client.missing(&server).is_empty());
        }
    }
}

#[test]
fn a_clock_that_is_ahead_a_little_does_not_shrink_the_overlap() {
    let mut server = Server::new();
    let mut client = Client::new();
    server.insert(-4 * 60_000, 0);
    client.tick(&mut server, 10);
    assert_eq!(client.watermark(), Some(server.now()));
    server.now_ms += 60_000;
    (0..40).for_each(|age| server.insert(age * 1_000, 0));
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
}

#[test]
fn a_watermark_in_the_future_hides_nothing() {
    let mut server = Server::new();
    let mut client = Client::new();
    // Positions recorded while the server's clock and ours were ahead.
    server.now_ms += 86_400_000;
    (0..5).for_each(|age| server.insert(age * 1_000, 0));
    client.tick(&mut server, 10);
    server.now_ms -= 86_400_000;
    (0..40).for_each(|age| server.insert(age * 1_000, 0));
    client.tick(&mut server, 10);
    assert!(client.missing(&server).is_empty());
}

#[test]
fn a_reconcile_scan_in_the_future_delays_no_other() {
    const DAY_MS: i64 = 86_400_000;
    let mut server = Server::new();
    (0..40).for_each(|age| server.insert(age * 5_000, 0));
    let mut client = Client::new();
    // Our clock is ahead when the scan begins, and is then corrected.
    server.now_ms += 30 * DAY_MS;
    while client.tick(&mut server, 10) {}
    server.now_ms -= 30 * DAY_MS;
    // An outage of a day interrupts this scan; then the next one runs.
    (0..40).for_each(|age| server.insert(age * 5_000, 0));
    client.tick(&mut server, 10);
    for _ in 0..2 {
        server.now_ms += DAY_MS;
        server.insert(OVERLAP_MS * 30, 0);
        (0..40).for_each(|age| server.insert(age * 5_000, 0));
        while client.tick(&mut server, 10) {}
        let missed = server.rows.iter().filter(|row| !client.taken.contains(&row.position));
        let ages: Vec<_> =
            missed.map(|row| server.now_ms - row.position.created_us / 1000).collect();
        assert!(ages.is_empty(), "{ages:?}");
    }
}

#[test]
fn what_has_expired_in_an_outage_is_a_gap_without_a_restart() {
    let mut server = Server::new();
    (0..20).for_each(|age| server.insert(age * 10_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    for _ in 0..3 {
        server.now_ms += 3_600_000;
        client.tick(&mut server, 10);
    }
    let before = client.requests;
    client.tick(&mut server, 10);
    assert_eq!((client.requests - before, client.gaps), (1, 0), "no look at a quiet poll");
    // Two days of outage, of which the last one's events still exist.
    server.now_ms += 2 * 86_400_000;
    server.rows.clear();
    (0..100).for_each(|age| server.insert(age * 600_000, 0));
    while client.tick(&mut server, 10) {}
    assert_eq!(client.gaps, 1);
    assert!(client.missing(&server).is_empty());
}

#[test]
fn a_list_that_shrinks_by_far_holds_nothing_up() {
    let mut server = Server::new();
    (0..6_000).for_each(|age| server.insert(age * 1_000, 0));
    let mut client = Client::new();
    client.tick(&mut server, 400);
    server.delete(0, 5_950);
    server.now_ms += 60_000;
    let before = client.requests;
    while client.tick(&mut server, 10) {}
    assert!(client.requests - before < 40, "{} requests", client.requests - before);
    assert!(client.missing(&server).is_empty());
}

#[test]
fn the_reconcile_scan_outlives_a_burst() {
    let mut server = Server::new();
    (0..2_000).for_each(|age| server.insert(age * 30_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    client.restart();
    client.tick(&mut server, 20);
    let scaned = |client: &Client| {
        let cursor: serde_json::Value =
            serde_json::from_str(client.cursor.as_deref().unwrap()).unwrap();
        cursor["reconcile"]["walk"]["offset"].as_u64()
    };
    let before = scaned(&client);
    assert!(before > Some(100));
    server.now_ms += 200_000;
    (0..100).for_each(|_| server.insert(0, 0));
    client.tick(&mut server, 6);
    assert!(client.cursor.as_deref().unwrap().contains("backlog"));
    assert_eq!(scaned(&client), before);
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
}

#[test]
fn after_a_scan_that_an_earlier_process_began_comes_one_of_our_own() {
    let mut server = Server::new();
    (0..2_000).for_each(|age| server.insert(age * 30_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    client.restart();
    client.tick(&mut server, 20);
    assert!(client.cursor.as_deref().unwrap().contains("reconcile\":{\"walk"));
    // Inserted where the scan has already passed.
    server.insert(1_200_000, 0);
    client.restart();
    for _ in 0..60 {
        client.tick(&mut server, 10);
        server.now_ms += 60_000;
    }
    assert_eq!((client.taken.len(), client.late), (2_001, 1));
}

#[test]
fn a_long_backlog_drains_in_steps_while_polls_go_on() {
    let mut server = Server::new();
    (0..2_000).for_each(|age| server.insert(age * 5_000, 0));
    let mut client = Client::new();
    let mut ticks = 1;
    while client.tick(&mut server, 10) {
        ticks += 1;
        server.now_ms += 60_000;
        server.insert(0, 0);
        assert!(client.missing(&server).len() < 2_000 - (ticks - 1) * 60);
    }
    let pages = 2_000 / 12;
    assert!(ticks * 10 < pages * 2, "{ticks} ticks for {pages} pages");
    server.now_ms += 150_000;
    client.tick(&mut server, 10);
    assert!(client.missing(&server).is_empty());
}

#[test]
fn the_watermark_waits_for_the_backlog() {
    let mut server = Server::new();
    server.insert(0, 0);
    let mut client = Client::new();
    client.tick(&mut server, 10);
    let before = client.watermark();
    server.now_ms += 3_600_000;
    (0..300).for_each(|age| server.insert(age * 1_000, 0));
    let mut ticks = 0;
    while client.watermark() < Some(server.now()) {
        client.tick(&mut server, 3);
        ticks += 1;
        assert!(ticks < 100, "draining ends");
        client.restart();
        let watermark = client.watermark().unwrap();
        assert!(Some(watermark) >= before);
        let is_passed = |row: &&Row| row.position.created() <= watermark;
        let passed = client.missing(&server).into_iter().filter(is_passed).count();
        assert_eq!(passed, 0, "nothing before the watermark is missing");
    }
    assert!(ticks > 5);
    assert!(client.missing(&server).is_empty());
}

#[test]
fn what_shows_after_the_overlap_is_found_by_the_reconcile_scan_and_counted() {
    let mut server = Server::new();
    (0..40).for_each(|age| server.insert(age * 5_000, 0));
    let mut client = Client::new();
    client.tick(&mut server, 10);
    server.insert(OVERLAP_MS * 3, 0);
    server.now_ms += 60_000;
    client.tick(&mut server, 10);
    assert_eq!((client.taken.len(), client.late), (40, 0));
    // A day later there are so many new events that the poll does not reach the row.
    server.now_ms += 86_400_000;
    (0..40).for_each(|age| server.insert(age * 5_000, 0));
    while client.tick(&mut server, 10) {}
    assert_eq!((client.taken.len(), client.late), (81, 1), "a day's scan finds it");

    server.insert(OVERLAP_MS * 3, 0);
    client.restart();
    while client.tick(&mut server, 10) {}
    assert_eq!((client.taken.len(), client.late), (82, 2));
}

#[test]
fn reconcile_scans_meet_however_far_apart_they_begin() {
    const HOUR: i64 = 3_600_000;
    // The time between the starts of the two scans, the late row's age at the first one, and
    // whether it must be found: if it is late by up to an hour, it must, but no scan goes back more
    // than a week.
    for (apart, age, is_found) in [
        (24 * HOUR, HOUR - 120_000, true),
        (34 * HOUR, HOUR - 120_000, true),
        (24 * HOUR, 2 * HOUR, false),
        (8 * 24 * HOUR, HOUR / 2, false),
    ] {
        let mut server = Server::new();
        (0..2_000).for_each(|n| server.insert(n * 60_000, 0));
        let mut client = Client::new();
        while client.tick(&mut server, 10) {}
        server.now_ms += 60_000;
        server.insert(age, 0);
        let late = server.rows.iter().position(|row| row.shows_ms == server.now_ms).unwrap();
        let late = server.rows[late].position.clone();
        client.tick(&mut server, 10);
        assert!(!client.taken.contains(&late), "polls do not go so far");
        server.now_ms += apart - 60_000;
        (0..2_000).for_each(|n| server.insert(n * apart / 2_100, 0));
        while client.tick(&mut server, 10) {}
        assert_eq!(client.taken.contains(&late), is_found, "{apart} {age}");
    }
}

#[test]
fn a_scan_counts_from_where_it_began() {
    let mut server = Server::new();
    (0..2_000).for_each(|n| server.insert(n * 40_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    client.restart();
    client.tick(&mut server, 20);
    // Inserted in the middle of the scan where it has already passed; the scan then pauses for five
    // hours.
    server.insert(1_200_000, 0);
    server.now_ms += 5 * 3_600_000;
    while client.tick(&mut server, 10) {}
    assert_eq!((client.taken.len(), client.late), (2_000, 0));
    server.now_ms += 20 * 3_600_000;
    (0..2_000).for_each(|n| server.insert(n * 40_000, 0));
    while client.tick(&mut server, 10) {}
    assert_eq!((client.taken.len(), client.late), (4_001, 1));
}

#[test]
fn an_event_of_the_future_is_no_watermark() {
    let mut server = Server::new();
    server.insert(0, 0);
    server.insert(-365 * 86_400_000, 0);
    let mut client = Client::new();
    client.tick(&mut server, 10);
    assert_eq!((client.taken.len(), client.watermark()), (2, Some(server.now())));
}

#[test]
fn what_has_expired_is_a_gap() {
    let mut server = Server::new();
    (0..20).for_each(|age| server.insert(age * 1_000, 0));
    let mut client = Client::new();
    client.tick(&mut server, 10);
    let last = server.now();
    server.rows.clear();
    client.restart();
    server.now_ms += 3_600_000;
    client.tick(&mut server, 10);
    assert_eq!(client.gaps, 0, "an empty list does not show whether there is a gap");
    client.restart();
    server.insert(0, 0);
    client.tick(&mut server, 10);
    assert_eq!((client.gaps, client.taken.len()), (1, 21));
    let gap = gap_event("authentik", last, server.now(), server.now());
    assert_eq!(gap.external_id, gap_event("authentik", last, last, last).external_id);
    assert_eq!((gap.action.as_str(), gap.source.as_str()), ("ingest.gap", "platform-api"));
}

#[test]
fn pages_that_are_too_large_become_smaller_and_then_a_row_is_passed_over() {
    let mut poll = Poll::resume(SETTINGS, None, Memory::default()).unwrap();
    let now = Server::new().now();
    let mut asked = Vec::new();
    for _ in 0..5 {
        let request = poll.request(now).unwrap();
        let step = poll.answer(now, Answer::TooLarge).unwrap();
        asked.push((request.page_size, request.page, step.passed.is_some()));
    }
    assert_eq!(asked, [(12, 1, false), (3, 1, false), (1, 1, true), (1, 2, true), (1, 3, true)]);
    poll.request(now).unwrap();
    poll.answer(now, Answer::NoSuchPage).unwrap();
    assert!(!poll.more(), "behind them is nothing");
}

#[test]
fn rows_that_are_too_large_do_not_affect_their_neighbours() {
    // The oldest, the newest, and some in the middle, both adjacent and apart.
    let mut server = Server::new();
    (0..100).for_each(|age| server.insert(age * 10_000, 0));
    for nth in [0, 1, 17, 40, 41, 42, 44, 77, 99] {
        server.blow_up(nth);
    }
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
    assert_eq!(client.taken.len(), 91);
    // A poll reads those within the overlap, the backlog scan all of them.
    for _ in 0..3 {
        server.now_ms += 3_600_000;
        (0..100).for_each(|age| server.insert(age * 10_000, 0));
        server.blow_up(server.rows.len() - 1);
        server.blow_up(server.rows.len() - 60);
        client.restart();
        while client.tick(&mut server, 10) {}
        assert!(client.missing(&server).is_empty());
    }
    assert!(client.passed >= 15);
}

#[test]
fn after_a_row_that_is_too_large_pages_grow_again() {
    let requests = |with_a_large_row: bool| {
        let mut server = Server::new();
        (0..1_200).for_each(|age| server.insert(age * 1_000, 0));
        if with_a_large_row {
            server.blow_up(600);
        }
        let mut client = Client::new();
        while client.tick(&mut server, 10) {}
        assert!(client.missing(&server).is_empty());
        client.requests
    };
    let more = requests(true) - requests(false);
    assert!(more < 25, "{more} requests for one row");
}

#[test]
fn pages_of_two_and_three_are_joined_by_a_proof() {
    for max_page_size in [2, 3] {
        let mut server = Server { max_page_size, ..Server::new() };
        (0..60).for_each(|age| server.insert(age * 10_000, 0));
        let mut client = Client::new();
        let mut pulls = 0;
        // Between any two requests the oldest row expires and a new one appears, so that the count
        // stays the same.
        while client.pull(&mut server, true) {
            server.now_ms += 50;
            if pulls % 3 == 0 {
                server.delete(0, 1);
                server.insert(0, 0);
            }
            pulls += 1;
            assert!(pulls < 1_000, "draining ends");
        }
        server.now_ms += 1_000;
        while client.pull(&mut server, true) {}
        assert!(client.missing(&server).is_empty(), "{:?}", client.missing(&server).len());
    }
}

#[test]
fn what_slips_between_two_pages_without_room_for_the_anchor_is_gone_back_for() {
    let position = |at: i64| Position { created_us: at, pk: "x".into() };
    let mut scan = Scan::new(2);
    let mut read = |rows: &[i64]| {
        let request = scan.ask(Order::OldestFirst, &[], 2, false, Timestamp::MAX);
        let first = usize::try_from(request.page - 1).unwrap() * request.page_size as usize;
        let last = (first + request.page_size as usize).min(rows.len());
        let positions: Vec<_> = rows[first..last].iter().map(|at| Some(position(*at))).collect();
        let (count, has_next) = (rows.len() as u64, last < rows.len());
        let answer =
            Answer::Page { count, has_next, before: Some(first as u64), positions: &positions };
        (scan.read(Order::OldestFirst, request, answer).unwrap(), rows[first..last].to_vec())
    };
    assert_eq!(read(&[1, 2, 3, 4, 5, 6]), (Read::Forward { is_end: false }, vec![1, 2]));
    // One row expires and one is added, so the next page begins with 4 instead of 3.
    let rows = [2, 3, 4, 5, 6, 7];
    assert_eq!(read(&rows), (Read::Held, vec![4, 5]));
    assert_eq!(read(&rows), (Read::Back, vec![3]));
    assert_eq!(read(&rows), (Read::Forward { is_end: false }, vec![2, 3]));
    assert_eq!(read(&rows), (Read::Held, vec![4, 5]));
    assert_eq!(read(&rows), (Read::Forward { is_end: false }, vec![3]));
    assert_eq!(read(&rows), (Read::Held, vec![6, 7]));
    assert_eq!(read(&rows), (Read::Forward { is_end: true }, vec![5]));
}

#[test]
fn pages_of_one_are_refused() {
    let mut server = Server::new();
    (0..3).for_each(|age| server.insert(age, 0));
    server.max_page_size = 1;
    let mut poll = Poll::resume(SETTINGS, None, Memory::default()).unwrap();
    let request = poll.request(server.now()).unwrap();
    let error = poll.answer(server.now(), server.page(request).answer()).unwrap_err();
    assert!(error.to_string().contains("pagination_max_page_size"));
}

/// The number of recorded rows on which the server fails, counting each record once.
fn on_record(client: &Client) -> u32 {
    // A neighbour that becomes visible late may cause the same record to be written again.
    let records = client.unreadable.iter().map(|hole| (hole.older.clone(), hole.rows));
    records.collect::<BTreeSet<_>>().into_iter().map(|(_, rows)| rows).sum()
}

#[test]
fn rows_on_which_the_server_fails_are_skipped_with_a_record_and_their_neighbours_are_read() {
    for adds_rows in [true, false] {
        // The oldest, two adjacent ones, some apart, and the last but one; the newest only if
        // failures add rows, because otherwise it can't be distinguished from an outage.
        let mut server = Server { adds_rows, ..Server::new() };
        (0..100).for_each(|age| server.insert(age * 10_000, 0));
        for nth in [0, 17, 40, 41, 44, if adds_rows { 99 } else { 98 }] {
            server.poison(nth);
        }
        let mut client = Client::new();
        for _ in 0..4 {
            server.now_ms += 60_000;
            let mut pulls = 0;
            while client.pull(&mut server, true) {
                server.now_ms += 50;
                pulls += 1;
                assert!(pulls < 400, "draining ends");
            }
        }
        let missing = client.missing(&server).len();
        assert_eq!(missing, 0, "{adds_rows} {:?} {:?}", client.cursor, client.unreadable);
        assert_eq!(on_record(&client), 6, "{adds_rows} {:?}", client.unreadable);
        assert!(server.failures < 6 * 10, "{} failures", server.failures);
    }
}

#[test]
fn a_row_that_was_passed_over_costs_later_polls_no_failure() {
    let mut server = Server::new();
    (0..40).for_each(|age| server.insert(age * 1_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    server.now_ms += 5_000;
    server.insert(0, 0);
    server.poison(40);
    while client.tick(&mut server, 10) {}
    server.now_ms += 60_000;
    (0..3).for_each(|_| server.insert(0, 0));
    while client.tick(&mut server, 10) {}
    let (failures, records) = (server.failures, client.unreadable.len());
    assert_eq!(records, 1);
    assert!(failures <= 6, "{failures} failures for one row");
    for _ in 0..5 {
        server.now_ms += 10_000;
        (0..7).for_each(|age| server.insert(age * 100, 0));
        while client.tick(&mut server, 10) {}
        assert!(client.missing(&server).is_empty());
    }
    assert_eq!((server.failures, client.unreadable.len()), (failures, 1));
}

#[test]
fn a_row_that_can_be_given_again_is_taken_by_the_scan_over_the_last_day() {
    let mut server = Server::new();
    (0..40).for_each(|age| server.insert(age * 1_000, 0));
    server.poison(20);
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    assert_eq!(on_record(&client), 1);
    server.rows.iter_mut().for_each(|row| row.is_bad = false);
    client.restart();
    // So many rows are new that a poll does not go back this far.
    server.now_ms += 600_000;
    (0..80).for_each(|age| server.insert(age * 1_000, 0));
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
}

#[test]
fn an_outage_passes_nothing_over_and_is_tried_again_later() {
    let mut server = Server { adds_rows: false, ..Server::new() };
    (0..100).for_each(|age| server.insert(age * 10_000, 0));
    let mut client = Client::new();
    client.tick(&mut server, 2);
    server.is_down = true;
    let cursor = client.cursor.clone();
    for _ in 0..20 {
        let before = client.requests;
        assert!(!client.tick(&mut server, 10), "the pump backs off");
        assert!(client.requests - before <= 3, "a page, and two others");
        server.now_ms += 60_000;
    }
    assert_eq!(client.cursor, cursor);
    server.is_down = false;
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
    assert!(client.unreadable.is_empty());
}

#[test]
fn what_is_new_never_waits_for_the_overlap_to_be_read_again() {
    let mut server = Server::new();
    (0..20).for_each(|age| server.insert(60_000 + age * 1_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    // Far more than ten pages within the overlap.
    (0..600).for_each(|age| server.insert(age * 50, 0));
    while client.tick(&mut server, 10) {}
    for minute in 0..4 {
        server.now_ms += 60_000;
        (0..5).for_each(|age| server.insert(age * 100, 0));
        // A row that is late by half a minute.
        server.insert(30_000, 0);
        client.tick(&mut server, 2);
        let newest = server.now_ms * 1000 - 1_000_000;
        let missing = client.missing(&server).into_iter();
        let new = missing.filter(|row| row.position.created_us > newest).count();
        assert_eq!(new, 0, "in minute {minute}");
        client.tick(&mut server, 8);
    }
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
}

#[test]
fn the_backlog_goes_on_alongside_an_overlap_of_many_pages() {
    let mut server = Server::new();
    server.insert(3_600_000, 0);
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    (0..2_000).for_each(|age| server.insert(age * 1_500, 0));
    let mut ticks = 0;
    while client.tick(&mut server, 10) {
        server.now_ms += 60_000;
        // The overlap always spans several pages.
        (0..18).for_each(|age| server.insert(age * 3_000, 0));
        ticks += 1;
        assert!(ticks < 80, "draining ends");
        if client.watermark() > Some(before(server.now(), Duration::from_mins(3))) {
            break;
        }
    }
    server.now_ms += 60_000;
    while client.tick(&mut server, 10) {}
    assert!(client.missing(&server).is_empty());
}

#[test]
fn late_rows_that_a_poll_finds_are_marked_late() {
    let mut server = Server::new();
    (0..20).for_each(|age| server.insert(age * 1_000, 0));
    let mut client = Client::new();
    while client.tick(&mut server, 10) {}
    server.now_ms += 30_000;
    server.insert(45_000, 0);
    server.insert(10_000, 0);
    while client.tick(&mut server, 10) {}
    assert_eq!((client.taken.len(), client.late), (22, 1));
}

#[test]
fn a_page_size_that_shrank_grows_again_once_the_server_allows_it() {
    let mut server = Server { max_page_size: 7, ..Server::new() };
    (0..2_000).for_each(|age| server.insert(age * 5_000, 0));
    let mut client = Client::new();
    client.tick(&mut server, 20);
    let sizes = |client: &Client| {
        let cursor: serde_json::Value =
            serde_json::from_str(client.cursor.as_deref().unwrap()).unwrap();
        cursor["backlog"]["walk"]["size"].as_u64()
    };
    assert_eq!(sizes(&client), Some(7));
    server.max_page_size = 100;
    client.tick(&mut server, 55);
    assert_eq!(sizes(&client), Some(12), "as configured");
    // Clamping the page size again does not set the scan back.
    server.max_page_size = 7;
    let mut before = 0;
    while client.tick(&mut server, 10) {
        assert!(client.taken.len() > before);
        before = client.taken.len();
        server.now_ms += 60_000;
    }
    assert!(client.missing(&server).is_empty());
}

#[test]
fn rows_without_a_place_hold_nothing_up() {
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let mut scan = Scan::new(10);
        let position = |at: u64| {
            let us = i64::try_from(at).unwrap() * if order == Order::OldestFirst { 1 } else { -1 };
            (!(30..75).contains(&at)).then(|| Position { created_us: us, pk: "x".into() })
        };
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let request = scan.ask(order, &[], 10, false, Timestamp::MAX);
            let size = u64::from(request.page_size);
            let first = (request.page - 1) * size;
            let rows = first..(first + size).min(100);
            let positions: Vec<_> = rows.clone().map(position).collect();
            let answer = Answer::Page {
                count: 100,
                has_next: rows.end < 100,
                before: None,
                positions: &positions,
            };
            let read = scan.read(order, request, answer).unwrap();
            assert_ne!(read, Read::Back);
            seen.extend(rows);
            if read == (Read::Forward { is_end: true }) {
                break;
            }
        }
        assert_eq!(seen.len(), 100);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Burst(usize),
    /// Created some time ago, visible now.
    Late(i64),
    /// Created now, visible later.
    Slow(i64),
    Delete(usize, usize),
    Expire(usize),
    Wait(i64),
    Clamp(u32),
    /// A row becomes too large.
    BlowUp(usize),
    /// The server starts to fail on a row.
    Poison(usize),
    /// Created while the clock is ahead.
    Future(usize, i64),
    /// Whether the list looks empty.
    Hide(bool),
    Pull,
    PullThatFails,
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..40_usize).prop_map(Event::Burst),
        1 => (40..200_usize).prop_map(Event::Burst),
        2 => (0..=OVERLAP_MS).prop_map(Event::Late),
        2 => (0..=OVERLAP_MS).prop_map(Event::Slow),
        2 => (0..600_usize, 1..30_usize).prop_map(|(first, rows)| Event::Delete(first, rows)),
        2 => (1..30_usize).prop_map(Event::Expire),
        3 => (0..40_000_i64).prop_map(Event::Wait),
        1 => prop_oneof![Just(11_u32), Just(13), Just(100), 2..8_u32].prop_map(Event::Clamp),
        1 => (0..600_usize).prop_map(Event::BlowUp),
        1 => (0..600_usize).prop_map(Event::Poison),
        1 => (1..60_usize, 0..3_600_000_i64).prop_map(|(rows, ms)| Event::Future(rows, ms)),
        1 => prop::bool::weighted(0.25).prop_map(Event::Hide),
        16 => Just(Event::Pull),
        1 => Just(Event::PullThatFails),
        1 => Just(Event::Restart),
    ]
}

/// Runs a schedule on a server and a poller, and checks that the poller has ingested every row that
/// it could read.
fn play(
    first: usize,
    is_burst: bool,
    adds_rows: bool,
    events: &[Event],
) -> Result<(), TestCaseError> {
    let mut server = Server { adds_rows, ..Server::new() };
    for age in 0..first {
        server.insert(if is_burst { 0 } else { i64::try_from(age).unwrap() * 700 }, 0);
    }
    let mut client = Client::new();
    for event in events {
        // Every event of the schedule takes time.
        server.now_ms += 50;
        match *event {
            Event::Burst(rows) => (0..rows).for_each(|_| server.insert(0, 0)),
            Event::Late(age_ms) => server.insert(age_ms, 0),
            Event::Slow(delay_ms) => server.insert(0, delay_ms),
            Event::Delete(first, rows) => server.delete(first, rows),
            Event::Expire(rows) => server.delete(0, rows),
            Event::Wait(ms) => server.now_ms += ms,
            Event::Clamp(size) => server.max_page_size = size,
            Event::BlowUp(nth) => server.blow_up(nth),
            // Each failure would add a row before one in the future, and the backlog scan would
            // wait until that row's time.
            Event::Poison(nth) if !server.adds_rows || !server.is_future(nth) => server.poison(nth),
            Event::Poison(_) => {}
            Event::Future(rows, ms) => (0..rows).for_each(|_| server.insert(-ms, 0)),
            Event::Hide(hides) => server.hides = hides,
            Event::Pull => {
                client.pull(&mut server, true);
            }
            Event::PullThatFails => {
                client.pull(&mut server, false);
            }
            Event::Restart => client.restart(),
        }
    }
    server.hides = false;
    for round in 1..=4 {
        server.now_ms += 200_000;
        let began_us = server.now_ms * 1000;
        // In the last round, failures add no rows.
        server.adds_rows &= round < 4;
        let mut pulls = 0;
        while client.pull(&mut server, true) {
            pulls += 1;
            prop_assert!(pulls < 5_000, "draining ends");
        }
        if round < 3 {
            continue;
        }
        let mut missing: Vec<_> = client.missing(&server).iter().map(|row| &row.position).collect();
        if server.adds_rows {
            // Rows added by failures since the newest page was read are left to the next poll.
            let made = began_us..=server.now_ms * 1000;
            missing.retain(|position| !made.contains(&position.created_us));
        }
        prop_assert!(missing.is_empty(), "{missing:?} are missing, {:?}", client.cursor);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nothing_that_stays_and_shows_in_time_is_missed(
        first in 0..300_usize,
        is_burst in any::<bool>(),
        adds_rows in any::<bool>(),
        events in prop::collection::vec(event(), 1..120),
    ) {
        play(first, is_burst, adds_rows, &events)?;
    }
}

#[test]
fn rows_that_failing_adds_behind_the_newest_page_are_taken_by_the_next_poll() {
    use Event::{Burst, Clamp, Expire, Future, Late, Poison, Pull, Wait};
    let events = [
        Future(25, 415_598),
        Burst(10),
        Wait(0),
        Burst(9),
        Late(0),
        Future(35, 400_857),
        Future(3, 0),
        Expire(9),
        Late(0),
        Burst(7),
        Future(21, 351),
        Clamp(11),
        Burst(27),
        Poison(200),
        Burst(18),
        Future(20, 340_355),
        Future(9, 3_565_427),
        Burst(34),
        Pull,
        Pull,
        Late(42_104),
        Pull,
        Pull,
    ];
    play(151, false, true, &events).unwrap();
}

#[test]
fn rows_that_go_while_a_poll_closes_in_on_a_row_do_not_stop_it() {
    for expired in [1, 2, 3, 4, 60] {
        for (bad, pulls) in [(94, 3), (94, 4), (94, 5), (94, 6), (99, 2), (99, 3), (99, 4)] {
            let mut server = Server { adds_rows: false, ..Server::new() };
            (0..100).for_each(|age| server.insert(age * 100, 0));
            let mut client = Client::new();
            server.poison(bad);
            (0..pulls).for_each(|_| {
                client.pull(&mut server, true);
            });
            server.delete(0, expired);
            let mut pulls = 0;
            while client.pull(&mut server, true) {
                pulls += 1;
                assert!(pulls < 200, "it comes to an end: {:?}", client.cursor);
            }
            assert!(client.missing(&server).is_empty(), "{expired} {bad} {:?}", client.cursor);
        }
    }
}

#[test]
fn rows_that_expire_while_the_oldest_is_passed_over_take_none_unread_with_them() {
    use Event::{BlowUp, Burst, Clamp, Delete, Expire, Future, Pull, Restart, Wait};
    let events = [
        vec![Burst(85), Wait(0), Burst(68), Wait(0), Pull, Wait(0), Expire(7), Restart, Pull],
        vec![Wait(0), Future(1, 0), Clamp(11), Pull, Pull, Wait(33_587), Pull, Wait(0), Wait(0)],
        vec![Burst(175), Wait(8_107), Pull, Expire(22), Wait(17_406), Clamp(11), Pull, Pull, Pull],
        vec![Expire(19), Delete(416, 26), Burst(1), Burst(1), Burst(1), Future(41, 0), Pull, Pull],
        vec![Burst(21), Pull, Pull, BlowUp(22), Restart, Pull, Pull, Pull, Pull, Expire(22)],
        vec![Pull, Pull, Pull, Pull, Pull, Expire(15), Burst(17)],
    ];
    play(171, false, false, &events.concat()).unwrap();
}
