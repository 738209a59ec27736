use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// The interval between lines on a terminal.
const ON_TERMINAL: Duration = Duration::from_secs(1);
/// The interval between lines elsewhere, such as in a log.
const IN_LOG: Duration = Duration::from_secs(10);

/// The progress of a long command, on the standard error.
pub(crate) struct Progress {
    interval: Duration,
    shown: Instant,
    /// The start of the current part, by which the rate is computed.
    began: (Instant, u64),
    what: &'static str,
}

impl Progress {
    /// Silent with `--json`.
    pub(crate) fn new(as_json: bool) -> Self {
        let is_watched = std::io::stderr().is_terminal() && !as_json;
        let interval = if is_watched { ON_TERMINAL } else { IN_LOG };
        Self { interval, shown: Instant::now(), began: (Instant::now(), 0), what: "" }
    }

    /// Begins the next part of the work, of which `done` are complete.
    pub(crate) fn begin(&mut self, what: &'static str, done: u64) {
        self.began = (Instant::now(), done);
        self.what = what;
    }

    /// Prints the progress if the last line is old enough. `total` if it is known.
    pub(crate) fn show(&mut self, done: u64, total: Option<u64>) {
        if self.shown.elapsed() < self.interval {
            return;
        }
        self.shown = Instant::now();
        let line = self.line(done, total, self.began.0.elapsed());
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn line(&self, done: u64, total: Option<u64>, elapsed: Duration) -> String {
        let what = self.what;
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = done.saturating_sub(self.began.1).saturating_mul(1_000) / ms;
        let Some(total) = total else { return format!("{what}: {done}, {rate}/s") };
        let left = total.saturating_sub(done).checked_div(rate);
        let left = left.map_or_else(String::new, |seconds| format!(", {seconds} s left"));
        format!("{what}: {done} of {total}, {rate}/s{left}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let mut progress = Progress::new(true);
        progress.begin("rows", 1_000);
        let ten = Duration::from_secs(10);
        assert_eq!(progress.line(3_000, Some(4_000), ten), "rows: 3000 of 4000, 200/s, 5 s left");
        assert_eq!(progress.line(1_000, Some(4_000), ten), "rows: 1000 of 4000, 0/s");
        assert_eq!(progress.line(3_000, None, Duration::ZERO), "rows: 3000, 2000000/s");
    }
}
