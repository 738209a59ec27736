//! Whose a user is: by the groups, from a listing that is kept for a while.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::{Error, ErrorKind, Result, Runtime, TenantDirectory, TenantHint, Timestamp};
use futures_util::future::{Either, select};
use serde_json::Value;
use serde_json::value::RawValue;

use super::http::{Api, Fetched};
use super::proto::{Page, pk};

/// The most pages of a list that are read for one listing.
const MAX_GROUP_PAGES: u32 = 50;
const MAX_USER_PAGES: u32 = 2_000;
/// The most groups that are tenants.
const MAX_TENANT_GROUPS: usize = 1_000;
/// How long a listing may take, so that it does not delay events.
const LISTING_TIMEOUT: Duration = Duration::from_mins(1);
/// After a failure the next try comes no sooner.
const RETRY: Duration = Duration::from_mins(1);

/// Users and the groups of theirs that are tenants.
pub(super) struct Groups {
    directory: Arc<dyn TenantDirectory>,
    admins: Vec<String>,
    refresh: Duration,
    listing: Option<Listing>,
    next_try: Timestamp,
    /// In a row.
    failures: u32,
}

struct Listing {
    /// By the user's key; the names sorted.
    by_user: HashMap<String, Vec<Arc<str>>>,
    /// Whether all was read.
    is_whole: bool,
    at: Timestamp,
}

impl Groups {
    pub(super) fn new(
        directory: Arc<dyn TenantDirectory>,
        admins: Vec<String>,
        refresh: Duration,
    ) -> Self {
        Self { directory, admins, refresh, listing: None, next_try: Timestamp::MIN, failures: 0 }
    }

    /// The hints for a user; `None` if it is not known what they are.
    pub(super) fn hints(&self, user: &str) -> Option<Vec<TenantHint>> {
        let listing = self.listing.as_ref()?;
        let hint = |name: &Arc<str>| TenantHint::Slug { slug: (**name).to_owned(), via: "group" };
        match listing.by_user.get(user) {
            Some(names) => Some(names.iter().map(hint).collect()),
            None => listing.is_whole.then(Vec::new),
        }
    }

    /// Reads the listing anew if it is old. Failures are logged; the old one stays.
    pub(super) async fn refresh_if_old(&mut self, api: &Api, runtime: &dyn Runtime) {
        let now = runtime.now();
        if now < self.next_try {
            return;
        }
        let result = match select(pin!(self.list(api, now)), runtime.sleep(LISTING_TIMEOUT)).await {
            Either::Left((listed, _)) => listed,
            Either::Right(_) => {
                let what = format!("the groups could not be listed within {LISTING_TIMEOUT:?}");
                Err(Error::new(ErrorKind::SourceUnavailable, what))
            }
        };
        match result {
            Ok(listing) => {
                self.next_try = now.saturating_add(self.refresh);
                self.failures = 0;
                self.listing = Some(listing);
            }
            Err(error) => {
                // A refused token or permission is not asked about again so soon, and
                // what hangs must not hold up every page.
                let retries = error.is_retryable();
                let wait = RETRY.saturating_mul(2_u32.saturating_pow(self.failures));
                let wait = if retries { wait.min(self.refresh) } else { self.refresh };
                self.failures = self.failures.saturating_add(1);
                self.next_try = runtime.now().saturating_add(wait);
                let age = self.listing.as_ref().map(|l| now.saturating_since(l.at).as_secs());
                tracing::warn!(
                    code = error.code(),
                    %error,
                    age_seconds = age,
                    "Authentik's groups can't be listed; tenants are unresolved or by the old list"
                );
            }
        }
    }

    async fn list(&self, api: &Api, at: Timestamp) -> Result<Listing> {
        let mut is_whole = true;
        let mut names = Vec::new();
        let query = "core/groups/?include_users=false&page_size=100";
        let mut pages = MAX_GROUP_PAGES;
        is_whole &=
            all(api, query, &mut pages, |group| names.extend(self.candidate(&group))).await?;
        names.sort_unstable();
        names.dedup();
        let mut tenants = Vec::new();
        for name in names {
            if self.directory.by_slug(&name).await?.is_some() {
                tenants.push(name);
            }
        }
        if tenants.len() > MAX_TENANT_GROUPS {
            tenants.truncate(MAX_TENANT_GROUPS);
            is_whole = false;
        }
        let mut by_user: HashMap<String, Vec<Arc<str>>> = HashMap::new();
        let mut pages = MAX_USER_PAGES;
        for name in tenants {
            let query = format!(
                "core/users/?groups_by_name={}&include_groups=false&page_size=100",
                encode(&name)
            );
            let name: Arc<str> = name.into();
            is_whole &= all(api, &query, &mut pages, |user| {
                if let Some(user) = user.get("pk").and_then(pk) {
                    let groups = by_user.entry(user).or_default();
                    if groups.last() != Some(&name) {
                        groups.push(Arc::clone(&name));
                    }
                }
            })
            .await?;
        }
        if !is_whole {
            tracing::warn!(
                max_groups = MAX_TENANT_GROUPS,
                max_user_pages = MAX_USER_PAGES,
                "Authentik has more groups or users than are listed; some tenants are unresolved"
            );
        }
        Ok(Listing { by_user, is_whole, at })
    }

    /// The name of a group that may be a tenant.
    fn candidate(&self, group: &Value) -> Option<String> {
        let name = group.get("name")?.as_str()?;
        let is_superuser = group.get("is_superuser") == Some(&Value::Bool(true));
        let is_slug = (1..=63).contains(&name.len());
        (is_slug && !is_superuser && !self.admins.iter().any(|admin| admin == name))
            .then(|| name.to_owned())
    }
}

/// Reads a list page by page, at most `pages`; whether that was all of it.
async fn all(
    api: &Api,
    query: &str,
    pages: &mut u32,
    mut each: impl FnMut(Value) + Send,
) -> Result<bool> {
    for page in 1_u32.. {
        if *pages == 0 {
            return Ok(false);
        }
        *pages -= 1;
        let unreadable = |what| Error::new(ErrorKind::SourceUnavailable, what);
        let fetched =
            api.get(&format!("{query}&page={page}")).await.map_err(|failed| failed.error)?;
        let text = match fetched {
            Fetched::Text(text) => text,
            Fetched::NoSuchPage => break,
            Fetched::TooLarge => return Err(unreadable("a page has more than max_page_bytes")),
        };
        let list = Page::parse(&text).ok_or_else(|| unreadable("what came is not a page"))?;
        let read = |item: &&RawValue| serde_json::from_str(item.get()).ok();
        list.items.iter().filter_map(read).for_each(&mut each);
        if !list.has_next {
            break;
        }
    }
    Ok(true)
}

/// A value of a query.
fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
