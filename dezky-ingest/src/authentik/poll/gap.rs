//! Events that record possible losses.

use dezky_core::{Actor, NewEvent, NewMetadata, Outcome, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::request::Unreadable;
use crate::authentik::proto::Position;

/// The event that records that events between the watermark and the oldest remaining row may be
/// lost. The same watermark gives the same event.
pub fn gap_event(
    source: &str,
    watermark: Timestamp,
    oldest: Timestamp,
    now: Timestamp,
) -> NewEvent {
    let said = json!({"reason": "expired", "from": watermark, "to": oldest, "noticed": now});
    gap(source, &watermark.to_string(), said, now)
}

/// The event that records rows that were skipped because the server fails to return them. The same
/// position gives the same event.
pub fn unreadable_event(source: &str, hole: &Unreadable, now: Timestamp) -> NewEvent {
    let position = |position: &Option<Position>| {
        position.as_ref().map(|position| json!({"created": position.created(), "pk": position.pk}))
    };
    let (newer, older) = (position(&hole.newer), position(&hole.older));
    // The older neighbour comes first, because new rows may appear on the other side.
    let neighbour = older.as_ref().or(newer.as_ref()).map(ToString::to_string);
    let said = json!({
        "reason": "unreadable",
        "rows": hole.rows,
        "newer": newer,
        "older": older,
        "noticed": now,
    });
    gap(source, &format!("unreadable:{}", neighbour.unwrap_or_default()), said, now)
}

fn gap(source: &str, identity: &str, said: Value, now: Timestamp) -> NewEvent {
    let mut digest = hex::encode(Sha256::digest(identity));
    digest.truncate(40);
    NewEvent {
        at: Some(now),
        outcome: Outcome::Failure,
        resource_type: Some("source".into()),
        resource_id: Some(source.to_owned()),
        external_id: Some(format!("gap:{source}:{digest}")),
        metadata: NewMetadata::from_value(said),
        ..NewEvent::new("ingest.gap", Actor::system())
    }
}
