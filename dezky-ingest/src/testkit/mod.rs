//! A double of Authentik, for tests and demos.
//!
//! It is a server on a loopback port that behaves like the real one in everything a poller can
//! notice: it ignores filters on `created`, clamps page sizes, pages by offset over the current
//! table, shuffles rows that are equal in the requested order, and refuses with 403, never 401. The
//! methods of [`AuthentikDouble`] change its table between requests.

#![expect(clippy::disallowed_methods, reason = "a double is a server that runs alongside the test")]

mod list;
pub mod properties;
mod server;

pub use self::list::Profile;
pub use self::server::{AuthentikDouble, Builder, Fault, Recorded};

use serde_json::{Value, json};

/// An event as Authentik would list it: `login` of user 42 at `created`, with a key
/// made of `number`.
pub fn authentik_event(number: u64, created: &str) -> Value {
    json!({
        // The digits of a v4 have no order.
        "pk": format!(
            "{:08x}-0000-4000-8000-{number:012x}",
            u32::try_from(number.wrapping_mul(0x9e37_79b9) & 0xffff_ffff).unwrap_or(0)
        ),
        "user": {"pk": 42, "email": "ana@acme.test", "username": "ana"},
        "action": "login",
        "app": "authentik.events.signals",
        "context": {
            "auth_method": "password",
            "http_request": {
                "args": {}, "path": "/api/v3/flows/executor/login/", "method": "GET",
                "request_id": format!("{number:032x}"), "user_agent": "Mozilla/5.0",
            },
        },
        "client_ip": "203.0.113.10",
        "created": created,
        "expires": "2027-09-01T08:00:00.119001Z",
        "brand": {
            "pk": "0d7c1e0a9f4b4c1d8a2e3f4051627384", "app": "authentik_brands",
            "name": "acme", "model_name": "brand",
        },
    })
}
