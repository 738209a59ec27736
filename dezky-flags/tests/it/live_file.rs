//! The flags' file, for a start without the store.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dezky_core::store::MemoryAuditStore;
use dezky_core::{ErrorKind, Runtime};
use dezky_flags::live::{LiveConfig, MAX_FILE_BYTES};
use dezky_flags::store::{
    DocumentFlagStore, FlagChange, FlagStore, LazyFlagStore, MAX_FLAGS, Snapshot,
};
use dezky_flags::testkit::FlagGenerator;
use dezky_flags::{FlagEvaluator, LiveFlags, Reason};
use futures_util::FutureExt;

use crate::live::{DOWN, Line, POLL, UP, config, go_on, is_on, manual, now, open};

fn with_file(path: &Path) -> LiveConfig {
    config(|config| config.file = Some(path.to_owned()))
}

/// Runs a separate process that saves the flags of `line` to the file.
fn keep(line: &Arc<Line>, path: &Path) {
    let (manual, runtime) = manual();
    let live = open(line, &runtime, with_file(path));
    go_on(&manual, pin!(live.run(std::future::pending())), POLL);
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.json");
    (folder, path)
}

#[test]
fn a_start_without_the_store_uses_the_file() {
    let (folder, path) = place();
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    now(line.put("a", true));
    keep(&line, &path);
    // The store changes meanwhile: the file's revision is older.
    now(line.put("a", false));
    line.set(DOWN);
    let written = fs::File::open(&path).unwrap();
    let hour = Duration::from_hours(1);
    let hour_ago = manual.now().as_millis() - 3_600_000;
    let earlier = Duration::from_millis(hour_ago.cast_unsigned());
    written.set_modified(std::time::UNIX_EPOCH + earlier).unwrap();

    let live = open(&line, &runtime, with_file(&path));
    let status = live.status();
    assert_eq!((status.revision, status.from_file, status.age), (1, true, hour));
    assert_eq!(status.failure.unwrap().kind(), ErrorKind::StoreUnavailable);
    assert!(is_on(&live, "a"));
    let (mut changes, mut run) = (live.subscribe(), pin!(live.run(std::future::pending())));
    go_on(&manual, run.as_mut(), POLL * 4);
    assert_eq!(live.status().age, hour + POLL * 4);

    line.set(UP);
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!(now(changes.next()), 2);
    let status = live.status();
    assert!(!status.from_file && status.failure.is_none() && !is_on(&live, "a"));
    let kept = Snapshot::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(kept.revision, 2, "the newer flags are saved");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_file_of_a_later_revision_gives_way_to_the_store() {
    let (_folder, path) = place();
    let (manual, runtime) = manual();
    let ahead = Line::new(&runtime);
    for n in 0..5 {
        now(ahead.put("a", n % 2 == 0));
    }
    keep(&ahead, &path);
    let line = Line::new(&runtime);
    now(line.put("b", true));
    line.set(DOWN);
    let live = open(&line, &runtime, with_file(&path));
    assert_eq!((live.revision(), is_on(&live, "a")), (5, true));
    let mut run = pin!(live.run(std::future::pending()));
    line.set(UP);
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!((live.revision(), is_on(&live, "a"), is_on(&live, "b")), (1, false, true));
}

#[test]
fn the_file_holds_what_decides_and_is_for_its_user_alone() {
    let (folder, path) = place();
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    let mut flag = crate::model::version_1();
    flag.version = 1;
    now(line.commit(vec![FlagChange::Create(Box::new(flag.clone()))], Vec::new())).unwrap();
    // A leftover of a crash, and a file readable by others.
    fs::write(folder.path().join("flags.json.new"), "half of").unwrap();
    let older = r#"{"revision":0,"flags":[{"key":"older"}]}"#;
    fs::write(&path, older.to_owned() + &" ".repeat(100_000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    keep(&line, &path);

    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("u-7") && !text.contains("ana@dezky.test"), "{text}");
    flag.history = Vec::new();
    let kept = Snapshot::from_json(&text).unwrap();
    assert_eq!(kept, Snapshot { revision: 1, flags: vec![flag], invalid: Vec::new() });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn links_are_replaced_and_not_written_through() {
    let (folder, path) = place();
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    let other = folder.path().join("other");
    let kept = r#"{"revision":0,"flags":[]}"#;
    fs::write(&other, kept).unwrap();
    symlink(&other, &path).unwrap();
    symlink(&other, folder.path().join("flags.json.new")).unwrap();
    keep(&line, &path);
    assert_eq!(fs::read_to_string(&other).unwrap(), kept);
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
}

/// Such as /dev/null, replaceable by a privileged process.
#[test]
fn a_device_is_not_replaced_by_a_file() {
    let (folder, path) = place();
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    keep(&line, &path);
    assert!(!fs::metadata(&path).unwrap().is_file());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    drop(listener);
}

#[test]
fn without_store_and_file_there_are_no_flags() {
    let (folder, path) = place();
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    now(line.put("a", true));
    keep(&line, &path);
    let whole = fs::read_to_string(&path).unwrap();
    line.set(DOWN);
    let fails = |path: &Path, what: &str| {
        let opened = now(LiveFlags::open(line.clone(), runtime.clone(), with_file(path)));
        opened.err().unwrap_or_else(|| panic!("{what} was read")).kind()
    };
    let refused = |path: &Path, what: &str| {
        assert_eq!(fails(path, what), ErrorKind::StoreUnavailable, "{what}");
    };
    // A file that must not be replaced is refused at once, whether the store answers or not.
    let foreign = |path: &Path, what: &str| {
        assert_eq!(fails(path, what), ErrorKind::ConfigInvalid, "{what}");
    };
    refused(&folder.path().join("missing"), "a missing file");
    refused(folder.path(), "a folder");
    refused(Path::new("/dev/zero"), "a device");
    fs::write(&path, "").unwrap();
    refused(&path, "an empty file");
    for cut in [1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        foreign(&path, "a cut file");
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    foreign(&path, "no text");
    fs::write(&path, whole.replace("\"revision\"", "\"version\"")).unwrap();
    foreign(&path, "another text");
    // A sparse file.
    fs::File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    foreign(&path, "a file that is too large");
    fs::write(&path, whole).unwrap();
    assert!(is_on(&open(&line, &runtime, with_file(&path)), "a"));
}

/// An export contains the histories, which the kept flags lack.
#[test]
fn a_file_with_any_other_content_is_not_replaced() {
    let (_folder, path) = place();
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    let mut flag = crate::model::version_1();
    flag.version = 1;
    now(line.commit(vec![FlagChange::Create(Box::new(flag))], Vec::new())).unwrap();
    let export = now(line.snapshot()).unwrap().to_json();
    for text in [export.as_str(), "mine", "{}", r#"{"flags":[{"key":"a"}]}"#] {
        fs::write(&path, text).unwrap();
        let opened = now(LiveFlags::open(line.clone(), runtime.clone(), with_file(&path)));
        let error = opened.err().unwrap_or_else(|| panic!("{text} was taken"));
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{text}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// An unreadable flag in the file is off; the other flags are not affected.
#[test]
fn an_invalid_flag_of_the_file_is_isolated() {
    let (_folder, path) = place();
    let (_, runtime) = manual();
    let line = Line::new(&runtime);
    now(line.put("a", true));
    now(line.put("b", true));
    keep(&line, &path);
    let text = fs::read_to_string(&path).unwrap().replacen("\"pct\":0", "\"pct\":200", 1);
    fs::write(&path, text).unwrap();
    line.set(DOWN);
    let live = open(&line, &runtime, with_file(&path));
    let reason = live.evaluate("a", &dezky_flags::FlagContext::default()).reason;
    assert_eq!((reason, is_on(&live, "b")), (Reason::InvalidFlag, true));
}

#[test]
fn an_unwritable_path_stops_nothing() {
    let (folder, _) = place();
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    let path = folder.path().join("not there yet/flags.json");
    let live = open(&line, &runtime, with_file(&path));
    let mut run = pin!(live.run(std::future::pending()));
    now(line.put("a", true));
    go_on(&manual, run.as_mut(), POLL);
    assert!(is_on(&live, "a") && !path.exists());
    // Retried after a while, even without a change.
    fs::create_dir(path.parent().unwrap()).unwrap();
    go_on(&manual, run.as_mut(), Duration::from_mins(1));
    assert!(path.exists());
}

#[test]
fn ten_thousand_flags_are_followed_and_saved() {
    let (_folder, path) = place();
    let (manual, runtime) = manual();
    let log = Arc::new(MemoryAuditStore::open(Arc::clone(&runtime)));
    let store = Arc::new(DocumentFlagStore::in_memory(log));
    let flags = FlagGenerator::new(&*runtime).flags(MAX_FLAGS);
    let live = now(LiveFlags::open(store.clone(), runtime.clone(), with_file(&path))).unwrap();
    let mut run = pin!(live.run(std::future::pending()));
    for some in flags.chunks(1_000) {
        let changes = some.iter().map(|flag| FlagChange::Create(Box::new(flag.clone())));
        now(store.commit(changes.collect(), Vec::new())).unwrap();
    }
    go_on(&manual, run.as_mut(), POLL);
    assert_eq!((live.revision(), live.current().set().len()), (10_000, 10_000));
    let line = Line::new(&runtime);
    line.set(DOWN);
    let again = open(&line, &runtime, with_file(&path));
    let asker = FlagGenerator::new(&*runtime).asker();
    for flag in &flags {
        let context = asker.context();
        assert_eq!(again.evaluate(&flag.key, &context), live.evaluate(&flag.key, &context));
    }
}

/// The database is down before anything of it is opened.
#[test]
fn a_store_that_can_not_be_opened_yet_is_opened_later() {
    let (_folder, path) = place();
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    now(line.put("a", true));
    keep(&line, &path);
    line.set(DOWN);
    let lazy = {
        let line = line.clone();
        LazyFlagStore::new(move || {
            let line = line.clone();
            Box::pin(async move {
                // Opening a store queries it.
                line.revision().await?;
                Ok(line as Arc<dyn FlagStore>)
            })
        })
    };
    let live = LiveFlags::open(Arc::new(lazy), runtime.clone(), with_file(&path));
    let live = now(live).unwrap();
    assert!(live.status().from_file && is_on(&live, "a"));
    let mut run = pin!(live.run(std::future::pending()));
    go_on(&manual, run.as_mut(), POLL * 3);
    assert!(live.status().from_file);
    line.set(UP);
    now(line.put("a", false));
    go_on(&manual, run.as_mut(), POLL);
    assert!(!live.status().from_file && !is_on(&live, "a"));
    now(line.put("a", true));
    go_on(&manual, run.as_mut(), POLL);
    assert!(is_on(&live, "a"));
}

/// A database with long migrations, or a server that is slow to come back.
#[test]
fn a_store_that_opens_slowly_is_open_in_the_end() {
    let (_folder, path) = place();
    let (manual, runtime) = manual();
    let line = Line::new(&runtime);
    now(line.put("a", true));
    keep(&line, &path);
    now(line.put("a", false));
    let begun = Arc::new(AtomicUsize::new(0));
    let lazy = {
        let (line, runtime, begun) = (line.clone(), runtime.clone(), begun.clone());
        LazyFlagStore::new(move || {
            begun.fetch_add(1, Ordering::SeqCst);
            let (line, slow) = (line.clone(), runtime.sleep(Duration::from_secs(20)));
            Box::pin(async move {
                slow.await;
                Ok(line as Arc<dyn FlagStore>)
            })
        })
    };
    let mut opening = pin!(LiveFlags::open(Arc::new(lazy), runtime.clone(), with_file(&path)));
    assert!(opening.as_mut().now_or_never().is_none());
    manual.advance(LiveConfig::default().store_timeout);
    let live = now(opening).unwrap();
    assert!(live.status().from_file && is_on(&live, "a"));
    let mut run = pin!(live.run(std::future::pending()));
    go_on(&manual, run.as_mut(), Duration::from_secs(30));
    assert!(!live.status().from_file && !is_on(&live, "a"));
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}
