//! The properties of the fuzz targets, on stable: the corpus, the fixtures, and mutations of both
//! by seed, a bounded number of them (`DEZKY_FUZZ_ROUNDS`). The targets themselves are in `fuzz/`;
//! CONTRIBUTING says how to run them.

use std::path::Path;

use dezky_core::Runtime;
use dezky_core::testkit::ManualRuntime;
use dezky_ingest::testkit::properties;

/// The maximum length of a mutated input.
const MAX_BYTES: usize = 16 << 10;

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.below(len + 1), self.below(len + 1));
        a.min(b)..a.max(b)
    }
}

/// Tokens with a meaning to parsers, inserted as they are.
const TOKENS: [&str; 24] = [
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "\r\n",
    "\0",
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551615",
    "\\u0000",
    "\\ud800",
    "\"id\":",
    "\"type\":\"auth.error\"",
    "Token",
    "\u{feff}",
    "é",
    "2026-01-01T00:00:00Z",
];

/// Makes one to four changes to an input, with parts of another one.
fn mutated(dice: &mut Dice, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(dice.range(input.len().min(bytes.len())))),
            3 => {
                let part = bytes[dice.range(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            4 => {
                let part = other[dice.range(other.len())].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let random: Vec<u8> = (0..dice.below(16)).map(|_| dice.byte()).collect();
                bytes.splice(at..at, random);
            }
            6 => {
                // Deeper than any valid input.
                let deep = [b'[', b'{', b'"'][dice.below(3)];
                bytes.splice(at..at, std::iter::repeat_n(deep, dice.below(300)));
            }
            _ => {
                let token = TOKENS[dice.below(TOKENS.len())];
                bytes.splice(at..at, token.bytes());
            }
        }
        bytes.truncate(MAX_BYTES);
    }
    bytes
}

/// Shows the input if the property does not hold.
struct Shown<'a> {
    name: &'a str,
    input: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: {}", self.name, self.input.escape_ascii());
        }
    }
}

fn check(name: &str, input: &[u8], property: fn(&[u8], &dyn Runtime)) {
    let shown = Shown { name, input };
    property(input, &ManualRuntime::new(1));
    drop(shown);
}

/// Runs `property` on the corpus `target`, on `more`, and on mutations of them.
fn fuzz(target: &str, more: &[Vec<u8>], property: fn(&[u8], &dyn Runtime)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut corpus: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    corpus.sort();
    assert!(!corpus.is_empty());
    let mut inputs: Vec<_> = corpus.iter().map(|path| std::fs::read(path).unwrap()).collect();
    inputs.extend_from_slice(more);
    for input in &inputs {
        check(target, input, property);
    }
    for round in 0..rounds() {
        let mut dice = Dice(round);
        let [one, other] = [0; 2].map(|_| dice.below(inputs.len()));
        let input = mutated(&mut dice, &inputs[one], &inputs[other]);
        check(&format!("{target}, round {round}"), &input, property);
    }
}

#[expect(clippy::disallowed_methods, reason = "the number of rounds comes from the environment")]
fn rounds() -> u64 {
    std::env::var("DEZKY_FUZZ_ROUNDS").map_or(2_000, |text| text.parse().expect("a number"))
}

fn lines(name: &str) -> Vec<Vec<u8>> {
    crate::data(name).split(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn framer() {
    let logs = ["ocis/first-generation.log", "ocis/enospc-glued.log"].map(crate::data);
    fuzz("framer", &logs, |data, _| properties::framer(data));
}

#[test]
fn ocis_line() {
    let mut fixtures = lines("ocis/first-generation.log");
    fixtures.extend(lines("ocis/enospc-glued.log"));
    fixtures.extend(lines("ocis/event-shape.log"));
    fuzz("ocis_line", &fixtures, properties::ocis_line);
}

#[test]
fn stalwart_body() {
    fuzz("stalwart_body", &[], properties::stalwart_body);
}

#[test]
fn authentik_page() {
    fuzz("authentik_page", &[crate::data("authentik/page.json")], properties::authentik_page);
}

#[test]
fn cursors() {
    fuzz("cursors", &[], properties::cursors);
}
