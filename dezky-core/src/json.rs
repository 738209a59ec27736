//! JSON text as it was spelled.
//!
//! A reader that decodes every number and string would reject a whole batch for one lone surrogate
//! or one number beyond the doubles, and would round an id above 2^53. So a text is checked against
//! the grammar (RFC 8259) by `serde_json` and then split into values by their spelling, without
//! recursion; each value is decoded on demand. Canonical JSON and the sources that keep the sender's
//! text share this reader.
//!
//! ```
//! use dezky_core::json::Doc;
//! let doc = Doc::parse(r#"{"id": 18446744073709551615, "name": "\u00e9"}"#).unwrap();
//! let member = |name| doc.root().get(name).unwrap();
//! assert_eq!(member("id").raw(), "18446744073709551615");
//! assert_eq!(member("name").string().unwrap(), "é");
//! ```

use std::borrow::Cow;
use std::fmt;

use memchr::memchr2;
use serde_json::value::RawValue;

/// The text is not JSON. Names the position and the expected token, never the content.
#[derive(Debug)]
pub struct NotJson(serde_json::Error);

impl NotJson {
    /// The line at which parsing stopped, from 1.
    pub fn line(&self) -> usize {
        self.0.line()
    }

    /// The column at which parsing stopped, in bytes.
    pub fn column(&self) -> usize {
        self.0.column()
    }
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not JSON: {}", self.0)
    }
}

impl std::error::Error for NotJson {}

/// Checks that a text is JSON and below 4 GiB, at any depth. Decodes nothing.
///
/// # Errors
/// [`NotJson`] at the first byte that does not fit the grammar.
pub fn check(text: &str) -> Result<(), NotJson> {
    if u32::try_from(text.len()).is_err() {
        return Err(NotJson(serde::de::Error::custom("the text has 4 GiB or more")));
    }
    serde_json::from_str::<&RawValue>(text).map(drop).map_err(NotJson)
}

/// The values directly inside the list or object of a [checked](check) text, for an object its keys
/// and values alternately; nothing for any other value. Takes constant memory, however many values
/// there are.
pub fn children(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let first = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
    let mut at = match first {
        Some(at) if matches!(bytes[at], b'{' | b'[') => at + 1,
        _ => bytes.len(),
    };
    std::iter::from_fn(move || {
        at += bytes[at..].iter().position(|byte| !is_between(*byte))?;
        if matches!(bytes[at], b'}' | b']') {
            at = bytes.len();
            return None;
        }
        let start = at;
        at = value_end(bytes, start);
        Some(&text[start..at])
    })
}

/// A JSON text split into its values. A value takes twelve bytes, so even a text of nothing but
/// brackets takes only a small multiple of its size.
///
/// The `Debug` output of a text and its values shows kinds and lengths, never the content.
pub struct Doc<'a> {
    text: &'a str,
    /// In the order of their first bytes, so a container is followed by its contents.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    start: u32,
    end: u32,
    /// The first node that is not inside this one; for an open container, its parent.
    next: u32,
}

/// Stands for "no parent" of the outermost container.
const NONE: u32 = u32::MAX;

impl<'a> Doc<'a> {
    /// Splits a text into its values.
    ///
    /// # Errors
    /// See [`check`].
    pub fn parse(text: &'a str) -> Result<Self, NotJson> {
        check(text)?;
        Ok(Self::of_checked(text))
    }

    /// Splits a text that [`check`] accepted, or that is a value of such a text. The values of any
    /// other text are meaningless, and if it is blank, [`root`](Self::root) panics.
    pub fn of_checked(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        let mut nodes: Vec<Node> = Vec::with_capacity(text.len() / 8 + 1);
        let mut parent = NONE;
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            let start = offset(at);
            match byte {
                b'{' | b'[' => {
                    at += 1;
                    let index = offset(nodes.len());
                    nodes.push(Node { start, end: offset(at), next: parent });
                    parent = index;
                }
                b'}' | b']' => {
                    at += 1;
                    let next = offset(nodes.len());
                    if let Some(node) = nodes.get_mut(parent as usize) {
                        parent = std::mem::replace(&mut node.next, next);
                        node.end = offset(at);
                    }
                }
                byte if is_between(*byte) => at += 1,
                byte => {
                    at = if *byte == b'"' { string_end(bytes, at) } else { scalar_end(bytes, at) };
                    nodes.push(Node { start, end: offset(at), next: offset(nodes.len() + 1) });
                }
            }
        }
        Self { text, nodes }
    }

    /// The whole text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The outermost value.
    pub fn root(&self) -> Value<'_> {
        Value { doc: self, index: 0 }
    }

    /// All values at any depth, keys included, each before its contents.
    pub fn values(&self) -> impl Iterator<Item = Value<'_>> {
        (0..self.nodes.len()).map(|index| Value { doc: self, index })
    }
}

/// An offset into a text of checked length, or the index of a node; there are no more nodes than
/// bytes.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

/// Whether a byte separates values.
fn is_between(byte: u8) -> bool {
    matches!(byte, b',' | b':' | b' ' | b'\t' | b'\n' | b'\r')
}

/// The end of the value that begins at `start`.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' => (at, depth) = (at + 1, depth.saturating_sub(1)),
            b'"' => at = string_end(bytes, at),
            byte if is_between(*byte) => {
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
        .position(|b| is_between(*b) || matches!(b, b']' | b'}'))
        .map_or(bytes.len(), |len| start + len)
}

impl fmt::Debug for Doc<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doc({}, {} bytes)", kind_of(self.text), self.text.len())
    }
}

/// The kind of value that a text holds.
fn kind_of(text: &str) -> &'static str {
    match text.trim_start().bytes().next() {
        Some(b'{') => "object",
        Some(b'[') => "list",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "number",
        _ => "not JSON",
    }
}

/// A value of a [`Doc`].
#[derive(Clone, Copy)]
pub struct Value<'d> {
    doc: &'d Doc<'d>,
    index: usize,
}

impl<'d> Value<'d> {
    fn node(self) -> Node {
        self.doc.nodes[self.index]
    }

    /// Its index among the values of the text.
    pub fn index(self) -> usize {
        self.index
    }

    /// The index of the first value that is not inside this one.
    pub fn after(self) -> usize {
        self.node().next as usize
    }

    /// The offset of its first byte.
    pub fn start(self) -> usize {
        self.node().start as usize
    }

    /// The offset of the byte after its last one.
    pub fn end(self) -> usize {
        self.node().end as usize
    }

    /// Its text as spelled, with the quotes of a string.
    pub fn raw(self) -> &'d str {
        &self.doc.text[self.start()..self.end()]
    }

    fn first(self) -> u8 {
        self.doc.text.as_bytes()[self.start()]
    }

    /// Whether it is an object.
    pub fn is_object(self) -> bool {
        self.first() == b'{'
    }

    /// Whether it is a list.
    pub fn is_list(self) -> bool {
        self.first() == b'['
    }

    /// Whether it is `true`.
    pub fn is_true(self) -> bool {
        self.raw() == "true"
    }

    /// Whether it is a number.
    pub fn is_number(self) -> bool {
        matches!(self.first(), b'-' | b'0'..=b'9')
    }

    /// Itself and all values inside it at any depth, keys included, each before its contents.
    pub fn inside(self) -> impl Iterator<Item = Value<'d>> {
        let doc = self.doc;
        (self.index..self.after()).map(move |index| Value { doc, index })
    }

    /// The elements of a list; nothing for any other value.
    pub fn elements(self) -> Elements<'d> {
        self.children_if(self.is_list())
    }

    /// The members of an object, including those with equal keys; nothing for any other value.
    pub fn members(self) -> Members<'d> {
        Members(self.children_if(self.is_object()))
    }

    fn children_if(self, is_container: bool) -> Elements<'d> {
        let end = if is_container { self.after() } else { self.index };
        Elements { doc: self.doc, next: self.index + 1, end }
    }

    /// The value of an object's member; of equal keys the last, as in canonical JSON.
    pub fn get(self, name: &str) -> Option<Value<'d>> {
        self.members().filter(|m| m.is_named(name)).last().map(Member::value)
    }

    /// The decoded text of a string in normal form: lone surrogates and U+0000 become U+FFFD.
    pub fn string(self) -> Option<Cow<'d, str>> {
        (self.first() == b'"').then(|| unescape(&self.doc.text[self.start() + 1..self.end() - 1]))
    }

    /// The text of a string that is not empty, or a number as spelled.
    pub fn text(self) -> Option<Cow<'d, str>> {
        if self.is_number() {
            return Some(Cow::Borrowed(self.raw()));
        }
        self.string().filter(|text| !text.is_empty())
    }

    /// The text of a string that is not empty, or a number, `true` or `false` as spelled.
    pub fn scalar(self) -> Option<Cow<'d, str>> {
        match self.raw() {
            word @ ("true" | "false") => Some(Cow::Borrowed(word)),
            _ => self.text(),
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({}, {} bytes)", kind_of(self.raw()), self.raw().len())
    }
}

/// The values directly inside a list; see [`Value::elements`].
#[derive(Debug, Clone)]
pub struct Elements<'d> {
    doc: &'d Doc<'d>,
    next: usize,
    end: usize,
}

impl<'d> Iterator for Elements<'d> {
    type Item = Value<'d>;

    fn next(&mut self) -> Option<Value<'d>> {
        let value = (self.next < self.end).then_some(Value { doc: self.doc, index: self.next })?;
        self.next = value.after();
        Some(value)
    }
}

/// The members of an object; see [`Value::members`].
#[derive(Debug, Clone)]
pub struct Members<'d>(Elements<'d>);

impl<'d> Iterator for Members<'d> {
    type Item = Member<'d>;

    fn next(&mut self) -> Option<Member<'d>> {
        let key = self.0.next()?;
        self.0.next()?;
        Some(Member { key })
    }
}

/// A member of an object.
#[derive(Debug, Clone, Copy)]
pub struct Member<'d> {
    key: Value<'d>,
}

impl<'d> Member<'d> {
    /// The key, a string.
    pub fn key(self) -> Value<'d> {
        self.key
    }

    /// The value.
    pub fn value(self) -> Value<'d> {
        Value { index: self.key.index + 1, ..self.key }
    }

    /// The key's decoded text.
    pub fn name(self) -> Cow<'d, str> {
        self.key.string().unwrap_or_default()
    }

    /// Whether the key's decoded text is `name`. Decodes only keys with escapes.
    pub fn is_named(self, name: &str) -> bool {
        let raw = self.key.raw();
        let spelled = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        // An escape is longer than its character.
        (spelled == name && !name.contains('\\'))
            || (spelled.len() > name.len() && spelled.contains('\\') && self.name() == name)
    }
}

/// Decodes the content of a well-formed string.
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
        let first = doc.root().members().next().unwrap().value();
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
            let members = doc.root().members().flat_map(|m| [m.key(), m.value()]);
            let expected: Vec<_> = doc.root().elements().chain(members).map(Value::raw).collect();
            assert_eq!(children(text).collect::<Vec<_>>(), expected, "{text}");
        }
        let deep = format!("[{}{},7]", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(children(&deep).nth(1), Some("7"));
    }

    #[test]
    fn debug_shows_kinds_and_lengths_but_no_content() {
        let text = r#" {"secret":["secret",4711,true,null,{}]}"#;
        let doc = Doc::parse(text).unwrap();
        let member = doc.root().members().next().unwrap();
        assert_eq!(format!("{doc:?}"), "Doc(object, 40 bytes)");
        assert_eq!(format!("{:?}", doc.root()), "Value(object, 39 bytes)");
        assert_eq!(format!("{member:?}"), "Member { key: Value(string, 8 bytes) }");
        assert_eq!(
            format!("{:?}", member.value().elements().collect::<Vec<_>>()),
            "[Value(string, 8 bytes), Value(number, 4 bytes), Value(boolean, 4 bytes), \
             Value(null, 4 bytes), Value(object, 2 bytes)]"
        );
        let rest = format!("{:?} {:?}", doc.root().members(), member.value().elements());
        assert!(rest.contains("Doc(object, 40 bytes)"), "{rest}");
        assert!(!rest.contains("secret") && !rest.contains("4711"), "{rest}");
        assert_eq!(format!("{:?}", Doc::of_checked(" ")), "Doc(not JSON, 1 bytes)");
    }

    #[test]
    fn any_depth_is_accepted() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert_eq!(Doc::parse(&deep).unwrap().values().count(), 200_000);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", " ", "{", "[1,]", "{} {}", "nul", "01", "\"\n\"", r#""\x""#, "{1:2}"] {
            assert!(Doc::parse(text).is_err(), "{text}");
        }
    }
}
