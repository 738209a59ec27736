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
// What sqlx's own transactions are made of, which `sqlx` does not give on.
use sqlx_core::transaction::TransactionManager as _;

use super::postgres_error;
use crate::rt::TokioRuntime;
use crate::store::operator::while_running;
use crate::{Error, ErrorKind, Result, Runtime};

/// Said of a transaction that can't be committed.
pub(super) const FAILED_BEFORE: &str =
    "a statement of the transaction failed: nothing of it can be committed";

/// A transaction of a [`PostgresDatabase`](super::PostgresDatabase), whose bounds
/// hold in it. Dropped before [`commit`](Self::commit) it changes nothing.
///
/// It derefs to the connection, for sqlx's own ways. The methods here also give up
/// a server that is silent, prepare statements only where that is possible, and
/// give this crate's errors. After an error of a statement nothing of the
/// transaction can be committed.
///
/// sqlx's own loses count of the server's answers where a BEGIN or a COPY is dropped
/// half-way, and lends such a connection to the next one: then an open transaction of
/// somebody else goes on, or the answer to one statement is taken for that of another.
/// Here such a connection is closed.
pub struct PostgresTransaction {
    connection: PoolConnection<Postgres>,
    state: State,
    /// Whether the last statement was answered well.
    whole: bool,
    /// Whether there may have been statements that were not run here.
    lent: bool,
    prepared: bool,
    answer_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// sqlx would not know what the server says next.
    OutOfStep,
    Ended,
}

impl PostgresTransaction {
    /// `begin` begins the transaction and sets its bounds, in one message.
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
        // The pool bounds how long it waits for a connection.
        let timeout = pool.options().get_acquire_timeout().saturating_add(answer_timeout);
        answer(timeout, begun).await
    }

    /// Runs a statement; gives how many rows it changed.
    pub async fn execute(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<u64> {
        self.whole = false;
        let query = query.persistent(self.prepared);
        let done = answer(self.answer_timeout, query.execute(&mut *self.connection)).await?;
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
        let rows = answer(self.answer_timeout, query.fetch_all(&mut *self.connection)).await?;
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
        let row = answer(self.answer_timeout, query.fetch_optional(&mut *self.connection)).await?;
        self.whole = true;
        Ok(row)
    }

    /// Runs statements without parameters, any number of them in one message.
    pub async fn run(&mut self, sql: &'static str) -> Result<()> {
        self.whole = false;
        answer(self.answer_timeout, self.connection.execute(sqlx::raw_sql(sql))).await?;
        self.whole = true;
        Ok(())
    }

    /// Runs a step of a migration, which is a script of the program's.
    pub(super) async fn run_step(&mut self, step: &str) -> Result<()> {
        self.whole = false;
        let step = sqlx::raw_sql(AssertSqlSafe(step.to_owned()));
        answer(self.answer_timeout, self.connection.execute(step)).await?;
        self.whole = true;
        Ok(())
    }

    /// Sends the parts of a COPY's data.
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
    /// `store_unavailable` if the answer was lost: it may have committed.
    /// `internal` if a statement failed before: nothing was committed.
    pub async fn commit(mut self) -> Result<()> {
        // PostgreSQL answers such a COMMIT by a rollback, and sqlx does not tell.
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
            // Sent before the connection is lent again.
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

/// The answer, if it comes in time.
pub(super) async fn answer<T>(
    timeout: Duration,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> Result<T> {
    // sqlx is built on tokio, so its timers are there.
    match select(pin!(answer), TokioRuntime.sleep(timeout)).await {
        Either::Left((answer, _)) => answer.map_err(postgres_error).map_err(while_running),
        Either::Right(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("PostgreSQL was silent for {timeout:?}: try again"),
        )),
    }
}
