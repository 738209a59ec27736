//! The runtime that an embedder provides: clock, timers, blocking work and randomness.
//!
//! The libraries read the clock, sleep, run blocking work and draw random bytes only through
//! [`Runtime`], and never spawn tasks. It has four methods, so supporting another executor takes a
//! page of code.

#[cfg(feature = "tokio")]
mod tokio;

use std::any::Any;
use std::time::Duration;

use futures_util::future::BoxFuture;

#[cfg(feature = "tokio")]
pub use self::tokio::TokioRuntime;
use crate::Timestamp;

/// Work for [`Runtime::unblock`], and its result.
pub type BlockingWork = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// The libraries' interface to the environment.
pub trait Runtime: Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;

    /// Resolves after `duration`. Dropping the future cancels the wait.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs blocking work (file access) off the executor's threads.
    ///
    /// Call it through [`unblock`], which preserves the type.
    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>>;

    /// Fills `bytes` from a cryptographically secure generator.
    fn fill_random(&self, bytes: &mut [u8]);
}

/// Runs `work` with [`Runtime::unblock`] and returns its result.
///
/// Cancel-safety: dropping the future does not stop work that has started.
pub async fn unblock<T, F>(runtime: &dyn Runtime, work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let boxed = runtime.unblock(Box::new(move || Box::new(work()))).await;
    match boxed.downcast::<T>() {
        Ok(value) => *value,
        Err(_) => unreachable!("unblock returns what the work returned"),
    }
}
