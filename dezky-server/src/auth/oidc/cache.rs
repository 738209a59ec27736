//! The times of fetches and of the use of keys: a pure function of results and times.

use std::sync::Arc;
use std::time::Duration;

use dezky_core::Timestamp;

use crate::auth::jwt::KeySet;

/// The minimum time between two fetches that unknown keys cause. It counts for the issuer and not
/// for each key, so that invented keys are no lever.
pub const COOL_DOWN: Duration = Duration::from_secs(30);
/// The shortest time for which fetched keys are fresh.
pub const MIN_FRESH: Duration = Duration::from_mins(10);
/// The longest time for which fetched keys are fresh.
pub const MAX_FRESH: Duration = Duration::from_hours(24);
/// The time for which keys are fresh if the response does not say.
const DEFAULT_FRESH: Duration = Duration::from_hours(1);
/// The time for which stale keys are used while the issuer is unavailable.
pub const MAX_STALE: Duration = Duration::from_hours(24);
/// The first wait after a failure; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The state of an issuer's keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache {
    good: Option<Good>,
    last_attempt: Option<Timestamp>,
    /// The number of attempts that have ended.
    pub(super) attempts: u64,
    pub(super) is_fetching: bool,
    /// The number of failures since the last success.
    failures: u32,
    /// The reason for the last failure, if the last attempt failed.
    pub(super) problem: Option<String>,
}

#[derive(Debug, Clone)]
struct Good {
    keys: Arc<KeySet>,
    fetched_at: Timestamp,
    fresh_for: Duration,
}

impl Cache {
    /// The last keys that were fetched, unless they are too old.
    pub(super) fn keys(&self, now: Timestamp) -> Option<&Arc<KeySet>> {
        let good = self.good.as_ref()?;
        let age = now.saturating_since(good.fetched_at);
        (age <= good.fresh_for + MAX_STALE).then_some(&good.keys)
    }

    /// The keys that are used while none can be fetched, for the log.
    pub(super) fn use_of_keys(&self, now: Timestamp) -> &'static str {
        match &self.good {
            Some(good) if now.saturating_since(good.fetched_at) < good.fresh_for => "fresh",
            _ if self.keys(now).is_some() => "stale",
            _ => "none",
        }
    }

    /// Whether an unknown key may cause a fetch.
    pub(super) fn may_refetch(&self, now: Timestamp) -> bool {
        // A time in the future was noted by a clock that was ahead.
        !self.is_fetching
            && self
                .last_attempt
                .is_none_or(|last| last > now || now.saturating_since(last) >= COOL_DOWN)
    }

    /// The time until the keys are to be fetched without being asked for.
    pub(super) fn due_in(&self, now: Timestamp) -> Duration {
        let Some(last_attempt) = self.last_attempt.filter(|last| *last <= now) else {
            return Duration::ZERO;
        };
        let (since, wait) = match &self.good {
            Some(good) if self.failures == 0 => (good.fetched_at, good.fresh_for),
            _ => (last_attempt, self.retry_wait()),
        };
        wait.saturating_sub(now.saturating_since(since))
    }

    /// The wait after a failure.
    fn retry_wait(&self) -> Duration {
        let doubled = FIRST_RETRY * 2_u32.pow(self.failures.saturating_sub(1).min(6));
        doubled.min(2 * COOL_DOWN)
    }

    /// A fetch begins.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.is_fetching = true;
        self.last_attempt = Some(now);
    }

    /// The fetch that began has ended. Keys are kept if it failed.
    pub(super) fn end(
        &mut self,
        fetched: Result<(KeySet, Option<Duration>), String>,
        now: Timestamp,
    ) {
        self.is_fetching = false;
        self.attempts += 1;
        match fetched {
            Ok((keys, max_age)) => {
                let fresh_for = max_age.unwrap_or(DEFAULT_FRESH).clamp(MIN_FRESH, MAX_FRESH);
                self.good = Some(Good { keys: Arc::new(keys), fetched_at: now, fresh_for });
                self.failures = 0;
                self.problem = None;
            }
            Err(problem) => {
                self.failures = self.failures.saturating_add(1);
                self.problem = Some(problem);
            }
        }
    }
}

/// The `max-age` of `Cache-Control`; zero if the response must not be stored.
pub(super) fn max_age(cache_control: &str) -> Option<Duration> {
    let mut found = None;
    for directive in cache_control.split(',').map(str::trim) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        if name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache") {
            return Some(Duration::ZERO);
        }
        if name.eq_ignore_ascii_case("max-age") {
            found = value.trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_796_058_000_000).unwrap();

    fn at(seconds: u64) -> Timestamp {
        START.saturating_add(Duration::from_secs(seconds))
    }

    fn fetched(cache: &mut Cache, at: Timestamp, max_age: Option<u64>) {
        cache.begin(at);
        cache.end(Ok((KeySet::default(), max_age.map(Duration::from_secs))), at);
    }

    fn failed(cache: &mut Cache, at: Timestamp) {
        cache.begin(at);
        cache.end(Err("away".into()), at);
    }

    #[test]
    fn freshness_is_clamped() {
        for (max_age, due) in
            [(None, 3_600), (Some(0), 600), (Some(1_800), 1_800), (Some(1 << 40), 86_400)]
        {
            let mut cache = Cache::default();
            assert_eq!(cache.due_in(at(0)), Duration::ZERO);
            fetched(&mut cache, at(0), max_age);
            assert_eq!(cache.due_in(at(0)), Duration::from_secs(due), "{max_age:?}");
            assert_eq!(cache.due_in(at(due - 1)), Duration::from_secs(1));
            assert_eq!(cache.due_in(at(due + 9)), Duration::ZERO);
        }
    }

    #[test]
    fn stale_keys_are_kept_for_a_day_and_failures_back_off() {
        let mut cache = Cache::default();
        fetched(&mut cache, at(0), Some(600));
        assert_eq!(cache.use_of_keys(at(599)), "fresh");
        let mut now = 600;
        for wait in [5, 10, 20, 40, 60, 60] {
            failed(&mut cache, at(now));
            assert_eq!(cache.due_in(at(now)), Duration::from_secs(wait));
            assert!(cache.keys(at(now)).is_some());
            assert_eq!(cache.use_of_keys(at(now)), "stale");
            now += wait;
        }
        assert!(cache.keys(at(600 + 86_400)).is_some());
        assert!(cache.keys(at(601 + 86_400)).is_none());
        assert_eq!(cache.use_of_keys(at(601 + 86_400)), "none");
        fetched(&mut cache, at(now), None);
        assert_eq!((cache.problem.as_ref(), cache.attempts), (None, 8));
    }

    #[test]
    fn unknown_keys_cause_one_fetch_per_cool_down() {
        let mut cache = Cache::default();
        assert!(cache.may_refetch(at(0)));
        cache.begin(at(0));
        assert!(!cache.may_refetch(at(100)), "one is on its way");
        cache.end(Err("away".into()), at(5));
        assert!(!cache.may_refetch(at(29)), "failures count as well");
        assert!(cache.may_refetch(at(30)));
        // A clock that was set back does not block fetches.
        fetched(&mut cache, at(1_000), None);
        assert!(!cache.may_refetch(at(1_001)));
        assert!(cache.may_refetch(at(0)));
        assert_eq!(cache.due_in(at(0)), Duration::ZERO);
    }

    #[test]
    fn cache_control_is_read() {
        for (header, expected) in [
            ("max-age=600", Some(600)),
            ("public, Max-Age=\"60\", must-revalidate", Some(60)),
            ("no-store", Some(0)),
            ("max-age=600, no-cache", Some(0)),
            ("max-age=x", None),
            ("private", None),
            ("", None),
        ] {
            assert_eq!(max_age(header), expected.map(Duration::from_secs), "{header}");
        }
    }
}
