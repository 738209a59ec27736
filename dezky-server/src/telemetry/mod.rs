//! Telemetry: logs.

pub(crate) mod logging;
