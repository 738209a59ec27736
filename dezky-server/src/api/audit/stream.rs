//! `GET /audit/stream`: the timeline as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use dezky_core::store::LogState;
use dezky_core::store::engine::{CursorKey, Filter};
use dezky_core::{Error, ErrorKind};
use futures_util::stream;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::filters;
use super::scope::Scope;
use crate::app::AppState;
use crate::app::audit::feed::{End, Entry, Reader};
use crate::http::parameters::Parameters;
use crate::http::problem::Problem;

/// How often a silent stream says that it is alive. It says its position with it, so that a client
/// whose filters match little need not have the same events examined again.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The wait before a client should connect again.
const RETRY: Duration = Duration::from_secs(2);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const FROM_PARAMETER: &str = "from";
const LAST_EVENT_ID_PARAMETER: &str = "lastEventId";

/// `GET /audit/stream`: the events that match, in the order of the log: those after
/// `Last-Event-ID`, or those that arrive from now on, or with `from=start` all of them.
///
/// Clients whose event source can't set that header send it as the parameter `lastEventId`.
pub(super) async fn stream(
    State(state): State<AppState>,
    scope: Scope,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let others = [LAST_EVENT_ID_PARAMETER, FROM_PARAMETER];
    let filter = filters::parse(&parameters, &scope, &others)?.filter()?;
    let from_start = match parameters.get(FROM_PARAMETER) {
        None => false,
        Some("start") => true,
        Some(_) => return Err(Problem::query_invalid("from must be start, or absent")),
    };
    let log = state.platform.store.state().await?;
    let given = match headers.get(LAST_EVENT_ID) {
        Some(value) => value.to_str().unwrap_or("?"),
        None => parameters.get(LAST_EVENT_ID_PARAMETER).unwrap_or_default(),
    };
    let from = position_after(given, &scope, &log)?;
    // A client that connects again has got beyond the start.
    let from = from.or(from_start.then_some(log.base.next_seq));
    let Some(mut reader) = state.audit.feed.admit(from) else {
        return Err(Problem::too_many(
            "too_many_streams",
            "too many streams of the timeline are open: close one, or retry",
        ));
    };
    reader.begun().await.map_err(|end| match end {
        End::Store(error) => error.into(),
        End::TooSlow | End::Stopping => Problem::ending(),
    })?;
    let mut beats = interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ids = Ids { scope, key: log.cursor_key };
    let following =
        Following { state, filter, ids, reader, beats, ready: Vec::new(), phase: Phase::Begin };
    let events = stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((Ok::<_, Infallible>(event), following))
    });
    let mut response = Sse::new(events).into_response();
    // Proxies must not collect events before they pass them on.
    let no = HeaderValue::from_static("no");
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), no);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    Ok(response)
}

/// The position after the one in `Last-Event-ID`.
fn position_after(given: &str, scope: &Scope, log: &LogState) -> Result<Option<u64>, Problem> {
    if given.is_empty() {
        return Ok(None);
    }
    let invalid = |what: String| Problem::from(Error::new(ErrorKind::CursorInvalid, what));
    let seq: u64 = match scope {
        Scope::Everything => given.parse().map_err(|_| {
            invalid("Last-Event-ID must be the seq of an event, such as 41, or absent".to_owned())
        })?,
        Scope::Tenant(slug) => log.cursor_key.open_seq(slug, given)?,
    };
    let head = log.head.next_seq;
    match seq.checked_add(1) {
        Some(next) if next < log.base.next_seq => {
            let what = "the next event was archived: connect without Last-Event-ID";
            Err(Error::new(ErrorKind::Pruned, what).into())
        }
        Some(next) if next <= head => Ok(Some(next)),
        // The end of the log counts the events of all tenants.
        _ => Err(invalid(match scope {
            Scope::Everything => {
                format!(
                    "Last-Event-ID must be below {head}, where the log ends: connect without it"
                )
            }
            Scope::Tenant(_) => {
                "Last-Event-ID is not a position of this log: connect without it".to_owned()
            }
        })),
    }
}

/// How a stream names positions.
struct Ids {
    scope: Scope,
    key: CursorKey,
}

impl Ids {
    fn of(&self, seq: u64, state: &AppState) -> String {
        let Scope::Tenant(slug) = &self.scope else { return seq.to_string() };
        let mut nonce = [0; 8];
        state.platform.runtime().fill_random(&mut nonce);
        self.key.seal_seq(slug, seq, nonce)
    }
}

enum Phase {
    Begin,
    Follow,
    Over,
}

struct Following {
    state: AppState,
    filter: Filter,
    ids: Ids,
    reader: Reader,
    beats: Interval,
    /// Matching events in reverse order.
    ready: Vec<std::sync::Arc<Entry>>,
    phase: Phase,
}

impl Following {
    /// The next event of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Event> {
        match self.phase {
            Phase::Begin => {
                self.phase = Phase::Follow;
                return Some(self.sign_of_life().retry(RETRY));
            }
            Phase::Over => return None,
            Phase::Follow => {}
        }
        loop {
            if let Some(entry) = self.ready.pop() {
                return Some(self.event(&entry));
            }
            let taken = tokio::select! {
                biased;
                _ = self.beats.tick() => return Some(self.sign_of_life()),
                taken = self.reader.next(&self.state.platform.store) => taken,
            };
            match taken {
                Ok(entries) => {
                    let matches = |entry: &std::sync::Arc<Entry>| {
                        self.filter.matches(&entry.stored.event, &entry.columns)
                    };
                    self.ready = entries.into_iter().rev().filter(matches).collect();
                }
                Err(end) => {
                    self.phase = Phase::Over;
                    return Some(last(&end));
                }
            }
        }
    }

    fn event(&self, entry: &Entry) -> Event {
        let json = entry.json(self.ids.scope.sees_positions());
        Event::default()
            .id(self.ids.of(entry.stored.seq, &self.state))
            .data(String::from_utf8_lossy(json))
    }

    /// A comment with the position before which all events were sent. It has no data, so clients
    /// note the position and dispatch nothing.
    fn sign_of_life(&self) -> Event {
        let event = Event::default().comment("");
        match self.reader.next_seq().and_then(|next| next.checked_sub(1)) {
            Some(seq) => event.id(self.ids.of(seq, &self.state)),
            None => event,
        }
    }
}

/// The event `end`, with the reason.
fn last(end: &End) -> Event {
    let (code, detail) = match end {
        End::TooSlow => (
            "too_slow",
            "this client took events too slowly: connect again with Last-Event-ID to continue",
        ),
        End::Stopping => ("ending", "the server stops: connect again with Last-Event-ID"),
        End::Store(error) => {
            tracing::error!(code = error.code(), %error, "a stream of the timeline ends");
            (error.code(), "the log can't be read further: the server's log says why")
        }
    };
    Event::default().event("end").data(json!({ "code": code, "detail": detail }).to_string())
}
