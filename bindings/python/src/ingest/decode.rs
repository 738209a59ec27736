//! The decoders and action maps of the three systems.

use std::net::IpAddr;

use dezky::core::source::{PulledEvent, QuarantineItem, TenantHint};
use dezky::core::{Error, ErrorKind, Timestamp};
use dezky::ingest::authentik::protocol::{Item, Page};
use dezky::ingest::ocis::{
    self, ActionContext, Class, LineContext, OcisOptions, classify_action, classify_type,
};
use dezky::ingest::tail::{self, DecodedLine};
use dezky::ingest::{authentik, stalwart};
use dezky::{Runtime as _, TokioRuntime};
use pyo3::prelude::*;
use pyo3::types::PyList;
use serde_json::value::RawValue;

use super::arguments::{bytes, flag, source_name, whole};
use super::quarantine::Quarantined;
use crate::audit::event::NewEvent;
use crate::convert::{json, text, timestamp, value_error};
use crate::error::exception;

/// The events of a body, a page or some lines, and the items that are not events.
///
/// `len()` is the number of events, and iterating yields them. `Batch(decoded, cursor)` passes
/// everything to a pump, and `append(log, decoded)` brings everything into a log.
#[pyclass(frozen, module = "dezky.ingest")]
pub(crate) struct Decoded {
    pub(super) events: Vec<PulledEvent>,
    pub(super) quarantined: Vec<QuarantineItem>,
    pub(super) skipped: u64,
}

#[pymethods]
impl Decoded {
    /// The events, without secrets, each with the external id under which it is stored only once.
    #[getter]
    fn events(&self) -> Vec<NewEvent> {
        self.events.iter().map(|pulled| NewEvent(pulled.event.clone())).collect()
    }

    /// The items that could not become events, without secrets.
    #[getter]
    fn quarantined(&self) -> Vec<Quarantined> {
        self.quarantined.iter().cloned().map(Quarantined::from).collect()
    }

    /// The number of items skipped on purpose, such as reads.
    #[getter]
    fn skipped(&self) -> u64 {
        self.skipped
    }

    /// For each event, the hints to its tenant, best first: `("slug", …)`, `("domain", …)`, or
    /// `("user", …)` for the id of a user of the system.
    #[getter]
    fn tenant_hints(&self) -> Vec<Vec<(&'static str, String)>> {
        let pair = |hint: &TenantHint| match hint {
            TenantHint::Slug { slug, .. } => ("slug", slug.clone()),
            TenantHint::Domain(domain) => ("domain", domain.clone()),
            TenantHint::User { id, .. } => ("user", id.clone()),
        };
        self.events.iter().map(|pulled| pulled.tenant.iter().map(pair).collect()).collect()
    }

    fn __len__(&self) -> usize {
        self.events.len()
    }

    // Without this, no events would make it false, even with items in the quarantine.
    fn __bool__(&self) -> bool {
        !self.events.is_empty() || !self.quarantined.is_empty()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyList::new(py, self.events())?.try_iter()?.into_any())
    }

    fn __repr__(&self) -> String {
        let (events, items, skipped) = (self.events.len(), self.quarantined.len(), self.skipped);
        format!("<Decoded: {events} events, {items} quarantined, {skipped} skipped>")
    }
}

/// Decodes the body of a Stalwart webhook whose signature was verified.
///
/// Covers Stalwart 0.8.2 to 0.16. Never fails: a body that is not JSON, and an element that is no
/// event, is quarantined. Secrets are removed first.
///
/// Args:
///     body: The raw body.
///     source: The source's name: `"stalwart"`, or `"stalwart:eu2"` for an instance. Part of the
///         events' identity.
///     client_ip: The address that sent the request, for events without an address.
///     received_at: The time of receipt, which events without a usable time get; by default the
///         current time.
///
/// Returns:
///     The events and the quarantined items.
///
/// Examples:
///     >>> from dezky.ingest import decode_stalwart
///     >>> body = b'''{"events": [{"id": "7", "createdAt": "2026-08-17T10:00:00Z",
///     ...     "type": "auth.failed", "data": {"accountName": "ada@acme.example"}}]}'''
///     >>> [event] = decode_stalwart(body).events
///     >>> event.action, event.outcome, event.actor.email
///     ('stalwart.auth_failed', 'failure', 'ada@acme.example')
#[pyfunction]
#[pyo3(
    signature = (body, *, source = None, client_ip = None, received_at = None),
    text_signature = "(body, *, source='stalwart', client_ip=None, received_at=None)"
)]
pub(super) fn decode_stalwart(
    py: Python<'_>,
    body: &Bound<'_, PyAny>,
    source: Option<&Bound<'_, PyAny>>,
    client_ip: Option<&Bound<'_, PyAny>>,
    received_at: Option<&Bound<'_, PyAny>>,
) -> PyResult<Decoded> {
    let body = bytes(body, "body", "the raw body as bytes")?;
    let source = source_or(source, stalwart::SOURCE)?;
    let client_ip = client_ip.map(address).transpose()?;
    let received_at = time_or_now(received_at)?;
    Ok(py.detach(|| {
        let decoded = stalwart::decode(&source, &body, client_ip, received_at);
        Decoded {
            events: decoded.events,
            quarantined: decoded.quarantine,
            skipped: decoded.skipped,
        }
    }))
}

/// Decodes a page of Authentik's `GET /api/v3/events/events/`, or a JSON list of events.
///
/// An item that is not an event is quarantined without affecting the others. Secrets are removed first.
///
/// Args:
///     page: The raw response.
///     source: The source's name: `"authentik"`, or `"authentik:eu2"` for an instance.
///     received_at: The time of receipt of quarantined items; by default the current time.
///
/// Returns:
///     The events and the quarantined items, in the page's order.
///
/// Raises:
///     BodyInvalidError: It is neither a page nor a list.
///
/// Examples:
///     >>> from dezky.ingest import decode_authentik
///     >>> page = b'''[{"pk": "1", "created": "2026-08-17T10:00:00Z", "action": "login",
///     ...     "user": {"pk": 7, "email": "ada@acme.example"}}, "odd"]'''
///     >>> decoded = decode_authentik(page)
///     >>> decoded.events[0].action, decoded.quarantined[0].reason
///     ('authentik.login', 'not_an_object')
#[pyfunction]
#[pyo3(
    signature = (page, *, source = None, received_at = None),
    text_signature = "(page, *, source='authentik', received_at=None)"
)]
pub(super) fn decode_authentik(
    py: Python<'_>,
    page: &Bound<'_, PyAny>,
    source: Option<&Bound<'_, PyAny>>,
    received_at: Option<&Bound<'_, PyAny>>,
) -> PyResult<Decoded> {
    let page = bytes(page, "page", "the raw response as bytes")?;
    let source = source_or(source, authentik::SOURCE)?;
    let received_at = time_or_now(received_at)?;
    py.detach(|| read_page(&source, &page, received_at)).map_err(exception)
}

fn read_page(source: &str, page: &[u8], now: Timestamp) -> dezky::Result<Decoded> {
    let text = String::from_utf8_lossy(page);
    let items: Vec<&RawValue> = match Page::parse(&text) {
        Some(page) => page.items,
        None => serde_json::from_str(&text).map_err(|_| {
            let what = "page is neither a page of Authentik's events nor a JSON list of them";
            Error::new(ErrorKind::BodyInvalid, what)
        })?,
    };
    let mut decoded = Decoded { events: Vec::new(), quarantined: Vec::new(), skipped: 0 };
    for raw in items {
        match Item::read(raw).event {
            Ok(event) => decoded.events.push(authentik::map(source, event).into()),
            Err(odd) => {
                let item = authentik::malformed_item(source, odd, raw.get().len(), now);
                decoded.quarantined.push(item);
            }
        }
    }
    Ok(decoded)
}

/// Decodes lines of oCIS' audit log file.
///
/// Only the 28 changes of users, groups, spaces, shares, links and files become events. Known reads
/// are skipped and counted, everything else is quarantined. Secrets are removed first.
///
/// The events get the same external ids as from the server's tail of the file: they depend on the
/// file's first line, and on each line's offset and bytes.
///
/// Args:
///     lines: Bytes of the file, with any number of lines. A last line without a newline counts
///         too, so leave out one that is still being written.
///     source: The source's name: `"ocis"`, or `"ocis:eu2"` for an instance.
///     offset: The position of `lines` in the file, in bytes.
///     first_line: The file's first line, if `offset` is not 0.
///     received_at: The time of reading, for lines without a usable time before or in them; by
///         default the current time.
///     share_accepted: Whether to include `ocis.share_accepted`.
///     share_declined: Whether to include `ocis.share_declined`.
///     ocm_invites: Whether to include `ocis.ocm_invite_created`.
///     link_access_failed: Whether to include `ocis.link_access_failed`.
///
/// Returns:
///     The events and the quarantined items.
///
/// Examples:
///     >>> from dezky.ingest import decode_ocis
///     >>> line = b'{"Action": "file_create", "Time": "2026-08-17T10:00:00Z", "User": "u-7"}\n'
///     >>> decode_ocis(line + b'oops').events[0].action
///     'ocis.file_uploaded'
#[pyfunction]
#[pyo3(signature = (
    lines, *, source = None, offset = None, first_line = None, received_at = None,
    share_accepted = None, share_declined = None, ocm_invites = None, link_access_failed = None,
), text_signature = "(lines, *, source='ocis', offset=0, first_line=None, received_at=None, \
    share_accepted=False, share_declined=False, ocm_invites=False, link_access_failed=False)")]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(super) fn decode_ocis(
    py: Python<'_>,
    lines: &Bound<'_, PyAny>,
    source: Option<&Bound<'_, PyAny>>,
    offset: Option<&Bound<'_, PyAny>>,
    first_line: Option<&Bound<'_, PyAny>>,
    received_at: Option<&Bound<'_, PyAny>>,
    share_accepted: Option<&Bound<'_, PyAny>>,
    share_declined: Option<&Bound<'_, PyAny>>,
    ocm_invites: Option<&Bound<'_, PyAny>>,
    link_access_failed: Option<&Bound<'_, PyAny>>,
) -> PyResult<Decoded> {
    let lines = bytes(lines, "lines", "lines of the file as bytes")?;
    let source = source_or(source, ocis::SYSTEM)?;
    let offset = offset.map_or(Ok(0), |offset| whole(offset, "offset", 0, 1 << 62))?;
    let first = first_line.map(|line| bytes(line, "first_line", "bytes")).transpose()?;
    if offset > 0 && first.is_none() {
        return Err(value_error(
            "first_line",
            "is needed when offset is not 0: it is part of the lines' identity",
        ));
    }
    let received_at = time_or_now(received_at)?;
    let is_set =
        |value: Option<&Bound<'_, PyAny>>, name| value.map_or(Ok(false), |v| flag(v, name));
    let options = OcisOptions {
        share_accepted: is_set(share_accepted, "share_accepted")?,
        share_declined: is_set(share_declined, "share_declined")?,
        ocm_invites: is_set(ocm_invites, "ocm_invites")?,
        link_access_failed: is_set(link_access_failed, "link_access_failed")?,
    };
    Ok(py.detach(|| {
        let generation = tail::generation(first.as_deref().unwrap_or(&lines));
        let context =
            LineContext { source: &source, options, generation: &generation, now: received_at };
        read_lines(context, offset, &lines)
    }))
}

fn read_lines(context: LineContext<'_>, mut offset: u64, lines: &[u8]) -> Decoded {
    let mut decoded = Decoded { events: Vec::new(), quarantined: Vec::new(), skipped: 0 };
    let mut take = |line| match line {
        DecodedLine::Event(event) => decoded.events.push(*event),
        DecodedLine::Quarantine(item) => decoded.quarantined.push(*item),
        DecodedLine::Skipped => decoded.skipped += 1,
    };
    let mut last_time = None;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(bare) => ocis::decode_line(context, offset, bare, &mut last_time, &mut take),
            None => ocis::decode_unterminated(context, offset, line, &mut last_time, &mut take),
        }
        offset += line.len() as u64;
    }
    decoded
}

/// The action of a Stalwart event type, in any spelling.
///
/// Args:
///     type: The type, such as `"auth.failed"`.
///     data: The event's data, which decides for a few types.
///
/// Returns:
///     The action, or `None` if the type has no letter or digit.
///
/// Examples:
///     >>> from dezky.ingest import stalwart_action
///     >>> stalwart_action("auth.failed")
///     'stalwart.auth_failed'
///     >>> stalwart_action("spam.classify", {"result": "reject"})
///     'stalwart.spam_detected'
#[pyfunction]
#[pyo3(signature = (r#type, data = None))]
pub(super) fn stalwart_action(
    r#type: &Bound<'_, PyAny>,
    data: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<String>> {
    let kind = text(r#type, "type")?;
    let data = data.map_or_else(|| Ok("{}".to_owned()), |data| json(data, "data"))?;
    Ok(stalwart::action(&kind, &data))
}

/// The action of an Authentik event, in any spelling.
///
/// Examples:
///     >>> from dezky.ingest import authentik_action
///     >>> authentik_action("login_failed"), authentik_action("password_set")
///     ('authentik.login_failed', 'authentik.password_changed')
#[pyfunction]
pub(super) fn authentik_action(action: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(authentik::action(&text(action, "action")?))
}

/// The action of an oCIS event: of an `Action` of a line, or of a Go type, in any spelling.
///
/// Args:
///     name: The line's `Action`, such as `"file_create"`, or a type such as `"FileUploaded"`.
///     share_type: The line's `ShareType`: `"user"`, `"group"` or `"link"`.
///     has_share_owner: Whether the line has a `ShareOwner`.
///     has_share_with: Whether the line has a `ShareWith`.
///     success: The line's `Success`, if it has one.
///
/// Returns:
///     The action, also of an event that is only included on request; `None` for reads, logins and
///     unknown names, which `ocis_class` tells apart.
///
/// Examples:
///     >>> from dezky.ingest import ocis_action
///     >>> ocis_action("file_create"), ocis_action("file_shared", share_type="link")
///     ('ocis.file_uploaded', 'ocis.link_created')
///     >>> ocis_action("file_read")
#[pyfunction]
#[pyo3(
    signature = (
        name, *, share_type = None, has_share_owner = None, has_share_with = None, success = None
    ),
    text_signature = "(name, *, share_type='', has_share_owner=False, has_share_with=False, \
        success=None)"
)]
pub(super) fn ocis_action(
    name: &Bound<'_, PyAny>,
    share_type: Option<&Bound<'_, PyAny>>,
    has_share_owner: Option<&Bound<'_, PyAny>>,
    has_share_with: Option<&Bound<'_, PyAny>>,
    success: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<String>> {
    let class = classify(name, share_type, has_share_owner, has_share_with, success)?;
    let verb = match class {
        Class::Mutation(verb) => Some(verb),
        Class::Optional(optional) => Some(optional.verb()),
        Class::Read | Class::LinkRead | Class::Login | Class::Unknown => None,
    };
    Ok(verb.map(|verb| format!("{}.{verb}", ocis::SYSTEM)))
}

/// The class of an oCIS event, by the same arguments as `ocis_action`.
///
/// Returns:
///     `"mutation"`, `"optional"` (included only on request), `"read"`, `"login"` or `"unknown"`.
///
/// Examples:
///     >>> from dezky.ingest import ocis_class
///     >>> ocis_class("file_create"), ocis_class("file_read"), ocis_class("new_in_ocis_9")
///     ('mutation', 'read', 'unknown')
#[pyfunction]
#[pyo3(
    signature = (
        name, *, share_type = None, has_share_owner = None, has_share_with = None, success = None
    ),
    text_signature = "(name, *, share_type='', has_share_owner=False, has_share_with=False, \
        success=None)"
)]
pub(super) fn ocis_class(
    name: &Bound<'_, PyAny>,
    share_type: Option<&Bound<'_, PyAny>>,
    has_share_owner: Option<&Bound<'_, PyAny>>,
    has_share_with: Option<&Bound<'_, PyAny>>,
    success: Option<&Bound<'_, PyAny>>,
) -> PyResult<&'static str> {
    Ok(match classify(name, share_type, has_share_owner, has_share_with, success)? {
        Class::Mutation(_) => "mutation",
        Class::Optional(_) => "optional",
        Class::Read | Class::LinkRead => "read",
        Class::Login => "login",
        Class::Unknown => "unknown",
    })
}

fn classify(
    name: &Bound<'_, PyAny>,
    share_type: Option<&Bound<'_, PyAny>>,
    has_share_owner: Option<&Bound<'_, PyAny>>,
    has_share_with: Option<&Bound<'_, PyAny>>,
    success: Option<&Bound<'_, PyAny>>,
) -> PyResult<Class> {
    let name = text(name, "name")?;
    let share_type = share_type.map_or_else(|| Ok(String::new()), |s| text(s, "share_type"))?;
    let context = ActionContext {
        share_type: &share_type,
        has_share_owner: has_share_owner.map_or(Ok(false), |v| flag(v, "has_share_owner"))?,
        has_share_with: has_share_with.map_or(Ok(false), |v| flag(v, "has_share_with"))?,
        success: success.map(|value| flag(value, "success")).transpose()?,
    };
    Ok(match classify_action(&name, context) {
        Class::Unknown => classify_type(&name, ""),
        class => class,
    })
}

fn source_or(source: Option<&Bound<'_, PyAny>>, default: &str) -> PyResult<String> {
    source.map_or_else(|| Ok(default.to_owned()), |source| source_name(source, "source"))
}

fn time_or_now(time: Option<&Bound<'_, PyAny>>) -> PyResult<Timestamp> {
    time.map_or_else(|| Ok(TokioRuntime.now()), |time| timestamp(time, "received_at"))
}

/// An address, as a `str` or an object of `ipaddress`.
fn address(value: &Bound<'_, PyAny>) -> PyResult<IpAddr> {
    let is_object = value.hasattr("packed")?;
    let written = if is_object { value.str()?.into_any() } else { value.clone() };
    let written = text(&written, "client_ip")?;
    dezky::core::written_address(&written)
        .ok_or_else(|| value_error("client_ip", "must be an IP address, such as 203.0.113.7"))
}
