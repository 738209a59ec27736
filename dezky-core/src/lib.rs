#![doc = include_str!("../README.md")]

pub mod canonical;
pub mod change;
pub mod copy;
pub mod directory;
pub mod documents;
pub mod domain;
mod error;
mod event;
#[cfg(feature = "http")]
pub mod http;
pub mod integrity;
pub mod json;
mod log;
mod metadata;
pub mod rt;
pub mod source;
mod spool;
pub mod store;
mod tenants;
mod time;
pub mod verify;

#[cfg(feature = "testkit")]
pub mod testkit;

pub use change::Edit;
pub use error::{Error, ErrorKind, Result};
pub use event::{
    Actor, ActorType, AuditEvent, Field, Invalid, NewEvent, Outcome, PLATFORM_SOURCE, SealedEvent,
    StoredEvent, written_address,
};
pub use log::{
    AppendOutcome, AuditLog, Drained, RecordCounts, RecordOutcome, Recorded, SpoolStatus,
};
pub use metadata::{Metadata, NewMetadata};
pub use rt::Runtime;
pub use source::{
    IngestSource, Pull, PullLimits, PulledEvent, QuarantineItem, TenantDirectory, TenantHint,
    Waiting,
};
pub use spool::{Spool, SpoolConfig, SpoolRecord};
pub use store::{AuditStore, AuditStoreExt};
pub use tenants::{FoundTenant, TENANT_BY, TenantFinder, UNRESOLVED, UnresolvedEvent};
pub use time::{MAX_AHEAD, TimeFormat, TimeProblem, Timestamp};
