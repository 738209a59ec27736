//! The simulated world of a seed: dice, the rates of faults, and a record of every commit, against
//! which the guarantees are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dezky_core::testkit::ManualRuntime;
use dezky_core::{ErrorKind, PLATFORM_SOURCE, Timestamp};

use super::chaos::Commit;
use super::upstream::{Kind, SOURCE, Upstream, position};

/// `SplitMix64`.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5bd1_e995_7b7d_159d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(super) fn in_thousand(&mut self, chances: usize) -> bool {
        chances > 0 && self.below(1_000) < chances
    }

    pub(super) fn millis(&mut self, below: usize) -> Duration {
        Duration::from_millis(self.below(below) as u64)
    }
}

/// A point at which a fault can be injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    Begin,
    Read,
    Write,
    Commit,
    Committed,
    Pull,
    Crash,
    Stop,
    Jump,
    Acknowledged,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    None,
    Yield,
    Hang(Duration),
    Fail(ErrorKind),
}

/// The rate of each fault, per thousand. Each seed draws its own rates, many of them 0, so that
/// frequent faults don't hide rare combinations.
pub(super) struct Rates {
    pub(super) yields: usize,
    pub(super) hangs: usize,
    pub(super) fails: usize,
    /// Only at a commit, before or after it.
    pub(super) commit_fails: usize,
    pub(super) pull_hangs: usize,
    pub(super) pull_fails: usize,
    /// The upper bound of a hang, in milliseconds.
    pub(super) hang_max: usize,
    pub(super) crashes: usize,
    pub(super) jumps: usize,
}

impl Rates {
    fn roll(dice: &mut Dice) -> Self {
        Self {
            yields: dice.pick(&[20, 200, 500]),
            hangs: dice.pick(&[0, 5, 40]),
            fails: dice.pick(&[0, 0, 10, 60]),
            commit_fails: dice.pick(&[0, 20, 100, 300]),
            pull_hangs: dice.pick(&[0, 50, 300]),
            pull_fails: dice.pick(&[0, 0, 50, 300]),
            hang_max: dice.pick(&[50, 2_000, 20_000]),
            crashes: dice.pick(&[0, 3, 15, 50]),
            jumps: dice.pick(&[0, 10, 60]),
        }
    }
}

/// A violated guarantee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// The cursor has passed an item that is neither in the log nor in the quarantine.
    Ahead(usize),
    /// An event is in the log twice.
    Twice(String),
    /// An event follows one that the source returned later.
    Order(usize),
    /// A pump wrote after losing the lease to another one.
    Fenced(u64),
    /// A `seq` was skipped or reused.
    Gap(u64),
    /// A body was acknowledged, but its event is not in the log.
    Unstored(String),
    /// The final content of the log differs from the committed content.
    Differs(String),
    /// Long after the last fault, something is still missing.
    Stuck(String),
}

/// The trace of the run: a hash and, on request, readable lines.
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) lines: Option<Vec<String>>,
}

impl Trace {
    fn note(&mut self, now: Timestamp, who: u64, what: u64, words: impl FnOnce() -> String) {
        for number in [now.as_millis().cast_unsigned(), who, what] {
            self.hash = (self.hash ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{now} #{who} {}", words()));
        }
    }
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) rates: Rates,
    pub(super) calm: bool,
    pub(super) upstream: Upstream,
    pub(super) record: Record,
    pub(super) trace: Trace,
}

/// A handle to the world and its time, shared by all simulated parts.
#[derive(Clone)]
pub(super) struct Sim {
    world: Arc<Mutex<World>>,
    runtime: ManualRuntime,
}

impl Sim {
    pub(super) fn new(seed: u64, recording: bool) -> Self {
        let mut dice = Dice::new(seed);
        let rates = Rates::roll(&mut dice);
        let upstream = Upstream::roll(&mut dice);
        let trace =
            Trace { hash: 0xcbf2_9ce4_8422_2325 ^ seed, lines: recording.then(Vec::default) };
        let record = Record::default();
        let world = World { dice, rates, calm: false, upstream, record, trace };
        Self { world: Arc::new(Mutex::new(world)), runtime: ManualRuntime::new(seed) }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn runtime(&self) -> &ManualRuntime {
        &self.runtime
    }
}

impl World {
    pub(super) fn draw(&mut self, now: Timestamp, who: u64, point: Point) -> Fault {
        let fault = self.fault(point);
        if !matches!(fault, Fault::None | Fault::Yield) {
            self.note(now, who, point, || format!("{fault:?}"));
        }
        fault
    }

    fn fault(&mut self, point: Point) -> Fault {
        let Self { dice, rates, calm, .. } = self;
        let yields = dice.in_thousand(rates.yields);
        let (hangs, fails) = match point {
            _ if *calm => (0, 0),
            Point::Pull => (rates.pull_hangs, rates.pull_fails),
            Point::Commit | Point::Committed => (rates.hangs, rates.fails.max(rates.commit_fails)),
            _ => (rates.hangs, rates.fails),
        };
        if dice.in_thousand(fails) {
            Fault::Fail(match point {
                Point::Pull => ErrorKind::SourceUnavailable,
                // Not retryable.
                _ if dice.in_thousand(100) => ErrorKind::StoreCorrupt,
                _ => ErrorKind::StoreUnavailable,
            })
        } else if dice.in_thousand(hangs) {
            Fault::Hang(dice.millis(rates.hang_max))
        } else if yields {
            Fault::Yield
        } else {
            Fault::None
        }
    }

    pub(super) fn note(
        &mut self,
        now: Timestamp,
        who: u64,
        point: Point,
        words: impl FnOnce() -> String,
    ) {
        self.trace.note(now, who, point as u64, || format!("{point:?}: {}", words()));
    }

    /// Checks a commit at once, before any other part runs.
    pub(super) fn committed(&mut self, now: Timestamp, commit: Commit) {
        let hash = commit.rows.iter().fold(commit.rows.len() as u64, |hash, row| {
            let name = row.name.as_deref().unwrap_or_default();
            name.bytes().fold(hash, |hash, b| hash.wrapping_mul(31) ^ u64::from(b))
        });
        self.trace.note(now, commit.who, hash, || format!("commits {commit}"));
        let found = self.record.judge(commit, &self.upstream);
        if let (Err(violation), None) = (found, &self.record.violation) {
            self.record.violation = Some(violation);
        }
    }
}

/// The expected log after all commits so far.
#[derive(Default)]
pub(super) struct Record {
    pub(super) violation: Option<Violation>,
    pub(super) next_seq: u64,
    /// The numbers of the source's events in the log, in the log's order.
    pub(super) stored: Vec<usize>,
    /// The times of the quarantined items; a time identifies its item.
    pub(super) quarantined: BTreeSet<Timestamp>,
    /// The identities of events from other sources.
    others: BTreeSet<(String, String)>,
    pub(super) position: usize,
    /// The lease's current token, and the last one that each instance acquired.
    token: u64,
    tokens: BTreeMap<u64, u64>,
}

impl Record {
    pub(super) fn has(&self, source: &str, external_id: &str) -> bool {
        self.others.contains(&(source.to_owned(), external_id.to_owned()))
    }

    pub(super) fn notices(&self) -> usize {
        self.others.iter().filter(|(source, _)| source == PLATFORM_SOURCE).count()
    }

    fn judge(&mut self, commit: Commit, upstream: &Upstream) -> Result<(), Violation> {
        if let Some(lease) = &commit.lease {
            self.token = lease.token;
            if commit.takes {
                self.tokens.insert(commit.who, lease.token);
            }
        }
        let ingests = commit.cursor.is_some() || commit.rows.iter().any(|r| r.source == SOURCE);
        if ingests && self.tokens.get(&commit.who) != Some(&self.token) {
            return Err(Violation::Fenced(commit.who));
        }
        for row in commit.rows {
            if row.seq != self.next_seq {
                return Err(Violation::Gap(row.seq));
            }
            self.next_seq += 1;
            if row.source != SOURCE {
                let external_id = row.external_id.unwrap_or_default();
                if !self.others.insert((row.source, external_id.clone())) {
                    return Err(Violation::Twice(external_id));
                }
                continue;
            }
            let number = row.name.and_then(|name| name.parse().ok()).unwrap_or(usize::MAX);
            match self.stored.last() {
                _ if self.stored.contains(&number) => {
                    return Err(Violation::Twice(number.to_string()));
                }
                Some(last) if *last > number => return Err(Violation::Order(number)),
                _ => self.stored.push(number),
            }
        }
        self.quarantined.extend(commit.quarantined);
        let Some(cursor) = commit.cursor else { return Ok(()) };
        self.position = position(Some(&cursor));
        for (number, kind) in upstream.items[..self.position].iter().enumerate() {
            let kept = match kind {
                Kind::Event => self.stored.binary_search(&number).is_ok(),
                Kind::Odd | Kind::Refused => self.quarantined.contains(&Upstream::at(number)),
                Kind::Read => true,
            };
            if !kept {
                return Err(Violation::Ahead(number));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            write!(f, "{}={}:{} ", row.seq, row.source, row.name.as_deref().unwrap_or("-"))?;
        }
        if !self.quarantined.is_empty() {
            write!(f, "quarantine {} ", self.quarantined.len())?;
        }
        if let Some(cursor) = &self.cursor {
            write!(f, "cursor {cursor:.8} ")?;
        }
        match &self.lease {
            Some(lease) => write!(f, "lease {} until {}", lease.token, lease.expires_at),
            None => Ok(()),
        }
    }
}
