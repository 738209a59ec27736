//! Evaluates one flag, and 10, 100 and 1,000 flags for one context, compared with unleash-yggdrasil
//! and the original algorithm on Node.
//!
//! `cargo bench -p dezky-benches --bench flags`. Tenant ids are UUIDs and keys have 14 bytes, so a
//! bucket takes one SHA-256 block; with keys of 20 bytes it takes two. "Cold" caches nothing
//! between evaluations; "warm" caches the tenant's buckets.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::Write;
use std::process::{Command, Stdio};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dezky_core::Timestamp;
use dezky_flags::{
    Axis, Bits, DigestEngine, Flag, FlagContext, FlagEvaluator, FlagSet, FlagState, NewFlag,
    Reason, Scope, bucket, decide, matches_scope,
};
use serde_json::{Value, json};
use unleash_yggdrasil::{ClientFeatures, Context, EngineState};

const TENANT: &str = "1d0e6fde-e431-7835-82c1-a48a8b044551";
const CONTEXT: FlagContext<'static> = FlagContext {
    tenant_id: TENANT,
    tenant_slug: Some("acme"),
    plan: Some("pro"),
    partner_slug: Some("nordic"),
    environment: Some("production"),
    tenant_active: Some(true),
};

fn short_key(n: usize) -> String {
    format!("feature_{n:06}")
}

fn long_key(n: usize) -> String {
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

/// 40 % rollouts with a scope, 30 % targeted, 20 % on, 10 % off; one in four of those with a scope
/// does not match.
fn mixed(count: usize, key: fn(usize) -> String) -> Vec<Flag> {
    let scope = |n: usize| match n / 10 % 4 {
        0 => plans(&["enterprise"]),
        1 => Scope {
            tenant_slugs: (0..50).map(|t| format!("tenant-{t}")).chain(["acme".into()]).collect(),
            ..Scope::default()
        },
        _ => plans(&["pro", "enterprise"]),
    };
    let make = |n: usize| match n % 10 {
        0..4 => {
            let pct = u8::try_from(n % 99 + 1).unwrap_or(0);
            flag(&key(n), FlagState::Rollout, pct, scope(n))
        }
        4..7 => flag(&key(n), FlagState::Targeted, 0, scope(n)),
        7..9 => flag(&key(n), FlagState::On, 0, Scope::default()),
        _ => flag(&key(n), FlagState::Off, 0, Scope::default()),
    };
    (0..count).map(make).collect()
}

fn one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_one");
    // Among a thousand others, so that the lookup is realistic.
    let others = mixed(1_000, short_key);
    let unleash_context = unleash_context();
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
        let unleash = unleash(others.iter().chain([&asked]));
        assert_eq!(
            unleash.is_enabled(key, &unleash_context, &None),
            decide(&asked, &CONTEXT).value
        );
        group.bench_function(format!("{name}/unleash_without_reason"), |bencher| {
            bencher.iter(|| unleash.is_enabled(black_box(key), black_box(&unleash_context), &None));
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

        let (unleash, context) = (unleash(&flags), unleash_context());
        group.bench_function("unleash_one_by_one", |bencher| {
            bencher.iter(|| {
                let on = |flag: &&Flag| unleash.is_enabled(&flag.key, black_box(&context), &None);
                flags.iter().filter(on).count()
            });
        });
        group.bench_function("unleash_resolve_all", |bencher| {
            bencher.iter_batched(
                || (),
                |()| unleash.resolve_all(black_box(&context), &None),
                BatchSize::SmallInput,
            );
        });
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

/// The same flags as Unleash rules. Its rollouts hash differently, so they reach other tenants, but
/// as many of them.
fn unleash<'a>(flags: impl IntoIterator<Item = &'a Flag>) -> EngineState {
    let constraint = |(name, values): (&str, &Vec<String>)| {
        (!values.is_empty())
            .then(|| json!({"contextName": name, "operator": "IN", "values": values}))
    };
    let feature = |flag: &Flag| {
        let Scope { plans, tenant_slugs, partner_slugs, environments } = &flag.scope;
        let constraints: Vec<Value> = [
            ("plan", plans),
            ("tenantSlug", tenant_slugs),
            ("partnerSlug", partner_slugs),
            ("environment", environments),
        ]
        .into_iter()
        .filter_map(constraint)
        .collect();
        let strategy = if flag.state == FlagState::Rollout {
            let parameters = json!({
                "rollout": flag.pct.to_string(), "stickiness": "userId", "groupId": flag.key,
            });
            json!({
                "name": "flexibleRollout", "parameters": parameters, "constraints": constraints,
            })
        } else {
            json!({"name": "default", "constraints": constraints})
        };
        json!({
            "name": flag.key, "enabled": flag.state != FlagState::Off, "strategies": [strategy],
        })
    };
    let features: Vec<Value> = flags.into_iter().map(feature).collect();
    let features: ClientFeatures =
        serde_json::from_value(json!({"version": 2, "features": features})).expect("its format");
    let engine = EngineState::default();
    assert!(engine.apply_client_features(features).is_none(), "no warnings");
    engine
}

fn unleash_context() -> Context {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    Context {
        user_id: Some(TENANT.to_owned()),
        session_id: None,
        environment: CONTEXT.environment.map(str::to_owned),
        app_name: None,
        current_time: None,
        remote_address: None,
        properties: Some(HashMap::from([
            ("plan".to_owned(), text(CONTEXT.plan)),
            ("tenantSlug".to_owned(), text(CONTEXT.tenant_slug)),
            ("partnerSlug".to_owned(), text(CONTEXT.partner_slug)),
        ])),
    }
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

criterion_group!(benches, buckets, one, many, engines, compiling, node);
criterion_main!(benches);
