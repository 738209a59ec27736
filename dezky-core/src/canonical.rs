//! Canonical JSON from raw text (`docs/integrity.md`).
//!
//! The form is that of RFC 8785, except that 64-bit integers are kept exactly, so that a source's
//! `spanId` or file size is not rounded. Numbers are distinguished by their spelling, so this
//! module parses the text itself: the JSON values of other libraries have lost the difference
//! between `1` and `1.0`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// Converts any JSON text (RFC 8259) to its canonical form.
///
/// - No white space; members sorted by the UTF-16 code units of their keys, the last of equal keys
///   wins.
/// - Strings are escaped as in RFC 8785; U+0000 and lone surrogate escapes become U+FFFD.
/// - A 64-bit integer keeps its digits; a larger one becomes a string. Any other number becomes the
///   nearest double as printed by RFC 8785, or a string if it overflows or would be read as an
///   integer of more than 64 bits.
///
/// Canonical text stays unchanged. Nesting of any depth is processed without recursion. Time is
/// linear in the length of the text, except for sorting objects whose members are not in order.
///
/// ```
/// use dezky_core::canonical::canonicalize;
/// assert_eq!(
///     canonicalize(r#"{ "size": 9007199254740993, "rate": 1.50, "at": "\u00e9" }"#).unwrap(),
///     r#"{"at":"é","rate":1.5,"size":9007199254740993}"#,
/// );
/// assert!(canonicalize("{'a': 1}").is_err());
/// ```
pub fn canonicalize(raw: &str) -> Result<String, NotJson> {
    let document = Document::parse(raw)?;
    let mut text = String::with_capacity(raw.len());
    let unbounded = Bounds { depth: usize::MAX, bytes: usize::MAX };
    // Cannot fail: there are no bounds to exceed.
    let _ = document.write(Document::ROOT, &mut text, unbounded);
    Ok(text)
}

/// The text is not JSON. States the position and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotJson {
    offset: usize,
    expected: &'static str,
}

impl NotJson {
    /// The byte offset at which parsing stopped.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not JSON: expected {} at byte {}", self.expected, self.offset)
    }
}

impl std::error::Error for NotJson {}

/// Compares keys by UTF-16 code units.
pub(crate) fn compare_keys(a: &str, b: &str) -> Ordering {
    // Equals the order of UTF-8 with one exception: in UTF-16, the surrogates of characters above
    // U+FFFF (lead bytes F0…F4) sort before U+E000…U+FFFF (lead bytes EE and EF). Where two texts
    // first differ, either both bytes lead a character or neither does, and EE and EF are never
    // continuation bytes.
    fn rank(byte: u8) -> u8 {
        if matches!(byte, 0xEE | 0xEF) { byte + 0x10 } else { byte }
    }
    match a.bytes().zip(b.bytes()).find(|(x, y)| x != y) {
        Some((x, y)) => rank(x).cmp(&rank(y)),
        None => a.len().cmp(&b.len()),
    }
}

/// Appends `text` as a canonical string, quotes included.
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b < 0x20 || b == b'"' || b == b'\\') {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            0 => out.push('\u{fffd}'),
            0x08 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            0x0C => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            control => {
                const HEX: [char; 16] = [
                    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
                ];
                out.push_str("\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// Limits for [`Document::write`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Maximum nesting of containers; 0 allows only scalars.
    pub(crate) depth: usize,
    /// Maximum number of bytes appended.
    pub(crate) bytes: usize,
}

/// The canonical text would exceed its [`Bounds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfBounds;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `null`, `true`, `false`.
    Literal,
    /// A number without fraction or exponent.
    Integer,
    /// Any other number.
    Real,
    /// A string in canonical form; before a value node, the value's key.
    Plain,
    /// Like `Plain`, but with escapes.
    Escaped,
    Array,
    Object,
}

/// A token, in the order of the text. A member takes two or more nodes: its key, then its value
/// with everything in it.
#[derive(Debug, Clone, Copy)]
struct Node {
    kind: Kind,
    /// The token's start in the text, including quotes.
    start: u32,
    /// For a container: the node after everything in it (its parent while it is open). Otherwise:
    /// the token's end in the text.
    end: u32,
}

/// A member of an object: its decoded key and the node of its value.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) value: usize,
}

/// A JSON text split into tokens. A token takes twelve bytes, so even a text of nothing but
/// brackets takes only a small multiple of its size.
#[derive(Debug, Default)]
pub(crate) struct Document<'a> {
    raw: &'a str,
    nodes: Vec<Node>,
}

impl<'a> Document<'a> {
    /// The node of the outermost value.
    pub(crate) const ROOT: usize = 0;

    /// Parses a complete text of any depth.
    pub(crate) fn parse(raw: &'a str) -> Result<Self, NotJson> {
        if u32::try_from(raw.len()).is_err() {
            return Err(NotJson { offset: 0, expected: "less than 4 GiB" });
        }
        let nodes = Vec::with_capacity(raw.len() / 8 + 1);
        let mut parser = Parser { bytes: raw.as_bytes(), at: 0, nodes };
        parser.document()?;
        Ok(Self { raw, nodes: parser.nodes })
    }

    pub(crate) fn is_object(&self) -> bool {
        self.nodes.first().is_some_and(|n| n.kind == Kind::Object)
    }

    /// The length of the text.
    pub(crate) fn len(&self) -> usize {
        self.raw.len()
    }

    /// The members of the object at `node` in canonical order; of equal keys, only the last.
    pub(crate) fn members(&self, node: usize) -> Vec<Member<'a>> {
        let mut members = Vec::new();
        let mut sorted = true;
        let mut next = node + 1;
        while next < self.nodes[node].end as usize {
            let key = self.text(next);
            sorted &= members
                .last()
                .is_none_or(|m: &Member<'_>| compare_keys(&m.key, &key) == Ordering::Less);
            members.push(Member { key, value: next + 1 });
            next = self.after(next + 1);
        }
        if !sorted {
            // The sort is stable: after reversing, the last of equal keys comes first, and
            // `dedup_by` keeps the first.
            members.reverse();
            members.sort_by(|a, b| compare_keys(&a.key, &b.key));
            members.dedup_by(|a, b| a.key == b.key);
        }
        members
    }

    /// Appends the canonical form of the value at `node`. If it exceeds `bounds`, `out` ends with
    /// an incomplete text.
    pub(crate) fn write(
        &self,
        node: usize,
        out: &mut String,
        bounds: Bounds,
    ) -> Result<(), OutOfBounds> {
        let most = out.len().saturating_add(bounds.bytes);
        let mut open: Vec<Open> = Vec::new();
        let mut node = node;
        loop {
            match self.nodes[node].kind {
                Kind::Array | Kind::Object if open.len() >= bounds.depth => {
                    return Err(OutOfBounds);
                }
                Kind::Array => {
                    out.push('[');
                    open.push(Open::Array { next: node + 1, end: self.after(node) });
                }
                Kind::Object => {
                    out.push('{');
                    open.push(self.open_object(node));
                }
                _ => self.write_scalar(node, out),
            }
            if out.len() > most {
                return Err(OutOfBounds);
            }
            // Advances to the next value, closing finished containers.
            node = loop {
                let Some(container) = open.last_mut() else {
                    return if out.len() > most { Err(OutOfBounds) } else { Ok(()) };
                };
                let (value, close) = match container {
                    Open::Array { next, end } => {
                        let value = (*next < *end).then_some(*next);
                        *next = value.map_or(*next, |v| self.after(v));
                        (value, ']')
                    }
                    Open::Sorted { next, end } => {
                        let value = (*next < *end).then_some(*next + 1);
                        *next = value.map_or(*next, |v| self.after(v));
                        (value, '}')
                    }
                    Open::Unsorted(members) => (members.next().map(|m| m as usize), '}'),
                };
                if let Some(value) = value {
                    // Strings end with a quote, so only a container that was just opened ends like
                    // this.
                    if !out.ends_with(['{', '[']) {
                        out.push(',');
                    }
                    if close == '}' {
                        self.write_scalar(value - 1, out);
                        out.push(':');
                    }
                    break value;
                }
                out.push(close);
                open.pop();
            };
            if out.len() > most {
                return Err(OutOfBounds);
            }
        }
    }

    /// Appends the key of the member whose value is at `node`, as a string.
    pub(crate) fn write_key(&self, node: usize, out: &mut String) {
        self.write_scalar(node - 1, out);
    }

    fn open_object(&self, node: usize) -> Open {
        let end = self.after(node);
        let (mut next, mut last) = (node + 1, None);
        while next < end {
            let key = self.text(next);
            if last.is_some_and(|last: Cow<'_, str>| compare_keys(&last, &key) != Ordering::Less) {
                let values: Vec<u32> = self
                    .members(node)
                    .iter()
                    .map(|m| u32::try_from(m.value).unwrap_or(u32::MAX))
                    .collect();
                return Open::Unsorted(values.into_iter());
            }
            last = Some(key);
            next = self.after(next + 1);
        }
        Open::Sorted { next: node + 1, end }
    }

    /// The node after the value at `node` and everything in it.
    fn after(&self, node: usize) -> usize {
        match self.nodes[node] {
            Node { kind: Kind::Array | Kind::Object, end, .. } => end as usize,
            _ => node + 1,
        }
    }

    fn token(&self, node: usize) -> &'a str {
        let Node { start, end, .. } = self.nodes[node];
        &self.raw[start as usize..end as usize]
    }

    /// The decoded text of a string or key.
    fn text(&self, node: usize) -> Cow<'a, str> {
        let token = self.token(node);
        let inner = &token[1..token.len() - 1];
        match self.nodes[node].kind {
            Kind::Escaped => Cow::Owned(unescape(inner)),
            _ => Cow::Borrowed(inner),
        }
    }

    fn write_scalar(&self, node: usize, out: &mut String) {
        let token = self.token(node);
        match self.nodes[node].kind {
            Kind::Escaped => write_string(out, &self.text(node)),
            Kind::Integer => write_integer(out, token),
            Kind::Real => write_real(out, token),
            _ => out.push_str(token),
        }
    }
}

/// An open container in [`Document::write`].
enum Open {
    Array {
        next: usize,
        end: usize,
    },
    /// The common case: members that are already sorted.
    Sorted {
        next: usize,
        end: usize,
    },
    /// The values of the members in sorted order.
    Unsorted(std::vec::IntoIter<u32>),
}

/// Whether an integer token fits into 64 bits.
fn is_i64(token: &str) -> bool {
    // 18 digits always fit.
    token.len() <= 18 || token.parse::<i64>().is_ok()
}

fn write_quoted(out: &mut String, number: &str) {
    out.push('"');
    out.push_str(number);
    out.push('"');
}

fn write_integer(out: &mut String, token: &str) {
    if token == "-0" {
        out.push('0');
    } else if is_i64(token) {
        out.push_str(token);
    } else {
        write_quoted(out, token);
    }
}

fn write_real(out: &mut String, token: &str) {
    let number = token.parse::<f64>().unwrap_or(f64::INFINITY);
    if !number.is_finite() {
        return write_quoted(out, token);
    }
    let mut buffer = ryu_js::Buffer::new();
    let text = buffer.format_finite(number);
    // If parsed again, this text would be an integer that does not fit.
    if !text.contains(['.', 'e']) && !is_i64(text) {
        write_quoted(out, text);
    } else {
        out.push_str(text);
    }
}

/// Decodes a string's content whose escapes have been validated.
fn unescape(inner: &str) -> String {
    /// The code unit of a leading `\uXXXX` escape.
    fn unit(text: &str) -> Option<u16> {
        u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
    }

    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(first) = unit(rest) else {
            text.push(match rest.as_bytes()[1] {
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                itself => char::from(itself),
            });
            rest = &rest[2..];
            continue;
        };
        rest = &rest[6..];
        let mut units = [first, 0];
        let mut len = 1;
        if (0xD800..0xDC00).contains(&first)
            && let Some(second @ 0xDC00..0xE000) = unit(rest)
        {
            units[1] = second;
            len = 2;
            rest = &rest[6..];
        }
        text.extend(char::decode_utf16(units[..len].iter().copied()).map(|c| match c {
            Ok('\0') | Err(_) => char::REPLACEMENT_CHARACTER,
            Ok(c) => c,
        }));
    }
    text.push_str(rest);
    text
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
}

/// Stands for "no parent" of the outermost container.
const NONE: u32 = u32::MAX;

impl Parser<'_> {
    fn document(&mut self) -> Result<(), NotJson> {
        // The innermost open container; each stores its parent in `end` until it is closed, so that
        // nesting needs no stack.
        let mut parent = NONE;
        loop {
            // A value starts here.
            self.skip_white_space();
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    let kind = if open == b'{' { Kind::Object } else { Kind::Array };
                    let node = Node { kind, start: offset(self.at), end: parent };
                    parent = offset(self.nodes.len());
                    self.nodes.push(node);
                    self.at += 1;
                    self.skip_white_space();
                    match (kind, self.peek()) {
                        // Closed below.
                        (Kind::Object, Some(b'}')) | (Kind::Array, Some(b']')) => {}
                        (Kind::Object, _) => {
                            self.key()?;
                            continue;
                        }
                        _ => continue,
                    }
                }
                _ => self.scalar()?,
            }
            // A value has ended, possibly with containers around it.
            loop {
                self.skip_white_space();
                let next = self.peek();
                let Some(container) = self.nodes.get(parent as usize) else {
                    return if next.is_none() { Ok(()) } else { self.error("the end") };
                };
                match (container.kind, next) {
                    (Kind::Object, Some(b'}')) | (_, Some(b']'))
                        if (container.kind == Kind::Object) == (next == Some(b'}')) =>
                    {
                        self.at += 1;
                        let grandparent = container.end;
                        self.nodes[parent as usize].end = offset(self.nodes.len());
                        parent = grandparent;
                    }
                    (kind, Some(b',')) => {
                        self.at += 1;
                        if kind == Kind::Object {
                            self.skip_white_space();
                            self.key()?;
                        }
                        break;
                    }
                    (Kind::Object, _) => return self.error("a comma or }"),
                    _ => return self.error("a comma or ]"),
                }
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn error<T>(&self, expected: &'static str) -> Result<T, NotJson> {
        Err(NotJson { offset: self.at, expected })
    }

    fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn push(&mut self, kind: Kind, start: usize) {
        self.nodes.push(Node { kind, start: offset(start), end: offset(self.at) });
    }

    fn key(&mut self) -> Result<(), NotJson> {
        if self.peek() != Some(b'"') {
            return self.error("a key");
        }
        self.string()?;
        self.skip_white_space();
        if self.peek() != Some(b':') {
            return self.error("a colon");
        }
        self.at += 1;
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), NotJson> {
        let literal = match self.peek() {
            Some(b'"') => return self.string(),
            Some(b'-' | b'0'..=b'9') => return self.number(),
            Some(b'n') => "null",
            Some(b't') => "true",
            Some(b'f') => "false",
            _ => return self.error("a value"),
        };
        let start = self.at;
        if !self.bytes[start..].starts_with(literal.as_bytes()) {
            return self.error("a value");
        }
        self.at += literal.len();
        self.push(Kind::Literal, start);
        Ok(())
    }

    fn string(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        let mut kind = Kind::Plain;
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let stop = rest.iter().position(|&b| b < 0x20 || b == b'"' || b == b'\\');
            self.at += stop.unwrap_or(rest.len());
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.push(kind, start);
                    return Ok(());
                }
                Some(b'\\') => {
                    kind = Kind::Escaped;
                    self.at += match self.bytes.get(self.at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u')
                            if self
                                .bytes
                                .get(self.at + 2..self.at + 6)
                                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
                        {
                            6
                        }
                        _ => return self.error("an escape"),
                    };
                }
                _ => return self.error("a character of a string, or its end"),
            }
        }
    }

    fn number(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        let mut kind = Kind::Integer;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            kind = Kind::Real;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            kind = Kind::Real;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        self.push(kind, start);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), NotJson> {
        let count = self.bytes[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if count == 0 {
            return self.error("a digit");
        }
        self.at += count;
        Ok(())
    }
}

/// An offset into a text of checked length, or the index of a node; there are no more nodes than
/// bytes.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn canon(raw: &str) -> String {
        canonicalize(raw).unwrap_or_else(|e| panic!("{e}: {raw}"))
    }

    #[test]
    fn numbers_by_their_spelling() {
        for (raw, canonical) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("-0e5", "0"),
            ("1.0", "1"),
            ("1E2", "100"),
            ("1e21", "1e+21"),
            ("1e-7", "1e-7"),
            ("0.000001", "0.000001"),
            ("1e-400", "0"),
            ("9007199254740993", "9007199254740993"),
            ("9007199254740993.0", "9007199254740992"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("9223372036854775808", "\"9223372036854775808\""),
            ("-9223372036854775809", "\"-9223372036854775809\""),
            ("123456789012345678901234567890", "\"123456789012345678901234567890\""),
            // Nearest double 2^63, which RFC 8785 prints beyond the range.
            ("9223372036854775807.0", "\"9223372036854776000\""),
            ("-9223372036854775808.0", "\"-9223372036854776000\""),
            ("9.2e18", "9200000000000000000"),
            ("1e20", "\"100000000000000000000\""),
            ("-1e20", "\"-100000000000000000000\""),
            ("1e400", "\"1e400\""),
            ("-1E+400", "\"-1E+400\""),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("5e-324", "5e-324"),
            ("333333333.33333329", "333333333.3333333"),
        ] {
            assert_eq!(canon(raw), canonical, "{raw}");
            assert_eq!(canon(canonical), canonical, "{raw}, again");
        }
    }

    #[test]
    fn strings() {
        for (raw, canonical) in [
            (r#""\u0008\u0009\u000a\u000c\u000d\u0022\u005C\/""#, r#""\b\t\n\f\r\"\\/""#),
            (r#""\u001F\u007f\u2028""#, "\"\\u001f\u{7f}\u{2028}\""),
            (r#""\ud83d\ude00""#, "\"\u{1f600}\""),
            (r#""\uD800""#, "\"\u{fffd}\""),
            (r#""\udc00x""#, "\"\u{fffd}x\""),
            (r#""\ud800\u0041""#, "\"\u{fffd}A\""),
            (r#""\ud800\ud83d\ude00""#, "\"\u{fffd}\u{1f600}\""),
            (r#""\ud800\n""#, "\"\u{fffd}\\n\""),
            (r#""a\u0000b""#, "\"a\u{fffd}b\""),
            ("\"\u{7f}\u{fffd}é\"", "\"\u{7f}\u{fffd}é\""),
        ] {
            assert_eq!(canon(raw), canonical, "{raw}");
            assert_eq!(canon(canonical), canonical, "{raw}, again");
        }
    }

    #[test]
    fn members() {
        for (raw, canonical) in [
            ("{}", "{}"),
            (" { } ", "{}"),
            ("[ ]", "[]"),
            ("\r\n[ 1 , \t2 ]", "[1,2]"),
            (r#"{"b":1,"a":2,"b":3}"#, r#"{"a":2,"b":3}"#),
            (r#"{"a":1,"\u0061":[{}]}"#, r#"{"a":[{}]}"#),
            (r#"{"\ud800":1,"\u0000":2,"\ufffd":3}"#, "{\"\u{fffd}\":3}"),
            (
                r#"{"a":{"y":1,"x":{"q":[],"p":{}}},"":0}"#,
                r#"{"":0,"a":{"x":{"p":{},"q":[]},"y":1}}"#,
            ),
            (r#"{"ab":1,"a":2,"aa":3}"#, r#"{"a":2,"aa":3,"ab":1}"#),
            (r#"{"k":"{","j":["[","{"]}"#, r#"{"j":["[","{"],"k":"{"}"#),
            ("{\"\u{fb33}\":1,\"\u{1f600}\":2}", "{\"\u{1f600}\":2,\"\u{fb33}\":1}"),
        ] {
            assert_eq!(canon(raw), canonical, "{raw}");
            assert_eq!(canon(canonical), canonical, "{raw}, again");
        }
    }

    #[test]
    fn invalid_json_is_refused() {
        for raw in [
            "",
            " ",
            "nul",
            "nulll",
            "True",
            "NaN",
            "Infinity",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".5",
            "1e",
            "1e+",
            "0x1",
            "1 2",
            "[1,]",
            "[,1]",
            "[1",
            "]",
            "[1}",
            "{\"a\":1]",
            "{",
            "{]",
            "[}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{a:1}",
            "{1:2}",
            "'a'",
            "\"",
            "\"\\",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u+123\"",
            "\"\\u123g\"",
            "\"a\nb\"",
            "\"\0\"",
            "\u{feff}1",
            "\u{a0}1",
            "1\u{0}",
            "/**/1",
            "[1]]",
            "{}{}",
            "\"\\ud8\u{30}\"x",
        ] {
            assert!(canonicalize(raw).is_err(), "{raw:?}");
        }
        let error = canonicalize("[1, x]").unwrap_err();
        assert_eq!(error.offset(), 4);
        assert_eq!(error.to_string(), "not JSON: expected a value at byte 4");
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(canon(&deep), deep);
        assert!(canonicalize(&deep[..deep.len() - 1]).is_err());
        let text = format!("{}1{}", "{\"b\":0,\"a\":".repeat(50_000), "}".repeat(50_000));
        assert_eq!(
            canon(&text),
            format!("{}1{}", "{\"a\":".repeat(50_000), ",\"b\":0}".repeat(50_000))
        );
    }

    #[test]
    fn bounds_count_what_is_kept() {
        let raw = "{\"a\":[[[1]]],\"a\":[]}";
        let document = Document::parse(raw).unwrap();
        let mut out = String::from("x");
        let exact = Bounds { depth: 2, bytes: 8 };
        assert_eq!(document.write(Document::ROOT, &mut out, exact), Ok(()));
        assert_eq!(out, "x{\"a\":[]}");
        for less in [Bounds { depth: 1, ..exact }, Bounds { bytes: 7, ..exact }] {
            assert_eq!(document.write(Document::ROOT, &mut out, less), Err(OutOfBounds));
        }
    }

    /// JSON texts with white space, escapes, duplicate keys and any numbers.
    pub(crate) fn json() -> impl Strategy<Value = String> {
        let string = prop_oneof![
            4 => "[a-c_]{0,3}",
            1 => "(\\\\u[0-9a-fA-F]{4}|\\\\u[dD][89abAB89cdEF][0-9]{2}|\\\\[\"\\\\/bfnrt]|[^\\x00-\\x1f\"\\\\]){0,6}",
            1 => Just("_dezky".to_owned()),
        ]
        .prop_map(|s| format!("\"{s}\""));
        let number = "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?";
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            number,
            string.clone(),
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            let space = "[ \t\r\n]?";
            let item = (space, inner.clone(), space).prop_map(|(a, v, b)| format!("{a}{v}{b}"));
            let member = (string.clone(), space, item.clone())
                .prop_map(|(key, white, value)| format!("{white}{key}{white}:{value}"));
            prop_oneof![
                prop::collection::vec(item, 0..6).prop_map(|v| format!("[{}]", v.join(","))),
                prop::collection::vec(member, 0..6).prop_map(|v| format!("{{{}}}", v.join(","))),
            ]
        })
    }

    /// The canonical text of a value, computed differently. Its doubles are within the range of
    /// integers.
    fn expected(value: &Value) -> String {
        match value {
            Value::Number(n) if n.as_i64().is_none() => {
                ryu_js::Buffer::new().format(n.as_f64().unwrap()).to_owned()
            }
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(expected).collect();
                format!("[{}]", items.join(","))
            }
            Value::Object(map) => {
                let mut members: Vec<_> = map.iter().collect();
                members.sort_by_key(|(key, _)| key.encode_utf16().collect::<Vec<_>>());
                let members: Vec<_> = members
                    .iter()
                    .map(|(key, value)| {
                        format!("{}:{}", Value::from(key.as_str()), expected(value))
                    })
                    .collect();
                format!("{{{}}}", members.join(","))
            }
            scalar => scalar.to_string(),
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e15..1e15f64).prop_map(Value::from),
            (-1e-3..1e-3f64).prop_map(Value::from),
            "[^\\x00]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[^\\x00]{0,4}", inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn idempotent(raw in json()) {
            let once = canon(&raw);
            prop_assert_eq!(canon(&once), once);
        }

        #[test]
        fn means_the_same(value in value()) {
            let compact = canon(&value.to_string());
            prop_assert_eq!(&compact, &expected(&value));
            prop_assert_eq!(canon(&serde_json::to_string_pretty(&value).unwrap()), compact);
        }

        #[test]
        fn takes_what_others_take(raw in "[\\[\\]{},:\"\\\\u0e1.\\- nult]{0,12}") {
            let ours = canonicalize(&raw);
            if serde_json::from_str::<Value>(&raw).is_ok() {
                prop_assert!(ours.is_ok());
            } else if let Ok(text) = ours {
                // serde_json rejects lone surrogates and overflowing numbers.
                prop_assert!(serde_json::from_str::<Value>(&text).is_ok());
            }
        }

        #[test]
        fn order_is_that_of_utf16(a in any::<String>(), b in any::<String>()) {
            prop_assert_eq!(compare_keys(&a, &b), a.encode_utf16().cmp(b.encode_utf16()));
        }
    }
}
