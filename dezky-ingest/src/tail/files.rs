//! The tail on real files.

use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::{IngestSource, Pull, PullLimits, Result, Runtime, Waiting, rt};

use super::Cursor;
use super::LineDecoder;
use super::config::TailConfig;
use super::job::{Cache, Job};

/// Follows a file of lines.
///
/// - A pull for the same cursor returns the same lines, in any process; they are identified by
///   their file's generation, offset and bytes, not by path, inode or host.
/// - Only complete lines are consumed; no timeout consumes a partial one.
/// - A rotated file is read to its end before the next younger one, also after a restart, and
///   checked once more afterwards.
/// - If lines may be lost, because the file was truncated or is gone, or because there are more
///   rotated files than `max_siblings`, an `ingest.gap` event records it, and reading continues
///   with the live file and the files written since.
/// - A pull reads at most 64 MiB beyond its limit of bytes, and skips through at most 256 MiB of
///   compressed files; more takes several pulls.
/// - A missing file is not an error: it may appear with its first line.
///
/// - Rotated files compressed by gzip (`.gz`) are read as well; their lines keep their identity. A
///   part that can't be read (truncated, damaged, or another compression) is recorded by an
///   `ingest.gap` event and skipped.
///
/// Errors are of the kind `io` (files that can't be read) and `cursor_invalid`.
/// Cancel-safe.
pub struct FileTail {
    config: Arc<TailConfig>,
    decoder: Arc<dyn LineDecoder>,
    runtime: Arc<dyn Runtime>,
    cache: Cache,
}

impl FileTail {
    /// Creates a tail whose lines `decoder` decodes, with its clock and its thread for files from
    /// `runtime`. Opens nothing; `config_invalid` if a value is out of bounds.
    pub fn new(
        config: TailConfig,
        decoder: Arc<dyn LineDecoder>,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self> {
        config.check()?;
        Ok(Self { config: Arc::new(config), decoder, runtime, cache: Cache::default() })
    }

    /// Like [`pull`](IngestSource::pull), but decodes the lines of this pull with `decoder`: for
    /// decoders with state from pull to pull.
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
        let job = Job::new(config, decoder, self.cache.clone(), self.runtime.now(), limits);
        // The cache is cloned, not moved, so that a pull that is dropped half-way loses no
        // descriptor.
        let (pull, cache) = rt::unblock(&*self.runtime, move || job.run(cursor.as_ref())).await?;
        self.cache = cache;
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
        self.cache.waiting.map(|(waiting, _)| waiting)
    }
}
