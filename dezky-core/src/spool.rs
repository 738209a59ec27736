//! A durable local queue of sealed events, for when the store is down.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use event_listener::{Event, EventListener};
use futures_util::lock::Mutex as AsyncMutex;
use sha2::{Digest, Sha256};

use crate::rt::unblock;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// What every spool begins with, up to the version.
const MAGIC: &[u8] = b"dezky.spool v";
/// The header of version 1.
const HEADER: &[u8] = b"dezky.spool v1\n";
const HEADER_BYTES: u64 = HEADER.len() as u64;
/// The most bytes in which another version's header ends.
const MAX_HEADER_BYTES: u64 = 64;

const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 8;
/// What precedes the event in a record.
const FRAME_BYTES: usize = LENGTH_BYTES + CHECKSUM_BYTES;
/// The most bytes of one record; an event within the contract's bounds takes
/// less than a tenth of it.
const MAX_RECORD_BYTES: usize = 1 << 20;
const NO_FILE: &str = "the path must name a file";
/// The most bytes of one [`Spool::peek`].
const MAX_PEEK_BYTES: usize = 4 << 20;

/// Where a [`Spool`] is and how large it may become.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpoolConfig {
    /// The file. Its folder must exist.
    pub path: PathBuf,
    /// The largest size of the file, 64 MiB unless set.
    pub max_bytes: u64,
    /// The most events that wait in it, 100,000 unless set.
    pub max_events: usize,
}

impl SpoolConfig {
    /// The defaults for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_bytes: 64 << 20, max_events: 100_000 }
    }
}

/// A durable local queue of sealed events in one file, first in, first out.
///
/// [`AuditLog`](crate::AuditLog) keeps events here while the store is down, and
/// moves them into the log afterwards: [`peek`](Self::peek), append,
/// [`discard`](Self::discard).
///
/// - What [`push`](Self::push) has acknowledged survives a crash and a power cut:
///   it was synced to the disk.
/// - At least once: how far the queue was replayed is not kept on disk. After a
///   crash the replay begins again at the front, and the log recognises by their
///   ids the events that it has, so each is in the log exactly once.
/// - The space of replayed events is given back when the queue becomes empty, and
///   only then; the bound on the file's size includes them. Whoever drains a spool
///   therefore drains it to its end.
/// - One process at a time: the file is locked while it is open. The lock ends
///   with the process, however that ends.
/// - The file is readable by its owner alone (mode 0600 on Unix): it holds events
///   with their salts.
///
/// A damaged part of the file is never replayed and never dropped in silence: it
/// is copied, with what follows it, to `<path>.corrupt-<ms since the epoch>`, an
/// error is logged with the number of its bytes, and the intact records before and
/// after it stay in the queue.
///
/// The format, version 1: the line `dezky.spool v1`, then per event its length
/// (four bytes, big-endian), the first eight bytes of the SHA-256 of what follows,
/// and [`SealedEvent::to_json`].
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::{Actor, NewEvent, Spool, SpoolConfig, rt::TokioRuntime};
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
/// assert_eq!(spool.peek(100).await?, [event]);
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

/// What is known without waiting for the file.
#[derive(Default)]
struct Gauges {
    pending: AtomicUsize,
    damaged_bytes: AtomicU64,
    pushed: Event,
}

/// The file and what is known of it. Work on it runs to its end even if the
/// caller has gone, and takes the lock with it.
struct Queue {
    config: SpoolConfig,
    file: File,
    /// The records not yet discarded, one behind the other.
    records: VecDeque<Record>,
    /// Where the next one goes: behind the last good byte.
    end: u64,
    /// Whether a failed write may have left bytes behind the end.
    dirty: bool,
}

/// A record's place in the file.
#[derive(Clone, Copy)]
struct Record {
    offset: u64,
    /// Frame included.
    bytes: usize,
}

impl Record {
    fn end(self) -> u64 {
        self.offset + self.bytes as u64
    }
}

/// How much of a batch was kept, and why not the rest.
pub(crate) struct Pushed {
    pub(crate) kept: usize,
    pub(crate) refused: Option<Error>,
}

/// What lies at the front of the queue.
pub(crate) struct Peeked {
    pub(crate) events: Vec<SealedEvent>,
    /// How many records could not be read back and were set aside on the way.
    pub(crate) damaged: usize,
}

impl Spool {
    /// Opens the spool, making the file if it is missing, locks it and counts
    /// what waits in it. All records are checked, so this reads the whole file.
    ///
    /// # Errors
    /// `config_invalid` if the folder is missing or a bound is zero; `store_busy`
    /// if another process, or another `Spool` of this one, has it open;
    /// `store_foreign` if the file is something else and `schema_newer` if a newer
    /// version wrote it, in both cases unchanged; `io`.
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

    /// Adds events at the end, in their order: all of them or none. They are on
    /// the disk when this returns.
    ///
    /// If the future is dropped the events are either all in the queue or none is.
    /// After an `io` error they are not in the queue; should the disk refuse even
    /// to be put back to its former state, they may turn up after a restart.
    ///
    /// # Errors
    /// `too_large` if they would exceed a bound, and nothing has changed; `io`.
    pub async fn push(&self, events: &[SealedEvent]) -> Result<()> {
        match self.write(events, true).await.refused {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Adds as many of the events as there is room for, the first ones first.
    pub(crate) async fn push_some(&self, events: &[SealedEvent]) -> Pushed {
        self.write(events, false).await
    }

    async fn write(&self, events: &[SealedEvent], all: bool) -> Pushed {
        let frames = Frames::of(events);
        let mut pushed = self.with_queue(move |queue, _, _| queue.push(&frames, all)).await;
        pushed.refused = pushed.refused.map(|error| at(&self.path, error));
        pushed
    }

    /// The oldest events, at most `max_events` and about 4 MiB of them, without
    /// removing them. Empty if none waits. Cancel-safe.
    ///
    /// A record that can't be read back any more is set aside as the type
    /// describes, and is no longer in the queue.
    ///
    /// # Errors
    /// `io`; nothing has changed.
    pub async fn peek(&self, max_events: usize) -> Result<Vec<SealedEvent>> {
        loop {
            let peeked = self.look(max_events).await?;
            if !peeked.events.is_empty() || peeked.damaged == 0 {
                return Ok(peeked.events);
            }
        }
    }

    /// The same, looking at no more than `max_records`, damaged ones included.
    pub(crate) async fn look(&self, max_records: usize) -> Result<Peeked> {
        self.with_queue(move |queue, gauges, now| queue.look(max_records, now, gauges))
            .await
            .map_err(|error| at(&self.path, error))
    }

    /// Removes the oldest `count` events, or as many as there are: call it when
    /// they are safely in the log. When none is left the file is cut to its
    /// header.
    ///
    /// If the future is dropped they are either all removed or none is.
    ///
    /// # Errors
    /// `io` if the file could not be cut. The events are removed from the queue
    /// nevertheless, but come again after a restart.
    pub async fn discard(&self, count: usize) -> Result<()> {
        self.with_queue(move |queue, _, _| {
            queue.records.drain(..count.min(queue.records.len()));
            queue.cut_if_empty()
        })
        .await
        .map_err(|error| at(&self.path, error))
    }

    /// How many events wait.
    pub fn pending(&self) -> usize {
        self.gauges.pending.load(Ordering::Acquire)
    }

    /// How many bytes of the file could not be read back since it was opened,
    /// at its opening too, and were set aside.
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

    /// Runs work on the file where blocking is allowed, one at a time and in the
    /// order of the calls.
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

/// The error with the file that it is about.
fn at(path: &Path, error: Error) -> Error {
    error.context(format_args!("spool {}", path.display()))
}

/// Records ready to be written.
struct Frames {
    bytes: Vec<u8>,
    /// The length of each, frame included.
    lengths: Vec<usize>,
}

impl Frames {
    fn of(events: &[SealedEvent]) -> Self {
        let mut frames = Self { bytes: Vec::new(), lengths: Vec::with_capacity(events.len()) };
        for event in events {
            let json = event.to_json();
            frames.lengths.push(FRAME_BYTES + json.len());
            // One that is too long for its length is refused by it.
            let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
            frames.bytes.extend(length.to_be_bytes());
            frames.bytes.extend(checksum(json.as_bytes()));
            frames.bytes.extend(json.as_bytes());
        }
        frames
    }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(payload);
    std::array::from_fn(|i| digest[i])
}

/// The length of the record, frame included, of which `bytes` are the beginning,
/// if it can be one.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (1..=MAX_RECORD_BYTES - FRAME_BYTES).contains(&length).then_some(FRAME_BYTES + length)
}

/// The payload of a record that is whole and intact.
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
                    "another process has it open: give each a spool of its own",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(Error::from(e).context("lock")),
        }
        if !file.metadata()?.is_file() {
            return Err(Error::new(ErrorKind::ConfigInvalid, NO_FILE));
        }
        let mut queue =
            Self { config, file, records: VecDeque::new(), end: HEADER_BYTES, dirty: false };
        queue.check_header()?;
        queue.load(now, gauges)?;
        Ok(queue)
    }

    /// Writes the header of a new file, refuses a file that is something else.
    fn check_header(&mut self) -> Result<()> {
        let mut start = Vec::new();
        (&self.file).take(MAX_HEADER_BYTES).read_to_end(&mut start)?;
        if start.starts_with(HEADER) {
            close_to_others(&self.file)?;
            return sync_folder(&self.config.path);
        }
        // A crash may have left a part of it.
        if HEADER.starts_with(&start) {
            close_to_others(&self.file)?;
            self.file.rewind()?;
            self.file.write_all(HEADER)?;
            self.file.sync_all()?;
            return sync_folder(&self.config.path);
        }
        if let Some(version) = start.strip_prefix(MAGIC)
            && let Some(digits) = version.split(|b| *b == b'\n').next()
            && let Ok(number) = std::str::from_utf8(digits).unwrap_or_default().parse::<u64>()
            && number > 1
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
            "the file is no spool: name another path, or move the file away",
        ))
    }

    /// Finds the records, and cuts off what comes after the last good one.
    fn load(&mut self, now: Timestamp, gauges: &Gauges) -> Result<()> {
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
            self.salvage(now, gauges)?;
        }
        Ok(())
    }

    /// Sets aside everything behind the last good record and brings the intact
    /// records in there back into the queue.
    fn salvage(&mut self, now: Timestamp, gauges: &Gauges) -> Result<()> {
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(self.end))?;
        (&self.file).read_to_end(&mut tail)?;
        let mut intact = Frames { bytes: Vec::new(), lengths: Vec::new() };
        let mut at = 0;
        while at < tail.len() {
            // An event's JSON has no NUL, while the length before it begins with
            // one: nothing within a record looks like another.
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
        // First the records, then the cut: in between nothing is missing, at
        // worst something is there twice, which the log tells by its id.
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&intact.bytes)?;
        self.file.sync_data()?;
        self.file.set_len(self.end + intact.bytes.len() as u64)?;
        self.file.sync_data()?;
        self.take_in(&intact.lengths);
        Ok(())
    }

    /// Keeps bytes of which some are damaged in a file beside the spool.
    fn set_aside(
        &self,
        bytes: &[u8],
        damaged: usize,
        now: Timestamp,
        gauges: &Gauges,
    ) -> Result<()> {
        let mut name = self.config.path.as_os_str().to_owned();
        name.push(format!(".corrupt-{}", now.as_millis()));
        let kept = PathBuf::from(name);
        tracing::error!(
            spool = %self.config.path.display(),
            kept = %kept.display(),
            bytes = damaged,
            "a part of the spool is damaged and is set aside: events may be lost"
        );
        let mut file = owner_only(OpenOptions::new().append(true).create(true)).open(&kept)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        sync_folder(&kept)?;
        gauges.damaged_bytes.fetch_add(damaged as u64, Ordering::Relaxed);
        Ok(())
    }

    fn push(&mut self, frames: &Frames, all: bool) -> Pushed {
        let (mut kept, mut bytes) = (0, 0);
        for length in &frames.lengths {
            let room = self.config.max_bytes.saturating_sub(self.end);
            if *length > MAX_RECORD_BYTES
                || self.records.len() + kept >= self.config.max_events
                || (bytes + length) as u64 > room
            {
                break;
            }
            kept += 1;
            bytes += length;
        }
        let mut refused = None;
        if kept < frames.lengths.len() {
            refused = Some(self.no_room(frames.lengths[kept]));
            if all {
                return Pushed { kept: 0, refused };
            }
        }
        if kept == 0 {
            return Pushed { kept, refused };
        }
        match self.write(&frames.bytes[..bytes]) {
            Ok(()) => {
                self.take_in(&frames.lengths[..kept]);
                Pushed { kept, refused }
            }
            Err(error) => Pushed { kept: 0, refused: Some(Error::from(error).context("write")) },
        }
    }

    /// Writes behind the last record and syncs, or leaves the file as it was.
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

    /// Counts in what was written behind the last record.
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
            format!("an event of {bytes} bytes exceeds {MAX_RECORD_BYTES}")
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
        let mut peeked = Peeked { events: Vec::new(), damaged: 0 };
        let (mut bytes, mut raw) = (0, Vec::new());
        while peeked.events.len() + peeked.damaged < max_records
            && let Some(record) = self.records.get(peeked.events.len()).copied()
        {
            bytes += record.bytes;
            if bytes > MAX_PEEK_BYTES && !peeked.events.is_empty() {
                break;
            }
            raw.resize(record.bytes, 0);
            self.file.seek(SeekFrom::Start(record.offset))?;
            self.file.read_exact(&mut raw)?;
            let event = payload(&raw)
                .and_then(|json| std::str::from_utf8(json).ok())
                .and_then(|json| SealedEvent::from_json(json).ok());
            match event {
                Some(event) => peeked.events.push(event),
                // Those before it come first; next time it is at the front.
                None if !peeked.events.is_empty() => break,
                None => {
                    self.set_aside(&raw, raw.len(), now, gauges)?;
                    self.records.pop_front();
                    peeked.damaged += 1;
                }
            }
        }
        if peeked.damaged > 0 {
            self.cut_if_empty()?;
        }
        Ok(peeked)
    }

    /// Gives the space back when nothing waits any more.
    fn cut_if_empty(&mut self) -> Result<()> {
        if self.records.is_empty() && self.end > HEADER_BYTES {
            self.file.set_len(HEADER_BYTES)?;
            self.end = HEADER_BYTES;
            self.dirty = false;
            self.file.sync_data()?;
        }
        Ok(())
    }
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
        return invalid("its folder is missing: make it, or name another path");
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Files made by `options` are their owner's alone.
fn owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Takes a file that is there already away from everybody but its owner.
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

/// Makes a new file's name durable.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder(path))?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::testkit::{EventGenerator, ManualRuntime, named_event};
    use crate::{Actor, NewEvent};

    struct Place {
        folder: TempDir,
        runtime: Arc<ManualRuntime>,
    }

    impl Place {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            Self { folder, runtime: Arc::new(ManualRuntime::new(11)) }
        }

        fn config(&self) -> SpoolConfig {
            SpoolConfig::new(self.folder.path().join("audit.spool"))
        }

        async fn open(&self) -> Spool {
            Spool::open(self.config(), self.runtime.clone()).await.unwrap()
        }

        async fn refused(&self, config: SpoolConfig) -> Error {
            match Spool::open(config, self.runtime.clone()).await {
                Ok(_) => panic!("the spool opened"),
                Err(error) => error,
            }
        }

        /// What a process finds after one that had the file open was killed now.
        async fn after_kill(&self) -> (Self, Spool) {
            let other = Self::new();
            fs::copy(self.config().path, other.config().path).unwrap();
            let spool = other.open().await;
            (other, spool)
        }

        fn events(&self, count: usize) -> Vec<SealedEvent> {
            EventGenerator::new(&*self.runtime).sealed(count)
        }

        fn small_events(&self, count: usize) -> Vec<SealedEvent> {
            let event = NewEvent::new("a.b", Actor::system());
            (0..count).map(|_| event.clone().seal(&*self.runtime)).collect()
        }

        fn bytes(&self) -> Vec<u8> {
            fs::read(self.config().path).unwrap()
        }

        fn corrupt_files(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.folder.path()).unwrap();
            let mut files: Vec<_> = entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.to_str().unwrap().contains(".corrupt-"))
                .collect();
            files.sort();
            files
        }
    }

    #[tokio::test]
    async fn first_in_first_out() {
        let place = Place::new();
        let events = place.events(30);
        let spool = place.open().await;
        assert_eq!(spool.pending(), 0);
        assert_eq!(spool.peek(10).await.unwrap(), []);
        spool.push(&[]).await.unwrap();
        spool.push(&events[..10]).await.unwrap();
        spool.push(&events[10..]).await.unwrap();
        assert_eq!(spool.pending(), 30);
        assert_eq!(spool.peek(0).await.unwrap(), []);
        assert_eq!(spool.peek(7).await.unwrap(), events[..7]);
        spool.discard(7).await.unwrap();
        assert_eq!(spool.peek(100).await.unwrap(), events[7..]);
        // How far it was replayed is not kept: another process begins anew.
        let (killed, again) = place.after_kill().await;
        assert_eq!(again.pending(), 30);
        assert_eq!(again.peek(100).await.unwrap(), events);
        assert_eq!(killed.corrupt_files(), [] as [PathBuf; 0]);
        spool.discard(100).await.unwrap();
        assert_eq!(spool.pending(), 0);
        assert_eq!(place.bytes(), HEADER);
        spool.push(&events[..1]).await.unwrap();
        drop(spool);
        let spool = place.open().await;
        assert_eq!(spool.peek(100).await.unwrap(), events[..1]);
        assert_eq!(spool.damaged_bytes(), 0);
    }

    #[tokio::test]
    async fn a_large_peek_comes_in_parts() {
        let place = Place::new();
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(60_000));
        let event = NewEvent {
            metadata: crate::NewMetadata::from_source(large),
            ..NewEvent::new("a.b", Actor::system())
        };
        let events: Vec<_> = (0..100).map(|_| event.clone().seal(&*place.runtime)).collect();
        let spool = place.open().await;
        spool.push(&events).await.unwrap();
        let mut seen = Vec::new();
        while spool.pending() > 0 {
            let part = spool.peek(1_000).await.unwrap();
            assert!((1..75).contains(&part.len()));
            spool.discard(part.len()).await.unwrap();
            seen.extend(part);
        }
        assert_eq!(seen, events);
    }

    /// Version 1 as it lies on disks: it must parse for ever, so never change it.
    const VERSION_1: [(&[u8; 12], &str); 2] = [
        (
            b"\x00\x00\x01\xef\x22\x90\x8d\x79\xa3\xfd\x08\x57",
            r#"{"v":1,"salt":"c15c0289ec2d0a9167ec8e65a18debbe5e5532fbeea293f80bc942ee9086c171","event":{"id":"019b76da-a800-79b5-81d1-d854bb718002","at":"2026-01-01T00:00:00.000Z","receivedAt":"2026-01-01T00:00:00.000Z","actorType":"user","actorId":"u-7","actorEmail":"ana@acme.test","actorIp":"203.0.113.7","action":"tenant.suspended","outcome":"success","resourceName":"Straße 7","tenantSlug":"acme","source":"platform-api","externalId":"e-1","metadata":{"_dezky":{"requestId":"r-1"},"n":1.5,"path":"/a"}}}"#,
        ),
        (
            b"\x00\x00\x01\x3d\x57\x2a\xfa\x3b\xb8\x5e\xe4\xb5",
            r#"{"v":1,"salt":"a53c36d76cec99e0758527120fbbe785a83d7e35de181749966761748e5c43cb","event":{"id":"019b76da-a800-714f-9601-77dc7567fe8b","at":"2026-01-01T00:00:00.000Z","receivedAt":"2026-01-01T00:00:00.000Z","actorType":"anonymous","action":"authentik.login","outcome":"success","source":"authentik:eu2","metadata":{}}}"#,
        ),
    ];
    const VERSION_1_LEAVES: [&str; 2] = [
        "02ea6de4638245ad5edda4c4d4db85a7aa0c682259597694f7b42c2ce450af69",
        "65141ea8dadc73c0b565933ae002dcb424b4466e1ef12276e2397d102d8747d1",
    ];

    #[tokio::test]
    async fn version_1_parses_for_ever() {
        let place = Place::new();
        let mut bytes = b"dezky.spool v1\n".to_vec();
        for (frame, json) in VERSION_1 {
            bytes.extend(frame);
            bytes.extend(json.as_bytes());
        }
        fs::write(place.config().path, &bytes).unwrap();
        let spool = place.open().await;
        let events = spool.peek(10).await.unwrap();
        let leaves: Vec<_> = events.iter().map(|e| hex::encode(e.leaf_hash())).collect();
        assert_eq!(leaves, VERSION_1_LEAVES);
        assert_eq!(events[0].event().resource_name.as_deref(), Some("Straße 7"));
        assert_eq!(place.bytes(), bytes);
        // And it is what is written today.
        let written = Place::new();
        written.open().await.push(&events).await.unwrap();
        assert_eq!(written.bytes(), bytes);
    }

    #[tokio::test]
    async fn bounds() {
        let place = Place::new();
        let events = place.events(5);
        let sizes: Vec<u64> = events.iter().map(|e| 12 + e.to_json().len() as u64).collect();
        let three: u64 = HEADER_BYTES + sizes[..3].iter().sum::<u64>();
        let by_count = SpoolConfig { max_events: 3, ..place.config() };
        let by_bytes = SpoolConfig { max_bytes: three, ..place.config() };
        for config in [by_count, by_bytes] {
            let spool = Spool::open(config, place.runtime.clone()).await.unwrap();
            spool.push(&events[..2]).await.unwrap();
            let before = place.bytes();
            let error = spool.push(&events[2..4]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            assert!(error.to_string().contains("full at 2 of"), "{error}");
            assert_eq!((place.bytes(), spool.pending()), (before, 2));
            spool.push(&events[2..3]).await.unwrap();
            assert!(spool.push(&events[3..4]).await.is_err());
            // As many as there is room for.
            spool.discard(3).await.unwrap();
            let pushed = spool.push_some(&events).await;
            assert_eq!(pushed.refused.unwrap().kind(), ErrorKind::TooLarge);
            assert!((1..5).contains(&pushed.kept));
            assert_eq!(spool.peek(9).await.unwrap(), events[..pushed.kept]);
            spool.discard(9).await.unwrap();
        }
        // Lowered bounds lose nothing.
        let spool = place.open().await;
        spool.push(&events).await.unwrap();
        drop(spool);
        let low = SpoolConfig { max_events: 1, max_bytes: 100, ..place.config() };
        let spool = Spool::open(low, place.runtime.clone()).await.unwrap();
        assert_eq!(spool.peek(9).await.unwrap(), events);
        assert!(spool.push(&events[..1]).await.is_err());
    }

    #[tokio::test]
    async fn an_event_out_of_all_bounds_is_refused() {
        let place = Place::new();
        let spool = place.open().await;
        let huge = NewEvent::new("x".repeat(MAX_RECORD_BYTES), Actor::system());
        let events = [huge.seal(&*place.runtime)];
        assert_eq!(spool.push(&events).await.unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!((spool.pending(), place.bytes().as_slice()), (0, HEADER));
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let place = Place::new();
        let spool = place.open().await;
        spool.push(&place.events(2)).await.unwrap();
        let error = place.refused(place.config()).await;
        assert_eq!(error.kind(), ErrorKind::StoreBusy);
        assert!(error.to_string().contains("audit.spool: another process"), "{error}");
        drop(spool);
        assert_eq!(place.open().await.pending(), 2);
    }

    #[tokio::test]
    async fn configuration() {
        let place = Place::new();
        let at = |path: PathBuf| SpoolConfig { path, ..place.config() };
        for config in [
            at(place.folder.path().join("missing/audit.spool")),
            at(place.folder.path().to_owned()),
            at(place.folder.path().join("..")),
            at(PathBuf::new()),
            SpoolConfig { max_events: 0, ..place.config() },
            SpoolConfig { max_bytes: 0, ..place.config() },
        ] {
            let error = place.refused(config.clone()).await;
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{config:?}: {error}");
        }
        assert!(!place.config().path.exists());
    }

    #[tokio::test]
    async fn files_of_others_are_left_alone() {
        let place = Place::new();
        for (content, kind) in [
            (&b"hello"[..], ErrorKind::StoreForeign),
            (b"dezky.spool\n", ErrorKind::StoreForeign),
            (b"dezky.spool v0\n", ErrorKind::StoreForeign),
            (b"dezky.spool vx\n", ErrorKind::StoreForeign),
            (b"dezky.spool v1 \n", ErrorKind::StoreForeign),
            (b"dezky.spool v2\n", ErrorKind::SchemaNewer),
            (b"dezky.spool v10\nrecords", ErrorKind::SchemaNewer),
        ] {
            fs::write(place.config().path, content).unwrap();
            let error = place.refused(place.config()).await;
            assert_eq!(error.kind(), kind, "{}", String::from_utf8_lossy(content));
            assert_eq!(place.bytes(), content);
        }
    }

    #[tokio::test]
    async fn a_torn_header_is_made_anew() {
        for end in 0..HEADER.len() {
            let place = Place::new();
            fs::write(place.config().path, &HEADER[..end]).unwrap();
            let spool = place.open().await;
            spool.push(&place.events(1)).await.unwrap();
            assert_eq!(place.after_kill().await.1.pending(), 1);
            assert_eq!(place.corrupt_files(), [] as [PathBuf; 0]);
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn the_owner_alone_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let place = Place::new();
        place.open().await.push(&place.events(1)).await.unwrap();
        assert_eq!(mode(&place.config().path), 0o600);
        fs::set_permissions(place.config().path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = place.bytes();
        bytes.extend(b"torn");
        fs::write(place.config().path, bytes).unwrap();
        place.open().await;
        assert_eq!(mode(&place.config().path), 0o600);
        assert_eq!(mode(&place.corrupt_files()[0]), 0o600);
    }

    #[tokio::test]
    async fn a_torn_tail_costs_the_last_record_alone() {
        let place = Place::new();
        let events = place.small_events(4);
        let spool = place.open().await;
        spool.push(&events[..2]).await.unwrap();
        let good = place.bytes().len();
        spool.push(&events[2..3]).await.unwrap();
        let whole = place.bytes();
        for end in good..whole.len() {
            let torn = Place::new();
            fs::write(torn.config().path, &whole[..end]).unwrap();
            let spool = torn.open().await;
            assert_eq!(spool.peek(9).await.unwrap(), events[..2], "at {end}");
            assert_eq!(torn.bytes(), whole[..good]);
            assert_eq!(spool.damaged_bytes(), (end - good) as u64);
            let kept: Vec<_> =
                torn.corrupt_files().iter().map(|path| fs::read(path).unwrap()).collect();
            let expected: Vec<_> =
                (end > good).then(|| whole[good..end].to_vec()).into_iter().collect();
            assert_eq!(kept, expected);
            spool.push(&events[3..]).await.unwrap();
            let (_, again) = torn.after_kill().await;
            assert_eq!(
                again.peek(9).await.unwrap(),
                [&events[..2], &events[3..]].concat(),
                "at {end}"
            );
        }
    }

    #[tokio::test]
    async fn a_flipped_bit_costs_one_record() {
        let place = Place::new();
        let events = place.small_events(3);
        let spool = place.open().await;
        let mut ends = Vec::new();
        for event in &events {
            spool.push(std::slice::from_ref(event)).await.unwrap();
            ends.push(place.bytes().len());
        }
        let whole = place.bytes();
        for at in 0..whole.len() {
            let flipped = Place::new();
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(flipped.config().path, &bytes).unwrap();
            if at < HEADER.len() {
                let kind = flipped.refused(flipped.config()).await.kind();
                assert!(matches!(kind, ErrorKind::StoreForeign | ErrorKind::SchemaNewer));
                assert_eq!(flipped.bytes(), bytes);
                continue;
            }
            // Every byte of the frames, some of the events.
            let hit = ends.iter().position(|end| at < *end).unwrap();
            let start = if hit == 0 { HEADER.len() } else { ends[hit - 1] };
            if at - start > 16 && at % 17 > 0 {
                continue;
            }
            let mut left = events.clone();
            left.remove(hit);
            let spool = flipped.open().await;
            assert_eq!(spool.peek(9).await.unwrap(), left, "at {at}");
            assert_eq!(spool.damaged_bytes(), (ends[hit] - start) as u64);
            assert_eq!(fs::read(&flipped.corrupt_files()[0]).unwrap(), bytes[start..]);
            // Once is enough.
            let (again, spool) = flipped.after_kill().await;
            assert_eq!(spool.peek(9).await.unwrap(), left);
            assert_eq!(again.corrupt_files(), [] as [PathBuf; 0]);
        }
    }

    #[tokio::test]
    async fn what_rots_while_open_is_set_aside() {
        let place = Place::new();
        let events = place.events(3);
        let spool = place.open().await;
        spool.push(&events).await.unwrap();
        let second = HEADER.len() + 12 + events[0].to_json().len();
        let mut bytes = place.bytes();
        bytes[second + 40] ^= 1;
        fs::write(place.config().path, &bytes).unwrap();
        assert_eq!(spool.peek(9).await.unwrap(), events[..1]);
        spool.discard(1).await.unwrap();
        assert_eq!(spool.peek(9).await.unwrap(), events[2..]);
        assert_eq!(spool.pending(), 1);
        let record = 12 + events[1].to_json().len();
        assert_eq!(spool.damaged_bytes(), record as u64);
        assert_eq!(fs::read(&place.corrupt_files()[0]).unwrap(), bytes[second..second + record]);
        // An intact record that holds something else is no event either.
        spool.discard(1).await.unwrap();
        spool.push(&events[..1]).await.unwrap();
        let mut bytes = HEADER.to_vec();
        let other = vec![b'x'; events[0].to_json().len()];
        bytes.extend(u32::try_from(other.len()).unwrap().to_be_bytes());
        bytes.extend(checksum(&other));
        bytes.extend(other);
        fs::write(place.config().path, bytes).unwrap();
        assert_eq!(spool.peek(9).await.unwrap(), []);
        assert_eq!((spool.pending(), place.bytes().as_slice()), (0, HEADER));
    }

    #[tokio::test]
    async fn a_failed_write_changes_nothing() {
        let place = Place::new();
        let events = place.events(3);
        let spool = place.open().await;
        spool.push(&events[..1]).await.unwrap();
        // A handle that can't write: neither the records nor the cut back.
        let read_only = File::open(place.config().path).unwrap();
        let writable = {
            let mut queue = spool.queue.lock().await;
            std::mem::replace(&mut queue.file, read_only)
        };
        let error = spool.push(&events[1..2]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("audit.spool: write: "), "{error}");
        assert_eq!(spool.pending(), 1);
        {
            let mut queue = spool.queue.lock().await;
            assert!(queue.dirty);
            // As if a part had been written.
            (&writable).seek(SeekFrom::End(0)).unwrap();
            (&writable).write_all(&[0; 5_000]).unwrap();
            queue.file = writable;
        }
        spool.push(&events[2..]).await.unwrap();
        let left = [events[0].clone(), events[2].clone()];
        assert_eq!(spool.peek(9).await.unwrap(), left);
        let (again, spool) = place.after_kill().await;
        assert_eq!(spool.peek(9).await.unwrap(), left);
        assert_eq!(again.corrupt_files(), [] as [PathBuf; 0]);
    }

    #[tokio::test]
    async fn a_dropped_push_is_whole_or_not_at_all() {
        let place = Place::new();
        let spool = place.open().await;
        let events = place.events(2);
        drop(spool.push(&events));
        assert_eq!(spool.pending(), 0);
        let turn = spool.queue.lock().await;
        let mut waiting = Box::pin(spool.push(&events));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(waiting);
        drop(turn);
        assert_eq!(spool.pending(), 0);
        let event = named_event("a").seal(&*place.runtime);
        spool.push(std::slice::from_ref(&event)).await.unwrap();
        assert_eq!(spool.peek(9).await.unwrap(), [event]);
    }
}
