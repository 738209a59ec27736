//! Removes secrets from the body before anything else reads it.
//!
//! - `contents`, at any depth: whole protocol lines, with the password of an
//!   IMAP LOGIN in them (`imap.raw-input` and its like, which the default event
//!   policy of 0.16 sends);
//! - `id` and `details` of an `auth.error`, as an event or nested under `causedBy` and other keys:
//!   the raw token of an `Authorization` header that could not be decoded (0.15.5 and main). If the
//!   type is unknown, they are removed everywhere.
//!
//! The list is part of the content key `sw1`, which is made from the redacted text: a hash over a
//! password line would be an oracle for guessing it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use dezky_core::json::{Doc, Member, Value};

use super::verbs;

/// The text of `doc` without its secrets; everything else stays as spelled.
pub(super) fn redact<'a>(doc: &Doc<'a>) -> Cow<'a, str> {
    let mut cuts = Vec::new();
    // The data of errors, found at the error, which precedes its data.
    let mut error_data = HashSet::new();
    for object in doc.values().filter(|value| value.is_object()) {
        // Any of several types counts: a later one must not hide it.
        let is_error = object.members().any(|m| {
            m.is_named("type") && m.value().string().is_some_and(|kind| is_auth_error(&kind))
        });
        if is_error {
            for data in object.members().filter(|m| m.is_named("data")).map(Member::value) {
                error_data.insert(data.index());
                // Stalwart never sends a list of them.
                error_data.extend(data.elements().map(Value::index));
            }
        }
        let is_data = error_data.remove(&object.index());
        cut_members(object, &mut cuts, |name| match name {
            "contents" => true,
            // An error has no details alongside its data, but a flat sender's may.
            "details" => is_data || is_error,
            "id" => is_data,
            _ => false,
        });
    }
    without(doc.text(), cuts)
}

/// The text of a value of unknown type, which may be an `auth.error` or contain one at any depth
/// under any name: without `contents` and `details` anywhere, and without `id` in anything below a
/// `data`.
pub(super) fn redact_untyped<'a>(doc: &Doc<'a>) -> Cow<'a, str> {
    let mut cuts = Vec::new();
    let mut data = HashSet::new();
    let mut data_ends = 0;
    for value in doc.values() {
        if data.remove(&value.index()) {
            data_ends = data_ends.max(value.after());
        }
        if !value.is_object() {
            continue;
        }
        data.extend(value.members().filter(|m| m.is_named("data")).map(|m| m.value().index()));
        let is_data = value.index() < data_ends;
        cut_members(value, &mut cuts, |name| match name {
            "contents" | "details" => true,
            "id" => is_data,
            _ => false,
        });
    }
    without(doc.text(), cuts)
}

fn is_auth_error(kind: &str) -> bool {
    verbs::normalise(kind) == "auth_error"
}

/// Adds the ranges that remove the `secret` members from an object, each with one of its commas.
fn cut_members(object: Value<'_>, cuts: &mut Vec<Range<usize>>, secret: impl Fn(&str) -> bool) {
    let mut kept_before = false;
    let mut previous_end = 0;
    let mut members = object.members().peekable();
    while let Some(member) = members.next() {
        let end = member.value().end();
        if !secret(&member.name()) {
            kept_before = true;
        } else if kept_before {
            cuts.push(previous_end..end);
        } else {
            cuts.push(member.key().start()..members.peek().map_or(end, |next| next.key().start()));
        }
        previous_end = end;
    }
}

/// The text without the ranges, which may be nested.
fn without(text: &str, mut cuts: Vec<Range<usize>>) -> Cow<'_, str> {
    if cuts.is_empty() {
        return Cow::Borrowed(text);
    }
    cuts.sort_unstable_by_key(|cut| cut.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for cut in cuts {
        if cut.start > at {
            out.push_str(&text[at..cut.start]);
        }
        at = at.max(cut.end);
    }
    out.push_str(&text[at..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(redact(&Doc::parse(text).unwrap()), expected);
    }

    #[test]
    fn contents_at_any_depth() {
        check(r#"{"contents":"S"}"#, "{}");
        check(r#"{"a":1, "contents":"S" ,"b":2}"#, r#"{"a":1 ,"b":2}"#);
        check(r#"{"contents":1,"contents":{"contents":2},"b":2}"#, r#"{"b":2}"#);
        check(r#"{"a":1,"contents":1,"contents":2}"#, r#"{"a":1}"#);
        check(r#"[{"x":[{"con\u0074ents":"S","y":{"contents":[]}}]}]"#, r#"[{"x":[{"y":{}}]}]"#);
        check(r#"{"note":"contents","x":["contents"]}"#, r#"{"note":"contents","x":["contents"]}"#);
    }

    #[test]
    fn tokens_of_auth_errors() {
        for kind in ["auth.error", "auth-error", "auth_error", "AuthError", "auth\\u002eerror"] {
            check(
                &format!(r#"{{"id":"1","data":{{"id":"S","x":1,"details":"S"}},"type":"{kind}"}}"#),
                &format!(r#"{{"id":"1","data":{{"x":1}},"type":"{kind}"}}"#),
            );
            check(
                &format!(
                    r#"{{"causedBy":{{"type":"{kind}","data":{{"details":["S"]}}}},"id":"A"}}"#
                ),
                &format!(r#"{{"causedBy":{{"type":"{kind}","data":{{}}}},"id":"A"}}"#),
            );
        }
        check(
            r#"{"type":"auth.error","data":[{"id":"S","a":1},{"details":"S"}]}"#,
            r#"{"type":"auth.error","data":[{"a":1},{}]}"#,
        );
        // Neither another type nor another object's data.
        let other = r#"{"type":"auth.failed","data":{"id":"A","details":"x","data":{"id":"B"}}}"#;
        check(other, other);
        check(
            r#"{"type":"auth.error","type":"x","data":{"id":"S"},"data":{"details":"S"},"details":"S"}"#,
            r#"{"type":"auth.error","type":"x","data":{},"data":{}}"#,
        );
    }

    #[test]
    fn untyped() {
        for (text, expected) in [
            (
                r#"{"id":1,"data":{"id":"S","a":1,"details":"S"},"details":"S"}"#,
                r#"{"id":1,"data":{"a":1}}"#,
            ),
            (
                r#"[[{"id":1,"data":{"details":"S","x":{"id":"S"}}}]]"#,
                r#"[[{"id":1,"data":{"x":{}}}]]"#,
            ),
            (
                r#"{"x":{"id":1},"data":[{"data":{"id":"S"}},[{"id":"S"}]],"y":{"id":2}}"#,
                r#"{"x":{"id":1},"data":[{"data":{}},[{}]],"y":{"id":2}}"#,
            ),
            (
                r#"{"d\u0061ta":{"\u0069d":"S"},"a":[{"details":{"b":1},"contents":2,"c":3}]}"#,
                r#"{"d\u0061ta":{},"a":[{"c":3}]}"#,
            ),
        ] {
            assert_eq!(redact_untyped(&Doc::parse(text).unwrap()), expected);
        }
        for scalar in ["[1]", "7", "null"] {
            assert_eq!(redact_untyped(&Doc::parse(scalar).unwrap()), scalar);
        }
    }
}
