//! Whether the store is fit to keep what the server promises, and what to fix.

mod mongodb;
mod postgres;
mod sqlite;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args;
use dezky_core::Error;
use dezky_core::directory::DIRECTORY;
use dezky_core::store::Extent;
use dezky_flags::store::FLAGS;
use serde::Serialize;
use serde_json::json;

use super::{operator, print};
use crate::config::{Settings, StoreConfig, StoreUrl};
use crate::error::Failure;
use crate::stores::{Access, Engine};
use crate::witness::{Found, Witness};

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
/// How long one question to a server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Accept the head that the store has, after a backup was restored: records that
    /// on the timeline
    #[arg(long)]
    acknowledge_head: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Bad,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    level: Level,
    what: &'static str,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Default)]
struct Report {
    checks: Vec<Check>,
}

impl Report {
    fn ok(&mut self, what: &'static str, finding: impl Into<String>) {
        self.checks.push(Check { level: Level::Ok, what, finding: finding.into(), fix: None });
    }

    fn warn(&mut self, what: &'static str, finding: impl Into<String>, fix: impl Into<String>) {
        let (finding, fix) = (finding.into(), Some(fix.into()));
        self.checks.push(Check { level: Level::Warn, what, finding, fix });
    }

    fn bad(&mut self, what: &'static str, finding: impl Into<String>, fix: impl Into<String>) {
        let (finding, fix) = (finding.into(), Some(fix.into()));
        self.checks.push(Check { level: Level::Bad, what, finding, fix });
    }

    fn count(&self, level: Level) -> usize {
        self.checks.iter().filter(|check| check.level == level).count()
    }

    /// Our clock before and after the server's was read.
    fn clocks(&mut self, before: SystemTime, theirs_ms: i64, after: SystemTime) {
        let ms = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        // Whatever lies between the two is the way there and back.
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

    fn outbox(&mut self, waiting: u64) {
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
    fn tables(&mut self, versions: &BTreeMap<String, usize>, there: &[String]) {
        let is_made = ["audit", "directory", "flags"].iter().all(|c| versions.contains_key(*c));
        let missing: Vec<_> =
            TABLES.into_iter().filter(|table| !there.iter().any(|name| name == table)).collect();
        if is_made && !missing.is_empty() {
            self.bad("schema", format!("missing: {}", missing.join(", ")), "restore a backup");
        }
    }

    /// The components' versions against those that this program knows.
    fn schema(&mut self, versions: &Versions) {
        let what = "schema";
        if versions.now.is_empty() {
            return self.bad(what, "there is none yet", "dezky-server migrate");
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

    fn to_text(&self) -> String {
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

/// The schema's versions by component.
#[derive(Debug)]
pub(crate) struct Versions {
    /// What the database has; empty where nothing was made yet.
    pub(crate) now: BTreeMap<String, usize>,
    /// What this program makes.
    pub(crate) known: [(&'static str, usize); 3],
}

impl Versions {
    fn new(url: &StoreUrl, now: BTreeMap<String, usize>) -> Self {
        Self { now, known: known(url) }
    }

    fn are_current(&self) -> bool {
        self.known.iter().all(|(component, known)| self.of(component) == *known)
    }

    /// The version of a component; 0 where it was never made.
    pub(super) fn of(&self, component: &str) -> usize {
        self.now.get(component).copied().unwrap_or(0)
    }
}

fn known(url: &StoreUrl) -> [(&'static str, usize); 3] {
    use dezky_core::store::{MongoAuditStore, PostgresAuditStore, SqliteAuditStore};
    let (directory, flags) = (DIRECTORY.versions(), FLAGS.versions());
    let [audit, directory, flags] = match url {
        StoreUrl::Sqlite(_) => [SqliteAuditStore::schema_version(), directory.sqlite, flags.sqlite],
        StoreUrl::Postgres(_) => {
            [PostgresAuditStore::schema_version(), directory.postgres, flags.postgres]
        }
        StoreUrl::Mongodb(_) => {
            [MongoAuditStore::schema_version(), directory.mongodb, flags.mongodb]
        }
    };
    [("audit", audit), ("directory", directory), ("flags", flags)]
}

/// The versions of a database, which is only looked at.
pub(crate) async fn versions(config: &StoreConfig) -> Result<Versions, Failure> {
    let now = match &config.url {
        StoreUrl::Sqlite(path) => sqlite::versions(path).await,
        StoreUrl::Postgres(url) => postgres::versions(config, url).await,
        StoreUrl::Mongodb(url) => mongodb::versions(config, url).await,
    };
    let now = now.map_err(|error| {
        let said = format!("store {}: {error}", config.url);
        if error.is_retryable() { Failure::no(said) } else { Failure::usage(said) }
    })?;
    Ok(Versions::new(&config.url, now))
}

/// `doctor`.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let config = settings.store()?;
    let witness = Witness::new(settings.head_path(&config.url));
    if options.acknowledge_head {
        return acknowledge(&config, &witness, options.json).await;
    }
    let mut report = Report::default();
    let now = match &config.url {
        StoreUrl::Sqlite(path) => sqlite::examine(path, &mut report).await,
        StoreUrl::Postgres(url) => postgres::examine(&config, url, &mut report).await,
        StoreUrl::Mongodb(url) => mongodb::examine(&config, url, &mut report).await,
    };
    if let Some(now) = now {
        let versions = Versions::new(&config.url, now);
        report.schema(&versions);
        if versions.are_current() {
            examine_log(&config, &witness, &mut report).await;
        }
    }
    finish(&config, &report, options.json)
}

/// Opens the log as a server would, and compares its head with what was noted.
async fn examine_log(config: &StoreConfig, witness: &Witness, report: &mut Report) {
    let engine = match Engine::open(config, Access::Read).await {
        Ok(engine) => engine,
        Err(failure) => return report.bad("log", failure.to_string(), "see the other lines"),
    };
    // Missing tables are reported already.
    if !report.checks.iter().any(|check| check.level == Level::Bad && check.what == "schema") {
        examine_structure(&engine, report).await;
    }
    let what = "head";
    match witness.compare(&*engine.log()).await {
        Ok(Found::First) => {
            report.ok(what, format!("none is noted yet in {}", witness.path().display()));
        }
        Ok(Found::Continued) => report.ok(what, "the log has gone on from what is noted"),
        Ok(Found::WentBack { noted, found }) => report.bad(
            what,
            format!("expected {noted} or a later one, found {found}"),
            "if a backup was restored, accept it: dezky-server doctor --acknowledge-head",
        ),
        Err(failure) => report.bad(what, failure.to_string(), "mend the file"),
    }
    engine.close().await;
}

/// Compares tables, indexes, triggers, rules and policies with the schema.
async fn examine_structure(engine: &Engine, report: &mut Report) {
    let what = "structure";
    let examined = async {
        let mut anomalies = engine.log().examine(Extent::Definitions).await?;
        anomalies.extend(engine.directory().await?.examine().await?);
        anomalies.extend(engine.flags().await?.examine().await?);
        Ok::<_, Error>(anomalies)
    };
    match examined.await {
        Ok(anomalies) if anomalies.is_empty() => report
            .ok(what, "tables and indexes match the schema; no foreign trigger, rule or policy"),
        Ok(anomalies) => {
            for anomaly in anomalies {
                report.bad(what, anomaly.to_string(), anomaly.fix);
            }
        }
        Err(error) => report.bad(what, error.to_string(), "see the other lines"),
    }
}

fn finish(config: &StoreConfig, report: &Report, as_json: bool) -> Result<(), Failure> {
    let (bad, all) = (report.count(Level::Bad), report.checks.len());
    if as_json {
        let answer = json!({
            "ok": bad == 0,
            "store": config.url.to_string(),
            "checks": report.checks,
        });
        print(&format!("{answer}\n"))?;
    } else {
        print(&report.to_text())?;
    }
    if bad > 0 {
        return Err(Failure::no(format!("store {}: {bad} of {all} checks are bad", config.url)));
    }
    Ok(())
}

/// `doctor --acknowledge-head`.
async fn acknowledge(
    config: &StoreConfig,
    witness: &Witness,
    as_json: bool,
) -> Result<(), Failure> {
    let engine = Engine::open(config, Access::Write).await?;
    let acknowledged = witness.acknowledge(&*engine.log(), operator()).await;
    engine.close().await;
    let acknowledged = acknowledged?;
    if as_json {
        let heads = acknowledged.map(
            |(expected, found)| json!({ "expected": expected.to_json(), "found": found.to_json() }),
        );
        return print(&format!("{}\n", json!({ "acknowledged": heads })));
    }
    print(&match acknowledged {
        Some((expected, found)) => format!(
            "acknowledged: expected {expected}, found {found}; it is on the timeline as log.head_acknowledged\n"
        ),
        None => "nothing to acknowledge: the log has gone on from what is noted\n".to_owned(),
    })
}

/// Waits for an answer of a server, but not for ever.
async fn answer<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(
            dezky_core::ErrorKind::StoreUnavailable,
            format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
        )),
    }
}

/// Whether a host is this machine, so that nobody listens in between.
fn is_local(host: &str) -> bool {
    host.is_empty()
        || host == "localhost"
        || host.starts_with('/')
        || host.starts_with("%2F")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

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
