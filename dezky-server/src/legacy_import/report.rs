//! What an import found and did.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::render::table::{printable, table};

/// The most names of fields that are told.
const MAX_NAMES: usize = 100;
/// The most documents of a collection that are named.
const MAX_NAMED: usize = 20;

/// What an import found and did.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Whether nothing was written.
    pub(crate) dry_run: bool,
    /// By kind.
    pub(crate) collections: Vec<Collection>,
    /// What became of the external ids of events.
    pub(crate) external_ids: ExternalIds,
    /// What became of the cursors.
    pub(crate) cursors: Vec<TakenCursor>,
}

/// A collection.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Collection {
    /// What is in it.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// Whether it is there.
    pub(crate) found: bool,
    /// How many documents were read.
    pub(crate) read: u64,
    /// How many were written, or would be.
    pub(crate) imported: u64,
    /// How many were there already.
    pub(crate) existing: u64,
    /// Of these, those that say something else than what is there, which stays.
    pub(crate) conflicts: u64,
    /// How many went to the quarantine.
    pub(crate) quarantined: u64,
    /// How many were refused: see `problems`.
    pub(crate) refused: u64,
    /// Fields that were left out or brought to normal form, with how often.
    pub(crate) changed: BTreeMap<String, u64>,
    /// Fields that the mapping does not know, with how often they say something.
    pub(crate) unknown: BTreeMap<String, u64>,
    /// Documents that were refused, the first of them, and why.
    pub(crate) problems: Vec<Problem>,
}

/// A document that was refused.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    /// Its `_id`.
    pub(crate) id: String,
    /// The field, its bound and the fix.
    pub(crate) problem: String,
}

/// What became of the external ids of events.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExternalIds {
    /// Taken as they were.
    pub(crate) kept: u64,
    /// Computed anew from what was kept of the event.
    pub(crate) computed: u64,
    /// Of Stalwart and oCIS, kept as they were because what was kept of the event does
    /// not say its id here: if the source brings it again, it is stored again.
    pub(crate) not_computed: u64,
    /// Events that had none.
    pub(crate) absent: u64,
}

/// A cursor.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TakenCursor {
    /// Whose.
    pub(crate) source: String,
    /// What became of it.
    pub(crate) outcome: String,
}

impl Collection {
    pub(super) fn new(kind: &'static str, name: &str) -> Self {
        Self { kind, name: name.to_owned(), ..Self::default() }
    }

    /// Notes a field that was left out or brought to normal form.
    pub(super) fn change(&mut self, field: &str) {
        count(&mut self.changed, field);
    }

    /// Notes the fields that nobody took.
    pub(super) fn unknown(&mut self, rest: &Map<String, Value>) {
        rest.keys().for_each(|name| count(&mut self.unknown, name));
    }

    pub(super) fn refuse(&mut self, id: &str, problem: impl Into<String>) {
        self.refused += 1;
        if self.problems.len() < MAX_NAMED {
            self.problems.push(Problem { id: printable(id), problem: problem.into() });
        }
    }
}

fn count(names: &mut BTreeMap<String, u64>, name: &str) {
    let name = printable(name);
    if names.len() < MAX_NAMES || names.contains_key(&name) {
        *names.entry(name).or_default() += 1;
    }
}

impl Report {
    pub(crate) fn refused(&self) -> u64 {
        self.collections.iter().map(|collection| collection.refused).sum()
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let header = [
            "kind",
            "collection",
            "read",
            "imported",
            "existing",
            "conflicts",
            "quarantined",
            "refused",
        ];
        let mut out = table(
            &header,
            self.collections.iter().map(|c| {
                let name = if c.found { c.name.clone() } else { format!("{} (missing)", c.name) };
                let counts =
                    [c.read, c.imported, c.existing, c.conflicts, c.quarantined, c.refused];
                let [read, imported, existing, conflicts, quarantined, refused] =
                    counts.map(|n| n.to_string());
                [
                    c.kind.to_owned(),
                    printable(&name),
                    read,
                    imported,
                    existing,
                    conflicts,
                    quarantined,
                    refused,
                ]
            }),
        );
        for c in &self.collections {
            for (what, names) in
                [("brought to normal form", &c.changed), ("fields not known", &c.unknown)]
            {
                if !names.is_empty() {
                    let names: Vec<_> =
                        names.iter().map(|(name, n)| format!("{name} ({n})")).collect();
                    let _ = writeln!(out, "{}: {what}: {}", c.kind, names.join(", "));
                }
            }
            for Problem { id, problem } in &c.problems {
                let _ = writeln!(out, "{}: {id}: refused: {problem}", c.kind);
            }
        }
        let ExternalIds { kept, computed, not_computed, absent } = self.external_ids;
        let _ = writeln!(
            out,
            "external ids: {kept} kept, {computed} computed anew, {not_computed} of Stalwart and oCIS could not be, {absent} absent"
        );
        for TakenCursor { source, outcome } in &self.cursors {
            let _ = writeln!(out, "cursor of {}: {outcome}", printable(source));
        }
        if self.dry_run {
            out.push_str("dry run: nothing was written, and what the store holds already was not looked at\n");
        }
        out
    }
}
