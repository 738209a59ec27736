//! How a mapping is declared.

use std::collections::BTreeMap;
use std::fmt;

use dezky_core::{Outcome, TimeFormat};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How objects of a system become events, as it stands in a configuration (TOML or
/// JSON).
///
/// A value that begins with `/` is a JSON pointer (RFC 6901) into the object; anything
/// else is the text itself. What a pointer finds is taken if it is a string that is not
/// empty, a number, `true` or `false`.
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
    /// Where in a body the list of events is. Without it a body is a list, an object
    /// with a list `events`, or one event. Lines of files are one event each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// The places of what identifies the event at its source, one or several, which
    /// identify it together. Without any, or where one of them is empty, the content
    /// does.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "one_or_more")]
    pub id: Vec<String>,
    /// When it happened. Without it the time of receiving is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// How `at` is written.
    pub at_format: TimeFormat,
    /// The action; the only required field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// What stands before the action and a dot: the source's name unless set, nothing if
    /// empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_prefix: Option<String>,
    /// Verbs for actions as the source spells them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<String, String>,
    /// How it ended; success unless declared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Outcomes for what the source says about it, before the words and HTTP statuses that
    /// are known anyway; `4xx` stands for all statuses of a class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outcomes: BTreeMap<String, Outcome>,
    /// The outcome of what is neither listed nor known: failure unless set. The event says
    /// `_dezky.rawOutcome`, and is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome_default: Option<Outcome>,
    /// The actor.
    pub actor: ActorMapping,
    /// On what.
    pub resource: ResourceMapping,
    /// The slug of the tenant that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// An address or a domain whose owner is the tenant, asked where `tenant` gives none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_domain: Option<String>,
    /// The slug of the partner that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// Rules for objects to skip.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<SkipRule>,
    /// Pointers to what is hidden before anything is hashed, stored or quarantined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
    /// Pointers to what is an identifier although its name, or an address in it, looks like
    /// a secret: it is kept. What is inside it is not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
}

/// Which objects are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SkipRule {
    /// Those with this action, as the source spells it.
    Action(String),
    /// Those with certain texts at a place.
    Field(SkipField),
}

/// Which objects are passed over, by what stands at a place. An object with nothing
/// there is kept, so that a rule never hides what its author has not seen. Exactly one
/// of the lists is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkipField {
    /// The place: a JSON pointer.
    pub at: String,
    /// The texts with which an object is passed over.
    #[serde(rename = "in", skip_serializing_if = "Vec::is_empty")]
    pub is_in: Vec<String>,
    /// The texts with which an object is kept: with any other it is passed over.
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

/// A list of texts, of which one alone may stand without the list.
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
    /// `user`, `operator`, `service`, `system` or `anonymous`; user where an id or an
    /// address is known, else system, unless declared.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Their id in the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Their e-mail address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Their address, with or without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
}

/// On what it was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceMapping {
    /// The type of the resource.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Which one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its name.
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
