//! Splits bytes into lines.
//!
//! A line exists once its `\n` does: the size of a file moves page by page while a long line is
//! being written, so the unterminated rest is not a line yet.

use std::ops::ControlFlow;

use memchr::memchr;
use sha2::{Digest as _, Sha256};

use super::Digest;
use super::cut::Cutter;

/// The largest `max_line_bytes`, and so the maximum that is read back to verify a cursor.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// The number of bytes kept of the beginning and of the end of a line over the limit.
pub const LONG_LINE_KEPT_BYTES: usize = 4 << 10;

/// A complete line, without its `\n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A line within the bound.
    Line {
        /// Its offset.
        offset: u64,
        /// Its bytes, including a `\r` before the `\n`.
        bytes: &'a [u8],
    },
    /// A line over the bound, of which only both ends are kept.
    TooLong {
        /// Its offset.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Its first bytes, at most [`LONG_LINE_KEPT_BYTES`].
        head: &'a [u8],
        /// Its last bytes, at most [`LONG_LINE_KEPT_BYTES`].
        tail: &'a [u8],
        /// The line with its long values cut, if it is a JSON object of at most 64 MiB.
        short: Option<Short<'a>>,
    },
}

/// A JSON object whose long values were cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short<'a> {
    /// The object, at most some 520 KiB.
    pub(crate) text: &'a [u8],
    /// SHA-256 of the original line.
    pub(crate) hash: Digest,
}

impl Frame<'_> {
    /// The offset of the byte after the line's `\n`.
    pub(crate) fn end(&self) -> u64 {
        match *self {
            Self::Line { offset, bytes } => offset + len(bytes) + 1,
            Self::TooLong { offset, bytes, .. } => offset + bytes + 1,
        }
    }
}

/// A line framer: takes chunks, returns complete lines.
///
/// The lines do not depend on how the bytes are split into chunks. Holds at most one line of
/// `max_line_bytes`, or both ends of a longer one.
#[derive(Debug, Clone)]
pub(crate) struct Framer {
    max_line_bytes: usize,
    line_start: u64,
    next: u64,
    /// The line so far, or the head of one that is too long.
    partial: Vec<u8>,
    long: Option<Long>,
}

/// The state of a line over the limit, apart from its head.
#[derive(Debug, Clone)]
struct Long {
    bytes: u64,
    tail: Vec<u8>,
    /// Present while it may be an object that can be cut.
    short: Option<Box<(Cutter, Sha256)>>,
}

impl Long {
    fn new(beginning: &[u8]) -> Self {
        let mut long = Self {
            bytes: 0,
            tail: Vec::new(),
            short: Some(Box::new((Cutter::new(), Sha256::new()))),
        };
        long.absorb(beginning, LONG_LINE_KEPT_BYTES);
        long
    }

    fn absorb(&mut self, part: &[u8], kept: usize) {
        self.bytes += len(part);
        self.tail.extend_from_slice(&part[part.len() - kept.min(part.len())..]);
        self.tail.drain(..self.tail.len() - kept.min(self.tail.len()));
        if let Some((cutter, hash)) = self.short.as_deref_mut() {
            hash.update(part);
            if !cutter.push(part) || self.bytes > MAX_LINE_BYTES as u64 {
                self.short = None;
            }
        }
    }

    fn frame<'a>(&'a self, offset: u64, head: &'a [u8]) -> Frame<'a> {
        let short = self.short.as_deref().and_then(|(cutter, hash)| {
            Some(Short { text: cutter.text()?, hash: hash.clone().finalize().into() })
        });
        Frame::TooLong { offset, bytes: self.bytes, head, tail: &self.tail, short }
    }
}

impl Framer {
    /// Creates a framer for bytes that begin at `offset`, the start of a line.
    pub(crate) fn new(offset: u64, max_line_bytes: usize) -> Self {
        Self { max_line_bytes, line_start: offset, next: offset, partial: Vec::new(), long: None }
    }

    /// The offset at which the next chunk begins.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next
    }

    /// The offset of the unterminated line.
    pub(crate) fn line_start(&self) -> u64 {
        self.line_start
    }

    /// The last bytes of the unterminated line, at most [`LONG_LINE_KEPT_BYTES`].
    pub(crate) fn tail(&self) -> &[u8] {
        let bytes = self.long.as_ref().map_or(&self.partial, |long| &long.tail);
        &bytes[bytes.len() - self.kept().min(bytes.len())..]
    }

    /// Takes the `chunk` at [`next_offset`](Self::next_offset) and calls `each`
    /// with every line that it completes. After a break the rest of the chunk is
    /// not taken: `next_offset` is the start of the next line.
    pub(crate) fn push<B>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Frame<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut rest = chunk;
        while let Some(end) = memchr(b'\n', rest) {
            let part = &rest[..end];
            rest = &rest[end + 1..];
            let offset = self.line_start;
            self.next += len(part) + 1;
            self.line_start = self.next;
            let is_whole = self.partial.is_empty() && self.long.is_none();
            let flow = if is_whole && part.len() <= self.max_line_bytes {
                // The common case borrows from the chunk.
                each(Frame::Line { offset, bytes: part })
            } else {
                self.absorb(part);
                let partial = std::mem::take(&mut self.partial);
                let flow = match self.long.take() {
                    None => each(Frame::Line { offset, bytes: &partial }),
                    Some(long) => each(long.frame(offset, &partial)),
                };
                if partial.capacity() <= self.max_line_bytes {
                    self.partial = partial;
                    self.partial.clear();
                }
                flow
            };
            flow?;
        }
        self.next += len(rest);
        self.absorb(rest);
        ControlFlow::Continue(())
    }

    /// The bytes after the last `\n` as a line; `None` if there are none.
    pub(crate) fn unterminated(&self) -> Option<Frame<'_>> {
        let offset = self.line_start;
        match &self.long {
            Some(long) => Some(long.frame(offset, &self.partial)),
            None if self.partial.is_empty() => None,
            None => Some(Frame::Line { offset, bytes: &self.partial }),
        }
    }

    fn kept(&self) -> usize {
        LONG_LINE_KEPT_BYTES.min(self.max_line_bytes)
    }

    fn absorb(&mut self, part: &[u8]) {
        let kept = self.kept();
        if self.long.is_none() {
            if self.partial.len() + part.len() <= self.max_line_bytes {
                self.partial.extend_from_slice(part);
                return;
            }
            let before = std::mem::take(&mut self.partial);
            self.long = Some(Long::new(&before));
            self.partial = before[..kept.min(before.len())].to_vec();
        }
        let missing = kept - self.partial.len().min(kept);
        self.partial.extend_from_slice(&part[..missing.min(part.len())]);
        if let Some(long) = &mut self.long {
            long.absorb(part, kept);
        }
    }
}

fn len(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Owned {
        Line(u64, Vec<u8>),
        TooLong(u64, u64, Vec<u8>, Vec<u8>, Option<(Vec<u8>, Digest)>),
    }

    fn owned(frame: Frame<'_>) -> Owned {
        match frame {
            Frame::Line { offset, bytes } => Owned::Line(offset, bytes.to_vec()),
            Frame::TooLong { offset, bytes, head, tail, short } => {
                let short = short.map(|short| (short.text.to_vec(), short.hash));
                Owned::TooLong(offset, bytes, head.to_vec(), tail.to_vec(), short)
            }
        }
    }

    fn run(chunks: &[&[u8]], start: u64, max: usize) -> (Vec<Owned>, Option<Owned>) {
        let mut framer = Framer::new(start, max);
        let mut lines = Vec::new();
        for chunk in chunks {
            let flow: ControlFlow<()> = framer.push(chunk, |frame| {
                lines.push(owned(frame));
                ControlFlow::Continue(())
            });
            assert!(flow.is_continue());
        }
        let rest = framer.unterminated().map(owned);
        (lines, rest)
    }

    #[test]
    fn lines_offsets_and_the_unterminated_rest() {
        let (lines, rest) = run(&[b"ab\r\n\nc", b"d\nef"], 7, 10);
        assert_eq!(
            lines,
            [
                Owned::Line(7, b"ab\r".to_vec()),
                Owned::Line(11, b"".to_vec()),
                Owned::Line(12, b"cd".to_vec())
            ]
        );
        assert_eq!(rest, Some(Owned::Line(15, b"ef".to_vec())));
    }

    #[test]
    fn a_break_leaves_the_framer_at_the_next_line() {
        let mut framer = Framer::new(0, 10);
        let chunk = b"one\ntwo\nthree\n";
        assert!(framer.push(chunk, |_| ControlFlow::Break(())).is_break());
        assert_eq!(framer.next_offset(), 4);
        let mut seen = Vec::new();
        let _: ControlFlow<()> = framer.push(&chunk[4..], |frame| {
            seen.push(owned(frame));
            ControlFlow::Continue(())
        });
        assert_eq!(seen, [Owned::Line(4, b"two".to_vec()), Owned::Line(8, b"three".to_vec())]);
    }

    #[test]
    fn a_long_line_keeps_its_ends_and_bounded_memory() {
        let mut framer = Framer::new(0, 8 << 10);
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..8 {
            let _: ControlFlow<()> = framer.push(&chunk, |_| unreachable!("no newline yet"));
            assert!(framer.partial.capacity() <= 16 << 10);
        }
        let mut seen = None;
        let _: ControlFlow<()> = framer.push(b"end\nnext\n", |frame| {
            seen.get_or_insert(owned(frame));
            ControlFlow::Continue(())
        });
        let Some(Owned::TooLong(0, bytes, head, tail, None)) = seen else { panic!("{seen:?}") };
        assert_eq!(bytes, (8 << 20) + 3);
        assert_eq!(head, vec![b'x'; LONG_LINE_KEPT_BYTES]);
        assert!(tail.len() == LONG_LINE_KEPT_BYTES && tail.ends_with(b"xend"));
    }

    #[test]
    fn a_long_object_is_cut_and_hashed_whole_up_to_64_mib() {
        let line = |bytes: usize| format!("{{\"a\":1,\"x\":\"{}\"}}", "y".repeat(bytes - 14));
        for (bytes, is_cut) in
            [(8 << 10, true), (MAX_LINE_BYTES, true), (MAX_LINE_BYTES + 1, false)]
        {
            let line = line(bytes);
            let mut framer = Framer::new(0, 1 << 10);
            let mut seen = None;
            for chunk in format!("{line}\n").as_bytes().chunks(1 << 20) {
                let _: ControlFlow<()> = framer.push(chunk, |frame| {
                    seen = Some(owned(frame));
                    ControlFlow::Continue(())
                });
                assert!(framer.partial.capacity() <= 4 << 10);
            }
            let Some(Owned::TooLong(0, length, .., short)) = seen else { panic!("{seen:?}") };
            assert_eq!((length, short.is_some()), (bytes as u64, is_cut));
            if let Some((text, hash)) = short {
                assert!(text.starts_with(br#"{"a":1,"x":"yy"#) && text.len() < 5_000);
                assert_eq!(hash, Digest::from(Sha256::digest(line)));
            }
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            mut cuts in prop::collection::vec(0_usize..200, 0..12),
            max in 1_usize..24,
            start in 0_u64..1_000,
        ) {
            cuts.retain(|cut| *cut <= bytes.len());
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&bytes[from..cut]);
                from = cut;
            }
            chunks.push(&bytes[from..]);
            let whole = run(&[&bytes], start, max);
            prop_assert_eq!(&run(&chunks, start, max), &whole);

            // The lines and the bytes between them are the input again.
            let mut offset = start;
            let mut parts: Vec<_> = bytes.split(|b| *b == b'\n').collect();
            parts.pop();
            prop_assert_eq!(parts.len(), whole.0.len());
            for (part, line) in parts.iter().zip(&whole.0) {
                match line {
                    Owned::Line(at, bytes) => {
                        prop_assert!(bytes.len() <= max);
                        prop_assert_eq!((*at, bytes.as_slice()), (offset, *part));
                    }
                    Owned::TooLong(at, bytes, head, tail, short) => {
                        let is_open = part.contains(&b'{');
                        prop_assert!(short.is_none() || is_open);
                        prop_assert!(part.len() > max);
                        prop_assert_eq!((*at, *bytes), (offset, part.len() as u64));
                        prop_assert!(part.starts_with(head) && part.ends_with(tail));
                    }
                }
                offset += part.len() as u64 + 1;
            }
        }
    }
}
