//! The connections to the database, for data that commits together with the log.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::postgres::PgPool;

use super::config::PostgresConfig;
use super::listen::{self, Listener};
use super::schema;
use super::structure;
use super::transaction::PostgresTransaction;
use crate::store::Anomaly;
use crate::store::operator::at_start;
use crate::store::schema::check_version;
use crate::{Error, ErrorKind, Result, SealedEvent};

/// How long a server may stay silent after its own time limit has passed.
const SILENCE: Duration = Duration::from_secs(5);
/// Time limit for a migration, for waiting for another process's migration, and for a statement
/// that examines every row.
const MIGRATION: Duration = Duration::from_mins(10);

/// Makes the planner look the few keys up by index, whatever its statistics of the table are.
const LOOK_UPS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";
/// Makes the planner read the rows by index in the wanted order, and plan for the actual
/// parameters: a generic plan would ignore how selective they are.
const SCANS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL plan_cache_mode = force_custom_plan";

/// The connections of a [`PostgresAuditStore`](super::PostgresAuditStore), for other data in the
/// same database, which commits together with the log's events.
///
/// Everything happens in transactions, so a pooler in transaction mode may be in between. Clones
/// share the connections.
///
/// ```no_run
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{AuditStore, PostgresAuditStore, PostgresConfig};
/// use dezky_core::{Actor, NewEvent};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = PostgresConfig::new("postgres://dezky@localhost/platform");
/// let log = PostgresAuditStore::open(config, &TokioRuntime).await?;
/// let database = log.database();
/// database.migrate("notes", &["CREATE TABLE notes (text text NOT NULL)"]).await?;
///
/// let event = NewEvent::new("note.created", Actor::user("u-1")).seal(&TokioRuntime);
/// let mut tx = database.begin().await?;
/// tx.execute(sqlx::query("INSERT INTO notes VALUES ($1)").bind("milk")).await?;
/// database.commit(tx, &[event]).await?;
/// assert_eq!(log.relay(100).await?.appended, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresDatabase(Arc<Inner>);

struct Inner {
    pool: PgPool,
    migrates: bool,
    writes: bool,
    prepared: bool,
    answer_timeout: Duration,
    begin: String,
    begin_log: String,
    read: String,
    read_scan: String,
    /// The OID of the table of versions, which distinguishes this log's notifications from those
    /// of a log in another schema.
    scope: OnceLock<i64>,
    listener: Option<Listener>,
}

impl PostgresDatabase {
    pub(super) fn new(pool: PgPool, config: &PostgresConfig) -> Self {
        let [lock, statement, idle] =
            [config.lock_timeout, config.statement_timeout, config.idle_in_transaction_timeout]
                .map(|bound| bound.as_millis());
        // JIT compilation takes longer than any statement here.
        let bounds = format!(
            "SET LOCAL statement_timeout = {statement}; SET LOCAL idle_in_transaction_session_timeout = {idle}; SET LOCAL jit = off"
        );
        // Turns synchronous commits on if they are off; stricter settings stay.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {bounds}; SET LOCAL lock_timeout = {lock}; SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        );
        let read = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {bounds}");
        Self(Arc::new(Inner {
            listener: (!config.transaction_pooler).then(|| Listener::new(&pool)),
            pool,
            migrates: config.migrate,
            writes: config.must_write,
            prepared: !config.transaction_pooler,
            answer_timeout: config.statement_timeout + SILENCE,
            begin_log: format!("{begin}; {LOOK_UPS}"),
            begin,
            read_scan: format!("{read}; {SCANS}"),
            read,
            scope: OnceLock::new(),
        }))
    }

    /// Reads the scope. The tables must exist.
    pub(super) async fn find_scope(&self) -> Result<()> {
        let mut tx = self.read().await?;
        let row = tx.fetch_all(sqlx::query("SELECT 'dezky_schema'::regclass::oid::bigint")).await?;
        tx.commit().await?;
        if let Some(scope) = row.first() {
            let scope: i64 = sqlx::Row::try_get(scope, 0).map_err(super::postgres_error)?;
            // If another clone was faster, it set the same value.
            let _ = self.0.scope.set(scope);
        }
        Ok(())
    }

    /// Begins a read-only transaction on one snapshot.
    ///
    /// # Errors
    /// `store_unavailable` if no connection becomes free in time.
    pub async fn read(&self) -> Result<PostgresTransaction> {
        self.transaction(&self.0.read, self.0.answer_timeout).await
    }

    /// Begins a write transaction (`READ COMMITTED`) with the configured time limits. It takes no
    /// lock of the log, so it does not block appends.
    ///
    /// # Errors
    /// `store_unavailable` if no connection becomes free in time.
    pub async fn begin(&self) -> Result<PostgresTransaction> {
        self.transaction(&self.0.begin, self.0.answer_timeout).await
    }

    /// Stages `events` in the transaction and commits it, so that the mutation and its events are
    /// stored together.
    pub async fn commit(&self, mut tx: PostgresTransaction, events: &[SealedEvent]) -> Result<()> {
        crate::store::chained::check_events(events)?;
        if !events.is_empty() {
            tx.execute(super::staging(events)).await?;
        }
        tx.commit().await
    }

    /// Migrates the tables of `component`: `steps[n]` takes version n to n + 1, all missing steps
    /// in one transaction. Safe if several processes start together: they take turns. Only checks
    /// the version if the store was opened without [`migrate`](PostgresConfig::migrate).
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if steps are missing and `migrate` is not set;
    /// `config_invalid` if the role lacks a privilege.
    pub async fn migrate<S>(&self, component: &str, steps: &[S]) -> Result<()>
    where
        S: AsRef<str> + Sync,
    {
        self.take_missing_steps(component, steps).await.map_err(at_start)
    }

    async fn take_missing_steps(
        &self,
        component: &str,
        steps: &[impl AsRef<str> + Sync],
    ) -> Result<()> {
        let mut reader = self.read().await?;
        let version = schema::version_of(&mut reader, component).await?;
        reader.commit().await?;
        check_version(version, steps.len())?;
        if version == steps.len() {
            return Ok(());
        }
        if !self.0.migrates {
            return Err(Error::new(
                ErrorKind::StoreForeign,
                format!("the database holds no {component} of this version: migrate it"),
            ));
        }
        let mut tx = self.begin_migration().await?;
        schema::take_steps(&mut tx, component, steps).await?;
        tx.commit().await
    }

    /// Compares the tables and indexes of a component with its `catalogue`: one object per line
    /// with kind, name, table and definition, separated by tabs. Returns the differences;
    /// additional indexes are allowed.
    ///
    /// # Errors
    /// Those of reading the database.
    pub async fn examine(&self, catalogue: &str) -> Result<Vec<Anomaly>> {
        let mut tx = self.read().await?;
        let anomalies = structure::definitions(&mut tx, catalogue).await?;
        tx.commit().await?;
        Ok(anomalies)
    }

    /// Refuses a role that lacks privileges on tables (`SELECT`, `INSERT`, `UPDATE`, `DELETE`),
    /// naming all of them. Does nothing if the store was opened without
    /// [`must_write`](PostgresConfig::must_write).
    ///
    /// # Errors
    /// `config_invalid`.
    pub async fn check_rights(&self, rights: &[(&str, &[&str])]) -> Result<()> {
        if !self.0.writes {
            return Ok(());
        }
        let needed =
            rights.iter().flat_map(|(table, rights)| rights.iter().map(move |r| (*table, *r)));
        let (tables, rights): (Vec<&str>, Vec<&str>) = needed.unzip();
        // A privilege on any column counts; missing ones on others show when they are needed.
        let query = sqlx::query(
            "SELECT current_user::text AS role, string_agg(n.wanted || ' on ' || n.tab, ', ' ORDER BY n.place) AS named, format('GRANT %s ON %s TO %I', string_agg(n.wanted, ', ' ORDER BY n.place), to_regclass(n.tab), current_user) AS fix FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS n (tab, wanted, place) WHERE to_regclass(n.tab) IS NOT NULL AND NOT CASE n.wanted WHEN 'DELETE' THEN has_table_privilege(to_regclass(n.tab), 'DELETE') ELSE has_any_column_privilege(to_regclass(n.tab), n.wanted) END GROUP BY n.tab ORDER BY min(n.place)",
        );
        let mut tx = self.read().await?;
        let lacking = tx.fetch_all(query.bind(tables).bind(rights)).await?;
        tx.commit().await?;
        let Some(first) = lacking.first() else { return Ok(()) };
        let text = |row, column| sqlx::Row::try_get::<String, _>(row, column);
        let all = |column, between| {
            let texts = lacking.iter().map(|row| text(row, column));
            texts.collect::<sqlx::Result<Vec<_>>>().map(|texts| texts.join(between))
        };
        let [role, named, fix] = [text(first, "role"), all("named", ", "), all("fix", "; ")];
        let role = role.map_err(super::postgres_error)?;
        let named = named.map_err(super::postgres_error)?;
        let fix = fix.map_err(super::postgres_error)?;
        Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!("the role {role} lacks rights: {named}: {fix}"),
        ))
    }

    /// Notifies every process that waits on `channel` that its value is `value`, when this
    /// transaction commits. Needs no privilege. Notifications may be lost; waiting processes
    /// also poll.
    pub async fn notify(
        &self,
        tx: &mut PostgresTransaction,
        channel: &str,
        value: u64,
    ) -> Result<()> {
        let query = sqlx::query("SELECT pg_notify($1, $2)");
        let payload = self.payload(channel, value);
        tx.execute(query.bind(listen::CHANNEL).bind(payload)).await.map(drop)
    }

    /// The payload of a notification on [`listen::CHANNEL`].
    pub(super) fn payload(&self, channel: &str, value: u64) -> String {
        listen::payload(self.scope(), channel, value)
    }

    /// Resolves when the value of `channel` may exceed `beyond`: after a
    /// [notification](Self::notify), or when the listening connection was just made. Never
    /// resolves without such a connection, which a pooler can't provide; callers must also poll.
    /// Cancel-safe.
    pub async fn changed(&self, channel: &str, beyond: u64) {
        match &self.0.listener {
            Some(listener) => listener.changed(self.scope(), channel, beyond).await,
            None => std::future::pending().await,
        }
    }

    /// Whether connections keep their settings, which they don't behind a pooler.
    pub(super) fn keeps_settings(&self) -> bool {
        self.0.prepared
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    /// Begins a transaction that appends to the log.
    pub(crate) async fn begin_log(&self) -> Result<PostgresTransaction> {
        self.transaction(&self.0.begin_log, self.0.answer_timeout).await
    }

    /// Begins a read-only transaction for index scans in order.
    pub(crate) async fn read_scan(&self) -> Result<PostgresTransaction> {
        self.transaction(&self.0.read_scan, self.0.answer_timeout).await
    }

    /// Like [`read_scan`](Self::read_scan), with time for statements that examine every row.
    pub(super) async fn examination(&self) -> Result<PostgresTransaction> {
        let begin = format!(
            "{}; SET LOCAL statement_timeout = {}",
            self.0.read_scan,
            MIGRATION.as_millis()
        );
        self.transaction(&begin, MIGRATION + SILENCE).await
    }

    /// Begins a transaction that excludes all other migrations in this database.
    pub(super) async fn begin_migration(&self) -> Result<PostgresTransaction> {
        let bound = MIGRATION.as_millis();
        let begin = format!(
            "{}; SET LOCAL lock_timeout = {bound}; SET LOCAL statement_timeout = {bound}",
            self.0.begin
        );
        let mut tx = self.transaction(&begin, MIGRATION + SILENCE).await?;
        // An arbitrary number, the same in every process: "dezky" in ASCII.
        tx.run("SELECT pg_advisory_xact_lock(431199251321)").await?;
        Ok(tx)
    }

    /// Closes the connections, after waiting for those in use.
    pub(super) async fn close(&self) {
        if let Some(listener) = &self.0.listener {
            listener.close();
        }
        self.0.pool.close().await;
    }

    async fn transaction(&self, begin: &str, answer: Duration) -> Result<PostgresTransaction> {
        PostgresTransaction::begin(&self.0.pool, begin, self.0.prepared, answer).await
    }

    fn scope(&self) -> i64 {
        self.0.scope.get().copied().unwrap_or_default()
    }
}

impl fmt::Debug for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresDatabase").finish_non_exhaustive()
    }
}
