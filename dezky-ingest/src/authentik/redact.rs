//! What must not be kept: taken out of an event before anything else looks at it.
//!
//! Authentik masks what it knows by name. What it leaves: secrets in the query of
//! a request, in older releases' differences of models, and the body of a mail,
//! which may hold a link that signs in.

use serde_json::{Map, Value};

pub(super) use crate::secrets::REDACTED;
use crate::secrets::{is_secret, squash, without_secrets};

/// Takes the secrets out of an event, or of what should have been one.
pub(crate) fn redact(value: &mut Value) {
    if let Value::Object(members) = value
        && is_mail(members)
        && let Some(body) = members.get_mut("context").and_then(|context| context.get_mut("body"))
    {
        *body = REDACTED.into();
    }
    redact_in(value, false);
}

/// Whether it is about a mail that was sent; one without an action may be.
fn is_mail(event: &Map<String, Value>) -> bool {
    event.get("action").and_then(Value::as_str).is_none_or(|action| squash(action) == "emailsent")
}

fn redact_in(value: &mut Value, is_arguments: bool) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                if is_secret(key, is_arguments) {
                    hide(value);
                } else {
                    redact_in(value, is_arguments || key == "args");
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redact_in(value, is_arguments)),
        Value::String(text) => {
            if let Some(clean) = without_secrets(text) {
                *text = clean;
            }
        }
        _ => {}
    }
}

/// Hides what stands under a secret's name. An object there describes something:
/// a token that was looked at, a field that was changed, of which the values go.
fn hide(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                if matches!(key.as_str(), "new_value" | "previous_value") {
                    hide_all(value);
                } else {
                    redact_in(value, false);
                }
            }
        }
        other => hide_all(other),
    }
}

fn hide_all(value: &mut Value) {
    let is_vacant = match value {
        Value::Null | Value::Bool(_) => true,
        Value::String(text) => text.bytes().all(|b| b == b'*'),
        Value::Array(values) => values.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Number(_) => false,
    };
    if !is_vacant {
        *value = REDACTED.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_go_and_their_descriptions_stay() {
        let mut event = json!({
            "action": "model_updated",
            "context": {
                "token": {"pk": "a", "name": "api-token", "model_name": "token"},
                "diff": {
                    "client_secret": {"previous_value": "old-one", "new_value": "new-one"},
                    "name": {"previous_value": "a", "new_value": "b"},
                    "password": {"previous_value": "********", "new_value": null},
                },
                "http_request": {
                    "args": {"code": "oauth-code", "itoken": "inv", "next": "/x?a=1&flow_token=abc"},
                    "path": "/if/flow/",
                },
                "code": 7,
                "api_key": ["k1"],
            },
        });
        redact(&mut event);
        assert_eq!(
            event["context"],
            json!({
                "token": {"pk": "a", "name": "api-token", "model_name": "token"},
                "diff": {
                    "client_secret": {"previous_value": REDACTED, "new_value": REDACTED},
                    "name": {"previous_value": "a", "new_value": "b"},
                    "password": {"previous_value": "********", "new_value": null},
                },
                "http_request": {
                    "args": {
                        "code": REDACTED,
                        "itoken": REDACTED,
                        "next": "/x?a=1&flow_token=[redacted]",
                    },
                    "path": "/if/flow/",
                },
                "code": 7,
                "api_key": REDACTED,
            })
        );
    }

    #[test]
    fn a_mail_that_was_sent_keeps_its_body_to_itself() {
        let mut mail = json!({"action": "email_sent", "context": {"subject": "s", "body": "link"}});
        redact(&mut mail);
        assert_eq!(mail["context"], json!({"subject": "s", "body": REDACTED}));
        let mut other = json!({"action": "custom_x", "context": {"body": "text"}});
        redact(&mut other);
        assert_eq!(other["context"]["body"], "text");
    }
}
