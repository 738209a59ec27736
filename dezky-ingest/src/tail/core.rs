//! The tail without its files: where it stands, what it has read, which file
//! comes next.

use std::cmp::{Ordering, Reverse};
use std::fmt;
use std::ops::{ControlFlow, Range};

use dezky_core::{
    Actor, Error, ErrorKind, NewEvent, NewMetadata, Outcome, PulledEvent, QuarantineItem, Timestamp,
};
use memchr::memchr;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::frame::{Frame, Framer, MAX_LINE_BYTES, Short};
use super::{Cut, Decoded, Digest, Line, LineDecoder};

/// The most bytes of a first line that go into the hash of its generation.
pub const GENERATION_MAX_BYTES: u64 = 16 << 20;

/// The most bytes of the beginning of a generation that are read back to verify a
/// cursor.
pub const HEAD_BYTES: u64 = 4 << 10;

/// The most first lines of earlier generations that a cursor remembers.
const MAX_HEADS: usize = 8;

/// The longest text that is read as a cursor.
const CURSOR_MAX_BYTES: usize = 2 << 10;

/// The last consumed line: its length and SHA-256, or of an over-long one those
/// of its kept tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastLine {
    /// Bytes, without the `\n`.
    pub bytes: u64,
    /// SHA-256 of them.
    pub hash: Digest,
}

/// A place in one generation of the file, after a line that was consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's inode when it was read: a hint, as inodes are used again.
    pub inode: u64,
    /// The offset of the first byte not consumed.
    pub position: u64,
    /// SHA-256 of the generation's first line; absent in old cursors and where
    /// no line was there yet.
    pub generation: Option<Digest>,
    /// The line before `position`.
    pub last_line: Option<LastLine>,
    /// The last usable time in the generation up to `position`.
    pub last_time: Option<Timestamp>,
    /// When the file was last written, in nanoseconds since 1970, as of reading.
    pub mtime_ns: Option<i64>,
    /// When the file was made, in nanoseconds since 1970, where the file system
    /// says so. With the inode it tells a file from a later one of its number.
    pub born_ns: Option<i64>,
    /// SHA-256 of the generation's first bytes: [`HEAD_BYTES`] of them, or as many
    /// as lie before `position`.
    pub head: Option<Digest>,
    /// How many earlier generations began with the same first line.
    pub repeat: u32,
    /// Up to where the last of these is known to have had lines: what is compared
    /// with it where its content is gone.
    pub reach: u64,
}

impl Place {
    /// The beginning of a generation.
    pub fn start(inode: u64, generation: Option<Digest>, mtime_ns: Option<i64>) -> Self {
        Self {
            inode,
            position: 0,
            generation,
            last_line: None,
            last_time: None,
            mtime_ns,
            born_ns: None,
            head: None,
            repeat: 0,
            reach: 0,
        }
    }

    /// The length of what [`head`](Self::head) is the hash of.
    pub fn head_bytes(&self) -> u64 {
        self.position.min(HEAD_BYTES)
    }

    /// The bytes to read back before going on here: the last line and its `\n`.
    pub fn to_verify(&self) -> Range<u64> {
        let bytes = self.last_line.map_or(0, |line| line.bytes) + 1;
        self.position.saturating_sub(bytes)..self.position
    }

    /// Whether a file with this generation and these bytes at
    /// [`to_verify`](Self::to_verify) is the one that was read.
    ///
    /// An old cursor knows neither generation nor line: there the byte before
    /// the position must be a `\n` and the inode the same.
    pub fn is_in(&self, inode: u64, generation: Option<&Digest>, bytes: &[u8]) -> bool {
        let Some((newline, line)) = bytes.split_last() else {
            return self.position == 0 && self.same_generation(inode, generation);
        };
        let range = self.to_verify();
        self.same_generation(inode, generation)
            && bytes.len() as u64 == range.end - range.start
            && *newline == b'\n'
            && self.last_line.is_none_or(|last| last.hash == Digest::from(Sha256::digest(line)))
    }

    fn same_generation(&self, inode: u64, generation: Option<&Digest>) -> bool {
        match &self.generation {
            Some(known) => generation == Some(known),
            None => inode == self.inode,
        }
    }
}

/// The generations that began with one first line, as far as a cursor remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The first bytes of the hash of the line.
    pub generation: [u8; 8],
    /// The [`repeat`](Place::repeat) of the last of them.
    pub repeat: u32,
    /// The end of the last of them, as far as it was read.
    pub reach: u64,
    /// When that was last written, in nanoseconds since 1970, as of reading.
    pub mtime_ns: i64,
}

impl Head {
    /// What is remembered of the generation of `place`; `None` if that has no line.
    pub fn of(place: &Place) -> Option<Self> {
        let Place { generation, repeat, position: reach, .. } = *place;
        let mtime_ns = place.mtime_ns.unwrap_or(i64::MIN);
        Some(Self { generation: short(&generation?), repeat, reach, mtime_ns })
    }
}

/// The first lines of the generations that were read last, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heads(Vec<Head>);

impl Heads {
    /// Remembers that the generation of `place` is done; forgets the oldest beyond
    /// eight.
    pub fn remember(&mut self, place: &Place) {
        let Some(head) = Head::of(place) else { return };
        if self.get_short(head.generation).is_some_and(|known| known.repeat > head.repeat) {
            // An earlier one was read again.
            return;
        }
        self.0.retain(|known| known.generation != head.generation);
        self.0.insert(0, head);
        self.0.truncate(MAX_HEADS);
    }

    /// Notes how far the generation of `place`, which was done, goes now.
    pub fn update(&mut self, place: &Place) {
        let Some(head) = Head::of(place) else { return };
        let is_it =
            |known: &&mut Head| (known.generation, known.repeat) == (head.generation, head.repeat);
        if let Some(known) = self.0.iter_mut().find(is_it) {
            *known = head;
        }
    }

    /// What is remembered of the generations with this first line.
    pub fn get(&self, generation: &Digest) -> Option<Head> {
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

/// How far a tail has come, as text: `<inode>:<position>` and behind it, as JSON,
/// what is needed to find the place again.
///
/// `10469822:18028 {"v":3,"gen":"…","lastLen":524,"lastHash":"…","lastTime":"…"}`.
/// Version 2, which knows neither birth, head nor repeats, and a bare
/// `<inode>:<position>` are read as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Where to go on.
    pub at: Place,
    /// The end of the generation before, which is looked at once more: a writer
    /// that had it open while it was renamed may have been late.
    pub previous: Option<Place>,
    /// The first lines of the generations before.
    pub heads: Heads,
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
    /// From version 3 on: the first 16 hex digits of a generation, its repeat and
    /// its reach, and when it was last written.
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

    /// Whether version 2 has a word for all of it.
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
            // Of an old cursor nothing more was known.
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
    /// Reads a cursor; anything that [`Display`](fmt::Display) did not write and
    /// that is no old cursor is `cursor_invalid`.
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

/// Hashes the first line of a file, chunk by chunk: what tells one generation
/// from another.
#[derive(Debug, Default)]
pub struct GenerationHash {
    hash: Sha256,
    taken: u64,
}

impl GenerationHash {
    /// Takes the next bytes of the file. The hash, once the line is complete; of a
    /// longer line it is that of its first [`GENERATION_MAX_BYTES`].
    pub fn push(&mut self, chunk: &[u8]) -> Option<Digest> {
        let line_end = memchr(b'\n', chunk);
        let room = usize::try_from(GENERATION_MAX_BYTES - self.taken).unwrap_or(usize::MAX);
        let end = line_end.unwrap_or(chunk.len()).min(room);
        self.hash.update(&chunk[..end]);
        self.taken += end as u64;
        line_end.map(|_| std::mem::take(self).end())
    }

    /// The hash where the file ends without a `\n`: what it will be if nothing but
    /// that comes.
    pub fn end(self) -> Digest {
        self.hash.finalize().into()
    }
}

/// What a pull has brought so far.
#[derive(Debug)]
pub struct Batch {
    /// The events.
    pub events: Vec<PulledEvent>,
    /// What could not be mapped.
    pub quarantine: Vec<QuarantineItem>,
    /// Lines passed over on purpose.
    pub skipped: u64,
    items_left: usize,
    bytes_left: u64,
}

impl Batch {
    /// An empty batch that is full after `max_items` events and quarantined
    /// items, or `max_bytes` of lines; it takes one line at least.
    pub fn new(max_items: usize, max_bytes: usize) -> Self {
        Self {
            events: Vec::new(),
            quarantine: Vec::new(),
            skipped: 0,
            items_left: max_items.max(1),
            bytes_left: max_bytes.max(1) as u64,
        }
    }

    /// Whether no further line is to be taken.
    pub fn is_full(&self) -> bool {
        self.items_left == 0 || self.bytes_left == 0
    }

    /// Takes an event.
    pub fn event(&mut self, event: impl Into<PulledEvent>) {
        self.events.push(event.into());
        self.items_left = self.items_left.saturating_sub(1);
    }

    fn quarantined(&mut self, item: QuarantineItem) {
        self.quarantine.push(item);
        self.items_left = self.items_left.saturating_sub(1);
    }

    fn decoded(&mut self, decoded: Decoded) {
        match decoded {
            Decoded::Event(event) => self.event(*event),
            Decoded::Skipped => self.skipped += 1,
            Decoded::Quarantine(item) => self.quarantined(*item),
        }
    }
}

/// Says whether an earlier generation had the same line at the same offset: of a line
/// that is too long only the beginning is there, and compared.
pub type HadLine<'a> = dyn FnMut(u64, &[u8], IsWhole) -> bool + 'a;

/// Whether the bytes of a line are all of it.
pub type IsWhole = bool;

/// The reading of one generation from a place on.
pub struct Reading<'a> {
    source: &'a str,
    decoder: &'a dyn LineDecoder,
    generation: Digest,
    now: Timestamp,
    place: Place,
    framer: Framer,
    had_line: Option<Box<HadLine<'a>>>,
}

impl<'a> Reading<'a> {
    /// Goes on at `place` in the generation, for `source` and with lines up to
    /// `max_line_bytes`.
    pub fn new(
        source: &'a str,
        decoder: &'a dyn LineDecoder,
        max_line_bytes: usize,
        generation: Digest,
        now: Timestamp,
        place: Place,
    ) -> Self {
        let framer = Framer::new(place.position, max_line_bytes);
        Self { source, decoder, generation, now, place, framer, had_line: None }
    }

    /// The same for a generation that begins as earlier ones did: a line for which
    /// `had_line` holds has the place's [`repeat`](Place::repeat) in its identity.
    #[must_use]
    pub fn with_repeats(mut self, had_line: Box<HadLine<'a>>) -> Self {
        self.had_line = Some(had_line);
        self
    }

    /// The offset of the bytes that [`push`](Self::push) takes next.
    pub fn next_offset(&self) -> u64 {
        self.framer.next_offset()
    }

    /// Takes the next bytes; breaks as soon as `batch` is full.
    pub fn push(&mut self, chunk: &[u8], batch: &mut Batch) -> ControlFlow<()> {
        let Self { source, decoder, generation, now, place, framer, had_line } = self;
        framer.push(chunk, |frame| {
            let mut line = line_of(source, generation, *now, true, frame);
            line.repeat = repeat(place, had_line, frame);
            decode(*decoder, line, frame, &mut place.last_time, batch);
            let verified = match frame {
                Frame::Line { bytes, .. } => bytes,
                Frame::TooLong { tail, .. } => tail,
            };
            place.last_line = Some(LastLine {
                bytes: verified.len() as u64,
                hash: Sha256::digest(verified).into(),
            });
            batch.bytes_left = batch.bytes_left.saturating_sub(frame.end() - place.position);
            place.position = frame.end();
            if batch.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }

    /// Takes the bytes behind the last `\n`, for a file that will not grow any
    /// more. The place stays before them.
    pub fn end(&mut self, batch: &mut Batch) {
        let Some(frame) = self.framer.unterminated() else { return };
        let mut line = line_of(self.source, &self.generation, self.now, false, frame);
        line.repeat = repeat(&self.place, &mut self.had_line, frame);
        let mut last_time = self.place.last_time;
        decode(self.decoder, line, frame, &mut last_time, batch);
    }

    /// The same behind what `framer` has taken already from the place on.
    #[must_use]
    pub fn with_framer(mut self, framer: Framer) -> Self {
        self.framer = framer;
        self
    }

    /// Where reading stands, and the framer with what it has of the next line.
    pub fn into_parts(self) -> (Place, Framer) {
        (self.place, self.framer)
    }

    /// How many bytes behind the last complete line were taken.
    pub fn open_bytes(&self) -> u64 {
        self.framer.next_offset().saturating_sub(self.framer.line_start())
    }

    /// Where reading stands: after the last complete line.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// Gives a line to its decoder: a long one with its long values cut, if it is a JSON
/// object, else only its head.
fn decode(
    decoder: &dyn LineDecoder,
    line: Line<'_>,
    frame: Frame<'_>,
    last_time: &mut Option<Timestamp>,
    batch: &mut Batch,
) {
    match frame {
        Frame::TooLong { bytes, short: None, .. } => {
            batch.quarantined(decoder.too_long(line, bytes));
        }
        Frame::TooLong { bytes, short: Some(Short { text, hash }), .. } => {
            let line = Line { bytes: text, cut: Some(Cut { bytes, hash }), ..line };
            decoder.decode(line, last_time, &mut |decoded| batch.decoded(decoded));
        }
        Frame::Line { .. } => {
            decoder.decode(line, last_time, &mut |decoded| batch.decoded(decoded));
        }
    }
}

fn repeat(place: &Place, had_line: &mut Option<Box<HadLine<'_>>>, frame: Frame<'_>) -> u32 {
    let Some(had) = had_line else { return 0 };
    let (offset, bytes, is_whole) = match frame {
        Frame::Line { offset, bytes } => (offset, bytes, true),
        Frame::TooLong { offset, head, .. } => (offset, head, false),
    };
    // Generations with the same first line have at least that in common.
    if offset == 0 || had(offset, bytes, is_whole) { place.repeat } else { 0 }
}

fn line_of<'a>(
    source: &'a str,
    generation: &'a Digest,
    now: Timestamp,
    is_complete: bool,
    frame: Frame<'a>,
) -> Line<'a> {
    let (offset, bytes) = match frame {
        Frame::Line { offset, bytes } => (offset, bytes),
        Frame::TooLong { offset, head, .. } => (offset, head),
    };
    Line { source, generation, offset, bytes, cut: None, repeat: 0, is_complete, now }
}

/// What a rotated file's name says of its age.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Suffix {
    /// `.3`: the higher, the older.
    Number(u32),
    /// `-20261121`, `-20261121.log.1`: the higher, the younger. What a number behind
    /// a date means differs from program to program, so it compares with nothing.
    Date { date: String, number: Option<u32> },
    /// `app.log.gz` beside `app.log`.
    Bare,
}

/// The endings of compressed files.
const COMPRESSED: [&str; 4] = [".gz", ".zst", ".xz", ".bz2"];

/// The fewest digits of a date.
const DATE_DIGITS: usize = 6;

/// A file beside the live one whose name says that it is an earlier generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    suffix: Suffix,
    /// Whether it is compressed.
    pub is_compressed: bool,
}

impl Rotated {
    /// Reads a file name beside the live file `base`: `audit.log.1`,
    /// `audit.log-20261121`, `audit-20261121.log`, `audit_20261121.log`,
    /// `audit20261121.log`, `audit-20261121.log.1`, with or without a compression's
    /// ending; and `audit.log.gz`.
    pub fn parse(base: &str, name: &str) -> Option<Self> {
        let (plain, is_compressed) = without_compression(name);
        if plain == base {
            return is_compressed.then_some(Self { suffix: Suffix::Bare, is_compressed });
        }
        let suffix = match plain.strip_prefix(base) {
            Some(behind) => behind.strip_prefix(['.', '-', '_'])?.to_owned(),
            None => between(base, plain)?,
        };
        Some(Self { suffix: Suffix::parse(&suffix)?, is_compressed })
    }

    /// Reads the name of a file in the folder of `target`, a dated file to which
    /// the live path is a link: the same name but for the digits.
    pub fn parse_dated(target: &str, name: &str) -> Option<Self> {
        let (plain, is_compressed) = without_compression(name);
        let (target, _) = without_compression(target);
        let digits = |name: &str| name.chars().filter(char::is_ascii_digit).collect::<String>();
        let frame = |name: &str| -> Vec<String> {
            let parts = name.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let date = digits(plain);
        let is_alike = frame(plain) == frame(target)
            && date.len() == digits(target).len()
            && date.len() >= DATE_DIGITS;
        is_alike.then_some(Self { suffix: Suffix::Date { date, number: None }, is_compressed })
    }

    /// Whether `compressed` is the name that this file has once it is compressed.
    pub fn is_place_of(&self, compressed: &Self) -> bool {
        !self.is_compressed && compressed.is_compressed && self.suffix == compressed.suffix
    }

    /// Whether both are names of one file, compressed or not.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.suffix == other.suffix
    }

    /// Whether this is the live file's name with the ending of a compression.
    pub fn is_bare(&self) -> bool {
        self.suffix == Suffix::Bare
    }

    /// Younger is greater; `None` if the names don't compare.
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (&self.suffix, &other.suffix) {
            (Suffix::Number(a), Suffix::Number(b)) => Some(b.cmp(a)),
            (Suffix::Date { date: a, number: m }, Suffix::Date { date: b, number: n }) => {
                (a != b || m == n).then(|| a.cmp(b))
            }
            _ => None,
        }
    }

    fn sort_key(&self) -> (u8, Reverse<u32>, &str, bool) {
        match &self.suffix {
            Suffix::Number(number) => (0, Reverse(*number), "", self.is_compressed),
            Suffix::Date { date, number } => {
                (1, Reverse(number.unwrap_or(0)), date, self.is_compressed)
            }
            Suffix::Bare => (2, Reverse(0), "", self.is_compressed),
        }
    }
}

fn without_compression(name: &str) -> (&str, bool) {
    let plain = COMPRESSED.into_iter().find_map(|ending| name.strip_suffix(ending));
    plain.map_or((name, false), |plain| (plain, true))
}

/// What stands between the two parts of `base` in `name`, and behind them:
/// `20261121` in `app-20261121.log` and `20261121.1` in `app-20261121.log.1`.
fn between(base: &str, name: &str) -> Option<String> {
    let (stem, extension) = base.rsplit_once('.')?;
    let rest = name.strip_prefix(stem)?;
    let at = rest.rfind(&format!(".{extension}"))?;
    let (middle, behind) = (&rest[..at], &rest[at + 1 + extension.len()..]);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !behind.is_empty() && !behind.strip_prefix(['.', '-']).is_some_and(is_number) {
        return None;
    }
    let digits = middle.bytes().filter(u8::is_ascii_digit).count();
    // `app2.log` and `app_2.log` may be the logs of somebody else.
    let middle = match middle.strip_prefix(['.', '-']) {
        Some(middle) if behind.is_empty() || digits >= DATE_DIGITS => middle,
        None if digits >= DATE_DIGITS => middle.strip_prefix('_').unwrap_or(middle),
        _ => return None,
    };
    Some(format!("{middle}{}", behind.replacen('-', ".", 1)))
}

impl Suffix {
    fn parse(text: &str) -> Option<Self> {
        let allowed =
            |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b':' | b'T' | b'Z');
        if !text.starts_with(|c: char| c.is_ascii_digit()) || !text.bytes().all(allowed) {
            return None;
        }
        let number = |text: &str| text.parse().ok().filter(|_| text.len() <= 5);
        if let Some(number) = number(text) {
            return Some(Self::Number(number));
        }
        let is_date = |text: &str| text.bytes().filter(u8::is_ascii_digit).count() >= 8;
        let numbered = text
            .rsplit_once('.')
            .filter(|(date, _)| is_date(date))
            .and_then(|(date, behind)| Some((date, number(behind)?)));
        Some(match numbered {
            Some((date, number)) => Self::Date { date: date.to_owned(), number: Some(number) },
            None => Self::Date { date: text.to_owned(), number: None },
        })
    }
}

/// The age of a generation: when it was last written, then its name. Younger is
/// greater.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Age {
    /// When it was last written, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Its name, unless it has none any more.
    pub name: Option<Rotated>,
}

impl Age {
    /// Whether this generation may be younger than `other`: by time or by name.
    ///
    /// The two can disagree where files were copied or restored. Then an older
    /// one is read again, which stores nothing twice; a younger one that is left
    /// out would be lost.
    pub fn may_be_younger_than(&self, other: &Self) -> bool {
        match self.compare_names(other) {
            Some(by_name) => self.mtime_ns > other.mtime_ns || by_name == Ordering::Greater,
            // Files that are written soon after one another may have the same time.
            None => self.mtime_ns >= other.mtime_ns,
        }
    }

    /// Whether this generation is older than `other`, by name where names compare.
    pub fn is_older_than(&self, other: &Self) -> bool {
        let by_name = self.compare_names(other);
        by_name.map_or(self.mtime_ns <= other.mtime_ns, |by_name| by_name == Ordering::Less)
    }

    /// Which of the two is younger by its name; younger is greater.
    pub fn compare_names(&self, other: &Self) -> Option<Ordering> {
        self.name.as_ref()?.compare(other.name.as_ref()?)
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        self.mtime_ns.cmp(&other.mtime_ns).then_with(|| {
            let (a, b) = (self.name.as_ref(), other.name.as_ref());
            a.map(Rotated::sort_key).cmp(&b.map(Rotated::sort_key))
        })
    }
}

/// Why lines may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// The file is shorter than what was read of it.
    Truncated,
    /// The file was written anew.
    Rewritten,
    /// The generation is nowhere any more.
    GenerationMissing,
    /// A compressed file can't be decoded, or not to its end.
    Unreadable,
    /// There are more rotated files than are looked at.
    LeftOut,
}

impl GapReason {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Rewritten => "rewritten",
            Self::GenerationMissing => "generation_missing",
            Self::Unreadable => "unreadable",
            Self::LeftOut => "left_out",
        }
    }
}

/// The event that says that lines behind the cursor `text` may be lost. The same
/// cursor gives the same event.
pub fn gap_event(
    source: &str,
    text: &str,
    lost: &Place,
    reason: GapReason,
    now: Timestamp,
) -> NewEvent {
    let mut digest = hex::encode(Sha256::digest(text));
    digest.truncate(40);
    let hex_or_null = |hash: Option<Digest>| hash.map_or(Value::Null, |h| hex::encode(h).into());
    let last_written = lost
        .mtime_ns
        .and_then(|ns| Timestamp::from_millis(ns.div_euclid(1_000_000)))
        .map_or(Value::Null, |at| at.to_string().into());
    NewEvent {
        at: Some(now),
        outcome: Outcome::Failure,
        resource_type: Some("source".into()),
        resource_id: Some(source.to_owned()),
        external_id: Some(format!("gap:{source}:{digest}")),
        metadata: NewMetadata::from_value(json!({
            "reason": reason.code(),
            "lastInode": lost.inode,
            "lastOffset": lost.position,
            "lastLineBytes": lost.last_line.map(|line| line.bytes),
            "lastLineHash": hex_or_null(lost.last_line.map(|line| line.hash)),
            "generation": hex_or_null(lost.generation),
            "lastTime": lost.last_time,
            // The lost lines were written between these two.
            "lastWritten": last_written,
            "noticed": now,
        })),
        ..NewEvent::new("ingest.gap", Actor::system())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(byte: u8) -> Digest {
        [byte; 32]
    }

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

    /// What earlier versions wrote is read for ever.
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
        // Version 3 knows when the file was made, how it begins, and which earlier
        // generations began alike.
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

    #[test]
    fn names_and_ages() {
        let parse = |name| Rotated::parse("audit.log", name);
        for name in [
            "audit.log.1",
            "audit.log-20261121",
            "audit.log-20261121-2359",
            "audit.log.2026-11-21T23:59",
            "audit.1.log",
            "audit-20261121.log",
            "audit.log.2.gz",
            "audit_20261121.log",
            "audit20261121.log",
            "audit.log_20261121",
            "audit-20261121.log.1",
            "audit-2026-11-21.log.12.gz",
            "audit.log.gz",
        ] {
            assert!(parse(name).is_some(), "{name}");
        }
        for name in [
            "audit.log",
            "audit.log.bak",
            "audit.log1",
            "other.log.1",
            "audit.log.",
            "a",
            // Perhaps somebody else's.
            "audit2.log",
            "audit_2.log",
            "audit-2.log.1",
            "audit-error.log",
            "audit-error.log.1",
            "audit-20261121.log.old",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        let dated = |name| Rotated::parse_dated("app-2026-11-21.log", name);
        assert!(dated("app-2026-11-20.log").is_some() && dated("app-2026-11-20.log.gz").is_some());
        for name in ["app-2026-11-2.log", "app.2026-11-20.log", "b-2026-11-20.log", "app-.log"] {
            assert_eq!(dated(name), None, "{name}");
        }
        assert_eq!(Rotated::parse_dated("app-2.log", "app-1.log"), None, "no date");
        assert!(parse("audit.log.2.gz").unwrap().is_compressed);

        let age = |mtime_ns, name| Age { mtime_ns, name: parse(name) };
        let mut ages = vec![
            age(5, "audit.log.1"),
            age(5, "audit.log.10"),
            age(3, "audit.log-20261121"),
            age(5, "audit.log.2"),
            age(3, "audit.log-20261120"),
        ];
        ages.sort();
        assert_eq!(
            ages,
            [
                age(3, "audit.log-20261120"),
                age(3, "audit.log-20261121"),
                age(5, "audit.log.10"),
                age(5, "audit.log.2"),
                age(5, "audit.log.1"),
            ]
        );
        // Restored in the wrong order: the name counts as well as the time.
        assert!(age(1, "audit.log.1").may_be_younger_than(&age(2, "audit.log.2")));
        assert!(age(2, "audit.log.2").may_be_younger_than(&age(1, "audit.log.1")));
        assert!(!age(1, "audit.log.2").may_be_younger_than(&age(1, "audit.log.1")));
        // Numbers behind one date say nothing.
        let (a, b) = (age(1, "audit-20261121.log.1"), age(2, "audit-20261121.log.2"));
        assert!(!a.may_be_younger_than(&b) && b.may_be_younger_than(&a));
        let later = age(1, "audit-20261122.log.1");
        assert!(later.may_be_younger_than(&a) && later.may_be_younger_than(&b));
    }

    #[test]
    fn a_generation_is_its_first_line() {
        let expected: Digest = Sha256::digest("first\r").into();
        let mut hash = GenerationHash::default();
        assert_eq!(hash.push(b"fir"), None);
        assert_eq!(hash.push(b"st\r\nsecond\n"), Some(expected));
        let mut long = GenerationHash::default();
        let chunk = vec![b'x'; 1 << 20];
        let mut bounded = Sha256::new();
        for n in 0..18 {
            assert_eq!(long.push(&chunk), None, "without its end a line is none");
            if n < 16 {
                bounded.update(&chunk);
            }
        }
        assert_eq!(long.push(b"x\n"), Some(bounded.finalize().into()));
    }

    #[test]
    fn a_place_is_found_again_by_generation_and_last_line() {
        let place = Place {
            position: 10,
            last_line: Some(LastLine { bytes: 4, hash: Sha256::digest("last").into() }),
            ..Place::start(7, Some(digest(1)), None)
        };
        assert_eq!(place.to_verify(), 5..10);
        assert!(place.is_in(8, Some(&digest(1)), b"last\n"), "the inode is a hint");
        assert!(!place.is_in(7, Some(&digest(2)), b"last\n"));
        assert!(!place.is_in(7, None, b"last\n"));
        assert!(!place.is_in(7, Some(&digest(1)), b"lost\n"));
        assert!(!place.is_in(7, Some(&digest(1)), b"lastx"));
        assert!(!place.is_in(7, Some(&digest(1)), b"last"), "shorter than what was read");
        assert!(!place.is_in(7, Some(&digest(1)), b""));

        let old = Place { position: 10, ..Place::start(7, None, None) };
        assert_eq!(old.to_verify(), 9..10);
        assert!(old.is_in(7, Some(&digest(2)), b"\n"));
        assert!(!old.is_in(8, Some(&digest(2)), b"\n"));
        assert!(!old.is_in(7, Some(&digest(2)), b"x"));
    }

    #[test]
    fn a_gap_is_the_same_event_for_the_same_cursor() {
        let now = Timestamp::from_millis_clamped(5);
        let lost = Place { position: 10, ..Place::start(7, None, Some(3_999_999)) };
        let gap = gap_event("ocis:b", "7:10", &lost, GapReason::Truncated, now);
        assert_eq!(
            gap.external_id,
            gap_event("ocis:b", "7:10", &lost, GapReason::Rewritten, now).external_id
        );
        assert_ne!(
            gap.external_id,
            gap_event("ocis", "7:10", &lost, GapReason::Truncated, now).external_id
        );
        assert_eq!((gap.action.as_str(), gap.source.as_str()), ("ingest.gap", "platform-api"));
        let said: Value = serde_json::from_str(gap.metadata.source().unwrap()).unwrap();
        assert_eq!(said["lastOffset"], 10);
        assert_eq!(said["lastWritten"], "1970-01-01T00:00:00.003Z");
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
                // Random generations are different ones.
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

        #[test]
        fn generations_hash_alike_however_read(line in "[a-z]{0,40}", cut in 0_usize..40) {
            let file = format!("{line}\nmore\n");
            let cut = cut.min(line.len());
            let mut hash = GenerationHash::default();
            let first = hash.push(&file.as_bytes()[..cut]);
            prop_assert_eq!(first, None);
            let expected: Digest = Sha256::digest(line.as_bytes()).into();
            prop_assert_eq!(hash.push(&file.as_bytes()[cut..]), Some(expected));
        }
    }
}
