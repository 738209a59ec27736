//! Events that record possible losses of lines.

use dezky_core::{Actor, NewEvent, NewMetadata, Outcome, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Digest, Place};

/// Why lines may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GapReason {
    /// The file is shorter than the part that was read.
    Truncated,
    /// The file was rewritten.
    Rewritten,
    /// The generation no longer exists.
    GenerationMissing,
    /// A compressed file can't be decoded to its end.
    Unreadable,
    /// There are more rotated files than are read.
    LeftOut,
}

impl GapReason {
    /// The stable code.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Rewritten => "rewritten",
            Self::GenerationMissing => "generation_missing",
            Self::Unreadable => "unreadable",
            Self::LeftOut => "left_out",
        }
    }
}

/// The event that records that lines after the cursor `text` may be lost. The same cursor gives the
/// same event.
pub(super) fn gap_event(
    source: &str,
    text: &str,
    lost: &Place,
    reason: GapReason,
    now: Timestamp,
) -> NewEvent {
    let mut digest = hex::encode(Sha256::digest(text));
    digest.truncate(40);
    let hex_or_null = |hash: Option<Digest>| hash.map_or(Value::Null, |h| hex::encode(h).into());
    let last_written = lost
        .mtime_ns
        .and_then(|ns| Timestamp::from_millis(ns.div_euclid(1_000_000)))
        .map_or(Value::Null, |at| at.to_string().into());
    NewEvent {
        at: Some(now),
        outcome: Outcome::Failure,
        resource_type: Some("source".into()),
        resource_id: Some(source.to_owned()),
        external_id: Some(format!("gap:{source}:{digest}")),
        metadata: NewMetadata::from_value(json!({
            "reason": reason.code(),
            "lastInode": lost.inode,
            "lastOffset": lost.position,
            "lastLineBytes": lost.last_line.map(|line| line.bytes),
            "lastLineHash": hex_or_null(lost.last_line.map(|line| line.hash)),
            "generation": hex_or_null(lost.generation),
            "lastTime": lost.last_time,
            // The lost lines were written between these two.
            "lastWritten": last_written,
            "noticed": now,
        })),
        ..NewEvent::new("ingest.gap", Actor::system())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_the_same_event_for_the_same_cursor() {
        let now = Timestamp::from_millis_clamped(5);
        let lost = Place { position: 10, ..Place::start(7, None, Some(3_999_999)) };
        let gap = gap_event("ocis:b", "7:10", &lost, GapReason::Truncated, now);
        assert_eq!(
            gap.external_id,
            gap_event("ocis:b", "7:10", &lost, GapReason::Rewritten, now).external_id
        );
        assert_ne!(
            gap.external_id,
            gap_event("ocis", "7:10", &lost, GapReason::Truncated, now).external_id
        );
        assert_eq!((gap.action.as_str(), gap.source.as_str()), ("ingest.gap", "platform-api"));
        let said: Value = serde_json::from_str(gap.metadata.source().unwrap()).unwrap();
        assert_eq!(said["lastOffset"], 10);
        assert_eq!(said["lastWritten"], "1970-01-01T00:00:00.003Z");
    }
}
