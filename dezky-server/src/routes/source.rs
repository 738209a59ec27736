use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use serde_json::Value;

use super::parameters::Name;
use super::webhook;
use crate::auth::client_address;
use crate::bodies::SMALL_BYTES;
use crate::error::Problem;
use crate::state::AppState;

/// `POST /ingest/{name}/webhook`: a signed post of a declared source. Answers after the
/// events are durable. A body that is unpacked takes room for what comes out of it as
/// well.
pub(super) async fn receive(
    State(state): State<AppState>,
    Name(name): Name,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let receiver = state
        .sources
        .get(&name)
        .ok_or_else(|| Problem::not_found("no such webhook is configured"))?;
    let client = client_address(peer, &headers, &state.config.trusted_proxies);
    let (_room, body) = webhook::read(&state, client, &headers, body).await?;
    let texts = webhook::texts(&headers);
    let (mut unpacked, mut is_short) = (None, false);
    let mut turn = state.bodies.turn(body.len()).await;
    let taken = loop {
        let mut is_large = false;
        let grow = |bytes| {
            // How much comes out of a packed body is not known before. A small one waits for
            // no turn; a larger one is begun again when it has one, nothing being kept yet.
            is_large = turn.is_none() && bytes > SMALL_BYTES;
            if is_large {
                return false;
            }
            unpacked = unpacked.take().or_else(|| state.bodies.begin(client));
            is_short = !unpacked.as_mut().is_some_and(|room| room.grow(bytes));
            !is_short
        };
        let taken = receiver.receive_request(&texts, &body, grow).await;
        if !is_large {
            break taken;
        }
        turn = state.bodies.turn(usize::MAX).await;
    };
    if is_short {
        // The memory is short, whatever the receiver calls it: the store is well.
        return Err(Problem::too_many_webhooks());
    }
    webhook::answer(&state, &name, taken)
}
