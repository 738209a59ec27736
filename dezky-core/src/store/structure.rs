//! Comparison of a database's structure with the schema. Indexes, views, triggers and
//! policies can make a list show something other than the stored rows, without a hash
//! changing.

use std::fmt;

use serde::Serialize;

/// How far [`AuditStore::examine`](super::AuditStore::examine) goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Definitions only: a few catalogue queries, independent of the log's size.
    Definitions,
    /// Definitions and rows: reads every index of the events completely and compares it
    /// with the table.
    Rows,
}

/// A difference between the database's structure and the schema, because of which lists
/// may not show what is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anomaly {
    /// The table, column, index, trigger or other object.
    pub object: String,
    /// The difference, in one line.
    pub detail: String,
    /// How to mend it.
    pub fix: String,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.detail)
    }
}

#[cfg(feature = "sqlite")]
pub(super) use self::compared::shown;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
pub(super) use self::compared::{Object, compare, unreached};

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
mod compared {
    use std::collections::BTreeSet;

    use super::Anomaly;

    /// The maximum number of anomalies that are named.
    const MAX_ANOMALIES: usize = 50;
    /// The maximum number of characters shown of a name or definition.
    const MAX_SHOWN: usize = 200;

    /// An object of a database's structure.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Object {
        /// Such as `table`, `column`, `index`, `trigger`.
        pub(crate) kind: String,
        pub(crate) name: String,
        /// The table that it belongs to; of a table itself.
        pub(crate) table: String,
        /// Every other property that matters, as text to compare.
        pub(crate) definition: String,
    }

    impl Object {
        fn is(&self, other: &Self) -> bool {
            (&self.kind, &self.name) == (&other.kind, &other.name)
        }

        /// The object's name for people.
        fn label(&self) -> String {
            match self.kind.as_str() {
                "table" | "column" | "index" => shown(&self.name),
                kind => shown(&format!("{kind} {} on {}", self.name, self.table)),
            }
        }
    }

    /// Returns the differences between the `found` and the `expected` objects. Additional
    /// indexes are allowed, as they don't change results; additional objects of any other
    /// kind are differences.
    pub(crate) fn compare(expected: &[Object], found: &[Object]) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        let mut replaced = BTreeSet::new();
        let tables = expected.iter().filter(|object| object.kind == "table");
        let others = expected.iter().filter(|object| object.kind != "table");
        for wanted in tables.chain(others) {
            // Columns and indexes of a missing or replaced table are not worth a line each.
            if replaced.contains(&wanted.table) {
                continue;
            }
            let difference = match found.iter().find(|object| object.is(wanted)) {
                None => "is missing".to_owned(),
                Some(object) if object.definition != wanted.definition => {
                    format!("differs from the schema: {}", shown(&object.definition))
                }
                Some(_) => continue,
            };
            if wanted.kind == "table" {
                replaced.insert(&wanted.table);
            }
            let fix = "recreate it from the schema, or restore a backup".to_owned();
            anomalies.push(Anomaly { object: wanted.label(), detail: difference, fix });
        }
        for object in found {
            let is_ours = expected.iter().any(|wanted| wanted.is(object));
            if !is_ours && object.kind != "index" && !replaced.contains(&object.table) {
                anomalies.push(Anomaly {
                    object: object.label(),
                    detail: format!("is not part of the schema: {}", shown(&object.definition)),
                    fix: "drop it, and find out who created it".to_owned(),
                });
            }
        }
        anomalies.truncate(MAX_ANOMALIES);
        anomalies
    }

    /// Returns an anomaly if an index has other entries than its table has rows.
    pub(crate) fn unreached(index: &str, reached: i64, rows: i64) -> Option<Anomaly> {
        (reached != rows).then(|| Anomaly {
            object: shown(index),
            detail: format!("leads to {reached} of {rows} rows"),
            fix: "keep a copy of the database as evidence, then rebuild the index".to_owned(),
        })
    }

    /// Makes a catalogue text safe to print: bounds its length, and replaces control and
    /// bidirectional formatting characters.
    pub(crate) fn shown(text: &str) -> String {
        let is_unsafe = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let mut shown: String = text
            .chars()
            .take(MAX_SHOWN)
            .map(|c| if is_unsafe(c) { '\u{fffd}' } else { c })
            .collect();
        if text.chars().nth(MAX_SHOWN).is_some() {
            shown.push('…');
        }
        shown
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn object(kind: &str, name: &str, definition: &str) -> Object {
            let table = "t".to_owned();
            let [kind, name, definition] = [kind, name, definition].map(str::to_owned);
            Object { kind, name, table, definition }
        }

        #[test]
        fn what_is_missing_changed_or_foreign_is_named_and_an_index_of_others_is_not() {
            let table = object("table", "t", "table");
            let ours = object("index", "t_at", "(at)");
            let expected = [table.clone(), ours.clone(), object("index", "t_id", "(id)")];
            let found = [
                table.clone(),
                object("index", "t_at", "(at) WHERE at > 5"),
                object("index", "theirs", "(id)"),
                object("trigger", "empties\u{202e}", "BEGIN DELETE"),
            ];
            let said: Vec<_> = compare(&expected, &found).iter().map(ToString::to_string).collect();
            assert_eq!(said.len(), 3, "{said:?}");
            assert!(said[0].contains("t_at: ") && said[0].contains("at > 5"), "{said:?}");
            assert!(said[1].contains("t_id: is missing"), "{said:?}");
            assert!(said[2].starts_with("trigger empties\u{fffd} on t: "), "{said:?}");

            let view = [object("table", "t", "view"), object("column", "t.x", "text")];
            let said = compare(&[table, ours], &view);
            assert_eq!(said.len(), 1, "the rest of a replaced table is not told: {said:?}");
        }

        #[test]
        fn what_is_shown_is_bounded() {
            assert_eq!(shown(&"x".repeat(500)).chars().count(), MAX_SHOWN + 1);
            assert_eq!(unreached("t_at", 3, 3), None);
            assert!(unreached("t_at", 2, 3).is_some());
        }
    }
}
