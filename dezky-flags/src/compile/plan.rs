//! The plan for deciding all flags at once, as bit masks of 64 flags per word.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{Compiled, FlagSet, Rule, bits};
use crate::digest::{Batch, PaddedKeys};
use crate::evaluate::{rolled_out, value_of};
use crate::{Axis, Decision, FlagContext, Reason};

const AXES: [Axis; 4] = [Axis::Plan, Axis::TenantSlug, Axis::PartnerSlug, Axis::Environment];
/// The threshold of a rollout to everybody.
pub(super) const EVERYBODY: u16 = 10_000;

#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// One entry per 64 flags.
    pub(super) masks: Vec<Masks>,
    /// Rollout thresholds, 0 for other flags; padded to a multiple of 64.
    pub(super) thresholds: Vec<u16>,
    axes: [AxisIndex; 4],
    pub(super) bucket_keys: PaddedKeys,
    /// `,"key":` for every flag.
    pub(super) json: String,
    pub(super) json_ends: Vec<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Masks {
    /// On regardless of the scope.
    pub(super) on: u64,
    /// On for everybody in scope: targeted flags, and rollouts to everybody.
    pub(super) in_scope: u64,
    /// Rollouts to some tenants: their values depend on a bucket.
    pub(super) hashed: u64,
    /// All rollouts: their reasons state a bucket.
    rollouts: u64,
    needs_active: u64,
}

impl Masks {
    /// The flags that may be on: all of them if the context's tenant is active, otherwise those
    /// that don't require an active tenant.
    pub(super) fn eligible(&self, context: &FlagContext<'_>) -> u64 {
        if context.tenant_active == Some(true) { u64::MAX } else { !self.needs_active }
    }
}

#[derive(Debug, Clone, Default)]
struct AxisIndex {
    /// Flags whose axis is empty.
    any: Vec<u64>,
    /// By value: the index into `holders`.
    places: HashMap<Arc<str>, usize, RandomState>,
    holders: Vec<Holders>,
}

/// The flags whose axis contains a value. Stored as numbers or as bits, whichever is smaller, so
/// that the plan's size grows with the scopes and not with flags times values.
#[derive(Debug, Clone)]
struct Holders {
    value: Arc<str>,
    few: Vec<u32>,
    /// Includes the flags whose axis is empty. Empty if `few` is used.
    many: Vec<u64>,
}

impl Plan {
    pub(super) fn with_capacity(flags: usize) -> Self {
        let words = flags.div_ceil(64);
        let axes = AXES.map(|_| AxisIndex { any: vec![0; words], ..AxisIndex::default() });
        Self {
            masks: vec![Masks::default(); words],
            thresholds: vec![0; 64 * words],
            axes,
            bucket_keys: PaddedKeys::default(),
            json: String::with_capacity(24 * flags),
            json_ends: Vec::with_capacity(flags),
        }
    }

    /// Adds a value to an axis of the flag at `place`. Places must be added in ascending order.
    pub(super) fn add_value(&mut self, place: usize, axis: Axis, value: &str) -> Arc<str> {
        let AxisIndex { places, holders, .. } = &mut self.axes[axis as usize];
        let at = places.get(value).copied().unwrap_or_else(|| {
            let value: Arc<str> = value.into();
            holders.push(Holders { value: Arc::clone(&value), few: Vec::new(), many: Vec::new() });
            places.insert(value, holders.len() - 1);
            holders.len() - 1
        });
        // A set with more than `u32::MAX` flags does not fit into memory.
        holders[at].few.push(u32::try_from(place).unwrap_or(u32::MAX));
        Arc::clone(&holders[at].value)
    }

    /// Adds the flag at `place`, whose values have been added already.
    pub(super) fn add_flag(&mut self, place: usize, flag: &Compiled) {
        let (masks, bit) = (&mut self.masks[place / 64], 1 << (place % 64));
        match flag.rule {
            Rule::Always(Reason::On) => masks.on |= bit,
            Rule::Always(_) => {}
            Rule::Targeted => masks.in_scope |= bit,
            Rule::Rollout { threshold } => {
                masks.rollouts |= bit;
                self.thresholds[place] = threshold;
                match threshold {
                    0 => {}
                    EVERYBODY.. => masks.in_scope |= bit,
                    _ => masks.hashed |= bit,
                }
            }
        }
        if flag.require_active_tenant {
            masks.needs_active |= bit;
        }
        for axis in AXES {
            if !flag.axes.iter().any(|set| set.axis == axis) {
                self.axes[axis as usize].any[place / 64] |= bit;
            }
        }
        self.bucket_keys.push(&flag.bucket_key);
        self.json.push(',');
        self.json.push_str(&serde_json::Value::from(&*flag.key).to_string());
        self.json.push(':');
        self.json_ends.push(self.json.len());
    }

    /// Chooses the smaller form of each value's holders; called after the last flag.
    pub(super) fn finish(&mut self) {
        for AxisIndex { any, holders, .. } in &mut self.axes {
            for Holders { few, many, .. } in holders {
                few.shrink_to_fit();
                if size_of_val(few.as_slice()) >= size_of_val(any.as_slice()) {
                    many.clone_from(any);
                    for place in few.drain(..) {
                        many[place as usize / 64] |= 1 << (place % 64);
                    }
                    *few = Vec::new();
                }
            }
        }
    }

    /// Whether the axis of the flag at `place`, which must not be empty, contains `value`.
    pub(super) fn contains(&self, axis: Axis, value: &str, place: usize) -> bool {
        let index = &self.axes[axis as usize];
        let Some(at) = index.places.get(value) else { return false };
        let Holders { few, many, .. } = &index.holders[*at];
        match many.get(place / 64) {
            Some(word) => word >> (place % 64) & 1 == 1,
            None => few.binary_search_by(|p| (*p as usize).cmp(&place)).is_ok(),
        }
    }

    /// The flags whose scopes contain the context.
    pub(super) fn scope(&self, context: &FlagContext<'_>) -> Scopes<'_> {
        let of = |axis: Axis| {
            let AxisIndex { any, places, holders } = &self.axes[axis as usize];
            let place = value_of(context, axis).and_then(|value| places.get(value));
            match place.map(|at| &holders[*at]) {
                Some(Holders { many, .. }) if !many.is_empty() => AxisWords { many, few: &[] },
                Some(Holders { few, .. }) => AxisWords { many: any, few },
                None => AxisWords { many: any, few: &[] },
            }
        };
        Scopes { axes: AXES.map(of), at: 0 }
    }
}

/// The flags whose scope contains a context, word by word.
pub(super) struct Scopes<'a> {
    axes: [AxisWords<'a>; 4],
    at: usize,
}

struct AxisWords<'a> {
    many: &'a [u64],
    /// The remaining ones, ascending.
    few: &'a [u32],
}

impl Scopes<'_> {
    #[inline]
    pub(super) fn next_word(&mut self) -> u64 {
        let [a, b, c, d] = self.next_words();
        a & b & c & d
    }

    /// The next word of each axis.
    #[inline]
    fn next_words(&mut self) -> [u64; 4] {
        let at = self.at;
        self.at += 1;
        self.axes.each_mut().map(|axis| {
            let mut word = axis.many[at];
            while let [place, later @ ..] = axis.few
                && *place as usize / 64 == at
            {
                word |= 1 << (place % 64);
                axis.few = later;
            }
            word
        })
    }
}

/// Decisions on all flags, in windows whose digests are computed together.
pub(super) struct Decisions<'a> {
    set: &'a FlagSet,
    context: &'a FlagContext<'a>,
    scope: Scopes<'a>,
    place: usize,
    /// For the current window: the flags whose axis is empty or contains the context's value.
    axes: [[u64; 4]; WINDOW / 64],
    /// For the current window: the buckets of rollouts in scope. Other entries are unspecified.
    buckets: [u16; WINDOW],
}

/// The number of flags per window.
const WINDOW: usize = 256;

impl<'a> Decisions<'a> {
    pub(super) fn new(set: &'a FlagSet, context: &'a FlagContext<'a>) -> Self {
        let scope = set.plan.scope(context);
        Self { set, context, scope, place: 0, axes: Default::default(), buckets: [0; WINDOW] }
    }

    /// Computes the window that starts at `place`.
    fn load_window(&mut self) {
        let Self { set, context, .. } = *self;
        let first = self.place;
        let buckets = &mut self.buckets;
        let mut batch =
            Batch::new(set.engine, set.algorithm, context.tenant_id, &set.plan.bucket_keys);
        let masks = &set.plan.masks[first / 64..];
        for (at, (masks, axes)) in masks.iter().zip(&mut self.axes).enumerate() {
            *axes = self.scope.next_words();
            let inside = axes.iter().fold(masks.eligible(context), |word, axis| word & axis);
            for place in bits::ones(masks.rollouts & inside) {
                let place = first + 64 * at + place;
                let key = &set.flags[place].bucket_key;
                batch.push(place, key, |place, bucket| buckets[place - first] = bucket);
            }
        }
        batch.finish(|place, bucket| buckets[place - first] = bucket);
    }

    fn reason(&self, flag: &Compiled, place: usize) -> Reason {
        if flag.require_active_tenant && self.context.tenant_active != Some(true) {
            return Reason::InactiveTenant;
        }
        if let Rule::Always(reason) = flag.rule {
            return reason;
        }
        let axes = &self.axes[place / 64];
        let missed = AXES.into_iter().zip(axes).find(|(_, word)| **word >> (place % 64) & 1 == 0);
        match (missed, flag.rule) {
            (Some((axis, _)), _) => Reason::ScopeMismatch(axis),
            (None, Rule::Rollout { threshold }) => rolled_out(self.buckets[place], threshold),
            (None, _) => Reason::Targeted,
        }
    }
}

impl<'a> Iterator for Decisions<'a> {
    type Item = (&'a str, Decision);

    fn next(&mut self) -> Option<Self::Item> {
        let flag = self.set.flags.get(self.place)?;
        let place = self.place % WINDOW;
        if place == 0 {
            self.load_window();
        }
        self.place += 1;
        Some((&flag.key, self.reason(flag, place).into()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.set.len() - self.place;
        (left, Some(left))
    }
}
