//! Reads the lines of a generation and decodes them.

use std::ops::ControlFlow;

use dezky_core::{PulledEvent, QuarantineItem, Timestamp};
use memchr::memchr;
use sha2::{Digest as _, Sha256};

use super::frame::{Frame, Framer, Short};
use super::{Cut, DecodedLine, Digest, LastLine, Line, LineDecoder, Place};

/// The maximum number of bytes of a first line in the hash of its generation.
pub(super) const GENERATION_MAX_BYTES: u64 = 16 << 20;

/// Hashes the first line of a file, chunk by chunk, which identifies a generation.
#[derive(Debug, Default)]
pub(super) struct GenerationHash {
    hash: Sha256,
    taken: u64,
}

impl GenerationHash {
    /// Takes the next bytes of the file. Returns the hash once the line is complete; of a longer
    /// line, only the first [`GENERATION_MAX_BYTES`] count.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Option<Digest> {
        let line_end = memchr(b'\n', chunk);
        let room = usize::try_from(GENERATION_MAX_BYTES - self.taken).unwrap_or(usize::MAX);
        let end = line_end.unwrap_or(chunk.len()).min(room);
        self.hash.update(&chunk[..end]);
        self.taken += end as u64;
        line_end.map(|_| std::mem::take(self).end())
    }

    /// The hash of a line without a `\n`: the same as when the `\n` follows.
    pub(super) fn end(self) -> Digest {
        self.hash.finalize().into()
    }
}

/// Events and items of a pull so far.
#[derive(Debug)]
pub(super) struct Batch {
    /// The events.
    pub(super) events: Vec<PulledEvent>,
    /// Items for the quarantine.
    pub(super) quarantine: Vec<QuarantineItem>,
    /// Lines skipped on purpose.
    pub(super) skipped: u64,
    items_left: usize,
    bytes_left: u64,
}

impl Batch {
    /// Creates an empty batch that is full after `max_items` events and quarantine items, or
    /// `max_bytes` of lines; it takes at least one line.
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self {
            events: Vec::new(),
            quarantine: Vec::new(),
            skipped: 0,
            items_left: max_items.max(1),
            bytes_left: max_bytes.max(1) as u64,
        }
    }

    /// Whether the batch takes no further line.
    pub(super) fn is_full(&self) -> bool {
        self.items_left == 0 || self.bytes_left == 0
    }

    /// Adds an event.
    pub(super) fn event(&mut self, event: impl Into<PulledEvent>) {
        self.events.push(event.into());
        self.items_left = self.items_left.saturating_sub(1);
    }

    fn quarantined(&mut self, item: QuarantineItem) {
        self.quarantine.push(item);
        self.items_left = self.items_left.saturating_sub(1);
    }

    fn decoded(&mut self, decoded: DecodedLine) {
        match decoded {
            DecodedLine::Event(event) => self.event(*event),
            DecodedLine::Skipped => self.skipped += 1,
            DecodedLine::Quarantine(item) => self.quarantined(*item),
        }
    }
}

/// Tells whether an earlier generation had the same line at the same offset. Of a line over the
/// limit, only the beginning is available and compared.
pub(super) type HadLine<'a> = dyn FnMut(u64, &[u8], IsWhole) -> bool + 'a;

/// Whether the bytes are the whole line.
pub(super) type IsWhole = bool;

/// Reads a generation from a place on.
pub(super) struct Reading<'a> {
    source: &'a str,
    decoder: &'a dyn LineDecoder,
    generation: Digest,
    now: Timestamp,
    place: Place,
    framer: Framer,
    had_line: Option<Box<HadLine<'a>>>,
}

impl<'a> Reading<'a> {
    /// Continues at `place` in the generation, for `source` and with lines up to `max_line_bytes`.
    pub(super) fn new(
        source: &'a str,
        decoder: &'a dyn LineDecoder,
        max_line_bytes: usize,
        generation: Digest,
        now: Timestamp,
        place: Place,
    ) -> Self {
        let framer = Framer::new(place.position, max_line_bytes);
        Self { source, decoder, generation, now, place, framer, had_line: None }
    }

    /// For a generation with the same first line as earlier ones: a line for which `had_line` holds
    /// has the place's [`repeat`](Place::repeat) in its identity.
    #[must_use]
    pub(super) fn with_repeats(mut self, had_line: Box<HadLine<'a>>) -> Self {
        self.had_line = Some(had_line);
        self
    }

    /// The offset of the bytes that [`push`](Self::push) takes next.
    pub(super) fn next_offset(&self) -> u64 {
        self.framer.next_offset()
    }

    /// Takes the next bytes; breaks as soon as `batch` is full.
    pub(super) fn push(&mut self, chunk: &[u8], batch: &mut Batch) -> ControlFlow<()> {
        let Self { source, decoder, generation, now, place, framer, had_line } = self;
        framer.push(chunk, |frame| {
            let mut line = line_of(source, generation, *now, true, frame);
            line.repeat = repeat(place, had_line, frame);
            decode(*decoder, line, frame, &mut place.last_time, batch);
            let verified = match frame {
                Frame::Line { bytes, .. } => bytes,
                Frame::TooLong { tail, .. } => tail,
            };
            place.last_line = Some(LastLine {
                bytes: verified.len() as u64,
                hash: Sha256::digest(verified).into(),
            });
            batch.bytes_left = batch.bytes_left.saturating_sub(frame.end() - place.position);
            place.position = frame.end();
            if batch.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }

    /// Takes the bytes after the last `\n`, for a file that no longer grows. The place stays before
    /// them.
    pub(super) fn end(&mut self, batch: &mut Batch) {
        let Some(frame) = self.framer.unterminated() else { return };
        let mut line = line_of(self.source, &self.generation, self.now, false, frame);
        line.repeat = repeat(&self.place, &mut self.had_line, frame);
        let mut last_time = self.place.last_time;
        decode(self.decoder, line, frame, &mut last_time, batch);
    }

    /// Continues after the bytes that `framer` has already taken from the place on.
    #[must_use]
    pub(super) fn with_framer(mut self, framer: Framer) -> Self {
        self.framer = framer;
        self
    }

    /// The current place, and the framer with its part of the next line.
    pub(super) fn into_parts(self) -> (Place, Framer) {
        (self.place, self.framer)
    }

    /// The number of bytes taken after the last complete line.
    pub(super) fn open_bytes(&self) -> u64 {
        self.framer.next_offset().saturating_sub(self.framer.line_start())
    }
}

/// Passes a line to its decoder: a line over the limit with its long values cut if it is a JSON
/// object, otherwise only its head.
fn decode(
    decoder: &dyn LineDecoder,
    line: Line<'_>,
    frame: Frame<'_>,
    last_time: &mut Option<Timestamp>,
    batch: &mut Batch,
) {
    match frame {
        Frame::TooLong { bytes, short: None, .. } => {
            batch.quarantined(decoder.too_long(line, bytes));
        }
        Frame::TooLong { bytes, short: Some(Short { text, hash }), .. } => {
            let line = Line { bytes: text, cut: Some(Cut { bytes, hash }), ..line };
            decoder.decode(line, last_time, &mut |decoded| batch.decoded(decoded));
        }
        Frame::Line { .. } => {
            decoder.decode(line, last_time, &mut |decoded| batch.decoded(decoded));
        }
    }
}

fn repeat(place: &Place, had_line: &mut Option<Box<HadLine<'_>>>, frame: Frame<'_>) -> u32 {
    let Some(had) = had_line else { return 0 };
    let (offset, bytes, is_whole) = match frame {
        Frame::Line { offset, bytes } => (offset, bytes, true),
        Frame::TooLong { offset, head, .. } => (offset, head, false),
    };
    // Generations with the same first line share at least that line.
    if offset == 0 || had(offset, bytes, is_whole) { place.repeat } else { 0 }
}

fn line_of<'a>(
    source: &'a str,
    generation: &'a Digest,
    now: Timestamp,
    is_complete: bool,
    frame: Frame<'a>,
) -> Line<'a> {
    let (offset, bytes) = match frame {
        Frame::Line { offset, bytes } => (offset, bytes),
        Frame::TooLong { offset, head, .. } => (offset, head),
    };
    Line { source, generation, offset, bytes, cut: None, repeat: 0, is_complete, now }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_generation_is_its_first_line() {
        let expected: Digest = Sha256::digest("first\r").into();
        let mut hash = GenerationHash::default();
        assert_eq!(hash.push(b"fir"), None);
        assert_eq!(hash.push(b"st\r\nsecond\n"), Some(expected));
        let mut long = GenerationHash::default();
        let chunk = vec![b'x'; 1 << 20];
        let mut bounded = Sha256::new();
        for n in 0..18 {
            assert_eq!(long.push(&chunk), None, "a line without its end is not complete");
            if n < 16 {
                bounded.update(&chunk);
            }
        }
        assert_eq!(long.push(b"x\n"), Some(bounded.finalize().into()));
    }

    proptest! {
        #[test]
        fn generations_hash_alike_however_read(line in "[a-z]{0,40}", cut in 0_usize..40) {
            let file = format!("{line}\nmore\n");
            let cut = cut.min(line.len());
            let mut hash = GenerationHash::default();
            let first = hash.push(&file.as_bytes()[..cut]);
            prop_assert_eq!(first, None);
            let expected: Digest = Sha256::digest(line.as_bytes()).into();
            prop_assert_eq!(hash.push(&file.as_bytes()[cut..]), Some(expected));
        }
    }
}
