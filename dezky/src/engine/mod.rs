//! The databases that a platform can be stored in.
//!
//! [`Engine`] is a database at a URL from the outside: schema, condition and opening. Everything
//! that differs between engines and is not part of a store's contract is behind the private trait
//! `Backend`, one file per engine.

mod memory;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "mongodb"))]
mod remote;
mod report;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::directory::{DirectoryStore, DocumentDirectory};
use dezky_core::documents;
use dezky_core::store::{AuditStore, Extent};
use dezky_core::{Error, Result};
use dezky_flags::store::{DocumentFlagStore, FlagStore};

pub use self::report::{Check, Level, Report};
use crate::url::{StoreConfig, StoreUrl};

/// The purpose for which a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writing. A missing schema is created and an older one is migrated.
    Migrate,
    /// Writing. The schema must exist and be current, and the user must be allowed to
    /// write.
    Write,
    /// Reading, and writing as far as permitted. The schema must exist and be current.
    Use,
    /// Reading. The schema must exist and be current.
    Read,
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mongodb"))]
impl Access {
    /// Whether opening fails for a user who may not write.
    fn must_write(self) -> bool {
        matches!(self, Self::Migrate | Self::Write)
    }
}

/// The part of an engine in this crate.
#[async_trait]
trait Backend: Send + Sync {
    /// The schema versions of log, directory and flags that this program creates.
    fn known_versions(&self) -> [usize; 3];

    /// The schema versions in the database, by component. Changes nothing.
    async fn versions(&self) -> Result<BTreeMap<String, usize>>;

    /// Adds the condition of the database to `report`. Returns the schema versions, or `None` if
    /// they can't be read.
    async fn examine(&self, report: &mut Report) -> Option<BTreeMap<String, usize>>;

    /// Opens the log.
    async fn open(&self, access: Access) -> Result<Arc<dyn Opened>>;

    /// Whether there is an optional index for text search.
    fn has_search_index(&self) -> bool {
        false
    }
}

/// The log of an open database, which gives access to the other stores in it.
#[async_trait]
trait Opened: Any + Send + Sync {
    fn log(self: Arc<Self>) -> Arc<dyn AuditStore>;
    /// The database of directory and flags.
    fn documents(self: Arc<Self>) -> documents::Database;
    async fn close(&self);

    /// Creates the optional index for text search, on engines that have one.
    async fn create_search_index(&self) -> Result<()> {
        Ok(())
    }
}

/// The engine of a URL. The only place that lists the engines.
fn backend(config: &StoreConfig) -> Result<Box<dyn Backend>> {
    config.check()?;
    match &config.url {
        StoreUrl::Memory => Ok(Box::new(memory::Memory)),
        #[cfg(feature = "sqlite")]
        StoreUrl::Sqlite(path) => Ok(Box::new(sqlite::Sqlite::new(path, config))),
        #[cfg(feature = "postgres")]
        StoreUrl::Postgres(url) => {
            Ok(Box::new(postgres::Postgres(remote::Server::new(url, config))))
        }
        #[cfg(feature = "mongodb")]
        StoreUrl::Mongodb(url) => Ok(Box::new(mongodb::Mongodb(remote::Server::new(url, config)))),
        #[cfg(not(all(feature = "sqlite", feature = "postgres", feature = "mongodb")))]
        other => Err(crate::url::lacking(other.engine()).context(other)),
    }
}

/// A database at a URL, not opened yet.
pub struct Engine {
    url: StoreUrl,
    backend: Box<dyn Backend>,
}

impl Engine {
    /// The engine for a configuration. Connects to nothing.
    ///
    /// # Errors
    /// `config_invalid` if an option is out of its bounds, or the engine's feature is not
    /// part of this build.
    pub fn new(config: &StoreConfig) -> Result<Self> {
        Ok(Self { url: config.url.clone(), backend: backend(config)? })
    }

    /// The schema versions. Changes nothing.
    ///
    /// # Errors
    /// Those of connecting and reading. A database without a schema is not an error.
    pub async fn schema(&self) -> Result<SchemaVersions> {
        let found = self.backend.versions().await.map_err(|error| error.context(&self.url))?;
        Ok(self.compared(found))
    }

    fn compared(&self, found: BTreeMap<String, usize>) -> SchemaVersions {
        let [audit, directory, flags] = self.backend.known_versions();
        SchemaVersions {
            found,
            known: [("audit", audit), ("directory", directory), ("flags", flags)],
        }
    }

    /// Whether there is an optional index for [text
    /// search](Database::create_search_index).
    pub fn has_search_index(&self) -> bool {
        self.backend.has_search_index()
    }

    /// Opens the log.
    ///
    /// # Errors
    /// `config_invalid`, `auth_failed`, `store_unavailable`, `store_busy`, `store_foreign`
    /// (also for a schema that has to be migrated first), `store_corrupt`,
    /// `schema_newer`. Then nothing was changed. The message names the database.
    pub async fn open(&self, access: Access) -> Result<Database> {
        match self.backend.open(access).await {
            Ok(opened) => Ok(Database { opened, url: self.url.clone() }),
            Err(error) => Err(named(&self.url, error)),
        }
    }

    /// Checks whether the database can keep the log's guarantees: version, rights, topology,
    /// durability, clock, schema and structure. Probes that it writes are rolled back. Returns the
    /// database too, open for reading, if its schema is current.
    pub async fn examine(&self) -> (Report, Option<Database>) {
        let mut report = Report::default();
        let Some(found) = self.backend.examine(&mut report).await else {
            return (report, None);
        };
        let schema = self.compared(found);
        report.schema(&schema);
        if !schema.is_current() {
            return (report, None);
        }
        match self.open(Access::Read).await {
            Ok(database) => {
                // Missing tables are reported already.
                if !report.is_bad("schema") {
                    examine_structure(&database, &mut report).await;
                }
                (report, Some(database))
            }
            Err(error) => {
                report.bad("log", error.to_string(), "see the other lines");
                (report, None)
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.url).finish()
    }
}

/// SQLite's errors name the file already.
fn named(url: &StoreUrl, error: Error) -> Error {
    if url.file().is_some() { error } else { error.context(url) }
}

/// Compares tables, indexes, triggers, rules and policies with the schema.
async fn examine_structure(database: &Database, report: &mut Report) {
    let what = "structure";
    let examined = async {
        let (directory, flags) = database.documents().await?;
        let mut anomalies = database.log().examine(Extent::Definitions).await?;
        anomalies.extend(directory.examine().await?);
        anomalies.extend(flags.examine().await?);
        Ok::<_, Error>(anomalies)
    };
    match examined.await {
        Ok(anomalies) if anomalies.is_empty() => report
            .ok(what, "tables and indexes match the schema; no foreign trigger, rule or policy"),
        Ok(anomalies) => {
            for anomaly in anomalies {
                report.bad(what, anomaly.to_string(), anomaly.fix);
            }
        }
        Err(error) => report.bad(what, error.to_string(), "see the other lines"),
    }
}

/// The schema versions of a database, by component: `audit`, `directory` and `flags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaVersions {
    /// The versions in the database; empty before the first migration.
    pub found: BTreeMap<String, usize>,
    /// The versions that this program creates.
    pub known: [(&'static str, usize); 3],
}

impl SchemaVersions {
    /// The version of a component in the database; 0 if it was never created.
    pub fn of(&self, component: &str) -> usize {
        self.found.get(component).copied().unwrap_or(0)
    }

    /// Whether every component has the version that this program creates.
    pub fn is_current(&self) -> bool {
        self.known.iter().all(|(component, known)| self.of(component) == *known)
    }

    /// Whether a component must be migrated.
    pub fn is_behind(&self) -> bool {
        self.known.iter().any(|(component, known)| self.of(component) < *known)
    }

    /// The first component that a newer program has migrated, and its known version.
    pub fn newer(&self) -> Option<(&'static str, usize)> {
        self.known.into_iter().find(|(component, known)| self.of(component) > *known)
    }
}

/// An open database. Clones share its connections.
#[derive(Clone)]
pub struct Database {
    opened: Arc<dyn Opened>,
    url: StoreUrl,
}

impl Database {
    /// The log.
    pub fn log(&self) -> Arc<dyn AuditStore> {
        Arc::clone(&self.opened).log()
    }

    /// The log as its own type, such as
    /// [`SqliteAuditStore`](dezky_core::store::SqliteAuditStore): for transactions that
    /// stage events next to changes of your own tables. `None` if it is of another type.
    pub fn log_as<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let opened: Arc<dyn Any + Send + Sync> = self.opened.clone();
        opened.downcast().ok()
    }

    /// The stores in it.
    ///
    /// # Errors
    /// Those of [`Engine::open`]; the database stays open.
    pub async fn stores(&self) -> Result<Stores> {
        let documents = self.documents().await.map_err(|error| named(&self.url, error))?;
        let (directory, flags) = (Arc::new(documents.0), Arc::new(documents.1));
        Ok(Stores { log: self.log(), directory, flags, database: Some(self.clone()) })
    }

    async fn documents(&self) -> Result<(DocumentDirectory, DocumentFlagStore)> {
        let documents = Arc::clone(&self.opened).documents();
        let directory = DocumentDirectory::open(documents.clone()).await?;
        Ok((directory, DocumentFlagStore::open(documents).await?))
    }

    /// Creates the optional index for searches for rare words, on an engine that
    /// [has one](Engine::has_search_index).
    ///
    /// # Errors
    /// Those of writing; `config_invalid` if the server lacks an extension that the index needs.
    pub async fn create_search_index(&self) -> Result<()> {
        self.opened.create_search_index().await.map_err(|error| error.context(&self.url))
    }

    /// Closes the connections once all pending calls have returned.
    pub async fn close(&self) {
        self.opened.close().await;
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.url).finish()
    }
}

/// The log, directory and flags of one database. Clones share them.
#[derive(Clone)]
#[non_exhaustive]
pub struct Stores {
    /// The log.
    pub log: Arc<dyn AuditStore>,
    /// Tenants, partners and users.
    pub directory: Arc<dyn DirectoryStore>,
    /// Flags.
    pub flags: Arc<dyn FlagStore>,
    database: Option<Database>,
}

impl Stores {
    /// Stores of your own. Directory and flags must stage their events in `log`.
    pub fn new(
        log: Arc<dyn AuditStore>,
        directory: Arc<dyn DirectoryStore>,
        flags: Arc<dyn FlagStore>,
    ) -> Self {
        Self { log, directory, flags, database: None }
    }

    /// Opens a database and the stores in it. Nothing stays open after an error.
    ///
    /// # Errors
    /// Those of [`Engine::new`] and [`Engine::open`].
    pub async fn open(config: &StoreConfig, access: Access) -> Result<Self> {
        let database = Engine::new(config)?.open(access).await?;
        let stores = database.stores().await;
        if stores.is_err() {
            database.close().await;
        }
        stores
    }

    /// The database that they are in; `None` for [stores of your own](Self::new).
    pub fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// Closes the connections once all pending calls have returned.
    pub async fn close(&self) {
        if let Some(database) = &self.database {
            database.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outdated_schema_is_told_from_a_newer_one() {
        let engine = Engine::new(&StoreConfig::parse("sqlite://x.db").unwrap()).unwrap();
        let known = engine.compared(BTreeMap::new()).known;
        let compared = |component: &str, by: isize| {
            let version = |(name, known): (&str, usize)| {
                let by = if name == component { by } else { 0 };
                (name.to_owned(), known.saturating_add_signed(by))
            };
            engine.compared(known.into_iter().map(version).collect())
        };
        let said = |versions: &SchemaVersions| {
            let mut report = Report::default();
            report.schema(versions);
            assert_eq!(report.is_bad("schema"), !versions.is_current());
            format!("{report:?}")
        };
        let current = compared("audit", 0);
        assert!(current.is_current() && !current.is_behind() && current.newer().is_none());
        assert!(!said(&current).contains("Bad"));
        let older = compared("flags", -1);
        assert!(older.is_behind() && older.newer().is_none());
        assert!(said(&older).contains("flags is at version 0"));
        let newer = compared("directory", 1);
        assert_eq!(newer.newer().map(|(component, _)| component), Some("directory"));
        assert!(!newer.is_behind() && said(&newer).contains("upgrade dezky"));
    }
}
