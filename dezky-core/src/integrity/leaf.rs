use sha2::{Digest, Sha256};

use super::{Erasure, Evidence, commitment, derive_salt, keyed, length};
use crate::{AuditEvent, Field, Metadata};

const LEAF: &[u8] = b"dezky.audit.leaf\0\x01";

/// Returns the leaf of an event in normal form.
///
/// Defined for any evidence, including evidence that no erasure produces: a field with a value but
/// neither salt nor commitment is represented by zeros, and an erased field that has a value again
/// counts as absent (except metadata, of which a redacted copy may remain). The hash then differs
/// from the one in the chain, which reveals the tampering.
pub fn leaf(event: &AuditEvent, evidence: &Evidence) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(768);
    write_leaf(event, evidence, &mut |part| bytes.extend_from_slice(part));
    bytes
}

/// Returns the SHA-256 of a zero byte and the leaf (RFC 6962), without assembling the leaf.
pub fn leaf_hash(event: &AuditEvent, evidence: &Evidence) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix([0]);
    write_leaf(event, evidence, &mut |part| hash.update(part));
    hash.finalize().into()
}

fn write_leaf(event: &AuditEvent, evidence: &Evidence, put: &mut impl FnMut(&[u8])) {
    let commitments = Commitments::new(evidence);
    put(LEAF);
    for field in Field::ALL {
        let (time, committed);
        let entry = match field {
            Field::Id => Some(&event.id.as_bytes()[..]),
            Field::At | Field::ReceivedAt => {
                let at = if field == Field::At { event.at } else { event.received_at };
                time = at.as_millis().to_be_bytes();
                Some(&time[..])
            }
            _ if field.is_committed() => {
                committed = commitments.of(event, field);
                committed.as_ref().map(|c| &c[..])
            }
            _ => event.text(field).map(str::as_bytes),
        };
        match entry {
            Some(bytes) => {
                put(&[field.tag(), 1]);
                put(&length(bytes));
                put(bytes);
            }
            None => put(&[field.tag(), 0]),
        }
    }
}

/// The source of commitments.
enum Commitments<'a> {
    /// The HMAC key schedule of the event's salt, computed once for all fields.
    Salt(Box<hmac::Hmac<Sha256>>),
    Erased(&'a Erasure),
}

impl<'a> Commitments<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        match evidence {
            Evidence::Salt(salt) => Self::Salt(Box::new(keyed(salt))),
            Evidence::Erased(erasure) => Self::Erased(erasure),
        }
    }

    fn salt(&self, field: Field) -> Option<[u8; 32]> {
        match self {
            Self::Salt(key) => Some(derive_salt(key, field)),
            Self::Erased(erasure) => erasure.salts.get(&field).copied(),
        }
    }

    /// The leaf entry of a committed field.
    fn of(&self, event: &AuditEvent, field: Field) -> Option<[u8; 32]> {
        let value = event.text(field);
        if let Self::Erased(erasure) = self
            && let Some(kept) = erasure.commitments.get(&field)
        {
            return (value.is_none() || field == Field::Metadata).then_some(*kept);
        }
        let value = value?.as_bytes();
        // A value without a salt was planted and must not pass as absent.
        Some(self.salt(field).map_or([0; 32], |salt| commitment(&salt, field, value)))
    }
}

/// Erases fields: returns the event without their values, and evidence without anything that could
/// confirm them. The leaf and its hash stay unchanged.
///
/// Only committed fields ([`Field::is_committed`]) can be erased; other and absent fields are
/// ignored. Metadata is erased as a whole. Further fields can be erased later, and erasing again
/// changes nothing.
///
/// ```
/// use dezky_core::integrity::{Evidence, erase, leaf_hash};
/// # use dezky_core::{ActorType, AuditEvent, Field, Metadata, Outcome, Timestamp};
/// # let event = AuditEvent {
/// #     id: uuid::Uuid::nil(), at: Timestamp::MIN, received_at: Timestamp::MIN,
/// #     actor_type: ActorType::User, actor_id: None, actor_email: Some("ana@acme.test".into()),
/// #     actor_ip: None, action: "user.login".into(), outcome: Outcome::Success,
/// #     resource_type: None, resource_id: None, resource_name: None, tenant_slug: None,
/// #     partner_slug: None, source: "platform-api".into(), external_id: None,
/// #     metadata: Metadata::default(),
/// # };
/// # let evidence = Evidence::Salt([7; 32]);
/// let (erased, remains) = erase(&event, &evidence, &[Field::ActorEmail]);
/// assert_eq!(erased.actor_email, None);
/// assert_eq!(remains.erased_fields(), [Field::ActorEmail]);
/// assert_eq!(leaf_hash(&erased, &remains), leaf_hash(&event, &evidence));
/// ```
pub fn erase(event: &AuditEvent, evidence: &Evidence, fields: &[Field]) -> (AuditEvent, Evidence) {
    let commitments = Commitments::new(evidence);
    let mut erased = event.clone();
    let mut erasure = Erasure::default();
    for field in Field::ALL.into_iter().filter(|f| f.is_committed()) {
        let kept = match evidence {
            Evidence::Salt(_) => None,
            Evidence::Erased(before) => before.commitments.get(&field).copied(),
        };
        if fields.contains(&field) {
            clear(&mut erased, field);
            // A planted value has no commitment and gets none.
            let committed = || commitments.salt(field).and_then(|_| commitments.of(event, field));
            if let Some(commitment) = kept.or_else(committed) {
                erasure.commitments.insert(field, commitment);
            }
        } else if let Some(commitment) = kept {
            erasure.commitments.insert(field, commitment);
        } else if event.text(field).is_some()
            && let Some(salt) = commitments.salt(field)
        {
            erasure.salts.insert(field, salt);
        }
    }
    if erasure.commitments.is_empty() {
        // There was nothing to erase.
        return (erased, evidence.clone());
    }
    (erased, Evidence::Erased(Box::new(erasure)))
}

fn clear(event: &mut AuditEvent, field: Field) {
    match field {
        Field::ExternalId => event.external_id = None,
        Field::TenantSlug => event.tenant_slug = None,
        Field::PartnerSlug => event.partner_slug = None,
        Field::ActorId => event.actor_id = None,
        Field::ActorEmail => event.actor_email = None,
        Field::ActorIp => event.actor_ip = None,
        Field::ResourceId => event.resource_id = None,
        Field::ResourceName => event.resource_name = None,
        Field::Metadata => event.metadata = Metadata::default(),
        Field::Id
        | Field::At
        | Field::ReceivedAt
        | Field::ActorType
        | Field::Action
        | Field::Outcome
        | Field::Source
        | Field::ResourceType => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::{GENESIS, chain_hash, field_salt};
    use super::*;
    use crate::{SealedEvent, Timestamp};

    fn vectors() -> Value {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/leaf.json"));
        serde_json::from_str(text).unwrap()
    }

    fn bytes32(hex_text: &Value) -> [u8; 32] {
        hex::decode(hex_text.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    fn event(vector: &Value) -> (AuditEvent, [u8; 32]) {
        let e = &vector["event"];
        let text = |name: &str| e.get(name).map(|v| v.as_str().unwrap().to_owned());
        let time = |name: &str| Timestamp::from_millis(e[name].as_i64().unwrap()).unwrap();
        let raw = vector["metadataRaw"].as_str().unwrap();
        let event = AuditEvent {
            id: text("id").unwrap().parse().unwrap(),
            at: time("at"),
            received_at: time("receivedAt"),
            actor_type: text("actorType").unwrap().parse().unwrap(),
            actor_id: text("actorId"),
            actor_email: text("actorEmail"),
            actor_ip: text("actorIp"),
            action: text("action").unwrap(),
            outcome: text("outcome").unwrap().parse().unwrap(),
            resource_type: text("resourceType"),
            resource_id: text("resourceId"),
            resource_name: text("resourceName"),
            tenant_slug: text("tenantSlug"),
            partner_slug: text("partnerSlug"),
            source: text("source").unwrap(),
            external_id: text("externalId"),
            metadata: crate::NewMetadata::from_source(raw).into_metadata(),
        };
        (event, bytes32(&vector["eventSalt"]))
    }

    #[test]
    fn vectors_to_the_byte() {
        let all = vectors();
        let all = all["vectors"].as_array().unwrap();
        assert_eq!(all.len(), 24);
        let mut prev = GENESIS;
        for (seq, vector) in all.iter().enumerate() {
            let (event, salt) = event(vector);
            let raw = vector["metadataRaw"].as_str().unwrap();
            let canonical = vector["metadataCanonical"].as_str().unwrap();
            assert_eq!(crate::canonical::canonicalize(raw).unwrap(), canonical, "seq {seq}");
            assert_eq!(event.metadata.as_str(), canonical, "seq {seq}");
            assert_eq!(event.validate(), Ok(()), "seq {seq}");
            let sealed = SealedEvent::new(event.clone(), salt);
            let evidence = Evidence::Salt(salt);
            assert_eq!(hex::encode(leaf(&event, &evidence)), vector["leaf"], "seq {seq}");
            assert_eq!(sealed.leaf_hash(), &bytes32(&vector["leafHash"]), "seq {seq}");
            assert_eq!(prev, bytes32(&vector["prevHash"]), "seq {seq}");
            prev = chain_hash(&prev, sealed.leaf_hash());
            assert_eq!(prev, bytes32(&vector["hash"]), "seq {seq}");
        }
    }

    #[test]
    fn erased_vector() {
        let all = vectors();
        let expected = &all["erased"];
        let vector = &all["vectors"][usize::try_from(expected["seq"].as_u64().unwrap()).unwrap()];
        let (event, salt) = event(vector);
        let by_tag = |map: &Value| {
            map.as_object()
                .unwrap()
                .iter()
                .map(|(tag, value)| {
                    (Field::from_tag(tag.parse().unwrap()).unwrap(), bytes32(value))
                })
                .collect()
        };
        let erasure = Erasure {
            salts: by_tag(&expected["survivingSalts"]),
            commitments: by_tag(&expected["commitments"]),
        };
        let fields = [Field::Metadata, Field::ActorEmail];
        let (erased, evidence) = erase(&event, &Evidence::Salt(salt), &fields);
        assert_eq!(evidence, Evidence::Erased(Box::new(erasure.clone())));
        assert_eq!(evidence.erased_fields(), [Field::ActorEmail, Field::Metadata]);
        assert_eq!(erased.actor_email, None);
        assert_eq!(erased.metadata, Metadata::default());
        assert_eq!(hex::encode(leaf(&erased, &evidence)), vector["leaf"]);
        assert_eq!(leaf_hash(&erased, &evidence), bytes32(&vector["leafHash"]));
        assert_eq!(Erasure::from_bytes(&erasure.to_bytes()), Ok(erasure));
        assert_eq!(field_salt(&salt, Field::ActorIp), bytes32(&expected["survivingSalts"]["14"]));

        // Two consecutive erasures equal a single one; erasing again changes nothing.
        let (one, step) = erase(&event, &Evidence::Salt(salt), &[Field::ActorEmail]);
        let two = erase(&one, &step, &[Field::Metadata]);
        assert_eq!(two, (erased.clone(), evidence.clone()));
        assert_eq!(erase(&two.0, &two.1, &fields), two);
    }

    #[test]
    fn absent_fields_are_not_erased() {
        let (mut event, salt) = event(&vectors()["vectors"][1]);
        event.actor_email = None;
        let evidence = Evidence::Salt(salt);
        let fields = [Field::ActorEmail, Field::Action, Field::Id, Field::ResourceType];
        assert_eq!(erase(&event, &evidence, &fields), (event, evidence));
    }

    #[test]
    fn values_that_come_back_are_tampering() {
        let (event, salt) = event(&vectors()["vectors"][1]);
        let hash = leaf_hash(&event, &Evidence::Salt(salt));
        let fields = [Field::ActorEmail, Field::Metadata];
        let (erased, evidence) = erase(&event, &Evidence::Salt(salt), &fields);
        let planted = AuditEvent { actor_email: Some("eve@acme.test".into()), ..erased.clone() };
        assert_ne!(leaf_hash(&planted, &evidence), hash);
        let altered = AuditEvent { actor_id: Some("43".into()), ..erased.clone() };
        assert_ne!(leaf_hash(&altered, &evidence), hash);
        let redacted = crate::NewMetadata::from_source("{\"a\":1}").into_metadata();
        let redacted = AuditEvent { metadata: redacted, ..erased };
        assert_eq!(leaf_hash(&redacted, &evidence), hash);
        // Erasing again removes the planted value, and verification succeeds.
        let (mended, evidence) = erase(&planted, &evidence, &[Field::ActorEmail]);
        assert_eq!(leaf_hash(&mended, &evidence), hash);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn erasing_keeps_the_leaf(
            seq in 0usize..24,
            first in prop::collection::vec(1u8..18, 0..6),
            second in prop::collection::vec(1u8..18, 0..6),
        ) {
            let (event, salt) = event(&vectors()["vectors"][seq]);
            let evidence = Evidence::Salt(salt);
            let whole = leaf(&event, &evidence);
            let fields = |tags: &[u8]| -> Vec<Field> {
                tags.iter().map(|t| Field::from_tag(*t).unwrap()).collect()
            };
            let (event, evidence) = erase(&event, &evidence, &fields(&first));
            prop_assert_eq!(&leaf(&event, &evidence), &whole);
            let (event, evidence) = erase(&event, &evidence, &fields(&second));
            prop_assert_eq!(&leaf(&event, &evidence), &whole);
            if let Evidence::Erased(erasure) = evidence {
                prop_assert_eq!(Erasure::from_bytes(&erasure.to_bytes()), Ok(*erasure));
            }
        }
    }
}
