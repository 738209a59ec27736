//! The engines: one database with log, directory and flags in it, whichever it is.

use std::path::Path;
use std::sync::Arc;

use dezky_core::directory::{DirectoryStore, DocumentDirectory};
use dezky_core::documents::Database;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AuditStore, MongoAuditStore, MongoConfig, PostgresAuditStore, PostgresConfig, SqliteAuditStore,
    SqliteConfig,
};
use dezky_core::{Error, ErrorKind};
use dezky_flags::store::{DocumentFlagStore, FlagStore};

use crate::config::{RemoteUrl, StoreConfig, StoreUrl, folder_of};
use crate::error::Failure;

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To write; what is missing is made, and the schema is brought up to date.
    Migrate,
    /// To write; it must be there and up to date.
    Write,
    /// To look, and to write where that is allowed; it must be there and up to date.
    Use,
    /// To look alone.
    Read,
}

impl Access {
    /// Whether it is of no use without the right to write.
    fn must_write(self) -> bool {
        matches!(self, Self::Migrate | Self::Write)
    }
}

/// The log of a database, and the way to what else is in there.
#[derive(Clone)]
pub enum Engine {
    /// A file.
    Sqlite(Arc<SqliteAuditStore>),
    /// A PostgreSQL server.
    Postgres(Arc<PostgresAuditStore>),
    /// A MongoDB server.
    Mongodb(Arc<MongoAuditStore>),
}

/// Log, directory and flags of one database.
#[derive(Clone)]
pub struct Stores {
    /// The log.
    pub log: Arc<dyn AuditStore>,
    /// Tenants, partners and users.
    pub directory: Arc<dyn DirectoryStore>,
    /// Flags.
    pub flags: Arc<dyn FlagStore>,
    /// What they are in.
    pub engine: Engine,
}

impl Stores {
    /// Opens all three; nothing stays open if one can't be.
    pub async fn open(config: &StoreConfig, access: Access) -> Result<Self, Failure> {
        let engine = Engine::open(config, access).await?;
        let parts = async { Ok((engine.directory().await?, engine.flags().await?)) };
        match parts.await {
            Ok((directory, flags)) => Ok(Self { log: engine.log(), directory, flags, engine }),
            Err(error) => {
                engine.close().await;
                Err(refused(config, access, &error))
            }
        }
    }

    /// Ends the connections, after those who use them.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

impl Engine {
    /// Opens the log.
    pub async fn open(config: &StoreConfig, access: Access) -> Result<Self, Failure> {
        let opened = match &config.url {
            StoreUrl::Sqlite(path) => {
                // Without its folder it is the path that is wrong, as opening says.
                if access != Access::Migrate && !path.exists() && folder_of(path).is_dir() {
                    return Err(Failure::usage(format!(
                        "store {}: there is no such file: start the server once, or name another",
                        config.url
                    )));
                }
                open_sqlite(config, path, access).await
            }
            StoreUrl::Postgres(url) => open_postgres(config, url, access).await,
            StoreUrl::Mongodb(url) => open_mongodb(config, url, access).await,
        };
        opened.map_err(|error| refused(config, access, &error))
    }

    /// The log.
    pub fn log(&self) -> Arc<dyn AuditStore> {
        match self {
            Self::Sqlite(log) => log.clone(),
            Self::Postgres(log) => log.clone(),
            Self::Mongodb(log) => log.clone(),
        }
    }

    /// The directory of the log's database.
    pub async fn directory(&self) -> Result<Arc<dyn DirectoryStore>, Error> {
        Ok(Arc::new(DocumentDirectory::open(self.database()).await?))
    }

    /// The flags of the log's database.
    pub async fn flags(&self) -> Result<Arc<dyn FlagStore>, Error> {
        Ok(Arc::new(DocumentFlagStore::open(self.database()).await?))
    }

    fn database(&self) -> Database {
        match self {
            Self::Sqlite(log) => (&log.database()).into(),
            Self::Postgres(log) => (&log.database()).into(),
            Self::Mongodb(log) => (&log.database()).into(),
        }
    }

    /// Ends the connections, after those who use them.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(log) => log.close().await,
            Self::Postgres(log) => log.close().await,
            Self::Mongodb(log) => log.close().await,
        }
    }
}

async fn open_sqlite(config: &StoreConfig, path: &Path, access: Access) -> Result<Engine, Error> {
    let open = async |create| {
        let mut sqlite = SqliteConfig::new(path);
        sqlite.create = create;
        sqlite.must_write = access.must_write();
        sqlite.busy_timeout = config.lock_timeout;
        SqliteAuditStore::open(sqlite, &TokioRuntime).await.map(|log| Engine::Sqlite(Arc::new(log)))
    };
    if matches!(access, Access::Write | Access::Use) {
        // What may write also migrates, so it is looked at first.
        let reader = open(false).await?;
        let parts = async {
            reader.directory().await?;
            reader.flags().await
        };
        let looked = parts.await;
        reader.close().await;
        looked?;
    }
    open(access != Access::Read).await
}

async fn open_postgres(
    config: &StoreConfig,
    url: &RemoteUrl,
    access: Access,
) -> Result<Engine, Error> {
    let mut postgres = PostgresConfig::new(url.expose());
    postgres.max_connections = config.max_connections;
    postgres.acquire_timeout = config.acquire_timeout;
    postgres.lock_timeout = config.lock_timeout;
    postgres.statement_timeout = config.statement_timeout;
    postgres.idle_in_transaction_timeout = config.idle_timeout;
    postgres.transaction_pooler = config.transaction_pooler;
    postgres.migrate = access == Access::Migrate;
    postgres.must_write = access.must_write();
    let log = PostgresAuditStore::open(postgres, &TokioRuntime).await?;
    Ok(Engine::Postgres(Arc::new(log)))
}

async fn open_mongodb(
    config: &StoreConfig,
    url: &RemoteUrl,
    access: Access,
) -> Result<Engine, Error> {
    let mut mongodb = MongoConfig::new(url.expose());
    mongodb.max_pool_size = config.max_connections;
    mongodb.connect_timeout = config.acquire_timeout;
    mongodb.server_selection_timeout = config.acquire_timeout;
    mongodb.busy_timeout = config.lock_timeout;
    mongodb.operation_timeout = config.statement_timeout;
    mongodb.migrate = access == Access::Migrate;
    mongodb.must_write = access.must_write();
    let log = MongoAuditStore::open(mongodb, Arc::new(TokioRuntime)).await?;
    Ok(Engine::Mongodb(Arc::new(log)))
}

/// Why a store can't be opened, and what to do.
fn refused(config: &StoreConfig, access: Access, error: &Error) -> Failure {
    // The errors of a file name it.
    let said = match config.url {
        StoreUrl::Sqlite(_) => format!("store {error}"),
        StoreUrl::Postgres(_) | StoreUrl::Mongodb(_) => format!("store {}: {error}", config.url),
    };
    match error.kind() {
        ErrorKind::StoreUnavailable | ErrorKind::StoreBusy
            if !matches!(config.url, StoreUrl::Sqlite(_)) =>
        {
            Failure::no(said)
        }
        ErrorKind::StoreForeign if access != Access::Migrate => {
            Failure::usage(format!("{said} (dezky-server migrate)"))
        }
        _ => Failure::usage(said),
    }
}
