use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, Transaction};

use super::postgres_error;
use crate::rt::TokioRuntime;
use crate::{Error, ErrorKind, Result, Runtime};

/// A transaction of a [`PostgresDatabase`](super::PostgresDatabase), whose bounds
/// hold in it. Dropped before [`commit`](Self::commit) it changes nothing.
///
/// It derefs to the connection, for sqlx's own ways. The methods here also give up
/// a server that is silent, prepare statements only where that is possible, and
/// give this crate's errors. After an error of a statement nothing of the
/// transaction can be committed.
pub struct PostgresTransaction {
    tx: Transaction<'static, Postgres>,
    /// Whether all statements so far were answered well.
    whole: bool,
    prepared: bool,
    answer_timeout: Duration,
}

impl PostgresTransaction {
    /// `begin` begins the transaction and sets its bounds, in one message.
    pub(super) async fn begin(
        pool: &PgPool,
        begin: &str,
        prepared: bool,
        answer_timeout: Duration,
    ) -> Result<Self> {
        let begun = pool.begin_with(AssertSqlSafe(begin.to_owned()));
        // The pool bounds how long it waits for a connection.
        let timeout = pool.options().get_acquire_timeout().saturating_add(answer_timeout);
        let tx = answer(timeout, begun).await?;
        Ok(Self { tx, whole: true, prepared, answer_timeout })
    }

    /// Runs a statement; gives how many rows it changed.
    pub async fn execute(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<u64> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let done = answer(self.answer_timeout, query.execute(&mut *self.tx)).await?;
        self.whole = true;
        Ok(done.rows_affected())
    }

    /// Runs a statement; gives all its rows.
    pub async fn fetch_all(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let rows = answer(self.answer_timeout, query.fetch_all(&mut *self.tx)).await?;
        self.whole = true;
        Ok(rows)
    }

    /// Runs a statement; gives its first row if it has one.
    pub async fn fetch_optional(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let row = answer(self.answer_timeout, query.fetch_optional(&mut *self.tx)).await?;
        self.whole = true;
        Ok(row)
    }

    /// Runs statements without parameters, any number of them in one message.
    pub async fn run(&mut self, sql: &'static str) -> Result<()> {
        self.whole = false;
        answer(self.answer_timeout, self.tx.execute(sqlx::raw_sql(sql))).await?;
        self.whole = true;
        Ok(())
    }

    /// Sends the parts of a COPY's data.
    pub(super) async fn copy_in(&mut self, sql: &str, parts: Vec<Vec<u8>>) -> Result<()> {
        self.whole = false;
        let connection = &mut *self.tx;
        let done = async move {
            let mut copy = connection.copy_in_raw(sql).await?;
            for part in parts {
                copy.send(part).await?;
            }
            copy.finish().await
        };
        answer(self.answer_timeout, done).await?;
        self.whole = true;
        Ok(())
    }

    /// Commits.
    ///
    /// # Errors
    /// `store_unavailable` if the answer was lost: it may have committed.
    /// `internal` if a statement failed before: nothing was committed.
    pub async fn commit(self) -> Result<()> {
        // PostgreSQL would answer such a COMMIT by a rollback, and sqlx not tell.
        if !self.whole {
            return Err(Error::new(
                ErrorKind::Internal,
                "a statement of the transaction failed: nothing of it can be committed",
            ));
        }
        answer(self.answer_timeout, self.tx.commit()).await
    }
}

impl Deref for PostgresTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for PostgresTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}

/// The answer, if it comes in time.
pub(super) async fn answer<T>(
    timeout: Duration,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> Result<T> {
    // sqlx is built on tokio, so its timers are there.
    match select(pin!(answer), TokioRuntime.sleep(timeout)).await {
        Either::Left((answer, _)) => answer.map_err(postgres_error),
        Either::Right(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("PostgreSQL was silent for {timeout:?}: try again"),
        )),
    }
}
