//! How often flags are evaluated: counted by flag, in the process that asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dezky_core::Timestamp;
use serde::Serialize;

/// What was counted in this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Since when.
    pub since: Timestamp,
    /// The flags that there are, by key.
    pub flags: Vec<FlagUsage>,
}

/// How often a flag was evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlagUsage {
    /// The flag's key.
    pub key: String,
    /// How often it was on.
    pub on: u64,
    /// How often it was off.
    pub off: u64,
    /// When it was evaluated last, or up to a poll interval later; absent if it never
    /// was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_evaluated: Option<Timestamp>,
}

/// Counts one flag; shared by the sets that have it.
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

/// The counters of all flags that there are.
#[derive(Debug)]
pub(crate) struct Counters {
    since: Timestamp,
    flags: Mutex<BTreeMap<Arc<str>, Tracked>>,
}

#[derive(Debug, Default)]
struct Tracked {
    counter: Arc<Counter>,
    /// What the counter said at the last look.
    seen: (u64, u64),
    last_evaluated: Option<Timestamp>,
}

impl Counters {
    pub(crate) fn since(since: Timestamp) -> Self {
        Self { since, flags: Mutex::default() }
    }

    /// The counters of these flags, in their order: those that there were go on, those
    /// of other flags are forgotten.
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

    /// Notes which flags were evaluated since the last look.
    pub(crate) fn look(&self, now: Timestamp) {
        for tracked in self.locked().values_mut() {
            tracked.look(now);
        }
    }

    pub(crate) fn usage(&self, now: Timestamp) -> Usage {
        let mut flags = self.locked();
        let usage = |(key, tracked): (&Arc<str>, &mut Tracked)| {
            tracked.look(now);
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
    fn look(&mut self, now: Timestamp) {
        let counted = self.counter.read();
        if counted != self.seen {
            self.seen = counted;
            self.last_evaluated = Some(now);
        }
    }
}
