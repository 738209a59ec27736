//! The application: the platform, its configuration, and the state of this process, which
//! routes and workers share.

pub mod audit;
pub mod flag_digest;
pub mod flag_feed;
pub(crate) mod head_file;
pub mod store_watch;
pub mod webhook_status;
pub(crate) mod workers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRef;
use dezky::Platform;
use dezky_core::Result;
use dezky_ingest::generic::GenericReceiver;
use dezky_ingest::stalwart::StalwartReceiver;
use dezky_ingest::{IngestSummary, PumpHandle};

use self::audit::AuditReaders;
use self::flag_digest::FlagDigest;
use self::flag_feed::FlagFeed;
use self::store_watch::StoreWatch;
use self::webhook_status::WebhookMonitor;
use crate::auth::Guard;
use crate::auth::oidc::Issuers;
use crate::auth::users::Users;
use crate::config::{Config, SourceConfig};
use crate::failure::Failure;
use crate::http::body_budget::BodyBudget;

/// The largest body of `POST /audit`.
pub(crate) const MAX_RECORD_BYTES: usize = 8 << 20;

/// The state of the routes; clones share it.
pub type AppState = Arc<App>;

/// The platform, its configuration, and the state of this process.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// Log, directory and flags.
    pub platform: Platform,
    /// Decides which callers are admitted.
    pub guard: Guard,
    /// The webhooks of Stalwart by source name.
    pub stalwart: BTreeMap<String, Arc<StalwartReceiver>>,
    /// The webhooks of declared sources by name.
    pub sources: BTreeMap<String, Arc<GenericReceiver>>,
    /// The memory of request bodies.
    pub bodies: BodyBudget,
    /// The status of each webhook by source name.
    pub webhooks: BTreeMap<String, WebhookMonitor>,
    /// Whether the store takes writes.
    pub store_watch: StoreWatch,
    /// The pumps that were started.
    pumps: Mutex<Vec<PumpHandle>>,
    /// The clients that are told when flags change.
    pub flag_feed: FlagFeed,
    /// The digest of the current flags.
    pub flag_digest: FlagDigest,
    /// The streams, exports and tallies of the timeline.
    pub(crate) audit: AuditReaders,
}

impl App {
    /// The application of an open platform.
    ///
    /// # Errors
    /// If a configured webhook can't be served.
    pub fn new(
        config: Config,
        platform: Platform,
        flag_feed: FlagFeed,
    ) -> std::result::Result<Self, Failure> {
        let mut stalwart = BTreeMap::new();
        for (source, secrets) in &config.stalwart {
            let mut receiver =
                StalwartReceiver::new(source, secrets.clone(), platform.intake.clone())
                    .map_err(|error| Failure::usage(error.to_string()))?
                    .with_max_events(config.stalwart_max_events);
            if let Some(max_age) = config.stalwart_max_age {
                receiver = receiver.with_max_age(max_age);
            }
            stalwart.insert(source.clone(), Arc::new(receiver));
        }
        let receives = |(name, source): (&String, &SourceConfig)| {
            let secrets = source.secrets.clone()?;
            let receiver =
                GenericReceiver::new(source.mapping.clone(), secrets, platform.intake.clone())
                    .with_scheme(source.scheme.clone())
                    .with_max_body_bytes(config.max_body_bytes);
            Some((name.clone(), Arc::new(receiver)))
        };
        let sources: BTreeMap<_, _> = config.sources.iter().filter_map(receives).collect();
        let names = stalwart.keys().chain(sources.keys());
        let webhooks = names.map(|name| (name.clone(), WebhookMonitor::default())).collect();
        let issuers = Issuers::new(&config.issuers, platform.runtime())
            .map_err(|error| Failure::usage(format!("auth.issuers: {error}")))?;
        let max_body_bytes = config.max_body_bytes.max(MAX_RECORD_BYTES);
        Ok(Self {
            guard: Guard::new(config.operator_token.clone(), config.trusted_proxies.clone())
                .with_issuers(issuers, Users::of(&platform)),
            bodies: BodyBudget::new(config.http.body_memory, max_body_bytes),
            config,
            platform,
            stalwart,
            sources,
            webhooks,
            store_watch: StoreWatch::default(),
            pumps: Mutex::default(),
            audit: AuditReaders::new(flag_feed.stopping()),
            flag_feed,
            flag_digest: FlagDigest::default(),
        })
    }

    /// Counts the result of a request to the webhook of `source`.
    pub fn record_webhook(&self, source: &str, result: &Result<IngestSummary>) {
        if let Some(webhook) = self.webhooks.get(source) {
            webhook.record(result, self.platform.intake.runtime().now());
        }
    }

    /// Adds a pump that was started.
    pub fn add_pump(&self, pump: PumpHandle) {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner).push(pump);
    }

    /// The pumps that were started.
    pub fn pumps(&self) -> Vec<PumpHandle> {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl FromRef<AppState> for Guard {
    fn from_ref(state: &AppState) -> Self {
        state.guard.clone()
    }
}
