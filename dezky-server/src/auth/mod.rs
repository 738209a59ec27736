//! Authentication: the operators' token, and the caller as the timeline names it.

pub mod jwt;
pub mod oidc;
pub mod token;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRef, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use dezky_core::{Actor, ActorType};

use self::token::OperatorToken;
use crate::http::client_address::{Network, client_address};
use crate::http::problem::Problem;

/// The actor of changes that are made with the operator token.
const TOKEN_ACTOR: &str = "operator-token";

/// Decides which callers are admitted; clones share it.
#[derive(Clone)]
pub struct Guard(Arc<Rules>);

struct Rules {
    operator_token: Option<OperatorToken>,
    trusted_proxies: Vec<Network>,
}

impl Guard {
    /// A guard for the operators' token; without one only requests from this machine are
    /// admitted.
    pub fn new(operator_token: Option<OperatorToken>, trusted_proxies: Vec<Network>) -> Self {
        Self(Arc::new(Rules { operator_token, trusted_proxies }))
    }

    fn admit(&self, request: &Request, given: Option<&[u8]>) -> Result<(), Problem> {
        match &self.0.operator_token {
            Some(token) if given.is_some_and(|given| token.is(given)) => Ok(()),
            Some(_) => Err(Problem::unauthorized()),
            None if is_for_this_machine(request) && is_from_this_machine(request) => Ok(()),
            None => Err(Problem::foreign_host()),
        }
    }
}

/// The caller of a change, as the timeline will name it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The operator token's holder, or anybody if no token is set; with the
    /// client's address.
    pub(crate) actor: Actor,
    /// `X-Request-Id`.
    pub(crate) request_id: Option<String>,
    /// `User-Agent`.
    pub(crate) user_agent: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller
where
    Guard: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Rules { operator_token, trusted_proxies } = &*Guard::from_ref(state).0;
        let peer = ConnectInfo::<SocketAddr>::from_request_parts(parts, state).await;
        let ip = peer.ok().map(|ConnectInfo(peer)| {
            client_address(peer, &parts.headers, trusted_proxies).to_string()
        });
        let actor = match operator_token {
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

impl From<Caller> for dezky_core::Edit {
    fn from(Caller { actor, request_id, user_agent }: Caller) -> Self {
        Self { request_id, user_agent, ..Self::by(actor) }
    }
}

/// Admits requests with the operator token. Without a configured token it admits requests
/// that name this machine as their host: a page that leads a browser here by DNS rebinding
/// names its own host.
pub(crate) async fn require_operator(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    guard.admit(&request, bearer(&request))?;
    Ok(next.run(request).await)
}

/// [`require_operator`] for OFREP: `X-API-Key` may hold the token as well, and a refusal has
/// no body.
pub(crate) async fn require_ofrep(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let api_key = request.headers().get("x-api-key").map(HeaderValue::as_bytes);
    match guard.admit(&request, bearer(&request).or(api_key)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response_without_body(),
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
