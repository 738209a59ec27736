//! Evaluation counts by flag, collected in the evaluating process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dezky_core::Timestamp;
use serde::Serialize;

/// The evaluation counts of this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The time at which counting began.
    pub since: Timestamp,
    /// The existing flags, by key.
    pub flags: Vec<FlagUsage>,
}

/// The evaluation counts of a flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlagUsage {
    /// The flag's key.
    pub key: String,
    /// The number of evaluations to on.
    pub on: u64,
    /// The number of evaluations to off.
    pub off: u64,
    /// Time of the last evaluation, recorded at most one poll interval late; absent if there was
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_evaluated: Option<Timestamp>,
}

/// The counter of a flag, shared by the sets that contain the flag.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    on: AtomicU64,
    off: AtomicU64,
}

impl Counter {
    pub(crate) fn count(&self, value: bool) {
        let counted = if value { &self.on } else { &self.off };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.on.load(Ordering::Relaxed), self.off.load(Ordering::Relaxed))
    }
}

/// The counters of all existing flags.
#[derive(Debug)]
pub(crate) struct Counters {
    since: Timestamp,
    flags: Mutex<BTreeMap<Arc<str>, Tracked>>,
}

#[derive(Debug, Default)]
struct Tracked {
    counter: Arc<Counter>,
    /// The counts at the last observation.
    seen: (u64, u64),
    last_evaluated: Option<Timestamp>,
}

impl Counters {
    pub(crate) fn since(since: Timestamp) -> Self {
        Self { since, flags: Mutex::default() }
    }

    /// Returns the counters of these flags, in order. Existing counters continue; those of other
    /// flags are dropped.
    pub(crate) fn of<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Vec<Arc<Counter>> {
        let mut flags = self.locked();
        let mut before = std::mem::take(&mut *flags);
        let mut counters = Vec::new();
        for key in keys {
            let (key, tracked) =
                before.remove_entry(key).unwrap_or_else(|| (key.into(), Tracked::default()));
            counters.push(Arc::clone(&tracked.counter));
            flags.insert(key, tracked);
        }
        counters
    }

    /// Records which flags were evaluated since the last call.
    pub(crate) fn observe(&self, now: Timestamp) {
        for tracked in self.locked().values_mut() {
            tracked.observe(now);
        }
    }

    pub(crate) fn usage(&self, now: Timestamp) -> Usage {
        let mut flags = self.locked();
        let usage = |(key, tracked): (&Arc<str>, &mut Tracked)| {
            tracked.observe(now);
            let (on, off) = tracked.seen;
            FlagUsage { key: key.to_string(), on, off, last_evaluated: tracked.last_evaluated }
        };
        Usage { since: self.since, flags: flags.iter_mut().map(usage).collect() }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Tracked>> {
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracked {
    fn observe(&mut self, now: Timestamp) {
        let counted = self.counter.read();
        if counted != self.seen {
            self.seen = counted;
            self.last_evaluated = Some(now);
        }
    }
}
