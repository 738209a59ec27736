//! Flags compiled for speed: a path for one decision, and a plan for all of them.

mod bits;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use sha2::{Digest, Sha256};

pub use self::bits::Bits;
use self::plan::{Decisions, Plan};
use crate::digest::{Batch, DigestEngine};
use crate::evaluate::{axes, rolled_out, value_of};
use crate::store::Snapshot;
use crate::{Axis, BucketReading, Decision, Flag, FlagContext, FlagEvaluator, FlagState, Reason};

/// Flags compiled for deciding: no allocation per decision.
///
/// One flag is decided by [`evaluate`](FlagEvaluator::evaluate), many at once by
/// [`evaluate_all`](Self::evaluate_all) or, where the reasons don't matter, by
/// [`values_into`](Self::values_into), which is the fastest.
///
/// A value of its own, which later changes of the flags don't reach; share it by
/// `Arc` and compile another one when they have changed.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagContext, FlagEvaluator, FlagSet, FlagState, NewFlag};
/// let new = NewFlag { state: FlagState::On, ..NewFlag::new("chat.threads") };
/// let flags = FlagSet::compile([&Flag::new(new, Timestamp::MIN).unwrap()]);
/// let context = FlagContext { tenant_id: "t-1", ..FlagContext::default() };
/// assert!(flags.evaluate("chat.threads", &context).value);
/// assert!(!flags.evaluate("chat.polls", &context).value);
/// ```
#[derive(Debug, Clone, Default)]
pub struct FlagSet {
    /// By key.
    flags: Vec<Compiled>,
    places: HashMap<Arc<str>, usize, RandomState>,
    plan: Plan,
    reading: BucketReading,
    engine: DigestEngine,
    /// What the buckets of all flags depend on beside the tenant; made when first asked.
    bucket_print: OnceLock<[u8; 32]>,
}

#[derive(Debug, Clone)]
struct Compiled {
    key: Arc<str>,
    bucket_key: Arc<str>,
    /// Asked before the rule.
    require_active_tenant: bool,
    rule: Rule,
    /// Those that are not empty.
    axes: Box<[AxisSet]>,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Decided whatever the context.
    Always(Reason),
    Targeted,
    /// In hundredths of a percentage point.
    Rollout {
        threshold: u16,
    },
}

/// An axis that is not empty.
#[derive(Debug, Clone)]
struct AxisSet {
    axis: Axis,
    /// None if they are too many to look through: the plan knows them.
    values: Option<Box<[Arc<str>]>>,
}

/// One flag of a set, found once: deciding by it saves the look-up of the key.
///
/// ```
/// use dezky_flags::{FlagContext, FlagSet, seeded_flags};
/// use dezky_core::Timestamp;
/// let flags: Vec<_> =
///     seeded_flags().into_iter().map(|new| dezky_flags::Flag::new(new, Timestamp::MIN).unwrap()).collect();
/// let set = FlagSet::compile(&flags);
/// let portal = set.handle("partner_portal").unwrap();
/// let context = FlagContext { tenant_id: "t-1", ..FlagContext::default() };
/// assert_eq!(Some(portal.evaluate(&context).value), set.values(&context).get("partner_portal").copied());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct FlagHandle<'a> {
    set: &'a FlagSet,
    place: usize,
}

impl<'a> FlagHandle<'a> {
    /// The flag's key.
    pub fn key(&self) -> &'a str {
        &self.set.flags[self.place].key
    }

    /// Where the flag stands among the set's: its place in [`Bits`].
    pub fn place(&self) -> usize {
        self.place
    }

    /// The decision.
    pub fn evaluate(&self, context: &FlagContext<'_>) -> Decision {
        self.set.decide(self.place, context)
    }
}

/// The buckets of one tenant for all flags of a set, so that deciding them again takes
/// no digest: two bytes a flag.
///
/// It stays right as long as keys and seeds are the same, whatever else is edited; see
/// [`FlagSet::values_with_row`].
#[derive(Clone)]
pub struct BucketRow {
    tenant_id: Box<str>,
    bucket_print: [u8; 32],
    /// By place, filled up to whole words of bits.
    buckets: Box<[u16]>,
}

impl std::fmt::Debug for BucketRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketRow").field("tenant_id", &self.tenant_id).finish_non_exhaustive()
    }
}

impl FlagSet {
    /// Compiles flags. Of several with one key the last one counts. One that breaks a
    /// bound is off, with the reason [`InvalidFlag`](Reason::InvalidFlag).
    pub fn compile<'a>(flags: impl IntoIterator<Item = &'a Flag>) -> Self {
        Self::assemble(flags.into_iter().map(|flag| (&*flag.key, Some(flag))).collect())
    }

    /// Compiles a store's flags, those that could not be read among them.
    pub fn of(snapshot: &Snapshot) -> Self {
        let flags = snapshot.flags.iter().map(|flag| (&*flag.key, Some(flag)));
        let invalid = snapshot.invalid.iter().map(|flag| (&*flag.key, None));
        Self::assemble(flags.chain(invalid).collect())
    }

    /// From keys with their flags; one without is invalid.
    fn assemble(mut flags: Vec<(&str, Option<&Flag>)>) -> Self {
        flags.reverse();
        flags.sort_by_key(|(key, _)| *key);
        flags.dedup_by_key(|(key, _)| *key);
        let mut places = HashMap::with_capacity_and_hasher(flags.len(), RandomState::default());
        let mut compiled = Vec::with_capacity(flags.len());
        let mut plan = Plan::with_capacity(flags.len());
        for (place, (key, flag)) in flags.into_iter().enumerate() {
            let key: Arc<str> = key.into();
            let flag = flag.filter(|flag| flag.is_decidable());
            let flag = Compiled::of(Arc::clone(&key), flag, place, &mut plan);
            plan.add_flag(place, &flag);
            places.insert(key, place);
            compiled.push(flag);
        }
        plan.settle();
        Self { flags: compiled, places, plan, ..Self::default() }
    }

    /// The same with the digests of rollouts read in another way.
    #[must_use]
    pub fn with_reading(self, reading: BucketReading) -> Self {
        Self { reading, bucket_print: OnceLock::new(), ..self }
    }

    /// The same with the digests of many rollouts computed in another way: to compare
    /// them, as the answers are the same. One that the processor has not is
    /// [`Blocks`](DigestEngine::Blocks).
    #[must_use]
    pub fn with_digest_engine(self, engine: DigestEngine) -> Self {
        let engine = if engine.is_available() { engine } else { DigestEngine::Blocks };
        Self { engine, ..self }
    }

    /// How many flags there are.
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty()
    }

    /// The keys, sorted: each at its [place](FlagHandle::place).
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.flags.iter().map(|flag| &*flag.key)
    }

    /// The flag of this key.
    pub fn handle(&self, key: &str) -> Option<FlagHandle<'_>> {
        Some(FlagHandle { set: self, place: *self.places.get(key)? })
    }

    /// The decision on every flag, by key.
    pub fn evaluate_all<'a>(
        &'a self,
        context: &'a FlagContext<'a>,
    ) -> impl Iterator<Item = (&'a str, Decision)> + 'a {
        Decisions::new(self, context)
    }

    /// Whether each flag is on.
    pub fn values<'a>(&'a self, context: &FlagContext<'_>) -> BTreeMap<&'a str, bool> {
        let mut values = Bits::new();
        self.values_into(context, &mut values);
        self.keys().zip(values.iter()).collect()
    }

    /// Whether each flag is on, by [place](FlagHandle::place). What `values` held before
    /// is gone; its memory is used again, so that nothing is allocated from the second
    /// time on.
    ///
    /// Rollouts to nobody or to everybody in their scope take no digest.
    ///
    /// ```
    /// # use dezky_core::Timestamp;
    /// # use dezky_flags::{Flag, FlagContext, FlagSet, FlagState, NewFlag};
    /// let flag = |key, state| Flag::new(NewFlag { state, ..NewFlag::new(key) }, Timestamp::MIN).unwrap();
    /// let set = FlagSet::compile([&flag("chat", FlagState::On), &flag("mail", FlagState::Off)]);
    /// let mut values = dezky_flags::Bits::new();
    /// set.values_into(&FlagContext::default(), &mut values);
    /// assert_eq!(values.iter().collect::<Vec<_>>(), [true, false]);
    /// let mut json = String::new();
    /// set.write_json(&values, &mut json);
    /// assert_eq!(json, r#"{"chat":true,"mail":false}"#);
    /// ```
    pub fn values_into(&self, context: &FlagContext<'_>, values: &mut Bits) {
        let mut batch =
            Batch::new(self.engine, self.reading, context.tenant_id, &self.plan.bucket_keys);
        let words = values.reset(self.len());
        let decide = |words: &mut [u64], place: usize, bucket: u16| {
            let inside = bucket < self.plan.thresholds[place];
            words[place / 64] |= u64::from(inside) << (place % 64);
        };
        let mut scope = self.plan.scope(context);
        for (at, masks) in self.plan.masks.iter().enumerate() {
            let eligible = masks.eligible(context);
            let inside = scope.next_word() & eligible;
            words[at] = masks.on & eligible | masks.in_scope & inside;
            for place in bits::ones(masks.hashed & inside) {
                let place = 64 * at + place;
                let key = &self.flags[place].bucket_key;
                batch.push(place, key, |place, bucket| decide(words, place, bucket));
            }
        }
        batch.finish(|place, bucket| decide(words, place, bucket));
    }

    /// The tenant's row: its buckets for all flags. It takes a digest for each of them.
    pub fn bucket_row(&self, tenant_id: &str) -> BucketRow {
        let mut buckets = vec![0; 64 * self.plan.masks.len()].into_boxed_slice();
        let mut batch = Batch::new(self.engine, self.reading, tenant_id, &self.plan.bucket_keys);
        for (place, flag) in self.flags.iter().enumerate() {
            batch.push(place, &flag.bucket_key, |place, bucket| buckets[place] = bucket);
        }
        batch.finish(|place, bucket| buckets[place] = bucket);
        BucketRow { tenant_id: tenant_id.into(), bucket_print: *self.bucket_print(), buckets }
    }

    /// Whether a row is the tenant's, and made for these keys and seeds.
    pub fn fits(&self, row: &BucketRow, tenant_id: &str) -> bool {
        *row.tenant_id == *tenant_id && row.bucket_print == *self.bucket_print()
    }

    /// [`values_into`](Self::values_into) with a tenant's row at hand, many times as
    /// fast. A row that does not [fit](Self::fits) is left aside: the values are right
    /// whatever row is given.
    ///
    /// ```
    /// # use dezky_core::Timestamp;
    /// # use dezky_flags::{Bits, Flag, FlagContext, FlagSet, FlagState, NewFlag};
    /// let rollout = |pct| NewFlag { state: FlagState::Rollout, pct, ..NewFlag::new("chat") };
    /// let set = |pct| FlagSet::compile([&Flag::new(rollout(pct), Timestamp::MIN).unwrap()]);
    /// let context = FlagContext { tenant_id: "t-1", ..FlagContext::default() };
    /// let row = set(0).bucket_row("t-1");
    /// let mut values = Bits::new();
    /// set(100).values_with_row(&row, &context, &mut values);
    /// assert!(values.get(0));
    /// ```
    pub fn values_with_row(&self, row: &BucketRow, context: &FlagContext<'_>, values: &mut Bits) {
        if !self.fits(row, context.tenant_id) {
            return self.values_into(context, values);
        }
        let words = values.reset(self.len());
        let buckets = row.buckets.as_chunks().0.iter().zip(self.plan.thresholds.as_chunks().0);
        let mut scope = self.plan.scope(context);
        for ((word, masks), (buckets, thresholds)) in
            words.iter_mut().zip(&self.plan.masks).zip(buckets)
        {
            let eligible = masks.eligible(context);
            let reached = masks.in_scope | bits::below(buckets, thresholds);
            *word = eligible & (masks.on | scope.next_word() & reached);
        }
    }

    /// Appends the values as a JSON object, keys sorted: `{"chat":true,"mail":false}`.
    /// `values` must come from this set; places that it lacks are off.
    pub fn write_json(&self, values: &Bits, out: &mut String) {
        out.reserve(self.plan.json.len() + 6 * self.len() + 2);
        out.push('{');
        let mut start = 0;
        for (end, value) in
            self.plan.json_ends.iter().zip(values.iter().chain(std::iter::repeat(false)))
        {
            // The first one without its comma.
            out.push_str(&self.plan.json[start.max(1)..*end]);
            out.push_str(if value { "true" } else { "false" });
            start = *end;
        }
        out.push('}');
    }

    fn bucket_print(&self) -> &[u8; 32] {
        self.bucket_print.get_or_init(|| {
            let mut hash = Sha256::new();
            hash.update([u8::from(self.reading == BucketReading::Prefix32)]);
            for flag in &self.flags {
                hash.update((flag.bucket_key.len() as u64).to_be_bytes());
                hash.update(&*flag.bucket_key);
            }
            hash.finalize().into()
        })
    }

    fn decide(&self, place: usize, context: &FlagContext<'_>) -> Decision {
        let flag = &self.flags[place];
        if flag.require_active_tenant && context.tenant_active != Some(true) {
            return Reason::InactiveTenant.into();
        }
        let reason = match flag.rule {
            Rule::Always(reason) => reason,
            Rule::Targeted | Rule::Rollout { .. }
                if let Some(missed) = self.first_missed(place, context) =>
            {
                Reason::ScopeMismatch(missed)
            }
            Rule::Targeted => Reason::Targeted,
            Rule::Rollout { threshold } => {
                let fine = self.reading.fine_bucket(context.tenant_id, &flag.bucket_key);
                rolled_out(fine, threshold)
            }
        };
        reason.into()
    }

    fn first_missed(&self, place: usize, context: &FlagContext<'_>) -> Option<Axis> {
        let contains = |set: &AxisSet| {
            let Some(value) = value_of(context, set.axis) else { return false };
            match &set.values {
                Some(values) => values.iter().any(|v| **v == *value),
                None => self.plan.contains(set.axis, value, place),
            }
        };
        self.flags[place].axes.iter().find(|set| !contains(set)).map(|set| set.axis)
    }
}

impl FlagEvaluator for FlagSet {
    fn evaluate(&self, flag: &str, context: &FlagContext<'_>) -> Decision {
        match self.places.get(flag) {
            Some(place) => self.decide(*place, context),
            None => Reason::UnknownFlag.into(),
        }
    }
}

impl Compiled {
    /// Up to so many values of an axis are looked through one by one.
    const FEW: usize = 8;

    /// Its values go into the plan; one without a flag is invalid.
    fn of(key: Arc<str>, flag: Option<&Flag>, place: usize, plan: &mut Plan) -> Self {
        let Some(flag) = flag else {
            let rule = Rule::Always(Reason::InvalidFlag);
            let bucket_key = Arc::clone(&key);
            return Self { key, bucket_key, require_active_tenant: false, rule, axes: [].into() };
        };
        let mut sets = Vec::new();
        if matches!(flag.state, FlagState::Targeted | FlagState::Rollout) {
            for (axis, values) in axes(&flag.scope) {
                let held = values.iter().map(|value| plan.add_value(place, axis, value));
                match values.len() {
                    0 => {}
                    1..=Self::FEW => sets.push(AxisSet { axis, values: Some(held.collect()) }),
                    _ => {
                        held.for_each(drop);
                        sets.push(AxisSet { axis, values: None });
                    }
                }
            }
        }
        let rule = match flag.state {
            FlagState::Off => Rule::Always(Reason::Off),
            FlagState::On => Rule::Always(Reason::On),
            FlagState::Targeted if sets.is_empty() => Rule::Always(Reason::EmptyScope),
            FlagState::Targeted => Rule::Targeted,
            FlagState::Rollout => Rule::Rollout { threshold: flag.threshold() },
        };
        Self {
            bucket_key: flag.options.seed.as_deref().map_or_else(|| Arc::clone(&key), Arc::from),
            key,
            require_active_tenant: flag.options.require_active_tenant
                && flag.state != FlagState::Off,
            rule,
            axes: sets.into(),
        }
    }
}
