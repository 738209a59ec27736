//! A provider that decides within this process.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use open_feature::provider::{FeatureProvider, ProviderMetadata, ResolutionDetails};
use open_feature::{
    EvaluationContext, EvaluationContextFieldValue, EvaluationError, EvaluationErrorCode,
    EvaluationReason, EvaluationResult, FlagMetadata, StructValue,
};

use super::{
    ENVIRONMENT, PARTNER_SLUG, PLAN, Resolution, ResolutionReason, TENANT_ACTIVE, TENANT_SLUG,
};
use crate::{Axis, FlagEvaluator, LiveFlags, PartialContext, Reason};

/// The flags of this process as a provider for OpenFeature's Rust SDK.
///
/// The targeting key is the tenant's id. The context fields `tenantSlug`, `plan`, `partnerSlug`,
/// `environment` (strings) and `tenantActive` (bool) are read; others are ignored. If the targeting
/// key is missing or a field has another type, flags whose decision does not depend on it are still
/// answered; the others return the error `TargetingKeyMissing` or `InvalidContext`.
/// [Live](Self::live) flags can use their percentages for this; without a targeting key, a provider
/// made with [`new`](Self::new) answers only flags that are off or on. Every flag is a bool: other
/// types return `TypeMismatch`, and unknown flags `FlagNotFound`. Deciding does no I/O.
///
/// ```
/// use std::sync::Arc;
/// use dezky_core::Timestamp;
/// use dezky_flags::openfeature::FlagProvider;
/// use dezky_flags::{Flag, FlagSet, FlagState, NewFlag};
/// use open_feature::{EvaluationContext, OpenFeature};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let new = NewFlag { state: FlagState::On, ..NewFlag::new("chat") };
/// let flags = FlagSet::compile([&Flag::new(new, Timestamp::MIN).unwrap()]);
/// OpenFeature::singleton_mut().await.set_provider(FlagProvider::new(Arc::new(flags))).await;
///
/// let client = OpenFeature::singleton().await.create_client();
/// let context = EvaluationContext::default().with_targeting_key("t-1");
/// assert_eq!(client.get_bool_value("chat", Some(&context), None).await, Ok(true));
/// # }
/// ```
pub struct FlagProvider {
    flags: Flags,
    metadata: ProviderMetadata,
}

enum Flags {
    Any(Arc<dyn FlagEvaluator>),
    /// Knows the flags' revision and percentages.
    Live(LiveFlags),
}

impl FlagProvider {
    /// Decides with `flags`.
    pub fn new(flags: Arc<dyn FlagEvaluator>) -> Self {
        Self::over(Flags::Any(flags))
    }

    /// Decides with `flags`, and adds their revision and a rollout's percentage to the metadata.
    pub fn live(flags: LiveFlags) -> Self {
        Self::over(Flags::Live(flags))
    }

    fn over(flags: Flags) -> Self {
        Self { flags, metadata: ProviderMetadata::new("dezky") }
    }

    fn resolve(&self, key: &str, given: &Given<'_>) -> EvaluationResult<Resolution> {
        let context = &given.context.known;
        let resolution = match (&self.flags, &given.problem) {
            (Flags::Any(flags), None) => Resolution::of(flags.evaluate(key, context)),
            (Flags::Live(live), None) => {
                let flags = live.current();
                Resolution::of_live(&flags, key, flags.evaluate(key, context))
            }
            (Flags::Any(flags), Some(problem)) => {
                // The flag's definition is not available here; only these reasons depend on nothing
                // else.
                let decision = flags.evaluate(key, context);
                match decision.reason {
                    Reason::Off | Reason::On | Reason::InvalidFlag | Reason::UnknownFlag => {
                        Resolution::of(decision)
                    }
                    _ => return Err(problem.clone()),
                }
            }
            (Flags::Live(live), Some(problem)) => {
                let flags = live.current();
                let decision = flags.evaluate_partial(key, &given.context);
                Resolution::of_live(&flags, key, decision.ok_or_else(|| problem.clone())?)
            }
        };
        resolution.ok_or_else(|| not_found(key))
    }
}

impl fmt::Debug for FlagProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagProvider").finish_non_exhaustive()
    }
}

#[async_trait]
impl FeatureProvider for FlagProvider {
    fn metadata(&self) -> &ProviderMetadata {
        &self.metadata
    }

    async fn resolve_bool_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        self.resolve(flag_key, &read_context(evaluation_context)).map(details)
    }

    async fn resolve_int_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        Err(not_a_bool(flag_key))
    }

    async fn resolve_float_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        Err(not_a_bool(flag_key))
    }

    async fn resolve_string_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        Err(not_a_bool(flag_key))
    }

    async fn resolve_struct_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        Err(not_a_bool(flag_key))
    }
}

/// An evaluation context as read for flags.
pub(super) struct Given<'a> {
    pub(super) context: PartialContext<'a>,
    /// The first member that is missing or unreadable.
    pub(super) problem: Option<EvaluationError>,
}

pub(super) fn read_context(given: &EvaluationContext) -> Given<'_> {
    let mut context = PartialContext::default();
    let mut problem = None;
    let field = |name: &str| given.custom_fields.get(name);
    match given.targeting_key.as_deref() {
        Some(tenant_id) if !tenant_id.is_empty() => context.known.tenant_id = tenant_id,
        _ => {
            context.is_tenant_unknown = true;
            let message = "targetingKey is missing: send the tenant's id";
            problem = Some(error(EvaluationErrorCode::TargetingKeyMissing, message));
        }
    }
    let mut refuse = |message: String| {
        problem.get_or_insert_with(|| error(EvaluationErrorCode::InvalidContext, message));
    };
    let mut unknown_axes = Vec::new();
    let mut text = |name: &str, axis: Axis| match field(name) {
        None => None,
        Some(EvaluationContextFieldValue::String(text)) => Some(text.as_str()),
        Some(_) => {
            unknown_axes.push(axis);
            refuse(format!("{name} must be a string: send one or leave it out"));
            None
        }
    };
    context.known.tenant_slug = text(TENANT_SLUG, Axis::TenantSlug);
    context.known.plan = text(PLAN, Axis::Plan);
    context.known.partner_slug = text(PARTNER_SLUG, Axis::PartnerSlug);
    context.known.environment = text(ENVIRONMENT, Axis::Environment);
    context.unknown_axes = unknown_axes;
    match field(TENANT_ACTIVE) {
        None => context.is_activity_unknown = context.is_tenant_unknown,
        Some(EvaluationContextFieldValue::Bool(active)) => {
            context.known.tenant_active = Some(*active);
        }
        Some(_) => {
            context.is_activity_unknown = true;
            refuse(format!("{TENANT_ACTIVE} must be a bool: send one or leave it out"));
        }
    }
    Given { context, problem }
}

fn details(told: Resolution) -> ResolutionDetails<bool> {
    let mut metadata = FlagMetadata::default().with_value("reason", told.metadata.reason);
    if let Some(bucket) = told.metadata.bucket {
        metadata.add_value("bucket", i64::from(bucket));
    }
    if let Some(pct) = told.metadata.pct {
        metadata.add_value("pct", pct);
    }
    if let Some(revision) = told.metadata.revision {
        metadata.add_value("revision", i64::try_from(revision).unwrap_or(i64::MAX));
    }
    ResolutionDetails {
        value: told.value,
        variant: Some(told.variant.to_owned()),
        reason: Some(reason(told.reason)),
        flag_metadata: Some(metadata),
    }
}

fn reason(reason: ResolutionReason) -> EvaluationReason {
    match reason {
        ResolutionReason::Static => EvaluationReason::Static,
        ResolutionReason::TargetingMatch => EvaluationReason::TargetingMatch,
        ResolutionReason::Default => EvaluationReason::Default,
        ResolutionReason::Split => EvaluationReason::Split,
        ResolutionReason::Disabled => EvaluationReason::Disabled,
        ResolutionReason::Unknown => EvaluationReason::Unknown,
    }
}

pub(super) fn not_found(key: &str) -> EvaluationError {
    error(EvaluationErrorCode::FlagNotFound, format!("there is no flag {key}"))
}

/// The error for every type other than bool.
pub(super) fn not_a_bool(key: &str) -> EvaluationError {
    let message = format!("{key} is a bool flag, as all flags are: ask for its bool value");
    error(EvaluationErrorCode::TypeMismatch, message)
}

pub(super) fn error(code: EvaluationErrorCode, message: impl Into<String>) -> EvaluationError {
    EvaluationError { code, message: Some(message.into()) }
}
