//! The background work of the server. Each worker is a future; the lifecycle spawns it.

use std::sync::Arc;
use std::time::Duration;

use dezky::Platform;
use dezky_core::store::AuditStore;
use dezky_ingest::authentik::{AuthentikConfig, AuthentikSource};
use dezky_ingest::generic::{MappedLines, Mapping};
use dezky_ingest::ocis::{OcisConfig, OcisTail};
use dezky_ingest::{Intake, Pump, PumpConfig};

use super::head_file::{HeadFile, UpdateError};
use super::{App, AppState};
use crate::config::{AuthentikApi, FollowedFile, OcisLog, SourceConfig};
use crate::failure::Failure;

/// The interval at which the head is written to its file while it moves.
const HEAD_INTERVAL: Duration = Duration::from_secs(3);
/// The interval at which the store watch checks whether there is reason for a probe.
const STORE_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The lease of a pump. A server that was killed releases nothing: the next one waits for at
/// most one and a half times this.
const LEASE_TTL: Duration = Duration::from_secs(10);

/// Moves staged events into the log until `stop` resolves. Returns a reason for the server
/// to end if the database's files were replaced: what it writes would be lost.
pub(crate) async fn relay(
    state: AppState,
    stop: impl Future<Output = ()> + Send,
) -> Option<String> {
    let error = state.platform.run_relay(stop).await.err()?;
    tracing::error!(code = error.code(), %error, "the server ends");
    Some(format!("store: {error}"))
}

/// Keeps track of whether the store takes writes, until `stop` resolves.
pub(crate) async fn watch_store(state: AppState, stop: impl Future<Output = ()>) {
    let watch = async {
        loop {
            let is_suspect = is_store_suspect(&state);
            let store = &*state.platform.store;
            state.store_watch.probe_if_needed(store, is_suspect).await;
            tokio::time::sleep(STORE_WATCH_INTERVAL).await;
        }
    };
    tokio::select! {
        () = stop => {}
        () = watch => {}
    }
}

/// Whether events wait in the spool, or a pump meets errors of the store.
fn is_store_suspect(state: &App) -> bool {
    let is_waiting = state.platform.log.spool_status().is_some_and(|spool| spool.pending > 0);
    is_waiting
        || state.pumps().iter().map(dezky_ingest::PumpHandle::status).any(|pump| {
            pump.failures > 0
                && pump.last_error.is_some_and(|error| error.code.starts_with("store_"))
        })
}

/// Writes the log's head to its file until `stop` resolves. Returns a reason for the server
/// to end if the log goes back: the database was restored under it, and what is appended now
/// would hide that.
pub(crate) async fn write_heads(
    store: Arc<dyn AuditStore>,
    head_file: HeadFile,
    stop: impl Future<Output = ()>,
) -> Option<String> {
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return None,
            () = tokio::time::sleep(HEAD_INTERVAL) => {}
        }
        match head_file.update(&*store).await {
            Ok(()) => {}
            Err(error @ UpdateError::WentBack { .. }) => {
                tracing::error!(%error, "the server ends");
                return Some(error.to_string());
            }
            Err(error) => tracing::warn!(%error, "the head could not be written to its file"),
        }
    }
}

/// The pumps of the configured sources; none if `ingest_enabled` is off.
pub(crate) fn pumps(state: &App) -> Result<Vec<Pump>, Failure> {
    if !state.config.ingest_enabled {
        return Ok(Vec::new());
    }
    let ocis = state.config.ocis.as_ref();
    let ocis = ocis.map(|log| follow_ocis(log, &state.platform.intake, PumpConfig::default()));
    let authentik = state
        .config
        .authentik
        .as_ref()
        .map(|api| poll_authentik(api, &state.platform, AuthentikConfig::pump_config()));
    let follow = |source: &SourceConfig| {
        let file = source.file.as_ref()?;
        Some(follow_file(&source.mapping, file, &state.platform.intake, PumpConfig::default()))
    };
    let files = state.config.sources.values().filter_map(follow);
    ocis.into_iter().chain(authentik).chain(files).collect()
}

/// A pump for the events of Authentik.
pub(crate) fn poll_authentik(
    api: &AuthentikApi,
    platform: &Platform,
    mut pump: PumpConfig,
) -> Result<Pump, Failure> {
    let mut config = AuthentikConfig::new(&api.url, api.token.clone());
    config.overlap = config.overlap.max(api.poll * 2);
    config.poll_interval = api.poll;
    config.admin_groups.clone_from(&api.admin_groups);
    let source = AuthentikSource::new(config, Arc::clone(platform.intake.runtime()))
        .map_err(|error| Failure::usage(format!("authentik: {error}")))?
        .with_directory(platform.tenants.clone());
    pump.interval = api.poll;
    pump.lease_ttl = LEASE_TTL;
    Ok(Pump::new(Box::new(source), platform.intake.clone(), pump))
}

/// A pump for the audit log of oCIS.
pub(crate) fn follow_ocis(
    log: &OcisLog,
    intake: &Intake,
    mut pump: PumpConfig,
) -> Result<Pump, Failure> {
    let mut config = OcisConfig::new(&log.path);
    config.max_line_bytes = log.max_line_bytes;
    config.spaces.clone_from(&log.spaces);
    config.service_accounts.clone_from(&log.service_accounts);
    let tail = OcisTail::new(config, Arc::clone(intake.runtime()))
        .map_err(|error| Failure::usage(format!("ocis: {error}")))?
        .with_log(Arc::clone(intake.store()));
    pump.interval = log.poll;
    pump.lease_ttl = LEASE_TTL;
    Ok(Pump::new(Box::new(tail), intake.clone(), pump))
}

/// A pump for the file of a declared source.
fn follow_file(
    mapping: &Mapping,
    file: &FollowedFile,
    intake: &Intake,
    mut pump: PumpConfig,
) -> Result<Pump, Failure> {
    let runtime = Arc::clone(intake.runtime());
    let tail = MappedLines::follow(mapping.clone(), &file.path, file.max_line_bytes, runtime)
        .map_err(|error| Failure::usage(format!("sources.{}: {error}", mapping.source())))?;
    pump.interval = file.poll;
    pump.lease_ttl = LEASE_TTL;
    Ok(Pump::new(Box::new(tail), intake.clone(), pump))
}
