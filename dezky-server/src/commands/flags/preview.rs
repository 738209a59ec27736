//! `flags preview`: the tenants that a change would switch on or off.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use dezky::{Platform, audience};
use dezky_core::Timestamp;
use dezky_flags::{Flag, SnapshotPreviewer};
use serde_json::{Map, json};

use super::definition::{Definition, made};
use super::file;
use crate::commands::{failed, print};
use crate::failure::Failure;
use crate::render::decisions::{previewed, previewed_table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The flag
    #[arg(required_unless_present = "file")]
    key: Option<String>,
    #[command(flatten)]
    definition: Definition,
    /// The environment of the evaluation, such as production
    #[arg(long = "in", value_name = "NAME")]
    environment: Option<String>,
    /// Compare the flags of this file with those of the store; --tenant then selects the
    /// tenants, by default all
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "key", "state", "pct", "description", "plans", "partners", "environments",
            "clear_scope", "seed", "require_active_tenant", "expires",
        ]
    )]
    file: Option<PathBuf>,
}

pub(super) async fn run(
    platform: &Platform,
    options: Options,
    as_json: bool,
) -> Result<(), Failure> {
    let Options { key, definition, environment, file } = options;
    let environment = environment.as_deref();
    match (file, key) {
        (Some(path), _) => {
            let tenants = definition.tenants;
            of_file(platform, &path, &tenants, environment, as_json).await
        }
        (None, Some(key)) => of_change(platform, &key, definition, environment, as_json).await,
        (None, None) => Err(Failure::usage("name a flag, or --file")),
    }
}

async fn of_change(
    platform: &Platform,
    key: &str,
    definition: Definition,
    environment: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let patch = definition.patch(None);
    let before = platform.flags.get(key).await.map_err(failed)?;
    let after = match &before {
        Some(flag) => flag.patched(&patch),
        None => Flag::new(made(key, patch), Timestamp::MIN),
    };
    let after = after.map_err(failed)?;
    let preview = platform.preview(before.as_ref(), Some(&after), environment).await;
    let preview = preview.map_err(failed)?;
    print(&if as_json {
        format!("{}\n", previewed(&preview, environment))
    } else {
        let unknown = format!("the flag {key} does not exist yet: this previews a new one\n");
        let table = previewed_table(key, &preview);
        if before.is_none() { unknown + &table } else { table }
    })
}

async fn of_file(
    platform: &Platform,
    path: &Path,
    tenants: &[String],
    environment: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let file = file::read(path)?;
    let current = platform.live.current();
    let mut previewer = SnapshotPreviewer::new(current.snapshot(), &file.snapshot());
    for tenant in tenants {
        let subject = file::subject(platform, tenant).await?;
        previewer.see(&subject.context(environment));
    }
    if tenants.is_empty() && !previewer.is_empty() {
        let directory = &**platform.directory.store();
        let walk = audience::each_tenant(directory, environment, |tenant| previewer.see(tenant));
        walk.await.map_err(failed)?;
    }
    let previews = previewer.finish();
    if as_json {
        let flags: Map<_, _> = previews
            .iter()
            .map(|(key, preview)| (key.clone(), previewed(preview, environment)))
            .collect();
        return print(&format!("{}\n", json!({ "flags": flags, "invalid": file.invalid })));
    }
    let mut text = String::new();
    for flag in &file.invalid {
        let _ = writeln!(text, "{}: invalid, and off: {}", flag.key, flag.problem);
    }
    for (key, preview) in &previews {
        text.push_str(&previewed_table(key, preview));
    }
    if previews.is_empty() {
        text.push_str("every flag decides as it does now\n");
    }
    print(&text)
}
