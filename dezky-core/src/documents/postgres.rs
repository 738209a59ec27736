//! Documents in the PostgreSQL database of an audit log.

use std::borrow::Cow;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use super::sql::{Engine, SqlRows, dialect};
use super::{Removal, Schema, Set, schema};
use crate::store::{Anomaly, PostgresDatabase, PostgresTransaction, postgres_error};
use crate::{Result, SealedEvent};

dialect!(Postgres, postgres_error, storable);

/// Replaces NUL, which PostgreSQL doesn't accept in texts. Stored keys have no control characters,
/// so the replacement matches and sorts like the original.
fn storable(key: &str) -> String {
    key.replace('\0', "\u{1}")
}

pub(super) async fn open(
    set: &'static Set,
    database: PostgresDatabase,
) -> Result<SqlRows<PostgresDatabase>> {
    match set.schema {
        Schema::OfKinds => database.migrate(set.component, &[schema::postgres(set)]).await?,
        Schema::Steps { postgres, .. } => database.migrate(set.component, postgres).await?,
    }
    database.check_rights(&rights(set)).await?;
    Ok(SqlRows { set, database })
}

/// The rights that a set needs.
fn rights(set: &Set) -> Vec<(&'static str, &'static [&'static str])> {
    let mut rights: Vec<(_, &[_])> = vec![(set.state, &["SELECT", "UPDATE"])];
    for kind in set.kinds {
        rights.push(match kind.removal {
            Removal::Erased => (kind.table, &["SELECT", "INSERT", "UPDATE", "DELETE"]),
            Removal::Kept | Removal::Never => (kind.table, &["SELECT", "INSERT", "UPDATE"]),
        });
        let sides = kind.owned.map(|owned| owned.table).into_iter();
        let sides = sides.chain(kind.sides().map(|(_, side)| side.table));
        rights.extend(sides.map(|table| (table, ["SELECT", "INSERT", "DELETE"].as_slice())));
    }
    rights
}

#[async_trait]
impl Engine for PostgresDatabase {
    type Sql = Postgres;
    type Tx = PostgresTransaction;

    /// Every statement after it sees the commits before it, as each statement has its own snapshot.
    const LOCK: &'static str = " FOR UPDATE";

    async fn examine(&self, set: &Set) -> Result<Vec<Anomaly>> {
        let catalogue: Cow<'_, str> = match set.schema {
            Schema::OfKinds => schema::catalogue(set).into(),
            Schema::Steps { catalogue, .. } => catalogue.into(),
        };
        self.examine(&catalogue).await
    }

    async fn read(&self, mut sql: QueryBuilder<Postgres>) -> Result<Vec<PgRow>> {
        let mut tx = self.read().await?;
        let rows = tx.fetch_all(sql.build()).await?;
        tx.commit().await?;
        Ok(rows)
    }

    async fn scan(&self, mut sql: QueryBuilder<Postgres>) -> Result<Vec<PgRow>> {
        let mut tx = self.read_scan().await?;
        let rows = tx.fetch_all(sql.build()).await?;
        tx.commit().await?;
        Ok(rows)
    }

    async fn begin(&self) -> Result<PostgresTransaction> {
        self.begin_log().await
    }

    async fn run(
        tx: &mut PostgresTransaction,
        mut sql: QueryBuilder<Postgres>,
    ) -> Result<Vec<PgRow>> {
        tx.fetch_all(sql.build()).await
    }

    async fn notify(
        &self,
        tx: &mut PostgresTransaction,
        component: &str,
        revision: u64,
    ) -> Result<()> {
        self.notify(tx, component, revision).await
    }

    async fn changed(&self, component: &str, revision: u64) {
        self.changed(component, revision).await;
    }

    async fn commit(&self, tx: PostgresTransaction, events: &[SealedEvent]) -> Result<()> {
        self.commit(tx, events).await
    }
}
