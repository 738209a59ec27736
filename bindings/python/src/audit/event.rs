//! Events: new ones, made in Python, and stored ones, read from a log.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use dezky::core::{AuditEvent, Metadata, NewMetadata, StoredEvent};
use dezky::{ActorType, Outcome};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMapping, PyString, PyTuple};

use super::arrow::schema;
use super::pickle::{Reduced, annotations, reduced};
use crate::convert::{datetime, json_object, loads, text, timestamp, type_error, value_error};
use crate::error::coded;

/// The actor of an event: the type, and the id, e-mail address and IP address if known.
///
/// Args:
///     type: `"user"`, `"operator"`, `"service"`, `"system"` or `"anonymous"`.
///     id: The actor's id in the reporting system.
///     email: The actor's e-mail address.
///     ip: The address that the action came from, as text or from `ipaddress`.
///
/// Raises:
///     TypeError: An argument has the wrong type.
///     ValueError: `type` is another word.
///
/// Examples:
///     >>> import dezky
///     >>> dezky.Actor.user("u-7", ip="203.0.113.7")
///     Actor('user', 'u-7', ip='203.0.113.7')
#[pyclass(frozen, eq, module = "dezky", name = "Actor")]
#[derive(PartialEq)]
pub(crate) struct Actor(pub(crate) dezky::Actor);

impl Actor {
    fn make(
        kind: ActorType,
        id: Option<&Bound<'_, PyAny>>,
        email: Option<&Bound<'_, PyAny>>,
        ip: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Ok(Self(dezky::Actor {
            id: id.map(|id| text(id, "id")).transpose()?,
            email: email.map(|email| text(email, "email")).transpose()?,
            ip: ip.map(|ip| address(ip, "ip")).transpose()?,
            ..dezky::Actor::of(kind)
        }))
    }
}

#[pymethods]
impl Actor {
    #[new]
    #[pyo3(signature = (r#type, id=None, *, email=None, ip=None))]
    fn new(
        r#type: &Bound<'_, PyAny>,
        id: Option<&Bound<'_, PyAny>>,
        email: Option<&Bound<'_, PyAny>>,
        ip: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Self::make(one_of(r#type, "type", ActorType::ALL, ActorType::as_str)?, id, email, ip)
    }

    /// Makes a person who uses the platform or a connected system.
    #[staticmethod]
    #[pyo3(signature = (id, *, email=None, ip=None))]
    fn user(
        id: &Bound<'_, PyAny>,
        email: Option<&Bound<'_, PyAny>>,
        ip: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Self::make(ActorType::User, Some(id), email, ip)
    }

    /// Makes a person who runs the platform.
    #[staticmethod]
    #[pyo3(signature = (id, *, email=None, ip=None))]
    fn operator(
        id: &Bound<'_, PyAny>,
        email: Option<&Bound<'_, PyAny>>,
        ip: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Self::make(ActorType::Operator, Some(id), email, ip)
    }

    /// Makes a program with its own identity.
    #[staticmethod]
    #[pyo3(signature = (id, *, email=None, ip=None))]
    fn service(
        id: &Bound<'_, PyAny>,
        email: Option<&Bound<'_, PyAny>>,
        ip: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Self::make(ActorType::Service, Some(id), email, ip)
    }

    /// Makes the system itself.
    #[staticmethod]
    fn system() -> Self {
        Self(dezky::Actor::system())
    }

    /// Makes somebody unidentified.
    #[staticmethod]
    #[pyo3(signature = (*, ip=None))]
    fn anonymous(ip: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        Self::make(ActorType::Anonymous, None, None, ip)
    }

    /// The kind of actor.
    #[getter]
    fn r#type(&self) -> &'static str {
        self.0.kind.as_str()
    }

    /// The actor's id in the reporting system.
    #[getter]
    fn id(&self) -> Option<&str> {
        self.0.id.as_deref()
    }

    /// The actor's e-mail address.
    #[getter]
    fn email(&self) -> Option<&str> {
        self.0.email.as_deref()
    }

    /// The address that the action came from. Events keep its canonical form.
    #[getter]
    fn ip(&self) -> Option<&str> {
        self.0.ip.as_deref()
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let dezky::Actor { kind, id, email, ip } = &self.0;
        (kind, id, email, ip).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut shown = Shown::new(py, "Actor");
        shown.value(self.type_name())?;
        if let Some(id) = &self.0.id {
            shown.value(id)?;
        }
        shown.named("email", self.0.email.as_deref())?;
        shown.named("ip", self.0.ip.as_deref())?;
        Ok(shown.end())
    }

    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let named = PyDict::new(py);
        named.set_item("email", self.email())?;
        named.set_item("ip", self.ip())?;
        Ok(((self.r#type(), self.id()).into_pyobject(py)?, named))
    }
}

impl Actor {
    fn type_name(&self) -> &'static str {
        self.0.kind.as_str()
    }
}

/// An event to be appended.
///
/// Args:
///     action: The verb: lower-case words joined by dots, such as `tenant.suspended`.
///     actor: Who acted.
///     at: When it happened, as a `datetime` with a time zone; now if absent.
///     outcome: `"success"`, `"failure"` or `"denied"`.
///     resource_type: The type of the affected resource.
///     resource_id: Its id.
///     resource_name: Its name.
///     tenant_slug: The affected tenant.
///     partner_slug: The affected partner.
///     source: The reporting system.
///     external_id: The event's id in the reporting system. The log has at most one event of a
///         source with the same one.
///     metadata: The remaining data, with what JSON can express.
///
/// Raises:
///     TypeError: An argument has the wrong type.
///     ValueError: An argument is a value of the right type that no event can have.
///
/// Examples:
///     >>> import dezky
///     >>> dezky.NewEvent("tenant.suspended", actor=dezky.Actor.system(), tenant_slug="acme")
///     NewEvent('tenant.suspended', actor=Actor('system'), tenant_slug='acme')
#[pyclass(frozen, eq, module = "dezky", name = "NewEvent")]
#[derive(PartialEq)]
pub(crate) struct NewEvent(pub(crate) dezky::NewEvent);

#[pymethods]
impl NewEvent {
    #[new]
    #[pyo3(
        signature = (action, *, actor, **fields),
        text_signature = "(action, *, actor, at=None, outcome='success', resource_type=None, \
            resource_id=None, resource_name=None, tenant_slug=None, partner_slug=None, \
            source='platform-api', external_id=None, metadata=None)"
    )]
    fn new<'py>(
        action: Bound<'py, PyAny>,
        actor: Bound<'py, PyAny>,
        fields: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Self> {
        Fields::of_arguments(action, actor, fields)?.event("").map(Self)
    }

    /// The verb.
    #[getter]
    fn action(&self) -> &str {
        &self.0.action
    }

    /// Who acted.
    #[getter]
    fn actor(&self) -> Actor {
        Actor(self.0.actor.clone())
    }

    /// When it happened; `None` for the time of the append.
    #[getter]
    fn at<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.at.map(|at| datetime(py, at)).transpose()
    }

    /// The outcome.
    #[getter]
    fn outcome(&self) -> &'static str {
        self.0.outcome.as_str()
    }

    /// The type of the affected resource.
    #[getter]
    fn resource_type(&self) -> Option<&str> {
        self.0.resource_type.as_deref()
    }

    /// The resource's id.
    #[getter]
    fn resource_id(&self) -> Option<&str> {
        self.0.resource_id.as_deref()
    }

    /// The resource's name.
    #[getter]
    fn resource_name(&self) -> Option<&str> {
        self.0.resource_name.as_deref()
    }

    /// The affected tenant.
    #[getter]
    fn tenant_slug(&self) -> Option<&str> {
        self.0.tenant_slug.as_deref()
    }

    /// The affected partner.
    #[getter]
    fn partner_slug(&self) -> Option<&str> {
        self.0.partner_slug.as_deref()
    }

    /// The reporting system.
    #[getter]
    fn source(&self) -> &str {
        &self.0.source
    }

    /// The event's id in the reporting system.
    #[getter]
    fn external_id(&self) -> Option<&str> {
        self.0.external_id.as_deref()
    }

    /// The remaining data, as a new dictionary.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        loads(py, self.0.metadata.source().unwrap_or("{}"))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let event = &self.0;
        let mut shown = Shown::new(py, "NewEvent");
        shown.value(&event.action)?;
        shown.raw("actor", &self.actor().__repr__(py)?);
        shown.named("at", event.at.map(|at| at.to_string()).as_deref())?;
        shown.named("outcome", (event.outcome != Outcome::Success).then(|| self.outcome()))?;
        for (name, value) in [
            ("resource_type", &event.resource_type),
            ("resource_id", &event.resource_id),
            ("resource_name", &event.resource_name),
            ("tenant_slug", &event.tenant_slug),
            ("partner_slug", &event.partner_slug),
        ] {
            shown.named(name, value.as_deref())?;
        }
        let is_ours = event.source == dezky::core::PLATFORM_SOURCE;
        shown.named("source", (!is_ours).then_some(&event.source))?;
        shown.named("external_id", event.external_id.as_deref())?;
        if event.metadata.source().is_some() {
            shown.raw("metadata", &self.metadata(py)?.repr()?.to_string());
        }
        Ok(shown.end())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py>> {
        let py = slf.py();
        let fields = PyDict::new(py);
        for name in FIELDS.into_iter().filter(|name| *name != "metadata") {
            fields.set_item(name, slf.getattr(name)?)?;
        }
        let event = &slf.get().0;
        let id = event.id.map(|id| id.to_string());
        let annotations = annotations(&event.metadata)?;
        reduced(py, "NewEvent", (fields, id, event.metadata.source(), annotations))
    }
}

/// The keyword names of a new event.
pub(crate) const FIELDS: [&str; 12] = [
    "action",
    "actor",
    "at",
    "outcome",
    "resource_type",
    "resource_id",
    "resource_name",
    "tenant_slug",
    "partner_slug",
    "source",
    "external_id",
    "metadata",
];

/// The fields of a new event, as Python values in the order of [`FIELDS`].
#[derive(Default)]
pub(crate) struct Fields<'py>([Option<Bound<'py, PyAny>>; FIELDS.len()]);

impl<'py> Fields<'py> {
    /// The fields of a call with keywords.
    pub(crate) fn of_arguments(
        action: Bound<'py, PyAny>,
        actor: Bound<'py, PyAny>,
        others: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Self> {
        let mut fields = Self::default();
        fields.0[0] = Some(action);
        fields.0[1] = Some(actor);
        if let Some(others) = others {
            for item in others.items() {
                let (key, value) = item.extract()?;
                fields.set(&key, value, "")?;
            }
        }
        Ok(fields)
    }

    /// The fields of a mapping.
    pub(super) fn of_mapping(mapping: &Bound<'py, PyMapping>, name: &str) -> PyResult<Self> {
        let mut fields = Self::default();
        for item in mapping.items()? {
            let (key, value) = item.extract()?;
            fields.set(&key, value, name)?;
        }
        Ok(fields)
    }

    fn set(
        &mut self,
        key: &Bound<'py, PyAny>,
        value: Bound<'py, PyAny>,
        name: &str,
    ) -> PyResult<()> {
        let known = match key.cast::<PyString>() {
            Ok(key) => {
                let key = key.to_cow()?;
                FIELDS.iter().position(|field| *field == key)
            }
            Err(_) => None,
        };
        let Some(known) = known else {
            let whose = if name.is_empty() { "an event" } else { name };
            return Err(PyTypeError::new_err(format!(
                "{whose} has no field {}: the fields are {}",
                shown(key),
                FIELDS.join(", ")
            )));
        };
        self.0[known] = Some(value);
        Ok(())
    }

    /// Reads a field that is present and not `None`.
    fn read<T>(
        &self,
        prefix: &str,
        field: &str,
        read: impl FnOnce(&Bound<'py, PyAny>, &str) -> PyResult<T>,
    ) -> PyResult<Option<T>> {
        let value =
            FIELDS.iter().position(|name| *name == field).and_then(|at| self.0[at].as_ref());
        let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
        if prefix.is_empty() {
            return read(value, field).map(Some);
        }
        read(value, &format!("{prefix}.{field}")).map(Some)
    }

    /// The event. `prefix` names it in errors, unless it is empty.
    pub(crate) fn event(&self, prefix: &str) -> PyResult<dezky::NewEvent> {
        let missing = |field: &str| {
            let whose = if prefix.is_empty() { "the event" } else { prefix };
            PyTypeError::new_err(format!("{whose} has no {field}, which every event needs"))
        };
        let optional = |field| self.read(prefix, field, text);
        let action = optional("action")?.ok_or_else(|| missing("action"))?;
        let actor = self.read(prefix, "actor", actor)?.ok_or_else(|| missing("actor"))?;
        let mut event = dezky::NewEvent::new(action, actor);
        event.at = self.read(prefix, "at", timestamp)?;
        if let Some(outcome) = self.read(prefix, "outcome", outcome)? {
            event.outcome = outcome;
        }
        event.resource_type = optional("resource_type")?;
        event.resource_id = optional("resource_id")?;
        event.resource_name = optional("resource_name")?;
        event.tenant_slug = optional("tenant_slug")?;
        event.partner_slug = optional("partner_slug")?;
        if let Some(source) = optional("source")? {
            event.source = source;
        }
        event.external_id = optional("external_id")?;
        if let Some(metadata) = self.read(prefix, "metadata", json_object)? {
            event.metadata = NewMetadata::from_source(metadata);
        }
        Ok(event)
    }
}

fn actor(value: &Bound<'_, PyAny>, name: &str) -> PyResult<dezky::Actor> {
    match value.cast::<Actor>() {
        Ok(actor) => Ok(actor.get().0.clone()),
        Err(_) => Err(type_error(name, "an Actor, such as Actor.system()", value)),
    }
}

pub(crate) fn outcome(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Outcome> {
    one_of(value, name, Outcome::ALL, Outcome::as_str)
}

/// An address as text, or from `ipaddress`.
fn address(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    static V4: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static V6: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    if value.is_instance_of::<PyString>() {
        return text(value, name);
    }
    if value.is_instance(V4.import(py, "ipaddress", "IPv4Address")?)?
        || value.is_instance(V6.import(py, "ipaddress", "IPv6Address")?)?
    {
        return text(value.str()?.as_any(), name);
    }
    Err(type_error(name, "a str or an address of the module ipaddress", value))
}

/// One of a list of words.
fn one_of<T: Copy>(
    value: &Bound<'_, PyAny>,
    name: &str,
    all: &[T],
    word: impl Fn(T) -> &'static str,
) -> PyResult<T> {
    let given = text(value, name)?;
    all.iter().copied().find(|known| word(*known) == given).ok_or_else(|| {
        let words: Vec<_> = all.iter().map(|known| format!("\"{}\"", word(*known))).collect();
        value_error(name, format_args!("must be {}", words.join(" or ")))
    })
}

/// A new event from a `NewEvent` or a mapping with its keyword names.
///
/// `name` names it in errors.
pub(crate) fn new_event(value: &Bound<'_, PyAny>, name: &str) -> PyResult<dezky::NewEvent> {
    if let Ok(event) = value.cast::<NewEvent>() {
        return Ok(event.get().0.clone());
    }
    match value.cast::<PyMapping>() {
        Ok(mapping) => Fields::of_mapping(mapping, name)?.event(name),
        Err(_) => Err(type_error(name, "a NewEvent or a mapping with its fields", value)),
    }
}

/// An event of the log, at its position. Logs make them; programs make a `NewEvent`.
///
/// Events are equal if their ids are.
#[pyclass(frozen, module = "dezky", name = "Event")]
pub(crate) struct Event(pub(crate) StoredEvent);

#[pymethods]
impl Event {
    /// The event's id, a UUID.
    #[getter]
    fn id(&self) -> String {
        self.0.event.id.to_string()
    }

    /// The position in the log, from 0 and without gaps.
    #[getter]
    fn seq(&self) -> u64 {
        self.0.seq
    }

    /// When it happened, in UTC.
    #[getter]
    fn at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        datetime(py, self.0.event.at)
    }

    /// When the log took it, in UTC.
    #[getter]
    fn received_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        datetime(py, self.0.event.received_at)
    }

    /// The kind of actor.
    #[getter]
    fn actor_type(&self) -> &'static str {
        self.0.event.actor_type.as_str()
    }

    /// The actor's id in the reporting system.
    #[getter]
    fn actor_id(&self) -> Option<&str> {
        self.0.event.actor_id.as_deref()
    }

    /// The actor's e-mail address.
    #[getter]
    fn actor_email(&self) -> Option<&str> {
        self.0.event.actor_email.as_deref()
    }

    /// The address that the action came from, in canonical form.
    #[getter]
    fn actor_ip(&self) -> Option<&str> {
        self.0.event.actor_ip.as_deref()
    }

    /// The verb.
    #[getter]
    fn action(&self) -> &str {
        &self.0.event.action
    }

    /// The outcome: `"success"`, `"failure"` or `"denied"`.
    #[getter]
    fn outcome(&self) -> &'static str {
        self.0.event.outcome.as_str()
    }

    /// The type of the affected resource.
    #[getter]
    fn resource_type(&self) -> Option<&str> {
        self.0.event.resource_type.as_deref()
    }

    /// The resource's id.
    #[getter]
    fn resource_id(&self) -> Option<&str> {
        self.0.event.resource_id.as_deref()
    }

    /// The resource's name.
    #[getter]
    fn resource_name(&self) -> Option<&str> {
        self.0.event.resource_name.as_deref()
    }

    /// The affected tenant.
    #[getter]
    fn tenant_slug(&self) -> Option<&str> {
        self.0.event.tenant_slug.as_deref()
    }

    /// The affected partner.
    #[getter]
    fn partner_slug(&self) -> Option<&str> {
        self.0.event.partner_slug.as_deref()
    }

    /// The reporting system.
    #[getter]
    fn source(&self) -> &str {
        &self.0.event.source
    }

    /// The event's id in the reporting system.
    #[getter]
    fn external_id(&self) -> Option<&str> {
        self.0.event.external_id.as_deref()
    }

    /// The remaining data as the log keeps it: canonical JSON.
    #[getter]
    fn metadata_json(&self) -> &str {
        self.0.event.metadata.as_str()
    }

    /// Who acted.
    #[getter]
    fn actor(&self) -> Actor {
        let event = &self.0.event;
        Actor(dezky::Actor {
            kind: event.actor_type,
            id: event.actor_id.clone(),
            email: event.actor_email.clone(),
            ip: event.actor_ip.clone(),
        })
    }

    /// The remaining data, as a new dictionary.
    ///
    /// Raises:
    ///     StoreCorruptError: The row was altered: the text is not JSON. It is in
    ///         `metadata_json`.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let metadata: &Metadata = &self.0.event.metadata;
        match loads(py, metadata.as_str()) {
            Ok(value) if value.is_instance_of::<PyDict>() => Ok(value),
            Err(error) if !error.is_instance_of::<PyValueError>(py) => Err(error),
            _ => Err(coded(
                "store_corrupt",
                &format!("the metadata at seq {} is not a JSON object: verify the log", self.0.seq),
            )),
        }
    }

    /// The hash of the previous event; 32 zero bytes for the first one.
    #[getter]
    fn prev_hash(&self) -> &[u8] {
        &self.0.prev_hash
    }

    /// The event's hash in the chain.
    #[getter]
    fn hash(&self) -> &[u8] {
        &self.0.hash
    }

    /// The names of the fields whose values were erased.
    #[getter]
    fn erased<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.erased.iter().map(|field| attribute(*field)))
    }

    /// Returns all attributes, `actor` excepted, as a dictionary.
    fn to_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(slf.py());
        for column in schema().fields() {
            dict.set_item(column.name(), slf.getattr(column.name())?)?;
        }
        Ok(dict)
    }

    /// Returns the JSON that the server sends for this event: names in camelCase, times and hashes
    /// as text, absent fields left out.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(|error| coded("internal", &error.to_string()))
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> Option<bool> {
        let other = other.cast::<Self>().ok()?;
        Some(self.0.event.id == other.get().0.event.id)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.event.id.hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let event = &self.0.event;
        let mut shown = Shown::new(py, "Event");
        shown.raw("seq", &self.0.seq.to_string());
        shown.named("at", Some(&event.at.to_string()))?;
        shown.named("action", Some(&event.action))?;
        shown.raw("actor", &self.actor().__repr__(py)?);
        shown.named("outcome", (event.outcome != Outcome::Success).then(|| self.outcome()))?;
        for (name, value) in [
            ("resource_type", &event.resource_type),
            ("resource_id", &event.resource_id),
            ("tenant_slug", &event.tenant_slug),
            ("partner_slug", &event.partner_slug),
        ] {
            shown.named(name, value.as_deref())?;
        }
        let is_ours = event.source == dezky::core::PLATFORM_SOURCE;
        shown.named("source", (!is_ours).then_some(&event.source))?;
        Ok(shown.end())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        // An altered row's metadata need not be JSON: it goes as it is.
        let event = AuditEvent { metadata: Metadata::default(), ..self.0.event.clone() };
        let event =
            serde_json::to_string(&event).map_err(|error| coded("internal", &error.to_string()))?;
        let hashes = (self.prev_hash(), self.hash());
        reduced(py, "Event", (self.0.seq, event, self.metadata_json(), self.erased(py)?, hashes))
    }
}

/// A field's name in Python.
pub(crate) fn attribute(field: dezky::core::Field) -> String {
    let mut name = String::new();
    for letter in field.name().chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// The `repr` of an object, part by part.
struct Shown<'py> {
    py: Python<'py>,
    text: String,
    parts: usize,
}

impl<'py> Shown<'py> {
    fn new(py: Python<'py>, class: &str) -> Self {
        Self { py, text: format!("{class}("), parts: 0 }
    }

    fn separate(&mut self) {
        if self.parts > 0 {
            self.text.push_str(", ");
        }
        self.parts += 1;
    }

    fn value(&mut self, value: &str) -> PyResult<()> {
        self.separate();
        let shown = PyString::new(self.py, value).repr()?;
        self.text.push_str(&shown.to_cow()?);
        Ok(())
    }

    fn named(&mut self, name: &str, value: Option<&str>) -> PyResult<()> {
        let Some(value) = value else { return Ok(()) };
        let shown = PyString::new(self.py, value).repr()?;
        self.raw(name, &shown.to_cow()?);
        Ok(())
    }

    fn raw(&mut self, name: &str, value: &str) {
        self.separate();
        let _ = write!(self.text, "{name}={value}");
    }

    fn end(mut self) -> String {
        self.text.push(')');
        self.text
    }
}

/// The `repr` of an argument, if it has one.
fn shown(value: &Bound<'_, PyAny>) -> String {
    value.repr().map_or_else(|_| "?".to_owned(), |shown| shown.to_string())
}
