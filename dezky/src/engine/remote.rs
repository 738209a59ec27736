//! Shared by the engines that are servers.

use std::net::IpAddr;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::{Error, ErrorKind, Result};

use crate::within::within;

/// How long one question to a server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for a server's answer to one question.
pub(super) async fn answer<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    expect_within(ANSWER_TIMEOUT, "answer", asked).await
}

/// Waits for `work`, after which there is `what`.
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

/// Whether a host is this machine, so that nobody can listen in between.
pub(super) fn is_local(host: &str) -> bool {
    host.is_empty()
        || host == "localhost"
        || host.starts_with('/')
        || host.starts_with("%2F")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
