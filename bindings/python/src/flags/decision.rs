//! Decisions, and their explanations.

#![expect(clippy::doc_link_with_quotes, reason = "examples in Python")]

use std::borrow::Cow;
use std::fmt::Write as _;

use dezky::flags::{Axis, Explanation as CoreExplanation, FlagHandle, Reason};
use dezky::{Decision as CoreDecision, FlagContext};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt};

use crate::convert::loads;

/// A percentage given in hundredths, as the shortest number: 25, or 12.5.
pub(crate) fn percentage(py: Python<'_>, hundredths: u16) -> Bound<'_, PyAny> {
    if hundredths.is_multiple_of(100) {
        let Ok(whole) = PyInt::new(py, hundredths / 100).into_pyobject(py);
        whole.into_any()
    } else {
        PyFloat::new(py, f64::from(hundredths) / 100.0).into_any()
    }
}

/// A reason's word, without the bucket or axis behind it.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Off => "off",
        Reason::On => "on",
        Reason::Targeted => "targeted",
        Reason::ScopeMismatch(_) => "scope_mismatch",
        Reason::EmptyScope => "empty_scope",
        Reason::InRollout(_) => "in_rollout",
        Reason::OutOfRollout(_) => "out_of_rollout",
        Reason::UnknownFlag => "unknown_flag",
        Reason::InactiveTenant => "inactive_tenant",
        Reason::FullRollout => "full_rollout",
        Reason::EmptyRollout => "empty_rollout",
        _ => "invalid_flag",
    }
}

/// The parameter of a context's axis.
fn axis_name(axis: Axis) -> &'static str {
    match axis {
        Axis::Plan => "plan",
        Axis::TenantSlug => "tenant_slug",
        Axis::PartnerSlug => "partner_slug",
        Axis::Environment => "environment",
    }
}

/// A flag's value, and the reason for it.
///
/// True in a condition if the flag is on: `if flags.evaluate("chat", acme): …`. `str()` gives the
/// reason as the HTTP API sends it, such as `in_rollout(21)`.
///
/// Examples:
///     >>> import dezky
///     >>> flags = dezky.FlagSet.from_json([{"key": "chat", "state": "rollout", "pct": 25}])
///     >>> decision = flags.evaluate("chat", tenant_id="t-1")
///     >>> decision.value, decision.reason
///     (False, 'out_of_rollout')
///     >>> decision.bucket, decision.threshold
///     (41, 25)
#[pyclass(frozen, eq, hash, module = "dezky")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Decision {
    value: bool,
    reason: Cow<'static, str>,
    bucket: Option<u8>,
    axis: Option<Cow<'static, str>>,
    /// In hundredths of a percentage point.
    threshold: Option<u16>,
}

impl Decision {
    /// The decision on a flag of a set; `None` stands for a flag that is not there.
    pub(crate) fn of(handle: Option<FlagHandle<'_>>, context: &FlagContext<'_>) -> Self {
        let Some(handle) = handle else {
            return Self::from(CoreDecision::from(Reason::UnknownFlag));
        };
        let decided = Self::from(handle.evaluate(context));
        let threshold = decided.bucket.and(handle.threshold());
        Self { threshold, ..decided }
    }

    /// A decision of a server, by its reason's text, such as `in_rollout(21)`.
    pub(crate) fn remote(value: bool, reason: &str, pct: Option<f64>) -> Self {
        let (word, argument) = match reason.split_once('(') {
            Some((word, rest)) => (word, rest.strip_suffix(')')),
            None => (reason, None),
        };
        let axis = argument.filter(|_| word == "scope_mismatch").map(|axis| match axis {
            "tenantSlug" => Cow::Borrowed("tenant_slug"),
            "partnerSlug" => Cow::Borrowed("partner_slug"),
            axis => Cow::Owned(axis.to_owned()),
        });
        let bucket = argument.and_then(|bucket| bucket.parse().ok());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a percentage; the conversion saturates"
        )]
        let hundredths = |pct: f64| (pct * 100.0).round() as u16;
        let threshold = pct.map(hundredths).filter(|_| bucket.is_some());
        Self { value, reason: word.to_owned().into(), bucket, axis, threshold }
    }
}

impl From<CoreDecision> for Decision {
    fn from(decision: CoreDecision) -> Self {
        let (bucket, axis) = match decision.reason {
            Reason::InRollout(bucket) | Reason::OutOfRollout(bucket) => (Some(bucket), None),
            Reason::ScopeMismatch(axis) => (None, Some(axis_name(axis).into())),
            _ => (None, None),
        };
        let reason = word(decision.reason).into();
        Self { value: decision.value, reason, bucket, axis, threshold: None }
    }
}

#[pymethods]
impl Decision {
    /// Whether the flag is on.
    #[getter]
    fn value(&self) -> bool {
        self.value
    }

    /// The reason: `off`, `on`, `targeted`, `scope_mismatch`, `empty_scope`, `in_rollout`,
    /// `out_of_rollout`, `unknown_flag`, `inactive_tenant` or `invalid_flag`; of a server and a
    /// context without the tenant also `full_rollout` and `empty_rollout`.
    #[getter]
    fn reason<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        pyo3::types::PyString::intern(py, &self.reason).into_any()
    }

    /// The tenant's bucket, 0 to 99, if it decided.
    #[getter]
    fn bucket(&self) -> Option<u8> {
        self.bucket
    }

    /// The rollout's percentage, if the bucket decided. With a fraction, such as 12.5, a tenant in
    /// bucket 12 may be inside or outside: `explain()` has the bucket's fraction.
    #[getter]
    fn threshold<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        Some(percentage(py, self.threshold?))
    }

    /// The first axis that does not match, for the reason `scope_mismatch`: `plan`, `tenant_slug`,
    /// `partner_slug` or `environment`.
    #[getter]
    fn axis(&self) -> Option<&str> {
        self.axis.as_deref()
    }

    fn __bool__(&self) -> bool {
        self.value
    }

    fn __str__(&self) -> String {
        match (&self.axis, self.bucket) {
            (Some(axis), _) => {
                let axis = match &**axis {
                    "tenant_slug" => "tenantSlug",
                    "partner_slug" => "partnerSlug",
                    axis => axis,
                };
                format!("{}({axis})", self.reason)
            }
            (None, Some(bucket)) => format!("{}({bucket})", self.reason),
            (None, None) => self.reason.clone().into_owned(),
        }
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let value = if self.value { "True" } else { "False" };
        let mut text = format!("Decision(value={value}, reason='{}'", self.reason);
        if let Some(bucket) = self.bucket {
            let _ = write!(text, ", bucket={bucket}");
        }
        if let Some(threshold) = self.threshold {
            let _ = write!(text, ", threshold={}", percentage(py, threshold));
        }
        if let Some(axis) = &self.axis {
            let _ = write!(text, ", axis='{axis}'");
        }
        text.push(')');
        text
    }
}

/// A decision with the data behind it.
///
/// `str()` gives a sentence for people.
///
/// Examples:
///     >>> import dezky
///     >>> flags = dezky.FlagSet.from_json([{"key": "chat", "state": "targeted",
///     ...                                   "scope": {"plans": ["pro"]}}])
///     >>> why = flags.explain("chat", tenant_id="t-1", plan="free")
///     >>> why.axis, why.given
///     ('plan', 'free')
///     >>> print(why)
///     off: the scope does not contain the plan 'free'
#[pyclass(frozen, eq, module = "dezky")]
#[derive(PartialEq)]
pub(crate) struct Explanation {
    decision: Decision,
    given: Option<String>,
    /// Bucket and threshold, in hundredths of a percentage point.
    rollout: Option<(u16, u16)>,
    seeded: bool,
    json: String,
}

impl Explanation {
    pub(crate) fn of(explained: &CoreExplanation<'_>) -> Self {
        Self {
            decision: explained.decision.into(),
            given: explained.given.map(str::to_owned),
            rollout: explained.rollout.map(|rollout| (rollout.bucket, rollout.threshold)),
            seeded: explained.rollout.is_some_and(|rollout| rollout.seeded),
            json: serde_json::to_string(explained).unwrap_or_default(),
        }
    }

    fn sentence(&self, py: Python<'_>) -> String {
        let hundredths = |hundredths| percentage(py, hundredths).to_string();
        match &*self.decision.reason {
            "off" => "the flag is off".to_owned(),
            "on" => "the flag is on for everybody".to_owned(),
            "targeted" => "the scope contains the context".to_owned(),
            "empty_scope" => "the flag is targeted and its scope is empty".to_owned(),
            "unknown_flag" => "there is no such flag".to_owned(),
            "inactive_tenant" => "the tenant is not known to be active".to_owned(),
            "scope_mismatch" => {
                let axis = self.decision.axis.as_deref().unwrap_or_default().replace('_', " ");
                match &self.given {
                    Some(given) => format!("the scope does not contain the {axis} '{given}'"),
                    None => {
                        format!("the scope has values for the {axis}, and the context has none")
                    }
                }
            }
            "in_rollout" | "out_of_rollout" => {
                let (bucket, threshold) = self.rollout.unwrap_or_default();
                let (bucket, threshold) = (hundredths(bucket), hundredths(threshold));
                let relation = if self.decision.value { "below" } else { "not below" };
                format!("the tenant's bucket {bucket} is {relation} {threshold} %")
            }
            _ => "the flag violates a bound".to_owned(),
        }
    }
}

#[pymethods]
impl Explanation {
    /// Whether the flag is on.
    #[getter]
    fn value(&self) -> bool {
        self.decision.value
    }

    /// The reason, as of a `Decision`.
    #[getter]
    fn reason(&self) -> &str {
        &self.decision.reason
    }

    /// The first axis that does not match, for the reason `scope_mismatch`.
    #[getter]
    fn axis(&self) -> Option<&str> {
        self.decision.axis.as_deref()
    }

    /// The context's value on that axis.
    #[getter]
    fn given(&self) -> Option<&str> {
        self.given.as_deref()
    }

    /// The tenant's bucket, with its fraction if the threshold has one.
    #[getter]
    fn bucket<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        Some(percentage(py, self.rollout?.0))
    }

    /// The rollout's percentage.
    #[getter]
    fn threshold<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        Some(percentage(py, self.rollout?.1))
    }

    /// Whether a seed replaced the key in the bucket's input.
    #[getter]
    fn seeded(&self) -> bool {
        self.seeded
    }

    /// Returns the explanation as the HTTP API sends it.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        Ok(loads(py, &self.json)?.cast_into()?)
    }

    fn __bool__(&self) -> bool {
        self.decision.value
    }

    fn __str__(&self, py: Python<'_>) -> String {
        let value = if self.decision.value { "on" } else { "off" };
        format!("{value}: {}", self.sentence(py))
    }

    fn __repr__(&self) -> String {
        format!("Explanation({})", self.json)
    }
}
