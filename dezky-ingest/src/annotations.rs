//! Names of the annotations that ingest gives to events, under `_dezky` in their metadata.

pub(crate) use dezky_core::TENANT_BY;

/// The member of the metadata that holds the annotations.
pub(crate) const ANNOTATIONS: &str = "_dezky";

/// The action as the source spells it; marks an event as mapped from the source's own text.
pub(crate) const RAW_ACTION: &str = "rawAction";
/// An id that cannot be the external id.
pub(crate) const RAW_ID: &str = "rawId";
/// An outcome that the source's map does not know.
pub(crate) const RAW_OUTCOME: &str = "rawOutcome";
/// Secrets were removed from the metadata.
pub(crate) const REDACTED: &str = "redacted";
/// The parts that were cut, with the digest of each original.
pub(crate) const CUT: &str = "cut";
/// The source's data was reduced to its short scalars.
pub(crate) const TRUNCATED: &str = "truncated";
/// How late the source found the event, in seconds.
pub(crate) const LATE_BY: &str = "lateBySeconds";
/// The declared id of an event whose id another event has taken.
pub(crate) const SHARED_ID: &str = "sharedId";
/// The event came out of the quarantine.
pub(crate) const FROM_QUARANTINE: &str = "fromQuarantine";
