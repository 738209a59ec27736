//! The server's life: bind, open the store, start the workers, and end in order.
//!
//! Stands above the rooms, because it puts them together.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use dezky::Platform;
use dezky_core::store::AuditStore;
use dezky_ingest::Pump;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::flag_feed::FlagFeed;
use crate::app::head_file::{HeadFile, UpdateError};
use crate::app::{App, AppState, workers};
use crate::config::{Config, reason};
use crate::failure::Failure;
use crate::http::listener;
use crate::router::router;
use crate::{api, store};

/// Binds `listen`; `fix` is the advice if the port is taken.
pub async fn bind(listen: SocketAddr, fix: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(listen).await.map_err(|error| {
        let problem = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!("the port is in use: {fix}"),
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine does not have this address: name one that it has".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => {
                "permission denied: use a port from 1024 on".to_owned()
            }
            _ => reason(&error),
        };
        Failure::usage(format!("listen {listen}: {problem}"))
    })
}

/// A running server: its listener and its workers, until [`stop`](Self::stop).
pub struct Running {
    address: SocketAddr,
    state: AppState,
    stopping: watch::Sender<bool>,
    tasks: JoinSet<Ended>,
    /// The names of the tasks.
    parts: Vec<&'static str>,
}

/// A part of the server that has ended.
struct Ended {
    part: &'static str,
    /// The reason for which the server has to end, if there is one.
    reason: Option<String>,
}

impl Running {
    /// Opens the store, creates it if it is missing, and starts to answer on `listener` and to
    /// follow the sources. On an error nothing is running.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, Failure> {
        let address = listener
            .local_addr()
            .map_err(|error| Failure::usage(format!("listen: {}", reason(&error))))?;
        let stopping = watch::Sender::new(false);
        let state = open(config, FlagFeed::new(stopping.subscribe())).await?;
        let pumps = workers::pumps(&state)?;
        let mut running =
            Self { address, state, stopping, tasks: JoinSet::new(), parts: Vec::new() };
        running.spawn_http(listener);
        running.spawn_workers();
        for pump in pumps {
            running.spawn_pump(pump);
        }
        Ok(running)
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The log.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.state.platform.store
    }

    /// The routes that read the timeline, to be put behind an authenticator of your own. It puts
    /// each caller's [`Scope`](crate::Scope) into the request's extensions, without which nothing
    /// is readable, and the [`Actor`](dezky_core::Actor) who is named by the events of exports.
    pub fn audit_routes(&self) -> Router {
        api::audit::readers().with_state(Arc::clone(&self.state))
    }

    /// The number of open streams of the timeline.
    pub fn audit_streams(&self) -> usize {
        self.state.audit.feed.readers()
    }

    /// Log, directory and flags.
    pub fn platform(&self) -> &Platform {
        &self.state.platform
    }

    /// Runs `pump` until the server stops.
    pub fn spawn_pump(&mut self, mut pump: Pump) {
        let stop = self.stopped();
        self.state.add_pump(pump.handle());
        self.spawn("ingest", async move { pump.run(stop).await });
    }

    /// Spawns a part of the server that ends when the server stops.
    fn spawn(&mut self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn_ending(part, async move {
            work.await;
            None
        });
    }

    /// Spawns a part that may end on its own and return a reason for the server to stop as well.
    fn spawn_ending(
        &mut self,
        part: &'static str,
        work: impl Future<Output = Option<String>> + Send + 'static,
    ) {
        self.parts.push(part);
        self.tasks.spawn(async move { Ended { part, reason: work.await } });
    }

    fn spawn_http(&mut self, listener: TcpListener) {
        let routes = router(Arc::clone(&self.state));
        let stop = self.stopped();
        self.spawn("http", listener::serve(listener, routes, self.state.config.http, stop));
    }

    fn spawn_workers(&mut self) {
        let platform = &self.state.platform;
        let (store, log, live) =
            (Arc::clone(&platform.store), Arc::clone(&platform.log), platform.live.clone());
        let (state, stop) = (Arc::clone(&self.state), self.stopped());
        self.spawn_ending("relay", workers::relay(state, stop));
        let (state, stop) = (Arc::clone(&self.state), self.stopped());
        self.spawn("store watch", workers::watch_store(state, stop));
        if let Some(status) = log.spool_status() {
            tracing::info!(pending = status.pending, "the spool is open");
            let stop = self.stopped();
            self.spawn("spool", async move { log.run_spool(stop).await });
        }
        let (head_file, stop) = (HeadFile::new(&self.state.config.head_path), self.stopped());
        self.spawn_ending("head", workers::write_heads(store, head_file, stop));
        let state = Arc::clone(&self.state);
        self.spawn("timeline streams", async move {
            let (store, runtime) = (&state.platform.store, state.platform.runtime());
            state.audit.feed.run(Arc::clone(store), Arc::clone(runtime)).await;
        });
        let state = Arc::clone(&self.state);
        self.spawn("exports", async move { state.audit.exports_ended().await });
        let issuers: Vec<_> = self.state.guard.issuers().iter().cloned().collect();
        for issuer in issuers {
            let stop = self.stopped();
            self.spawn("issuer", async move { issuer.run(stop).await });
        }
        let stop = self.stopped();
        self.spawn("flags", async move { live.run(stop).await });
    }

    /// Resolves when the server stops.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopping = self.stopping.subscribe();
        async move {
            // An error means that the sender is gone, so the server is stopping as well.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        }
    }

    /// Resolves when a part of the server ended unexpectedly. It is not restarted, so the server
    /// should end as well. Cancel-safe.
    pub async fn failed(&mut self) -> Failure {
        match self.tasks.join_next().await {
            Some(Ok(Ended { part, reason: None })) => {
                Failure::failed(format!("{part}: ended unexpectedly: see the log, and restart"))
            }
            Some(Ok(Ended { reason: Some(reason), .. })) => Failure::failed(reason),
            _ => Failure::failed("a worker panicked: see the log, and restart"),
        }
    }

    /// Stops accepting connections, finishes the requests and ticks in progress, and closes the
    /// store.
    ///
    /// # Errors
    /// If that takes longer than the shutdown timeout, or if a part panicked. Even then,
    /// acknowledged events are in the log.
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
            write_last_head(&self.state).await;
            self.state.platform.close().await;
        };
        match tokio::time::timeout(timeout, ending).await {
            Ok(()) if whole => Ok(()),
            Ok(()) => Err(Failure::failed("a worker panicked: see the log")),
            Err(_) => Err(Failure::failed(format!(
                "{} did not finish within {} s and was aborted (shutdown_timeout_seconds)",
                waiting_for.join(", "),
                timeout.as_secs()
            ))),
        }
    }
}

/// Writes the final head for the next start.
async fn write_last_head(state: &App) {
    let head_file = HeadFile::new(&state.config.head_path);
    if let Err(error) = head_file.update(&*state.platform.store).await {
        tracing::warn!(%error, "the final head could not be written to its file");
    }
}

async fn open(config: Config, flag_feed: FlagFeed) -> Result<AppState, Failure> {
    let platform = open_platform(&config).await?;
    App::new(config, platform, flag_feed).map(Arc::new)
}

/// Opens the platform, unless its log went back since the head was written.
async fn open_platform(config: &Config) -> Result<Platform, Failure> {
    let head_file = HeadFile::new(&config.head_path);
    let is_missing = async || Ok(store::schema(&config.store).await?.found.is_empty());
    head_file.check_missing(is_missing).await?;
    let (store, access, spool) = (&config.store, config.access, config.spool.as_ref());
    let platform = store::open_with_spool(store, access, spool, &config.flags).await?;
    let mut checked = head_file.check(&*platform.store).await;
    if checked.is_ok() {
        // Written at the start, so that a path that can't be written is an error now.
        checked = match head_file.update(&*platform.store).await {
            // It is written once the disk has room; until then reads are served.
            Err(error @ UpdateError::NoRoom(_)) => {
                tracing::error!(%error, "the head could not be written to its file");
                Ok(())
            }
            Err(UpdateError::File(failure)) => Err(failure),
            Err(error) => Err(Failure::failed(error.to_string())),
            Ok(()) => Ok(()),
        };
    }
    if checked.is_err() {
        platform.close().await;
    }
    checked.map(|()| platform)
}
