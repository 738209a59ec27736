//! What the routes share.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use dezky_core::Result;
use dezky_ingest::generic::GenericReceiver;
use dezky_ingest::stalwart::StalwartReceiver;
use dezky_ingest::{PumpHandle, Taken};

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
    pub stalwart: BTreeMap<String, StalwartReceiver>,
    /// The webhooks of declared sources by name.
    pub sources: BTreeMap<String, GenericReceiver>,
    /// How each webhook is doing, by source name.
    pub webhooks: BTreeMap<String, Webhook>,
    /// The pumps that were started.
    pub pumps: Mutex<Vec<PumpHandle>>,
}

impl App {
    /// Counts what became of a request to the webhook of `source`.
    pub fn note(&self, source: &str, result: &Result<Taken>) {
        if let Some(webhook) = self.webhooks.get(source) {
            webhook.note(result, self.intake.runtime().now());
        }
    }

    /// Lists a pump that is started.
    pub fn add_pump(&self, pump: PumpHandle) {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner).push(pump);
    }
}

impl Deref for App {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}
