//! OFREP, the remote evaluation protocol of OpenFeature, version 0.3.

mod context;
mod events;
mod refusal;
mod tag;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use dezky_core::directory::TenantKey;
use dezky_flags::live::LiveSet;
use dezky_flags::openfeature::Resolution;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::context::{Asker, Axes, Given};
use self::events::events;
use self::refusal::Refusal;
use crate::app::AppState;
use crate::http::body;
use crate::http::parameters::{Name, Parameters};
use crate::http::problem::Problem;

/// The maximum size of an evaluation's body, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;
/// The parameters with which a client repeats what a change notice told it. The tag makes them
/// unnecessary.
const FETCH_PARAMETERS: [&str; 2] = ["flagConfigEtag", "flagConfigLastModified"];
/// The idle time after which a client may close its event stream.
const INACTIVITY_SECONDS: u32 = 120;

/// The routes. Their errors have the protocol's form.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/ofrep/v1/evaluate/flags", post(evaluate_all))
        .route("/ofrep/v1/evaluate/flags/{key}", post(evaluate))
        .route("/ofrep/v1/events", get(events))
}

/// A flag's answer.
#[derive(Serialize)]
struct Told<'a> {
    key: &'a str,
    #[serde(flatten)]
    resolution: Resolution,
}

/// A flag's place in the answer of all flags.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Success(Told<'a>),
    Failure(Map<String, Value>),
}

/// The answer of all flags.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct All<'a> {
    flags: Vec<Item<'a>>,
    metadata: Value,
    event_streams: Value,
}

/// `POST /ofrep/v1/evaluate/flags/{key}`: one flag.
async fn evaluate(
    State(state): State<AppState>,
    name: Result<Name, Problem>,
    parameters: Result<Parameters, Problem>,
    request: Request,
) -> Response {
    // A name that is not UTF-8 names no flag.
    let key = name.map_or_else(|_| String::new(), |Name(key)| key);
    match decide(&state, &key, parameters, request).await {
        Ok(resolution) => Json(Told { key: &key, resolution }).into_response(),
        Err(refusal) => refusal.answer(Some(&key)),
    }
}

async fn decide(
    state: &AppState,
    key: &str,
    parameters: Result<Parameters, Problem>,
    request: Request,
) -> Result<Resolution, Refusal> {
    parameters?.only(&[])?;
    let (given, _) = read(request).await?;
    let flags = state.platform.live.current();
    let decision = match fill_in(state, &given, || asks_whether_active(&flags, Some(key))).await {
        Ok(axes) => axes.decide(&flags, key, &Refusal::targeting_key_missing())?,
        // A flag that is off can be decided without the store.
        Err(refusal) => Axes::without_directory(&given).decide(&flags, key, &refusal)?,
    };
    Resolution::of_live(&flags, key, decision).ok_or_else(Refusal::flag_not_found)
}

/// `POST /ofrep/v1/evaluate/flags`: all of them, from one snapshot.
async fn evaluate_all(
    State(state): State<AppState>,
    parameters: Result<Parameters, Problem>,
    request: Request,
) -> Response {
    match decide_all(&state, parameters, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.answer(None),
    }
}

/// While the store is away a request that needs it is refused as a whole, so that clients keep
/// the answers that they have.
async fn decide_all(
    state: &AppState,
    parameters: Result<Parameters, Problem>,
    request: Request,
) -> Result<Response, Refusal> {
    parameters?.only(&FETCH_PARAMETERS)?;
    let (given, headers) = read(request).await?;
    let flags = state.platform.live.current();
    let axes = fill_in(state, &given, || asks_whether_active(&flags, None)).await?;
    if !axes.is_whole() {
        // Without a tag, which would not reflect the missing members.
        return Ok(everything(&flags, &axes));
    }
    let tag = tag::tag(&state.flag_digest, &flags, &axes);
    Ok(unless_known(&headers, tag, || everything(&flags, &axes)))
}

/// The answer with its tag, or 304 without computing it.
fn unless_known(headers: &HeaderMap, tag: String, answer: impl FnOnce() -> Response) -> Response {
    let is_known = tag::is_known(headers, &tag);
    let response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { answer() };
    ([(header::ETAG, tag)], response).into_response()
}

fn everything(flags: &LiveSet, axes: &Axes) -> Response {
    let told = |key, decision| {
        Some(Item::Success(Told { key, resolution: Resolution::of_live(flags, key, decision)? }))
    };
    let context = axes.context();
    let told = if axes.is_whole() {
        flags.evaluate_all(&context).filter_map(|(key, decision)| told(key, decision)).collect()
    } else {
        let decide = |key| match axes.decide(flags, key, &Refusal::targeting_key_missing()) {
            Ok(decision) => told(key, decision),
            Err(refusal) => Some(Item::Failure(refusal.of_flag(key))),
        };
        flags.set().evaluate_all(&context).filter_map(|(key, _)| decide(key)).collect()
    };
    Json(All {
        flags: told,
        metadata: json!({ "revision": flags.revision() }),
        // A relative URI, because the server does not know its public name.
        event_streams: json!([{
            "type": "sse",
            "endpoint": { "requestUri": "/ofrep/v1/events" },
            "inactivityDelaySec": INACTIVITY_SECONDS,
        }]),
    })
    .into_response()
}

async fn read(request: Request) -> Result<(Given, HeaderMap), Refusal> {
    let (parts, body) = request.into_parts();
    body::check_not_packed(&parts.headers)?;
    let body = body::read(body, &parts.headers, MAX_BODY_BYTES).await?;
    Ok((Given::parse(&body)?, parts.headers))
}

/// Completes the context from the directory, which is queried only if something is missing or
/// needed: a request that states everything is answered while the store is down.
async fn fill_in(
    state: &AppState,
    given: &Given,
    asks_whether_active: impl FnOnce() -> bool,
) -> Result<Axes, Refusal> {
    let asker = Asker::Operator;
    if given.targeting_key.is_empty() && matches!(asker, Asker::Operator) {
        return Ok(Axes::without_directory(given));
    }
    let known = if asker.needs_directory(given) || asks_whether_active() {
        state.platform.subject_of(TenantKey::Id(&given.targeting_key)).await?
    } else {
        None
    };
    let known = known.as_ref().map(|subject| subject.context(None));
    context::merge(given, asker, known)
}

/// Whether the flag, or any flag without a key, requires an active tenant.
fn asks_whether_active(flags: &Arc<LiveSet>, key: Option<&str>) -> bool {
    let mut flags = flags.snapshot().flags.iter();
    flags.any(|flag| flag.options.require_active_tenant && key.is_none_or(|key| key == flag.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_made() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, "\"1-2-3-4\"".parse().unwrap());
        let known = unless_known(&headers, "\"1-2-3-4\"".into(), || panic!("evaluated"));
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(known.headers()[header::ETAG], "\"1-2-3-4\"");
        let made = unless_known(&headers, "\"1-2-3-5\"".into(), || "all".into_response());
        assert_eq!(made.status(), StatusCode::OK);
        assert_eq!(made.headers()[header::ETAG], "\"1-2-3-5\"");
    }
}
