//! Feature flags: read, change, preview and evaluate.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use dezky_core::{Error, ErrorKind, Timestamp};
use dezky_flags::{
    Edit, Flag, FlagPatch, MAX_SCOPE_VALUE_BYTES, NewFlag, StaleConfig, Updated, decides_alike,
    stale_flags,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::AppState;
use crate::auth::Caller;
use crate::http::body::{Document, MaybeDocument, created};
use crate::http::parameters::{Name, Parameters};
use crate::http::problem::Problem;
use crate::render::decisions::{explained, previewed};

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/flags", get(list).post(create))
        .route("/flags/evaluate", post(evaluate))
        .route("/flags/{key}", get(read).patch(update).delete(remove))
        .route("/flags/{key}/kill", post(kill))
        .route("/flags/{key}/preview", post(preview))
}

/// `GET /flags`: all flags, by key, and in `invalid` those that can't be read, if any.
/// `?report=true` adds how often this server has evaluated each, and which are stale.
async fn list(
    State(state): State<AppState>,
    parameters: Parameters,
) -> Result<Json<Value>, Problem> {
    let with_report = parameters.switch("report")?;
    let snapshot = state.platform.flags.store().snapshot().await?;
    let mut answer = json!({ "flags": snapshot.flags });
    if !snapshot.invalid.is_empty() {
        answer["invalid"] = json!(snapshot.invalid);
    }
    if with_report {
        let (usage, now) = (state.platform.live.usage(), state.platform.intake.runtime().now());
        let stale = stale_flags(&snapshot, usage.as_ref(), now, &StaleConfig::default());
        answer["usage"] = json!(usage);
        answer["stale"] = json!(stale);
    }
    Ok(Json(answer))
}

/// `GET /flags/{key}`.
async fn read(State(state): State<AppState>, Name(key): Name) -> Result<Response, Problem> {
    let flag = state.platform.flags.get(&key).await?.ok_or_else(unknown_flag)?;
    Ok(answer(&flag))
}

/// `POST /flags`.
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Document(body): Document<Value>,
) -> Result<Response, Problem> {
    let new = NewFlag::from_json(&body)?;
    let flag = state.platform.flags.create(new, &caller.into()).await?;
    Ok(created(&format!("/flags/{}", flag.key), answer(&flag)))
}

/// `PATCH /flags/{key}`: changes the flag, with `If-Match` only if that is its version.
///
/// If the change can switch the flag on or off for tenants, the response has a member `flipped`:
/// the tenants whose value differs between the two versions, in the query's `environment`.
async fn update(
    State(state): State<AppState>,
    Name(key): Name,
    parameters: Parameters,
    headers: HeaderMap,
    caller: Caller,
    Document(body): Document<Value>,
) -> Result<Response, Problem> {
    parameters.only(&["environment"])?;
    let environment = environment(parameters.get("environment"))?;
    let patch = FlagPatch::from_json(&body)?;
    // The kill switch works whatever the flag's version.
    let if_version = if patch.is_kill() { None } else { if_match(&headers)? };
    let edit = Edit { if_version, ..caller.into() };
    match state.platform.flags.update_and_compare(&key, &patch, &edit).await {
        Ok(updated) => {
            let mut document = json!(updated.after);
            if let Some(flipped) = flipped(&state, &updated, environment).await {
                document["flipped"] = flipped;
            }
            Ok(tagged(updated.after.version, document))
        }
        Err(error) => Err(stale(&state, &key, error).await),
    }
}

/// The tenants for which a committed change switched the flag on or off; `null` if the directory
/// can't be read, `None` if the change cannot affect any tenant.
async fn flipped(state: &AppState, updated: &Updated, environment: Option<&str>) -> Option<Value> {
    let (before, after) = (Some(&updated.before), Some(&updated.after));
    if decides_alike(before, after) {
        return None;
    }
    match state.platform.preview(before, after, environment).await {
        Ok(preview) => Some(previewed(&preview, environment)),
        Err(error) => {
            // The change is already committed, so the request does not fail.
            tracing::warn!(
                code = error.code(),
                "can't determine which tenants a flag's change affects"
            );
            Some(Value::Null)
        }
    }
}

/// `POST /flags/{key}/preview`: the tenants for which a `PATCH` with the same body would switch the
/// flag on or off; for a flag that does not exist yet, a `POST /flags`. Changes nothing.
async fn preview(
    State(state): State<AppState>,
    Name(key): Name,
    headers: HeaderMap,
    Document(mut body): Document<Value>,
) -> Result<Response, Problem> {
    let environment_given = match body.as_object_mut().and_then(|body| body.remove("environment")) {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name),
        Some(_) => return Err(Problem::field_invalid("environment must be text, or absent")),
    };
    let environment = environment(environment_given.as_deref())?;
    let expected = if_match(&headers)?;
    let before = state.platform.flags.get(&key).await?;
    let after = match &before {
        Some(flag) if expected.is_some_and(|version| version != flag.version) => {
            let error = Error::new(
                ErrorKind::VersionMismatch,
                format!("the flag {key} was changed since it was read: read it again"),
            );
            return Err(Problem::from(error).with("current", json!(flag)));
        }
        Some(flag) => flag.patched(&FlagPatch::from_json(&body)?)?,
        None if expected.is_some() => return Err(unknown_flag()),
        None => made(&key, body)?,
    };
    let preview = state.platform.preview(before.as_ref(), Some(&after), environment).await?;
    let answer = previewed(&preview, environment);
    Ok(match before {
        Some(flag) => tagged(flag.version, answer),
        None => Json(answer).into_response(),
    })
}

/// The flag that a `POST /flags` with this body would create. The body may omit the key.
fn made(key: &str, mut body: Value) -> Result<Flag, Problem> {
    if let Some(members) = body.as_object_mut() {
        let given = members.entry("key").or_insert_with(|| key.into());
        if given.as_str().is_some_and(|given| given != key) {
            return Err(Problem::field_invalid("key must be the key in the path, or absent"));
        }
    }
    Ok(Flag::new(NewFlag::from_json(&body)?, Timestamp::MIN)?)
}

/// The name of an environment, bounded as in a scope.
fn environment(name: Option<&str>) -> Result<Option<&str>, Problem> {
    if name.is_some_and(|name| name.len() > MAX_SCOPE_VALUE_BYTES) {
        return Err(Problem::field_invalid("environment must be text of at most 128 bytes"));
    }
    Ok(name)
}

/// `DELETE /flags/{key}`: removes the flag, with `If-Match` only if that is its version.
async fn remove(
    State(state): State<AppState>,
    Name(key): Name,
    headers: HeaderMap,
    caller: Caller,
) -> Result<StatusCode, Problem> {
    let edit = Edit { if_version: if_match(&headers)?, ..caller.into() };
    match state.platform.flags.remove(&key, &edit).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(stale(&state, &key, error).await),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kill {
    note: Option<String>,
}

/// `POST /flags/{key}/kill`: switches the flag off for everybody, whatever its version.
async fn kill(
    State(state): State<AppState>,
    Name(key): Name,
    caller: Caller,
    MaybeDocument(Kill { note }): MaybeDocument<Kill>,
) -> Result<Response, Problem> {
    let flag = state.platform.flags.kill(&key, &Edit { note, ..Edit::from(caller) }).await?;
    Ok(answer(&flag))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Question {
    tenant_slug: String,
    environment: Option<String>,
}

/// `POST /flags/evaluate`: every flag for one tenant, with reasons if `?explain=true`.
async fn evaluate(
    State(state): State<AppState>,
    parameters: Parameters,
    Document(question): Document<Question>,
) -> Result<Json<Value>, Problem> {
    let explain = parameters.switch("explain")?;
    let subject = state
        .platform
        .subject(&question.tenant_slug)
        .await?
        .ok_or_else(|| Problem::not_found("tenantSlug: there is no such tenant"))?;
    let flags = state.platform.live.current();
    let context = subject.context(question.environment.as_deref());
    if explain {
        let answers = flags.snapshot().explain_all(&context);
        for (key, why) in &answers {
            flags.count(key, why.decision.value);
        }
        return Ok(Json(explained(&answers)));
    }
    let answers = flags.evaluate_all(&context);
    let values: Map<_, _> =
        answers.map(|(key, decision)| (key.to_owned(), decision.value.into())).collect();
    Ok(Json(values.into()))
}

fn answer(flag: &Flag) -> Response {
    tagged(flag.version, json!(flag))
}

/// A response with the flag's version as `ETag`.
fn tagged(version: u64, document: Value) -> Response {
    let mut response = Json(document).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The version in `If-Match`, `3` or `"3"`; `None` for `*` or without the header.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let mut values = headers.get_all(header::IF_MATCH).iter();
    let (Some(value), rest) = (values.next(), values.next()) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" && rest.is_none() {
        return Ok(None);
    }
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    // `parse` would accept a sign.
    let is_number = bare.bytes().all(|byte| byte.is_ascii_digit());
    match bare.parse() {
        Ok(version) if is_number && rest.is_none() => Ok(Some(version)),
        _ => Err(Problem::header_invalid("If-Match must be the flag's version, such as \"3\"")),
    }
}

/// Converts an edit's error; `version_mismatch` carries the current flag.
async fn stale(state: &AppState, key: &str, error: dezky_core::Error) -> Problem {
    let is_stale = error.kind() == ErrorKind::VersionMismatch;
    let problem = Problem::from(error);
    if !is_stale {
        return problem;
    }
    match state.platform.flags.get(key).await {
        Ok(Some(flag)) => problem.with("current", json!(flag)),
        _ => problem,
    }
}

fn unknown_flag() -> Problem {
    Problem::not_found("there is no such flag: GET /flags lists the flags")
}
