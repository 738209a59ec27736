//! Log, directory, flags and intake of one database, wired together.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::directory::{Directory, DirectoryTenants, TenantKey};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::AuditStore;
use dezky_core::{AuditLog, ErrorKind, Result, Runtime, Spool};
use dezky_flags::live::LiveConfig;
use dezky_flags::{Flag, Flags, LiveFlags, Preview};
use dezky_ingest::Intake;
use futures_util::future::{Either, join, pending, select};

use crate::audience::{self, Subject};
use crate::engine::{Access, Stores};
use crate::url::StoreConfig;

/// The maximum time of an append: longer than the store waits for another writer.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same with a spool to fall back on: senders of webhooks hold back further events while they
/// wait for an answer.
const STORE_TIMEOUT_BEFORE_SPOOL: Duration = Duration::from_secs(2);
/// The interval at which the outbox is relayed.
const RELAY_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum number of events per relay.
const RELAY_BATCH: usize = 1_000;

/// Everything that works on the stores of one database.
///
/// Opening it starts no task. [`run`](Self::run) does the background work while you poll it.
///
/// ```
/// use dezky::{Actor, NewEvent, Platform};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky::Result<()> {
/// let platform = Platform::open("memory://").await?;
/// platform.log.record(NewEvent::new("tenant.created", Actor::user("u-7"))).await;
/// assert_eq!(platform.store.state().await?.head.next_seq, 1);
/// platform.close().await;
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
pub struct Platform {
    /// The log's store: reads, and appends without the spool.
    pub store: Arc<dyn AuditStore>,
    /// The log to record into, with the spool if there is one.
    pub log: Arc<AuditLog>,
    /// Tenants, partners and users, and their editor.
    pub directory: Directory,
    /// The directory in which sources look up the tenant of an event.
    pub tenants: Arc<DirectoryTenants>,
    /// The flags' editor.
    pub flags: Flags,
    /// The flags, compiled for decisions.
    pub live: LiveFlags,
    /// The way of sources' events into the log, for pumps and receivers.
    pub intake: Intake,
    stores: Stores,
}

impl Platform {
    /// Opens the platform at a URL, which may have [options](crate::url::OPTIONS); creates or
    /// migrates its schema. See [`builder`](Self::builder) for everything else.
    ///
    /// # Errors
    /// Those of [`StoreConfig::parse`], [`Stores::open`] and [`PlatformBuilder::build`].
    pub async fn open(url: &str) -> Result<Self> {
        let stores = Stores::open(&StoreConfig::parse(url)?, Access::Migrate).await?;
        Self::builder(stores).build().await
    }

    /// Builds a platform on open stores, or on your own.
    ///
    /// ```no_run
    /// use dezky::{Access, Platform, Spool, SpoolConfig, StoreConfig, Stores, TokioRuntime};
    ///
    /// # async fn open() -> dezky::Result<Platform> {
    /// let config = StoreConfig::parse("postgres://dezky@db/platform?sslmode=verify-full")?;
    /// let spool = Spool::open(SpoolConfig::new("audit.spool"), std::sync::Arc::new(TokioRuntime));
    /// let stores = Stores::open(&config, Access::Write).await?;
    /// Platform::builder(stores).spool(spool.await?).build().await
    /// # }
    /// ```
    pub fn builder(stores: Stores) -> PlatformBuilder {
        PlatformBuilder {
            stores,
            runtime: Arc::new(TokioRuntime),
            spool: None,
            live: LiveConfig::default(),
        }
    }

    /// The stores that the platform works on.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The runtime.
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        self.intake.runtime()
    }

    /// The tenant with this slug, as the subject of decisions on flags. `None` if there is no such
    /// tenant.
    ///
    /// # Errors
    /// The directory's.
    pub async fn subject(&self, tenant_slug: &str) -> Result<Option<Subject>> {
        self.subject_of(TenantKey::Slug(tenant_slug)).await
    }

    /// Like [`subject`](Self::subject), by any key of a tenant.
    ///
    /// # Errors
    /// The directory's.
    pub async fn subject_of(&self, key: TenantKey<'_>) -> Result<Option<Subject>> {
        Subject::find(&**self.directory.store(), key).await
    }

    /// Compares a flag before and after a change for every tenant that is not deleted.
    ///
    /// # Errors
    /// Those of [`audience::preview`].
    pub async fn preview(
        &self,
        before: Option<&Flag>,
        after: Option<&Flag>,
        environment: Option<&str>,
    ) -> Result<Preview> {
        let directory = &**self.directory.store();
        audience::preview(directory, &**self.runtime(), before, after, environment).await
    }

    /// Does the background work until `shutdown` resolves: relays staged events into the
    /// log, empties the spool, and follows the flags. Dropping the future is as good as
    /// `shutdown`: no acknowledged event is lost, and the next run continues.
    ///
    /// # Errors
    /// Those of [`run_relay`](Self::run_relay), which end it. An unavailable store does not.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let others = join(self.log.run_spool(pending()), self.live.run(pending()));
        let relay = self.run_relay(shutdown);
        match select(pin!(relay), pin!(others)).await {
            Either::Left((ended, _)) => ended,
            Either::Right((_, relay)) => relay.await,
        }
    }

    /// Relays staged events into the log every second until `shutdown` resolves. A part of
    /// [`run`](Self::run), for programs that run each part in its own task.
    ///
    /// # Errors
    /// `store_replaced`: the database's files were removed or replaced while they were open, so
    /// anything written would be lost. Close the platform. Other errors are logged and retried.
    pub async fn run_relay(&self, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let mut shutdown = pin!(shutdown);
        loop {
            let more = match self.store.relay(RELAY_BATCH).await {
                Ok(relayed) => relayed.more,
                Err(error) if error.kind() == ErrorKind::StoreReplaced => return Err(error),
                Err(error) => {
                    tracing::warn!(code = error.code(), %error, "can't relay the outbox now");
                    false
                }
            };
            let wait = if more { Duration::ZERO } else { RELAY_INTERVAL };
            if let Either::Left(_) = select(&mut shutdown, self.runtime().sleep(wait)).await {
                return Ok(());
            }
        }
    }

    /// Closes the connections once all pending calls have returned.
    pub async fn close(&self) {
        self.stores.close().await;
    }
}

/// Options of a platform; see [`Platform::builder`].
#[must_use]
pub struct PlatformBuilder {
    stores: Stores,
    runtime: Arc<dyn Runtime>,
    spool: Option<Spool>,
    live: LiveConfig,
}

impl PlatformBuilder {
    /// Spools events while the store does not accept them. An append then times out after 2 s
    /// instead of 10 s.
    pub fn spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Sets how the flags follow the store.
    pub fn live(mut self, live: LiveConfig) -> Self {
        self.live = live;
        self
    }

    /// Sets the runtime of everything above the stores; tokio's by default.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = runtime;
        self
    }

    /// Wires the platform and reads the flags for the first time.
    ///
    /// # Errors
    /// Those of [`LiveFlags::open`], after which the stores are closed.
    pub async fn build(self) -> Result<Platform> {
        let Self { stores, runtime, spool, live } = self;
        let live = match LiveFlags::open(stores.flags.clone(), runtime.clone(), live).await {
            Ok(live) => live,
            Err(error) => {
                stores.close().await;
                return Err(error.context("flags"));
            }
        };
        let tenants = Arc::new(DirectoryTenants(stores.directory.clone()));
        let intake = Intake::new(stores.log.clone(), runtime.clone());
        // The intake's store, so that spooled events of declared sources are deduplicated too.
        let log = AuditLog::new(intake.store().clone(), runtime.clone());
        let log = log.with_directory(tenants.clone());
        let log = Arc::new(match spool {
            Some(spool) => log.with_store_timeout(STORE_TIMEOUT_BEFORE_SPOOL).with_spool(spool),
            None => log.with_store_timeout(STORE_TIMEOUT),
        });
        let flags = Flags::new(stores.flags.clone(), log.clone(), runtime.clone());
        Ok(Platform {
            store: stores.log.clone(),
            directory: Directory::new(stores.directory.clone(), log.clone(), runtime),
            flags: flags.with_live(live.clone()),
            intake: intake.with_directory(tenants.clone()).with_spool(log.clone()),
            live,
            log,
            tenants,
            stores,
        })
    }
}
