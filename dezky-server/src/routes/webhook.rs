use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use dezky_ingest::IngestSummary;
use dezky_ingest::signature::{self, Headers};
use serde_json::{Value, json};

use super::body;
use super::parameters::Name;
use crate::auth::client_address;
use crate::bodies::{Bodies, Room};
use crate::error::Problem;
use crate::state::{App, AppState};

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
    let client = client_address(peer, headers, &state.config.trusted_proxies);
    let (_room, body) = read(&state, client, headers, body).await?;
    let signature = signature_of(headers);
    let _turn = state.bodies.turn(body.len()).await;
    let taken = receiver.receive(signature.as_deref(), &body, Some(client)).await;
    answer(&state, source, taken)
}

/// Reads a body from `client` as long as there is room for it, which is held until it is
/// dropped.
pub(super) async fn read(
    state: &App,
    client: IpAddr,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Room, Bytes), Problem> {
    read_into(&state.bodies, client, headers, body, state.config.max_body_bytes).await
}

/// The same, of another bound.
pub(super) async fn read_into(
    bodies: &Bodies,
    client: IpAddr,
    headers: &HeaderMap,
    body: Body,
    max_bytes: usize,
) -> Result<(Room, Bytes), Problem> {
    let mut room = bodies.begin(client).ok_or_else(Problem::too_many_webhooks)?;
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

/// Notes what became of a body, and answers.
pub(super) fn answer(
    state: &App,
    source: &str,
    taken: dezky_core::Result<IngestSummary>,
) -> Result<Json<Value>, Problem> {
    state.note(source, &taken);
    Ok(Json(json!({ "received": taken?.received() })))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;

    use super::*;
    use crate::bodies::SMALL_BYTES;

    #[tokio::test]
    async fn a_body_for_which_there_is_no_room_is_for_later() {
        let bodies = Bodies::new(1 << 20, 256 << 10);
        let client = IpAddr::from([203, 0, 113, 7]);
        let mut others = bodies.begin(IpAddr::from([203, 0, 113, 8])).unwrap();
        // 512 KiB are there beyond the first 64 KiB of each.
        assert!(others.grow(SMALL_BYTES + (256 << 10)));
        let mut own = bodies.begin(client).unwrap();
        assert!(own.grow(SMALL_BYTES + (192 << 10)));
        let body = |bytes| Body::from(vec![b' '; bytes]);
        let headers = HeaderMap::new();
        let read = |bytes| read_into(&bodies, client, &headers, body(bytes), 256 << 10);
        let (room, small) = read(64 << 10).await.unwrap();
        assert_eq!(small.len(), 64 << 10);
        drop(room);
        let Err(problem) = read(129 << 10).await else { panic!("there is no room for it") };
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        drop(own);
        assert!(read(129 << 10).await.is_ok());
    }
}
