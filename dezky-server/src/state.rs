//! What the routes share.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use dezky_ingest::generic::GenericReceiver;
use dezky_ingest::stalwart::StalwartReceiver;

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
    pub stalwart: BTreeMap<String, StalwartReceiver>,
    /// The webhooks of declared sources by name.
    pub sources: BTreeMap<String, GenericReceiver>,
}

impl Deref for App {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}
