//! One pull on files.
//!
//! A pull is one piece of blocking work: it opens the live file, finds the
//! generation in which the cursor stands, reads on, and crosses to younger
//! generations.

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dezky_core::{Error, ErrorKind, Pull, PullLimits, Result, Timestamp};

use super::core::{Age, Batch, Cursor, GapReason, Place, Reading, Rotated, gap_event};
use super::files::TailConfig;
use super::frame::Framer;
use super::gzip::Budget;
use super::opened::{CHUNK_BYTES, Opened, Seen, identity, mtime_ns};
use super::{Digest, LineDecoder};

/// How often the directory is looked through until it holds still.
const SCANS: usize = 5;

/// The most bytes that a pull reads of lines, beside
/// [`PullLimits::max_bytes`]: a longer line is read over several pulls.
const READ_MAX_BYTES: u64 = 64 << 20;

/// The most bytes that a pull decodes of compressed files only to come to where
/// reading begins.
const DECODE_MAX_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };

/// A line that has no end yet is remembered from this length on, so as not to
/// read it from its beginning again.
const REMEMBERED_BYTES: usize = CHUNK_BYTES;

/// What is kept between pulls, only so that work is not done again, and so that a
/// file that was renamed or removed meanwhile can be read to its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    opened: Vec<Arc<Opened>>,
    partial: Option<Arc<Partial>>,
}

/// The beginning of a line that has no end yet.
#[derive(Debug)]
struct Partial {
    /// Device and inode.
    file: (u64, u64),
    framer: Framer,
}

/// Where a pull begins and what it goes through.
struct Route {
    /// Where to go on in the first of `order`; `None`: at its beginning.
    at: Option<Place>,
    /// Generations, the oldest first.
    order: Vec<Seen>,
    /// What was lost before.
    gap: Option<GapReason>,
    /// Whether there are older generations that are not looked at.
    left_out: bool,
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
    /// When files beyond `max_siblings` were last written.
    left_out: Vec<i64>,
}

/// A rotated file in the directory.
struct Entry {
    age: Age,
    rotated: Rotated,
    path: PathBuf,
    name: String,
    inode: u64,
}

pub(super) struct Job {
    config: Arc<TailConfig>,
    decoder: Arc<dyn LineDecoder>,
    kept: Kept,
    budget: Arc<Budget>,
    now: Timestamp,
    limits: PullLimits,
    /// Compressed files that were opened in this pull.
    decoders: RefCell<Vec<Arc<Opened>>>,
    /// The line without an end that was met last.
    partial: RefCell<Option<Arc<Partial>>>,
}

impl Job {
    pub(super) fn new(
        config: Arc<TailConfig>,
        decoder: Arc<dyn LineDecoder>,
        kept: Kept,
        now: Timestamp,
        limits: PullLimits,
    ) -> Self {
        let budget = Arc::new(Budget::default());
        budget.set(DECODE_MAX_BYTES);
        let (decoders, partial) = (RefCell::default(), RefCell::default());
        Self { config, decoder, kept, budget, now, limits, decoders, partial }
    }

    pub(super) fn run(self, cursor: Option<&(Cursor, String)>) -> Result<(Pull, Kept)> {
        for opened in &self.kept.opened {
            opened.allow(&self.budget);
        }
        let done = self.pull(cursor);
        if !self.budget.is_spent() {
            return done;
        }
        // What was decoded stays, and the next pull goes on from there.
        tracing::debug!(source = self.config.source, "a compressed file is being skipped through");
        let mut kept = self.kept;
        for opened in self.decoders.take() {
            if !kept.opened.iter().any(|known| Arc::ptr_eq(known, &opened)) {
                kept.opened.push(opened);
            }
        }
        Ok((Pull { more: true, ..Pull::default() }, kept))
    }

    fn pull(&self, cursor: Option<&(Cursor, String)>) -> Result<(Pull, Kept)> {
        let source = self.config.source.as_str();
        let live = self.live()?;
        let route = match cursor {
            None => Some(self.route_from_start(live.clone(), None)?),
            Some((cursor, _)) => self.resume(&cursor.at, live.clone())?,
        };
        let Some(route) = route else {
            // The live file may come back; until then nothing is known.
            return Ok((Pull::default(), self.kept.clone()));
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
        if let Some(oldest) = route.order.first().filter(|_| route.left_out) {
            tracing::warn!(
                source,
                "more rotated files than are looked at: the oldest are left out"
            );
            let text = format!("left out before {}", hex::encode(oldest.identity()?));
            batch.event(gap_event(source, &text, &oldest.start(), GapReason::LeftOut, self.now));
        }

        let known = cursor.and_then(|(cursor, _)| cursor.previous.clone());
        let mut previous = match known {
            // Behind a gap it is of no use any more.
            Some(place) if route.gap.is_none() => Some(self.late_lines(place, &route, &mut batch)?),
            _ => None,
        };
        let was_late = previous.as_ref().is_some_and(|previous| !previous.is_done);

        let mut left = READ_MAX_BYTES + self.limits.max_bytes as u64;
        let mut moved = false;
        let mut is_cut_short = false;
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
            let crosses = i > 0 || place.is_none();
            let mut from = match &place {
                Some(at) if !crosses => at.clone(),
                _ => seen.start(),
            };
            // An old cursor does not know it.
            from.generation = Some(generation);
            let before = from.position;
            let mut reading = self.reading(&seen.opened, generation, from)?;
            let flow = read_on(&seen.opened, &mut reading, &mut batch, &mut left)?;
            let mut reached = self.remember(&seen.opened, reading);
            if reached.position > before {
                if !seen.still_holds(&reached)? {
                    // Truncated or replaced under the reading: nothing of it
                    // counts, and the next pull sees what is there then.
                    tracing::warn!(source, "the file changed while it was read");
                    return Ok((Pull { more: true, ..Pull::default() }, self.kept.clone()));
                }
                moved = true;
                reached.inode = seen.opened.inode;
                reached.mtime_ns = Some(seen.age.mtime_ns);
            }
            if reached.position == 0 {
                // Its only line has no end, however long it is.
                unfinished.push(seen);
                is_cut_short = left == 0;
                if is_cut_short {
                    break;
                }
                continue;
            }
            seen.opened.was_read_to(&reached);
            if crosses {
                let left = &route.order[stopped_in];
                self.cross(left, place.take(), &mut previous, &mut batch)?;
            }
            // A generation without a complete line was passed on the way.
            for seen in unfinished.drain(..) {
                if seen.opened.is_unreadable() {
                    self.pass(seen, &seen.start(), &mut batch)?;
                } else {
                    self.finish(&Previous::nothing_of(seen), &mut batch)?;
                }
            }
            place = Some(reached);
            stopped_in = i;
            if flow.is_break() {
                is_cut_short = left == 0;
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
        let unread = route.order.get(stopped_in..).unwrap_or_default();
        let goes_on = |at: &Place| unread.first().is_some_and(|seen| seen.may_go_on(at.position));
        let is_behind = place.as_ref().is_some_and(goes_on)
            || unread.iter().skip(1).any(|seen| seen.generation.is_some());
        let more = is_cut_short || (batch.is_full() && is_behind);

        // What is unread is kept open, so that it may be removed meanwhile.
        let mut kept: Vec<Arc<Opened>> = Vec::new();
        let previous_seen = previous.as_ref().and_then(|previous| previous.seen.as_ref());
        for seen in unread.iter().chain(previous_seen).chain(&live) {
            if !kept.iter().any(|known| known.is(&seen.opened)) {
                kept.push(Arc::clone(&seen.opened));
            }
        }
        let partial = self.partial.take().or_else(|| self.kept.partial.clone());
        let kept = Kept { opened: kept, partial };
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
        if cursor.is_none() {
            // What was met on the way comes again with a line behind it.
            return Ok((Pull { more, ..Pull::default() }, kept));
        }
        let Batch { events, quarantine, skipped, .. } = batch;
        Ok((Pull { events, quarantine, skipped, cursor, more }, kept))
    }

    /// Goes from the `end` of the generation `left`, if one was read before, to a
    /// younger one.
    fn cross(
        &self,
        left: &Seen,
        end: Option<Place>,
        previous: &mut Option<Previous>,
        batch: &mut Batch,
    ) -> Result<()> {
        let Some(place) = end else { return Ok(()) };
        if let Some(older) = previous.take() {
            self.finish(&older, batch)?;
        }
        if left.opened.is_unreadable() {
            return self.pass(left, &place, batch);
        }
        *previous = Some(Previous { place, seen: Some(left.clone()), is_done: false });
        Ok(())
    }

    /// Reads on at `place`, behind what is remembered of a line without an end.
    fn reading(&self, opened: &Opened, generation: Digest, place: Place) -> Result<Reading<'_>> {
        let TailConfig { source, max_line_bytes, .. } = &*self.config;
        let mut partial = None;
        for known in self.partial.borrow().iter().chain(&self.kept.partial) {
            if known.framer.line_start() == place.position
                && known.file == opened.id()
                && opened
                    .has_before(known.framer.next_offset(), known.framer.tail())
                    .map_err(unreadable)?
            {
                partial = Some(known.framer.clone());
            }
        }
        let decoder = &*self.decoder;
        let reading = Reading::new(source, decoder, *max_line_bytes, generation, self.now, place);
        Ok(match partial {
            Some(framer) => reading.with_framer(framer),
            None => reading,
        })
    }

    /// Keeps the line without an end that `reading` stopped in. Gives its place.
    fn remember(&self, opened: &Opened, reading: Reading<'_>) -> Place {
        let (place, framer) = reading.into_parts();
        if framer.tail().len() >= REMEMBERED_BYTES.min(super::LONG_LINE_KEPT_BYTES)
            && framer.next_offset() - framer.line_start() >= REMEMBERED_BYTES as u64
        {
            let file = opened.id();
            *self.partial.borrow_mut() = Some(Arc::new(Partial { file, framer }));
        }
        place
    }

    /// Opens the file of a generation, with what is known of it from earlier pulls.
    fn open(&self, path: &Path, name: Option<Rotated>) -> io::Result<Option<Seen>> {
        let Some((opened, metadata)) = Opened::open(path, &self.budget)? else { return Ok(None) };
        let known = self.kept.opened.iter().find(|known| known.serves(&opened)).cloned();
        let opened = known.unwrap_or_else(|| Arc::new(opened));
        if opened.is_compressed() {
            let mut decoders = self.decoders.borrow_mut();
            if !decoders.iter().any(|known| Arc::ptr_eq(known, &opened)) {
                decoders.push(Arc::clone(&opened));
            }
        }
        Seen::new(opened, &metadata, name).map(Some)
    }

    fn live(&self) -> Result<Option<Seen>> {
        self.open(&self.config.path, None).map_err(unreadable)
    }

    /// Every generation there is, or of the rotated ones those written at `since`
    /// or later; the oldest first.
    fn route_from_start(&self, live: Option<Seen>, since: Option<i64>) -> Result<Route> {
        let scan = self.scan(live.as_ref())?;
        let counts = |mtime_ns| since.is_none_or(|since| mtime_ns >= since);
        let left_out = scan.left_out.into_iter().any(counts);
        let mut order = scan.siblings;
        order.retain(|seen| counts(seen.age.mtime_ns));
        order.extend(live);
        without_copies(&mut order, None)?;
        Ok(Route { at: None, order, gap: None, left_out })
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
                return Ok(Some(Route { at: Some(at.clone()), order, gap: None, left_out: false }));
            }
            let scan = self.scan(live.as_ref())?;
            if let Some(found) = self.find(at, live.as_ref(), &scan)? {
                let mut order: Vec<_> = scan
                    .siblings
                    .into_iter()
                    .filter(|seen| {
                        !seen.opened.is(&found.opened) && seen.age.may_be_younger_than(&found.age)
                    })
                    .collect();
                order.extend(self.nameless(live.as_ref(), &found, &order));
                order.sort_by(|a, b| a.age.cmp(&b.age));
                order.insert(0, found);
                order.extend(live);
                without_copies(&mut order, Some(0))?;
                let mut at = at.clone();
                at.generation = order[0].generation;
                return Ok(Some(Route { at: Some(at), order, gap: None, left_out: false }));
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
        Ok(Some(Route { gap: Some(gap), left_out: false, ..route }))
    }

    /// Files that were removed unread and are still open.
    fn nameless(&self, live: Option<&Seen>, found: &Seen, named: &[Seen]) -> Vec<Seen> {
        let is_named = |opened: &Opened| {
            live.into_iter().chain([found]).chain(named).any(|seen| seen.opened.is(opened))
        };
        let kept = self.kept.opened.iter().filter(|opened| !is_named(opened));
        kept.filter_map(|opened| Seen::again(opened).ok())
            .filter(|seen| seen.age.may_be_younger_than(&found.age))
            .collect()
    }

    /// The generation that holds `at`, among the descriptors kept and the rotated
    /// files. One that can't be read is none.
    fn find(&self, at: &Place, live: Option<&Seen>, scan: &Scan) -> Result<Option<Seen>> {
        let kept = self.kept.opened.iter().filter_map(|opened| {
            let named = scan.siblings.iter().any(|seen| seen.opened.is(opened));
            if named || live.is_some_and(|live| live.opened.is(opened)) {
                return None;
            }
            Seen::again(opened).ok()
        });
        let holding: Vec<Seen> = scan
            .siblings
            .iter()
            .cloned()
            .chain(kept)
            .filter(|seen| seen.holds(at).unwrap_or(false))
            .collect();
        // Of several that hold it the most complete one: the others are copies. One
        // that has no name any more has the age of its copy.
        let name = holding.iter().find_map(|seen| seen.age.name.clone());
        let found = holding
            .into_iter()
            .max_by_key(|seen| {
                let is_plain = !seen.opened.is_compressed();
                (is_plain, seen.bytes, seen.opened.inode == at.inode)
            })
            .map(|mut seen| {
                seen.age.name = seen.age.name.or(name);
                seen
            });
        if found.is_none() && self.budget.is_spent() {
            return Err(Error::new(ErrorKind::Io, "the way to the cursor is long"));
        }
        Ok(found)
    }

    /// The rotated files, the oldest first, without the live one. The directory
    /// holds still meanwhile, or it is looked through again.
    fn scan(&self, live: Option<&Seen>) -> Result<Scan> {
        let mut scan = Scan::default();
        let mut entries = self.list()?;
        for _ in 0..SCANS {
            scan = self.open_all(live, &mut entries);
            let again = self.list()?;
            let listing = |entries: &[Entry]| -> Vec<_> {
                entries.iter().map(|entry| (entry.inode, entry.name.clone())).collect()
            };
            if listing(&again) == scan.listing {
                return Ok(scan);
            }
            entries = again;
        }
        // Whoever renames without end can't be waited for.
        tracing::warn!(source = self.config.source, "the rotated files don't hold still");
        Ok(scan)
    }

    /// The rotated files in the directory, the oldest first.
    fn list(&self) -> Result<Vec<Entry>> {
        let path = &self.config.path;
        let base = path.file_name().and_then(|name| name.to_str());
        let (Some(base), Some(directory)) = (base, path.parent()) else { return Ok(Vec::new()) };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let failed = |e: io::Error| Error::from(e).context("the file's directory can't be read");
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(Vec::new());
            }
            Err(e) => return Err(failed(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Some(rotated) = Rotated::parse(base, &name) else { continue };
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if metadata.is_file() {
                let age = Age { mtime_ns: mtime_ns(&metadata), name: Some(rotated.clone()) };
                let (_, inode) = identity(&metadata);
                found.push(Entry { age, rotated, path: entry.path(), name, inode });
            }
        }
        found.sort_by(|a, b| (&a.age, &a.name).cmp(&(&b.age, &b.name)));
        Ok(found)
    }

    fn open_all(&self, live: Option<&Seen>, entries: &mut Vec<Entry>) -> Scan {
        let mut scan = Scan {
            listing: entries.iter().map(|entry| (entry.inode, entry.name.clone())).collect(),
            ..Scan::default()
        };
        let source = &self.config.source;
        // One that is being compressed is there twice, until it is done.
        let plain: Vec<Rotated> =
            entries.iter().map(|e| e.rotated.clone()).filter(|r| !r.is_compressed).collect();
        if entries.len() > self.config.max_siblings {
            let left_out = entries.drain(..entries.len() - self.config.max_siblings);
            scan.left_out = left_out.map(|entry| entry.age.mtime_ns).collect();
        }
        for entry in entries.drain(..) {
            let is_being_made = entry.rotated.is_compressed
                && plain.iter().any(|plain| plain.is_place_of(&entry.rotated));
            match self.open(&entry.path, entry.age.name) {
                Ok(None) => {}
                Ok(Some(seen)) if live.is_some_and(|live| live.opened.is(&seen.opened)) => {}
                Ok(Some(seen)) if seen.generation.is_none() && is_being_made => {}
                Ok(Some(seen)) => {
                    if seen.opened.is_compressed()
                        && !self.kept.opened.iter().any(|kept| Arc::ptr_eq(kept, &seen.opened))
                    {
                        seen.opened.rest();
                    }
                    scan.siblings.push(seen);
                }
                Err(e) => tracing::warn!(source, error = %e, "a rotated file can't be read"),
            }
        }
        scan
    }

    /// Reads what a late writer put behind the end of the generation before.
    fn late_lines(&self, place: Place, route: &Route, batch: &mut Batch) -> Result<Previous> {
        let kept = self.kept.opened.iter().filter_map(|opened| Seen::again(opened).ok());
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
            let mut reading = self.reading(&seen.opened, generation, place)?;
            // A full batch leaves the rest to the next pull.
            let _ = read_on(&seen.opened, &mut reading, batch, &mut { READ_MAX_BYTES })?;
            reached = self.remember(&seen.opened, reading);
            seen.opened.was_read_to(&reached);
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
        let mut reading = self.reading(&seen.opened, generation, place)?;
        while read_on(&seen.opened, &mut reading, batch, &mut { u64::MAX })?.is_break() {}
        reading.end(batch);
        Ok(())
    }

    /// Says that what is behind `end` in a compressed file can't be read.
    fn pass(&self, seen: &Seen, end: &Place, batch: &mut Batch) -> Result<()> {
        let source = self.config.source.as_str();
        tracing::warn!(source, offset = end.position, "a compressed file can't be read to its end");
        let text = format!("unreadable {}:{}", hex::encode(seen.identity()?), end.position);
        batch.event(gap_event(source, &text, end, GapReason::Unreadable, self.now));
        Ok(())
    }
}

impl Previous {
    fn nothing_of(seen: &Seen) -> Self {
        Self { place: seen.start(), seen: Some(seen.clone()), is_done: true }
    }
}

impl Seen {
    /// What tells the generation from others, also if none of it can be read.
    fn identity(&self) -> Result<Digest> {
        match self.generation {
            Some(generation) => Ok(generation),
            None => self.opened.fingerprint().map_err(unreadable),
        }
    }
}

/// Reads to the end of the file, until the batch is full, or until `left` bytes
/// were read.
fn read_on(
    opened: &Opened,
    reading: &mut Reading<'_>,
    batch: &mut Batch,
    left: &mut u64,
) -> Result<ControlFlow<()>> {
    let mut buf = vec![0; CHUNK_BYTES];
    loop {
        let n = opened.read_at(&mut buf, reading.next_offset()).map_err(unreadable)?;
        if n == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        *left = left.saturating_sub(n as u64);
        if reading.push(&buf[..n], batch).is_break() || *left == 0 {
            return Ok(ControlFlow::Break(()));
        }
    }
}

fn unreadable(e: io::Error) -> Error {
    Error::from(e).context("the file can't be read")
}

/// Leaves out files that are the beginning of another one, as while the live file
/// is being copied away. The one at `keep` stays.
fn without_copies(order: &mut Vec<Seen>, keep: Option<usize>) -> Result<()> {
    let mut copies = vec![false; order.len()];
    for i in 0..order.len() {
        for j in 0..order.len() {
            if i == j || copies[i] || copies[j] || keep == Some(i) {
                continue;
            }
            // Of two equal ones the older name goes, which is the copy.
            let is_older = i < j || keep == Some(j);
            copies[i] = order[i].is_copy_of(&order[j], is_older)?;
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
