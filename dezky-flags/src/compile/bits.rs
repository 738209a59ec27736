//! The values of flags, one bit each.

/// Whether each flag of a set is on, by [position](crate::FlagHandle::place): a buffer for
/// [`FlagSet::values_into`](crate::FlagSet::values_into).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bits {
    /// Bits past `len` are 0.
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// Creates a buffer for no flags.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of flags.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no flags.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the flag at `place` is on; false beyond the last flag.
    pub fn get(&self, place: usize) -> bool {
        self.words.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// The number of flags that are on.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Iterates over the values.
    pub fn iter(&self) -> impl Iterator<Item = bool> {
        (0..self.len).map(|place| self.get(place))
    }

    /// The values as words of 64 flags, the first flag in the lowest bit.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Resizes to `len` values, all false.
    pub(super) fn reset(&mut self, len: usize) -> &mut [u64] {
        self.len = len;
        self.words.clear();
        self.words.resize(len.div_ceil(64), 0);
        &mut self.words
    }
}

/// The positions of the bits that are set.
pub(super) fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = word.trailing_zeros() as usize;
        let some = word != 0;
        word &= word.wrapping_sub(1);
        some.then_some(place)
    })
}

/// Compares 64 numbers with their bounds; a bit is set if the number is below its bound.
#[inline]
pub(super) fn below(numbers: &[u16; 64], bounds: &[u16; 64]) -> u64 {
    // A separate loop, so that the compiler vectorizes it.
    let mut flags = [0; 64];
    for ((flag, number), bound) in flags.iter_mut().zip(numbers).zip(bounds) {
        *flag = u8::from(number < bound);
    }
    let mut word = 0;
    for (byte, flags) in flags.as_chunks().0.iter().enumerate() {
        // The multiplication gathers the eight bytes of 0 or 1 as bits of the product's top byte.
        let gathered = u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word |= gathered << (8 * byte);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_become_bits() {
        let numbers: [u16; 64] = std::array::from_fn(|n| u16::try_from(n * 7919 % 10_000).unwrap());
        for bound in [0, 1, 5_000, 9_999, 10_000, u16::MAX] {
            let bounds: [u16; 64] = std::array::from_fn(|n| if n % 3 == 0 { 40 } else { bound });
            let word = below(&numbers, &bounds);
            for n in 0..64 {
                assert_eq!(word >> n & 1 == 1, numbers[n] < bounds[n], "{n}");
            }
        }
    }

    #[test]
    fn ones_are_places() {
        assert_eq!(ones(0).count(), 0);
        assert_eq!(ones(1 | 1 << 5 | 1 << 63).collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(ones(u64::MAX).count(), 64);
    }
}
