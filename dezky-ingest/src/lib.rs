#![doc = include_str!("../README.md")]

mod address;
pub mod authentik;
mod cut;
mod distinct;
mod domain;
pub mod generic;
#[cfg(feature = "authentik")]
pub mod http;
pub mod intake;
mod json;
mod keys;
pub mod legacy;
mod notices;
pub mod ocis;
pub mod pump;
pub mod quarantine;
mod secrets;
pub mod signature;
pub mod stalwart;
pub mod tail;
#[cfg(feature = "testkit")]
pub mod testkit;
mod webhook;

pub use intake::{IngestSummary, Intake};
pub use pump::{Pump, PumpConfig, PumpCounts, PumpError, PumpHandle, PumpState, PumpStatus, Tick};
