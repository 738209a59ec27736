//! Statements and rows of documents, alike for SQLite and PostgreSQL.

use std::fmt::Write as _;

use sqlx::{Database, QueryBuilder};

use super::kind::split;
use super::{
    Document, Filter, Held, Holds, Key, Kind, Order, Page, Removal, Set, State, Stored, Text,
    Unique, Value, Which, joined, limit, signed, unsigned,
};
use crate::{Error, Result};

/// The differences between the engines.
pub(super) trait Dialect: Database {
    fn error(error: sqlx::Error) -> Error;
    fn push_text(sql: &mut QueryBuilder<Self>, text: &str);
    fn push_number(sql: &mut QueryBuilder<Self>, number: i64);
    fn text(row: &Self::Row, column: usize) -> sqlx::Result<Option<String>>;
    fn number(row: &Self::Row, column: usize) -> sqlx::Result<i64>;
    fn flag(row: &Self::Row, column: usize) -> sqlx::Result<bool>;
}

/// Implements what differs only by type: `$storable` makes a key a text that the engine takes.
macro_rules! dialect {
    ($database:ty, $error:path, $storable:expr) => {
        impl $crate::documents::sql::Dialect for $database {
            fn error(error: sqlx::Error) -> crate::Error {
                $error(error)
            }
            fn push_text(sql: &mut sqlx::QueryBuilder<Self>, text: &str) {
                sql.push_bind($storable(text));
            }
            fn push_number(sql: &mut sqlx::QueryBuilder<Self>, number: i64) {
                sql.push_bind(number);
            }
            fn text(
                row: &<Self as sqlx::Database>::Row,
                column: usize,
            ) -> sqlx::Result<Option<String>> {
                sqlx::Row::try_get(row, column)
            }
            fn number(row: &<Self as sqlx::Database>::Row, column: usize) -> sqlx::Result<i64> {
                sqlx::Row::try_get(row, column)
            }
            fn flag(row: &<Self as sqlx::Database>::Row, column: usize) -> sqlx::Result<bool> {
                sqlx::Row::try_get(row, column)
            }
        }
    };
}
pub(super) use dialect;

/// Selects the columns of [`stored`] for one document; `None` if no stored key can equal this
/// one.
pub(super) fn get<D: Dialect>(kind: &Kind, key: Key<'_>) -> Option<QueryBuilder<D>> {
    let id = [kind.id];
    let (columns, key, owned): (&[&str], _, _) = match key {
        Key::Id(id_is) => (&id, vec![id_is], None),
        Key::Name(name) => (kind.name, split(name, kind.name)?, None),
        Key::Owned(value) => {
            let owned = kind.owned?;
            (owned.columns, split(value, owned.columns)?, Some(owned))
        }
    };
    let mut sql = QueryBuilder::new(select(kind));
    match owned {
        Some(owned) => sql.push(format_args!(
            "{} k JOIN {} d ON d.{} = k.{}",
            owned.table, kind.table, kind.id, owned.owner
        )),
        None => sql.push(format_args!("{} d", kind.table)),
    };
    let table = if owned.is_some() { "k" } else { "d" };
    let mut glue = " WHERE ";
    for (column, part) in columns.iter().zip(key) {
        sql.push(format_args!("{glue}{table}.{column} = "));
        D::push_text(&mut sql, part);
        glue = " AND ";
    }
    Some(sql)
}

/// Selects a page, in the order of an index.
pub(super) fn page<D: Dialect>(kind: &Kind, page: &Page<'_>) -> QueryBuilder<D> {
    let side = kind.side_of(&page.filters);
    let mut sql = QueryBuilder::new(select(kind));
    // The columns of the order are those of the table whose index leads.
    let id = if let Some(side) = side {
        let (table, owner) = (side.table, side.owner);
        sql.push(format_args!("{table} p JOIN {} d ON d.{} = p.{owner}", kind.table, kind.id));
        format!("p.{owner}")
    } else {
        sql.push(format_args!("{} d", kind.table));
        format!("d.{}", kind.id)
    };
    let leads = if side.is_some() { "p" } else { "d" };
    sql.push(" WHERE true");
    push_filters(&mut sql, kind, &page.filters);
    match page.order {
        Order::Key { after } => {
            let key = if side.is_some() { id } else { format!("d.{}", kind.key()) };
            sql.push(format_args!(" AND {key} > "));
            D::push_text(&mut sql, after.unwrap_or_default());
            sql.push(format_args!(" ORDER BY {key}"));
        }
        Order::Latest { field, after } => {
            if let Some((number, after)) = after {
                sql.push(format_args!(" AND ({leads}.{field}, {id}) < ("));
                D::push_number(&mut sql, number);
                sql.push(", ");
                D::push_text(&mut sql, after);
                sql.push(")");
            }
            sql.push(format_args!(" ORDER BY {leads}.{field} DESC, {id} DESC"));
        }
    }
    sql.push(" LIMIT ");
    D::push_number(&mut sql, limit(page.limit));
    sql
}

/// Selects all documents of a kind.
pub(super) fn all<D: Dialect>(kind: &Kind, which: Which) -> QueryBuilder<D> {
    let mut sql = QueryBuilder::new(select(kind));
    sql.push(format_args!("{} d", kind.table));
    if which == Which::Present {
        sql.push(format_args!(" WHERE d.{} IS NOT NULL", kind.document));
    }
    sql.push(format_args!(" ORDER BY d.{}", kind.id));
    sql
}

/// Counts documents.
pub(super) fn count<D: Dialect>(kind: &Kind, filters: &[Filter<'_>]) -> QueryBuilder<D> {
    let side = kind.side_of(filters);
    let mut sql = QueryBuilder::new(format!("SELECT count(*) FROM {} d", kind.table));
    if let Some(side) = side {
        sql.push(format_args!(" JOIN {} p ON p.{} = d.{}", side.table, side.owner, kind.id));
    }
    sql.push(" WHERE true");
    push_filters(&mut sql, kind, filters);
    sql
}

/// Adds up versions.
pub(super) fn sum_versions<D: Dialect>(kind: &Kind) -> QueryBuilder<D> {
    let table = kind.table;
    QueryBuilder::new(format!("SELECT CAST(coalesce(sum(version), 0) AS BIGINT) FROM {table}"))
}

/// Selects the state of a set that counts.
pub(super) fn state<D: Dialect>(set: &Set) -> Option<QueryBuilder<D>> {
    let counts = set.counts?;
    let columns = format!("revision, {}, {}", counts.present, counts.known);
    Some(QueryBuilder::new(format!("SELECT {columns} FROM {}", set.state)))
}

/// Updates the state of a set that counts.
pub(super) fn set_state<D: Dialect>(set: &Set, state: State) -> Option<QueryBuilder<D>> {
    let counts = set.counts?;
    let mut sql = QueryBuilder::new(format!("UPDATE {} SET revision = ", set.state));
    D::push_number(&mut sql, signed(state.revision));
    for (column, number) in [(counts.present, state.present), (counts.known, state.known)] {
        sql.push(format_args!(", {column} = "));
        D::push_number(&mut sql, signed(number));
    }
    Some(sql)
}

fn select(kind: &Kind) -> String {
    format!("SELECT d.{}, d.version, d.{} FROM ", kind.id, kind.document)
}

fn push_filters<D: Dialect>(sql: &mut QueryBuilder<D>, kind: &Kind, filters: &[Filter<'_>]) {
    if kind.removal == Removal::Kept {
        sql.push(format_args!(" AND d.{} IS NOT NULL", kind.document));
    }
    for filter in filters {
        let column = match kind.side(filter.field()) {
            Some(side) => format!("p.{}", side.column),
            None => format!("d.{}", filter.field()),
        };
        let (operator, value) = match filter {
            Filter::Is(_, value) => ("=", value),
            Filter::IsNot(_, value) => ("<>", value),
        };
        sql.push(format_args!(" AND {column} {operator} "));
        D::push_text(sql, value);
    }
}

/// The rows that have one of several keys, as each engine looks them up.
pub(super) struct LookUp {
    /// The table and the columns of its keys.
    pub(super) table: &'static str,
    pub(super) columns: Vec<&'static str>,
    /// The selected columns of the table `d`.
    pub(super) select: String,
    /// The keys, a list a column.
    pub(super) keys: Vec<Vec<String>>,
}

/// The look-up whose rows [`held`] reads.
pub(super) fn look_up_held(kind: &Kind, ids: &[&str]) -> LookUp {
    let columns = [kind.id, "version"].into_iter().chain(kind.name.iter().copied());
    let columns: Vec<_> = columns.map(|column| format!("d.{column}")).collect();
    let select = format!("d.{} IS NOT NULL, {}", kind.document, columns.join(", "));
    let keys = vec![ids.iter().map(|&id| id.to_owned()).collect()];
    LookUp { table: kind.table, columns: vec![kind.id], select, keys }
}

/// The look-up whose rows [`holder`] reads.
pub(super) fn look_up_holders(kind: &Kind, unique: Unique, values: &[&str]) -> LookUp {
    let (table, columns, owner) = match (unique, kind.owned) {
        (Unique::Owned, Some(owned)) => (owned.table, owned.columns, owned.owner),
        _ => (kind.table, kind.name, kind.id),
    };
    let selected = [owner].into_iter().chain(columns.iter().copied());
    let selected: Vec<_> = selected.map(|column| format!("d.{column}")).collect();
    let mut keys = vec![Vec::new(); columns.len()];
    for parts in values.iter().filter_map(|value| split(value, columns)) {
        for (column, part) in keys.iter_mut().zip(parts) {
            column.push(part.to_owned());
        }
    }
    LookUp { table, columns: columns.to_vec(), select: selected.join(", "), keys }
}

pub(super) fn held<D: Dialect>(kind: &Kind, row: &D::Row) -> Result<Held> {
    let name = texts::<D>(row, 3, kind.name.len())?;
    Ok(Held {
        is_present: D::flag(row, 0).map_err(D::error)?,
        id: texts::<D>(row, 1, 1)?,
        version: number::<D>(row, 2)?,
        name: (!kind.name.is_empty()).then_some(name),
    })
}

/// A value and the id of the document that has it.
pub(super) fn holder<D: Dialect>(row: &D::Row, columns: usize) -> Result<(String, String)> {
    Ok((texts::<D>(row, 1, columns)?, texts::<D>(row, 0, 1)?))
}

/// Reports unreadable columns as such, so that one bad row does not hide the others.
pub(super) fn stored<D: Dialect>(row: &D::Row) -> Stored {
    Stored {
        id: D::text(row, 0).ok().flatten().unwrap_or_default(),
        version: number::<D>(row, 1).ok(),
        text: match D::text(row, 2) {
            Ok(text) => text.map_or(Text::Removed, Text::Json),
            Err(_) => Text::Unreadable,
        },
    }
}

pub(super) fn state_of<D: Dialect>(row: &D::Row) -> Result<State> {
    let number = |column| number::<D>(row, column);
    Ok(State { revision: number(0)?, present: number(1)?, known: number(2)? })
}

pub(super) fn number<D: Dialect>(row: &D::Row, column: usize) -> Result<u64> {
    unsigned(D::number(row, column).map_err(D::error)?)
}

fn texts<D: Dialect>(row: &D::Row, first: usize, columns: usize) -> Result<String> {
    let texts = (first..first + columns).map(|column| {
        let text = D::text(row, column).map_err(D::error)?;
        Ok(text.unwrap_or_default())
    });
    let texts: Vec<String> = texts.collect::<Result<_>>()?;
    Ok(joined(&texts.iter().map(String::as_str).collect::<Vec<_>>()))
}

/// Rows to be written to one table.
pub(super) struct Insert<'a> {
    pub(super) table: &'static str,
    pub(super) columns: Vec<&'static str>,
    /// The column whose row is updated if it is there.
    pub(super) upsert: Option<&'static str>,
    pub(super) rows: Vec<Vec<Cell<'a>>>,
}

#[derive(Clone, Copy)]
pub(super) enum Cell<'a> {
    Text(Option<&'a str>),
    Number(i64),
}

/// The side tables of a kind, each with the column of the document's id.
pub(super) fn sides(kind: &Kind) -> impl Iterator<Item = (&'static str, &'static str)> {
    let owned = kind.owned.map(|owned| (owned.table, owned.owner));
    let sides = kind.fields.iter().filter_map(|field| match &field.holds {
        Holds::Texts(side) => Some((side.table, side.owner)),
        Holds::Text | Holds::Number => None,
    });
    owned.into_iter().chain(sides)
}

/// The rows of documents: those of the kind's table, then those of its side tables.
pub(super) fn inserts<'a>(kind: &'static Kind, documents: &[&'a Document]) -> Vec<Insert<'a>> {
    let scalars =
        || kind.fields.iter().enumerate().filter(|(_, f)| !matches!(f.holds, Holds::Texts(_)));
    let mut columns = vec![kind.id, "version", kind.document];
    columns.extend(kind.name);
    columns.extend(scalars().map(|(_, field)| field.name));
    let row = |document: &&'a Document| {
        let version = Cell::Number(signed(document.version));
        let text = Cell::Text(document.text.as_deref());
        let mut row = vec![Cell::Text(Some(&document.id)), version, text];
        row.extend(parts(document.name.as_deref(), kind.name));
        row.extend(scalars().map(|(place, _)| cell(document, place)));
        row
    };
    let rows = documents.iter().map(row).collect();
    let mut inserts = vec![Insert { table: kind.table, columns, upsert: Some(kind.id), rows }];
    if let Some(owned) = kind.owned {
        let columns = owned.columns.iter().copied().chain([owned.owner]).collect();
        let row = |document: &'a Document, value: &'a String| {
            parts(Some(value), owned.columns).chain([Cell::Text(Some(&document.id))]).collect()
        };
        let rows = documents.iter().flat_map(|&d| d.owned.iter().map(move |value| row(d, value)));
        inserts.push(Insert { table: owned.table, columns, upsert: None, rows: rows.collect() });
    }
    for (place, field) in kind.fields.iter().enumerate() {
        let Holds::Texts(side) = &field.holds else { continue };
        let columns = [side.column].into_iter().chain(side.order).chain([side.owner]).collect();
        let row = |document: &'a Document, text: &'a String| {
            let order = side.order.map(|order| cell(document, kind.place(order)));
            let cells = [Cell::Text(Some(text))].into_iter().chain(order);
            cells.chain([Cell::Text(Some(&document.id))]).collect()
        };
        let rows = documents.iter().flat_map(|&document| {
            let texts = match document.fields.get(place) {
                Some(Value::Texts(texts)) => texts.as_slice(),
                _ => &[],
            };
            texts.iter().map(move |text| row(document, text))
        });
        inserts.push(Insert { table: side.table, columns, upsert: None, rows: rows.collect() });
    }
    inserts.retain(|insert| !insert.rows.is_empty());
    inserts
}

fn parts<'a>(key: Option<&'a str>, columns: &[&str]) -> impl Iterator<Item = Cell<'a>> {
    let parts = key.and_then(|key| split(key, columns)).unwrap_or_default();
    let nothing = std::iter::repeat_n(Cell::Text(None), columns.len() - parts.len());
    parts.into_iter().map(|part| Cell::Text(Some(part))).chain(nothing)
}

fn cell(document: &Document, place: usize) -> Cell<'_> {
    match document.fields.get(place) {
        Some(Value::Text(text)) => Cell::Text(text.as_deref()),
        Some(Value::Number(number)) => Cell::Number(*number),
        Some(Value::Texts(_)) | None => Cell::Text(None),
    }
}

impl Insert<'_> {
    /// `INSERT INTO t (a, b) <rows>`, and what is done with rows that are there.
    pub(super) fn sql(&self, rows: &str) -> String {
        let columns = self.columns.join(", ");
        let mut sql = format!("INSERT INTO {} ({columns}) {rows}", self.table);
        if let Some(id) = self.upsert {
            let others = self.columns.iter().filter(|column| **column != id);
            let set: Vec<_> =
                others.map(|column| format!("{column} = excluded.{column}")).collect();
            let _ = write!(sql, " ON CONFLICT ({id}) DO UPDATE SET {}", set.join(", "));
        }
        sql
    }
}
