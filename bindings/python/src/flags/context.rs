//! The subject of an evaluation.

use std::fmt::Write as _;

use dezky::FlagContext;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyMapping, PyString};

use crate::convert::{text_of, type_error, value_error};

/// The names of a context's members.
const NAMES: &str = "tenant_id, tenant_slug, plan, partner_slug, environment or tenant_active";

/// Values of a context that may lack the tenant.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Values {
    pub(crate) tenant_id: Option<String>,
    pub(crate) tenant_slug: Option<String>,
    pub(crate) plan: Option<String>,
    pub(crate) partner_slug: Option<String>,
    pub(crate) environment: Option<String>,
    pub(crate) tenant_active: Option<bool>,
}

impl Values {
    pub(crate) fn borrowed(&self) -> FlagContext<'_> {
        FlagContext {
            tenant_id: self.tenant_id.as_deref().unwrap_or_default(),
            tenant_slug: self.tenant_slug.as_deref(),
            plan: self.plan.as_deref(),
            partner_slug: self.partner_slug.as_deref(),
            environment: self.environment.as_deref(),
            tenant_active: self.tenant_active,
        }
    }

    /// Sets a member. Returns whether there is one of this name.
    fn set(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let member = match name {
            "tenant_id" => {
                self.tenant_id = Some(text_of(value, name)?.to_owned());
                return Ok(true);
            }
            "tenant_active" => {
                self.tenant_active = match value {
                    value if value.is_none() => None,
                    value => match value.cast::<PyBool>() {
                        Ok(value) => Some(value.is_true()),
                        Err(_) => return Err(type_error(name, "a bool or None", value)),
                    },
                };
                return Ok(true);
            }
            "tenant_slug" => &mut self.tenant_slug,
            "plan" => &mut self.plan,
            "partner_slug" => &mut self.partner_slug,
            "environment" => &mut self.environment,
            _ => return Ok(false),
        };
        *member = if value.is_none() { None } else { Some(optional_text(value, name)?.to_owned()) };
        Ok(true)
    }

    /// Sets the members of keyword arguments of `function`.
    pub(crate) fn update(
        &mut self,
        function: &str,
        arguments: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        for (name, value) in arguments.into_iter().flatten() {
            let name = text_of(&name, "the name of an argument")?;
            if !self.set(name, &value)? {
                return Err(PyTypeError::new_err(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            }
        }
        Ok(())
    }

    /// The members of a mapping; `name` is the argument's.
    fn of_mapping(value: &Bound<'_, PyMapping>, name: &str) -> PyResult<Self> {
        let mut values = Self::default();
        for item in value.items()?.iter() {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let key = key
                .cast::<PyString>()
                .map_err(|_| type_error(&format!("each key in {name}"), "a str", &key))?;
            if !values.set(text_of(key, name)?, &value)? {
                return Err(value_error(
                    name,
                    format_args!("has an unknown key {key:?}: use {NAMES}"),
                ));
            }
        }
        Ok(values)
    }

    fn with_tenant(self, name: &str) -> PyResult<Self> {
        if self.tenant_id.is_none() {
            return Err(PyTypeError::new_err(format!(
                "{name} has no tenant_id: buckets depend on it, so give the tenant's id"
            )));
        }
        Ok(self)
    }
}

fn optional_text<'a>(value: &'a Bound<'_, PyAny>, name: &str) -> PyResult<&'a str> {
    if value.is_instance_of::<PyString>() {
        text_of(value, name)
    } else {
        Err(type_error(name, "a str or None", value))
    }
}

/// A context as an evaluation's arguments give it.
pub(crate) enum Asked<'py> {
    Given(Bound<'py, Context>),
    Made(Values),
}

impl<'py> Asked<'py> {
    /// Reads the argument `context` and keyword arguments, which override its members.
    pub(crate) fn read(
        function: &str,
        context: Option<&Bound<'py, PyAny>>,
        arguments: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Self> {
        let arguments = arguments.filter(|arguments| !arguments.is_empty());
        let mut values = match context {
            None => Values::default(),
            Some(context) => match context.cast::<Context>() {
                Ok(context) if arguments.is_none() => return Ok(Self::Given(context.clone())),
                Ok(context) => context.get().values.clone(),
                Err(_) => Self::mapping(context, "context")?,
            },
        };
        values.update(function, arguments)?;
        Ok(Self::Made(values.with_tenant("the context")?))
    }

    /// Reads one of the tenants of a preview: a context, a mapping, or an id.
    pub(crate) fn tenant(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        if let Ok(context) = value.cast::<Context>() {
            return Ok(Self::Given(context.clone()));
        }
        if value.is_instance_of::<PyString>() {
            let tenant_id = Some(text_of(value, name)?.to_owned());
            return Ok(Self::Made(Values { tenant_id, ..Values::default() }));
        }
        Ok(Self::Made(Self::mapping(value, name)?.with_tenant(name)?))
    }

    fn mapping(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Values> {
        match value.cast::<PyMapping>() {
            Ok(mapping) => Values::of_mapping(mapping, name),
            Err(_) if value.is_instance_of::<PyString>() => {
                Err(type_error(name, "a Context or a mapping (an id goes into tenant_id=)", value))
            }
            Err(_) => Err(type_error(name, "a Context or a mapping", value)),
        }
    }

    pub(crate) fn values(&self) -> &Values {
        match self {
            Self::Given(context) => &context.get().values,
            Self::Made(values) => values,
        }
    }

    pub(crate) fn context(&self) -> FlagContext<'_> {
        self.values().borrowed()
    }

    pub(crate) fn into_values(self) -> Values {
        match self {
            Self::Given(context) => context.get().values.clone(),
            Self::Made(values) => values,
        }
    }
}

/// The subject of an evaluation: a tenant, and what flags can be scoped to.
///
/// Immutable and hashable. An axis that is `None` matches no scope that has values on it.
///
/// Args:
///     tenant_id: The tenant's id, which decides rollouts.
///     tenant_slug: The tenant's slug.
///     plan: The tenant's plan.
///     partner_slug: The slug of the tenant's partner.
///     environment: The environment, such as `production`.
///     tenant_active: Whether the tenant is active; `None` counts as inactive. Read only by flags
///         that require an active tenant.
///
/// Examples:
///     >>> import dezky
///     >>> acme = dezky.Context("t-1", plan="pro")
///     >>> acme.replace(environment="staging")
///     Context('t-1', plan='pro', environment='staging')
#[pyclass(frozen, eq, hash, module = "dezky")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Context {
    values: Values,
}

#[pymethods]
impl Context {
    #[new]
    #[pyo3(
        signature = (tenant_id, **axes),
        text_signature = "(tenant_id, *, tenant_slug=None, plan=None, \
            partner_slug=None, environment=None, tenant_active=None)"
    )]
    fn new(tenant_id: &Bound<'_, PyAny>, axes: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut values = Values::default();
        values.update("Context", axes)?;
        values.tenant_id = Some(text_of(tenant_id, "tenant_id")?.to_owned());
        Ok(Self { values })
    }

    /// The tenant's id.
    #[getter]
    fn tenant_id(&self) -> &str {
        self.values.tenant_id.as_deref().unwrap_or_default()
    }

    /// The tenant's slug.
    #[getter]
    fn tenant_slug(&self) -> Option<&str> {
        self.values.tenant_slug.as_deref()
    }

    /// The tenant's plan.
    #[getter]
    fn plan(&self) -> Option<&str> {
        self.values.plan.as_deref()
    }

    /// The slug of the tenant's partner.
    #[getter]
    fn partner_slug(&self) -> Option<&str> {
        self.values.partner_slug.as_deref()
    }

    /// The environment.
    #[getter]
    fn environment(&self) -> Option<&str> {
        self.values.environment.as_deref()
    }

    /// Whether the tenant is active.
    #[getter]
    fn tenant_active(&self) -> Option<bool> {
        self.values.tenant_active
    }

    /// Returns a copy with other values.
    ///
    /// Args:
    ///     changes: The members to replace, by name.
    ///
    /// Raises:
    ///     TypeError: There is no member of a name, or a value has another type.
    #[pyo3(signature = (**changes))]
    fn replace(&self, changes: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut values = self.values.clone();
        values.update("replace", changes)?;
        Ok(Self { values })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let quoted = |text: &str| PyString::new(py, text).repr().map(|text| text.to_string());
        let mut text = format!("Context({}", quoted(self.tenant_id())?);
        for (name, value) in [
            ("tenant_slug", self.tenant_slug()),
            ("plan", self.plan()),
            ("partner_slug", self.partner_slug()),
            ("environment", self.environment()),
        ] {
            if let Some(value) = value {
                let _ = write!(text, ", {name}={}", quoted(value)?);
            }
        }
        if let Some(active) = self.values.tenant_active {
            text.push_str(if active { ", tenant_active=True" } else { ", tenant_active=False" });
        }
        text.push(')');
        Ok(text)
    }
}
