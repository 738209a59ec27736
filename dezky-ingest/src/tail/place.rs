//! Where a tail stands in one generation of its file.

use std::ops::Range;

use dezky_core::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Digest;

/// The most bytes of the beginning of a generation that are read back to verify a
/// cursor.
pub const HEAD_BYTES: u64 = 4 << 10;

/// The last consumed line: its length and SHA-256, or of an over-long one those
/// of its kept tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastLine {
    /// Bytes, without the `\n`.
    pub bytes: u64,
    /// SHA-256 of them.
    pub hash: Digest,
}

/// A place in one generation of the file, after a line that was consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's inode when it was read: a hint, as inodes are used again.
    pub inode: u64,
    /// The offset of the first byte not consumed.
    pub position: u64,
    /// SHA-256 of the generation's first line; absent in old cursors and where
    /// no line was there yet.
    pub generation: Option<Digest>,
    /// The line before `position`.
    pub last_line: Option<LastLine>,
    /// The last usable time in the generation up to `position`.
    pub last_time: Option<Timestamp>,
    /// When the file was last written, in nanoseconds since 1970, as of reading.
    pub mtime_ns: Option<i64>,
    /// When the file was made, in nanoseconds since 1970, where the file system
    /// says so. With the inode it tells a file from a later one of its number.
    pub born_ns: Option<i64>,
    /// SHA-256 of the generation's first bytes: [`HEAD_BYTES`] of them, or as many
    /// as lie before `position`.
    pub head: Option<Digest>,
    /// How many earlier generations began with the same first line.
    pub repeat: u32,
    /// Up to where the last of these is known to have had lines: what is compared
    /// with it where its content is gone.
    pub reach: u64,
}

impl Place {
    /// The beginning of a generation.
    pub fn start(inode: u64, generation: Option<Digest>, mtime_ns: Option<i64>) -> Self {
        Self {
            inode,
            position: 0,
            generation,
            last_line: None,
            last_time: None,
            mtime_ns,
            born_ns: None,
            head: None,
            repeat: 0,
            reach: 0,
        }
    }

    /// The length of what [`head`](Self::head) is the hash of.
    pub fn head_bytes(&self) -> u64 {
        self.position.min(HEAD_BYTES)
    }

    /// The bytes to read back before going on here: the last line and its `\n`.
    pub fn to_verify(&self) -> Range<u64> {
        let bytes = self.last_line.map_or(0, |line| line.bytes) + 1;
        self.position.saturating_sub(bytes)..self.position
    }

    /// Whether a file with this generation and these bytes at
    /// [`to_verify`](Self::to_verify) is the one that was read.
    ///
    /// An old cursor knows neither generation nor line: there the byte before
    /// the position must be a `\n` and the inode the same.
    pub fn is_in(&self, inode: u64, generation: Option<&Digest>, bytes: &[u8]) -> bool {
        let Some((newline, line)) = bytes.split_last() else {
            return self.position == 0 && self.same_generation(inode, generation);
        };
        let range = self.to_verify();
        self.same_generation(inode, generation)
            && bytes.len() as u64 == range.end - range.start
            && *newline == b'\n'
            && self.last_line.is_none_or(|last| last.hash == Digest::from(Sha256::digest(line)))
    }

    fn same_generation(&self, inode: u64, generation: Option<&Digest>) -> bool {
        match &self.generation {
            Some(known) => generation == Some(known),
            None => inode == self.inode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        [byte; 32]
    }

    #[test]
    fn a_place_is_found_again_by_generation_and_last_line() {
        let place = Place {
            position: 10,
            last_line: Some(LastLine { bytes: 4, hash: Sha256::digest("last").into() }),
            ..Place::start(7, Some(digest(1)), None)
        };
        assert_eq!(place.to_verify(), 5..10);
        assert!(place.is_in(8, Some(&digest(1)), b"last\n"), "the inode is a hint");
        assert!(!place.is_in(7, Some(&digest(2)), b"last\n"));
        assert!(!place.is_in(7, None, b"last\n"));
        assert!(!place.is_in(7, Some(&digest(1)), b"lost\n"));
        assert!(!place.is_in(7, Some(&digest(1)), b"lastx"));
        assert!(!place.is_in(7, Some(&digest(1)), b"last"), "shorter than what was read");
        assert!(!place.is_in(7, Some(&digest(1)), b""));

        let old = Place { position: 10, ..Place::start(7, None, None) };
        assert_eq!(old.to_verify(), 9..10);
        assert!(old.is_in(7, Some(&digest(2)), b"\n"));
        assert!(!old.is_in(8, Some(&digest(2)), b"\n"));
        assert!(!old.is_in(7, Some(&digest(2)), b"x"));
    }
}
