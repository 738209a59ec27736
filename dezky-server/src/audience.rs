//! Everybody for whom flags are decided: the tenants that are not deleted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use dezky_core::directory::{
    DirectoryStore, MAX_PAGE, PartnerKey, PartnerQuery, TenantQuery, TenantStatus,
};
use dezky_core::{Error, ErrorKind, Result};
use dezky_flags::{Flag, FlagContext, Preview, Previewer};

/// How long a look at every tenant may take.
const WALK_TIMEOUT: Duration = Duration::from_secs(30);
/// The most partners whose slugs are held at a time.
const MAX_PARTNERS: usize = 100_000;

/// Compares a flag before and after a change for every tenant.
///
/// # Errors
/// The directory's; `store_unavailable` after 30 s.
pub(crate) async fn preview(
    directory: &dyn DirectoryStore,
    before: Option<&Flag>,
    after: Option<&Flag>,
    environment: Option<&str>,
) -> Result<Preview> {
    let mut previewer = Previewer::new(before, after);
    let walk = each_tenant(directory, environment, |tenant| previewer.see(tenant));
    match tokio::time::timeout(WALK_TIMEOUT, walk).await {
        Ok(walked) => walked.map(|()| previewer.finish()),
        Err(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("the directory was not read within {} s", WALK_TIMEOUT.as_secs()),
        )),
    }
}

/// Shows every tenant that is not deleted to `see`, by slug. A page of them is in memory
/// at a time, and the slugs of the partners.
pub(crate) async fn each_tenant(
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
                // One that came meanwhile, or beyond the bound.
                Some((id, None)) => {
                    let partner = directory.partner(PartnerKey::Id(id)).await?;
                    partner.map(|partner| Cow::Owned(partner.slug))
                }
            };
            see(&FlagContext {
                tenant_id: &tenant.id,
                tenant_slug: Some(&tenant.slug),
                plan: Some(&tenant.plan),
                partner_slug: partner_slug.as_deref(),
                environment,
                tenant_active: Some(tenant.status == TenantStatus::Active),
            });
        }
        match page.into_iter().nth(MAX_PAGE - 1) {
            Some(last) => query.after = Some(last.slug),
            None => return Ok(()),
        }
    }
}

/// The partners' slugs by id.
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
