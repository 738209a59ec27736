//! The directory in memory: for tests, examples and as the oracle of the others.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use futures_util::lock::Mutex as AsyncMutex;

use super::{
    DirectoryChange, DirectoryStore, Identity, Partner, PartnerKey, PartnerQuery, Tenant,
    TenantKey, TenantQuery, User, UserCursor, UserKey, UserQuery, check_commit, check_limit,
    check_version, refusal,
};
use crate::store::Capabilities;
use crate::{AuditStore, Result, SealedEvent};

/// A [`DirectoryStore`] in memory, gone with the process.
///
/// A change is made when its events are staged. If a commit is dropped while a log
/// that is not in memory stages, they may be there without it.
pub struct MemoryDirectory {
    log: Arc<dyn AuditStore>,
    tables: RwLock<Tables>,
    writer: AsyncMutex<()>,
}

/// The documents by id.
#[derive(Clone, Default)]
struct Tables {
    tenants: BTreeMap<String, Tenant>,
    partners: BTreeMap<String, Partner>,
    users: BTreeMap<String, User>,
}

impl MemoryDirectory {
    /// An empty directory whose events are staged into `log`.
    pub fn new(log: Arc<dyn AuditStore>) -> Self {
        Self { log, tables: RwLock::default(), writer: AsyncMutex::new(()) }
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.tables.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl DirectoryStore for MemoryDirectory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>> {
        Ok(self.read(|t| match key {
            TenantKey::Id(id) => t.tenants.get(id).cloned(),
            TenantKey::Slug(slug) => t.tenants.values().find(|t| t.slug == slug).cloned(),
            TenantKey::Domain(domain) => {
                t.tenants.values().find(|t| t.owned_domains().iter().any(|d| d == domain)).cloned()
            }
        }))
    }

    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>> {
        check_limit(query.limit)?;
        let mut page: Vec<Tenant> = self
            .read(|t| t.tenants.values().filter(|tenant| query.matches(tenant)).cloned().collect());
        page.sort_by(|a, b| a.slug.cmp(&b.slug));
        page.truncate(query.limit);
        Ok(page)
    }

    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>> {
        Ok(self.read(|t| match key {
            PartnerKey::Id(id) => t.partners.get(id).cloned(),
            PartnerKey::Slug(slug) => t.partners.values().find(|p| p.slug == slug).cloned(),
        }))
    }

    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>> {
        check_limit(query.limit)?;
        let mut page: Vec<Partner> = self.read(|t| {
            t.partners.values().filter(|partner| query.matches(partner)).cloned().collect()
        });
        page.sort_by(|a, b| a.slug.cmp(&b.slug));
        page.truncate(query.limit);
        Ok(page)
    }

    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>> {
        let is = |user: &&User| match key {
            UserKey::Id(id) => user.id == id,
            UserKey::Subject { issuer, subject } => {
                user.issuer == issuer && user.subject == subject
            }
            UserKey::Identity { system, id } => {
                user.identities.iter().any(|i| i.system == system && i.id == id)
            }
        };
        Ok(self.read(|t| t.users.values().find(is).cloned()))
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>> {
        check_limit(query.limit)?;
        let mut page: Vec<User> =
            self.read(|t| t.users.values().filter(|user| query.matches(user)).cloned().collect());
        page.sort_by_key(|user| std::cmp::Reverse(UserCursor::of(user)));
        page.truncate(query.limit);
        Ok(page)
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        let is_theirs = |t: &&Tenant| t.is_present() && t.partner_id.as_deref() == Some(partner_id);
        Ok(self.read(|t| t.tenants.values().filter(is_theirs).count() as u64))
    }

    async fn tenants_revision(&self) -> Result<u64> {
        Ok(self.read(|t| t.tenants.values().map(|tenant| tenant.version).sum()))
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_commit(&changes)?;
        let _turn = self.writer.lock().await;
        // On a copy, so that a later change is checked against the earlier ones.
        let mut next = self.read(Tables::clone);
        for change in &changes {
            let stored = next.stored(change);
            check_version(stored.what, stored.version, change.version())?;
            stored.check_fixed()?;
        }
        for change in &changes {
            next.put(change.clone());
        }
        changes.iter().try_for_each(|change| next.check_unique(change))?;
        if !events.is_empty() {
            self.log.stage(events).await?;
        }
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    async fn restore(&self, mut documents: Vec<DirectoryChange>) -> Result<()> {
        check_commit(&documents)?;
        let _turn = self.writer.lock().await;
        let mut next = self.read(Tables::clone);
        documents.retain(|d| next.stored(d).version.is_none_or(|stored| stored < d.version()));
        for document in &documents {
            next.stored(document).check_fixed()?;
            next.put(document.clone());
        }
        documents.iter().try_for_each(|document| next.check_unique(document))?;
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

/// What is stored in the place of a document to be.
struct Stored {
    what: &'static str,
    version: Option<u64>,
    /// A field that never changes, and whether it is what it was.
    fixed: (&'static str, bool),
}

impl Stored {
    fn check_fixed(&self) -> Result<()> {
        if self.fixed.1 { Ok(()) } else { Err(refusal::fixed(self.fixed.0)) }
    }
}

impl Tables {
    fn stored(&self, change: &DirectoryChange) -> Stored {
        let (what, version, fixed) = match change {
            DirectoryChange::Tenant(new) => {
                let old = self.tenants.get(&new.id);
                let fixed = old.is_none_or(|old| old.slug == new.slug);
                ("tenant", old.map(|old| old.version), ("slug", fixed))
            }
            DirectoryChange::Partner(new) => {
                let old = self.partners.get(&new.id);
                let fixed = old.is_none_or(|old| old.slug == new.slug);
                ("partner", old.map(|old| old.version), ("slug", fixed))
            }
            DirectoryChange::User(new) => {
                let old = self.users.get(&new.id);
                let fixed =
                    old.is_none_or(|old| old.issuer == new.issuer && old.subject == new.subject);
                ("user", old.map(|old| old.version), ("subject", fixed))
            }
        };
        Stored { what, version, fixed }
    }

    fn put(&mut self, change: DirectoryChange) {
        match change {
            DirectoryChange::Tenant(new) => {
                self.tenants.insert(new.id.clone(), *new);
            }
            DirectoryChange::Partner(new) => {
                self.partners.insert(new.id.clone(), *new);
            }
            DirectoryChange::User(new) => {
                self.users.insert(new.id.clone(), *new);
            }
        }
    }

    /// Whether a changed document shares a key with another one.
    fn check_unique(&self, change: &DirectoryChange) -> Result<()> {
        match change {
            DirectoryChange::Tenant(new) => {
                for other in self.tenants.values().filter(|other| other.id != new.id) {
                    if other.slug == new.slug {
                        return Err(refusal::taken("slug"));
                    }
                    let taken = |domain: &&String| other.owned_domains().contains(domain);
                    if let Some(domain) = new.owned_domains().iter().find(taken) {
                        return Err(refusal::domain_taken(domain));
                    }
                }
            }
            DirectoryChange::Partner(new) => {
                if self.partners.values().any(|p| p.id != new.id && p.slug == new.slug) {
                    return Err(refusal::taken("slug"));
                }
            }
            DirectoryChange::User(new) => {
                for other in self.users.values().filter(|other| other.id != new.id) {
                    if other.issuer == new.issuer && other.subject == new.subject {
                        return Err(refusal::taken("subject"));
                    }
                    let taken = |identity: &&Identity| other.identities.contains(identity);
                    if let Some(identity) = new.identities.iter().find(taken) {
                        return Err(refusal::identity_taken(&identity.system));
                    }
                }
            }
        }
        Ok(())
    }
}
