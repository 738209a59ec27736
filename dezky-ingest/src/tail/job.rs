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

use dezky_core::{Error, ErrorKind, Pull, PullLimits, Result, Timestamp, Waiting};

use super::config::TailConfig;
use super::core::{
    Age, Batch, Cursor, GapReason, HEAD_BYTES, Head, Heads, Place, Reading, Rotated, gap_event,
};
use super::frame::Framer;
use super::gzip::Budget;
use super::opened::{CHUNK_BYTES, Opened, Seen, Twin, identity, mtime_ns};
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

/// The most earlier generations with the same first line with which a line is
/// compared.
const MAX_TWINS: usize = 16;

/// What is kept between pulls, only so that work is not done again, and so that a
/// file that was renamed or removed meanwhile can be read to its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    opened: Vec<Arc<Opened>>,
    /// Compressed generations with which lines are compared.
    twins: Vec<Arc<Opened>>,
    partial: Option<Arc<Partial>>,
    /// What waited at the end of the last pull, and whether the log says so.
    pub(super) waiting: Option<(Waiting, bool)>,
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
    /// The bytes behind its last line.
    waiting: u64,
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

/// A file in the directory.
struct Entry {
    /// With its name, if that says that it is a rotated file.
    age: Age,
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
    /// The first lines of generations that are done.
    heads: RefCell<Heads>,
    /// The rotated files, once they were looked at.
    siblings: RefCell<Option<Vec<Seen>>>,
    /// Compressed files with which lines are compared in this pull.
    twins: RefCell<Vec<Arc<Opened>>>,
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
        Self {
            config,
            decoder,
            kept,
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

    pub(super) fn run(self, cursor: Option<&(Cursor, String)>) -> Result<(Pull, Kept)> {
        for opened in self.kept.opened.iter().chain(&self.kept.twins) {
            opened.allow(&self.budget);
        }
        *self.heads.borrow_mut() =
            cursor.map(|(cursor, _)| cursor.heads.clone()).unwrap_or_default();
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
            None => Some(self.route_from_start(live.clone(), None, None)?),
            Some((cursor, _)) => self.resume(cursor, live.clone())?,
        };
        let Some(route) = route else {
            // The live file may come back; until then nothing is known.
            let waiting = live.is_none().then_some(Waiting { reason: "no_file", bytes: 0 });
            let kept = Kept { waiting: self.say(waiting), ..self.kept.clone() };
            return Ok((Pull::default(), kept));
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
            self.heads.borrow_mut().remember(&cursor.at);
        }
        if let Some(oldest) = route.order.first().filter(|_| route.left_out) {
            tracing::warn!(
                source,
                "more rotated files than are looked at: the oldest are left out"
            );
            let text = format!("left out before {}", oldest.identity()?);
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
        let mut waiting = previous.as_ref().map_or(0, |previous| previous.waiting);
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
            if crosses && from.repeat > 0 {
                from.reach = self.reach(generation, place.as_ref()).unwrap_or(from.reach);
            }
            let before = from.position;
            let mut reading = self.reading(seen, generation, from)?;
            let flow = read_on(&seen.opened, &mut reading, &mut batch, &mut left)?;
            let open = reading.open_bytes();
            let mut reached = self.remember(&seen.opened, reading);
            if reached.position > before {
                reached.head = None;
                if !seen.still_holds(&reached)? {
                    // Truncated or replaced under the reading: nothing of it
                    // counts, and the next pull sees what is there then.
                    tracing::warn!(source, "the file changed while it was read");
                    return Ok((Pull { more: true, ..Pull::default() }, self.kept.clone()));
                }
                moved = true;
                reached.inode = seen.opened.inode;
                reached.mtime_ns = Some(seen.age.mtime_ns);
                reached.born_ns = seen.opened.born_ns;
                reached.head = seen.opened.head(reached.position).map_err(unreadable)?;
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
            waiting = open + if crosses { 0 } else { waiting };
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
        let waiting = waiting_of(waiting, &unfinished);
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
        let mut twins = self.twins.take();
        if twins.is_empty() && place.as_ref().is_some_and(|at| at.repeat > 0) {
            twins.clone_from(&self.kept.twins);
        }
        let kept = Kept { opened: kept, twins, partial, waiting: self.say(waiting) };
        log_quarantine(source, &batch);
        let heads = self.heads.take();
        let cursor = place.filter(|_| consumed).map(|at| {
            Cursor { at, previous: previous.map(|previous| previous.place), heads }.to_string()
        });
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

    /// Says once in the log what still waits at the second look, when it is no line
    /// that is just being written.
    fn say(&self, waiting: Option<Waiting>) -> Option<(Waiting, bool)> {
        let waiting = waiting?;
        let Some((_, is_said)) = self.kept.waiting.filter(|(known, _)| *known == waiting) else {
            return Some((waiting, false));
        };
        if !is_said {
            let Waiting { reason, bytes } = waiting;
            let source = self.config.source.as_str();
            tracing::info!(source, reason, bytes, "something waits that can't be taken yet");
        }
        Some((waiting, true))
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
        let Some(mut place) = end else { return Ok(()) };
        // A copy that held nothing more was written later than what it is a copy of.
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

    /// Reads on at `place`, behind what is remembered of a line without an end.
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
        let mut reading =
            Reading::new(source, decoder, *max_line_bytes, generation, self.now, place);
        if repeat > 0 {
            // Looked for with the first line that is there.
            let mut twins: Option<Result<Vec<Twin>>> = None;
            reading = reading.with_repeats(Box::new(move |offset, bytes, is_whole| {
                match twins.get_or_insert_with(|| self.twins(seen)) {
                    // Nothing is left to compare with.
                    Ok(twins) if twins.is_empty() => offset < reach,
                    Ok(twins) => {
                        twins.iter_mut().any(|twin| twin.has_line(offset, bytes, is_whole))
                    }
                    // To take a line for a repeated one loses nothing.
                    Err(_) => true,
                }
            }));
        }
        Ok(match partial {
            Some(framer) => reading.with_framer(framer),
            None => reading,
        })
    }

    /// The earlier generations that begin as `seen` does and are still there, the
    /// youngest ones.
    fn twins(&self, seen: &Seen) -> Result<Vec<Twin>> {
        if self.siblings.borrow().is_none() {
            self.scan(None)?;
        }
        let siblings = self.siblings.borrow();
        let mut twins = Vec::new();
        for other in siblings.iter().flatten() {
            if other.generation == seen.generation
                && !other.opened.is(&seen.opened)
                && (seen.is_live || other.age.is_older_than(&seen.age))
                && !other.is_copy_of(seen)?
                && !seen.is_copy_of(other)?
            {
                twins.push(other);
            }
        }
        let youngest = twins.split_off(twins.len().saturating_sub(MAX_TWINS));
        let mut used = self.twins.borrow_mut();
        for twin in &youngest {
            if twin.opened.is_compressed() && !used.iter().any(|known| known.is(&twin.opened)) {
                used.push(Arc::clone(&twin.opened));
            }
        }
        Ok(youngest.into_iter().map(|twin| Twin::new(Arc::clone(&twin.opened))).collect())
    }

    /// Says of the generations from `first` on how many earlier ones began as they
    /// do. Those before end at `pivot`, which is in the first of `order` unless that
    /// is among them itself.
    fn number(&self, order: &mut [Seen], first: usize, pivot: Option<&Place>) -> Result<()> {
        for i in first..order.len() {
            let Some(generation) = order[i].generation else { continue };
            let older = self.lying_beside(order, generation)?;
            let lying = u32::try_from(older.len()).unwrap_or(u32::MAX);
            // The pivot, or what is remembered of an earlier one.
            let of_pivot = pivot.filter(|at| at.generation == Some(generation)).and_then(Head::of);
            let last = of_pivot.or_else(|| self.heads.borrow().get(&generation));
            let is_same = |seen: &&Seen| seen.generation == Some(generation);
            let is_reread = |seen: &&Seen| {
                // A younger name than that of the pivot is not the pivot again.
                let found = order[..first].first().filter(|_| of_pivot.is_some());
                last.is_some_and(|last| seen.was_done_with(last.mtime_ns, found))
            };
            let count = |seen: usize| u32::try_from(seen).unwrap_or(u32::MAX);
            let before = &order[first..i];
            let (repeat, reach) = match last {
                // As it was the first time.
                Some(last) if is_reread(&&order[i]) => {
                    let behind = &order[i + 1..];
                    let younger = behind.iter().filter(is_same).filter(is_reread).count();
                    let found = order[..first].iter().filter(is_same).count();
                    (last.repeat.saturating_sub(count(younger + found)), last.reach)
                }
                Some(last) => {
                    let new = before.iter().filter(is_same).filter(|seen| !is_reread(seen)).count();
                    let base = last.repeat.saturating_add(1).max(lying);
                    (base.saturating_add(count(new)), last.reach)
                }
                None => (lying.saturating_add(count(before.iter().filter(is_same).count())), 0),
            };
            let reach = older.iter().map(Seen::known_length).fold(reach, u64::max);
            (order[i].repeat, order[i].reach) = (repeat, reach);
        }
        Ok(())
    }

    /// How far the last generation with this first line was read, which ends at `left`
    /// or was done with before.
    fn reach(&self, generation: Digest, left: Option<&Place>) -> Option<u64> {
        let left = left.filter(|left| left.generation == Some(generation)).and_then(Head::of);
        let last = left.or_else(|| self.heads.borrow().get(&generation));
        last.map(|last| last.reach)
    }

    /// The rotated files that begin with this first line, beside those in `order` and
    /// their copies.
    fn lying_beside(&self, order: &[Seen], generation: Digest) -> Result<Vec<Seen>> {
        let mut lying = Vec::new();
        for seen in self.siblings.borrow().iter().flatten() {
            let mut is_other = seen.generation == Some(generation);
            for known in order {
                is_other = is_other && !seen.opened.is(&known.opened) && !seen.is_copy_of(known)?;
            }
            if is_other {
                lying.push(seen.clone());
            }
        }
        Ok(lying)
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
        let known = self.kept.opened.iter().chain(&self.kept.twins);
        let known = known.into_iter().find(|known| known.serves(&opened)).cloned();
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
        let seen = self.open(&self.config.path, None).map_err(unreadable)?;
        Ok(seen.map(|seen| Seen { is_live: true, ..seen }))
    }

    /// Every generation there is, or of the rotated ones those written at `since`
    /// or later; the oldest first.
    /// `lost` is the end of what was read before.
    fn route_from_start(
        &self,
        live: Option<Seen>,
        since: Option<i64>,
        lost: Option<&Place>,
    ) -> Result<Route> {
        let scan = self.scan(live.as_ref())?;
        let counts = |mtime_ns| since.is_none_or(|since| mtime_ns >= since);
        let left_out = scan.left_out.into_iter().any(counts);
        let mut order = scan.siblings;
        order.retain(|seen| counts(seen.age.mtime_ns));
        order.extend(live);
        without_copies(&mut order, None)?;
        self.number(&mut order, 0, lost)?;
        Ok(Route { at: None, order, gap: None, left_out })
    }

    /// Finds the generation of `at` and what is younger; `None` if the files
    /// don't hold still or the live one is missing.
    fn resume(&self, cursor: &Cursor, live: Option<Seen>) -> Result<Option<Route>> {
        let at = &cursor.at;
        if at.position == 0 {
            return self.route_from_start(live, at.mtime_ns, None).map(Some);
        }
        let mut live = live;
        let mut listing = None;
        for _ in 0..SCANS {
            // The live file is asked before the directory: what was copied or
            // renamed away from it by then is found there.
            let is_in_live = match &live {
                Some(seen) => seen.holds(at)?,
                None => false,
            };
            let in_live = |live: Option<Seen>| {
                let order = live.into_iter().collect();
                Ok(Some(Route { at: Some(at.clone()), order, gap: None, left_out: false }))
            };
            let file = live.as_ref().filter(|seen| is_in_live && seen.is_file_of(at));
            *self.siblings.borrow_mut() = None;
            let mut found = match file {
                Some(seen) => self.copied_away(at, seen)?,
                None => None,
            };
            if file.is_some() && found.is_none() {
                return in_live(live);
            }
            let scan = self.scan(live.as_ref())?;
            if found.is_none() {
                found = self.find(at, live.as_ref(), is_in_live, &scan)?;
            }
            if is_in_live && found.is_none() {
                return in_live(live);
            }
            if let Some(found) = found {
                let mut order: Vec<_> = scan
                    .siblings
                    .into_iter()
                    .filter(|seen| {
                        !seen.opened.is(&found.opened) && seen.age.may_be_younger_than(&found.age)
                    })
                    .collect();
                let nameless = self.nameless(live.as_ref(), &found, &order).into_iter();
                // One that was read to its end is only looked at once more.
                let is_previous =
                    |seen: &Seen| cursor.previous.as_ref().is_some_and(|p| seen.is_file_of(p));
                order.extend(nameless.filter(|seen| !is_previous(seen)));
                order.sort_by(|a, b| a.age.cmp(&b.age));
                order.insert(0, found);
                order.extend(live);
                without_copies(&mut order, Some(0))?;
                let mut at = at.clone();
                at.generation = order[0].generation;
                self.number(&mut order, 1, Some(&at))?;
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

    /// The copy that was made of `file` before that was emptied and begun anew with what
    /// had been read up to `at`. It holds the same place, but goes on in another way,
    /// and was made after the file.
    fn copied_away(&self, at: &Place, file: &Seen) -> Result<Option<Seen>> {
        if at.position > HEAD_BYTES || !file.may_go_on(at.position) {
            // As much as that does not come again by chance.
            return Ok(None);
        }
        if self.siblings.borrow().is_none() {
            self.scan(Some(file))?;
        }
        let done = self.done_alike(at);
        for seen in self.siblings.borrow().iter().flatten() {
            let is_made_beside = match seen.age.compare_names(&file.age) {
                _ if file.is_live => true,
                // Beside a file that was rotated since, younger ones are made later too.
                Some(by_name) => by_name == std::cmp::Ordering::Less,
                // And beside one that was removed: these are written later as well.
                None => file.age.name.is_none() && seen.age.mtime_ns <= file.age.mtime_ns,
            };
            let is_made_later = is_made_beside && seen.opened.born_ns > file.opened.born_ns;
            let is_plain = !seen.opened.is_compressed();
            let is_written_later = match done {
                // Any that was done with was written before.
                Some(done) => seen.age.mtime_ns > done.mtime_ns,
                None if knows_what_was_done(at, done) => true,
                None => {
                    is_not_older(seen, at) && (is_plain || Some(seen.age.mtime_ns) > at.mtime_ns)
                }
            };
            if is_made_later && is_written_later && seen.holds(at)? && !seen.begins(file)? {
                return Ok(Some(seen.clone()));
            }
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
        let route = self.route_from_start(live, Some(since), Some(at))?;
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
    /// files. One that can't be read is none. If it `is_in_live`, which is another file
    /// than the one that was read and may only begin alike, one that was done with is none
    /// either.
    fn find(
        &self,
        at: &Place,
        live: Option<&Seen>,
        is_in_live: bool,
        scan: &Scan,
    ) -> Result<Option<Seen>> {
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
        let other_live = live.filter(|_| is_in_live);
        let found = match self.choose(at, holding) {
            None => self.choose(at, self.strays(at, live)?),
            Some(file) if file.is_file_of(at) => Some(self.copied_away(at, &file)?.unwrap_or(file)),
            found => found,
        };
        let found = match (found, other_live) {
            (Some(seen), Some(live)) => self.is_beside(&seen, at, live)?.then_some(seen),
            (found, _) => found,
        };
        if found.is_none() && self.budget.is_spent() {
            return Err(Error::new(ErrorKind::Io, "the way to the cursor is long"));
        }
        Ok(found)
    }

    /// Whether `at` is in `seen`, which holds it, and not in the live file that does too
    /// but is another one than was read.
    fn is_beside(&self, seen: &Seen, at: &Place, live: &Seen) -> Result<bool> {
        if seen.is_file_of(at) || is_not_older(seen, at) {
            return Ok(true);
        }
        // A copy of which it is known that it was not done with, and not one of the live
        // file's own beginning.
        let is_known = knows_what_was_done(at, self.done_alike(at));
        Ok(is_known && at.position <= HEAD_BYTES && !seen.begins(live)?)
    }

    /// The last generation that was done with before the one of `at` and began alike.
    fn done_alike(&self, at: &Place) -> Option<Head> {
        self.heads.borrow().get(&at.generation?)
    }

    /// Of the files that hold `at` the one in which it is: the very file, else the oldest
    /// that was not done with before, as younger ones begin alike. Of copies the plain and
    /// most complete one, and where that has no name any more it has the age of its copy.
    fn choose(&self, at: &Place, holding: Vec<Seen>) -> Option<Seen> {
        let names: Vec<Age> = holding.iter().map(|seen| seen.age.clone()).collect();
        let (same, others): (Vec<_>, Vec<_>) =
            holding.into_iter().partition(|seen| seen.is_file_of(at));
        let (mut younger, mut older): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|seen| is_not_older(seen, at));
        // An earlier generation that begins alike holds the place too, as long as that is
        // within what both have in common: read on there, its lines would come again
        // as those of the later one.
        let done = self.done_alike(at);
        older.retain(|seen| done.is_none_or(|done| seen.age.mtime_ns > done.mtime_ns));
        if at.position <= HEAD_BYTES && knows_what_was_done(at, done) {
            // A copy can be older than what was read: what was written while it was made
            // is not in it.
            younger.append(&mut older);
        }
        let pool = [same, younger, older].into_iter().find(|pool| !pool.is_empty())?;
        let oldest = pool.iter().map(|seen| seen.age.mtime_ns).min();
        pool.into_iter()
            .filter(|seen| Some(seen.age.mtime_ns) == oldest)
            .max_by_key(|seen| (!seen.opened.is_compressed(), seen.bytes))
            .map(|mut seen| {
                let mut of_copy = names.into_iter().filter(|age| age.mtime_ns == seen.age.mtime_ns);
                seen.age.name = seen.age.name.or_else(|| of_copy.find_map(|age| age.name));
                seen
            })
    }

    /// Files that hold `at` though their names don't say that they belong here: only
    /// what is in them tells.
    fn strays(&self, at: &Place, live: Option<&Seen>) -> Result<Vec<Seen>> {
        let mut strays = self.list(Kind::Stray { inode: at.inode })?;
        strays.drain(..strays.len().saturating_sub(self.config.max_siblings));
        let mut holding = Vec::new();
        for entry in strays {
            // What can't be read is none.
            let Ok(Some(seen)) = self.open(&entry.path, None) else { continue };
            let is_live = live.is_some_and(|live| live.opened.is(&seen.opened));
            if !is_live && seen.holds(at).unwrap_or(false) {
                holding.push(seen);
            }
        }
        Ok(holding)
    }

    /// The rotated files, the oldest first, without the live one. The directory
    /// holds still meanwhile, or it is looked through again.
    fn scan(&self, live: Option<&Seen>) -> Result<Scan> {
        let mut scan = Scan::default();
        let mut entries = self.list(Kind::Rotated)?;
        for _ in 0..SCANS {
            scan = self.open_all(live, &mut entries);
            without_copies(&mut scan.siblings, None)?;
            *self.siblings.borrow_mut() = Some(scan.siblings.clone());
            let again = self.list(Kind::Rotated)?;
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

    /// The rotated files in the directory, or the other ones that may be, the oldest
    /// first.
    fn list(&self, kind: Kind) -> Result<Vec<Entry>> {
        let path = &self.config.path;
        let base = path.file_name().and_then(|name| name.to_str());
        let (Some(base), Some(directory)) = (base, path.parent()) else { return Ok(Vec::new()) };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let mut found = Vec::new();
        list_in(directory, &mut found, &|name, inode| {
            kind.takes(Rotated::parse(base, name), base, name, inode)
        })?;
        // A link to a file that is rotated where it lies.
        if let Some((directory, target)) = self.linked() {
            list_in(&directory, &mut found, &|name, inode| {
                let by_name = Rotated::parse_dated(&target, name);
                let by_name = by_name.or_else(|| Rotated::parse(&target, name));
                kind.takes(by_name.filter(|_| name != target), &target, name, inode)
            })?;
        }
        found.sort_by(|a, b| (&a.age, &a.name).cmp(&(&b.age, &b.name)));
        found.dedup_by(|a, b| a.inode != 0 && (a.inode, &a.name) == (b.inode, &b.name));
        Ok(found)
    }

    /// Folder and name of the file to which the live path is a link.
    fn linked(&self) -> Option<(PathBuf, String)> {
        let path = &self.config.path;
        if !std::fs::symlink_metadata(path).ok()?.is_symlink() {
            return None;
        }
        let target = std::fs::canonicalize(path).ok()?;
        let name = target.file_name()?.to_str()?.to_owned();
        Some((target.parent()?.to_owned(), name))
    }

    fn open_all(&self, live: Option<&Seen>, entries: &mut Vec<Entry>) -> Scan {
        let mut scan = Scan {
            listing: entries.iter().map(|entry| (entry.inode, entry.name.clone())).collect(),
            ..Scan::default()
        };
        let source = &self.config.source;
        // One that is being compressed is there twice, until it is done.
        let names = entries.iter().filter_map(|entry| entry.age.name.clone());
        let plain: Vec<Rotated> = names.filter(|name| !name.is_compressed).collect();
        if entries.len() > self.config.max_siblings {
            let left_out = entries.drain(..entries.len() - self.config.max_siblings);
            scan.left_out = left_out.map(|entry| entry.age.mtime_ns).collect();
        }
        for entry in entries.drain(..) {
            let name = entry.age.name.as_ref();
            let is_being_made =
                name.is_some_and(|name| plain.iter().any(|plain| plain.is_place_of(name)));
            match self.open(&entry.path, entry.age.name) {
                Ok(None) => {}
                Ok(Some(seen)) if live.is_some_and(|live| live.opened.is(&seen.opened)) => {}
                Ok(Some(seen)) if seen.generation.is_none() && is_being_made => {}
                Ok(Some(seen)) => {
                    if seen.opened.is_compressed()
                        && !self
                            .kept
                            .opened
                            .iter()
                            .chain(&self.kept.twins)
                            .any(|kept| Arc::ptr_eq(kept, &seen.opened))
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
        let mut seen = kept.into_iter().find(|seen| seen.is_file_of(&place) && holds(seen));
        if seen.is_none() {
            let mut holding = self.scan(None)?.siblings;
            holding.retain(&holds);
            if holding.is_empty() {
                holding = self.strays(&place, None)?;
                holding.retain(|seen| !is_current(seen));
            }
            // Not one of which it is known that it was done with earlier.
            seen = self
                .choose(&place, holding)
                .filter(|seen| seen.is_file_of(&place) || is_not_older(seen, &place));
        }
        let Some(seen) = seen else {
            // Removed meanwhile, after it was read to its end.
            return Ok(Previous { place, seen: None, is_done: true, waiting: 0 });
        };
        let before = place.position;
        let mut reached = place.clone();
        let mut waiting = 0;
        if let Some(generation) = seen.generation {
            let mut reading = self.reading(&seen, generation, place)?;
            // A full batch leaves the rest to the next pull.
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
        let mut reading = self.reading(seen, generation, place)?;
        while read_on(&seen.opened, &mut reading, batch, &mut { u64::MAX })?.is_break() {}
        reading.end(batch);
        Ok(())
    }

    /// Says that what is behind `end` in a compressed file can't be read.
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
    /// What tells the generation from others, also if none of it can be read.
    fn identity(&self) -> Result<String> {
        Ok(match (self.generation, self.repeat) {
            (Some(generation), 0) => hex::encode(generation),
            (Some(generation), repeat) => format!("{} {repeat}", hex::encode(generation)),
            (None, _) => hex::encode(self.opened.fingerprint().map_err(unreadable)?),
        })
    }
}

/// Which files are listed.
#[derive(Clone, Copy)]
enum Kind {
    /// Those that are rotated ones by their names.
    Rotated,
    /// Those that may be by their content: that have the number or the beginning of
    /// the name.
    Stray { inode: u64 },
}

impl Kind {
    /// How a file is listed; `None` if it is not.
    fn takes(self, rotated: Option<Rotated>, base: &str, name: &str, inode: u64) -> Option<Listed> {
        match (self, rotated) {
            (Self::Rotated, Some(rotated)) => Some(Listed::ByName(rotated)),
            (Self::Stray { inode: known }, None) => {
                let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
                let is_alike = name != base && !stem.is_empty() && name.starts_with(stem);
                (is_alike || (inode != 0 && inode == known)).then_some(Listed::ByContent)
            }
            _ => None,
        }
    }
}

/// Why a file is listed.
enum Listed {
    /// Its name is that of a rotated file.
    ByName(Rotated),
    /// Its content may prove it one.
    ByContent,
}

/// Adds the regular files of `directory` that `takes` names, by name and inode.
fn list_in(
    directory: &Path,
    found: &mut Vec<Entry>,
    takes: &dyn Fn(&str, u64) -> Option<Listed>,
) -> Result<()> {
    let failed = |e: io::Error| Error::from(e).context("the file's directory can't be read");
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let Some(listed) = takes(&name, inode_of(&entry)) else { continue };
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            let by_name = match listed {
                Listed::ByName(rotated) => Some(rotated),
                Listed::ByContent => None,
            };
            let age = Age { mtime_ns: mtime_ns(&metadata), name: by_name };
            let (_, inode) = identity(&metadata);
            found.push(Entry { age, path: entry.path(), name, inode });
        }
    }
    Ok(())
}

#[cfg(unix)]
fn inode_of(entry: &std::fs::DirEntry) -> u64 {
    std::os::unix::fs::DirEntryExt::ino(entry)
}

#[cfg(not(unix))]
fn inode_of(_: &std::fs::DirEntry) -> u64 {
    0
}

/// Whether the file was written last when what is before `at` was read, or later.
fn is_not_older(seen: &Seen, at: &Place) -> bool {
    at.mtime_ns.is_some_and(|read| seen.age.mtime_ns >= read)
}

/// Whether `done` is the last earlier generation that began as that of `at` does, or
/// there was none: an old cursor does not know, and a full one may have forgotten.
fn knows_what_was_done(at: &Place, done: Option<Head>) -> bool {
    done.is_some() || (at.head.is_some() && at.repeat == 0)
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

/// What lies there and can't be taken yet: `bytes` behind the last newline, and files
/// without a line.
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

/// Leaves out files that are copies of another one or of its beginning, as while the
/// live file is being copied away. The one at `keep` stays.
fn without_copies(order: &mut Vec<Seen>, keep: Option<usize>) -> Result<()> {
    let mut copies = vec![false; order.len()];
    for i in 0..order.len() {
        for j in 0..order.len() {
            if i != j && !copies[i] && !copies[j] && keep != Some(i) {
                copies[i] = order[i].is_copy_of(&order[j])?;
            }
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
