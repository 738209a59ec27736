//! The state of a tail as text.

use std::fmt;

use dezky_core::{Error, ErrorKind, Timestamp};
use serde::{Deserialize, Serialize};

use super::frame::MAX_LINE_BYTES;
use super::{Digest, LastLine, Place};

/// The maximum number of first lines of earlier generations in a cursor.
const MAX_HEADS: usize = 8;

/// The maximum length of a cursor, in bytes.
const CURSOR_MAX_BYTES: usize = 2 << 10;

/// The generations with the same first line, as far as a cursor remembers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The first bytes of the hash of the line.
    pub(super) generation: [u8; 8],
    /// The [`repeat`](Place::repeat) of the last of them.
    pub(super) repeat: u32,
    /// The position up to which the last of them was read.
    pub(super) reach: u64,
    /// Its modification time in nanoseconds since 1970, when it was read.
    pub(super) mtime_ns: i64,
}

impl Head {
    /// The summary of the generation of `place`; `None` if it has no line.
    pub(super) fn of(place: &Place) -> Option<Self> {
        let Place { generation, repeat, position: reach, .. } = *place;
        let mtime_ns = place.mtime_ns.unwrap_or(i64::MIN);
        Some(Self { generation: short(&generation?), repeat, reach, mtime_ns })
    }
}

/// The first lines of the generations read last, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heads(Vec<Head>);

impl Heads {
    /// Remembers that the generation of `place` is finished; forgets the oldest beyond eight.
    pub(super) fn remember(&mut self, place: &Place) {
        let Some(head) = Head::of(place) else { return };
        if self.get_short(head.generation).is_some_and(|known| known.repeat > head.repeat) {
            // An earlier generation was read again.
            return;
        }
        self.0.retain(|known| known.generation != head.generation);
        self.0.insert(0, head);
        self.0.truncate(MAX_HEADS);
    }

    /// Updates the position of the finished generation of `place`.
    pub(super) fn update(&mut self, place: &Place) {
        let Some(head) = Head::of(place) else { return };
        let is_it =
            |known: &&mut Head| (known.generation, known.repeat) == (head.generation, head.repeat);
        if let Some(known) = self.0.iter_mut().find(is_it) {
            *known = head;
        }
    }

    /// The remembered summary of the generations with this first line.
    pub(super) fn get(&self, generation: &Digest) -> Option<Head> {
        self.get_short(short(generation))
    }

    fn get_short(&self, generation: [u8; 8]) -> Option<Head> {
        self.0.iter().find(|head| head.generation == generation).copied()
    }
}

fn short(generation: &Digest) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&generation[..8]);
    short
}

/// The state of a tail as text: `<inode>:<position>`, followed by JSON with everything needed to
/// find the place again.
///
/// `10469822:18028 {"v":3,"gen":"…","lastLen":524,"lastHash":"…","lastTime":"…"}`. Version 2, which
/// has neither birth time, head nor repeats, and a plain `<inode>:<position>` are accepted as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The place to continue from.
    pub(crate) at: Place,
    /// The end of the previous generation, which is checked once more: a writer that had it open
    /// during the rename may have written later.
    pub(crate) previous: Option<Place>,
    /// The first lines of earlier generations.
    pub(super) heads: Heads,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePlace {
    #[serde(skip_serializing_if = "Option::is_none", with = "hex_digest", default)]
    r#gen: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_len: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", with = "hex_digest", default)]
    last_hash: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime_ns: Option<i64>,
    // From version 3 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    born_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", with = "hex_digest", default)]
    head: Option<Digest>,
    #[serde(skip_serializing_if = "is_default", default)]
    repeat: u32,
    #[serde(skip_serializing_if = "is_default", default)]
    reach: u64,
}

#[derive(Serialize, Deserialize)]
struct WireCursor {
    v: u32,
    #[serde(flatten)]
    at: WirePlace,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<WirePrevious>,
    /// From version 3 on: the first 16 hex digits of a generation, its repeat and its reach, and
    /// its modification time.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    heads: Vec<WireHead>,
}

type WireHead = (String, u32, u64, i64);

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Serialize, Deserialize)]
struct WirePrevious {
    inode: u64,
    pos: u64,
    #[serde(flatten)]
    place: WirePlace,
}

mod hex_digest {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::Digest;

    #[expect(clippy::ref_option, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(
        digest: &Option<Digest>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match digest {
            Some(digest) => serializer.serialize_str(&hex::encode(digest)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Digest>, D::Error> {
        let text = <Option<String>>::deserialize(deserializer)?;
        text.map(|text| {
            let mut digest = Digest::default();
            hex::decode_to_slice(&text, &mut digest).map_err(de::Error::custom)?;
            Ok(digest)
        })
        .transpose()
    }
}

impl WirePlace {
    fn new(place: &Place) -> Self {
        Self {
            r#gen: place.generation,
            last_len: place.last_line.map(|line| line.bytes),
            last_hash: place.last_line.map(|line| line.hash),
            last_time: place.last_time,
            mtime_ns: place.mtime_ns,
            born_ns: place.born_ns,
            head: place.head,
            repeat: place.repeat,
            reach: place.reach,
        }
    }

    /// Whether version 2 can express all of it.
    fn is_of_version_2(&self) -> bool {
        (self.born_ns, self.head, self.repeat, self.reach) == (None, None, 0, 0)
    }

    fn place(self, inode: u64, position: u64) -> Option<Place> {
        bounded(self.reach)?;
        let last_line = match (self.last_len, self.last_hash) {
            (Some(bytes), Some(hash)) => Some(LastLine { bytes, hash }),
            (None, None) => None,
            _ => return None,
        };
        let fits = match last_line {
            Some(line) => line.bytes <= MAX_LINE_BYTES as u64 && line.bytes < position,
            // An old cursor has nothing more.
            None => true,
        };
        (fits && self.r#gen.is_some() == (position > 0)).then_some(Place {
            inode,
            position,
            generation: self.r#gen,
            last_line,
            last_time: self.last_time,
            mtime_ns: self.mtime_ns,
            born_ns: self.born_ns,
            head: self.head,
            repeat: self.repeat,
            reach: self.reach,
        })
    }
}

impl Heads {
    fn wire(&self) -> Vec<WireHead> {
        let wire =
            |head: &Head| (hex::encode(head.generation), head.repeat, head.reach, head.mtime_ns);
        self.0.iter().map(wire).collect()
    }

    fn read(wire: Vec<WireHead>) -> Option<Self> {
        if wire.len() > MAX_HEADS {
            return None;
        }
        let head = |(hex, repeat, reach, mtime_ns): WireHead| {
            let mut generation = [0; 8];
            hex::decode_to_slice(hex, &mut generation).ok()?;
            Some(Head { generation, repeat, reach: bounded(reach)?, mtime_ns })
        };
        wire.into_iter().map(head).collect::<Option<_>>().map(Self)
    }
}

impl Cursor {
    /// Parses a cursor. `cursor_invalid` for text that neither [`Display`](fmt::Display) nor an
    /// older version wrote.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).ok_or_else(|| {
            Error::new(
                ErrorKind::CursorInvalid,
                "the cursor of a file tail must be <inode>:<position>, with or without its \
                 verification data; delete it to read again from the beginning, which stores \
                 nothing twice",
            )
        })
    }

    fn read(text: &str) -> Option<Self> {
        if text.len() > CURSOR_MAX_BYTES {
            return None;
        }
        let (place, rest) = match text.split_once(' ') {
            Some((place, rest)) => (place, Some(rest)),
            None => (text, None),
        };
        let (inode, position) = place.split_once(':')?;
        let (inode, position) = (number(inode)?, number(position)?);
        let Some(rest) = rest else {
            return Some(Self {
                at: Place { position, ..Place::start(inode, None, None) },
                previous: None,
                heads: Heads::default(),
            });
        };
        let wire: WireCursor = serde_json::from_str(rest).ok()?;
        if !matches!(wire.v, 2 | 3) {
            return None;
        }
        let previous = match wire.prev {
            Some(previous) => {
                bounded(previous.inode)?;
                let position = bounded(previous.pos)?;
                Some(previous.place.place(previous.inode, position).filter(|p| p.position > 0)?)
            }
            None => None,
        };
        let heads = Heads::read(wire.heads)?;
        Some(Self { at: wire.at.place(inode, position)?, previous, heads })
    }
}

/// Decimal digits without sign or superfluous zeros.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten().and_then(bounded)
}

/// Offsets and inodes are signed 64-bit integers in every store.
fn bounded(number: u64) -> Option<u64> {
    i64::try_from(number).ok().map(|_| number)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut wire = WireCursor {
            v: 2,
            at: WirePlace::new(&self.at),
            prev: self.previous.as_ref().map(|place| WirePrevious {
                inode: place.inode,
                pos: place.position,
                place: WirePlace::new(place),
            }),
            heads: self.heads.wire(),
        };
        let is_old = wire.at.is_of_version_2()
            && wire.prev.as_ref().is_none_or(|prev| prev.place.is_of_version_2())
            && wire.heads.is_empty();
        if !is_old {
            wire.v = 3;
        }
        let wire = serde_json::to_string(&wire).map_err(|_| fmt::Error)?;
        write!(f, "{}:{} {wire}", self.at.inode, self.at.position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = Place> {
        let line = (0..2_000_u64, any::<Digest>());
        (
            0..i64::MAX.unsigned_abs(),
            any::<Digest>(),
            line,
            0..1_u64 << 40,
            prop::option::of(0..253_402_300_799_999_i64),
            prop::option::of(any::<i64>()),
        )
            .prop_map(|(inode, generation, (bytes, hash), more, time, mtime_ns)| Place {
                inode,
                position: bytes + 1 + more,
                generation: Some(generation),
                last_line: Some(LastLine { bytes, hash }),
                last_time: time.and_then(Timestamp::from_millis),
                mtime_ns,
                born_ns: mtime_ns.map(|ns| ns / 2),
                head: mtime_ns.map(|_| hash),
                repeat: u32::try_from(more % 7).unwrap(),
                reach: more,
            })
    }

    /// Cursors of earlier versions remain readable.
    #[test]
    fn persisted_cursors_parse() {
        let g = "2ad45d80462b8646e4993862099b5043755011417f37455678cb7506964ca2e8";
        let h = "00000000000000000000000000000000000000000000000000000000000000ff";
        let full = format!(
            "10469822:18028 {{\"v\":2,\"gen\":\"{g}\",\"lastLen\":524,\"lastHash\":\"{h}\",\
             \"lastTime\":\"2026-11-21T23:59:56.000Z\",\"mtimeNs\":1732230000000000000,\
             \"prev\":{{\"inode\":7,\"pos\":300,\"gen\":\"{h}\",\"lastLen\":299,\
             \"lastHash\":\"{g}\"}}}}"
        );
        let cursor = Cursor::parse(&full).unwrap();
        assert_eq!((cursor.at.inode, cursor.at.position), (10_469_822, 18_028));
        assert_eq!(cursor.at.last_line.unwrap().bytes, 524);
        assert_eq!(cursor.previous.as_ref().unwrap().position, 300);
        assert_eq!(cursor.to_string(), full);

        let plain = format!(
            "1:2 {{\"v\":2,\"gen\":\"{g}\",\"lastLen\":1,\"lastHash\":\"{h}\",\"later\":true}}"
        );
        assert_eq!(Cursor::parse(&plain).unwrap().at.last_time, None);

        let old = Cursor::parse("10469822:18028").unwrap();
        assert_eq!(old.at, Place { position: 18_028, ..Place::start(10_469_822, None, None) });
        // Version 3 has the birth time, the hash of the beginning, and the earlier generations with
        // the same first line.
        let third = format!(
            "7:300 {{\"v\":3,\"gen\":\"{g}\",\"lastLen\":299,\"lastHash\":\"{h}\",\
             \"mtimeNs\":5,\"bornNs\":4,\"head\":\"{h}\",\"repeat\":2,\"reach\":42,\
             \"prev\":{{\"inode\":6,\"pos\":42,\"gen\":\"{g}\",\"lastLen\":41,\
             \"lastHash\":\"{g}\",\"repeat\":1}},\"heads\":[[\"2ad45d80462b8646\",1,42,-3]]}}"
        );
        let cursor = Cursor::parse(&third).unwrap();
        assert_eq!((cursor.at.born_ns, cursor.at.repeat, cursor.at.reach), (Some(4), 2, 42));
        assert_eq!(cursor.previous.as_ref().unwrap().repeat, 1);
        let head = cursor.heads.get(&cursor.at.generation.unwrap()).unwrap();
        assert_eq!((head.repeat, head.reach, head.mtime_ns), (1, 42, -3));
        assert_eq!(cursor.to_string(), third);

        let begin = Cursor::parse("7:0 {\"v\":2,\"mtimeNs\":-5}").unwrap();
        assert_eq!(begin.at, Place::start(7, None, Some(-5)));
        assert_eq!(begin.to_string(), "7:0 {\"v\":2,\"mtimeNs\":-5}");
    }

    #[test]
    fn other_texts_are_no_cursors() {
        let h = "ff".repeat(32);
        for text in [
            "",
            "1",
            ":",
            "1:",
            "a:1",
            "-1:1",
            "+1:1",
            "1:-1",
            "01:1",
            "1:2:3",
            "1 :2",
            "9223372036854775808:0",
            "1:99999999999999999999",
            "1:2 ",
            "1:2 {}",
            "1:2 {\"v\":3}",
            "1:2 {\"v\":4}",
            "1:2 {\"v\":2}",
            &format!("1:2 {{\"v\":2,\"gen\":\"{h}\",\"lastLen\":1}}"),
            &format!("1:2 {{\"v\":2,\"gen\":\"{h}\",\"lastLen\":2,\"lastHash\":\"{h}\"}}"),
            &format!("1:2 {{\"v\":2,\"gen\":\"{h}00\",\"lastLen\":1,\"lastHash\":\"{h}\"}}"),
            &format!("1:0 {{\"v\":2,\"gen\":\"{h}\"}}"),
            &format!("1:0{}", " ".repeat(3_000)),
        ] {
            let error = Cursor::parse(text).unwrap_err();
            assert_eq!(error.code(), "cursor_invalid", "{text}");
        }
    }

    proptest! {
        #[test]
        fn cursors_survive_their_text(
            at in place(),
            previous in prop::option::of(place()),
            done in prop::collection::vec(place(), 0..12),
        ) {
            let mut heads = Heads::default();
            for place in &done {
                heads.remember(place);
            }
            if let Some(place) = done.last() {
                // Random generations differ.
                let head = heads.get(&place.generation.unwrap()).unwrap();
                prop_assert_eq!((head.repeat, head.reach), (place.repeat, place.position));
            }
            let cursor = Cursor { at, previous, heads };
            let text = cursor.to_string();
            prop_assert!(text.len() <= CURSOR_MAX_BYTES);
            let prefix = format!("{}:{} ", cursor.at.inode, cursor.at.position);
            prop_assert!(text.starts_with(&prefix));
            prop_assert_eq!(Cursor::parse(&text).unwrap(), cursor);
        }

        #[test]
        fn no_text_breaks_the_parser(text in ".{0,60}", tail in "[0-9:]{0,12}( \\{.{0,40}\\})?") {
            let _ = Cursor::parse(&text);
            let _ = Cursor::parse(&tail);
        }
    }
}
