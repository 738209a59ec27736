//! The directory as ingest uses it: to find the tenant of an event.

use std::sync::Arc;

use async_trait::async_trait;

use super::{DirectoryStore, Tenant, TenantKey, UserKey};
use crate::domain::normal_form;
use crate::{Result, TenantDirectory};

/// A [`TenantDirectory`] over any [`DirectoryStore`].
///
/// A slug is found whatever the tenant's status, because an event about a deleted tenant still
/// belongs to it. Deleted tenants are not found by domain or user.
#[derive(Clone)]
pub struct DirectoryTenants(pub Arc<dyn DirectoryStore>);

#[async_trait]
impl TenantDirectory for DirectoryTenants {
    async fn by_slug(&self, slug: &str) -> Result<Option<String>> {
        Ok(self.0.tenant(TenantKey::Slug(slug)).await?.map(|tenant| tenant.slug))
    }

    async fn by_domain(&self, domain: &str) -> Result<Option<String>> {
        let Some(domain) = normal_form(domain) else { return Ok(None) };
        Ok(self.0.tenant(TenantKey::Domain(&domain)).await?.map(|tenant| tenant.slug))
    }

    async fn by_user(&self, system: &str, id: &str) -> Result<Option<String>> {
        let Some(user) = self.0.user(UserKey::Identity { system, id }).await? else {
            return Ok(None);
        };
        Ok(only_tenant(&*self.0, &user.tenant_ids).await?.map(|tenant| tenant.slug))
    }

    async fn revision(&self) -> Result<Option<u64>> {
        self.0.tenants_revision().await.map(Some)
    }
}

/// The one tenant among `ids` that is not deleted; `None` if there are several.
pub(super) async fn only_tenant(
    store: &dyn DirectoryStore,
    ids: &[String],
) -> Result<Option<Tenant>> {
    let mut only = None;
    for id in ids {
        let tenant = store.tenant(TenantKey::Id(id)).await?.filter(Tenant::is_present);
        if tenant.is_some() && only.is_some() {
            return Ok(None);
        }
        only = only.or(tenant);
    }
    Ok(only)
}
