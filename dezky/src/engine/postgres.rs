//! A platform in a PostgreSQL database.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::directory::DIRECTORY;
use dezky_core::documents;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AuditStore, PostgresAuditStore, PostgresConfig, postgres_error, postgres_options,
};
use dezky_core::{Result, Runtime as _};
use dezky_flags::store::FLAGS;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use super::remote::{Server, answer, answered, expect_within, is_local};
use super::{Access, Backend, Opened, Report};
use crate::url::RemoteUrl;

/// The oldest version that is known to work.
const OLDEST: i32 = 130_000;

pub(super) struct Postgres(pub(super) Server);

#[async_trait]
impl Backend for Postgres {
    fn known_versions(&self) -> [usize; 3] {
        [
            PostgresAuditStore::schema_version(),
            DIRECTORY.versions().postgres,
            FLAGS.versions().postgres,
        ]
    }

    async fn versions(&self) -> Result<BTreeMap<String, usize>> {
        versions(&self.0).await
    }

    async fn examine(&self, report: &mut Report) -> Option<BTreeMap<String, usize>> {
        examine(&self.0, report).await
    }

    fn has_search_index(&self) -> bool {
        true
    }

    async fn open(&self, access: Access) -> Result<Arc<dyn Opened>> {
        let mut postgres = PostgresConfig::new(self.0.url.expose());
        postgres.max_connections = self.0.config.max_connections;
        postgres.acquire_timeout = self.0.config.acquire_timeout;
        postgres.lock_timeout = self.0.config.lock_timeout;
        postgres.statement_timeout = self.0.config.statement_timeout;
        postgres.idle_in_transaction_timeout = self.0.config.idle_timeout;
        postgres.transaction_pooler = self.0.config.transaction_pooler;
        postgres.shared = self.0.config.shared;
        postgres.migrate = access == Access::Migrate;
        postgres.must_write = access.must_write();
        Ok(Arc::new(PostgresAuditStore::open(postgres, &TokioRuntime).await?))
    }
}

#[async_trait]
impl Opened for PostgresAuditStore {
    fn log(self: Arc<Self>) -> Arc<dyn AuditStore> {
        self
    }

    fn documents(self: Arc<Self>) -> documents::Database {
        (&self.database()).into()
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    async fn create_search_index(&self) -> Result<()> {
        Self::create_search_index(self).await
    }
}

fn options(url: &RemoteUrl) -> Result<PgConnectOptions> {
    Ok(postgres_options(&url.expose())?.application_name("dezky-doctor"))
}

async fn connect(Server { url, config }: &Server) -> Result<PgConnection> {
    let options = options(url)?;
    let connected = async { options.connect().await.map_err(postgres_error) };
    expect_within(config.acquire_timeout, "connection", connected).await
}

/// Queries by the simple protocol, which every pooler supports; values arrive as text.
async fn row(connection: &mut PgConnection, sql: &'static str) -> Result<PgRow> {
    answer(async { connection.fetch_one(sqlx::raw_sql(sql)).await.map_err(postgres_error) }).await
}

async fn rows(connection: &mut PgConnection, sql: &'static str) -> Result<Vec<PgRow>> {
    answer(async { connection.fetch_all(sqlx::raw_sql(sql)).await.map_err(postgres_error) }).await
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<()> {
    let sql = AssertSqlSafe(sql.to_owned());
    answer(async { connection.execute(sqlx::raw_sql(sql)).await.map_err(postgres_error) })
        .await
        .map(drop)
}

fn get<'r, T>(row: &'r PgRow, column: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(column).map_err(postgres_error)
}

/// Returns the components' versions; empty without a schema.
async fn versions(server: &Server) -> Result<BTreeMap<String, usize>> {
    let mut connection = connect(server).await?;
    let versions = versions_of(&mut connection).await;
    let _ = connection.close().await;
    versions
}

async fn versions_of(connection: &mut PgConnection) -> Result<BTreeMap<String, usize>> {
    let found = row(connection, "SELECT to_regclass('dezky_schema') IS NOT NULL AS ours").await?;
    if !get::<bool>(&found, "ours")? {
        return Ok(BTreeMap::new());
    }
    let found = rows(connection, "SELECT component, version FROM dezky_schema").await?;
    found
        .iter()
        .map(|row| {
            let version = usize::try_from(get::<i64>(row, "version")?).unwrap_or(0);
            Ok((get(row, "component")?, version))
        })
        .collect()
}

/// Examines the server; returns the schema's versions if it answers.
async fn examine(server: &Server, report: &mut Report) -> Option<BTreeMap<String, usize>> {
    let fix = format!("check {} and that it is up", server.url);
    let mut connection = answered(connect(server).await, &fix, report)?;
    let examined = examine_server(server, &mut connection, report).await;
    let _ = connection.close().await;
    answered(examined, "see the server's own log", report)
}

async fn examine_server(
    server: &Server,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Result<BTreeMap<String, usize>> {
    let Server { url, config } = server;
    let before = TokioRuntime.now();
    let facts = row(
        connection,
        "SELECT current_setting('server_version_num')::int AS number, \
         current_setting('server_version') AS version, \
         current_setting('server_encoding') AS encoding, \
         pg_is_in_recovery() AS standby, \
         current_setting('transaction_read_only') AS read_only, \
         current_setting('fsync') AS fsync, \
         current_setting('full_page_writes') AS full_page_writes, \
         current_setting('synchronous_commit') AS synchronous_commit, \
         current_setting('max_connections')::int AS max_connections, \
         current_schema()::text AS schema, \
         (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now",
    )
    .await?;
    let after = TokioRuntime.now();

    let version: String = get(&facts, "version")?;
    if get::<i32>(&facts, "number")? < OLDEST {
        report.bad("version", format!("PostgreSQL {version}"), "use 13 or newer");
    } else {
        report.ok("version", format!("PostgreSQL {version}"));
    }
    examine_tls(url, connection, report).await?;
    let encoding: String = get(&facts, "encoding")?;
    if encoding != "UTF8" {
        let fix = "create the database with ENCODING 'UTF8'";
        report.bad("encoding", format!("the database's is {encoding}"), fix);
    }
    if get::<bool>(&facts, "standby")? {
        report.bad("topology", "a standby, which is read-only", "name the primary");
    } else if get::<String>(&facts, "read_only")? == "on" {
        let fix = "set default_transaction_read_only = off for the role and the database";
        report.bad("topology", "transactions are read-only by default", fix);
    } else {
        report.ok("topology", "a primary");
    }
    report.clocks(before, get(&facts, "now")?, after);
    examine_durability(&facts, report)?;
    let most: i32 = get(&facts, "max_connections")?;
    if i64::from(config.max_connections) + 1 > i64::from(most) {
        report.warn(
            "connections",
            format!(
                "the server allows {most}, store.max_connections is {}",
                config.max_connections
            ),
            "lower the one or raise the other",
        );
    }
    examine_pooler(server, connection, report).await?;
    if get::<Option<String>>(&facts, "schema")?.is_none() {
        report.bad(
            "permissions",
            "no schema of the search_path exists",
            "CREATE SCHEMA, or set search_path",
        );
        return Ok(BTreeMap::new());
    }
    let versions = versions_of(connection).await?;
    let tables = rows(
        connection,
        "SELECT relname::text AS name FROM pg_class \
         WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'",
    )
    .await?;
    let tables: Vec<String> =
        tables.iter().map(|row| get(row, "name")).collect::<Result<_, _>>()?;
    report.tables(&versions, &tables);
    examine_permissions(versions.contains_key("audit"), connection, report).await?;
    if versions.contains_key("audit") {
        examine_search_index(connection, report).await?;
        let sql = "SELECT count(*) AS waiting FROM (SELECT 1 FROM dezky_outbox LIMIT 100001) AS o";
        let waiting: i64 = get(&row(connection, sql).await?, "waiting")?;
        report.outbox(waiting.unsigned_abs());
    }
    Ok(versions)
}

async fn examine_tls(
    url: &RemoteUrl,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Result<()> {
    let (what, fix) = (
        "tls",
        "set sslmode=verify-full in the URL, and sslrootcert for your own certificate authority",
    );
    let sql =
        "SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS tls";
    let encrypted: bool = get(&row(connection, sql).await?, "tls")?;
    let verified =
        matches!(options(url)?.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    if encrypted && verified {
        report.ok(what, "encrypted, and the server's certificate is verified");
    } else if is_local(url.host()) {
        report.ok(
            what,
            if encrypted { "encrypted, on this machine" } else { "not encrypted, on this machine" },
        );
    } else if encrypted {
        report.warn(what, "encrypted, but the server's certificate is not verified", fix);
    } else {
        report.warn(what, "not encrypted, over a network", fix);
    }
    Ok(())
}

fn examine_durability(facts: &PgRow, report: &mut Report) -> Result<()> {
    let what = "durability";
    let mut whole = true;
    for (setting, danger) in [
        ("fsync", "a crash of the machine can lose acknowledged events and damage the rest"),
        ("full_page_writes", "a crash of the machine can damage the data"),
    ] {
        if get::<String>(facts, setting)? == "off" {
            whole = false;
            let fix = format!("set {setting} = on and restart the server");
            report.bad(what, format!("{setting} is off: {danger}"), fix);
        }
    }
    if get::<String>(facts, "synchronous_commit")? == "off" {
        whole = false;
        report.warn(
            what,
            "synchronous_commit is off; the log's own transactions turn it on, other transactions that stage events don't",
            "set synchronous_commit = on for the role or the database",
        );
    }
    if whole {
        report.ok(what, "synced at every commit");
    }
    Ok(())
}

/// Detects a pooler in transaction mode: it serves two connected clients alternately with one
/// connection to the server.
async fn examine_pooler(
    server: &Server,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Result<()> {
    const PID: &str = "SELECT pg_backend_pid() AS pid";
    let mut ours = vec![get::<i32>(&row(connection, PID).await?, "pid")?];
    let mut other = connect(server).await?;
    run(&mut other, "BEGIN").await?;
    let others: i32 = get(&row(&mut other, PID).await?, "pid")?;
    let mut pooled = ours.contains(&others);
    if !pooled {
        ours.push(get(&row(connection, PID).await?, "pid")?);
        pooled = ours[0] != ours[1];
    }
    run(&mut other, "ROLLBACK").await?;
    let _ = other.close().await;
    let what = "pooler";
    match (pooled, server.config.transaction_pooler) {
        (true, false) => report.bad(
            what,
            "in transaction mode: each transaction may get another connection",
            "set store.pooler = \"transaction\" (DEZKY_STORE_POOLER)",
        ),
        (true, true) => report.ok(what, "in transaction mode, as configured"),
        (false, true) => {
            report.ok(what, "none detected; store.pooler = \"transaction\" works anyway");
        }
        (false, false) => report.ok(what, "none"),
    }
    Ok(())
}

async fn examine_permissions(
    is_made: bool,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Result<()> {
    let facts = row(
        connection,
        "SELECT has_schema_privilege(current_schema(), 'CREATE') AS creates, \
         current_user::text AS role, current_schema()::text AS schema, \
         has_database_privilege(current_database(), 'CREATE') AS extends, \
         EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm') AS trigrams, \
         EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm') AS available",
    )
    .await?;
    let (role, schema): (String, String) = (get(&facts, "role")?, get(&facts, "schema")?);
    let what = "permissions";
    let fix = format!("GRANT CREATE, USAGE ON SCHEMA {schema} TO {role}");
    match (get::<bool>(&facts, "creates")?, is_made) {
        (true, _) => report.ok(what, format!("{role} may create tables in the schema {schema}")),
        (false, false) => {
            report.bad(what, format!("{role} may not create tables in the schema {schema}"), fix);
        }
        (false, true) => report.warn(
            what,
            format!("{role} may not create tables in the schema {schema}, as later versions will"),
            format!("{fix}, or migrate as another role"),
        ),
    }
    if is_made {
        examine_tables(&role, connection, report).await?;
        probe(connection, report).await;
    }
    let what = "search index";
    let [trigrams, available, extends] = [
        get::<bool>(&facts, "trigrams")?,
        get::<bool>(&facts, "available")?,
        get::<bool>(&facts, "extends")?,
    ];
    report.ok(what, match (trigrams, available, extends) {
        (true, ..) => "pg_trgm is installed",
        (false, true, true) => "pg_trgm can be installed, for fast searches for rare words: dezky-server migrate --search-index",
        (false, true, false) => "only the database's owner can install pg_trgm (optional)",
        (false, false, _) => "pg_trgm is not available on the server (optional)",
    });
    Ok(())
}

async fn examine_tables(
    role: &str,
    connection: &mut PgConnection,
    report: &mut Report,
) -> Result<()> {
    let lacking = rows(
        connection,
        "SELECT c.relname::text AS name FROM pg_class c \
         WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' \
         AND c.relname LIKE 'dezky\\_%' AND NOT (has_table_privilege(c.oid, 'SELECT') \
         AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') \
         AND has_table_privilege(c.oid, 'DELETE')) ORDER BY c.relname",
    )
    .await?;
    let names: Vec<String> =
        lacking.iter().map(|row| get(row, "name")).collect::<Result<_, _>>()?;
    if !names.is_empty() {
        let names = names.join(", ");
        report.bad(
            "permissions",
            format!("{role} may not read and write {names}"),
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO {role}"),
        );
    }
    Ok(())
}

/// Writes a row in a transaction that is rolled back.
async fn probe(connection: &mut PgConnection, report: &mut Report) {
    let what = "writing";
    let probed = async {
        run(connection, "BEGIN; SET LOCAL lock_timeout = 5000").await?;
        let written = run(connection, "INSERT INTO dezky_outbox (event) VALUES ('')").await;
        run(connection, "ROLLBACK").await?;
        written
    };
    match probed.await {
        Ok(()) => report.ok(what, "a row was written and rolled back"),
        Err(error) => report.bad(what, error.to_string(), "see the permissions and the topology"),
    }
}

/// Warns of an optional index that an interrupted build left behind: searches don't use it.
/// The other indexes are part of the structure check.
async fn examine_search_index(connection: &mut PgConnection, report: &mut Report) -> Result<()> {
    let found = rows(
        connection,
        "SELECT i.indexrelid::regclass::text AS name FROM pg_index i \
         WHERE i.indexrelid = to_regclass('dezky_audit_events_search') \
         AND NOT (i.indisvalid AND i.indisready)",
    )
    .await?;
    for row in &found {
        report.warn(
            "search index",
            format!("{} is not valid, so it is not used", get::<String>(row, "name")?),
            "dezky-server migrate --search-index",
        );
    }
    Ok(())
}
