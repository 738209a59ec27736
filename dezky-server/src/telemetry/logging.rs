//! Logs, written to the standard error by a dedicated thread, so that a broken, full or blocked
//! sink never affects service. Lines that could not be written are counted, and the count is
//! logged when the sink accepts lines again.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dezky_core::Runtime as _;
use dezky_core::rt::TokioRuntime;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogConfig;

/// The maximum size of the lines that wait for the sink, in bytes.
const MAX_WAITING_BYTES: usize = 256 << 10;
/// The interval at which the count of lost lines is offered to the sink.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// The maximum time that the process waits for pending lines before it exits.
const END_TIMEOUT: Duration = Duration::from_secs(3);

static LOG: OnceLock<&'static Log> = OnceLock::new();

/// Starts logging to the standard error as configured, panics included.
pub(crate) fn start(config: &LogConfig) {
    let log = *LOG.get_or_init(|| {
        let log: &'static Log = Box::leak(Box::new(Log::new(config.json)));
        // A separate handle: the lock of the standard library's handle would be held while
        // the sink blocks.
        let sink = io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
        let writes = std::thread::Builder::new().name("log".into());
        let _ = writes.spawn(move || match sink {
            Ok(sink) => log.write_to(sink),
            Err(_) => log.write_to(io::stderr()),
        });
        std::panic::set_hook(Box::new(|panic| tracing::error!("a task panicked: {panic}")));
        log
    });
    let filter = tracing_subscriber::EnvFilter::new(&config.level);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log)
        .with_ansi(io::stderr().is_terminal());
    // A second start in one process keeps the first configuration.
    let _ = if config.json { builder.json().try_init() } else { builder.try_init() };
}

/// Waits briefly until pending lines are written.
pub(crate) fn end() {
    if let Some(log) = LOG.get() {
        log.flush(END_TIMEOUT);
    }
}

/// Writes a line to the standard error after the pending log lines, if possible. Waits no longer
/// for a blocked sink than the end of the process does.
pub(crate) fn tell(line: &str) {
    let line = format!("{line}\n");
    let Some(log) = LOG.get() else {
        let _ = io::stderr().write_all(line.as_bytes());
        return;
    };
    log.push_within(line.as_bytes(), usize::MAX);
    log.flush(END_TIMEOUT);
}

/// Lines that wait for the sink.
struct Log {
    json: bool,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The number of lost lines that was not logged yet.
    lost: u64,
    /// Whether removed lines are being written.
    is_writing: bool,
}

impl Log {
    fn new(json: bool) -> Self {
        Self { json, waiting: Mutex::default(), changed: Condvar::new() }
    }

    fn push(&self, line: &[u8]) {
        self.push_within(line, MAX_WAITING_BYTES);
    }

    fn push_within(&self, line: &[u8], max_waiting_bytes: usize) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > max_waiting_bytes {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_owned());
        drop(waiting);
        self.changed.notify_all();
    }

    /// Writes lines forever.
    fn write_to(&self, sink: impl Write) {
        let mut sink = Sink { sink, is_torn: false };
        loop {
            self.write_next(&mut sink);
        }
    }

    /// Waits for lines, or for an interval if lost lines are to be reported, and writes them.
    fn write_next(&self, sink: &mut Sink<impl Write>) {
        let mut waiting = self.waiting();
        while waiting.lines.is_empty() {
            let (woken, is_time) = if waiting.lost > 0 {
                let (woken, timeout) = self
                    .changed
                    .wait_timeout(waiting, TELL_EVERY)
                    .unwrap_or_else(PoisonError::into_inner);
                (woken, timeout.timed_out())
            } else {
                (self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner), false)
            };
            waiting = woken;
            if is_time {
                break;
            }
        }
        let lines = std::mem::take(&mut waiting.lines);
        let mut lost = std::mem::take(&mut waiting.lost);
        waiting.is_writing = true;
        drop(waiting);
        let mut written = 0;
        for line in &lines {
            let is_written = self.tell_of(&mut lost, sink) && sink.write(line);
            lost += u64::from(!is_written);
            written += line.len();
        }
        self.tell_of(&mut lost, sink);
        let mut waiting = self.waiting();
        // Lines that are being written count as waiting.
        waiting.bytes -= written;
        waiting.lost += lost;
        waiting.is_writing = false;
        drop(waiting);
        self.changed.notify_all();
    }

    /// Logs the number of lost lines. Returns whether the sink accepted it, or none are lost.
    fn tell_of(&self, lost: &mut u64, sink: &mut Sink<impl Write>) -> bool {
        if *lost > 0 && sink.write(self.notice(*lost).as_bytes()) {
            *lost = 0;
        }
        *lost == 0
    }

    fn notice(&self, lost: u64) -> String {
        let (now, target) = (TokioRuntime.now(), module_path!());
        let message = format!("{lost} lines of the log were lost: it could not be written");
        if self.json {
            return format!(
                r#"{{"timestamp":"{now}","level":"WARN","fields":{{"message":"{message}","lines":{lost}}},"target":"{target}"}}
"#
            );
        }
        format!("{now}  WARN {target}: {message}\n")
    }

    fn flush(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut waiting = self.waiting();
        while waiting.is_writing || !waiting.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.changed.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts whole lines, each in one write, and never fails.
impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for &'static Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self
    }
}

struct Sink<W> {
    sink: W,
    /// Whether the last line was written in part.
    is_torn: bool,
}

impl<W: Write> Sink<W> {
    /// Whether the sink accepted the whole line.
    fn write(&mut self, line: &[u8]) -> bool {
        let mut left = line;
        if self.is_torn {
            if !matches!(self.sink.write(b"\n"), Ok(1)) {
                return false;
            }
            self.is_torn = false;
        }
        while !left.is_empty() {
            match self.sink.write(left) {
                Ok(0) => break,
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.is_torn = !left.is_empty() && left.len() < line.len();
        left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        room: usize,
        text: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room);
            if fits == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= fits;
            self.text.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(log: &Log, sink: &mut Sink<Disk>, lines: &[&str]) {
        for line in lines {
            log.push(line.as_bytes());
        }
        log.write_next(sink);
    }

    #[test]
    fn lost_lines_are_told_when_the_sink_takes_something_again() {
        let log = Log::new(false);
        let mut sink = Sink { sink: Disk { room: 8, text: Vec::new() }, is_torn: false };
        write(&log, &mut sink, &["one\n", "two two\n", "three\n"]);
        sink.sink.room = 1_000;
        write(&log, &mut sink, &["four\n"]);
        let text = String::from_utf8(sink.sink.text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines[1], lines[3]), ("one", "two ", "four"), "{text}");
        assert!(lines[2].contains("2 lines of the log were lost"), "{text}");
        assert_eq!(log.waiting().lost, 0);
    }

    #[test]
    fn lines_that_a_stuck_sink_leaves_waiting_have_a_bound() {
        let log = Log::new(true);
        let line = [b'x'; 1 << 10];
        for _ in 0..MAX_WAITING_BYTES / line.len() + 3 {
            log.push(&line);
        }
        let bytes = log.waiting().bytes;
        assert_eq!(bytes, MAX_WAITING_BYTES);
        assert_eq!(log.waiting().lost, 3);
        let room = 2 * MAX_WAITING_BYTES;
        let mut sink = Sink { sink: Disk { room, text: Vec::new() }, is_torn: false };
        log.write_next(&mut sink);
        let first = sink.sink.text.split(|byte| *byte == b'\n').next().unwrap();
        let notice: serde_json::Value = serde_json::from_slice(first).unwrap();
        assert_eq!(notice["fields"]["lines"], 3);
    }
}
