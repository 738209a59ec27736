//! The editor: what platform code calls to change the directory.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::lock::{Mutex as AsyncMutex, MutexGuard};
use serde::Serialize;
use serde_json::{Map, Value};

use super::documents::{PARTNER, TENANT, USER};
use super::input::conflict;
use super::tenants::only_tenant;
use super::{
    DirectoryChange, DirectoryStore, NewPartner, NewTenant, NewUser, Partner, PartnerKey,
    PartnerPatch, PartnerStatus, Patch, ProvisioningReport, Tenant, TenantKey, TenantPatch,
    TenantStatus, User, UserKey, UserPatch, UserStatus, fields,
};
use crate::change;
use crate::documents::{Kind, Refusal, refuse};
use crate::event::uuid_v7;
use crate::{
    Actor, AuditLog, Error, ErrorKind, NewEvent, NewMetadata, Result, Runtime, SealedEvent,
    Timestamp,
};

/// How often a change is tried when other processes change the same document.
const MAX_ATTEMPTS: u32 = 20;
/// How much of a member's value a change shows, as JSON: both sides of every member
/// at once stay within what an event's metadata holds.
const SHOWN_BYTES: usize = 3 << 10;

/// Who changes something, and by which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Who, and from where.
    pub actor: Actor,
    /// The request, as it stands in its answer and the logs; cut to 128 bytes.
    pub request_id: Option<String>,
    /// The program that sent it, cut to 512 bytes.
    pub user_agent: Option<String>,
    /// Refuse with `version_mismatch` unless the document has this version. Without
    /// it a change is made to whatever is there. Creating ignores it.
    pub if_version: Option<u64>,
}

impl Edit {
    /// By `actor`, of no known request.
    pub fn by(actor: Actor) -> Self {
        Self { actor, request_id: None, user_agent: None, if_version: None }
    }
}

/// The directory as platform code uses it.
///
/// Every change commits together with its audit event, and waits up to a second
/// for the event to be on the timeline. What changes nothing returns the document
/// as it is and writes no event. Changes made at the same time are made one after
/// the other; none is lost.
///
/// Not cancel-safe in its answers: if a future is dropped the change and its event
/// are both there or neither is; read to find out. Poll a future to its end or drop
/// it: edits queue behind each other.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::directory::{Directory, DocumentDirectory, Edit, NewTenant, TenantKey};
/// use dezky_core::store::{ListQuery, MemoryAuditStore};
/// use dezky_core::{Actor, AuditLog, AuditStore, rt::TokioRuntime};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let runtime = Arc::new(TokioRuntime);
/// let events: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// let log = Arc::new(AuditLog::new(events.clone(), runtime.clone()));
/// let store = Arc::new(DocumentDirectory::in_memory(events.clone()));
/// let directory = Directory::new(store, log, runtime);
///
/// let by = Edit::by(Actor::user("u-7").with_ip("203.0.113.7"));
/// directory.create_tenant(NewTenant::new("acme", "Acme Ltd", "basic"), &by).await?;
/// let acme = directory.suspend_tenant(TenantKey::Slug("acme"), &by).await?;
/// assert_eq!((acme.status.as_str(), acme.version), ("suspended", 2));
///
/// let timeline = events.list(&ListQuery::default()).await?.events;
/// let mut verbs: Vec<_> = timeline.iter().map(|e| e.event.action.as_str()).collect();
/// // Newest first, but events of one millisecond stand in the order of their ids.
/// verbs.sort_unstable();
/// assert_eq!(verbs, ["tenant.created", "tenant.suspended"]);
/// # Ok(())
/// # }
/// ```
pub struct Directory {
    store: Arc<dyn DirectoryStore>,
    log: Arc<AuditLog>,
    runtime: Arc<dyn Runtime>,
    /// Held from the first look to the commit, so that this process never races
    /// itself.
    turn: AsyncMutex<()>,
}

impl Directory {
    /// How much newer a login must be to be written down.
    pub const LOGIN_RESOLUTION: Duration = Duration::from_mins(1);

    /// Edits what is in `store`, which must stage its events into the store of `log`.
    pub fn new(
        store: Arc<dyn DirectoryStore>,
        log: Arc<AuditLog>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        Self { store, log, runtime, turn: AsyncMutex::new(()) }
    }

    /// Where the documents are, for reading.
    pub fn store(&self) -> &Arc<dyn DirectoryStore> {
        &self.store
    }

    /// Makes a tenant. Event: `tenant.created`.
    ///
    /// # Errors
    /// `field_invalid`; `already_exists` names the slug, the id or the domain; `not_found`
    /// if there is no such partner, `state_conflict` if it is terminated.
    pub async fn create_tenant(&self, mut new: NewTenant, by: &Edit) -> Result<Tenant> {
        let turn = self.turn.lock().await;
        if let Some(partner) = &new.partner_id {
            new.partner_id = Some(self.active_partner(partner).await?.id);
        }
        let id = new.id.take().unwrap_or_else(|| self.new_id());
        let tenant = new.into_tenant(id, self.runtime.now())?;
        self.create(turn, tenant, "tenant.created", by).await
    }

    /// Changes a tenant. Event: `tenant.updated`.
    ///
    /// # Errors
    /// As of [`create_tenant`](Self::create_tenant); `not_found` if there is no such
    /// tenant, `state_conflict` if it is deleted; `version_mismatch`.
    pub async fn update_tenant(
        &self,
        key: TenantKey<'_>,
        mut patch: TenantPatch,
        by: &Edit,
    ) -> Result<Tenant> {
        let turn = self.turn.lock().await;
        if let Patch::Set(partner) = &patch.partner_id {
            patch.partner_id = Patch::Set(self.partner_to_attach(key, partner).await?);
        }
        self.edit(turn, key, "tenant.updated", by, |tenant| patch.clone().apply(tenant)).await
    }

    /// Stops a tenant; of one that is suspended nothing changes. Event:
    /// `tenant.suspended`.
    ///
    /// # Errors
    /// `not_found`; `state_conflict` if it is deleted; `version_mismatch`.
    pub async fn suspend_tenant(&self, key: TenantKey<'_>, by: &Edit) -> Result<Tenant> {
        let suspend = |tenant: &mut Tenant| {
            tenant.status = TenantStatus::Suspended;
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "tenant.suspended", by, suspend).await
    }

    /// Takes a suspended tenant into use again; of an active one nothing changes.
    /// Event: `tenant.resumed`.
    ///
    /// # Errors
    /// `not_found`; `state_conflict` if it is pending or deleted; `version_mismatch`.
    pub async fn resume_tenant(&self, key: TenantKey<'_>, by: &Edit) -> Result<Tenant> {
        let resume = |tenant: &mut Tenant| {
            if tenant.status == TenantStatus::Pending {
                return Err(conflict(
                    "the tenant is pending: set its status to active instead of resuming it",
                ));
            }
            tenant.status = TenantStatus::Active;
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "tenant.resumed", by, resume).await
    }

    /// Marks a tenant as deleted, for ever, and frees its domains; of one that is
    /// deleted nothing changes. Event: `tenant.deleted`.
    ///
    /// # Errors
    /// `not_found`; `version_mismatch`.
    pub async fn delete_tenant(&self, key: TenantKey<'_>, by: &Edit) -> Result<Tenant> {
        let delete = |tenant: &mut Tenant| {
            tenant.status = TenantStatus::Deleted;
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "tenant.deleted", by, delete).await
    }

    /// Writes down how the provisioning of a tenant went. Event: `tenant.updated`.
    ///
    /// # Errors
    /// `field_invalid`; `not_found`; `state_conflict` if it is deleted;
    /// `version_mismatch`.
    pub async fn report_provisioning(
        &self,
        key: TenantKey<'_>,
        report: ProvisioningReport,
        by: &Edit,
    ) -> Result<Tenant> {
        let apply = |tenant: &mut Tenant| {
            report.clone().apply(tenant);
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "tenant.updated", by, apply).await
    }

    /// Makes a partner. Event: `partner.created`.
    ///
    /// # Errors
    /// `field_invalid`; `already_exists` names the slug.
    pub async fn create_partner(&self, new: NewPartner, by: &Edit) -> Result<Partner> {
        let partner = new.into_partner(self.new_id(), self.runtime.now())?;
        self.create(self.turn.lock().await, partner, "partner.created", by).await
    }

    /// Changes a partner. Event: `partner.updated`.
    ///
    /// # Errors
    /// `field_invalid`; `not_found`; `state_conflict` if it is terminated;
    /// `version_mismatch`.
    pub async fn update_partner(
        &self,
        key: PartnerKey<'_>,
        patch: PartnerPatch,
        by: &Edit,
    ) -> Result<Partner> {
        let apply = |partner: &mut Partner| {
            patch.clone().apply(partner);
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "partner.updated", by, apply).await
    }

    /// Ends the work with a partner, for ever; of one that is terminated nothing
    /// changes. Its tenants stay with it until they are detached. Event:
    /// `partner.terminated`.
    ///
    /// # Errors
    /// `not_found`; `version_mismatch`.
    pub async fn terminate_partner(&self, key: PartnerKey<'_>, by: &Edit) -> Result<Partner> {
        let terminate = |partner: &mut Partner| {
            partner.status = PartnerStatus::Terminated;
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "partner.terminated", by, terminate).await
    }

    /// Makes a user. Event: `user.created`.
    ///
    /// # Errors
    /// `field_invalid`; `already_exists` names subject or identities; `not_found` if
    /// a tenant is not there or deleted.
    pub async fn create_user(&self, new: NewUser, by: &Edit) -> Result<User> {
        let turn = self.turn.lock().await;
        self.check_tenants(&new.tenant_ids, &[]).await?;
        let user = new.into_user(self.new_id(), self.runtime.now())?;
        self.create(turn, user, "user.created", by).await
    }

    /// Changes a user. Event: `user.updated`.
    ///
    /// # Errors
    /// As of [`create_user`](Self::create_user); `not_found` if there is no such
    /// user, `state_conflict` if one who is deactivated is to run the platform;
    /// `version_mismatch`.
    pub async fn update_user(&self, key: UserKey<'_>, patch: UserPatch, by: &Edit) -> Result<User> {
        let turn = self.turn.lock().await;
        if let Some(tenant_ids) = &patch.tenant_ids {
            let user = User::read(&*self.store, key).await?;
            let known = user.map(|user| user.tenant_ids).unwrap_or_default();
            self.check_tenants(tenant_ids, &known).await?;
        }
        self.edit(turn, key, "user.updated", by, |user| patch.clone().apply(user)).await
    }

    /// Takes the platform away from a user, who is no platform admin any more
    /// either; of one who is deactivated nothing changes. Event: `user.deactivated`.
    ///
    /// # Errors
    /// `not_found`; `version_mismatch`.
    pub async fn deactivate_user(&self, key: UserKey<'_>, by: &Edit) -> Result<User> {
        let deactivate = |user: &mut User| {
            user.status = UserStatus::Deactivated;
            user.platform_admin = false;
            Ok(())
        };
        self.edit(self.turn.lock().await, key, "user.deactivated", by, deactivate).await
    }

    /// Writes down that a user was here at `at`, unless it is known that they were
    /// within the [minute](Self::LOGIN_RESOLUTION) before or later. No event: the
    /// login itself is one of the system that took it. Nothing changes for who is
    /// deactivated.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn record_login(&self, key: UserKey<'_>, at: Timestamp) -> Result<User> {
        let _turn = self.turn.lock().await;
        for attempt in 1..=MAX_ATTEMPTS {
            let user = User::read(&*self.store, key).await?;
            let user = user.ok_or_else(|| refused(&USER, Refusal::Missing))?;
            let now = self.runtime.now();
            let is_news = user.last_login_at.is_none_or(|last| {
                // One in the future was noted by a clock that was ahead.
                let is_known = last <= now.max(at).saturating_add(Self::LOGIN_RESOLUTION);
                !is_known || at.saturating_since(last) >= Self::LOGIN_RESOLUTION
            });
            if !user.is_active() || !is_news {
                return Ok(user);
            }
            let mut after = User { last_login_at: Some(at), ..user };
            after.stamp(self.runtime.now());
            match self.store.commit(vec![after.clone().into()], Vec::new()).await {
                Ok(()) => return Ok(after),
                Err(error) if error.kind() == ErrorKind::VersionMismatch => {
                    change::pause(&*self.runtime, attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused(&USER, Refusal::Version))
    }

    fn new_id(&self) -> String {
        uuid_v7(self.runtime.now(), &*self.runtime).to_string()
    }

    /// The partner of this id or slug, who may get a tenant.
    async fn active_partner(&self, id_or_slug: &str) -> Result<Partner> {
        let mut partner = self.store.partner(PartnerKey::Id(id_or_slug)).await?;
        if partner.is_none() {
            partner = self.store.partner(PartnerKey::Slug(id_or_slug)).await?;
        }
        let partner = partner.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "partnerId must be the id or the slug of a partner: there is none, make it first",
            )
        })?;
        if partner.status != PartnerStatus::Active {
            return Err(conflict(
                "partnerId must be that of an active partner: it is terminated, choose another",
            ));
        }
        Ok(partner)
    }

    /// The id of the partner to attach. The one that the tenant has stays, even if it
    /// is terminated, so that a document that was read can be sent back.
    async fn partner_to_attach(&self, key: TenantKey<'_>, id_or_slug: &str) -> Result<String> {
        let tenant = self.store.tenant(key).await?;
        if tenant.and_then(|tenant| tenant.partner_id).as_deref() == Some(id_or_slug) {
            return Ok(id_or_slug.to_owned());
        }
        Ok(self.active_partner(id_or_slug).await?.id)
    }

    /// Refuses tenants that are not there. Those a user has already stay.
    async fn check_tenants(&self, ids: &[String], known: &[String]) -> Result<()> {
        fields::count("tenantIds", ids.len(), fields::MAX_USER_TENANTS)?;
        for id in ids.iter().filter(|id| !known.contains(id)) {
            fields::id("tenantIds", id)?;
            let tenant = self.store.tenant(TenantKey::Id(id)).await?;
            if !tenant.is_some_and(|tenant| tenant.is_present()) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("tenantIds must be ids of tenants: {id} is none, or deleted"),
                ));
            }
        }
        Ok(())
    }

    async fn create<D: Document>(
        &self,
        turn: MutexGuard<'_, ()>,
        document: D,
        action: &str,
        by: &Edit,
    ) -> Result<D> {
        let event = self.event(action, None, &document, by).await?;
        self.store.commit(vec![document.clone().into()], vec![event]).await?;
        drop(turn);
        self.log.relay(AuditLog::RELAY_WAIT).await;
        Ok(document)
    }

    async fn edit<'a, D: Document>(
        &'a self,
        turn: MutexGuard<'a, ()>,
        key: D::Key<'a>,
        action: &str,
        by: &Edit,
        change: impl Fn(&mut D) -> Result<()> + Send + Sync,
    ) -> Result<D> {
        let (after, is_changed) = self.change(key, action, by, change).await?;
        drop(turn);
        if is_changed {
            self.log.relay(AuditLog::RELAY_WAIT).await;
        }
        Ok(after)
    }

    /// Reads, changes and commits, again if another process was faster. Says
    /// whether anything is different.
    async fn change<'a, D: Document>(
        &'a self,
        key: D::Key<'a>,
        action: &str,
        by: &Edit,
        change: impl Fn(&mut D) -> Result<()> + Send + Sync,
    ) -> Result<(D, bool)> {
        for attempt in 1..=MAX_ATTEMPTS {
            let before = D::read(&*self.store, key).await?;
            let before = before.ok_or_else(|| refused(D::KIND, Refusal::Missing))?;
            if by.if_version.is_some_and(|version| version != before.version()) {
                return Err(refused(D::KIND, Refusal::Version));
            }
            let mut after = before.clone();
            let changed = change(&mut after).map(|()| after != before);
            if let Ok(false) = changed {
                return Ok((before, false));
            }
            before.check_open()?;
            changed?;
            after.stamp(self.runtime.now());
            let event = self.event(action, Some(&before), &after, by).await?;
            match self.store.commit(vec![after.clone().into()], vec![event]).await {
                Ok(()) => return Ok((after, true)),
                Err(error) if error.kind() == ErrorKind::VersionMismatch => {
                    change::pause(&*self.runtime, attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused(D::KIND, Refusal::Version))
    }

    /// The event of a change, sealed and within all bounds.
    async fn event<D: Document>(
        &self,
        action: &str,
        before: Option<&D>,
        after: &D,
        by: &Edit,
    ) -> Result<SealedEvent> {
        let whose = after.whose(&*self.store, before).await?;
        let mut metadata = NewMetadata::default();
        change::annotate_request(&mut metadata, by.request_id.as_deref(), by.user_agent.as_deref());
        let (old, new) = differences(before, after);
        if before.is_some() {
            metadata.annotate("before", old);
        }
        metadata.annotate("after", new);
        Ok(self.log.seal(NewEvent {
            resource_type: Some(D::KIND.what.to_owned()),
            resource_id: Some(after.id().to_owned()),
            resource_name: after.name().map(str::to_owned),
            tenant_slug: whose.tenant_slug,
            partner_slug: whose.partner_slug,
            metadata,
            ..NewEvent::new(action, by.actor.clone())
        }))
    }
}

/// The members that a change made different, as they were and as they are. What
/// every change makes different is left out, and what is long is shown by its
/// difference.
fn differences<D: Document>(
    before: Option<&D>,
    after: &D,
) -> (Map<String, Value>, Map<String, Value>) {
    let mut old = before.map(members).unwrap_or_default();
    let mut new = members(after);
    let same: Vec<String> = new
        .iter()
        .filter(|(key, value)| old.get(*key) == Some(*value))
        .map(|(k, _)| k.clone())
        .collect();
    for key in same.iter().map(String::as_str).chain(["version", "createdAt", "updatedAt"]) {
        old.remove(key);
        new.remove(key);
    }
    let shown = |members: &Map<String, Value>, others: &Map<String, Value>| {
        members
            .iter()
            .map(|(key, value)| (key.clone(), change::shown(value, others.get(key), SHOWN_BYTES)))
            .collect()
    };
    (shown(&old, &new), shown(&new, &old))
}

fn members(document: &impl Document) -> Map<String, Value> {
    match serde_json::to_value(document) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

fn refused(kind: &Kind, refusal: Refusal<'_>) -> Error {
    refuse(kind, "", &refusal)
}

/// Whom an event concerns.
#[derive(Default)]
struct Whose {
    tenant_slug: Option<String>,
    partner_slug: Option<String>,
}

/// What the editor needs of a document.
trait Document: Clone + PartialEq + Serialize + Send + Sync + Into<DirectoryChange> {
    const KIND: &'static Kind;
    type Key<'a>: Copy + Send + Sync;

    fn read<'a>(
        store: &'a dyn DirectoryStore,
        key: Self::Key<'a>,
    ) -> impl Future<Output = Result<Option<Self>>> + Send;

    fn id(&self) -> &str;
    fn name(&self) -> Option<&str>;
    fn version(&self) -> u64;

    /// Counts a change.
    fn stamp(&mut self, now: Timestamp);

    /// Refuses changes of what is closed for ever.
    fn check_open(&self) -> Result<()>;

    fn whose(
        &self,
        store: &dyn DirectoryStore,
        before: Option<&Self>,
    ) -> impl Future<Output = Result<Whose>> + Send;
}

impl Document for Tenant {
    const KIND: &'static Kind = &TENANT;
    type Key<'a> = TenantKey<'a>;

    async fn read<'a>(store: &'a dyn DirectoryStore, key: TenantKey<'a>) -> Result<Option<Self>> {
        store.tenant(key).await
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn stamp(&mut self, now: Timestamp) {
        self.version += 1;
        self.updated_at = self.updated_at.max(now);
    }

    fn check_open(&self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        Err(conflict("the tenant is deleted and never changes: make a new one"))
    }

    /// A partner that was detached is told so.
    async fn whose(&self, store: &dyn DirectoryStore, before: Option<&Self>) -> Result<Whose> {
        let had = before.and_then(|before| before.partner_id.as_deref());
        let partner = match self.partner_id.as_deref().or(had) {
            Some(id) => store.partner(PartnerKey::Id(id)).await?,
            None => None,
        };
        Ok(Whose {
            tenant_slug: Some(self.slug.clone()),
            partner_slug: partner.map(|partner| partner.slug),
        })
    }
}

impl Document for Partner {
    const KIND: &'static Kind = &PARTNER;
    type Key<'a> = PartnerKey<'a>;

    async fn read<'a>(store: &'a dyn DirectoryStore, key: PartnerKey<'a>) -> Result<Option<Self>> {
        store.partner(key).await
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn stamp(&mut self, now: Timestamp) {
        self.version += 1;
        self.updated_at = self.updated_at.max(now);
    }

    fn check_open(&self) -> Result<()> {
        if self.status == PartnerStatus::Active {
            return Ok(());
        }
        Err(conflict("the partner is terminated and never changes: make a new one"))
    }

    async fn whose(&self, _store: &dyn DirectoryStore, _before: Option<&Self>) -> Result<Whose> {
        Ok(Whose { partner_slug: Some(self.slug.clone()), ..Whose::default() })
    }
}

impl Document for User {
    const KIND: &'static Kind = &USER;
    type Key<'a> = UserKey<'a>;

    async fn read<'a>(store: &'a dyn DirectoryStore, key: UserKey<'a>) -> Result<Option<Self>> {
        store.user(key).await
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref().or(self.email.as_deref())
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn stamp(&mut self, now: Timestamp) {
        self.version += 1;
        self.updated_at = self.updated_at.max(now);
    }

    /// Nobody else can have their subject, so they can come back.
    fn check_open(&self) -> Result<()> {
        Ok(())
    }

    /// As ingest would say it: the only tenant, else none.
    async fn whose(&self, store: &dyn DirectoryStore, _before: Option<&Self>) -> Result<Whose> {
        let Some(tenant) = only_tenant(store, &self.tenant_ids).await? else {
            return Ok(Whose::default());
        };
        tenant.whose(store, None).await
    }
}
