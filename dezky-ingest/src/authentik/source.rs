//! The poller as a source.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::{
    Error, ErrorKind, IngestSource, Pull, PullLimits, PulledEvent, Result, Runtime,
    TenantDirectory, Timestamp,
};

use super::config::AuthentikConfig;
use super::groups::Groups;
use super::http::{Api, Failed, Fetched, MAX_WAIT};
use super::map::{Doers, large_item, malformed_item, map_by, tenant_user};
use super::poll::{
    Answer, Memory, Order, Poll, Request, Settings, Step, gap_event, unreadable_event,
};
use super::proto::{Item, Page, Position};
use crate::annotations::{LATE_BY, TENANT_BY};

/// The minimum number of keys remembered, so that most events that are read again are skipped here
/// and not by the store.
const KNOWN: usize = 20_000;
/// The request after a failed page, which tells whether any page succeeds.
const PROBES: [Request; 2] = [
    Request { order: Order::OldestFirst, page: 1, page_size: 1 },
    Request { order: Order::NewestFirst, page: 1, page_size: 1 },
];

/// Polls Authentik's events. Needs a tokio runtime.
///
/// - A pull is one page, and no more than a page is in memory. Its events commit with the cursor,
///   which holds the position of every scan, so a restart resumes in the middle of a backlog.
/// - No event is missed that stays on the server and becomes visible within the overlap: pages are
///   joined by the rows that they share, whatever is inserted or deleted meanwhile. Later ones are
///   found by a scan of the last 24 h, at the start and once a day, and annotated with
///   `_dezky.lateBySeconds`. Events up to an hour late are always found, because scans overlap.
/// - Once per interval, a poll reads the newest page first; other scans come after it.
/// - A row that fails alone and again while others succeed is skipped, and so is one that is too
///   large; its neighbours are read.
/// - An `ingest.gap` event records events that may have expired before they were read, or that the
///   server failed to return.
/// - With a directory, a user's groups are the hints to the tenant: from a listing, or, for users
///   that it does not contain, from requests for them, at most 10 per pull. Events of users that
///   neither finds get `_dezky.tenantBy = "unresolved"`.
/// - Memory does not grow with the backlog: a page, the keys of the last 40,000 events, the listing
///   of groups, and 10,000 users.
/// - After a refused token, no request is made for five minutes; `Retry-After` is honoured.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::rt::TokioRuntime;
/// use dezky_ingest::authentik::{ApiToken, AuthentikConfig, AuthentikSource};
/// # fn main() -> dezky_core::Result<()> {
/// let token = ApiToken::new("a token of intent API").unwrap_err();
/// assert_eq!(token.code(), "config_invalid");
/// let config = AuthentikConfig::new("http://127.0.0.1:9000", ApiToken::new("t0ken")?);
/// let source = AuthentikSource::new(config, Arc::new(TokioRuntime))?;
/// # Ok(())
/// # }
/// ```
pub struct AuthentikSource {
    config: AuthentikConfig,
    api: Api,
    runtime: Arc<dyn Runtime>,
    groups: Option<Groups>,
    memory: Memory,
    known: Known,
    /// Events of the last pull, until its cursor is known to be committed.
    pending: Option<Pending>,
    /// The time until which no request is made, and why.
    refused: Option<(Timestamp, Error)>,
    was_empty: bool,
    /// Actors that changed users, by request.
    doers: Doers,
}

/// Result of a request for events.
enum Given {
    Failed(Answer<'static>),
    NoSuchPage,
    TooLarge {
        head: String,
    },
    Page {
        count: u64,
        has_next: bool,
        before: Option<u64>,
        /// Each with its bytes.
        items: Vec<(Item, usize)>,
    },
}

struct Pending {
    cursor: String,
    memory: Memory,
    keys: Vec<String>,
}

impl AuthentikSource {
    /// Creates a poller that takes its clock from `runtime`. Makes no request yet.
    ///
    /// # Errors
    /// `config_invalid` names the value and its bound.
    pub fn new(config: AuthentikConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        config.check()?;
        Ok(Self {
            api: Api::new(&config, Arc::clone(&runtime))?,
            config,
            runtime,
            groups: None,
            memory: Memory::default(),
            known: Known::default(),
            pending: None,
            refused: None,
            was_empty: false,
            doers: Doers::default(),
        })
    }

    /// Uses those of a user's groups as hints that are slugs in `directory`. The pump's intake must
    /// have the directory too.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<dyn TenantDirectory>) -> Self {
        let admin_groups = self.config.admin_groups.clone();
        self.groups = Some(Groups::new(directory, admin_groups, self.config.group_refresh));
        self
    }

    /// Marks the events of the last pull as known, if it was committed.
    fn settle(&mut self, cursor: Option<&str>) {
        if let Some(pending) = self.pending.take()
            && Some(pending.cursor.as_str()) == cursor
        {
            self.memory = pending.memory;
            pending.keys.into_iter().for_each(|key| self.known.insert(key));
        }
    }

    async fn ask(&mut self, request: Request) -> Result<Given, Failed> {
        let query = format!("events/events/?{}", request.query());
        let unavailable = |what| Failed::from(Error::new(ErrorKind::SourceUnavailable, what));
        match self.api.get(&query).await {
            Ok(Fetched::NoSuchPage) if request.page == 1 => Err(unavailable(
                "Authentik has no list of events there; its base URL must be the address without \
                 /api/v3",
            )),
            Ok(Fetched::NoSuchPage) => Ok(Given::NoSuchPage),
            Ok(Fetched::TooLarge { head }) => Ok(Given::TooLarge { head }),
            Ok(Fetched::Text(text)) => {
                let Some(Page { count, has_next, before, items }) = Page::parse(&text) else {
                    return Err(unavailable("what Authentik sent is not a page of events"));
                };
                self.note_count(count);
                let items = items.iter().map(|raw| (Item::read(raw), raw.get().len())).collect();
                Ok(Given::Page { count, has_next, before, items })
            }
            Err(failed) => {
                if let Some(wait) = failed.wait {
                    let until = self.runtime.now().saturating_add(wait);
                    self.refused = Some((until, failed.error.clone()));
                }
                Err(failed)
            }
        }
    }

    /// Determines what a failed request says about its page: nothing if another page fails as well;
    /// the failure then stands.
    async fn look_into(
        &mut self,
        poll: &mut Poll,
        request: Request,
        failed: Failed,
    ) -> Result<Answer<'static>> {
        let looks = poll.looks_into(failed.suspect);
        self.memory.note_failures(poll.memory());
        for probe in PROBES.into_iter().filter(|probe| looks && *probe != request) {
            if let Ok(Given::Page { count, .. }) = self.ask(probe).await
                && count > 0
            {
                self.refused = None;
                tracing::debug!(
                    source = self.config.source,
                    query = request.query(),
                    error = %failed.error,
                    "Authentik gives other pages but not this one, which is read in parts"
                );
                return Ok(Answer::Failed { count });
            }
        }
        Err(failed.error)
    }

    /// Maps a page's items, the oldest first, and remembers their keys.
    async fn collect(
        &mut self,
        mut items: Vec<(Item, usize)>,
        order: Order,
        step: &Step,
        now: Timestamp,
    ) -> (Pull, Vec<String>) {
        if order == Order::NewestFirst {
            items.reverse();
        }
        let source = &self.config.source;
        let (mut pull, mut keys) = (Pull::default(), Vec::new());
        let mut events = Vec::new();
        for (item, bytes) in items {
            let key = match &item.event {
                Ok(event) => event.pk.clone(),
                Err(_) => String::new(),
            };
            match item.event {
                Ok(_) if self.known.has(&key) => pull.skipped += 1,
                Ok(event) => {
                    keys.push(key);
                    events.push(event);
                }
                Err(odd) => {
                    let item = malformed_item(source, odd, bytes, now);
                    if !self.known.has(&item.key) {
                        keys.push(item.key.clone());
                        pull.quarantine.push(item);
                    }
                }
            }
        }
        for event in &events {
            self.doers.note(event);
        }
        let users: Vec<_> = events.iter().map(tenant_user).collect();
        if let Some(groups) = &mut self.groups
            && users.iter().any(Option::is_some)
        {
            groups.find_out(&self.api, &*self.runtime, users.iter().flatten()).await;
        }
        let then = self.runtime.now();
        for (event, user) in events.into_iter().zip(users) {
            let created = event.created;
            let mut pulled = PulledEvent::from(map_by(source, event, &self.doers));
            if step.late_before.is_some_and(|before| created < before) {
                let late_by = now.saturating_since(created).as_secs();
                pulled.event.metadata.annotate(LATE_BY, late_by);
            }
            if let (Some(groups), Some(user)) = (&self.groups, user) {
                match groups.hints(&user, then) {
                    Some(hints) => pulled.tenant = hints,
                    None => pulled.event.metadata.annotate(TENANT_BY, "unresolved"),
                }
            }
            pull.events.push(pulled);
        }
        (pull, keys)
    }

    /// Some accounts without permission get an empty list rather than a refusal.
    fn note_count(&mut self, count: u64) {
        let is_empty = count == 0;
        if is_empty && !self.was_empty {
            tracing::warn!(
                source = self.config.source,
                "Authentik lists no events at all: so does it to an account that may not view them"
            );
        }
        self.was_empty = is_empty;
    }
}

impl std::fmt::Debug for AuthentikSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthentikSource").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl IngestSource for AuthentikSource {
    fn name(&self) -> &str {
        &self.config.source
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        self.settle(cursor);
        let now = self.runtime.now();
        if let Some((until, error)) = &self.refused {
            if until.is_ahead_of(now, MAX_WAIT) {
                return Err(error.clone());
            }
            self.refused = None;
        }
        let page_size = u32::try_from(limits.max_events).unwrap_or(u32::MAX);
        let page_size = self.config.page_size.min(page_size).max(2);
        let (overlap, interval) = (self.config.overlap, self.config.poll_interval);
        let settings = Settings { page_size, overlap, interval };
        let mut poll = Poll::resume(settings, cursor, self.memory.clone())?;
        while let Some(request) = poll.request(now) {
            let mut passed = None;
            let given = match self.ask(request).await {
                Ok(given) => given,
                Err(failed) => Given::Failed(self.look_into(&mut poll, request, failed).await?),
            };
            let (step, items) = match given {
                Given::Failed(answer) => (poll.answer(now, answer)?, Vec::new()),
                Given::NoSuchPage => (poll.answer(now, Answer::NoSuchPage)?, Vec::new()),
                Given::TooLarge { head } => {
                    let step = poll.answer(now, Answer::TooLarge)?;
                    passed = step.passed.as_ref().map(|before| {
                        let max_bytes = self.config.max_page_bytes;
                        large_item(&self.config.source, &head, before.as_ref(), max_bytes, now)
                    });
                    (step, Vec::new())
                }
                Given::Page { count, has_next, before, items } => {
                    let positions: Vec<Option<Position>> =
                        items.iter().map(|(item, _)| item.position.clone()).collect();
                    let page = Answer::Page { count, has_next, before, positions: &positions };
                    let step = poll.answer(now, page)?;
                    let items = if step.take { items } else { Vec::new() };
                    (step, items)
                }
            };
            let (mut pull, mut keys) = self.collect(items, request.order, &step, now).await;
            if let Some(item) = passed.filter(|item| !self.known.has(&item.key)) {
                keys.push(item.key.clone());
                pull.quarantine.push(item);
            }
            if let Some((watermark, oldest)) = step.gap {
                tracing::warn!(source = self.config.source, %watermark, %oldest, "events have expired unread");
                pull.events.push(gap_event(&self.config.source, watermark, oldest, now).into());
            }
            if let Some(hole) = &step.unreadable {
                tracing::warn!(
                    source = self.config.source,
                    rows = hole.rows,
                    newer = hole.newer.as_ref().map(|position| position.created().to_string()),
                    older = hole.older.as_ref().map(|position| position.created().to_string()),
                    "Authentik can't give these events, which are passed over"
                );
                pull.events.push(unreadable_event(&self.config.source, hole, now).into());
            }
            let brings = !pull.events.is_empty() || !pull.quarantine.is_empty();
            if let Some(cursor) = poll.cursor(cursor, brings) {
                let memory = poll.memory().clone();
                self.pending = Some(Pending { cursor: cursor.clone(), memory, keys });
                (pull.cursor, pull.more) = (Some(cursor), poll.more());
                return Ok(pull);
            }
            self.memory = poll.memory().clone();
        }
        Ok(Pull::default())
    }
}

/// Keys of events that were taken: a cache, bounded by two generations.
#[derive(Default)]
struct Known {
    young: HashSet<String>,
    old: HashSet<String>,
}

impl Known {
    fn has(&self, key: &str) -> bool {
        self.young.contains(key) || self.old.contains(key)
    }

    fn insert(&mut self, key: String) {
        if self.young.len() >= KNOWN {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key);
    }
}
