//! Digests of several parts.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// A SHA-256 over parts, each with its length, so that no two lists of parts are equal.
#[derive(Clone)]
pub(super) struct Digest(Sha256);

impl Digest {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    #[must_use]
    pub(super) fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    /// A part that may be absent, which differs from an empty one.
    #[must_use]
    pub(super) fn optional(self, part: Option<&str>) -> Self {
        match part {
            Some(part) => self.part([1]).part(part),
            None => self.part([0]),
        }
    }

    /// 40 hex digits.
    pub(super) fn hex(self) -> String {
        let digest: [u8; 32] = self.0.finalize().into();
        digest[..20].iter().fold(String::with_capacity(40), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// A hash for tables.
    pub(super) fn number(self) -> u64 {
        let digest: [u8; 32] = self.0.finalize().into();
        digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
