//! A tail of any file of lines that is appended to and rotated.
//!
//! [`FileTail`] follows a file through appends, rotation by rename, truncation and restarts, and
//! passes its lines to a [`LineDecoder`]. It is an [`IngestSource`](dezky_core::IngestSource).
//!
//! Framing, cursors, generations and gaps are pure: they take bytes and return data. Only
//! [`FileTail`] touches files.

mod config;
mod cursor;
mod cut;
mod files;
mod frame;
mod gap;
mod gzip;
mod job;
mod opened;
mod place;
mod positional;
mod reading;
mod rotated;

use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{NewEvent, NewMetadata, PulledEvent, QuarantineItem, Timestamp};
use sha2::{Digest as _, Sha256};

pub use self::config::TailConfig;
pub(crate) use self::config::{default_max_line_bytes, default_max_siblings};
pub use self::cursor::Cursor;
use self::cursor::{Head, Heads};
pub use self::files::FileTail;
#[cfg(feature = "testkit")]
pub(crate) use self::frame::{Frame, Framer};
pub use self::frame::{LONG_LINE_KEPT_BYTES, MAX_LINE_BYTES};
use self::gap::{GapReason, gap_event};
use self::place::{HEAD_BYTES, LastLine, Place};
use self::reading::{Batch, GENERATION_MAX_BYTES, GenerationHash, Reading};
use self::rotated::{Age, Rotated};

use crate::annotations::CUT;

/// A SHA-256.
pub type Digest = [u8; 32];

/// Decodes the lines of a file.
///
/// Total: a line that can't be read is a [`DecodedLine::Quarantine`], never an error. Identities
/// must be pure: the same line gives the same external ids and keys, whenever and however often it
/// is read. [`Line::key`] is such an identity for lines without their own. The decoder must remove
/// secrets: apart from hashes, the tail stores and logs only its results.
///
/// ```
/// use dezky_core::{Actor, NewEvent, QuarantineItem, Timestamp};
/// use dezky_ingest::tail::{DecodedLine, Line, LineDecoder};
///
/// /// Every line is the name of a thing that was made.
/// struct Names;
///
/// impl LineDecoder for Names {
///     fn decode(
///         &self,
///         line: Line<'_>,
///         _last_time: &mut Option<Timestamp>,
///         each: &mut dyn FnMut(DecodedLine),
///     ) {
///         each(match std::str::from_utf8(line.bytes.trim_ascii()) {
///             Ok("") => DecodedLine::Skipped,
///             Ok(name) if line.is_complete => DecodedLine::from(NewEvent {
///                 source: line.source.to_owned(),
///                 external_id: Some(line.key()),
///                 resource_id: Some(name.to_owned()),
///                 ..NewEvent::new("thing.made", Actor::system())
///             }),
///             Ok(_) => DecodedLine::from(line.quarantine("partial_line", "no newline", line.bytes)),
///             Err(_) => DecodedLine::from(line.quarantine("not_text", "no UTF-8", line.bytes)),
///         });
///     }
///
///     fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem {
///         head.quarantine("line_too_long", &format!("a line of {bytes} bytes"), head.bytes)
///     }
/// }
/// ```
pub trait LineDecoder: Send + Sync + 'static {
    /// Decodes a line and passes the results to `each`: none for a blank line, several for a line
    /// with several events.
    ///
    /// `last_time` is the last usable time before the line in its file, for lines without one; a
    /// decoder that uses it must update it. The cursor keeps it across restarts.
    fn decode(
        &self,
        line: Line<'_>,
        last_time: &mut Option<Timestamp>,
        each: &mut dyn FnMut(DecodedLine),
    );

    /// The quarantine item of a line over the limit that is not a JSON object, or is longer than 64
    /// MiB. `bytes` is its length; only its `head` is available, at most [`LONG_LINE_KEPT_BYTES`].
    /// Its identity must depend on the head alone, so that it is the same however long the line was
    /// when it was read.
    fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem;
}

/// A line, its position and the time of reading.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// The name of the source that reads it.
    pub source: &'a str,
    /// The generation of the file: the SHA-256 of its first line.
    pub generation: &'a Digest,
    /// Its offset in the file.
    pub offset: u64,
    /// Its bytes without the `\n`, but including a `\r` before it.
    pub bytes: &'a [u8],
    /// For a JSON object over the limit, its original length and hash; `bytes` is then the object
    /// with its structure and its short values.
    pub cut: Option<Cut>,
    /// The number of earlier generations that begin with the same first line, if one of them has
    /// the same line at the same offset; otherwise 0.
    pub repeat: u32,
    /// Whether it had a `\n`. Without one, it is the rest of a file that no longer grows.
    pub is_complete: bool,
    /// The time of reading.
    pub now: Timestamp,
}

/// The original of a line whose long values were cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it.
    pub hash: Digest,
}

impl Cut {
    /// Notes it as `_dezky.cut.line`, in addition to other cuts.
    pub(crate) fn annotate(&self, metadata: &mut NewMetadata) {
        let mut cuts = match metadata.annotation(CUT) {
            Some(serde_json::Value::Object(cuts)) => cuts.clone(),
            _ => serde_json::Map::new(),
        };
        let note = serde_json::json!({"bytes": self.bytes, "sha256": hex::encode(self.hash)});
        cuts.insert("line".to_owned(), note);
        metadata.annotate(CUT, cuts);
    }
}

impl Line<'_> {
    /// `line1:` and the identity of the line: its source, the generation of its file, its offset
    /// and all of its bytes. Path, inode, device and host are not part of it, so it survives
    /// rotation, copying, compression and restarts, and does not depend on cuts. Two equal lines
    /// have different keys.
    ///
    /// If an earlier generation had the same first line and this line at the same offset, that
    /// identity is taken; then it is `line2:` and includes [`repeat`](Self::repeat).
    pub fn key(&self) -> String {
        let line = self.hash();
        match self.repeat {
            0 => {
                let hash =
                    keyed_hash("dezky-line/1", self.source, self.generation, self.offset, &line);
                format!("line1:{hash}")
            }
            repeat => {
                let domain = repeated("dezky-line/2", repeat);
                let hash = keyed_hash(&domain, self.source, self.generation, self.offset, &line);
                format!("line2:{hash}")
            }
        }
    }

    /// SHA-256 of all of its bytes.
    fn hash(&self) -> Digest {
        self.cut.map_or_else(|| Sha256::digest(self.bytes).into(), |cut| cut.hash)
    }

    fn length(&self) -> u64 {
        self.cut.map_or(self.bytes.len() as u64, |cut| cut.bytes)
    }

    /// A quarantine item identified by [`key`](Self::key): `reason` is a short stable code,
    /// `detail` a line for people, `raw` the text to keep, without secrets. At most 64 KiB of `raw`
    /// are kept.
    pub fn quarantine(&self, reason: &str, detail: &str, raw: &[u8]) -> QuarantineItem {
        QuarantineItem {
            source: self.source.to_owned(),
            key: format!("line:{}", self.key()),
            reason: reason.to_owned(),
            detail: format!("{detail}, {} bytes at offset {}", self.length(), self.offset),
            raw: raw[..raw.len().min(MAX_QUARANTINE_RAW_BYTES)].to_vec(),
            at: self.now,
        }
    }
}

/// The generation of a file that begins with this line: its SHA-256 without the `\n`.
pub fn generation(first_line: &[u8]) -> Digest {
    let mut hash = reading::GenerationHash::default();
    match hash.push(first_line) {
        Some(generation) => generation,
        None => hash.end(),
    }
}

/// The 40 hex digits of a line's identity, within the domain that `text` names.
pub(crate) fn keyed_hash(
    text: &str,
    source: &str,
    generation: &Digest,
    offset: u64,
    line_hash: &Digest,
) -> String {
    let mut hash = Sha256::new();
    hash.update(text);
    hash.update([0]);
    hash.update(source);
    hash.update([0]);
    hash.update(generation);
    hash.update(offset.to_be_bytes());
    hash.update(line_hash);
    let mut hex = hex::encode(hash.finalize());
    hex.truncate(40);
    hex
}

/// The domain of the identities of lines that `repeat` earlier generations had.
pub(crate) fn repeated(text: &str, repeat: u32) -> String {
    format!("{text}\0{repeat}")
}

/// The result of decoding a line, or a piece of one.
#[derive(Debug, Clone)]
pub enum DecodedLine {
    /// An event.
    Event(Box<PulledEvent>),
    /// Skipped on purpose.
    Skipped,
    /// Kept in the quarantine for an operator.
    Quarantine(Box<QuarantineItem>),
}

impl From<PulledEvent> for DecodedLine {
    fn from(event: PulledEvent) -> Self {
        Self::Event(Box::new(event))
    }
}

impl From<NewEvent> for DecodedLine {
    fn from(event: NewEvent) -> Self {
        PulledEvent::from(event).into()
    }
}

impl From<QuarantineItem> for DecodedLine {
    fn from(item: QuarantineItem) -> Self {
        Self::Quarantine(Box::new(item))
    }
}
