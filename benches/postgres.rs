//! Appends to PostgreSQL: batches of several sizes, and batches of duplicates.
//!
//! `DEZKY_TEST_POSTGRES=postgres://… cargo bench -p dezky-benches --bench postgres`, or under
//! `.ci/with-servers`, whose server runs without fsync: everything except disk access is measured.
//! Each run creates its own database, which grows during the run, and drops it at the end.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore, PostgresAuditStore, PostgresConfig};
use dezky_core::{Actor, NewEvent, NewMetadata, SealedEvent};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

const SIZES: [u64; 4] = [1, 100, 1_000, 5_000];

/// An event like an oCIS line: about 650 bytes, of which 150 are metadata.
fn event(n: u64) -> SealedEvent {
    let event = NewEvent {
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
    };
    event.seal(&TokioRuntime)
}

fn main() {
    let server = server();
    let name = format!("dezky_bench_{}", std::process::id());
    let url = format!("{}/{name}", server.rsplit_once('/').expect("a URL with a database").0);
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    tokio.block_on(admin(&server, format!("CREATE DATABASE {name}")));
    let open = PostgresAuditStore::open(PostgresConfig::new(url), &TokioRuntime);
    let store = tokio.block_on(open).expect("opens");
    let mut criterion = Criterion::default().configure_from_args();
    append(&mut criterion, &tokio, &store);
    criterion.final_summary();
    let best = best_of_small_batches(&tokio, &store);
    tokio.block_on(store.close());
    tokio.block_on(admin(&server, format!("DROP DATABASE {name} WITH (FORCE)")));
    // Two writes before a read would cost 40 ms by delayed acknowledgements, because sqlx does not
    // set `TCP_NODELAY`.
    assert!(best < Duration::from_millis(20), "appending 100 events stalls: {best:?}");
}

#[expect(clippy::disallowed_methods, reason = "the server's URL comes from the environment")]
fn server() -> String {
    std::env::var("DEZKY_TEST_POSTGRES")
        .expect("DEZKY_TEST_POSTGRES is not set: run this under .ci/with-servers")
}

fn append(criterion: &mut Criterion, tokio: &tokio::runtime::Runtime, store: &PostgresAuditStore) {
    let mut group = criterion.benchmark_group("postgres");
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    let mut next = 0;
    for size in SIZES {
        group.throughput(Throughput::Elements(size));
        group.bench_function(BenchmarkId::new("append", size), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let batch: Vec<SealedEvent> = (next..next + size).map(event).collect();
                    next += size;
                    let started = now();
                    let appended = tokio.block_on(store.append(batch, AppendOptions::default()));
                    spent += started.elapsed();
                    assert_eq!(appended.expect("appends").duplicates(), 0);
                }
                spent
            });
        });
        group.bench_function(BenchmarkId::new("duplicates", size), |bencher| {
            let batch: Vec<SealedEvent> = (next..next + size).map(event).collect();
            next += size;
            let first = tokio.block_on(store.append(batch.clone(), AppendOptions::default()));
            first.expect("appends");
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let batch = batch.clone();
                    let started = now();
                    let appended = tokio.block_on(store.append(batch, AppendOptions::default()));
                    spent += started.elapsed();
                    assert_eq!(appended.expect("appends").appended(), 0);
                }
                spent
            });
        });
    }
    group.finish();
}

fn best_of_small_batches(tokio: &tokio::runtime::Runtime, store: &PostgresAuditStore) -> Duration {
    let mut best = Duration::MAX;
    for round in 0..20 {
        let from = u64::from(u32::MAX) + round * 100;
        let batch: Vec<SealedEvent> = (from..from + 100).map(event).collect();
        let started = now();
        tokio.block_on(store.append(batch, AppendOptions::default())).expect("appends");
        best = best.min(started.elapsed());
    }
    best
}

async fn admin(server: &str, sql: String) {
    let mut connection = PgConnection::connect(server).await.expect("the server is reachable");
    connection.execute(AssertSqlSafe(sql)).await.expect("the role may create databases");
    connection.close().await.expect("closes");
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}
