//! What PostgreSQL and sqlx say, as this crate says it.

use sqlx::postgres::PgDatabaseError;

use super::transaction::FAILED_BEFORE;
use crate::store::operator::needs_operator;
use crate::{Error, ErrorKind};

/// An error of sqlx as this crate says it: its kind tells whether a retry may
/// help. No value of a statement gets in, and no part of a URL: what PostgreSQL
/// says in detail about data is left out.
pub fn postgres_error(error: sqlx::Error) -> Error {
    use ErrorKind::{ConfigInvalid, StoreCorrupt, StoreUnavailable};
    let (kind, message) = match &error {
        sqlx::Error::Database(database) => {
            // Without the source: its Debug shows values.
            return match database.try_downcast_ref::<PgDatabaseError>() {
                Some(said) => refused(said),
                None => Error::new(StoreUnavailable, "PostgreSQL gives no reason: try again"),
            };
        }
        sqlx::Error::PoolTimedOut => (
            StoreUnavailable,
            "no connection to PostgreSQL in time: it is down, can't be reached, or all connections are taken",
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
            return Error::new(StoreCorrupt, format!("column {index} can't be read"));
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
        "40001" | "40P01" => (StoreBusy, "another transaction was in the way: try again".into()),
        "55P03" => {
            (StoreBusy, "another writer holds the lock beyond lock_timeout: try again".into())
        }
        "57014" => (StoreBusy, "a statement took longer than statement_timeout: try again".into()),
        "25P03" => {
            (StoreBusy, "the transaction idled beyond its bound and was ended: try again".into())
        }
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
        "25006" => {
            (StoreUnavailable, "the server is read only, a standby: name the primary".into())
        }
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
            let what = "there is no such database: make it, or name another";
            return needs_operator(ConfigInvalid, what);
        }
        // Raised by a step of our own.
        "DZ001" => return needs_operator(ConfigInvalid, said.message().to_owned()),
        // A named statement of one connection, looked for on another.
        "26000" | "42P05" => {
            let what = "a pooler changes connections under prepared statements: set transaction_pooler (store.pooler = \"transaction\" of the server)";
            return needs_operator(ConfigInvalid, what);
        }
        "22021" => (Internal, "a text has a character that PostgreSQL can't store".into()),
        "42P01" | "42703" | "3F000" => (
            StoreCorrupt,
            format!("the database lacks a part ({}): restore a backup", said.message()),
        ),
        "XX001" | "XX002" => {
            (StoreCorrupt, "the server reports damaged data: restore a backup".into())
        }
        _ => match code.get(..2).unwrap_or("") {
            "08" | "53" | "57" | "58" | "XX" => {
                (StoreUnavailable, format!("PostgreSQL is not available ({code}): try again"))
            }
            // The same again would be refused again.
            "0A" | "22" | "42" => (Internal, format!("PostgreSQL refuses a statement ({code})")),
            "54" => (TooLarge, format!("a value is larger than PostgreSQL allows ({code})")),
            "28" => {
                let what = format!("the server refuses the connection ({code})");
                return needs_operator(ConfigInvalid, what);
            }
            "23" => (
                StoreCorrupt,
                format!("a constraint was broken ({code} {})", name(said.constraint())),
            ),
            _ => (StoreUnavailable, format!("PostgreSQL refuses ({code} {})", name(said.table()))),
        },
    };
    Error::new(kind, message)
}

fn name(name: Option<&str>) -> &str {
    name.unwrap_or("without name")
}
