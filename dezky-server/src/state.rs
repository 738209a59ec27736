//! What the routes share.

use std::collections::BTreeMap;
use std::sync::Arc;

use dezky_core::store::{AuditStore, SqliteAuditStore};
use dezky_ingest::Intake;
use dezky_ingest::stalwart::StalwartReceiver;

use crate::config::Config;

/// The state of the routes; clones share it.
pub type AppState = Arc<App>;

/// What the routes work with.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// The log.
    pub store: Arc<dyn AuditStore>,
    /// The webhooks of Stalwart by source name.
    pub stalwart: BTreeMap<String, StalwartReceiver>,
    /// The way of events into the log.
    pub intake: Intake,
    /// The log's engine, to be closed at the end.
    pub(crate) engine: Arc<SqliteAuditStore>,
}
