//! The oCIS tail through the pump into a real store.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::source::{IngestSource, PullLimits};
use dezky_core::store::AppendOptions;
use dezky_ingest::ocis::{OcisConfig, OcisTail};
use dezky_ingest::{Pump, PumpConfig, Tick};

use crate::{Place, data, open, run};

fn pump(place: &Place, path: &Path) -> Pump {
    let tail = OcisTail::new(OcisConfig::new(path), Arc::new(TokioRuntime)).unwrap();
    Pump::new(Box::new(tail), place.intake(), PumpConfig::default())
}

async fn drain(pump: &mut Pump) -> Tick {
    let mut total = Tick::default();
    loop {
        let tick = pump.tick().await.unwrap();
        total.taken += tick.taken;
        total.skipped += tick.skipped;
        if !tick.more {
            pump.release().await;
            return total;
        }
    }
}

fn write(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn every_line_of_the_fixtures_is_accounted_for() {
    run(async {
        for (name, stored, skipped, quarantined) in [
            ("first-generation.log", 46, 4, 0),
            ("enospc-glued.log", 15, 0, 1),
            ("event-shape.log", 6, 2, 0),
        ] {
            let place = Place::new().await;
            let path = place.path("audit.log");
            fs::write(&path, data(&format!("ocis/{name}"))).unwrap();
            let tick = drain(&mut pump(&place, &path)).await;
            let got = (tick.taken.stored, tick.skipped, tick.taken.quarantined);
            assert_eq!(got, (stored, skipped, quarantined), "{name}");
            assert_eq!(place.of_source("ocis").await.len(), stored);
            place.assert_whole().await;
        }
    });
}

#[test]
fn a_cursor_that_was_lost_brings_nothing_twice() {
    run(async {
        let place = Place::new().await;
        let path = place.path("audit.log");
        fs::write(&path, data("ocis/first-generation.log")).unwrap();
        drain(&mut pump(&place, &path)).await;
        // A tail that begins at the beginning, into the same log.
        let mut tail = OcisTail::new(OcisConfig::new(&path), Arc::new(TokioRuntime)).unwrap();
        let pull = IngestSource::pull(&mut tail, None, PullLimits::default()).await.unwrap();
        let taken = place
            .intake()
            .take(pull.events, pull.quarantine, AppendOptions::default())
            .await
            .unwrap();
        assert_eq!((taken.stored, taken.duplicates, taken.conflicts), (0, 46, 0));
    });
}

#[test]
fn rotation_and_restart_lose_nothing() {
    run(async {
        let place = Place::new().await;
        let path = place.path("audit.log");
        let lines = data("ocis/first-generation.log");
        let half = lines[..lines.len() / 2].iter().rposition(|b| *b == b'\n').unwrap() + 40;
        // Ends in the middle of a line.
        write(&path, &lines[..half]);
        let before = drain(&mut pump(&place, &path)).await;
        write(&path, &lines[half..]);
        fs::rename(&path, place.path("audit.log.1")).unwrap();
        write(&path, &data("ocis/enospc-glued.log"));
        // Another process, after the rotation.
        let reopened = Place { store: open(place.folder.path()).await, folder: place.folder };
        let after = drain(&mut pump(&reopened, &path)).await;
        assert_eq!(before.taken.stored + after.taken.stored, 46 + 15);
        assert_eq!(after.taken.duplicates, 0);
        assert_eq!(reopened.of_source("ocis").await.len(), 61);
        reopened.assert_whole().await;
    });
}

/// The original deployment: five lines, one of them a download; then one more.
#[test]
fn seed_five_ocis_lines_then_one_more() {
    run(async {
        let place = Place::new().await;
        let path = place.path("audit.log");
        let lines = data("ocis/event-shape.log");
        let lines: Vec<&[u8]> = lines.split_inclusive(|b| *b == b'\n').collect();
        // Created, uploaded, downloaded, moved; then shared.
        let five = [lines[0], lines[1], lines[2], lines[3], lines[5]].concat();
        write(&path, &five);
        let mut pump = pump(&place, &path);
        let tick = drain(&mut pump).await;
        assert_eq!((tick.taken.stored, tick.skipped), (4, 1));
        let cursor = place.store.cursor("ocis").await.unwrap().unwrap();
        let position =
            |cursor: &str| -> usize { cursor.split([':', ' ']).nth(1).unwrap().parse().unwrap() };
        assert_eq!(position(&cursor), five.len(), "the cursor is at the byte position");
        write(&path, lines[6]);
        let tick = drain(&mut pump).await;
        assert_eq!((tick.taken.stored, tick.taken.duplicates), (1, 0), "only the new line is read");
        let cursor = place.store.cursor("ocis").await.unwrap().unwrap();
        assert_eq!(position(&cursor), five.len() + lines[6].len());
    });
}

/// The same lines pulled again, with nothing remembered, add nothing.
#[test]
fn seed_pulled_again_is_silent() {
    run(async {
        let place = Place::new().await;
        let path = place.path("audit.log");
        fs::write(&path, data("ocis/event-shape.log")).unwrap();
        drain(&mut pump(&place, &path)).await;
        let count = place.count().await;
        let mut tail = OcisTail::new(OcisConfig::new(&path), Arc::new(TokioRuntime)).unwrap();
        let pull = IngestSource::pull(&mut tail, None, PullLimits::default()).await.unwrap();
        let taken =
            place.intake().take(pull.events, vec![], AppendOptions::default()).await.unwrap();
        assert_eq!((taken.stored, taken.duplicates, taken.conflicts), (0, 6, 0), "no conflict");
        assert_eq!(place.count().await, count);
    });
}
