//! Authentik: a poller of its events.
//!
//! Every part is a value that takes data and gives data, and can be used on its
//! own: [`protocol::Page`] and [`protocol::Item`] read what the server sends, [`map`] says what an
//! event means, [`protocol::Poll`] decides which page to ask for next. Only
#![cfg_attr(feature = "authentik", doc = "[`AuthentikSource`]")]
#![cfg_attr(not(feature = "authentik"), doc = "`AuthentikSource` (feature `authentik`)")]
//! talks to a server.

#[cfg(feature = "authentik")]
mod config;
mod core;
#[cfg(feature = "authentik")]
mod groups;
#[cfg(feature = "authentik")]
mod http;
mod map;
mod proto;
mod redact;
#[cfg(feature = "authentik")]
mod source;
#[cfg(feature = "authentik")]
mod users;

#[cfg(feature = "authentik")]
pub use self::config::{ApiToken, AuthentikConfig};
pub use self::core::{cursor_from, gap_event, unreadable_event};
pub(crate) use self::map::redecode;
pub use self::map::{ACTIONS, SOURCE, action, malformed_item, map, tenant_user};
pub use self::proto::pk;
pub(crate) use self::redact::redact;
#[cfg(feature = "authentik")]
pub use self::source::AuthentikSource;

/// The reading of the list of events, as data: which page to ask for next, and the events
/// in the answers.
pub mod protocol {
    pub use super::core::{
        Answer, Memory, Order, Poll, Request, Settings, Step, Suspect, Unreadable,
    };
    pub use super::proto::{Event, Item, MalformedItem, Page, Place};
}
