//! Webhooks of declared sources.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, header};
use serde_json::Value;

use crate::app::AppState;
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
    let (texts, bytes_at_work) = (super::texts(&headers), bytes_at_work(&headers, body.len()));
    let (mut unpacked, mut is_short) = (None, false);
    let grow = |bytes| {
        unpacked = unpacked.take().or_else(|| state.bodies.admit(client));
        is_short = !unpacked.as_mut().is_some_and(|permit| permit.grow(bytes));
        !is_short
    };
    let _processing = state.bodies.processing_permit(bytes_at_work).await;
    let taken = receiver.receive_request(&texts, &body, grow).await;
    if is_short {
        // The memory budget is the reason, not the store, whatever the receiver reports.
        return Err(Problem::too_many_webhooks());
    }
    super::answer(&state, &name, taken)
}

/// The size by which a body counts while it is processed. The unpacked size of a compressed body
/// is not known before.
fn bytes_at_work(headers: &HeaderMap, bytes: usize) -> usize {
    if headers.contains_key(header::CONTENT_ENCODING) { usize::MAX } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_body_waits_for_its_turn_however_small_it_is() {
        let mut headers = HeaderMap::new();
        assert_eq!(bytes_at_work(&headers, 100), 100);
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(bytes_at_work(&headers, 100), usize::MAX);
    }
}
