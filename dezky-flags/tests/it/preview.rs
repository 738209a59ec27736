//! Explanations and previews are exact for any flags.

use dezky_core::Timestamp;
use dezky_core::testkit::ManualRuntime;
use dezky_flags::store::{InvalidFlag, Snapshot};
use dezky_flags::testkit::FlagGenerator;
use dezky_flags::{
    Flag, FlagContext, FlagEvaluator, FlagFile, FlagOptions, FlagSet, FlagState, Flipped,
    MAX_LISTED_TENANTS, NewFlag, Previewer, Scope, SnapshotPreviewer, bucket, decide,
    decides_alike, explain, fine_bucket, preview,
};
use proptest::prelude::*;
use serde_json::json;

const TENANT: &str = "1d0e6fde-e431-7835-82c1-a48a8b044551";

fn rollout(key: &str, pct: u8, options: FlagOptions) -> Flag {
    let new = NewFlag { state: FlagState::Rollout, pct, options, ..NewFlag::new(key) };
    Flag::new(new, Timestamp::MIN).unwrap()
}

fn tenant(tenant_id: &str) -> FlagContext<'_> {
    FlagContext { tenant_id, plan: Some("pro"), ..FlagContext::default() }
}

#[test]
fn an_explanation_has_the_numbers_that_decided() {
    let why = |flag: &Flag| serde_json::to_value(explain(flag, &tenant(TENANT))).unwrap();
    let plain = rollout("partner_portal", 25, FlagOptions::default());
    assert_eq!(
        why(&plain),
        json!({"value": true, "reason": "in_rollout(21)", "bucket": 21, "threshold": 25})
    );
    let fine = fine_bucket(TENANT, "partner_portal");
    assert_eq!(fine / 100, 21);
    let hundredths = |pct_hundredths| FlagOptions { pct_hundredths, ..FlagOptions::default() };
    let at = f64::from(fine) / 100.0;
    let exact = u8::try_from(fine % 100).unwrap();
    assert_ne!(exact, 0, "or the next lines would say nothing");
    assert_eq!(
        why(&rollout("partner_portal", 21, hundredths(exact))),
        json!({"value": false, "reason": "out_of_rollout(21)", "bucket": at, "threshold": at})
    );
    assert_eq!(
        why(&rollout("partner_portal", 12, hundredths(50))),
        json!({"value": false, "reason": "out_of_rollout(21)", "bucket": at, "threshold": 12.5})
    );
    let seed = FlagOptions { seed: Some("partner_portal".into()), ..FlagOptions::default() };
    assert_eq!(
        why(&rollout("renamed", 25, seed)),
        json!({
            "value": true, "reason": "in_rollout(21)", "bucket": 21, "threshold": 25, "seeded": true,
        })
    );
    let scope = |plans: &[&str], tenants: &[&str]| Scope {
        plans: plans.iter().map(ToString::to_string).collect(),
        tenant_slugs: tenants.iter().map(ToString::to_string).collect(),
        ..Scope::default()
    };
    let scoped = |scope| Flag { scope, ..plain.clone() };
    assert_eq!(
        why(&scoped(scope(&["free"], &[]))),
        json!({"value": false, "reason": "scope_mismatch(plan)", "axis": "plan", "given": "pro"})
    );
    assert_eq!(
        why(&scoped(scope(&["pro"], &["acme"]))),
        json!({
            "value": false, "reason": "scope_mismatch(tenantSlug)", "axis": "tenantSlug",
            "given": null,
        })
    );
    let broken = Flag { pct: 101, ..plain.clone() };
    assert_eq!(why(&broken), json!({"value": false, "reason": "invalid_flag"}));
    let off = Flag { state: FlagState::Off, ..plain };
    assert_eq!(why(&off), json!({"value": false, "reason": "off"}));
}

#[test]
fn every_flag_of_a_snapshot_is_explained_by_key() {
    let invalid = vec![InvalidFlag { key: "b".into(), problem: "broken".into() }];
    let flags = ["a", "c"].map(|key| rollout(key, 0, FlagOptions::default())).into();
    let snapshot = Snapshot { revision: 1, flags, invalid };
    let context = tenant(TENANT);
    let all = snapshot.explain_all(&context);
    let set = FlagSet::of(&snapshot);
    let decided: Vec<_> = set.evaluate_all(&context).collect();
    let explained: Vec<_> = all.iter().map(|(key, why)| (*key, why.decision)).collect();
    assert_eq!(explained, decided);
    assert_eq!(all[1].1.decision.reason.to_string(), "invalid_flag");
}

#[test]
fn a_preview_names_who_gains_and_who_loses() {
    let ids: Vec<_> = (0..400).map(|n| format!("t-{n}")).collect();
    let plans = ["free", "pro", "enterprise"];
    let all = || {
        ids.iter().enumerate().map(|(n, id)| FlagContext {
            tenant_id: id,
            tenant_slug: Some(id),
            plan: Some(plans[n % 3]),
            ..FlagContext::default()
        })
    };
    let before = rollout("k", 25, FlagOptions::default());
    let after = Flag {
        pct: 40,
        scope: Scope { plans: vec!["enterprise".into(), "pro".into()], ..Scope::default() },
        ..before.clone()
    };
    let seen = preview(Some(&before), Some(&after), all());
    let of = |wanted: &dyn Fn(u8, &str) -> bool| -> Vec<&str> {
        let is_wanted =
            |tenant: &FlagContext<'_>| wanted(bucket(tenant.tenant_id, "k"), tenant.plan.unwrap());
        all().filter(is_wanted).map(|tenant| tenant.tenant_id).collect()
    };
    let gains = of(&|bucket, plan| plan != "free" && (25..40).contains(&bucket));
    let loses = of(&|bucket, plan| plan == "free" && bucket < 25);
    assert!(!gains.is_empty() && !loses.is_empty());
    let ids_of = |tenants: &[dezky_flags::FlippedTenant]| -> Vec<String> {
        tenants.iter().map(|tenant| tenant.id.clone()).collect()
    };
    assert_eq!(ids_of(&seen.gains.tenants), gains);
    assert_eq!(ids_of(&seen.loses.tenants), loses);
    assert_eq!(seen.gains.count, gains.len() as u64);
    assert_eq!(seen.before_on, of(&|bucket, _| bucket < 25).len() as u64);
    assert_eq!(seen.after_on, seen.before_on + seen.gains.count - seen.loses.count);
    assert_eq!(seen.by_plan.keys().collect::<Vec<_>>(), ["enterprise", "free", "pro"]);
    assert_eq!((seen.by_plan["free"].total, seen.by_plan["free"].gains), (134, 0));
    assert_eq!(seen.by_plan["free"].loses, loses.len() as u64);
    let sum = |of: fn(&dezky_flags::PlanPreview) -> u64| seen.by_plan.values().map(of).sum::<u64>();
    assert_eq!((sum(|p| p.total), sum(|p| p.before_on)), (400, seen.before_on));
    assert_eq!((sum(|p| p.after_on), sum(|p| p.gains)), (seen.after_on, seen.gains.count));
    assert_eq!(
        seen.to_string(),
        format!(
            "~{} of 400 tenants: {} gain it, {} lose it",
            seen.after_on,
            gains.len(),
            loses.len()
        )
    );

    // Created and removed.
    let made = preview(None, Some(&before), all());
    assert_eq!((made.before_on, made.gains.count), (0, seen.before_on));
    let gone = preview(Some(&before), None, all());
    assert_eq!(gone.loses.tenants, made.gains.tenants);
    let json = serde_json::to_value(&seen).unwrap();
    assert_eq!(json["gains"]["tenants"][0]["slug"], gains[0]);
    assert_eq!(json["byPlan"]["pro"]["afterOn"], seen.by_plan["pro"].after_on);
    assert_eq!(json.get("otherPlans"), None);
}

/// The counts are exact and the lists bounded.
#[test]
fn a_hundred_thousand_tenants_are_counted_and_a_thousand_listed() {
    let on = Flag { state: FlagState::On, ..rollout("k", 0, FlagOptions::default()) };
    let mut previewer = Previewer::new(None, Some(&on));
    let mut few = Previewer::new(None, Some(&on)).with_limit(2);
    for n in 0..100_000 {
        let (id, plan) = (format!("t-{n}"), format!("plan-{n}"));
        let context = FlagContext { tenant_id: &id, plan: Some(&plan), ..FlagContext::default() };
        previewer.see(&context);
        few.see(&context);
    }
    let seen = previewer.finish();
    assert_eq!((seen.total, seen.gains.count), (100_000, 100_000));
    assert_eq!((seen.gains.tenants.len(), seen.by_plan.len()), (MAX_LISTED_TENANTS, 1_000));
    let other = seen.other_plans.unwrap();
    assert_eq!((other.total, other.gains), (99_000, 99_000));
    let few = few.finish().gains;
    assert_eq!((few.tenants.len(), few.count), (2, 100_000));
}

#[test]
fn two_snapshots_are_compared_flag_by_flag() {
    let flags = |flags: &[Flag]| Snapshot { flags: flags.to_vec(), ..Snapshot::default() };
    let same = rollout("same", 50, FlagOptions::default());
    let before = flags(&[rollout("gone", 100, FlagOptions::default()), same.clone()]);
    let told = Flag { description: "told".into(), version: 9, ..same };
    let mut after = flags(&[rollout("new", 100, FlagOptions::default()), told]);
    after.invalid.push(InvalidFlag { key: "broken".into(), problem: "no flag".into() });
    let mut previewer = SnapshotPreviewer::new(&before, &after);
    assert!(!previewer.is_empty());
    for id in ["t-1", "t-2"] {
        previewer.see(&tenant(id));
    }
    let seen = previewer.finish();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["gone", "new"]);
    assert_eq!((seen["gone"].loses.count, seen["new"].gains.count), (2, 2));
    assert!(SnapshotPreviewer::new(&before, &before).is_empty());
}

#[test]
fn a_file_is_read_by_definition() {
    let text = r#"{"flags": [{"key": "b", "state": "on"}, {"key": "a", "pct": 25, "colour": 1}]}"#;
    let file = FlagFile::from_json(text).unwrap();
    assert_eq!((file.revision, file.flags.len()), (0, 1));
    assert!(file.invalid[0].problem.starts_with("colour is not a field"), "{:?}", file.invalid);
    let set = FlagSet::of(&file.snapshot());
    assert!(set.evaluate("b", &tenant(TENANT)).value);
    assert_eq!(set.evaluate("a", &tenant(TENANT)).reason.to_string(), "invalid_flag");
    let refused = file.all().unwrap_err().to_string();
    assert!(refused.starts_with("flag a: colour is not a field"), "{refused}");

    let runtime = ManualRuntime::new(3);
    let flags = FlagGenerator::new(&runtime).flags(50);
    let snapshot = Snapshot { revision: 7, flags, invalid: Vec::new() };
    let file = FlagFile::from_json(&snapshot.to_json()).unwrap();
    assert_eq!((file.revision, file.flags.len(), file.invalid.len()), (7, 50, 0));
    for (key, flag) in file.flags.iter().map(|new| (&new.key, new)) {
        let stored = snapshot.flags.iter().find(|flag| flag.key == *key).unwrap();
        assert_eq!((&flag.scope, &flag.options), (&stored.scope, &stored.options));
    }
    for (text, word) in [
        ("", "not a flag file"),
        ("[]", "not a flag file"),
        (r#"{"flags": {}}"#, "not a flag file"),
        (r#"{"flags": [], "flag": 1}"#, "unknown field"),
        (r#"{"flags": [1]}"#, "flags[0].key"),
        (r#"{"flags": [{"key": "A"}]}"#, "flags[0].key"),
        (r#"{"flags": [{"key": "a"}, {"key": "a"}]}"#, "flags[1].key: a is given twice"),
        (
            r#"{"flags": [{"key": "a"}], "invalid": [{"key": "a", "problem": "x"}]}"#,
            "invalid[0].key: a is given twice",
        ),
    ] {
        let refused = FlagFile::from_json(text).unwrap_err();
        assert_eq!(refused.code(), "field_invalid");
        assert!(refused.to_string().contains(word), "{text}: {refused}");
    }
    let many: Vec<_> = (0..=10_000).map(|n| json!({"key": format!("k{n}")})).collect();
    let refused = FlagFile::from_json(&json!({ "flags": many }).to_string()).unwrap_err();
    assert!(
        refused.to_string().contains("10001 flags are too many: the maximum is 10000"),
        "{refused}"
    );
}

proptest! {
    #[test]
    fn an_explanation_is_the_decision(seed: u64) {
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let flags = generator.flags(30);
        let set = FlagSet::compile(&flags);
        for _ in 0..20 {
            let asker = generator.asker();
            let context = asker.context();
            for flag in &flags {
                let why = explain(flag, &context);
                prop_assert_eq!(why.decision, decide(flag, &context));
                prop_assert_eq!(why.decision, set.evaluate(&flag.key, &context));
                if let Some(rollout) = why.rollout {
                    prop_assert_eq!(rollout.threshold, flag.threshold());
                    prop_assert_eq!(why.decision.value, rollout.bucket < rollout.threshold);
                }
                let axis = why.decision.reason.to_string().starts_with("scope_mismatch");
                prop_assert_eq!(why.axis().is_some(), axis);
            }
        }
    }

    #[test]
    fn a_preview_is_two_decisions_a_tenant(seed: u64) {
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let before = generator.next_flag();
        let after = Flag { key: before.key.clone(), ..generator.next_flag() };
        let askers: Vec<_> = (0..200).map(|_| generator.asker()).collect();
        let contexts = || askers.iter().map(|asker| asker.context());
        let seen = preview(Some(&before), Some(&after), contexts());
        let on = |flag: &Flag| contexts().filter(|c| decide(flag, c).value).count() as u64;
        prop_assert_eq!((seen.before_on, seen.after_on), (on(&before), on(&after)));
        let flips = |from: &Flag, to: &Flag| -> Vec<String> {
            let flips = contexts().filter(|c| !decide(from, c).value && decide(to, c).value);
            flips.map(|context| context.tenant_id.to_owned()).collect()
        };
        let listed = |flipped: &Flipped| -> Vec<String> {
            flipped.tenants.iter().map(|tenant| tenant.id.clone()).collect()
        };
        prop_assert_eq!(listed(&seen.gains), flips(&before, &after));
        prop_assert_eq!(listed(&seen.loses), flips(&after, &before));
        for (plan, of) in &seen.by_plan {
            let theirs = contexts().filter(|c| c.plan.unwrap_or_default() == plan);
            let alone = preview(Some(&before), Some(&after), theirs);
            prop_assert_eq!(alone.by_plan.into_iter().next(), Some((plan.clone(), *of)));
            prop_assert_eq!((alone.total, alone.gains.count), (of.total, of.gains));
        }
        prop_assert_eq!(seen.after_on + seen.loses.count, seen.before_on + seen.gains.count);
        if decides_alike(Some(&before), Some(&after)) {
            prop_assert_eq!(seen.gains.count + seen.loses.count, 0);
        }
    }
}
