//! Errors in the form of OFREP.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use dezky_core::Error;
use serde_json::{Map, Value};

use crate::http::problem::{OfStore, Problem};

/// The reason for a refusal.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// The request or the server is at fault.
    Asked {
        status: StatusCode,
        code: &'static str,
        details: String,
        header: Option<(HeaderName, HeaderValue)>,
        is_of_store: bool,
    },
    /// The caller may not ask for this tenant. The answer has no body.
    Forbidden,
}

impl Refusal {
    fn asked(status: StatusCode, code: &'static str, details: impl Into<String>) -> Self {
        Self::Asked { status, code, details: details.into(), header: None, is_of_store: false }
    }

    pub(super) fn parse_error(details: impl Into<String>) -> Self {
        Self::asked(StatusCode::BAD_REQUEST, "PARSE_ERROR", details)
    }

    pub(super) fn invalid_context(details: impl Into<String>) -> Self {
        Self::asked(StatusCode::BAD_REQUEST, "INVALID_CONTEXT", details)
    }

    pub(super) fn targeting_key_missing() -> Self {
        let details = "context.targetingKey is missing: send the tenant's id";
        Self::asked(StatusCode::BAD_REQUEST, "TARGETING_KEY_MISSING", details)
    }

    pub(super) fn flag_not_found() -> Self {
        let details = "there is no such flag: GET /flags lists the flags";
        Self::asked(StatusCode::NOT_FOUND, "FLAG_NOT_FOUND", details)
    }

    /// The response, with the flag `key` if one was requested.
    pub(super) fn answer(self, key: Option<&str>) -> Response {
        let Self::Asked { status, code, details, header, is_of_store } = self else {
            return StatusCode::FORBIDDEN.into_response();
        };
        // For server errors OFREP defines the details only.
        let body = if status.is_server_error() {
            Map::from_iter([("errorDetails".into(), details.into())])
        } else {
            failure(key, code, details)
        };
        let mut response = (status, Json(Value::Object(body))).into_response();
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        if is_of_store {
            response.extensions_mut().insert(OfStore);
        }
        response
    }

    /// The failure of one flag in a bulk answer.
    pub(super) fn of_flag(self, key: &str) -> Map<String, Value> {
        match self {
            Self::Asked { code, details, .. } => failure(Some(key), code, details),
            Self::Forbidden => failure(Some(key), "GENERAL", String::new()),
        }
    }

    #[cfg(test)]
    pub(super) fn code_and_details(&self) -> (&str, &str) {
        match self {
            Self::Asked { code, details, .. } => (code, details),
            Self::Forbidden => ("", ""),
        }
    }
}

fn failure(key: Option<&str>, code: &str, details: String) -> Map<String, Value> {
    let key = key.map(|key| ("key".into(), key.into()));
    let members = [("errorCode".into(), code.into()), ("errorDetails".into(), details.into())];
    key.into_iter().chain(members).collect()
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let is_of_store = problem.is_of_store();
        let (status, details, header) = problem.into_parts();
        Self::Asked { status, code: "GENERAL", details, header, is_of_store }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Problem::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dezky_core::ErrorKind;

    #[tokio::test]
    async fn a_failure_has_its_details_alone_and_keeps_the_reason_to_itself() {
        for (kind, status, wait) in [
            (ErrorKind::StoreUnavailable, StatusCode::SERVICE_UNAVAILABLE, Some("5")),
            (ErrorKind::Internal, StatusCode::INTERNAL_SERVER_ERROR, None),
        ] {
            for key in [None, Some("k")] {
                let answer = Refusal::from(Error::new(kind, "host db-1 is away")).answer(key);
                assert_eq!(answer.status(), status);
                assert!(answer.extensions().get::<OfStore>().is_some());
                let header = answer.headers().get("retry-after");
                assert_eq!(header.map(|wait| wait.to_str().unwrap()), wait);
                let body = axum::body::to_bytes(answer.into_body(), 1 << 10).await.unwrap();
                let body: Map<String, Value> = serde_json::from_slice(&body).unwrap();
                assert_eq!(body.keys().collect::<Vec<_>>(), ["errorDetails"]);
                assert!(!body["errorDetails"].as_str().unwrap().contains("db-1"));
            }
        }
    }
}
