//! Timeline events about quarantined items, bounded in number.
//!
//! Each item gets a notice, which is a permanent event. For a source that writes something
//! other than events, that would turn one megabyte into fifty, so only the first hundred
//! items of a source in an hour get their own notice; the others are counted in summaries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dezky_core::{
    Actor, NewEvent, NewMetadata, Outcome, QuarantineItem, Runtime, SealedEvent, Timestamp,
};
use sha2::{Digest as _, Sha256};

/// The number of items of a source that get their own notice within an hour.
pub(crate) const EACH_PER_HOUR: usize = 100;
const HOUR_MS: i64 = 3_600_000;

/// The shortest time between two summaries of the rest.
const BETWEEN_RESTS: Duration = Duration::from_mins(1);

/// Notices per source since the process started.
pub(crate) struct Notices {
    hours: Mutex<HashMap<String, Hour>>,
    /// Distinguishes the summaries of this process from those of others.
    nonce: [u8; 16],
}

/// Notices of one source within an hour.
#[derive(Debug, Clone, Default)]
struct Hour {
    /// Hours since 1970.
    number: i64,
    /// Items with their own notice.
    each: usize,
    /// Items beyond those.
    more: u64,
    /// The part of `more` that the last summary counted.
    told: u64,
    /// Reasons for which one item stands for several.
    folded: BTreeSet<String>,
    /// Time of the last summary of the rest.
    rest_at: Option<Timestamp>,
}

impl Hour {
    /// The summary of `more`; `part` makes a retry of the same summary the same event.
    fn summary(&self, source: &str, part: &str, runtime: &dyn Runtime) -> SealedEvent {
        let since = Timestamp::from_millis_clamped(self.number * HOUR_MS);
        let identity = Sha256::digest(format!("{source}\0{}\0{part}", self.number));
        let mut metadata = NewMetadata::default();
        metadata.annotate("count", self.more);
        metadata.annotate("since", since.to_string());
        let detail = format!(
            "items of this hour beyond the {EACH_PER_HOUR} that were told each; nothing is kept of those that could not be redacted"
        );
        metadata.annotate("detail", detail);
        let event = NewEvent {
            outcome: Outcome::Failure,
            resource_type: Some("source".into()),
            resource_id: Some(source.to_owned()),
            external_id: Some(format!("quarantine-more:{}", hex::encode(identity))),
            metadata,
            ..NewEvent::new("ingest.quarantined", Actor::system())
        };
        event.seal(runtime)
    }
}

/// The items and notices to store for a batch of items.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) items: Vec<QuarantineItem>,
    pub(crate) notices: Vec<SealedEvent>,
    /// The number of new items that are folded into one that stands for several.
    pub(crate) folded: usize,
    after: Stored,
}

/// Counts that a [`Plan`] adds to a source's hour.
#[derive(Debug, Default)]
struct Delta {
    number: i64,
    /// The hour known when the plan was made, and the number of its items reported by then.
    before: (i64, u64),
    each: usize,
    more: u64,
    /// The count of the plan's summary; 0 without one.
    told: u64,
    folded: BTreeSet<String>,
}

/// A summary of items that no other summary of the source has counted.
pub(crate) struct Rest {
    pub(crate) summary: SealedEvent,
    pub(crate) told: Told,
}

/// Counts to note once a [`Rest`] is stored.
pub(crate) struct Told {
    number: i64,
    more: u64,
    at: Timestamp,
}

impl Notices {
    /// Creates counts without any notice yet.
    pub(crate) fn new(runtime: &dyn Runtime) -> Self {
        let mut nonce = [0; 16];
        runtime.fill_random(&mut nonce);
        Self { hours: Mutex::default(), nonce }
    }

    /// Part of a summary's id that is unique to this process and count.
    fn part(&self, more: u64) -> String {
        format!("{more} of {}", hex::encode(self.nonce))
    }

    /// Plans the notices of `items`. Counts change only once the plan was
    /// [stored](Self::stored), so that a failed append has no effect.
    ///
    /// Items beyond the first hundred of which no bytes are kept are folded into one item per
    /// source, reason and hour; the others stay as they are.
    pub(crate) fn plan(&self, items: Vec<QuarantineItem>, runtime: &dyn Runtime) -> Plan {
        let mut plan = Plan::default();
        if items.is_empty() {
            return plan;
        }
        let number = runtime.now().as_millis().div_euclid(HOUR_MS);
        let mut sources: BTreeMap<String, (Hour, Delta, Sha256)> = BTreeMap::new();
        let mut folded: BTreeMap<(String, String), QuarantineItem> = BTreeMap::new();
        for mut item in items {
            let (hour, delta, keys) = sources.entry(item.source.clone()).or_insert_with(|| {
                let mut hour = self.lock().get(&item.source).cloned().unwrap_or_default();
                let before = (hour.number, hour.more);
                if hour.number != number {
                    if hour.more > hour.told {
                        let part = self.part(hour.more);
                        plan.notices.push(hour.summary(&item.source, &part, runtime));
                    }
                    hour = Hour { number, ..Hour::default() };
                }
                (hour, Delta { number, before, ..Delta::default() }, Sha256::new())
            });
            if hour.each < EACH_PER_HOUR {
                hour.each += 1;
                delta.each += 1;
                plan.notices.push(item.notice(runtime));
                plan.items.push(item);
                continue;
            }
            hour.more += 1;
            delta.more += 1;
            keys.update((item.key.len() as u64).to_be_bytes());
            keys.update(&item.key);
            if item.raw.is_empty() {
                // The item itself is counted as new by the store.
                plan.folded += usize::from(!hour.folded.insert(item.reason.clone()));
                delta.folded.insert(item.reason.clone());
                item.key = format!("more:{}:{number}", item.reason);
                "more of this kind, of which nothing could be kept; the timeline has their count"
                    .clone_into(&mut item.detail);
                folded.insert((item.source.clone(), item.reason.clone()), item);
            } else {
                plan.items.push(item);
            }
        }
        plan.items.extend(folded.into_values());
        for (source, (hour, mut delta, keys)) in sources {
            // Each summary counts at least twice as many items as the one before.
            if hour.more > 0 && (hour.told == 0 || hour.more / 2 >= hour.told) {
                let part = hex::encode(keys.finalize());
                plan.notices.push(hour.summary(&source, &part, runtime));
                delta.told = hour.more;
            }
            plan.after.0.push((source, delta));
        }
        plan
    }

    /// Counts a stored plan in addition to those stored meanwhile. Items that were in the
    /// quarantine before (`is_new` is false) use up no notices.
    pub(crate) fn stored(&self, after: &Stored, is_new: bool) {
        let mut sources = self.lock();
        for (source, delta) in &after.0 {
            let known = sources.entry(source.clone()).or_default();
            let (seen, told) = delta.before;
            // If the later hour was known when the plan was made, the clock was set back.
            let has_ended = known.number > delta.number && seen <= delta.number;
            if has_ended {
                // Items that no summary has counted are counted in the current hour.
                known.more += if delta.told == 0 { delta.more } else { 0 };
                continue;
            }
            if known.number != delta.number {
                let told = if known.number == seen { told.max(known.told) } else { known.told };
                let more = known.more.saturating_sub(told);
                *known = Hour { number: delta.number, more, ..Hour::default() };
            }
            known.each += if is_new { delta.each } else { 0 };
            known.more += delta.more;
            known.told = known.told.max(delta.told);
            known.folded.extend(delta.folded.iter().cloned());
        }
    }

    /// The summary of the items of `source` that no summary has counted, if there are any and
    /// the last such summary is a minute old. Call [`told`](Self::told) once it is stored.
    pub(crate) fn rest(&self, source: &str, runtime: &dyn Runtime) -> Option<Rest> {
        let at = runtime.now();
        let is_due = |hour: &Hour| {
            let is_early =
                |last: Timestamp| last.saturating_add(BETWEEN_RESTS).is_ahead_of(at, BETWEEN_RESTS);
            hour.more > hour.told && !hour.rest_at.is_some_and(is_early)
        };
        let hour = self.lock().get(source).filter(|hour| is_due(hour)).cloned()?;
        let summary = hour.summary(source, &self.part(hour.more), runtime);
        Some(Rest { summary, told: Told { number: hour.number, more: hour.more, at } })
    }

    /// Notes that a summary of the rest of `source` was stored.
    pub(crate) fn told(&self, source: &str, told: &Told) {
        let mut sources = self.lock();
        if let Some(hour) = sources.get_mut(source).filter(|hour| hour.number == told.number) {
            hour.told = hour.told.max(told.more);
            hour.rest_at = Some(told.at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Hour>> {
        self.hours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts per source to add once a [`Plan`] was stored.
#[derive(Default)]
pub(crate) struct Stored(Vec<(String, Delta)>);

impl Plan {
    /// Takes the counts to add once the plan is stored.
    pub(crate) fn take_after(&mut self) -> Stored {
        std::mem::take(&mut self.after)
    }
}

#[cfg(test)]
mod tests {
    use dezky_core::testkit::ManualRuntime;

    use super::*;

    fn items(count: usize, raw: &[u8]) -> Vec<QuarantineItem> {
        let item = |n| QuarantineItem {
            source: "shop".into(),
            key: format!("line:{n}"),
            reason: "not_json".into(),
            detail: "no".into(),
            raw: raw.to_vec(),
            at: Timestamp::MIN,
        };
        (0..count).map(item).collect()
    }

    fn counts(plan: &Plan) -> Vec<u64> {
        let of =
            |event: &SealedEvent| event.event().metadata.to_value()["_dezky"]["count"].as_u64();
        plan.notices.iter().filter_map(of).collect()
    }

    #[test]
    fn the_first_hundred_are_told_each_and_the_rest_by_their_count() {
        let runtime = ManualRuntime::new(1);
        let notices = Notices::new(&runtime);
        let stored = |count, raw: &[u8], is_new| {
            let mut plan = notices.plan(items(count, raw), &runtime);
            notices.stored(&plan.take_after(), is_new);
            plan
        };
        let plan = stored(1_000, b"", true);
        assert_eq!((plan.items.len(), plan.notices.len(), counts(&plan)), (101, 101, vec![900]));
        let plan = stored(800, b"", true);
        assert_eq!((plan.items.len(), plan.notices.len()), (1, 0), "fewer than twice as many");
        assert_eq!(plan.items[0].key, stored(1, b"", true).items[0].key, "one item an hour");
        let plan = stored(200, b"{}", true);
        assert_eq!((plan.items.len(), counts(&plan)), (200, vec![1_901]), "what is kept is kept");
        stored(5, b"", true);
        let rest = notices.rest("shop", &runtime).unwrap();
        assert_eq!(rest.summary.event().metadata.to_value()["_dezky"]["count"], 1_906);
        notices.told("shop", &rest.told);
        assert!(notices.rest("shop", &runtime).is_none());
        stored(5, b"", true);
        runtime.advance(std::time::Duration::from_hours(1));
        let mut plan = notices.plan(items(1, b""), &runtime);
        assert_eq!((plan.items.len(), counts(&plan)), (1, vec![1_911]), "told at its end");
        notices.stored(&plan.take_after(), true);
        assert!(notices.rest("shop", &runtime).is_none());
    }

    #[test]
    fn none_of_those_that_are_taken_at_the_same_time_is_uncounted() {
        let runtime = ManualRuntime::new(1);
        let notices = Notices::new(&runtime);
        let plan = |count| notices.plan(items(count, b"x"), &runtime);
        let mut plans = [500, 500, 500, 107].map(plan);
        let [at_once @ .., late] = &mut plans;
        for plan in at_once {
            notices.stored(&plan.take_after(), true);
        }
        let count = |rest: &Rest| {
            rest.summary.event().metadata.to_value()["_dezky"]["count"].as_u64().unwrap()
        };
        let first = notices.rest("shop", &runtime).unwrap();
        assert_eq!(count(&first), 1_200);
        // Items that arrive before it is stored are reported a minute later, not by it.
        notices.stored(&late.take_after(), true);
        notices.told("shop", &first.told);
        assert!(notices.rest("shop", &runtime).is_none());
        runtime.advance(BETWEEN_RESTS);
        assert_eq!(count(&notices.rest("shop", &runtime).unwrap()), 1_207);
    }

    #[test]
    fn the_rest_of_another_process_is_another_event() {
        let runtime = ManualRuntime::new(1);
        let ids: BTreeSet<_> = (0..2)
            .map(|_| {
                let notices = Notices::new(&runtime);
                let mut plan = notices.plan(items(150, b"x"), &runtime);
                notices.stored(&plan.take_after(), true);
                let mut plan = notices.plan(items(10, b"x"), &runtime);
                notices.stored(&plan.take_after(), true);
                let ids = |rest: Rest| rest.summary.event().external_id.clone().unwrap();
                let id = notices.rest("shop", &runtime).map(ids).unwrap();
                assert_eq!(notices.rest("shop", &runtime).map(ids).unwrap(), id, "a retry");
                id
            })
            .collect();
        assert_eq!(ids.len(), 2);
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_let_each_batch_begin_anew() {
        for ahead in [Duration::from_hours(1), Duration::from_hours(20_000)] {
            let runtime = ManualRuntime::new(1);
            let notices = Notices::new(&runtime);
            let start = runtime.now();
            let stored = |count| {
                let mut plan = notices.plan(items(count, b""), &runtime);
                notices.stored(&plan.take_after(), true);
                plan.notices.len()
            };
            runtime.set_now(start.saturating_add(ahead));
            stored(1_000);
            stored(1);
            let rest = notices.rest("shop", &runtime).unwrap();
            notices.told("shop", &rest.told);
            stored(1);
            runtime.set_now(start);
            assert!(notices.rest("shop", &runtime).is_some(), "a rest of the future is over");
            let told: usize = (0..20).map(|_| stored(1_000)).sum();
            assert!((100..115).contains(&told), "{told} for {ahead:?}");
        }
    }

    #[test]
    fn items_that_are_stored_after_their_hour_are_counted() {
        let runtime = ManualRuntime::new(1);
        let notices = Notices::new(&runtime);
        let plan = |count| notices.plan(items(count, b"x"), &runtime);
        notices.stored(&plan(1_100).take_after(), true);
        let (mut early, mut late) = (plan(7), plan(5));
        assert_eq!((counts(&early), counts(&late)), (vec![], vec![]));
        notices.stored(&early.take_after(), true);
        // The next hour begins: its plan reports 1,007, and 5 arrive after it.
        runtime.advance(Duration::from_hours(1));
        let mut next = plan(1);
        assert_eq!(counts(&next), [1_007]);
        notices.stored(&late.take_after(), true);
        notices.stored(&next.take_after(), true);
        let count = |rest: Rest| {
            rest.summary.event().metadata.to_value()["_dezky"]["count"].as_u64().unwrap()
        };
        assert_eq!(notices.rest("shop", &runtime).map(count), Some(5));
        // Or the plan of the next hour is stored first.
        let mut late = plan(150);
        assert_eq!(counts(&late), [56]);
        notices.stored(&late.take_after(), true);
        let mut late = plan(3);
        runtime.advance(Duration::from_hours(1));
        notices.stored(&plan(1).take_after(), true);
        notices.stored(&late.take_after(), true);
        assert_eq!(notices.rest("shop", &runtime).map(count), Some(3));
    }

    #[test]
    fn what_was_not_stored_or_was_there_before_takes_no_place() {
        let runtime = ManualRuntime::new(1);
        let notices = Notices::new(&runtime);
        for _ in 0..3 {
            let plan = notices.plan(items(80, b""), &runtime);
            assert_eq!((plan.items.len(), plan.notices.len()), (80, 80));
        }
        for is_new in [true, false, false] {
            let mut plan = notices.plan(items(50, b"x"), &runtime);
            assert_eq!(plan.notices.len(), 50);
            notices.stored(&plan.take_after(), is_new);
        }
    }
}
