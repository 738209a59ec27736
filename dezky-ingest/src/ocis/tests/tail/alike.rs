//! Generations that begin with the same line, or are identical.

use super::*;

/// The distinct ids of all events, and the number of events.
fn unique(pulls: &[Pull]) -> (BTreeSet<Option<String>>, usize) {
    let all: Vec<_> = pulls.iter().flat_map(|pull| ids(pull).0).collect();
    (all.iter().cloned().collect(), all.len())
}

/// Waits until the file system gives a new file a later creation time than `name`.
fn wait_for_a_younger_file(bench: &Bench, name: &str) {
    let born = |path: &Path| fs::metadata(path).unwrap().created().unwrap();
    let (old, probe) = (born(&bench.path(name)), bench.path("probe"));
    loop {
        fs::write(&probe, "").unwrap();
        let is_younger = born(&probe) > old;
        fs::remove_file(&probe).unwrap();
        if is_younger {
            return;
        }
    }
}

/// A generation is copied when only its first line is read, and the next one begins with the same
/// line.
#[test]
fn what_was_copied_away_unread_is_read_though_the_live_file_begins_alike() {
    let mut bench = Bench::new();
    bench.append(lines(&["opened"]));
    let first = bench.pull();
    bench.append(lines(&["a", "closed"]));
    wait_for_a_younger_file(&bench, "audit.log");
    fs::copy(bench.path("audit.log"), bench.path("audit.log.1")).unwrap();
    fs::write(bench.path("audit.log"), lines(&["opened", "b", "closed"])).unwrap();
    bench.restart();
    let second = bench.pull();
    assert_eq!(names(&second), ["a", "closed", "opened", "b", "closed"]);
    let (ids, all) = unique(&[first, second]);
    assert_eq!((ids.len(), all), (6, 6));
    bench.append(line("c"));
    assert_eq!(bench.names(), ["c"]);
}

#[test]
fn four_of_four_lines_are_kept_where_generations_begin_alike() {
    for restart in [false, true] {
        for compress in [false, true] {
            let mut bench = Bench::new();
            bench.append(lines(&["opened", "a"]));
            let first = bench.pull();
            bench.rename("audit.log", "audit.log.1");
            if compress {
                bench.compress("audit.log.1");
            }
            bench.append(lines(&["opened", "b"]));
            if restart {
                bench.restart();
            }
            let second = bench.pull();
            assert_eq!(names(&second), ["opened", "b"]);
            let (ids, all) = unique(&[first.clone(), second.clone()]);
            assert_eq!((ids.len(), all), (4, 4));
            // Only the repeated line has an id of the new kind.
            let kinds: Vec<_> = ids.iter().flatten().map(|id| &id[..6]).collect();
            assert_eq!(kinds, ["ocis1:", "ocis1:", "ocis1:", "ocis2:"]);
            // Reading again from the beginning gives no new ids.
            bench.cursor = None;
            bench.restart();
            assert_eq!(unique(&[bench.pull()]), (ids, 4));
            assert_eq!(bench.names(), [""; 0]);
        }
    }
}

#[test]
fn the_same_file_on_two_nights_is_two_generations() {
    for compress in [false, true] {
        let mut bench = Bench::new();
        bench.append(lines(&["a", "b"]));
        let first = bench.pull();
        bench.rename("audit.log", "audit.log.1");
        if compress {
            bench.compress("audit.log.1");
        }
        bench.append(lines(&["a", "b"]));
        bench.restart();
        let second = bench.pull();
        assert_eq!(names(&second), ["a", "b"]);
        assert_eq!(unique(&[first, second]).0.len(), 4);
        assert_eq!(bench.names(), [""; 0]);
        bench.append(line("c"));
        assert_eq!(bench.names(), ["c"]);
    }
}

#[test]
fn alike_generations_that_nobody_saw_are_all_read() {
    let mut bench = Bench::new();
    bench.append(line("x"));
    assert_eq!(bench.names(), ["x"]);
    for (number, more) in [(4_u64, "a"), (3, "b"), (2, "a"), (1, "c")] {
        let name = format!("audit.log.{number}");
        bench.append(lines(&["opened", more, "closed"]));
        bench.rename("audit.log", &name);
        bench.written(&name, 4_000_000_000 - number);
        if number > 2 {
            bench.compress(&name);
        }
    }
    bench.append(lines(&["opened"]));
    bench.restart();
    // The first generation's unread lines only.
    let pull = bench.pull();
    let expected = [
        "opened", "a", "closed", "opened", "b", "closed", "opened", "a", "closed", "opened", "c",
        "closed", "opened",
    ];
    assert_eq!(names(&pull)[2..], expected[2..]);
    assert_eq!(unique(std::slice::from_ref(&pull)).0.len(), names(&pull).len());
    // One event per pull, each in a separate process.
    let all = unique(&[pull]).0;
    bench.cursor = None;
    bench.limits.max_events = 1;
    let mut found = Vec::new();
    loop {
        bench.restart();
        let pull = bench.pull();
        let more = pull.more;
        found.push(pull);
        if !more {
            break;
        }
    }
    let (again, count) = unique(&found);
    assert_eq!(again.len(), count);
    assert!(all.is_subset(&again));
}

#[test]
fn a_generation_that_is_the_beginning_of_the_next_is_kept_at_the_first_look() {
    let mut bench = Bench::new();
    append(&bench.path("audit.log.1"), lines(&["opened"]).as_bytes());
    wait_for_a_younger_file(&bench, "audit.log.1");
    bench.append(lines(&["opened", "a"]));
    let pull = bench.pull();
    assert_eq!(names(&pull), ["opened", "opened", "a"]);
    assert_eq!(unique(&[pull]).0.len(), 3);

    // A live file that equals the beginning of an older one is not a copy of it.
    let mut bench = Bench::new();
    append(&bench.path("audit.log.1"), lines(&["opened", "a"]).as_bytes());
    bench.append(lines(&["opened"]));
    let pull = bench.pull();
    assert_eq!(names(&pull), ["opened", "a", "opened"]);
    assert_eq!(unique(&[pull]).0.len(), 3);
}

#[test]
fn what_is_truncated_or_removed_and_begins_alike_is_kept() {
    for removed in [false, true] {
        let mut bench = Bench::new();
        bench.append(lines(&["opened", "a", "closed"]));
        let first = bench.pull();
        if removed {
            fs::remove_file(bench.path("audit.log")).unwrap();
            bench.append(lines(&["opened", "b"]));
        } else {
            fs::write(bench.path("audit.log"), lines(&["opened", "b"])).unwrap();
        }
        let second = bench.pull_live();
        let second = bench.keep(second);
        bench.restart();
        bench.append(line("closed"));
        let third = bench.pull();
        let told: Vec<_> = [names(&second), names(&third)].concat();
        assert_eq!(
            told.iter().filter(|name| *name != "gap").collect::<Vec<_>>(),
            ["opened", "b", "closed"]
        );
        let (ids, all) = unique(&[first, second, third]);
        assert_eq!(ids.len(), all, "removed: {removed}");
    }
}

#[test]
fn repeats_are_counted_when_the_first_of_them_is_gone() {
    let mut bench = Bench::new();
    let mut pulls = Vec::new();
    for n in 0..6 {
        bench.append(lines(&["opened", &n.to_string()]));
        pulls.push(bench.pull());
        // Two rotated files are kept.
        let _ = fs::remove_file(bench.path("audit.log.2"));
        let _ = fs::rename(bench.path("audit.log.1"), bench.path("audit.log.2"));
        bench.rename("audit.log", "audit.log.1");
        bench.restart();
    }
    let (ids, all) = unique(&pulls);
    assert_eq!((ids.len(), all), (12, 12));
    // A remaining file is recognized by its lines, whatever its number is now.
    bench.cursor = None;
    bench.append(line("other"));
    let again = unique(&[bench.pull()]).0;
    assert_eq!(again.difference(&ids).count(), 1, "only the new one");
}

#[test]
fn another_first_line_between_two_that_are_alike_changes_nothing() {
    let mut bench = Bench::new();
    let mut pulls = Vec::new();
    for names in [&["add", "u1"], &["del", "u1"], &["add", "u1"], &["del", "u1"]] {
        bench.append(lines(names));
        pulls.push(bench.pull());
        let _ = fs::remove_file(bench.path("audit.log.1"));
        bench.rename("audit.log", "audit.log.1");
        bench.restart();
    }
    let (ids, all) = unique(&pulls);
    assert_eq!((ids.len(), all), (8, 8));
}

#[test]
fn a_copied_and_truncated_generation_that_begins_alike_is_read_once() {
    let mut bench = Bench::new();
    bench.append(lines(&["opened", "a"]));
    let first = bench.pull();
    bench.append(line("b"));
    fs::copy(bench.path("audit.log"), bench.path("audit.log.1")).unwrap();
    let mut fresh = tail(OcisConfig::new(bench.path("audit.log")));
    let all = pull_from(&mut fresh, None, PullLimits::default());
    assert_eq!(names(&all), ["opened", "a", "b"], "the copy is not a generation");
    fs::write(bench.path("audit.log"), lines(&["opened", "c"])).unwrap();
    let second = bench.pull();
    assert_eq!(names(&second), ["b", "opened", "c"]);
    let (ids, count) = unique(&[first, second]);
    assert_eq!((ids.len(), count), (5, 5));
    assert!(unique(&[all]).0.is_subset(&ids));
}

#[test]
fn a_file_with_the_old_number_is_another_one_if_it_was_made_later() {
    let mut bench = Bench::new();
    bench.append(lines(&["opened", "a"]));
    assert_eq!(bench.names(), ["opened", "a"]);
    bench.rename("audit.log", "audit.log.1");
    wait_for_a_younger_file(&bench, "audit.log.1");
    bench.append(lines(&["opened", "a", "b"]));
    // The cursor has the new file's inode number, as if the inode had been reused.
    let (_, rest) = bench.cursor.as_deref().unwrap().split_once(':').unwrap();
    bench.cursor = Some(format!("{}:{rest}", inode(&bench.path("audit.log"))));
    bench.compress("audit.log.1");
    bench.restart();
    assert_eq!(bench.names(), ["opened", "a", "b"]);
}

/// A cursor written by version 2 continues at its position, and later generations with the same
/// first line are read.
#[test]
fn cursors_of_version_2_go_on() {
    let mut bench = Bench::new();
    bench.append(lines(&["opened", "a"]));
    let first = bench.pull();
    let (place, rest) = bench.cursor.as_deref().unwrap().split_once(' ').unwrap();
    let mut known: serde_json::Map<String, Value> = serde_json::from_str(rest).unwrap();
    known.retain(|key, _| ["gen", "lastLen", "lastHash", "mtimeNs"].contains(&key.as_str()));
    known.insert("v".into(), 2.into());
    bench.cursor = Some(format!("{place} {}", Value::from(known)));
    bench.restart();
    bench.append(line("b"));
    let second = bench.pull();
    assert_eq!(names(&second), ["b"]);
    bench.rename("audit.log", "audit.log.1");
    bench.append(lines(&["opened", "a", "c"]));
    let third = bench.pull();
    assert_eq!(names(&third), ["opened", "a", "c"]);
    assert_eq!(unique(&[first, second, third]).0.len(), 6);
}

#[test]
fn a_changed_middle_is_seen_where_the_ends_are_the_same() {
    let mut bench = Bench::new();
    bench.append(lines(&["opened", "a", "closed"]));
    assert_eq!(bench.names(), ["opened", "a", "closed"]);
    // Truncated and rewritten to the same length between two pulls.
    fs::write(bench.path("audit.log"), lines(&["opened", "b", "closed"])).unwrap();
    assert_eq!(bench.names(), ["gap", "opened", "b", "closed"]);
}
