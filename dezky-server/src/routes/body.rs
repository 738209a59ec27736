//! Bodies of requests, read within bounds, and the answer to one that makes something.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::error::Problem;

/// How long a body may take: as long as Stalwart waits for the answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read and thrown away, so that the
/// sender is still there to hear why.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
/// The largest body of a document.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// The whole body, within the bounds of size and time.
pub(super) async fn read(
    body: Body,
    headers: &HeaderMap,
    max_bytes: usize,
) -> Result<Bytes, Problem> {
    read_while(body, headers, max_bytes, |_| Ok(())).await
}

/// The same, as long as there is `room` for all the bytes that are in.
pub(super) async fn read_while(
    body: Body,
    headers: &HeaderMap,
    max_bytes: usize,
    mut room: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Bytes, Problem> {
    let announced = announced(headers);
    let is_over = announced.is_some_and(|bytes| bytes > max_bytes);
    // A client that asks first has not sent anything yet.
    if is_over && headers.contains_key(header::EXPECT) {
        return Err(Problem::body_too_large(max_bytes));
    }
    let reading = async {
        let mut kept = Vec::with_capacity(announced.unwrap_or(0).min(64 << 10));
        let mut read = 0_usize;
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| Problem::body_broken())?;
            read = read.saturating_add(chunk.len());
            if read > max_bytes || is_over {
                kept = Vec::new();
                if read > max_bytes.saturating_add(MAX_DISCARDED_BYTES) {
                    break;
                }
            } else {
                room(read)?;
                kept.extend_from_slice(&chunk);
            }
        }
        if read > max_bytes { Err(Problem::body_too_large(max_bytes)) } else { Ok(kept.into()) }
    };
    tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| Err(Problem::body_timeout()))
}

/// The length that the sender announces. No body comes with more.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// A JSON document of at most 1 MiB, said to be one.
pub(super) struct Document<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(Problem::media_type());
        }
        let bytes = read(body, &parts.headers, MAX_DOCUMENT_BYTES).await?;
        parse(&bytes).map(Self)
    }
}

/// The same, or the default where there is no body.
pub(super) struct MaybeDocument<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for MaybeDocument<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, &parts.headers, MAX_DOCUMENT_BYTES).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        if !is_json(&parts.headers) {
            return Err(Problem::media_type());
        }
        parse(&bytes).map(Self)
    }
}

/// The answer with a document that was made, and where it is from now on.
pub(super) fn created(path: &str, mut response: Response) -> Response {
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::from_str(path) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Serde would read a list as the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        let other = serde_json::from_slice::<IgnoredAny>(bytes);
        other.map_err(|error| no_json(&error))?;
        return Err(Problem::field_invalid("the body must be a JSON object: put it in { }"));
    }
    fields(bytes, "")
}

/// The same of a part of a body, which `at` names in problems.
pub(super) fn parse_part<T: DeserializeOwned>(text: &str, at: &str) -> Result<T, Problem> {
    if !text.starts_with('{') {
        let what = if at.is_empty() { "the body " } else { at };
        return Err(Problem::field_invalid(format!(
            "{what}must be a JSON object: put it in {{ }}"
        )));
    }
    fields(text.as_bytes(), at)
}

fn fields<T: DeserializeOwned>(bytes: &[u8], part: &str) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.inner());
        // JSON, but with a value that no field can hold: a lone surrogate or 1e400.
        let is_json = || serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
        if error.is_data() || is_json() {
            // Serde says what, not where; of a missing or unknown field the other way round.
            let at = if path == "." { String::new() } else { format!("{path}: ") };
            Problem::field_invalid(format!("{part}{at}{error}"))
        } else {
            no_json(error)
        }
    })?;
    reader.end().map_err(|error| no_json(&error))?;
    Ok(value)
}

pub(super) fn no_json(error: &serde_json::Error) -> Problem {
    Problem::json_invalid(format!("the body is no JSON document: {error}"))
}

pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}
