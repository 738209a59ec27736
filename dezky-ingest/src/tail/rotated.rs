//! The order of generations, by the names and times of their files.

use std::cmp::{Ordering, Reverse};

/// Age of a rotated file by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Suffix {
    /// `.3`: the higher, the older.
    Number(u32),
    /// `-20261121`, `-20261121.log.1`: the higher, the younger. A number after a date means
    /// different things in different programs, so it is not compared.
    Date { date: String, number: Option<u32> },
    /// `app.log.gz` next to `app.log`.
    Bare,
}

/// The endings of compressed files.
const COMPRESSED: [&str; 4] = [".gz", ".zst", ".xz", ".bz2"];

/// The minimum number of digits of a date.
const DATE_DIGITS: usize = 6;

/// A file next to the live one whose name marks it as an earlier generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rotated {
    suffix: Suffix,
    /// Whether it is compressed.
    pub(super) is_compressed: bool,
}

impl Rotated {
    /// Parses the name of a file next to the live file `base`: `audit.log.1`,
    /// `audit.log-20261121`, `audit-20261121.log`, `audit_20261121.log`,
    /// `audit20261121.log`, `audit-20261121.log.1`, with or without a compression's
    /// ending; and `audit.log.gz`.
    pub(super) fn parse(base: &str, name: &str) -> Option<Self> {
        let (plain, is_compressed) = without_compression(name);
        if plain == base {
            return is_compressed.then_some(Self { suffix: Suffix::Bare, is_compressed });
        }
        let suffix = match plain.strip_prefix(base) {
            Some(behind) => behind.strip_prefix(['.', '-', '_'])?.to_owned(),
            None => between(base, plain)?,
        };
        Some(Self { suffix: Suffix::parse(&suffix)?, is_compressed })
    }

    /// Parses the name of a file in the folder of `target`, a dated file to which the live path is
    /// a link: the same name except for the digits.
    pub(super) fn parse_dated(target: &str, name: &str) -> Option<Self> {
        let (plain, is_compressed) = without_compression(name);
        let (target, _) = without_compression(target);
        let digits = |name: &str| name.chars().filter(char::is_ascii_digit).collect::<String>();
        let frame = |name: &str| -> Vec<String> {
            let parts = name.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let date = digits(plain);
        let is_alike = frame(plain) == frame(target)
            && date.len() == digits(target).len()
            && date.len() >= DATE_DIGITS;
        is_alike.then_some(Self { suffix: Suffix::Date { date, number: None }, is_compressed })
    }

    /// Whether `compressed` is the name that this file has once it is compressed.
    pub(super) fn is_place_of(&self, compressed: &Self) -> bool {
        !self.is_compressed && compressed.is_compressed && self.suffix == compressed.suffix
    }

    /// Whether both are names of one file, compressed or not.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        self.suffix == other.suffix
    }

    /// Whether this is the live file's name with the ending of a compression.
    pub(super) fn is_bare(&self) -> bool {
        self.suffix == Suffix::Bare
    }

    /// Younger is greater; `None` if the names don't compare.
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (&self.suffix, &other.suffix) {
            (Suffix::Number(a), Suffix::Number(b)) => Some(b.cmp(a)),
            (Suffix::Date { date: a, number: m }, Suffix::Date { date: b, number: n }) => {
                (a != b || m == n).then(|| a.cmp(b))
            }
            _ => None,
        }
    }

    fn sort_key(&self) -> (u8, Reverse<u32>, &str, bool) {
        match &self.suffix {
            Suffix::Number(number) => (0, Reverse(*number), "", self.is_compressed),
            Suffix::Date { date, number } => {
                (1, Reverse(number.unwrap_or(0)), date, self.is_compressed)
            }
            Suffix::Bare => (2, Reverse(0), "", self.is_compressed),
        }
    }
}

fn without_compression(name: &str) -> (&str, bool) {
    let plain = COMPRESSED.into_iter().find_map(|ending| name.strip_suffix(ending));
    plain.map_or((name, false), |plain| (plain, true))
}

/// The text between the two parts of `base` in `name`, and after them: `20261121` in
/// `app-20261121.log` and `20261121.1` in `app-20261121.log.1`.
fn between(base: &str, name: &str) -> Option<String> {
    let (stem, extension) = base.rsplit_once('.')?;
    let rest = name.strip_prefix(stem)?;
    let at = rest.rfind(&format!(".{extension}"))?;
    let (middle, behind) = (&rest[..at], &rest[at + 1 + extension.len()..]);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !behind.is_empty() && !behind.strip_prefix(['.', '-']).is_some_and(is_number) {
        return None;
    }
    let digits = middle.bytes().filter(u8::is_ascii_digit).count();
    // `app2.log` and `app_2.log` may be another program's logs.
    let middle = match middle.strip_prefix(['.', '-']) {
        Some(middle) if behind.is_empty() || digits >= DATE_DIGITS => middle,
        None if digits >= DATE_DIGITS => middle.strip_prefix('_').unwrap_or(middle),
        _ => return None,
    };
    Some(format!("{middle}{}", behind.replacen('-', ".", 1)))
}

impl Suffix {
    fn parse(text: &str) -> Option<Self> {
        let allowed =
            |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b':' | b'T' | b'Z');
        if !text.starts_with(|c: char| c.is_ascii_digit()) || !text.bytes().all(allowed) {
            return None;
        }
        let number = |text: &str| text.parse().ok().filter(|_| text.len() <= 5);
        if let Some(number) = number(text) {
            return Some(Self::Number(number));
        }
        let is_date = |text: &str| text.bytes().filter(u8::is_ascii_digit).count() >= 8;
        let numbered = text
            .rsplit_once('.')
            .filter(|(date, _)| is_date(date))
            .and_then(|(date, behind)| Some((date, number(behind)?)));
        Some(match numbered {
            Some((date, number)) => Self::Date { date: date.to_owned(), number: Some(number) },
            None => Self::Date { date: text.to_owned(), number: None },
        })
    }
}

/// The age of a generation: its modification time, then its name. Younger is greater.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Age {
    /// Its modification time in nanoseconds since 1970.
    pub(super) mtime_ns: i64,
    /// Its name, if it still has one.
    pub(super) name: Option<Rotated>,
}

impl Age {
    /// Whether this generation may be younger than `other`: by time or by name.
    ///
    /// The two can disagree if files were copied or restored. Reading an older one again stores
    /// nothing twice, but leaving out a younger one would lose it.
    pub(super) fn may_be_younger_than(&self, other: &Self) -> bool {
        match self.compare_names(other) {
            Some(by_name) => self.mtime_ns > other.mtime_ns || by_name == Ordering::Greater,
            // Files that are written in quick succession may have the same time.
            None => self.mtime_ns >= other.mtime_ns,
        }
    }

    /// Whether this generation is older than `other`, by name where names compare.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let by_name = self.compare_names(other);
        by_name.map_or(self.mtime_ns <= other.mtime_ns, |by_name| by_name == Ordering::Less)
    }

    /// Which of the two is younger by its name; younger is greater.
    pub(super) fn compare_names(&self, other: &Self) -> Option<Ordering> {
        self.name.as_ref()?.compare(other.name.as_ref()?)
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        self.mtime_ns.cmp(&other.mtime_ns).then_with(|| {
            let (a, b) = (self.name.as_ref(), other.name.as_ref());
            a.map(Rotated::sort_key).cmp(&b.map(Rotated::sort_key))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ages() {
        let parse = |name| Rotated::parse("audit.log", name);
        for name in [
            "audit.log.1",
            "audit.log-20261121",
            "audit.log-20261121-2359",
            "audit.log.2026-11-21T23:59",
            "audit.1.log",
            "audit-20261121.log",
            "audit.log.2.gz",
            "audit_20261121.log",
            "audit20261121.log",
            "audit.log_20261121",
            "audit-20261121.log.1",
            "audit-2026-11-21.log.12.gz",
            "audit.log.gz",
        ] {
            assert!(parse(name).is_some(), "{name}");
        }
        for name in [
            "audit.log",
            "audit.log.bak",
            "audit.log1",
            "other.log.1",
            "audit.log.",
            "a",
            // Perhaps another program's.
            "audit2.log",
            "audit_2.log",
            "audit-2.log.1",
            "audit-error.log",
            "audit-error.log.1",
            "audit-20261121.log.old",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        let dated = |name| Rotated::parse_dated("app-2026-11-21.log", name);
        assert!(dated("app-2026-11-20.log").is_some() && dated("app-2026-11-20.log.gz").is_some());
        for name in ["app-2026-11-2.log", "app.2026-11-20.log", "b-2026-11-20.log", "app-.log"] {
            assert_eq!(dated(name), None, "{name}");
        }
        assert_eq!(Rotated::parse_dated("app-2.log", "app-1.log"), None, "no date");
        assert!(parse("audit.log.2.gz").unwrap().is_compressed);

        let age = |mtime_ns, name| Age { mtime_ns, name: parse(name) };
        let mut ages = vec![
            age(5, "audit.log.1"),
            age(5, "audit.log.10"),
            age(3, "audit.log-20261121"),
            age(5, "audit.log.2"),
            age(3, "audit.log-20261120"),
        ];
        ages.sort();
        assert_eq!(
            ages,
            [
                age(3, "audit.log-20261120"),
                age(3, "audit.log-20261121"),
                age(5, "audit.log.10"),
                age(5, "audit.log.2"),
                age(5, "audit.log.1"),
            ]
        );
        // Restored in the wrong order: the name counts as well as the time.
        assert!(age(1, "audit.log.1").may_be_younger_than(&age(2, "audit.log.2")));
        assert!(age(2, "audit.log.2").may_be_younger_than(&age(1, "audit.log.1")));
        assert!(!age(1, "audit.log.2").may_be_younger_than(&age(1, "audit.log.1")));
        // Numbers after the same date say nothing.
        let (a, b) = (age(1, "audit-20261121.log.1"), age(2, "audit-20261121.log.2"));
        assert!(!a.may_be_younger_than(&b) && b.may_be_younger_than(&a));
        let later = age(1, "audit-20261122.log.1");
        assert!(later.may_be_younger_than(&a) && later.may_be_younger_than(&b));
    }
}
