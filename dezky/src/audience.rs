//! The tenants of the directory as the contexts for which flags are decided.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use dezky_core::directory::{
    DirectoryStore, MAX_PAGE, PartnerKey, PartnerQuery, Tenant, TenantKey, TenantQuery,
    TenantStatus,
};
use dezky_core::{Error, ErrorKind, Result, Runtime};
use dezky_flags::{Flag, FlagContext, Preview, Previewer};

use crate::within::within;

/// The maximum time for reading every tenant.
const WALK_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of partners whose slugs are held in memory.
const MAX_PARTNERS: usize = 100_000;

/// Returns the context of a tenant: the only place that decides what flags see of it.
pub fn context_of<'a>(
    tenant: &'a Tenant,
    partner_slug: Option<&'a str>,
    environment: Option<&'a str>,
) -> FlagContext<'a> {
    FlagContext {
        tenant_id: &tenant.id,
        tenant_slug: Some(&tenant.slug),
        plan: Some(&tenant.plan),
        partner_slug,
        environment,
        tenant_active: Some(tenant.status == TenantStatus::Active),
    }
}

/// A tenant with everything that its [context](context_of) needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    tenant: Tenant,
    partner_slug: Option<String>,
}

impl Subject {
    /// Looks up a tenant and its partner. `None` if there is no such tenant.
    ///
    /// # Errors
    /// The directory's.
    pub async fn find(directory: &dyn DirectoryStore, key: TenantKey<'_>) -> Result<Option<Self>> {
        let Some(tenant) = directory.tenant(key).await? else { return Ok(None) };
        let partner = match &tenant.partner_id {
            Some(id) => directory.partner(PartnerKey::Id(id)).await?,
            None => None,
        };
        Ok(Some(Self { tenant, partner_slug: partner.map(|partner| partner.slug) }))
    }

    /// The tenant.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The tenant's context in an environment, such as `production`.
    pub fn context<'a>(&'a self, environment: Option<&'a str>) -> FlagContext<'a> {
        context_of(&self.tenant, self.partner_slug.as_deref(), environment)
    }
}

/// Compares a flag before and after a change for every tenant that is not deleted.
///
/// # Errors
/// The directory's; `store_unavailable` after 30 s.
pub async fn preview(
    directory: &dyn DirectoryStore,
    runtime: &dyn Runtime,
    before: Option<&Flag>,
    after: Option<&Flag>,
    environment: Option<&str>,
) -> Result<Preview> {
    let mut previewer = Previewer::new(before, after);
    let walk = each_tenant(directory, environment, |tenant| previewer.see(tenant));
    match within(runtime, WALK_TIMEOUT, walk).await {
        Some(walked) => walked.map(|()| previewer.finish()),
        None => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("the directory was not read within {} s", WALK_TIMEOUT.as_secs()),
        )),
    }
}

/// Calls `see` with the context of every tenant that is not deleted, in the order of
/// their slugs. Holds one page of tenants in memory at a time, and the partners' slugs.
///
/// # Errors
/// The directory's.
pub async fn each_tenant(
    directory: &dyn DirectoryStore,
    environment: Option<&str>,
    mut see: impl FnMut(&FlagContext<'_>),
) -> Result<()> {
    let mut partners: Option<HashMap<String, String>> = None;
    let mut query = TenantQuery { limit: MAX_PAGE, ..TenantQuery::default() };
    loop {
        let page = directory.tenants(&query).await?;
        if partners.is_none() && page.iter().any(|tenant| tenant.partner_id.is_some()) {
            partners = Some(partner_slugs(directory).await?);
        }
        for tenant in page.iter().filter(|tenant| tenant.status != TenantStatus::Deleted) {
            let known = tenant.partner_id.as_ref().zip(partners.as_ref());
            let partner_slug = match known.map(|(id, slugs)| (id, slugs.get(id))) {
                None => None,
                Some((_, Some(slug))) => Some(Cow::Borrowed(slug.as_str())),
                // Created in the meantime, or beyond the bound.
                Some((id, None)) => {
                    let partner = directory.partner(PartnerKey::Id(id)).await?;
                    partner.map(|partner| Cow::Owned(partner.slug))
                }
            };
            see(&context_of(tenant, partner_slug.as_deref(), environment));
        }
        match page.into_iter().nth(MAX_PAGE - 1) {
            Some(last) => query.after = Some(last.slug),
            None => return Ok(()),
        }
    }
}

/// The partners' slugs, by id.
async fn partner_slugs(directory: &dyn DirectoryStore) -> Result<HashMap<String, String>> {
    let mut slugs = HashMap::new();
    let mut query = PartnerQuery { limit: MAX_PAGE, ..PartnerQuery::default() };
    loop {
        let page = directory.partners(&query).await?;
        let last = page.get(MAX_PAGE - 1).map(|partner| partner.slug.clone());
        slugs.extend(page.into_iter().map(|partner| (partner.id, partner.slug)));
        if last.is_none() || slugs.len() >= MAX_PARTNERS {
            return Ok(slugs);
        }
        query.after = last;
    }
}
