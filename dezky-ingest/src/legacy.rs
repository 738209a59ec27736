//! Events of the three systems as another program stored them: their external ids here, and their
//! content without secrets.
//!
//! For importing the log of a program that read the same systems before, so that an event that is
//! sent or read again is a duplicate.

use dezky_core::Timestamp;
use serde_json::{Map, Value};

use crate::{authentik, ocis, stalwart};

/// Members under which programs store the event that they received.
const WRAPPERS: [&str; 6] = ["raw", "payload", "event", "original", "rawEvent", "rawPayload"];

/// An event as another program stored it.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacyEvent {
    /// The event's external id, as the source here would make it; `None` if the stored object does
    /// not determine it.
    pub external_id: Option<String>,
    /// The stored object, without the secrets that the source here removes.
    pub said: Map<String, Value>,
}

/// Reads an event of `source` that another program stored. Never fails.
///
/// - Authentik: the id is `pk`.
/// - Stalwart: the id or the content key of the event as it was sent, if all of it was stored, with
///   its `type` and `createdAt`.
/// - oCIS: the `id` of the line, which only some have. Others are identified by their position in
///   the file, which was not stored.
/// - Other sources: values of secrets' names are removed, and there is no id.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_ingest::legacy::read;
/// let said = serde_json::json!({
///     "raw": {"id": "178696080012035", "createdAt": "2026-08-17T10:00:00Z", "type": "auth.failed",
///             "data": {"accountName": "alice@example.com", "contents": "a1 LOGIN alice secret"}},
/// });
/// let kept = read("stalwart", said.as_object().unwrap().clone(), Timestamp::MIN);
/// assert!(kept.external_id.unwrap().starts_with("sw1:"));
/// assert_eq!(kept.said["raw"]["data"].as_object().unwrap().len(), 1);
/// ```
pub fn read(source: &str, said: Map<String, Value>, received_at: Timestamp) -> LegacyEvent {
    match source.split(':').next() {
        Some(authentik::SOURCE) => {
            let external_id =
                received(&said, &["pk"]).and_then(|event| authentik::pk(&event["pk"]));
            LegacyEvent { external_id, said: redacted(said) }
        }
        Some(stalwart::SOURCE) => {
            let event = received(&said, &["type", "createdAt"]);
            let external_id = event.and_then(|event| {
                let body = Value::from(vec![Value::from(event.clone())]).to_string();
                let decoded = stalwart::decode(source, body.as_bytes(), None, received_at);
                decoded.events.into_iter().next()?.event.external_id
            });
            let is_typed = event.is_some();
            let text = stalwart::without_secrets(&Value::from(said).to_string(), is_typed);
            LegacyEvent { external_id, said: object(&text) }
        }
        Some(ocis::SYSTEM) => {
            let external_id = received(&said, &["type", "id"]).and_then(own_id);
            let text = ocis::without_secrets(&Value::from(said).to_string());
            LegacyEvent { external_id, said: object(&text) }
        }
        _ => LegacyEvent { external_id: None, said: redacted(said) },
    }
}

/// The event as received: the stored object, or a part of it that has these members.
fn received<'s>(said: &'s Map<String, Value>, members: &[&str]) -> Option<&'s Map<String, Value>> {
    let has_all =
        |object: &&Map<String, Value>| members.iter().all(|m| object.get(*m).is_some_and(is_said));
    let wrapped = WRAPPERS.iter().filter_map(|name| said.get(*name)?.as_object());
    std::iter::once(said).chain(wrapped).find(has_all)
}

fn is_said(value: &Value) -> bool {
    value.is_number() || value.as_str().is_some_and(|text| !text.is_empty())
}

/// The `id` of a line of oCIS that has a type, within the bounds of an identity.
fn own_id(line: &Map<String, Value>) -> Option<String> {
    // A genuine line has an action, and its id does not identify it.
    let id = line.get("id")?.as_str().filter(|_| !line.contains_key("Action"))?;
    (id.len() <= 512 && !id.contains('\0')).then(|| id.to_owned())
}

fn redacted(said: Map<String, Value>) -> Map<String, Value> {
    let mut value = Value::from(said);
    authentik::redact(&mut value);
    match value {
        Value::Object(said) => said,
        _ => Map::new(),
    }
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(source: &str, said: &Value) -> LegacyEvent {
        super::read(source, said.as_object().unwrap().clone(), Timestamp::MIN)
    }

    /// The same event as received by its webhook.
    #[test]
    fn an_event_of_stalwart_gets_the_key_of_its_webhook() {
        let event = json!({
            "id": "178696080012035", "createdAt": "2026-08-17T10:00:00Z", "type": "auth.failed",
            "data": {"remoteIp": "203.0.113.7", "accountName": "alice@example.com"},
        });
        let body = json!({ "events": [event] }).to_string();
        let sent = stalwart::decode("stalwart", body.as_bytes(), None, Timestamp::MIN);
        let expected = sent.events[0].event.external_id.clone();
        for said in
            [event.clone(), json!({"raw": event.clone()}), json!({"x": 1, "payload": event})]
        {
            assert_eq!(read("stalwart", &said).external_id, expected, "{said}");
        }
        // Its data alone has neither time nor type.
        assert_eq!(read("stalwart", &json!({"accountName": "a@b"})).external_id, None);
        let snowflake =
            json!({"id": "184467440737095516", "createdAt": "2026-08-17T10:00:00Z", "type": "x"});
        assert_eq!(read("stalwart", &snowflake).external_id.unwrap(), "184467440737095516");
    }

    #[test]
    fn ids_of_the_others() {
        let pk = json!({"pk": "0193E0A47C0070008000000000000001"});
        let id = read("authentik:eu2", &pk).external_id.unwrap();
        assert_eq!(id, "0193e0a4-7c00-7000-8000-000000000001");
        assert_eq!(read("ocis", &json!({"type": "x", "id": "e-1"})).external_id.unwrap(), "e-1");
        for genuine in [json!({"Action": "file_create", "type": "x", "id": "1"}), json!({"a": 1})] {
            assert_eq!(read("ocis", &genuine).external_id, None);
        }
        assert_eq!(read("platform-api", &json!({"id": "1"})).external_id, None);
    }

    #[test]
    fn secrets_go_as_at_their_source() {
        for (source, said, path) in [
            (
                "stalwart",
                json!({"raw": {"type": "x", "createdAt": "y", "contents": "S3CRET"}}),
                "/raw",
            ),
            ("stalwart", json!({"details": "S3CRET", "a": 1}), "/a"),
            ("ocis", json!({"Action": "x", "ShareToken": "S3CRET-S3CRET", "a": 1}), "/a"),
            ("authentik", json!({"context": {"password": "S3CRET"}}), "/context"),
            ("platform-api", json!({"before": {"apiKey": "S3CRET"}}), "/before"),
        ] {
            let kept = Value::from(read(source, &said).said);
            assert!(!kept.to_string().contains("S3CRET"), "{source}: {kept}");
            assert!(kept.pointer(path).is_some(), "{source}: {kept}");
        }
    }
}
