//! The audit log of a pretended oCIS: written, appended to, rotated by rename.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use dezky_core::Timestamp;

use crate::failure::Failure;

/// A whole file as oCIS 7.0.0 wrote it.
const FIRST_GENERATION: &[u8] = include_bytes!("data/first-generation.log");
/// Lines of which one was glued to the next when the disk was full. None has a
/// time of its own, so that they take the one before them in the file.
const GLUED: &[u8] = include_bytes!("data/enospc-glued.log");
/// Lines of other writers.
const EVENT_SHAPE: &[u8] = include_bytes!("data/event-shape.log");
/// The lines of [`FIRST_GENERATION`], from 1, that happen again and again: each
/// has a time.
const FRESH: [usize; 4] = [15, 16, 19, 26];
/// How many rotated files are kept.
const KEPT: u32 = 5;

/// The live file `audit.log` and its rotated ones in a folder.
pub(super) struct LogFile {
    folder: PathBuf,
}

impl LogFile {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The live file.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    fn rotated(&self, number: u32) -> PathBuf {
        self.folder.join(format!("audit.log.{number}"))
    }

    /// Writes the next bundled generation, after the last one was rotated away.
    /// False if all are there: what is there is never written again.
    pub(super) fn write_next_generation(&self) -> Result<bool, Failure> {
        let is_there = (self.path().exists(), self.rotated(1).exists());
        let written = match is_there {
            (false, false) => self.write_new(&[FIRST_GENERATION]),
            (true, false) => self.shift().and_then(|()| self.write_new(&[EVENT_SHAPE, GLUED])),
            // A run that ended between the two steps above.
            (false, true) if !self.rotated(2).exists() => self.write_new(&[EVENT_SHAPE, GLUED]),
            _ => return Ok(false),
        };
        written.map(|()| true).map_err(|error| self.failure(&error))
    }

    /// Renames the live file away, as logrotate does; the next line makes a new
    /// one.
    pub(super) fn rotate(&self) -> Result<(), Failure> {
        self.shift().map_err(|error| self.failure(&error))
    }

    /// Appends one line of something that happens now.
    pub(super) fn append_fresh(&mut self, number: u64, now: Timestamp) -> Result<(), Failure> {
        let line = fresh_line(number, now);
        let append = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path())?;
            file.write_all(line.as_bytes())
        };
        append().map_err(|error| self.failure(&error))
    }

    fn shift(&self) -> std::io::Result<()> {
        for number in (1..KEPT).rev().filter(|number| self.rotated(*number).exists()) {
            fs::rename(self.rotated(number), self.rotated(number + 1))?;
        }
        fs::rename(self.path(), self.rotated(1))
    }

    /// Beside it first, so that a half-written file never stands for a whole one.
    fn write_new(&self, parts: &[&[u8]]) -> std::io::Result<()> {
        let beside = self.folder.join(".next");
        let mut file = File::create(&beside)?;
        for part in parts {
            file.write_all(part)?;
        }
        fs::rename(&beside, self.path())
    }

    fn failure(&self, error: &std::io::Error) -> Failure {
        Failure::failed(format!("{}: {error}", self.path().display()))
    }
}

/// A bundled line with another time, and a path of its own.
fn fresh_line(number: u64, now: Timestamp) -> String {
    let text = String::from_utf8_lossy(FIRST_GENERATION);
    let index = usize::try_from(number).unwrap_or(0) % FRESH.len();
    let line = text.lines().nth(FRESH[index] - 1).unwrap_or_default();
    let (before, rest) = line.split_once("\"Time\":\"").unwrap_or((line, "\""));
    let after = rest.split_once('"').map_or("", |(_, after)| after);
    format!("{before}\"Time\":\"{}\"{after}\n", whole_seconds(now))
}

/// A time without the fraction, as the systems write it.
pub(super) fn whole_seconds(at: Timestamp) -> String {
    let text = at.to_string();
    format!("{}Z", text.split('.').next().unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_lines_are_json_of_the_time() {
        let now = Timestamp::parse("2027-01-02T03:04:05.678Z").unwrap();
        for number in 0..4 {
            let line = fresh_line(number, now);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["Time"], "2027-01-02T03:04:05Z");
            assert!(value["Action"].as_str().is_some_and(|action| action.starts_with("file_")));
        }
    }
}
