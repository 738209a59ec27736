//! Whether what is stored is the same content, as an earlier version of the rules for
//! secrets or for large metadata left it.

use dezky_core::Metadata;

use super::{CUT, OF_SOURCE, OWN, TRUNCATED};
use crate::json::{Doc, Value};
use crate::secrets::{REDACTED, is_vacant};

/// Whether two contents that are not equal are one all the same: they differ only where
/// one of them has `[redacted]` in the place of something, or one was reduced to its short
/// scalars, all of which the other has, of which large parts were cut instead.
pub(super) fn alike(one: &Metadata, other: &Metadata) -> bool {
    let (Ok(one), Ok(other)) = (Doc::parse(one.as_str()), Doc::parse(other.as_str())) else {
        return false;
    };
    let (one, other) = (one.root(), other.root());
    match (own(one, TRUNCATED), own(other, TRUNCATED)) {
        (Some(_), None) => is_reduced(one, other),
        (None, Some(_)) => is_reduced(other, one),
        _ => {
            same_members(one, other)
                && OF_SOURCE.iter().all(|name| match (own(one, name), own(other, name)) {
                    (None, None) => true,
                    (Some(one), Some(other)) => same(one, other),
                    _ => false,
                })
        }
    }
}

fn own<'d>(metadata: Value<'d>, name: &str) -> Option<Value<'d>> {
    metadata.get(OWN)?.get(name)
}

/// Whether `reduced` is what short scalars `cut` has at its top.
fn is_reduced(reduced: Value<'_>, cut: Value<'_>) -> bool {
    let mut kept = reduced.members().filter(|member| !member.is_named(OWN));
    own(cut, CUT).is_some()
        && kept.all(|kept| cut.get(&kept.name()).is_some_and(|value| same(kept.value, value)))
}

/// Whether two objects are the same but for our annotations.
fn same_members(one: Value<'_>, other: Value<'_>) -> bool {
    // Canonical, so in one order and without repetition.
    let mut members = one.members().filter(|member| !member.is_named(OWN));
    let mut others = other.members().filter(|member| !member.is_named(OWN));
    loop {
        match (members.next(), others.next()) {
            (None, None) => return true,
            (Some(one), Some(other))
                if one.key.raw() == other.key.raw() && same(one.value, other.value) => {}
            _ => return false,
        }
    }
}

fn same(one: Value<'_>, other: Value<'_>) -> bool {
    if one.raw() == other.raw() || hides(one, other) || hides(other, one) {
        return true;
    }
    if one.is_object() && other.is_object() {
        let (mut members, mut others) = (one.members(), other.members());
        return loop {
            match (members.next(), others.next()) {
                (None, None) => break true,
                (Some(one), Some(other))
                    if one.key.raw() == other.key.raw() && same(one.value, other.value) => {}
                _ => break false,
            }
        };
    }
    if one.is_list() && other.is_list() {
        let count = one.elements().count() == other.elements().count();
        return count && one.elements().zip(other.elements()).all(|(one, other)| same(one, other));
    }
    match (one.string(), other.string()) {
        (Some(one), Some(other)) => is_same_text(&one, &other),
        _ => false,
    }
}

/// Whether `one` stands where all of `other` was hidden.
fn hides(one: Value<'_>, other: Value<'_>) -> bool {
    one.string().is_some_and(|text| text == REDACTED) && !is_vacant(other)
}

/// Whether two texts are the same before the first and behind the last secret that either
/// hides; false if neither hides one.
fn is_same_text(one: &str, other: &str) -> bool {
    let texts = [one, other];
    let heads = texts.iter().filter_map(|text| text.find(REDACTED));
    let tails =
        texts.iter().filter_map(|text| Some(text.len() - text.rfind(REDACTED)? - REDACTED.len()));
    let (Some(head), Some(tail)) = (heads.min(), tails.min()) else { return false };
    let (one, other) = (one.as_bytes(), other.as_bytes());
    one.len().min(other.len()) >= head + tail
        && one[..head] == other[..head]
        && one[one.len() - tail..] == other[other.len() - tail..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alike(one: &str, other: &str) -> bool {
        let metadata = |text: &str| Metadata::from_canonical(text).unwrap();
        let (one, other) = (metadata(one), metadata(other));
        let is_alike = alike(&one, &other);
        assert_eq!(is_alike, alike(&other, &one), "{one:?} {other:?}");
        is_alike
    }

    #[test]
    fn what_one_side_hides_makes_no_difference() {
        for (one, other) in [
            (r#"{"a":1,"hashed_token":"[redacted]"}"#, r#"{"a":1,"hashed_token":"ab12"}"#),
            (r#"{"a":[{"jwt":{"x":1}}]}"#, r#"{"a":[{"jwt":"[redacted]"}]}"#),
            (r#"{"u":"/?code=S3&b=1"}"#, r#"{"u":"/?code=[redacted]&b=1"}"#),
            (r#"{"u":"/?a=[redacted]&b=2&c"}"#, r#"{"u":"/?a=1&b=[redacted]&c"}"#),
            (
                r#"{"_dezky":{"redacted":true,"source":{"token":"[redacted]"}},"a":1}"#,
                r#"{"_dezky":{"source":{"token":"x"}},"a":1}"#,
            ),
        ] {
            assert!(is_alike(one, other), "{one} {other}");
        }
        for (one, other) in [
            (r#"{"a":1,"t":"[redacted]"}"#, r#"{"a":2,"t":"[redacted]"}"#),
            (r#"{"a":1,"t":"[redacted]"}"#, r#"{"a":1}"#),
            (r#"{"t":"[redacted]"}"#, r#"{"t":null}"#),
            (r#"{"u":"/a?code=[redacted]"}"#, r#"{"u":"/b?code=S3"}"#),
            (r#"{"u":"/?code=[redacted]&n=1"}"#, r#"{"u":"/?code=S3&n=2"}"#),
            (r#"{"a":["[redacted]"]}"#, r#"{"a":["x","y"]}"#),
            (r#"{"n":9007199254740992}"#, r#"{"n":9007199254740993}"#),
        ] {
            assert!(!is_alike(one, other), "{one} {other}");
        }
    }

    #[test]
    fn what_was_reduced_is_what_is_cut_today() {
        let reduced = r#"{"_dezky":{"truncated":{"bytes":70000,"sha256":"a"}},"n":1,"s":"x"}"#;
        let cut = |n: u8| {
            format!(
                r#"{{"_dezky":{{"cut":{{"l":{{"bytes":69000,"sha256":"b"}}}}}},"l":"zz","n":{n},"s":"x"}}"#
            )
        };
        assert!(is_alike(reduced, &cut(1)));
        assert!(!is_alike(reduced, &cut(2)));
        assert!(!is_alike(reduced, r#"{"l":"zz","n":1,"s":"x"}"#), "one that is not large");
        assert!(!is_alike(reduced, &reduced.replace(":\"a\"", ":\"b\"")));
    }
}
