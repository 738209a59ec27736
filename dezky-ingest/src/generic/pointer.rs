//! JSON pointers (RFC 6901) into a document.

use std::borrow::Cow;

use dezky_core::json::{Member, Value};

use crate::secrets;

/// The maximum depth of a pointer.
const MAX_SEGMENTS: usize = 32;

/// A place in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer(Vec<String>);

impl Pointer {
    /// Parses a pointer. An error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            let example = likely(text).unwrap_or_else(|| "/user/id".into());
            return Err(format!("must be a JSON pointer, which begins with /, such as {example}"));
        };
        let segments: Vec<String> = rest.split('/').map(unescape).collect::<Result<_, _>>()?;
        if segments.len() > MAX_SEGMENTS {
            return Err(format!("goes deeper than {MAX_SEGMENTS} levels: name a shorter path"));
        }
        Ok(Self(segments))
    }

    /// The first of its names whose values are hidden, except at the `kept` places.
    pub(super) fn secret(&self, kept: &[Self]) -> Option<&str> {
        let is_kept = |index: usize| kept.iter().any(|place| place.0 == self.0[..=index]);
        let is_hidden =
            |(index, name): &(usize, &String)| secrets::is_secret(name, false) && !is_kept(*index);
        self.0.iter().enumerate().find(is_hidden).map(|(_, name)| name.as_str())
    }

    /// Whether `other` is this place or inside it.
    pub(super) fn holds(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The value at the place; of equal keys the last, as in canonical JSON.
    pub(super) fn get<'d>(&self, root: Value<'d>) -> Option<Value<'d>> {
        self.0.iter().try_fold(root, |at, segment| match index(segment) {
            Some(index) if at.is_list() => at.elements().nth(index),
            _ => at.get(segment),
        })
    }

    /// All values at the place, including those of equal keys, so that a secret can't hide behind a
    /// repeated key.
    pub(super) fn all<'d>(&self, root: Value<'d>) -> Vec<Value<'d>> {
        let mut found = vec![root];
        for segment in &self.0 {
            let below = |at: &Value<'d>| -> Vec<Value<'d>> {
                match index(segment) {
                    Some(index) if at.is_list() => at.elements().nth(index).into_iter().collect(),
                    _ => {
                        let named = at.members().filter(|member| member.name() == *segment);
                        named.map(Member::value).collect()
                    }
                }
            };
            found = found.iter().flat_map(below).collect();
        }
        found
    }
}

/// The pointer that a path of another notation means: `$.user.id`, `user.id`, `$['user'][0]`,
/// `user`. `None` if it is not such a path.
pub(super) fn likely(path: &str) -> Option<String> {
    let names = path.trim_start_matches(['$', '@', '.', '#']).replace(['[', ']'], ".");
    let names: Vec<_> = names.split('.').map(|name| name.trim_matches(['\'', '"', ' '])).collect();
    let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
    let is_name = |name: &&str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/'))
    };
    let is_path = !names.is_empty() && names.iter().all(is_name);
    is_path.then(|| format!("/{}", names.join("/")))
}

/// Whether a text is a path of another notation rather than literal text: it begins with `$`, or is
/// names joined by dots or with indexes in brackets.
fn is_foreign_path(text: &str) -> bool {
    let begins = |name: &str| name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let mut names = text.trim_start_matches('.').split(['.', '[']);
    let is_dotted = text.contains(['.', '['])
        && names.all(|name| begins(name) || name.ends_with(']') && !name.contains('@'));
    text.starts_with('$') || is_dotted && likely(text).is_some()
}

fn unescape(segment: &str) -> Result<String, String> {
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((before, after)) = rest.split_once('~') {
        out.push_str(before);
        let decoded = match after.as_bytes().first() {
            Some(b'0') => '~',
            Some(b'1') => '/',
            _ => return Err("has a ~ without 0 or 1 after it: write ~0 for ~, ~1 for /".into()),
        };
        out.push(decoded);
        rest = &after[1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The index in a list that a segment names.
fn index(segment: &str) -> Option<usize> {
    let is_index = segment == "0"
        || (segment.bytes().all(|b| b.is_ascii_digit()) && !segment.starts_with('0'));
    is_index.then(|| segment.parse().ok()).flatten()
}

/// A literal text, or the place of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    Literal(String),
    Pointer(Pointer),
}

impl Term {
    /// Parses a term: text that begins with `/` is a pointer, anything else literal.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Pointer::parse(text).map(Self::Pointer);
        }
        if text.starts_with('$') {
            return Err(not_a_pointer(text));
        }
        Ok(Self::Literal(text.to_owned()))
    }

    /// Parses a term for a field in which text with dots is most likely a path of another notation.
    pub(super) fn parse_strictly(text: &str) -> Result<Self, String> {
        if is_foreign_path(text) {
            return Err(not_a_pointer(text));
        }
        Self::parse(text)
    }

    /// The last name of a place.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Pointer(Pointer(names)) => names.last().map(String::as_str),
        }
    }

    /// The text, if there is one: a non-empty string, a number, `true` or `false`.
    pub(super) fn text<'d>(&'d self, object: Value<'d>) -> Option<Cow<'d, str>> {
        match self {
            Self::Literal(text) => Some(Cow::Borrowed(text)),
            Self::Pointer(pointer) => pointer.get(object)?.scalar(),
        }
    }
}

fn not_a_pointer(text: &str) -> String {
    let place = likely(text).unwrap_or_else(|| "/user/id".into());
    format!(
        "looks like a path, and places are JSON pointers: write {place}; a text for all events has neither $ nor dots between names"
    )
}

#[cfg(test)]
mod tests {
    use dezky_core::json::Doc;

    use super::*;

    #[test]
    fn the_examples_of_the_standard() {
        let text = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        let doc = Doc::parse(text).unwrap();
        for (pointer, raw) in [
            ("/foo", r#"["bar","baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(Pointer::parse(pointer).unwrap().get(doc.root()).unwrap().raw(), raw);
        }
        for nowhere in ["/foo/2", "/foo/00", "/foo/-", "/foo/", "/foo/0/x", "/bar", "/foo/+1"] {
            assert!(Pointer::parse(nowhere).unwrap().get(doc.root()).is_none(), "{nowhere}");
        }
        for bad in ["", "foo", "/a~", "/a~2", &"/x".repeat(33)] {
            assert!(Pointer::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_of_other_notations_are_told_the_pointer() {
        for (path, pointer) in [
            ("$.user.id", "/user/id"),
            ("user.id", "/user/id"),
            (".user.id", "/user/id"),
            ("$['user'][0]", "/user/0"),
            ("items[0].name", "/items/0/name"),
        ] {
            let error = Term::parse_strictly(path).unwrap_err();
            assert!(error.contains(&format!("write {pointer};")), "{path}: {error}");
            let error = Pointer::parse(path).unwrap_err();
            assert!(error.ends_with(&format!("such as {pointer}")), "{path}: {error}");
        }
        assert!(Pointer::parse("user").unwrap_err().ends_with("such as /user"));
        assert!(Pointer::parse("user/id").unwrap_err().ends_with("such as /user/id"));
        assert!(Pointer::parse("a b").unwrap_err().ends_with("such as /user/id"));
        for text in
            ["batch-job", "the shop", "v1.2", "alice@acme.example", "10.0.0.1", "a b.c", "acme"]
        {
            assert!(Term::parse_strictly(text).is_ok(), "{text}");
        }
        assert!(Term::parse("user.login").is_ok() && Term::parse("$.event").is_err());
    }

    #[test]
    fn digits_name_members_of_objects_too() {
        let doc = Doc::parse(r#"{"0":{"a":1,"a":2},"0":{"a":3}}"#).unwrap();
        let pointer = Pointer::parse("/0/a").unwrap();
        assert_eq!(pointer.get(doc.root()).unwrap().raw(), "3");
        let all: Vec<_> = pointer.all(doc.root()).into_iter().map(Value::raw).collect();
        assert_eq!(all, ["1", "2", "3"]);
    }
}
