//! The format of a line, and the secrets in it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use memchr::memmem;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Replacement of a secret.
pub const REDACTED: &str = "[redacted]";

/// The beginning of every genuine line. It cannot occur inside a JSON string,
/// where its quotes would be escaped.
const GENUINE_HEAD: &[u8] = br#"{"RemoteAddr":"#;

/// The maximum number of pieces of a line; further ones stay part of its first piece.
const MAX_PIECES: usize = 64;

/// A shorter secret is redacted under its key, but not searched for elsewhere: the replacement
/// would hit ordinary words.
const MIN_SECRET_BYTES: usize = 6;

/// With more different secrets than this in a line, every text of it is redacted: searching for
/// each of them would take too long.
const MAX_SECRETS: usize = 64;

/// A value about tokens that is nested deeper than this is redacted as a whole.
const MAX_REDACT_DEPTH: usize = 32;

/// The members of a JSON object in order. Values stay unparsed, so that numbers keep their digits.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The value of `key`; the last of equal keys wins.
    pub(super) fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, value)| *value)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The text of `key`, if it is a string that is not empty.
    pub(super) fn text(&self, key: &str) -> Option<Cow<'a, str>> {
        self.get(key).and_then(string).filter(|text| !text.is_empty())
    }

    /// The text of `key`, compared without case and separators.
    pub(super) fn text_like(&self, squashed: &str) -> Option<Cow<'a, str>> {
        let (_, value) = self.0.iter().rev().find(|(key, _)| squash(key) == squashed)?;
        string(value).filter(|text| !text.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(24);
                while let Some((Key(key), value)) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(Fields(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// The text of a JSON string; `None` for any other value.
pub(super) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let raw = value.get();
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    let text = serde_json::from_str(raw).or_else(|_| {
        // A lone surrogate: read it as the log's normal form does.
        let canonical = dezky_core::canonical::canonicalize(raw).unwrap_or_default();
        serde_json::from_str(&canonical)
    });
    text.ok().map(Cow::Owned)
}

/// `text` in lower case without `_`, `-`, `.` and spaces, so that all spellings of a name are
/// equal.
pub(super) fn squash(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '_' | '-' | '.' | ' '))
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// A part of a line that is decoded separately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its range in the line.
    pub(super) range: Range<usize>,
    /// Whether it is the line's actual event; other pieces are remains that a full disk or a crash
    /// left before or after it.
    pub(super) main: bool,
    /// Whether it is a block of NUL bytes.
    pub(super) nul: bool,
}

/// Splits a line (without `\n`) into pieces: none for a blank line, one for an ordinary line,
/// several if lines are glued together or there is a block of NUL bytes at an end. Skips a byte
/// order mark.
pub(super) fn pieces(line: &[u8], is_object: impl Fn(&[u8]) -> bool) -> Vec<Piece> {
    let begin = if line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let text = trim(line, begin..line.len(), |b| b.is_ascii_whitespace());
    if text.is_empty() {
        return Vec::new();
    }
    let inner = trim(line, text.clone(), |b| b == 0 || b.is_ascii_whitespace());
    if inner.is_empty() {
        return vec![Piece { range: text, main: true, nul: true }];
    }
    let mut pieces = Vec::new();
    let nul = |range: Range<usize>| {
        let range = trim(line, range, |b| b.is_ascii_whitespace());
        (!range.is_empty()).then_some(Piece { range, main: false, nul: true })
    };
    pieces.extend(nul(text.start..inner.start));
    let behind = nul(inner.end..text.end);
    let mut starts = vec![inner.start];
    if !is_object(&line[inner.clone()]) {
        let glued = memmem::find_iter(&line[inner.clone()], GENUINE_HEAD)
            .map(|at| inner.start + at)
            .filter(|at| *at > inner.start);
        starts.extend(glued);
        if starts.len() > MAX_PIECES {
            starts.drain(1..=starts.len() - MAX_PIECES);
        }
    }
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(inner.end);
        let main = end == inner.end;
        pieces.push(Piece { range: *start..end, main, nul: false });
    }
    pieces.extend(behind);
    pieces
}

fn trim(line: &[u8], range: Range<usize>, drop: impl Fn(u8) -> bool) -> Range<usize> {
    let bytes = &line[range.clone()];
    let start = bytes.iter().position(|b| !drop(*b)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|b| !drop(*b)).map_or(start, |at| at + 1);
    range.start + start..range.start + end
}

/// A JSON object's text without its secrets: the values of `ShareToken`, `Token` and `InviteLink`
/// anywhere, and tokens in sentences.
pub(super) fn redact<'a>(text: &'a str, fields: &Fields<'_>) -> Cow<'a, str> {
    if !may_hold_secrets(text) {
        return Cow::Borrowed(text);
    }
    let mut secrets = HashSet::new();
    collect(fields, 0, &mut secrets);
    let secrets = Secrets::new(secrets);
    let mut out = String::with_capacity(text.len());
    write_object(fields, &secrets, 0, &mut out);
    Cow::Owned(out)
}

/// The secrets to search for in the sentences of a line.
enum Secrets {
    /// The longest first, so that a link is replaced before the token inside it.
    Known(Vec<String>),
    /// Too many to search for: all texts are redacted.
    TooMany,
}

impl Secrets {
    fn new(secrets: HashSet<String>) -> Self {
        if secrets.len() > MAX_SECRETS {
            return Self::TooMany;
        }
        let mut secrets: Vec<_> = secrets.into_iter().collect();
        secrets.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Self::Known(secrets)
    }
}

fn may_hold_secrets(text: &str) -> bool {
    // A cheap test for "token" and "invitelink" in any case; a false positive costs only a rewrite.
    let lower = text.to_ascii_lowercase();
    lower.contains("token") || lower.contains("invite")
        // A letter of the key may be escaped.
        || text.contains("\\u00")
}

fn is_secret_key(key: &str) -> bool {
    let key = squash(key);
    key.ends_with("token") || key == "invitelink"
}

/// Whether the value of a secret key needs to be hidden.
fn is_vacant(value: &RawValue) -> bool {
    matches!(value.get(), "\"\"" | "null")
}

enum Shape<'a> {
    Object(Fields<'a>),
    Array(Vec<&'a RawValue>),
    Text(Cow<'a, str>),
    Other,
}

fn shape(value: &RawValue) -> Shape<'_> {
    let raw = value.get();
    match raw.as_bytes().first() {
        Some(b'{') => Fields::parse(raw).map_or(Shape::Other, Shape::Object),
        Some(b'[') => serde_json::from_str(raw).map_or(Shape::Other, Shape::Array),
        Some(b'"') => string(value).map_or(Shape::Other, Shape::Text),
        _ => Shape::Other,
    }
}

fn collect(fields: &Fields<'_>, depth: usize, secrets: &mut HashSet<String>) {
    for (key, value) in &fields.0 {
        if is_secret_key(key) {
            secrets.extend(
                string(value)
                    .filter(|secret| secret.len() >= MIN_SECRET_BYTES)
                    .map(Cow::into_owned),
            );
        } else {
            collect_value(value, depth + 1, secrets);
        }
    }
}

fn collect_value(value: &RawValue, depth: usize, secrets: &mut HashSet<String>) {
    if depth > MAX_REDACT_DEPTH {
        return;
    }
    match shape(value) {
        Shape::Object(fields) => collect(&fields, depth, secrets),
        Shape::Array(values) => {
            for value in values {
                collect_value(value, depth + 1, secrets);
            }
        }
        Shape::Text(_) | Shape::Other => {}
    }
}

fn write_object(fields: &Fields<'_>, secrets: &Secrets, depth: usize, out: &mut String) {
    out.push('{');
    for (i, (key, value)) in fields.0.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(key, out);
        out.push(':');
        if is_secret_key(key) && !is_vacant(value) {
            write_string(REDACTED, out);
        } else {
            write_value(value, secrets, depth + 1, out);
        }
    }
    out.push('}');
}

fn write_value(value: &RawValue, secrets: &Secrets, depth: usize, out: &mut String) {
    if depth > MAX_REDACT_DEPTH {
        if may_hold_secrets(value.get()) {
            write_string(REDACTED, out);
        } else {
            out.push_str(value.get());
        }
        return;
    }
    match shape(value) {
        Shape::Object(fields) => write_object(&fields, secrets, depth, out),
        Shape::Array(values) => {
            out.push('[');
            for (i, value) in values.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(value, secrets, depth + 1, out);
            }
            out.push(']');
        }
        Shape::Text(text) => match secrets {
            Secrets::Known(secrets) => match scrub_sentence(&text, secrets) {
                Cow::Borrowed(_) => out.push_str(value.get()),
                Cow::Owned(text) => write_string(&text, out),
            },
            Secrets::TooMany if text.is_empty() => out.push_str(value.get()),
            Secrets::TooMany => write_string(REDACTED, out),
        },
        Shape::Other => out.push_str(value.get()),
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// `text` without `secrets`, without the token of `link with token '…'` and of
/// `ScienceMesh invite with token '…'`, and without the value of a `token=` in a link.
fn scrub_sentence<'a>(text: &'a str, secrets: &[String]) -> Cow<'a, str> {
    let mut out = Cow::Borrowed(text);
    for secret in secrets {
        if out.contains(secret.as_str()) {
            out = Cow::Owned(out.replace(secret.as_str(), REDACTED));
        }
    }
    // The source makes the token, so it contains no quote. If the text after the next quote is not
    // the rest of the sentence, too much is removed rather than too little.
    let sentence = |c: char| c == '\'';
    let query = |c: char| matches!(c, '&' | '"' | '\'' | '<' | '>' | '\\') || c.is_whitespace();
    for (marker, ends) in [("with token '", &sentence as &dyn Fn(char) -> bool), ("token=", &query)]
    {
        if let Some(scrubbed) = scrub_after(&out, marker, ends) {
            out = Cow::Owned(scrubbed);
        }
    }
    out
}

/// Replaces the text after each `marker` (compared without case) up to a character that `ends` it,
/// or to the end.
fn scrub_after(text: &str, marker: &str, ends: &dyn Fn(char) -> bool) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let mut out = String::new();
    let mut done = 0;
    while let Some(at) = lower[done..].find(marker) {
        let from = done + at + marker.len();
        let to = text[from..].find(ends).map_or(text.len(), |len| from + len);
        out.push_str(&text[done..from]);
        if to > from {
            out.push_str(REDACTED);
        }
        done = to;
    }
    if done == 0 {
        return None;
    }
    out.push_str(&text[done..]);
    (out != text).then_some(out)
}

/// Text that is not JSON, without anything that looks like a secret. Conservative, because the
/// limits of strings are unknown.
pub(super) fn scrub(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut secrets = HashSet::new();
    let lower = text.to_ascii_lowercase();
    let mut done = 0;
    // The next position of each key, so that no part is searched twice for a key.
    let mut hits = ["token", "invitelink"].map(|key| (key, lower.find(key)));
    loop {
        for (key, hit) in &mut hits {
            if hit.is_some_and(|at| at < done) {
                *hit = lower[done..].find(*key).map(|at| done + at);
            }
        }
        let hit = hits.iter().filter_map(|(key, hit)| hit.map(|at| (at, key.len()))).min();
        let Some((at, len)) = hit else { break };
        let after_key = at + len;
        out.push_str(&text[done..after_key]);
        done = after_key;
        let Some((from, escaped)) = value_start(&text, after_key) else { continue };
        let to = value_end(&text, from, escaped);
        out.push_str(&text[after_key..from]);
        if to > from {
            let value = &text[from..to];
            if value.len() >= MIN_SECRET_BYTES {
                secrets.insert(value.to_owned());
            }
            out.push_str(REDACTED);
        }
        done = to;
    }
    out.push_str(&text[done..]);
    match Secrets::new(secrets) {
        Secrets::Known(secrets) => scrub_sentence(&out, &secrets).into_owned(),
        // The limits of its texts are unknown.
        Secrets::TooMany => REDACTED.to_owned(),
    }
}

/// The start of the string that is the value of the key ending at `at`, and whether it is inside
/// another string.
fn value_start(text: &str, at: usize) -> Option<(usize, bool)> {
    let rest = text[at..].trim_start_matches('\\').strip_prefix('"')?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let value = rest.trim_start_matches('\\');
    let escaped = value.len() < rest.len();
    let value = value.strip_prefix('"')?;
    Some((text.len() - value.len(), escaped))
}

fn value_end(text: &str, from: usize, escaped: bool) -> usize {
    let bytes = &text.as_bytes()[from..];
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => return from + i,
            b'\\' if escaped => return from + i,
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_object(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok_and(|text| Fields::parse(text).is_ok())
    }

    fn cut(line: &[u8]) -> Vec<(&[u8], bool, bool)> {
        pieces(line, is_object).into_iter().map(|p| (&line[p.range], p.main, p.nul)).collect()
    }

    fn redacted(text: &str) -> String {
        redact(text, &Fields::parse(text).unwrap()).into_owned()
    }

    #[test]
    fn ordinary_and_blank_lines() {
        assert_eq!(cut(b""), []);
        assert_eq!(cut(b" \t\r"), []);
        assert_eq!(cut(b"{\"a\":1}\r"), [(&b"{\"a\":1}"[..], true, false)]);
        assert_eq!(cut(b"nonsense"), [(&b"nonsense"[..], true, false)]);
    }

    #[test]
    fn glued_lines_and_nul_blocks() {
        let event = br#"{"RemoteAddr":"","Action":"x"}"#;
        let glued = [&br#"{"RemoteAddr":"","Act"#[..], event].concat();
        assert_eq!(
            cut(&glued),
            [(&br#"{"RemoteAddr":"","Act"#[..], false, false), (&event[..], true, false)]
        );
        // Only the newline is missing: both are events.
        let both = [&event[..], event].concat();
        assert_eq!(cut(&both), [(&event[..], false, false), (&event[..], true, false)]);
        let nul = [b"\0\0\0", &event[..], b"\0\r"].concat();
        assert_eq!(
            cut(&nul),
            [(&b"\0\0\0"[..], false, true), (&event[..], true, false), (&b"\0"[..], false, true)]
        );
        assert_eq!(cut(b"\0\0"), [(&b"\0\0"[..], true, true)]);
        let many = GENUINE_HEAD.repeat(200);
        let pieces = pieces(&many, is_object);
        assert_eq!(pieces.len(), MAX_PIECES);
        assert_eq!(pieces.iter().filter(|p| p.main).count(), 1);
    }

    #[test]
    fn secrets_go_by_key_and_in_sentences() {
        assert_eq!(
            redacted(
                r#"{"Size":1.50,"ShareToken":"abcdefgh","M":"link with token 'abcdefgh' was"}"#
            ),
            r#"{"Size":1.50,"ShareToken":"[redacted]","M":"link with token '[redacted]' was"}"#
        );
        assert_eq!(redacted(r#"{"ShareToken":"","a":null}"#), r#"{"ShareToken":"","a":null}"#);
        assert_eq!(
            redacted(
                r#"{"Message":"see https://x/?token=tttttt&p=1","Token":"tttttt","InviteLink":"https://x/?token=tttttt\u0026p=1"}"#
            ),
            r#"{"Message":"see [redacted]","Token":"[redacted]","InviteLink":"[redacted]"}"#
        );
        assert_eq!(
            redacted(r#"{"a":[{"share_token":"q"},{"b":"x"}],"\u0054oken":7}"#),
            r#"{"a":[{"share_token":"[redacted]"},{"b":"x"}],"Token":"[redacted]"}"#
        );
        assert_eq!(redacted(r#"{"a": 1}"#), r#"{"a": 1}"#);
    }

    #[test]
    fn among_too_many_secrets_no_text_stays() {
        let line = |n: usize| {
            let tokens: Vec<_> = (0..n).map(|n| format!(r#"{{"token":"secret{n}"}}"#)).collect();
            format!(r#"{{"a":[{}],"m":"of secret9","e":"","n":1}}"#, tokens.join(","))
        };
        assert!(redacted(&line(MAX_SECRETS)).contains(r#""m":"of [redacted]","e":"","n":1"#));
        let many = redacted(&line(MAX_SECRETS + 1));
        assert!(many.contains(r#""m":"[redacted]","e":"","n":1"#), "{many}");
        assert_eq!(scrub(&line(MAX_SECRETS + 1).as_bytes()[1..]), REDACTED);
    }

    #[test]
    fn broken_text_is_scrubbed() {
        for (broken, clean) in [
            (r#"{"ShareToken":"abc"#, r#"{"ShareToken":"[redacted]"#),
            (r#"oken":"abc","x":1"#, r#"oken":"abc","x":1"#),
            (r#"hareToken" : "abc","x":1"#, r#"hareToken" : "[redacted]","x":1"#),
            (r#""InviteLink":"a\"b","x""#, r#""InviteLink":"[redacted]","x""#),
            (r#""m":"{\"Token\":\"abc\",\"x"#, r#""m":"{\"Token\":\"[redacted]\",\"x"#),
            ("link with token 'abc' was", "link with token '[redacted]' was"),
            ("link with token 'abc", "link with token '[redacted]"),
            (r#""token":"secretive" secretive"#, r#""token":"[redacted]" [redacted]"#),
            (r#""token":"#, r#""token":"#),
            ("invite with token 'abc'", "invite with token '[redacted]'"),
            ("ordinary", "ordinary"),
        ] {
            assert_eq!(scrub(broken.as_bytes()), clean);
        }
    }

    #[test]
    fn strings_are_read_as_the_log_keeps_them() {
        let fields = Fields::parse(r#"{"a":"x","a":"y","s":"\ud800","n":1,"e":""}"#).unwrap();
        assert_eq!(fields.text("a").as_deref(), Some("y"));
        assert_eq!(fields.text("s").as_deref(), Some("\u{fffd}"));
        assert_eq!((fields.text("n"), fields.text("e"), fields.has("e")), (None, None, true));
        assert!(Fields::parse("[1]").is_err());
    }

    proptest! {
        #[test]
        fn scrubbing_never_fails_and_redaction_keeps_json(text in ".{0,80}", secret in "[A-Za-z0-9]{15}") {
            let _ = scrub(text.as_bytes());
            let line = serde_json::json!({
                "Message": format!("{text} link with token '{secret}' was accessed"),
                "ShareToken": secret, "nested": {"list": [{"token": secret}, text]},
            })
            .to_string();
            let clean = redacted(&line);
            prop_assert!(!clean.contains(&secret));
            prop_assert!(serde_json::from_str::<serde_json::Value>(&clean).is_ok());
            for cut in 0..line.len() {
                let broken = scrub(&line.as_bytes()[..cut]);
                // The message precedes the key, so the whole token never appears.
                prop_assert!(!broken.contains(&secret));
            }
        }

        #[test]
        fn pieces_lie_in_order_and_one_is_the_line(line in prop::collection::vec(any::<u8>(), 0..60)) {
            let pieces = pieces(&line, is_object);
            prop_assert!(pieces.iter().filter(|p| p.main).count() == usize::from(!pieces.is_empty()));
            let mut end = 0;
            for piece in pieces {
                prop_assert!(piece.range.start >= end && piece.range.start < piece.range.end);
                end = piece.range.end;
            }
        }
    }
}
