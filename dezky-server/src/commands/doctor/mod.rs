//! Whether the store is fit to keep what the server promises, and what to fix.

mod mongodb;
mod postgres;
mod report;
mod sqlite;

use clap::Args;
use dezky_core::Error;
use dezky_core::store::Extent;
use serde_json::json;

use self::report::{Level, Report};
use super::{operator, print};
use crate::app::head_file::{Comparison, HeadFile};
use crate::app::schema::Versions;
use crate::config::{Settings, StoreConfig, StoreUrl};
use crate::failure::Failure;
use crate::stores::{Access, Engine};

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

/// `doctor`.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let config = settings.store()?;
    let head_file = HeadFile::new(settings.head_path(&config.url));
    if options.acknowledge_head {
        return acknowledge(&config, &head_file, options.json).await;
    }
    // A head that can't be read is reported where it is compared.
    let lost = head_file.noted().await.ok().flatten().map(|noted| {
        let path = head_file.path().display();
        format!(
            "{noted} is noted in {path}: restore the log, or begin a new one by removing {path}"
        )
    });
    let mut report = Report { lost, ..Report::default() };
    let now = match &config.url {
        StoreUrl::Sqlite(path) => sqlite::examine(path, &mut report).await,
        StoreUrl::Postgres(url) => postgres::examine(&config, url, &mut report).await,
        StoreUrl::Mongodb(url) => mongodb::examine(&config, url, &mut report).await,
    };
    if let Some(now) = now {
        let versions = Versions::new(&config.url, now);
        report.schema(&versions);
        if versions.are_current() {
            examine_log(&config, &head_file, &mut report).await;
        }
    }
    finish(&config, &report, options.json)
}

/// Opens the log as a server would, and compares its head with what was noted.
async fn examine_log(config: &StoreConfig, head_file: &HeadFile, report: &mut Report) {
    let engine = match Engine::open(config, Access::Read).await {
        Ok(engine) => engine,
        Err(failure) => return report.bad("log", failure.to_string(), "see the other lines"),
    };
    // Missing tables are reported already.
    if !report.checks.iter().any(|check| check.level == Level::Bad && check.what == "schema") {
        examine_structure(&engine, report).await;
    }
    let what = "head";
    match head_file.compare(&*engine.log()).await {
        Ok(Comparison::First) => {
            report.ok(what, format!("none is noted yet in {}", head_file.path().display()));
        }
        Ok(Comparison::Continued) => report.ok(what, "the log has gone on from what is noted"),
        Ok(Comparison::WentBack { noted, found }) => report.bad(
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
    head_file: &HeadFile,
    as_json: bool,
) -> Result<(), Failure> {
    let engine = Engine::open(config, Access::Write).await?;
    let acknowledged = head_file.acknowledge(&*engine.log(), operator()).await;
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
