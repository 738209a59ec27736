//! A durable local queue of sealed events, for when the store is down.

mod record;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use event_listener::{Event, EventListener};
use futures_util::lock::Mutex as AsyncMutex;
use sha2::{Digest, Sha256};

pub use self::record::SpoolRecord;
use crate::rt::unblock;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// The beginning of every spool, up to the version.
const MAGIC: &[u8] = b"dezky.spool v";
/// The header of version 1, which holds only events.
const HEADER: &[u8] = b"dezky.spool v1\n";
/// The newest version. Version 2 may also hold quarantine items, version 3 also events without a
/// known tenant; the headers differ only in the digit.
const NEWEST: u8 = 3;
const HEADER_BYTES: u64 = HEADER.len() as u64;
/// The offset of the version's digit.
const VERSION_AT: u64 = HEADER_BYTES - 2;
/// Maximum length of the header of any version.
const MAX_HEADER_BYTES: u64 = 64;

const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 8;
/// The bytes before the payload of a record.
const FRAME_BYTES: usize = LENGTH_BYTES + CHECKSUM_BYTES;
/// Maximum length of a record; a valid event takes less than a tenth of it.
const MAX_RECORD_BYTES: usize = 1 << 20;
const NO_FILE: &str = "the path must name a file";
/// Approximate maximum number of bytes per [`Spool::peek`].
const MAX_PEEK_BYTES: usize = 4 << 20;

/// The path and the bounds of a [`Spool`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpoolConfig {
    /// The file. Its folder must exist.
    pub path: PathBuf,
    /// Maximum size of the file in bytes; 64 MiB by default.
    pub max_bytes: u64,
    /// Maximum number of waiting events and items; 100,000 by default.
    pub max_events: usize,
}

impl SpoolConfig {
    /// The defaults for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_bytes: 64 << 20, max_events: 100_000 }
    }

    /// Checks the bounds, the folder and an existing file as [`Spool::open`] does. Changes nothing
    /// and takes no lock. Blocks.
    ///
    /// # Errors
    /// `config_invalid`; `store_foreign` if the file is not a spool, `schema_newer` if a
    /// newer version wrote it.
    pub fn check(&self) -> Result<()> {
        check(self)?;
        let metadata = match self.path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        // Opening a pipe would block until there is a writer.
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::ConfigInvalid, NO_FILE));
        }
        let mut start = Vec::new();
        File::open(&self.path)?.take(MAX_HEADER_BYTES).read_to_end(&mut start)?;
        version_of(&start).map(drop)
    }
}

/// A durable local queue of sealed events in one file, first in, first out.
///
/// [`AuditLog`](crate::AuditLog) writes events here while the store is down, and moves them into
/// the log afterwards: [`peek`](Self::peek), append, [`discard`](Self::discard).
///
/// - Records acknowledged by [`push`](Self::push) survive a crash and a power failure, because they
///   are synced to the disk.
/// - At least once: the position of the replay is not stored. After a crash the replay starts at
///   the front again, and the log recognises events that it already has by their ids, so each is in
///   the log exactly once.
/// - The space of replayed records is released only when the queue becomes empty, and until then
///   counts towards the bound on the file's size. Always drain a spool completely.
/// - One process at a time: the file is locked while it is open. The lock ends with the process,
///   even if it is killed.
/// - Only its owner can read the file (mode 0600 on Unix), because it holds events with their
///   salts.
/// - If the file is removed while it is open, the next push recreates it with all waiting records.
///   If another file has taken its place, nothing is acknowledged any more.
/// - A full disk does not prevent opening: waiting records can be drained, and pushes fail until
///   there is room.
///
/// A damaged part of the file is never replayed and never silently dropped. It is copied, with the
/// bytes after it, to `<path>.corrupt-<ms since the epoch>`, an error is logged with the number of
/// damaged bytes, and the intact records before and after it stay in the queue.
///
/// The format is the line `dezky.spool v1`, then per record its length (four bytes, big-endian),
/// the first eight bytes of the SHA-256 of the payload, and the payload: an event in the form of
/// [`SealedEvent::to_json`]. Version 2 may also hold quarantine items,
/// `{"v":1,"quarantine":{source,key,reason,detail,raw,at}}` with `raw` in base64. Version 3 may
/// also hold events without a known tenant, `{"v":1,"unresolved":…,"tenant":[…]}` with the event as
/// above and its tenant hints. A file has version 2 or 3 only from the first such record until it
/// is empty again. Binaries that know only older versions refuse the file with `schema_newer` and
/// leave it unchanged, instead of taking the record for damage.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::{Actor, NewEvent, Spool, SpoolConfig, SpoolRecord, rt::TokioRuntime};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.spool");
/// let config = SpoolConfig::new(&path);
/// let spool = Spool::open(config.clone(), Arc::new(TokioRuntime)).await?;
/// let event = NewEvent::new("tenant.created", Actor::user("u-1")).seal(&TokioRuntime);
/// spool.push(std::slice::from_ref(&event)).await?;
/// drop(spool);
///
/// let spool = Spool::open(config, Arc::new(TokioRuntime)).await?;
/// assert_eq!(spool.peek(100).await?, [SpoolRecord::Event(event)]);
/// spool.discard(1).await?;
/// assert_eq!(spool.pending(), 0);
/// # Ok(())
/// # }
/// ```
pub struct Spool {
    queue: Arc<AsyncMutex<Queue>>,
    gauges: Arc<Gauges>,
    path: PathBuf,
    runtime: Arc<dyn Runtime>,
}

/// State that can be read without waiting for work on the file.
#[derive(Default)]
struct Gauges {
    pending: AtomicUsize,
    damaged_bytes: AtomicU64,
    pushed: Event,
}

/// The file and the index of its records. Work on it runs to its end, holding the lock, even if the
/// caller drops its future.
struct Queue {
    config: SpoolConfig,
    file: File,
    /// The records that are not discarded, in order and without gaps.
    records: VecDeque<Record>,
    /// The offset of the next record, after the last intact one.
    end: u64,
    /// Whether a failed write may have left bytes after `end`.
    dirty: bool,
    /// The version in the header.
    version: u8,
    /// Work that the disk had no room for when the file was opened.
    owed: Owed,
}

/// Work that must be done before anything else is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// The header of a new file.
    Header,
    /// Setting aside the bytes after the last intact record.
    Salvage,
}

/// A record's position in the file.
#[derive(Clone, Copy)]
struct Record {
    offset: u64,
    /// The length, including the frame.
    bytes: usize,
}

impl Record {
    fn end(self) -> u64 {
        self.offset + self.bytes as u64
    }
}

/// The result of a push.
pub(crate) struct Pushed {
    /// The number of records that were written, the first ones of the batch.
    pub(crate) pushed: usize,
    /// The reason why the rest was refused.
    pub(crate) refused: Option<Error>,
}

/// The records at the front of the queue.
pub(crate) struct Peeked {
    pub(crate) records: Vec<SpoolRecord>,
    /// The number of records that could not be read back and were set aside.
    pub(crate) damaged: usize,
}

impl Spool {
    /// Opens the spool, creating the file if it is missing, and locks it. Checks all records, so
    /// this reads the whole file.
    ///
    /// # Errors
    /// `config_invalid` if the folder is missing or a bound is zero; `store_busy` if another
    /// process, or another `Spool` of this one, has it open; `store_foreign` if the file is not a
    /// spool and `schema_newer` if a newer version wrote it, in both cases unchanged; `io`.
    pub async fn open(config: SpoolConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        let path = config.path.clone();
        let gauges = Arc::<Gauges>::default();
        let now = runtime.now();
        let queue = unblock(&*runtime, {
            let gauges = Arc::clone(&gauges);
            move || {
                let queue = Queue::open(config, now, &gauges)?;
                gauges.pending.store(queue.records.len(), Ordering::Release);
                Ok::<_, Error>(queue)
            }
        })
        .await
        .map_err(|error| at(&path, error))?;
        Ok(Self { queue: Arc::new(AsyncMutex::new(queue)), gauges, path, runtime })
    }

    /// Adds events at the end, in their order: all of them or none. They are on disk when this
    /// returns.
    ///
    /// If the future is dropped, the events are either all in the queue or none is. After an `io`
    /// error they are not in the queue; but if the failed write can't be undone either, they may
    /// appear after a restart.
    ///
    /// # Errors
    /// `too_large` if they would exceed a bound, in which case nothing was changed; `io`.
    pub async fn push(&self, events: &[SealedEvent]) -> Result<()> {
        self.write(Frames::of(events), true).await.refused.map_or(Ok(()), Err)
    }

    /// Like [`push`](Self::push), for all kinds of records.
    ///
    /// # Errors
    /// Those of [`push`](Self::push).
    pub async fn push_records(&self, records: &[SpoolRecord]) -> Result<()> {
        self.write(Frames::of_records(records), true).await.refused.map_or(Ok(()), Err)
    }

    /// Adds as many of the events as there is room for, in their order.
    pub(crate) async fn push_some(&self, events: &[SealedEvent]) -> Pushed {
        self.write(Frames::of(events), false).await
    }

    async fn write(&self, frames: Frames, all: bool) -> Pushed {
        let push =
            move |queue: &mut Queue, gauges: &Gauges, now| queue.push(&frames, all, now, gauges);
        let mut pushed = self.with_queue(push).await;
        pushed.refused = pushed.refused.map(|error| at(&self.path, error));
        pushed
    }

    /// Returns the oldest records, at most `max_records` and about 4 MiB, without removing them.
    /// Empty if none is waiting. Cancel-safe.
    ///
    /// A record that can't be read back is set aside as the type describes, and leaves the queue.
    ///
    /// # Errors
    /// `io`; nothing has changed.
    pub async fn peek(&self, max_records: usize) -> Result<Vec<SpoolRecord>> {
        loop {
            let peeked = self.look(max_records).await?;
            if !peeked.records.is_empty() || peeked.damaged == 0 {
                return Ok(peeked.records);
            }
        }
    }

    /// Like [`peek`](Self::peek), but `max_records` includes damaged ones.
    pub(crate) async fn look(&self, max_records: usize) -> Result<Peeked> {
        self.with_queue(move |queue, gauges, now| queue.look(max_records, now, gauges))
            .await
            .map_err(|error| at(&self.path, error))
    }

    /// Removes the oldest `count` records, or all if there are fewer. Call it when they are safely
    /// in the log. When none is left, the file is truncated to its header.
    ///
    /// If the future is dropped, they are either all removed or none is.
    ///
    /// # Errors
    /// `io` if the file could not be truncated. The records have left the queue nevertheless, but
    /// are replayed after a restart.
    pub async fn discard(&self, count: usize) -> Result<()> {
        self.with_queue(move |queue, gauges, now| {
            queue.records.drain(..count.min(queue.records.len()));
            queue.cut_if_empty(now, gauges)
        })
        .await
        .map_err(|error| at(&self.path, error))
    }

    /// The number of waiting events and items.
    pub fn pending(&self) -> usize {
        self.gauges.pending.load(Ordering::Acquire)
    }

    /// The number of bytes that could not be read back and were set aside, when the spool was opened
    /// and since then.
    pub fn damaged_bytes(&self) -> u64 {
        self.gauges.damaged_bytes.load(Ordering::Relaxed)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Resolves after the next push.
    pub(crate) fn pushed(&self) -> EventListener {
        self.gauges.pushed.listen()
    }

    /// Runs blocking work on the file, one call at a time, in the order of the calls.
    async fn with_queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Queue, &Gauges, Timestamp) -> T + Send + 'static,
    ) -> T {
        let mut queue = Arc::clone(&self.queue).lock_owned().await;
        let gauges = Arc::clone(&self.gauges);
        let now = self.runtime.now();
        unblock(&*self.runtime, move || {
            let before = queue.records.len();
            let done = work(&mut queue, &gauges, now);
            gauges.pending.store(queue.records.len(), Ordering::Release);
            if queue.records.len() > before {
                gauges.pushed.notify(usize::MAX);
            }
            done
        })
        .await
    }
}

/// Adds the file's path to an error.
fn at(path: &Path, error: Error) -> Error {
    error.context(format_args!("spool {}", path.display()))
}

/// Encoded records.
struct Frames {
    bytes: Vec<u8>,
    /// The length of each record, including its frame.
    lengths: Vec<usize>,
    /// The lowest version that can hold all of them.
    version: u8,
}

impl Frames {
    fn new() -> Self {
        Self { bytes: Vec::new(), lengths: Vec::new(), version: 1 }
    }

    fn of(events: &[SealedEvent]) -> Self {
        let mut frames = Self::new();
        for event in events {
            frames.add(&event.to_json());
        }
        frames
    }

    fn of_records(records: &[SpoolRecord]) -> Self {
        let mut frames = Self::new();
        for record in records {
            match record {
                SpoolRecord::Event(event) => frames.add(&event.to_json()),
                SpoolRecord::Quarantine(item) => {
                    frames.version = frames.version.max(2);
                    frames.add(&record::item_to_json(item));
                }
                SpoolRecord::Unresolved(event) => {
                    frames.version = 3;
                    frames.add(&record::unresolved_to_json(event));
                }
            }
        }
        frames
    }

    fn add(&mut self, json: &str) {
        self.lengths.push(FRAME_BYTES + json.len());
        // A longer payload is refused later, because of its length.
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(checksum(json.as_bytes()));
        self.bytes.extend(json.as_bytes());
    }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(payload);
    std::array::from_fn(|i| digest[i])
}

/// The length of the record that begins with `bytes`, including its frame; `None` if `bytes` can't
/// begin a record.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (1..=MAX_RECORD_BYTES - FRAME_BYTES).contains(&length).then_some(FRAME_BYTES + length)
}

/// The payload of a record, if it is complete and intact.
fn payload(record: &[u8]) -> Option<&[u8]> {
    let payload = record.get(FRAME_BYTES..record_bytes(record)?)?;
    (record.get(LENGTH_BYTES..FRAME_BYTES)? == checksum(payload)).then_some(payload)
}

impl Queue {
    fn open(config: SpoolConfig, now: Timestamp, gauges: &Gauges) -> Result<Self> {
        check(&config)?;
        let file =
            owner_only(OpenOptions::new().read(true).write(true).create(true).truncate(false))
                .open(&config.path)
                .map_err(|e| Error::from(e).context("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::StoreBusy,
                    "another process has it open: give each process its own spool",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(Error::from(e).context("lock")),
        }
        if !file.metadata()?.is_file() {
            return Err(Error::new(ErrorKind::ConfigInvalid, NO_FILE));
        }
        remove_second_name(&config.path, &file)?;
        let mut queue = Self {
            config,
            file,
            records: VecDeque::new(),
            end: HEADER_BYTES,
            dirty: false,
            version: 1,
            owed: Owed::Nothing,
        };
        queue.check_header()?;
        queue.load()?;
        match queue.settle(now, gauges) {
            Err(error) if is_without_room(&error) => tracing::error!(
                spool = %queue.config.path.display(),
                %error,
                "the spool accepts nothing until there is room on its disk"
            ),
            settled => settled?,
        }
        if queue.records.is_empty() && queue.owed == Owed::Nothing {
            queue.set_version(1)?;
        }
        Ok(queue)
    }

    /// Does the work that is still owed.
    fn settle(&mut self, now: Timestamp, gauges: &Gauges) -> std::io::Result<()> {
        match self.owed {
            Owed::Nothing => return Ok(()),
            Owed::Header => self.write_header(HEADER)?,
            Owed::Salvage => self.salvage(now, gauges)?,
        }
        self.owed = Owed::Nothing;
        Ok(())
    }

    fn write_header(&mut self, header: &[u8]) -> std::io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(header)?;
        self.file.sync_all()?;
        sync_folder(&self.config.path)
    }

    /// Checks the header; a new file gets one later. Refuses a file that is not a spool.
    fn check_header(&mut self) -> Result<()> {
        let mut start = Vec::new();
        (&self.file).take(MAX_HEADER_BYTES).read_to_end(&mut start)?;
        let known = version_of(&start)?;
        close_to_others(&self.file)?;
        match known {
            Some(version) => {
                self.version = version;
                sync_folder(&self.config.path)?;
            }
            None => self.owed = Owed::Header,
        }
        Ok(())
    }

    /// Writes the version to the header, if it differs.
    fn set_version(&mut self, version: u8) -> std::io::Result<()> {
        if self.version != version {
            self.file.seek(SeekFrom::Start(VERSION_AT))?;
            self.file.write_all(&[b'0' + version])?;
            self.file.sync_data()?;
            self.version = version;
        }
        Ok(())
    }

    /// Reads the positions of the records, up to the last intact one.
    fn load(&mut self) -> Result<()> {
        if self.owed == Owed::Header {
            return Ok(());
        }
        let file_end = self.file.seek(SeekFrom::End(0))?;
        self.file.seek(SeekFrom::Start(HEADER_BYTES))?;
        let mut reader = BufReader::with_capacity(1 << 16, &self.file);
        let mut record = Vec::new();
        loop {
            record.clear();
            (&mut reader).take(FRAME_BYTES as u64).read_to_end(&mut record)?;
            let Some(bytes) = record_bytes(&record) else { break };
            let rest = bytes.saturating_sub(record.len());
            (&mut reader).take(rest as u64).read_to_end(&mut record)?;
            if payload(&record).is_none() {
                break;
            }
            self.records.push_back(Record { offset: self.end, bytes });
            self.end += bytes as u64;
        }
        if self.end < file_end {
            self.owed = Owed::Salvage;
        }
        Ok(())
    }

    /// Sets aside everything after the last intact record, and returns the intact records in it to
    /// the queue.
    fn salvage(&mut self, now: Timestamp, gauges: &Gauges) -> std::io::Result<()> {
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(self.end))?;
        (&self.file).read_to_end(&mut tail)?;
        let mut intact = Frames::new();
        let mut at = 0;
        while at < tail.len() {
            // A length begins with NUL, which a record's JSON does not contain, so nothing within
            // a record looks like another one.
            let rest = &tail[at..];
            let found = (rest.get(FRAME_BYTES) == Some(&b'{')).then(|| payload(rest)).flatten();
            match found {
                Some(json) => {
                    let bytes = FRAME_BYTES + json.len();
                    intact.bytes.extend(&tail[at..at + bytes]);
                    intact.lengths.push(bytes);
                    at += bytes;
                }
                None => at += 1,
            }
        }
        let damaged = tail.len() - intact.bytes.len();
        self.set_aside(&tail, damaged, now, gauges)?;
        // Writes the records before truncating: a crash in between loses nothing, and may leave
        // records twice, which the log recognises by their ids.
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&intact.bytes)?;
        self.file.sync_data()?;
        self.file.set_len(self.end + intact.bytes.len() as u64)?;
        self.file.sync_data()?;
        self.take_in(&intact.lengths);
        Ok(())
    }

    /// Writes bytes, of which some are damaged, to a file next to the spool.
    fn set_aside(
        &self,
        bytes: &[u8],
        damaged: usize,
        now: Timestamp,
        gauges: &Gauges,
    ) -> std::io::Result<()> {
        let mut name = self.config.path.as_os_str().to_owned();
        name.push(format!(".corrupt-{}", now.as_millis()));
        let kept = PathBuf::from(name);
        let mut file = owner_only(OpenOptions::new().append(true).create(true)).open(&kept)?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
            // A partial copy would take up the room that the next attempt needs.
            let _ = file.set_len(before);
            if before == 0 {
                let _ = std::fs::remove_file(&kept);
            }
            return Err(error);
        }
        sync_folder(&kept)?;
        tracing::error!(
            spool = %self.config.path.display(),
            kept = %kept.display(),
            bytes = damaged,
            "a damaged part of the spool was set aside: events may be lost"
        );
        gauges.damaged_bytes.fetch_add(damaged as u64, Ordering::Relaxed);
        Ok(())
    }

    fn push(&mut self, frames: &Frames, all: bool, now: Timestamp, gauges: &Gauges) -> Pushed {
        if let Err(error) = self.settle(now, gauges) {
            return Pushed { pushed: 0, refused: Some(Error::from(error).context("write")) };
        }
        let (mut pushed, mut bytes) = (0, 0);
        for length in &frames.lengths {
            let room = self.config.max_bytes.saturating_sub(self.end);
            if *length > MAX_RECORD_BYTES
                || self.records.len() + pushed >= self.config.max_events
                || (bytes + length) as u64 > room
            {
                break;
            }
            pushed += 1;
            bytes += length;
        }
        let mut refused = None;
        if pushed < frames.lengths.len() {
            refused = Some(self.no_room(frames.lengths[pushed]));
            if all {
                return Pushed { pushed: 0, refused };
            }
        }
        if pushed == 0 {
            return Pushed { pushed, refused };
        }
        // Before the records, so that a crash never leaves records under a header too old for them.
        let version = self.set_version(self.version.max(frames.version));
        match version.and_then(|()| self.write(&frames.bytes[..bytes])) {
            Ok(()) => self.take_in(&frames.lengths[..pushed]),
            Err(error) => {
                return Pushed { pushed: 0, refused: Some(Error::from(error).context("write")) };
            }
        }
        match self.stay_at_path() {
            Ok(()) => Pushed { pushed, refused },
            Err(error) => {
                // Not acknowledged, so they must not be replayed either: the sender retries.
                self.records.truncate(self.records.len() - pushed);
                self.end = self.records.back().map_or(HEADER_BYTES, |record| record.end());
                // Truncates now, because the program may end before the next push.
                let cut = self.file.set_len(self.end).and_then(|()| self.file.sync_data());
                self.dirty = cut.is_err();
                Pushed { pushed: 0, refused: Some(error) }
            }
        }
    }

    /// Checks that the open file is still the one at its path, because records in any other file
    /// would be lost. If the file was removed, recreates it with all waiting records.
    fn stay_at_path(&mut self) -> Result<()> {
        let path = self.config.path.clone();
        match path.metadata() {
            Ok(there) if is_same(&there, &self.file.metadata()?) => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::StoreReplaced,
                "another file has taken its place, so nothing more is accepted: end the program, put the spool's own file back, and start again",
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!(
                    spool = %path.display(),
                    pending = self.records.len(),
                    "the spool's file was removed while it was open: recreating it"
                );
                self.recreate().map_err(|error| Error::from(error).context("recreate it"))
            }
            Err(error) => Err(Error::from(error).context("examine it")),
        }
    }

    /// Writes the header and all waiting records to a new file at the path.
    fn recreate(&mut self) -> std::io::Result<()> {
        let new = path_of_new(&self.config.path);
        let mut options = OpenOptions::new();
        // An incomplete file of an earlier attempt may exist.
        options.read(true).write(true).create(true).truncate(false);
        let mut file = owner_only(&mut options).open(&new)?;
        file.try_lock().map_err(std::io::Error::from)?;
        // The file is complete and locked before it appears at the path. A link fails if another
        // file is there by now.
        let written = self.copy_to(&mut file).and_then(|written| {
            match std::fs::hard_link(&new, &self.config.path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(error)?,
                // Not every file system supports links.
                Err(_) => std::fs::rename(&new, &self.config.path)?,
                Ok(()) => {}
            }
            Ok(written)
        });
        // Removes an incomplete file; the next push tries again.
        let _ = std::fs::remove_file(&new);
        let (records, end) = written?;
        (self.file, self.records, self.end) = (file, records, end);
        self.dirty = false;
        sync_folder(&self.config.path)
    }

    fn copy_to(&mut self, file: &mut File) -> std::io::Result<(VecDeque<Record>, u64)> {
        file.set_len(0)?;
        file.write_all(&header(self.version))?;
        let (mut records, mut end) = (VecDeque::new(), HEADER_BYTES);
        let mut raw = Vec::new();
        for record in &self.records {
            raw.resize(record.bytes, 0);
            self.file.seek(SeekFrom::Start(record.offset))?;
            self.file.read_exact(&mut raw)?;
            file.write_all(&raw)?;
            records.push_back(Record { offset: end, bytes: record.bytes });
            end += record.bytes as u64;
        }
        file.sync_all()?;
        Ok((records, end))
    }

    /// Writes after the last record and syncs, or leaves the file unchanged.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.dirty {
            self.file.set_len(self.end)?;
            self.dirty = false;
        }
        let written = self
            .file
            .seek(SeekFrom::Start(self.end))
            .and_then(|_| self.file.write_all(bytes))
            .and_then(|()| self.file.sync_data());
        if written.is_err() {
            self.dirty = self.file.set_len(self.end).is_err();
        }
        written
    }

    /// Adds records that were written after the last one.
    fn take_in(&mut self, lengths: &[usize]) {
        for bytes in lengths.iter().copied() {
            let record = Record { offset: self.end, bytes };
            self.end = record.end();
            self.records.push_back(record);
        }
    }

    fn no_room(&self, bytes: usize) -> Error {
        let SpoolConfig { max_bytes, max_events, .. } = &self.config;
        let message = if bytes > MAX_RECORD_BYTES {
            format!("a record of {bytes} bytes exceeds {MAX_RECORD_BYTES}: send less in one event")
        } else {
            format!(
                "full at {} of {max_events} events and {} of {max_bytes} bytes: drain it or raise its bounds",
                self.records.len(),
                self.end
            )
        };
        Error::new(ErrorKind::TooLarge, message)
    }

    fn look(&mut self, max_records: usize, now: Timestamp, gauges: &Gauges) -> Result<Peeked> {
        let mut peeked = Peeked { records: Vec::new(), damaged: 0 };
        let (mut bytes, mut raw) = (0, Vec::new());
        while peeked.records.len() + peeked.damaged < max_records
            && let Some(record) = self.records.get(peeked.records.len()).copied()
        {
            bytes += record.bytes;
            if bytes > MAX_PEEK_BYTES && !peeked.records.is_empty() {
                break;
            }
            raw.resize(record.bytes, 0);
            self.file.seek(SeekFrom::Start(record.offset))?;
            self.file.read_exact(&mut raw)?;
            let record = payload(&raw)
                .and_then(|json| std::str::from_utf8(json).ok())
                .and_then(|json| record::from_json(json).ok());
            match record {
                Some(record) => peeked.records.push(record),
                // Return the records before it first; it will be at the front next time.
                None if !peeked.records.is_empty() => break,
                None => {
                    self.set_aside(&raw, raw.len(), now, gauges)?;
                    self.records.pop_front();
                    peeked.damaged += 1;
                }
            }
        }
        if peeked.damaged > 0 {
            self.cut_if_empty(now, gauges)?;
        }
        Ok(peeked)
    }

    /// Truncates the file if no record is waiting.
    fn cut_if_empty(&mut self, now: Timestamp, gauges: &Gauges) -> Result<()> {
        // Bytes that are still to be set aside are after the end, and may have intact records.
        if self.owed == Owed::Salvage && self.settle(now, gauges).is_err() {
            return Ok(());
        }
        if self.records.is_empty() && (self.end > HEADER_BYTES || self.dirty) {
            self.file.set_len(HEADER_BYTES)?;
            self.end = HEADER_BYTES;
            self.dirty = false;
            self.file.sync_data()?;
            self.set_version(1)?;
        }
        Ok(())
    }
}

/// The header of a version.
fn header(version: u8) -> Vec<u8> {
    let mut header = HEADER.to_vec();
    header[HEADER.len() - 2] = b'0' + version;
    header
}

/// The version of a spool that begins with `start`; `None` if `start` is empty or an incomplete
/// header, which a crash may have left.
fn version_of(start: &[u8]) -> Result<Option<u8>> {
    let known = (1..=NEWEST).find(|version| start.starts_with(&header(*version)));
    if known.is_some() || HEADER.starts_with(start) {
        return Ok(known);
    }
    if let Some(version) = start.strip_prefix(MAGIC)
        && let Some(digits) = version.split(|b| *b == b'\n').next()
        && let Ok(number) = std::str::from_utf8(digits).unwrap_or_default().parse::<u64>()
        && number > u64::from(NEWEST)
    {
        return Err(Error::new(
            ErrorKind::SchemaNewer,
            format!(
                "written by a newer version (format {number}): drain it with that version first"
            ),
        ));
    }
    Err(Error::new(
        ErrorKind::StoreForeign,
        "the file is not a spool: name another path, or move the file away",
    ))
}

fn check(config: &SpoolConfig) -> Result<()> {
    let invalid = |what: &'static str| Err(Error::new(ErrorKind::ConfigInvalid, what));
    if config.max_bytes <= HEADER_BYTES || config.max_events == 0 {
        return invalid("max_bytes and max_events must leave room for events");
    }
    if config.path.file_name().is_none() || config.path.is_dir() {
        return invalid(NO_FILE);
    }
    if !folder(&config.path).is_dir() {
        return invalid("its folder is missing: create it, or name another path");
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The temporary path of a file that is recreated.
fn path_of_new(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes the temporary name of the file, which remains if a process was killed right after it
/// recreated and linked the file. Otherwise the file's lock would block recreating it again.
fn remove_second_name(path: &Path, file: &File) -> std::io::Result<()> {
    let new = path_of_new(path);
    match new.symlink_metadata() {
        Ok(there) if is_same(&there, &file.metadata()?) => std::fs::remove_file(new),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes `options` create files that only their owner can access.
fn owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Restricts an existing file to its owner.
fn close_to_others(file: &File) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mut permissions = file.metadata()?.permissions();
        if permissions.mode() & 0o077 != 0 {
            permissions.set_mode(0o600);
            file.set_permissions(permissions)
                .map_err(|e| Error::from(e).context("set its mode to 0600"))?;
        }
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Whether both are the same file, not only files with the same path.
fn is_same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = (one, other);
        true
    }
}

/// Whether the disk or the user's quota is full.
fn is_without_room(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Makes the name of a new file durable.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(folder(path))?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests;
