//! The SHA-256 block function with the processor's SHA instructions, for two texts at a time.
//!
//! Each of these instructions waits for the one before it. Interleaving the rounds of two texts
//! fills the gaps.

#![expect(unsafe_code, reason = "calls into a detected feature; loads and stores of vectors")]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32 as add, _mm_alignr_epi8, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32 as two_rounds,
    _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
};

use super::lanes::ROUNDS;
use super::{INITIAL, Words};

/// A text that is padded to `BLOCKS` blocks.
pub(super) type Text<const BLOCKS: usize> = [[u8; 64]; BLOCKS];

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
}

/// Computes the digests of two texts. `None` if the processor lacks the instructions.
#[inline]
pub(super) fn digest<const BLOCKS: usize>(texts: [&Text<BLOCKS>; 2]) -> Option<[Words; 2]> {
    // SAFETY: the features were detected.
    is_available().then(|| unsafe { both(texts) })
}

/// The working variables of a text: a, b, e, f and c, d, g, h, from the highest word down.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

/// Four rounds of both texts with the schedules' first words; the last argument continues the
/// schedules. A macro, because closures and loops over the texts would keep vectors in memory.
macro_rules! four_rounds {
    ($a:ident $b:ident, $v:tt $w:tt, $constants:expr, $next:ident) => {
        let constants = words($constants);
        four_rounds!(@one $a, $v, constants, $next);
        four_rounds!(@one $b, $w, constants, $next);
    };
    (@one $state:ident, [$w0:ident $w1:ident $w2:ident $w3:ident], $constants:ident, $next:ident) => {
        let input = add($w0, $constants);
        $state.cdgh = two_rounds($state.cdgh, $state.abef, input);
        $state.abef = two_rounds($state.abef, $state.cdgh, _mm_shuffle_epi32::<0x0E>(input));
        four_rounds!(@$next [$w0 $w1 $w2 $w3]);
    };
    (@extend [$w0:ident $w1:ident $w2:ident $w3:ident]) => {
        let sum = add(_mm_sha256msg1_epu32($w0, $w1), _mm_alignr_epi8::<4>($w3, $w2));
        $w0 = _mm_sha256msg2_epu32(sum, $w3);
    };
    (@end $w:tt) => {};
}

/// Sixteen rounds of both texts.
macro_rules! sixteen_rounds {
    ($a:ident $b:ident, [$v0:ident $v1:ident $v2:ident $v3:ident] [$w0:ident $w1:ident $w2:ident $w3:ident], $constants:expr, $next:ident) => {
        let [k0, k1, k2, k3] = quarters($constants);
        four_rounds!($a $b, [$v0 $v1 $v2 $v3] [$w0 $w1 $w2 $w3], k0, $next);
        four_rounds!($a $b, [$v1 $v2 $v3 $v0] [$w1 $w2 $w3 $w0], k1, $next);
        four_rounds!($a $b, [$v2 $v3 $v0 $v1] [$w2 $w3 $w0 $w1], k2, $next);
        four_rounds!($a $b, [$v3 $v0 $v1 $v2] [$w3 $w0 $w1 $w2], k3, $next);
    };
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn both<const BLOCKS: usize>(texts: [&Text<BLOCKS>; 2]) -> [Words; 2] {
    let word = |at: usize| INITIAL[at].cast_signed();
    let initial = State {
        abef: _mm_set_epi32(word(0), word(1), word(4), word(5)),
        cdgh: _mm_set_epi32(word(2), word(3), word(6), word(7)),
    };
    let (mut a, mut b) = (initial, initial);
    let [r0, r1, r2, r3] = &ROUNDS;
    for (first, second) in texts[0].iter().zip(texts[1]) {
        let before = (a, b);
        let [mut v0, mut v1, mut v2, mut v3] = load(first);
        let [mut w0, mut w1, mut w2, mut w3] = load(second);
        sixteen_rounds!(a b, [v0 v1 v2 v3] [w0 w1 w2 w3], r0, extend);
        sixteen_rounds!(a b, [v0 v1 v2 v3] [w0 w1 w2 w3], r1, extend);
        sixteen_rounds!(a b, [v0 v1 v2 v3] [w0 w1 w2 w3], r2, extend);
        sixteen_rounds!(a b, [v0 v1 v2 v3] [w0 w1 w2 w3], r3, end);
        a = sum(a, before.0);
        b = sum(b, before.1);
    }
    [store(a), store(b)]
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn sum(one: State, other: State) -> State {
    State { abef: add(one.abef, other.abef), cdgh: add(one.cdgh, other.cdgh) }
}

/// The big-endian words of a block.
#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn load(block: &[u8; 64]) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    let mut loaded = [swap; 4];
    for (vector, quarter) in loaded.iter_mut().zip(block.as_chunks::<16>().0) {
        // SAFETY: reads the 16 bytes of the quarter; no alignment is required.
        let bytes = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
        *vector = _mm_shuffle_epi8(bytes, swap);
    }
    loaded
}

/// The words as four times four.
#[inline]
fn quarters(words: &[u32; 16]) -> [&[u32; 4]; 4] {
    match words.as_chunks().0 {
        [a, b, c, d] => [a, b, c, d],
        _ => [&[0; 4]; 4],
    }
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn words(words: &[u32; 4]) -> __m128i {
    // SAFETY: reads the 16 bytes of the words; no alignment is required.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn store(state: State) -> Words {
    let (mut feba, mut hgdc) = ([0; 4], [0; 4]);
    // SAFETY: writes the 16 bytes of each array; no alignment is required.
    unsafe {
        _mm_storeu_si128(feba.as_mut_ptr().cast(), state.abef);
        _mm_storeu_si128(hgdc.as_mut_ptr().cast(), state.cdgh);
    }
    [feba[3], feba[2], hgdc[3], hgdc[2], feba[1], feba[0], hgdc[1], hgdc[0]]
}
