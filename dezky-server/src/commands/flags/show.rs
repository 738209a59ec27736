//! Flags as text for people, and as JSON.

use std::fmt::Write as _;

use dezky_flags::store::Snapshot;
use dezky_flags::{Flag, FlagState, Imported, Scope};
use serde_json::json;

use crate::commands::print;
use crate::failure::Failure;
use crate::render::table::{printable, printable_line, table};

pub(super) fn show_all(snapshot: &Snapshot, as_json: bool) -> Result<(), Failure> {
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
            options(flag),
            flag.version.to_string(),
            flag.updated_at.to_string(),
        ]
    });
    print(&table(&["flag", "state", "pct", "scope", "options", "version", "updated"], rows))?;
    let invalid = snapshot.invalid.iter().map(|flag| {
        let key = printable_line(&flag.key);
        format!("{key}: invalid, and off: {}: kill or remove it\n", flag.problem)
    });
    print(&invalid.collect::<String>())
}

pub(super) fn show(flag: &Flag, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&format!("{}\n", json!(flag)));
    }
    let mut text = format!(
        "{}: {}, {} %, scope {}, options {}, version {}\n",
        flag.key,
        flag.state,
        flag.percentage(),
        scope(flag),
        options(flag),
        flag.version
    );
    if !flag.description.is_empty() {
        text.push_str(&printable_line(&flag.description));
        text.push('\n');
    }
    if let Some(hint) = hint(flag) {
        let _ = writeln!(text, "note: {hint}");
    }
    print(&text)
}

/// Warnings about flags that do not do what they seem to.
fn hint(flag: &Flag) -> Option<&'static str> {
    let is_scoped = flag.scope != Scope::default();
    match flag.state {
        FlagState::On if is_scoped => {
            Some("on is for everybody, whatever the scope: use targeted to apply it")
        }
        FlagState::Targeted if !is_scoped => {
            Some("targeted with an empty scope is on for nobody: name a plan or a tenant")
        }
        FlagState::Rollout => None,
        _ if flag.threshold() > 0 => Some("the percentage counts in the state rollout alone"),
        _ => None,
    }
}

pub(super) fn show_history(flag: &Flag, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&format!("{}\n", json!({ "history": flag.history })));
    }
    let mut lines = String::new();
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
        lines.push_str(&printable_line(&line));
        lines.push('\n');
    }
    print(&lines)
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

/// The options except the hundredths, which are part of the percentage.
fn options(flag: &Flag) -> String {
    let of = &flag.options;
    let texts = [
        of.seed.as_ref().map(|seed| format!("seed={seed}")),
        of.require_active_tenant.then(|| "active-tenants".to_owned()),
        of.expires_at.map(|at| format!("expires={at}")),
    ];
    let texts: Vec<_> = texts.into_iter().flatten().collect();
    if texts.is_empty() { "-".to_owned() } else { printable(&texts.join(" ")) }
}

/// The result of an import, flag by flag.
pub(super) fn show_import(
    imported: &Imported,
    dry_run: bool,
    as_json: bool,
) -> Result<(), Failure> {
    if as_json {
        return print(&format!("{}\n", json!({ "dryRun": dry_run, "flags": imported })));
    }
    let rows = imported.flags.iter().map(|(key, outcome)| [key.clone(), outcome.to_string()]);
    let mut text = table(&["flag", if dry_run { "would be" } else { "outcome" }], rows);
    let counts = ["created", "updated", "unchanged", "refused"];
    let counts = counts.map(|name| format!("{} {name}", imported.count(name)));
    text.push_str(&counts.join(", "));
    text.push('\n');
    print(&text)
}
