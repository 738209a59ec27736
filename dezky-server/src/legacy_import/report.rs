//! The report of an import.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::render::table::{printable, table};

/// The maximum number of field names in the report.
const MAX_NAMES: usize = 100;
/// The maximum number of documents that the report names for a collection.
const MAX_NAMED: usize = 20;

/// The report of an import.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Whether nothing was written.
    pub(crate) dry_run: bool,
    /// By kind.
    pub(crate) collections: Vec<Collection>,
    /// The external ids of events.
    pub(crate) external_ids: ExternalIds,
    /// The results for the cursors.
    pub(crate) cursors: Vec<TakenCursor>,
}

/// A collection.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Collection {
    /// Its kind.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// Whether it exists.
    pub(crate) found: bool,
    /// How many documents were read.
    pub(crate) read: u64,
    /// How many were written, or would be.
    pub(crate) imported: u64,
    /// How many existed already.
    pub(crate) existing: u64,
    /// Existing ones that differ from the document. They stay as they are.
    pub(crate) conflicts: u64,
    /// How many went to the quarantine.
    pub(crate) quarantined: u64,
    /// How many were refused: see `problems`.
    pub(crate) refused: u64,
    /// Fields that were left out or normalised, with counts.
    pub(crate) changed: BTreeMap<String, u64>,
    /// Fields that the mapping does not know, with counts of non-empty ones.
    pub(crate) unknown: BTreeMap<String, u64>,
    /// The first refused documents, with reasons.
    pub(crate) problems: Vec<Problem>,
}

/// A refused document.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    /// Its `_id`.
    pub(crate) id: String,
    /// The field, its bound and the fix.
    pub(crate) problem: String,
}

/// The external ids of events.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExternalIds {
    /// Imported as they were.
    pub(crate) kept: u64,
    /// Computed from the stored event.
    pub(crate) computed: u64,
    /// Of Stalwart and oCIS, imported as they were because the stored event does not suffice to
    /// compute the id. If the source sends such an event again, it is stored again.
    pub(crate) not_computed: u64,
    /// Events that had none.
    pub(crate) absent: u64,
}

/// A cursor.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TakenCursor {
    /// Its source.
    pub(crate) source: String,
    /// The result.
    pub(crate) outcome: String,
}

impl Collection {
    pub(super) fn new(kind: &'static str, name: &str) -> Self {
        Self { kind, name: name.to_owned(), ..Self::default() }
    }

    /// Notes a field that was left out or normalised.
    pub(super) fn change(&mut self, field: &str) {
        count(&mut self.changed, field);
    }

    /// Notes the fields that were not taken.
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

    /// The report as text.
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
