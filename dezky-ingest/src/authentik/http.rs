//! Requests to Authentik's API: one at a time, bounded, never redirected.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use dezky_core::{Error, ErrorKind, Result, Runtime, Timestamp};
use futures_util::future::{Either, select};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};

use super::config::AuthentikConfig;
use super::poll::Suspect;
use crate::http::client_builder;

/// The wait after a refused token.
const AUTH_WAIT: Duration = Duration::from_mins(5);
/// The wait after 429 without `Retry-After`.
const THROTTLED_WAIT: Duration = Duration::from_mins(1);
/// The maximum wait that a server can request.
pub(super) const MAX_WAIT: Duration = Duration::from_hours(1);
/// The number of bytes read of the answer to a failed request.
const MAX_ERROR_BYTES: usize = 4 << 10;
/// The number of bytes kept of an answer that is too large.
const MAX_HEAD_BYTES: usize = 4 << 10;

/// Result of a request.
pub(super) enum Fetched {
    Text(String),
    NoSuchPage,
    /// More bytes than allowed; its beginning.
    TooLarge {
        head: String,
    },
}

/// Why a request failed, the wait before the next one, and the possible cause.
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) wait: Option<Duration>,
    pub(super) suspect: Suspect,
    /// 400: a filter by something that does not exist.
    is_bad_request: bool,
}

impl Failed {
    /// Whether the failure is due to a filter by a group that no longer exists.
    pub(super) fn is_no_such_group(&self) -> bool {
        self.is_bad_request
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, wait: None, suspect: Suspect::Anything, is_bad_request: false }
    }
}

pub(super) struct Api {
    client: Client,
    base: String,
    timeout: Duration,
    max_bytes: usize,
    runtime: Arc<dyn Runtime>,
}

impl Api {
    pub(super) fn new(config: &AuthentikConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        let invalid = |what: &'static str| Error::new(ErrorKind::ConfigInvalid, what);
        let mut headers = HeaderMap::new();
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", config.token.expose()))
            .map_err(|_| invalid("the token of Authentik can't be a header"))?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // Never redirected, because the token is for this address alone.
        let client = client_builder(&config.base_url)?
            .default_headers(headers)
            .user_agent("dezky")
            .build()
            .map_err(|error| invalid("can't create the HTTP client").with_source(error))?;
        let base = format!("{}/api/v3/", config.base_url.trim_end_matches('/'));
        let (timeout, max_bytes) = (config.request_timeout, config.max_page_bytes);
        Ok(Self { client, base, timeout, max_bytes, runtime })
    }

    /// Requests a path below the API.
    pub(super) async fn get(&self, path_and_query: &str) -> Result<Fetched, Failed> {
        let request = pin!(self.exchange(path_and_query));
        match select(request, self.runtime.sleep(self.timeout)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => {
                let what = format!("Authentik did not answer within {:?}", self.timeout);
                Err(Error::new(ErrorKind::SourceUnavailable, what).into())
            }
        }
    }

    async fn exchange(&self, path_and_query: &str) -> Result<Fetched, Failed> {
        let unavailable = |what: &'static str, error: reqwest::Error| {
            Error::new(ErrorKind::SourceUnavailable, what).with_source(error.without_url())
        };
        let request = self.client.get(format!("{}{path_and_query}", self.base));
        let mut response = request
            .send()
            .await
            .map_err(|error| unavailable("Authentik can't be reached", error))?;
        let is_fine = response.status() == StatusCode::OK;
        let max_bytes = if is_fine { self.max_bytes } else { MAX_ERROR_BYTES };
        let mut body: Vec<u8> = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= max_bytes => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) if is_fine => {
                    body.truncate(MAX_HEAD_BYTES);
                    return Ok(Fetched::TooLarge { head: text(body) });
                }
                Ok(_) => break,
                Err(_) if !is_fine => break,
                Err(error) => {
                    return Err(unavailable("Authentik's answer broke off", error).into());
                }
            }
        }
        let body = text(body);
        if is_fine {
            return Ok(Fetched::Text(body));
        }
        refused(&response, path_and_query, &body, self.runtime.now())
    }
}

/// The text; bytes that are not UTF-8 become U+FFFD, as in normal form.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Whether the API itself refuses, rather than a proxy or the web interface.
fn is_detail(body: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(body)
        .is_ok_and(|body| body.get("detail").is_some_and(serde_json::Value::is_string))
}

/// Meaning of an answer other than 200.
fn refused(response: &Response, path: &str, body: &str, now: Timestamp) -> Result<Fetched, Failed> {
    let status = response.status();
    // 500 is an exception in Authentik itself, for example because of a row that it can't
    // serialize.
    let suspect = match status.as_u16() {
        500 => Suspect::Page,
        429 => Suspect::Nothing,
        _ => Suspect::Anything,
    };
    let is_bad_request = status == StatusCode::BAD_REQUEST;
    let failed = |kind, what: String, wait| {
        Err(Failed { error: Error::new(kind, what), wait, suspect, is_bad_request })
    };
    match status.as_u16() {
        // The text is in the brand's language, but the key is not.
        404 if is_detail(body) => Ok(Fetched::NoSuchPage),
        404 => failed(
            ErrorKind::SourceUnavailable,
            "Authentik answers 404; its base URL must be the address without /api/v3".into(),
            None,
        ),
        401 | 403 => failed(
            ErrorKind::AuthFailed,
            format!(
                "Authentik answers {status} to a request for {}; the token must be valid, of \
                 intent API, and its user must have the permission {}",
                viewed(path).0,
                viewed(path).1
            ),
            Some(AUTH_WAIT),
        ),
        300..=399 => failed(
            ErrorKind::SourceUnavailable,
            format!(
                "Authentik answers {status}; redirects are not followed, set its base URL to \
                 where it leads"
            ),
            None,
        ),
        code => {
            let said = retry_after(response.headers(), now);
            let wait = said.or((code == 429).then_some(THROTTLED_WAIT));
            let what = format!("Authentik answers {status}");
            failed(ErrorKind::SourceUnavailable, what, wait.map(|wait| wait.min(MAX_WAIT)))
        }
    }
}

/// The objects at a path, and the permission to view them.
fn viewed(path: &str) -> (&'static str, &'static str) {
    if path.starts_with("core/groups") {
        ("groups", "authentik_core.view_group")
    } else if path.starts_with("core/users") {
        ("users", "authentik_core.view_user")
    } else {
        ("events", "authentik_events.view_event")
    }
}

/// `Retry-After` in seconds, or until a date by our clock; a date in the past is ignored.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let said = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = said.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(said).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let date = Timestamp::from_millis_clamped(i64::try_from(date.as_millis()).ok()?);
    Some(date.saturating_since(now)).filter(|wait| !wait.is_zero())
}
