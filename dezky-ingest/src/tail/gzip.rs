//! A gzip file, read by the offsets of its content.
//!
//! Content can only be decoded forwards. So the decoder keeps its position between reads, with the
//! bytes it decoded last, and restarts only for earlier ones.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::MultiGzDecoder;

use super::positional::read_at;

/// The number of decoded bytes that are kept, to read them again.
const RECENT_BYTES: usize = 128 << 10;

/// Bytes decoded at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// The number of bytes that may still be decoded just to reach the start of reading. When it is
/// spent, the pull ends, and the next one continues from there.
#[derive(Debug, Default)]
pub(super) struct Budget(AtomicU64);

impl Budget {
    pub(super) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn spend(&self, bytes: u64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(bytes))
        });
    }
}

/// The end of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Complete.
    Whole,
    /// Can't be decoded any further: truncated or damaged.
    Broken,
}

#[derive(Debug)]
pub(super) struct Gzip {
    file: Arc<File>,
    budget: Mutex<Arc<Budget>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    decoder: Option<Box<MultiGzDecoder<BufReader<At>>>>,
    /// Bytes of content decoded so far.
    position: u64,
    /// The last decoded bytes.
    recent: Vec<u8>,
    /// The length of the content and its end, once known.
    end: Option<(u64, End)>,
}

impl Gzip {
    pub(super) fn new(file: Arc<File>, budget: Arc<Budget>) -> Self {
        Self { file, budget: Mutex::new(budget), state: Mutex::default() }
    }

    /// Continues with the budget of another pull.
    pub(super) fn allow(&self, budget: &Arc<Budget>) {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(budget);
    }

    fn budget(&self) -> Arc<Budget> {
        Arc::clone(&self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads at most `buf` at the `offset` of the content; returns 0 at its end. If the budget is
    /// spent, an error means that the offset was not reached yet.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let budget = self.budget();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.end.is_some_and(|(length, _)| offset >= length) {
                return Ok(0);
            }
            let oldest = state.position - state.recent.len() as u64;
            if offset >= oldest && offset < state.position {
                let from = usize::try_from(offset - oldest).unwrap_or(usize::MAX);
                let n = buf.len().min(state.recent.len() - from);
                buf[..n].copy_from_slice(&state.recent[from..from + n]);
                return Ok(n);
            }
            if offset < oldest {
                state.restart();
            }
            if budget.is_spent() && state.position < offset {
                return Err(io::Error::other("the decoding budget of this pull is spent"));
            }
            let decoded = state.decode(&self.file)?;
            if state.position <= offset {
                budget.spend(decoded as u64);
            }
        }
    }

    /// The length of the content and its end, if it was decoded that far.
    pub(super) fn end(&self) -> Option<(u64, End)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).end
    }

    /// The length of the content and its end; decodes all of it.
    pub(super) fn find_end(&self) -> io::Result<(u64, End)> {
        let (mut buf, budget) = ([0; 1], self.budget());
        loop {
            if let Some(end) = self.end() {
                return Ok(end);
            }
            let position = self.state.lock().unwrap_or_else(PoisonError::into_inner).position;
            self.read_at(&mut buf, position)?;
            if budget.is_spent() && self.end().is_none() {
                return Err(io::Error::other("the decoding budget of this pull is spent"));
            }
            // Decoding to find the end counts as skipping.
            budget.spend(CHUNK_BYTES as u64);
        }
    }

    /// Frees the decoder's memory.
    pub(super) fn rest(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).restart();
    }
}

impl State {
    fn restart(&mut self) {
        let end = self.end;
        *self = Self { end, ..Self::default() };
    }

    /// Decodes a further chunk; returns 0 at the end.
    fn decode(&mut self, file: &Arc<File>) -> io::Result<usize> {
        let decoder = self.decoder.get_or_insert_with(|| {
            let file = At { file: Arc::clone(file), offset: 0 };
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(16 << 10, file)))
        });
        let keep = self.recent.len().min(RECENT_BYTES - CHUNK_BYTES);
        self.recent.drain(..self.recent.len() - keep);
        self.recent.resize(keep + CHUNK_BYTES, 0);
        let read = loop {
            match decoder.read(&mut self.recent[keep..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => break done,
            }
        };
        let n = *read.as_ref().unwrap_or(&0);
        self.recent.truncate(keep + n);
        self.position += n as u64;
        match read {
            Ok(0) => self.end = Some((self.position, End::Whole)),
            Ok(_) => {}
            Err(e) => match e.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput => self.end = Some((self.position, End::Broken)),
                _ => {
                    self.restart();
                    return Err(e);
                }
            },
        }
        Ok(n)
    }
}

/// Reads a file from its beginning, regardless of other readers.
#[derive(Debug)]
struct At {
    file: Arc<File>,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = read_at(&self.file, buf, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn compressed(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn gzip(bytes: &[u8], budget: u64) -> Gzip {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let all = Arc::new(Budget::default());
        all.set(budget);
        Gzip::new(Arc::new(file), all)
    }

    fn content(bytes: usize) -> Vec<u8> {
        let number = |n: usize| u8::try_from(n * n / 7 % 251).unwrap();
        (0..bytes).map(number).collect()
    }

    fn read(gzip: &Gzip, offset: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        let mut done = 0;
        while done < bytes {
            match gzip.read_at(&mut read[done..], offset + done as u64).unwrap() {
                0 => break,
                n => done += n,
            }
        }
        read.truncate(done);
        read
    }

    #[test]
    fn any_offset_of_several_members() {
        let content = content(1 << 20);
        let members = [compressed(&content[..300_000]), compressed(&content[300_000..])].concat();
        let gzip = gzip(&members, u64::MAX);
        for offset in [0, 299_990, 5, 700_000, 690_000, 1 << 20, 3] {
            let end = content.len().min(offset + 100);
            assert_eq!(read(&gzip, offset as u64, 100), &content[offset..end]);
        }
        assert_eq!(gzip.find_end().unwrap(), (1 << 20, End::Whole));
        gzip.rest();
        assert_eq!(gzip.end(), Some((1 << 20, End::Whole)));
    }

    #[test]
    fn what_is_cut_off_or_damaged_gives_what_was_before() {
        let content = content(1 << 20);
        let whole = compressed(&content);
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 50].fill(0xff);
        for bytes in [&whole[..whole.len() / 2], &damaged, &whole[..whole.len() - 4]] {
            let gzip = gzip(bytes, u64::MAX);
            let (length, end) = gzip.find_end().unwrap();
            assert_eq!(end, End::Broken);
            let length = usize::try_from(length).unwrap();
            assert_eq!(read(&gzip, 0, 100), &content[..100]);
            if bytes.len() < whole.len() {
                assert_eq!(read(&gzip, 0, length), &content[..length]);
            }
        }
        for bytes in [&b""[..], b"\x1f\x8b", b"not gzip at all"] {
            assert_eq!(gzip(bytes, u64::MAX).find_end().unwrap(), (0, End::Broken));
        }
    }

    #[test]
    fn a_spent_budget_stops_the_way_and_keeps_what_was_done() {
        let content = content(4 << 20);
        let gzip = gzip(&compressed(&content), 1 << 20);
        let mut buf = [0; 10];
        let mut pulls = 0;
        while gzip.read_at(&mut buf, 4_000_000).is_err() {
            assert!(gzip.budget().is_spent());
            gzip.budget().set(1 << 20);
            pulls += 1;
        }
        assert_eq!((pulls, &buf[..]), (3, &content[4_000_000..4_000_010]));
    }
}
