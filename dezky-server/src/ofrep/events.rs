//! The event stream: tells clients to ask again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use dezky_flags::live::Subscription;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::app::AppState;

/// The most event streams at a time: each has a connection of its own.
const MAX_STREAMS: usize = 256;
/// How often a comment keeps a silent stream alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The event streams under way.
#[derive(Debug)]
pub(crate) struct EventStreams {
    places: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl EventStreams {
    /// Streams that end when `stopping` becomes true.
    pub(crate) fn new(stopping: watch::Receiver<bool>) -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_STREAMS)), stopping }
    }
}

/// `GET /ofrep/v1/events`: a notice at every change of the flags, and one at the
/// beginning unless `Last-Event-ID` names those of now: a client that asked before it
/// came here may have missed one.
pub(super) async fn events(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&state.streams.places).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")]).into_response();
    };
    // Before the look, so that no change happens unheard in between.
    let changes = state.live.subscribe();
    let id = state.flags_digest.id(&state.live.current());
    let is_seen = headers.get(LAST_EVENT_ID).is_some_and(|seen| seen.as_bytes() == id.as_bytes());
    let stream = Notices {
        first: (!is_seen).then(|| notice(id)),
        changes,
        stopping: state.streams.stopping.clone(),
        state,
        _place: place,
    };
    let notices = stream::unfold(stream, |mut stream| async {
        let notice = stream.next().await?;
        Some((Ok::<_, Infallible>(notice), stream))
    });
    Sse::new(notices).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Notices {
    /// Told without waiting.
    first: Option<Event>,
    changes: Subscription,
    stopping: watch::Receiver<bool>,
    state: AppState,
    _place: OwnedSemaphorePermit,
}

impl Notices {
    /// The next one; `None` at the server's end.
    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        tokio::select! {
            // An error says that the sender is gone, which is an end too.
            _ = self.stopping.wait_for(|stopping| *stopping) => None,
            _ = self.changes.next() => {
                Some(notice(self.state.flags_digest.id(&self.state.live.current())))
            }
        }
    }
}

fn notice(id: String) -> Event {
    Event::default().id(id).data(r#"{"type":"refetchEvaluation"}"#)
}
