use clap::Args;

use crate::config::Settings;
use crate::error::Failure;

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
pub(crate) async fn run(_settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { acknowledge_head: _, json: _ } = options;
    Err(Failure::usage("doctor: is not there yet"))
}
