//! Canonical JSON from raw text (`docs/integrity.md`).
//!
//! The form is that of RFC 8785, except that 64-bit integers are kept exactly, so that a source's
//! `spanId` or file size is not rounded. Numbers are distinguished by their spelling, because
//! decoded values have lost the difference between `1` and `1.0`.

use std::borrow::Cow;
use std::cmp::Ordering;

pub use crate::json::NotJson;
use crate::json::{Doc, Elements, Member, Members, Value};

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
    let doc = Doc::parse(raw)?;
    let mut text = String::with_capacity(raw.len());
    let unbounded = Bounds { depth: usize::MAX, bytes: usize::MAX };
    // Cannot fail: there are no bounds to exceed.
    let _ = write(doc.root(), &mut text, unbounded);
    Ok(text)
}

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

/// Limits for [`write`].
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

/// The members of an object with their decoded names, in canonical order; of equal names, only the
/// last.
pub(crate) fn members(object: Value<'_>) -> Vec<(Cow<'_, str>, Member<'_>)> {
    let mut members: Vec<_> = object.members().map(|member| (member.name(), member)).collect();
    if !is_sorted(members.iter().map(|(name, _)| Cow::Borrowed(&**name))) {
        // The sort is stable: after reversing, the last of equal names comes first, and `dedup_by`
        // keeps the first.
        members.reverse();
        members.sort_by(|(a, _), (b, _)| compare_keys(a, b));
        members.dedup_by(|(a, _), (b, _)| a == b);
    }
    members
}

/// Whether names are in canonical order and none repeats.
fn is_sorted<'d>(names: impl Iterator<Item = Cow<'d, str>>) -> bool {
    names.is_sorted_by(|a, b| compare_keys(a, b) == Ordering::Less)
}

/// Appends the canonical form of a value. If it exceeds `bounds`, `out` ends with an incomplete
/// text.
pub(crate) fn write(value: Value<'_>, out: &mut String, bounds: Bounds) -> Result<(), OutOfBounds> {
    let most = out.len().saturating_add(bounds.bytes);
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut value = value;
    loop {
        let is_container = value.is_list() || value.is_object();
        if is_container && open.len() >= bounds.depth {
            return Err(OutOfBounds);
        }
        if is_container {
            open.push(Open::new(value));
            out.push(if value.is_list() { '[' } else { '{' });
        } else {
            write_scalar(value, out);
        }
        if out.len() > most {
            return Err(OutOfBounds);
        }
        // Advances to the next value, closing finished containers.
        value = loop {
            let Some(container) = open.last_mut() else {
                return if out.len() > most { Err(OutOfBounds) } else { Ok(()) };
            };
            let (member, close) = match container {
                Open::List(elements) => (elements.next().map(|value| (None, value)), ']'),
                Open::Sorted(members) => (members.next().map(keyed), '}'),
                Open::Unsorted(members) => (members.next().map(keyed), '}'),
            };
            if let Some((key, value)) = member {
                // Strings end with a quote, so only a container that was just opened ends like
                // this.
                if !out.ends_with(['{', '[']) {
                    out.push(',');
                }
                if let Some(key) = key {
                    write_scalar(key, out);
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

fn keyed(member: Member<'_>) -> (Option<Value<'_>>, Value<'_>) {
    (Some(member.key()), member.value())
}

/// The rest of an open container in [`write`].
enum Open<'d> {
    List(Elements<'d>),
    /// The common case: members that are already sorted.
    Sorted(Members<'d>),
    /// Members in sorted order.
    Unsorted(std::vec::IntoIter<Member<'d>>),
}

impl<'d> Open<'d> {
    fn new(container: Value<'d>) -> Self {
        if container.is_list() {
            return Self::List(container.elements());
        }
        if is_sorted(container.members().map(Member::name)) {
            return Self::Sorted(container.members());
        }
        let members: Vec<_> = members(container).into_iter().map(|(_, member)| member).collect();
        Self::Unsorted(members.into_iter())
    }
}

/// Appends the canonical form of a string, number or literal.
pub(crate) fn write_scalar(value: Value<'_>, out: &mut String) {
    let token = value.raw();
    match value.string() {
        Some(Cow::Owned(text)) => write_string(out, &text),
        None if value.is_number() && token.contains(['.', 'e', 'E']) => write_real(out, token),
        None if value.is_number() => write_integer(out, token),
        _ => out.push_str(token),
    }
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
        assert_eq!((error.line(), error.column()), (1, 5));
        assert_eq!(error.to_string(), "not JSON: expected value at line 1 column 5");
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
        let doc = Doc::parse(raw).unwrap();
        let mut out = String::from("x");
        let exact = Bounds { depth: 2, bytes: 8 };
        assert_eq!(write(doc.root(), &mut out, exact), Ok(()));
        assert_eq!(out, "x{\"a\":[]}");
        for less in [Bounds { depth: 1, ..exact }, Bounds { bytes: 7, ..exact }] {
            assert_eq!(write(doc.root(), &mut out, less), Err(OutOfBounds));
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
