use clap::Args;

use crate::config::Settings;
use crate::error::Failure;

/// `copy`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The store to copy
    #[arg(long, value_name = "URL")]
    from: String,
    /// Where to: an empty store, or one that an earlier run began
    #[arg(long, value_name = "URL")]
    to: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `copy`.
pub(crate) async fn run(_settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { from: _, to: _, json: _ } = options;
    Err(Failure::usage("copy: is not there yet"))
}
