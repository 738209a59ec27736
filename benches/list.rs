//! Measures how long a page of `list` takes by filter, and whether the tenth run of a query is as
//! fast as the first.
//!
//! `cargo bench -p dezky-benches --bench list -- --rows 1000000` fills a log with that many rows in
//! SQLite, and one in PostgreSQL if `DEZKY_TEST_POSTGRES` names a server, as under
//! `.ci/with-servers`; the database is dropped at the end. Without `--rows` there are few rows, to
//! check that the bench still runs. `--runs` sets how often each query is measured.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{
    AppendOptions, ListPage, ListQuery, PostgresAuditStore, PostgresConfig, SqliteAuditStore,
    SqliteConfig,
};
use dezky_core::{Actor, AuditStore, NewEvent, NewMetadata, Outcome, Timestamp};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const BATCH: u64 = 5_000;
/// The number of times that a query runs on fresh connections, ten runs each time.
const ROUNDS: usize = 20;
/// 2026-01-01T00:00:00Z; one event per second from then on.
const START: i64 = 1_767_225_600_000;
const WORD: &str = "reports";
const RARE_WORD: &str = "zanzibar";

fn main() -> ExitCode {
    let rows = argument("--rows").unwrap_or(2 * BATCH);
    let rounds = argument("--runs").map_or(ROUNDS, |runs| usize::try_from(runs).unwrap_or(ROUNDS));
    let rounds = if rows <= 2 * BATCH { 2 } else { rounds };
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let held = tokio.block_on(async {
        let mut held = sqlite(rows, rounds).await;
        match server() {
            Some(url) => held &= postgres(&url, rows, rounds).await,
            None => println!("\nDEZKY_TEST_POSTGRES is not set: nothing of PostgreSQL"),
        }
        held
    });
    // With few rows the noise exceeds the measured difference.
    ExitCode::from(u8::from(!held && rows > 2 * BATCH))
}

fn argument(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map(|text| text.parse().expect("a number"))
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is told where the server is")]
fn server() -> Option<String> {
    std::env::var("DEZKY_TEST_POSTGRES").ok()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

async fn sqlite(rows: u64, rounds: usize) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("audit.db");
    let open = || async {
        let config = SqliteConfig::new(&path);
        let store = SqliteAuditStore::open(config, &TokioRuntime).await.expect("opens");
        Arc::new(store) as Arc<dyn AuditStore>
    };
    fill("SQLite", &*open().await, rows).await;
    measure("SQLite", &queries(rows), rounds, open).await
}

async fn postgres(server: &str, rows: u64, rounds: usize) -> bool {
    let name = format!("dezky_bench_{}", std::process::id());
    let end = server.find("://").map_or(0, |at| at + 3);
    let end = server[end..].find('/').map_or(server.len(), |at| end + at);
    let url = format!("{}/{name}", &server[..end]);
    let mut admin = PgConnection::connect(server).await.expect("connects");
    let create = format!("CREATE DATABASE {name}");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.expect("makes a database");
    let opened = || async {
        PostgresAuditStore::open(PostgresConfig::new(&url), &TokioRuntime).await.expect("opens")
    };
    let open = || async { Arc::new(opened().await) as Arc<dyn AuditStore> };
    fill("PostgreSQL", &*open().await, rows).await;
    let mut connection = PgConnection::connect(&url).await.expect("connects");
    sqlx::raw_sql("VACUUM ANALYZE").execute(&mut connection).await.expect("analyses");
    let mut held = measure("PostgreSQL", &queries(rows), rounds, open).await;
    let started = now();
    opened().await.create_search_index().await.expect("makes the index");
    println!("\nthe trigram index took {:.1?}", started.elapsed());
    let words: Vec<_> =
        queries(rows).into_iter().filter(|(name, _)| name.starts_with('q')).collect();
    held &= measure("PostgreSQL with the trigram index", &words, rounds, open).await;
    drop(connection);
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut admin).await.expect("drops it");
    held
}

async fn fill(engine: &str, store: &dyn AuditStore, rows: u64) {
    let started = now();
    for first in (0..rows).step_by(usize::try_from(BATCH).expect("it fits")) {
        let events = (first..rows.min(first + BATCH)).map(|n| event(n, rows).seal(&TokioRuntime));
        store.append(events.collect(), AppendOptions::default()).await.expect("appends");
    }
    println!("{engine}: {rows} rows in {:.1?}, sealing included", started.elapsed());
}

/// 50 tenants, 200 actors, 40 actions; one in 100,000 events has a rare name.
fn event(n: u64, rows: u64) -> NewEvent {
    let drawn = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let name = match n {
        n if n % (rows / 10).max(1) == 7 => format!("{RARE_WORD}/{n}.txt"),
        n if n % 3 == 0 => format!("{WORD}/q{n}.txt"),
        _ => format!("notes/n{n}.md"),
    };
    let verb =
        ["uploaded", "renamed", "deleted", "shared"][usize::try_from(drawn % 4).unwrap_or(0)];
    NewEvent {
        at: Timestamp::from_millis(START + i64::try_from(n).unwrap_or(0) * 1_000),
        outcome: if drawn.is_multiple_of(50) { Outcome::Failure } else { Outcome::Success },
        resource_type: Some("file".into()),
        resource_id: Some(format!("a4ae10e7-423c-4886-8fa2-1de59d56176d!{n:036}")),
        resource_name: Some(name),
        tenant_slug: (!drawn.is_multiple_of(51)).then(|| format!("tenant-{}", drawn % 51)),
        partner_slug: drawn.is_multiple_of(7).then(|| format!("partner-{}", drawn % 5)),
        source: if drawn.is_multiple_of(1_000) { "ocis:eu2".into() } else { "ocis".into() },
        external_id: Some(format!("ocis1:{drawn:016x}{n:024x}")),
        metadata: NewMetadata::from_source(format!(
            r#"{{"Action":"file_create","App":"admin_audit","Path":"./q{n}.txt","Level":1,"CLI":false}}"#
        )),
        ..NewEvent::new(
            format!("ocis{}.file_{verb}", drawn % 10),
            Actor::user(format!("user-{}", drawn % 200))
                .with_email(format!("u{}@acme.test", drawn % 200)),
        )
    }
}

fn queries(rows: u64) -> Vec<(&'static str, ListQuery)> {
    let text = |text: &str| Some(text.to_owned());
    let second = |n: u64| Timestamp::from_millis(START + i64::try_from(n).unwrap_or(0) * 1_000);
    let query = ListQuery::default;
    vec![
        ("newest", query()),
        (
            "a window in the middle",
            ListQuery { since: second(rows / 2), until: second(rows / 2 + 600), ..query() },
        ),
        ("before the middle", ListQuery { before: second(rows / 2), ..query() }),
        ("tenantSlug", ListQuery { tenant_slug: text("tenant-7"), ..query() }),
        ("tenantSlug, of none", ListQuery { tenant_slug: text(""), ..query() }),
        ("actorId", ListQuery { actor_id: text("user-7"), ..query() }),
        (
            "actorId and tenantSlug",
            ListQuery { actor_id: text("user-7"), tenant_slug: text("tenant-7"), ..query() },
        ),
        ("action, exact", ListQuery { action: text("ocis3.file_renamed"), ..query() }),
        ("action, prefix", ListQuery { action: text("ocis3."), ..query() }),
        ("action, no such", ListQuery { action: text("tenant."), ..query() }),
        (
            "action in tenantSlug",
            ListQuery { action: text("ocis3.file_re"), tenant_slug: text("tenant-7"), ..query() },
        ),
        ("partnerSlug", ListQuery { partner_slug: text("partner-3"), ..query() }),
        ("actorEmail", ListQuery { actor_email: text("U7@acme.test"), ..query() }),
        ("resourceType", ListQuery { resource_type: text("file"), ..query() }),
        (
            "resourceId, beyond the budget",
            ListQuery {
                resource_id: Some(format!("a4ae10e7-423c-4886-8fa2-1de59d56176d!{:036}", rows / 3)),
                ..query()
            },
        ),
        ("outcome", ListQuery { outcome: Some(Outcome::Failure), ..query() }),
        ("source, an instance", ListQuery { source: text("ocis:eu2"), ..query() }),
        ("q, common", ListQuery { q: text(WORD), ..query() }),
        ("q, rare", ListQuery { q: text(RARE_WORD), ..query() }),
        ("q, nowhere", ListQuery { q: text("xylophone"), ..query() }),
        ("q, two characters", ListQuery { q: text("zz"), ..query() }),
    ]
}

/// Runs each query ten times on a freshly opened store, in several rounds; returns whether the
/// tenth run's median is at most twice the first's.
async fn measure<F: Future<Output = Arc<dyn AuditStore>>>(
    engine: &str,
    queries: &[(&'static str, ListQuery)],
    rounds: usize,
    open: impl Fn() -> F,
) -> bool {
    println!("\n| {engine}, ms | p50 | p99 | first run | tenth run | rows | |");
    println!("|---|---|---|---|---|---|---|");
    let mut held = true;
    for (name, query) in queries {
        let (mut all, mut first, mut tenth) = (Vec::new(), Vec::new(), Vec::new());
        let mut page = None;
        for _ in 0..rounds {
            let store = open().await;
            // So that only the query is new, not the connection.
            store.state().await.expect("has a state");
            for run in 1..=10 {
                let started = now();
                page = Some(store.list(query).await.expect("lists"));
                let took = started.elapsed();
                all.push(took);
                match run {
                    1 => first.push(took),
                    10 => tenth.push(took),
                    _ => {}
                }
            }
        }
        let page: ListPage = page.expect("it ran");
        let (one, ten) = (percentile(&mut first, 50), percentile(&mut tenth, 50));
        let slower = ten > one * 2;
        held &= !slower;
        println!(
            "| {name} | {} | {} | {} | {} | {} | {}{} |",
            ms(percentile(&mut all, 50)),
            ms(percentile(&mut all, 99)),
            ms(one),
            ms(ten),
            page.events.len(),
            if page.partial { "partial" } else { "" },
            if slower { " THE TENTH RUN IS SLOWER" } else { "" },
        );
    }
    held
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1_000.0)
}
