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
    /// List all flags, by key
    List,
    /// Show one flag with its scope
    Get { key: String },
    /// Show the newest 20 changes of a flag, newest first
    History { key: String },
    /// Change a flag, or create it with --create
    ///
    /// Parts that are not named stay as they are. A named axis of the scope is replaced
    /// as a whole.
    #[command(
        after_help = "Examples:\n  dezky-server flags set chat_v2 --create --state rollout --pct 25 --plan pro --note 'first quarter'\n  dezky-server flags set chat_v2 --pct 50 --if-version 3"
    )]
    Set(Set),
    /// Switch a flag off for everybody, at once
    Kill {
        key: String,
        /// The reason
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Remove a flag
    Remove {
        key: String,
        /// Only if the flag still has this version
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
        /// The reason
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Show which tenants a change would switch on or off; changes nothing
    ///
    /// Takes the options of `set` except --create, --note and --if-version; a flag that does not
    /// exist yet is previewed as new. With --file the flags of a file are compared with those
    /// of the store as if the file replaced them: a flag that it lacks counts as removed, though
    /// an import would keep it. A flag scoped to environments is on for nobody unless --in names
    /// one.
    #[command(
        after_help = "Examples:\n  dezky-server flags preview chat_v2 --pct 50\n  dezky-server flags preview chat_v2 --state targeted --plan pro --in production\n  dezky-server flags preview --file flags.json --tenant acme"
    )]
    Preview(preview::Options),
    /// Show the decisions for a tenant, with reasons
    #[command(
        after_help = "Examples:\n  dezky-server flags eval --tenant acme\n  dezky-server flags eval chat_v2 --tenant acme --environment production\n  dezky-server flags eval --tenant acme --file flags.json\n\nExit status: 0 success, 1 the flag is off or unknown, 2 wrong usage or configuration."
    )]
    Eval {
        /// Only this flag; exit status 1 if it is off
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
    /// List flags that should perhaps be removed; exit status 1 if there are any
    ///
    /// Expired flags, and flags that have been on or off for everybody, unchanged, for long.
    /// Flags that nobody evaluates on a server are in its `GET /flags?report=true`.
    Stale(super::flags_stale::Options),
    /// Write all flags as JSON, with their histories
    #[command(
        after_help = "Examples:\n  dezky-server flags export > flags.json\n  dezky-server flags export --out /var/backups/flags.json"
    )]
    Export {
        /// Write to this file, readable only by its owner; only an earlier export is
        /// replaced
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Create the flags of a file that do not exist yet
    ///
    /// The file comes from `export` or is written by hand: {"flags": [{"key": …}, …]}; `-` reads
    /// the standard input. Nothing is written unless every flag in it is within its bounds.
    /// Histories and versions in it are ignored, flags that it lacks stay. Importing again
    /// changes nothing.
    #[command(
        after_help = "Examples:\n  dezky-server flags import flags.json --dry-run\n  dezky-server flags import flags.json --overwrite --note 'as in staging'\n  dezky-server flags export --store postgres://… | dezky-server flags import -\n\nExit status: 0 the store has the flags of the file, 1 some were refused, 2 wrong usage or configuration."
    )]
    Import {
        file: PathBuf,
        /// Print the result for each flag, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Replace existing flags that differ
        #[arg(long)]
        overwrite: bool,
        /// The reason
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Create the ten flags of a new platform, all off
    ///
    /// Adds only flags that never existed: those that operators changed or removed stay so.
    Seed,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The key: lower-case letters, digits, _ . and -, such as `chat_v2`
    key: String,
    /// Create the flag; it must not exist
    #[arg(long, conflicts_with = "if_version")]
    create: bool,
    #[command(flatten)]
    definition: Definition,
    /// Only if the flag still has this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// The reason
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
                    "the flag {key} does not exist: create it with --create, or list the flags with `flags list`"
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
            let new =
                file::read_or_input(&file)?.all().map_err(|error| file::refused(&file, &error))?;
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

/// The reason why a flag was not changed, with both versions if they differ.
async fn refused(
    platform: &Platform,
    key: &str,
    expected: Option<u64>,
    error: dezky_core::Error,
) -> Failure {
    let found = platform.flags.get(key).await;
    match (error.kind(), expected, found) {
        (ErrorKind::VersionMismatch, Some(expected), Ok(Some(flag))) => Failure::failed(format!(
            "the flag {key} has version {}, not {expected}: read it again, and use that version",
            flag.version
        )),
        _ => failed(error),
    }
}

async fn find(platform: &Platform, key: &str) -> Result<Flag, Failure> {
    let flag = platform.flags.get(key).await.map_err(failed)?;
    flag.ok_or_else(|| {
        Failure::failed(format!("{key}: there is no such flag: `flags list` shows all flags"))
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
