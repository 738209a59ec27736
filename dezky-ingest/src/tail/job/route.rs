//! The generations to read, from the cursor's on.

use std::cmp::Ordering;
use std::sync::Arc;

use dezky_core::{Error, ErrorKind, Result};

use super::scan::{Scan, without_copies};
use super::{Job, SCANS};
use crate::tail::opened::{Opened, Seen, Twin};
use crate::tail::{Age, Cursor, Digest, GapReason, HEAD_BYTES, Head, Place};

/// The maximum number of earlier generations with the same first line that a line is compared with.
const MAX_TWINS: usize = 16;

/// The start of a pull and the generations that it reads.
pub(super) struct Route {
    /// The place to continue from in the first of `order`; `None`: its start.
    pub(super) at: Option<Place>,
    /// Generations, the oldest first.
    pub(super) order: Vec<Seen>,
    /// The reason for a gap before the route.
    pub(super) gap: Option<GapReason>,
    /// Whether older generations are left out.
    pub(super) left_out: bool,
}

impl Job {
    /// All generations, or, of the rotated ones, those modified at `since` or later; the oldest
    /// first. `lost` is the end of the part that was read before.
    pub(super) fn route_from_start(
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

    /// Finds the generation of `at` and the younger ones; `None` if the files keep changing or the
    /// live one is missing.
    pub(super) fn resume(&self, cursor: &Cursor, live: Option<Seen>) -> Result<Option<Route>> {
        let at = &cursor.at;
        if at.position == 0 {
            return self.route_from_start(live, at.mtime_ns, None).map(Some);
        }
        let mut live = live;
        let mut listing = None;
        for _ in 0..SCANS {
            // The live file is checked before the directory, so that a copy made or a rename done
            // by then is found there.
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
                // The previous generation was read to its end; `late_lines` checks it once more.
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

    /// The copy of `file` that was made before that was truncated and restarted with the content
    /// read up to `at`. The copy contains the same place, but continues differently, and was
    /// created after the file.
    fn copied_away(&self, at: &Place, file: &Seen) -> Result<Option<Seen>> {
        if at.position > HEAD_BYTES || !file.may_go_on(at.position) {
            // That much content does not repeat by chance.
            return Ok(None);
        }
        if self.siblings.borrow().is_none() {
            self.scan(Some(file))?;
        }
        let done = self.done_alike(at);
        for seen in self.siblings.borrow().iter().flatten() {
            let is_made_next_to = match seen.age.compare_names(&file.age) {
                _ if file.is_live => true,
                // Next to a file that was rotated since, younger files are also created later.
                Some(by_name) => by_name == Ordering::Less,
                // So are files next to one that was removed; these are also modified later.
                None => file.age.name.is_none() && seen.age.mtime_ns <= file.age.mtime_ns,
            };
            let is_made_later = is_made_next_to && seen.opened.born_ns > file.opened.born_ns;
            let is_plain = !seen.opened.is_compressed();
            let is_written_later = match done {
                // A finished one was modified before.
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
        let kept = self.cache.opened.iter().filter(|opened| !is_named(opened));
        kept.filter_map(|opened| Seen::again(opened).ok())
            .filter(|seen| seen.age.may_be_younger_than(&found.age))
            .collect()
    }

    /// The generation that contains `at`, among the cached descriptors and the rotated files;
    /// unreadable ones do not count. If `is_in_live`, the live file contains `at` too, but is
    /// another file than the one that was read and may only have the same beginning; then finished
    /// generations do not count either.
    fn find(
        &self,
        at: &Place,
        live: Option<&Seen>,
        is_in_live: bool,
        scan: &Scan,
    ) -> Result<Option<Seen>> {
        let kept = self.cache.opened.iter().filter_map(|opened| {
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
            (Some(seen), Some(live)) => self.is_not_live(&seen, at, live)?.then_some(seen),
            (found, _) => found,
        };
        if found.is_none() && self.budget.is_spent() {
            return Err(Error::new(
                ErrorKind::Io,
                "the cursor's place in a compressed file was not reached yet",
            ));
        }
        Ok(found)
    }

    /// Whether `at` belongs to `seen` rather than to the live file; both contain it, but the live
    /// file is another one than the one that was read.
    fn is_not_live(&self, seen: &Seen, at: &Place, live: &Seen) -> Result<bool> {
        if seen.is_file_of(at) || is_not_older(seen, at) {
            return Ok(true);
        }
        // A copy that is known to be unfinished, and not one of the live file's own beginning.
        let is_known = knows_what_was_done(at, self.done_alike(at));
        Ok(is_known && at.position <= HEAD_BYTES && !seen.begins(live)?)
    }

    /// The last finished generation before the one of `at` with the same first line.
    fn done_alike(&self, at: &Place) -> Option<Head> {
        self.heads.borrow().get(&at.generation?)
    }

    /// Of the files that contain `at`, the one it belongs to: the same file, otherwise the oldest
    /// unfinished one, because younger ones may have the same beginning. Of copies, the plain and
    /// most complete one; if that has no name any more, it has the age of its copy.
    pub(super) fn choose(&self, at: &Place, holding: Vec<Seen>) -> Option<Seen> {
        let names: Vec<Age> = holding.iter().map(|seen| seen.age.clone()).collect();
        let (same, others): (Vec<_>, Vec<_>) =
            holding.into_iter().partition(|seen| seen.is_file_of(at));
        let (mut younger, mut older): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|seen| is_not_older(seen, at));
        // An earlier generation with the same beginning contains the place too, if that is within
        // their common part. Continuing there would repeat its lines as those of the later one.
        let done = self.done_alike(at);
        older.retain(|seen| done.is_none_or(|done| seen.age.mtime_ns > done.mtime_ns));
        if at.position <= HEAD_BYTES && knows_what_was_done(at, done) {
            // A copy can be shorter than the part that was read: it lacks lines written while it
            // was made.
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

    /// The existing earlier generations with the same first line as `seen`, the youngest ones.
    pub(super) fn twins(&self, seen: &Seen) -> Result<Vec<Twin>> {
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

    /// Sets, for the generations from `first` on, the number of earlier ones with the same first
    /// line. The earlier ones end at `pivot`, which is in the first of `order` unless that is one
    /// of them.
    fn number(&self, order: &mut [Seen], first: usize, pivot: Option<&Place>) -> Result<()> {
        for i in first..order.len() {
            let Some(generation) = order[i].generation else { continue };
            let older = self.others_with(order, generation)?;
            let lying = u32::try_from(older.len()).unwrap_or(u32::MAX);
            // The pivot, or the remembered head of an earlier one.
            let of_pivot = pivot.filter(|at| at.generation == Some(generation)).and_then(Head::of);
            let last = of_pivot.or_else(|| self.heads.borrow().get(&generation));
            let is_same = |seen: &&Seen| seen.generation == Some(generation);
            let is_reread = |seen: &&Seen| {
                // A file with a younger name than the pivot's is not the pivot.
                let found = order[..first].first().filter(|_| of_pivot.is_some());
                last.is_some_and(|last| seen.was_done_with(last.mtime_ns, found))
            };
            let count = |seen: usize| u32::try_from(seen).unwrap_or(u32::MAX);
            let before = &order[first..i];
            let (repeat, reach) = match last {
                // The same as the first time.
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

    /// How far the last generation with this first line was read: it ends at `left`, or was
    /// finished before.
    pub(super) fn reach(&self, generation: Digest, left: Option<&Place>) -> Option<u64> {
        let left = left.filter(|left| left.generation == Some(generation)).and_then(Head::of);
        let last = left.or_else(|| self.heads.borrow().get(&generation));
        last.map(|last| last.reach)
    }

    /// The rotated files with this first line, except those in `order` and their copies.
    fn others_with(&self, order: &[Seen], generation: Digest) -> Result<Vec<Seen>> {
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
}

/// Whether the file was modified when the content before `at` was read, or later.
pub(super) fn is_not_older(seen: &Seen, at: &Place) -> bool {
    at.mtime_ns.is_some_and(|read| seen.age.mtime_ns >= read)
}

/// Whether `done` is the last earlier generation with the same first line as that of `at`, or there
/// was none: an old cursor does not have them, and a full one may have dropped them.
fn knows_what_was_done(at: &Place, done: Option<Head>) -> bool {
    done.is_some() || (at.head.is_some() && at.repeat == 0)
}
