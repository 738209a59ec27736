//! What the routes share.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use dezky_core::Result;
use dezky_core::directory::{Directory, PartnerKey, Tenant, TenantKey};
use dezky_core::store::{AuditStore, SqliteAuditStore};
use dezky_flags::store::FlagStore;
use dezky_flags::{FlagContext, FlagSet, Flags};
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
    /// Tenants, partners and users.
    pub directory: Directory,
    /// The flags and their editor.
    pub flags: Flags,
    /// The flags as they are decided.
    pub flag_set: CurrentFlags,
    /// The webhooks of Stalwart by source name.
    pub stalwart: BTreeMap<String, StalwartReceiver>,
    /// The way of events into the log.
    pub intake: Intake,
    /// The log's engine, to be closed at the end.
    pub(crate) engine: Arc<SqliteAuditStore>,
}

impl App {
    /// For whom flags are decided: a tenant of the directory.
    pub(crate) async fn subject(&self, tenant_slug: &str) -> Result<Option<Subject>> {
        let directory = self.directory.store();
        let Some(tenant) = directory.tenant(TenantKey::Slug(tenant_slug)).await? else {
            return Ok(None);
        };
        let partner = match &tenant.partner_id {
            Some(id) => directory.partner(PartnerKey::Id(id)).await?,
            None => None,
        };
        Ok(Some(Subject { tenant, partner_slug: partner.map(|partner| partner.slug) }))
    }
}

/// A tenant with what flags are decided by.
pub(crate) struct Subject {
    tenant: Tenant,
    partner_slug: Option<String>,
}

impl Subject {
    pub(crate) fn context<'a>(&'a self, environment: Option<&'a str>) -> FlagContext<'a> {
        FlagContext {
            tenant_id: &self.tenant.id,
            tenant_slug: Some(&self.tenant.slug),
            plan: Some(&self.tenant.plan),
            partner_slug: self.partner_slug.as_deref(),
            environment,
        }
    }
}

/// The compiled flags, as of the store's revision.
pub struct CurrentFlags {
    store: Arc<dyn FlagStore>,
    compiled: RwLock<Option<(u64, Arc<FlagSet>)>>,
}

impl CurrentFlags {
    /// The flags of `store`, not yet read.
    pub fn new(store: Arc<dyn FlagStore>) -> Self {
        Self { store, compiled: RwLock::new(None) }
    }

    /// The flags as they are now: compiled again only where one was changed, by
    /// whichever process.
    pub async fn current(&self) -> Result<Arc<FlagSet>> {
        let revision = self.store.revision().await?;
        if let Some((of, set)) = &*self.compiled.read().unwrap_or_else(PoisonError::into_inner)
            && *of == revision
        {
            return Ok(Arc::clone(set));
        }
        let snapshot = self.store.snapshot().await?;
        let set = Arc::new(FlagSet::compile(&snapshot.flags));
        let mut compiled = self.compiled.write().unwrap_or_else(PoisonError::into_inner);
        // Another request may have read a newer one meanwhile.
        if compiled.as_ref().is_none_or(|(of, _)| *of < snapshot.revision) {
            *compiled = Some((snapshot.revision, Arc::clone(&set)));
        }
        Ok(set)
    }
}
