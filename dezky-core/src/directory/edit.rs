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
use crate::change::{self, Edit, check_note, retry};
use crate::documents::{Kind, Refusal, refuse};
use crate::event::uuid_v7;
use crate::{
    AuditLog, Error, ErrorKind, NewEvent, NewMetadata, Result, Runtime, SealedEvent, Timestamp,
};

/// Maximum length of a member's value in a change, in bytes of JSON: both sides of every member
/// together stay within the bound of an event's metadata.
const SHOWN_BYTES: usize = 3 << 10;

/// The directory as platform code uses it.
///
/// Every change commits together with its audit event, and waits up to a second for the event to
/// be on the timeline. A change that changes nothing returns the document unchanged and writes no
/// event. Concurrent changes are made one after the other; none is lost.
///
/// If a future is dropped, either both the change and its event are committed or neither is; read
/// the document to find out. Poll a future to completion or drop it: edits queue behind each other.
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
    /// Serialises edits in this process, from read to commit.
    turn: AsyncMutex<()>,
}

impl Directory {
    /// The minimum time between two logins of a user for the later one to be recorded.
    pub const LOGIN_RESOLUTION: Duration = Duration::from_mins(1);

    /// Edits the documents of `store`, which must stage its events into the store of `log`.
    pub fn new(
        store: Arc<dyn DirectoryStore>,
        log: Arc<AuditLog>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        Self { store, log, runtime, turn: AsyncMutex::new(()) }
    }

    /// The store that is edited, for reading.
    pub fn store(&self) -> &Arc<dyn DirectoryStore> {
        &self.store
    }

    /// Creates a tenant. Event: `tenant.created`.
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
    /// Those of [`create_tenant`](Self::create_tenant); `not_found` if there is no such
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

    /// Suspends a tenant; a suspended one stays unchanged. Event: `tenant.suspended`.
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

    /// Reactivates a suspended tenant; an active one stays unchanged. Event: `tenant.resumed`.
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

    /// Marks a tenant as deleted, permanently, and frees its domains; a deleted one stays
    /// unchanged. Event: `tenant.deleted`.
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

    /// Records the outcome of provisioning a tenant. Event: `tenant.updated`.
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

    /// Creates a partner. Event: `partner.created`.
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

    /// Terminates a partner, permanently; a terminated one stays unchanged. Its tenants stay with
    /// it until they are detached. Event: `partner.terminated`.
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

    /// Creates a user. Event: `user.created`.
    ///
    /// # Errors
    /// `field_invalid`; `already_exists` names subject or identities; `not_found` if
    /// a tenant does not exist or is deleted.
    pub async fn create_user(&self, new: NewUser, by: &Edit) -> Result<User> {
        let turn = self.turn.lock().await;
        self.check_tenants(&new.tenant_ids, &[]).await?;
        let user = new.into_user(self.new_id(), self.runtime.now())?;
        self.create(turn, user, "user.created", by).await
    }

    /// Changes a user. Event: `user.updated`.
    ///
    /// # Errors
    /// Those of [`create_user`](Self::create_user); `not_found` if there is no such user,
    /// `state_conflict` if a deactivated user is to become a platform admin; `version_mismatch`.
    pub async fn update_user(&self, key: UserKey<'_>, patch: UserPatch, by: &Edit) -> Result<User> {
        let turn = self.turn.lock().await;
        if let Some(tenant_ids) = &patch.tenant_ids {
            let user = User::read(&*self.store, key).await?;
            let known = user.map(|user| user.tenant_ids).unwrap_or_default();
            self.check_tenants(tenant_ids, &known).await?;
        }
        self.edit(turn, key, "user.updated", by, |user| patch.clone().apply(user)).await
    }

    /// Deactivates a user, who also stops being a platform admin; a deactivated one stays
    /// unchanged. Event: `user.deactivated`.
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

    /// Records that a user logged in at `at`, unless a login within the
    /// [minute](Self::LOGIN_RESOLUTION) before or a later one is recorded. Writes no event: the
    /// system that accepted the login does. A deactivated user stays unchanged.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn record_login(&self, key: UserKey<'_>, at: Timestamp) -> Result<User> {
        let _turn = self.turn.lock().await;
        retry(&*self.runtime, None, || async {
            let user = User::read(&*self.store, key).await?;
            let user = user.ok_or_else(|| refused(&USER, Refusal::Missing))?;
            let now = self.runtime.now();
            let is_news = user.last_login_at.is_none_or(|last| {
                // A time in the future was recorded by a clock that was ahead.
                let is_known = last <= now.max(at).saturating_add(Self::LOGIN_RESOLUTION);
                !is_known || at.saturating_since(last) >= Self::LOGIN_RESOLUTION
            });
            if !user.is_active() || !is_news {
                return Ok(user);
            }
            let mut after = User { last_login_at: Some(at), ..user };
            after.stamp(self.runtime.now());
            self.store.commit(vec![after.clone().into()], Vec::new()).await?;
            Ok(after)
        })
        .await
    }

    fn new_id(&self) -> String {
        uuid_v7(self.runtime.now(), &*self.runtime).to_string()
    }

    /// The partner with this id or slug, provided that it may get a tenant.
    async fn active_partner(&self, id_or_slug: &str) -> Result<Partner> {
        let mut partner = self.store.partner(PartnerKey::Id(id_or_slug)).await?;
        if partner.is_none() {
            partner = self.store.partner(PartnerKey::Slug(id_or_slug)).await?;
        }
        let partner = partner.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "partnerId must be the id or the slug of a partner: no such partner exists, create it first",
            )
        })?;
        if partner.status != PartnerStatus::Active {
            return Err(conflict(
                "partnerId must be that of an active partner: it is terminated, choose another",
            ));
        }
        Ok(partner)
    }

    /// The id of the partner to attach. The tenant's current partner is accepted even if it is
    /// terminated, so that a document can be sent back as it was read.
    async fn partner_to_attach(&self, key: TenantKey<'_>, id_or_slug: &str) -> Result<String> {
        let tenant = self.store.tenant(key).await?;
        if tenant.and_then(|tenant| tenant.partner_id).as_deref() == Some(id_or_slug) {
            return Ok(id_or_slug.to_owned());
        }
        Ok(self.active_partner(id_or_slug).await?.id)
    }

    /// Refuses tenants that don't exist, except those that the user already belongs to.
    async fn check_tenants(&self, ids: &[String], known: &[String]) -> Result<()> {
        fields::count("tenantIds", ids.len(), fields::MAX_USER_TENANTS)?;
        for id in ids.iter().filter(|id| !known.contains(id)) {
            fields::id("tenantIds", id)?;
            let tenant = self.store.tenant(TenantKey::Id(id)).await?;
            if !tenant.is_some_and(|tenant| tenant.is_present()) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("tenantIds must be ids of tenants: {id} does not exist, or is deleted"),
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
        check_note(by.note.as_deref())?;
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
        check_note(by.note.as_deref())?;
        let edited = retry(&*self.runtime, by.if_version, || async {
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
            self.store.commit(vec![after.clone().into()], vec![event]).await?;
            Ok((after, true))
        });
        let (after, is_changed) = edited.await?;
        // The next editor need not wait for the timeline.
        drop(turn);
        if is_changed {
            self.log.relay(AuditLog::RELAY_WAIT).await;
        }
        Ok(after)
    }

    /// The event of a change, sealed and within all bounds.
    async fn event<D: Document>(
        &self,
        action: &str,
        before: Option<&D>,
        after: &D,
        by: &Edit,
    ) -> Result<SealedEvent> {
        let concerned = after.concerned(&*self.store, before).await?;
        let mut metadata = NewMetadata::default();
        by.annotate(&mut metadata);
        let (old, new) = differences(before, after);
        if before.is_some() {
            metadata.annotate("before", old);
        }
        metadata.annotate("after", new);
        Ok(self.log.seal(NewEvent {
            resource_type: Some(D::KIND.what.to_owned()),
            resource_id: Some(after.id().to_owned()),
            resource_name: after.name().map(str::to_owned),
            tenant_slug: concerned.tenant_slug,
            partner_slug: concerned.partner_slug,
            metadata,
            ..NewEvent::new(action, by.actor.clone())
        }))
    }
}

/// The members that differ between two states of a document, before and after. Members that every
/// change touches are left out, and long values are reduced to their differences.
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

/// The tenant and the partner that an event concerns.
#[derive(Default)]
struct Concerned {
    tenant_slug: Option<String>,
    partner_slug: Option<String>,
}

/// A document as the editor handles it.
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

    /// Updates the version and the time of the last change.
    fn stamp(&mut self, now: Timestamp);

    /// Refuses changes of a document that is closed for good. A user never is: nobody else can
    /// have their subject, so they can be reactivated.
    fn check_open(&self) -> Result<()> {
        Ok(())
    }

    fn concerned(
        &self,
        store: &dyn DirectoryStore,
        before: Option<&Self>,
    ) -> impl Future<Output = Result<Concerned>> + Send;
}

/// Implements the parts of [`Document`] that have the same form in every model.
macro_rules! of_model {
    ($kind:ident, $key:ident, $read:ident) => {
        const KIND: &'static Kind = &$kind;
        type Key<'a> = $key<'a>;

        async fn read<'a>(store: &'a dyn DirectoryStore, key: $key<'a>) -> Result<Option<Self>> {
            store.$read(key).await
        }

        fn id(&self) -> &str {
            &self.id
        }

        fn version(&self) -> u64 {
            self.version
        }

        fn stamp(&mut self, now: Timestamp) {
            self.version += 1;
            self.updated_at = self.updated_at.max(now);
        }
    };
}

impl Document for Tenant {
    of_model!(TENANT, TenantKey, tenant);

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn check_open(&self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        Err(conflict("the tenant is deleted and can't be changed: create a new one"))
    }

    /// The event of a detachment concerns the partner that was detached.
    async fn concerned(
        &self,
        store: &dyn DirectoryStore,
        before: Option<&Self>,
    ) -> Result<Concerned> {
        let had = before.and_then(|before| before.partner_id.as_deref());
        let partner = match self.partner_id.as_deref().or(had) {
            Some(id) => store.partner(PartnerKey::Id(id)).await?,
            None => None,
        };
        Ok(Concerned {
            tenant_slug: Some(self.slug.clone()),
            partner_slug: partner.map(|partner| partner.slug),
        })
    }
}

impl Document for Partner {
    of_model!(PARTNER, PartnerKey, partner);

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn check_open(&self) -> Result<()> {
        if self.status == PartnerStatus::Active {
            return Ok(());
        }
        Err(conflict("the partner is terminated and can't be changed: create a new one"))
    }

    async fn concerned(
        &self,
        _store: &dyn DirectoryStore,
        _before: Option<&Self>,
    ) -> Result<Concerned> {
        Ok(Concerned { partner_slug: Some(self.slug.clone()), ..Concerned::default() })
    }
}

impl Document for User {
    of_model!(USER, UserKey, user);

    fn name(&self) -> Option<&str> {
        self.name.as_deref().or(self.email.as_deref())
    }

    /// As ingest attributes it: the user's only tenant, or none.
    async fn concerned(
        &self,
        store: &dyn DirectoryStore,
        _before: Option<&Self>,
    ) -> Result<Concerned> {
        let Some(tenant) = only_tenant(store, &self.tenant_ids).await? else {
            return Ok(Concerned::default());
        };
        tenant.concerned(store, None).await
    }
}
