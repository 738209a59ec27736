//! Events: from a document of the earlier platform to a sealed event.

use dezky_core::rt::{BlockingWork, TokioRuntime};
use dezky_core::{
    Actor, ActorType, NewEvent, NewMetadata, Outcome, PLATFORM_SOURCE, QuarantineItem, Runtime,
    SealedEvent, Timestamp,
};
use dezky_ingest::{authentik, legacy, ocis, stalwart};
use futures_util::future::BoxFuture;
use mongodb::bson::Document;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::fields::{self, Fields};
use super::report::{Collection, ExternalIds};

/// The result for a document.
pub(super) enum Mapped {
    Event(Box<SealedEvent>),
    Odd(Box<QuarantineItem>),
}

/// Maps a document. Total: a document that is not an event becomes an item for the quarantine.
pub(super) fn map(
    document: Document,
    report: &mut Collection,
    external_ids: &mut ExternalIds,
) -> Mapped {
    let mut fields = Fields::new(document);
    let id = fields.id.clone();
    let made = fields.made.or_else(|| fields.time("receivedAt"));
    let at = fields.time("at").or(made);
    let received_at = fields.time("receivedAt").or(made).or(at).unwrap_or(Timestamp::MIN);
    for known in ["createdAt", "updatedAt"] {
        fields.take(known);
    }
    let source = fields.text("source").unwrap_or_else(|| PLATFORM_SOURCE.into());
    let old_id = fields.text("externalId");
    let said = match fields.take("metadata") {
        None => Map::new(),
        Some(metadata) => match fields::json(&metadata) {
            Value::Object(said) => said,
            other => Map::from_iter([("value".to_owned(), other)]),
        },
    };
    let kept = legacy::read(&source, said, received_at);
    let action = fields.text("action");

    let mut metadata = NewMetadata::from_value(Value::from(kept.said));
    metadata.annotate("rawId", id.as_str());
    let external_id = external_id(&source, old_id, kept.external_id, external_ids, &mut metadata);
    let named = |name: &'static str, fields: &mut Fields| {
        let text = fields.text(name)?;
        Some((name, text))
    };
    let (actor_type, outcome) = (named("actorType", &mut fields), named("outcome", &mut fields));
    let kind = choose(actor_type, ActorType::System, report, &mut metadata);
    let outcome = choose(outcome, Outcome::Success, report, &mut metadata);
    let mut event = NewEvent {
        id: Some(event_id(&id, received_at)),
        at,
        outcome,
        resource_type: fields.text("resourceType"),
        resource_id: fields.text("resourceId"),
        resource_name: fields.text("resourceName"),
        tenant_slug: fields.text("tenantSlug"),
        partner_slug: fields.text("partnerSlug"),
        source: source.clone(),
        external_id,
        ..NewEvent::new(
            action.clone().unwrap_or_default(),
            Actor {
                kind,
                id: fields.text("actorId"),
                email: fields.text("actorEmail"),
                ip: fields.text("actorIp"),
            },
        )
    };
    let rest = fields.rest();
    report.unknown(&rest);
    if !rest.is_empty() {
        let rest = legacy::read(PLATFORM_SOURCE, rest, received_at).said;
        metadata.annotate("origin", rest);
    }
    event.metadata = metadata;
    if action.is_none() || at.is_none() {
        let (reason, what) = match action {
            None => ("no_action", "it has no action"),
            Some(_) => ("no_time", "it has no time, and its _id none either"),
        };
        return Mapped::Odd(Box::new(odd(&id, &event, reason, what, received_at)));
    }
    if event.repair() {
        report.change("event");
    }
    let sealed = event.clone().seal(&At(received_at));
    match sealed.event().validate() {
        Ok(()) => Mapped::Event(Box::new(sealed)),
        Err(invalid) => {
            let what = invalid.to_string();
            Mapped::Odd(Box::new(odd(&id, &event, "event_invalid", &what, received_at)))
        }
    }
}

/// The value of an enumeration; an unknown name is noted.
fn choose<T: std::str::FromStr>(
    field: Option<(&'static str, String)>,
    default: T,
    report: &mut Collection,
    metadata: &mut NewMetadata,
) -> T {
    let Some((name, text)) = field else { return default };
    text.parse().unwrap_or_else(|_| {
        report.change(name);
        let head = &text[..text.floor_char_boundary(128)];
        metadata.annotate(if name == "outcome" { "rawOutcome" } else { "rawActorType" }, head);
        default
    })
}

/// The external id that the source here would give the event.
fn external_id(
    source: &str,
    old: Option<String>,
    computed: Option<String>,
    counts: &mut ExternalIds,
    metadata: &mut NewMetadata,
) -> Option<String> {
    let system = source.split(':').next().unwrap_or_default();
    let Some(old) = old else {
        match &computed {
            Some(_) => counts.computed += 1,
            None => counts.absent += 1,
        }
        return computed;
    };
    let old =
        if system == authentik::SOURCE { authentik::pk(&json!(old)).unwrap_or(old) } else { old };
    match computed {
        Some(computed) if computed != old => {
            counts.computed += 1;
            metadata.annotate("originExternalId", &old[..old.floor_char_boundary(512)]);
            Some(computed)
        }
        Some(_) => {
            counts.kept += 1;
            Some(old)
        }
        None => {
            let is_made_anew = system == stalwart::SOURCE || system == ocis::SYSTEM;
            *(if is_made_anew { &mut counts.not_computed } else { &mut counts.kept }) += 1;
            Some(old)
        }
    }
}

/// A UUID of version 7 that depends only on the document, so that a second import finds the event.
fn event_id(id: &str, received_at: Timestamp) -> Uuid {
    let digest = Sha256::new().chain_update("dezky-origin/1\0").chain_update(id).finalize();
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    let ms = u64::try_from(received_at.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

fn odd(id: &str, event: &NewEvent, reason: &str, what: &str, at: Timestamp) -> QuarantineItem {
    // From the metadata, after redaction.
    let raw = event.metadata.source().unwrap_or("{}");
    let mut item = QuarantineItem {
        source: PLATFORM_SOURCE.into(),
        key: format!("origin:{id}"),
        reason: reason.into(),
        detail: format!("a document of the platform before: {what}"),
        raw: json!({ "_id": id, "action": event.action, "source": event.source, "metadata": raw })
            .to_string()
            .into_bytes(),
        at,
    };
    item.cut_to_bounds();
    item
}

/// A clock that stands still at the time when the event was received.
struct At(Timestamp);

impl Runtime for At {
    fn now(&self) -> Timestamp {
        self.0
    }

    fn sleep(&self, duration: std::time::Duration) -> BoxFuture<'static, ()> {
        TokioRuntime.sleep(duration)
    }

    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn std::any::Any + Send>> {
        TokioRuntime.unblock(work)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        TokioRuntime.fill_random(bytes);
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::oid::ObjectId;
    use mongodb::bson::{DateTime, doc};

    use super::*;

    fn mapped(document: Document) -> (Mapped, Collection, ExternalIds) {
        let mut report = Collection::default();
        let mut ids = ExternalIds::default();
        (map(document, &mut report, &mut ids), report, ids)
    }

    fn event(document: Document) -> SealedEvent {
        match mapped(document).0 {
            Mapped::Event(event) => *event,
            Mapped::Odd(item) => panic!("{item:?}"),
        }
    }

    fn base() -> Document {
        doc! {
            "_id": ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap(),
            "at": DateTime::from_millis(1_767_225_600_123),
            "createdAt": DateTime::from_millis(1_767_225_601_000),
            "updatedAt": DateTime::from_millis(1_767_225_601_000),
            "actorType": "operator", "actorId": "op-1", "actorEmail": "ada@dezky.example",
            "actorIp": "::ffff:203.0.113.7", "action": "tenant.suspended", "outcome": "success",
            "resourceType": "tenant", "resourceId": "acme", "tenantSlug": "acme",
            "source": "platform-api", "externalId": null,
            "metadata": {"reason": "unpaid", "apiKey": "S3CRET"},
            "prevHash": null, "hash": null, "__v": 0,
        }
    }

    #[test]
    fn every_field_has_its_place_and_the_id_is_always_the_same() {
        let sealed = event(base());
        let e = sealed.event();
        assert_eq!(e.at.to_string(), "2026-01-01T00:00:00.123Z");
        assert_eq!(e.received_at.to_string(), "2026-01-01T00:00:01.000Z");
        assert_eq!(
            (e.actor_type, e.actor_ip.as_deref()),
            (ActorType::Operator, Some("203.0.113.7"))
        );
        assert_eq!((e.action.as_str(), e.external_id.as_ref()), ("tenant.suspended", None));
        assert_eq!(e.id, event(base()).event().id);
        assert_eq!(e.id.get_version_num(), 7);
        let metadata = e.metadata.to_value();
        assert_eq!(metadata["_dezky"]["rawId"], "507f1f77bcf86cd799439011");
        assert_eq!(
            (&metadata["reason"], &metadata["apiKey"]),
            (&json!("unpaid"), &json!("[redacted]"))
        );
        let (_, report, ids) = mapped(base());
        assert!(report.unknown.is_empty() && report.changed.is_empty(), "{report:?}");
        assert_eq!(ids.absent, 1);
    }

    #[test]
    fn what_is_not_known_stays_in_the_metadata_and_what_is_odd_is_told() {
        let mut odd = base();
        odd.insert("geo", doc! {"city": "Aarhus", "token": "S3CRET"});
        odd.insert("actorType", "robot");
        odd.insert("action", "Tenant Suspended");
        let (mapped, report, _) = mapped(odd);
        let Mapped::Event(event) = mapped else { panic!() };
        let metadata = event.event().metadata.to_value();
        assert_eq!(
            metadata["_dezky"]["origin"]["geo"],
            json!({"city": "Aarhus", "token": "[redacted]"})
        );
        assert_eq!(metadata["_dezky"]["rawActorType"], "robot");
        assert_eq!(event.event().action, "tenant_suspended");
        assert_eq!(report.unknown.keys().collect::<Vec<_>>(), ["geo"]);
        assert_eq!(report.changed.keys().collect::<Vec<_>>(), ["actorType", "event"]);

        let mut none = base();
        none.remove("action");
        let Mapped::Odd(item) = self::mapped(none).0 else { panic!() };
        assert_eq!(
            (item.reason.as_str(), item.key.as_str()),
            ("no_action", "origin:507f1f77bcf86cd799439011")
        );
        assert!(!String::from_utf8(item.raw).unwrap().contains("S3CRET"));
    }

    #[test]
    fn external_ids_become_those_of_the_sources_here() {
        let of = |source: &str, id: &str, metadata: Document| {
            let mut document = base();
            document.insert("source", source);
            document.insert("externalId", id);
            document.insert("metadata", metadata);
            let (mapped, _, ids) = mapped(document);
            let Mapped::Event(event) = mapped else { panic!() };
            (event.event().external_id.clone().unwrap(), ids, event.event().metadata.to_value())
        };
        let pk = "0193E0A4-7C00-7000-8000-000000000001";
        let (id, ids, _) = of("authentik", pk, doc! {"pk": pk});
        assert_eq!((id, ids.kept), (pk.to_lowercase(), 1));
        let sent = doc! {
            "id": "178696080012035", "createdAt": "2026-08-17T10:00:00Z", "type": "auth.failed",
            "data": {"accountName": "alice@example.com", "remoteIp": "203.0.113.7"},
        };
        let (id, ids, metadata) = of("stalwart", "178696080012035", sent);
        assert_eq!(id, "sw1:b6a9ee95a05e72a607d065f1be2b2a61fcfbfd8bc0d032acc7721f6d5724b839");
        assert_eq!(
            (ids.computed, &metadata["_dezky"]["originExternalId"]),
            (1, &json!("178696080012035"))
        );
        let (id, ids, _) = of("stalwart", "178696080012035", doc! {"accountName": "a@b"});
        assert_eq!((id.as_str(), ids.not_computed), ("178696080012035", 1));
    }
}
