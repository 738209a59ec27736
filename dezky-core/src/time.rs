//! Points in time as stored in the log.

use std::fmt;
use std::time::Duration;

use ::time::format_description::well_known::{Rfc2822, Rfc3339};
use ::time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How far an event's time may be ahead of its receipt: 24 hours. Local time mislabelled as UTC is
/// off by at most 14 hours; beyond a day, the sender's clock or the unit is wrong.
pub const MAX_AHEAD: Duration = Duration::from_hours(24);

/// Maximum length of a text that is parsed as a time, in bytes.
const MAX_TIME_BYTES: usize = 128;

/// A point in time: whole milliseconds since the Unix epoch, UTC, years 0001 to 9999.
///
/// The text form is `2026-11-21T20:12:21.123Z`, always with three fractional digits. Any RFC 3339
/// text is accepted, floored to the millisecond.
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

    /// Parses RFC 3339; a finer fraction is floored. Returns `None` for any other text or a time
    /// outside the range.
    pub fn parse(text: &str) -> Option<Self> {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let ms = t.unix_timestamp_nanos().div_euclid(1_000_000);
        Self::from_millis(i64::try_from(ms).ok()?)
    }

    /// The earliest plausible time of an event, 2000-01-01T00:00:00.000Z. Earlier times come from
    /// programs without a clock (year 1, 1970, 1980) and from seconds read as milliseconds.
    pub const EARLIEST_PLAUSIBLE: Self = Self(946_684_800_000);

    /// Parses a time in any unambiguous format that sources use; see [`TimeFormat::Auto`].
    pub fn read(text: &str) -> Option<Self> {
        TimeFormat::Auto.read(text)
    }

    /// Why this is an implausible time for an event received at `received_at`; `None` if it is
    /// plausible.
    ///
    /// If the receiving clock itself is before [`Self::EARLIEST_PLAUSIBLE`], no time counts as
    /// ahead.
    pub fn problem(self, received_at: Self) -> Option<TimeProblem> {
        if self < Self::EARLIEST_PLAUSIBLE {
            return Some(TimeProblem::TooOld);
        }
        let is_ahead = received_at >= Self::EARLIEST_PLAUSIBLE
            && self.saturating_since(received_at) > MAX_AHEAD;
        is_ahead.then_some(TimeProblem::Ahead)
    }

    /// The point in time `by` later, clamped to the range.
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Self {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis_clamped(self.0.saturating_add(by))
    }

    /// Whether this end of a wait of at most `longest` is still ahead of `now`. An end further away
    /// was set while the clock was ahead, and counts as over.
    #[must_use]
    pub fn is_ahead_of(self, now: Self, longest: Duration) -> bool {
        now < self && self <= now.saturating_add(longest)
    }

    /// The time since `earlier`; zero if this is not later.
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

/// Why an event has the time of receipt instead of its source's time: `_dezky.timeProblem`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeProblem {
    /// The source sent no time.
    Absent,
    /// The text is not a time, or is ambiguous.
    Unreadable,
    /// More than [`MAX_AHEAD`] after the receipt.
    Ahead,
    /// Before [`Timestamp::EARLIEST_PLAUSIBLE`].
    TooOld,
}

impl TimeProblem {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Unreadable, Self::Ahead, Self::TooOld];

    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unreadable => "unreadable",
            Self::Ahead => "ahead",
            Self::TooOld => "too_old",
        }
    }
}

/// The format of a source's times.
///
/// ```
/// use dezky_core::{TimeFormat, Timestamp};
/// let expected = Timestamp::parse("2026-11-21T20:12:21.500Z");
/// for text in ["2026-11-21 21:12:21,5 +0100", "1795291941.5", "1795291941500"] {
///     assert_eq!(TimeFormat::Auto.read(text), expected);
/// }
/// assert_eq!(TimeFormat::Auto.read("2026-11-21 20:12:21.5"), None, "of which zone?");
/// assert_eq!(TimeFormat::Utc.read("2026-11-21 20:12:21.5"), expected);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TimeFormat {
    /// Any unambiguous format: the texts of [`Self::Rfc3339`], and numbers in seconds,
    /// milliseconds, microseconds or nanoseconds since 1970 in the years 2000 to 2099, in which no
    /// two of these units overlap.
    #[default]
    Auto,
    /// A date and a time with an offset: `2026-11-21T20:12:21.123Z`, also with a blank or `/` as
    /// separators, with a comma before the fraction, without separators, with an offset such as
    /// `+0100` or `+01`, or with a zone's name after it; `Sat, 21 Nov 2026 20:12:21 GMT`;
    /// `21/Nov/2026:20:12:21 +0000`.
    Rfc3339,
    /// Like [`Self::Rfc3339`], but in UTC if there is no offset.
    Utc,
    /// Seconds since 1970, with or without a fraction.
    #[serde(alias = "unix_s")]
    Seconds,
    /// Milliseconds since 1970.
    #[serde(alias = "unix_ms")]
    Milliseconds,
    /// Microseconds since 1970.
    #[serde(alias = "unix_us")]
    Microseconds,
    /// Nanoseconds since 1970.
    #[serde(alias = "unix_ns")]
    Nanoseconds,
}

impl TimeFormat {
    /// Parses a time, floored to the millisecond; returns `None` if `text` does not have this
    /// format or is outside [`Timestamp::MIN`]…[`Timestamp::MAX`].
    pub fn read(self, text: &str) -> Option<Timestamp> {
        let text = text.trim();
        if text.len() > MAX_TIME_BYTES {
            return None;
        }
        let nanos = match self {
            Self::Rfc3339 => date_and_time(text, false)?,
            Self::Utc => date_and_time(text, true)?,
            Self::Auto => {
                let units = [SECOND, MILLISECOND, MICROSECOND, 1];
                let number = |unit| scaled(text, unit).filter(|nanos| YEARS_2000.contains(nanos));
                match units.into_iter().find_map(number) {
                    Some(nanos) => nanos,
                    None => date_and_time(text, false)?,
                }
            }
            Self::Seconds => scaled(text, SECOND)?,
            Self::Milliseconds => scaled(text, MILLISECOND)?,
            Self::Microseconds => scaled(text, MICROSECOND)?,
            Self::Nanoseconds => scaled(text, 1)?,
        };
        Timestamp::from_millis(i64::try_from(nanos.div_euclid(MILLISECOND)).ok()?)
    }
}

/// The units in nanoseconds.
const SECOND: i128 = 1_000_000_000;
const MILLISECOND: i128 = 1_000_000;
const MICROSECOND: i128 = 1_000;
/// 2000 to 2099, in nanoseconds since the epoch.
const YEARS_2000: std::ops::Range<i128> = 946_684_800 * SECOND..4_102_444_800 * SECOND;

/// Converts a decimal number of units to nanoseconds, floored.
fn scaled(text: &str, unit: i128) -> Option<i128> {
    if text.contains(['e', 'E']) {
        // Exact for every valid time in milliseconds, because these are below 2^53.
        let number = text.parse::<f64>().ok().filter(|number| number.abs() < 1e19)?;
        #[expect(clippy::cast_possible_truncation, reason = "the bound is checked right before")]
        let (whole, rest) = (number.trunc() as i128, (number.fract() * 1e9) as i128);
        return Some(whole * unit + (rest * unit).div_euclid(SECOND));
    }
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once(['.', ',']).unwrap_or((digits, "0"));
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if whole.len() > 20 || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let billionths = whole.parse::<i128>().ok()? * SECOND + nanos(fraction);
    Some((sign * billionths * unit).div_euclid(SECOND))
}

/// The digits after a decimal point in billionths; digits after the ninth are dropped.
fn nanos(fraction: &str) -> i128 {
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    digits.fold(0, |nanos, digit| nanos * 10 + i128::from(digit - b'0'))
}

/// A date and a time, in nanoseconds since the epoch.
fn date_and_time(text: &str, is_utc: bool) -> Option<i128> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok();
    let time = time.or_else(|| iso_8601(text, is_utc));
    let time = time.or_else(|| OffsetDateTime::parse(text, &Rfc2822).ok());
    // `21/Nov/2026:20:12:21 +0000`, as web servers write it.
    let time = time.or_else(|| {
        let (date, rest) = text.split_once(':')?;
        let text = format!("{} {rest}", date.replace('/', " "));
        OffsetDateTime::parse(&text, &Rfc2822).ok()
    });
    Some(time?.unix_timestamp_nanos())
}

/// Parses the variants of RFC 3339 that ISO 8601, programming languages and databases produce.
fn iso_8601(text: &str, is_utc: bool) -> Option<OffsetDateTime> {
    let mut rest = Rest(text);
    let year = rest.number(4)?;
    let separator = rest.one_of(&['-', '/']);
    let month = rest.number(2)?;
    if let Some(separator) = separator {
        rest.one_of(&[separator])?;
    }
    let day = rest.number(2)?;
    rest.one_of(&['T', 't', ' ', '_'])?;
    let hour = rest.number(2)?;
    let colon = rest.one_of(&[':']);
    let minute = rest.number(2)?;
    let has_seconds = colon.is_none() || rest.one_of(&[':']).is_some();
    let mut second = if has_seconds { rest.number(2)? } else { 0 };
    let mut nano = match rest.one_of(&['.', ',']) {
        Some(_) => nanos(rest.digits()?),
        None => 0,
    };
    if second == 60 {
        // A leap second stays within its minute.
        (second, nano) = (59, SECOND - 1);
    }
    rest.blanks();
    let offset = rest.offset(is_utc)?;
    let date = Date::from_calendar_date(
        year.into(),
        Month::try_from(u8::try_from(month).ok()?).ok()?,
        u8::try_from(day).ok()?,
    );
    let [hour, minute, second] = [hour, minute, second].map(|part| u8::try_from(part).ok());
    let time = Time::from_hms_nano(hour?, minute?, second?, u32::try_from(nano).ok()?);
    Some(PrimitiveDateTime::new(date.ok()?, time.ok()?).assume_offset(offset))
}

/// The unparsed rest of a time's text.
struct Rest<'t>(&'t str);

impl<'t> Rest<'t> {
    fn take(&mut self, bytes: usize) -> Option<&'t str> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// Parses a number of exactly `digits` digits, at most four.
    fn number(&mut self, digits: usize) -> Option<u16> {
        let text = self.0.get(..digits)?;
        let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())??;
        self.take(digits)?;
        Some(number)
    }

    /// Takes all following digits, at least one.
    fn digits(&mut self) -> Option<&'t str> {
        let len = self.0.bytes().take_while(u8::is_ascii_digit).count();
        (len > 0).then(|| self.take(len)).flatten()
    }

    fn one_of(&mut self, chars: &[char]) -> Option<char> {
        let c = self.0.chars().next().filter(|c| chars.contains(c))?;
        self.take(c.len_utf8())?;
        Some(c)
    }

    fn blanks(&mut self) {
        self.0 = self.0.trim_start();
    }

    /// Parses the offset, after which only a zone's name may follow.
    fn offset(&mut self, is_utc: bool) -> Option<UtcOffset> {
        if self.0.is_empty() {
            return is_utc.then_some(UtcOffset::UTC);
        }
        if ["Z", "UTC", "GMT"].iter().any(|utc| self.0.eq_ignore_ascii_case(utc)) {
            return Some(UtcOffset::UTC);
        }
        let sign = match self.one_of(&['+', '-', '\u{2212}', 'Z', 'z'])? {
            'Z' | 'z' => 0,
            '+' => 1,
            _ => -1,
        };
        let (hours, minutes) = if sign == 0 {
            (0, 0)
        } else {
            let hours = self.number(2)?;
            let has_minutes = self.one_of(&[':']).is_some() || !self.0.is_empty();
            (hours, if has_minutes { self.number(2).unwrap_or(0) } else { 0 })
        };
        // The offset already implies the zone in `[Europe/Copenhagen]`, ` CET` and ` UTC`.
        let name = self.0.trim_start();
        let is_name = name.is_empty()
            || name.starts_with('[') && name.ends_with(']')
            || name.len() < self.0.len() && name.bytes().all(|b| b.is_ascii_uppercase());
        let part = |number: u16| Some(sign * i8::try_from(number).ok()?);
        is_name.then(|| UtcOffset::from_hms(part(hours)?, part(minutes)?, 0).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unambiguous_times_are_read() {
        let expected = Timestamp::parse("2026-11-21T20:12:21.123Z");
        for text in [
            "2026-11-21T20:12:21.123Z",
            "2026-11-21T20:12:21.123+0000",
            "2026-11-21T13:12:21.123-0700",
            "2026-11-21T22:12:21.123+02",
            "2026-11-21T20:12:21,123Z",
            "2026-11-21T21:12:21,123999+01:00",
            "2026-11-21 20:12:21.123+00",
            "2026-11-21 20:12:21.123 +0000 UTC",
            "2026-11-21 21:12:21.123 +0100 CET",
            "2026-11-21 20:12:21.123 UTC",
            "2026-11-21 20:12:21.123 GMT",
            "2026-11-21T21:12:21.123+01:00[Europe/Copenhagen]",
            "2026-11-21t13:12:21.123\u{2212}07:00",
            "2026/11/21 20:12:21.123 Z",
            "20261121T201221.123Z",
            " 2026-11-21T20:12:21.123z\n",
            "1795291941.123",
            "1795291941,123",
            "1795291941123",
            "1795291941123.9",
            "1795291941123456",
            "1795291941123456789",
            "1.795291941123e12",
        ] {
            assert_eq!(Timestamp::read(text), expected, "{text}");
        }
        let whole = Timestamp::parse("2026-11-21T20:12:21Z");
        for text in [
            "1795291941",
            "Sat, 21 Nov 2026 20:12:21 GMT",
            "21 Nov 2026 21:12:21 +0100",
            "21/Nov/2026:21:12:21 +0100",
        ] {
            assert_eq!(Timestamp::read(text), whole, "{text}");
        }
        assert_eq!(Timestamp::read("2026-11-21T20:12Z"), Timestamp::parse("2026-11-21T20:12:00Z"));
        let leap = Timestamp::parse("2026-11-21T20:12:59.999Z");
        assert_eq!(Timestamp::read("2026-11-21 20:12:60+0000"), leap);
    }

    #[test]
    fn ambiguous_times_are_refused() {
        for text in [
            "",
            "now",
            "0",
            "-62135596800",
            "2026",
            "20261121",
            "20261121201221",
            "17952919411",
            "179529194112345",
            "2026-11-21",
            "2026-11-21T20:12:21",
            "2026-11-21 20:12:21.123",
            "21/11/2026 20:12:21 +0000",
            "2026-11/21 20:12:21Z",
            "2026-11-21T20:12:21.Z",
            "2026-11-21T20:12:21+1",
            "2026-11-21T20:12:21+01:0",
            "2026-11-21T20:12:21+99:00",
            "2026-11-21T20:12:21Z and more",
            "2026-13-21T20:12:21+0000",
            "2026-02-30T20:12:21+0000",
            "2026-11-21T24:00:00+0000",
            "Nov 21 20:12:21",
            "１７９５２９１９４１",
            "1e400",
            "inf",
            "NaN",
            &"1".repeat(500),
        ] {
            assert_eq!(Timestamp::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_format_that_is_named_is_the_only_one() {
        let read = |format: TimeFormat, text| format.read(text).map(|t| t.to_string());
        let said = |text: &str| Some(text.to_owned());
        assert_eq!(read(TimeFormat::Seconds, "17"), said("1970-01-01T00:00:17.000Z"));
        assert_eq!(read(TimeFormat::Seconds, "-0.5"), said("1969-12-31T23:59:59.500Z"));
        assert_eq!(read(TimeFormat::Seconds, "2026-11-21T20:12:21Z"), None);
        let seconds = "1795291941";
        assert_eq!(read(TimeFormat::Milliseconds, seconds), said("1970-01-21T18:41:31.941Z"));
        assert_eq!(
            read(TimeFormat::Microseconds, "1795291941123456"),
            said("2026-11-21T20:12:21.123Z")
        );
        assert_eq!(
            read(TimeFormat::Nanoseconds, "1795291941123456789"),
            said("2026-11-21T20:12:21.123Z")
        );
        assert_eq!(read(TimeFormat::Rfc3339, seconds), None);
        assert_eq!(read(TimeFormat::Utc, "2026-11-21 20:12:21"), said("2026-11-21T20:12:21.000Z"));
        assert_eq!(
            read(TimeFormat::Utc, "2026-11-21 20:12:21+01"),
            said("2026-11-21T19:12:21.000Z")
        );
        assert_eq!(read(TimeFormat::Seconds, &i64::MAX.to_string()), None);
    }

    #[test]
    fn times_that_are_years_off_are_not_believed() {
        let now = Timestamp::parse("2026-11-21T20:12:21Z").unwrap();
        let problem = |text: &str| Timestamp::parse(text).unwrap().problem(now);
        for (text, expected) in [
            ("2026-11-22T20:12:21Z", None),
            ("2026-11-22T20:12:21.001Z", Some(TimeProblem::Ahead)),
            ("9999-12-31T23:59:59Z", Some(TimeProblem::Ahead)),
            ("2000-01-01T00:00:00Z", None),
            ("1999-12-31T23:59:59.999Z", Some(TimeProblem::TooOld)),
            ("0001-01-01T00:00:00Z", Some(TimeProblem::TooOld)),
        ] {
            assert_eq!(problem(text), expected, "{text}");
        }
        // A clock that was never set can't call other clocks ahead.
        let unset = Timestamp::from_millis(5).unwrap();
        assert_eq!(now.problem(unset), None);
    }

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
