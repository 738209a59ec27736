//! An outage of the flags' database server, and its end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{MongoAuditStore, MongoConfig, PostgresAuditStore, PostgresConfig};
use dezky_core::{ErrorKind, Runtime};
use dezky_flags::live::{LiveStatus, Subscription};
use dezky_flags::store::{DocumentFlagStore, FlagChange, FlagStore, LazyFlagStore};
use dezky_flags::{Flag, FlagState, LiveFlags, NewFlag};
use futures_util::FutureExt;

use crate::live::{config, is_on};
use crate::servers::{Server, eventually, now, spawn, tokio};

const POLL: Duration = Duration::from_millis(100);
/// No poll happens during a test, so every change seen comes from a notification.
const HARDLY_EVER: Duration = Duration::from_hours(1);
/// The time for which the flags are used without their store.
const AWAY: Duration = Duration::from_secs(6);
/// Longer than it takes to notice and replace a lost connection.
const RECOVERS_WITHIN: Duration = Duration::from_mins(1);

async fn store(url: String) -> dezky_core::Result<Arc<dyn FlagStore>> {
    if url.starts_with("mongodb") {
        let mut config = MongoConfig::new(url);
        config.connect_timeout = Duration::from_secs(1);
        config.server_selection_timeout = Duration::from_secs(1);
        let log = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await?;
        return Ok(Arc::new(DocumentFlagStore::open(&log.database()).await?));
    }
    let mut config = PostgresConfig::new(url);
    config.acquire_timeout = Duration::from_secs(1);
    let log = PostgresAuditStore::open(config, &TokioRuntime).await?;
    Ok(Arc::new(DocumentFlagStore::open(&log.database()).await?))
}

fn flag(version: u64) -> Flag {
    // Alternates between on and off, starting with on.
    let state = if version % 2 == 1 { FlagState::On } else { FlagState::Off };
    let flag = Flag::new(NewFlag { state, ..NewFlag::new("chat") }, TokioRuntime.now()).unwrap();
    Flag { version, ..flag }
}

async fn commit(store: &dyn FlagStore, version: u64) {
    let change = if version == 1 { FlagChange::Create } else { FlagChange::Replace };
    store.commit(vec![change(Box::new(flag(version)))], Vec::new()).await.unwrap();
}

/// Flags that behave like those of a separate process, as far as the store can tell.
async fn follow(url: String, poll: Duration, file: Option<&Path>) -> LiveFlags {
    let store = LazyFlagStore::new(move || store(url.clone()).boxed());
    let config = config(|config| {
        config.poll_interval = poll;
        config.store_timeout = Duration::from_secs(2);
        config.file = file.map(Path::to_owned);
    });
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    let live = LiveFlags::open(Arc::new(store), runtime, config).await.unwrap();
    let follows = live.clone();
    spawn(async move { follows.run(std::future::pending()).await });
    live
}

async fn until(what: &str, live: &LiveFlags, mut holds: impl FnMut(LiveStatus) -> bool) {
    eventually(what, RECOVERS_WITHIN, || holds(live.status())).await;
}

async fn next(changes: &mut Subscription) -> u64 {
    tokio::time::timeout(RECOVERS_WITHIN, changes.next()).await.expect("a change is seen")
}

#[test]
fn flags_are_decided_while_postgres_is_stopped_and_follow_it_again() {
    tokio().block_on(async { is_stopped(Server::postgres().await).await });
}

#[test]
fn flags_are_decided_while_mongodb_is_stopped_and_follow_it_again() {
    tokio().block_on(async { is_stopped(Server::mongodb().await).await });
}

async fn is_stopped(mut server: Server) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    let url = server.url_by(server.port);
    commit(&*store(url.clone()).await.unwrap(), 1).await;
    let live = follow(url.clone(), POLL, Some(&file)).await;
    assert!(is_on(&live, "chat"));
    eventually("the file is kept", RECOVERS_WITHIN, || file.exists()).await;

    // While the store is down, the flags age between polls and stay in use.
    let stopped = now();
    server.stop().await;
    println!("stopped after {:?}", stopped.elapsed());
    until("the failure is reported", &live, |status| status.failure.is_some()).await;
    let mut last = Duration::ZERO;
    until("the flags are old", &live, |status| {
        assert!(is_on(&live, "chat"));
        assert!(status.age >= last, "the age grows");
        last = status.age;
        let kind = status.failure.expect("is told").kind();
        assert_eq!(kind, ErrorKind::StoreUnavailable);
        !status.from_file && status.age >= AWAY
    })
    .await;
    assert!(last <= stopped.elapsed() + POLL * 10, "and by no more than the time");

    // Another process starts meanwhile.
    let cold = follow(url.clone(), POLL, Some(&file)).await;
    assert!(cold.status().from_file && is_on(&cold, "chat"));

    server.start().await;
    let back = now();
    until("it is reached", &live, |status| status.failure.is_none()).await;
    until("it is reached", &cold, |status| status.failure.is_none()).await;
    println!("reached again after {:?}", back.elapsed());
    let status = cold.status();
    assert!(!status.from_file && status.age < AWAY, "{status:?}");
    let (mut changes, mut of_cold) = (live.subscribe(), cold.subscribe());
    commit(&*store(url).await.unwrap(), 2).await;
    assert_eq!((next(&mut changes).await, next(&mut of_cold).await), (2, 2));
    assert!(!is_on(&live, "chat") && !is_on(&cold, "chat"));
}

#[test]
fn postgres_tells_of_changes_again_after_an_outage() {
    tokio().block_on(async { tells_again(Server::postgres().await).await });
}

#[test]
fn mongodb_tells_of_changes_again_after_an_outage() {
    tokio().block_on(async { tells_again(Server::mongodb().await).await });
}

/// Changes made before the connection is re-established are seen, and so are changes afterwards.
async fn tells_again(mut server: Server) {
    let url = server.url_by(server.port);
    commit(&*store(url.clone()).await.unwrap(), 1).await;
    let live = follow(url.clone(), HARDLY_EVER, None).await;
    let mut changes = live.subscribe();
    for outages in 0..2_u64 {
        if outages > 0 {
            server.stop().await;
            server.start().await;
        }
        let writer = store(url.clone()).await.unwrap();
        for version in [2, 3].map(|version| outages * 2 + version) {
            commit(&*writer, version).await;
            let committed = now();
            assert_eq!(next(&mut changes).await, version);
            println!("version {version} after {:?}", committed.elapsed());
            assert_eq!(is_on(&live, "chat"), version % 2 == 1);
        }
    }
}
