use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use dezky::Access;
use dezky_core::store::Head;
use dezky_core::verify::{ExpectedHead, Verdict};
use serde_json::json;

use super::print;
use crate::config::Settings;
use crate::failure::Failure;
use crate::store;

/// The interval at which the progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// `verify`: exit status 1 if the log differs from what was recorded, 2 if it can't be read.
pub(crate) async fn run(
    settings: &Settings,
    expected: Option<ExpectedHead>,
    as_json: bool,
) -> Result<(), Failure> {
    let config = settings.store()?;
    // Status 1 means that the log differs.
    let database = store::open_log(&config, Access::Read)
        .await
        .map_err(|failure| Failure::usage(failure.to_string()))?;
    let mut progress = Progress::new();
    let log = database.log();
    let verdict =
        dezky_core::verify::verify(&*log, expected, |verified| progress.show(verified)).await;
    progress.end();
    database.close().await;
    let verdict =
        verdict.map_err(|error| Failure::usage(format!("store {}: {error}", config.url)))?;
    report(&verdict, as_json)
}

fn report(verdict: &Verdict, as_json: bool) -> Result<(), Failure> {
    let head = last_of(&verdict.head);
    if as_json {
        let report = json!({
            "ok": verdict.problem().is_none(),
            "verified": verdict.verified,
            "head": head.as_ref().map(|(seq, hash)| json!({ "seq": seq, "hash": hash })),
            "finding": verdict.finding,
            "anomalies": verdict.anomalies,
        });
        print(&format!("{report}\n"))?;
    } else {
        for anomaly in &verdict.anomalies {
            print(&format!("{anomaly}: {}\n", anomaly.fix))?;
        }
        match (&verdict.finding, head) {
            (Some(found), _) => print(&format!("{found}\n"))?,
            (None, _) if !verdict.anomalies.is_empty() => {}
            (None, Some((seq, hash))) => {
                print(&format!("ok: {} events, head {seq}:{hash}\n", verdict.verified))?;
            }
            (None, None) => print("ok: 0 events, no head yet\n")?,
        }
    }
    match &verdict.finding {
        Some(found) => Err(Failure::failed(format!(
            "the log differs from what was recorded, from seq {} on: keep it as it is, and compare it with a backup",
            found.seq
        ))),
        None if !verdict.anomalies.is_empty() => Err(Failure::failed(
            "the rows are as recorded, but lists may not show all of them: keep a copy of the database as evidence, then fix each line above",
        )),
        None => Ok(()),
    }
}

/// The position and the hash of the last event, as `--expect-head` takes them.
pub(crate) fn last_of(head: &Head) -> Option<(u64, String)> {
    Some((head.next_seq.checked_sub(1)?, hex::encode(head.hash)))
}

/// Shows the progress on a terminal.
struct Progress {
    shown: Instant,
    is_terminal: bool,
    has_shown: bool,
}

impl Progress {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { shown: Instant::now(), is_terminal, has_shown: false }
    }

    fn show(&mut self, verified: u64) {
        if self.is_terminal && self.shown.elapsed() >= PROGRESS_INTERVAL {
            self.shown = Instant::now();
            self.has_shown = true;
            let _ = write!(std::io::stderr(), "\r{verified} events verified …");
        }
    }

    fn end(&self) {
        if self.has_shown {
            let _ = writeln!(std::io::stderr());
        }
    }
}
