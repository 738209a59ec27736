//! Decisions for partially known contexts.

use crate::evaluate::{axes, rolled_out, value_of};
use crate::{
    Axis, BucketAlgorithm, Decision, Flag, FlagContext, FlagState, MAX_PCT, Reason, decide,
};

/// The threshold of a rollout to everybody, in hundredths of a percentage point.
const FULL: u16 = MAX_PCT as u16 * 100;

/// A context that is only partially known: the caller named no tenant, sent a value that can't be
/// read, or the directory did not answer.
///
/// Unknown values must not be mistaken for absent ones: an unknown plan may still match a scope, an
/// absent one never does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartialContext<'a> {
    /// The known values. Values of members marked as unknown are ignored.
    pub known: FlagContext<'a>,
    /// Whether the tenant's id is unknown.
    pub is_tenant_unknown: bool,
    /// Whether it is unknown if the tenant is active.
    pub is_activity_unknown: bool,
    /// The axes whose values are unknown.
    pub unknown_axes: Vec<Axis>,
}

/// Returns the decision on a flag if it is the same for all values of the unknown members, else
/// `None`.
///
/// This keeps a flag off for a caller that forgot to name its tenant: after an error, an
/// OpenFeature client would use the default in its code, which may be on. Agrees with [`decide`] if
/// everything is known.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagState, NewFlag, PartialContext, Reason, decide_partial};
/// let flag = |state, pct| {
///     Flag::new(NewFlag { state, pct, ..NewFlag::new("chat") }, Timestamp::MIN).unwrap()
/// };
/// let nobody = PartialContext { is_tenant_unknown: true, ..PartialContext::default() };
/// let off = decide_partial(&flag(FlagState::Off, 0), &nobody);
/// assert_eq!(off.unwrap().reason, Reason::Off);
/// let everybody = decide_partial(&flag(FlagState::Rollout, 100), &nobody);
/// assert_eq!(everybody.unwrap().reason, Reason::FullRollout);
/// assert_eq!(decide_partial(&flag(FlagState::Rollout, 50), &nobody), None);
/// ```
pub fn decide_partial(flag: &Flag, context: &PartialContext<'_>) -> Option<Decision> {
    let requires_activity = flag.options.require_active_tenant && flag.state != FlagState::Off;
    if !requires_activity {
        return decide_for_active(flag, context);
    }
    match (context.is_activity_unknown, context.known.tenant_active) {
        (false, Some(true)) => decide_for_active(flag, context),
        (false, _) => Some(Reason::InactiveTenant.into()),
        // A flag that is off for an active tenant is off for any tenant.
        (true, _) => decide_for_active(flag, context).filter(|decision| !decision.value),
    }
}

/// The decision provided that the tenant is active.
fn decide_for_active(flag: &Flag, context: &PartialContext<'_>) -> Option<Decision> {
    let known = FlagContext { tenant_active: Some(true), ..context.known };
    if matches!(flag.state, FlagState::Off | FlagState::On) {
        return Some(decide(flag, &known));
    }
    if let Some(axis) = known_mismatch(flag, context) {
        return Some(Reason::ScopeMismatch(axis).into());
    }
    let is_rollout = flag.state == FlagState::Rollout;
    let by_bucket = match (context.is_tenant_unknown, flag.threshold()) {
        _ if !is_rollout => None,
        (true, 0) => Some(Reason::EmptyRollout),
        (true, FULL..) => Some(Reason::FullRollout),
        (true, _) => return None,
        (false, threshold) => Some(rolled_out(
            BucketAlgorithm::Whole.fine_bucket(known.tenant_id, flag.bucket_key()),
            threshold,
        )),
    };
    let decision = by_bucket.map_or_else(|| decide(flag, &known), Decision::from);
    let is_unknown = |axis| context.unknown_axes.contains(&axis);
    let depends_on_unknown =
        axes(&flag.scope).into_iter().any(|(axis, values)| !values.is_empty() && is_unknown(axis));
    // A tenant outside the rollout is off whatever the scope says.
    (!depends_on_unknown || is_rollout && !decision.value).then_some(decision)
}

/// The first axis whose known value is not in the flag's scope.
fn known_mismatch(flag: &Flag, context: &PartialContext<'_>) -> Option<Axis> {
    let misses = |(axis, values): &(Axis, &Vec<String>)| {
        let value = value_of(&context.known, *axis);
        !values.is_empty()
            && !context.unknown_axes.contains(axis)
            && !values.iter().any(|v| Some(v.as_str()) == value)
    };
    axes(&flag.scope).into_iter().find(misses).map(|(axis, _)| axis)
}

#[cfg(test)]
mod tests {
    use dezky_core::Timestamp;

    use super::*;
    use crate::{FlagOptions, NewFlag, Scope};

    const AXES: [Axis; 4] = [Axis::Plan, Axis::TenantSlug, Axis::PartnerSlug, Axis::Environment];

    fn flags() -> Vec<Flag> {
        let texts = |of: &[&str]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
        let scopes = [
            Scope::default(),
            Scope { plans: texts(&["pro"]), ..Scope::default() },
            Scope { plans: texts(&["pro"]), environments: texts(&["live"]), ..Scope::default() },
            Scope { tenant_slugs: texts(&["acme", "zeta"]), ..Scope::default() },
        ];
        let states = [FlagState::Off, FlagState::On, FlagState::Targeted, FlagState::Rollout];
        let mut flags = Vec::new();
        for scope in scopes {
            for state in states {
                for pct in [0, 40, 100] {
                    for require_active_tenant in [false, true] {
                        let options =
                            FlagOptions { require_active_tenant, ..FlagOptions::default() };
                        let new = NewFlag {
                            state,
                            pct,
                            scope: scope.clone(),
                            options,
                            ..NewFlag::new("k")
                        };
                        flags.push(Flag::new(new, Timestamp::MIN).unwrap());
                    }
                }
            }
        }
        flags
    }

    /// Every way to fill in the unknown members from a few values.
    fn completions<'a>(of: &PartialContext<'a>) -> Vec<FlagContext<'a>> {
        let mut all = vec![of.known];
        let mut fill = |set: &dyn Fn(FlagContext<'a>) -> Vec<FlagContext<'a>>| {
            all = all.iter().flat_map(|context| set(*context)).collect();
        };
        if of.is_tenant_unknown {
            fill(&|c| {
                ["t-1", "t-2", "t-3", "t-4", "t-5", "t-6", "t-7", "t-8"]
                    .map(|tenant_id| FlagContext { tenant_id, ..c })
                    .to_vec()
            });
        }
        if of.is_activity_unknown {
            fill(&|c| {
                [None, Some(false), Some(true)]
                    .map(|tenant_active| FlagContext { tenant_active, ..c })
                    .to_vec()
            });
        }
        for axis in &of.unknown_axes {
            fill(&|c| {
                [None, Some("pro"), Some("live"), Some("acme")]
                    .map(|value| match axis {
                        Axis::Plan => FlagContext { plan: value, ..c },
                        Axis::TenantSlug => FlagContext { tenant_slug: value, ..c },
                        Axis::PartnerSlug => FlagContext { partner_slug: value, ..c },
                        Axis::Environment => FlagContext { environment: value, ..c },
                    })
                    .to_vec()
            });
        }
        all
    }

    #[test]
    fn a_known_answer_is_that_of_every_completion_and_an_unknown_one_differs() {
        let (mut known, mut unknown) = (0, 0);
        for flag in flags() {
            for bits in 0..64_u8 {
                let context = PartialContext {
                    known: FlagContext {
                        tenant_id: "t-1",
                        tenant_slug: Some("acme"),
                        plan: Some(if bits & 1 == 0 { "pro" } else { "basic" }),
                        environment: Some("live"),
                        tenant_active: Some(true),
                        ..FlagContext::default()
                    },
                    is_tenant_unknown: bits & 2 != 0,
                    is_activity_unknown: bits & 4 != 0,
                    unknown_axes: AXES[..3]
                        .iter()
                        .enumerate()
                        .filter(|(at, _)| bits & (8 << at) != 0)
                        .map(|(_, axis)| *axis)
                        .collect(),
                };
                let values: Vec<bool> =
                    completions(&context).iter().map(|c| decide(&flag, c).value).collect();
                let agree = values.iter().all(|value| *value == values[0]);
                if let Some(decision) = decide_partial(&flag, &context) {
                    known += 1;
                    assert!(agree && decision.value == values[0], "{flag:?} {context:?}");
                } else {
                    unknown += 1;
                    // Values outside the completions may still differ.
                    assert!(!agree, "{flag:?} {context:?}");
                }
            }
        }
        assert!(known > 1_000 && unknown > 500, "{known} {unknown}");
    }

    #[test]
    fn with_everything_known_it_is_the_definition() {
        for flag in flags() {
            for plan in [None, Some("pro"), Some("basic")] {
                let known = FlagContext { tenant_id: "t-1", plan, ..FlagContext::default() };
                let context = PartialContext { known, ..PartialContext::default() };
                assert_eq!(decide_partial(&flag, &context), Some(decide(&flag, &known)));
            }
        }
    }
}
