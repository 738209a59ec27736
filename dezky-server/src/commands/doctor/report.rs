//! The findings of `doctor`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use dezky_core::Error;
use serde::Serialize;

use crate::app::schema::Versions;

/// The largest difference between two clocks that is not worth a word.
const MAX_SKEW: Duration = Duration::from_secs(2);
/// How many events may wait in the outbox: a server moves a thousand at a time.
const MAX_BACKLOG: u64 = 1_000;
/// What a database of SQL has, once all of its parts were made.
const TABLES: [&str; 15] = [
    "dezky_audit_events",
    "dezky_audit_log",
    "dezky_cursors",
    "dezky_flags",
    "dezky_flags_state",
    "dezky_leases",
    "dezky_outbox",
    "dezky_partners",
    "dezky_quarantine",
    "dezky_schema",
    "dezky_tenant_domains",
    "dezky_tenants",
    "dezky_user_identities",
    "dezky_user_tenants",
    "dezky_users",
];
/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    Warn,
    Bad,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One finding.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) level: Level,
    pub(super) what: &'static str,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// All findings, in their order.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
    /// The fix if the log is missing although a head of it is noted.
    pub(super) lost: Option<String>,
}

impl Report {
    pub(super) fn ok(&mut self, what: &'static str, finding: impl Into<String>) {
        self.checks.push(Check { level: Level::Ok, what, finding: finding.into(), fix: None });
    }

    pub(super) fn warn(
        &mut self,
        what: &'static str,
        finding: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (finding, fix) = (finding.into(), Some(fix.into()));
        self.checks.push(Check { level: Level::Warn, what, finding, fix });
    }

    pub(super) fn bad(
        &mut self,
        what: &'static str,
        finding: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (finding, fix) = (finding.into(), Some(fix.into()));
        self.checks.push(Check { level: Level::Bad, what, finding, fix });
    }

    /// An error of an SQLite file, whose text ends with the fix, behind a colon.
    pub(super) fn error(&mut self, what: &'static str, error: &Error) {
        let said = error.to_string();
        match said.rsplit_once(": ") {
            Some((finding, fix)) => self.bad(what, finding, fix),
            None => self.bad(what, said, "restore a backup"),
        }
    }

    /// A log that is not there: `fix` makes it, unless it was there once.
    pub(super) fn missing(&mut self, what: &'static str, fix: &str) {
        match self.lost.clone() {
            Some(lost) => self.bad(what, "the log is gone", lost),
            None => self.bad(what, "there is none yet", fix),
        }
    }

    pub(super) fn count(&self, level: Level) -> usize {
        self.checks.iter().filter(|check| check.level == level).count()
    }

    /// Compares the server's clock with ours, read before and after it.
    pub(super) fn clocks(&mut self, before: SystemTime, theirs_ms: i64, after: SystemTime) {
        let ms = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        // A difference between the two is the time of the round trip.
        let ahead = (theirs_ms - ms(after)).max(0);
        let behind = (ms(before) - theirs_ms).max(0);
        let (skew, which) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
        let what = "clock";
        if u128::from(skew.unsigned_abs()) > MAX_SKEW.as_millis() {
            self.warn(
                what,
                format!("the database's is {skew} ms {which} this machine's"),
                "let both follow a time server (NTP)",
            );
        } else {
            self.ok(what, format!("within {skew} ms of this machine's"));
        }
    }

    pub(super) fn outbox(&mut self, waiting: u64) {
        let what = "outbox";
        if waiting > MAX_BACKLOG {
            self.warn(
                what,
                format!("{waiting} events or more wait for their place in the log"),
                "start a server: it moves them",
            );
        } else {
            self.ok(what, format!("{waiting} events wait for their place in the log"));
        }
    }

    /// The tables of an SQL database with these versions.
    pub(super) fn tables(&mut self, versions: &BTreeMap<String, usize>, there: &[String]) {
        let is_made = ["audit", "directory", "flags"].iter().all(|c| versions.contains_key(*c));
        let missing: Vec<_> =
            TABLES.into_iter().filter(|table| !there.iter().any(|name| name == table)).collect();
        if is_made && !missing.is_empty() {
            self.bad("schema", format!("missing: {}", missing.join(", ")), "restore a backup");
        }
    }

    /// The components' versions against those that this program knows.
    pub(super) fn schema(&mut self, versions: &Versions) {
        let what = "schema";
        if versions.now.is_empty() {
            return self.missing(what, "dezky-server migrate");
        }
        for (component, known) in versions.known {
            let now = versions.of(component);
            let finding = format!("{component} is at version {now}, this program knows {known}");
            match now.cmp(&known) {
                Ordering::Less => self.bad(what, finding, "dezky-server migrate"),
                Ordering::Greater => self.bad(what, finding, "use a newer program"),
                Ordering::Equal => self.ok(what, finding),
            }
        }
    }

    pub(super) fn to_text(&self) -> String {
        let width = self.checks.iter().map(|check| check.what.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Check { level, what, finding, fix } in &self.checks {
            let _ = write!(text, "{:4}  {what:width$}  {finding}", level.as_str());
            if let Some(fix) = fix {
                let _ = write!(text, ": {fix}");
            }
            text.push('\n');
        }
        text
    }
}

/// Whether a host is this machine, so that nobody listens in between.
pub(super) fn is_local(host: &str) -> bool {
    host.is_empty()
        || host == "localhost"
        || host.starts_with('/')
        || host.starts_with("%2F")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::schema::known;
    use crate::config::StoreUrl;

    #[test]
    fn clocks_that_differ_by_more_than_the_way_are_told() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        for (before, theirs, after, level) in [
            (10_000, 10_500, 11_000, Level::Ok),
            (10_000, 8_000, 11_000, Level::Ok),
            (10_000, 7_999, 11_000, Level::Warn),
            (10_000, 13_000, 11_000, Level::Ok),
            (10_000, 13_001, 11_000, Level::Warn),
        ] {
            let mut report = Report::default();
            report.clocks(at(before), theirs, at(after));
            assert_eq!(report.checks[0].level, level, "{theirs}: {report:?}");
        }
    }

    #[test]
    fn an_outdated_schema_is_told_from_a_newer_one() {
        let url = StoreUrl::parse("sqlite://x.db").unwrap();
        let known = known(&url);
        let level = |component: &str, by: isize| {
            let version = |(name, known): (&str, usize)| {
                let version =
                    if name == component { known.saturating_add_signed(by) } else { known };
                (name.to_owned(), version)
            };
            let mut report = Report::default();
            report.schema(&Versions::new(&url, known.into_iter().map(version).collect()));
            (report.count(Level::Bad), report.to_text())
        };
        assert_eq!(level("audit", 0).0, 0);
        assert!(level("flags", -1).1.contains("bad   schema  flags is at version 0"));
        assert!(level("directory", 1).1.contains("use a newer program"));
    }
}
