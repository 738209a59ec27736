//! The runtime that an embedder plugs in: clock, timers, blocking work, randomness.
//!
//! Nothing in the libraries reads the clock, sleeps, spawns or draws random
//! bytes but through [`Runtime`]. It has four methods, so another executor is
//! a page of code.

#[cfg(feature = "tokio")]
mod tokio;

use std::any::Any;
use std::time::Duration;

use futures_util::future::BoxFuture;

#[cfg(feature = "tokio")]
pub use self::tokio::TokioRuntime;
use crate::Timestamp;

/// Work for [`Runtime::unblock`] and what it returns.
pub type BlockingWork = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// What the libraries need of the world around them.
pub trait Runtime: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;

    /// Resolves after `duration`. Dropping the future cancels the wait.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs work that blocks (files) off the executor's threads.
    ///
    /// Call it through [`unblock`], which keeps the type.
    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>>;

    /// Fills `bytes` from a cryptographically secure generator.
    fn fill_random(&self, bytes: &mut [u8]);
}

/// Runs `work` by [`Runtime::unblock`] and returns what it returned.
///
/// Cancel-safety: a dropped future does not stop work that has begun.
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
