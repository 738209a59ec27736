#![doc = include_str!("../README.md")]

pub mod authentik;
pub mod intake;
pub mod ocis;
pub mod pump;
pub mod signature;
pub mod stalwart;

pub use intake::{Intake, Taken};
pub use pump::{Pump, PumpConfig, PumpStatus, Tick};
