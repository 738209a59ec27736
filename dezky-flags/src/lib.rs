#![doc = include_str!("../README.md")]

mod bucket;
mod compile;
mod digest;
mod edit;
mod evaluate;
mod explain;
mod file;
mod import;
pub mod live;
mod model;
pub mod openfeature;
mod partial;
mod preview;
mod seed;
mod stale;
pub mod store;
mod usage;

#[cfg(feature = "testkit")]
pub mod testkit;

use std::fmt;

pub use bucket::{BucketAlgorithm, bucket, fine_bucket, in_rollout_bucket};
pub use compile::{Bits, BucketRow, FlagHandle, FlagSet, Offsets};
pub use dezky_core::change::{Edit, MAX_NOTE_BYTES};
pub use digest::DigestEngine;
pub use edit::{Flags, Updated};
pub use evaluate::{decide, decide_with_algorithm, has_any_scope, matches_scope};
pub use explain::{Explanation, Rollout, explain};
pub use file::FlagFile;
pub use import::{ImportMode, ImportOutcome, Imported};
pub use live::LiveFlags;
pub use model::{
    Change, ChangeActor, FieldChange, Flag, FlagOptions, FlagPatch, FlagState, KILL_SWITCH_NOTE,
    MAX_DESCRIPTION_BYTES, MAX_HISTORY, MAX_KEY_BYTES, MAX_PCT, MAX_PCT_HUNDREDTHS,
    MAX_SCOPE_VALUE_BYTES, MAX_SCOPE_VALUES, MAX_SEED_BYTES, NewFlag, OptionsPatch, RESERVED_KEY,
    Scope, ScopePatch,
};
pub use partial::{PartialContext, decide_partial};
pub use preview::{
    Flipped, FlippedTenant, MAX_LISTED_PLANS, MAX_LISTED_TENANTS, PlanPreview, Preview, Previewer,
    SnapshotPreviewer, decides_alike, preview,
};
pub use seed::seeded_flags;
pub use stale::{StaleConfig, StaleFlag, StaleReason, stale_flags};
pub use usage::{FlagUsage, Usage};

/// Decides flags within the calling process.
///
/// Pure, synchronous and infallible: the same flags and context always yield the same decision, and
/// an unknown flag yields a decision with a reason rather than an error. Object-safe.
pub trait FlagEvaluator: Send + Sync {
    /// Returns the decision on `flag` for `context`.
    fn evaluate(&self, flag: &str, context: &FlagContext<'_>) -> Decision;
}

/// The subject of an evaluation. Borrows its values, so that evaluating allocates nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlagContext<'a> {
    /// The tenant's id: the first half of a rollout bucket's input.
    pub tenant_id: &'a str,
    /// The tenant's slug.
    pub tenant_slug: Option<&'a str>,
    /// The tenant's plan.
    pub plan: Option<&'a str>,
    /// The tenant's partner.
    pub partner_slug: Option<&'a str>,
    /// The environment: `production`, `staging`.
    pub environment: Option<&'a str>,
    /// Whether the tenant is active; `None` counts as inactive. Read only by flags that [require an
    /// active tenant](FlagOptions::require_active_tenant).
    pub tenant_active: Option<bool>,
}

/// A flag's value and the reason for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// On or off.
    pub value: bool,
    /// The reason for the value.
    pub reason: Reason,
}

/// The reason why a flag is on or off. `Display` gives the form that the HTTP API sends.
///
/// ```
/// use dezky_flags::{Axis, Reason};
/// assert_eq!(Reason::InRollout(42).to_string(), "in_rollout(42)");
/// assert_eq!(Reason::ScopeMismatch(Axis::Plan).to_string(), "scope_mismatch(plan)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The flag is off.
    Off,
    /// The flag is on.
    On,
    /// The targeted flag's scope contains the context.
    Targeted,
    /// An axis of the scope does not contain the context's value.
    ScopeMismatch(Axis),
    /// The targeted flag has an empty scope, which matches nobody.
    EmptyScope,
    /// The tenant's bucket is below the percentage.
    InRollout(u8),
    /// The tenant's bucket is not below the percentage.
    OutOfRollout(u8),
    /// There is no such flag.
    UnknownFlag,
    /// The flag requires an active tenant, and the context's tenant is not known to be active.
    InactiveTenant,
    /// The stored flag can't be read. Other flags are not affected.
    InvalidFlag,
    /// The rollout includes every tenant in its scope. Given only where the tenant is unknown.
    FullRollout,
    /// The rollout includes no tenant. Given only where the tenant is unknown.
    EmptyRollout,
}

/// An axis of a flag's scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Plans.
    Plan,
    /// Tenants.
    TenantSlug,
    /// Partners.
    PartnerSlug,
    /// Environments.
    Environment,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::Targeted => f.write_str("targeted"),
            Self::ScopeMismatch(axis) => write!(f, "scope_mismatch({axis})"),
            Self::EmptyScope => f.write_str("empty_scope"),
            Self::InRollout(bucket) => write!(f, "in_rollout({bucket})"),
            Self::OutOfRollout(bucket) => write!(f, "out_of_rollout({bucket})"),
            Self::UnknownFlag => f.write_str("unknown_flag"),
            Self::InactiveTenant => f.write_str("inactive_tenant"),
            Self::InvalidFlag => f.write_str("invalid_flag"),
            Self::FullRollout => f.write_str("full_rollout"),
            Self::EmptyRollout => f.write_str("empty_rollout"),
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::TenantSlug => "tenantSlug",
            Self::PartnerSlug => "partnerSlug",
            Self::Environment => "environment",
        })
    }
}
