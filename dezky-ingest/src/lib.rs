#![doc = include_str!("../README.md")]

pub mod authentik;
#[cfg(feature = "authentik")]
pub mod http;
pub mod intake;
pub mod ocis;
pub mod pump;
pub mod quarantine;
pub mod signature;
pub mod stalwart;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use intake::{Intake, Taken};
pub use pump::{Pump, PumpConfig, PumpCounts, PumpError, PumpHandle, PumpState, PumpStatus, Tick};
