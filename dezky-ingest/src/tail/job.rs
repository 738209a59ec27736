//! A pull on files.
//!
//! A pull is one blocking operation: it opens the live file, finds the generation of the cursor,
//! reads on, and continues with younger generations.

mod route;
mod scan;

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use dezky_core::{Error, ErrorKind, Pull, PullLimits, Result, Timestamp, Waiting};

use self::route::{Route, is_not_older};
use super::config::TailConfig;
use super::frame::Framer;
use super::gzip::Budget;
use super::opened::{CHUNK_BYTES, Opened, Seen, Twin};
use super::{Batch, Cursor, Digest, GapReason, Heads, LineDecoder, Place, Reading, gap_event};

/// How often the directory is listed until two listings agree.
const SCANS: usize = 5;

/// The maximum number of bytes that a pull reads in addition to [`PullLimits::max_bytes`]: a longer
/// line takes several pulls.
const READ_MAX_BYTES: u64 = 64 << 20;

/// The maximum number of bytes of compressed files that a pull decodes just to reach the start of
/// reading.
const DECODE_MAX_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };

/// The length from which on an unterminated line is remembered, so that it is not read from its
/// beginning again.
const REMEMBERED_BYTES: usize = CHUNK_BYTES;

/// State between pulls. It only saves repeated work, and keeps files open that were renamed or
/// removed meanwhile, so that they can be read to their end.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache {
    opened: Vec<Arc<Opened>>,
    /// Compressed generations that lines are compared with.
    twins: Vec<Arc<Opened>>,
    partial: Option<Arc<Partial>>,
    /// The bytes that were waiting at the end of the last pull, and whether that was logged.
    pub(super) waiting: Option<(Waiting, bool)>,
}

/// The beginning of an unterminated line.
#[derive(Debug)]
struct Partial {
    /// Device and inode.
    file: (u64, u64),
    framer: Framer,
}

/// The end of the generation before the current one.
struct Previous {
    place: Place,
    seen: Option<Seen>,
    /// Whether an earlier pull had reached its end, and it has not grown.
    is_done: bool,
    /// The number of bytes after its last line.
    waiting: u64,
}

/// The state of a pull while it reads.
struct Progress<'r> {
    batch: Batch,
    /// The current place.
    place: Option<Place>,
    previous: Option<Previous>,
    /// Whether a line was taken.
    moved: bool,
    /// Whether the pull reached its bound within a file.
    is_cut_short: bool,
    /// The index of the current generation in the route.
    stopped_in: usize,
    /// The number of bytes after the last line.
    waiting: u64,
    /// Generations on the way without a complete line.
    unfinished: Vec<&'r Seen>,
}

pub(super) struct Job {
    config: Arc<TailConfig>,
    decoder: Arc<dyn LineDecoder>,
    cache: Cache,
    budget: Arc<Budget>,
    now: Timestamp,
    limits: PullLimits,
    /// Compressed files that were opened in this pull.
    decoders: RefCell<Vec<Arc<Opened>>>,
    /// The last unterminated line.
    partial: RefCell<Option<Arc<Partial>>>,
    /// The first lines of finished generations.
    heads: RefCell<Heads>,
    /// The rotated files, once listed.
    siblings: RefCell<Option<Vec<Seen>>>,
    /// Compressed files that lines are compared with in this pull.
    twins: RefCell<Vec<Arc<Opened>>>,
}

impl Job {
    pub(super) fn new(
        config: Arc<TailConfig>,
        decoder: Arc<dyn LineDecoder>,
        cache: Cache,
        now: Timestamp,
        limits: PullLimits,
    ) -> Self {
        let budget = Arc::new(Budget::default());
        budget.set(DECODE_MAX_BYTES);
        Self {
            config,
            decoder,
            cache,
            budget,
            now,
            limits,
            decoders: RefCell::default(),
            partial: RefCell::default(),
            heads: RefCell::default(),
            siblings: RefCell::default(),
            twins: RefCell::default(),
        }
    }

    pub(super) fn run(self, cursor: Option<&(Cursor, String)>) -> Result<(Pull, Cache)> {
        for opened in self.cache.opened.iter().chain(&self.cache.twins) {
            opened.allow(&self.budget);
        }
        *self.heads.borrow_mut() =
            cursor.map(|(cursor, _)| cursor.heads.clone()).unwrap_or_default();
        let done = self.pull(cursor);
        if !self.budget.is_spent() {
            return done;
        }
        // The decoded part is kept, and the next pull continues from there.
        tracing::debug!(source = self.config.source, "a compressed file is being skipped through");
        let mut cache = self.cache;
        for opened in self.decoders.take() {
            if !cache.opened.iter().any(|known| Arc::ptr_eq(known, &opened)) {
                cache.opened.push(opened);
            }
        }
        Ok((Pull { more: true, ..Pull::default() }, cache))
    }

    fn pull(&self, cursor: Option<&(Cursor, String)>) -> Result<(Pull, Cache)> {
        let live = self.live()?;
        let route = match cursor {
            None => Some(self.route_from_start(live.clone(), None, None)?),
            Some((cursor, _)) => self.resume(cursor, live.clone())?,
        };
        let Some(route) = route else {
            // The live file may reappear; until then nothing is known.
            let waiting = live.is_none().then_some(Waiting { reason: "no_file", bytes: 0 });
            let cache = Cache { waiting: self.say(waiting), ..self.cache.clone() };
            return Ok((Pull::default(), cache));
        };
        let mut progress = self.begin(&route, cursor)?;
        let was_late = progress.previous.as_ref().is_some_and(|previous| !previous.is_done);
        if self.read(&route, &mut progress)?.is_break() {
            tracing::warn!(source = self.config.source, "the file changed while it was read");
            return Ok((Pull { more: true, ..Pull::default() }, self.cache.clone()));
        }
        let is_moved = progress.moved || was_late || route.gap.is_some();
        let lost = cursor.filter(|_| route.gap.is_some() && progress.place.is_none());
        if let (Some((lost, _)), Some(live)) = (lost, &live) {
            // After a gap, the cursor must move even if there is nothing to read.
            let mtime_ns = lost.at.mtime_ns.unwrap_or(live.age.mtime_ns);
            progress.place = Some(Place::start(live.opened.inode, None, Some(mtime_ns)));
        }
        self.end(&route, live.as_ref(), progress, is_moved)
    }

    /// Records lines lost before the route, and reads late lines of the generation before it.
    fn begin<'r>(
        &self,
        route: &'r Route,
        cursor: Option<&(Cursor, String)>,
    ) -> Result<Progress<'r>> {
        let source = self.config.source.as_str();
        let mut batch = Batch::new(self.limits.max_events, self.limits.max_bytes);
        if let (Some(reason), Some((cursor, text))) = (route.gap, cursor) {
            tracing::warn!(
                source,
                reason = reason.code(),
                last_offset = cursor.at.position,
                "lines of the file may be lost: its earlier content is gone"
            );
            batch.event(gap_event(source, text, &cursor.at, reason, self.now));
            self.heads.borrow_mut().remember(&cursor.at);
        }
        if let Some(oldest) = route.order.first().filter(|_| route.left_out) {
            tracing::warn!(
                source,
                "there are more rotated files than max_siblings: the oldest are left out"
            );
            let text = format!("left out before {}", oldest.identity()?);
            batch.event(gap_event(source, &text, &oldest.start(), GapReason::LeftOut, self.now));
        }
        let known = cursor.and_then(|(cursor, _)| cursor.previous.clone());
        let previous = match known {
            // After a gap it is useless.
            Some(place) if route.gap.is_none() => Some(self.late_lines(place, route, &mut batch)?),
            _ => None,
        };
        Ok(Progress {
            batch,
            place: route.at.clone(),
            waiting: previous.as_ref().map_or(0, |previous| previous.waiting),
            previous,
            moved: false,
            is_cut_short: false,
            stopped_in: 0,
            unfinished: Vec::new(),
        })
    }

    /// Reads the generations of the route until the batch is full. Breaks if a file was truncated
    /// or replaced meanwhile: then the whole pull is discarded, and the next one starts over.
    fn read<'r>(&self, route: &'r Route, progress: &mut Progress<'r>) -> Result<ControlFlow<()>> {
        let Progress {
            batch,
            place,
            previous,
            moved,
            is_cut_short,
            stopped_in,
            waiting,
            unfinished,
        } = progress;
        let mut left = READ_MAX_BYTES + self.limits.max_bytes as u64;
        for (i, seen) in route.order.iter().enumerate() {
            let Some(generation) = seen.generation else {
                unfinished.push(seen);
                continue;
            };
            if batch.is_full() {
                break;
            }
            let crosses = i > 0 || place.is_none();
            let mut from = match place {
                Some(at) if !crosses => at.clone(),
                _ => seen.start(),
            };
            // An old cursor does not have it.
            from.generation = Some(generation);
            if crosses && from.repeat > 0 {
                from.reach = self.reach(generation, place.as_ref()).unwrap_or(from.reach);
            }
            let before = from.position;
            let mut reading = self.reading(seen, generation, from)?;
            let flow = read_on(&seen.opened, &mut reading, batch, &mut left)?;
            let open = reading.open_bytes();
            let mut reached = self.remember(&seen.opened, reading);
            if reached.position > before {
                reached.head = None;
                if !seen.still_holds(&reached)? {
                    return Ok(ControlFlow::Break(()));
                }
                *moved = true;
                reached.inode = seen.opened.inode;
                reached.mtime_ns = Some(seen.age.mtime_ns);
                reached.born_ns = seen.opened.born_ns;
                reached.head = seen.opened.head(reached.position).map_err(unreadable)?;
            }
            if reached.position == 0 {
                // It has only an unterminated line.
                unfinished.push(seen);
                *is_cut_short = left == 0;
                if *is_cut_short {
                    break;
                }
                continue;
            }
            seen.opened.was_read_to(&reached);
            *waiting = open + if crosses { 0 } else { *waiting };
            if crosses {
                self.cross(&route.order[*stopped_in], place.take(), previous, batch)?;
            }
            // Generations without a complete line were passed on the way.
            for seen in unfinished.drain(..) {
                if seen.opened.is_unreadable() {
                    self.pass(seen, &seen.start(), batch)?;
                } else {
                    self.finish(&Previous::nothing_of(seen), batch)?;
                }
            }
            *place = Some(reached);
            *stopped_in = i;
            if flow.is_break() {
                *is_cut_short = left == 0;
                break;
            }
        }
        if *moved && let Some(done) = previous.take_if(|previous| previous.is_done) {
            self.finish(&done, batch)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Makes the pull and its cursor from the progress. Without a new cursor (not `is_moved`),
    /// items found on the way are found again by a later pull.
    fn end(
        &self,
        route: &Route,
        live: Option<&Seen>,
        progress: Progress<'_>,
        is_moved: bool,
    ) -> Result<(Pull, Cache)> {
        let Progress { batch, place, previous, .. } = progress;
        let waiting = waiting_of(progress.waiting, &progress.unfinished);
        let unread = route.order.get(progress.stopped_in..).unwrap_or_default();
        let goes_on = |at: &Place| unread.first().is_some_and(|seen| seen.may_go_on(at.position));
        let is_behind = place.as_ref().is_some_and(goes_on)
            || unread.iter().skip(1).any(|seen| seen.generation.is_some());
        let more = progress.is_cut_short || (batch.is_full() && is_behind);

        // Unread files stay open, so that they can be read even if they are removed.
        let mut opened: Vec<Arc<Opened>> = Vec::new();
        let previous_seen = previous.as_ref().and_then(|previous| previous.seen.as_ref());
        for seen in unread.iter().chain(previous_seen).chain(live) {
            if !opened.iter().any(|known| known.is(&seen.opened)) {
                opened.push(Arc::clone(&seen.opened));
            }
        }
        let partial = self.partial.take().or_else(|| self.cache.partial.clone());
        let mut twins = self.twins.take();
        if twins.is_empty() && place.as_ref().is_some_and(|at| at.repeat > 0) {
            twins.clone_from(&self.cache.twins);
        }
        let cache = Cache { opened, twins, partial, waiting: self.say(waiting) };
        log_quarantine(&self.config.source, &batch);
        let heads = self.heads.take();
        let Some(at) = place.filter(|_| is_moved) else {
            return Ok((Pull { more, ..Pull::default() }, cache));
        };
        let cursor = Cursor { at, previous: previous.map(|previous| previous.place), heads };
        let cursor = cursor.to_string();
        // An unreadable cursor must not be committed, because it would stop the tail permanently.
        if Cursor::parse(&cursor).is_err() {
            let what = "the file tail created a cursor that it can't read";
            return Err(Error::new(ErrorKind::Internal, what));
        }
        let Batch { events, quarantine, skipped, .. } = batch;
        Ok((Pull { events, quarantine, skipped, cursor: Some(cursor), more }, cache))
    }

    /// Logs waiting data once, at the second pull that finds it unchanged, because a line may just
    /// be being written.
    fn say(&self, waiting: Option<Waiting>) -> Option<(Waiting, bool)> {
        let waiting = waiting?;
        let Some((_, is_said)) = self.cache.waiting.filter(|(known, _)| *known == waiting) else {
            return Some((waiting, false));
        };
        if !is_said {
            let Waiting { reason, bytes } = waiting;
            let source = self.config.source.as_str();
            tracing::info!(source, reason, bytes, "data is waiting that can't be taken yet");
        }
        Some((waiting, true))
    }

    /// Moves from the `end` of the generation `left`, if one was read, to a younger one.
    fn cross(
        &self,
        left: &Seen,
        end: Option<Place>,
        previous: &mut Option<Previous>,
        batch: &mut Batch,
    ) -> Result<()> {
        let Some(mut place) = end else { return Ok(()) };
        // A copy without further content was written later than its original.
        place.mtime_ns = place.mtime_ns.max(Some(left.age.mtime_ns));
        self.heads.borrow_mut().remember(&place);
        if let Some(older) = previous.take() {
            self.finish(&older, batch)?;
        }
        if left.opened.is_unreadable() {
            return self.pass(left, &place, batch);
        }
        *previous = Some(Previous { place, seen: Some(left.clone()), is_done: false, waiting: 0 });
        Ok(())
    }

    /// Continues at `place`, after the remembered part of an unterminated line.
    fn reading<'a>(
        &'a self,
        seen: &'a Seen,
        generation: Digest,
        place: Place,
    ) -> Result<Reading<'a>> {
        let TailConfig { source, max_line_bytes, .. } = &*self.config;
        let opened = &seen.opened;
        let (repeat, reach) = (place.repeat, place.reach);
        let mut partial = None;
        for known in self.partial.borrow().iter().chain(&self.cache.partial) {
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
        let mut reading =
            Reading::new(source, decoder, *max_line_bytes, generation, self.now, place);
        if repeat > 0 {
            // Looked up with the first line.
            let mut twins: Option<Result<Vec<Twin>>> = None;
            reading = reading.with_repeats(Box::new(move |offset, bytes, is_whole| {
                match twins.get_or_insert_with(|| self.twins(seen)) {
                    // There is nothing left to compare with.
                    Ok(twins) if twins.is_empty() => offset < reach,
                    Ok(twins) => {
                        twins.iter_mut().any(|twin| twin.has_line(offset, bytes, is_whole))
                    }
                    // Treating a line as repeated loses nothing.
                    Err(_) => true,
                }
            }));
        }
        Ok(match partial {
            Some(framer) => reading.with_framer(framer),
            None => reading,
        })
    }

    /// Remembers the unterminated line in which `reading` stopped. Returns the place.
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

    /// Reads lines that a late writer appended to the previous generation.
    fn late_lines(&self, place: Place, route: &Route, batch: &mut Batch) -> Result<Previous> {
        let kept = self.cache.opened.iter().filter_map(|opened| Seen::again(opened).ok());
        let is_current = |seen: &Seen| route.order.iter().any(|s| s.opened.is(&seen.opened));
        let holds = |seen: &Seen| !is_current(seen) && seen.holds(&place).unwrap_or(false);
        let mut seen = kept.into_iter().find(|seen| seen.is_file_of(&place) && holds(seen));
        if seen.is_none() {
            let mut holding = self.scan(None)?.siblings;
            holding.retain(&holds);
            if holding.is_empty() {
                holding = self.strays(&place, None)?;
                holding.retain(|seen| !is_current(seen));
            }
            // Not one that is known to have been finished earlier.
            seen = self
                .choose(&place, holding)
                .filter(|seen| seen.is_file_of(&place) || is_not_older(seen, &place));
        }
        let Some(seen) = seen else {
            // It was removed after it had been read to its end.
            return Ok(Previous { place, seen: None, is_done: true, waiting: 0 });
        };
        let before = place.position;
        let mut reached = place.clone();
        let mut waiting = 0;
        if let Some(generation) = seen.generation {
            let mut reading = self.reading(&seen, generation, place)?;
            // If the batch is full, the next pull reads the rest.
            let _ = read_on(&seen.opened, &mut reading, batch, &mut { READ_MAX_BYTES })?;
            waiting = reading.open_bytes();
            reached = self.remember(&seen.opened, reading);
            if reached.position > before {
                reached.head = seen.opened.head(reached.position).map_err(unreadable)?;
                reached.mtime_ns = Some(seen.age.mtime_ns);
                self.heads.borrow_mut().update(&reached);
            }
            seen.opened.was_read_to(&reached);
        }
        let is_done = reached.position == before;
        Ok(Previous { place: reached, seen: Some(seen), is_done, waiting })
    }

    /// Takes the rest after the last line of a generation that no longer grows.
    fn finish(&self, done: &Previous, batch: &mut Batch) -> Result<()> {
        let Some(seen) = &done.seen else { return Ok(()) };
        let place = done.place.clone();
        let generation = match place.generation {
            Some(generation) => generation,
            // It has only an unterminated line. The generation is the same once that line ends, so
            // its key will be the same.
            None => seen.opened.first_line()?.unwrap_or_else(|unfinished| unfinished),
        };
        let mut reading = self.reading(seen, generation, place)?;
        while read_on(&seen.opened, &mut reading, batch, &mut { u64::MAX })?.is_break() {}
        reading.end(batch);
        Ok(())
    }

    /// Records that the part of a compressed file after `end` can't be read.
    fn pass(&self, seen: &Seen, end: &Place, batch: &mut Batch) -> Result<()> {
        let source = self.config.source.as_str();
        tracing::warn!(source, offset = end.position, "a compressed file can't be read to its end");
        let text = format!("unreadable {}:{}", seen.identity()?, end.position);
        batch.event(gap_event(source, &text, end, GapReason::Unreadable, self.now));
        Ok(())
    }
}

impl Previous {
    fn nothing_of(seen: &Seen) -> Self {
        Self { place: seen.start(), seen: Some(seen.clone()), is_done: true, waiting: 0 }
    }
}

impl Seen {
    /// The identity of the generation, even if nothing of it can be read.
    fn identity(&self) -> Result<String> {
        Ok(match (self.generation, self.repeat) {
            (Some(generation), 0) => hex::encode(generation),
            (Some(generation), repeat) => format!("{} {repeat}", hex::encode(generation)),
            (None, _) => hex::encode(self.opened.fingerprint().map_err(unreadable)?),
        })
    }
}

/// Reads until the end of the file, until the batch is full, or until `left` bytes were read.
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

/// Data that can't be taken yet: `bytes` after the last newline, and files without a complete line.
fn waiting_of(bytes: u64, unfinished: &[&Seen]) -> Option<Waiting> {
    let bytes_of = |is_compressed: bool| -> u64 {
        let files = unfinished.iter().filter(|seen| seen.opened.is_compressed() == is_compressed);
        files.map(|seen| seen.bytes).sum()
    };
    match (bytes + bytes_of(false), bytes_of(true)) {
        (0, 0) => None,
        (0, bytes) => Some(Waiting { reason: "incomplete_compression", bytes }),
        (bytes, _) => Some(Waiting { reason: "no_newline", bytes }),
    }
}

fn unreadable(e: io::Error) -> Error {
    Error::from(e).context("the file can't be read")
}

fn log_quarantine(source: &str, batch: &Batch) {
    let mut reasons: Vec<&str> = batch.quarantine.iter().map(|item| item.reason.as_str()).collect();
    reasons.sort_unstable();
    for same in reasons.chunk_by(|a, b| a == b) {
        tracing::warn!(source, reason = same[0], lines = same.len(), "lines were quarantined");
    }
}
