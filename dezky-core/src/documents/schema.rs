//! The tables of a set without explicit steps, derived from its kinds.

use std::fmt::Write as _;

use super::{Holds, Kind, Removal, Set};

struct Table {
    name: &'static str,
    columns: Vec<Column>,
    key: Vec<&'static str>,
    /// Name, whether it is unique, and columns.
    indexes: Vec<(String, bool, Vec<&'static str>)>,
}

struct Column {
    name: &'static str,
    is_text: bool,
    is_null: bool,
}

fn text(name: &'static str) -> Column {
    Column { name, is_text: true, is_null: false }
}

fn number(name: &'static str) -> Column {
    Column { name, is_text: false, is_null: false }
}

fn tables(kind: &Kind) -> Vec<Table> {
    let mut columns = vec![text(kind.id)];
    columns.extend(kind.name.iter().copied().map(text));
    let mut indexes = Vec::new();
    if !kind.name.is_empty() {
        indexes.push((format!("{}_name", kind.table), true, kind.name.to_vec()));
    }
    let mut sides = Vec::new();
    for field in kind.fields {
        let by = match &field.holds {
            Holds::Text => {
                columns.push(Column { is_null: true, ..text(field.name) });
                kind.key()
            }
            Holds::Number => {
                columns.push(number(field.name));
                kind.id
            }
            Holds::Texts(side) => {
                let mut columns = vec![text(side.column)];
                columns.extend(side.order.map(number));
                columns.push(text(side.owner));
                sides.push(of_owner(side.table, columns, side.owner, true));
                continue;
            }
        };
        indexes.push((format!("{}_{}", kind.table, field.name), false, vec![field.name, by]));
    }
    columns.push(number("version"));
    columns.push(Column { is_null: kind.removal == Removal::Kept, ..text(kind.document) });
    let mut tables = vec![Table { name: kind.table, columns, key: vec![kind.id], indexes }];
    if let Some(owned) = kind.owned {
        let mut columns: Vec<_> = owned.columns.iter().copied().map(text).collect();
        columns.push(text(owned.owner));
        tables.push(of_owner(owned.table, columns, owned.owner, false));
    }
    tables.extend(sides);
    tables
}

/// A side table. Its key is all of its columns, or all but the document's id.
fn of_owner(
    name: &'static str,
    columns: Vec<Column>,
    owner: &'static str,
    is_shared: bool,
) -> Table {
    let key = columns.iter().map(|column| column.name).filter(|&name| is_shared || name != owner);
    let indexes = vec![(format!("{name}_owner"), false, vec![owner])];
    Table { name, key: key.collect(), columns, indexes }
}

/// The columns of the state other than `one`.
fn counts(set: &Set) -> Vec<&'static str> {
    let counts = set.counts.map(|counts| ["revision", counts.present, counts.known]);
    counts.into_iter().flatten().collect()
}

/// The script that creates the tables in SQLite.
#[cfg(feature = "sqlite")]
pub(super) fn sqlite(set: &Set) -> String {
    script(set, "TEXT", "INTEGER", " STRICT")
}

/// The script that creates the tables in PostgreSQL. Texts are compared as bytes, as on every
/// engine.
#[cfg(feature = "postgres")]
pub(super) fn postgres(set: &Set) -> String {
    script(set, "TEXT COLLATE \"C\"", "BIGINT", "")
}

fn script(set: &Set, text: &str, number: &str, options: &str) -> String {
    let mut sql = String::new();
    let column = |column: &Column| {
        let kind = if column.is_text { text } else { number };
        let null = if column.is_null { "" } else { " NOT NULL" };
        format!("{} {kind}{null}, ", column.name)
    };
    for table in set.kinds.iter().flat_map(|kind| tables(kind)) {
        let columns: String = table.columns.iter().map(column).collect();
        let (name, key) = (table.name, table.key.join(", "));
        let _ = writeln!(sql, "CREATE TABLE {name} ({columns}PRIMARY KEY ({key})){options};");
        for (index, is_unique, columns) in table.indexes {
            let unique = if is_unique { "UNIQUE " } else { "" };
            let columns = columns.join(", ");
            let _ = writeln!(sql, "CREATE {unique}INDEX {index} ON {name} ({columns});");
        }
    }
    let (state, counts) = (set.state, counts(set));
    let columns: Vec<_> = counts.iter().map(|c| format!(", {c} {number} NOT NULL")).collect();
    let one = "one INTEGER PRIMARY KEY CHECK (one = 1)";
    let _ = writeln!(sql, "CREATE TABLE {state} ({one}{}){options};", columns.concat());
    let _ = writeln!(sql, "INSERT INTO {state} VALUES (1{});", ", 0".repeat(counts.len()));
    sql
}

/// The objects in PostgreSQL after its script.
#[cfg(feature = "postgres")]
pub(super) fn catalogue(set: &Set) -> String {
    let mut lines = String::new();
    let mut line = |kind: &str, name: &str, table: &str, definition: &str| {
        let _ = writeln!(lines, "{kind}\t{name}\t{table}\t{definition}");
    };
    for table in set.kinds.iter().flat_map(|kind| tables(kind)) {
        let (name, key) = (table.name, table.key.join(", "));
        line("table", name, name, "a table");
        for Column { name: column, is_text, is_null } in table.columns {
            let kind = if is_text { "text COLLATE \"C\"" } else { "bigint" };
            let null = if is_null { "" } else { " NOT NULL" };
            line("column", &format!("{name}.{column}"), name, &format!("{kind}{null}"));
        }
        let primary = format!("{name}_pkey");
        line("constraint", &primary, name, &format!("PRIMARY KEY ({key})"));
        let primary = (primary, true, table.key);
        for (index, is_unique, columns) in table.indexes.into_iter().chain([primary]) {
            let unique = if is_unique { "UNIQUE " } else { "" };
            let columns = columns.join(", ");
            let definition =
                format!("CREATE {unique}INDEX {index} ON {name} USING btree ({columns})");
            line("index", &index, name, &definition);
        }
    }
    let state = set.state;
    line("table", state, state, "a table");
    line("column", &format!("{state}.one"), state, "integer NOT NULL");
    for count in counts(set) {
        line("column", &format!("{state}.{count}"), state, "bigint NOT NULL");
    }
    let primary = format!("{state}_pkey");
    line("constraint", &primary, state, "PRIMARY KEY (one)");
    line("constraint", &format!("{state}_one_check"), state, "CHECK (one = 1)");
    let definition = format!("CREATE UNIQUE INDEX {primary} ON {state} USING btree (one)");
    line("index", &primary, state, &definition);
    lines
}
