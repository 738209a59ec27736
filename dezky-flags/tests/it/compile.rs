//! The compiled set on every path, compared with the reference implementation.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use dezky_core::Timestamp;
use dezky_core::testkit::ManualRuntime;
use dezky_flags::store::{InvalidFlag, Snapshot};
use dezky_flags::testkit::{Asker, FlagGenerator};
use dezky_flags::{
    Bits, BucketAlgorithm, Decision, DigestEngine, Flag, FlagContext, FlagEvaluator, FlagOptions,
    FlagSet, FlagState, NewFlag, Offsets, Reason, Scope, bucket, decide, decide_with_algorithm,
    fine_bucket,
};
use proptest::prelude::*;
use serde::Deserialize;

fn engines() -> impl Iterator<Item = DigestEngine> {
    DigestEngine::ALL.into_iter().filter(|engine| engine.is_available())
}

/// Evaluates all flags on every path and compares each with `expected`, by key.
fn assert_on_every_path(
    set: &FlagSet,
    context: &FlagContext<'_>,
    expected: &BTreeMap<&str, Decision>,
) {
    let values: BTreeMap<&str, bool> =
        expected.iter().map(|(key, decision)| (*key, decision.value)).collect();
    for (key, decision) in expected {
        assert_eq!(set.evaluate(key, context), *decision, "{key} by its key");
        let handle = set.handle(key).unwrap();
        assert_eq!((handle.key(), handle.evaluate(context)), (*key, *decision), "{key} by handle");
    }
    for engine in engines() {
        let set = set.clone().with_digest_engine(engine);
        let all: BTreeMap<_, _> = set.evaluate_all(context).collect();
        assert_eq!(all, *expected, "all by {engine:?}");
        assert_eq!(set.evaluate_all(context).count(), expected.len());
        assert_eq!(set.values(context), values, "values by {engine:?}");

        // A buffer with leftovers from another use.
        let mut cold = Bits::new();
        OTHER_SET.values_into(context, &mut cold);
        set.values_into(context, &mut cold);
        assert!(cold.iter().eq(values.values().copied()), "bits by {engine:?}");
        assert_eq!(cold.len(), values.len());
        assert_eq!(cold.count(), values.values().filter(|value| **value).count());
        let row = set.bucket_row(context.tenant_id);
        assert!(set.fits(&row, context.tenant_id));
        let mut warm = Bits::new();
        set.values_with_row(&row, context, &mut warm);
        assert_eq!(warm, cold, "bits with a row by {engine:?}");

        let mut json = String::from("beside ");
        set.write_json(&cold, &mut json);
        let json = json.strip_prefix("beside ").unwrap();
        assert_eq!(json, serde_json::to_string(&values).unwrap(), "json by {engine:?}");
    }
}

fn by_definition<'a>(
    flags: &'a [Flag],
    context: &FlagContext<'_>,
    algorithm: BucketAlgorithm,
) -> BTreeMap<&'a str, Decision> {
    flags.iter().map(|flag| (&*flag.key, decide_with_algorithm(flag, context, algorithm))).collect()
}

fn flag(key: &str, state: FlagState, pct: u8) -> Flag {
    Flag::new(NewFlag { state, pct, ..NewFlag::new(key) }, Timestamp::MIN).unwrap()
}

/// More flags, all on, than most sets of these tests have.
static OTHER_SET: LazyLock<FlagSet> = LazyLock::new(|| {
    let flags: Vec<_> = (0..200).map(|n| flag(&format!("other-{n}"), FlagState::On, 0)).collect();
    FlagSet::compile(&flags)
});

/// A flag with a percentage that the model rejects.
fn broken(flag: &Flag) -> Flag {
    Flag { pct: 101, state: FlagState::Rollout, ..flag.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_path_agrees_with_the_definition(seed: u64, count in 0_usize..150, prefix: bool) {
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let flags = generator.flags(count);
        let algorithm = if prefix { BucketAlgorithm::Prefix32 } else { BucketAlgorithm::Whole };
        let (sound, unsound) = flags.split_at(count - count / 10);
        let invalid: Vec<_> = unsound.iter().map(broken).collect();
        let set = FlagSet::compile(sound.iter().chain(&invalid)).with_bucket_algorithm(algorithm);
        for _ in 0..3 {
            let asker = generator.asker();
            let context = asker.context();
            let mut expected = by_definition(sound, &context, algorithm);
            let off = Decision { value: false, reason: Reason::InvalidFlag };
            expected.extend(invalid.iter().map(|flag| (&*flag.key, off)));
            assert_on_every_path(&set, &context, &expected);
        }
    }

    /// Ids of one length follow each other, or lengths alternate, around the block boundaries.
    #[test]
    fn a_column_agrees_with_the_definition(
        seed: u64,
        count in 0_usize..200,
        lengths in proptest::collection::vec(0_usize..130, 1..4),
        prefix: bool,
    ) {
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let mut flags = generator.flags(12);
        flags.push(reaching("some", 3_333, None));
        flags.push(reaching("seeded", 5_000, Some("x".repeat(64))));
        flags.push(reaching("all", 10_000, None));
        flags.push(reaching("none", 0, None));
        let algorithm = if prefix { BucketAlgorithm::Prefix32 } else { BucketAlgorithm::Whole };
        let asker = generator.asker();
        let shared = asker.context();
        let id = |n: usize| format!("{n:0width$}", width = lengths[n % lengths.len()]);
        let tenants: Vec<_> = (0..count).map(id).collect();
        for engine in engines() {
            let set = FlagSet::compile(&flags).with_bucket_algorithm(algorithm);
            let set = set.with_digest_engine(engine);
            // Leftovers of another use.
            let mut values = Bits::new();
            OTHER_SET.values_into(&shared, &mut values);
            for flag in &flags {
                let handle = set.handle(&flag.key).unwrap();
                handle.values_into(&tenants, &shared, &mut values);
                let expected = tenants.iter().map(|tenant_id| {
                    let context = FlagContext { tenant_id, ..shared };
                    decide_with_algorithm(flag, &context, algorithm).value
                });
                prop_assert_eq!(values.len(), count);
                prop_assert!(values.iter().eq(expected), "{engine:?} {flag:?}");
                let (bytes, mut wide, mut narrow) = (tenants.concat(), vec![0], vec![0]);
                for tenant_id in &tenants {
                    wide.push(wide[wide.len() - 1] + i64::try_from(tenant_id.len()).unwrap());
                    narrow.push(i32::try_from(wide[wide.len() - 1]).unwrap());
                }
                for offsets in [Offsets::Narrow(&narrow), Offsets::Wide(&wide)] {
                    let mut of_texts = Bits::new();
                    OTHER_SET.values_into(&shared, &mut of_texts);
                    handle.values_of(bytes.as_bytes(), offsets, &shared, &mut of_texts);
                    prop_assert_eq!(&of_texts, &values, "{:?} {:?}", engine, flag);
                }
                prop_assert_eq!(values.count(), values.iter().filter(|value| *value).count());
                let is_rollout = flag.state == FlagState::Rollout;
                prop_assert_eq!(handle.threshold(), is_rollout.then(|| flag.threshold()));
            }
        }
    }

    /// Rows of other tenants, keys or algorithms must not affect decisions.
    #[test]
    fn a_row_that_does_not_fit_is_ignored(seed: u64) {
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let flags = generator.flags(40);
        let set = FlagSet::compile(&flags);
        let (asker, other) = (Asker { tenant_id: "a".into(), ..generator.asker() }, "b");
        let context = asker.context();
        let mut fewer = flags.clone();
        fewer.remove(7);
        let mut seeded = flags.clone();
        seeded[3].options.seed = Some("another".into());
        let foreign = [
            set.bucket_row(other),
            FlagSet::compile(&fewer).bucket_row("a"),
            FlagSet::compile(&seeded).bucket_row("a"),
            set.clone().with_bucket_algorithm(BucketAlgorithm::Prefix32).bucket_row("a"),
            FlagSet::default().bucket_row("a"),
        ];
        let (mut expected, mut values) = (Bits::new(), Bits::new());
        set.values_into(&context, &mut expected);
        for row in &foreign {
            assert!(!set.fits(row, "a"));
            set.values_with_row(row, &context, &mut values);
            assert_eq!(values, expected);
        }
    }

    /// Rows stay valid after edits that change neither keys nor seeds.
    #[test]
    fn a_row_outlives_edits(seed: u64) {
        let runtime = ManualRuntime::new(seed);
        let mut generator = FlagGenerator::new(&runtime);
        let before = generator.flags(70);
        let after: Vec<Flag> = before
            .iter()
            .zip(generator.flags(70))
            .map(|(old, new)| {
                let seed = old.options.seed.clone();
                Flag { key: old.key.clone(), options: FlagOptions { seed, ..new.options }, ..new }
            })
            .collect();
        let asker = generator.asker();
        let context = asker.context();
        let row = FlagSet::compile(&before).bucket_row(context.tenant_id);
        let set = FlagSet::compile(&after);
        assert!(set.fits(&row, context.tenant_id));
        let mut values = Bits::new();
        set.values_with_row(&row, &context, &mut values);
        let expected: Vec<_> =
            by_definition(&after, &context, BucketAlgorithm::Whole).values().map(|d| d.value).collect();
        assert_eq!(values.iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn sets_of_any_size_agree_with_the_definition() {
    for count in [0, 1, 63, 64, 65, 255, 256, 257, 10_000] {
        let runtime = ManualRuntime::new(count as u64);
        let mut generator = FlagGenerator::new(&runtime);
        let flags = generator.flags(count);
        let set = FlagSet::compile(&flags);
        let asker = generator.asker();
        let expected = by_definition(&flags, &asker.context(), BucketAlgorithm::Whole);
        assert_eq!((set.len(), set.is_empty()), (count, count == 0));
        assert!(set.keys().eq(expected.keys().copied()));
        assert_on_every_path(&set, &asker.context(), &expected);
        assert_on_every_path(
            &set,
            &FlagContext::default(),
            &by_definition(&flags, &FlagContext::default(), BucketAlgorithm::Whole),
        );
        assert!(set.handle("unknown").is_none());
    }
}

/// The plan stores values of many flags differently from values of few, and long scopes differently
/// from short ones.
#[test]
fn common_and_rare_values_agree_with_the_definition() {
    let tenants =
        |n: usize, count: usize| (n..n + count).map(|t| format!("tenant-{t:04}")).collect();
    let flags: Vec<_> = (0..700)
        .map(|n| {
            let count = [0, 1, 8, 9, 1_000][n % 5];
            let plans = if n % 2 == 0 { vec!["pro".to_owned()] } else { Vec::new() };
            let scope = Scope { plans, tenant_slugs: tenants(n, count), ..Scope::default() };
            let state = if n % 3 == 0 { FlagState::Rollout } else { FlagState::Targeted };
            let new = NewFlag { state, pct: 50, scope, ..NewFlag::new(format!("flag-{n:03}")) };
            Flag::new(new, Timestamp::MIN).unwrap()
        })
        .collect();
    let set = FlagSet::compile(&flags);
    for tenant in ["tenant-0000", "tenant-0004", "tenant-0500", "tenant-1698", "unknown", ""] {
        for plan in [None, Some("pro"), Some("free")] {
            let tenant_slug = Some(tenant);
            let context = FlagContext { tenant_id: "t-1", tenant_slug, plan, ..Default::default() };
            let expected = by_definition(&flags, &context, BucketAlgorithm::Whole);
            assert_on_every_path(&set, &context, &expected);
        }
    }
}

#[test]
fn keys_of_any_text_are_written_as_json() {
    // Keys that the model would reject but a set accepts.
    let keys = ["", "\"", "\\n\n", "ключ", "\u{1}"];
    let flags: Vec<_> = keys
        .iter()
        .map(|key| Flag { key: (*key).to_owned(), ..flag("k", FlagState::On, 0) })
        .collect();
    let context = FlagContext::default();
    let expected = by_definition(&flags, &context, BucketAlgorithm::Whole);
    assert_on_every_path(&FlagSet::compile(&flags), &context, &expected);
}

#[test]
fn flags_that_a_store_could_not_read_are_off_on_every_path() {
    let invalid = InvalidFlag { key: "b".into(), problem: "no JSON".into() };
    let flags = vec![flag("a", FlagState::On, 0), flag("c", FlagState::Rollout, 100)];
    let context = FlagContext { tenant_id: "t-1", ..FlagContext::default() };
    let mut expected = by_definition(&flags, &context, BucketAlgorithm::Whole);
    expected.insert("b", Decision { value: false, reason: Reason::InvalidFlag });
    let snapshot = Snapshot { revision: 1, flags: flags.clone(), invalid: vec![invalid] };
    assert_on_every_path(&FlagSet::of(&snapshot), &context, &expected);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    tenant_id: String,
    key: String,
    sha256: String,
    bucket: u8,
    fine: Option<u16>,
}

fn vectors(text: &str) -> Vec<Vector> {
    #[derive(Deserialize)]
    struct Golden {
        vectors: Vec<Vector>,
    }
    serde_json::from_str::<Golden>(text).unwrap().vectors
}

macro_rules! vectors {
    ($file:literal) => {
        vectors(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/", $file)))
    };
}

/// The digest as a number mod 10,000, computed by long division of its decimal text.
fn modulo_10_000(hex: &str) -> u16 {
    let mut decimal = vec![0_u32];
    for digit in hex.chars() {
        let mut carry = digit.to_digit(16).unwrap();
        for place in &mut decimal {
            let sum = *place * 16 + carry;
            (*place, carry) = (sum % 10, sum / 10);
        }
        while carry > 0 {
            decimal.push(carry % 10);
            carry /= 10;
        }
    }
    let last = decimal.iter().take(4).rev().fold(0, |number, digit| number * 10 + digit);
    u16::try_from(last).unwrap()
}

#[test]
fn golden_vectors_hold_on_every_path() {
    let fine_ones = vectors!("rollout-fine.json");
    assert!(fine_ones.iter().all(|vector| vector.fine.is_some()));
    for vector in vectors!("rollout.json").into_iter().chain(fine_ones) {
        let Vector { tenant_id, key, sha256, .. } = &vector;
        let x = modulo_10_000(sha256);
        let fine = x % 100 * 100 + x / 100;
        assert_eq!(vector.fine.unwrap_or(fine), fine, "{tenant_id}:{key}");
        assert_eq!(u16::from(vector.bucket), fine / 100);
        assert_eq!(fine_bucket(tenant_id, key), fine, "{tenant_id}:{key}");
        assert_eq!(bucket(tenant_id, key), vector.bucket);

        let context = FlagContext { tenant_id, ..FlagContext::default() };
        for (threshold, value) in [(fine, false), (fine + 1, true)] {
            let bucket = vector.bucket;
            let reason =
                if value { Reason::InRollout(bucket) } else { Reason::OutOfRollout(bucket) };
            let expected = |flags: &[Flag]| {
                let set = FlagSet::compile(flags);
                let decisions = flags.iter().map(|f| (&*f.key, Decision { value, reason }));
                for engine in engines() {
                    let set = set.clone().with_digest_engine(engine);
                    let mut values = Bits::new();
                    let handle = set.handle(&flags[0].key).unwrap();
                    handle.values_into([tenant_id; 17], &context, &mut values);
                    assert!(values.iter().eq([value; 17]), "a column by {engine:?}");
                }
                assert_on_every_path(&set, &context, &decisions.collect());
            };
            // Buckets are defined for any text, but keys and seeds of flags are bounded.
            expected(&[Flag { key: key.clone(), ..reaching("k", threshold, None) }]);
            let seeded = |n| reaching(&format!("flag-{n}"), threshold, Some(key.clone()));
            // Enough to fill the lanes, and one more.
            let seeded: Vec<_> = (0..17).map(seeded).collect();
            if seeded[0].validate().is_ok() {
                expected(&seeded);
            }
        }
    }
}

/// A rollout with the given number of hundredths of a percent.
fn reaching(key: &str, threshold: u16, seed: Option<String>) -> Flag {
    let [pct, pct_hundredths] =
        [threshold / 100, threshold % 100].map(|number| u8::try_from(number).unwrap());
    let options = FlagOptions { seed, pct_hundredths, ..FlagOptions::default() };
    Flag { options, ..flag(key, FlagState::Rollout, pct) }
}

/// The tenants' ids are fixed, so the numbers are always the same. Chi-square for 10,000 equal
/// buckets has 9,999 degrees of freedom: fair buckets exceed 10,442 once in a thousand runs, and
/// fall below 9,560 as rarely.
#[test]
fn fine_buckets_fall_evenly() {
    let mut counts = vec![0_u32; 10_000];
    for tenant in 0..1_000_000 {
        let fine = fine_bucket(&format!("tenant-{tenant}"), "jmap_native_v2");
        counts[usize::from(fine)] += 1;
    }
    let chi_square: f64 = counts.iter().map(|n| (f64::from(*n) - 100.0).powi(2) / 100.0).sum();
    assert!((9_560.0..10_442.0).contains(&chi_square), "{chi_square}");
    let half_a_percent: u32 = counts[..50].iter().sum();
    assert!(half_a_percent.abs_diff(5_000) < 280, "{half_a_percent}");
}

#[test]
fn hundredths_only_add_and_whole_percentages_stay() {
    let tenants: Vec<_> = (0..500).map(|n| format!("tenant-{n}")).collect();
    let reached = |threshold| -> Vec<bool> {
        let flag = reaching("k", threshold, None);
        flag.validate().unwrap();
        let reached = |tenant_id: &String| {
            decide(&flag, &FlagContext { tenant_id, ..FlagContext::default() }).value
        };
        tenants.iter().map(reached).collect()
    };
    let mut before = vec![false; tenants.len()];
    for threshold in (0..=10_000_u16).step_by(25) {
        let now = reached(threshold);
        assert!(before.iter().zip(&now).all(|(before, now)| !before || *now), "{threshold}");
        if threshold % 100 == 0 {
            let pct = threshold / 100;
            let whole: Vec<_> = tenants.iter().map(|id| u16::from(bucket(id, "k")) < pct).collect();
            assert_eq!(now, whole);
        }
        before = now;
    }
    assert!(before.iter().all(|reached| *reached));
}
