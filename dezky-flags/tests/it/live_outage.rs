//! The server of the flags stops, and comes back.

use std::sync::Arc;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{PostgresAuditStore, PostgresConfig};
use dezky_core::{ErrorKind, Runtime};
use dezky_flags::live::LiveStatus;
use dezky_flags::store::{FlagChange, FlagStore, LazyFlagStore, PostgresFlagStore};
use dezky_flags::{Flag, FlagState, LiveFlags, NewFlag};
use futures_util::FutureExt;

use crate::live::{config, is_on};
use crate::servers::{Server, eventually, now, spawn, tokio};

const POLL: Duration = Duration::from_millis(100);
/// Longer than a connection that is lost may take to be noticed and made again.
const RECOVERS_WITHIN: Duration = Duration::from_mins(1);

async fn store(url: String) -> dezky_core::Result<Arc<dyn FlagStore>> {
    let mut config = PostgresConfig::new(url);
    config.acquire_timeout = Duration::from_secs(1);
    let log = PostgresAuditStore::open(config, &TokioRuntime).await?;
    Ok(Arc::new(PostgresFlagStore::open(&log.database()).await?))
}

fn flag(version: u64) -> Flag {
    // By turns on and off, beginning with on.
    let state = if version % 2 == 1 { FlagState::On } else { FlagState::Off };
    let flag = Flag::new(NewFlag { state, ..NewFlag::new("chat") }, TokioRuntime.now()).unwrap();
    Flag { version, ..flag }
}

async fn commit(store: &dyn FlagStore, version: u64) {
    let change = if version == 1 { FlagChange::Create } else { FlagChange::Replace };
    store.commit(vec![change(Box::new(flag(version)))], Vec::new()).await.unwrap();
}

/// Flags that decide in a process of their own, as far as the store can tell.
async fn follow(url: String, file: &std::path::Path) -> LiveFlags {
    let store = LazyFlagStore::new(move || store(url.clone()).boxed());
    let config = config(|config| {
        config.poll_interval = POLL;
        config.store_timeout = Duration::from_secs(2);
        config.file = Some(file.to_owned());
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

#[test]
fn flags_are_decided_while_postgres_is_stopped_and_follow_it_again() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flags.json");
        let mut server = Server::postgres().await;
        let url = server.url_by(server.port);
        let writer = store(url.clone()).await.unwrap();
        commit(&*writer, 1).await;
        let live = follow(url.clone(), &file).await;
        assert!(is_on(&live, "chat"));
        eventually("the file is kept", RECOVERS_WITHIN, || file.exists()).await;

        // Between two looks at a store that is down the flags get older, and decide.
        let stopped = now();
        server.stop().await;
        println!("stopped after {:?}", stopped.elapsed());
        until("the failure is told", &live, |status| status.failure.is_some()).await;
        let mut last = Duration::ZERO;
        until("the flags are 3 s old", &live, |status| {
            assert!(is_on(&live, "chat"));
            assert!(status.age >= last, "the age grows");
            last = status.age;
            let kind = status.failure.expect("is told").kind();
            assert_eq!(kind, ErrorKind::StoreUnavailable);
            !status.from_file && status.age >= Duration::from_secs(3)
        })
        .await;
        assert!(last <= stopped.elapsed() + POLL * 10, "and by no more than the time");

        // Another process starts meanwhile.
        let cold = follow(url.clone(), &file).await;
        assert!(cold.status().from_file && is_on(&cold, "chat"));

        server.start().await;
        let back = now();
        until("it is reached", &live, |status| status.failure.is_none()).await;
        until("it is reached", &cold, |status| status.failure.is_none()).await;
        println!("reached again after {:?}", back.elapsed());
        let status = cold.status();
        assert!(!status.from_file && status.age < Duration::from_secs(3), "{status:?}");
        let (mut changes, mut of_cold) = (live.subscribe(), cold.subscribe());
        commit(&*writer, 2).await;
        let both = async { (changes.next().await, of_cold.next().await) };
        assert_eq!(tokio::time::timeout(RECOVERS_WITHIN, both).await.unwrap(), (2, 2));
        assert!(!is_on(&live, "chat") && !is_on(&cold, "chat"));
    });
}
