//! The schema versions of a database, read without changing it.

pub(crate) mod bounded;
pub(crate) mod mongodb;
pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::collections::BTreeMap;

use crate::config::{StoreConfig, StoreUrl};
use crate::failure::Failure;

/// The schema's versions by component.
#[derive(Debug)]
pub(crate) struct Versions {
    /// The versions in the database; empty if it has no schema yet.
    pub(crate) now: BTreeMap<String, usize>,
    /// The versions that this program creates.
    pub(crate) known: [(&'static str, usize); 3],
}

impl Versions {
    pub(crate) fn new(url: &StoreUrl, now: BTreeMap<String, usize>) -> Self {
        Self { now, known: known(url) }
    }

    /// Whether every component has the version of this program.
    pub(crate) fn are_current(&self) -> bool {
        self.known.iter().all(|(component, known)| self.of(component) == *known)
    }

    /// The version of a component; 0 if it was never created.
    pub(crate) fn of(&self, component: &str) -> usize {
        self.now.get(component).copied().unwrap_or(0)
    }
}

/// The versions that this program creates.
pub(crate) fn known(url: &StoreUrl) -> [(&'static str, usize); 3] {
    use dezky_core::directory::{MongoDirectory, PostgresDirectory, SqliteDirectory};
    use dezky_core::store::{MongoAuditStore, PostgresAuditStore, SqliteAuditStore};
    use dezky_flags::store::{MongoFlagStore, PostgresFlagStore, SqliteFlagStore};
    let [audit, directory, flags] = match url {
        StoreUrl::Sqlite(_) => [
            SqliteAuditStore::schema_version(),
            SqliteDirectory::schema_version(),
            SqliteFlagStore::schema_version(),
        ],
        StoreUrl::Postgres(_) => [
            PostgresAuditStore::schema_version(),
            PostgresDirectory::schema_version(),
            PostgresFlagStore::schema_version(),
        ],
        StoreUrl::Mongodb(_) => [
            MongoAuditStore::schema_version(),
            MongoDirectory::schema_version(),
            MongoFlagStore::schema_version(),
        ],
    };
    [("audit", audit), ("directory", directory), ("flags", flags)]
}

/// Reads the versions of a database.
pub(crate) async fn versions(config: &StoreConfig) -> Result<Versions, Failure> {
    let now = match &config.url {
        StoreUrl::Sqlite(path) => sqlite::versions(path).await,
        StoreUrl::Postgres(url) => postgres::versions(config, url).await,
        StoreUrl::Mongodb(url) => mongodb::versions(config, url).await,
    };
    let now = now.map_err(|error| {
        let said = format!("store {}: {error}", config.url);
        if error.is_retryable() { Failure::failed(said) } else { Failure::usage(said) }
    })?;
    Ok(Versions::new(&config.url, now))
}

/// Whether the database has no schema yet, or is not there.
pub(crate) async fn is_missing(config: &StoreConfig) -> Result<bool, Failure> {
    versions(config).await.map(|versions| versions.now.is_empty())
}
