//! Flags and a context that both the benchmark of the flags and that of its peers decide.

use dezky_core::Timestamp;
use dezky_flags::{Flag, FlagContext, FlagState, NewFlag, Scope};

pub(crate) const TENANT: &str = "1d0e6fde-e431-7835-82c1-a48a8b044551";
pub(crate) const CONTEXT: FlagContext<'static> = FlagContext {
    tenant_id: TENANT,
    tenant_slug: Some("acme"),
    plan: Some("pro"),
    partner_slug: Some("nordic"),
    environment: Some("production"),
    tenant_active: Some(true),
};

pub(crate) fn short_key(n: usize) -> String {
    format!("feature_{n:06}")
}

pub(crate) fn long_key(n: usize) -> String {
    format!("platform.feature_{n:03}")
}

pub(crate) fn flag(key: &str, state: FlagState, pct: u8, scope: Scope) -> Flag {
    let new = NewFlag { state, pct, scope, ..NewFlag::new(key) };
    Flag::new(new, Timestamp::MIN).expect("within the bounds")
}

pub(crate) fn plans(plans: &[&str]) -> Scope {
    let plans = plans.iter().map(|plan| (*plan).to_owned()).collect();
    Scope { plans, environments: vec!["production".into()], ..Scope::default() }
}

/// 40 % rollout with a scope, 30 % targeted, 20 % on, 10 % off; of those with a scope
/// one in four does not match.
pub(crate) fn mixed(count: usize, key: fn(usize) -> String) -> Vec<Flag> {
    let scope = |n: usize| match n / 10 % 4 {
        0 => plans(&["enterprise"]),
        1 => Scope {
            tenant_slugs: (0..50).map(|t| format!("tenant-{t}")).chain(["acme".into()]).collect(),
            ..Scope::default()
        },
        _ => plans(&["pro", "enterprise"]),
    };
    let make = |n: usize| match n % 10 {
        0..4 => {
            let pct = u8::try_from(n % 99 + 1).unwrap_or(0);
            flag(&key(n), FlagState::Rollout, pct, scope(n))
        }
        4..7 => flag(&key(n), FlagState::Targeted, 0, scope(n)),
        7..9 => flag(&key(n), FlagState::On, 0, Scope::default()),
        _ => flag(&key(n), FlagState::Off, 0, Scope::default()),
    };
    (0..count).map(make).collect()
}
