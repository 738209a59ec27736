//! The engines: one database with log, directory and flags in it, whichever it is.

use std::sync::Arc;

use dezky_core::directory::{DirectoryStore, SqliteDirectory};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AuditStore, SqliteAuditStore, SqliteConfig};
use dezky_core::{Error, ErrorKind};
use dezky_flags::store::{FlagStore, SqliteFlagStore};

use crate::config::{StoreConfig, StoreUrl};
use crate::error::Failure;

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To write; what is missing is made, and the schema is brought up to date.
    Migrate,
    /// To write; it must be there and up to date.
    Write,
    /// To look alone.
    Read,
}

/// The log of a database, and the way to what else is in there.
#[derive(Clone)]
pub enum Engine {
    /// A file.
    Sqlite(Arc<SqliteAuditStore>),
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
                if access != Access::Migrate && !path.exists() {
                    return Err(Failure::usage(format!(
                        "store {}: there is no such file: start the server once, or name another by --store",
                        config.url
                    )));
                }
                open_sqlite(config, path, access).await
            }
            StoreUrl::Postgres(_) | StoreUrl::Mongodb(_) => todo!(),
        };
        opened.map_err(|error| refused(config, access, &error))
    }

    /// The log.
    pub fn log(&self) -> Arc<dyn AuditStore> {
        match self {
            Self::Sqlite(log) => log.clone(),
        }
    }

    /// The directory beside the log.
    pub async fn directory(&self) -> Result<Arc<dyn DirectoryStore>, Error> {
        Ok(match self {
            Self::Sqlite(log) => Arc::new(SqliteDirectory::open(&log.database()).await?),
        })
    }

    /// The flags beside the log.
    pub async fn flags(&self) -> Result<Arc<dyn FlagStore>, Error> {
        Ok(match self {
            Self::Sqlite(log) => Arc::new(SqliteFlagStore::open(&log.database()).await?),
        })
    }

    /// Ends the connections, after those who use them.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(log) => log.close().await,
        }
    }
}

async fn open_sqlite(
    config: &StoreConfig,
    path: &std::path::Path,
    access: Access,
) -> Result<Engine, Error> {
    let open = async |create| {
        let mut sqlite = SqliteConfig::new(path);
        sqlite.create = create;
        sqlite.busy_timeout = config.lock_timeout;
        SqliteAuditStore::open(sqlite, &TokioRuntime).await.map(|log| Engine::Sqlite(Arc::new(log)))
    };
    if access == Access::Write {
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
