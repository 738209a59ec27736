//! Conversion of the errors of PostgreSQL and sqlx.

use sqlx::postgres::PgDatabaseError;

use super::transaction::FAILED_BEFORE;
use crate::store::operator::needs_operator;
use crate::{Error, ErrorKind};

/// Converts an error of sqlx. The kind tells whether a retry may help. Values of statements and
/// parts of URLs are never included, nor are PostgreSQL's details about data.
pub fn postgres_error(error: sqlx::Error) -> Error {
    use ErrorKind::{ConfigInvalid, StoreCorrupt, StoreUnavailable};
    let (kind, message) = match &error {
        sqlx::Error::Database(database) => {
            // Without the source, whose Debug output shows values.
            return match database.try_downcast_ref::<PgDatabaseError>() {
                Some(said) => refused(said),
                None => Error::new(StoreUnavailable, "PostgreSQL gives no reason: try again"),
            };
        }
        sqlx::Error::PoolTimedOut => (
            StoreUnavailable,
            "no connection to PostgreSQL in time: it is down, can't be reached, or all connections are in use",
        ),
        sqlx::Error::PoolClosed => (StoreUnavailable, "the store was closed: open it again"),
        sqlx::Error::Io(_) => {
            (StoreUnavailable, "the connection to PostgreSQL was lost or refused: try again")
        }
        sqlx::Error::Tls(_) => (
            StoreUnavailable,
            "no TLS with PostgreSQL: check sslmode and sslrootcert in the URL and the server's certificate",
        ),
        sqlx::Error::Configuration(_) => (
            ConfigInvalid,
            "the URL of PostgreSQL can't be read: write postgres://user:password@host:port/database",
        ),
        sqlx::Error::ColumnDecode { index, .. } => {
            return Error::new(
                StoreCorrupt,
                format!("column {index} can't be read: restore a backup"),
            );
        }
        _ => (StoreUnavailable, "PostgreSQL does not answer as expected: try again"),
    };
    Error::new(kind, message).with_source(error)
}

/// SQLSTATE codes as kinds.
fn refused(said: &PgDatabaseError) -> Error {
    use ErrorKind::{ConfigInvalid, Internal, StoreBusy, StoreCorrupt, StoreUnavailable, TooLarge};
    let code = said.code();
    let (kind, message) = match code {
        "40001" | "40P01" => (StoreBusy, "it conflicts with another transaction: try again".into()),
        "55P03" => (
            StoreBusy,
            "another writer held the lock for longer than lock_timeout: try again".into(),
        ),
        "57014" => (StoreBusy, "a statement took longer than statement_timeout: try again".into()),
        "25P03" => (
            StoreBusy,
            "the server ended the transaction, which was idle too long: try again".into(),
        ),
        "53300" => (
            StoreBusy,
            "the server has no connection left: try again, or raise its max_connections".into(),
        ),
        "25P02" => (Internal, FAILED_BEFORE.into()),
        "23505" if said.constraint() == Some("dezky_audit_events_pkey") => {
            (StoreCorrupt, "the log has events beyond its head: restore a backup".into())
        }
        "23505" => (
            StoreBusy,
            format!("another writer was faster (unique {}): try again", name(said.constraint())),
        ),
        "53100" => (StoreUnavailable, "the server's disk is full: make room".into()),
        "25006" => (StoreUnavailable, "the server is a read-only standby: name the primary".into()),
        "42501" => {
            let what = format!(
                "the role lacks a permission ({}): GRANT it, or let the role own the schema",
                said.message()
            );
            return needs_operator(ConfigInvalid, what);
        }
        "28000" | "28P01" => {
            let what = "the server refuses these credentials: check user, password and pg_hba.conf";
            return needs_operator(ConfigInvalid, what);
        }
        "3D000" => {
            let what = "there is no such database: create it, or name another";
            return needs_operator(ConfigInvalid, what);
        }
        // Raised by one of our steps.
        "DZ001" => return needs_operator(ConfigInvalid, said.message().to_owned()),
        // A prepared statement of one connection was used on another.
        "26000" | "42P05" => {
            let what = "a pooler changes connections under prepared statements: set transaction_pooler (in the server's configuration, store.pooler = \"transaction\")";
            return needs_operator(ConfigInvalid, what);
        }
        "22021" => {
            (Internal, "a text has a character that PostgreSQL can't store: report this bug".into())
        }
        "42P01" | "42703" | "3F000" => (
            StoreCorrupt,
            format!("the database lacks a part of the log ({}): restore a backup", said.message()),
        ),
        "XX001" | "XX002" => {
            (StoreCorrupt, "the server reports damaged data: restore a backup".into())
        }
        _ => match code.get(..2).unwrap_or("") {
            "08" | "53" | "57" | "58" | "XX" => {
                (StoreUnavailable, format!("PostgreSQL is not available ({code}): try again"))
            }
            // A retry would be refused again.
            "0A" | "22" | "42" => {
                (Internal, format!("PostgreSQL refuses a statement ({code}): report this bug"))
            }
            "54" => {
                (TooLarge, format!("a value is larger than PostgreSQL allows ({code}): send less"))
            }
            "28" => {
                let what =
                    format!("the server refuses the connection ({code}): check user and database");
                return needs_operator(ConfigInvalid, what);
            }
            "23" => (
                StoreCorrupt,
                format!(
                    "a constraint was violated ({code} {}): restore a backup",
                    name(said.constraint())
                ),
            ),
            _ => (
                StoreUnavailable,
                format!(
                    "PostgreSQL refuses a statement ({code} {}): try again",
                    name(said.table())
                ),
            ),
        },
    };
    Error::new(kind, message)
}

fn name(name: Option<&str>) -> &str {
    name.unwrap_or("unnamed")
}
