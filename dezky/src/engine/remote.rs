//! Shared by the engines that are servers.

use std::net::IpAddr;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::{Error, ErrorKind, Result};

use super::Report;
use crate::url::{RemoteUrl, StoreConfig};
use crate::within::within;

/// The maximum time for one answer of a server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A server at a URL.
pub(super) struct Server {
    pub(super) url: RemoteUrl,
    pub(super) config: StoreConfig,
}

impl Server {
    pub(super) fn new(url: &RemoteUrl, config: &StoreConfig) -> Self {
        Self { url: url.clone(), config: config.clone() }
    }
}

/// Reports the error of a server that doesn't answer.
pub(super) fn answered<T>(answer: Result<T>, fix: &str, report: &mut Report) -> Option<T> {
    answer.map_err(|error| report.bad("server", error.to_string(), fix)).ok()
}

/// Waits for a server's answer to one question.
pub(super) async fn answer<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    expect_within(ANSWER_TIMEOUT, "answer", asked).await
}

/// Waits for `work`, which results in `what`.
pub(super) async fn expect_within<T>(
    timeout: Duration,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    within(&TokioRuntime, timeout, work).await.unwrap_or_else(|| {
        let problem = format!("no {what} within {} s", timeout.as_secs());
        Err(Error::new(ErrorKind::StoreUnavailable, problem))
    })
}

/// Whether a host is this machine, so that nobody can intercept the connection.
pub(super) fn is_local(host: &str) -> bool {
    host.is_empty()
        || host == "localhost"
        || host.starts_with('/')
        || host.starts_with("%2F")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
