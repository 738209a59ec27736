//! The parts that share one database: log, directory, flags. Routes and commands
//! work with them alike.

use std::sync::Arc;
use std::time::Duration;

use dezky_core::directory::{
    Directory, DirectoryTenants, PartnerKey, Tenant, TenantKey, TenantStatus,
};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::AuditStore;
use dezky_core::{AuditLog, Result, Runtime, Spool, SpoolConfig};
use dezky_flags::live::LiveConfig;
use dezky_flags::{FlagContext, Flags, LiveFlags};
use dezky_ingest::Intake;

use crate::config::{FlagsConfig, StoreConfig};
use crate::failure::Failure;
use crate::stores::{Access, Engine, Stores};

/// How long the store may take for a webhook: longer than it waits for another writer.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where there is a spool to turn to. Stalwart holds its events back while
/// it waits for an answer.
const STORE_TIMEOUT_BEFORE_SPOOL: Duration = Duration::from_secs(2);

/// What a platform consists of.
pub struct Platform {
    /// The log.
    pub store: Arc<dyn AuditStore>,
    /// The log as platform code and webhooks record into it, with the spool.
    pub log: Arc<AuditLog>,
    /// Tenants, partners and users.
    pub directory: Directory,
    /// Whose an event is.
    pub tenants: Arc<DirectoryTenants>,
    /// The flags and their editor.
    pub flags: Flags,
    /// The flags as they are decided.
    pub live: LiveFlags,
    /// The way of events into the log.
    pub intake: Intake,
    /// What all of it is in, to be closed at the end.
    engine: Engine,
}

impl Platform {
    /// Opens everything.
    pub async fn open(config: &StoreConfig, access: Access) -> Result<Self, Failure> {
        Self::over(Stores::open(config, access).await?, None, LiveConfig::default()).await
    }

    /// The same as a server does, with a spool and a file of flags, which belong to this
    /// process alone from here on.
    pub async fn open_with_spool(
        config: &StoreConfig,
        spool: Option<&SpoolConfig>,
        flags: &FlagsConfig,
    ) -> Result<Self, Failure> {
        let spool = match spool {
            Some(config) => {
                let spool = Spool::open(config.clone(), Arc::new(TokioRuntime)).await;
                Some(spool.map_err(|error| Failure::usage(error.to_string()))?)
            }
            None => None,
        };
        let access = if config.migrate { Access::Migrate } else { Access::Write };
        let mut live = LiveConfig::default();
        live.poll_interval = flags.poll;
        live.file.clone_from(&flags.file);
        live.count_usage = true;
        Self::over(Stores::open(config, access).await?, spool, live).await
    }

    async fn over(stores: Stores, spool: Option<Spool>, live: LiveConfig) -> Result<Self, Failure> {
        let Stores { log: store, directory: documents, flags, engine } = stores;
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
        let tenants = Arc::new(DirectoryTenants(Arc::clone(&documents)));
        let intake = Intake::new(Arc::clone(&store), Arc::clone(&runtime));
        // What was spooled is told apart as well when it goes to the log.
        let log = AuditLog::new(Arc::clone(intake.store()), Arc::clone(&runtime));
        let log = log.with_directory(tenants.clone());
        let log = Arc::new(match spool {
            Some(spool) => log.with_store_timeout(STORE_TIMEOUT_BEFORE_SPOOL).with_spool(spool),
            None => log.with_store_timeout(STORE_TIMEOUT),
        });
        let live = match LiveFlags::open(Arc::clone(&flags), Arc::clone(&runtime), live).await {
            Ok(live) => live,
            Err(error) => {
                engine.close().await;
                return Err(Failure::failed(format!("flags: {error}")));
            }
        };
        let flags = Flags::new(flags, Arc::clone(&log), Arc::clone(&runtime));
        Ok(Self {
            intake: intake.with_directory(tenants.clone()).with_spool(Arc::clone(&log)),
            directory: Directory::new(documents, Arc::clone(&log), runtime),
            flags: flags.with_live(live.clone()),
            live,
            log,
            store,
            tenants,
            engine,
        })
    }

    /// For whom flags are decided: a tenant of the directory.
    pub async fn subject(&self, tenant_slug: &str) -> Result<Option<Subject>> {
        self.subject_of(TenantKey::Slug(tenant_slug)).await
    }

    /// The same by any key of a tenant.
    pub async fn subject_of(&self, key: TenantKey<'_>) -> Result<Option<Subject>> {
        let directory = self.directory.store();
        let Some(tenant) = directory.tenant(key).await? else { return Ok(None) };
        let partner = match &tenant.partner_id {
            Some(id) => directory.partner(PartnerKey::Id(id)).await?,
            None => None,
        };
        Ok(Some(Subject { tenant, partner_slug: partner.map(|partner| partner.slug) }))
    }

    /// Ends the connections, after those who use them.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

/// A tenant with what flags are decided by.
pub struct Subject {
    tenant: Tenant,
    partner_slug: Option<String>,
}

impl Subject {
    /// The tenant in an environment.
    pub fn context<'a>(&'a self, environment: Option<&'a str>) -> FlagContext<'a> {
        FlagContext {
            tenant_id: &self.tenant.id,
            tenant_slug: Some(&self.tenant.slug),
            plan: Some(&self.tenant.plan),
            partner_slug: self.partner_slug.as_deref(),
            environment,
            tenant_active: Some(self.tenant.status == TenantStatus::Active),
        }
    }
}
