//! A server, in a separate process, on a disk that is full and later has room again.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::support::{Answer, Client, Process, WEBHOOK, run, stdout, until};

const MIB: usize = 1 << 20;
/// The length of a file that reaches a limit on file sizes before all others.
const BOUND: u64 = 64 << 20;

/// A disk of 6 MiB, of which 4 MiB are used at first. If mounting is not allowed, a limit on the
/// size of the server's files has the same effect.
struct Disk {
    folder: TempDir,
    /// For files that must not be affected by the full disk.
    apart: TempDir,
    is_mounted: bool,
}

impl Disk {
    fn new() -> Self {
        let (folder, apart) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mount = ["-t", "tmpfs", "-o", "size=6m,mode=700", "dezky-test"];
        let mut mount_command = Command::new("mount");
        mount_command.args(mount).arg(folder.path()).stderr(Stdio::null());
        let is_mounted = mount_command.status().is_ok_and(|status| status.success());
        let disk = Self { folder, apart, is_mounted };
        if is_mounted {
            std::fs::write(disk.path("ballast"), vec![0; 4 * MIB]).unwrap();
        }
        disk
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.path("audit.db"))
    }

    /// Starts a server with its store on this disk.
    fn start(&self, more: &[(&str, &str)]) -> Process {
        let url = self.url();
        let store = [("DEZKY_STORE", url.as_str())];
        self.start_with(&[&store, more].concat(), "unlimited")
    }

    /// Starts a server whose disk is full from the start.
    fn start_full(&self, more: &[(&str, &str)]) -> Process {
        self.fill_up();
        let url = self.url();
        let store = [("DEZKY_STORE", url.as_str())];
        self.start_with(&[&store, more].concat(), "8")
    }

    fn start_with(&self, set: &[(&str, &str)], blocks: &str) -> Process {
        let apart = self.apart.path();
        if self.is_mounted {
            return Process::start(apart, set);
        }
        let mut shell = Command::new("sh");
        // The limit must not apply to its log output.
        let script = format!(
            "mkfifo log; cat log >>stderr & trap '' XFSZ; ulimit -S -f {blocks}; exec \"$0\" serve 2>log"
        );
        shell.stdin(Stdio::null()).args(["-c", &script]);
        shell.arg(env!("CARGO_BIN_EXE_dezky-server"));
        Process::start_by(shell, apart, set)
    }

    /// Uses up the remaining space.
    fn fill(&self, server: &Process) {
        if self.is_mounted { self.fill_up() } else { limit(server, "4096") }
    }

    fn fill_up(&self) {
        if self.is_mounted {
            let mut file = File::options().create(true).append(true).open(self.path("rest"));
            let file = file.as_mut().unwrap();
            while file.write_all(&[0; 1_024]).is_ok() {}
        }
    }

    fn make_room(&self, server: &Process) {
        if self.is_mounted {
            std::fs::remove_file(self.path("rest")).unwrap();
            std::fs::remove_file(self.path("ballast")).unwrap();
        } else {
            limit(server, "unlimited");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily: after a failed test the server may still be running.
            let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        }
    }
}

fn limit(server: &Process, bytes: &str) {
    let limited = Command::new("prlimit")
        .args(["--pid", &server.id().to_string(), &format!("--fsize={bytes}:unlimited")])
        .status();
    assert!(limited.unwrap().success());
}

async fn record(client: &Client) -> Answer {
    let event = json!({ "action": "tenant.created", "metadata": { "text": "x".repeat(12_000) } });
    client.post("/audit", event).await
}

fn login(id: &str) -> String {
    format!(
        r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
    )
}

async fn health(client: &Client) -> Value {
    client.get("/health").await.with_status(200)
}

fn doctor(url: &str, apart: &Path) -> (bool, String) {
    let head = apart.join("doctor.head").display().to_string();
    let output = run(&["doctor", "--store", url], &[("DEZKY_HEAD_PATH", &head)]);
    (output.status.success(), stdout(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_write_after_there_is_room_is_taken() {
    let disk = Disk::new();
    let log = disk.apart.path().join("ocis.log");
    std::fs::write(&log, "").unwrap();
    let log = log.display().to_string();
    let server = disk.start(&[("OCIS_AUDIT_LOG_PATH", &log), ("DEZKY_OCIS_POLL_SECONDS", "1")]);
    let client = &server.client;
    client.post("/flags", json!({ "key": "k", "state": "on" })).await.with_status(201);
    if !disk.is_mounted {
        disk.fill(&server);
    }
    let mut taken = 0;
    let refused = loop {
        let answer = record(client).await;
        if answer.status != 201 {
            break answer;
        }
        taken += 1;
        assert!(taken < 1_000, "the disk never gets full");
    };
    refused.problem(503, "store_unavailable");
    disk.fill(&server);
    // A failed large write leaves room for smaller ones.
    let mut edits = 0;
    loop {
        let edit = json!({ "description": edits.to_string() });
        if client.patch("/flags/k", edit).await.status == 503 {
            break;
        }
        edits += 1;
        assert!(edits < 1_000, "the disk never gets full");
    }

    // Every write reports an error, and reads continue.
    record(client).await.problem(503, "store_unavailable");
    client.act("/flags/k/kill").await.problem(503, "store_unavailable");
    client.post_signed(WEBHOOK, &login("a-1")).await.problem(503, "store_unavailable");
    until("health reports it", async || health(client).await["status"] == "degraded").await;
    let store = health(client).await["store"].clone();
    assert_eq!(
        (&store["writable"], &store["failure"]),
        (&json!(false), &json!("store_unavailable"))
    );
    assert_eq!(client.all("&action=tenant").await.len(), taken);
    assert_eq!(client.get("/flags/k").await.with_status(200)["state"], "on");
    if disk.is_mounted {
        let (is_fit, said) = doctor(&disk.url(), disk.apart.path());
        assert!(!is_fit && said.contains("no room") && said.contains("bad   writing"), "{said}");
    }

    disk.make_room(&server);
    record(client).await.with_status(201);
    assert_eq!(client.act("/flags/k/kill").await.with_status(200)["state"], "off");
    assert_eq!(client.post_signed(WEBHOOK, &login("a-1")).await.with_status(200)["received"], 1);
    let line = r#"{"RemoteAddr":"","User":"u-1","URL":"","Method":"","UserAgent":"","Time":"2026-11-21T20:00:00Z","App":"admin-audit","Message":"m","Action":"file_delete","Success":true,"Path":"/a","Owner":"u-1","FileID":"f-1"}"#;
    std::fs::write(&log, format!("{line}\n")).unwrap();
    until("the tail continues", async || !client.all("&source=ocis").await.is_empty()).await;
    until("health reports it", async || health(client).await["status"] == "ok").await;
    let (is_fit, said) = doctor(&disk.url(), disk.apart.path());
    assert!(is_fit, "{said}");
    server.stop().await;
    assert!(run(&["verify", "--store", &disk.url()], &[]).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_serves_reads_and_says_so() {
    let disk = Disk::new();
    let server = disk.start(&[]);
    record(&server.client).await.with_status(201);
    server.stop().await;
    assert!(!Path::new(&disk.path("audit.db-wal")).exists(), "readers have to create this file");
    std::fs::remove_file(disk.path("audit.db.head")).unwrap();

    let spool = disk.path("audit.spool");
    let server = disk.start_full(&[("DEZKY_SPOOL_PATH", &spool)]);
    let client = &server.client;
    for _ in 0..3 {
        assert_eq!(client.all("").await.len(), 1);
    }
    until("health reports it", async || health(client).await["status"] == "degraded").await;
    until("the log reports it", async || server.stderr().contains("the store accepts no writes"))
        .await;
    // A bound on the size of files, in place of a full disk, leaves room for the spool.
    let mut events = 1;
    if disk.is_mounted {
        record(client).await.problem(503, "store_unavailable");
        client.post_signed(WEBHOOK, &login("a-1")).await.problem(503, "store_unavailable");
    } else {
        record(client).await.with_status(202);
        events += 1;
    }

    disk.make_room(&server);
    until("the spool is moved", async || client.all("").await.len() == events).await;
    record(client).await.with_status(201);
    assert_eq!(client.post_signed(WEBHOOK, &login("a-1")).await.with_status(200)["received"], 1);
    until("every event is stored", async || client.all("").await.len() == events + 2).await;
    until("health reports it", async || health(client).await["status"] == "ok").await;
    let head = disk.path("audit.db.head");
    until("the head is noted", async || Path::new(&head).exists()).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_spooled_as_soon_as_the_spools_disk_has_room() {
    let disk = Disk::new();
    let url = format!("sqlite://{}", disk.apart.path().join("audit.db").display());
    let spool = disk.path("audit.spool");
    let set = [("DEZKY_SPOOL_PATH", spool.as_str()), ("DEZKY_STORE", &url)];
    let server = disk.start_with(&set, "unlimited");
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    if disk.is_mounted {
        disk.fill(&server);
    } else {
        limit(&server, "16");
    }
    // The page of its header has room for a few events.
    let mut kept = 0;
    let refused = loop {
        let answer = server.client.post_signed(WEBHOOK, &login(&format!("a-{kept}"))).await;
        if answer.status != 200 {
            break answer;
        }
        kept += 1;
        assert!(kept < 100, "the disk never gets full");
    };
    refused.problem(503, "store_unavailable");
    disk.make_room(&server);
    let last = login(&format!("a-{kept}"));
    let answer = server.client.post_signed(WEBHOOK, &last).await;
    assert_eq!(answer.with_status(200)["received"], 1);
    held.rollback().await.unwrap();
    until("the events", async || server.client.all("").await.len() == kept + 1).await;
    server.stop().await;
}

/// The number of complete lines in a JSON log, and the number of lines that it reports as lost.
fn told(log: &str) -> (u64, u64) {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.fold((0, 0), |(whole, lost), line| match line["fields"]["lines"].as_u64() {
        Some(lines) => (whole, lost + lines),
        None => (whole + 1, lost),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_a_full_disk_holds_no_request_up_and_tells_later_how_many_lines_were_lost() {
    let disk = Disk::new();
    let url = format!("sqlite://{}", disk.apart.path().join("audit.db").display());
    let path = disk.path("server.log");
    let mut command = Command::new("sh");
    command.stdin(Stdio::null()).env_clear().env("LOG", &path);
    command.args(["-c", "trap '' XFSZ; exec \"$0\" serve 2>>\"$LOG\""]);
    command.arg(env!("CARGO_BIN_EXE_dezky-server"));
    if !disk.is_mounted {
        // Larger than the server's other files, so that the limit affects only this one.
        File::create(&path).unwrap().set_len(BOUND).unwrap();
    }
    let set = [
        ("DEZKY_STORE", url.as_str()),
        ("DEZKY_LOG_FORMAT", "json"),
        // Only one line per request.
        ("DEZKY_LOG", "dezky_server::router=info"),
    ];
    let server = Process::start_by(command, disk.apart.path(), &set);
    let client = &server.client;
    let log = || {
        let (mut file, mut text) = (File::open(&path).unwrap(), String::new());
        file.seek(SeekFrom::Start(if disk.is_mounted { 0 } else { BOUND })).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    record(client).await.with_status(201);
    until("the first line", async || told(&log()).0 == 1).await;
    if disk.is_mounted {
        disk.fill(&server);
    } else {
        limit(&server, &(BOUND + 1_024).to_string());
    }

    for n in 0..40 {
        record(client).await.with_status(201);
        let answer = client.post_signed(WEBHOOK, &login(&format!("a-{n}"))).await;
        assert_eq!(answer.with_status(200)["received"], 1);
    }
    assert_eq!(client.all("").await.len(), 81, "every event is stored");
    let before = log();
    assert_eq!(told(&before).1, 0, "there is no room to report the loss: {before}");
    assert!(!before.ends_with('\n'), "{before}");

    disk.make_room(&server);
    until("the log reports it", async || told(&log()).1 > 0).await;
    client.get("/health").await.with_status(200);
    // One line for the last request, one for the page of events, and one for each event.
    let sent = 1 + 1 + 81;
    until("each line is written or reported as lost", async || {
        let (whole, lost) = told(&log());
        whole + lost >= sent
    })
    .await;
    let (whole, lost) = told(&log());
    assert_eq!(whole + lost, sent, "{}", log());
    server.stop().await;
}
