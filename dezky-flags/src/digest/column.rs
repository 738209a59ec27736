//! Buckets of many tenants for one key.

use sha2::block_api::compress256;

use super::{Block, DigestEngine, INITIAL, LANES, LaneWords, ONE_BLOCK, TWO_BLOCKS, Words, digest};
use crate::BucketAlgorithm;

/// Computes the buckets, in hundredths, of many tenants for one key: [`Batch`](super::Batch) with
/// the roles exchanged. Results come in a different order than the tenants.
///
/// The bytes after a tenant's id depend on its length alone, and most ids of a column have the same
/// length. So a slot keeps them from one text to the next.
pub(crate) struct Column {
    engine: DigestEngine,
    algorithm: BucketAlgorithm,
    /// The colon, the key and the padding's 0x80.
    tail: Box<[u8]>,
    short: Queue<1>,
    /// Allocated with the first text of two blocks.
    long: Option<Box<Queue<2>>>,
}

/// Texts that are padded to `BLOCKS` blocks.
struct Queue<const BLOCKS: usize> {
    filled: usize,
    places: [usize; LANES],
    /// The length of the tenant's id for which each slot holds the rest of the text.
    lengths: [usize; LANES],
    texts: [[[u8; 64]; BLOCKS]; LANES],
}

impl Column {
    pub(crate) fn new(engine: DigestEngine, algorithm: BucketAlgorithm, key: &str) -> Self {
        let tail = [b":", key.as_bytes(), &[0x80]].concat().into();
        Self { engine, algorithm, tail, short: Queue::new(), long: None }
    }

    /// Adds a tenant; `done` receives finished buckets with the places of their tenants.
    #[inline]
    pub(crate) fn push(
        &mut self,
        place: usize,
        tenant_id: &[u8],
        mut done: impl FnMut(usize, u16),
    ) {
        // Without the padding's 0x80.
        let length = tenant_id.len() + self.tail.len() - 1;
        if length <= ONE_BLOCK {
            self.short.push(place, tenant_id, &self.tail);
            if self.short.filled == LANES {
                self.short.flush(self.engine, self.algorithm, done);
            }
        } else if length <= TWO_BLOCKS {
            let queue = self.long.get_or_insert_with(|| Box::new(Queue::new()));
            queue.push(place, tenant_id, &self.tail);
            if queue.filled == LANES {
                queue.flush(self.engine, self.algorithm, done);
            }
        } else {
            let key = &self.tail[1..self.tail.len() - 1];
            done(place, self.algorithm.fine(&digest(tenant_id, key)));
        }
    }

    /// Computes the remaining buckets.
    pub(crate) fn finish(&mut self, mut done: impl FnMut(usize, u16)) {
        self.short.flush(self.engine, self.algorithm, &mut done);
        if let Some(queue) = &mut self.long {
            queue.flush(self.engine, self.algorithm, done);
        }
    }
}

impl<const BLOCKS: usize> Queue<BLOCKS> {
    fn new() -> Self {
        Self {
            filled: 0,
            places: [0; LANES],
            lengths: [usize::MAX; LANES],
            texts: [[[0; 64]; BLOCKS]; LANES],
        }
    }

    #[inline]
    fn push(&mut self, place: usize, tenant_id: &[u8], tail: &[u8]) {
        // The remainder lets the compiler omit the bounds check.
        let slot = self.filled % LANES;
        self.places[slot] = place;
        self.filled += 1;
        let text = self.texts[slot].as_flattened_mut();
        if self.lengths[slot] != tenant_id.len() {
            self.lengths[slot] = tenant_id.len();
            text.fill(0);
            let end = tenant_id.len() + tail.len();
            text[tenant_id.len()..end].copy_from_slice(tail);
            if let Some(bits) = text.last_chunk_mut() {
                *bits = (8 * (end as u64 - 1)).to_be_bytes();
            }
        }
        // Most ids are UUIDs: a constant length needs no call.
        if let Ok(uuid) = <&[u8; 36]>::try_from(tenant_id) {
            text[..36].copy_from_slice(uuid);
        } else {
            text[..tenant_id.len()].copy_from_slice(tenant_id);
        }
    }

    fn flush(
        &mut self,
        engine: DigestEngine,
        algorithm: BucketAlgorithm,
        mut done: impl FnMut(usize, u16),
    ) {
        let filled = std::mem::take(&mut self.filled).min(LANES);
        let places = &self.places[..filled];
        // With few texts, most of the lanes' work would be wasted.
        if engine != DigestEngine::Blocks && filled > 2 {
            let blocks = self.transposed();
            let mut digests: LaneWords = [[0; LANES]; 8];
            engine.digest(&blocks, filled, &mut digests);
            for (place, bucket) in places.iter().zip(algorithm.fine_of_lanes(&digests)) {
                done(*place, bucket);
            }
            return;
        }
        let (pairs, rest) = self.texts[..filled].as_chunks::<2>();
        for ([first, second], places) in pairs.iter().zip(places.as_chunks::<2>().0) {
            for (place, digest) in places.iter().zip(two(first, second)) {
                done(*place, algorithm.fine(&digest));
            }
        }
        for (text, place) in rest.iter().zip(&places[filled - rest.len()..]) {
            done(*place, algorithm.fine(&one(text)));
        }
    }

    /// The texts as words, each with that word of all lanes.
    fn transposed(&self) -> [Block; BLOCKS] {
        let mut blocks = [[[0; LANES]; 16]; BLOCKS];
        let rows = blocks.as_flattened_mut();
        for (lane, text) in self.texts.iter().enumerate() {
            for (row, word) in rows.iter_mut().zip(text.as_flattened().as_chunks().0) {
                row[lane] = u32::from_be_bytes(*word);
            }
        }
        blocks
    }
}

fn one<const BLOCKS: usize>(text: &[[u8; 64]; BLOCKS]) -> Words {
    let mut words = INITIAL;
    compress256(&mut words, text);
    words
}

#[inline]
fn two<const BLOCKS: usize>(first: &[[u8; 64]; BLOCKS], second: &[[u8; 64]; BLOCKS]) -> [Words; 2] {
    #[cfg(target_arch = "x86_64")]
    if let Some(digests) = super::pairs::digest([first, second]) {
        return digests;
    }
    [one(first), one(second)]
}

#[cfg(test)]
mod tests {
    use super::super::digest_long;
    use super::*;

    /// Covers lengths around the block boundaries, in orders in which slots change their length
    /// and keep it, with every engine.
    #[test]
    fn every_engine_gives_the_buckets_of_the_librarys_digests() {
        let text = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(5);
        let up_and_down = (0..=150).chain((0..=150).rev());
        let in_runs = (0..40).flat_map(|n| std::iter::repeat_n(n * 4 % 151, 33));
        let lengths: Vec<usize> = up_and_down.chain(in_runs).collect();
        let tenants: Vec<_> = lengths.iter().map(|n| &text[n / 8..n / 8 + n]).collect();
        for engine in DigestEngine::ALL.into_iter().filter(|engine| engine.is_available()) {
            for key in ["", "k", "feature_000007", &text[..64], &text[..130]] {
                for algorithm in [BucketAlgorithm::Whole, BucketAlgorithm::Prefix32] {
                    let mut column = Column::new(engine, algorithm, key);
                    let mut buckets = vec![None; tenants.len()];
                    let mut done = |place: usize, bucket| {
                        assert_eq!(buckets[place], None, "once");
                        buckets[place] = Some(bucket);
                    };
                    for (place, tenant_id) in tenants.iter().enumerate() {
                        column.push(place, tenant_id.as_bytes(), &mut done);
                    }
                    column.finish(&mut done);
                    column.finish(&mut done);
                    for (tenant_id, bucket) in tenants.iter().zip(buckets) {
                        let digest = digest_long(tenant_id.as_bytes(), key.as_bytes());
                        let expected = Some(algorithm.fine(&digest));
                        assert_eq!(bucket, expected, "{engine:?} {tenant_id}:{key}");
                    }
                }
            }
        }
    }

    /// Covers every number of filled slots.
    #[test]
    fn slots_may_be_left_empty() {
        for engine in DigestEngine::ALL.into_iter().filter(|engine| engine.is_available()) {
            for count in 0..=2 * LANES {
                let mut column = Column::new(engine, BucketAlgorithm::Whole, "key");
                let mut buckets = vec![None; count];
                for place in 0..count {
                    let tenant_id = place.to_string();
                    column.push(place, tenant_id.as_bytes(), |at, bucket| {
                        buckets[at] = Some(bucket);
                    });
                }
                column.finish(|at, bucket| buckets[at] = Some(bucket));
                let expected = (0..count).map(|place| {
                    let digest = digest_long(place.to_string().as_bytes(), b"key");
                    Some(BucketAlgorithm::Whole.fine(&digest))
                });
                assert!(expected.eq(buckets), "{engine:?} {count}");
            }
        }
    }
}
