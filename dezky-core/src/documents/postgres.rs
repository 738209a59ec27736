//! Documents in the PostgreSQL database of an audit log.

use std::borrow::Cow;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Postgres, QueryBuilder};

use super::sql::{self, Cell, Insert, LookUp};
use super::{
    Document, Filter, Held, Key, Kind, Page, Removal, Rows, RowsTx, Schema, Set, State, Stored,
    Unique, Which, corrupt, schema,
};
use crate::store::{Anomaly, Capabilities, PostgresDatabase, PostgresTransaction, postgres_error};
use crate::{Result, SealedEvent};

/// Rows of one statement, which takes less than 1 GB whatever the documents are.
const ROWS_A_STATEMENT: usize = 100;

sql::dialect!(Postgres, postgres_error, storable);

/// A key in a form that PostgreSQL takes, which has no NUL in texts. No key that is stored
/// has a control character, so another one in its place finds and orders the same.
fn storable(key: &str) -> String {
    key.replace('\0', "\u{1}")
}

pub(super) struct PostgresRows {
    set: &'static Set,
    database: PostgresDatabase,
}

impl PostgresRows {
    pub(super) async fn open(set: &'static Set, database: PostgresDatabase) -> Result<Self> {
        match set.schema {
            Schema::OfKinds => database.migrate(set.component, &[schema::postgres(set)]).await?,
            Schema::Steps { postgres, .. } => database.migrate(set.component, postgres).await?,
        }
        database.check_rights(&rights(set)).await?;
        Ok(Self { set, database })
    }

    async fn number(&self, mut sql: QueryBuilder<Postgres>) -> Result<u64> {
        let mut tx = self.database.read().await?;
        let row = tx.fetch_optional(sql.build()).await?;
        tx.commit().await?;
        row.map_or(Ok(0), |row| sql::number::<Postgres>(&row, 0))
    }
}

/// The rights that a set needs.
fn rights(set: &Set) -> Vec<(&'static str, &'static [&'static str])> {
    let mut rights: Vec<(_, &[_])> = vec![(set.state, &["SELECT", "UPDATE"])];
    for kind in set.kinds {
        rights.push(match kind.removal {
            Removal::Erased => (kind.table, &["SELECT", "INSERT", "UPDATE", "DELETE"]),
            Removal::Kept | Removal::Never => (kind.table, &["SELECT", "INSERT", "UPDATE"]),
        });
        rights.extend(
            sql::sides(kind).map(|(table, _)| (table, ["SELECT", "INSERT", "DELETE"].as_slice())),
        );
    }
    rights
}

#[async_trait]
impl Rows for PostgresRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        let catalogue: Cow<'_, str> = match self.set.schema {
            Schema::OfKinds => schema::catalogue(self.set).into(),
            Schema::Steps { catalogue, .. } => catalogue.into(),
        };
        self.database.examine(&catalogue).await
    }

    async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>> {
        let Some(mut sql) = sql::get(kind, key) else { return Ok(None) };
        let mut tx = self.database.read().await?;
        let row = tx.fetch_optional(sql.build()).await?;
        tx.commit().await?;
        Ok(row.as_ref().map(sql::stored::<Postgres>))
    }

    async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>> {
        let mut tx = self.database.read_scan().await?;
        let rows = tx.fetch_all(sql::page(kind, page).build()).await?;
        tx.commit().await?;
        Ok(rows.iter().map(sql::stored::<Postgres>).collect())
    }

    async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)> {
        // One snapshot for both reads.
        let mut tx = self.database.read().await?;
        let state = state(&mut tx, self.set, "").await?;
        let rows = tx.fetch_all(sql::all(kind, which).build()).await?;
        tx.commit().await?;
        Ok((state, rows.iter().map(sql::stored::<Postgres>).collect()))
    }

    async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64> {
        self.number(sql::count(kind, filters)).await
    }

    async fn sum_versions(&self, kind: &'static Kind) -> Result<u64> {
        self.number(sql::sum_versions(kind)).await
    }

    async fn state(&self) -> Result<State> {
        let mut tx = self.database.read().await?;
        let state = state(&mut tx, self.set, "").await?;
        tx.commit().await?;
        Ok(state)
    }

    async fn changed(&self, revision: u64) {
        self.database.changed(self.set.component, revision).await;
    }

    /// Every statement after the lock sees the commits before it, as each statement has its
    /// own snapshot.
    async fn begin(&self) -> Result<(State, Box<dyn RowsTx + '_>)> {
        let mut tx = self.database.begin_log().await?;
        let state = state(&mut tx, self.set, " FOR UPDATE").await?;
        Ok((state, Box::new(PostgresTx { rows: self, tx })))
    }
}

struct PostgresTx<'a> {
    rows: &'a PostgresRows,
    tx: PostgresTransaction,
}

#[async_trait]
impl RowsTx for PostgresTx<'_> {
    async fn held(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<Vec<Held>> {
        let rows = look_up(&mut self.tx, &sql::look_up_held(kind, ids)).await?;
        rows.iter().map(|row| sql::held::<Postgres>(kind, row)).collect()
    }

    async fn holders(
        &mut self,
        kind: &'static Kind,
        unique: Unique,
        values: &[&str],
    ) -> Result<Vec<(String, String)>> {
        let wanted = sql::look_up_holders(kind, unique, values);
        let rows = look_up(&mut self.tx, &wanted).await?;
        rows.iter().map(|row| sql::holder::<Postgres>(row, wanted.columns.len())).collect()
    }

    async fn erase(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<()> {
        for (table, owner) in sql::sides(kind).chain([(kind.table, kind.id)]) {
            delete(&mut self.tx, table, owner, ids).await?;
        }
        Ok(())
    }

    async fn put(
        &mut self,
        kind: &'static Kind,
        documents: &[&Document],
        there: &[&str],
    ) -> Result<()> {
        if !there.is_empty() {
            for (table, owner) in sql::sides(kind) {
                delete(&mut self.tx, table, owner, there).await?;
            }
        }
        for insert in sql::inserts(kind, documents) {
            for rows in insert.rows.chunks(ROWS_A_STATEMENT) {
                self::insert(&mut self.tx, &insert, rows).await?;
            }
        }
        Ok(())
    }

    async fn set_state(&mut self, state: State) -> Result<()> {
        let set = self.rows.set;
        let Some(mut sql) = sql::set_state::<Postgres>(set, state) else { return Ok(()) };
        self.tx.execute(sql.build()).await?;
        self.rows.database.notify(&mut self.tx, set.component, state.revision).await
    }

    async fn commit(self: Box<Self>, events: &[SealedEvent]) -> Result<()> {
        self.rows.database.commit(self.tx, events).await
    }

    /// Dropping is enough: the rollback is sent before the connection is used again.
    async fn abort(self: Box<Self>) {}
}

async fn state(tx: &mut PostgresTransaction, set: &Set, lock: &str) -> Result<State> {
    let counted = sql::state::<Postgres>(set);
    let is_counted = counted.is_some();
    let mut sql =
        counted.unwrap_or_else(|| QueryBuilder::new(format!("SELECT one FROM {}", set.state)));
    let row = tx.fetch_optional(sql.push(lock).build()).await?;
    let row = row.ok_or_else(|| corrupt(format_args!("the row of {} is missing", set.state)))?;
    if is_counted { sql::state_of::<Postgres>(&row) } else { Ok(State::default()) }
}

async fn look_up(tx: &mut PostgresTransaction, wanted: &LookUp) -> Result<Vec<PgRow>> {
    let mut query = sqlx::query(AssertSqlSafe(look_up_sql(wanted)));
    for column in &wanted.keys {
        query = query.bind(column.iter().map(|key| storable(key)).collect::<Vec<_>>());
    }
    tx.fetch_all(query).await
}

pub(super) fn look_up_sql(wanted: &LookUp) -> String {
    let numbered = || 1..=wanted.columns.len();
    let arrays: Vec<_> = numbered().map(|n| format!("${n}::text[]")).collect();
    let names: Vec<_> = numbered().map(|n| format!("c{n}")).collect();
    let on =
        wanted.columns.iter().zip(&names).map(|(column, name)| format!("d.{column} = k.{name}"));
    format!(
        "SELECT {} FROM unnest({}) AS k ({}) JOIN {} d ON {}",
        wanted.select,
        arrays.join(", "),
        names.join(", "),
        wanted.table,
        on.collect::<Vec<_>>().join(" AND ")
    )
}

async fn delete(
    tx: &mut PostgresTransaction,
    table: &str,
    column: &str,
    values: &[&str],
) -> Result<()> {
    let sql = AssertSqlSafe(format!("DELETE FROM {table} WHERE {column} = ANY($1)"));
    let values: Vec<String> = values.iter().map(|&value| value.to_owned()).collect();
    tx.execute(sqlx::query(sql).bind(values)).await.map(drop)
}

/// Rows as arrays, a parameter a column.
async fn insert(
    tx: &mut PostgresTransaction,
    insert: &Insert<'_>,
    rows: &[Vec<Cell<'_>>],
) -> Result<()> {
    let is_number = |column: usize| rows.iter().any(|row| matches!(row[column], Cell::Number(_)));
    let columns = 0..insert.columns.len();
    let arrays = columns.clone().map(|column| {
        let kind = if is_number(column) { "bigint" } else { "text" };
        format!("${}::{kind}[]", column + 1)
    });
    let arrays = arrays.collect::<Vec<_>>().join(", ");
    let sql = insert.sql(&format!("SELECT * FROM unnest({arrays})"));
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for column in columns {
        if is_number(column) {
            let numbers = rows.iter().map(|row| match row[column] {
                Cell::Number(number) => Some(number),
                Cell::Text(_) => None,
            });
            query = query.bind(numbers.collect::<Vec<_>>());
        } else {
            let texts = rows.iter().map(|row| match row[column] {
                Cell::Text(text) => text.map(str::to_owned),
                Cell::Number(_) => None,
            });
            query = query.bind(texts.collect::<Vec<_>>());
        }
    }
    tx.execute(query).await.map(drop)
}
