//! JSON as it was spelled.
//!
//! A reader that decodes numbers and strings can't be used on a batch: one lone
//! surrogate or one number beyond the doubles would fail the good events beside
//! it, and an id above 2^53 would be rounded. So the text is cut into values by
//! their spelling only, flat and without recursion, and each is decoded when it
//! is asked for.

use std::borrow::Cow;

use memchr::memchr2;
use serde_json::value::RawValue;

/// A JSON text and where its values are.
pub(crate) struct Doc<'a> {
    text: &'a str,
    /// In order of their first byte, so that what an object or list holds
    /// follows it.
    nodes: Vec<Node>,
}

/// Small, as a body may have millions of them.
#[derive(Clone, Copy)]
struct Node {
    start: u32,
    end: u32,
    /// The first node that is not inside this one.
    next: u32,
}

impl<'a> Doc<'a> {
    /// Cuts a text into its values. Fails if it is not JSON by its grammar.
    pub(crate) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        check(text)?;
        Ok(Self::of_checked(text))
    }

    /// The same of a text that was [`check`]ed, or that is a value of one that was.
    pub(crate) fn of_checked(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        let mut nodes: Vec<Node> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            let start = place(at);
            match byte {
                b'{' | b'[' => {
                    at += 1;
                    open.push(nodes.len());
                    nodes.push(Node { start, end: place(at), next: 0 });
                }
                b'}' | b']' => {
                    at += 1;
                    let next = place(nodes.len());
                    if let Some(node) = open.pop().and_then(|index| nodes.get_mut(index)) {
                        (node.end, node.next) = (place(at), next);
                    }
                }
                b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
                byte => {
                    at = if *byte == b'"' { string_end(bytes, at) } else { scalar_end(bytes, at) };
                    nodes.push(Node { start, end: place(at), next: place(nodes.len() + 1) });
                }
            }
        }
        Self { text, nodes }
    }

    /// The text.
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// The outermost value.
    pub(crate) fn root(&self) -> Value<'_> {
        Value { doc: self, index: 0 }
    }

    /// Every value at any depth, keys too, each before what it holds.
    pub(crate) fn values(&self) -> impl Iterator<Item = Value<'_>> {
        (0..self.nodes.len()).map(|index| Value { doc: self, index })
    }
}

/// Checks the grammar, at any depth, and decodes nothing.
pub(crate) fn check(text: &str) -> Result<(), serde_json::Error> {
    if u32::try_from(text.len()).is_err() {
        return Err(serde::de::Error::custom("a text of 4 GiB or more"));
    }
    serde_json::from_str::<&RawValue>(text).map(drop)
}

/// A place in a text, or among its values, of which there are fewer than bytes; [`check`]
/// has seen that it fits.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The values right inside the list or object that a [`check`]ed text is, an object's keys
/// and values by turns; none of anything else. Nothing is kept, so a text of millions of
/// values takes no memory beside its own.
pub(crate) fn children(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let first = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
    let mut at = match first {
        Some(at) if matches!(bytes[at], b'{' | b'[') => at + 1,
        _ => bytes.len(),
    };
    std::iter::from_fn(move || {
        at += bytes[at..]
            .iter()
            .position(|byte| !matches!(byte, b',' | b':' | b' ' | b'\t' | b'\n' | b'\r'))?;
        if matches!(bytes[at], b'}' | b']') {
            at = bytes.len();
            return None;
        }
        let start = at;
        at = value_end(bytes, start);
        Some(&text[start..at])
    })
}

/// Where the byte after a value is that begins at `start`.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' => (at, depth) = (at + 1, depth.saturating_sub(1)),
            b'"' => at = string_end(bytes, at),
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            _ => at = scalar_end(bytes, at),
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

fn scalar_end(bytes: &[u8], start: usize) -> usize {
    bytes[start..]
        .iter()
        .position(|b| matches!(b, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r'))
        .map_or(bytes.len(), |len| start + len)
}

/// A value of a [`Doc`].
#[derive(Clone, Copy)]
pub(crate) struct Value<'d> {
    doc: &'d Doc<'d>,
    index: usize,
}

impl<'d> Value<'d> {
    fn node(self) -> Node {
        self.doc.nodes[self.index]
    }

    /// Its place among the values of its text.
    pub(crate) fn index(self) -> usize {
        self.index
    }

    /// The place of the first value that is not inside this one.
    pub(crate) fn after(self) -> usize {
        self.node().next as usize
    }

    /// Where its first byte is.
    pub(crate) fn start(self) -> usize {
        self.node().start as usize
    }

    /// Where the byte after its last is.
    pub(crate) fn end(self) -> usize {
        self.node().end as usize
    }

    /// Its text as it was spelled.
    pub(crate) fn raw(self) -> &'d str {
        &self.doc.text[self.start()..self.end()]
    }

    fn first(self) -> u8 {
        self.doc.text.as_bytes()[self.start()]
    }

    /// Whether it is an object.
    pub(crate) fn is_object(self) -> bool {
        self.first() == b'{'
    }

    /// Whether it is a list.
    pub(crate) fn is_list(self) -> bool {
        self.first() == b'['
    }

    /// Whether it is `true`.
    pub(crate) fn is_true(self) -> bool {
        self.raw() == "true"
    }

    /// Itself and every value inside it at any depth, keys too, each before what it
    /// holds.
    pub(crate) fn inside(self) -> impl Iterator<Item = Value<'d>> {
        let doc = self.doc;
        (self.index..self.after()).map(move |index| Value { doc, index })
    }

    /// The values right inside it; an object's keys and values by turns.
    fn children(self) -> impl Iterator<Item = Value<'d>> {
        let (doc, end) = (self.doc, self.after());
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let child = (index < end).then_some(Value { doc, index })?;
            index = child.after();
            Some(child)
        })
    }

    /// The elements of a list; none of anything else.
    pub(crate) fn elements(self) -> impl Iterator<Item = Value<'d>> {
        self.is_list().then(|| self.children()).into_iter().flatten()
    }

    /// The members of an object, equal keys and all; none of anything else.
    pub(crate) fn members(self) -> impl Iterator<Item = Member<'d>> {
        let mut children = self.is_object().then(|| self.children()).into_iter().flatten();
        std::iter::from_fn(move || {
            let key = children.next()?;
            Some(Member { key, value: children.next()? })
        })
    }

    /// The member of an object; of several of that name the last, as in
    /// canonical JSON.
    pub(crate) fn get(self, name: &str) -> Option<Value<'d>> {
        self.members().filter(|m| m.is_named(name)).last().map(|m| m.value)
    }

    /// The text of a string, in normal form: lone surrogates and U+0000 are
    /// U+FFFD.
    pub(crate) fn string(self) -> Option<Cow<'d, str>> {
        (self.first() == b'"').then(|| unescape(&self.doc.text[self.start() + 1..self.end() - 1]))
    }

    /// The text of a string that is not empty, or a number as it was spelled.
    pub(crate) fn text(self) -> Option<Cow<'d, str>> {
        match self.first() {
            b'"' => self.string().filter(|text| !text.is_empty()),
            b'-' | b'0'..=b'9' => Some(Cow::Borrowed(self.raw())),
            _ => None,
        }
    }
}

impl<'d> Value<'d> {
    /// The text of a string that is not empty, or a number, `true` or `false` as they
    /// were spelled.
    pub(crate) fn scalar(self) -> Option<Cow<'d, str>> {
        match self.raw() {
            word @ ("true" | "false") => Some(Cow::Borrowed(word)),
            _ => self.text(),
        }
    }
}

/// A member of an object.
#[derive(Clone, Copy)]
pub(crate) struct Member<'d> {
    pub(crate) key: Value<'d>,
    pub(crate) value: Value<'d>,
}

impl<'d> Member<'d> {
    /// The key's text, whatever its spelling.
    pub(crate) fn name(self) -> Cow<'d, str> {
        self.key.string().unwrap_or_default()
    }

    /// Whether that is the key's text. Most keys are spelled as they are, so that
    /// they need not be decoded.
    pub(crate) fn is_named(self, name: &str) -> bool {
        let raw = self.key.raw();
        let spelled = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        // An escape is longer than what it stands for.
        (spelled == name && !name.contains('\\'))
            || (spelled.len() > name.len() && spelled.contains('\\') && self.name() == name)
    }
}

/// Decodes what stands between the quotes of a well-formed string.
fn unescape(inner: &str) -> Cow<'_, str> {
    let mut rest = inner;
    let mut out = String::new();
    while let Some((before, escape)) = rest.split_once('\\') {
        out.push_str(before);
        let mut chars = escape.chars();
        let decoded = match chars.next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let unit = hex4(chars.as_str());
                chars.nth(3);
                let pair = chars.as_str().strip_prefix("\\u").and_then(hex4);
                let code = match (unit, pair) {
                    (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => {
                        chars.nth(5);
                        Some(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
                    }
                    (unit, _) => unit,
                };
                let decoded = code.and_then(char::from_u32).filter(|c| *c != '\0');
                decoded.unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            Some(other) => other,
            None => break,
        };
        out.push(decoded);
        rest = chars.as_str();
    }
    if out.is_empty() && rest.len() == inner.len() {
        return Cow::Borrowed(inner);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn hex4(text: &str) -> Option<u32> {
    u32::from_str_radix(text.get(..4)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_is_kept() {
        let text =
            r#" { "a" : [1e999, -0, 18446744073709551615 ,{}], "b\u002e":"x\"]}" , "a":null } "#;
        let doc = Doc::parse(text).unwrap();
        let names: Vec<_> = doc.root().members().map(|m| m.name().into_owned()).collect();
        assert_eq!(names, ["a", "b.", "a"]);
        assert_eq!(doc.root().get("a").unwrap().raw(), "null");
        let first = doc.root().members().next().unwrap().value;
        let raw: Vec<_> = first.elements().map(Value::raw).collect();
        assert_eq!(raw, ["1e999", "-0", "18446744073709551615", "{}"]);
        assert!(doc.root().get("b\\u002e").is_none());
        assert_eq!(doc.root().get("b.").unwrap().string().unwrap(), "x\"]}");
        assert_eq!(first.elements().nth(2).unwrap().text().unwrap(), "18446744073709551615");
        assert_eq!(doc.root().raw(), text.trim());
    }

    #[test]
    fn strings_in_normal_form() {
        for (spelled, text) in [
            (r#""plain""#, "plain"),
            (r#""""#, ""),
            (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r#""\u00e9\uD83D\uDE00""#, "é😀"),
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ude00\u0000é""#, "\u{fffd}\u{fffd}é"),
        ] {
            assert_eq!(Doc::parse(spelled).unwrap().root().string().unwrap(), text, "{spelled}");
        }
    }

    #[test]
    fn children_are_those_of_the_document() {
        for text in [
            " [1 , \"a,]\\\"\" ,{\"b\":[]},[[],{}], null ]\n",
            r#"{"a":{"b":[1,{"c":"}"}]},"a" : 2.5e1}"#,
            "[]",
            "{ }",
            "17",
            r#""[1]""#,
        ] {
            let doc = Doc::parse(text).unwrap();
            let expected: Vec<_> = doc.root().children().map(Value::raw).collect();
            let is_container = doc.root().is_list() || doc.root().is_object();
            let expected = if is_container { expected } else { Vec::new() };
            assert_eq!(children(text).collect::<Vec<_>>(), expected, "{text}");
        }
        let deep = format!("[{}{},7]", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(children(&deep).nth(1), Some("7"));
    }

    #[test]
    fn depth_is_no_limit() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert_eq!(Doc::parse(&deep).unwrap().values().count(), 200_000);
    }

    #[test]
    fn what_is_not_json() {
        for text in ["", " ", "{", "[1,]", "{} {}", "nul", "01", "\"\n\"", r#""\x""#, "{1:2}"] {
            assert!(Doc::parse(text).is_err(), "{text}");
        }
    }
}
