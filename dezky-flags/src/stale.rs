//! Detection of stale flags, which have served their purpose and should be removed.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use dezky_core::Timestamp;
use serde::Serialize;

use crate::store::Snapshot;
use crate::usage::{FlagUsage, Usage};
use crate::{Flag, FlagState, MAX_PCT, has_any_scope};

/// The criteria for stale flags.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StaleConfig {
    /// How long a flag must have decided the same for everybody, or not have been evaluated: 30
    /// days.
    pub after: Duration,
}

impl Default for StaleConfig {
    fn default() -> Self {
        Self { after: Duration::from_hours(30 * 24) }
    }
}

/// A flag that is a candidate for removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaleFlag {
    /// The flag's key.
    pub key: String,
    /// The reasons, at least one.
    pub reasons: Vec<StaleReason>,
}

/// Why a flag is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StaleReason {
    /// The flag's [expiry](crate::FlagOptions::expires_at) has passed.
    Expired {
        /// The expiry.
        since: Timestamp,
    },
    /// The flag is on for everybody and unchanged: code no longer needs to evaluate it.
    OnForEverybody {
        /// Time of the last change.
        since: Timestamp,
    },
    /// The flag is off for everybody and unchanged: the code behind it is dead.
    OffForEverybody {
        /// Time of the last change.
        since: Timestamp,
    },
    /// The flag is no longer evaluated.
    NotEvaluated {
        /// Time of the last evaluation; without one, the later of the flag's creation and the start
        /// of counting.
        since: Timestamp,
    },
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { since } => write!(f, "expired {since}"),
            Self::OnForEverybody { since } => {
                write!(f, "on for everybody, unchanged since {since}")
            }
            Self::OffForEverybody { since } => {
                write!(f, "off for everybody, unchanged since {since}")
            }
            Self::NotEvaluated { since } => write!(f, "not evaluated since {since}"),
        }
    }
}

/// Returns candidates for removal, by key: expired flags; flags that are on for everybody (`on`, or
/// rolled out to 100 % without a scope) or for nobody (`off`, targeted without a scope, or rolled
/// out to 0 %) and unchanged for the configured time; and, if `usage` is given, flags not evaluated
/// for that time.
///
/// `usage` may come from one process or be merged from several. An evaluation of all flags at once
/// counts as an evaluation of each.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::store::Snapshot;
/// use dezky_flags::{Flag, FlagState, NewFlag, StaleConfig, stale_flags};
/// let time = |text| Timestamp::parse(text).unwrap();
/// let new = NewFlag { state: FlagState::On, ..NewFlag::new("chat") };
/// let flag = Flag::new(new, time("2026-01-01T00:00:00Z")).unwrap();
/// let snapshot = Snapshot { flags: vec![flag], ..Snapshot::default() };
/// let stale = |now| stale_flags(&snapshot, None, time(now), &StaleConfig::default());
/// assert!(stale("2026-01-30T00:00:00Z").is_empty());
/// let reason = stale("2026-02-01T00:00:00Z")[0].reasons[0].to_string();
/// assert_eq!(reason, "on for everybody, unchanged since 2026-01-01T00:00:00.000Z");
/// ```
pub fn stale_flags(
    snapshot: &Snapshot,
    usage: Option<&Usage>,
    now: Timestamp,
    config: &StaleConfig,
) -> Vec<StaleFlag> {
    let used: HashMap<&str, &FlagUsage> =
        usage.into_iter().flat_map(|u| &u.flags).map(|flag| (flag.key.as_str(), flag)).collect();
    let is_long_ago = |since: &Timestamp| now.saturating_since(*since) >= config.after;
    let stale = |flag: &Flag| {
        let expired = flag.options.expires_at.filter(|at| *at <= now);
        let expired = expired.map(|since| StaleReason::Expired { since });
        let unchanged = Some(flag.updated_at).filter(is_long_ago);
        let unchanged = unchanged.and_then(|since| {
            let on = StaleReason::OnForEverybody { since };
            let off = StaleReason::OffForEverybody { since };
            Some(if always(flag)? { on } else { off })
        });
        let unused = usage.and_then(|usage| {
            let last = used.get(flag.key.as_str()).and_then(|flag| flag.last_evaluated);
            let since = last.unwrap_or_else(|| usage.since.max(flag.created_at));
            Some(since).filter(is_long_ago).map(|since| StaleReason::NotEvaluated { since })
        });
        let reasons: Vec<_> = [expired, unchanged, unused].into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| StaleFlag { key: flag.key.clone(), reasons })
    };
    snapshot.flags.iter().filter_map(stale).collect()
}

/// The flag's value if it is the same for everybody.
fn always(flag: &Flag) -> Option<bool> {
    let is_unscoped = !has_any_scope(&flag.scope);
    let on = match flag.state {
        FlagState::Off => false,
        FlagState::On => true,
        FlagState::Targeted if is_unscoped => false,
        FlagState::Rollout if flag.threshold() == 0 => false,
        FlagState::Rollout if flag.pct == MAX_PCT && is_unscoped => true,
        FlagState::Targeted | FlagState::Rollout => return None,
    };
    (!on || !flag.options.require_active_tenant).then_some(on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FlagOptions, NewFlag, Scope};

    fn day(day: i64) -> Timestamp {
        Timestamp::from_millis_clamped(day * 86_400_000)
    }

    fn flag(key: &str, change: impl FnOnce(&mut NewFlag)) -> Flag {
        let mut new = NewFlag::new(key);
        change(&mut new);
        Flag::new(new, day(100)).unwrap()
    }

    fn snapshot(flags: impl IntoIterator<Item = Flag>) -> Snapshot {
        Snapshot { flags: flags.into_iter().collect(), ..Snapshot::default() }
    }

    fn reported(snapshot: &Snapshot, usage: Option<&Usage>, now: i64) -> Vec<String> {
        let stale = stale_flags(snapshot, usage, day(now), &StaleConfig::default());
        let line = |flag: StaleFlag| {
            let reasons: Vec<_> = flag.reasons.iter().map(ToString::to_string).collect();
            let short = reasons.join("; ").replace("T00:00:00.000Z", "");
            format!("{}: {short}", flag.key)
        };
        stale.into_iter().map(line).collect()
    }

    #[test]
    fn unchanged_flags_with_one_value_for_everybody_are_stale() {
        let rollout = |new: &mut NewFlag, pct| {
            new.state = FlagState::Rollout;
            new.pct = pct;
        };
        let pro = || Scope { plans: vec!["pro".into()], ..Scope::default() };
        let flags = snapshot([
            flag("a.on", |new| new.state = FlagState::On),
            flag("b.off", |_| {}),
            flag("c.all", |new| rollout(new, 100)),
            flag("d.most", |new| rollout(new, 99)),
            flag("e.none", |new| rollout(new, 0)),
            flag("f.pro", |new| {
                rollout(new, 100);
                new.scope = pro();
            }),
            flag("g.targeted", |new| {
                new.state = FlagState::Targeted;
                new.scope = pro();
            }),
            flag("h.active", |new| {
                new.state = FlagState::On;
                new.options.require_active_tenant = true;
            }),
            flag("i.nobody", |new| new.state = FlagState::Targeted),
            flag("j.few", |new| {
                rollout(new, 0);
                new.options.pct_hundredths = 1;
            }),
        ]);
        assert_eq!(reported(&flags, None, 129), Vec::<String>::new());
        let on = "on for everybody, unchanged since 1970-04-11";
        let off = on.replace("on for", "off for");
        let expected = [
            format!("a.on: {on}"),
            format!("b.off: {off}"),
            format!("c.all: {on}"),
            format!("e.none: {off}"),
            format!("i.nobody: {off}"),
        ];
        assert_eq!(reported(&flags, None, 130), expected);
        // Setting the clock back makes no flag stale.
        assert_eq!(reported(&flags, None, 50), Vec::<String>::new());
    }

    #[test]
    fn expired_flags_are_stale_at_once() {
        let expires = |at| FlagOptions { expires_at: Some(at), ..FlagOptions::default() };
        let flags = snapshot([flag("a", |new| {
            new.state = FlagState::Rollout;
            new.pct = 5;
            new.options = expires(day(101));
        })]);
        assert_eq!(reported(&flags, None, 100), Vec::<String>::new());
        assert_eq!(reported(&flags, None, 101), ["a: expired 1970-04-12"]);
    }

    #[test]
    fn flags_that_were_not_evaluated_for_long_are_stale() {
        let rollout = |new: &mut NewFlag| {
            new.state = FlagState::Rollout;
            new.pct = 5;
        };
        let mut young = flag("young", rollout);
        young.created_at = day(120);
        let flags = snapshot([flag("never", rollout), flag("old", rollout), young]);
        let usage = |since| {
            let used = |key: &str, last_evaluated| FlagUsage {
                key: key.into(),
                on: 1,
                off: 0,
                last_evaluated,
            };
            let flags = vec![used("never", None), used("old", Some(day(110)))];
            Usage { since: day(since), flags }
        };
        assert_eq!(reported(&flags, None, 1_000), Vec::<String>::new());
        assert_eq!(reported(&flags, Some(&usage(111)), 139), Vec::<String>::new());
        let now = reported(&flags, Some(&usage(104)), 149);
        assert_eq!(
            now,
            ["never: not evaluated since 1970-04-15", "old: not evaluated since 1970-04-21"]
        );
        assert_eq!(reported(&flags, Some(&usage(104)), 150).len(), 3);
    }

    #[test]
    fn the_report_has_a_form_as_json() {
        let flags = snapshot([flag("b", |_| {})]);
        let stale = stale_flags(&flags, None, day(200), &StaleConfig::default());
        assert_eq!(
            serde_json::to_value(stale).unwrap(),
            serde_json::json!([{"key": "b", "reasons": [
                {"reason": "off_for_everybody", "since": "1970-04-11T00:00:00.000Z"}
            ]}])
        );
    }
}
