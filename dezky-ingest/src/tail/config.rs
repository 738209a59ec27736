//! The configuration of a file tail.

use std::path::PathBuf;

use dezky_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::frame::MAX_LINE_BYTES;

/// The file and the bounds of a [`FileTail`](super::FileTail).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailConfig {
    /// The live file. Rotated files are searched for in the same directory.
    pub path: PathBuf,
    /// The source's name: `ocis`, `nginx`, `nginx:eu2`.
    pub source: String,
    /// The maximum length of a line in bytes; 1 MiB unless set. Long values of longer JSON objects
    /// are cut ([`Line::cut`](super::Line::cut)); other longer lines are skipped and recorded.
    #[serde(default = "default_max_line_bytes")]
    pub max_line_bytes: usize,
    /// The maximum number of rotated files that are read, the youngest ones; 256 unless set.
    #[serde(default = "default_max_siblings")]
    pub max_siblings: usize,
}

/// The default of [`TailConfig::max_line_bytes`].
pub(crate) const fn default_max_line_bytes() -> usize {
    1 << 20
}

/// The default of [`TailConfig::max_siblings`].
pub(crate) const fn default_max_siblings() -> usize {
    256
}

impl TailConfig {
    /// Follows `path` as `source`, with the default bounds.
    pub fn new(path: impl Into<PathBuf>, source: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            source: source.into(),
            max_line_bytes: default_max_line_bytes(),
            max_siblings: default_max_siblings(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |what: &'static str| Err(Error::new(ErrorKind::ConfigInvalid, what));
        let source = &self.source;
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_name = |part: &str| !part.is_empty() && part.bytes().all(word);
        if source.len() > 64 || source.split(':').count() > 2 || !source.split(':').all(is_name) {
            return invalid(
                "the source of a file tail must be <name> or <name>:<instance>, of letters, \
                 digits, . _ and -, at most 64 bytes",
            );
        }
        if !(1..=MAX_LINE_BYTES).contains(&self.max_line_bytes) {
            return invalid("max_line_bytes of a file tail must be 1 to 67108864");
        }
        if self.path.file_name().is_none() {
            return invalid("the path of a file tail must name a file");
        }
        Ok(())
    }
}
