//! What must not be kept: taken out of an event before anything else looks at it.
//!
//! Authentik masks what it knows by name. What it leaves: secrets in the query of
//! a request, in older releases' differences of models, and the body of a mail,
//! which may hold a link that signs in.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::proto::pk;
pub(super) use crate::secrets::REDACTED;
use crate::secrets::{is_secret, squash, without_secrets};

/// How many keys of invitations in one event are replaced by their digests.
const MAX_INVITATIONS: usize = 16;
/// Before the key in the address of an invitation.
const INVITATIONS: &str = "/invitations/";

/// Takes the secrets out of an event, or of what should have been one.
pub(crate) fn redact(value: &mut Value) {
    if let Value::Object(members) = value
        && is_mail(members)
        && let Some(body) = members.get_mut("context").and_then(|context| context.get_mut("body"))
    {
        *body = REDACTED.into();
    }
    if let Value::Object(members) = value {
        hide_invitations(members);
    }
    redact_in(value, false);
}

/// Puts a digest where the key of an invitation stands, which is its token: whoever has
/// it can enrol. Events about the same invitation still have the same digest. In an event
/// with more than [`MAX_INVITATIONS`] keys the others, and addresses of invitations, are
/// hidden as a whole, so that the work stays linear in the event.
pub(super) fn hide_invitations(event: &mut Map<String, Value>) {
    let mut tokens = BTreeSet::new();
    event.iter().for_each(|(name, value)| find_invitations(name, value, &mut tokens));
    if tokens.len() > MAX_INVITATIONS {
        event.values_mut().for_each(|value| hide_many(value, &tokens));
        // Those that are left may stand within other texts.
        tokens = tokens.into_iter().take(MAX_INVITATIONS).collect();
    }
    for token in tokens {
        let mut digest = hex::encode(Sha256::digest(&token));
        digest.truncate(32);
        let (digest, hex) = (format!("sha256:{digest}"), token.replace('-', ""));
        event.values_mut().for_each(|value| replace(value, &[&token, &hex], &digest));
    }
}

/// Hides texts that are one of many keys of invitations or hold the address of one.
fn hide_many(value: &mut Value, tokens: &BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(|value| hide_many(value, tokens));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| hide_many(value, tokens)),
        Value::String(text) if text.contains(INVITATIONS) => *value = REDACTED.into(),
        Value::String(_) if pk(value).is_some_and(|key| tokens.contains(&key)) => {
            *value = REDACTED.into();
        }
        _ => {}
    }
}

/// Finds the keys of invitations, as UUIDs with dashes.
fn find_invitations(name: &str, value: &Value, tokens: &mut BTreeSet<String>) {
    let key = |value: &Value| value.as_str().and_then(|_| pk(value)).filter(|key| is_uuid(key));
    match value {
        Value::Object(members) => {
            let model = members.get("model_name").and_then(Value::as_str);
            if model.is_some_and(|model| squash(model) == "invitation") {
                tokens.extend(members.get("pk").and_then(key));
            }
            members.iter().for_each(|(name, value)| find_invitations(name, value, tokens));
        }
        Value::Array(values) => {
            for value in values {
                find_invitations(name, value, tokens);
            }
        }
        Value::String(_) if matches!(&*squash(name), "invitationuuid" | "inviteuuid") => {
            tokens.extend(key(value));
        }
        Value::String(text) => {
            // Of the API: `/stages/invitation/invitations/<key>/`.
            for part in text.split(INVITATIONS).skip(1) {
                let end = part.find(|c: char| c != '-' && !c.is_ascii_hexdigit());
                tokens.extend(key(&part[..end.unwrap_or(part.len())].into()));
            }
        }
        _ => {}
    }
}

fn is_uuid(text: &str) -> bool {
    let is_in_place = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(is_in_place)
}

/// Replaces texts that are ASCII in lower case wherever they stand, whatever their case.
fn replace(value: &mut Value, these: &[&str], by: &str) {
    match value {
        Value::Object(members) => members.values_mut().for_each(|value| replace(value, these, by)),
        Value::Array(values) => values.iter_mut().for_each(|value| replace(value, these, by)),
        Value::String(text) => {
            for this in these {
                if let Some(replaced) = replaced(text, this, by) {
                    *text = replaced;
                }
            }
        }
        _ => {}
    }
}

/// The text with `by` in place of each `this`; `None` if it has none. What was put in is
/// not looked at again.
fn replaced(text: &str, this: &str, by: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let (mut out, mut done) = (String::new(), 0);
    // Without an end if there were nothing to look for.
    while !this.is_empty()
        && let Some(found) = lower[done..].find(this)
    {
        out.push_str(&text[done..done + found]);
        out.push_str(by);
        done += found + this.len();
    }
    (done > 0).then(|| out + &text[done..])
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
