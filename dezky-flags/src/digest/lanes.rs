//! The SHA-256 block function on vectors: each lane hashes a separate text.

#![expect(unsafe_code, reason = "calls into a detected feature; loads and stores of vectors")]

use super::{Block, INITIAL, LaneWords};

/// Computes the digests of sixteen texts. Returns false, without a result, if the processor lacks
/// AVX-512.
pub(super) fn avx512(blocks: &[Block], digests: &mut LaneWords) -> bool {
    if !is_x86_feature_detected!("avx512f") {
        return false;
    }
    // SAFETY: the feature was detected.
    unsafe {
        wide::digest(blocks, 0, digests);
    }
    true
}

/// Computes the digests of the `filled` texts. Returns false, without a result, if the processor
/// lacks AVX2.
pub(super) fn avx2(blocks: &[Block], filled: usize, digests: &mut LaneWords) -> bool {
    if !is_x86_feature_detected!("avx2") {
        return false;
    }
    for first in (0..filled).step_by(8) {
        // SAFETY: the feature was detected.
        unsafe {
            narrow::digest(blocks, first, digests);
        }
    }
    true
}

/// The constants of the 64 rounds in groups of sixteen.
pub(super) const ROUNDS: [[u32; 16]; 4] = [
    [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
    ],
    [
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
    ],
    [
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
    ],
    [
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ],
];

/// Unrolls sixteen steps. The index must be a constant to keep the words in registers.
macro_rules! sixteen {
    ($step:ident $with:tt) => {
        sixteen!($step $with 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($step:ident $with:tt $($index:literal)+) => { $($step::<$index> $with;)+ };
}

/// The block function for one vector type, using the operations of the enclosing module.
macro_rules! block_function {
    ($feature:literal, $vector:ident, $lanes:literal) => {
        /// Computes the digests of the lanes from `first` on.
        #[target_feature(enable = $feature)]
        pub(super) fn digest(blocks: &[Block], first: usize, digests: &mut LaneWords) {
            let mut state = [splat(0); 8];
            for (word, initial) in state.iter_mut().zip(INITIAL) {
                *word = splat(initial);
            }
            for block in blocks {
                let mut words = [splat(0); 16];
                for (word, row) in words.iter_mut().zip(block) {
                    if let Some(row) = row[first..].first_chunk::<$lanes>() {
                        *word = load(row);
                    }
                }
                compress(&mut state, &mut words);
            }
            for (row, word) in digests.iter_mut().zip(state) {
                if let Some(row) = row[first..].first_chunk_mut::<$lanes>() {
                    store(word, row);
                }
            }
        }

        #[target_feature(enable = $feature)]
        #[inline]
        fn compress(state: &mut [$vector; 8], words: &mut [$vector; 16]) {
            let [first, later @ ..] = &ROUNDS;
            let mut v = *state;
            sixteen!(round(&mut v, words, first));
            for constants in later {
                sixteen!(extend_and_round(&mut v, words, constants));
            }
            for (old, new) in state.iter_mut().zip(v) {
                *old = add(*old, new);
            }
        }

        #[target_feature(enable = $feature)]
        #[inline]
        fn extend_and_round<const T: usize>(
            v: &mut [$vector; 8],
            words: &mut [$vector; 16],
            constants: &[u32; 16],
        ) {
            let (w1, w9, w14) = (words[(T + 1) % 16], words[(T + 9) % 16], words[(T + 14) % 16]);
            let s0 = xor(xor(ror::<7>(w1), ror::<18>(w1)), shr::<3>(w1));
            let s1 = xor(xor(ror::<17>(w14), ror::<19>(w14)), shr::<10>(w14));
            words[T] = add(add(words[T], s0), add(w9, s1));
            round::<T>(v, words, constants);
        }

        /// Renames the eight values instead of moving them.
        #[target_feature(enable = $feature)]
        #[inline]
        fn round<const T: usize>(
            v: &mut [$vector; 8],
            words: &[$vector; 16],
            constants: &[u32; 16],
        ) {
            let name = |place: usize| (place + 16 - T) % 8;
            let [a, b, c, d] = [v[name(0)], v[name(1)], v[name(2)], v[name(3)]];
            let [e, f, g, h] = [v[name(4)], v[name(5)], v[name(6)], v[name(7)]];
            let s1 = xor(xor(ror::<6>(e), ror::<11>(e)), ror::<25>(e));
            let input = add(splat(constants[T]), words[T]);
            let t1 = add(add(add(h, s1), input), choose(e, f, g));
            let s0 = xor(xor(ror::<2>(a), ror::<13>(a)), ror::<22>(a));
            v[name(3)] = add(d, t1);
            v[name(7)] = add(add(t1, s0), majority(a, b, c));
        }
    };
}

/// Sixteen lanes.
mod wide {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi32 as add, _mm512_loadu_si512, _mm512_ror_epi32 as ror,
        _mm512_set1_epi32, _mm512_srli_epi32 as shr, _mm512_storeu_si512,
        _mm512_ternarylogic_epi32, _mm512_xor_si512 as xor,
    };

    use super::{Block, INITIAL, LaneWords, ROUNDS};

    block_function!("avx512f", __m512i, 16);

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn splat(word: u32) -> __m512i {
        _mm512_set1_epi32(word.cast_signed())
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(row: &[u32; 16]) -> __m512i {
        // SAFETY: reads the 64 bytes of the row; no alignment is required.
        unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(vector: __m512i, row: &mut [u32; 16]) {
        // SAFETY: writes the 64 bytes of the row; no alignment is required.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), vector) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn choose(e: __m512i, f: __m512i, g: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1100_1010>(e, f, g)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn majority(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1110_1000>(a, b, c)
    }
}

/// Eight lanes.
mod narrow {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi32_si128, _mm256_add_epi32 as add, _mm256_and_si256 as and,
        _mm256_loadu_si256, _mm256_or_si256 as or, _mm256_set1_epi32, _mm256_sll_epi32,
        _mm256_srl_epi32, _mm256_srli_epi32 as shr, _mm256_storeu_si256, _mm256_xor_si256 as xor,
    };

    use super::{Block, INITIAL, LaneWords, ROUNDS};

    block_function!("avx2", __m256i, 8);

    #[target_feature(enable = "avx2")]
    #[inline]
    fn splat(word: u32) -> __m256i {
        _mm256_set1_epi32(word.cast_signed())
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(row: &[u32; 8]) -> __m256i {
        // SAFETY: reads the 32 bytes of the row; no alignment is required.
        unsafe { _mm256_loadu_si256(row.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn store(vector: __m256i, row: &mut [u32; 8]) {
        // SAFETY: writes the 32 bytes of the row; no alignment is required.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), vector) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn ror<const BY: i32>(x: __m256i) -> __m256i {
        let (right, left) = (_mm_cvtsi32_si128(BY), _mm_cvtsi32_si128(32 - BY));
        or(_mm256_srl_epi32(x, right), _mm256_sll_epi32(x, left))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn choose(e: __m256i, f: __m256i, g: __m256i) -> __m256i {
        xor(g, and(e, xor(f, g)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn majority(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        or(and(a, b), and(c, or(a, b)))
    }
}
