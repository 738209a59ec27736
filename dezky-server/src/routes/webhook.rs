use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use dezky_ingest::Taken;
use dezky_ingest::signature::{self, Headers};
use serde_json::{Value, json};

use super::body;
use super::parameters::Name;
use crate::auth::client_address;
use crate::error::Problem;
use crate::state::{AppState, Room, Webhooks};

/// `POST /ingest/stalwart/webhook`.
pub(super) async fn stalwart(
    state: State<AppState>,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    receive(state, "stalwart", peer, &headers, body).await
}

/// `POST /ingest/stalwart/{instance}/webhook`.
pub(super) async fn stalwart_instance(
    state: State<AppState>,
    Name(instance): Name,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    receive(state, &format!("stalwart:{instance}"), peer, &headers, body).await
}

/// Answers after the events are durable, and neither looks at the content type
/// nor redirects: Stalwart would lose the batch.
async fn receive(
    State(state): State<AppState>,
    source: &str,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let receiver = state
        .stalwart
        .get(source)
        .ok_or_else(|| Problem::not_found("no such webhook is configured"))?;
    let max_bytes = state.config.max_body_bytes;
    let (room, body) = read(&state.webhooks, headers, body, max_bytes).await?;
    let signature = signature_of(headers);
    let client = client_address(peer, headers, &state.config.trusted_proxies);
    let receiver = Arc::clone(receiver);
    answer(&state, source, room, async move {
        receiver.receive(signature.as_deref(), &body, Some(client)).await
    })
    .await
}

/// Reads a body as long as there is room for it, which is held until the answer.
pub(super) async fn read(
    webhooks: &Webhooks,
    headers: &HeaderMap,
    body: Body,
    max_bytes: usize,
) -> Result<(Room, Bytes), Problem> {
    let mut room = webhooks.begin().ok_or_else(Problem::too_many_webhooks)?;
    let grow = |bytes| room.grow(bytes).then_some(()).ok_or_else(Problem::too_many_webhooks);
    let bytes = body::read_while(body, headers, max_bytes, grow).await?;
    Ok((room, bytes))
}

/// The signatures that the sender gives, those of several header lines too.
fn signature_of(headers: &HeaderMap) -> Option<String> {
    texts(headers).get(signature::HEADER).map(str::to_owned)
}

/// The headers of a request; a line that is not text is as if it were not there.
pub(super) fn texts(headers: &HeaderMap) -> Headers {
    let lines =
        headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    Headers::new(lines)
}

/// Does the work of a request in a task of its own, so that a sender that hangs up does
/// not stop what it has begun, and answers when it is done.
pub(super) async fn answer(
    state: &AppState,
    source: &str,
    room: Room,
    work: impl Future<Output = dezky_core::Result<Taken>> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let (noted, source) = (AppState::clone(state), source.to_owned());
    let work = tokio::spawn(async move {
        let taken = work.await;
        noted.note(&source, &taken);
        drop(room);
        taken
    });
    let taken = work.await.map_err(|_| Problem::broken_down())??;
    Ok(Json(json!({ "received": taken.received() })))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;

    use super::*;

    #[tokio::test]
    async fn a_body_for_which_there_is_no_room_is_for_later() {
        let webhooks = Webhooks::new(1);
        let mut others = webhooks.begin().unwrap();
        // All but 128 KiB.
        assert!(others.grow((256 << 20) - (128 << 10)));
        let body = |bytes| Body::from(vec![b' '; bytes]);
        let headers = HeaderMap::new();
        let (room, small) = read(&webhooks, &headers, body(64 << 10), 1 << 20).await.unwrap();
        assert_eq!(small.len(), 64 << 10);
        drop(room);
        let answer = read(&webhooks, &headers, body(129 << 10), 1 << 20).await;
        let Err(problem) = answer else { panic!("there is no room for it") };
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        drop(others);
        assert!(read(&webhooks, &headers, body(129 << 10), 1 << 20).await.is_ok());
    }
}
