//! The tail of the audit log: the file tail with oCIS' lines.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::{
    Error, ErrorKind, IngestSource, Pull, PullLimits, QuarantineItem, Result, Runtime, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::map::{self, LineContext, OcisOptions, SYSTEM};
use crate::tail::{
    Decoded, FileTail, Line, LineDecoder, TailConfig, default_max_line_bytes, default_max_siblings,
};

/// What [`OcisTail`] follows, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OcisConfig {
    /// The file that `AUDIT_FILEPATH` names. Rotated files are looked for in the
    /// same directory.
    pub path: PathBuf,
    /// The source's name: `ocis`, or `ocis:<instance>` where there are several.
    #[serde(default = "default_source")]
    pub source: String,
    /// Longer lines are skipped and recorded; 1 MiB.
    #[serde(default = "default_max_line_bytes")]
    pub max_line_bytes: usize,
    /// How many rotated files are looked at, the youngest ones; 256.
    #[serde(default = "default_max_siblings")]
    pub max_siblings: usize,
    /// Events that are let through only when wanted.
    #[serde(default)]
    pub options: OcisOptions,
}

fn default_source() -> String {
    SYSTEM.to_owned()
}

impl OcisConfig {
    /// Follows `path` as the source `ocis`, within the default bounds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            source: default_source(),
            max_line_bytes: default_max_line_bytes(),
            max_siblings: default_max_siblings(),
            options: OcisOptions::default(),
        }
    }

    /// The same as another source: `ocis:<instance>`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    fn check(&self) -> Result<()> {
        if self.source.split(':').next() == Some(SYSTEM) {
            return Ok(());
        }
        let what = "the source of the oCIS tail must be ocis or ocis:<instance>";
        Err(Error::new(ErrorKind::ConfigInvalid, what))
    }
}

/// Follows oCIS' audit log file: a [`FileTail`] whose lines are oCIS'.
///
/// - A pull for the same cursor gives the same events with the same external
///   ids, in this process or another.
/// - Tokens are in nothing that is given. The hashes in ids and cursors are over
///   the raw lines, with the tokens in them.
/// - What the file tail guarantees holds: nothing is lost or read twice over
///   rotation and restarts, and where lines may be lost, an `ingest.gap` event
///   says so.
#[derive(Debug)]
pub struct OcisTail {
    tail: FileTail,
}

impl OcisTail {
    /// A tail as configured, with its clock and its thread for files from
    /// `runtime`. Opens nothing; `config_invalid` if a bound is broken.
    pub fn new(config: OcisConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        config.check()?;
        let OcisConfig { path, source, max_line_bytes, max_siblings, options } = config;
        let config = TailConfig { path, source, max_line_bytes, max_siblings };
        let tail = FileTail::new(config, Arc::new(OcisLines { options }), runtime)?;
        Ok(Self { tail })
    }
}

#[async_trait]
impl IngestSource for OcisTail {
    fn name(&self) -> &str {
        self.tail.name()
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        self.tail.pull(cursor, limits).await
    }
}

struct OcisLines {
    options: OcisOptions,
}

impl OcisLines {
    fn context<'a>(&self, line: &Line<'a>) -> LineContext<'a> {
        LineContext {
            source: line.source,
            options: self.options,
            generation: line.generation,
            now: line.now,
        }
    }
}

impl LineDecoder for OcisLines {
    fn decode(
        &self,
        line: Line<'_>,
        last_time: &mut Option<Timestamp>,
        each: &mut dyn FnMut(Decoded),
    ) {
        let context = self.context(&line);
        if line.is_complete {
            map::decode_line(context, line.offset, line.bytes, last_time, each);
        } else {
            map::decode_unterminated(context, line.offset, line.bytes, last_time, each);
        }
    }

    fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem {
        map::too_long(self.context(&head), head.offset, bytes, head.bytes)
    }
}
