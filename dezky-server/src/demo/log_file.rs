//! The audit log of a simulated oCIS: written, appended to, rotated by rename.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use dezky_core::Timestamp;

use crate::failure::Failure;

/// A whole file as oCIS 7.0.0 wrote it.
const FIRST_GENERATION: &[u8] = include_bytes!("data/first-generation.log");
/// Lines, one of which was joined to the next when the disk was full. They have no time and take
/// that of the line before them.
const GLUED: &[u8] = include_bytes!("data/enospc-glued.log");
/// Lines of other writers.
const EVENT_SHAPE: &[u8] = include_bytes!("data/event-shape.log");
/// The lines of [`FIRST_GENERATION`], from 1, that recur: each has a time.
const FRESH: [usize; 4] = [15, 16, 19, 26];
/// The number of rotated files kept.
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

    /// Writes the next bundled generation, after the last one was rotated. Returns false if all
    /// exist: none is ever written twice.
    pub(super) fn write_next_generation(&self) -> Result<bool, Failure> {
        let is_there = (self.path().exists(), self.rotated(1).exists());
        let written = match is_there {
            (false, false) => self.write_new(&[FIRST_GENERATION]),
            (true, false) => self.shift().and_then(|()| self.write_new(&[EVENT_SHAPE, GLUED])),
            // An earlier run ended between the two steps above.
            (false, true) if !self.rotated(2).exists() => self.write_new(&[EVENT_SHAPE, GLUED]),
            _ => return Ok(false),
        };
        written.map(|()| true).map_err(|error| self.failure(&error))
    }

    /// Renames the live file, as logrotate does; the next line creates a new one.
    pub(super) fn rotate(&self) -> Result<(), Failure> {
        self.shift().map_err(|error| self.failure(&error))
    }

    /// Appends a line with the current time.
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

    /// Writes a second file and renames it, so that a half-written file never has the name.
    fn write_new(&self, parts: &[&[u8]]) -> std::io::Result<()> {
        let temporary = self.folder.join(".next");
        let mut file = File::create(&temporary)?;
        for part in parts {
            file.write_all(part)?;
        }
        fs::rename(&temporary, self.path())
    }

    fn failure(&self, error: &std::io::Error) -> Failure {
        Failure::failed(format!("{}: {error}", self.path().display()))
    }
}

/// A bundled line with another time and a unique path.
fn fresh_line(number: u64, now: Timestamp) -> String {
    let text = String::from_utf8_lossy(FIRST_GENERATION);
    let index = usize::try_from(number).unwrap_or(0) % FRESH.len();
    let line = text.lines().nth(FRESH[index] - 1).unwrap_or_default();
    let (before, rest) = line.split_once("\"Time\":\"").unwrap_or((line, "\""));
    let after = rest.split_once('"').map_or("", |(_, after)| after);
    format!("{before}\"Time\":\"{}\"{after}\n", whole_seconds(now))
}

/// A time without its fraction, as the systems write it.
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
