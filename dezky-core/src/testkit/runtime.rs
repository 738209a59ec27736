use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, poll_fn, ready};

use crate::rt::BlockingWork;
use crate::{Runtime, Timestamp};

/// A [`Runtime`] whose time advances only on request, and whose randomness comes from a seed.
/// Blocking work runs on the calling thread.
///
/// ```
/// use std::time::Duration;
/// use dezky_core::{Runtime, testkit::ManualRuntime};
/// let runtime = ManualRuntime::new(7);
/// let before = runtime.now();
/// runtime.advance(Duration::from_secs(60));
/// assert_eq!(runtime.now().saturating_since(before), Duration::from_secs(60));
/// ```
#[derive(Clone)]
pub struct ManualRuntime(Arc<Mutex<State>>);

struct State {
    now_ms: i64,
    random: u64,
    timers: BTreeMap<(i64, u64), Option<Waker>>,
    next_timer: u64,
    sleep_advances: bool,
}

impl ManualRuntime {
    /// Creates a runtime at 2026-01-01T00:00:00Z with the randomness of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            now_ms: 1_767_225_600_000,
            random: seed,
            timers: BTreeMap::new(),
            next_timer: 0,
            sleep_advances: false,
        })))
    }

    /// From now on, sleeps advance the time themselves and end at once.
    #[must_use]
    pub fn with_sleep_advancing(self) -> Self {
        self.state().sleep_advances = true;
        self
    }

    /// Advances the time and wakes sleeps that are over.
    pub fn advance(&self, by: Duration) {
        let woken = {
            let mut state = self.state();
            state.now_ms += i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            let first_later = (state.now_ms + 1, 0);
            let later = state.timers.split_off(&first_later);
            std::mem::replace(&mut state.timers, later)
        };
        woken.into_values().flatten().for_each(Waker::wake);
    }

    /// Sets the time.
    pub fn set_now(&self, now: Timestamp) {
        self.state().now_ms = now.as_millis();
    }

    /// The end of the first pending sleep; `None` if there is none.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let (until, _) = *self.state().timers.keys().next()?;
        Some(Timestamp::from_millis_clamped(until))
    }

    /// The number of pending sleeps.
    pub fn sleeping(&self) -> usize {
        self.state().timers.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime for ManualRuntime {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis_clamped(self.state().now_ms)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if self.state().sleep_advances {
            self.advance(duration);
            return ready(()).boxed();
        }
        let key = {
            let mut state = self.state();
            let until = state.now_ms + i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2);
            state.next_timer += 1;
            (until, state.next_timer)
        };
        let timer = Timer { runtime: self.clone(), key };
        poll_fn(move |context| {
            let mut state = timer.runtime.state();
            if state.now_ms >= timer.key.0 {
                return Poll::Ready(());
            }
            state.timers.insert(timer.key, Some(context.waker().clone()));
            Poll::Pending
        })
        .boxed()
    }

    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>> {
        ready(work()).boxed()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        let mut state = self.state();
        for chunk in bytes.chunks_mut(8) {
            // SplitMix64: good enough to be unique, and the same for every seed.
            state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Removes its timer when the sleep is dropped.
struct Timer {
    runtime: ManualRuntime,
    key: (i64, u64),
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.runtime.state().timers.remove(&self.key);
    }
}
