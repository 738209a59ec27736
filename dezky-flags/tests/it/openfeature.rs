//! Flags through OpenFeature, decided within this process.

use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::MemoryAuditStore;
use dezky_core::{Actor, AuditLog, Timestamp};
use dezky_flags::live::LiveConfig;
use dezky_flags::openfeature::FlagProvider;
use dezky_flags::store::DocumentFlagStore;
use dezky_flags::{
    Edit, Flag, FlagOptions, FlagSet, FlagState, Flags, LiveFlags, NewFlag, Scope, bucket,
};
use open_feature::provider::FeatureProvider as _;
use open_feature::{
    EvaluationContext, EvaluationErrorCode, EvaluationReason, FlagMetadataValue, OpenFeature,
};

fn flags() -> Vec<NewFlag> {
    let new = |key: &str, state| NewFlag { state, ..NewFlag::new(key) };
    let pro = Scope { plans: vec!["pro".into()], ..Scope::default() };
    vec![
        new("always", FlagState::On),
        new("never", FlagState::Off),
        new("nobody", FlagState::Targeted),
        NewFlag { scope: pro, ..new("pro-only", FlagState::Targeted) },
        NewFlag {
            pct: 50,
            options: FlagOptions { pct_hundredths: 25, ..FlagOptions::default() },
            ..new("some", FlagState::Rollout)
        },
        NewFlag {
            options: FlagOptions { require_active_tenant: true, ..FlagOptions::default() },
            ..new("live", FlagState::On)
        },
    ]
}

fn compiled() -> Arc<FlagSet> {
    let flags: Vec<_> =
        flags().into_iter().map(|new| Flag::new(new, Timestamp::MIN).unwrap()).collect();
    Arc::new(FlagSet::compile(&flags))
}

fn tenant() -> EvaluationContext {
    EvaluationContext::default().with_targeting_key("t-1")
}

#[tokio::test]
async fn every_decision_is_reported_in_openfeatures_terms() {
    let provider = FlagProvider::new(compiled());
    let pro = tenant().with_custom_field("plan", "pro").with_custom_field("tenantActive", true);
    for (key, context, value, reason, ours) in [
        ("always", tenant(), true, EvaluationReason::Static, "on".to_owned()),
        ("never", tenant(), false, EvaluationReason::Disabled, "off".to_owned()),
        ("nobody", tenant(), false, EvaluationReason::Default, "empty_scope".to_owned()),
        ("pro-only", tenant(), false, EvaluationReason::Default, "scope_mismatch(plan)".to_owned()),
        ("pro-only", pro.clone(), true, EvaluationReason::TargetingMatch, "targeted".to_owned()),
        ("live", tenant(), false, EvaluationReason::Default, "inactive_tenant".to_owned()),
        ("live", pro, true, EvaluationReason::Static, "on".to_owned()),
    ] {
        let told = provider.resolve_bool_value(key, &context).await.unwrap();
        assert_eq!((told.value, told.reason), (value, Some(reason)), "{key}");
        assert_eq!(told.variant.as_deref(), Some(if value { "on" } else { "off" }));
        let metadata = told.flag_metadata.unwrap().values;
        assert_eq!(metadata["reason"], FlagMetadataValue::String(ours));
    }
    let some = provider.resolve_bool_value("some", &tenant()).await.unwrap();
    assert_eq!(some.reason, Some(EvaluationReason::Split));
    let its_bucket = i64::from(bucket("t-1", "some"));
    let metadata = some.flag_metadata.unwrap().values;
    assert_eq!(metadata["bucket"], FlagMetadataValue::Int(its_bucket));
}

#[tokio::test]
async fn invalid_requests_are_errors() {
    let provider = FlagProvider::new(compiled());
    let refused = async |key: &str, context: EvaluationContext| {
        provider.resolve_bool_value(key, &context).await.unwrap_err()
    };
    assert_eq!(refused("no-such-flag", tenant()).await.code, EvaluationErrorCode::FlagNotFound);
    let keyless = refused("some", EvaluationContext::default()).await;
    assert_eq!(keyless.code, EvaluationErrorCode::TargetingKeyMissing);
    for (field, context) in [
        ("plan", tenant().with_custom_field("plan", 7)),
        ("environment", tenant().with_custom_field("environment", true)),
        ("tenantActive", tenant().with_custom_field("tenantActive", "yes")),
    ] {
        let error = refused("some", context.clone()).await;
        assert!(provider.resolve_bool_value("always", &context).await.unwrap().value);
        assert_eq!(error.code, EvaluationErrorCode::InvalidContext);
        assert!(error.message.unwrap().starts_with(field));
    }
    let context = tenant();
    let mismatch = EvaluationErrorCode::TypeMismatch;
    assert_eq!(provider.resolve_int_value("always", &context).await.unwrap_err().code, mismatch);
    assert_eq!(provider.resolve_float_value("always", &context).await.unwrap_err().code, mismatch);
    assert_eq!(provider.resolve_string_value("always", &context).await.unwrap_err().code, mismatch);
    assert_eq!(provider.resolve_struct_value("always", &context).await.unwrap_err().code, mismatch);
}

#[tokio::test]
async fn live_flags_are_followed_and_report_their_revision() {
    let runtime = Arc::new(TokioRuntime);
    let log = Arc::new(MemoryAuditStore::open(runtime.clone()));
    let store = Arc::new(DocumentFlagStore::in_memory(log.clone()));
    let live = LiveFlags::open(store.clone(), runtime.clone(), LiveConfig::default()).await;
    let live = live.unwrap();
    let editor = Flags::new(store, Arc::new(AuditLog::new(log, runtime.clone())), runtime)
        .with_live(live.clone());
    // A separate domain, because other tests of this process set providers as well.
    OpenFeature::singleton_mut().await.set_named_provider("live", FlagProvider::live(live)).await;
    let client = OpenFeature::singleton().await.create_named_client("live");
    let edit = Edit::by(Actor::system());
    for (made, new) in (1..).zip(flags()) {
        let key = new.key.clone();
        assert!(client.get_bool_value(&key, Some(&tenant()), None).await.is_err());
        editor.create(new, &edit).await.unwrap();
        let details = client.get_bool_details(&key, Some(&tenant()), None).await.unwrap();
        let metadata = details.flag_metadata.values;
        assert_eq!(metadata["revision"], FlagMetadataValue::Int(made), "{key}");
        let pct = (key == "some").then_some(FlagMetadataValue::Float(50.25));
        assert_eq!(metadata.get("pct"), pct.as_ref(), "{key}");
    }
}
