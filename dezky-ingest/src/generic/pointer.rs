//! JSON pointers (RFC 6901) into a document.

use std::borrow::Cow;

use crate::json::Value;
use crate::secrets;

/// How deep a pointer may go.
const MAX_SEGMENTS: usize = 32;

/// Where in a document something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer(Vec<String>);

impl Pointer {
    /// Reads a pointer, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("must be a JSON pointer, which begins with /, such as /user/id".into());
        };
        let segments: Vec<String> = rest.split('/').map(unescape).collect::<Result<_, _>>()?;
        if segments.len() > MAX_SEGMENTS {
            return Err(format!("goes deeper than {MAX_SEGMENTS} levels: name a shorter path"));
        }
        Ok(Self(segments))
    }

    /// The first of its names under which nothing is kept.
    pub(super) fn secret(&self) -> Option<&str> {
        self.0.iter().map(String::as_str).find(|name| secrets::is_secret(name, false))
    }

    /// Whether `other` is the same place or inside it.
    pub(super) fn holds(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The value there; of equal keys the last, as in canonical JSON.
    pub(super) fn get<'d>(&self, root: Value<'d>) -> Option<Value<'d>> {
        self.0.iter().try_fold(root, |at, segment| match index(segment) {
            Some(index) if at.is_list() => at.elements().nth(index),
            _ => at.get(segment),
        })
    }

    /// Every value there, those of equal keys too: what is to be hidden must not hide
    /// behind its namesake.
    pub(super) fn all<'d>(&self, root: Value<'d>) -> Vec<Value<'d>> {
        let mut found = vec![root];
        for segment in &self.0 {
            let below = |at: &Value<'d>| -> Vec<Value<'d>> {
                match index(segment) {
                    Some(index) if at.is_list() => at.elements().nth(index).into_iter().collect(),
                    _ => {
                        let named = at.members().filter(|member| member.name() == *segment);
                        named.map(|member| member.value).collect()
                    }
                }
            };
            found = found.iter().flat_map(below).collect();
        }
        found
    }
}

fn unescape(segment: &str) -> Result<String, String> {
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((before, after)) = rest.split_once('~') {
        out.push_str(before);
        let decoded = match after.as_bytes().first() {
            Some(b'0') => '~',
            Some(b'1') => '/',
            _ => return Err("has a ~ that stands for nothing: write ~0 for ~, ~1 for /".into()),
        };
        out.push(decoded);
        rest = &after[1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The place in a list that a segment names.
fn index(segment: &str) -> Option<usize> {
    let is_index = segment == "0"
        || (segment.bytes().all(|b| b.is_ascii_digit()) && !segment.starts_with('0'));
    is_index.then(|| segment.parse().ok()).flatten()
}

/// A text that is given, or a place where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    Literal(String),
    Pointer(Pointer),
}

impl Term {
    /// What begins with `/` is a pointer, anything else the text itself.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Pointer::parse(text).map(Self::Pointer);
        }
        Ok(Self::Literal(text.to_owned()))
    }

    /// The text, if there is one: of a string that is not empty, of a number, or `true`
    /// or `false`.
    pub(super) fn text<'d>(&'d self, object: Value<'d>) -> Option<Cow<'d, str>> {
        match self {
            Self::Literal(text) => Some(Cow::Borrowed(text)),
            Self::Pointer(pointer) => pointer.get(object)?.scalar(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Doc;

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
    fn digits_name_members_of_objects_too() {
        let doc = Doc::parse(r#"{"0":{"a":1,"a":2},"0":{"a":3}}"#).unwrap();
        let pointer = Pointer::parse("/0/a").unwrap();
        assert_eq!(pointer.get(doc.root()).unwrap().raw(), "3");
        let all: Vec<_> = pointer.all(doc.root()).into_iter().map(Value::raw).collect();
        assert_eq!(all, ["1", "2", "3"]);
    }
}
