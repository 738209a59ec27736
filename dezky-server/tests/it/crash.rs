//! All sources and an operator at once, while the server is killed again and again: whatever it was
//! doing, nothing is lost or stored twice.
//!
//! In two rounds of three, the test expires the leases of the killed server, which would take
//! minutes. In the third, the next server finds the database as the kill left it, and its workers
//! wait while webhooks arrive.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::load::{
    Chance, Counters, Operator, Sender, Surroundings, check, number, open, store, verify,
};
use crate::support::{Client, Process, spawn_serve, until};

const ROUNDS: u64 = 12;
const SENDERS: usize = 3;
/// The number of rounds after which the sources delete what the log has.
const FORGET_EVERY: u64 = 10;

/// When a server is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// This long after the process started, listening or not.
    Starting(Duration),
    /// This long after it began to listen.
    After(Duration),
    /// After this many acknowledged webhook events.
    Acknowledged(usize),
}

impl Moment {
    fn draw(chance: &mut Chance) -> Self {
        match chance.below(6) {
            0 => Self::Starting(Duration::from_micros(chance.below(150_000))),
            1 | 2 => Self::Acknowledged(1 + usize::try_from(chance.below(80)).unwrap()),
            // Long enough for a second tick of the workers.
            _ => Self::After(Duration::from_micros(chance.below(1_600_000))),
        }
    }
}

/// The number of kills by situation.
#[derive(Debug, Default)]
struct Hits {
    starting: usize,
    after: usize,
    acknowledged: usize,
    /// With webhooks in flight.
    in_flight: usize,
    /// With an incomplete line at the end of the file.
    half_line: usize,
    /// With the leases still held when the next server started.
    leased: usize,
    /// The number of webhook events that a kill left unacknowledged, in rounds that checked this,
    /// and how many of them the log had.
    unanswered: (usize, usize),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_whenever_the_process_is_killed() {
    let began = Instant::now();
    let rounds = number("DEZKY_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let mut chance = Chance::from_environment("DEZKY_CRASH_SEED");
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &[("DEZKY_LOG", "error")]);
    let mut operator = Operator::begin(&process.client).await;
    process.kill();

    let mut around = Surroundings::begin(folder.path(), chance.fork()).await;
    let environment = around.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let mut senders: Vec<_> = (0..SENDERS).map(|name| Sender::new(name, chance.fork())).collect();
    let mut hits = Hits::default();
    for round in 0..rounds {
        let moment = Moment::draw(&mut chance);
        if let Moment::Starting(wait) = moment {
            hits.starting += 1;
            let (mut child, _) = spawn_serve(folder.path(), &environment);
            tokio::time::sleep(wait).await;
            child.kill().unwrap();
            child.wait().unwrap();
        } else {
            let mut process = Process::start(folder.path(), &environment);
            let counters = Arc::new(Counters::default());
            // A separate connection for each.
            let client = || Client::new(format!("http://{}", process.address));
            let editing = tokio::spawn(operator.stream(client(), chance.fork()));
            let streams: Vec<_> = senders
                .drain(..)
                .map(|sender| tokio::spawn(sender.stream(client(), Arc::clone(&counters))))
                .collect();
            match moment {
                Moment::Acknowledged(enough) => {
                    hits.acknowledged += 1;
                    let acknowledged = || counters.acknowledged.load(Ordering::SeqCst);
                    until("acknowledgements", async || acknowledged() >= enough).await;
                    chance.pause(Duration::from_millis(8)).await;
                }
                Moment::After(wait) | Moment::Starting(wait) => {
                    hits.after += 1;
                    tokio::time::sleep(wait).await;
                }
            }
            hits.in_flight += usize::from(counters.in_flight.load(Ordering::SeqCst) > 0);
            hits.half_line += usize::from(around.is_half.load(Ordering::SeqCst));
            process.kill();
            for stream in streams {
                senders.push(stream.await.unwrap());
            }
            operator = editing.await.unwrap();
            assert_eq!(process.stderr(), "", "round {round}");
        }
        if chance.one_in(3) {
            hits.leased += 1;
        } else {
            let is_forgetful = round % FORGET_EVERY == 0;
            between(folder.path(), &senders, &mut hits, is_forgetful.then_some(&around)).await;
        }
    }

    around.end().await;
    between(folder.path(), &[], &mut hits, None).await;
    let process = Process::start(folder.path(), &environment);
    let counters = Counters::default();
    for sender in &mut senders {
        while !sender.is_done() {
            assert!(sender.send(&process.client, &counters).await, "{}", process.stderr());
        }
    }
    let mut database = open(folder.path()).await;
    around.drain(&mut database).await;
    let (events, what) = check(&process.client, &mut database, &around, &senders).await;
    let changes = operator.check(&process.client, &events).await;
    process.stop().await;
    verify(&store(folder.path()), &events);
    eprintln!(
        "{rounds} kills in {:.0} s, {hits:?}\n{} events: {what}, {changes} changes",
        began.elapsed().as_secs_f64(),
        events.len()
    );
}

/// Runs between a kill and the next start: expires the dead server's leases, counts the
/// unacknowledged events, and has the sources delete what the log has.
async fn between(
    folder: &Path,
    senders: &[Sender],
    hits: &mut Hits,
    forgetful: Option<&Surroundings>,
) {
    let mut database = open(folder).await;
    let lapse = sqlx::query("UPDATE dezky_leases SET expires_at = 0");
    lapse.execute(&mut database).await.unwrap();
    for sender in senders {
        let (events, stored) = sender.unanswered(&mut database).await;
        hits.unanswered.0 += events;
        hits.unanswered.1 += stored;
    }
    if let Some(around) = forgetful {
        around.forget_old(&mut database).await;
    }
    sqlx::Connection::close(database).await.unwrap();
}
