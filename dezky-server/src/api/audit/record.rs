//! `POST /audit`: events of the platform's own services.

use std::borrow::Cow;
use std::net::SocketAddr;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use dezky_core::directory::check_slug;
use dezky_core::{
    Actor, ActorType, AppendOutcome, Error, ErrorKind, Metadata, NewEvent, NewMetadata, Outcome,
    PLATFORM_SOURCE, SealedEvent, Timestamp,
};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::{AppState, MAX_RECORD_BYTES};
use crate::http::body;
use crate::http::client_address::client_address;
use crate::http::parameters::Parameters;
use crate::http::problem::Problem;

/// The maximum number of events in a request.
const MAX_EVENTS: usize = 1_000;
/// The members that a caller may set under `_dezky`; the log sets the others.
const ANNOTATIONS: [&str; 4] = ["requestId", "userAgent", "before", "after"];
/// The maximum length of each text annotation, in bytes.
const MAX_ANNOTATION_BYTES: usize = 512;
/// Sources whose events come only from their connectors.
const CONNECTORS: [&str; 3] = ["authentik", "stalwart", "ocis"];
/// The prefixes of actions that the log and its sources record about themselves, under the
/// platform's own source.
const OPERATIONAL: [&str; 3] = ["log.", "ingest.", "audit.export"];

/// `POST /audit`: records an event, or all events of a list or none, in the log or, while the store
/// does not accept them, durably in the spool, as for other pushes. Responds with 201 if any event
/// is new in the log, 200 if none is, and 202 if they are spooled: they have ids, but no `seq` yet.
pub(super) async fn record(
    State(state): State<AppState>,
    parameters: Parameters,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    parameters.only(&[])?;
    body::check_json(&headers)?;
    let client = client_address(peer, &headers, &state.config.trusted_proxies);
    let (_permit, bytes) =
        body::read_within_budget(&state.bodies, client, &headers, body, MAX_RECORD_BYTES).await?;
    let events = sealed(&bytes, state.platform.intake.runtime().as_ref())?;
    let ids: Vec<Uuid> = events.iter().map(|event| event.event().id).collect();
    let (status, receipts) = match state.platform.log.append_or_spool(events, Vec::new()).await? {
        AppendOutcome::Appended(appended) if appended.appended() > 0 => {
            (StatusCode::CREATED, json!(appended.receipts))
        }
        AppendOutcome::Appended(appended) => (StatusCode::OK, json!(appended.receipts)),
        AppendOutcome::Spooled => {
            let receipts = ids.iter().map(|id| json!({ "status": "spooled", "id": id }));
            (StatusCode::ACCEPTED, receipts.collect())
        }
    };
    Ok((status, Json(json!({ "receipts": receipts }))))
}

/// Parses, seals and validates the events of a body.
fn sealed(bytes: &Bytes, runtime: &dyn dezky_core::Runtime) -> Result<Vec<SealedEvent>, Problem> {
    let is_list = bytes.trim_ascii_start().first() == Some(&b'[');
    let texts: Vec<&RawValue> = if is_list {
        serde_json::from_slice(bytes).map_err(|error| body::no_json(&error))?
    } else {
        vec![serde_json::from_slice(bytes).map_err(|error| body::no_json(&error))?]
    };
    if texts.is_empty() {
        return Err(Problem::field_invalid(format!(
            "the body has no events: send 1 to {MAX_EVENTS} at a time"
        )));
    }
    if texts.len() > MAX_EVENTS {
        let given = texts.len();
        let what = format!("the body has {given} events: send 1 to {MAX_EVENTS} at a time");
        return Err(Error::new(ErrorKind::TooLarge, what).into());
    }
    let event = |(index, text): (usize, &&RawValue)| {
        // A single event has no index.
        let at = if is_list { format!("event {index}: ") } else { String::new() };
        let text = without_lone_surrogates(text.get());
        let event = body::parse_part::<Given>(&text, &at)?.into_event();
        let event = event.map_err(|what| Problem::event_invalid(format!("{at}{what}")))?;
        let sealed = event.seal(runtime);
        match sealed.validate() {
            Ok(()) => Ok(sealed),
            Err(invalid) => Err(Problem::event_invalid(format!("{at}{invalid}"))),
        }
    };
    texts.iter().enumerate().map(event).collect()
}

/// Replaces each escaped lone surrogate with U+FFFD, as the log's normal form does. A parser would
/// reject the whole body because of one.
fn without_lone_surrogates(json: &str) -> Cow<'_, str> {
    let mut mended = String::new();
    let mut copied = 0;
    let mut at = 0;
    // In JSON, a backslash occurs only in strings.
    while let Some(found) = json[at..].find('\\').map(|found| at + found) {
        match (escaped_unit(json, found), escaped_unit(json, found + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => at = found + 12,
            (Some(0xD800..=0xDFFF), _) => {
                mended.push_str(&json[copied..found]);
                mended.push_str("\\ufffd");
                at = found + 6;
                copied = at;
            }
            (Some(_), _) => at = found + 6,
            (None, _) => at = found + 2,
        }
    }
    if copied == 0 {
        return json.into();
    }
    mended.push_str(&json[copied..]);
    mended.into()
}

/// The UTF-16 unit of the escape `\uXXXX` at `at`.
fn escaped_unit(json: &str, at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
    u16::from_str_radix(digits, 16).ok()
}

/// The event of a request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    id: Option<Uuid>,
    #[serde(default, deserialize_with = "time")]
    at: Option<Timestamp>,
    actor_type: Option<ActorType>,
    actor_id: Option<String>,
    actor_email: Option<String>,
    actor_ip: Option<String>,
    action: String,
    outcome: Option<Outcome>,
    resource_type: Option<String>,
    resource_id: Option<String>,
    resource_name: Option<String>,
    tenant_slug: Option<String>,
    partner_slug: Option<String>,
    source: Option<String>,
    external_id: Option<String>,
    metadata: Option<Metadata>,
    #[serde(default)]
    seq: Ours,
    #[serde(default)]
    hash: Ours,
    #[serde(default)]
    prev_hash: Ours,
    #[serde(default)]
    received_at: Ours,
    #[serde(default)]
    erased: Ours,
}

/// A time in any unambiguous spelling, as for all sources.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let expected = "expected an RFC 3339 time, such as 2026-11-21T20:12:21.123Z";
    Timestamp::read(&text).map(Some).ok_or_else(|| serde::de::Error::custom(expected))
}

/// A field that only the log sets; a request must leave it out.
#[derive(Default)]
struct Ours;

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("is set by the log: leave it out"))
    }
}

impl Given {
    fn into_event(self) -> Result<NewEvent, String> {
        let Self {
            seq: Ours, hash: Ours, prev_hash: Ours, received_at: Ours, erased: Ours, ..
        } = self;
        let source = self.source.unwrap_or_else(|| PLATFORM_SOURCE.to_owned());
        let system = source.split(':').next().unwrap_or_default();
        // Ignores case, so that no source looks like a connector's.
        if CONNECTORS.iter().any(|name| system.eq_ignore_ascii_case(name)) {
            return Err(format!(
                "source must not be {source}: only its connector records its events; leave it out for {PLATFORM_SOURCE}"
            ));
        }
        if system.eq_ignore_ascii_case(PLATFORM_SOURCE)
            && let Some(prefix) =
                OPERATIONAL.iter().find(|prefix| self.action.starts_with(**prefix))
        {
            return Err(format!(
                "action must not begin with {prefix} from {PLATFORM_SOURCE}: only the log records such events; choose another action, or name your source"
            ));
        }
        if let Some(ip) = &self.actor_ip
            && ip.parse::<std::net::IpAddr>().is_err()
        {
            return Err("actorIp must be an IP address, such as 203.0.113.7, or absent".into());
        }
        // An invalid slug would never match a tenant or partner. An e-mail address is not checked:
        // a failed login reports whatever somebody typed.
        for (name, value) in
            [("tenantSlug", &self.tenant_slug), ("partnerSlug", &self.partner_slug)]
        {
            let Some(value) = value else { continue };
            check_slug(name, value).map_err(|error| error.to_string())?;
        }
        let actor = Actor {
            kind: self.actor_type.unwrap_or(ActorType::Service),
            id: self.actor_id,
            email: self.actor_email,
            ip: self.actor_ip,
        };
        Ok(NewEvent {
            id: self.id,
            at: self.at,
            outcome: self.outcome.unwrap_or(Outcome::Success),
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            resource_name: self.resource_name,
            tenant_slug: self.tenant_slug,
            partner_slug: self.partner_slug,
            source,
            external_id: self.external_id,
            metadata: self
                .metadata
                .as_ref()
                .map_or_else(|| Ok(NewMetadata::default()), metadata)?,
            ..NewEvent::new(self.action, actor)
        })
    }
}

/// The caller's metadata, with only the allowed members of its `_dezky`.
fn metadata(given: &Metadata) -> Result<NewMetadata, String> {
    let Value::Object(mut members) = given.to_value() else {
        return Err("metadata must be an object".into());
    };
    let Some(own) = members.remove("_dezky") else {
        return Ok(NewMetadata::from_source(given.as_str()));
    };
    let allowed = ANNOTATIONS.join(", ");
    let Value::Object(own) = own else {
        return Err(format!("metadata._dezky must be an object of {allowed}, or absent"));
    };
    let mut metadata = NewMetadata::from_value(Value::Object(members));
    for (name, value) in own {
        let is_text = matches!(&*name, "requestId" | "userAgent");
        if !ANNOTATIONS.contains(&&*name) {
            let name: String = name.chars().take(64).collect();
            return Err(format!(
                "metadata._dezky.{name} is set by the log: leave it out, or put it outside of _dezky; allowed are {allowed}"
            ));
        }
        if is_text && value.as_str().is_none_or(|text| text.len() > MAX_ANNOTATION_BYTES) {
            return Err(format!(
                "metadata._dezky.{name} must be text of at most {MAX_ANNOTATION_BYTES} bytes"
            ));
        }
        metadata.annotate(&name, value);
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogates_are_replaced_and_nothing_else_is_touched() {
        for (json, mended) in [
            (r#"{"a":"\ud83d"}"#, r#"{"a":"\ufffd"}"#),
            (r#"{"a":"\uDE00\ud83d"}"#, r#"{"a":"\ufffd\ufffd"}"#),
            (r#"{"\ud83d":"\ud83dx"}"#, r#"{"\ufffd":"\ufffdx"}"#),
            (r#"["\ud83d\ud83d\ude00"]"#, r#"["\ufffd\ud83d\ude00"]"#),
        ] {
            assert_eq!(without_lone_surrogates(json), mended);
        }
        for same in [r#""\ud83d\ude00""#, r#""\\ud83d""#, r#""\u0000\n\"""#, "{}", r#""ü""#] {
            assert!(matches!(without_lone_surrogates(same), Cow::Borrowed(text) if text == same));
        }
    }
}
