//! Flags compiled for speed: one path for a single decision, and a plan for deciding all flags.

mod bits;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use sha2::{Digest, Sha256};

pub use self::bits::Bits;
use self::plan::{Decisions, Plan};
use crate::digest::{Batch, Column, DigestEngine};
use crate::evaluate::{axes, rolled_out, value_of};
use crate::store::Snapshot;
use crate::{Axis, BucketAlgorithm, Decision, Flag, FlagContext, FlagEvaluator, FlagState, Reason};

/// Compiled flags, which are evaluated without allocating.
///
/// Use [`evaluate`](FlagEvaluator::evaluate) for one flag and [`evaluate_all`](Self::evaluate_all)
/// for all of them. Where the reasons don't matter, [`values_into`](Self::values_into) is the
/// fastest.
///
/// A set is immutable: later changes of the flags don't affect it. Share it in an `Arc` and compile
/// a new one after a change.
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
    /// Sorted by key.
    flags: Vec<Compiled>,
    places: HashMap<Arc<str>, usize, RandomState>,
    plan: Plan,
    algorithm: BucketAlgorithm,
    engine: DigestEngine,
    /// Fingerprint of everything, other than the tenant, that the buckets depend on; computed on
    /// first use.
    bucket_print: OnceLock<[u8; 32]>,
}

#[derive(Debug, Clone)]
struct Compiled {
    key: Arc<str>,
    bucket_key: Arc<str>,
    /// Checked before the rule.
    require_active_tenant: bool,
    rule: Rule,
    /// The non-empty axes.
    axes: Box<[AxisSet]>,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Decided regardless of the context.
    Always(Reason),
    Targeted,
    /// The threshold is in hundredths of a percentage point.
    Rollout {
        threshold: u16,
    },
}

/// A non-empty axis.
#[derive(Debug, Clone)]
struct AxisSet {
    axis: Axis,
    /// `None` if there are too many values for a linear search; the plan's index is used instead.
    values: Option<Box<[Arc<str>]>>,
}

/// One flag of a set: evaluating it skips the lookup of the key.
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

    /// The flag's position in the set, and in [`Bits`].
    pub fn place(&self) -> usize {
        self.place
    }

    /// Returns the decision on the flag.
    pub fn evaluate(&self, context: &FlagContext<'_>) -> Decision {
        self.set.decide(self.place, context)
    }

    /// A rollout's percentage in hundredths of a percentage point, 0 to 10,000; `None` for a flag
    /// that is not a rollout.
    pub fn threshold(&self) -> Option<u16> {
        match self.set.flags[self.place].rule {
            Rule::Rollout { threshold } => Some(threshold),
            Rule::Always(_) | Rule::Targeted => None,
        }
    }

    /// Writes whether the flag is on for each of many tenants to `values`, by the tenant's position.
    /// The previous content of `values` is discarded and its memory reused.
    ///
    /// The tenants share everything in `context` except the id, which is ignored. Their ids are
    /// UTF-8 text; the bytes are not checked. This is several times as fast as evaluating tenant by
    /// tenant, because several digests are computed together: fastest where id and key have at most
    /// 54 bytes together.
    ///
    /// ```
    /// # use dezky_core::Timestamp;
    /// # use dezky_flags::{Bits, Flag, FlagContext, FlagSet, FlagState, NewFlag};
    /// let new = NewFlag { state: FlagState::Rollout, pct: 25, ..NewFlag::new("partner_portal") };
    /// let set = FlagSet::compile([&Flag::new(new, Timestamp::MIN).unwrap()]);
    /// let tenants = ["1d0e6fde-e431-7835-82c1-a48a8b044551", "t-2"];
    /// let mut values = Bits::new();
    /// set.handle("partner_portal").unwrap().values_into(tenants, &FlagContext::default(), &mut values);
    /// assert_eq!(values.iter().collect::<Vec<_>>(), [true, false]);
    /// ```
    pub fn values_into<T: AsRef<[u8]>>(
        &self,
        tenant_ids: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        context: &FlagContext<'_>,
        values: &mut Bits,
    ) {
        let mut tenant_ids = tenant_ids.into_iter();
        let Some(mut rollout) = self.rollout(tenant_ids.len(), context, values) else { return };
        let mut piece: Vec<T> = Vec::with_capacity(PIECE.min(tenant_ids.len()));
        loop {
            piece.clear();
            piece.extend(tenant_ids.by_ref().take(PIECE));
            let mut ids: [&[u8]; PIECE] = [&[]; PIECE];
            for (id, tenant_id) in ids.iter_mut().zip(&piece) {
                *id = tenant_id.as_ref();
            }
            rollout.decide(&ids[..piece.len()]);
            if piece.len() < PIECE {
                return rollout.finish();
            }
        }
    }

    /// Like [`values_into`](Self::values_into), for ids that are texts in one buffer: each begins at
    /// its offset and ends at the next one, as in a column of Arrow. A text whose offsets are not
    /// ascending places in `bytes` is taken for an empty one.
    ///
    /// ```
    /// # use dezky_core::Timestamp;
    /// # use dezky_flags::{Bits, Flag, FlagContext, FlagSet, FlagState, NewFlag, Offsets};
    /// let new = NewFlag { state: FlagState::On, ..NewFlag::new("partner_portal") };
    /// let set = FlagSet::compile([&Flag::new(new, Timestamp::MIN).unwrap()]);
    /// let portal = set.handle("partner_portal").unwrap();
    /// let mut values = Bits::new();
    /// portal.values_of(b"t-1t-2", Offsets::Narrow(&[0, 3, 6]), &FlagContext::default(), &mut values);
    /// assert_eq!(values.iter().collect::<Vec<_>>(), [true, true]);
    /// ```
    pub fn values_of(
        &self,
        bytes: &[u8],
        offsets: Offsets<'_>,
        context: &FlagContext<'_>,
        values: &mut Bits,
    ) {
        let Some(mut rollout) = self.rollout(offsets.texts(), context, values) else { return };
        match offsets {
            Offsets::Narrow(offsets) => rollout.decide_texts(bytes, offsets),
            Offsets::Wide(offsets) => rollout.decide_texts(bytes, offsets),
        }
        rollout.finish();
    }

    /// What decides for each of `len` tenants; `None` if no bucket decides, and `values` is done.
    fn rollout<'v>(
        &self,
        len: usize,
        context: &FlagContext<'_>,
        values: &'v mut Bits,
    ) -> Option<Rollout<'v>> {
        let flag = &self.set.flags[self.place];
        // A digest is needed only if a bucket decides.
        let decision = self.evaluate(context);
        let threshold = match decision.reason {
            Reason::InRollout(_) | Reason::OutOfRollout(_) => self.threshold(),
            _ => None,
        };
        let Some(threshold @ 1..plan::EVERYBODY) = threshold else {
            values.fill(len, decision.value);
            return None;
        };
        let column = Column::new(self.set.engine, self.set.algorithm, &flag.bucket_key);
        Some(Rollout { column, values: Below { threshold, words: values.reset(len) }, decided: 0 })
    }
}

/// The number of ids that are handed over at a time.
const PIECE: usize = 64;

/// The offsets of texts in a buffer, one more than there are texts.
#[derive(Debug, Clone, Copy)]
pub enum Offsets<'a> {
    /// As of Arrow's type `Utf8`.
    Narrow(&'a [i32]),
    /// As of Arrow's type `LargeUtf8`.
    Wide(&'a [i64]),
}

impl Offsets<'_> {
    /// The number of texts.
    fn texts(&self) -> usize {
        let offsets = match self {
            Self::Narrow(offsets) => offsets.len(),
            Self::Wide(offsets) => offsets.len(),
        };
        offsets.saturating_sub(1)
    }
}

/// A rollout that decides for a column of tenants.
///
/// Its functions are compiled in this crate, not where a caller instantiates generic ones: callers
/// may be built without optimisation.
struct Rollout<'v> {
    column: Column,
    values: Below<'v>,
    /// The number of tenants so far.
    decided: usize,
}

/// Sets the values of tenants whose bucket is below the threshold.
struct Below<'v> {
    threshold: u16,
    words: &'v mut [u64],
}

impl Below<'_> {
    #[inline]
    fn set(&mut self, place: usize, bucket: u16) {
        // An iterator may yield more than it announced.
        if let Some(word) = self.words.get_mut(place / 64) {
            *word |= u64::from(bucket < self.threshold) << (place % 64);
        }
    }
}

impl Rollout<'_> {
    #[inline(never)]
    fn decide(&mut self, tenant_ids: &[&[u8]]) {
        self.decide_each(tenant_ids.iter().copied());
    }

    fn decide_texts<O: Copy + TryInto<usize>>(&mut self, bytes: &[u8], offsets: &[O]) {
        self.decide_each(offsets.windows(2).map(|bounds| {
            let [start, end] = bounds else { return &[][..] };
            let (Ok(start), Ok(end)) = ((*start).try_into(), (*end).try_into()) else {
                return &[];
            };
            bytes.get(start..end).unwrap_or_default()
        }));
    }

    #[inline]
    fn decide_each<'i>(&mut self, tenant_ids: impl Iterator<Item = &'i [u8]>) {
        let Self { column, values, decided } = self;
        for tenant_id in tenant_ids {
            column.push(*decided, tenant_id, |place, bucket| values.set(place, bucket));
            *decided += 1;
        }
    }

    #[inline(never)]
    fn finish(mut self) {
        self.column.finish(|place, bucket| self.values.set(place, bucket));
    }
}

/// The buckets of one tenant for all flags of a set, at two bytes per flag: deciding with them
/// computes no digests.
///
/// A row stays valid while keys and seeds are unchanged, whatever else is edited; see
/// [`FlagSet::values_with_row`].
#[derive(Clone)]
pub struct BucketRow {
    tenant_id: Box<str>,
    bucket_print: [u8; 32],
    /// By the flag's position, padded to a multiple of 64.
    buckets: Box<[u16]>,
}

impl std::fmt::Debug for BucketRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketRow").field("tenant_id", &self.tenant_id).finish_non_exhaustive()
    }
}

impl FlagSet {
    /// Compiles flags. Of flags with the same key, the last one counts. A flag that violates a
    /// bound is off, with the reason [`InvalidFlag`](Reason::InvalidFlag).
    pub fn compile<'a>(flags: impl IntoIterator<Item = &'a Flag>) -> Self {
        Self::assemble(flags.into_iter().map(|flag| (&*flag.key, Some(flag))).collect())
    }

    /// Compiles a store's flags, including those that could not be read.
    pub fn of(snapshot: &Snapshot) -> Self {
        let flags = snapshot.flags.iter().map(|flag| (&*flag.key, Some(flag)));
        let invalid = snapshot.invalid.iter().map(|flag| (&*flag.key, None));
        Self::assemble(flags.chain(invalid).collect())
    }

    /// Compiles keys with their flags; a key without a flag is invalid.
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
        plan.finish();
        Self { flags: compiled, places, plan, ..Self::default() }
    }

    /// Computes rollout buckets from the digests with another algorithm.
    #[must_use]
    pub fn with_bucket_algorithm(self, algorithm: BucketAlgorithm) -> Self {
        Self { algorithm, bucket_print: OnceLock::new(), ..self }
    }

    /// Computes the digests of rollouts with another engine, to compare engines: the results are
    /// the same. Falls back to [`Blocks`](DigestEngine::Blocks) if the processor lacks the engine's
    /// instructions.
    #[must_use]
    pub fn with_digest_engine(self, engine: DigestEngine) -> Self {
        let engine = if engine.is_available() { engine } else { DigestEngine::Blocks };
        Self { engine, ..self }
    }

    /// The number of flags.
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// Whether the set has no flags.
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty()
    }

    /// The keys, sorted: each at its [position](FlagHandle::place).
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.flags.iter().map(|flag| &*flag.key)
    }

    /// Returns a handle to the flag with this key.
    pub fn handle(&self, key: &str) -> Option<FlagHandle<'_>> {
        Some(FlagHandle { set: self, place: *self.places.get(key)? })
    }

    /// Returns the decision on every flag, by key.
    pub fn evaluate_all<'a>(
        &'a self,
        context: &'a FlagContext<'a>,
    ) -> impl Iterator<Item = (&'a str, Decision)> + 'a {
        Decisions::new(self, context)
    }

    /// Returns whether each flag is on.
    pub fn values<'a>(&'a self, context: &FlagContext<'_>) -> BTreeMap<&'a str, bool> {
        let mut values = Bits::new();
        self.values_into(context, &mut values);
        self.keys().zip(values.iter()).collect()
    }

    /// Writes whether each flag is on to `values`, by [position](FlagHandle::place). The previous
    /// content of `values` is discarded and its memory reused, so that only the first call
    /// allocates.
    ///
    /// No digest is computed for rollouts that include nobody, or everybody in their scope.
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
            Batch::new(self.engine, self.algorithm, context.tenant_id, &self.plan.bucket_keys);
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

    /// Computes the tenant's buckets for all flags, with one digest per flag.
    pub fn bucket_row(&self, tenant_id: &str) -> BucketRow {
        let mut buckets = vec![0; 64 * self.plan.masks.len()].into_boxed_slice();
        let mut batch = Batch::new(self.engine, self.algorithm, tenant_id, &self.plan.bucket_keys);
        for (place, flag) in self.flags.iter().enumerate() {
            batch.push(place, &flag.bucket_key, |place, bucket| buckets[place] = bucket);
        }
        batch.finish(|place, bucket| buckets[place] = bucket);
        BucketRow { tenant_id: tenant_id.into(), bucket_print: *self.bucket_print(), buckets }
    }

    /// Whether the row belongs to the tenant and was computed for the keys and seeds of this set.
    pub fn fits(&self, row: &BucketRow, tenant_id: &str) -> bool {
        *row.tenant_id == *tenant_id && row.bucket_print == *self.bucket_print()
    }

    /// Like [`values_into`](Self::values_into), but many times as fast because it takes the buckets
    /// from a tenant's row. A row that does not [fit](Self::fits) is ignored: the values are right
    /// whatever row is passed.
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

    /// Appends the values as a JSON object with sorted keys: `{"chat":true,"mail":false}`. `values`
    /// must come from this set; flags beyond its length count as off.
    pub fn write_json(&self, values: &Bits, out: &mut String) {
        out.reserve(self.plan.json.len() + 6 * self.len() + 2);
        out.push('{');
        let mut start = 0;
        for (end, value) in
            self.plan.json_ends.iter().zip(values.iter().chain(std::iter::repeat(false)))
        {
            // Skip the comma before the first key.
            out.push_str(&self.plan.json[start.max(1)..*end]);
            out.push_str(if value { "true" } else { "false" });
            start = *end;
        }
        out.push('}');
    }

    fn bucket_print(&self) -> &[u8; 32] {
        self.bucket_print.get_or_init(|| {
            let mut hash = Sha256::new();
            hash.update([u8::from(self.algorithm == BucketAlgorithm::Prefix32)]);
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
                let fine = self.algorithm.fine_bucket(context.tenant_id, &flag.bucket_key);
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
    /// The highest number of values of an axis that are searched linearly.
    const FEW: usize = 8;

    /// Compiles a flag and adds its values to the plan; a key without a flag is invalid.
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
