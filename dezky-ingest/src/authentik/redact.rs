//! Secrets, removed from an event before anything else reads it.
//!
//! Authentik masks members that it knows by name. It leaves secrets in the query of a request, in
//! the model differences of older releases, and in the body of a mail, which may hold a sign-in
//! link.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::proto::pk;
pub(super) use crate::secrets::REDACTED;
use crate::secrets::{is_secret, squash, without_secrets};

/// The text before the key in the address of an invitation.
const INVITATIONS: &str = "/invitations/";

/// Removes the secrets from an event or a malformed item.
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

/// Replaces the key of an invitation, which is its token, with a digest: anyone who has it can
/// enrol. Events about the same invitation still have the same digest.
pub(super) fn hide_invitations(event: &mut Map<String, Value>) {
    let mut tokens = BTreeSet::new();
    event.iter().for_each(|(name, value)| find_invitations(name, value, &mut tokens));
    let digest = |token: &String| {
        let mut digest = hex::encode(Sha256::digest(token));
        digest.truncate(32);
        Some((uuid(token.as_bytes())?, format!("sha256:{digest}")))
    };
    let digests: HashMap<u128, String> = tokens.iter().filter_map(digest).collect();
    if !digests.is_empty() {
        event.values_mut().for_each(|value| replace(value, &digests));
    }
}

/// Finds the keys of invitations, as UUIDs with dashes.
fn find_invitations(name: &str, value: &Value, tokens: &mut BTreeSet<String>) {
    let is_uuid = |key: &String| uuid(key.as_bytes()).is_some();
    let key = |value: &Value| value.as_str().and_then(|_| pk(value)).filter(is_uuid);
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
            // The API's path: `/stages/invitation/invitations/<key>/`.
            for part in text.split(INVITATIONS).skip(1) {
                let end = part.find(|c: char| c != '-' && !c.is_ascii_hexdigit());
                tokens.extend(key(&part[..end.unwrap_or(part.len())].into()));
            }
        }
        _ => {}
    }
}

/// A UUID with or without dashes, in any case.
fn uuid(text: &[u8]) -> Option<u128> {
    let has_dashes = text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text[*at] == b'-');
    if !has_dashes && text.len() != 32 {
        return None;
    }
    let is_digit = |(at, _): &(usize, &u8)| !(has_dashes && matches!(at, 8 | 13 | 18 | 23));
    text.iter().enumerate().filter(is_digit).try_fold(0, |uuid, (_, byte)| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(uuid << 4 | u128::from(digit))
    })
}

/// Replaces UUIDs with their digests anywhere in texts.
fn replace(value: &mut Value, digests: &HashMap<u128, String>) {
    // A UUID that is the whole text may have dashes anywhere.
    let alone = value.as_str().and_then(|_| digests.get(&uuid(pk(value)?.as_bytes())?));
    if let Some(digest) = alone {
        *value = digest.as_str().into();
        return;
    }
    match value {
        Value::Object(members) => members.values_mut().for_each(|value| replace(value, digests)),
        Value::Array(values) => values.iter_mut().for_each(|value| replace(value, digests)),
        Value::String(text) => {
            if let Some(replaced) = replaced(text, digests) {
                *text = replaced;
            }
        }
        _ => {}
    }
}

/// The text with digests in place of the UUIDs; `None` if it has none of them.
fn replaced(text: &str, digests: &HashMap<u128, String>) -> Option<String> {
    let digest_at = |at: usize| {
        let found = |len: usize| digests.get(&uuid(text.as_bytes().get(at..at + len)?)?);
        [36, 32].into_iter().find_map(|len| Some((len, found(len)?)))
    };
    let (mut out, mut done, mut at) = (String::new(), 0, 0);
    while at < text.len() {
        let Some((len, digest)) = digest_at(at) else {
            at += 1;
            continue;
        };
        out.push_str(&text[done..at]);
        out.push_str(digest);
        at += len;
        done = at;
    }
    (done > 0).then(|| out + &text[done..])
}

/// Whether the event is about a sent mail; one without an action may be.
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

/// Hides the value of a secret's name. An object there describes something, such as a viewed token
/// or a changed field; of that, the values are hidden.
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
