//! Values, one bit each.

/// Whether each flag of a set is on, by [position](crate::FlagHandle::place): a buffer for
/// [`FlagSet::values_into`](crate::FlagSet::values_into). Or whether one flag is on for each of many
/// tenants, by the tenant's position: for
/// [`FlagHandle::values_into`](crate::FlagHandle::values_into) and
/// [`FlagHandle::values_of`](crate::FlagHandle::values_of).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bits {
    /// Bits past `len` are 0.
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// Creates an empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at `place`; false beyond the last one.
    pub fn get(&self, place: usize) -> bool {
        self.words.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// The number of values that are on.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Iterates over the values.
    pub fn iter(&self) -> impl Iterator<Item = bool> {
        (0..self.len).map(|place| self.get(place))
    }

    /// The values as words of 64, the first one in the lowest bit; bits past the last one are 0.
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

    /// Resizes to `len` values, all of them `value`.
    pub(super) fn fill(&mut self, len: usize, value: bool) {
        self.reset(len);
        if value {
            self.words.fill(u64::MAX);
            if let (Some(last), past @ 1..) = (self.words.last_mut(), len % 64) {
                *last = (1 << past) - 1;
            }
        }
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
    fn filled_bits_are_all_alike() {
        let mut bits = Bits::new();
        for len in [0, 1, 63, 64, 65, 128] {
            bits.fill(len, true);
            assert_eq!((bits.len(), bits.count(), bits.get(len)), (len, len, false));
            bits.fill(len, false);
            assert_eq!((bits.len(), bits.count()), (len, 0));
        }
    }

    #[test]
    fn ones_are_places() {
        assert_eq!(ones(0).count(), 0);
        assert_eq!(ones(1 | 1 << 5 | 1 << 63).collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(ones(u64::MAX).count(), 64);
    }
}
