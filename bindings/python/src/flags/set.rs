//! Compiled flags.

#![expect(clippy::doc_link_with_quotes, reason = "examples in Python")]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use dezky::Error;
use dezky::flags::live::{LiveSet, MAX_FILE_BYTES};
use dezky::flags::store::Snapshot;
use dezky::flags::{Bits, FlagFile, FlagHandle, FlagSet as CoreSet, Reason, explain};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyList, PyString, PyTuple};

use super::column::{self, BooleanColumn};
use super::context::{Asked, Values};
use super::decision::{Decision, Explanation};
use super::resolve::{self, Resolved};
use crate::convert::{flag, json, json_object, text_of, type_error, value_error};
use crate::error::exception;

/// The number of flags from which on deciding all of them takes long enough to let other threads
/// run meanwhile.
const MANY: usize = 1_000;

/// Flags as their source gives them, and compiled.
enum Source {
    Fixed(Box<(CoreSet, Snapshot)>),
    Live(Arc<LiveSet>),
}

/// Compiled flags, with their keys as Python knows them.
pub(crate) struct Compiled {
    source: Source,
    names: PyOnceLock<Names>,
}

struct Names {
    /// By the flag's place.
    keys: Vec<Py<PyString>>,
    /// Every flag off. Copied for each answer, and never handed out.
    all_off: Py<PyDict>,
}

impl Compiled {
    fn fixed(snapshot: Snapshot) -> Self {
        let set = CoreSet::of(&snapshot);
        Self { source: Source::Fixed(Box::new((set, snapshot))), names: PyOnceLock::new() }
    }

    pub(crate) fn live(set: Arc<LiveSet>) -> Self {
        Self { source: Source::Live(set), names: PyOnceLock::new() }
    }

    /// Whether these are the flags of `set`.
    pub(crate) fn is_of(&self, set: &Arc<LiveSet>) -> bool {
        matches!(&self.source, Source::Live(own) if Arc::ptr_eq(own, set))
    }

    pub(crate) fn set(&self) -> &CoreSet {
        match &self.source {
            Source::Fixed(fixed) => &fixed.0,
            Source::Live(live) => live.set(),
        }
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        match &self.source {
            Source::Fixed(fixed) => &fixed.1,
            Source::Live(live) => live.snapshot(),
        }
    }

    fn handle(&self, key: &str) -> Option<FlagHandle<'_>> {
        self.set().handle(key)
    }

    fn names(&self, py: Python<'_>) -> PyResult<&Names> {
        self.names.get_or_try_init(py, || {
            let keys: Vec<_> = self.set().keys().map(|key| PyString::intern(py, key)).collect();
            let all_off = PyDict::new(py);
            for key in &keys {
                all_off.set_item(key, false)?;
            }
            let keys = keys.into_iter().map(Bound::unbind).collect();
            Ok(Names { keys, all_off: all_off.unbind() })
        })
    }

    pub(crate) fn evaluate(&self, key: &Bound<'_, PyAny>, asked: &Asked<'_>) -> PyResult<Decision> {
        let key = text_of(key, "key")?;
        Ok(Decision::of(self.handle(key), &asked.context()))
    }

    pub(crate) fn evaluate_all<'py>(
        &self,
        py: Python<'py>,
        asked: &Asked<'py>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let names = self.names(py)?;
        let (set, context, mut values) = (self.set(), asked.context(), Bits::new());
        if set.len() < MANY {
            set.values_into(&context, &mut values);
        } else {
            py.detach(|| set.values_into(&context, &mut values));
        }
        let all = names.all_off.bind(py).copy()?;
        for (key, value) in names.keys.iter().zip(values.iter()) {
            if value {
                all.set_item(key, true)?;
            }
        }
        Ok(all)
    }

    pub(crate) fn evaluate_many(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        tenant_ids: &Bound<'_, PyAny>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<BooleanColumn> {
        let key = text_of(key, "key")?;
        let context = shared_context(axes)?;
        column::evaluate(py, self.handle(key), &context.borrowed(), tenant_ids)
    }

    pub(crate) fn explain(
        &self,
        key: &Bound<'_, PyAny>,
        asked: &Asked<'_>,
    ) -> PyResult<Explanation> {
        let key = text_of(key, "key")?;
        let flags = &self.snapshot().flags;
        let known = flags.binary_search_by(|flag| flag.key.as_str().cmp(key)).ok();
        let explained = match known {
            Some(at) => explain(&flags[at], &asked.context()),
            None if self.handle(key).is_some() => Reason::InvalidFlag.into(),
            None => Reason::UnknownFlag.into(),
        };
        Ok(Explanation::of(&explained))
    }
}

/// The context that the tenants of a column share.
fn shared_context(axes: Option<&Bound<'_, PyDict>>) -> PyResult<Values> {
    let mut values = Values::default();
    values.update("evaluate_many", axes)?;
    if values.tenant_id.is_some() {
        return Err(pyo3::exceptions::PyTypeError::new_err(
            "evaluate_many() got an unexpected keyword argument 'tenant_id'",
        ));
    }
    Ok(values)
}

/// Compiled flags, decided in this process without any I/O.
///
/// Immutable, and safe to use from any thread and in forked processes. Make one with
/// `from_json()`, or take those in use from `LiveFlags.current()`.
///
/// `len()` counts the flags, iterating yields their keys in order, and `in` asks for a key.
///
/// Examples:
///     >>> import dezky
///     >>> flags = dezky.FlagSet.from_json([
///     ...     {"key": "chat", "state": "on"},
///     ...     {"key": "portal", "state": "targeted", "scope": {"plans": ["pro"]}},
///     ... ])
///     >>> flags.evaluate_all(tenant_id="t-1", plan="pro")
///     {'chat': True, 'portal': True}
///     >>> flags.evaluate("portal", tenant_id="t-2", plan="free").reason
///     'scope_mismatch'
#[pyclass(frozen, module = "dezky")]
pub(crate) struct FlagSet(pub(crate) Arc<Compiled>);

#[pymethods]
impl FlagSet {
    /// Compiles the flags of a JSON text, a file or a list.
    ///
    /// The JSON is an export of a store (`dezky-server flags export`), `{"flags": [{"key": …}, …]}`,
    /// or the list alone. A definition has `key`, and optionally `description`, `state`, `pct`,
    /// `scope` and `options`; `history`, `version` and times of an export are ignored.
    ///
    /// Args:
    ///     source: The JSON text (a `str` that begins with `{` or `[`, or `bytes`), the path of a
    ///         file, or the flags as a list of dictionaries.
    ///     strict: Whether a flag that violates a bound is an error. If not, it is off, with the
    ///         reason `invalid_flag`, and listed in `invalid`.
    ///
    /// Raises:
    ///     FieldInvalidError: The text is not a flag file, or a flag violates a bound.
    ///     OSError: The file can't be read.
    ///     TypeError: The source is of another type.
    ///
    /// Examples:
    ///     >>> import dezky
    ///     >>> dezky.FlagSet.from_json('[{"key": "chat", "state": "on"}]')
    ///     FlagSet(1 flag, revision 0)
    #[staticmethod]
    #[pyo3(signature = (source, *, strict = None), text_signature = "(source, *, strict=True)")]
    fn from_json(
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        strict: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let strict = strict.map_or(Ok(true), |given| flag(given, "strict"))?;
        let (name, text) = source_text(py, source)?;
        let refused = |error: Error| exception(error.context(&name));
        let file = py.detach(|| FlagFile::from_json(&text)).map_err(refused)?;
        if strict {
            file.clone().all().map_err(refused)?;
        }
        Ok(Self(Arc::new(py.detach(|| Compiled::fixed(file.snapshot())))))
    }

    /// Decides a flag.
    ///
    /// Args:
    ///     key: The flag's key. An unknown key is a decision too: off, with the reason
    ///         `unknown_flag`.
    ///     context: The subject: a `Context` or a mapping with its members. Keyword arguments
    ///         override it or stand alone; the tenant's id must be in either.
    ///
    /// Raises:
    ///     TypeError: The tenant's id is missing, or an argument has another type.
    ///     ValueError: The mapping has an unknown member.
    #[pyo3(
        signature = (key, context = None, **axes),
        text_signature = "($self, key, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate(
        &self,
        key: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Decision> {
        self.0.evaluate(key, &Asked::read("evaluate", context, axes)?)
    }

    /// Decides all flags at once: much faster than one by one.
    ///
    /// Args:
    ///     context: As for `evaluate()`.
    ///
    /// Returns:
    ///     Whether each flag is on, by key, in the order of the keys.
    ///
    /// Raises:
    ///     TypeError: The tenant's id is missing, or an argument has another type.
    ///     ValueError: The mapping has an unknown member.
    #[pyo3(
        signature = (context = None, **axes),
        text_signature = "($self, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate_all<'py>(
        &self,
        py: Python<'py>,
        context: Option<&Bound<'py, PyAny>>,
        axes: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.0.evaluate_all(py, &Asked::read("evaluate_all", context, axes)?)
    }

    /// Decides one flag for a column of tenants, on all processors.
    ///
    /// The tenants share everything but the id. Fastest for Arrow columns, which are read in
    /// place: pyarrow and polars arrays and series, pandas series, and any object with
    /// `__arrow_c_array__` or `__arrow_c_stream__`, of the types string, large string, string view
    /// and dictionaries of them, in one piece or in chunks.
    ///
    /// Args:
    ///     key: The flag's key. An unknown flag is off for every tenant.
    ///     tenant_ids: The tenants' ids: an Arrow column, a one-dimensional NumPy array, or an
    ///         iterable of `str`. A missing id (null, `None`, NaN or `pandas.NA`) gives a
    ///         missing value, whatever the flag.
    ///
    /// Returns:
    ///     A column with a value for each id.
    ///
    /// Raises:
    ///     TypeError: The column is of another type, or holds something else than text.
    ///     ValueError: The array has several dimensions, or a text has a lone surrogate.
    ///
    /// Examples:
    ///     >>> import dezky
    ///     >>> flags = dezky.FlagSet.from_json([{"key": "chat", "state": "rollout", "pct": 50}])
    ///     >>> flags.evaluate_many("chat", ["t-1", None, "t-3"]).to_list()
    ///     [True, None, True]
    #[pyo3(
        signature = (key, tenant_ids, **axes),
        text_signature = "($self, key, tenant_ids, *, tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn evaluate_many(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        tenant_ids: &Bound<'_, PyAny>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<BooleanColumn> {
        self.0.evaluate_many(py, key, tenant_ids, axes)
    }

    /// Explains the decision on a flag.
    ///
    /// Args:
    ///     key: The flag's key.
    ///     context: As for `evaluate()`.
    ///
    /// Raises:
    ///     TypeError: The tenant's id is missing, or an argument has another type.
    ///     ValueError: The mapping has an unknown member.
    #[pyo3(
        signature = (key, context = None, **axes),
        text_signature = "($self, key, context=None, *, tenant_id=..., tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn explain(
        &self,
        key: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Explanation> {
        self.0.explain(key, &Asked::read("explain", context, axes)?)
    }

    /// The revision of the store that the flags come from; 0 if there is none.
    #[getter]
    fn revision(&self) -> u64 {
        self.0.snapshot().revision
    }

    /// The flags that can't be read or violate a bound, with the problem, by key. They are off.
    #[getter]
    fn invalid<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let invalid = PyDict::new(py);
        for flag in &self.0.snapshot().invalid {
            invalid.set_item(&flag.key, &flag.problem)?;
        }
        Ok(invalid)
    }

    /// Returns the flags as JSON, which `from_json()` reads.
    fn to_json(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.snapshot().to_json())
    }

    /// Resolves a flag in OpenFeature's terms; for `dezky.openfeature`.
    fn _resolve<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let given = resolve::Given::read(targeting_key, attributes)?;
        let resolved: Resolved = resolve::local(&self.0, text_of(key, "key")?, &given);
        resolved.into_pyobject(py)
    }

    fn __len__(&self) -> usize {
        self.0.set().len()
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> bool {
        text_of(key, "key").is_ok_and(|key| self.0.handle(key).is_some())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyList::new(py, &self.0.names(py)?.keys)?.try_iter()
    }

    /// Pickles the definitions.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        let py = slf.py();
        let read = py.import("dezky._flags")?.getattr("unpickle")?;
        Ok((read, (slf.get().to_json(py),)))
    }

    fn __repr__(&self) -> String {
        let (count, revision) = (self.__len__(), self.revision());
        let flags = if count == 1 { "flag" } else { "flags" };
        format!("FlagSet({count} {flags}, revision {revision})")
    }
}

/// The JSON text that a source stands for, after its name for errors.
fn source_text(py: Python<'_>, source: &Bound<'_, PyAny>) -> PyResult<(String, String)> {
    let listed = |text: String| format!("{{\"flags\":{text}}}");
    let wrapped = |text: String| {
        if text.trim_start().starts_with('[') { listed(text) } else { text }
    };
    let argument = |text: String| ("source".to_owned(), text);
    if source.is_instance_of::<PyList>() || source.is_instance_of::<PyTuple>() {
        return Ok(argument(listed(json(source, "source")?)));
    }
    if source.is_instance_of::<PyDict>() {
        return json_object(source, "source").map(argument);
    }
    if let Ok(bytes) = source.cast::<PyBytes>() {
        let text = std::str::from_utf8(bytes.as_bytes())
            .map_err(|_| value_error("source", "is not UTF-8: pass the JSON text as a str"))?;
        return Ok(argument(wrapped(text.to_owned())));
    }
    if let Ok(text) = source.cast::<PyString>() {
        let text = text_of(text, "source")?;
        if text.trim_start().starts_with(['{', '[']) {
            return Ok(argument(wrapped(text.to_owned())));
        }
    }
    let path: PathBuf = source
        .extract()
        .map_err(|_| type_error("source", "a JSON text, a path or a list of dict", source))?;
    let read = py.detach(|| {
        if path.metadata()?.len() > MAX_FILE_BYTES {
            return Ok(None);
        }
        std::fs::read_to_string(&path).map(Some)
    });
    let refused = |error: io::Error| {
        let Some(number) = error.raw_os_error() else {
            return value_error("source", format_args!("can't be read as a file: {error}"));
        };
        // With the number and the name, Python chooses the class and the text.
        match py.import("os").and_then(|os| os.call_method1("strerror", (number,))) {
            Ok(text) => PyOSError::new_err((number, text.unbind(), source.clone().unbind())),
            Err(error) => error,
        }
    };
    let text = read.map_err(refused)?.ok_or_else(|| {
        value_error("source", format_args!("has more than {MAX_FILE_BYTES} bytes"))
    })?;
    Ok((path.display().to_string(), wrapped(text)))
}
