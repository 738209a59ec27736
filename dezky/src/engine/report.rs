//! The findings of an examination.

use std::cmp::Ordering;

use serde::Serialize;

use super::SchemaVersions;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Passed.
    Ok,
    /// Works, but should be changed.
    Warn,
    /// A guarantee can't be kept.
    Bad,
}

impl Level {
    /// `ok`, `warn` or `bad`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One check of an examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The result.
    pub level: Level,
    /// The subject, such as `durability`.
    pub what: &'static str,
    /// The finding.
    pub finding: String,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Every check of an examination, in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
    /// The check of a log that does not exist yet.
    missing: Option<usize>,
}

impl Report {
    /// Adds a check that passed.
    pub fn ok(&mut self, what: &'static str, finding: impl Into<String>) {
        self.checks.push(Check { level: Level::Ok, what, finding: finding.into(), fix: None });
    }

    /// Adds a check that works but should be changed, and the remedy.
    pub fn warn(&mut self, what: &'static str, finding: impl Into<String>, fix: impl Into<String>) {
        let (finding, fix) = (finding.into(), Some(fix.into()));
        self.checks.push(Check { level: Level::Warn, what, finding, fix });
    }

    /// Adds a failed check and the remedy.
    pub fn bad(&mut self, what: &'static str, finding: impl Into<String>, fix: impl Into<String>) {
        let (finding, fix) = (finding.into(), Some(fix.into()));
        self.checks.push(Check { level: Level::Bad, what, finding, fix });
    }

    /// Adds the check of a log that does not exist yet, and the way to create it.
    pub(super) fn missing(&mut self, what: &'static str, fix: &str) {
        self.missing = Some(self.checks.len());
        self.bad(what, "there is none yet", fix);
    }

    /// Reports that an existing log is gone, if the examination found none: suggests `fix` instead
    /// of creating one.
    pub fn lost(&mut self, fix: impl Into<String>) {
        if let Some(check) = self.missing.and_then(|at| self.checks.get_mut(at)) {
            "the log is gone".clone_into(&mut check.finding);
            check.fix = Some(fix.into());
        }
    }

    /// The number of checks with this level.
    pub fn count(&self, level: Level) -> usize {
        self.checks.iter().filter(|check| check.level == level).count()
    }

    /// Whether a check of this subject failed.
    pub fn is_bad(&self, what: &str) -> bool {
        self.checks.iter().any(|check| check.level == Level::Bad && check.what == what)
    }

    /// Compares the components' versions with those that this program creates.
    pub(super) fn schema(&mut self, versions: &SchemaVersions) {
        let what = "schema";
        if versions.found.is_empty() {
            return self.missing(what, "dezky-server migrate");
        }
        for (component, known) in versions.known {
            let found = versions.of(component);
            let finding = format!("{component} is at version {found}, this program knows {known}");
            match found.cmp(&known) {
                Ordering::Less => self.bad(what, finding, "dezky-server migrate"),
                Ordering::Greater => self.bad(what, finding, "upgrade dezky"),
                Ordering::Equal => self.ok(what, finding),
            }
        }
    }
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
mod of_engines {
    use super::Report;

    /// The maximum number of events in the outbox that needs no attention: a server relays a
    /// thousand at a time.
    const MAX_BACKLOG: u64 = 1_000;

    impl Report {
        pub(in crate::engine) fn outbox(&mut self, waiting: u64) {
            let what = "outbox";
            if waiting > MAX_BACKLOG {
                self.warn(
                    what,
                    format!("{waiting} or more events are waiting for the log"),
                    "start a server, which relays them",
                );
            } else {
                self.ok(what, format!("{waiting} events are waiting for the log"));
            }
        }
    }
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod of_sql {
    use std::collections::BTreeMap;

    use super::Report;

    /// The tables of an SQL database in which every component was created.
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

    impl Report {
        /// Reports tables that are missing though their component was created.
        pub(in crate::engine) fn tables(
            &mut self,
            versions: &BTreeMap<String, usize>,
            there: &[String],
        ) {
            let is_made = ["audit", "directory", "flags"].iter().all(|c| versions.contains_key(*c));
            let missing: Vec<_> = TABLES
                .into_iter()
                .filter(|table| !there.iter().any(|name| name == table))
                .collect();
            if is_made && !missing.is_empty() {
                self.bad("schema", format!("missing: {}", missing.join(", ")), "restore a backup");
            }
        }
    }
}

#[cfg(any(feature = "postgres", feature = "mongodb"))]
mod of_servers {
    use std::time::Duration;

    use dezky_core::Timestamp;

    use super::Report;

    /// The largest difference between two clocks that needs no attention.
    const MAX_SKEW: Duration = Duration::from_secs(2);

    impl Report {
        /// Compares the server's clock with ours, which was read before and after it.
        pub(in crate::engine) fn clocks(
            &mut self,
            before: Timestamp,
            theirs_ms: i64,
            after: Timestamp,
        ) {
            // A difference within the round trip may be none.
            let ahead = (theirs_ms - after.as_millis()).max(0);
            let behind = (before.as_millis() - theirs_ms).max(0);
            let (skew, which) =
                if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
            let what = "clock";
            if u128::from(skew.unsigned_abs()) > MAX_SKEW.as_millis() {
                self.warn(
                    what,
                    format!("the database's is {skew} ms {which} this machine's"),
                    "synchronize both with a time server (NTP)",
                );
            } else {
                self.ok(what, format!("within {skew} ms of this machine's"));
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::Level;
        use super::*;

        #[test]
        fn clocks_that_differ_by_more_than_the_round_trip_are_reported() {
            let at = Timestamp::from_millis_clamped;
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
    }
}
