//! What the process tells of itself.

pub(crate) mod logging;
