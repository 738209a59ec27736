//! Audit events: new, sealed and stored.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::integrity::{self, Evidence};
use crate::metadata::{Metadata, NewMetadata};
use crate::{Error, ErrorKind, Runtime, TimeProblem, Timestamp};

/// Annotations about an event's time.
const TIME_SOURCE: &str = "timeSource";
const TIME_PROBLEM: &str = "timeProblem";
const RAW_AT: &str = "rawAt";
/// Maximum length of the recorded text of a time, in bytes.
const RAW_AT_BYTES: usize = 512;

/// The source of the platform's own events.
pub const PLATFORM_SOURCE: &str = "platform-api";

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The text form, as stored, hashed and sent.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(Invalid::new(stringify!($name), concat!("one of" $(, " ", $text)+))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

pub(crate) use text_enum;

text_enum! {
    /// The kind of an actor.
    ActorType {
        /// A person using the platform or a connected system.
        User = "user",
        /// A person running the platform.
        Operator = "operator",
        /// A program with its own identity.
        Service = "service",
        /// The system itself.
        System = "system",
        /// An unidentified actor.
        Anonymous = "anonymous",
    }
}

text_enum! {
    /// The outcome of an action.
    Outcome {
        /// The action was performed.
        Success = "success",
        /// The action was attempted and failed.
        Failure = "failure",
        /// The action was refused.
        Denied = "denied",
    }
}

/// A field of an event, with the tag of its leaf entry (`docs/integrity.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of the contract")]
pub enum Field {
    Id = 1,
    At = 2,
    ReceivedAt = 3,
    ActorType = 4,
    Action = 5,
    Outcome = 6,
    Source = 7,
    ExternalId = 8,
    ResourceType = 9,
    TenantSlug = 10,
    PartnerSlug = 11,
    ActorId = 12,
    ActorEmail = 13,
    ActorIp = 14,
    ResourceId = 15,
    ResourceName = 16,
    Metadata = 17,
}

impl Field {
    /// Every field in the order of its tag.
    pub const ALL: [Self; 17] = [
        Self::Id,
        Self::At,
        Self::ReceivedAt,
        Self::ActorType,
        Self::Action,
        Self::Outcome,
        Self::Source,
        Self::ExternalId,
        Self::ResourceType,
        Self::TenantSlug,
        Self::PartnerSlug,
        Self::ActorId,
        Self::ActorEmail,
        Self::ActorIp,
        Self::ResourceId,
        Self::ResourceName,
        Self::Metadata,
    ];

    /// The tag in the leaf.
    pub const fn tag(self) -> u8 {
        self as u8
    }

    /// The field with this tag.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag).checked_sub(1)?).copied()
    }

    /// The JSON name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::At => "at",
            Self::ReceivedAt => "receivedAt",
            Self::ActorType => "actorType",
            Self::Action => "action",
            Self::Outcome => "outcome",
            Self::Source => "source",
            Self::ExternalId => "externalId",
            Self::ResourceType => "resourceType",
            Self::TenantSlug => "tenantSlug",
            Self::PartnerSlug => "partnerSlug",
            Self::ActorId => "actorId",
            Self::ActorEmail => "actorEmail",
            Self::ActorIp => "actorIp",
            Self::ResourceId => "resourceId",
            Self::ResourceName => "resourceName",
            Self::Metadata => "metadata",
        }
    }

    /// The maximum length in bytes of UTF-8, if the contract bounds it.
    pub const fn max_bytes(self) -> Option<usize> {
        match self {
            Self::Source => Some(64),
            Self::Action => Some(128),
            Self::TenantSlug | Self::PartnerSlug | Self::ResourceType => Some(63),
            Self::ActorEmail => Some(320),
            Self::ExternalId | Self::ActorId | Self::ResourceId => Some(512),
            Self::ResourceName => Some(1024),
            _ => None,
        }
    }

    /// Whether the leaf contains a commitment to the field instead of its value, so that the value
    /// can be erased later.
    pub const fn is_committed(self) -> bool {
        matches!(
            self,
            Self::ExternalId
                | Self::TenantSlug
                | Self::PartnerSlug
                | Self::ActorId
                | Self::ActorEmail
                | Self::ActorIp
                | Self::ResourceId
                | Self::ResourceName
                | Self::Metadata
        )
    }
}

/// A field that is out of bounds, and the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The JSON name of the field.
    pub field: &'static str,
    /// The allowed values.
    pub bound: &'static str,
}

impl Invalid {
    pub(crate) const fn new(field: &'static str, bound: &'static str) -> Self {
        Self { field, bound }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}", self.field, self.bound)
    }
}

impl std::error::Error for Invalid {}

/// The actor of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The kind of actor.
    pub kind: ActorType,
    /// The actor's id in the reporting system.
    pub id: Option<String>,
    /// The actor's e-mail address.
    pub email: Option<String>,
    /// The actor's IP address; brought to canonical form when the event is sealed.
    pub ip: Option<String>,
}

impl Actor {
    /// An actor of `kind` without further data.
    pub const fn of(kind: ActorType) -> Self {
        Self { kind, id: None, email: None, ip: None }
    }

    /// The system itself.
    pub const fn system() -> Self {
        Self::of(ActorType::System)
    }

    /// A person with this id.
    pub fn user(id: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..Self::of(ActorType::User) }
    }

    /// Adds an e-mail address.
    #[must_use]
    pub fn with_email(mut self, email: impl Into<String>) -> Self {
        self.email = Some(email.into());
        self
    }

    /// Adds an IP address.
    #[must_use]
    pub fn with_ip(mut self, ip: impl Into<String>) -> Self {
        self.ip = Some(ip.into());
        self
    }
}

/// An event as created by platform code or a source's mapping, before [sealing](NewEvent::seal).
///
/// ```
/// use dezky_core::{Actor, NewEvent, Outcome};
/// let event = NewEvent {
///     tenant_slug: Some("acme".into()),
///     resource_type: Some("tenant".into()),
///     resource_id: Some("acme".into()),
///     ..NewEvent::new("tenant.suspended", Actor::user("u-7").with_ip("203.0.113.7"))
/// };
/// assert_eq!(event.outcome, Outcome::Success);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// The event's id; generated when sealing if absent.
    pub id: Option<Uuid>,
    /// The time of the event; the time of sealing if absent.
    pub at: Option<Timestamp>,
    /// The actor.
    pub actor: Actor,
    /// The verb: lower-case words joined by dots, such as `tenant.suspended`.
    pub action: String,
    /// The outcome.
    pub outcome: Outcome,
    /// The type of the affected resource.
    pub resource_type: Option<String>,
    /// The resource's id.
    pub resource_id: Option<String>,
    /// The resource's name.
    pub resource_name: Option<String>,
    /// The affected tenant.
    pub tenant_slug: Option<String>,
    /// The affected partner.
    pub partner_slug: Option<String>,
    /// The reporting system; [`PLATFORM_SOURCE`] for the platform itself.
    pub source: String,
    /// The event's id in the reporting system.
    pub external_id: Option<String>,
    /// The remaining data.
    pub metadata: NewMetadata,
}

impl NewEvent {
    /// A successful event of the platform itself, happening now.
    pub fn new(action: impl Into<String>, actor: Actor) -> Self {
        Self {
            id: None,
            at: None,
            actor,
            action: action.into(),
            outcome: Outcome::Success,
            resource_type: None,
            resource_id: None,
            resource_name: None,
            tenant_slug: None,
            partner_slug: None,
            source: PLATFORM_SOURCE.into(),
            external_id: None,
            metadata: NewMetadata::default(),
        }
    }

    /// Truncates `actorEmail`, `actorId`, `resourceId` and `resourceName` to their bounds at a
    /// character boundary, and notes each cut in the metadata as `_dezky.cut.<field> = {bytes,
    /// sha256}`. Source mappings and `record()` call this;
    /// [`AuditStore::append`](crate::AuditStore::append) rejects longer values.
    pub fn cut_to_bounds(&mut self) {
        for (field, value) in [
            (Field::ActorEmail, &mut self.actor.email),
            (Field::ActorId, &mut self.actor.id),
            (Field::ResourceId, &mut self.resource_id),
            (Field::ResourceName, &mut self.resource_name),
        ] {
            let Some(text) = value else { continue };
            // The bound applies to the normal form, in which U+0000 takes three bytes.
            normalize_text(text);
            let max = field.max_bytes().unwrap_or(usize::MAX);
            if text.len() > max {
                self.metadata.note_cut(field.name(), text);
                text.truncate(text.floor_char_boundary(max));
            }
        }
    }

    /// Sets the time of the event from the text that a source sent (`said`) and its parsed form
    /// (`read`).
    ///
    /// If the time is missing or [implausible](Timestamp::problem), the event gets the time of
    /// receipt, and the metadata states so: `_dezky.timeSource` is `received`, `timeProblem` is the
    /// reason, and `rawAt` holds the first 512 bytes of the text.
    pub fn set_time(
        &mut self,
        said: Option<&str>,
        read: Option<Timestamp>,
        received_at: Timestamp,
    ) {
        let said = said.filter(|said| !said.is_empty());
        let problem = match (read, said) {
            (Some(at), _) => at.problem(received_at),
            (None, Some(_)) => Some(TimeProblem::Unreadable),
            (None, None) => Some(TimeProblem::Absent),
        };
        match problem {
            None => self.at = read,
            Some(problem) => self.note_time(problem, said, received_at),
        }
    }

    /// Replaces an [implausible](Timestamp::problem) time with the time of receipt, noted like by
    /// [`set_time`](Self::set_time). Returns whether it did. Idempotent. [Sealing](Self::seal) does
    /// this for every event, so that no event stays above all others for years, or below them
    /// unseen.
    pub fn settle_time(&mut self, received_at: Timestamp) -> bool {
        let Some(at) = self.at else { return false };
        let Some(problem) = at.problem(received_at) else { return false };
        let said = at.to_string();
        // Keeps the source's own text if the mapping has noted it.
        let said = self.metadata.annotation(RAW_AT).is_none().then_some(&*said);
        self.note_time(problem, said, received_at);
        true
    }

    fn note_time(&mut self, problem: TimeProblem, said: Option<&str>, received_at: Timestamp) {
        self.at = Some(received_at);
        self.metadata.annotate(TIME_SOURCE, "received");
        self.note_time_problem(problem, said);
    }

    /// Notes why the event's time differs from its source's: `_dezky.timeProblem`, and `rawAt` with
    /// the first 512 bytes of the source's text.
    pub fn note_time_problem(&mut self, problem: TimeProblem, said: Option<&str>) {
        self.metadata.annotate(TIME_PROBLEM, problem.as_str());
        if let Some(said) = said {
            self.metadata.annotate(RAW_AT, &said[..said.floor_char_boundary(RAW_AT_BYTES)]);
        }
    }

    /// The noted time problem.
    pub fn time_problem(&self) -> Option<TimeProblem> {
        let noted = self.metadata.annotation(TIME_PROBLEM)?.as_str()?;
        TimeProblem::ALL.into_iter().find(|problem| problem.as_str() == noted)
    }

    /// Brings the event to normal form and fixes the hashed bytes: id, receivedAt and salt are
    /// generated through `runtime`, and an implausible time is [replaced](Self::settle_time).
    ///
    /// Sealing never fails. Values out of bounds are rejected by [`SealedEvent::validate`], which
    /// every store calls before appending.
    pub fn seal(mut self, runtime: &dyn Runtime) -> SealedEvent {
        let received_at = runtime.now();
        self.settle_time(received_at);
        let mut salt = [0; 32];
        runtime.fill_random(&mut salt);
        let ip = self.actor.ip.take().and_then(|raw| {
            let ip = canonical_ip(&raw);
            if ip.is_none() {
                self.metadata.note_raw_ip(&raw);
            }
            ip
        });
        let mut event = AuditEvent {
            id: self.id.unwrap_or_else(|| uuid_v7(received_at, runtime)),
            at: self.at.unwrap_or(received_at),
            received_at,
            actor_type: self.actor.kind,
            actor_id: self.actor.id,
            actor_email: self.actor.email,
            actor_ip: ip,
            action: self.action,
            outcome: self.outcome,
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            resource_name: self.resource_name,
            tenant_slug: self.tenant_slug,
            partner_slug: self.partner_slug,
            source: self.source,
            external_id: self.external_id,
            metadata: self.metadata.into_metadata(),
        };
        event.normalize_texts();
        SealedEvent::new(event, salt)
    }
}

/// An event in normal form, without its position in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of the contract, named in NewEvent")]
pub struct AuditEvent {
    pub id: Uuid,
    pub at: Timestamp,
    pub received_at: Timestamp,
    pub actor_type: ActorType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_ip: Option<String>,
    pub action: String,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_slug: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner_slug: Option<String>,
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    pub metadata: Metadata,
}

impl AuditEvent {
    /// The value of an optional text field.
    pub fn text(&self, field: Field) -> Option<&str> {
        match field {
            Field::Action => Some(&self.action),
            Field::Source => Some(&self.source),
            Field::ActorType => Some(self.actor_type.as_str()),
            Field::Outcome => Some(self.outcome.as_str()),
            Field::ExternalId => self.external_id.as_deref(),
            Field::ResourceType => self.resource_type.as_deref(),
            Field::TenantSlug => self.tenant_slug.as_deref(),
            Field::PartnerSlug => self.partner_slug.as_deref(),
            Field::ActorId => self.actor_id.as_deref(),
            Field::ActorEmail => self.actor_email.as_deref(),
            Field::ActorIp => self.actor_ip.as_deref(),
            Field::ResourceId => self.resource_id.as_deref(),
            Field::ResourceName => self.resource_name.as_deref(),
            Field::Metadata => Some(self.metadata.as_str()),
            Field::Id | Field::At | Field::ReceivedAt => None,
        }
    }

    fn normalize_texts(&mut self) {
        normalize_text(&mut self.action);
        normalize_text(&mut self.source);
        for text in [
            &mut self.actor_id,
            &mut self.actor_email,
            &mut self.resource_type,
            &mut self.resource_id,
            &mut self.resource_name,
            &mut self.tenant_slug,
            &mut self.partner_slug,
            &mut self.external_id,
        ]
        .into_iter()
        .flatten()
        {
            normalize_text(text);
        }
    }

    /// Checks every bound of the contract.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !is_action(&self.action) {
            return Err(Invalid::new(
                "action",
                "1 to 128 bytes of lower-case letters, digits, _ and -, in words joined by dots",
            ));
        }
        if is_reserved_action(&self.action) {
            return Err(Invalid::new(
                "action",
                "without the prefix dezky., which is reserved for the log's own operations",
            ));
        }
        if !is_source(&self.source) {
            return Err(Invalid::new(
                "source",
                "1 to 64 bytes of letters, digits, ., _ and -, with at most one : before an instance",
            ));
        }
        if self.actor_ip.as_ref().is_some_and(|ip| canonical_ip(ip).as_ref() != Some(ip)) {
            return Err(Invalid::new("actorIp", "an address in canonical text, or absent"));
        }
        if Metadata::from_canonical(self.metadata.as_str()).is_none() {
            return Err(Invalid::new("metadata", "a canonical JSON object within its bounds"));
        }
        for (field, bound) in [
            (Field::TenantSlug, "1 to 63 bytes, or absent"),
            (Field::PartnerSlug, "1 to 63 bytes, or absent"),
            (Field::ExternalId, "1 to 512 bytes, or absent"),
            (Field::ResourceType, "at most 63 bytes"),
            (Field::ActorEmail, "at most 320 bytes"),
            (Field::ActorId, "at most 512 bytes"),
            (Field::ResourceId, "at most 512 bytes"),
            (Field::ResourceName, "at most 1024 bytes"),
        ] {
            let Some(text) = self.text(field) else { continue };
            let may_be_empty =
                !matches!(field, Field::TenantSlug | Field::PartnerSlug | Field::ExternalId);
            if field.max_bytes().is_some_and(|max| text.len() > max)
                || (text.is_empty() && !may_be_empty)
            {
                return Err(Invalid::new(field.name(), bound));
            }
            if text.contains('\0') {
                return Err(Invalid::new(field.name(), "without U+0000"));
            }
        }
        Ok(())
    }
}

/// Replaces U+0000 with U+FFFD: not every engine can store it.
fn normalize_text(text: &mut String) {
    if text.contains('\0') {
        *text = text.replace('\0', "\u{fffd}");
    }
}

fn is_action(action: &str) -> bool {
    !action.is_empty()
        && action.len() <= 128
        && action.split('.').all(|word| {
            !word.is_empty()
                && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        })
}

/// Whether the action is reserved for operations of the log on its own rows, such as erasures. None
/// exist yet. No ingest path accepts a reserved action, so that a later version can rely on the
/// origin of such events.
pub(crate) fn is_reserved_action(action: &str) -> bool {
    action.starts_with("dezky.")
}

fn is_source(source: &str) -> bool {
    let mut parts = source.split(':');
    let word = |part: Option<&str>| {
        part.is_some_and(|p| {
            !p.is_empty()
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
    };
    source.len() <= 64
        && word(parts.next())
        && parts.next().is_none_or(|instance| word(Some(instance)))
        && parts.next().is_none()
}

/// The canonical text of an address: v4 dotted, v6 as in RFC 5952 but never with a dotted tail,
/// v4-mapped v6 as v4. `None` for anything else, including zones.
pub(crate) fn canonical_ip(raw: &str) -> Option<String> {
    match raw.parse::<IpAddr>().ok()? {
        IpAddr::V4(v4) => Some(v4.to_string()),
        IpAddr::V6(v6) => Some(match v6.to_ipv4_mapped() {
            Some(v4) => v4.to_string(),
            None => rfc5952(v6.segments()),
        }),
    }
}

/// Parses an address as systems and proxies write it: bare, in brackets, or with a port. Returns
/// `None` for anything else, including names, zones and networks.
///
/// ```
/// use dezky_core::written_address;
/// for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443"] {
///     assert_eq!(written_address(text), Some("2001:db8::1".parse().unwrap()));
/// }
/// assert_eq!(written_address("203.0.113.7:55555"), Some("203.0.113.7".parse().unwrap()));
/// assert_eq!(written_address("proxy.example"), None);
/// ```
pub fn written_address(text: &str) -> Option<IpAddr> {
    // In an address with a port, `std` accepts a zone and drops it.
    if text.contains('%') {
        return None;
    }
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(|| in_brackets().map(IpAddr::V6)).or_else(with_port)
}

/// RFC 5952 without its exception for embedded v4, which `std` applies.
fn rfc5952(segments: [u16; 8]) -> String {
    let (mut best, mut best_len) = (0, 0);
    let mut start = 0;
    while start < 8 {
        let len = segments[start..].iter().take_while(|s| **s == 0).count();
        // The first of the longest runs; a single zero group is never shortened.
        if len > best_len && len > 1 {
            (best, best_len) = (start, len);
        }
        start += len.max(1);
    }
    let join = |part: &[u16]| part.iter().map(|s| format!("{s:x}")).collect::<Vec<_>>().join(":");
    if best_len == 0 {
        join(&segments)
    } else {
        format!("{}::{}", join(&segments[..best]), join(&segments[best + best_len..]))
    }
}

/// A UUID of version 7 (RFC 9562) from the runtime's clock and randomness.
pub(crate) fn uuid_v7(now: Timestamp, runtime: &dyn Runtime) -> Uuid {
    let mut random = [0; 10];
    runtime.fill_random(&mut random);
    let ms = u64::try_from(now.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// An event with fixed bytes: in normal form, with its id, receivedAt, salt and leaf hash. A store
/// adds only its position in the log, so the same sealed events give the same head on every engine.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedEvent {
    event: AuditEvent,
    salt: [u8; 32],
    leaf_hash: [u8; 32],
}

impl SealedEvent {
    /// Seals an event that is already in normal form, for example one read from a spool. New events
    /// are sealed with [`NewEvent::seal`].
    pub fn new(event: AuditEvent, salt: [u8; 32]) -> Self {
        let leaf_hash = integrity::leaf_hash(&event, &Evidence::Salt(salt));
        Self { event, salt, leaf_hash }
    }

    /// The event.
    pub fn event(&self) -> &AuditEvent {
        &self.event
    }

    /// The event's salt. Store it with the event and never export it.
    pub fn salt(&self) -> &[u8; 32] {
        &self.salt
    }

    /// SHA-256 of the leaf (RFC 6962), which goes into the chain.
    pub fn leaf_hash(&self) -> &[u8; 32] {
        &self.leaf_hash
    }

    /// One line of JSON with all data **including the salt**, for outboxes and spools and never for
    /// readers. All later versions read it with [`Self::from_json`].
    pub fn to_json(&self) -> String {
        let persisted =
            Persisted { v: 1, salt: hex::encode(self.salt), event: Cow::Borrowed(&self.event) };
        serde_json::to_string(&persisted).expect("an event serialises")
    }

    /// Reads the output of [`Self::to_json`].
    ///
    /// # Errors
    /// `store_corrupt` for anything else.
    pub fn from_json(text: &str) -> crate::Result<Self> {
        let corrupt = |what: String| Error::new(ErrorKind::StoreCorrupt, what);
        let persisted: Persisted<'_> = serde_json::from_str(text)
            .map_err(|e| corrupt(format!("not a sealed event (column {})", e.column())))?;
        let mut salt = [0; 32];
        if persisted.v != 1 || hex::decode_to_slice(&persisted.salt, &mut salt).is_err() {
            return Err(corrupt("not a sealed event of version 1".into()));
        }
        Ok(Self::new(persisted.event.into_owned(), salt))
    }

    /// Checks every bound of the contract.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.event.validate()
    }
}

impl fmt::Debug for SealedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedEvent").field("event", &self.event).finish_non_exhaustive()
    }
}

/// The persisted form of a sealed event.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Persisted<'a> {
    v: u8,
    salt: String,
    event: Cow<'a, AuditEvent>,
}

/// An event at its position in the log. Serializes to the wire form: camelCase, absent fields
/// omitted, hashes in lower-case hex, without the salt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// The position in the log: gapless, from 0, in commit order.
    pub seq: u64,
    /// The event.
    pub event: AuditEvent,
    /// Fields whose values were erased, in the order of their tags.
    pub erased: Vec<Field>,
    /// The hash of the previous event; 32 zero bytes for seq 0.
    pub prev_hash: [u8; 32],
    /// The hash of this event.
    pub hash: [u8; 32],
}

impl StoredEvent {
    /// The event without `seq`, `prevHash` and `hash`, for readers who may see only a part of the
    /// log: a gapless number would tell them how many events the rest has.
    pub fn without_position(&self) -> impl Serialize + '_ {
        WithoutPosition(self)
    }

    fn serialize_as<S: Serializer>(
        &self,
        serializer: S,
        with_position: bool,
    ) -> Result<S::Ok, S::Error> {
        let e = &self.event;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &e.id)?;
        if with_position {
            map.serialize_entry("seq", &self.seq)?;
        }
        map.serialize_entry("at", &e.at)?;
        map.serialize_entry("receivedAt", &e.received_at)?;
        for field in [
            Field::ActorType,
            Field::ActorId,
            Field::ActorEmail,
            Field::ActorIp,
            Field::Action,
            Field::Outcome,
            Field::ResourceType,
            Field::ResourceId,
            Field::ResourceName,
            Field::TenantSlug,
            Field::PartnerSlug,
            Field::Source,
            Field::ExternalId,
        ] {
            if let Some(text) = e.text(field) {
                map.serialize_entry(field.name(), text)?;
            }
        }
        if !self.erased.contains(&Field::Metadata) {
            map.serialize_entry("metadata", &e.metadata)?;
        }
        if !self.erased.is_empty() {
            let names: Vec<_> = self.erased.iter().map(|f| f.name()).collect();
            map.serialize_entry("erased", &names)?;
        }
        if with_position {
            map.serialize_entry("prevHash", &hex::encode(self.prev_hash))?;
            map.serialize_entry("hash", &hex::encode(self.hash))?;
        }
        map.end()
    }
}

impl Serialize for StoredEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_as(serializer, true)
    }
}

struct WithoutPosition<'a>(&'a StoredEvent);

impl Serialize for WithoutPosition<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_as(serializer, false)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use serde_json::json;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::rt::BlockingWork;

    /// A clock that stands still, and bytes that count up.
    struct Fixed;

    impl Runtime for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis_clamped(1_700_000_000_123)
        }

        fn sleep(&self, _: std::time::Duration) -> BoxFuture<'static, ()> {
            unreachable!("sealing doesn't wait")
        }

        fn unblock(&self, _: BlockingWork) -> BoxFuture<'static, Box<dyn std::any::Any + Send>> {
            unreachable!("sealing doesn't block")
        }

        fn fill_random(&self, bytes: &mut [u8]) {
            for (i, byte) in (0..).zip(bytes) {
                *byte = i;
            }
        }
    }

    fn noted(text: &str) -> serde_json::Value {
        json!({ "bytes": text.len(), "sha256": hex::encode(Sha256::digest(text)) })
    }

    #[test]
    fn an_address_with_a_zone_is_none_however_it_is_written() {
        for text in ["fe80::1%1", "[fe80::1%1]", "[fe80::1%1]:443", "[fe80::1%eth0]:443"] {
            assert_eq!(written_address(text), None, "{text}");
        }
        assert_eq!(written_address("[fe80::1]:443"), "fe80::1".parse().ok());
    }

    #[test]
    fn normal_form_of_addresses() {
        for (raw, canonical) in [
            ("203.0.113.7", "203.0.113.7"),
            ("2001:0DB8:0:0:0:0:0:1", "2001:db8::1"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"),
            ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("::", "::"),
            ("::1", "::1"),
            ("1::", "1::"),
            ("0:0:1:1:1:1:0:0", "::1:1:1:1:0:0"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::ffff:102:304", "1.2.3.4"),
            ("::1.2.3.4", "::102:304"),
            ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
            ("::ffff:0:1.2.3.4", "::ffff:0:102:304"),
        ] {
            assert_eq!(canonical_ip(raw).as_deref(), Some(canonical), "{raw}");
            assert_eq!(canonical_ip(canonical).as_deref(), Some(canonical), "{raw}, again");
        }
        for raw in [
            "",
            " 1.2.3.4",
            "1.2.3",
            "1.2.3.4:80",
            "01.2.3.4",
            "256.1.1.1",
            "1::2::3",
            ":::",
            "[::1]",
            "fe80::1%eth0",
            "fe80::1%1",
            "::1/128",
            "localhost",
        ] {
            assert_eq!(canonical_ip(raw), None, "{raw}");
        }
    }

    #[test]
    fn cuts_at_characters_and_says_so() {
        let email = "ü".repeat(161);
        let name = "\0".repeat(342);
        let mut event = NewEvent {
            resource_id: Some("r".repeat(512)),
            resource_name: Some(name),
            tenant_slug: Some("t".repeat(64)),
            ..NewEvent::new("user.login", Actor::user("é".repeat(256) + "x").with_email(&email))
        };
        event.cut_to_bounds();
        assert_eq!(event.actor.email, Some("ü".repeat(160)));
        assert_eq!(event.actor.id, Some("é".repeat(256)));
        assert_eq!(event.resource_id, Some("r".repeat(512)));
        assert_eq!(event.resource_name, Some("\u{fffd}".repeat(341)));
        assert_eq!(
            event.metadata.annotation("cut"),
            Some(&json!({
                "actorEmail": noted(&email),
                "actorId": noted(&("é".repeat(256) + "x")),
                "resourceName": noted(&"\u{fffd}".repeat(342)),
            }))
        );
        let again = {
            let mut e = event.clone();
            e.cut_to_bounds();
            e
        };
        assert_eq!(again, event);
        // Values that identify an event or its owner are never truncated.
        assert_eq!(event.seal(&Fixed).validate().unwrap_err().field, "tenantSlug");
    }

    #[test]
    fn sealing_makes_the_normal_form() {
        let new = NewEvent {
            resource_name: Some("a\0b".into()),
            resource_type: Some(String::new()),
            ..NewEvent::new("user.login", Actor::user("u").with_ip("fe80::1%eth0"))
        };
        let sealed = new.clone().seal(&Fixed);
        assert_eq!(sealed.validate(), Ok(()));
        let event = sealed.event();
        assert_eq!(event.at, Fixed.now());
        assert_eq!(event.received_at, Fixed.now());
        assert_eq!(event.id.get_version_num(), 7);
        assert_eq!(event.actor_ip, None);
        assert_eq!(event.metadata.as_str(), r#"{"_dezky":{"rawIp":"fe80::1%eth0"}}"#);
        assert_eq!(event.resource_name.as_deref(), Some("a\u{fffd}b"));
        assert_eq!(event.resource_type.as_deref(), Some(""));
        assert_eq!(sealed.salt()[..4], [0, 1, 2, 3]);
        assert!(!format!("{sealed:?}").contains("salt"));
        let again = SealedEvent::new(event.clone(), *sealed.salt());
        assert_eq!(again, sealed);
        assert_eq!(new.seal(&Fixed), sealed);
    }

    #[test]
    fn a_time_that_is_years_off_becomes_the_time_of_receiving_and_says_so() {
        let at = |text: &str| NewEvent {
            at: Timestamp::parse(text),
            ..NewEvent::new("a.b", Actor::system())
        };
        for (text, problem) in
            [("9999-12-31T23:59:59.999Z", "ahead"), ("0001-01-01T00:00:00.000Z", "too_old")]
        {
            let sealed = at(text).seal(&Fixed);
            assert_eq!(sealed.event().at, sealed.event().received_at, "{text}");
            assert_eq!(
                sealed.event().metadata.to_value(),
                json!({ "_dezky": { "rawAt": text, "timeProblem": problem, "timeSource": "received" } })
            );
        }
        let yesterday = at("2023-11-13T00:00:00Z").seal(&Fixed);
        assert_eq!(yesterday.event().metadata.as_str(), "{}");
        assert_eq!(yesterday.event().at.to_string(), "2023-11-13T00:00:00.000Z");

        // The source's own text is kept.
        let said = "+9999-12-31 23:59:59,5";
        let mut event = at("2023-11-13T00:00:00Z");
        event.set_time(Some(said), Some(Timestamp::MAX), Fixed.now());
        assert!(event.time_problem().is_some() && !event.settle_time(Fixed.now()));
        assert_eq!(event.metadata.annotation("rawAt"), Some(&json!(said)));
        for (said, problem) in
            [(Some("soon"), "unreadable"), (Some(""), "absent"), (None, "absent")]
        {
            let mut event = at("2023-11-13T00:00:00Z");
            event.set_time(said, None, Fixed.now());
            assert_eq!(event.metadata.annotation("timeProblem"), Some(&json!(problem)));
            assert_eq!(event.at, Some(Fixed.now()));
        }
    }

    #[test]
    fn bounds() {
        type Slot = fn(&mut NewEvent) -> &mut Option<String>;
        let with = |change: &dyn Fn(&mut NewEvent)| {
            let mut new = NewEvent::new("a.b", Actor::system());
            change(&mut new);
            new.seal(&Fixed).validate().map_err(|invalid| invalid.field)
        };
        assert_eq!(with(&|_| ()), Ok(()));
        let longest = |max: usize| (Some("x".repeat(max)), Some("x".repeat(max + 1)));
        let slots: [(Field, Slot); 8] = [
            (Field::TenantSlug, |e| &mut e.tenant_slug),
            (Field::PartnerSlug, |e| &mut e.partner_slug),
            (Field::ExternalId, |e| &mut e.external_id),
            (Field::ResourceType, |e| &mut e.resource_type),
            (Field::ActorEmail, |e| &mut e.actor.email),
            (Field::ActorId, |e| &mut e.actor.id),
            (Field::ResourceId, |e| &mut e.resource_id),
            (Field::ResourceName, |e| &mut e.resource_name),
        ];
        for (field, slot) in slots {
            let (fits, over) = longest(field.max_bytes().unwrap());
            assert_eq!(with(&|e| *slot(e) = fits.clone()), Ok(()), "{field:?}");
            assert_eq!(with(&|e| *slot(e) = over.clone()), Err(field.name()));
            let names = matches!(field, Field::TenantSlug | Field::PartnerSlug | Field::ExternalId);
            let empty = if names { Err(field.name()) } else { Ok(()) };
            assert_eq!(with(&|e| *slot(e) = Some(String::new())), empty, "{field:?}");
        }
        for (source, ok) in [
            ("ocis", true),
            ("authentik:eu2", true),
            ("A.b_c-1", true),
            ("", false),
            (":x", false),
            ("x:", false),
            ("a:b:c", false),
            ("a b", false),
            ("é", false),
        ] {
            let expected = if ok { Ok(()) } else { Err("source") };
            assert_eq!(with(&|e| e.source = source.into()), expected, "{source}");
        }
        for (action, ok) in [
            ("login", true),
            ("user.log_in-2", true),
            ("", false),
            ("User.login", false),
            ("a..b", false),
            (".a", false),
            ("a.", false),
            ("a b", false),
        ] {
            let expected = if ok { Ok(()) } else { Err("action") };
            assert_eq!(with(&|e| e.action = action.into()), expected, "{action}");
        }
        assert_eq!(with(&|e| e.source = "s".repeat(65)), Err("source"));
        assert_eq!(with(&|e| e.action = "a".repeat(129)), Err("action"));
    }

    #[test]
    fn tags_and_fields() {
        for (tag, field) in (1..).zip(Field::ALL) {
            assert_eq!((field.tag(), Field::from_tag(tag)), (tag, Some(field)));
        }
        assert_eq!((Field::from_tag(0), Field::from_tag(18)), (None, None));
    }
}
