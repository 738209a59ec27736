use std::fmt::Write as _;

use clap::Args;
use dezky::Access;
use dezky::engine::SchemaVersions;
use serde_json::json;

use super::print;
use crate::app::head_file::HeadFile;
use crate::config::Settings;
use crate::failure::Failure;
use crate::store;
use crate::telemetry::logging;

/// `migrate`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Change nothing; exit with 1 if the schema is not up to date
    #[arg(long, visible_alias = "dry-run")]
    check: bool,
    /// Also create PostgreSQL's index for searches for rare words
    #[arg(long, conflicts_with = "check")]
    search_index: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `migrate`.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let (config, log) = (settings.store()?, settings.log()?);
    if options.search_index && !store::engine(&config)?.has_search_index() {
        return Err(Failure::usage("--search-index: is for PostgreSQL only: leave it out"));
    }
    let before = store::schema(&config).await?;
    let head_file = HeadFile::new(settings.head_path(&config.url));
    head_file.check_missing(async || Ok(before.found.is_empty())).await?;
    if let Some((component, known)) = before.newer() {
        return Err(Failure::usage(format!(
            "store {}: {component} is at version {}, newer than this program supports ({known}): upgrade dezky-server",
            config.url,
            before.of(component)
        )));
    }
    let behind = before.is_behind();
    if !options.check {
        // A large log takes minutes and reports its progress.
        logging::start(&log);
        let stores = store::open_stores(&config, Access::Migrate).await?;
        let indexed = match stores.database() {
            Some(database) if options.search_index => database.create_search_index().await,
            _ => Ok(()),
        };
        stores.close().await;
        indexed.map_err(|error| Failure::failed(format!("store {error}")))?;
    }
    report(&before, behind, &options)?;
    if options.check && behind {
        return Err(Failure::failed(format!(
            "store {}: the schema is not up to date: run dezky-server migrate",
            config.url
        )));
    }
    Ok(())
}

fn report(before: &SchemaVersions, behind: bool, options: &Options) -> Result<(), Failure> {
    if options.json {
        let components: serde_json::Map<_, _> = before
            .known
            .iter()
            .map(|(component, to)| {
                ((*component).to_owned(), json!({ "from": before.of(component), "to": to }))
            })
            .collect();
        let report = json!({
            "changed": behind && !options.check,
            "components": components,
            "searchIndex": options.search_index,
        });
        return print(&format!("{report}\n"));
    }
    let mut text = String::new();
    for (component, to) in before.known {
        let from = before.of(component);
        let _ = match (from == to, options.check) {
            (true, _) => writeln!(text, "{component}: version {to}, up to date"),
            (false, true) => writeln!(text, "{component}: version {from}, to become {to}"),
            (false, false) => writeln!(text, "{component}: from version {from} to {to}"),
        };
    }
    if options.search_index {
        text.push_str("search index: there\n");
    }
    print(&text)
}
