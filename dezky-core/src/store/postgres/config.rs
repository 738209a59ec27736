use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};

use super::postgres_error;
use super::transaction::answer;
use crate::{Error, ErrorKind, Result};

/// How long a connection that is given back may take to end what it is at.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most connections of a process.
const MAX_CONNECTIONS: u32 = 10_000;

/// How a log in PostgreSQL is opened.
///
/// TLS is as the URL's `sslmode` says: `disable`, `prefer` (unless set: TLS if
/// the server has it, whoever it is), `require` (TLS, whoever it is), `verify-ca`
/// and `verify-full` (TLS with a certificate that the system's roots or
/// `sslrootcert` vouch for). Over a network use `verify-full`. What the URL leaves
/// out comes from `PGHOST` and its kin and from `.pgpass`, as everywhere. A parameter
/// of the URL that is not known here is refused.
#[derive(Clone)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`; of
    /// [`for_pool`](Self::for_pool) empty. `Debug` does not show it.
    pub url: String,
    /// The most connections at once, 1 to 10,000, 10 unless set; one more listens for what other
    /// processes append.
    pub max_connections: u32,
    /// How long a caller waits for a connection, 5 s unless set.
    pub acquire_timeout: Duration,
    /// How long a writer waits for another one, 5 s unless set.
    pub lock_timeout: Duration,
    /// How long a statement may take, 30 s unless set. A server that is silent for
    /// 5 s more is given up.
    pub statement_timeout: Duration,
    /// How long a transaction may wait for its next statement, 5 s unless set, so
    /// that a writer that stalls does not hold up the others.
    pub idle_in_transaction_timeout: Duration,
    /// Set it where a pooler (`PgBouncer`) gives each transaction another
    /// connection: statements are not prepared then, and what other processes append
    /// is found by polling alone.
    pub transaction_pooler: bool,
    /// Make the tables if they are missing, and bring them up to date. Without it
    /// nothing is written by opening.
    pub migrate: bool,
    /// Refuse a standby, or a role that lacks rights, when it is opened. Without it reads are
    /// served, and what can't be written fails as `store_unavailable`.
    pub must_write: bool,
    /// Let the log's tables stand beside tables of your own, so that a mutation
    /// and its event commit together. Without it a schema that has tables, but none
    /// of ours, is refused.
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

    /// The defaults for a pool of your own, whose URL, size and waiting time are
    /// its own, and a schema with tables of your own.
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
            // What was given up may still wait for a silent server: the pool itself would
            // wait with it, and have a connection less for so long.
            .after_release(|connection, _| {
                answer(RELEASE_TIMEOUT, connection.ping())
                    // An error closes it without a word, which could get stuck too.
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
            // To PostgreSQL 0 is no bound at all, and more does not fit.
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

/// The options that a URL may have; sqlx leaves out the others, and logs them with
/// their values.
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

/// Reads a URL of PostgreSQL as [`PostgresConfig`] does.
///
/// # Errors
/// `config_invalid` if it can't be read, or has an option that is not known: a
/// mistyped `sslmode` must not leave the connection without TLS.
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
        // What does not look like a name, or stands before an @, may be a part of a
        // password that was not encoded.
        let is_name = name.len() <= 40
            && !options.contains('@')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        return Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!(
                "the URL of PostgreSQL has an unknown option{}: take it out, or correct it, as in sslmode=verify-full",
                if is_name { format!(" {name}") } else { String::new() }
            ),
        ));
    }
    let options = PgConnectOptions::from_str(url).map_err(postgres_error)?;
    Ok(options
        .disable_statement_logging()
        // PgBouncer refuses parameters that it does not know.
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
