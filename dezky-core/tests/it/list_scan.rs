//! The bounded scan: partial pages, and the driving indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::databases::Databases;
use crate::sqlite::tokio;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::engine::RowStore;
use dezky_core::store::{
    AppendOptions, AuditStore, ChainedStore, Dimension, ListQuery, MemoryAuditStore,
    PostgresAuditStore, PostgresConfig, SqliteAuditStore, SqliteConfig, TallyCount, TallyInterval,
    TallyQuery,
};
use dezky_core::testkit::{EventGenerator, ManualRuntime};

fn queries() -> Vec<ListQuery> {
    let query = |change: fn(&mut ListQuery)| {
        let mut query = ListQuery { limit: 7, ..ListQuery::default() };
        change(&mut query);
        query
    };
    vec![
        query(|_| ()),
        query(|q| q.q = Some("straße".into())),
        query(|q| q.q = Some("is nowhere".into())),
        query(|q| q.action = Some("tenant".into())),
        query(|q| q.action = Some("tenant.created".into())),
        query(|q| q.action = Some("none.such".into())),
        query(|q| q.tenant_slug = Some("acme".into())),
        query(|q| {
            q.tenant_slug = Some(String::new());
            q.q = Some("a".into());
        }),
        query(|q| {
            q.since = dezky_core::Timestamp::parse("2026-01-01T00:00:10Z");
            q.until = dezky_core::Timestamp::parse("2026-01-01T00:00:50Z");
            q.action = Some("tenant.created".into());
            q.actor_email = Some("ana@acme.test".into());
        }),
    ]
}

const BUDGETS: [usize; 7] = [1, 3, 7, 50, 299, 300, 301];

pub(crate) async fn check<R: RowStore>(store: ChainedStore<R>, count: usize, budgets: &[usize]) {
    let runtime = ManualRuntime::new(8);
    let events = EventGenerator::new(&runtime).sealed(count);
    store.append(events, AppendOptions::default()).await.unwrap();
    let mut store = store;
    for &budget in budgets {
        store = store.max_examined_rows(budget).max_tallied_rows(budget);
        check_tallies(&store, count, budget).await;
        for query in queries() {
            let mut whole = store.scan(0, 1_000).await.unwrap();
            let filter = query.filter().unwrap();
            whole.retain(|row| {
                let row = row.as_ref().unwrap();
                filter.matches(&row.stored.event, &row.search_columns)
            });
            let mut expected: Vec<_> = whole
                .into_iter()
                .map(|row| row.unwrap().stored)
                .map(|e| (e.event.at, e.seq))
                .collect();
            expected.sort_by(|a, b| b.cmp(a));
            let (mut got, mut partial, mut pages) = (Vec::new(), 0, 0);
            let mut query = query;
            loop {
                let page = store.list(&query).await.unwrap();
                pages += 1;
                partial += usize::from(page.partial);
                assert!(!page.partial || page.next_cursor.is_some(), "a partial page has a cursor");
                got.extend(page.events.into_iter().map(|e| (e.event.at, e.seq)));
                match page.next_cursor {
                    Some(cursor) => query.cursor = Some(cursor),
                    None => break,
                }
            }
            assert_eq!(got, expected, "budget {budget}: {query:?}");
            if budget == 3 && query.q.as_deref() == Some("is nowhere") {
                assert!(partial >= count / 3 - 1, "{partial} of {pages} pages are partial");
            }
        }
    }
}

/// Counts of buckets after the one in which the budget ended are exact, and no others are higher.
async fn check_tallies<R: RowStore>(store: &ChainedStore<R>, count: usize, budget: usize) {
    let rows = store.scan(0, 1_000).await.unwrap();
    for filters in queries() {
        let by = vec![Dimension::Action, Dimension::TenantSlug];
        let query = TallyQuery { filters, interval: TallyInterval::Hour, by };
        let tally = store.tally(&query).await.unwrap();
        let filter = query.filter().unwrap();
        let mut exact: BTreeMap<TallyCount, u64> = BTreeMap::new();
        for row in rows.iter().flatten() {
            if filter.matches(&row.stored.event, &row.search_columns) {
                let one = TallyCount::of(&row.stored.event, query.interval, &query.by);
                *exact.entry(one).or_default() += 1;
            }
        }
        let got: u64 = tally.counts.iter().map(|counted| counted.count).sum();
        for counted in &tally.counts {
            let all = exact[&TallyCount { count: 1, ..counted.clone() }];
            assert!(counted.count <= all, "budget {budget}: {query:?}: {counted:?} of {all}");
        }
        let whole: u64 = exact.values().sum();
        if tally.counted_from.is_none() {
            assert_eq!(got, whole, "budget {budget}: {query:?}");
        } else {
            assert!(budget <= count && got <= budget as u64, "budget {budget}: {query:?}");
        }
        if budget > count {
            assert_eq!(tally.counted_from, None, "{query:?}");
        }
    }
}

#[test]
fn partial_pages_lose_nothing_in_memory() {
    tokio().block_on(check(MemoryAuditStore::open(Arc::new(TokioRuntime)), 300, &BUDGETS));
}

#[test]
fn partial_pages_lose_nothing_in_sqlite() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig::new(folder.path().join("audit.db"));
        check(SqliteAuditStore::open(config, &TokioRuntime).await.unwrap(), 300, &BUDGETS).await;
    });
}

#[test]
fn partial_pages_lose_nothing_in_postgres() {
    let databases = Databases::default();
    tokio().block_on(async {
        let config = PostgresConfig::new(databases.make().await);
        let store = PostgresAuditStore::open(config, &TokioRuntime).await.unwrap();
        check(store, 300, &BUDGETS).await;
    });
}
