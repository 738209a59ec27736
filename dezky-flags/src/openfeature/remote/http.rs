//! Bounded HTTP requests.

use std::time::Duration;

use dezky_core::http::client_builder;
use dezky_core::{Error, ErrorKind, Result};
use open_feature::EvaluationError;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, RETRY_AFTER,
};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Answer, RemoteConfig, refusal};

/// Upper bound for a server's `Retry-After`.
const MAX_WAIT: Duration = Duration::from_hours(1);

/// The outcome of a request.
pub(super) enum Fetched {
    /// The known answers are still current.
    Unchanged,
    Answers {
        tag: Option<String>,
        flags: Vec<Answer>,
        revision: Option<u64>,
    },
    /// The server rejected the context.
    Refused(EvaluationError),
    /// The server is unreachable or does not serve this client.
    Failed {
        error: Error,
        /// The server's `Retry-After`, if it sent one.
        wait: Option<Duration>,
    },
}

impl Fetched {
    pub(super) fn failed(problem: impl Into<String>) -> Self {
        Self::Failed { error: unavailable(problem), wait: None }
    }
}

fn unavailable(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::StoreUnavailable, problem.into())
}

/// The bulk evaluation endpoint of a server.
pub(super) struct Api {
    client: Client,
    url: String,
    max_bytes: usize,
}

impl Api {
    pub(super) fn new(config: &RemoteConfig) -> Result<Self> {
        let invalid = |what: &'static str| Error::new(ErrorKind::ConfigInvalid, what);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = &config.token {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.0))
                .map_err(|_| invalid("token can't be sent in a header: use the server's token"))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let client = client_builder(&config.base_url)?
            .default_headers(headers)
            .user_agent("dezky")
            .build()
            .map_err(|error| invalid("can't create the HTTP client").with_source(error))?;
        let url = format!("{}/ofrep/v1/evaluate/flags", config.base_url.trim_end_matches('/'));
        Ok(Self { client, url, max_bytes: config.max_answer_bytes })
    }

    /// Requests all flags for the context in `body`; `tag` identifies the known answers.
    pub(super) async fn query(&self, body: &str, tag: Option<&str>) -> Fetched {
        let mut request = self.client.post(&self.url).body(body.to_owned());
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Fetched::failed(error.without_url().to_string()),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        match status {
            StatusCode::NOT_MODIFIED => return Fetched::Unchanged,
            StatusCode::OK | StatusCode::BAD_REQUEST => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let problem = format!("it answers {status}: set a valid token");
                return Fetched::Failed {
                    error: Error::new(ErrorKind::AuthFailed, problem),
                    wait: None,
                };
            }
            _ => {
                let wait = retry_after(&headers);
                return Fetched::Failed {
                    error: unavailable(format!("it answers {status}")),
                    wait,
                };
            }
        }
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= self.max_bytes => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    let problem = format!(
                        "its answer is larger than {} bytes: raise max_answer_bytes",
                        self.max_bytes
                    );
                    return Fetched::failed(problem);
                }
                Ok(None) => break,
                Err(error) => return Fetched::failed(error.without_url().to_string()),
            }
        }
        read(status, &headers, &bytes)
    }
}

#[derive(Deserialize)]
struct All {
    flags: Vec<Answer>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refused {
    error_code: String,
    error_details: Option<String>,
}

fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Fetched {
    if status == StatusCode::OK {
        let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        return match serde_json::from_slice::<All>(body) {
            Ok(All { flags, metadata }) => {
                let revision = metadata.get("revision").and_then(Value::as_u64);
                Fetched::Answers { tag, flags, revision }
            }
            Err(_) => Fetched::failed("its answer is not in OFREP's form: check base_url"),
        };
    }
    match serde_json::from_slice::<Refused>(body) {
        Ok(refused) => {
            Fetched::Refused(refusal(&refused.error_code, refused.error_details.as_deref()))
        }
        Err(_) => Fetched::failed(format!("it answers {status}: check base_url")),
    }
}

/// Reads the header in seconds; the date form is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_WAIT))
}
