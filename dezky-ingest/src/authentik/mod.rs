//! Authentik: a poller of its events.
//!
//! Every part takes data and returns data, and can be used separately: [`protocol::Page`] and
//! [`protocol::Item`] read the server's answers, [`map`] maps an event, [`protocol::Poll`] decides
//! which page to request next. Only
#![cfg_attr(feature = "authentik", doc = "[`AuthentikSource`]")]
#![cfg_attr(not(feature = "authentik"), doc = "`AuthentikSource` (feature `authentik`)")]
//! talks to a server.

#[cfg(feature = "authentik")]
mod config;
#[cfg(feature = "authentik")]
mod groups;
#[cfg(feature = "authentik")]
mod http;
mod map;
mod poll;
mod proto;
mod redact;
#[cfg(feature = "authentik")]
mod source;
#[cfg(feature = "authentik")]
mod users;

#[cfg(feature = "authentik")]
pub use self::config::{ApiToken, AuthentikConfig};
pub(crate) use self::map::redecode;
pub use self::map::{ACTIONS, SOURCE, action, malformed_item, map, tenant_user};
pub use self::poll::{cursor_from, gap_event, unreadable_event};
pub use self::proto::pk;
pub(crate) use self::redact::redact;
#[cfg(feature = "authentik")]
pub use self::source::AuthentikSource;

/// The protocol of the list of events, without I/O: which page to request next, and the events in
/// the answers.
pub mod protocol {
    pub use super::poll::{
        Answer, Memory, Order, Poll, Request, Settings, Step, Suspect, Unreadable,
    };
    pub use super::proto::{Event, Item, MalformedItem, Page, Position};
}
