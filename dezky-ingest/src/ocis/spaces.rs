//! Tenants of spaces: a configured map, and names learned from the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use dezky_core::store::ListQuery;
use dezky_core::{AuditStore, Error, ErrorKind, PulledEvent, Result, TenantHint};

use super::map::SYSTEM;

/// The events that contain the name of a space.
const TELLING: [&str; 3] = ["ocis.space_created", "ocis.space_renamed", "ocis.space_updated"];

/// The maximum number of spaces whose names are known.
const MAX_NAMES: usize = 20_000;

/// The maximum number of pages read from the log per kind of event that contains a name, the newest
/// first.
const MAX_PAGES: usize = 20;

/// The maximum length of a tenant's slug, in bytes.
const SLUG_MAX_BYTES: usize = 63;

/// The maximum number of entries of the configured map.
const MAX_MAPPED: usize = 10_000;

/// Names by space; `None` for a space whose name is not a slug.
pub(super) type Names = HashMap<String, Option<String>>;

/// `<storage>$<space>` without the root node.
fn normal(space: &str) -> &str {
    space.split_once('!').map_or(space, |(space, _)| space)
}

/// The id of the space without its storage.
fn bare(space: &str) -> &str {
    space.split_once('$').map_or(space, |(_, space)| space)
}

/// The configured map by normalized ids.
pub(super) fn checked(spaces: &BTreeMap<String, String>) -> Result<HashMap<String, String>> {
    let invalid = |what| Err(Error::new(ErrorKind::ConfigInvalid, what));
    if spaces.len() > MAX_MAPPED {
        return invalid("spaces of the oCIS tail must have at most 10000 entries");
    }
    let mut map = HashMap::with_capacity(spaces.len());
    for (space, slug) in spaces {
        if bare(normal(space)).is_empty() || space.len() > 512 {
            return invalid(
                "spaces of the oCIS tail must name each space by its id, with or without its \
                 storage and $, at most 512 bytes",
            );
        }
        if !(1..=SLUG_MAX_BYTES).contains(&slug.len()) {
            return invalid("spaces of the oCIS tail must give each space a slug of 1 to 63 bytes");
        }
        map.insert(normal(space).to_owned(), slug.clone());
    }
    Ok(map)
}

/// Known names of spaces in a pull: the state at its cursor, and names in its lines.
pub(super) struct Spaces {
    pub(super) map: Arc<HashMap<String, String>>,
    pub(super) known: Arc<Names>,
    pub(super) told: Mutex<Names>,
}

impl Spaces {
    /// Adds the known name of the event's space to its hints, and learns names from the event.
    pub(super) fn see(&self, pulled: &mut PulledEvent) {
        if let Some((space, name)) = told_by(pulled) {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() + self.known.len() < MAX_NAMES
                || told.contains_key(&space)
                || self.known.contains_key(&space)
            {
                told.insert(space, name);
            }
        }
        let Some(space) = pulled.event.metadata.annotation("spaceId").and_then(|id| id.as_str())
        else {
            return;
        };
        let has_name = pulled.tenant.iter().any(|hint| matches!(hint, TenantHint::Slug { .. }));
        let mut best = Vec::new();
        if let Some(slug) = self.map.get(space).or_else(|| self.map.get(bare(space))) {
            best.push(TenantHint::Slug { slug: slug.clone(), via: "space_map" });
        }
        if !has_name && let Some(slug) = self.name(space) {
            best.push(TenantHint::Slug { slug, via: "space_name" });
        }
        // A personal space has the id of its user.
        let owner = TenantHint::User { system: SYSTEM, id: bare(space).to_owned() };
        if !pulled.tenant.contains(&owner) {
            pulled.tenant.push(owner);
        }
        pulled.tenant.splice(0..0, best);
    }

    fn name(&self, space: &str) -> Option<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(space).or_else(|| self.known.get(space)).cloned().flatten()
    }
}

fn told_by(pulled: &PulledEvent) -> Option<(String, Option<String>)> {
    let event = &pulled.event;
    TELLING.contains(&event.action.as_str()).then_some(())?;
    let said = event.metadata.source().and_then(|text| serde_json::from_str(text).ok());
    let (id, name) = (event.resource_id.as_deref()?, event.resource_name.as_deref()?);
    told(id, name, event.actor.id.as_deref(), &said.unwrap_or_default())
}

/// The name of a space as an event states it. The names of personal spaces are ignored, because
/// people could choose a tenant's; their user determines the tenant.
fn told(
    id: &str,
    name: &str,
    actor: Option<&str>,
    said: &serde_json::Value,
) -> Option<(String, Option<String>)> {
    let space = normal(id);
    if said["Type"] == "personal" || actor == Some(bare(space)) {
        return None;
    }
    let could_be_slug = (1..=SLUG_MAX_BYTES).contains(&name.len());
    Some((space.to_owned(), could_be_slug.then(|| name.to_owned())))
}

/// The names in the events of `source` in the log: of each kind the newest 10,000 are read; at most
/// 20,000 spaces are known.
pub(super) async fn from_log(log: &dyn AuditStore, source: &str) -> Result<Names> {
    let mut newest: HashMap<String, (u64, Option<String>)> = HashMap::new();
    for action in TELLING {
        let mut query = ListQuery {
            source: Some(source.to_owned()),
            action: Some(action.to_owned()),
            limit: ListQuery::MAX_LIMIT,
            ..ListQuery::default()
        };
        for _ in 0..MAX_PAGES {
            let page = log.list(&query).await?;
            for stored in &page.events {
                let event = &stored.event;
                let (Some(id), Some(name)) = (&event.resource_id, &event.resource_name) else {
                    continue;
                };
                if event.source != source || event.action != action {
                    continue;
                }
                let said = event.metadata.to_value();
                let Some((space, name)) = told(id, name, event.actor_id.as_deref(), &said) else {
                    continue;
                };
                if newest.len() >= MAX_NAMES && !newest.contains_key(&space) {
                    continue;
                }
                let known = newest.entry(space).or_insert((stored.seq, None));
                if stored.seq >= known.0 {
                    *known = (stored.seq, name);
                }
            }
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
    }
    Ok(newest.into_iter().map(|(space, (_, name))| (space, name)).collect())
}

#[cfg(test)]
mod tests {
    use dezky_core::{Actor, NewEvent, NewMetadata};
    use serde_json::json;

    use super::*;

    fn spaces(map: &[(&str, &str)]) -> Spaces {
        let map = map.iter().map(|(id, slug)| ((*id).to_owned(), (*slug).to_owned())).collect();
        Spaces {
            map: Arc::new(checked(&map).unwrap()),
            known: Arc::default(),
            told: Mutex::default(),
        }
    }

    fn event(action: &str, space: &str, name: Option<&str>, kind: &str) -> PulledEvent {
        let metadata = NewMetadata::from_value(json!({"Type": kind}))
            .with_annotation("spaceId", normal(space));
        let event = NewEvent {
            resource_id: Some(normal(space).to_owned()),
            resource_name: name.map(str::to_owned),
            metadata,
            ..NewEvent::new(action, Actor::user("u1"))
        };
        let user = TenantHint::User { system: SYSTEM, id: "u1".into() };
        PulledEvent { event, tenant: vec![user] }
    }

    fn hints(spaces: &Spaces, space: &str) -> Vec<String> {
        let mut pulled = event("ocis.file_uploaded", space, None, "");
        spaces.see(&mut pulled);
        let hint = |hint: &TenantHint| match hint {
            TenantHint::Slug { slug, via } => format!("{via} {slug}"),
            TenantHint::User { id, .. } => format!("user {id}"),
            TenantHint::Domain(domain) => domain.clone(),
        };
        pulled.tenant.iter().map(hint).collect()
    }

    #[test]
    fn the_map_comes_first_then_the_name_then_the_users() {
        let spaces = spaces(&[("st$a", "acme"), ("b", "beta"), ("st$c!root", "gamma")]);
        assert_eq!(hints(&spaces, "st$a!x"), ["space_map acme", "user u1", "user a"]);
        assert_eq!(hints(&spaces, "other$b"), ["space_map beta", "user u1", "user b"]);
        assert_eq!(hints(&spaces, "st$c"), ["space_map gamma", "user u1", "user c"]);
        assert_eq!(hints(&spaces, "other$a"), ["user u1", "user a"]);
        assert_eq!(hints(&spaces, "st$u1"), ["user u1"]);
        spaces.see(&mut event("ocis.space_created", "st$a!root", Some("named"), "project"));
        let all = ["space_map acme", "space_name named", "user u1", "user a"];
        assert_eq!(hints(&spaces, "st$a"), all);
    }

    #[test]
    fn names_are_learned_and_forgotten_as_the_log_tells() {
        let spaces = spaces(&[]);
        spaces.see(&mut event("ocis.space_created", "st$a!a", Some("acme"), "project"));
        assert_eq!(hints(&spaces, "st$a")[0], "space_name acme");
        spaces.see(&mut event("ocis.space_renamed", "st$a", Some("beta"), ""));
        assert_eq!(hints(&spaces, "st$a")[0], "space_name beta");
        spaces.see(&mut event("ocis.space_updated", "st$a", None, ""));
        assert_eq!(
            hints(&spaces, "st$a")[0],
            "space_name beta",
            "an event without a name changes nothing"
        );
        let long = "x".repeat(64);
        spaces.see(&mut event("ocis.space_updated", "st$a", Some(&long), ""));
        assert_eq!(hints(&spaces, "st$a")[0], "user u1");
        // People choose their own names.
        spaces.see(&mut event("ocis.space_created", "st$p", Some("acme"), "personal"));
        spaces.see(&mut event("ocis.space_renamed", "st$u1", Some("acme"), ""));
        assert_eq!(hints(&spaces, "st$p")[0], "user u1");
        assert_eq!(hints(&spaces, "st$u1")[0], "user u1");
    }

    #[test]
    fn maps_out_of_bounds_are_refused() {
        for (space, slug) in [("", "acme"), ("st$", "acme"), ("a", ""), ("a", &*"x".repeat(64))] {
            let map = BTreeMap::from([(space.to_owned(), slug.to_owned())]);
            assert_eq!(checked(&map).unwrap_err().code(), "config_invalid", "{space}={slug}");
        }
    }
}
