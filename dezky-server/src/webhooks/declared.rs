//! Webhooks of declared sources.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use serde_json::Value;

use crate::app::AppState;
use crate::http::body_budget::SMALL_BYTES;
use crate::http::client_address::client_address;
use crate::http::parameters::Name;
use crate::http::problem::Problem;

/// `POST /ingest/{name}/webhook`: a signed post of a declared source. Answers after the events
/// are durable. The unpacked content of a compressed body counts against the budget as well.
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
    let (_permit, body) = super::read(&state, client, &headers, body).await?;
    let texts = super::texts(&headers);
    let (mut unpacked, mut is_short) = (None, false);
    let mut turn = state.bodies.processing_permit(body.len()).await;
    let taken = loop {
        let mut is_large = false;
        let grow = |bytes| {
            // The unpacked size of a compressed body is not known before. A small one needs no
            // processing permit; a larger one starts again with one, as nothing is stored yet.
            is_large = turn.is_none() && bytes > SMALL_BYTES;
            if is_large {
                return false;
            }
            unpacked = unpacked.take().or_else(|| state.bodies.admit(client));
            is_short = !unpacked.as_mut().is_some_and(|permit| permit.grow(bytes));
            !is_short
        };
        let taken = receiver.receive_request(&texts, &body, grow).await;
        if !is_large {
            break taken;
        }
        turn = state.bodies.processing_permit(usize::MAX).await;
    };
    if is_short {
        // The memory budget is the reason, not the store, whatever the receiver reports.
        return Err(Problem::too_many_webhooks());
    }
    super::answer(&state, &name, taken)
}
