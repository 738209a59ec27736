//! Documents in the SQLite file of an audit log.

use std::borrow::Cow;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::sql::{Engine, SqlRows, dialect};
use super::{Schema, Set, schema};
use crate::store::{Anomaly, SqliteDatabase, SqliteTransaction, sqlite_error};
use crate::{Result, SealedEvent};

dialect!(Sqlite, sqlite_error, str::to_owned);

pub(super) async fn open(
    set: &'static Set,
    database: SqliteDatabase,
) -> Result<SqlRows<SqliteDatabase>> {
    database.migrate(set.component, &steps(set)).await?;
    Ok(SqlRows { set, database })
}

fn steps(set: &Set) -> Vec<Cow<'static, str>> {
    match set.schema {
        Schema::OfKinds => vec![schema::sqlite(set).into()],
        Schema::Steps { sqlite, .. } => sqlite.iter().map(|&step| step.into()).collect(),
    }
}

#[async_trait]
impl Engine for SqliteDatabase {
    type Sql = Sqlite;
    type Tx = SqliteTransaction;

    const LOCK: &'static str = "";

    async fn examine(&self, set: &Set) -> Result<Vec<Anomaly>> {
        self.examine(&steps(set)).await
    }

    async fn read(&self, sql: QueryBuilder<Sqlite>) -> Result<Vec<SqliteRow>> {
        let mut connection = self.read().await?;
        fetch(&mut connection, sql).await
    }

    async fn begin(&self) -> Result<SqliteTransaction> {
        self.begin().await
    }

    async fn run(tx: &mut SqliteTransaction, sql: QueryBuilder<Sqlite>) -> Result<Vec<SqliteRow>> {
        fetch(tx, sql).await
    }

    async fn commit(&self, tx: SqliteTransaction, events: &[SealedEvent]) -> Result<()> {
        self.commit(tx, events).await
    }
}

async fn fetch(
    connection: &mut SqliteConnection,
    mut sql: QueryBuilder<Sqlite>,
) -> Result<Vec<SqliteRow>> {
    sql.build().fetch_all(connection).await.map_err(sqlite_error)
}
