//! Compressed generations, long lines and NUL bytes.

use dezky_core::rt::TokioRuntime;

use super::*;

#[test]
fn compressed_generations_are_read_with_the_keys_that_they_had() {
    let mut plain = Bench::new();
    plain.append(FIRST_GENERATION);
    let expected = ids(&plain.pull());
    for max_events in [1, 7, 1_000] {
        let mut bench = Bench::new();
        bench.limits.max_events = max_events;
        append(&bench.path("audit.log.2"), FIRST_GENERATION.as_bytes());
        bench.written("audit.log.2", 1_000);
        bench.compress("audit.log.2");
        bench.append(line("live"));
        let mut found = Vec::new();
        loop {
            let pull = bench.pull();
            found.extend(ids(&pull).0);
            if !pull.more {
                break;
            }
        }
        found.pop();
        assert_eq!((found, vec![]), expected);
    }
}

#[test]
fn compressed_between_two_pulls() {
    let mut bench = Bench::new();
    bench.append(lines(&["a", "b"]));
    assert_eq!(bench.names(), ["a", "b"]);
    bench.append(line("c"));
    bench.rename("audit.log", "audit.log.1");
    // The copy is incomplete, then complete, then the only file.
    let whole = gzip(&fs::read(bench.path("audit.log.1")).unwrap());
    let cursor = bench.cursor.clone();
    for part in [0, 5, whole.len() / 2, whole.len()] {
        fs::write(bench.path("audit.log.1.gz"), &whole[..part]).unwrap();
        bench.cursor.clone_from(&cursor);
        bench.restart();
        assert_eq!(bench.names(), ["c"], "{part}");
        bench.cursor = None;
        assert_eq!(bench.names(), ["a", "b", "c"], "{part}");
    }
    bench.cursor = cursor;
    bench.compress("audit.log.1");
    bench.restart();
    bench.append(line("d"));
    assert_eq!(bench.names(), ["c", "d"]);
    bench.append(line("e"));
    assert_eq!(bench.names(), ["e"]);
}

#[test]
fn several_generations_while_down_some_of_them_compressed() {
    let mut bench = Bench::new();
    bench.append(line("a1"));
    assert_eq!(bench.names(), ["a1"]);
    for (n, more) in [(3, "a2"), (2, "b"), (1, "c")] {
        let name = format!("audit.log.{n}");
        bench.append(line(more));
        bench.rename("audit.log", &name);
        bench.written(&name, 10_000 - n);
        if n > 1 {
            bench.compress(&name);
        }
    }
    bench.append(line("d"));
    bench.restart();
    assert_eq!(bench.names(), ["a2", "b", "c", "d"]);
}

#[test]
fn a_compressed_file_that_is_cut_off_is_a_gap_and_is_passed() {
    let content = lines(&["a", "b"]).repeat(400);
    let whole = gzip(content.as_bytes());
    for part in [0, 3, whole.len() / 2, whole.len() - 3] {
        let mut bench = Bench::new();
        fs::write(bench.path("audit.log.2.gz"), &whole[..part]).unwrap();
        bench.written("audit.log.2.gz", 1_000);
        let alone = bench.pull();
        assert!(!names(&alone).contains(&"gap".to_owned()), "it may still be written");
        bench.append(line("live"));
        let found = [names(&alone), names(&bench.pull())].concat();
        assert_eq!(found.iter().filter(|name| *name == "gap").count(), 1, "{part}");
        assert_eq!(found.iter().filter(|name| *name == "live").count(), 1, "{part}");
        assert_eq!(bench.names(), [""; 0], "said once");
    }
    // An unsupported compression is reported as well.
    let mut bench = Bench::new();
    fs::write(bench.path("audit.log.2.zst"), &whole).unwrap();
    bench.written("audit.log.2.zst", 1_000);
    bench.append(line("live"));
    assert_eq!(bench.names().len(), 2);
}

#[test]
fn a_long_way_into_a_compressed_file_is_gone_once() {
    let content: String = (0..40_000).map(|n| line(&n.to_string())).collect();
    let mut bench = Bench::new();
    bench.limits.max_bytes = 200_000;
    append(&bench.path("audit.log.1"), content.as_bytes());
    bench.compress("audit.log.1");
    bench.append(line("live"));
    let started = TokioRuntime.now();
    let mut found = 0;
    loop {
        let pull = pull_from(&mut bench.tail, bench.cursor.as_deref(), bench.limits);
        found += pull.events.len();
        bench.cursor = pull.cursor.or(bench.cursor);
        if !pull.more {
            break;
        }
    }
    assert_eq!(found, 40_001);
    // Decoding from the beginning each time would read 40 times the content.
    assert!(TokioRuntime.now().saturating_since(started) < Duration::from_mins(2));
}

#[test]
fn long_lines_far_into_a_compressed_file_do_not_hold_it_up() {
    // Longer than the decoded content kept in memory, so that going back means starting over;
    // together longer than a pull may skip.
    let padded =
        |n: usize| line(&n.to_string()).replacen('{', &format!("{{{}", " ".repeat(300_000)), 1);
    let content: String = (0..40).map(padded).collect();
    for restarts in [false, true] {
        let mut bench = Bench::new();
        bench.limits.max_bytes = 500_000;
        append(&bench.path("audit.log.1"), content.as_bytes());
        bench.compress("audit.log.1");
        bench.append(line("live"));
        let mut found = Vec::new();
        for pulls in 0.. {
            assert!(pulls < 150, "{found:?}");
            let pull = pull_from(&mut bench.tail, bench.cursor.as_deref(), bench.limits);
            found.extend(names(&pull));
            let moved = pull.cursor.is_some();
            bench.cursor = pull.cursor.or(bench.cursor);
            if !pull.more {
                break;
            }
            if restarts && moved {
                bench.restart();
            }
        }
        assert_eq!(found.len(), 41);
    }
}

#[test]
fn a_line_without_an_end_is_read_over_several_pulls() {
    const BYTES: usize = 200 << 20;
    let mut bench = Bench::new();
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
    let file = OpenOptions::new().append(true).open(bench.path("audit.log")).unwrap();
    file.set_len((line("a").len() + BYTES) as u64).unwrap();
    let mut pulls = 0;
    loop {
        let pull = pull_from(&mut bench.tail, bench.cursor.as_deref(), bench.limits);
        assert!(pull.cursor.is_none() && pull.quarantine.is_empty());
        pulls += 1;
        if !pull.more {
            break;
        }
    }
    assert!((3..=4).contains(&pulls), "{pulls}: each goes on where the one before ended");
    bench.append("\n".to_owned() + &line("b"));
    let pull = pull_from(&mut bench.tail, bench.cursor.as_deref(), bench.limits);
    assert_eq!((names(&pull), reasons(&pull)), (vec![], vec!["line_too_long"]));
    assert!(pull.quarantine[0].detail.contains(&BYTES.to_string()) && pull.more);
    bench.cursor = pull.cursor;
    assert_eq!(bench.names(), ["b"]);
}

#[test]
fn blocks_of_nul_bytes_hide_no_line() {
    let mut bench = Bench::new();
    bench.append(line("a"));
    bench.append([vec![0; 100_000], line("b").into_bytes()].concat());
    bench.append([vec![0; 4_096], b"\n".to_vec(), line("c").into_bytes()].concat());
    let pull = bench.pull();
    assert_eq!(
        (names(&pull), reasons(&pull)),
        (vec!["a".into(), "b".into(), "c".into()], vec!["nul_bytes"; 2])
    );
    assert!(pull.quarantine.iter().all(|item| item.raw.is_empty()));
}
