//! The reference implementation of decisions.

use crate::{Axis, BucketAlgorithm, Decision, Flag, FlagContext, FlagState, Reason, Scope};

/// Decides a flag. This is the definition with which [`FlagSet`](crate::FlagSet) must agree.
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
    decide_with_algorithm(flag, context, BucketAlgorithm::Whole)
}

/// Like [`decide`], but computes the bucket with the given algorithm.
pub fn decide_with_algorithm(
    flag: &Flag,
    context: &FlagContext<'_>,
    algorithm: BucketAlgorithm,
) -> Decision {
    let mismatch = first_mismatch(&flag.scope, context);
    let fine = || algorithm.fine_bucket(context.tenant_id, flag.bucket_key());
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

/// The reason of a rollout's decision; both numbers are in hundredths of a percentage point.
pub(crate) fn rolled_out(bucket: u16, threshold: u16) -> Reason {
    let whole = u8::try_from(bucket / 100).unwrap_or(0);
    if bucket < threshold { Reason::InRollout(whole) } else { Reason::OutOfRollout(whole) }
}

/// Whether every non-empty axis contains the context's value. An empty scope matches everybody; a
/// value absent from the context matches no axis that has values.
pub fn matches_scope(scope: &Scope, context: &FlagContext<'_>) -> bool {
    first_mismatch(scope, context).is_none()
}

/// Whether any axis has values.
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

pub(crate) fn axes(scope: &Scope) -> [(Axis, &Vec<String>); 4] {
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
        let value = matches!(
            reason,
            Reason::On | Reason::Targeted | Reason::InRollout(_) | Reason::FullRollout
        );
        Self { value, reason }
    }
}
