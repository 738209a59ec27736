//! The tail on real files.
//!
//! A pull is one piece of blocking work: it opens the live file, finds the
//! generation in which the cursor stands, reads on, and crosses to younger
//! generations. Nothing but open descriptors is kept between pulls, and those
//! only so that a file that was renamed or removed meanwhile can be read to its
//! end.

use std::fs::{File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use dezky_core::{
    Error, ErrorKind, IngestSource, Pull, PullLimits, Result, Runtime, Timestamp, rt,
};
use serde::{Deserialize, Serialize};

use super::core::{
    Age, Batch, Cursor, GapReason, GenerationHash, MAX_LINE_BYTES, Place, Reading, Rotated,
    gap_event,
};
use super::{Digest, LineDecoder};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// How often the directory is looked through until it holds still.
const SCANS: usize = 5;

/// How much of the end of two files is compared to see whether one is a copy of
/// the other.
const COMPARED_BYTES: u64 = 4 << 10;

/// What [`FileTail`] follows, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailConfig {
    /// The live file. Rotated files are looked for in the same directory.
    pub path: PathBuf,
    /// The source's name: `ocis`, `nginx`, `nginx:eu2`.
    pub source: String,
    /// Longer lines are skipped and recorded; 1 MiB.
    #[serde(default = "default_max_line_bytes")]
    pub max_line_bytes: usize,
    /// How many rotated files are looked at, the youngest ones; 256.
    #[serde(default = "default_max_siblings")]
    pub max_siblings: usize,
}

/// The default of [`TailConfig::max_line_bytes`].
pub(crate) const fn default_max_line_bytes() -> usize {
    1 << 20
}

/// The default of [`TailConfig::max_siblings`].
pub(crate) const fn default_max_siblings() -> usize {
    256
}

impl TailConfig {
    /// Follows `path` as `source`, within the default bounds.
    pub fn new(path: impl Into<PathBuf>, source: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            source: source.into(),
            max_line_bytes: default_max_line_bytes(),
            max_siblings: default_max_siblings(),
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |what: &'static str| Err(Error::new(ErrorKind::ConfigInvalid, what));
        let source = &self.source;
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_name = |part: &str| !part.is_empty() && part.bytes().all(word);
        if source.len() > 64 || source.split(':').count() > 2 || !source.split(':').all(is_name) {
            return invalid(
                "the source of a file tail must be <name> or <name>:<instance>, of letters, \
                 digits, . _ and -, at most 64 bytes",
            );
        }
        if !(1..=MAX_LINE_BYTES).contains(&self.max_line_bytes) {
            return invalid("max_line_bytes of a file tail must be 1 to 67108864");
        }
        if self.path.file_name().is_none() {
            return invalid("the path of a file tail must name a file");
        }
        Ok(())
    }
}

/// Follows a file of lines.
///
/// - A pull for the same cursor gives the same lines, in this process or another;
///   they are identified by their file generation, place and bytes, not by path,
///   inode or host.
/// - Only complete lines are consumed, and no time forces out a partial one.
/// - A rotated file is read to its end before the next younger one, also after a
///   restart, and looked at once more afterwards.
/// - Where lines may be lost, because the file was truncated or is gone, an
///   `ingest.gap` event says so and reading begins anew with the live file.
/// - No file yet is no error: it comes with the first line.
///
/// Compressed generations are not read.
///
/// Errors are of the kind `io` (files that can't be read) and `cursor_invalid`.
/// Cancel-safe.
pub struct FileTail {
    config: Arc<Setup>,
    decoder: Arc<dyn LineDecoder>,
    runtime: Arc<dyn Runtime>,
    kept: Vec<Arc<Opened>>,
}

#[derive(Debug)]
struct Setup {
    config: TailConfig,
    base: Option<String>,
}

impl FileTail {
    /// A tail as configured, whose lines `decoder` reads, with its clock and its
    /// thread for files from `runtime`. Opens nothing; `config_invalid` if a bound
    /// is broken.
    pub fn new(
        config: TailConfig,
        decoder: Arc<dyn LineDecoder>,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self> {
        config.check()?;
        let base = config.path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let config = Arc::new(Setup { config, base });
        Ok(Self { config, decoder, runtime, kept: Vec::new() })
    }

    /// The same as [`pull`](IngestSource::pull), with the lines of this pull read
    /// by `decoder`: for one that remembers something from pull to pull.
    pub async fn pull_with(
        &mut self,
        decoder: Arc<dyn LineDecoder>,
        cursor: Option<&str>,
        limits: PullLimits,
    ) -> Result<Pull> {
        let cursor = match cursor {
            Some(text) => Some((Cursor::parse(text)?, text.to_owned())),
            None => None,
        };
        let job = Job {
            setup: Arc::clone(&self.config),
            decoder,
            kept: self.kept.clone(),
            now: self.runtime.now(),
            limits,
        };
        // The descriptors are copied, not moved: a pull that is dropped half-way
        // loses none.
        let (pull, kept) = rt::unblock(&*self.runtime, move || job.run(cursor.as_ref())).await?;
        self.kept = kept;
        Ok(pull)
    }
}

impl std::fmt::Debug for FileTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTail").field("config", &self.config.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl IngestSource for FileTail {
    fn name(&self) -> &str {
        &self.config.config.source
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        self.pull_with(Arc::clone(&self.decoder), cursor, limits).await
    }
}

/// An open file.
#[derive(Debug)]
struct Opened {
    file: File,
    device: u64,
    inode: u64,
}

impl Opened {
    /// Opens a regular file; `None` if there is none.
    fn open(path: &Path) -> io::Result<Option<(Self, Metadata)>> {
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
            Ok(file) => file,
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        let metadata = file.metadata()?;
        let (device, inode) = identity(&metadata);
        Ok(Some((Self { file, device, inode }, metadata)))
    }

    /// Whether both are the same file, as far as the system tells.
    fn is(&self, other: &Self) -> bool {
        self.inode != 0 && (self.device, self.inode) == (other.device, other.inode)
    }

    /// Reads at most `buf` at `offset`; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match read_at(&self.file, buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
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

    /// The hash of the first line; `None` if none is complete.
    fn generation(&self) -> io::Result<Option<Digest>> {
        Ok(self.first_line()?.ok())
    }

    /// The hash of the first line: an error holds that of a line without its end.
    fn first_line(&self) -> io::Result<std::result::Result<Digest, Digest>> {
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
                    if n == buf.len() && buf.len() < CHUNK_BYTES {
                        buf.resize(CHUNK_BYTES, 0);
                    }
                }
            }
        }
    }
}

#[cfg(unix)]
fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, offset)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read(buf)
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Without inodes, generations are told apart by their content alone.
#[cfg(not(unix))]
fn identity(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

fn mtime_ns(metadata: &Metadata) -> i64 {
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
struct Seen {
    opened: Arc<Opened>,
    bytes: u64,
    age: Age,
    generation: Option<Digest>,
}

impl Seen {
    fn new(opened: Arc<Opened>, metadata: &Metadata, name: Option<Rotated>) -> io::Result<Self> {
        let generation = opened.generation()?;
        let age = Age { mtime_ns: mtime_ns(metadata), name };
        Ok(Self { opened, bytes: metadata.len(), age, generation })
    }

    /// Whether `place` is in this generation.
    fn holds(&self, place: &Place) -> io::Result<bool> {
        self.holds_with(place, self.generation.as_ref())
    }

    /// The same, looking again at the first line too.
    fn still_holds(&self, place: &Place) -> io::Result<bool> {
        self.holds_with(place, self.opened.generation()?.as_ref())
    }

    fn holds_with(&self, place: &Place, generation: Option<&Digest>) -> io::Result<bool> {
        let range = place.to_verify();
        let bytes = self.opened.bytes(range.start, range.end)?;
        Ok(place.is_in(self.opened.inode, generation, &bytes))
    }

    /// Whether this is the beginning of `longer`, or all of it. Equal first lines
    /// are not enough: those of two generations may be the same.
    fn begins(&self, longer: &Self) -> io::Result<bool> {
        if self.generation != longer.generation || self.bytes > longer.bytes {
            return Ok(false);
        }
        let start = self.bytes.saturating_sub(COMPARED_BYTES);
        Ok(self.opened.bytes(start, self.bytes)? == longer.opened.bytes(start, self.bytes)?)
    }

    fn start(&self) -> Place {
        Place::start(self.opened.inode, self.generation, Some(self.age.mtime_ns))
    }
}

/// Where a pull begins and what it goes through.
struct Route {
    /// Where to go on in the first of `order`; `None`: at its beginning.
    at: Option<Place>,
    /// Generations, the oldest first.
    order: Vec<Seen>,
    /// What was lost before.
    gap: Option<GapReason>,
}

/// The end of the generation before the one that is read.
struct Previous {
    place: Place,
    seen: Option<Seen>,
    /// Whether it was at its end in an earlier pull and still is.
    is_done: bool,
}

/// What the directory held.
#[derive(Default)]
struct Scan {
    siblings: Vec<Seen>,
    /// Inodes and names, to see whether anything moved meanwhile.
    listing: Vec<(u64, String)>,
}

struct Job {
    setup: Arc<Setup>,
    decoder: Arc<dyn LineDecoder>,
    kept: Vec<Arc<Opened>>,
    now: Timestamp,
    limits: PullLimits,
}

impl Job {
    fn run(self, cursor: Option<&(Cursor, String)>) -> Result<(Pull, Vec<Arc<Opened>>)> {
        let source = self.setup.config.source.as_str();
        let live = self.live()?;
        let route = match cursor {
            None => Some(self.route_from_start(live.clone(), None)?),
            Some((cursor, _)) => self.resume(&cursor.at, live.clone())?,
        };
        let Some(route) = route else {
            // The live file may come back; until then nothing is known.
            return Ok((Pull::default(), self.kept));
        };

        let mut batch = Batch::new(self.limits.max_events, self.limits.max_bytes);
        let mut place = route.at.clone();
        if let (Some(reason), Some((cursor, text))) = (route.gap, cursor) {
            tracing::warn!(
                source,
                reason = reason.code(),
                last_offset = cursor.at.position,
                "lines of the file may be lost: its earlier content is gone"
            );
            batch.event(gap_event(source, text, &cursor.at, reason, self.now));
        }

        let known = cursor.and_then(|(cursor, _)| cursor.previous.clone());
        let mut previous = match known {
            // Behind a gap it is of no use any more.
            Some(place) if route.gap.is_none() => Some(self.late_lines(place, &route, &mut batch)?),
            _ => None,
        };
        let was_late = previous.as_ref().is_some_and(|previous| !previous.is_done);

        let mut moved = false;
        let mut stopped_in = 0;
        let mut unfinished = Vec::new();
        for (i, seen) in route.order.iter().enumerate() {
            let Some(generation) = seen.generation else {
                unfinished.push(seen);
                continue;
            };
            if batch.is_full() {
                break;
            }
            let mut from = match place.take() {
                Some(at) if i == 0 => at,
                Some(end) => {
                    if let Some(older) = previous.take() {
                        self.finish(&older, &mut batch)?;
                    }
                    let before = route.order[..i].iter().rev().find(|s| s.generation.is_some());
                    previous = Some(Previous { place: end, seen: before.cloned(), is_done: false });
                    seen.start()
                }
                None => seen.start(),
            };
            // A generation without a complete line was passed on the way.
            for seen in unfinished.drain(..) {
                self.finish(&Previous::nothing_of(seen), &mut batch)?;
            }
            // An old cursor does not know it.
            from.generation = Some(generation);
            let before = from.position;
            let mut reading = self.reading(generation, from);
            let flow = read_on(&seen.opened, &mut reading, &mut batch)?;
            let mut reached = reading.place().clone();
            if reached.position > before {
                if !seen.still_holds(&reached)? {
                    // Truncated or replaced under the reading: nothing of it
                    // counts, and the next pull sees what is there then.
                    tracing::warn!(source, "the file changed while it was read");
                    return Ok((Pull { more: true, ..Pull::default() }, self.kept));
                }
                moved = true;
                reached.inode = seen.opened.inode;
                reached.mtime_ns = Some(seen.age.mtime_ns);
            }
            if reached.position == 0 {
                // It had a line when it was looked at.
                tracing::warn!(source, "the file changed while it was read");
                return Ok((Pull::default(), self.kept));
            }
            place = Some(reached);
            stopped_in = i;
            if flow.is_break() {
                break;
            }
        }

        if moved && let Some(done) = previous.take_if(|previous| previous.is_done) {
            self.finish(&done, &mut batch)?;
        }
        let place = place.or_else(|| {
            // Behind a gap the cursor must move even if nothing is there to read.
            let live = live.as_ref()?;
            let lost = &cursor.filter(|_| route.gap.is_some())?.0.at;
            let known = lost.mtime_ns.unwrap_or(live.age.mtime_ns);
            Some(Place::start(live.opened.inode, None, Some(known)))
        });
        let consumed = moved || was_late || route.gap.is_some();
        let more = batch.is_full()
            && (place.as_ref().is_some_and(|place| {
                route.order.get(stopped_in).is_some_and(|seen| place.position < seen.bytes)
            }) || route
                .order
                .iter()
                .skip(stopped_in + 1)
                .any(|seen| seen.generation.is_some()));

        let mut kept = Vec::new();
        let reached = route.order.get(stopped_in).into_iter();
        let previous_seen = previous.as_ref().and_then(|previous| previous.seen.as_ref());
        for seen in reached.chain(previous_seen).chain(&live) {
            if !kept.iter().any(|opened| Arc::ptr_eq(opened, &seen.opened)) {
                kept.push(Arc::clone(&seen.opened));
            }
        }
        log_quarantine(source, &batch);
        let cursor = place
            .filter(|_| consumed)
            .map(|at| Cursor { at, previous: previous.map(|previous| previous.place) }.to_string());
        // One that can't be read again must not be committed: the tail would stand
        // still for ever.
        if let Some(text) = &cursor
            && Cursor::parse(text).is_err()
        {
            let what = "the file tail made a cursor that it can't read";
            return Err(Error::new(ErrorKind::Internal, what));
        }
        let Batch { events, quarantine, skipped, .. } = batch;
        Ok((Pull { events, quarantine, skipped, cursor, more }, kept))
    }

    fn reading(&self, generation: Digest, place: Place) -> Reading<'_> {
        let TailConfig { source, max_line_bytes, .. } = &self.setup.config;
        Reading::new(source, &*self.decoder, *max_line_bytes, generation, self.now, place)
    }

    fn live(&self) -> Result<Option<Seen>> {
        let seen = Opened::open(&self.setup.config.path).and_then(|opened| {
            opened
                .map(|(opened, metadata)| Seen::new(Arc::new(opened), &metadata, None))
                .transpose()
        });
        seen.map_err(|e| Error::from(e).context("the file can't be read"))
    }

    /// Every generation there is, or of the rotated ones those written at `since`
    /// or later; the oldest first.
    fn route_from_start(&self, live: Option<Seen>, since: Option<i64>) -> Result<Route> {
        let mut order = self.scan(live.as_ref())?.siblings;
        order.retain(|seen| since.is_none_or(|since| seen.age.mtime_ns >= since));
        order.extend(live);
        without_copies(&mut order, None)?;
        Ok(Route { at: None, order, gap: None })
    }

    /// Finds the generation of `at` and what is younger; `None` if the files
    /// don't hold still or the live one is missing.
    fn resume(&self, at: &Place, live: Option<Seen>) -> Result<Option<Route>> {
        if at.position == 0 {
            return self.route_from_start(live, at.mtime_ns).map(Some);
        }
        let mut live = live;
        let mut listing = None;
        for _ in 0..SCANS {
            // The live file is asked before the directory: what was copied or
            // renamed away from it by then is found there.
            if let Some(seen) = &live
                && seen.holds(at)?
            {
                let order = live.into_iter().collect();
                return Ok(Some(Route { at: Some(at.clone()), order, gap: None }));
            }
            let scan = self.scan(live.as_ref())?;
            if let Some(found) = self.find(at, live.as_ref(), &scan) {
                let mut order: Vec<_> = scan
                    .siblings
                    .into_iter()
                    .filter(|seen| {
                        !seen.opened.is(&found.opened) && seen.age.may_be_younger_than(&found.age)
                    })
                    .collect();
                order.insert(0, found);
                order.extend(live);
                without_copies(&mut order, Some(0))?;
                let mut at = at.clone();
                at.generation = order[0].generation;
                return Ok(Some(Route { at: Some(at), order, gap: None }));
            }
            let names = (live.as_ref().map(|seen| seen.opened.inode), scan.listing);
            if listing.as_ref() == Some(&names) {
                return self.behind_a_gap(at, live);
            }
            listing = Some(names);
            live = self.live()?;
        }
        Ok(None)
    }

    fn behind_a_gap(&self, at: &Place, live: Option<Seen>) -> Result<Option<Route>> {
        let Some(seen) = &live else { return Ok(None) };
        let gap = if seen.opened.inode != at.inode {
            GapReason::GenerationMissing
        } else if seen.bytes < at.position {
            GapReason::Truncated
        } else {
            GapReason::Rewritten
        };
        let since = at.mtime_ns.unwrap_or(i64::MAX);
        let route = self.route_from_start(live, Some(since))?;
        Ok(Some(Route { gap: Some(gap), ..route }))
    }

    /// The generation that holds `at`, among the descriptors kept and the rotated
    /// files. One that can't be read is none.
    fn find(&self, at: &Place, live: Option<&Seen>, scan: &Scan) -> Option<Seen> {
        let kept = self.kept.iter().filter_map(|opened| {
            let named = scan.siblings.iter().any(|seen| seen.opened.is(opened));
            if named || live.is_some_and(|live| live.opened.is(opened)) {
                return None;
            }
            let metadata = opened.file.metadata().ok()?;
            Seen::new(Arc::clone(opened), &metadata, None).ok()
        });
        // Of several that hold it the most complete one: the others are copies.
        scan.siblings
            .iter()
            .cloned()
            .chain(kept)
            .filter(|seen| seen.holds(at).unwrap_or(false))
            .max_by_key(|seen| (seen.bytes, seen.opened.inode == at.inode))
    }

    /// The rotated files, the oldest first, without the live one.
    fn scan(&self, live: Option<&Seen>) -> Result<Scan> {
        let mut scan = Scan::default();
        let Some(base) = &self.setup.base else { return Ok(scan) };
        let directory = match self.setup.config.path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Ok(scan),
        };
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(scan);
            }
            Err(e) => {
                return Err(Error::from(e).context("the file's directory can't be read"));
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Some(rotated) = Rotated::parse(base, &name) else { continue };
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if metadata.is_file() && !rotated.is_compressed {
                let age = Age { mtime_ns: mtime_ns(&metadata), name: Some(rotated) };
                found.push((age, entry.path(), name));
            }
        }
        found.sort();
        let source = &self.setup.config.source;
        if found.len() > self.setup.config.max_siblings {
            let ignored = found.len() - self.setup.config.max_siblings;
            tracing::warn!(source, ignored, "more rotated files than are looked at");
            found.drain(..ignored);
        }
        for (age, path, name) in found {
            let seen = match Opened::open(&path) {
                Ok(Some((opened, metadata))) => {
                    // A descriptor that is kept is used again.
                    let kept = self.kept.iter().find(|kept| kept.is(&opened)).cloned();
                    Seen::new(kept.unwrap_or_else(|| Arc::new(opened)), &metadata, age.name)
                }
                Ok(None) => continue,
                Err(e) => Err(e),
            };
            match seen {
                Ok(seen) if live.is_some_and(|live| live.opened.is(&seen.opened)) => {}
                Ok(seen) => {
                    scan.listing.push((seen.opened.inode, name));
                    scan.siblings.push(seen);
                }
                Err(e) => {
                    tracing::warn!(source, error = %e, "a rotated file can't be read");
                    scan.listing.push((0, name));
                }
            }
        }
        Ok(scan)
    }

    /// Reads what a late writer put behind the end of the generation before.
    fn late_lines(&self, place: Place, route: &Route, batch: &mut Batch) -> Result<Previous> {
        let kept = self.kept.iter().filter_map(|opened| {
            let metadata = opened.file.metadata().ok()?;
            Seen::new(Arc::clone(opened), &metadata, None).ok()
        });
        let is_current = |seen: &Seen| route.order.iter().any(|s| s.opened.is(&seen.opened));
        let holds = |seen: &Seen| !is_current(seen) && seen.holds(&place).unwrap_or(false);
        let mut seen = kept.into_iter().find(holds);
        if seen.is_none() {
            seen = self.scan(None)?.siblings.into_iter().find(holds);
        }
        let Some(seen) = seen else {
            // Removed meanwhile, after it was read to its end.
            return Ok(Previous { place, seen: None, is_done: true });
        };
        let before = place.position;
        let mut reached = place.clone();
        if let Some(generation) = seen.generation {
            let mut reading = self.reading(generation, place);
            // A full batch leaves the rest to the next pull.
            let _ = read_on(&seen.opened, &mut reading, batch)?;
            reached = reading.place().clone();
        }
        let is_done = reached.position == before;
        Ok(Previous { place: reached, seen: Some(seen), is_done })
    }

    /// Takes what is left behind the last line of a generation that nobody writes
    /// any more.
    fn finish(&self, done: &Previous, batch: &mut Batch) -> Result<()> {
        let Some(seen) = &done.seen else { return Ok(()) };
        let place = done.place.clone();
        let generation = match place.generation {
            Some(generation) => generation,
            // Its only line has no end. With one its generation is the same, so
            // that it has the same key then.
            None => seen.opened.first_line()?.unwrap_or_else(|unfinished| unfinished),
        };
        let mut reading = self.reading(generation, place);
        while read_on(&seen.opened, &mut reading, batch)?.is_break() {}
        reading.end(batch);
        Ok(())
    }
}

impl Previous {
    fn nothing_of(seen: &Seen) -> Self {
        Self { place: seen.start(), seen: Some(seen.clone()), is_done: true }
    }
}

/// Reads to the end of the file, or until the batch is full.
fn read_on(
    opened: &Opened,
    reading: &mut Reading<'_>,
    batch: &mut Batch,
) -> Result<ControlFlow<()>> {
    let mut buf = vec![0; CHUNK_BYTES];
    loop {
        let n = opened
            .read_at(&mut buf, reading.next_offset())
            .map_err(|e| Error::from(e).context("the file can't be read"))?;
        if n == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        if reading.push(&buf[..n], batch).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// Leaves out files that are the beginning of another one, as while the live file
/// is being copied away. The one at `keep` stays.
fn without_copies(order: &mut Vec<Seen>, keep: Option<usize>) -> Result<()> {
    let mut copies = vec![false; order.len()];
    for i in 0..order.len() {
        for j in 0..order.len() {
            if i == j || copies[i] || copies[j] || keep == Some(i) || order[i].generation.is_none()
            {
                continue;
            }
            // Of two equal ones the older name goes, which is the copy.
            let shorter = order[i].bytes < order[j].bytes
                || (order[i].bytes == order[j].bytes && (i < j || keep == Some(j)));
            copies[i] = shorter && order[i].begins(&order[j])?;
        }
    }
    let mut copies = copies.into_iter();
    order.retain(|_| !copies.next().unwrap_or(false));
    Ok(())
}

fn log_quarantine(source: &str, batch: &Batch) {
    let mut reasons: Vec<&str> = batch.quarantine.iter().map(|item| item.reason.as_str()).collect();
    reasons.sort_unstable();
    for same in reasons.chunk_by(|a, b| a == b) {
        tracing::warn!(source, reason = same[0], lines = same.len(), "lines were quarantined");
    }
}
