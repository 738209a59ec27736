//! The clients that are told when flags change, up to a bound.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// The maximum number of concurrent event streams: each occupies a connection.
const MAX_STREAMS: usize = 256;

/// The event streams that are open.
#[derive(Debug)]
pub struct FlagFeed {
    permits: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// A permit for one stream, until it is dropped.
pub(crate) struct StreamPermit {
    stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl FlagFeed {
    /// A feed whose streams end when `stopping` becomes true.
    pub(crate) fn new(stopping: watch::Receiver<bool>) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_STREAMS)), stopping }
    }

    /// Becomes true when streams have to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Admits one more stream; `None` if the maximum is open.
    pub(crate) fn admit(&self) -> Option<StreamPermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(StreamPermit { stopping: self.stopping.clone(), _permit: permit })
    }
}

impl StreamPermit {
    /// Resolves when the stream has to end. Cancel-safe.
    pub(crate) async fn stopped(&mut self) {
        // An error means that the server is gone, so the stream ends as well.
        let _ = self.stopping.wait_for(|stopping| *stopping).await;
    }
}
