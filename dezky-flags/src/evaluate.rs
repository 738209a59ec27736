//! Deciding: the plain definition, and a set compiled for speed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::store::Snapshot;
use crate::{
    Axis, BucketReading, Decision, Flag, FlagContext, FlagEvaluator, FlagState, MAX_PCT, Reason,
    Scope,
};

/// Decides a flag: the definition, which [`FlagSet`] must agree with.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagContext, FlagState, NewFlag, Reason, decide};
/// let new = NewFlag { state: FlagState::Rollout, pct: 25, ..NewFlag::new("partner_portal") };
/// let flag = Flag::new(new, Timestamp::MIN).unwrap();
/// let tenant_id = "1d0e6fde-e431-7835-82c1-a48a8b044551";
/// let decision = decide(&flag, &FlagContext { tenant_id, ..FlagContext::default() });
/// assert!(decision.value);
/// assert_eq!(decision.reason, Reason::InRollout(21));
/// ```
pub fn decide(flag: &Flag, context: &FlagContext<'_>) -> Decision {
    decide_reading(flag, context, BucketReading::Whole)
}

/// [`decide`] with the digest read in another way.
pub fn decide_reading(flag: &Flag, context: &FlagContext<'_>, reading: BucketReading) -> Decision {
    let mismatch = first_mismatch(&flag.scope, context);
    let fine = || reading.fine_bucket(context.tenant_id, flag.bucket_key());
    let reason = match (flag.state, mismatch) {
        (FlagState::Off, _) => Reason::Off,
        _ if flag.options.require_active_tenant && context.tenant_active != Some(true) => {
            Reason::InactiveTenant
        }
        (FlagState::On, _) => Reason::On,
        (FlagState::Targeted, _) if !has_any_scope(&flag.scope) => Reason::EmptyScope,
        (FlagState::Targeted | FlagState::Rollout, Some(axis)) => Reason::ScopeMismatch(axis),
        (FlagState::Targeted, None) => Reason::Targeted,
        (FlagState::Rollout, None) => rolled_out(fine(), flag.threshold()),
    };
    reason.into()
}

/// Both in hundredths of a percentage point.
fn rolled_out(bucket: u16, threshold: u16) -> Reason {
    let whole = u8::try_from(bucket / 100).unwrap_or(0);
    if bucket < threshold { Reason::InRollout(whole) } else { Reason::OutOfRollout(whole) }
}

/// Whether every axis that is not empty contains the context's value. An empty scope
/// matches everybody; a value that is absent from the context is in no axis.
pub fn matches_scope(scope: &Scope, context: &FlagContext<'_>) -> bool {
    first_mismatch(scope, context).is_none()
}

/// Whether an axis has values.
pub fn has_any_scope(scope: &Scope) -> bool {
    axes(scope).into_iter().any(|(_, values)| !values.is_empty())
}

fn first_mismatch(scope: &Scope, context: &FlagContext<'_>) -> Option<Axis> {
    let misses = |(axis, values): &(Axis, &Vec<String>)| {
        let value = value_of(context, *axis);
        !values.is_empty() && !values.iter().any(|v| Some(v.as_str()) == value)
    };
    axes(scope).into_iter().find(misses).map(|(axis, _)| axis)
}

fn axes(scope: &Scope) -> [(Axis, &Vec<String>); 4] {
    [
        (Axis::Plan, &scope.plans),
        (Axis::TenantSlug, &scope.tenant_slugs),
        (Axis::PartnerSlug, &scope.partner_slugs),
        (Axis::Environment, &scope.environments),
    ]
}

pub(crate) fn value_of<'a>(context: &FlagContext<'a>, axis: Axis) -> Option<&'a str> {
    match axis {
        Axis::Plan => context.plan,
        Axis::TenantSlug => context.tenant_slug,
        Axis::PartnerSlug => context.partner_slug,
        Axis::Environment => context.environment,
    }
}

impl From<Reason> for Decision {
    /// The value follows from the reason.
    fn from(reason: Reason) -> Self {
        let value = matches!(reason, Reason::On | Reason::Targeted | Reason::InRollout(_));
        Self { value, reason }
    }
}

/// Flags compiled for deciding: by key, no allocation per decision.
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
    places: HashMap<Arc<str>, usize>,
    reading: BucketReading,
}

#[derive(Debug, Clone)]
struct Compiled {
    key: Arc<str>,
    /// Asked before the rule.
    require_active_tenant: bool,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    /// Decided whatever the context.
    Always(Reason),
    Targeted(Box<[AxisSet]>),
    Rollout {
        threshold: u16,
        bucket_key: Arc<str>,
        axes: Box<[AxisSet]>,
    },
}

/// An axis that is not empty; sorted.
#[derive(Debug, Clone)]
struct AxisSet {
    axis: Axis,
    values: Box<[Box<str>]>,
}

impl FlagSet {
    /// Compiles flags. Of several with one key the last one counts. One that breaks a
    /// bound is off, with the reason [`InvalidFlag`](Reason::InvalidFlag).
    pub fn compile<'a>(flags: impl IntoIterator<Item = &'a Flag>) -> Self {
        Self::assemble(flags.into_iter().map(Compiled::of))
    }

    /// Compiles a store's flags, those that could not be read among them.
    pub fn of(snapshot: &Snapshot) -> Self {
        let invalid = snapshot.invalid.iter().map(|flag| Compiled::invalid(&flag.key));
        Self::assemble(snapshot.flags.iter().map(Compiled::of).chain(invalid))
    }

    fn assemble(flags: impl Iterator<Item = Compiled>) -> Self {
        let by_key: BTreeMap<Arc<str>, Compiled> =
            flags.map(|flag| (Arc::clone(&flag.key), flag)).collect();
        let flags: Vec<_> = by_key.into_values().collect();
        let places = flags.iter().enumerate().map(|(at, f)| (Arc::clone(&f.key), at)).collect();
        Self { flags, places, reading: BucketReading::Whole }
    }

    /// The same with the digests of rollouts read in another way.
    #[must_use]
    pub fn with_reading(mut self, reading: BucketReading) -> Self {
        self.reading = reading;
        self
    }

    /// How many flags there are.
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty()
    }

    /// The decision on every flag, by key.
    pub fn evaluate_all<'a>(
        &'a self,
        context: &'a FlagContext<'a>,
    ) -> impl Iterator<Item = (&'a str, Decision)> + 'a {
        self.flags.iter().map(|flag| (&*flag.key, flag.decide(context, self.reading)))
    }

    /// Whether each flag is on.
    pub fn values<'a>(&'a self, context: &'a FlagContext<'a>) -> BTreeMap<&'a str, bool> {
        self.evaluate_all(context).map(|(key, decision)| (key, decision.value)).collect()
    }
}

impl FlagEvaluator for FlagSet {
    fn evaluate(&self, flag: &str, context: &FlagContext<'_>) -> Decision {
        match self.places.get(flag) {
            Some(at) => self.flags[*at].decide(context, self.reading),
            None => Reason::UnknownFlag.into(),
        }
    }
}

impl Compiled {
    fn of(flag: &Flag) -> Self {
        // A rollout's bucket is defined for any key.
        let checked = flag.scope.validate().and_then(|()| flag.options.validate(flag.pct));
        if checked.is_err() || flag.pct > MAX_PCT {
            return Self::invalid(&flag.key);
        }
        let axes: Box<[_]> = axes(&flag.scope).into_iter().filter_map(AxisSet::of).collect();
        let rule = match flag.state {
            FlagState::Off => Rule::Always(Reason::Off),
            FlagState::On => Rule::Always(Reason::On),
            FlagState::Targeted if axes.is_empty() => Rule::Always(Reason::EmptyScope),
            FlagState::Targeted => Rule::Targeted(axes),
            FlagState::Rollout => Rule::Rollout {
                threshold: flag.threshold(),
                bucket_key: flag.bucket_key().into(),
                axes,
            },
        };
        let require_active_tenant =
            flag.options.require_active_tenant && flag.state != FlagState::Off;
        Self { key: flag.key.as_str().into(), require_active_tenant, rule }
    }

    fn invalid(key: &str) -> Self {
        let rule = Rule::Always(Reason::InvalidFlag);
        Self { key: key.into(), require_active_tenant: false, rule }
    }

    fn decide(&self, context: &FlagContext<'_>, reading: BucketReading) -> Decision {
        if self.require_active_tenant && context.tenant_active != Some(true) {
            return Reason::InactiveTenant.into();
        }
        let reason = match &self.rule {
            Rule::Always(reason) => *reason,
            Rule::Targeted(axes) | Rule::Rollout { axes, .. }
                if let Some(missed) = axes.iter().find(|set| !set.contains(context)) =>
            {
                Reason::ScopeMismatch(missed.axis)
            }
            Rule::Targeted(_) => Reason::Targeted,
            Rule::Rollout { threshold, bucket_key, .. } => {
                rolled_out(reading.fine_bucket(context.tenant_id, bucket_key), *threshold)
            }
        };
        reason.into()
    }
}

impl AxisSet {
    /// Up to so many values are looked through one by one.
    const FEW: usize = 8;

    fn of((axis, values): (Axis, &Vec<String>)) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let mut values: Vec<Box<str>> = values.iter().map(|value| value.as_str().into()).collect();
        values.sort_unstable();
        Some(Self { axis, values: values.into() })
    }

    fn contains(&self, context: &FlagContext<'_>) -> bool {
        let Some(value) = value_of(context, self.axis) else { return false };
        if self.values.len() <= Self::FEW {
            return self.values.iter().any(|v| &**v == value);
        }
        self.values.binary_search_by(|v| (**v).cmp(value)).is_ok()
    }
}
