//! `doctor`: checks that the store can keep the server's guarantees, and says what to fix.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;
use dezky::engine::{Check, Database, Level, Report};
use dezky::{Access, StoreConfig};
use dezky_core::Runtime;
use dezky_core::directory::{MAX_PAGE, UserCursor, UserQuery};
use dezky_core::rt::TokioRuntime;
use futures_util::future::join_all;
use serde_json::json;

use super::{operator, print};
use crate::app::head_file::{Comparison, HeadFile};
use crate::auth::oidc::{IssuerConfig, Issuers, MAX_SKEW};
use crate::config::Settings;
use crate::failure::Failure;
use crate::store;

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Accept the store's head after a backup was restored, and record that on the
    /// timeline
    #[arg(long)]
    acknowledge_head: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `doctor`.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let config = settings.store()?;
    let issuers = settings.issuers()?;
    let head_file = HeadFile::new(settings.head_path(&config.url));
    if options.acknowledge_head {
        return acknowledge(&config, &head_file, options.json).await;
    }
    let (mut report, database) = store::engine(&config)?.examine().await;
    // An unreadable head file is reported where the heads are compared.
    if let Ok(Some(noted)) = head_file.noted().await {
        let path = head_file.path().display();
        report.lost(format!(
            "{noted} is noted in {path}: restore the log, or begin a new one by removing {path}"
        ));
    }
    if let Some(database) = database {
        compare_head(&database, &head_file, &mut report).await;
        if !issuers.is_empty() {
            examine_subjects(&database, &issuers, &mut report).await;
        }
        database.close().await;
    }
    examine_issuers(&issuers, &mut report).await;
    finish(&config, &report, options.json)
}

/// Compares the log's head with the noted one.
async fn compare_head(database: &Database, head_file: &HeadFile, report: &mut Report) {
    let what = "head";
    match head_file.compare(&*database.log()).await {
        Ok(Comparison::First) => {
            report.ok(what, format!("none is noted yet in {}", head_file.path().display()));
        }
        Ok(Comparison::Continued) => report.ok(what, "the log continues from the noted head"),
        Ok(Comparison::WentBack { noted, found }) => report.bad(
            what,
            format!("expected {noted} or a later one, found {found}"),
            "if a backup was restored, accept it: dezky-server doctor --acknowledge-head",
        ),
        Err(failure) => report.bad(what, failure.to_string(), "repair the file"),
    }
}

/// Fetches each issuer's discovery document and keys, and compares its clock.
async fn examine_issuers(configs: &[IssuerConfig], report: &mut Report) {
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    let issuers = match Issuers::new(configs, &runtime) {
        Ok(issuers) => issuers,
        Err(error) => {
            return report.bad("issuer", error.to_string(), "until then the server does not start");
        }
    };
    // One after the other would take their time-outs together.
    let examined = join_all(issuers.iter().map(async |issuer| issuer.examine().await)).await;
    for (issuer, found) in issuers.iter().zip(examined) {
        let name = issuer.name();
        match found.discovery {
            Ok(uri) => {
                let uri = issuer.jwks_uri().unwrap_or(&uri);
                report.ok("issuer", format!("{name}: the keys are at {uri}"));
            }
            // Nothing compares the issuer then: its tokens may name another one.
            Err(problem) if issuer.jwks_uri().is_some() => report.warn(
                "issuer",
                problem,
                "the keys are fetched from the configured jwks_uri; compare the issuer with the iss of a token",
            ),
            Err(problem) => report.bad(
                "issuer",
                problem,
                "until then tokens of this issuer get 503 issuer_unavailable",
            ),
        }
        match found.keys {
            Some(Ok(0)) => report.bad(
                "issuer keys",
                format!("{name}: publishes no key that verifies tokens by the configured algorithms"),
                "choose a signing key of one of them at the identity provider (Authentik: the provider's Signing Key)",
            ),
            Some(Ok(count)) => report.ok("issuer keys", format!("{name}: {count}")),
            Some(Err(problem)) => {
                report.bad("issuer keys", problem, "let this machine reach the address");
            }
            None => {}
        }
        match found.ahead_seconds {
            Some(seconds) if seconds.unsigned_abs() > MAX_SKEW.as_secs() => report.warn(
                "issuer clock",
                format!("{name}: differs from this machine's by {seconds} s"),
                "synchronise both clocks; tokens tolerate 60 s",
            ),
            Some(_) => report.ok("issuer clock", format!("{name}: agrees with this machine's")),
            None => {}
        }
    }
}

/// Warns of users whose subject is an e-mail address, which may be given to somebody else.
async fn examine_subjects(database: &Database, configs: &[IssuerConfig], report: &mut Report) {
    // A store that can't be read was reported before.
    let Ok(stores) = database.stores().await else { return };
    let mut query = UserQuery { limit: MAX_PAGE, ..UserQuery::default() };
    let mut issuers = BTreeSet::new();
    loop {
        let Ok(users) = stores.directory.users(&query).await else { return };
        issuers.extend(
            users.iter().filter(|user| user.subject.contains('@')).map(|user| user.issuer.clone()),
        );
        query.after = users.last().map(UserCursor::of);
        if users.len() < MAX_PAGE {
            break;
        }
    }
    for IssuerConfig { profile, .. } in configs {
        if issuers.contains(&profile.issuer) {
            report.warn(
                "issuer subjects",
                format!("{}: names users by e-mail addresses, which can be given to another user", profile.issuer),
                "choose ids that never change at the identity provider (Authentik: Subject mode, based on the User's hashed ID or UUID)",
            );
        }
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
        print(&text_of(report))?;
    }
    if bad > 0 {
        return Err(Failure::failed(format!(
            "store {}: {bad} of {all} checks are bad",
            config.url
        )));
    }
    Ok(())
}

/// The report as lines for people.
fn text_of(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { level, what, finding, fix } in &report.checks {
        let _ = write!(text, "{:4}  {what:width$}  {finding}", level.as_str());
        if let Some(fix) = fix {
            let _ = write!(text, ": {fix}");
        }
        text.push('\n');
    }
    text
}

/// `doctor --acknowledge-head`.
async fn acknowledge(
    config: &StoreConfig,
    head_file: &HeadFile,
    as_json: bool,
) -> Result<(), Failure> {
    let database = store::open_log(config, Access::Write).await?;
    let acknowledged = head_file.acknowledge(&*database.log(), operator()).await;
    database.close().await;
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
        None => "nothing to acknowledge: the log continues from the noted head\n".to_owned(),
    })
}
