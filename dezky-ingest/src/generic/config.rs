//! How a mapping is declared.

use std::collections::BTreeMap;
use std::fmt;

use dezky_core::{Outcome, TimeFormat};
use serde::{Deserialize, Serialize};

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
    /// What identifies the event at its source. Without it the content does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it happened. Without it the time of receiving is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// How `at` is written.
    pub at_format: TimeFormat,
    /// What was done; the one field that must be declared.
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
    /// Who did it.
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
    /// Actions, as the source spells them, that are passed over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// Pointers to what is hidden before anything is hashed, stored or quarantined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
    /// Pointers to what is an identifier although its name, or an address in it, looks like
    /// a secret: it is kept. What is inside it is not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
}

/// Who did it.
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
    /// What kind of thing.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Which one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What is wrong with a declared mapping: which field, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingProblem {
    /// The field, such as `actor.id` or `actions.LOGIN`; empty for the source's name.
    pub field: String,
    /// What is wrong, and the fix.
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
