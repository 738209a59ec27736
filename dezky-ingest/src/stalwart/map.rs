//! Maps a wire event to an audit event: actor, address, resource, tenant.
//!
//! Keys of other senders come first, then those of every Stalwart release. They are searched for in
//! `data`, then alongside it.

use std::borrow::Cow;
use std::net::IpAddr;

use dezky_core::canonical::canonicalize;
use dezky_core::json::Value;
use dezky_core::{
    Actor, ActorType, NewEvent, NewMetadata, Outcome, PulledEvent, TenantHint, Timestamp,
    written_address,
};

use serde_json::Value as Annotation;

use super::proto::WireEvent;
use super::{SOURCE, verbs};
use crate::address::bare_address;
use crate::annotations::{RAW_ACTION, RAW_ID};
use crate::domain::{domain, domain_of};
use crate::secrets::{clean, clean_text};

/// The longest received type or id kept in an annotation, in bytes.
const RAW_MAX: usize = 512;

/// The actor: other senders' keys, then those of 0.9.1 and later, of 0.8, of 0.9.0, and of mail in
/// 0.8.
const ACTOR: [&str; 7] =
    ["email", "account", "username", "accountName", "login", "name", "authenticatedAs"];
const IP: [&str; 2] = ["ip", "remoteIp"];
/// The recipients; `recipients` in 0.8.
const RECIPIENTS: [&str; 2] = ["to", "recipients"];
/// The envelope's sender; `returnPath` and `sender` in 0.8.
const SENDER: [&str; 3] = ["from", "returnPath", "sender"];
/// Members that identify a message, best first.
const MESSAGE: [&str; 3] = ["messageId", "queueId", "blobId"];

/// Makes the audit event. Never fails: fields that the event does not have stay absent.
pub(super) fn map(
    source: &str,
    event: &WireEvent<'_>,
    external_id: String,
    client_ip: Option<IpAddr>,
    received_at: Timestamp,
) -> PulledEvent {
    let fields = Fields::of(event);
    let verb = verbs::verb(&event.normalised, event.data);
    let subject = Subject::of(&verb);
    let account = fields.first(&ACTOR).or_else(|| fields.nested("accountName"));
    let account_id = fields.first(&["accountId"]).or_else(|| fields.nested("accountId"));
    let target = fields.target();

    let mut metadata = metadata(event, &verb, &fields, account.is_none());
    let ip = fields.ip().or_else(|| {
        // For a genuine event this is the Stalwart server, never the mail client: annotated, so
        // that nobody blocks it.
        let ip = client_ip?.to_string();
        metadata.annotate("ipFrom", "request");
        Some(ip)
    });

    // In an account verb, the id is that of the affected account; an operator may have acted.
    let names_two = matches!((&account, &target), (Some(a), Some(t)) if a != t);
    let is_others = subject == Subject::OtherAccount && names_two;
    let actor = Actor {
        kind: match (&account, &account_id) {
            (None, None) if verb == "auth_failed" => ActorType::Anonymous,
            (None, None) => ActorType::System,
            _ => ActorType::User,
        },
        id: account_id.clone().filter(|_| !is_others).or_else(|| account.clone()),
        email: account.clone().filter(|name| name.contains('@')),
        ip,
    };

    let (resource_type, resource_id, resource_name) = match subject {
        Subject::Account | Subject::OtherAccount => {
            let name = target.clone().or_else(|| account.clone());
            (Some("account"), account_id.clone().or_else(|| name.clone()), name)
        }
        Subject::Message => (Some("message"), fields.first(&MESSAGE), target.clone()),
        Subject::Domain => {
            let domain = fields.domain();
            (Some("domain"), domain.clone(), domain)
        }
        Subject::Nothing => (None, None, None),
    };

    let tenant = hints(source, event, &verb, subject, &fields, account.as_deref(), account_id);
    let mut mapped = NewEvent {
        outcome: outcome(&verb, &event.normalised),
        resource_type: resource_type.map(Into::into),
        resource_id,
        resource_name,
        source: source.to_owned(),
        external_id: Some(external_id),
        metadata,
        ..NewEvent::new(verbs::action(&verb), actor)
    };
    mapped.set_time(Some(&event.created_at), Timestamp::read(&event.created_at), received_at);
    mapped.cut_to_bounds();
    PulledEvent { event: mapped, tenant }
}

/// The resource of a verb.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// The actor's own account.
    Account,
    /// An account, perhaps another's.
    OtherAccount,
    Message,
    Domain,
    Nothing,
}

impl Subject {
    fn of(verb: &str) -> Self {
        match verb {
            "account_created" | "account_deleted" | "password_changed" => Self::OtherAccount,
            "mail_received" | "mail_submitted" | "mail_delivered" | "mail_failed"
            | "mail_rejected" | "policy_rejection" | "spam_detected" => Self::Message,
            "dkim_failure" | "dmarc_failure" => Self::Domain,
            _ if verb.starts_with("auth_") || verb.starts_with("account_") => Self::Account,
            _ => Self::Nothing,
        }
    }
}

fn outcome(verb: &str, normalised: &str) -> Outcome {
    match verb {
        "auth_failed" | "mail_failed" | "dkim_failure" | "dmarc_failure" => Outcome::Failure,
        "auth_banned" | "mail_rejected" | "policy_rejection" | "spam_detected" => Outcome::Denied,
        _ if normalised.ends_with("error") => Outcome::Failure,
        _ => Outcome::Success,
    }
}

/// The source's data with our annotations.
fn metadata(
    event: &WireEvent<'_>,
    verb: &str,
    fields: &Fields<'_>,
    is_nameless: bool,
) -> NewMetadata {
    let data = event.data.filter(|data| data.is_object());
    let mut metadata = match data {
        Some(data) => {
            let mut metadata = NewMetadata::from_source(clean(data, |_| false));
            let others = event.other_fields().map(|others| clean_text(&others).into_owned());
            if let Some(others) = others.and_then(|text| canonicalize(&text).ok()) {
                // Nested too deeply for a value: stays text.
                let value: Annotation =
                    serde_json::from_str(&others).unwrap_or_else(|_| others.into());
                metadata.annotate("envelope", value);
            }
            metadata
        }
        // A flat event, or one whose data is not an object.
        None => event
            .body()
            .map_or_else(NewMetadata::default, |body| NewMetadata::from_source(clean_text(&body))),
    };
    metadata.annotate(RAW_ACTION, head(&event.kind));
    if let Some(id) = &event.id {
        metadata.annotate(RAW_ID, head(id));
    }
    if let Some(cause) = verbs::ban_cause(&event.normalised) {
        metadata.annotate("cause", cause);
    }
    let own = |key| data.and_then(|data| data.get(key));
    if event.normalised == "spam_classify"
        && let Some(verdict) = own("result").and_then(verbs::verdict)
    {
        metadata.annotate("result", verdict);
    }
    // Every unauthenticated JMAP, DAV or API request causes one, including the normal first request
    // of many clients: not a failed login.
    if verb == "auth_failed"
        && is_nameless
        && fields.first(&["details"]).as_deref() == Some("Missing Authorization header.")
    {
        metadata.annotate("kind", "no_credentials");
        metadata.annotate("severity", "low");
    }
    // DKIM "failures" also occur for mail without a signature.
    if verb == "dkim_failure"
        && own("result").is_some_and(|list| list.is_list() && list.elements().next().is_none())
    {
        metadata.annotate("kind", "unsigned");
        metadata.annotate("severity", "low");
    }
    metadata
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(RAW_MAX)]
}

/// Ways to the tenant, best first: the domain of an account, then the account's
/// id.
///
/// The account depends on the direction. Outgoing mail is its sender's: its recipients may belong
/// to another tenant, which must not see it. Incoming mail is its recipients', never its alleged
/// sender's. Recipients of several domains may belong to several tenants, so they give none.
fn hints(
    source: &str,
    event: &WireEvent<'_>,
    verb: &str,
    subject: Subject,
    fields: &Fields<'_>,
    account: Option<&str>,
    account_id: Option<String>,
) -> Vec<TenantHint> {
    let account = account.and_then(domain_of);
    let goes_out = verb == "mail_submitted"
        || fields.first(&["authenticatedAs"]).is_some()
        || event.normalised.starts_with("delivery_")
        || matches!(&*event.normalised, "dsn" | "double_bounce");
    let sender = || fields.first(&SENDER).and_then(|sender| domain_of(&sender));
    let mut domains = Vec::new();
    match subject {
        Subject::OtherAccount => domains.extend([fields.target_domain(), account]),
        // The checked domain is an alleged sender's claim.
        Subject::Domain => domains.push(account),
        _ if goes_out => {
            domains.extend([account, sender()]);
            // A bounce from the null sender concerns its recipient; the recipients of a submission
            // without a sender say nothing.
            if verb != "mail_submitted" && domains.iter().all(Option::is_none) {
                domains.push(fields.target_domain());
            }
        }
        _ => domains.extend([account, fields.target_domain()]),
    }
    let mut hints: Vec<TenantHint> = Vec::new();
    for hint in domains.into_iter().flatten().map(TenantHint::Domain) {
        if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    // Each instance numbers its own accounts, so its 3 is another account.
    if source == SOURCE {
        hints.extend(account_id.map(|id| TenantHint::User { system: SOURCE, id }));
    }
    hints
}

/// The fields of an event, in the data or alongside it.
struct Fields<'d> {
    /// The data, then the event itself.
    places: [Option<Value<'d>>; 2],
    caused_by: Option<Value<'d>>,
}

impl<'d> Fields<'d> {
    fn of(event: &WireEvent<'d>) -> Self {
        let places = [event.data, Some(event.object)];
        // Otherwise `causedBy` is the text of a place in the source code.
        let caused_by = places
            .iter()
            .flatten()
            .find_map(|place| place.get("causedBy")?.get("data"))
            .filter(|data| data.is_object());
        Self { places, caused_by }
    }

    fn places(&self) -> impl Iterator<Item = Value<'d>> {
        self.places.into_iter().flatten()
    }

    /// The first of the keys whose value is text or a number, in the data, then alongside it.
    fn first(&self, keys: &[&str]) -> Option<String> {
        self.places()
            .find_map(|place| keys.iter().find_map(|key| place.get(key)?.text()))
            .map(Cow::into_owned)
    }

    /// A field of an error's cause.
    fn nested(&self, key: &str) -> Option<String> {
        self.caused_by?.get(key)?.text().map(Cow::into_owned)
    }

    /// The first value that is an address; otherwise the first value, which sealing keeps as text.
    fn ip(&self) -> Option<String> {
        let [data, envelope] =
            self.places.map(|place| IP.map(|key| place.and_then(|place| place.get(key))));
        let nested = self.caused_by.and_then(|cause| cause.get("remoteIp"));
        let said: Vec<_> = data
            .into_iter()
            .chain([nested])
            .chain(envelope)
            .flatten()
            .filter_map(Value::text)
            .collect();
        let readable = said.iter().find(|text| written_address(text).is_some());
        readable.or(said.first()).map(|text| bare_address(text.clone().into_owned()))
    }

    /// The recipients of a message.
    fn recipients(&self) -> Vec<String> {
        let said = self.places().find_map(|place| RECIPIENTS.iter().find_map(|key| place.get(key)));
        let Some(said) = said else { return Vec::new() };
        let one = said.text().into_iter();
        one.chain(said.elements().filter_map(Value::text)).map(Cow::into_owned).collect()
    }

    /// The target as text.
    fn target(&self) -> Option<String> {
        self.first(&["account", "email", "address"])
            .or_else(|| Some(self.recipients().join(", ")).filter(|text| !text.is_empty()))
            .or_else(|| self.first(&["accountName", "domain"]))
    }

    /// The target's domain, if there is only one.
    fn target_domain(&self) -> Option<String> {
        if let Some(address) = self.first(&["account", "email", "address"]) {
            return domain_of(&address);
        }
        let recipients = self.recipients();
        if let Some(first) = recipients.first() {
            let one = domain_of(first)?;
            let others = recipients.iter().map(|recipient| domain_of(recipient));
            return others.into_iter().all(|d| d.as_ref() == Some(&one)).then_some(one);
        }
        match self.first(&["accountName"]) {
            Some(name) => domain_of(&name),
            None => self.first(&["domain"]).and_then(|d| domain(&d)),
        }
    }

    /// The checked domain: stated directly, or in the signature's result.
    fn domain(&self) -> Option<String> {
        self.first(&["domain"]).or_else(|| {
            let result = self.places().find_map(|place| place.get("result"))?;
            let of = |result: Value<'d>| result.get("data")?.get("domain")?.text();
            of(result).or_else(|| result.elements().find_map(of)).map(Cow::into_owned)
        })
    }
}
