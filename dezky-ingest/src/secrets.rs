//! Secrets in the text of sources, recognised by name and in addresses: one rule for all
//! sources.

mod frozen;

use std::borrow::Cow;
use std::ops::Range;

use dezky_core::json::{Doc, Value};

pub(crate) use self::frozen::clean as clean_for_key;

/// The depth to which addresses nested in arguments are examined.
const MAX_NESTED: usize = 2;

/// Replacement of a secret.
pub(crate) const REDACTED: &str = "[redacted]";
/// The replacement as a JSON string.
const QUOTED: &str = "\"[redacted]\"";
const _: () = assert!(QUOTED.len() == REDACTED.len() + 2);

/// Suffixes of names of secrets, in lower case and without separators.
const SECRETS: [&str; 17] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "apikey",
    "privatekey",
    "accesskey",
    "signingkey",
    "authorization",
    "cookie",
    "sessionid",
    "jwt",
    "recoverycodes",
    "backupcodes",
    "connectionstring",
];

/// Exceptions with such a suffix: a token's hash, and the ids by which identity providers name
/// a session in their own logs, grant no access.
const IDENTIFIERS: [&str; 3] = ["hashedtoken", "externalsessionid", "rootsessionid"];

/// Suffixes of names of secrets only among a request's arguments, as in sign-ins.
const ARGUMENTS: [&str; 6] =
    ["code", "assertion", "samlresponse", "samlrequest", "tokenhint", "signature"];
/// Whole names of secrets among a request's arguments.
const WHOLE_ARGUMENTS: [&str; 7] = ["sig", "ticket", "pwd", "pass", "otp", "auth", "sid"];

/// Whether a member of that name holds a secret. More names do if `is_argument` of a request.
pub(crate) fn is_secret(key: &str, is_argument: bool) -> bool {
    let key = squash(key);
    let ends = |names: &[&str]| names.iter().any(|name| key.ends_with(name));
    let is_named = ends(&SECRETS)
        || is_argument && (ends(&ARGUMENTS) || WHOLE_ARGUMENTS.contains(&key.as_str()));
    is_named && !ends(&IDENTIFIERS)
}

/// Prefixes of `code` that make it harmless.
const CODES: [&str; 19] = [
    "status", "exit", "error", "err", "response", "return", "result", "reason", "event", "http",
    "country", "region", "zip", "postal", "area", "language", "lang", "locale", "currency",
];
/// Names whose value, if they stand alone as in `auth=ok`, is an outcome.
const OUTCOMES: [&str; 2] = ["auth", "pass"];

/// Whether an argument's name is harmless in a text that need not be a form, as in
/// `status_code=404`.
fn is_plain(name: &str, is_alone: bool) -> bool {
    let name = squash(name);
    let of = name.strip_suffix("code");
    of.is_some_and(|of| CODES.iter().any(|known| of.ends_with(known)))
        || is_alone && OUTCOMES.contains(&name.as_str())
}

/// A name in lower case, without separators.
pub(crate) fn squash(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Returns a document's text without its secrets; empty if it is not JSON.
pub(crate) fn clean_text(text: &str) -> Cow<'_, str> {
    Doc::parse(text).map_or(Cow::Borrowed(""), |doc| match clean(doc.root(), |_| false) {
        Cow::Borrowed(clean) if clean.len() == text.len() => Cow::Borrowed(text),
        clean => Cow::Owned(clean.into_owned()),
    })
}

/// Returns the text of `value` without the values of members with a secret's name and without
/// the secrets in [addresses](without_secrets); all else keeps its spelling. Values for which
/// `is_kept` holds stay, but not the secrets inside them. Idempotent.
pub(crate) fn clean(value: Value<'_>, is_kept: impl Fn(Value<'_>) -> bool) -> Cow<'_, str> {
    without(value, cuts(value, is_kept))
}

/// A range of a text and its replacement.
pub(crate) type Cut = (Range<usize>, Cow<'static, str>);

/// The cut that hides a value.
pub(crate) fn hide(value: Value<'_>) -> Cut {
    (value.start()..value.end(), Cow::Borrowed(QUOTED))
}

/// The cuts that hide the secrets of a value.
pub(crate) fn cuts(value: Value<'_>, is_kept: impl Fn(Value<'_>) -> bool) -> Vec<Cut> {
    let mut cuts = Vec::new();
    for inner in value.inside() {
        for member in inner.members() {
            let value = member.value();
            if holds_secret(&member.name(), value) && !is_vacant(value) && !is_kept(value) {
                cuts.push(hide(value));
            }
        }
        if may_be_address(inner.raw())
            && let Some(clean) = inner.string().and_then(|text| without_secrets(&text))
            && !is_kept(inner)
        {
            let quoted = serde_json::Value::from(clean).to_string();
            cuts.push((inner.start()..inner.end(), quoted.into()));
        }
    }
    cuts
}

fn holds_secret(name: &str, value: Value<'_>) -> bool {
    is_secret(name, false)
        // The plural of a secret's name, but a number of `tokens` is a count.
        || (value.is_list() || value.string().is_some())
            && name.strip_suffix(['s', 'S']).is_some_and(|one| is_secret(one, false))
}

fn may_be_address(raw: &str) -> bool {
    raw.starts_with('"') && raw.contains(['?', '#', ';', '=', '@', '\\', ' '])
}

/// Whether a value is empty or masked, so that it need not be hidden.
pub(crate) fn is_vacant(value: Value<'_>) -> bool {
    if let Some(text) = value.string() {
        return text.bytes().all(|b| b == b'*') || text == REDACTED;
    }
    let holds_nothing = value.after() == value.index() + 1;
    matches!(value.raw(), "null" | "true" | "false")
        || ((value.is_object() || value.is_list()) && holds_nothing)
}

/// Returns the text with the cuts applied; one cut may be inside another.
pub(crate) fn without(value: Value<'_>, mut cuts: Vec<Cut>) -> Cow<'_, str> {
    let raw = value.raw();
    if cuts.is_empty() {
        return Cow::Borrowed(raw);
    }
    // Of two with the same start, the outer one comes first.
    cuts.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
    let (mut out, mut at) = (String::with_capacity(raw.len()), 0);
    for (range, replacement) in cuts {
        let start = range.start - value.start();
        if start < at {
            continue;
        }
        out.push_str(&raw[at..start]);
        out.push_str(&replacement);
        at = range.end - value.start();
    }
    out.push_str(&raw[at..]);
    Cow::Owned(out)
}

/// A text without the secrets in its addresses: the password before a host; arguments in the query,
/// the fragment (where some sign-ins pass tokens), a form or after `;`; also in an address inside
/// an argument; and without the credentials of an `Authorization` header. `None` if there are none.
pub(crate) fn without_secrets(text: &str) -> Option<String> {
    without_secrets_in(text, MAX_NESTED)
}

/// Like [`without_secrets`], examining addresses nested in arguments down to a depth.
fn without_secrets_in(text: &str, nested: usize) -> Option<String> {
    if let Some(scheme) = credentials(text) {
        return Some(format!("{scheme}{REDACTED}"));
    }
    let named = without_passwords(text);
    without_arguments(named.as_deref().unwrap_or(text), nested).or(named)
}

/// `Bearer ` or `Basic `, if the text is one of these followed by credentials.
fn credentials(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_at_checked(text.find(' ')? + 1)?;
    let is_scheme = ["bearer ", "basic "].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let is_one = rest.len() >= 8 && !rest.contains(char::is_whitespace) && rest != REDACTED;
    (is_scheme && is_one).then_some(scheme)
}

/// The text without the password between `user:` and `@` of an address; for the web's schemes, a
/// user alone is mostly a token.
fn without_passwords(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut done = 0;
    while let Some(found) = text[done..].find("://") {
        let start = done + found + 3;
        let ends = |c: char| matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>' | '\\');
        let rest = &text[start..];
        let len = rest.find(|c: char| ends(c) || c.is_whitespace()).unwrap_or(rest.len());
        let secret = rest[..len].rsplit_once('@').and_then(|(user, _)| {
            let scheme = &text.as_bytes()[..start - 3];
            let is_web = || {
                let ends = |web: &[u8]| {
                    let from = scheme.len().saturating_sub(web.len());
                    scheme[from..].eq_ignore_ascii_case(web)
                };
                ends(b"http") || ends(b"https")
            };
            let from = match user.find(':') {
                Some(colon) => colon + 1,
                None if is_web() => 0,
                None => return None,
            };
            (from < user.len() && user[from..] != *REDACTED).then_some(from..user.len())
        });
        let Some(secret) = secret else {
            out.push_str(&text[done..start]);
            done = start;
            continue;
        };
        out.push_str(&text[done..start + secret.start]);
        out.push_str(REDACTED);
        done = start + secret.end;
    }
    out.push_str(&text[done..]);
    (out != text).then_some(out)
}

/// The text without the values of arguments with a secret's name.
fn without_arguments(text: &str, nested: usize) -> Option<String> {
    let is_form = is_name(text.split('=').next()?) && !text.contains(char::is_whitespace);
    // A plain text such as `status_code=404` may remain, but not in an address.
    let may_be_text = is_form && !text.contains(['?', '#']) && nested == MAX_NESTED;
    let first = if is_form { 0 } else { text.find(['?', '#', ';'])? + 1 };
    let (mut out, mut at) = (text[..first].to_owned(), first);
    // The separator before the argument that begins at `at`.
    let mut separator = text[..first].chars().next_back().unwrap_or('&');
    while at < text.len() {
        let argument = &text[at..];
        let len = argument.find(['?', '#', '&', ';']).unwrap_or(argument.len());
        let hidden = argument[..len].split_once('=').and_then(|(name, value)| {
            // A sentence may continue after `;`.
            let is_argument = separator != ';' || is_name(name);
            let start = name.len() + 1;
            let name = decoded(name);
            let is_named =
                is_secret(&name, true) && !(may_be_text && is_plain(&name, !text.contains('&')));
            let secret = if is_named {
                start..argument.find('&').unwrap_or(argument.len())
            } else {
                without_secrets_in(&decoded_address(value)?, nested.checked_sub(1)?)?;
                start..len
            };
            let is_new = !secret.is_empty() && argument[secret.clone()] != *REDACTED;
            (is_argument && is_new).then_some(secret)
        });
        let end = if let Some(secret) = hidden {
            out.push_str(&argument[..secret.start]);
            out.push_str(REDACTED);
            secret.end
        } else {
            out.push_str(&argument[..len]);
            len
        };
        at += end;
        if let Some(next) = text[at..].chars().next() {
            out.push(next);
            separator = next;
            at += 1;
        }
    }
    (out != text).then_some(out)
}

/// Whether it is an argument's name as in addresses and forms.
fn is_name(text: &str) -> bool {
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || b"_-.%[]".contains(&b);
    (1..=128).contains(&text.len()) && text.bytes().all(is_of_name)
}

/// The decoded value of an argument, if it may be an address itself.
fn decoded_address(value: &str) -> Option<String> {
    value.to_ascii_lowercase().contains("%3d").then(|| decoded(value))
}

/// A text without percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let digits = after.get(..2).filter(|_| *byte == b'%');
        let escaped =
            digits.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_are_not_secrets() {
        for name in ["hashed_token", "externalSessionId", "context.root_session_id"] {
            assert!(!is_secret(name, false), "{name}");
        }
        for name in ["sessionId", "token", "hashed_password", "id_token", "Set-Cookie", "jwt"] {
            assert!(is_secret(name, false), "{name}");
        }
        assert!(!is_secret("code", false) && is_secret("code", true));
        assert!(!is_secret("design", true) && is_secret("sig", true));
    }

    #[test]
    fn addresses_lose_their_secrets_and_nothing_else() {
        for (text, expected) in [
            ("/cb?token=S&next=a", "/cb?token=[redacted]&next=a"),
            ("/cb?a=1;access_token=S", "/cb?a=1;access_token=[redacted]"),
            ("/app;jsessionid=S?x=1", "/app;jsessionid=[redacted]"),
            ("https://x/?a=1&amp;token=S", "https://x/?a=1&amp;token=[redacted]"),
            ("/?acc%65ss_t%6fken=S", "/?acc%65ss_t%6fken=[redacted]"),
            ("/?next=%2Fcb%3Fcode%3DS&a=1", "/?next=[redacted]&a=1"),
            ("/?X-Amz-Signature=S&X-Amz-Date=1", "/?X-Amz-Signature=[redacted]&X-Amz-Date=1"),
            ("grant_type=password&password=S&a=1", "grant_type=password&password=[redacted]&a=1"),
            ("code=S", "code=[redacted]"),
            ("SAMLResponse=S&status_code=200", "SAMLResponse=[redacted]&status_code=200"),
            ("user=a&pwd=S", "user=a&pwd=[redacted]"),
            ("auth_code=S&state=x", "auth_code=[redacted]&state=x"),
            (
                "grant_type=urn:x:device_code&device_code=S&client_id=c",
                "grant_type=urn:x:device_code&device_code=[redacted]&client_id=c",
            ),
            ("authorization_code=S", "authorization_code=[redacted]"),
            ("otp_code=S;verification_code=S", "otp_code=[redacted]"),
            ("a=1&auth=S&pass=S", "a=1&auth=[redacted]&pass=[redacted]"),
            ("ticket=ST-1-abc", "ticket=[redacted]"),
            ("otp=123456", "otp=[redacted]"),
            ("pwd=S", "pwd=[redacted]"),
            ("sig=S", "sig=[redacted]"),
            ("/?next=auth_code%3DS", "/?next=[redacted]"),
            ("/?next=status_code%3D404", "/?next=[redacted]"),
            ("/?status_code=404", "/?status_code=[redacted]"),
            ("postgres://app:S@db/x", "postgres://app:[redacted]@db/x"),
            ("https://S@git.example/x.git", "https://[redacted]@git.example/x.git"),
            ("a https://u:S@x/?token=S", "a https://u:[redacted]@x/?token=[redacted]"),
            ("Bearer abcdefgh", "Bearer [redacted]"),
            ("basic YWxpY2U6cGFzcw==", "basic [redacted]"),
        ] {
            assert_eq!(without_secrets(text).as_deref(), Some(expected), "{text}");
            assert_eq!(without_secrets(expected), None, "{text}, again");
        }
        for text in [
            "",
            "plain",
            "/search?q=token&page=2",
            "ssh://git@host/x",
            "https://medium.example/@alice",
            "mailto:alice@acme.example",
            "a; b token = c",
            "Basic rules of the house",
            "C# = good; code review",
            "/?token=",
            "a=b",
            "exit_code=1",
            "status_code=404",
            "exit_code=1&error_code=E7",
            "exit_code=1;status_code=404",
            "http_response_code=404&country_code=de&zip-code=1",
            "auth=ok",
            "pass=3",
        ] {
            assert_eq!(without_secrets(text), None, "{text}");
        }
    }

    #[test]
    fn names_hide_what_stands_below_them() {
        for (text, expected) in [
            (
                r#"{"jwt":"S","a":{"connection_string":["S"]}}"#,
                r#"{"jwt":"[redacted]","a":{"connection_string":"[redacted]"}}"#,
            ),
            (
                r#"{"tokens":["S"],"cookies":"S"}"#,
                r#"{"tokens":"[redacted]","cookies":"[redacted]"}"#,
            ),
            (
                r#"{"tokens":{"prompt":5},"passwords":3}"#,
                r#"{"tokens":{"prompt":5},"passwords":3}"#,
            ),
        ] {
            assert_eq!(clean_text(text), expected);
            assert_eq!(clean_text(expected), expected);
        }
    }

    proptest! {
        #[test]
        fn redacting_again_changes_nothing(text in "[a-z?#&;=:/@% \\[\\]]{0,40}(token=|://)?[a-z?#&;=:/@%3dD]{0,20}") {
            let clean = without_secrets(&text).unwrap_or(text);
            prop_assert_eq!(without_secrets(&clean), None, "{}", clean);
        }
    }
}
