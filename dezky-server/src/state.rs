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
    /// The webhooks under way.
    pub webhooks: Webhooks,
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

/// The bytes of bodies under way at a time, unless one body may have more.
const WEBHOOK_BYTES: usize = 256 << 20;
/// The least that a body counts for, as something is made of it.
const MIN_BODY_BYTES: usize = 64 << 10;
/// What one place stands for.
const PLACE_BYTES: usize = 1 << 10;

/// The webhooks under way, counted by the bytes of their bodies that are in.
pub struct Webhooks {
    places: Arc<Semaphore>,
    all: u32,
}

/// The room that one body takes, until it is dropped.
pub struct Room {
    places: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
    all: u32,
}

impl Room {
    /// Takes what a body of `bytes` needs; `false` if there is not so much, and the
    /// room is what it was.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let held = u32::try_from(self.held.num_permits()).unwrap_or(u32::MAX);
        let more = places(bytes).min(self.all).saturating_sub(held);
        let taken = Arc::clone(&self.places).try_acquire_many_owned(more);
        taken.is_ok_and(|taken| {
            self.held.merge(taken);
            true
        })
    }
}

impl Webhooks {
    /// Room for bodies of at most `max_body_bytes`.
    pub fn new(max_body_bytes: usize) -> Self {
        let all = places(WEBHOOK_BYTES.max(max_body_bytes));
        Self { places: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// The room for a body that is to come, held until it is answered; `None` if there
    /// is none. What is announced takes nothing: anybody can announce.
    pub fn begin(&self) -> Option<Room> {
        let places = Arc::clone(&self.places);
        let held = places.try_acquire_many_owned(self::places(MIN_BODY_BYTES)).ok()?;
        Some(Room { places: Arc::clone(&self.places), held, all: self.all })
    }

    /// Resolves when none is under way, and lets none begin from then on.
    pub async fn end(&self) {
        if let Ok(places) = self.places.acquire_many(self.all).await {
            places.forget();
        }
    }
}

fn places(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PLACE_BYTES)).unwrap_or(u32::MAX)
}

impl Deref for App {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_takes_room_as_it_comes_in() {
        let webhooks = Webhooks::new(1);
        let mut large = webhooks.begin().unwrap();
        assert!(large.grow(WEBHOOK_BYTES - 2 * MIN_BODY_BYTES));
        let mut small = webhooks.begin().unwrap();
        assert!(small.grow(MIN_BODY_BYTES), "that much it has");
        assert!(!small.grow(2 * MIN_BODY_BYTES + 1));
        assert!(small.grow(2 * MIN_BODY_BYTES));
        assert!(webhooks.begin().is_none());
        drop(small);
        assert!(large.grow(WEBHOOK_BYTES), "it is given back whole");
        assert!(large.grow(WEBHOOK_BYTES * 2), "one body alone always fits");
    }
}
