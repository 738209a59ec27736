//! What must not be kept: taken out of an event before anything else looks at it.

use std::borrow::Cow;
use std::ops::Range;

use super::pointer::Pointer;
use crate::json::Value;
use crate::secrets::{REDACTED, is_secret, without_secrets};

/// The text of `value` without its secrets: what stands under a secret's name, in the
/// query of an address, and at `places`. All else stays as it was spelled.
pub(super) fn redact<'d>(value: Value<'d>, places: &[Pointer]) -> Cow<'d, str> {
    let mut cuts: Vec<(Range<usize>, Cow<'static, str>)> = Vec::new();
    let mut hide = |secret: Value<'_>| {
        cuts.push((secret.start()..secret.end(), Cow::Borrowed(QUOTED)));
    };
    places.iter().flat_map(|place| place.all(value)).for_each(&mut hide);
    for inner in value.inside() {
        for member in inner.members() {
            if is_secret(&member.name(), false) && !is_vacant(member.value) {
                hide(member.value);
            }
        }
    }
    for text in value.inside().filter(|inner| may_be_address(inner.raw())) {
        if let Some(clean) = text.string().and_then(|text| without_secrets(&text)) {
            let quoted = serde_json::Value::from(clean).to_string();
            cuts.push((text.start()..text.end(), quoted.into()));
        }
    }
    without(value, cuts)
}

/// [`REDACTED`] as it stands in JSON.
const QUOTED: &str = "\"[redacted]\"";
const _: () = assert!(QUOTED.len() == REDACTED.len() + 2);

fn may_be_address(raw: &str) -> bool {
    raw.starts_with('"') && raw.contains(['?', '#', '\\'])
}

/// What says nothing: it may stay, as it tells that there was nothing to hide.
fn is_vacant(value: Value<'_>) -> bool {
    if let Some(text) = value.string() {
        return text.bytes().all(|b| b == b'*');
    }
    let holds_nothing = value.after() == value.index() + 1;
    matches!(value.raw(), "null" | "true" | "false")
        || ((value.is_object() || value.is_list()) && holds_nothing)
}

/// The text with other texts in the places of the cuts, of which one may be inside
/// another.
fn without<'d>(value: Value<'d>, mut cuts: Vec<(Range<usize>, Cow<'static, str>)>) -> Cow<'d, str> {
    let raw = value.raw();
    if cuts.is_empty() {
        return Cow::Borrowed(raw);
    }
    // The outer of two that begin together comes first.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Doc;

    #[track_caller]
    fn check(text: &str, places: &[&str], expected: &str) {
        let places: Vec<_> = places.iter().map(|place| Pointer::parse(place).unwrap()).collect();
        assert_eq!(redact(Doc::parse(text).unwrap().root(), &places), expected);
        // Inside another document, and a second time.
        let outer = format!(" [ 1, {text}]");
        let outer = Doc::parse(&outer).unwrap();
        let inner = outer.root().elements().nth(1).unwrap();
        let clean = redact(inner, &places).into_owned();
        assert_eq!(clean, expected);
        assert_eq!(redact(Doc::parse(&clean).unwrap().root(), &places), expected);
    }

    #[test]
    fn names_of_secrets() {
        check(
            r#"{"a":1, "clientSecret" : "S", "api-key":["S"],"passw\u006frd":{"a":"S"},"x":[{"Set-Cookie":7}]}"#,
            &[],
            r#"{"a":1, "clientSecret" : "[redacted]", "api-key":"[redacted]","passw\u006frd":"[redacted]","x":[{"Set-Cookie":"[redacted]"}]}"#,
        );
        let nothing = r#"{"password":null,"token":"***","secret":true,"cookie":[],"passwd":{},"tokens":5,"note":"password"}"#;
        check(nothing, &[], nothing);
        check(r#"{"token":"S","token":"***"}"#, &[], r#"{"token":"[redacted]","token":"***"}"#);
    }

    #[test]
    fn addresses() {
        check(
            r#"["/cb?code=S&next=a","https:\/\/x\/?\u0074oken=S",{"url":"/?a=1"}]"#,
            &[],
            r#"["/cb?code=[redacted]&next=a","https://x/?token=[redacted]",{"url":"/?a=1"}]"#,
        );
        check(
            r#"["/cb#state=a&access_token=S","/?a=1#id_token=S&b=2","/?token=S#more","/?a=1#b=2"]"#,
            &[],
            r#"["/cb#state=a&access_token=[redacted]","/?a=1#id_token=[redacted]&b=2","/?token=[redacted]","/?a=1#b=2"]"#,
        );
    }

    #[test]
    fn places() {
        check(
            r#"{"user":{"phone":"S","phone":"S","n":1},"user":{"phone":{"token":"S"}},"l":["S",2]}"#,
            &["/user/phone", "/l/0", "/nowhere"],
            r#"{"user":{"phone":"[redacted]","phone":"[redacted]","n":1},"user":{"phone":"[redacted]"},"l":["[redacted]",2]}"#,
        );
        check(r#"{"a":{"b":1}}"#, &["/a/b", "/a"], r#"{"a":"[redacted]"}"#);
    }
}
