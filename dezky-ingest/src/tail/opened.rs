//! Open files, and their state in a pull.

use std::cmp::Ordering;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use super::Digest;
use super::gzip::{Budget, End, Gzip};
use super::positional::read_at;
use super::{Age, GENERATION_MAX_BYTES, GenerationHash, HEAD_BYTES, Place, Rotated};

/// Bytes read at a time.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// The number of bytes at the end of two files that are compared to detect a copy.
const COMPARED_BYTES: u64 = 4 << 10;

/// An open file.
#[derive(Debug)]
pub(super) struct Opened {
    file: Arc<File>,
    content: Content,
    device: u64,
    pub(super) inode: u64,
    /// The file's birth time, if the file system has it.
    pub(super) born_ns: Option<i64>,
    /// Its length and modification time when it was opened.
    version: (u64, i64),
    /// The first line of a compressed file, which does not change.
    generation: OnceLock<Option<Digest>>,
    /// The first bytes of the content of a compressed file.
    beginning: OnceLock<Vec<u8>>,
    /// The last place up to which a compressed file was read.
    reached: Mutex<Option<Place>>,
}

/// Content of a file.
#[derive(Debug)]
enum Content {
    /// Lines.
    Plain,
    /// Lines, compressed by gzip.
    Gzip(Gzip),
    /// Lines in an unsupported compression.
    Unknown,
}

impl Opened {
    /// Opens a regular file; `None` if it does not exist.
    pub(super) fn open(path: &Path, budget: &Arc<Budget>) -> io::Result<Option<(Self, Metadata)>> {
        let absent = |e: &io::Error| {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        };
        // Checked before opening, because opening a pipe would wait for a writer.
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(e),
        }
        let file = match File::open(path) {
            Ok(file) => Arc::new(file),
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        let metadata = file.metadata()?;
        let (device, inode) = identity(&metadata);
        let content = match path.extension().and_then(|ending| ending.to_str()) {
            Some("gz") => Content::Gzip(Gzip::new(Arc::clone(&file), Arc::clone(budget))),
            Some("zst" | "xz" | "bz2") => Content::Unknown,
            _ => Content::Plain,
        };
        let opened = Self {
            file,
            content,
            device,
            inode,
            born_ns: metadata.created().ok().map(ns_since_1970),
            version: (metadata.len(), mtime_ns(&metadata)),
            generation: OnceLock::new(),
            beginning: OnceLock::new(),
            reached: Mutex::default(),
        };
        Ok(Some((opened, metadata)))
    }

    /// Whether both are the same file, by device and inode.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.inode != 0 && (self.device, self.inode) == (other.device, other.inode)
    }

    /// Device and inode.
    pub(super) fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether this file, with its decoded part, can replace `other`, which was opened later. Only
    /// for compressed files that were not written to: on some file systems, a descriptor does not
    /// see data that is appended by name.
    pub(super) fn serves(&self, other: &Self) -> bool {
        self.is(other) && self.is_compressed() && self.version == other.version
    }

    pub(super) fn is_compressed(&self) -> bool {
        !matches!(self.content, Content::Plain)
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Reads at most `buf` at `offset`; returns 0 at the end.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.content {
            Content::Plain => read_at(&self.file, buf, offset),
            Content::Gzip(gzip) => gzip.read_at(buf, offset),
            Content::Unknown => Ok(0),
        }
    }

    /// The bytes of a range, as far as they exist.
    fn bytes(&self, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
        let mut done = 0;
        while done < bytes.len() {
            match self.read_at(&mut bytes[done..], start + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// The hash of the first bytes of the content, `length` of them and at most
    /// [`HEAD_BYTES`]; `None` if there are fewer.
    pub(super) fn head(&self, length: u64) -> io::Result<Option<Digest>> {
        let length = length.min(HEAD_BYTES);
        let read;
        let bytes = if self.is_compressed() {
            if let Some(known) = self.beginning.get() {
                known
            } else {
                let beginning = self.bytes(0, HEAD_BYTES)?;
                self.beginning.get_or_init(|| beginning)
            }
        } else {
            read = self.bytes(0, length)?;
            &read
        };
        let head = usize::try_from(length).ok().and_then(|length| bytes.get(..length));
        Ok(head.map(|head| Sha256::digest(head).into()))
    }

    /// Whether the bytes before `offset` end with `tail`.
    pub(super) fn has_before(&self, offset: u64, tail: &[u8]) -> io::Result<bool> {
        let start = offset.saturating_sub(tail.len() as u64);
        Ok(self.bytes(start, offset)? == tail)
    }

    /// The hash of the first line; `None` if none is complete, unless it is so
    /// long that the hash does not depend on its end.
    pub(super) fn generation(&self) -> io::Result<Option<Digest>> {
        if !self.is_compressed() {
            return Ok(self.first_line()?.ok());
        }
        if let Some(known) = self.generation.get() {
            return Ok(*known);
        }
        // Read now, while the decoder is at the beginning.
        self.head(0)?;
        let generation = self.first_line()?.ok();
        let _ = self.generation.set(generation);
        Ok(generation)
    }

    /// The hash of the first line: an error holds that of a line without its end.
    pub(super) fn first_line(&self) -> io::Result<Result<Digest, Digest>> {
        let mut hash = GenerationHash::default();
        let mut buf = vec![0; 4 << 10];
        let mut offset = 0;
        loop {
            match self.read_at(&mut buf, offset)? {
                0 => return Ok(Err(hash.end())),
                n => {
                    if let Some(generation) = hash.push(&buf[..n]) {
                        return Ok(Ok(generation));
                    }
                    offset += n as u64;
                    if offset >= GENERATION_MAX_BYTES {
                        return Ok(Ok(hash.end()));
                    }
                    if n == buf.len() && buf.len() < CHUNK_BYTES {
                        buf.resize(CHUNK_BYTES, 0);
                    }
                }
            }
        }
    }

    /// Whether the rest of the file can never be read. For a compressed one, known once it was read
    /// that far.
    pub(super) fn is_unreadable(&self) -> bool {
        match &self.content {
            Content::Plain => false,
            Content::Gzip(gzip) => gzip.end().is_some_and(|(_, end)| end == End::Broken),
            Content::Unknown => true,
        }
    }

    /// Remembers that a compressed file contains `place`.
    pub(super) fn was_read_to(&self, place: &Place) {
        if self.is_compressed() {
            *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(place.clone());
        }
    }

    fn is_known_to_hold(&self, place: &Place) -> bool {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.as_ref().is_some_and(|reached| {
            (reached.position, reached.generation, reached.last_line)
                == (place.position, place.generation, place.last_line)
        })
    }

    /// Lets the pull of `budget` decode.
    pub(super) fn allow(&self, budget: &Arc<Budget>) {
        if let Content::Gzip(gzip) = &self.content {
            gzip.allow(budget);
        }
    }

    /// Frees the decoder's memory, for a file that is not being read.
    pub(super) fn rest(&self) {
        if let Content::Gzip(gzip) = &self.content {
            gzip.rest();
        }
    }

    /// Identifies a file without a readable line: a hash of its beginning and length.
    pub(super) fn fingerprint(&self) -> io::Result<Digest> {
        let mut buf = vec![0; CHUNK_BYTES];
        let n = read_at(&self.file, &mut buf, 0)?;
        let hash = Sha256::new().chain_update(&buf[..n]);
        Ok(hash.chain_update(self.version.0.to_be_bytes()).finalize().into())
    }
}

#[cfg(unix)]
pub(super) fn identity(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Without inodes, generations are told apart by their content alone.
#[cfg(not(unix))]
pub(super) fn identity(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

pub(super) fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.modified().map_or(0, ns_since_1970)
}

fn ns_since_1970(time: SystemTime) -> i64 {
    let ns = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => ns(after),
        Err(before) => -ns(before.duration()),
    }
}

/// A generation as seen in this pull.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) opened: Arc<Opened>,
    /// The length of the file.
    pub(super) bytes: u64,
    pub(super) age: Age,
    pub(super) generation: Option<Digest>,
    /// The number of earlier generations with the same first line, and the length of the last of
    /// them; set once the generations are in order.
    pub(super) repeat: u32,
    pub(super) reach: u64,
    /// Whether this is the file at the live path.
    pub(super) is_live: bool,
}

impl Seen {
    pub(super) fn new(
        opened: Arc<Opened>,
        metadata: &Metadata,
        name: Option<Rotated>,
    ) -> io::Result<Self> {
        let generation = opened.generation()?;
        let age = Age { mtime_ns: mtime_ns(metadata), name };
        Ok(Self {
            opened,
            bytes: metadata.len(),
            age,
            generation,
            repeat: 0,
            reach: 0,
            is_live: false,
        })
    }

    /// The current state of an open file, which may no longer have a name.
    pub(super) fn again(opened: &Arc<Opened>) -> io::Result<Self> {
        Self::new(Arc::clone(opened), &opened.metadata()?, None)
    }

    /// Whether `place` is in this generation.
    pub(super) fn holds(&self, place: &Place) -> io::Result<bool> {
        self.holds_with(place, self.generation.as_ref())
    }

    /// Like [`holds`](Self::holds), but also reads the first line again. A compressed file is only
    /// checked for writes, because reading its last line again may mean decoding all of it.
    pub(super) fn still_holds(&self, place: &Place) -> io::Result<bool> {
        if self.opened.is_compressed() {
            let metadata = self.opened.metadata()?;
            return Ok(self.opened.version == (metadata.len(), mtime_ns(&metadata)));
        }
        self.holds_with(place, self.opened.generation()?.as_ref())
    }

    fn holds_with(&self, place: &Place, generation: Option<&Digest>) -> io::Result<bool> {
        // Reaching the place in a compressed file is slow.
        if self.opened.is_compressed()
            && (generation.is_none() || place.generation.is_some_and(|g| generation != Some(&g)))
        {
            return Ok(false);
        }
        if self.opened.is_known_to_hold(place) {
            return Ok(true);
        }
        if place.head.is_some() && self.opened.head(place.position)? != place.head {
            return Ok(false);
        }
        let range = place.to_verify();
        let bytes = self.opened.bytes(range.start, range.end)?;
        Ok(place.is_in(self.opened.inode, generation, &bytes))
    }

    /// Whether this is the file of `place`, by inode and birth time, rather than another one with
    /// the same beginning.
    pub(super) fn is_file_of(&self, place: &Place) -> bool {
        let is_born_then = match (self.opened.born_ns, place.born_ns) {
            (Some(born), Some(known)) => born == known,
            _ => true,
        };
        self.opened.inode == place.inode && is_born_then
    }

    /// The length of the content. Decodes a compressed file to its end.
    fn length(&self) -> io::Result<u64> {
        match &self.opened.content {
            Content::Plain => Ok(self.bytes),
            Content::Gzip(gzip) => Ok(gzip.find_end()?.0),
            Content::Unknown => Ok(0),
        }
    }

    /// Whether there may be content at `position`.
    pub(super) fn may_go_on(&self, position: u64) -> bool {
        match &self.opened.content {
            Content::Plain => position < self.bytes,
            Content::Gzip(gzip) => gzip.end().is_none_or(|(length, _)| position < length),
            Content::Unknown => false,
        }
    }

    /// Whether this equals `longer` or its beginning, judging by the ends.
    pub(super) fn begins(&self, longer: &Self) -> io::Result<bool> {
        let (bytes, more) = (self.length()?, longer.length()?);
        if bytes > more || self.opened.head(bytes)? != longer.opened.head(bytes)? {
            return Ok(false);
        }
        let start = bytes.saturating_sub(COMPARED_BYTES);
        Ok(self.opened.bytes(start, bytes)? == longer.opened.bytes(start, bytes)?)
    }

    /// Whether this rotated file is a copy of all or the first part of `other`, and not a
    /// generation with the same beginning. Equal content alone does not prove a copy; there must be
    /// further evidence.
    pub(super) fn is_copy_of(&self, other: &Self) -> io::Result<bool> {
        // A live file that equals the beginning of another one was restarted.
        if self.is_live || self.generation.is_none() || self.generation != other.generation {
            return Ok(false);
        }
        let may_be_copy = match (&self.age.name, &other.age.name) {
            // A copy of the live file is made while that exists. A file compressed under a separate
            // name was finished before.
            (name, _) if other.is_live => {
                let is_finished =
                    self.opened.is_compressed() && !name.as_ref().is_some_and(Rotated::is_bare);
                !is_finished && !self.is_older_than(other)
            }
            // A file while it is being compressed.
            (Some(a), Some(b)) if a.is_same_place(b) => self.opened.is_compressed(),
            // A copy that kept the modification time.
            _ => self.age.mtime_ns == other.age.mtime_ns && self.length()? == other.length()?,
        };
        Ok(may_be_copy && self.begins(other)?)
    }

    /// The length of the content, as far as it is known without decoding it.
    pub(super) fn known_length(&self) -> u64 {
        if self.opened.is_compressed() { i64::MAX.unsigned_abs() } else { self.bytes }
    }

    /// Whether this rotated file was last written no later than a finished generation that was
    /// modified at `mtime_ns`, so that it was read as well. Names count too, if they tell which one
    /// is younger than `found`.
    pub(super) fn was_done_with(&self, mtime_ns: i64, found: Option<&Self>) -> bool {
        if self.is_live {
            return false;
        }
        match found.and_then(|found| self.age.compare_names(&found.age)) {
            Some(Ordering::Less) => true,
            Some(Ordering::Greater) => false,
            _ => self.age.mtime_ns <= mtime_ns,
        }
    }

    /// Whether this file existed, or was finished, before `other` was created.
    fn is_older_than(&self, other: &Self) -> bool {
        let Some(born) = other.opened.born_ns else { return false };
        self.opened.born_ns.is_some_and(|own| own < born)
            // A file that was restored with its modification time is older than its birth.
            || (self.age.mtime_ns < born && other.age.mtime_ns >= born)
    }

    pub(super) fn start(&self) -> Place {
        Place {
            born_ns: self.opened.born_ns,
            repeat: self.repeat,
            reach: self.reach,
            ..Place::start(self.opened.inode, self.generation, Some(self.age.mtime_ns))
        }
    }
}

/// An earlier generation with the same first line as the one that is being read.
#[derive(Debug)]
pub(super) struct Twin {
    opened: Arc<Opened>,
    /// A part of its content, and the offset of that.
    part: Vec<u8>,
    start: u64,
}

impl Twin {
    pub(super) fn new(opened: Arc<Opened>) -> Self {
        Self { opened, part: Vec::new(), start: 0 }
    }

    /// Whether a line with these bytes, or beginning with them unless they are the whole line, is
    /// at `offset`. True if the file can't be read: treating a line as repeated loses nothing.
    pub(super) fn has_line(&mut self, offset: u64, bytes: &[u8], is_whole: bool) -> bool {
        self.find_line(offset, bytes, is_whole).unwrap_or(true)
    }

    fn find_line(&mut self, offset: u64, bytes: &[u8], is_whole: bool) -> io::Result<bool> {
        if offset > 0 && self.at(offset - 1)?.first() != Some(&b'\n') {
            return Ok(false);
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let part = self.at(at)?;
            let n = part.len().min(rest.len());
            if n == 0 || part[..n] != rest[..n] {
                return Ok(false);
            }
            (at, rest) = (at + n as u64, &rest[n..]);
        }
        Ok(!is_whole || matches!(self.at(at)?.first(), Some(b'\n') | None))
    }

    /// A part of the content from `offset` on; empty at the end.
    fn at(&mut self, offset: u64) -> io::Result<&[u8]> {
        let is_at_hand = (self.start..self.start + self.part.len() as u64).contains(&offset);
        if !is_at_hand {
            self.part.resize(CHUNK_BYTES, 0);
            self.start = offset;
            let n = self.opened.read_at(&mut self.part, offset);
            self.part.truncate(*n.as_ref().unwrap_or(&0));
            n?;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(self.part.get(from..).unwrap_or_default())
    }
}
