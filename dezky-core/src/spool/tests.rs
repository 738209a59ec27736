use std::fs;

use tempfile::TempDir;

use super::*;
use crate::testkit::{EventGenerator, ManualRuntime, named_event};
use crate::{Actor, NewEvent, QuarantineItem, TenantHint};

struct Place {
    folder: TempDir,
    runtime: Arc<ManualRuntime>,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Self { folder, runtime: Arc::new(ManualRuntime::new(11)) }
    }

    fn config(&self) -> SpoolConfig {
        SpoolConfig::new(self.folder.path().join("audit.spool"))
    }

    async fn open(&self) -> Spool {
        Spool::open(self.config(), self.runtime.clone()).await.unwrap()
    }

    async fn refused(&self, config: SpoolConfig) -> Error {
        match Spool::open(config, self.runtime.clone()).await {
            Ok(_) => panic!("the spool opened"),
            Err(error) => error,
        }
    }

    /// The spool as another process finds it if this one is killed now.
    async fn after_kill(&self) -> (Self, Spool) {
        let other = Self::new();
        fs::copy(self.config().path, other.config().path).unwrap();
        let spool = other.open().await;
        (other, spool)
    }

    fn events(&self, count: usize) -> Vec<SealedEvent> {
        EventGenerator::new(&*self.runtime).sealed(count)
    }

    fn small_events(&self, count: usize) -> Vec<SealedEvent> {
        let event = NewEvent::new("a.b", Actor::system());
        (0..count).map(|_| event.clone().seal(&*self.runtime)).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.config().path).unwrap()
    }

    fn corrupt_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().contains(".corrupt-"))
            .collect();
        files.sort();
        files
    }
}

impl Spool {
    /// The records at the front, which are all events.
    async fn peeked(&self, max: usize) -> Vec<SealedEvent> {
        let records = self.peek(max).await.unwrap().into_iter();
        let event = |record| match record {
            SpoolRecord::Event(event) => event,
            other => panic!("no event: {other:?}"),
        };
        records.map(event).collect()
    }
}

#[tokio::test]
async fn first_in_first_out() {
    let place = Place::new();
    let events = place.events(30);
    let spool = place.open().await;
    assert_eq!(spool.pending(), 0);
    assert_eq!(spool.peeked(10).await, []);
    spool.push(&[]).await.unwrap();
    spool.push(&events[..10]).await.unwrap();
    spool.push(&events[10..]).await.unwrap();
    assert_eq!(spool.pending(), 30);
    assert_eq!(spool.peeked(0).await, []);
    assert_eq!(spool.peeked(7).await, events[..7]);
    spool.discard(7).await.unwrap();
    assert_eq!(spool.peeked(100).await, events[7..]);
    // The position of the replay is not stored: another process starts at the front.
    let (killed, again) = place.after_kill().await;
    assert_eq!(again.pending(), 30);
    assert_eq!(again.peeked(100).await, events);
    assert_eq!(killed.corrupt_files(), [] as [PathBuf; 0]);
    spool.discard(100).await.unwrap();
    assert_eq!(spool.pending(), 0);
    assert_eq!(place.bytes(), HEADER);
    spool.push(&events[..1]).await.unwrap();
    drop(spool);
    let spool = place.open().await;
    assert_eq!(spool.peeked(100).await, events[..1]);
    assert_eq!(spool.damaged_bytes(), 0);
}

#[tokio::test]
async fn a_large_peek_comes_in_parts() {
    let place = Place::new();
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(60_000));
    let event = NewEvent {
        metadata: crate::NewMetadata::from_source(large),
        ..NewEvent::new("a.b", Actor::system())
    };
    let events: Vec<_> = (0..100).map(|_| event.clone().seal(&*place.runtime)).collect();
    let spool = place.open().await;
    spool.push(&events).await.unwrap();
    let mut seen = Vec::new();
    while spool.pending() > 0 {
        let part = spool.peeked(1_000).await;
        assert!((1..75).contains(&part.len()));
        spool.discard(part.len()).await.unwrap();
        seen.extend(part);
    }
    assert_eq!(seen, events);
}

/// Version 1 as it exists on disks. It must always be readable: never change it.
const VERSION_1: [(&[u8; 12], &str); 2] = [
    (
        b"\x00\x00\x01\xef\x22\x90\x8d\x79\xa3\xfd\x08\x57",
        r#"{"v":1,"salt":"c15c0289ec2d0a9167ec8e65a18debbe5e5532fbeea293f80bc942ee9086c171","event":{"id":"019b76da-a800-79b5-81d1-d854bb718002","at":"2026-01-01T00:00:00.000Z","receivedAt":"2026-01-01T00:00:00.000Z","actorType":"user","actorId":"u-7","actorEmail":"ana@acme.test","actorIp":"203.0.113.7","action":"tenant.suspended","outcome":"success","resourceName":"Straße 7","tenantSlug":"acme","source":"platform-api","externalId":"e-1","metadata":{"_dezky":{"requestId":"r-1"},"n":1.5,"path":"/a"}}}"#,
    ),
    (
        b"\x00\x00\x01\x3d\x57\x2a\xfa\x3b\xb8\x5e\xe4\xb5",
        r#"{"v":1,"salt":"a53c36d76cec99e0758527120fbbe785a83d7e35de181749966761748e5c43cb","event":{"id":"019b76da-a800-714f-9601-77dc7567fe8b","at":"2026-01-01T00:00:00.000Z","receivedAt":"2026-01-01T00:00:00.000Z","actorType":"anonymous","action":"authentik.login","outcome":"success","source":"authentik:eu2","metadata":{}}}"#,
    ),
];
const VERSION_1_LEAVES: [&str; 2] = [
    "02ea6de4638245ad5edda4c4d4db85a7aa0c682259597694f7b42c2ce450af69",
    "65141ea8dadc73c0b565933ae002dcb424b4466e1ef12276e2397d102d8747d1",
];

#[tokio::test]
async fn version_1_parses_for_ever() {
    let place = Place::new();
    let mut bytes = b"dezky.spool v1\n".to_vec();
    for (frame, json) in VERSION_1 {
        bytes.extend(frame);
        bytes.extend(json.as_bytes());
    }
    fs::write(place.config().path, &bytes).unwrap();
    let spool = place.open().await;
    let events = spool.peeked(10).await;
    let leaves: Vec<_> = events.iter().map(|e| hex::encode(e.leaf_hash())).collect();
    assert_eq!(leaves, VERSION_1_LEAVES);
    assert_eq!(events[0].event().resource_name.as_deref(), Some("Straße 7"));
    assert_eq!(place.bytes(), bytes);
    // The same bytes are written today.
    let written = Place::new();
    written.open().await.push(&events).await.unwrap();
    assert_eq!(written.bytes(), bytes);
}

fn item(name: &str) -> QuarantineItem {
    QuarantineItem {
        source: "stalwart".into(),
        key: name.into(),
        reason: "no_type".into(),
        detail: "event 1 of 2 has no usable type".into(),
        raw: vec![b'{', 0, 0xff],
        at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
    }
}

/// Version 2 as it exists on disks. It must always be readable: never change it.
const VERSION_2: (&[u8; 12], &str) = (
    b"\x00\x00\x00\x9f\x2a\xe1\xfc\x1a\xf4\xe1\x83\x60",
    r#"{"v":1,"quarantine":{"source":"stalwart","key":"k","reason":"no_type","detail":"event 1 of 2 has no usable type","raw":"ewD/","at":"2026-01-01T00:00:00.000Z"}}"#,
);

#[tokio::test]
async fn version_2_parses_for_ever() {
    let place = Place::new();
    let mut bytes = b"dezky.spool v2\n".to_vec();
    for (frame, json) in [(VERSION_1[0].0, VERSION_1[0].1), VERSION_2] {
        bytes.extend(frame);
        bytes.extend(json.as_bytes());
    }
    fs::write(place.config().path, &bytes).unwrap();
    let spool = place.open().await;
    let records = spool.peek(10).await.unwrap();
    assert_eq!(records.len(), 2, "{:02x?}", checksum(VERSION_2.1.as_bytes()));
    assert_eq!(records[1], SpoolRecord::Quarantine(item("k")));
    assert_eq!(place.bytes(), bytes);
    // The same bytes are written today.
    let written = Place::new();
    written.open().await.push_records(&records).await.unwrap();
    assert_eq!(written.bytes(), bytes);
}

/// The additional content of version 3, after the event of [`VERSION_1`]. It must always be
/// readable: never change it.
const VERSION_3: (&[u8; 12], &str, &str) = (
    b"\x00\x00\x02\x7d\xe6\x3e\xde\x05\x6c\x1e\xb8\x9b",
    r#"{"v":1,"unresolved":"#,
    r#","tenant":[{"slug":{"slug":"acme","via":"space_name"}},{"domain":"acme.example"},{"user":{"system":"stalwart","id":"7"}}]}"#,
);

#[tokio::test]
async fn version_3_parses_for_ever() {
    let place = Place::new();
    let (frame, before, after) = VERSION_3;
    let json = format!("{before}{}{after}", VERSION_1[0].1);
    let bytes = [b"dezky.spool v3\n", &frame[..], json.as_bytes()].concat();
    fs::write(place.config().path, &bytes).unwrap();
    let spool = place.open().await;
    let records = spool.peek(10).await.unwrap();
    let [SpoolRecord::Unresolved(unresolved)] = &*records else { panic!("{records:?}") };
    assert_eq!(hex::encode(unresolved.event.leaf_hash()), VERSION_1_LEAVES[0]);
    assert_eq!(
        unresolved.tenant,
        [
            TenantHint::Slug { slug: "acme".into(), via: "space_name" },
            TenantHint::Domain("acme.example".into()),
            TenantHint::User { system: "stalwart", id: "7".into() },
        ]
    );
    assert_eq!(place.bytes(), bytes);
    // The same bytes are written today, until the spool is empty.
    let written = Place::new();
    let spool = written.open().await;
    spool.push_records(&[item("k").into()]).await.unwrap();
    spool.push_records(&records).await.unwrap();
    assert!(written.bytes().starts_with(&header(3)) && written.bytes().ends_with(&bytes[15..]));
    spool.discard(2).await.unwrap();
    assert_eq!(written.bytes(), HEADER);
}

#[tokio::test]
async fn of_version_2_only_while_it_holds_items() {
    let place = Place::new();
    let spool = place.open().await;
    let events: Vec<SpoolRecord> = place.events(3).into_iter().map(Into::into).collect();
    let items: Vec<SpoolRecord> = ["a", "b"].map(|name| item(name).into()).into();
    spool.push_records(&events[..2]).await.unwrap();
    assert!(place.bytes().starts_with(HEADER), "events alone need no newer one");
    let mixed = [&events[2..], &items[..]].concat();
    spool.push_records(&mixed).await.unwrap();
    assert!(place.bytes().starts_with(&header(2)));
    let all = [&events[..], &items[..]].concat();
    let (killed, again) = place.after_kill().await;
    assert_eq!(again.peek(9).await.unwrap(), all);
    // An incomplete last record costs only that one, as with events.
    let whole = killed.bytes();
    drop(again);
    fs::write(killed.config().path, &whole[..whole.len() - 1]).unwrap();
    let torn = killed.open().await;
    assert_eq!(torn.peek(9).await.unwrap(), all[..4]);
    drop(torn);
    // A damaged record in between, too.
    let mut bytes = whole;
    let at = bytes.len() - 200;
    bytes[at] ^= 1;
    fs::write(killed.config().path, &bytes).unwrap();
    assert_eq!(killed.open().await.peek(9).await.unwrap(), [&all[..3], &all[4..]].concat());
    // The version stays until the spool is empty.
    spool.discard(4).await.unwrap();
    assert!(place.bytes().starts_with(&header(2)));
    spool.discard(1).await.unwrap();
    assert_eq!(place.bytes(), HEADER);
    // A kill between truncating the file and writing its header leaves an empty file of version 2.
    drop(spool);
    fs::write(place.config().path, header(2)).unwrap();
    let spool = place.open().await;
    assert_eq!(place.bytes(), HEADER);
    spool.push_records(&items).await.unwrap();
    assert!(place.bytes().starts_with(&header(2)));
    assert_eq!(place.after_kill().await.1.pending(), 2);
}

#[tokio::test]
async fn bounds() {
    let place = Place::new();
    let events = place.events(5);
    let sizes: Vec<u64> = events.iter().map(|e| 12 + e.to_json().len() as u64).collect();
    let three: u64 = HEADER_BYTES + sizes[..3].iter().sum::<u64>();
    let by_count = SpoolConfig { max_events: 3, ..place.config() };
    let by_bytes = SpoolConfig { max_bytes: three, ..place.config() };
    for config in [by_count, by_bytes] {
        let spool = Spool::open(config, place.runtime.clone()).await.unwrap();
        spool.push(&events[..2]).await.unwrap();
        let before = place.bytes();
        let error = spool.push(&events[2..4]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("full at 2 of"), "{error}");
        assert_eq!((place.bytes(), spool.pending()), (before, 2));
        spool.push(&events[2..3]).await.unwrap();
        assert!(spool.push(&events[3..4]).await.is_err());
        // Accepts as many as there is room for.
        spool.discard(3).await.unwrap();
        let pushed = spool.push_some(&events).await;
        assert_eq!(pushed.refused.unwrap().kind(), ErrorKind::TooLarge);
        assert!((1..5).contains(&pushed.pushed));
        assert_eq!(spool.peeked(9).await, events[..pushed.pushed]);
        spool.discard(9).await.unwrap();
    }
    // With lower bounds, nothing is lost.
    let spool = place.open().await;
    spool.push(&events).await.unwrap();
    drop(spool);
    let low = SpoolConfig { max_events: 1, max_bytes: 100, ..place.config() };
    let spool = Spool::open(low, place.runtime.clone()).await.unwrap();
    assert_eq!(spool.peeked(9).await, events);
    assert!(spool.push(&events[..1]).await.is_err());
}

#[tokio::test]
async fn an_event_out_of_all_bounds_is_refused() {
    let place = Place::new();
    let spool = place.open().await;
    let huge = NewEvent::new("x".repeat(MAX_RECORD_BYTES), Actor::system());
    let events = [huge.seal(&*place.runtime)];
    assert_eq!(spool.push(&events).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!((spool.pending(), place.bytes().as_slice()), (0, HEADER));
}

#[tokio::test]
async fn one_at_a_time() {
    let place = Place::new();
    let spool = place.open().await;
    spool.push(&place.events(2)).await.unwrap();
    let error = place.refused(place.config()).await;
    assert_eq!(error.kind(), ErrorKind::StoreBusy);
    assert!(error.to_string().contains("audit.spool: another process"), "{error}");
    drop(spool);
    assert_eq!(place.open().await.pending(), 2);
}

#[tokio::test]
async fn configuration() {
    let place = Place::new();
    let at = |path: PathBuf| SpoolConfig { path, ..place.config() };
    for config in [
        at(place.folder.path().join("missing/audit.spool")),
        at(place.folder.path().to_owned()),
        at(place.folder.path().join("..")),
        at(PathBuf::new()),
        SpoolConfig { max_events: 0, ..place.config() },
        SpoolConfig { max_bytes: 0, ..place.config() },
    ] {
        let error = place.refused(config.clone()).await;
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{config:?}: {error}");
    }
    assert!(!place.config().path.exists());
}

#[tokio::test]
async fn files_of_others_are_left_alone() {
    let place = Place::new();
    for (content, kind) in [
        (&b"hello"[..], ErrorKind::StoreForeign),
        (b"dezky.spool\n", ErrorKind::StoreForeign),
        (b"dezky.spool v0\n", ErrorKind::StoreForeign),
        (b"dezky.spool vx\n", ErrorKind::StoreForeign),
        (b"dezky.spool v1 \n", ErrorKind::StoreForeign),
        (b"dezky.spool v4\n", ErrorKind::SchemaNewer),
        (b"dezky.spool v10\nrecords", ErrorKind::SchemaNewer),
    ] {
        fs::write(place.config().path, content).unwrap();
        let error = place.refused(place.config()).await;
        assert_eq!(error.kind(), kind, "{}", String::from_utf8_lossy(content));
        assert_eq!(place.bytes(), content);
    }
}

#[tokio::test]
async fn an_incomplete_header_is_rewritten() {
    for end in 0..HEADER.len() {
        let place = Place::new();
        fs::write(place.config().path, &HEADER[..end]).unwrap();
        let spool = place.open().await;
        spool.push(&place.events(1)).await.unwrap();
        assert_eq!(place.after_kill().await.1.pending(), 1);
        assert_eq!(place.corrupt_files(), [] as [PathBuf; 0]);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let place = Place::new();
    place.open().await.push(&place.events(1)).await.unwrap();
    assert_eq!(mode(&place.config().path), 0o600);
    fs::set_permissions(place.config().path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = place.bytes();
    bytes.extend(b"torn");
    fs::write(place.config().path, bytes).unwrap();
    place.open().await;
    assert_eq!(mode(&place.config().path), 0o600);
    assert_eq!(mode(&place.corrupt_files()[0]), 0o600);
}

#[tokio::test]
async fn an_incomplete_tail_costs_only_the_last_record() {
    let place = Place::new();
    let events = place.small_events(4);
    let spool = place.open().await;
    spool.push(&events[..2]).await.unwrap();
    let good = place.bytes().len();
    spool.push(&events[2..3]).await.unwrap();
    let whole = place.bytes();
    for end in good..whole.len() {
        let torn = Place::new();
        fs::write(torn.config().path, &whole[..end]).unwrap();
        let spool = torn.open().await;
        assert_eq!(spool.peeked(9).await, events[..2], "at {end}");
        assert_eq!(torn.bytes(), whole[..good]);
        assert_eq!(spool.damaged_bytes(), (end - good) as u64);
        let kept: Vec<_> =
            torn.corrupt_files().iter().map(|path| fs::read(path).unwrap()).collect();
        let expected: Vec<_> =
            (end > good).then(|| whole[good..end].to_vec()).into_iter().collect();
        assert_eq!(kept, expected);
        spool.push(&events[3..]).await.unwrap();
        let (_, again) = torn.after_kill().await;
        assert_eq!(again.peeked(9).await, [&events[..2], &events[3..]].concat(), "at {end}");
    }
}

#[tokio::test]
async fn a_flipped_bit_costs_one_record() {
    let place = Place::new();
    let events = place.small_events(3);
    let spool = place.open().await;
    let mut ends = Vec::new();
    for event in &events {
        spool.push(std::slice::from_ref(event)).await.unwrap();
        ends.push(place.bytes().len());
    }
    let whole = place.bytes();
    for at in 0..whole.len() {
        let flipped = Place::new();
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(flipped.config().path, &bytes).unwrap();
        if at < HEADER.len() {
            let kind = flipped.refused(flipped.config()).await.kind();
            assert!(matches!(kind, ErrorKind::StoreForeign | ErrorKind::SchemaNewer));
            assert_eq!(flipped.bytes(), bytes);
            continue;
        }
        // Every byte of the frames, and some of the events.
        let hit = ends.iter().position(|end| at < *end).unwrap();
        let start = if hit == 0 { HEADER.len() } else { ends[hit - 1] };
        if at - start > 16 && at % 17 > 0 {
            continue;
        }
        let mut left = events.clone();
        left.remove(hit);
        let spool = flipped.open().await;
        assert_eq!(spool.peeked(9).await, left, "at {at}");
        assert_eq!(spool.damaged_bytes(), (ends[hit] - start) as u64);
        assert_eq!(fs::read(&flipped.corrupt_files()[0]).unwrap(), bytes[start..]);
        // Reported once.
        let (again, spool) = flipped.after_kill().await;
        assert_eq!(spool.peeked(9).await, left);
        assert_eq!(again.corrupt_files(), [] as [PathBuf; 0]);
    }
}

#[tokio::test]
async fn records_damaged_while_open_are_set_aside() {
    let place = Place::new();
    let events = place.events(3);
    let spool = place.open().await;
    spool.push(&events).await.unwrap();
    let second = HEADER.len() + 12 + events[0].to_json().len();
    let mut bytes = place.bytes();
    bytes[second + 40] ^= 1;
    fs::write(place.config().path, &bytes).unwrap();
    assert_eq!(spool.peeked(9).await, events[..1]);
    spool.discard(1).await.unwrap();
    assert_eq!(spool.peeked(9).await, events[2..]);
    assert_eq!(spool.pending(), 1);
    let record = 12 + events[1].to_json().len();
    assert_eq!(spool.damaged_bytes(), record as u64);
    assert_eq!(fs::read(&place.corrupt_files()[0]).unwrap(), bytes[second..second + record]);
    // An intact record with other content is set aside too.
    spool.discard(1).await.unwrap();
    spool.push(&events[..1]).await.unwrap();
    let mut bytes = HEADER.to_vec();
    let other = vec![b'x'; events[0].to_json().len()];
    bytes.extend(u32::try_from(other.len()).unwrap().to_be_bytes());
    bytes.extend(checksum(&other));
    bytes.extend(other);
    fs::write(place.config().path, bytes).unwrap();
    assert_eq!(spool.peeked(9).await, []);
    assert_eq!((spool.pending(), place.bytes().as_slice()), (0, HEADER));
}

#[tokio::test]
async fn a_failed_write_changes_nothing() {
    let place = Place::new();
    let events = place.events(3);
    let spool = place.open().await;
    spool.push(&events[..1]).await.unwrap();
    // A handle that can neither write records nor truncate the file.
    let read_only = File::open(place.config().path).unwrap();
    let writable = {
        let mut queue = spool.queue.lock().await;
        std::mem::replace(&mut queue.file, read_only)
    };
    let error = spool.push(&events[1..2]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("audit.spool: write: "), "{error}");
    assert_eq!(spool.pending(), 1);
    {
        let mut queue = spool.queue.lock().await;
        assert!(queue.dirty);
        // As if part of it had been written.
        (&writable).seek(SeekFrom::End(0)).unwrap();
        (&writable).write_all(&[0; 5_000]).unwrap();
        queue.file = writable;
    }
    spool.push(&events[2..]).await.unwrap();
    let left = [events[0].clone(), events[2].clone()];
    assert_eq!(spool.peeked(9).await, left);
    let (again, spool) = place.after_kill().await;
    assert_eq!(spool.peeked(9).await, left);
    assert_eq!(again.corrupt_files(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_dropped_push_is_stored_as_a_whole_or_not_at_all() {
    let place = Place::new();
    let spool = place.open().await;
    let events = place.events(2);
    drop(spool.push(&events));
    assert_eq!(spool.pending(), 0);
    let turn = spool.queue.lock().await;
    let mut waiting = Box::pin(spool.push(&events));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(waiting);
    drop(turn);
    assert_eq!(spool.pending(), 0);
    let event = named_event("a").seal(&*place.runtime);
    spool.push(std::slice::from_ref(&event)).await.unwrap();
    assert_eq!(spool.peeked(9).await, [event]);
}

#[tokio::test]
async fn a_removed_file_is_recreated_with_all_waiting_records() {
    let place = Place::new();
    let spool = place.open().await;
    let events = place.events(5);
    spool.push(&events[..2]).await.unwrap();
    spool.discard(1).await.unwrap();
    fs::remove_file(place.config().path).unwrap();
    // A crash may have left an incomplete file of an earlier attempt.
    fs::write(place.folder.path().join("half"), vec![b'x'; 100_000]).unwrap();
    let mut new = place.config().path.into_os_string();
    new.push(".new");
    fs::rename(place.folder.path().join("half"), &new).unwrap();
    spool.push(&events[2..4]).await.unwrap();
    assert!(!fs::exists(&new).unwrap());
    // Acknowledged records are in the file that the next process finds.
    let (_other, found) = place.after_kill().await;
    let records = |events: &[SealedEvent]| -> Vec<_> {
        events.iter().cloned().map(SpoolRecord::Event).collect()
    };
    assert_eq!(found.peek(9).await.unwrap(), records(&events[1..4]));
    assert_eq!(spool.peek(9).await.unwrap(), records(&events[1..4]));
    // It is locked and bounded like the first one.
    assert_eq!(place.refused(place.config()).await.kind(), ErrorKind::StoreBusy);
    spool.discard(3).await.unwrap();
    assert_eq!(place.bytes(), HEADER);
    spool.push(&events[4..]).await.unwrap();
    assert_eq!(spool.peek(9).await.unwrap(), records(&events[4..]));
}

#[tokio::test]
async fn a_kill_while_a_recreated_file_has_two_names_does_no_harm() {
    let place = Place::new();
    let events = place.events(2);
    place.open().await.push(&events[..1]).await.unwrap();
    let new = place.folder.path().join("audit.spool.new");
    fs::hard_link(place.config().path, &new).unwrap();
    let spool = place.open().await;
    fs::remove_file(place.config().path).unwrap();
    spool.push(&events[1..]).await.unwrap();
    let (_other, found) = place.after_kill().await;
    assert_eq!(found.peeked(9).await, events);
    assert!(!fs::exists(&new).unwrap());
}

/// A disk without room for setting bytes aside.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_incomplete_copy_of_damaged_bytes_takes_up_no_room() {
    let place = Place::new();
    let events = place.events(3);
    place.open().await.push(&events[..1]).await.unwrap();
    let mut damaged = place.bytes();
    damaged.extend(b"damaged");
    fs::write(place.config().path, damaged).unwrap();
    let full = format!("audit.spool.corrupt-{}", place.runtime.now().as_millis());
    let full = place.config().path.with_file_name(full);
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let spool = place.open().await;
    assert_eq!(place.corrupt_files(), [] as [PathBuf; 0], "a part of it");
    assert_eq!(spool.damaged_bytes(), 0);
    // Now there is room.
    spool.push(&events[1..]).await.unwrap();
    assert_eq!(spool.peeked(9).await, events);
    assert_eq!(fs::read(&place.corrupt_files()[0]).unwrap(), b"damaged");
    assert_eq!((place.corrupt_files().len(), spool.damaged_bytes()), (1, 7));
}

#[tokio::test]
async fn nothing_is_acknowledged_while_another_file_is_in_its_place() {
    let place = Place::new();
    let spool = place.open().await;
    let events = place.events(3);
    spool.push(&events[..1]).await.unwrap();
    let own = place.folder.path().join("own");
    fs::rename(place.config().path, &own).unwrap();
    fs::write(place.config().path, "something else").unwrap();
    let refused = spool.push(&events[1..2]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreReplaced, "{refused}");
    assert_eq!(spool.pending(), 1, "the sender retries refused events");
    assert_eq!(place.bytes(), b"something else", "it is somebody's");
    // The program ends, and the file is put back.
    let other = Place::new();
    fs::copy(&own, other.config().path).unwrap();
    assert_eq!(other.open().await.peeked(9).await, events[..1], "the refused one turned up");
    fs::rename(&own, place.config().path).unwrap();
    spool.push(&events[2..]).await.unwrap();
    let kept: Vec<_> =
        [&events[0], &events[2]].into_iter().cloned().map(SpoolRecord::Event).collect();
    assert_eq!(spool.peek(9).await.unwrap(), kept);
    let (_other, found) = place.after_kill().await;
    assert_eq!(found.peek(9).await.unwrap(), kept, "nor does it turn up after a restart");
}
