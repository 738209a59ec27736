//! What the routes share.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use dezky_core::Result;
use dezky_ingest::generic::GenericReceiver;
use dezky_ingest::stalwart::StalwartReceiver;
use dezky_ingest::{PumpHandle, Taken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::platform::Platform;
use crate::webhooks::Webhook;

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
    /// The webhooks of declared sources by name.
    pub sources: BTreeMap<String, Arc<GenericReceiver>>,
    /// The webhooks under way.
    pub webhooks: Webhooks,
    /// How each webhook is doing, by source name.
    pub statuses: BTreeMap<String, Webhook>,
    /// The pumps that were started.
    pub pumps: Mutex<Vec<PumpHandle>>,
}

impl App {
    /// Counts what became of a request to the webhook of `source`.
    pub fn note(&self, source: &str, result: &Result<Taken>) {
        if let Some(webhook) = self.statuses.get(source) {
            webhook.note(result, self.intake.runtime().now());
        }
    }

    /// Lists a pump that is started.
    pub fn add_pump(&self, pump: PumpHandle) {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner).push(pump);
    }
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
