//! The event stream, which tells clients to evaluate again.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use dezky_flags::live::Subscription;
use futures_util::stream;

use super::refusal::Refusal;
use crate::app::AppState;
use crate::app::flag_feed::StreamPermit;
use crate::http::parameters::Parameters;
use crate::http::problem::Problem;

/// How often a comment keeps a silent stream alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const LAST_EVENT_ID_PARAMETER: &str = "lastEventId";

/// `GET /ofrep/v1/events`: a notice for every change of the flags, and a first one
/// unless `Last-Event-ID` names the current flags: a client that evaluated before it
/// connected may have missed a change.
///
/// Clients whose event source can't set that header send it as the parameter `lastEventId`.
pub(super) async fn events(
    State(state): State<AppState>,
    parameters: Result<Parameters, Problem>,
    headers: HeaderMap,
) -> Response {
    let known = parameters.and_then(|given| given.only(&[LAST_EVENT_ID_PARAMETER]).map(|()| given));
    let parameters = match known {
        Ok(parameters) => parameters,
        Err(problem) => return Refusal::from(problem).answer(None),
    };
    let Some(permit) = state.flag_feed.admit() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")]).into_response();
    };
    // Subscribed before the current set is read, so that no change is missed in between.
    let changes = state.platform.live.subscribe();
    let id = state.flag_digest.id(&state.platform.live.current());
    let is_seen = headers.get(LAST_EVENT_ID).is_some_and(|seen| seen.as_bytes() == id.as_bytes())
        || parameters.get(LAST_EVENT_ID_PARAMETER) == Some(&*id);
    let stream = Notices { first: (!is_seen).then(|| notice(id)), changes, permit, state };
    let notices = stream::unfold(stream, |mut stream| async {
        let notice = stream.next().await?;
        Some((Ok::<_, Infallible>(notice), stream))
    });
    Sse::new(notices).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Notices {
    /// Sent without waiting for a change.
    first: Option<Event>,
    changes: Subscription,
    permit: StreamPermit,
    state: AppState,
}

impl Notices {
    /// The next notice; `None` when the server stops.
    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        tokio::select! {
            () = self.permit.stopped() => None,
            _ = self.changes.next() => {
                Some(notice(self.state.flag_digest.id(&self.state.platform.live.current())))
            }
        }
    }
}

fn notice(id: String) -> Event {
    Event::default().id(id).data(r#"{"type":"refetchEvaluation"}"#)
}
