//! Several processes writing to one log.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dezky_core::ErrorKind;
use dezky_core::NewEvent;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::AppendOptions;
use dezky_core::testkit::named_event;

use crate::engines::{assert_whole, everything};
use crate::servers::{
    Engine, Patience, Server, TRANSACTION_LIFETIME, TestLog, now, open, pause, signal, tokio,
};

const URL: &str = "DEZKY_TEST_WRITER_URL";
const NAME: &str = "DEZKY_TEST_WRITER_NAME";

/// How long four processes write at the same time.
const TOGETHER: Duration = Duration::from_secs(6);
/// Each of the four processes must get at least 1/`LEAST_SHARE` of all appends; an even share is a
/// quarter.
const LEAST_SHARE: usize = 20;
/// PostgreSQL's default limit for an idle transaction.
const POSTGRES_BOUND: Duration = Duration::from_secs(5);
/// Writers that append fewer than six events in this time count as held up.
const NOT_HELD: Duration = Duration::from_secs(2);
/// For waits without a documented limit.
const START: Duration = Duration::from_mins(1);
/// Time for a commit and for the other writers' turns, on a machine busy with other tests.
const SLACK: Duration = Duration::from_secs(5);

/// A writer in a separate process. It prints a line for each acknowledged event, and one with the
/// error's code for each failed append.
struct Writer {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Writer {
    #[expect(clippy::disallowed_methods, reason = "a thread for each child's lines")]
    fn start(url: &str, name: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writers::writer", "--ignored", "--nocapture"])
            .env(URL, url)
            .env(NAME, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if line.starts_with("ok ") || line.starts_with("no ") || line == "ready" {
                    let _ = sender.send(line);
                }
            }
        });
        let stdin = process.stdin.take();
        Self { process, stdin, lines, said: Vec::new() }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    fn wait_until_ready(&self) {
        assert_eq!(self.lines.recv_timeout(START).unwrap(), "ready");
    }

    fn signal(&self, name: &str) {
        signal(name, &[self.process.id().to_string()]);
    }

    /// The lines so far that begin with `word`, without it.
    fn said(&mut self, word: &str) -> Vec<&str> {
        self.said.extend(self.lines.try_iter());
        self.said.iter().filter_map(|line| line.strip_prefix(word)).collect()
    }

    fn acknowledged(&mut self) -> usize {
        self.said("ok ").len()
    }

    /// Stops it after its current append.
    fn end(&mut self) {
        drop(self.stdin.take());
        assert!(self.process.wait().unwrap().success());
        // Reads until the process has closed its end of the pipe.
        self.said.extend(self.lines.iter());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the first process sets these variables")]
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[test]
#[ignore = "run by the tests below, in separate processes"]
fn writer() {
    let Some(url) = told(URL) else { return };
    let name = told(NAME).unwrap();
    tokio().block_on(async {
        let store = open(&url, Patience::Usual).await.unwrap();
        say("ready");
        let go = std::io::stdin().lines().next();
        assert_eq!(go.unwrap().unwrap(), "go");
        let ends = ends();
        for n in 0.. {
            if ends.is_finished() {
                return;
            }
            let external_id = format!("{name}-{n}");
            let event = NewEvent {
                source: "ocis".into(),
                external_id: Some(external_id.clone()),
                ..named_event(&name)
            };
            let event = event.seal(&TokioRuntime);
            loop {
                match store.append(vec![event.clone()], AppendOptions::default()).await {
                    Ok(_) => break say(&format!("ok {external_id}")),
                    Err(error) => {
                        assert!(error.is_retryable(), "{error:?}");
                        say(&format!("no {}", error.code()));
                    }
                }
            }
        }
    });
}

/// Finishes when the first process closes this one's standard input.
#[expect(clippy::disallowed_methods, reason = "a thread that waits for the end of stdin")]
fn ends() -> std::thread::JoinHandle<bool> {
    std::thread::spawn(|| std::io::stdin().lines().next().is_none())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

async fn start_four(url: &str) -> Vec<Writer> {
    // Creates the log before the writers open it.
    open(url, Patience::Usual).await.unwrap();
    let mut writers: Vec<_> = (0..4).map(|n| Writer::start(url, &format!("w{n}"))).collect();
    writers.iter().for_each(Writer::wait_until_ready);
    for writer in &mut writers {
        writer.tell("go");
    }
    writers
}

#[test]
fn four_processes_share_a_log_in_sqlite() {
    tokio().block_on(async { share(&TestLog::new(Engine::Sqlite).await.url()).await });
}

#[test]
fn four_processes_share_a_log_in_postgres() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Postgres).await;
        share(&log.url()).await;
    });
}

#[test]
fn four_processes_share_a_log_in_mongodb() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Mongodb).await;
        share(&log.url()).await;
    });
}

async fn share(url: &str) {
    let mut writers = start_four(url).await;
    let started = now();
    while started.elapsed() < TOGETHER {
        pause(20).await;
    }
    let shares: Vec<usize> = writers.iter_mut().map(Writer::acknowledged).collect();
    println!("appends of each in {TOGETHER:?}: {shares:?}");
    let sum: usize = shares.iter().sum();
    let starves = |share: &usize| *share == 0 || share * LEAST_SHARE < sum;
    assert!(!shares.iter().any(starves), "each gets at least 1/{LEAST_SHARE}: {shares:?}");
    check(url, writers).await;
}

/// Stops the writers and checks that all acknowledged events are stored once in an intact chain.
async fn check(url: &str, mut writers: Vec<Writer>) {
    writers.iter_mut().for_each(Writer::end);
    let store = open(url, Patience::Usual).await.unwrap();
    let events = everything(&*store).await;
    let names: Vec<_> = events.iter().filter_map(|e| e.event.external_id.as_deref()).collect();
    let mut expected: Vec<_> = writers.iter_mut().flat_map(|w| w.said("ok ")).collect();
    expected.sort_unstable();
    let mut there = names.clone();
    there.sort_unstable();
    assert_eq!(there, expected, "each acknowledged event is stored once, and nothing else");
    assert_whole(&*store).await;
}

#[test]
fn a_stalled_process_holds_up_postgres_within_the_bound() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Postgres).await;
        let held = stall(&log.url(), POSTGRES_BOUND + SLACK)
            .await
            .expect("the others continue within the bound");
        println!("the others waited {held:?}; the bound is {POSTGRES_BOUND:?}");
    });
}

/// Uses a separate server that aborts transactions early: with the default of a minute, the test
/// would take that long.
#[test]
fn a_stalled_process_holds_up_mongodb_within_the_bound() {
    tokio().block_on(async {
        let server = Server::mongodb().await;
        let url = server.url_by(server.port);
        let held = stall(&url, TRANSACTION_LIFETIME + SLACK)
            .await
            .expect("the others continue within the bound");
        println!("the others waited {held:?}; the bound is {TRANSACTION_LIFETIME:?}");
    });
}

/// A file has no server that could abort a stopped process's transaction. The other writers get
/// `store_busy` within their timeout, and continue once the stopped one does.
#[test]
fn a_stalled_process_holds_up_sqlite_until_it_continues() {
    tokio().block_on(async {
        let log = TestLog::new(Engine::Sqlite).await;
        assert_eq!(stall(&log.url(), Duration::from_secs(12)).await, None);
    });
}

/// Stops a writer in the middle of its transaction and returns how long the others waited; `None`
/// if none of them appended within `bound`. Checks that all continue afterwards.
async fn stall(url: &str, bound: Duration) -> Option<Duration> {
    let mut writers = start_four(url).await;
    let held = loop {
        let (stopped, others) = writers.split_first_mut().unwrap();
        assert!(go_on(others, 6, START).await);
        stopped.signal("STOP");
        let began = now();
        // If the others go on, the writer was stopped outside of a transaction: try again.
        if !go_on(others, 6, NOT_HELD).await {
            break go_on(others, 1, bound).await.then(|| began.elapsed());
        }
        stopped.signal("CONT");
        pause(7).await;
    };
    for other in &mut writers[1..] {
        let refusals = other.said("no ");
        assert!(refusals.iter().all(|code| *code == ErrorKind::StoreBusy.code()), "{refusals:?}");
        assert!(held.is_some() || !refusals.is_empty(), "each gets an error in time");
    }
    writers[0].signal("CONT");
    for writer in &mut writers {
        assert!(go_on(std::slice::from_mut(writer), 3, START).await, "all continue");
    }
    check(url, writers).await;
    held
}

/// Whether the writers together append `count` more events within the time.
async fn go_on(writers: &mut [Writer], count: usize, within: Duration) -> bool {
    let mut appended = || writers.iter_mut().map(Writer::acknowledged).sum::<usize>();
    let (before, started) = (appended(), now());
    while appended() < before + count {
        if started.elapsed() > within {
            return false;
        }
        pause(5).await;
    }
    true
}
