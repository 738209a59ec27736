//! Deciding flags: one, and a thousand for one context.
//!
//! `cargo bench -p dezky-benches --bench flags`. Tenant ids are UUIDs, keys have 20
//! bytes: a bucket is two SHA-256 blocks. Nothing is remembered between decisions.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dezky_core::Timestamp;
use dezky_flags::{
    Flag, FlagContext, FlagEvaluator, FlagSet, FlagState, NewFlag, Reason, Scope, bucket,
};

const FLAGS: u64 = 1_000;
const TENANT: &str = "1d0e6fde-e431-7835-82c1-a48a8b044551";
const CONTEXT: FlagContext<'static> = FlagContext {
    tenant_id: TENANT,
    tenant_slug: Some("acme"),
    plan: Some("pro"),
    partner_slug: Some("nordic"),
    environment: Some("production"),
    tenant_active: Some(true),
};

fn key(n: u64) -> String {
    format!("platform.feature_{n:03}")
}

fn flag(key: &str, state: FlagState, pct: u8, scope: Scope) -> Flag {
    let new = NewFlag { state, pct, scope, ..NewFlag::new(key) };
    Flag::new(new, Timestamp::MIN).expect("within the bounds")
}

fn plans(plans: &[&str]) -> Scope {
    let plans = plans.iter().map(|plan| (*plan).to_owned()).collect();
    Scope { plans, environments: vec!["production".into()], ..Scope::default() }
}

/// 40 % rollout with a scope, 30 % targeted, 20 % on, 10 % off; of those with a scope
/// one in four does not match.
fn thousand() -> Vec<Flag> {
    let scope = |n: u64| match n / 10 % 4 {
        0 => plans(&["enterprise"]),
        1 => Scope {
            tenant_slugs: (0..50).map(|t| format!("tenant-{t}")).chain(["acme".into()]).collect(),
            ..Scope::default()
        },
        _ => plans(&["pro", "enterprise"]),
    };
    let make = |n: u64| match n % 10 {
        0..4 => flag(&key(n), FlagState::Rollout, u8::try_from(n % 101).unwrap_or(0), scope(n)),
        4..7 => flag(&key(n), FlagState::Targeted, 0, scope(n)),
        7..9 => flag(&key(n), FlagState::On, 0, Scope::default()),
        _ => flag(&key(n), FlagState::Off, 0, Scope::default()),
    };
    (0..FLAGS).map(make).collect()
}

fn one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_one");
    // Among a thousand others, so that the look-up is a real one.
    let (others, key) = (thousand(), key(FLAGS));
    let at = bucket(TENANT, &key);
    for (name, state, pct, scope, expected) in [
        ("off", FlagState::Off, 0, Scope::default(), Reason::Off),
        ("targeted", FlagState::Targeted, 0, plans(&["pro"]), Reason::Targeted),
        ("rollout_in_scope", FlagState::Rollout, 100, plans(&["pro"]), Reason::InRollout(at)),
        (
            "rollout_out_of_scope",
            FlagState::Rollout,
            100,
            plans(&["free"]),
            Reason::ScopeMismatch(dezky_flags::Axis::Plan),
        ),
    ] {
        let asked = flag(&key, state, pct, scope);
        let set = FlagSet::compile(others.iter().chain([&asked]));
        assert_eq!(set.evaluate(&key, &CONTEXT).reason, expected);
        group.bench_function(name, |bencher| {
            bencher.iter(|| set.evaluate(black_box(&key), black_box(&CONTEXT)));
        });
    }
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_1000");
    group.throughput(Throughput::Elements(FLAGS));
    let flags = thousand();
    let set = FlagSet::compile(&flags);
    group.bench_function("evaluate_all", |bencher| {
        bencher.iter(|| {
            let context = black_box(&CONTEXT);
            set.evaluate_all(context).filter(|(_, decision)| decision.value).count()
        });
    });
    group.bench_function("compile", |bencher| {
        bencher.iter(|| FlagSet::compile(black_box(&flags)));
    });
    group.finish();
}

fn buckets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bucket");
    for (name, key) in [("one_block", "oci_versioning"), ("two_blocks", "platform.feature_007")] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| bucket(black_box(TENANT), black_box(key)));
        });
    }
    group.finish();
}

criterion_group!(benches, buckets, one, all);
criterion_main!(benches);
