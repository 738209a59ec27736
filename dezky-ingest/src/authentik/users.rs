//! Tenants of users that no listing contains: requested one by one, within bounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::{Error, ErrorKind, Result, TenantDirectory, Timestamp};
use serde_json::Value;

use super::http::{Api, Failed, Fetched, MAX_WAIT};
use super::proto::pk;

/// The maximum number of users requested in one pull.
pub(super) const MAX_LOOKUPS: usize = 10;
/// The timeout of all requests of a pull, so that they do not delay events.
pub(super) const LOOKUPS_TIMEOUT: Duration = Duration::from_secs(10);
/// The size of a generation; at most twice as many users are remembered.
const KNOWN: usize = 5_000;
/// The maximum number of a user's groups that are examined.
const MAX_GROUPS: usize = 200;
/// The wait after the first failure; it doubles with each further one.
const RETRY: Duration = Duration::from_mins(1);

/// By a group's key: its name, if that is a tenant's.
pub(super) type GroupNames = HashMap<String, Option<Arc<str>>>;

/// Users that were requested, including those without a tenant and those that no longer exist.
/// Bounded by two generations.
pub(super) struct Users {
    lifetime: Duration,
    young: HashMap<String, Known>,
    old: HashMap<String, Known>,
    next_try: Timestamp,
    /// The number of consecutive failures.
    failures: u32,
}

struct Known {
    /// The names of the tenants, sorted; `None` if the server fails to return the user.
    names: Option<Vec<Arc<str>>>,
    until: Timestamp,
}

/// Meaning of a response about a user.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The names of all groups that may be tenants, sorted.
    Names(Vec<String>),
    /// Some groups have unknown names.
    Unknown,
}

impl Users {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            young: HashMap::new(),
            old: HashMap::new(),
            next_try: Timestamp::MIN,
            failures: 0,
        }
    }

    /// The names of a user's tenants, if they were requested recently.
    pub(super) fn known(&self, user: &str, now: Timestamp) -> Option<&[Arc<str>]> {
        self.get(user, now)?.names.as_deref()
    }

    fn get(&self, user: &str, now: Timestamp) -> Option<&Known> {
        let known = self.young.get(user).or_else(|| self.old.get(user));
        known.filter(|known| known.until.is_ahead_of(now, self.lifetime))
    }

    /// Whether the server recently failed to return the user.
    pub(super) fn has_given_up(&self, user: &str, now: Timestamp) -> bool {
        self.get(user, now).is_some_and(|known| known.names.is_none())
    }

    /// Notes that the server fails to return the user, so that it is not requested for a while.
    pub(super) fn give_up(&mut self, user: String, now: Timestamp) {
        self.insert(user, None, now);
    }

    /// Forgets all users, because the set of tenants has changed.
    pub(super) fn forget(&mut self) {
        (self.young, self.old) = (HashMap::new(), HashMap::new());
    }

    /// Whether requests may be made again.
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        !self.next_try.is_ahead_of(now, MAX_WAIT.max(self.lifetime))
    }

    /// Postpones requests, because another one has failed, possibly for the same reason.
    pub(super) fn hold(&mut self, now: Timestamp) {
        self.next_try = self.next_try.max(now.saturating_add(RETRY));
    }

    pub(super) fn remember(&mut self, user: String, names: Vec<Arc<str>>, now: Timestamp) {
        self.failures = 0;
        self.insert(user, Some(names), now);
    }

    fn insert(&mut self, user: String, names: Option<Vec<Arc<str>>>, now: Timestamp) {
        if self.young.len() >= KNOWN && !self.young.contains_key(&user) {
            self.old = std::mem::take(&mut self.young);
        }
        let until = now.saturating_add(self.lifetime);
        self.young.insert(user, Known { names, until });
    }

    /// Postpones requests: for as long as the server says; after a refusal, for as long as an
    /// answer stays valid; otherwise longer with each failure.
    pub(super) fn failed(&mut self, Failed { error, wait, .. }: &Failed, now: Timestamp) {
        let growing = RETRY.saturating_mul(2_u32.saturating_pow(self.failures));
        let mut next =
            if error.is_retryable() { growing.min(self.lifetime) } else { self.lifetime };
        if let Some(wait) = wait {
            next = next.max(*wait);
        }
        self.failures = self.failures.saturating_add(1);
        self.next_try = now.saturating_add(next);
        tracing::warn!(
            code = error.code(),
            %error,
            next_try_seconds = next.as_secs(),
            "Authentik's users can't be asked for; tenants of those that no listing knows are \
             unresolved"
        );
    }
}

/// Requests a user. Returns the names of the tenants, sorted; `None` if the names of some groups
/// are unknown.
pub(super) async fn ask(
    api: &Api,
    directory: &dyn TenantDirectory,
    admins: &[String],
    names: &GroupNames,
    user: &str,
) -> Result<Option<Vec<Arc<str>>>, Failed> {
    let unreadable = |what| Error::new(ErrorKind::SourceUnavailable, what);
    let text = match api.get(&format!("core/users/{user}/")).await? {
        Fetched::Text(text) => text,
        // The user no longer exists.
        Fetched::NoSuchPage => return Ok(Some(Vec::new())),
        Fetched::TooLarge { .. } => {
            return Err(unreadable("a user has more than max_page_bytes").into());
        }
    };
    let said: Value =
        serde_json::from_str(&text).map_err(|_| unreadable("the answer is not a user"))?;
    let Said::Names(candidates) = read(&said, admins, names) else { return Ok(None) };
    let mut tenants = Vec::new();
    for name in candidates {
        if directory.by_slug(&name).await?.is_some() {
            tenants.push(name.into());
        }
    }
    Ok(Some(tenants))
}

/// Reads a user's groups: as objects, or by their keys from the known groups.
fn read(user: &Value, admins: &[String], known: &GroupNames) -> Said {
    let mut names = Vec::new();
    if let Some(groups) = user.get("groups_obj").and_then(Value::as_array) {
        let groups = groups.iter().take(MAX_GROUPS);
        names.extend(groups.filter_map(|group| candidate(group, admins)));
    } else {
        let groups = user.get("groups").and_then(Value::as_array);
        let mut is_whole = groups.is_some();
        for key in groups.into_iter().flatten().take(MAX_GROUPS) {
            match pk(key).and_then(|key| known.get(&key)) {
                Some(Some(name)) => names.push(name.to_string()),
                Some(None) => {}
                None => is_whole = false,
            }
        }
        if names.is_empty() && !is_whole {
            return Said::Unknown;
        }
    }
    names.sort_unstable();
    names.dedup();
    Said::Names(names)
}

/// The name of a group that may be a tenant.
pub(super) fn candidate(group: &Value, admins: &[String]) -> Option<String> {
    let name = group.get("name")?.as_str()?;
    let is_superuser = group.get("is_superuser") == Some(&Value::Bool(true));
    let is_slug = (1..=63).contains(&name.len());
    (is_slug && !is_superuser && !admins.iter().any(|admin| admin == name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(said: &Value) -> Said {
        let known = GroupNames::from([
            ("aa".to_owned(), Some("acme".into())),
            ("bb".to_owned(), None),
            ("cc".to_owned(), Some("zeta".into())),
        ]);
        read(said, &["admins".to_owned()], &known)
    }

    #[test]
    fn groups_are_read_as_objects_and_by_their_keys() {
        let some = |names: &[&str]| Said::Names(names.iter().map(ToString::to_string).collect());
        let group = |name: &str, is_superuser| json!({"name": name, "is_superuser": is_superuser});
        for (said, expected) in [
            (
                json!({"groups_obj": [
                    group("zeta", false), group("root", true), group("acme", false),
                    group("admins", false), json!(7),
                ]}),
                some(&["acme", "zeta"]),
            ),
            (json!({"groups_obj": []}), some(&[])),
            (json!({"groups_obj": null, "groups": ["cc", "bb", "aa"]}), some(&["acme", "zeta"])),
            (json!({"groups": ["bb"]}), some(&[])),
            (json!({"groups": []}), some(&[])),
            (json!({"groups": ["dd", "aa"]}), some(&["acme"])),
            (json!({"groups": ["dd"]}), Said::Unknown),
            (json!({}), Said::Unknown),
            (json!([]), Said::Unknown),
        ] {
            assert_eq!(names(&said), expected, "{said}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let mut users = Users::new(Duration::from_mins(10));
        let now = Timestamp::from_millis(1_767_225_600_000).unwrap();
        for user in 0..3 * KNOWN {
            users.remember(user.to_string(), Vec::new(), now);
        }
        assert!(users.young.len() + users.old.len() <= 2 * KNOWN);
        let last = (3 * KNOWN - 1).to_string();
        assert!(users.known(&last, now).is_some() && users.known("0", now).is_none());
        assert!(users.known(&last, now.saturating_add(Duration::from_mins(10))).is_none());
    }
}
