//! Compares content with stored content that an earlier version of the rules for secrets or large
//! metadata produced.

use dezky_core::Metadata;
use dezky_core::json::{Doc, Value};

use super::OF_SOURCE;
use crate::annotations::{ANNOTATIONS, CUT, REDACTED as IS_REDACTED, TRUNCATED};
use crate::cut::LARGE;
use crate::secrets::{REDACTED, is_vacant, without_secrets};

/// Whether two contents that are not equal are the same event's: they differ only in values that we
/// hid in one of them, or one was reduced to short scalars, all of which the other has, whose large
/// parts were cut instead.
pub(super) fn alike(one: &Metadata, other: &Metadata) -> bool {
    let (Ok(one), Ok(other)) = (Doc::parse(one.as_str()), Doc::parse(other.as_str())) else {
        return false;
    };
    let (one, other) = (one.root(), other.root());
    let hidden = Hidden { in_one: is_redacted(one), in_other: is_redacted(other) };
    match (annotation(one, TRUNCATED), annotation(other, TRUNCATED)) {
        (Some(reduced), None) => is_of_large(reduced) && hidden.is_reduced(one, other),
        (None, Some(reduced)) => is_of_large(reduced) && hidden.swapped().is_reduced(other, one),
        _ => {
            hidden.same_members(one, other)
                && OF_SOURCE.iter().all(|name| {
                    match (annotation(one, name), annotation(other, name)) {
                        (None, None) => true,
                        (Some(one), Some(other)) => hidden.same(one, other),
                        _ => false,
                    }
                })
        }
    }
}

fn annotation<'d>(metadata: Value<'d>, name: &str) -> Option<Value<'d>> {
    metadata.get(ANNOTATIONS)?.get(name)
}

/// Whether we hid something in it; the source itself may also write `[redacted]`.
fn is_redacted(metadata: Value<'_>) -> bool {
    annotation(metadata, IS_REDACTED).is_some_and(Value::is_true)
}

/// Whether an earlier version, which did not cut parts, reduced the metadata because it was too
/// large, not too deep.
fn is_of_large(truncated: Value<'_>) -> bool {
    let bytes = truncated.get("bytes").and_then(|bytes| bytes.raw().parse().ok());
    bytes.is_some_and(|bytes: usize| bytes > LARGE)
}

/// Which of two compared contents have hidden values.
#[derive(Clone, Copy)]
struct Hidden {
    in_one: bool,
    in_other: bool,
}

impl Hidden {
    fn swapped(self) -> Self {
        Self { in_one: self.in_other, in_other: self.in_one }
    }

    /// Whether `reduced` has only short scalars that `cut` has at its top level.
    fn is_reduced(self, reduced: Value<'_>, cut: Value<'_>) -> bool {
        let mut kept = reduced.members().filter(|member| !member.is_named(ANNOTATIONS));
        annotation(cut, CUT).is_some()
            && kept.all(|kept| {
                cut.get(&kept.name()).is_some_and(|value| self.same(kept.value(), value))
            })
    }

    /// Whether two objects are the same except for our annotations.
    fn same_members(self, one: Value<'_>, other: Value<'_>) -> bool {
        // Canonical, so in the same order and without repetition.
        let mut members = one.members().filter(|member| !member.is_named(ANNOTATIONS));
        let mut others = other.members().filter(|member| !member.is_named(ANNOTATIONS));
        loop {
            match (members.next(), others.next()) {
                (None, None) => return true,
                (Some(one), Some(other))
                    if one.key().raw() == other.key().raw()
                        && self.same(one.value(), other.value()) => {}
                _ => return false,
            }
        }
    }

    fn same(self, one: Value<'_>, other: Value<'_>) -> bool {
        let is_hidden = self.in_one && hides(one, other) || self.in_other && hides(other, one);
        if one.raw() == other.raw() || is_hidden {
            return true;
        }
        if one.is_object() && other.is_object() {
            let (mut members, mut others) = (one.members(), other.members());
            return loop {
                match (members.next(), others.next()) {
                    (None, None) => break true,
                    (Some(one), Some(other))
                        if one.key().raw() == other.key().raw()
                            && self.same(one.value(), other.value()) => {}
                    _ => break false,
                }
            };
        }
        if one.is_list() && other.is_list() {
            let count = one.elements().count() == other.elements().count();
            return count
                && one.elements().zip(other.elements()).all(|(one, other)| self.same(one, other));
        }
        match (one.string(), other.string()) {
            (Some(one), Some(other)) => {
                self.in_one && hides_in_text(&one, &other)
                    || self.in_other && hides_in_text(&other, &one)
            }
            _ => false,
        }
    }
}

/// Whether `hidden` replaces all of `value`.
fn hides(hidden: Value<'_>, value: Value<'_>) -> bool {
    hidden.string().is_some_and(|text| text == REDACTED) && !is_vacant(value)
}

/// Whether `hidden` is `text` without its secrets, of which an earlier version may have known more
/// or fewer than the current rule.
fn hides_in_text(hidden: &str, text: &str) -> bool {
    let clean = without_secrets(text);
    let text = clean.as_deref().unwrap_or(text);
    hidden == text || hides_more(hidden, text)
}

/// Whether `hidden` is `text` with the values of more arguments hidden. All text between the values
/// must be equal: texts that hide equally many values and differ are different content.
fn hides_more(hidden: &str, text: &str) -> bool {
    if hidden.matches(REDACTED).count() <= text.matches(REDACTED).count() {
        return false;
    }
    let mut pieces = hidden.split(REDACTED).peekable();
    let Some(mut rest) = pieces
        .next()
        .and_then(|head| head.ends_with('=').then(|| text.strip_prefix(head)).flatten())
    else {
        return false;
    };
    // `rest` begins with a hidden value, which ends at the next piece.
    while let Some(piece) = pieces.next() {
        let is_last = pieces.peek().is_none();
        let found = if is_last {
            rest.len().checked_sub(piece.len()).filter(|_| rest.ends_with(piece))
        } else {
            rest.find(piece).filter(|_| piece.ends_with('='))
        };
        let Some(value) = found.and_then(|at| rest.split_at_checked(at)).map(|(value, _)| value)
        else {
            return false;
        };
        if value.is_empty() || value.contains('&') {
            return false;
        }
        rest = &rest[value.len() + piece.len()..];
    }
    true
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
        // As if we had hidden something in both.
        let noted = |text: &str| match text.strip_prefix(r#"{"_dezky":{"#) {
            Some(rest) => format!(r#"{{"_dezky":{{"redacted":true,{rest}"#),
            None => text.replacen('{', r#"{"_dezky":{"redacted":true},"#, 1),
        };
        let is_alike = |one: &str, other: &str| is_alike(&noted(one), &noted(other));
        for (one, other) in [
            (r#"{"a":1,"hashed_token":"[redacted]"}"#, r#"{"a":1,"hashed_token":"ab12"}"#),
            (r#"{"a":[{"jwt":{"x":1}}]}"#, r#"{"a":[{"jwt":"[redacted]"}]}"#),
            (r#"{"u":"/?code=S3&b=1"}"#, r#"{"u":"/?code=[redacted]&b=1"}"#),
            (r#"{"u":"/?code=S3&token=S4"}"#, r#"{"u":"/?code=[redacted]&token=[redacted]"}"#),
            (r#"{"u":"/?a=[redacted]&b=2&c"}"#, r#"{"u":"/?a=1&b=2&c"}"#),
            (
                r#"{"u":"/?a=[redacted]&b=[redacted]&code=[redacted]"}"#,
                r#"{"u":"/?a=1&b=2&code=[redacted]"}"#,
            ),
            (
                r#"{"_dezky":{"source":{"token":"[redacted]"}},"a":1}"#,
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
            (r#"{"u":"/?code=[redacted]"}"#, r#"{"u":"/?code=[redacted]&error=denied"}"#),
            (r#"{"u":"/?a=[redacted]"}"#, r#"{"u":"/?a=1&error=denied"}"#),
            (r#"{"u":"/?a=[redacted]"}"#, r#"{"u":"/?a="}"#),
            (
                r#"{"u":"/?token=[redacted]&result=ok&code=[redacted]"}"#,
                r#"{"u":"/?token=[redacted]&result=denied&code=[redacted]"}"#,
            ),
            (r#"{"u":"/?a=[redacted]&b=2&c"}"#, r#"{"u":"/?a=1&b=[redacted]&c"}"#),
            (r#"{"u":"Bearer [redacted]"}"#, r#"{"u":"Bearer of news"}"#),
            (r#"{"a":["[redacted]"]}"#, r#"{"a":["x","y"]}"#),
            (r#"{"n":9007199254740992}"#, r#"{"n":9007199254740993}"#),
        ] {
            assert!(!is_alike(one, other), "{one} {other}");
        }
    }

    #[test]
    fn what_a_source_writes_in_the_place_of_a_secret_hides_nothing() {
        let said = r#"{"a":"[redacted]","u":"/?a=[redacted]"}"#;
        assert!(!is_alike(said, r#"{"a":"x","u":"/?a=[redacted]"}"#));
        assert!(!is_alike(said, r#"{"a":"[redacted]","u":"/?a=1"}"#));
        let ours = r#"{"_dezky":{"redacted":true},"a":"[redacted]","u":"/?a=[redacted]"}"#;
        assert!(is_alike(ours, r#"{"a":"x","u":"/?a=1"}"#));
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
        assert!(!is_alike(reduced, r#"{"l":"zz","n":1,"s":"x"}"#), "not a large one");
        assert!(!is_alike(reduced, &reduced.replace(":\"a\"", ":\"b\"")));
        let deep = reduced.replace("70000", "900");
        assert!(!is_alike(&deep, &cut(1)), "too deep, not too large");
    }
}
