//! Checks that the memory use of ingest does not depend on the amount of input.
//!
//! `cargo bench -p dezky-benches --bench memory -- ocis --bytes 2G [--sink discard]` writes a log
//! file of that size and tails it; `… -- authentik --events 1000000 [--sink discard]` drains a
//! backlog of that length from a server in a separate process, which generates its pages on
//! request. Both use the real source and the real pump into SQLite, or with `--sink discard` into a
//! store that keeps only cursors. Without a source, both run with small inputs. The process fails
//! if its peak resident memory exceeds the bound.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dezky_core::rt::TokioRuntime;
use dezky_core::source::IngestSource;
use dezky_core::store::{
    AppendOptions, Appended, Capabilities, EventKey, Lease, ListPage, ListQuery, LogPart, LogState,
    QuarantinedItem, Receipt, ReceiptStatus, Relayed, ScannedRow, SqliteAuditStore, SqliteConfig,
    Tally, TallyQuery,
};
use dezky_core::{
    AuditStore, Error, ErrorKind, Result, Runtime, SealedEvent, StoredEvent, Timestamp,
};
use dezky_ingest::authentik::{ApiToken, AuthentikConfig, AuthentikSource};
use dezky_ingest::ocis::{OcisConfig, OcisTail};
use dezky_ingest::{Intake, Pump, PumpConfig};

/// Maximum resident memory with either source, including SQLite's cache.
const MAX_RSS_KIB: u64 = 64 << 10;

/// The default amount of input: enough to reveal a leak of all of it.
const SMALL_BYTES: u64 = 8 << 20;
const SMALL_EVENTS: u64 = 20_000;

/// The interval between the generated Authentik events: a million in a year.
const SPACING_MS: u64 = 30_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut words = args.iter().filter(|arg| !matches!(arg.as_str(), "--bench" | "--test"));
    let mut options = HashMap::new();
    let mut what = None;
    while let Some(word) = words.next() {
        match word.strip_prefix("--") {
            Some(name) => {
                options.insert(name.to_owned(), words.next().cloned().unwrap_or_default());
            }
            None => what = Some(word.as_str()),
        }
    }
    let count = |name: &str, small| options.get(name).map_or(small, |text| number(text));
    let discards = options.get("sink").is_some_and(|sink| sink == "discard");
    match what {
        Some("ocis") => run(ocis(count("bytes", SMALL_BYTES), discards)),
        Some("authentik") => run(authentik(count("events", SMALL_EVENTS), discards)),
        Some("page-server") => serve(count("events", 0), count("newest", 0)),
        // In separate processes, because a peak never goes down again.
        _ => {
            let ran = |what| {
                let done = myself().arg(what).status();
                done.is_ok_and(|status| status.success())
            };
            ExitCode::from(u8::from(!(ran("ocis") && ran("authentik"))))
        }
    }
}

/// Parses `2G`, `64M`, `1000000`.
fn number(text: &str) -> u64 {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'M') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<u64>().expect("a number, with M or G behind it for bytes") << shift
}

fn myself() -> Command {
    Command::new(std::env::current_exe().expect("it runs"))
}

fn run(bench: impl Future<Output = bool>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    ExitCode::from(u8::from(!runtime.block_on(bench)))
}

async fn ocis(bytes: u64, discards: bool) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("audit.log");
    let lines = write_log(&path, bytes).expect("the log is written");
    let tail = OcisTail::new(OcisConfig::new(&path), Arc::new(TokioRuntime)).expect("a tail");
    let store = sink(folder.path(), discards).await;
    drain("ocis", Box::new(tail), store, PumpConfig::default(), lines, discards).await
}

async fn authentik(events: u64, discards: bool) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let newest = TokioRuntime.now().as_millis() - 3_600_000;
    let server = PageServer::start(events, newest);
    let token = ApiToken::new("made-up-token").expect("a token");
    let config = AuthentikConfig::new(server.url.as_str(), token);
    let source = AuthentikSource::new(config, Arc::new(TokioRuntime)).expect("a source");
    let store = sink(folder.path(), discards).await;
    let config = AuthentikConfig::pump_config();
    drain("authentik", Box::new(source), store, config, events, discards).await
}

async fn sink(folder: &Path, discards: bool) -> Arc<dyn AuditStore> {
    if discards {
        return Arc::new(Discard::default());
    }
    let config = SqliteConfig::new(folder.join("audit.db"));
    Arc::new(SqliteAuditStore::open(config, &TokioRuntime).await.expect("opens"))
}

/// Pumps until no more input is waiting; returns whether everything arrived within the bound.
async fn drain(
    name: &str,
    source: Box<dyn IngestSource>,
    store: Arc<dyn AuditStore>,
    config: PumpConfig,
    expected: u64,
    discards: bool,
) -> bool {
    let started = now();
    let mut pump = Pump::new(source, Intake::new(store, Arc::new(TokioRuntime)), config);
    let (mut stored, mut early) = (0, None);
    loop {
        let tick = pump.tick().await.expect("a tick");
        stored += tick.taken.stored as u64;
        if early.is_none() && stored * 10 >= expected {
            early = peak_kib();
        }
        if !tick.more {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let sink = if discards { "discarded" } else { "SQLite" };
    let mib = |kib: Option<u64>| kib.map_or("?".into(), |kib| format!("{} MiB", kib >> 10));
    let peak = peak_kib();
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    let rate = stored as f64 / seconds;
    println!(
        "{name}, {sink}: {stored} events in {seconds:.1} s, {rate:.0} a second; peak RSS {} at 10 %, \
         {} at the end, bound {}",
        mib(early),
        mib(peak),
        mib(Some(MAX_RSS_KIB)),
    );
    // A sink without deduplication counts twice what the poller reads twice.
    let complete = if discards { stored >= expected } else { stored == expected };
    if !complete {
        eprintln!("{name}: {stored} events were stored and {expected} are there");
    }
    let within = peak.is_none_or(|peak| peak <= MAX_RSS_KIB);
    if !within {
        eprintln!("{name}: the peak of the resident memory exceeds the bound");
    }
    complete && within
}

/// The peak resident memory of this process; `None` where it can't be determined.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Writes lines like those of oCIS until there are `bytes`; returns their number.
fn write_log(path: &Path, bytes: u64) -> std::io::Result<u64> {
    const SPACE: &str = "a4ae10e7-423c-4886-8fa2-1de59d56176d$507f955f-6ba2-4229-a787-94c6b13802a5";
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let (mut written, mut lines, mut line) = (0, 0_u64, String::new());
    while written < bytes {
        let time = Timestamp::from_millis_clamped(
            1_764_547_200_000 + i64::try_from(lines).unwrap_or(0) / 50 * 1_000,
        );
        let time = time.to_string().replace(".000Z", "Z");
        let item = format!("{SPACE}!{lines:08x}-79a2-4a33-9c6b-5fe7f23c9c26");
        let (action, verb) = match lines % 4 {
            0 => ("file_create", "created"),
            1 => ("file_version_restore", "restored"),
            2 => ("file_delete", "trashed"),
            _ => ("file_rename", "renamed"),
        };
        line.clear();
        let _ = writeln!(
            line,
            r#"{{"RemoteAddr":"","User":"a4c517a3-d987-4563-a6dd-3776109686c8","URL":"","Method":"","UserAgent":"","Time":"{time}","App":"admin_audit","Message":"user 'a4c517a3-d987-4563-a6dd-3776109686c8' {verb} file '{item}'","Action":"{action}","CLI":false,"Level":1,"Path":"./Reports/q{lines}.txt","Owner":"9278ef9e-a324-488a-a04d-216645d73f6c","FileID":"{item}"}}"#
        );
        file.write_all(line.as_bytes())?;
        written += line.len() as u64;
        lines += 1;
    }
    file.flush()?;
    Ok(lines)
}

/// Authentik's event list in another process, which exits when this value is dropped.
struct PageServer {
    child: Child,
    url: String,
}

impl PageServer {
    fn start(events: u64, newest_ms: i64) -> Self {
        let mut child = myself()
            .args(["page-server", "--events", &events.to_string()])
            .args(["--newest", &newest_ms.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process starts");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut url).expect("its address");
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves `events` events, the newest of them at `newest_ms`, until the parent process exits.
#[expect(clippy::disallowed_methods, reason = "a separate server, not a library")]
fn serve(events: u64, newest_ms: u64) -> ExitCode {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(|| {
        // Ends when the parent's end of the pipe is closed.
        let _ = std::io::stdin().lines().count();
        std::process::exit(0);
    });
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(&stream, events, newest_ms));
    }
    ExitCode::SUCCESS
}

fn answer(stream: &TcpStream, events: u64, newest_ms: u64) -> std::io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        loop {
            let start = request.len();
            if reader.read_line(&mut request)? == 0 || request.len() > 64 << 10 {
                return Ok(());
            }
            if request[start..].trim().is_empty() {
                break;
            }
        }
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (status, body) = page(target, events, newest_ms);
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        stream.write_all((head + &body).as_bytes())?;
    }
}

/// A page in the form of Authentik from 2025.12 on.
fn page(target: &str, events: u64, newest_ms: u64) -> (&'static str, String) {
    let Some(query) = target.strip_prefix("/api/v3/events/events/") else {
        return ("404 Not Found", "{}".into());
    };
    let pairs = query.trim_start_matches('?').split('&').filter_map(|pair| pair.split_once('='));
    let query: HashMap<&str, &str> = pairs.collect();
    let size = match query.get("page_size").map(|text| text.parse::<u64>()) {
        None => 20,
        Some(Ok(size @ 1..=100)) => size,
        Some(_) => 100,
    };
    let pages = events.div_ceil(size).max(1);
    let current = match query.get("page") {
        None => 1,
        Some(&"last") => pages,
        Some(text) => text.parse().unwrap_or(0),
    };
    if current == 0 || current > pages {
        return ("404 Not Found", r#"{"detail":"Invalid page."}"#.into());
    }
    let newest_first = query.get("ordering").is_some_and(|text| text.starts_with('-'));
    let (from, to) = ((current - 1) * size, (current * size).min(events));
    let next = if current < pages { current + 1 } else { 0 };
    let start = if events == 0 { 0 } else { from + 1 };
    let mut body = format!(
        r#"{{"pagination":{{"next":{next},"previous":{},"count":{events},"current":{current},"total_pages":{pages},"start_index":{start},"end_index":{to}}},"results":["#,
        current - 1
    );
    for place in from..to {
        let index = if newest_first { events - 1 - place } else { place };
        if place > from {
            body.push(',');
        }
        write_event(&mut body, index, newest_ms - (events - 1 - index) * SPACING_MS);
    }
    body.push_str(r#"],"autocomplete":{}}"#);
    ("200 OK", body)
}

fn write_event(body: &mut String, index: u64, created_ms: u64) {
    let created = Timestamp::from_millis_clamped(i64::try_from(created_ms).unwrap_or(0));
    let user = index % 500 + 10;
    let _ = write!(
        body,
        r#"{{"pk":"5b0c2f0e-6f0a-4c55-9a57-{index:012x}","user":{{"pk":{user},"email":"user-{user}@acme.test","username":"user-{user}"}},"action":"login","app":"authentik.events.signals","context":{{"geo":{{"lat":52.5,"city":"Berlin","long":13.4,"country":"DE","continent":"EU"}},"auth_method":"password","http_request":{{"args":{{"next":"/"}},"path":"/api/v3/flows/executor/default-authentication-flow/","method":"GET","request_id":"{index:032x}","user_agent":"Mozilla/5.0"}},"auth_method_args":{{"mfa_devices":[{{"pk":7,"app":"authentik_stages_authenticator_totp","name":"TOTP Device","model_name":"totpdevice"}}]}}}},"client_ip":"203.0.113.10","created":"{created}","expires":"{created}","brand":{{"pk":"0d7c1e0a9f4b4c1d8a2e3f4051627384","app":"authentik_brands","name":"acme","model_name":"brand"}}}}"#
    );
}

/// Keeps only cursors, to measure the stages before a store.
#[derive(Default)]
struct Discard {
    cursors: Mutex<HashMap<String, String>>,
}

fn absent<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Internal, "discarded events can't be read"))
}

#[async_trait]
impl AuditStore for Discard {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended> {
        if let Some(advance) = options.cursor {
            let mut cursors = self.cursors.lock().expect("not poisoned");
            cursors.insert(advance.source, advance.to);
        }
        let receipt = |event: SealedEvent| Receipt {
            status: ReceiptStatus::Appended,
            seq: 0,
            id: event.event().id,
            differs: Vec::new(),
        };
        let new_quarantine = options.quarantine.len();
        let receipts = events.into_iter().map(receipt).collect();
        Ok(Appended { receipts, new_quarantine, released: 0 })
    }

    async fn list(&self, _query: &ListQuery) -> Result<ListPage> {
        absent()
    }

    async fn get(&self, _key: EventKey) -> Result<Option<StoredEvent>> {
        absent()
    }

    async fn tally(&self, _query: &TallyQuery) -> Result<Tally> {
        absent()
    }

    async fn state(&self) -> Result<LogState> {
        absent()
    }

    async fn scan(&self, _from_seq: i64, _max_rows: usize) -> Result<Vec<ScannedRow>> {
        absent()
    }

    async fn changed(&self, _next_seq: u64) {
        std::future::pending::<()>().await;
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        Ok(self.cursors.lock().expect("not poisoned").get(source).cloned())
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        absent()
    }

    async fn restore(&self, _part: LogPart) -> Result<()> {
        absent()
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>> {
        let expires_at = TokioRuntime.now().saturating_add(ttl);
        let (name, holder) = (name.to_owned(), holder.to_owned());
        Ok(Some(Lease { name, holder, token: 1, expires_at }))
    }

    async fn release_lease(&self, _lease: &Lease) -> Result<()> {
        Ok(())
    }

    async fn quarantined(&self, _after: i64, _max: usize) -> Result<Vec<QuarantinedItem>> {
        absent()
    }

    async fn stage(&self, _events: Vec<SealedEvent>) -> Result<()> {
        absent()
    }

    async fn relay(&self, _max_events: usize) -> Result<Relayed> {
        absent()
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}
