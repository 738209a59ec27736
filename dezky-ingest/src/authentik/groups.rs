//! Tenants of users by their groups: from a cached listing, or by requesting a user that the
//! listing does not contain.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::{Error, ErrorKind, Result, Runtime, TenantDirectory, TenantHint, Timestamp};
use futures_util::future::{Either, select};
use serde_json::Value;
use serde_json::value::RawValue;

use super::http::{Api, Failed, Fetched};
use super::poll::Suspect;
use super::proto::{Page, pk};
use super::users::{self, GroupNames, LOOKUPS_TIMEOUT, MAX_LOOKUPS, Users, candidate};

/// The maximum number of pages read for one listing.
const MAX_GROUP_PAGES: u32 = 50;
const MAX_USER_PAGES: u32 = 2_000;
/// The maximum number of groups that are tenants.
const MAX_TENANT_GROUPS: usize = 1_000;
/// The timeout of a listing, so that it does not delay events.
const LISTING_TIMEOUT: Duration = Duration::from_mins(1);
/// The minimum wait after a failure.
const RETRY: Duration = Duration::from_mins(1);
/// The timeout of asking the directory whether it has changed.
const REVISION_TIMEOUT: Duration = Duration::from_secs(2);
/// Sizes of pages of users: if a page fails, its parts are requested.
const PAGE_SIZES: [u64; 3] = [100, 10, 1];

/// Users, with those of their groups that are tenants.
pub(super) struct Groups {
    directory: Arc<dyn TenantDirectory>,
    admins: Vec<String>,
    refresh: Duration,
    listing: Option<Listing>,
    /// The directory's revision when it was last asked.
    revision: Option<u64>,
    next_try: Timestamp,
    /// The number of consecutive failures.
    failures: u32,
    users: Users,
}

struct Listing {
    names: GroupNames,
    /// The groups that are tenants, sorted.
    tenants: Vec<Arc<str>>,
    /// By the user's key; the names sorted.
    by_user: HashMap<String, Vec<Arc<str>>>,
    at: Timestamp,
}

impl Groups {
    pub(super) fn new(
        directory: Arc<dyn TenantDirectory>,
        admins: Vec<String>,
        refresh: Duration,
    ) -> Self {
        Self {
            directory,
            admins,
            refresh,
            listing: None,
            revision: None,
            next_try: Timestamp::MIN,
            failures: 0,
            users: Users::new(refresh),
        }
    }

    /// The hints for a user; `None` if unknown.
    pub(super) fn hints(&self, user: &str, now: Timestamp) -> Option<Vec<TenantHint>> {
        let names = self.listed(user).or_else(|| self.users.known(user, now))?;
        let hint = |name: &Arc<str>| TenantHint::Slug { slug: (**name).to_owned(), via: "group" };
        Some(names.iter().map(hint).collect())
    }

    fn listed(&self, user: &str) -> Option<&[Arc<str>]> {
        self.listing.as_ref()?.by_user.get(user).map(Vec::as_slice)
    }

    /// Requests the unknown ones of `users`, a few at a time. Failures are logged and not retried
    /// for a while.
    async fn look_up(
        &mut self,
        api: &Api,
        runtime: &dyn Runtime,
        users: impl IntoIterator<Item = &String>,
    ) {
        let now = runtime.now();
        if !self.users.may_ask(now) {
            return;
        }
        let mut unknown: Vec<&String> = Vec::new();
        for user in users {
            // Users have numeric keys.
            let is_number = user.len() <= 20 && user.bytes().all(|b| b.is_ascii_digit());
            if unknown.len() == MAX_LOOKUPS {
                break;
            }
            let is_open = self.hints(user, now).is_none() && !self.users.has_given_up(user, now);
            if is_number && is_open && !unknown.contains(&user) {
                unknown.push(user);
            }
        }
        let mut timeout = runtime.sleep(LOOKUPS_TIMEOUT);
        for user in unknown {
            let none = GroupNames::new();
            let names = self.listing.as_ref().map_or(&none, |listing| &listing.names);
            let asked = users::ask(api, &*self.directory, &self.admins, names, user);
            let failed = match select(pin!(asked), &mut timeout).await {
                Either::Left((Ok(Some(names)), _)) => {
                    self.users.remember(user.clone(), names, now);
                    continue;
                }
                Either::Left((Ok(None), _)) => continue,
                // Fails for this user alone, for example because of an attribute that Authentik
                // can't serialize.
                Either::Left((Err(failed), _)) if failed.suspect == Suspect::Page => {
                    tracing::warn!(user, error = %failed.error, "Authentik can't give this user");
                    self.users.give_up(user.clone(), now);
                    continue;
                }
                Either::Left((Err(failed), _)) => failed,
                Either::Right(_) => {
                    let what =
                        format!("Authentik did not return the users within {LOOKUPS_TIMEOUT:?}");
                    Error::new(ErrorKind::SourceUnavailable, what).into()
                }
            };
            self.users.failed(&failed, runtime.now());
            return;
        }
    }

    /// Resolves `users`: refreshes the listing if it is old, and requests users that it does not
    /// contain. Waits for at most one failure per pull.
    pub(super) async fn find_out(
        &mut self,
        api: &Api,
        runtime: &dyn Runtime,
        users: impl IntoIterator<Item = &String>,
    ) {
        let has_changed = self.has_directory_changed(runtime).await;
        if self.refresh_if_old(api, runtime, has_changed).await {
            self.look_up(api, runtime, users).await;
        }
    }

    /// Whether the directory has changed since it was last asked. One that does not answer in time
    /// counts as unchanged.
    async fn has_directory_changed(&mut self, runtime: &dyn Runtime) -> bool {
        let asked = pin!(self.directory.revision());
        let revision = match select(asked, runtime.sleep(REVISION_TIMEOUT)).await {
            Either::Left((Ok(revision), _)) => revision,
            _ => None,
        };
        let has_changed = revision.is_some() && self.revision != revision;
        self.revision = revision.or(self.revision);
        has_changed
    }

    /// Refreshes the listing if it is due. Returns false if that failed; failures are logged, and
    /// the old listing stays.
    ///
    /// After a change of the directory, groups that have become tenants are added to the listing,
    /// and users that were requested alone are forgotten.
    async fn refresh_if_old(
        &mut self,
        api: &Api,
        runtime: &dyn Runtime,
        has_changed: bool,
    ) -> bool {
        let now = runtime.now();
        let is_old = !self.next_try.is_ahead_of(now, self.refresh);
        // After a failure, a change waits for the next attempt.
        let adds = has_changed && self.failures == 0 && self.listing.is_some();
        if !is_old && !adds {
            return true;
        }
        if has_changed {
            self.users.forget();
        }
        let known = self.listing.as_ref().filter(|_| !is_old);
        let list = self.list(api, now, known);
        let result = match select(pin!(list), runtime.sleep(LISTING_TIMEOUT)).await {
            Either::Left((listed, _)) => listed,
            Either::Right(_) => {
                let what = format!("the groups could not be listed within {LISTING_TIMEOUT:?}");
                Err(Error::new(ErrorKind::SourceUnavailable, what))
            }
        };
        match result {
            Ok(listing) => {
                if is_old {
                    self.next_try = now.saturating_add(self.refresh);
                }
                self.failures = 0;
                self.listing = Some(listing);
                true
            }
            Err(error) => {
                // This listing must not count as one that includes the change.
                self.revision = None;
                // A refused token or permission is retried later, and a request that hangs must not
                // delay every page.
                let retries = error.is_retryable();
                let wait = RETRY.saturating_mul(2_u32.saturating_pow(self.failures));
                let wait = if retries { wait.min(self.refresh) } else { self.refresh };
                self.failures = self.failures.saturating_add(1);
                self.next_try = runtime.now().saturating_add(wait);
                if retries {
                    self.users.hold(runtime.now());
                }
                let age = self.listing.as_ref().map(|l| now.saturating_since(l.at).as_secs());
                tracing::warn!(
                    code = error.code(),
                    %error,
                    age_seconds = age,
                    "Authentik's groups can't be listed; tenants are by the old list or unresolved"
                );
                false
            }
        }
    }

    /// Lists groups and the users of those that are tenants, except for the tenants in `known`.
    async fn list(&self, api: &Api, now: Timestamp, known: Option<&Listing>) -> Result<Listing> {
        let mut is_whole = true;
        let mut names = Vec::new();
        let mut keys = GroupNames::new();
        let query = "core/groups/?include_users=false&page_size=100";
        let mut pages = MAX_GROUP_PAGES;
        is_whole &= all(api, query, &mut pages, |group| {
            let name: Option<Arc<str>> = candidate(&group, &self.admins).map(Into::into);
            names.extend(name.clone());
            if let Some(key) = group.get("pk").and_then(pk) {
                keys.insert(key, name);
            }
        })
        .await?;
        names.sort_unstable();
        names.dedup();
        let mut tenants = Vec::new();
        for name in names {
            if self.directory.by_slug(&name).await?.is_some() {
                tenants.push(name);
            }
        }
        for name in keys.values_mut() {
            name.take_if(|name| tenants.binary_search(name).is_err());
        }
        if tenants.len() > MAX_TENANT_GROUPS {
            tenants.truncate(MAX_TENANT_GROUPS);
            is_whole = false;
        }
        let mut by_user = known.map(|known| known.by_user.clone()).unwrap_or_default();
        let listed = known.map(|known| known.tenants.clone()).unwrap_or_default();
        let mut pages = MAX_USER_PAGES;
        for name in tenants.iter().filter(|name| listed.binary_search(name).is_err()) {
            let query = format!("core/users/?groups_by_name={}&include_groups=false", encode(name));
            is_whole &= users_of(api, &query, &mut pages, |user| {
                // A server that does not support the filter lists all users.
                let is_member = |group: &Value| {
                    pk(group).and_then(|key| keys.get(&key)) == Some(&Some(Arc::clone(name)))
                };
                let groups = user.get("groups").and_then(Value::as_array);
                if groups.is_some_and(|groups| !groups.iter().any(is_member)) {
                    return;
                }
                if let Some(user) = user.get("pk").and_then(pk) {
                    let groups: &mut Vec<Arc<str>> = by_user.entry(user).or_default();
                    if let Err(at) = groups.binary_search(name) {
                        groups.insert(at, Arc::clone(name));
                    }
                }
            })
            .await?;
        }
        if !is_whole {
            tracing::warn!(
                max_groups = MAX_TENANT_GROUPS,
                max_user_pages = MAX_USER_PAGES,
                "Authentik has more groups or users than are listed; the rest is asked for one by one"
            );
        }
        let at = known.map_or(now, |known| known.at);
        Ok(Listing { names: keys, tenants, by_user, at })
    }
}

/// Reads a list of users page by page, at most `pages`. Returns whether that was all of it. If the
/// server fails to return a page, its parts are read, down to the single user that fails. A group
/// that does not exist has no users.
async fn users_of(
    api: &Api,
    query: &str,
    pages: &mut u32,
    mut each: impl FnMut(Value) + Send,
) -> Result<bool> {
    let mut is_whole = true;
    // The start of the next part, and its size.
    let mut parts = vec![(0_u64, 0_usize)];
    while let Some((offset, size)) = parts.pop() {
        if *pages == 0 {
            return Ok(false);
        }
        *pages -= 1;
        let rows = PAGE_SIZES[size];
        let page = offset / rows + 1;
        let path = format!("{query}&ordering=pk&page_size={rows}&page={page}");
        let text = match api.get(&path).await {
            Ok(Fetched::Text(text)) => text,
            Ok(Fetched::NoSuchPage) => continue,
            Err(failed) if failed.is_no_such_group() => break,
            Ok(Fetched::TooLarge { .. }) | Err(Failed { suspect: Suspect::Page, .. }) => {
                if let Some(part) = PAGE_SIZES.get(size + 1) {
                    let parts_of = (0..rows / part).rev();
                    let next = (size == 0).then_some((offset + rows, 0));
                    parts.extend(next);
                    parts.extend(parts_of.map(|nth| (offset + nth * part, size + 1)));
                } else {
                    is_whole = false;
                }
                continue;
            }
            Err(failed) => return Err(failed.error),
        };
        let unreadable =
            || Error::new(ErrorKind::SourceUnavailable, "the answer is not a page of users");
        let list = Page::parse(&text).ok_or_else(unreadable)?;
        let read = |item: &&RawValue| serde_json::from_str(item.get()).ok();
        list.items.iter().filter_map(read).for_each(&mut each);
        let is_clamped = list.has_next && (list.items.len() as u64) < rows;
        if is_clamped && size == 0 {
            // The server's pages are smaller, so these numbers mean other pages.
            return all(api, &format!("{query}&ordering=pk&page_size=100"), pages, each).await;
        }
        if size == 0 && list.has_next {
            parts.push((offset + rows, 0));
        }
    }
    Ok(is_whole)
}

/// Reads a list page by page, at most `pages`. Returns whether that was all of it.
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
            Fetched::TooLarge { .. } => {
                return Err(unreadable("a page has more than max_page_bytes"));
            }
        };
        let list =
            Page::parse(&text).ok_or_else(|| unreadable("the answer is not a page of users"))?;
        let read = |item: &&RawValue| serde_json::from_str(item.get()).ok();
        list.items.iter().filter_map(read).for_each(&mut each);
        if !list.has_next {
            break;
        }
    }
    Ok(true)
}

/// Encodes a value for a query.
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
