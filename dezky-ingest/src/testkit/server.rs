//! The double's server, and the methods that change its table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query as UrlQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dezky_core::Timestamp;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::list::{Profile, Query, first, page, select, text};

/// A fault of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status with an HTML body.
    Html(u16),
    /// This status with a line of text.
    Text(u16),
    /// 503 with `{"error":"authentik starting"}`.
    Starting,
    /// 429, with `Retry-After` in seconds if given.
    Throttled(Option<u64>),
    /// 429, with this `Retry-After`, such as an HTTP date.
    ThrottledUntil(String),
    /// 200 with half of the body.
    Truncated,
    /// 200, and the connection ends in the middle of the body.
    Reset,
    /// No answer for this long, then the right one.
    Slow(Duration),
    /// Half of the body, nothing for this long, then the rest.
    SlowBody(Duration),
    /// 302 to this address.
    Redirect(String),
}

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its path: `/api/v3/events/events/`.
    pub path: String,
    /// Its query as sent.
    pub query: String,
    /// The status of the answer.
    pub status: u16,
}

/// The initial state of a double.
#[derive(Debug, Clone)]
pub struct Builder {
    token: String,
    profile: Profile,
    max_page_size: Option<usize>,
    events: Vec<Value>,
}

impl Builder {
    /// The token that is accepted; `double-token` unless set.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// The version to imitate; [`Profile::V2025_12`] unless set.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// The maximum page size, whatever is requested.
    #[must_use]
    pub fn max_page_size(mut self, size: usize) -> Self {
        self.max_page_size = Some(size.max(1));
        self
    }

    /// Initial rows of the table.
    #[must_use]
    pub fn events(mut self, events: impl IntoIterator<Item = Value>) -> Self {
        self.events.extend(events);
        self
    }

    /// Starts the server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// Those of binding the port.
    pub async fn start(self) -> std::io::Result<AuthentikDouble> {
        let world = World {
            token: self.token,
            profile: self.profile,
            max_page_size: self.max_page_size,
            events: Table { rows: self.events, sorted: None },
            access: Access::Full,
            shows_users: true,
            group_objects: true,
            group_filter: true,
            faults: VecDeque::new(),
            scripts: VecDeque::new(),
            groups: Vec::new(),
            users: BTreeMap::new(),
            requests: Vec::new(),
            no_such_page: "Invalid page.".into(),
            poisoned: BTreeMap::new(),
            poisoned_users: BTreeSet::new(),
            exceptions: Some(0),
            clock: Box::new(now),
        };
        let world = Arc::new(Mutex::new(world));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = Router::new().fallback(answer).with_state(Arc::clone(&world));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, app).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(async move {
            let _ = server.await;
        });
        Ok(AuthentikDouble { url, world, stop: Some(stop), task })
    }
}

/// A server that answers like Authentik. It stops when it is dropped.
///
/// ```
/// use dezky_ingest::testkit::{AuthentikDouble, Fault, authentik_event};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let double = AuthentikDouble::builder()
///     .token("t0ken")
///     .events([authentik_event(1, "2026-09-01T08:00:00Z")])
///     .start()
///     .await?;
/// assert!(double.url().starts_with("http://127.0.0.1:"));
/// double.insert(authentik_event(2, "2026-09-01T08:00:01.5Z"));
/// double.fail_next(1, Fault::Html(502));
/// assert_eq!((double.len(), double.requests().len()), (2, 0));
/// double.stop().await;
/// # Ok(())
/// # }
/// ```
pub struct AuthentikDouble {
    url: String,
    world: Arc<Mutex<World>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Permissions of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Full,
    /// 403.
    None,
    /// 200 and an empty list, as to an internal service account.
    Empty,
}

/// The events and their last sort order, so that a long table is not sorted again for every page.
struct Table {
    rows: Vec<Value>,
    sorted: Option<(String, Vec<usize>)>,
}

impl Table {
    fn change(&mut self) -> &mut Vec<Value> {
        self.sorted = None;
        &mut self.rows
    }

    /// The rows in a total order, without filters.
    fn in_total_order(&mut self, ordering: &str, profile: Profile) -> Vec<&Value> {
        if self.sorted.as_ref().is_none_or(|(sorted, _)| sorted != ordering) {
            let query = vec![("ordering".to_owned(), ordering.to_owned())];
            let place: BTreeMap<_, _> = self
                .rows
                .iter()
                .enumerate()
                .map(|(at, row)| (std::ptr::from_ref(row), at))
                .collect();
            let found = select(&self.rows, &query, profile, 0).unwrap_or_default();
            let sorted = found.into_iter().map(|row| place[&std::ptr::from_ref(row)]).collect();
            self.sorted = Some((ordering.to_owned(), sorted));
        }
        let sorted = self.sorted.iter().flat_map(|(_, sorted)| sorted);
        sorted.map(|at| &self.rows[*at]).collect()
    }
}

/// Something that happens before an answer.
type Script = Box<dyn FnOnce(&mut World) + Send>;

struct World {
    token: String,
    profile: Profile,
    max_page_size: Option<usize>,
    events: Table,
    access: Access,
    /// Whether users and groups may be viewed.
    shows_users: bool,
    /// Whether a user's groups also come as objects.
    group_objects: bool,
    /// Whether users are listed by their groups.
    group_filter: bool,
    /// Faults by path prefix.
    faults: VecDeque<(String, Fault)>,
    /// Changes before later requests for events, counted from 0.
    scripts: VecDeque<(usize, Script)>,
    groups: Vec<(String, bool)>,
    /// Names of groups by the user's key.
    users: BTreeMap<u64, Vec<String>>,
    requests: Vec<Recorded>,
    no_such_page: String,
    /// Keys of events that make a page fail.
    poisoned: BTreeMap<String, u16>,
    /// Keys of users that make a page fail.
    poisoned_users: BTreeSet<u64>,
    /// The number of `system_exception` events that it has added; `None` if it adds none.
    exceptions: Option<u64>,
    clock: Clock,
}

type Clock = Box<dyn Fn() -> String + Send>;

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis_clamped(i64::try_from(since.as_millis()).unwrap_or(0)).to_string()
}

impl AuthentikDouble {
    /// A double with an empty table.
    pub fn builder() -> Builder {
        Builder {
            token: "double-token".into(),
            profile: Profile::V2025_12,
            max_page_size: None,
            events: Vec::new(),
        }
    }

    /// Its address, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The currently accepted token.
    pub fn token(&self) -> String {
        self.world().token.clone()
    }

    /// Accepts another token from now on; the old one gets 403.
    pub fn set_token(&self, token: impl Into<String>) {
        self.world().token = token.into();
    }

    /// Grants or revokes the permission to view anything; without it, every answer is 403.
    pub fn set_permission(&self, is_granted: bool) {
        self.world().access = if is_granted { Access::Full } else { Access::None };
    }

    /// Answers as for an internal service account without permission: 200 and an empty list.
    pub fn hide_all(&self) {
        self.world().access = Access::Empty;
    }

    /// Sets the text for a page past the end, which is in the brand's language.
    pub fn set_no_such_page(&self, text: impl Into<String>) {
        self.world().no_such_page = text.into();
    }

    /// Changes the maximum page size.
    pub fn set_max_page_size(&self, size: Option<usize>) {
        self.world().max_page_size = size.map(|size| size.max(1));
    }

    /// Adds an event, whatever its `created`.
    pub fn insert(&self, event: Value) {
        self.world().events.change().push(event);
    }

    /// Adds several events.
    pub fn insert_all(&self, events: impl IntoIterator<Item = Value>) {
        self.world().events.change().extend(events);
    }

    /// Fails on an event from now on, as if it held an integer beyond 64 bits: every page with it
    /// is answered with 500, and each such answer adds a `system_exception` event.
    pub fn poison(&self, pk: impl Into<String>) {
        self.break_over(pk, 500);
    }

    /// Like [`poison`](Self::poison), with another status, as from a proxy that rejects the
    /// content.
    pub fn break_over(&self, pk: impl Into<String>, status: u16) {
        self.world().poisoned.insert(pk.into(), status);
    }

    /// Returns an event again that was [poisoned](Self::poison).
    pub fn cure(&self, pk: &str) {
        self.world().poisoned.remove(pk);
    }

    /// Fails on a user from now on, alone and on every page with them.
    pub fn poison_user(&self, pk: u64) {
        self.world().poisoned_users.insert(pk);
    }

    /// Adds no event when it fails.
    pub fn without_exception_events(&self) {
        self.world().exceptions = None;
    }

    /// Sets the time of the events that it makes itself, as RFC 3339.
    pub fn set_clock(&self, clock: impl Fn() -> String + Send + 'static) {
        self.world().clock = Box::new(clock);
    }

    /// Deletes all events of a user, as deleting the user does. Returns their number.
    pub fn delete_user(&self, pk: u64) -> usize {
        self.delete(|event| event["user"]["pk"] == pk)
    }

    /// Deletes the events for which `which` holds. Returns their number.
    pub fn delete(&self, which: impl Fn(&Value) -> bool) -> usize {
        let mut world = self.world();
        let before = world.events.rows.len();
        world.events.change().retain(|event| !which(event));
        before - world.events.rows.len()
    }

    /// Deletes the oldest events, as retention does.
    pub fn expire(&self, events: usize) {
        let mut world = self.world();
        let profile = world.profile;
        let left = world.events.in_total_order("created,pk", profile);
        let left: Vec<Value> = left.into_iter().skip(events).cloned().collect();
        *world.events.change() = left;
    }

    /// Changes the table before the `nth` next request for events, from 0.
    pub fn before_request(
        &self,
        nth: usize,
        change: impl FnOnce(&mut Vec<Value>) + Send + 'static,
    ) {
        let change = |world: &mut World| change(world.events.change());
        self.world().scripts.push_back((nth, Box::new(change)));
    }

    /// Accepts another token from the `nth` next request for events on, from 0; a request with the
    /// old one gets 403.
    pub fn set_token_before_request(&self, nth: usize, token: impl Into<String>) {
        let token = token.into();
        let change = |world: &mut World| world.token = token;
        self.world().scripts.push_back((nth, Box::new(change)));
    }

    /// Makes the next `requests` fail.
    pub fn fail_next(&self, requests: usize, fault: Fault) {
        self.fail_next_below("", requests, fault);
    }

    /// Makes no more requests fail.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// Makes the next `requests` fail whose path begins with `path`: `/api/v3/core/users/`.
    pub fn fail_next_below(&self, path: impl Into<String>, requests: usize, fault: Fault) {
        self.world().faults.extend(std::iter::repeat_n((path.into(), fault), requests));
    }

    /// Grants or revokes the permission to view users and groups.
    pub fn set_user_permission(&self, is_granted: bool) {
        self.world().shows_users = is_granted;
    }

    /// Returns only the keys of a user's groups, as old versions do.
    pub fn without_group_objects(&self) {
        self.world().group_objects = false;
    }

    /// Lists all users whatever `groups_by_name` says, as a version does that does not support the
    /// filter.
    pub fn without_group_filter(&self) {
        self.world().group_filter = false;
    }

    /// Adds a group.
    pub fn add_group(&self, name: impl Into<String>, is_superuser: bool) {
        self.world().groups.push((name.into(), is_superuser));
    }

    /// Adds a user, or sets their groups.
    pub fn set_user(&self, pk: u64, groups: &[&str]) {
        self.world().users.insert(pk, groups.iter().map(|name| (*name).to_owned()).collect());
    }

    /// The table, unordered.
    pub fn events(&self) -> Vec<Value> {
        self.world().events.rows.clone()
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.world().events.rows.len()
    }

    /// Whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every received request, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.world().requests.clone()
    }

    /// The number of requests for the list of events.
    pub fn polls(&self) -> usize {
        self.world().requests.iter().filter(|request| request.path == EVENTS).count()
    }

    /// The number of requests whose path begins with `path`.
    pub fn calls(&self, path: &str) -> usize {
        self.world().requests.iter().filter(|request| request.path.starts_with(path)).count()
    }

    /// Stops the server and waits for it.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AuthentikDouble {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for AuthentikDouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthentikDouble").field("url", &self.url).finish_non_exhaustive()
    }
}

const EVENTS: &str = "/api/v3/events/events/";

async fn answer(State(world): State<Arc<Mutex<World>>>, request: Request) -> Response {
    let (path, sent) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default());
    let sent = sent.to_owned();
    let query: Query =
        UrlQuery::try_from_uri(request.uri()).map(|UrlQuery(query)| query).unwrap_or_default();
    let (fault, (status, body)) = {
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        let due = world.faults.iter().position(|(below, _)| path.starts_with(below));
        let fault = due.and_then(|due| world.faults.remove(due)).map(|(_, fault)| fault);
        let right = match &fault {
            None | Some(Fault::Truncated | Fault::Reset | Fault::Slow(_) | Fault::SlowBody(_)) => {
                world.answer(&path, &query, request.headers())
            }
            Some(fault) => (fault.status(), String::new()),
        };
        world.requests.push(Recorded { path, query: sent, status: right.0.as_u16() });
        (fault, right)
    };
    if fault.is_none() && status == StatusCode::INTERNAL_SERVER_ERROR {
        return (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], body)
            .into_response();
    }
    let json = |body: Body| (status, [(header::CONTENT_TYPE, "application/json")], body);
    let half = || body[..body.floor_char_boundary(body.len() / 2)].to_owned();
    match fault {
        None => json(body.into()).into_response(),
        Some(Fault::Slow(wait)) => {
            tokio::time::sleep(wait).await;
            json(body.into()).into_response()
        }
        Some(Fault::SlowBody(wait)) => {
            let rest = body[half().len()..].to_owned();
            let rest = async move {
                tokio::time::sleep(wait).await;
                Ok::<_, std::io::Error>(rest)
            };
            let parts = stream::iter([Ok(half())]).chain(stream::once(rest));
            json(Body::from_stream(parts)).into_response()
        }
        Some(Fault::Truncated) => json(half().into()).into_response(),
        Some(Fault::Reset) => {
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            let broken = async {
                // Flushes what was written first.
                tokio::task::yield_now().await;
                Err(broken)
            };
            let parts = stream::iter([Ok(half())]).chain(stream::once(broken));
            json(Body::from_stream(parts)).into_response()
        }
        Some(Fault::Html(_)) => (status, "<html><body>Bad Gateway</body></html>").into_response(),
        Some(Fault::Text(_)) => (status, "upstream connect error").into_response(),
        Some(Fault::Starting) => json(r#"{"error":"authentik starting"}"#.into()).into_response(),
        Some(Fault::Throttled(seconds)) => throttled(seconds.map(HeaderValue::from)),
        Some(Fault::ThrottledUntil(date)) => throttled(HeaderValue::try_from(date).ok()),
        Some(Fault::Redirect(to)) => (status, [(header::LOCATION, to)], "").into_response(),
    }
}

fn throttled(retry_after: Option<HeaderValue>) -> Response {
    let body = r#"{"detail":"Request was throttled."}"#;
    let json = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (StatusCode::TOO_MANY_REQUESTS, json, body).into_response();
    if let Some(retry_after) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after);
    }
    response
}

impl Fault {
    fn status(&self) -> StatusCode {
        let status = match self {
            Self::Html(status) | Self::Text(status) => *status,
            Self::Starting => 503,
            Self::Throttled(_) | Self::ThrottledUntil(_) => 429,
            Self::Redirect(_) => 302,
            Self::Truncated | Self::Reset | Self::Slow(_) | Self::SlowBody(_) => 200,
        };
        StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
    }
}

impl World {
    fn answer(&mut self, path: &str, query: &Query, headers: &HeaderMap) -> (StatusCode, String) {
        let (status, body) = self.json(path, query, headers);
        if let Some(status) = self.breaks_over(path, &body) {
            if status == 500 {
                self.add_exception(path);
            }
            let html = "<!DOCTYPE html><html><head><title>authentik</title></head></html>";
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return (status, html.to_owned());
        }
        (status, text(&body))
    }

    /// The status if an answer contains an event or user that makes it fail.
    fn breaks_over(&self, path: &str, body: &Value) -> Option<u16> {
        let rows = body["results"].as_array();
        let rows = rows.map_or_else(|| std::slice::from_ref(body), Vec::as_slice);
        if path.starts_with("/api/v3/core/users/") {
            let mut users = rows.iter().filter_map(|user| user["pk"].as_u64());
            return users.any(|pk| self.poisoned_users.contains(&pk)).then_some(500);
        }
        let mut events = rows.iter().filter(|_| path == EVENTS);
        events.find_map(|event| self.poisoned.get(event["pk"].as_str()?).copied())
    }

    fn add_exception(&mut self, path: &str) {
        let Some(exceptions) = &mut self.exceptions else { return };
        *exceptions += 1;
        let mut event = super::authentik_event(1_000_000_000 + *exceptions, &(self.clock)());
        event["action"] = "system_exception".into();
        event["context"] = json!({
            "message": "OverflowError: Integer exceeds 64-bit range",
            "http_request": {"args": {}, "path": path, "method": "GET"},
        });
        self.events.change().push(event);
    }

    fn json(&mut self, path: &str, query: &Query, headers: &HeaderMap) -> (StatusCode, Value) {
        let not_found = (StatusCode::NOT_FOUND, json!({"detail": "Not found."}));
        let Some(below) = path.strip_prefix("/api/v3/").and_then(|path| path.strip_suffix('/'))
        else {
            return not_found;
        };
        if below == "events/events" {
            self.run_scripts();
        }
        let shows = self.shows_users || !below.starts_with("core/");
        let no_permission = Err("You do not have permission to perform this action.");
        if let Err(detail) = self.authorise(headers).and(if shows { Ok(()) } else { no_permission })
        {
            return (StatusCode::FORBIDDEN, json!({"detail": detail}));
        }
        match below {
            "events/events" => self.events(query),
            "events/events/actions" => (StatusCode::OK, actions()),
            "core/groups" => {
                let member = first(query, "members_by_pk").and_then(|pk| pk.parse().ok());
                let groups = self.groups.iter().enumerate();
                let groups: Vec<_> = groups
                    .filter(|(_, (name, _))| {
                        member.is_none_or(|pk: u64| {
                            self.users.get(&pk).is_some_and(|groups| groups.contains(name))
                        })
                    })
                    .map(|(at, (name, is_superuser))| group(at, name, *is_superuser))
                    .collect();
                self.page(&groups, query)
            }
            "core/users" => {
                let wanted = first(query, "groups_by_name").filter(|_| self.group_filter);
                if let Some(unknown) =
                    wanted.filter(|wanted| !self.groups.iter().any(|(name, _)| name == wanted))
                {
                    let what = format!(
                        "Select a valid choice. {unknown} is not one of the available choices."
                    );
                    return (StatusCode::BAD_REQUEST, json!({"groups_by_name": [what]}));
                }
                let users = self.users.iter();
                let users: Vec<_> = users
                    .filter(|(_, groups)| {
                        wanted.is_none_or(|g| groups.iter().any(|name| name == g))
                    })
                    .map(|(pk, _)| {
                        let mut user = self.user(*pk);
                        if first(query, "include_groups") == Some("false") {
                            user["groups_obj"] = Value::Null;
                        }
                        user
                    })
                    .collect();
                self.page(&users, query)
            }
            other => match other.strip_prefix("core/users/").and_then(|pk| pk.parse().ok()) {
                Some(pk) if self.users.contains_key(&pk) => (StatusCode::OK, self.user(pk)),
                _ => not_found,
            },
        }
    }

    fn authorise(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let Some(sent) = headers.get(header::AUTHORIZATION).and_then(|sent| sent.to_str().ok())
        else {
            return Err("Authentication credentials were not provided.");
        };
        let Some(token) = sent.strip_prefix("Bearer ") else {
            return Err("Unsupported authentication type");
        };
        if token != self.token {
            return Err("Token invalid/expired");
        }
        if self.access == Access::None {
            return Err("You do not have permission to perform this action.");
        }
        Ok(())
    }

    /// The changes before this request for events.
    fn run_scripts(&mut self) {
        for (nth, _) in &mut self.scripts {
            *nth = nth.wrapping_sub(1);
        }
        while let Some(due) = self.scripts.iter().position(|(nth, _)| *nth == usize::MAX) {
            if let Some((_, change)) = self.scripts.remove(due) {
                change(self);
            }
        }
    }

    fn events(&mut self, query: &Query) -> (StatusCode, Value) {
        let (profile, max_page_size) = (self.profile, self.max_page_size);
        let chance = self.requests.len() as u64;
        let is_known = |(name, _): &(String, String)| {
            matches!(name.as_str(), "ordering" | "page" | "page_size")
        };
        let rows = match first(query, "ordering") {
            _ if self.access == Access::Empty => Ok(Vec::new()),
            Some(order @ ("created,pk" | "-created,-pk")) if query.iter().all(is_known) => {
                Ok(self.events.in_total_order(order, profile))
            }
            _ => select(&self.events.rows, query, profile, chance),
        };
        let page = match rows {
            Err(body) => return (StatusCode::BAD_REQUEST, body),
            Ok(rows) => page(&rows, query, profile, max_page_size),
        };
        self.paged(page)
    }

    fn page(&self, rows: &[Value], query: &Query) -> (StatusCode, Value) {
        let rows: Vec<_> = rows.iter().collect();
        self.paged(page(&rows, query, self.profile, self.max_page_size))
    }

    fn paged(&self, page: Option<Value>) -> (StatusCode, Value) {
        match page {
            Some(page) => (StatusCode::OK, page),
            None => (StatusCode::NOT_FOUND, json!({"detail": self.no_such_page})),
        }
    }

    fn user(&self, pk: u64) -> Value {
        let of_user = &self.users[&pk];
        let groups = self.groups.iter().enumerate().filter(|(_, (name, _))| of_user.contains(name));
        let groups: Vec<_> =
            groups.map(|(at, (name, is_superuser))| group(at, name, *is_superuser)).collect();
        let keys: Vec<_> = groups.iter().map(|group| group["pk"].clone()).collect();
        let mut user = json!({"pk": pk, "username": format!("user{pk}"), "groups": keys});
        if self.group_objects {
            user["groups_obj"] = groups.into();
        }
        user
    }
}

fn group(at: usize, name: &str, is_superuser: bool) -> Value {
    json!({
        "pk": format!("{at:08x}-0000-4000-8000-000000000000"),
        "num_pk": at,
        "name": name,
        "is_superuser": is_superuser,
        "attributes": {},
    })
}

fn actions() -> Value {
    let one =
        |name: &str| json!({"name": name, "description": "", "component": name, "model_name": ""});
    crate::authentik::ACTIONS.into_iter().chain(["custom_"]).map(one).collect()
}
