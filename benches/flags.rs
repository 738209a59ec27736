//! Evaluates one flag, and 10, 100 and 1,000 flags for one context, compared with the original
//! algorithm on Node.
//!
//! `cargo bench -p dezky-benches --bench flags`; `peers/` measures other libraries on the same flags.
//! Tenant ids are UUIDs and keys have 14 bytes, so a bucket takes one SHA-256 block; with keys of 20
//! bytes it takes two. "Cold" caches nothing between evaluations; "warm" caches the tenant's buckets.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::Write;
use std::process::{Command, Stdio};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dezky_flags::{
    Axis, Bits, DigestEngine, Flag, FlagContext, FlagEvaluator, FlagSet, FlagState, Reason, Scope,
    bucket, matches_scope,
};
use serde_json::{Value, json};

#[path = "flag_cases.rs"]
mod flag_cases;

use flag_cases::{CONTEXT, TENANT, flag, long_key, mixed, plans, short_key};

fn one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_one");
    // Among a thousand others, so that the lookup is realistic.
    let others = mixed(1_000, short_key);
    let in_rollout = |key| Reason::InRollout(bucket(TENANT, key));
    let (short, long) = (&*short_key(1_000), &*long_key(1_000));
    for (name, key, state, scope, expected) in [
        ("off", short, FlagState::Off, Scope::default(), Reason::Off),
        ("on", short, FlagState::On, Scope::default(), Reason::On),
        ("targeted", short, FlagState::Targeted, plans(&["pro"]), Reason::Targeted),
        ("rollout", short, FlagState::Rollout, plans(&["pro"]), in_rollout(short)),
        ("rollout_of_two_blocks", long, FlagState::Rollout, plans(&["pro"]), in_rollout(long)),
        (
            "rollout_out_of_scope",
            short,
            FlagState::Rollout,
            plans(&["free"]),
            Reason::ScopeMismatch(Axis::Plan),
        ),
    ] {
        let asked = flag(key, state, 100, scope);
        let set = FlagSet::compile(others.iter().chain([&asked]));
        assert_eq!(set.evaluate(key, &CONTEXT).reason, expected);
        group.bench_function(name, |bencher| {
            bencher.iter(|| set.evaluate(black_box(key), black_box(&CONTEXT)));
        });
        let handle = set.handle(key).expect("it is there");
        group.bench_function(format!("{name}/by_handle"), |bencher| {
            bencher.iter(|| handle.evaluate(black_box(&CONTEXT)));
        });
    }
    group.finish();
}

fn many(criterion: &mut Criterion) {
    for count in [10, 100, 1_000] {
        let flags = mixed(count, short_key);
        let hashed =
            |flag: &&Flag| flag.state == FlagState::Rollout && matches_scope(&flag.scope, &CONTEXT);
        println!("of {count} flags {} take a digest", flags.iter().filter(hashed).count());
        let set = FlagSet::compile(&flags);
        let mut group = criterion.benchmark_group(format!("decide_{count}"));
        group.throughput(Throughput::Elements(count as u64));
        let (mut values, mut json) = (Bits::new(), String::new());
        group.bench_function("cold_bits", |bencher| {
            bencher.iter(|| set.values_into(black_box(&CONTEXT), &mut values));
        });
        group.bench_function("cold_reasons", |bencher| {
            bencher.iter(|| {
                // Otherwise unused decisions could be optimized away.
                set.evaluate_all(black_box(&CONTEXT)).for_each(|decision| {
                    black_box(decision);
                });
            });
        });
        group.bench_function("cold_map", |bencher| {
            bencher.iter(|| set.values(black_box(&CONTEXT)));
        });
        group.bench_function("cold_json", |bencher| {
            bencher.iter(|| {
                json.clear();
                set.values_into(black_box(&CONTEXT), &mut values);
                set.write_json(&values, &mut json);
            });
        });
        let row = set.bucket_row(TENANT);
        group.bench_function("warm_bits", |bencher| {
            bencher.iter(|| set.values_with_row(&row, black_box(&CONTEXT), &mut values));
        });
        group.bench_function("warm_map", |bencher| {
            bencher.iter(|| {
                set.values_with_row(&row, black_box(&CONTEXT), &mut values);
                set.keys().zip(values.iter()).collect::<HashMap<_, _>>()
            });
        });
        group.bench_function("warm_json", |bencher| {
            bencher.iter(|| {
                json.clear();
                set.values_with_row(&row, black_box(&CONTEXT), &mut values);
                set.write_json(&values, &mut json);
            });
        });
        group.bench_function("bucket_row", |bencher| bencher.iter(|| set.bucket_row(TENANT)));
        group.finish();
    }
}

fn engines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_1000_by");
    for (blocks, key) in [("one_block", short_key as fn(usize) -> String), ("two_blocks", long_key)]
    {
        let set = FlagSet::compile(&mixed(1_000, key));
        for engine in DigestEngine::ALL.into_iter().filter(|engine| engine.is_available()) {
            let set = set.clone().with_digest_engine(engine);
            let mut values = Bits::new();
            group.bench_function(format!("{engine:?}/{blocks}"), |bencher| {
                bencher.iter(|| set.values_into(black_box(&CONTEXT), &mut values));
            });
        }
    }
    group.finish();
}

/// One flag for many tenants, on one thread.
fn column(criterion: &mut Criterion) {
    let uuid = |n: u64| format!("{n:08x}-e431-7835-82c1-{:012x}", n.wrapping_mul(0x9e37_79b9));
    let tenants: Vec<_> = (0..10_000).map(uuid).collect();
    let mut group = criterion.benchmark_group("decide_for_10000_tenants");
    group.throughput(Throughput::Elements(tenants.len() as u64));
    for (blocks, key) in [("one_block", short_key(7)), ("two_blocks", long_key(7))] {
        let set = FlagSet::compile([&flag(&key, FlagState::Rollout, 25, Scope::default())]);
        group.bench_function(format!("one_by_one/{blocks}"), |bencher| {
            let handle = set.handle(&key).expect("it is there");
            bencher.iter(|| {
                let context = |tenant_id| FlagContext { tenant_id, ..CONTEXT };
                tenants.iter().filter(|id| handle.evaluate(&context(id)).value).count()
            });
        });
        for engine in DigestEngine::ALL.into_iter().filter(|engine| engine.is_available()) {
            let set = set.clone().with_digest_engine(engine);
            let handle = set.handle(&key).expect("it is there");
            let mut values = Bits::new();
            group.bench_function(format!("{engine:?}/{blocks}"), |bencher| {
                bencher.iter(|| handle.values_into(black_box(&tenants), &CONTEXT, &mut values));
            });
        }
    }
    group.finish();
}

fn compiling(criterion: &mut Criterion) {
    let flags = mixed(1_000, short_key);
    criterion.bench_function("compile_1000", |bencher| {
        bencher.iter(|| FlagSet::compile(black_box(&flags)));
    });
}

fn buckets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bucket");
    for (name, key) in [("one_block", short_key(7)), ("two_blocks", long_key(7))] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| bucket(black_box(TENANT), black_box(&key)));
        });
    }
    group.finish();
}

/// The original algorithm on Node, for one rollout and the same mixed flags.
fn node(_: &mut Criterion) {
    let one = flag(&short_key(1_000), FlagState::Rollout, 100, plans(&["pro"]));
    let mixed = [10, 100, 1_000].map(|count| mixed(count, short_key));
    for flags in [vec![one]].into_iter().chain(mixed) {
        let count = flags.len();
        match on_node(&flags) {
            Some(nanoseconds) => {
                println!("decide_{count}/node: {nanoseconds:.0} ns a flag, the best of its rounds");
            }
            None => return println!("decide_{count}/node: left out, there is no `node`"),
        }
    }
}

/// Returns the time per flag; the answers must equal ours. `None` if Node is not installed.
fn on_node(flags: &[Flag]) -> Option<f64> {
    let once = std::env::args().any(|argument| argument == "--test");
    let input = json!({
        "flags": flags,
        "context": {
            "tenantId": TENANT,
            "tenantSlug": CONTEXT.tenant_slug,
            "plan": CONTEXT.plan,
            "partnerSlug": CONTEXT.partner_slug,
            "environment": CONTEXT.environment,
        },
        "rounds": if once { 1 } else { 500_000 / flags.len() },
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/flags.mjs");
    let started =
        Command::new("node").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut node = started.ok()?;
    let mut stdin = node.stdin.take().expect("a pipe");
    stdin.write_all(input.to_string().as_bytes()).expect("it reads");
    drop(stdin);
    let output = node.wait_with_output().expect("it ends");
    assert!(output.status.success(), "node failed");
    let output: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let mut values = Bits::new();
    FlagSet::compile(flags).values_into(&CONTEXT, &mut values);
    assert_eq!(output["values"], json!(values.iter().collect::<Vec<_>>()), "the same answers");
    output["nanoseconds"].as_f64()
}

criterion_group!(benches, buckets, one, many, engines, column, compiling, node);
criterion_main!(benches);
