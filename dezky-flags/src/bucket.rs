//! Rollout buckets: a tenant's permanent position in a flag's rollout.

use crate::digest::{LANES, LaneWords, Words, digest};

/// Returns a tenant's bucket for a flag, 0 to 99: SHA-256 of the UTF-8 bytes of `tenant_id`, `:`
/// and `key`, interpreted as a 256-bit big-endian integer, mod 100.
///
/// The bucket depends on neither the percentage nor the scope, so raising a percentage only adds
/// tenants. Accepts any strings; allocates nothing.
///
/// ```
/// use dezky_flags::bucket;
/// assert_eq!(bucket("1d0e6fde-e431-7835-82c1-a48a8b044551", "partner_portal"), 21);
/// ```
pub fn bucket(tenant_id: &str, key: &str) -> u8 {
    BucketAlgorithm::Whole.bucket(tenant_id, key)
}

/// Returns a tenant's bucket in hundredths, 0 to 9,999, for rollouts finer than a percent.
///
/// With x being the integer of [`bucket`] mod 10,000, the result is (x mod 100)·100 + x div 100.
/// Its hundreds equal [`bucket`], so whole percentages include the same tenants either way.
///
/// ```
/// use dezky_flags::{bucket, fine_bucket};
/// let fine = fine_bucket("1d0e6fde-e431-7835-82c1-a48a8b044551", "partner_portal");
/// assert_eq!(fine / 100, u16::from(bucket("1d0e6fde-e431-7835-82c1-a48a8b044551", "partner_portal")));
/// ```
pub fn fine_bucket(tenant_id: &str, key: &str) -> u16 {
    BucketAlgorithm::Whole.fine_bucket(tenant_id, key)
}

/// Whether a tenant is inside a rollout of `pct` percent.
///
/// ```
/// use dezky_flags::in_rollout_bucket;
/// let tenant = "1d0e6fde-e431-7835-82c1-a48a8b044551";
/// assert!(!in_rollout_bucket(tenant, "partner_portal", 21));
/// assert!(in_rollout_bucket(tenant, "partner_portal", 22));
/// ```
pub fn in_rollout_bucket(tenant_id: &str, key: &str, pct: u8) -> bool {
    bucket(tenant_id, key) < pct
}

/// The algorithm that turns a digest into a number.
///
/// ```
/// use dezky_flags::BucketAlgorithm;
/// assert_eq!(BucketAlgorithm::default().bucket("", ""), 35);
/// // 0xe7ac0786 mod 100
/// assert_eq!(BucketAlgorithm::Prefix32.bucket("", ""), 14);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum BucketAlgorithm {
    /// The whole digest, as [`bucket`] does.
    #[default]
    Whole,
    /// The first 32 bits, big-endian: for systems that have rolled out with these, so that no flag
    /// changes for any tenant after the migration.
    Prefix32,
}

impl BucketAlgorithm {
    /// Returns the bucket by this algorithm, 0 to 99.
    pub fn bucket(self, tenant_id: &str, key: &str) -> u8 {
        u8::try_from(self.fine_bucket(tenant_id, key) / 100).unwrap_or(0)
    }

    /// Returns the bucket in hundredths by this algorithm, 0 to 9,999; see [`fine_bucket`].
    pub fn fine_bucket(self, tenant_id: &str, key: &str) -> u16 {
        self.fine(&digest(tenant_id.as_bytes(), key.as_bytes()))
    }

    /// The bucket in hundredths for a digest.
    pub(crate) fn fine(self, digest: &Words) -> u16 {
        let number = match self {
            Self::Whole => {
                digest.iter().zip(POWERS).map(|(word, power)| u64::from(*word) * power).sum()
            }
            Self::Prefix32 => u64::from(digest[0]),
        };
        hundredths(number)
    }

    /// The buckets for the digests of all lanes, which are stored word by word.
    pub(crate) fn fine_of_lanes(self, digests: &LaneWords) -> [u16; LANES] {
        let numbers = match self {
            Self::Whole => {
                let mut sums = [0; LANES];
                for (words, power) in digests.iter().zip(POWERS) {
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum += u64::from(*word) * power;
                    }
                }
                sums
            }
            Self::Prefix32 => digests[0].map(u64::from),
        };
        numbers.map(hundredths)
    }
}

/// The bucket for a number that is congruent to the digest's number mod 10,000.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "below 10,000")]
fn hundredths(number: u64) -> u16 {
    let x = (number % 10_000) as u32;
    (x % 100 * 100 + x / 100) as u16
}

/// 2^224, 2^192, … 2^0, mod 10,000. The sum of eight words below 2^32, each multiplied by one of
/// these, does not overflow 64 bits.
const POWERS: [u64; 8] = [9_216, 2_896, 2_976, 1_456, 336, 1_616, 7_296, 1];
