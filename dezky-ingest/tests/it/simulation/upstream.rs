//! The simulated upstream system, driven by the seed: it grows, returns batches of any size,
//! repeats events, hangs and fails.

use async_trait::async_trait;
use dezky_core::source::{IngestSource, Pull, PullLimits, QuarantineItem};
use dezky_core::{Actor, NewEvent, Result, Timestamp};

use super::world::{Dice, Point, Sim};

pub(super) const SOURCE: &str = "sim";

/// The time of the first item, and the runtime's start time.
const START_MS: i64 = 1_767_225_600_000;

/// The kind of an upstream item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    /// A known event that the source skips.
    Read,
    /// Not an event: goes to the quarantine.
    Odd,
    /// An event that exceeds one of the log's limits.
    Refused,
}

pub(super) struct Upstream {
    pub(super) items: Vec<Kind>,
    /// The number of items that exist so far.
    pub(super) grown: usize,
    max_batch: usize,
    repeats: usize,
}

impl Upstream {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        use Kind::{Event, Odd, Read, Refused};
        let items = (0..5 + dice.below(16))
            .map(|_| {
                dice.pick(&[Event, Event, Event, Event, Event, Event, Event, Read, Odd, Refused])
            })
            .collect();
        Self {
            items,
            grown: dice.below(4),
            max_batch: dice.pick(&[1, 3, 8]),
            repeats: dice.pick(&[0, 100, 500]),
        }
    }

    pub(super) fn grow(&mut self, by: usize) {
        self.grown = (self.grown + by).min(self.items.len());
    }

    /// The time of an item; unique, so it identifies the item.
    pub(super) fn at(number: usize) -> Timestamp {
        Timestamp::from_millis_clamped(START_MS + i64::try_from(number).unwrap_or(0))
    }

    fn pull(&self, dice: &mut Dice, cursor: Option<&str>, limits: PullLimits) -> Pull {
        let from = position(cursor);
        let size = 1 + dice.below(self.max_batch.min(limits.max_events));
        let to = (from + size).min(self.grown);
        let repeated = if dice.in_thousand(self.repeats) { dice.below(4) } else { 0 };
        let mut pull = Pull { more: to < self.grown || dice.in_thousand(50), ..Pull::default() };
        if to > from || dice.in_thousand(50) {
            // The same position can have different cursors, because a cursor includes other state.
            pull.cursor = Some(format!("{to};{}", "é".repeat(dice.below(8))));
        } else {
            return pull;
        }
        for number in from.saturating_sub(repeated)..to {
            match self.items[number] {
                Kind::Event => pull.events.push(event(number).into()),
                Kind::Read => pull.skipped += 1,
                Kind::Odd => pull.quarantine.push(odd(number)),
                Kind::Refused => {
                    let mut event = event(number);
                    event.external_id = Some(format!("{number}{}", "x".repeat(512)));
                    pull.events.push(event.into());
                }
            }
        }
        pull
    }
}

fn event(number: usize) -> NewEvent {
    NewEvent {
        at: Some(Upstream::at(number)),
        resource_type: Some("item".into()),
        resource_id: Some(number.to_string()),
        source: SOURCE.into(),
        external_id: Some(format!("item-{number}")),
        ..NewEvent::new("sim.happened", Actor::system())
    }
}

fn odd(number: usize) -> QuarantineItem {
    QuarantineItem {
        source: SOURCE.into(),
        key: format!("odd-{number}"),
        reason: "not_json".into(),
        detail: "the item is not JSON".into(),
        raw: b"{".to_vec(),
        at: Upstream::at(number),
    }
}

/// The position of a cursor.
pub(super) fn position(cursor: Option<&str>) -> usize {
    let number = cursor.and_then(|text| text.split_once(';')).map(|(number, _)| number);
    number.map_or(0, |n| n.parse().expect("the cursor is from this source"))
}

/// An instance's view of the system.
pub(super) struct SimSource {
    sim: Sim,
    who: u64,
}

impl SimSource {
    pub(super) fn new(sim: Sim, who: u64) -> Self {
        Self { sim, who }
    }
}

#[async_trait]
impl IngestSource for SimSource {
    fn name(&self) -> &'static str {
        SOURCE
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        self.sim.disturb(self.who, Point::Pull).await?;
        let pull = {
            let world = &mut *self.sim.world();
            world.upstream.pull(&mut world.dice, cursor, limits)
        };
        // The response may be delayed or fail too.
        self.sim.disturb(self.who, Point::Pull).await?;
        Ok(pull)
    }
}
