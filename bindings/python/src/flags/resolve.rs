//! Decisions in OpenFeature's terms.
//!
//! As the provider of Rust's SDK: a context that lacks the tenant, or has an unreadable member,
//! still gets every decision that does not depend on it.

use dezky::flags::openfeature::{
    ENVIRONMENT, PARTNER_SLUG, PLAN, Resolution, TENANT_ACTIVE, TENANT_SLUG,
};
use dezky::flags::{Axis, FlagEvaluator as _, PartialContext, Reason, decide_partial};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyMapping, PyString, PyTuple};

use super::context::Values;
use super::set::Compiled;

/// An evaluation context of OpenFeature.
pub(crate) struct Given {
    pub(crate) values: Values,
    pub(crate) unreadable: Vec<Axis>,
    is_activity_unreadable: bool,
    /// The code and message of the first member that is missing or unreadable.
    problem: Option<(&'static str, String)>,
}

impl Given {
    /// Reads the targeting key, a text or `None`, and a mapping of attributes.
    pub(crate) fn read(
        targeting_key: &Bound<'_, PyAny>,
        attributes: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let attributes = attributes.cast::<PyMapping>()?;
        let member = |name: &str| {
            let value = if attributes.contains(name)? {
                attributes.get_item(name)?
            } else {
                return Ok(None);
            };
            PyResult::Ok((!value.is_none()).then_some(value))
        };
        let text = |value: &Bound<'_, PyAny>| {
            let text = value.cast::<PyString>().ok()?;
            text.to_str().ok().map(str::to_owned)
        };
        let mut given = Self {
            values: Values::default(),
            unreadable: Vec::new(),
            is_activity_unreadable: false,
            problem: None,
        };
        given.values.tenant_id = text(targeting_key).filter(|key| !key.is_empty());
        if given.values.tenant_id.is_none() {
            let message = "targeting_key is missing: set it to the tenant's id".to_owned();
            given.problem = Some(("TARGETING_KEY_MISSING", message));
        }
        let mut refuse = |message: String| {
            given.problem.get_or_insert(("INVALID_CONTEXT", message));
        };
        for (name, axis, target) in [
            (TENANT_SLUG, Axis::TenantSlug, &mut given.values.tenant_slug),
            (PLAN, Axis::Plan, &mut given.values.plan),
            (PARTNER_SLUG, Axis::PartnerSlug, &mut given.values.partner_slug),
            (ENVIRONMENT, Axis::Environment, &mut given.values.environment),
        ] {
            let Some(value) = member(name)? else { continue };
            *target = text(&value);
            if target.is_none() {
                given.unreadable.push(axis);
                refuse(format!("{name} must be a str: set one or leave it out"));
            }
        }
        if let Some(active) = member(TENANT_ACTIVE)? {
            if let Ok(active) = active.cast::<PyBool>() {
                given.values.tenant_active = Some(active.is_true());
            } else {
                given.is_activity_unreadable = true;
                refuse(format!("{TENANT_ACTIVE} must be a bool: set one or leave it out"));
            }
        }
        Ok(given)
    }

    fn partial(&self) -> PartialContext<'_> {
        let is_tenant_unknown = self.values.tenant_id.is_none();
        let is_unstated = self.values.tenant_active.is_none();
        PartialContext {
            known: self.values.borrowed(),
            is_tenant_unknown,
            is_activity_unknown: self.is_activity_unreadable || is_tenant_unknown && is_unstated,
            unknown_axes: self.unreadable.clone(),
        }
    }
}

/// A flag's value with its details, or an error's code and message.
pub(crate) enum Resolved {
    Value(Details),
    Failed { code: String, message: String },
}

pub(crate) struct Details {
    pub(crate) value: bool,
    pub(crate) variant: Option<String>,
    pub(crate) reason: String,
    pub(crate) metadata: Vec<(String, Member)>,
}

/// A member of a flag's metadata.
pub(crate) enum Member {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

impl Resolved {
    pub(crate) fn not_found(key: &str) -> Self {
        Self::failed("FLAG_NOT_FOUND", format!("there is no flag {key}"))
    }

    pub(crate) fn failed(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed { code: code.into(), message: message.into() }
    }
}

/// As a tuple: value, variant, reason, metadata, error code, error message.
impl<'py> IntoPyObject<'py> for Resolved {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let metadata = PyDict::new(py);
        let nothing = || py.None();
        match self {
            Self::Value(Details { value, variant, reason, metadata: members }) => {
                for (name, member) in members {
                    match member {
                        Member::Bool(value) => metadata.set_item(name, value)?,
                        Member::Int(value) => metadata.set_item(name, value)?,
                        Member::Float(value) => metadata.set_item(name, value)?,
                        Member::Text(value) => metadata.set_item(name, value)?,
                    }
                }
                (value, variant, reason, metadata, nothing(), nothing()).into_pyobject(py)
            }
            Self::Failed { code, message } => {
                (nothing(), nothing(), nothing(), metadata, code, message).into_pyobject(py)
            }
        }
    }
}

/// Resolves a flag of this process.
pub(crate) fn local(flags: &Compiled, key: &str, given: &Given) -> Resolved {
    let compiled = flags.set().evaluate(key, &given.values.borrowed());
    let snapshot = flags.snapshot();
    let flag = snapshot.flags.binary_search_by(|flag| flag.key.as_str().cmp(key));
    let flag = flag.ok().map(|at| &snapshot.flags[at]);
    let decision = match (compiled.reason, &given.problem, flag) {
        (Reason::UnknownFlag, ..) => return Resolved::not_found(key),
        (Reason::InvalidFlag, ..) | (_, None, _) | (_, _, None) => compiled,
        (_, Some((code, message)), Some(flag)) => match decide_partial(flag, &given.partial()) {
            Some(decision) => decision,
            None => return Resolved::failed(*code, message.as_str()),
        },
    };
    let Some(told) = Resolution::of(decision) else { return Resolved::not_found(key) };
    let mut metadata = vec![("reason".to_owned(), Member::Text(told.metadata.reason))];
    if let Some(bucket) = told.metadata.bucket {
        metadata.push(("bucket".to_owned(), Member::Int(bucket.into())));
    }
    let is_rollout = |flag: &&dezky::Flag| flag.state == dezky::FlagState::Rollout;
    if let Some(flag) = flag.filter(is_rollout).filter(|_| decision.reason != Reason::InvalidFlag) {
        metadata.push(("pct".to_owned(), Member::Float(flag.percentage())));
    }
    let revision = i64::try_from(snapshot.revision).unwrap_or(i64::MAX);
    metadata.push(("revision".to_owned(), Member::Int(revision)));
    Resolved::Value(Details {
        value: told.value,
        variant: Some(told.variant.to_owned()),
        reason: told.reason.as_str().to_owned(),
        metadata,
    })
}
