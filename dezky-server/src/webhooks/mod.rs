//! Webhooks: signed posts of Stalwart and of declared sources.

pub(crate) mod declared;
pub(crate) mod stalwart;
