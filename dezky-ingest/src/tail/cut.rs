//! Cuts the long values of a streamed JSON object.
//!
//! A line may be longer than the memory for it. It is read once, byte by byte, and the object is
//! kept with its structure and its short values. Memory is bounded by [`KEPT_BYTES`], whatever the
//! length of the line.

use memchr::memchr2;
use serde::de::IgnoredAny;

/// The maximum number of bytes kept of a string, as spelled.
const STRING_BYTES: usize = 4 << 10;

/// The length of the text from which on only short values of the object itself are kept.
const NESTED_BYTES: usize = 256 << 10;

/// The length from which on nothing more is kept, so that the text is at most one value longer.
const KEPT_BYTES: usize = 512 << 10;

/// The maximum depth; deeper objects are not read.
const MAX_DEPTH: usize = 100;

/// How far before its end a string may be cut at a space, so that no part of a word stays, which
/// could be part of a secret.
const WORD_BYTES: usize = 512;

/// The end of a string that was cut.
const MARK: &str = "…";

/// The longest piece of a string that is kept or dropped as a unit: `\u1234`.
const ESCAPE_BYTES: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the object.
    Begin,
    /// Between strings.
    Outside,
    /// In a string.
    Text,
    /// In a string, this many bytes into an escape.
    Escape(usize),
    /// After the object.
    End,
    /// Not a JSON object.
    Broken,
}

/// Reads an object in chunks and cuts its long values.
#[derive(Debug, Clone)]
pub(super) struct Cutter {
    state: State,
    out: Vec<u8>,
    /// The closing brackets of open containers.
    open: Vec<u8>,
    /// Content is dropped until this depth ends.
    skips: Option<usize>,
    /// The start of the string's content in `out`.
    text_start: usize,
    /// Whether the rest of the string is left out, because it is too long.
    text_is_cut: bool,
    escape: [u8; ESCAPE_BYTES],
    /// The length of the current number or word.
    word_bytes: usize,
    /// Whether the last piece of the string is the first half of a surrogate pair.
    is_half: bool,
}

impl Cutter {
    pub(super) fn new() -> Self {
        Self {
            state: State::Begin,
            out: Vec::new(),
            open: Vec::new(),
            skips: None,
            text_start: 0,
            text_is_cut: false,
            escape: [0; ESCAPE_BYTES],
            word_bytes: 0,
            is_half: false,
        }
    }

    /// Takes the next bytes. Returns false once it is certain that they are not an object.
    pub(super) fn push(&mut self, mut chunk: &[u8]) -> bool {
        while let Some((&byte, rest)) = chunk.split_first() {
            if self.state == State::Text && !self.keeps_text() {
                // The fast path for most of a long line.
                let Some(at) = memchr2(b'"', b'\\', chunk) else { return true };
                if at > 0 {
                    chunk = &chunk[at..];
                    continue;
                }
            }
            chunk = rest;
            self.take(byte);
            if self.state == State::Broken {
                return false;
            }
        }
        true
    }

    /// The object with its long values cut; `None` if it is incomplete or not an object.
    pub(super) fn text(&self) -> Option<&[u8]> {
        let is_whole =
            self.state == State::End && serde_json::from_slice::<IgnoredAny>(&self.out).is_ok();
        is_whole.then_some(&self.out)
    }

    /// Whether the string's content goes to the text.
    fn keeps_text(&self) -> bool {
        self.skips.is_none() && !self.text_is_cut
    }

    fn take(&mut self, byte: u8) {
        match self.state {
            State::Begin => match byte {
                b'{' => {
                    self.state = State::Outside;
                    self.open(byte);
                }
                b' ' | b'\t' | b'\r' => {}
                _ => self.state = State::Broken,
            },
            State::Outside => self.outside(byte),
            State::Text => match byte {
                b'"' => self.end_text(),
                b'\\' => {
                    self.escape[0] = byte;
                    self.state = State::Escape(1);
                }
                // Characters are kept as a whole.
                _ => {
                    let begins = byte & 0xc0 != 0x80;
                    self.piece(&[byte], begins);
                }
            },
            State::Escape(read) => {
                self.escape[read] = byte;
                let read = read + 1;
                if self.escape[1] != b'u' || read == ESCAPE_BYTES {
                    let escape = self.escape;
                    self.state = State::Text;
                    self.piece(&escape[..read], true);
                } else {
                    self.state = State::Escape(read);
                }
            }
            State::End if byte.is_ascii_whitespace() => {}
            State::End | State::Broken => self.state = State::Broken,
        }
    }

    fn outside(&mut self, byte: u8) {
        if !matches!(byte, b'"' | b'{' | b'[' | b'}' | b']' | b',' | b':')
            && !byte.is_ascii_whitespace()
        {
            self.word_bytes += 1;
            self.keep(&[byte]);
            // Numbers can't be cut.
            if self.word_bytes > STRING_BYTES {
                self.state = State::Broken;
            }
            return;
        }
        self.word_bytes = 0;
        match byte {
            b'"' => {
                self.keep(&[byte]);
                self.state = State::Text;
                self.text_start = self.out.len();
                self.text_is_cut = false;
                self.is_half = false;
            }
            b'{' | b'[' => self.open(byte),
            b'}' | b']' => self.close(byte),
            b',' if self.is_full() => self.skips = self.skips.or(Some(self.open.len())),
            b',' | b':' => self.keep(&[byte]),
            _ => {}
        }
    }

    /// Whether the open container takes nothing more.
    fn is_full(&self) -> bool {
        self.out.len() > if self.open.len() > 1 { NESTED_BYTES } else { KEPT_BYTES }
    }

    fn open(&mut self, byte: u8) {
        self.keep(&[byte]);
        self.open.push(if byte == b'{' { b'}' } else { b']' });
        if self.open.len() > MAX_DEPTH {
            self.state = State::Broken;
        } else if self.is_full() {
            self.skips = self.skips.or(Some(self.open.len()));
        }
    }

    fn close(&mut self, byte: u8) {
        if self.skips == Some(self.open.len()) {
            self.skips = None;
        }
        if self.open.pop() != Some(byte) {
            self.state = State::Broken;
            return;
        }
        self.keep(&[byte]);
        if self.open.is_empty() {
            self.state = State::End;
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skips.is_none() {
            self.out.extend_from_slice(bytes);
        }
    }

    /// Takes a piece of a string. The string may be cut before a piece that `begins` a character.
    fn piece(&mut self, bytes: &[u8], begins: bool) {
        if !self.keeps_text() {
            return;
        }
        if begins && self.out.len() + bytes.len() - self.text_start > STRING_BYTES {
            self.cut();
            return;
        }
        let is_surrogate =
            |pair: &[u8]| bytes.get(2..4).is_some_and(|hex| hex.eq_ignore_ascii_case(pair));
        self.is_half = [b"d8", b"d9", b"da", b"db"].iter().any(|pair| is_surrogate(*pair));
        self.out.extend_from_slice(bytes);
    }

    fn cut(&mut self) {
        self.text_is_cut = true;
        if self.is_half {
            self.out.truncate(self.out.len() - ESCAPE_BYTES);
        }
        let from = self.out.len().saturating_sub(WORD_BYTES).max(self.text_start);
        if let Some(space) = self.out[from..].iter().rposition(|byte| *byte == b' ') {
            self.out.truncate(from + space);
        }
        self.out.extend_from_slice(MARK.as_bytes());
    }

    fn end_text(&mut self) {
        self.keep(b"\"");
        self.state = State::Outside;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn cut(text: &str) -> Option<String> {
        let mut cutter = Cutter::new();
        cutter.push(text.as_bytes());
        cutter.text().map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn short_values_stay_and_long_ones_are_cut() {
        let long = "word ".repeat(200_000);
        let object = json!({"Action": "space_updated", "Opaque": {"description": long, "n": 1.50},
                            "Name": "x", "list": [true, null, -1e5], "empty": {}, "none": []});
        let short = cut(&object.to_string()).unwrap();
        assert!(short.len() < 5_000, "{}", short.len());
        let short: Value = serde_json::from_str(&short).unwrap();
        let description = short["Opaque"]["description"].as_str().unwrap();
        assert!(description.len() > 3_500 && description.ends_with("word…"));
        let mut expected = object.clone();
        expected["Opaque"]["description"] = description.into();
        assert_eq!(short, expected);
    }

    #[test]
    fn many_small_values_leave_room_for_those_of_the_object_itself() {
        let list: Vec<Value> = (0..200_000).map(|n| json!({"n": n})).collect();
        let object = json!({"a": 1, "list": list, "map": {"b": [1]}, "z": "last"});
        let short = cut(&object.to_string()).unwrap();
        assert!(short.len() < KEPT_BYTES, "{}", short.len());
        let short: Value = serde_json::from_str(&short).unwrap();
        assert_eq!(
            (&short["a"], &short["z"], &short["map"]),
            (&json!(1), &json!("last"), &json!({}))
        );
        assert_eq!(short["list"][100], json!({"n": 100}));
        // Nor do endless members of the object itself.
        let wide: serde_json::Map<_, _> =
            (0..200_000).map(|n| (format!("k{n:06}"), json!(n))).collect();
        let short = cut(&Value::from(wide).to_string()).unwrap();
        assert!((KEPT_BYTES..KEPT_BYTES + 100).contains(&short.len()));
        assert_eq!(serde_json::from_str::<Value>(&short).unwrap()["k000007"], 7);
    }

    #[test]
    fn escapes_and_characters_are_not_cut_through() {
        for piece in [r"\u003c", r"\ud83d\ude00", "ü", "😀", r"\\", r#"\""#] {
            for shift in 0..8 {
                let text =
                    format!(r#"{{"x":"{}{}","y":1}}"#, "a".repeat(shift), piece.repeat(5_000));
                let short: Value = serde_json::from_str(&cut(&text).unwrap()).unwrap();
                assert_eq!(short["y"], 1, "{piece}");
                let kept = short["x"].as_str().unwrap();
                let one = serde_json::from_str::<String>(&format!("\"{piece}\"")).unwrap();
                let pieces = kept.trim_start_matches('a').strip_suffix(MARK).unwrap();
                assert_eq!(pieces.replace(&one, ""), "", "{piece} {shift}");
            }
        }
    }

    #[test]
    fn what_is_no_object_gives_nothing() {
        for text in [
            "",
            "x",
            "[1]",
            "{\"a\":1",
            "{\"a\":1}}",
            "{\"a\":1} x",
            "{\"a\":tru}",
            "{]",
            "{\"a\" 1}",
            "{\"a\":\"b}",
            "{\"a\":\"\\q\"}",
        ] {
            assert_eq!(cut(text), None, "{text}");
        }
        assert_eq!(cut(&format!("{{\"a\":{}}}", "1".repeat(10_000))), None);
        assert_eq!(cut(&format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500))), None);
        assert_eq!(cut(" { \"a\" : [ 1 , 2 ] }\r").unwrap(), r#"{"a":[1,2]}"#);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_and_short_objects_stay_whole(
            pairs in prop::collection::vec(("[a-z\"\\\\ü]{0,6}", "\\PC{0,12}"), 0..6),
            cuts in prop::collection::vec(0_usize..200, 0..6),
        ) {
            let object: serde_json::Map<_, _> =
                pairs.into_iter().map(|(key, text)| (key, json!([text]))).collect();
            let text = Value::from(object).to_string();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut cutter = Cutter::new();
            let mut from = 0;
            for to in cuts.into_iter().chain([text.len()]) {
                cutter.push(&text.as_bytes()[from..to]);
                from = to;
            }
            prop_assert_eq!(cutter.text(), Some(text.as_bytes()));
        }
    }
}
