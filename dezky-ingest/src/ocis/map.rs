//! Meaning of a line: verb, actor, resource, time and tenant.

use std::borrow::Cow;

use dezky_core::store::MAX_QUARANTINE_RAW_BYTES;
use dezky_core::{
    Actor, NewEvent, NewMetadata, Outcome, PulledEvent, QuarantineItem, TenantHint, TimeProblem,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::proto::{self, Fields, Piece};
use crate::annotations::{RAW_ACTION, RAW_ID, REDACTED};
use crate::secrets::clean_text;
use crate::tail::{Cut, DecodedLine, Digest, Line, keyed_hash, repeated};

/// The name of the system, in tenant hints and as the default source.
pub const SYSTEM: &str = "ocis";

/// The storage under which files that are reached through a link may appear: the
/// `PublicStorageProviderID` of oCIS' library reva (`pkg/utils`). Not observed yet in lines of a
/// running server.
const PUBLIC_LINKS: &str = "7993447f-687f-490d-875c-ac95e89a62a4";

/// Prefix of a line's identity in the key of its quarantine item.
const KEY_PREFIX: &str = "line:";

/// Events that are included only on request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, each named")]
pub struct OcisOptions {
    /// `ocis.share_accepted`: oCIS accepts every share automatically.
    pub share_accepted: bool,
    /// `ocis.share_declined`.
    pub share_declined: bool,
    /// `ocis.ocm_invite_created`: the tokens in it are redacted.
    pub ocm_invites: bool,
    /// `ocis.link_access_failed`: about two events per attempt.
    pub link_access_failed: bool,
}

/// An event that is included only on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optional {
    /// A recipient accepted a share.
    ShareAccepted,
    /// A recipient declined a share.
    ShareDeclined,
    /// An invitation to another cloud was created.
    OcmInvite,
    /// An attempt to open a link failed.
    LinkAccessFailed,
}

impl Optional {
    /// The action, without its `ocis.`.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::ShareAccepted => "share_accepted",
            Self::ShareDeclined => "share_declined",
            Self::OcmInvite => "ocm_invite_created",
            Self::LinkAccessFailed => "link_access_failed",
        }
    }

    const fn wanted(self, options: OcisOptions) -> bool {
        match self {
            Self::ShareAccepted => options.share_accepted,
            Self::ShareDeclined => options.share_declined,
            Self::OcmInvite => options.ocm_invites,
            Self::LinkAccessFailed => options.link_access_failed,
        }
    }
}

/// The kind of event of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A [mutation](MUTATIONS), by its verb.
    Mutation(&'static str),
    /// Included only on request.
    Optional(Optional),
    /// A known read.
    Read,
    /// A known read through a link.
    LinkRead,
    /// A known login.
    Login,
    /// On no list.
    Unknown,
}

/// The verbs of the mutations, without `ocis.`; each with its Go type, and with its `Action` if
/// that alone decides.
pub const MUTATIONS: [(&str, &str, Option<&str>); 28] = [
    ("file_uploaded", "FileUploaded", Some("file_create")),
    ("folder_created", "ContainerCreated", Some("container_create")),
    ("file_moved", "ItemMoved", Some("file_rename")),
    ("file_trashed", "ItemTrashed", Some("file_delete")),
    ("file_purged", "ItemPurged", Some("file_trash_delete")),
    ("file_restored", "ItemRestored", Some("file_trash_restore")),
    ("file_version_restored", "FileVersionRestored", Some("file_version_restore")),
    ("space_created", "SpaceCreated", Some("space_created")),
    ("space_renamed", "SpaceRenamed", Some("space_renamed")),
    ("space_updated", "SpaceUpdated", Some("space_updated")),
    ("space_disabled", "SpaceDisabled", Some("space_disabled")),
    ("space_enabled", "SpaceEnabled", Some("space_enabled")),
    ("space_deleted", "SpaceDeleted", Some("space_deleted")),
    ("space_shared", "SpaceShared", Some("space_shared")),
    ("space_unshared", "SpaceUnshared", Some("space_unshared")),
    ("share_created", "ShareCreated", None),
    ("share_updated", "ShareUpdated", None),
    ("share_removed", "ShareRemoved", None),
    ("link_created", "LinkCreated", None),
    ("link_updated", "LinkUpdated", None),
    ("link_removed", "LinkRemoved", None),
    ("user_created", "UserCreated", Some("user_created")),
    ("user_updated", "UserFeatureChanged", Some("user_feature_changed")),
    ("user_deleted", "UserDeleted", Some("user_deleted")),
    ("group_created", "GroupCreated", Some("group_created")),
    ("group_deleted", "GroupDeleted", Some("group_deleted")),
    ("group_member_added", "GroupMemberAdded", Some("group_member_added")),
    ("group_member_removed", "GroupMemberRemoved", Some("group_member_removed")),
];

/// The members that decide the class of a genuine line along with its `Action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActionContext<'a> {
    /// `ShareType`: `user`, `group`, `link` or empty.
    pub share_type: &'a str,
    /// Whether the line has the key `ShareOwner`.
    pub has_share_owner: bool,
    /// Whether the line has the key `ShareWith`.
    pub has_share_with: bool,
    /// `Success`, if the line has it.
    pub success: Option<bool>,
}

/// The class of a genuine line, by its `Action` and neighbouring members.
/// Total and pure; spellings of a name do not matter.
///
/// ```
/// use dezky_ingest::ocis::{ActionContext, Class, classify_action};
/// let link = ActionContext { share_type: "link", ..ActionContext::default() };
/// assert_eq!(classify_action("file_shared", link), Class::Mutation("link_created"));
/// assert_eq!(classify_action("file_read", ActionContext::default()), Class::Read);
/// ```
pub fn classify_action(action: &str, context: ActionContext<'_>) -> Class {
    let is_link = proto::squash(context.share_type) == "link";
    let updated = || Class::Mutation(if is_link { "link_updated" } else { "share_updated" });
    let squashed = proto::squash(action);
    match squashed.as_str() {
        // Released versions write no Action for most updates of shares, and
        // none for a declined one.
        "" if context.has_share_owner => updated(),
        "" if context.has_share_with => Class::Optional(Optional::ShareDeclined),
        "fileshared" if is_link => Class::Mutation("link_created"),
        "fileshared" if matches!(&*proto::squash(context.share_type), "user" | "group") => {
            Class::Mutation("share_created")
        }
        "fileunshared" if is_link => Class::Mutation("link_removed"),
        "fileunshared" => Class::Mutation("share_removed"),
        "shareaccepted" => Class::Optional(Optional::ShareAccepted),
        "sharedeclined" => Class::Optional(Optional::ShareDeclined),
        "sciencemeshinvitetokengenerated" => Class::Optional(Optional::OcmInvite),
        "publiclinkaccessed" if context.success == Some(false) => {
            Class::Optional(Optional::LinkAccessFailed)
        }
        "publiclinkaccessed" => Class::LinkRead,
        "fileread" => Class::Read,
        // Newer versions have more of them.
        updates if updates.starts_with("share") && updates.ends_with("updated") => updated(),
        _ => MUTATIONS
            .iter()
            .find(|(_, _, known)| known.is_some_and(|known| proto::squash(known) == squashed))
            .map_or(Class::Unknown, |(verb, ..)| Class::Mutation(verb)),
    }
}

/// The class of an event shape, by its `type` in any spelling, with or without
/// the Go package (`events.FileUploaded`). Total and pure.
///
/// Whether a `ReceivedShareUpdated` was accepted or declined is in its `state`; without one it
/// counts as accepted, because oCIS accepts automatically.
pub fn classify_type(name: &str, state: &str) -> Class {
    let name = proto::squash(name.strip_prefix("events.").unwrap_or(name));
    match name.as_str() {
        "filedownloaded" => Class::Read,
        "linkaccessed" => Class::LinkRead,
        "usersignedin" => Class::Login,
        "linkaccessfailed" => Class::Optional(Optional::LinkAccessFailed),
        "sciencemeshinvitetokengenerated" => Class::Optional(Optional::OcmInvite),
        "receivedshareupdated" => {
            let state = proto::squash(state);
            Class::Optional(if state.contains("declin") || state.contains("reject") {
                Optional::ShareDeclined
            } else {
                Optional::ShareAccepted
            })
        }
        _ => MUTATIONS
            .iter()
            .find(|(_, known, _)| proto::squash(known) == name)
            .map_or(Class::Unknown, |(verb, ..)| Class::Mutation(verb)),
    }
}

/// `ocis1:` and the identity of a line: the generation of its file, its offset and its bytes. Path,
/// inode, device and host are not part of it.
pub fn line_key(instance: &str, generation: &Digest, offset: u64, line_hash: &Digest) -> String {
    let hash = keyed_hash("ocis-audit/1", instance, generation, offset, line_hash);
    format!("ocis1:{hash}")
}

/// Context shared by the lines of one generation in one pull.
#[derive(Debug, Clone, Copy)]
pub struct LineContext<'a> {
    /// The source's name, which is also part of the keys.
    pub source: &'a str,
    /// Which optional events are included.
    pub options: OcisOptions,
    /// The generation.
    pub generation: &'a Digest,
    /// The time of reading.
    pub now: Timestamp,
}

/// A line of a generation: the parts of its identity other than its offset and bytes.
#[derive(Debug, Clone, Copy)]
struct OneLine<'a> {
    context: LineContext<'a>,
    /// How many earlier generations had it at the same offset.
    repeat: u32,
    /// The line before its long values were cut.
    cut: Option<Cut>,
}

impl<'a> From<LineContext<'a>> for OneLine<'a> {
    fn from(context: LineContext<'a>) -> Self {
        Self { context, repeat: 0, cut: None }
    }
}

/// Decodes a line of a tail like [`decode_line`] or [`decode_unterminated`], with the identity that
/// the tail gives it.
pub(super) fn decode_tailed(
    options: OcisOptions,
    line: &Line<'_>,
    last_time: &mut Option<Timestamp>,
    mut each: impl FnMut(DecodedLine),
) {
    let one = one_of(options, line);
    let unreadable = if line.is_complete { "not_json" } else { "partial_line" };
    decode(one, line.offset, line.bytes, unreadable, last_time, &mut each);
}

/// Like [`too_long`], with the identity that the tail gives the line.
pub(super) fn tailed_too_long(options: OcisOptions, head: &Line<'_>, bytes: u64) -> QuarantineItem {
    quarantine_too_long(one_of(options, head), head.offset, bytes, head.bytes)
}

fn one_of<'a>(options: OcisOptions, line: &Line<'a>) -> OneLine<'a> {
    let Line { source, generation, now, .. } = *line;
    let context = LineContext { source, options, generation, now };
    OneLine { context, repeat: line.repeat, cut: line.cut }
}

/// Decodes the `line` at `offset` (without its `\n`) and passes the results to `each`: none for a
/// blank line, several for lines that are glued together.
///
/// `last_time` is the last usable time before the line, and is updated. The results hold no tokens.
pub fn decode_line(
    context: LineContext<'_>,
    offset: u64,
    line: &[u8],
    last_time: &mut Option<Timestamp>,
    mut each: impl FnMut(DecodedLine),
) {
    decode(context.into(), offset, line, "not_json", last_time, &mut each);
}

/// Decodes the bytes after the last `\n` of a file that no longer grows: an event if only its
/// newline is missing.
pub fn decode_unterminated(
    context: LineContext<'_>,
    offset: u64,
    rest: &[u8],
    last_time: &mut Option<Timestamp>,
    mut each: impl FnMut(DecodedLine),
) {
    decode(context.into(), offset, rest, "partial_line", last_time, &mut each);
}

/// The quarantine item of a line over the limit, of which only the `head` is known. The head alone
/// identifies it, so it is the same however long the line was when it was read.
pub fn too_long(context: LineContext<'_>, offset: u64, bytes: u64, head: &[u8]) -> QuarantineItem {
    quarantine_too_long(context.into(), offset, bytes, head)
}

fn quarantine_too_long(one: OneLine<'_>, offset: u64, bytes: u64, head: &[u8]) -> QuarantineItem {
    let raw = proto::scrub(head);
    one.context.quarantine(
        &one.key(offset, head),
        "line_too_long",
        format!("a line over the limit, {bytes} bytes at offset {offset}"),
        &raw,
    )
}

/// The text of a line that another program stored, a JSON object, without its tokens.
pub(crate) fn without_secrets(text: &str) -> String {
    let clean = Fields::parse(text).map(|fields| proto::redact(text, &fields).into_owned());
    clean.map(|clean| clean_text(&clean).into_owned()).unwrap_or_default()
}

/// Decodes a quarantined line again. The item's key is the line's identity; a line without a usable
/// time gets the item's.
pub(crate) fn redecode(item: &QuarantineItem) -> Result<Vec<PulledEvent>, String> {
    let text = String::from_utf8_lossy(item.raw.trim_ascii());
    let context = LineContext {
        source: &item.source,
        options: OcisOptions::default(),
        generation: &Digest::default(),
        now: item.at,
    };
    let Ok(fields) = Fields::parse(&text) else { return Err("still not a JSON object".into()) };
    let kept = || (0, &*item.raw);
    match decode_object(context.into(), &text, fields, kept, &mut None) {
        DecodedLine::Event(mut pulled) => {
            // The event's id, or the key of the line in its file.
            if pulled.event.external_id == Some(OneLine::from(context).key(0, &item.raw)) {
                let key = item.key.strip_prefix(KEY_PREFIX).unwrap_or(&item.key);
                pulled.event.external_id = Some(key.to_owned());
            }
            Ok(vec![*pulled])
        }
        DecodedLine::Skipped => Err("known by now, and skipped on purpose".into()),
        DecodedLine::Quarantine(item) => Err(format!("still {}: {}", item.reason, item.detail)),
    }
}

impl OneLine<'_> {
    /// `ocis1:` and the identity of the line, or `ocis2:` with the number of earlier generations
    /// that had it, if any.
    fn key(&self, offset: u64, bytes: &[u8]) -> String {
        let LineContext { source, generation, .. } = self.context;
        let line = self.cut.map_or_else(|| Sha256::digest(bytes).into(), |cut| cut.hash);
        match self.repeat {
            0 => line_key(source, generation, offset, &line),
            repeat => {
                let domain = repeated("ocis-audit/2", repeat);
                format!("ocis2:{}", keyed_hash(&domain, source, generation, offset, &line))
            }
        }
    }

    fn length(&self, bytes: &[u8]) -> u64 {
        self.cut.map_or(bytes.len() as u64, |cut| cut.bytes)
    }
}

impl LineContext<'_> {
    fn quarantine(&self, key: &str, reason: &str, detail: String, raw: &str) -> QuarantineItem {
        let cut = raw.floor_char_boundary(MAX_QUARANTINE_RAW_BYTES);
        QuarantineItem {
            source: self.source.to_owned(),
            key: format!("{KEY_PREFIX}{key}"),
            reason: reason.to_owned(),
            detail,
            raw: raw.as_bytes()[..cut].to_vec(),
            at: self.now,
        }
    }
}

fn decode(
    one: OneLine<'_>,
    offset: u64,
    line: &[u8],
    unreadable: &'static str,
    last_time: &mut Option<Timestamp>,
    each: &mut dyn FnMut(DecodedLine),
) {
    let text = String::from_utf8_lossy(line.trim_ascii());
    if let Ok(fields) = Fields::parse(&text) {
        each(decode_object(one, &text, fields, || (offset, line), last_time));
        return;
    }
    let is_object = |bytes: &[u8]| Fields::parse(&String::from_utf8_lossy(bytes)).is_ok();
    for Piece { range, main, nul } in proto::pieces(line, is_object) {
        let bytes = &line[range.clone()];
        // The line's identity covers all its bytes; a piece before or after it is identified like a
        // line.
        let (at, keyed) = if main { (offset, line) } else { (offset + range.start as u64, bytes) };
        let quarantine = |reason, what, raw: &str| {
            let detail = format!("{what}, {} bytes at offset {at}", bytes.len());
            let item = one.context.quarantine(&one.key(at, keyed), reason, detail, raw);
            DecodedLine::Quarantine(Box::new(item))
        };
        let text = String::from_utf8_lossy(bytes);
        each(if nul {
            quarantine("nul_bytes", "a block of NUL bytes", "")
        } else if let Ok(fields) = Fields::parse(&text) {
            decode_object(one, &text, fields, || (at, keyed), last_time)
        } else if main {
            quarantine(unreadable, "no JSON object", &proto::scrub(bytes))
        } else {
            let what = "the beginning of a line to which the next was glued";
            quarantine("glued_fragment", what, &proto::scrub(bytes))
        });
    }
}

/// Decodes a JSON object; `keyed` returns the offset and bytes that identify it.
fn decode_object<'b>(
    one: OneLine<'_>,
    text: &str,
    fields: Fields<'_>,
    keyed: impl Fn() -> (u64, &'b [u8]),
    last_time: &mut Option<Timestamp>,
) -> DecodedLine {
    let context = one.context;
    let key = || {
        let (at, bytes) = keyed();
        one.key(at, bytes)
    };
    let quarantine = |reason, what: &str, raw: &str| {
        let (at, bytes) = keyed();
        let detail = format!("{what}, {} bytes at offset {at}", one.length(bytes));
        DecodedLine::Quarantine(Box::new(context.quarantine(&key(), reason, detail, raw)))
    };
    let clean = proto::redact(text, &fields);
    // From here on, the text has no secrets.
    let fields = match &clean {
        Cow::Borrowed(_) => fields,
        Cow::Owned(clean) => match Fields::parse(clean) {
            Ok(fields) => fields,
            Err(_) => {
                return quarantine("not_json", "not redactable", &proto::scrub(text.as_bytes()));
            }
        },
    };
    let shape = if fields.has("Action") {
        Shape::genuine(&fields)
    } else if fields.has("type") {
        Shape::event(&fields)
    } else {
        return quarantine(
            "unknown_shape",
            "an object with neither Action nor type",
            &clean_text(&clean),
        );
    };
    let class = shape.class();
    let said_time = shape.time();
    let read_time = said_time.as_deref().and_then(Timestamp::read);
    let own_time = read_time.filter(|time| time.problem(context.now).is_none());
    let before = *last_time;
    if class.has_usable_time() {
        *last_time = own_time.or(before);
    }
    let verb = match class {
        Class::Mutation(verb) => verb,
        Class::Optional(optional) if optional.wanted(context.options) => optional.verb(),
        Class::Read | Class::LinkRead | Class::Login | Class::Optional(_) => {
            return DecodedLine::Skipped;
        }
        Class::Unknown => return quarantine("unknown_type", &shape.unknown(), &clean_text(&clean)),
    };
    let (at, time_source) = match (own_time, before) {
        (Some(time), _) => (time, "event"),
        (None, Some(time)) => (time, "previous_line"),
        (None, None) => (context.now, "reading"),
    };
    let said = clean_text(&clean);
    let mut metadata = NewMetadata::from_source(&*said).with_annotation("timeSource", time_source);
    let is_changed = matches!((&clean, &said), (Cow::Owned(_), _) | (_, Cow::Owned(_)));
    if is_changed && said.contains(proto::REDACTED) {
        metadata.annotate(REDACTED, true);
    }
    if let Some(cut) = &one.cut {
        cut.annotate(&mut metadata);
    }
    let mut pulled = shape.event_of(verb, class, metadata);
    let event = &mut pulled.event;
    event.at = Some(at);
    let problem = match (&said_time, read_time) {
        (_, Some(time)) => time.problem(context.now),
        (Some(_), None) => Some(TimeProblem::Unreadable),
        (None, None) => Some(TimeProblem::Absent),
    };
    // Many lines have no time, or the year 1; the time of the line before is close enough.
    if let Some(problem) = problem.filter(|problem| {
        time_source == "reading" || !matches!(problem, TimeProblem::Absent | TimeProblem::TooOld)
    }) {
        event.note_time_problem(problem, said_time.as_deref());
    }
    context.source.clone_into(&mut event.source);
    event.external_id = Some(match shape.id() {
        Some(Ok(id)) => id,
        Some(Err(raw)) => {
            event.metadata.annotate(RAW_ID, raw);
            key()
        }
        None => key(),
    });
    event.cut_to_bounds();
    DecodedLine::Event(Box::new(pulled))
}

impl Class {
    /// Whether the time of such a line is when it was written. For access to a link it is when the
    /// link was created, for an accepted or declined share when the share was changed; for an
    /// unknown type it is unknown.
    fn has_usable_time(self) -> bool {
        match self {
            Self::Mutation(_) | Self::Read | Self::Login | Self::Optional(Optional::OcmInvite) => {
                true
            }
            Self::LinkRead | Self::Optional(_) | Self::Unknown => false,
        }
    }
}

/// A parsed line, in one of its two shapes.
struct Shape<'f, 'a> {
    fields: &'f Fields<'a>,
    genuine: bool,
    /// `Action` or `type`; `None` if that is not a string.
    name: Option<Cow<'a, str>>,
}

impl<'f, 'a> Shape<'f, 'a> {
    fn genuine(fields: &'f Fields<'a>) -> Self {
        Self { fields, genuine: true, name: fields.get("Action").and_then(proto::string) }
    }

    fn event(fields: &'f Fields<'a>) -> Self {
        Self { fields, genuine: false, name: fields.get("type").and_then(proto::string) }
    }

    fn share_type(&self) -> Cow<'a, str> {
        self.fields.text("ShareType").unwrap_or_default()
    }

    fn class(&self) -> Class {
        let Some(name) = &self.name else { return Class::Unknown };
        if !self.genuine {
            return classify_type(name, &self.fields.text("state").unwrap_or_default());
        }
        let context = ActionContext {
            share_type: &self.share_type(),
            has_share_owner: self.fields.has("ShareOwner"),
            has_share_with: self.fields.has("ShareWith"),
            success: self.fields.get("Success").and_then(|value| match value.get() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            }),
        };
        classify_action(name, context)
    }

    /// The line's own time, as spelled.
    fn time(&self) -> Option<Cow<'a, str>> {
        self.fields.text(if self.genuine { "Time" } else { "timestamp" })
    }

    /// The event's own id; an error holds text that can't be an id.
    fn id(&self) -> Option<Result<String, String>> {
        if self.genuine {
            return None;
        }
        let id = self.fields.text("id")?.into_owned();
        // In normal form U+0000 takes three bytes.
        let fits = id.len() <= 512 && !id.contains('\0');
        Some(if fits { Ok(id) } else { Err(id[..id.floor_char_boundary(1024)].to_owned()) })
    }

    fn unknown(&self) -> String {
        let what = if self.genuine { "Action" } else { "type" };
        match &self.name {
            // A value that is not shaped like a name is not repeated.
            Some(name)
                if name.len() <= 64
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) =>
            {
                format!("{what} \"{name}\" is on no list")
            }
            _ => format!("{what} is on no list"),
        }
    }

    fn event_of(&self, verb: &'static str, class: Class, metadata: NewMetadata) -> PulledEvent {
        let (actor, actor_source) = self.actor(verb, class);
        let family = verb.split_once('_').map_or(verb, |(word, _)| word);
        let mut event = NewEvent {
            outcome: match class {
                Class::Optional(Optional::LinkAccessFailed) => Outcome::Failure,
                _ => Outcome::Success,
            },
            resource_type: Some(family.to_owned()),
            metadata,
            ..NewEvent::new(
                format!("ocis.{verb}"),
                actor.as_deref().map_or_else(Actor::system, Actor::user),
            )
        };
        event.metadata.annotate(RAW_ACTION, self.name.as_deref().unwrap_or_default());
        event.metadata.annotate("actorSource", actor_source);
        if actor_source == "group_share" {
            let group = self.fields.text("User").or_else(|| self.fields.text("ShareWith"));
            event.metadata.annotate("groupId", group.as_deref().map_or(Value::Null, Value::from));
        }
        let (id, name) = self.resource(family);
        event.resource_id = id.filter(|id| !id.is_empty());
        event.resource_name = name.filter(|name| !name.is_empty());

        let file = self.text("FileID", "fileid");
        let file = file.as_deref().map(FileId::parse);
        let space = self.space(file.as_ref());
        if let Some(file) = &file {
            event.metadata.annotate("file", file.to_value());
            if let Some(folder) = file.folder(verb) {
                event.metadata.annotate("resourceNameIn", folder);
            }
        }
        // The acting person has the link, but the line's actor is its creator, if anyone.
        if class == Class::Optional(Optional::LinkAccessFailed)
            || file.as_ref().is_some_and(|file| file.storage == Some(PUBLIC_LINKS))
        {
            event.metadata.annotate("actorBy", "link");
        }
        if let Some(space) = &space {
            event.metadata.annotate("spaceId", space.to_string());
        }

        let mut tenant = Vec::new();
        // People choose the names of their personal spaces, and could choose a tenant's.
        let is_personal = self.text("Type", "spacetype").as_deref() == Some("personal")
            || space.as_ref().is_some_and(|space| actor.as_ref() == Some(&space.space));
        if let Some(name) = self.space_name().filter(|_| !is_personal) {
            tenant.push(TenantHint::Slug { slug: name, via: "space_name" });
        }
        // A personal space has the id of its user.
        if let Some(id) = actor.or_else(|| space.map(|space| space.space)) {
            tenant.push(TenantHint::User { system: SYSTEM, id });
        }
        PulledEvent { event, tenant }
    }

    fn text(&self, genuine: &str, squashed: &str) -> Option<Cow<'a, str>> {
        if self.genuine { self.fields.text(genuine) } else { self.fields.text_like(squashed) }
    }

    /// The actor, and how it is known. Never the `Owner`, who is another person as soon as two
    /// people work in one space.
    fn actor(&self, verb: &str, class: Class) -> (Option<String>, &'static str) {
        if !self.genuine {
            let user = self
                .fields
                .get("executingUser")
                .and_then(|value| Fields::parse(value.get()).ok())
                .and_then(|user| user.text("id").map(Cow::into_owned));
            return match user {
                Some(id) => (Some(id), "executing_user"),
                None => (None, "none"),
            };
        }
        let received =
            matches!(class, Class::Optional(Optional::ShareAccepted | Optional::ShareDeclined));
        if received && proto::squash(&self.share_type()) == "group" {
            // Both User and Message hold the group there.
            return (None, "group_share");
        }
        if let Some(message) = self.fields.text("Message")
            && let Some(rest) = message.strip_prefix("user '")
            && let Some((id, after)) = rest.split_once('\'')
            && !id.is_empty()
            && after.starts_with(' ')
        {
            return (Some(id.to_owned()), "message");
        }
        let share_or_link = received
            || (matches!(class, Class::Mutation(_))
                && (verb.starts_with("share_") || verb.starts_with("link_")));
        match self.fields.text("User") {
            Some(user) if share_or_link => (Some(user.into_owned()), "user"),
            _ => (None, "none"),
        }
    }

    /// Id and name of the resource.
    fn resource(&self, family: &str) -> (Option<String>, Option<String>) {
        let text = |genuine, squashed| self.text(genuine, squashed).map(Cow::into_owned);
        match family {
            "file" | "folder" => {
                let id = text("FileID", "fileid");
                let name = self
                    .text("Path", "path")
                    .as_deref()
                    .and_then(relative)
                    .map(str::to_owned)
                    .or_else(|| FileId::parse(id.as_deref()?).path.map(str::to_owned));
                (id, name)
            }
            "space" => {
                let id = self.text("SpaceID", "spaceid");
                (id.as_deref().map(|id| SpaceId::parse(id).to_string()), self.space_name_any())
            }
            "share" => (text("ShareID", "shareid"), None),
            "link" => (text("ShareID", "linkid").or_else(|| text("ShareID", "shareid")), None),
            "user" => (text("UserID", "userid"), None),
            "group" => (text("GroupID", "groupid"), None),
            _ => (None, None),
        }
    }

    fn space(&self, file: Option<&FileId<'_>>) -> Option<SpaceId> {
        if let Some(id) = self.text("SpaceID", "spaceid") {
            return Some(SpaceId::parse(&id));
        }
        if let Some(FileId { storage: Some(storage), space: Some(space), .. }) = file {
            return Some(SpaceId {
                storage: Some((*storage).to_owned()),
                space: (*space).to_owned(),
            });
        }
        let share = self.text("ShareID", "shareid")?;
        let mut parts = share.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(storage), Some(space), Some(id), None) if ![storage, space, id].contains(&"") => {
                Some(SpaceId { storage: Some(storage.to_owned()), space: space.to_owned() })
            }
            _ => None,
        }
    }

    /// The name of the space, if it could be a tenant's slug.
    fn space_name(&self) -> Option<String> {
        self.space_name_any().filter(|name| name.len() <= 63)
    }

    fn space_name_any(&self) -> Option<String> {
        let name = if self.genuine {
            // Only lines about spaces have these keys.
            self.fields
                .has("SpaceID")
                .then(|| self.fields.text("NewName").or_else(|| self.fields.text("Name")))
                .flatten()
        } else {
            self.fields.text("spaceName")
        };
        name.map(Cow::into_owned)
    }
}

/// A path without a leading `./` or `/`; `None` for the root.
fn relative(path: &str) -> Option<&str> {
    let path = path.strip_prefix("./").or_else(|| path.strip_prefix('/')).unwrap_or(path);
    (!matches!(path, "" | ".")).then_some(path)
}

/// `<storage>$<space>[!<node>]`
#[derive(Debug, PartialEq, Eq)]
struct SpaceId {
    storage: Option<String>,
    space: String,
}

impl SpaceId {
    fn parse(text: &str) -> Self {
        let (storage, rest) = match text.split_once('$') {
            Some((storage, rest)) => (Some(storage.to_owned()), rest),
            None => (None, text),
        };
        let space = rest.split_once('!').map_or(rest, |(space, _)| space);
        Self { storage, space: space.to_owned() }
    }
}

impl std::fmt::Display for SpaceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.storage {
            Some(storage) => write!(f, "{storage}${}", self.space),
            None => f.write_str(&self.space),
        }
    }
}

/// `<storage>$<space>!<node>[/<path>]`, or the node alone in lines about shares.
#[derive(Debug, PartialEq, Eq)]
struct FileId<'a> {
    storage: Option<&'a str>,
    space: Option<&'a str>,
    node: Option<&'a str>,
    path: Option<&'a str>,
}

impl<'a> FileId<'a> {
    fn parse(text: &'a str) -> Self {
        let Some((storage, rest)) = text.split_once('$') else {
            return Self { storage: None, space: None, node: Some(text), path: None };
        };
        let Some((space, rest)) = rest.split_once('!') else {
            return Self { storage: Some(storage), space: Some(rest), node: None, path: None };
        };
        let (node, path) = match rest.split_once('/') {
            Some((node, path)) => (node, Some(path).filter(|path| !path.is_empty())),
            None => (rest, None),
        };
        Self { storage: Some(storage), space: Some(space), node: Some(node), path }
    }

    /// The id of the folder to which the path is relative; `None` if that is the root of the space,
    /// whose node has the id of the space.
    fn folder(&self, verb: &str) -> Option<&'a str> {
        let is_file = verb.starts_with("file_") || verb.starts_with("folder_");
        self.node.filter(|node| {
            is_file && self.path.is_some() && self.space.is_some_and(|id| id != *node)
        })
    }

    fn to_value(&self) -> Value {
        let mut value = json!({});
        for (key, part) in [
            ("storageId", self.storage),
            ("spaceId", self.space),
            ("nodeId", self.node),
            ("path", self.path),
        ] {
            if let Some(part) = part {
                value[key] = part.into();
            }
        }
        value
    }
}
