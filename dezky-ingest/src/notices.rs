//! How often the timeline tells of quarantined items.
//!
//! Every item gets a notice, as an event that stays. Where a system writes something
//! else than events, a notice for each would make fifty megabytes of one: so the first
//! hundred of a source and an hour are told each, and the others by their count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dezky_core::{
    Actor, NewEvent, NewMetadata, Outcome, QuarantineItem, Runtime, SealedEvent, Timestamp,
};
use sha2::{Digest as _, Sha256};

/// How many items of a source are told each within an hour.
pub(crate) const EACH_PER_HOUR: usize = 100;
const HOUR_MS: i64 = 3_600_000;

/// What was told of the items of each source, since the start of the process.
#[derive(Default)]
pub(crate) struct Notices(Mutex<HashMap<String, Hour>>);

/// What was told of one source within an hour.
#[derive(Debug, Clone, Default)]
struct Hour {
    /// Hours since 1970.
    number: i64,
    /// Items that were told each.
    each: usize,
    /// Items that came after those.
    more: u64,
    /// How many of them the last summary counted.
    told: u64,
    /// The reasons for which there is an item that stands for several.
    folded: BTreeSet<String>,
}

impl Hour {
    /// The summary of those that no summary has counted yet; `part` is what makes it
    /// the same when it comes again.
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

/// What of a batch of items goes to the quarantine and onto the timeline.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) items: Vec<QuarantineItem>,
    pub(crate) notices: Vec<SealedEvent>,
    /// How many new items an item that stands for several takes the place of.
    pub(crate) folded: usize,
    /// How the state of each source is when this was stored.
    after: Vec<(String, Hour)>,
}

impl Notices {
    /// Decides what is told of `items`. Nothing is counted until it was
    /// [stored](Self::stored), so that a failed append changes nothing.
    ///
    /// Of the items that are not told each, those of which nothing is kept become one
    /// item for their source, reason and hour; the others stay as they are.
    pub(crate) fn plan(&self, items: Vec<QuarantineItem>, runtime: &dyn Runtime) -> Plan {
        let mut plan = Plan::default();
        if items.is_empty() {
            return plan;
        }
        let number = runtime.now().as_millis().div_euclid(HOUR_MS);
        let mut sources: BTreeMap<String, (Hour, Sha256)> = BTreeMap::new();
        let mut folded: BTreeMap<(String, String), QuarantineItem> = BTreeMap::new();
        for mut item in items {
            let (hour, keys) = sources.entry(item.source.clone()).or_insert_with(|| {
                let mut hour = self.lock().get(&item.source).cloned().unwrap_or_default();
                if hour.number != number {
                    if hour.more > hour.told {
                        plan.notices.push(hour.summary(&item.source, "end", runtime));
                    }
                    hour = Hour { number, ..Hour::default() };
                }
                (hour, Sha256::new())
            });
            if hour.each < EACH_PER_HOUR {
                hour.each += 1;
                plan.notices.push(item.notice(runtime));
                plan.items.push(item);
                continue;
            }
            hour.more += 1;
            keys.update((item.key.len() as u64).to_be_bytes());
            keys.update(&item.key);
            if item.raw.is_empty() {
                // The item itself is counted as new by the store.
                plan.folded += usize::from(!hour.folded.insert(item.reason.clone()));
                item.key = format!("more:{}:{number}", item.reason);
                "more of this kind, of which nothing could be kept; the timeline has their count"
                    .clone_into(&mut item.detail);
                folded.insert((item.source.clone(), item.reason.clone()), item);
            } else {
                plan.items.push(item);
            }
        }
        plan.items.extend(folded.into_values());
        for (source, (mut hour, keys)) in sources {
            // Each summary counts twice as many as the one before: few are enough.
            if hour.more > 0 && (hour.told == 0 || hour.more / 2 >= hour.told) {
                let part = hex::encode(keys.finalize());
                plan.notices.push(hour.summary(&source, &part, runtime));
                hour.told = hour.more;
            }
            plan.after.push((source, hour));
        }
        plan
    }

    /// Counts what was stored. What was in the quarantine before (`is_new` is false) takes
    /// nobody's place.
    pub(crate) fn stored(&self, after: &Stored, is_new: bool) {
        let mut sources = self.lock();
        for (source, hour) in &after.0 {
            let known = sources.entry(source.clone()).or_default();
            let each = if is_new || known.number != hour.number { hour.each } else { known.each };
            *known = Hour { each, ..hour.clone() };
        }
    }

    /// The summary of what no summary of `source` has counted yet, if there is any. Told
    /// by [`told`](Self::told).
    pub(crate) fn rest(&self, source: &str, runtime: &dyn Runtime) -> Option<SealedEvent> {
        let hour = self.lock().get(source).cloned().filter(|hour| hour.more > hour.told)?;
        Some(hour.summary(source, &format!("{} of them", hour.more), runtime))
    }

    /// Notes that the rest of `source` was told.
    pub(crate) fn told(&self, source: &str) {
        if let Some(hour) = self.lock().get_mut(source) {
            hour.told = hour.more;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Hour>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of the sources of a [`Plan`] after it was stored.
#[derive(Default)]
pub(crate) struct Stored(Vec<(String, Hour)>);

impl Plan {
    /// What to count when the plan is stored.
    pub(crate) fn take_after(&mut self) -> Stored {
        Stored(std::mem::take(&mut self.after))
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
        let (notices, runtime) = (Notices::default(), ManualRuntime::new(1));
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
        assert_eq!(rest.event().metadata.to_value()["_dezky"]["count"], 1_906);
        notices.told("shop");
        assert!(notices.rest("shop", &runtime).is_none());
        stored(5, b"", true);
        runtime.advance(std::time::Duration::from_hours(1));
        let mut plan = notices.plan(items(1, b""), &runtime);
        assert_eq!((plan.items.len(), counts(&plan)), (1, vec![1_911]), "told at its end");
        notices.stored(&plan.take_after(), true);
        assert!(notices.rest("shop", &runtime).is_none());
    }

    #[test]
    fn what_was_not_stored_or_was_there_before_takes_no_place() {
        let (notices, runtime) = (Notices::default(), ManualRuntime::new(1));
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
