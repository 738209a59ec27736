//! Explanations of decisions, with the numbers that led to them.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use crate::evaluate::value_of;
use crate::store::Snapshot;
use crate::{Axis, Decision, Flag, FlagContext, Reason, decide, fine_bucket};

/// A decision with the data behind it. The decision is that of [`decide`], and of a
/// [`FlagSet`](crate::FlagSet) with the default bucket algorithm.
///
/// In JSON: `value`, `reason`, and depending on the reason either `axis` with the context's `given`
/// value (null if absent), or `bucket`, `threshold` and, if a seed replaced the key, `"seeded":
/// true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// The decision.
    pub decision: Decision,
    /// The context's value on the axis that [did not match](Reason::ScopeMismatch).
    pub given: Option<&'a str>,
    /// The rollout, if it determined the decision.
    pub rollout: Option<Rollout>,
}

/// A tenant's position in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollout {
    /// The bucket in hundredths of a percentage point, 0 to 9,999. Rounded down to a whole
    /// percentage if the threshold is one, because only whole percentages matter then.
    pub bucket: u16,
    /// The threshold in hundredths of a percentage point, 0 to 10,000: lower buckets are in the
    /// rollout.
    pub threshold: u16,
    /// Whether a [seed](crate::FlagOptions::seed) replaced the key.
    pub seeded: bool,
}

/// Explains the decision on a flag.
///
/// A flag that violates a bound is [invalid](Reason::InvalidFlag), as in a
/// [`FlagSet`](crate::FlagSet).
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagContext, FlagState, NewFlag, explain};
/// let new = NewFlag { state: FlagState::Rollout, pct: 25, ..NewFlag::new("partner_portal") };
/// let flag = Flag::new(new, Timestamp::MIN).unwrap();
/// let tenant_id = "1d0e6fde-e431-7835-82c1-a48a8b044551";
/// let why = explain(&flag, &FlagContext { tenant_id, ..FlagContext::default() });
/// assert_eq!(
///     serde_json::to_string(&why).unwrap(),
///     r#"{"value":true,"reason":"in_rollout(21)","bucket":21,"threshold":25}"#
/// );
/// ```
pub fn explain<'a>(flag: &Flag, context: &FlagContext<'a>) -> Explanation<'a> {
    if !flag.is_decidable() {
        return Reason::InvalidFlag.into();
    }
    let decision = decide(flag, context);
    let given = match decision.reason {
        Reason::ScopeMismatch(axis) => value_of(context, axis),
        _ => None,
    };
    let is_rollout = matches!(decision.reason, Reason::InRollout(_) | Reason::OutOfRollout(_));
    let rollout = is_rollout.then(|| {
        let fine = fine_bucket(context.tenant_id, flag.bucket_key());
        let threshold = flag.threshold();
        let bucket = if threshold.is_multiple_of(100) { fine / 100 * 100 } else { fine };
        Rollout { bucket, threshold, seeded: flag.options.seed.is_some() }
    });
    Explanation { decision, given, rollout }
}

impl Snapshot {
    /// Explains the decisions on all flags, by key, including unreadable ones.
    ///
    /// ```
    /// use dezky_flags::FlagContext;
    /// use dezky_flags::store::Snapshot;
    /// let text = r#"{"revision": 7, "flags": [{"key": "chat", "pct": 200}]}"#;
    /// let snapshot = Snapshot::from_json(text).unwrap();
    /// let why = snapshot.explain_all(&FlagContext::default());
    /// assert_eq!(why[0].0, "chat");
    /// assert_eq!(why[0].1.decision.reason.to_string(), "invalid_flag");
    /// ```
    pub fn explain_all<'a>(&'a self, context: &FlagContext<'a>) -> Vec<(&'a str, Explanation<'a>)> {
        let read = self.flags.iter().map(|flag| (flag.key.as_str(), explain(flag, context)));
        let invalid = |key: &'a str| (key, Reason::InvalidFlag.into());
        let invalid = self.invalid.iter().map(|flag| invalid(&flag.key));
        let mut all: Vec<_> = read.chain(invalid).collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }
}

impl From<Reason> for Explanation<'_> {
    /// Explains a reason that needs no further data.
    fn from(reason: Reason) -> Self {
        Self { decision: reason.into(), given: None, rollout: None }
    }
}

impl Explanation<'_> {
    /// The axis of the scope that did not match.
    pub fn axis(&self) -> Option<Axis> {
        match self.decision.reason {
            Reason::ScopeMismatch(axis) => Some(axis),
            _ => None,
        }
    }
}

impl Serialize for Explanation<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("value", &self.decision.value)?;
        members.serialize_entry("reason", &self.decision.reason.to_string())?;
        if let Some(axis) = self.axis() {
            members.serialize_entry("axis", &axis.to_string())?;
            members.serialize_entry("given", &self.given)?;
        }
        if let Some(rollout) = self.rollout {
            members.serialize_entry("bucket", &Percentage(rollout.bucket))?;
            members.serialize_entry("threshold", &Percentage(rollout.threshold))?;
            if rollout.seeded {
                members.serialize_entry("seeded", &true)?;
            }
        }
        members.end()
    }
}

/// Hundredths of a percentage point as a number: 21, or 21.37.
struct Percentage(u16);

impl Serialize for Percentage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(100) {
            serializer.serialize_u16(self.0 / 100)
        } else {
            serializer.serialize_f64(f64::from(self.0) / 100.0)
        }
    }
}
