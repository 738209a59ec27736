//! Documents in SQL: the statements and rows that SQLite and PostgreSQL share.

use std::fmt::Write as _;
use std::future::pending;

use async_trait::async_trait;
use sqlx::{Database, QueryBuilder};

use super::kind::{SEPARATOR, split};
use super::{
    Counts, Document, Field, Filter, Held, Holds, Key, Kind, Order, Page, Removal, Rows, RowsTx,
    Set, State, Stored, Text, Unique, Value, Which, Write, corrupt, joined, limit, signed,
    unsigned,
};
use crate::store::{Anomaly, Capabilities};
use crate::{Error, Result, SealedEvent};

/// Separates the values that a document owns in the row that [`held`] reads.
const END: char = '\u{1e}';

/// The maximum number of rows or keys per statement: within the engines' limits on parameters and
/// sizes, whatever the documents are.
const ROWS_A_STATEMENT: usize = 100;

/// A database that executes the statements of this module.
#[async_trait]
pub(super) trait Engine: Clone + Send + Sync + 'static {
    type Sql: Dialect;
    type Tx: Send;

    /// Locks the state's row until the transaction ends; empty if beginning one excludes other
    /// writers.
    const LOCK: &'static str;

    async fn examine(&self, set: &Set) -> Result<Vec<Anomaly>>;
    async fn read(&self, sql: Statement<Self>) -> Result<Vec<Row<Self>>>;

    /// Reads rows along the index that has their order.
    async fn scan(&self, sql: Statement<Self>) -> Result<Vec<Row<Self>>> {
        self.read(sql).await
    }

    async fn begin(&self) -> Result<Self::Tx>;
    async fn run(tx: &mut Self::Tx, sql: Statement<Self>) -> Result<Vec<Row<Self>>>;

    /// Notifies other processes of the revision when the transaction commits.
    async fn notify(&self, _tx: &mut Self::Tx, _component: &str, _revision: u64) -> Result<()> {
        Ok(())
    }

    /// Resolves on a notification; never on engines without.
    async fn changed(&self, _component: &str, _revision: u64) {
        pending::<()>().await;
    }

    async fn commit(&self, tx: Self::Tx, events: &[SealedEvent]) -> Result<()>;
}

type Statement<E> = QueryBuilder<<E as Engine>::Sql>;
type Row<E> = <<E as Engine>::Sql as Database>::Row;

/// A set of documents in an SQL database.
pub(super) struct SqlRows<E> {
    pub(super) set: &'static Set,
    pub(super) database: E,
}

impl<E: Engine> SqlRows<E> {
    async fn number(&self, sql: Statement<E>) -> Result<u64> {
        let rows = self.database.read(sql).await?;
        rows.first().map_or(Ok(0), |row| number::<E::Sql>(row, 0))
    }

    /// The state in a row of [`state`] or [`all`].
    fn state(&self, row: Option<&Row<E>>, first: usize) -> Result<State> {
        let Some(row) = row else {
            return Err(corrupt(format_args!("the row of {} is missing", self.set.state)));
        };
        let number = |column| number::<E::Sql>(row, first + column);
        Ok(match self.set.counts {
            Some(_) => State { revision: number(0)?, present: number(1)?, known: number(2)? },
            None => State::default(),
        })
    }
}

#[async_trait]
impl<E: Engine> Rows for SqlRows<E> {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(self.set).await
    }

    async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>> {
        let Some(sql) = get(kind, key) else { return Ok(None) };
        Ok(self.database.read(sql).await?.first().map(stored::<E::Sql>))
    }

    async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>> {
        let rows = self.database.scan(self::page(kind, page)).await?;
        Ok(rows.iter().map(stored::<E::Sql>).collect())
    }

    async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)> {
        let rows = self.database.read(all(self.set, kind, which)).await?;
        let state = match self.set.counts {
            Some(_) => self.state(rows.first(), 3)?,
            None => State::default(),
        };
        // Without documents the only row may be that of the state.
        let is_document = |row: &&Row<E>| !matches!(E::Sql::text(row, 0), Ok(None));
        Ok((state, rows.iter().filter(is_document).map(stored::<E::Sql>).collect()))
    }

    async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64> {
        self.number(count(kind, filters)).await
    }

    async fn sum_versions(&self, kind: &'static Kind) -> Result<u64> {
        self.number(sum_versions(kind)).await
    }

    async fn state(&self) -> Result<State> {
        if self.set.counts.is_none() {
            return Ok(State::default());
        }
        self.state(self.database.read(state(self.set)).await?.first(), 0)
    }

    async fn changed(&self, revision: u64) {
        self.database.changed(self.set.component, revision).await;
    }

    async fn begin(&self) -> Result<(State, Box<dyn RowsTx + '_>)> {
        let mut tx = self.database.begin().await?;
        let mut state = State::default();
        if self.set.counts.is_some() || !E::LOCK.is_empty() {
            let mut sql = self::state(self.set);
            sql.push(E::LOCK);
            state = self.state(E::run(&mut tx, sql).await?.first(), 0)?;
        }
        Ok((state, Box::new(SqlTx { rows: self, tx })))
    }
}

struct SqlTx<'a, E: Engine> {
    rows: &'a SqlRows<E>,
    tx: E::Tx,
}

#[async_trait]
impl<E: Engine> RowsTx for SqlTx<'_, E> {
    async fn held(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<Vec<Held>> {
        let rows = self.run_all(look_up_held(kind, ids)).await?;
        rows.iter().map(|row| held::<E::Sql>(kind, row)).collect()
    }

    async fn holders(
        &mut self,
        kind: &'static Kind,
        unique: Unique,
        values: &[&str],
    ) -> Result<Vec<(String, String)>> {
        let (_, columns, _) = unique_key(kind, unique);
        let rows = self.run_all(look_up_holders(kind, unique, values)).await?;
        let value = |row| texts::<E::Sql>(row, 1, columns.len());
        rows.iter().map(|row| Ok((value(row)?, texts::<E::Sql>(row, 0, 1)?))).collect()
    }

    async fn erase(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<()> {
        let owned = kind.owned.map(|owned| (owned.table, owned.owner));
        let sides = kind.sides().map(|(_, side)| (side.table, side.owner));
        for (table, column) in owned.into_iter().chain(sides).chain([(kind.table, kind.id)]) {
            self.run_all(delete(table, column, ids)).await?;
        }
        Ok(())
    }

    async fn put(&mut self, kind: &'static Kind, writes: &[Write<'_>]) -> Result<()> {
        let there = || writes.iter().filter(|write| write.held.is_some());
        if let Some(owned) = kind.owned {
            let moved = there().filter(|write| !write.keeps_owned());
            let ids: Vec<&str> = moved.map(|write| &*write.document.id).collect();
            self.run_all(delete(owned.table, owned.owner, &ids)).await?;
        }
        for (_, side) in kind.sides() {
            let ids: Vec<&str> = there().map(|write| &*write.document.id).collect();
            self.run_all(delete(side.table, side.owner, &ids)).await?;
        }
        self.run_all(inserts(kind, writes)).await.map(drop)
    }

    async fn set_state(&mut self, state: State) -> Result<()> {
        let SqlRows { set, database } = self.rows;
        let Some(sql) = set_state(set, state) else { return Ok(()) };
        E::run(&mut self.tx, sql).await?;
        database.notify(&mut self.tx, set.component, state.revision).await
    }

    async fn commit(self: Box<Self>, events: &[SealedEvent]) -> Result<()> {
        self.rows.database.commit(self.tx, events).await
    }
}

impl<E: Engine> SqlTx<'_, E> {
    async fn run_all(&mut self, statements: Vec<Statement<E>>) -> Result<Vec<Row<E>>> {
        let mut rows = Vec::new();
        for sql in statements {
            rows.extend(E::run(&mut self.tx, sql).await?);
        }
        Ok(rows)
    }
}

/// The differences between the engines' types.
pub(crate) trait Dialect: Database {
    fn error(error: sqlx::Error) -> Error;
    fn push_text(sql: &mut QueryBuilder<Self>, text: Option<&str>);
    fn push_number(sql: &mut QueryBuilder<Self>, number: i64);
    fn text(row: &Self::Row, column: usize) -> sqlx::Result<Option<String>>;
    fn number(row: &Self::Row, column: usize) -> sqlx::Result<i64>;
    fn flag(row: &Self::Row, column: usize) -> sqlx::Result<bool>;
}

/// Implements [`Dialect`]. `$storable` converts a text to one that the engine accepts.
macro_rules! dialect {
    ($database:ty, $error:path, $storable:expr) => {
        impl $crate::documents::sql::Dialect for $database {
            fn error(error: sqlx::Error) -> crate::Error {
                $error(error)
            }
            fn push_text(sql: &mut sqlx::QueryBuilder<Self>, text: Option<&str>) {
                sql.push_bind(text.map($storable));
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

/// Selects the columns of [`stored`] for one document; `None` if no stored key can equal this one.
fn get<D: Dialect>(kind: &'static Kind, key: Key<'_>) -> Option<QueryBuilder<D>> {
    let by_id = [kind.id];
    let (key, (table, columns, owner)) = match key {
        Key::Id(id) => (id, (kind.table, by_id.as_slice(), kind.id)),
        Key::Name(name) => (name, unique_key(kind, Unique::Name)),
        Key::Owned(value) => (value, kind.owned.map(|_| unique_key(kind, Unique::Owned))?),
    };
    let mut sql = QueryBuilder::new(select(kind));
    let leads = if table == kind.table { "d" } else { "k" };
    sql.push(format_args!("{table} {leads}"));
    if leads == "k" {
        sql.push(format_args!(" JOIN {} d ON d.{} = k.{owner}", kind.table, kind.id));
    }
    sql.push(" WHERE true");
    for (column, part) in columns.iter().zip(split(key, columns)?) {
        sql.push(format_args!(" AND {leads}.{column} = "));
        D::push_text(&mut sql, Some(part));
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
            D::push_text(&mut sql, Some(after.unwrap_or_default()));
            sql.push(format_args!(" ORDER BY {key}"));
        }
        Order::Latest { field, after } => {
            if let Some((number, after)) = after {
                sql.push(format_args!(" AND ({leads}.{field}, {id}) < ("));
                D::push_number(&mut sql, number);
                sql.push(", ");
                D::push_text(&mut sql, Some(after));
                sql.push(")");
            }
            sql.push(format_args!(" ORDER BY {leads}.{field} DESC, {id} DESC"));
        }
    }
    sql.push(" LIMIT ");
    D::push_number(&mut sql, limit(page.limit));
    sql
}

/// Selects all documents of a kind. If the set counts, each row also has the columns of [`state`]:
/// one statement, so that both are of one snapshot. A set that does not count may have no table of
/// its state.
fn all<D: Dialect>(set: &Set, kind: &Kind, which: Which) -> QueryBuilder<D> {
    let Kind { id, document, table, .. } = kind;
    let condition = match which {
        Which::Present => format!("d.{document} IS NOT NULL"),
        Which::Known => "true".to_owned(),
    };
    let rest = match set.counts {
        // A single row of the state, so that the documents are read in the order of their ids.
        Some(_) => format!(
            ", {} FROM {} s LEFT JOIN {table} d ON {condition} WHERE s.one = 1",
            counts(set),
            set.state
        ),
        None => format!(" FROM {table} d WHERE {condition}"),
    };
    QueryBuilder::new(format!("SELECT d.{id}, d.version, d.{document}{rest} ORDER BY d.{id}"))
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
fn sum_versions<D: Dialect>(kind: &Kind) -> QueryBuilder<D> {
    let table = kind.table;
    QueryBuilder::new(format!("SELECT CAST(coalesce(sum(version), 0) AS BIGINT) FROM {table}"))
}

/// Selects the row of the state.
fn state<D: Dialect>(set: &Set) -> QueryBuilder<D> {
    QueryBuilder::new(format!("SELECT {} FROM {} s", counts(set), set.state))
}

fn counts(set: &Set) -> String {
    match set.counts {
        Some(Counts { present, known }) => format!("s.revision, s.{present}, s.{known}"),
        None => "s.one".to_owned(),
    }
}

/// Updates the state of a set that counts.
fn set_state<D: Dialect>(set: &Set, state: State) -> Option<QueryBuilder<D>> {
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
        let column = match kind.side_of(&[*filter]) {
            Some(side) => format!("p.{}", side.column),
            None => format!("d.{}", filter.field()),
        };
        let (operator, value) = match filter {
            Filter::Is(_, value) => ("=", value),
            Filter::IsNot(_, value) => ("<>", value),
        };
        sql.push(format_args!(" AND {column} {operator} "));
        D::push_text(sql, Some(value));
    }
}

/// Selects the rows that [`held`] reads.
pub(super) fn look_up_held<D: Dialect>(kind: &Kind, ids: &[&str]) -> Vec<QueryBuilder<D>> {
    let columns = [kind.id, "version"].into_iter().chain(kind.name.iter().copied());
    let columns: Vec<_> = columns.map(|column| format!("d.{column}")).collect();
    let mut select = format!("d.{} IS NOT NULL, {}", kind.document, columns.join(", "));
    if let Some(owned) = kind.owned {
        let value: Vec<_> = owned.columns.iter().map(|column| format!("o.{column}")).collect();
        let value = value.join(&format!(" || '{SEPARATOR}' || "));
        let _ = write!(
            select,
            ", (SELECT string_agg({value}, '{END}') FROM {} o WHERE o.{} = d.{})",
            owned.table, owned.owner, kind.id
        );
    }
    look_up(kind.table, &[kind.id], &select, ids)
}

/// Selects the holders of values: each an id and the value.
pub(super) fn look_up_holders<D: Dialect>(
    kind: &Kind,
    unique: Unique,
    values: &[&str],
) -> Vec<QueryBuilder<D>> {
    let (table, columns, owner) = unique_key(kind, unique);
    let selected = [owner].into_iter().chain(columns.iter().copied());
    let selected: Vec<_> = selected.map(|column| format!("d.{column}")).collect();
    look_up(table, columns, &selected.join(", "), values)
}

/// Table and columns of a unique property, and the column of the document's id.
fn unique_key(
    kind: &Kind,
    unique: Unique,
) -> (&'static str, &'static [&'static str], &'static str) {
    match (unique, kind.owned) {
        (Unique::Owned, Some(owned)) => (owned.table, owned.columns, owned.owner),
        _ => (kind.table, kind.name, kind.id),
    }
}

/// Selects the rows that have one of `keys` in `columns`.
fn look_up<D: Dialect>(
    table: &str,
    columns: &[&str],
    select: &str,
    keys: &[&str],
) -> Vec<QueryBuilder<D>> {
    let keys: Vec<_> = keys.iter().filter_map(|key| split(key, columns)).collect();
    let statement = |keys: &[Vec<&str>]| {
        let mut sql = QueryBuilder::new(format!("SELECT {select} FROM (VALUES "));
        push_rows(&mut sql, keys.iter().map(|key| key.iter().map(|part| Cell::Text(Some(part)))));
        // CROSS, so that SQLite reads the table by the keys and not the keys by the table.
        sql.push(format_args!(") AS k CROSS JOIN {table} d WHERE true"));
        for (column, n) in columns.iter().zip(1..) {
            sql.push(format_args!(" AND d.{column} = k.column{n}"));
        }
        sql
    };
    keys.chunks(ROWS_A_STATEMENT).map(statement).collect()
}

/// Deletes the rows that have one of `keys` in `column`.
fn delete<D: Dialect>(table: &str, column: &str, keys: &[&str]) -> Vec<QueryBuilder<D>> {
    let statement = |keys: &[&str]| {
        let mut sql = QueryBuilder::new(format!("DELETE FROM {table} WHERE {column} IN "));
        push_rows(&mut sql, [keys.iter().map(|&key| Cell::Text(Some(key)))]);
        sql
    };
    keys.chunks(ROWS_A_STATEMENT).map(statement).collect()
}

/// Adds `(a, b), (c, d)`.
fn push_rows<'a, D: Dialect>(
    sql: &mut QueryBuilder<D>,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = Cell<'a>>>,
) {
    for (n, row) in rows.into_iter().enumerate() {
        sql.push(if n == 0 { "(" } else { ", (" });
        for (n, cell) in row.into_iter().enumerate() {
            sql.push(if n == 0 { "" } else { ", " });
            match cell {
                Cell::Text(text) => D::push_text(sql, text),
                Cell::Number(number) => D::push_number(sql, number),
            }
        }
        sql.push(")");
    }
}

fn held<D: Dialect>(kind: &Kind, row: &D::Row) -> Result<Held> {
    let name = texts::<D>(row, 3, kind.name.len())?;
    let owned = match kind.owned {
        Some(_) => D::text(row, 3 + kind.name.len()).map_err(D::error)?,
        None => None,
    };
    Ok(Held {
        is_present: D::flag(row, 0).map_err(D::error)?,
        id: texts::<D>(row, 1, 1)?,
        version: number::<D>(row, 2)?,
        name: (!kind.name.is_empty()).then_some(name),
        owned: owned.iter().flat_map(|owned| owned.split(END)).map(str::to_owned).collect(),
    })
}

/// Reports unreadable columns as such, so that one bad row does not hide the others.
fn stored<D: Dialect>(row: &D::Row) -> Stored {
    Stored {
        id: D::text(row, 0).ok().flatten().unwrap_or_default(),
        version: number::<D>(row, 1).ok(),
        text: match D::text(row, 2) {
            Ok(text) => text.map_or(Text::Removed, Text::Json),
            Err(_) => Text::Unreadable,
        },
    }
}

fn number<D: Dialect>(row: &D::Row, column: usize) -> Result<u64> {
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

#[derive(Clone, Copy)]
enum Cell<'a> {
    Text(Option<&'a str>),
    Number(i64),
}

/// Inserts documents: rows of the kind's table, then of its side tables. Values that a document
/// owns already are left as they are.
fn inserts<D: Dialect>(kind: &'static Kind, writes: &[Write<'_>]) -> Vec<QueryBuilder<D>> {
    let is_scalar = |field: &&Field| !matches!(field.holds, Holds::Texts(_));
    let scalars = || kind.fields.iter().filter(is_scalar).map(|field| field.name);
    let columns = [kind.id, "version", kind.document].into_iter();
    let columns: Vec<_> = columns.chain(kind.name.iter().copied()).chain(scalars()).collect();
    let rows = writes.iter().map(|Write { document, .. }| {
        let version = Cell::Number(signed(document.version));
        let mut row = vec![id(document), version, Cell::Text(document.text.as_deref())];
        row.extend(parts(document.name.as_deref(), kind.name));
        row.extend(scalars().map(|field| cell(document, kind.place(field))));
        row
    });
    let others = columns[1..].iter().map(|column| format!("{column} = excluded.{column}"));
    let update = others.collect::<Vec<_>>().join(", ");
    let update = format!(" ON CONFLICT ({}) DO UPDATE SET {update}", kind.id);
    let mut inserts = insert(kind.table, &columns, &rows.collect::<Vec<_>>(), &update);
    if let Some(owned) = kind.owned {
        let columns: Vec<_> = owned.columns.iter().copied().chain([owned.owner]).collect();
        let writes = writes.iter().filter(|write| !write.keeps_owned());
        let rows = writes.flat_map(|Write { document, .. }| {
            let values = document.owned.iter();
            values.map(|v| parts(Some(v), owned.columns).chain([id(document)]).collect())
        });
        inserts.extend(insert(owned.table, &columns, &rows.collect::<Vec<_>>(), ""));
    }
    for (place, side) in kind.sides() {
        let columns: Vec<_> =
            [side.column].into_iter().chain(side.order).chain([side.owner]).collect();
        let rows = writes.iter().flat_map(|Write { document, .. }| {
            let texts: &[String] = match document.fields.get(place) {
                Some(Value::Texts(texts)) => texts,
                _ => &[],
            };
            let order = side.order.map(|order| cell(document, kind.place(order)));
            texts.iter().map(move |text| {
                let text = [Cell::Text(Some(text))].into_iter();
                text.chain(order).chain([id(document)]).collect()
            })
        });
        inserts.extend(insert(side.table, &columns, &rows.collect::<Vec<_>>(), ""));
    }
    inserts
}

fn insert<D: Dialect>(
    table: &str,
    columns: &[&str],
    rows: &[Vec<Cell<'_>>],
    update: &str,
) -> Vec<QueryBuilder<D>> {
    let columns = columns.join(", ");
    let statement = |rows: &[Vec<Cell<'_>>]| {
        let mut sql = QueryBuilder::new(format!("INSERT INTO {table} ({columns}) VALUES "));
        push_rows(&mut sql, rows.iter().map(|row| row.iter().copied()));
        sql.push(update);
        sql
    };
    rows.chunks(ROWS_A_STATEMENT).map(statement).collect()
}

fn id(document: &Document) -> Cell<'_> {
    Cell::Text(Some(&document.id))
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
