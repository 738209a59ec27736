//! Properties of every engine: the same head, one row for concurrent duplicates, complete pages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, Head, ListQuery};
use dezky_core::testkit::{EventGenerator, ManualRuntime, named_event};
use dezky_core::verify::verify;
use dezky_core::{
    Actor, AuditLog, AuditStore, NewEvent, RecordOutcome, Runtime, SealedEvent, Timestamp,
};
use futures_util::future::join_all;

use crate::servers::{Engine, TestLog, tokio};

/// The number of events on which the engines must agree, unless `DEZKY_TEST_EVENTS` sets it: as
/// many as the test server for MongoDB stores within a minute.
const EVENTS: usize = 10_000;

/// The test server for MongoDB scans all rows for an external id, where a real one has an index, so
/// the time would grow with the square of the rows.
const WITH_EXTERNAL_ID: usize = 500;

/// One test per engine for each case.
macro_rules! on_every_engine {
    ($($case:ident)+) => {
        on_every_engine!(@engine memory Memory $($case)+);
        on_every_engine!(@engine sqlite Sqlite $($case)+);
        on_every_engine!(@engine postgres Postgres $($case)+);
        on_every_engine!(@engine mongodb Mongodb $($case)+);
    };
    (@engine $engine:ident $name:ident $($case:ident)+) => {
        mod $engine {
            $(
                #[test]
                fn $case() {
                    $crate::servers::tokio().block_on(super::$case($crate::servers::Engine::$name));
                }
            )+
        }
    };
}
pub(crate) use on_every_engine;

on_every_engine! {
    two_hundred_at_once_over_two_handles_are_one_row
    pages_of_one_time_give_every_event_once_while_others_arrive
}

/// All events of the log by `seq`; each must be readable.
pub(crate) async fn everything(store: &dyn AuditStore) -> Vec<dezky_core::StoredEvent> {
    let mut events = Vec::new();
    loop {
        let from = i64::try_from(events.len()).unwrap();
        let rows = store.scan(from, 10_000).await.unwrap();
        if rows.is_empty() {
            return events;
        }
        events.extend(rows.into_iter().map(|row| row.unwrap().stored));
    }
}

/// Checks that the log verifies and its head is where its rows end.
pub(crate) async fn assert_whole(store: &dyn AuditStore) {
    let verdict = verify(store, None, |_| ()).await.unwrap();
    assert_eq!(verdict.problem(), None);
    assert_eq!(verdict.verified, store.state().await.unwrap().head.next_seq);
}

#[expect(clippy::disallowed_methods, reason = "the environment may ask for a larger run")]
fn how_many() -> usize {
    std::env::var("DEZKY_TEST_EVENTS").map_or(EVENTS, |text| text.parse().unwrap())
}

/// The same sealed events, appended to each engine in different batches.
#[test]
fn the_same_events_give_the_same_head() {
    tokio().block_on(async {
        let mut logs = Vec::new();
        for engine in Engine::ALL {
            let log = TestLog::new(engine).await;
            logs.push((log.open().await, log));
        }
        let runtime = ManualRuntime::new(100_000);
        let mut generator = EventGenerator::new(&runtime);
        let count = how_many();
        for first in (0..count).step_by(5_000) {
            let events: Vec<_> = (first..count.min(first + 5_000))
                .map(|n| {
                    let mut event = generator.next_event();
                    event.external_id = event.external_id.filter(|_| n < WITH_EXTERNAL_ID);
                    event.seal(&runtime)
                })
                .collect();
            join_all(
                logs.iter().zip([5_000, 1_000, 1_777, 999]).map(|((store, _), batch)| {
                    append_in_batches(Arc::clone(store), &events, batch)
                }),
            )
            .await;
            assert_same_heads(&logs).await;
        }
        for (store, _) in &logs {
            assert_whole(&**store).await;
        }
    });
}

async fn append_in_batches(store: Arc<dyn AuditStore>, events: &[SealedEvent], size: usize) {
    for batch in events.chunks(size) {
        let appended = store.append(batch.to_vec(), AppendOptions::default()).await.unwrap();
        assert_eq!(appended.appended(), batch.len());
    }
}

async fn assert_same_heads(logs: &[(Arc<dyn AuditStore>, TestLog)]) {
    let heads = join_all(logs.iter().map(|(store, _)| store.state())).await;
    let heads: Vec<Head> = heads.into_iter().map(|state| state.unwrap().head).collect();
    assert!(heads.iter().all(|head| *head == heads[0]), "{heads:?}");
}

async fn two_hundred_at_once_over_two_handles_are_one_row(engine: Engine) {
    let place = TestLog::new(engine).await;
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    let timeout = Duration::from_mins(1);
    let logs = [
        AuditLog::new(place.open().await, Arc::clone(&runtime)).with_store_timeout(timeout),
        AuditLog::new(place.open().await, runtime).with_store_timeout(timeout),
    ];
    let event =
        NewEvent { source: "ocis".into(), external_id: Some("one".into()), ..named_event("one") };
    for round in 0..3 {
        let at_once = (0..200).map(|n| logs[n % 2].record(event.clone()));
        let recorded = join_all(at_once).await;
        let outcomes: BTreeSet<_> = recorded.iter().map(|r| format!("{:?}", r.outcome)).collect();
        let count = |outcome| recorded.iter().filter(|r| r.outcome == outcome).count();
        let new = usize::from(round == 0);
        assert_eq!(count(RecordOutcome::Appended { seq: 0 }), new, "{outcomes:?}");
        assert_eq!(count(RecordOutcome::Duplicate { seq: 0 }), 200 - new, "{outcomes:?}");
        let id = everything(&**logs[0].store()).await[0].event.id;
        assert!(recorded.iter().all(|r| r.id == id), "all are told its id");
    }
    assert_eq!(everything(&**logs[0].store()).await.len(), 1);
    assert_whole(&**logs[1].store()).await;
}

/// Events with the same time; their ids are in no order.
fn at_one_time(count: usize, at: i64) -> Vec<SealedEvent> {
    (0..count)
        .map(|_| {
            NewEvent {
                at: Timestamp::from_millis(at),
                ..NewEvent::new("tie.broken", Actor::system())
            }
            .seal(&TokioRuntime)
        })
        .collect()
}

/// The time of the events that tie.
const ONE_TIME: i64 = 1_767_225_600_000;

async fn pages_of_one_time_give_every_event_once_while_others_arrive(engine: Engine) {
    let log = TestLog::new(engine).await;
    let store = log.open().await;
    let events = at_one_time(2_000, ONE_TIME);
    // A slow engine uses small pages while it holds few events.
    let few = engine.is_slow().await;
    let (mut arrived, mut there) = (0_i64, 0);
    for (count, limits) in [(60, &[1, 7][..]), (500, &[100]), (2_000, &[499, 500])] {
        let count = if few { count } else { events.len() };
        if there < count {
            let more = events[there..count].to_vec();
            store.append(more, AppendOptions::default()).await.unwrap();
            there = count;
        }
        for limit in limits {
            pages(&*store, *limit, &events[..there], &mut arrived).await;
        }
    }
    assert_whole(&*store).await;
}

/// Reads all pages of the log while others with the same time are appended.
async fn pages(store: &dyn AuditStore, limit: usize, there: &[SealedEvent], arrived: &mut i64) {
    let before = *arrived;
    let mut query = ListQuery { limit, ..ListQuery::default() };
    let (mut seen, mut pages) = (Vec::new(), 0);
    loop {
        let page = store.list(&query).await.unwrap();
        assert!(page.events.len() <= limit);
        seen.extend(page.events.iter().map(|e| ((e.event.at, e.seq), e.event.id)));
        // Before and after the position of the scan.
        if pages % (there.len() / limit).div_ceil(4) == 0 {
            *arrived += 1;
            let mut others = at_one_time(10, ONE_TIME);
            others.extend(at_one_time(10, ONE_TIME - *arrived));
            store.append(others, AppendOptions::default()).await.unwrap();
        }
        pages += 1;
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => break,
        }
    }
    assert!(*arrived - before > 3, "others did arrive");
    assert!(seen.windows(2).all(|pair| pair[0].0 > pair[1].0), "newest first, none twice");
    let seen: BTreeSet<_> = seen.into_iter().map(|(_, id)| id).collect();
    let is_seen = |event: &SealedEvent| seen.contains(&event.event().id);
    assert!(there.iter().all(is_seen), "limit {limit}: none is skipped");
}
