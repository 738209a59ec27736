//! The bounds of connections and request bodies.

use std::time::Duration;

/// The bounds of connections and of the requests on them.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// The maximum number of connections.
    pub max_connections: usize,
    /// The longest time without a request.
    pub idle: Duration,
    /// The longest time in which a client accepts no bytes of a response.
    pub write: Duration,
    /// The longest time for a request's body.
    pub body: Duration,
    /// The interval at which a body's rate is checked.
    pub body_stall: Duration,
    /// The memory of webhooks' bodies, in bytes.
    pub body_memory: usize,
    /// The maximum time for which bodies may continue to arrive when the server stops. Responses
    /// have half as much time again to be sent.
    pub ending: Duration,
}
