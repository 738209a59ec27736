//! Meaning of an event: verb, actor, resource, outcome. Total and pure.

use std::collections::HashMap;

use dezky_core::{
    Actor, ActorType, NewEvent, NewMetadata, Outcome, PulledEvent, QuarantineItem, Timestamp,
};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "authentik")]
use super::proto::Position;
use super::proto::{Event, Item, MalformedItem, pk};
use super::redact;
use crate::address::bare_address;
use crate::annotations::{RAW_ACTION, RAW_ID, TENANT_BY};
use crate::cut;

/// The source name of the first instance; a further one is `authentik:{instance}`.
pub const SOURCE: &str = "authentik";

/// The actions that Authentik declares, from 2021.9 to 2026.8. The 38th is the prefix `custom_` of
/// events made by policies and expressions.
pub const ACTIONS: [&str; 37] = [
    "login",
    "login_failed",
    "logout",
    "user_write",
    "suspicious_request",
    "password_set",
    "secret_view",
    "secret_rotate",
    "invitation_used",
    "authorize_application",
    "source_linked",
    "impersonation_started",
    "impersonation_ended",
    "flow_execution",
    "policy_execution",
    "policy_exception",
    "property_mapping_exception",
    "system_task_execution",
    "system_task_exception",
    "system_exception",
    "configuration_error",
    "configuration_warning",
    "model_created",
    "model_updated",
    "model_deleted",
    "email_sent",
    "update_available",
    "export_ready",
    "review_initiated",
    "review_overdue",
    "review_attested",
    "review_completed",
    "user_offboarded",
    "access_request_created",
    "access_request_approved",
    "access_request_denied",
    "access_request_revoked",
];

/// The longest verb after `authentik.`, in bytes: 128 with it.
const VERB_MAX: usize = 118;
/// The longest text kept in an annotation, in bytes.
const NOTE_MAX: usize = 512;
/// The size of a generation of requests that changed users; at most twice as many are remembered.
#[cfg(feature = "authentik")]
const DOERS: usize = 500;
/// The longest type of a resource, in bytes.
const RESOURCE_TYPE_MAX: usize = 63;
/// The longest external id that the log accepts, in bytes.
const EXTERNAL_ID_MAX: usize = 512;
/// Placeholder for an address that could not be determined.
const NO_ADDRESS: &str = "255.255.255.255";

/// The verb of a raw action: `authentik.<raw>`, except that `password_set` is
/// `authentik.password_changed`. Other spellings of a known action (kebab, dotted, camel case) give
/// the same; an unknown action becomes lower-case words.
///
/// ```
/// use dezky_ingest::authentik::action;
/// assert_eq!(action("login_failed"), "authentik.login_failed");
/// assert_eq!(action("PasswordSet"), "authentik.password_changed");
/// assert_eq!(action("custom_Risk flagged!"), "authentik.custom_risk_flagged");
/// ```
pub fn action(raw: &str) -> String {
    format!("{SOURCE}.{}", verb(raw))
}

fn verb(raw: &str) -> String {
    let squash = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let squashed = squash(raw);
    if let Some(known) = ACTIONS.into_iter().find(|known| squash(known) == squashed) {
        return if known == "password_set" { "password_changed" } else { known }.to_owned();
    }
    let mut verb = String::new();
    for c in raw.chars() {
        if c.is_ascii_alphanumeric() {
            verb.push(c.to_ascii_lowercase());
        } else if !verb.is_empty() && !verb.ends_with('_') {
            verb.push('_');
        }
    }
    verb.truncate(VERB_MAX);
    let verb = verb.trim_end_matches('_');
    if verb.is_empty() { "unknown".to_owned() } else { verb.to_owned() }
}

fn outcome(verb: &str) -> Outcome {
    match verb {
        "login_failed" | "configuration_error" => Outcome::Failure,
        "suspicious_request" | "access_request_denied" => Outcome::Denied,
        // Custom names stay as they are.
        _ if verb.ends_with("_exception") && !verb.starts_with("custom_") => Outcome::Failure,
        _ => Outcome::Success,
    }
}

/// The key of the user whose groups determine the tenant: during an impersonation, the impersonated
/// user.
pub fn tenant_user(event: &Event) -> Option<String> {
    let (_, user) = who(event);
    on_behalf_of(event).or(user)?.get("pk").and_then(pk)
}

/// The type of an event's actor, and the user if one is known.
fn who(event: &Event) -> (ActorType, Option<&Map<String, Value>>) {
    let Some(user) = event.object("user") else { return (ActorType::System, None) };
    if is_anonymous(user) {
        return (ActorType::Anonymous, None);
    }
    if user.get("pk").and_then(pk).is_some() {
        return (ActorType::User, Some(user));
    }
    // A typed name that belongs to no known user; it does not tell who typed it.
    let typed_by = user.get("authenticated_as").and_then(Value::as_object);
    match typed_by.filter(|user| !user.is_empty()) {
        Some(user) if is_anonymous(user) => (ActorType::Anonymous, None),
        Some(user) => (ActorType::User, Some(user)),
        None if verb(&event.action) == "login_failed" => (ActorType::Anonymous, None),
        None => (ActorType::User, Some(user)),
    }
}

fn on_behalf_of(event: &Event) -> Option<&Map<String, Value>> {
    event.object("user")?.get("on_behalf_of")?.as_object().filter(|user| !user.is_empty())
}

fn is_anonymous(user: &Map<String, Value>) -> bool {
    user.get("is_anonymous") == Some(&Value::Bool(true))
        // Before 2024 there is no other sign of it.
        || user.get("username").and_then(Value::as_str) == Some("AnonymousUser")
}

/// Makes the audit event. Never fails: fields that the event does not have stay absent.
///
/// `at` is `created`, `external_id` the key in normal form. The metadata is the event's content
/// without secrets; `_dezky` holds `rawAction`, `requestId`, `userAgent`, and `cut`, the paths of
/// parts that were too large. For a password that was set outside the user's own flow, `actorBy` is
/// `affected`, because the event names the user whose password it is, not who set it.
pub fn map(source: &str, event: Event) -> NewEvent {
    map_by(source, event, &Doers::default())
}

/// Like [`map`], with the actors of earlier requests.
pub(super) fn map_by(source: &str, mut event: Event, doers: &Doers) -> NewEvent {
    redact::hide_invitations(&mut event.members);
    let verb = verb(&event.action);
    let (mut kind, mut user) = who(&event);
    let is_affected = verb == "password_changed" && user.is_some() && !is_in_flow(&event);
    let doer = doers.of(&event).filter(|_| is_affected);
    let actor_by = match doer {
        Some(doer) if doer.get("pk") == user.and_then(|user| user.get("pk")) => None,
        Some(doer) => {
            (kind, user) = (ActorType::User, Some(doer));
            Some("request")
        }
        None => is_affected.then_some("affected"),
    };
    let actor = Actor {
        kind,
        id: user.and_then(|user| user.get("pk").and_then(pk)),
        email: user.and_then(|user| text(user, "email")),
        ip: text(&event.members, "client_ip").filter(|ip| ip != NO_ADDRESS).map(bare_address),
    };
    let resource = resource(&event, &verb);
    let (external_id, raw_id) = if event.pk.len() <= EXTERNAL_ID_MAX {
        (event.pk.clone(), None)
    } else {
        // Authentik never sends such a key. It is hashed, because two truncated keys could become
        // equal.
        (format!("sha256:{}", sha256(&event.pk)), Some(head(&event.pk)))
    };
    let mut metadata = NewMetadata::default().with_annotation(RAW_ACTION, head(&event.action));
    if let Some(raw_id) = raw_id {
        metadata.annotate(RAW_ID, raw_id);
    }
    if let Some(actor_by) = actor_by {
        metadata.annotate("actorBy", actor_by);
    }
    let request = event.object("context").and_then(|context| context.get("http_request"));
    for (name, key) in [("requestId", "request_id"), ("userAgent", "user_agent")] {
        let said = request.and_then(|request| request.get(key)).and_then(Value::as_str);
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            metadata.annotate(name, head(said));
        }
    }
    let created = event.created;
    metadata.set_source(said(event));
    cut::fit(&mut metadata);
    let mut mapped = NewEvent {
        at: Some(created),
        outcome: outcome(&verb),
        resource_type: resource.kind,
        resource_id: resource.id,
        resource_name: resource.name,
        source: source.to_owned(),
        external_id: Some(external_id),
        metadata,
        ..NewEvent::new(format!("{SOURCE}.{verb}"), actor)
    };
    mapped.cut_to_bounds();
    mapped
}

/// Actors that changed users, by request. Bounded by two generations.
#[derive(Default)]
pub(super) struct Doers {
    young: HashMap<String, Map<String, Value>>,
    old: HashMap<String, Map<String, Value>>,
}

impl Doers {
    /// Notes the actor of an event's request, if the event is about a changed user.
    #[cfg(feature = "authentik")]
    pub(super) fn note(&mut self, event: &Event) {
        let is_change = matches!(verb(&event.action).as_str(), "model_updated" | "model_created");
        let model = event.object("context").and_then(|context| context.get("model"));
        let is_user = model.and_then(|model| model.get("model_name")) == Some(&"user".into());
        if let (true, Some(request), (ActorType::User, Some(user))) =
            (is_change && is_user, request_id(event), who(event))
        {
            if self.young.len() >= DOERS && !self.young.contains_key(request) {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(request.to_owned(), user.clone());
        }
    }

    fn of(&self, event: &Event) -> Option<&Map<String, Value>> {
        let request = request_id(event)?;
        self.young.get(request).or_else(|| self.old.get(request))
    }
}

fn http_request<'e>(event: &'e Event, name: &str) -> Option<&'e str> {
    event.object("context")?.get("http_request")?.get(name)?.as_str()
}

fn request_id(event: &Event) -> Option<&str> {
    http_request(event, "request_id").filter(|id| (1..=128).contains(&id.len()))
}

/// Whether it happened in a flow that the named user went through.
fn is_in_flow(event: &Event) -> bool {
    http_request(event, "path").is_some_and(|path| path.contains("/flows/executor/"))
}

/// The affected resource.
#[derive(Default)]
struct Resource {
    kind: Option<String>,
    id: Option<String>,
    name: Option<String>,
}

/// The model, else the authorised application, else the impersonated user, else the secret,
/// invitation or user that the event is about.
fn resource(event: &Event, verb: &str) -> Resource {
    let described = |name: &str| {
        let what = event.object("context")?.get(name)?.as_object()?;
        Some(Resource {
            kind: text(what, "model_name").map(|kind| word(&kind)),
            id: what.get("pk").and_then(pk),
            name: text(what, "name"),
        })
        .filter(|resource| resource.kind.is_some() || resource.id.is_some())
    };
    let application = || {
        let application = described("authorized_application")?;
        Some(Resource { kind: Some("application".into()), ..application })
    };
    let impersonated = || {
        let user = on_behalf_of(event)?;
        let (id, name) = (user.get("pk").and_then(pk), text(user, "username"));
        Some(Resource { kind: Some("user".into()), id, name })
    };
    let invitation = || {
        let id = text(event.object("context")?, "invitation_uuid")?;
        Some(Resource { kind: Some("invitation".into()), id: Some(id), name: None })
    };
    let user = || {
        let user = event.object("user");
        let name = user.and_then(|user| text(user, "username"));
        match verb {
            // The name that was tried, regardless of who tried it.
            "login_failed" => {
                let tried = event.object("context").and_then(|context| text(context, "username"));
                let name = tried.or(name.filter(|_| !user.is_some_and(is_anonymous)))?;
                Some(Resource { kind: Some("user".into()), id: None, name: Some(name) })
            }
            "password_changed" => {
                let id = user?.get("pk").and_then(pk);
                Some(Resource { kind: Some("user".into()), id, name })
            }
            _ => None,
        }
    };
    described("model")
        .or_else(application)
        .or_else(impersonated)
        .or_else(|| described("secret"))
        .or_else(|| described("token"))
        .or_else(invitation)
        .or_else(user)
        .unwrap_or_default()
}

/// A resource type as a word within its bound.
fn word(text: &str) -> String {
    text[..text.floor_char_boundary(RESOURCE_TYPE_MAX)].to_lowercase()
}

fn text(object: &Map<String, Value>, name: &str) -> Option<String> {
    object.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(NOTE_MAX)]
}

/// The event's content, except the mapped fields, without secrets.
fn said(mut event: Event) -> String {
    event.members.retain(|name, _| !matches!(name.as_str(), "pk" | "created"));
    let mut all = Value::Object(event.members);
    redact::redact(&mut all);
    if let Some(members) = all.as_object_mut() {
        members.remove("action");
    }
    all.to_string()
}

/// The quarantine item of a malformed item, without secrets.
pub fn malformed_item(
    source: &str,
    odd: MalformedItem,
    bytes: usize,
    now: Timestamp,
) -> QuarantineItem {
    let raw = odd.value.map(|mut value| {
        redact::redact(&mut value);
        value.to_string()
    });
    let key = match &raw {
        Some(raw) => format!("item:{}", sha256(raw)),
        // A hash would let secrets in it be guessed.
        None => format!("too_deep:{bytes}"),
    };
    let what = match odd.reason {
        "not_an_object" => "is not an object",
        "no_pk" => "has no pk that is text or a number",
        "no_created" => "has no created that is an RFC 3339 time",
        "no_action" => "has no action that is text",
        _ => "is nested too deeply; not kept, as there may be secrets in it",
    };
    QuarantineItem {
        source: source.to_owned(),
        key,
        reason: odd.reason.to_owned(),
        detail: format!("an item of {bytes} bytes {what}"),
        // Bounded by the intake.
        raw: raw.unwrap_or_default().into_bytes(),
        at: now,
    }
}

/// The quarantine item of an event that is too large to be read. It is identified by the event's
/// key if the beginning of its page shows it, otherwise by the event before it.
#[cfg(feature = "authentik")]
pub(super) fn large_item(
    source: &str,
    head: &str,
    before: Option<&Position>,
    max_bytes: usize,
    now: Timestamp,
) -> QuarantineItem {
    let key = match (first_pk(head), before) {
        (Some(pk), _) => sha256(&pk),
        (None, Some(before)) => format!("beside:{}:{}", before.created_us, before.pk),
        (None, None) => "first".to_owned(),
    };
    let neighbour = before
        .map_or(String::new(), |position| format!(" next to the one of {}", position.created()));
    QuarantineItem {
        source: source.to_owned(),
        key: format!("too_large:{key}"),
        reason: "too_large".into(),
        detail: format!("an event{neighbour} has more than max_page_bytes ({max_bytes}); not kept"),
        raw: first_pk(head).unwrap_or_default().into_bytes(),
        at: now,
    }
}

/// The key of a page's first item, if the item begins with it, as Authentik's do.
#[cfg(feature = "authentik")]
fn first_pk(head: &str) -> Option<String> {
    let mut rest = head;
    for part in ["\"results\"", ":", "[", "{", "\"pk\"", ":"] {
        // The text before the list is ignored.
        rest = if rest.len() == head.len() {
            rest.split_once(part)?.1
        } else {
            rest.trim_start().strip_prefix(part)?
        };
    }
    let value = serde_json::Deserializer::from_str(rest).into_iter::<Value>().next()?.ok()?;
    pk(&value).filter(|pk| pk.len() <= EXTERNAL_ID_MAX)
}

/// Reads a quarantined item again. The user's groups are unknown, so its tenant is unresolved.
pub(crate) fn redecode(item: &QuarantineItem) -> Result<Vec<PulledEvent>, String> {
    let text = String::from_utf8_lossy(&item.raw);
    let raw = serde_json::from_str(&text).map_err(|_| "still not JSON".to_owned())?;
    let event = Item::read(raw).event.map_err(|odd| format!("still {}", odd.reason))?;
    let user = tenant_user(&event);
    let mut mapped = map(&item.source, event);
    if user.is_some() {
        mapped.metadata.annotate(TENANT_BY, "unresolved");
    }
    Ok(vec![mapped.into()])
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use dezky_core::Runtime as _;
    use dezky_core::rt::TokioRuntime;
    use proptest::prelude::*;
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;

    const EVENTS: &str = include_str!("../../tests/data/authentik/events.json");

    fn event(value: &Value) -> Event {
        let raw: Box<RawValue> = serde_json::from_str(&value.to_string()).unwrap();
        Item::read(&raw).event.unwrap()
    }

    fn with(more: &Value) -> Event {
        let mut all = json!({"pk": 1, "created": "2026-01-01T00:00:00Z", "action": "login"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event(&all)
    }

    #[test]
    fn every_action_has_its_verb() {
        for name in ACTIONS {
            let expected = if name == "password_set" { "password_changed" } else { name };
            for spelled in [name.to_owned(), name.replace('_', "-"), name.replace('_', ".")] {
                assert_eq!(action(&spelled), format!("authentik.{expected}"));
            }
        }
        for (raw, expected) in [
            ("custom_static_authenticator_disable", "custom_static_authenticator_disable"),
            ("custom_", "custom"),
            ("token_view", "token_view"),
            ("  Neu & Gut ", "neu_gut"),
            ("日本", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(action(raw), format!("authentik.{expected}"), "{raw}");
        }
        assert_eq!(action(&"x".repeat(500)).len(), 128);
    }

    #[test]
    fn outcomes() {
        for (raw, expected) in [
            ("login_failed", Outcome::Failure),
            ("policy_exception", Outcome::Failure),
            ("configuration_error", Outcome::Failure),
            ("configuration_warning", Outcome::Success),
            ("suspicious_request", Outcome::Denied),
            ("access_request_denied", Outcome::Denied),
            ("custom_my_exception", Outcome::Success),
            ("login", Outcome::Success),
        ] {
            assert_eq!(outcome(&verb(raw)), expected, "{raw}");
        }
    }

    #[test]
    fn the_fixture_means() {
        let events: Vec<Value> = serde_json::from_str(EVENTS).unwrap();
        let mapped: Vec<_> = events.iter().map(|raw| map(SOURCE, event(raw))).collect();
        let who: Vec<_> = mapped
            .iter()
            .map(|e| (e.actor.kind, e.actor.id.as_deref(), e.actor.ip.as_deref()))
            .collect();
        assert_eq!(
            who,
            [
                (ActorType::User, Some("42"), Some("203.0.113.10")),
                (ActorType::Anonymous, None, Some("198.51.100.7")),
                (ActorType::User, Some("5"), Some("203.0.113.9")),
                (ActorType::User, Some("5"), Some("203.0.113.9")),
                (ActorType::User, Some("42"), None),
                (ActorType::System, None, None),
            ]
        );
        let on: Vec<_> =
            mapped.iter().map(|e| (e.resource_type.as_deref(), e.resource_id.as_deref())).collect();
        let user = (Some("user"), Some("42"));
        let tried = (Some("user"), None);
        assert_eq!(on, [(None, None), tried, user, user, (None, None), (None, None)]);
        assert_eq!(mapped[0].actor.email.as_deref(), Some("ana@acme.test"));
        assert_eq!(mapped[0].metadata.annotation("userAgent"), Some(&json!("Mozilla/5.0")));
        assert_eq!(
            mapped[0].metadata.annotation("requestId"),
            Some(&json!("a4b1c2d3e4f5460798a0b1c2d3e4f506"))
        );
        let said: Value = serde_json::from_str(mapped[3].metadata.source().unwrap()).unwrap();
        assert_eq!(said["user"]["on_behalf_of"]["username"], "ana");
        assert_eq!(said["context"]["reason"], "ticket 123");
        let tenant: Vec<_> = events.iter().map(|raw| tenant_user(&event(raw))).collect();
        let pk = |pk: &str| Some(pk.to_owned());
        assert_eq!(tenant, [pk("42"), None, pk("5"), pk("42"), pk("42"), None]);
    }

    #[test]
    fn an_application_is_what_was_authorised() {
        let hex = "0d7c1e0a9f4b4c1d8a2e3f4051627384";
        let mapped = map(
            SOURCE,
            with(&json!({"context": {"authorized_application":
                {"pk": hex, "app": "authentik_core", "name": "Files", "model_name": "application"}}})),
        );
        assert_eq!(mapped.resource_type.as_deref(), Some("application"));
        assert_eq!(mapped.resource_id.as_deref(), Some("0d7c1e0a-9f4b-4c1d-8a2e-3f4051627384"));
        assert_eq!(mapped.resource_name.as_deref(), Some("Files"));
    }

    #[test]
    fn a_large_context_keeps_its_small_parts() {
        let huge = "x".repeat(5 << 20);
        let mapped = map(SOURCE, with(&json!({"context": {"dump": huge, "message": "kept"}})));
        let said: Value = serde_json::from_str(mapped.metadata.source().unwrap()).unwrap();
        assert_eq!(said["context"]["message"], "kept");
        let cut = mapped.metadata.annotation("cut").unwrap();
        assert_eq!(cut["context.dump"]["bytes"], 5 << 20);
        assert!(mapped.metadata.into_metadata().as_str().len() < 1000);
    }

    #[test]
    fn a_login_with_a_long_name_keeps_its_context_its_user_and_its_brand() {
        let name = "z".repeat(60_000);
        let mapped = map(
            SOURCE,
            with(&json!({
                "action": "login_failed",
                "user": {"pk": 5, "email": name, "username": name},
                "context": {"username": name, "http_request": {"path": "/x", "request_id": "r"}},
                "brand": {"pk": "b", "name": "acme"},
            })),
        );
        let kept = mapped.metadata.clone().into_metadata().to_value();
        assert_eq!(kept["brand"], json!({"pk": "b", "name": "acme"}));
        assert_eq!(kept["context"]["http_request"], json!({"path": "/x", "request_id": "r"}));
        assert_eq!(
            (&kept["user"]["pk"], kept["user"]["username"].as_str()),
            (&json!(5), Some(&name[..256]))
        );
        for path in ["user.username", "user.email", "context.username"] {
            assert_eq!(kept["_dezky"]["cut"][path]["bytes"], 60_000, "{path}");
        }
    }

    #[test]
    fn a_failed_login_of_nobody_is_anonymous_and_tells_the_name_that_was_tried() {
        let anonymous =
            json!({"pk": 1, "email": "", "username": "AnonymousUser", "is_anonymous": true});
        for user in [
            json!({"pk": null, "email": "root@x.test", "username": "root@x.test", "authenticated_as": anonymous}),
            json!({"pk": null, "email": "root@x.test", "username": "root@x.test"}),
            anonymous.clone(),
        ] {
            for context in [json!({"username": "root@x.test"}), json!({})] {
                let event =
                    with(&json!({"action": "login_failed", "user": user, "context": context}));
                assert_eq!(tenant_user(&event), None);
                let mapped = map(SOURCE, event);
                assert_eq!(mapped.actor.kind, ActorType::Anonymous, "{user}");
                assert_eq!((mapped.actor.id, mapped.actor.email), (None, None));
                let is_told = context != json!({}) || user != anonymous;
                assert_eq!(mapped.resource_name.as_deref(), is_told.then_some("root@x.test"));
                assert_eq!(mapped.resource_id, None);
            }
        }
        // A signed-in user tries another name.
        let user = json!({"pk": null, "username": "x", "authenticated_as": {"pk": 7, "email": "a@b.test"}});
        let mapped = map(SOURCE, with(&json!({"action": "login_failed", "user": user})));
        assert_eq!((mapped.actor.kind, mapped.actor.id.as_deref()), (ActorType::User, Some("7")));
        assert_eq!(mapped.resource_name.as_deref(), Some("x"));
    }

    #[test]
    fn a_secret_that_is_viewed_or_rotated_is_the_resource() {
        let what =
            json!({"pk": "1b459dcfb8ac46a988bc0a8b746d978e", "name": "ci", "model_name": "token"});
        for (action, member) in [("secret_view", "secret"), ("secret_rotate", "token")] {
            let mapped = map(SOURCE, with(&json!({"action": action, "context": {member: what}})));
            assert_eq!(mapped.resource_type.as_deref(), Some("token"), "{action}");
            assert_eq!(mapped.resource_id.as_deref(), Some("1b459dcf-b8ac-46a9-88bc-0a8b746d978e"));
            assert_eq!(mapped.resource_name.as_deref(), Some("ci"));
        }
    }

    #[cfg(feature = "authentik")]
    #[test]
    fn a_password_is_set_by_who_is_behind_the_request_or_by_nobody_known() {
        let request = |path: &str| json!({"http_request": {"path": path, "request_id": "r1"}});
        let set = |path: &str| {
            with(&json!({
                "action": "password_set", "context": request(path),
                "user": {"pk": 5, "email": "ana@acme.test", "username": "ana"},
            }))
        };
        let mut context = request("/api/v3/core/users/5/set_password/");
        context["model"] = json!({"pk": 5, "model_name": "user", "name": "Ana"});
        let changed = with(&json!({
            "action": "model_updated", "context": context,
            "user": {"pk": 3, "email": "admin@id.test", "username": "akadmin"},
        }));
        let mut doers = Doers::default();
        let by_admin = "/api/v3/core/users/5/set_password/";
        let alone = map_by(SOURCE, set(by_admin), &doers);
        assert_eq!(alone.metadata.annotation("actorBy"), Some(&json!("affected")));
        assert_eq!(alone.actor.id.as_deref(), Some("5"));
        doers.note(&changed);
        let joined = map_by(SOURCE, set(by_admin), &doers);
        assert_eq!(joined.metadata.annotation("actorBy"), Some(&json!("request")));
        assert_eq!(joined.actor.id.as_deref(), Some("3"));
        assert_eq!(joined.actor.email.as_deref(), Some("admin@id.test"));
        let on = (joined.resource_type.as_deref(), joined.resource_id.as_deref());
        assert_eq!((on, joined.resource_name.as_deref()), ((Some("user"), Some("5")), Some("ana")));
        assert_eq!(tenant_user(&set(by_admin)).as_deref(), Some("5"));
        // The user's own, in a flow.
        let own = map_by(SOURCE, set("/api/v3/flows/executor/recovery/"), &doers);
        assert_eq!(own.metadata.annotation("actorBy"), None);
        assert_eq!(own.actor.id.as_deref(), Some("5"));
    }

    #[test]
    fn the_token_of_an_invitation_stands_nowhere_in_its_event() {
        let hex = "d406f438507f4f8a930d906a4035f00e";
        let dashed = "d406f438-507f-4f8a-930d-906a4035f00e";
        let model = json!({"pk": hex, "app": "authentik_stages_invitation", "name": "invite-lou", "model_name": "invitation"});
        let path = format!("/api/v3/stages/invitation/invitations/{dashed}/");
        let contexts = [
            json!({"model": model, "http_request": {"path": "/x", "args": {}}}),
            json!({"model": model, "http_request": {"path": path, "args": {"invite_uuid": dashed}}}),
            json!({"http_request": {"path": path}}),
            json!({"invitation_uuid": hex}),
            json!({"invitation_uuid": dashed.to_uppercase(), "note": format!("used {hex}.")}),
        ];
        let mut ids = Vec::new();
        for context in contexts {
            let mapped = map(SOURCE, with(&json!({"action": "model_deleted", "context": context})));
            assert_eq!(mapped.external_id.as_deref(), Some("1"), "the identity stays");
            ids.extend(mapped.resource_id.clone());
            let runtime = dezky_core::testkit::ManualRuntime::new(1);
            let all = serde_json::to_string(mapped.seal(&runtime).event()).unwrap().to_lowercase();
            assert!(!all.contains(hex) && !all.contains(dashed), "{all}");
        }
        assert_eq!(ids.len(), 4);
        assert!(ids.iter().all(|id| *id == ids[0] && id.starts_with("sha256:")), "{ids:?}");
    }

    #[test]
    fn a_typed_name_that_looks_like_an_invitation_is_read_to_its_end() {
        let names = ["-".repeat(36), "-".repeat(35) + "a", "a".repeat(36), "-a".repeat(18)];
        for name in names.map(|name| format!("/invitations/{name}")) {
            let context = json!({"username": name, "invitation_uuid": "-".repeat(36)});
            let said = json!({"action": "login_failed", "context": context});
            let mapped = map(SOURCE, with(&said));
            let kept = mapped.metadata.into_metadata().to_value();
            assert_eq!(kept["context"]["username"], name);
        }
        // Spelled like the digest that replaces it, and next to itself.
        let key = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa";
        let said = json!({"context": {"username": format!("/invitations/{key} {key}{key}")}});
        let kept = map(SOURCE, with(&said)).metadata.into_metadata().to_value();
        assert_eq!(kept["context"]["username"].as_str().unwrap().matches("sha256:").count(), 3);
    }

    #[test]
    fn many_keys_of_invitations_are_hidden_in_linear_time() {
        let key = |n: usize| format!("d406f438-507f-4f8a-930d-{n:012x}");
        let path = |n: usize| format!("/invitations/{}", key(n));
        let name: String = (0..100_000).map(path).collect();
        let listed: Vec<_> = (0..10_000).map(|n| key(n).replace('-', "")).collect();
        let said = json!({"context": {"username": name, "listed": listed, "x": "plain"}});
        let started = TokioRuntime.now();
        let kept = map(SOURCE, with(&said)).metadata;
        // A search per key would take minutes.
        let took = TokioRuntime.now().saturating_since(started);
        assert!(took < std::time::Duration::from_secs(20), "{took:?}");
        let kept = kept.source().unwrap();
        assert!(!kept.contains("d406f438") && kept.contains("plain"), "{kept}");
    }

    #[test]
    fn each_of_many_keys_of_invitations_is_hidden_in_any_text() {
        let key = |n: usize| format!("d406f438-507f-4f8a-930d-{n:012x}");
        let paths: Vec<_> = (0..20).map(|n| format!("/invitations/{}/", key(n))).collect();
        // The third has an unusual spelling, the last is not the key of an invitation.
        let notes = [
            format!("invite {} sent", key(19).to_uppercase()),
            format!("ffff{}.", key(18).replace('-', "")),
            format!("-{}", key(17)),
            key(99),
        ];
        let said = json!({"context": {"paths": paths, "notes": notes}});
        let kept = map(SOURCE, with(&said)).metadata.into_metadata().to_value();
        let digest = |n: usize| {
            let path = kept["context"]["paths"][n].as_str().unwrap();
            path.strip_prefix("/invitations/").unwrap().trim_end_matches('/').to_owned()
        };
        let digests: std::collections::BTreeSet<_> = (0..20).map(digest).collect();
        assert!(digests.len() == 20 && digests.iter().all(|digest| digest.starts_with("sha256:")));
        let notes = [
            format!("invite {} sent", digest(19)),
            format!("ffff{}.", digest(18)),
            digest(17),
            key(99),
        ];
        assert_eq!(kept["context"]["notes"], json!(notes));
    }

    #[test]
    fn what_is_quarantined_has_no_secrets() {
        let text = r#"{"created":"2026-01-01T00:00:00Z","context":{"password":"hunter2"}}"#;
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        let odd = Item::read(&raw).event.unwrap_err();
        let item = malformed_item(SOURCE, odd, text.len(), Timestamp::MIN);
        assert_eq!(item.reason, "no_pk");
        let raw = String::from_utf8(item.raw).unwrap();
        assert!(raw.contains(redact::REDACTED) && !raw.contains("hunter2"), "{raw}");
    }

    #[cfg(feature = "authentik")]
    #[test]
    fn what_is_too_large_is_known_by_its_key_where_that_shows() {
        let dashed = "5b0c2f0e-6f0a-4c55-9a57-0d3f8f1b2a01";
        for (head, expected) in [
            (
                format!(
                    r#"{{"pagination":{{"count":9}},"results":[{{"pk":"{dashed}","user":{{"pk""#
                ),
                Some(dashed),
            ),
            (format!(r#"{{ "results" : [ {{ "pk" : "{dashed}" , "co"#), Some(dashed)),
            (r#"{"results":[{"pk":7,"context":"xxx"#.to_owned(), Some("7")),
            (r#"{"results":[{"pk":"5b0c2f"#.to_owned(), None),
            (r#"{"results":[{"context":"xxx"#.to_owned(), None),
            (r#"{"results":["#.to_owned(), None),
            ("{".to_owned(), None),
        ] {
            assert_eq!(first_pk(&head).as_deref(), expected, "{head}");
        }
        let position = Position { created_us: 1, pk: "a".into() };
        let key = |before| large_item(SOURCE, "", before, 1 << 20, Timestamp::MIN).key;
        assert_eq!(
            (key(None), key(Some(&position))),
            ("too_large:first".into(), "too_large:beside:1:a".into())
        );
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            let key = prop_oneof![
                "(pk|user|email|username|context|model|model_name|name|client_ip|args|on_behalf_of)",
                ".{0,6}",
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..6)
                    .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_an_event_or_an_item(
            user in any_value(), context in any_value(), action in ".{0,40}", ip in any_value(),
        ) {
            let event = with(&json!({
                "user": user, "context": context, "action": action, "client_ip": ip,
            }));
            let mapped = map(SOURCE, event);
            let runtime = dezky_core::testkit::ManualRuntime::new(1);
            prop_assert!(mapped.seal(&runtime).validate().is_ok());
        }
    }
}
