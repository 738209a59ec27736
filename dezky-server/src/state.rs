//! What the routes share.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use dezky_core::Result;
use dezky_ingest::generic::GenericReceiver;
use dezky_ingest::stalwart::StalwartReceiver;
use dezky_ingest::{IngestSummary, PumpHandle};

use crate::bodies::Bodies;
use crate::config::Config;
use crate::platform::Platform;
use crate::routes::ofrep::{EventStreams, SetDigest};
use crate::store_watch::StoreWatch;
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
    /// The bodies under way.
    pub bodies: Bodies,
    /// How each webhook is doing, by source name.
    pub statuses: BTreeMap<String, Webhook>,
    /// Whether the store takes writes.
    pub store_watch: StoreWatch,
    /// The pumps that were started.
    pub pumps: Mutex<Vec<PumpHandle>>,
    /// The clients that are told when flags change.
    pub(crate) streams: EventStreams,
    /// What tells the flags of now from others.
    pub(crate) flags_digest: SetDigest,
}

impl App {
    /// Counts what became of a request to the webhook of `source`.
    pub fn note(&self, source: &str, result: &Result<IngestSummary>) {
        if let Some(webhook) = self.statuses.get(source) {
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
