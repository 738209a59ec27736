use clap::Args;

use crate::config::Settings;
use crate::error::Failure;

/// `migrate`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Change nothing; exit with 1 if something is missing
    #[arg(long, visible_alias = "dry-run")]
    check: bool,
    /// On PostgreSQL make the index that speeds up searches for a word, too
    #[arg(long, conflicts_with = "check")]
    search_index: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `migrate`.
pub(crate) async fn run(_settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { check: _, search_index: _, json: _ } = options;
    Err(Failure::usage("migrate: is not there yet"))
}
