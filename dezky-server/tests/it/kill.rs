//! Acknowledged events are stored exactly once, whenever the process is killed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Client, Process, WEBHOOK, run, stdout, until};

const ROUNDS: usize = 20;
const CLIENTS: usize = 4;

/// A sender that retries unacknowledged requests.
struct Sender {
    number: usize,
    sent: usize,
    waiting: Option<String>,
    acknowledged: Vec<String>,
}

impl Sender {
    /// Sends until the server is killed.
    async fn stream(mut self, client: Client, acknowledged: Arc<AtomicUsize>) -> Self {
        loop {
            let id = self.waiting.take().unwrap_or_else(|| {
                self.sent += 1;
                format!("client-{}-event-{}", self.number, self.sent)
            });
            let body = format!(
                r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.failed","data":{{"accountName":"alice@example.com"}}}}]}}"#
            );
            let Ok(answer) = client.try_post_signed(WEBHOOK, &body).await else {
                self.waiting = Some(id);
                return self;
            };
            assert_eq!(answer.json["received"], 1, "{answer:?}");
            self.acknowledged.push(id);
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Checks that each acknowledged event is stored once; returns the number of stored events.
async fn check(client: &Client, senders: &[Sender]) -> usize {
    let mut places = HashMap::new();
    let mut seqs = HashSet::new();
    let events = client.all("").await;
    for event in &events {
        let id = event["externalId"].as_str().unwrap();
        *places.entry(id).or_insert(0) += 1;
        assert!(seqs.insert(event["seq"].as_u64().unwrap()));
    }
    assert!((0..events.len() as u64).all(|seq| seqs.contains(&seq)), "seq has a gap");
    for id in senders.iter().flat_map(|sender| &sender.acknowledged) {
        assert_eq!(places.get(id.as_str()), Some(&1), "{id}");
    }
    assert!(places.values().all(|times| *times == 1));
    events.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_every_kill() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = [("DEZKY_LOG", "error")];
    let mut senders: Vec<Sender> = (0..CLIENTS)
        .map(|number| Sender { number, sent: 0, waiting: None, acknowledged: Vec::new() })
        .collect();
    for round in 0..ROUNDS {
        let mut process = Process::start(folder.path(), &quiet);
        check(&process.client, &senders).await;
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let streams: Vec<_> = senders
            .drain(..)
            .map(|sender| {
                // A separate connection for each.
                let client = Client::new(format!("http://{}", process.address));
                tokio::spawn(sender.stream(client, Arc::clone(&acknowledged)))
            })
            .collect();
        let enough = 1 + round * 7 % 40;
        until("acknowledgements", async || acknowledged.load(Ordering::SeqCst) >= enough).await;
        process.kill();
        for stream in streams {
            senders.push(stream.await.unwrap());
        }
    }
    let process = Process::start(folder.path(), &quiet);
    let events = check(&process.client, &senders).await;
    process.stop().await;
    let acknowledged: usize = senders.iter().map(|sender| sender.acknowledged.len()).sum();
    assert!(acknowledged >= ROUNDS && events >= acknowledged);

    let url = format!("sqlite://{}", folder.path().join("dezky.db").display());
    let verified = run(&["verify", "--store", &url], &[]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(stdout(&verified).starts_with(&format!("ok: {events} events, head ")));
}
