//! A tail of any file of lines that is appended to and rotated.
//!
//! [`FileTail`] follows a file through appends, rotation by rename, truncation
//! and restarts, and gives its lines to a [`LineDecoder`], which says what they
//! mean. It is an [`IngestSource`](dezky_core::IngestSource).
//!
//! Every part is a value that takes bytes and gives data, and can be used on its
//! own: [`Framer`] cuts lines, [`Cursor`] is the state as text, [`Reading`] puts
//! them together. Only [`FileTail`] touches files.

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
pub use self::cursor::{Cursor, Head, Heads};
pub use self::files::FileTail;
pub use self::frame::{Frame, Framer, LONG_LINE_KEPT_BYTES, MAX_LINE_BYTES, Short};
pub use self::gap::{GapReason, gap_event};
pub use self::place::{HEAD_BYTES, LastLine, Place};
pub use self::reading::{Batch, GENERATION_MAX_BYTES, GenerationHash, HadLine, IsWhole, Reading};
pub use self::rotated::{Age, Rotated};

use crate::annotations::CUT;

/// A SHA-256.
pub type Digest = [u8; 32];

/// Says what the lines of a file mean.
///
/// Total: a line that can't be read is a [`Decoded::Quarantine`], never an error.
/// Pure as far as identity goes: the same line gives the same external ids and
/// keys, whenever and however often it is read. [`Line::key`] is such an identity
/// for lines without one of their own. Secrets are the decoder's to take out:
/// the tail stores and logs nothing of a line but what is given here, and hashes.
///
/// ```
/// use dezky_core::{Actor, NewEvent, QuarantineItem, Timestamp};
/// use dezky_ingest::tail::{Decoded, Line, LineDecoder};
///
/// /// Every line is the name of something that was made.
/// struct Names;
///
/// impl LineDecoder for Names {
///     fn decode(
///         &self,
///         line: Line<'_>,
///         _last_time: &mut Option<Timestamp>,
///         each: &mut dyn FnMut(Decoded),
///     ) {
///         each(match std::str::from_utf8(line.bytes.trim_ascii()) {
///             Ok("") => Decoded::Skipped,
///             Ok(name) if line.is_complete => Decoded::from(NewEvent {
///                 source: line.source.to_owned(),
///                 external_id: Some(line.key()),
///                 resource_id: Some(name.to_owned()),
///                 ..NewEvent::new("thing.made", Actor::system())
///             }),
///             Ok(_) => Decoded::from(line.quarantine("partial_line", "no newline", line.bytes)),
///             Err(_) => Decoded::from(line.quarantine("not_text", "no UTF-8", line.bytes)),
///         });
///     }
///
///     fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem {
///         head.quarantine("line_too_long", &format!("a line of {bytes} bytes"), head.bytes)
///     }
/// }
/// ```
pub trait LineDecoder: Send + Sync + 'static {
    /// Reads a line and gives what became of it to `each`: nothing for a blank
    /// one, more than one thing for one that holds more.
    ///
    /// `last_time` is the last usable time before the line in its file, for lines
    /// without one; a decoder that uses it brings it forward. It outlives
    /// restarts in the cursor.
    fn decode(
        &self,
        line: Line<'_>,
        last_time: &mut Option<Timestamp>,
        each: &mut dyn FnMut(Decoded),
    );

    /// The record of a line over the limit that is no JSON object, or longer than
    /// 64 MiB: `bytes` is its length, and of its bytes only the `head` is there, at most [`LONG_LINE_KEPT_BYTES`]. Its
    /// identity must be of the head alone, so that it is the same however long the
    /// line was when it was met.
    fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem;
}

/// A line, where it stands and when it is read.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// The name of the source that reads it.
    pub source: &'a str,
    /// The generation of the file: the SHA-256 of its first line.
    pub generation: &'a Digest,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes, without the `\n`; a `\r` before that is still there.
    pub bytes: &'a [u8],
    /// Of a JSON object over the limit, what it was before its long values were cut:
    /// `bytes` is then the object with its structure and its short values.
    pub cut: Option<Cut>,
    /// How many earlier generations begin with the same first line, if one of them
    /// has the same line at the same place; else 0.
    pub repeat: u32,
    /// Whether it had a `\n`. One without is what is left at the end of a file
    /// that nobody writes any more.
    pub is_complete: bool,
    /// The time of reading.
    pub now: Timestamp,
}

/// A line as it stands in its file.
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
    /// `line1:` and the identity of the line: of its source, the generation of its
    /// file, its place and all of its bytes. Path, inode, device and host are not in
    /// it, so it is the same after rotation, copying, compression and restarts, and
    /// whatever was cut of it. Two equal lines have two keys.
    ///
    /// Where an earlier generation had the same first line and this line at the same
    /// place, that identity is taken: it is `line2:` then, with the
    /// [`repeat`](Self::repeat) in it.
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

    /// An item for the quarantine, identified by [`key`](Self::key): `reason` is a
    /// short stable code, `detail` a line for a person, `raw` what is kept of the
    /// line, without secrets. At most 64 KiB of `raw` are kept.
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

/// The domain of the identities of lines that came `repeat` times before.
pub(crate) fn repeated(text: &str, repeat: u32) -> String {
    format!("{text}\0{repeat}")
}

/// Result of decoding a line, or a piece of one.
#[derive(Debug, Clone)]
pub enum Decoded {
    /// An event.
    Event(Box<PulledEvent>),
    /// Passed over on purpose.
    Skipped,
    /// Kept for somebody to decide.
    Quarantine(Box<QuarantineItem>),
}

impl From<PulledEvent> for Decoded {
    fn from(event: PulledEvent) -> Self {
        Self::Event(Box::new(event))
    }
}

impl From<NewEvent> for Decoded {
    fn from(event: NewEvent) -> Self {
        PulledEvent::from(event).into()
    }
}

impl From<QuarantineItem> for Decoded {
    fn from(item: QuarantineItem) -> Self {
        Self::Quarantine(Box::new(item))
    }
}
