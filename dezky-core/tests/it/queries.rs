//! The same queries on every engine give the same answers.

use std::sync::Arc;

use dezky_core::store::{AppendOptions, ListQuery};
use dezky_core::testkit::{EventGenerator, ManualRuntime};
use dezky_core::{AuditStore, ErrorKind, Outcome, SealedEvent, Timestamp};
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::servers::{Engine, TestLog, tokio};

/// The minute in which all generated events lie.
const MINUTE: i64 = 1_767_225_600_000;
/// How far a query is followed; later pages are covered by other queries' windows.
const PAGES: usize = 6;

/// Random events, some with texts that are difficult for patterns where a filter searches.
fn events(count: usize) -> Vec<SealedEvent> {
    let runtime = ManualRuntime::new(77);
    let mut generator = EventGenerator::new(&runtime);
    let mut hard = || {
        let n = generator.below(HARD.len() * 4);
        (HARD.get(n).map(|text| (*text).to_owned()), generator.next_event())
    };
    (0..count)
        .map(|n| {
            let (text, mut event) = hard();
            if let Some(text) = text {
                match n % 6 {
                    0 => event.actor.id = Some(text),
                    1 => event.actor.email = Some(text),
                    2 => event.resource_id = Some(text),
                    3 => event.resource_type = Some(text),
                    4 => event.partner_slug = Some(text),
                    _ => event.resource_name = Some(text),
                }
            }
            event.seal(&runtime)
        })
        .collect()
}

const HARD: [&str; 14] = [
    "%",
    "_",
    "\\",
    ".*",
    "$where",
    "{\"$gt\":\"\"}",
    "a\0b",
    "'",
    "İ",
    "ς",
    "[a]",
    "^a",
    "(",
    "ß",
];

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        12 => Just(None),
        4 => prop::sample::select(texts).prop_map(|text| Some(text.to_owned())),
        1 => prop::sample::select(&HARD[..]).prop_map(|text| Some(text.to_owned())),
        1 => "\\PC{0,3}".prop_map(Some),
    ]
}

fn time() -> impl Strategy<Value = Option<Timestamp>> {
    prop_oneof![
        4 => Just(None),
        3 => (-1..61_i64).prop_map(|second| Timestamp::from_millis(MINUTE + second * 1_000)),
        1 => Just(Some(Timestamp::MIN)),
        1 => Just(Some(Timestamp::MAX)),
    ]
}

fn queries() -> impl Strategy<Value = ListQuery> {
    let limit = prop_oneof![1..8_usize, 90..110_usize, 498..501_usize];
    let outcome = prop::option::weighted(0.2, prop::sample::select(Outcome::ALL));
    let who = (
        one_of(&["acme", "dezky", "nordic", "ACME", ""]),
        one_of(&["nordic", "süd", ""]),
        one_of(&["u-1", "u-2", "42", "ünï"]),
        one_of(&["ana@acme.test", "ANA@acme.test", "bob@EXAMPLE.com", "ana"]),
    );
    let what = (
        one_of(&["tenant", "tenant.", "tenant.created", "t", "mail.", "ocis.file_uploaded", "z"]),
        one_of(&["tenant", "file", "flag"]),
        one_of(&["t1", "t2", "%"]),
        one_of(&["authentik", "authentik:eu2", "authentik:", "ocis", "auth"]),
        one_of(&["acme", "ACME GMBH", "straße", "σίσυφος", "%", "租", "i̇s", "x\\y", "a", "none"]),
    );
    (time(), time(), time(), who, what, outcome, limit).prop_map(
        |(since, until, before, who, what, outcome, limit)| ListQuery {
            since,
            until,
            before,
            tenant_slug: who.0,
            partner_slug: who.1,
            actor_id: who.2,
            actor_email: who.3,
            action: what.0,
            resource_type: what.1,
            resource_id: what.2,
            source: what.3,
            q: what.4,
            outcome,
            limit,
            cursor: None,
        },
    )
}

#[test]
fn random_queries_give_the_same_pages_in_sqlite_and_postgres() {
    agree_on_random_queries(&[Engine::Memory, Engine::Sqlite, Engine::Postgres]);
}

#[test]
fn random_queries_give_the_same_pages_in_mongodb() {
    agree_on_random_queries(&[Engine::Memory, Engine::Mongodb]);
}

/// The same log in each engine; the first engine is the oracle.
fn agree_on_random_queries(engines: &[Engine]) {
    let tokio = tokio();
    let mut logs = Vec::new();
    let (mut count, mut cases) = (1_500, 300);
    tokio.block_on(async {
        if engines.last().unwrap().is_slow().await {
            (count, cases) = (250, 60);
        }
        let events = events(count);
        for &engine in engines {
            let log = TestLog::new(engine).await;
            let store = log.open().await;
            store.append(events.clone(), AppendOptions::default()).await.unwrap();
            logs.push((store, log));
        }
    });
    let stores: Vec<_> = logs.iter().map(|(store, _)| Arc::clone(store)).collect();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&queries(), |query| tokio.block_on(agree(engines, &stores, query)))
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Page by page, each engine with its own cursors.
async fn agree(
    engines: &[Engine],
    stores: &[Arc<dyn AuditStore>],
    query: ListQuery,
) -> Result<(), TestCaseError> {
    let mut asked = vec![query; stores.len()];
    for page in 0..PAGES {
        let answers = join_all(stores.iter().zip(&asked).map(|(s, query)| s.list(query))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        for (engine, answer) in engines.iter().zip(&answers).skip(1) {
            prop_assert_eq!(&answer.events, &answers[0].events, "{:?}, page {}", engine, page);
            prop_assert_eq!(answer.partial, answers[0].partial, "{:?}", engine);
            let ends = (answer.next_cursor.is_none(), answers[0].next_cursor.is_none());
            prop_assert_eq!(ends.0, ends.1, "{:?}, page {}", engine, page);
        }
        if answers[0].next_cursor.is_none() {
            break;
        }
        // A cursor is valid only in its own log.
        let foreign = ListQuery { cursor: answers[0].next_cursor.clone(), ..asked[1].clone() };
        for store in &stores[1..] {
            let refused = store.list(&foreign).await.unwrap_err();
            prop_assert_eq!(refused.kind(), ErrorKind::CursorInvalid);
        }
        for (query, answer) in asked.iter_mut().zip(answers) {
            query.cursor = answer.next_cursor;
        }
    }
    Ok(())
}
