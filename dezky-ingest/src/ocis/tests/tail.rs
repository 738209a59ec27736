mod alike;
mod compressed;
mod long;
mod names;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use dezky_core::testkit::ManualRuntime;
use dezky_core::{ActorType, IngestSource, Pull, PullLimits, Runtime};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{ENOSPC_GLUED, FIRST_GENERATION};
use crate::ocis::{OcisConfig, OcisTail};
use crate::tail::Cursor;

/// A directory with a log file, and a tail with its cursor.
struct Bench {
    directory: TempDir,
    tail: OcisTail,
    cursor: Option<String>,
    limits: PullLimits,
    config: fn(OcisConfig) -> OcisConfig,
}

impl Bench {
    fn new() -> Self {
        Self::with(|config| config)
    }

    fn with(config: fn(OcisConfig) -> OcisConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tail = tail(config(OcisConfig::new(directory.path().join("audit.log"))));
        Self { directory, tail, cursor: None, limits: PullLimits::default(), config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn append(&self, text: impl AsRef<[u8]>) {
        append(&self.path("audit.log"), text.as_ref());
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Sets a file's modification time, in seconds.
    fn written(&self, name: &str, at: u64) {
        let file = OpenOptions::new().append(true).open(self.path(name)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(at)).unwrap();
    }

    /// Compresses a rotated file as gzip does.
    fn compress(&self, name: &str) {
        let written = fs::metadata(self.path(name)).unwrap().modified().unwrap();
        let bytes = gzip(&fs::read(self.path(name)).unwrap());
        let copy = self.path(&format!("{name}.gz"));
        fs::write(&copy, bytes).unwrap();
        OpenOptions::new().append(true).open(copy).unwrap().set_modified(written).unwrap();
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Continues in another process, which has no open files.
    fn restart(&mut self) {
        self.tail = tail((self.config)(OcisConfig::new(self.path("audit.log"))));
    }

    /// Pulls once and keeps the cursor. A tail with nothing open must return the same.
    fn pull(&mut self) -> Pull {
        let pull = self.pull_live();
        let mut fresh = tail((self.config)(OcisConfig::new(self.path("audit.log"))));
        let again = pull_from(&mut fresh, self.cursor.as_deref(), self.limits);
        assert_eq!(ids(&pull), ids(&again), "the descriptors are only a cache");
        assert_eq!(pull.cursor, again.cursor);
        self.keep(pull)
    }

    fn pull_live(&mut self) -> Pull {
        let pull = pull_from(&mut self.tail, self.cursor.as_deref(), self.limits);
        let again = pull_from(&mut self.tail, self.cursor.as_deref(), self.limits);
        assert_eq!(ids(&pull), ids(&again), "the same cursor gives the same events");
        assert_eq!(pull.cursor, again.cursor);
        pull
    }

    fn keep(&mut self, pull: Pull) -> Pull {
        if let Some(cursor) = &pull.cursor {
            assert_eq!(Cursor::parse(cursor).unwrap().to_string(), *cursor);
            self.cursor = Some(cursor.clone());
        }
        pull
    }

    /// Pulls once and returns the events' names.
    fn names(&mut self) -> Vec<String> {
        names(&self.pull())
    }

    /// Like [`Self::names`], for a removed file that only the tail still has open.
    fn names_live(&mut self) -> Vec<String> {
        let pull = self.pull_live();
        names(&self.keep(pull))
    }
}

fn tail(config: OcisConfig) -> OcisTail {
    let runtime: Arc<dyn Runtime> = Arc::new(ManualRuntime::new(1));
    OcisTail::new(config, runtime).unwrap()
}

fn pull_from(tail: &mut OcisTail, cursor: Option<&str>, limits: PullLimits) -> Pull {
    tail.pull(cursor, limits).now_or_never().expect("nothing waits").unwrap()
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A line as oCIS writes it, about the group `name`.
fn line(name: &str) -> String {
    format!("{}\n", unterminated(name))
}

fn unterminated(name: &str) -> String {
    json!({"RemoteAddr": "", "User": "", "Time": "", "App": "admin_audit",
           "Message": format!("user 'admin' created group '{name}'"),
           "Action": "group_created", "GroupID": name})
    .to_string()
    .replacen(r#"{"Action""#, r#"{"RemoteAddr":"","Action""#, 1)
}

fn lines(names: &[&str]) -> String {
    names.iter().map(|name| line(name)).collect()
}

fn names(pull: &Pull) -> Vec<String> {
    pull.events
        .iter()
        .map(|pulled| match pulled.event.action.as_str() {
            "ingest.gap" => "gap".to_owned(),
            _ => pulled.event.resource_id.clone().unwrap_or_default(),
        })
        .collect()
}

fn ids(pull: &Pull) -> (Vec<Option<String>>, Vec<String>) {
    (
        pull.events.iter().map(|pulled| pulled.event.external_id.clone()).collect(),
        pull.quarantine.iter().map(|item| item.key.clone()).collect(),
    )
}

fn reasons(pull: &Pull) -> Vec<&str> {
    pull.quarantine.iter().map(|item| item.reason.as_str()).collect()
}

fn gap(pull: &Pull) -> Value {
    let event = &pull.events[0].event;
    assert_eq!(event.action, "ingest.gap");
    serde_json::from_str(event.metadata.source().unwrap()).unwrap()
}

#[test]
fn appends_are_read_once() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]));
    assert_eq!(bench.names(), ["a", "b"]);
    let idle = bench.pull();
    assert_eq!((idle.events.len(), idle.cursor, idle.more), (0, None, false));
    bench.append(line("c"));
    assert_eq!(bench.names(), ["c"]);
    bench.restart();
    assert_eq!(bench.names(), [""; 0]);
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d"]);
}

#[test]
fn the_file_appears_with_the_first_event() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not/there/audit.log");
    let mut tail = tail(OcisConfig::new(&path));
    let pull = pull_from(&mut tail, None, PullLimits::default());
    assert!(pull.events.is_empty() && pull.cursor.is_none() && !pull.more);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert_eq!(names(&pull_from(&mut tail, None, PullLimits::default())), [""; 0]);
    append(&path, line("a").as_bytes());
    assert_eq!(names(&pull_from(&mut tail, None, PullLimits::default())), ["a"]);
}

#[test]
fn a_partial_last_line_waits_for_its_end() {
    let mut bench = Bench::new();
    let b = line("b");
    bench.append(line("a"));
    bench.append(&b[..b.len() / 2]);
    assert_eq!(bench.names(), ["a"]);
    assert_eq!(bench.names(), [""; 0]);
    bench.append(&b[b.len() / 2..b.len() - 1]);
    assert_eq!(bench.names(), [""; 0], "complete but for its newline");
    bench.append("\n");
    assert_eq!(bench.names(), ["b"]);

    let mut only = Bench::new();
    only.append(&b[..10]);
    let pull = only.pull();
    assert!(pull.events.is_empty() && pull.cursor.is_none());
    only.append(&b[10..]);
    assert_eq!(only.names(), ["b"]);
}

#[test]
fn blank_crlf_and_broken_lines() {
    let mut bench = Bench::with(|config| OcisConfig { max_line_bytes: 1_000, ..config });
    bench.append("\n\r\n");
    bench.append(line("crlf").replace('\n', "\r\n"));
    bench.append(b"bad \xff line\n");
    bench.append(line("ü\u{fffd}"));
    bench.append("x".repeat(5_000) + "\n");
    bench.append(line("after"));
    bench.append("\n");
    let pull = bench.pull();
    assert_eq!(names(&pull), ["crlf", "ü\u{fffd}", "after"]);
    assert_eq!(reasons(&pull), ["not_json", "line_too_long"]);
    assert_eq!(pull.quarantine[1].raw.len(), 1_000);
    assert!(pull.quarantine[1].detail.contains("5000 bytes"));
    bench.append(line("next"));
    assert_eq!(bench.names(), ["next"]);
}

#[test]
fn an_over_long_line_is_recorded_once_and_verified_after() {
    let mut bench = Bench::with(|config| OcisConfig { max_line_bytes: 10_000, ..config });
    let token = r#"{"ShareToken":"abcdefghijklmno","x":""#;
    bench.append(format!("{token}{}", "y".repeat(300_000)));
    let pull = bench.pull();
    assert!(pull.cursor.is_none() && pull.quarantine.is_empty(), "it has no end yet");
    bench.append("end\n");
    let pull = bench.pull();
    assert_eq!(reasons(&pull), ["line_too_long"]);
    let raw = String::from_utf8(pull.quarantine[0].raw.clone()).unwrap();
    assert!(raw.len() <= 4_096 && raw.starts_with(r#"{"ShareToken":"[redacted]","x":"yy"#));
    assert!(bench.pull().cursor.is_none());
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
}

#[test]
fn only_skipped_lines_move_the_cursor_too() {
    let mut bench = Bench::new();
    bench.append("{\"Action\":\"file_read\"}\n{\"type\":\"UserSignedIn\"}\n\n");
    let pull = bench.pull();
    assert_eq!((pull.events.len(), pull.skipped), (0, 2));
    assert!(pull.cursor.is_some());
    assert_eq!(bench.pull().skipped, 0);
}

#[test]
fn the_fixture_in_small_batches() {
    let mut whole = Bench::new();
    whole.append(FIRST_GENERATION);
    let expected = whole.pull();
    assert_eq!((expected.events.len(), expected.skipped, expected.more), (46, 4, false));

    for limits in [
        PullLimits { max_events: 1, max_bytes: 1 << 20 },
        PullLimits { max_events: 7, max_bytes: 1 << 20 },
        PullLimits { max_events: 100, max_bytes: 1 },
        PullLimits { max_events: 100, max_bytes: 3_000 },
        PullLimits { max_events: 0, max_bytes: 0 },
    ] {
        let mut bench = Bench::new();
        bench.limits = limits;
        bench.append(FIRST_GENERATION);
        let (mut found, mut skipped, mut more) = (Vec::new(), 0, true);
        while more {
            let pull = bench.pull();
            assert!(pull.events.len() <= limits.max_events.max(1));
            found.extend(ids(&pull).0);
            skipped += pull.skipped;
            more = pull.more;
            assert!(pull.cursor.is_some() || !more);
        }
        assert_eq!((found, skipped), (ids(&expected).0, 4));
    }
}

#[test]
fn glued_lines_on_disk() {
    let mut bench = Bench::new();
    bench.append(ENOSPC_GLUED);
    let pull = bench.pull();
    assert_eq!((pull.events.len(), reasons(&pull)), (15, vec!["glued_fragment"]));
    assert_eq!(pull.quarantine[0].raw.len(), 209);
}

#[test]
fn five_lines_one_of_them_a_read_then_one_more() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]) + "{\"type\":\"FileDownloaded\"}\n" + &lines(&["c", "d"]));
    let pull = bench.pull();
    assert_eq!((pull.events.len(), pull.skipped), (4, 1));
    bench.append(line("e"));
    assert_eq!(bench.names(), ["e"]);
}

#[test]
fn rename_rotation() {
    for restart in [false, true] {
        let mut bench = Bench::new();
        bench.append(lines(&["a", "b"]));
        assert_eq!(bench.names(), ["a", "b"]);
        bench.append(line("c"));
        bench.rename("audit.log", "audit.log.1");
        if restart {
            bench.restart();
        }
        // No file exists at the path until the next event.
        assert_eq!(bench.names(), ["c"]);
        assert_eq!(bench.names(), [""; 0]);
        append(&bench.path("audit.log.1"), line("late").as_bytes());
        bench.append(line("d"));
        assert_eq!(bench.names(), ["late", "d"]);
        if restart {
            bench.restart();
        }
        bench.append(line("e"));
        assert_eq!(bench.names(), ["e"]);
        let cursor = Cursor::parse(bench.cursor.as_deref().unwrap()).unwrap();
        assert!(cursor.previous.is_none(), "looked at once more, and done with");
    }
}

#[test]
fn a_late_line_behind_the_rotation() {
    let mut bench = Bench::new();
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
    bench.rename("audit.log", "audit.log.1");
    bench.append(line("b"));
    assert_eq!(bench.names(), ["b"]);
    // A writer that still has the old file open.
    append(&bench.path("audit.log.1"), line("late").as_bytes());
    bench.restart();
    bench.append(line("c"));
    assert_eq!(bench.names(), ["late", "c"]);
    assert_eq!(bench.names(), [""; 0]);
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d"]);
}

#[test]
fn several_generations_while_down() {
    for (first, second, third) in [
        ("audit.log.3", "audit.log.2", "audit.log.1"),
        ("audit.log-20261119", "audit.log-20261120", "audit.log-20261121"),
        ("audit-1.log", "audit-20261120.log", "audit-20261121.log"),
    ] {
        let mut bench = Bench::new();
        bench.append(line("a1"));
        assert_eq!(bench.names(), ["a1"]);
        bench.append(line("a2"));
        bench.rename("audit.log", first);
        bench.written(first, 1_000);
        bench.append(lines(&["b1", "b2"]));
        bench.rename("audit.log", second);
        bench.written(second, 2_000);
        bench.append(line("c1"));
        bench.rename("audit.log", third);
        bench.written(third, 3_000);
        bench.append(line("d1"));
        bench.restart();

        // All events in one pull, and in pulls of one event.
        let cursor = bench.cursor.clone();
        assert_eq!(bench.names(), ["a2", "b1", "b2", "c1", "d1"]);
        bench.cursor = cursor;
        bench.limits.max_events = 1;
        let mut found = Vec::new();
        for _ in 0..5 {
            bench.restart();
            let pull = bench.pull();
            assert_eq!(pull.more, found.len() < 4);
            found.extend(names(&pull));
        }
        assert_eq!(found, ["a2", "b1", "b2", "c1", "d1"]);
        assert_eq!(bench.names(), [""; 0]);
    }
}

#[test]
fn a_fresh_start_reads_the_oldest_first() {
    let mut bench = Bench::new();
    for (name, at) in [("audit.log.2", 5), ("audit.log.1", 5), ("audit.log-20261121", 3)] {
        append(&bench.path(name), line(name).as_bytes());
        bench.written(name, at);
    }
    append(&bench.path("audit.log.bak"), line("other").as_bytes());
    append(&bench.path("audit.log.3.gz"), b"\x1f\x8b");
    fs::create_dir(bench.path("audit.log.4")).unwrap();
    File::create(bench.path("audit.log.5")).unwrap();
    bench.append(line("live"));
    let pull = bench.pull();
    let lines = ["audit.log-20261121", "audit.log.2", "audit.log.1", "live"];
    assert_eq!(pull.events.len(), lines.len() + 1);
    assert!(lines.iter().eq(names(&pull).iter().filter(|name| *name != "gap")));
    let said = pull.events.iter().find(|pulled| pulled.event.action == "ingest.gap").unwrap();
    let said: Value = serde_json::from_str(said.event.metadata.source().unwrap()).unwrap();
    assert_eq!(said["reason"], "unreadable", "the compressed one is cut off");
}

#[test]
fn the_oldest_beyond_the_limit_are_left_out() {
    let mut bench = Bench::with(|config| OcisConfig { max_siblings: 2, ..config });
    for number in 1..5_u64 {
        let name = format!("audit.log.{number}");
        append(&bench.path(&name), line(&name).as_bytes());
        bench.written(&name, 100 - number);
    }
    let pull = bench.pull();
    assert_eq!(names(&pull), ["gap", "audit.log.2", "audit.log.1"]);
    assert_eq!(gap(&pull)["reason"], "left_out");
    assert_eq!(bench.names(), [""; 0]);
}

#[test]
fn a_removed_file_is_read_to_its_end() {
    let mut bench = Bench::new();
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
    bench.append(line("b"));
    fs::remove_file(bench.path("audit.log")).unwrap();
    assert_eq!(bench.names_live(), ["b"]);
    bench.append(line("c"));
    assert_eq!(bench.names_live(), ["c"], "it was read to its end: no gap");
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d"]);
}

#[test]
fn a_file_removed_while_down_leaves_a_gap() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]));
    assert_eq!(bench.names(), ["a", "b"]);
    let lost = Cursor::parse(bench.cursor.as_deref().unwrap()).unwrap();
    // An earlier generation that was finished long ago, and two unread ones.
    append(&bench.path("audit.log.9"), line("old").as_bytes());
    bench.written("audit.log.9", 1_000);
    fs::remove_file(bench.path("audit.log")).unwrap();
    bench.restart();
    assert!(bench.pull().cursor.is_none(), "it may come back");

    append(&bench.path("audit.log.1"), line("unseen").as_bytes());
    bench.written("audit.log.1", 4_000_000_000);
    append(&bench.path("audit.log"), line("live").as_bytes());
    let pull = bench.pull();
    assert_eq!(names(&pull), ["gap", "unseen", "live"]);
    let said = gap(&pull);
    assert_eq!(said["lastOffset"], lost.at.position);
    assert_eq!(said["lastLineHash"], hex::encode(lost.at.last_line.unwrap().hash));
    assert_eq!(pull.events[0].event.resource_id.as_deref(), Some("ocis"));
    assert_eq!(bench.names(), [""; 0]);
}

#[test]
fn truncation_leaves_a_gap() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b", "c"]));
    assert_eq!(bench.names(), ["a", "b", "c"]);
    fs::write(bench.path("audit.log"), "").unwrap();
    let pull = bench.pull();
    assert_eq!(names(&pull), ["gap"]);
    assert_eq!(gap(&pull)["reason"], "truncated");
    assert!(bench.pull().cursor.is_none(), "said once");
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d"]);

    // The shorter file is read at once.
    bench.append(lines(&["e", "f"]));
    assert_eq!(bench.names(), ["e", "f"]);
    fs::write(bench.path("audit.log"), line("g")).unwrap();
    bench.restart();
    assert_eq!(bench.names(), ["gap", "g"]);
}

#[test]
fn truncated_and_grown_past_the_position() {
    for restart in [false, true] {
        let mut bench = Bench::new();
        bench.append(lines(&["a", "b"]));
        assert_eq!(bench.names(), ["a", "b"]);
        fs::write(bench.path("audit.log"), lines(&["x", "y", "z"])).unwrap();
        if restart {
            bench.restart();
        }
        let pull = bench.pull();
        assert_eq!(names(&pull), ["gap", "x", "y", "z"]);
        assert_eq!(gap(&pull)["reason"], "rewritten");

        // With the same first line, and lines of the same length.
        fs::write(bench.path("audit.log"), lines(&["x", "q", "r", "s"])).unwrap();
        assert_eq!(bench.names(), ["gap", "x", "q", "r", "s"]);
    }
}

#[test]
fn copied_and_truncated() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]));
    assert_eq!(bench.names(), ["a", "b"]);
    bench.append(line("c"));
    fs::copy(bench.path("audit.log"), bench.path("audit.log.1")).unwrap();
    // The original is not truncated yet, so the copy must not be read as well.
    let mut fresh = tail(OcisConfig::new(bench.path("audit.log")));
    let all = pull_from(&mut fresh, None, PullLimits::default());
    assert_eq!(names(&all), ["a", "b", "c"]);
    fs::write(bench.path("audit.log"), line("d")).unwrap();
    let pull = bench.pull();
    assert_eq!(names(&pull), ["c", "d"]);
    assert_eq!(pull.events[0].event.external_id, all.events[2].event.external_id);
}

#[test]
fn a_new_file_with_the_old_inode() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]));
    assert_eq!(bench.names(), ["a", "b"]);
    bench.append(line("c"));
    // A reused inode: another file has the cursor's inode number.
    let cursor = bench.cursor.clone().unwrap();
    bench.rename("audit.log", "audit.log.1");
    bench.append(lines(&["x", "y", "z"]));
    let (_, rest) = cursor.split_once(':').unwrap();
    let inode = inode(&bench.path("audit.log"));
    bench.cursor = Some(format!("{inode}:{rest}"));
    bench.restart();
    assert_eq!(bench.names(), ["c", "x", "y", "z"]);
}

#[cfg(unix)]
fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

#[cfg(not(unix))]
fn inode(_: &Path) -> u64 {
    0
}

#[test]
fn old_cursors_are_read() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]));
    let inode = inode(&bench.path("audit.log"));
    bench.cursor = Some(format!("{inode}:{}", line("a").len()));
    assert_eq!(bench.names(), ["b"]);
    assert!(bench.cursor.as_deref().unwrap().contains("\"lastHash\""));

    // A position at the end of a file that was renamed since.
    bench.cursor = Some(format!("{inode}:{}", 2 * line("a").len()));
    bench.rename("audit.log", "audit.log.1");
    bench.append(line("c"));
    bench.restart();
    assert_eq!(bench.names(), ["c"]);
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d"]);

    // A position in the middle of a line, or outside of any file.
    for cursor in [format!("{inode}:7"), format!("{inode}:99999"), "1:99999".to_owned()] {
        bench.cursor = Some(cursor);
        let pull = bench.pull();
        assert_eq!(names(&pull), ["gap", "c", "d"]);
    }
    bench.cursor = Some(format!("{inode}:0"));
    assert_eq!(bench.names(), ["a", "b", "c", "d"]);
}

#[test]
fn a_fragment_at_the_end_of_a_rotated_file_is_kept() {
    let mut bench = Bench::new();
    bench.append(line("a"));
    bench.append(&line("b")[..40]);
    assert_eq!(bench.names(), ["a"]);
    bench.rename("audit.log", "audit.log.1");
    bench.append(line("c"));
    let pull = bench.pull();
    assert_eq!((names(&pull), reasons(&pull)), (vec!["c".to_owned()], vec![]));
    bench.append(line("d"));
    let pull = bench.pull();
    assert_eq!((names(&pull), reasons(&pull)), (vec!["d".to_owned()], vec!["partial_line"]));
    bench.append(line("e"));
    assert!(bench.pull().quarantine.is_empty());

    // Only the newline was lost, so the line is an event.
    let mut bench = Bench::new();
    bench.append(line("a") + &unterminated("b"));
    assert_eq!(bench.names(), ["a"]);
    bench.rename("audit.log", "audit.log.1");
    bench.append(line("c"));
    assert_eq!(bench.names(), ["c"]);
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d", "b"]);

    // A file with only a fragment.
    let mut bench = Bench::new();
    append(&bench.path("audit.log.1"), &line("a").as_bytes()[..20]);
    bench.append(line("b"));
    let pull = bench.pull();
    assert_eq!((names(&pull), reasons(&pull)), (vec!["b".to_owned()], vec!["partial_line"]));
}

#[test]
fn keys_outlive_rotation_and_copies() {
    let mut bench = Bench::new();
    bench.append(FIRST_GENERATION);
    let first = bench.pull();
    bench.rename("audit.log", "audit-20261122.log");
    let mut elsewhere = Bench::new();
    fs::copy(bench.path("audit-20261122.log"), elsewhere.path("audit.log.7")).unwrap();
    for bench in [&mut bench, &mut elsewhere] {
        bench.cursor = None;
        bench.restart();
        assert_eq!(ids(&bench.pull()), ids(&first));
    }
    let unique: BTreeSet<_> = ids(&first).0.into_iter().collect();
    assert_eq!(unique.len(), 46);

    let mut other = Bench::with(|config| config.with_source("ocis:b"));
    other.append(FIRST_GENERATION);
    let pull = other.pull();
    assert!(pull.events.iter().all(|pulled| pulled.event.source == "ocis:b"));
    assert!(ids(&pull).0.iter().all(|id| !unique.contains(id)));
    assert_eq!(other.tail.name(), "ocis:b");
}

#[test]
fn times_do_not_depend_on_the_batch() {
    let times = |limits: PullLimits| {
        let mut bench = Bench::new();
        bench.limits = limits;
        bench.append(FIRST_GENERATION);
        let mut times = Vec::new();
        loop {
            let pull = bench.pull();
            times.extend(pull.events.iter().map(|pulled| pulled.event.at));
            if !pull.more {
                return times;
            }
        }
    };
    assert_eq!(
        times(PullLimits { max_events: 1, max_bytes: 1 << 20 }),
        times(PullLimits::default())
    );
}

#[test]
fn configurations() {
    let runtime: Arc<dyn Runtime> = Arc::new(ManualRuntime::new(1));
    let new = |config: OcisConfig| OcisTail::new(config, Arc::clone(&runtime)).map(drop);
    let base = || OcisConfig::new("/var/log/ocis/audit.log");
    for source in ["ocis", "ocis:eu2", "ocis:a.b_c-d"] {
        new(base().with_source(source)).unwrap();
    }
    for config in [
        base().with_source("authentik"),
        base().with_source("ocis:"),
        base().with_source("ocis:a:b"),
        base().with_source(format!("ocis:{}", "x".repeat(60))),
        OcisConfig { max_line_bytes: 0, ..base() },
        OcisConfig { max_line_bytes: (64 << 20) + 1, ..base() },
        OcisConfig { service_accounts: BTreeSet::from([String::new()]), ..base() },
        OcisConfig::new(".."),
    ] {
        assert_eq!(new(config).unwrap_err().code(), "config_invalid");
    }
    let read: OcisConfig =
        serde_json::from_value(json!({"path": "audit.log", "options": {"share_accepted": true}}))
            .unwrap();
    assert!(read.options.share_accepted && !read.options.ocm_invites);
    assert_eq!((read.source.as_str(), read.max_line_bytes), ("ocis", 1 << 20));

    let mut tail = tail(base());
    let error = tail.pull(Some("nonsense"), PullLimits::default()).now_or_never().unwrap();
    assert_eq!(error.unwrap_err().code(), "cursor_invalid");
}

#[test]
fn what_a_service_account_does_is_done_by_the_system() {
    let mut bench = Bench::with(|config| OcisConfig {
        service_accounts: BTreeSet::from(["svc".to_owned()]),
        ..config
    });
    bench.append(line("a").replace("'admin'", "'svc'") + &line("b"));
    let pull = bench.pull();
    let [by_service, by_person] = &pull.events[..] else { panic!("{pull:?}") };
    let actor = &by_service.event.actor;
    assert_eq!((actor.kind, actor.id.as_deref()), (ActorType::System, Some("svc")));
    assert_eq!(by_service.event.metadata.annotation("actorBy").unwrap(), "service_account");
    assert!(by_service.tenant.is_empty());
    assert_eq!(by_person.event.actor.kind, ActorType::User);
    assert_eq!(by_person.event.metadata.annotation("actorBy"), None);
    assert_eq!(by_person.tenant.len(), 1);
}

#[test]
fn a_directory_at_the_path_is_an_error() {
    let mut bench = Bench::new();
    fs::create_dir(bench.path("audit.log")).unwrap();
    let pull = bench.tail.pull(None, PullLimits::default()).now_or_never().unwrap();
    assert_eq!(pull.unwrap_err().code(), "io");
}

/// Longer than the 16 MiB of a first line that are part of the generation's hash.
const BEYOND_THE_HASH: usize = 17 << 20;

#[test]
fn a_rotated_file_of_nul_bytes_is_passed() {
    let mut bench = Bench::new();
    append(&bench.path("audit.log.1"), &vec![0; BEYOND_THE_HASH]);
    bench.append(lines(&["a", "b"]));
    let pull = bench.pull();
    assert_eq!(names(&pull), ["a", "b"]);
    assert_eq!(reasons(&pull), ["line_too_long"]);
    bench.append(line("c"));
    let pull = bench.pull();
    assert_eq!((names(&pull), reasons(&pull)), (vec!["c".to_owned()], vec![]));
}

#[test]
fn a_live_file_without_a_whole_line_is_waited_for() {
    let mut bench = Bench::new();
    bench.limits.max_bytes = 2 * BEYOND_THE_HASH;
    append(&bench.path("audit.log.1"), line("a").as_bytes());
    bench.written("audit.log.1", 1_000);
    bench.append(vec![b'x'; BEYOND_THE_HASH]);
    assert_eq!(bench.names(), ["a"]);
    assert_eq!(bench.names(), [""; 0]);
    bench.append("\n".to_owned() + &line("b"));
    let pull = bench.pull();
    assert_eq!((names(&pull), reasons(&pull)), (vec!["b".to_owned()], vec!["line_too_long"]));
    bench.append(line("c"));
    assert_eq!(bench.names(), ["c"]);
}

#[test]
fn truncated_and_grown_without_a_line() {
    let mut bench = Bench::new();
    bench.limits.max_bytes = 2 * BEYOND_THE_HASH;
    bench.append(lines(&["a", "b"]));
    assert_eq!(bench.names(), ["a", "b"]);
    let file = OpenOptions::new().write(true).open(bench.path("audit.log")).unwrap();
    file.set_len(0).unwrap();
    file.set_len(BEYOND_THE_HASH as u64).unwrap();
    assert_eq!(bench.names(), ["gap"]);
    assert_eq!(bench.names(), [""; 0]);
    bench.append("\n".to_owned() + &lines(&["c", "d"]));
    let pull = bench.pull();
    assert_eq!(names(&pull), ["c", "d"]);
    assert_eq!(reasons(&pull), ["line_too_long"]);
    bench.append(line("e"));
    assert_eq!(bench.names(), ["e"]);
}

#[test]
fn behind_a_gap_what_was_written_at_the_same_time_counts() {
    let mut bench = Bench::new();
    bench.append(line("a"));
    bench.written("audit.log", 1_000);
    assert_eq!(bench.names(), ["a"]);
    fs::remove_file(bench.path("audit.log")).unwrap();
    append(&bench.path("audit.log.1"), line("b").as_bytes());
    bench.written("audit.log.1", 1_000);
    bench.append(line("c"));
    bench.restart();
    assert_eq!(bench.names(), ["gap", "b", "c"]);
}

#[test]
fn a_lone_fragment_keeps_its_key_when_its_newline_comes() {
    let mut bench = Bench::new();
    append(&bench.path("audit.log.1"), unterminated("a").as_bytes());
    bench.append(line("b"));
    let first = bench.pull();
    assert_eq!(names(&first).iter().collect::<BTreeSet<_>>().len(), 2);
    bench.cursor = None;
    bench.restart();
    append(&bench.path("audit.log.1"), b"\n");
    let sorted = |pull: &Pull| ids(pull).0.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&bench.pull()), sorted(&first));
}
