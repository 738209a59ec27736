//! Errors as HTTP answers: problem details (RFC 9457).

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dezky_core::{Error, ErrorKind};

use super::incoming_body::BodyError;

/// An error answer in the form of RFC 9457, with a stable `code`.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    // Boxed, because few problems have them and every result of a route is as large.
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// A member in addition to the standard ones.
    member: Option<Box<(&'static str, serde_json::Value)>>,
    is_of_store: bool,
}

/// Marks, in the extensions of an answer, that a failure of the store is its reason.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfStore;

/// The wait before a client should retry.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), header: None, member: None, is_of_store: false }
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: serde_json::Value) -> Self {
        self.member = Some(Box::new((name, value)));
        self
    }

    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// The text for people.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether a failure of the store is the reason.
    pub(crate) fn is_of_store(&self) -> bool {
        self.is_of_store
    }

    /// The status, the detail and the header, for answers of another form.
    pub(crate) fn into_parts(self) -> (StatusCode, String, Option<(HeaderName, HeaderValue)>) {
        (self.status, self.detail, self.header.map(|header| *header))
    }

    /// The answer of a protocol that has no form for this problem.
    pub(crate) fn into_response_without_body(self) -> Response {
        let (status, _, header) = self.into_parts();
        let mut response = status.into_response();
        response.headers_mut().extend(header);
        response
    }

    /// 401: no token, or a wrong one.
    pub fn unauthorized() -> Self {
        let detail = "send an access token or the operator token: Authorization: Bearer …";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// A token that is not accepted (RFC 6750, section 3): `error` is `invalid_token` or
    /// `insufficient_scope`. Only printable ASCII of the detail is repeated in the header.
    pub(crate) fn bearer(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<String>,
        error: &'static str,
    ) -> Self {
        let problem = Self::new(status, code, detail);
        let description: String = problem
            .detail
            .chars()
            .filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\'))
            .collect();
        let challenge = format!("Bearer error=\"{error}\", error_description=\"{description}\"");
        match HeaderValue::try_from(challenge) {
            Ok(challenge) => problem.with_header(header::WWW_AUTHENTICATE, challenge),
            Err(_) => problem,
        }
    }

    /// 503: the keys of a token's issuer are not known.
    pub(crate) fn issuer_unavailable() -> Self {
        let detail = "the token's issuer can't be reached, so the token can't be verified: retry with the same token";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "issuer_unavailable", detail)
            .with_header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
    }

    /// 503: tokens of one issuer have created too many users in this minute.
    pub(crate) fn too_many_new_users() -> Self {
        let detail =
            "too many users of this issuer are new in this minute: retry with the same token";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_new_users", detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("60"))
    }

    /// 403: without an operator token only requests for this machine are answered.
    pub fn foreign_host() -> Self {
        let detail = "without an operator token the host must be localhost, and an origin one of its pages: set DEZKY_OPERATOR_TOKEN or configure an issuer (auth.issuers) to use another host name";
        Self::new(StatusCode::FORBIDDEN, "foreign_host", detail)
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 405; the router adds `Allow`.
    pub fn method_not_allowed() -> Self {
        let detail = "the path does not have this method: the header Allow lists its methods";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
    }

    /// 413: the body is too large.
    pub fn body_too_large(max_bytes: usize) -> Self {
        let detail = format!("the body is larger than {max_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// 503: the memory for bodies is used up.
    pub fn too_many_webhooks() -> Self {
        let detail = "too many bodies are in progress: retry";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_webhooks", detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// 503: as many requests of this kind as there may be are in progress.
    pub(crate) fn too_many(code: &'static str, detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
            .with_header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
    }

    /// 503: the server stops.
    pub(crate) fn ending() -> Self {
        Self::too_many("ending", "the server stops: retry")
    }

    /// 403: the caller is known and may not do this.
    pub(crate) fn forbidden(detail: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 406: no format of the export is acceptable.
    pub(crate) fn not_acceptable() -> Self {
        let detail =
            "exports are application/x-ndjson or text/csv: accept one, or name it with format=";
        Self::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail)
    }

    /// 500: the handler panicked.
    pub fn broken_down() -> Self {
        let detail = "the request could not be served: the server's log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal.code(), detail)
    }

    /// The body is incomplete: 400 if the sender aborted it, 408 if it was too slow, 503 if the
    /// server is stopping.
    pub(crate) fn body_unfinished(reason: BodyError) -> Self {
        let (status, code) = match reason {
            BodyError::Aborted => (StatusCode::BAD_REQUEST, "body_broken"),
            BodyError::TimedOut(_) | BodyError::TooSlow(_) => {
                (StatusCode::REQUEST_TIMEOUT, "body_timeout")
            }
            BodyError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
        };
        let problem = Self::new(status, code, reason.to_string());
        if reason == BodyError::Stopping {
            return problem.with_header(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        problem
    }

    /// 400: a header is invalid.
    pub fn header_invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "header_invalid", detail)
    }

    /// 400: the body is not JSON.
    pub fn json_invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "json_invalid", detail)
    }

    /// 400: a field is unknown, missing or invalid.
    pub fn field_invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::FieldInvalid.code(), detail)
    }

    /// 400: an event is invalid.
    pub fn event_invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::EventInvalid.code(), detail)
    }

    /// 415: the content type is not JSON.
    pub fn media_type() -> Self {
        let detail = "the body must be JSON: send Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", detail)
    }

    /// 415: the body has a content encoding, and none is accepted here.
    pub fn content_encoding() -> Self {
        let detail = "no Content-Encoding is accepted here: send the body uncompressed; only webhooks of declared sources accept gzip";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", detail)
    }

    /// 400: a parameter of the query is unknown or invalid.
    pub fn query_invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::QueryInvalid.code(), detail)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::EventInvalid
            | ErrorKind::QueryInvalid
            | ErrorKind::CursorInvalid
            | ErrorKind::FieldInvalid
            | ErrorKind::BodyInvalid => StatusCode::BAD_REQUEST,
            ErrorKind::MediaUnsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::StateConflict => StatusCode::CONFLICT,
            ErrorKind::VersionMismatch => StatusCode::PRECONDITION_FAILED,
            ErrorKind::SignatureInvalid => StatusCode::UNAUTHORIZED,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Pruned => StatusCode::GONE,
            // The server is stopping; the next one may accept it.
            ErrorKind::StoreReplaced => StatusCode::SERVICE_UNAVAILABLE,
            kind if kind.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            // The reason is for the operator, not for the client.
            tracing::error!(code = error.code(), %error, "a request failed");
            let is_away = status == StatusCode::SERVICE_UNAVAILABLE;
            let detail = if is_away {
                "the store is unavailable: retry"
            } else {
                "the request could not be served: the server's log says why"
            };
            let problem = Self { is_of_store: true, ..Self::new(status, error.code(), detail) };
            return if is_away {
                problem.with_header(header::RETRY_AFTER, RETRY_AFTER_SECONDS)
            } else {
                problem
            };
        }
        Self::new(status, error.code(), error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if let Some((name, value)) = self.member.map(|member| *member) {
            body[name] = value;
        }
        let media_type = HeaderValue::from_static("application/problem+json");
        let mut response =
            (self.status, [(header::CONTENT_TYPE, media_type)], body.to_string()).into_response();
        if self.is_of_store {
            response.extensions_mut().insert(OfStore);
        }
        if let Some((name, value)) = self.header.map(|header| *header) {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_for_which_the_store_is_to_blame_say_so_to_the_server() {
        let is_marked =
            |problem: Problem| problem.into_response().extensions().get::<OfStore>().is_some();
        for kind in [ErrorKind::StoreUnavailable, ErrorKind::StoreBusy, ErrorKind::Internal] {
            assert!(is_marked(Error::new(kind, "x").into()), "{kind:?}");
        }
        assert!(!is_marked(Error::new(ErrorKind::NotFound, "x").into()));
        // A client without a token can cause these.
        assert!(!is_marked(Problem::too_many_webhooks()));
        assert!(!is_marked(Problem::body_unfinished(BodyError::Stopping)));
    }
}
