//! The declaration of a mapping.

use std::collections::BTreeMap;
use std::fmt;

use dezky_core::{Outcome, TimeFormat};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Declares how a system's objects become events, in a configuration (TOML or JSON).
///
/// A value that begins with `/` is a JSON pointer (RFC 6901) into the object; anything else is the
/// text itself. A pointer's target counts if it is a non-empty string, a number, `true` or `false`.
///
/// ```
/// use dezky_ingest::generic::{Mapping, MappingConfig};
/// let config: MappingConfig = serde_json::from_str(
///     r#"{"action": "/event", "id": "/uuid", "actor": {"id": "/user/id"}}"#,
/// ).unwrap();
/// assert!(Mapping::compile("shop", &config).is_ok());
/// let problem = Mapping::compile("shop", &MappingConfig::default()).unwrap_err();
/// assert_eq!(problem.field, "action");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MappingConfig {
    /// The place of the list of events in a body. Without it, a body is a list, an object with a
    /// list `events`, or one event. Lines of files are one event each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// The places of the event's id at its source; several identify it together. Without any, or if
    /// one of them is empty, the content identifies it.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "one_or_more")]
    pub id: Vec<String>,
    /// The time of the event. Without it, the time of receipt is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The format of `at`.
    pub at_format: TimeFormat,
    /// The action; the only required field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The prefix of actions, followed by a dot: the source's name unless set; none if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_prefix: Option<String>,
    /// Verbs by action, as the source spells it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<String, String>,
    /// The outcome; success unless declared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Outcomes by the source's text. They take precedence over the common words and HTTP statuses,
    /// which are known; `4xx` stands for all statuses of a class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outcomes: BTreeMap<String, Outcome>,
    /// The outcome of a text that is neither listed nor known: failure unless set. The event gets
    /// `_dezky.rawOutcome`, and is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome_default: Option<Outcome>,
    /// The actor.
    pub actor: ActorMapping,
    /// The resource.
    pub resource: ResourceMapping,
    /// The slug of the tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// An address or domain whose owner is the tenant, used if `tenant` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_domain: Option<String>,
    /// The slug of the partner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// Rules for objects to skip.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<SkipRule>,
    /// Pointers to values that are hidden before anything is hashed, stored or quarantined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
    /// Pointers to values that are kept although their names, or addresses in them, look like
    /// secrets. Does not apply to values inside them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
}

/// A rule for objects to skip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SkipRule {
    /// Objects with this action, as the source spells it.
    Action(String),
    /// Objects with certain texts at a place.
    Field(SkipField),
}

/// A rule for objects to skip by the text at a place. An object without text there is kept, so that
/// a rule never hides objects that its author has not seen. Exactly one of the lists must be given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkipField {
    /// The place: a JSON pointer.
    pub at: String,
    /// The texts with which an object is skipped.
    #[serde(rename = "in", skip_serializing_if = "Vec::is_empty")]
    pub is_in: Vec<String>,
    /// The texts with which an object is kept; with any other it is skipped.
    #[serde(rename = "not_in", skip_serializing_if = "Vec::is_empty")]
    pub is_not_in: Vec<String>,
}

impl From<&str> for SkipRule {
    fn from(action: &str) -> Self {
        Self::Action(action.to_owned())
    }
}

impl<'de> Deserialize<'de> for SkipRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rule;
        impl<'de> Visitor<'de> for Rule {
            type Value = SkipRule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an action, or a rule such as { at = \"/stage\", in = [\"Started\"] }")
            }

            fn visit_str<E>(self, action: &str) -> Result<SkipRule, E> {
                Ok(action.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SkipRule, A::Error> {
                SkipField::deserialize(MapAccessDeserializer::new(map)).map(SkipRule::Field)
            }
        }
        deserializer.deserialize_any(Rule)
    }
}

/// A list of texts; a single text may be given without a list.
mod one_or_more {
    use std::fmt;

    use serde::de::value::SeqAccessDeserializer;
    use serde::de::{SeqAccess, Visitor};
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(texts: &[String], s: S) -> Result<S::Ok, S::Error> {
        match texts {
            [one] => one.serialize(s),
            several => several.serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Vec<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
                Ok(vec![text.to_owned()])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, texts: A) -> Result<Vec<String>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(texts))
            }
        }
        d.deserialize_any(OneOrMore)
    }
}

/// The actor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActorMapping {
    /// `user`, `operator`, `service`, `system` or `anonymous`. Unless declared: user if an id or an
    /// address is known, otherwise system.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The actor's id in the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The actor's e-mail address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The actor's IP address, with or without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
}

/// The resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceMapping {
    /// The type of the resource.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The resource's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The resource's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A problem of a declared mapping: the field, and the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingProblem {
    /// The field, such as `actor.id` or `actions.LOGIN`; empty for the source's name.
    pub field: String,
    /// The problem and the fix.
    pub problem: String,
}

impl fmt::Display for MappingProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.problem);
        }
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for MappingProblem {}
