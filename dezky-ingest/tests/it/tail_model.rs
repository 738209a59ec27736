//! Random schedules of a writer, logrotate and a crashing reader, on real files, compared with the
//! output of a perfect reader.
//!
//! `DEZKY_TAIL_SCHEDULES` sets the number of schedules; `DEZKY_TAIL_SEED` replays a single one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use dezky_core::testkit::ManualRuntime;
use dezky_core::{Actor, IngestSource, NewEvent, PullLimits, QuarantineItem, Timestamp};
use dezky_ingest::tail::{DecodedLine, FileTail, Line, LineDecoder, TailConfig};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures_util::FutureExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Lines up to this length are within the limit.
const MAX_LINE_BYTES: usize = 300;
/// The number of rotated files that are kept.
const ROTATED: usize = 5;

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A step of a schedule.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, each named")]
struct Rules {
    rotate: bool,
    copy_truncate: bool,
    truncate: bool,
    remove: bool,
    compress: bool,
    partial: bool,
    equal_lines: bool,
    crash: bool,
    /// Whether the reader must report data that was destroyed unread.
    gaps: bool,
    /// Whether all generations begin with the same line.
    alike: bool,
}

/// The first line of every generation under [`Rules::alike`].
const OPENED: &str = "opened";

const NOTHING: Rules = Rules {
    rotate: false,
    copy_truncate: false,
    truncate: false,
    remove: false,
    compress: false,
    partial: false,
    equal_lines: false,
    crash: false,
    gaps: false,
    alike: false,
};

const EVERYTHING: Rules = Rules {
    rotate: true,
    copy_truncate: true,
    truncate: true,
    remove: true,
    compress: true,
    partial: true,
    equal_lines: true,
    crash: true,
    gaps: true,
    alike: false,
};

/// The first line then does not identify the generation that is gone.
const ALIKE: Rules = Rules { alike: true, gaps: false, ..EVERYTHING };

/// The output of a reader.
#[derive(Default)]
struct Brought {
    /// Identity and text, in order.
    lines: Vec<(String, String)>,
    /// Lines over the limit, separate from the others.
    long_lines: Vec<(String, String)>,
    /// Texts without a newline.
    fragments: Vec<String>,
    /// Generation and offset after which lines may be lost.
    gaps: Vec<(Option<String>, u64)>,
    more: bool,
    /// The generation of the reader's position, if the reader reports it.
    generation: Option<String>,
}

trait Reader {
    /// Reads on from the committed position.
    fn pull(&mut self, limits: PullLimits) -> Brought;
    /// Commits the last pull.
    fn commit(&mut self);
    /// Forgets everything that is not committed.
    fn crash(&mut self);
}

/// A decoder that reduces each line to its first word.
struct Words;

fn word(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == b' ').next().unwrap()).into_owned()
}

impl LineDecoder for Words {
    fn decode(&self, line: Line<'_>, _: &mut Option<Timestamp>, each: &mut dyn FnMut(DecodedLine)) {
        if !line.is_complete {
            each(line.quarantine("partial_line", "no newline", line.bytes).into());
            return;
        }
        each(DecodedLine::from(NewEvent {
            source: line.source.to_owned(),
            external_id: Some(line.key()),
            resource_id: Some(word(line.bytes)),
            ..NewEvent::new("line.read", Actor::system())
        }));
    }

    fn too_long(&self, head: Line<'_>, _: u64) -> QuarantineItem {
        head.quarantine("line_too_long", "a long line", head.bytes)
    }
}

/// The tail itself.
struct Real {
    path: PathBuf,
    tail: FileTail,
    committed: Option<String>,
    pending: Option<String>,
}

impl Real {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), tail: tail(path), committed: None, pending: None }
    }
}

fn tail(path: &Path) -> FileTail {
    let config = TailConfig { max_line_bytes: MAX_LINE_BYTES, ..TailConfig::new(path, "model") };
    FileTail::new(config, Arc::new(Words), Arc::new(ManualRuntime::new(1))).unwrap()
}

impl Reader for Real {
    fn pull(&mut self, limits: PullLimits) -> Brought {
        let pull = self.tail.pull(self.committed.as_deref(), limits);
        let pull = pull.now_or_never().expect("nothing waits").expect("files can be read");
        let mut brought = Brought { more: pull.more, ..Brought::default() };
        assert!(
            pull.cursor.is_some() || (pull.events.is_empty() && pull.quarantine.is_empty()),
            "a pump refuses events without a cursor"
        );
        for pulled in pull.events {
            let event = pulled.event;
            if event.action == "ingest.gap" {
                let said = event.metadata.source().unwrap();
                let said: serde_json::Value = serde_json::from_str(said).unwrap();
                let generation = said["generation"].as_str().map(str::to_owned);
                brought.gaps.push((generation, said["lastOffset"].as_u64().unwrap()));
            } else {
                brought.lines.push((event.external_id.unwrap(), event.resource_id.unwrap()));
            }
        }
        for item in pull.quarantine {
            match item.reason.as_str() {
                "line_too_long" if item.raw.contains(&b' ') => {
                    brought.long_lines.push((item.key, word(&item.raw)));
                }
                _ => brought.fragments.push(String::from_utf8_lossy(&item.raw).into_owned()),
            }
        }
        if let Some(cursor) = &pull.cursor {
            let (_, known) = cursor.split_once(' ').unwrap();
            let known: serde_json::Value = serde_json::from_str(known).unwrap();
            brought.generation = known["gen"].as_str().map(str::to_owned);
        }
        self.pending = pull.cursor;
        brought
    }

    fn commit(&mut self) {
        if let Some(cursor) = self.pending.take() {
            self.committed = Some(cursor);
        }
    }

    fn crash(&mut self) {
        self.tail = tail(&self.path);
        self.pending = None;
    }
}

/// A written line.
struct Written {
    text: String,
    offset: u64,
    /// Destroyed before it was read; the value is whether a reader can detect this.
    destroyed: Option<bool>,
}

/// The content of a file between two times at which it was created or truncated.
#[derive(Default)]
struct Generation {
    lines: Vec<Written>,
    bytes: u64,
    first_line: Option<Vec<u8>>,
}

/// A rotated file.
struct Rotated {
    generation: usize,
    name: String,
    is_compressed: bool,
}

/// The files, and the lines that a perfect reader would return.
struct World {
    directory: TempDir,
    random: Random,
    rules: Rules,
    clock: u64,
    generations: Vec<Generation>,
    live: Option<usize>,
    /// The newest first.
    rotated: Vec<Rotated>,
    /// The rest of a partly written line, and its generation.
    partial: Option<(usize, Vec<u8>, String)>,
    fragments: Vec<String>,
    /// Pulls since the last rotation.
    pulls: usize,
    log: Vec<String>,
    seen: BTreeMap<String, String>,
    brought: Vec<String>,
    gaps: Vec<(Option<String>, u64)>,
    /// The reader's position.
    stands_in: Option<String>,
}

impl World {
    fn new(seed: u64, rules: Rules) -> Self {
        let mut random = Random(seed);
        let clock = 1_000_000 + random.next() % 1_000;
        Self {
            directory: tempfile::tempdir().unwrap(),
            random,
            rules,
            clock,
            generations: Vec::new(),
            live: None,
            rotated: Vec::new(),
            partial: None,
            fragments: Vec::new(),
            pulls: 0,
            log: Vec::new(),
            seen: BTreeMap::new(),
            brought: Vec::new(),
            gaps: Vec::new(),
            stands_in: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn live_path(&self) -> PathBuf {
        self.path("app.log")
    }

    fn path_of(&self, generation: usize) -> PathBuf {
        let rotated = self.rotated.iter().find(|r| r.generation == generation);
        rotated.map_or_else(|| self.live_path(), |rotated| self.path(&rotated.name))
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    fn write(&mut self, generation: usize, bytes: &[u8]) {
        let path = self.path_of(generation);
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        // In pieces, so that a reader may see a part.
        file.write_all(bytes).unwrap();
        self.clock += u64::from(self.rules.alike || self.random.one_in(2));
        file.set_modified(UNIX_EPOCH + Duration::from_secs(self.clock)).unwrap();
    }

    fn new_line(&mut self) -> (usize, String, Vec<u8>) {
        let generation = *self.live.get_or_insert_with(|| {
            self.generations.push(Generation::default());
            self.generations.len() - 1
        });
        let n = self.generations[generation].lines.len();
        if self.rules.alike && n == 0 {
            return (generation, OPENED.into(), format!("{OPENED} xxx\n").into_bytes());
        }
        let text = match self.generations[generation].lines.last() {
            Some(last) if last.text == OPENED => format!("g{generation}-l{n:04}"),
            Some(last) if self.rules.equal_lines && self.random.one_in(4) => last.text.clone(),
            _ => format!("g{generation}-l{n:04}"),
        };
        let padding = match self.random.below(12) {
            0 => MAX_LINE_BYTES * 2,
            1..4 => 40,
            _ => 3,
        };
        // The same text gives the same line.
        let padding = match self.generations[generation].lines.last() {
            Some(last) if last.text == text => 3,
            _ => padding,
        };
        let line = format!("{text} {}\n", "x".repeat(padding)).into_bytes();
        (generation, text, line)
    }

    fn wrote(&mut self, generation: usize, text: String, line: &[u8]) {
        let of = &mut self.generations[generation];
        if of.first_line.is_none() {
            of.first_line = Some(line[..line.len() - 1].to_vec());
        }
        of.lines.push(Written { text, offset: of.bytes, destroyed: None });
        of.bytes += line.len() as u64;
    }

    fn append(&mut self) {
        self.complete();
        let count = self.random.below(4) + usize::from(self.rules.alike);
        for _ in 0..=count {
            let (generation, text, line) = self.new_line();
            self.write(generation, &line);
            self.note(format!("append {text}"));
            self.wrote(generation, text, &line);
        }
        if self.rules.partial && self.random.one_in(3) {
            let (generation, text, line) = self.new_line();
            let cut = 1 + self.random.below(line.len() - 1);
            self.write(generation, &line[..cut]);
            self.note(format!("append {cut} bytes of {text}"));
            self.fragments.push(String::from_utf8(line.clone()).unwrap());
            self.partial = Some((generation, line[cut..].to_vec(), text));
            let all = line;
            // It becomes a line with its newline.
            self.generations[generation].first_line.get_or_insert(all[..all.len() - 1].to_vec());
        }
    }

    /// Writes the rest of a line.
    fn complete(&mut self) {
        let Some((generation, rest, text)) = self.partial.take() else { return };
        self.write(generation, &rest);
        self.note(format!("complete {text}"));
        let whole = self.fragments.pop().unwrap();
        self.wrote(generation, text, whole.as_bytes());
    }

    /// Leaves the last line incomplete.
    fn abandon(&mut self) {
        if self.partial.take().is_some() {
            self.note("abandon the line".into());
        }
    }

    /// Marks the unread rest of a generation as destroyed; `known` if the reader's cursor is in it.
    fn destroy(&mut self, generation: usize, from: u64, can_be_told: bool) {
        let mut left: HashMap<&str, usize> = HashMap::new();
        for text in self.seen.values() {
            *left.entry(text).or_default() += 1;
        }
        let mut read = Vec::new();
        for line in &self.generations[generation].lines {
            let count = left.entry(line.text.as_str()).or_default();
            read.push(*count > 0);
            *count = count.saturating_sub(1);
        }
        let is_current = self.stands_in.is_some() && self.stands_in == self.identity(generation);
        let of = &mut self.generations[generation];
        for (line, read) in of.lines.iter_mut().zip(read) {
            if !read && line.offset >= from && line.destroyed.is_none() && line.text != OPENED {
                line.destroyed = Some(is_current && can_be_told);
            }
        }
    }

    fn identity(&self, generation: usize) -> Option<String> {
        let first = self.generations[generation].first_line.as_deref();
        first.map(|line| hex::encode(Sha256::digest(line)))
    }

    fn shift(&mut self) {
        self.finish_compression();
        if self.rotated.len() >= ROTATED {
            let oldest = self.rotated.pop().unwrap();
            self.note(format!("remove {}", oldest.name));
            if self.partial.as_ref().is_some_and(|(of, ..)| *of == oldest.generation) {
                self.abandon();
            }
            self.destroy(oldest.generation, 0, true);
            fs::remove_file(self.path(&oldest.name)).unwrap();
        }
        for i in (0..self.rotated.len()).rev() {
            let ending = if self.rotated[i].is_compressed { ".gz" } else { "" };
            let name = format!("app.log.{}{ending}", i + 2);
            fs::rename(self.path(&self.rotated[i].name), self.path(&name)).unwrap();
            self.rotated[i].name = name;
        }
    }

    fn rotate(&mut self) {
        let Some(generation) = self.live else { return };
        if self.partial.as_ref().is_some_and(|(of, ..)| *of != generation) {
            self.complete();
        }
        if self.random.one_in(2) {
            self.complete();
        }
        self.shift();
        self.note("rotate".into());
        fs::rename(self.live_path(), self.path("app.log.1")).unwrap();
        let name = "app.log.1".into();
        self.rotated.insert(0, Rotated { generation, name, is_compressed: false });
        self.live = None;
        self.pulls = 0;
    }

    fn copy_truncate(&mut self, reader: &mut dyn Reader) {
        let Some(generation) = self.live else { return };
        self.complete();
        self.shift();
        if self.rules.alike {
            self.wait_for_a_younger_file();
            // With the copy's time, or with that of the original file.
            self.clock += u64::from(generation % 2 == 1);
        }
        self.note("copy".into());
        fs::copy(self.live_path(), self.path("app.log.1")).unwrap();
        let copy = File::options().append(true).open(self.path("app.log.1")).unwrap();
        copy.set_modified(UNIX_EPOCH + Duration::from_secs(self.clock)).unwrap();
        let bytes = self.generations[generation].bytes;
        if self.random.one_in(3) {
            self.pull(reader);
        }
        if self.random.one_in(4) {
            // Written between copy and truncation: no reader can detect this loss.
            let (generation, text, line) = self.new_line();
            self.write(generation, &line);
            self.note(format!("append {text} before it is truncated"));
            self.wrote(generation, text, &line);
            if self.random.one_in(2) {
                self.pull(reader);
            }
        }
        self.note("truncate the copied".into());
        self.destroy(generation, bytes, false);
        self.empty();
        let name = "app.log.1".into();
        self.rotated.insert(0, Rotated { generation, name, is_compressed: false });
        self.live = None;
        self.pulls = 0;
    }

    /// Waits until the file system gives a new file a later time than the live one: its clock may
    /// advance in steps.
    fn wait_for_a_younger_file(&self) {
        let born = |path: &Path| fs::metadata(path).unwrap().created().unwrap();
        let (live, probe) = (born(&self.live_path()), self.path("probe"));
        loop {
            fs::write(&probe, "").unwrap();
            let is_younger = born(&probe) > live;
            fs::remove_file(&probe).unwrap();
            if is_younger {
                return;
            }
        }
    }

    fn empty(&mut self) {
        let file = OpenOptions::new().write(true).open(self.live_path()).unwrap();
        file.set_len(0).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(self.clock)).unwrap();
    }

    fn truncate(&mut self) {
        let Some(generation) = self.live else { return };
        self.complete_elsewhere(generation);
        self.abandon();
        self.note("truncate".into());
        self.destroy(generation, 0, true);
        self.empty();
        self.live = None;
    }

    fn remove(&mut self) {
        let Some(generation) = self.live else { return };
        self.complete_elsewhere(generation);
        self.abandon();
        self.note("remove".into());
        self.destroy(generation, 0, true);
        fs::remove_file(self.live_path()).unwrap();
        self.live = None;
    }

    fn complete_elsewhere(&mut self, generation: usize) {
        if self.partial.as_ref().is_some_and(|(of, ..)| *of != generation) {
            self.complete();
        }
    }

    /// Begins to compress a rotated file: the copy exists before it is complete.
    fn compress(&mut self) {
        self.finish_compression();
        let plain: Vec<usize> =
            (0..self.rotated.len()).filter(|i| !self.rotated[*i].is_compressed).collect();
        if plain.is_empty() {
            return;
        }
        let i = plain[self.random.below(plain.len())];
        if self.partial.as_ref().is_some_and(|(of, ..)| *of == self.rotated[i].generation) {
            self.complete();
        }
        let bytes = compressed(&fs::read(self.path(&self.rotated[i].name)).unwrap());
        let name = format!("{}.gz", self.rotated[i].name);
        let cut = self.random.below(bytes.len() + 1);
        fs::write(self.path(&name), &bytes[..cut]).unwrap();
        self.note(format!("compress {cut} of {} bytes of {name}", bytes.len()));
        if self.random.one_in(2) {
            self.finish_compression();
        }
    }

    fn finish_compression(&mut self) {
        for i in 0..self.rotated.len() {
            let plain = self.path(&self.rotated[i].name);
            let name = format!("{}.gz", self.rotated[i].name);
            if self.rotated[i].is_compressed || !self.path(&name).exists() {
                continue;
            }
            self.complete_if_of(self.rotated[i].generation);
            fs::write(self.path(&name), compressed(&fs::read(&plain).unwrap())).unwrap();
            let written = fs::metadata(&plain).unwrap().modified().unwrap();
            let file = File::options().append(true).open(self.path(&name)).unwrap();
            file.set_modified(written).unwrap();
            fs::remove_file(plain).unwrap();
            self.note(format!("compressed {name}"));
            self.rotated[i].name = name;
            self.rotated[i].is_compressed = true;
        }
    }

    fn complete_if_of(&mut self, generation: usize) {
        if self.partial.as_ref().is_some_and(|(of, ..)| *of == generation) {
            self.complete();
        }
    }

    fn pull(&mut self, reader: &mut dyn Reader) {
        // A writer that had the file open during the rename writes there for one more pull at
        // most.
        let is_late =
            self.partial.as_ref().is_some_and(|(of, ..)| Some(*of) != self.live) && self.pulls > 0;
        if is_late {
            self.complete();
        }
        let limits = match self.random.below(4) {
            0 => PullLimits { max_events: 1 + self.random.below(4), ..PullLimits::default() },
            1 => PullLimits { max_bytes: 1 + self.random.below(200), ..PullLimits::default() },
            _ => PullLimits::default(),
        };
        let fails = self.random.one_in(5);
        let brought = reader.pull(limits);
        self.note(format!(
            "pull{}: {:?} {:?} {:?}",
            if fails { " in vain" } else { "" },
            brought.lines.iter().map(|(_, text)| text).collect::<Vec<_>>(),
            brought.gaps,
            brought.fragments,
        ));
        if !fails {
            self.take(brought);
            reader.commit();
            self.pulls += 1;
        }
    }

    fn take(&mut self, brought: Brought) {
        for (id, text) in brought.lines {
            if !self.seen.contains_key(&id) {
                self.brought.push(text.clone());
            }
            self.seen.insert(id, text);
        }
        self.seen.extend(brought.long_lines);
        self.stands_in = brought.generation.or(self.stands_in.take());
        self.gaps.extend(brought.gaps);
        for fragment in brought.fragments {
            if !self.fragments.iter().any(|whole| whole.starts_with(&fragment)) {
                self.brought.push(format!("stranger {fragment}"));
            }
        }
    }

    fn step(&mut self, reader: &mut dyn Reader) {
        match self.random.below(20) {
            0..7 => self.append(),
            7..12 => self.pull(reader),
            12 if self.rules.crash => {
                self.note("crash".into());
                reader.crash();
            }
            13 | 14 if self.rules.rotate => self.rotate(),
            15 if self.rules.copy_truncate => self.copy_truncate(reader),
            16 if self.rules.truncate => self.truncate(),
            17 if self.rules.remove => self.remove(),
            18 | 19 if self.rules.compress => self.compress(),
            _ => self.complete(),
        }
    }

    /// Reads until nothing changes, appending a line now and then, because some data is read only
    /// once another line follows.
    fn drain(&mut self, reader: &mut dyn Reader) {
        self.finish_compression();
        self.complete();
        for _ in 0..3 {
            let (generation, text, line) = self.new_line();
            self.write(generation, &line);
            self.wrote(generation, text, &line);
            let mut idle = 0;
            while idle < 2 {
                let before = (self.seen.len(), self.gaps.len());
                let brought = reader.pull(PullLimits::default());
                let more = brought.more;
                self.note(format!(
                    "drain: {:?}",
                    brought.lines.iter().map(|l| &l.1).collect::<Vec<_>>()
                ));
                self.take(brought);
                reader.commit();
                let is_idle = !more && before == (self.seen.len(), self.gaps.len());
                idle = if is_idle { idle + 1 } else { 0 };
            }
        }
    }

    /// The deviations from a perfect reader.
    fn violation(&self) -> Option<String> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for text in self.seen.values() {
            *counts.entry(text).or_default() += 1;
        }
        let mut known = BTreeSet::from([OPENED]);
        // The first line of a generation is read before the second.
        let began = |of: &&Generation| of.lines.first().is_some_and(|line| line.text == OPENED);
        let is_read = |of: &&Generation| {
            of.lines.get(1).is_some_and(|line| counts.contains_key(line.text.as_str()))
        };
        let begun = self.generations.iter().filter(began);
        let (all, read) = (begun.clone().count(), begun.filter(is_read).count());
        let opened = counts.get(OPENED).copied().unwrap_or(0);
        if opened < read || opened > all {
            return Some(format!("{OPENED} is there {opened} times: {read} of {all} were read"));
        }
        for (number, of) in self.generations.iter().enumerate() {
            let texts = of.lines.iter().map(|line| line.text.as_str());
            let texts: BTreeSet<&str> = texts.filter(|text| *text != OPENED).collect();
            for text in &texts {
                known.insert(*text);
                let lines: Vec<_> = of.lines.iter().filter(|line| line.text == *text).collect();
                let seen = counts.get(text).copied().unwrap_or(0);
                if seen > lines.len() {
                    return Some(format!("{text} is there {seen} times of {}", lines.len()));
                }
                let lost: Vec<_> = lines
                    .iter()
                    .filter_map(|line| line.destroyed.map(|told| (line.offset, told)))
                    .collect();
                if lines.len() - seen > lost.len() {
                    return Some(format!("{text} is lost, though it could be read"));
                }
                let generation = self.identity(number);
                let told = |offset: u64| {
                    self.gaps.iter().any(|(of, from)| *of == generation && *from <= offset)
                };
                // Any of several equal lines may be the one that was read.
                let excused = lost.iter().filter(|(at, can_be_told)| !can_be_told || told(*at));
                if self.rules.gaps && lines.len() - seen > excused.count() {
                    return Some(format!("{text} is lost, and nothing says so"));
                }
            }
            let order: Vec<_> =
                self.brought.iter().filter(|text| texts.contains(text.as_str())).collect();
            if !order.is_sorted() {
                return Some(format!("out of order: {order:?}"));
            }
        }
        // An abandoned line may already exceed the limit.
        let is_fragment =
            |text: &str| self.fragments.iter().any(|whole| word(whole.as_bytes()) == text);
        let mut all = self.brought.iter().chain(self.seen.values());
        let stranger = all.find(|text| !known.contains(text.as_str()) && !is_fragment(text));
        stranger.map(|text| format!("{text} was never written"))
    }
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs one schedule; an error describes the deviation and the steps that led to it.
fn run(
    seed: u64,
    rules: Rules,
    reader: impl FnOnce(&Path) -> Box<dyn Reader>,
) -> Result<World, String> {
    let mut world = World::new(seed, rules);
    let mut reader = reader(&world.live_path());
    let steps = 5 + world.random.below(45);
    for _ in 0..steps {
        world.step(&mut *reader);
    }
    world.drain(&mut *reader);
    match world.violation() {
        None => Ok(world),
        Some(what) => Err(format!("{what}\nDEZKY_TAIL_SEED={seed}\n{}", world.log.join("\n"))),
    }
}

#[expect(clippy::disallowed_methods, reason = "how many schedules is the caller's choice")]
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

fn real(path: &Path) -> Box<dyn Reader> {
    Box::new(Real::new(path))
}

/// The schedules are split into parts that run in parallel.
const PARTS: u64 = 4;

/// Whatever happens to the files, no line is lost unreported or returned twice.
fn schedules(part: u64) {
    schedules_of(EVERYTHING, part);
}

fn schedules_of(rules: Rules, part: u64) {
    let seeds: Vec<u64> = match number("DEZKY_TAIL_SEED") {
        Some(seed) => vec![seed],
        None => (part..number("DEZKY_TAIL_SCHEDULES").unwrap_or(2_000))
            .step_by(usize::try_from(PARTS).unwrap())
            .collect(),
    };
    let (mut lines, mut gaps, mut told, mut unknowable) = (0, 0, 0, 0);
    let mut failed = Vec::new();
    for seed in &seeds {
        let world = match run(*seed, rules, real) {
            Ok(world) => world,
            Err(e) => {
                failed.push(e);
                continue;
            }
        };
        lines += world.seen.len();
        gaps += world.gaps.len();
        for line in world.generations.iter().flat_map(|of| &of.lines) {
            told += usize::from(line.destroyed == Some(true));
            unknowable += usize::from(line.destroyed == Some(false));
        }
    }
    // The shortest one is the easiest to understand.
    failed.sort_by_key(String::len);
    if let Some(shortest) = failed.first() {
        let of = |e: &String| e.lines().take(2).collect::<Vec<_>>().join(", ");
        let all: Vec<_> = failed.iter().map(of).collect();
        panic!("{} of {} schedules:\n{}\n\n{shortest}", failed.len(), seeds.len(), all.join("\n"));
    }
    println!("{lines} lines, {gaps} gaps, destroyed unread: {told} told, {unknowable} unknowable");
    // The schedules cover every case.
    if seeds.len() >= 500 && rules.gaps {
        assert!(lines > 5_000 && gaps > 100 && told > 100, "{lines} {gaps} {told}");
    }
}

#[test]
fn nothing_is_lost_in_silence_and_nothing_comes_twice_1() {
    schedules(0);
}

#[test]
fn nothing_is_lost_in_silence_and_nothing_comes_twice_2() {
    schedules(1);
}

#[test]
fn nothing_is_lost_in_silence_and_nothing_comes_twice_3() {
    schedules(2);
}

#[test]
fn nothing_is_lost_in_silence_and_nothing_comes_twice_4() {
    schedules(3);
}

#[test]
fn generations_that_begin_alike_are_told_apart() {
    schedules_of(ALIKE, number("DEZKY_TAIL_PART").unwrap_or(0));
}

/// Regression: a position within the generations' common beginning was looked up in the wrong
/// generation, or not found in the copy that contains it.
#[test]
fn the_generation_is_found_that_was_being_read() {
    let seeds = [
        506, 802, 897, 1152, 1310, 1366, 1613, 1639, 1837, 1868, 1938, 2113, 2425, 2465, 2742, 7592,
    ];
    for seed in seeds {
        run(seed, ALIKE, real).unwrap_or_else(|e| panic!("{e}"));
    }
    // If the schedules change, other seeds must be found.
    let shows = |seed: &&u64| run(**seed, ALIKE, by_place).is_err();
    let shown = seeds.iter().filter(shows).count();
    assert!(shown * 2 > seeds.len(), "only {shown} of the seeds show a wrong generation");
}

/// Returns whether a schedule exposes the faulty reader. Panics if the tail fails one.
fn is_found_out(rules: Rules, naive: impl Fn(&Path) -> Box<dyn Reader>) -> bool {
    let mut found = false;
    for seed in 0..150 {
        if let Err(e) = run(seed, rules, real) {
            panic!("{e}");
        }
        found |= run(seed, rules, &naive).is_err();
    }
    found
}

/// The complete lines from an offset on, each with its offset, and the offset of their end.
fn lines_from(bytes: &[u8], from: u64) -> (Vec<(u64, Vec<u8>)>, u64) {
    let mut at = usize::try_from(from).unwrap().min(bytes.len());
    let mut lines = Vec::new();
    while let Some(end) = bytes[at..].iter().position(|b| *b == b'\n') {
        lines.push((at as u64, bytes[at..at + end].to_vec()));
        at += end + 1;
    }
    (lines, at as u64)
}

fn inode(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
}

/// Continues at the known offset of an inode. Restarts if the file is shorter and
/// `looks_at_the_size` is set.
struct ByInode {
    path: PathBuf,
    looks_at_the_size: bool,
    committed: HashMap<u64, u64>,
    pending: HashMap<u64, u64>,
}

impl Reader for ByInode {
    fn pull(&mut self, _: PullLimits) -> Brought {
        let mut brought = Brought::default();
        self.pending = self.committed.clone();
        let rotated = (1..=ROTATED).rev().map(|n| self.path.with_file_name(format!("app.log.{n}")));
        for path in rotated.chain([self.path.clone()]) {
            let Ok(mut file) = File::open(path) else { continue };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let inode = inode(&file);
            let mut from = self.committed.get(&inode).copied().unwrap_or(0);
            if self.looks_at_the_size && from > bytes.len() as u64 {
                from = 0;
            }
            let (lines, end) = lines_from(&bytes, from);
            let first = bytes.split(|b| *b == b'\n').next().unwrap_or_default().to_vec();
            for (offset, line) in lines {
                let id = format!("{}:{offset}", hex::encode(Sha256::digest(&first)));
                brought.lines.push((id, word(&line)));
            }
            self.pending.insert(inode, end);
        }
        brought
    }

    fn commit(&mut self) {
        self.committed = self.pending.clone();
    }

    fn crash(&mut self) {}
}

fn by_inode(path: &Path, looks_at_the_size: bool) -> Box<dyn Reader> {
    let path = path.to_owned();
    Box::new(ByInode {
        path,
        looks_at_the_size,
        committed: HashMap::new(),
        pending: HashMap::new(),
    })
}

#[test]
fn a_reader_by_inode_and_offset_is_found_out() {
    let rules = Rules { rotate: true, remove: true, truncate: true, crash: true, ..NOTHING };
    assert!(is_found_out(rules, |path| by_inode(path, false)));
    // With nothing but appends it is correct, so the schedules expose the intended fault.
    assert!(!is_found_out(NOTHING, |path| by_inode(path, false)));
}

#[test]
fn a_reader_that_only_looks_at_the_size_is_found_out() {
    let rules = Rules { truncate: true, ..NOTHING };
    assert!(is_found_out(rules, |path| by_inode(path, true)));
    assert!(!is_found_out(NOTHING, |path| by_inode(path, true)));
}

/// Looks for its last line in the newest file that has it at the same offset, and continues there
/// and in newer files.
struct ByPlace {
    path: PathBuf,
    committed: Place,
    pending: Place,
}

/// A position: the number of files begun, and the end of a line in the last one.
#[derive(Clone, Default)]
struct Place {
    files: usize,
    offset: usize,
    line: Vec<u8>,
}

impl Place {
    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.get(..self.offset).is_some_and(|read| read.ends_with(&self.line))
    }
}

impl ByPlace {
    /// The files, the newest first.
    fn files(&self) -> Vec<Vec<u8>> {
        let read = |name: String| {
            let path = self.path.with_file_name(name);
            let mut bytes = Vec::new();
            let gz = File::open(path.with_added_extension("gz"));
            let is_whole = gz.is_ok_and(|gz| GzDecoder::new(gz).read_to_end(&mut bytes).is_ok());
            if is_whole { Some(bytes) } else { fs::read(path).ok() }
        };
        let rotated = (1..=ROTATED).map(|n| format!("app.log.{n}"));
        std::iter::once("app.log".to_owned()).chain(rotated).filter_map(read).collect()
    }
}

impl Reader for ByPlace {
    fn pull(&mut self, limits: PullLimits) -> Brought {
        let mut brought = Brought::default();
        let mut place = self.committed.clone();
        let files = self.files();
        let known = files.iter().position(|bytes| place.files > 0 && place.is_in(bytes));
        let oldest = known.unwrap_or(files.len().saturating_sub(1));
        for (age, bytes) in files.iter().enumerate().take(oldest + 1).rev() {
            let is_known = known == Some(age);
            let (lines, _) = lines_from(bytes, if is_known { place.offset as u64 } else { 0 });
            if !is_known && !lines.is_empty() && brought.lines.len() < limits.max_events {
                place = Place { files: place.files + 1, ..Place::default() };
            }
            for (offset, line) in lines {
                if brought.lines.len() == limits.max_events {
                    brought.more = true;
                    break;
                }
                brought.lines.push((format!("{}:{offset}", place.files), word(&line)));
                place.line = [&line[..], b"\n"].concat();
                place.offset = usize::try_from(offset).unwrap() + place.line.len();
            }
            if brought.more {
                break;
            }
        }
        self.pending = place;
        brought
    }

    fn commit(&mut self) {
        self.committed = self.pending.clone();
    }

    fn crash(&mut self) {}
}

fn by_place(path: &Path) -> Box<dyn Reader> {
    let (path, committed, pending) = (path.to_owned(), Place::default(), Place::default());
    Box::new(ByPlace { path, committed, pending })
}

#[test]
fn a_reader_that_takes_any_generation_with_its_last_line_is_found_out() {
    let rules = Rules { rotate: true, compress: true, ..NOTHING };
    assert!(is_found_out(Rules { alike: true, ..rules }, by_place));
    assert!(!is_found_out(rules, by_place));
}

/// The tail, except that lines are identified by their content.
struct ByContent(Real);

impl Reader for ByContent {
    fn pull(&mut self, limits: PullLimits) -> Brought {
        let mut brought = self.0.pull(limits);
        for (id, text) in &mut brought.lines {
            id.clone_from(text);
        }
        brought
    }

    fn commit(&mut self) {
        self.0.commit();
    }

    fn crash(&mut self) {
        self.0.crash();
    }
}

#[test]
fn a_reader_that_identifies_lines_by_content_is_found_out() {
    let naive = |path: &Path| Box::new(ByContent(Real::new(path))) as Box<dyn Reader>;
    assert!(is_found_out(Rules { equal_lines: true, ..NOTHING }, naive));
    assert!(!is_found_out(NOTHING, naive));
}

/// The tail, except that a line still without an end at the second read is returned as it is.
struct Impatient {
    real: Real,
    waiting: Option<Vec<u8>>,
}

impl Reader for Impatient {
    fn pull(&mut self, limits: PullLimits) -> Brought {
        let mut brought = self.real.pull(limits);
        let bytes = fs::read(&self.real.path).unwrap_or_default();
        let rest = bytes.rsplit(|b| *b == b'\n').next().unwrap_or_default().to_vec();
        if !rest.is_empty() && self.waiting.as_ref() == Some(&rest) {
            brought.lines.push((format!("flushed {}", hex::encode(&rest)), word(&rest)));
        }
        self.waiting = Some(rest);
        brought
    }

    fn commit(&mut self) {
        self.real.commit();
    }

    fn crash(&mut self) {
        self.real.crash();
    }
}

#[test]
fn a_reader_that_flushes_partial_lines_is_found_out() {
    let naive = |path: &Path| {
        Box::new(Impatient { real: Real::new(path), waiting: None }) as Box<dyn Reader>
    };
    assert!(is_found_out(Rules { partial: true, ..NOTHING }, naive));
    assert!(!is_found_out(NOTHING, naive));
}
