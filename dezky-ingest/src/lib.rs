#![doc = include_str!("../README.md")]

mod address;
mod annotations;
pub mod authentik;
mod body;
mod cut;
mod distinct;
mod domain;
pub mod generic;
pub mod intake;
mod keys;
pub mod legacy;
mod notices;
pub mod ocis;
pub mod pump;
pub mod quarantine;
mod secrets;
pub mod signature;
mod source_name;
pub mod stalwart;
pub mod tail;
#[cfg(feature = "testkit")]
pub mod testkit;
mod webhook;

#[cfg(feature = "authentik")]
pub use dezky_core::http;
pub use intake::{IngestSummary, Intake};
pub use pump::{Pump, PumpConfig, PumpCounts, PumpError, PumpHandle, PumpState, PumpStatus, Tick};
