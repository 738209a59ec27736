//! The flags in use at one point in time.

use std::collections::HashMap;
use std::sync::Arc;

use crate::store::Snapshot;
use crate::usage::{Counter, Counters};
use crate::{
    Decision, FlagContext, FlagEvaluator, FlagSet, PartialContext, Reason, decide_partial,
};

/// Compiled flags together with the snapshot they were compiled from.
#[derive(Debug)]
pub struct LiveSet {
    set: FlagSet,
    snapshot: Snapshot,
    /// Numbers the sets of a [`LiveFlags`](super::LiveFlags) consecutively.
    pub(super) generation: u64,
    /// Whether the flags come from the file.
    pub(super) from_file: bool,
    counted: Option<Counted>,
}

/// The counters of a set's flags.
#[derive(Debug)]
struct Counted {
    /// In the order in which the set evaluates all flags.
    in_order: Vec<Arc<Counter>>,
    places: HashMap<Box<str>, usize>,
}

impl LiveSet {
    pub(super) fn new(
        set: FlagSet,
        snapshot: Snapshot,
        generation: u64,
        from_file: bool,
        counters: Option<&Counters>,
    ) -> Self {
        let counted = counters.map(|counters| Counted::of(&set, counters));
        Self { set, snapshot, generation, from_file, counted }
    }

    /// The compiled flags. Evaluations through them are not counted; report those with
    /// [`count`](Self::count).
    pub fn set(&self) -> &FlagSet {
        &self.set
    }

    /// Counts an evaluation made through [`set`](Self::set), if evaluations are counted.
    pub fn count(&self, flag: &str, value: bool) {
        if let Some(counted) = &self.counted
            && let Some(at) = counted.places.get(flag)
        {
            counted.in_order[*at].count(value);
        }
    }

    /// The flags as read; flags from a [file](super::LiveConfig::file) have no history.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The store's revision of these flags.
    pub fn revision(&self) -> u64 {
        self.snapshot.revision
    }

    /// Returns the decision on every flag, by key.
    pub fn evaluate_all<'a>(
        &'a self,
        context: &'a FlagContext<'a>,
    ) -> impl Iterator<Item = (&'a str, Decision)> + 'a {
        let mut counters = self.counted.iter().flat_map(|counted| &counted.in_order);
        self.set.evaluate_all(context).inspect(move |(_, decision)| {
            if let Some(counter) = counters.next() {
                counter.count(decision.value);
            }
        })
    }
}

impl LiveSet {
    /// Returns the decision on `flag` if it does not depend on the unknown parts of the context,
    /// else `None`; see [`decide_partial`].
    pub fn evaluate_partial(&self, flag: &str, context: &PartialContext<'_>) -> Option<Decision> {
        let compiled = self.set.evaluate(flag, &context.known);
        let decision = match compiled.reason {
            Reason::UnknownFlag | Reason::InvalidFlag => compiled,
            _ => {
                let flags = &self.snapshot.flags;
                let at = flags.binary_search_by(|known| known.key.as_str().cmp(flag)).ok()?;
                decide_partial(&flags[at], context)?
            }
        };
        self.count(flag, decision.value);
        Some(decision)
    }
}

impl FlagEvaluator for LiveSet {
    fn evaluate(&self, flag: &str, context: &FlagContext<'_>) -> Decision {
        let decision = self.set.evaluate(flag, context);
        self.count(flag, decision.value);
        decision
    }
}

impl Counted {
    fn of(set: &FlagSet, counters: &Counters) -> Self {
        let nobody = FlagContext::default();
        let keys: Vec<&str> = set.evaluate_all(&nobody).map(|(key, _)| key).collect();
        let in_order = counters.of(keys.iter().copied());
        let places = keys.iter().enumerate().map(|(at, key)| ((*key).into(), at)).collect();
        Self { in_order, places }
    }
}
