//! The oCIS tail through the pump into a real store.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use dezky_core::Result;
use dezky_core::rt::TokioRuntime;
use dezky_core::source::{IngestSource, PullLimits, TenantDirectory};
use dezky_core::store::AppendOptions;
use dezky_ingest::ocis::{OcisConfig, OcisTail};
use dezky_ingest::{Pump, PumpConfig, Tick};
use serde_json::json;

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
            .ingest(pull.events, pull.quarantine, AppendOptions::default())
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
            place.intake().ingest(pull.events, vec![], AppendOptions::default()).await.unwrap();
        assert_eq!((taken.stored, taken.duplicates, taken.conflicts), (0, 6, 0), "no conflict");
        assert_eq!(place.count().await, count);
    });
}

struct Acme;

#[async_trait::async_trait]
impl TenantDirectory for Acme {
    async fn by_slug(&self, slug: &str) -> Result<Option<String>> {
        Ok(["acme", "beta"].contains(&slug).then(|| slug.to_owned()))
    }

    async fn by_domain(&self, _domain: &str) -> Result<Option<String>> {
        Ok(None)
    }

    async fn by_user(&self, _system: &str, id: &str) -> Result<Option<String>> {
        Ok((id == "alice").then(|| "beta".to_owned()))
    }
}

/// A line about the space `st$<space>` whose actor nobody knows.
fn about_space(action: &str, space: &str, name: &str, n: usize) -> String {
    let line = match action {
        "file_create" => json!({"RemoteAddr": "", "Time": "2026-11-22T00:00:00Z", "Message": "",
                                "Action": action, "Path": format!("./{n}"),
                                "FileID": format!("st${space}!node/{n}")}),
        "space_renamed" => json!({"RemoteAddr": "", "Time": "2026-11-22T00:00:00Z", "Message": "",
                                  "Action": action, "SpaceID": format!("st${space}!{space}"),
                                  "NewName": name}),
        _ => json!({"RemoteAddr": "", "Time": "2026-11-22T00:00:00Z", "Message": "",
                    "Action": action, "SpaceID": format!("st${space}"), "Name": name,
                    "Type": "project"}),
    };
    format!("{line}\n")
}

/// The tenants that a replica with its own tail finds for the existing lines.
async fn tenants_of_new(place: &Place, pump: &mut Pump) -> Vec<(Option<String>, String)> {
    let from = place.count().await;
    drain(pump).await;
    let mut events = place.of_source("ocis").await;
    events.retain(|stored| stored.seq >= from);
    events.sort_by_key(|stored| stored.seq);
    events
        .into_iter()
        .map(|stored| {
            let by = stored.event.metadata.to_value()["_dezky"]["tenantBy"].clone();
            (stored.event.tenant_slug, by.as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

#[test]
fn names_of_spaces_hold_after_a_restart_and_on_another_replica() {
    run(async {
        let place = Place::new().await;
        let path = place.path("audit.log");
        let replica = |spaces: &[(&str, &str)]| {
            let mut config = OcisConfig::new(&path);
            let own = |(id, slug): &(&str, &str)| ((*id).to_owned(), (*slug).to_owned());
            config.spaces = spaces.iter().map(own).collect();
            let tail = OcisTail::new(config, Arc::new(TokioRuntime)).unwrap();
            let tail = tail.with_log(Arc::clone(&place.store));
            let intake = place.intake().with_directory(Arc::new(Acme));
            Pump::new(Box::new(tail), intake, PumpConfig::default())
        };
        let is = |slug: &str, by: &str| (Some(slug.to_owned()), by.to_owned());
        let none = (None, "none".to_owned());

        let (mut first, mut second) = (replica(&[]), replica(&[]));
        write(&path, about_space("file_create", "s1", "", 0).as_bytes());
        write(&path, about_space("space_created", "s1", "acme", 0).as_bytes());
        write(&path, about_space("file_create", "s1", "", 1).as_bytes());
        let named = is("acme", "space_name");
        assert_eq!(
            tenants_of_new(&place, &mut first).await,
            [none.clone(), named.clone(), named.clone()]
        );
        // In a later pull, after a restart, on another replica.
        for (n, pump) in [&mut first, &mut replica(&[]), &mut second].into_iter().enumerate() {
            write(&path, about_space("file_create", "s1", "", 2 + n).as_bytes());
            assert_eq!(tenants_of_new(&place, pump).await, std::slice::from_ref(&named), "{n}");
        }
        // The first replica did not read the line that changed the name.
        write(&path, about_space("space_renamed", "s1", "beta", 0).as_bytes());
        assert_eq!(tenants_of_new(&place, &mut second).await, [is("beta", "space_name")]);
        write(&path, about_space("file_create", "s1", "", 7).as_bytes());
        assert_eq!(tenants_of_new(&place, &mut first).await, [is("beta", "space_name")]);
        // The map beats the name; a personal space is its user's.
        write(&path, about_space("file_create", "s1", "", 8).as_bytes());
        write(&path, about_space("file_create", "alice", "", 9).as_bytes());
        let mut mapped = replica(&[("s1", "acme")]);
        assert_eq!(
            tenants_of_new(&place, &mut mapped).await,
            [is("acme", "space_map"), is("beta", "user")]
        );
        place.assert_whole().await;
    });
}
