//! The place of a tail in a generation of its file.

use std::ops::Range;

use dezky_core::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Digest;

/// The maximum number of bytes at the beginning of a generation that are read back to verify a
/// cursor.
pub(crate) const HEAD_BYTES: u64 = 4 << 10;

/// The last consumed line: its length and SHA-256, or those of the kept tail of a line over the
/// limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastLine {
    /// Bytes, without the `\n`.
    pub(crate) bytes: u64,
    /// SHA-256 of them.
    pub(crate) hash: Digest,
}

/// A place in a generation of the file, after a consumed line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file's inode when it was read: only a hint, because inodes are reused.
    pub(crate) inode: u64,
    /// The offset of the first unconsumed byte.
    pub(crate) position: u64,
    /// SHA-256 of the generation's first line; absent in old cursors and before the first line.
    pub(crate) generation: Option<Digest>,
    /// The line before `position`.
    pub(crate) last_line: Option<LastLine>,
    /// The last usable time in the generation up to `position`.
    pub(crate) last_time: Option<Timestamp>,
    /// The file's modification time in nanoseconds since 1970, when it was read.
    pub(crate) mtime_ns: Option<i64>,
    /// The file's birth time in nanoseconds since 1970, if the file system has it. Distinguishes a
    /// file from a later one with the same inode.
    pub(crate) born_ns: Option<i64>,
    /// SHA-256 of the generation's first [`HEAD_BYTES`] bytes, or of those before `position` if
    /// they are fewer.
    pub(crate) head: Option<Digest>,
    /// The number of earlier generations with the same first line.
    pub(crate) repeat: u32,
    /// The position up to which the last of these is known to have had lines; used if its content
    /// is gone.
    pub(crate) reach: u64,
}

impl Place {
    /// The start of a generation.
    pub(crate) fn start(inode: u64, generation: Option<Digest>, mtime_ns: Option<i64>) -> Self {
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

    /// The range to read back before continuing here: the last line and its `\n`.
    pub(crate) fn to_verify(&self) -> Range<u64> {
        let bytes = self.last_line.map_or(0, |line| line.bytes) + 1;
        self.position.saturating_sub(bytes)..self.position
    }

    /// Whether a file with this generation and these bytes at
    /// [`to_verify`](Self::to_verify) is the one that was read.
    ///
    /// An old cursor has neither generation nor line; then the byte before the position must be a
    /// `\n`, and the inode must be the same.
    pub(crate) fn is_in(&self, inode: u64, generation: Option<&Digest>, bytes: &[u8]) -> bool {
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
