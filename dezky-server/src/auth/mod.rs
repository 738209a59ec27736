//! Authentication: the operators' token, access tokens of configured issuers, and the caller as
//! the timeline names it.
//!
//! `Guard::admit` turns the credentials of a request into a `Principal`, which stays in the
//! request's extensions; what a principal may do is asked afterwards
//! (`Principal::check_operator`).

pub mod jwt;
pub mod oidc;
pub mod token;
pub mod users;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRef, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use dezky_core::directory::User;
use dezky_core::{Actor, ActorType, ErrorKind};

use self::jwt::Reason;
use self::oidc::{Issuers, Rejection};
use self::token::OperatorToken;
use self::users::{Refusal, Users};
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
    issuers: Issuers,
    /// Present if there are issuers.
    users: Option<Users>,
}

/// A caller whose credentials are good. It says who, not what they may do.
#[derive(Debug, Clone)]
pub(crate) enum Principal {
    /// Anybody on this machine, while neither an operator token nor an issuer is configured.
    Local,
    /// A holder of the operator token.
    OperatorToken,
    /// A user with an access token.
    User(Arc<SignedIn>),
}

/// A user of the directory, by an access token.
pub(crate) struct SignedIn {
    /// The user, as the directory knew them when the request began; active.
    pub(crate) user: User,
    /// Whether the token's audience is one for operators.
    pub(crate) is_for_operators: bool,
    /// The e-mail address in the token.
    email: Option<String>,
}

/// Without what is personal.
impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn")
            .field("user", &self.user.id)
            .field("is_for_operators", &self.is_for_operators)
            .finish_non_exhaustive()
    }
}

impl Principal {
    /// Refuses callers that are not operators. Of a user both are required: a token for an
    /// audience of operators, and the right in the directory.
    pub(crate) fn check_operator(&self) -> Result<(), Problem> {
        let missing = match self {
            Self::User(signed_in) if !signed_in.is_for_operators => {
                "this token's audience is not one for operators"
            }
            Self::User(signed_in) if !signed_in.user.platform_admin => {
                "this token's user is not a platform administrator"
            }
            Self::Local | Self::OperatorToken | Self::User(_) => return Ok(()),
        };
        let detail = format!("an operator-scoped token is required: {missing}");
        let forbidden = StatusCode::FORBIDDEN;
        Err(Problem::bearer(forbidden, "operator_required", detail, "insufficient_scope"))
    }

    /// The user of the directory, if the credentials are a user's.
    pub(crate) fn user(&self) -> Option<&User> {
        match self {
            Self::User(signed_in) => Some(&signed_in.user),
            Self::Local | Self::OperatorToken => None,
        }
    }

    /// The actor of changes, without an address.
    fn actor(&self) -> Actor {
        match self {
            Self::Local => Actor::of(ActorType::Anonymous),
            Self::OperatorToken => {
                Actor { id: Some(TOKEN_ACTOR.into()), ..Actor::of(ActorType::Service) }
            }
            Self::User(signed_in) => {
                let SignedIn { user, email, .. } = &**signed_in;
                let is_operator = self.check_operator().is_ok();
                let kind = if is_operator { ActorType::Operator } else { ActorType::User };
                let email = user.email.as_ref().or(email.as_ref()).cloned();
                Actor { id: Some(user.id.clone()), email, ..Actor::of(kind) }
            }
        }
    }
}

/// Credentials after what can be decided without waiting.
enum Credentials {
    Known(Principal),
    /// A token to verify.
    Token(Vec<u8>),
}

impl Guard {
    /// A guard for the operators' token. Without one and without issuers, only requests from this
    /// machine are admitted.
    pub fn new(operator_token: Option<OperatorToken>, trusted_proxies: Vec<Network>) -> Self {
        let (issuers, users) = (Issuers::default(), None);
        Self(Arc::new(Rules { operator_token, trusted_proxies, issuers, users }))
    }

    /// This guard, which also admits access tokens of issuers.
    #[must_use]
    pub fn with_issuers(self, issuers: Issuers, users: Users) -> Self {
        let Rules { operator_token, trusted_proxies, .. } = &*self.0;
        Self(Arc::new(Rules {
            operator_token: operator_token.clone(),
            trusted_proxies: trusted_proxies.clone(),
            users: (!issuers.is_empty()).then_some(users),
            issuers,
        }))
    }

    /// The issuers whose access tokens are admitted.
    pub fn issuers(&self) -> &Issuers {
        &self.0.issuers
    }

    /// Authenticates a request by its credentials, and keeps the principal in its extensions.
    async fn admit(
        &self,
        request: &mut Request,
        api_key: Option<&HeaderName>,
    ) -> Result<(), Problem> {
        // The body can't be borrowed while this waits.
        let credentials = self.credentials(request, api_key).inspect_err(|problem| {
            tracing::info!(code = problem.code(), "a caller is refused");
        })?;
        let principal = match credentials {
            Credentials::Known(principal) => principal,
            Credentials::Token(token) => {
                let ip = self.client_ip(request.headers(), request.extensions());
                self.principal_of(&token, ip).await?
            }
        };
        request.extensions_mut().insert(principal);
        Ok(())
    }

    /// The operator token is compared first, so that it costs the same with and without issuers.
    fn credentials(
        &self,
        request: &Request,
        api_key: Option<&HeaderName>,
    ) -> Result<Credentials, Problem> {
        let Rules { operator_token, issuers, .. } = &*self.0;
        let given = bearer(request)?;
        let given = given.or_else(|| request.headers().get(api_key?).map(HeaderValue::as_bytes));
        match (operator_token, given) {
            (Some(token), Some(given)) if token.is(given) => {
                Ok(Credentials::Known(Principal::OperatorToken))
            }
            (_, Some(given)) if !issuers.is_empty() => Ok(Credentials::Token(given.to_vec())),
            (None, _) if issuers.is_empty() => {
                if is_for_this_machine(request) && is_from_this_machine(request) {
                    return Ok(Credentials::Known(Principal::Local));
                }
                Err(Problem::foreign_host())
            }
            _ => Err(Problem::unauthorized()),
        }
    }

    async fn principal_of(&self, token: &[u8], ip: Option<String>) -> Result<Principal, Problem> {
        let Rules { issuers, users: Some(users), .. } = &*self.0 else {
            return Err(Problem::unauthorized());
        };
        let verified = issuers.verify(token).await.map_err(|rejection| problem_of(&rejection))?;
        let user = match users.of_token(&verified, ip).await {
            Ok(user) => user,
            Err(Refusal::TooMany) => {
                let issuer = &*verified.issuer;
                tracing::warn!(issuer, "too many new users: further ones have to wait a minute");
                return Err(Problem::too_many_new_users());
            }
            Err(Refusal::Directory(error)) if error.kind() == ErrorKind::FieldInvalid => {
                let rejection = Rejection::Token(Reason::ClaimInvalid("subject claim"));
                oidc::note(Some(&verified.issuer), &rejection);
                return Err(problem_of(&rejection));
            }
            Err(Refusal::Directory(error)) => return Err(error.into()),
        };
        if !user.is_active() {
            let detail = "the token's user is deactivated in the directory";
            let problem = Problem::bearer(
                StatusCode::FORBIDDEN,
                "user_deactivated",
                detail,
                "insufficient_scope",
            );
            tracing::info!(code = problem.code(), user = user.id, "a caller is refused");
            return Err(problem);
        }
        let (is_for_operators, email) = (verified.is_for_operators, verified.email);
        Ok(Principal::User(Arc::new(SignedIn { user, is_for_operators, email })))
    }

    /// The client's address, unless the connection doesn't tell.
    fn client_ip(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<String> {
        let ConnectInfo(peer) = extensions.get::<ConnectInfo<SocketAddr>>()?;
        Some(client_address(*peer, headers, &self.0.trusted_proxies).to_string())
    }
}

/// The problem of a token that is not accepted: 401, or 403 if it is a valid token of another kind.
fn problem_of(rejection: &Rejection) -> Problem {
    match rejection {
        Rejection::Unavailable => Problem::issuer_unavailable(),
        Rejection::Token(reason) => {
            let (status, error) = match reason {
                Reason::Kind(_) => (StatusCode::FORBIDDEN, "insufficient_scope"),
                _ => (StatusCode::UNAUTHORIZED, "invalid_token"),
            };
            Problem::bearer(status, reason.code(), reason.to_string(), error)
        }
    }
}

/// The caller of a change, as the timeline will name it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The principal, with the client's address.
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
        let ip = Guard::from_ref(state).client_ip(&parts.headers, &parts.extensions);
        // Routes behind no guard have no principal; an embedder's authenticator names an actor.
        let actor = match parts.extensions.get() {
            Some(principal) => Principal::actor(principal),
            None => parts.extensions.get().cloned().unwrap_or(Actor::of(ActorType::Anonymous)),
        };
        // Bytes that are not UTF-8 become U+FFFD; the editors cut long values.
        let text = |name: HeaderName| {
            let value = String::from_utf8_lossy(parts.headers.get(name)?.as_bytes());
            (!value.is_empty()).then(|| value.into_owned())
        };
        Ok(Self {
            actor: Actor { ip: ip.or_else(|| actor.ip.clone()), ..actor },
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

/// Admits everybody with good credentials; the route decides what they see.
pub(crate) async fn require_user(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    guard.admit(&mut request, None).await?;
    Ok(next.run(request).await)
}

/// Admits operators. Without a configured token or issuer it admits requests that name this
/// machine as their host: a page that leads a browser here by DNS rebinding names its own host.
pub(crate) async fn require_operator(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    guard.admit(&mut request, None).await?;
    check_operator(&request)?;
    Ok(next.run(request).await)
}

/// [`require_operator`] for OFREP: `X-API-Key` may hold the token as well, and a refusal has
/// no body.
pub(crate) async fn require_ofrep(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let api_key = HeaderName::from_static("x-api-key");
    let admitted = guard.admit(&mut request, Some(&api_key)).await;
    match admitted.and_then(|()| check_operator(&request)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response_without_body(),
    }
}

fn check_operator(request: &Request) -> Result<(), Problem> {
    let principal = request.extensions().get::<Principal>();
    let principal = principal.ok_or_else(Problem::unauthorized)?;
    principal.check_operator().inspect_err(|problem| {
        let user = principal.user().map(|user| &*user.id);
        tracing::info!(
            code = problem.code(),
            user,
            reason = problem.detail(),
            "a caller is refused"
        );
    })
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
    !host.as_str().contains('@') && is_loopback(host.host())
}

/// Whether a host in its form of URLs is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The bearer token. Two headers are refused: a proxy may have looked at the other one.
fn bearer(request: &Request) -> Result<Option<&[u8]>, Problem> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::header_invalid("Authorization is sent twice: send it once"));
    }
    let is_bearer = |scheme: &[u8]| scheme.eq_ignore_ascii_case(b"bearer ");
    let token = value.as_bytes().split_at_checked(7).filter(|(scheme, _)| is_bearer(scheme));
    Ok(token.map(|(_, token)| token.trim_ascii()))
}
