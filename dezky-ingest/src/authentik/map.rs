//! What an event means: verb, who, on what, how it ended. Total and pure.

use dezky_core::{
    Actor, ActorType, NewEvent, NewMetadata, Outcome, PulledEvent, QuarantineItem, Timestamp,
};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "authentik")]
use super::proto::Place;
use super::proto::{Event, Item, Odd, pk};
use super::redact;
use crate::address::bare_address;
use crate::intake::TENANT_BY;

/// The source name of the first instance; a further one is `authentik:{instance}`.
pub const SOURCE: &str = "authentik";

/// Every action that Authentik declares, from 2021.9 to 2026.8. The 38th is the
/// prefix `custom_` of events that policies and expressions make.
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

/// The longest verb behind `authentik.`, in bytes: 128 with it.
const VERB_MAX: usize = 118;
/// The largest part of a text that is noted about an event, in bytes.
const NOTE_MAX: usize = 512;
/// What an event says is cut to this, in bytes, so that the small parts of a
/// large context are kept.
const SAID_MAX: usize = 48 << 10;
/// The most members that are cut; then the whole is reduced to its scalars.
const MAX_CUTS: usize = 64;
/// The longest type of a resource, in bytes.
const RESOURCE_TYPE_MAX: usize = 63;
/// The longest identity that the log takes, in bytes.
const EXTERNAL_ID_MAX: usize = 512;
/// What stands for an address that could not be determined.
const NO_ADDRESS: &str = "255.255.255.255";

/// The verb of a raw action: `authentik.<raw>`, except that `password_set` is
/// `authentik.password_changed`. Other spellings of a known action (kebab,
/// dotted, Camel) give the same; what is not known is brought to lower-case words.
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
        // Not of a name that somebody made up.
        _ if verb.ends_with("_exception") && !verb.starts_with("custom_") => Outcome::Failure,
        _ => Outcome::Success,
    }
}

/// The key of the user whose groups decide about the tenant: during an
/// impersonation the impersonated one.
pub fn tenant_user(event: &Event) -> Option<String> {
    let user = event.object("user")?;
    if is_anonymous(user) {
        return None;
    }
    on_behalf_of(event).unwrap_or(user).get("pk").and_then(pk)
}

fn on_behalf_of(event: &Event) -> Option<&Map<String, Value>> {
    event.object("user")?.get("on_behalf_of")?.as_object().filter(|user| !user.is_empty())
}

fn is_anonymous(user: &Map<String, Value>) -> bool {
    user.get("is_anonymous") == Some(&Value::Bool(true))
        // Before 2024 nothing else says so.
        || user.get("username").and_then(Value::as_str) == Some("AnonymousUser")
}

/// Makes the audit event. Never fails: what an event does not say is absent.
///
/// `at` is `created`, `external_id` the key in normal form. The metadata is what
/// the event says, without secrets; `_dezky` says `rawAction`, `requestId`,
/// `userAgent`, and `contextCut`, the names of what was too large to keep.
pub fn map(source: &str, event: Event) -> NewEvent {
    let verb = verb(&event.action);
    let user = event.object("user");
    let anonymous = user.is_some_and(is_anonymous);
    let actor = Actor {
        kind: match user {
            None => ActorType::System,
            Some(_) if anonymous => ActorType::Anonymous,
            Some(_) => ActorType::User,
        },
        id: user.filter(|_| !anonymous).and_then(|user| user.get("pk").and_then(pk)),
        email: user.filter(|_| !anonymous).and_then(|user| text(user, "email")),
        ip: text(&event.members, "client_ip").filter(|ip| ip != NO_ADDRESS).map(bare_address),
    };
    let resource = resource(&event);
    let (external_id, raw_id) = if event.pk.len() <= EXTERNAL_ID_MAX {
        (event.pk.clone(), None)
    } else {
        // Nothing that Authentik sends; cut, two could become one.
        (format!("sha256:{}", sha256(&event.pk)), Some(head(&event.pk)))
    };
    let mut metadata = NewMetadata::default().with_annotation("rawAction", head(&event.action));
    if let Some(raw_id) = raw_id {
        metadata.annotate("rawId", raw_id);
    }
    let request = event.object("context").and_then(|context| context.get("http_request"));
    for (name, key) in [("requestId", "request_id"), ("userAgent", "user_agent")] {
        let said = request.and_then(|request| request.get(key)).and_then(Value::as_str);
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            metadata.annotate(name, head(said));
        }
    }
    let created = event.created;
    let (said, cut) = said(event);
    metadata.set_source(said);
    if !cut.is_empty() {
        metadata.annotate("contextCut", cut);
    }
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

/// On what it was done.
#[derive(Default)]
struct Resource {
    kind: Option<String>,
    id: Option<String>,
    name: Option<String>,
}

/// The model, else the application that was authorised, else who is impersonated.
fn resource(event: &Event) -> Resource {
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
    described("model").or_else(application).or_else(impersonated).unwrap_or_default()
}

/// A type as a word within its bound.
fn word(text: &str) -> String {
    text[..text.floor_char_boundary(RESOURCE_TYPE_MAX)].to_lowercase()
}

fn text(object: &Map<String, Value>, name: &str) -> Option<String> {
    object.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(NOTE_MAX)]
}

/// What the event says beside what has fields of its own, without secrets, and
/// the names of the parts of its context that were too large to keep.
fn said(event: Event) -> (String, Vec<String>) {
    let mut all = Value::Object(event.members);
    redact::redact(&mut all);
    let mut cut = Vec::new();
    if let Some(members) = all.as_object_mut() {
        members.retain(|name, _| !matches!(name.as_str(), "pk" | "action" | "created"));
    }
    let mut said = all.to_string();
    while said.len() > SAID_MAX && cut.len() < MAX_CUTS {
        let Some(context) = all.get_mut("context").and_then(Value::as_object_mut) else { break };
        let size = |value: &Value| value.to_string().len();
        let largest = context.iter_mut().map(|(name, value)| (size(value), name, value));
        let Some((bytes, name, value)) = largest.max_by_key(|(bytes, ..)| *bytes) else { break };
        cut.push(head(name).to_owned());
        *value = format!("[{bytes} bytes]").into();
        said = all.to_string();
    }
    (said, cut)
}

/// What can't be an event, for the quarantine, without secrets.
pub fn odd_item(source: &str, odd: Odd, bytes: usize, now: Timestamp) -> QuarantineItem {
    let raw = odd.value.map(|mut value| {
        redact::redact(&mut value);
        value.to_string()
    });
    let key = match &raw {
        Some(raw) => format!("item:{}", sha256(raw)),
        // Nothing of it may be hashed, as there may be secrets in it.
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

/// An event that has more bytes than are read, for the quarantine: where it stands, by
/// its key if the beginning of its page shows it, else by the one read before it.
#[cfg(feature = "authentik")]
pub(super) fn large_item(
    source: &str,
    head: &str,
    before: Option<&Place>,
    max_bytes: usize,
    now: Timestamp,
) -> QuarantineItem {
    let key = match (first_pk(head), before) {
        (Some(pk), _) => sha256(&pk),
        (None, Some(before)) => format!("beside:{}:{}", before.created_us, before.pk),
        (None, None) => "first".to_owned(),
    };
    let beside = before.map_or(String::new(), |place| format!(" beside {}", place.created()));
    QuarantineItem {
        source: source.to_owned(),
        key: format!("too_large:{key}"),
        reason: "too_large".into(),
        detail: format!(
            "an event{beside} has more than the {max_bytes} bytes that are read; not kept"
        ),
        raw: first_pk(head).unwrap_or_default().into_bytes(),
        at: now,
    }
}

/// The key of a page's first item where the item begins with it, as Authentik's do.
#[cfg(feature = "authentik")]
fn first_pk(head: &str) -> Option<String> {
    let mut rest = head;
    for part in ["\"results\"", ":", "[", "{", "\"pk\"", ":"] {
        // What stands before the list is not looked at.
        rest = if rest.len() == head.len() {
            rest.split_once(part)?.1
        } else {
            rest.trim_start().strip_prefix(part)?
        };
    }
    let value = serde_json::Deserializer::from_str(rest).into_iter::<Value>().next()?.ok()?;
    pk(&value).filter(|pk| pk.len() <= EXTERNAL_ID_MAX)
}

/// Reads what was kept of an item that was no event again. The groups of its user
/// are not known, so whose it is stays open.
pub(crate) fn redecode(item: &QuarantineItem) -> Result<Vec<PulledEvent>, String> {
    let text = String::from_utf8_lossy(&item.raw);
    let raw = serde_json::from_str(&text).map_err(|_| "still no JSON".to_owned())?;
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
        assert_eq!(on, [(None, None), (None, None), user, user, (None, None), (None, None)]);
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
        assert_eq!(mapped.metadata.annotation("contextCut"), Some(&json!(["dump"])));
        assert!(mapped.metadata.into_metadata().as_str().len() < 1000);
    }

    #[test]
    fn what_is_quarantined_has_no_secrets() {
        let text = r#"{"created":"2026-01-01T00:00:00Z","context":{"password":"hunter2"}}"#;
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        let odd = Item::read(&raw).event.unwrap_err();
        let item = odd_item(SOURCE, odd, text.len(), Timestamp::MIN);
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
        let place = Place { created_us: 1, pk: "a".into() };
        let key = |before| large_item(SOURCE, "", before, 1 << 20, Timestamp::MIN).key;
        assert_eq!(
            (key(None), key(Some(&place))),
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
