use std::pin::pin;
use std::time::Duration;

use dezky_core::Runtime;
use futures_util::future::{Either, select};

/// Waits for `work`, at most for `timeout`.
pub(crate) async fn within<T>(
    runtime: &dyn Runtime,
    timeout: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(work), runtime.sleep(timeout)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
