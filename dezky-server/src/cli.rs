//! The command line: its arguments, help and exit statuses.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dezky_core::verify::ExpectedHead;

use crate::config::{CONFIG_VARIABLE, Settings};
use crate::failure::Failure;
#[cfg(feature = "legacy-import")]
use crate::legacy_import;
use crate::render::table::harmless;
use crate::telemetry::logging;
use crate::{commands, demo};

const ABOUT: &str = "A platform's audit timeline, directory and feature flags, over HTTP";

const LONG_ABOUT: &str = "\
A platform's audit timeline, directory and feature flags, over HTTP.

The server polls Authentik, receives the signed webhooks of Stalwart, follows the
audit log of oCIS, and stores every event once, tamper-evident. It keeps tenants,
partners, users and flags, and records each change on the timeline. Without a command
it serves. Every setting has a default: it listens on 127.0.0.1:8080 and keeps an SQLite
file in the working folder.";

const EXAMPLES: &str = "\
Examples:
  Try it, with nothing installed:
    dezky-server demo
  Serve, following oCIS and receiving webhooks of Stalwart:
    export STALWART_WEBHOOK_SECRET=…        # the key configured at Stalwart
    export OCIS_AUDIT_LOG_PATH=/var/log/ocis/audit.log
    dezky-server serve --store sqlite:///var/lib/dezky/audit.db
  Verify the log, and keep its head somewhere else:
    dezky-server verify --store sqlite:///var/lib/dezky/audit.db
  Check the store that it will run on:
    dezky-server doctor --store postgres://dezky@db.example.com/platform
  Write a configuration file, and check it:
    dezky-server config example > dezky.toml
    dezky-server config check --config dezky.toml

Exit status: 0 success, 1 the check failed or the command did not complete,
2 wrong usage or configuration.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "dezky-server", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Common {
    /// The configuration file (TOML); see `config example`
    #[arg(long, global = true, value_name = "FILE", env = CONFIG_VARIABLE)]
    config: Option<OsString>,
    /// The store of the log, such as `sqlite:///var/lib/dezky/audit.db`,
    /// `postgres://…` or `mongodb://…`; overrides every other setting
    #[arg(long, global = true, value_name = "URL")]
    store: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and ingest events; the default command
    ///
    /// Stops on SIGTERM or Ctrl-C, after requests and workers have finished. A second
    /// Ctrl-C stops it at once.
    #[command(
        after_help = "Example:\n  DEZKY_OPERATOR_TOKEN=… DEZKY_LISTEN=0.0.0.0:8080 dezky-server serve"
    )]
    Serve,
    /// Run a demo with bundled events
    ///
    /// Ingests them through the real sources (signed webhooks over HTTP, a log file
    /// that grows and is rotated), prints commands to try, and runs until Ctrl-C.
    /// Everything stays in one folder; a second run on it adds no duplicates.
    #[command(
        after_help = "Examples:\n  dezky-server demo\n  dezky-server demo --once --data /tmp/dezky-demo"
    )]
    Demo(demo::Options),
    /// Recompute the whole log and report the first difference
    ///
    /// Opens the store read-only. An intact log prints `ok: N events, head SEQ:HASH`;
    /// keep that head elsewhere, because nothing else reveals that the newest events
    /// were cut off.
    #[command(
        after_help = "Examples:\n  dezky-server verify --store sqlite:///var/lib/dezky/audit.db\n  dezky-server verify --expect-head 41:9f86d081884c7d65…\n\nExit status: 0 intact, 1 a difference was found, 2 the log can't be read."
    )]
    Verify(Verify),
    /// Feature flags: list, change, kill, decide
    #[command(
        after_help = "Examples:\n  dezky-server flags list\n  dezky-server flags kill chat_v2 --note 'errors since noon'\n  dezky-server flags eval --tenant acme"
    )]
    Flags(Flags),
    /// Users of the platform and its administrators
    Users(Users),
    /// The timeline: list, follow, export, count
    ///
    /// Reads the store itself, with or without a server on it. Times are UTC.
    #[command(
        after_help = "Examples:\n  dezky-server audit list --tenant acme --since 24h\n  dezky-server audit show 41\n  dezky-server audit tail --outcome denied\n  dezky-server audit export --format csv --output audit.csv\n  dezky-server audit stats --interval day --by outcome"
    )]
    Audit(Audit),
    /// Items of sources that could not become events: list, retry, drop
    #[command(
        after_help = "Examples:\n  dezky-server quarantine list --source ocis\n  dezky-server quarantine show 12\n  dezky-server quarantine retry --all"
    )]
    Quarantine(Quarantine),
    /// Bring the store's schema up to date
    ///
    /// The server does this at its start unless `store.migrate` is false. Safe while
    /// servers run, and if several migrate at once.
    #[command(
        after_help = "Examples:\n  dezky-server migrate\n  dezky-server migrate --check\n  dezky-server migrate --search-index\n\nExit status: 0 up to date, 1 not up to date or failed, 2 wrong usage or configuration."
    )]
    Migrate(commands::migrate::Options),
    /// Check the store, and say what to fix
    ///
    /// Changes nothing, except for a probe that it rolls back and for
    /// `--acknowledge-head`.
    #[command(
        after_help = "Examples:\n  dezky-server doctor\n  dezky-server doctor --json --store postgres://dezky@db.example.com/platform\n  dezky-server doctor --acknowledge-head\n\nExit status: 0 no problems, perhaps warnings, 1 a check failed, 2 wrong usage or configuration."
    )]
    Doctor(commands::doctor::Options),
    /// Copy a whole store to another engine or place, and verify both ends
    ///
    /// The target must be empty or hold a partial copy: the same command resumes an
    /// interrupted one. Stop the servers on the source for the last run.
    #[command(
        after_help = "Example:\n  dezky-server copy --from sqlite:///var/lib/dezky/audit.db --to postgres://dezky@db.example.com/platform\n\nExit status: 0 both ends are equal and verified, 1 refused, interrupted or different, 2 wrong usage or configuration."
    )]
    Copy(commands::copy::Options),
    /// Import the collections of the platform that dezky replaces
    ///
    /// Writes nothing to the source. Importing again adds no duplicates.
    #[command(
        after_help = "Examples:\n  dezky-server import-origin --from mongodb://host/platform --to sqlite:///var/lib/dezky/audit.db --dry-run\n  dezky-server import-origin --from mongodb://host/platform --to sqlite:///var/lib/dezky/audit.db --collection events=audit_log\n\nExit status: 0 everything is imported, 1 documents were refused or the import was interrupted, 2 wrong usage or configuration."
    )]
    #[cfg(feature = "legacy-import")]
    ImportOrigin(legacy_import::command::Options),
    /// Print or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
struct Verify {
    /// A head kept elsewhere, as printed by an earlier run
    #[arg(long, value_name = "SEQ:HASH")]
    expect_head: Option<ExpectedHead>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Flags {
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: commands::flags::Command,
}

#[derive(Debug, Args)]
struct Users {
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: commands::users::Command,
}

#[derive(Debug, Args)]
struct Audit {
    /// Print JSON; `tail` prints an object per event
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: commands::audit::Command,
}

#[derive(Debug, Args)]
struct Quarantine {
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: commands::quarantine::Command,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a configuration file with every key and its default
    #[command(after_help = "Example:\n  dezky-server config example > dezky.toml")]
    Example,
    /// Check the configuration as `serve` would, and print the effective values
    ///
    /// Reads the file, the environment and the paths that they name. Changes nothing
    /// and prints no secrets.
    #[command(after_help = "Example:\n  dezky-server config check --config dezky.toml --json")]
    Check {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return exit(&Failure::failed(format!("can't start threads: {error}"))),
    };
    let result = runtime.block_on(run(cli));
    // Blocking work that hangs must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(()) => {
            logging::end();
            ExitCode::SUCCESS
        }
        Err(failure) => exit(&failure),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Common { config, store } = cli.common;
    // As with every variable, an empty one counts as unset.
    let config = config.filter(|path| !path.is_empty()).map(PathBuf::from);
    let settings = || Settings::from_process(config.as_deref(), store.as_deref());
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => commands::serve::run(&settings()?).await,
        Command::Verify(Verify { expect_head, json }) => {
            commands::verify::run(&settings()?, expect_head, json).await
        }
        Command::Flags(Flags { json, command }) => {
            commands::flags::run(&settings()?, command, json).await
        }
        Command::Users(Users { json, command }) => {
            commands::users::run(&settings()?, command, json).await
        }
        Command::Audit(Audit { json, command }) => {
            commands::audit::run(&settings()?, command, json).await
        }
        Command::Quarantine(Quarantine { json, command }) => {
            commands::quarantine::run(&settings()?, command, json).await
        }
        Command::Migrate(options) => commands::migrate::run(&settings()?, options).await,
        Command::Doctor(options) => commands::doctor::run(&settings()?, options).await,
        Command::Copy(_) if store.is_some() => Err(names_both_ends()),
        #[cfg(feature = "legacy-import")]
        Command::ImportOrigin(_) if store.is_some() => Err(names_both_ends()),
        Command::Copy(options) => commands::copy::run(&settings()?, options).await,
        #[cfg(feature = "legacy-import")]
        Command::ImportOrigin(options) => legacy_import::command::run(&settings()?, options).await,
        Command::Config(ConfigCommand::Example) => commands::config::example(),
        Command::Config(ConfigCommand::Check { json }) => {
            commands::config::check(&settings()?, json).await
        }
        Command::Demo(_) if store.is_some() => {
            Err(Failure::usage("--store: the demo keeps its log in its own folder: use --data"))
        }
        Command::Demo(options) => demo::run(options).await,
    }
}

fn names_both_ends() -> Failure {
    Failure::usage("--store: this command has a source and a target: use --from and --to")
}

fn exit(failure: &Failure) -> ExitCode {
    logging::tell(&format!("dezky-server: {}", harmless(&failure.to_string())));
    ExitCode::from(failure.status())
}
