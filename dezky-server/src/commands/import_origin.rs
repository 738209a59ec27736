use clap::Args;

use crate::config::Settings;
use crate::error::Failure;

/// `import-origin`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The database of the platform that this replaces
    #[arg(long, value_name = "URL")]
    from: String,
    /// The store to import into
    #[arg(long, value_name = "URL")]
    to: String,
    /// Report what would be imported, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// The name of a collection that isn't called as usual
    #[arg(long = "collection", value_name = "KIND=NAME")]
    collections: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `import-origin`.
pub(crate) async fn run(_settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { from: _, to: _, dry_run: _, collections: _, json: _ } = options;
    Err(Failure::usage("import-origin: is not there yet"))
}
