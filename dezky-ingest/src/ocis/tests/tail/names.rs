//! Rotated files with all kinds of names, and what a tail reports as waiting.

use dezky_core::Waiting;

use super::*;

/// Reads `a`, then rotates with `b` unread.
fn rotated_to(name: &str, base: &str) -> (Bench, String) {
    let mut bench = Bench::new();
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
    bench.append(line("b"));
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    if name == format!("{base}.gz") {
        bench.compress(base);
    } else {
        bench.rename(base, plain);
        if plain != name {
            bench.compress(plain);
        }
    }
    bench.append(line("c"));
    bench.restart();
    (bench, name.to_owned())
}

#[test]
fn rotated_files_of_any_name_are_found_by_what_is_in_them() {
    for name in [
        "audit-20261121.log.1",
        "audit-20261121.log.1.gz",
        "audit_20261121.log",
        "audit20261121.log",
        "audit20261121.log.gz",
        "audit.log.old",
        "audit.log.old.gz",
        "audit.log.bak",
        "audit.log.gz",
        "audit.log~",
        "audit.old.log",
        // Recognized only by its inode.
        "something-else",
    ] {
        let (mut bench, name) = rotated_to(name, "audit.log");
        assert_eq!(bench.names(), ["b", "c"], "{name}");
        bench.restart();
        bench.append(line("d"));
        assert_eq!(bench.names(), ["d"], "{name}");
    }
}

#[test]
fn the_log_of_somebody_else_is_not_read() {
    let mut bench = Bench::new();
    for name in ["audit-error.log", "audit2.log", "audit_2.log", "audit.log.bak", "audit.txt"] {
        append(&bench.path(name), line("other").as_bytes());
    }
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
    bench.rename("audit.log", "audit.log.1");
    bench.append(line("b"));
    bench.restart();
    assert_eq!(bench.names(), ["b"]);
}

#[cfg(unix)]
#[test]
fn a_link_to_a_dated_file_in_another_folder_is_followed() {
    let mut bench = Bench::new();
    fs::create_dir(bench.path("dated")).unwrap();
    let day = |day: u32| bench.path(&format!("dated/app-202611{day}.log"));
    let days: Vec<PathBuf> = (20..25).map(day).collect();
    let link = |bench: &Bench, to: &Path| {
        let _ = fs::remove_file(bench.path("audit.log"));
        std::os::unix::fs::symlink(to, bench.path("audit.log")).unwrap();
    };
    append(&bench.path("dated/other-20261120.log"), line("other").as_bytes());
    append(&days[0], line("a").as_bytes());
    link(&bench, &days[0]);
    assert_eq!(bench.names(), ["a"]);
    append(&days[0], line("b").as_bytes());
    append(&days[1], line("c").as_bytes());
    append(&days[2], line("d").as_bytes());
    for (n, day) in days.iter().enumerate().take(3) {
        let file = OpenOptions::new().append(true).open(day).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(4_000_000_000 + n as u64)).unwrap();
    }
    link(&bench, &days[2]);
    bench.restart();
    assert_eq!(bench.names(), ["b", "c", "d"]);
    // A first pull reads the earlier days too.
    bench.cursor = None;
    assert_eq!(bench.names(), ["a", "b", "c", "d"]);
}

#[test]
fn what_waits_is_shown() {
    let waits = |reason, bytes| Some(Waiting { reason, bytes });
    let mut bench = Bench::new();
    bench.append(line("a"));
    bench.pull();
    assert_eq!(bench.tail.waiting(), None);
    // A complete object without its newline.
    let b = unterminated("b");
    bench.append(&b);
    bench.pull();
    assert_eq!(bench.tail.waiting(), waits("no_newline", b.len() as u64));
    bench.rename("audit.log", "audit.log.1");
    bench.append(line("c"));
    assert_eq!(bench.names(), ["c"]);
    bench.pull();
    assert_eq!(bench.tail.waiting(), waits("no_newline", b.len() as u64), "rotated, and waits on");
    bench.append(line("d"));
    assert_eq!(bench.names(), ["d", "b"]);
    bench.pull();
    assert_eq!(bench.tail.waiting(), None);

    // The live file is gone, and may or may not be recreated.
    fs::remove_file(bench.path("audit.log")).unwrap();
    bench.restart();
    bench.pull();
    assert_eq!(bench.tail.waiting(), waits("no_file", 0));

    // A compressed file that is still incomplete.
    let mut bench = Bench::new();
    let whole = gzip(line("a").as_bytes());
    fs::write(bench.path("audit.log.1.gz"), &whole[..20]).unwrap();
    bench.pull();
    assert_eq!(bench.tail.waiting(), waits("incomplete_compression", 20));
}
