//! Deciding the flags of `../flags.rs` with other libraries: one flag, and 10, 100 and 1,000
//! for one context.
//!
//! `cargo bench --manifest-path benches/peers/Cargo.toml`.

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dezky_flags::{Flag, FlagState, Scope, decide};
use serde_json::{Value, json};
use unleash_yggdrasil::{ClientFeatures, Context, EngineState};

#[path = "../flag_cases.rs"]
mod flag_cases;

use flag_cases::{CONTEXT, TENANT, flag, long_key, mixed, plans, short_key};

fn unleash_one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_one");
    // Among a thousand others, so that the look-up is a real one.
    let others = mixed(1_000, short_key);
    let context = unleash_context();
    let (short, long) = (&*short_key(1_000), &*long_key(1_000));
    for (name, key, state, scope) in [
        ("off", short, FlagState::Off, Scope::default()),
        ("on", short, FlagState::On, Scope::default()),
        ("targeted", short, FlagState::Targeted, plans(&["pro"])),
        ("rollout", short, FlagState::Rollout, plans(&["pro"])),
        ("rollout_of_two_blocks", long, FlagState::Rollout, plans(&["pro"])),
        ("rollout_out_of_scope", short, FlagState::Rollout, plans(&["free"])),
    ] {
        let asked = flag(key, state, 100, scope);
        let engine = unleash(others.iter().chain([&asked]));
        let is_on = || engine.is_enabled(black_box(key), black_box(&context), &None);
        assert_eq!(is_on(), decide(&asked, &CONTEXT).value);
        group.bench_function(format!("{name}/unleash_without_reason"), |bencher| {
            bencher.iter(is_on);
        });
    }
    group.finish();
}

fn unleash_many(criterion: &mut Criterion) {
    for count in [10, 100, 1_000] {
        let flags = mixed(count, short_key);
        let (engine, context) = (unleash(&flags), unleash_context());
        let mut group = criterion.benchmark_group(format!("decide_{count}"));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function("unleash_one_by_one", |bencher| {
            bencher.iter(|| {
                let on = |flag: &&Flag| engine.is_enabled(&flag.key, black_box(&context), &None);
                flags.iter().filter(on).count()
            });
        });
        group.bench_function("unleash_resolve_all", |bencher| {
            bencher.iter_batched(
                || (),
                |()| engine.resolve_all(black_box(&context), &None),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

/// The same flags as Unleash strategies. Its rollouts use another hash: they reach the same number
/// of tenants, but different ones.
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

criterion_group!(benches, unleash_one, unleash_many);
criterion_main!(benches);
