//! Who may ask: the operators' static token.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use dezky_core::{Actor, ActorType};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::app::{App, AppState};
use crate::http::client_address::{Network, client_ip};
use crate::http::problem::Problem;

/// The actor of changes that are asked for with the operator token.
const TOKEN_ACTOR: &str = "operator-token";

/// The operators' bearer token, kept as its digest alone.
#[derive(Clone)]
pub struct OperatorToken([u8; 32]);

impl OperatorToken {
    /// The token of a text.
    ///
    /// # Errors
    /// What is wrong with it: it is empty, or can't be sent in a header.
    pub fn new(token: &str) -> Result<Self, &'static str> {
        if token.is_empty() {
            return Err("the token is empty: set one, or unset it");
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token must be of visible ASCII characters without spaces");
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    /// Whether `token` is this one. The time it takes tells nothing about it:
    /// digests are compared, of equal length, to their end.
    pub fn is(&self, token: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        digest.ct_eq(&self.0).into()
    }
}

impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorToken(…)")
    }
}

/// Who asks for a change, as the timeline will say it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The operator token's holder, or anybody where there is no token; with the
    /// client's address.
    pub(crate) actor: Actor,
    /// `X-Request-Id`.
    pub(crate) request_id: Option<String>,
    /// `User-Agent`.
    pub(crate) user_agent: Option<String>,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let peer = ConnectInfo::<SocketAddr>::from_request_parts(parts, state).await;
        let ip = peer.ok().map(|ConnectInfo(peer)| {
            client_address(peer, &parts.headers, &state.config.trusted_proxies).to_string()
        });
        let actor = match state.config.operator_token {
            Some(_) => Actor { id: Some(TOKEN_ACTOR.into()), ..Actor::of(ActorType::Service) },
            None => Actor::of(ActorType::Anonymous),
        };
        // Bytes that are not UTF-8 become U+FFFD; the editors cut long values.
        let text = |name: HeaderName| {
            let value = String::from_utf8_lossy(parts.headers.get(name)?.as_bytes());
            (!value.is_empty()).then(|| value.into_owned())
        };
        Ok(Self {
            actor: Actor { ip, ..actor },
            request_id: text(HeaderName::from_static("x-request-id")),
            user_agent: text(header::USER_AGENT),
        })
    }
}

/// The client's address. An unparsable `X-Forwarded-For` entry stops the scan: skipping
/// it would trust entries that the client forged.
pub(crate) fn client_address(
    peer: SocketAddr,
    headers: &HeaderMap,
    trusted_proxies: &[Network],
) -> IpAddr {
    let values = headers.get_all("x-forwarded-for").iter();
    let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    client_ip(peer.ip(), values.iter().map(|value| &**value), trusted_proxies)
}

impl From<Caller> for dezky_core::directory::Edit {
    fn from(Caller { actor, request_id, user_agent }: Caller) -> Self {
        Self { request_id, user_agent, ..Self::by(actor) }
    }
}

impl From<Caller> for dezky_flags::Edit {
    fn from(Caller { actor, request_id, user_agent }: Caller) -> Self {
        Self { request_id, user_agent, ..Self::by(actor) }
    }
}

/// Lets a request through that carries the token; without one any that is meant
/// for this machine: a page of elsewhere that a browser was led here by (DNS
/// rebinding) names its own host.
pub(crate) async fn require_operator(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    admit(&state, &request, bearer(&request))?;
    Ok(next.run(request).await)
}

/// The same for OFREP: `X-API-Key` may hold the token as well, and a refusal has no
/// body.
pub(crate) async fn require_ofrep(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let api_key = request.headers().get("x-api-key").map(HeaderValue::as_bytes);
    match admit(&state, &request, bearer(&request).or(api_key)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response_without_body(),
    }
}

fn admit(state: &App, request: &Request, given: Option<&[u8]>) -> Result<(), Problem> {
    match &state.config.operator_token {
        Some(token) if given.is_some_and(|given| token.is(given)) => Ok(()),
        Some(_) => Err(Problem::unauthorized()),
        None if is_for_this_machine(request) && is_from_this_machine(request) => Ok(()),
        None => Err(Problem::foreign_host()),
    }
}

/// Whether the request's only host is `localhost` or a loopback address.
fn is_for_this_machine(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (request.uri().authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, None) => Some(authority.clone()),
        (None, Some(host), None) => host.to_str().ok().and_then(|host| host.parse().ok()),
        _ => None,
    };
    host.is_some_and(|host: Authority| is_this_machine(&host))
}

/// Whether every origin of the request is a web page of this machine. Pages of other
/// hosts and browser extensions can send requests here too, some without a preflight.
fn is_from_this_machine(request: &Request) -> bool {
    request.headers().get_all(header::ORIGIN).iter().all(|origin| {
        let uri: Option<Uri> = origin.to_str().ok().and_then(|origin| origin.parse().ok());
        uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(is_this_machine)
        })
    })
}

/// Whether `host` is `localhost` or a loopback address. Names below `localhost` are
/// refused, because resolvers may send them elsewhere, and so is user information,
/// which no browser sends.
fn is_this_machine(host: &Authority) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    !host.as_str().contains('@') && (name.eq_ignore_ascii_case("localhost") || is_loopback())
}

fn bearer(request: &Request) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_compared_whole() {
        let token = OperatorToken::new("s3cret-token").unwrap();
        assert!(token.is(b"s3cret-token"));
        for wrong in [&b""[..], b"s3cret", b"s3cret-token ", b"S3CRET-TOKEN"] {
            assert!(!token.is(wrong));
        }
        assert!(!format!("{token:?}").contains("s3cret"));
        assert!(OperatorToken::new("").is_err() && OperatorToken::new("a b").is_err());
    }
}
