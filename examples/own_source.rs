//! Your own source: a door that keeps a list of people who entered.
//!
//! A source answers one question: which events come after this cursor? A pump asks it, and commits
//! each batch *together with* the new cursor: wherever the process dies, nothing is lost or stored
//! twice.
//!
//! `cargo run -p dezky-examples --example own_source`

use async_trait::async_trait;
use dezky::core::source::{IngestSource, Pull, PullLimits, QuarantineItem};
use dezky::{Actor, NewEvent, Platform, Pump, PumpConfig, Result, Timestamp};

/// The door's list: time and name.
const LIST: &str =
    "2026-09-01T08:00:00Z ana\n2026-09-01T08:02:10Z ben\nsmudged\n2026-09-01T08:05:00Z ana\n";

struct Door;

#[async_trait]
impl IngestSource for Door {
    fn name(&self) -> &'static str {
        "door"
    }

    /// The cursor's meaning is up to the source: here, the number of lines read.
    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        let from: usize = cursor.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut pull = Pull::default();
        for (number, line) in LIST.lines().enumerate().skip(from).take(limits.max_events) {
            match read(number, line) {
                Some(event) => pull.events.push(event.into()),
                // A bad line neither stops the others nor goes unnoticed.
                None => pull.quarantine.push(QuarantineItem {
                    source: "door".into(),
                    key: format!("line:{number}"),
                    reason: "unreadable".into(),
                    detail: "a line is a time, a space and a name".into(),
                    raw: line.into(),
                    at: Timestamp::MIN,
                }),
            }
        }
        let to = from + pull.events.len() + pull.quarantine.len();
        pull.cursor = (to > from).then(|| to.to_string());
        pull.more = to < LIST.lines().count();
        Ok(pull)
    }
}

fn read(number: usize, line: &str) -> Option<NewEvent> {
    let (at, name) = line.split_once(' ')?;
    Some(NewEvent {
        at: Some(Timestamp::parse(at)?),
        source: "door".into(),
        // The source's id of the event, by which it is stored only once.
        external_id: Some(format!("line:{number}")),
        ..NewEvent::new("door.opened", Actor::user(name))
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let platform = Platform::open("memory://").await?;
    let mut pump = Pump::new(Box::new(Door), platform.intake.clone(), PumpConfig::default());
    let tick = pump.tick().await?;
    assert_eq!((tick.taken.stored, tick.taken.quarantined), (3, 1));
    // Nothing new: a second tick adds nothing. `pump.run(shutdown)` keeps ticking.
    assert_eq!(pump.tick().await?.taken.stored, 0);
    println!("{} stored, {} quarantined", tick.taken.stored, tick.taken.quarantined);
    Ok(())
}
