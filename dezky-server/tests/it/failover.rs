//! Two servers on one log: both receive webhooks, one of them pumps, and the other takes over when
//! that one is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::SqliteConnection;
use tempfile::TempDir;

use crate::load::{Chance, Counters, Sender, Surroundings, check, number, open, store, verify};
use crate::support::{Client, Process, until};

/// The number of times that the pumping server is killed.
const KILLS: u64 = 2;
const SENDERS: usize = 3;
/// The duration of a worker's lease.
const LEASE: Duration = Duration::from_secs(10);

/// The holder of each worker's lease.
async fn holders(database: &mut SqliteConnection) -> BTreeMap<String, String> {
    let query = sqlx::query_as("SELECT name, holder FROM dezky_leases");
    query.fetch_all(database).await.unwrap().into_iter().collect()
}

/// Sends to either server at random until told to stop.
async fn stream(
    mut sender: Sender,
    servers: Arc<Mutex<[Client; 2]>>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
) -> Sender {
    while !stop.load(Ordering::SeqCst) {
        sender.queue();
        let which = usize::from(sender.chance.one_in(2));
        let client = servers.lock().unwrap()[which].clone();
        // Requests that a dead server did not acknowledge are retried at either.
        let _ = sender.send(&client, &counters).await;
        sender.chance.pause(Duration::from_millis(20)).await;
    }
    sender
}

fn start(folder: &TempDir, shared: &Path, environment: &[(&str, String)]) -> Process {
    let url = store(shared);
    let mut set: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    set.push(("DEZKY_STORE", &url));
    Process::start(folder.path(), &set)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_server_goes_on_within_two_lease_periods() {
    let kills = number("DEZKY_FAILOVER_KILLS").unwrap_or(KILLS);
    let mut chance = Chance::from_environment("DEZKY_FAILOVER_SEED");
    let shared = tempfile::tempdir().unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut around = Surroundings::begin(shared.path(), chance.fork()).await;
    let environment = around.environment();

    let first = start(&folders[0], shared.path(), &environment);
    let mut database = open(shared.path()).await;
    until("the leases", async || holders(&mut database).await.len() == 2).await;
    let second = start(&folders[1], shared.path(), &environment);
    let servers = Arc::new(Mutex::new([first.client.clone(), second.client.clone()]));
    let mut processes = [first, second];

    let (counters, stop) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
    let streams: Vec<_> = (0..SENDERS)
        .map(|name| {
            let sender = Sender::new(name, chance.fork());
            let (servers, counters) = (Arc::clone(&servers), Arc::clone(&counters));
            tokio::spawn(stream(sender, servers, counters, Arc::clone(&stop)))
        })
        .collect();
    let mut takeovers = Vec::new();
    for kill in 0..kills {
        // A server that was alone for a while holds both leases.
        let holder = usize::try_from(kill % 2).unwrap();
        let before = holders(&mut database).await;
        let enough = counters.acknowledged.load(Ordering::SeqCst) + 20;
        let acknowledged = || counters.acknowledged.load(Ordering::SeqCst);
        until("acknowledgements", async || acknowledged() >= enough).await;
        chance.pause(Duration::from_millis(1_500)).await;
        assert_eq!(
            holders(&mut database).await,
            before,
            "a lease moved although its holder is alive"
        );

        processes[holder].kill();
        let killed = Instant::now();
        let mut left = before;
        while !left.is_empty() {
            let now = holders(&mut database).await;
            left.retain(|name, holder| {
                let has_moved = now[name] != *holder;
                if has_moved {
                    takeovers.push((name.clone(), killed.elapsed()));
                }
                !has_moved
            });
            assert!(killed.elapsed() < 2 * LEASE, "{left:?} not taken over within two periods");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(processes[holder].stderr(), "");
        processes[holder] = start(&folders[holder], shared.path(), &environment);
        servers.lock().unwrap()[holder] = processes[holder].client.clone();
    }
    stop.store(true, Ordering::SeqCst);
    around.end().await;
    let mut senders = Vec::new();
    for stream in streams {
        let mut sender = stream.await.unwrap();
        while !sender.is_done() {
            assert!(sender.send(&processes[0].client, &counters).await);
        }
        senders.push(sender);
    }
    around.drain(&mut database).await;
    let (events, what) = check(&processes[1].client, &mut database, &around, &senders).await;
    for process in processes {
        assert_eq!(process.stderr(), "");
        process.stop().await;
    }
    verify(&store(shared.path()), &events);
    eprintln!("{} events: {what}\n{takeovers:.1?}", events.len());
}
