use std::fmt::Write as _;

use serde_json::json;

use super::print;
use crate::app::head_file::HeadFile;
use crate::config::{self, Config, Settings};
use crate::failure::Failure;
use crate::store;

/// `config example`.
pub(crate) fn example() -> Result<(), Failure> {
    print(&config::example())
}

/// `config check`: the effective values and their origins.
pub(crate) async fn check(settings: &Settings, as_json: bool) -> Result<(), Failure> {
    let config = settings.config()?;
    let warnings = config.check()?;
    check_files(&config).await?;
    let described = settings.describe();
    if as_json {
        let settings: serde_json::Map<_, _> = described
            .into_iter()
            .map(|key| (key.name, json!({ "value": key.value, "from": key.from })))
            .collect();
        let report = json!({ "ok": true, "settings": settings, "warnings": warnings });
        return print(&format!("{report}\n"));
    }
    let mut text = String::from("ok: the configuration is valid\n");
    let width = described.iter().map(|key| key.name.len()).max().unwrap_or(0);
    for key in described {
        let _ = writeln!(text, "{:width$} = {}  ({})", key.name, key.value, key.from);
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    print(&text)
}

/// Reads the head file, and a store that is a file, as `serve` would at its start. Does not connect
/// to database servers.
async fn check_files(config: &Config) -> Result<(), Failure> {
    let head_file = HeadFile::new(&config.head_path);
    if config.store.url.file().is_none() {
        return head_file.read().await.map(drop);
    }
    let schema = store::schema(&config.store).await?;
    head_file.check_missing(async || Ok(schema.found.is_empty())).await
}
