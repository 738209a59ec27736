//! Lines over the limit.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::*;

/// A line as oCIS writes it for a space with a long description: twice in `Opaque`.
fn updated(description: &str) -> String {
    let description = description.replace('<', "\\u003c");
    format!(
        r#"{{"RemoteAddr":"","User":"","URL":"","Method":"","UserAgent":"","Time":"2026-11-30T18:20:00Z","App":"admin_audit","Message":"user 'u1' updated space 'st$sp'","Action":"space_updated","CLI":false,"Level":1,"SpaceID":"st$sp","Name":"acme","Opaque":{{"description":{{"decoder":"plain","value":"{description}"}},"spaceAlias":{{"value":"project/acme"}},"x":{{"value":"{description}"}}}},"QuotaMaxBytes":0}}"#
    )
}

#[test]
fn a_line_of_7_mb_is_the_event_with_its_long_values_cut() {
    let long = updated(&"<".repeat(580_000));
    assert!(long.len() > 6_900_000);
    let event = |max_line_bytes: usize| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        append(&path, format!("{}{long}\n{}", line("a"), line("b")).as_bytes());
        let config = OcisConfig { max_line_bytes, ..OcisConfig::new(&path) };
        let pull = pull_from(&mut tail(config), None, PullLimits::default());
        assert_eq!(names(&pull), ["a", "st$sp", "b"]);
        assert!(pull.quarantine.is_empty());
        pull.events[1].event.clone()
    };
    let (small, usual, whole) = (event(1 << 10), event(1 << 20), event(8 << 20));
    for cut in [&small, &usual] {
        assert_eq!(cut.action, "ocis.space_updated");
        assert_eq!(cut.actor.id.as_deref(), Some("u1"));
        assert_eq!(cut.resource_name.as_deref(), Some("acme"));
        assert_eq!((cut.at, &cut.external_id), (whole.at, &whole.external_id), "one identity");
        let said = cut.metadata.source().unwrap();
        assert!(said.len() < 16 << 10);
        let said: Value = serde_json::from_str(said).unwrap();
        assert_eq!(said["Opaque"]["spaceAlias"]["value"], "project/acme");
        assert!(said["Opaque"]["x"]["value"].as_str().unwrap().ends_with("<…"));
        let note = cut.metadata.annotation("cut").unwrap();
        assert_eq!(note["line"]["bytes"], long.len());
    }
    assert_eq!(small.metadata.source(), usual.metadata.source());
    assert_eq!(whole.metadata.annotation("cut"), None);
}

/// Lines of a running oCIS 7.1.0-rc.1 whose spaces got descriptions of up to a megabyte.
const LONG_LINES: &[u8] = include_bytes!("../../../../tests/data/ocis/long-lines.log.gz");

#[test]
fn each_line_of_a_running_server_is_an_event_however_long_it_is() {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(LONG_LINES).read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 39);
    let mut bench = Bench::new();
    bench.append(&text);
    let (mut events, mut cut) = (BTreeMap::<String, usize>::new(), 0);
    loop {
        let pull = bench.pull();
        assert!(pull.quarantine.is_empty(), "{:?}", pull.quarantine);
        for pulled in pull.events {
            let event = pulled.event;
            assert!(event.actor.id.is_some() && event.resource_name.is_some(), "{event:?}");
            cut += usize::from(event.metadata.annotation("cut").is_some());
            *events.entry(event.action).or_default() += 1;
        }
        if !pull.more {
            break;
        }
    }
    let expected =
        [("folder_created", 26), ("space_created", 1), ("space_renamed", 2), ("space_updated", 10)];
    let expected = expected.map(|(verb, count)| (format!("ocis.{verb}"), count));
    assert_eq!(events, BTreeMap::from(expected));
    assert!(cut > 0);
}

#[test]
fn secrets_of_a_cut_line_are_hidden() {
    let token = "abcdefghijklmno";
    let long = format!(
        r#"{{"Action":"file_shared","ShareType":"link","Message":"link with token '{token}'","ShareToken":"{token}","x":"{} {token}{}"}}"#,
        "y ".repeat(2_043),
        "z".repeat(20_000),
    );
    let mut bench = Bench::with(|config| OcisConfig { max_line_bytes: 1_000, ..config });
    bench.append(long + "\n");
    let pull = bench.pull();
    let said = pull.events[0].event.metadata.source().unwrap();
    assert!(said.contains("[redacted]") && !said.contains("abcd"), "{said}");
}

#[test]
fn a_long_line_is_cut_the_same_however_it_arrives() {
    let long = updated(&"word ".repeat(400_000));
    let mut bench = Bench::new();
    bench.append(line("a"));
    assert_eq!(bench.names(), ["a"]);
    let (first, second) = long.as_bytes().split_at(1_500_000);
    bench.append(first);
    assert_eq!(bench.names(), [""; 0]);
    bench.append(second);
    assert_eq!(bench.names(), [""; 0]);
    bench.append("\n");
    let live = bench.pull();
    assert_eq!(names(&live), ["st$sp"]);
    bench.cursor = None;
    bench.restart();
    assert_eq!(ids(&bench.pull()).0[1..], ids(&live).0);
    // A long line without its newline, in a file that is no longer written.
    let mut bench = Bench::new();
    append(&bench.path("audit.log.1"), (line("a") + &long).as_bytes());
    bench.append(line("b"));
    bench.pull();
    bench.append(line("c"));
    assert_eq!(bench.names(), ["c", "st$sp"]);
}
