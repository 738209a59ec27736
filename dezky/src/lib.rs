#![doc = include_str!("../README.md")]
// The futures of three drivers nest deeper than the default allows.
#![recursion_limit = "256"]

pub mod audience;
pub mod copy;
pub mod engine;
mod platform;
pub mod url;
mod within;

pub use dezky_core as core;
pub use dezky_core::directory::{self, Directory, NewPartner, NewTenant, NewUser, TenantKey};
pub use dezky_core::rt::TokioRuntime;
pub use dezky_core::store::{AuditStore, ListQuery};
pub use dezky_core::{
    Actor, ActorType, AuditLog, Edit, Error, ErrorKind, NewEvent, Outcome, RecordOutcome, Recorded,
    Result, Runtime, Spool, SpoolConfig, Timestamp, verify,
};
pub use dezky_flags as flags;
pub use dezky_flags::{
    Decision, Flag, FlagContext, FlagEvaluator, FlagPatch, FlagState, Flags, LiveFlags, NewFlag,
};
pub use dezky_ingest as ingest;
pub use dezky_ingest::{Intake, Pump, PumpConfig};

pub use self::audience::Subject;
pub use self::engine::{Access, Stores};
pub use self::platform::{Platform, PlatformBuilder};
pub use self::url::{StoreConfig, StoreUrl};
