//! Authentik: a poller of its events.
//!
//! Every part is a value that takes data and gives data, and can be used on its
//! own: [`Page`] and [`Item`] read what the server sends, [`map`] says what an
//! event means, [`Poll`] decides which page to ask for next. Only
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
pub use self::core::{
    Answer, Memory, Order, Poll, Request, Settings, Step, Suspect, Unreadable, cursor_from,
    gap_event, unreadable_event,
};
pub(crate) use self::map::redecode;
pub use self::map::{ACTIONS, SOURCE, action, map, odd_item, tenant_user};
pub use self::proto::{Event, Item, Odd, Page, Place, pk};
pub(crate) use self::redact::redact;
#[cfg(feature = "authentik")]
pub use self::source::AuthentikSource;
