//! SHA-256 of tenant and key: one text at a time, or sixteen side by side.

#[cfg(target_arch = "x86_64")]
mod lanes;

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// The digest as big-endian words.
pub(crate) type Words = [u32; 8];

/// So many texts are hashed side by side.
const LANES: usize = 16;
/// A block of each lane: its words, each of all lanes.
type Block = [[u32; LANES]; 16];
/// Digests of all lanes.
type LaneWords = [[u32; LANES]; 8];

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
pub(crate) fn digest(tenant_id: &str, key: &str) -> Words {
    let separator = tenant_id.len();
    let end = separator + 1 + key.len();
    if end > TWO_BLOCKS {
        return digest_long(tenant_id, key);
    }
    let mut text = [0; 128];
    text[..separator].copy_from_slice(tenant_id.as_bytes());
    text[separator] = b':';
    text[separator + 1..end].copy_from_slice(key.as_bytes());
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

fn digest_long(tenant_id: &str, key: &str) -> Words {
    let digest = Sha256::new()
        .chain_update(tenant_id.as_bytes())
        .chain_update(b":")
        .chain_update(key.as_bytes())
        .finalize();
    let mut words = INITIAL;
    for (word, bytes) in words.iter_mut().zip(digest.as_chunks().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// How a set computes the digests of its rollouts when it decides all flags at once.
/// All give the same digests; the fastest one of the processor is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DigestEngine {
    /// Sixteen side by side by AVX-512.
    Avx512,
    /// Eight side by side by AVX2.
    Avx2,
    /// One by one, by the processor's SHA instructions where it has them.
    Blocks,
}

impl DigestEngine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Blocks];

    /// Whether this processor has what it takes.
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

    /// The fastest one of this processor: SHA instructions outrun eight lanes, sixteen
    /// lanes outrun them.
    pub fn fastest() -> Self {
        if Self::Avx512.is_available() {
            Self::Avx512
        } else if !has_sha_instructions() && Self::Avx2.is_available() {
            Self::Avx2
        } else {
            Self::Blocks
        }
    }

    /// The digests of the lanes that are `filled`; what the others hold means nothing.
    fn digests(self, blocks: &[Block], filled: usize) -> LaneWords {
        // For few texts most of the lanes' work would be thrown away.
        #[cfg(target_arch = "x86_64")]
        if filled > if has_sha_instructions() { 7 } else { 2 } {
            let digests = match self {
                Self::Avx512 => lanes::avx512(blocks),
                Self::Avx2 => lanes::avx2(blocks, filled),
                Self::Blocks => None,
            };
            if let Some(digests) = digests {
                return digests;
            }
        }
        one_by_one(blocks, filled)
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

fn one_by_one(blocks: &[Block], filled: usize) -> LaneWords {
    let mut digests = [[0; LANES]; 8];
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
    digests
}

/// The digests of one tenant's id with many keys, which come in another order than they
/// went in. Lives on the stack.
pub(crate) struct Batch<'t> {
    engine: DigestEngine,
    tenant_id: &'t str,
    /// The tenant's id and the colon, in lanes' words; empty where they are too long.
    prefix: [u32; 32],
    short: Queue<1>,
    long: Queue<2>,
}

/// Texts that pad to so many blocks.
struct Queue<const BLOCKS: usize> {
    filled: usize,
    places: [usize; LANES],
    blocks: [Block; BLOCKS],
}

impl<'t> Batch<'t> {
    pub(crate) fn new(engine: DigestEngine, tenant_id: &'t str) -> Self {
        let mut bytes = [0; 128];
        if tenant_id.len() < TWO_BLOCKS {
            bytes[..tenant_id.len()].copy_from_slice(tenant_id.as_bytes());
            bytes[tenant_id.len()] = b':';
        }
        let mut prefix = [0; 32];
        for (word, bytes) in prefix.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        Self { engine, tenant_id, prefix, short: Queue::new(), long: Queue::new() }
    }

    /// Takes a key in; `done` gets digests with the places that their keys came with.
    #[inline]
    pub(crate) fn push(&mut self, place: usize, key: &str, done: impl FnMut(usize, Words)) {
        let mut done = done;
        let start = self.tenant_id.len() + 1;
        let length = start + key.len();
        if self.engine == DigestEngine::Blocks || length > TWO_BLOCKS {
            done(place, digest(self.tenant_id, key));
        } else if length <= ONE_BLOCK {
            self.short.push(place, &self.prefix, start, key);
            if self.short.filled == LANES {
                self.short.flush(self.engine, done);
            }
        } else {
            self.long.push(place, &self.prefix, start, key);
            if self.long.filled == LANES {
                self.long.flush(self.engine, done);
            }
        }
    }

    /// Gives the digests that are left.
    pub(crate) fn finish(&mut self, mut done: impl FnMut(usize, Words)) {
        self.short.flush(self.engine, &mut done);
        self.long.flush(self.engine, &mut done);
    }
}

impl<const BLOCKS: usize> Queue<BLOCKS> {
    fn new() -> Self {
        Self { filled: 0, places: [0; LANES], blocks: [[[0; LANES]; 16]; BLOCKS] }
    }

    /// `start` is where the key starts, in bytes.
    #[inline]
    fn push(&mut self, place: usize, prefix: &[u32; 32], start: usize, key: &str) {
        let rows = self.blocks.as_flattened_mut();
        if self.filled == 0 {
            for (row, word) in rows.iter_mut().zip(prefix) {
                *row = [*word; LANES];
            }
        }
        let lane = self.filled;
        self.places[lane] = place;
        self.filled += 1;

        // The key's words lie across two of the text's each.
        let shift = [0, 8, 16, 24][start % 4];
        let mut at = start / 4;
        let mut put = |word: u32| {
            rows[at][lane] |= word >> shift;
            at += 1;
            rows[at][lane] |= word.unbounded_shl(32 - shift);
        };
        let (words, rest) = key.as_bytes().as_chunks();
        for word in words {
            put(u32::from_be_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()] = 0x80;
        put(u32::from_be_bytes(last));
        if let Some(row) = rows.last_mut() {
            row[lane] = u32::try_from(8 * (start + key.len())).unwrap_or(0);
        }
    }

    fn flush(&mut self, engine: DigestEngine, mut done: impl FnMut(usize, Words)) {
        if self.filled == 0 {
            return;
        }
        let digests = engine.digests(&self.blocks, self.filled);
        for (lane, place) in self.places[..self.filled].iter().enumerate() {
            done(*place, digests.map(|row| row[lane]));
        }
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lengths around the blocks' ends, mixed, by every engine.
    #[test]
    fn every_engine_gives_the_digests_of_the_library() {
        let text = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(5);
        for engine in DigestEngine::ALL.into_iter().filter(|engine| engine.is_available()) {
            for tenant in (0..=70).chain([117, 118, 119, 120, 150]) {
                let tenant_id = &text[..tenant];
                let keys: Vec<_> = (0..=70).map(|n| &text[n / 3..n / 3 + n]).collect();
                let mut batch = Batch::new(engine, tenant_id);
                let mut digests = vec![None; keys.len()];
                let mut count = 0;
                let mut done = |place: usize, words| {
                    digests[place] = Some(words);
                    count += 1;
                };
                for (place, key) in keys.iter().enumerate() {
                    batch.push(place, key, &mut done);
                }
                batch.finish(&mut done);
                batch.finish(&mut done);
                assert_eq!(count, keys.len());
                for (key, got) in keys.iter().zip(&digests) {
                    let expected = digest_long(tenant_id, key);
                    assert_eq!(*got, Some(expected), "{engine:?} {tenant_id}:{key}");
                    assert_eq!(digest(tenant_id, key), expected);
                }
            }
        }
    }

    /// Any number of texts in the lanes, the last ones among them.
    #[test]
    fn lanes_may_be_left_empty() {
        for engine in DigestEngine::ALL {
            for count in 1..=LANES {
                let mut batch = Batch::new(engine, "tenant");
                let mut seen = Vec::new();
                for n in 0..count {
                    batch.push(n, &format!("key-{n}"), |place, words| seen.push((place, words)));
                }
                batch.finish(|place, words| seen.push((place, words)));
                let expected: Vec<_> =
                    (0..count).map(|n| (n, digest_long("tenant", &format!("key-{n}")))).collect();
                assert_eq!(seen, expected, "{engine:?}");
            }
        }
    }
}
