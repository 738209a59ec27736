use std::any::Any;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{BlockingWork, Runtime};
use crate::Timestamp;

/// [`Runtime`] on Tokio: the system clock, Tokio's timers and blocking pool, and the operating
/// system's random generator. Must be used within a Tokio runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioRuntime;

impl Runtime for TokioRuntime {
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    fn now(&self) -> Timestamp {
        let ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        Timestamp::from_millis_clamped(ms)
    }

    #[expect(clippy::disallowed_methods, reason = "this is where timers are made")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        ::tokio::time::sleep(duration).boxed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is where blocking work is handed over")]
    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>> {
        async move {
            match ::tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down, and this task with it.
                    Err(_cancelled) => std::future::pending().await,
                },
            }
        }
        .boxed()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        // Without randomness there are no ids and no salts, so fail closed.
        getrandom::fill(bytes).expect("the operating system's random generator answers");
    }
}
