//! Work on all processors, by threads of this call alone.

use std::num::NonZero;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder, available_parallelism};

use dezky::flags::Bits;

/// The number of values decided at a time; a multiple of 64. Takes about half a millisecond.
pub(super) const STEP: usize = 16_384;

/// The number of threads that can run at once.
pub(super) fn processors() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// Fills `len` values with those that `work` gives for each range. Without threads to start, the
/// calling one does all of it.
pub(super) fn in_steps(len: usize, work: impl Fn(Range<usize>, &mut Bits) + Sync) -> Vec<u64> {
    let mut words = vec![0; len.div_ceil(64)];
    let steps = Mutex::new(words.chunks_mut(STEP / 64).enumerate());
    let drain = || {
        let mut values = Bits::new();
        loop {
            let next = steps.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, words)) = next else { return };
            let start = at * STEP;
            work(start..len.min(start + STEP), &mut values);
            copy(&values, words);
        }
    };
    thread::scope(|scope| {
        for _ in 1..processors().min(len.div_ceil(STEP)) {
            if Builder::new().spawn_scoped(scope, drain).is_err() {
                break;
            }
        }
        drain();
    });
    words
}

/// Copies values to words that are 0. No values stand for values that are all false.
pub(super) fn copy(values: &Bits, words: &mut [u64]) {
    let len = values.words().len();
    if len > 0 {
        words[..len].copy_from_slice(values.words());
    }
}
