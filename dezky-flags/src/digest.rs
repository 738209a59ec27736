//! SHA-256 of tenant and key, one text at a time or in sixteen parallel lanes.

mod column;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod pairs;

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

pub(crate) use self::column::Column;
use crate::BucketAlgorithm;

/// The digest as big-endian words.
pub(crate) type Words = [u32; 8];

/// The number of texts hashed in parallel.
pub(crate) const LANES: usize = 16;
/// One block per lane, transposed: each word holds that word of all lanes.
type Block = [[u32; LANES]; 16];
/// Digests of all lanes.
pub(crate) type LaneWords = [[u32; LANES]; 8];

/// The longest texts that pad to one block and to two.
const ONE_BLOCK: usize = 55;
const TWO_BLOCKS: usize = 119;

const INITIAL: Words = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// SHA-256 of `tenant_id`, `:` and `key`.
pub(crate) fn digest(tenant_id: &[u8], key: &[u8]) -> Words {
    let separator = tenant_id.len();
    let end = separator + 1 + key.len();
    if end > TWO_BLOCKS {
        return digest_long(tenant_id, key);
    }
    let mut text = [0; 128];
    text[..separator].copy_from_slice(tenant_id);
    text[separator] = b':';
    text[separator + 1..end].copy_from_slice(key);
    text[end] = 0x80;
    let (blocks, _) = text.as_chunks_mut::<64>();
    let blocks = if end <= ONE_BLOCK { &mut blocks[..1] } else { blocks };
    if let Some(length) = blocks.last_mut().and_then(|block| block.last_chunk_mut()) {
        *length = (8 * end as u64).to_be_bytes();
    }
    let mut words = INITIAL;
    compress256(&mut words, blocks);
    words
}

fn digest_long(tenant_id: &[u8], key: &[u8]) -> Words {
    let digest =
        Sha256::new().chain_update(tenant_id).chain_update(b":").chain_update(key).finalize();
    let mut words = INITIAL;
    for (word, bytes) in words.iter_mut().zip(digest.as_chunks().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// The implementation that computes the digests of rollouts when a set decides all its flags at
/// once, or one flag for many tenants. All implementations give the same digests; the fastest one
/// that the processor supports is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DigestEngine {
    /// Sixteen lanes with AVX-512; very few texts are hashed one by one.
    Avx512,
    /// Eight lanes with AVX2; very few texts are hashed one by one.
    Avx2,
    /// One by one, with the processor's SHA instructions where available; for many tenants, two at
    /// a time.
    Blocks,
}

impl DigestEngine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Blocks];

    /// Whether this processor supports the engine.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Blocks => true,
        }
    }

    /// The fastest engine on this processor: SHA instructions are faster than eight lanes but
    /// slower than sixteen.
    pub fn fastest() -> Self {
        if Self::Avx512.is_available() {
            Self::Avx512
        } else if !has_sha_instructions() && Self::Avx2.is_available() {
            Self::Avx2
        } else {
            Self::Blocks
        }
    }

    /// Computes the digests of the first `filled` lanes; other lanes are unspecified.
    fn digest(self, blocks: &[Block], filled: usize, digests: &mut LaneWords) {
        // With few texts, most of the lanes' work would be wasted.
        #[cfg(target_arch = "x86_64")]
        if filled > if has_sha_instructions() { 7 } else { 2 } {
            let done = match self {
                Self::Avx512 => lanes::avx512(blocks, digests),
                Self::Avx2 => lanes::avx2(blocks, filled, digests),
                Self::Blocks => false,
            };
            if done {
                return;
            }
        }
        one_by_one(blocks, filled, digests);
    }
}

impl Default for DigestEngine {
    fn default() -> Self {
        Self::fastest()
    }
}

fn has_sha_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sha");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

fn one_by_one(blocks: &[Block], filled: usize, digests: &mut LaneWords) {
    for lane in 0..filled {
        let mut words = INITIAL;
        for block in blocks {
            let mut bytes = [0; 64];
            for (bytes, row) in bytes.as_chunks_mut().0.iter_mut().zip(block) {
                *bytes = row[lane].to_be_bytes();
            }
            compress256(&mut words, &[bytes]);
        }
        for (row, word) in digests.iter_mut().zip(words) {
            row[lane] = word;
        }
    }
}

/// Keys prepared for insertion into the words of a batch's texts; computed once for all batches.
#[derive(Debug, Clone, Default)]
pub(crate) struct PaddedKeys {
    /// Big-endian words, with the padding's 0x80 after each key, for each of the four byte
    /// positions in a word at which a key may start.
    words: [Vec<u32>; 4],
    /// The end of each key's words.
    ends: Vec<usize>,
}

impl PaddedKeys {
    pub(crate) fn push(&mut self, key: &str) {
        // Enough for a key that starts at the last byte of a word.
        let count = key.len() / 4 + 2;
        let mut bytes = vec![0; 4 * count];
        for (start, words) in self.words.iter_mut().enumerate() {
            bytes.fill(0);
            bytes[start..start + key.len()].copy_from_slice(key.as_bytes());
            bytes[start + key.len()] = 0x80;
            words.extend(bytes.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)));
        }
        self.ends.push(self.words[0].len());
    }

    /// The words of the key at `place` when it starts at byte `start` of the text.
    #[inline]
    fn get(&self, place: usize, start: usize) -> &[u32] {
        let first = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.words[start % 4][first..self.ends[place]]
    }
}

/// Computes the buckets, in hundredths, of one tenant for many keys. Results come in a different
/// order than the keys. Lives on the stack.
pub(crate) struct Batch<'t> {
    engine: DigestEngine,
    algorithm: BucketAlgorithm,
    tenant_id: &'t str,
    keys: &'t PaddedKeys,
    /// The tenant's id and the colon as words; zeros if they are too long.
    prefix: [u32; 32],
    /// Texts of one block; allocated with the first of them.
    short: Option<Queue<1>>,
    long: Option<Queue<2>>,
}

/// Texts that are padded to `BLOCKS` blocks.
struct Queue<const BLOCKS: usize> {
    filled: usize,
    places: [usize; LANES],
    blocks: [Block; BLOCKS],
    digests: LaneWords,
}

impl<'t> Batch<'t> {
    pub(crate) fn new(
        engine: DigestEngine,
        algorithm: BucketAlgorithm,
        tenant_id: &'t str,
        keys: &'t PaddedKeys,
    ) -> Self {
        let mut bytes = [0; 128];
        if tenant_id.len() < TWO_BLOCKS {
            bytes[..tenant_id.len()].copy_from_slice(tenant_id.as_bytes());
            bytes[tenant_id.len()] = b':';
        }
        let mut prefix = [0; 32];
        for (word, bytes) in prefix.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        Self { engine, algorithm, tenant_id, keys, prefix, short: None, long: None }
    }

    /// Adds the key at `place`; `done` receives finished buckets with the places of their keys.
    #[inline]
    pub(crate) fn push(&mut self, place: usize, key: &str, mut done: impl FnMut(usize, u16)) {
        let start = self.tenant_id.len() + 1;
        let length = start + key.len();
        if self.engine == DigestEngine::Blocks || length > TWO_BLOCKS {
            done(place, self.algorithm.fine_bucket(self.tenant_id, key));
        } else if length <= ONE_BLOCK {
            let queue = self.short.get_or_insert_with(Queue::new);
            queue.push(place, &self.prefix, start, length, self.keys.get(place, start));
            if queue.filled == LANES {
                queue.flush(self.engine, self.algorithm, done);
            }
        } else {
            let queue = self.long.get_or_insert_with(Queue::new);
            queue.push(place, &self.prefix, start, length, self.keys.get(place, start));
            if queue.filled == LANES {
                queue.flush(self.engine, self.algorithm, done);
            }
        }
    }

    /// Computes the remaining buckets.
    pub(crate) fn finish(&mut self, mut done: impl FnMut(usize, u16)) {
        if let Some(queue) = &mut self.short {
            queue.flush(self.engine, self.algorithm, &mut done);
        }
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
            blocks: [[[0; LANES]; 16]; BLOCKS],
            digests: [[0; LANES]; 8],
        }
    }

    /// `start` is the key's offset in the text, `length` the text's length, both in bytes.
    #[inline]
    fn push(&mut self, place: usize, prefix: &[u32; 32], start: usize, length: usize, key: &[u32]) {
        let rows = self.blocks.as_flattened_mut();
        if self.filled == 0 {
            for (row, word) in rows.iter_mut().zip(prefix) {
                *row = [*word; LANES];
            }
        }
        // The remainder lets the compiler omit the bounds check.
        let lane = self.filled % LANES;
        self.places[lane] = place;
        self.filled += 1;

        // These words are zero, except for the first, which may hold the end of the prefix.
        for (row, word) in rows[start / 4..].iter_mut().zip(key) {
            row[lane] |= word;
        }
        if let Some(row) = rows.last_mut() {
            row[lane] = u32::try_from(8 * length).unwrap_or(0);
        }
    }

    fn flush(
        &mut self,
        engine: DigestEngine,
        algorithm: BucketAlgorithm,
        mut done: impl FnMut(usize, u16),
    ) {
        if self.filled == 0 {
            return;
        }
        engine.digest(&self.blocks, self.filled, &mut self.digests);
        let buckets = algorithm.fine_of_lanes(&self.digests);
        for (place, bucket) in self.places.iter().zip(buckets).take(self.filled) {
            done(*place, bucket);
        }
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes the buckets of all keys with a batch, in the keys' order.
    fn buckets<'k>(
        engine: DigestEngine,
        algorithm: BucketAlgorithm,
        tenant_id: &str,
        keys: impl IntoIterator<Item = &'k str> + Clone,
    ) -> Vec<Option<u16>> {
        let mut padded = PaddedKeys::default();
        keys.clone().into_iter().for_each(|key| padded.push(key));
        let mut batch = Batch::new(engine, algorithm, tenant_id, &padded);
        let mut buckets = vec![None; padded.ends.len()];
        let mut done = |place: usize, bucket| {
            assert_eq!(buckets[place], None, "once");
            buckets[place] = Some(bucket);
        };
        for (place, key) in keys.into_iter().enumerate() {
            batch.push(place, key, &mut done);
        }
        batch.finish(&mut done);
        batch.finish(&mut done);
        buckets
    }

    /// Covers mixed lengths around the block boundaries, with every engine.
    #[test]
    fn every_engine_gives_the_buckets_of_the_librarys_digests() {
        let text = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(5);
        for engine in DigestEngine::ALL.into_iter().filter(|engine| engine.is_available()) {
            for tenant in (0..=70).chain([100, 101, 102, 103, 117, 118, 119, 120, 150]) {
                let tenant_id = &text[..tenant];
                // Ascending and descending, so that longer keys precede shorter ones in each lane.
                let lengths = (0..=70).chain((0..=70).rev());
                let keys: Vec<_> = lengths.map(|n| &text[n / 3..n / 3 + n]).collect();
                for algorithm in [BucketAlgorithm::Whole, BucketAlgorithm::Prefix32] {
                    let got = buckets(engine, algorithm, tenant_id, keys.iter().copied());
                    for (key, got) in keys.iter().zip(got) {
                        let expected = digest_long(tenant_id.as_bytes(), key.as_bytes());
                        let short = digest(tenant_id.as_bytes(), key.as_bytes());
                        assert_eq!(short, expected);
                        let expected = algorithm.fine(&expected);
                        assert_eq!(got, Some(expected), "{engine:?} {tenant_id}:{key}");
                    }
                }
            }
        }
    }

    /// Covers every number of filled lanes, up to all of them.
    #[test]
    fn lanes_may_be_left_empty() {
        for engine in DigestEngine::ALL {
            for count in 1..=LANES {
                let keys: Vec<_> = (0..count).map(|n| format!("key-{n}")).collect();
                let got = buckets(
                    engine,
                    BucketAlgorithm::Whole,
                    "tenant",
                    keys.iter().map(String::as_str),
                );
                let expected = |key: &String| {
                    Some(BucketAlgorithm::Whole.fine(&digest_long(b"tenant", key.as_bytes())))
                };
                assert_eq!(got, keys.iter().map(expected).collect::<Vec<_>>(), "{engine:?}");
            }
        }
    }

    /// Checks that every word of the digest counts, in every lane, including the largest digest.
    #[test]
    fn lanes_are_read_as_one_digest_is() {
        for algorithm in [BucketAlgorithm::Whole, BucketAlgorithm::Prefix32] {
            let mut digests: [Words; LANES] =
                std::array::from_fn(|lane| digest_long(b"tenant", lane.to_string().as_bytes()));
            digests[3] = [u32::MAX; 8];
            let rows: LaneWords =
                std::array::from_fn(|word| std::array::from_fn(|lane| digests[lane][word]));
            assert_eq!(
                algorithm.fine_of_lanes(&rows),
                digests.map(|digest| algorithm.fine(&digest))
            );
        }
    }
}
