use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};

use super::postgres_error;
use super::transaction::answer;
use crate::{Error, ErrorKind, Result};

/// Time limit for a released connection to finish its last statement.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of connections per process.
const MAX_CONNECTIONS: u32 = 10_000;

/// The configuration of a log in PostgreSQL.
///
/// The URL's `sslmode` controls TLS: `disable`; `prefer` (the default: TLS if the server has it,
/// without checking its certificate); `require` (TLS, without checking the certificate);
/// `verify-ca` and `verify-full` (TLS with a certificate signed by the system's roots or
/// `sslrootcert`). Over a network, use `verify-full`. Parts missing in the URL are taken from
/// `PGHOST` and similar variables and from `.pgpass`, as usual. Unknown parameters of the URL are
/// refused.
#[derive(Clone)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent switch")]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`; empty for
    /// [`for_pool`](Self::for_pool). `Debug` does not show it.
    pub url: String,
    /// Maximum number of connections, 1 to 10,000; 10 by default. One more listens for appends of
    /// other processes.
    pub max_connections: u32,
    /// How long a caller waits for a connection; 5 s by default.
    pub acquire_timeout: Duration,
    /// How long a writer waits for another one; 5 s by default.
    pub lock_timeout: Duration,
    /// Time limit for a statement; 30 s by default. If the server stays silent for another 5 s,
    /// the call fails.
    pub statement_timeout: Duration,
    /// How long a transaction may wait for its next statement, 5 s by default, so that a stalled
    /// writer does not block the others.
    pub idle_in_transaction_timeout: Duration,
    /// Set this behind a pooler (`PgBouncer`) in transaction mode. Statements are then not
    /// prepared, and appends of other processes are noticed only by polling.
    pub transaction_pooler: bool,
    /// Create the tables if they are missing, and migrate them. Without it, opening writes
    /// nothing.
    pub migrate: bool,
    /// Refuse to open a standby, or with a role that lacks privileges. Without it, reads are
    /// served and writes fail with `store_unavailable`.
    pub must_write: bool,
    /// Allow other tables in the same schema, so that your mutation and its event commit together.
    /// Without it, a schema that has tables but none of ours is refused.
    pub shared: bool,
}

impl PostgresConfig {
    /// The defaults for the database at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            idle_in_transaction_timeout: Duration::from_secs(5),
            transaction_pooler: false,
            migrate: true,
            must_write: true,
            shared: false,
        }
    }

    /// The defaults for your own pool, which has its own URL, size and timeout, and a schema that
    /// also has your own tables.
    pub fn for_pool() -> Self {
        Self { shared: true, ..Self::new("") }
    }

    pub(super) fn pool(&self) -> Result<PgPool> {
        self.check()?;
        let mut options = postgres_options(&self.url)?;
        if options.get_application_name().is_none() {
            options = options.application_name("dezky");
        }
        if self.transaction_pooler {
            options = options.statement_cache_capacity(0);
        }
        Ok(PgPoolOptions::new()
            .max_connections(self.max_connections)
            .acquire_timeout(self.acquire_timeout)
            // A connection whose statement timed out may still be waiting for a silent server.
            // Without a time limit, the pool would wait too, and lack this connection meanwhile.
            .after_release(|connection, _| {
                answer(RELEASE_TIMEOUT, connection.ping())
                    // On an error, sqlx closes it without a farewell, which could block too.
                    .map(|answer| answer.map(|()| true).map_err(|_| sqlx::Error::PoolTimedOut))
                    .boxed()
            })
            .connect_lazy_with(options))
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(1..=MAX_CONNECTIONS).contains(&self.max_connections) {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                format!("max_connections is {}: it must be 1 to 10000", self.max_connections),
            ));
        }
        for (name, duration) in [
            ("acquire_timeout", self.acquire_timeout),
            ("lock_timeout", self.lock_timeout),
            ("statement_timeout", self.statement_timeout),
            ("idle_in_transaction_timeout", self.idle_in_transaction_timeout),
        ] {
            // For PostgreSQL, 0 means no limit.
            if !(1..=86_400_000).contains(&duration.as_millis()) {
                return Err(Error::new(
                    ErrorKind::ConfigInvalid,
                    format!("{name} is {duration:?}: it must be 1 ms to 24 h"),
                ));
            }
        }
        Ok(())
    }
}

/// The known options of a URL. sqlx ignores others, and logs them with their values.
const URL_OPTIONS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Parses a PostgreSQL URL as [`PostgresConfig`] does.
///
/// # Errors
/// `config_invalid` if it can't be parsed, or has an unknown option: a mistyped `sslmode` must not
/// leave the connection without TLS.
pub fn postgres_options(url: &str) -> Result<PgConnectOptions> {
    let options = url.split('#').next().and_then(|url| url.split_once('?'));
    let options = options.map_or("", |(_, options)| options);
    for option in options.split('&') {
        let name = option.split('=').next().unwrap_or_default();
        if name.is_empty()
            || URL_OPTIONS.contains(&name)
            || name.starts_with("options[")
            || name.starts_with("options%5B")
        {
            continue;
        }
        // Text that does not look like a name, or that precedes an @, may be part of an unencoded
        // password.
        let is_name = name.len() <= 40
            && !options.contains('@')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        return Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!(
                "the URL of PostgreSQL has an unknown option{}: remove it, or correct it, as in sslmode=verify-full",
                if is_name { format!(" {name}") } else { String::new() }
            ),
        ));
    }
    let options = PgConnectOptions::from_str(url).map_err(postgres_error)?;
    Ok(options
        .disable_statement_logging()
        // PgBouncer refuses unknown parameters.
        .extra_float_digits(None))
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("max_connections", &self.max_connections)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("idle_in_transaction_timeout", &self.idle_in_transaction_timeout)
            .field("transaction_pooler", &self.transaction_pooler)
            .field("migrate", &self.migrate)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
