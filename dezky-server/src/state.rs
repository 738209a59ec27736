//! What the routes share.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use dezky_ingest::stalwart::StalwartReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::platform::Platform;

/// The state of the routes; clones share it.
pub type AppState = Arc<App>;

/// What the routes work with: the platform, and what is configured for it.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// Log, directory and flags.
    pub platform: Platform,
    /// The webhooks of Stalwart by source name.
    pub stalwart: BTreeMap<String, Arc<StalwartReceiver>>,
    /// The webhooks under way.
    pub webhooks: Webhooks,
}

/// The most webhooks at a time: each may hold a body of the largest size, and what is
/// made of it.
const MAX_WEBHOOKS: u32 = 16;

/// How many webhooks are under way.
pub struct Webhooks(Arc<Semaphore>);

impl Default for Webhooks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WEBHOOKS as usize)))
    }
}

impl Webhooks {
    /// A place for one more, held until it is answered; `None` if there is none.
    pub fn begin(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    /// Resolves when none is under way, and lets none begin from then on.
    pub async fn end(&self) {
        if let Ok(places) = self.0.acquire_many(MAX_WEBHOOKS).await {
            places.forget();
        }
    }
}

impl Deref for App {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}
