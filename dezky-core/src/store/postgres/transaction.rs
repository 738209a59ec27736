use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{
    PgArguments, PgConnection, PgPool, PgRow, PgTransactionManager as Manager, Postgres,
};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
// The basis of sqlx's own transactions, which `sqlx` does not re-export.
use sqlx_core::transaction::TransactionManager as _;

use super::postgres_error;
use crate::rt::TokioRuntime;
use crate::store::operator::while_running;
use crate::{Error, ErrorKind, Result, Runtime};

/// The error of a transaction that can't be committed.
pub(super) const FAILED_BEFORE: &str =
    "a statement of the transaction failed, so it can't be committed: roll it back and try again";

/// A transaction of a [`PostgresDatabase`](super::PostgresDatabase), with its time limits. If
/// dropped before [`commit`](Self::commit), it changes nothing.
///
/// It derefs to sqlx's connection. In addition, the methods here time out if the server stays
/// silent, prepare statements only where possible, and return this crate's errors. After an error
/// of a statement, nothing of the transaction can be committed.
///
/// This is not sqlx's own transaction. That one loses track of the server's responses if a BEGIN
/// or a COPY is dropped half-way, and still returns the connection to the pool: the next caller
/// then continues an open transaction, or takes the response to one statement for that of another.
/// Here such a connection is closed.
pub struct PostgresTransaction {
    connection: PoolConnection<Postgres>,
    state: State,
    /// Whether the last statement succeeded.
    whole: bool,
    /// Whether the caller may have run statements on the connection itself.
    lent: bool,
    prepared: bool,
    answer_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// sqlx can't match the server's next response to a statement.
    OutOfStep,
    Ended,
}

impl PostgresTransaction {
    /// Begins a transaction with the statements `begin`, which also set its limits, in one message.
    pub(super) async fn begin(
        pool: &PgPool,
        begin: &str,
        prepared: bool,
        answer_timeout: Duration,
    ) -> Result<Self> {
        let begun = async {
            let connection = pool.acquire().await?;
            let state = State::OutOfStep;
            let mut tx =
                Self { connection, state, whole: true, lent: false, prepared, answer_timeout };
            let begin = AssertSqlSafe(begin.to_owned()).into_sql_str();
            Manager::begin(&mut tx.connection, Some(begin)).await?;
            tx.state = State::Open;
            Ok(tx)
        };
        // The pool has its own time limit for a connection.
        let timeout = pool.options().get_acquire_timeout().saturating_add(answer_timeout);
        answer(timeout, begun).await
    }

    /// Runs a statement and returns the number of changed rows.
    pub async fn execute(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<u64> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let done = answer(self.answer_timeout, query.execute(&mut *self.connection)).await?;
        self.whole = true;
        Ok(done.rows_affected())
    }

    /// Runs a query and returns all its rows.
    pub async fn fetch_all(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let rows = answer(self.answer_timeout, query.fetch_all(&mut *self.connection)).await?;
        self.whole = true;
        Ok(rows)
    }

    /// Runs a query and returns its first row, if any.
    pub async fn fetch_optional(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let row = answer(self.answer_timeout, query.fetch_optional(&mut *self.connection)).await?;
        self.whole = true;
        Ok(row)
    }

    /// Runs any number of statements without parameters, in one message.
    pub async fn run(&mut self, sql: &'static str) -> Result<()> {
        self.whole = false;
        answer(self.answer_timeout, self.connection.execute(sqlx::raw_sql(sql))).await?;
        self.whole = true;
        Ok(())
    }

    /// Runs a step of a migration. It must be a trusted script.
    pub(super) async fn run_step(&mut self, step: &str) -> Result<()> {
        self.whole = false;
        let step = sqlx::raw_sql(AssertSqlSafe(step.to_owned()));
        answer(self.answer_timeout, self.connection.execute(step)).await?;
        self.whole = true;
        Ok(())
    }

    /// Runs a COPY and sends its data in parts.
    pub(super) async fn copy_in(&mut self, sql: &str, parts: Vec<Vec<u8>>) -> Result<()> {
        self.whole = false;
        self.state = State::OutOfStep;
        let connection = &mut *self.connection;
        let done = async move {
            let mut copy = connection.copy_in_raw(sql).await?;
            for part in parts {
                copy.send(part).await?;
            }
            copy.finish().await
        };
        answer(self.answer_timeout, done).await?;
        self.state = State::Open;
        self.whole = true;
        Ok(())
    }

    /// Commits.
    ///
    /// # Errors
    /// `store_unavailable` if the answer was lost, in which case it may have committed; `internal`
    /// if a statement failed before, in which case nothing was committed.
    pub async fn commit(mut self) -> Result<()> {
        // PostgreSQL would roll back instead, and sqlx would report success.
        if !self.whole {
            return Err(Error::new(ErrorKind::Internal, FAILED_BEFORE));
        }
        if self.lent {
            self.run("SELECT 1").await?;
        }
        answer(self.answer_timeout, Manager::commit(&mut self.connection)).await?;
        self.state = State::Ended;
        Ok(())
    }
}

impl Drop for PostgresTransaction {
    fn drop(&mut self) {
        match self.state {
            // sqlx sends the rollback before it reuses the connection.
            State::Open => Manager::start_rollback(&mut self.connection),
            State::OutOfStep => self.connection.close_on_drop(),
            State::Ended => {}
        }
    }
}

impl Deref for PostgresTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PostgresTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.lent = true;
        &mut self.connection
    }
}

/// Waits for the server's answer, at most for `timeout`.
pub(super) async fn answer<T>(
    timeout: Duration,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> Result<T> {
    // sqlx is built for tokio, so its timers are available.
    match select(pin!(answer), TokioRuntime.sleep(timeout)).await {
        Either::Left((answer, _)) => answer.map_err(postgres_error).map_err(while_running),
        Either::Right(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("PostgreSQL was silent for {timeout:?}: try again"),
        )),
    }
}
