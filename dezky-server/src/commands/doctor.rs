//! `doctor`: checks that the store can keep the server's guarantees, and says what to fix.

use std::fmt::Write as _;

use clap::Args;
use dezky::engine::{Check, Database, Level, Report};
use dezky::{Access, StoreConfig};
use serde_json::json;

use super::{operator, print};
use crate::app::head_file::{Comparison, HeadFile};
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
        database.close().await;
    }
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
