//! Opens the configured store, and turns its errors into failures of the command line.

use std::sync::Arc;

use dezky::engine::{Database, Engine, SchemaVersions};
use dezky::{Access, Platform, StoreConfig, StoreUrl, Stores};
use dezky_core::rt::TokioRuntime;
use dezky_core::{Error, ErrorKind, Spool, SpoolConfig};
use dezky_flags::live::LiveConfig;

use crate::config::FlagsConfig;
use crate::failure::Failure;

/// Opens the platform: log, directory, flags and everything on top of them.
pub async fn open(config: &StoreConfig, access: Access) -> Result<Platform, Failure> {
    let stores = open_stores(config, access).await?;
    Platform::builder(stores).build().await.map_err(|error| Failure::failed(error.to_string()))
}

/// Opens the platform as a server does, with a spool and a file of flags, which from then on
/// belong to this process alone.
pub async fn open_with_spool(
    config: &StoreConfig,
    access: Access,
    spool: Option<&SpoolConfig>,
    flags: &FlagsConfig,
) -> Result<Platform, Failure> {
    let spool = match spool {
        Some(config) => {
            let spool = Spool::open(config.clone(), Arc::new(TokioRuntime)).await;
            Some(spool.map_err(|error| Failure::usage(error.to_string()))?)
        }
        None => None,
    };
    let mut live = LiveConfig::default();
    live.poll_interval = flags.poll;
    live.file.clone_from(&flags.file);
    live.count_usage = true;
    let mut platform = Platform::builder(open_stores(config, access).await?).live(live);
    if let Some(spool) = spool {
        platform = platform.spool(spool);
    }
    platform.build().await.map_err(|error| Failure::failed(error.to_string()))
}

/// Opens only the stores of log, directory and flags.
pub async fn open_stores(config: &StoreConfig, access: Access) -> Result<Stores, Failure> {
    let stores = Stores::open(config, access).await;
    stores.map_err(|error| refused(&config.url, access, &error))
}

/// Opens only the log.
pub(crate) async fn open_log(config: &StoreConfig, access: Access) -> Result<Database, Failure> {
    let refused = |error| refused(&config.url, access, &error);
    engine(config)?.open(access).await.map_err(refused)
}

/// The engine of the store. Connects to nothing.
pub(crate) fn engine(config: &StoreConfig) -> Result<Engine, Failure> {
    Engine::new(config).map_err(|error| Failure::usage(format!("store {error}")))
}

/// The schema versions of a database. Changes nothing.
pub(crate) async fn schema(config: &StoreConfig) -> Result<SchemaVersions, Failure> {
    engine(config)?.schema().await.map_err(|error| {
        let said = format!("store {error}");
        if error.is_retryable() { Failure::failed(said) } else { Failure::usage(said) }
    })
}

/// The reason why a store can't be opened, and what to do.
fn refused(url: &StoreUrl, access: Access, error: &Error) -> Failure {
    let said = format!("store {error}");
    match error.kind() {
        ErrorKind::StoreUnavailable | ErrorKind::StoreBusy if url.remote().is_some() => {
            Failure::failed(said)
        }
        ErrorKind::StoreForeign if access != Access::Migrate => {
            Failure::usage(format!("{said} (dezky-server migrate)"))
        }
        _ => Failure::usage(said),
    }
}
