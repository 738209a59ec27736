use std::time::Duration;

use clap::Args;
use dezky::Platform;
use dezky_core::Runtime as _;
use dezky_core::rt::TokioRuntime;
use dezky_flags::{StaleConfig, stale_flags};
use serde_json::json;

use super::{failed, print};
use crate::failure::Failure;
use crate::render::table::table;

/// `flags stale`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long a flag must be unchanged, 1 to 3650
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
}

/// Prints the report; exit status 1 if any flag is stale.
pub(crate) async fn run(
    platform: &Platform,
    options: &Options,
    as_json: bool,
) -> Result<(), Failure> {
    let snapshot = platform.flags.store().snapshot().await.map_err(failed)?;
    let mut config = StaleConfig::default();
    config.after = Duration::from_hours(24 * options.days);
    // Evaluations are counted in the servers, not in the store.
    let stale = stale_flags(&snapshot, None, TokioRuntime.now(), &config);
    let all = snapshot.flags.len();
    if as_json {
        print(&format!("{}\n", json!({ "of": all, "stale": stale })))?;
    } else if stale.is_empty() {
        print(&format!("none of {all} flags is stale\n"))?;
    } else {
        let rows = stale.iter().map(|flag| {
            let reasons: Vec<_> = flag.reasons.iter().map(ToString::to_string).collect();
            [flag.key.clone(), reasons.join("; ")]
        });
        print(&table(&["flag", "why"], rows))?;
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{} of {all} flags are stale: remove them once no code evaluates them",
        stale.len()
    )))
}
