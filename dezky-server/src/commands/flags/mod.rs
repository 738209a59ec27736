mod definition;
mod file;
mod preview;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dezky::Platform;
use dezky_core::ErrorKind;
use dezky_flags::{Edit, Explanation, Flag, ImportMode, seeded_flags};
use serde_json::json;

use self::definition::{Definition, made};
use self::show::{show, show_all, show_history, show_import};

use super::{failed, on_platform, operator, print};
use crate::config::Settings;
use crate::failure::Failure;
use crate::render::decisions::{explained, tabulated};

/// `flags …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Every flag, by key
    List,
    /// One flag with its scope
    Get { key: String },
    /// The newest 20 changes of a flag, newest first
    History { key: String },
    /// Change a flag, or with --create make it
    ///
    /// What is not named stays as it is. Of a scope every axis that is named is
    /// replaced.
    #[command(
        after_help = "Examples:\n  dezky-server flags set chat_v2 --create --state rollout --pct 25 --plan pro --note 'first quarter'\n  dezky-server flags set chat_v2 --pct 50 --if-version 3"
    )]
    Set(Set),
    /// Switch a flag off for everybody, at once
    Kill {
        key: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Remove a flag
    Remove {
        key: String,
        /// Only if it still has this version
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
        /// Why
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Who would gain and who would lose a flag by a change; changes nothing
    ///
    /// The options are those of `set` but for --create, --note and --if-version; a flag that is not there yet is previewed as new.
    /// With --file the flags of a file are compared with those of the store, as if they
    /// were all there are: one that the file lacks would be gone, though an import leaves it.
    /// A flag that is scoped to environments is on for nobody unless
    /// --in names one.
    #[command(
        after_help = "Examples:\n  dezky-server flags preview chat_v2 --pct 50\n  dezky-server flags preview chat_v2 --state targeted --plan pro --in production\n  dezky-server flags preview --file flags.json --tenant acme"
    )]
    Preview(preview::Options),
    /// What a tenant gets, and why
    #[command(
        after_help = "Examples:\n  dezky-server flags eval --tenant acme\n  dezky-server flags eval chat_v2 --tenant acme --environment production\n  dezky-server flags eval --tenant acme --file flags.json\n\nExit status: 0 fine, 1 the flag is off or unknown, 2 wrong use or configuration."
    )]
    Eval {
        /// One flag alone; exit status 1 if it is off
        key: Option<String>,
        /// The tenant's slug
        #[arg(long, value_name = "SLUG")]
        tenant: String,
        /// The environment, such as production
        #[arg(long, value_name = "NAME")]
        environment: Option<String>,
        /// Decide the flags of this file instead of the store's
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Flags that should perhaps go; exit status 1 if there are some
    ///
    /// Expired ones, and ones that have been on or off for everybody, unchanged, for long.
    /// Those that nobody asks a server for are in its `GET /flags?report=true`.
    Stale(super::flags_stale::Options),
    /// Write every flag as JSON, with its history
    #[command(
        after_help = "Examples:\n  dezky-server flags export > flags.json\n  dezky-server flags export --out /var/backups/flags.json"
    )]
    Export {
        /// Into this file, readable by its owner alone; an earlier export in it is
        /// replaced as a whole, and nothing else is
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make the flags of a file that are not there
    ///
    /// The file is one of `export`, or written by hand: {"flags": [{"key": …}, …]}. Nothing
    /// is written unless every flag in it is within its bounds. Histories and versions in it
    /// are left aside, flags that it lacks stay. The same import again changes nothing.
    #[command(
        after_help = "Examples:\n  dezky-server flags import flags.json --dry-run\n  dezky-server flags import flags.json --overwrite --note 'as in staging'\n\nExit status: 0 the store has the flags of the file, 1 some were refused, 2 wrong use or configuration."
    )]
    Import {
        file: PathBuf,
        /// Say what would become of each, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Replace those that are there and differ
        #[arg(long)]
        overwrite: bool,
        /// Why
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Make the ten flags of a new platform, all off
    ///
    /// Adds those that never were; what operators changed or removed stays so.
    Seed,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Its key: lower-case letters, digits, _ . and -, such as `chat_v2`
    key: String,
    /// Make it; it must not exist
    #[arg(long, conflicts_with = "if_version")]
    create: bool,
    #[command(flatten)]
    definition: Definition,
    /// Only if it still has this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// `flags`.
pub(crate) async fn run(
    settings: &Settings,
    command: Command,
    as_json: bool,
) -> Result<(), Failure> {
    if let Command::Export { out: Some(path) } = &command {
        file::check_out(settings, path)?;
    }
    on_platform(settings, async |platform| carry_out(platform, command, as_json).await).await
}

async fn carry_out(platform: &Platform, command: Command, as_json: bool) -> Result<(), Failure> {
    let flags = &platform.flags;
    let by = |note| Edit { note, ..Edit::by(operator()) };
    match command {
        Command::List => show_all(&flags.store().snapshot().await.map_err(failed)?, as_json),
        Command::Get { key } => show(&find(platform, &key).await?, as_json),
        Command::History { key } => show_history(&find(platform, &key).await?, as_json),
        Command::Set(set) => {
            let Set { key, create, definition, if_version, note } = set;
            let patch = definition.patch(note);
            let flag = if create {
                let note = patch.note.clone();
                flags.create(made(&key, patch), &by(note)).await
            } else {
                flags.update(&key, &patch, &Edit { if_version, ..by(None) }).await
            };
            match flag {
                Ok(flag) => show(&flag, as_json),
                Err(error) if error.kind() == ErrorKind::NotFound => Err(Failure::failed(format!(
                    "there is no flag {key}: create it with --create, or list the flags with `flags list`"
                ))),
                Err(error) => Err(refused(platform, &key, if_version, error).await),
            }
        }
        Command::Kill { key, note } => {
            show(&flags.kill(&key, &by(note)).await.map_err(failed)?, as_json)
        }
        Command::Remove { key, if_version, note } => {
            let removed = match flags.remove(&key, &Edit { if_version, ..by(note) }).await {
                Ok(removed) => removed,
                Err(error) => return Err(refused(platform, &key, if_version, error).await),
            };
            if as_json { show(&removed, true) } else { print(&format!("removed {key}\n")) }
        }
        Command::Preview(options) => preview::run(platform, options, as_json).await,
        Command::Eval { key, tenant, environment, file } => {
            let snapshot = match file {
                Some(path) => file::read(&path)?.snapshot(),
                None => platform.live.current().snapshot().clone(),
            };
            let subject = file::subject(platform, &tenant).await?;
            let context = subject.context(environment.as_deref());
            show_decisions(key.as_deref(), snapshot.explain_all(&context), as_json)
        }
        Command::Export { out } => {
            let snapshot = flags.store().snapshot().await.map_err(failed)?;
            file::export(&snapshot, out.as_deref(), as_json)
        }
        Command::Import { file, dry_run, overwrite, note } => {
            let new = file::read(&file)?.all().map_err(|error| file::refused(&file, &error))?;
            let mode = ImportMode { overwrite, dry_run };
            let imported = flags.import(&new, mode, &by(note)).await.map_err(failed)?;
            show_import(&imported, dry_run, as_json)?;
            match imported.count("refused") {
                0 => Ok(()),
                some => Err(Failure::failed(format!(
                    "{some} flags were refused: --overwrite replaces those that differ"
                ))),
            }
        }
        Command::Stale(options) => super::flags_stale::run(platform, &options, as_json).await,
        Command::Seed => {
            let new = flags.seed(&seeded_flags(), &by(None)).await.map_err(failed)?;
            let all = seeded_flags().len();
            print(&if as_json {
                format!("{}\n", json!({ "new": new, "seeded": all }))
            } else {
                format!("{new} of {all} flags are new\n")
            })
        }
    }
}

/// Why a flag was not changed, with both versions if they differ.
async fn refused(
    platform: &Platform,
    key: &str,
    expected: Option<u64>,
    error: dezky_core::Error,
) -> Failure {
    let found = platform.flags.get(key).await;
    match (error.kind(), expected, found) {
        (ErrorKind::VersionMismatch, Some(expected), Ok(Some(flag))) => Failure::failed(format!(
            "the flag {key} has version {}, not {expected}: look at it again, and name that one",
            flag.version
        )),
        _ => failed(error),
    }
}

async fn find(platform: &Platform, key: &str) -> Result<Flag, Failure> {
    let flag = platform.flags.get(key).await.map_err(failed)?;
    flag.ok_or_else(|| {
        Failure::failed(format!("{key}: there is no such flag: `flags list` shows those there are"))
    })
}

fn show_decisions(
    key: Option<&str>,
    mut decisions: Vec<(&str, Explanation<'_>)>,
    as_json: bool,
) -> Result<(), Failure> {
    decisions.retain(|(of, _)| key.is_none_or(|key| key == *of));
    let shown = &decisions;
    print(&if as_json { format!("{}\n", explained(shown)) } else { tabulated(shown) })?;
    let Some(key) = key else { return Ok(()) };
    match decisions.first().map(|(_, why)| why.decision) {
        None => Err(Failure::failed(format!("{key}: there is no such flag"))),
        Some(decision) if decision.value => Ok(()),
        Some(decision) => Err(Failure::failed(format!("{key}: {}", decision.reason))),
    }
}
