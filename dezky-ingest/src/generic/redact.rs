//! Secrets, removed from an event before anything else reads it.

use std::borrow::Cow;
use std::collections::HashSet;

use dezky_core::json::Value;

use super::pointer::Pointer;
use crate::secrets::{clean_for_key, cuts, hide, without};

/// The text of `value` without its secrets: what stands under a secret's name and in
/// addresses, but for the `kept` places, and at the `hidden` places. All else stays as it
/// was spelled.
pub(super) fn redact<'d>(value: Value<'d>, hidden: &[Pointer], kept: &[Pointer]) -> Cow<'d, str> {
    let kept: HashSet<_> =
        kept.iter().flat_map(|place| place.all(value)).map(Value::index).collect();
    let mut cuts = cuts(value, |value| kept.contains(&value.index()));
    cuts.extend(hidden.iter().flat_map(|place| place.all(value)).map(hide));
    without(value, cuts)
}

/// The text of which a content key is made.
pub(super) fn redact_for_key<'d>(value: Value<'d>, hidden: &[Pointer]) -> Cow<'d, str> {
    clean_for_key(value, hidden.iter().flat_map(|place| place.all(value)).map(hide).collect())
}

#[cfg(test)]
mod tests {
    use dezky_core::json::Doc;

    use super::*;

    #[track_caller]
    fn check(text: &str, places: &[&str], expected: &str) {
        check_with(text, places, &[], expected);
    }

    #[track_caller]
    fn check_with(text: &str, places: &[&str], kept: &[&str], expected: &str) {
        let parse = |places: &[&str]| -> Vec<_> {
            places.iter().map(|place| Pointer::parse(place).unwrap()).collect()
        };
        let (places, kept) = (parse(places), parse(kept));
        assert_eq!(redact(Doc::parse(text).unwrap().root(), &places, &kept), expected);
        // Inside another document, and a second time.
        let outer = format!(" [ 1, {text}]");
        let outer = Doc::parse(&outer).unwrap();
        let inner = outer.root().elements().nth(1).unwrap();
        let clean = redact(inner, &places, &kept).into_owned();
        assert_eq!(clean, expected);
        assert_eq!(redact(Doc::parse(&clean).unwrap().root(), &places, &kept), expected);
    }

    #[test]
    fn names_of_secrets() {
        check(
            r#"{"a":1, "clientSecret" : "S", "api-key":["S"],"passw\u006frd":{"a":"S"},"x":[{"Set-Cookie":7}]}"#,
            &[],
            r#"{"a":1, "clientSecret" : "[redacted]", "api-key":"[redacted]","passw\u006frd":"[redacted]","x":[{"Set-Cookie":"[redacted]"}]}"#,
        );
        let nothing = r#"{"password":null,"token":"***","secret":true,"cookie":[],"passwd":{},"tokens":5,"hashed_token":"h","note":"password"}"#;
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

    #[test]
    fn kept_places() {
        check_with(
            r#"{"token":"id-1","token":"id-2","a":{"token":"S","url":"/?code=404"},"l":["/?code=1","/?code=S"]}"#,
            &[],
            &["/token", "/a/url", "/l/0"],
            r#"{"token":"id-1","token":"id-2","a":{"token":"[redacted]","url":"/?code=404"},"l":["/?code=1","/?code=[redacted]"]}"#,
        );
        // Values inside it are not kept by that.
        check_with(
            r#"{"token":{"id":1,"secret":"S"}}"#,
            &[],
            &["/token"],
            r#"{"token":{"id":1,"secret":"[redacted]"}}"#,
        );
    }
}
