//! Flags that a server decides, over OFREP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dezky::flags::openfeature::{
    ENVIRONMENT, PARTNER_SLUG, PLAN, RemoteAnswers, RemoteConfig, RemoteFlagProvider, TENANT_SLUG,
};
use dezky::flags::{Axis, Reason};
use dezky::{Decision as CoreDecision, Error, ErrorKind, Result, TokioRuntime};
use open_feature::provider::ResolutionDetails;
use open_feature::{
    EvaluationContext, EvaluationError, EvaluationErrorCode, EvaluationReason, FlagMetadataValue,
};
use pyo3::prelude::*;

use super::context::Values;
use super::decision::Decision;
use super::resolve::{Details, Given, Member, Resolved};
use crate::convert::value_error;
use crate::error::exception;

/// A server that decides flags, with its last answers. Clones share them.
#[derive(Clone)]
pub(crate) struct Remote {
    url: Arc<str>,
    provider: RemoteFlagProvider,
    /// The last revision that the server stated; `u64::MAX` before that.
    revision: Arc<AtomicU64>,
}

impl Remote {
    /// Asks the server for the first time.
    pub(crate) async fn open(config: RemoteConfig) -> Result<Self> {
        let url = config.base_url.as_str().into();
        let provider = RemoteFlagProvider::new(config, Arc::new(TokioRuntime))?;
        let remote = Self { url, provider, revision: Arc::new(AtomicU64::new(u64::MAX)) };
        remote.probe().await;
        match remote.failure() {
            Some(error) => Err(error),
            None => Ok(remote),
        }
    }

    /// Asks for the flags without a context, for their revision.
    async fn probe(&self) {
        if let Ok(answers) = self.provider.resolve_all(&EvaluationContext::default()).await
            && let Some(revision) = answers.revision()
        {
            self.revision.store(revision, Ordering::Relaxed);
        }
    }

    pub(crate) fn revision(&self) -> Option<u64> {
        Some(self.revision.load(Ordering::Relaxed)).filter(|revision| *revision != u64::MAX)
    }

    /// The error of the last request, if it failed.
    pub(crate) fn failure(&self) -> Option<Error> {
        let error = self.provider.failure()?;
        Some(error.context(format_args!("the flag server {}", self.url)))
    }

    /// Asks again for every context in use.
    pub(crate) async fn refresh(&self) {
        self.provider.refresh().await;
        self.probe().await;
    }

    async fn answers(&self, values: &Values) -> PyResult<RemoteAnswers> {
        let context = context(values, &[]);
        self.provider.resolve_all(&context).await.map_err(|error| self.raised(&error))
    }

    fn raised(&self, error: &EvaluationError) -> PyErr {
        let message = error.message.as_deref().unwrap_or("is refused by the server");
        match &error.code {
            EvaluationErrorCode::General(_) => {
                let unavailable = || Error::new(ErrorKind::StoreUnavailable, message.to_owned());
                exception(self.failure().unwrap_or_else(unavailable))
            }
            EvaluationErrorCode::TypeMismatch => {
                value_error("key", format_args!("names a flag of another type: {message}"))
            }
            _ => value_error("context", format_args!("is refused by the server: {message}")),
        }
    }

    pub(crate) async fn evaluate(&self, key: &str, values: &Values) -> PyResult<Decision> {
        match self.answers(values).await?.get(key) {
            Ok(details) => Ok(decision(&details)),
            Err(error) if error.code == EvaluationErrorCode::FlagNotFound => {
                Ok(CoreDecision::from(Reason::UnknownFlag).into())
            }
            Err(error) => Err(self.raised(&error)),
        }
    }

    /// The values of all flags that the server can decide, by key.
    pub(crate) async fn evaluate_all(&self, values: &Values) -> PyResult<Vec<(String, bool)>> {
        let answers = self.answers(values).await?;
        let mut keys: Vec<&str> = answers.keys().collect();
        keys.sort_unstable();
        let value = |key: &str| Some((key.to_owned(), answers.get(key).ok()?.value));
        Ok(keys.into_iter().filter_map(value).collect())
    }

    /// Resolves a flag in OpenFeature's terms.
    pub(crate) async fn resolve(&self, key: &str, given: &Given) -> Resolved {
        let context = context(&given.values, &given.unreadable);
        let answers = self.provider.resolve_all(&context).await;
        match answers.and_then(|answers| answers.get(key)) {
            Ok(details) => Resolved::Value(told(details)),
            Err(error) => {
                let code = match error.code {
                    EvaluationErrorCode::FlagNotFound => return Resolved::not_found(key),
                    EvaluationErrorCode::ParseError => "PARSE_ERROR",
                    EvaluationErrorCode::TypeMismatch => "TYPE_MISMATCH",
                    EvaluationErrorCode::TargetingKeyMissing => "TARGETING_KEY_MISSING",
                    EvaluationErrorCode::InvalidContext => "INVALID_CONTEXT",
                    _ => "GENERAL",
                };
                Resolved::failed(code, error.message.unwrap_or_default())
            }
        }
    }
}

/// The context that is sent. A number stands for an unreadable value, as the server refuses both.
fn context(values: &Values, unreadable: &[Axis]) -> EvaluationContext {
    let mut context = EvaluationContext::default();
    if let Some(tenant_id) = &values.tenant_id {
        context = context.with_targeting_key(tenant_id.as_str());
    }
    for (name, axis, value) in [
        (TENANT_SLUG, Axis::TenantSlug, &values.tenant_slug),
        (PLAN, Axis::Plan, &values.plan),
        (PARTNER_SLUG, Axis::PartnerSlug, &values.partner_slug),
        (ENVIRONMENT, Axis::Environment, &values.environment),
    ] {
        if let Some(value) = value {
            context = context.with_custom_field(name, value.as_str());
        } else if unreadable.contains(&axis) {
            context = context.with_custom_field(name, 0);
        }
    }
    context
}

fn decision(details: &ResolutionDetails<bool>) -> Decision {
    let metadata = details.flag_metadata.as_ref().map(|metadata| &metadata.values);
    let member = |name: &str| metadata.and_then(|members| members.get(name));
    let pct = match member("pct") {
        Some(FlagMetadataValue::Float(pct)) => Some(*pct),
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        Some(FlagMetadataValue::Int(pct)) => Some(*pct as f64),
        _ => None,
    };
    let reason = match member("reason") {
        Some(FlagMetadataValue::String(reason)) => reason.clone(),
        // Another server's.
        _ => reason_text(details.reason.as_ref()).to_ascii_lowercase(),
    };
    Decision::remote(details.value, &reason, pct)
}

fn told(details: ResolutionDetails<bool>) -> Details {
    let metadata = details.flag_metadata.map(|metadata| metadata.values).unwrap_or_default();
    let member = |value| match value {
        FlagMetadataValue::Bool(value) => Member::Bool(value),
        FlagMetadataValue::Int(value) => Member::Int(value),
        FlagMetadataValue::Float(value) => Member::Float(value),
        FlagMetadataValue::String(value) => Member::Text(value),
    };
    Details {
        value: details.value,
        variant: details.variant,
        reason: reason_text(details.reason.as_ref()),
        metadata: metadata.into_iter().map(|(name, value)| (name, member(value))).collect(),
    }
}

fn reason_text(reason: Option<&EvaluationReason>) -> String {
    match reason {
        Some(EvaluationReason::Static) => "STATIC",
        Some(EvaluationReason::Default) => "DEFAULT",
        Some(EvaluationReason::TargetingMatch) => "TARGETING_MATCH",
        Some(EvaluationReason::Split) => "SPLIT",
        Some(EvaluationReason::Disabled) => "DISABLED",
        Some(EvaluationReason::Other(other)) => other,
        _ => "UNKNOWN",
    }
    .to_owned()
}
