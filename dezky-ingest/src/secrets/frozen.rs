//! Version 1 of the rule, for content keys only: a stored event must keep its key when the rule
//! learns more names, or drops one. **Frozen.**

use std::borrow::Cow;

use dezky_core::json::Value;

use super::{Cut, squash};

const REDACTED: &str = "[redacted]";

const SECRETS: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "privatekey",
    "accesskey",
    "signingkey",
    "authorization",
    "cookie",
    "sessionid",
];

const ARGUMENTS: [&str; 5] = ["code", "assertion", "samlresponse", "samlrequest", "tokenhint"];

/// The text of `value` without the secrets known to version 1, and without the `hidden` values.
pub(crate) fn clean(value: Value<'_>, hidden: Vec<Cut>) -> Cow<'_, str> {
    let mut cuts = hidden;
    for inner in value.inside() {
        for member in inner.members() {
            if is_secret(&member.name(), false) && !is_vacant(member.value()) {
                cuts.push(super::hide(member.value()));
            }
        }
    }
    for text in value.inside().filter(|inner| may_be_address(inner.raw())) {
        if let Some(clean) = text.string().and_then(|text| without_secrets(&text)) {
            let quoted = serde_json::Value::from(clean).to_string();
            cuts.push((text.start()..text.end(), quoted.into()));
        }
    }
    super::without(value, cuts)
}

fn is_secret(key: &str, is_argument: bool) -> bool {
    let key = squash(key);
    let ends = |names: &[&str]| names.iter().any(|name| key.ends_with(name));
    ends(&SECRETS) || is_argument && ends(&ARGUMENTS)
}

fn may_be_address(raw: &str) -> bool {
    raw.starts_with('"') && raw.contains(['?', '#', '\\'])
}

fn is_vacant(value: Value<'_>) -> bool {
    if let Some(text) = value.string() {
        return text.bytes().all(|b| b == b'*');
    }
    let holds_nothing = value.after() == value.index() + 1;
    matches!(value.raw(), "null" | "true" | "false")
        || ((value.is_object() || value.is_list()) && holds_nothing)
}

fn without_secrets(text: &str) -> Option<String> {
    let (head, arguments) = text.split_at(text.find(['?', '#'])? + 1);
    let mut found = false;
    let parts: Vec<_> = arguments
        .split('&')
        .map(|part| match secret_in(part) {
            Some(start) => {
                found = true;
                format!("{}{REDACTED}", &part[..start])
            }
            None => part.to_owned(),
        })
        .collect();
    found.then(|| format!("{head}{}", parts.join("&")))
}

/// The start of the secret in an argument, which a fragment may follow.
fn secret_in(part: &str) -> Option<usize> {
    let mut start = 0;
    for piece in part.split_inclusive(['?', '#']) {
        if let Some((name, secret)) = piece.split_once('=')
            && !secret.is_empty()
            && is_secret(name, true)
        {
            return Some(start + name.len() + 1);
        }
        start += piece.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use dezky_core::json::Doc;

    /// Content keys are hashes of these texts: they never change.
    #[test]
    fn what_keys_are_made_of_stays_as_it_was() {
        for (text, expected) in [
            (
                r#"{"hashed_token":"S","externalSessionId":"S","jwt":"J","tokens":["J"]}"#,
                r#"{"hashed_token":"[redacted]","externalSessionId":"[redacted]","jwt":"J","tokens":["J"]}"#,
            ),
            (
                r#"["/cb?code=S&next=a#id_token=S","https:\/\/u:p@x\/?token=S","/a;jsessionid=J","/?token=[redacted]"]"#,
                r#"["/cb?code=[redacted]&next=a#id_token=[redacted]","https://u:p@x/?token=[redacted]","/a;jsessionid=J","/?token=[redacted]"]"#,
            ),
        ] {
            let doc = Doc::parse(text).unwrap();
            assert_eq!(super::clean(doc.root(), Vec::new()), expected);
        }
    }
}
