//! Appends batches of 1,000 events to SQLite, and measures the share of the chain.
//!
//! `cargo bench -p dezky-benches --bench append`. Every append is durable (WAL, `synchronous =
//! FULL`), into a log that grows as the bench runs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dezky_core::integrity::{GENESIS, chain_hash};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore, SqliteAuditStore, SqliteConfig};
use dezky_core::{Actor, NewEvent, NewMetadata, SealedEvent};

const BATCH: u64 = 1_000;

/// An event like an oCIS line: about 650 bytes, of which 150 are metadata.
fn event(n: u64) -> NewEvent {
    NewEvent {
        resource_type: Some("file".into()),
        resource_id: Some(format!("a4ae10e7-423c-4886-8fa2-1de59d56176d$507f955f!{n:036}")),
        resource_name: Some(format!("Reports/q{n}.txt")),
        tenant_slug: Some(format!("tenant-{}", n % 50)),
        source: "ocis".into(),
        external_id: Some(format!("ocis1:{:016x}{n:024x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        metadata: NewMetadata::from_source(format!(
            r#"{{"Action":"file_create","App":"admin_audit","Path":"./Reports/q{n}.txt","Level":1,"CLI":false,"Owner":"9278ef9e-a324-488a-a04d-216645d73f6c"}}"#
        )),
        ..NewEvent::new(
            "ocis.file_uploaded",
            Actor::user(format!("a4c517a3-{}", n % 200)).with_ip("203.0.113.7"),
        )
    }
}

fn events(from: u64) -> Vec<NewEvent> {
    (from..from + BATCH).map(event).collect()
}

fn seal(events: Vec<NewEvent>) -> Vec<SealedEvent> {
    events.into_iter().map(|event| event.seal(&TokioRuntime)).collect()
}

fn append(criterion: &mut Criterion) {
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let folder = tempfile::tempdir().expect("a folder");
    let config = SqliteConfig::new(folder.path().join("audit.db"));
    let store = tokio.block_on(SqliteAuditStore::open(config, &TokioRuntime)).expect("opens");
    let mut group = criterion.benchmark_group("append_1000");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20);
    group.measurement_time(Duration::from_secs(10));
    let mut next = 0;
    group.bench_function("sqlite", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let batch = seal(events(next));
                next += BATCH;
                let started = now();
                let appended = tokio.block_on(store.append(batch, AppendOptions::default()));
                spent += started.elapsed();
                assert_eq!(appended.expect("appends").appended(), 1_000);
            }
            spent
        });
    });
    group.bench_function("sqlite_all_duplicates", |bencher| {
        let batch = seal(events(0));
        let first = tokio.block_on(store.append(batch.clone(), AppendOptions::default()));
        first.expect("appends");
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let batch = batch.clone();
                let started = now();
                let appended = tokio.block_on(store.append(batch, AppendOptions::default()));
                spent += started.elapsed();
                assert_eq!(appended.expect("appends").duplicates(), 1_000);
            }
            spent
        });
    });
    group.finish();
}

fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chain_1000");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20);
    // Before any lock: normal form, canonical metadata, salt, commitments and leaf.
    group.bench_function("seal", |bencher| {
        bencher.iter_batched(|| events(0), |events| black_box(seal(events)), BatchSize::LargeInput);
    });
    // Commitments and leaf alone.
    let sealed: Vec<(_, _)> =
        seal(events(0)).iter().map(|e| (e.event().clone(), *e.salt())).collect();
    group.bench_function("leaf", |bencher| {
        bencher.iter_batched(
            || sealed.clone(),
            |sealed| {
                for (event, salt) in sealed {
                    black_box(SealedEvent::new(event, salt));
                }
            },
            BatchSize::LargeInput,
        );
    });
    // The work done while the head is locked.
    let leaves: Vec<_> = seal(events(0)).iter().map(|e| *e.leaf_hash()).collect();
    group.bench_function("extend", |bencher| {
        bencher.iter(|| leaves.iter().fold(GENESIS, |head, leaf| chain_hash(&head, leaf)));
    });
    group.finish();
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

criterion_group!(benches, chain, append);
criterion_main!(benches);
