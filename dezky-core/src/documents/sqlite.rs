//! Documents in the SQLite file of an audit log.

use std::borrow::Cow;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, QueryBuilder, Sqlite, SqliteConnection};

use super::sql::{self, Cell, Insert, LookUp};
use super::{
    Document, Filter, Held, Key, Kind, Page, Rows, RowsTx, Schema, Set, State, Stored, Unique,
    Which, corrupt, schema,
};
use crate::store::{Anomaly, Capabilities, SqliteDatabase, SqliteTransaction, sqlite_error};
use crate::{Error, ErrorKind, Result, SealedEvent};

sql::dialect!(Sqlite, sqlite_error, str::to_owned);

pub(super) struct SqliteRows {
    set: &'static Set,
    database: SqliteDatabase,
}

impl SqliteRows {
    pub(super) async fn open(set: &'static Set, database: SqliteDatabase) -> Result<Self> {
        let rows = Self { set, database };
        rows.database.migrate(set.component, &rows.steps()).await?;
        Ok(rows)
    }

    fn steps(&self) -> Vec<Cow<'static, str>> {
        match self.set.schema {
            Schema::OfKinds => vec![schema::sqlite(self.set).into()],
            Schema::Steps { sqlite, .. } => sqlite.iter().map(|&step| step.into()).collect(),
        }
    }

    async fn rows(&self, mut sql: QueryBuilder<Sqlite>) -> Result<Vec<SqliteRow>> {
        let mut connection = self.database.read().await?;
        rows(&mut connection, &mut sql).await
    }

    async fn number(&self, sql: QueryBuilder<Sqlite>) -> Result<u64> {
        let row = self.rows(sql).await?.pop();
        row.map_or(Ok(0), |row| sql::number::<Sqlite>(&row, 0))
    }
}

#[async_trait]
impl Rows for SqliteRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(&self.steps()).await
    }

    async fn get(&self, kind: &'static Kind, key: Key<'_>) -> Result<Option<Stored>> {
        let Some(sql) = sql::get(kind, key) else { return Ok(None) };
        Ok(self.rows(sql).await?.first().map(sql::stored::<Sqlite>))
    }

    async fn page(&self, kind: &'static Kind, page: &Page<'_>) -> Result<Vec<Stored>> {
        let rows = self.rows(sql::page(kind, page)).await?;
        Ok(rows.iter().map(sql::stored::<Sqlite>).collect())
    }

    async fn all(&self, kind: &'static Kind, which: Which) -> Result<(State, Vec<Stored>)> {
        let mut connection = self.database.read().await?;
        // One snapshot for both reads.
        let mut tx = connection.begin().await.map_err(sqlite_error)?;
        let state = state(&mut tx, self.set).await?;
        let rows = rows(&mut tx, &mut sql::all(kind, which)).await?;
        tx.commit().await.map_err(sqlite_error)?;
        Ok((state, rows.iter().map(sql::stored::<Sqlite>).collect()))
    }

    async fn count(&self, kind: &'static Kind, filters: &[Filter<'_>]) -> Result<u64> {
        self.number(sql::count(kind, filters)).await
    }

    async fn sum_versions(&self, kind: &'static Kind) -> Result<u64> {
        self.number(sql::sum_versions(kind)).await
    }

    async fn state(&self) -> Result<State> {
        state(&mut *self.database.read().await?, self.set).await
    }

    async fn changed(&self, _revision: u64) {
        std::future::pending::<()>().await;
    }

    async fn begin(&self) -> Result<(State, Box<dyn RowsTx + '_>)> {
        let mut tx = self.database.begin().await?;
        let state = state(&mut tx, self.set).await?;
        Ok((state, Box::new(SqliteTx { rows: self, tx })))
    }
}

struct SqliteTx<'a> {
    rows: &'a SqliteRows,
    tx: SqliteTransaction,
}

#[async_trait]
impl RowsTx for SqliteTx<'_> {
    async fn held(&mut self, kind: &'static Kind, ids: &[&str]) -> Result<Vec<Held>> {
        let rows = look_up(&mut self.tx, &sql::look_up_held(kind, ids)).await?;
        rows.iter().map(|row| sql::held::<Sqlite>(kind, row)).collect()
    }

    async fn holders(
        &mut self,
        kind: &'static Kind,
        unique: Unique,
        values: &[&str],
    ) -> Result<Vec<(String, String)>> {
        let wanted = sql::look_up_holders(kind, unique, values);
        let rows = look_up(&mut self.tx, &wanted).await?;
        rows.iter().map(|row| sql::holder::<Sqlite>(row, wanted.columns.len())).collect()
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
        for (table, owner) in sql::sides(kind) {
            delete(&mut self.tx, table, owner, there).await?;
        }
        for insert in sql::inserts(kind, documents) {
            self::insert(&mut self.tx, &insert).await?;
        }
        Ok(())
    }

    async fn set_state(&mut self, state: State) -> Result<()> {
        let Some(mut sql) = sql::set_state::<Sqlite>(self.rows.set, state) else { return Ok(()) };
        sql.build().execute(&mut *self.tx).await.map(drop).map_err(sqlite_error)
    }

    async fn commit(self: Box<Self>, events: &[SealedEvent]) -> Result<()> {
        self.rows.database.commit(self.tx, events).await
    }

    async fn abort(self: Box<Self>) {
        // If it fails, dropping rolls back before the connection is used again.
        let _ = self.tx.rollback().await;
    }
}

async fn rows(
    connection: &mut SqliteConnection,
    sql: &mut QueryBuilder<Sqlite>,
) -> Result<Vec<SqliteRow>> {
    sql.build().fetch_all(connection).await.map_err(sqlite_error)
}

async fn state(connection: &mut SqliteConnection, set: &Set) -> Result<State> {
    let Some(mut sql) = sql::state::<Sqlite>(set) else { return Ok(State::default()) };
    let row = rows(connection, &mut sql).await?.pop();
    let row = row.ok_or_else(|| corrupt(format_args!("the row of {} is missing", set.state)))?;
    sql::state_of::<Sqlite>(&row)
}

/// The keys are one parameter: a JSON list of keys, each a list of its columns.
async fn look_up(connection: &mut SqliteConnection, wanted: &LookUp) -> Result<Vec<SqliteRow>> {
    let keys = wanted.keys.first().map_or(0, Vec::len);
    let keys: Vec<Vec<&String>> =
        (0..keys).map(|key| wanted.keys.iter().map(|column| &column[key]).collect()).collect();
    let keys = serde_json::to_string(&keys).map_err(|error| {
        Error::new(ErrorKind::Internal, "keys can't be written as JSON").with_source(error)
    })?;
    let sql = AssertSqlSafe(look_up_sql(wanted));
    sqlx::query(sql).bind(keys).fetch_all(connection).await.map_err(sqlite_error)
}

pub(super) fn look_up_sql(wanted: &LookUp) -> String {
    let on = wanted.columns.iter().enumerate();
    let on: Vec<_> =
        on.map(|(n, column)| format!("d.{column} = json_extract(k.value, '$[{n}]')")).collect();
    // CROSS, so that the keys lead and not the table.
    format!(
        "SELECT {} FROM json_each(?) k CROSS JOIN {} d ON {}",
        wanted.select,
        wanted.table,
        on.join(" AND ")
    )
}

async fn delete(
    connection: &mut SqliteConnection,
    table: &str,
    column: &str,
    values: &[&str],
) -> Result<()> {
    for value in values {
        let mut sql = QueryBuilder::<Sqlite>::new(format!("DELETE FROM {table} WHERE {column} = "));
        sql.push_bind(*value);
        sql.build().execute(&mut *connection).await.map_err(sqlite_error)?;
    }
    Ok(())
}

async fn insert(connection: &mut SqliteConnection, insert: &Insert<'_>) -> Result<()> {
    let values = vec!["?"; insert.columns.len()].join(", ");
    let sql = insert.sql(&format!("VALUES ({values})"));
    for row in &insert.rows {
        let mut query = sqlx::query(AssertSqlSafe(sql.clone()));
        for cell in row {
            query = match cell {
                Cell::Text(text) => query.bind(text.map(str::to_owned)),
                Cell::Number(number) => query.bind(*number),
            };
        }
        query.execute(&mut *connection).await.map_err(sqlite_error)?;
    }
    Ok(())
}
