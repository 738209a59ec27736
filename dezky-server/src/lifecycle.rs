//! The server's life: bind, open the store, start the workers, and end in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dezky::Platform;
use dezky_core::store::AuditStore;
use dezky_ingest::authentik::{AuthentikConfig, AuthentikSource};
use dezky_ingest::generic::{GenericReceiver, MappedLines, Mapping};
use dezky_ingest::ocis::{OcisConfig, OcisTail};
use dezky_ingest::stalwart::StalwartReceiver;
use dezky_ingest::{Intake, Pump, PumpConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bodies::Bodies;
use crate::config::{AuthentikApi, Config, FollowedFile, OcisLog, SourceConfig, reason};
use crate::error::Failure;
use crate::routes::ofrep::{EventStreams, SetDigest};
use crate::state::{App, AppState};
use crate::store;
use crate::store_watch::{self, StoreWatch};
use crate::webhooks::Webhook;
use crate::witness::{self, Unnoted, Witness};
use crate::{http, routes};

/// The lease of a worker. A server that was killed gives nothing back: the next one
/// waits for at most one and a half of it.
const LEASE_TTL: Duration = Duration::from_secs(10);

/// Binds `listen`; `fix` ends the message if the port is taken.
pub async fn bind(listen: SocketAddr, fix: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(listen).await.map_err(|error| {
        let problem = match error.kind() {
            std::io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => reason(&error),
        };
        Failure::usage(format!("listen {listen}: {problem}: {fix}"))
    })
}

/// A server that runs: its listener and its workers, until [`stop`](Self::stop).
pub struct Running {
    address: SocketAddr,
    state: AppState,
    stopping: watch::Sender<bool>,
    tasks: JoinSet<Ended>,
    /// What runs in `tasks`.
    parts: Vec<&'static str>,
}

/// A part of the server that has ended.
struct Ended {
    part: &'static str,
    /// Why, if nobody asked it to.
    reason: Option<String>,
}

impl Running {
    /// Opens the store, making it if it is missing, and starts to answer on
    /// `listener` and to follow the sources. Nothing was started if it fails.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, Failure> {
        let address = listener
            .local_addr()
            .map_err(|error| Failure::usage(format!("listen: {}", reason(&error))))?;
        let stopping = watch::Sender::new(false);
        let state = open(config, EventStreams::new(stopping.subscribe())).await?;
        let pumps = pumps(&state)?;
        let mut running =
            Self { address, state, stopping, tasks: JoinSet::new(), parts: Vec::new() };
        running.spawn_http(listener);
        running.spawn_relay();
        running.spawn_store_watch();
        running.spawn_spool();
        running.spawn_witness();
        running.spawn_flags();
        for pump in pumps {
            running.spawn_pump(pump);
        }
        Ok(running)
    }

    /// The address that it answers on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The log.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.state.store
    }

    /// Log, directory and flags.
    pub fn platform(&self) -> &Platform {
        &self.state.platform
    }

    /// Runs `pump` until the end.
    pub fn spawn_pump(&mut self, mut pump: Pump) {
        let stop = self.stopped();
        self.state.add_pump(pump.handle());
        self.spawn("ingest", async move { pump.run(stop).await });
    }

    /// Runs a part of the server, which ends when it is told that the end has begun.
    fn spawn(&mut self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn_ending(part, async move {
            work.await;
            None
        });
    }

    /// The same of a part that may end by itself, and the server with it, for the reason
    /// that it gives.
    fn spawn_ending(
        &mut self,
        part: &'static str,
        work: impl Future<Output = Option<String>> + Send + 'static,
    ) {
        self.parts.push(part);
        self.tasks.spawn(async move { Ended { part, reason: work.await } });
    }

    fn spawn_http(&mut self, listener: TcpListener) {
        let routes = routes::router(Arc::clone(&self.state));
        let stop = self.stopped();
        self.spawn("http", http::serve(listener, routes, self.state.config.http, stop));
    }

    /// Moves what was staged into the log. Ends, and the server with it, when the
    /// database's files were taken away from under it: what it writes would be lost.
    fn spawn_relay(&mut self) {
        let state = Arc::clone(&self.state);
        let stop = self.stopped();
        self.spawn_ending("relay", async move {
            let error = state.run_relay(stop).await.err()?;
            tracing::error!(code = error.code(), %error, "the server ends");
            Some(format!("store: {error}"))
        });
    }

    /// Follows whether the store takes writes.
    fn spawn_store_watch(&mut self) {
        let state = Arc::clone(&self.state);
        let stop = self.stopped();
        self.spawn("store watch", async move {
            let watch = async {
                loop {
                    state.store_watch.look_if_suspected(&state).await;
                    tokio::time::sleep(store_watch::INTERVAL).await;
                }
            };
            tokio::select! {
                () = stop => {}
                () = watch => {}
            }
        });
    }

    /// Moves into the log what was kept while the store was away.
    fn spawn_spool(&mut self) {
        if let Some(status) = self.state.log.spool_status() {
            tracing::info!(pending = status.pending, "the spool is open");
            let log = Arc::clone(&self.state.log);
            let stop = self.stopped();
            self.spawn("spool", async move { log.run_spool(stop).await });
        }
    }

    /// Notes how far the log has come. Ends, and the server with it, when the log goes
    /// back: somebody restored the database, and what is appended now would hide it.
    fn spawn_witness(&mut self) {
        let store = Arc::clone(&self.state.store);
        let witness = Witness::new(&self.state.config.head_path);
        let stop = self.stopped();
        self.spawn_ending("head", async move {
            tokio::pin!(stop);
            loop {
                tokio::select! {
                    () = &mut stop => return None,
                    () = tokio::time::sleep(witness::INTERVAL) => {}
                }
                match witness.follow(&*store).await {
                    Ok(()) => {}
                    Err(error @ Unnoted::WentBack { .. }) => {
                        tracing::error!(%error, "the server ends");
                        return Some(error.to_string());
                    }
                    Err(error) => tracing::warn!(%error, "the head is not noted"),
                }
            }
        });
    }

    /// Lets the flags that decide follow their store.
    fn spawn_flags(&mut self) {
        let live = self.state.live.clone();
        let stop = self.stopped();
        self.spawn("flags", async move { live.run(stop).await });
    }

    /// Resolves when the end has begun.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopping = self.stopping.subscribe();
        async move {
            // An error says that the sender is gone, which is an end too.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        }
    }

    /// Resolves when a part of the server ended though nobody asked it to; it
    /// does not come back, so the server should end as well. Cancel-safe.
    pub async fn failed(&mut self) -> Failure {
        match self.tasks.join_next().await {
            Some(Ok(Ended { part, reason: None })) => {
                Failure::no(format!("{part}: ended unexpectedly: see the log, and start again"))
            }
            Some(Ok(Ended { reason: Some(reason), .. })) => Failure::no(reason),
            _ => Failure::no("a worker broke down: see the log, and start again"),
        }
    }

    /// Takes no more connections, finishes the requests and ticks that have
    /// begun, and closes the store.
    ///
    /// # Errors
    /// If that takes longer than the shutdown timeout, or a part broke down.
    /// What was acknowledged is in the log all the same.
    pub async fn stop(mut self) -> Result<(), Failure> {
        self.stopping.send_replace(true);
        let timeout = self.state.config.shutdown_timeout;
        let (mut whole, mut waiting_for) = (true, self.parts);
        let ending = async {
            while let Some(part) = self.tasks.join_next().await {
                whole &= part.is_ok();
                waiting_for.retain(|name| part.as_ref().is_ok_and(|ended| *name != ended.part));
            }
            waiting_for = vec!["the store"];
            note_head(&self.state).await;
            self.state.close().await;
        };
        match tokio::time::timeout(timeout, ending).await {
            Ok(()) if whole => Ok(()),
            Ok(()) => Err(Failure::no("a worker broke down: see the log")),
            Err(_) => Err(Failure::no(format!(
                "{} did not finish within {} s and was cut off (shutdown_timeout_seconds)",
                waiting_for.join(", "),
                timeout.as_secs()
            ))),
        }
    }
}

/// Notes the last head, for the next start.
async fn note_head(state: &App) {
    let witness = Witness::new(&state.config.head_path);
    if let Err(error) = witness.follow(&*state.store).await {
        tracing::warn!(%error, "the last head is not noted");
    }
}

/// Opens the platform, unless its log went back since the last start.
async fn open_platform(config: &Config) -> Result<Platform, Failure> {
    let witness = Witness::new(&config.head_path);
    witness.check_missing(&config.store).await?;
    let (store, access, spool) = (&config.store, config.access, config.spool.as_ref());
    let platform = store::open_with_spool(store, access, spool, &config.flags).await?;
    let mut checked = witness.check(&*platform.store).await;
    if checked.is_ok() {
        // Now rather than later, so that a place where it can't be written stops the start.
        checked = match witness.follow(&*platform.store).await {
            // It will be noted once there is room; until then reads are served.
            Err(error @ Unnoted::NoRoom(_)) => {
                tracing::error!(%error, "the head is not noted");
                Ok(())
            }
            Err(Unnoted::File(failure)) => Err(failure),
            Err(error) => Err(Failure::no(error.to_string())),
            Ok(()) => Ok(()),
        };
    }
    if checked.is_err() {
        platform.close().await;
    }
    checked.map(|()| platform)
}

async fn open(config: Config, streams: EventStreams) -> Result<AppState, Failure> {
    let platform = open_platform(&config).await?;
    let mut stalwart = BTreeMap::new();
    for (source, secrets) in &config.stalwart {
        let mut receiver = StalwartReceiver::new(source, secrets.clone(), platform.intake.clone())
            .map_err(|error| Failure::usage(error.to_string()))?
            .with_max_events(config.stalwart_max_events);
        if let Some(max_age) = config.stalwart_max_age {
            receiver = receiver.with_max_age(max_age);
        }
        stalwart.insert(source.clone(), Arc::new(receiver));
    }
    let max_body_bytes = config.max_body_bytes.max(routes::MAX_RECORD_BYTES);
    let bodies = Bodies::new(config.http.body_memory, max_body_bytes);
    let receives = |(name, source): (&String, &SourceConfig)| {
        let secrets = source.secrets.clone()?;
        let receiver =
            GenericReceiver::new(source.mapping.clone(), secrets, platform.intake.clone())
                .with_scheme(source.scheme.clone())
                .with_max_body_bytes(config.max_body_bytes);
        Some((name.clone(), Arc::new(receiver)))
    };
    let sources: BTreeMap<_, _> = config.sources.iter().filter_map(receives).collect();
    let statuses = stalwart.keys().chain(sources.keys());
    let statuses = statuses.map(|name| (name.clone(), Webhook::default())).collect();
    Ok(Arc::new(App {
        config,
        platform,
        stalwart,
        sources,
        bodies,
        statuses,
        store_watch: StoreWatch::default(),
        pumps: Mutex::default(),
        streams,
        flags_digest: SetDigest::default(),
    }))
}

/// The workers for what is configured, unless workers are switched off.
fn pumps(state: &App) -> Result<Vec<Pump>, Failure> {
    if !state.config.ingest_enabled {
        return Ok(Vec::new());
    }
    let ocis = state.config.ocis.as_ref();
    let ocis = ocis.map(|log| follow_ocis(log, &state.intake, PumpConfig::default()));
    let authentik = state
        .config
        .authentik
        .as_ref()
        .map(|api| poll_authentik(api, &state.platform, AuthentikConfig::pump_config()));
    let follow = |source: &SourceConfig| {
        let file = source.file.as_ref()?;
        Some(follow_file(&source.mapping, file, &state.intake, PumpConfig::default()))
    };
    let files = state.config.sources.values().filter_map(follow);
    ocis.into_iter().chain(authentik).chain(files).collect()
}

/// A pump from the events of Authentik.
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

/// A pump from the audit log of oCIS.
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

/// A pump from the file of a declared source.
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
