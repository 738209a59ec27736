//! Points in time, as the log keeps them.

use std::fmt;
use std::time::Duration;

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whole milliseconds since the Unix epoch, UTC, years 0001 to 9999.
///
/// The text form is `2026-11-21T20:12:21.123Z`, always with three digits of
/// fraction; any RFC 3339 text is read, floored to the millisecond.
///
/// ```
/// use dezky_core::Timestamp;
/// let t = Timestamp::parse("2026-11-21T21:12:21.1239+01:00").unwrap();
/// assert_eq!(t.to_string(), "2026-11-21T20:12:21.123Z");
/// assert!(Timestamp::parse("yesterday").is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00.000Z
    pub const MIN: Self = Self(-62_135_596_800_000);
    /// 9999-12-31T23:59:59.999Z
    pub const MAX: Self = Self(253_402_300_799_999);

    /// The point `ms` milliseconds after the epoch; `None` outside [`Self::MIN`]…[`Self::MAX`].
    pub const fn from_millis(ms: i64) -> Option<Self> {
        if ms < Self::MIN.0 || ms > Self::MAX.0 { None } else { Some(Self(ms)) }
    }

    /// The nearest representable point.
    pub const fn from_millis_clamped(ms: i64) -> Self {
        if ms < Self::MIN.0 {
            Self::MIN
        } else if ms > Self::MAX.0 {
            Self::MAX
        } else {
            Self(ms)
        }
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339; a finer fraction is floored. `None` if it is no such text
    /// or lies outside the range.
    pub fn parse(text: &str) -> Option<Self> {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let ms = t.unix_timestamp_nanos().div_euclid(1_000_000);
        Self::from_millis(i64::try_from(ms).ok()?)
    }

    /// The point `by` later, clamped to the range.
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Self {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis_clamped(self.0.saturating_add(by))
    }

    /// Whether this, the end of a wait of at most `longest`, is still to come. An end that
    /// is further away was set by a clock that was ahead, and is over.
    #[must_use]
    pub fn is_ahead_of(self, now: Self, longest: Duration) -> bool {
        now < self && self <= now.saturating_add(longest)
    }

    /// How much later this is than `earlier`; zero if it is not.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .map_err(|_| fmt::Error)?;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second(),
            t.millisecond()
        )
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(
                "expected an RFC 3339 time of the years 0001 to 9999, such as 2026-11-21T20:12:21.123Z",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_a_clock_set_which_was_ahead_is_over() {
        let now = Timestamp::parse("2026-11-21T20:00:00Z").unwrap();
        let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
        assert!(now.saturating_add(minute).is_ahead_of(now, minute));
        assert!(!now.is_ahead_of(now, minute), "it has come");
        assert!(!now.saturating_add(hour).is_ahead_of(now, minute), "no wait is so long");
    }

    #[test]
    fn bounds_and_flooring() {
        assert_eq!(Timestamp::MIN.to_string(), "0001-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999Z");
        assert!(Timestamp::from_millis(Timestamp::MAX.0 + 1).is_none());
        let before_epoch = Timestamp::parse("1969-12-31T23:59:59.9999Z").unwrap();
        assert_eq!(before_epoch.as_millis(), -1);
        assert_eq!(Timestamp::parse(&before_epoch.to_string()), Some(before_epoch));
    }
}
