//! Open files, and what a pull saw of them.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::Digest;
use super::core::{Age, GENERATION_MAX_BYTES, GenerationHash, Place, Rotated};
use super::gzip::{Budget, End, Gzip};

/// Bytes read at a time.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// How much of the end of two files is compared to see whether one is a copy of
/// the other.
const COMPARED_BYTES: u64 = 4 << 10;

/// An open file.
#[derive(Debug)]
pub(super) struct Opened {
    file: Arc<File>,
    content: Content,
    device: u64,
    pub(super) inode: u64,
    /// When it was opened: its length and when it was last written.
    version: (u64, i64),
    /// The first line of a compressed file, which does not change.
    generation: OnceLock<Option<Digest>>,
    /// The last place up to which a compressed file was read.
    reached: Mutex<Option<Place>>,
}

/// What is in a file.
#[derive(Debug)]
enum Content {
    /// Lines.
    Plain,
    /// Lines, compressed by gzip.
    Gzip(Gzip),
    /// Lines, compressed by something that is not read.
    Unknown,
}

impl Opened {
    /// Opens a regular file; `None` if there is none.
    pub(super) fn open(path: &Path, budget: &Arc<Budget>) -> io::Result<Option<(Self, Metadata)>> {
        let absent = |e: &io::Error| {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        };
        // Asked before opening, as opening a pipe would wait for a writer.
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file")),
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
            version: (metadata.len(), mtime_ns(&metadata)),
            generation: OnceLock::new(),
            reached: Mutex::default(),
        };
        Ok(Some((opened, metadata)))
    }

    /// Whether both are the same file, as far as the system tells.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.inode != 0 && (self.device, self.inode) == (other.device, other.inode)
    }

    /// Device and inode.
    pub(super) fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether this, with what is decoded of it, serves for `other`, which was
    /// opened later. Only for compressed files, unless they were written on: on some
    /// file systems a descriptor does not see what is appended by name.
    pub(super) fn serves(&self, other: &Self) -> bool {
        self.is(other) && self.is_compressed() && self.version == other.version
    }

    pub(super) fn is_compressed(&self) -> bool {
        !matches!(self.content, Content::Plain)
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Reads at most `buf` at `offset`; 0 at the end.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.content {
            Content::Plain => read_at(&self.file, buf, offset),
            Content::Gzip(gzip) => gzip.read_at(buf, offset),
            Content::Unknown => Ok(0),
        }
    }

    /// The bytes of a range, as far as they are there.
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

    /// Whether the rest of the file can't be read, ever. Known of a compressed one
    /// once it was read so far.
    pub(super) fn is_unreadable(&self) -> bool {
        match &self.content {
            Content::Plain => false,
            Content::Gzip(gzip) => gzip.end().is_some_and(|(_, end)| end == End::Broken),
            Content::Unknown => true,
        }
    }

    /// Remembers that a compressed file holds `place`.
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

    /// Frees what a decoder holds, for a file that is not being read.
    pub(super) fn rest(&self) {
        if let Content::Gzip(gzip) = &self.content {
            gzip.rest();
        }
    }

    /// What tells a file of which not even a line can be read from others: a hash
    /// of its beginning and length.
    pub(super) fn fingerprint(&self) -> io::Result<Digest> {
        let mut buf = vec![0; CHUNK_BYTES];
        let n = read_at(&self.file, &mut buf, 0)?;
        let hash = Sha256::new().chain_update(&buf[..n]);
        Ok(hash.chain_update(self.version.0.to_be_bytes()).finalize().into())
    }
}

#[cfg(unix)]
pub(super) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match std::os::unix::fs::FileExt::read_at(file, buf, offset) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(not(unix))]
pub(super) fn read_at(mut file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read(buf)
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
    let ns = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match metadata.modified() {
        Ok(time) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => ns(after),
            Err(before) => -ns(before.duration()),
        },
        Err(_) => 0,
    }
}

/// A generation as it was seen in this pull.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) opened: Arc<Opened>,
    /// The length of the file.
    pub(super) bytes: u64,
    pub(super) age: Age,
    pub(super) generation: Option<Digest>,
}

impl Seen {
    pub(super) fn new(
        opened: Arc<Opened>,
        metadata: &Metadata,
        name: Option<Rotated>,
    ) -> io::Result<Self> {
        let generation = opened.generation()?;
        let age = Age { mtime_ns: mtime_ns(metadata), name };
        Ok(Self { opened, bytes: metadata.len(), age, generation })
    }

    /// The same of a file that is open already and may have no name any more.
    pub(super) fn again(opened: &Arc<Opened>) -> io::Result<Self> {
        Self::new(Arc::clone(opened), &opened.metadata()?, None)
    }

    /// Whether `place` is in this generation.
    pub(super) fn holds(&self, place: &Place) -> io::Result<bool> {
        self.holds_with(place, self.generation.as_ref())
    }

    /// The same, looking again at the first line too. A compressed file is not written
    /// on, and to read its last line again may be to decode all of it.
    pub(super) fn still_holds(&self, place: &Place) -> io::Result<bool> {
        if self.opened.is_compressed() {
            let metadata = self.opened.metadata()?;
            return Ok(self.opened.version == (metadata.len(), mtime_ns(&metadata)));
        }
        self.holds_with(place, self.opened.generation()?.as_ref())
    }

    fn holds_with(&self, place: &Place, generation: Option<&Digest>) -> io::Result<bool> {
        // The way to the place is long in a compressed file.
        if self.opened.is_compressed()
            && (generation.is_none() || place.generation.is_some_and(|g| generation != Some(&g)))
        {
            return Ok(false);
        }
        if self.opened.is_known_to_hold(place) {
            return Ok(true);
        }
        let range = place.to_verify();
        let bytes = self.opened.bytes(range.start, range.end)?;
        Ok(place.is_in(self.opened.inode, generation, &bytes))
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

    /// Whether this is the beginning of `longer`, or all of it. Equal first lines
    /// are not enough: those of two generations may be the same.
    pub(super) fn begins(&self, longer: &Self) -> io::Result<bool> {
        if self.generation != longer.generation {
            return Ok(false);
        }
        let (bytes, more) = (self.length()?, longer.length()?);
        let start = bytes.saturating_sub(COMPARED_BYTES);
        Ok(bytes <= more
            && self.opened.bytes(start, bytes)? == longer.opened.bytes(start, bytes)?)
    }

    /// Whether this is a copy that is not needed beside `other`: of two equal ones
    /// the compressed one, else the one that is not `other`.
    pub(super) fn is_copy_of(&self, other: &Self, is_older: bool) -> io::Result<bool> {
        if self.generation.is_none() || self.generation != other.generation {
            return Ok(false);
        }
        let (bytes, more) = (self.length()?, other.length()?);
        let goes = match (self.opened.is_compressed(), other.opened.is_compressed()) {
            (true, false) => true,
            (false, true) => false,
            _ => is_older,
        };
        Ok((bytes < more || (bytes == more && goes)) && self.begins(other)?)
    }

    pub(super) fn start(&self) -> Place {
        Place::start(self.opened.inode, self.generation, Some(self.age.mtime_ns))
    }
}
