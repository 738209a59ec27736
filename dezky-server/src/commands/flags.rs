use std::io::Write as _;

use clap::{Args, Subcommand};
use dezky_core::Timestamp;
use dezky_flags::store::Snapshot;
use dezky_flags::{
    Decision, Edit, Flag, FlagPatch, FlagState, MAX_PCT, NewFlag, OptionsPatch, ScopePatch,
    seeded_flags,
};
use serde_json::json;

use super::{no, on_platform, operator, print};
use crate::config::Settings;
use crate::decisions::{explained, tabulated};
use crate::error::Failure;
use crate::platform::Platform;
use crate::table::{printable, table};

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
    /// What a tenant gets, and why
    Eval {
        /// One flag alone; exit status 1 if it is off
        key: Option<String>,
        /// The tenant's slug
        #[arg(long, value_name = "SLUG")]
        tenant: String,
        /// The environment, such as production
        #[arg(long, value_name = "NAME")]
        environment: Option<String>,
    },
    /// Flags that should perhaps go; exit status 1 if there are some
    ///
    /// Expired ones, and ones that have been on or off for everybody, unchanged, for long.
    /// Those that nobody asks a server for are in its `GET /flags?report=true`.
    Stale(super::flags_stale::Options),
    /// Make the ten flags of a new platform, all off
    ///
    /// Adds those that never were; what operators changed or removed stays so.
    Seed,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    key: String,
    /// Make it; it must not exist
    #[arg(long, conflicts_with = "if_version")]
    create: bool,
    /// off, on, targeted or rollout
    #[arg(long)]
    state: Option<FlagState>,
    /// The percentage of tenants that a rollout reaches, 0 to 100, such as 25 or 0.5
    #[arg(long, value_name = "N", value_parser = percentage)]
    pct: Option<Percentage>,
    /// What it switches
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A plan of the scope; repeat it for more
    #[arg(long = "plan", value_name = "NAME")]
    plans: Vec<String>,
    /// A tenant of the scope, by slug; repeat it for more
    #[arg(long = "tenant", value_name = "SLUG")]
    tenants: Vec<String>,
    /// A partner of the scope, by slug; repeat it for more
    #[arg(long = "partner", value_name = "SLUG")]
    partners: Vec<String>,
    /// An environment of the scope; repeat it for more
    #[arg(long = "environment", value_name = "NAME")]
    environments: Vec<String>,
    /// Empty the axes that are not named
    #[arg(long)]
    clear_scope: bool,
    /// Takes the key's place in the rollout's bucket; empty: the key again
    #[arg(long, value_name = "TEXT")]
    seed: Option<String>,
    /// Off for tenants that are not active
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    require_active_tenant: Option<bool>,
    /// When it should be gone, such as 2027-01-31T00:00:00Z, or never; decides nothing
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires: Option<Expiry>,
    /// Only if it still has this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// A percentage by hundredths.
#[derive(Debug, Clone, Copy)]
struct Percentage {
    whole: u8,
    hundredths: u8,
}

fn percentage(text: &str) -> Result<Percentage, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let read = || {
        let whole = whole.parse().ok().filter(|whole| *whole <= MAX_PCT)?;
        let hundredths = format!("{fraction:0<2}").parse().ok()?;
        (whole < MAX_PCT || hundredths == 0).then_some(Percentage { whole, hundredths })
    };
    (is_number(whole) && is_number(fraction) && fraction.len() <= 2)
        .then(read)
        .flatten()
        .ok_or_else(|| "it must be 0 to 100, with at most two decimals".to_owned())
}

/// When a flag should be gone, if ever.
#[derive(Debug, Clone, Copy)]
struct Expiry(Option<Timestamp>);

fn expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry(None));
    }
    let at = Timestamp::parse(text);
    at.map(|at| Expiry(Some(at)))
        .ok_or_else(|| "it must be a time such as 2027-01-31T00:00:00Z, or never".to_owned())
}

/// `flags`.
pub(crate) async fn run(
    settings: &Settings,
    command: Command,
    as_json: bool,
) -> Result<(), Failure> {
    on_platform(settings, async |platform| carry_out(platform, command, as_json).await).await
}

async fn carry_out(platform: &Platform, command: Command, as_json: bool) -> Result<(), Failure> {
    let flags = &platform.flags;
    let by = |note| Edit { note, ..Edit::by(operator()) };
    match command {
        Command::List => show_all(&flags.store().snapshot().await.map_err(no)?, as_json),
        Command::Get { key } => show(&find(platform, &key).await?, as_json),
        Command::History { key } => show_history(&find(platform, &key).await?, as_json),
        Command::Set(set) => {
            let (key, if_version, create) = (set.key.clone(), set.if_version, set.create);
            let patch = set.patch();
            let flag = if create {
                let new = made(&key, patch.clone());
                flags.create(new, &by(patch.note)).await
            } else {
                flags.update(&key, &patch, if_version, &by(None)).await
            };
            show(&flag.map_err(no)?, as_json)
        }
        Command::Kill { key, note } => {
            show(&flags.kill(&key, &by(note)).await.map_err(no)?, as_json)
        }
        Command::Remove { key, if_version, note } => {
            let removed = flags.remove(&key, if_version, &by(note)).await.map_err(no)?;
            if as_json { show(&removed, true) } else { print(&format!("removed {key}\n")) }
        }
        Command::Eval { key, tenant, environment } => {
            evaluate(platform, key.as_deref(), &tenant, environment.as_deref(), as_json).await
        }
        Command::Stale(options) => super::flags_stale::run(platform, &options, as_json).await,
        Command::Seed => {
            let new = flags.seed(&seeded_flags(), &by(None)).await.map_err(no)?;
            let all = seeded_flags().len();
            print(&if as_json {
                format!("{}\n", json!({ "new": new, "seeded": all }))
            } else {
                format!("{new} of {all} flags are new\n")
            })
        }
    }
}

impl Set {
    fn patch(self) -> FlagPatch {
        let clear = self.clear_scope;
        let axis = |values: Vec<String>| (clear || !values.is_empty()).then_some(values);
        FlagPatch {
            description: self.description,
            state: self.state,
            pct: self.pct.map(|pct| pct.whole),
            options: OptionsPatch {
                // An empty one is none.
                seed: self.seed.map(|seed| Some(seed).filter(|seed| !seed.is_empty())),
                pct_hundredths: self.pct.map(|pct| pct.hundredths),
                require_active_tenant: self.require_active_tenant,
                expires_at: self.expires.map(|Expiry(at)| at),
            },
            scope: ScopePatch {
                plans: axis(self.plans),
                tenant_slugs: axis(self.tenants),
                partner_slugs: axis(self.partners),
                environments: axis(self.environments),
            },
            note: self.note,
        }
    }
}

/// A new flag with what was named of it.
fn made(key: &str, patch: FlagPatch) -> NewFlag {
    let mut new = NewFlag::new(key);
    new.description = patch.description.unwrap_or_default();
    new.state = patch.state.unwrap_or_default();
    new.pct = patch.pct.unwrap_or_default();
    patch.options.apply(&mut new.options);
    new.scope.plans = patch.scope.plans.unwrap_or_default();
    new.scope.tenant_slugs = patch.scope.tenant_slugs.unwrap_or_default();
    new.scope.partner_slugs = patch.scope.partner_slugs.unwrap_or_default();
    new.scope.environments = patch.scope.environments.unwrap_or_default();
    new
}

async fn find(platform: &Platform, key: &str) -> Result<Flag, Failure> {
    let flag = platform.flags.get(key).await.map_err(no)?;
    flag.ok_or_else(|| {
        Failure::no(format!("{key}: there is no such flag: `flags list` shows those there are"))
    })
}

async fn evaluate(
    platform: &Platform,
    key: Option<&str>,
    tenant: &str,
    environment: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let subject = platform.subject(tenant).await.map_err(no)?;
    let subject = subject
        .ok_or_else(|| Failure::no(format!("--tenant {tenant}: there is no such tenant")))?;
    let flags = platform.live.current();
    let context = subject.context(environment);
    let decisions: Vec<(&str, Decision)> = flags
        .set()
        .evaluate_all(&context)
        .filter(|(of, _)| key.is_none_or(|key| key == *of))
        .collect();
    let shown = decisions.iter().copied();
    print(&if as_json { format!("{}\n", explained(shown)) } else { tabulated(shown) })?;
    let Some(key) = key else { return Ok(()) };
    match decisions.first() {
        None => Err(Failure::no(format!("{key}: there is no such flag"))),
        Some((_, decision)) if decision.value => Ok(()),
        Some((_, decision)) => Err(Failure::no(format!("{key}: {}", decision.reason))),
    }
}

fn show_all(snapshot: &Snapshot, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let mut answer = json!({ "flags": snapshot.flags });
        if !snapshot.invalid.is_empty() {
            answer["invalid"] = json!(snapshot.invalid);
        }
        return print(&format!("{answer}\n"));
    }
    let rows = snapshot.flags.iter().map(|flag| {
        [
            flag.key.clone(),
            flag.state.to_string(),
            flag.percentage().to_string(),
            scope(flag),
            flag.version.to_string(),
            flag.updated_at.to_string(),
        ]
    });
    print(&table(&["flag", "state", "pct", "scope", "version", "updated"], rows))?;
    let invalid = snapshot.invalid.iter().map(|flag| {
        let key = printable_line(&flag.key);
        format!("{key}: invalid, and off: {}: kill or remove it\n", flag.problem)
    });
    print(&invalid.collect::<String>())
}

fn show(flag: &Flag, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&format!("{}\n", json!(flag)));
    }
    print(&format!(
        "{}: {}, {} %, scope {}, version {}\n{}\n",
        flag.key,
        flag.state,
        flag.percentage(),
        scope(flag),
        flag.version,
        printable_line(&flag.description)
    ))
}

fn show_history(flag: &Flag, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&format!("{}\n", json!({ "history": flag.history })));
    }
    let mut out = std::io::stdout().lock();
    for change in &flag.history {
        let who = change.actor.email.as_deref().or(change.actor.id.as_deref());
        let fields: Vec<_> = change
            .changes
            .iter()
            .map(|field| format!("{} {} → {}", field.field, field.from, field.to))
            .collect();
        let note = change.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
        let line = format!(
            "{}  {}  {}{note}",
            change.at,
            who.unwrap_or(change.actor.kind.as_str()),
            fields.join(", ")
        );
        // A reader that has gone away needs no more of it.
        if writeln!(out, "{}", printable_line(&line)).is_err() {
            break;
        }
    }
    Ok(())
}

fn scope(flag: &Flag) -> String {
    let axes = [
        ("plan", &flag.scope.plans),
        ("tenant", &flag.scope.tenant_slugs),
        ("partner", &flag.scope.partner_slugs),
        ("environment", &flag.scope.environments),
    ];
    let texts: Vec<_> = axes
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| format!("{name}={}", values.join("|")))
        .collect();
    if texts.is_empty() { "-".to_owned() } else { printable(&texts.join(" ")) }
}

fn printable_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '·' } else { c }).collect()
}
