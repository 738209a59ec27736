//! Request bodies, read within bounds, and the answer to a request that creates something.

use std::net::IpAddr;
use std::sync::LazyLock;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::body_budget::{BodyBudget, BodyPermit, SMALL_BYTES};
use super::incoming_body::BodyError;
use super::problem::Problem;

/// Allocations of this size are separate mappings, which are returned to the system when
/// they are freed. glibc keeps smaller ones, so that the threads of a process together come to
/// hold several times the memory in use.
const OWN_MAPPING_BYTES: usize = if cfg!(target_pointer_width = "64") { 33 << 20 } else { 0 };
/// The memory that the first write to a mapping may take where the system uses huge pages
/// always.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The size above which a body gets a mapping. Where huge pages are used on request only
/// (`madvise`) or `never`, a mapping costs no more than what was written to it.
static MAPPED_FROM_BYTES: LazyLock<usize> = LazyLock::new(|| {
    let huge_pages = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let is_always = huge_pages.is_ok_and(|choice| choice.contains("[always]"));
    if is_always { HUGE_PAGE_BYTES } else { SMALL_BYTES }
});
/// The problem of text with an escaped lone surrogate.
pub(crate) const LONE_SURROGATE: &str = "must be Unicode text: it has a lone surrogate";
/// The largest body of a document.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Reads a whole body of at most `max_bytes`. The connection bounds its time.
pub(crate) async fn read(
    body: Body,
    headers: &HeaderMap,
    max_bytes: usize,
) -> Result<Bytes, Problem> {
    read_while(body, headers, max_bytes, |_| Ok(())).await
}

/// [`read`], which asks `reserve` before it holds more bytes.
async fn read_while(
    body: Body,
    headers: &HeaderMap,
    max_bytes: usize,
    mut reserve: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Bytes, Problem> {
    let announced = announced(headers);
    // The connection discards the rest of a refused body.
    if announced.is_some_and(|bytes| bytes > max_bytes) {
        return Err(Problem::body_too_large(max_bytes));
    }
    let mut read = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Problem::body_unfinished(BodyError::of(&e)))?;
        let bytes = read.len().saturating_add(chunk.len());
        if bytes > max_bytes {
            return Err(Problem::body_too_large(max_bytes));
        }
        reserve(bytes)?;
        if bytes > read.capacity() {
            let more = capacity(bytes, announced, *MAPPED_FROM_BYTES) - read.len();
            read.try_reserve_exact(more).map_err(|_| Problem::too_many_webhooks())?;
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.into())
}

/// [`read`], with memory from the budget of `client`, which is released when the permit is
/// dropped.
pub(crate) async fn read_within_budget(
    budget: &BodyBudget,
    client: IpAddr,
    headers: &HeaderMap,
    body: Body,
    max_bytes: usize,
) -> Result<(BodyPermit, Bytes), Problem> {
    let mut permit = budget.admit(client).ok_or_else(Problem::too_many_webhooks)?;
    let grow = |bytes| permit.grow(bytes).then_some(()).ok_or_else(Problem::too_many_webhooks);
    let bytes = read_while(body, headers, max_bytes, grow).await?;
    Ok((permit, bytes))
}

/// The capacity for a body of which `bytes` have arrived. Memory that was never written to
/// costs nothing, so a large body gets its whole announced length at once and is not copied as
/// it grows.
fn capacity(bytes: usize, announced: Option<usize>, mapped_from: usize) -> usize {
    let twice = bytes.saturating_mul(2);
    let whole = announced.unwrap_or(twice).max(bytes);
    if bytes <= SMALL_BYTES {
        whole.min(SMALL_BYTES)
    } else if bytes <= mapped_from {
        whole.min(twice)
    } else {
        whole.max(OWN_MAPPING_BYTES)
    }
}

/// The value of `Content-Length`. No body is longer.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// A JSON document of at most 1 MiB, with the content type of one.
pub(crate) struct Document<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_json(&parts.headers)?;
        let bytes = read(body, &parts.headers, MAX_DOCUMENT_BYTES).await?;
        parse(&bytes).map(Self)
    }
}

/// [`Document`], or the default without a body.
pub(crate) struct MaybeDocument<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for MaybeDocument<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, &parts.headers, MAX_DOCUMENT_BYTES).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        check_json(&parts.headers)?;
        parse(&bytes).map(Self)
    }
}

/// The answer with a document that was created, and its location.
pub(crate) fn created(path: &str, mut response: Response) -> Response {
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::from_str(path) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Serde would accept an array as the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        let other = serde_json::from_slice::<IgnoredAny>(bytes);
        other.map_err(|error| no_json(&error))?;
        return Err(Problem::field_invalid("the body must be a JSON object: put it in { }"));
    }
    fields(bytes, "")
}

/// Parses a part of a body, which `at` names in problems.
pub(crate) fn parse_part<T: DeserializeOwned>(text: &str, at: &str) -> Result<T, Problem> {
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
        // Valid JSON with a value that no field can hold, such as a lone surrogate or 1e400.
        let is_json = || {
            str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
        };
        if error.is_data() || is_json() {
            // Serde names the problem, except for a lone surrogate; the path names the place.
            let at = if path == "." { String::new() } else { format!("{path}: ") };
            let problem = error.to_string();
            let is_surrogate = !error.is_data() && problem.contains("hex escape");
            let problem = if is_surrogate { LONE_SURROGATE } else { &problem };
            Problem::field_invalid(format!("{part}{at}{problem}"))
        } else {
            no_json(error)
        }
    })?;
    reader.end().map_err(|error| no_json(&error))?;
    Ok(value)
}

pub(crate) fn no_json(error: &serde_json::Error) -> Problem {
    Problem::json_invalid(format!("the body is not a JSON document: {error}"))
}

/// Refuses a body whose content type is not JSON, or that has a content encoding.
pub(crate) fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    if !is_json(headers) {
        return Err(Problem::media_type());
    }
    check_not_packed(headers)
}

/// Refuses a body with a content encoding.
pub(crate) fn check_not_packed(headers: &HeaderMap) -> Result<(), Problem> {
    let is_packed = |line: &HeaderValue| {
        line.as_bytes()
            .split(|b| *b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity"))
    };
    if headers.get_all(header::CONTENT_ENCODING).iter().any(is_packed) {
        return Err(Problem::content_encoding());
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[test]
    fn a_body_gets_little_more_than_has_come_until_it_is_large() {
        let (whole, first) = (16 << 20, SMALL_BYTES + 1);
        let huge = |bytes, announced| capacity(bytes, announced, HUGE_PAGE_BYTES);
        assert_eq!(huge(1, Some(whole)), SMALL_BYTES);
        assert_eq!(huge(1, Some(100)), 100);
        assert_eq!(huge(first, Some(whole)), 2 * first);
        assert_eq!(huge(first, Some(first + 8)), first + 8);
        assert_eq!(huge(HUGE_PAGE_BYTES, None), 2 * HUGE_PAGE_BYTES);
        let mapping = OWN_MAPPING_BYTES.max(whole);
        assert_eq!(huge(HUGE_PAGE_BYTES + 1, Some(whole)), mapping);
        assert_eq!(capacity(first, Some(whole), SMALL_BYTES), mapping);
    }

    #[tokio::test]
    async fn a_body_for_which_there_is_no_room_is_for_later() {
        let budget = BodyBudget::new(1 << 20, 256 << 10);
        let client = IpAddr::from([203, 0, 113, 7]);
        let mut others = budget.admit(IpAddr::from([203, 0, 113, 8])).unwrap();
        // 512 KiB are there beyond the first 64 KiB of each.
        assert!(others.grow(SMALL_BYTES + (256 << 10)));
        let mut own = budget.admit(client).unwrap();
        assert!(own.grow(SMALL_BYTES + (192 << 10)));
        let body = |bytes| Body::from(vec![b' '; bytes]);
        let headers = HeaderMap::new();
        let read = |bytes| read_within_budget(&budget, client, &headers, body(bytes), 256 << 10);
        let (permit, small) = read(64 << 10).await.unwrap();
        assert_eq!(small.len(), 64 << 10);
        drop(permit);
        let Err(problem) = read(129 << 10).await else { panic!("there is no room for it") };
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        drop(own);
        assert!(read(129 << 10).await.is_ok());
    }
}
