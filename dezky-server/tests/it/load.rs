//! A load that continues whether the server runs or not: logins at Authentik's double, lines in a
//! rotated audit log of oCIS, mails whose events Stalwart sends until they are acknowledged, and an
//! operator who changes tenants. Everything is recorded, so that a log can be compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dezky_core::rt::TokioRuntime;
use dezky_core::{Runtime as _, Timestamp};
use dezky_ingest::testkit::{AuthentikDouble, Fault, authentik_event};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};
use tokio::task::JoinHandle;

use crate::support::{Client, WEBHOOK, run, stdout};

/// The tenant whose status is toggled.
const TENANT: &str = "/tenants/acme";
/// The number in Stalwart's ids for the event type of queued mail.
const QUEUED: u32 = 421;

/// Random numbers from a seed.
pub(crate) struct Chance(u64);

impl Chance {
    /// Takes the seed from the variable `name` or draws one, and prints it so that the run can be
    /// repeated.
    pub(crate) fn from_environment(name: &str) -> Self {
        let mut drawn = [0; 4];
        TokioRuntime.fill_random(&mut drawn);
        let seed = number(name).unwrap_or(u32::from_le_bytes(drawn).into());
        eprintln!("{name}={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Sleeps up to `most`. This sets the pace of the load; it is not a wait for a condition.
    pub(crate) async fn pause(&mut self, most: Duration) {
        let micros = u64::try_from(most.as_micros()).unwrap();
        tokio::time::sleep(Duration::from_micros(self.below(micros + 1))).await;
    }
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn now() -> i64 {
    TokioRuntime.now().as_millis()
}

/// Everything that must be in the log.
#[derive(Default)]
struct Happened {
    /// The keys of Authentik's events.
    logins: BTreeSet<String>,
    /// The number of lines that oCIS wrote about each path.
    lines: BTreeMap<String, usize>,
    rotations: usize,
}

/// The load of Authentik and oCIS.
pub(crate) struct Surroundings {
    pub(crate) authentik: Arc<AuthentikDouble>,
    file: PathBuf,
    happened: Arc<Mutex<Happened>>,
    /// Whether the last line of the file is incomplete.
    pub(crate) is_half: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Surroundings {
    /// Starts the load, with the files in `folder`.
    pub(crate) async fn begin(folder: &Path, chance: Chance) -> Self {
        // Older than all other events, and never deleted: if the list began after the last event
        // read, the poller would report a gap.
        let oldest = authentik_event(0, &ago(7_200_000));
        let happened = Happened { logins: BTreeSet::from([key(&oldest)]), ..Happened::default() };
        let authentik = AuthentikDouble::builder().events([oldest]).start().await.unwrap();
        authentik.add_group("acme", false);
        authentik.set_user(42, &["acme"]);
        fs::create_dir(folder.join("ocis")).unwrap();
        let mut surroundings = Self {
            authentik: Arc::new(authentik),
            file: folder.join("ocis/audit.log"),
            happened: Arc::new(Mutex::new(happened)),
            is_half: Arc::default(),
            stop: Arc::default(),
            task: None,
        };
        surroundings.task = Some(tokio::spawn(surroundings.life(chance)));
        surroundings
    }

    /// The environment that configures these sources in a server.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("DEZKY_AUTHENTIK_URL", self.authentik.url().to_owned()),
            ("DEZKY_AUTHENTIK_TOKEN", self.authentik.token()),
            ("DEZKY_POLL_SECONDS", "1".to_owned()),
            ("OCIS_AUDIT_LOG_PATH", self.file.display().to_string()),
            ("DEZKY_OCIS_POLL_SECONDS", "1".to_owned()),
            ("DEZKY_LOG", "error".to_owned()),
        ]
    }

    fn life(&self, mut chance: Chance) -> impl Future<Output = ()> + Send + 'static {
        let (authentik, happened) = (Arc::clone(&self.authentik), Arc::clone(&self.happened));
        let (stop, is_half) = (Arc::clone(&self.stop), Arc::clone(&self.is_half));
        let file = self.file.clone();
        async move {
            for n in 1_u64.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                match chance.below(16) {
                    0..7 => {
                        let path = format!("./load/{n}.txt");
                        let line = line(&path);
                        // Each of several equal lines is an event.
                        let times = if chance.one_in(8) { 2 } else { 1 };
                        for _ in 0..times {
                            append(&file, line.as_bytes());
                        }
                        happened.lock().unwrap().lines.insert(path, times);
                    }
                    7 => {
                        let path = format!("./load/{n}.txt");
                        let line = line(&path);
                        let middle = usize::try_from(chance.below(line.len() as u64)).unwrap();
                        is_half.store(true, Ordering::SeqCst);
                        append(&file, &line.as_bytes()[..middle]);
                        chance.pause(Duration::from_millis(60)).await;
                        append(&file, &line.as_bytes()[middle..]);
                        is_half.store(false, Ordering::SeqCst);
                        happened.lock().unwrap().lines.insert(path, 1);
                    }
                    8..15 => {
                        let late = match chance.below(16) {
                            // Within the overlap of the polls.
                            0..4 => chance.below(480_000),
                            // Found only by the scan after a start.
                            4 => 900_000 + chance.below(1_800_000),
                            _ => 0,
                        };
                        let event = authentik_event(n, &ago(late));
                        happened.lock().unwrap().logins.insert(key(&event));
                        authentik.insert(event);
                        if chance.one_in(16) {
                            let wait = Duration::from_millis(chance.below(200));
                            authentik.fail_next(1, Fault::Slow(wait));
                        }
                    }
                    _ if chance.one_in(3) && file.exists() => {
                        rotate(&file);
                        happened.lock().unwrap().rotations += 1;
                    }
                    _ => {}
                }
                chance.pause(Duration::from_millis(50)).await;
            }
        }
    }

    /// Stops the load.
    pub(crate) async fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }

    /// Waits until the log has all events, or nothing new has arrived for a while: then the missing
    /// ones are lost, and [`check`] names them.
    pub(crate) async fn drain(&self, database: &mut SqliteConnection) {
        let (mut left, mut since) = (usize::MAX, Instant::now());
        while left > 0 && since.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = self.unread(database).await;
            if now < left {
                (left, since) = (now, Instant::now());
            }
        }
    }

    /// The number of events that the log does not have yet.
    async fn unread(&self, database: &mut SqliteConnection) -> usize {
        let (logins, lines) = {
            let happened = self.happened.lock().unwrap();
            (happened.logins.len(), happened.lines.values().sum::<usize>())
        };
        let mut left = 0;
        for (source, expected) in [("authentik", logins), ("ocis", lines)] {
            let count = "SELECT count(*) FROM dezky_audit_events WHERE source = ?";
            let query = sqlx::query_scalar::<_, i64>(count).bind(source);
            let there = query.fetch_one(&mut *database).await.unwrap();
            left += expected.saturating_sub(usize::try_from(there).unwrap());
        }
        left
    }

    /// Deletes events that the log has at the sources, as their retention does.
    pub(crate) async fn forget_old(&self, database: &mut SqliteConnection) {
        let query = "SELECT external_id FROM dezky_audit_events WHERE source = 'authentik'";
        let stored = sqlx::query_scalar(query).fetch_all(&mut *database).await.unwrap();
        let stored: BTreeSet<String> = stored.into_iter().collect();
        let oldest = key(&authentik_event(0, ""));
        self.authentik.delete(|event| {
            let key = key(event);
            key != oldest && stored.contains(&key)
        });

        let query = "SELECT metadata FROM dezky_audit_events WHERE source = 'ocis'";
        let stored: Vec<String> = sqlx::query_scalar(query).fetch_all(database).await.unwrap();
        let stored: BTreeSet<_> = stored.iter().filter_map(|metadata| path(metadata)).collect();
        let is_stored = |number| {
            let text = fs::read_to_string(rotated(&self.file, number)).unwrap();
            text.lines().all(|line| path(line).is_some_and(|path| stored.contains(path)))
        };
        let mut last = rotations(&self.file);
        // A tail whose position is in a newer file no longer needs this one.
        while last > 3 && is_stored(last) && is_stored(last - 1) {
            fs::remove_file(rotated(&self.file, last)).unwrap();
            last -= 1;
        }
    }

    /// Compares the log with the recorded load, and returns a summary of it.
    fn check(&self, events: &[Value]) -> String {
        let happened = self.happened.lock().unwrap();
        let logins: Vec<_> = happened.logins.iter().map(|key| (key.clone(), 1)).collect();
        let lines: Vec<_> = happened.lines.iter().map(|(path, n)| (path.clone(), *n)).collect();
        compare("authentik", &logins, of(events, "authentik", |event| text(event, "externalId")));
        compare(
            "ocis",
            &lines,
            of(events, "ocis", |event| {
                path(&event["metadata"].to_string()).unwrap_or_default().to_owned()
            }),
        );
        format!(
            "{} events of Authentik, {} lines of oCIS in {} files",
            logins.len(),
            lines.iter().map(|(_, times)| times).sum::<usize>(),
            happened.rotations + 1
        )
    }
}

/// The time `millis` milliseconds ago, in Authentik's format.
fn ago(millis: u64) -> String {
    let millis = i64::try_from(millis).unwrap();
    Timestamp::from_millis(now() - millis).unwrap().to_string()
}

fn key(event: &Value) -> String {
    text(event, "pk")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// A line as oCIS 7.0.0 writes it.
fn line(path: &str) -> String {
    let user = "a4c517a3-d987-4563-a6dd-3776109686c8";
    let file = format!(
        "a4ae10e7-423c-4886-8fa2-1de59d56176d$507f955f-6ba2-4229-a787-94c6b13802a5!507f955f-6ba2-4229-a787-94c6b13802a5/{path}"
    );
    let time = Timestamp::from_millis(now() / 1_000 * 1_000).unwrap().to_string();
    let time = time.replace(".000Z", "Z");
    format!(
        r#"{{"RemoteAddr":"","User":"","URL":"","Method":"","UserAgent":"","Time":"{time}","App":"admin_audit","Message":"user '{user}' created file '{file}'","Action":"file_create","CLI":false,"Level":1,"Path":"{path}","Owner":"","FileID":"{file}"}}
"#
    )
}

/// The path in a line, or in an event's metadata.
fn path(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(r#""Path":""#)?;
    rest.split_once('"').map(|(path, _)| path)
}

/// Appends as oCIS does, which opens the file for every event.
fn append(file: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).create(true).open(file).unwrap();
    file.write_all(bytes).unwrap();
}

fn rotated(file: &Path, number: u32) -> PathBuf {
    file.with_file_name(format!("audit.log.{number}"))
}

/// The number of rotated files.
fn rotations(file: &Path) -> u32 {
    let mut last = 0;
    while rotated(file, last + 1).exists() {
        last += 1;
    }
    last
}

/// Rotates as logrotate does.
fn rotate(file: &Path) {
    for number in (1..=rotations(file)).rev() {
        fs::rename(rotated(file, number), rotated(file, number + 1)).unwrap();
    }
    fs::rename(file, rotated(file, 1)).unwrap();
}

/// The number of events in the log by name, for one source.
fn of(events: &[Value], source: &str, name: impl Fn(&Value) -> String) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for event in events.iter().filter(|event| event["source"] == source) {
        *found.entry(name(event)).or_insert(0) += 1;
    }
    found
}

/// Fails with the names that are missing or whose counts differ.
fn compare(source: &str, expected: &[(String, usize)], mut found: BTreeMap<String, usize>) {
    let mut wrong = Vec::new();
    for (name, times) in expected {
        let there = found.remove(name).unwrap_or(0);
        if there != *times {
            wrong.push(format!("{name}: {there} instead of {times}"));
        }
    }
    wrong.extend(found.into_iter().map(|(name, times)| format!("{name}: {times} instead of 0")));
    let some: &[String] = &wrong[..wrong.len().min(8)];
    assert!(
        wrong.is_empty(),
        "{source}: {} are not as often as they should be: {some:#?}",
        wrong.len()
    );
}

/// Reads the whole log, once everything is sent and ingested, and compares it with the load. Also
/// returns a summary of the load.
pub(crate) async fn check(
    client: &Client,
    database: &mut SqliteConnection,
    around: &Surroundings,
    senders: &[Sender],
) -> (Vec<Value>, String) {
    let events = client.all("").await;
    check_order(&events);
    let mut what = around.check(&events);
    let _ = write!(what, ", {} events of Stalwart", check_mails(&events, senders));
    check_quarantine(database).await;
    (events, what)
}

/// Checks the log of a server that has ended.
pub(crate) fn verify(store: &str, events: &[Value]) {
    let verified = run(&["verify", "--store", store], &[]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(stdout(&verified).starts_with(&format!("ok: {} events, head ", events.len())));
}

/// A queued mail.
struct Mail {
    queue_id: String,
    /// The time in seconds.
    second: i64,
    /// Stalwart may send equal events in one request; each counts.
    copies: usize,
}

/// A simulated Stalwart, which resends events until they are acknowledged: with new ids, in another
/// order, and together with newer events.
pub(crate) struct Sender {
    name: usize,
    pub(crate) chance: Chance,
    made: u64,
    /// The counter in the ids, incremented at every serialisation.
    serialised: u64,
    waiting: Vec<Mail>,
    acknowledged: Vec<(String, usize)>,
}

/// The state that the senders of a round share.
#[derive(Default)]
pub(crate) struct Counters {
    /// The number of acknowledged events.
    pub(crate) acknowledged: AtomicUsize,
    /// The number of requests in flight.
    pub(crate) in_flight: AtomicUsize,
}

impl Sender {
    pub(crate) fn new(name: usize, chance: Chance) -> Self {
        let (waiting, acknowledged) = (Vec::new(), Vec::new());
        Self { name, chance, made: 0, serialised: 0, waiting, acknowledged }
    }

    /// Sends until the server is killed.
    pub(crate) async fn stream(mut self, client: Client, counters: Arc<Counters>) -> Self {
        loop {
            self.queue();
            if !self.send(&client, &counters).await {
                return self;
            }
            self.chance.pause(Duration::from_millis(20)).await;
        }
    }

    /// Queues one to four mails.
    pub(crate) fn queue(&mut self) {
        for _ in 0..=self.chance.below(4) {
            self.made += 1;
            self.waiting.push(Mail {
                queue_id: format!("{}{:09}", self.name + 1, self.made),
                second: now() / 1_000,
                copies: if self.chance.one_in(10) { 2 } else { 1 },
            });
        }
    }

    /// Sends the waiting events. Returns `false` if there was no response.
    pub(crate) async fn send(&mut self, client: &Client, counters: &Counters) -> bool {
        let start = usize::try_from(self.chance.below(self.waiting.len() as u64)).unwrap();
        self.waiting.rotate_left(start);
        let mut events = Vec::new();
        for mail in &self.waiting {
            for _ in 0..mail.copies {
                self.serialised += 1;
                let created = Timestamp::from_millis(mail.second * 1_000).unwrap();
                events.push(json!({
                    "id": format!("{}{}{QUEUED}", mail.second, self.serialised),
                    "createdAt": created,
                    "type": "queue.authenticated-message-queued",
                    "data": {
                        "queueId": mail.queue_id, "from": "bob@acme.test", "size": 8211,
                        "to": ["alice@example.com"], "accountName": "bob@acme.test",
                        "remoteIp": "203.0.113.7",
                    },
                }));
            }
        }
        let sent = events.len();
        let body = json!({ "events": events }).to_string();
        counters.in_flight.fetch_add(1, Ordering::SeqCst);
        let answer = client.try_post_signed(WEBHOOK, &body).await;
        let Ok(answer) = answer else { return false };
        counters.in_flight.fetch_sub(1, Ordering::SeqCst);
        match answer.status.as_u16() {
            200 => {
                assert_eq!(answer.json["received"], sent, "{answer:?}");
                counters.acknowledged.fetch_add(sent, Ordering::SeqCst);
                let mails = self.waiting.drain(..).map(|mail| (mail.queue_id, mail.copies));
                self.acknowledged.extend(mails);
            }
            // The sender must retry.
            status => assert_eq!(status, 503, "{answer:?}"),
        }
        true
    }

    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The number of unacknowledged events, and how many of them the log has nevertheless.
    pub(crate) async fn unanswered(&self, database: &mut SqliteConnection) -> (usize, usize) {
        let (mut events, mut stored) = (0, 0);
        for mail in &self.waiting {
            let count = "SELECT count(*) FROM dezky_audit_events WHERE resource_id = ?";
            let query = sqlx::query_scalar::<_, i64>(count).bind(&mail.queue_id);
            let there = query.fetch_one(&mut *database).await.unwrap();
            events += mail.copies;
            stored += usize::try_from(there).unwrap();
        }
        (events, stored)
    }
}

/// Compares the log with the acknowledged events, which must be all that were sent; returns their
/// number.
fn check_mails(events: &[Value], senders: &[Sender]) -> usize {
    assert!(senders.iter().all(Sender::is_done));
    let sent: Vec<_> = senders.iter().flat_map(|s| s.acknowledged.iter().cloned()).collect();
    compare("stalwart", &sent, of(events, "stalwart", |event| text(event, "resourceId")));
    sent.iter().map(|(_, copies)| copies).sum()
}

/// An operator who alternately suspends and resumes a tenant.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    changes: usize,
}

impl Operator {
    pub(crate) async fn begin(client: &Client) -> Self {
        let tenant = json!({ "slug": "acme", "name": "acme", "plan": "pro", "status": "active" });
        client.post("/tenants", tenant).await.with_status(201);
        Self::default()
    }

    /// Works until the server is killed.
    pub(crate) async fn stream(mut self, client: Client, mut chance: Chance) -> Self {
        loop {
            let action = if self.changes.is_multiple_of(2) { "suspend" } else { "resume" };
            let path = format!("{TENANT}/{action}");
            let request = client.document(reqwest::Method::POST, &path, "{}");
            let Some(status) = client.try_status(request).await else { return self };
            if status == 200 {
                self.changes += 1;
            }
            chance.pause(Duration::from_millis(60)).await;
        }
    }

    /// Checks that every version of the tenant has an event; returns their number.
    pub(crate) async fn check(&self, client: &Client, events: &[Value]) -> usize {
        let tenant = client.get(TENANT).await.with_status(200);
        let told = events.iter().filter(|event| event["resourceType"] == "tenant").count();
        assert_eq!(tenant["version"], told, "{tenant}");
        assert!(told > self.changes, "{told} events of {} changes", self.changes);
        told
    }
}

/// Checks every log's invariants: no `seq` is repeated or skipped, and no event reports a loss.
fn check_order(events: &[Value]) {
    let mut places: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    places.sort_unstable();
    assert!(places.iter().copied().eq(0..events.len() as u64), "seq has gaps or repetitions");
    let is_odd = |event: &&Value| event["action"].as_str().unwrap().starts_with("ingest.");
    none("events about losses", events.iter().filter(is_odd));
}

fn none<T: Debug>(what: &str, found: impl Iterator<Item = T>) {
    let found: Vec<_> = found.take(3).collect();
    assert!(found.is_empty(), "{what}: {found:#?}");
}

/// The store's URL for a server in `folder`.
pub(crate) fn store(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("dezky.db").display())
}

/// The database of a server in `folder`, opened by the test.
pub(crate) async fn open(folder: &Path) -> SqliteConnection {
    SqliteConnection::connect(&store(folder)).await.unwrap()
}

/// Checks that nothing is in the quarantine.
async fn check_quarantine(database: &mut SqliteConnection) {
    let query = "SELECT source || ' ' || reason || ' ' || detail FROM dezky_quarantine";
    let items: Vec<String> = sqlx::query_scalar(query).fetch_all(database).await.unwrap();
    none("quarantined", items.into_iter());
}
