//! A provider that decides in this process.

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
use crate::{FlagContext, FlagEvaluator, LiveFlags};

/// Flags of this process for OpenFeature's Rust SDK.
///
/// The targeting key is the tenant's id, and required; `tenantSlug`, `plan`,
/// `partnerSlug`, `environment` (text) and `tenantActive` (bool) are read from the
/// context's fields, others are ignored. Every flag is a bool: another type is a
/// `TypeMismatch`, and a flag that there is not `FlagNotFound`. Deciding does no I/O.
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
    /// These know their revision and percentages.
    Live(LiveFlags),
}

impl FlagProvider {
    /// Decides by `flags`.
    pub fn new(flags: Arc<dyn FlagEvaluator>) -> Self {
        Self::over(Flags::Any(flags))
    }

    /// Decides by `flags`, and adds their revision and a rollout's percentage to the
    /// metadata.
    pub fn live(flags: LiveFlags) -> Self {
        Self::over(Flags::Live(flags))
    }

    fn over(flags: Flags) -> Self {
        Self { flags, metadata: ProviderMetadata::new("dezky") }
    }

    fn resolve(&self, key: &str, context: &FlagContext<'_>) -> Option<Resolution> {
        match &self.flags {
            Flags::Any(flags) => Resolution::of(flags.evaluate(key, context)),
            Flags::Live(live) => {
                let flags = live.current();
                Resolution::of_live(&flags, key, flags.evaluate(key, context))
            }
        }
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
        let context = read_context(evaluation_context)?;
        self.resolve(flag_key, &context).map(details).ok_or_else(|| not_found(flag_key))
    }

    async fn resolve_int_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        Err(no_bool(flag_key))
    }

    async fn resolve_float_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        Err(no_bool(flag_key))
    }

    async fn resolve_string_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        Err(no_bool(flag_key))
    }

    async fn resolve_struct_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        Err(no_bool(flag_key))
    }
}

/// What flags are decided by of a context.
pub(super) fn read_context(context: &EvaluationContext) -> EvaluationResult<FlagContext<'_>> {
    let tenant_id = context.targeting_key.as_deref().unwrap_or_default();
    if tenant_id.is_empty() {
        let message = "targetingKey is missing: give the tenant's id";
        return Err(error(EvaluationErrorCode::TargetingKeyMissing, message));
    }
    let field = |name: &str| context.custom_fields.get(name);
    let text = |name: &str| match field(name) {
        None => Ok(None),
        Some(EvaluationContextFieldValue::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(error(
            EvaluationErrorCode::InvalidContext,
            format!("{name} must be text: give a string or leave it out"),
        )),
    };
    let tenant_active = match field(TENANT_ACTIVE) {
        None => None,
        Some(EvaluationContextFieldValue::Bool(active)) => Some(*active),
        Some(_) => {
            let message = format!("{TENANT_ACTIVE} must be a bool: give one or leave it out");
            return Err(error(EvaluationErrorCode::InvalidContext, message));
        }
    };
    Ok(FlagContext {
        tenant_id,
        tenant_slug: text(TENANT_SLUG)?,
        plan: text(PLAN)?,
        partner_slug: text(PARTNER_SLUG)?,
        environment: text(ENVIRONMENT)?,
        tenant_active,
    })
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

/// For all types but bool.
pub(super) fn no_bool(key: &str) -> EvaluationError {
    let message = format!("{key}: every flag is a bool: ask for its bool value");
    error(EvaluationErrorCode::TypeMismatch, message)
}

pub(super) fn error(code: EvaluationErrorCode, message: impl Into<String>) -> EvaluationError {
    EvaluationError { code, message: Some(message.into()) }
}
