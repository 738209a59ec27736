//! The tail on real files.

use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::{IngestSource, Pull, PullLimits, Result, Runtime, Waiting, rt};

use super::Cursor;
use super::LineDecoder;
use super::config::TailConfig;
use super::job::{Job, Kept};

/// Follows a file of lines.
///
/// - A pull for the same cursor gives the same lines, in this process or another;
///   they are identified by their file generation, place and bytes, not by path,
///   inode or host.
/// - Only complete lines are consumed, and no time forces out a partial one.
/// - A rotated file is read to its end before the next younger one, also after a
///   restart, and looked at once more afterwards.
/// - Where lines may be lost, because the file was truncated or is gone, or because
///   there are more rotated files than `max_siblings`, an `ingest.gap` event says
///   so and reading begins anew with the live file and what was written since.
/// - A pull reads at most 64 MiB beyond its limit of bytes, and skips through at
///   most 256 MiB of compressed files; what is longer takes several.
/// - A missing file is not an error: it may appear with its first line.
///
/// - Rotated files that gzip compressed (`.gz`) are read as well; their lines have
///   the identity that they had before. What can't be read of one (cut off,
///   damaged, or another compression) is an `ingest.gap` event, and is passed.
///
/// Errors are of the kind `io` (files that can't be read) and `cursor_invalid`.
/// Cancel-safe.
pub struct FileTail {
    config: Arc<TailConfig>,
    decoder: Arc<dyn LineDecoder>,
    runtime: Arc<dyn Runtime>,
    kept: Kept,
}

impl FileTail {
    /// A tail as configured, whose lines `decoder` reads, with its clock and its
    /// thread for files from `runtime`. Opens nothing; `config_invalid` if a bound
    /// is broken.
    pub fn new(
        config: TailConfig,
        decoder: Arc<dyn LineDecoder>,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self> {
        config.check()?;
        Ok(Self { config: Arc::new(config), decoder, runtime, kept: Kept::default() })
    }

    /// The same as [`pull`](IngestSource::pull), with the lines of this pull read
    /// by `decoder`: for one that remembers something from pull to pull.
    pub async fn pull_with(
        &mut self,
        decoder: Arc<dyn LineDecoder>,
        cursor: Option<&str>,
        limits: PullLimits,
    ) -> Result<Pull> {
        let cursor = match cursor {
            Some(text) => Some((Cursor::parse(text)?, text.to_owned())),
            None => None,
        };
        let config = Arc::clone(&self.config);
        let job = Job::new(config, decoder, self.kept.clone(), self.runtime.now(), limits);
        // The descriptors are copied, not moved: a pull that is dropped half-way
        // loses none.
        let (pull, kept) = rt::unblock(&*self.runtime, move || job.run(cursor.as_ref())).await?;
        self.kept = kept;
        Ok(pull)
    }
}

impl std::fmt::Debug for FileTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTail").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl IngestSource for FileTail {
    fn name(&self) -> &str {
        &self.config.source
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        self.pull_with(Arc::clone(&self.decoder), cursor, limits).await
    }

    fn waiting(&self) -> Option<Waiting> {
        self.kept.waiting.map(|(waiting, _)| waiting)
    }
}
