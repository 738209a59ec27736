//! Decisions in the terms of [OpenFeature](https://openfeature.dev).
//!
//! [`Resolution`] is the form of a decision that both the OFREP server and the providers here
//! return; it needs no feature. `FlagProvider` (feature `openfeature`) decides in this process,
//! `RemoteFlagProvider` (feature `openfeature-remote`) queries a server.
//!
//! | decision | value | reason | variant |
//! |---|---|---|---|
//! | `off` | false | `DISABLED` | `off` |
//! | `on` | true | `STATIC` | `on` |
//! | `targeted` | true | `TARGETING_MATCH` | `on` |
//! | `scope_mismatch`, `empty_scope` | false | `DEFAULT` | `off` |
//! | `in_rollout`, `out_of_rollout` | by the bucket | `SPLIT` | `on`, `off` |
//! | `full_rollout`, `empty_rollout` | true, false | `SPLIT` | `on`, `off` |
//! | `inactive_tenant` | false | `DEFAULT` | `off` |
//! | `invalid_flag` | false | `UNKNOWN` | `off` |
//! | `unknown_flag` | | the error `FLAG_NOT_FOUND` | |
//!
//! An invalid flag yields a value instead of an error: after an error, a client would use the
//! default in its code, which may be on. For the same reason, a context without a tenant or with an
//! unreadable member still gets every decision that does not depend on the unknown values
//! ([`PartialContext`](crate::PartialContext)); only the others are errors.

#[cfg(feature = "openfeature")]
mod provider;
#[cfg(feature = "openfeature-remote")]
mod remote;

use std::fmt;

use serde::Serialize;

#[cfg(feature = "openfeature")]
pub use self::provider::FlagProvider;
#[cfg(feature = "openfeature-remote")]
pub use self::remote::{OfrepToken, RemoteAnswers, RemoteConfig, RemoteFlagProvider};
use crate::live::LiveSet;
use crate::{Decision, FlagState, Reason};

/// The version of the table above. It is incremented when a decision's form changes, so that cached
/// answers in the old form are not mistaken for current ones.
pub const MAPPING_VERSION: u32 = 1;

/// The context member for the tenant's id, the first half of a bucket's input.
pub const TARGETING_KEY: &str = "targetingKey";
/// The context member for the tenant's slug.
pub const TENANT_SLUG: &str = "tenantSlug";
/// The context member for the tenant's plan.
pub const PLAN: &str = "plan";
/// The context member for the slug of the tenant's partner.
pub const PARTNER_SLUG: &str = "partnerSlug";
/// The context member for the environment.
pub const ENVIRONMENT: &str = "environment";
/// The context member that states whether the tenant is active. Only a provider that decides within
/// its process reads it; a server asks its directory.
pub const TENANT_ACTIVE: &str = "tenantActive";

/// Maximum length of a targeting key in bytes.
pub const MAX_TARGETING_KEY_BYTES: usize = 256;

/// The reason for a flag's value in OpenFeature's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum ResolutionReason {
    /// The same for everybody.
    Static,
    /// The scope contains the context.
    TargetingMatch,
    /// The flag does not apply to the context.
    Default,
    /// The tenant's bucket determines the value.
    Split,
    /// The flag is off.
    Disabled,
    /// The flag can't be read.
    Unknown,
}

impl ResolutionReason {
    /// The text form, as sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "STATIC",
            Self::TargetingMatch => "TARGETING_MATCH",
            Self::Default => "DEFAULT",
            Self::Split => "SPLIT",
            Self::Disabled => "DISABLED",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for ResolutionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A decision in OpenFeature's terms. Serialized, it has the members of an OFREP answer except the
/// key.
///
/// ```
/// use dezky_flags::Reason;
/// use dezky_flags::openfeature::Resolution;
/// let told = Resolution::of(Reason::InRollout(21).into()).unwrap();
/// assert_eq!(
///     serde_json::to_value(&told).unwrap(),
///     serde_json::json!({
///         "value": true,
///         "reason": "SPLIT",
///         "variant": "on",
///         "metadata": { "reason": "in_rollout(21)", "bucket": 21 },
///     })
/// );
/// assert!(Resolution::of(Reason::UnknownFlag.into()).is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resolution {
    /// On or off.
    pub value: bool,
    /// The reason in OpenFeature's terms.
    pub reason: ResolutionReason,
    /// `on` or `off`.
    pub variant: &'static str,
    /// The reason in dezky's terms.
    pub metadata: ResolutionMetadata,
}

/// The data behind a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResolutionMetadata {
    /// The [`Reason`], such as `scope_mismatch(plan)`.
    pub reason: String,
    /// The tenant's bucket, 0 to 99, if it determined the decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<u8>,
    /// The percentage of a rollout, 0 to 100, with up to two decimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pct: Option<f64>,
    /// The revision of the flags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

impl Resolution {
    /// Converts a decision; `None` if there is no such flag, which is an error in OpenFeature.
    pub fn of(decision: Decision) -> Option<Self> {
        let (reason, bucket) = match decision.reason {
            Reason::Off => (ResolutionReason::Disabled, None),
            Reason::On => (ResolutionReason::Static, None),
            Reason::Targeted => (ResolutionReason::TargetingMatch, None),
            Reason::ScopeMismatch(_) | Reason::EmptyScope | Reason::InactiveTenant => {
                (ResolutionReason::Default, None)
            }
            Reason::InRollout(bucket) | Reason::OutOfRollout(bucket) => {
                (ResolutionReason::Split, Some(bucket))
            }
            Reason::FullRollout | Reason::EmptyRollout => (ResolutionReason::Split, None),
            Reason::InvalidFlag => (ResolutionReason::Unknown, None),
            Reason::UnknownFlag => return None,
        };
        let metadata = ResolutionMetadata {
            reason: decision.reason.to_string(),
            bucket,
            pct: None,
            revision: None,
        };
        let variant = if decision.value { "on" } else { "off" };
        Some(Self { value: decision.value, reason, variant, metadata })
    }

    /// Converts a decision on a flag of `live`, adding the flags' revision and, for a rollout, its
    /// percentage.
    pub fn of_live(live: &LiveSet, key: &str, decision: Decision) -> Option<Self> {
        let mut told = Self::of(decision)?;
        let flags = &live.snapshot().flags;
        // Snapshots are sorted by key.
        let flag = flags.binary_search_by(|flag| flag.key.as_str().cmp(key));
        let flag = flag.ok().map(|at| &flags[at]);
        // An invalid flag may have any percentage.
        let is_rollout = |state| state == FlagState::Rollout;
        if decision.reason != Reason::InvalidFlag {
            told.metadata.pct =
                flag.filter(|flag| is_rollout(flag.state)).map(crate::Flag::percentage);
        }
        told.metadata.revision = Some(live.revision());
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Axis;

    #[test]
    fn every_decision_is_told() {
        let told = |reason: Reason| {
            let told = Resolution::of(reason.into()).unwrap();
            assert_eq!(told.metadata.reason, reason.to_string());
            assert_eq!(told.variant, if told.value { "on" } else { "off" });
            (told.value, told.reason.as_str(), told.metadata.bucket)
        };
        assert_eq!(told(Reason::Off), (false, "DISABLED", None));
        assert_eq!(told(Reason::On), (true, "STATIC", None));
        assert_eq!(told(Reason::Targeted), (true, "TARGETING_MATCH", None));
        assert_eq!(told(Reason::ScopeMismatch(Axis::Plan)), (false, "DEFAULT", None));
        assert_eq!(told(Reason::EmptyScope), (false, "DEFAULT", None));
        assert_eq!(told(Reason::InRollout(3)), (true, "SPLIT", Some(3)));
        assert_eq!(told(Reason::OutOfRollout(97)), (false, "SPLIT", Some(97)));
        assert_eq!(told(Reason::InactiveTenant), (false, "DEFAULT", None));
        assert_eq!(told(Reason::InvalidFlag), (false, "UNKNOWN", None));
        assert_eq!(told(Reason::FullRollout), (true, "SPLIT", None));
        assert_eq!(told(Reason::EmptyRollout), (false, "SPLIT", None));
        assert_eq!(Resolution::of(Reason::UnknownFlag.into()), None);
    }
}
