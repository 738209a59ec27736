use std::collections::BTreeSet;

use dezky_core::Timestamp;
use dezky_core::testkit::ManualRuntime;
use dezky_flags::testkit::FlagGenerator;
use dezky_flags::{
    Axis, BucketAlgorithm, Decision, Flag, FlagContext, FlagEvaluator, FlagOptions, FlagSet,
    FlagState, NewFlag, Reason, Scope, bucket, decide, has_any_scope, in_rollout_bucket,
    matches_scope,
};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    tenant_id: String,
    key: String,
    sha256: String,
    bucket: u8,
}

fn vectors() -> Vec<Vector> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/rollout.json"));
    serde_json::from_str::<Golden>(text).unwrap().vectors
}

fn flag(key: &str, state: FlagState, pct: u8, scope: Scope) -> Flag {
    Flag::new(NewFlag { state, pct, scope, ..NewFlag::new(key) }, Timestamp::MIN).unwrap()
}

fn list(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// Evaluates with both implementations, which must agree.
fn reason(flag: &Flag, context: &FlagContext<'_>) -> Reason {
    let decision = decide(flag, context);
    assert_eq!(FlagSet::compile([flag]).evaluate(&flag.key, context), decision);
    decision.reason
}

#[test]
fn golden_vectors_hold_by_every_algorithm() {
    let vectors = vectors();
    assert!(vectors.len() > 100);
    for Vector { tenant_id, key, sha256, bucket: expected } in &vectors {
        assert_eq!(bucket(tenant_id, key), *expected, "{tenant_id}:{key}");
        assert_eq!(BucketAlgorithm::Whole.bucket(tenant_id, key), *expected);
        let prefix = u32::from_str_radix(&sha256[..8], 16).unwrap() % 100;
        assert_eq!(u32::from(BucketAlgorithm::Prefix32.bucket(tenant_id, key)), prefix);
        assert!(in_rollout_bucket(tenant_id, key, expected + 1));
        assert!(!in_rollout_bucket(tenant_id, key, *expected));
    }
}

#[test]
fn each_state_decides_as_defined() {
    let scope = || Scope {
        plans: list(&["pro"]),
        tenant_slugs: list(&["acme", "dezky"]),
        partner_slugs: list(&["nordic"]),
        environments: list(&["production"]),
    };
    let inside = FlagContext {
        tenant_id: "t-1",
        tenant_slug: Some("acme"),
        plan: Some("pro"),
        partner_slug: Some("nordic"),
        environment: Some("production"),
        tenant_active: None,
    };
    let nobody = FlagContext { tenant_id: "t-1", ..FlagContext::default() };
    let at = bucket("t-1", "k");
    let is = |state, pct, scope: Scope, context: &FlagContext<'_>| {
        reason(&flag("k", state, pct, scope), context)
    };
    assert_eq!(is(FlagState::Off, 100, scope(), &inside), Reason::Off);
    assert_eq!(is(FlagState::On, 0, scope(), &nobody), Reason::On);
    assert_eq!(is(FlagState::Targeted, 0, scope(), &inside), Reason::Targeted);
    assert_eq!(is(FlagState::Targeted, 100, Scope::default(), &inside), Reason::EmptyScope);
    assert_eq!(is(FlagState::Rollout, 100, Scope::default(), &nobody), Reason::InRollout(at));
    assert_eq!(is(FlagState::Rollout, 100, scope(), &inside), Reason::InRollout(at));
    assert_eq!(is(FlagState::Rollout, 0, scope(), &inside), Reason::OutOfRollout(at));
    for (context, axis) in [
        (FlagContext { plan: Some("free"), ..inside }, Axis::Plan),
        (FlagContext { plan: Some("Pro"), ..inside }, Axis::Plan),
        (FlagContext { tenant_slug: None, ..inside }, Axis::TenantSlug),
        (FlagContext { partner_slug: Some(""), ..inside }, Axis::PartnerSlug),
        (FlagContext { environment: Some("staging"), ..inside }, Axis::Environment),
    ] {
        let missed = Reason::ScopeMismatch(axis);
        assert_eq!(is(FlagState::Targeted, 0, scope(), &context), missed);
        assert_eq!(is(FlagState::Rollout, 100, scope(), &context), missed);
        assert!(!matches_scope(&scope(), &context));
    }
    assert!(matches_scope(&scope(), &inside) && matches_scope(&Scope::default(), &nobody));
    assert!(has_any_scope(&scope()) && !has_any_scope(&Scope::default()));
}

#[test]
fn an_unknown_key_is_off_with_a_reason() {
    let context = FlagContext::default();
    for set in
        [FlagSet::default(), FlagSet::compile([&flag("k", FlagState::On, 0, Scope::default())])]
    {
        let decision = set.evaluate("other", &context);
        assert_eq!(decision, Decision { value: false, reason: Reason::UnknownFlag });
    }
}

#[test]
fn all_flags_come_by_key_and_the_last_of_a_key_counts() {
    let make = |key, state| flag(key, state, 0, Scope::default());
    let flags = [
        make("b", FlagState::On),
        make("a.z", FlagState::Off),
        make("a-z", FlagState::On),
        make("b", FlagState::Off),
    ];
    let set = FlagSet::compile(&flags);
    let context = FlagContext::default();
    let keys: Vec<_> = set.evaluate_all(&context).map(|(key, _)| key).collect();
    assert_eq!((keys, set.len()), (vec!["a-z", "a.z", "b"], 3));
    let values: Vec<_> = set.values(&context).into_iter().collect();
    assert_eq!(values, [("a-z", true), ("a.z", false), ("b", false)]);
}

/// A million tenants with fixed ids, so the numbers are always the same. Pearson's chi-square for
/// 100 equal buckets has 99 degrees of freedom: fair buckets exceed 149 once in a thousand runs;
/// every bucket is within 5 % of its 10,000.
#[test]
fn a_million_tenants_fall_evenly() {
    let mut counts = [0_u32; 100];
    for tenant in 0..1_000_000 {
        counts[usize::from(bucket(&format!("tenant-{tenant}"), "jmap_native_v2"))] += 1;
    }
    let off = |count: u32| f64::from(count) - 10_000.0;
    let chi_square: f64 = counts.iter().map(|count| off(*count).powi(2) / 10_000.0).sum();
    assert!(chi_square < 149.0, "{chi_square}");
    assert!(counts.iter().all(|count| off(*count).abs() < 500.0), "{counts:?}");
    let quarter: u32 = counts[..25].iter().sum();
    assert!(quarter.abs_diff(250_000) < 2_000, "{quarter}");
}

/// Being early in one rollout says nothing about another rollout.
#[test]
fn rollouts_of_two_flags_are_independent() {
    let tenants: Vec<_> = (0..100_000).map(|n| format!("tenant-{n}")).collect();
    let both = tenants
        .iter()
        .filter(|t| in_rollout_bucket(t, "flag_a", 50) && in_rollout_bucket(t, "flag_b", 50))
        .count();
    assert!(both.abs_diff(25_000) < 700, "{both}");
}

proptest! {
    #[test]
    fn raising_the_percentage_only_adds(seed: u64, low in 0_u8..=100, high in 0_u8..=100) {
        let (low, high) = (low.min(high), low.max(high));
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let options = FlagOptions::default();
        let flag = Flag { state: FlagState::Rollout, options, ..generator.next_flag() };
        let on = |pct, asker: &dezky_flags::testkit::Asker| {
            decide(&Flag { pct, ..flag.clone() }, &asker.context()).value
        };
        for _ in 0..50 {
            let asker = generator.asker();
            prop_assert!(!on(low, &asker) || on(high, &asker));
            prop_assert!(!on(0, &asker));
            prop_assert_eq!(on(100, &asker), matches_scope(&flag.scope, &asker.context()));
        }
    }

    #[test]
    fn buckets_take_any_text(tenant_id: String, key: String) {
        prop_assert!(bucket(&tenant_id, &key) < 100);
    }
}

/// The generators must produce every reason, or the property above proves little.
#[test]
fn generated_flags_give_every_reason() {
    let runtime = ManualRuntime::new(1);
    let mut generator = FlagGenerator::new(&runtime);
    let flags = generator.flags(500);
    let mut seen = BTreeSet::new();
    for flag in &flags {
        let asker = generator.asker();
        let reason = decide(flag, &asker.context()).reason.to_string();
        seen.insert(reason.split_once("rollout(").map_or(reason.clone(), |(kind, _)| kind.into()));
    }
    let expected = [
        "empty_scope",
        "in_",
        "inactive_tenant",
        "off",
        "on",
        "out_of_",
        "scope_mismatch(environment)",
        "scope_mismatch(partnerSlug)",
        "scope_mismatch(plan)",
        "scope_mismatch(tenantSlug)",
        "targeted",
    ];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}
