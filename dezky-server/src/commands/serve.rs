use super::print;
use super::signals::Signals;
use crate::config::Settings;
use crate::failure::Failure;
use crate::lifecycle::{Running, bind};
use crate::telemetry::logging;

/// The number of open files needed in addition to connections.
const OTHER_FILES: usize = 128;

/// `serve`: until SIGTERM or SIGINT.
pub(crate) async fn run(settings: &Settings) -> Result<(), Failure> {
    let config = settings.config()?;
    let warnings = config.check()?;
    logging::start(&config.log);
    let mut signals = Signals::listen()?;
    let listener =
        bind(config.listen, "end the program that holds it, or set DEZKY_LISTEN to another")
            .await?;
    let (store, endpoints) = (config.store.url.clone(), config.stalwart.len());
    let follows_ocis = config.ocis.is_some() && config.ingest_enabled;
    let polls_authentik = config.authentik.is_some() && config.ingest_enabled;
    let too_few_files = open_files_warning(config.http.max_connections);
    let mut running = tokio::select! {
        started = Running::start(config, listener) => started?,
        // Opening a store may take long; stopping meanwhile loses nothing.
        () = signals.next() => {
            tracing::info!("stopping before the store is open");
            return Ok(());
        }
    };
    for warning in warnings.into_iter().chain(too_few_files) {
        tracing::warn!("{warning}");
    }
    tracing::info!(%store, stalwart_webhooks = endpoints, follows_ocis, polls_authentik, "started");
    let address = running.address();
    if let Err(failure) = print(&format!("dezky-server listens on http://{address}\n")) {
        tracing::warn!(%failure, %address, "listening, but the address could not be printed");
    }
    let failed = tokio::select! {
        () = signals.next() => None,
        failure = running.failed() => Some(failure),
    };
    tracing::info!("ending");
    signals.end_at_once_on_the_next();
    let stopped = running.stop().await;
    failed.map_or(stopped, Err)
}

/// A warning if the process may open fewer files than connections and stores need.
fn open_files_warning(connections: usize) -> Option<String> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let files: usize = line.split_whitespace().next()?.parse().ok()?;
    let needed = connections.saturating_add(OTHER_FILES);
    (files < needed).then(|| {
        format!(
            "the process may open {files} files, and {connections} connections need {needed}: raise the limit (LimitNOFILE, ulimit -n), or lower http.max_connections"
        )
    })
}
