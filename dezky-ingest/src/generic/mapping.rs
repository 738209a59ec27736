//! A mapping, compiled: from an object to an event.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dezky_core::json::{Doc, Value};
use dezky_core::{
    Actor, ActorType, Field, NewEvent, NewMetadata, Outcome, PulledEvent, TenantHint, TimeFormat,
    Timestamp,
};

use super::config::{MappingConfig, MappingProblem, SkipField, SkipRule};
use super::pointer::{Pointer, Term};
use super::{action, outcome, redact};
use crate::address::bare_address;
use crate::annotations::{RAW_ACTION, RAW_ID, RAW_OUTCOME, REDACTED};
use crate::domain::{domain, domain_of};
use crate::keys::is_made_key;
use crate::source_name;

/// The maximum number of entries in a table or list of the declaration.
const MAX_ENTRIES: usize = 1_000;
/// The longest text in the declaration, in bytes.
const MAX_TEXT_BYTES: usize = 512;
/// The longest original text kept in an annotation, in bytes.
const RAW_MAX: usize = 512;
/// The longest external id that the log accepts, in bytes.
const EXTERNAL_ID_MAX: usize = 512;
/// The maximum number of places that identify an event together.
const MAX_ID_PLACES: usize = 8;
/// The longest slug, in bytes.
const SLUG_MAX: usize = 63;

/// A mapping, compiled from its [declaration](MappingConfig) for one source.
#[derive(Debug, Clone)]
pub struct Mapping {
    source: String,
    pub(super) events: Option<Pointer>,
    /// The fields that together identify an event; empty if none is declared.
    id: Vec<Pointer>,
    at: Option<Pointer>,
    at_format: TimeFormat,
    action: Term,
    /// With its dot; empty if there is none.
    prefix: String,
    actions: BTreeMap<String, String>,
    outcome: Option<Term>,
    outcomes: BTreeMap<String, Outcome>,
    /// The outcomes by text in lower case.
    folded_outcomes: BTreeMap<String, Outcome>,
    outcome_default: Outcome,
    actor_type: Option<Term>,
    actor_id: Option<Term>,
    actor_email: Option<Term>,
    actor_ip: Option<Term>,
    resource_type: Option<Term>,
    resource_id: Option<Term>,
    resource_name: Option<Term>,
    tenant: Option<Term>,
    tenant_domain: Option<Term>,
    partner: Option<Term>,
    /// Actions that are skipped.
    skip: BTreeSet<String>,
    skip_by: Vec<Skip>,
    pub(super) redact: Vec<Pointer>,
    keep: Vec<Pointer>,
}

/// A rule for objects to skip.
#[derive(Debug, Clone)]
struct Skip {
    at: Pointer,
    texts: BTreeSet<String>,
    /// Whether objects with one of the texts are skipped, or those with another.
    is_in: bool,
}

impl Skip {
    fn fits(&self, object: Value<'_>) -> bool {
        let text = self.at.get(object).and_then(Value::scalar);
        text.is_some_and(|text| self.texts.contains(&*text) == self.is_in)
    }
}

/// Result of mapping an object.
pub(super) enum Mapped {
    /// An event, without an external id if the object has no id.
    Event(Box<PulledEvent>),
    /// Skipped on purpose.
    Skipped,
    /// Not an event: the reason, and the problem.
    Odd(&'static str, &'static str),
}

impl Mapping {
    /// Compiles a declaration for the source named `source`.
    ///
    /// # Errors
    /// The first problem, with its field and fix. A name has 1 to 48 lower-case letters, digits,
    /// `.`, `_` and `-`, with no empty word between dots, and is not one of `authentik`,
    /// `stalwart`, `ocis` and `platform-api`.
    pub fn compile(source: &str, config: &MappingConfig) -> Result<Self, MappingProblem> {
        source_name::check(source).map_err(|problem| wrong("", problem))?;
        let redact = places("redact", &config.redact)?;
        let keep = places("keep", &config.keep)?;
        let at = Compiler { redact: &redact, keep: &keep };
        at.check_keep()?;
        let prefix = prefix(source, config.action_prefix.as_deref())?;
        let action = config.action.as_deref().ok_or_else(|| {
            wrong(
                "action",
                "is not set: name its place, such as action = \"/event\", or one action for all",
            )
        })?;
        Ok(Self {
            source: source.to_owned(),
            events: at.pointer("events", config.events.as_deref())?,
            id: at.id(&config.id)?,
            at: at.time(config)?,
            at_format: config.at_format,
            action: at.action(action, &config.actions, &prefix)?,
            actions: verbs(&config.actions, &prefix)?,
            prefix,
            outcome: at.outcome(config)?,
            outcomes: config.outcomes.clone(),
            folded_outcomes: folded(&config.outcomes),
            outcome_default: config.outcome_default.unwrap_or(Outcome::Failure),
            actor_type: at.actor_type(config.actor.kind.as_deref())?,
            actor_id: at.term("actor.id", config.actor.id.as_deref(), MAX_TEXT_BYTES)?,
            actor_email: at.term("actor.email", config.actor.email.as_deref(), 320)?,
            actor_ip: at.actor_ip(config.actor.ip.as_deref())?,
            resource_type: at.term("resource.type", config.resource.kind.as_deref(), SLUG_MAX)?,
            resource_id: at.term("resource.id", config.resource.id.as_deref(), MAX_TEXT_BYTES)?,
            resource_name: at.term(
                "resource.name",
                config.resource.name.as_deref(),
                MAX_TEXT_BYTES,
            )?,
            tenant: at.term("tenant", config.tenant.as_deref(), SLUG_MAX)?,
            tenant_domain: at.tenant_domain(config.tenant_domain.as_deref())?,
            partner: at.term("partner", config.partner.as_deref(), SLUG_MAX)?,
            skip: skipped(config)?,
            skip_by: at.skipped_by(config)?,
            redact,
            keep,
        })
    }

    /// The source's name, as in the events.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// An object without its secrets.
    pub(super) fn clean<'d>(&self, object: Value<'d>) -> Cow<'d, str> {
        redact::redact(object, &self.redact, &self.keep)
    }

    /// The text of an object for its content key: cleaned by the first version of
    /// [`clean`](Self::clean).
    pub(super) fn for_key<'d>(&self, object: Value<'d>) -> Cow<'d, str> {
        redact::redact_for_key(object, &self.redact)
    }

    /// Maps an object; `clean` is its text by [`Self::clean`], and `is_redacted` whether that hid
    /// something.
    pub(super) fn map(
        &self,
        object: Value<'_>,
        clean: &str,
        is_redacted: bool,
        received_at: Timestamp,
    ) -> Mapped {
        let again;
        let object = if is_redacted {
            match Doc::parse(clean) {
                Ok(doc) => {
                    again = doc;
                    again.root()
                }
                Err(_) => return Mapped::Odd("not_json", "is not JSON without its secrets"),
            }
        } else {
            object
        };
        if !object.is_object() {
            return Mapped::Odd("not_an_object", "is not an object");
        }
        if self.skip_by.iter().any(|rule| rule.fits(object)) {
            return Mapped::Skipped;
        }
        let Some(raw_action) = self.action.text(object) else {
            return Mapped::Odd("no_action", "has no text where its action should be");
        };
        if self.skip.contains(&*raw_action) {
            return Mapped::Skipped;
        }
        let verb = match self.actions.get(&*raw_action) {
            Some(verb) => Cow::Borrowed(verb.as_str()),
            None => Cow::Owned(action::dotted(&raw_action)),
        };
        if verb.is_empty() {
            return Mapped::Odd("no_action", "has no letter or digit in its action");
        }
        let mut metadata = NewMetadata::from_source(clean);
        metadata.annotate(RAW_ACTION, head(&raw_action));
        if is_redacted {
            metadata.annotate(REDACTED, true);
        }
        let outcome = self.outcome(object, &mut metadata);
        let actor = self.actor(object, &mut metadata);
        let external_id = self.id(object, &mut metadata);
        let resource_id = text(self.resource_id.as_ref(), object);
        let resource_name = text(self.resource_name.as_ref(), object);
        // A constant type says nothing if the event has no resource.
        let is_declared = self.resource_id.is_some() || self.resource_name.is_some();
        let is_there = resource_id.is_some() || resource_name.is_some() || !is_declared;
        let resource_type = text(self.resource_type.as_ref(), object)
            .filter(|_| is_there)
            .map(|kind| cut(kind, SLUG_MAX));
        let mut event = NewEvent {
            outcome,
            resource_type,
            resource_id,
            resource_name,
            partner_slug: text(self.partner.as_ref(), object).filter(|slug| slug.len() <= SLUG_MAX),
            source: self.source.clone(),
            external_id,
            metadata,
            ..NewEvent::new(action::prefixed(&self.prefix, &verb), actor)
        };
        self.set_time(&mut event, object, received_at);
        event.cut_to_bounds();
        Mapped::Event(Box::new(PulledEvent { event, tenant: self.hints(object) }))
    }

    fn set_time(&self, event: &mut NewEvent, object: Value<'_>, received_at: Timestamp) {
        let Some(at) = &self.at else {
            event.at = Some(received_at);
            event.metadata.annotate("timeSource", "received");
            return;
        };
        let said = at.get(object).and_then(Value::text);
        let read = said.as_deref().and_then(|said| self.at_format.read(said));
        event.set_time(said.as_deref(), read, received_at);
    }

    /// The outcome by the tables, else by common words and numbers, else the default, which is
    /// annotated because it may be wrong.
    fn outcome(&self, object: Value<'_>, metadata: &mut NewMetadata) -> Outcome {
        let Some(term) = &self.outcome else { return Outcome::Success };
        let Some(raw) = term.text(object) else { return Outcome::Success };
        let class = || outcome::http_status(&raw).map(|status| format!("{}xx", status / 100));
        let listed = self.outcomes.get(&*raw);
        let listed = listed.or_else(|| self.folded_outcomes.get(&raw.trim().to_lowercase()));
        if let Some(outcome) = listed.or_else(|| self.outcomes.get(&class()?)) {
            return *outcome;
        }
        outcome::known(&raw, term.name()).unwrap_or_else(|| {
            metadata.annotate(RAW_OUTCOME, head(&raw));
            self.outcome_default
        })
    }

    fn actor(&self, object: Value<'_>, metadata: &mut NewMetadata) -> Actor {
        let id = text(self.actor_id.as_ref(), object);
        let email = text(self.actor_email.as_ref(), object);
        let ip = text(self.actor_ip.as_ref(), object).map(bare_address);
        let raw = text(self.actor_type.as_ref(), object);
        let said = raw.as_ref().and_then(|raw| raw.to_ascii_lowercase().parse().ok());
        if let (Some(raw), None) = (&raw, said) {
            metadata.annotate("rawActorType", head(raw));
        }
        let is_known = id.is_some() || email.is_some();
        let kind = said.unwrap_or(if is_known { ActorType::User } else { ActorType::System });
        Actor { kind, id, email, ip }
    }

    /// The declared id. If there are several places, each must have text; the texts are joined by
    /// `/`. In a text, `/` is written `~1` and `~` is written `~0`, so that different lists of
    /// texts never make the same id.
    fn id(&self, object: Value<'_>, metadata: &mut NewMetadata) -> Option<String> {
        let text = |place: &Pointer| place.get(object)?.text();
        let id = match &self.id[..] {
            [] => return None,
            [place] => text(place)?.into_owned(),
            places => {
                let texts: Option<Vec<_>> = places.iter().map(text).collect();
                let escaped = |text: Cow<'_, str>| text.replace('~', "~0").replace('/', "~1");
                texts?.into_iter().map(escaped).collect::<Vec<_>>().join("/")
            }
        };
        // An id in the form of a content key would not be compared by content.
        if id.len() > EXTERNAL_ID_MAX || is_made_key(&id) {
            metadata.annotate(RAW_ID, head(&id));
            return None;
        }
        Some(id)
    }

    fn hints(&self, object: Value<'_>) -> Vec<TenantHint> {
        let slug = text(self.tenant.as_ref(), object)
            .filter(|slug| slug.len() <= SLUG_MAX)
            .map(|slug| TenantHint::Slug { slug, via: "mapping" });
        let domain = text(self.tenant_domain.as_ref(), object)
            .and_then(|text| address_domain(&text))
            .map(TenantHint::Domain);
        slug.into_iter().chain(domain).collect()
    }
}

fn text(term: Option<&Term>, object: Value<'_>) -> Option<String> {
    term?.text(object).map(Cow::into_owned)
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(RAW_MAX)]
}

fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// The domain of an address, or a domain alone.
fn address_domain(text: &str) -> Option<String> {
    if text.contains('@') { domain_of(text) } else { domain(text) }
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> MappingProblem {
    MappingProblem { field: field.into(), problem: problem.into() }
}

fn prefix(source: &str, given: Option<&str>) -> Result<String, MappingProblem> {
    let prefix = given.unwrap_or(source);
    if prefix.is_empty() {
        return Ok(String::new());
    }
    if !action::is_dotted(prefix) || prefix.len() > 64 {
        return Err(wrong(
            "action_prefix",
            "must have at most 64 lower-case letters, digits, _ and -, in words joined by dots, or be empty for none",
        ));
    }
    if prefix == "dezky" || prefix.starts_with("dezky.") {
        return Err(wrong(
            "action_prefix",
            "must not be dezky, which is reserved for the log's own operations: name another one",
        ));
    }
    Ok(format!("{prefix}."))
}

fn places(field: &str, pointers: &[String]) -> Result<Vec<Pointer>, MappingProblem> {
    bounded(field, pointers.len())?;
    let place = |(index, text): (usize, &String)| {
        let field = format!("{field}[{index}]");
        short(&field, text)?;
        Pointer::parse(text).map_err(|problem| wrong(field, problem))
    };
    pointers.iter().enumerate().map(place).collect()
}

fn skipped(config: &MappingConfig) -> Result<BTreeSet<String>, MappingProblem> {
    bounded("skip", config.skip.len())?;
    bounded("outcomes", config.outcomes.len())?;
    let action = |rule: &SkipRule| match rule {
        SkipRule::Action(action) => Some(action.clone()),
        SkipRule::Field(_) => None,
    };
    Ok(config.skip.iter().filter_map(action).collect())
}

fn verbs(
    actions: &BTreeMap<String, String>,
    prefix: &str,
) -> Result<BTreeMap<String, String>, MappingProblem> {
    bounded("actions", actions.len())?;
    for (raw, verb) in actions {
        if !action::is_dotted(verb) || prefix.len() + verb.len() > action::MAX_BYTES {
            let max = action::MAX_BYTES - prefix.len();
            return Err(wrong(
                format!("actions.{}", head(raw)),
                format!(
                    "must be a verb of at most {max} lower-case letters, digits, _ and -, in words joined by dots; {prefix:?} goes before it"
                ),
            ));
        }
    }
    Ok(actions.clone())
}

fn folded(outcomes: &BTreeMap<String, Outcome>) -> BTreeMap<String, Outcome> {
    outcomes.iter().map(|(said, outcome)| (said.to_lowercase(), *outcome)).collect()
}

fn bounded(field: &str, entries: usize) -> Result<(), MappingProblem> {
    if entries <= MAX_ENTRIES {
        return Ok(());
    }
    Err(wrong(field, format!("has {entries} entries: at most {MAX_ENTRIES}")))
}

fn short(field: &str, text: &str) -> Result<(), MappingProblem> {
    if text.is_empty() {
        return Err(wrong(field, "is empty: set it, or leave it out"));
    }
    if text.len() > MAX_TEXT_BYTES {
        return Err(wrong(field, format!("has more than {MAX_TEXT_BYTES} bytes: shorten it")));
    }
    Ok(())
}

/// Checks fields against hidden places.
struct Compiler<'r> {
    redact: &'r [Pointer],
    keep: &'r [Pointer],
}

impl Compiler<'_> {
    /// Refuses places that are both kept and hidden.
    fn check_keep(&self) -> Result<(), MappingProblem> {
        let hidden = |kept: &Pointer| self.redact.iter().any(|hidden| hidden.holds(kept));
        match self.keep.iter().position(hidden) {
            Some(index) => Err(wrong(
                format!("keep[{index}]"),
                "redact hides this place: take it out of one of the two",
            )),
            None => Ok(()),
        }
    }

    /// Refuses a field's place if it is hidden before the field is read.
    fn readable(&self, field: &str, pointer: Pointer) -> Result<Pointer, MappingProblem> {
        if let Some(name) = pointer.secret(self.keep) {
            let problem = format!(
                "{name:?} is the name of a secret, and what stands below it is never kept: name another place, or that one in keep if it holds an identifier"
            );
            return Err(wrong(field, problem));
        }
        if self.redact.iter().any(|hidden| hidden.holds(&pointer)) {
            return Err(wrong(field, "redact hides this place: take it out of one of the two"));
        }
        Ok(pointer)
    }

    fn pointer(&self, field: &str, text: Option<&str>) -> Result<Option<Pointer>, MappingProblem> {
        text.map(|text| self.place(field, text)).transpose()
    }

    fn id(&self, places: &[String]) -> Result<Vec<Pointer>, MappingProblem> {
        if places.len() > MAX_ID_PLACES {
            let problem = format!("has {} places: at most {MAX_ID_PLACES}", places.len());
            return Err(wrong("id", problem));
        }
        let field = |n: usize| if places.len() == 1 { "id".into() } else { format!("id[{n}]") };
        let place = |(n, text): (usize, &String)| self.place(&field(n), text);
        places.iter().enumerate().map(place).collect()
    }

    fn skipped_by(&self, config: &MappingConfig) -> Result<Vec<Skip>, MappingProblem> {
        let mut rules = Vec::new();
        for (n, rule) in config.skip.iter().enumerate() {
            let SkipRule::Field(SkipField { at, is_in, is_not_in }) = rule else { continue };
            let texts = match (&is_in[..], &is_not_in[..]) {
                (texts, []) | ([], texts) if !texts.is_empty() => texts,
                _ => {
                    let problem = "needs either in or not_in, a list of texts: give one of them";
                    return Err(wrong(format!("skip[{n}]"), problem));
                }
            };
            bounded(&format!("skip[{n}]"), texts.len())?;
            let at = self.place(&format!("skip[{n}].at"), at)?;
            let texts = texts.iter().cloned().collect();
            rules.push(Skip { at, texts, is_in: !is_in.is_empty() });
        }
        Ok(rules)
    }

    /// A place in an object.
    fn place(&self, field: &str, text: &str) -> Result<Pointer, MappingProblem> {
        short(field, text)?;
        let pointer = Pointer::parse(text).map_err(|problem| wrong(field, problem))?;
        self.readable(field, pointer)
    }

    /// A term whose text, if it is one, has at most `max` bytes.
    fn term(
        &self,
        field: &str,
        text: Option<&str>,
        max: usize,
    ) -> Result<Option<Term>, MappingProblem> {
        let Some(text) = text else { return Ok(None) };
        short(field, text)?;
        // Verbs and domains have dots.
        let parse = match field {
            "action" | "tenant_domain" => Term::parse,
            _ => Term::parse_strictly,
        };
        match parse(text).map_err(|problem| wrong(field, problem))? {
            Term::Pointer(pointer) => self.readable(field, pointer).map(Term::Pointer).map(Some),
            Term::Literal(text) if text.len() > max => Err(wrong(
                field,
                format!(
                    "has more than {max} bytes: shorten it, or name a place, which begins with /"
                ),
            )),
            literal @ Term::Literal(_) => Ok(Some(literal)),
        }
    }

    /// A term whose text, if it is one, must satisfy `is_valid`.
    fn term_of(
        &self,
        field: &str,
        text: Option<&str>,
        is_valid: impl Fn(&str) -> bool,
        expected: &str,
    ) -> Result<Option<Term>, MappingProblem> {
        let term = self.term(field, text, MAX_TEXT_BYTES)?;
        match &term {
            Some(Term::Literal(text)) if !is_valid(text) => {
                Err(wrong(field, format!("must be {expected}, or its place, which begins with /")))
            }
            _ => Ok(term),
        }
    }

    fn action(
        &self,
        text: &str,
        actions: &BTreeMap<String, String>,
        prefix: &str,
    ) -> Result<Term, MappingProblem> {
        let fits = |text: &str| {
            actions.contains_key(text)
                || (action::is_dotted(text) && prefix.len() + text.len() <= action::MAX_BYTES)
        };
        let expected = "lower-case letters, digits, _ and -, in words joined by dots";
        let term = self.term_of("action", Some(text), fits, expected)?;
        term.ok_or_else(|| wrong("action", "is not set"))
    }

    fn time(&self, config: &MappingConfig) -> Result<Option<Pointer>, MappingProblem> {
        if config.at.is_none() && config.at_format != TimeFormat::default() {
            return Err(wrong(
                "at_format",
                "needs a time to read: set at to its place, such as \"/time\"",
            ));
        }
        self.pointer("at", config.at.as_deref())
    }

    fn outcome(&self, config: &MappingConfig) -> Result<Option<Term>, MappingProblem> {
        let text = config.outcome.as_deref();
        if text.is_none() && !config.outcomes.is_empty() {
            return Err(wrong(
                "outcomes",
                "needs an outcome to look up: set outcome to its place, such as \"/status\"",
            ));
        }
        if text.is_none() && config.outcome_default.is_some() {
            return Err(wrong(
                "outcome_default",
                "needs an outcome that can be unknown: set outcome to its place, such as \"/status\"",
            ));
        }
        let is_outcome = |text: &str| text.parse::<Outcome>().is_ok();
        self.term_of("outcome", text, is_outcome, "success, failure or denied")
    }

    fn actor_type(&self, text: Option<&str>) -> Result<Option<Term>, MappingProblem> {
        let is_type = |text: &str| text.parse::<ActorType>().is_ok();
        let expected = "user, operator, service, system or anonymous";
        self.term_of("actor.type", text, is_type, expected)
    }

    fn actor_ip(&self, text: Option<&str>) -> Result<Option<Term>, MappingProblem> {
        self.term_of("actor.ip", text, |text| text.parse::<IpAddr>().is_ok(), "an IP address")
    }

    fn tenant_domain(&self, text: Option<&str>) -> Result<Option<Term>, MappingProblem> {
        let is_domain = |text: &str| address_domain(text).is_some();
        self.term_of("tenant_domain", text, is_domain, "a domain")
    }
}

// The bounds here equal those of the log.
const _: () = {
    assert!(matches!(Field::TenantSlug.max_bytes(), Some(SLUG_MAX)));
    assert!(matches!(Field::ResourceType.max_bytes(), Some(SLUG_MAX)));
    assert!(matches!(Field::ExternalId.max_bytes(), Some(EXTERNAL_ID_MAX)));
    assert!(matches!(Field::Action.max_bytes(), Some(action::MAX_BYTES)));
};
